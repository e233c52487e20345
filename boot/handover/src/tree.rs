//! Firmware's device tree with what the loader has to say in it (Devicetree Specification 0.4, chapter 3).
//!
//! `/memory` becomes what firmware's map says ([`crate::memory`]), what is kept is added to the memory reservation block, and `/chosen`
//! gets the command line and the place of the bundle. All else stays as it is: it describes the machine.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use dtoolkit::Node;
use dtoolkit::Property;
use dtoolkit::fdt::Fdt;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use units::{Pa, Range};

use crate::memory::Map;

/// The longest tree that the hypervisor reads.
pub const LARGEST: usize = platform::MAX_DEVICE_TREE_SIZE;

/// The most ranges that may be kept: more do not go into the hypervisor's table beside those of the tree itself, for which ten places are left.
pub const MOST_KEPT: usize = platform::MAX_RESERVED_RANGES - 10;

/// What is written into the tree.
#[derive(Clone, Copy, Debug)]
pub struct Additions<'a> {
    /// The hypervisor's command line.
    pub arguments: &'a str,
    /// Where the bundle is.
    pub bundle: Range<Pa>,
    /// Firmware's map.
    pub map: &'a Map,
}

/// Why there is no tree.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadTree {
    /// Firmware's is broken.
    #[error("firmware's device tree is malformed: {0}")]
    Malformed(String),
    /// Addresses have other sizes than 64 bits.
    #[error("firmware's device tree has #address-cells {address} and #size-cells {size}; each has to be 1 or 2")]
    Cells {
        /// `#address-cells`.
        address: u32,
        /// `#size-cells`.
        size: u32,
    },
    /// A range does not fit into 32 bits.
    #[error("memory at {0:#x} cannot be written in 32 bits, as firmware's device tree asks for")]
    TooHigh(u64),
    /// Firmware keeps memory in too many pieces.
    #[error("firmware keeps {0} ranges of memory, and {MOST_KEPT} are the most")]
    TooManyKept(usize),
    /// It has become too long.
    #[error("the device tree has {0} bytes, and {LARGEST} are the most")]
    TooLong(usize),
}

/// Writes `tree` anew, with what there is to add.
///
/// # Errors
/// Why that cannot be.
pub fn add(tree: &[u8], additions: &Additions<'_>) -> Result<Vec<u8>, BadTree> {
    let old = Fdt::new(tree).map_err(|error| BadTree::Malformed(format!("{error}")))?;
    let mut new = DeviceTree::from_fdt(&old);
    if additions.map.kept.len() > MOST_KEPT {
        return Err(BadTree::TooManyKept(additions.map.kept.len()));
    }
    let kept = additions.map.kept.iter().map(|range| MemoryReservation::new(range.start.0, range.size));
    new.memory_reservations.extend(kept);
    put_memory(&mut new.root, &additions.map.memory)?;
    put_chosen(&mut new.root, additions);
    let new = new.to_dtb();
    if new.len() > LARGEST { Err(BadTree::TooLong(new.len())) } else { Ok(new) }
}

fn property(name: &str, value: impl dtoolkit::ToPropertyValue) -> DeviceTreeProperty {
    DeviceTreeProperty::new_unchecked(name, value)
}

/// A number of cells that the root gives its children.
fn cells(root: &DeviceTreeNode, name: &str, usual: u32) -> u32 {
    let value = root.property(name).and_then(|property| property.value().first_chunk().copied());
    value.map_or(usual, u32::from_be_bytes)
}

/// Puts all RAM in place of what the tree says of it.
fn put_memory(root: &mut DeviceTreeNode, memory: &[Range<Pa>]) -> Result<(), BadTree> {
    let (address, size) = (cells(root, "#address-cells", 2), cells(root, "#size-cells", 1));
    if !(1..=2).contains(&address) || !(1..=2).contains(&size) {
        return Err(BadTree::Cells { address, size });
    }
    let is_memory = |node: &DeviceTreeNode| {
        node.property("device_type").is_some_and(|kind| kind.value() == b"memory\0")
            || node.name() == "memory"
            || node.name().starts_with("memory@")
    };
    let old: Vec<String> =
        root.children().filter(|node| is_memory(node)).map(|node| String::from(node.name())).collect();
    for name in old {
        root.remove_child(&name);
    }
    for range in memory {
        let mut value = Vec::new();
        for (number, cells) in [(range.start.0, address), (range.size, size)] {
            match u32::try_from(number) {
                _ if cells == 2 => value.extend(number.to_be_bytes()),
                Ok(number) => value.extend(number.to_be_bytes()),
                Err(_) => return Err(BadTree::TooHigh(range.start.0)),
            }
        }
        let mut node = DeviceTreeNode::new_unchecked(format!("memory@{:x}", range.start.0));
        node.add_property(property("device_type", "memory"));
        node.add_property(property("reg", value));
        root.add_child(node);
    }
    Ok(())
}

fn put_chosen(root: &mut DeviceTreeNode, additions: &Additions<'_>) {
    if root.child("chosen").is_none() {
        root.add_child(DeviceTreeNode::new_unchecked("chosen"));
    }
    if let Some(chosen) = root.child_mut("chosen") {
        // What an earlier stage says of UEFI is for Linux's own stub; nobody of ours calls firmware that way.
        chosen.add_property(property("bootargs", additions.arguments));
        chosen.add_property(property("linux,initrd-start", additions.bundle.start.0));
        chosen.add_property(property("linux,initrd-end", additions.bundle.end().0));
    }
}

#[cfg(test)]
mod tests;
