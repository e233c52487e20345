//! The enclave device: an enclave made of this guest's memory, what it computes, and what neither side can do to the other.
//!
//! `enclave = true` in the site file. The enclave's code is a page of words: its first argument chooses what it does.
//!
//! With `role=` it does one thing that somebody else has a hand in:
//!
//! | role | what it does |
//! |---|---|
//! | costs | prints what a call and a page take, for the bench |
//! | gone | makes an enclave, waits until it is gone, and makes another one of a block that may be still to come |
//! | paused | lets CPU 1 call an enclave that never returns, again and again, until something is typed |
//! | scrubbed | makes enclaves that are gone a moment later |
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use abi::enclave::{
    COMMAND_SIZE, COMPLETION_SIZE, ENCLAVE_BASE, EnclaveCommand, EnclaveCompletion, EnclaveOpcode, EnclaveStatus, ID,
    flags, interrupt as raised, register, rights, status_bits,
};
use payload_rt::fault::{self, FSC_EXTERNAL};
use payload_rt::test::Verdict;
use payload_rt::virtio::{self, BufferDirection};
use payload_rt::{
    check, check_equal, cpu, fdt, gic, interrupt, machine, memory, random, skip, sysreg, test, tests, timer,
};
use sha2::{Digest, Sha256};

#[path = "enclave/program.rs"]
mod program;
#[path = "enclave/roles.rs"]
mod roles;

use program::{CALL_OUTSIDE, COMPUTE, COUNT, COUNTER, FLOAT, LOAD, PROGRAM, REGISTERS, SPIN, STORE, UNKNOWN};
use roles::{costs, gone, paused, scrubbed};

payload_rt::entry!(main);

/// Where it is.
const DEVICE: u64 = 0x0916_0000;
const INTID: u32 = 43;
/// The rings: 256 commands, 256 completions.
const RINGS: u64 = 0x4380_0000;
const COMMANDS: u64 = RINGS;
const COMPLETIONS: u64 = RINGS + 0x4000;
const BITS: u32 = 8;
const ENTRIES: u32 = 1 << BITS;
/// The page with the code, what the measurement is expected to be, and where it is written.
const CODE: u64 = RINGS + 0x8000;
const EXPECTED: u64 = RINGS + 0x9000;
const WRITTEN: u64 = RINGS + 0xa000;
/// What is given to enclaves.
const BLOCK: u64 = 2 << 20;
const MEMORY: u64 = 0x4280_0000;
const OTHER: u64 = 0x42a0_0000;
/// A page of the enclave that it may write.
const DATA: u64 = 0x1000;

fn main() {
    match machine::option("role") {
        Some("costs") => test::run(&tests!("enclave": costs)),
        Some("gone") => test::run(&tests!("enclave": gone)),
        Some("paused") => test::run(&tests!("enclave": paused)),
        Some("scrubbed") => test::run(&tests!("enclave": scrubbed)),
        _ => all(),
    }
}

fn all() {
    test::run(&tests!("enclave":
        p2_a1_the_tree_names_it, p2_a4_the_tail_inserts, p2_a5_a_whole_life, p2_a5_the_interrupt_comes,
        p2_a5_an_interrupted_enclave_goes_on, p2_a6_the_guest_cannot_touch_it, p2_a6_it_cannot_touch_the_guest,
        p2_a6_no_device_reaches_it, p2_a6_registers_are_apart, p2_a6_two_live_side_by_side, p2_a7_another_measurement_is_refused,
        p2_a8_what_is_wrong_gets_a_status, p2_a8_random_commands, p2_a11_nothing_is_left,
        p2_a11_nothing_is_left_of_a_run, p2_a5_an_interrupt_ends_one_call, a_full_ring_of_calls_is_worked_off, p2_a12_two_submitters,
        p2_a12_calls_beside_ends,
    ));
}

macro_rules! need_device {
    () => {
        if machine::is_reference() {
            skip!("the bare machine has no such device");
        }
        set_up();
    };
}

fn write(offset: u64, value: u32) {
    memory::write32(DEVICE + offset, value);
}

fn read(offset: u64) -> u32 {
    memory::read32(DEVICE + offset)
}

/// Where the driver is in the rings.
static TAIL: AtomicU32 = AtomicU32::new(0);
static HEAD: AtomicU32 = AtomicU32::new(0);

/// Ends all that there is, and begins with empty rings.
fn set_up() {
    write(register::RESET, 1);
    let _ = timer::wait_until(5000, || read(register::STATUS) == 0);
    describe();
    for (number, word) in (0..).zip(PROGRAM) {
        memory::write32(CODE + number * 4, word);
    }
}

