//! The part of devices' work that a vCPU does, on its own thread's time: the guest pays for the work that its queues
//! cause.

use ::enclave::Leave;

use crate::sched;
use crate::vcpu::Vcpu;
use crate::vm::devices::Wait;

/// How often the vCPU that notifies a device lets it go on at once; blocks of memory that are made ready for it do not count,
/// as a VM has only so many.
const TURNS: u32 = 64;

mod enclave;

impl Vcpu {
    /// Goes on with the devices' work that it has begun, on its thread's own time, which may be preempted between two pieces.
    #[inline(never)]
    pub(crate) fn carry_on(&'static self, mut wait: Wait) {
        let vm = self.vm;
        self.pay();
        let mut turns = TURNS;
        // Nothing but an enclave waits, as far as is known: the device that asked for it knows what is left behind its run.
        let is_alone = wait == Wait::Enclave;
        loop {
            let next = match wait {
                Wait::Memory(missing) => {
                    vm.touch(missing);
                    None
                }
                // A ring of calls is as endless as one of buffers.
                Wait::Turn | Wait::Enclave if turns == 0 => break,
                Wait::Turn => {
                    turns -= 1;
                    None
                }
                Wait::Enclave => {
                    turns -= 1;
                    let (leave, next) = self.run_enclave();
                    if is_alone && next.is_none() {
                        return;
                    }
                    // First the guest takes what has interrupted the call: the next one would end by the same, without having begun.
                    if leave == Some(Leave::Interrupted) {
                        break;
                    }
                    next
                }
            };
            if self.is_called_off() {
                break;
            }
            match next.or_else(|| vm.devices.poll(vm)) {
                Some(next) => wait = next,
                None => return,
            }
        }
        vm.console.ask_for_turn();
    }

    /// Does what is to be done for the devices while this vCPU lets an enclave run, which does not end by that: not more than one piece, and
    /// what is left is put off.
    fn look_after_devices(&self) {
        self.pay();
        let vm = self.vm;
        if let Some(wait) = vm.devices.poll(vm) {
            if let Wait::Memory(missing) = wait {
                vm.touch(missing);
            }
            vm.console.ask_for_turn();
        }
    }

    /// Pays for what the console's thread has done for the guest: as if this thread had run for as long. So all that a guest has
    /// done for it comes out of its share, whatever its weight and the others' are.
    fn pay(&self) {
        let owed = self.vm.console.take_owed();
        if owed > 0 {
            sched::charge(owed);
        }
    }
}
