//! What an arm64 Linux `Image` says about itself, and where it goes.
//!
//! The rules are those of Linux's Documentation/arch/arm64/booting.rst. An `Image` begins with a header of 64 bytes; any
//! flat program with such a header is loaded the same way, which is how small payloads become guests.

use crate::MachinePlan;
use units::{Ipa, PAGE_SIZE, Range};

/// How many bytes at the start of an image [`ImageHeader::parse`] looks at.
pub const HEADER_SIZE: usize = 64;
/// How much memory is set aside for the device tree.
pub const DEVICE_TREE_SIZE: u64 = 64 << 10;

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
/// An initrd must lie in a window of this size, aligned to 1 GiB, that holds the kernel too.
const INITRD_WINDOW: u64 = 32 << 30;

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
    /// The kernel is larger than RAM.
    #[error("the kernel needs {needed:#x} bytes from the start of memory, and the VM has {available:#x}")]
    KernelDoesNotFit {
        /// Bytes from the start of RAM to the kernel's end.
        needed: u64,
        /// Bytes of RAM.
        available: u64,
    },
    /// No room for the device tree.
    #[error("with the kernel and the device tree {needed:#x} bytes are needed, and the VM has {available:#x}")]
    DeviceTreeDoesNotFit {
        /// Bytes from the start of RAM to the tree's end.
        needed: u64,
        /// Bytes of RAM.
        available: u64,
    },
    /// No room for the initrd.
    #[error("with the kernel and the initrd {needed:#x} bytes are needed, and the VM has {available:#x}")]
    InitrdDoesNotFit {
        /// Bytes from the start of RAM to the initrd's end.
        needed: u64,
        /// Bytes of RAM.
        available: u64,
    },
    /// The initrd lies too far from the kernel.
    #[error("the initrd would end {0:#x} bytes behind the kernel's first gigabyte; 32 GiB is the limit")]
    InitrdTooFar(u64),
}

impl ImageHeader {
    /// Reads the header at the start of `image`, of which [`HEADER_SIZE`] bytes are enough.
    ///
    /// # Errors
    /// If it is not a little-endian arm64 `Image`.
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
        Ok(match doubleword(header, IMAGE_SIZE) {
            0 => Self { text_offset: OLD_TEXT_OFFSET, image_size: None, page_size, base },
            size => Self { text_offset: doubleword(header, TEXT_OFFSET), image_size: Some(size), page_size, base },
        })
    }
}

/// The little-endian 64-bit field at `offset`, one of the constants above.
fn doubleword(header: &[u8; HEADER_SIZE], offset: usize) -> u64 {
    header[offset..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Where a guest's parts go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// The kernel's file goes to the start of this; the rest of it is the kernel's too.
    pub kernel: Range<Ipa>,
    /// The first instruction.
    pub entry: Ipa,
    /// The device tree's place; its address goes to X0.
    pub device_tree: Range<Ipa>,
    /// The initrd's place, if there is one.
    pub initrd: Option<Range<Ipa>>,
}

impl Placement {
    /// Places a kernel of `kernel_bytes` with this header, the device tree and an initrd of `initrd_bytes` (0: none)
    /// into the RAM of `plan`, one behind the other from its start.
    ///
    /// The tree comes before the initrd, aligned to its own size so that it crosses no 2 MiB boundary, as kernels before
    /// 4.2 want it.
    ///
    /// # Errors
    /// What does not fit.
    pub fn new(
        plan: &MachinePlan,
        header: &ImageHeader,
        kernel_bytes: u64,
        initrd_bytes: u64,
    ) -> Result<Self, ImageError> {
        let ram = plan.ram();
        let available = ram.size;
        let size = header.image_size.unwrap_or(0).max(kernel_bytes);

        // All sums saturate: what reaches the top of the space is larger than any RAM.
        let kernel_end = header.text_offset.saturating_add(size);
        if kernel_end > available {
            return Err(ImageError::KernelDoesNotFit { needed: kernel_end, available });
        }
        let tree_start = kernel_end.next_multiple_of(DEVICE_TREE_SIZE);
        let tree_end = tree_start + DEVICE_TREE_SIZE;
        if tree_end > available {
            return Err(ImageError::DeviceTreeDoesNotFit { needed: tree_end, available });
        }
        let initrd_start = tree_end.next_multiple_of(PAGE_SIZE);
        let initrd_end = initrd_start.saturating_add(initrd_bytes);
        if initrd_end > available {
            return Err(ImageError::InitrdDoesNotFit { needed: initrd_end, available });
        }
        if initrd_end > INITRD_WINDOW {
            return Err(ImageError::InitrdTooFar(initrd_end));
        }

        let part = |start: u64, size: u64| Range { start: Ipa(ram.start.0 + start), size };
        let kernel = part(header.text_offset, size);
        Ok(Self {
            kernel,
            entry: kernel.start,
            device_tree: part(tree_start, DEVICE_TREE_SIZE),
            initrd: (initrd_bytes != 0).then(|| part(initrd_start, initrd_bytes)),
        })
    }
}
