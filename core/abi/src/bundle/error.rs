//! What can be wrong with a bundle, in words for the host's console.

use super::{MAX_CMDLINE, MAX_NAME, MAX_SERIAL, MAX_VMS, MAX_WEIGHT, MTU, VLAN};
use crate::watchdog::MILLISECONDS;
use core::fmt;
use thiserror::Error;
use units::MAX_VCPUS;

/// Why a bundle is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BundleError {
    /// Something else was given as the initial ramdisk.
    #[error("this is no bundle; `croft bundle SITE.toml -o FILE` makes one, to be passed as the initial ramdisk")]
    NotABundle,
    /// Made by another version of `croft`.
    #[error("the bundle has format {found}, this hypervisor reads format {format}; bundle the site again with the matching croft", format = super::FORMAT)]
    OtherFormat {
        /// The format that its header names.
        found: u32,
    },
    /// The file ends too early.
    #[error("the bundle is cut off: {present} of its {promised} bytes are here")]
    Truncated {
        /// Bytes that are there.
        present: u64,
        /// Bytes that there should be.
        promised: u64,
    },
    /// The header's checksum is wrong.
    #[error("the bundle's header is damaged: its checksum is wrong")]
    HeaderDamaged,
    /// The manifest's checksum is wrong.
    #[error("the bundle's manifest is damaged: its checksum is wrong")]
    ManifestDamaged,
    /// The manifest is not made of the expected records.
    #[error("the bundle's manifest cannot be read although its checksum is right; bundle the site again")]
    Manifest,
    /// No VM, or too many.
    #[error("the bundle holds {0} VMs; it must be 1 to {MAX_VMS}")]
    VmCount(u16),
    /// A VM breaks a rule.
    #[error("VM {index} of the bundle: {problem}")]
    Vm {
        /// Which, counted from 0 in the order of the site file.
        index: u16,
        /// The rule it breaks.
        problem: VmProblem,
    },
    /// A blob that is not in the file.
    #[error("the contents at {offset:#x} are not inside the bundle")]
    BlobOutside {
        /// Where it claims to begin.
        offset: u64,
    },
    /// A blob's checksum is wrong.
    #[error("the {length} bytes at {offset:#x} of the bundle are damaged: their checksum is wrong")]
    BlobDamaged {
        /// Where it begins.
        offset: u64,
        /// Its length in bytes.
        length: u64,
    },
}

/// An address, in messages.
struct Mac<'a>(&'a [u8; 6]);

impl fmt::Display for Mac<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// Which rule a VM breaks. `croft` shows the same sentences with the site file's line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum VmProblem {
    /// The name is empty, too long or has other characters.
    #[error("a name is 1 to {MAX_NAME} of a-z, 0-9 and -")]
    Name,
    /// Another VM has this name.
    #[error("another VM has the same name; each needs its own")]
    NameTaken,
    /// Not 1 to 8 vCPUs.
    #[error("{0} vCPUs; a VM has 1 to {MAX_VCPUS}")]
    Vcpus(u64),
    /// Memory is no multiple of 2 MiB, or too little or much.
    #[error("{0} bytes of memory; it must be a multiple of 2M, from 2M to 256G")]
    Memory(u64),
    /// The files are larger than the VM.
    #[error("kernel and initrd have {files} bytes, which do not fit into {memory} bytes of memory")]
    DoesNotFit {
        /// Bytes in both files.
        files: u64,
        /// Bytes of memory.
        memory: u64,
    },
    /// The pieces of a program are not what its blob holds.
    #[error("the pieces of its program are not what its file has")]
    Program,
    /// The command line is too long or has a NUL byte.
    #[error("the kernel's command line may have {MAX_CMDLINE} bytes and no NUL")]
    Cmdline,
    /// Weight 0 or too large.
    #[error("weight {0}; it must be 1 to {MAX_WEIGHT}")]
    Weight(u64),
    /// No such frequency of a counter.
    #[error("a counter of {0} Hz; it must be 0 for the host's, or 1000000 to 1000000000")]
    Frequency(u32),
    /// Time that stands still, or passes too fast.
    #[error("time at {0} millionths of real time; it must be 1000 to 10000000")]
    Rate(u32),
    /// No CPU to run on.
    #[error("the affinity allows no CPU; name at least one, or leave it out")]
    Affinity,
    /// No action has this number.
    #[error("watchdog action {0}; it must be 0 log, 1 inject, 2 reset, 3 pause or 4 stop")]
    WatchdogAction(u8),
    /// Neither off nor a time for which a watchdog can be armed.
    #[error("a watchdog of {0} ms; it must be 0 for none, or {least} to {most}", least = MILLISECONDS.start(), most = MILLISECONDS.end())]
    WatchdogTime(u32),
    /// There is no such set of actions.
    #[error("watchdog choices {0:#x}; they are a bit each of the actions 0 to 4")]
    WatchdogChoices(u8),
    /// A bound of VMware's service that may not be set so.
    #[error("VMware's service: {name} cannot be limited to {value}")]
    Quota {
        /// Which bound.
        name: &'static str,
        /// What it should be.
        value: u64,
    },
    /// Groups of calls that there are not.
    #[error("there are no groups of calls {0:#x}")]
    Calls(u8),
    /// An image that is no whole number of sectors, or that is empty or too large.
    #[error("a disk's image of {0} bytes; it must be a multiple of 512, from 512 to 4G")]
    Image(u64),
    /// No such memory for what is written to a disk.
    #[error(
        "{changes} bytes for what is written to a disk; it must be a multiple of 2M, up to 8G, and more than its list, {list} bytes"
    )]
    Changes {
        /// How many bytes there should be.
        changes: u64,
        /// How many the list takes.
        list: u64,
    },
    /// A name by which no disk of the host's can be found.
    #[error("a disk of the host's is virtio0 to virtio31, or serial: and its serial number")]
    HostDisk,
    /// A part of a disk of the host's that cannot be.
    #[error("a part of a disk of the host's begins and ends at a multiple of 512 bytes, and has 512 bytes to 1E")]
    HostPart,
    /// A serial number that is empty, too long or has other characters.
    #[error("a disk's serial number is 1 to {MAX_SERIAL} of letters, digits, -, _ and .")]
    Serial,
    /// Another disk of the VM has this serial number.
    #[error("two disks of it have the same serial number; each needs its own")]
    SerialTaken,
    /// The name of a network is empty, too long or has other characters.
    #[error("a network's name is 1 to {MAX_NAME} of a-z, 0-9 and -")]
    Network,
    /// An address that is no single station's.
    #[error("a port's address is one of a single station, as 52:54:00:12:34:56; {mac} is none", mac = Mac(.0))]
    Mac([u8; 6]),
    /// A VLAN has another number.
    #[error("a VLAN of {0}; it must be {least} to {most}", least = VLAN.start(), most = VLAN.end())]
    Vlan(u16),
    /// No packet can be so short, or so long.
    #[error("an MTU of {0}; it must be {least} to {most}", least = MTU.start(), most = MTU.end())]
    Mtu(u16),
    /// Another port of a network has this address.
    #[error("another port of the network has the address {mac}; each needs its own", mac = Mac(.0))]
    MacTaken([u8; 6]),
    /// A port of its network has another MTU than this one.
    #[error("an MTU of {0} on a network of which another port has another one; all of its ports need the same")]
    MtuDiffers(u16),
    /// A blob is not in the file.
    #[error("its kernel, initrd or a disk's image is not inside the bundle")]
    BlobOutside,
}
