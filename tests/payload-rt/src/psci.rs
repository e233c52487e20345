//! SMCCC calls by HVC (DEN0028) and PSCI on top of them (DEN0022).

use core::arch::asm;
use core::sync::atomic::AtomicU64;

/// The call did what it was asked for.
pub const SUCCESS: i64 = 0;
/// No such function.
pub const NOT_SUPPORTED: i64 = -1;
/// A parameter is outside of what is allowed.
pub const INVALID_PARAMETERS: i64 = -2;
/// Not now, or not for this caller.
pub const DENIED: i64 = -3;
/// The CPU is on.
pub const ALREADY_ON: i64 = -4;
/// The CPU is about to be on.
pub const ON_PENDING: i64 = -5;
/// No such entry address.
pub const INVALID_ADDRESS: i64 = -9;

/// `AFFINITY_INFO`: the CPU is on.
pub const AFFINITY_ON: i64 = 0;
/// `AFFINITY_INFO`: the CPU is off.
pub const AFFINITY_OFF: i64 = 1;

/// PSCI_VERSION.
pub const VERSION: u32 = 0x8400_0000;
/// CPU_SUSPEND, 64-bit.
pub const CPU_SUSPEND_64: u32 = 0xc400_0001;
/// CPU_OFF.
pub const CPU_OFF: u32 = 0x8400_0002;
/// CPU_ON, 64-bit.
pub const CPU_ON_64: u32 = 0xc400_0003;
/// CPU_ON, 32-bit.
pub const CPU_ON_32: u32 = 0x8400_0003;
/// AFFINITY_INFO, 64-bit.
pub const AFFINITY_INFO_64: u32 = 0xc400_0004;
/// MIGRATE_INFO_TYPE.
pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
/// SYSTEM_OFF.
pub const SYSTEM_OFF: u32 = 0x8400_0008;
/// SYSTEM_RESET.
pub const SYSTEM_RESET: u32 = 0x8400_0009;
/// PSCI_FEATURES.
pub const FEATURES: u32 = 0x8400_000a;
/// SYSTEM_RESET2, 64-bit.
pub const SYSTEM_RESET2_64: u32 = 0xc400_0012;
/// SMCCC_VERSION.
pub const SMCCC_VERSION: u32 = 0x8000_0000;
/// SMCCC_ARCH_FEATURES.
pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;

/// Makes an SMCCC call by HVC and returns X0 to X3. `CPU_ON` and `CPU_SUSPEND` must name an entry of the runtime; use the functions
/// below for them.
pub fn call(function: u32, arguments: [u64; 3]) -> [u64; 4] {
    let mut x = [u64::from(function), arguments[0], arguments[1], arguments[2]];
    // SAFETY: SMCCC changes X0 to X17 at most; no function writes to the caller's memory unless it was told an address, and those that
    // take one are called with addresses outside of the image.
    unsafe {
        asm!("hvc #0",
            inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3],
            out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack));
    }
    x
}

/// Reads `lock` exclusively, as who waits for a lock does, asks for [`VERSION`] and waits by `WFE`. No event is left from before.
pub fn call_before_wfe(lock: &AtomicU64) {
    // SAFETY: as in `call`; the read has no effect but on the exclusive monitor.
    unsafe {
        asm!("sevl", "wfe", "ldxr {value}, [{lock}]", "hvc #0", "wfe",
            value = out(reg) _, lock = in(reg) lock.as_ptr(), inout("x0") u64::from(VERSION) => _, out("x1") _, out("x2") _, out("x3") _,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack));
    }
}

/// X0 of an SMCCC call as the signed number that PSCI answers with.
pub fn simple(function: u32, arguments: [u64; 3]) -> i64 {
    // Results of 32-bit functions come back in W0; error codes are negative in either width.
    let x0 = call(function, arguments)[0];
    if function & 1 << 30 == 0 { i64::from(x0 as u32 as i32) } else { x0 as i64 }
}

/// CPU_ON (64-bit).
pub fn cpu_on(target: u64, entry: u64, context: u64) -> i64 {
    simple(CPU_ON_64, [target, entry, context])
}

/// AFFINITY_INFO (64-bit).
pub fn affinity_info(target: u64, lowest_level: u64) -> i64 {
    simple(AFFINITY_INFO_64, [target, lowest_level, 0])
}

/// PSCI_FEATURES.
pub fn features(function: u32) -> i64 {
    simple(FEATURES, [u64::from(function), 0, 0])
}

/// CPU_OFF; returns only when it was refused.
pub fn cpu_off() {
    simple(CPU_OFF, [0; 3]);
}

/// Switches the machine off.
pub fn system_off() -> ! {
    simple(SYSTEM_OFF, [0; 3]);
    crate::println!("# SYSTEM_OFF returned");
    loop {
        crate::cpu::wait_for_interrupt();
    }
}
