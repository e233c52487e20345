//! A guest's registers that are switched when another vCPU comes to a CPU: the tables of them, and room for their values.
//!
//! [`switched_registers!`](crate::switched_registers) is the one list of system registers. The structs here are made from it, and
//! so is what moves them between them and the CPU (`el2/hw`), and what a vCPU is saved as ([`crate::saved`]): a register that is
//! added is switched and saved without anybody remembering.

/// Gives the tables of system registers, each to `$then!`: a name for the struct, and lines of registers with what the assembler
/// calls them. Those of one line are moved together.
#[macro_export]
macro_rules! switched_registers {
    ($then:ident) => {
        $then! {
            /// The EL1 and EL0 system registers that are the guest's own.
            El1 {
                [sctlr_el1 = "sctlr_el1", cpacr_el1 = "cpacr_el1", ttbr0_el1 = "ttbr0_el1", ttbr1_el1 = "ttbr1_el1"]
                [tcr_el1 = "tcr_el1", esr_el1 = "esr_el1", far_el1 = "far_el1", afsr0_el1 = "afsr0_el1"]
                [afsr1_el1 = "afsr1_el1", mair_el1 = "mair_el1", amair_el1 = "amair_el1", vbar_el1 = "vbar_el1"]
                [contextidr_el1 = "contextidr_el1", tpidr_el0 = "tpidr_el0", tpidrro_el0 = "tpidrro_el0",
                    tpidr_el1 = "tpidr_el1"]
                [cntkctl_el1 = "cntkctl_el1", elr_el1 = "elr_el1", spsr_el1 = "spsr_el1", sp_el0 = "sp_el0"]
                [sp_el1 = "sp_el1", par_el1 = "par_el1", csselr_el1 = "csselr_el1", mdscr_el1 = "mdscr_el1"]
                [cntv_cval_el0 = "cntv_cval_el0", cntv_ctl_el0 = "cntv_ctl_el0"]
            }
        }
        $then! {
            /// Pointer authentication keys (FEAT_PAuth), which the assembler knows by their encodings only.
            Keys {
                [apiakeylo_el1 = "S3_0_C2_C1_0", apiakeyhi_el1 = "S3_0_C2_C1_1",
                    apibkeylo_el1 = "S3_0_C2_C1_2", apibkeyhi_el1 = "S3_0_C2_C1_3"]
                [apdakeylo_el1 = "S3_0_C2_C2_0", apdakeyhi_el1 = "S3_0_C2_C2_1",
                    apdbkeylo_el1 = "S3_0_C2_C2_2", apdbkeyhi_el1 = "S3_0_C2_C2_3"]
                [apgakeylo_el1 = "S3_0_C2_C3_0", apgakeyhi_el1 = "S3_0_C2_C3_1"]
            }
        }
        $then! {
            /// What a guest tells the branch predictors about its own contexts (FEAT_CSV2_2): SCXTNUM_EL0 and SCXTNUM_EL1.
            ContextNumbers {
                [scxtnum_el0 = "S3_3_C13_C0_7", scxtnum_el1 = "S3_0_C13_C0_7"]
            }
        }
    };
}

macro_rules! define {
    ($(#[$doc:meta])* $state:ident { $([$($name:ident = $asm:literal),* $(,)?])* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct $state {
            $($(#[doc = concat!("`", $asm, "`.")] pub $name: u64,)*)*
        }

        impl $state {
            /// How many there are.
            pub const COUNT: usize = [$($(stringify!($name)),*),*].len();

            /// Lets `look` look at each register, by its name, in the order of the table.
            pub fn each(&mut self, mut look: impl FnMut(&'static str, &mut u64)) {
                let Self { $($($name),*),* } = self;
                $($(look(stringify!($name), $name);)*)*
            }
        }
    };
}

switched_registers!(define);

/// Q0 to Q31, FPCR and FPSR. Assembly in `el2/hw` knows this layout.
#[repr(C, align(16))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vectors {
    /// Q0 to Q31, the low half first.
    pub q: [[u64; 2]; 32],
    /// FPCR.
    pub fpcr: u64,
    /// FPSR.
    pub fpsr: u64,
}

impl Vectors {
    /// All zero.
    pub const ZERO: Self = Self { q: [[0; 2]; 32], fpcr: 0, fpsr: 0 };
}

/// Breakpoints and watchpoints, of which a CPU has as many as it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Debug {
    /// DBGBVR`n`_EL1.
    pub breakpoint_values: [u64; 16],
    /// DBGBCR`n`_EL1.
    pub breakpoint_controls: [u64; 16],
    /// DBGWVR`n`_EL1.
    pub watchpoint_values: [u64; 16],
    /// DBGWCR`n`_EL1.
    pub watchpoint_controls: [u64; 16],
}

/// The virtual interrupt interface of a vCPU that is not on a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InterruptState {
    /// ICH_VMCR_EL2.
    pub vmcr: u64,
    /// ICH_HCR_EL2, to be loaded.
    pub hcr: u64,
    /// ICH_AP0R0_EL2 and up.
    pub active_priorities_0: [u64; 4],
    /// ICH_AP1R0_EL2 and up.
    pub active_priorities_1: [u64; 4],
}

/// The general registers, PC and PSTATE.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct General {
    /// X0 to X30.
    pub x: [u64; 31],
    /// Where the guest continues.
    pub pc: u64,
    /// The guest's PSTATE, in the layout of SPSR_EL2.
    pub pstate: u64,
}
