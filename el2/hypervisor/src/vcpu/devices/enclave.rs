//! An enclave runs on the thread of the vCPU that has called it: what it takes is its caller's time, it is preempted as that is, and it is
//! interrupted as soon as the vCPU has something else to do.

use abi::enclave::service;
use enclave::{EnclaveRun, EnclaveThread, Leave};
use hw::enclave::{EnclaveContext, EnclaveExit};
use hw::state::read_list_register;
use hw::sync::without_irqs;
use hw::sysreg;

use crate::host;
use crate::vcpu::Vcpu;
use crate::vm::devices::Wait;

/// ESR_EL2.EC of an SVC from AArch64 state.
const SVC: u64 = 0x15;
/// ICH_LR<n>_EL2.State: pending.
const PENDING: u64 = 1 << 62;

impl Vcpu {
    /// Lets the enclave run that is to, if there is one. It is loaded; no lock is held. What the device's work waits for then.
    #[inline(never)]
    pub(super) fn run_enclave(&'static self) -> Option<Wait> {
        let EnclaveRun { slot, thread } = self.vm.devices.take_enclave()?;
        let EnclaveThread { general, stack, pc, flags } = thread;
        let mut context = EnclaveContext { x: general, sp: stack, pc, flags };
        let vttbr = self.vm.ram.lock().enter_enclave(slot);
        let leave = vttbr.map_or(Leave::Faulted, |vttbr| self.run_until_it_leaves(&mut context, vttbr));
        let EnclaveContext { x, sp, pc, flags } = context;
        let run = EnclaveRun { slot, thread: EnclaveThread { general: x, stack: sp, pc, flags } };
        self.vm.devices.enclave_left(self.vm, &run, leave)
    }

    fn run_until_it_leaves(&'static self, context: &mut EnclaveContext, vttbr: u64) -> Leave {
        loop {
            // Looked for with IRQs masked: what comes behind the look ends the run, is taken when IRQs are let in, where the thread may be
            // preempted, and is found by the next look.
            let exit = without_irqs(|| {
                let is_wanted = self.has_requests() || self.has_interrupts();
                (!is_wanted).then(|| hw::enclave::run(context, vttbr))
            });
            match exit {
                None => return Leave::Interrupted,
                Some(EnclaveExit::Interrupt) => {}
                Some(EnclaveExit::SystemError) => {
                    self.inject_serror();
                    return Leave::Interrupted;
                }
                Some(EnclaveExit::Synchronous(syndrome)) => return decode(context, syndrome),
            }
        }
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
    if syndrome >> 26 & 0x3f != SVC {
        return Leave::Faulted;
    }
    match (syndrome & 0xffff) as u16 {
        service::RETURN => Leave::Returned(first),
        service::OUTCALL => Leave::Outcall(first),
        _ => Leave::Faulted,
    }
}
