//! Values as bytes: how the saved state of a VM's parts is written down and read again.
//!
//! A [`Value`] is written field after field, numbers little-endian and of fixed width, so that equal values are equal bytes. The
//! macro [`value!`](crate::value) does that for a struct by naming all of its fields: one that is added and forgotten does not
//! compile. A [`Part`] is a value with a name and a version: it is written as a section with its length, so that a reader can
//! recognise what it does not know. The format is in `docs/formats/saved-vm.md`.
//!
//! The bytes may come from a file. The type of each list must say how many elements a VM can have in it: a longer list is refused
//! by its name, before it is read. The others are allocated fallibly, and a reader without memory says so
//! ([`Damaged::NoMemory`]); a value on the heap is a [`Boxed`]. Each error is one line; each part itself must refuse values that
//! no VM could have had.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod boxed;
pub mod testing;
mod values;

use alloc::vec::Vec;
use core::fmt;

pub use boxed::Boxed;

/// Something that can be written as bytes, and read again.
pub trait Value: Sized {
    /// Writes it.
    fn pack(&self, out: &mut Writer);

    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged>;

    /// Writes several, one after the other.
    fn pack_all(all: &[Self], out: &mut Writer) {
        all.iter().for_each(|value| value.pack(out));
    }

    /// Reads so many into `all`, which has room for them.
    ///
    /// # Errors
    /// What is wrong with the first of them that is.
    fn unpack_all(from: &mut Reader<'_>, count: usize, all: &mut Vec<Self>) -> Result<(), Damaged> {
        for _ in 0..count {
            all.push(Self::unpack(from)?);
        }
        Ok(())
    }
}

/// A value that is a section of its own.
pub trait Part: Value {
    /// The section's name.
    const NAME: &'static str;
    /// The version that is written, and the only one that is read. Another one means other fields, or another meaning.
    const VERSION: u16;
}

/// Makes a struct a [`Value`], of all of its fields in the order in which they are named, and with a name also a [`Part`],
/// whose version is the struct's `VERSION`. A `versioned` one, which stands within another's section, has that in front of it.
/// A list, which is a `Vec`, has the most values that it can have behind its name.
///
/// All fields are to be named:
/// ```compile_fail,E0027
/// struct Saved { one: u8, forgotten: u8 }
/// pack::value!(Saved { one });
/// ```
///
/// And no list is without its bound, here of 16:
/// ```
/// struct Saved { several: Vec<u8> }
/// pack::value!(Saved { several[16] });
/// ```
/// ```compile_fail,E0277
/// struct Saved { several: Vec<u8> }
/// pack::value!(Saved { several });
/// ```
#[macro_export]
macro_rules! value {
    ($type:ident { $($field:ident $([$most:expr])?),* $(,)? }) => {
        impl $crate::Value for $type {
            fn pack(&self, out: &mut $crate::Writer) {
                let Self { $($field),* } = self;
                $($crate::pack_field!(out, $field $([$most])?);)*
            }

            fn unpack(from: &mut $crate::Reader<'_>) -> Result<Self, $crate::Damaged> {
                $(let $field = $crate::unpack_field!(from, $type $field $([$most])?);)*
                Ok(Self { $($field),* })
            }
        }
    };
    ($type:ident versioned { $($field:ident $([$most:expr])?),* $(,)? }) => {
        impl $crate::Value for $type {
            fn pack(&self, out: &mut $crate::Writer) {
                let Self { $($field),* } = self;
                $crate::Value::pack(&Self::VERSION, out);
                $($crate::pack_field!(out, $field $([$most])?);)*
            }

            fn unpack(from: &mut $crate::Reader<'_>) -> Result<Self, $crate::Damaged> {
                let version: u16 = $crate::Value::unpack(from)?;
                if version != Self::VERSION {
                    return Err($crate::Damaged::Version(stringify!($type), version, Self::VERSION));
                }
                $(let $field = $crate::unpack_field!(from, $type $field $([$most])?);)*
                Ok(Self { $($field),* })
            }
        }
    };
    ($type:ident as $name:literal { $($field:ident $([$most:expr])?),* $(,)? }) => {
        $crate::value!($type { $($field $([$most])?),* });

        impl $crate::Part for $type {
            const NAME: &'static str = $name;
            const VERSION: u16 = $type::VERSION;
        }
    };
}

/// Writes a field, or the list that it is.
#[doc(hidden)]
#[macro_export]
macro_rules! pack_field {
    ($out:ident, $field:ident) => {
        $crate::Value::pack($field, $out)
    };
    ($out:ident, $field:ident[$most:expr]) => {
        $out.list($field)
    };
}

/// Reads a field, or the list that it is.
#[doc(hidden)]
#[macro_export]
macro_rules! unpack_field {
    ($from:ident, $type:ident $field:ident) => {
        $crate::Value::unpack($from)?
    };
    ($from:ident, $type:ident $field:ident[$most:expr]) => {
        $from.list($most, concat!(stringify!($type), ".", stringify!($field)))?
    };
}

