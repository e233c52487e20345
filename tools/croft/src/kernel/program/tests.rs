//! ELF files as linkers write them, and those that are no kernel.

use super::{Raw, of_elf, of_raw};
use crate::kernel::tiny_image;

/// A segment: virtual and physical address, contents, size in memory.
type Piece<'a> = (u64, u64, &'a [u8], u64);

/// An ELF executable for AArch64.
pub(in crate::kernel) fn elf(entry: u64, pieces: &[Piece<'_>]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0\x01\0\0\0".to_vec();
    file.extend(entry.to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend([0; 12]);
    for half in [64u16, 56, pieces.len() as u16, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut offset = 64 + 56 * pieces.len() as u64;
    for (va, pa, content, size) in pieces {
        file.extend(1u32.to_le_bytes());
        file.extend(5u32.to_le_bytes());
        for word in [offset, *va, *pa, content.len() as u64, *size, 4096] {
            file.extend(word.to_le_bytes());
        }
        offset += content.len() as u64;
    }
    pieces.iter().for_each(|(_, _, content, _)| file.extend(*content));
    file
}

#[test]
fn segments_go_to_their_physical_addresses() {
    let high = 0xffff_0000_0000_0000;
    let file = elf(
        high + 0x104,
        &[
            (high, 0x4010_0000, b"code code", 9),
            (high + 0x1000, 0x4020_0000, b"data", 0x1000),
            (0, 0x4030_0000, b"", 16),
        ],
    );
    let (bytes, program) = of_elf(&file).unwrap();
    assert_eq!(bytes, b"code codedata");
    let pieces: Vec<_> =
        program.pieces().map(|(segment, at)| (segment.address, segment.file_bytes, segment.size, at)).collect();
    assert_eq!(pieces, [(0x4010_0000, 9, 9, 0), (0x4020_0000, 4, 0x1000, 9), (0x4030_0000, 0, 16, 13)]);
    assert_eq!(program.entry, high + 0x104, "in no segment: left as it is, to be refused with its address");
    let file = elf(high + 4, &[(high, 0x4010_0000, b"code code", 9)]);
    assert_eq!(of_elf(&file).unwrap().1.entry, 0x4010_0004, "moved as its segment is");
    let file = elf(0x4010_0008, &[(0x4010_0000, 0x4010_0000, b"code code", 9)]);
    assert_eq!(of_elf(&file).unwrap().1.entry, 0x4010_0008);
}

#[test]
fn what_is_no_kernel_is_told_in_words() {
    let good = elf(0x4000_0000, &[(0x4000_0000, 0x4000_0000, b"code", 4)]);
    let said = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = good.clone();
        change(&mut file);
        of_elf(&file).unwrap_err().to_string()
    };
    assert!(of_elf(&good).is_ok());
    assert!(said(&|file| file[4] = 1).contains("of 32 bits"));
    assert!(said(&|file| file[5] = 2).contains("big-endian"));
    assert!(said(&|file| file[18] = 62).contains("for x86; one for AArch64"));
    assert!(said(&|file| file[18] = 243).contains("for RISC-V"));
    assert!(said(&|file| file[18] = 40).contains("for 32-bit Arm"));
    assert!(said(&|file| file[18] = 8).contains("for machine 8"));
    assert!(said(&|file| file[16] = 1).contains("not linked yet"));
    assert!(said(&|file| file[16] = 4).contains("core dump"));
    assert!(said(&|file| file[64] = 3).contains("PT_INTERP"));
    assert!(said(&|file| file[64] = 2).contains("nothing to load"));
    assert!(said(&|file| file.truncate(119)).contains("its program headers end outside"));
    let cut = said(&|file| file.truncate(122));
    assert!(cut.contains("cut off: a segment ends at 124, and the file has 122 bytes"), "{cut}");
    assert!(said(&|file| file.truncate(40)).contains("cut off"));
    assert!(said(&|file| file.truncate(5)).contains("cut off"));
    let piece: Piece<'_> = (0, 0, b"x", 1);
    let many = elf(0, &[piece; 17]);
    assert!(of_elf(&many).unwrap_err().to_string().contains("17 segments"));
}

#[test]
fn a_raw_binary_is_one_piece() {
    let raw = Raw { load: 0x4008_0000, entry: 0x4008_0040 };
    let program = of_raw(b"flat", raw).unwrap();
    let (piece, _) = program.pieces().next().unwrap();
    assert_eq!((program.entry, piece.address, piece.file_bytes, piece.size), (0x4008_0040, 0x4008_0000, 4, 4));
    let (piece, _) = of_raw(&tiny_image(), raw).unwrap().pieces().next().unwrap();
    assert_eq!((piece.file_bytes, piece.size), (4096, 8192), "its header knows about what it zeroes");
    assert!(of_raw(b"", raw).unwrap_err().to_string().contains("empty"));
}
