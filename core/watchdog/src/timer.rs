//! A watchdog: armed for a time; it acts unless it is patted before that ends.
//!
//! It has no clock of its own: each call says what time it is, in milliseconds of any clock that only runs forward. The
//! owner asks for the [`Watchdog::deadline`] after each call, and calls [`Watchdog::expire`] when that has come. While
//! the VM is paused the watchdog is too, and so is one that is armed meanwhile: its time begins when the VM is resumed.

use abi::watchdog::{Action, Actions, Refused};
use pack::Damaged;

/// What a guest may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// The least time, in milliseconds; less is made this.
    pub least: u64,
    /// The most; more is made this.
    pub most: u64,
    /// The actions that it may choose.
    pub actions: Actions,
    /// Whether it may disarm it.
    pub may_disarm: bool,
}

impl Bounds {
    /// The time that a guest gets which asks for this one.
    fn granted(&self, timeout: u64) -> u64 {
        timeout.max(self.least).min(self.most)
    }
}

/// What is to be seen of a watchdog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// The time that it was armed for, and what is left of it, in milliseconds; none while it is not armed.
    pub armed: Option<(u64, u64)>,
    /// What it does, or did last.
    pub action: Action,
    /// Its clock stands still.
    pub is_paused: bool,
    /// How often it has acted.
    pub acted: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Disarmed,
    Running { deadline: u64 },
    Paused { remaining: u64 },
}

/// The state of a watchdog whose VM is paused: what of its time is left counts from when that goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SavedWatchdog {
    /// The time that it was armed for, in milliseconds.
    pub timeout: u64,
    /// The number of its action.
    pub action: u8,
    /// What is left of the time, while it is armed.
    pub remaining: Option<u64>,
    /// How often it has acted.
    pub acted: u32,
}

impl SavedWatchdog {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedWatchdog versioned { timeout, action, remaining, acted });

/// One watchdog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watchdog {
    bounds: Bounds,
    timeout: u64,
    action: Action,
    state: State,
    /// The VM is paused: no clock of its runs, whoever arms it.
    is_paused: bool,
    acted: u32,
}

impl Watchdog {
    /// A watchdog that nobody has armed, of a VM that is not paused.
    #[must_use]
    pub const fn new(bounds: Bounds) -> Self {
        Self { bounds, timeout: 0, action: Action::Log, state: State::Disarmed, is_paused: false, acted: 0 }
    }

    /// Takes the state out, at `now`. What the guest may ask of it is its VM's, not its own.
    #[must_use]
    pub const fn save(&self, now: u64) -> SavedWatchdog {
        let &Self { bounds: _, timeout, action, state, is_paused: _, acted } = self;
        let remaining = match state {
            State::Disarmed => None,
            State::Running { deadline } => Some(deadline.saturating_sub(now)),
            State::Paused { remaining } => Some(remaining),
        };
        SavedWatchdog { timeout, action: action.number(), remaining, acted }
    }

    /// Puts a state in. The watchdog stands still until its VM goes on ([`Watchdog::resume`]). If it is armed, it is so as the VM's
    /// administrator does it ([`Watchdog::preset`]), or as the guest may.
    ///
    /// # Errors
    /// If no watchdog can be in it, or none of this VM; nothing has changed then.
    pub fn restore(&mut self, saved: &SavedWatchdog, preset: Option<(u64, Action)>) -> Result<(), Damaged> {
        let &SavedWatchdog { timeout, action, remaining, acted } = saved;
        if remaining.is_some_and(|remaining| timeout == 0 || remaining > timeout) {
            return Err(Damaged::Impossible("more is left of a watchdog's time than it was armed for"));
        }
        let action = Action::from_number(action.into());
        let action = action.ok_or(Damaged::Impossible("a watchdog has an action that does not exist"))?;
        let is_guests = self.bounds.actions.contains(action) && timeout == self.bounds.granted(timeout);
        if remaining.is_some() && !is_guests && preset != Some((timeout, action)) {
            return Err(Damaged::Impossible("a watchdog is armed as neither the site file does it nor the guest may"));
        }
        let state = remaining.map_or(State::Disarmed, |remaining| State::Paused { remaining });
        *self = Self { bounds: self.bounds, timeout, action, state, is_paused: true, acted };
        Ok(())
    }

