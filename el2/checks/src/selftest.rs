//! Checks of the lowest layer on the machine itself, started by the boot argument `selftest=percpu` instead of VMs:
//! that per-CPU data stays right when a thread moves, and that listed code finishes where it began
//! (docs/spec/3-per-cpu-area.md).
//!
//! One thread runs the checks one after the other; it moves itself to the CPUs that a check is about. Each prints
//! `test <name> ... ok` or `FAILED: <why>` into the log, as the payloads do; then the host is powered off.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use cpu::speculation::translates_out_of_context;
use hw::percpu::{self, ALIAS, PerCpu, this_cpu};
use hw::selftest::{self as probe, Code, Held, counted, counter};
use hw::state::{Controls, GuestState};
use hw::sync::{PreemptLock, mask_irqs, unmask_irqs, with_irqs, without_irqs};
use hw::{firmware, nopreempt, sysreg, tlb, uart};
use units::{CpuId, PAGE_SIZE, Ticks, Va};

use crate::{Image, devices, disturbance, predictors};
use undercroft::boot;
use undercroft::host::{self, memory};
use undercroft::sched::{self, Thread};

/// How often the threads of the random test move, all together.
const MOVES: u64 = 100_000;
/// How many threads do it: so many that a CPU rarely has none. One that sleeps is woken by an interrupt, and on an emulated
/// machine that takes longer than a thousand moves.
const MOVERS: u64 = 80;
/// How many threads count in the test of atomics.
const COUNTERS: u64 = 8;
/// How often each of them counts in the test of atomics, at least.
const ATOMICS: u64 = 100_000;
/// How often they are interrupted and moved, at least, all together.
const PREEMPTIONS: u64 = 500;
/// How often each of [`COUNTERS`] threads moves in the contrast.
const CONTRASTS: u64 = 100;

type Check = (&'static str, fn() -> Result<(), String>);

const CHECKS: [Check; 21] = [
    ("p3_a12_late_cpu_has_its_own_area", late_cpu),
    ("p3_a1_alias_is_this_cpus_area", alias),
    ("p3_a2_held_address_follows_the_thread_all_pairs", all_pairs),
    ("p3_a2_held_address_follows_100000_random_moves", random_moves),
    ("p3_a3_address_is_an_immediate", immediate),
    ("p3_a4_contrast_register_hits_the_wrong_area", contrast),
    ("p3_a5_atomics_lose_nothing", atomics),
    ("p3_a6_interrupt_at_each_listed_instruction", listed),
    ("p3_a7_interrupt_before_and_after_the_range", around),
    ("p3_a8_two_interrupts_one_preemption", twice),
    ("p3_a9_no_interrupt_costs_one_load", undisturbed),
    ("p3_a10_tables_and_no_broadcasts", tables),
    ("p3_locks_defer_preemption_and_no_interrupt", locked),
    ("p3_a11_unlisted_code_moves_and_guards_fault", negative),
    ("p3_uart_that_takes_nothing_hangs_nobody", mute),
    ("p3_stage_1_is_closed_between_guests", closed),
    ("p3_predictors_are_protected_as_planned", predictors::check),
    ("p3_devices_are_regions_and_have_handlers", devices::check),
    ("p3_copies_and_fills_are_exact", copies),
    ("p3_comparisons_are_exact", comparisons),
    // The thread stays on its CPU from then on.
    ("p3_an_interrupt_without_end_leaves_room", devices::without_end),
];

/// Makes the thread that checks, to be run as soon as the caller becomes the idle thread.
pub(crate) fn start(entry: fn(usize) -> !, argument: usize) {
    match Thread::spawn("selftest", entry, argument, (100, 1)) {
        Ok(thread) => sched::wake(thread),
        Err(error) => log::error!("selftest: {error}"),
    }
}

/// The thread that checks.
pub(crate) fn run(cpus: usize) -> ! {
    if cpus < 4 {
        log::info!("test p3 ... skipped: it needs 4 CPUs, there are {cpus}");
        end()
    }
    // Idle CPUs zero memory, which the checks of the listed leaf would see.
    if !comes(memory::is_scrubbed) {
        log::error!("selftest: the memory is not zeroed");
    }
    let mut failed = 0;
    // Told when all are over: the console's interrupts would be counted with those that a check provokes.
    let results = CHECKS.map(|(name, check)| (name, check()));
    for (name, result) in results {
        match result {
            Ok(()) => log::info!("test {name} ... ok"),
            Err(why) => {
                failed += 1;
                log::error!("test {name} ... FAILED: {why}");
            }
        }
    }
    log::info!("selftest: {} passed, {failed} failed", CHECKS.len() - failed);
    end()
}

/// Lets the log get out, and switches the host off.
pub(crate) fn end() -> ! {
    // Many short waits: if the machine stands still that is one of them, and not the log's time.
    (0..50).for_each(|_| sleep(10_000));
    firmware::power_off()
}

/// Waits until `done`, for very many turns of other threads: by time it could be in vain when the machine has stood still.
pub(crate) fn comes(done: impl Fn() -> bool) -> bool {
    (0..6000).any(|_| {
        let is_done = done();
        if !is_done {
            sleep(10_000);
        }
        is_done
    })
}

pub(crate) fn sleep(microseconds: u64) {
    let end = sysreg::cntpct_el0() + host::ticks(microseconds);
    while sysreg::cntpct_el0() < end {
        sched::block(Some(Ticks(end)));
    }
}

fn cpus() -> Vec<CpuId> {
    (0..64).map(CpuId).filter(|cpu| sched::online() >> cpu.0 & 1 != 0).collect()
}

fn pairs() -> Vec<(CpuId, CpuId)> {
    let all = cpus();
    let pairs = all.iter().flat_map(|&from| all.iter().map(move |&to| (from, to)));
    pairs.filter(|(from, to)| from != to).collect()
}

pub(crate) fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

fn area(cpu: CpuId) -> &'static PerCpu {
    match percpu::of(cpu) {
        Some(area) => area,
        None => unreachable!("CPU {} takes part, so it has an area", cpu.0),
    }
}

