//! The Distributor's frame, GICD_* (GIC IHI 0069H 12.9): what is the same for all vCPUs, and the SPIs.
//!
//! With affinity routing always on, everything about SGIs, PPIs and target lists here is RAZ/WI. Reserved offsets, and
//! accesses of a size that a register does not allow, are RAZ/WI too (12.1.3 leaves it open); GICD_STATUSR, which could
//! record them, is optional and absent.

use crate::bank_registers::{Place, decode, depends_on_list_registers};
use crate::{AccessSize, Direction, Vgic, WORDS};
use units::{VcpuId, VcpuSet};

const CTLR: u64 = 0x0000;
const TYPER: u64 = 0x0004;
const IIDR: u64 = 0x0008;
const IROUTER_SPI: u64 = 0x6100;
const IROUTER_END: u64 = IROUTER_SPI + 8 * crate::SPIS as u64;

/// GICD_CTLR.EnableGrp0 and EnableGrp1.
const CTLR_ENABLE: u64 = 0b11;
/// GICD_CTLR.ARE (bit 4) and DS (bit 6), which cannot be cleared.
const CTLR_FIXED: u64 = 1 << 4 | 1 << 6;
/// 128 INTIDs of 10 bits (IDbits holds one less), 1-of-N routing, affinity 0 up to 15.
pub(crate) const TYPER_VALUE: u64 = (WORDS as u64 - 1) | 9 << 19;
/// Product `U`, no JEP106 implementer.
pub(crate) const IIDR_VALUE: u64 = 0x5500_0000;
/// GICD_PIDR0's part number, as QEMU's `virt` has it; GICR_PIDR0 has the next.
const PIDR0_VALUE: u8 = 0x92;
/// PIDR4 to 7, PIDR0 to 3 and CIDR0 to 3, as in Arm's own implementations and in QEMU's: ArchRev 3 (GICv3).
const IDENTIFICATION: [u8; 12] = [0x44, 0, 0, 0, PIDR0_VALUE, 0xB4, 0x3B, 0, 0x0D, 0xF0, 0x05, 0xB1];
const IDENTIFICATION_BASE: u64 = 0xFFD0;

/// GICD_IROUTER.Interrupt_Routing_Mode: any vCPU.
pub(crate) const ROUTER_ANY: u64 = 1 << 31;
/// GICD_IROUTER: the fields that exist.
pub(crate) const ROUTER_MASK: u64 = 0xFF_80FF_FFFF;
/// GICD_IROUTER: the affinity fields.
pub(crate) const ROUTER_AFFINITY: u64 = 0xFF_00FF_FFFF;

impl Vgic {
    /// The guest loads `size` at `offset` of the Distributor.
    #[must_use]
    #[inline]
    pub fn distributor_read(&self, offset: u64, size: AccessSize) -> u64 {
        match (offset, size) {
            (CTLR, AccessSize::Word) => CTLR_FIXED | u64::from(self.group0 & 1) | u64::from(self.group1 & 2),
            (TYPER, AccessSize::Word) => TYPER_VALUE,
            (IIDR, AccessSize::Word) => IIDR_VALUE,
            _ => self.array_read(offset, size),
        }
    }

    /// The registers that there are more of.
    #[inline]
    fn array_read(&self, offset: u64, size: AccessSize) -> u64 {
        if let Some((register, word)) = decode(offset, size) {
            return if word == 0 { 0 } else { self.bank_read(register, Place { word, vcpu: 0 }, size) };
        }
        if let Some((spi, shift)) = router_field(offset, size) {
            let value = self.router.get(spi).map_or(0, |router| router >> shift);
            return if size == AccessSize::Word { value & 0xFFFF_FFFF } else { value };
        }
        if size == AccessSize::Word { identification(offset, 0).unwrap_or(0) } else { 0 }
    }

