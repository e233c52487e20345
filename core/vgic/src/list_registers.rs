//! List registers as values (ICH_LR<n>_EL2, ICH_HCR_EL2; GIC IHI 0069H 12.4) and the copy of them that travels
//! between the model and the hardware.

use units::IntId;

/// The most list registers the architecture allows.
pub const MAX_LIST_REGISTERS: usize = 16;

/// Fields of ICH_LR<n>_EL2.
pub mod list_register {
    /// State, pending bit.
    pub const PENDING: u64 = 1 << 62;
    /// State, active bit.
    pub const ACTIVE: u64 = 1 << 63;
    /// State: both bits.
    pub const STATE: u64 = PENDING | ACTIVE;
    /// Deactivation reaches the physical interrupt named by pINTID.
    pub const HARDWARE: u64 = 1 << 61;
    /// The interrupt is in Group 1.
    pub const GROUP1: u64 = 1 << 60;
    /// Software interrupts only: maintenance interrupt when it becomes inactive.
    pub const EOI: u64 = 1 << 41;
    /// Where the priority starts.
    pub const PRIORITY_SHIFT: u32 = 48;
    /// Priority and group.
    pub const FIELDS: u64 = 0xFF << PRIORITY_SHIFT | GROUP1;
    /// Where pINTID starts.
    pub const PHYSICAL_SHIFT: u32 = 32;
    /// pINTID, in place.
    pub const PHYSICAL: u64 = 0x1FFF << PHYSICAL_SHIFT;
    /// vINTID.
    pub const VIRTUAL: u64 = 0xFFFF_FFFF;
}

/// Fields of ICH_HCR_EL2 that the model sets or reads.
pub mod virtual_control {
    /// The virtual CPU interface is on.
    pub const EN: u64 = 1 << 0;
    /// Maintenance interrupt while EOIcount is not zero.
    pub const LRENPIE: u64 = 1 << 2;
    /// Maintenance interrupt while no list register is pending.
    pub const NPIE: u64 = 1 << 3;
    /// Maintenance interrupts while a group is enabled at the CPU interface (ICC_IGRPEN<n>_EL1): VGrp0EIE, VGrp1EIE.
    pub const GROUP_ENABLED: [u64; 2] = [1 << 4, 1 << 6];
    /// The same while it is disabled there: VGrp0DIE, VGrp1DIE.
    pub const GROUP_DISABLED: [u64; 2] = [1 << 5, 1 << 7];
    /// The guest's accesses to the CPU interface's registers of both groups trap, ICC_DIR_EL1 among them: TC.
    pub const TRAP_COMMON: u64 = 1 << 10;
    /// The guest's accesses to the CPU interface's registers of Group 0 trap, ICC_IGRPEN0_EL1 among them: TALL0.
    pub const TRAP_GROUP_0: u64 = 1 << 11;
    /// Writes of ICC_DIR_EL1 trap.
    pub const TDIR: u64 = 1 << 14;
    /// Where EOIcount starts: ends of interrupt that found no list register.
    pub const EOI_COUNT_SHIFT: u32 = 27;
    /// EOIcount, in place.
    pub const EOI_COUNT: u64 = 0x1F << EOI_COUNT_SHIFT;
}

/// Fields of ICH_VMCR_EL2: the virtual CPU interface as the guest has set it up through ICC_*_EL1, without an exit.
pub mod virtual_interface {
    /// VENG0 and VENG1: the groups that are enabled, one bit each.
    pub const GROUPS: u64 = 0b11;
    /// VCBPR: VBPR0 serves both groups.
    pub const COMMON_BINARY_POINT: u64 = 1 << 4;
    /// VEOIM: an end of interrupt only drops the priority, and ICC_DIR_EL1 deactivates (EOImode one).
    pub const SPLIT_END: u64 = 1 << 9;
    /// Where VBPR1 starts, three bits.
    pub const BINARY_POINT_1_SHIFT: u32 = 18;
    /// Where VBPR0 starts, three bits.
    pub const BINARY_POINT_0_SHIFT: u32 = 21;
    /// Where VPMR, the priority mask, starts.
    pub const MASK_SHIFT: u32 = 24;
}