/// A CPU that starts late: the area is its own from the start, and its first interrupt counts there.
fn late_cpu() -> Result<(), String> {
    let before = sched::online();
    let late = boot::start_last::<Image>()?;
    ensure(before >> late.0 & 1 == 0 && sched::online() >> late.0 & 1 != 0, || format!("CPU {} was not late", late.0))?;
    sched::move_to(late);
    let seen = (probe::cpu_through_the_alias(), area(late).cpu);
    ensure(seen == (late, late), || format!("CPU {} sees {seen:?}", late.0))?;
    let interrupts =
        || cpus().into_iter().map(|cpu| disturbance::on(cpu).interrupts.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let before = interrupts();
    disturbance::nudge_self(0);
    with_irqs(sysreg::isb);
    let at = usize::from(late.0);
    let (one, other) = (before.get(at).copied(), interrupts().get(at).copied());
    ensure(other == one.map(|count| count + 1), || format!("its interrupt was counted {one:?} {other:?}"))
}

fn alias() -> Result<(), String> {
    let mut seen = Vec::new();
    for cpu in cpus() {
        sched::move_to(cpu);
        let through = probe::cpu_through_the_alias();
        ensure(through == cpu, || format!("on CPU {} the alias says {}", cpu.0, through.0))?;
        let translation = probe::translate(Va(ALIAS));
        let physical = translation & 0x0000_ffff_ffff_f000;
        let (_, register, _) = probe::tables();
        ensure(translation & 1 == 0 && physical == register, || {
            format!("on CPU {} AT says {translation:#x}, TPIDR_EL2 {register:#x}", cpu.0)
        })?;
        ensure(!seen.contains(&physical), || format!("CPU {} shares {physical:#x} with another", cpu.0))?;
        seen.push(physical);
    }
    Ok(())
}

extern "C" fn hop(to: u64) {
    sched::move_to(CpuId(to as u16));
}

fn all_pairs() -> Result<(), String> {
    for (from, to) in pairs() {
        sched::move_to(from);
        let before = (counted(from, counter::ALIAS), counted(to, counter::ALIAS));
        probe::increment_held(Held::Alias, hop, u64::from(to.0));
        let after = (counted(from, counter::ALIAS), counted(to, counter::ALIAS));
        ensure(this_cpu().cpu == to, || format!("{} to {}: is on {}", from.0, to.0, this_cpu().cpu.0))?;
        ensure(after == (before.0, before.1 + 1), || format!("{} to {}: {before:?} became {after:?}", from.0, to.0))?;
    }
    Ok(())
}

/// Where the scheduler sent the threads of [`random_moves`], by CPU.
static LEDGER: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
static DONE: AtomicU32 = AtomicU32::new(0);

extern "C" fn hop_anywhere(random: u64) {
    let all = cpus();
    let others = all.len() as u64 - 1;
    let index = all.iter().position(|&cpu| cpu == this_cpu().cpu).unwrap_or(0) as u64;
    let to = (index + 1 + random % others) % all.len() as u64;
    let Some(&to) = all.get(to as usize) else { return };
    if let Some(sent) = LEDGER.get(usize::from(to.0)) {
        sent.fetch_add(1, Ordering::Relaxed);
    }
    sched::move_to(to);
}

fn wander(seed: usize, moves: u64, held: Held) -> ! {
    let mut random = seed as u64 * 2 + 1;
    for _ in 0..moves {
        // xorshift64 (Marsaglia 2003).
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        probe::increment_held(held, hop_anywhere, random);
    }
    finished()
}

fn mover(seed: usize) -> ! {
    wander(seed, MOVES / MOVERS, Held::Alias)
}

fn wrong_mover(seed: usize) -> ! {
    wander(seed, CONTRASTS, Held::Register)
}

fn finished() -> ! {
    // Pairs with the loads in `with_threads`: what the thread has counted is seen there.
    DONE.fetch_add(1, Ordering::AcqRel);
    loop {
        sched::block(None);
    }
}

/// Runs `count` threads from `entry` to their ends; `meanwhile` is called in between.
fn with_threads(count: u64, entry: fn(usize) -> !, meanwhile: impl Fn()) -> Result<(), String> {
    // Pairs with the additions in `finished`, of threads that are made behind it.
    DONE.store(0, Ordering::Release);
    let spawn = |seed| Thread::spawn("selftest", entry, seed as usize, (100, u64::MAX));
    let threads: Result<Vec<_>, _> = (0..count).map(spawn).collect();
    let threads = threads.map_err(|error| format!("{error}"))?;
    for thread in &threads {
        sched::wake(thread);
    }
    let limit = sysreg::cntpct_el0() + host::ticks(120_000_000);
    // Pairs with the addition in `finished`.
    while u64::from(DONE.load(Ordering::Acquire)) < count {
        meanwhile();
        ensure(sysreg::cntpct_el0() < limit, || {
            // Pairs with the addition in `finished`.
            format!("{} of {count} threads ended in time", DONE.load(Ordering::Acquire))
        })?;
    }
    Ok(())
}

/// Lets `threads` threads wander, `moves` moves in all, and compares what they counted on each CPU with the ledger.
fn balance(threads: u64, entry: fn(usize) -> !, which: usize, moves: u64) -> Result<(), String> {
    let all = cpus();
    let before: Vec<_> = all.iter().map(|&cpu| counted(cpu, which)).collect();
    LEDGER.iter().for_each(|sent| sent.store(0, Ordering::Relaxed));
    let sent = |cpu: CpuId| LEDGER.get(usize::from(cpu.0)).map_or(0, |sent| sent.load(Ordering::Relaxed));
    let all_sent = || all.iter().map(|&cpu| sent(cpu)).sum::<u64>();
    with_threads(threads, entry, || sleep(10_000)).map_err(|why| format!("{why}, {} moves", all_sent()))?;
    ensure(all_sent() == moves, || format!("{} moves instead of {moves}", all_sent()))?;
    for (&cpu, before) in all.iter().zip(before) {
        let counted = counted(cpu, which) - before;
        ensure(counted == sent(cpu), || format!("{UNBALANCED} {}: {counted} counted, {} sent", cpu.0, sent(cpu)))?;
    }
    Ok(())
}

/// How [`balance`] begins when it finds the fault that it is there to find.
const UNBALANCED: &str = "CPU";

fn random_moves() -> Result<(), String> {
    let broadcasts = tlb::broadcasts();
    balance(MOVERS, mover, counter::ALIAS, MOVES)?;
    ensure(tlb::broadcasts() == broadcasts, || "the switches invalidated TLBs".into())
}

/// MOVZ or MOVK Xd, #0x7f80, LSL #32.
const fn is_alias_constant(instruction: u32) -> bool {
    instruction & 0xdfff_ffe0 == 0xd2c0_0000 | ((ALIAS >> 32) as u32) << 5
}

/// MRS Xt, TPIDR_EL2 (S3_4_C13_C0_2).
const fn is_read_of_tpidr(instruction: u32) -> bool {
    instruction & 0xffff_ffe0 == 0xd53c_d040
}

/// Any MRS.
const fn is_mrs(instruction: u32) -> bool {
    instruction & 0xfff0_0000 == 0xd530_0000
}

const RET: u32 = 0xd65f_03c0;

fn immediate() -> Result<(), String> {
    for which in [Code::Accessor, Code::Assembly] {
        let body: Vec<u32> = probe::code(which, 16).iter().copied().take_while(|&word| word != RET).collect();
        ensure(body.len() < 8, || format!("{which:?} is long"))?;
        ensure(body.iter().any(|&word| is_alias_constant(word)), || format!("{which:?} has no immediate: {body:x?}"))?;
        ensure(!body.iter().any(|&word| is_mrs(word)), || format!("{which:?} reads a system register: {body:x?}"))?;
    }
    let exit = probe::code(Code::Exit, 40);
    ensure(exit.iter().any(|&word| is_alias_constant(word)), || "the exit path has no immediate".into())?;
    // The contrast, and the self-test's own look at the register; nobody else asks for it.
    let reads = probe::code(Code::All, usize::MAX).iter().filter(|&&word| is_read_of_tpidr(word)).count();
    ensure((1..=3).contains(&reads), || format!("TPIDR_EL2 is read in {reads} places"))
}

fn contrast() -> Result<(), String> {
    let mut wrong = 0;
    for (from, to) in pairs() {
        sched::move_to(from);
        let before = (counted(from, counter::REGISTER), counted(to, counter::REGISTER));
        probe::increment_held(Held::Register, hop, u64::from(to.0));
        let after = (counted(from, counter::REGISTER), counted(to, counter::REGISTER));
        wrong += usize::from(this_cpu().cpu == to && after == (before.0 + 1, before.1));
    }
    let all = pairs().len();
    ensure(wrong == all, || {
        format!("{wrong} of {all} updates hit the wrong area; this test would not find the fault")
    })?;
    match balance(COUNTERS, wrong_mover, counter::REGISTER, COUNTERS * CONTRASTS) {
        Err(why) if why.starts_with(UNBALANCED) => Ok(()),
        other => Err(format!("the ledger does not show the fault: {other:?}")),
    }
}

/// Whether the threads of [`atomics`] have been preempted often enough.
static ENOUGH: AtomicBool = AtomicBool::new(false);
/// How often they have counted, by themselves.
static COUNTED: AtomicU64 = AtomicU64::new(0);

fn counting(_: usize) -> ! {
    disturbance::set_restless(sched::current(), true);
    let mut times = 0;
    while times < ATOMICS || !ENOUGH.load(Ordering::Relaxed) {
        with_irqs(|| {
            probe::increment_exclusively();
            let _ = probe::increment_atomically();
        });
        times += 1;
    }
    disturbance::set_restless(sched::current(), false);
    COUNTED.fetch_add(times, Ordering::Relaxed);
    finished()
}

fn atomics() -> Result<(), String> {
    let sum = |which| cpus().into_iter().map(|cpu| counted(cpu, which)).sum::<u64>();
    let moves = || cpus().into_iter().map(|cpu| disturbance::on(cpu).at_once.load(Ordering::Relaxed)).sum::<u64>();
    let before = (sum(counter::EXCLUSIVE), sum(counter::ATOMIC), moves());
    with_threads(COUNTERS, counting, || {
        sched::nudge_others();
        disturbance::migrate_for_good(CpuId(0));
        with_irqs(sysreg::isb);
        sched::yield_now();
        ENOUGH.store(moves() - before.2 >= PREEMPTIONS, Ordering::Relaxed);
    })?;
    let (exclusive, atomic) = (sum(counter::EXCLUSIVE) - before.0, sum(counter::ATOMIC) - before.1);
    let expected = COUNTED.load(Ordering::Relaxed);
    ensure(exclusive == expected, || format!("LDXR/STXR: {exclusive} of {expected}"))?;
    let lse = sysreg::id_aa64isar0_el1() >> 20 & 0xf != 0;
    ensure(!lse || atomic == expected, || format!("LDADD: {atomic} of {expected}"))
}

/// What the listed leaf and the interrupts in it leave behind on a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Traces {
    pair: [u64; 2],
    interrupts: u64,
    at_once: u64,
    deferred: u64,
}

