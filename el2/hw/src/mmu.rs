//! EL2's own address space (stage 1 of the EL2 regime, DDI 0487 D8).
//!
//! RAM and devices are mapped where they physically are; the image's code is read-only, everything writable is
//! execute-never (SCTLR_EL2.WXN makes the CPU insist). Two slots of the 512 in the top level are special: 254 holds the
//! threads' stacks, 255 the CPU's own area (`percpu`). Each CPU has a top-level table of its own; they share every
//! entry but slot 255, so a later mapping made below a shared entry is seen by all.
//!
//! We do not use a crate for this because of that sharing: tables here have one owner below the top level and many at
//! the top (`docs/decisions/0002-own-el2-tables.md`).

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use units::{PAGE_SIZE, Pa, Range, Va};

use crate::percpu::{ALIAS, PerCpu};
use crate::sync::IrqLock;
use crate::sysreg::{self, dsb_ish, isb};

/// What a mapping is for; decides its attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Executable, read-only.
    Code,
    /// Constants: read-only, execute-never.
    ReadOnly,
    /// Memory: read-write, execute-never, write-back cacheable.
    Data,
    /// Device-nGnRE, read-write, execute-never.
    Device,
}

/// Why a mapping cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// No frame for a table.
    OutOfFrames,
    /// Something is mapped there.
    Occupied,
}

const VALID: u64 = 1;
const TABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 3 << 8;
/// AP[1], RES1 in a regime with one exception level.
const AP_RES1: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const EXECUTE_NEVER: u64 = 1 << 54;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// MAIR_EL2: index 0 Device-nGnRE, index 1 Normal write-back.
const MAIR: u64 = 0xff04;
const NORMAL: u64 = 1 << 2;
/// SCTLR_EL2's RES1 bits, M, C, SA, I and WXN.
const SCTLR: u64 = 0x30c5_0830 | 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;

impl Kind {
    const fn attributes(self) -> u64 {
        let common = VALID | ACCESSED | AP_RES1;
        match self {
            Self::Code => common | NORMAL | INNER_SHAREABLE | READ_ONLY,
            Self::ReadOnly => common | NORMAL | INNER_SHAREABLE | READ_ONLY | EXECUTE_NEVER,
            Self::Data => common | NORMAL | INNER_SHAREABLE | EXECUTE_NEVER,
            Self::Device => common | EXECUTE_NEVER,
        }
    }
}

#[repr(C, align(4096))]
struct EarlyTable([AtomicU64; 512]);

/// Tables used before frames have an allocator: enough for the image, the devices and the boot CPU.
const EARLY: usize = 24;
static EARLY_TABLES: [EarlyTable; EARLY] = [const { EarlyTable([const { AtomicU64::new(0) }; 512]) }; EARLY];
static EARLY_USED: AtomicUsize = AtomicUsize::new(0);

/// Gives out zeroed 4 KiB frames for tables.
pub type FrameSource = fn() -> Option<Pa>;

struct Space {
    /// The boot CPU's top-level table, the model for the others.
    root: u64,
    frames: FrameSource,
}

static SPACE: IrqLock<Space> = IrqLock::new(Space { root: 0, frames: early_frame });

fn early_frame() -> Option<Pa> {
    let index = EARLY_USED.fetch_add(1, Ordering::Relaxed);
    EARLY_TABLES.get(index).map(|table| Pa(core::ptr::from_ref(table).addr() as u64))
}

/// Takes table frames from `frames` from now on.
pub fn set_frame_source(frames: FrameSource) {
    SPACE.lock().frames = frames;
}

/// One table entry. Tables are always accessed through their identity mapping (or with the MMU off).
fn entry(table: u64, index: u64) -> &'static AtomicU64 {
    // SAFETY: `table` is the address of a 4 KiB table that `early_frame` or the frame source gave for this use and
    // that is never given back; the index is below 512; entries are accessed atomically only.
    unsafe { &*core::ptr::with_exposed_provenance::<AtomicU64>((table + (index & 511) * 8) as usize) }
}

