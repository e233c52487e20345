//! QEMU's own tree, trees of other shapes (written by dtoolkit, which shares no code with the reader), and broken ones.

use crate::{
    BootMethod, Conduit, Console, ConsoleKind, Cpu, Device, DeviceKind, InterruptLine, MAX_CPUS, Platform,
    PlatformError, PsciVersion, VirtioWindow, device_tree_size,
};
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, ToPropertyValue};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;
use units::{CpuId, Hz, IntId, Pa, Range, Trigger};

extern crate std;

mod pci;

const QEMU: &[u8] = include_bytes!("../../testdata/qemu-virt.dtb");
const LOCATION: Pa = Pa(0x4800_0000);

fn range(start: u64, size: u64) -> Range<Pa> {
    Range::new(Pa(start), size).unwrap()
}

fn level(interrupt: u32) -> InterruptLine {
    InterruptLine { interrupt: IntId(interrupt), trigger: Some(Trigger::Level) }
}

fn edge(interrupt: u32) -> InterruptLine {
    InterruptLine { interrupt: IntId(interrupt), trigger: Some(Trigger::Edge) }
}

fn node(name: &str, properties: &[(&str, &[u8])]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new(name).unwrap();
    for &(name, value) in properties {
        set(&mut node, name, value);
    }
    node
}

fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new(name, value).unwrap());
}

fn cells(cells: &[u32]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

/// QEMU's tree as a model that a test can change.
fn qemu() -> DeviceTree {
    DeviceTree::from_fdt(&dtoolkit::fdt::Fdt::new(QEMU).unwrap())
}

fn read(tree: &DeviceTree) -> Result<Platform<'static>, PlatformError> {
    Platform::from_device_tree(Vec::leak(tree.to_dtb()), LOCATION)
}

/// QEMU's tree with `change` made to it.
fn changed(change: impl FnOnce(&mut DeviceTree)) -> Result<Platform<'static>, PlatformError> {
    let mut tree = qemu();
    change(&mut tree);
    read(&tree)
}

fn at<'a>(tree: &'a mut DeviceTree, path: &str) -> &'a mut DeviceTreeNode {
    tree.find_node_mut(path).unwrap()
}

#[test]
fn qemu_virt_is_read_whole() {
    let platform = Platform::from_device_tree(QEMU, LOCATION).unwrap();
    assert_eq!(platform.model, "linux,dummy-virt");
    let cpus: Vec<_> = platform.cpus.iter().copied().collect();
    let cpu = |number: u16| Cpu { id: CpuId(number), mpidr: number.into(), boot: BootMethod::Psci };
    assert_eq!(cpus, [cpu(0), cpu(1), cpu(2), cpu(3)]);
    assert_eq!(platform.cpus_left_out, 0);
    assert_eq!(platform.memory[..], [range(0x4000_0000, 0x8000_0000)]);
    assert_eq!(platform.reserved[..], [range(LOCATION.0, QEMU.len() as u64)]);
    assert_eq!(platform.gic.distributor, range(0x0800_0000, 0x1_0000));
    assert_eq!(platform.gic.redistributors[..], [range(0x080a_0000, 0xf6_0000)]);
    assert_eq!(platform.gic.stride, None);
    assert_eq!(platform.gic.its, Some(range(0x0808_0000, 0x2_0000)));
    assert_eq!(platform.gic.maintenance, level(25));
    let console = platform.console.unwrap();
    assert_eq!(console.kind, ConsoleKind::Pl011);
    assert_eq!(console.registers, range(0x0900_0000, 0x1000));
    assert_eq!(console.interrupt, Some(level(33)));
    let psci = platform.psci.unwrap();
    assert_eq!((psci.conduit, psci.version, psci.cpu_on), (Conduit::Smc, PsciVersion::V1_0, 0xc400_0003));
    assert_eq!(platform.timer.physical, level(30));
    assert_eq!(platform.timer.virtual_, level(27));
    assert_eq!(platform.timer.hypervisor_physical, level(26));
    assert_eq!(platform.timer.hypervisor_virtual, Some(level(28)));
    assert_eq!(platform.timer.frequency, None);
    assert_eq!(platform.initrd, None);
    assert_eq!(platform.bootargs, "");
    assert_eq!(platform.seed.unwrap().len(), 32);
}

