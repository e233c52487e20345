//! How a kernel file can be packed, known by its first bytes: `Image.gz` and its like, and the EFI "zboot" container that
//! newer kernels are built as (Linux, drivers/firmware/efi/libstub/zboot-header.S: "MZ", at 4 "zimg", at 8 and 12 offset and
//! size of the packed image, at 24 the packer's name). What is inside a container is known by its first bytes too: names
//! there have changed over time ("zstd22", "xzkern").
//!
//! A kernel that is not packed begins with an instruction, which may be the bytes that a packer writes: an arm64 `Image` is never unpacked,
//! and where a few bytes could be either, more of the header is looked at.

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

/// Gzip: RFC 1952. Zstandard: RFC 8878. The frames of lz4 are those of its file format, and the older ones that Linux uses. Lzma has
/// none ([`is_lzma`]).
const MAGICS: [(&[u8], Packing); 7] = [
    (&[0x1f, 0x8b], Packing::Gzip),
    (&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd),
    (b"\xfd7zXZ\0", Packing::Xz),
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
        if bytes.get(56..60) == Some(b"ARM\x64") {
            return None;
        }
        let found = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|&(_, packing)| packing);
        found.or_else(|| is_lzma(bytes).then_some(Self::Lzma))
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

/// Whether this is how a file of the lzma format begins. It has no magic, so its whole header is looked at, as xz does
/// (`.lzma` in the LZMA SDK's specification, lzma-file-format.txt of XZ Utils): the usual parameters, a dictionary of 2^n or
/// 2^n + 2^(n-1) bytes and 64 KiB at least, a length that is unknown or below 256 GiB; and the range coder's first byte, which is 0.
/// `5d 00 00 14` alone is a branch too.
fn is_lzma(bytes: &[u8]) -> bool {
    let Some((&[0x5d, size @ .., _, _, _, _, _, _, _, _, first], length)) =
        bytes.first_chunk::<14>().zip(bytes.get(5..).and_then(|rest| rest.first_chunk::<8>()))
    else {
        return false;
    };
    let dictionary = u32::from_le_bytes(size);
    // The highest bit alone, or the two highest.
    let rest = dictionary & !(1 << (31 - (dictionary | 1).leading_zeros()));
    let is_usual = dictionary >= 1 << 16 && (rest == 0 || rest == (dictionary - rest) / 2);
    let length = u64::from_le_bytes(*length);
    is_usual && (length == u64::MAX || length < 256 << 30) && first == 0
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
