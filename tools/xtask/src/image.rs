//! From what the linker writes to what a boot loader loads.
//!
//! A boot loader copies an arm64 `Image` to memory as it is and jumps to its first byte (Linux, "Booting AArch64
//! Linux"). So the ELF file's loadable segments are laid out by physical address, gaps filled with zeros. BSS is left
//! out: the header's `image_size` tells the loader how much memory to keep free after the file, and the image zeroes it
//! itself.

use anyhow::{Context, Result, ensure};
use object::Endianness;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

/// No image of ours comes near this; a larger one is a mistake in a linker script.
const LARGEST: u64 = 64 << 20;

/// Makes an `Image` of an ELF file.
pub(crate) fn flatten(elf: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<Endianness>::parse(elf).context("no 64-bit ELF file")?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, elf)?;
    let loaded = || segments.iter().filter(|one| one.p_type(endian) == PT_LOAD && one.p_memsz(endian) > 0);
    let base = loaded().map(|one| one.p_paddr(endian)).min().context("nothing to load in the ELF file")?;
    let mut image = Vec::new();
    let mut extent = 0;
    for segment in loaded() {
        let start = segment.p_paddr(endian) - base;
        let bytes = segment.data(endian, elf).ok().context("a segment reaches past the file's end")?;
        let end = start + bytes.len() as u64;
        extent = extent.max(start.saturating_add(segment.p_memsz(endian)));
        ensure!(extent <= LARGEST, "the image would take {extent} bytes; are the physical addresses right?");
        if image.len() < end as usize {
            image.resize(end as usize, 0);
        }
        image[start as usize..end as usize].copy_from_slice(bytes);
    }
    check_header(&image, extent)?;
    Ok(image)
}

/// Checks that the header is one, and that it asks for as much memory as the image takes.
fn check_header(image: &[u8], extent: u64) -> Result<()> {
    ensure!(image.get(56..60) == Some(b"ARM\x64"), "the image does not start with an arm64 Image header");
    let size: [u8; 8] = image.get(16..24).context("a header")?.try_into()?;
    let size = u64::from_le_bytes(size);
    ensure!(size >= extent, "the header's image_size is {size}, but code, data and BSS take {extent} bytes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with these segments: physical address, content, size in memory.
    fn elf(segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0\x01\0\0\0".to_vec();
        file.extend(0u64.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend([0; 12]);
        for half in [64u16, 56, segments.len() as u16, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut offset = 64 + 56 * segments.len() as u64;
        for (address, content, size) in segments {
            file.extend(1u32.to_le_bytes());
            file.extend(5u32.to_le_bytes());
            for word in [offset, *address, *address, content.len() as u64, *size, 4096] {
                file.extend(word.to_le_bytes());
            }
            offset += content.len() as u64;
        }
        segments.iter().for_each(|(_, content, _)| file.extend(*content));
        file
    }

    fn head(image_size: u64) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[16..24].copy_from_slice(&image_size.to_le_bytes());
        head[56..60].copy_from_slice(b"ARM\x64");
        head
    }

    #[test]
    fn lays_segments_out_by_physical_address() {
        let file = elf(&[(0x1000_0080, b"data", 0x100), (0x1000_0000, &head(0x180), 64)]);
        let image = flatten(&file).expect("an image");
        assert_eq!(image.len(), 0x84);
        assert_eq!(image.get(0x80..), Some(&b"data"[..]));
        assert_eq!(image.get(0x40..0x80), Some(&[0; 0x40][..]));
    }

    #[test]
    fn refuses_what_would_not_boot() {
        let short = flatten(&elf(&[(0, &head(0x100), 0x200)])).expect_err("BSS is longer than image_size");
        assert!(short.to_string().contains("image_size is 256"), "{short}");
        assert!(flatten(&elf(&[(0, b"no header", 9)])).is_err());
        let far = flatten(&elf(&[(0, &head(64), 64), (1 << 40, b"x", 1)])).expect_err("a terabyte");
        assert!(far.to_string().contains("physical addresses"), "{far}");
        assert!(flatten(b"\x7fELF").is_err());
        assert!(flatten(&elf(&[])).is_err());
    }
}
