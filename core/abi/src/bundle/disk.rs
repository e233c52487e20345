//! A VM's disks: what is on them, and how its guest tells one from another.
//!
//! What a disk is made of is named by its backend. There is one now: an image, a file that lies in the bundle and is read in place. What a
//! guest writes, if it may, lies in memory of its VM, with a list that says for each block of the disk where it is.

use super::VmProblem;
use core::fmt;
use core::marker::PhantomData;
use core::ops::RangeInclusive;
use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use units::{BLOCK_SIZE, PAGE_SIZE};

/// At most this many disks has a VM.
pub const MAX_DISKS: usize = 8;
/// At most this many bytes has a disk's serial number: what the protocol has room for.
pub const MAX_SERIAL: usize = 20;
/// A disk is a multiple of this many bytes.
pub const SECTOR: u64 = 512;
/// How many bytes an image may have: it lies in the host's memory as long as the host runs.
pub const IMAGE: RangeInclusive<u64> = SECTOR..=4 << 30;

/// How much memory what is written to a disk may take, with its list: whole blocks of 2 MiB. No image with its list is larger.
pub const CHANGES: RangeInclusive<u64> = BLOCK_SIZE..=8 << 30;

/// A disk whose contents are a file, and what its guest has written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Disk<Text, File> {
    /// What is on it: [`IMAGE`] bytes, a multiple of [`SECTOR`].
    pub image: File,
    /// Its serial number, by which a guest finds it; no other disk of the VM has it. See [`check_serial`].
    pub serial: Text,
    /// How many bytes of memory there are for what its guest writes, one of [`CHANGES`]; 0 for a disk that cannot be written. See
    /// [`check_changes`].
    pub changes: u64,
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

    /// How many bytes of memory there are for what their guest writes, together.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.iter().fold(0, |sum, disk| sum.saturating_add(disk.changes))
    }

    /// The same disks with their texts in the form that `text` gives them, and with these files.
    #[must_use]
    pub fn with<'a, NewText, NewFile>(
        &'a self,
        text: impl Fn(&'a Text) -> NewText,
        mut file: impl FnMut(&'a File) -> NewFile,
    ) -> Disks<NewText, NewFile> {
        Disks(self.0.each_ref().map(|disk| {
            let Disk { image, serial, changes } = disk.as_ref()?;
            Some(Disk { image: file(image), serial: text(serial), changes: *changes })
        }))
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

/// How many bytes the list takes that says where what was written to a disk is: a word of 32 bits for each 4 KiB of the disk, whole pages.
#[must_use]
pub const fn list_of_changes(image: u64) -> u64 {
    (image.div_ceil(PAGE_SIZE) * size_of::<u32>() as u64).next_multiple_of(PAGE_SIZE)
}

/// Whether there may be so many bytes for what is written to a disk with an image of so many: none, or whole blocks with room for
/// something beside the list.
///
/// # Errors
/// [`VmProblem::Changes`].
pub fn check_changes(changes: u64, image: u64) -> Result<(), VmProblem> {
    let fits = CHANGES.contains(&changes) && changes.is_multiple_of(BLOCK_SIZE) && list_of_changes(image) < changes;
    if changes == 0 || fits { Ok(()) } else { Err(VmProblem::Changes { changes, list: list_of_changes(image) }) }
}

impl Disks<&str, super::Blob> {
    /// Everything about them that can be judged without the rest of the bundle.
    pub(super) fn check(&self) -> Result<(), VmProblem> {
        for (index, disk) in self.iter().enumerate() {
            check_serial(disk.serial)?;
            check_image(disk.image.length)?;
            check_changes(disk.changes, disk.image.length)?;
            if self.iter().take(index).any(|other| other.serial == disk.serial) {
                return Err(VmProblem::SerialTaken);
            }
        }
        Ok(())
    }
}
