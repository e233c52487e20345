//! When a guest that may retry an instruction has tried often enough.
//!
//! Some exits end with "execute it again": the guest's tables changed while we looked at them, the instruction is not the
//! one that exited, another vCPU got the memory first. Nearly always the next try goes another way. But a guest can make
//! things that never do (an instruction that only the CPU's TLB still knows, words that another vCPU swaps all the time),
//! and an exit that repeats without progress is a loop that the guest's kernel neither sees nor can end. So each try is
//! remembered, and one that is the same as the one before it, down to the registers, is counted ([`Tries::again`]). After
//! [`LIMIT`] the guest gets an abort instead, as from memory that does not answer.
//!
//! Where a page is either writable or executable there is a second loop, in which registers may change: an instruction that
//! stores into the page in which it is itself. It is refused the store, and as soon as that is granted it is refused itself. A store
//! that must be exclusive fails behind that, as each exit clears the monitor; it is tried again by a guest that counts its tries, perhaps,
//! so none is equal to the one before. But whoever was refused a store to a page, and then at the same PC that page to be executed,
//! cannot get on in turns, whatever has happened in between. So these are counted as well ([`Tries::turn`]).

/// How often the same thing may be tried again.
pub const LIMIT: u8 = 8;

/// What a guest tried, and with what. No instruction is completed between two tries that are equal: one that changes no
/// register moves PC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Try {
    /// Where.
    pub pc: u64,
    /// The address that it was about.
    pub far: u64,
    /// ESR_EL2.
    pub syndrome: u64,
    /// PSTATE.
    pub pstate: u64,
    /// X0 to X30.
    pub registers: [u64; 31],
}

/// An instruction at `pc` was refused page number `page`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Where the instruction is.
    pub pc: u64,
    /// The page, by its number in the guest's memory.
    pub page: u64,
    /// To do what.
    pub to: To,
}

/// What a page was to be had for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// The instruction stores into it.
    Store,
    /// The instruction is in it.
    Execute,
}

/// Whether a guest may try once more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It may.
    Again,
    /// It has tried often enough.
    Enough,
}

/// One vCPU's tries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tries {
    last: Option<Try>,
    count: u8,
    /// The last store that was refused: where, and to which page.
    stored: Option<(u64, u64)>,
    /// How many of those were followed by a fetch from the same place in the same page.
    turns: u8,
}

impl Tries {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { last: None, count: 0, stored: None, turns: 0 }
    }

    /// The guest is about to try `this` again.
    #[must_use]
    pub fn again(&mut self, this: &Try) -> Verdict {
        if self.last.as_ref() != Some(this) {
            self.last = Some(*this);
            self.count = 0;
        }
        self.count += 1;
        if self.count <= LIMIT {
            return Verdict::Again;
        }
        *self = Self::new();
        Verdict::Enough
    }

    /// The guest is about to get `this`, and to lose what it has of that page besides.
    #[must_use]
    pub fn turn(&mut self, this: Turn) -> Verdict {
        let Turn { pc, page, to } = this;
        if to == To::Store {
            self.stored = Some((pc, page));
            return Verdict::Again;
        }
        if self.stored.take() == Some((pc, page)) {
            self.turns += 1;
        }
        if self.turns <= LIMIT {
            return Verdict::Again;
        }
        *self = Self::new();
        Verdict::Enough
    }
}

#[cfg(test)]
mod tests {
    use super::{LIMIT, To, Tries, Try, Turn, Verdict};
    use proptest::prelude::*;

    const TRY: Try = Try { pc: 0x4000_0000, far: 0x0900_0000, syndrome: 0x9200_0007, pstate: 5, registers: [7; 31] };

    #[test]
    fn no_exit_repeats_for_ever() {
        let mut tries = Tries::new();
        for _ in 0..3 {
            for _ in 0..LIMIT {
                assert_eq!(tries.again(&TRY), Verdict::Again);
            }
            assert_eq!(tries.again(&TRY), Verdict::Enough);
        }
    }

    #[test]
    fn only_a_store_into_its_own_page_is_a_turn() {
        let store = Turn { pc: 0x4000_0010, page: 0x4_0000, to: To::Store };
        let fetch = Turn { to: To::Execute, ..store };
        let refused_after = |turns: &[Turn]| {
            let mut tries = Tries::new();
            (0..100).find(|number| tries.turn(turns[number % turns.len()]) == Verdict::Enough)
        };
        assert_eq!(refused_after(&[store, fetch]), Some(2 * usize::from(LIMIT) + 1));
        // By turns with one elsewhere it gets nowhere either.
        let other = [Turn { pc: 0, page: 7, ..store }, Turn { pc: 0, page: 7, ..fetch }];
        assert_eq!(refused_after(&[store, fetch, other[0], other[1]]), Some(2 * usize::from(LIMIT) + 1));
        for gets_on in [[store, Turn { pc: 4, ..fetch }], [store, Turn { page: 5, ..fetch }], [store; 2], [fetch; 2]] {
            assert_eq!(refused_after(&gets_on), None, "{gets_on:?}");
        }
        // The store that counts is the last one.
        assert_eq!(refused_after(&[store, Turn { page: 5, ..store }, fetch]), None);
    }

    proptest! {
        /// Whoever gets on, in whatever respect, is never refused.
        #[test]
        fn progress_is_never_refused(steps in prop::collection::vec((0_usize..5, 0_usize..31, 1_u64..), 1..100)) {
            let (mut tries, mut this) = (Tries::new(), TRY);
            for (what, which, by) in steps {
                for _ in 0..LIMIT {
                    prop_assert_eq!(tries.again(&this), Verdict::Again);
                }
                let changed = match what {
                    0 => &mut this.pc,
                    1 => &mut this.far,
                    2 => &mut this.syndrome,
                    3 => &mut this.pstate,
                    _ => &mut this.registers[which],
                };
                *changed = changed.wrapping_add(by);
            }
        }
    }
}
