//! The whole VM: its life, exits, bus, calls and time, each through the parts that they have in the hypervisor; and any input.

use abi::bundle::Doors;
use abi::calls::{self, vmware};
use machine::UART_BASE;
use proptest::prelude::*;
use units::VcpuId;
use vm::{Saying, Stop};
use whole_vm::play::{BOUND, play};
use whole_vm::{Cause, Done, VcpuState, WholeVm};

const FIRST: VcpuId = VcpuId(0);
const SECOND: VcpuId = VcpuId(1);
const CPU_ON: u64 = 0xc400_0003;
const CPU_OFF: u64 = 0x8400_0002;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const HVC: Cause = Cause { esr: 0x5a00_0000, far: 0, hpfar: 0 };
const UART_IMSC: u64 = 0x38;
const UART_DR: u64 = 0;
/// The UART's interrupt is SPI 1, bit 1 of the second word.
const ISENABLER_1: u64 = 0x0800_0104;
const ISPENDR_1: u64 = 0x0800_0204;
const SECOND_OF_CLOCK: u64 = 1_000_000;

fn running(policy: Doors) -> WholeVm {
    WholeVm::running(policy, true)
}

/// A load or store of W1 at `at`.
fn access(vm: &mut WholeVm, at: u64, stored: Option<u64>) -> u64 {
    let write = if let Some(value) = stored {
        vm.set_register(FIRST, 1, value);
        1 << 6
    } else {
        0
    };
    let esr = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 1 << 16 | write | 7;
    vm.exit(FIRST, Cause { esr, far: at, hpfar: at >> 12 << 4 });
    vm.register(FIRST, 1)
}

fn call(vm: &mut WholeVm, vcpu: VcpuId, registers: &[u64]) -> u64 {
    for (number, &value) in (0..).zip(registers) {
        vm.set_register(vcpu, number, value);
    }
    vm.exit(vcpu, HVC);
    vm.register(vcpu, 0)
}

#[test]
fn vcpus_are_switched_on_and_off_and_the_last_one_ends_it() {
    let mut vm = running(Doors::default());
    let entry = vm.ram().0 + 0x1000;
    assert_eq!(vm.place(SECOND), VcpuState::Out);
    assert_eq!(call(&mut vm, FIRST, &[CPU_ON, 1, entry, 7]), 0);
    assert_eq!((vm.place(SECOND), vm.register(SECOND, 0)), (VcpuState::In, 7));
    call(&mut vm, FIRST, &[CPU_OFF]);
    assert_eq!((vm.place(FIRST), vm.stopped()), (VcpuState::Out, None));
    call(&mut vm, SECOND, &[CPU_OFF]);
    assert_eq!(vm.stopped(), Some(&Stop::PowerOff));
    vm.start();
    assert_eq!(vm.place(FIRST), VcpuState::In);
    assert_eq!(vm.place(SECOND), VcpuState::Out, "a vCPU of another life");
}

/// An MSR or MRS of X4.
fn debug_register(vm: &mut WholeVm, [op1, crn, crm, op2]: [u64; 4], stored: Option<u64>) -> u64 {
    if let Some(value) = stored {
        vm.set_register(FIRST, 4, value);
    }
    let iss = 2 << 20 | op2 << 17 | op1 << 14 | crn << 10 | 4 << 5 | crm << 1 | u64::from(stored.is_none());
    vm.exit(FIRST, Cause { esr: 0x18 << 26 | 1 << 25 | iss, far: 0, hpfar: 0 });
    vm.register(FIRST, 4)
}

#[test]
fn its_debug_registers_keep_what_it_writes_until_a_reset() {
    let mut vm = running(Doors::default());
    // MDSCR_EL1, MDCCINT_EL1, DBGBVR3_EL1, DBGBCR3_EL1, DBGWVR3_EL1, DBGWCR3_EL1.
    let registers = [[0, 0, 2, 2], [0, 0, 2, 0], [0, 0, 3, 4], [0, 0, 3, 5], [0, 0, 3, 6], [0, 0, 3, 7]];
    let value = |index: u64| 3 << 29 | index << 8;
    let shown = |index: u64| if index == 1 { 3 << 29 } else { value(index) };
    for (index, register) in (0..).zip(registers) {
        debug_register(&mut vm, register, Some(value(index)));
    }
    for (index, register) in (0..).zip(registers) {
        assert_eq!(debug_register(&mut vm, register, None), shown(index), "{register:?}");
    }
    // DBGCLAIMSET_EL1 and DBGCLAIMCLR_EL1.
    let [set, clear] = [[0, 7, 8, 6], [0, 7, 9, 6]];
    debug_register(&mut vm, set, Some(0x1f));
    debug_register(&mut vm, clear, Some(0x0c));
    assert_eq!([set, clear].map(|register| debug_register(&mut vm, register, None)), [0xff, 0x13]);
    vm.take_done();
    // DBGBVR4_EL1: there are four, from number 0.
    debug_register(&mut vm, [0, 0, 4, 4], None);
    assert!(matches!(vm.take_done()[..], [Done::Injected(_)]));
    call(&mut vm, FIRST, &[SYSTEM_RESET]);
    let after = registers.map(|register| debug_register(&mut vm, register, None));
    assert_eq!((after, debug_register(&mut vm, clear, None)), ([0; 6], 0));
}

