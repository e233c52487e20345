//! The bench: instructions per operation, the rows of the budget. `bench <name> <instructions>`, one line each; how it counts is told in
//! `payload_rt::bench`. Everything is measured twice; the second pass, with all translations and blocks in place, is printed.
#![no_std]
#![no_main]

use payload_rt::{bench, gic, println, psci, sysreg, timer};

payload_rt::entry!(main);

/// A row: its name, and what returns tenths of instructions.
type Row = (&'static str, fn() -> u64);

const ROWS: [Row; 13] = [
    ("null-hvc", || bench::call(psci::VERSION)),
    ("smccc-version", || bench::call(psci::SMCCC_VERSION)),
    ("id-register", bench::id_register),
    ("gicd-iidr", || bench::load(gic::DISTRIBUTOR + gic::GICD_IIDR)),
    ("gicd-isenabler", || bench::load(gic::DISTRIBUTOR + gic::ISENABLER + 4)),
    ("self-sgi", bench::self_sgi),
    ("virtual-timer", bench::virtual_timer),
    ("self-sgi-polled", bench::self_sgi_polled),
    ("virtual-timer-polled", bench::virtual_timer_polled),
    ("null-mdccsr", bench::version_by_debug_channel),
    ("null-hvc-0x86", bench::version_by_hvc),
    ("wfe-unmatched", bench::ordinary_wfe),
    ("wfe-detect", bench::detection_by_wfe),
];

fn main() {
    let frequency = sysreg::cntfrq_el0::read();
    if frequency != 1_000_000_000 {
        println!("# the counter runs at {frequency} Hz, not 1 GHz: these are ticks, not instructions");
    }
    if !bench::timer_fires() {
        println!("test bench ... FAILED: the virtual timer does not fire");
        println!("payload: 0 passed, 1 failed, 0 skipped");
        return;
    }
    let measure = || ROWS.map(|(_, measure)| measure());
    measure();
    for ((name, _), tenths) in ROWS.iter().zip(measure()) {
        println!("bench {name} {}.{}", tenths / 10, tenths % 10);
    }
    println!("bench reset-to-guest {}.0", timer::first_count());
    println!("payload: {} passed, 0 failed, 0 skipped", ROWS.len());
}