impl Traces {
    fn of(cpu: CpuId) -> Self {
        let area = area(cpu);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            pair: [get(&area.zeroed[0]), get(&area.zeroed[1])],
            interrupts: get(&disturbance::on(cpu).interrupts),
            at_once: get(&disturbance::on(cpu).at_once),
            deferred: get(&disturbance::on(cpu).deferred),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            pair: [self.pair[0].wrapping_sub(before.pair[0]), self.pair[1].wrapping_sub(before.pair[1])],
            interrupts: self.interrupts - before.interrupts,
            at_once: self.at_once - before.at_once,
            deferred: self.deferred - before.deferred,
        }
    }
}

/// What adds up to [`Traces`] in a test: nothing, the pair added here.
const NOTHING: [u64; 2] = [0, 0];
const ADDED: [u64; 2] = [3, 50];

/// The two CPUs of the tests of listed code: the last ones, where nothing else happens.
fn stage() -> (CpuId, CpuId) {
    match cpus().as_slice() {
        [.., one, other] => (*one, *other),
        _ => (CpuId(0), CpuId(0)),
    }
}

/// Runs the leaf on the first CPU of [`stage`] with an interrupt at instruction `from`, and `echoes` more, whose
/// preemption moves the thread to the second one. Returns what happened on both.
fn force(from: u64, echoes: u32) -> Result<(Traces, Traces), String> {
    let (here, there) = stage();
    sched::move_to(here);
    let before = (Traces::of(here), Traces::of(there));
    disturbance::migrate_for_good(there);
    disturbance::nudge_self(echoes);
    nopreempt::add_pair_from(from, ADDED[0], ADDED[1]);
    let _ = mask_irqs();
    let now = this_cpu().cpu;
    ensure(now == there, || format!("at {from}: the thread is on CPU {}, not {}", now.0, there.0))?;
    let at = disturbance::on(here).last_interrupted.load(Ordering::Relaxed);
    let wanted = nopreempt::address_of(from);
    ensure(at == wanted, || format!("at {from}: interrupted at {at:#x}, not {wanted:#x}"))?;
    for cpu in [here, there] {
        let pending = area(cpu).preempt_pending.load(Ordering::Relaxed);
        ensure(pending == 0, || format!("at {from}: the flag of CPU {} is still set", cpu.0))?;
    }
    Ok((Traces::of(here).since(before.0), Traces::of(there).since(before.1)))
}

