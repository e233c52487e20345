//! The key store: `guestinfo.*` values that the guest and the operator leave for each other.

use alloc::vec::Vec;

use crate::limits::{Limits, copy};

/// What every key begins with.
pub const PREFIX: &[u8] = b"guestinfo.";

/// Why a value is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The key is empty, too long, or has a space or a control character.
    Key,
    /// It has more bytes than a message may have.
    TooLong,
    /// There are as many keys as may be.
    TooManyKeys,
    /// There is as much in the store as may be.
    Full,
}

impl Refused {
    /// What the guest is told.
    #[must_use]
    pub const fn text(self) -> &'static [u8] {
        match self {
            Self::Key => b"Invalid key",
            Self::TooLong => b"Value too long",
            Self::TooManyKeys => b"Too many keys",
            Self::Full => b"Out of memory",
        }
    }
}

impl Refused {
    /// What the operator is told.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Key => "a key is guestinfo. and a name of printable characters without spaces",
            Self::TooLong => {
                "a value has at most as many bytes as a message of the VM's (vmware-message in its site file)"
            }
            Self::TooManyKeys => "the VM has as many keys as it may have (vmware-keys in its site file)",
            Self::Full => "the VM has as much in its values as it may have (vmware-store in its site file)",
        }
    }
}

/// One VM's values.
#[derive(Debug, Default)]
pub struct Store {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    used: usize,
}

impl Store {
    /// The value of `key`, which includes [`PREFIX`].
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_slice())
    }

    /// Sets `key`, which includes [`PREFIX`], to `value`.
    ///
    /// # Errors
    /// Why not; the old value stays.
    pub fn set(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), Refused> {
        let index = self.entries.iter().position(|(known, _)| known == key);
        let used = self.check(index, key, value, limits)?;
        match index.and_then(|index| self.entries.get_mut(index)) {
            Some((_, old)) => *old = copy(value).ok_or(Refused::Full)?,
            None => {
                let entry = (copy(key).ok_or(Refused::Full)?, copy(value).ok_or(Refused::Full)?);
                self.reserve(1).ok_or(Refused::Full)?;
                self.entries.push(entry);
            }
        }
        self.used = used;
        Ok(())
    }

    /// Takes a value in that is new, as it is; there is room for it ([`Store::reserve`]).
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn take(&mut self, key: Vec<u8>, value: Vec<u8>, limits: &Limits) -> Result<(), Refused> {
        self.used = self.check(None, &key, &value, limits)?;
        self.entries.push((key, value));
        Ok(())
    }

    /// Makes room for so many more values.
    pub(crate) fn reserve(&mut self, count: usize) -> Option<()> {
        self.entries.try_reserve(count).ok()
    }

    /// How many bytes there are in all when `key`, which is at `index` if it is known, has this value.
    fn check(&self, index: Option<usize>, key: &[u8], value: &[u8], limits: &Limits) -> Result<usize, Refused> {
        let good = key.len() <= limits.key
            && key.strip_prefix(PREFIX).is_some_and(|name| !name.is_empty())
            && key.iter().all(u8::is_ascii_graphic);
        if !good {
            return Err(Refused::Key);
        }
        // A guest's own value cannot be longer, since it came in a message. The operator's could, and each reply with it would
        // take more of the host's memory than was set aside for this VM (`Limits::most_memory`).
        if value.len() > limits.message {
            return Err(Refused::TooLong);
        }
        let before = index.and_then(|index| self.entries.get(index)).map_or(0, |(key, value)| key.len() + value.len());
        let used = self.used - before + key.len() + value.len();
        if used > limits.store {
            return Err(Refused::Full);
        }
        if index.is_none() && self.entries.len() >= limits.keys { Err(Refused::TooManyKeys) } else { Ok(used) }
    }

    /// The same, as they are kept.
    pub(crate) fn entries(&self) -> &[(Vec<u8>, Vec<u8>)] {
        let Self { entries, used: _ } = self;
        entries
    }

    /// All keys with their values, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::{Refused, Store};
    use crate::limits::Limits;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    const SMALL: Limits = Limits { message: 96, keys: 4, key: 16, store: 100, ..Limits::DEFAULT };

    #[test]
    fn limits_are_kept() {
        let mut store = Store::default();
        assert_eq!(store.set(b"guestinfo.", b"", &SMALL), Err(Refused::Key));
        assert_eq!(store.set(b"other.a", b"", &SMALL), Err(Refused::Key));
        assert_eq!(store.set(b"guestinfo.a b", b"", &SMALL), Err(Refused::Key));
        assert_eq!(store.set(b"guestinfo.abcdefgh", b"", &SMALL), Err(Refused::Key));
        assert_eq!(store.set(b"guestinfo.a", &[b'x'; 97], &SMALL), Err(Refused::TooLong));
        assert_eq!(store.set(b"guestinfo.a", &[b'x'; 90], &SMALL), Err(Refused::Full));
        assert_eq!(store.set(b"guestinfo.a", &[b'x'; 89], &SMALL), Ok(()));
        assert_eq!(store.set(b"guestinfo.a", &[b'y'; 2], &SMALL), Ok(()));
        for key in [b"guestinfo.b", b"guestinfo.c", b"guestinfo.d"] {
            assert_eq!(store.set(key, b"", &SMALL), Ok(()));
        }
        assert_eq!(store.set(b"guestinfo.e", b"", &SMALL), Err(Refused::TooManyKeys));
        assert_eq!(store.get(b"guestinfo.a"), Some(&b"yy"[..]));
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0u8..6, proptest::collection::vec(any::<u8>(), 0..40)), 0..60)) {
            let mut store = Store::default();
            let mut model = BTreeMap::<Vec<u8>, Vec<u8>>::new();
            for (name, value) in steps {
                let key = [b"guestinfo.".as_slice(), &[b'a' + name]].concat();
                if store.set(&key, &value, &SMALL).is_ok() {
                    model.insert(key, value);
                }
                let used: usize = model.iter().map(|(key, value)| key.len() + value.len()).sum();
                prop_assert_eq!(store.used, used);
                prop_assert!(used <= SMALL.store && model.len() <= SMALL.keys);
                prop_assert!(model.iter().all(|(key, value)| store.get(key) == Some(value)));
            }
        }
    }
}
