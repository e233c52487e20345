//! How often something happened, in words.

use core::fmt;

/// A count that is shown as `1 time`, or `7 times`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times(pub u64);

impl fmt::Display for Times {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} time{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::Times;
    use std::string::ToString;

    #[test]
    fn one_is_singular() {
        assert_eq!([0, 1, 2, 11].map(|count| Times(count).to_string()), ["0 times", "1 time", "2 times", "11 times"]);
    }
}
