//! Accesses to a guest's devices: finding the device, and carrying out the instruction that the guest executed there.
//!
//! For most instructions the syndrome says all there is to know. For the others (pairs, writeback, `DC ZVA`) the
//! instruction itself is read from the guest's memory and decoded (`core/a64`).

use a64::{Base, Instruction, Resolved, Transfer, Unsupported};
use cpu::exit::{Access, DataAbort};
use cpu::inject::{self, AbortKind};
use cpu::translation::{Form, Memory, Rights, rights};
use cpu::{Direction, pstate};
use hw::sysreg;
use hw::vcpu::VcpuContext;
use log::Level;
use machine::{REDISTRIBUTOR_SIZE, Target};
use units::{AccessSize, ByteOrder, Ipa, PAGE_SIZE, Va, VcpuId, VcpuSet};

use crate::exit::dispatch::again;
use crate::exit::stage1::{read_ram, translate};
use crate::sched;
use crate::vcpu::Vcpu;
use crate::vcpu::exception::{self, complete};
use crate::vm::counters::Reason;
use crate::vm::outside::Surroundings;

/// One load or store of one device register.
struct Operation {
    target: Target,
    size: AccessSize,
}

/// Why an instruction is not carried out.
enum Refusal {
    /// It is not the instruction that was executed, or not where it was: the guest changed something meanwhile.
    Again,
    /// The guest gets this abort, for this address.
    Abort(Va, AbortKind),
}

/// The guest accessed `ipa` (at its `far`), which is not RAM. Never from AArch32 state, of which nothing here knows how long an
/// instruction is and where its IT block ends: such an exit is refused before anybody looks at it.
pub(crate) fn access(vcpu: &'static Vcpu, context: &mut VcpuContext, far: Va, ipa: Ipa, abort: &DataAbort) -> Reason {
    let Some(target) = vcpu.vm.plan.find(ipa) else {
        inject(context, far, AbortKind::External, abort.direction);
        return Reason::Nothing;
    };
    let result = match abort.access {
        Some(access) if target.offset() & u64::from(access.bytes - 1) != 0 => {
            Err(Refusal::Abort(far, AbortKind::Alignment))
        }
        Some(access) => whole(vcpu, context, far, access, abort.direction).map(|()| {
            let operation = Operation { target, size: size(access.bytes) };
            simple(vcpu, context, &operation, access, abort.direction);
        }),
        None => without_syndrome(vcpu, context, far, abort),
    };
    match result {
        Ok(()) => complete(context),
        Err(Refusal::Abort(at, kind)) => inject(context, at, kind, abort.direction),
        Err(Refusal::Again) => {
            let direction = abort.direction;
            again(vcpu, context, far, |state| inject::data_abort(state, far, AbortKind::External, direction));
        }
    }
    Reason::Device
}

/// Makes sure that an access that the syndrome describes lies in the device as a whole.
///
/// One that begins in RAM and ends in a device exits at the first byte of the device's page (as FAR_EL2 says), with the
/// size of the whole; to carry it out as if it began there would lose its part in RAM. The architecture lets an
/// unaligned access that touches Device memory fault (DDI 0487 B2.5.2, "Alignment of data accesses"), and so does this
/// one. Such accesses need Normal memory at stage 1 in front of the device: where there is none, nothing more is to be
/// done, and hardly any guest has any.
#[inline(always)]
fn whole(
    vcpu: &'static Vcpu,
    context: &VcpuContext,
    far: Va,
    access: Access,
    direction: Direction,
) -> Result<(), Refusal> {
    if far.0.is_multiple_of(PAGE_SIZE) && access.bytes > 1 { begins_at(vcpu, context, far, direction) } else { Ok(()) }
}

/// See [`whole`]: for an access at the begin of a page.
#[inline(never)]
fn begins_at(vcpu: &'static Vcpu, context: &VcpuContext, far: Va, direction: Direction) -> Result<(), Refusal> {
    let before = translate(vcpu, Va(far.0.wrapping_sub(1)), Rights::Kernel, Direction::Read);
    let Ok((_, Memory::Normal)) = before else { return Ok(()) };
    let word = fetch(vcpu, context).ok_or(Refusal::Again)?;
    let Ok(Instruction::Transfer(transfer)) = a64::decode(word) else { return Err(Refusal::Again) };
    let resolved = resolve(context, &transfer, far, direction)?;
    let starts_here = resolved.address.0 << 8 == far.0 << 8;
    if starts_here { Ok(()) } else { Err(Refusal::Abort(resolved.address, AbortKind::Alignment)) }
}

