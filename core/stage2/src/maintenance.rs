//! What makes instruction and data caches agree about a stretch of memory: the steps, in their order, as values.
//!
//! Newly stored instructions are in a data cache, and an instruction cache may hold what was there before (DDI 0487
//! B2.7.4). So: clean the data cache to where both caches look (the point of unification), wait, invalidate the
//! instruction cache, wait, and synchronise the fetching CPU. Each of the five is needed; `core/stage2`'s tests leave
//! out one at a time and see a machine execute something stale. CTR_EL0 says which halves a CPU does without.

use arrayvec::ArrayVec;
use units::{Pa, Range};

/// What CTR_EL0 says of a CPU's caches, as far as maintenance goes; or of all CPUs ([`CacheKind::with`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheKind {
    /// Bytes of the smallest line of any data cache (DminLine).
    pub data_line: u64,
    /// Bytes of the smallest line of any instruction cache (IminLine).
    pub instruction_line: u64,
    /// An instruction cache is found by physical address (L1Ip = PIPT), so by any address of ours that leads there.
    pub by_address: bool,
    /// Stores have to be cleaned to be fetched (not IDC).
    pub needs_clean: bool,
    /// Instruction caches have to be invalidated to see them (not DIC).
    pub needs_invalidation: bool,
}

impl CacheKind {
    /// What a CPU with this CTR_EL0 has.
    #[must_use]
    pub const fn of(ctr_el0: u64) -> Self {
        Self {
            data_line: 4 << (ctr_el0 >> 16 & 0xf),
            instruction_line: 4 << (ctr_el0 & 0xf),
            by_address: ctr_el0 >> 14 & 3 == 0b11,
            needs_clean: ctr_el0 & 1 << 28 == 0,
            needs_invalidation: ctr_el0 & 1 << 29 == 0,
        }
    }

    /// What serves this CPU and the other one: a step of the smaller line passes no larger one by.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            data_line: self.data_line.min(other.data_line),
            instruction_line: self.instruction_line.min(other.instruction_line),
            by_address: self.by_address && other.by_address,
            needs_clean: self.needs_clean || other.needs_clean,
            needs_invalidation: self.needs_invalidation || other.needs_invalidation,
        }
    }

    /// The same, but that nothing is left out because CTR_EL0 says so.
    #[must_use]
    pub const fn distrusted(self) -> Self {
        Self { needs_clean: true, needs_invalidation: true, ..self }
    }

    /// A CTR_EL0 that says this, for what keeps it in one word. Bit 31 reads as one in every such register.
    #[must_use]
    pub const fn as_ctr(self) -> u64 {
        let by_address: u64 = if self.by_address { 0b11 } else { 0b10 };
        1 << 31
            | (self.data_line.trailing_zeros() as u64 - 2) << 16
            | (self.instruction_line.trailing_zeros() as u64 - 2)
            | by_address << 14
            | (!self.needs_clean as u64) << 28
            | (!self.needs_invalidation as u64) << 29
    }

    /// Whether the caches agree by themselves.
    #[must_use]
    pub const fn is_coherent(self) -> bool {
        !self.needs_clean && !self.needs_invalidation
    }
}

/// How far data has to be cleaned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// To where instruction fetches of all CPUs look.
    Unification,
    /// To memory: the guest fetches past all caches.
    Coherency,
}

impl Point {
    /// How far a guest sees whose SCTLR_EL1 this is: with its MMU or either cache off it may look into memory itself.
    #[must_use]
    pub const fn of_guest(sctlr_el1: u64) -> Self {
        const M: u64 = 1 << 0;
        const C: u64 = 1 << 2;
        const I: u64 = 1 << 12;
        if sctlr_el1 & (M | C | I) == M | C | I { Self::Unification } else { Self::Coherency }
    }
}

/// One step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// `DC CVAU` for each line.
    CleanToUnification {
        /// Of what.
        range: Range<Pa>,
        /// Bytes of a line.
        line: u64,
    },
    /// `DC CVAC` for each line.
    CleanToCoherency {
        /// Of what.
        range: Range<Pa>,
        /// Bytes of a line.
        line: u64,
    },
    /// `DSB ISH`: what was stored and cleaned is visible.
    WaitForClean,
    /// `IC IVAU` for each line.
    InvalidateLines {
        /// Of what.
        range: Range<Pa>,
        /// Bytes of a line.
        line: u64,
    },
    /// `IC IALLUIS`: the cache holds lines by addresses of the guest's, which are not ours.
    InvalidateAll,
    /// `DSB ISH`: all CPUs have invalidated.
    WaitForInvalidation,
    /// `ISB`.
    Synchronize,
}

#[cfg(test)]
impl Step {
    /// How many lines it has to come by.
    pub(crate) fn lines(self) -> u64 {
        match self {
            Self::CleanToUnification { range, line }
            | Self::CleanToCoherency { range, line }
            | Self::InvalidateLines { range, line } => {
                (range.end().0.next_multiple_of(line) - (range.start.0 & !(line - 1))) / line
            }
            Self::InvalidateAll => 1,
            Self::WaitForClean | Self::WaitForInvalidation | Self::Synchronize => 0,
        }
    }
}

