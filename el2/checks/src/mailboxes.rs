//! Checks of mailboxes on the machine itself, started by the boot argument `selftest=mailboxes` instead of VMs (docs/spec/7-mailboxes.md):
//! what lets a CPU go that waits there, what does not, and how it is when it goes.
//!
//! The boot CPU is alone: the others wait, where the stage before us has brought them. They are sent to a piece of code that writes down
//! what it finds and goes back to wait, so that each can go many times. At the end they are started as always.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use bringup::mailbox::{self, NOBODY};
use hw::visitor::{self, Visit};
use hw::{pen, sysreg};
use platform::{BootMethod, Platform};
use spin::Once;
use undercroft::boot;
use units::{Pa, Range};

use crate::Image;
use crate::selftest::{self, comes, ensure, sleep};

/// How often a CPU is woken that is to stay.
const WAKES: u32 = 10_000;

static PLATFORM: Once<Platform<'static>> = Once::new();
/// How often each CPU has been let go.
static ROUNDS: AtomicU64 = AtomicU64::new(0);

type Check = (&'static str, fn() -> Result<(), String>);

const CHECKS: [Check; 7] = [
    ("p7_a2_all_wait_and_have_announced_themselves", announced),
    ("p7_a3_one_goes_as_it_was_told", one_goes),
    ("p7_a7_number_or_address_alone_lets_nobody_go", alone),
    ("p7_a8_10000_wakes_let_nobody_go", stray),
    ("p7_a11_all_go_at_once", at_once),
    ("p7_a11_all_go_in_reverse_order", in_reverse),
    ("p7_a3_all_are_started", started),
];

pub(crate) fn start(platform: &Platform<'static>) {
    PLATFORM.call_once(|| platform.clone());
    selftest::start(run, 0);
}

fn run(_: usize) -> ! {
    let mut failed = 0;
    for (name, check) in CHECKS {
        match check() {
            Ok(()) => log::info!("test {name} ... ok"),
            Err(why) => {
                failed += 1;
                log::error!("test {name} ... FAILED: {why}");
            }
        }
    }
    log::info!("selftest: {} passed, {failed} failed", CHECKS.len() - failed);
    selftest::end()
}

/// The CPUs that wait: their numbers in their mailboxes, their affinity, their mailboxes.
fn waiting() -> impl DoubleEndedIterator<Item = (u64, Pa)> {
    let cpus = PLATFORM.get().map(|platform| platform.cpus.as_slice()).unwrap_or_default();
    cpus.iter().filter_map(|cpu| match cpu.boot {
        BootMethod::Mailbox(page) => Some((cpu.mpidr, page)),
        _ => None,
    })
}

fn last() -> Result<(u64, Pa), String> {
    waiting().next_back().ok_or_else(|| "nobody waits".into())
}

fn announced() -> Result<(), String> {
    let Some(platform) = PLATFORM.get() else { return Err("there is no platform".into()) };
    let count = waiting().count();
    ensure(count + 1 == platform.cpus.len() && count >= 3, || format!("{count} CPUs wait"))?;
    for (mpidr, page) in waiting() {
        let found = (pen::announcement(page), pen::address(page), page.0 % mailbox::SIZE);
        ensure(found == (mailbox::announced(2), 0, 0), || format!("CPU {mpidr:#x}: {found:#x?}"))?;
        let range = Range { start: page, size: mailbox::SIZE };
        let is_reserved = platform.reserved.iter().any(|reserved| reserved.contains_range(range));
        ensure(is_reserved, || format!("mailbox {:#x} is not reserved", page.0))?;
        let others = waiting().filter(|&(_, other)| other == page).count();
        ensure(others == 1, || format!("{others} CPUs wait at {:#x}", page.0))?;
    }
    Ok(())
}

/// Whether the CPU has gone `rounds` times, as software is promised to be entered.
fn went(mpidr: u64, page: Pa, rounds: u64) -> Result<(), String> {
    let is_back = || {
        let count = visitor::visit(page).count;
        count > rounds || (count == rounds && pen::address(page) == 0)
    };
    ensure(comes(is_back), || format!("CPU {mpidr:#x} has not gone: {:x?}", visitor::visit(page)))?;
    let visit = visitor::visit(page);
    // SCTLR_EL2.M and .C; PSTATE.DAIF, all masked.
    let sctlr = visit.sctlr & 0b101;
    let affinity = visit.mpidr & platform::Cpu::AFFINITY_MASK;
    let expected = Visit { count: rounds, x0: page.0, mpidr, level: 2, sctlr: 0, daif: 0b1111 << 6 };
    let found = Visit { mpidr: affinity, sctlr, ..visit };
    ensure(found == expected, || format!("CPU {mpidr:#x} found {found:x?}, not {expected:x?}"))
}

fn next_round() -> u64 {
    ROUNDS.fetch_add(1, Ordering::Relaxed) + 1
}

fn one_goes() -> Result<(), String> {
    let (mpidr, page) = last()?;
    visitor::send(page);
    went(mpidr, page, 1)?;
    // Nobody else has.
    for (other, page) in waiting().filter(|&(other, _)| other != mpidr) {
        ensure(visitor::visit(page).count == 0, || format!("CPU {other:#x} has gone, too"))?;
        visitor::send(page);
        went(other, page, 1)?;
    }
    ROUNDS.store(1, Ordering::Relaxed);
    Ok(())
}

/// Whether the CPU of `page` stays while it is woken again and again.
fn stays(page: Pa, why: &str) -> Result<(), String> {
    let before = visitor::visit(page);
    (0..WAKES).for_each(|_| sysreg::sev());
    sleep(10_000);
    let after = visitor::visit(page);
    ensure(before == after, || format!("{why} let it go: {after:x?}"))
}

fn alone() -> Result<(), String> {
    let (mpidr, page) = last()?;
    let own = waiting().count() as u32;
    for (number, has_address, why) in [
        (NOBODY, true, "an address without a number"),
        (own, false, "a number without an address"),
        (own - 1, true, "another CPU's number"),
        (0, true, "the boot CPU's number"),
    ] {
        // Not as software does it, which writes the address first: here nobody must see a number that is not meant.
        visitor::write_raw(page, NOBODY, false);
        visitor::write_raw(page, number, has_address);
        stays(page, why)?;
    }
    // And both let it go.
    visitor::write_raw(page, NOBODY, false);
    visitor::write_raw(page, own, true);
    let round = ROUNDS.load(Ordering::Relaxed);
    went(mpidr, page, round + 1)?;
    for (other, page) in waiting().filter(|&(other, _)| other != mpidr) {
        visitor::send(page);
        went(other, page, round + 1)?;
    }
    next_round();
    Ok(())
}

fn stray() -> Result<(), String> {
    let (_, page) = last()?;
    stays(page, "an event")
}

fn at_once() -> Result<(), String> {
    let round = next_round();
    waiting().for_each(|(_, page)| visitor::send(page));
    waiting().try_for_each(|(mpidr, page)| went(mpidr, page, round))
}

fn in_reverse() -> Result<(), String> {
    let round = next_round();
    waiting().rev().try_for_each(|(mpidr, page)| {
        visitor::send(page);
        went(mpidr, page, round)
    })
}

fn started() -> Result<(), String> {
    let count = waiting().count() as u32 + 1;
    boot::start_rest::<Image>();
    let online = undercroft::sched::online().count_ones();
    ensure(online == count, || format!("{online} CPUs of {count} run"))
}
