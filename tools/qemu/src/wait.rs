//! The end of a wait.

use std::time::{Duration, Instant};

/// Nobody waits longer, whatever they say.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// When a wait that began at `start` is over. A limit beyond all sense, which may come from a command line or through a
/// socket, is a year: an [`Instant`] cannot hold every sum, and `+` would end the process.
#[must_use]
pub fn end_of_wait(start: Instant, limit: Duration) -> Instant {
    start + limit.min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_limit_has_an_end() {
        let start = Instant::now();
        assert_eq!(end_of_wait(start, Duration::from_secs(5)), start + Duration::from_secs(5));
        assert_eq!(end_of_wait(start, Duration::MAX), start + LONGEST);
    }
}
