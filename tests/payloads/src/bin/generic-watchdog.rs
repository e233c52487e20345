//! The Generic Watchdog of Arm's Base System Architecture: its registers, its interrupt, and what happens when nobody refreshes
//! it.
//!
//! `sbsa-watchdog = true` and `watchdog-action = "reset"` in the site file. The first life of the VM ends by the second signal, in a
//! loop with all interrupts masked; the tests are run in the second one, which finds WS1 set.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use payload_rt::test::Verdict;
use payload_rt::{check, check_equal, gic, interrupt, machine, memory, println, skip, test, tests, timer};

payload_rt::entry!(main);

const CONTROL: u64 = 0x0910_0000;
const WCS: u64 = CONTROL;
const WOR: u64 = CONTROL + 0x008;
const WOR_HIGH: u64 = CONTROL + 0x00c;
const WCV: u64 = CONTROL + 0x010;
const WCV_HIGH: u64 = CONTROL + 0x014;
const W_IIDR: u64 = 0xfcc;
const REFRESH: u64 = 0x0911_0000;
const WRR: u64 = REFRESH;
const INTID: u32 = 42;

const ENABLE: u32 = 1;
const WS0: u32 = 2;
const WS1: u32 = 4;

/// WCS at the start.
static AT_START: AtomicU32 = AtomicU32::new(0);

fn main() {
    if !machine::is_reference() {
        let status = memory::read32(WCS);
        AT_START.store(status, Ordering::SeqCst);
        if status & WS1 == 0 {
            println!("the watchdog is to reset this VM");
            set_offset(timer::microseconds(2_000));
            memory::write32(WCS, ENABLE);
            // Five seconds in which this CPU looks: more, if it stands still meanwhile.
            let _ = timer::wait_until(5000, || false);
            memory::write32(WCS, 0);
        }
    }
    test::run(&tests!("generic_watchdog":
        second_signal_resets, identification, registers, odd_accesses, refresh_moves_the_compare_value,
        first_signal_is_an_interrupt, silent_while_refreshed, silent_while_disabled,
    ));
}

macro_rules! need_device {
    () => {
        if machine::is_reference() {
            skip!("the bare machine has no such device");
        }
    };
}

fn set_offset(ticks: u64) {
    memory::write32(WOR, ticks as u32);
    memory::write32(WOR_HIGH, (ticks >> 32) as u32);
}

fn compare() -> u64 {
    u64::from(memory::read32(WCV)) | u64::from(memory::read32(WCV_HIGH)) << 32
}

fn second_signal_resets() -> Verdict {
    need_device!();
    check_equal!(AT_START.load(Ordering::SeqCst), WS1, "status at the start of the second life");
    memory::write32(WRR, 1);
    check_equal!(memory::read32(WCS), 0, "status after a refresh");
    Ok(())
}

fn identification() -> Verdict {
    need_device!();
    for frame in [CONTROL, REFRESH] {
        check_equal!(memory::read32(frame + W_IIDR) >> 16 & 0xf, 1, "architecture version in the frame at {frame:#x}");
    }
    check_equal!(memory::read32(WRR), 0, "the refresh register");
    Ok(())
}

fn registers() -> Verdict {
    need_device!();
    memory::write32(WCS, !ENABLE);
    check_equal!(memory::read32(WCS), 0, "status bits cannot be written");
    for offset in [1, 0x1234_5678, 0xffff_ffff_ffff] {
        set_offset(offset);
        check_equal!(memory::read64(WOR), offset, "the offset");
        check_equal!(memory::read32(WOR_HIGH), (offset >> 32) as u32, "its upper half");
    }
    memory::write64(WOR, u64::MAX);
    check_equal!(memory::read64(WOR), 0xffff_ffff_ffff, "an offset of 64 bits");
    memory::write32(WCV, 0x89ab_cdef);
    memory::write32(WCV_HIGH, 0x4567);
    check_equal!(memory::read64(WCV), 0x4567_89ab_cdef, "the compare value");
    set_offset(0);
    Ok(())
}