#[test]
fn padding_and_an_overlong_slice_do_not_matter() {
    let mut padded = QEMU.to_vec();
    padded.resize(1 << 20, 0);
    padded[4..8].copy_from_slice(&(1_u32 << 20).to_be_bytes());
    let platform = Platform::from_device_tree(&padded, LOCATION).unwrap();
    assert_eq!(platform.reserved[..], [range(LOCATION.0, 1 << 20)]);
    drop(platform);
    padded[4..8].copy_from_slice(&(QEMU.len() as u32).to_be_bytes());
    assert!(Platform::from_device_tree(&padded, LOCATION).is_ok());
}

#[test]
fn size_is_read_from_the_header_alone() {
    assert_eq!(device_tree_size(QEMU[..8].try_into().unwrap()), Some(QEMU.len()));
    assert_eq!(device_tree_size([0xd0, 0x0d, 0xfe, 0xed, 0x10, 0, 0, 0]), None);
    assert_eq!(device_tree_size([0; 8]), None);
}

#[test]
fn chosen_says_what_to_run() {
    let platform = changed(|tree| {
        let chosen = at(tree, "/chosen");
        set(chosen, "bootargs", "log=debug");
        set(chosen, "linux,initrd-start", 0x5000_0000_u32);
        set(chosen, "linux,initrd-end", 0x5000_1234_u64);
        chosen.remove_property("rng-seed");
    })
    .unwrap();
    assert_eq!(platform.bootargs, "log=debug");
    assert_eq!(platform.initrd, Some(range(0x5000_0000, 0x1234)));
    assert!(platform.reserved.contains(&range(0x5000_0000, 0x1234)));
    assert_eq!(platform.seed.unwrap().len(), 8, "the seed for KASLR is better than none");
}

#[test]
fn an_initrd_that_ends_before_it_starts_is_none() {
    let platform = changed(|tree| {
        set(at(tree, "/chosen"), "linux,initrd-start", 0x5000_0000_u32);
        set(at(tree, "/chosen"), "linux,initrd-end", 0x4000_0000_u32);
    });
    assert_eq!(platform.unwrap().initrd, None);
}

#[test]
fn reserved_memory_is_kept_out() {
    let platform = changed(|tree| {
        tree.memory_reservations.push(MemoryReservation::new(0x4400_0000, 0x1000));
        let two = cells(&[2]);
        let mut reserved = node("reserved-memory", &[("#address-cells", &two), ("#size-cells", &two)]);
        reserved.add_child(node("tee@4e000000", &[("reg", &cells(&[0, 0x4e00_0000, 0, 0x100_0000]))]));
        reserved.add_child(node("pool", &[("size", &cells(&[0, 0x100_0000]))]));
        tree.root.add_child(reserved);
    })
    .unwrap();
    assert!(platform.reserved.contains(&range(0x4e00_0000, 0x100_0000)));
    assert!(platform.reserved.contains(&range(0x4400_0000, 0x1000)));
    assert_eq!(platform.reserved.len(), 3);
}

#[test]
fn too_many_reservations_are_an_error() {
    let platform = changed(|tree| {
        tree.memory_reservations
            .extend((0..100).map(|page| MemoryReservation::new(0x4400_0000 + page * 0x2000, 0x1000)));
    });
    assert_eq!(platform.unwrap_err(), PlatformError::TooManyReservedRanges);
}

#[test]
fn memory_is_sorted_and_merged() {
    let platform = changed(|tree| {
        let memory = |name, reg: &[u32]| node(name, &[("device_type", b"memory\0"), ("reg", &cells(reg))]);
        tree.root.remove_child("memory@40000000");
        tree.root.add_child(memory("memory@100000000", &[1, 0, 0, 0x4000_0000, 0, 0x8000_0000, 0, 0x1000_0000]));
        tree.root.add_child(memory("memory@40000000", &[0, 0x4000_0000, 0, 0x4000_0000, 0, 0x2000_0000, 0, 0x1000]));
    });
    let expected = [range(0x2000_0000, 0x1000), range(0x4000_0000, 0x5000_0000), range(0x1_0000_0000, 0x4000_0000)];
    assert_eq!(platform.unwrap().memory[..], expected);
}