fn describe() {
    let rings = [
        (register::CQ_BASE_LOW, COMMANDS as u32),
        (register::CQ_BASE_HIGH, 0),
        (register::CQ_SIZE, BITS),
        (register::RQ_BASE_LOW, COMPLETIONS as u32),
        (register::RQ_BASE_HIGH, 0),
        (register::RQ_SIZE, BITS),
    ];
    rings.into_iter().for_each(|(offset, value)| write(offset, value));
    TAIL.store(0, Ordering::SeqCst);
    HEAD.store(0, Ordering::SeqCst);
}

fn put(bytes: &[u8; COMMAND_SIZE]) {
    let tail = TAIL.load(Ordering::SeqCst);
    for (number, word) in (0..).zip(bytes.as_chunks::<8>().0) {
        memory::write64(COMMANDS + u64::from(tail) * COMMAND_SIZE as u64 + number * 8, u64::from_le_bytes(*word));
    }
    TAIL.store((tail + 1) % ENTRIES, Ordering::SeqCst);
}

fn ring() {
    sysreg::dsb();
    write(register::CQ_TAIL, TAIL.load(Ordering::SeqCst));
}

/// The next completion, if it comes.
fn completion() -> Option<EnclaveCompletion> {
    let head = HEAD.load(Ordering::SeqCst);
    if !timer::wait_until(20_000, || read(register::RQ_TAIL) != head) {
        return None;
    }
    let mut bytes = [0; COMPLETION_SIZE];
    for (number, word) in (0..).zip(bytes.as_chunks_mut::<8>().0) {
        *word = memory::read64(COMPLETIONS + u64::from(head) * COMPLETION_SIZE as u64 + number * 8).to_le_bytes();
    }
    HEAD.store((head + 1) % ENTRIES, Ordering::SeqCst);
    write(register::RQ_HEAD, (head + 1) % ENTRIES);
    Some(EnclaveCompletion::from_bytes(&bytes))
}

/// Has a command done: the status, the value, and which enclave. A call that was interrupted, as any can be on a busy host, goes on.
fn told(command: &EnclaveCommand) -> Option<(EnclaveStatus, u64, u64)> {
    let mut told = told_once(command)?;
    while told.0 == EnclaveStatus::Interrupted {
        told = told_once(&resume(command.enclave, 0))?;
    }
    Some(told)
}

/// The same of a command that may be interrupted.
fn told_once(command: &EnclaveCommand) -> Option<(EnclaveStatus, u64, u64)> {
    put(&command.to_bytes());
    ring();
    let told = completion().filter(|told| told.cookie == command.cookie)?;
    Some((EnclaveStatus::from_number(told.status)?, told.value, told.enclave))
}

fn status(command: &EnclaveCommand) -> Option<EnclaveStatus> {
    told(command).map(|(status, ..)| status)
}

fn command(opcode: EnclaveOpcode, enclave: u64) -> EnclaveCommand {
    static COOKIE: AtomicU32 = AtomicU32::new(1);
    EnclaveCommand { enclave, ..EnclaveCommand::new(opcode, COOKIE.fetch_add(1, Ordering::SeqCst).into()) }
}

fn create(memory: u64) -> EnclaveCommand {
    let payload_length = BLOCK as u32;
    EnclaveCommand { payload: memory, payload_length, arguments: [8, 0, 0], ..command(EnclaveOpcode::Create, 0) }
}

fn add_code(id: u64) -> EnclaveCommand {
    let arguments = [0, rights::READ | rights::EXECUTE, 0];
    EnclaveCommand { payload: CODE, payload_length: 0x1000, arguments, ..command(EnclaveOpcode::AddPages, id) }
}

fn add_data(id: u64) -> EnclaveCommand {
    let arguments = [DATA, rights::READ | rights::WRITE, 0];
    let flags = flags::ZEROES;
    EnclaveCommand { flags, payload_length: 0x1000, arguments, ..command(EnclaveOpcode::AddPages, id) }
}

fn finalise(id: u64) -> EnclaveCommand {
    EnclaveCommand { payload: EXPECTED, payload_length: 32, ..command(EnclaveOpcode::Finalise, id) }
}

fn enter(id: u64, arguments: [u64; 3]) -> EnclaveCommand {
    EnclaveCommand { arguments, ..command(EnclaveOpcode::Enter, id) }
}

fn resume(id: u64, answer: u64) -> EnclaveCommand {
    EnclaveCommand { arguments: [answer, 0, 0], ..command(EnclaveOpcode::Resume, id) }
}

