//! What guests and site files say of watchdogs: what one does when its time is over, and why a request is refused. The
//! numbers are the same in a call, in an answer and in the bundle.

use core::ops::RangeInclusive;

/// The milliseconds for which a site file may arm a watchdog: to a day. A guest may ask for the same at most.
pub const MILLISECONDS: RangeInclusive<u64> = 100..=86_400_000;

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
    /// All of them, by their numbers.
    pub const LIST: [Self; 5] = [Self::Log, Self::Inject, Self::Reset, Self::Pause, Self::Stop];
    /// Their names, by their numbers.
    pub const NAMES: [&str; 5] =
        [Self::Log.name(), Self::Inject.name(), Self::Reset.name(), Self::Pause.name(), Self::Stop.name()];

    /// The action that a number means.
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

    /// The action that a name means.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::LIST.into_iter().find(|action| action.name() == name)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its name, in site files, on command lines and in messages.
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
    pub const ALL: Self = Self((1 << Action::LIST.len()) - 1);

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
    /// What the guest is told on the WFE channel.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::Level => 1,
            Self::Action => 2,
            Self::NotArmed => 3,
            Self::MustStay => 4,
        }
    }

    /// What a number means.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        [Self::Level, Self::Action, Self::NotArmed, Self::MustStay].into_iter().find(|why| why.number() == number)
    }
}

#[cfg(test)]
mod tests {
    use super::{Action, Actions, Refused};

    #[test]
    fn actions_have_numbers_and_names() {
        for (number, action) in (0..).zip(Action::LIST) {
            assert_eq!((Action::from_number(number), u64::from(action.number())), (Some(action), number));
            assert_eq!(
                (Action::from_name(action.name()), Action::NAMES[number as usize]),
                (Some(action), action.name())
            );
            assert!(Actions::ALL.contains(action) && Actions::only(action).contains(action));
            assert_eq!(Action::LIST.into_iter().filter(|other| Actions::only(action).contains(*other)).count(), 1);
        }
        assert_eq!((Action::from_number(5), Action::from_name("bite"), Actions::ALL), (None, None, Actions(0b11111)));
    }

    #[test]
    fn reasons_have_numbers() {
        let known: std::vec::Vec<_> = (0..6).map(Refused::from_number).collect();
        let reasons = [Refused::Level, Refused::Action, Refused::NotArmed, Refused::MustStay].map(Some);
        assert_eq!((known[0], &known[1..5], known[5]), (None, &reasons[..], None));
    }
}
