//! A guest that is saved and continues elsewhere, and notices if anything is lost on the way: its memory, each page of which it knows; its
//! counter, which no vCPU may ever see behind what another has seen; the counter's frequency; its timer, by which it ticks ten times a second,
//! and wakes by an interrupt; the registers of both of its vCPUs. The virtual timer of the second is due and its interrupt pending most of the
//! time, and must not be pending any more once the timer is off. There must be an interrupt whenever its generation identifier changes, and only
//! then; the same holds for VMClock's disruption marker.
//!
//! Each tick it changes some pages, looks at all, and says what its counter and its real-time clock show, its generation, and what VMClock's page
//! says. The host checks whether these agree. Only a fault that it finds ends it.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use payload_rt::timer::{ENABLE, PHYSICAL_PPI, VIRTUAL_PPI};
use payload_rt::{cpu, gic, memory, println, psci, sysreg, timer, vmclock};

payload_rt::entry!(main);

/// Pages whose contents it knows.
const PAGES: u64 = 64;
const PAGE: u64 = 4096;
/// The PL031's time, seconds.
const CLOCK: u64 = 0x0901_0000;

/// The generation identifier, and its interrupt.
const GENERATION: u64 = 0x0914_0000;
const GENERATION_INTID: u32 = 46;

/// What each page holds, as a number.
static SEEDS: [AtomicU64; PAGES as usize] = [const { AtomicU64::new(0) }; PAGES as usize];
/// The latest count that any vCPU has seen.
static LATEST: AtomicU64 = AtomicU64::new(0);
static WENT_BACK: AtomicBool = AtomicBool::new(false);
/// A timer's interrupt was pending though the timer was off.
static STAYED: AtomicBool = AtomicBool::new(false);

fn main() {
    gic::enable(PHYSICAL_PPI);
    if cpu::count() > 1 && cpu::start(1, |_| watch()).is_err() {
        fail("its second vCPU does not start");
    }
    let pages = memory::pages(PAGES);
    println!("kept: pages at {pages:#x}.");
    (0..PAGES).for_each(|page| write(pages, page, 2 + page));
    let frequency = sysreg::cntfrq_el0::read();
    gic::set_trigger(GENERATION_INTID, gic::Trigger::Edge);
    let (mut generation, _) = look_at_generation();
    gic::set_trigger(vmclock::INTID, gic::Trigger::Edge);
    let mut page = vmclock::read();
    vmclock::take_notice();
    for tick in 1_u64.. {
        for page in [tick * 7 % PAGES, tick * 13 % PAGES] {
            write(pages, page, if tick % 5 == 0 { tick % 2 } else { tick });
        }
        sleep(frequency / 10);
        if let Some(page) = (0..PAGES).find(|&page| !holds(pages, page)) {
            println!("kept: page {page} of {PAGES}");
            fail("a page does not hold what was written");
        }
        if WENT_BACK.load(Ordering::SeqCst) {
            fail("the counter went back");
        }
        if STAYED.load(Ordering::SeqCst) {
            fail("a timer that is off has its interrupt pending");
        }
        if sysreg::cntfrq_el0::read() != frequency {
            fail("the counter has another frequency");
        }
        let (now, is_told) = look_at_generation();
        if is_told != (now != generation) {
            println!("kept: generation {generation:#x}, now {now:#x}, interrupt: {is_told}");
            fail("a generation and its interrupt do not go together");
        }
        generation = now;
        let other = vmclock::read();
        // It was written before the interrupt came.
        if other.sequence != page.sequence && !(0..1_000_000).any(|_| vmclock::take_notice()) {
            println!("kept: {page:?}, now {other:?}");
            fail("VMClock has changed without an interrupt");
        }
        page = other;
        println!(
            "kept: tick {tick}, count {} of {frequency}, clock {}, generation {generation}, disruption {}, life {}, time {}.",
            look(),
            memory::read32(CLOCK),
            page.disruption,
            page.generation,
            page.now()
        );
    }
}

/// The generation's first half, and whether its interrupt is pending, which is over then. It may change in the middle of that.
fn look_at_generation() -> (u64, bool) {
    loop {
        let before = memory::read64(GENERATION);
        let is_told = gic::read_bit(gic::ISPENDR, GENERATION_INTID);
        if memory::read64(GENERATION) == before {
            gic::write_bit(gic::ICPENDR, GENERATION_INTID);
            return (before, is_told);
        }
    }
}

fn fail(why: &str) -> ! {
    println!("kept: FAILED: {why}");
    psci::system_off()
}

fn watch() -> ! {
    gic::enable(VIRTUAL_PPI);
    // It has been due since the counter's beginning.
    sysreg::cntv_cval_el0::write(0);
    loop {
        sysreg::cntv_ctl_el0::write(ENABLE);
        for _ in 0..10_000 {
            look();
            cpu::relax();
        }
        sysreg::cntv_ctl_el0::write(0);
        if gic::read_bit(gic::ISPENDR, VIRTUAL_PPI) {
            STAYED.store(true, Ordering::SeqCst);
        }
    }
}

fn look() -> u64 {
    let before = LATEST.load(Ordering::SeqCst);
    let now = timer::physical_now();
    if now < before {
        WENT_BACK.store(true, Ordering::SeqCst);
    }
    LATEST.fetch_max(now, Ordering::SeqCst);
    now
}

/// Until the physical timer's interrupt, so many ticks from now. It is pending then and not taken, and goes away with the timer.
fn sleep(ticks: u64) {
    let until = look() + ticks;
    sysreg::cntp_cval_el0::write(until);
    sysreg::cntp_ctl_el0::write(ENABLE);
    while look() < until {
        cpu::wait_for_interrupt();
    }
    sysreg::cntp_ctl_el0::write(0);
}

/// What word `index` of a page is whose number is `seed`: of 0 and 1 all are alike.
fn word(seed: u64, index: u64) -> u64 {
    match seed {
        0 => 0,
        1 => 0x5a5a_5a5a_5a5a_5a5a,
        seed => (seed << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

fn write(pages: u64, page: u64, seed: u64) {
    for index in 0..PAGE / 8 {
        memory::write64(pages + page * PAGE + index * 8, word(seed, index));
    }
    SEEDS[page as usize].store(seed, Ordering::SeqCst);
}

fn holds(pages: u64, page: u64) -> bool {
    let seed = SEEDS[page as usize].load(Ordering::SeqCst);
    (0..PAGE / 8).all(|index| memory::read64(pages + page * PAGE + index * 8) == word(seed, index))
}
