//! Which pages become executable, at which exit, and what is maintained for that, by the hypervisor's own counters.
//!
//! QEMU's caches always agree; `core/stage2`'s model of a machine whose caches do not shows that nothing stale is executed there.
//! Here each fault is counted, and each line that was cleaned.
//!
//! The command line says what VM this is: `mode=strict`, if pages that are executed are read-only, and `mode=always`, if the host
//! was told to maintain whatever CTR_EL0 says.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use payload_rt::instruction::{execute, publish, sys};
use payload_rt::test::Verdict;
use payload_rt::{check, check_equal, cpu, fault, machine, memory, mmu, skip, sysreg, test, tests, timer};

payload_rt::entry!(main);

const PAGE: u64 = 4096;
const BLOCK: u64 = 0x20_0000;
const RET: u32 = 0xd65f_03c0;
/// VMware's magic number, which every call has in X0.
const MAGIC: u64 = 0x564d_5868;

/// The lines that had been cleaned when this image began, and the pages that were executable.
static AT_START: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn main() {
    let start = since(Counts::default());
    AT_START[0].store(start.lines, Ordering::Relaxed);
    AT_START[1].store(start.executable, Ordering::Relaxed);
    // Each once without a word, so that this image's own pages are executable when it counts.
    let rehearsed: [fn() -> Verdict; 14] = [
        p6_a1_data,
        p6_a2_fetch,
        p6_a3_data_then_fetch,
        p6_a4_second_fetch,
        p6_a5_tables,
        p6_a6_own_maintenance,
        p6_a7_rewritten_by_the_host,
        p6_a8_what_ctr_says,
        p6_a10_one_page_of_a_block,
        p6_a12_cpus_at_once,
        p6_a13_without_syndrome,
        p6_a15_no_maintenance,
        p6_a15_code_beside_data,
        most_of_a_block,
    ];
    rehearsed.iter().for_each(|test| _ = test());
    test::run(&tests!("coherency":
        p6_a14_started_with_caches_off, p6_a1_data, p6_a2_fetch, p6_a3_data_then_fetch, p6_a4_second_fetch, p6_a5_tables,
        p6_a6_own_maintenance, p6_a7_rewritten_by_the_host, p6_a8_what_ctr_says, p6_a10_one_page_of_a_block, p6_a12_cpus_at_once,
        p6_a13_without_syndrome, p6_a15_no_maintenance, p6_a15_code_beside_data, most_of_a_block,
    ));
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counts {
    memory: u64,
    execution: u64,
    executable: u64,
    granted: u64,
    taken: u64,
    lines: u64,
    emptied: u64,
    joined: u64,
}

/// The counters now, less those of `before`.
fn since(before: Counts) -> Counts {
    let count = |name| guest::exits(name).unwrap_or(u64::MAX / 2);
    let less = |name, before: u64| count(name).wrapping_sub(before);
    Counts {
        memory: less("memory", before.memory),
        execution: less("execution", before.execution),
        executable: less("pages-executable", before.executable),
        granted: less("pages-made-executable", before.granted),
        taken: less("pages-taken-back", before.taken),
        lines: less("lines-cleaned", before.lines),
        emptied: less("caches-emptied", before.emptied),
        joined: less("blocks-joined", before.joined),
    }
}

/// What `body` adds to the counters. All of this image has been executed before, so that it adds
/// nothing itself.
fn counted(body: impl FnOnce()) -> Counts {
    let before = since(Counts::default());
    body();
    since(before)
}

fn has(word: &str) -> bool {
    machine::option("mode") == Some(word)
}

/// Lines that are cleaned for so many pages, and invalidations, by CTR_EL0.
fn maintenance(pages: u64) -> (u64, u64) {
    let ctr = sysreg::ctr_el0::read();
    let line = 4 << sysreg::field(ctr, 16);
    let (clean, invalidate) = (ctr & 1 << 28 == 0 || has("always"), ctr & 1 << 29 == 0 || has("always"));
    (if clean { pages * PAGE / line } else { 0 }, if invalidate { pages } else { 0 })
}

/// A first fetch from so many pages: each is one exit.
fn fetched(pages: u64) -> Counts {
    let (lines, emptied) = maintenance(pages);
    Counts { execution: pages, executable: pages, granted: pages, lines, emptied, ..Counts::default() }
}

/// Blocks that nobody has touched yet, each to be had once.
fn fresh() -> u64 {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    let nth = TAKEN.fetch_add(1, Ordering::SeqCst);
    memory::untouched_blocks().nth(nth as usize).expect("there is RAM for all tests")
}

/// What the code at `address` returns.
fn run(address: u64) -> u64 {
    memory::call_with(address, 0)
}

/// `MOV W0, #value`.
fn mov(value: u32) -> u32 {
    0x5280_0000 | (value & 0xffff) << 5
}

/// A function that returns `value`, without any maintenance.
fn put(address: u64, value: u32) {
    memory::write32(address, mov(value));
    memory::write32(address + 4, RET);
}

/// The same, maintained as the architecture wants it.
fn put_and_publish(address: u64, value: u32) {
    put(address, value);
    publish(address);
    publish(address + 4);
}

/// The hypervisor loaded this image, and its first pages were fetched with the MMU off, past all caches. So they were cleaned to
/// memory, whatever CTR_EL0 says of the point of unification.
fn p6_a14_started_with_caches_off() -> Verdict {
    let [lines, executable] = [0, 1].map(|at: usize| AT_START[at].load(Ordering::Relaxed));
    check!(lines >= 64 && lines.is_multiple_of(64), "lines cleaned at the start: {lines}");
    check!((1..64).contains(&executable), "pages executable at the start: {executable}");
    check_equal!(counted(|| {}), Counts::default(), "nothing");
    Ok(())
}

fn p6_a1_data() -> Verdict {
    for write in [false, true] {
        let place = fresh();
        let counts = counted(|| {
            if write {
                memory::write64(place, 1);
            } else {
                let _ = memory::read64(place);
            }
        });
        check_equal!(counts, Counts { memory: 1, ..Counts::default() }, "the first access, a store: {write}");
        // It was not executable: a fetch from it exits.
        put_and_publish(place, 2);
        let counts = counted(|| _ = run(place));
        check_equal!(counts, fetched(1), "the first fetch");
    }
    Ok(())
}

fn p6_a2_fetch() -> Verdict {
    // Nothing was ever stored in the first block: zeroes, which are no instruction. Behind the last of them, where the exception
    // leads, the second one has code.
    let (first, place) = loop {
        let (first, second) = (fresh(), fresh());
        if first + BLOCK == second {
            break (first, second);
        }
    };
    put_and_publish(place, 1);
    run(place);
    let mut outcome = Ok(0);
    let counts = counted(|| outcome = fault::catch(|| run(first + BLOCK - 4)));
    check!(outcome.is_err(), "zeroes are no code");
    check_equal!(counts, fetched(1), "the first access to a block is a fetch");
    put_and_publish(place + PAGE, 77);
    let mut value = 0;
    let counts = counted(|| value = run(place + PAGE));
    check_equal!((counts, value), (fetched(1), 77), "code");
    Ok(())
}

fn p6_a3_data_then_fetch() -> Verdict {
    let place = fresh();
    let counts = counted(|| put_and_publish(place, 5));
    check_equal!(counts, Counts { memory: 1, ..Counts::default() }, "data, and the guest's own maintenance");
    let counts = counted(|| _ = run(place));
    check_equal!(counts, fetched(1), "a fetch from what is mapped");
    Ok(())
}

fn p6_a4_second_fetch() -> Verdict {
    let place = fresh();
    put_and_publish(place, 6);
    run(place);
    let counts = counted(|| {
        for _ in 0..1_000_000 {
            run(place);
        }
    });
    check_equal!(counts, Counts::default(), "a million fetches");
    Ok(())
}

/// A walk of the guest's own tables on behalf of a fetch.
fn p6_a5_tables() -> Verdict {
    let (table, code) = (fresh(), fresh());
    put_and_publish(code, 8);
    // The table is not mapped at all, and empty.
    let start = mmu::set_slot(mmu::FREE_SLOT, mmu::table(table));
    let counts = counted(|| _ = fault::catch(|| run(start)));
    check_equal!(counts, Counts { memory: 1, ..Counts::default() }, "a walk for a fetch by a table that is not mapped");
    // With an entry the fetch reaches the code, which becomes executable; the table does not.
    memory::write64(table, mmu::normal_block(code));
    sysreg::invalidate_tlb();
    let mut value = 0;
    let counts = counted(|| value = run(start));
    check_equal!((counts, value), (fetched(1), 8), "a fetch by that table");
    mmu::reset_slot(mmu::FREE_SLOT);
    // In entries that nothing uses.
    put_and_publish(table + 0x800, 9);
    let counts = counted(|| _ = run(table + 0x800));
    check_equal!(counts, fetched(1), "a fetch from the table itself");
    Ok(())
}

fn p6_a6_own_maintenance() -> Verdict {
    let place = fresh();
    put_and_publish(place, 1);
    run(place);
    let mut value = 0;
    let counts = counted(|| {
        put_and_publish(place, 2);
        value = run(place);
    });
    check_equal!(value, 2, "the new code");
    let mut expected = Counts::default();
    if has("strict") {
        // A store takes execution away, the fetch gives it back.
        let (lines, emptied) = maintenance(1);
        expected = Counts { memory: 1, execution: 1, taken: 1, granted: 1, lines, emptied, ..expected };
    }
    check_equal!(counts, expected, "code that the guest replaces");
    Ok(())
}

/// A reply of the host's of so many bytes, stored at `address` by the hypervisor.
fn receive(channel: [u64; 3], address: u64, length: u64) -> u64 {
    let [id, high, low] = channel;
    let mut x = [MAGIC, 0x1_0000, length, id << 16 | 0x5659, high, address, low, 0x86 << 32 | 0x1c];
    guest::call(&mut x);
    x[1]
}

/// What each vCPU found at [`CODE`], and how often it was asked.
static CODE: AtomicU64 = AtomicU64::new(0);
static ASKED: AtomicU64 = AtomicU64::new(0);
static FOUND: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static ANSWERED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Calls [`CODE`] each time that it is asked, until it is asked to end.
fn answer(index: usize) {
    let mut seen = 0;
    loop {
        let asked = ASKED.load(Ordering::SeqCst);
        if asked == u64::MAX {
            return;
        }
        if asked != seen {
            seen = asked;
            FOUND[index].store(run(CODE.load(Ordering::SeqCst)), Ordering::SeqCst);
            ANSWERED[index].store(asked, Ordering::SeqCst);
        }
        cpu::relax();
    }
}

/// Has every vCPU call `code`; whether all answered.
fn ask_all(code: u64) -> bool {
    CODE.store(code, Ordering::SeqCst);
    let asked = ASKED.fetch_add(1, Ordering::SeqCst) + 1;
    FOUND[0].store(run(code), Ordering::SeqCst);
    timer::wait_until(30_000, || (1..cpu::count()).all(|index| ANSWERED[index].load(Ordering::SeqCst) == asked))
}

/// Runs `body` while all other vCPUs wait for [`ask_all`].
fn with_all(body: impl FnOnce() -> Verdict) -> Verdict {
    if cpu::count() < 2 {
        skip!("it takes more than one vCPU");
    }
    ASKED.store(0, Ordering::SeqCst);
    ANSWERED.iter().for_each(|answered| answered.store(0, Ordering::SeqCst));
    for index in 1..cpu::count() {
        check_equal!(cpu::start(index, answer), Ok(()), "CPU {index}");
    }
    let verdict = body();
    ASKED.store(u64::MAX, Ordering::SeqCst);
    for index in 1..cpu::count() {
        check!(cpu::wait_off(index), "CPU {index} does not end");
    }
    verdict
}

/// The hypervisor stores other code into a page that is executable on every vCPU.
fn p6_a7_rewritten_by_the_host() -> Verdict {
    let place = fresh();
    put_and_publish(place, 1);
    // The reply is the value behind "1 ": that makes six bytes before the code.
    let code = place + 8;
    put_and_publish(code, 1);
    let x = guest::low(0x1e, 0xc943_5052, [0; 3]);
    let channel = [x[3] >> 16, x[4], x[5]];
    with_all(|| {
        check!(ask_all(code), "not all vCPUs answer");
        for (value, times) in (0x123..).zip(0..4) {
            let mut set = *b"info-set guestinfo.code 12345678";
            set[24..28].copy_from_slice(&mov(value).to_le_bytes());
            set[28..].copy_from_slice(&RET.to_le_bytes());
            let mut reply = [0; 8];
            check_equal!(guest::ask(&set, &mut reply), Ok(&b"1 "[..]), "info-set");
            let get = b"info-get guestinfo.code";
            let _ = guest::low(0x1_001e, get.len() as u64, channel);
            for part in get.chunks(4) {
                let word = part.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
                let _ = guest::low(0x2_001e, word, channel);
            }
            check_equal!(guest::low(0x3_001e, 0, channel)[1], 10, "length of the reply");
            let mut status = 0;
            let counts = counted(|| status = receive(channel, code - 2, 10));
            check_equal!(status, 0x1_0000, "status of the reply");
            let taken = Counts { taken: 1, executable: u64::MAX, ..Counts::default() };
            check_equal!(counts, taken, "the hypervisor stores into code, time {times}");
            let mut all = false;
            let counts = counted(|| all = ask_all(code));
            check!(all, "not all vCPUs answer");
            for (index, found) in FOUND.iter().enumerate().take(cpu::count()) {
                check_equal!(found.load(Ordering::SeqCst), u64::from(value), "the code on vCPU {index}");
            }
            // One maintenance; several may have exited for it.
            let one = fetched(1);
            check!(counts.execution >= 1, "nobody exited");
            check_equal!(Counts { execution: 1, ..counts }, one, "the fetches behind it");
        }
        Ok(())
    })?;
    check_equal!(guest::low(0x6_001e, 0, channel)[2], 0x1_0000, "status of CLOSE");
    Ok(())
}

/// That the fault stays whatever CTR_EL0 says, and only the maintenance is left out, all tests here show; this one says what is
/// expected on this machine.
fn p6_a8_what_ctr_says() -> Verdict {
    let place = fresh();
    put_and_publish(place, 3);
    let counts = counted(|| _ = run(place));
    check_equal!(counts.execution, 1, "exits");
    check_equal!((counts.lines, counts.emptied), maintenance(1), "lines cleaned, caches emptied");
    if has("always") {
        check_equal!((counts.lines, counts.emptied), (64, 1), "with all maintenance");
    }
    Ok(())
}

fn p6_a10_one_page_of_a_block() -> Verdict {
    let place = fresh();
    for page in [100, 99, 101, 0, 511] {
        put_and_publish(place + page * PAGE, 9);
    }
    for page in [100, 99, 101, 0, 511] {
        let counts = counted(|| _ = run(place + page * PAGE));
        check_equal!(counts, fetched(1), "page {page}");
    }
    Ok(())
}

fn p6_a12_cpus_at_once() -> Verdict {
    const PAGES: u64 = 32;
    let place = fresh();
    (0..PAGES).for_each(|page| put_and_publish(place + page * PAGE, 1000 + page as u32));
    with_all(|| {
        // Their own code becomes executable.
        check!(ask_all(place), "not all vCPUs answer");
        for page in 1..PAGES {
            let mut all = false;
            let counts = counted(|| all = ask_all(place + page * PAGE));
            check!(all, "a vCPU is stuck at page {page}");
            for (index, found) in FOUND.iter().enumerate().take(cpu::count()) {
                check_equal!(found.load(Ordering::SeqCst), 1000 + page, "page {page} on vCPU {index}");
            }
            check!((1..=cpu::count() as u64).contains(&counts.execution), "page {page}: {counts:?}");
            check_equal!(Counts { execution: 1, ..counts }, fetched(1), "one maintenance, page {page}");
        }
        Ok(())
    })
}

/// Accesses that the syndrome does not describe, to blocks that are not mapped.
fn p6_a13_without_syndrome() -> Verdict {
    // DC ZVA X0; LDP X1, X2, [X0]; LDXR X2, [X0]; STR X1, [X0], #8; STR X1, [X0, #8]!; STR Q0, [X0].
    let opcodes = [sys(3, 7, 4, 1), 0xa940_0801, 0xc85f_7c02, 0xf800_8401, 0xf800_8c01, 0x3d80_0000];
    for opcode in opcodes {
        // Once, so that the runtime's own slot for it is executable (in a strict VM: again).
        let place = memory::pages(1);
        check!(execute(opcode, &mut [place, 7, 7, 0, 0, 0, 0, 0]).is_ok(), "{opcode:#x} on a page that is mapped");
        let place = fresh();
        let mut x = [place, 7, 7, 0, 0, 0, 0, 0];
        let mut result = Ok(());
        let counts = counted(|| result = execute(opcode, &mut x));
        check_equal!(result, Ok(()), "{opcode:#x}");
        // In a strict VM writing the instruction into its slot takes two exits more.
        let expected = if has("strict") { (2, 1) } else { (1, 0) };
        check_equal!((counts.memory, counts.execution), expected, "{opcode:#x}");
    }
    Ok(())
}

/// Code that is replaced and executed without any maintenance, many times. With caches that agree, as here, it works anyway; in a
/// strict VM it is seen to, by two exits each time.
fn p6_a15_no_maintenance() -> Verdict {
    const TIMES: u32 = 200;
    let place = fresh();
    put_and_publish(place, 0);
    run(place);
    let mut wrong = None;
    let counts = counted(|| {
        for value in 0..TIMES {
            put(place, value);
            if run(place) != u64::from(value) {
                wrong = wrong.or(Some(value));
            }
        }
    });
    check_equal!(wrong, None, "the first that was executed wrongly");
    let turns = if has("strict") { u64::from(TIMES) } else { 0 };
    check_equal!((counts.memory, counts.execution, counts.granted), (turns, turns, turns), "exits");
    Ok(())
}

/// Code that stores into its own page.
fn p6_a15_code_beside_data() -> Verdict {
    let place = fresh();
    // STR X0, [X0]; MOV W0, #1; RET.
    for (offset, word) in [(0, 0xf900_0000), (4, mov(1)), (8, RET)] {
        memory::write32(place + offset, word);
        publish(place + offset);
    }
    let data = place + 0x800;
    let first = counted(|| _ = memory::call_with(place, data));
    check_equal!(memory::read64(data), data, "what it stored");
    if has("strict") {
        // It tried by turns, until the hypervisor saw that nothing came of it.
        check!(first.execution + first.memory <= 16, "exits: {first:?}");
        check!(first.memory > 1, "it was never refused: {first:?}");
    } else {
        check_equal!(first, fetched(1), "one fetch");
    }
    let then = counted(|| {
        for _ in 0..1000 {
            memory::call_with(place, data);
        }
    });
    check_equal!(then, Counts::default(), "a thousand times more");
    Ok(())
}

/// A block of which three quarters are executed becomes executable as a whole, and one entry again. In a strict VM what was not
/// executed stays writable.
fn most_of_a_block() -> Verdict {
    let place = fresh();
    (0..BLOCK).step_by(PAGE as usize).for_each(|offset| put_and_publish(place + offset, 4));
    let counts = counted(|| (0..384).for_each(|page| _ = run(place + page * PAGE)));
    let (pages, blocks) = if has("strict") { (384, 0) } else { (512, 1) };
    let (lines, _) = maintenance(pages);
    check_equal!((counts.execution, counts.granted, counts.joined), (384, pages, blocks), "exits, pages, blocks");
    check_equal!(counts.lines, lines, "lines");
    let counts = counted(|| (384..512).for_each(|page| _ = run(place + page * PAGE)));
    check_equal!(counts.execution, 512 - pages, "exits for the rest of the block");
    Ok(())
}
