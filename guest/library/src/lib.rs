//! A guest's side of Undercroft's calls: for kernels, firmware and ordinary processes alike.
//!
//! Nothing here needs a driver or a privilege. Two ways lead to the hypervisor: [`call`] reads the debug channel's status
//! register, and [`wait`] executes WFE with a word in X0. The first may be forbidden to EL0 by a kernel when no
//! hypervisor answers, as Linux does: a process gets SIGILL then and has to catch it before it calls. The second is safe
//! everywhere.
//!
//! UNSAFETY: three instructions, a register read and hints, that change nothing but the registers named.
#![no_std]
#![expect(unsafe_code, reason = "the instructions that reach the hypervisor")]

use abi::calls::vmware::{self, channel, command};
use abi::calls::{self, own};
use core::arch::asm;

pub use abi::calls::own::features;
pub use abi::calls::vmware::channel::step;
pub use abi::watchdog::{Action, Refused};

/// X0 to X7.
pub type Registers = [u64; 8];

/// X7 of a call that carries everything in registers.
const LOW: u64 = calls::marked(calls::LOW);
/// W0 of VMware's calls.
const MAGIC: u64 = vmware::MAGIC as u64;
/// W0 of Undercroft's own calls.
const OWN_MAGIC: u64 = own::MAGIC as u64;
/// OPEN's protocol: RPCI with cookies.
pub const RPCI: u64 = (channel::RPCI | channel::WITH_COOKIES) as u64;

/// The same of TCLO, on which the host asks.
pub const TCLO: u64 = (channel::TCLO | channel::WITH_COOKIES) as u64;

/// Calls through the debug channel. Where nobody answers, the registers stay as they are, or the guest's kernel
/// gets an exception.
#[inline(always)]
pub fn call(x: &mut Registers) {
    // SAFETY: reading this status register has no effect of its own; a hypervisor that answers changes X0 to X6 alone, and
    // memory only where a caller told it a buffer, which none in this library does.
    unsafe {
        asm!("mrs xzr, mdccsr_el0",
            inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3],
            inout("x4") x[4], inout("x5") x[5], inout("x6") x[6], in("x7") x[7], options(nostack));
    }
}

/// A command of VMware's low port.
#[must_use]
pub fn low(command: u64, argument: u64, channel: [u64; 3]) -> Registers {
    let [id, high, low] = channel;
    let mut x = [MAGIC, argument, command, id << 16 | u64::from(vmware::PORT_LOW), high, low, 0, LOW];
    call(&mut x);
    x
}

/// A step of an RPC channel's protocol ([`step`]), with its argument.
#[must_use]
pub fn message(step: u16, argument: u64, channel: [u64; 3]) -> Registers {
    low(u64::from(step) << 16 | u64::from(command::MESSAGE), argument, channel)
}

/// Whether VMware's calls are answered.
#[must_use]
pub fn is_vmware() -> bool {
    let x = low(command::GET_VERSION.into(), !MAGIC & 0xffff_ffff, [0; 3]);
    x[0] == vmware::VERSION && x[1] == MAGIC
}

/// What Undercroft is able to do for this caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// Version of the calls.
    pub major: u16,
    /// Version of the calls.
    pub minor: u16,
    /// Bits of [`features`].
    pub features: u64,
}

/// One of Undercroft's own calls: the results in X1 to X5, or why not. `None` if nobody answers.
#[must_use]
pub fn own(command: u16, arguments: [u64; 3]) -> Option<Result<Registers, u64>> {
    let [first, address, action] = arguments;
    let mut x = [OWN_MAGIC, first, command.into(), own::PORT.into(), address, action, 0, LOW];
    call(&mut x);
    match x[0] {
        OWN_MAGIC | calls::NO_COMMAND => None,
        own::status::DONE => Some(Ok(x)),
        error => Some(Err(error)),
    }
}

/// Undercroft's version; `None` elsewhere.
#[must_use]
pub fn version() -> Option<Version> {
    let x = own(own::command::VERSION, [0; 3])?.ok()?;
    (x[1] == OWN_MAGIC).then_some(Version { major: (x[2] >> 16) as u16, minor: x[2] as u16, features: x[3] })
}

/// An exit reason of this VM: 24 bytes of name, and how often.
#[must_use]
pub fn statistic(number: u64) -> Option<([u8; 24], u64)> {
    let x = own(own::command::STATISTIC, [number, 0, 0])?.ok()?;
    let mut name = [0; 24];
    for (to, from) in name.chunks_mut(8).zip(&x[3..6]) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    Some((name, x[1]))
}

/// The count of the exit reason called `name`.
#[must_use]
pub fn exits(name: &str) -> Option<u64> {
    let mut number = 0;
    while let Some((known, count)) = statistic(number) {
        if known.iter().take_while(|byte| **byte != 0).eq(name.as_bytes()) {
            return Some(count);
        }
        number += 1;
    }
    None
}

/// The counter's frequency in Hz and the virtual counter's lag.
#[must_use]
pub fn clock() -> Option<(u64, u64)> {
    let x = own(own::command::CLOCK, [0; 3])?.ok()?;
    Some((x[1], x[2]))
}

/// Why a message could not be exchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RpcError {
    /// No channel.
    Open,
    /// The host did not take the message.
    Send,
    /// There is no reply.
    Receive,
}

