//! An enclave runs on the thread of the vCPU that has called it: what it takes is its caller's time, it is preempted as that is, and it is
//! interrupted as soon as the vCPU has something else to do.

use core::sync::atomic::Ordering;

use abi::enclave::service;
use enclave::{EnclaveRun, EnclaveThread, Leave};
use hw::enclave::{EnclaveContext, EnclaveExit};
use hw::state::read_list_register;
use hw::sync::without_irqs;
use hw::sysreg;

use crate::host;
use crate::vcpu::Vcpu;
use crate::vm::devices::Wait;
use crate::vm::handle::request;

/// ESR_EL2.EC of an SVC from AArch64 state.
const SVC: u64 = 0x15;
/// Aborts from a lower EL.
const INSTRUCTION_ABORT: u64 = 0x20;
const DATA_ABORT: u64 = 0x24;
/// ICH_LR<n>_EL2.State: pending.
const PENDING: u64 = 1 << 62;

impl Vcpu {
    /// Lets the enclave run that is to, if there is one for this vCPU. It is loaded; no lock is held. How the enclave has left, and what
    /// the device's work waits for then.
    #[inline(never)]
    pub(super) fn run_enclave(&'static self) -> (Option<Leave>, Option<Wait>) {
        let Some(EnclaveRun { slot, thread }) = self.vm.devices.take_enclave(self.id) else { return (None, None) };
        let EnclaveThread { general, stack, pc, flags } = thread;
        let mut context = EnclaveContext { x: general, sp: stack, pc, flags };
        let vttbr = self.vm.ram.lock().enter_enclave(slot);
        let leave = vttbr.map_or(Leave::Failed, |vttbr| self.run_until_it_leaves(&mut context, vttbr));
        let EnclaveContext { x, sp, pc, flags } = context;
        let run = EnclaveRun { slot, thread: EnclaveThread { general: x, stack: sp, pc, flags } };
        (Some(leave), self.vm.devices.enclave_left(self.vm, &run, leave))
    }

    fn run_until_it_leaves(&'static self, context: &mut EnclaveContext, vttbr: u64) -> Leave {
        let mut is_fresh = false;
        loop {
            // Looked for with IRQs masked: what comes behind the look ends the run, is taken when IRQs are let in, where the thread may be
            // preempted, and is found by the next look.
            let exit = without_irqs(|| {
                let is_wanted = self.has_requests() || self.has_interrupts();
                (!is_wanted).then(|| hw::enclave::run(context, vttbr))
            });
            match exit {
                // The devices' work is no reason to end the run: an interrupt that comes of it is.
                None if self.takes_devices_request() => {
                    self.look_after_devices();
                    is_fresh = false;
                }
                // What is in a list register may be over: a timer that its guest has switched off.
                None if !is_fresh && !self.has_requests() => {
                    self.refresh_interrupts();
                    is_fresh = true;
                }
                None => return Leave::Interrupted,
                // IRQs were let in, and are masked at once: without this the CPU need not have looked between the two.
                Some(EnclaveExit::Interrupt) => {
                    sysreg::isb();
                    is_fresh = false;
                }
                Some(EnclaveExit::SystemError) => {
                    self.inject_serror();
                    return Leave::Interrupted;
                }
                Some(EnclaveExit::Synchronous(syndrome)) => return decode(context, syndrome),
            }
        }
    }

    /// Whether nothing is asked of it but to go on with the devices' work; it has to, then.
    fn takes_devices_request(&self) -> bool {
        // Pairs with the addition in `sched::ask`. The bit goes before the devices are polled: one that is set meanwhile is found later.
        self.requests.compare_exchange(request::DEVICES, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether a list register holds something that its guest has not taken yet. IRQs are masked.
    fn has_interrupts(&self) -> bool {
        let count = usize::from(host::get().features.list_registers);
        let free = sysreg::ich_elrsr_el2();
        (0..count).any(|index| free >> index & 1 == 0 && read_list_register(index) & PENDING != 0)
    }
}

fn decode(context: &EnclaveContext, syndrome: u64) -> Leave {
    let [first, ..] = context.x;
    match syndrome >> 26 & 0x3f {
        SVC => {}
        INSTRUCTION_ABORT | DATA_ABORT if is_of_hardware(syndrome & 0x3f) => return Leave::Failed,
        _ => return Leave::Faulted,
    }
    match (syndrome & 0xffff) as u16 {
        service::RETURN => Leave::Returned(first),
        service::OUTCALL => Leave::Outcall(first),
        _ => Leave::Faulted,
    }
}

/// Whether this status code of an abort (ISS.DFSC, IFSC) says that memory or a TLB has failed: a synchronous External abort or parity error,
/// also on a walk, or a conflict in a TLB. What an enclave may access is ordinary memory, so it is not its doing.
const fn is_of_hardware(status: u64) -> bool {
    matches!(status, 0x10..=0x1f | 0x30)
}
