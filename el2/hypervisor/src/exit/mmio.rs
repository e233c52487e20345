//! Accesses to a guest's devices, carried out.
//!
//! `core/vm` ([`::vm::mmio`]) decides what an access does, and asks here for the contents of the guest's tables, memory
//! and registers. This module asks the devices, each under its lock.

use ::vm::exits::DebugState;
use ::vm::mmio::{Guest, Operation, Operations, Refusal, StackPointer, Written};
use abi::bundle::Doors as Policy;
use cpu::Direction;
use cpu::id::Switched;
use cpu::inject::AbortKind;
use cpu::translation::{Memory, Rights};
use hw::state::Controls;
use hw::sysreg;
use hw::vcpu::VcpuContext;
use machine::{Target, redistributor};
use services::Facts;
use units::{AccessSize, Ipa, Va, VcpuId, VcpuSet};
use vgic::Vgic;

use crate::exit::stage1::{self, Refused};
use crate::host::{self, speculation};
use crate::sched;
use crate::vcpu::Vcpu;
use crate::vm::outside::Surroundings;

/// What `core/vm` asks about the guest. Its vCPU is loaded.
impl Guest for &'static Vcpu {
    #[inline(always)]
    fn device(&self, ipa: Ipa) -> Option<Target> {
        self.vm.plan.find(ipa)
    }

    #[inline(always)]
    fn is_ram(&self, ipa: Ipa) -> bool {
        self.vm.plan.ram().contains(ipa)
    }

    fn translate(&self, va: Va, rights: Rights, direction: Direction) -> Result<(Ipa, Memory), Refusal> {
        stage1::translate(self, va, rights, direction).map_err(|refused| match refused {
            Refused::Abort(kind) => Refusal::Abort(va, kind),
            Refused::NotReady(_) => Refusal::Again,
        })
    }

    fn refused_walk(&self, va: Va, table: Ipa) -> AbortKind {
        stage1::refused_walk(self, va, table)
    }

    fn word(&self, ipa: Ipa) -> Option<[u8; 4]> {
        let mut bytes = [0; 4];
        stage1::read_ram(self, ipa, &mut bytes).map(|()| bytes)
    }

    fn stack_pointer(&self, which: StackPointer) -> u64 {
        match which {
            StackPointer::El0 => sysreg::sp_el0::read(),
            StackPointer::El1 => sysreg::sp_el1::read(),
        }
    }

    #[inline(always)]
    fn sctlr_el1(&self) -> u64 {
        sysreg::sctlr_el1::read()
    }

    fn dczid_el0(&self) -> u64 {
        sysreg::dczid_el0()
    }

    fn debug(&self) -> DebugState {
        let Switched { breakpoints, watchpoints, .. } = host::get().features.switched;
        self.with_state(|state| {
            let Controls { debug: policy, mdscr, mdccint, claim, .. } = state.controls;
            DebugState { policy, mdscr, mdccint, claim, breakpoints, watchpoints }
        })
    }

    #[inline(always)]
    fn doors(&self) -> &Policy {
        &self.vm.config.doors
    }

    fn facts(&self) -> Facts {
        let record = Ipa(machine::STOLEN_TIME.0 + self.id.index() as u64 * services::stolen_time::RECORD_SIZE);
        let stolen_time = self.vm.record(self.id).map(|_| record);
        Facts { workarounds: speculation::workarounds(), stolen_time }
    }
}

/// Makes what `core/vm` has found out that the guest's instruction does: it loads or stores registers of devices, one or two, and then
/// may write its base register back.
pub(crate) fn access(vcpu: &'static Vcpu, context: &mut VcpuContext, operations: &Operations, direction: Direction) {
    for operation in operations.iter() {
        make(vcpu, context, &operation, direction);
    }
    if let Some((written, value)) = operations.writeback {
        write_back(context, written, value);
    }
}

/// Asks the device, and loads or stores the guest's register.
#[inline(always)]
fn make(vcpu: &'static Vcpu, context: &mut VcpuContext, operation: &Operation, direction: Direction) {
    match direction {
        Direction::Read => context.set_register(operation.rt(), operation.loaded(read(vcpu, operation))),
        Direction::Write => write(vcpu, operation, operation.stored(context.register(operation.rt()))),
    }
}

fn write_back(context: &mut VcpuContext, written: Written, value: u64) {
    match written {
        Written::Register(number) => context.set_register(number, value),
        Written::StackPointer(StackPointer::El0) => sysreg::sp_el0::write(value),
        Written::StackPointer(StackPointer::El1) => sysreg::sp_el1::write(value),
    }
}

