//! The header of an arm64 Linux `Image`: 64 bytes that say how much memory the kernel needs and where in it the file
//! goes (Linux, Documentation/arch/arm64/booting.rst, section 4). All fields are little-endian.

use thiserror::Error;

/// Length of the header in bytes.
pub const HEADER_LENGTH: usize = 64;
/// "ARM\x64" at byte 56.
const MAGIC: [u8; 4] = *b"ARMd";

/// What the header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageHeader {
    /// Where the image must be placed, in bytes from a 2 MiB aligned base.
    pub text_offset: u64,
    /// Bytes of memory from the start of the image that the kernel uses (its bss is not in the file), never 0 here.
    pub image_size: u64,
    /// Bit 0: big-endian kernel; bits 1-2: its page size (1 = 4K, 2 = 16K, 3 = 64K); bit 3: may be placed anywhere.
    pub flags: u64,
}

/// Why something is no kernel image that can be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ImageError {
    /// Shorter than the header.
    #[error("it has only {0} bytes; an arm64 Image begins with a header of 64 bytes")]
    TooShort(usize),
    /// The magic number is missing.
    #[error("it has no \"ARMd\" at byte 56; an uncompressed arm64 Linux Image has")]
    NoMagic,
    /// The header says that the kernel is big-endian.
    #[error("it is a big-endian kernel; only little-endian ones can be started")]
    BigEndian,
    /// The sizes in the header cannot be true.
    #[error("its header asks for {image_size:#x} bytes at offset {text_offset:#x}; the offset must be below 2 MiB")]
    ImpossibleSize {
        /// As in [`ImageHeader`].
        text_offset: u64,
        /// As in [`ImageHeader`].
        image_size: u64,
    },
}

impl ImageHeader {
    /// Reads the header of `image`, the whole file. Kernels before 3.17 left `image_size` zero; the file's length and
    /// the old fixed offset of 512 KiB stand in then, as booting.rst asks.
    ///
    /// # Errors
    /// Says why `image` cannot be started.
    pub fn parse(image: &[u8]) -> Result<Self, ImageError> {
        let header = image.first_chunk::<HEADER_LENGTH>().ok_or(ImageError::TooShort(image.len()))?;
        if header[56..60] != MAGIC {
            return Err(ImageError::NoMagic);
        }
        let field =
            |at: usize| header.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |raw| u64::from_le_bytes(*raw));
        let (mut text_offset, mut image_size, flags) = (field(8), field(16), field(24));
        if flags & 1 != 0 {
            return Err(ImageError::BigEndian);
        }
        let file_size = image.len() as u64;
        if image_size == 0 {
            (text_offset, image_size) = (512 << 10, file_size);
        }
        if text_offset >= units::BLOCK_SIZE || image_size >= 1 << 40 {
            return Err(ImageError::ImpossibleSize { text_offset, image_size });
        }
        Ok(Self { text_offset, image_size: image_size.max(file_size), flags })
    }

    /// Bytes of RAM from a 2 MiB aligned base up to the end of what the kernel uses.
    #[must_use]
    pub const fn footprint(&self) -> u64 {
        self.text_offset + self.image_size
    }
}

#[cfg(test)]
mod tests {
    use super::{ImageError, ImageHeader};

    fn image(text_offset: u64, image_size: u64, flags: u64) -> [u8; 128] {
        let mut image = [0; 128];
        image[8..16].copy_from_slice(&text_offset.to_le_bytes());
        image[16..24].copy_from_slice(&image_size.to_le_bytes());
        image[24..32].copy_from_slice(&flags.to_le_bytes());
        image[56..60].copy_from_slice(b"ARMd");
        image
    }

    #[test]
    fn a_modern_header_is_taken_as_it_is() {
        let header = ImageHeader::parse(&image(0, 0x20_0000, 0xa)).unwrap();
        assert_eq!(header, ImageHeader { text_offset: 0, image_size: 0x20_0000, flags: 0xa });
        assert_eq!(header.footprint(), 0x20_0000);
    }

    #[test]
    fn an_old_header_gets_the_documented_defaults() {
        let header = ImageHeader::parse(&image(0, 0, 0)).unwrap();
        assert_eq!((header.text_offset, header.image_size), (0x8_0000, 128));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert_eq!(ImageHeader::parse(b"short"), Err(ImageError::TooShort(5)));
        assert_eq!(ImageHeader::parse(&[0; 64]), Err(ImageError::NoMagic));
        assert_eq!(ImageHeader::parse(&image(0, 1, 1)), Err(ImageError::BigEndian));
        assert!(matches!(ImageHeader::parse(&image(0x20_0000, 1, 0)), Err(ImageError::ImpossibleSize { .. })));
        assert!(matches!(ImageHeader::parse(&image(0, u64::MAX, 0)), Err(ImageError::ImpossibleSize { .. })));
    }
}
