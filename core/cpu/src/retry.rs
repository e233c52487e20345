//! When a guest that may retry an instruction has tried often enough.
//!
//! Some exits end with "execute it again": the guest's tables changed while we looked at them, the instruction is not the
//! one that exited, another vCPU got the memory first. Nearly always the next try goes another way. But a guest can make
//! things that never do (an instruction that only the CPU's TLB still knows, words that another vCPU swaps all the time),
//! and an exit that repeats without progress is a loop that the guest's kernel neither sees nor can end. So each try is
//! remembered, and one that is the same as the one before it, down to the registers, is counted ([`Tries::again`]). After
//! [`LIMIT`] the guest gets an abort instead, as from memory that does not answer.

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
}

impl Tries {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { last: None, count: 0 }
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
}

#[cfg(test)]
mod tests {
    use super::{LIMIT, Tries, Try, Verdict};
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
