//! A VM's disks: what is on them, and how its guest tells one from another.
//!
//! What a disk is made of is named by its backend. An image is a file that lies in the bundle and is read in place; what a guest writes, if it
//! may, lies in memory of its VM, with a list that says for each block of the disk where it is. Or it is a range of a disk of the host's, which
//! is read and written there.

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

/// Before the serial number, in the name of a host's disk that is found by that.
const BY_SERIAL: &str = "serial:";
/// Before the number of one that is found by that.
const BY_NUMBER: &str = "virtio";
/// So many disks of a host have numbers.
pub const MAX_HOST_DISKS: usize = 32;
/// How many bytes a part of a host's disk may have, and where it may begin: whole sectors.
pub const HOST_BYTES: RangeInclusive<u64> = SECTOR..=1 << 60;

/// A disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Disk<Text, File> {
    /// What it is made of.
    pub backend: Backend<Text, File>,
    /// Its serial number, by which a guest finds it; no other disk of the VM has it. See [`check_serial`].
    pub serial: Text,
}

/// What a disk is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Backend<Text, File> {
    /// A file, and what its guest has written.
    Image {
        /// What is on it: [`IMAGE`] bytes, a multiple of [`SECTOR`].
        image: File,
        /// How many bytes of memory there are for what its guest writes, one of [`CHANGES`]; 0 for a disk that cannot be written. See
        /// [`check_changes`].
        changes: u64,
    },
    /// A disk of the host's, or a part of one.
    Host(HostPart<Text>),
}

/// A part of a disk of the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostPart<Text> {
    /// Which disk. See [`HostDisk`].
    pub disk: Text,
    /// How many bytes are before it, whole sectors.
    pub offset: u64,
    /// How many bytes it has, one of [`HOST_BYTES`]; 0 for all that there are behind `offset`.
    pub size: u64,
    /// Its guest cannot write it.
    pub read_only: bool,
}

/// How a disk of the host's is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostDisk<'a> {
    /// By its number, in the order in which the hypervisor finds them: `virtio0` is the first.
    Number(usize),
    /// By its serial number: `serial:data`.
    Serial(&'a str),
}

impl<'a> HostDisk<'a> {
    /// Which disk is meant by a name.
    #[must_use]
    pub fn named(name: &'a str) -> Option<Self> {
        if let Some(serial) = name.strip_prefix(BY_SERIAL) {
            return check_serial(serial).ok().map(|()| Self::Serial(serial));
        }
        let digits = name.strip_prefix(BY_NUMBER)?;
        let is_written_so = digits == "0" || !digits.starts_with(['0', '+']);
        let number = digits.parse().ok().filter(|&number| number < MAX_HOST_DISKS && is_written_so)?;
        Some(Self::Number(number))
    }
}

impl<Text> HostPart<Text> {
    /// Where it ends on a disk of so many bytes, if it is on it.
    #[must_use]
    pub fn end(&self, bytes: u64) -> Option<u64> {
        let end = if self.size == 0 { bytes } else { self.offset.checked_add(self.size)? };
        (end <= bytes && self.offset < end).then_some(end)
    }

    /// Whether two parts of one disk, however large it is, have something in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let ends_before =
            |one: &Self, other: &Self| one.size != 0 && one.offset.saturating_add(one.size) <= other.offset;
        !ends_before(self, other) && !ends_before(other, self)
    }

    /// Everything about it that can be judged without the disk.
    ///
    /// # Errors
    /// [`VmProblem::HostDisk`], [`VmProblem::HostPart`].
    fn check(&self, name: impl Fn(&Text) -> &str) -> Result<(), VmProblem> {
        HostDisk::named(name(&self.disk)).ok_or(VmProblem::HostDisk)?;
        let fits = self.size == 0 || HOST_BYTES.contains(&self.size);
        let is_whole = (self.offset | self.size).is_multiple_of(SECTOR);
        if fits && is_whole && self.offset <= *HOST_BYTES.end() { Ok(()) } else { Err(VmProblem::HostPart) }
    }
}

impl<Text, File> Disk<Text, File> {
    /// One with this image, which cannot be written.
    pub const fn of_image(image: File, serial: Text) -> Self {
        Self { backend: Backend::Image { image, changes: 0 }, serial }
    }

    /// Its image, if it has one.
    pub const fn image(&self) -> Option<&File> {
        match &self.backend {
            Backend::Image { image, .. } => Some(image),
            Backend::Host(_) => None,
        }
    }

    /// The part of a disk of the host's that it is, if it is one.
    pub const fn host(&self) -> Option<&HostPart<Text>> {
        match &self.backend {
            Backend::Image { .. } => None,
            Backend::Host(part) => Some(part),
        }
    }

    /// How many bytes of its VM's memory there are for what its guest writes.
    pub const fn changes(&self) -> u64 {
        match &self.backend {
            Backend::Image { changes, .. } => *changes,
            Backend::Host(_) => 0,
        }
    }
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
        self.iter().fold(0, |sum, disk| sum.saturating_add(disk.changes()))
    }

    /// How many of them are on the host's disks.
    #[must_use]
    pub fn on_host(&self) -> usize {
        self.iter().filter(|disk| disk.host().is_some()).count()
    }

    /// The same disks with their texts in the form that `text` gives them, and with these files.
    #[must_use]
    pub fn with<'a, NewText, NewFile>(
        &'a self,
        text: impl Fn(&'a Text) -> NewText,
        mut file: impl FnMut(&'a File) -> NewFile,
    ) -> Disks<NewText, NewFile> {
        Disks(self.0.each_ref().map(|disk| {
            let Disk { backend, serial } = disk.as_ref()?;
            let backend = match backend {
                Backend::Image { image, changes } => Backend::Image { image: file(image), changes: *changes },
                Backend::Host(HostPart { disk, offset, size, read_only }) => {
                    let (offset, size, read_only) = (*offset, *size, *read_only);
                    Backend::Host(HostPart { disk: text(disk), offset, size, read_only })
                }
            };
            Some(Disk { backend, serial: text(serial) })
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

/// Whether `name` may be that of a disk of the host's. See [`HostDisk`].
///
/// # Errors
/// [`VmProblem::HostDisk`].
pub fn check_host_disk(name: &str) -> Result<(), VmProblem> {
    HostDisk::named(name).map(drop).ok_or(VmProblem::HostDisk)
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
            match &disk.backend {
                Backend::Image { image, changes } => {
                    check_image(image.length)?;
                    check_changes(*changes, image.length)?;
                }
                Backend::Host(part) => part.check(|name| name)?,
            }
            if self.iter().take(index).any(|other| other.serial == disk.serial) {
                return Err(VmProblem::SerialTaken);
            }
        }
        Ok(())
    }
}
