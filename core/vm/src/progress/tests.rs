//! When a guest that makes no progress goes on, and with what.

use abi::bundle::Coherency;
use cpu::retry::{LIMIT, Tries};
use stage2::Policy;
use units::Va;

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
    assert_eq!(refused_after([Subject::Instruction; 2]), Some(LIMIT.into()));
    for changed in [
        Registers { x: &[8; 31], ..REGISTERS },
        Registers { pc: REGISTERS.pc + 4, ..REGISTERS },
        Registers { pstate: 4, ..REGISTERS },
    ] {
        let mut tries = Tries::new();
        for number in 0..100 {
            let registers = if number % 2 == 0 { REGISTERS } else { changed };
            assert_eq!(count(&mut tries, registers, Subject::Instruction), NextTry::Again);
        }
    }
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