#[test]
fn memory_that_touches_is_one_piece_in_whichever_order_it_comes() {
    let pieces = [(0x4000_0000, 0x1000_0000), (0x5000_0000, 0x1000_0000), (0x7000_0000, 0x1000_0000)];
    let expected = [range(0x4000_0000, 0x2000_0000), range(0x7000_0000, 0x1000_0000)];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
        let platform = changed(|tree| {
            let reg: Vec<u32> = order.iter().flat_map(|&n: &usize| [0, pieces[n].0, 0, pieces[n].1]).collect();
            set(at(tree, "/memory@40000000"), "reg", cells(&reg));
        });
        assert_eq!(platform.unwrap().memory[..], expected, "{order:?}");
    }
}

#[test]
fn the_console_follows_stdout_path_or_alias() {
    let uart = |name, reg: &[u32]| {
        node(name, &[("compatible", b"ns16550a\0"), ("reg", &cells(reg)), ("interrupts", &cells(&[0, 40, 4]))])
    };
    let with_bus = |stdout: &'static str| {
        changed(move |tree| {
            let one = cells(&[1]);
            let mut bus = node("soc", &[("#address-cells", &one), ("#size-cells", &one)]);
            set(&mut bus, "ranges", cells(&[0x1000, 0, 0x0b00_0000, 0x10_0000]));
            bus.add_child(uart("serial@1000", &[0x1000, 0x100]));
            bus.add_child(uart("serial@3000", &[0x3000, 0x100]));
            tree.root.add_child(bus);
            set(at(tree, "/aliases"), "serial7", "/soc/serial@3000");
            set(at(tree, "/chosen"), "stdout-path", stdout);
        })
        .unwrap()
        .console
        .unwrap()
    };
    let second = with_bus("serial7:115200n8");
    assert_eq!(second.kind, ConsoleKind::Ns16550 { register_shift: 0, register_width: 1 });
    assert_eq!(second.registers, range(0x0b00_2000, 0x100));
    assert_eq!(second.interrupt, Some(level(72)));
    assert_eq!(with_bus("/soc/serial@3000:9600").registers, range(0x0b00_2000, 0x100));
    assert_eq!(with_bus("/soc/serial").registers, range(0x0b00_0000, 0x100));
    assert_eq!(with_bus("/pl011@9000000").kind, ConsoleKind::Pl011);
    assert_eq!(with_bus("/no/such").kind, ConsoleKind::Pl011, "the PL011 is the fallback");
    assert_eq!(with_bus("serial9").kind, ConsoleKind::Pl011);
    assert_eq!(with_bus("/psci/serial@3000").kind, ConsoleKind::Pl011, "it is another node's");
}

#[test]
fn a_16550_says_where_its_registers_are_and_how_wide() {
    let console = |compatible: &'static str, shift: Option<u32>, width: Option<u32>| {
        changed(move |tree| {
            let mut uart = node("serial@b000000", &[("reg", &cells(&[0, 0x0b00_0000, 0, 0x100]))]);
            set(&mut uart, "compatible", compatible);
            for (name, value) in [("reg-shift", shift), ("reg-io-width", width)] {
                if let Some(value) = value {
                    set(&mut uart, name, value);
                }
            }
            tree.root.add_child(uart);
            set(at(tree, "/chosen"), "stdout-path", "/serial@b000000");
        })
        .unwrap()
        .console
        .map(|console| console.kind)
    };
    let kind = |register_shift, register_width| Some(ConsoleKind::Ns16550 { register_shift, register_width });
    assert_eq!(console("ns16550a", None, None), kind(0, 1));
    assert_eq!(console("snps,dw-apb-uart", Some(2), Some(4)), kind(2, 4));
    assert_eq!(console("snps,dw-apb-uart", Some(2), Some(1)), kind(2, 1));
    assert_eq!(console("ns16550", Some(1), Some(2)), kind(1, 2));
    assert_eq!(console("ns16550a", Some(9), Some(3)), kind(3, 1), "nonsense is the nearest that can be");
}