fn read(vcpu: &'static Vcpu, operation: &Operation) -> u64 {
    let &Operation { target, size, .. } = operation;
    match target {
        Target::Distributor(offset) => read_gic(vcpu, GicFrame::Distributor(offset), size),
        Target::Redistributors(offset) => {
            let (id, offset) = redistributor(offset);
            read_gic(vcpu, GicFrame::Redistributor(id, offset), size)
        }
        Target::Device(place) => {
            let outside = Surroundings::of(vcpu.vm, place.slot);
            let value = vcpu.vm.devices.bus().read(place, size, &outside);
            tell(vcpu, outside.concerned());
            if outside.is_in_vain() {
                // It will look again and again until the console's thread has taken bytes: let that run.
                sched::yield_now();
            }
            value
        }
    }
}

/// A frame of the GIC's registers, and an offset in it.
#[derive(Clone, Copy)]
enum GicFrame {
    Distributor(u64),
    Redistributor(VcpuId, u64),
}

impl GicFrame {
    /// The offset in the page that has pending and active state.
    const fn offset(self) -> u64 {
        match self {
            Self::Distributor(offset) | Self::Redistributor(_, offset) => offset & 0xFFFF,
        }
    }

    /// Whether a write takes interrupts away from CPU interfaces: CTLR, ICENABLER, ICPENDR.
    const fn takes_away(self) -> bool {
        matches!(self.offset(), 0 | 0x180..=0x1FF | 0x280..=0x2FF)
    }

    fn needs(self, gic: &Vgic, direction: Direction) -> VcpuSet {
        match self {
            Self::Distributor(offset) => gic.distributor_needs(offset, direction),
            Self::Redistributor(id, offset) => gic.redistributor_needs(id, offset, direction),
        }
    }

    fn read(self, gic: &Vgic, size: AccessSize) -> u64 {
        match self {
            Self::Distributor(offset) => gic.distributor_read(offset, size),
            Self::Redistributor(id, offset) => gic.redistributor_read(id, offset, size),
        }
    }
}

/// Reads the GIC model. Of some state list registers hold a part: this vCPU's are folded in, other vCPUs are asked to do the same
/// first.
#[inline(always)]
fn read_gic(vcpu: &'static Vcpu, frame: GicFrame, size: AccessSize) -> u64 {
    let gic = vcpu.vm.gic.lock();
    let needs = frame.needs(&gic, Direction::Read);
    if needs.is_empty() {
        return frame.read(&gic, size);
    }
    drop(gic);
    read_synced(vcpu, needs, frame, size)
}

#[cold]
#[inline(never)]
fn read_synced(vcpu: &'static Vcpu, needs: VcpuSet, frame: GicFrame, size: AccessSize) -> u64 {
    vcpu.sync_others(needs);
    let mut value = 0;
    vcpu.with_gic(|gic| {
        value = frame.read(gic, size);
        VcpuSet::EMPTY
    });
    value
}

/// Writes to the GIC model.
///
/// Of active state list registers hold a part. It is folded in first: what was ended meanwhile is not what is made active now. And
/// at the end whoever has to change its own has done so, where something is taken away: what it acknowledges behind this write would be
/// taken for what was ended by it, or would be an interrupt that this vCPU has disabled, with RWP zero.
#[inline(never)]
fn write_gic(vcpu: &'static Vcpu, frame: GicFrame, size: AccessSize, value: u64) {
    let is_activity = vgic::depends_on_list_registers(frame.offset(), Direction::Write);
    if is_activity {
        let needs = frame.needs(&vcpu.vm.gic.lock(), Direction::Write);
        vcpu.sync_others(needs);
    }
    let mut concerned = VcpuSet::EMPTY;
    vcpu.with_gic(|gic| {
        concerned = match frame {
            GicFrame::Distributor(offset) => gic.distributor_write(offset, size, value),
            GicFrame::Redistributor(id, offset) => gic.redistributor_write(id, offset, size, value),
        };
        concerned
    });
    if is_activity || frame.takes_away() {
        vcpu.sync_others(concerned);
    }
}

fn write(vcpu: &'static Vcpu, operation: &Operation, value: u64) {
    let &Operation { target, size, .. } = operation;
    match target {
        Target::Distributor(offset) => write_gic(vcpu, GicFrame::Distributor(offset), size, value),
        Target::Redistributors(offset) => {
            let (id, offset) = redistributor(offset);
            write_gic(vcpu, GicFrame::Redistributor(id, offset), size, value);
        }
        Target::Device(place) => {
            let outside = Surroundings::of(vcpu.vm, place.slot);
            vcpu.vm.devices.bus().write(place, size, value, &outside);
            tell(vcpu, outside.concerned());
            if outside.moves_timer() {
                vcpu.follow_timer();
            }
            if let Some(wait) = outside.wait() {
                vcpu.carry_on(wait);
            }
        }
    }
}

/// Interrupt lines changed for these vCPUs.
fn tell(vcpu: &'static Vcpu, concerned: VcpuSet) {
    if concerned.contains(vcpu.id) {
        vcpu.refresh_interrupts();
    }
    vcpu.vm.refresh_others(concerned, vcpu.id);
}
