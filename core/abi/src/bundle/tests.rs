//! What the reader accepts, what it refuses, and that no bytes make it panic.

use super::testing::largest;
use super::{
    BLOB_ALIGNMENT, Backend, Blob, Bundle, BundleError, Calls, Coherency, Disk, Disks, Doors, FORMAT, Head, HostDisk,
    HostPart, MAX_CMDLINE, MAX_MEMORY, MAX_SEGMENTS, MAX_VMS, MAX_WEIGHT, Port, Ports, Program, Quota, Segment, Time,
    TimeAway, TimeSource, VmConfig, VmProblem, VmSource, check_name, check_vm, write,
};
use crate::crc32c::compute;
use proptest::prelude::*;
use std::{string::ToString, vec, vec::Vec};

const KERNEL: [u8; 5000] = [7; 5000];
const INITRD: [u8; 10] = [9; 10];
const IMAGE: [u8; 1024] = [5; 1024];

/// Disks with this image, and with these serial numbers.
fn disks<'a>(image: &'a [u8], serials: &[&'a str]) -> Disks<&'a str, &'a [u8]> {
    Disks::of(serials.iter().map(|serial| Disk::of_image(image, *serial))).unwrap()
}

const OTHER_TIME: Time =
    Time { frequency: 24_000_000, rate: 500_000, source: TimeSource::Mmio, away: TimeAway::Freeze };

fn source(name: &str) -> VmSource<'_> {
    VmSource {
        vcpus: 2,
        initrd: Some(&INITRD),
        cmdline: "console=ttyAMA0",
        autostart: name != "db",
        pause_stops_time: name == "db",
        coherency: if name == "db" { Coherency::Strict } else { Coherency::OnDemand },
        time: if name == "db" { OTHER_TIME } else { Time::default() },
        ..VmSource::new(name, &KERNEL[..], 64 << 20)
    }
}

fn sample() -> Vec<u8> {
    write("test 1", &[source("web"), VmSource { initrd: None, vcpus: 1, affinity: 0b10, ..source("db") }]).unwrap()
}

/// The same bundle with other bytes at `at`, and a header whose checksum is right again.
fn with_header(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut bundle = sample();
    bundle[at..at + bytes.len()].copy_from_slice(bytes);
    let checksum = compute(0, &bundle[..60]);
    bundle[60..64].copy_from_slice(&checksum.to_le_bytes());
    bundle
}

fn refusal(bytes: &[u8]) -> BundleError {
    Bundle::parse(bytes, compute).unwrap_err()
}

#[test]
fn what_was_written_is_read_back() {
    let mut bytes = sample();
    assert!(bytes.len().is_multiple_of(BLOB_ALIGNMENT as usize));
    bytes.extend([0; 100]);
    let bundle = Bundle::parse(&bytes, compute).unwrap();
    let vms: Vec<VmConfig<'_>> = bundle.vms().collect();
    assert_eq!((bundle.made_by(), bundle.vm_count(), vms.len()), ("test 1", 2, 2));
    assert_eq!((vms[0].name, vms[0].vcpus, vms[0].memory, vms[0].cmdline), ("web", 2, 64 << 20, "console=ttyAMA0"));
    assert_eq!((vms[0].pause_stops_time, vms[1].pause_stops_time), (false, true));
    assert_eq!((vms[0].autostart, vms[1].autostart), (true, false));
    assert_eq!((vms[0].time, vms[1].time), (Time::default(), OTHER_TIME));
    assert_eq!((vms[0].coherency, vms[1].coherency), (Coherency::OnDemand, Coherency::Strict));
    assert_eq!((vms[1].name, vms[1].initrd, vms[1].affinity, vms[1].weight), ("db", None, 0b10, 100));
    assert_eq!(bundle.verify(&vms[0].kernel).unwrap(), KERNEL);
    assert_eq!(bundle.verify(&vms[0].initrd.unwrap()).unwrap(), INITRD);
    assert_eq!(vms[0].kernel, vms[1].kernel, "one kernel, stored once");
}

