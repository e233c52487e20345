//! A VM's side of its calls without a driver: VMware's service, where that door is open, and the watchdogs.

extern crate alloc;

use alloc::boxed::Box;

use abi::bundle::Doors as Policy;
use hw::sync::PreemptLock;
use units::Hz;
use vmware::{Limits, Shutdown};

use crate::host::milliseconds;
use crate::vm::Vm;
use crate::vm::watchdog::Watchdogs;

/// A VM's side of the doors.
pub(crate) struct Doors {
    /// VMware's service, where that door is open.
    pub(crate) service: Option<Box<PreemptLock<vmware::Service>>>,
    /// The watchdogs that are set up by calls.
    pub(crate) watchdogs: Watchdogs,
}

impl Doors {
    /// For a VM of this name and policy, with `memory` bytes and a counter of this frequency.
    #[inline(never)]
    #[must_use]
    pub(crate) fn new(name: &str, policy: &Policy, memory: u64, counter: Hz) -> Self {
        let service = policy.vmware.then(|| {
            let config = vmware::Config {
                uuid: uuid(name),
                memory,
                megahertz: megahertz(counter),
                time_sync: policy.time_sync,
                limits: Limits::of(&policy.quota),
                user: policy.user_calls,
                kernel: policy.kernel_calls,
            };
            Box::new(PreemptLock::new(vmware::Service::new(config, milliseconds())))
        });
        Self { service, watchdogs: Watchdogs::new(policy) }
    }

    /// Asks the tools in the guest of `vm`, whose doors these are, to shut it down. Says whether there are any that
    /// can.
    pub(crate) fn ask_to_stop(&self, vm: &Vm, what: Shutdown) -> bool {
        self.service.as_ref().is_some_and(|service| service.lock().ask_to_stop(what, vm.milliseconds()))
    }

    /// `vm`, whose doors these are, is paused: its watchdogs stand still, and nothing is expected of its tools.
    pub(crate) fn pause(&self, vm: &Vm) {
        self.watchdogs.pause(vm);
        if let Some(service) = &self.service {
            service.lock().pause(vm.milliseconds());
        }
    }

    /// `vm`, whose doors these are, goes on.
    pub(crate) fn resume(&self, vm: &Vm) {
        self.watchdogs.resume(vm);
        if let Some(service) = &self.service {
            service.lock().resume(vm.milliseconds());
        }
    }

    /// Its guest's counter has this frequency from now on.
    pub(crate) fn set_counter(&self, counter: Hz) {
        if let Some(service) = &self.service {
            service.lock().set_megahertz(megahertz(counter));
        }
    }

    /// The VM starts afresh.
    pub(crate) fn restart(&self) {
        if let Some(service) = &self.service {
            service.lock().restart();
        }
    }
}

/// A counter's frequency as VMware's calls say it.
fn megahertz(counter: Hz) -> u32 {
    u32::try_from(counter.0 / 1_000_000).unwrap_or(u32::MAX).max(1)
}

/// An identity that depends on the VM's name alone, in the layout of RFC 9562, version 8.
fn uuid(name: &str) -> [u8; 16] {
    let crc = |seed| u64::from(hw::memory::crc32c(seed, name.as_bytes()));
    let high = crc(1) << 32 | crc(2);
    let low = crc(3) << 32 | crc(4);
    let high = high & !0xf000 | 0x8000;
    let low = low & !(3 << 62) | 2 << 62;
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}
