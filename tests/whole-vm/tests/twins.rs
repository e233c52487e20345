//! Two of each kind of device in one VM: each has its own registers, interrupts, time, and place in the saved state.
//!
//! The machine's usual devices are at their usual addresses, and the second of each kind where [`TWINS`] says.

use std::collections::BTreeSet;

use abi::bundle::Doors;
use machine::{DeviceKind, VirtioKind};
use units::VcpuId;
use watchdog::Action;
use whole_vm::{Cause, Done, TWINS, WholeVm};

const FIRST: VcpuId = VcpuId(0);
const SECOND_OF_CLOCK: u64 = 1_000_000;

/// Frames of the first and the second of a kind, and the SPI of the first line of each.
struct Pair {
    at: [u64; 2],
    spi: [u64; 2],
}

fn pair(kind: DeviceKind, first: u64, first_spi: u64) -> Pair {
    let (_, second, spi) = TWINS.into_iter().find(|&(device, ..)| device == kind).expect("there are two");
    Pair { at: [first, second], spi: [first_spi, spi.into()] }
}

fn generic_watchdogs() -> Pair {
    pair(DeviceKind::GenericWatchdog, 0x0910_0000, 10)
}

/// Their timer frames, which are not side by side in the first one's control frame's page.
fn timers() -> Pair {
    let Pair { at: [_, second], spi } = pair(DeviceKind::Timer, 0x0912_0000, 12);
    Pair { at: [0x0913_0000, second + 0x1000], spi }
}

fn clock_pages() -> Pair {
    pair(DeviceKind::ClockPage, 0x0915_0000, 15)
}

/// How many there are of each kind. A kind that is not here does not compile.
macro_rules! kinds {
    (twice: $($twice:ident)*; of virtio: $($virtio:ident)*; once: $($once:ident)*) => {
        const KINDS: &[(DeviceKind, usize)] = &[
            $((DeviceKind::$twice, 2),)*
            $((DeviceKind::Virtio(VirtioKind::$virtio), 2),)*
            $((DeviceKind::$once, 1),)*
        ];
        const _: fn(DeviceKind) = |kind| match kind {
            $(DeviceKind::$twice)|* | $(DeviceKind::Virtio(VirtioKind::$virtio))|* | $(DeviceKind::$once)|* => {}
        };
    };
}

kinds! {
    twice: Pl011 Pl031 Pl061 GenericWatchdog Timer Generation ClockPage Enclave;
    of virtio: Console Entropy Block Net;
    // They answer where there is nothing, and have neither state nor interrupts.
    once: Flash VacantVirtio
}

fn running(action: Action) -> WholeVm {
    let policy = Doors { generic_watchdog: true, watchdog_action: action.number(), ..Doors::default() };
    WholeVm::running(policy, true)
}

/// A load or store of W1 at `at`.
fn access(vm: &mut WholeVm, at: u64, stored: Option<u64>) -> u64 {
    let write = stored.map_or(0, |value| {
        vm.set_register(FIRST, 1, value);
        1 << 6
    });
    let esr = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 1 << 16 | write | 7;
    vm.exit(FIRST, Cause { esr, far: at, hpfar: at >> 12 << 4 });
    vm.register(FIRST, 1)
}

fn read(vm: &mut WholeVm, at: u64) -> u64 {
    access(vm, at, None)
}

fn write(vm: &mut WholeVm, at: u64, value: u64) {
    access(vm, at, Some(value));
}

/// What the interrupt controller says of the lines of both.
fn pending(vm: &mut WholeVm, spi: [u64; 2]) -> [bool; 2] {
    spi.map(|spi| {
        let number = 32 + spi;
        read(vm, 0x0800_0200 + number / 32 * 4) >> (number % 32) & 1 != 0
    })
}

/// They are edges.
fn make_edges(vm: &mut WholeVm, spi: [u64; 2]) {
    for number in spi.map(|spi| 32 + spi) {
        let register = 0x0800_0c00 + number / 16 * 4;
        let others = read(vm, register);
        write(vm, register, others | 2 << (number % 16 * 2));
    }
}

fn bites(vm: &mut WholeVm) -> usize {
    vm.take_done().iter().filter(|done| matches!(done, Done::Bite(_))).count()
}

/// WOR, then WCS.
fn arm_generic_watchdog(vm: &mut WholeVm, at: u64, ticks: u64) {
    write(vm, at + 0x8, ticks);
    write(vm, at, 1);
}

/// CNTP_CVAL, then CNTP_CTL.
fn arm_timer(vm: &mut WholeVm, frame: u64, at: u64) {
    write(vm, frame + 0x24, at >> 32);
    write(vm, frame + 0x20, at & 0xffff_ffff);
    write(vm, frame + 0x2c, 1);
}

