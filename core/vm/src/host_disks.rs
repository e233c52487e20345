//! Which parts of the host's disks the VMs of a site have, and what may be asked of them.
//!
//! It is settled once, for all VMs of the site, in its order. Two parts that may be written have no sector in common. A VM of which one disk
//! cannot be had has none of them, and takes nothing from those behind it. Whatever is asked of a part afterwards is looked at against that
//! part alone ([`DiskPart::place`]).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use abi::bundle::{HostDisk, HostPart, VmConfig};
use units::{DiskRequest, SECTOR, VmId};

/// A disk of the host's, as far as it was found out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundDisk<'a> {
    /// Its number, which it has whether it can be used or not: the next one would be taken for it otherwise.
    pub number: usize,
    /// Its serial number.
    pub serial: &'a [u8],
    /// How many sectors it has.
    pub sectors: u64,
    /// Bytes of its blocks: a power of two, at least a sector.
    pub block: u32,
    /// It cannot be written.
    pub is_read_only: bool,
    /// It can be used.
    pub is_usable: bool,
}

impl FoundDisk<'_> {
    /// One that cannot be used.
    #[must_use]
    pub const fn unusable(number: usize) -> Self {
        Self { number, serial: &[], sectors: 0, block: SECTOR as u32, is_read_only: true, is_usable: false }
    }
}

/// A part of a host's disk, for one disk of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskPart {
    /// The number of the host's disk.
    pub number: usize,
    /// Its first sector there.
    pub first_sector: u64,
    /// How many it has.
    pub sectors: u64,
    /// It cannot be written.
    pub is_read_only: bool,
    /// The first of the disk's slots that are its alone.
    pub first_slot: u16,
    /// How many of them there are: at least one.
    pub slots: u16,
}

impl DiskPart {
    /// What is to be asked of the whole disk where `wish` is asked of this part; nothing, if it may not be asked of it.
    #[must_use]
    pub fn place(&self, wish: DiskRequest) -> Option<DiskRequest> {
        if self.is_read_only && wish.changes() {
            return None;
        }
        let Some((first, count)) = wish.range() else { return Some(wish) };
        first.checked_add(count).filter(|&end| end <= self.sectors)?;
        Some(wish.from(self.first_sector.checked_add(first)?))
    }

    /// The slot of the whole disk that is number `slot` of this part's, whatever number that is.
    #[must_use]
    pub const fn slot(&self, slot: usize) -> u16 {
        // The remainder keeps what has no such slot from another's.
        self.first_slot + (slot % if self.slots == 0 { 1 } else { self.slots as usize }) as u16
    }

    /// Whether both may write to some sector.
    fn writes_where(&self, other: &Self) -> bool {
        let ends_before = |one: &Self, other: &Self| one.first_sector + one.sectors <= other.first_sector;
        let is_apart = ends_before(self, other) || ends_before(other, self);
        self.number == other.number && !self.is_read_only && !other.is_read_only && !is_apart
    }
}

/// What a disk of a VM has of a host's, or why it has nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskClaim<'a> {
    /// Whose it is.
    pub vm: VmId,
    /// That VM's name.
    pub vm_name: &'a str,
    /// The disk's serial number, as its guest sees it.
    pub serial: &'a str,
    /// It.
    pub part: Result<DiskPart, String>,
}