#[test]
fn a_console_is_found_where_no_platform_is() {
    let mut tree = qemu();
    at(&mut tree, "/intc@8000000").remove_property("interrupts");
    assert_eq!(read(&tree).unwrap_err(), PlatformError::NoMaintenanceInterrupt);
    assert_eq!(Console::from_device_tree(&tree.to_dtb()).unwrap().registers, range(0x0900_0000, 0x1000));
}

#[test]
fn spin_tables_and_unusable_cpus() {
    let platform = changed(|tree| {
        let cpu = at(tree, "/cpus/cpu@1");
        set(cpu, "enable-method", "spin-table");
        set(cpu, "cpu-release-addr", 0x8000_fff8_u64);
        set(at(tree, "/cpus/cpu@2"), "status", "fail");
        at(tree, "/cpus/cpu@3").remove_property("enable-method");
    })
    .unwrap();
    let found: Vec<_> = platform.cpus.iter().map(|cpu| (cpu.id.0, cpu.mpidr, cpu.boot)).collect();
    let table = BootMethod::SpinTable(Pa(0x8000_fff8));
    assert_eq!(found, [(0, 0, BootMethod::Psci), (1, 1, table), (2, 3, BootMethod::Unknown)]);
}

#[test]
fn more_cpus_than_can_be_used_are_counted() {
    let platform = changed(|tree| {
        let cpus = at(tree, "/cpus");
        for number in 4..70 {
            let name = std::format!("cpu@{number:x}");
            cpus.add_child(node(&name, &[("device_type", b"cpu\0"), ("reg", &cells(&[number]))]));
        }
    })
    .unwrap();
    assert_eq!((platform.cpus.len(), platform.cpus_left_out), (MAX_CPUS, 6));
}

#[test]
fn the_boot_cpu_becomes_number_0() {
    let mut platform = Platform::from_device_tree(QEMU, LOCATION).unwrap();
    assert!(platform.put_first(0x8000_0002), "the bits beside the affinity fields do not count");
    let order: Vec<_> = platform.cpus.iter().map(|cpu| (cpu.id.0, cpu.mpidr)).collect();
    assert_eq!(order, [(0, 2), (1, 0), (2, 1), (3, 3)]);
    assert!(!platform.put_first(7));
}

#[test]
fn redistributors_in_several_regions() {
    let platform = changed(|tree| {
        let gic = at(tree, "/intc@8000000");
        set(gic, "#redistributor-regions", 2_u32);
        set(gic, "redistributor-stride", 0x4_0000_u64);
        let reg =
            [0, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x10_0000, 1, 0, 0, 0x20_0000, 0, 0x0c00_0000, 0, 0x2000];
        set(gic, "reg", cells(&reg));
    });
    let gic = platform.unwrap().gic;
    assert_eq!(gic.redistributors[..], [range(0x080a_0000, 0x10_0000), range(0x1_0000_0000, 0x20_0000)]);
    assert_eq!(gic.stride, Some(0x4_0000));
}

#[test]
fn a_stride_that_cannot_be_is_told() {
    let with_stride = |stride: u64| changed(|tree| set(at(tree, "/intc@8000000"), "redistributor-stride", stride));
    assert_eq!(with_stride(0).unwrap().gic.stride, None, "it says nothing");
    for stride in [0x1_0000, 0x2_1000] {
        let error = with_stride(stride).unwrap_err();
        assert_eq!(error, PlatformError::RedistributorStride(stride));
    }
}

