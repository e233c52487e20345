//! How the hypervisor gets from the loader's jump to Rust, and how it starts the other CPUs.
//!
//! The image is an arm64 `Image` (Linux `Documentation/arch/arm64/booting.rst`): a 64-byte header, loaded at any 2 MiB
//! boundary, entered at its first byte with the MMU off and the device tree's address in X0. It is linked at 0 as a
//! position-independent executable and relocates itself here, once, by a table of type SHT_RELR (ELF's generic ABI): where in
//! the image addresses stand. Whether the CPU is at EL2 is for Rust to find out, so that the refusal can be printed: nothing in
//! this path touches a register that EL1 does not have.
//!
//! The boot CPU describes the platform and builds the tables with the MMU off, then calls [`enter_virtual`]. The others
//! are started by [`start_cpu`] with everything they need in a `Secondary` record and come up with the MMU on.

use core::arch::global_asm;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

use units::{CpuId, PAGE_SIZE, Pa, Range};

use crate::mmu::{self, MapError, Registers};
use crate::percpu::{self, PerCpu};
use crate::{cache, pen, stack, sysreg, vectors};

global_asm!(
    r#"
    .pushsection .head, "ax"
    .global __image_start
__image_start:
    b       primary_entry
    .word   0
    .quad   0                               // text_offset
    .quad   __image_size
    .quad   0b1010                          // little endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .word   0
    .popsection

    .pushsection .text.boot, "ax"
primary_entry:
    mov     x20, x0
    adrp    x21, __image_start
    adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __bss_end
    add     x2, x2, :lo12:__bss_end
1:  cmp     x1, x2
    b.hs    2f
    stp     xzr, xzr, [x1], #16
    stp     xzr, xzr, [x1], #16
    stp     xzr, xzr, [x1], #16
    stp     xzr, xzr, [x1], #16
    b       1b
2:  adrp    x1, __relr_start
    add     x1, x1, :lo12:__relr_start
    adrp    x2, __relr_end
    add     x2, x2, :lo12:__relr_end
3:  cmp     x1, x2
    b.hs    7f
    ldr     x3, [x1], #8
    tbnz    x3, #0, 4f
    add     x4, x3, x21                     // an even word: here is an address
    ldr     x5, [x4]
    add     x5, x5, x21
    str     x5, [x4], #8
    b       3b
4:  lsr     x3, x3, #1                      // an odd one: which of the next 63 words are addresses
5:  cbz     x3, 6f
    rbit    x5, x3
    clz     x5, x5                          // the first of them
    ldr     x6, [x4, x5, lsl #3]
    add     x6, x6, x21
    str     x6, [x4, x5, lsl #3]
    sub     x5, x3, #1
    and     x3, x3, x5                      // without it
    b       5b
6:  add     x4, x4, #(63 * 8)
    b       3b
7:  adrp    x1, __boot_stack
    add     x1, x1, :lo12:__boot_stack
    add     sp, x1, #0x10, lsl #12
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x20
    bl      undercroft_main
    b       .

    // In: x0 = the mailbox, where the address of the Secondary record is, which is cleaned to the point of coherency.
secondary_entry:
    ldr     x0, [x0, #{gift}]
    mov     x1, #{hcr}                      // firmware's E2H would give TCR_EL2 other fields
    msr     hcr_el2, x1
    isb
    ldp     x1, x2, [x0, #{registers}]      // ttbr0, mair
    ldp     x3, x4, [x0, #{registers} + 16] // tcr, sctlr
    msr     ttbr0_el2, x1
    msr     mair_el2, x2
    msr     tcr_el2, x3
    isb
    tlbi    alle2
    tlbi    alle1                           // whoever had EL2 before may have left VMIDs that are ours now
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x4
    isb
    ldr     x1, [x0, #{stack}]
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    bl      {secondary}
    b       .
    .popsection
    "#,
    gift = const pen::GIFT,
    hcr = const cpu::controls::HCR_RW,
    registers = const offset_of!(Secondary, registers),
    stack = const offset_of!(Secondary, stack),
    secondary = sym secondary_main,
);

/// What a starting CPU needs.
#[repr(C, align(64))]
struct Secondary {
    registers: Registers,
    stack: u64,
    area: u64,
    main: fn() -> !,
}

unsafe extern "C" {
    fn secondary_entry();
}

static MMU_ON: AtomicBool = AtomicBool::new(false);

/// Whether the boot CPU runs in EL2's own address space yet, so that `percpu` can be used.
#[must_use]
pub fn is_virtual() -> bool {
    MMU_ON.load(Ordering::Relaxed)
}

/// The exception level this runs at, 1 or 2.
#[must_use]
pub fn exception_level() -> u64 {
    sysreg::current_el() >> 2 & 3
}

#[repr(C, align(4096))]
struct BootArea(core::cell::UnsafeCell<core::mem::MaybeUninit<PerCpu>>);
// SAFETY: written once by the boot CPU before anything reads it; then reached only as a `PerCpu`, which is `Sync`.
unsafe impl Sync for BootArea {}
static BOOT_AREA: BootArea = BootArea(core::cell::UnsafeCell::new(core::mem::MaybeUninit::zeroed()));

#[repr(C, align(16))]
struct EmergencyStack(core::cell::UnsafeCell<[u8; 8192]>);
// SAFETY: only the boot CPU's crash path uses it, as a stack, once.
unsafe impl Sync for EmergencyStack {}
static BOOT_EMERGENCY: EmergencyStack = EmergencyStack(core::cell::UnsafeCell::new([0; 8192]));

/// Builds EL2's address space from the host's RAM and device ranges and turns the boot CPU's MMU on.
///
/// RAM ranges must hold the image. Called once, by the boot CPU, with the MMU off.
///
/// # Errors
/// When the early tables do not suffice or the ranges overlap.
pub fn enter_virtual(
    ram: &[Range<Pa>],
    devices: impl Iterator<Item = Range<Pa>>,
    later: impl Iterator<Item = Pa>,
) -> Result<(), MapError> {
    let image = stack::image();
    let whole = image.whole();
    mmu::map_identity(image.text, mmu::Kind::Code)?;
    mmu::map_identity(image.rodata, mmu::Kind::ReadOnly)?;
    let guard = image.boot_guard;
    let below = Range { start: image.data.start, size: guard.start.0 - image.data.start.0 };
    mmu::map_identity(below, mmu::Kind::Data)?;
    let above = Range { start: guard.end(), size: image.data.end().0 - guard.end().0 };
    mmu::map_identity(above, mmu::Kind::Data)?;
    for &range in ram {
        for part in without(range, whole) {
            mmu::map_identity(part, mmu::Kind::Data)?;
        }
    }
    for range in devices {
        mmu::map_identity(range, mmu::Kind::Device)?;
    }
    mmu::reserve_slot(units::Va(0x7f00_0000_0000))?;
    for address in later.filter(|address| address.0 < 0x7f00_0000_0000) {
        mmu::reserve_slot(units::Va(address.0))?;
    }

    let area = Pa(BOOT_AREA.0.get().addr() as u64);
    let emergency = BOOT_EMERGENCY.0.get().addr() as u64 + 8192;
    let affinity = sysreg::mpidr_el1() & 0xff_00ff_ffff;
    // SAFETY: the page is ours, and nothing reads it yet.
    unsafe { ptr::write(BOOT_AREA.0.get().cast::<PerCpu>(), PerCpu::new(CpuId(0), affinity, emergency)) };
    percpu::publish(CpuId(0), area);
    let root = mmu::root_for(area)?;
    // Everything written so far went past the caches, which may hold older lines for it.
    cache::clean_and_invalidate(whole);
    // SAFETY: the image and all RAM are mapped where they are; the running stack is in the image's data.
    unsafe {
        mmu::enable(root);
        sysreg::write_tpidr_el2(area.0);
    }
    vectors::choose(vectors::Set::Plain);
    MMU_ON.store(true, Ordering::Relaxed);
    Ok(())
}

/// The parts of `range` before and behind `hole`.
fn without(range: Range<Pa>, hole: Range<Pa>) -> impl Iterator<Item = Range<Pa>> {
    let part = |from: u64, to: u64| (to > from).then(|| Range { start: Pa(from), size: to - from });
    let (start, end) = (range.start.0, range.end().0);
    let (hole_start, hole_end) = (hole.start.0, hole.end().0);
    let pieces = if range.overlaps(hole) {
        [part(start, hole_start.max(start)), part(hole_end.min(end), end)]
    } else {
        [part(start, end), None]
    };
    pieces.into_iter().flatten()
}

/// Starts `cpu`, whose MPIDR is `mpidr` and which waits at `mailbox`, on the stack with top `stack_top`; it runs `main` with IRQs masked.
/// `frames` are its area and its start record, zeroed.
///
/// # Errors
/// When there is no memory for its tables.
pub fn start_cpu(
    cpu: CpuId,
    mpidr: u64,
    mailbox: Pa,
    stack_top: units::Va,
    frames: [Pa; 2],
    emergency_top: units::Va,
    main: fn() -> !,
) -> Result<(), MapError> {
    let [area, record] = frames;
    let root = mmu::root_for(area)?;
    let secondary = Secondary { registers: mmu::registers(root), stack: stack_top.0, area: area.0, main };
    let affinity = mpidr & 0xff_00ff_ffff;
    // SAFETY: both frames are the caller's, fresh, mapped read-write where they are, and large enough (checked below).
    unsafe {
        ptr::write(ptr::with_exposed_provenance_mut(area.0 as usize), PerCpu::new(cpu, affinity, emergency_top.0));
        ptr::write(ptr::with_exposed_provenance_mut(record.0 as usize), secondary);
    }
    percpu::publish(cpu, area);
    cache::clean_and_invalidate(Range { start: record, size: PAGE_SIZE });
    let entry = (secondary_entry as *const ()).addr() as u64;
    pen::let_go(mailbox, Pa(entry), record.0);
    Ok(())
}

const _: () = assert!(size_of::<PerCpu>() as u64 == PAGE_SIZE && size_of::<Secondary>() as u64 <= PAGE_SIZE);

extern "C" fn secondary_main(record: &Secondary) -> ! {
    // SAFETY: TPIDR_EL2 is only read back.
    unsafe { sysreg::write_tpidr_el2(record.area) };
    vectors::choose(vectors::Set::Plain);
    (record.main)()
}