/// What the device measures, computed here from what core/enclave says of it.
fn measure() -> [u8; 32] {
    let mut sum = Sha256::new();
    let mut record = |name: &[u8; 8], numbers: [u64; 3]| {
        let mut bytes = [0; 64];
        let words = [*name].into_iter().chain(numbers.map(u64::to_le_bytes));
        bytes.as_chunks_mut::<8>().0.iter_mut().zip(words).for_each(|(place, word)| *place = word);
        sum.update(bytes);
    };
    record(b"CREATE\0\0", [BLOCK, 8, 0]);
    record(b"PAGE\0\0\0\0", [0, rights::READ | rights::EXECUTE, 1]);
    let mut words = PROGRAM.into_iter().chain(core::iter::repeat(0));
    for _ in 0..1024 {
        sum.update(words.next().unwrap_or(0).to_le_bytes());
    }
    let mut record = |name: &[u8; 8], numbers: [u64; 3]| {
        let mut bytes = [0; 64];
        let words = [*name].into_iter().chain(numbers.map(u64::to_le_bytes));
        bytes.as_chunks_mut::<8>().0.iter_mut().zip(words).for_each(|(place, word)| *place = word);
        sum.update(bytes);
    };
    record(b"PAGE\0\0\0\0", [DATA, rights::READ | rights::WRITE, 1]);
    sum.update([0; 4096]);
    sum.finalize().into()
}

fn expect(measurement: [u8; 32]) {
    for (number, word) in (0..).zip(measurement.as_chunks::<8>().0) {
        memory::write64(EXPECTED + number * 8, u64::from_le_bytes(*word));
    }
}

/// An enclave of the block at `memory` that can be called.
fn made(memory: u64) -> Result<u64, test::Stop> {
    let (done, _, id) = told(&create(memory)).unwrap_or((EnclaveStatus::Mechanism, 0, 0));
    check_equal!(done, EnclaveStatus::Done, "CREATE");
    expect(measure());
    for (command, what) in [(add_code(id), "code"), (add_data(id), "data"), (finalise(id), "FINALISE")] {
        check_equal!(status(&command), Some(EnclaveStatus::Done), "{what}");
    }
    Ok(id)
}

fn p2_a1_the_tree_names_it() -> Verdict {
    need_device!();
    check_equal!(read(register::ID), ID, "ID");
    check_equal!(read(register::VERSION), 1, "VERSION");
    check_equal!(read(register::FEATURES), 0xff, "FEATURES");
    let mut found = false;
    let _ = fdt::walk(machine::device_tree(), |_, node, name, value| {
        found |= node == "enclave@9160000" && name == "compatible" && fdt::string(value) == abi::enclave::COMPATIBLE;
    });
    check!(found, "the device tree does not name it");
    Ok(())
}

fn p2_a4_the_tail_inserts() -> Verdict {
    need_device!();
    (0..3).for_each(|_| put(&command(EnclaveOpcode::Query, 0).to_bytes()));
    sysreg::dsb();
    timer::delay(1000);
    check_equal!((read(register::CQ_HEAD), read(register::RQ_TAIL)), (0, 0), "heads before the tail is written");
    ring();
    check_equal!((read(register::CQ_HEAD), read(register::RQ_TAIL)), (3, 3), "heads behind it");
    for _ in 0..3 {
        let value = completion().map(|told| told.value & 0xffff_ffff);
        check_equal!(value, Some(0xff), "the value of QUERY");
    }
    Ok(())
}

fn p2_a5_a_whole_life() -> Verdict {
    need_device!();
    let id = made(MEMORY)?;
    let measurement =
        EnclaveCommand { payload: WRITTEN, payload_length: 32, ..command(EnclaveOpcode::Measurement, id) };
    check_equal!(status(&measurement), Some(EnclaveStatus::Done), "MEASUREMENT");
    let same = (0..4).all(|word| memory::read64(WRITTEN + word * 8) == memory::read64(EXPECTED + word * 8));
    check!(same, "the measurement is another one");
    for number in [3, 1000] {
        check_equal!(
            told(&enter(id, [COMPUTE, number, 5])),
            Some((EnclaveStatus::Done, number * number + 5, id)),
            "what it computes"
        );
    }
    check_equal!(told(&enter(id, [CALL_OUTSIDE, 41, 0])), Some((EnclaveStatus::Outcall, 42, id)), "its call outside");
    check_equal!(status(&enter(id, [COMPUTE, 0, 0])), Some(EnclaveStatus::State), "a call while it waits");
    check_equal!(told(&resume(id, 21)), Some((EnclaveStatus::Done, 42, id)), "what it makes of the answer");
    let data = ENCLAVE_BASE + DATA;
    check_equal!(told(&enter(id, [STORE, data, 77])), Some((EnclaveStatus::Done, 77, id)), "a store");
    check_equal!(told(&enter(id, [LOAD, data, 0])), Some((EnclaveStatus::Done, 77, id)), "its memory stays");
    check_equal!(status(&command(EnclaveOpcode::Destroy, id)), Some(EnclaveStatus::Done), "DESTROY");
    check_equal!(status(&enter(id, [COMPUTE, 0, 0])), Some(EnclaveStatus::Unknown), "a call afterwards");
    Ok(())
}

