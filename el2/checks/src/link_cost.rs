//! What the link costs by each of its carriers, measured after the switch of threads (`switch_cost`): the lines `bench link-uart
//! <ticks>` and `bench link-port <ticks>` are for a KiB of bytes of all kinds, from the sender's call to its return, with all
//! that the hypervisor does for it meanwhile. The work of the host's device is not counted.

use alloc::vec::Vec;

use abi::link::{Carrier, Channel};
use hw::sysreg;
use undercroft::link::carrier::{has_port, send_by};

use crate::selftest;

/// Bytes of a piece, and how many are timed together.
const PIECE: u32 = 64 << 10;
const PIECES: u64 = 4;
/// The host's device says at its leisure that somebody is at its other end: so many times 1 ms are waited for it.
const PATIENCE: u64 = 1_000;

/// Measures both, and says what came out.
pub(crate) fn measure() {
    for _ in 0..PATIENCE {
        if has_port() {
            break;
        }
        selftest::sleep(1_000);
    }
    // One byte in 128 needs an escape.
    let piece: Vec<u8> = (0..PIECE).map(|number| (number.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
    let mut results = [("link-uart", Carrier::Uart), ("link-port", Carrier::Port)].map(|(name, by)| (name, by, Ok(0)));
    for (_, by, tenths) in &mut results {
        // The second time everything has been used before.
        for _ in 0..2 {
            let begin = sysreg::cntpct_el0();
            let sent = (0..PIECES).try_for_each(|_| send_by(*by, Channel::Bulk, &[b"a piece of a VM!", &piece]));
            let ticks = sysreg::cntpct_el0().wrapping_sub(begin);
            *tenths = sent.map(|()| ticks * 10 / (PIECES * u64::from(PIECE >> 10)));
        }
    }
    for (name, _, tenths) in results {
        match tenths {
            Ok(tenths) => log::info!("bench {name} {}.{}", tenths / 10, tenths % 10),
            Err(why) => log::error!("{name} was not measured: {why:?}"),
        }
    }
}