    /// Whether it is as a watchdog can be that was armed and may not be disarmed: it is armed still, or it has acted in a way after
    /// which its VM does not go on.
    #[must_use]
    pub const fn has_stayed(&self) -> bool {
        let has_ended = self.acted > 0 && matches!(self.action, Action::Reset | Action::Stop);
        self.bounds.may_disarm || has_ended || !matches!(self.state, State::Disarmed)
    }

    /// The state in which it has its whole time before it.
    const fn begun(&self, now: u64) -> State {
        match (self.timeout, self.is_paused) {
            (0, _) => State::Disarmed,
            (timeout, true) => State::Paused { remaining: timeout },
            (timeout, false) => State::Running { deadline: now.saturating_add(timeout) },
        }
    }

    /// Arms it as the VM's administrator says, outside of what the guest may choose; 0 disarms it.
    pub const fn preset(&mut self, timeout: u64, action: Action, now: u64) {
        self.timeout = timeout;
        self.action = action;
        self.state = self.begun(now);
    }

    /// The VM's life is over: nobody is watched, and nothing is paused any more.
    pub const fn stop(&mut self) {
        self.timeout = 0;
        self.state = State::Disarmed;
        self.is_paused = false;
    }

    /// Arms it for `timeout` milliseconds from `now`, or disarms it with 0; what is asked beyond the bounds is moved to
    /// them. Returns the time that it got.
    ///
    /// # Errors
    /// Why not; nothing changed.
    pub fn configure(&mut self, timeout: u64, action: u64, now: u64) -> Result<u64, Refused> {
        if timeout == 0 {
            if self.timeout != 0 && !self.bounds.may_disarm {
                return Err(Refused::MustStay);
            }
            self.timeout = 0;
            self.state = State::Disarmed;
            return Ok(0);
        }
        let action = Action::from_number(action).filter(|&action| self.bounds.actions.contains(action));
        self.action = action.ok_or(Refused::Action)?;
        self.timeout = self.bounds.granted(timeout);
        self.state = self.begun(now);
        Ok(self.timeout)
    }

    /// Begins the time anew. Returns the time that is left.
    ///
    /// # Errors
    /// If it is not armed.
    pub const fn pat(&mut self, now: u64) -> Result<u64, Refused> {
        if matches!(self.state, State::Disarmed) {
            return Err(Refused::NotArmed);
        }
        self.state = self.begun(now);
        Ok(self.timeout)
    }

    /// The time that is left.
    ///
    /// # Errors
    /// If it is not armed.
    pub const fn query(&self, now: u64) -> Result<u64, Refused> {
        match self.state {
            State::Disarmed => Err(Refused::NotArmed),
            State::Running { deadline } => Ok(deadline.saturating_sub(now)),
            State::Paused { remaining } => Ok(remaining),
        }
    }

