//! From the instruction word to what it does, class by class as in the manual's table.
//!
//! Loads and stores are the words with bit 27 set and bit 25 clear. Bits 29:28 divide them into groups, bits 24, 21 and
//! 11:10 into classes; bit 26 (V) says that the registers are SIMD ones.

use crate::Instruction;
use crate::Unsupported::{self, Atomic, Authenticated, Exclusive, NotMemory, Simd, Tag, Unallocated, Unpredictable};
use crate::transfer::{Addressing, Base, Extension, Transfer};
use units::{Direction, RegisterAccess};

/// Decodes an instruction word.
///
/// # Errors
///
/// [`Unsupported`] for everything that is not emulated, with the reason.
pub const fn decode(word: u32) -> Result<Instruction, Unsupported> {
    if word & 0x0a00_0000 == 0x0800_0000 {
        return decode_load_store(word);
    }
    decode_cache_maintenance(word)
}

/// DC with an address (SYS #op1, C7, Cm, #op2, Xt). Maintenance by set and way has no address.
const fn decode_cache_maintenance(word: u32) -> Result<Instruction, Unsupported> {
    // SYS with CRn = 7: bits 31:19 and 15:12.
    if word & 0xfff8_f000 != 0xd508_7000 {
        return Err(NotMemory);
    }
    let rt = number(word, 0);
    match (field(word, 16, 3), field(word, 8, 4), field(word, 5, 3)) {
        (3, 4, 1) => Ok(Instruction::ZeroBlock { rt }),
        // DC IVAC; then CVAC, CVAU, CVAP, CVADP, CIVAC.
        (0, 6, 1) | (3, 10..=14, 1) => Ok(Instruction::CacheMaintenance { rt }),
        // The same for tags, alone or with their data.
        (0, 6, 3 | 5) | (3, 4, 3 | 4) | (3, 10 | 12 | 13 | 14, 3 | 5) => Err(Tag),
        _ => Err(NotMemory),
    }
}

/// The groups of loads and stores.
const fn decode_load_store(word: u32) -> Result<Instruction, Unsupported> {
    match (field(word, 28, 2), bit(word, 24)) {
        (0, _) => decode_exclusive(word),
        (1, false) => decode_literal(word),
        (1, true) => decode_newer(word),
        (2, _) => decode_pair(word),
        (_, true) => decode_unsigned_offset(word),
        (_, false) => decode_register(word),
    }
}

/// Exclusives, compare and swap, load-acquire and store-release; with V, SIMD structures.
const fn decode_exclusive(word: u32) -> Result<Instruction, Unsupported> {
    match (bit(word, 26), bit(word, 31), bit(word, 24)) {
        (true, false, _) => return Err(Simd),
        (false, _, false) => {}
        _ => return Err(Unallocated),
    }
    let ordered = bit(word, 23);
    let pair_or_compare = bit(word, 21);
    match (ordered, pair_or_compare) {
        // Pairs of exclusives have bit 31 set, compare and swap of pairs has it clear.
        (false, true) if !bit(word, 31) => Err(Atomic),
        (false, _) => Err(Exclusive),
        (true, true) => Err(Atomic),
        // The unused register fields should be all ones, and what happens otherwise is left open.
        (true, false) if field(word, 16, 5) != 31 || field(word, 10, 5) != 31 => Err(Unpredictable),
        (true, false) => {
            let direction = if bit(word, 22) { Direction::Read } else { Direction::Write };
            let transfer = Transfer { ordered: true, ..single(word, direction, access(word), Addressing::Offset(0)) };
            Ok(Instruction::Transfer(transfer))
        }
    }
}

/// Loads from an address relative to the instruction.
const fn decode_literal(word: u32) -> Result<Instruction, Unsupported> {
    let opc = field(word, 30, 2);
    let (bytes, sign_extend, sixty_four) = match (bit(word, 26), opc) {
        (false, 0) => (4, false, false),
        (false, 1) => (8, false, true),
        (false, 2) => (4, true, true),
        (false, _) => return Ok(Instruction::Prefetch),
        (true, 3) => return Err(Unallocated),
        (true, _) => return Err(Simd),
    };
    let access = RegisterAccess { rt: number(word, 0), bytes, sign_extend, sixty_four };
    let transfer = single(word, Direction::Read, access, Addressing::Offset(signed(word, 5, 19) * 4));
    Ok(Instruction::Transfer(Transfer { base: Base::ProgramCounter, ..transfer }))
}

