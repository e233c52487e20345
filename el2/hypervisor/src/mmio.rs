//! Accesses to a guest's devices: finding the device, and carrying out the instruction that the guest executed there.
//!
//! For most instructions the syndrome says all there is to know. For the others (pairs, writeback, `DC ZVA`) the
//! instruction itself is read from the guest's memory and decoded (`core/a64`).

use a64::{Base, Instruction, Transfer, Unsupported};
use cpu::exit::{Access, DataAbort};
use cpu::inject::{self, AbortKind};
use cpu::{Direction, pstate};
use hw::sysreg;
use hw::vcpu::VcpuContext;
use machine::DeviceKind;
use units::{AccessSize, Ipa, PAGE_SIZE, Va, VcpuId, VcpuSet};
use vgic::REDISTRIBUTOR_STRIDE;

use crate::exits::{complete, translate};
use crate::stats::Reason;
use crate::vcpu::Vcpu;

/// One load or store of one device register.
struct Operation {
    device: DeviceKind,
    offset: u64,
    size: AccessSize,
}

/// The guest accessed `ipa` (at its `far`), which is not RAM.
pub(crate) fn access(vcpu: &'static Vcpu, context: &mut VcpuContext, far: Va, ipa: Ipa, abort: &DataAbort) -> Reason {
    let Some((device, offset)) = vcpu.vm.plan.find(ipa) else {
        inject(context, far, AbortKind::External, abort.direction);
        return Reason::Nothing;
    };
    match abort.access {
        Some(access) => {
            if offset & u64::from(access.bytes - 1) != 0 {
                inject(context, far, AbortKind::Alignment, abort.direction);
                return Reason::Device;
            }
            let operation = Operation { device, offset, size: size(access.bytes) };
            simple(vcpu, context, &operation, access, abort.direction);
            complete(context);
        }
        None => without_syndrome(vcpu, context, far, abort),
    }
    Reason::Device
}

fn simple(vcpu: &'static Vcpu, context: &mut VcpuContext, operation: &Operation, access: Access, direction: Direction) {
    match direction {
        Direction::Read => {
            let value = read(vcpu, operation);
            context.set_register(access.rt, access.loaded(value));
        }
        Direction::Write => write(vcpu, operation, access.stored(context.register(access.rt))),
    }
}

fn inject(context: &mut VcpuContext, far: Va, kind: AbortKind, direction: Direction) {
    crate::exits::inject(context, |state| inject::data_abort(state, far, kind, direction));
}

/// The size of an access, whose bytes a decoder gave: 1, 2, 4 or 8.
fn size(bytes: u8) -> AccessSize {
    AccessSize::from_bytes(bytes.into()).unwrap_or(AccessSize::Double)
}

/// The Redistributor frame that an offset into their region is in, and the offset within it.
fn frame(offset: u64) -> (VcpuId, u64) {
    (VcpuId((offset / REDISTRIBUTOR_STRIDE) as u8), offset % REDISTRIBUTOR_STRIDE)
}

fn read(vcpu: &'static Vcpu, operation: &Operation) -> u64 {
    let &Operation { device, offset, size } = operation;
    match device {
        DeviceKind::Distributor => {
            let gic = vcpu.vm.gic.lock();
            let needs = gic.distributor_needs(offset, vgic::Direction::Read);
            if needs.is_empty() {
                return gic.distributor_read(offset, size);
            }
            drop(gic);
            synced(vcpu, needs, |gic| gic.distributor_read(offset, size))
        }
        DeviceKind::Redistributors => {
            let (id, offset) = frame(offset);
            let gic = vcpu.vm.gic.lock();
            let needs = gic.redistributor_needs(id, offset, vgic::Direction::Read);
            if needs.is_empty() {
                return gic.redistributor_read(id, offset, size);
            }
            drop(gic);
            synced(vcpu, needs, |gic| gic.redistributor_read(id, offset, size))
        }
        _ => {
            let mut devices = vcpu.vm.devices.lock();
            let value = devices.read(device, offset, size);
            let concerned = devices.update_lines(vcpu.vm);
            drop(devices);
            tell(vcpu, concerned);
            value
        }
    }
}

/// Reads GIC state that list registers hold a part of: this vCPU's are folded in, other vCPUs are asked to do the same
/// first.
fn synced(vcpu: &'static Vcpu, needs: VcpuSet, look: impl Fn(&vgic::Vgic) -> u64) -> u64 {
    let mut others = needs;
    others.remove(vcpu.id);
    vcpu.vm.sync_others(vcpu, others);
    let mut value = 0;
    vcpu.with_gic(|gic| {
        value = look(gic);
        VcpuSet::EMPTY
    });
    value
}