/// So the tests of this file and the random ones ask of each kind what it does where there is another: whose interrupt it is, and whose state.
#[test]
fn each_kind_that_interrupts_is_there_twice() {
    let vm = running(Action::Log);
    for &(kind, count) in KINDS {
        let rows: Vec<_> = vm.rows().iter().filter(|row| row.device == kind).collect();
        assert_eq!(rows.len(), count, "{kind:?}: its row in TWINS");
        let lines: BTreeSet<_> = rows.iter().flat_map(|row| &row.lines).map(|line| line.interrupt).collect();
        assert_eq!(lines.len(), rows.iter().map(|row| row.lines.len()).sum(), "{kind:?}: each has lines of its own");
        assert!(count == 2 || lines.is_empty(), "{kind:?} interrupts, so there have to be two");
    }
}

/// One register of each kind that keeps what is written: both devices have their own.
#[test]
fn each_has_registers_of_its_own() {
    let mut vm = running(Action::Log);
    let registers = [
        (DeviceKind::Pl011, 0x0900_0000, 0x38),
        (DeviceKind::Pl031, 0x0901_0000, 0x4),
        (DeviceKind::Pl061, 0x0903_0000, 0x400),
        (DeviceKind::GenericWatchdog, 0x0910_0000, 0x8),
        (DeviceKind::Timer, 0x0912_0000, 0x80),
        (DeviceKind::Virtio(VirtioKind::Console), 0x0a00_0000, 0x70),
        (DeviceKind::Virtio(VirtioKind::Entropy), 0x0a00_0200, 0x70),
        (DeviceKind::Virtio(VirtioKind::Block), 0x0a00_0400, 0x70),
        (DeviceKind::Virtio(VirtioKind::Net), 0x0a00_0600, 0x70),
    ];
    let places = registers.map(|(kind, first, offset)| pair(kind, first, 0).at.map(|at| at + offset));
    for [first, second] in places {
        write(&mut vm, first, 1);
        write(&mut vm, second, 3);
    }
    for [first, second] in places {
        assert_eq!([read(&mut vm, first), read(&mut vm, second)], [1, 3], "at {first:#x} and {second:#x}");
    }
}

#[test]
fn each_generic_watchdog_has_its_own_time_and_interrupt() {
    let mut vm = running(Action::Log);
    let Pair { at: [first, second], spi } = generic_watchdogs();
    arm_generic_watchdog(&mut vm, second, SECOND_OF_CLOCK);
    vm.pass(SECOND_OF_CLOCK / 2);
    arm_generic_watchdog(&mut vm, first, SECOND_OF_CLOCK);
    vm.take_done();
    vm.pass(SECOND_OF_CLOCK * 6 / 10);
    assert_eq!((pending(&mut vm, spi), bites(&mut vm)), ([false, true], 0), "the second one's first signal");
    vm.pass(SECOND_OF_CLOCK / 2);
    assert_eq!((pending(&mut vm, spi), bites(&mut vm)), ([true, true], 0));
    vm.pass(SECOND_OF_CLOCK / 2);
    assert_eq!(bites(&mut vm), 1, "the second one's second signal");
    vm.pass(SECOND_OF_CLOCK / 2);
    assert_eq!(bites(&mut vm), 1, "the first one's");
}

/// Both at once: each acts. What ends the VM does so once.
#[test]
fn two_generic_watchdogs_may_act_together() {
    for (action, expected) in [(Action::Log, 2), (Action::Stop, 1)] {
        let mut vm = running(action);
        generic_watchdogs().at.into_iter().for_each(|at| arm_generic_watchdog(&mut vm, at, SECOND_OF_CLOCK));
        vm.pass(SECOND_OF_CLOCK + 10);
        vm.take_done();
        vm.pass(SECOND_OF_CLOCK + 10);
        assert_eq!(bites(&mut vm), expected, "{action:?}");
    }
}

#[test]
fn each_timer_fires_at_its_own_time() {
    let mut vm = running(Action::Log);
    let Pair { at: [first, second], spi } = timers();
    arm_timer(&mut vm, first, 3 * SECOND_OF_CLOCK);
    arm_timer(&mut vm, second, 2 * SECOND_OF_CLOCK);
    vm.pass(SECOND_OF_CLOCK);
    assert_eq!(pending(&mut vm, spi), [false, false]);
    vm.pass(SECOND_OF_CLOCK);
    assert_eq!(pending(&mut vm, spi), [false, true]);
    // Its own mask takes its own line down.
    write(&mut vm, second + 0x2c, 3);
    vm.pass(SECOND_OF_CLOCK);
    assert_eq!(pending(&mut vm, spi), [true, false]);
}