#[test]
fn all_of_a_vm_goes_the_whole_way() {
    let all: VmSource<'_> = largest(&KERNEL[..], None);
    // Where the largest number is too large, another one that is not the usual one.
    let source = VmSource {
        vcpus: 3,
        memory: 66 << 20,
        initrd: Some(&INITRD),
        disks: disks(&IMAGE, &["root", "data"]),
        ports: Ports::of([("lan", 0x56), ("dmz", 0x57)].map(|(network, last)| port(network, last))).unwrap(),
        weight: 7,
        time: Time { frequency: 62_500_000, rate: 250_000, ..all.time },
        doors: Doors {
            watchdog_milliseconds: 1000,
            watchdog_action: 1,
            watchdog_choices: 3,
            vcpu_watchdog_milliseconds: 1001,
            quota: Quota { channels: 5, message: 1002, keys: 6, store: 1003, log: 1004 },
            user_calls: Calls(5),
            kernel_calls: Calls(6),
            ..all.doors
        },
        ..all
    };
    let bytes = write("t", &[source]).unwrap();
    let bundle = Bundle::parse(&bytes, compute).unwrap();
    let read = bundle.vms().next().unwrap();
    let initrd = read.initrd.unwrap();
    assert!(read.program.is_none(), "a program for an image that has none");
    let files = (bundle.verify(&read.kernel).unwrap(), bundle.verify(&initrd).unwrap());
    assert_eq!(files, (&KERNEL[..], &INITRD[..]));
    let images: Vec<_> = read.disks.iter().map(|disk| bundle.verify(disk.image().unwrap()).unwrap()).collect();
    assert_eq!(images, [&IMAGE[..]; 2]);
    let places: Vec<_> = read.disks.iter().map(|disk| disk.image().unwrap().offset).collect();
    assert_eq!(places[0], places[1], "what both have is there once");
    let disks = read.disks.with(|text| *text, |_| &IMAGE[..]);
    assert_eq!(read.with(|text| *text, source.kernel, None, source.initrd, disks), source);
}

fn port(network: &str, last: u8) -> Port<&str> {
    Port { network, vlan: 0, mac: [0x52, 0x54, 0, 0x12, 0x34, last], mtu: 9000 }
}

#[test]
fn ports_that_a_vm_may_have() {
    let refused = |ports: &[Port<&'static str>]| {
        let ports = Ports::of(ports.iter().copied()).unwrap();
        match write(
            "t",
            &[
                VmSource { ports: Ports::of([port("lan", 1)]).unwrap(), ..source("a") },
                VmSource { ports, ..source("b") },
            ],
        ) {
            Err(BundleError::Vm { index: 1, problem }) => Some(problem),
            other => other.map(|_| None).unwrap(),
        }
    };
    let good = port("lan", 2);
    assert_eq!(refused(&[good, Port { network: "dmz", ..good }, port("lan", 3), port("dmz", 1)]), None);
    assert_eq!(refused(&[Port { network: "LAN", ..good }]), Some(VmProblem::Network));
    for mac in [[1, 0, 0, 0, 0, 1], [0xff; 6], [0; 6]] {
        assert_eq!(refused(&[Port { mac, ..good }]), Some(VmProblem::Mac(mac)));
    }
    for (mtu, is_wrong) in [(575, true), (576, false), (u16::MAX, false), (0, true)] {
        let alone = Port { mtu, network: "dmz", ..good };
        assert_eq!(refused(&[alone]), is_wrong.then_some(VmProblem::Mtu(mtu)));
    }
    let longer = Port { mtu: good.mtu + 1, ..good };
    let differs = Some(VmProblem::MtuDiffers(longer.mtu));
    assert_eq!(refused(&[longer]), differs, "the other VM's port has another MTU");
    assert_eq!(refused(&[Port { vlan: 7, ..longer }]), differs, "a VLAN is of the network");
    let dmz = |last, mtu| Port { mtu, ..port("dmz", last) };
    assert_eq!(refused(&[dmz(1, 9000), dmz(2, 9001)]), Some(VmProblem::MtuDiffers(9001)), "of one VM");
    assert_eq!(refused(&[dmz(1, 9000), dmz(2, 9000), good]), None);
    for (vlan, is_wrong) in [(0, false), (1, false), (4094, false), (4095, true), (u16::MAX, true)] {
        assert_eq!(refused(&[Port { vlan, ..good }]), is_wrong.then_some(VmProblem::Vlan(vlan)));
    }
    let taken = Some(VmProblem::MacTaken(good.mac));
    assert_eq!(refused(&[good, Port { vlan: 7, ..good }]), taken, "a network's VLANs have each address once");
    assert_eq!(refused(&[good, good]), taken);
    assert_eq!(
        refused(&[port("lan", 4), port("lan", 1)]),
        Some(VmProblem::MacTaken(port("lan", 1).mac)),
        "the other VM has it"
    );
    assert!(Ports::of((0..9).map(|last| port("lan", last))).is_none());
    assert_eq!(
        VmProblem::MacTaken(good.mac).to_string(),
        "another port of the network has the address 52:54:00:12:34:02; each needs its own"
    );
}

