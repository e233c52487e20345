//! A guest's interrupt controller: the state behind its GICv3 Distributor and Redistributors, and the choice of what
//! goes into the list registers (GIC IHI 0069H).
//!
//! The guest's CPU interface (ICC_*_EL1) is the hardware's own virtual one: it acknowledges, drops priorities and
//! deactivates without us, working on up to sixteen *list registers* per CPU. Everything before that is modelled
//! here. One [`Vgic`] serves one VM; its owner holds a lock around it, copies list registers to and from the
//! hardware, and kicks vCPUs.
//!
//! # Who owns an interrupt's state
//!
//! An interrupt is either in the model or *loaded*, in one list register of one vCPU, where the guest changes it behind
//! our back. [`Vgic::flush`] moves interrupts out (their pending latch and active bit leave the model with them),
//! [`Vgic::sync`] moves what is left of them back in. In between the model keeps collecting: a new edge on a loaded
//! interrupt is latched here and merged at the next sync, so nothing is lost and nothing is delivered twice. What must
//! be *withdrawn* from a list register (disabled, cleared, routed elsewhere) needs no command: every sync empties all
//! list registers and every flush chooses afresh, so it is enough to tell the owner, by the returned [`VcpuSet`], which
//! vCPUs have to do so.
//!
//! # The machine that the guest sees
//!
//! * Security disabled (GICD_CTLR.DS is one), affinity routing only (ARE is one), two groups, 128 INTIDs, no LPIs yet.
//! * vCPU *n* has affinity 0.0.0.*n*; a 1-of-N interrupt goes to the first vCPU that takes part ([`routing`]). An SPI
//!   routed to an affinity that nobody has stays pending.
//! * Redistributors start awake: security firmware would have woken them before the guest's first instruction
//!   (GICR_WAKER).
//! * Where the host does not tell that a guest disables Group 0, the guest's accesses to the registers of that group trap
//!   while that matters ([`group_zero`]).
//! * ICC_DIR_EL1 always traps: an SPI may be deactivated on another vCPU than the one that holds it. Guests that leave EOImode
//!   at zero, as Linux does, never write it. Where the host cannot trap it alone, it does with others ([`common_registers`]).
//!
//! Interrupts are kept as bitmaps of 32, one word per register that shows them, so that a register access is a load
//! and a mask.
#![no_std]
#![forbid(unsafe_code)]

mod bank;
mod bank_registers;
mod choice;
pub mod common_registers;
mod delivery;
mod distributor;
mod ends;
mod group_zero;
mod hardware;
mod lines;
mod list_registers;
mod redistributor;
mod routing;
pub mod saved;
#[cfg(test)]
mod tests;

use bank::{Bank, Held};
use units::{IntId, MAX_VCPUS, VcpuId, VcpuSet};

pub use bank_registers::depends_on_list_registers;
pub use units::{AccessSize, Direction, Line};

pub use list_registers::{ListRegisters, MAX_LIST_REGISTERS, list_register, virtual_control, virtual_interface};

/// How many INTIDs there are: 16 SGIs, 16 PPIs, 96 SPIs.
pub const INTIDS: u32 = 128;

/// Words of 32 interrupts; word 0 is private to each vCPU.
const WORDS: usize = (INTIDS / 32) as usize;
/// Words of shared interrupts.
const SHARED_WORDS: usize = WORDS - 1;
/// How many SPIs there are.
const SPIS: usize = SHARED_WORDS * 32;

/// What a VM's interrupt controller is made for. Values out of range are brought into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Virtual CPUs, 1 to 8.
    pub vcpus: usize,
    /// List registers of the host's CPUs: ICH_VTR_EL2.ListRegs plus one, 1 to 16.
    pub list_registers: usize,
    /// Virtual priority bits of the host's CPUs: ICH_VTR_EL2.PRIbits plus one, 5 to 8.
    pub priority_bits: u8,
    /// Virtual preemption bits of the host's CPUs: ICH_VTR_EL2.PREbits plus one, 5 to 7.
    pub preemption_bits: u8,
    /// The host's CPUs report when the guest disables Group 0 (ICH_MISR_EL2.VGrp0D). If not, [`group_zero`] does without.
    pub tells_of_group_0: bool,
    /// The host's CPUs trap ICC_DIR_EL1 by itself (ICH_VTR_EL2.TDS). If not, [`common_registers`] trap.
    pub traps_deactivation: bool,
}