/// Sends `text` on a channel of its own and returns the part of `reply` that came; the rest is cut.
///
/// # Errors
/// Which step failed.
pub fn ask<'a>(text: &[u8], reply: &'a mut [u8]) -> Result<&'a [u8], RpcError> {
    let x = message(step::OPEN, RPCI, [0; 3]);
    if x[2] != channel::status::SUCCESS << 16 {
        return Err(RpcError::Open);
    }
    let opened = [x[3] >> 16, x[4], x[5]];
    let result = exchange(opened, text, reply);
    let _ = message(step::CLOSE, 0, opened);
    result.map(|length| &reply[..length])
}

/// Sends `text` on an open channel (its number, and its cookies: high and low) and gives how much of `reply` came.
///
/// # Errors
/// Which step failed.
pub fn exchange(opened: [u64; 3], text: &[u8], reply: &mut [u8]) -> Result<usize, RpcError> {
    use channel::status::{DO_RECEIVE, SUCCESS};
    let good = |x: &Registers| x[2] >> 16 & SUCCESS != 0;
    if !good(&message(step::SEND_SIZE, text.len() as u64, opened)) {
        return Err(RpcError::Send);
    }
    for part in text.chunks(4) {
        let mut word = [0; 4];
        word[..part.len()].copy_from_slice(part);
        if !good(&message(step::SEND_PAYLOAD, u64::from(u32::from_le_bytes(word)), opened)) {
            return Err(RpcError::Send);
        }
    }
    let x = message(step::RECEIVE_SIZE, 0, opened);
    if x[2] >> 16 & (SUCCESS | DO_RECEIVE) != SUCCESS | DO_RECEIVE {
        return Err(RpcError::Receive);
    }
    let (length, mut done) = (x[1] as usize, 0);
    while done < length {
        let x = message(step::RECEIVE_PAYLOAD, SUCCESS, opened);
        if !good(&x) {
            return Err(RpcError::Receive);
        }
        for byte in (x[1] as u32).to_le_bytes().iter().take(length - done) {
            if let Some(to) = reply.get_mut(done) {
                *to = *byte;
            }
            done += 1;
        }
    }
    let _ = message(step::RECEIVE_STATUS, SUCCESS, opened);
    Ok(length.min(reply.len()))
}

/// The words of the WFE channel.
pub mod words {
    pub use abi::wfe::{AGENT, CONFIGURE, DETECT, DONE, ERROR, PAT, QUERY};
    use abi::wfe::{CONFIGURE_OWN, PAT_OWN, QUERY_OWN};

    /// As [`CONFIGURE`], [`PAT`] and [`QUERY`], for the calling vCPU's own.
    pub const OWN: [u64; 3] = [CONFIGURE_OWN, PAT_OWN, QUERY_OWN];
}

/// How often [`wait`] asks before it concludes that nobody is there.
const ATTEMPTS: usize = 4;

/// Asks through WFE: what X0 and X1 became, or `None` if nobody answers. A WFE with the event register set does not reach
/// the hypervisor, so each attempt first sets it and uses it up. Where nobody answers each attempt waits for an event; a
/// process has one from its kernel's event stream, firmware should have one running.
#[must_use]
pub fn wait(word: u64, first: u64, second: u64) -> Option<[u64; 2]> {
    for _ in 0..ATTEMPTS {
        let mut x = [word, first];
        // SAFETY: hints; whoever answers changes X0 and X1.
        unsafe {
            asm!("sevl", "wfe", "wfe", inout("x0") x[0], inout("x1") x[1], in("x2") second, options(nostack));
        }
        if x[0] != word {
            return Some(x);
        }
    }
    None
}

/// What a hypervisor on the WFE channel says of itself.
#[must_use]
pub fn detect() -> Option<u64> {
    wait(words::DETECT, 0, 0).filter(|x| x[0] == words::AGENT).map(|x| x[1])
}

/// Arms the watchdog for `milliseconds` (0 disarms it), with the number of an [`Action`]; the time that was granted. `None` if nobody answers.
///
/// # Errors
/// Why not: the number of a [`Refused`].
#[must_use]
pub fn configure_watchdog(milliseconds: u64, action: u64) -> Option<Result<u64, u64>> {
    result(wait(words::CONFIGURE, milliseconds, action)?)
}

/// Begins the watchdog's time anew, as [`configure_watchdog`].
#[must_use]
pub fn pat_watchdog() -> Option<Result<u64, u64>> {
    result(wait(words::PAT, 0, 0)?)
}

/// How many milliseconds are left, as [`configure_watchdog`].
#[must_use]
pub fn query_watchdog() -> Option<Result<u64, u64>> {
    result(wait(words::QUERY, 0, 0)?)
}

/// As [`configure_watchdog`], for the watchdog of the calling vCPU; the caller must not move to another one meanwhile.
#[must_use]
pub fn configure_own_watchdog(milliseconds: u64, action: u64) -> Option<Result<u64, u64>> {
    result(wait(words::OWN[0], milliseconds, action)?)
}

/// As [`pat_watchdog`], for the watchdog of the calling vCPU.
#[must_use]
pub fn pat_own_watchdog() -> Option<Result<u64, u64>> {
    result(wait(words::OWN[1], 0, 0)?)
}

/// As [`query_watchdog`], for the watchdog of the calling vCPU.
#[must_use]
pub fn query_own_watchdog() -> Option<Result<u64, u64>> {
    result(wait(words::OWN[2], 0, 0)?)
}

fn result(x: [u64; 2]) -> Option<Result<u64, u64>> {
    match x[0] {
        words::DONE => Some(Ok(x[1])),
        words::ERROR => Some(Err(x[1])),
        _ => None,
    }
}
