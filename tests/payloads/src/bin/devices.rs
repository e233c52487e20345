//! The PL011 and the PL031 beyond the printing of text, flash, and VMClock.
#![no_std]
#![no_main]

use payload_rt::instruction::execute;
use payload_rt::test::Verdict;
use payload_rt::{check, check_equal, cpu, gic, machine, memory, skip, sysreg, test, tests, timer, uart, vmclock};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("devices":
        flash_is_erased,
        vmclock_fields, vmclock_is_memory, vmclock_is_read_only, vmclock_agrees_with_the_real_time_clock,
        uart_identification, uart_flags, uart_registers_kept, uart_interrupt, uart_mask_and_clear, uart_flood,
        clock_identification, clock_advances, clock_can_be_set, clock_alarm,
    ));
}

/// Two banks of flash of 64 MiB each, in which boot loaders look for their settings: erased, whatever is written to them.
fn flash_is_erased() -> Verdict {
    for address in [0x1000, 0x03ff_fff0, 0x0400_0000, 0x0404_0000, 0x07ff_fff0] {
        // Reset, the query of the Common Flash Interface, and the programming of a word.
        for command in [0xf0, 0x98, 0xff, 0x40, 0x1234] {
            if !machine::is_reference() {
                memory::write32(address, command);
            }
        }
        check_equal!(memory::read8(address + 3), 0xff, "a byte of flash at {address:#x}");
        check_equal!(memory::read16(address + 2), 0xffff, "a half-word of flash at {address:#x}");
        check_equal!(memory::read32(address + 4), 0xffff_ffff, "a word of flash at {address:#x}");
        check_equal!(memory::read64(address), u64::MAX, "a double-word of flash at {address:#x}");
        // LDP X1, X2, [X0]
        let mut pair = [address, 0, 0, 0, 0, 0, 0, 0];
        check!(execute(0xa940_0801, &mut pair).is_ok(), "a pair at {address:#x} faults");
        check_equal!([pair[1], pair[2]], [u64::MAX; 2], "a pair of flash at {address:#x}");
    }
    Ok(())
}

/// PL011: integer and fractional baud rate, interrupt FIFO level, mask, raw status, masked status, clear.
const IBRD: u64 = uart::BASE + 0x24;
const FBRD: u64 = uart::BASE + 0x28;
const IFLS: u64 = uart::BASE + 0x34;
const IMSC: u64 = uart::BASE + 0x38;
const RIS: u64 = uart::BASE + 0x3c;
const MIS: u64 = uart::BASE + 0x40;
const ICR: u64 = uart::BASE + 0x44;
/// The transmit interrupt's bit.
const TX: u32 = 1 << 5;
const UART_INTID: u32 = 33;

/// PL031: data, match, load, control, mask, raw status, masked status, clear.
const RTC: u64 = 0x0901_0000;
const DR: u64 = RTC;
const MR: u64 = RTC + 0x04;
const LR: u64 = RTC + 0x08;
const CLOCK_IMSC: u64 = RTC + 0x10;
const CLOCK_RIS: u64 = RTC + 0x14;
const CLOCK_MIS: u64 = RTC + 0x18;
const CLOCK_ICR: u64 = RTC + 0x1c;
const CLOCK_INTID: u32 = 34;

/// All that VMClock's page says, as its specification has it, and what the counter's frequency makes of the period.
fn vmclock_fields() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine has no VMClock");
    }
    check_equal!(memory::read32(vmclock::PAGE), vmclock::MAGIC, "magic");
    check_equal!(memory::read32(vmclock::PAGE + 4), 0x1000, "size");
    let constants: [u8; 4] = core::array::from_fn(|byte| memory::read8(vmclock::PAGE + 8 + byte as u64));
    check_equal!(constants, [1, 0, 0, 1], "version, the virtual counter, TAI");
    let clock = vmclock::read();
    check_equal!(clock.flags, vmclock::FLAGS, "flags");
    check_equal!((clock.status, clock.tai_offset), (vmclock::FREE_RUNNING, 37), "status, offset of TAI");
    check!(clock.disruption != 0 && clock.generation != 0, "no markers: {clock:?}");
    check!(clock.period >> 63 == 1, "the period is not as exact as it could be: {clock:?}");
    // A tick takes 2^(64 + shift) / frequency of the unit.
    let frequency = u128::from(sysreg::cntfrq_el0::read());
    let second = (u128::from(clock.period) * frequency) >> (32 + clock.shift);
    check!(second == (1 << 32) - 1 || second == 1 << 32, "{frequency} ticks take {second} / 2^32 seconds: {clock:?}");
    for (at, what) in [(0x20, 2), (0x23, 1), (0x26, 1), (0x38, 16), (0x58, 16), (0x70, 0xf90)] {
        let is_zero = (at..at + what).all(|at| memory::read8(vmclock::PAGE + at) == 0);
        check!(is_zero, "something in the {what} bytes at {at:#x}");
    }
    Ok(())
}

