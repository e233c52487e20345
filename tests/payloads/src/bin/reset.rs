//! Reset: after SYSTEM_RESET or SYSTEM_RESET2 the machine is as at power-on. The image is unchanged, RAM holds nothing of the run before,
//! the GIC, the timers and the other CPUs are off.
//!
//! Nothing in the guest may survive a reset, so nothing in it can count resets: each boot prints `reset: boot clean`, makes the machine as
//! dirty as it can, and asks the host what to do. A typed `r` resets, `w` resets by SYSTEM_RESET2, `o` switches off. Without input it
//! resets again and again, by turns, as long as the PL031 shows less than `until=<seconds since 1970>` of the command line. The host
//! counts.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use payload_rt::test::Verdict;
use payload_rt::{
    check, check_equal, cpu, gic, instruction, machine, memory, mmu, println, psci, simd, sysreg, test, tests, timer,
    uart,
};

payload_rt::entry!(main);

/// In the image's data, not its BSS: a reset must bring the first value back.
static PRISTINE: AtomicU64 = AtomicU64::new(FRESH);
const FRESH: u64 = 0x5052_4953_5449_4e45;
const MAGIC: u64 = 0xdead_beef_0bad_cafe;

/// The PL031's time, seconds.
const CLOCK: u64 = 0x0901_0000;

fn main() {
    if let Some(first) = tests!("reset": boot_is_clean).first()
        && (first.run)().is_err()
    {
        // Run it once more under the usual protocol, which prints the reason and ends.
        test::run(&tests!("reset": boot_is_clean));
    }
    println!("reset: boot clean");
    make_dirty();
    match ask() {
        b'r' => psci::simple(psci::SYSTEM_RESET, [0; 3]),
        b'w' => psci::simple(psci::SYSTEM_RESET2_64, [0; 3]),
        _ => {
            println!("payload: 1 passed, 0 failed, 0 skipped");
            psci::system_off()
        }
    };
    println!("test reset::call ... FAILED: the reset returned");
    println!("payload: 0 passed, 1 failed, 0 skipped");
}

fn boot_is_clean() -> Verdict {
    check_equal!(PRISTINE.load(Ordering::SeqCst), FRESH, "a word of the image's data");
    check_equal!(gic::not_reset(), None, "register of the GIC that is not as a reset leaves it");
    check_equal!(sysreg::cntv_ctl_el0::read() & 1, 0, "virtual timer enabled");
    check_equal!(sysreg::cntp_ctl_el0::read() & 1, 0, "physical timer enabled");
    // Before anything else takes time: the physical counter was read at the first instruction, and both began with this life.
    let (first, now) = (timer::first_count(), timer::now());
    check!(first < now, "at the first instruction the physical counter was {first}, and the virtual one is {now}");
    if !machine::is_reference() {
        // The bare machine leaves them unknown; we promise that nothing of the life before is in them.
        check_equal!(cpu::first_registers(), 0, "bits in registers that the runtime writes, at the first instruction");
        check_equal!(simd::bits(), 0, "bits in V0 to V31");
        check_equal!(simd::control(), (0, 0), "FPCR and FPSR");
        for (register, value) in kept() {
            let found = instruction::read_register(register).unwrap_or(0);
            check!(found & value == 0, "after a reset register {register:?} holds {found:#x}");
        }
    }
    for index in 1..cpu::count() {
        check_equal!(psci::affinity_info(cpu::affinity(index), 0), psci::AFFINITY_OFF, "AFFINITY_INFO of CPU {index}");
    }
    // On the bare machine RAM keeps its contents.
    if !machine::is_reference() {
        let arena = memory::arena();
        let dirty = memory::first_not_zero(arena.clone());
        check_equal!(dirty, None, "address of something left in RAM");
    }
    Ok(())
}

/// Registers that hold what is written to them where they exist, and bits that are written: the halves of the five pointer authentication
/// keys, and [`KEPT`].
fn kept() -> impl Iterator<Item = ([u32; 5], u64)> {
    let keys = (0..10).map(|half| ([3, 0, 2, 1 + half / 4, half % 4], MAGIC));
    keys.chain(KEPT)
}