/// One vCPU's list registers as the owner carries them between the model and ICH_*_EL2.
///
/// Before [`crate::Vgic::sync`] the owner reads ICH_LR<n>_EL2 into `lr[n]` for each bit *n* of `used`, ICH_VMCR_EL2
/// into `vmcr`, and ICH_HCR_EL2 into `hcr` if `hcr` has [`virtual_control::LRENPIE`] set (its EOIcount matters only
/// then). After [`crate::Vgic::flush`] it writes those of `dirty` and, if `hcr_dirty` says so, `hcr`; if `hcr` has
/// LRENPIE set, it calls [`crate::Vgic::note_running`]. A list register that the owner filled itself (see
/// [`crate::Vgic::hardware_list_register`]) is announced by its bit in `used`.
#[derive(Clone, Debug)]
pub struct ListRegisters {
    /// Values of ICH_LR<n>_EL2.
    pub lr: [u64; MAX_LIST_REGISTERS],
    /// Which of them the guest may be using: to be read before a sync.
    pub used: u16,
    /// Which of them the last flush changed: to be written to the hardware.
    pub dirty: u16,
    /// Which of them a sync has emptied in the model, but the hardware still shows. Between sync and flush only.
    pub(crate) stale: u16,
    /// Physical PPIs (bit *n* is INTID *n*) that the owner must deactivate through ICC_DIR_EL1 on the CPU this vCPU
    /// runs on, clearing them here. Almost always zero.
    pub deactivate: u32,
    /// ICH_HCR_EL2 to load.
    pub hcr: u64,
    /// After a flush: the hardware's ICH_HCR_EL2 is another one. That EOIcount has counted is reason enough: it is a
    /// part of the register, and stays until it is overwritten.
    pub hcr_dirty: bool,
    /// ICH_VMCR_EL2, as the guest has it.
    pub vmcr: u64,
    /// After a flush: no list register is used, no maintenance interrupt is asked for, and no physical interrupt is linked.
    /// The vCPU can then leave its CPU and come to another one without a sync, and without a flush unless it is told to
    /// make one, as long as nobody has filled a list register meanwhile.
    pub at_rest: bool,
}

impl ListRegisters {
    /// All empty.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            lr: [0; MAX_LIST_REGISTERS],
            used: 0,
            dirty: 0,
            stale: 0,
            deactivate: 0,
            hcr: virtual_control::EN | virtual_control::TDIR,
            hcr_dirty: false,
            vmcr: 0,
            at_rest: false,
        }
    }
}

impl ListRegisters {
    /// After a sync, the owner has emptied the hardware's list registers: nothing in them needs to be overwritten. What `lr`
    /// holds does not matter any more. ICH_HCR_EL2 is as the owner loads it when the vCPU comes back, [`crate::Vgic::usual_control`].
    pub const fn forget(&mut self, usual_control: u64) {
        self.used = 0;
        self.dirty = 0;
        self.stale = 0;
        self.deactivate = 0;
        self.hcr = usual_control;
        self.hcr_dirty = false;
        self.at_rest = false;
    }
}

impl Default for ListRegisters {
    fn default() -> Self {
        Self::new()
    }
}

/// The fields that every list register has: vINTID, priority and group.
pub(crate) const fn compose(interrupt: u32, priority: u8, group1: bool) -> u64 {
    let group = if group1 { list_register::GROUP1 } else { 0 };
    interrupt as u64 | (priority as u64) << list_register::PRIORITY_SHIFT | group
}

/// The fields that tie a list register to a physical interrupt.
pub(crate) const fn hardware_fields(physical: IntId) -> u64 {
    list_register::HARDWARE | (((physical.0 as u64) << list_register::PHYSICAL_SHIFT) & list_register::PHYSICAL)
}