fn p2_a5_the_interrupt_comes() -> Verdict {
    need_device!();
    gic::enable(INTID);
    write(register::INT_ACK, raised::ALL);
    write(register::INT_MASK, 0);
    check!(!gic::read_bit(gic::ISPENDR, INTID), "the interrupt is pending before its time");
    put(&command(EnclaveOpcode::Query, 0).to_bytes());
    ring();
    check!(gic::read_bit(gic::ISPENDR, INTID), "the interrupt does not come");
    write(register::INT_ACK, raised::COMPLETION);
    check!(!gic::read_bit(gic::ISPENDR, INTID), "the interrupt does not go");
    gic::disable(INTID);
    Ok(())
}

/// Lets this CPU's timer interrupt what it is told in a moment.
fn told_for_a_moment(command: &EnclaveCommand) -> Option<(EnclaveStatus, u64, u64)> {
    sysreg::cntv_cval_el0::write(timer::now() + timer::microseconds(3000));
    sysreg::cntv_ctl_el0::write(1);
    let told = told_once(command);
    sysreg::cntv_ctl_el0::write(0);
    told
}

/// It spins for ever: this CPU's timer ends that, and the enclave can be gone on with, or not. One that counts, in a register and in memory,
/// comes to its end with the same in both, however often it was interrupted.
fn p2_a5_an_interrupted_enclave_goes_on() -> Verdict {
    need_device!();
    let id = made(MEMORY)?;
    gic::enable(timer::VIRTUAL_PPI);
    for command in [enter(id, [SPIN, 0, 0]), resume(id, 0), resume(id, 5)] {
        let told = told_for_a_moment(&command).map(|(status, ..)| status);
        check_equal!(told, Some(EnclaveStatus::Interrupted), "how a call ends that does not");
    }
    check_equal!(status(&command(EnclaveOpcode::Destroy, id)), Some(EnclaveStatus::Done), "DESTROY");
    let id = made(MEMORY)?;
    let mut told = told_for_a_moment(&enter(id, [COUNT, GOAL, ENCLAVE_BASE + DATA]));
    let mut interrupted = 0;
    while told.is_some_and(|(status, ..)| status == EnclaveStatus::Interrupted) && interrupted < 100_000 {
        interrupted += 1;
        told = told_for_a_moment(&resume(id, 0));
    }
    gic::disable(timer::VIRTUAL_PPI);
    check_equal!(told, Some((EnclaveStatus::Done, GOAL, id)), "what it has counted, interrupted {interrupted} times");
    check!(interrupted >= 2, "it was interrupted {interrupted} times on its way to {GOAL}");
    Ok(())
}

fn p2_a6_the_guest_cannot_touch_it() -> Verdict {
    need_device!();
    memory::write64(MEMORY + 0x1_0000, 0x5ec_2e7);
    let id = made(MEMORY)?;
    for at in [MEMORY, MEMORY + DATA, MEMORY + 0x1_0000, MEMORY + BLOCK - 8] {
        let outcome = fault::catch(|| memory::read64(at)).map_err(|fault| fault.status());
        check_equal!(outcome, Err(FSC_EXTERNAL), "a load from {at:#x}");
        let outcome = fault::catch(|| memory::write64(at, 1)).map_err(|fault| fault.status());
        check_equal!(outcome, Err(FSC_EXTERNAL), "a store to {at:#x}");
    }
    // Nor by the device itself.
    let source = EnclaveCommand { payload: MEMORY, arguments: [0x2000, 1, 0], ..add_code(id) };
    check_equal!(status(&source), Some(EnclaveStatus::State), "pages behind the end of its making");
    let target = EnclaveCommand { payload: MEMORY, payload_length: 32, ..command(EnclaveOpcode::Measurement, id) };
    check_equal!(status(&target), Some(EnclaveStatus::Address), "a measurement into it");
    check_equal!(status(&create(MEMORY)), Some(EnclaveStatus::Address), "another one of its memory");
    check_equal!(told(&enter(id, [COMPUTE, 2, 1])), Some((EnclaveStatus::Done, 5, id)), "what it computes afterwards");
    Ok(())
}

