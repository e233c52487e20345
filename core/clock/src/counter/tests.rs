//! Tests of the arithmetic, and of a clock's life.

extern crate std;

use super::{GuestClock, GuestTicks, Scale};
use crate::saved::{self, Refused};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_assume, prop_oneof, proptest};
use units::{Hz, Ticks};

/// A clock that has stood still for some time, and counts, or does not.
fn clocks() -> impl Strategy<Value = (GuestClock, Ticks)> {
    let span = 0..1_u64 << 40;
    let life = (frequencies(), any::<u64>(), 0..1_u64 << 50, span.clone(), span, any::<bool>(), any::<bool>());
    life.prop_map(|((host, guest), start, ran, stood, after, stops, moves)| {
        let mut clock = GuestClock::start(Ticks(start), host, guest).unwrap();
        let mut now = Ticks(start).after(ran);
        clock.stop(now);
        now = now.after(stood);
        if !stops {
            clock.resume(now);
        }
        if moves {
            clock = GuestClock::restore(&clock.save(now), Hz(host.0 / 3 + 1), Ticks(1_000)).unwrap();
            now = Ticks(1_000);
        }
        (clock, now.after(after))
    })
}

fn frequencies() -> impl Strategy<Value = (Hz, Hz)> {
    let one = || prop_oneof![Just(24_000_000_u64), Just(62_500_000), Just(1_000_000_000), 1_000_000..1_000_000_000_u64];
    prop_oneof![(one(), one()), one().prop_map(|same| (same, same))].prop_map(|(host, guest)| (Hz(host), Hz(guest)))
}

/// What happens to a clock.
#[derive(Clone, Copy, Debug)]
enum Event {
    Wait(u64),
    Stop,
    Resume,
    Move(Hz),
}

fn events() -> impl Strategy<Value = std::vec::Vec<Event>> {
    let event = prop_oneof![
        (0..1_u64 << 34).prop_map(Event::Wait),
        Just(Event::Stop),
        Just(Event::Resume),
        (1_000_000..1_000_000_000_u64).prop_map(|hertz| Event::Move(Hz(hertz))),
    ];
    vec(event, 1..60)
}

