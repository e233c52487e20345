//! Several CPUs at once: all come up, atomics and locks hold between them, and they wake each other by SGI, by SEV and by memory.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use payload_rt::test::Verdict;
use payload_rt::{MAX_CPUS, check, check_equal, cpu, gic, interrupt, machine, psci, skip, sysreg, test, tests, timer};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("smp":
        all_cpus_come_up, exclusive_counter, ticket_lock, message_passing, sgi_ping_pong, wfi_woken_by_sgi, wfe_woken_by_event,
        wfe_after_an_exit_does_not_sleep, activity_written_by_another_cpu, tlb_invalidation_reaches_all, hotplug_under_load,
    ));
}

/// Runs `job` on every CPU, this one too, and waits for the end of all.
fn on_all(job: cpu::Job) -> Verdict {
    for index in 1..cpu::count() {
        check_equal!(cpu::start(index, job), Ok(()), "CPU_ON of CPU {index}");
    }
    job(0);
    for index in 1..cpu::count() {
        check!(cpu::wait_off(index), "CPU {index} does not end");
    }
    Ok(())
}

fn at_least_two() -> Verdict {
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    Ok(())
}

static AFFINITIES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];

fn note_affinity(index: usize) {
    AFFINITIES[index].store(gic::own_affinity(), Ordering::SeqCst);
}

fn all_cpus_come_up() -> Verdict {
    on_all(note_affinity)?;
    for (index, affinity) in AFFINITIES.iter().enumerate().take(cpu::count()) {
        check_equal!(affinity.load(Ordering::SeqCst), cpu::affinity(index), "MPIDR_EL1 of CPU {index}");
    }
    Ok(())
}

const ADDITIONS: u64 = 50_000;
static COUNTER: AtomicU64 = AtomicU64::new(0);

fn add(_index: usize) {
    for _ in 0..ADDITIONS {
        COUNTER.fetch_add(1, Ordering::Relaxed);
    }
}

fn exclusive_counter() -> Verdict {
    COUNTER.store(0, Ordering::SeqCst);
    on_all(add)?;
    check_equal!(COUNTER.load(Ordering::SeqCst), ADDITIONS * cpu::count() as u64, "sum of all CPUs' additions");
    Ok(())
}

static TICKET: AtomicU32 = AtomicU32::new(0);
static SERVED: AtomicU32 = AtomicU32::new(0);
/// Changed only under the lock, by a load and a store apart.
static GUARDED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

const TURNS: u64 = 2000;

