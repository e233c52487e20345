//! The short path: exits that are answered from the registers alone (ARCHITECTURE.md, "The path of an exit").
//!
//! Runs in the exit hook, on the vCPU thread's stack with IRQs masked. Takes no lock that another VM could hold, but
//! the scheduler's: for a WFE that gives the CPU away, for the host's interrupts, to wake the consoles' thread. Allocates nothing, logs
//! nothing. Its length in instructions is promised in SPECIFICATION.md.

use abi::calls::arm;
use cpu::exit::class;
use cpu::{id, pstate};
use hw::sysreg;
use hw::vcpu::{VcpuContext, exit_kind};
use services::{SUCCESS, psci};
use units::Va;

use crate::exit::{doors, interrupts, stage1};
use crate::host::{self, speculation};
use crate::sched;
use crate::vcpu::exception::complete;
use crate::vcpu::{self, Vcpu};
use crate::vm::counters::{self, Reason};

/// The fields of a data abort's syndrome that must have one value for the short path: ISV, SAS, SSE, FnV, EA, CM, S1PTW,
/// WnR and the kind of fault (DDI 0487 D24.2.40): a complete 32-bit load by a translation fault, no more to it.
const LOAD_MASK: u64 = 1 << 24 | 3 << 22 | 1 << 21 | 1 << 10 | 1 << 9 | 1 << 8 | 1 << 7 | 1 << 6 | 0x3c;
const LOAD_WORD: u64 = 1 << 24 | 2 << 22 | 0x04;
/// The same for an access of any size and direction.
const ACCESS_MASK: u64 = LOAD_MASK & !SIZE & !WRITE;
const ACCESS: u64 = 1 << 24 | 0x04;
/// ISS.SAS, of which all ones are a doubleword, and ISS.WnR.
const SIZE: u64 = 3 << 22;
const WRITE: u64 = 1 << 6;
/// In the syndrome of a trapped MSR or MRS: op0 is 3, not 2 (of the two, only the lowest bit differs).
const OP0_IS_3: u64 = 1 << 20;
/// A trapped MSR or MRS, but for its register Rt.
const SYSREG_MASK: u64 = 0x1ff_ffff & !(31 << 5);
/// ISS.TI of a trapped WFE.
const WAIT_FOR_EVENT: u64 = 1;
/// MSR ICC_SGI1R_EL1, S3_0_C12_C11_5.
const SGI1R_WRITE: u64 = 3 << 20 | 5 << 17 | 12 << 10 | 11 << 1;
/// MRS CNTPCT_EL0, S3_3_C14_C0_1, and CNTVCT_EL0, CNTPCTSS_EL0 and CNTVCTSS_EL0, which have another op2: op1 and CRn, then CRm
/// and the direction, one after the other because each fits into a comparison. Nothing else that traps has those numbers:
/// CNTFRQ_EL0 traps nowhere.
const TIMERS: u64 = 3 << 4 | 14;
const COUNT_READ: u64 = 1;

/// Answers the exit and returns 0, or returns `kind` to leave it to the vCPU's thread.
#[inline(always)]
pub fn on_exit(context: &mut VcpuContext, kind: u64) -> u64 {
    let Some(vcpu) = vcpu::by_index(context.owner) else { return kind };
    match kind {
        exit_kind::SYNCHRONOUS => match synchronous(vcpu, context) {
            Answer::Done => 0,
            Answer::Rested => look_around(vcpu),
            Answer::NotHere => kind,
        },
        exit_kind::INTERRUPT => {
            vcpu.counters.count(Reason::Interrupt);
            interrupts::handle_from_guest(vcpu);
            look_around(vcpu)
        }
        kind => kind,
    }
}

/// What became of a synchronous exit here.
enum Answer {
    /// It was answered.
    Done,
    /// It was answered, and others may have run meanwhile.
    Rested,
    /// It is for the long path.
    NotHere,
}

impl From<bool> for Answer {
    #[inline(always)]
    fn from(answered: bool) -> Self {
        if answered { Self::Done } else { Self::NotHere }
    }
}

/// Enters the guest again, unless something was asked of the vCPU or its CPU is wanted: the thread then looks at that.
#[inline(always)]
fn look_around(vcpu: &'static Vcpu) -> u64 {
    if vcpu.has_requests() || sched::wants_reschedule() { exit_kind::INTERRUPT } else { 0 }
}

