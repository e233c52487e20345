//! What is known of one block: eight bytes, so that a fill of many blocks is a plain loop of stores.

use units::VmId;

use crate::Owner;

/// The state of one 2 MiB block. All-zero memory is a valid array of them: no RAM anywhere yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct BlockState(u64);

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// No RAM, or RAM nobody told us of.
    Absent = 0,
    Free = 1,
    /// Free, and lent to a CPU that zeroes it.
    Scrubbing = 2,
    Reserved = 3,
    Hypervisor = 4,
    Guest = 5,
    Tables = 6,
    Shared = 7,
    Enclave = 8,
    /// Divided into frames; [`BlockState::link`] is the number of the record.
    Carved = 9,
}

const KIND_MASK: u64 = 0xff;
/// Holds nothing of a former owner.
const CLEAN: u64 = 1 << 8;
/// The first block of a run of a guest; [`BlockState::link`] leads to the next run.
const HEAD: u64 = 1 << 9;
const VM_SHIFT: u32 = 16;
const LINK_SHIFT: u32 = 32;

/// What free memory holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Contents {
    /// Zeros.
    Zeros,
    /// Whatever it held before.
    Anything,
}

impl BlockState {
    /// No RAM.
    pub const ABSENT: Self = Self(0);
    pub(crate) const FREE_DIRTY: Self = Self(Kind::Free as u64);
    pub(crate) const FREE_CLEAN: Self = Self(Kind::Free as u64 | CLEAN);
    pub(crate) const SCRUBBING: Self = Self(Kind::Scrubbing as u64);
    pub(crate) const RESERVED: Self = Self(Kind::Reserved as u64);

    pub(crate) const fn carved(record: usize) -> Self {
        Self(Kind::Carved as u64 | (record as u64) << LINK_SHIFT)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// A whole block of `owner`; not yet clean, not the head of a run.
    pub(crate) const fn owned(owner: Owner) -> Self {
        let (kind, vm) = match owner {
            Owner::Free => (Kind::Free, 0),
            Owner::Reserved => (Kind::Reserved, 0),
            Owner::Hypervisor => (Kind::Hypervisor, 0),
            Owner::Guest(vm) => (Kind::Guest, vm.0),
            Owner::Tables(vm) => (Kind::Tables, vm.0),
            Owner::Shared => (Kind::Shared, 0),
            Owner::Enclave => (Kind::Enclave, 0),
        };
        Self(kind as u64 | (vm as u64) << VM_SHIFT)
    }

    pub(crate) const fn kind(self) -> Kind {
        match self.0 & KIND_MASK {
            1 => Kind::Free,
            2 => Kind::Scrubbing,
            3 => Kind::Reserved,
            4 => Kind::Hypervisor,
            5 => Kind::Guest,
            6 => Kind::Tables,
            7 => Kind::Shared,
            8 => Kind::Enclave,
            9 => Kind::Carved,
            _ => Kind::Absent,
        }
    }

    /// The owner of the whole block; `None` if there is none or if it is carved.
    pub(crate) const fn owner(self) -> Option<Owner> {
        let vm = VmId((self.0 >> VM_SHIFT) as u16);
        match self.kind() {
            Kind::Absent | Kind::Carved => None,
            Kind::Free | Kind::Scrubbing => Some(Owner::Free),
            Kind::Reserved => Some(Owner::Reserved),
            Kind::Hypervisor => Some(Owner::Hypervisor),
            Kind::Guest => Some(Owner::Guest(vm)),
            Kind::Tables => Some(Owner::Tables(vm)),
            Kind::Shared => Some(Owner::Shared),
            Kind::Enclave => Some(Owner::Enclave),
        }
    }

    pub(crate) const fn is_free(self) -> bool {
        self.0 & KIND_MASK == Kind::Free as u64
    }

    pub(crate) const fn is_clean(self) -> bool {
        self.0 & CLEAN != 0
    }

    /// What it holds, while it is free.
    pub(crate) const fn contents(self) -> Contents {
        if self.is_clean() { Contents::Zeros } else { Contents::Anything }
    }

    pub(crate) const fn is_head(self) -> bool {
        self.0 & HEAD != 0
    }

    /// The record of a carved block; of the head of a run, the block after which the next run of the VM comes.
    pub(crate) const fn link(self) -> u32 {
        (self.0 >> LINK_SHIFT) as u32
    }

    pub(crate) const fn with_clean(self, clean: bool) -> Self {
        if clean { Self(self.0 | CLEAN) } else { Self(self.0 & !CLEAN) }
    }

    /// The same as the head of a run, with a link to the next.
    pub(crate) const fn with_link(self, link: u32) -> Self {
        Self(self.0 & 0xffff_ffff | HEAD | (link as u64) << LINK_SHIFT)
    }
}
