//! The places where an image with checks may observe or disturb the hypervisor. The image that ships does nothing there.
//!
//! It is a type, not a table of functions: each image is compiled with its own, and [`Nothing`] leaves no instruction behind, nor
//! a word in memory. `cargo xtask test` looks for that.

use cpu::id::HostIds;
use hw::speculation::Means;
use platform::Platform;

use crate::vcpu::Vcpu;

/// What an image does beside being a hypervisor.
pub trait Checks: 'static {
    /// The host's boot arguments are `text`. Nothing but the boot CPU runs yet.
    fn read(text: &str) {
        let _ = text;
    }

    /// Whether `word` of the boot arguments means something to the checks.
    #[must_use]
    fn knows(word: &str) -> bool {
        let _ = word;
        false
    }

    /// Of so many CPUs beside the boot CPU, how many are started.
    #[must_use]
    fn cpus_to_start(others: usize) -> usize {
        others
    }

    /// A CPU that was started says by these registers what it has. What is believed of that.
    #[must_use]
    fn identification(ids: HostIds) -> HostIds {
        ids
    }

    /// A CPU joins that needs these means against its predictors. Which it uses.
    #[must_use]
    fn against_prediction(needed: Means) -> Means {
        needed
    }

    /// Whether ICC_DIR_EL1 traps by itself here. Whether that is used.
    #[must_use]
    fn deactivation_trap(exists: bool) -> bool {
        exists
    }

    /// Whether the host runs something else than VMs, which is started here and runs once the caller is the idle thread.
    #[must_use]
    fn replace_vms(platform: &Platform<'static>) -> bool {
        let _ = platform;
        false
    }

    /// The heap is to hold `bytes` for VMs. How many it gets.
    #[must_use]
    fn heap(bytes: u64) -> u64 {
        bytes
    }

    /// The VMs are made, and started.
    fn vms_are_made() {}

    /// The registers of `vcpu` are as after power on; it is not loaded.
    fn vcpu_is_reset(vcpu: &Vcpu) {
        let _ = vcpu;
    }

    /// An exit is handled next, with IRQs let in. They are masked still.
    fn before_handler() {}

    /// An interrupt arrived in EL2, which will go on at `return_address`. IRQs are masked.
    fn interrupted(return_address: u64) {
        let _ = return_address;
    }

    /// The interrupt was handled. IRQs are masked.
    fn interrupt_is_handled() {}

    /// The running thread is preempted next, if anybody has a better claim to the CPU. IRQs are masked.
    fn before_preemption(place: Place) {
        let _ = place;
    }
}

/// Where a thread is preempted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In EL2, by an interrupt, at once.
    AtOnce,
    /// In EL2, at the end of what had to be finished first: listed code, or the last lock that the thread held.
    Deferred,
    /// Between an exit of its guest's and its next entry.
    BetweenExits,
}

/// What the image that ships does beside being a hypervisor.
pub struct Nothing;

impl Checks for Nothing {}