/// Maps `size` bytes of `pa` at `va`, all multiples of 4 KiB, with the largest blocks that fit.
///
/// # Errors
/// When something is mapped there already or no table frame is left; what was mapped until then stays.
pub fn map(va: Va, pa: Pa, size: u64, kind: Kind) -> Result<(), MapError> {
    let mut space = SPACE.lock();
    if space.root == 0 {
        space.root = (space.frames)().ok_or(MapError::OutOfFrames)?.0;
    }
    let root = space.root;
    map_in(root, space.frames, va, pa, size, kind)
}

fn map_in(root: u64, frames: FrameSource, va: Va, pa: Pa, size: u64, kind: Kind) -> Result<(), MapError> {
    let mut done = 0;
    while done < size {
        let (at, to, left) = (va.0 + done, pa.0 + done, size - done);
        let level = (1..3).find(|&level| fits(at, to, left, level)).unwrap_or(3);
        let mut table = root;
        for upper in 0..level {
            let slot = entry(table, at >> shift(upper));
            let mut value = slot.load(Ordering::Relaxed);
            if value & VALID == 0 {
                let next = frames().ok_or(MapError::OutOfFrames)?;
                value = next.0 | TABLE | VALID;
                dsb_ish();
                // Pairs with the walk of the hardware: the table is empty, and seen so, before it is walked.
                slot.store(value, Ordering::Release);
            } else if value & TABLE == 0 {
                return Err(MapError::Occupied);
            }
            table = value & ADDRESS;
        }
        let (block, page) = (1 << shift(level), if level == 3 { TABLE } else { 0 });
        // The walk leads to one table: as many of its entries as there is left to map by blocks of this size.
        loop {
            let slot = entry(table, (va.0 + done) >> shift(level));
            if slot.load(Ordering::Relaxed) & VALID != 0 {
                return Err(MapError::Occupied);
            }
            // Pairs with the walk of the hardware; the barrier at the end of the mapping orders it before the first access.
            slot.store((pa.0 + done) | kind.attributes() | page, Ordering::Release);
            done += block;
            if size - done < block || (va.0 + done).is_multiple_of(512 * block) {
                break;
            }
        }
    }
    // Invalid entries are never cached, so a new mapping needs no invalidation, only to be seen by the walkers.
    dsb_ish();
    isb();
    Ok(())
}

const fn shift(level: u64) -> u64 {
    39 - 9 * level
}

const fn fits(va: u64, pa: u64, size: u64, level: u64) -> bool {
    let block = 1 << shift(level);
    size >= block && va & (block - 1) == 0 && pa & (block - 1) == 0
}

/// Maps a range of physical memory or devices where it is.
///
/// # Errors
/// As [`map`].
pub fn map_identity(range: Range<Pa>, kind: Kind) -> Result<(), MapError> {
    map(Va(range.start.0), range.start, range.size, kind)
}

/// The slots from here on are for what is not where it physically is.
const OWN_SLOTS: u64 = 254;

