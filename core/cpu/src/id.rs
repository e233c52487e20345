//! Which features a guest is shown: the identification registers, ID_\*_EL1.
//!
//! All registers with op0 = 3, op1 = 0, CRn = 0, CRm = 1 to 7 trap while HCR_EL2.TID3 is set, those that are reserved
//! today included. What a guest reads is computed once, when the host is known ([`GuestIds::new`]), so that a trapped
//! read is one table load: [`index_of_syndrome`] and [`GuestIds::get`].
//!
//! The rule is a whitelist. A register is a row of sixteen 4-bit fields; [`policy::shown`] lists the fields that a
//! guest may see and the highest value it may see in each. A field, a value or a register that is not listed is
//! hidden, so a CPU of the future shows nothing that we have not thought about. A hidden feature reads as zero, or as
//! the value that means "not implemented" where that is another one. [`crate::controls`] traps what is hidden, where the
//! architecture has a trap for it.
//!
//! AArch32 is hidden altogether: no register of the CRm = 1 to 3 block has anything to say then, and all read as zero.

mod field;
#[cfg(test)]
pub(crate) mod models;
mod names;
mod part;
mod policy;

pub use field::{Field, fields};
pub use names::features;
pub use part::{Part, State, Switched, Trap};

use crate::encoding::SysregEncoding;

/// How many identification registers there are: CRm = 1 to 7, op2 = 0 to 7.
pub const COUNT: usize = 56;

/// Where in the tables the register `encoding` is, if it is an identification register.
#[must_use]
#[inline]
pub const fn index(encoding: SysregEncoding) -> Option<usize> {
    if encoding.op0() != 3 || encoding.op1() != 0 || encoding.crn() != 0 {
        return None;
    }
    position(encoding.crm() as usize, encoding.op2() as usize)
}

/// The same from the syndrome of a trapped access (exception class 0x18), without the detour over the encoding: for
/// the fast path. `None` also for a write; identification registers cannot be written.
#[must_use]
#[inline]
pub const fn index_of_syndrome(esr: u64) -> Option<usize> {
    // op0 in bits 21:20, op1 in 16:14, CRn in 13:10 and the direction in bit 0.
    const MASK: u64 = 3 << 20 | 7 << 14 | 15 << 10 | 1;
    const READ: u64 = 3 << 20 | 1;
    if esr & MASK != READ {
        return None;
    }
    position(esr as usize >> 1 & 15, esr as usize >> 17 & 7)
}

/// CRm and op2 to an index.
#[inline]
const fn position(crm: usize, op2: usize) -> Option<usize> {
    // CRm = 0 wraps to a large number: MIDR_EL1 and its neighbours are not in the table.
    let index = (crm.wrapping_sub(1)).wrapping_mul(8).wrapping_add(op2);
    if index < COUNT { Some(index) } else { None }
}

/// The encoding of the register at `index`, which is below [`COUNT`].
#[must_use]
pub const fn encoding(index: usize) -> SysregEncoding {
    SysregEncoding::new(3, 0, 0, (index / 8 + 1) as u8, (index % 8) as u8)
}

/// The identification registers as the host's CPU has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostIds(pub [u64; COUNT]);

impl HostIds {
    /// The value of one field.
    #[must_use]
    pub const fn field(&self, field: Field) -> u64 {
        field.of(self.0[field.register])
    }

    /// The value of one field whose four bits are a signed number, with -1 for "not implemented".
    #[must_use]
    pub const fn signed(&self, field: Field) -> i8 {
        field.signed_of(self.0[field.register])
    }

    /// Sets one field.
    pub const fn set_field(&mut self, field: Field, value: u64) {
        let mask = 0xf << field.shift;
        self.0[field.register] = self.0[field.register] & !mask | value << field.shift & mask;
    }

    /// How many bits a physical address has.
    #[must_use]
    pub const fn physical_address_bits(&self) -> u8 {
        match self.field(fields::MMFR0_PARANGE) {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            5 => 48,
            6 => 52,
            // Larger than anything that we use; 7 is 56 bits.
            _ => 56,
        }
    }

    /// Whether the CPU has something that is not just instructions, by any field that says so.
    #[must_use]
    pub fn has(&self, part: Part) -> bool {
        policy::has(self, part)
    }

    /// Which registers are to be switched with a vCPU.
    #[must_use]
    pub fn switched(&self) -> Switched {
        Switched {
            pointer_keys: self.has(Part::Switched(State::PointerKeys)),
            deferred_error: self.has(Part::Switched(State::DeferredError)),
            context_numbers: self.has(Part::Switched(State::ContextNumbers)),
            breakpoints: self.field(fields::DFR0_BRPS) as u8 + 1,
            watchpoints: self.field(fields::DFR0_WRPS) as u8 + 1,
        }
    }

    /// What all of two CPUs can do, field by field: for hosts whose CPUs are not alike. Fields of a kind where less is
    /// not a subset (counts, say) take the smaller value too.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let mut common = Self([0; COUNT]);
        for (index, register) in common.0.iter_mut().enumerate() {
            *register = policy::common(index, self.0[index], other.0[index]);
        }
        common
    }
}

/// What the identification registers of a VM depend on, besides the host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Inputs {
    /// Bits of an address of the guest's physical address space, as its stage 2 tables have them.
    pub ipa_bits: u8,
}

/// The identification registers as a guest reads them.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct GuestIds(pub [u64; COUNT]);

impl GuestIds {
    /// Applies the policy to the host's registers.
    #[must_use]
    pub fn new(host: &HostIds, inputs: Inputs) -> Self {
        let mut guest = Self([0; COUNT]);
        for (index, register) in guest.0.iter_mut().enumerate() {
            *register = policy::guest_value(index, host.0[index], inputs);
        }
        guest
    }

    /// The register at `index`; zero for one that does not exist.
    #[must_use]
    #[inline]
    pub fn get(&self, index: usize) -> u64 {
        self.0.get(index).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