fn p2_a6_it_cannot_touch_the_guest() -> Verdict {
    need_device!();
    memory::write64(WRITTEN, 0x1234);
    let places = [
        WRITTEN,
        ENCLAVE_BASE + 0x2000,
        ENCLAVE_BASE + 0x1_0000,
        ENCLAVE_BASE + BLOCK,
        0,
        0x0800_0000,
        0x0900_0000,
        DEVICE,
        u64::MAX << 12,
        // Its own code.
        ENCLAVE_BASE,
    ];
    for (number, at) in (0..).zip(places) {
        let id = made(MEMORY)?;
        check_equal!(status(&enter(id, [STORE, at, 1])), Some(EnclaveStatus::Fault), "its store to {at:#x}");
        check_equal!(status(&enter(id, [COMPUTE, 0, 0])), Some(EnclaveStatus::State), "a call behind that, {number}");
        check_equal!(status(&command(EnclaveOpcode::Destroy, id)), Some(EnclaveStatus::Done), "DESTROY");
        if at == ENCLAVE_BASE {
            continue;
        }
        let id = made(MEMORY)?;
        let told = told(&enter(id, [LOAD, at, 0])).map(|(status, value, _)| (status, value));
        check_equal!(told, Some((EnclaveStatus::Fault, 0)), "its load from {at:#x}");
        check_equal!(status(&command(EnclaveOpcode::Destroy, id)), Some(EnclaveStatus::Done), "DESTROY");
    }
    for what in [COUNTER, FLOAT, UNKNOWN] {
        let id = made(MEMORY)?;
        check_equal!(status(&enter(id, [what, 0, 0])), Some(EnclaveStatus::Fault), "what it may not do, {what}");
        check_equal!(status(&command(EnclaveOpcode::Destroy, id)), Some(EnclaveStatus::Done), "DESTROY");
    }
    check_equal!(memory::read64(WRITTEN), 0x1234, "the guest's memory");
    Ok(())
}

/// The entropy device is told to fill a buffer in the enclave.
fn p2_a6_no_device_reaches_it() -> Verdict {
    need_device!();
    let id = made(MEMORY)?;
    let Some(device) = virtio::find(virtio::ENTROPY) else { skip!("there is no entropy device") };
    check!(device.start(), "the entropy device refuses to start");
    let mut queue = device.queue(0);
    device.ready();
    queue.offer(MEMORY + DATA, 64, BufferDirection::FromDevice);
    let refused = || device.read(virtio::register::STATUS) & virtio::STATUS_NEEDS_RESET != 0;
    check!(timer::wait_until(5000, refused), "the entropy device takes a buffer that is an enclave's");
    device.write(virtio::register::STATUS, 0);
    check_equal!(
        told(&enter(id, [LOAD, ENCLAVE_BASE + DATA, 0])),
        Some((EnclaveStatus::Done, 0, id)),
        "what it finds there"
    );
    Ok(())
}

fn p2_a6_registers_are_apart() -> Verdict {
    need_device!();
    let id = made(MEMORY)?;
    sysreg::tpidr_el0::write(0x1111);
    for _ in 0..2 {
        check_equal!(
            told(&enter(id, [REGISTERS, 0, 0x3333])),
            Some((EnclaveStatus::Done, 0, id)),
            "what its registers hold"
        );
        check_equal!(sysreg::tpidr_el0::read(), 0x1111, "TPIDR_EL0");
    }
    Ok(())
}

/// Each has its own memory, registers and end.
fn p2_a6_two_live_side_by_side() -> Verdict {
    need_device!();
    let (one, two) = (made(MEMORY)?, made(OTHER)?);
    let data = ENCLAVE_BASE + DATA;
    for (id, value) in [(one, 1111), (two, 2222)] {
        check_equal!(told(&enter(id, [STORE, data, value])), Some((EnclaveStatus::Done, value, id)), "a store");
    }
    check_equal!(told(&enter(one, [CALL_OUTSIDE, 1, 0])), Some((EnclaveStatus::Outcall, 2, one)), "a call outside");
    check_equal!(told(&enter(two, [LOAD, data, 0])), Some((EnclaveStatus::Done, 2222, two)), "the other's memory");
    check_equal!(told(&enter(two, [COMPUTE, 3, 1])), Some((EnclaveStatus::Done, 10, two)), "what the other computes");
    check_equal!(told(&resume(one, 4)), Some((EnclaveStatus::Done, 8, one)), "the answer");
    check_equal!(told(&enter(one, [LOAD, data, 0])), Some((EnclaveStatus::Done, 1111, one)), "its memory");
    check_equal!(status(&command(EnclaveOpcode::Destroy, one)), Some(EnclaveStatus::Done), "DESTROY");
    check_equal!(status(&enter(one, [COMPUTE, 0, 0])), Some(EnclaveStatus::Unknown), "a call afterwards");
    check_equal!(told(&enter(two, [LOAD, data, 0])), Some((EnclaveStatus::Done, 2222, two)), "the other lives on");
    check_equal!(memory::first_not_zero(MEMORY..MEMORY + BLOCK), None, "what is left of the one");
    let outcome = fault::catch(|| memory::read64(OTHER + DATA)).map_err(|fault| fault.status());
    check_equal!(outcome, Err(FSC_EXTERNAL), "a load from the other");
    Ok(())
}