fn simple(vcpu: &'static Vcpu, context: &mut VcpuContext, operation: &Operation, access: Access, direction: Direction) {
    let order = byte_order(context);
    match direction {
        Direction::Read => {
            let value = order.arrange(operation.size, read(vcpu, operation));
            context.set_register(access.rt, access.loaded(value));
        }
        Direction::Write => write(vcpu, operation, order.arrange(operation.size, context.register(access.rt))),
    }
}

/// How the guest's data lies in memory now. Devices are little-endian.
fn byte_order(context: &VcpuContext) -> ByteOrder {
    pstate::byte_order(context.pstate, sysreg::sctlr_el1::read())
}

fn inject(context: &mut VcpuContext, far: Va, kind: AbortKind, direction: Direction) {
    exception::inject(context, |state| inject::data_abort(state, far, kind, direction));
}

/// The size of an access, whose bytes a decoder gave: 1, 2, 4 or 8.
fn size(bytes: u8) -> AccessSize {
    AccessSize::from_bytes(bytes.into()).unwrap_or(AccessSize::Double)
}

/// The Redistributor frame that an offset into their region is in, and the offset within it.
fn frame(offset: u64) -> (VcpuId, u64) {
    (VcpuId((offset / REDISTRIBUTOR_SIZE) as u8), offset % REDISTRIBUTOR_SIZE)
}

