//! Deferred preemption (`hw::nopreempt`, `sched::interrupt_in_el2`): what an interrupt at each instruction does.
//!
//! An interrupt and the code that it interrupts are on one CPU, in one order: there is nothing for loom to interleave,
//! so the model is exhaustive by itself, over the places of up to three interrupts.

/// The leaf's instructions; then the load of the flag, the branch on it, and, if it is taken, the masked second look.
const LEAF: usize = 6;
const LOAD: usize = LEAF;
const BRANCH: usize = LEAF + 1;
const END: usize = LEAF + 2;

#[derive(Default, Debug, PartialEq, Eq)]
struct Outcome {
    at_once: u32,
    deferred: u32,
    pending: bool,
}

/// Runs the code with an interrupt, wanting a preemption, before each of the instructions `at`. `covered` moves the end of
/// the listed range behind the branch.
fn run(at: &[usize], covered: bool) -> Outcome {
    let listed = if covered { END } else { LEAF };
    let mut outcome = Outcome::default();
    let mut loaded = false;
    for place in 0..=END {
        for _ in at.iter().filter(|&&interrupt| interrupt == place) {
            if place < listed {
                outcome.pending = true;
            } else {
                // `reschedule` takes the note away.
                outcome.pending = false;
                outcome.at_once += 1;
            }
        }
        match place {
            LOAD => loaded = outcome.pending,
            // `deferred`: IRQs are masked, the flag is read again.
            BRANCH if loaded && core::mem::take(&mut outcome.pending) => outcome.deferred += 1,
            _ => {}
        }
    }
    outcome
}

#[test]
fn no_preemption_is_lost_or_made_twice() {
    for first in 0..=END {
        for second in 0..=END {
            for third in 0..=END {
                let at = [first, second, third];
                let outcome = run(&at, false);
                let inside = at.iter().filter(|&&place| place < LEAF).count();
                let before_the_branch = at.iter().any(|place| (LEAF..=BRANCH).contains(place));
                assert!(!outcome.pending, "{at:?} leaves the flag set");
                assert_eq!(outcome.at_once as usize, 3 - inside, "{at:?}");
                let expected = u32::from(inside > 0 && !before_the_branch);
                assert_eq!(outcome.deferred, expected, "{at:?}: {outcome:?}");
            }
        }
    }
}

#[test]
fn nothing_happens_without_an_interrupt() {
    assert_eq!(run(&[], false), Outcome::default());
}

/// Why the range ends before the load: with the check inside, an interrupt between load and branch is noted for nobody.
#[test]
fn a_range_that_covers_the_check_loses_a_preemption() {
    assert_eq!(run(&[BRANCH], true), Outcome { pending: true, ..Outcome::default() });
}
