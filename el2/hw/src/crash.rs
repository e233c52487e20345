//! The crash report: registers, a backtrace and whatever the hypervisor adds; then the machine stops.

use core::fmt::Write as _;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::{boot, gic, percpu::this_cpu, stack, sysreg, uart};

/// The registers of a fault of our own, as the vectors lay them out.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Frame {
    x: [u64; 31],
    sp: u64,
    elr: u64,
    spsr: u64,
    esr: u64,
    far: u64,
    kind: u64,
    overflow: u64,
}

/// Called between the report and the stop, to add what the hypervisor knows (the last events).
pub type Epilogue = fn(&mut dyn core::fmt::Write);

/// The CPU that crashed first, plus one.
static CRASHED: AtomicU32 = AtomicU32::new(0);
static PROLOGUE: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static EPILOGUE: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets what is done before a crash report is written.
pub fn set_prologue(prologue: fn()) {
    // Pairs with the acquire in `begin`.
    PROLOGUE.store(prologue as *mut (), Ordering::Release);
}

/// Sets what is printed at the end of a crash report.
pub fn set_epilogue(epilogue: Epilogue) {
    // Pairs with the acquire at the end of the report.
    EPILOGUE.store(epilogue as *mut (), Ordering::Release);
}

const KINDS: [&str; 8] = [
    "synchronous exception with SP_EL0",
    "IRQ with SP_EL0",
    "FIQ with SP_EL0",
    "SError with SP_EL0",
    "synchronous exception",
    "IRQ",
    "FIQ",
    "SError",
];

/// ESR_EL2.EC in words (DDI 0487 D24.2.40), for the classes that a fault of EL2's own can have.
const fn class_name(class: u64) -> &'static str {
    match class {
        0x00 => "undefined instruction",
        0x07 => "FP or SIMD instruction",
        0x0e => "illegal execution state",
        0x21 => "instruction abort",
        0x22 => "PC alignment",
        0x25 => "data abort",
        0x26 => "SP alignment",
        0x2f => "SError",
        0x3c => "BRK",
        _ => "class",
    }
}

/// What the vectors call for an exception that is our own fault.
pub(crate) extern "C" fn crash_entry(frame: &Frame) -> ! {
    begin();
    let mut out = uart::Emergency;
    let kind = KINDS.get(frame.kind as usize).copied().unwrap_or("exception");
    let class = frame.esr >> 26;
    if frame.overflow != 0 {
        let _ = writeln!(out, "undercroft: stack overflow: SP {:#x} is in a stack's guard", frame.sp);
    }
    let _ = writeln!(
        out,
        "undercroft: {kind} in EL2: ESR {:#x} ({} {class:#x}) FAR {:#x} PC {:#x}",
        frame.esr,
        class_name(class),
        frame.far,
        frame.elr.wrapping_sub(stack::image_base()),
    );
    for (number, value) in frame.x.iter().enumerate() {
        let end = if number % 4 == 3 { '\n' } else { ' ' };
        let _ = write!(out, "x{number:<2} {value:016x}{end}");
    }
    let _ = writeln!(out, "sp  {:016x}\nspsr {:#x}", frame.sp, frame.spsr);
    let [.., frame_pointer, link] = frame.x;
    // A leaf has no record of its own: where it is and whom it returns to is known from the registers alone.
    finish(&[frame.elr, link], frame_pointer)
}

/// Reports a panic and stops the machine. `location` and `message` come from the panic handler.
///
/// Begins with a barrier: a CPU that only guesses that something panicked goes no further, least of all to an indirect
/// branch with a guest's history (`tools/xtask/src/branches.rs` looks for it).
pub fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: barriers have no effect but order.
    unsafe { core::arch::asm!("dsb nsh", "isb", options(nostack, preserves_flags)) };
    begin();
    let _ = writeln!(uart::Emergency, "undercroft: {info}");
    let frame_pointer: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) frame_pointer, options(nomem, nostack, preserves_flags)) };
    finish(&[], frame_pointer)
}

/// Lets the first CPU that crashes speak and silences the others; a crash inside a crash stops at once.
fn begin() {
    let _ = crate::sync::mask_irqs();
    let me = if boot::is_virtual() { u32::from(this_cpu().cpu.0) } else { 0 };
    // Pairs with itself on other CPUs: one of them is the first, and finds what it may print as the others left it.
    match CRASHED.compare_exchange(0, me + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(first) if first == me + 1 => crate::firmware::power_off(),
        Err(_) => loop {
            sysreg::wfi();
        },
    }
    if boot::is_virtual() {
        gic::send_sgi_to_others(gic::HALT);
    }
    // Pairs with the release in `set_prologue`.
    let prologue = PROLOGUE.load(Ordering::Acquire);
    if !prologue.is_null() {
        // SAFETY: only `set_prologue` stores here, and it stores a `fn()`.
        let prologue: fn() = unsafe { core::mem::transmute(prologue) };
        prologue();
    }
    let _ = writeln!(uart::Emergency, "\nundercroft: STOPPED by a fault of its own, CPU {me}");
}

/// The backtrace, what the hypervisor adds, and the end. `innermost` are the addresses before the first frame record.
fn finish(innermost: &[u64], frame_pointer: u64) -> ! {
    let mut out = uart::Emergency;
    let _ = writeln!(out, "backtrace (offsets in the image):");
    for (nth, address) in innermost.iter().enumerate() {
        let register = if nth == 0 { "" } else { " (x30)" };
        let _ = writeln!(out, "  {:#x}{register}", address.wrapping_sub(stack::image_base()));
    }
    let mut frame = frame_pointer;
    for _ in 0..32 {
        let Some((next, link)) = stack::frame_record(frame) else { break };
        let _ = writeln!(out, "  {:#x}", link.wrapping_sub(stack::image_base()));
        if next <= frame {
            break;
        }
        frame = next;
    }
    // Pairs with the release in `set_epilogue`.
    let epilogue = EPILOGUE.load(Ordering::Acquire);
    if !epilogue.is_null() {
        // SAFETY: only `set_epilogue` stores here, and it stores an `Epilogue`.
        let epilogue: Epilogue = unsafe { core::mem::transmute(epilogue) };
        epilogue(&mut out);
    }
    let _ = writeln!(out, "undercroft: stopped");
    crate::firmware::power_off()
}