fn listed() -> Result<(), String> {
    for from in 0..nopreempt::STEPS {
        let (here, there) = force(from, 0)?;
        let expected = Traces { pair: ADDED, interrupts: 1, at_once: 0, deferred: 1 };
        ensure(here == expected, || format!("at {from}: {here:?} here"))?;
        ensure(there.pair == NOTHING, || format!("at {from}: {there:?} there"))?;
    }
    Ok(())
}

/// The range is listed to the instruction: neither the one before it nor the one behind it belongs to it. Both are
/// neighbours in memory, and are interrupted like the others.
fn around() -> Result<(), String> {
    let (first, behind) = (nopreempt::address_of(0), nopreempt::address_of(nopreempt::STEPS));
    let before = nopreempt::address_of(nopreempt::STEPS + 1);
    ensure(before + 4 == first && behind == first + 4 * nopreempt::STEPS, || {
        format!("not neighbours: {before:#x}, {first:#x}, {behind:#x}")
    })?;
    for address in (before..=behind).step_by(4) {
        let (found, expected) = (nopreempt::is_listed(address), (first..behind).contains(&address));
        ensure(found == expected, || format!("{address:#x} is listed: {found}; the range is {first:#x}..{behind:#x}"))?;
    }
    let (here, there) = force(nopreempt::STEPS, 0)?;
    let expected = Traces { pair: ADDED, interrupts: 1, at_once: 1, deferred: 0 };
    ensure(here == expected && there.pair == NOTHING, || format!("after it: {here:?} here, {there:?} there"))?;
    let (here, there) = force(nopreempt::STEPS + 1, 0)?;
    let expected = Traces { pair: NOTHING, interrupts: 1, at_once: 1, deferred: 0 };
    ensure(here == expected && there.pair == ADDED, || format!("before it: {here:?} here, {there:?} there"))
}