    /// The guest stores `value` at `offset` of the Distributor. Returns the vCPUs that must sync and flush.
    pub fn distributor_write(&mut self, offset: u64, size: AccessSize, value: u64) -> VcpuSet {
        if let Some((register, word)) = decode(offset, size) {
            return if word == 0 {
                VcpuSet::EMPTY
            } else {
                self.bank_write(register, Place { word, vcpu: 0 }, size, value)
            };
        }
        if let Some((spi, shift)) = router_field(offset, size) {
            return self.write_router(spi, shift, size, value);
        }
        if offset == CTLR && size == AccessSize::Word {
            return self.write_control(value & CTLR_ENABLE);
        }
        VcpuSet::EMPTY
    }

    /// Which vCPUs must be synced before this access of the Distributor for its result to be exact. Empty, after one
    /// comparison, for all but reads of pending and active state and writes of the latter.
    #[must_use]
    #[inline]
    pub fn distributor_needs(&self, offset: u64, direction: Direction) -> VcpuSet {
        if depends_on_list_registers(offset, direction) { self.who_holds(offset) } else { VcpuSet::EMPTY }
    }

    /// The vCPUs that have an interrupt of this register's word in a list register.
    fn who_holds(&self, offset: u64) -> VcpuSet {
        let mut set = VcpuSet::EMPTY;
        let word = (offset as usize & 0x7F) / 4;
        for (index, vcpu) in self.vcpus.iter().enumerate().take(self.vcpu_count) {
            if word > 0 && vcpu.held.get(word).is_some_and(|held| held.loaded != 0) {
                set.insert(VcpuId(index as u8));
            }
        }
        set
    }

    fn write_control(&mut self, enables: u64) -> VcpuSet {
        let group0 = if enables & 1 != 0 { u32::MAX } else { 0 };
        let group1 = if enables & 2 != 0 { u32::MAX } else { 0 };
        let mut set = VcpuSet::EMPTY;
        if (group0, group1) == (self.group0, self.group1) {
            return set;
        }
        (self.group0, self.group1) = (group0, group1);
        for vcpu in 0..self.vcpu_count {
            set = set.union(self.concerned(0, vcpu, u32::MAX));
        }
        for word in 1..WORDS {
            set = set.union(self.concerned(word, 0, u32::MAX));
        }
        set
    }

    fn write_router(&mut self, spi: usize, shift: u32, size: AccessSize, value: u64) -> VcpuSet {
        let Some(router) = self.router.get_mut(spi) else { return VcpuSet::EMPTY };
        let mask = if size == AccessSize::Word { 0xFFFF_FFFF << shift } else { u64::MAX };
        let written = (*router & !mask | (value << shift) & mask) & ROUTER_MASK;
        if written == *router {
            return VcpuSet::EMPTY;
        }
        *router = written;
        let (word, bit) = (spi / 32 + 1, 1 << (spi % 32));
        if written & ROUTER_ANY != 0 {
            return self.route_anywhere(word, bit);
        }
        self.route_to(word, bit, (written & ROUTER_AFFINITY) as usize)
    }
}

/// The identification register at `offset` of a frame, a word each; `frame` is 0 for the Distributor, 1 for a Redistributor.
pub(crate) fn identification(offset: u64, frame: u8) -> Option<u64> {
    let index = offset.checked_sub(IDENTIFICATION_BASE).filter(|from| from & 3 == 0)? / 4;
    let byte = IDENTIFICATION.get(index as usize)?;
    Some(u64::from(if index == 4 { byte + frame } else { *byte }))
}

/// Finds the SPI whose GICD_IROUTER an access names, and how far up in the register the accessed part starts.
const fn router_field(offset: u64, size: AccessSize) -> Option<(usize, u32)> {
    if offset < IROUTER_SPI || offset >= IROUTER_END {
        return None;
    }
    let spi = ((offset - IROUTER_SPI) / 8) as usize;
    match (size, offset & 7) {
        (AccessSize::Double | AccessSize::Word, 0) => Some((spi, 0)),
        (AccessSize::Word, 4) => Some((spi, 32)),
        _ => None,
    }
}