proptest! {
    /// Whatever happens to a clock: it never goes back, stands exactly while it is to stand, and shows all the time that it
    /// ran, less a tick for each move to another host.
    #[test]
    fn a_life_is_monotonic_and_loses_nothing((host, guest) in frequencies(), start in any::<u64>(), events in events()) {
        let (mut host, mut now) = (host, Ticks(start));
        let mut clock = GuestClock::start(now, host, guest).unwrap();
        // In guest ticks, with 40 bits behind the point.
        let (mut ran, mut stood, mut slack) = (0_u128, 0_u128, 2_u64);
        for event in events {
            let before = clock.guest(now);
            match event {
                Event::Wait(ticks) => {
                    now = now.after(ticks);
                    let ticks = ((u128::from(ticks) * u128::from(guest.0)) << 40) / u128::from(host.0);
                    if clock.is_stopped() { stood += ticks } else { ran += ticks }
                    prop_assert!(!clock.is_stopped() || clock.guest(now) == before, "a stopped clock counts");
                }
                Event::Stop => clock.stop(now),
                Event::Resume => {
                    clock.resume(now);
                    slack += 1;
                }
                Event::Move(to) => {
                    let saved = clock.save(now);
                    // The other host's counter is anywhere.
                    (host, now) = (to, Ticks(now.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                    clock = GuestClock::restore(&saved, host, now).unwrap();
                    prop_assert_eq!(clock.save(now), saved);
                    // What is left of a tick, and what the scale is wrong by.
                    slack += 2;
                }
            }
            let shown = clock.guest(now);
            prop_assert!(shown >= before, "{:?}: from {:?} back to {:?}", event, before, shown);
            if !matches!(event, Event::Wait(_)) {
                prop_assert_eq!(shown, before, "{:?} lets it jump", event);
            }
            // Scales have 31 bits at least; each wait is shorter than 2^34 host ticks.
            let slack = slack * 2 + (shown.0 >> 28) + (clock.stood(now).0 >> 28);
            prop_assert!(shown.0.abs_diff((ran >> 40) as u64) <= slack, "it shows {:?}, it ran {}", shown, ran >> 40);
            let lag = clock.stood(now).0;
            prop_assert!(lag.abs_diff((stood >> 40) as u64) <= slack, "it says {}, it stood {}", lag, stood >> 40);
        }
    }

    #[test]
    fn what_is_saved_comes_back((clock, now) in clocks(), host in 1_000_000..1_000_000_000_u64, later in any::<u64>()) {
        let saved = clock.save(now);
        for host in [Hz(host), clock.frequency()] {
            let restored = GuestClock::restore(&saved, host, Ticks(later)).unwrap();
            prop_assert_eq!(restored.save(Ticks(later)), saved);
            prop_assert_eq!(restored.hardware_offset().is_some(), host == clock.frequency());
        }
    }

    #[test]
    fn what_nobody_saved_is_put_back_too(
        count in any::<u64>(), frequency in 1_000_000..1_000_000_000_u64, is_stopped in any::<bool>(), stood in any::<u64>(),
        now in any::<u64>(),
    ) {
        let saved = saved::Clock { version: saved::Clock::VERSION, count, frequency, is_stopped, stood };
        let restored = GuestClock::restore(&saved, Hz(frequency), Ticks(now)).unwrap();
        prop_assert_eq!(restored.save(Ticks(now)), saved);
    }

    #[test]
    fn the_way_back_is_the_least_host_time((clock, now) in clocks(), wait in 0..1_u64 << 40) {
        prop_assume!(now.0 < u64::MAX / 2);
        let target = GuestTicks(clock.guest(now).0 + wait);
        let Some(deadline) = clock.host(target, now) else {
            prop_assert!(clock.is_stopped());
            return Ok(());
        };
        prop_assert!(clock.guest(deadline) >= target);
        prop_assert!(deadline == now || clock.guest(Ticks(deadline.0 - 1)) < target);
    }

    #[test]
    fn equal_frequencies_are_the_difference(offset in any::<u64>(), now in any::<u64>(), hertz in 1..u64::MAX) {
        let clock = GuestClock::like_the_hosts(Ticks(offset), Hz(hertz));
        prop_assert_eq!(GuestClock::start(Ticks(offset), Hz(hertz), Hz(hertz)), Some(clock));
        prop_assert_eq!(clock.guest(Ticks(now)).0, now.wrapping_sub(offset));
        prop_assert_eq!(clock.hardware_offset(), Some(Ticks(offset)));
    }

    /// The hardware shows what the clock says: before a stop, and after it by another offset.
    #[test]
    fn a_stop_moves_the_hardwares_offset(start in any::<u64>(), ran in 0..1_u64 << 50, stood in any::<u64>(), more in 0..1_u64 << 50) {
        let mut clock = GuestClock::start(Ticks(start), Hz(62_500_000), Hz(62_500_000)).unwrap();
        let at = Ticks(start).after(ran);
        clock.stop(at);
        clock.stop(at.after(stood));
        prop_assert_eq!(clock.guest(at.after(stood)).0, ran);
        clock.resume(at.after(stood));
        let later = at.after(stood).after(more);
        prop_assert_eq!(clock.guest(later).0, ran + more);
        prop_assert_eq!(later.since(clock.hardware_offset().unwrap()), ran + more);
        prop_assert_eq!((clock.stood(later).0, clock.is_stopped()), (stood, false));
    }

    #[test]
    fn milliseconds_and_counts_go_together((host, guest) in frequencies(), milliseconds in 1..1_u64 << 40) {
        let clock = GuestClock::start(Ticks(0), host, guest).unwrap();
        let count = clock.count_at(milliseconds);
        let Some(at) = clock.host(count, Ticks(0)) else { return Ok(()) };
        prop_assert!(clock.milliseconds(at) >= milliseconds);
        prop_assert!(clock.milliseconds(Ticks(at.0 - 1)) < milliseconds);
    }
}

#[test]
fn ten_seconds_are_ten_seconds() {
    let clock = GuestClock::start(Ticks(u64::MAX - 5), Hz(100_000_000), Hz(24_000_000)).unwrap();
    let counted = clock.guest(Ticks(u64::MAX - 5).after(1_000_000_000)).0;
    assert!(counted.abs_diff(240_000_000) <= 1, "{counted}");
}

#[test]
fn far_apart_frequencies_keep_their_precision() {
    for (host, guest) in [(1_000_000, 1_000_000_000), (1_000_000_000, 1_000_000), (1, 1_000), (1_000, 1)] {
        let (multiplier, shift) = Scale::between(Hz(host), Hz(guest)).unwrap().parts();
        assert!(multiplier >= 1 << 31 && shift <= 63);
    }
    assert_eq!(Scale::between(Hz(0), Hz(1)), None);
    assert_eq!(Scale::between(Hz(u64::MAX), Hz(1)), None);
}

#[test]
fn the_end_of_time_is_never() {
    let same = Hz(62_500_000);
    let clock = GuestClock::start(Ticks(1_000), same, same).unwrap();
    assert_eq!(clock.host(GuestTicks(u64::MAX), Ticks(5_000)), None);
    assert_eq!(clock.host(GuestTicks(10_000), Ticks(5_000)), Some(Ticks(11_000)));
    assert_eq!(clock.host(GuestTicks(4_000), Ticks(5_000)), Some(Ticks(5_000)));
    let slow = GuestClock::start(Ticks(0), Hz(1_000_000_000), Hz(1_000_000)).unwrap();
    assert_eq!(slow.host(GuestTicks(u64::MAX), Ticks(0)), None);
}

#[test]
fn what_cannot_be_restored_says_why() {
    let same = Hz(62_500_000);
    let saved = GuestClock::start(Ticks(0), same, same).unwrap().save(Ticks(5));
    assert_eq!((saved.version, saved.count, saved.frequency, saved.is_stopped, saved.stood), (1, 5, same.0, false, 0));
    let restore = |saved| GuestClock::restore(&saved, same, Ticks(0));
    assert_eq!(restore(saved::Clock { version: 2, ..saved }), Err(Refused::Version(2)));
    assert_eq!(restore(saved::Clock { frequency: 0, ..saved }), Err(Refused::Frequency(Hz(0))));
    // A slow guest's largest count is more than this host's counter can hold.
    let slow = saved::Clock { frequency: 1_000_000, count: u64::MAX, ..saved };
    assert_eq!(restore(slow), Err(Refused::Count(u64::MAX)));
    assert!(std::format!("{}", Refused::Version(2)).contains("version 2"));
}
