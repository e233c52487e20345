//! Sites of VMs with parts of disks, and what each gets.

use std::string::ToString;
use std::vec;

use abi::bundle::{Backend, Blob, Disk, Disks};
use proptest::collection::vec as many;
use proptest::prelude::*;

use super::*;

const KIB: u64 = 1024;

type Part = HostPart<&'static str>;

fn part(disk: &'static str, (offset, size): (u64, u64)) -> Part {
    HostPart { disk, offset, size, read_only: false }
}

fn read_only(disk: &'static str, place: (u64, u64)) -> Part {
    Part { read_only: true, ..part(disk, place) }
}

/// A VM whose disks are these.
fn vm(name: &'static str, parts: &[Part]) -> VmConfig<'static> {
    const SERIALS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let disks = parts.iter().zip(SERIALS).map(|(&part, serial)| Disk { backend: Backend::Host(part), serial });
    let mut vm = VmConfig::new(name, Blob { offset: 0, length: 0, crc32c: 0 }, 4 << 20);
    vm.disks = Disks::of(disks).expect("few enough");
    vm
}

/// A disk of a MiB, and one of 64 KiB that cannot be written, of blocks of 4 KiB.
fn host() -> [FoundDisk<'static>; 2] {
    let first =
        FoundDisk { number: 0, serial: b"one", sectors: 2048, block: 512, is_read_only: false, is_usable: true };
    [first, FoundDisk { number: 1, serial: b"two", sectors: 128, block: 4096, is_read_only: true, ..first }]
}

/// What is said to each disk of these VMs that gets nothing; nothing of one that gets something.
fn refusals(vms: &[VmConfig<'static>], disks: &[FoundDisk<'_>]) -> Vec<Option<String>> {
    disk_claims(vms.iter().copied(), disks, 32, 16).into_iter().map(|claim| claim.part.err()).collect()
}

#[test]
fn a_part_is_where_it_was_asked_for() {
    let vms = [vm("x", &[part("virtio0", (64 * KIB, 128 * KIB)), read_only("serial:two", (4096, 0))])];
    let claims = disk_claims(vms.iter().copied(), &host(), 32, 16);
    let first = DiskPart { number: 0, first_sector: 128, sectors: 256, is_read_only: false, first_slot: 0, slots: 16 };
    let second = DiskPart { number: 1, first_sector: 8, sectors: 120, is_read_only: true, ..first };
    assert_eq!(claims.iter().map(|claim| claim.part.clone()).collect::<Vec<_>>(), [Ok(first), Ok(second)]);
    assert_eq!((claims[1].vm, claims[1].vm_name, claims[1].serial), (VmId(0), "x", "b"));
}

/// What is asked of a part is asked of the disk so much further on, and never of anything beside the part.
#[test]
fn what_is_asked_of_a_part_is_asked_of_that_part() {
    let part = DiskPart { number: 0, first_sector: 1000, sectors: 50, is_read_only: false, first_slot: 6, slots: 3 };
    for (asked, placed) in [
        (DiskRequest::Read(0, 512), Some(DiskRequest::Read(1000, 512))),
        (DiskRequest::Write(49, 512), Some(DiskRequest::Write(1049, 512))),
        (DiskRequest::Write(49, 1024), None),
        (DiskRequest::Read(50, 512), None),
        (DiskRequest::Read(u64::MAX, 512), None),
        (DiskRequest::Discard(7, 43), Some(DiskRequest::Discard(1007, 43))),
        (DiskRequest::Discard(7, 44), None),
        (DiskRequest::Zero(1, 2, true), Some(DiskRequest::Zero(1001, 2, true))),
        (DiskRequest::Zero(u64::MAX, u32::MAX, false), None),
        (DiskRequest::Flush, Some(DiskRequest::Flush)),
    ] {
        assert_eq!(part.place(asked), placed, "{asked:?}");
        let fixed = DiskPart { is_read_only: true, ..part };
        assert_eq!(fixed.place(asked), placed.filter(|_| !asked.changes()), "{asked:?}");
    }
    assert_eq!([0, 1, 2, 3, usize::MAX].map(|slot| part.slot(slot)), [6, 7, 8, 6, 6]);
}

#[test]
fn two_never_write_to_one_sector() {
    let (left, right) = ((0, 512 * KIB), (512 * KIB, 0));
    let both = [vm("x", &[part("virtio0", left)]), vm("y", &[part("serial:one", right)])];
    assert_eq!(refusals(&both, &host()), [None, None]);
    let said = Some("disk a of x may write to the same part of virtio0".to_string());
    for other in [(512 * KIB - 512, 0), (0, 0), (0, 512), (512 * KIB - 512, 512)] {
        let both = [vm("x", &[part("virtio0", left)]), vm("y", &[part("serial:one", other)])];
        assert_eq!(refusals(&both, &host()), [None, said.clone()], "{other:?}");
        let reader = [vm("x", &[part("virtio0", left)]), vm("y", &[read_only("virtio0", other)])];
        assert_eq!(refusals(&reader, &host()), [None, None]);
        let itself = refusals(&[vm("x", &[part("virtio0", left), part("virtio0", other)])], &host());
        assert_eq!(itself, [Some("another disk of the VM cannot be had".to_string()), said.clone()]);
    }
}

/// A VM that is not made takes nothing from those behind it.
#[test]
fn a_vm_that_cannot_have_all_has_nothing() {
    let vms =
        [vm("x", &[part("virtio0", (0, 0)), part("virtio7", (0, 0))]), vm("y", &[part("virtio0", (0, 512 * KIB))])];
    let said =
        ["another disk of the VM cannot be had", "the host has no disk virtio7; it has 2, and the log says which"];
    let expected = [Some(said[0].to_string()), Some(said[1].to_string()), None];
    assert_eq!(refusals(&vms, &host()), expected);
}

#[test]
fn what_cannot_be_had_is_said() {
    let [first, second] = host();
    let disks = [first, second, FoundDisk::unusable(2), FoundDisk { number: 3, ..first }];
    for (part, said) in [
        (part("serial:one", (0, 0)), "the host has several disks serial:one"),
        (part("virtio2", (0, 0)), "virtio2 is not used, as the log says"),
        (part("virtio1", (0, 0)), "virtio1 cannot be written; add read-only = true"),
        (read_only("virtio1", (512, 0)), "virtio1 has blocks of 4096 bytes, and a part of it begins and ends with one"),
        (
            part("virtio3", (KIB * KIB - 512, 1024)),
            "virtio3 has 1048576 bytes, and the part of it would begin at 1048064 and have 1024",
        ),
        (part("what", (0, 0)), "the host has no disk what; it has 4, and the log says which"),
    ] {
        assert_eq!(refusals(&[vm("x", &[part])], &disks), [Some(said.to_string())]);
    }
    // What is behind the last whole block is not had by whoever wants all.
    let odd = FoundDisk { sectors: 131, ..second };
    let vms = [vm("x", &[read_only("virtio1", (0, 0))])];
    let claims = disk_claims(vms.iter().copied(), &[first, odd], 32, 16);
    assert_eq!(claims[0].part.as_ref().map(|part| part.sectors), Ok(128));
}

/// A disk that cannot be used keeps its number, and the next one is not taken for it.
#[test]
fn a_disk_that_cannot_be_used_is_not_replaced_by_the_next() {
    let [first, _] = host();
    let disks = [FoundDisk::unusable(0), FoundDisk { number: 1, ..first }];
    let vms = [vm("x", &[part("virtio0", (0, 0))]), vm("y", &[part("virtio1", (0, 0))])];
    assert_eq!(refusals(&vms, &disks), [Some("virtio0 is not used, as the log says".to_string()), None]);
}

/// Slots are divided among those who share a disk, and where there are more of these than slots the last ones get none, with all of their
/// VMs' disks.
#[test]
fn slots_are_divided() {
    let three = vec![vm("x", &[read_only("virtio0", (0, 0)); 3])];
    let slots = |vms: &[VmConfig<'static>], of| -> Vec<(u16, u16)> {
        let claims = disk_claims(vms.iter().copied(), &host(), of, 16);
        claims
            .iter()
            .filter_map(|claim| Some((claim.part.as_ref().ok()?.first_slot, claim.part.as_ref().ok()?.slots)))
            .collect()
    };
    assert_eq!(slots(&three, 32), [(0, 10), (10, 10), (20, 10)]);
    let more = [
        three[0],
        vm("y", &[read_only("virtio1", (0, 0)), read_only("virtio0", (0, 0))]),
        vm("z", &[read_only("virtio0", (0, 512))]),
    ];
    assert_eq!(slots(&more, 3), [(0, 1), (1, 1), (2, 1)], "those of the first alone");
    let claims = disk_claims(more.iter().copied(), &host(), 3, 16);
    let said: Vec<_> = claims.into_iter().skip(3).map(|claim| claim.part.err().unwrap_or_default()).collect();
    let crowded = "more than 3 disks of VMs are on virtio0";
    assert_eq!(said, ["another disk of the VM cannot be had", crowded, crowded]);
    assert_eq!(slots(&more, 4), [(0, 1), (1, 1), (2, 1), (0, 4), (3, 1)], "and two of them");
}

fn any_part() -> impl Strategy<Value = Part> {
    let disk = prop_oneof![Just("virtio0"), Just("virtio1"), Just("serial:one"), Just("virtio2")];
    (disk, 0..150_u64, 0..150_u64, any::<bool>()).prop_map(|(disk, offset, size, read_only)| HostPart {
        disk,
        offset: offset * 512,
        size: size * 512,
        read_only,
    })
}

proptest! {
    /// Whatever a site says: each sector has one writer, each slot one owner, each part is on its disk and in whole blocks of that, and a VM
    /// has all of its disks or none.
    #[test]
    fn nobody_has_what_is_anothers(
        vms in many(many(any_part(), 0..5), 0..20),
        slots in 1..33_u16,
        most in 1..17_u16,
    ) {
        let disks = host();
        let vms: Vec<_> = vms.iter().map(|parts| vm("x", parts)).collect();
        let claims = disk_claims(vms.iter().copied(), &disks, slots, most);
        let had: Vec<_> = claims.iter().filter_map(|claim| Some((claim.vm, *claim.part.as_ref().ok()?))).collect();
        for disk in &disks {
            let (mut writers, mut owners) = (vec![0; disk.sectors as usize], vec![0; slots.into()]);
            for (_, part) in had.iter().filter(|(_, part)| part.number == disk.number) {
                prop_assert!(part.sectors > 0 && part.first_sector + part.sectors <= disk.sectors);
                prop_assert!((part.first_sector | part.sectors).is_multiple_of(u64::from(disk.block) / 512));
                prop_assert!(part.is_read_only || !disk.is_read_only);
                prop_assert!((1..=most).contains(&part.slots));
                if !part.is_read_only {
                    let first = part.first_sector as usize;
                    writers[first..first + part.sectors as usize].iter_mut().for_each(|count| *count += 1);
                }
                (0..part.slots.into()).for_each(|slot| owners[usize::from(part.slot(slot))] += 1);
            }
            prop_assert!(writers.into_iter().all(|count| count <= 1) && owners.into_iter().all(|count| count <= 1));
        }
        for claim in &claims {
            let has = |claim: &DiskClaim<'_>| claim.part.is_ok();
            let of_it = || claims.iter().filter(|other| other.vm == claim.vm);
            prop_assert!(of_it().all(has) || !of_it().any(has));
        }
    }
}
