//! The PCI host: QEMU's, some of other shapes, and damaged ones.

extern crate std;

use super::{LOCATION, Platform, QEMU, at, cells, changed, edge, level, node, range, set};
use crate::{BadPciHost, InterruptLine, PciHost, PciWindow};
use dtoolkit::model::DeviceTree;
use proptest::prelude::*;
use std::vec::Vec;
use units::Pa;

const PCIE: &str = "/pcie@10000000";

/// The host of QEMU's tree with `change` made to it.
fn host(change: impl FnOnce(&mut DeviceTree)) -> Option<Result<PciHost<'static>, BadPciHost>> {
    changed(change).unwrap().pci
}

fn with(name: &'static str, value: &[u32]) -> Result<PciHost<'static>, BadPciHost> {
    host(|tree| set(at(tree, PCIE), name, cells(value))).unwrap()
}

fn window(start: u64, size: u64, bus_address: u64) -> PciWindow {
    PciWindow { memory: range(start, size), bus_address }
}

#[test]
fn that_of_qemu_virt_is_read_whole() {
    let host = Platform::from_device_tree(QEMU, LOCATION).unwrap().pci.unwrap().unwrap();
    assert_eq!(host.configuration, range(0x40_1000_0000, 1 << 20), "the first of its buses");
    // The third, for ports, is left out.
    let windows =
        [window(0x1000_0000, 0x2eff_0000, 0x1000_0000), window(0x80_0000_0000, 0x80_0000_0000, 0x80_0000_0000)];
    assert_eq!(host.windows[..], windows);
    // Pins are turned by a device each, over four lines: as QEMU's source has it.
    for device in 0..32 {
        for pin in 1..=4 {
            let line = 35 + (u32::from(device) + u32::from(pin) - 1) % 4;
            assert_eq!(host.interrupt(device, pin), Some(level(line)), "device {device} pin {pin}");
        }
    }
    assert_eq!([0, 5, 8].map(|pin| host.interrupt(1, pin)), [None; 3]);
}

#[test]
fn a_window_says_where_the_cpus_find_an_address_of_the_bus() {
    let other = window(0x5000_0000, 0x1000, 0x8000_0000);
    let cases = [(0x8000_0000, 0x1000, Some(0x5000_0000)), (0x8000_0ff0, 0x10, Some(0x5000_0ff0))];
    for (address, size, start) in cases {
        assert_eq!(other.find(address, size), start.map(|start| range(start, size)));
    }
    for (address, size) in
        [(0x7fff_ffff, 1), (0x8000_0ff0, 0x11), (0x8000_1000, 1), (u64::MAX, 2), (0x8000_0000, u64::MAX)]
    {
        assert_eq!(other.find(address, size), None, "{size:#x} bytes at {address:#x}");
    }
}

#[test]
fn what_is_missing_of_it_is_named() {
    assert!(with("reg", &[0x40, 0x1000_0000, 0, 0x10_0000]).is_ok(), "one bus is enough");
    assert_eq!(with("reg", &[0x40, 0x1000_0000, 0, 0xf_ffff]).unwrap_err(), BadPciHost::Configuration);
    assert_eq!(with("reg", &[0x40, 0x1000_0800, 0, 0x1000_0000]).unwrap_err(), BadPciHost::Configuration);
    assert_eq!(with("reg", &[u32::MAX, 0xfff0_1000, 0, 0x10_0000]).unwrap_err(), BadPciHost::Configuration);
    assert_eq!(with("reg", &[0x40]).unwrap_err(), BadPciHost::Configuration);
    assert_eq!(with("ranges", &[0x0100_0000, 0, 0, 0, 0x3eff_0000, 0, 0x1_0000]).unwrap_err(), BadPciHost::Windows);
    assert_eq!(with("ranges", &[0x0200_0000, 0, 0, 0, 0x1000_0000, 0, 0]).unwrap_err(), BadPciHost::Windows);
    assert_eq!(with("ranges", &[0x0200_0000, 0, 0, 0, 0x1000_0000, 0]).unwrap_err(), BadPciHost::Windows);
    assert_eq!(with("#address-cells", &[2]).unwrap_err(), BadPciHost::Windows);
    for (name, error) in [("reg", BadPciHost::Configuration), ("ranges", BadPciHost::Windows)] {
        let without = host(|tree| {
            at(tree, PCIE).remove_property(name);
        });
        assert_eq!(without.unwrap().unwrap_err(), error);
    }
    let unmapped = host(|tree| {
        at(tree, PCIE).remove_property("interrupt-map");
    });
    assert_eq!(unmapped.unwrap().unwrap().interrupt(1, 1), None);
    // Where its devices see memory, if not where the CPUs do.
    let same = [0x0300_0000, 0, 0x4000_0000, 0, 0x4000_0000, 1, 0];
    assert!(with("dma-ranges", &same).is_ok() && with("dma-ranges", &[]).is_ok());
    let other = [0x0300_0000, 0, 0x8000_0000, 0, 0x4000_0000, 1, 0];
    for wrong in [&other[..], &[same, other].concat(), &same[..6], &same[..3]] {
        assert_eq!(with("dma-ranges", wrong).unwrap_err(), BadPciHost::Dma);
    }
    assert_eq!(with("iommu-map", &[0, 7, 0, 0x1_0000]).unwrap_err(), BadPciHost::Dma);
    // Beyond the end of the bus's addresses, and of the CPUs'.
    let ends = [
        [0x0300_0000, u32::MAX, 0xffff_f000, 0, 0x1000_0000, 0, 0x2000],
        [0x0300_0000, 0, 0, u32::MAX, 0xffff_f000, 0, 0x2000],
    ];
    for ranges in ends {
        assert_eq!(with("ranges", &ranges).unwrap_err(), BadPciHost::Windows);
    }
    let none = host(|tree| {
        tree.root.remove_child(&PCIE[1..]);
    });
    assert!(none.is_none());
    // One that does not see our caches is left alone, as one that is switched off.
    let incoherent = host(|tree| {
        at(tree, PCIE).remove_property("dma-coherent");
    });
    assert!(incoherent.is_none());
    assert!(host(|tree| set(at(tree, PCIE), "status", "disabled")).is_none());
}

#[test]
fn addresses_are_translated_and_the_bus_has_its_number() {
    let host = host(|tree| {
        let mut pci = tree.root.remove_child(&PCIE[1..]).unwrap();
        set(&mut pci, "reg", cells(&[0x100_0000, 0x20_0000]));
        set(&mut pci, "ranges", cells(&[0x4200_0000, 0, 0x8000_0000, 0x200_0000, 0, 0x10_0000]));
        set(&mut pci, "bus-range", cells(&[2, 3]));
        set(&mut pci, "interrupt-map-mask", cells(&[0xff_f800, 0, 0, 7]));
        set(&mut pci, "interrupt-map", cells(&[0x2_0800, 0, 0, 1, 0x8005, 0, 0, 0, 40, 1]));
        let mut soc = node(
            "soc",
            &[
                ("#address-cells", &cells(&[1])),
                ("#size-cells", &cells(&[1])),
                ("ranges", &cells(&[0x100_0000, 0, 0x5000_0000, 0x200_0000])),
            ],
        );
        soc.add_child(pci);
        tree.root.add_child(soc);
    });
    let host = host.unwrap().unwrap();
    assert_eq!(host.configuration.start, Pa(0x5000_0000));
    assert_eq!(host.windows[..], [window(0x5100_0000, 0x10_0000, 0x8000_0000)]);
    assert_eq!((host.interrupt(1, 1), host.interrupt(2, 1)), (Some(edge(72)), None), "of bus 2");
}

/// An entry is as long as its controller says: of another one than the GIC nobody knows.
#[test]
fn a_map_ends_at_what_cannot_be_read() {
    let good = [0, 0, 0, 1, 0x8005, 0, 0, 0, 9, 4];
    let line = |map: &[u32]| -> Option<InterruptLine> { with("interrupt-map", map).unwrap().interrupt(0, 1) };
    assert_eq!(line(&good), Some(level(41)));
    let other = [0x800, 0, 0, 1, 0x8005, 0, 0, 0, 8, 4];
    assert_eq!(line(&[other, good].concat()), Some(level(41)));
    let foreign = [0x800, 0, 0, 1, 0x77, 0, 0, 0, 8, 4];
    assert_eq!(line(&[foreign, good].concat()), None);
    for length in 0..good.len() {
        assert_eq!(line(&good[..length]), None);
        assert_eq!(line(&[&other, &good[..length]].concat()), None);
    }
    let wrong = [0, 0, 0, 1, 0x8005, 0, 0, 0, 988, 4];
    assert_eq!(line(&wrong), None, "there is no such interrupt");
    // Without a unit address of the GIC's, which has none where it has no children.
    let host = host(|tree| {
        at(tree, "/intc@8000000").remove_property("#address-cells");
        set(at(tree, PCIE), "interrupt-map", cells(&[0, 0, 0, 1, 0x8005, 0, 9, 4]));
    });
    assert_eq!(host.unwrap().unwrap().interrupt(0, 1), Some(level(41)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever the properties hold, what is read of them is inside of what can be.
    #[test]
    fn damaged_ones_never_panic(
        which in 0..6_usize,
        words in prop::collection::vec(prop_oneof![0..8_u32, Just(0x0200_0000), Just(0x8005), any::<u32>()], 0..40),
        cut in 0..4_usize,
        gic_cells in prop_oneof![0..4_u32, any::<u32>()],
    ) {
        let properties = ["reg", "ranges", "bus-range", "interrupt-map", "interrupt-map-mask", "#address-cells"];
        let mut value = cells(&words);
        value.truncate(value.len().saturating_sub(cut));
        let found = host(|tree| {
            set(at(tree, PCIE), properties[which], value);
            if gic_cells > 3 {
                set(at(tree, "/intc@8000000"), "#address-cells", gic_cells);
            }
        });
        if let Some(Ok(host)) = found {
            prop_assert_eq!(host.configuration.size, 1 << 20);
            for window in &host.windows {
                prop_assert!(!window.memory.is_empty());
                prop_assert_eq!(window.find(window.bus_address, window.memory.size), Some(window.memory));
            }
            let lines: Vec<_> = (0..=255).map(|pin| host.interrupt(pin, pin)).collect();
            prop_assert!(lines.iter().flatten().all(|line| line.interrupt.0 >= 16));
        }
    }
}