fn write(vcpu: &'static Vcpu, operation: &Operation, value: u64) {
    let &Operation { device, offset, size } = operation;
    match device {
        DeviceKind::Distributor => vcpu.with_gic(|gic| gic.distributor_write(offset, size, value)),
        DeviceKind::Redistributors => {
            let (id, offset) = frame(offset);
            vcpu.with_gic(|gic| gic.redistributor_write(id, offset, size, value));
        }
        _ => {
            let mut devices = vcpu.vm.devices.lock();
            devices.write(vcpu.vm, device, offset, size, value);
            let concerned = devices.update_lines(vcpu.vm);
            drop(devices);
            tell(vcpu, concerned);
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

/// Carries out an instruction that the syndrome does not describe.
fn without_syndrome(vcpu: &'static Vcpu, context: &mut VcpuContext, far: Va, abort: &DataAbort) {
    let Some(word) = fetch(vcpu, context) else {
        // The guest changed its own tables under its instruction: it gets to execute it again.
        return;
    };
    match a64::decode(word) {
        Ok(Instruction::Transfer(transfer)) => {
            if !transfer_all(vcpu, context, &transfer) {
                inject(context, far, AbortKind::External, abort.direction);
                return;
            }
        }
        Ok(Instruction::ZeroBlock { .. }) => {
            // DC ZVA faults on Device memory (DDI 0487 D7.4.9): as alignment.
            inject(context, far, AbortKind::Alignment, Direction::Write);
            return;
        }
        Ok(Instruction::CacheMaintenance { .. } | Instruction::Prefetch) => {}
        Err(reason) => {
            log::debug!("{}: {word:#010x} at {far} on a device: {reason:?}", vcpu.vm.config.name);
            let kind = match reason {
                Unsupported::Exclusive | Unsupported::Atomic => AbortKind::UnsupportedAtomic,
                _ => AbortKind::External,
            };
            inject(context, far, kind, abort.direction);
            return;
        }
    }
    complete(context);
}

/// The instruction at the guest's PC.
fn fetch(vcpu: &'static Vcpu, context: &VcpuContext) -> Option<u32> {
    let ipa = translate(Va(context.pc), pstate::is_user(context.pstate))?;
    let mut bytes = [0_u8; 4];
    vcpu.vm.ram.lock().read(ipa, &mut bytes).ok()?;
    Some(u32::from_le_bytes(bytes))
}

/// Both accesses of a pair, then the registers: nothing changes if either is not on a device. Says whether all went well.
fn transfer_all(vcpu: &'static Vcpu, context: &mut VcpuContext, transfer: &Transfer) -> bool {
    let unprivileged = pstate::is_user(context.pstate);
    let on_sp_el0 = unprivileged || context.pstate & 1 == 0;
    let sp = if on_sp_el0 { sysreg::sp_el0::read() } else { sysreg::sp_el1::read() };
    let resolved = transfer.resolve(&context.x, sp, context.pc);
    let mut operations = [None, None];
    for (slot, (offset, access)) in operations.iter_mut().zip(transfer.accesses()) {
        let va = Va(resolved.address.0.wrapping_add(offset));
        let crosses = va.0 % PAGE_SIZE + u64::from(access.bytes) > PAGE_SIZE;
        let place = translate(va, unprivileged).and_then(|ipa| vcpu.vm.plan.find(ipa));
        match place {
            Some((device, offset)) if !crosses && offset & u64::from(access.bytes - 1) == 0 => {
                *slot = Some((Operation { device, offset, size: size(access.bytes) }, access));
            }
            _ => return false,
        }
    }
    for (operation, access) in operations.iter().flatten() {
        match transfer.direction {
            a64::Direction::Load => {
                let value = read(vcpu, operation);
                context.set_register(access.rt, access.loaded(value));
            }
            a64::Direction::Store => write(vcpu, operation, context.register(access.rt)),
        }
    }
    if let Some((base, value)) = resolved.writeback {
        match base {
            Base::Register(number) => context.set_register(number, value),
            Base::StackPointer if on_sp_el0 => sysreg::sp_el0::write(value),
            Base::StackPointer => sysreg::sp_el1::write(value),
            _ => {}
        }
    }
    true
}