/// The bytes of a record describe nothing of themselves: a reader of another format takes them for other fields. So whoever changes what a
/// VM's record holds hears here which numbers to raise.
#[test]
fn a_record_with_other_fields_is_another_format() {
    /// A format, and the checksum of these records in it. A row for each layout, the last one is today's.
    const LAYOUTS: [(u32, u32); 4] = [(13, 0x4166_00ec), (14, 0xb585_3a7a), (15, 0xa3fa_6f22), (16, 0x06bd_8ef1)];
    let segment = Segment { address: u64::MAX, size: u64::MAX - 1, file_bytes: u64::MAX - 2 };
    let program = Program { entry: u64::MAX, segments: [segment; MAX_SEGMENTS] };
    let blob = Blob { offset: u64::MAX, length: u64::MAX - 1, crc32c: u32::MAX };
    let vm: VmConfig<'_> = largest(blob, Some(program));
    let found = compute(0, &postcard::to_allocvec(&(Head { made_by: "c", vm_count: 60_003 }, vm)).unwrap());
    let (format, known) = LAYOUTS[LAYOUTS.len() - 1];
    assert!(LAYOUTS.is_sorted_by(|one, next| one.0 < next.0) && format <= FORMAT);
    assert!(
        found == known || format < FORMAT,
        "what a bundle says of a VM has changed, and FORMAT has not: raise it (core/abi/src/bundle.rs), and the version of \
         `Kind::Vm` (core/snapshot/src/file.rs), for a saved VM has the same record; then add ({}, {found:#x}) here",
        FORMAT + 1
    );
    assert_eq!(found, known, "FORMAT was raised to {FORMAT}: add ({FORMAT}, {found:#x}) here");
}

