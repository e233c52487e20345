//! How many bytes a VM's state can have: the sum of its parts' maxima, with the quotas of the site file.
//!
//! A file first says which VM it is of. So a state that is larger than any of such a VM is refused by its length alone, before memory
//! is allocated for it; and the memory that a file makes the hypervisor use is bounded by what was set aside for the VM in whose
//! place it runs, which is off meanwhile (`vm::needs`).

use abi::bundle::{Doors, Quota};
use units::MAX_VCPUS;
use vmware::Limits;
use vmware::saved::SavedService;

use crate::file::MOST_OF_MEMORY;

/// The machine, its clock, life, interrupt controller and watchdogs.
const OF_A_VM: usize = 8 << 10;
/// A vCPU.
const OF_A_VCPU: usize = 4 << 10;
/// The devices, whose sections stand as one list of bytes.
pub(crate) const DEVICES: usize = 64 << 10;
/// The state of any VM: the most that a site file can let its guest have.
pub(crate) const STATE: usize = state(
    MAX_VCPUS as u8,
    &Quota {
        channels: *Quota::CHANNELS.end() as u16,
        message: *Quota::MESSAGE.end() as u32,
        keys: *Quota::KEYS.end() as u16,
        store: *Quota::STORE.end() as u32,
        ..Quota::USUAL
    },
);

/// At most so many bytes of the heap are taken to read a file of a VM without VMware's calls: a state with what is made of it, which is
/// kept, or that and a section of memory with what it is compared with. What the calls of others take is set aside for them.
pub const HEAP_TO_READ: usize = 2 * without_calls(MAX_VCPUS as u8) + 2 * MOST_OF_MEMORY;
/// And to write one: a state, and its bytes, which grow by doubling and are copied once.
pub const HEAP_TO_WRITE: usize = 4 * without_calls(MAX_VCPUS as u8);

const fn state(vcpus: u8, quota: &Quota) -> usize {
    without_calls(vcpus) + SavedService::most_bytes(&Limits::of(quota))
}

const fn without_calls(vcpus: u8) -> usize {
    OF_A_VM + vcpus as usize * OF_A_VCPU + DEVICES
}

/// At most so many bytes has the state of a VM with so many vCPUs and these doors.
#[must_use]
pub(crate) const fn of_state(vcpus: u8, doors: &Doors) -> usize {
    if doors.vmware { state(vcpus, &doors.quota) } else { without_calls(vcpus) }
}
