//! The clock of a VM that can be paused: when it may stand still.
//!
//! The hardware counts for every vCPU that is in its guest, by the offset that was loaded with it. So a clock that is
//! to stand still during a pause stops when the last vCPU is out, not when the pause is asked for: a vCPU that read its
//! counter in between would see it go back when the VM is resumed.
//!
//! Whether time passes while the VM is saved is the VM's choice for life, so it is kept beside the clock and saved with
//! it.

use units::Ticks;

use crate::GuestClock;
use crate::saved::Away;

/// A VM's clock, and what decides whether it counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmClock {
    clock: GuestClock,
    /// A pause lets it stand still.
    stops: bool,
    /// What it makes of the time that its VM is saved.
    away: Away,
    is_paused: bool,
    /// vCPUs that are in their guest, or may enter it without taking the clock's offset anew.
    inside: u16,
}

impl VmClock {
    /// The clock of a VM in which no vCPU is yet, and which is not paused. Whether a pause `stops` it, and what it makes of the time that
    /// its VM is saved.
    #[must_use]
    pub const fn new(clock: GuestClock, stops: bool, away: Away) -> Self {
        Self { clock, stops, away, is_paused: false, inside: 0 }
    }

    /// The clock as it is now. A vCPU takes it after [`VmClock::enter`], and goes by it until it is out again.
    #[must_use]
    pub const fn clock(&self) -> GuestClock {
        self.clock
    }

    /// What it makes of the time that its VM is saved.
    #[must_use]
    pub const fn away(&self) -> Away {
        self.away
    }

    /// Whether no vCPU is in its guest, or may enter it.
    #[must_use]
    pub const fn is_left(&self) -> bool {
        self.inside == 0
    }

    /// A vCPU is switched on, or goes on after a pause.
    pub const fn enter(&mut self) {
        self.inside += 1;
    }

    /// A vCPU is out of its guest, because it is switched off, or stands still for a pause.
    pub const fn leave(&mut self, now: Ticks) {
        self.inside = self.inside.saturating_sub(1);
        self.look(now);
    }

    /// The VM is paused; its vCPUs are asked to leave their guest.
    pub const fn pause(&mut self, now: Ticks) {
        self.is_paused = true;
        self.look(now);
    }

    /// The VM goes on. Before its vCPUs do.
    pub const fn resume(&mut self, now: Ticks) {
        self.is_paused = false;
        self.clock.resume(now);
    }

    const fn look(&mut self, now: Ticks) {
        if self.stops && self.is_paused && self.inside == 0 {
            self.clock.stop(now);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::VmClock;
    use crate::GuestClock;
    use crate::saved::Away;
    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use units::{Hz, Ticks};

    const VCPUS: usize = 3;

    /// What happens in a VM; vCPUs by number.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Wait(u64),
        On(usize),
        Off(usize),
        /// It does what it is asked, or else enters its guest.
        Look(usize),
        /// If it is in its guest, that reads the counter, whatever was asked meanwhile.
        Read(usize),
        Pause,
        Resume,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1..1_000_u64).prop_map(Event::Wait),
            (0..VCPUS).prop_map(Event::On),
            (0..VCPUS).prop_map(Event::Off),
            (0..VCPUS).prop_map(Event::Look),
            (0..VCPUS).prop_map(Event::Look),
            (0..VCPUS).prop_map(Event::Read),
            (0..VCPUS).prop_map(Event::Read),
            Just(Event::Pause),
            Just(Event::Resume),
        ]
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    enum Vcpu {
        #[default]
        Off,
        /// With this offset loaded; whether it has entered its guest since.
        Inside(Ticks, bool),
        Standing,
    }

    proptest! {
        /// No vCPU ever reads a count below one that any of them has read; and time that passes while all of them stand still,
        /// or are off, in a pause that stops time passes for nobody.
        #[test]
        fn no_vcpu_sees_time_go_back(stops in any::<bool>(), events in vec(event(), 1..200)) {
            let mut now = Ticks(5_000);
            let mut time = VmClock::new(GuestClock::like_the_hosts(now, Hz(62_500_000)), stops, Away::Advance);
            let (mut vcpus, mut asked, mut paused) = ([Vcpu::Off; VCPUS], [false; VCPUS], false);
            let (mut seen, mut should) = (0, 0);
            for event in events {
                match event {
                    Event::Wait(ticks) => {
                        let is_inside = vcpus.iter().any(|vcpu| matches!(vcpu, Vcpu::Inside(..)));
                        if !(stops && paused) || is_inside { should += ticks }
                        now = now.after(ticks);
                    }
                    Event::On(id) if vcpus[id] == Vcpu::Off => {
                        time.enter();
                        vcpus[id] = Vcpu::Inside(time.clock().hardware_offset().unwrap(), false);
                    }
                    Event::Off(id) if matches!(vcpus[id], Vcpu::Inside(..)) && !asked[id] => {
                        time.leave(now);
                        vcpus[id] = Vcpu::Off;
                    }
                    Event::Look(id) => match vcpus[id] {
                        Vcpu::Inside(..) if asked[id] => {
                            asked[id] = false;
                            time.leave(now);
                            vcpus[id] = Vcpu::Standing;
                        }
                        Vcpu::Inside(offset, _) => vcpus[id] = Vcpu::Inside(offset, true),
                        Vcpu::Standing if !paused => {
                            time.enter();
                            vcpus[id] = Vcpu::Inside(time.clock().hardware_offset().unwrap(), false);
                        }
                        _ => {}
                    },
                    Event::Read(id) => {
                        if let Vcpu::Inside(offset, true) = vcpus[id] {
                            let count = now.since(offset);
                            prop_assert!(count >= seen, "vCPU {} reads {} after {}", id, count, seen);
                            prop_assert_eq!(count, time.clock().guest(now).0);
                            seen = count;
                        }
                    }
                    Event::Pause if !paused => {
                        paused = true;
                        time.pause(now);
                        // One that is off finds it when it is switched on.
                        asked = vcpus.map(|vcpu| vcpu != Vcpu::Standing);
                    }
                    Event::Resume if paused => {
                        paused = false;
                        time.resume(now);
                    }
                    _ => {}
                }
                if !time.clock().is_stopped() {
                    // One that came on during a pause is about to stand still, and time with it: it reads nothing.
                    prop_assert!(time.clock().guest(now).0 <= should);
                }
                prop_assert!(stops || time.clock().guest(now).0 == should, "it stood still, nobody asked for that");
            }
        }
    }

    #[test]
    fn time_stops_with_the_last_vcpu() {
        let hz = Hz(62_500_000);
        let mut time = VmClock::new(GuestClock::like_the_hosts(Ticks(0), hz), true, Away::Advance);
        time.enter();
        time.enter();
        time.pause(Ticks(100));
        time.leave(Ticks(150));
        assert!(!time.clock().is_stopped() && !time.is_left(), "one is still inside");
        time.leave(Ticks(200));
        assert!(time.is_left());
        assert_eq!((time.clock().is_stopped(), time.clock().guest(Ticks(900)).0), (true, 200));
        time.resume(Ticks(1_000));
        // Nobody has gone on yet: it is paused once more.
        time.pause(Ticks(1_010));
        assert_eq!(time.clock().guest(Ticks(5_000)).0, 210);
        let mut goes_on = VmClock::new(GuestClock::like_the_hosts(Ticks(0), hz), false, Away::Freeze);
        goes_on.pause(Ticks(5));
        assert!(!goes_on.clock().is_stopped());
    }
}
