//! Tests of the arithmetic, and of a clock's life.

extern crate std;

use super::{CounterScale, GuestClock, GuestTicks, Rate, Standstill};
use crate::saved::{self, Refused};
use crate::{EmulatedTimer, Period};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_assume, prop_oneof, proptest};
use units::{Hz, Ticks};

/// A clock that has stood still for some time, and counts, or does not.
fn clocks() -> impl Strategy<Value = (GuestClock, Ticks)> {
    let span = 0..1_u64 << 40;
    // The fastest of them count to 2^62 in that life.
    let rate = prop_oneof![Just(1_000_000), 1_000..4_000_000_u32].prop_map(Rate);
    let life = (frequencies(), rate, any::<u64>(), 0..1_u64 << 50, span.clone(), span, any::<bool>(), any::<bool>());
    life.prop_map(|((host, guest), rate, start, ran, stood, after, stops, moves)| {
        let mut clock = GuestClock::start(Ticks(start), host, guest, rate).unwrap();
        let mut now = Ticks(start).after(ran);
        clock.stop(now);
        now = now.after(stood);
        if !stops {
            clock.resume(now);
        }
        if moves {
            clock = GuestClock::restore(&clock.save(now, false), Hz(host.0 / 3 + 1), Ticks(1_000)).unwrap();
            now = Ticks(1_000);
        }
        (clock, now.after(after))
    })
}

fn frequencies() -> impl Strategy<Value = (Hz, Hz)> {
    let one = || prop_oneof![Just(24_000_000_u64), Just(62_500_000), Just(1_000_000_000), 1_000_000..1_000_000_000_u64];
    prop_oneof![(one(), one()), one().prop_map(|same| (same, same))].prop_map(|(host, guest)| (Hz(host), Hz(guest)))
}

/// Real time mostly, and down to a thousandth and up to a thousand times of it.
fn rates() -> impl Strategy<Value = Rate> {
    prop_oneof![Just(Rate::REAL), Just(Rate(500_000)), (1_000..1_000_000_000_u32).prop_map(Rate)]
}