#[test]
fn it_resets_itself_with_nothing_of_the_life_before() {
    let mut vm = running(Doors::default());
    access(&mut vm, UART_BASE + UART_IMSC, Some(0x10));
    access(&mut vm, ISENABLER_1, Some(2));
    call(&mut vm, FIRST, &[SYSTEM_RESET]);
    assert!(vm.take_done().contains(&Done::Said(Saying::Started)));
    assert_eq!(access(&mut vm, UART_BASE + UART_IMSC, None), 0);
    assert_eq!(access(&mut vm, ISENABLER_1, None), 0);
    call(&mut vm, FIRST, &[SYSTEM_OFF]);
    assert_eq!(vm.stopped(), Some(&Stop::PowerOff));
}

#[test]
fn a_paused_vm_does_nothing() {
    let mut vm = running(Doors::default());
    vm.pause();
    assert_eq!(vm.place(FIRST), VcpuState::Standing);
    vm.take_done();
    vm.exit(FIRST, HVC);
    vm.pass(SECOND_OF_CLOCK);
    assert_eq!(vm.take_done(), []);
    vm.resume();
    assert_eq!(vm.place(FIRST), VcpuState::In);
}

#[test]
fn ram_appears_at_its_first_touch_and_nowhere_else() {
    let mut vm = running(Doors::default());
    let touch = |vm: &mut WholeVm, at: u64| {
        vm.take_done();
        vm.exit(FIRST, Cause { esr: 0x9200_0007, far: at, hpfar: at >> 12 << 4 });
        vm.take_done()
    };
    let ram = vm.ram();
    assert_eq!(touch(&mut vm, ram.0), [Done::Shown(ram)]);
    assert_eq!(touch(&mut vm, ram.0), [Done::Again], "another vCPU was first");
    assert!(matches!(touch(&mut vm, 0x3000_0000)[..], [Done::Injected(_)]));
}

/// A device's line reaches a vCPU as a list register, by way of the bus and the interrupt controller.
#[test]
fn a_byte_for_the_uart_becomes_an_interrupt() {
    let mut vm = running(Doors::default());
    access(&mut vm, 0x0800_0000, Some(2));
    access(&mut vm, ISENABLER_1, Some(2));
    access(&mut vm, UART_BASE + 0x30, Some(0x301));
    access(&mut vm, UART_BASE + 0x2c, Some(0x60));
    access(&mut vm, UART_BASE + UART_IMSC, Some(0x50));
    assert_eq!(access(&mut vm, ISPENDR_1, None) & 2, 0);
    vm.type_in(b"uuuuuuuuuuuuuuuu");
    assert_eq!(access(&mut vm, ISPENDR_1, None) & 2, 2);
    for _ in 0..16 {
        assert_eq!(access(&mut vm, UART_BASE + UART_DR, None) & 0xff, u64::from(b'u'));
    }
    assert_eq!(access(&mut vm, ISPENDR_1, None) & 2, 0, "it is a level");
}

#[test]
fn what_the_guest_prints_is_passed_on_in_its_order() {
    let mut vm = running(Doors::default());
    access(&mut vm, UART_BASE + 0x30, Some(0x301));
    for &byte in b"printed" {
        access(&mut vm, UART_BASE + UART_DR, Some(byte.into()));
    }
    assert_eq!(vm.take_output()[0], b"printed");
}

#[test]
fn every_device_of_the_plan_answers_within_its_width() {
    let mut vm = running(Doors::default());
    for at in [
        0x0800_0000,
        0x080a_0008,
        0x0900_0018,
        0x0901_0000,
        0x0903_0000,
        0x0910_0000,
        0x0912_0000,
        0x0913_0000,
        0x0914_0000,
        0x0915_0000,
        0x0a00_0000,
        0x0a00_0008,
        0,
    ] {
        vm.take_done();
        access(&mut vm, at, None);
        assert!(matches!(vm.take_done()[..], [Done::Completed, Done::Read(..)]), "at {at:#x}");
    }
    assert_eq!(access(&mut vm, 0x0a00_0000, None), 0x7472_6976, "virtio's magic");
}