#[test]
fn a_pause_freezes_each() {
    let mut vm = running(Action::Log);
    let (Pair { at: control_frames, spi: generic_watchdog_spi }, Pair { at: frames, spi: timer_spi }) =
        (generic_watchdogs(), timers());
    control_frames.into_iter().for_each(|at| arm_generic_watchdog(&mut vm, at, SECOND_OF_CLOCK));
    frames.into_iter().for_each(|frame| arm_timer(&mut vm, frame, SECOND_OF_CLOCK));
    vm.pass(SECOND_OF_CLOCK / 2);
    vm.pause();
    vm.take_done();
    vm.pass(20 * SECOND_OF_CLOCK);
    vm.resume();
    vm.pass(SECOND_OF_CLOCK / 4);
    assert_eq!(pending(&mut vm, timer_spi), [false, false]);
    assert_eq!((pending(&mut vm, generic_watchdog_spi), bites(&mut vm)), ([false, false], 0));
    vm.pass(SECOND_OF_CLOCK / 2);
    assert_eq!((pending(&mut vm, timer_spi), pending(&mut vm, generic_watchdog_spi)), ([true, true], [true, true]));
}

#[test]
fn each_clock_page_tells_that_the_time_was_set() {
    let mut vm = running(Action::Log);
    let Pair { at, spi } = clock_pages();
    make_edges(&mut vm, spi);
    // GICD_ICPENDR: what was told at the start.
    for number in spi.map(|spi| 32 + spi) {
        write(&mut vm, 0x0800_0280 + number / 32 * 4, 1 << (number % 32));
    }
    assert_eq!(pending(&mut vm, spi), [false, false]);
    let sequences = |vm: &mut WholeVm| at.map(|at| read(vm, at + 12));
    let before = sequences(&mut vm);
    vm.set_time();
    assert_eq!(sequences(&mut vm), before.map(|count| count + 2));
    assert_eq!(pending(&mut vm, spi), [true, true]);
    // Each shows what it says in a page of its own.
    let shown = at.map(|at| vm.shown_page(at).expect("the guest sees it"));
    assert_eq!(shown.map(|words| words[1] >> 32), sequences(&mut vm));
}

/// There is one button, and the first GPIO controller has it.
#[test]
fn the_power_button_is_at_the_first() {
    let mut vm = running(Action::Log);
    let Pair { at, .. } = pair(DeviceKind::Pl061, 0x0903_0000, 7);
    let levels = |vm: &mut WholeVm| at.map(|at| read(vm, at + (8 << 2)));
    let before = levels(&mut vm);
    vm.press(true);
    let [first, second] = levels(&mut vm);
    assert_ne!(first, before[0]);
    assert_eq!(second, before[1]);
}

#[test]
fn each_is_saved_and_restored_in_its_own_place() {
    let mut vm = running(Action::Log);
    let [first, second] = generic_watchdogs().at;
    arm_generic_watchdog(&mut vm, first, 3 * SECOND_OF_CLOCK);
    arm_generic_watchdog(&mut vm, second, SECOND_OF_CLOCK);
    let [_, frame] = timers().at;
    arm_timer(&mut vm, frame, SECOND_OF_CLOCK);
    vm.pause();
    let saved = vm.save().expect("it stands still");
    let mut other = running(Action::Log);
    arm_generic_watchdog(&mut other, first, SECOND_OF_CLOCK / 8);
    other.pause();
    other.restore(saved.clone()).expect("it is of the same shape");
    assert_eq!(other.save(), Some(saved));
    other.resume();
    assert_eq!([first, second].map(|at| read(&mut other, at + 0x8)), [3 * SECOND_OF_CLOCK, SECOND_OF_CLOCK]);
    other.pass(SECOND_OF_CLOCK * 3 / 2);
    assert_eq!(pending(&mut other, generic_watchdogs().spi), [false, true]);
    assert_eq!(pending(&mut other, timers().spi), [false, true]);
}

#[test]
fn a_reset_forgets_each() {
    const SYSTEM_RESET: u64 = 0x8400_0009;
    let mut vm = running(Action::Log);
    let frames = timers().at;
    generic_watchdogs().at.into_iter().for_each(|at| arm_generic_watchdog(&mut vm, at, SECOND_OF_CLOCK));
    frames.into_iter().for_each(|frame| arm_timer(&mut vm, frame, SECOND_OF_CLOCK));
    vm.set_register(FIRST, 0, SYSTEM_RESET);
    vm.exit(FIRST, Cause { esr: 0x5a00_0000, far: 0, hpfar: 0 });
    vm.take_done();
    for at in generic_watchdogs().at {
        assert_eq!((read(&mut vm, at), read(&mut vm, at + 0x8)), (0, 0));
    }
    for frame in frames {
        assert_eq!(read(&mut vm, frame + 0x2c) & 1, 0);
    }
    vm.pass(5 * SECOND_OF_CLOCK);
    assert_eq!(pending(&mut vm, timers().spi), [false, false]);
    assert_eq!((pending(&mut vm, generic_watchdogs().spi), bites(&mut vm)), ([false, false], 0));
}
