//! A VM's side of its calls without a driver: VMware's service, where that door is open, and the watchdogs.

extern crate alloc;

use alloc::boxed::Box;

use abi::bundle::Doors as Policy;
use backdoor::Limits;
use hw::sync::PreemptLock;
use units::Hz;

use crate::host::milliseconds;
use crate::vm::watchdog::Watchdogs;

/// A VM's side of the doors.
pub(crate) struct Doors {
    /// VMware's service, where that door is open.
    pub(crate) service: Option<Box<PreemptLock<backdoor::Service>>>,
    /// The watchdogs that are set up by calls.
    pub(crate) watchdogs: Watchdogs,
}

impl Doors {
    /// For a VM of this name and policy, with `memory` bytes and a counter of this frequency.
    #[inline(never)]
    #[must_use]
    pub(crate) fn new(name: &str, policy: &Policy, memory: u64, counter: Hz) -> Self {
        let service = policy.vmware.then(|| {
            let config = backdoor::Config {
                uuid: uuid(name),
                memory,
                megahertz: (counter.0 / 1_000_000).max(1) as u32,
                time_sync: policy.time_sync,
                limits: Limits::of(&policy.quota),
                user: policy.user_calls,
                kernel: policy.kernel_calls,
            };
            Box::new(PreemptLock::new(backdoor::Service::new(config, milliseconds())))
        });
        Self { service, watchdogs: Watchdogs::new(policy) }
    }

    /// Asks the tools in the guest to shut it down, or to restart it. Says whether there are any that can.
    pub(crate) fn ask_to_stop(&self, restart: bool) -> bool {
        self.service.as_ref().is_some_and(|service| service.lock().ask_to_stop(restart, milliseconds()))
    }

    /// The VM starts afresh.
    pub(crate) fn restart(&self) {
        if let Some(service) = &self.service {
            service.lock().restart();
        }
    }
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
