//! What the consoles' thread leaves to a VM's own vCPUs: to continue the devices' work, and to pay for what the thread itself has
//! done for the guest.
//!
//! The thread has its own weight, and a guest chooses how much work the thread has. So the time spent on a guest's output is
//! charged to that guest's vCPUs, as if they had run ([`crate::vcpu`], in `devices.rs`): whatever the guest's weight, it takes no
//! time from others.

use arrayvec::ArrayVec;
use hw::sysreg;
use units::VmId;

use crate::host;
use crate::sched;
use crate::vm::handle::request;
use crate::vm::{self, Vm};

/// How long a VM's devices wait until a vCPU goes on with what they could not finish in one turn, in microseconds.
const TURN_MICROSECONDS: u64 = 5_000;

/// Who has something to do, and from when on it is known for whom the thread has worked.
#[derive(Default)]
pub(super) struct Dues {
    /// VMs whose devices have unfinished work, and when they go on with it.
    unfinished: ArrayVec<(VmId, u64), { abi::bundle::MAX_VMS }>,
    /// The thread's own time up to which somebody was charged for it, or nobody was to be.
    charged_until: u64,
}

impl Dues {
    /// When the next VM's devices are to go on.
    pub(super) fn next_turn(&self) -> Option<u64> {
        self.unfinished.iter().map(|&(_, at)| at).min()
    }

    /// Lets those go on whose turn has come.
    pub(super) fn serve(&mut self, now: u64) {
        while let Some(index) = self.unfinished.iter().position(|&(_, at)| at <= now) {
            let (id, _) = self.unfinished.swap_remove(index);
            if let Some(vm) = vm::by_id(id) {
                self.go_on(vm);
            }
        }
    }

    /// The devices of `vm` go on at their next turn.
    pub(super) fn put_off(&mut self, vm: &Vm) {
        if !self.unfinished.iter().any(|&(id, _)| id == vm.id) {
            let at = sysreg::cntpct_el0().saturating_add(host::ticks(TURN_MICROSECONDS));
            let _ = self.unfinished.try_push((vm.id, at));
        }
    }

    /// It is the turn of the devices of `vm` to go on: a vCPU sees to it, and pays. What a guest gives them to do so costs it its own
    /// CPU time, by its own weight, and it is not done while the VM is paused.
    pub(super) fn go_on(&mut self, vm: &Vm) {
        if let Some(vcpu) = vm.vcpus().iter().find(|vcpu| vcpu.is_on()) {
            vcpu.request(request::DEVICES);
            if vcpu.is_on() {
                return;
            }
        }
        // One that was switched off just now asks again if it has seen the request, so that it may be asked twice but is
        // never forgotten; one that was switched on may not have begun yet.
        if vm.stopped().is_none() {
            self.put_off(vm);
        }
    }

    /// What the thread has done until now was nobody's.
    pub(super) fn charge_nobody(&mut self) {
        self.charged_until = sched::own_run_time();
    }

    /// What it has done since the last time, finding out what there is to do among it, was for `vm`.
    pub(super) fn charge(&mut self, vm: &Vm) {
        let now = sched::own_run_time();
        vm.console.owe(now.saturating_sub(self.charged_until));
        self.charged_until = now;
        self.asks_to_pay(vm);
    }

    /// Whether `vm` has to pay before more is done for it: a vCPU is asked to. One that does not run cannot, and writes nothing.
    pub(super) fn asks_to_pay(&mut self, vm: &Vm) -> bool {
        let asks = vm.console.is_in_debt() && !vm.is_paused() && vm.stopped().is_none();
        if asks {
            self.go_on(vm);
        }
        asks
    }
}
