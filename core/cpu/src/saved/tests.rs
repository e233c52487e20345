//! Any registers that can be saved come back as they were, each of them; and what would not fit is refused, and named.

use std::format;
use std::vec::Vec;

use pack::testing::{assert_bounded, through_bytes};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Name, Registers, SavedRegisters, Unfit, each};
use crate::debug::MDSCR_TDCC;
use crate::pstate;
use crate::registers::{ContextNumbers, Debug, El1, General, InterruptState, Keys, Vectors};

#[global_allocator]
static HEAP: scarce::Heap = scarce::Heap;

const BREAKPOINTS: usize = 6;
const WATCHPOINTS: usize = 4;

/// A place for all registers, and whether the CPU has those that not every one has.
#[derive(Clone, PartialEq, Debug)]
struct Home {
    general: General,
    el1: El1,
    keys: Keys,
    context_numbers: ContextNumbers,
    deferred_error: u64,
    vectors: Vectors,
    debug: Debug,
    interrupts: InterruptState,
    hcr: u64,
    os_lock: bool,
    mdscr: u64,
    mdccint: u64,
    claim: u64,
    features: [bool; 3],
    /// MDSCR_EL1 is, and its TDCC does not reach the register.
    is_emulated: bool,
}

impl Home {
    fn new(features: [bool; 3]) -> Self {
        Self {
            general: General::default(),
            el1: El1::default(),
            keys: Keys::default(),
            context_numbers: ContextNumbers::default(),
            deferred_error: 0,
            vectors: Vectors::ZERO,
            debug: Debug::default(),
            interrupts: InterruptState { hcr: 0x4001, ..InterruptState::default() },
            hcr: 0x1000_0001,
            os_lock: false,
            mdscr: 0,
            mdccint: 0,
            claim: 0,
            features,
            is_emulated: true,
        }
    }

    fn registers(&mut self) -> Registers<'_> {
        let [keys, context_numbers, deferred_error] = self.features;
        Registers {
            general: &mut self.general,
            el1: &mut self.el1,
            keys: keys.then_some(&mut self.keys),
            context_numbers: context_numbers.then_some(&mut self.context_numbers),
            deferred_error: deferred_error.then_some(&mut self.deferred_error),
            vectors: &mut self.vectors,
            debug: &mut self.debug,
            breakpoints: BREAKPOINTS,
            watchpoints: WATCHPOINTS,
            interrupts: &mut self.interrupts,
            hcr: &mut self.hcr,
            os_lock: &mut self.os_lock,
            mdscr: self.is_emulated.then_some((&mut self.mdscr, MDSCR_TDCC)),
            mdccint: &mut self.mdccint,
            claim: &mut self.claim,
        }
    }

    fn names(&mut self) -> Vec<Name> {
        let mut names = Vec::new();
        let Registers { el1, keys, context_numbers, deferred_error, .. } = self.registers();
        each(el1, keys, context_numbers, deferred_error, |name, _| {
            assert!(name.len() <= 16, "{name} would be cut");
            names.push(Name::new(name));
        });
        names
    }
}

fn features() -> impl Strategy<Value = [bool; 3]> {
    any::<[bool; 3]>()
}

/// What a vCPU of a host with these features can be saved as.
fn saved(features: [bool; 3]) -> impl Strategy<Value = SavedRegisters> {
    let names = Home::new(features).names();
    let system = vec(any::<u64>(), names.len()).prop_map(move |values| names.iter().copied().zip(values).collect());
    let mode = prop_oneof![Just(pstate::EL0T), Just(pstate::EL1T), Just(pstate::EL1H)];
    let general = (any::<[u64; 31]>(), any::<u64>(), (any::<u64>(), mode));
    let vectors = (any::<[[u64; 2]; 32]>(), any::<u64>(), any::<u64>());
    let debug = (vec(any::<(u64, u64)>(), BREAKPOINTS), vec(any::<(u64, u64)>(), WATCHPOINTS));
    let others = any::<(bool, u64, u64, u64, u64, [u64; 4], [u64; 4], bool)>();
    (general, system, vectors, debug, others).prop_map(
        |((x, pc, (bits, mode)), system, (q, fpcr, fpsr), (breakpoints, watchpoints), others)| {
            let (os_lock, mdscr, mdccint, claim, vmcr, active_priorities_0, active_priorities_1, pending_error) =
                others;
            SavedRegisters {
                x,
                pc,
                pstate: bits & !pstate::MODE_MASK | mode,
                system,
                q,
                fpcr,
                fpsr,
                breakpoints,
                watchpoints,
                os_lock,
                mdscr,
                mdccint,
                claim,
                vmcr,
                active_priorities_0,
                active_priorities_1,
                pending_error,
            }
        },
    )
}

proptest! {
    #[test]
    fn what_was_put_in_is_taken_out(saved in features().prop_flat_map(|features| (Just(features), saved(features)))) {
        let (features, saved) = saved;
        let mut home = Home::new(features);
        prop_assert_eq!(home.registers().restore(&saved), Ok(()));
        prop_assert_eq!(home.registers().save(), Ok(saved.clone()));
        // EL2's own is left as it is.
        prop_assert_eq!((home.interrupts.hcr, home.hcr & !crate::controls::HCR_VSE), (0x4001, 0x1000_0001));
        // Into another one, which had something else in it.
        let mut other = Home::new(features);
        other.registers().restore(&SavedRegisters { pstate: 5, os_lock: true, pending_error: true, ..saved.clone() }).unwrap();
        other.general.x = [7; 31];
        other.registers().restore(&home.registers().save().unwrap()).unwrap();
        prop_assert_eq!(&other, &home);
        prop_assert_eq!(through_bytes(&saved), Ok(saved));
    }
}

