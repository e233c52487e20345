//! When a guest that makes no progress goes on, and with what.

use abi::bundle::Coherency;
use cpu::exit::Wanted;
use cpu::retry::{LIMIT, Tries};
use stage2::Policy;
use units::{Ipa, Va};

use super::{Allowance, NextTry, RefusedRam, Stay, Subject, again, count};
use crate::mmio::Registers;

const REGISTERS: Registers<'static> = Registers { x: &[7; 31], pc: 0x4000_0000, pstate: 5 };
/// A data abort from EL0: a translation fault, and a permission fault, both of level 3.
const TRANSLATION: u64 = 0x9200_0007;
const PERMISSION: u64 = 0x9200_000f;

/// Is asked for nothing.
fn nobody() -> NextTry {
    panic!("it does not depend on tries")
}

/// After how many tries that alternate between two subjects the guest is refused, if it is.
fn refused_after(subjects: [Subject; 2]) -> Option<usize> {
    let mut tries = Tries::new();
    (0..100).find(|&number| count(&mut tries, REGISTERS, subjects[number % 2]) == NextTry::Refused)
}

#[test]
fn equal_tries_end_and_an_access_is_told_from_an_instruction() {
    let load = Subject::Access(Va(0x5000), TRANSLATION);
    assert_eq!(refused_after([load; 2]), Some(LIMIT.into()));
    for other in [Subject::Access(Va(0x6000), TRANSLATION), Subject::Access(Va(0x5000), PERMISSION)] {
        assert_eq!(refused_after([load, other]), None, "it gets on");
    }
    // Whatever the same instruction was refused: it comes here by turns.
    let store = Subject::Turn(Ipa(0x5000), Wanted::Write);
    assert_eq!(refused_after([store; 2]), Some(LIMIT.into()));
    assert_eq!(refused_after([store, Subject::Turn(Ipa(0x5000), Wanted::Fetch)]), Some(LIMIT.into()));
    assert_eq!(refused_after([store, Subject::Turn(Ipa(0x6000), Wanted::Walk)]), Some(LIMIT.into()));
    for changed in [
        Registers { x: &[8; 31], ..REGISTERS },
        Registers { pc: REGISTERS.pc + 4, ..REGISTERS },
        Registers { pstate: 4, ..REGISTERS },
    ] {
        let mut tries = Tries::new();
        for number in 0..100 {
            let registers = if number % 2 == 0 { REGISTERS } else { changed };
            assert_eq!(count(&mut tries, registers, store), NextTry::Again);
        }
    }
}

/// It is refused a store at one place, and what it executes at another: by turns, if both are in one page, and gets on if not.
#[test]
fn a_turn_is_about_a_page() {
    let refused_after = |fetched: u64| {
        let mut tries = Tries::new();
        (0..100).find(|&number| {
            let subject = match number % 2 {
                0 => Subject::Turn(Ipa(0x5008), Wanted::Write),
                _ => Subject::Turn(Ipa(fetched), Wanted::Fetch),
            };
            let registers = Registers { x: &[number; 31], ..REGISTERS };
            count(&mut tries, registers, subject) == NextTry::Refused
        })
    };
    assert_eq!(refused_after(0x5ffc), Some(2 * u64::from(LIMIT) + 1));
    assert_eq!(refused_after(0x6008), None);
}

/// A guest that takes a lock by exclusive accesses, and counts how often it has tried: its loop is in one page, the lock is at `lock`.
struct Locker {
    at_store: bool,
    tried: u64,
    is_exclusive: bool,
}

/// After how many exits it has the lock, if it gets it within a thousand steps. Pages are by number: its code is in page 1, and at first
/// executable; page 2 is writable.
fn locked_after(lock: u64) -> Option<usize> {
    let mut guest = Locker { at_store: false, tried: 0, is_exclusive: false };
    let (mut tries, mut exits) = (Tries::new(), 0);
    // Writable, executable.
    let mut pages = [(false, false), (false, true), (true, false)];
    for _ in 0..1000 {
        let (_, is_executable) = pages[1];
        let (is_writable, _) = pages[lock as usize];
        let missing = match &mut guest {
            _ if !is_executable => Some((1, Wanted::Fetch)),
            Locker { at_store: false, .. } => {
                (guest.at_store, guest.is_exclusive) = (true, true);
                None
            }
            Locker { is_exclusive: false, tried, .. } => {
                *tried += 1;
                guest.at_store = false;
                None
            }
            _ if !is_writable => Some((lock, Wanted::Write)),
            _ => return Some(exits),
        };
        let Some((page, wanted)) = missing else { continue };
        exits += 1;
        // Behind an exit there is no exclusive access.
        guest.is_exclusive = false;
        let pc = REGISTERS.pc + u64::from(guest.at_store) * 4;
        let registers = Registers { x: &[guest.tried; 31], pc, ..REGISTERS };
        let turn = RefusedRam::new(Coherency::Strict, PERMISSION);
        let policy = turn.policy(|| count(&mut tries, registers, Subject::Turn(Ipa(page << 12 | 8), wanted)));
        pages[page as usize] = match (policy, wanted) {
            (Some(_), _) => (true, true),
            (None, Wanted::Fetch) => (false, true),
            (None, _) => (true, false),
        };
    }
    None
}

/// A lock in the page of its code is had after some turns, although no try is equal to the one before.
#[test]
fn p6_a15_a_lock_beside_its_code_is_had() {
    assert_eq!(locked_after(2), Some(0));
    assert_eq!(locked_after(1), Some(2 * usize::from(LIMIT) + 2));
}

#[test]
fn a_try_before_which_it_stands_still_does_not_count() {
    assert_eq!(again(Stay::CalledOff, nobody), NextTry::Again);
    for counted in [NextTry::Again, NextTry::Refused] {
        assert_eq!(again(Stay::InGuest, || counted), counted);
    }
}

#[test]
fn only_turns_in_a_strict_vm_make_a_page_both() {
    let others = [Coherency::OnDemand, Coherency::Eager, Coherency::OffWhenCoherent];
    for (coherency, syndrome) in
        others.map(|other| (other, PERMISSION)).into_iter().chain([(Coherency::Strict, TRANSLATION)])
    {
        let refusal = RefusedRam::new(coherency, syndrome);
        assert_eq!(refusal.policy(nobody), None, "{coherency:?} {syndrome:#x}");
        for counted in [NextTry::Again, NextTry::Refused] {
            assert_eq!(refusal.after(Allowance::Already, || counted), counted, "nothing has counted it yet");
        }
    }
    let turn = RefusedRam::new(Coherency::Strict, PERMISSION);
    assert_eq!(turn.policy(|| NextTry::Again), None);
    assert_eq!(turn.policy(|| NextTry::Refused), Some(Policy::OnDemand));
    assert_eq!(turn.after(Allowance::Already, nobody), NextTry::Again, "this try has been counted");
}

#[test]
fn what_it_gets_lets_it_go_on_and_what_it_may_not_have_is_refused() {
    for syndrome in [TRANSLATION, PERMISSION] {
        let refusal = RefusedRam::new(Coherency::Strict, syndrome);
        assert_eq!(refusal.after(Allowance::Now, nobody), NextTry::Again);
        assert_eq!(refusal.after(Allowance::Never, nobody), NextTry::Refused);
    }
}