/// The group that an SGI register generates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// ICC_SGI0R_EL1 and, with one security state, ICC_ASGI1R_EL1.
    Zero,
    /// ICC_SGI1R_EL1.
    One,
}

/// Whether a vCPU is switched on (PSCI).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Power {
    /// It was never switched on, or has switched itself off.
    Off,
    /// It runs, waits, or is suspended.
    On,
}

/// One vCPU's share: its Redistributor, and what its list registers hold.
#[derive(Clone, Debug)]
struct Vcpu {
    /// SGIs and PPIs.
    private: Bank,
    /// What is active on, or loaded into, this vCPU, for each word.
    held: [Held; WORDS],
    /// Which interrupts of each word come here; all of word 0.
    routed: [u32; WORDS],
    /// Hardware-linked PPIs whose physical interrupt is active on the host's side.
    hardware: u32,
    /// Those of them that are pending here (not those that a list register carries).
    hardware_pending: u32,
    /// Those that a list register carried as pending when it was loaded.
    hardware_carried: u32,
    /// The physical PPI of each hardware-linked one.
    physical: [u8; 32],
    /// Physical PPIs that the owner must deactivate, handed over at the next flush.
    deactivate: u32,
    /// The last flush left something without a list register.
    overflow: bool,
    /// GICR_WAKER.ProcessorSleep.
    asleep: bool,
    /// It is switched on.
    on: bool,
    /// The groups that its CPU interface had enabled at the last sync: bit *n* is Group *n*.
    interface: u8,
    /// The groups of which it takes no 1-of-N interrupts, GICR_CTLR.DPG0 and DPG1NS: bit *n* is Group *n*.
    declines: u8,
}

/// The interrupt controller of one VM. What of it can be taken out and put back is in [`saved`].
#[derive(Clone, Debug)]
pub struct Vgic {
    vcpu_count: usize,
    list_register_count: usize,
    priority_mask: u8,
    preemption_bits: u8,
    tells_of_group_0: bool,
    /// What of ICH_HCR_EL2 is set whenever the guest runs.
    always: u64,
    /// The preemption bits that its guest has found, on the first host it ran on: never more than there are.
    known_preemption_bits: u8,
    /// All ones if GICD_CTLR.EnableGrp0, else zero.
    group0: u32,
    /// All ones if GICD_CTLR.EnableGrp1, else zero.
    group1: u32,
    shared: [Bank; SHARED_WORDS],
    /// GICD_IROUTER of each SPI as the guest wrote it.
    router: [u64; SPIS],
    /// Those that may go to any vCPU: Interrupt_Routing_Mode is set.
    anywhere: [u32; SHARED_WORDS],
    vcpus: [Vcpu; MAX_VCPUS],
}

/// SGIs are edge-triggered, and nothing can change that.
const SGI_EDGES: u32 = 0xFFFF;

impl Vcpu {
    const fn new() -> Self {
        Self {
            private: Bank::new(SGI_EDGES),
            held: [Held::NOTHING; WORDS],
            routed: [u32::MAX, 0, 0, 0],
            hardware: 0,
            hardware_pending: 0,
            hardware_carried: 0,
            physical: [0; 32],
            deactivate: 0,
            overflow: false,
            asleep: false,
            on: false,
            interface: 0,
            declines: 0,
        }
    }
}