/// The page is memory: instructions read it that no device answers, as a process uses that has mapped it.
fn vmclock_is_memory() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine has no VMClock");
    }
    // LDR Q0, [X0]; LDXR X1, [X0]; LDP X1, X2, [X0].
    for opcode in [0x3dc0_0000, 0xc85f_7c01, 0xa940_0801] {
        let mut x = [vmclock::PAGE, 0, 0, 0, 0, 0, 0, 0];
        let outcome = execute(opcode, &mut x);
        check!(outcome.is_ok(), "{opcode:#x}: {outcome:x?}");
        check!(opcode == 0x3dc0_0000 || x[1] == memory::read64(vmclock::PAGE), "{opcode:#x} reads {:#x}", x[1]);
    }
    Ok(())
}

/// What is written to it is ignored, in each form in which a device is written to.
fn vmclock_is_read_only() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine has no VMClock");
    }
    let before = vmclock::read();
    for at in (0..0x1000).step_by(8).filter(|at| at % 0x100 < 0x70) {
        memory::write64(vmclock::PAGE + at, 0x1234_5678_9abc_def1);
        memory::write32(vmclock::PAGE + at + 4, 0x1357);
        memory::write8(vmclock::PAGE + at, 0xff);
        // STP X1, X2, [X0]
        let mut pair = [vmclock::PAGE + at, 3, 5, 0, 0, 0, 0, 0];
        let outcome = execute(0xa900_0801, &mut pair);
        check!(outcome.is_ok(), "a pair at {at:#x}: {outcome:x?}");
    }
    check_equal!(vmclock::read(), before, "the page");
    check_equal!(memory::read32(vmclock::PAGE), vmclock::MAGIC, "magic");
    check_equal!(memory::read64(vmclock::PAGE + 0x100), 0, "a word behind what is known");
    Ok(())
}

/// What time it is by the page and the counter is what the PL031 shows, to the microsecond at which its second changes.
fn vmclock_agrees_with_the_real_time_clock() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine has no VMClock");
    }
    let clock = vmclock::read();
    let disagreement = vmclock::disagreement(&clock, 3, cpu::relax, || memory::read32(DR).into());
    check_equal!(disagreement, None, "before, the clock, behind");
    Ok(())
}

fn identification(base: u64) -> [u32; 8] {
    core::array::from_fn(|index| memory::read32(base + 0xfe0 + 4 * index as u64))
}

fn uart_identification() -> Verdict {
    let found = identification(uart::BASE);
    // The third holds the revision in its upper half.
    check_equal!([found[0], found[1], found[2] & 0xf, found[3]], [0x11, 0x10, 4, 0], "PL011 peripheral identification");
    check_equal!([found[4], found[5], found[6], found[7]], [0x0d, 0xf0, 0x05, 0xb1], "PrimeCell identification");
    Ok(())
}

fn uart_flags() -> Verdict {
    check!(
        timer::wait_until(1000, || memory::read32(uart::BASE + uart::FR) & 0xb0 == 0x90),
        "flags {:#x}, expected both FIFOs empty",
        memory::read32(uart::BASE + uart::FR)
    );
    check!(memory::read32(uart::BASE + uart::FR) & 8 == 0, "busy with nothing to send");
    Ok(())
}

fn uart_registers_kept() -> Verdict {
    for (register, value) in [(IBRD, 0x1234), (FBRD, 0x2a), (IFLS, 0x12), (IMSC, 0x7f0), (IMSC, 0)] {
        let before = memory::read32(register);
        memory::write32(register, value);
        let found = memory::read32(register);
        memory::write32(register, if register == IMSC { 0 } else { before });
        check_equal!(found, value, "register {register:#x}");
    }
    Ok(())
}

/// Raises the transmit interrupt: a line end is sent, which empties the FIFO at once or soon.
fn send_something() {
    memory::write32(uart::BASE + uart::DR, u32::from(b' '));
}

fn uart_interrupt() -> Verdict {
    gic::set_trigger(UART_INTID, gic::Trigger::Level);
    gic::enable(UART_INTID);
    memory::write32(ICR, 0x7ff);
    memory::write32(IMSC, TX);
    send_something();
    let mut intid = gic::SPURIOUS;
    let raised = timer::wait_until(1000, || {
        intid = gic::acknowledge();
        intid != gic::SPURIOUS
    });
    let status = memory::read32(MIS);
    memory::write32(IMSC, 0);
    memory::write32(ICR, 0x7ff);
    gic::end(intid);
    check!(raised && intid == UART_INTID, "no transmit interrupt (acknowledged {intid})");
    check!(status & TX != 0, "masked status {status:#x} during the interrupt");
    timer::delay(200);
    check_equal!(gic::acknowledge(), gic::SPURIOUS, "after masking and clearing");
    Ok(())
}

