//! What an access that stage 2 refused leads to, by what the CPU says about it and what is there.

use cpu::exit::{DataAbort, InstructionAbort};
use cpu::inject::AbortKind;
use machine::{RAM_BASE, UART_BASE};
use proptest::prelude::*;
use units::{Ipa, Va};

use super::{Course, Fetch, data, fetch};
use crate::mmio::Registers;
use crate::mmio::tests::{CODE, Fake, KERNEL, with_x3};

/// ESR_EL2 of a data abort from a lower level: a load, its status Translation, level 3.
const LOAD: u64 = 0x9200_0007;
/// DFSC of a permission fault, level 3.
const PERMISSION: u64 = 0xf;
const STATUS: u64 = 0x3f;
const ON_WALK: u64 = 1 << 7;
const MAINTENANCE: u64 = 1 << 8;
const STORE: u64 = 1 << 6;

fn course(esr: u64, far: u64, ipa: u64) -> Course {
    course_of(&Fake::new(0), esr, far, ipa)
}

fn course_of(guest: &Fake, esr: u64, far: u64, ipa: u64) -> Course {
    let x = with_x3(0);
    let registers = Registers { x: &x, pc: CODE, pstate: KERNEL };
    data(guest, registers, Va(far), &DataAbort::decode(esr, far, ipa >> 8))
}

#[test]
fn what_is_there_decides() {
    let with_status = |status| course(LOAD & !STATUS | status, CODE, RAM_BASE.0);
    assert_eq!(course(LOAD, 0, RAM_BASE.0), Course::Ram(RAM_BASE));
    assert_eq!(course(LOAD, UART_BASE, UART_BASE), Course::Elsewhere(Ipa(UART_BASE)));
    assert_eq!(
        course(LOAD, 0, 0x3000_0000),
        Course::Elsewhere(Ipa(0x3000_0000)),
        "whether anybody answers shows there"
    );
    assert_eq!(with_status(0x10), Course::Nobody(AbortKind::External), "RAM that does not answer is not shown again");
    assert_eq!(with_status(0x14), Course::Nobody(AbortKind::External));
    assert_eq!(with_status(0x21), Course::Unable(AbortKind::Alignment));
    assert_eq!(with_status(0x35), Course::Unable(AbortKind::UnsupportedAtomic));
}

/// HPFAR_EL2 says nothing of a permission fault; the guest's own tables are asked.
#[test]
fn a_place_that_the_cpu_does_not_say_is_looked_up() {
    let refused = LOAD & !STATUS | PERMISSION;
    assert_eq!(course(refused, CODE + 8, 0xdead_0000), Course::Ram(Ipa(RAM_BASE.0 + 8)));
    assert_eq!(course(refused, 0x7000_0000, 0xdead_0000), Course::Again, "the guest has unmapped it meanwhile");
}

/// Its syndrome says that it writes; a page that can be read is enough for it.
#[test]
fn maintenance_of_what_is_read_only_is_looked_up_as_a_read() {
    let guest = Fake::new(0).protect(CODE);
    let refused = LOAD & !STATUS | PERMISSION | STORE;
    assert_eq!(course_of(&guest, refused, CODE, 0), Course::Again, "a store is refused by the guest's own tables");
    assert_eq!(course_of(&guest, refused | MAINTENANCE, CODE, 0), Course::Ram(RAM_BASE));
}

#[test]
fn a_walk_and_maintenance_reach_no_device() {
    assert_eq!(course(LOAD | ON_WALK, 0, UART_BASE), Course::Nobody(AbortKind::ExternalOnWalk(2)));
    assert_eq!(course(LOAD | ON_WALK, 0, RAM_BASE.0), Course::Ram(RAM_BASE), "a table that is not shown yet");
    assert_eq!(course(LOAD | MAINTENANCE | STORE, UART_BASE, UART_BASE), Course::Done);
    assert_eq!(course(LOAD | MAINTENANCE | STORE, 0, RAM_BASE.0), Course::Ram(RAM_BASE));
}

#[test]
fn nothing_is_fetched_from_devices() {
    let look = |esr, far: u64, ipa: u64| fetch(&Fake::new(0), Va(far), &InstructionAbort::decode(esr, far, ipa >> 8));
    let translation = 0x8200_0007;
    let permission = 0x8200_000f;
    assert_eq!(look(translation, 0, RAM_BASE.0), Fetch::Ram(RAM_BASE));
    assert_eq!(look(permission, CODE, 0), Fetch::Ram(RAM_BASE));
    assert_eq!(look(permission, 0x7000_0000, 0), Fetch::Again);
    assert_eq!(look(translation, UART_BASE, UART_BASE), Fetch::Nobody(AbortKind::External));
    assert_eq!(look(permission, UART_BASE, 0), Fetch::Nobody(AbortKind::External));
    assert_eq!(look(translation | ON_WALK, 0, UART_BASE), Fetch::Nobody(AbortKind::ExternalOnWalk(2)));
    assert_eq!(look(0x8200_0010, 0, RAM_BASE.0), Fetch::Nobody(AbortKind::External));
}

proptest! {
    /// Whatever the syndrome says: only RAM is shown, and devices are looked for only elsewhere.
    #[test]
    fn any_syndrome(
        iss in 0..1_u64 << 25,
        far in any::<u64>(),
        ipa in prop_oneof![any::<u64>(), Just(RAM_BASE.0), Just(UART_BASE)],
    ) {
        let is_ram = |place: Ipa| (RAM_BASE.0..RAM_BASE.0 + 0x20_0000).contains(&place.0);
        match course(LOAD & !0x1ff_ffff | iss, far, ipa) {
            Course::Ram(place) => prop_assert!(is_ram(place)),
            Course::Elsewhere(place) => prop_assert!(!is_ram(place)),
            _ => {}
        }
    }
}