/// A part of a host's disk is found by the disk's name, and has whole sectors. Two of them have something in common, or not.
#[test]
fn parts_of_a_hosts_disk() {
    let part = |disk, offset, size| HostPart { disk, offset, size, read_only: false };
    let disks = |part| Disks::of([Disk { backend: Backend::Host(part), serial: "a" }]).unwrap();
    let wrong = |part| match write("t", &[VmSource { disks: disks(part), ..source("web") }]) {
        Err(BundleError::Vm { problem, .. }) => Some(problem),
        other => other.map(|_| None).unwrap(),
    };
    for (name, found) in [
        ("virtio0", Some(HostDisk::Number(0))),
        ("virtio31", Some(HostDisk::Number(31))),
        ("serial:data-1", Some(HostDisk::Serial("data-1"))),
        ("virtio32", None),
        ("virtio01", None),
        ("virtio+1", None),
        ("virtio", None),
        ("nvme0", None),
        ("serial:", None),
        ("serial:a b", None),
        ("", None),
    ] {
        assert_eq!(HostDisk::named(name), found, "{name}");
        let problem = if found.is_some() { None } else { Some(VmProblem::HostDisk) };
        assert_eq!(wrong(part(name, 0, 0)), problem, "{name}");
    }
    for (offset, size) in [(1, 0), (0, 100), (512, 511), (1 << 61, 0), (0, (1 << 60) + 512)] {
        assert_eq!(wrong(part("virtio0", offset, size)), Some(VmProblem::HostPart), "{offset} {size}");
    }
    let bytes = write("t", &[VmSource { disks: disks(part("virtio3", 512, 1024)), ..source("web") }]).unwrap();
    let read = Bundle::parse(&bytes, compute).unwrap().vms().next().unwrap();
    assert_eq!(read.disks.iter().next().unwrap().host(), Some(&part("virtio3", 512, 1024)));

    assert_eq!([1535, 1536, 9999].map(|bytes| part("", 512, 1024).end(bytes)), [None, Some(1536), Some(1536)]);
    assert_eq!([512, 1024].map(|bytes| part("", 512, 0).end(bytes)), [None, Some(1024)]);
    assert_eq!(part("", 512, u64::MAX).end(u64::MAX), None);
    for (one, other, overlaps) in [
        ((0, 512), (512, 512), false),
        ((0, 1024), (512, 512), true),
        ((0, 0), (1 << 50, 512), true),
        ((1 << 50, 512), (0, 1 << 50), false),
        ((1024, 0), (0, 1024), false),
        ((1024, 0), (2048, 0), true),
    ] {
        let [one, other] = [one, other].map(|(offset, size)| part("", offset, size));
        assert_eq!([one.overlaps(&other), other.overlaps(&one)], [overlaps; 2], "{one:?} {other:?}");
    }
}

/// Each rule about disks, and as many of them as a VM may have.
#[test]
fn disks_that_cannot_be_are_refused() {
    let wrong = |disks| match write("t", &[VmSource { disks, ..source("web") }]) {
        Err(BundleError::Vm { index: 0, problem }) => Some(problem),
        other => other.map(|_| None).unwrap(),
    };
    let serials = ["a", "b", "c", "d", "e", "f", "g", "h"];
    assert_eq!(wrong(disks(&IMAGE, &serials)), None);
    assert!(Disks::of(serials.iter().chain(["i"].iter()).map(|serial| Disk::of_image((), serial))).is_none());
    for length in [0, 511, 513] {
        assert_eq!(wrong(disks(&KERNEL[..length], &["a"])), Some(VmProblem::Image(length as u64)));
    }
    for serial in ["", "a b", "a/b", "\u{e4}", "123456789012345678901"] {
        assert_eq!(wrong(disks(&IMAGE, &["a", serial])), Some(VmProblem::Serial), "{serial}");
    }
    assert_eq!(wrong(disks(&IMAGE, &["a.B-9_", "12345678901234567890"])), None);
    assert_eq!(wrong(disks(&IMAGE, &["a", "b", "a"])), Some(VmProblem::SerialTaken));
    assert_eq!(super::check_image(4 << 30), Ok(()));
    assert_eq!(super::check_image((4 << 30) + 512), Err(VmProblem::Image((4 << 30) + 512)));
    let written = |changes| {
        wrong(Disks::of([Disk { backend: Backend::Image { image: &IMAGE[..], changes }, serial: "a" }]).unwrap())
    };
    for changes in [0, 2 << 20, 64 << 20, 8 << 30] {
        assert_eq!(written(changes), None);
    }
    for changes in [1, 4096, (2 << 20) + 4096, (8 << 30) + (2 << 20), u64::MAX - (2 << 20) + 1] {
        assert_eq!(written(changes), Some(VmProblem::Changes { changes, list: 4096 }));
    }
    // Four bytes for each 4 KiB of the image: 4 MiB for the largest, and behind them is to be something.
    assert_eq!(super::check_changes(6 << 20, 4 << 30), Ok(()));
    let refused = Err(VmProblem::Changes { changes: 4 << 20, list: 4 << 20 });
    assert_eq!(super::check_changes(4 << 20, 4 << 30), refused);
}

