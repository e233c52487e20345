//! A VM's disks: what is on them, and how its guest tells one from another.
//!
//! What a disk is made of is named by its backend. There is one now: an image, a file that lies in the bundle and is read in place.

use super::VmProblem;
use core::fmt;
use core::marker::PhantomData;
use core::ops::RangeInclusive;
use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// At most this many disks has a VM.
pub const MAX_DISKS: usize = 8;
/// At most this many bytes has a disk's serial number: what the protocol has room for.
pub const MAX_SERIAL: usize = 20;
/// A disk is a multiple of this many bytes.
pub const SECTOR: u64 = 512;
/// How many bytes an image may have: it lies in the host's memory as long as the host runs.
pub const IMAGE: RangeInclusive<u64> = SECTOR..=4 << 30;

/// A disk that cannot be written, whose contents are a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Disk<Text, File> {
    /// What is on it: [`IMAGE`] bytes, a multiple of [`SECTOR`].
    pub image: File,
    /// Its serial number, by which a guest finds it; no other disk of the VM has it. See [`check_serial`].
    pub serial: Text,
}

/// The disks of a VM, in their order. As bytes it is a list, so that a VM without one takes a byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disks<Text, File>(pub(super) [Option<Disk<Text, File>>; MAX_DISKS]);

impl<Text, File> Default for Disks<Text, File> {
    fn default() -> Self {
        Self([const { None }; MAX_DISKS])
    }
}

impl<Text, File> Disks<Text, File> {
    /// These disks; `None` if there are too many.
    #[must_use]
    pub fn of(all: impl IntoIterator<Item = Disk<Text, File>>) -> Option<Self> {
        let mut disks = Self::default();
        let mut places = disks.0.iter_mut();
        for disk in all {
            *places.next()? = Some(disk);
        }
        Some(disks)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Disk<Text, File>> {
        self.0.iter().flatten()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    /// The same disks with their texts in the form that `text` gives them, and with these files.
    #[must_use]
    pub fn with<'a, NewText, NewFile>(
        &'a self,
        text: impl Fn(&'a Text) -> NewText,
        mut file: impl FnMut(&'a File) -> NewFile,
    ) -> Disks<NewText, NewFile> {
        Disks(
            self.0.each_ref().map(|disk| {
                disk.as_ref().map(|Disk { image, serial }| Disk { image: file(image), serial: text(serial) })
            }),
        )
    }
}

impl<Text: Serialize, File: Serialize> Serialize for Disks<Text, File> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.count()))?;
        for disk in self.iter() {
            list.serialize_element(disk)?;
        }
        list.end()
    }
}

impl<'de, Text: Deserialize<'de>, File: Deserialize<'de>> Deserialize<'de> for Disks<Text, File> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<Text, File>(PhantomData<(Text, File)>);

        impl<'de, Text: Deserialize<'de>, File: Deserialize<'de>> Visitor<'de> for List<Text, File> {
            type Value = Disks<Text, File>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "a list of at most {MAX_DISKS} disks")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut disks = Disks::default();
                let mut places = disks.0.iter_mut();
                while let Some(disk) = list.next_element()? {
                    *places.next().ok_or_else(|| A::Error::invalid_length(MAX_DISKS + 1, &self))? = Some(disk);
                }
                Ok(disks)
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// Whether `serial` may be a disk's: 1 to 20 letters, digits, `-`, `_` and `.`, which stay as they are in the name of a link.
///
/// # Errors
/// [`VmProblem::Serial`].
pub fn check_serial(serial: &str) -> Result<(), VmProblem> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let fits = !serial.is_empty() && serial.len() <= MAX_SERIAL;
    if fits && serial.bytes().all(allowed) { Ok(()) } else { Err(VmProblem::Serial) }
}

/// Whether there may be an image of so many bytes.
///
/// # Errors
/// [`VmProblem::Image`].
pub fn check_image(bytes: u64) -> Result<(), VmProblem> {
    if IMAGE.contains(&bytes) && bytes.is_multiple_of(SECTOR) { Ok(()) } else { Err(VmProblem::Image(bytes)) }
}

impl Disks<&str, super::Blob> {
    /// Everything about them that can be judged without the rest of the bundle.
    pub(super) fn check(&self) -> Result<(), VmProblem> {
        for (index, disk) in self.iter().enumerate() {
            check_serial(disk.serial)?;
            check_image(disk.image.length)?;
            if self.iter().take(index).any(|other| other.serial == disk.serial) {
                return Err(VmProblem::SerialTaken);
            }
        }
        Ok(())
    }
}