fn uart_mask_and_clear() -> Verdict {
    memory::write32(ICR, 0x7ff);
    memory::write32(IMSC, 0);
    send_something();
    check!(
        timer::wait_until(1000, || memory::read32(RIS) & TX != 0),
        "raw status does not show the empty transmit FIFO"
    );
    check_equal!(memory::read32(MIS) & TX, 0, "masked status");
    memory::write32(ICR, TX);
    check_equal!(memory::read32(RIS) & TX, 0, "raw status after clearing");
    Ok(())
}

fn uart_flood() -> Verdict {
    // More than any FIFO holds, written without a look at the flags: some may be lost, nothing may break.
    for _ in 0..200 {
        memory::write32(uart::BASE + uart::DR, u32::from(b' '));
    }
    check!(timer::wait_until(5000, || memory::read32(uart::BASE + uart::FR) & uart::FR_TXFF == 0), "full for ever");
    Ok(())
}

fn clock_identification() -> Verdict {
    let found = identification(RTC);
    // Revision 1, as that of QEMU's `virt`.
    check_equal!([found[0], found[1], found[2], found[3]], [0x31, 0x10, 0x14, 0], "PL031 peripheral identification");
    check_equal!([found[4], found[5], found[6], found[7]], [0x0d, 0xf0, 0x05, 0xb1], "PrimeCell identification");
    Ok(())
}

/// What the clock shows once that is no less than `wanted`, and between which two counts it came to `wanted`: that before the last
/// look at less, which is `before` if this looks at no less, and that behind the first look at enough. A CPU that is kept from looking
/// finds them far apart, and nothing wrong.
fn clock_reaches(wanted: u32, mut before: u64) -> Option<(u32, u64, u64)> {
    let mut found = None;
    timer::wait_until(5000, || {
        let (start, seconds) = (timer::now(), memory::read32(DR));
        if seconds >= wanted {
            found = Some((seconds, before, timer::now()));
        }
        before = start;
        found.is_some()
    });
    found
}

fn clock_advances() -> Verdict {
    let (before, start) = (timer::now(), memory::read32(DR));
    let reached = clock_reaches(start + 1, before);
    check!(reached.is_some(), "the clock stands still at {start}");
    let (first, begin, began) = reached.unwrap_or_default();
    // From one change to the next but one: two seconds.
    let reached = clock_reaches(first + 2, begin);
    check!(reached.is_some(), "the clock did not reach {}", first + 2);
    let (_, end, ended) = reached.unwrap_or_default();
    let two = timer::microseconds(2_000_000);
    let (least, most) = (end.saturating_sub(began), ended - begin);
    check!(
        least <= two + two / 100 && two - two / 100 <= most,
        "two seconds, of {two} ticks, took {least} at least and {most} at most"
    );
    Ok(())
}

fn clock_can_be_set() -> Verdict {
    let before = memory::read32(DR);
    memory::write32(LR, 1_000_000);
    let after = memory::read32(DR);
    memory::write32(LR, before);
    let restored = memory::read32(DR);
    check!((1_000_000..1_000_003).contains(&after), "the clock reads {after} after it was set to 1000000");
    check!((before..before + 3).contains(&restored), "the clock reads {restored} after it was set back to {before}");
    Ok(())
}

fn clock_alarm() -> Verdict {
    gic::set_trigger(CLOCK_INTID, gic::Trigger::Level);
    gic::enable(CLOCK_INTID);
    memory::write32(CLOCK_ICR, 1);
    memory::write32(CLOCK_IMSC, 1);
    if memory::read32(CLOCK_IMSC) != 1 {
        skip!("no alarm");
    }
    memory::write32(MR, memory::read32(DR) + 1);
    let mut intid = gic::SPURIOUS;
    timer::wait_until(4000, || {
        intid = gic::acknowledge();
        intid != gic::SPURIOUS
    });
    let status = (memory::read32(CLOCK_RIS), memory::read32(CLOCK_MIS));
    memory::write32(CLOCK_IMSC, 0);
    memory::write32(CLOCK_ICR, 1);
    gic::end(intid);
    check_equal!(intid, CLOCK_INTID, "acknowledged");
    check_equal!(status, (1, 1), "raw and masked status");
    check_equal!(memory::read32(CLOCK_RIS), 0, "raw status after clearing");
    Ok(())
}