/// The space that later extensions fill: tags, memory copy, 128-bit atomics, and the ordered loads and stores with an
/// unscaled offset, which alone of them are of interest here.
const fn decode_newer(word: u32) -> Result<Instruction, Unsupported> {
    let tags = field(word, 30, 2) == 3 && bit(word, 21) && !bit(word, 26);
    if tags {
        return Err(Tag);
    }
    if bit(word, 26) || bit(word, 21) || field(word, 10, 2) != 0 {
        return Err(Unallocated);
    }
    match load_or_store(word, Addressing::Offset(signed(word, 12, 9))) {
        Ok(Instruction::Transfer(transfer)) => Ok(Instruction::Transfer(Transfer { ordered: true, ..transfer })),
        // There is no ordered prefetch.
        Ok(_) => Err(Unallocated),
        Err(reason) => Err(reason),
    }
}

/// Pairs.
const fn decode_pair(word: u32) -> Result<Instruction, Unsupported> {
    let opc = field(word, 30, 2);
    let load = bit(word, 22);
    let index = field(word, 23, 2);
    if bit(word, 26) {
        return if opc == 3 { Err(Unallocated) } else { Err(Simd) };
    }
    let (bytes, sign_extend) = match (opc, load, index) {
        (0, _, _) => (4, false),
        (2, _, _) => (8, false),
        // LDPSW and STGP; neither has a form without allocation.
        (1, true, 1..=3) => (4, true),
        (1, false, 1..=3) => return Err(Tag),
        _ => return Err(Unallocated),
    };
    let first = RegisterAccess { rt: number(word, 0), bytes, sign_extend, sixty_four: opc != 0 };
    let second = RegisterAccess { rt: number(word, 10), ..first };
    let offset = signed(word, 15, 7) * bytes as i64;
    let addressing = match index {
        1 => Addressing::PostIndex(offset),
        3 => Addressing::PreIndex(offset),
        _ => Addressing::Offset(offset),
    };
    let overlap = writes_back(addressing) && (base_is(word, first.rt) || base_is(word, second.rt));
    if overlap || load && first.rt == second.rt {
        return Err(Unpredictable);
    }
    let direction = if load { Direction::Read } else { Direction::Write };
    let transfer = Transfer { second: Some(second), ..single(word, direction, first, addressing) };
    Ok(Instruction::Transfer(transfer))
}

/// One register at base plus a scaled constant.
const fn decode_unsigned_offset(word: u32) -> Result<Instruction, Unsupported> {
    let offset = (field(word, 10, 12) as i64) << field(word, 30, 2);
    load_or_store(word, Addressing::Offset(offset))
}

/// One register with one of the other addressing modes, and the atomics.
const fn decode_register(word: u32) -> Result<Instruction, Unsupported> {
    let offset = signed(word, 12, 9);
    match (bit(word, 21), field(word, 10, 2)) {
        (false, 0) => load_or_store(word, Addressing::Offset(offset)),
        (false, 1) => without_prefetch(load_or_store(word, Addressing::PostIndex(offset))),
        (false, 2) => match without_prefetch(load_or_store(word, Addressing::Offset(offset))) {
            // There is no unprivileged access to SIMD registers, and load_or_store has refused them.
            Ok(Instruction::Transfer(transfer)) => {
                Ok(Instruction::Transfer(Transfer { unprivileged: true, ..transfer }))
            }
            other => other,
        },
        (false, _) => without_prefetch(load_or_store(word, Addressing::PreIndex(offset))),
        (true, 0) => decode_atomic(word),
        (true, 2) => decode_register_offset(word),
        (true, _) if field(word, 30, 2) == 3 && !bit(word, 26) => Err(Authenticated),
        (true, _) => Err(Unallocated),
    }
}

/// One register at base plus an extended register.
const fn decode_register_offset(word: u32) -> Result<Instruction, Unsupported> {
    let extension = match field(word, 13, 3) {
        2 => Extension::Uxtw,
        3 => Extension::Lsl,
        6 => Extension::Sxtw,
        7 => Extension::Sxtx,
        _ => return Err(Unallocated),
    };
    let shift = if bit(word, 12) { field(word, 30, 2) as u8 } else { 0 };
    load_or_store(word, Addressing::Register { rm: number(word, 16), extension, shift })
}

/// Atomic memory operations, among which LDAPR, a plain load, has its place.
const fn decode_atomic(word: u32) -> Result<Instruction, Unsupported> {
    if bit(word, 26) {
        return Err(Simd);
    }
    // A = 1, R = 0, o3 = 1, opc = 0b100; Rs should be 31.
    if word & 0x00e0_fc00 == 0x00a0_c000 {
        if field(word, 16, 5) != 31 {
            return Err(Unpredictable);
        }
        let transfer = Transfer { ordered: true, ..single(word, Direction::Read, access(word), Addressing::Offset(0)) };
        return Ok(Instruction::Transfer(transfer));
    }
    Err(Atomic)
}