#[test]
fn a_register_too_few_or_too_many_is_named() {
    let mut all = Home::new([true; 3]);
    all.general.pstate = pstate::EL1H;
    let saved = all.registers().save().unwrap();
    let refusal = |features, change: &dyn Fn(&mut SavedRegisters)| {
        let mut changed = saved.clone();
        change(&mut changed);
        let mut home = Home::new(features);
        let before = home.clone();
        let refusal = home.registers().restore(&changed).unwrap_err();
        assert_eq!(home, before, "nothing has changed");
        refusal
    };
    let nothing = |_: &mut SavedRegisters| {};
    assert_eq!(refusal([false, true, true], &nothing), Unfit::Unknown(Name::new("apiakeylo_el1")));
    assert_eq!(refusal([true, false, true], &nothing), Unfit::Unknown(Name::new("scxtnum_el0")));
    assert_eq!(refusal([true, true, false], &nothing), Unfit::Unknown(Name::new("disr_el1")));
    let without = |which: usize| {
        refusal([true; 3], &move |saved| {
            saved.system.remove(which);
        })
    };
    assert_eq!(without(0), Unfit::Missing("sctlr_el1"));
    assert_eq!(without(saved.system.len() - 1), Unfit::Missing("disr_el1"));
    let strange = refusal([true; 3], &|saved| saved.system.insert(3, (Name::new("por_el0"), 1)));
    assert_eq!(strange, Unfit::Unknown(Name::new("por_el0")));
    assert_eq!(format!("{strange}"), "a vCPU was saved with the register por_el0, which this host's CPUs do not have");
    assert_eq!(refusal([true; 3], &|saved| saved.breakpoints.truncate(5)), Unfit::Breakpoints(5, BREAKPOINTS));
    assert_eq!(refusal([true; 3], &|saved| saved.watchpoints.push((0, 0))), Unfit::Breakpoints(5, WATCHPOINTS));
}

/// No file makes a guest run anywhere but at EL1 and EL0.
#[test]
fn only_a_guests_pstate_is_put_in() {
    let saved = |mode| {
        let mut home = Home::new([false; 3]);
        home.general.pstate = mode;
        home.registers().save().unwrap()
    };
    for mode in 0..=pstate::MODE_MASK {
        let is_guests = [pstate::EL0T, pstate::EL1T, pstate::EL1H].contains(&mode);
        let put = Home::new([false; 3]).registers().restore(&saved(mode));
        assert_eq!(put.is_ok(), is_guests, "{mode:#x}: {put:?}");
    }
}

/// Of each list as many values are read as any VM may have, and one more is refused by the list's name.
#[test]
fn no_list_is_longer_than_any_vms() {
    // SCTLR_EL1 and so on, ten keys, two context numbers, and DISR_EL1.
    assert_bounded("SavedRegisters.system", 38, |count| SavedRegisters {
        system: core::iter::repeat_n((Name::new("sctlr_el1"), 1), count).collect(),
        ..SavedRegisters::default()
    });
    let points = |count| core::iter::repeat_n((1, 2), count).collect();
    assert_bounded("SavedRegisters.breakpoints", 16, |count| SavedRegisters {
        breakpoints: points(count),
        ..SavedRegisters::default()
    });
    assert_bounded("SavedRegisters.watchpoints", 16, |count| SavedRegisters {
        watchpoints: points(count),
        ..SavedRegisters::default()
    });
}

/// A host that emulates MDSCR_EL1 and one that does not show a guest the same, whichever it was saved on; what must not reach the
/// register does not.
#[test]
fn mdscr_is_what_its_guest_sees_on_either_host() {
    const KDE_AND_TDCC: u64 = 1 << 13 | MDSCR_TDCC;
    let home = |is_emulated| Home { is_emulated, ..Home::new([true; 3]) };
    let (mut emulated, mut natural) = (home(true), home(false));
    (emulated.mdscr, emulated.el1.mdscr_el1) = (KDE_AND_TDCC, 1 << 13);
    // What is left there of a time in which it was emulated says nothing.
    (natural.mdscr, natural.el1.mdscr_el1) = (0x77, KDE_AND_TDCC);
    for mut here in [emulated, natural] {
        here.general.pstate = pstate::EL1H;
        let saved = here.registers().save().expect("there is memory");
        assert_eq!(saved.mdscr, KDE_AND_TDCC);
        let (mut emulated, mut natural) = (home(true), home(false));
        emulated.registers().restore(&saved).expect("it fits");
        natural.registers().restore(&saved).expect("it fits");
        assert_eq!((emulated.mdscr, emulated.el1.mdscr_el1), (KDE_AND_TDCC, 1 << 13));
        assert_eq!(natural.el1.mdscr_el1, KDE_AND_TDCC);
        for mut there in [emulated, natural] {
            assert_eq!(there.registers().save(), Ok(saved.clone()));
        }
    }
}

/// Each list is asked for at once, with room for all that a vCPU can have: nothing is cut short, and nothing grows.
#[test]
fn what_there_is_no_memory_for_is_not_saved() {
    let mut home = Home::new([true; 3]);
    let mut save = |allocations| scarce::with_only(allocations, || home.registers().save());
    for allocations in 0..3 {
        assert_eq!(save(allocations), Err(pack::Damaged::NoMemory), "{allocations}");
    }
    assert_eq!(save(3).map(|saved| saved.system.len()), Ok(super::SYSTEM));
}