fn twice() -> Result<(), String> {
    for from in 0..nopreempt::STEPS {
        let (here, there) = force(from, 1)?;
        let interrupts = here.interrupts;
        let expected = Traces { pair: ADDED, interrupts, at_once: 0, deferred: 1 };
        ensure(here == expected && there.pair == NOTHING, || format!("at {from}: {here:?} here, {there:?} there"))?;
        ensure(interrupts == 2, || format!("at {from}: {interrupts} interrupts, not 2"))?;
    }
    Ok(())
}

fn undisturbed() -> Result<(), String> {
    let (here, _) = stage();
    sched::move_to(here);
    let before = Traces::of(here);
    for _ in 0..1000 {
        nopreempt::add_zeroed(1, 2);
    }
    let expected = Traces { pair: [1000, 2000], interrupts: 0, at_once: 0, deferred: 0 };
    let happened = Traces::of(here).since(before);
    ensure(happened == expected, || format!("{happened:?}"))?;
    // LDR Wt, [Xn, #offset]; CBNZ Wt; RET.
    let [load, branch, back] = [0, 1, 2].map(|index| probe::code(Code::Leave, 3).get(index).copied().unwrap_or(0));
    let is_one_load = load & 0xffc0_0000 == 0xb940_0000 && branch & 0xff00_0000 == 0x3500_0000 && back == RET;
    ensure(is_one_load, || format!("the check is {load:x} {branch:x} {back:x}"))
}

