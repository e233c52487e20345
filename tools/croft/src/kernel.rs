//! Kernel files. A bundle holds what is loaded and where it goes, so that the hypervisor needs no decompressor and reads no
//! ELF; all that is done here.
//!
//! * Distributions ship kernels packed in one way or another: [`packing`] unpacks them.
//! * The result is an arm64 `Image`, an ELF executable, or a raw binary of which the site file says where it goes
//!   ([`program`]);
//! * or it is one of the many things that are mistaken for a kernel. The error names them, and says what would be right
//!   ([`foreign`]).
//!
//! These files are untrusted, so the unpacked size is bounded.

mod foreign;
mod packing;
mod program;

use abi::bundle::Program;
use machine::image::{ImageError, ImageHeader};
pub(crate) use packing::MAX_UNPACKED;
use packing::Packing;
pub use program::Raw;

/// A file that was packed more often than this is no kernel.
const MOST_LAYERS: usize = 4;

/// Why a file is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It was unpacked where needed, and is no image.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// Packed data that cannot be unpacked.
    #[error("it is packed with {packer}, but damaged: {reason}")]
    Damaged {
        /// The method.
        packer: &'static str,
        /// What the unpacker says.
        reason: String,
    },
    /// A method that croft doesn't know.
    #[error(
        "it is packed with {0}; croft unpacks gzip, zstd, xz, lzma and lz4, so unpack it to the plain Image yourself"
    )]
    Packer(String),
    /// Packed again and again.
    #[error("it is packed four times and more; unpack it to the plain Image yourself")]
    Layers,
    /// Something else.
    #[error("it is {0}")]
    Foreign(&'static str),
    /// A program that cannot be loaded.
    #[error("{0}")]
    Program(String),
    /// The site file says where a file goes that says so itself.
    #[error("it is an ELF file, which says itself where it goes; leave `load` and `entry` out")]
    NotRaw,
    /// Nobody says where a file goes.
    #[error("{0}; a raw binary needs an address: load = \"0x40200000\"")]
    NoAddress(ImageError),
}

/// A kernel that can be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// An arm64 `Image`.
    Image {
        /// The whole file.
        bytes: Vec<u8>,
        /// Its header.
        header: ImageHeader,
    },
    /// Another program.
    Program {
        /// What is loaded of it.
        bytes: Vec<u8>,
        /// To where.
        program: Box<Program>,
    },
}

impl Kernel {
    /// What goes into the bundle.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Image { bytes, .. } | Self::Program { bytes, .. } => bytes,
        }
    }

    /// How it is loaded, if it is no `Image`.
    #[must_use]
    pub fn program(&self) -> Option<Program> {
        match self {
            Self::Image { .. } => None,
            Self::Program { program, .. } => Some(**program),
        }
    }
}

/// The kernel in a file's contents; `raw` is what the site file says of a raw binary.
///
/// # Errors
/// Says why it cannot be started.
pub fn read(file: Vec<u8>, raw: Option<Raw>) -> Result<Kernel, KernelError> {
    let bytes = unpack(file)?;
    if bytes.starts_with(b"\x7fELF") {
        if raw.is_some() {
            return Err(KernelError::NotRaw);
        }
        let (bytes, program) = program::of_elf(&bytes)?;
        return Ok(Kernel::Program { bytes, program: Box::new(program) });
    }
    if let Some(raw) = raw {
        let program = program::of_raw(&bytes, raw)?;
        return Ok(Kernel::Program { bytes, program: Box::new(program) });
    }
    match ImageHeader::parse(&bytes) {
        Ok(header) => Ok(Kernel::Image { bytes, header }),
        // What is an image is never taken for something else; a small initrd is too short for a header, and yet one.
        Err(error @ (ImageError::NotAnImage | ImageError::TooShort(_))) => {
            Err(foreign::name(&bytes).map_or(KernelError::NoAddress(error), KernelError::Foreign))
        }
        Err(error) => Err(error.into()),
    }
}

/// The contents of a file that may be packed, and packed again.
fn unpack(mut bytes: Vec<u8>) -> Result<Vec<u8>, KernelError> {
    for _ in 0..MOST_LAYERS {
        let Some(packing) = Packing::of(&bytes) else { return Ok(bytes) };
        bytes = packing.unpack(&bytes)?;
    }
    Err(KernelError::Layers)
}

/// What the contents of an initrd are, if they are none: mostly a kernel, and then two keys were probably confused.
#[must_use]
pub fn in_place_of_initrd(file: &[u8]) -> Option<&'static str> {
    let mut start = file.get(..packing::START.min(file.len()))?.to_vec();
    let mut packing = Packing::of(file);
    if let Some(outer) = packing {
        start = outer.start(file);
        packing = packing.filter(|packing| *packing == Packing::Zboot);
        packing = packing.or(Packing::of(&start));
    }
    if packing == Some(Packing::Zboot) {
        return Some("an EFI kernel (zboot)");
    }
    if let Some(inner) = packing {
        start = inner.start(&start);
    }
    if start.get(56..60) == Some(b"ARM\x64") {
        return Some("an arm64 kernel (Image)");
    }
    let is_elf = start.starts_with(b"\x7fELF");
    // Of what is packed only the start is looked at.
    let rest = if Packing::of(file).is_some() { &start } else { file };
    is_elf.then_some("an ELF file").or_else(|| foreign::no_initrd(rest))
}

/// The smallest thing with a header that is right; for tests here and beside.
#[cfg(test)]
pub(crate) fn tiny_image() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[16..24].copy_from_slice(&8192u64.to_le_bytes());
    image[24] = 0b1010;
    image[56..60].copy_from_slice(b"ARMd");
    image
}

#[cfg(test)]
mod tests;