fn p2_a7_another_measurement_is_refused() -> Verdict {
    need_device!();
    let (done, _, id) = told(&create(MEMORY)).unwrap_or((EnclaveStatus::Mechanism, 0, 0));
    check_equal!(done, EnclaveStatus::Done, "CREATE");
    check_equal!(status(&enter(id, [COMPUTE, 0, 0])), Some(EnclaveStatus::State), "a call before FINALISE");
    check_equal!(status(&add_code(id)), Some(EnclaveStatus::Done), "code");
    check_equal!(status(&add_data(id)), Some(EnclaveStatus::Done), "data");
    let mut other = measure();
    if let Some(last) = other.last_mut() {
        *last ^= 1;
    }
    expect(other);
    check_equal!(status(&finalise(id)), Some(EnclaveStatus::Measurement), "FINALISE");
    check_equal!(status(&enter(id, [COMPUTE, 0, 0])), Some(EnclaveStatus::State), "a call behind it");
    expect(measure());
    check_equal!(status(&finalise(id)), Some(EnclaveStatus::State), "FINALISE once more");
    check_equal!(status(&command(EnclaveOpcode::Destroy, id)), Some(EnclaveStatus::Done), "DESTROY");
    Ok(())
}

fn p2_a8_what_is_wrong_gets_a_status() -> Verdict {
    need_device!();
    let query = command(EnclaveOpcode::Query, 0);
    let wrong = [
        (EnclaveCommand { magic: 1, ..query }, EnclaveStatus::Malformed),
        (EnclaveCommand { version: 2, ..query }, EnclaveStatus::Malformed),
        (EnclaveCommand { opcode: 12, ..query }, EnclaveStatus::Unsupported),
        (command(EnclaveOpcode::Report, 1), EnclaveStatus::Unsupported),
        (create(0), EnclaveStatus::Address),
        (create(0x0800_0000), EnclaveStatus::Address),
        (create(0x8000_0000), EnclaveStatus::Address),
        (create(1 << 45), EnclaveStatus::Address),
        (create(MEMORY + 0x1000), EnclaveStatus::Invalid),
        (EnclaveCommand { payload_length: u32::MAX, ..create(MEMORY) }, EnclaveStatus::Invalid),
        (enter(1 << 40, [0; 3]), EnclaveStatus::Unknown),
        (add_code(u64::MAX), EnclaveStatus::Unknown),
    ];
    for (number, (command, expected)) in (0..).zip(wrong) {
        check_equal!(status(&command), Some(expected), "command {number}");
    }
    let registers = [
        (register::CQ_BASE_LOW, COMMANDS as u32 + 8),
        (register::CQ_BASE_LOW, 0x0900_0000),
        (register::CQ_SIZE, 9),
        (register::RQ_BASE_LOW, COMPLETIONS as u32 + 8),
        (register::RQ_BASE_LOW, 0x0900_0000),
        (register::CQ_TAIL, ENTRIES),
    ];
    for (register, value) in registers {
        write(register, value);
        put(&query.to_bytes());
        ring();
        check_equal!(read(register::STATUS), status_bits::BROKEN, "STATUS with {register:#x} = {value:#x}");
        set_up();
    }
    check_equal!(status(&query), Some(EnclaveStatus::Done), "QUERY at the end");
    Ok(())
}

fn p2_a8_random_commands() -> Verdict {
    need_device!();
    let mut random = random::Random::new(option_seed());
    for _ in 0..100 {
        let mut cookies = [0; 100];
        for cookie in &mut cookies {
            let mut bytes = [0; COMMAND_SIZE];
            bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = random.word().to_le_bytes());
            if random.word() & 1 == 0
                && let Some(first) = bytes.first_chunk_mut()
            {
                *first = [b'V', b'S', b'E', b'C', 1, 0, (random.word() % 12) as u8, 0];
            }
            *cookie = EnclaveCommand::from_bytes(&bytes).cookie;
            put(&bytes);
        }
        ring();
        for cookie in cookies {
            let told = completion();
            check_equal!(told.map(|told| told.cookie), Some(cookie), "the cookie");
            let known = told.and_then(|told| EnclaveStatus::from_number(told.status));
            check!(known.is_some_and(|status| (status as i32) < 0), "the status is {known:?}");
        }
    }
    Ok(())
}

fn option_seed() -> u64 {
    machine::option_number("seed", 0x1234_5678)
}

