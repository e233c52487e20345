//! How soon a VM starts again that resets itself.

/// Lives that are shorter than this, in milliseconds, are none.
const SHORT: u64 = 5_000;
/// So many in a row are let pass: boot loaders and installers reset a machine a few times.
const FREE: u32 = 4;
/// The first wait, in milliseconds; each further one is twice as long.
const FIRST: u64 = 500;
/// The longest.
const LONGEST: u64 = 8_000;

/// Who asks for a VM to be reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// Its guest, or a watchdog of the guest's.
    Guest,
    /// The operator, whose patience is not the guest's fault.
    Operator,
}

/// Counts a VM's short lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restarts {
    in_a_row: u32,
}

impl Restarts {
    /// A life of `length` milliseconds ends with a reset; for how many milliseconds the next one is to wait. Lives that the
    /// operator ends do not wait, and do not count: neither for the guest nor against it.
    #[must_use]
    pub fn wait(&mut self, length: u64, by: By) -> u64 {
        if by == By::Operator {
            return 0;
        }
        if length >= SHORT {
            self.in_a_row = 0;
            return 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        match self.in_a_row.checked_sub(FREE + 1) {
            None => 0,
            Some(times) => FIRST.saturating_mul(1 << times.min(16)).min(LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{By, Restarts};

    #[test]
    fn who_resets_again_and_again_waits_longer_and_longer() {
        let mut restarts = Restarts::default();
        let waits: [u64; 12] = core::array::from_fn(|_| restarts.wait(140, By::Guest));
        assert_eq!(waits, [0, 0, 0, 0, 500, 1000, 2000, 4000, 8000, 8000, 8000, 8000]);
        assert_eq!((restarts.wait(5000, By::Guest), restarts.wait(140, By::Guest)), (0, 0));
        // 278 resets in 40 seconds were seen; in the same time these are few.
        let (mut now, mut lives, mut restarts) = (0, 0, Restarts::default());
        while now < 40_000 {
            now += 140 + restarts.wait(140, By::Guest);
            lives += 1;
        }
        assert!((5..=15).contains(&lives), "{lives} lives in 40 s");
        let mut restarts = Restarts { in_a_row: u32::MAX };
        assert_eq!(restarts.wait(0, By::Guest), 8000);
    }

    #[test]
    fn what_the_operator_ends_does_not_count() {
        let mut restarts = Restarts::default();
        for _ in 0..3 {
            assert_eq!(restarts.wait(140, By::Guest), 0);
            assert_eq!([(); 10].map(|()| restarts.wait(140, By::Operator)), [0; 10]);
        }
        // Two more of the guest's own, and the guest is not let off because the operator came in between.
        let waits = [By::Guest, By::Guest, By::Operator, By::Guest].map(|by| restarts.wait(140, by));
        assert_eq!(waits, [0, 500, 0, 1000]);
    }
}