/// The most steps of one maintenance.
pub(crate) const MOST_STEPS: usize = 5;

/// Carries steps out.
pub trait Caches {
    /// Does `step`, after all earlier ones. Returns how many lines it came by; 1 if it was all of a cache.
    fn carry_out(&mut self, step: Step) -> u64;
}

/// The steps for `range`, in their order.
#[must_use]
pub fn steps(kind: CacheKind, range: Range<Pa>, point: Point) -> ArrayVec<Step, MOST_STEPS> {
    let mut steps = ArrayVec::new();
    match point {
        // A fetch past all caches needs the clean: IDC speaks of the point of unification alone.
        Point::Coherency => steps.push(Step::CleanToCoherency { range, line: kind.data_line }),
        Point::Unification if kind.needs_clean => {
            steps.push(Step::CleanToUnification { range, line: kind.data_line });
        }
        Point::Unification => {}
    }
    steps.push(Step::WaitForClean);
    if kind.needs_invalidation {
        steps.push(if kind.by_address {
            Step::InvalidateLines { range, line: kind.instruction_line }
        } else {
            Step::InvalidateAll
        });
        steps.push(Step::WaitForInvalidation);
    }
    steps.push(Step::Synchronize);
    steps
}

#[cfg(test)]
mod tests {
    use super::{CacheKind, Point, Step, steps};
    use units::{Pa, Range};

    /// CTR_EL0 of QEMU's cortex-a72 and max.
    const A72: CacheKind = CacheKind::of(0x8444_c004);
    const MAX: CacheKind = CacheKind::of(0xb444_c004);
    const PAGE: Range<Pa> = Range { start: Pa(0x4000_0000), size: 4096 };

    #[test]
    fn ctr_is_read_as_the_manual_has_it() {
        let expected = CacheKind {
            data_line: 64,
            instruction_line: 64,
            by_address: true,
            needs_clean: true,
            needs_invalidation: true,
        };
        assert_eq!(A72, expected);
        assert!(MAX.is_coherent() && !A72.is_coherent());
        assert_eq!(MAX.distrusted(), A72);
        // VIPT, lines of 32 and 128 bytes.
        let unlike = CacheKind::of(0x8445_8003);
        assert_eq!((unlike.data_line, unlike.instruction_line, unlike.by_address), (128, 32, false));
        let both = A72.with(unlike);
        assert_eq!((both.data_line, both.instruction_line, both.by_address), (64, 32, false));
        assert_eq!(MAX.with(A72), A72);
        for kind in [A72, MAX, unlike, both] {
            assert_eq!(CacheKind::of(kind.as_ctr()), kind);
        }
        assert_eq!((A72.as_ctr(), MAX.as_ctr(), unlike.as_ctr()), (0x8004_c004, 0xb004_c004, 0x8005_8003));
        // Half of it is not enough.
        for half in [CacheKind { needs_clean: false, ..A72 }, CacheKind { needs_invalidation: false, ..A72 }] {
            assert!(!half.is_coherent());
        }
    }

    #[test]
    fn a_guest_with_any_of_its_caches_off_looks_into_memory() {
        assert_eq!(Point::of_guest(0x30d0_1805), Point::Unification);
        for off in [0x30d0_1804, 0x30d0_1801, 0x30d0_0805, 0x30d0_0800] {
            assert_eq!(Point::of_guest(off), Point::Coherency);
        }
    }

    #[test]
    fn all_steps_in_their_order() {
        let clean = Step::CleanToUnification { range: PAGE, line: 64 };
        let invalidate = Step::InvalidateLines { range: PAGE, line: 64 };
        let expected = [clean, Step::WaitForClean, invalidate, Step::WaitForInvalidation, Step::Synchronize];
        assert_eq!(steps(A72, PAGE, Point::Unification)[..], expected);
        let vipt = CacheKind { by_address: false, ..A72 };
        assert_eq!(steps(vipt, PAGE, Point::Unification)[2], Step::InvalidateAll);
        assert_eq!(clean.lines(), 64);
        assert_eq!(Step::InvalidateLines { range: Range { start: Pa(0x3f), size: 2 }, line: 64 }.lines(), 2);
    }

    #[test]
    fn only_what_ctr_says_is_left_out() {
        assert_eq!(steps(MAX, PAGE, Point::Unification)[..], [Step::WaitForClean, Step::Synchronize]);
        let clean = Step::CleanToCoherency { range: PAGE, line: 64 };
        assert_eq!(steps(MAX, PAGE, Point::Coherency)[..], [clean, Step::WaitForClean, Step::Synchronize]);
        let no_clean = CacheKind { needs_clean: false, ..A72 };
        assert_eq!(steps(no_clean, PAGE, Point::Unification).len(), 4);
        let no_invalidation = CacheKind { needs_invalidation: false, ..A72 };
        assert_eq!(steps(no_invalidation, PAGE, Point::Unification).len(), 3);
    }
}