#[test]
fn sixty_four_vms_with_long_command_lines_fit() {
    let names: Vec<_> = (0..64).map(|n| std::format!("vm-{n}")).collect();
    let cmdline = "x".repeat(2047);
    let vms: Vec<_> = names.iter().map(|name| VmSource { cmdline: &cmdline, ..source(name) }).collect();
    let bytes = write("t", &vms).unwrap();
    assert_eq!(Bundle::parse(&bytes, compute).unwrap().vms().count(), 64);
    let many = [vms, vec![source("one-more")]].concat();
    assert_eq!(write("t", &many).unwrap_err(), BundleError::VmCount(65));
    assert_eq!(write("t", &[]).unwrap_err(), BundleError::VmCount(0));
}

#[test]
fn a_bundle_has_a_vm_and_no_more_than_may_be() {
    assert_eq!(write("test", &[]), Err(BundleError::VmCount(0)));
    assert_eq!(write("test", &vec![source("web"); MAX_VMS + 1]), Err(BundleError::VmCount(MAX_VMS as u16 + 1)));
    // The number of VMs stands behind "test 1" with its length.
    for count in [0, MAX_VMS as u8 + 1] {
        let mut bytes = sample();
        assert_eq!(bytes[64..72], *b"\x06test 1\x02");
        bytes[71] = count;
        reseal(&mut bytes);
        assert_eq!(refusal(&bytes), BundleError::VmCount(count.into()));
    }
}

/// The same kernel for two VMs is stored once; two kernels are stored as two, even if they have the same checksum.
#[test]
fn a_blob_is_known_by_all_of_its_bytes() {
    let mut seen = std::collections::HashMap::new();
    let (one, other) = (0_u64..)
        .map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .find_map(|bytes| seen.insert(compute(0, &bytes), bytes).map(|other| (other, bytes)))
        .expect("there are fewer checksums than numbers");
    let with = |name, kernel| VmSource { kernel, ..VmSource::new(name, &KERNEL[..], 64 << 20) };
    let bytes = write("test", &[with("a", &one), with("b", &other), with("c", &one)]).unwrap();
    let bundle = Bundle::parse(&bytes, compute).unwrap();
    let kernels: Vec<Blob> = bundle.vms().map(|vm| vm.kernel).collect();
    assert_eq!((kernels[0].crc32c, kernels[0]), (kernels[1].crc32c, kernels[2]));
    assert_eq!([kernels[0], kernels[1]].map(|blob| bundle.blob(&blob)), [Ok(&one[..]), Ok(&other[..])]);
}

#[test]
fn what_is_wrong_is_named() {
    let bytes = sample();
    assert_eq!(refusal(b""), BundleError::NotABundle);
    assert_eq!(refusal(b"070701 an initramfs"), BundleError::NotABundle);
    assert_eq!(refusal(&bytes[..40]), BundleError::Truncated { present: 40, promised: 64 });
    let total = bytes.len() as u64;
    assert_eq!(refusal(&bytes[..5000]), BundleError::Truncated { present: 5000, promised: total });
    assert_eq!(refusal(&with_header(8, &(FORMAT + 1).to_le_bytes())), BundleError::OtherFormat { found: FORMAT + 1 });
    let far = refusal(&with_header(24, &u64::MAX.to_le_bytes()));
    assert!(matches!(far, BundleError::Truncated { .. }));
    let mut damaged = bytes.clone();
    damaged[20] ^= 1;
    assert_eq!(refusal(&damaged), BundleError::HeaderDamaged);
    let mut damaged = bytes.clone();
    damaged[70] ^= 1;
    assert_eq!(refusal(&damaged), BundleError::ManifestDamaged);
}