/// Answers a synchronous exit, if it is one of the simple ones.
#[inline(always)]
fn synchronous(vcpu: &'static Vcpu, context: &mut VcpuContext) -> Answer {
    let syndrome = context.syndrome;
    if counters::is_timed() {
        return Answer::NotHere;
    }
    let answered = match (syndrome >> 26) as u8 {
        class::HVC64 if syndrome & 0xffff == 0 => {
            let [function, ..] = &mut context.x;
            *function = match *function as u32 {
                // As on the long path.
                arm::PSCI_VERSION => psci::VERSION,
                arm::SMCCC_VERSION => arm::SMCCC_1_1.into(),
                function if speculation::work_around(function) => SUCCESS,
                _ => return Answer::NotHere,
            };
            vcpu.counters.count(Reason::Hvc);
            true
        }
        class::SYSTEM_REGISTER => {
            let Some(index) = id::index_of_syndrome(syndrome) else {
                if syndrome & OP0_IS_3 == 0 {
                    return doors::null_call(vcpu, context).into();
                }
                if syndrome >> 10 & 0x7f == TIMERS {
                    if syndrome & 0x1f != COUNT_READ {
                        return Answer::NotHere;
                    }
                    count(vcpu, context);
                    return Answer::Done;
                }
                let answered = syndrome & SYSREG_MASK == SGI1R_WRITE && self_sgi(vcpu, context);
                return answered.into();
            };
            let value = host::get().guest_ids.get(index);
            context.set_register((syndrome >> 5 & 31) as u8, value);
            complete(context);
            vcpu.counters.count(Reason::IdRegister);
            true
        }
        class::DATA_ABORT_LOWER => {
            distributor_read(vcpu, context) || uart(vcpu, context) || memory_count(vcpu, context)
        }
        class::HVC64 if syndrome & 0xffff == u64::from(abi::calls::MARK) => doors::null_hvc(vcpu, context),
        class::WFX => return wait(vcpu, context),
        class::SMC64 if syndrome & 0xffff == 0 && speculation::work_around(context.x[0] as u32) => {
            context.x[0] = SUCCESS;
            complete(context);
            vcpu.counters.count(Reason::Smc);
            true
        }
        class::FLOATING_POINT => {
            vcpu.load_fp();
            vcpu.counters.count(Reason::FloatingPoint);
            true
        }
        _ => false,
    };
    answered.into()
}

/// A WFE that is no request to us, or the WFE channel's simplest one. WFI takes the long path.
///
/// It ends early, as every WFE may. Where others may want the CPU, they get it first: the thread gives it away right here,
/// on its own stack, and goes on from here.
#[inline(always)]
fn wait(vcpu: &'static Vcpu, context: &mut VcpuContext) -> Answer {
    if context.syndrome & 3 != WAIT_FOR_EVENT {
        return Answer::NotHere;
    }
    match doors::word(vcpu, context) {
        doors::Word::None if vcpu.gives_way() => {
            complete(context);
            vcpu.counters.count(Reason::Wfe);
            give_way(vcpu);
            Answer::Rested
        }
        doors::Word::None => {
            complete(context);
            vcpu.counters.count(Reason::Wfe);
            Answer::Done
        }
        doors::Word::Detect => {
            doors::answer_detection(vcpu, context);
            complete(context);
            vcpu.counters.count(Reason::Call);
            Answer::Done
        }
        doors::Word::Other => Answer::NotHere,
    }
}

/// Gives the CPU away, and has the vCPU's registers loaded when it is back. Not inlined, for the reason of [`self_sgi`].
#[inline(never)]
fn give_way(vcpu: &'static Vcpu) {
    if sched::yield_on_short_path() {
        vcpu.go_on();
    }
}

/// Whether it is EL1 that accesses a device, and little-endian.
#[inline(always)]
fn is_plain(state: u64) -> bool {
    pstate::is_kernel(state) && sysreg::sctlr_el1::read() & pstate::SCTLR_EE == 0
}

/// A device's access is done, and the guest goes on behind it.
#[inline(always)]
fn device_answered(vcpu: &'static Vcpu, context: &mut VcpuContext, state: u64) -> bool {
    context.skip_instruction();
    context.pstate = pstate::after_a64_instruction(state);
    vcpu.counters.count(Reason::Device);
    true
}

