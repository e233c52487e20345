//! What an arm64 Linux `Image` says about itself, and whether that can be true.
//!
//! The rules are those of Linux's Documentation/arch/arm64/booting.rst. An `Image` begins with a header of 64 bytes; any
//! flat program with such a header is loaded the same way, which is how small payloads become guests.
//!
//! Kernels with an EFI stub are PE files too, whose sections say how long the file must be: that shows whether it was
//! cut. `image_size` cannot show it, because it includes what the kernel zeroes itself, which may be any amount.

use units::PAGE_SIZE;

/// How many bytes an image's header has.
pub const HEADER_SIZE: usize = 64;
/// Where in the header things are.
const TEXT_OFFSET: usize = 8;
const IMAGE_SIZE: usize = 16;
const FLAGS: usize = 24;
const MAGIC: usize = 56;
/// "ARM\x64", little endian.
const MAGIC_VALUE: [u8; 4] = *b"ARM\x64";
/// The first two bytes of a gzip file (RFC 1952).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Kernels before 3.17 leave `image_size` empty, and then want this offset whatever the header says.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// An image that is also a PE file begins with this, and has the offset of the PE header in its last word.
const PE_MAGIC: [u8; 2] = *b"MZ";
const PE_OFFSET: usize = 60;

/// The page size a kernel was built for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageSize {
    /// The header does not say.
    Unspecified,
    /// 4 KiB.
    Kib4,
    /// 16 KiB.
    Kib16,
    /// 64 KiB.
    Kib64,
}

/// Where in memory a kernel may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// As close to the start of RAM as possible.
    StartOfRam,
    /// Anywhere.
    Anywhere,
}

/// The header of an `Image`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageHeader {
    /// How far behind a 2 MiB boundary the image goes, in bytes.
    pub text_offset: u64,
    /// How much memory it needs from there, in bytes, including what is zero at the start; `None` if it does not say.
    pub image_size: Option<u64>,
    /// Its page size.
    pub page_size: PageSize,
    /// Where it may be.
    pub base: Base,
}

/// Why an image cannot be started, or what does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImageError {
    /// Too short for a header.
    #[error("the kernel has only {0} bytes; an arm64 Image begins with a header of 64")]
    TooShort(u64),
    /// Another format.
    #[error("the kernel is no arm64 Image: \"ARM\\x64\" is not at offset 56")]
    NotAnImage,
    /// A compressed image.
    #[error("the kernel is compressed with gzip; unpack it to a plain arm64 Image")]
    Gzip,
    /// A kernel of the other endianness.
    #[error("the kernel is big-endian; only little-endian guests are supported")]
    BigEndian,
    /// A place from which no kernel runs.
    #[error(
        "the kernel's header asks for a place {0:#x} bytes behind a 2 MiB boundary (text_offset); that must be a multiple of 0x1000"
    )]
    TextOffset(u64),
    /// Built for pages that the CPU does not have.
    #[error("the kernel is built for pages of {0}, which the host's CPUs do not have; take one for pages of 4 KiB")]
    PageSize(&'static str),
    /// Its end is missing.
    #[error("the kernel is cut off: the file has {present} bytes, and by its sections it has at least {needed}")]
    Cut {
        /// Bytes in the file.
        present: u64,
        /// Bytes up to the end of its last section.
        needed: u64,
    },
}

impl ImageHeader {
    /// Reads the header of `image`, which is the whole file.
    ///
    /// # Errors
    /// If it is not a little-endian arm64 `Image`, or cannot be started as it is.
    pub fn parse(image: &[u8]) -> Result<Self, ImageError> {
        if image.starts_with(&GZIP_MAGIC) {
            return Err(ImageError::Gzip);
        }
        let header: &[u8; HEADER_SIZE] = image.first_chunk().ok_or(ImageError::TooShort(image.len() as u64))?;
        if header[MAGIC..MAGIC + 4] != MAGIC_VALUE {
            return Err(ImageError::NotAnImage);
        }
        let flags = doubleword(header, FLAGS);
        if flags & 1 != 0 {
            return Err(ImageError::BigEndian);
        }
        let page_size = match (flags >> 1) & 3 {
            1 => PageSize::Kib4,
            2 => PageSize::Kib16,
            3 => PageSize::Kib64,
            _ => PageSize::Unspecified,
        };
        let base = if flags & 8 == 0 { Base::StartOfRam } else { Base::Anywhere };
        check_length(image, header)?;
        let (text_offset, image_size) = match doubleword(header, IMAGE_SIZE) {
            0 => (OLD_TEXT_OFFSET, None),
            size => (doubleword(header, TEXT_OFFSET), Some(size)),
        };
        // Code finds its data by pages (ADRP), so none runs at an address that it was not linked for modulo 4 KiB.
        if !text_offset.is_multiple_of(PAGE_SIZE) {
            return Err(ImageError::TextOffset(text_offset));
        }
        Ok(Self { text_offset, image_size, page_size, base })
    }

    /// Whether a CPU whose ID_AA64MMFR0_EL1 reads so has the kernel's pages at stage 1: without, it stops before it can say
    /// anything (DDI 0487, D24.2: TGran4 in bits 31:28 and TGran64 in 27:24 are 15 where there are none, TGran16 in 23:20
    /// is 0).
    ///
    /// # Errors
    /// If it does not.
    pub fn check_pages(&self, id_aa64mmfr0: u64) -> Result<(), ImageError> {
        let field = |shift: u32| id_aa64mmfr0 >> shift & 15;
        match self.page_size {
            PageSize::Kib4 if field(28) == 15 => Err(ImageError::PageSize("4 KiB")),
            PageSize::Kib16 if field(20) == 0 => Err(ImageError::PageSize("16 KiB")),
            PageSize::Kib64 if field(24) == 15 => Err(ImageError::PageSize("64 KiB")),
            _ => Ok(()),
        }
    }
}

/// Whether all sections of an image that is a PE file too are in the file (PE Format, "Section Table").
fn check_length(image: &[u8], header: &[u8; HEADER_SIZE]) -> Result<(), ImageError> {
    if !header.starts_with(&PE_MAGIC) {
        return Ok(());
    }
    let present = image.len() as u64;
    let word = |at: u64| {
        let bytes = usize::try_from(at).ok().and_then(|at| image.get(at..)?.first_chunk());
        bytes.map(|bytes| u64::from(u32::from_le_bytes(*bytes))).ok_or(ImageError::Cut { present, needed: at + 4 })
    };
    let pe = word(PE_OFFSET as u64)?;
    // Some loaders want the two letters only, and nothing behind them.
    if word(pe)? != u64::from(u32::from_le_bytes(*b"PE\0\0")) {
        return Ok(());
    }
    let sections = word(pe + 4)? >> 16;
    let optional_header = word(pe + 20)? & 0xffff;
    let mut needed = 0;
    for section in 0..sections {
        // Of the 40 bytes: SizeOfRawData and PointerToRawData.
        let at = pe + 24 + optional_header + 40 * section;
        needed = needed.max(word(at + 16)? + word(at + 20)?);
    }
    if needed > present { Err(ImageError::Cut { present, needed }) } else { Ok(()) }
}

/// The little-endian 64-bit field at `offset`, one of the constants above.
fn doubleword(header: &[u8; HEADER_SIZE], offset: usize) -> u64 {
    header[offset..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
