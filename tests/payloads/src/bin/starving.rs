//! A guest that is not well, in the way that `mode=` says, while its watchdogs are armed by the site file (`watchdog = 300` or so) or by
//! itself: whoever started it watches what becomes of it. It never ends by itself, but for the mode `fed`.
//!
//! | mode | |
//! |---|---|
//! | `spin` | loops with all interrupts masked |
//! | `wfi` | waits for an interrupt, of which none is enabled |
//! | `exits` | loops over calls and device accesses, each of which reaches the hypervisor |
//! | `stuck` | vCPU 1 arms its own watchdog and loops; vCPU 0 is well and pats the VM's |
//! | `off` | vCPU 1 arms its own watchdog and switches itself off; vCPU 0 is well and pats the VM's |
//! | `serror` | as `spin`, until an SError is pending; then it says so |
//! | `restless` | arms the VM's watchdog, its vCPU's own and the Generic Watchdog, all the time, and is well |
//! | `fed` | sleeps and pats, `pats=` times every `every=` milliseconds; then says so and goes on as `wfi` |
//!
//! `action=` is what a watchdog does that the guest arms itself, by number; `timeout=` its time in milliseconds.
#![no_std]
#![no_main]

use payload_rt::{cpu, gic, instruction, machine, memory, println, psci, sysreg, timer};

payload_rt::entry!(main);

/// WOR and WCS of the Generic Watchdog.
const WATCHDOG_OFFSET: u64 = 0x0910_0008;
const WATCHDOG_STATUS: u64 = 0x0910_0000;
const PSCI_VERSION: u32 = 0x8400_0000;

fn main() {
    let mode = machine::option("mode").unwrap_or("spin");
    println!("starving: {mode}");
    match mode {
        "wfi" => sleep_for_ever(),
        "exits" => loop {
            let _ = psci::simple(PSCI_VERSION, [0; 3]);
            let _ = memory::read32(gic::DISTRIBUTOR + gic::GICD_IIDR);
            let _ = memory::read64(gic::DISTRIBUTOR + gic::GICD_IROUTER + 8 * 40);
            let _ = sysreg::id_aa64isar2_el1::read();
        },
        "stuck" => beside_the_other(arm_and_spin),
        "off" => beside_the_other(arm_and_go),
        "serror" => {
            // ISR_EL1.A.
            while !instruction::read_register([3, 0, 12, 1, 0]).is_ok_and(|pending| pending >> 8 & 1 != 0) {}
            println!("starving: an SError is pending");
            spin();
        }
        "restless" => loop {
            let _ = guest::configure_watchdog(timeout(), 2);
            arm();
            memory::write32(WATCHDOG_OFFSET, timer::microseconds(timeout() * 1000) as u32);
            memory::write32(WATCHDOG_STATUS, 1);
        },
        "fed" => {
            feed();
            sleep_for_ever();
        }
        _ => spin(),
    }
}

fn spin() -> ! {
    loop {
        cpu::relax();
    }
}

fn sleep_for_ever() -> ! {
    gic::disable(timer::VIRTUAL_PPI);
    loop {
        cpu::wait_for_interrupt();
    }
}

fn timeout() -> u64 {
    machine::option_number("timeout", 300)
}

/// Sleeps and pats. The virtual timer ends each sleep; its interrupt is taken by hand.
fn feed() {
    let (pats, every) = (machine::option_number("pats", 10), machine::option_number("every", 100));
    gic::enable(timer::VIRTUAL_PPI);
    if machine::option("timeout").is_some() {
        let armed = guest::configure_watchdog(timeout(), machine::option_number("action", 2));
        println!("starving: armed: {armed:?}");
    }
    let mut failed = 0;
    let start = timer::now();
    for _ in 0..pats {
        sysreg::cntv_cval_el0::write(timer::now() + timer::microseconds(1000) * every);
        sysreg::cntv_ctl_el0::write(timer::ENABLE);
        let intid = loop {
            cpu::wait_for_interrupt();
            let intid = gic::acknowledge();
            if intid != gic::SPURIOUS {
                break intid;
            }
        };
        timer::stop();
        gic::end(intid);
        if !matches!(guest::pat_watchdog(), Some(Ok(_))) {
            failed += 1;
        }
    }
    let seconds = (timer::now() - start) / timer::microseconds(1_000_000);
    println!("starving: patted {pats} times in {seconds} s, {failed} in vain");
}

/// vCPU 0 is well.
fn beside_the_other(job: fn(usize)) -> ! {
    let started = cpu::start(1, job);
    println!("starving: the other vCPU: {started:?}");
    loop {
        let _ = guest::pat_watchdog();
        timer::delay(20_000);
    }
}

fn arm_and_spin(_: usize) {
    arm();
    spin();
}

fn arm_and_go(_: usize) {
    arm();
}

fn arm() {
    let _ = guest::configure_own_watchdog(timeout(), machine::option_number("action", 2));
}
