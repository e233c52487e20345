//! How a kernel file can be packed, known by its first bytes: `Image.gz` and its like, and the EFI "zboot" container that
//! newer kernels are built as (Linux, drivers/firmware/efi/libstub/zboot-header.S: "MZ", at 4 "zimg", at 8 and 12 offset and
//! size of the packed image, at 24 the packer's name). What is inside a container is known by its first bytes too: names
//! there have changed over time ("zstd22", "xzkern").

use super::KernelError;
use crate::size;
use flate2::bufread::GzDecoder;
use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use std::io::{Read, Result};

/// No kernel is larger than this, whatever a packed file claims.
pub(crate) const MAX_UNPACKED: u64 = 1 << 30;
/// How many KiB xz and lzma may use for it; zstd, in bytes, may look as far back. Linux packs with 128 MiB of both.
const MAX_WINDOW_KIB: u32 = 512 << 10;
/// As much of a file's start as tells what it is.
pub(super) const START: usize = 4096;

/// How a file is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Packing {
    Gzip,
    Zstd,
    Xz,
    Lzma,
    Lz4,
    /// Known, and not unpacked here.
    Bzip2,
    Lzo,
    /// A kernel that unpacks itself where UEFI starts it.
    Zboot,
}

/// Gzip: RFC 1952. Zstandard: RFC 8878. The frames of lz4 are those of its file format, and the older ones that Linux uses.
const MAGICS: [(&[u8], Packing); 8] = [
    (&[0x1f, 0x8b], Packing::Gzip),
    (&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd),
    (b"\xfd7zXZ\0", Packing::Xz),
    // No magic: the usual parameters, and a dictionary's size of whole 64 KiB.
    (&[0x5d, 0, 0], Packing::Lzma),
    (&[0x02, 0x21, 0x4c, 0x18], Packing::Lz4),
    (&[0x04, 0x22, 0x4d, 0x18], Packing::Lz4),
    (b"BZh", Packing::Bzip2),
    (b"\x89LZO\0\r\n\x1a\n", Packing::Lzo),
];

impl Packing {
    /// How these contents are packed, if they are.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(b"MZ") && bytes.get(4..8) == Some(b"zimg") {
            return Some(Self::Zboot);
        }
        MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|&(_, packing)| packing)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzo => "lzo",
            Self::Zboot => "EFI zboot",
        }
    }

    /// What is packed in `packed`.
    pub(super) fn unpack(self, packed: &[u8]) -> core::result::Result<Vec<u8>, KernelError> {
        self.unpack_below(packed, MAX_UNPACKED)
    }

    /// The same, of fewer than `limit` bytes.
    pub(super) fn unpack_below(self, packed: &[u8], limit: u64) -> core::result::Result<Vec<u8>, KernelError> {
        let damaged = |reason: String| KernelError::Damaged { packer: self.name(), reason };
        if self == Self::Zboot {
            return unpack_zboot(packed);
        }
        let mut bytes = Vec::new();
        let reader = self.reader(packed).map_err(|error| damaged(error.to_string()))?;
        let reader = reader.ok_or_else(|| KernelError::Packer(self.name().to_owned()))?;
        let length = reader.take(limit).read_to_end(&mut bytes).map_err(|error| damaged(error.to_string()))?;
        if length as u64 == limit {
            return Err(damaged(format!("it holds {} or more, and no kernel does", size::show(limit))));
        }
        Ok(bytes)
    }

    /// The first bytes of what is packed in `packed`, as far as they can be had.
    pub(super) fn start(self, packed: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Ok(Some(reader)) = self.reader(packed) {
            // What comes before the damage is told all the same.
            drop(reader.take(START as u64).read_to_end(&mut bytes));
        }
        bytes
    }

    /// What unpacks it, if anything here does.
    fn reader<'a>(self, packed: &'a [u8]) -> Result<Option<Box<dyn Read + 'a>>> {
        Ok(Some(match self {
            Self::Gzip => Box::new(Members(GzDecoder::new(packed))),
            Self::Zstd => {
                let mut decoder = FrameDecoder::new();
                decoder.set_max_window_size(u64::from(MAX_WINDOW_KIB) << 10);
                Box::new(StreamingDecoder::new_with_decoder(packed, decoder).map_err(std::io::Error::other)?)
            }
            // Behind the stream of a kernel there may be its length.
            Self::Xz => Box::new(XzReader::new_mem_limit(packed, false, MAX_WINDOW_KIB)),
            Self::Lzma => Box::new(LzmaReader::new_mem_limit(packed, MAX_WINDOW_KIB, None)?),
            Self::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(packed)),
            Self::Bzip2 | Self::Lzo | Self::Zboot => return Ok(None),
        }))
    }
}

/// The members of a gzip file, one after the other. What is behind the last one is left alone, as `gzip -d` does: a boot
/// loader's signature, padding, a device tree.
struct Members<'a>(GzDecoder<&'a [u8]>);

impl Read for Members<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let length = self.0.read(buffer)?;
            let rest = *self.0.get_ref();
            if length > 0 || buffer.is_empty() || !rest.starts_with(&[0x1f, 0x8b]) {
                return Ok(length);
            }
            self.0 = GzDecoder::new(rest);
        }
    }
}

fn unpack_zboot(file: &[u8]) -> core::result::Result<Vec<u8>, KernelError> {
    let number = |at: usize| file.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    let (Some(offset), Some(size)) = (number(8), number(12)) else {
        return Err(KernelError::Damaged { packer: "EFI zboot", reason: "its header is cut off".to_owned() });
    };
    let Some(packed) = offset.checked_add(size).and_then(|end| file.get(offset..end)) else {
        let reason = format!("the packed kernel ends at {}, and the file has {} bytes", offset + size, file.len());
        return Err(KernelError::Damaged { packer: "EFI zboot", reason });
    };
    match Packing::of(packed) {
        Some(Packing::Zboot) => Err(KernelError::Layers),
        Some(packing) => packing.unpack(packed),
        None => {
            let name = file.get(24..56).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_graphic());
            let name: String = name.map(|&byte| byte as char).collect();
            Err(KernelError::Packer(format!("\"{name}\" in an EFI container")))
        }
    }
}
