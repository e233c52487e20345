//! Every packing, every kind of file that is no kernel, and what is damaged.

use super::packing::Packing;
use super::{Kernel, KernelError, Raw, in_place_of_initrd, program, read, tiny_image};
use flate2::{Compression, write::GzEncoder};
use lz4_flex::frame::{FrameEncoder, FrameInfo};
use lzma_rust2::{LzmaOptions, LzmaWriter, XzOptions, XzWriter};
use machine::image::ImageHeader;
use std::io::Write;

/// An `Image` and its header.
fn unpack(file: Vec<u8>) -> Result<(Vec<u8>, ImageHeader), KernelError> {
    match read(file, None)? {
        Kernel::Image { bytes, header } => Ok((bytes, header)),
        Kernel::Program { .. } => panic!("no Image"),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut writer = XzWriter::new(Vec::new(), XzOptions::with_preset(1)).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn lzma(bytes: &[u8]) -> Vec<u8> {
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &LzmaOptions::with_preset(1), None).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn lz4(bytes: &[u8], legacy: bool) -> Vec<u8> {
    let mut encoder = FrameEncoder::with_frame_info(FrameInfo::new().legacy_frame(legacy), Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Linux writes the length behind the packed kernel, for all packers but gzip, and does not count it.
fn zboot(packer: &str, packed: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..8].copy_from_slice(b"MZ\0\0zimg");
    file[8..12].copy_from_slice(&64u32.to_le_bytes());
    file[12..16].copy_from_slice(&(packed.len() as u32).to_le_bytes());
    file[24..24 + packer.len()].copy_from_slice(packer.as_bytes());
    [&file, packed, &[0, 0x10, 0, 0]].concat()
}

#[test]
fn every_packing_gives_the_same_image() {
    let image = tiny_image();
    let packed = [
        ("gzip", gzip(&image)),
        ("zstd22", zstd(&image)),
        ("xzkern", xz(&image)),
        ("lzma", lzma(&image)),
        ("lz4", lz4(&image, true)),
        ("lz4", lz4(&image, false)),
    ];
    for (packer, packed) in packed {
        for file in [packed.clone(), zboot(packer, &packed), gzip(&zboot("a name of tomorrow", &packed))] {
            let (unpacked, header) = unpack(file).unwrap_or_else(|error| panic!("{packer}: {error}"));
            assert_eq!((unpacked, header.image_size), (image.clone(), Some(8192)), "{packer}");
        }
        // A file that was cut is not taken for a shorter one.
        let cut = unpack(packed[..packed.len() * 2 / 3].to_vec());
        assert!(matches!(cut, Err(KernelError::Damaged { .. })), "{packer}: {cut:?}");
    }
    // Members of gzip's are one file, and what is behind them is none of its business.
    let (front, back) = image.split_at(1000);
    for behind in [&b""[..], b"\0\0\0\0", b"a signature"] {
        let file = [&gzip(front)[..], &gzip(back), behind].concat();
        assert_eq!(unpack(file).unwrap().0, image, "{behind:?}");
    }
    assert_eq!(unpack(image.clone()).unwrap().0, image);
}

/// An `Image` whose code consists of calls of one function. Packed by the tools, and with the words, of Linux' own build
/// (scripts/Makefile.lib and scripts/xz_wrap.sh, each of which packs what it reads from a pipe), the files in `packed/` have what this
/// module's encoders do not make: a window of 128 MiB, xz's filter for arm64, and its CRC-32.
///
/// | file | made by |
/// |---|---|
/// | `gzip` | `gzip -n -f -9` |
/// | `lzma` | `lzma -9` |
/// | `lz4` | `lz4 -l -9 - -` |
/// | `zstd19`, `zstd22` | `zstd -19`, `zstd -22 --ultra` |
/// | `xzkern` | `xz --check=crc32 --arm64 --lzma2=dict=128MiB` |
/// | `xzkern-old` | `xz --check=crc32 --lzma2=dict=32MiB`, as it was before there was that filter |
fn image_of_calls() -> Vec<u8> {
    const NOP: u32 = 0xd503_201f;
    const CALL: u32 = 0x9400_0000;
    let mut image = tiny_image();
    for at in (64..4096).step_by(4) {
        let word = if at % 16 == 0 { CALL | ((4096 - at) / 4) } else { NOP };
        image[at as usize..][..4].copy_from_slice(&word.to_le_bytes());
    }
    image
}

#[test]
fn what_the_tools_of_linux_own_build_pack_is_unpacked() {
    let image = image_of_calls();
    let files: [(&str, &[u8]); 7] = [
        ("gzip", include_bytes!("packed/gzip")),
        ("lzma", include_bytes!("packed/lzma")),
        ("lz4", include_bytes!("packed/lz4")),
        ("zstd", include_bytes!("packed/zstd19")),
        ("zstd22", include_bytes!("packed/zstd22")),
        ("xzkern", include_bytes!("packed/xzkern")),
        ("xzkern", include_bytes!("packed/xzkern-old")),
    ];
    for (packer, packed) in files {
        for file in [packed.to_vec(), zboot(packer, packed)] {
            let (unpacked, _) = unpack(file).unwrap_or_else(|error| panic!("{packer}: {error}"));
            assert_eq!(unpacked, image, "{packer}");
        }
        let cut = unpack(packed[..packed.len() * 2 / 3].to_vec());
        assert!(matches!(cut, Err(KernelError::Damaged { .. })), "{packer}: {cut:?}");
    }
}

/// Behind an xz block is its CRC-32; what does not agree with it is no kernel.
#[test]
fn a_checksum_of_linux_own_build_is_compared() {
    /// Of [`image_of_calls`].
    const CHECKSUM: u32 = 0xcd17_06df;
    let mut packed = include_bytes!("packed/xzkern").to_vec();
    let changed = packed.windows(4).position(|word| word == CHECKSUM.to_le_bytes()).expect("the checksum is there");
    packed[changed] ^= 1;
    let said = unpack(packed).map(|_| ()).unwrap_err().to_string();
    assert!(said.contains("packed with xz, but damaged"), "{said}");
}

#[test]
fn what_is_no_kernel_is_refused_with_what_would_be_right() {
    let said = |file: &[u8]| unpack(file.to_vec()).unwrap_err().to_string();
    assert!(said(&[0; 9]).contains("only 9 bytes"));
    let raw = said(&[0; 100]);
    assert!(raw.contains("no arm64 Image") && raw.contains("load = \"0x40200000\""), "{raw}");
    assert!(said(b"\x7fELF\x02\x01..").contains("cut off"));
    assert!(said(b"#!/bin/sh").contains("a script"));
    assert!(said(b"070701000000").contains("are `kernel` and `initrd` confused?"));
    assert!(said(&gzip(b"070701000000")).contains("are `kernel` and `initrd` confused?"));
    assert!(said(&[b"MZ".to_vec(), vec![0; 200]].concat()).contains("needs UEFI firmware"));
    let mut x86 = vec![0; 0x300];
    x86[..2].copy_from_slice(b"MZ");
    x86[0x202..0x206].copy_from_slice(b"HdrS");
    assert!(said(&x86).contains("for x86"));
    assert!(said(b"BZh91AY").contains("packed with bzip2; croft unpacks gzip, zstd"));
    assert!(said(&gzip(&tiny_image())[..60]).contains("packed with gzip, but damaged"));
    assert!(said(&zboot("lzo", b"x")).contains("packed with \"lzo\" in an EFI container; croft unpacks gzip"));
    let cut = said(&zboot("gzip", &[0x1f; 100])[..140]);
    assert!(cut.contains("the packed kernel ends at 164, and the file has 140 bytes"), "{cut}");
    let mut wild = zboot("gzip", b"x");
    wild[8..16].copy_from_slice(&[0xff; 8]);
    assert!(said(&wild).contains("the packed kernel ends at 8589934590"));
    let nested = (0..5).fold(tiny_image(), |image, _| gzip(&image));
    assert!(said(&nested).contains("packed four times"));
}

/// What is not packed begins with an instruction, which may be what a packer writes: here `b` and `adr x29`, whose first bytes are
/// lzma's.
#[test]
fn a_kernel_that_begins_like_a_packed_file_is_not_unpacked() {
    let raw = Raw { load: 0x4020_0000, entry: 0x4020_0000 };
    for first in [0x1400_005d_u32, 0x1700_005d, 0x9400_005d, 0x1000_005d, 0x9000_005d] {
        for second in [0xd503_201f_u32, 0xd53b_4240, 0, u32::MAX] {
            let mut binary = [first, second].map(u32::to_le_bytes).concat();
            binary.resize(4096, 0xd5);
            match read(binary.clone(), Some(raw)) {
                Ok(Kernel::Program { bytes, .. }) => assert_eq!(bytes, binary),
                other => panic!("{first:#x} {second:#x}: {other:?}"),
            }
            let mut image = tiny_image();
            image[..8].copy_from_slice(&binary[..8]);
            assert_eq!(unpack(image.clone()).unwrap().0, image);
        }
    }
    for magic in [&b"\x28\xb5\x2f\xfd"[..], b"\x02\x21\x4c\x18", b"BZh9", &lzma(&[0; 100])[..8]] {
        let mut image = tiny_image();
        image[..magic.len()].copy_from_slice(magic);
        assert_eq!(unpack(image.clone()).unwrap().0, image, "{magic:x?}");
    }
}

/// A kernel that was cut is seen by what it says of itself, with both sizes.
#[test]
fn a_cut_kernel_is_told_with_both_sizes() {
    let mut image = tiny_image();
    image[..2].copy_from_slice(b"MZ");
    image[60] = 64;
    image[64..68].copy_from_slice(b"PE\0\0");
    image[70] = 1;
    // One section of 1 MiB from 4 KiB on.
    image[64 + 24 + 16..][..8].copy_from_slice(&[0, 0, 0x10, 0, 0, 0x10, 0, 0]);
    let said = unpack(image.clone()).unwrap_err().to_string();
    assert!(said.contains("cut off: the file has 4096 bytes, and by its sections it has at least 1052672"), "{said}");
    assert!(unpack(gzip(&image)).unwrap_err().to_string().contains("cut off"));
    image.resize(1_052_672, 0);
    assert!(unpack(image).is_ok());
}

/// A few bytes that unpack to more than any kernel has: refused at the bound, not when memory is used up.
#[test]
fn a_file_that_unpacks_without_end_is_stopped() {
    let bomb = vec![0; 1 << 20];
    for file in [gzip(&bomb), zstd(&bomb), xz(&bomb), lzma(&bomb), lz4(&bomb, true)] {
        let packing = Packing::of(&file).unwrap();
        let said = packing.unpack_below(&file, 1 << 20).unwrap_err().to_string();
        assert!(said.contains("it holds 1M or more, and no kernel does"), "{said}");
        assert_eq!(packing.unpack_below(&file, (1 << 20) + 1).unwrap(), bomb);
        assert!(packing.start(&file).len() <= 4096);
    }
}

#[test]
fn a_kernel_in_place_of_the_initrd_is_seen() {
    let image = tiny_image();
    for file in
        [image.clone(), gzip(&image), xz(&image), zstd(&image), gzip(&gzip(&image)), zboot("gzip", &gzip(&image))]
    {
        assert!(in_place_of_initrd(&file).is_some_and(|what| what.contains("kernel")), "{file:x?}");
    }
    assert_eq!(in_place_of_initrd(b"\x7fELF"), Some("an ELF file"));
    for file in
        [b"070701".to_vec(), gzip(b"070701"), lz4(b"070701", true), vec![], vec![0x1f, 0x8b], b"anything".to_vec()]
    {
        assert_eq!(in_place_of_initrd(&file), None);
    }
    // Nor is anything else that is often at hand, but for file systems, which Linux takes.
    let with = |at: usize, magic: &[u8]| [&vec![0; at], magic, &[0; 64]].concat();
    for (file, what) in [
        (b"MZ and more".to_vec(), "an EFI program"),
        (with(0x202, b"HdrS"), "a kernel for x86"),
        (vec![0x27, 0x05, 0x19, 0x56], "an image for U-Boot (uImage)"),
        (b"!<arch>\ndebian".to_vec(), "a package of Debian's"),
        (with(0x8001, b"CD001"), "a CD image"),
        (gzip(&with(0x202, b"HdrS")), "a kernel for x86"),
    ] {
        assert_eq!(in_place_of_initrd(&file), Some(what));
    }
    for file in [b"hsqs".to_vec(), with(0x438, &[0x53, 0xef]), with(257, b"ustar")] {
        assert_eq!(in_place_of_initrd(&file), None);
    }
}

#[test]
fn programs_are_read_packed_or_not() {
    let elf = program::tests::elf(0x4010_0000, &[(0x4010_0000, 0x4010_0000, b"code", 4)]);
    let raw = Raw { load: 0x4020_0000, entry: 0x4020_0000 };
    let of_elf = read(elf.clone(), None).unwrap();
    assert_eq!((of_elf.bytes(), of_elf.program().unwrap().entry), (&b"code"[..], 0x4010_0000));
    assert_eq!(read(gzip(&elf), None).unwrap(), of_elf);
    assert!(matches!(read(elf, Some(raw)), Err(KernelError::NotRaw)));
    // Where the site file says where it goes, any bytes are a raw binary.
    for file in [b"flat".to_vec(), gzip(b"flat")] {
        let of_raw = read(file, Some(raw)).unwrap();
        assert_eq!((of_raw.bytes(), of_raw.program().unwrap().entry), (&b"flat"[..], 0x4020_0000));
    }
}
