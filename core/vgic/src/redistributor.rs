//! The Redistributors' frames, GICR_* (GIC IHI 0069H 12.10 and 12.11): RD_base describes a vCPU and puts its
//! connection to sleep, SGI_base holds its SGIs and PPIs. There are no LPIs yet, so all that GICR_CTLR controls is whether
//! the vCPU takes 1-of-N interrupts.

use crate::bank_registers::{Place, decode, depends_on_list_registers};
use crate::distributor::{IIDR_VALUE, identification};
use crate::{AccessSize, Direction, Vgic, WORDS};
use units::{VcpuId, VcpuSet};

const CTLR: u64 = 0x0000;
const IIDR: u64 = 0x0004;
const TYPER: u64 = 0x0008;
const TYPER_HIGH: u64 = 0x000C;
const WAKER: u64 = 0x0014;
/// Where SGI_base starts.
const SGI_BASE: u64 = 0x1_0000;

/// Where GICR_CTLR.DPG0 and DPG1NS start; DPG1S means nothing with one security state.
const CTLR_DECLINES_SHIFT: u32 = 24;
/// GICR_TYPER.Last.
const TYPER_LAST: u64 = 1 << 4;
/// GICR_TYPER.DPGS: GICR_CTLR.DPG* are there.
const TYPER_DPGS: u64 = 1 << 5;
/// GICR_WAKER.ProcessorSleep.
const WAKER_PROCESSOR_SLEEP: u64 = 1 << 1;
/// GICR_WAKER.ChildrenAsleep.
const WAKER_CHILDREN_ASLEEP: u64 = 1 << 2;

impl Vgic {
    /// A guest loads `size` at `offset` (below 0x2_0000) of the Redistributor of `frame`, whichever vCPU it does so on.
    #[must_use]
    pub fn redistributor_read(&self, frame: VcpuId, offset: u64, size: AccessSize) -> u64 {
        let vcpu = frame.index();
        if vcpu >= self.vcpu_count {
            return 0;
        }
        if let Some(sgi_offset) = offset.checked_sub(SGI_BASE) {
            return match decode(sgi_offset, size) {
                Some((register, 0)) => self.bank_read(register, Place { word: 0, vcpu }, size),
                _ => 0,
            };
        }
        match (offset, size) {
            (CTLR, AccessSize::Word) => {
                self.vcpus.get(vcpu).map_or(0, |vcpu| u64::from(vcpu.declines) << CTLR_DECLINES_SHIFT)
            }
            (IIDR, AccessSize::Word) => IIDR_VALUE,
            (TYPER, AccessSize::Double) => self.typer(vcpu),
            (TYPER, AccessSize::Word) => self.typer(vcpu) & 0xFFFF_FFFF,
            (TYPER_HIGH, AccessSize::Word) => self.typer(vcpu) >> 32,
            (WAKER, AccessSize::Word) if self.vcpus.get(vcpu).is_some_and(|vcpu| vcpu.asleep) => {
                WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP
            }
            (_, AccessSize::Word) => identification(offset, 1).unwrap_or(0),
            _ => 0,
        }
    }

    /// A guest stores `value` at `offset` of the Redistributor of `frame`. Returns the vCPUs that must sync and flush.
    pub fn redistributor_write(&mut self, frame: VcpuId, offset: u64, size: AccessSize, value: u64) -> VcpuSet {
        let vcpu = frame.index();
        if vcpu >= self.vcpu_count {
            return VcpuSet::EMPTY;
        }
        if let Some(sgi_offset) = offset.checked_sub(SGI_BASE) {
            return match decode(sgi_offset, size) {
                Some((register, 0)) => self.bank_write(register, Place { word: 0, vcpu }, size, value),
                _ => VcpuSet::EMPTY,
            };
        }
        match (offset, size) {
            (CTLR, AccessSize::Word) => self.set_declines(vcpu, (value >> CTLR_DECLINES_SHIFT) as u8 & 0b11),
            (WAKER, AccessSize::Word) => self.write_waker(vcpu, value & WAKER_PROCESSOR_SLEEP != 0),
            _ => VcpuSet::EMPTY,
        }
    }

    /// Which vCPUs must be synced before this access of the Redistributor of `frame` for its result to be exact: that
    /// of `frame` for reads of pending and active state and writes of the latter, else none.
    #[must_use]
    pub fn redistributor_needs(&self, frame: VcpuId, offset: u64, direction: Direction) -> VcpuSet {
        let depends = offset.checked_sub(SGI_BASE).is_some_and(|offset| depends_on_list_registers(offset, direction));
        if !depends || frame.index() >= self.vcpu_count {
            return VcpuSet::EMPTY;
        }
        VcpuSet::only(frame)
    }

    /// GICR_TYPER: the affinity and the processor number are the vCPU's, and the last frame says so.
    fn typer(&self, vcpu: usize) -> u64 {
        let last = if vcpu + 1 == self.vcpu_count { TYPER_LAST } else { 0 };
        (vcpu as u64) << 32 | (vcpu as u64) << 8 | TYPER_DPGS | last
    }

    /// While it sleeps, a Redistributor forwards nothing to its CPU interface.
    fn write_waker(&mut self, vcpu: usize, asleep: bool) -> VcpuSet {
        let Some(target) = self.vcpus.get_mut(vcpu) else { return VcpuSet::EMPTY };
        if target.asleep == asleep {
            return VcpuSet::EMPTY;
        }
        target.asleep = asleep;
        let mut set = self.concerned(0, vcpu, u32::MAX);
        for word in 1..WORDS {
            set = set.union(self.concerned(word, 0, u32::MAX));
        }
        // Only this vCPU's connection has changed.
        let frame = VcpuId(vcpu as u8);
        let own = if set.contains(frame) { VcpuSet::only(frame) } else { VcpuSet::EMPTY };
        own.union(self.route_all_anywhere())
    }
}