/// What each disk of `vms`, which are all of a site in their order, has of `disks`, which are all of the host's. A host's disk has `slots`
/// slots, of which a part has at most `most`.
#[must_use]
pub fn disk_claims<'a>(
    vms: impl Iterator<Item = VmConfig<'a>>,
    disks: &[FoundDisk<'_>],
    slots: u16,
    most: u16,
) -> Vec<DiskClaim<'a>> {
    let mut all: Vec<DiskClaim<'a>> = Vec::new();
    for (vm, config) in (0..).map(VmId).zip(vms) {
        let before = all.len();
        for disk in config.disks.iter() {
            let Some(part) = disk.host() else { continue };
            let part = find(part, disks).and_then(|part| match other_writer(&all, &part) {
                None => Ok(part),
                Some(other) => Err(format!(
                    "disk {} of {} may write to the same part of virtio{}",
                    other.serial, other.vm_name, part.number
                )),
            });
            all.push(DiskClaim { vm, vm_name: config.name, serial: disk.serial, part });
        }
        refuse_the_rest(all.get_mut(before..).unwrap_or_default());
    }
    // Whoever has no slot has no disk, and no other disk either, which leaves more to those that are left.
    while let Some(crowded) = disks.iter().find(|disk| sharers(&all, disk.number) > slots.into()) {
        let last = all.iter().rposition(|claim| is_on(claim, crowded.number));
        let Some(claim) = last.and_then(|last| all.get_mut(last)) else { break };
        claim.part = Err(format!("more than {slots} disks of VMs are on virtio{}", crowded.number));
        let vm = claim.vm;
        let first = all.partition_point(|claim| claim.vm < vm);
        let end = all.partition_point(|claim| claim.vm <= vm);
        refuse_the_rest(all.get_mut(first..end).unwrap_or_default());
    }
    for disk in disks {
        let each = (usize::from(slots) / sharers(&all, disk.number).max(1)).min(most.into()) as u16;
        let mut first = 0;
        for claim in &mut all {
            let Ok(part) = &mut claim.part else { continue };
            if part.number == disk.number {
                (part.first_slot, part.slots) = (first, each);
                first += each;
            }
        }
    }
    all
}

fn is_on(claim: &DiskClaim<'_>, number: usize) -> bool {
    claim.part.as_ref().is_ok_and(|part| part.number == number)
}

/// How many parts are on the host's disk with this number.
fn sharers(all: &[DiskClaim<'_>], number: usize) -> usize {
    all.iter().filter(|claim| is_on(claim, number)).count()
}

/// Of a VM's disks, if one cannot be had none is.
fn refuse_the_rest(of_one: &mut [DiskClaim<'_>]) {
    if of_one.iter().any(|claim| claim.part.is_err()) {
        let rest = of_one.iter_mut().filter(|claim| claim.part.is_ok());
        rest.for_each(|claim| claim.part = Err(String::from("another disk of the VM cannot be had")));
    }
}

/// Who may write to what `part` may write to.
fn other_writer<'c, 'a>(all: &'c [DiskClaim<'a>], part: &DiskPart) -> Option<&'c DiskClaim<'a>> {
    all.iter().find(|claim| claim.part.as_ref().is_ok_and(|other| other.writes_where(part)))
}

/// The part of a host's disk that is meant, if there is such a disk, and it is on that.
fn find(part: &HostPart<&str>, disks: &[FoundDisk<'_>]) -> Result<DiskPart, String> {
    let name = part.disk;
    let is_meant = |disk: &&FoundDisk<'_>| match HostDisk::named(name) {
        Some(HostDisk::Number(number)) => disk.number == number,
        Some(HostDisk::Serial(serial)) => disk.serial == serial.as_bytes(),
        None => false,
    };
    let mut meant = disks.iter().filter(is_meant);
    let Some(disk) = meant.next() else {
        return Err(format!("the host has no disk {name}; it has {}, and the log says which", disks.len()));
    };
    if meant.next().is_some() {
        return Err(format!("the host has several disks {name}"));
    }
    if !disk.is_usable {
        return Err(format!("{name} is not used, as the log says"));
    }
    let bytes = disk.sectors.saturating_mul(SECTOR);
    let Some(end) = part.end(bytes) else {
        return Err(format!(
            "{name} has {bytes} bytes, and the part of it would begin at {} and have {}",
            part.offset, part.size
        ));
    };
    let block = u64::from(disk.block);
    // What is behind the last whole block cannot be reached.
    let end = if part.size == 0 { end - end % block } else { end };
    if !(part.offset | end).is_multiple_of(block) || part.offset >= end {
        return Err(format!("{name} has blocks of {block} bytes, and a part of it begins and ends with one"));
    }
    if disk.is_read_only && !part.read_only {
        return Err(format!("{name} cannot be written; add read-only = true"));
    }
    Ok(DiskPart {
        number: disk.number,
        first_sector: part.offset / SECTOR,
        sectors: (end - part.offset) / SECTOR,
        is_read_only: part.read_only,
        first_slot: 0,
        slots: 0,
    })
}

#[cfg(test)]
mod tests;
