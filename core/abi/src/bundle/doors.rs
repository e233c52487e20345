//! How a guest may call the hypervisor without a driver, and how much of it: what the site file says of the doors.

use super::VmProblem;
use core::ops::RangeInclusive;
use serde::{Deserialize, Serialize};

/// How a guest may call the hypervisor without a driver. Everything is off unless the site file says otherwise, and
/// costs nothing then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Doors {
    /// VMware's guest ABI and our own calls beside it: `MRS XZR, MDCCSR_EL0` from any level and `HVC #0x86`.
    pub vmware: bool,
    /// An access to the debug channel that is no call is always an exception for the guest, as if its own kernel forbade
    /// it; otherwise only where the kernel does.
    pub strict: bool,
    /// The tools keep the guest's clock at the host's.
    pub time_sync: bool,
    /// The WFE channel: detection, and the watchdog.
    pub wfe: bool,
    /// The guest's user level may set the watchdog up too.
    pub watchdog_user: bool,
    /// The watchdog is armed from the start for this many milliseconds, and the guest cannot disarm it; 0: it is the
    /// guest's own.
    pub watchdog_milliseconds: u32,
    /// What an armed watchdog does: the number of a [`crate::watchdog::Action`].
    pub watchdog_action: u8,
    /// The actions that the guest may choose for its watchdogs, a bit each by number. 0: all; but where the site file arms
    /// one, that one's action alone.
    pub watchdog_choices: u8,
    /// As `watchdog_milliseconds`, for a watchdog of each vCPU's own.
    pub vcpu_watchdog_milliseconds: u32,
    /// The machine has the Generic Watchdog of Arm's Base System Architecture. What its second signal does is
    /// `watchdog_action`.
    pub generic_watchdog: bool,
    /// How much of everything the guest may have of VMware's service.
    pub quota: Quota,
    /// The calls that its user level may make.
    pub user_calls: Calls,
    /// The calls that its kernel may make.
    pub kernel_calls: Calls,
}

/// Bounds of what a guest may have of VMware's service. Beyond them it gets an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Quota {
    /// Channels open at once; when one more is opened, the one that was idle longest is given up.
    pub channels: u16,
    /// Bytes in a message.
    pub message: u32,
    /// Keys in its store.
    pub keys: u16,
    /// Bytes in all keys and values.
    pub store: u32,
    /// Bytes that it may write into the host's log, a second.
    pub log: u32,
}

impl Quota {
    /// A daemon has two channels.
    pub const CHANNELS: RangeInclusive<u64> = 2..=256;
    /// VMware's clients send at most 64 KiB.
    pub const MESSAGE: RangeInclusive<u64> = 256..=65536;
    /// See [`Quota::keys`].
    pub const KEYS: RangeInclusive<u64> = 0..=1024;
    /// See [`Quota::store`].
    pub const STORE: RangeInclusive<u64> = 0..=4 << 20;
    /// See [`Quota::log`].
    pub const LOG: RangeInclusive<u64> = 0..=1 << 20;
    /// What every VM gets unless its site file says something else.
    pub const USUAL: Self = Self { channels: 64, message: 65536, keys: 256, store: 512 << 10, log: 4096 };

    /// Whether each bound is one that may be set.
    ///
    /// # Errors
    /// Which is not.
    pub fn check(&self) -> Result<(), VmProblem> {
        let bounds = [
            ("channels", u64::from(self.channels), Self::CHANNELS),
            ("message", self.message.into(), Self::MESSAGE),
            ("keys", self.keys.into(), Self::KEYS),
            ("store", self.store.into(), Self::STORE),
            ("log", self.log.into(), Self::LOG),
        ];
        let wrong = bounds.into_iter().find(|(_, value, range)| !range.contains(value));
        wrong.map_or(Ok(()), |(name, value, _)| Err(VmProblem::Quota { name, value }))
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self::USUAL
    }
}

/// Calls that are allowed or refused together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// RPC channels, and with them the values and the tools.
    Rpc,
    /// What time it is.
    Time,
    /// What the machine is made of: speed, memory, UUID, options, removable devices.
    Hardware,
    /// Our own calls: statistics, clock, watchdog, a line for the log.
    Own,
}

impl Group {
    /// All of them, by their bits in [`Calls`].
    pub const LIST: [Self; 4] = [Self::Rpc, Self::Time, Self::Hardware, Self::Own];

    /// Its name, as the site file has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rpc => "rpc",
            Self::Time => "time",
            Self::Hardware => "hardware",
            Self::Own => "own",
        }
    }
}

/// Groups of calls that a level may make, a bit each in the order of [`Group`]. Whether anybody answers at all (VMware's version) is in no group:
/// whoever may not know that cannot tell the other answers either.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Calls(pub u8);

impl Calls {
    /// All of them.
    pub const ALL: Self = Self((1 << Group::LIST.len()) - 1);

    /// These alone.
    #[must_use]
    pub fn only(groups: &[Group]) -> Self {
        Self(groups.iter().fold(0, |bits, group| bits | 1 << *group as u8))
    }

    /// Whether `group` is one of them.
    #[must_use]
    pub const fn has(self, group: Group) -> bool {
        self.0 >> group as u8 & 1 != 0
    }
}

impl Default for Calls {
    fn default() -> Self {
        Self::ALL
    }
}

#[cfg(test)]
mod tests {
    use super::{Calls, Group};

    #[test]
    fn a_group_is_allowed_if_it_was_named() {
        // Each of the sixteen choices.
        for bits in 0..1_u8 << Group::LIST.len() {
            let chosen = |at: usize| bits >> at & 1 == 1;
            let groups: std::vec::Vec<_> =
                (0..Group::LIST.len()).filter(|&at| chosen(at)).map(|at| Group::LIST[at]).collect();
            let calls = Calls::only(&groups);
            assert_eq!(calls, Calls(bits));
            assert!(Group::LIST.iter().enumerate().all(|(at, &group)| calls.has(group) == chosen(at)));
        }
        assert_eq!(Calls::only(&Group::LIST), Calls::ALL);
        assert_eq!(Calls::only(&[Group::Time; 2]), Calls::only(&[Group::Time]), "once is enough");
        assert_eq!(Group::LIST.map(Group::name), ["rpc", "time", "hardware", "own"]);
    }
}
