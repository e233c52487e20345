//! A load or store of general-purpose registers: what it moves, and where its address comes from.

use units::{Direction, RegisterAccess, Va};

/// The bits of an address that are no tag.
const ADDRESS: u64 = 0x00ff_ffff_ffff_ffff;

/// The register that an address starts from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Base {
    /// A general-purpose register, 0 to 30.
    Register(u8),
    /// The stack pointer.
    StackPointer,
    /// The address of the instruction itself.
    ProgramCounter,
}

/// How a register that is added to the base is extended first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Extension {
    /// The low 32 bits, zero-extended.
    Uxtw,
    /// All 64 bits.
    Lsl,
    /// The low 32 bits, sign-extended.
    Sxtw,
    /// All 64 bits; the same as [`Extension::Lsl`] for a 64-bit register.
    Sxtx,
}

/// How the address is made from the base, and what becomes of the base.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Addressing {
    /// Base plus a constant in bytes.
    Offset(i64),
    /// Base plus a register, extended and shifted left.
    Register {
        /// Number of the register, 31 for XZR.
        rm: u8,
        /// How it is extended.
        extension: Extension,
        /// By how many bits it is shifted after that.
        shift: u8,
    },
    /// Base plus a constant, and the sum is written back to the base.
    PreIndex(i64),
    /// The base; base plus a constant is written back to it.
    PostIndex(i64),
}

/// A load or store of one or two general-purpose registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Transfer {
    /// Which way data moves.
    pub direction: Direction,
    /// The access at the address.
    pub first: RegisterAccess,
    /// The access behind it, of the same size.
    pub second: Option<RegisterAccess>,
    /// Where the address starts from.
    pub base: Base,
    /// How it goes on.
    pub addressing: Addressing,
    /// LDTR, STTR and relatives: at EL1 the access has EL0's rights.
    pub unprivileged: bool,
    /// The instruction orders memory: load-acquire or store-release.
    pub ordered: bool,
}

/// What a transfer does with a given set of registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Resolved {
    /// The address of the first access; the second one is `first.bytes` further on, modulo 2^64.
    pub address: Va,
    /// The base register and its new value.
    pub writeback: Option<(Base, u64)>,
}

impl Transfer {
    /// Computes the address and the writeback. `registers` are X0 to X30; `stack_pointer` is the one selected by the
    /// guest's PSTATE; `program_counter` is the address of the instruction. Addresses of the guest may carry tags.
    #[must_use]
    pub fn resolve(&self, registers: &[u64; 31], stack_pointer: u64, program_counter: u64) -> Resolved {
        // Number 31 is XZR.
        let register = |number: u8| registers.get(usize::from(number)).copied().unwrap_or(0);
        let base = match self.base {
            Base::Register(number) => register(number),
            Base::StackPointer => stack_pointer,
            Base::ProgramCounter => program_counter,
        };
        let (address, writeback) = match self.addressing {
            Addressing::Offset(offset) => (base.wrapping_add_signed(offset), None),
            Addressing::Register { rm, extension, shift } => {
                let value = register(rm);
                let extended = match extension {
                    Extension::Uxtw => u64::from(value as u32),
                    Extension::Sxtw => i64::from(value as i32) as u64,
                    Extension::Lsl | Extension::Sxtx => value,
                };
                (base.wrapping_add(extended << (shift & 63)), None)
            }
            Addressing::PreIndex(offset) => {
                let sum = base.wrapping_add_signed(offset);
                (sum, Some((self.base, sum)))
            }
            Addressing::PostIndex(offset) => (base, Some((self.base, base.wrapping_add_signed(offset)))),
        };
        Resolved { address: Va(address), writeback }
    }

    /// How many bytes of memory it accesses, all together.
    #[must_use]
    pub const fn span(&self) -> u64 {
        let parts = if self.second.is_some() { 2 } else { 1 };
        parts * self.first.bytes as u64
    }

    /// Whether it can be the one that was aborted at `far` while it moved data in `direction`. If not, somebody has changed
    /// the instruction since it was executed. The top byte of an address may be a tag, which an abort may lack.
    #[must_use]
    pub fn explains(&self, resolved: &Resolved, far: Va, direction: Direction) -> bool {
        let distance = far.0.wrapping_sub(resolved.address.0) & ADDRESS;
        self.direction == direction && distance < self.span()
    }

    /// The accesses with their distance from the address, in the order in which they are to be made.
    pub fn accesses(&self) -> impl Iterator<Item = (u64, RegisterAccess)> {
        let second = self.second.map(|second| (u64::from(self.first.bytes), second));
        [Some((0, self.first)), second].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Addressing, Base, Extension, Transfer};
    use proptest::prelude::*;
    use std::vec::Vec;
    use units::{Direction, RegisterAccess, Va};

    const WORD: RegisterAccess = RegisterAccess { rt: 1, bytes: 4, sign_extend: false, sixty_four: false };

    fn load(base: Base, addressing: Addressing) -> Transfer {
        Transfer {
            direction: Direction::Read,
            first: WORD,
            second: None,
            base,
            addressing,
            unprivileged: false,
            ordered: false,
        }
    }

