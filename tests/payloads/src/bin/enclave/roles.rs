//! What the payload does when somebody else has a hand in it, one thing each (`role=`).

use abi::enclave::{EnclaveOpcode, EnclaveStatus, interrupt as raised, register, status_bits};
use payload_rt::test::Verdict;
use payload_rt::{check, check_equal, cpu, memory, println, random, timer, uart};

use super::program::{CALL_OUTSIDE, COMPUTE, SPIN};
use super::{
    BLOCK, ENTRIES, MEMORY, OTHER, RINGS, add_code, command, completion, create, enter, made, put, read, resume, ring,
    set_up, status, told, write,
};

/// It is saved and restored, or its state is taken out and put in: its enclave is gone by that. It makes one of memory that has not come yet.
pub(crate) fn gone() -> Verdict {
    set_up();
    // Up to the rings.
    const FILLED: u64 = (RINGS - OTHER) / BLOCK;
    // Random, or a file of them would be small, and all of it there at once.
    let mut random = random::Random::new(1);
    for at in (OTHER..OTHER + FILLED * BLOCK).step_by(8) {
        memory::write64(at, random.word() | 1);
    }
    let id = made(MEMORY)?;
    check_equal!(told(&enter(id, [CALL_OUTSIDE, 1, 0])), Some((EnclaveStatus::Outcall, 2, id)), "a call outside");
    write(register::INT_ACK, raised::ALL);
    println!("enclave: ready.");
    while read(register::STATUS) & status_bits::GONE == 0 {
        cpu::relax();
    }
    // All of it, while much of it is still to come.
    let last = OTHER + (FILLED - 1) * BLOCK;
    let (created, _, other) = told(&create(last)).unwrap_or((EnclaveStatus::Mechanism, 0, 0));
    check_equal!(created, EnclaveStatus::Done, "CREATE of what may be still to come");
    check_equal!(other, id + 1, "its identifier");
    check!(read(register::INT_STATUS) & raised::STATUS != 0, "there is no interrupt");
    check_equal!(read(register::STATUS), status_bits::GONE, "STATUS");
    for command in [resume(id, 0), enter(id, [0; 3]), command(EnclaveOpcode::Destroy, id)] {
        check_equal!(status(&command), Some(EnclaveStatus::Unknown), "what becomes of the one that is gone");
    }
    check_equal!(memory::first_not_zero(MEMORY..MEMORY + BLOCK), None, "what its memory holds");
    set_up();
    check_equal!(memory::first_not_zero(last..last + BLOCK), None, "what the other's memory holds");
    let mut random = random::Random::new(1);
    for at in (OTHER..last).step_by(8) {
        check_equal!(memory::read64(at), random.word() | 1, "what is beside it, at {at:#x}");
    }
    let id = made(MEMORY)?;
    check_equal!(told(&enter(id, [COMPUTE, 2, 1])), Some((EnclaveStatus::Done, 5, id)), "what a new one computes");
    Ok(())
}

/// CPU 1 is in an enclave that never returns, and behind that call in the ring are many to go on with it. They stand still and go on several
/// times meanwhile: that ends one call each time, and not those that have not begun.
pub(crate) fn paused() -> Verdict {
    set_up();
    let id = made(MEMORY)?;
    write(register::INT_ACK, raised::ALL);
    let before = read(register::RQ_TAIL);
    put(&enter(id, [SPIN, 0, 0]).to_bytes());
    (0..ENTRIES - 20).for_each(|_| put(&resume(id, 0).to_bytes()));
    check_equal!(cpu::start(1, |_| ring()), Ok(()), "CPU_ON of CPU 1");
    println!("enclave: calls.");
    check!(timer::wait_until(120_000, || uart::receive().is_some()), "nothing is typed");
    let ended = read(register::RQ_TAIL).wrapping_sub(before) % ENTRIES;
    check!((1..=20).contains(&ended), "{ended} calls have ended by 5 pauses");
    write(register::RESET, 1);
    check!(timer::wait_until(20_000, || read(register::STATUS) == 0), "the reset waits for a call");
    check!(cpu::wait_off(1), "CPU 1 does not come back");
    Ok(())
}

/// Its state is taken out and put in all the time, at any moment. Whatever was under way then, a block that was an enclave's is its own again,
/// and zeroes. That it was an enclave's is sure when it was told so: CREATE may end before.
pub(crate) fn scrubbed() -> Verdict {
    set_up();
    let mut made = 0;
    for _ in 0..200 {
        (MEMORY..MEMORY + BLOCK).step_by(0x1000).for_each(|at| memory::write64(at, 1));
        let created = told(&create(MEMORY)).map(|(status, ..)| status);
        check!(matches!(created, Some(EnclaveStatus::Done | EnclaveStatus::Gone)), "CREATE ends as {created:?}");
        let is_gone = timer::wait_until(20_000, || read(register::STATUS) & status_bits::GONE != 0);
        check!(is_gone, "its state is not put in any more");
        set_up();
        if created == Some(EnclaveStatus::Done) {
            check_equal!(
                memory::first_not_zero(MEMORY..MEMORY + BLOCK),
                None,
                "what is left of an enclave that is gone"
            );
            made += 1;
        }
        if made == 20 {
            return Ok(());
        }
    }
    check!(false, "only {made} enclaves were made");
    Ok(())
}

/// Instructions at all exception levels, where they are what time is: of a call that returns at once, from the tail's write to the
/// completion in its ring, and of a page that is added.
pub(crate) fn costs() -> Verdict {
    set_up();
    let id = made(MEMORY)?;
    let instructions = |ticks: u64| ticks * 1_000_000 / timer::microseconds(1000);
    let mut least = u64::MAX;
    for _ in 0..20 {
        put(&enter(id, [COMPUTE, 1, 1]).to_bytes());
        let before = timer::now();
        ring();
        least = least.min(timer::now() - before);
        check_equal!(completion().map(|told| told.status), Some(0), "the status of a call");
    }
    println!("bench enclave-call {}", instructions(least));
    check_equal!(status(&command(EnclaveOpcode::Destroy, id)), Some(EnclaveStatus::Done), "DESTROY");
    let (_, _, id) = told(&create(MEMORY)).unwrap_or((EnclaveStatus::Mechanism, 0, 0));
    put(&add_code(id).to_bytes());
    let before = timer::now();
    ring();
    println!("bench enclave-page {}", instructions(timer::now() - before));
    check_equal!(completion().map(|told| told.status), Some(0), "the status of a page");
    Ok(())
}
