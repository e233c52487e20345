//! Our own calls, on a port beside VMware's, through the same doors.
//!
//! Reading four bytes from port 0x5543 ("UC") with [`MAGIC`] in W0 and a command in W2\[15:0\] is a call: W0 becomes a
//! [`status`], results are in X1 to X5. On a machine without us nothing changes, and W0 stays the magic.
//!
//! | command | in | out |
//! |---|---|---|
//! | 0 version | | X1 = [`MAGIC`], X2 = version (major in \[31:16\]), X3 = [`features`] |
//! | 1 statistic | W1 = number, from 0 | X1 = count, X2 = how many there are, X3 to X5 = its name, 24 bytes of ASCII |
//! | 2 clock | | X1 = the counter's frequency in Hz, X2 = what the virtual counter lags behind the physical one |
//! | 3 watchdog | W1 = 0 query, 1 configure, 2 pat, 4 more for the calling vCPU's own; X4 = milliseconds, W5 = action | X1 = milliseconds granted or remaining |
//! | 4 log | W1 = length, X4 = address | |
//!
//! Writing a string of bytes to the port (REP OUTS: X4 = address, X2 = count) appends to the host's log too; as on the
//! machine that this imitates, X4 and X2 move on as bytes are taken, so the transfer can be interrupted anywhere.

use crate::channel::Registers;
use crate::rpci;
use crate::service::{BufferError, Host, Level, State, Watchdog, Whose};

/// The port.
pub const PORT: u16 = 0x5543;
/// W0 of every call, "UCv1".
pub const MAGIC: u32 = 0x3176_4355;
/// What command 0 answers in X2.
pub const VERSION: u64 = 0x1_0000;
/// The most that one log call takes, and one step of a string.
pub const LOG_BYTES: usize = 1024;
/// In W1 of command 3: the calling vCPU's own watchdog is meant.
const OF_CALLER: u32 = 4;

/// W0 of an answer.
pub mod status {
    /// Done.
    pub const DONE: u64 = 0;
    /// The caller's level may not do this.
    pub const REFUSED: u64 = 1;
    /// An argument is wrong.
    pub const ARGUMENT: u64 = 2;
    /// Not available here, or too much of it.
    pub const UNAVAILABLE: u64 = 3;
}

/// Bits of X3 of command 0.
pub mod features {
    /// The calls of this list.
    pub const CALLS: u64 = 1;
    /// The RPC channels of VMware.
    pub const CHANNELS: u64 = 2;
    /// The WFE channel.
    pub const WFE: u64 = 4;
    /// A watchdog that the caller may set up.
    pub const WATCHDOG: u64 = 8;
    /// A watchdog of each vCPU's own besides.
    pub const OWN_WATCHDOG: u64 = 16;
}

/// Carries out a call.
///
/// # Errors
/// When the guest's page is missing; nothing has changed, and the guest is to repeat the call.
pub(crate) fn call(
    state: &mut State,
    x: &mut Registers,
    level: Level,
    host: &mut impl Host,
) -> Result<(), BufferError> {
    x[0] = match x[2] as u16 {
        0 => {
            x[1] = u64::from(MAGIC);
            x[2] = VERSION;
            x[3] = features::CALLS | features::CHANNELS | host.features();
            status::DONE
        }
        1 => match host.statistic(x[1] as u32) {
            Some((name, count, total)) => {
                let mut words = [0u8; 24];
                for (to, from) in words.iter_mut().zip(name.bytes()) {
                    *to = from;
                }
                let (names, _) = words.as_chunks::<8>();
                x[1] = count;
                x[2] = u64::from(total);
                for (to, from) in x.iter_mut().skip(3).zip(names) {
                    *to = u64::from_le_bytes(*from);
                }
                status::DONE
            }
            None => status::ARGUMENT,
        },
        2 => {
            let (frequency, lag) = host.clock();
            x[1] = frequency;
            x[2] = lag;
            status::DONE
        }
        3 => watchdog(x, level, host),
        4 => {
            let mut line = [0; LOG_BYTES];
            match line.get_mut(..x[1] as u32 as usize) {
                Some(line) => match host.read(x[4], line) {
                    Ok(()) if rpci::log(state, host, line) => status::DONE,
                    Ok(()) => status::UNAVAILABLE,
                    Err(BufferError::NotMemory) => status::ARGUMENT,
                    Err(fault) => return Err(fault),
                },
                None => status::ARGUMENT,
            }
        }
        _ => crate::commands::NO_COMMAND,
    };
    Ok(())
}

fn watchdog(x: &mut Registers, level: Level, host: &mut impl Host) -> u64 {
    let whose = if x[1] as u32 & OF_CALLER == 0 { Whose::Vm } else { Whose::Caller };
    let request = match x[1] as u32 & !OF_CALLER {
        0 => Watchdog::Query,
        1 => Watchdog::Configure { milliseconds: x[4], action: x[5] as u32 },
        2 => Watchdog::Pat,
        _ => return status::ARGUMENT,
    };
    match host.watchdog(request, whose, level) {
        Ok(milliseconds) => {
            x[1] = milliseconds;
            status::DONE
        }
        Err(status) => status,
    }
}

/// Takes a string of bytes, at most [`LOG_BYTES`] of it.
///
/// # Errors
/// As [`call`]; what was taken before is taken.
pub(crate) fn string(state: &mut State, x: &mut Registers, host: &mut impl Host) -> Result<Progress, BufferError> {
    let mut piece = [0; LOG_BYTES];
    // Only up to the end of the page: what was taken before a missing page is not asked for again.
    let room = 4096 - (x[4] & 4095);
    let part = x[2].min(LOG_BYTES as u64).min(room);
    if part > 0
        && let Some(piece) = piece.get_mut(..part as usize)
    {
        match host.read(x[4], piece) {
            Ok(()) => {
                rpci::log(state, host, piece);
            }
            Err(BufferError::NotMemory) => {}
            Err(fault) => return Err(fault),
        }
        x[4] = x[4].wrapping_add(part);
        x[2] -= part;
    }
    Ok(if x[2] == 0 { Progress::Finished } else { Progress::More })
}

/// Whether a string or a payload is at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// All taken.
    Finished,
    /// The instruction is to be repeated.
    More,
}