/// In each state the device is reset, or the enclave destroyed: the block is the guest's again, and there are zeroes in it.
fn p2_a11_nothing_is_left() -> Verdict {
    need_device!();
    for state in 0..6 {
        for by_reset in [false, true] {
            for at in (MEMORY..MEMORY + BLOCK).step_by(0x1000) {
                memory::write64(at, 0x5ec_2e7);
            }
            let (_, _, id) = told(&create(MEMORY)).unwrap_or((EnclaveStatus::Mechanism, 0, 0));
            expect(measure());
            if state >= 1 {
                check_equal!(status(&add_code(id)), Some(EnclaveStatus::Done), "code");
                check_equal!(status(&add_data(id)), Some(EnclaveStatus::Done), "data");
            }
            if state >= 2 {
                check_equal!(status(&finalise(id)), Some(EnclaveStatus::Done), "FINALISE");
                let store = enter(id, [STORE, ENCLAVE_BASE + DATA, 0x5ec_2e7]);
                check_equal!(status(&store), Some(EnclaveStatus::Done), "a store");
            }
            if state == 3 {
                let outcall = enter(id, [CALL_OUTSIDE, 0, 0]);
                check_equal!(status(&outcall), Some(EnclaveStatus::Outcall), "a call outside");
            }
            if state == 4 {
                check_equal!(status(&enter(id, [LOAD, 0, 0])), Some(EnclaveStatus::Fault), "a fault");
            }
            if state == 5 {
                gic::enable(timer::VIRTUAL_PPI);
                let told = told_for_a_moment(&enter(id, [SPIN, 0, 0])).map(|(status, ..)| status);
                gic::disable(timer::VIRTUAL_PPI);
                check_equal!(told, Some(EnclaveStatus::Interrupted), "a call that does not end");
            }
            if by_reset {
                set_up();
            } else {
                check_equal!(status(&command(EnclaveOpcode::Destroy, id)), Some(EnclaveStatus::Done), "DESTROY");
            }
            let left = memory::first_not_zero(MEMORY..MEMORY + BLOCK);
            check_equal!(left, None, "what is left of an enclave in state {state}, by a reset: {by_reset}");
        }
    }
    Ok(())
}

/// What CPU 1 calls, and whether its timer ends that.
static CALLED: AtomicU32 = AtomicU32::new(0);
static IS_TIMED: AtomicBool = AtomicBool::new(false);

fn spin_there(cpu: usize) {
    put(&enter(CALLED.load(Ordering::SeqCst).into(), [SPIN, 0, 0]).to_bytes());
    if IS_TIMED.load(Ordering::SeqCst) {
        ring_with_a_timer(cpu);
    } else {
        ring();
    }
}

/// The timer fires once, and its interrupt is taken as soon as this CPU gets to it.
fn ring_with_a_timer(_cpu: usize) {
    gic::enable(timer::VIRTUAL_PPI);
    sysreg::cntv_cval_el0::write(timer::now() + timer::microseconds(20_000));
    sysreg::cntv_ctl_el0::write(1);
    cpu::unmask_interrupts();
    ring();
    cpu::mask_interrupts();
    sysreg::cntv_ctl_el0::write(0);
    gic::disable(timer::VIRTUAL_PPI);
}

/// Lets CPU 1 call this enclave, which spins. It is in there when this comes back.
fn let_spin(id: u64, is_timed: bool) -> Verdict {
    CALLED.store(id as u32, Ordering::SeqCst);
    IS_TIMED.store(is_timed, Ordering::SeqCst);
    let head = read(register::CQ_HEAD);
    check_equal!(cpu::start(1, spin_there), Ok(()), "CPU_ON of CPU 1");
    check!(timer::wait_until(20_000, || read(register::CQ_HEAD) != head), "CPU 1 calls nothing");
    Ok(())
}

/// The enclave never ends, and its CPU has no interrupt: a reset of the device by another CPU ends it all the same.
fn p2_a11_nothing_is_left_of_a_run() -> Verdict {
    need_device!();
    if cpu::count() < 2 {
        skip!("there is one CPU");
    }
    for round in 0..10 {
        let id = made(MEMORY)?;
        let_spin(id, false)?;
        timer::delay(round * 100);
        write(register::RESET, 1);
        let is_over = timer::wait_until(5000, || read(register::STATUS) == 0);
        check!(is_over, "the device's reset waits for an enclave that never ends");
        check!(cpu::wait_off(1), "CPU 1 does not come back");
        check_equal!(memory::first_not_zero(MEMORY..MEMORY + BLOCK), None, "what is left of it, in round {round}");
        set_up();
    }
    Ok(())
}

/// CPU 1 makes calls that never end, one behind the other in the ring. Its timer ends one of them, and the next one begins when CPU 1 has taken
/// that: not all of them end by it.
fn p2_a5_an_interrupt_ends_one_call() -> Verdict {
    need_device!();
    if cpu::count() < 2 {
        skip!("there is one CPU");
    }
    let id = made(MEMORY)?;
    interrupt::clear();
    put(&enter(id, [SPIN, 0, 0]).to_bytes());
    (0..100).for_each(|_| put(&resume(id, 0).to_bytes()));
    let before = read(register::RQ_TAIL);
    check_equal!(cpu::start(1, ring_with_a_timer), Ok(()), "CPU_ON of CPU 1");
    check!(timer::wait_until(20_000, || interrupt::seen(1, timer::VIRTUAL_PPI) > 0), "CPU 1 does not take its timer");
    let ended = || read(register::RQ_TAIL).wrapping_sub(before) % ENTRIES;
    check!(timer::wait_until(20_000, || ended() > 0), "no call ends");
    check!(ended() <= 5, "{} calls have ended by one interrupt", ended());
    write(register::RESET, 1);
    check!(timer::wait_until(20_000, || read(register::STATUS) == 0), "the reset waits for a call");
    check!(cpu::wait_off(1), "CPU 1 does not come back");
    set_up();
    Ok(())
}

