//! The part of a guest's state that stays in the CPU between exits, and moving it when another vCPU comes.
//!
//! EL1 system registers, those that come with a feature (pointer authentication keys, say) and the virtual timer are
//! moved at every switch of vCPUs. FP/SIMD registers and debug registers are moved only when they are used: until then
//! CPTR_EL2.TFP and MDCR_EL2.TDA trap the first access, which loads them ([`GuestState::load_fp`],
//! [`GuestState::load_debug`]). A vCPU that has used FP/SIMD registers gets them loaded at once from then on: most
//! guests use them all the time or not at all. A vCPU that has breakpoints enabled gets its debug registers at once,
//! since they act without being accessed.
//!
//! Debug registers and the controls of a guest whose time is scaled, which only few vCPUs need, cost all others one
//! test (`unusual`).
//!
//! The virtual interrupt interface is moved here too. The list registers are not: they are empty between vCPUs, as the
//! GIC model takes their contents back when a vCPU leaves, and chooses afresh when it comes.

use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};

pub use cpu::debug::{DebugBank, DebugPolicy};
use cpu::id::Switched;
use cpu::registers;
use cpu::registers::{ContextNumbers, Debug, General, Keys, Vectors};
pub use cpu::registers::{El1, InterruptState};
use cpu::saved::Registers;

use crate::stage1;
use crate::sysreg::{self, isb};

/// CPTR_EL2.TFP (E2H = 0): FP/SIMD accesses of EL1 and EL0 trap.
const CPTR_TFP: u64 = 1 << 10;
/// MDCR_EL2.TDA: accesses to debug registers trap.
const MDCR_TDA: u64 = 1 << 9;
/// HCR_EL2.VSE: an SError is pending for the guest; the CPU clears it when it is taken.
const HCR_VSE: u64 = 1 << 8;
/// MDSCR_EL1.SS, KDE and MDE: debug exceptions can happen.
const MDSCR_ARMED: u64 = 1 | 1 << 13 | 1 << 15;
/// Beside these bits, in what is unusual about a vCPU: its time is scaled.
const SCALED: u64 = 1 << 63;

/// What kinds of state this host's CPUs have, beyond what all have. The same on all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// Registers that come with a feature: what the policy of identification registers says is switched.
    pub switched: Switched,
    /// Fine-grained traps (FEAT_FGT): HDFGRTR_EL2 and HDFGWTR_EL2 exist.
    pub fine_grained: bool,
    /// CNTPOFF_EL2 exists and counts (FEAT_ECV); only where fine-grained traps are, too.
    pub physical_offset: bool,
    /// What all guests but those of a scaled time have.
    pub usual_time: TimeControls,
    /// List registers, 1 to 16.
    pub list_registers: u8,
    /// Words of active priorities in each group, 1, 2 or 4.
    pub priority_words: u8,
}

/// The controls of EL2 that differ between vCPUs or change while one runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Controls {
    /// HCR_EL2.
    pub hcr: u64,
    /// MDCR_EL2; TDA is set and cleared here as debug state moves.
    pub mdcr: u64,
    /// CPTR_EL2; TFP is set and cleared here as FP/SIMD state moves.
    pub cptr: u64,
    /// VTTBR_EL2: the VM's stage 2 and VMID.
    pub vttbr: u64,
    /// VMPIDR_EL2: the affinity that the vCPU reads.
    pub vmpidr: u64,
    /// CNTVOFF_EL2, and CNTPOFF_EL2 where it exists: host count at which the guest's counters were 0.
    pub cntvoff: u64,
    /// What is different for a guest whose time is scaled.
    pub scaled_time: Option<TimeControls>,
    /// The vCPU's OS lock (OSLSR_EL1.OSLK), which its debug exceptions depend on.
    pub os_lock: bool,
    /// HDFGRTR_EL2 and HDFGWTR_EL2, where they exist.
    pub debug_traps: [u64; 2],
    /// How the guest's debug registers are kept from it.
    pub debug: DebugPolicy,
    /// MDSCR_EL1 as the guest sees it, unless the policy is [`DebugPolicy::Natural`].
    pub mdscr: u64,
    /// Bits of it that never reach the hardware.
    pub mdscr_withheld: u64,
    /// MDCCINT_EL1 as the guest sees it; the hardware's is zero.
    pub mdccint: u64,
    /// The claim tags that the guest has set; the hardware's are not touched.
    pub claim: u64,
}