fn take_turns(_index: usize) {
    for _ in 0..TURNS {
        let mine = TICKET.fetch_add(1, Ordering::Relaxed);
        while SERVED.load(Ordering::Acquire) != mine {
            cpu::relax();
        }
        for cell in &GUARDED {
            cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        SERVED.store(mine.wrapping_add(1), Ordering::Release);
    }
}

fn ticket_lock() -> Verdict {
    GUARDED.iter().for_each(|cell| cell.store(0, Ordering::SeqCst));
    on_all(take_turns)?;
    for cell in &GUARDED {
        check_equal!(cell.load(Ordering::SeqCst), TURNS * cpu::count() as u64, "guarded counter");
    }
    Ok(())
}

static DATA: AtomicU64 = AtomicU64::new(0);
static FLAG: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU32 = AtomicU32::new(0);

/// Takes what the other CPU writes: data first, flag second.
fn receive(_index: usize) {
    let mut last = 0;
    while last < 20_000 {
        let flag = FLAG.load(Ordering::Acquire);
        if DATA.load(Ordering::Relaxed) < flag {
            WRONG.fetch_add(1, Ordering::SeqCst);
        }
        last = flag;
    }
}

fn message_passing() -> Verdict {
    at_least_two()?;
    FLAG.store(0, Ordering::SeqCst);
    check_equal!(cpu::start(1, receive), Ok(()), "CPU_ON of CPU 1");
    for number in 1..=20_000 {
        DATA.store(number, Ordering::Relaxed);
        FLAG.store(number, Ordering::Release);
    }
    check!(cpu::wait_off(1), "CPU 1 does not end");
    check_equal!(WRONG.load(Ordering::SeqCst), 0, "times that the flag was seen before the data");
    Ok(())
}

const PING: u32 = 2;
const PONG: u32 = 3;
static ROUNDS: AtomicU32 = AtomicU32::new(0);

/// Answers each ping with a pong, asleep in between.
fn answer(index: usize) {
    gic::enable(PING);
    cpu::unmask_interrupts();
    let mut answered = 0;
    while answered < ROUNDS.load(Ordering::SeqCst) {
        if interrupt::seen(index, PING) > answered {
            answered += 1;
            gic::send(PONG, gic::Target::Affinity(cpu::affinity(0)));
        }
    }
    cpu::mask_interrupts();
}

fn ping_pong(job: cpu::Job) -> Verdict {
    at_least_two()?;
    let rounds = machine::option_number("loops", 500) as u32;
    ROUNDS.store(rounds, Ordering::SeqCst);
    gic::enable(PONG);
    check_equal!(cpu::start(1, job), Ok(()), "CPU_ON of CPU 1");
    cpu::unmask_interrupts();
    for round in 1..=rounds {
        gic::send(PING, gic::Target::Affinity(cpu::affinity(1)));
        check!(timer::wait_until(5000, || interrupt::seen(0, PONG) == round), "no answer in round {round}");
    }
    cpu::mask_interrupts();
    check!(cpu::wait_off(1), "CPU 1 does not end");
    check_equal!((interrupt::seen(1, PING), interrupt::seen(0, PONG)), (rounds, rounds), "pings and pongs");
    Ok(())
}

fn sgi_ping_pong() -> Verdict {
    ping_pong(answer)
}

/// As `answer`, but asleep by WFI with interrupts masked in PSTATE, so that no wake-up can be missed between look and sleep.
fn answer_from_sleep(index: usize) {
    gic::enable(PING);
    let mut answered = 0;
    while answered < ROUNDS.load(Ordering::SeqCst) {
        cpu::wait_for_interrupt();
        cpu::unmask_interrupts();
        sysreg::isb();
        cpu::mask_interrupts();
        if interrupt::seen(index, PING) > answered {
            answered += 1;
            gic::send(PONG, gic::Target::Affinity(cpu::affinity(0)));
        }
    }
}

fn wfi_woken_by_sgi() -> Verdict {
    ping_pong(answer_from_sleep)
}

static EVENT: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU32 = AtomicU32::new(0);

/// Waits for each new event by WFE; a timer's interrupt sees to it that a lost SEV shows as a late answer, no hang.
fn wait_for_events(_index: usize) {
    gic::enable(timer::VIRTUAL_PPI);
    cpu::unmask_interrupts();
    for number in 1..=200 {
        while EVENT.load(Ordering::Acquire) < number {
            sysreg::cntv_tval_el0::write(timer::microseconds(100_000));
            sysreg::cntv_ctl_el0::write(timer::ENABLE);
            cpu::wait_for_event();
        }
        SEEN.store(number, Ordering::Release);
    }
    cpu::mask_interrupts();
    sysreg::cntv_ctl_el0::write(0);
}

fn wfe_woken_by_event() -> Verdict {
    at_least_two()?;
    EVENT.store(0, Ordering::SeqCst);
    SEEN.store(0, Ordering::SeqCst);
    check_equal!(cpu::start(1, wait_for_events), Ok(()), "CPU_ON of CPU 1");
    for number in 1..=200 {
        EVENT.store(number, Ordering::Release);
        cpu::send_event();
        check!(timer::wait_until(5000, || SEEN.load(Ordering::Acquire) == number), "event {number} was not seen");
    }
    check!(cpu::wait_off(1), "CPU 1 does not end");
    Ok(())
}

static LOCK: AtomicU64 = AtomicU64::new(1);

/// Who waits for a lock reads it exclusively and sleeps by WFE, until the owner's store takes the exclusive state away, which is an
/// event. An exception between the two takes it away too, and nothing comes of the store any more: so an exception return is an event
/// itself (DDI 0487, "The Event register"), and what sleeps looks again. An exit is an exception that the guest does not see, at a
/// place where it has masked all that it could see.
///
/// Where vCPUs share CPUs the WFE traps, and this shows nothing.
fn wfe_after_an_exit_does_not_sleep() -> Verdict {
    if machine::is_reference() {
        skip!("nothing exits here");
    }
    cpu::mask_interrupts();
    gic::enable(timer::VIRTUAL_PPI);
    for round in 0..50 {
        // What ends the wait if nothing else does; pending, since IRQs are masked.
        sysreg::cntv_cval_el0::write(timer::now() + timer::microseconds(10_000_000));
        sysreg::cntv_ctl_el0::write(timer::ENABLE);
        psci::call_before_wfe(&LOCK);
        let is_over = sysreg::cntv_ctl_el0::read() & timer::ISTATUS != 0;
        sysreg::cntv_ctl_el0::write(0);
        check!(!is_over, "round {round}: the WFE waited for 10 s");
    }
    Ok(())
}

static STEP: AtomicU32 = AtomicU32::new(0);

/// The step that ends it all.
const OVER: u32 = u32::MAX;

/// Says that step `mine` of a round is done, and waits for the other CPU's next one; false if there is none.
fn step(mine: u32) -> bool {
    STEP.store(mine, Ordering::Release);
    let is_next = timer::wait_until(5000, || STEP.load(Ordering::Acquire) > mine);
    is_next && STEP.load(Ordering::Acquire) != OVER
}

/// Takes the interrupt twice in each round, until it is [`OVER`]: once by itself, and once more where it was made active meanwhile.
fn take_and_end(_index: usize) {
    let spi = gic::spis().start;
    let take = || timer::wait_until(5000, || gic::acknowledge() == spi || STEP.load(Ordering::Acquire) == OVER);
    while timer::wait_until(5000, || matches!(STEP.load(Ordering::Acquire), 1 | OVER)) && take() {
        // Without an exit: what the list register holds now nobody else knows.
        gic::end(spi);
        if !step(2) || !take() || !step(4) {
            return;
        }
        // Its activation is gone, and its priority stays active until this.
        gic::end(spi);
        if !step(6) {
            return;
        }
        // Disabled, and RWP was zero: it must not come.
        if gic::acknowledge() == spi {
            WRONG.fetch_add(1, Ordering::SeqCst);
            gic::end(spi);
        }
        STEP.store(8, Ordering::Release);
        timer::wait_until(5000, || STEP.load(Ordering::Acquire) != 8);
    }
}

/// GICD_ISACTIVER and GICD_ICACTIVER act on what another CPU has acknowledged and ended by its CPU interface: the activation that is over
/// is not mixed up with the one that is written, nor the one that goes on with one that is over. What GICD_ICENABLER takes away does
/// not come to the other CPU any more.
fn activity_written_by_another_cpu() -> Verdict {
    at_least_two()?;
    WRONG.store(0, Ordering::SeqCst);
    STEP.store(0, Ordering::SeqCst);
    let spi = gic::spis().start;
    gic::set_trigger(spi, gic::Trigger::Edge);
    gic::route(spi, cpu::affinity(1));
    check_equal!(cpu::start(1, take_and_end), Ok(()), "CPU_ON of CPU 1");
    let verdict = (0..machine::option_number("loops", 100)).try_for_each(|round| write_activity(spi, round));
    STEP.store(OVER, Ordering::Release);
    gic::disable(spi);
    gic::write_bit(gic::ICPENDR, spi);
    check!(cpu::wait_off(1), "CPU 1 does not end");
    verdict?;
    check_equal!(WRONG.load(Ordering::SeqCst), 0, "times that CPU 1 got what was disabled");
    Ok(())
}

/// A round: the other CPU's steps have the even numbers.
fn write_activity(spi: u32, round: u64) -> Verdict {
    gic::enable(spi);
    gic::write_bit(gic::ISPENDR, spi);
    check!(step(1), "round {round}: CPU 1 does not take the interrupt");
    gic::write_bit(gic::ISACTIVER, spi);
    check!(gic::read_bit(gic::ISACTIVER, spi), "round {round}: made active after it was ended, and it is not");
    gic::write_bit(gic::ISPENDR, spi);
    check!(gic::read_bit(gic::ISPENDR, spi), "round {round}: pending again, and it is not");
    gic::write_bit(gic::ICACTIVER, spi);
    check!(step(3), "round {round}: CPU 1 does not take it again");
    check!(gic::read_bit(gic::ISACTIVER, spi), "round {round}: acknowledged again, and not active");
    gic::write_bit(gic::ICACTIVER, spi);
    check!(!gic::read_bit(gic::ISACTIVER, spi), "round {round}: made inactive, and it is active");
    check!(step(5), "round {round}: CPU 1 does not end it");
    check!(!gic::read_bit(gic::ISACTIVER, spi), "round {round}: inactive, ended, and active");
    gic::write_bit(gic::ISPENDR, spi);
    gic::disable(spi);
    gic::wait_for_writes();
    check!(step(7), "round {round}: CPU 1 does not look");
    gic::write_bit(gic::ICPENDR, spi);
    STEP.store(0, Ordering::Release);
    Ok(())
}

static READY: AtomicBool = AtomicBool::new(false);
static PAGES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static ADDRESS: AtomicU64 = AtomicU64::new(0);

/// Reads through the mapping until it shows the second page.
fn watch_mapping(_index: usize) {
    let address = ADDRESS.load(Ordering::SeqCst);
    let _ = payload_rt::memory::read64(address);
    READY.store(true, Ordering::SeqCst);
    let mut deadline = timer::Deadline::after_milliseconds(8000);
    while payload_rt::memory::read64(address) != 2 {
        if deadline.passed() {
            WRONG.fetch_add(1, Ordering::SeqCst);
            return;
        }
    }
}

fn tlb_invalidation_reaches_all() -> Verdict {
    use payload_rt::{memory, mmu};
    at_least_two()?;
    // Two gigabyte blocks cannot hold two pages of ours, so the slot gets a table of 2 MiB blocks, changed in place.
    let table = memory::pages(1);
    for page in &PAGES {
        page.store(memory::arena().start, Ordering::SeqCst);
    }
    let block = memory::arena().start + 0x20_0000;
    memory::write64(block, 1);
    memory::write64(block + 0x20_0000, 2);
    for round in 0..20 {
        READY.store(false, Ordering::SeqCst);
        WRONG.store(0, Ordering::SeqCst);
        memory::write64(table, mmu::normal_block(block));
        let address = mmu::set_slot(mmu::FREE_SLOT, mmu::table(table));
        ADDRESS.store(address, Ordering::SeqCst);
        check_equal!(cpu::start(1, watch_mapping), Ok(()), "CPU_ON of CPU 1");
        let ready = timer::wait_until(5000, || READY.load(Ordering::SeqCst));
        // Break before make would fault the reader; a changed output address of equal memory is what CONSTRAINED code does, and with
        // this one aligned store the reader sees either block.
        memory::write64(table, mmu::normal_block(block + 0x20_0000));
        sysreg::invalidate_tlb();
        let off = cpu::wait_off(1);
        mmu::reset_slot(mmu::FREE_SLOT);
        check!(ready && off, "CPU 1 does not answer in round {round}");
        check_equal!(WRONG.load(Ordering::SeqCst), 0, "round {round}: reads through a stale translation; count");
    }
    Ok(())
}

static STOP: AtomicBool = AtomicBool::new(false);

fn work_until_stopped(index: usize) {
    while !STOP.load(Ordering::Relaxed) {
        COUNTER.fetch_add(index as u64, Ordering::Relaxed);
    }
}

fn nothing(_index: usize) {}

fn hotplug_under_load() -> Verdict {
    if cpu::count() < 3 {
        skip!("needs three CPUs");
    }
    STOP.store(false, Ordering::SeqCst);
    for index in 2..cpu::count() {
        check_equal!(cpu::start(index, work_until_stopped), Ok(()), "CPU_ON of CPU {index}");
    }
    let mut failed = None;
    for round in 0..50 {
        let started = cpu::start(1, nothing);
        if started.is_err() || !cpu::wait_off(1) {
            failed = failed.or(Some((round, started)));
        }
    }
    STOP.store(true, Ordering::SeqCst);
    for index in 2..cpu::count() {
        check!(cpu::wait_off(index), "CPU {index} does not end");
    }
    check!(failed.is_none(), "round and CPU_ON: {failed:?}");
    Ok(())
}
