//! The tree against the plan, by an independent reader (dtoolkit); the lookup against a naive one.

extern crate std;

use crate::blob::{NoRoom, Writer};
use crate::image::{Base, HEADER_SIZE, ImageError, ImageHeader, PageSize};
use crate::placement::{DEVICE_TREE_SIZE, Placement, PlacementError};
use crate::{
    BootInfo, DISTRIBUTOR, DeviceKind, MAX_VIRTIO, MachineError, MachinePlan, RAM_BASE, Row, STOLEN_TIME, Spec, Target,
    Timers, TreeError, VirtioKind, Wire, device_tree, redistributor,
};
use abi::bundle::{MAX_CMDLINE, MAX_NAME};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use devices::Place;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use proptest::prelude::*;
use units::{Hz, IntId, Ipa, Range, Trigger, VcpuId};

/// A heap that runs out when a test wants it.
#[global_allocator]
static HEAP: scarce::Heap = scarce::Heap;

const SPEC: Spec<'static> = Spec {
    name: "web",
    vcpus: 2,
    memory_bytes: 512 << 20,
    ipa_bits: 40,
    virtio: &[VirtioKind::Console, VirtioKind::Entropy],
    generic_watchdog: false,
    enclave: false,
    counter_frequency: Hz(62_500_000),
    timers: Timers::Cpu,
};
const BOOT: BootInfo<'static> = BootInfo {
    bootargs: "console=ttyAMA0",
    initrd: None,
    rng_seed: [0x5a; 32],
    kaslr_seed: 0x0123_4567_89ab_cdef,
    vmware: false,
    caches: None,
};

fn plan(spec: Spec<'_>) -> MachinePlan {
    MachinePlan::new(spec).unwrap()
}