/// More calls in one ring than a vCPU makes in one go.
fn a_full_ring_of_calls_is_worked_off() -> Verdict {
    need_device!();
    let id = made(MEMORY)?;
    // On a busy host one of them may be interrupted, and those behind it are none then.
    for _ in 0..20 {
        let all: [EnclaveCommand; ENTRIES as usize - 1] =
            core::array::from_fn(|number| enter(id, [COMPUTE, number as u64, 1]));
        all.iter().for_each(|command| put(&command.to_bytes()));
        ring();
        let mut done = 0;
        for (number, command) in (0..).zip(&all) {
            let told = completion();
            check_equal!(told.map(|told| told.cookie), Some(command.cookie), "the cookie of call {number}");
            if told.is_some_and(|told| (told.status, told.value) == (0, number * number + 1)) {
                done += 1;
            }
        }
        if done == all.len() {
            return Ok(());
        }
        let _ = told(&resume(id, 0));
    }
    check!(false, "in no ring all calls are made");
    Ok(())
}

/// While CPU 1 is in an enclave, this one ends another one and then that one: their turn comes when the call was interrupted.
fn p2_a12_calls_beside_ends() -> Verdict {
    need_device!();
    if cpu::count() < 2 {
        skip!("there is one CPU");
    }
    for round in 0..5 {
        let (one, two) = (made(MEMORY)?, made(OTHER)?);
        let_spin(one, true)?;
        for id in [two, one, one] {
            put(&command(EnclaveOpcode::Destroy, id).to_bytes());
        }
        // This CPU has no interrupt that would end the call: even if CPU 1 has not begun with it, it is CPU 1's.
        ring();
        let expected = [EnclaveStatus::Interrupted, EnclaveStatus::Done, EnclaveStatus::Done, EnclaveStatus::Unknown];
        for (expected, id) in expected.into_iter().zip([one, two, one, one]) {
            let told = completion().map(|told| (EnclaveStatus::from_number(told.status), told.enclave));
            check_equal!(told, Some((Some(expected), id)), "what becomes of it in round {round}");
        }
        check!(cpu::wait_off(1), "CPU 1 does not come back");
        check_equal!(memory::first_not_zero(MEMORY..OTHER + BLOCK), None, "what is left of them, in round {round}");
    }
    Ok(())
}

/// Held by the CPU that puts a command into the ring and rings.
static LOCK: AtomicBool = AtomicBool::new(false);
static READY: AtomicU32 = AtomicU32::new(0);
const EACH: u64 = 50;
/// To what an enclave counts: further than it comes within a moment.
const GOAL: u64 = 5_000_000;

fn submit(cpu: usize) {
    READY.fetch_add(1, Ordering::SeqCst);
    while READY.load(Ordering::SeqCst) < 2 {
        cpu::relax();
    }
    for number in 0..EACH {
        while LOCK.swap(true, Ordering::SeqCst) {
            cpu::relax();
        }
        put(&EnclaveCommand { cookie: (cpu as u64) << 32 | number, ..command(EnclaveOpcode::Query, 0) }.to_bytes());
        ring();
        LOCK.store(false, Ordering::SeqCst);
    }
    READY.fetch_add(1, Ordering::SeqCst);
}

fn p2_a12_two_submitters() -> Verdict {
    need_device!();
    if cpu::count() < 2 {
        skip!("there is one CPU");
    }
    READY.store(0, Ordering::SeqCst);
    check_equal!(cpu::start(1, submit), Ok(()), "CPU_ON of CPU 1");
    submit(0);
    check!(timer::wait_until(20_000, || READY.load(Ordering::SeqCst) == 4), "CPU 1 does not come to its end");
    let mut next = [0; 2];
    for _ in 0..2 * EACH {
        let cookie = completion().map_or(u64::MAX, |told| told.cookie);
        let of = (cookie >> 32) as usize;
        check_equal!(Some(cookie & 0xffff_ffff), next.get(of).copied(), "the next cookie of CPU {of}");
        next.iter_mut().skip(of).take(1).for_each(|next| *next += 1);
    }
    check_equal!(next, [EACH; 2], "how many came");
    check!(cpu::wait_off(1), "CPU 1 does not go off");
    Ok(())
}
