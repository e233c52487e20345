//! The tree as its reader reads it (`core/platform`): that of QEMU's `virt`, and small ones.

use super::*;
use crate::memory::Use;
use alloc::vec;
use platform::Platform;

const QEMU: &[u8] = include_bytes!("../../../../core/platform/testdata/qemu-virt.dtb");

fn range(start: u64, size: u64) -> Range<Pa> {
    Range { start: Pa(start), size }
}

fn map() -> Map {
    let entries = [
        (range(0x4000_0000, 0x100_0000), Use::Free),
        (range(0x4100_0000, 0x10_0000), Use::Kept),
        (range(0x4110_0000, 0x6f0_0000), Use::Free),
        (range(0x8_0000_0000, 0x4000_0000), Use::Free),
    ];
    Map::new(entries.into_iter())
}

fn additions(map: &Map) -> Additions<'_> {
    Additions { arguments: "link=framed", bundle: range(0x4400_0000, 0x12345), map }
}

#[test]
fn the_hypervisor_finds_what_is_added_and_the_rest_as_it_was() {
    let map = map();
    let new = add(QEMU, &additions(&map)).expect("a tree");
    let (old, new) = (
        Platform::from_device_tree(QEMU, Pa(0x4000_0000)).expect("QEMU's"),
        Platform::from_device_tree(&new, Pa(0x4020_0000)).expect("ours"),
    );
    assert_eq!(new.bootargs, "link=framed");
    assert_eq!(new.initrd, Some(range(0x4400_0000, 0x12345)));
    assert_eq!(new.memory[..], [range(0x4000_0000, 0x800_0000), range(0x8_0000_0000, 0x4000_0000)]);
    assert!(new.reserved.contains(&range(0x4100_0000, 0x10_0000)));
    assert_eq!((&new.cpus, &new.gic, new.console, new.timer), (&old.cpus, &old.gic, old.console, old.timer));
    assert_eq!((new.psci, new.clock, new.model), (old.psci, old.clock, old.model));
    assert_eq!(new.virtio().collect::<Vec<_>>(), old.virtio().collect::<Vec<_>>());
}

/// What stood there before, as of a loader before us, is no second answer.
#[test]
fn what_was_said_before_is_replaced() {
    let map = map();
    let once = add(QEMU, &additions(&map)).expect("a tree");
    let again = Additions { arguments: "", bundle: range(0x4800_0000, 0x1000), map: &map };
    let twice = add(&once, &again).expect("a tree");
    let platform = Platform::from_device_tree(&twice, Pa(0)).expect("ours");
    assert_eq!((platform.bootargs, platform.initrd), ("", Some(range(0x4800_0000, 0x1000))));
    assert_eq!(platform.memory.len(), 2);
}

fn with_cells(address: u32, size: u32) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    tree.root.add_property(property("#address-cells", address));
    tree.root.add_property(property("#size-cells", size));
    tree.to_dtb()
}

#[test]
fn addresses_have_the_size_that_the_root_says() {
    let low = Map::new([(range(0x8000_0000, 0x4000_0000), Use::Free)].into_iter());
    let new = add(&with_cells(1, 1), &additions(&low)).expect("a tree");
    let new = DeviceTree::from_fdt(&Fdt::new(&new).expect("a tree"));
    let node = new.find_node("/memory@80000000").expect("memory");
    assert_eq!(node.property("reg").expect("reg").value(), [0x80, 0, 0, 0, 0x40, 0, 0, 0]);
    assert_eq!(add(&with_cells(1, 1), &additions(&map())), Err(BadTree::TooHigh(0x8_0000_0000)));
    assert_eq!(add(&with_cells(3, 2), &additions(&low)), Err(BadTree::Cells { address: 3, size: 2 }));
}

#[test]
fn what_cannot_be_kept_is_an_error() {
    let pieces = |count: u64| {
        let pieces = (0..count).map(|index| (range(0x4000_0000 + index * 0x2000, 0x1000), Use::Kept));
        Map::new(pieces)
    };
    let most = MOST_KEPT as u64;
    let all = pieces(most);
    let new = add(QEMU, &additions(&all)).expect("as many as there may be");
    assert!(Platform::from_device_tree(&new, Pa(0)).is_ok());
    let more = pieces(most + 1);
    assert_eq!(add(QEMU, &additions(&more)), Err(BadTree::TooManyKept(MOST_KEPT + 1)));
    assert!(matches!(add(&[0; 64], &additions(&all)), Err(BadTree::Malformed(_))));
    let mut long = vec![0; 64];
    long[..QEMU.len().min(64)].copy_from_slice(&QEMU[..64]);
    assert!(matches!(add(&long, &additions(&all)), Err(BadTree::Malformed(_))), "it is cut off");
}