static OUTER: PreemptLock<()> = PreemptLock::new(());
static INNER: PreemptLock<()> = PreemptLock::new(());

/// Interrupts while locks are held are handled at once; the one preemption that they ask for comes when the last lock is free.
fn locked() -> Result<(), String> {
    let (here, there) = stage();
    sched::move_to(here);
    let before = Traces::of(here);
    disturbance::migrate_for_good(there);
    let outer = OUTER.lock();
    let inner = INNER.lock();
    for _ in 0..2 {
        disturbance::nudge_self(0);
        with_irqs(sysreg::isb);
    }
    let mut held = [(0, Traces::of(here).since(before)); 2];
    unmask_irqs();
    for (lock, place) in [inner, outer].into_iter().zip(&mut held) {
        *place = (this_cpu().cpu.0, Traces::of(here).since(before));
        drop(lock);
    }
    let after = Traces::of(here).since(before);
    let moved = this_cpu().cpu;
    let _ = mask_irqs();
    let expected = Traces { pair: NOTHING, interrupts: 2, at_once: 0, deferred: 0 };
    ensure(held == [(here.0, expected); 2], || format!("with the locks: {held:?}"))?;
    ensure(moved == there && after == Traces { deferred: 1, ..expected }, || format!("on CPU {}: {after:?}", moved.0))
}

