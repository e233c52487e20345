//! Arm's PL031 (DDI 0224), a real-time clock: the time of day, in whole seconds.

use crate::{Registers, TooSmall};

/// Register offsets (DDI 0224 table 3-1): data, load.
const DATA: u64 = 0;
const LOAD: u64 = 8;
/// How many bytes hold the registers that are used.
const NEEDED: u64 = 0xc;

/// A PL031.
#[derive(Debug)]
pub struct Pl031<R>(R);

impl<R: Registers> Pl031<R> {
    /// The PL031 with these registers.
    ///
    /// # Errors
    /// When they are too few.
    pub fn new(registers: R) -> Result<Self, TooSmall> {
        TooSmall::check(&registers, NEEDED)?;
        Ok(Self(registers))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        u64::from(self.0.read32(DATA))
    }

    /// Sets it to `seconds` since 1970. Says whether it took them: the load register reads as what was written to it, while the
    /// counter follows at its own next second.
    #[must_use]
    pub fn set(&self, seconds: u32) -> bool {
        self.0.write32(LOAD, seconds);
        self.0.read32(LOAD) == seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Access, Fake};

    #[test]
    fn the_time_is_read_and_set() {
        let fake = Fake::new(0x1000);
        fake.set(DATA, 1_700_000_000);
        let clock = Pl031::new(&fake).unwrap();
        assert_eq!(clock.seconds(), 1_700_000_000);
        assert!(clock.set(1_800_000_000));
        assert_eq!(fake.log(), [Access::Write32(LOAD, 1_800_000_000)]);
    }

    #[test]
    fn one_that_cannot_be_set_says_so() {
        let fake = Fake::new(0x1000);
        fake.freeze(LOAD, 7);
        assert!(!Pl031::new(&fake).unwrap().set(8));
    }

    #[test]
    fn too_few_registers_are_refused() {
        let Err(error) = Pl031::new(&Fake::new(8)) else { panic!("it took them") };
        assert_eq!(error, TooSmall { is: 8, needed: 12 });
    }
}
