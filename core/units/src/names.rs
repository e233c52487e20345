//! Names of CPUs, VMs, virtual CPUs and interrupts.

use core::fmt;

/// How many virtual CPUs one VM may have. [`VcpuSet`] and the GIC's target lists are sized by it.
pub const MAX_VCPUS: usize = 8;

/// A physical CPU, numbered from 0 in the order in which the platform describes them; 0 is the one that booted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CpuId(pub u16);

/// A virtual machine, numbered from 0 in the order of the site file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct VmId(pub u16);

/// A virtual CPU within its VM, numbered from 0; its affinity 0 is the same number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct VcpuId(pub u8);

impl VcpuId {
    /// The number as an index into per-vCPU arrays.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// An interrupt's INTID, as the GIC numbers them: SGIs from 0, PPIs from 16, SPIs from 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IntId(pub u32);

impl IntId {
    /// The first PPI.
    pub const PPI_BASE: u32 = 16;
    /// The first SPI.
    pub const SPI_BASE: u32 = 32;

    /// PPI number `ppi` (0 to 15).
    #[must_use]
    pub const fn ppi(ppi: u32) -> Self {
        Self(Self::PPI_BASE + ppi)
    }

    /// SPI number `spi`, counted from 0 as device trees do.
    #[must_use]
    pub const fn spi(spi: u32) -> Self {
        Self(Self::SPI_BASE + spi)
    }

    /// Whether each vCPU has its own instance (an SGI or a PPI).
    #[must_use]
    pub const fn is_private(self) -> bool {
        self.0 < Self::SPI_BASE
    }
}

/// What of a line is an interrupt. Where a line is active low, or its falling edge counts, is the hardware's business.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Trigger {
    /// Each rising edge makes the interrupt pending.
    Edge,
    /// The interrupt is pending while the line is high.
    Level,
}

/// The level of an interrupt line.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Line {
    /// Deasserted.
    Low,
    /// Asserted.
    High,
}

/// Some of a VM's virtual CPUs, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VcpuSet(pub u8);

impl VcpuSet {
    /// No vCPU.
    pub const EMPTY: Self = Self(0);

    /// Just `vcpu`.
    #[must_use]
    pub const fn only(vcpu: VcpuId) -> Self {
        Self(1 << vcpu.0)
    }

    /// Whether no vCPU is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `vcpu` is in it.
    #[must_use]
    pub const fn contains(self, vcpu: VcpuId) -> bool {
        self.0 & (1 << vcpu.0) != 0
    }

    /// Adds `vcpu`.
    pub const fn insert(&mut self, vcpu: VcpuId) {
        self.0 |= 1 << vcpu.0;
    }

    /// Takes `vcpu` out.
    pub const fn remove(&mut self, vcpu: VcpuId) {
        self.0 &= !(1 << vcpu.0);
    }

    /// All that are in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The members, lowest number first.
    pub fn iter(self) -> impl Iterator<Item = VcpuId> {
        (0..MAX_VCPUS as u8).map(VcpuId).filter(move |&vcpu| self.contains(vcpu))
    }
}

impl fmt::Debug for VcpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|vcpu| vcpu.0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{IntId, MAX_VCPUS, VcpuId, VcpuSet};
    use std::vec::Vec;

    #[test]
    fn interrupts_are_numbered_as_the_gic_does() {
        assert_eq!(
            (IntId::ppi(0), IntId::ppi(11), IntId::spi(0), IntId::spi(5)),
            (IntId(16), IntId(27), IntId(32), IntId(37))
        );
        assert!([0, 15, 16, 31].map(IntId).into_iter().all(IntId::is_private));
        assert!(![32, 33, 1019].map(IntId).into_iter().any(IntId::is_private));
    }

    #[test]
    fn a_set_has_who_was_put_in_and_not_taken_out() {
        // Each of the 256 sets, member by member.
        for bits in 0..=u8::MAX {
            let members: Vec<_> = (0..MAX_VCPUS as u8).filter(|&vcpu| bits >> vcpu & 1 == 1).map(VcpuId).collect();
            let mut set = VcpuSet::EMPTY;
            members.iter().for_each(|&vcpu| set.insert(vcpu));
            assert_eq!(set, VcpuSet(bits));
            assert_eq!(set.iter().collect::<Vec<_>>(), members);
            assert_eq!(set.is_empty(), members.is_empty());
            for vcpu in (0..MAX_VCPUS as u8).map(VcpuId) {
                let mut less = set;
                less.remove(vcpu);
                assert!(!less.contains(vcpu) && set.contains(vcpu) == (bits >> vcpu.index() & 1 == 1));
                assert_eq!(less.union(VcpuSet::only(vcpu)), set.union(VcpuSet::only(vcpu)));
                assert_eq!(set.contains(vcpu), less.union(VcpuSet::only(vcpu)) == set);
            }
        }
        assert_eq!(std::format!("{:?}", VcpuSet(0b101)), "{0, 2}");
    }
}
