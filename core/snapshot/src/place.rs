//! The VM in whose place a saved one is to run, as its hypervisor describes it. So a misfit is found before a VM is taken out, sent or
//! built.

use core::fmt;

use abi::bundle::{Doors, Time};
use pack::{Damaged, Reader, Value, Writer};

use crate::SavedMachine;

/// More bytes than doors take.
const DOORS: usize = 128;

/// A VM of a site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its machine.
    pub machine: SavedMachine,
    /// How fast its time passes.
    pub rate: u32,
    /// How it may call the hypervisor.
    pub doors: Doors,
    /// How often its host's counter counts in a second.
    pub counter: u64,
    /// Its host's CPUs can trap the virtual counter.
    pub traps: bool,
}

impl Place {
    /// Whether a guest with this place's timers, whose counter has such a frequency, has a wrong clock here if it reads the virtual
    /// counter: one that the hardware shows at the host's speed.
    #[must_use]
    pub const fn misleads(&self, frequency: u64) -> bool {
        let is_native = self.rate == Time::REAL && frequency == self.counter;
        !(is_native || self.traps || self.machine.memory_timer)
    }
}

impl Value for Place {
    fn pack(&self, out: &mut Writer) {
        let Self { machine, rate, doors, counter, traps } = self;
        machine.pack(out);
        rate.pack(out);
        // As in a bundle.
        let mut buffer = [0; DOORS];
        out.list(postcard::to_slice(doors, &mut buffer).map_or(&[][..], |bytes| bytes));
        counter.pack(out);
        traps.pack(out);
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let (machine, rate) = (Value::unpack(from)?, Value::unpack(from)?);
        let bytes = from.list::<u8>(DOORS, "Place.doors")?;
        let doors = postcard::from_bytes(&bytes).map_err(|_| Damaged::Impossible("doors are none of a VM's"))?;
        Ok(Self { machine, rate, doors, counter: Value::unpack(from)?, traps: Value::unpack(from)? })
    }
}

/// In what the site file says otherwise of a VM's place than of the VM itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaceDifference {
    /// How fast time passes, in millionths of real time: for the VM, and in this place.
    Rate(u32, u32),
    /// How it calls the hypervisor.
    Doors,
}

impl PlaceDifference {
    /// What is different, if anything is, of a VM with this rate and these doors in a place with those.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare(vm: (u32, &Doors), place: (u32, &Doors)) -> Result<(), Self> {
        match (vm, place) {
            ((rate, _), (here, _)) if rate != here => Err(Self::Rate(rate, here)),
            ((_, doors), (_, here)) if doors != here => Err(Self::Doors),
            _ => Ok(()),
        }
    }
}

/// Millionths, as a site file has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decimal(pub u32);

impl fmt::Display for Decimal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = Time::REAL;
        let (mut rest, mut places) = (self.0 % one, 6);
        while places > 1 && rest % 10 == 0 {
            (rest, places) = (rest / 10, places - 1);
        }
        write!(out, "{}.{rest:0places$}", self.0 / one)
    }
}

impl fmt::Display for PlaceDifference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Rate(saved, here) => write!(
                out,
                "its time passes at a rate of {}, here at {}: time.rate in the site file must be the same",
                Decimal(saved),
                Decimal(here)
            ),
            Self::Doors => out.write_str(
                "it calls its hypervisor in other ways than a VM here: the site file's keys for that (vmware and so on) must \
                 be the same",
            ),
        }
    }
}

impl core::error::Error for PlaceDifference {}

#[cfg(test)]
mod tests {
    use super::{Place, PlaceDifference};
    use crate::SavedMachine;
    use abi::bundle::{Doors, Quota};
    use pack::{Reader, Value, Writer};
    use std::string::ToString;

    #[test]
    fn a_place_comes_through_bytes() {
        let quota = Quota { channels: 256, message: 65536, keys: 1024, store: 4 << 20, log: 1 << 20 };
        let all = Doors {
            watchdog_milliseconds: u32::MAX,
            vcpu_watchdog_milliseconds: u32::MAX,
            vmware: true,
            quota,
            ..Doors::default()
        };
        for doors in [all, Doors::default()] {
            let place = Place { machine: crate::tests::machine(), rate: 7, doors, counter: 62_500_000, traps: true };
            let mut out = Writer::new();
            place.pack(&mut out);
            let bytes = out.finish().unwrap();
            let mut from = Reader::new(&bytes);
            assert_eq!(Place::unpack(&mut from), Ok(place));
            assert_eq!(from.left(), 0);
        }
    }

    #[test]
    fn a_guest_is_misled_where_the_hardware_shows_another_counter() {
        let machine = crate::tests::machine();
        let place = Place { machine, rate: 1_000_000, doors: Doors::default(), counter: 24_000_000, traps: false };
        assert!(place.misleads(62_500_000) && !place.misleads(24_000_000));
        assert!(Place { rate: 500_000, ..place.clone() }.misleads(24_000_000));
        assert!(!Place { traps: true, ..place.clone() }.misleads(62_500_000));
        let machine = SavedMachine { memory_timer: true, ..crate::tests::machine() };
        assert!(!Place { machine, ..place }.misleads(62_500_000));
    }

    #[test]
    fn what_the_site_file_says_otherwise_is_said_in_its_words() {
        let (closed, open) = (Doors::default(), Doors { vmware: true, ..Doors::default() });
        let compare = PlaceDifference::compare;
        assert_eq!(compare((1_000_000, &open), (1_000_000, &open)), Ok(()));
        assert_eq!(compare((1_000_000, &open), (1_000_000, &closed)), Err(PlaceDifference::Doors));
        for (rate, text) in [(500_000, "0.5"), (1_000_000, "1.0"), (1_250_001, "1.250001"), (10_000_000, "10.0")] {
            let said = compare((rate, &closed), (2_000_000, &closed)).unwrap_err().to_string();
            assert!(
                said.starts_with(&std::format!("its time passes at a rate of {text}, here at 2.0: time.rate")),
                "{said}"
            );
        }
    }
}