/// What is saved of `clock` when that was restored from `saved`: where the hardware shows the clock, its virtual counter is that too.
fn shown_by(clock: &GuestClock, saved: saved::Clock) -> saved::Clock {
    let virtual_count = if clock.hardware_offset().is_some() { saved.count } else { saved.virtual_count };
    saved::Clock { virtual_count, ..saved }
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
    fn a_life_is_monotonic_and_loses_nothing(
        (host, guest) in frequencies(), rate in 1_000..4_000_000_u32, start in any::<u64>(), events in events(),
    ) {
        let (mut host, mut now) = (host, Ticks(start));
        let mut clock = GuestClock::start(now, host, guest, Rate(rate)).unwrap();
        // In guest ticks, with 40 bits behind the point.
        let (mut ran, mut stood, mut slack) = (0_u128, 0_u128, 2_u64);
        for event in events {
            let (before, virtual_before) = (clock.guest(now), clock.unscaled().guest(now));
            match event {
                Event::Wait(ticks) => {
                    now = now.after(ticks);
                    let ticks = u128::from(ticks) * u128::from(guest.0) * u128::from(rate) / 1_000;
                    let ticks = (ticks << 30) / u128::from(host.0) * 1_024 / 1_000;
                    if clock.is_stopped() { stood += ticks } else { ran += ticks }
                    prop_assert!(!clock.is_stopped() || clock.guest(now) == before, "a stopped clock counts");
                }
                Event::Stop => clock.stop(now),
                Event::Resume => {
                    clock.resume(now);
                    slack += 1;
                }
                Event::Move(to) => {
                    let saved = clock.save(now, false);
                    // The other host's counter is anywhere.
                    (host, now) = (to, Ticks(now.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                    clock = GuestClock::restore(&saved, host, now).unwrap();
                    prop_assert_eq!(clock.save(now, false), shown_by(&clock, saved));
                    // What is left of a tick, and what the scale is wrong by.
                    slack += 2;
                }
            }
            let shown = clock.guest(now);
            prop_assert!(shown >= before, "{:?}: from {:?} back to {:?}", event, before, shown);
            let virtual_now = clock.unscaled().guest(now);
            let is_clocks = matches!(event, Event::Move(_)) && clock.hardware_offset().is_some();
            prop_assert!(virtual_now >= virtual_before || is_clocks, "{event:?}: CNTVCT_EL0 from {virtual_before:?} back");
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
        let saved = clock.save(now, false);
        for host in [Hz(host), clock.frequency()] {
            let restored = GuestClock::restore(&saved, host, Ticks(later)).unwrap();
            prop_assert_eq!(restored.save(Ticks(later), false), shown_by(&restored, saved));
            let is_native = host == clock.frequency() && clock.rate() == Rate::REAL;
            prop_assert_eq!(restored.hardware_offset().is_some(), is_native);
        }
    }

    /// A VM's clock and timer go from a host of 100 MHz to one of 62.5 MHz, on to one of 1 GHz, and back: on each the count goes on
    /// where it stood, a second has as many ticks as before, and the timer fires at the guest's count that it was set to, as
    /// late as that host's ticks are long.
    #[test]
    fn p5_a8_a_vm_goes_on_at_another_host_frequency(
        start in any::<u32>(), ran in 1..1_u64 << 40, wait in 1..1_u64 << 36, guest in prop_oneof![Just(62_500_000), Just(1_000_000_000_u64)],
    ) {
        let (mut host, mut now) = (Hz(100_000_000), Ticks(start.into()));
        let mut clock = GuestClock::start(now, host, Hz(guest), Rate::REAL).unwrap();
        now = now.after(ran);
        let compare = clock.guest(now).0 + wait;
        let mut timer = EmulatedTimer::from_registers(1, compare);
        for to in [62_500_000, 1_000_000_000, 100_000_000] {
            let (saved, saved_timer, before) = (clock.save(now, false), timer.save(), clock.guest(now));
            (host, now) = (Hz(to), Ticks(now.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8));
            clock = GuestClock::restore(&saved, host, now).unwrap();
            timer = EmulatedTimer::restore(&saved_timer).unwrap();
            prop_assert_eq!(clock.guest(now), before, "the count jumps");
            let second = clock.guest(now.after(to)).0 - before.0;
            prop_assert!(second.abs_diff(guest) <= 1, "a second has {second} ticks");
            let deadline = timer.deadline(&clock, now).unwrap();
            prop_assert!(clock.guest(deadline).0 >= compare, "it fires early");
            prop_assert!(deadline == now || clock.guest(Ticks(deadline.0 - 1)).0 < compare, "it fires late");
            // A part of the way there, and on to the next host.
            now = now.after(deadline.0.saturating_sub(now.0) / 4);
            prop_assert!(!timer.is_asserted(&clock, now) || deadline == now);
        }
    }

    #[test]
    fn what_nobody_saved_is_put_back_too(
        count in any::<u64>(), frequency in 1_000_000..1_000_000_000_u64, is_stopped in any::<bool>(), stood in any::<u64>(),
        now in any::<u64>(), virtual_count in any::<u64>(),
    ) {
        let rate = Rate::REAL.0;
        let saved = saved::Clock { version: saved::Clock::VERSION, count, frequency, rate, is_stopped, stood, virtual_count };
        for host in [Hz(frequency), Hz(77_000_000)] {
            let Ok(restored) = GuestClock::restore(&saved, host, Ticks(now)) else { continue };
            prop_assert_eq!(restored.save(Ticks(now), false), shown_by(&restored, saved));
        }
    }

    #[test]
    fn p5_a7_the_way_back_is_the_least_host_time((clock, now) in clocks(), wait in 0..1_u64 << 40) {
        prop_assume!(now.0 < u64::MAX / 2);
        let target = GuestTicks(clock.guest(now).0 + wait);
        let Some(deadline) = clock.host(target, now) else {
            prop_assert!(clock.is_stopped());
            return Ok(());
        };
        prop_assert!(clock.guest(deadline) >= target);
        prop_assert!(deadline == now || clock.guest(Ticks(deadline.0 - 1)) < target);
    }

    /// There and back, anywhere on the way from the begin of the counters to their ends, and for any two frequencies and
    /// rate for which there is a scale: never early, and never later than the next host tick.
    #[test]
    fn p5_a7_for_any_scale_and_any_count(
        host in 1..u64::MAX, guest in 1..u64::MAX, rate in any::<u32>(), offset in any::<u64>(), elapsed in any::<u64>(),
        ahead in any::<u64>(), narrow in 0..64_u32, near in 0..64_u32,
    ) {
        let (host, guest) = (Hz((host >> narrow).max(1)), Hz((guest >> narrow).max(1)));
        let Some(clock) = GuestClock::start(Ticks(offset), host, guest, Rate(rate)) else { return Ok(()) };
        let (multiplier, shift) = CounterScale::between(host, guest, Rate(rate)).unwrap().parts();
        prop_assert!((multiplier, shift) == (1, 0) || multiplier >= 1 << 31 && shift <= 63);
        let now = Ticks(offset).after(elapsed);
        let exact = (u128::from(elapsed) * u128::from(multiplier)) >> shift;
        prop_assert_eq!(clock.guest(now).0, exact as u64, "it wraps as a counter does, and does nothing else");
        let target = GuestTicks((exact as u64).saturating_add(ahead >> near));
        match clock.host(target, now) {
            // Its counter has begun anew: what is to come is behind it.
            _ if exact >> 64 != 0 => {}
            Some(deadline) => {
                prop_assert!(clock.guest(deadline) >= target);
                prop_assert!(deadline == now || clock.guest(Ticks(deadline.0 - 1)) < target);
            }
            // Never: the last host tick, or the last that the host's counter shows, is not enough for it.
            None => {
                let left = (u64::MAX - now.0).min(u64::MAX - elapsed);
                let last = (u128::from(elapsed + left) * u128::from(multiplier)) >> shift;
                let skips = clock.guest(Ticks(now.0.wrapping_add(left))).0 < target.0;
                prop_assert!(last < u128::from(target.0) || skips, "it says never, and {} comes after {}", target.0, last);
            }
        }
    }

    /// Each step of the host's counter is one forwards, or none, for the guest: from any count on.
    #[test]
    fn p5_a7_no_step_goes_back((host, guest) in frequencies(), rate in rates(), at in 0..1_u64 << 52, steps in vec(0..50_u64, 1..50)) {
        let clock = GuestClock::start(Ticks(u64::MAX - 7), host, guest, rate).unwrap();
        let (mut now, mut before) = (Ticks(u64::MAX - 7).after(at), GuestTicks(0));
        for step in steps {
            now = now.after(step);
            prop_assert!(clock.guest(now) >= before);
            before = clock.guest(now);
        }
    }

    #[test]
    fn p5_a10_equal_frequencies_are_the_difference(offset in any::<u64>(), now in any::<u64>(), hertz in 1..u64::MAX) {
        let clock = GuestClock::like_the_hosts(Ticks(offset), Hz(hertz));
        prop_assert_eq!(GuestClock::start(Ticks(offset), Hz(hertz), Hz(hertz), Rate::REAL), Some(clock));
        prop_assert_eq!(clock.guest(Ticks(now)).0, now.wrapping_sub(offset));
        prop_assert_eq!(clock.hardware_offset(), Some(Ticks(offset)));
        prop_assert_eq!((clock.virtual_offset(), clock.unscaled()), (Ticks(offset), clock));
        prop_assert_eq!((clock.behind(Ticks(now), Standstill::Counts), clock.behind(Ticks(now), Standstill::IsLeftOut)), (0, 0));
    }

    /// Twice the frequency at half of real time: the counter runs as the host's, but the hardware cannot show it, since
    /// CNTFRQ_EL0 says something else.
    #[test]
    fn p5_a10_what_is_equal_by_chance_is_not_native(offset in any::<u64>(), now in any::<u64>(), half in 1..1_u64 << 40) {
        let clock = GuestClock::start(Ticks(offset), Hz(half), Hz(half * 2), Rate(500_000)).unwrap();
        prop_assert_eq!((clock.guest(Ticks(now)).0, clock.hardware_offset()), (now.wrapping_sub(offset), None));
        let (multiplier, shift) = clock.counter().scale.parts();
        prop_assert_eq!(CounterScale::from_parts(multiplier, shift), Some(CounterScale::IDENTITY));
        prop_assert_eq!(CounterScale::from_parts(1, 64), None);
    }

    /// What a guest that ignores its scale sees: a counter of the host's speed that began with the clock, stands still with it,
    /// and goes on where it was when it is restored; where a host can show or trap what the guest reads, that is the clock.
    #[test]
    fn the_unscaled_counter_begins_with_the_clock_and_never_goes_back((clock, now) in clocks(), wait in 0..1_u64 << 40) {
        let mut clock = clock;
        let before = clock.unscaled().guest(now);
        prop_assert_eq!(now.since(clock.virtual_offset()) >= before.0, true);
        clock.resume(now);
        prop_assert_eq!(clock.unscaled().guest(now), before);
        prop_assert_eq!(now.after(wait).since(clock.virtual_offset()), before.0 + wait);
        let restored = |host, traps| GuestClock::restore(&clock.save(now, traps), host, Ticks(5)).unwrap();
        for host in [Hz(77_000_000), clock.frequency()] {
            let there = restored(host, false);
            let is_native = there.hardware_offset().is_some();
            let expected = if is_native { clock.guest(now) } else { before };
            prop_assert_eq!(there.unscaled().guest(Ticks(5)), expected, "native: {}", is_native);
            prop_assert_eq!(Ticks(5 + wait).since(there.virtual_offset()), expected.0 + wait);
            prop_assert_eq!(restored(host, true).unscaled().guest(Ticks(5)), clock.guest(now), "the guest saw its clock");
        }
    }

    /// A clock that runs at half of real time is behind by as much as it shows, one at twice of it is ahead by half; what it
    /// stood still for is real time.
    #[test]
    fn what_it_is_behind_by((host, guest) in frequencies(), seconds in 1..1_000_000_u64, stood in 0..1_000_000_u64) {
        let at = |seconds: u64| Ticks(seconds * host.0);
        let near = |clock: GuestClock, now, standstill, seconds: i64| {
            let microseconds = clock.behind(now, standstill);
            prop_assert!(microseconds.abs_diff(seconds * 1_000_000) <= 4, "{microseconds} us, {seconds} s");
            Ok(())
        };
        for (rate, shown, behind) in [(500_000, 1, 1), (1_000_000, 2, 0), (2_000_000, 4, -2)] {
            let mut clock = GuestClock::start(Ticks(0), host, guest, Rate(rate)).unwrap();
            let then = at(seconds * 2);
            prop_assert!(clock.milliseconds(then).abs_diff(seconds * shown * 1000) <= 1);
            near(clock, then, Standstill::Counts, behind * seconds as i64)?;
            clock.stop(then);
            let later = at(seconds * 2 + stood);
            near(clock, later, Standstill::IsLeftOut, behind * seconds as i64)?;
            near(clock, later, Standstill::Counts, behind * seconds as i64 + stood as i64)?;
            clock.resume(later);
            near(clock, later, Standstill::Counts, behind * seconds as i64 + stood as i64)?;
            // The host that seems to count so fast does so in whole hertz.
            let (nanoseconds, real) = (clock.ticks_of(host).nanoseconds(host.0 * 1000), u64::from(rate) * 1_000_000);
            let wrong = real / (host.0 * 1_000_000 / u64::from(rate)) + 1_000;
            prop_assert!(nanoseconds.abs_diff(real) <= wrong, "{nanoseconds} ns");
            prop_assert_eq!(clock.real_microseconds(10), 10_000_000_u64.div_ceil(rate.into()));
        }
    }

    /// The hardware shows what the clock says: before a stop, and after it by another offset.
    #[test]
    fn a_stop_moves_the_hardwares_offset(start in any::<u64>(), ran in 0..1_u64 << 50, stood in any::<u64>(), more in 0..1_u64 << 50) {
        let mut clock = GuestClock::start(Ticks(start), Hz(62_500_000), Hz(62_500_000), Rate::REAL).unwrap();
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
        let clock = GuestClock::start(Ticks(0), host, guest, Rate::REAL).unwrap();
        let count = clock.count_at(milliseconds);
        let Some(at) = clock.host(count, Ticks(0)) else { return Ok(()) };
        prop_assert!(clock.milliseconds(at) >= milliseconds);
        prop_assert!(clock.milliseconds(Ticks(at.0 - 1)) < milliseconds);
    }
}

#[test]
fn p5_a3_ten_seconds_are_ten_seconds() {
    let clock = GuestClock::start(Ticks(u64::MAX - 5), Hz(100_000_000), Hz(24_000_000), Rate::REAL).unwrap();
    let counted = clock.guest(Ticks(u64::MAX - 5).after(1_000_000_000)).0;
    assert!(counted.abs_diff(240_000_000) <= 1, "{counted}");
}

/// CTL as the architecture has it: ENABLE is bit 0, IMASK bit 1, and ISTATUS bit 2, which does not care for IMASK.
#[test]
fn a_timers_control_has_its_bits() {
    let control = |written, count| EmulatedTimer::from_registers(written, 100).control_at(GuestTicks(count));
    assert_eq!([0, 1, 2, 3].map(|written| control(written, 99)), [0b000, 0b001, 0b010, 0b011]);
    assert_eq!([0, 1, 2, 3].map(|written| control(written, 100)), [0b000, 0b101, 0b010, 0b111]);
}

/// A scale is what its two numbers say; only one of them makes both counters equally fast.
#[test]
fn a_scale_of_parts() {
    assert_eq!(CounterScale::from_parts(3, 63).map(CounterScale::parts), Some((3, 63)));
    assert_eq!(CounterScale::from_parts(3, 64), None);
    let is_identity = |multiplier, shift| CounterScale::from_parts(multiplier, shift).map(CounterScale::is_identity);
    assert_eq!([(1, 0), (1, 1), (2, 0)].map(|(one, other)| is_identity(one, other)), [true, false, false].map(Some));
}

/// The most host ticks that there are come back, and not one more.
#[test]
fn the_way_back_ends_with_the_hosts_counter() {
    let double = CounterScale::from_parts(1 << 63, 63).expect("a shift that there is");
    assert_eq!(double.invert(GuestTicks(u64::MAX)), Some(u64::MAX));
    let half = CounterScale::from_parts(1 << 62, 63).expect("a shift that there is");
    assert_eq!(half.invert(GuestTicks(1 << 62)), Some(1 << 63));
    assert_eq!(half.invert(GuestTicks(1 << 63)), None);
}

/// A guest of another time sees its own counter where reading it traps, and one as fast as the host's where that cannot be.
#[test]
fn what_the_virtual_counter_shows() {
    let (host, guest) = (Hz(100_000_000), Hz(50_000_000));
    let later = Ticks(100_000_000);
    let clock = |guest| GuestClock::start(Ticks(0), host, guest, Rate::REAL).expect("such a clock");
    let shown = |clock: GuestClock, traps| clock.virtual_counter(later, host, traps);
    let slow = clock(guest);
    assert_eq!(shown(slow, true), (GuestTicks(50_000_000), Period::of(guest, Rate::REAL)));
    assert_eq!(shown(slow, false), (GuestTicks(100_000_000), Period::of(host, Rate::REAL)));
    for traps in [true, false] {
        assert_eq!(shown(clock(host), traps), (GuestTicks(100_000_000), Period::of(host, Rate::REAL)));
    }
}

#[test]
fn far_apart_frequencies_keep_their_precision() {
    for (host, guest) in [(1_000_000, 1_000_000_000), (1_000_000_000, 1_000_000), (1, 1_000), (1_000, 1)] {
        let (multiplier, shift) = CounterScale::between(Hz(host), Hz(guest), Rate::REAL).unwrap().parts();
        assert!(multiplier >= 1 << 31 && shift <= 63);
    }
    for (host, guest, rate) in
        [(0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 0), (u64::MAX, 1, 1_000_000), (1, u64::MAX, u32::MAX)]
    {
        assert_eq!(CounterScale::between(Hz(host), Hz(guest), Rate(rate)), None);
    }
    // Half of an odd number of ticks: the last bit is not lost.
    assert_eq!(CounterScale::between(Hz(3), Hz(3), Rate(500_000)).unwrap().parts(), (1 << 62, 63));
}

#[test]
fn the_end_of_time_is_never() {
    let same = Hz(62_500_000);
    let clock = GuestClock::start(Ticks(1_000), same, same, Rate::REAL).unwrap();
    assert_eq!(clock.host(GuestTicks(u64::MAX), Ticks(5_000)), None);
    assert_eq!(clock.host(GuestTicks(10_000), Ticks(5_000)), Some(Ticks(11_000)));
    assert_eq!(clock.host(GuestTicks(4_000), Ticks(5_000)), Some(Ticks(5_000)));
    let slow = GuestClock::start(Ticks(0), Hz(1_000_000_000), Hz(1_000_000), Rate::REAL).unwrap();
    assert_eq!(slow.host(GuestTicks(u64::MAX), Ticks(0)), None);
}

#[test]
fn what_cannot_be_restored_says_why() {
    let same = Hz(62_500_000);
    let saved = GuestClock::start(Ticks(0), same, same, Rate::REAL).unwrap().save(Ticks(5), false);
    assert_eq!((saved.version, saved.count, saved.frequency, saved.is_stopped, saved.stood), (3, 5, same.0, false, 0));
    assert_eq!(saved.virtual_count, 5);
    let restore = |saved| GuestClock::restore(&saved, same, Ticks(0));
    assert_eq!(restore(saved::Clock { version: 2, ..saved }), Err(Refused::Version(2)));
    assert_eq!(restore(saved::Clock { frequency: 0, ..saved }), Err(Refused::Frequency(Hz(0), Rate::REAL)));
    assert_eq!(restore(saved::Clock { rate: 0, ..saved }), Err(Refused::Frequency(same, Rate(0))));
    // A slow guest's largest count is more than this host's counter can hold.
    let slow = saved::Clock { frequency: 1_000_000, count: u64::MAX, ..saved };
    assert_eq!(restore(slow), Err(Refused::Count(u64::MAX)));
    assert!(std::format!("{}", Refused::Version(2)).contains("version 2"));
}
