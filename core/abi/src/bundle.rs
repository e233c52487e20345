//! The bundle: everything the hypervisor needs to know and to load, in one checked file that it reads in place.
//!
//! ```text
//! 0         header, 64 bytes: magic, format, lengths, checksums
//! 64        manifest: postcard records, first `Head`, then one `VmConfig` a VM
//! 4 KiB * n blobs: kernels, initial ramdisks and disks' images, each at a multiple of 4 KiB
//! ```
//!
//! `croft` has already refused what is wrong, with the file and the line. The reader checks everything again, since
//! the file may have been cut, damaged or made by hand; it allocates nothing: VMs are decoded from the manifest as
//! they are asked for, and strings and blobs are borrowed from the file. Checking the blobs' checksums means reading
//! them whole, so that is a step of its own ([`Bundle::verify`]). The byte layout is in `docs/formats/bundle.md`.
//!
//! postcard records describe nothing of themselves: any change to them is a new [`FORMAT`], and a reader accepts
//! exactly the one it was built for.

mod check;
mod coherency;
mod disk;
mod doors;
mod error;
mod port;
mod program;
pub mod testing;
#[cfg(test)]
mod tests;
mod time;
mod vm;
#[cfg(any(feature = "alloc", test))]
mod writer;

pub use check::{check_name, check_vm};
pub use coherency::Coherency;
pub use disk::{
    Backend, CHANGES, Disk, Disks, HOST_BYTES, HostDisk, HostPart, IMAGE, MAX_DISKS, MAX_HOST_DISKS, MAX_SERIAL,
    SECTOR, check_changes, check_host_disk, check_image, check_serial, list_of_changes,
};
pub use doors::{Calls, Doors, Group, Quota};
pub use error::{BundleError, VmProblem};
pub use port::{DEFAULT_MTU, MAX_PORTS, MTU, Port, Ports, VLAN, check_mac};
pub use program::{MAX_SEGMENTS, Program, Segment};
pub use time::{CpuCounters, Time, TimeAway, TimeSource};
pub use vm::Vm;
#[cfg(any(feature = "alloc", test))]
pub use writer::{VmSource, write};

use crate::Crc32c;
use crate::watchdog::Action;
use serde::{Deserialize, Serialize};

/// The first eight bytes of a bundle. The last two show a transfer that mangled line ends.
pub const MAGIC: [u8; 8] = *b"UCROFT\r\n";
/// The format that this code reads and writes.
pub const FORMAT: u32 = 16;
/// Bytes in the header.
pub const HEADER_LENGTH: usize = 64;
/// Blobs begin at multiples of this many bytes from the start of the file.
pub const BLOB_ALIGNMENT: u64 = 4 << 10;
/// At most this many VMs in a bundle.
pub const MAX_VMS: usize = 64;
/// At most this many bytes in a VM's name.
pub const MAX_NAME: usize = 32;
/// At most this many bytes in a kernel command line (Linux's `COMMAND_LINE_SIZE` on arm64 less the final NUL).
pub const MAX_CMDLINE: usize = 2047;
/// The least memory of a VM, in bytes: one stage 2 block. Linux wants 64 MiB or more, a bare-metal payload does not.
pub const MIN_MEMORY: u64 = units::BLOCK_SIZE;
/// The most memory of a VM, in bytes: with RAM from 1 GiB on it ends well inside 40 bits, the smallest stage 2 input.
pub const MAX_MEMORY: u64 = 256 * units::GIGABYTE;
/// At most this large a weight.
pub const MAX_WEIGHT: u16 = 10_000;
/// The weight of a VM whose site file says none.
pub const DEFAULT_WEIGHT: u16 = 100;
/// [`Doors::watchdog_action`] where the site file says nothing.
pub const DEFAULT_ACTION: Action = Action::Reset;
/// The affinity that lets a VM run on every CPU.
pub const ANY_CPU: u64 = u64::MAX;

/// A piece of the bundle: where it is in the file, how long, and its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Blob {
    /// Bytes from the start of the bundle, a multiple of [`BLOB_ALIGNMENT`].
    pub offset: u64,
    /// Length in bytes, not 0.
    pub length: u64,
    /// CRC-32C of the contents.
    pub crc32c: u32,
}

/// A VM in a bundle: a record of the manifest.
pub type VmConfig<'a> = Vm<&'a str, Blob, Program>;

/// The first record of the manifest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Head<'a> {
    /// Name and version of the tool that made the bundle, for the log.
    made_by: &'a str,
    /// How many `VmConfig` records follow.
    vm_count: u16,
}

/// A bundle whose header and manifest have been checked. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Bundle<'a> {
    /// The file, cut to the length that its header gives.
    bytes: &'a [u8],
    made_by: &'a str,
    vm_count: u16,
    /// The `VmConfig` records.
    records: &'a [u8],
    crc32c: Crc32c,
}

/// The header's fields, numbers little-endian in the file.
struct Header {
    total_length: u64,
    manifest_offset: u64,
    manifest_length: u64,
    manifest_crc32c: u32,
}

/// The unsigned number of `N` bytes at `at`.
fn number<const N: usize>(header: &[u8; HEADER_LENGTH], at: usize) -> u64 {
    let mut wide = [0; 8];
    for (to, from) in wide.iter_mut().zip(header.iter().skip(at).take(N)) {
        *to = *from;
    }
    u64::from_le_bytes(wide)
}

