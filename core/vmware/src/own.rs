//! Our own calls ([`abi::calls::own`]), carried out.

use abi::calls::own::{LOG_BYTES, MAGIC, VERSION, command, features, status, watchdog as what};

use crate::channel::Registers;
use crate::rpci;
use crate::service::{BufferError, ExceptionLevel, Host, State, WatchdogCall, Whose};

/// Carries out a call.
///
/// # Errors
/// When the guest's page is missing; nothing has changed, and the guest is to repeat the call.
pub(crate) fn call(
    state: &mut State,
    x: &mut Registers,
    level: ExceptionLevel,
    host: &mut impl Host,
) -> Result<(), BufferError> {
    x[0] = match x[2] as u16 {
        command::VERSION => {
            x[1] = u64::from(MAGIC);
            x[2] = VERSION;
            x[3] = features::CALLS | features::CHANNELS | host.features();
            status::DONE
        }
        command::STATISTIC => match host.statistic(x[1] as u32) {
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
        command::CLOCK => {
            let (frequency, lag) = host.clock();
            x[1] = frequency;
            x[2] = lag;
            status::DONE
        }
        command::WATCHDOG => watchdog(x, level, host),
        command::LOG => {
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
        _ => abi::calls::NO_COMMAND,
    };
    Ok(())
}

fn watchdog(x: &mut Registers, level: ExceptionLevel, host: &mut impl Host) -> u64 {
    let whose = if x[1] as u32 & what::OF_CALLER == 0 { Whose::Vm } else { Whose::Caller };
    let request = match x[1] as u32 & !what::OF_CALLER {
        what::QUERY => WatchdogCall::Query,
        what::CONFIGURE => WatchdogCall::Configure { milliseconds: x[4], action: x[5] as u32 },
        what::PAT => WatchdogCall::Pat,
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
pub(crate) fn string(state: &mut State, x: &mut Registers, host: &mut impl Host) -> Result<Completion, BufferError> {
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
    Ok(if x[2] == 0 { Completion::Finished } else { Completion::More })
}

/// Whether a string or a payload is at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Completion {
    /// All taken.
    Finished,
    /// The instruction is to be repeated.
    More,
}