#[test]
fn devices_are_listed_with_their_interrupts() {
    let platform = Platform::from_device_tree(QEMU, LOCATION).unwrap();
    let device = |kind, start, size, interrupt| Device { kind, registers: range(start, size), interrupt };
    let devices: Vec<_> = platform.devices().collect();
    let mut windows: Vec<_> = platform.virtio().collect();
    windows.sort_by_key(|window| window.registers.start);
    let window = |number: u32| VirtioWindow {
        registers: range(0x0a00_0000 + 0x200 * u64::from(number), 0x200),
        interrupt: edge(48 + number),
    };
    assert_eq!(windows, (0..32).map(window).collect::<Vec<_>>());
    assert_eq!(platform.windows.len(), 1);
    assert_eq!(
        devices,
        [
            device(DeviceKind::Distributor, 0x0800_0000, 0x1_0000, None),
            device(DeviceKind::Redistributors, 0x080a_0000, 0xf6_0000, None),
            device(DeviceKind::Console(ConsoleKind::Pl011), 0x0900_0000, 0x1000, Some(level(33))),
            device(DeviceKind::Clock, 0x0901_0000, 0x1000, None),
        ]
    );
    // The last Redistributors, the console and the clock touch, once they are whole pieces.
    let memory: Vec<_> = platform.device_memory(0x1_0000).collect();
    assert_eq!(memory, [range(0x0800_0000, 0x1_0000), range(0x080a_0000, 0xf8_0000), range(0x0a00_0000, 0x1_0000)]);
    // One that does not see our caches is left alone.
    let platform = changed(|tree| {
        at(tree, "/virtio_mmio@a000200").remove_property("dma-coherent");
    })
    .unwrap();
    assert_eq!(platform.virtio().count(), 31);
    assert!(platform.virtio().all(|window| window.registers.start != Pa(0x0a00_0200)));
    let mut rows: Vec<_> = platform.windows.iter().map(|row| row.registers).collect();
    rows.sort_by_key(|row| row.start);
    assert_eq!(rows, [range(0x0a00_0000, 0x200), range(0x0a00_0400, 0x3c00)]);
    // One that is signalled otherwise keeps its way.
    let platform = changed(|tree| set(at(tree, "/virtio_mmio@a000400"), "interrupts", cells(&[0, 18, 4]))).unwrap();
    let other = platform.virtio().find(|window| window.registers.start == Pa(0x0a00_0400)).unwrap();
    assert_eq!((other.interrupt, platform.virtio().count()), (level(50), 32));
    assert!(platform.virtio().all(|window| window == other || window.interrupt.trigger == Some(Trigger::Edge)));
}

/// Windows that stand one beside the other, in whichever order they are listed, are one row; what differs in anything begins another.
#[test]
fn windows_side_by_side_are_a_row() {
    let rows = |windows: [(u32, u32, u32); 2]| {
        let platform = changed(|tree| {
            (0..32).for_each(|number| {
                drop(tree.root.remove_child(&std::format!("virtio_mmio@{:x}", 0xa00_0000 + 0x200 * number)))
            });
            for (start, size, interrupt) in windows {
                let (reg, interrupts) = (cells(&[0, start, 0, size]), cells(&[0, interrupt, 1]));
                let compatible = b"vendor,window\0virtio,mmio\0";
                let properties: [(&str, &[u8]); 4] =
                    [("compatible", compatible), ("reg", &reg), ("interrupts", &interrupts), ("dma-coherent", b"")];
                tree.root.add_child(node(&std::format!("virtio_mmio@{start:x}"), &properties));
            }
        });
        let rows: Vec<_> = platform.unwrap().windows.iter().map(|row| (row.registers, row.interrupt)).collect();
        rows
    };
    let (low, high) = ((0xa00_0000, 0x200, 16), (0xa00_0200, 0x200, 17));
    let row = [(range(0xa00_0000, 0x400), edge(48))];
    assert_eq!((&rows([low, high])[..], &rows([high, low])[..]), (&row[..], &row[..]));
    for other in [(0xa00_0400, 0x200, 17), (0xa00_0200, 0x400, 17), (0xa00_0200, 0x200, 18), (0xa00_0200, 0x200, 16)] {
        assert_eq!((rows([low, other]).len(), rows([other, low]).len()), (2, 2), "{other:x?}");
    }
}

#[test]
fn every_register_of_a_device_is_in_device_memory_once() {
    let mut platform = Platform::from_device_tree(QEMU, LOCATION).unwrap();
    // One region inside a piece, one that begins in the same piece and goes on behind it, one of nothing, one far below.
    platform.gic.redistributors =
        [range(0x0a00_1000, 0x1000), range(0x0a00_8000, 0x3_0000), range(0x0b00_0000, 0), range(0x0010_0000, 0x2_0000)]
            .into_iter()
            .collect();
    let memory: Vec<_> = platform.device_memory(0x1_0000).collect();
    let uart_and_clock = range(0x0900_0000, 0x2_0000);
    let gic = [range(0x0010_0000, 0x2_0000), range(0x0800_0000, 0x1_0000)];
    assert_eq!(memory, [gic[0], gic[1], uart_and_clock, range(0x0a00_0000, 0x4_0000)]);
}