/// SCXTNUM_EL0 and SCXTNUM_EL1, CONTEXTIDR_EL1, TPIDR_EL0, TPIDRRO_EL0, PAR_EL1, CNTKCTL_EL1 (EL0's rights), DISR_EL1, DBGBVR1_EL1,
/// DBGWVR1_EL1, MDCCINT_EL1, the claim tags.
const KEPT: [([u32; 5], u64); 12] = [
    ([3, 3, 13, 0, 7], MAGIC),
    ([3, 0, 13, 0, 7], MAGIC),
    ([3, 0, 13, 0, 1], MAGIC & 0xffff_ffff),
    ([3, 3, 13, 0, 2], MAGIC),
    ([3, 3, 13, 0, 3], MAGIC),
    // A translation that succeeded, of the page 0xbadcaff000.
    ([3, 0, 7, 4, 0], 0xba_dcaf_f000),
    ([3, 0, 14, 1, 0], 3 << 8 | 3),
    ([3, 0, 12, 1, 1], 1 << 31 | 0x12),
    ([2, 0, 0, 1, 4], MAGIC & 0xffff_fff8),
    ([2, 0, 0, 1, 6], MAGIC & 0xffff_fff8),
    ([2, 0, 0, 2, 0], 3 << 29),
    // Read here; set by the register before it.
    ([2, 0, 7, 9, 6], 0xff),
];
/// DBGCLAIMSET_EL1.
const CLAIM: [u32; 5] = [2, 0, 7, 8, 6];
/// TPIDR_EL1, whose lowest bits are the CPU's index to the runtime.
const TPIDR: [u32; 5] = [3, 0, 13, 0, 4];
const SP_EL0: [u32; 5] = [3, 0, 4, 1, 0];
/// TTBR1_EL1, which nothing uses.
const TTBR1: [u32; 5] = [3, 0, 2, 0, 1];

/// A CPU that is busy when the reset comes.
fn spin_for_ever(_index: usize) {
    loop {
        cpu::relax();
    }
}

/// A CPU that is asleep when the reset comes.
fn sleep_for_ever(_index: usize) {
    loop {
        cpu::wait_for_interrupt();
    }
}

/// Leaves traces in everything that a reset has to undo.
fn make_dirty() {
    PRISTINE.store(MAGIC, Ordering::SeqCst);
    for address in memory::arena().step_by(4096) {
        memory::write64(address, MAGIC);
    }
    for index in 1..cpu::count() {
        if cpu::start(index, if index % 2 == 0 { spin_for_ever } else { sleep_for_ever }).is_err() {
            println!("# CPU {index} did not come");
        }
    }
    for intid in gic::spis().step_by(7) {
        gic::set_trigger(intid, gic::Trigger::Edge);
        gic::enable(intid);
        gic::write_bit(gic::ISPENDR, intid);
    }
    let _ = gic::acknowledge();
    sysreg::cntv_cval_el0::write(0);
    sysreg::cntv_ctl_el0::write(timer::ENABLE);
    sysreg::cntp_tval_el0::write(timer::microseconds(5));
    sysreg::cntp_ctl_el0::write(timer::ENABLE);
    mmu::set_slot(mmu::FREE_SLOT, 0);
    // A breakpoint that would fire at once if debug exceptions were on.
    sysreg::dbgbvr0_el1::write(machine::image().start);
    sysreg::dbgbcr0_el1::write(1 | 1 << 1 | 0xf << 5);
    for (register, value) in kept() {
        let _ = instruction::write_register(register, value);
    }
    let _ = instruction::write_register(CLAIM, 0xa5);
    for register in [TPIDR, SP_EL0, TTBR1] {
        let _ = instruction::write_register(register, MAGIC & !0xfff);
    }
    simd::fill(MAGIC);
    // Rounding towards minus infinity, flush to zero; saturated, inexact.
    simd::set_control(0x0180_0000, 0x0800_0010);
}

/// What to do next: `r`, `w` or `o`.
fn ask() -> u8 {
    let now = memory::read32(CLOCK);
    if let Some(until) = machine::option("until").and_then(|text| text.parse::<u32>().ok()) {
        let soft = now % 2 == 1 && !machine::is_reference();
        return if now >= until {
            b'o'
        } else if soft {
            b'w'
        } else {
            b'r'
        };
    }
    let mut typed = None;
    timer::wait_until(10_000, || {
        typed = uart::receive().filter(|byte| b"rwo".contains(byte));
        typed.is_some()
    });
    typed.unwrap_or(b'o')
}