/// TLBI: SYS with CRn = 8.
const fn is_tlb_invalidation(instruction: u32) -> bool {
    instruction & 0xfff8_f000 == 0xd508_8000
}

fn tables() -> Result<(), String> {
    const EXECUTE_NEVER: u64 = 1 << 54;
    let mut roots = Vec::new();
    for cpu in cpus() {
        sched::move_to(cpu);
        let (root, area, leaf) = probe::tables();
        ensure(root & 1 == 0, || format!("CPU {}: TTBR0_EL2.CnP is set", cpu.0))?;
        ensure(!roots.contains(&root), || format!("CPU {} shares its root", cpu.0))?;
        roots.push(root);
        let leaf = leaf.unwrap_or(0);
        let right = leaf & EXECUTE_NEVER != 0 && leaf & 0x0000_ffff_ffff_f000 == area;
        ensure(right, || format!("CPU {}: the alias's descriptor is {leaf:#x}, the area {area:#x}", cpu.0))?;
    }
    let switch = probe::code(Code::Switch, 30);
    ensure(!switch.iter().any(|&word| is_tlb_invalidation(word)), || "the switch of threads invalidates TLBs".into())
}

fn negative() -> Result<(), String> {
    let (here, there) = stage();
    sched::move_to(here);
    let before = Traces::of(here);
    disturbance::migrate_for_good(there);
    disturbance::nudge_self(0);
    with_irqs(sysreg::isb);
    let happened = Traces::of(here).since(before);
    let moved = this_cpu().cpu == there && happened.at_once == 1 && happened.deferred == 0;
    ensure(moved, || format!("unlisted code: on CPU {}, {happened:?}", this_cpu().cpu.0))?;
    for (address, readable) in [(ALIAS - PAGE_SIZE, false), (ALIAS, true), (ALIAS + PAGE_SIZE, false)] {
        let found = probe::is_readable(Va(address));
        ensure(found == readable, || format!("{address:#x}: readable is {found}"))?;
    }
    Ok(())
}

/// A UART whose transmitter never gets ready: whoever writes to it, the console's thread included, goes on, and what was lost
/// is counted; as soon as it takes bytes again none is lost.
fn mute() -> Result<(), String> {
    const BYTES: u64 = 2000;
    // Of a line without so many bytes nobody can read the end.
    const PIECE: u64 = 20;
    let before = uart::dropped();
    let lost = || uart::dropped() - before;
    let own = uart::exchange(Box::leak(Box::new(probe::mute_uart())));
    unmask_irqs();
    for _ in 0..BYTES {
        uart::send(b'?');
    }
    log::info!("this line is lost");
    let are_lost = comes(|| lost() >= BYTES + PIECE);
    let Some(own) = own else { return Err("there is no UART".into()) };
    uart::exchange(own);
    ensure(are_lost, || format!("{} bytes were dropped of more than {BYTES}", lost()))?;
    log::info!("this line is seen");
    ensure(comes(|| !uart::is_stuck()), || "nobody writes to it any more".into())?;
    let then = lost();
    log::info!("so is this");
    (0..10).for_each(|_| sleep(10_000));
    ensure(lost() == then && !uart::is_stuck(), || format!("{} bytes were dropped afterwards", lost() - then))
}

