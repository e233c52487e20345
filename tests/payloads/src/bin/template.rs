//! A payload to copy: how a guest examines its machine.
//!
//! A payload begins with a description of its theme. Each test is a function that returns a [`Verdict`], with its line in the
//! list below; `check!` and `check_equal!` end it with a reason, `skip!` says what the machine lacks. What a test says must be
//! true on the bare machine too: `cargo xtask test --only payloads template` runs it under the hypervisor, and the same image
//! with `reference` on its command line says what a CPU without one does. Then break the hypervisor and see it fail.
#![no_std]
#![no_main]

use payload_rt::test::Verdict;
use payload_rt::{check, check_equal, memory, skip, sysreg, test, tests, timer};

payload_rt::entry!(main);

/// The Distributor's GICD_PIDR2 (IHI 0069, section 12.9.31): bits 7:4 are the architecture's version.
const GICD_PIDR2: u64 = 0x0800_ffe8;

fn main() {
    test::run(&tests!("template": runs_at_el1, reads_a_device_register, time_goes_on));
}

fn runs_at_el1() -> Verdict {
    check_equal!(sysreg::currentel::read() >> 2, 1, "the exception level");
    Ok(())
}

fn reads_a_device_register() -> Verdict {
    check_equal!(memory::read32(GICD_PIDR2) >> 4 & 0xf, 3, "the version of the GIC");
    Ok(())
}

fn time_goes_on() -> Verdict {
    if sysreg::cntfrq_el0::read() == 0 {
        skip!("the firmware has not said the counter's frequency");
    }
    let before = timer::now();
    timer::delay(100);
    check!(timer::now() > before, "the counter stands still at {before}");
    Ok(())
}