fn odd_accesses() -> Verdict {
    need_device!();
    set_offset(0x1234_5678_9abc);
    check_equal!(memory::read8(WOR + 1), 0x9a, "a byte");
    check_equal!(memory::read16(WOR_HIGH), 0x1234, "a halfword");
    for at in [4, 0x18, 0x100, 0xfc8] {
        memory::write32(CONTROL + at, u32::MAX);
        memory::write32(REFRESH + at, u32::MAX);
        check_equal!((memory::read32(CONTROL + at), memory::read32(REFRESH + at)), (0, 0), "nothing at {at:#x}");
    }
    check_equal!(memory::read64(WOR), 0x1234_5678_9abc, "the offset afterwards");
    set_offset(0);
    Ok(())
}

fn refresh_moves_the_compare_value() -> Verdict {
    need_device!();
    let offset = timer::microseconds(60_000_000);
    set_offset(offset);
    for round in 0..3 {
        let before = timer::now();
        match round {
            0 => memory::write32(WRR, 0),
            1 => memory::write32(WCS, 0),
            _ => memory::write32(WOR, offset as u32),
        }
        let (found, after) = (compare(), timer::now());
        check!(
            (before + offset..=after + offset).contains(&found),
            "round {round}: {found:#x}, the counter was {before:#x} and {after:#x}"
        );
    }
    Ok(())
}

fn first_signal_is_an_interrupt() -> Verdict {
    need_device!();
    interrupt::clear();
    gic::enable(INTID);
    // Longer than this CPU may be kept from looking: the second signal would reset the VM.
    let offset = timer::microseconds(60_000_000);
    set_offset(offset);
    memory::write32(WCS, ENABLE);
    check!(!gic::read_bit(gic::ISPENDR, INTID), "the interrupt is pending before its time");
    let start = timer::now();
    // Soon, without a refresh.
    memory::write32(WCV, start as u32);
    memory::write32(WCV_HIGH, (start >> 32) as u32);
    let pending = timer::wait_until(1000, || gic::read_bit(gic::ISPENDR, INTID));
    check!(pending, "no interrupt is pending; status {:#x}", memory::read32(WCS));
    check_equal!(memory::read32(WCS), ENABLE | WS0, "status after the first period");
    check!(compare() > start + offset, "the compare value was not set once more");
    // What is pending at the Distributor comes to this CPU in a moment.
    let mut taken = gic::SPURIOUS;
    timer::wait_until(1000, || {
        taken = gic::acknowledge();
        taken != gic::SPURIOUS
    });
    check_equal!(taken, INTID, "acknowledged");
    memory::write32(WRR, 0);
    gic::end(INTID);
    check!(!gic::read_bit(gic::ISPENDR, INTID), "the interrupt is still pending after a refresh");
    check_equal!(memory::read32(WCS), ENABLE, "status after a refresh");
    memory::write32(WCS, 0);
    Ok(())
}

/// Refreshed for longer than both its periods. Where a CPU may stand still for as long as one of them, they are longer than that, and
/// that each refresh begins them anew is seen from the compare value only.
fn silent_while_refreshed() -> Verdict {
    need_device!();
    let (offset, times) = if machine::is_counted() { (800_000, 40) } else { (60_000_000, 4) };
    let offset = timer::microseconds(offset);
    set_offset(offset);
    memory::write32(WCS, ENABLE);
    for time in 0..times {
        timer::sleep(50_000);
        let before = timer::now();
        memory::write32(WRR, 0);
        let (found, after) = (compare(), timer::now());
        check!(
            (before + offset..=after + offset).contains(&found),
            "refresh {time}: {found:#x}, the counter was {before:#x} and {after:#x}"
        );
    }
    let status = memory::read32(WCS);
    memory::write32(WCS, 0);
    check_equal!(status, ENABLE, "status after all refreshes");
    check!(!gic::read_bit(gic::ISPENDR, INTID), "its interrupt is pending");
    Ok(())
}

fn silent_while_disabled() -> Verdict {
    need_device!();
    set_offset(1);
    timer::delay(50_000);
    check_equal!(memory::read32(WCS), 0, "status");
    Ok(())
}