/// A load of a Distributor register whose value does not depend on list registers, by EL1, little-endian, and not at the begin
/// of a page, where an access may end that began in the page before (`begins_at` of [`::vm::mmio`]).
#[inline(never)]
fn distributor_read(vcpu: &'static Vcpu, context: &mut VcpuContext) -> bool {
    let (syndrome, state) = (context.syndrome, context.pstate);
    let far = sysreg::far_el2();
    if syndrome & LOAD_MASK != LOAD_WORD || !is_plain(state) || far & 3 != 0 || far & 0xfff == 0 {
        return false;
    }
    let ipa = (sysreg::hpfar_el2() & 0x0fff_ffff_fff0) << 8;
    let offset = ipa.wrapping_sub(machine::DISTRIBUTOR.start.0) | far & 0xfff;
    if offset >= machine::DISTRIBUTOR.size {
        return false;
    }
    let gic = vcpu.vm.gic.lock_masked();
    if !gic.distributor_needs(offset, vgic::Direction::Read).is_empty() {
        return false;
    }
    let value = gic.distributor_read(offset, vgic::AccessSize::Word);
    drop(gic);
    context.set_register((syndrome >> 16 & 31) as u8, value);
    device_answered(vcpu, context, state)
}

/// What a driver of the UART that polls does for each byte of a console: a look at UARTFR, a byte into UARTDR. Half a million
/// instructions of a booting Linux are two hundred such exits, so they take no lock but the VM's own, and only if it is free.
#[inline(never)]
fn uart(vcpu: &'static Vcpu, context: &mut VcpuContext) -> bool {
    let (syndrome, state) = (context.syndrome, context.pstate);
    let far = sysreg::far_el2();
    let ipa = (sysreg::hpfar_el2() & 0x0fff_ffff_fff0) << 8;
    if syndrome & ACCESS_MASK != ACCESS || ipa != machine::UART_BASE || syndrome & SIZE == SIZE || !is_plain(state) {
        return false;
    }
    let register = (syndrome >> 16 & 31) as u8;
    match (far & 0xfff, syndrome & WRITE != 0) {
        (devices::PL011_FR, false) => {
            let Some(flags) = vcpu.vm.devices.uart_flags() else { return false };
            // All of its flags are in the lowest byte, and nothing is extended by its sign: the size does not matter.
            context.set_register(register, flags);
        }
        // More than a byte at the begin of a page may have begun in the page before, which the long path sees (`begins_at` of `::vm::mmio`).
        (devices::PL011_DR, true) if syndrome & SIZE == 0 || !stage1::may_be_normal(Va(far.wrapping_sub(1))) => {
            let byte = context.register(register) as u8;
            if !vcpu.vm.devices.transmit_quickly(vcpu.vm, byte) {
                return false;
            }
        }
        _ => return false,
    }
    device_answered(vcpu, context, state)
}

/// A word of the memory-mapped timer's counters, of which Linux reads three for each look at its clock, where that is its clock.
/// Not the first one, at the begin of the page, for the reason of [`distributor_read`].
#[inline(never)]
fn memory_count(vcpu: &'static Vcpu, context: &mut VcpuContext) -> bool {
    let (syndrome, state) = (context.syndrome, context.pstate);
    let offset = sysreg::far_el2() & 0xfff;
    if (sysreg::hpfar_el2() & 0x0fff_ffff_fff0) << 8 != machine::TIMER_BASE
        || syndrome & LOAD_MASK != LOAD_WORD
        || !matches!(offset, 0x4 | 0x8 | 0xc)
        || !is_plain(state)
    {
        return false;
    }
    let Some(value) = vcpu.vm.devices.timer_word(offset, vcpu.count()) else { return false };
    context.set_register((syndrome >> 16 & 31) as u8, value);
    device_answered(vcpu, context, state)
}

/// A read of a counter that traps: of the physical one, where the CPU has no CNTPOFF_EL2, and of both where the guest's time
/// is scaled.
#[inline(always)]
fn count(vcpu: &'static Vcpu, context: &mut VcpuContext) {
    context.set_register((context.syndrome >> 5 & 31) as u8, vcpu.count());
    complete(context);
    vcpu.counters.count(Reason::SystemRegister);
}

/// An SGI that a vCPU sends to itself alone, as kernels do to leave a context: into a free list register. Not inlined, nor is
/// [`distributor_read`], so that shorter exits do not pay for the registers that they need.
#[inline(never)]
fn self_sgi(vcpu: &'static Vcpu, context: &mut VcpuContext) -> bool {
    let value = context.register((context.syndrome >> 5 & 31) as u8);
    if !vcpu.send_sgi_to_self(value) {
        return false;
    }
    complete(context);
    vcpu.counters.count(Reason::SystemRegister);
    true
}