/// The registers by which a guest's counters and timers trap, and by which it learns their frequency.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TimeControls {
    /// CNTHCTL_EL2.
    pub cnthctl: u64,
    /// CNTFRQ_EL0; `None` where it belongs to firmware.
    pub cntfrq: Option<u32>,
}

impl TimeControls {
    fn load(self) {
        sysreg::cnthctl_el2::write(self.cnthctl);
        if let Some(hertz) = self.cntfrq {
            sysreg::write_cntfrq_el0(hertz);
        }
    }
}

/// Registers that are moved between a CPU and memory.
trait Switch {
    fn save(&mut self);
    fn load(&self);
}

/// Moves a table of registers: those of one line by one block of assembly, so that the compiler stores and loads them in
/// pairs.
macro_rules! switch {
    ($(#[$doc:meta])* $state:ident { $([$($name:ident = $asm:literal),* $(,)?])* }) => {
        impl Switch for registers::$state {
            #[inline(always)]
            fn save(&mut self) {
                $(
                    $(let $name: u64;)*
                    // SAFETY: reading these registers changes nothing, neither in memory nor elsewhere.
                    unsafe {
                        core::arch::asm!(
                            $(concat!("mrs {", stringify!($name), "}, ", $asm),)*
                            $($name = out(reg) $name,)*
                            options(nomem, nostack, preserves_flags)
                        );
                    }
                    $(self.$name = $name;)*
                )*
            }

            #[inline(always)]
            fn load(&self) {
                $(
                    // SAFETY: these registers hold state of the guest; no value changes what EL2 reaches or executes.
                    unsafe {
                        core::arch::asm!(
                            $(concat!("msr ", $asm, ", {", stringify!($name), "}"),)*
                            $($name = in(reg) self.$name,)*
                            options(nomem, nostack, preserves_flags)
                        );
                    }
                )*
            }
        }
    };
}

cpu::switched_registers!(switch);

/// As `load`, where stage 1 is closed and VTTBR_EL2 was just written: it opens when all else is loaded.
#[cold]
#[inline(never)]
fn load_closed(el1: &El1) {
    let sctlr_el1 = el1.sctlr_el1 | stage1::SCTLR_ON;
    El1 { sctlr_el1, tcr_el1: el1.tcr_el1 | stage1::TCR_NO_WALKS, ..*el1 }.load();
    stage1::Open { sctlr: el1.sctlr_el1, tcr: el1.tcr_el1 }.restore();
}

/// Registers of which a CPU has as many as it says.
trait SwitchSome {
    fn save(&mut self, features: &Features);
    fn load(&self, features: &Features);
}

/// Everything of a vCPU that stays in a CPU between exits. What every switch moves comes first: within 504 bytes of the
/// start registers are stored and loaded in pairs.
#[repr(C)]
pub struct GuestState {
    /// EL1 system registers; not up to date while the vCPU is loaded.
    pub el1: El1,
    /// EL2's controls for this vCPU.
    pub controls: Controls,
    /// [`SCALED`] for a vCPU whose time is scaled, so that it is found together with what else is unusual.
    scaled: u64,
    /// VDISR_EL2: the SError that an ESB of the guest has deferred.
    deferred_error: u64,
    fp_loaded: bool,
    /// How many more times FP/SIMD registers are loaded without being asked for.
    fp_ahead: u8,
    /// What of it is loaded that is not of every vCPU: the debug registers, if a bit of [`MDSCR_ARMED`] is set, and the
    /// controls of its time ([`SCALED`]).
    unusual: u64,
    /// The interrupt interface; not up to date while the vCPU is loaded.
    pub interrupts: InterruptState,
    keys: Keys,
    context_numbers: ContextNumbers,
    fp: Vectors,
    debug: Debug,
}

/// A vCPU that uses FP/SIMD gets its registers at once for so many more times that it comes to a CPU. Each time that saves
/// an exit if it uses them again, and costs some forty instructions if it does not.
const FP_AHEAD: u8 = 15;

impl GuestState {
    /// A vCPU's state at its first start: everything zero but what `controls` says.
    #[must_use]
    pub fn new(controls: Controls) -> Self {
        let scaled = if controls.scaled_time.is_some() { SCALED } else { 0 };
        // Until the debug registers are loaded.
        let mdcr = controls.mdcr | MDCR_TDA;
        Self {
            controls: Controls { mdcr, ..controls },
            scaled,
            el1: El1::default(),
            interrupts: InterruptState::default(),
            deferred_error: 0,
            keys: Keys::default(),
            context_numbers: ContextNumbers::default(),
            fp: Vectors::ZERO,
            debug: Debug::default(),
            fp_loaded: false,
            fp_ahead: 0,
            unusual: 0,
        }
    }

    /// Puts a vCPU that is not loaded back to its first start, with `el1` as its registers.
    pub fn reset(&mut self, el1: El1) {
        *self = Self::new(self.controls);
        self.el1 = el1;
    }

    /// Loads the state into this CPU. IRQs are masked, and no other vCPU's state is loaded.
    pub fn load(&mut self, features: &Features) {
        let controls = &self.controls;
        let mut mdcr = controls.mdcr;
        self.unusual = self.el1.mdscr_el1 & MDSCR_ARMED | self.scaled;
        if self.unusual != 0 {
            mdcr = self.load_unusual(features);
        }
        if features.fine_grained {
            let [read, write] = controls.debug_traps;
            sysreg::hdfgrtr_el2::write(read);
            sysreg::hdfgwtr_el2::write(write);
            if features.physical_offset {
                sysreg::cntpoff_el2::write(controls.cntvoff);
            }
        }
        sysreg::hcr_el2::write(controls.hcr);
        sysreg::mdcr_el2::write(mdcr);
        sysreg::vttbr_el2::write(controls.vttbr);
        sysreg::vmpidr_el2::write(controls.vmpidr);
        sysreg::cntvoff_el2::write(controls.cntvoff);
        sysreg::oslar_el1(u64::from(controls.os_lock));
        if stage1::is_closed_between_guests() {
            load_closed(&self.el1);
        } else {
            self.el1.load();
        }
        if features.switched.pointer_keys {
            self.keys.load();
        }
        if features.switched.context_numbers {
            self.context_numbers.load();
        }
        if features.switched.deferred_error {
            sysreg::vdisr_el2::write(self.deferred_error);
        }
        self.interrupts.load(features);
        if self.fp_ahead == 0 {
            sysreg::write_cptr_el2(self.controls.cptr | CPTR_TFP);
            self.fp_loaded = false;
        } else {
            self.fp_ahead -= 1;
            self.load_fp_now();
        }
        isb();
    }

    /// Saves the state from this CPU and disarms the virtual timer. IRQs are masked.
    pub fn save(&mut self, features: &Features) {
        // Before stage 1 is closed and the virtual timer stopped: both change registers that belong to the guest.
        self.el1.save();
        if stage1::is_closed_between_guests() {
            stage1::close();
        }
        self.controls.hcr = self.controls.hcr & !HCR_VSE | sysreg::hcr_el2::read() & HCR_VSE;
        sysreg::cntv_ctl_el0::write(0);
        if features.switched.pointer_keys {
            self.keys.save();
        }
        if features.switched.context_numbers {
            self.context_numbers.save();
        }
        if features.switched.deferred_error {
            self.deferred_error = sysreg::vdisr_el2::read();
        }
        self.interrupts.save(features);
        if self.fp_loaded {
            // SAFETY: the pointer is to 528 writable bytes, and FP/SIMD is not trapped at EL2 once TFP is clear,
            // which `fp_loaded` says.
            unsafe { save_fp_registers(&raw mut self.fp) };
            self.fp_loaded = false;
        }
        if self.unusual != 0 {
            self.save_unusual(features);
        }
    }

    /// All registers of a vCPU that is not loaded, with its general ones, to be saved or put in. What EL2 decides for it is not
    /// among them: its controls come from its VM's site file and clock wherever it runs.
    pub fn registers<'a>(&'a mut self, general: &'a mut General, features: &Features) -> Registers<'a> {
        let Switched { pointer_keys, context_numbers: has_context_numbers, deferred_error: has_deferred_error, .. } =
            features.switched;
        let [breakpoints, watchpoints] = debug_registers::counts(features);
        let Self {
            el1,
            controls,
            deferred_error,
            // Nothing is loaded, and what is loaded ahead is a guess.
            fp_loaded: _,
            fp_ahead: _,
            unusual: _,
            scaled: _,
            interrupts,
            keys,
            context_numbers,
            fp,
            debug,
        } = self;
        let Controls {
            hcr,
            mdcr: _,
            cptr: _,
            vttbr: _,
            vmpidr: _,
            cntvoff: _,
            scaled_time: _,
            os_lock,
            debug_traps: _,
            debug: policy,
            mdscr,
            mdscr_withheld,
            mdccint,
            claim,
        } = controls;
        Registers {
            general,
            el1,
            keys: pointer_keys.then_some(keys),
            context_numbers: has_context_numbers.then_some(context_numbers),
            deferred_error: has_deferred_error.then_some(deferred_error),
            vectors: fp,
            debug,
            breakpoints,
            watchpoints,
            interrupts,
            hcr,
            os_lock,
            mdscr: (*policy != DebugPolicy::Natural).then_some((mdscr, *mdscr_withheld)),
            mdccint,
            claim,
        }
    }

    /// The controls of the time of a vCPU that is not loaded.
    pub fn set_time(&mut self, offset: u64, scaled: Option<TimeControls>) {
        self.controls.cntvoff = offset;
        self.controls.scaled_time = scaled;
        self.scaled = if scaled.is_some() { SCALED } else { 0 };
    }

    /// Loads what only few vCPUs have; MDCR_EL2 for it.
    #[cold]
    #[inline(never)]
    fn load_unusual(&self, features: &Features) -> u64 {
        let controls = &self.controls;
        if let Some(time) = controls.scaled_time {
            time.load();
        }
        if !self.is_debug_loaded() {
            return controls.mdcr;
        }
        self.debug.load(features);
        if controls.debug == DebugPolicy::TrapAll { controls.mdcr } else { controls.mdcr & !MDCR_TDA }
    }

    /// Saves it. The next vCPU finds the usual controls of its time, so that none but those of a scaled one has to write them.
    #[cold]
    #[inline(never)]
    fn save_unusual(&mut self, features: &Features) {
        if self.is_debug_loaded() {
            self.debug.save(features);
        }
        if self.unusual & SCALED != 0 {
            features.usual_time.load();
        }
        self.unusual = 0;
    }

    fn is_debug_loaded(&self) -> bool {
        self.unusual & !SCALED != 0
    }

    /// Gives the loaded vCPU its FP/SIMD registers, after its first access trapped.
    pub fn load_fp(&mut self) {
        self.fp_ahead = FP_AHEAD;
        self.load_fp_now();
    }

    #[inline(always)]
    fn load_fp_now(&mut self) {
        sysreg::write_cptr_el2(self.controls.cptr & !CPTR_TFP);
        isb();
        // SAFETY: the pointer is to 528 readable bytes; TFP was just cleared. EL2 itself keeps nothing in these
        // registers: it is built without FP.
        unsafe { load_fp_registers(&raw const self.fp) };
        self.fp_loaded = true;
    }

    /// Gives the loaded vCPU its debug registers, after its first access trapped.
    #[inline(never)]
    pub fn load_debug(&mut self, features: &Features) {
        self.debug.load(features);
        if self.controls.debug != DebugPolicy::TrapAll {
            sysreg::mdcr_el2::write(self.controls.mdcr & !MDCR_TDA);
        }
        self.unusual |= MDSCR_ARMED;
    }

    /// Sets MDSCR_EL1 of the loaded vCPU, whose accesses to it trap. Some bits are withheld from the register: TDCC would
    /// send EL0's calls to EL1, where nobody answers them.
    pub fn write_mdscr(&mut self, value: u64, features: &Features) {
        self.controls.mdscr = value;
        sysreg::mdscr_el1::write(value & !self.controls.mdscr_withheld);
        if value & MDSCR_ARMED != 0 && !self.is_debug_loaded() {
            self.load_debug(features);
        }
    }

    /// Reads a debug register of the loaded vCPU, whose accesses to it trap. `None` if the CPU has no such register.
    pub fn read_debug(&mut self, bank: DebugBank, index: u8, features: &Features) -> Option<u64> {
        let index = self.reach_debug(bank, index, features)?;
        Some(match bank {
            DebugBank::BreakpointValue => debug_registers::read_bvr(index),
            DebugBank::BreakpointControl => debug_registers::read_bcr(index),
            DebugBank::WatchpointValue => debug_registers::read_wvr(index),
            DebugBank::WatchpointControl => debug_registers::read_wcr(index),
        })
    }

    /// As [`GuestState::read_debug`], for a write.
    pub fn write_debug(&mut self, bank: DebugBank, index: u8, value: u64, features: &Features) -> Option<()> {
        let index = self.reach_debug(bank, index, features)?;
        match bank {
            DebugBank::BreakpointValue => debug_registers::write_bvr(index, value),
            DebugBank::BreakpointControl => debug_registers::write_bcr(index, value),
            DebugBank::WatchpointValue => debug_registers::write_wvr(index, value),
            DebugBank::WatchpointControl => debug_registers::write_wcr(index, value),
        }
        Some(())
    }

    /// Makes sure that the debug registers are the vCPU's.
    #[inline(never)]
    fn reach_debug(&mut self, bank: DebugBank, index: u8, features: &Features) -> Option<usize> {
        let [breakpoints, watchpoints] = debug_registers::counts(features);
        let count = match bank {
            DebugBank::BreakpointValue | DebugBank::BreakpointControl => breakpoints,
            DebugBank::WatchpointValue | DebugBank::WatchpointControl => watchpoints,
        };
        if usize::from(index) >= count {
            return None;
        }
        if !self.is_debug_loaded() {
            self.load_debug(features);
        }
        Some(usize::from(index))
    }
}

impl SwitchSome for InterruptState {
    fn load(&self, features: &Features) {
        sysreg::ich_vmcr_el2::write(self.vmcr);
        sysreg::ich_hcr_el2::write(self.hcr);
        active_priorities::load(&self.active_priorities_0, &self.active_priorities_1, features.priority_words);
    }

    fn save(&mut self, features: &Features) {
        self.vmcr = sysreg::ich_vmcr_el2::read();
        active_priorities::save(&mut self.active_priorities_0, &mut self.active_priorities_1, features.priority_words);
        sysreg::ich_hcr_el2::write(0);
    }
}

macro_rules! indexed {
    ($visible:vis $read:ident, $write:ident, $what:literal, $($index:literal = $asm:expr),*) => {
        #[doc = concat!("Reads ", $what, " `index`; 0 past the last.")]
        #[inline(always)]
        #[must_use]
        $visible fn $read(index: usize) -> u64 {
            match index {
                $($index => {
                    let value: u64;
                    // SAFETY: reading this register changes nothing; callers stay below the implemented number.
                    unsafe { core::arch::asm!(concat!("mrs {}, ", $asm), out(reg) value, options(nostack, preserves_flags)) };
                    value
                })*
                _ => 0,
            }
        }

        #[doc = concat!("Writes ", $what, " `index`; nothing past the last.")]
        #[inline(always)]
        $visible fn $write(index: usize, value: u64) {
            match index {
                // SAFETY: this register acts on the guest only; callers stay below the implemented number.
                $($index => unsafe {
                    core::arch::asm!(concat!("msr ", $asm, ", {}"), in(reg) value, options(nostack, preserves_flags))
                },)*
                _ => {}
            }
        }
    };
}

/// How many list registers the CPUs have. Their own registers say so, not a caller: one too many would be undefined at EL2.
static LIST_REGISTERS: AtomicUsize = AtomicUsize::new(0);

/// Finds out how many list registers there are. Before any is used.
pub(crate) fn count_list_registers() {
    LIST_REGISTERS.store((sysreg::ich_vtr_el2() & 0x1f) as usize + 1, Ordering::Relaxed);
}

/// Empties all list registers of this CPU.
pub(crate) fn clear_list_registers() {
    (0..LIST_REGISTERS.load(Ordering::Relaxed)).for_each(|index| list_registers::write(index, 0));
}

/// Reads list register `index`; 0 past the last that the CPU has.
#[inline(always)]
#[must_use]
pub fn read_list_register(index: usize) -> u64 {
    if index < LIST_REGISTERS.load(Ordering::Relaxed) { list_registers::read(index) } else { 0 }
}

/// Writes list register `index`; nothing past the last that the CPU has.
#[inline(always)]
pub fn write_list_register(index: usize, value: u64) {
    if index < LIST_REGISTERS.load(Ordering::Relaxed) {
        list_registers::write(index, value);
    }
}

mod list_registers {
    indexed!(pub(super) read, write, "list register",
        0 = "ich_lr0_el2", 1 = "ich_lr1_el2", 2 = "ich_lr2_el2", 3 = "ich_lr3_el2", 4 = "ich_lr4_el2", 5 = "ich_lr5_el2",
        6 = "ich_lr6_el2", 7 = "ich_lr7_el2", 8 = "ich_lr8_el2", 9 = "ich_lr9_el2", 10 = "ich_lr10_el2",
        11 = "ich_lr11_el2", 12 = "ich_lr12_el2", 13 = "ich_lr13_el2", 14 = "ich_lr14_el2", 15 = "ich_lr15_el2");
}

/// `ICH_AP0R<n>_EL2` and `ICH_AP1R<n>_EL2` of the loaded vCPU, the registers of each group one after the other.
#[must_use]
pub fn active_priorities(features: &Features) -> [u128; 2] {
    let mut groups = [[0; 4]; 2];
    let [zero, one] = &mut groups;
    active_priorities::save(zero, one, features.priority_words);
    groups.map(|words| words.iter().rev().fold(0, |all, &word| all << 32 | u128::from(word as u32)))
}

/// Sets what [`active_priorities`] reads.
pub fn set_active_priorities(features: &Features, groups: [u128; 2]) {
    let words = |all: u128| core::array::from_fn(|word| u64::from((all >> (32 * word)) as u32));
    let [zero, one] = groups.map(words);
    active_priorities::load(&zero, &one, features.priority_words);
}

mod active_priorities {
    indexed!(pub(super) read_0, write_0, "active priorities of group 0,",
        0 = "ich_ap0r0_el2", 1 = "ich_ap0r1_el2", 2 = "ich_ap0r2_el2", 3 = "ich_ap0r3_el2");
    indexed!(pub(super) read_1, write_1, "active priorities of group 1,",
        0 = "ich_ap1r0_el2", 1 = "ich_ap1r1_el2", 2 = "ich_ap1r2_el2", 3 = "ich_ap1r3_el2");

    /// Words that this CPU has, which no caller's number exceeds: 5, 6 or 7 bits of preemption (ICH_VTR_EL2.PREbits says one less).
    #[cold]
    fn implemented() -> u8 {
        match crate::sysreg::ich_vtr_el2() >> 26 & 0x7 {
            0..=4 => 1,
            5 => 2,
            _ => 4,
        }
    }

    /// Nearly all CPUs have one word, whose registers are reached without a loop.
    #[inline(always)]
    pub(super) fn load(group_0: &[u64; 4], group_1: &[u64; 4], words: u8) {
        write_0(0, group_0[0]);
        write_1(0, group_1[0]);
        if words > 1 {
            load_rest(group_0, group_1, words);
        }
    }

    #[cold]
    fn load_rest(group_0: &[u64; 4], group_1: &[u64; 4], words: u8) {
        let words = words.min(implemented());
        for (index, (&zero, &one)) in group_0.iter().zip(group_1).enumerate().take(usize::from(words)).skip(1) {
            write_0(index, zero);
            write_1(index, one);
        }
    }

    #[inline(always)]
    pub(super) fn save(group_0: &mut [u64; 4], group_1: &mut [u64; 4], words: u8) {
        group_0[0] = read_0(0);
        group_1[0] = read_1(0);
        if words > 1 {
            save_rest(group_0, group_1, words);
        }
    }

    #[cold]
    fn save_rest(group_0: &mut [u64; 4], group_1: &mut [u64; 4], words: u8) {
        let words = words.min(implemented());
        for (index, (zero, one)) in group_0.iter_mut().zip(group_1).enumerate().take(usize::from(words)).skip(1) {
            *zero = read_0(index);
            *one = read_1(index);
        }
    }
}

mod debug_registers {
    use super::Features;
    use crate::sysreg;

    /// How many breakpoints and watchpoints are reached: as many as `features` says, but none that this CPU does not have
    /// (ID_AA64DFR0_EL1.BRPs and WRPs say one less).
    pub(super) fn counts(features: &Features) -> [usize; 2] {
        let ids = sysreg::id_aa64dfr0_el1();
        let implemented = |shift: u32| (ids >> shift & 0xf) as usize + 1;
        let Features { switched, .. } = features;
        [usize::from(switched.breakpoints).min(implemented(12)), usize::from(switched.watchpoints).min(implemented(20))]
    }

    macro_rules! bank {
        ($read:ident, $write:ident, $what:literal, $prefix:literal) => {
            indexed!(pub(super) $read, $write, $what,
                0 = concat!($prefix, "0_el1"), 1 = concat!($prefix, "1_el1"), 2 = concat!($prefix, "2_el1"),
                3 = concat!($prefix, "3_el1"), 4 = concat!($prefix, "4_el1"), 5 = concat!($prefix, "5_el1"),
                6 = concat!($prefix, "6_el1"), 7 = concat!($prefix, "7_el1"), 8 = concat!($prefix, "8_el1"),
                9 = concat!($prefix, "9_el1"), 10 = concat!($prefix, "10_el1"), 11 = concat!($prefix, "11_el1"),
                12 = concat!($prefix, "12_el1"), 13 = concat!($prefix, "13_el1"), 14 = concat!($prefix, "14_el1"),
                15 = concat!($prefix, "15_el1"));
        };
    }
    bank!(read_bvr, write_bvr, "breakpoint value", "dbgbvr");
    bank!(read_bcr, write_bcr, "breakpoint control", "dbgbcr");
    bank!(read_wvr, write_wvr, "watchpoint value", "dbgwvr");
    bank!(read_wcr, write_wcr, "watchpoint control", "dbgwcr");
}

impl SwitchSome for Debug {
    fn save(&mut self, features: &Features) {
        let [breakpoints, watchpoints] = debug_registers::counts(features);
        for index in 0..breakpoints {
            self.breakpoint_values[index] = debug_registers::read_bvr(index);
            self.breakpoint_controls[index] = debug_registers::read_bcr(index);
        }
        for index in 0..watchpoints {
            self.watchpoint_values[index] = debug_registers::read_wvr(index);
            self.watchpoint_controls[index] = debug_registers::read_wcr(index);
        }
    }

    fn load(&self, features: &Features) {
        let [breakpoints, watchpoints] = debug_registers::counts(features);
        for index in 0..breakpoints {
            debug_registers::write_bvr(index, self.breakpoint_values[index]);
            debug_registers::write_bcr(index, self.breakpoint_controls[index]);
        }
        for index in 0..watchpoints {
            debug_registers::write_wvr(index, self.watchpoint_values[index]);
            debug_registers::write_wcr(index, self.watchpoint_controls[index]);
        }
    }
}

unsafe extern "C" {
    fn save_fp_registers(to: *mut Vectors);
    fn load_fp_registers(from: *const Vectors);
}

global_asm!(
    r#"
    .pushsection .text.fp, "ax"
    .arch_extension fp
    .arch_extension simd
    .global save_fp_registers
save_fp_registers:
    stp     q0, q1, [x0, #0]
    stp     q2, q3, [x0, #32]
    stp     q4, q5, [x0, #64]
    stp     q6, q7, [x0, #96]
    stp     q8, q9, [x0, #128]
    stp     q10, q11, [x0, #160]
    stp     q12, q13, [x0, #192]
    stp     q14, q15, [x0, #224]
    stp     q16, q17, [x0, #256]
    stp     q18, q19, [x0, #288]
    stp     q20, q21, [x0, #320]
    stp     q22, q23, [x0, #352]
    stp     q24, q25, [x0, #384]
    stp     q26, q27, [x0, #416]
    stp     q28, q29, [x0, #448]
    stp     q30, q31, [x0, #480]
    add     x0, x0, #512
    mrs     x1, fpcr
    mrs     x2, fpsr
    stp     x1, x2, [x0]
    ret
    dsb     nsh
    isb
    .global load_fp_registers
load_fp_registers:
    ldp     q0, q1, [x0, #0]
    ldp     q2, q3, [x0, #32]
    ldp     q4, q5, [x0, #64]
    ldp     q6, q7, [x0, #96]
    ldp     q8, q9, [x0, #128]
    ldp     q10, q11, [x0, #160]
    ldp     q12, q13, [x0, #192]
    ldp     q14, q15, [x0, #224]
    ldp     q16, q17, [x0, #256]
    ldp     q18, q19, [x0, #288]
    ldp     q20, q21, [x0, #320]
    ldp     q22, q23, [x0, #352]
    ldp     q24, q25, [x0, #384]
    ldp     q26, q27, [x0, #416]
    ldp     q28, q29, [x0, #448]
    ldp     q30, q31, [x0, #480]
    add     x0, x0, #512
    ldp     x1, x2, [x0]
    msr     fpcr, x1
    msr     fpsr, x2
    ret
    dsb     nsh
    isb
    .popsection
    "#
);