    fn registers() -> [u64; 31] {
        core::array::from_fn(|number| 0x1000 * number as u64)
    }

    #[test]
    fn addresses_and_writeback() {
        let resolve = |base, addressing| load(base, addressing).resolve(&registers(), 0x8000_0000, 0x4000_0000);
        let plain = resolve(Base::Register(2), Addressing::Offset(-8));
        assert_eq!((plain.address, plain.writeback), (Va(0x1ff8), None));
        let pre = resolve(Base::StackPointer, Addressing::PreIndex(16));
        assert_eq!((pre.address, pre.writeback), (Va(0x8000_0010), Some((Base::StackPointer, 0x8000_0010))));
        let post = resolve(Base::Register(2), Addressing::PostIndex(16));
        assert_eq!((post.address, post.writeback), (Va(0x2000), Some((Base::Register(2), 0x2010))));
        let literal = resolve(Base::ProgramCounter, Addressing::Offset(-4));
        assert_eq!(literal.address, Va(0x3fff_fffc));
    }

    #[test]
    fn register_offsets_extend_before_they_shift() {
        let mut registers = registers();
        registers[3] = 0xdead_beef_ffff_fff0;
        let resolve = |rm, extension| {
            let addressing = Addressing::Register { rm, extension, shift: 2 };
            load(Base::Register(1), addressing).resolve(&registers, 0, 0).address
        };
        assert_eq!(resolve(3, Extension::Uxtw), Va(0x1000 + 0x3_ffff_ffc0));
        assert_eq!(resolve(3, Extension::Sxtw), Va(0x1000 - 0x40));
        assert_eq!(resolve(3, Extension::Lsl), Va(0x1000_u64.wrapping_add(0xdead_beef_ffff_fff0 << 2)));
        assert_eq!(resolve(31, Extension::Sxtx), Va(0x1000));
    }

    #[test]
    fn a_pair_is_two_accesses() {
        let second = RegisterAccess { rt: 2, ..WORD };
        let pair = Transfer { second: Some(second), ..load(Base::Register(0), Addressing::Offset(0)) };
        assert_eq!(pair.accesses().collect::<Vec<_>>(), [(0, WORD), (4, second)]);
    }

    #[test]
    fn loads_extend_as_the_instruction_asks() {
        let value = 0x8182_8384_8586_8788;
        assert_eq!(WORD.loaded(value), 0x8586_8788);
        assert_eq!(RegisterAccess { bytes: 1, sign_extend: true, ..WORD }.loaded(value), 0xffff_ff88);
        assert_eq!(
            RegisterAccess { bytes: 2, sign_extend: true, sixty_four: true, ..WORD }.loaded(value),
            0xffff_ffff_ffff_8788
        );
        assert_eq!(RegisterAccess { bytes: 8, sixty_four: true, ..WORD }.loaded(value), value);
        assert_eq!(RegisterAccess { bytes: 2, ..WORD }.stored(value), 0x8788);
    }

    #[test]
    fn an_abort_is_explained_by_what_it_can_have_come_from() {
        let pair = Transfer { second: Some(WORD), ..load(Base::Register(2), Addressing::PreIndex(-8)) };
        let resolved = pair.resolve(&registers(), 0, 0);
        assert_eq!(resolved.address, Va(0x1ff8));
        for (far, explained) in [(0x1ff7, false), (0x1ff8, true), (0x1ffc, true), (0x1fff, true), (0x2000, false)] {
            assert_eq!(pair.explains(&resolved, Va(far), Direction::Read), explained, "{far:#x}");
            assert_eq!(pair.explains(&resolved, Va(far | 0x5a << 56), Direction::Read), explained, "{far:#x}, tagged");
            assert!(!pair.explains(&resolved, Va(far), Direction::Write), "{far:#x} is no store");
        }
        let one = load(Base::Register(2), Addressing::Offset(0));
        let resolved = one.resolve(&registers(), 0, 0);
        assert!(one.explains(&resolved, Va(0x2003), Direction::Read));
        assert!(!one.explains(&resolved, Va(0x2004), Direction::Read));
    }

    proptest! {
        /// An instruction explains the aborts of its own bytes, and no others.
        #[test]
        fn every_word_explains_its_own_bytes(word: u32, value: u64, distance in -40_i64..40) {
            if let Ok(crate::Instruction::Transfer(transfer)) = crate::decode(word) {
                let resolved = transfer.resolve(&[value; 31], value, value);
                let far = Va(resolved.address.0.wrapping_add_signed(distance));
                let bytes: u64 = transfer.accesses().map(|(_, access)| u64::from(access.bytes)).sum();
                let own = distance >= 0 && (distance as u64) < bytes;
                prop_assert_eq!(transfer.explains(&resolved, far, transfer.direction), own);
            }
        }

        /// Whatever a guest's instruction and registers are, resolving them does not panic.
        #[test]
        fn every_word_resolves(word: u32, value: u64) {
            if let Ok(crate::Instruction::Transfer(transfer)) = crate::decode(word) {
                let _ = transfer.resolve(&[value; 31], value, value);
            }
        }
    }
}
