//! What of arm64 `Image`s is the hypervisor's, or may be: one that may lie anywhere.

use machine::image::{Base, ImageError, ImageHeader};

/// An image lies at a multiple of this.
pub const ALIGNMENT: u64 = 2 << 20;

/// No image of ours comes near this; a header that asks for more is damaged, and would take the machine's memory.
const LARGEST: u64 = 64 << 20;

/// Why a file is not started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadImage {
    /// Another kind of file.
    #[error("it is no arm64 Image; `cargo xtask build` makes target/undercroft.img")]
    NoImage,
    /// One that must lie where we do not put it.
    #[error("it is an arm64 Image that may not lie anywhere in memory, and so not the hypervisor's")]
    NotAnywhere,
    /// A big-endian one.
    #[error("it is a big-endian Image, and so not the hypervisor's")]
    BigEndian,
    /// Its header and its length cannot both be right.
    #[error("its header asks for {asked} bytes, and it has {has}; the most is {LARGEST}: it is cut off or damaged")]
    Size {
        /// What the header asks for.
        asked: u64,
        /// How long the file is.
        has: u64,
    },
}

/// How many bytes of memory this image takes, from its first byte to the end of what it clears itself.
///
/// # Errors
/// If it cannot be started.
pub fn size_in_memory(file: &[u8]) -> Result<u64, BadImage> {
    let header = ImageHeader::parse(file).map_err(|error| match error {
        ImageError::BigEndian => BadImage::BigEndian,
        ImageError::TextOffset(_) => BadImage::NotAnywhere,
        _ => BadImage::NoImage,
    })?;
    if header.base != Base::Anywhere || header.text_offset != 0 {
        return Err(BadImage::NotAnywhere);
    }
    let asked = header.image_size.unwrap_or(0);
    let has = file.len() as u64;
    if asked < has || asked > LARGEST {
        return Err(BadImage::Size { asked, has });
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    fn image(text_offset: u64, size: u64, flags: u64) -> Vec<u8> {
        let mut file = vec![0; 80];
        file[8..16].copy_from_slice(&text_offset.to_le_bytes());
        file[16..24].copy_from_slice(&size.to_le_bytes());
        file[24..32].copy_from_slice(&flags.to_le_bytes());
        file[56..60].copy_from_slice(b"ARM\x64");
        file
    }

    #[test]
    fn knows_what_an_image_takes() {
        assert_eq!(size_in_memory(&image(0, 4096, 0b1010)), Ok(4096));
        assert_eq!(size_in_memory(&image(0, 80, 0b1010)), Ok(80));
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(size_in_memory(&[0; 80]), Err(BadImage::NoImage));
        assert_eq!(size_in_memory(&image(0, 4096, 0b1010)[..60]), Err(BadImage::NoImage));
        assert_eq!(size_in_memory(&image(0, 4096, 0b0010)), Err(BadImage::NotAnywhere));
        assert_eq!(size_in_memory(&image(0x8_0000, 4096, 0b1010)), Err(BadImage::NotAnywhere));
        assert_eq!(size_in_memory(&image(8, 4096, 0b1010)), Err(BadImage::NotAnywhere));
        assert_eq!(size_in_memory(&image(0, 4096, 0b1011)), Err(BadImage::BigEndian));
        assert_eq!(size_in_memory(&image(0, 0, 0b1010)), Err(BadImage::NotAnywhere));
        assert_eq!(size_in_memory(&image(0, 79, 0b1010)), Err(BadImage::Size { asked: 79, has: 80 }));
        assert_eq!(size_in_memory(&image(0, 1 << 40, 0b1010)), Err(BadImage::Size { asked: 1 << 40, has: 80 }));
    }
}
