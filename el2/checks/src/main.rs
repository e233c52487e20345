//! The hypervisor with checks of itself, which must not be in the image that ships: checks on the machine itself, and of how its
//! own faults end. The words of its command line ([`abi::check_arguments`]) choose one; without any it is the plain hypervisor.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod crash_test;
mod devices;
mod disturbance;
mod hunger;
mod link_cost;
mod mailboxes;
mod predictors;
mod scrub;
mod selftest;
mod switch_cost;
mod transfer_cost;
mod wander;

use abi::calls::arm::SMCCC_ARCH_WORKAROUND_1;
use abi::check_arguments::{CheckArguments, SelfTest};
use cpu::id::{HostIds, fields};
use hw::percpu::this_cpu;
use hw::speculation::Means;
use platform::Platform;
use spin::Once;
use undercroft::exit::checks::{Checks, Place};
use undercroft::vcpu::Vcpu;
use units::CpuId;

static ARGUMENTS: Once<CheckArguments> = Once::new();

fn arguments() -> CheckArguments {
    ARGUMENTS.get().copied().unwrap_or_default()
}

/// Another feature for each CPU beside the one that booted: QEMU's machines have CPUs of one kind only.
fn unlike(ids: &mut HostIds, cpu: CpuId) {
    let field = match cpu {
        // Keys for pointer authentication, which are switched; activity monitors, which trap; nothing but instructions.
        CpuId(1) => fields::ISAR2_APA3,
        CpuId(2) => fields::PFR0_AMU,
        _ => fields::MMFR1_PAN,
    };
    let value = if ids.field(field) == 0 { 1 } else { 0 };
    ids.set_field(field, value);
}

/// What this image does beside being a hypervisor.
pub(crate) struct Image;

impl Checks for Image {
    fn read(text: &str) {
        let arguments = *ARGUMENTS.call_once(|| CheckArguments::parse(text));
        log::info!("this image has checks of the hypervisor in it, and can be told to crash: it is for tests alone");
        if arguments.calls_firmware {
            log::info!("speculation: every exit calls firmware, as the boot argument vectors=calling wants it");
        }
        if arguments.used_cpus {
            hw::selftest::leave_interrupts();
        }
        if arguments.tdcc_in_hardware {
            log::warn!("guests' MDSCR_EL1.TDCC reaches the hardware: no process of theirs can call");
        }
    }

    fn knows(word: &str) -> bool {
        CheckArguments::knows(word)
    }

    fn cpus_to_start(others: usize) -> usize {
        // These start others themselves.
        match arguments().selftest {
            SelfTest::PerCpu => others.saturating_sub(1),
            SelfTest::Mailboxes => 0,
            _ => others,
        }
    }

    fn identification(mut ids: HostIds) -> HostIds {
        if arguments().unlike_cpus {
            unlike(&mut ids, this_cpu().cpu);
        }
        if arguments().used_cpus {
            hw::selftest::leave_interrupts();
        }
        ids
    }

    fn against_prediction(needed: Means) -> Means {
        if arguments().calls_firmware { Means::Call(SMCCC_ARCH_WORKAROUND_1) } else { needed }
    }

    fn deactivation_trap(exists: bool) -> bool {
        exists && !arguments().traps_in_common
    }

    fn replace_vms(platform: &Platform<'static>) -> bool {
        let cpus = platform.cpus.len();
        match arguments().selftest {
            SelfTest::No | SelfTest::Transfer | SelfTest::Wander | SelfTest::Scrub | SelfTest::Hunger => return false,
            SelfTest::PerCpu => selftest::start(selftest::run, cpus),
            SelfTest::Mailboxes => mailboxes::start(platform),
            SelfTest::Switch => selftest::start(switch_cost::run, cpus),
            // Where there are VMs it crashes beside them.
            SelfTest::Crash(_) if platform.initrd.is_some() => return false,
            SelfTest::Crash(crash) => selftest::start(crash_test::run, crash as usize),
        }
        true
    }

    fn heap(bytes: u64) -> u64 {
        if arguments().small_heap { 0 } else { bytes }
    }

    fn vms_are_made() {
        match arguments().selftest {
            SelfTest::Transfer => transfer_cost::start(),
            SelfTest::Wander => wander::start(),
            SelfTest::Scrub => scrub::start(),
            SelfTest::Hunger => selftest::start(hunger::run, 0),
            SelfTest::Crash(crash) => selftest::start(crash_test::run, crash as usize),
            SelfTest::No | SelfTest::PerCpu | SelfTest::Mailboxes | SelfTest::Switch => {}
        }
    }

    fn vcpu_is_reset(vcpu: &Vcpu) {
        if arguments().tdcc_in_hardware {
            // What a hypervisor without a virtual MDSCR_EL1 would do: TDCC keeps processes from calling. A test of the tests
            // asks for it, to see that they would notice.
            vcpu.with_state(|state| state.controls.mdscr_withheld = 0);
        }
    }

    #[inline(always)]
    fn before_handler() {
        wander::disturb();
    }

    fn interrupted(return_address: u64) {
        disturbance::note_interrupt(return_address);
    }

    fn interrupt_is_handled() {
        disturbance::echo();
    }

    fn before_preemption(place: Place) {
        disturbance::note_preemption(place);
        wander::note_preemption(place);
        disturbance::send_restless();
    }
}

hw::entry!(undercroft::boot::main::<crate::Image>, undercroft::exit::fast::on_exit);