/// The meaning of size (bits 31:30) and opc (bits 23:22) for the forms with one register.
const fn load_or_store(word: u32, addressing: Addressing) -> Result<Instruction, Unsupported> {
    if bit(word, 26) {
        return Err(Simd);
    }
    let size = field(word, 30, 2);
    let (direction, access) = match (field(word, 22, 2), size) {
        (0, _) => (Direction::Write, access(word)),
        (1, _) => (Direction::Read, access(word)),
        (2, 3) => return Ok(Instruction::Prefetch),
        (2, _) => (Direction::Read, RegisterAccess { sign_extend: true, sixty_four: true, ..access(word) }),
        (_, 0 | 1) => (Direction::Read, RegisterAccess { sign_extend: true, sixty_four: false, ..access(word) }),
        _ => return Err(Unallocated),
    };
    if writes_back(addressing) && base_is(word, access.rt) {
        return Err(Unpredictable);
    }
    Ok(Instruction::Transfer(single(word, direction, access, addressing)))
}

/// The same for the forms that have no prefetch.
const fn without_prefetch(decoded: Result<Instruction, Unsupported>) -> Result<Instruction, Unsupported> {
    match decoded {
        Ok(Instruction::Prefetch) => Err(Unallocated),
        other => other,
    }
}

/// A transfer of one register, with the base in bits 9:5.
const fn single(word: u32, direction: Direction, first: RegisterAccess, addressing: Addressing) -> Transfer {
    let base = match number(word, 5) {
        31 => Base::StackPointer,
        register => Base::Register(register),
    };
    Transfer { direction, first, second: None, base, addressing, unprivileged: false, ordered: false }
}

/// The access of size (bits 31:30) with its register in bits 4:0, of which it takes only what its size needs.
const fn access(word: u32) -> RegisterAccess {
    let size = field(word, 30, 2);
    RegisterAccess { rt: number(word, 0), bytes: 1 << size, sign_extend: false, sixty_four: size == 3 }
}

const fn writes_back(addressing: Addressing) -> bool {
    matches!(addressing, Addressing::PreIndex(_) | Addressing::PostIndex(_))
}

/// Whether the base is the general-purpose register `rt`; number 31 is SP as a base and XZR as data.
const fn base_is(word: u32, rt: u8) -> bool {
    number(word, 5) == rt && rt != 31
}

const fn bit(word: u32, position: u32) -> bool {
    word & 1 << position != 0
}

const fn field(word: u32, shift: u32, width: u32) -> u32 {
    word >> shift & ((1 << width) - 1)
}

/// A register number.
const fn number(word: u32, shift: u32) -> u8 {
    field(word, shift, 5) as u8
}

/// A field as a two's complement number.
const fn signed(word: u32, shift: u32, width: u32) -> i64 {
    let up = 64 - width;
    ((field(word, shift, width) as i64) << up) >> up
}

#[cfg(test)]
mod tests {
    use super::decode;
    use crate::{Addressing, Base, Instruction, Transfer, Unsupported};
    use units::{Direction, RegisterAccess};

    fn transfer(word: u32) -> Transfer {
        match decode(word) {
            Ok(Instruction::Transfer(transfer)) => transfer,
            other => panic!("{word:#x}: {other:?}"),
        }
    }

    #[test]
    fn a_pair_with_pre_index() {
        // ldpsw x1, x2, [x3, #8]!
        let first = RegisterAccess { rt: 1, bytes: 4, sign_extend: true, sixty_four: true };
        let expected = Transfer {
            direction: Direction::Read,
            first,
            second: Some(RegisterAccess { rt: 2, ..first }),
            base: Base::Register(3),
            addressing: Addressing::PreIndex(8),
            unprivileged: false,
            ordered: false,
        };
        assert_eq!(transfer(0x69c1_0861), expected);
    }

    #[test]
    fn a_store_with_post_index_from_the_stack_pointer() {
        // str wzr, [sp], #-4
        let store = transfer(0xb81f_c7ff);
        assert_eq!((store.base, store.addressing), (Base::StackPointer, Addressing::PostIndex(-4)));
        assert_eq!(store.first, RegisterAccess { rt: 31, bytes: 4, sign_extend: false, sixty_four: false });
    }

