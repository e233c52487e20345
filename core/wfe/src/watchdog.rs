//! A watchdog: armed for a time, patted before it ends, or else it acts.
//!
//! It has no clock of its own: each call says what time it is, in milliseconds of any clock that only runs forward. The
//! owner asks for the [`Watchdog::deadline`] after each call, and calls [`Watchdog::expire`] when that has come. While the
//! VM is paused the watchdog is too.

/// What happens when the time is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A line in the host's log, and the time begins anew.
    Log,
    /// The guest gets an SError.
    Inject,
    /// The VM starts afresh.
    Reset,
    /// The VM is paused, for a debugger.
    Pause,
    /// The VM stops.
    Stop,
}

impl Action {
    /// The action that a guest's number means.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Log,
            1 => Self::Inject,
            2 => Self::Reset,
            3 => Self::Pause,
            4 => Self::Stop,
            _ => return None,
        })
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its name, as the site file has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Inject => "inject",
            Self::Reset => "reset",
            Self::Pause => "pause",
            Self::Stop => "stop",
        }
    }
}

/// A set of actions, a bit each by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Actions(pub u8);

impl Actions {
    /// All there are.
    pub const ALL: Self = Self(0b11111);

    /// This one alone.
    #[must_use]
    pub const fn only(action: Action) -> Self {
        Self(1 << action.number())
    }

    /// Whether `action` is one of them.
    #[must_use]
    pub const fn contains(self, action: Action) -> bool {
        self.0 >> action.number() & 1 != 0
    }
}

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

/// Why a request is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Not from the caller's level.
    Level,
    /// No such action, or not for this VM.
    Action,
    /// It is not armed.
    NotArmed,
    /// It must stay armed.
    MustStay,
}

impl Refused {
    /// What the guest is told.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::Level => 1,
            Self::Action => 2,
            Self::NotArmed => 3,
            Self::MustStay => 4,
        }
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

/// One watchdog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watchdog {
    bounds: Bounds,
    timeout: u64,
    action: Action,
    state: State,
    acted: u32,
}

impl Watchdog {
    /// A watchdog that nobody has armed.
    #[must_use]
    pub const fn new(bounds: Bounds) -> Self {
        Self { bounds, timeout: 0, action: Action::Log, state: State::Disarmed, acted: 0 }
    }

    /// Arms it as the VM's administrator says, outside of what the guest may choose; 0 disarms it.
    pub const fn preset(&mut self, timeout: u64, action: Action, now: u64) {
        self.timeout = timeout;
        self.action = action;
        self.state = match timeout {
            0 => State::Disarmed,
            timeout => State::Running { deadline: now.saturating_add(timeout) },
        };
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
        self.timeout = timeout.max(self.bounds.least).min(self.bounds.most);
        self.state = State::Running { deadline: now.saturating_add(self.timeout) };
        Ok(self.timeout)
    }

    /// Begins the time anew. Returns the time that is left.
    ///
    /// # Errors
    /// If it is not armed.
    pub const fn pat(&mut self, now: u64) -> Result<u64, Refused> {
        match self.state {
            State::Disarmed => Err(Refused::NotArmed),
            State::Running { .. } => {
                self.state = State::Running { deadline: now.saturating_add(self.timeout) };
                Ok(self.timeout)
            }
            State::Paused { .. } => {
                self.state = State::Paused { remaining: self.timeout };
                Ok(self.timeout)
            }
        }
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

    /// What is to be done at `now`, if the time is over. It is disarmed then, but for [`Action::Log`] and
    /// [`Action::Inject`], after which the time begins anew: a guest that does not recover is told again.
    pub const fn expire(&mut self, now: u64) -> Option<Action> {
        let State::Running { deadline } = self.state else { return None };
        if now < deadline {
            return None;
        }
        self.state = match self.action {
            Action::Log | Action::Inject => State::Running { deadline: now.saturating_add(self.timeout) },
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
        let is_paused = matches!(self.state, State::Paused { .. });
        Status { armed, action: self.action, is_paused, acted: self.acted }
    }

    /// Stops its clock.
    pub const fn pause(&mut self, now: u64) {
        if let State::Running { deadline } = self.state {
            self.state = State::Paused { remaining: deadline.saturating_sub(now) };
        }
    }

    /// Lets its clock go on.
    pub const fn resume(&mut self, now: u64) {
        if let State::Paused { remaining } = self.state {
            self.state = State::Running { deadline: now.saturating_add(remaining) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Action, Actions, Bounds, Refused, Status, Watchdog};
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
    fn actions_and_their_numbers() {
        for number in 0..5 {
            let action = Action::from_number(number).unwrap();
            assert_eq!(u64::from(action.number()), number);
            assert!(Actions::ALL.contains(action) && Actions::only(action).contains(action));
            assert_eq!((0..5).filter(|&other| Actions::only(action).0 >> other & 1 != 0).count(), 1);
        }
        assert_eq!(Action::from_number(5), None);
    }

    #[test]
    fn the_log_is_repeated() {
        let mut watchdog = Watchdog::new(BOUNDS);
        assert_eq!(watchdog.configure(100, 0, 0), Ok(100));
        assert_eq!(watchdog.expire(130), Some(Action::Log));
        assert_eq!(watchdog.deadline(), Some(230));
    }

    proptest! {
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