#[test]
fn timer_interrupts_by_name() {
    let platform = changed(|tree| {
        let timer = at(tree, "/timer");
        set(timer, "interrupt-names", ["phys", "virt", "hyp-phys"].as_slice());
        set(timer, "interrupts", cells(&[1, 14, 4, 1, 11, 4, 1, 10, 4]));
        set(timer, "clock-frequency", 24_000_000_u32);
    });
    let timer = platform.unwrap().timer;
    assert_eq!((timer.physical, timer.virtual_, timer.hypervisor_physical), (level(30), level(27), level(26)));
    assert_eq!((timer.hypervisor_virtual, timer.frequency), (None, Some(Hz(24_000_000))));
}

#[test]
fn extended_interrupts_name_their_controller() {
    let platform = changed(|tree| {
        let uart = at(tree, "/pl011@9000000");
        uart.remove_property("interrupts");
        set(uart, "interrupts-extended", cells(&[0x8005, 0, 1, 4]));
    });
    assert_eq!(platform.unwrap().console.unwrap().interrupt, Some(level(33)));
    // Where there are both, these hold, in whatever order they stand.
    for extended_first in [false, true] {
        let platform = changed(|tree| {
            let uart = at(tree, "/pl011@9000000");
            uart.remove_property("interrupts");
            let both = [("interrupts", cells(&[0, 9, 4])), ("interrupts-extended", cells(&[0x8005, 0, 1, 4]))];
            let [first, second] = if extended_first { [1, 0] } else { [0, 1] };
            set(uart, both[first].0, both[first].1.clone());
            set(uart, both[second].0, both[second].1.clone());
        });
        assert_eq!(platform.unwrap().console.unwrap().interrupt, Some(level(33)));
    }
}

#[test]
fn old_psci_names_its_functions() {
    let psci = |compatible: &'static str| {
        changed(move |tree| {
            set(at(tree, "/psci"), "compatible", compatible);
            set(at(tree, "/psci"), "cpu_on", 0x95c1_ba60_u32);
            set(at(tree, "/psci"), "method", "hvc");
        })
        .unwrap()
        .psci
        .unwrap()
    };
    let oldest = psci("arm,psci");
    assert_eq!((oldest.conduit, oldest.version, oldest.cpu_on), (Conduit::Hvc, PsciVersion::V0_1, 0x95c1_ba60));
    let old = psci("arm,psci-0.2");
    assert_eq!((old.version, old.cpu_on), (PsciVersion::V0_2, 0xc400_0003));
}

#[test]
fn what_is_missing_is_named() {
    let without = |path: &'static str| {
        changed(move |tree| {
            tree.root.remove_child(path);
        })
        .unwrap_err()
    };
    assert_eq!(without("cpus"), PlatformError::NoCpus);
    assert_eq!(without("memory@40000000"), PlatformError::NoMemory);
    assert_eq!(without("intc@8000000"), PlatformError::NoGicv3);
    assert_eq!(without("timer"), PlatformError::NoTimer);
    let old = changed(|tree| set(at(tree, "/intc@8000000"), "compatible", "arm,cortex-a15-gic"));
    assert_eq!(old.unwrap_err(), PlatformError::OldGic);
    let no_psci = changed(|tree| {
        tree.root.remove_child("psci");
    });
    assert_eq!(no_psci.unwrap().psci, None);
}

#[test]
fn wrong_blobs_are_refused() {
    let malformed =
        |bytes: &[u8]| matches!(Platform::from_device_tree(bytes, LOCATION), Err(PlatformError::Malformed(_)));
    assert!(malformed(&[]));
    assert!(malformed(&QEMU[..QEMU.len() - 1]));
    assert!(malformed(&QEMU[1..]));
    let mut newer = QEMU.to_vec();
    newer[27] = 18;
    assert_eq!(Platform::from_device_tree(&newer, LOCATION).unwrap_err(), PlatformError::Version(17));
    // The root's end, which is the last but one of the words of the structure block: a word that means nothing instead.
    let field = |index: usize| u32::from_be_bytes(QEMU[index * 4..][..4].try_into().unwrap()) as usize;
    let (mut open, last) = (QEMU.to_vec(), field(2) + field(9) - 4);
    assert_eq!(open[last - 4..last + 4], [0, 0, 0, 2, 0, 0, 0, 9]);
    open[last - 1] = 4;
    let refused = Platform::from_device_tree(&open, LOCATION).unwrap_err();
    assert_eq!(refused, PlatformError::Malformed("a node does not end"));
}