/// What is wrong with bytes that should be a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damaged {
    /// They end too early.
    Short,
    /// A section is longer than what is in it.
    Long(&'static str),
    /// This section should be here.
    Missing(&'static str),
    /// This section, or what is in one, has that version, which is not known here; the other one is.
    Version(&'static str, u16, u16),
    /// This list has so many values; no VM's has more than the other number.
    Many(&'static str, u32, usize),
    /// There is no such value; says of what.
    Impossible(&'static str),
    /// The hypervisor has no memory left for it.
    NoMemory,
}

impl fmt::Display for Damaged {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => out.write_str("the saved state is damaged: it ends too early"),
            Self::Long(section) => {
                write!(out, "the saved state is damaged: its section {section} is longer than what is in it")
            }
            Self::Missing(section) => write!(out, "the saved state has no section {section} where one should be"),
            Self::Version(section, version, known) => {
                write!(out, "the saved state's {section} has version {version}; version {known} is known here")
            }
            Self::Many(list, count, most) => {
                write!(
                    out,
                    "the saved state is damaged: its {list} has {count} values, and no VM's has more than {most}"
                )
            }
            Self::Impossible(what) => write!(out, "the saved state is damaged: {what}"),
            Self::NoMemory => out.write_str("the hypervisor has no memory left for the saved state"),
        }
    }
}

impl core::error::Error for Damaged {}

/// Bytes that are being written.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    is_full: bool,
}

impl Writer {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), is_full: false }
    }

    /// Bytes as they are. Not inlined: there are hundreds of values, and each would have its own copy of how a vector grows.
    #[inline(never)]
    pub fn bytes(&mut self, bytes: &[u8]) {
        // What did not fit is missed at the end, not at each of the many values.
        if self.is_full || self.bytes.try_reserve(bytes.len()).is_err() {
            self.is_full = true;
            return;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The number of values, 32 bits, and the values.
    pub fn list<T: Value>(&mut self, all: &[T]) {
        (all.len() as u32).pack(self);
        T::pack_all(all, self);
    }

    /// A part that was taken out, or for which there was no memory.
    pub fn taken_out<P: Part>(&mut self, part: Result<P, Damaged>) {
        match part {
            Ok(part) => self.part(&part),
            // Nothing else can go wrong there.
            Err(_) => self.is_full = true,
        }
    }

    /// A part, as a section: its name with the length in front, its version, its length, and itself.
    pub fn part<P: Part>(&mut self, part: &P) {
        (P::NAME.len() as u8).pack(self);
        self.bytes(P::NAME.as_bytes());
        P::VERSION.pack(self);
        let place = self.bytes.len();
        0_u32.pack(self);
        let begin = self.bytes.len();
        part.pack(self);
        let length = (self.bytes.len() - begin) as u32;
        if let Some(field) = self.bytes.get_mut(place..begin) {
            for (to, from) in field.iter_mut().zip(length.to_le_bytes()) {
                *to = from;
            }
        }
    }

    /// What was written.
    ///
    /// # Errors
    /// If there was no memory for it.
    pub fn finish(self) -> Result<Vec<u8>, Damaged> {
        if self.is_full { Err(Damaged::NoMemory) } else { Ok(self.bytes) }
    }
}

/// Bytes that are being read.
#[derive(Clone, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads these.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// So many bytes. Not inlined, as [`Writer::bytes`].
    ///
    /// # Errors
    /// If there are fewer.
    #[inline(never)]
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Damaged> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Damaged::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// How many are left.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.0.len()
    }

    /// At most `most` values, with their number in front; `what` they are is said if there are more.
    ///
    /// # Errors
    /// What is wrong with them. Memory is asked for when it is known that there are so many, and only as much as they take.
    pub fn list<T: Value>(&mut self, most: usize, what: &'static str) -> Result<Vec<T>, Damaged> {
        let number = u32::unpack(self)?;
        let count = number as usize;
        if count > most {
            return Err(Damaged::Many(what, number, most));
        }
        // Each takes a byte or more.
        if count > self.left() {
            return Err(Damaged::Short);
        }
        let mut all = Vec::new();
        all.try_reserve_exact(count).map_err(|_| Damaged::NoMemory)?;
        T::unpack_all(self, count, &mut all)?;
        Ok(all)
    }

    /// A part, which is the next section.
    ///
    /// # Errors
    /// If it is another one, of another version, or damaged.
    pub fn part<P: Part>(&mut self) -> Result<P, Damaged> {
        let length = u8::unpack(self)?;
        if self.bytes(length.into())? != P::NAME.as_bytes() {
            return Err(Damaged::Missing(P::NAME));
        }
        let version = u16::unpack(self)?;
        if version != P::VERSION {
            return Err(Damaged::Version(P::NAME, version, P::VERSION));
        }
        let length = u32::unpack(self)?;
        let mut body = Self(self.bytes(length as usize)?);
        // As it came: taken out of its `Result` and put into another, a large one would stand on the stack twice.
        let part = P::unpack(&mut body);
        if part.is_ok() && body.left() > 0 {
            return Err(Damaged::Long(P::NAME));
        }
        part
    }
}

#[cfg(test)]
mod tests;