#[test]
fn both_doors_answer_a_call_where_they_are_open() {
    let version = [vmware::MAGIC.into(), 0, vmware::command::GET_VERSION.into(), vmware::PORT_LOW.into()];
    for (policy, answer) in
        [(Doors { vmware: true, ..Doors::default() }, vmware::VERSION), (Doors::default(), version[0])]
    {
        let mut vm =
            running(Doors { user_calls: WholeVm::every_call(), kernel_calls: WholeVm::every_call(), ..policy });
        for (esr, x7) in [(0x6220_c3e3, calls::marked(calls::LOW)), (0x5a00_0086, calls::LOW.into())] {
            (0..).zip(version).for_each(|(number, value)| vm.set_register(FIRST, number, value));
            vm.set_register(FIRST, 7, x7);
            vm.exit(FIRST, Cause { esr, far: 0, hpfar: 0 });
            let x0 = vm.register(FIRST, 0);
            assert!(x0 == answer || !policy.vmware && x0 == services::NOT_SUPPORTED, "{x0:#x}");
        }
    }
}

#[test]
fn a_watchdog_by_wfe_bites_when_its_time_is_over_and_not_in_a_pause() {
    let mut vm = running(Doors { wfe: true, watchdog_choices: 0x1f, ..Doors::default() });
    let words = [abi::wfe::CONFIGURE, 500, watchdog::Action::Log.number().into()];
    (0..).zip(words).for_each(|(number, value)| vm.set_register(FIRST, number, value));
    vm.exit(FIRST, Cause { esr: 0x07e0_0001, far: 0, hpfar: 0 });
    assert_eq!((vm.register(FIRST, 0), vm.register(FIRST, 1)), (abi::wfe::DONE, 500));
    vm.take_done();
    vm.pass(SECOND_OF_CLOCK / 4);
    vm.pause();
    vm.pass(10 * SECOND_OF_CLOCK);
    vm.resume();
    vm.pass(SECOND_OF_CLOCK / 5);
    assert!(!vm.take_done().iter().any(|done| matches!(done, Done::Bite(_))));
    vm.pass(SECOND_OF_CLOCK / 10);
    assert!(vm.take_done().iter().any(|done| matches!(done, Done::Bite(_))));
}

/// CNTP_CVAL_EL0 and CNTP_CTL_EL0 trap; the timer's line is its PPI, 30.
#[test]
fn a_timer_fires_by_the_guests_clock() {
    let mut vm = running(Doors::default());
    let write = |vm: &mut WholeVm, op2: u64, value: u64| {
        vm.set_register(FIRST, 1, value);
        let iss = 3 << 20 | op2 << 17 | 3 << 14 | 14 << 10 | 1 << 5 | 2 << 1;
        vm.exit(FIRST, Cause { esr: 0x18 << 26 | 1 << 25 | iss, far: 0, hpfar: 0 });
    };
    let is_pending = |vm: &mut WholeVm| access(vm, 0x080b_0200, None) >> 30 & 1;
    write(&mut vm, 2, SECOND_OF_CLOCK);
    write(&mut vm, 1, 1);
    assert_eq!(is_pending(&mut vm), 0);
    vm.pause();
    vm.pass(5 * SECOND_OF_CLOCK);
    vm.resume();
    assert_eq!(is_pending(&mut vm), 0, "its time stood still");
    vm.pass(SECOND_OF_CLOCK);
    assert_eq!(is_pending(&mut vm), 1);
}

#[test]
fn a_vm_that_was_moved_is_the_same_and_goes_on() {
    let mut vm = running(Doors { vmware: true, watchdog_milliseconds: 500, ..Doors::default() });
    access(&mut vm, UART_BASE + UART_IMSC, Some(0x50));
    let entry = vm.ram().0;
    call(&mut vm, FIRST, &[CPU_ON, 1, entry, 7]);
    assert_eq!(vm.save(), None, "it runs");
    vm.pause();
    let saved = vm.save().expect("it stands still");
    let mut other = running(Doors { vmware: true, watchdog_milliseconds: 500, ..Doors::default() });
    call(&mut other, FIRST, &[CPU_ON, 1, entry, 9]);
    other.pause();
    assert_ne!(other.save().as_ref(), Some(&saved));
    other.restore(saved.clone()).expect("it is of the same shape");
    assert_eq!(other.save(), Some(saved));
    other.resume();
    assert_eq!(access(&mut other, UART_BASE + UART_IMSC, None), 0x50);
    assert_eq!(other.register(SECOND, 0), 7);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What the fuzzer runs (`fuzz/targets/whole_vm.rs`), on fewer inputs.
    #[test]
    fn any_input(data in proptest::collection::vec(any::<u8>(), 0..4096)) {
        play(&data);
    }
}

/// The bound is one: what the devices do in a share of work is what most of it is for.
#[test]
fn an_ordinary_exit_is_far_below_the_bound() {
    let mut vm = running(Doors::default());
    vm.take_work();
    access(&mut vm, UART_BASE + UART_IMSC, None);
    assert!(vm.take_work() < BOUND / 1000);
}