fn error(change: impl FnOnce(&mut Spec<'static>)) -> MachineError {
    let mut spec = SPEC;
    change(&mut spec);
    MachinePlan::new(spec).unwrap_err()
}

fn tree(plan: &MachinePlan, boot: &BootInfo<'_>) -> Fdt<'static> {
    Fdt::new(Vec::leak(device_tree(plan, boot).unwrap())).unwrap()
}

fn find(tree: Fdt<'static>, path: &str) -> FdtNode<'static> {
    tree.find_node(path).unwrap_or_else(|| panic!("no node {path}"))
}

fn value(node: FdtNode<'static>, name: &str) -> Vec<u8> {
    node.property(name).unwrap_or_else(|| panic!("no property {name}")).value().to_vec()
}

fn cells(node: FdtNode<'static>, name: &str) -> Vec<u32> {
    value(node, name).chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
}

fn text(node: FdtNode<'static>, name: &str) -> String {
    String::from_utf8(value(node, name)).unwrap()
}

/// Names for those who take interrupts by name; and for those who go by places nothing behind the physical timer's.
#[test]
fn p5_a1_a_guest_without_the_virtual_timer_is_told_of_the_physical_one_alone() {
    let plan = plan(Spec { timers: Timers::Physical, counter_frequency: Hz(24_000_000), ..SPEC });
    let tree = tree(&plan, &BOOT);
    let timer = find(tree, "/timer");
    assert_eq!(cells(timer, "interrupts"), [1, 13, 4, 1, 14, 4]);
    assert_eq!(text(timer, "interrupt-names"), "sec-phys\0phys\0");
    assert_eq!(cells(timer, "clock-frequency"), [24_000_000]);
}

/// By the binding of the memory-mapped timer: whoever finds it looks for its frame, and for no other timer.
#[test]
fn p5_a1_a_guest_with_a_timer_in_memory_is_told_of_that_alone() {
    let plan = plan(Spec { timers: Timers::Memory, counter_frequency: Hz(24_000_000), ..SPEC });
    let tree = tree(&plan, &BOOT);
    assert!(tree.root().children().all(|node| node.name() != "timer"));
    let timer = find(tree, "/timer@9120000");
    assert_eq!(text(timer, "compatible"), "arm,armv7-timer-mem\0");
    assert_eq!(cells(timer, "reg"), [0, 0x0912_0000, 0, 0x1000]);
    assert_eq!((cells(timer, "#address-cells"), cells(timer, "#size-cells")), (vec![2], vec![1]));
    assert!(timer.property("ranges").is_some() && timer.property("interrupts").is_none());
    let frame = find(tree, "/timer@9120000/frame@9130000");
    assert_eq!((cells(frame, "frame-number"), cells(frame, "reg")), (vec![0], vec![0, 0x0913_0000, 0x1000]));
    assert_eq!(cells(frame, "interrupts"), [0, 12, 4, 0, 13, 4], "the physical timer's comes first");
    assert_eq!(plan.find(Ipa(0x0913_002c)), Some(Target::Device(Place { slot: 4, frame: 1, offset: 0x2c })));
    assert_eq!(self::plan(SPEC).find(Ipa(0x0913_002c)), None);
}

#[test]
fn the_map_is_that_of_qemu_virt() {
    let plan = plan(SPEC);
    let all: Vec<_> = plan
        .rows()
        .iter()
        .map(|row| (row.device, row.start().0, row.frames[0].size, row.lines.first().map(|line| line.interrupt.0)))
        .collect();
    assert_eq!(
        all,
        [
            (DeviceKind::Flash, 0, 0x0800_0000, None),
            (DeviceKind::Pl011, 0x0900_0000, 0x1000, Some(33)),
            (DeviceKind::Pl031, 0x0901_0000, 0x1000, Some(34)),
            (DeviceKind::Pl061, 0x0903_0000, 0x1000, Some(39)),
            (DeviceKind::Generation, 0x0914_0000, 0x1000, Some(46)),
            (DeviceKind::ClockPage, 0x0915_0000, 0x1000, Some(47)),
            (DeviceKind::Virtio(VirtioKind::Console), 0x0a00_0000, 0x200, Some(48)),
            (DeviceKind::Virtio(VirtioKind::Entropy), 0x0a00_0200, 0x200, Some(49)),
            (DeviceKind::VacantVirtio, 0x0a00_0400, 0x3c00, None),
        ]
    );
    assert_eq!(DISTRIBUTOR, Range { start: Ipa(0x0800_0000), size: 0x1_0000 });
    assert_eq!(plan.redistributors(), Range { start: Ipa(0x080a_0000), size: 0x4_0000 });
    assert_eq!(plan.ram(), Range { start: RAM_BASE, size: 512 << 20 });
    assert_eq!((plan.name(), plan.vcpus()), ("web", 2));
}

#[test]
fn addresses_are_found_and_holes_are_not() {
    let plan = plan(Spec { generic_watchdog: true, ..SPEC });
    let find = |address| plan.find(Ipa(address));
    let device = |slot, frame, offset| Some(Target::Device(Place { slot, frame, offset }));
    assert_eq!(find(0x0800_ffff), Some(Target::Distributor(0xffff)));
    assert_eq!(find(0x0801_0000), None);
    assert_eq!(find(0x080d_fffc), Some(Target::Redistributors(0x3_fffc)));
    assert_eq!(find(0x080e_0000), None, "there is no Redistributor of a third vCPU");
    assert_eq!(find(0x0900_0018), device(1, 0, 0x18));
    assert_eq!(find(0x0900_1000), None);
    assert_eq!(
        (find(0x0910_0008), find(0x0911_0008)),
        (device(4, 0, 8), device(4, 1, 8)),
        "one device with two frames"
    );
    assert_eq!(find(0x0915_0010), device(6, 0, 0x10));
    assert_eq!(find(0x0a00_0204), device(8, 0, 4));
    assert_eq!(find(0x0a00_0404), device(9, 0, 4), "a vacant transport answers too");
    assert_eq!(find(0x0a00_3fff), device(9, 0, 0x3bff));
    assert_eq!(find(0x0a00_4000), None);
    assert_eq!((find(0), find(0x07ff_ffff)), (device(0, 0, 0), device(0, 0, 0x07ff_ffff)));
    assert_eq!((find(0x0c00_0000), find(u64::MAX), find(RAM_BASE.0)), (None, None, None));
    let offsets = [0x0800_ffff, 0x080d_fffc, 0x0911_0008].map(|address| find(address).map(Target::offset));
    assert_eq!(offsets, [Some(0xffff), Some(0x3_fffc), Some(8)]);
    assert_eq!(redistributor(0x3_fffc), (VcpuId(1), 0x1_fffc));
}

#[test]
fn the_clock_page_alone_is_seen() {
    assert!(DeviceKind::ClockPage.shows_a_page());
    for other in [DeviceKind::Flash, DeviceKind::Generation, DeviceKind::Virtio(VirtioKind::Console)] {
        assert!(!other.shows_a_page(), "{other:?}");
    }
}

/// However many CPUs there are, no device has the handle of one of them, or of another device.
#[test]
fn all_handles_are_different() {
    for vcpus in 1..=8 {
        let gpio = |start| Row::simple(DeviceKind::Pl061, page(start), None);
        let plan = MachinePlan::with_devices(Spec { vcpus, ..SPEC }, vec![gpio(0x0900_0000), gpio(0x0901_0000)]);
        let tree = tree(&plan.unwrap(), &BOOT);
        let nodes = tree.root().children().chain(find(tree, "/cpus").children());
        let handles = nodes.filter_map(|node| node.property("phandle").map(|_| cells(node, "phandle")[0]));
        let mut handles: Vec<u32> = handles.collect();
        // The GIC's and the clock's, too.
        assert_eq!(handles.len(), usize::from(vcpus) + 4);
        handles.sort_unstable();
        handles.dedup();
        assert_eq!(handles.len(), usize::from(vcpus) + 4, "{handles:?}");
        assert_ne!(handles[0], 0, "that is no handle");
    }
}

#[test]
fn a_timer_in_high_memory_has_its_whole_address() {
    let (frames, lines) = (vec![page(0x90_0000_0000), page(0x91_0001_0000)], Vec::new());
    let plan = MachinePlan::with_devices(SPEC, vec![Row { device: DeviceKind::Timer, frames, lines }]).unwrap();
    let tree = tree(&plan, &BOOT);
    assert_eq!(cells(find(tree, "/timer@9000000000/frame@9100010000"), "reg"), [0x91, 0x1_0000, 0x1000]);
}

#[test]
fn the_header_says_how_long_the_blocks_are_and_more_names_than_fit_are_an_error() {
    let written = |count: usize| {
        let mut writer = Writer::new(0);
        writer.node("", |root| (0..count).for_each(|number| root.flag(String::leak(format!("name{number}")))));
        writer.finish()
    };
    let blob = written(64).unwrap();
    let word = |index: usize| u32::from_be_bytes(blob[4 * index..][..4].try_into().unwrap());
    let [total, structure, strings] = [1, 2, 3].map(word);
    assert_eq!((word(8), word(9)), (total - strings, strings - structure));
    assert_eq!(written(65), Err(NoRoom));
}

const fn page(start: u64) -> Range<Ipa> {
    Range { start: Ipa(start), size: 0x1000 }
}

/// Two of each kind, some with several frames and lines: each is found, has a node of its own, and all its interrupts in it.
#[test]
fn there_may_be_two_of_each_kind() {
    let kinds = [
        DeviceKind::Flash,
        DeviceKind::Pl011,
        DeviceKind::Pl031,
        DeviceKind::Pl061,
        DeviceKind::GenericWatchdog,
        DeviceKind::Timer,
        DeviceKind::Generation,
        DeviceKind::ClockPage,
        DeviceKind::Virtio(VirtioKind::Entropy),
        DeviceKind::VacantVirtio,
    ];
    let mut rows = Vec::new();
    for (number, device) in (0..).zip(kinds.into_iter().chain(kinds)) {
        let frames = vec![page(0x0b00_0000 + number * 0x1_0000), page(0x0b00_8000 + number * 0x1_0000)];
        let trigger = if number % 2 == 0 { Trigger::Edge } else { Trigger::Level };
        let lines = (0..3).map(|line| Wire::spi(3 * number as u32 + line, trigger)).collect();
        rows.push(Row { device, frames, lines });
    }
    let plan = MachinePlan::with_devices(SPEC, rows).unwrap();
    let tree = tree(&plan, &BOOT);
    let mut handles = Vec::new();
    for (slot, row) in plan.rows().iter().enumerate() {
        for (frame, range) in row.frames.iter().enumerate() {
            let expected = Some(Target::Device(Place { slot, frame, offset: 0xfff }));
            assert_eq!(plan.find(Ipa(range.start.0 + 0xfff)), expected);
            assert_eq!(plan.find(range.end()), None);
        }
        let name = match row.device {
            DeviceKind::Flash | DeviceKind::VacantVirtio => continue,
            DeviceKind::Pl011 => "pl011",
            DeviceKind::Pl031 => "pl031",
            DeviceKind::Pl061 => "pl061",
            DeviceKind::GenericWatchdog => "watchdog",
            // Its interrupts are in its frame.
            DeviceKind::Timer => {
                let [control, frame] = [row.frames[0].start.0, row.frames[1].start.0];
                let frame = find(tree, &format!("/timer@{control:x}/frame@{frame:x}"));
                assert_eq!(cells(frame, "interrupts").len(), 9);
                continue;
            }
            DeviceKind::Generation => "vmgenid",
            DeviceKind::ClockPage => "ptp",
            DeviceKind::Enclave => "enclave",
            DeviceKind::Virtio(_) => "virtio_mmio",
        };
        let node = find(tree, &format!("/{name}@{:x}", row.start().0));
        let first = 3 * slot as u32;
        let flags = if slot % 2 == 0 { 1 } else { 4 };
        assert_eq!(cells(node, "interrupts"), [0, first, flags, 0, first + 1, flags, 0, first + 2, flags], "{name}");
        assert_eq!(cells(node, "reg").len(), 8, "{name}");
        if row.device == DeviceKind::Pl061 {
            handles.push(cells(node, "phandle")[0]);
        }
    }
    assert_ne!(handles[0], handles[1]);
    assert_eq!(cells(find(tree, "/gpio-keys/poweroff"), "gpios")[0], handles[0], "one power button, at the first");
    assert_eq!(text(find(tree, "/aliases"), "serial0"), "/pl011@b010000\0");
}

#[test]
fn devices_that_share_something_are_refused() {
    let line = |spi| Some(Wire::spi(spi, Trigger::Level));
    let with = |rows| MachinePlan::with_devices(SPEC, rows).map(|plan| plan.rows().len());
    let uart = |start, spi| Row::simple(DeviceKind::Pl011, page(start), line(spi));
    assert_eq!(with(vec![uart(0x0900_0000, 1), uart(0x0900_1000, 2)]), Ok(2));
    assert_eq!(with(vec![]), Ok(0));
    let overlap = |low, high| Err(MachineError::Overlap(Ipa(low), Ipa(high)));
    assert_eq!(with(vec![uart(0x0900_0800, 1), uart(0x0900_0000, 2)]), overlap(0x0900_0000, 0x0900_0800));
    assert_eq!(with(vec![uart(0x0900_0000, 1), uart(0x0900_0000, 2)]), overlap(0x0900_0000, 0x0900_0000));
    assert_eq!(with(vec![uart(DISTRIBUTOR.start.0 + 0xf000, 1)]), overlap(0x0800_0000, 0x0800_f000));
    assert_eq!(with(vec![uart(0x080d_f000, 1)]), overlap(0x080a_0000, 0x080d_f000));
    assert_eq!(with(vec![uart(STOLEN_TIME.0, 1)]), overlap(STOLEN_TIME.0, STOLEN_TIME.0));
    assert_eq!(with(vec![uart(RAM_BASE.0 + 0x1000, 1)]), overlap(RAM_BASE.0, RAM_BASE.0 + 0x1000));
    let two_frames = |frames| Row { device: DeviceKind::GenericWatchdog, frames, lines: Vec::new() };
    let twice = vec![two_frames(vec![page(0x0910_0000), page(0x0910_0000)])];
    assert_eq!(with(twice), overlap(0x0910_0000, 0x0910_0000), "its own frames too");
    assert_eq!(with(vec![two_frames(Vec::new())]), Err(MachineError::Frames(0)));
    assert_eq!(with(vec![two_frames(vec![page(0x0910_0000); 5])]), Err(MachineError::Frames(5)));
    let nothing = Range { start: Ipa(0x0910_0000), size: 0 };
    assert_eq!(with(vec![two_frames(vec![nothing])]), Err(MachineError::Frame(nothing.start)));
    assert_eq!(with(vec![two_frames(vec![page(!0xfff)])]).is_err(), Range::new(Ipa(!0xfff), 0x1000).is_none());
    assert_eq!(with(vec![uart(0x0900_0000, 1), uart(0x0901_0000, 1)]), Err(MachineError::Interrupt(33)));
    let private = Wire { interrupt: IntId::ppi(9), trigger: Trigger::Level };
    let refused = with(vec![Row::simple(DeviceKind::Pl011, page(0x0900_0000), Some(private))]);
    assert_eq!(refused, Err(MachineError::Interrupt(25)));
    assert_eq!(with(vec![uart(0x0900_0000, 95)]), Ok(1), "the last that the interrupt controller has");
    assert_eq!(with(vec![uart(0x0900_0000, 96)]), Err(MachineError::Interrupt(128)));
    let lines = (0..33).map(|spi| Wire::spi(spi, Trigger::Level)).collect();
    let many = Row { device: DeviceKind::Pl011, frames: vec![page(0x0900_0000)], lines };
    assert_eq!(with(vec![many]), Err(MachineError::Lines(33)));
    let frames = (0..4).map(|number| page(0x0900_0000 + number * 0x1000)).collect();
    let lines = (0..32).map(|spi| Wire::spi(spi, Trigger::Level)).collect();
    assert_eq!(with(vec![Row { device: DeviceKind::Pl011, frames, lines }]), Ok(1), "as many as there may be");
}

#[test]
fn a_machine_that_cannot_be_is_refused() {
    assert_eq!(error(|spec| spec.vcpus = 0), MachineError::Vcpus(0));
    assert_eq!(error(|spec| spec.vcpus = 9), MachineError::Vcpus(9));
    assert_eq!(error(|spec| spec.memory_bytes = 0), MachineError::MemorySize(0));
    assert_eq!(error(|spec| spec.memory_bytes = 3 << 20), MachineError::MemorySize(3 << 20));
    let huge = MachineError::MemoryTooLarge { memory: !0x1f_ffff, bits: 40 };
    assert_eq!(error(|spec| spec.memory_bytes = !0x1f_ffff), huge);
    let most = (1 << 40) - RAM_BASE.0;
    assert!(MachinePlan::new(Spec { memory_bytes: most, ..SPEC }).is_ok());
    let memory = most + (2 << 20);
    assert_eq!(error(|spec| spec.memory_bytes = memory), MachineError::MemoryTooLarge { memory, bits: 40 });
    assert_eq!(error(|spec| spec.virtio = &[VirtioKind::Entropy; 33]), MachineError::Virtio(33));
    assert_eq!(error(|spec| spec.name = ""), MachineError::Name(0));
    let longest = "n".repeat(MAX_NAME);
    assert!(MachinePlan::new(Spec { name: &longest, ..SPEC }).is_ok());
    let too_long = longest + "n";
    let refused = MachinePlan::new(Spec { name: &too_long, ..SPEC }).unwrap_err();
    assert_eq!(format!("{refused}"), "the name has 33 bytes; it needs 1 to 32");
    assert!(format!("{}", error(|spec| spec.vcpus = 9)).contains("1 to 8"));
}

#[test]
fn each_region_is_in_the_tree_and_nothing_else() {
    let plan = plan(Spec { vcpus: 8, virtio: &[VirtioKind::Entropy; MAX_VIRTIO], generic_watchdog: true, ..SPEC });
    let tree = tree(&plan, &BOOT);
    let mut nodes = 0;
    for node in tree.root().children() {
        let name = String::from(node.name());
        let Some(address) = name.split('@').nth(1).map(|hex| u64::from_str_radix(hex, 16).unwrap()) else { continue };
        if address == RAM_BASE.0 {
            continue;
        }
        nodes += 1;
        let (frame, lines) = match plan.find(Ipa(address)).unwrap() {
            Target::Distributor(_) => (DISTRIBUTOR, [].as_slice()),
            Target::Redistributors(_) => (plan.redistributors(), [].as_slice()),
            Target::Device(place) => {
                let row = &plan.rows()[place.slot];
                (row.frames[place.frame], row.lines.as_slice())
            }
        };
        let reg = cells(node, "reg");
        assert_eq!(reg[..4], [0, frame.start.0 as u32, 0, frame.size as u32], "{name}");
        if let [line] = lines {
            let flags = if line.trigger == Trigger::Edge { 1 } else { 4 };
            assert_eq!(cells(node, "interrupts"), [0, line.interrupt.0 - 32, flags], "{name}");
        }
    }
    // The GIC is no row, and flash has no node.
    assert_eq!(nodes, plan.rows().len() + 1 - 1);
    assert!(tree.data().len() as u64 <= DEVICE_TREE_SIZE);
}

#[test]
fn the_tree_says_what_qemu_s_says() {
    let tree = tree(&plan(SPEC), &BOOT);
    let root = tree.root();
    assert_eq!(cells(root, "#address-cells"), [2]);
    assert_eq!(cells(root, "interrupt-parent"), cells(find(tree, "/intc@8000000"), "phandle"));
    assert_eq!(cells(find(tree, "/memory@40000000"), "reg"), [0, 0x4000_0000, 0, 512 << 20]);
    assert_eq!(cells(find(tree, "/timer"), "interrupts"), [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
    assert_eq!(cells(find(tree, "/timer"), "clock-frequency"), [62_500_000]);
    assert_eq!(text(find(tree, "/timer"), "compatible"), "arm,armv8-timer\0arm,armv7-timer\0");
    for (path, flag) in [
        ("/", "dma-coherent"),
        ("/timer", "always-on"),
        ("/intc@8000000", "interrupt-controller"),
        ("/intc@8000000", "ranges"),
        ("/pl061@9030000", "gpio-controller"),
    ] {
        assert_eq!(value(find(tree, path), flag), [], "{path} {flag}");
    }
    let gic = find(tree, "/intc@8000000");
    assert_eq!(cells(gic, "reg"), [0, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x4_0000]);
    assert_eq!(text(gic, "compatible"), "arm,gic-v3\0");
    let psci = find(tree, "/psci");
    assert_eq!(text(psci, "compatible"), "arm,psci-1.0\0arm,psci-0.2\0arm,psci\0");
    assert_eq!(text(psci, "method"), "hvc\0");
    for number in 0..2 {
        let cpu = find(tree, &format!("/cpus/cpu@{number}"));
        assert_eq!(cells(cpu, "reg"), [number]);
        assert_eq!(text(cpu, "enable-method"), "psci\0");
        let core = find(tree, &format!("/cpus/cpu-map/socket0/cluster0/core{number}"));
        assert_eq!(cells(core, "cpu"), cells(cpu, "phandle"));
    }
    assert!(tree.find_node("/cpus/cpu@2").is_none());
    let uart = find(tree, "/pl011@9000000");
    assert_eq!(text(uart, "compatible"), "arm,pl011\0arm,primecell\0");
    let clock = cells(find(tree, "/apb-pclk"), "phandle")[0];
    assert_eq!(cells(uart, "clocks"), [clock, clock]);
    let gpio = find(tree, "/pl061@9030000");
    assert_eq!(cells(find(tree, "/gpio-keys/poweroff"), "gpios"), [cells(gpio, "phandle")[0], 3, 0]);
    assert_eq!(cells(find(tree, "/gpio-keys/poweroff"), "linux,code"), [116]);
    assert_eq!(text(find(tree, "/aliases"), "serial0"), "/pl011@9000000\0");
}

#[test]
fn the_generic_watchdog_is_there_when_it_is_asked_for() {
    let with = tree(&plan(Spec { generic_watchdog: true, ..SPEC }), &BOOT);
    let node = find(with, "/watchdog@9100000");
    assert_eq!(text(node, "compatible"), "arm,sbsa-gwdt\0");
    assert_eq!(cells(node, "reg"), [0, 0x0910_0000, 0, 0x1000, 0, 0x0911_0000, 0, 0x1000]);
    assert_eq!(cells(node, "interrupts"), [0, 10, 4]);
    assert!(tree(&plan(SPEC), &BOOT).find_node("/watchdog@9100000").is_none());
    assert_eq!(plan(SPEC).find(Ipa(0x0910_0000)), None);
}

/// By the binding: one place, and an edge.
#[test]
fn every_machine_has_a_generation() {
    let node = find(tree(&plan(SPEC), &BOOT), "/vmgenid@9140000");
    assert_eq!(text(node, "compatible"), "microsoft,vmgenid\0");
    assert_eq!((cells(node, "reg"), cells(node, "interrupts")), (vec![0, 0x0914_0000, 0, 0x1000], vec![0, 14, 1]));
}

#[test]
fn the_hypervisor_is_named() {
    let names = |vmware| {
        let tree = tree(&plan(SPEC), &BootInfo { vmware, ..BOOT });
        text(find(tree, "/hypervisor"), "compatible")
    };
    assert_eq!(names(false), "undercroft,hypervisor\0");
    assert_eq!(names(true), "vmware\0undercroft,hypervisor\0", "who knows VMware looks at the first name");
}

#[test]
fn handles_are_unique() {
    let tree = tree(&plan(Spec { vcpus: 8, ..SPEC }), &BOOT);
    let mut handles = Vec::new();
    let mut nodes = vec![tree.root()];
    while let Some(node) = nodes.pop() {
        nodes.extend(node.children());
        if node.property("phandle").is_some() {
            handles.push(cells(node, "phandle")[0]);
        }
    }
    let count = handles.len();
    handles.sort_unstable();
    handles.dedup();
    assert_eq!((handles.len(), count), (11, 11));
}

#[test]
fn chosen_tells_what_to_boot() {
    let plan = plan(SPEC);
    let with = BootInfo { initrd: Some(Range { start: Ipa(0x4400_0000), size: 0x1234 }), ..BOOT };
    let chosen = find(tree(&plan, &with), "/chosen");
    assert_eq!(text(chosen, "bootargs"), "console=ttyAMA0\0");
    assert_eq!(text(chosen, "stdout-path"), "/pl011@9000000\0");
    assert_eq!(cells(chosen, "linux,initrd-start"), [0, 0x4400_0000]);
    assert_eq!(cells(chosen, "linux,initrd-end"), [0, 0x4400_1234]);
    assert_eq!(value(chosen, "rng-seed"), [0x5a; 32]);
    assert_eq!(cells(chosen, "kaslr-seed"), [0x0123_4567, 0x89ab_cdef]);
    let without = find(tree(&plan, &BootInfo { bootargs: "", ..BOOT }), "/chosen");
    assert!(without.property("linux,initrd-start").is_none() && without.property("bootargs").is_none());
}

#[test]
fn command_lines_that_linux_would_cut_are_refused() {
    let plan = plan(SPEC);
    let longest = "x".repeat(MAX_CMDLINE);
    assert!(device_tree(&plan, &BootInfo { bootargs: &longest, ..BOOT }).is_ok());
    let too_long = "x".repeat(MAX_CMDLINE + 1);
    let refused = device_tree(&plan, &BootInfo { bootargs: &too_long, ..BOOT });
    assert_eq!(refused, Err(TreeError::BootargsTooLong(2048)));
    let zero = device_tree(&plan, &BootInfo { bootargs: "a\0b", ..BOOT });
    assert_eq!(zero, Err(TreeError::BootargsWithZero));
}

/// A header with these fields.
fn header(text_offset: u64, image_size: u64, flags: u64) -> Vec<u8> {
    let mut header = vec![0; HEADER_SIZE];
    header[8..16].copy_from_slice(&text_offset.to_le_bytes());
    header[16..24].copy_from_slice(&image_size.to_le_bytes());
    header[24..32].copy_from_slice(&flags.to_le_bytes());
    header[56..60].copy_from_slice(b"ARM\x64");
    header
}

#[test]
fn image_headers_are_read() {
    let modern = ImageHeader::parse(&header(0, 0x1ff_0000, 0xa)).unwrap();
    let expected =
        ImageHeader { text_offset: 0, image_size: Some(0x1ff_0000), page_size: PageSize::Kib4, base: Base::Anywhere };
    assert_eq!(modern, expected);
    assert_eq!(ImageHeader::parse(&header(0, 1, 4)).unwrap().page_size, PageSize::Kib16);
    assert_eq!(ImageHeader::parse(&header(0, 1, 6)).unwrap().page_size, PageSize::Kib64);
    let old = ImageHeader::parse(&header(0x3000, 0, 0)).unwrap();
    assert_eq!((old.text_offset, old.image_size, old.base), (0x8_0000, None, Base::StartOfRam));
}

#[test]
fn what_is_no_image_is_named() {
    assert_eq!(ImageHeader::parse(&[0; 10]), Err(ImageError::TooShort(10)));
    assert_eq!(ImageHeader::parse(&[0; 64]), Err(ImageError::NotAnImage));
    assert_eq!(ImageHeader::parse(&[0x1f, 0x8b, 8]), Err(ImageError::Gzip));
    assert_eq!(ImageHeader::parse(&header(0, 1, 1)), Err(ImageError::BigEndian));
}

#[test]
fn kernel_tree_and_initrd_lie_behind_each_other() {
    let plan = plan(SPEC);
    let header = ImageHeader::parse(&header(0, 0x201_0001, 2)).unwrap();
    let placement = Placement::of_image(&plan, &header, 0x1c0_0000, 0x80_0001).unwrap();
    assert_eq!(placement.kernel, Range { start: RAM_BASE, size: 0x201_0001 });
    assert_eq!(placement.entry, RAM_BASE);
    assert_eq!(placement.device_tree, Range { start: Ipa(0x4202_0000), size: DEVICE_TREE_SIZE });
    assert_eq!(placement.initrd, Some(Range { start: Ipa(0x4203_0000), size: 0x80_0001 }));
}

/// What kernels for QEMU's `virt` know by heart: the tree where RAM begins, and themselves 2 MiB further on.
#[test]
fn an_image_that_may_lie_anywhere_leaves_the_start_of_ram_to_the_tree() {
    let plan = plan(SPEC);
    let place = |text_offset, image_size| {
        let header = ImageHeader::parse(&header(text_offset, image_size, 0xa)).unwrap();
        let place = Placement::of_image(&plan, &header, 0x1000, 0x5000).unwrap();
        assert_eq!(place.device_tree.start, RAM_BASE, "text_offset {text_offset:#x}");
        assert_eq!(place.entry, place.kernel.start);
        (place.entry.0 - RAM_BASE.0, place.initrd.unwrap().start.0 - RAM_BASE.0)
    };
    assert_eq!(place(0, 0x10_0001), (0x20_0000, 0x30_1000));
    assert_eq!(place(0x1000, 0x2000), (0x20_1000, 0x20_3000), "the tree would be overwritten at the first boundary");
    assert_eq!(place(0x8_0000, 0x2000), (0x8_0000, 0x8_2000), "there is room for the tree in front");
    assert_eq!(place(0x48_0000, 0x2000), (0x48_0000, 0x48_2000));
}

/// Such a kernel zeroes what it uses behind its file, and nobody knows how much that is: the tree and the initrd would be gone.
#[test]
fn a_kernel_that_does_not_say_how_large_it_is_has_room_behind_it() {
    let place = |memory_bytes, flags, file, initrd| {
        let header = ImageHeader::parse(&header(0, 0, flags)).unwrap();
        let place = Placement::of_image(&plan(Spec { memory_bytes, ..SPEC }), &header, file, initrd).unwrap();
        [place.kernel.start, place.device_tree.start, place.initrd.unwrap().start].map(|part| part.0 - RAM_BASE.0)
    };
    assert_eq!(place(1 << 30, 0, 0x1000, 0x5000), [0x8_0000, 0x800_0000, 0x801_0000], "as on `virt`");
    assert_eq!(place(1 << 30, 8, 0x1000, 0x5000), [0x8_0000, 0, 0x800_0000]);
    assert_eq!(place(64 << 20, 8, 0x1000, 0x5000), [0x8_0000, 0, 0x200_0000], "in the middle");
    assert_eq!(place(64 << 20, 8, 0x2ff_f001, 0x5000), [0x8_0000, 0, 0x308_0000], "a kernel beyond the middle");
    let [_, tree, initrd] = place(16 << 20, 0, 0x1000, 0xc0_0000);
    assert_eq!((tree, initrd), (0x3d_0000 + 0x1_0000, 0x3f_0000), "a large initrd leaves as much as it can");
}

#[test]
fn an_image_that_cannot_run_is_refused() {
    for text_offset in [1, 4, 0x800, 0x8_0004] {
        let refused = ImageHeader::parse(&header(text_offset, 1, 0xa));
        assert_eq!(refused, Err(ImageError::TextOffset(text_offset)));
    }
    // A header that is a PE file's too, with two sections of which one ends at 0x5000.
    let mut image = header(0, 0x9000, 0xa);
    image[..2].copy_from_slice(b"MZ");
    image[60..64].copy_from_slice(&64_u32.to_le_bytes());
    image.resize(0x5000, 0);
    image[64..68].copy_from_slice(b"PE\0\0");
    image[70..72].copy_from_slice(&2_u16.to_le_bytes());
    image[84..86].copy_from_slice(&0xa0_u16.to_le_bytes());
    let sections = [(0x3000_u32, 0x1000_u32), (0x1000, 0x4000)];
    for sections in [[sections[1], sections[0]], sections] {
        for (index, (size, place)) in sections.into_iter().enumerate() {
            let at = 64 + 24 + 0xa0 + 40 * index + 16;
            image[at..at + 4].copy_from_slice(&size.to_le_bytes());
            image[at + 4..at + 8].copy_from_slice(&place.to_le_bytes());
        }
        assert!(ImageHeader::parse(&image).is_ok());
        let cut = ImageHeader::parse(&image[..0x4fff]);
        assert_eq!(cut, Err(ImageError::Cut { present: 0x4fff, needed: 0x5000 }));
        assert!(format!("{}", cut.unwrap_err()).contains("cut off: the file has 20479 bytes"));
    }
    let cut = ImageHeader::parse(&image[..64]);
    assert_eq!(cut, Err(ImageError::Cut { present: 64, needed: 68 }), "what says where the sections are");
    for length in HEADER_SIZE..0x200 {
        let cut = ImageHeader::parse(&image[..length]);
        assert!(matches!(cut, Err(ImageError::Cut { .. })), "{length}: {cut:?}");
    }
}

#[test]
fn pages_that_the_cpu_lacks_are_named() {
    let check = |flags, mmfr0| ImageHeader::parse(&header(0, 1, flags)).unwrap().check_pages(mmfr0);
    // A Cortex-A72 and a Cortex-A76 of QEMU's, and one that has none at all.
    let (a72, a76, none) = (0x1124, 0x10_1122, 0xff00_0000);
    assert_eq!(check(4, a72), Err(ImageError::PageSize("16 KiB")));
    for (flags, has) in [(0, a72), (0, none), (2, a72), (6, a72), (2, a76), (4, a76), (6, a76)] {
        assert_eq!(check(flags, has), Ok(()), "flags {flags:#x}");
    }
    assert_eq!(check(2, none), Err(ImageError::PageSize("4 KiB")));
    assert_eq!(check(6, none), Err(ImageError::PageSize("64 KiB")));
}

#[test]
fn a_payload_fits_into_the_smallest_machine() {
    let plan = plan(Spec { memory_bytes: 2 << 20, ..SPEC });
    for flags in [0, 8] {
        let header = ImageHeader::parse(&header(0, 0x4000, flags)).unwrap();
        let placement = Placement::of_image(&plan, &header, 0x1000, 0).unwrap();
        assert_eq!((placement.entry, placement.device_tree.start), (RAM_BASE, Ipa(0x4001_0000)));
        assert_eq!(placement.initrd, None);
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let plan = plan(Spec { memory_bytes: 16 << 20, ..SPEC });
    let place = |text_offset, image_size, file, initrd| {
        let header = ImageHeader::parse(&header(text_offset, image_size, 0)).unwrap();
        Placement::of_image(&plan, &header, file, initrd).unwrap_err()
    };
    let available = 16 << 20;
    let kernel = PlacementError::KernelDoesNotFit { needed: 0x100_0001, available };
    assert_eq!(place(0, 0x100_0001, 1, 0), kernel);
    assert_eq!(place(0, 1, 0x100_0001, 0), kernel, "the file counts where it is larger than it says");
    assert_eq!(place(!0xfff, 0x1000, 1, 0), PlacementError::KernelDoesNotFit { needed: u64::MAX, available });
    assert_eq!(place(0, 0x100_0000, 1, 0), PlacementError::DeviceTreeDoesNotFit { needed: 0x101_0000, available });
    let initrd = PlacementError::InitrdDoesNotFit { needed: 0x110_0000, available };
    assert_eq!(place(0, 0x10_0000, 1, 0xfe_0000 + 0x1_0000), initrd);
    assert!(matches!(place(0, 0x10_0000, 1, u64::MAX), PlacementError::InitrdDoesNotFit { .. }));
}

#[test]
fn what_just_fits_is_placed() {
    let plan = plan(Spec { memory_bytes: 16 << 20, ..SPEC });
    let place = |text_offset, image_size, flags, initrd| {
        let header = ImageHeader::parse(&header(text_offset, image_size, flags)).unwrap();
        let place = Placement::of_image(&plan, &header, 1, initrd).unwrap();
        [Some(place.kernel), Some(place.device_tree), place.initrd]
            .map(|part| part.map(|part| part.start.0 - RAM_BASE.0))
    };
    assert_eq!(place(0, 0xff_0000, 0, 0), [Some(0), Some(0xff_0000), None]);
    assert_eq!(place(0x1_0000, 0xff_0000, 8, 0), [Some(0x1_0000), Some(0), None], "behind the tree and up to the end");
    assert_eq!(place(0, 0x10_0000, 0, 0xef_0000), [Some(0), Some(0x10_0000), Some(0x11_0000)]);
}

#[test]
fn an_initrd_beyond_the_window_is_refused() {
    let plan = plan(Spec { memory_bytes: 64 << 30, ..SPEC });
    let header = ImageHeader::parse(&header(0, 0x200_0000, 0)).unwrap();
    assert!(Placement::of_image(&plan, &header, 1, (32 << 30) - 0x201_0000).is_ok());
    assert!(matches!(Placement::of_image(&plan, &header, 1, 32 << 30), Err(PlacementError::InitrdTooFar(_))));
}

proptest! {
    #[test]
    fn lookup_agrees_with_a_naive_one(
        vcpus in 1_u8..=8,
        virtio in 0..=MAX_VIRTIO,
        generic_watchdog in any::<bool>(),
        base in prop::sample::select(vec![0x07ff_0000_u64, 0x0800_0000, 0x0809_0000, 0x0900_0000, 0x0910_0000, 0x0a00_0000, 0x4000_0000]),
        offset in 0..0x12_0000_u64,
    ) {
        let kinds = [VirtioKind::Console; MAX_VIRTIO];
        let plan = plan(Spec { vcpus, virtio: &kinds[..virtio], generic_watchdog, ..SPEC });
        let ipa = Ipa(base + offset);
        let naive = plan.rows().iter().enumerate().find_map(|(slot, row)| {
            let frame = row.frames.iter().position(|frame| frame.contains(ipa))?;
            Some(Target::Device(Place { slot, frame, offset: ipa.0 - row.frames[frame].start.0 }))
        });
        let gic = if DISTRIBUTOR.contains(ipa) {
            Some(Target::Distributor(ipa.0 - DISTRIBUTOR.start.0))
        } else {
            let all = plan.redistributors();
            all.contains(ipa).then(|| Target::Redistributors(ipa.0 - all.start.0))
        };
        prop_assert_eq!(plan.find(ipa), naive.or(gic));
        prop_assert_eq!(plan.find(ipa).map(Target::offset).is_some(), naive.or(gic).is_some());
    }

    #[test]
    fn placement_stays_inside_and_apart(
        memory in 1_u64..64, text_offset in (0_u64..0x400).prop_map(|pages| pages << 12), flags in 0_u64..16, size in 0_u64..0x600_0000, file in 0_u64..0x600_0000,
        initrd in 0_u64..0x600_0000,
    ) {
        let plan = plan(Spec { memory_bytes: memory << 21, ..SPEC });
        let header = ImageHeader::parse(&header(text_offset, size, flags & !1)).unwrap();
        if let Ok(place) = Placement::of_image(&plan, &header, file, initrd) {
            let parts = [Some(place.kernel), Some(place.device_tree), place.initrd];
            let mut parts: Vec<_> = parts.into_iter().flatten().collect();
            parts.sort();
            prop_assert_eq!((place.entry.0 - RAM_BASE.0) % (2 << 20), header.text_offset % (2 << 20));
            prop_assert!(parts.iter().all(|&part| plan.ram().contains_range(part)));
            let apart = parts.windows(2).all(|pair| !pair[0].overlaps(pair[1]));
            prop_assert!(apart);
            prop_assert!(place.device_tree.start.0 >> 21 == (place.device_tree.end().0 - 1) >> 21);
        }
    }

    #[test]
    fn any_bytes_may_claim_to_be_an_image(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = ImageHeader::parse(&bytes);
    }
}

/// A VM starts at any time, also when the others have used the hypervisor's heap up: then its tree is refused, whichever
/// allocation it is that fails, and nothing is kept.
#[test]
fn a_tree_for_which_there_is_no_memory_is_an_error() {
    let plan = plan(Spec { vcpus: 8, generic_watchdog: true, virtio: &[VirtioKind::Entropy; MAX_VIRTIO], ..SPEC });
    let line = "x".repeat(MAX_CMDLINE);
    let boot = BootInfo { bootargs: &line, vmware: true, ..BOOT };
    let whole = device_tree(&plan, &boot).unwrap();
    let before = scarce::held();
    let with_only = |allocations| scarce::with_only(allocations, || device_tree(&plan, &boot));
    let enough = (0..100).find(|&allocations| match with_only(allocations) {
        Ok(tree) => {
            assert_eq!(tree, whole, "with {allocations} allocations it is another");
            true
        }
        Err(error) => {
            assert_eq!((error, scarce::held()), (TreeError::NoMemory, before));
            false
        }
    });
    // At least the first must have failed, or nothing was tried.
    assert!(enough.is_some_and(|allocations| allocations > 0), "{enough:?}");
}