    /// When [`Watchdog::expire`] is to be called.
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        match self.state {
            State::Running { deadline } => Some(deadline),
            _ => None,
        }
    }

    /// What is to be done at `now`, if the time is over.
    ///
    /// After [`Action::Log`] and [`Action::Inject`] the time begins anew: a guest that does not recover is told again. After
    /// the others it is disarmed, but for [`Action::Pause`] of one that must stay armed: that VM is paused by this, and has
    /// the whole time before it when somebody lets it go on.
    pub const fn expire(&mut self, now: u64) -> Option<Action> {
        let State::Running { deadline } = self.state else { return None };
        if now < deadline {
            return None;
        }
        self.state = match self.action {
            Action::Log | Action::Inject => self.begun(now),
            Action::Pause if !self.bounds.may_disarm => {
                self.is_paused = true;
                self.begun(now)
            }
            _ => State::Disarmed,
        };
        self.acted = self.acted.saturating_add(1);
        Some(self.action)
    }

    /// What is to be seen of it.
    #[must_use]
    pub const fn status(&self, now: u64) -> Status {
        let armed = match self.query(now) {
            Ok(left) => Some((self.timeout, left)),
            Err(_) => None,
        };
        Status { armed, action: self.action, is_paused: self.is_paused, acted: self.acted }
    }

    /// Stops its clock, until [`Watchdog::resume`].
    pub const fn pause(&mut self, now: u64) {
        self.is_paused = true;
        if let State::Running { deadline } = self.state {
            self.state = State::Paused { remaining: deadline.saturating_sub(now) };
        }
    }

    /// Lets its clock go on.
    pub const fn resume(&mut self, now: u64) {
        self.is_paused = false;
        if let State::Paused { remaining } = self.state {
            self.state = State::Running { deadline: now.saturating_add(remaining) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Action, Actions, Bounds, Refused, SavedWatchdog, Status, Watchdog};
    use pack::{Damaged, Reader, Value, Writer};
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { least: 10, most: 1000, actions: Actions(0b10111), may_disarm: true };

    #[test]
    fn it_acts_only_when_it_was_not_patted() {
        let mut watchdog = Watchdog::new(BOUNDS);
        assert_eq!(watchdog.pat(0), Err(Refused::NotArmed));
        assert_eq!(watchdog.configure(200, 2, 0), Ok(200));
        for now in (50..2000).step_by(50) {
            assert_eq!(watchdog.expire(now), None);
            assert_eq!(watchdog.pat(now), Ok(200));
        }
        assert_eq!(watchdog.query(2000), Ok(150));
        assert_eq!(watchdog.expire(2149), None);
        assert_eq!(watchdog.expire(2150), Some(Action::Reset));
        assert_eq!((watchdog.expire(9999), watchdog.deadline()), (None, None));
        let status = Status { armed: None, action: Action::Reset, is_paused: false, acted: 1 };
        assert_eq!(watchdog.status(9999), status);
    }

    #[test]
    fn what_no_watchdog_can_be_is_refused() {
        let mut watchdog = Watchdog::new(BOUNDS);
        let before = watchdog;
        let bad = [
            SavedWatchdog { timeout: 10, remaining: Some(11), ..SavedWatchdog::default() },
            SavedWatchdog { timeout: 0, remaining: Some(0), ..SavedWatchdog::default() },
            SavedWatchdog { action: 5, ..SavedWatchdog::default() },
        ];
        for saved in bad {
            assert!(matches!(watchdog.restore(&saved, None), Err(Damaged::Impossible(_))), "{saved:?}");
            assert_eq!(watchdog, before);
        }
    }

    /// A file cannot arm it for longer, or for less, than its guest could have.
    #[test]
    fn what_is_not_the_guests_to_choose_is_refused() {
        let armed = |timeout, action: Action| SavedWatchdog {
            timeout,
            action: action.number(),
            remaining: Some(1),
            ..SavedWatchdog::default()
        };
        let bounds = Bounds { may_disarm: false, actions: Actions::only(Action::Reset), ..BOUNDS };
        let preset = Some((5000, Action::Stop));
        for saved in [armed(10, Action::Reset), armed(1000, Action::Reset), armed(5000, Action::Stop)] {
            assert_eq!(Watchdog::new(bounds).restore(&saved, preset), Ok(()), "{saved:?}");
        }
        let bad =
            [armed(9, Action::Reset), armed(1001, Action::Reset), armed(10, Action::Stop), armed(5000, Action::Reset)];
        for saved in bad {
            let mut watchdog = Watchdog::new(bounds);
            assert!(matches!(watchdog.restore(&saved, preset), Err(Damaged::Impossible(_))), "{saved:?}");
            assert_eq!(watchdog, Watchdog::new(bounds));
        }
    }

    #[test]
    fn one_that_must_stay_is_gone_only_when_it_has_acted() {
        let must = Bounds { may_disarm: false, actions: Actions::ALL, ..BOUNDS };
        let has_stayed = |bounds, action: Action, acted, remaining| {
            let mut watchdog = Watchdog::new(bounds);
            let saved = SavedWatchdog { timeout: 500, action: action.number(), remaining, acted };
            assert_eq!(watchdog.restore(&saved, None), Ok(()));
            watchdog.has_stayed()
        };
        for action in Action::LIST {
            assert!(has_stayed(must, action, 0, Some(9)) && has_stayed(BOUNDS, action, 0, None));
            assert!(!has_stayed(must, action, 0, None));
            // What it does itself: one that was told off by these two alone is not armed afterwards.
            let mut watchdog = Watchdog::new(must);
            assert_eq!(watchdog.configure(500, action.number().into(), 0), Ok(500));
            assert_eq!(watchdog.expire(600), Some(action));
            assert_eq!(has_stayed(must, action, 1, None), watchdog.query(600).is_err(), "{action:?}");
            assert!(watchdog.has_stayed());
        }
    }

    proptest! {
        /// Whatever was put in is taken out, at any time, and comes through bytes.
        #[test]
        fn what_was_put_in_is_taken_out(timeout in 1..u64::MAX, left in any::<Option<u64>>(), action in 0..5_u8, acted in any::<u32>(), now in any::<u64>()) {
            let remaining = left.map(|left| left % timeout);
            let saved = SavedWatchdog { timeout, action, remaining, acted };
            let mut watchdog = Watchdog::new(BOUNDS);
            let preset = Action::from_number(action.into()).map(|action| (timeout, action));
            prop_assert_eq!(watchdog.restore(&saved, preset), Ok(()));
            prop_assert_eq!(watchdog.save(now), saved);
            let mut out = Writer::new();
            saved.pack(&mut out);
            let bytes = out.finish().expect("there is memory");
            prop_assert_eq!(SavedWatchdog::unpack(&mut Reader::new(&bytes)), Ok(saved));
        }

        /// A watchdog that was moved while it was paused is the same one, and acts when it would have, by a clock that may begin
        /// anew.
        #[test]
        fn one_that_was_moved_goes_on(timeout in 0..2000_u64, action in 0..5_u64, paused in 0..3000_u64, there in any::<u32>()) {
            let mut here = Watchdog::new(BOUNDS);
            let _ = here.configure(timeout, action, 0);
            let _ = here.expire(paused);
            here.pause(paused);
            let mut other = Watchdog::new(BOUNDS);
            prop_assert_eq!(other.restore(&here.save(paused), None), Ok(()));
            prop_assert_eq!(here, other);
            let there = u64::from(there);
            here.resume(paused);
            other.resume(there);
            prop_assert_eq!(here.deadline().map(|at| at - paused), other.deadline().map(|at| at - there));
        }
    }

    #[test]
    fn requests_beyond_the_bounds() {
        let mut watchdog = Watchdog::new(BOUNDS);
        assert_eq!(watchdog.configure(1, 0, 0), Ok(10));
        assert_eq!(watchdog.configure(u64::MAX, 0, 5), Ok(1000));
        assert_eq!(watchdog.deadline(), Some(1005));
        assert_eq!(watchdog.configure(100, 3, 0), Err(Refused::Action));
        assert_eq!(watchdog.configure(100, 5, 0), Err(Refused::Action));
        assert_eq!(watchdog.deadline(), Some(1005));
        assert_eq!(watchdog.configure(0, 99, 0), Ok(0));
        assert_eq!(watchdog.deadline(), None);
        let mut must = Watchdog::new(Bounds { may_disarm: false, ..BOUNDS });
        must.preset(5000, Action::Stop, 0);
        assert_eq!(must.configure(0, 0, 0), Err(Refused::MustStay));
    }

    #[test]
    fn the_log_is_repeated() {
        let mut watchdog = Watchdog::new(BOUNDS);
        assert_eq!(watchdog.configure(100, 0, 0), Ok(100));
        assert_eq!(watchdog.expire(130), Some(Action::Log));
        assert_eq!(watchdog.deadline(), Some(230));
    }

    #[test]
    fn what_is_armed_during_a_pause_begins_when_it_ends() {
        let mut watchdog = Watchdog::new(BOUNDS);
        watchdog.pause(0);
        assert_eq!((watchdog.configure(100, 2, 50), watchdog.deadline()), (Ok(100), None));
        assert_eq!((watchdog.pat(70), watchdog.expire(900), watchdog.query(900)), (Ok(100), None, Ok(100)));
        watchdog.preset(200, Action::Stop, 950);
        assert_eq!((watchdog.deadline(), watchdog.expire(5000)), (None, None));
        watchdog.resume(10_000);
        assert_eq!(watchdog.deadline(), Some(10_200));
    }

    #[test]
    fn one_that_must_stay_armed_survives_the_pause_that_it_caused() {
        for may_disarm in [false, true] {
            let mut watchdog = Watchdog::new(Bounds { may_disarm, actions: Actions::ALL, ..BOUNDS });
            watchdog.preset(500, Action::Pause, 0);
            assert_eq!(watchdog.configure(300, 3, 0), Ok(300));
            assert_eq!((watchdog.expire(300), watchdog.expire(400)), (Some(Action::Pause), None));
            watchdog.pause(301);
            assert_eq!(watchdog.expire(9000), None);
            watchdog.resume(10_000);
            let expected = if may_disarm { None } else { Some(10_300) };
            assert_eq!(watchdog.deadline(), expected, "which may {}be disarmed", if may_disarm { "" } else { "not " });
        }
    }

    #[test]
    fn the_next_life_is_neither_watched_nor_paused() {
        let mut watchdog = Watchdog::new(BOUNDS);
        watchdog.preset(500, Action::Reset, 0);
        watchdog.pause(10);
        watchdog.stop();
        assert_eq!((watchdog.query(20), watchdog.status(20).is_paused), (Err(Refused::NotArmed), false));
        watchdog.preset(500, Action::Reset, 100);
        assert_eq!(watchdog.deadline(), Some(600));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Preset(u64),
        Configure(u64),
        Pat,
        Pause,
        Resume,
        Stop,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let time = prop_oneof![Just(0), 10u64..1000];
        prop_oneof![
            time.clone().prop_map(Step::Preset),
            time.prop_map(Step::Configure),
            Just(Step::Pat),
            Just(Step::Pause),
            Just(Step::Resume),
            Just(Step::Stop),
            (0u64..700).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Against one that counts every millisecond down in which the VM is not paused: in any order of arming, patting,
        /// pausing and going on it acts in the same millisecond, and never during a pause.
        #[test]
        fn it_agrees_with_one_that_counts_down(steps in prop::collection::vec(step(), 1..60)) {
            let (mut now, mut watchdog) = (0u64, Watchdog::new(BOUNDS));
            let (mut timeout, mut left, mut paused) = (0u64, None::<u64>, false);
            for step in steps {
                match step {
                    Step::Preset(time) => {
                        watchdog.preset(time, Action::Reset, now);
                        (timeout, left) = (time, (time != 0).then_some(time));
                    }
                    Step::Configure(time) => {
                        prop_assert_eq!(watchdog.configure(time, 2, now), Ok(time));
                        (timeout, left) = (time, (time != 0).then_some(time));
                    }
                    Step::Pat => {
                        prop_assert_eq!(watchdog.pat(now).ok(), left.map(|_| timeout));
                        left = left.map(|_| timeout);
                    }
                    Step::Pause => { watchdog.pause(now); paused = true; }
                    Step::Resume => { watchdog.resume(now); paused = false; }
                    Step::Stop => { watchdog.stop(); (timeout, left, paused) = (0, None, false); }
                    Step::Wait(length) => for _ in 0..length {
                        now += 1;
                        if !paused { left = left.map(|left| left - 1); }
                        let due = left == Some(0);
                        prop_assert_eq!(watchdog.expire(now).is_some(), due);
                        if due { left = None; }
                    }
                }
                prop_assert_eq!(watchdog.query(now).ok(), left);
                prop_assert_eq!(watchdog.deadline(), left.filter(|_| !paused).map(|left| now + left));
                prop_assert_eq!(watchdog.status(now).is_paused, paused);
            }
        }

        #[test]
        fn a_pause_adds_its_length(timeout in 10u64..1000, pause in 0u64..1000, length in 0u64..100_000) {
            let mut watchdog = Watchdog::new(BOUNDS);
            watchdog.configure(timeout, 2, 0).unwrap();
            let pause = pause.min(timeout);
            watchdog.pause(pause);
            prop_assert!(watchdog.status(pause + length).is_paused);
            prop_assert_eq!(watchdog.status(pause + length).armed, Some((timeout, timeout - pause)));
            prop_assert_eq!(watchdog.expire(pause + length), None);
            watchdog.resume(pause + length);
            prop_assert_eq!(watchdog.deadline(), Some(timeout + length));
        }
    }
}