#[test]
fn a_damaged_blob_is_found_by_verify_alone() {
    let mut bytes = sample();
    bytes[BLOB_ALIGNMENT as usize + 1] ^= 0x80;
    let bundle = Bundle::parse(&bytes, compute).unwrap();
    let kernel = bundle.vms().next().unwrap().kernel;
    assert!(bundle.blob(&kernel).is_ok());
    assert_eq!(bundle.verify(&kernel), Err(BundleError::BlobDamaged { offset: 4096, length: 5000 }));
}

#[test]
fn a_vm_that_breaks_a_rule_is_refused_with_its_number() {
    let problem = |vm: VmSource<'_>| match write("t", &[source("first"), vm]).unwrap_err() {
        BundleError::Vm { index: 1, problem } => problem,
        other => panic!("{other}"),
    };
    assert_eq!(problem(source("first")), VmProblem::NameTaken);
    assert_eq!(problem(source("")), VmProblem::Name);
    assert_eq!(problem(source("Web")), VmProblem::Name);
    assert_eq!(problem(VmSource { vcpus: 0, ..source("b") }), VmProblem::Vcpus(0));
    assert_eq!(problem(VmSource { vcpus: 9, ..source("b") }), VmProblem::Vcpus(9));
    assert_eq!(problem(VmSource { memory: 3 << 20, ..source("b") }), VmProblem::Memory(3 << 20));
    assert_eq!(problem(VmSource { memory: 0, ..source("b") }), VmProblem::Memory(0));
    assert_eq!(problem(VmSource { memory: 1 << 50, ..source("b") }), VmProblem::Memory(1 << 50));
    assert_eq!(problem(VmSource { cmdline: "a\0b", ..source("b") }), VmProblem::Cmdline);
    assert_eq!(problem(VmSource { weight: 0, ..source("b") }), VmProblem::Weight(0));
    assert_eq!(problem(VmSource { affinity: 0, ..source("b") }), VmProblem::Affinity);
    assert_eq!(problem(VmSource { kernel: &[], ..source("b") }), VmProblem::BlobOutside);
    for frequency in [1, 999_999, 1_000_000_001, u32::MAX] {
        let time = Time { frequency, ..Time::default() };
        assert_eq!(problem(VmSource { time, ..source("b") }), VmProblem::Frequency(frequency));
    }
    for rate in [0, 999, 10_000_001, u32::MAX] {
        let time = Time { rate, ..Time::default() };
        assert_eq!(problem(VmSource { time, ..source("b") }), VmProblem::Rate(rate));
    }
    let (longest, too_long) = ("x".repeat(MAX_CMDLINE), "x".repeat(MAX_CMDLINE + 1));
    assert_eq!(
        problem(VmSource { weight: MAX_WEIGHT + 1, ..source("b") }),
        VmProblem::Weight(u64::from(MAX_WEIGHT) + 1)
    );
    assert_eq!(problem(VmSource { cmdline: &too_long, ..source("b") }), VmProblem::Cmdline);
    // The largest of each is a VM.
    let filled = vec![0; 2 << 20];
    let most = VmSource { vcpus: 8, weight: MAX_WEIGHT, memory: MAX_MEMORY, cmdline: &longest, ..source("b") };
    let full = VmSource { kernel: &filled, initrd: None, memory: 2 << 20, ..source("c") };
    assert!(write("t", &[source("first"), most, full]).is_ok());
    let large = vec![0; 3 << 20];
    let fits = problem(VmSource { kernel: &large, memory: 2 << 20, initrd: None, ..source("b") });
    assert_eq!(fits, VmProblem::DoesNotFit { files: 3 << 20, memory: 2 << 20 });
}

