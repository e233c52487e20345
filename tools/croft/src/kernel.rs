//! Kernel files. A bundle holds the plain arm64 `Image` only, so that the hypervisor needs no decompressor; what
//! distributions ship is unpacked here: `Image.gz`, and the EFI "zboot" container that newer kernels are built as
//! (Linux, drivers/firmware/efi/libstub/zboot-header.S: "MZ", at 4 "zimg", at 8 and 12 offset and size of the packed
//! image, at 24 the packer's name).

use flate2::read::MultiGzDecoder;
use machine::image::{ImageError, ImageHeader};
use std::io::Read;

const GZIP: [u8; 2] = [0x1f, 0x8b];
/// No kernel is larger than this, whatever a packed file claims.
const MAX_UNPACKED: u64 = 1 << 30;

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
        packer: String,
        /// What the unpacker says.
        reason: String,
    },
    /// A method that croft doesn't know.
    #[error("it is an EFI image packed with {0}; croft unpacks gzip and zstd, so give it the plain Image")]
    Packer(String),
    /// A program for another machine.
    #[error("it is an ELF file; the kernel's arch/arm64/boot/Image is wanted, not its vmlinux")]
    Elf,
}

/// The plain `Image` in a kernel file's contents, and its header.
///
/// # Errors
/// Says why it cannot be started.
pub fn unpack(file: Vec<u8>) -> Result<(Vec<u8>, ImageHeader), KernelError> {
    let image = if file.starts_with(&GZIP) {
        gunzip(&file)?
    } else if file.starts_with(b"MZ") && file.get(4..8) == Some(b"zimg") {
        unpack_zboot(&file)?
    } else if file.starts_with(b"\x7fELF") {
        return Err(KernelError::Elf);
    } else {
        file
    };
    let header = ImageHeader::parse(&image)?;
    Ok((image, header))
}

fn gunzip(packed: &[u8]) -> Result<Vec<u8>, KernelError> {
    read_all(MultiGzDecoder::new(packed), "gzip")
}

fn read_all(reader: impl Read, packer: &str) -> Result<Vec<u8>, KernelError> {
    let damaged = |reason: String| KernelError::Damaged { packer: packer.to_owned(), reason };
    let mut image = Vec::new();
    let length = reader.take(MAX_UNPACKED).read_to_end(&mut image).map_err(|error| damaged(error.to_string()))?;
    if length as u64 == MAX_UNPACKED { Err(damaged("it holds more than 1G".to_owned())) } else { Ok(image) }
}

fn unpack_zboot(file: &[u8]) -> Result<Vec<u8>, KernelError> {
    let number = |at: usize| file.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    let name = file.get(24..56).unwrap_or_default();
    let packer: String =
        name.iter().take_while(|byte| byte.is_ascii_alphanumeric()).map(|&byte| byte as char).collect();
    let packed = number(8).zip(number(12)).and_then(|(offset, size)| file.get(offset..offset.checked_add(size)?));
    let Some(packed) = packed else {
        return Err(KernelError::Damaged { packer, reason: "the packed part is not inside the file".to_owned() });
    };
    match packer.as_str() {
        "gzip" => gunzip(packed),
        "zstd" | "zstd22" => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
            let decoder = decoder.map_err(|error| KernelError::Damaged { packer, reason: error.to_string() })?;
            read_all(decoder, "zstd")
        }
        _ => Err(KernelError::Packer(packer)),
    }
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
mod tests {
    use super::{KernelError, tiny_image, unpack};
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zboot(packer: &str, packed: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..8].copy_from_slice(b"MZ\0\0zimg");
        file[8..12].copy_from_slice(&64u32.to_le_bytes());
        file[12..16].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        file[24..24 + packer.len()].copy_from_slice(packer.as_bytes());
        [file, packed.to_vec()].concat()
    }

    #[test]
    fn every_packing_gives_the_same_image() {
        let image = tiny_image();
        let zstd = ruzstd::encoding::compress_to_vec(&image[..], ruzstd::encoding::CompressionLevel::Fastest);
        for file in [image.clone(), gzip(&image), zboot("gzip", &gzip(&image)), zboot("zstd22", &zstd)] {
            let (unpacked, header) = unpack(file).unwrap();
            assert_eq!((unpacked, header.image_size), (image.clone(), Some(8192)));
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_the_reason() {
        let said = |file: &[u8]| unpack(file.to_vec()).unwrap_err().to_string();
        assert!(said(b"#!/bin/sh").contains("only 9 bytes"));
        assert!(said(&[0; 100]).contains("no arm64 Image"));
        assert!(said(b"\x7fELF....").contains("not its vmlinux"));
        assert!(said(&gzip(&tiny_image())[..60]).contains("packed with gzip, but damaged"));
        assert!(said(&zboot("lzma", b"x")).contains("packed with lzma; croft unpacks gzip and zstd"));
        assert!(said(&zboot("gzip", b"x")[..40]).contains("not inside the file"));
        assert!(matches!(unpack(zboot("zstd", b"rubbish")), Err(KernelError::Damaged { .. })));
    }
}
