//! Locks that keep their holder on its CPU (`hw::sync::PreemptLock`): what interrupts at each instruction do to the count.
//!
//! As in `deferral`, an interrupt and what it interrupts are in one order, so trying all places of up to three interrupts is
//! exhaustive. There are two CPUs, each with a count and a note of its own; a preemption takes the thread to the other one.

/// The places where interrupts can come: before each of [`step`]'s instructions, and at the end.
const END: usize = 10;

#[derive(Default, Debug)]
struct State {
    cpu: usize,
    count: [u32; 2],
    pending: [bool; 2],
    register: u32,
    noted: bool,
    section: Vec<usize>,
    at_once: u32,
    deferred: u32,
}

impl State {
    fn preempt(&mut self) {
        // `reschedule` takes the note away; no holder of a lock is being interrupted on the other CPU.
        self.pending[self.cpu] = false;
        self.cpu = 1 - self.cpu;
        assert_eq!(self.count[self.cpu], 0);
    }

    /// An interrupt that wants a preemption.
    fn interrupt(&mut self) {
        if self.count[self.cpu] != 0 {
            self.pending[self.cpu] = true;
        } else {
            self.at_once += 1;
            self.preempt();
        }
    }
}

/// The order in which the count falls and the note is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    CountFirst,
    NoteFirst,
}

/// The instructions of lock, section and unlock, one after the other.
fn step(state: &mut State, place: usize, order: Order) {
    let place = match (order, place) {
        (Order::NoteFirst, 7) => 8,
        (Order::NoteFirst, 8) => 7,
        _ => place,
    };
    match place {
        0 | 5 => state.register = state.count[state.cpu],
        1 => state.register += 1,
        6 => state.register -= 1,
        2 | 7 => state.count[state.cpu] = state.register,
        3 | 4 => state.section.push(state.cpu),
        8 => state.noted = state.pending[state.cpu],
        // `preempt_now`: IRQs are masked, the note is read again.
        9 if state.noted && state.pending[state.cpu] => {
            state.deferred += 1;
            state.preempt();
        }
        _ => {}
    }
}

fn run(at: &[usize], order: Order) -> State {
    let mut state = State::default();
    for place in 0..=END {
        for _ in at.iter().filter(|&&interrupt| interrupt == place) {
            state.interrupt();
        }
        step(&mut state, place, order);
    }
    state
}

fn all() -> impl Iterator<Item = [usize; 3]> {
    (0..=END).flat_map(|first| (0..=END).flat_map(move |second| (0..=END).map(move |third| [first, second, third])))
}

#[test]
fn the_section_stays_where_it_began_and_no_preemption_is_lost() {
    for at in all() {
        let state = run(&at, Order::CountFirst);
        assert_eq!(state.section[0], state.section[1], "{at:?}");
        assert_eq!((state.count, state.pending), ([0; 2], [false; 2]), "{at:?}: {state:?}");
        let held = at.iter().filter(|place| (3..=7).contains(*place)).count();
        assert_eq!(state.at_once as usize, 3 - held, "{at:?}: {state:?}");
        let overtaken = at.iter().any(|place| (8..=9).contains(place));
        assert_eq!(state.deferred, u32::from(held > 0 && !overtaken), "{at:?}: {state:?}");
    }
}

/// Why the count falls before the look at the note.
#[test]
fn looking_at_the_note_first_loses_a_preemption() {
    assert!(all().any(|at| run(&at, Order::NoteFirst).pending != [false; 2]));
}
