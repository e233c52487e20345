//! Names of identification registers and of those of their fields that the code speaks about.

/// A 4-bit field of an identification register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Field {
    /// Which register, by its index in the tables.
    pub register: usize,
    /// Its lowest bit.
    pub shift: u32,
}

impl Field {
    const fn new(register: usize, shift: u32) -> Self {
        Self { register, shift }
    }

    /// The field's value in a register that holds `value`.
    #[must_use]
    pub const fn of(self, value: u64) -> u64 {
        value >> self.shift & 0xf
    }

    /// The field's value as a signed number.
    #[must_use]
    pub const fn signed_of(self, value: u64) -> i8 {
        signed(self.of(value))
    }
}

/// Four bits as a two's complement number.
pub(super) const fn signed(value: u64) -> i8 {
    ((value << 4) as i8) >> 4
}

/// Indices of the AArch64 identification registers.
pub(super) mod registers {
    pub(crate) const PFR0: usize = 24;
    pub(crate) const PFR1: usize = 25;
    pub(crate) const DFR0: usize = 32;
    pub(crate) const ISAR0: usize = 40;
    pub(crate) const ISAR1: usize = 41;
    pub(crate) const ISAR2: usize = 42;
    pub(crate) const ISAR3: usize = 43;
    pub(crate) const MMFR0: usize = 48;
    pub(crate) const MMFR1: usize = 49;
    pub(crate) const MMFR2: usize = 50;
    pub(crate) const MMFR4: usize = 52;
}

/// Fields by name: ID_AA64`<register>`_EL1.`<field>`.
pub mod fields {
    use super::Field;
    use super::registers::{DFR0, ISAR0, ISAR1, ISAR2, MMFR0, MMFR1, MMFR2, MMFR4, PFR0, PFR1};

    /// EL1's execution states.
    pub const PFR0_EL1: Field = Field::new(PFR0, 4);
    /// EL2's execution states.
    pub const PFR0_EL2: Field = Field::new(PFR0, 8);
    /// EL3's execution states.
    pub const PFR0_EL3: Field = Field::new(PFR0, 12);
    /// System register interface of the GIC.
    pub const PFR0_GIC: Field = Field::new(PFR0, 24);
    /// Reliability, availability, serviceability.
    pub const PFR0_RAS: Field = Field::new(PFR0, 28);
    /// Scalable vectors.
    pub const PFR0_SVE: Field = Field::new(PFR0, 32);
    /// Memory partitioning and monitoring.
    pub const PFR0_MPAM: Field = Field::new(PFR0, 40);
    /// Activity monitors.
    pub const PFR0_AMU: Field = Field::new(PFR0, 44);
    /// Whether predicted branch targets are kept apart by context; from 3 on the branch history is too.
    pub const PFR0_CSV2: Field = Field::new(PFR0, 56);
    /// PSTATE.SSBS.
    pub const PFR1_SSBS: Field = Field::new(PFR1, 4);
    /// Memory tagging.
    pub const PFR1_MTE: Field = Field::new(PFR1, 8);
    /// Memory partitioning and monitoring, minor revision.
    pub const PFR1_MPAM_FRAC: Field = Field::new(PFR1, 16);
    /// Scalable matrices.
    pub const PFR1_SME: Field = Field::new(PFR1, 24);
    /// Non-maskable interrupts.
    pub const PFR1_NMI: Field = Field::new(PFR1, 36);
    /// Performance monitors; 0 and 15 mean none of the architected kind.
    pub const DFR0_PMUVER: Field = Field::new(DFR0, 8);
    /// Breakpoints, less one.
    pub const DFR0_BRPS: Field = Field::new(DFR0, 12);
    /// Watchpoints, less one.
    pub const DFR0_WRPS: Field = Field::new(DFR0, 20);
    /// Statistical profiling.
    pub const DFR0_PMSVER: Field = Field::new(DFR0, 32);
    /// Self-hosted trace.
    pub const DFR0_TRACEFILT: Field = Field::new(DFR0, 40);
    /// Trace buffer.
    pub const DFR0_TRACEBUFFER: Field = Field::new(DFR0, 44);
    /// CRC32 instructions.
    pub const ISAR0_CRC32: Field = Field::new(ISAR0, 16);
    /// Pointer authentication with QARMA5.
    pub const ISAR1_APA: Field = Field::new(ISAR1, 4);
    /// Pointer authentication with an algorithm of the implementation.
    pub const ISAR1_API: Field = Field::new(ISAR1, 8);
    /// 64-byte loads and stores.
    pub const ISAR1_LS64: Field = Field::new(ISAR1, 60);
    /// Pointer authentication with QARMA3.
    pub const ISAR2_APA3: Field = Field::new(ISAR2, 12);
    /// CLRBHB, which clears the branch history.
    pub const ISAR2_CLRBHB: Field = Field::new(ISAR2, 28);
    /// Translation with a permission check only (AT S1E1A).
    pub const ISAR2_ATS1A: Field = Field::new(ISAR2, 60);
    /// Bits of a physical address.
    pub const MMFR0_PARANGE: Field = Field::new(MMFR0, 0);
    /// The 4 KiB granule at stage 1; signed.
    pub const MMFR0_TGRAN4: Field = Field::new(MMFR0, 28);
    /// The 4 KiB granule at stage 2.
    pub const MMFR0_TGRAN4_2: Field = Field::new(MMFR0, 40);
    /// Fine-grained traps.
    pub const MMFR0_FGT: Field = Field::new(MMFR0, 56);
    /// Enhanced counter virtualisation.
    pub const MMFR0_ECV: Field = Field::new(MMFR0, 60);
    /// Limited ordering regions.
    pub const MMFR1_LO: Field = Field::new(MMFR1, 16);
    /// Privileged access never.
    pub const MMFR1_PAN: Field = Field::new(MMFR1, 20);
    /// Exceptions clear the branch history.
    pub const MMFR1_ECBHB: Field = Field::new(MMFR1, 60);
    /// HCRX_EL2.
    pub const MMFR1_HCX: Field = Field::new(MMFR1, 40);
    /// Enhanced virtualisation traps.
    pub const MMFR2_EVT: Field = Field::new(MMFR2, 56);
    /// Whether HCR_EL2.E2H can be zero; signed, negative if not.
    pub const MMFR4_E2H0: Field = Field::new(MMFR4, 24);
}