    #[test]
    fn cache_maintenance() {
        assert_eq!(decode(0xd50b_7423), Ok(Instruction::ZeroBlock { rt: 3 })); // dc zva, x3
        assert_eq!(decode(0xd50b_7e23), Ok(Instruction::CacheMaintenance { rt: 3 })); // dc civac, x3
        assert_eq!(decode(0xd50b_7b25), Ok(Instruction::CacheMaintenance { rt: 5 })); // dc cvau, x5
        assert_eq!(decode(0xd508_7623), Ok(Instruction::CacheMaintenance { rt: 3 })); // dc ivac, x3
        assert_eq!(decode(0xd508_7643), Err(Unsupported::NotMemory)); // dc isw, x3
        assert_eq!(decode(0xd50b_7463), Err(Unsupported::Tag)); // dc gva, x3
        assert_eq!(decode(0xd50b_7523), Err(Unsupported::NotMemory)); // ic ivau, x3
    }

    #[test]
    fn prefetches() {
        for word in [0xf980_0041, 0xf89f_f041, 0xf8a2_6841, 0xd800_0061] {
            assert_eq!(decode(word), Ok(Instruction::Prefetch), "{word:#x}");
        }
    }

    #[test]
    fn refusals_say_why() {
        let refused = [
            (0x3dc0_0041, Unsupported::Simd),          // ldr q1, [x2]
            (0xad40_0841, Unsupported::Simd),          // ldp q1, q2, [x2]
            (0x4c40_7041, Unsupported::Simd),          // ld1 {v1.16b}, [x2]
            (0x1c00_0061, Unsupported::Simd),          // ldr s1, .+12
            (0xc85f_7c41, Unsupported::Exclusive),     // ldxr x1, [x2]
            (0xc87f_2041, Unsupported::Exclusive),     // ldxp x1, x8, [x2]
            (0xc8a0_7c41, Unsupported::Atomic),        // cas x0, x1, [x2]
            (0x4820_7c42, Unsupported::Atomic),        // casp x0, x1, x2, x3, [x2]
            (0xf820_0041, Unsupported::Atomic),        // ldadd x0, x1, [x2]
            (0xf820_8041, Unsupported::Atomic),        // swp x0, x1, [x2]
            (0xf83f_d041, Unsupported::Atomic),        // ld64b x1, [x2]
            (0xd960_0041, Unsupported::Tag),           // ldg x1, [x2]
            (0x6900_0841, Unsupported::Tag),           // stgp x1, x2, [x2]
            (0xf820_0441, Unsupported::Authenticated), // ldraa x1, [x2]
            (0xf840_4c42, Unsupported::Unpredictable), // ldr x2, [x2, #4]!
            (0xa940_0461, Unsupported::Unpredictable), // ldp x1, x1, [x3]
            (0xa8c1_0841, Unsupported::Unpredictable), // ldp x1, x2, [x2], #16
            (0xa8c1_0822, Unsupported::Unpredictable), // ldp x2, x2, [x1], #16
            (0xa881_0422, Unsupported::Unpredictable), // stp x2, x1, [x1], #16
            (0xc8c0_fc41, Unsupported::Unpredictable), // ldar x1, [x2], Rs not all ones
            (0xc8df_8c41, Unsupported::Unpredictable), // ldar x1, [x2], Rt2 not all ones
            (0xb820_0441, Unsupported::Unallocated),   // as ldraa, of 32 bits
            (0xfc20_0441, Unsupported::Unallocated),   // as ldraa, of a SIMD register
            (0x1d00_0440, Unsupported::Unallocated),   // cpyf
            (0xd503_201f, Unsupported::NotMemory),     // nop
            (0x0000_0000, Unsupported::NotMemory),     // udf #0
        ];
        for (word, reason) in refused {
            assert_eq!(decode(word), Err(reason), "{word:#x}");
        }
    }

    #[test]
    fn the_overlap_rule_spares_sp_and_stores_of_equal_registers() {
        // ldr xzr, [sp], #8 and stp x1, x1, [x3]: number 31 is two registers, and a store reads twice.
        assert!(decode(0xf840_87ff).is_ok());
        assert!(decode(0xa900_0461).is_ok());
        // ldr x2, [x2, #8], ldur x2, [x2] and ldp x2, x3, [x2]: nothing is written back.
        for word in [0xf940_0442, 0xf840_0042, 0xa940_0c42] {
            assert!(decode(word).is_ok(), "{word:#x}");
        }
    }

    #[test]
    fn ordered_accesses_of_one_register() {
        // ldar x1, [x2] and stlrb w1, [x2]
        for (word, bytes, direction) in [(0xc8df_fc41, 8, Direction::Read), (0x089f_fc41, 1, Direction::Write)] {
            let Ok(Instruction::Transfer(transfer)) = decode(word) else { panic!("{word:#x} is not emulated") };
            assert!(transfer.ordered);
            assert_eq!((transfer.first.bytes, transfer.direction, transfer.second), (bytes, direction, None));
        }
    }
}