/// A CPU's top-level table: a copy of the boot CPU's with that CPU's area at [`ALIAS`].
///
/// # Errors
/// When no frame is left.
pub fn root_for(area: Pa) -> Result<Pa, MapError> {
    let space = SPACE.lock();
    let root = (space.frames)().ok_or(MapError::OutOfFrames)?.0;
    for index in 0..512 {
        if index != ALIAS >> 39 {
            entry(root, index).store(entry(space.root, index).load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
    map_in(root, space.frames, Va(ALIAS), area, size_of::<PerCpu>() as u64, Kind::Data)?;
    Ok(Pa(root))
}

/// The descriptor that maps `va` in the tables under `root`; `None` where nothing is mapped. For self-tests.
#[must_use]
pub fn descriptor(root: u64, va: Va) -> Option<u64> {
    leaf(root, va).map(|(value, _)| value)
}

/// The descriptor that maps `va` in the tables under `root`, and how many bytes it maps.
fn leaf(root: u64, va: Va) -> Option<(u64, u64)> {
    let mut table = root;
    for level in 0..4 {
        let value = entry(table, va.0 >> shift(level)).load(Ordering::Relaxed);
        if value & VALID == 0 {
            return None;
        }
        if level == 3 || value & TABLE == 0 {
            return Some((value, 1 << shift(level)));
        }
        table = value & ADDRESS;
    }
    None
}

/// Whether all of `range` is mapped, as a device's and where it is.
pub(crate) fn is_device(range: Range<Pa>) -> bool {
    let root = SPACE.lock().root;
    let mut at = range.start;
    while at < range.end() {
        let Some((value, size)) = leaf(root, Va(at.0)) else { return false };
        let start = at.align_down(size);
        if value & !TABLE != start.0 | Kind::Device.attributes() {
            return false;
        }
        at = Pa(start.0 + size);
    }
    true
}

/// Maps the pages of a device's registers where they are, if they are not yet. They have to be below an entry that all CPUs share
/// ([`reserve_slot`]), where nothing else is. Says whether they are mapped.
pub(crate) fn map_device(range: Range<Pa>) -> bool {
    let start = range.start.align_down(PAGE_SIZE);
    let Some(end) = range.end().align_up(PAGE_SIZE).filter(|&end| end.0 <= OWN_SLOTS << 39) else { return false };
    let whole = Range { start, size: end.0 - start.0 };
    if range.is_empty() || whole.start.0 >> 39 != (end.0 - 1) >> 39 {
        return false;
    }
    let root = SPACE.lock().root;
    // Under an entry that only the boot CPU has it would be mapped for nobody else.
    entry(root, start.0 >> 39).load(Ordering::Relaxed) & VALID != 0
        && (is_device(whole) || map_identity(whole, Kind::Device).is_ok())
}

/// Makes sure that the shared top-level entry for `va` exists, so that it is in every CPU's copy.
///
/// # Errors
/// When no frame is left.
pub fn reserve_slot(va: Va) -> Result<(), MapError> {
    let space = SPACE.lock();
    let slot = entry(space.root, va.0 >> 39);
    if slot.load(Ordering::Relaxed) & VALID == 0 {
        let next = (space.frames)().ok_or(MapError::OutOfFrames)?;
        // Pairs with the walk of the hardware: the frame was zeroed before.
        slot.store(next.0 | TABLE | VALID, Ordering::Release);
    }
    Ok(())
}

/// The registers that turn the MMU on with `root`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Registers {
    pub(crate) ttbr0: u64,
    pub(crate) mair: u64,
    pub(crate) tcr: u64,
    pub(crate) sctlr: u64,
}

pub(crate) fn registers(root: Pa) -> Registers {
    let physical_size = sysreg::id_aa64mmfr0_el1() & 0xf;
    // T0SZ 16 (48 bits), walks inner shareable write-back, 4 KiB granule, PS as the CPU has it (48 bits at most: more
    // needs FEAT_LPA2), RES1 bits 23 and 31.
    let tcr = 16 | 1 << 8 | 1 << 10 | 3 << 12 | physical_size.min(5) << 16 | 1 << 23 | 1 << 31;
    Registers { ttbr0: root.0, mair: MAIR, tcr, sctlr: SCTLR }
}

/// Turns this CPU's MMU and caches on with `root`.
///
/// # Safety
/// `root` must map the running code, the stack and all data in use where they are now.
pub(crate) unsafe fn enable(root: Pa) {
    let registers = registers(root);
    // SAFETY: the caller vouches for the tables; the rest are the constants above. What this CPU remembers
    // is dropped before the MMU goes on: after a warm start or kexec there may be translations of EL2, and of VMIDs that
    // will be ours, and instructions of what was loaded here before. HCR_EL2 is first: firmware may have run with E2H (EDK2 does, on
    // CPUs with FEAT_VHE), and TCR_EL2 then has other fields, of which ours would make a 32-bit address space.
    unsafe {
        sysreg::write_hcr_el2(cpu::controls::HCR_RW);
        isb();
        sysreg::write_mair_el2(registers.mair);
        sysreg::write_tcr_el2(registers.tcr);
        sysreg::write_ttbr0_el2(registers.ttbr0);
        core::arch::asm!(
            "isb",
            "tlbi alle2",
            "tlbi alle1",
            "ic iallu",
            "dsb nsh",
            "isb",
            options(nostack, preserves_flags)
        );
        sysreg::write_sctlr_el2(registers.sctlr);
    }
    isb();
}