impl Vgic {
    /// The interrupt controller of a VM that has not run yet: everything disabled, inactive, level-sensitive, not
    /// pending, in Group 0, of priority 0 and routed to vCPU 0.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let mut vgic = Self {
            vcpu_count: config.vcpus.clamp(1, MAX_VCPUS),
            list_register_count: config.list_registers.clamp(1, MAX_LIST_REGISTERS),
            priority_mask: u8::MAX << (8 - config.priority_bits.clamp(5, 8)),
            preemption_bits: config.preemption_bits.clamp(5, 7),
            tells_of_group_0: config.tells_of_group_0,
            always: virtual_control::EN
                | if config.traps_deactivation { virtual_control::TDIR } else { virtual_control::TRAP_COMMON },
            known_preemption_bits: config.preemption_bits.clamp(5, 7),
            group0: 0,
            group1: 0,
            shared: [const { Bank::new(0) }; SHARED_WORDS],
            router: [0; SPIS],
            anywhere: [0; SHARED_WORDS],
            vcpus: [const { Vcpu::new() }; MAX_VCPUS],
        };
        vgic.reset();
        vgic
    }

    /// Puts everything back to the state of [`Self::new`], lines too: the devices are reset with it. No vCPU is on,
    /// and each has been synced; hardware-linked interrupts are handed back for deactivation at each vCPU's next
    /// flush.
    pub fn reset(&mut self) {
        self.group0 = 0;
        self.group1 = 0;
        self.shared = [const { Bank::new(0) }; SHARED_WORDS];
        self.router = [0; SPIS];
        self.anywhere = [0; SHARED_WORDS];
        for vcpu in &mut self.vcpus {
            let deactivate = vcpu.deactivate | hardware::physical_set(vcpu.hardware, &vcpu.physical);
            *vcpu = Vcpu { deactivate, ..Vcpu::new() };
        }
        for word in 1..WORDS {
            self.vcpus[0].routed[word] = u32::MAX;
        }
    }

    /// ICH_HCR_EL2 of a vCPU of which nothing is to be told. The owner loads it with each that comes to a CPU: one that is
    /// [at rest](ListRegisters::at_rest) is not flushed then.
    #[must_use]
    pub const fn usual_control(&self) -> u64 {
        self.always
    }

    /// The 32 interrupts of `word`, those of `vcpu` if they are private.
    fn bank(&self, word: usize, vcpu: usize) -> Option<&Bank> {
        if word == 0 { self.vcpus.get(vcpu).map(|vcpu| &vcpu.private) } else { self.shared.get(word - 1) }
    }

    /// The same, to change.
    fn bank_mut(&mut self, word: usize, vcpu: usize) -> Option<&mut Bank> {
        if word == 0 { self.vcpus.get_mut(vcpu).map(|vcpu| &mut vcpu.private) } else { self.shared.get_mut(word - 1) }
    }

    /// The vCPUs that may hold an interrupt of `word`: all, or the one whose private interrupts these are.
    fn sharers(&self, word: usize, vcpu: usize) -> core::ops::Range<usize> {
        if word == 0 { vcpu..vcpu.saturating_add(1).min(self.vcpu_count) } else { 0..self.vcpu_count }
    }

    /// Hardware-linked interrupts of `word` that have fired.
    fn fired(&self, word: usize, vcpu: usize) -> u32 {
        match self.vcpus.get(vcpu) {
            Some(owner) if word == 0 => owner.hardware_pending,
            _ => 0,
        }
    }

    /// Those of `word` that are pending in the model: latched, asserted, or a fired physical interrupt.
    fn pending(&self, word: usize, vcpu: usize) -> u32 {
        let Some(bank) = self.bank(word, vcpu) else { return 0 };
        bank.latched | bank.asserted() | self.fired(word, vcpu)
    }

    /// Those of `word` that are pending, enabled, and in an enabled group, wherever they are routed.
    fn ready(&self, word: usize, vcpu: usize) -> u32 {
        let Some(bank) = self.bank(word, vcpu) else { return 0 };
        bank.deliverable((self.group0, self.group1), self.fired(word, vcpu))
    }

    /// Which vCPUs must sync and flush because something about the interrupts `changed` of `word` did change: those
    /// that hold one of them, and those that one which is ready is routed to.
    fn concerned(&self, word: usize, vcpu: usize, changed: u32) -> VcpuSet {
        let mut set = VcpuSet::EMPTY;
        if changed == 0 {
            return set;
        }
        let ready = self.ready(word, vcpu) & changed;
        for index in self.sharers(word, vcpu) {
            let Some(candidate) = self.vcpus.get(index) else { continue };
            let (Some(held), Some(routed)) = (candidate.held.get(word), candidate.routed.get(word)) else { continue };
            if (held.any() & changed) | (ready & routed) != 0 {
                set.insert(VcpuId(index as u8));
            }
        }
        set
    }
}

/// The word and the bit of an interrupt, if there is such a one.
fn position(interrupt: IntId) -> Option<(usize, u32)> {
    (interrupt.0 < INTIDS).then(|| ((interrupt.0 / 32) as usize, 1 << (interrupt.0 % 32)))
}
