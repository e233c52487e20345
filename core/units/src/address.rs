//! Addresses and ranges of them. One macro writes the three types, so that they cannot drift apart.

use core::fmt;

/// What all address types can do; lets [`Range`] serve each of them.
pub trait Address: Copy + Ord + fmt::Debug {
    /// The raw value.
    fn raw(self) -> u64;
    /// An address from its raw value.
    fn from_raw(raw: u64) -> Self;
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address rounded down to a multiple of `alignment`, which must be a power of two.
            #[must_use]
            pub const fn align_down(self, alignment: u64) -> Self {
                Self(self.0 & !(alignment - 1))
            }

            /// The address rounded up to a multiple of `alignment` (a power of two); `None` past the end of the space.
            #[must_use]
            pub const fn align_up(self, alignment: u64) -> Option<Self> {
                match self.0.checked_add(alignment - 1) {
                    Some(raised) => Some(Self(raised & !(alignment - 1))),
                    None => None,
                }
            }

            /// Whether the address is a multiple of `alignment`, a power of two.
            #[must_use]
            pub const fn is_aligned(self, alignment: u64) -> bool {
                self.0 & (alignment - 1) == 0
            }

            /// The address `bytes` further on; `None` past the end of the space.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl Address for $name {
            fn raw(self) -> u64 {
                self.0
            }

            fn from_raw(raw: u64) -> Self {
                Self(raw)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A physical address of the host.
    Pa
}
address! {
    /// An intermediate physical address: what a guest takes for a physical one, translated by stage 2.
    Ipa
}
address! {
    /// A virtual address, translated by stage 1 of whoever uses it.
    Va
}

/// A half-open range of addresses, `start..start + size`. Its end never wraps: [`Range::new`] refuses such a range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range<A> {
    /// The first address.
    pub start: A,
    /// Length in bytes.
    pub size: u64,
}

impl<A: Address> Range<A> {
    /// The `size` bytes from `start`; `None` if they do not fit below 2^64.
    #[must_use]
    pub fn new(start: A, size: u64) -> Option<Self> {
        start.raw().checked_add(size)?;
        Some(Self { start, size })
    }

    /// The first address behind the range.
    #[must_use]
    pub fn end(self) -> A {
        A::from_raw(self.start.raw().saturating_add(self.size))
    }

    /// Whether the range holds no byte.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.size == 0
    }

    /// Whether `address` lies inside.
    #[must_use]
    pub fn contains(self, address: A) -> bool {
        address >= self.start && address.raw() - self.start.raw() < self.size
    }

    /// Whether all of `other` lies inside; an empty range lies inside where its start does, or at the end.
    #[must_use]
    pub fn contains_range(self, other: Self) -> bool {
        other.start >= self.start && other.end() <= self.end()
    }

    /// Whether the two share a byte.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.start < other.end() && other.start < self.end()
    }
}

impl<A: Address> fmt::Debug for Range<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}..{:#x}", self.start, self.end().raw())
    }
}

#[cfg(test)]
mod tests {
    use super::{Ipa, Pa, Range};

    #[test]
    fn alignment_rounds_both_ways_and_stops_at_the_end() {
        assert_eq!(Pa(0x1fff).align_down(0x1000), Pa(0x1000));
        assert_eq!(Pa(0x1001).align_up(0x1000), Some(Pa(0x2000)));
        assert_eq!(Pa(u64::MAX).align_up(0x1000), None);
    }

    #[test]
    fn ranges_do_not_wrap() {
        assert!(Range::new(Ipa(u64::MAX), 2).is_none());
        let top = Range::new(Ipa(u64::MAX - 1), 1).unwrap();
        assert!(top.contains(Ipa(u64::MAX - 1)));
        assert!(!top.contains(Ipa(u64::MAX)));
    }

    #[test]
    fn touching_ranges_do_not_overlap() {
        let low = Range::new(Pa(0), 0x1000).unwrap();
        let high = Range::new(Pa(0x1000), 0x1000).unwrap();
        assert!(!low.overlaps(high));
        assert!(Range::new(Pa(0xfff), 2).unwrap().overlaps(high));
        assert!(!high.overlaps(low) && high.overlaps(Range::new(Pa(0xfff), 2).unwrap()));
    }

    #[test]
    fn a_range_holds_what_neither_begins_before_it_nor_ends_behind_it() {
        let range = |start, size| Range::new(Ipa(start), size).unwrap();
        let whole = range(0x1000, 0x1000);
        assert!(whole.contains_range(whole) && whole.contains_range(range(0x1800, 0x800)));
        assert!(!whole.contains_range(range(0xfff, 2)) && !whole.contains_range(range(0x1fff, 2)));
        assert!(!whole.contains_range(range(0, 0x3000)) && !whole.contains_range(range(0x4000, 1)));
        let nothing = range(0x1800, 0);
        assert!(nothing.is_empty() && !whole.is_empty());
        assert!(whole.contains_range(nothing) && !whole.overlaps(nothing) && !nothing.contains(Ipa(0x1800)));
        assert_eq!(std::format!("{whole:?}"), "Ipa(0x1000)..0x2000");
    }
}