fn read(vcpu: &'static Vcpu, operation: &Operation) -> u64 {
    let &Operation { target, size } = operation;
    match target {
        Target::Distributor(offset) => {
            let gic = vcpu.vm.gic.lock();
            let needs = gic.distributor_needs(offset, Direction::Read);
            if needs.is_empty() {
                return gic.distributor_read(offset, size);
            }
            drop(gic);
            synced(vcpu, needs, |gic| gic.distributor_read(offset, size))
        }
        Target::Redistributors(offset) => {
            let (id, offset) = frame(offset);
            let gic = vcpu.vm.gic.lock();
            let needs = gic.redistributor_needs(id, offset, Direction::Read);
            if needs.is_empty() {
                return gic.redistributor_read(id, offset, size);
            }
            drop(gic);
            synced(vcpu, needs, |gic| gic.redistributor_read(id, offset, size))
        }
        Target::Device(place) => {
            let outside = Surroundings::of(vcpu.vm);
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

/// Reads GIC state that list registers hold a part of: this vCPU's are folded in, other vCPUs are asked to do the same
/// first.
fn synced(vcpu: &'static Vcpu, needs: VcpuSet, look: impl Fn(&vgic::Vgic) -> u64) -> u64 {
    let mut others = needs;
    others.remove(vcpu.id);
    vcpu.sync_others(others);
    let mut value = 0;
    vcpu.with_gic(|gic| {
        value = look(gic);
        VcpuSet::EMPTY
    });
    value
}

fn write(vcpu: &'static Vcpu, operation: &Operation, value: u64) {
    let &Operation { target, size } = operation;
    match target {
        Target::Distributor(offset) => vcpu.with_gic(|gic| gic.distributor_write(offset, size, value)),
        Target::Redistributors(offset) => {
            let (id, offset) = frame(offset);
            vcpu.with_gic(|gic| gic.redistributor_write(id, offset, size, value));
        }
        Target::Device(place) => {
            let outside = Surroundings::of(vcpu.vm);
            vcpu.vm.devices.bus().write(place, size, value, &outside);
            tell(vcpu, outside.concerned());
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

/// Carries out an instruction that the syndrome does not describe.
fn without_syndrome(vcpu: &'static Vcpu, context: &mut VcpuContext, far: Va, abort: &DataAbort) -> Result<(), Refusal> {
    let word = fetch(vcpu, context).ok_or(Refusal::Again)?;
    match a64::decode(word) {
        Ok(Instruction::Transfer(transfer)) => transfer_all(vcpu, context, &transfer, far, abort.direction),
        // DC ZVA faults on Device memory (DDI 0487 D7.4.9): as alignment.
        Ok(Instruction::ZeroBlock { rt })
            if abort.direction == Direction::Write && same_block(context.register(rt), far.0) =>
        {
            Err(Refusal::Abort(far, AbortKind::Alignment))
        }
        // Other cache maintenance says in the syndrome that it is that, a prefetch never aborts, and the others access no
        // memory: none of them can have exited like this.
        Ok(Instruction::ZeroBlock { .. } | Instruction::CacheMaintenance { .. } | Instruction::Prefetch)
        | Err(Unsupported::NotMemory) => Err(Refusal::Again),
        Err(reason) => {
            vcpu.vm.report(Level::Debug, format_args!("{word:#010x} at {far} on a device: {reason:?}"));
            let kind = match reason {
                Unsupported::Exclusive | Unsupported::Atomic => AbortKind::UnsupportedAtomic,
                _ => AbortKind::External,
            };
            Err(Refusal::Abort(far, kind))
        }
    }
}

/// Whether two addresses are in one block of DC ZVA, whose size in words DCZID_EL0.BS gives as a power of two.
fn same_block(one: u64, other: u64) -> bool {
    // Without the tags, which are the top byte.
    (one ^ other) << 8 >> 8 >> ((sysreg::dczid_el0() & 0xf) + 2) == 0
}

/// The instruction at the guest's PC. It is read as EL1 reads, which may read whatever is mapped at all, also code that EL0
/// may execute and not read. Instructions are little-endian, whatever data is.
fn fetch(vcpu: &'static Vcpu, context: &VcpuContext) -> Option<u32> {
    let (ipa, _) = translate(vcpu, Va(context.pc), Rights::Kernel, Direction::Read).ok()?;
    let mut bytes = [0_u8; 4];
    read_ram(vcpu, ipa, &mut bytes)?;
    Some(u32::from_le_bytes(bytes))
}

/// Where `transfer` goes with the guest's registers, if it is what was aborted at `far`.
fn resolve(context: &VcpuContext, transfer: &Transfer, far: Va, direction: Direction) -> Result<Resolved, Refusal> {
    let sp = if on_sp_el0(context) { sysreg::sp_el0::read() } else { sysreg::sp_el1::read() };
    let resolved = transfer.resolve(&context.x, sp, context.pc);
    if transfer.explains(&resolved, far, direction) { Ok(resolved) } else { Err(Refusal::Again) }
}

fn on_sp_el0(context: &VcpuContext) -> bool {
    pstate::is_user(context.pstate) || context.pstate & 1 == 0
}

/// Both accesses of a pair, then the registers: nothing changes if either cannot be made, by the guest's own tables and with the
/// rights of this instruction, or is not on a device.
fn transfer_all(
    vcpu: &'static Vcpu,
    context: &mut VcpuContext,
    transfer: &Transfer,
    far: Va,
    direction: Direction,
) -> Result<(), Refusal> {
    let resolved = resolve(context, transfer, far, direction)?;
    let form = if transfer.unprivileged { Form::Unprivileged } else { Form::Plain };
    let rights = rights(context.pstate, form);
    let mut operations = [None, None];
    for (slot, (distance, access)) in operations.iter_mut().zip(transfer.accesses()) {
        let va = Va(resolved.address.0.wrapping_add(distance));
        // An aligned part lies in one page. One that is not faults on Device memory, which begins or ends here.
        if va.0 & u64::from(access.bytes - 1) != 0 {
            return Err(Refusal::Abort(va, AbortKind::Alignment));
        }
        let (ipa, _) = translate(vcpu, va, rights, direction).map_err(|kind| Refusal::Abort(va, kind))?;
        match vcpu.vm.plan.find(ipa) {
            Some(target) => *slot = Some((Operation { target, size: size(access.bytes) }, access)),
            // It is the part that was refused, and now it is elsewhere.
            None if far.0.wrapping_sub(va.0) << 8 >> 8 < access.bytes.into() => return Err(Refusal::Again),
            // Half in RAM, half in a device: no half is done.
            None if vcpu.vm.plan.ram().contains(ipa) => return Err(Refusal::Abort(far, AbortKind::External)),
            None => return Err(Refusal::Abort(va, AbortKind::External)),
        }
    }
    let order = byte_order(context);
    for (operation, access) in operations.iter().flatten() {
        match direction {
            Direction::Read => {
                let value = order.arrange(operation.size, read(vcpu, operation));
                context.set_register(access.rt, access.loaded(value));
            }
            Direction::Write => write(vcpu, operation, order.arrange(operation.size, context.register(access.rt))),
        }
    }
    if let Some((base, value)) = resolved.writeback {
        match base {
            Base::Register(number) => context.set_register(number, value),
            Base::StackPointer if on_sp_el0(context) => sysreg::sp_el0::write(value),
            Base::StackPointer => sysreg::sp_el1::write(value),
            Base::ProgramCounter => {}
        }
    }
    Ok(())
}