/// On CPUs that translate out of context, stage 1 walks nothing from a vCPU's save to the next load, nor while another VMID
/// is in VTTBR_EL2; on the others nothing is done. The guest finds its registers as they were.
fn closed() -> Result<(), String> {
    const GUEST: (u64, u64) = (0x30d0_0800, 0x19);
    const CLOSED: (u64, u64) = (GUEST.0 | 1, GUEST.1 | 1 << 7 | 1 << 23);
    let between = if translates_out_of_context(sysreg::midr_el1()) { CLOSED } else { GUEST };
    let host = host::get();
    let controls = Controls {
        hcr: host.controls.hcr,
        mdcr: host.controls.mdcr,
        cptr: host.controls.cptr,
        debug_traps: [sysreg::hdfgrtr_el2::read, sysreg::hdfgwtr_el2::read].map(|read| {
            // They exist with FEAT_FGT only.
            if host.features.fine_grained { read() } else { 0 }
        }),
        ..Controls::default()
    };
    let mut state = GuestState::new(controls);
    state.el1.sctlr_el1 = GUEST.0;
    state.el1.tcr_el1 = GUEST.1;
    let now = || (sysreg::sctlr_el1::read(), sysreg::tcr_el1::read());
    let mut seen = [(0, 0); 4];
    without_irqs(|| {
        state.load(&host.features);
        seen[0] = now();
        tlb::with_vttbr(1 << 48, || seen[1] = now());
        seen[2] = now();
        state.save(&host.features);
        seen[3] = now();
    });
    let expected = [GUEST, between, GUEST, between];
    let saved = (state.el1.sctlr_el1, state.el1.tcr_el1);
    if seen == expected && saved == GUEST {
        Ok(())
    } else {
        Err(format!("SCTLR_EL1 and TCR_EL1 were {seen:x?} and saved as {saved:x?}; right: {expected:x?}"))
    }
}

/// Comparisons (`hw`'s own `memcmp`) of each length up to two words and more, at each alignment of both sides, with a difference at each
/// place: what comes first in memory decides, as unsigned bytes. What differs behind the end decides nothing.
fn comparisons() -> Result<(), String> {
    let source: Vec<u8> = (0..64).map(|n: u8| n.wrapping_mul(37) ^ 0x85).collect();
    for (length, from, to) in (0..=40).flat_map(|length| (0..64).map(move |both| (length, both % 8, both / 8))) {
        let one = source.get(from..).and_then(|source| source.get(..length)).unwrap_or_default();
        let mut room = [0x5a; 64];
        for at in 0..=length {
            let Some(other) = room.get_mut(to..to + length) else { break };
            other.copy_from_slice(one);
            let mut right = cmp::Ordering::Equal;
            if let Some(byte) = other.get_mut(at) {
                right = if *byte < 0x80 { cmp::Ordering::Less } else { cmp::Ordering::Greater };
                *byte ^= 0x80;
            }
            // What differs there too must not count.
            if let Some(byte) = other.get_mut(at + 1) {
                *byte = byte.wrapping_add(1);
            }
            let found = core::hint::black_box(one).cmp(core::hint::black_box(&*other));
            let is_same = core::hint::black_box(one) == core::hint::black_box(&*other);
            ensure(found == right && is_same == right.is_eq(), || {
                format!(
                    "{length} bytes that differ at {at}, {from} and {to} behind an aligned address, compare as {found:?}"
                )
            })?;
        }
    }
    Ok(())
}

/// Copies and fills (`hw`'s own `memcpy` and `memset`) of each length up to two blocks of 64 bytes, at each alignment of source
/// and target, change what they should and no byte beside it.
fn copies() -> Result<(), String> {
    const BESIDE: u8 = 0xee;
    let source: Vec<u8> = (0..160).map(|n: u8| n ^ 0x35).collect();
    for (length, from, to) in (0..=136).flat_map(|length| (0..64).map(move |both| (length, both % 8, both / 8))) {
        let from = source.get(from..).and_then(|source| source.get(..length)).unwrap_or_default();
        let is_inside = |at: usize| (to..to + length).contains(&at);
        let mut target = [BESIDE; 160];
        if let Some(target) = target.get_mut(to..to + length) {
            target.copy_from_slice(from);
        }
        let copied = from.iter().eq(target.iter().skip(to).take(length));
        let beside = |target: &[u8]| target.iter().enumerate().all(|(at, &byte)| is_inside(at) || byte == BESIDE);
        let at = || format!("{length} bytes, {to} behind an aligned address, from {}", from.as_ptr().addr() % 8);
        ensure(copied && beside(&target), || format!("a copy is wrong: {}", at()))?;
        if let Some(target) = target.get_mut(to..to + length) {
            target.fill(length as u8);
        }
        let filled = target.iter().skip(to).take(length).all(|&byte| byte == length as u8);
        ensure(filled && beside(&target), || format!("a fill is wrong: {}", at()))?;
    }
    Ok(())
}