#[test]
fn a_blob_outside_the_bundle_is_refused() {
    let bytes = sample();
    let bundle = Bundle::parse(&bytes, compute).unwrap();
    let kernel = bundle.vms().next().unwrap().kernel;
    for (offset, length) in [(4096, u64::MAX), (u64::MAX - 4095, 1), (1, 1), (4096, 0), (1 << 40, 1)] {
        assert_eq!(bundle.blob(&Blob { offset, length, ..kernel }), Err(BundleError::BlobOutside { offset }));
    }
}

#[test]
fn names_are_plain() {
    for good in ["a", "web-1", "0", &"x".repeat(32)] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    for bad in ["", "-a", "a_b", "A", "ü", "a/b", &"x".repeat(33)] {
        assert_eq!(check_name(bad), Err(VmProblem::Name), "{bad}");
    }
    assert_eq!(VmProblem::Vcpus(0).to_string(), "0 vCPUs; a VM has 1 to 8");
}

/// Everything that the hypervisor does with a bundle.
fn exercise(bytes: &[u8]) {
    let Ok(bundle) = Bundle::parse(bytes, compute) else { return };
    assert_eq!(bundle.vms().count(), bundle.vm_count());
    for vm in bundle.vms() {
        assert_eq!(check_vm(&vm), Ok(()));
        for blob in core::iter::once(vm.kernel).chain(vm.initrd) {
            assert_eq!(bundle.blob(&blob).map(<[u8]>::len), Ok(blob.length as usize));
            let _ = bundle.verify(&blob);
        }
    }
}

/// Makes the checksums right again, so that mutations reach the code behind them.
fn reseal(bytes: &mut [u8]) {
    let Some(header) = bytes.first_chunk::<64>() else { return };
    let manifest_length = u64::from_le_bytes(*header[32..].first_chunk().unwrap()) as usize;
    let Some(manifest) = bytes.get(64..64usize.saturating_add(manifest_length)) else { return };
    let checksum = compute(0, manifest);
    bytes[40..44].copy_from_slice(&checksum.to_le_bytes());
    let checksum = compute(0, &bytes[..60]);
    bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_mutation_is_survived(
        changes in proptest::collection::vec((0usize..200, any::<u8>()), 1..6),
        keep in prop_oneof![Just(usize::MAX), 0usize..9000],
    ) {
        let mut bytes = sample();
        for (at, value) in changes {
            bytes[at] = value;
        }
        exercise(&bytes);
        reseal(&mut bytes);
        exercise(&bytes);
        bytes.truncate(keep);
        reseal(&mut bytes);
        exercise(&bytes);
    }

    #[test]
    fn any_manifest_is_survived(manifest in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = sample();
        bytes[32..40].copy_from_slice(&(manifest.len() as u64).to_le_bytes());
        bytes[64..64 + manifest.len()].copy_from_slice(&manifest);
        reseal(&mut bytes);
        exercise(&bytes);
    }

    #[test]
    fn any_truncation_is_refused(keep in 0usize..13_000) {
        let bytes = sample();
        let cut = &bytes[..keep.min(bytes.len() - 1)];
        prop_assert!(Bundle::parse(cut, compute).is_err());
    }
}

