//! What the link adds to a crash report: the thread, and the last of the log. Whoever crashed may hold anything, so nothing is waited
//! for that could be held by it.

use core::fmt::{self, Write};
use core::ops::DerefMut;

use abi::link::{self, Channel, Message};
use hw::sync::IrqLock;
use hw::{sysreg, uart};

use crate::host;
use crate::link::carrier;
use crate::output::{self, LOG_BYTES};
use crate::sched;
use crate::vm::{self, Vm};

/// How long whoever holds a piece of the log may take to let it go, in microseconds.
const LOG_MICROSECONDS: u64 = 100_000;
/// How much of the lines about a VM is shown, and of those that it wrote: with as many VMs as can be that is as much as a UART sends in
/// some seconds.
const VM_BYTES: usize = 512;

/// What a crash report begins with: the end of whatever frame may be open.
pub(crate) fn crash_preamble() {
    // Before the first byte of the report: the other end would take that for the rest of the frame. It is not asked whether one is
    // open, for whoever sends it may have been stopped anywhere.
    if carrier::is_framed() {
        link::RETURN_TO_TEXT.into_iter().for_each(uart::send);
    }
}

/// The last of the log, for a crash report: of the host's, and of what waits or waited elsewhere, about each VM.
pub(crate) fn write_log_tail(out: &mut dyn Write) {
    // First, as nothing here waits for a lock yet. By the UART itself: the carrier's turn may be held by whoever crashed.
    if carrier::is_framed() {
        let mut buffer = [0_u8; link::MAX_PAYLOAD];
        let message = Message::Panic { text: "a fault of the hypervisor itself; the report is in its log" };
        if let Some(payload) = message.encode(&mut buffer) {
            let _ = link::encode(Channel::Control, payload, hw::memory::crc32c, uart::send);
        }
    }
    if let Some(name) = sched::current_name() {
        let _ = writeln!(out, "thread: {name}");
    }
    let _ = match held(&output::LOG) {
        Some(log) => {
            let _ = writeln!(out, "last of the log:");
            write_bytes(out, log.recent_lines(LOG_BYTES))
        }
        None => writeln!(out, "the end of the log cannot be shown: it is held by whoever stopped"),
    };
    for vm in vm::all() {
        let _ = write_lines_about(out, vm);
    }
}

/// The last lines about `vm`, and then the last that its guest wrote for the log: they have rings of their own.
fn write_lines_about(out: &mut dyn Write, vm: &Vm) -> fmt::Result {
    let name = vm.config.name;
    match (held(&vm.console.reports), held(&vm.console.log)) {
        (Some(mut about), Some(by)) => {
            write_lines(out, format_args!("about {name}"), about.ring().recent_lines(VM_BYTES))?;
            write_lines(out, format_args!("by {name}"), by.recent_lines(VM_BYTES))
        }
        _ => writeln!(out, "what the log has about {name} cannot be shown: it is held by whoever stopped"),
    }
}

/// These lines, under a head, if there are any.
fn write_lines(out: &mut dyn Write, whose: fmt::Arguments<'_>, bytes: impl Iterator<Item = u8>) -> fmt::Result {
    let mut bytes = bytes.peekable();
    if bytes.peek().is_none() {
        return Ok(());
    }
    writeln!(out, "last of the log {whose}:")?;
    write_bytes(out, bytes)
}

fn write_bytes(out: &mut dyn Write, bytes: impl Iterator<Item = u8>) -> fmt::Result {
    bytes.map(char::from).try_for_each(|byte| out.write_char(byte))
}

/// What the lock protects, as soon as nobody holds it: another CPU may be in the middle of a line when this one crashes, and goes on to
/// that line's end before it halts. `None` if that CPU is this one, or is stuck.
fn held<T>(lock: &IrqLock<T>) -> Option<impl DerefMut<Target = T>> {
    let end = sysreg::cntpct_el0() + host::ticks(LOG_MICROSECONDS);
    loop {
        // Tried, not queued for: a lock that this CPU holds itself would never come.
        let held = lock.try_lock();
        if held.is_some() || sysreg::cntpct_el0() >= end {
            return held;
        }
        core::hint::spin_loop();
    }
}