impl Header {
    fn parse(bytes: &[u8], crc32c: Crc32c) -> Result<Self, BundleError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(BundleError::NotABundle);
        }
        let header: &[u8; HEADER_LENGTH] = bytes
            .first_chunk()
            .ok_or(BundleError::Truncated { present: bytes.len() as u64, promised: HEADER_LENGTH as u64 })?;
        if u64::from(crc32c(0, &header[..60])) != number::<4>(header, 60) {
            return Err(BundleError::HeaderDamaged);
        }
        // Checked after the checksum: a damaged format number is damage, not another format.
        let format = number::<4>(header, 8) as u32;
        if format != FORMAT {
            return Err(BundleError::OtherFormat { found: format });
        }
        Ok(Self {
            total_length: number::<8>(header, 16),
            manifest_offset: number::<8>(header, 24),
            manifest_length: number::<8>(header, 32),
            manifest_crc32c: number::<4>(header, 40) as u32,
        })
    }
}

/// `length` bytes of `bytes` from `offset`.
fn part(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    bytes.get(start..end)
}

impl<'a> Bundle<'a> {
    /// Checks header and manifest of the bundle at the start of `bytes`; bytes behind its end do not matter (loaders
    /// round a ramdisk's length up). Blobs are known to lie inside the file afterwards, their contents are unchecked.
    ///
    /// # Errors
    /// Says what is wrong, and in which VM.
    pub fn parse(bytes: &'a [u8], crc32c: Crc32c) -> Result<Self, BundleError> {
        let header = Header::parse(bytes, crc32c)?;
        let present = bytes.len() as u64;
        let bytes = part(bytes, 0, header.total_length)
            .ok_or(BundleError::Truncated { present, promised: header.total_length })?;
        let manifest = part(bytes, header.manifest_offset, header.manifest_length)
            .ok_or(BundleError::Truncated { present, promised: header.total_length })?;
        if crc32c(0, manifest) != header.manifest_crc32c {
            return Err(BundleError::ManifestDamaged);
        }
        let (head, records) = postcard::take_from_bytes::<Head<'a>>(manifest).map_err(|_| BundleError::Manifest)?;
        if head.vm_count == 0 || usize::from(head.vm_count) > MAX_VMS {
            return Err(BundleError::VmCount(head.vm_count));
        }
        let bundle = Self { bytes, made_by: head.made_by, vm_count: head.vm_count, records, crc32c };
        bundle.check()?;
        Ok(bundle)
    }

    /// Every VM against the rules, names against each other, and nothing left over.
    fn check(&self) -> Result<(), BundleError> {
        let mut rest = self.records;
        for index in 0..self.vm_count {
            let (vm, behind) = postcard::take_from_bytes::<VmConfig<'a>>(rest).map_err(|_| BundleError::Manifest)?;
            rest = behind;
            let wrong = |problem| BundleError::Vm { index, problem };
            check_vm(&vm).map_err(wrong)?;
            let images = vm.disks.iter().filter_map(|disk| disk.image());
            for blob in core::iter::once(&vm.kernel).chain(&vm.initrd).chain(images) {
                self.blob(blob).map_err(|_| wrong(VmProblem::BlobOutside))?;
            }
            if self.vms().take(usize::from(index)).any(|other| other.name == vm.name) {
                return Err(wrong(VmProblem::NameTaken));
            }
            self.check_ports(&vm.ports, index).map_err(wrong)?;
        }
        if rest.is_empty() { Ok(()) } else { Err(BundleError::Manifest) }
    }

    /// How many VMs there are: 1 to [`MAX_VMS`].
    #[must_use]
    pub fn vm_count(&self) -> usize {
        usize::from(self.vm_count)
    }

    /// The VMs in the order of the site file. Decoded on the way, so collect them rather than walk twice.
    pub fn vms(&self) -> impl Iterator<Item = VmConfig<'a>> + use<'a> {
        let mut rest = self.records;
        (0..self.vm_count).map_while(move |_| {
            let (vm, behind) = postcard::take_from_bytes(rest).ok()?;
            rest = behind;
            Some(vm)
        })
    }

    /// Name and version of the tool that made the bundle, for the log.
    #[must_use]
    pub fn made_by(&self) -> &'a str {
        self.made_by
    }

    /// The bytes of `blob`, borrowed from the bundle; their checksum is not looked at.
    ///
    /// # Errors
    /// If `blob` is not of this bundle: it is empty, not aligned, or not inside.
    pub fn blob(&self, blob: &Blob) -> Result<&'a [u8], BundleError> {
        let outside = BundleError::BlobOutside { offset: blob.offset };
        if blob.length == 0 || !blob.offset.is_multiple_of(BLOB_ALIGNMENT) {
            return Err(outside);
        }
        part(self.bytes, blob.offset, blob.length).ok_or(outside)
    }

    /// Reads all of `blob` and compares its checksum.
    ///
    /// # Errors
    /// As [`Bundle::blob`], and if the contents were damaged.
    pub fn verify(&self, blob: &Blob) -> Result<&'a [u8], BundleError> {
        let bytes = self.blob(blob)?;
        if (self.crc32c)(0, bytes) == blob.crc32c {
            Ok(bytes)
        } else {
            Err(BundleError::BlobDamaged { offset: blob.offset, length: blob.length })
        }
    }
}