#[test]
fn what_a_guest_may_have_is_bounded() {
    use super::{Calls, Quota};
    let refused = |doors: Doors| write("test", &[VmSource { doors, ..source("web") }]).unwrap_err().to_string();
    let quota = |quota: Quota| refused(Doors { quota, ..Doors::default() });
    let usual = Quota::default();
    assert!(quota(Quota { channels: 1, ..usual }).ends_with("VMware's service: channels cannot be limited to 1"));
    assert!(quota(Quota { message: 65537, ..usual }).contains("message"));
    assert!(quota(Quota { keys: 1025, ..usual }).contains("keys"));
    assert!(quota(Quota { store: (4 << 20) + 1, ..usual }).contains("store"));
    assert!(quota(Quota { log: u32::MAX, ..usual }).contains("log"));
    let calls = refused(Doors { user_calls: Calls(0x1f), ..Doors::default() });
    assert!(calls.ends_with("there are no groups of calls 0x10"), "{calls}");
    let both = refused(Doors { user_calls: Calls(0x1f), kernel_calls: Calls(0x1f), ..Doors::default() });
    assert_eq!(both, calls);
    let least = Quota { channels: 2, message: 256, keys: 0, store: 0, log: 0 };
    let doors = Doors { quota: least, kernel_calls: Calls(0), ..Doors::default() };
    let bytes = write("test", &[VmSource { doors, ..source("web") }]).unwrap();
    assert_eq!(Bundle::parse(&bytes, compute).unwrap().vms().next().unwrap().doors, doors);
}

#[test]
fn watchdogs_have_times_and_actions_that_there_are() {
    let with = |doors: Doors| write("t", &[VmSource { doors, ..source("a") }]).map(drop);
    let wrong = |problem| Err(BundleError::Vm { index: 0, problem });
    for time in [0, 100, 86_400_000] {
        assert_eq!(with(Doors { watchdog_milliseconds: time, ..Doors::default() }), Ok(()));
        assert_eq!(with(Doors { vcpu_watchdog_milliseconds: time, ..Doors::default() }), Ok(()));
    }
    for time in [1, 99, 86_400_001, u32::MAX] {
        let problem = wrong(VmProblem::WatchdogTime(time));
        assert_eq!(with(Doors { watchdog_milliseconds: time, ..Doors::default() }), problem);
        assert_eq!(with(Doors { vcpu_watchdog_milliseconds: time, ..Doors::default() }), problem);
    }
    let action = with(Doors { watchdog_action: 5, ..Doors::default() });
    assert_eq!(action, wrong(VmProblem::WatchdogAction(5)));
    let choices = with(Doors { watchdog_choices: 0b10_0000, ..Doors::default() });
    assert_eq!(choices, wrong(VmProblem::WatchdogChoices(0b10_0000)));
}

#[test]
fn the_pieces_of_a_program_are_its_file() {
    let piece = |address, file_bytes, size| Segment { address, file_bytes, size };
    let with = |pieces: &[Segment]| {
        let program = Program::new(0x4008_0000, pieces);
        let bytes = write("test", &[VmSource { program, ..source("rtos") }])?;
        let program = Bundle::parse(&bytes, compute)?.vms().next().unwrap().program.unwrap();
        Ok::<_, BundleError>(program.pieces().collect::<Vec<_>>())
    };
    let (first, second) = (piece(0x4008_0000, 3000, 4096), piece(0x4010_0000, 2000, 2000));
    let bss = piece(0x4020_0000, 0, 1 << 20);
    assert_eq!(with(&[first, bss, second]), Ok(vec![(first, 0), (bss, 3000), (second, 3000)]));
    let wrong = Err(BundleError::Vm { index: 0, problem: VmProblem::Program });
    let most = piece(0, u64::MAX, u64::MAX);
    let gap = piece(0, 0, 0);
    let cases: [&[Segment]; 6] = [
        &[first],
        &[first, second, second],
        &[],
        &[first, gap, second],
        &[piece(0, 5000, 4999)],
        &[first, second, most],
    ];
    for pieces in cases {
        assert_eq!(with(pieces), wrong, "{pieces:?}");
    }
    assert_eq!(Program::new(0, &[first; 17]), None);
}

/// The records describe nothing of themselves. Whoever changes them changes these bytes, and has to give the bundle another format, or a
/// hypervisor would misread what another croft made.
#[test]
fn the_bytes_of_a_bundle_belong_to_its_format() {
    assert_eq!((FORMAT, compute(0, &sample())), (16, 0xa777_b4b2));
}