/// Where names lie in their block says nothing of what they mean: the first property has the first.
#[test]
fn names_behind_many_others_are_known() {
    let mut tree = qemu();
    let known = core::mem::replace(&mut tree.root, DeviceTreeNode::new("").unwrap());
    let others: Vec<_> = (0..1000).map(|number| std::format!("a-property-nobody-knows-{number}")).collect();
    let mut first = node("first", &[]);
    others.iter().for_each(|name| set(&mut first, name, 0_u32));
    tree.root.add_child(first);
    let expected = Platform::from_device_tree(QEMU, LOCATION).unwrap();
    for property in known.properties() {
        tree.root.add_property(property.clone());
    }
    for child in known.children() {
        tree.root.add_child(child.clone());
    }
    let platform = read(&tree).unwrap();
    assert_eq!(
        (&platform.cpus[..], &platform.memory[..], platform.console, platform.psci),
        (&expected.cpus[..], &expected.memory[..], expected.console, expected.psci)
    );
}

/// Firmware that takes something out of a tree writes such words over it (section 5.4.1).
#[test]
fn words_that_mean_nothing_change_nothing() {
    const NOP: [u8; 4] = 4_u32.to_be_bytes();
    let field = |index: usize| u32::from_be_bytes(QEMU[index * 4..][..4].try_into().unwrap()) as usize;
    let (structure, size) = (field(2), field(9));
    // The same structure behind the rest, with two of them before each token.
    let mut blob = QEMU.to_vec();
    blob.resize(blob.len().next_multiple_of(4), 0);
    let begin = blob.len() as u32;
    let mut at = structure;
    while at < structure + size {
        let length = match QEMU[at..at + 4] {
            [0, 0, 0, 1] => 4 + (QEMU[at + 4..].iter().position(|&byte| byte == 0).unwrap() + 1).next_multiple_of(4),
            [0, 0, 0, 3] => 12 + (QEMU[at + 7] as usize | (QEMU[at + 6] as usize) << 8).next_multiple_of(4),
            _ => 4,
        };
        blob.extend(NOP);
        blob.extend(NOP);
        blob.extend(&QEMU[at..at + length]);
        at += length;
    }
    let total = blob.len() as u32;
    blob[4..8].copy_from_slice(&total.to_be_bytes());
    blob[8..12].copy_from_slice(&begin.to_be_bytes());
    let platform = Platform::from_device_tree(&blob, LOCATION).unwrap();
    let expected = Platform::from_device_tree(QEMU, LOCATION).unwrap();
    assert_eq!(
        (&platform.cpus[..], platform.console, platform.psci),
        (&expected.cpus[..], expected.console, expected.psci)
    );
    let blob = super::blob::Blob::new(&blob).unwrap();
    for path in ["/cpus/cpu@2", "/cpus/cpu-map/socket0/cluster0/core3"] {
        assert!(blob.find(path.as_bytes()).is_some(), "{path}");
    }
}

#[test]
fn reservations_of_nothing_and_to_the_end_of_all() {
    let platform = changed(|tree| {
        tree.memory_reservations.push(MemoryReservation::new(0, 0x1000));
        tree.memory_reservations.push(MemoryReservation::new(0x4400_0000, 0));
        tree.memory_reservations.push(MemoryReservation::new(u64::MAX - 0xfff, 0x2000));
    })
    .unwrap();
    let kept = [range(0, 0x1000), range(u64::MAX - 0xfff, 0xfff)];
    assert!(kept.iter().all(|range| platform.reserved.contains(range)), "{:?}", platform.reserved);
    assert_eq!(platform.reserved.len(), 3, "{:?}", platform.reserved);
}

