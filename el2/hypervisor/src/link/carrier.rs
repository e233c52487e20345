//! What carries the link, and who may use it: a frame goes out whole, whichever thread sends it, and everybody else who has one
//! waits for its end.
//!
//! A thread that sends sleeps until it is its turn, and while there is no room: it must hold no lock.

use core::sync::atomic::{AtomicBool, Ordering};

use abi::link::{self, Channel};
use arrayvec::ArrayVec;
use hw::sync::IrqLock;
use hw::uart;

use crate::output;
use crate::sched::{self, Thread};

/// As many threads as may wait in their order; further ones try again and again.
const MAX_WAITING: usize = 8;

/// There is somebody who understands frames.
static FRAMED: AtomicBool = AtomicBool::new(false);
static TURN: IrqLock<Turn> = IrqLock::new(Turn { taken: false, waiting: ArrayVec::new_const() });

/// Whose turn it is to send.
struct Turn {
    taken: bool,
    waiting: ArrayVec<&'static Thread, MAX_WAITING>,
}

/// Why a frame was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unsent {
    /// The other side reads text.
    NobodyListens,
    /// The frame is longer than its channel's may be.
    TooLong,
}

/// Whether the link has frames now, or is text.
#[must_use]
pub(crate) fn is_framed() -> bool {
    FRAMED.load(Ordering::Relaxed)
}

/// From now on it has frames, or is text.
pub(crate) fn set_framed(framed: bool) {
    FRAMED.store(framed, Ordering::Relaxed);
}

/// Sends one frame whose payload is made of `parts`. Returns when it is on its way; blocks this thread until there is room.
///
/// # Errors
/// When it cannot be sent.
pub(crate) fn send(channel: Channel, parts: &[&[u8]]) -> Result<(), Unsent> {
    if !is_framed() {
        return Err(Unsent::NobodyListens);
    }
    with_turn(|| link::encode_parts(channel, parts, hw::memory::crc32c, |run| run.iter().copied().for_each(uart::send)))
        .map_err(|_| Unsent::TooLong)
}

/// Does `work` while nobody else sends.
fn with_turn<T>(work: impl FnOnce() -> T) -> T {
    let has_slept = take_turn();
    let done = work();
    let mut turn = TURN.lock();
    turn.taken = false;
    let next = turn.waiting.pop_at(0);
    drop(turn);
    if let Some(next) = next {
        sched::wake(next);
    }
    if has_slept {
        // What this thread was woken for meanwhile may have been meant for other work of its own.
        output::look_again();
    }
    done
}

/// Waits for the turn, and takes it. Says whether the thread has slept.
fn take_turn() -> bool {
    let me = sched::current();
    let mut has_slept = false;
    loop {
        let mut turn = TURN.lock();
        if !turn.taken {
            turn.taken = true;
            // Woken for another reason, it may be queued still: whoever is woken in its place would be forgotten.
            turn.waiting.retain(|thread| thread.index != me.index);
            return has_slept;
        }
        let is_queued = turn.waiting.iter().any(|thread| thread.index == me.index) || turn.waiting.try_push(me).is_ok();
        drop(turn);
        if is_queued {
            sched::block(None);
            has_slept = true;
        } else {
            sched::yield_now();
        }
    }
}
