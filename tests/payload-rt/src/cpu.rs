//! This CPU, and the others: a secondary CPU is started for one job by PSCI `CPU_ON` and switches itself off after it, so that every
//! test with several CPUs also tests hotplug.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use crate::machine::machine;
use crate::{MAX_CPUS, psci, sysreg, timer};

/// What a CPU does from start to switch-off, given its index.
pub type Job = fn(usize);

static JOBS: [Mutex<Option<Job>>; MAX_CPUS] = [const { Mutex::new(None) }; MAX_CPUS];

/// DAIF and SCTLR_EL1 with which each CPU was last started.
static INITIAL_STATE: [Mutex<(u64, u64)>; MAX_CPUS] = [const { Mutex::new((0, 0)) }; MAX_CPUS];

/// All bits of the registers that the runtime itself soon wrote, or its exceptions, as they were at the first instruction.
static FIRST_REGISTERS: AtomicU64 = AtomicU64::new(0);

/// Remembers them; by the entry.
pub(crate) fn note_first_registers(bits: u64) {
    FIRST_REGISTERS.store(bits, Ordering::Relaxed);
}

/// The bits that were set at the payload's first instruction in TTBR0_EL1, TTBR1_EL1, TCR_EL1, MAIR_EL1, VBAR_EL1, TPIDR_EL1, SP_EL0,
/// ELR_EL1, SPSR_EL1, ESR_EL1 and FAR_EL1, all of them together.
pub fn first_registers() -> u64 {
    FIRST_REGISTERS.load(Ordering::Relaxed)
}

unsafe extern "C" {
    static secondary_entry: u8;
}

/// The index of this CPU, 0 on the boot CPU.
#[inline(always)]
#[must_use]
pub fn index() -> usize {
    sysreg::tpidr_el1::read() as usize % MAX_CPUS
}

/// How many CPUs the machine has (at most [`MAX_CPUS`]).
#[must_use]
pub fn count() -> usize {
    machine().cpu_count
}

/// The MPIDR affinity of CPU `index`.
#[must_use]
pub fn affinity(index: usize) -> u64 {
    machine().cpus[index]
}

/// The address to hand to `CPU_ON`.
#[must_use]
pub fn entry_address() -> u64 {
    (&raw const secondary_entry) as u64
}

/// Sets what CPU `index` does when it is next started, without starting it.
pub fn set_job(index: usize, job: Job) {
    *JOBS[index].lock() = Some(job);
}

/// What [`start`] returns when CPU_ON succeeds but the CPU does not appear.
pub const NEVER_CAME: i64 = i64::MIN;

/// Starts CPU `index` with `job` and waits until it is there (the bare machine calls it off until then); the CPU switches itself off
/// when the job returns.
///
/// # Errors
/// PSCI's answer, when it is not success; [`NEVER_CAME`] when the CPU does not take its job within ten seconds.
pub fn start(index: usize, job: Job) -> Result<(), i64> {
    set_job(index, job);
    match psci::cpu_on(affinity(index), entry_address(), index as u64) {
        psci::SUCCESS if timer::wait_until(10_000, || JOBS[index].lock().is_none()) => Ok(()),
        psci::SUCCESS => Err(NEVER_CAME),
        error => Err(error),
    }
}

pub(crate) fn note_initial_state(index: usize, daif: u64, sctlr: u64) {
    *INITIAL_STATE[index].lock() = (daif, sctlr);
}

/// DAIF and SCTLR_EL1 with which CPU `index` was last started.
#[must_use]
pub fn initial_state(index: usize) -> (u64, u64) {
    *INITIAL_STATE[index].lock()
}

/// Takes CPU `index`'s job away again; whether there was one.
pub fn take_job(index: usize) -> bool {
    JOBS[index].lock().take().is_some()
}

pub(crate) fn run_job(index: usize) {
    let job = JOBS[index].lock().take();
    if let Some(job) = job {
        job(index);
    }
}

/// Waits until CPU `index` is off; false if that takes more than ten seconds.
#[must_use]
pub fn wait_off(index: usize) -> bool {
    let mut deadline = timer::Deadline::after_milliseconds(10_000);
    while psci::affinity_info(affinity(index), 0) != psci::AFFINITY_OFF {
        if deadline.passed() {
            return false;
        }
        relax();
    }
    true
}

/// Lets other CPUs have a go while this one spins.
#[inline(always)]
pub fn relax() {
    core::hint::spin_loop();
}

/// Lets IRQs in.
#[inline(always)]
pub fn unmask_interrupts() {
    // SAFETY: the handlers keep all registers and share only atomics and locks that are never held with interrupts on.
    unsafe { asm!("msr daifclr, #2", options(nostack)) };
}

/// Keeps IRQs out.
#[inline(always)]
pub fn mask_interrupts() {
    // SAFETY: fewer interruptions break nothing.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
}

/// `WFI`, with what must come before it. IRQs must be masked: what is taken between a look and the WFI does not end the WFI, and
/// whoever waits for it may sleep for ever ([`crate::interrupt::wait_unless`]).
#[inline(always)]
pub fn wait_for_interrupt() {
    assert!(sysreg::daif::read() >> 7 & 1 == 1, "WFI with IRQs let in");
    // SAFETY: a hint.
    unsafe { asm!("dsb sy", "wfi", "isb", options(nostack)) };
}

/// `WFE`.
#[inline(always)]
pub fn wait_for_event() {
    // SAFETY: a hint.
    unsafe { asm!("wfe", options(nostack)) };
}

/// `SEV`, after all earlier stores.
#[inline(always)]
pub fn send_event() {
    // SAFETY: a hint.
    unsafe { asm!("dsb ishst", "sev", options(nostack)) };
}
