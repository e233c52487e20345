//! What firmware tells of the machine and of this program.

use alloc::string::{String, ToString};
use core::slice;
use handover::memory::{Map, Use};
use platform::HEADER_SIZE;
use uefi::boot::{self, MemoryAttribute, MemoryDescriptor, MemoryType, PAGE_SIZE};
use uefi::mem::memory_map::MemoryMap;
use uefi::proto::loaded_image::LoadedImage;
use uefi::table::cfg::ConfigTableEntry;
use uefi::{Guid, guid, system};
use units::{Pa, Range};

/// The device tree's entry in firmware's table (Embedded Base Boot Requirements, section 2.3.2).
const DEVICE_TREE: Guid = guid!("b1b621d5-f19c-41a5-830b-d9152c69aae0");

/// The words that the boot entry, or who started this by hand, has given. A shell gives the program's own name first, which ends in
/// `.efi`.
pub(crate) fn load_options() -> Option<String> {
    let image = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle()).ok()?;
    let words = image.load_options_as_cstr16().ok()?.to_string();
    let words = words.trim();
    let rest = match words.split_once(char::is_whitespace) {
        Some((first, rest)) if is_program(first) => rest,
        None if is_program(words) => "",
        _ => words,
    };
    Some(rest.trim()).filter(|rest| !rest.is_empty()).map(String::from)
}

fn is_program(word: &str) -> bool {
    word.len() >= 4 && word.get(word.len() - 4..).is_some_and(|end| end.eq_ignore_ascii_case(".efi"))
}

/// Where this program lies, that the jump out of it runs from memory and not from a cache.
///
/// # Errors
/// Firmware's.
pub(crate) fn own_image() -> uefi::Result<Range<Pa>> {
    let image = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle())?;
    let (base, size) = image.info();
    Ok(Range { start: Pa(base.addr() as u64), size })
}

/// Firmware's device tree.
///
/// # Errors
/// What it has instead, in words.
pub(crate) fn device_tree() -> Result<&'static [u8], &'static str> {
    let (tree, has_acpi) = system::with_config_table(|entries| {
        let find = |wanted| entries.iter().find(|entry| entry.guid == wanted).map(|entry| entry.address);
        (find(DEVICE_TREE), find(ConfigTableEntry::ACPI2_GUID).is_some())
    });
    let tree = tree.filter(|tree| !tree.is_null() && tree.addr().is_multiple_of(HEADER_SIZE)).ok_or(if has_acpi {
        "firmware describes the machine by ACPI alone, which the hypervisor cannot read yet; let its setup choose a device tree (QEMU: -M acpi=off)"
    } else {
        "firmware describes the machine neither by a device tree nor by ACPI"
    })?;
    // SAFETY: firmware says that a device tree begins there, which has a header; memory is mapped where it is.
    let header: [u8; HEADER_SIZE] = unsafe { tree.cast::<[u8; HEADER_SIZE]>().read() };
    let size = platform::device_tree_size(header).filter(|&size| size >= HEADER_SIZE);
    let size = size.ok_or("what firmware gives as the device tree is none, or is larger than 2 MiB")?;
    // SAFETY: so long is it by its own header, and nobody changes it: firmware runs only when we call it.
    Ok(unsafe { slice::from_raw_parts(tree.cast(), size) })
}

/// What an entry of firmware's map means for whoever comes after firmware.
fn entry(descriptor: &MemoryDescriptor) -> (Range<Pa>, Use) {
    let range =
        Range { start: Pa(descriptor.phys_start), size: descriptor.page_count.saturating_mul(PAGE_SIZE as u64) };
    let is_ram = descriptor.att.contains(MemoryAttribute::WRITE_BACK);
    let use_ = match descriptor.ty {
        MemoryType::LOADER_CODE
        | MemoryType::LOADER_DATA
        | MemoryType::BOOT_SERVICES_CODE
        | MemoryType::BOOT_SERVICES_DATA
        | MemoryType::CONVENTIONAL
            if is_ram =>
        {
            Use::Free
        }
        MemoryType::RUNTIME_SERVICES_CODE
        | MemoryType::RUNTIME_SERVICES_DATA
        | MemoryType::ACPI_RECLAIM
        | MemoryType::ACPI_NON_VOLATILE
            if is_ram =>
        {
            Use::Kept
        }
        // Reserved, broken, persistent, not accepted yet, devices, and what later versions of UEFI invent.
        _ => Use::Foreign,
    };
    (range, use_)
}

/// The map, as it is now.
///
/// # Errors
/// Firmware's.
pub(crate) fn map() -> uefi::Result<Map> {
    let map = boot::memory_map(MemoryType::LOADER_DATA)?;
    Ok(Map::new(map.entries().map(entry)))
}

/// Leaves boot services. Says whether what firmware keeps by its last map was kept by `map` already, from which the device tree was
/// written. What the last one calls free may have become so by allocations since, and is not used then; but what it keeps must not be.
pub(crate) fn leave_boot_services(map: &Map) -> bool {
    // SAFETY: no protocol is open any more and nothing is freed later: whoever calls this enters the hypervisor or resets.
    let last = unsafe { boot::exit_boot_services(None) };
    let is_kept = last.entries().map(entry).all(|(range, use_)| match use_ {
        Use::Kept => map.kept.iter().any(|kept| kept.start <= range.start && range.end() <= kept.end()),
        Use::Foreign => !map.memory.iter().any(|memory| memory.overlaps(range)),
        Use::Free => true,
    });
    // Firmware's heap is gone; what was in it is left where it is.
    core::mem::forget(last);
    is_kept
}