#[test]
fn what_is_disabled_or_says_not_what_it_is_is_not_used() {
    let uart = |properties: &[(&str, &[u8])]| {
        let mut uart = node("serial@b000000", &[("reg", &cells(&[0, 0x0b00_0000, 0, 0x1000]))]);
        properties.iter().for_each(|&(name, value)| set(&mut uart, name, value));
        changed(|tree| {
            tree.root.remove_child("pl011@9000000");
            tree.root.add_child(uart);
        })
        .unwrap()
        .console
        .map(|console| console.kind)
    };
    assert_eq!(uart(&[("compatible", b"vendor,uart\0arm,sbsa-uart\0")]), Some(ConsoleKind::Sbsa));
    assert_eq!(uart(&[("compatible", b"arm,sbsa-uart\0"), ("status", b"disabled\0")]), None);
    assert_eq!(uart(&[("status", b"okay\0")]), None);
    // Calls without numbers are none.
    let psci = changed(|tree| {
        set(at(tree, "/psci"), "compatible", "arm,psci");
        at(tree, "/psci").remove_property("cpu_on");
    });
    assert_eq!(psci.unwrap().psci, None);
    // A machine of which nothing else is known can be switched off.
    let mut tree = qemu();
    at(&mut tree, "/intc@8000000").remove_property("interrupts");
    assert_eq!(crate::Psci::from_device_tree(&tree.to_dtb()).unwrap().conduit, Conduit::Smc);
    let no_redistributors = changed(|tree| set(at(tree, "/intc@8000000"), "#redistributor-regions", 0_u32));
    assert_eq!(no_redistributors.unwrap_err(), PlatformError::NoGicv3);
}

#[test]
fn ranges_without_any_cell_end() {
    let _ = changed(|tree| {
        let zero = cells(&[0]);
        set(&mut tree.root, "#address-cells", 0_u32);
        set(&mut tree.root, "#size-cells", 0_u32);
        let mut bus = node(
            "soc",
            &[
                ("#address-cells", &zero),
                ("#size-cells", &zero),
                ("ranges", &[1, 2, 3, 4]),
                ("device_type", b"memory\0"),
            ],
        );
        bus.add_child(node("serial", &[("compatible", b"arm,pl011\0"), ("reg", &[])]));
        tree.root.add_child(bus);
    });
}

#[test]
fn our_reader_agrees_with_dtoolkit() {
    let tree = dtoolkit::fdt::Fdt::new(QEMU).unwrap();
    let blob = super::blob::Blob::new(QEMU).unwrap();
    for path in ["/cpus/cpu@2", "/cpus/cpu", "/intc/its", "/chosen", "/cpus/cpu-map/socket0/cluster0/core3", "/pcie"] {
        let mut tokens = blob.tokens_at(blob.find(path.as_bytes()).unwrap());
        let node = tree.find_node(path).unwrap();
        assert_eq!(tokens.next().unwrap(), Some(super::blob::Token::Begin(node.name().as_bytes())));
    }
    for path in ["/cpus/cpu@9", "/cpu", "/cpus/cpu@1/x", "/chosen/cpus", "chosen"] {
        assert_eq!(blob.find(path.as_bytes()), None, "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn broken_blobs_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        words in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>()), 0..3),
        length in any::<prop::sample::Index>(),
        cut in prop::bool::weighted(0.2),
    ) {
        let mut blob = QEMU.to_vec();
        for (at, value) in changes {
            let at = at.index(blob.len());
            blob[at] = value;
        }
        for (at, value) in words {
            let at = at.index(blob.len() / 4) * 4;
            blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        if cut {
            let length = length.index(blob.len());
            blob.truncate(length);
            if let Some(field) = blob.get_mut(4..8) {
                field.copy_from_slice(&(length as u32).to_be_bytes());
            }
        }
        let _ = Platform::from_device_tree(&blob, LOCATION);
        let _ = Console::from_device_tree(&blob);
    }

    #[test]
    fn noise_behind_a_header_never_panics(noise in prop::collection::vec(prop_oneof![Just(0_u32), 1..10_u32, any::<u32>()], 0..200)) {
        let mut words = vec![0xd00d_feed, 0, 40, 40, 40, 17, 16, 0, 0, 0];
        words.extend(noise);
        words[1] = words.len() as u32 * 4;
        let _ = Platform::from_device_tree(&cells(&words), LOCATION);
    }
}
