//! How much of everything a guest may have, and what that can add up to.

use abi::bundle::Quota;
use alloc::vec::Vec;

/// Bounds for one VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Channels open at once.
    pub channels: usize,
    /// Bytes in one message from the guest.
    pub message: usize,
    /// Bytes in all messages that are on their way.
    pub buffers: usize,
    /// Keys in the key store.
    pub keys: usize,
    /// Bytes in a key.
    pub key: usize,
    /// Bytes in all keys and values.
    pub store: usize,
    /// Bytes of log a second; a burst of eight seconds' worth is let through.
    pub log: u64,
}

impl Limits {
    /// What every VM gets unless something else is said.
    pub const DEFAULT: Self = Self::of(&Quota::USUAL);

    /// A VM's bounds: those of its site file, and of what nobody sets.
    #[must_use]
    pub const fn of(quota: &Quota) -> Self {
        Self {
            channels: quota.channels as usize,
            message: quota.message as usize,
            buffers: 1 << 20,
            keys: quota.keys as usize,
            key: 256,
            store: quota.store as usize,
            log: quota.log as u64,
        }
    }

    /// About how many bytes of the host's memory a guest can make its service take: values and messages on their way,
    /// the message that is carried out with its reply and a copy of its value, and as much again for what an allocator
    /// loses between pieces of any size. The host sets that aside, so that no guest takes what others need.
    #[must_use]
    pub const fn most_memory(&self) -> usize {
        let values = self.store + self.keys * RECORD;
        let messages = self.buffers + self.channels * RECORD;
        2 * (values + messages + 3 * self.message)
    }
}

/// What a channel or a value takes beside its bytes, with some to spare.
const RECORD: usize = 256;

/// A copy, if there is memory for it.
pub(crate) fn copy(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).ok()?;
    copy.extend_from_slice(bytes);
    Some(copy)
}

/// A bucket that fills at a steady rate and is emptied by use.
#[derive(Clone, Copy, Debug)]
pub struct LogRate {
    per_second: u64,
    /// In thousandths.
    tokens: u64,
    since: u64,
}

impl LogRate {
    /// Full, as of `now` in milliseconds.
    #[must_use]
    pub const fn new(per_second: u64, now: u64) -> Self {
        Self { per_second, tokens: per_second.saturating_mul(8000), since: now }
    }

    /// Takes `amount`, if it is there at `now` in milliseconds.
    #[must_use]
    pub const fn take(&mut self, amount: u64, now: u64) -> bool {
        let passed = now.saturating_sub(self.since);
        self.since = now;
        let full = self.per_second.saturating_mul(8000);
        let filled = self.tokens.saturating_add(passed.saturating_mul(self.per_second));
        self.tokens = if filled > full { full } else { filled };
        let amount = amount.saturating_mul(1000);
        if amount > self.tokens {
            return false;
        }
        self.tokens -= amount;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::LogRate;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut rate = LogRate::new(100, 0);
        assert!(rate.take(800, 0));
        assert!(!rate.take(1, 0));
        assert!(rate.take(50, 500));
        assert!(!rate.take(1, 500));
        assert!(rate.take(800, u64::MAX));
        assert!(!rate.take(1, u64::MAX), "however long it was idle");
    }
}
