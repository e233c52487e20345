//! The short path: exits that are answered from the registers alone (design, section 3).
//!
//! Runs in the exit hook, on the vCPU thread's stack with IRQs masked. Takes no lock that another VM could hold,
//! allocates nothing, logs nothing; its length in instructions is promised in SPECIFICATION.md.

use cpu::exit::class;
use cpu::{id, pstate};
use hw::vcpu::{VcpuContext, exit_kind};
use services::psci;

use crate::stats::Reason;
use crate::vcpu::{self, Vcpu};
use crate::{host, interrupts, sched, stats};

/// SMCCC_VERSION and its answer (DEN0028); the long path gives the same.
const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_1_1: u64 = 0x1_0001;

/// Answers the exit and returns 0, or returns `kind` to leave it to the vCPU's thread.
pub(crate) extern "C" fn on_exit(context: &mut VcpuContext, kind: u64) -> u64 {
    let Some(vcpu) = vcpu::by_index(context.owner) else { return kind };
    match kind {
        exit_kind::SYNCHRONOUS if synchronous(vcpu, context) => 0,
        exit_kind::INTERRUPT => {
            vcpu.counters.count(Reason::Interrupt);
            interrupts::handle_from_guest(vcpu);
            if vcpu.has_requests() || sched::wants_reschedule() { kind } else { 0 }
        }
        kind => kind,
    }
}

/// Answers a synchronous exit, if it is one of the simple ones.
#[inline(always)]
fn synchronous(vcpu: &'static Vcpu, context: &mut VcpuContext) -> bool {
    let syndrome = context.syndrome;
    if stats::is_timed() {
        return false;
    }
    match (syndrome >> 26) as u8 {
        class::HVC64 if syndrome & 0xffff == 0 => {
            let [function, ..] = &mut context.x;
            *function = match *function as u32 {
                psci::PSCI_VERSION => psci::VERSION,
                SMCCC_VERSION => SMCCC_1_1,
                _ => return false,
            };
            vcpu.counters.count(Reason::Hvc);
            true
        }
        class::SYSTEM_REGISTER => {
            let Some(index) = id::index_of_syndrome(syndrome) else { return false };
            let value = host::get().guest_ids.get(index);
            context.set_register((syndrome >> 5 & 31) as u8, value);
            context.skip_instruction();
            context.pstate = pstate::after_instruction(context.pstate);
            vcpu.counters.count(Reason::IdRegister);
            true
        }
        class::FLOATING_POINT => {
            vcpu.load_fp();
            vcpu.counters.count(Reason::FloatingPoint);
            true
        }
        _ => false,
    }
}
