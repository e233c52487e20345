//! What carries the link, and who may use it: a frame goes out whole, whichever thread sends it, and other threads that send wait
//! for its end.
//!
//! It is the UART, or a port of a virtio console (`output::port`) while its other end is open. A message on the UART says when
//! the link moves to the port, and when it is back; the UART takes commands at any time.
//!
//! A thread that sends sleeps until it is its turn, and while there is no room: it must hold no lock.

use core::sync::atomic::{AtomicBool, Ordering};

use abi::link::{self, Carrier, Channel, Message};
use arrayvec::ArrayVec;
use hw::sync::IrqLock;
use hw::{sysreg, uart};
use units::Ticks;

use crate::host;
use crate::output;
use crate::output::port::{self, End, Writer};
use crate::sched::{self, Thread};

/// As many threads as may wait in their order; further ones try again and again.
const MAX_WAITING: usize = 8;

/// There is somebody who understands frames.
static FRAMED: AtomicBool = AtomicBool::new(false);
/// The link goes by the port.
static BY_PORT: AtomicBool = AtomicBool::new(false);
/// It has come back to the UART, and there nobody has been introduced since.
static IS_BACK: AtomicBool = AtomicBool::new(false);
static TURN: IrqLock<Turn> = IrqLock::new(Turn { taken: false, waiting: ArrayVec::new_const() });

/// Whose turn it is to send.
struct Turn {
    taken: bool,
    waiting: ArrayVec<&'static Thread, MAX_WAITING>,
}

/// Why a frame was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsent {
    /// The other side reads text.
    NobodyListens,
    /// The frame is longer than its channel's may be.
    TooLong,
    /// There was no room in time: some of it, or all, is lost.
    Lost,
}

/// Whether the link has frames now, or is text.
#[must_use]
pub(crate) fn is_framed() -> bool {
    FRAMED.load(Ordering::Relaxed)
}

/// Whether it goes by the port, where a large piece costs little and keeps nobody waiting for long.
#[must_use]
pub(crate) fn is_by_port() -> bool {
    BY_PORT.load(Ordering::Relaxed)
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
    with_turn(|| {
        if BY_PORT.load(Ordering::Relaxed) {
            match by_port(channel, parts) {
                // What is transferred was for the port, and is lost with it: the UART would take seconds for so large a piece.
                Err(Unsent::NobodyListens) => {
                    come_back();
                    if channel == Channel::Bulk {
                        return Err(Unsent::NobodyListens);
                    }
                }
                done => return done,
            }
        }
        by_uart(channel, parts)
    })
}

/// Whether there is a port with somebody at its other end: for checks.
#[must_use]
pub fn has_port() -> bool {
    port::is_open()
}

/// As [`send`], by that carrier and no other: for checks.
///
/// # Errors
/// When it cannot be sent so.
pub fn send_by(carrier: Carrier, channel: Channel, parts: &[&[u8]]) -> Result<(), Unsent> {
    with_turn(|| match carrier {
        Carrier::Uart => by_uart(channel, parts),
        Carrier::Port => by_port(channel, parts),
    })
}

fn by_port(channel: Channel, parts: &[&[u8]]) -> Result<(), Unsent> {
    let mut writer = Writer::new();
    link::encode_parts(channel, parts, hw::memory::crc32c, |run| writer.write(run)).map_err(|_| Unsent::TooLong)?;
    writer.finish().map_err(|end| match end {
        End::Full => Unsent::Lost,
        End::Shut => Unsent::NobodyListens,
    })
}

fn by_uart(channel: Channel, parts: &[&[u8]]) -> Result<(), Unsent> {
    let dropped = uart::dropped();
    link::encode_parts(channel, parts, hw::memory::crc32c, |run| run.iter().copied().for_each(uart::send))
        .map_err(|_| Unsent::TooLong)?;
    if uart::dropped() == dropped { Ok(()) } else { Err(Unsent::Lost) }
}

/// Whether there is no room now for what is to be sent. The thread that asks is woken when there is.
#[must_use]
pub(crate) fn is_full() -> bool {
    BY_PORT.load(Ordering::Relaxed) && port::is_full()
}

/// Sends a message by the UART, whatever carries the link.
fn say_by_uart(message: &Message<'_>) {
    let mut buffer = [0; link::MAX_PAYLOAD];
    if let Some(payload) = message.encode(&mut buffer) {
        let _ = by_uart(Channel::Control, &[payload]);
    }
}

/// The link goes by the UART again. It is this thread's turn.
fn come_back() {
    BY_PORT.store(false, Ordering::Relaxed);
    IS_BACK.store(true, Ordering::Relaxed);
    // Whoever reads text there would not know what it is.
    if is_framed() {
        say_by_uart(&Message::Carrier { carrier: Carrier::Uart });
    }
    log::warn!("link: nobody is at the other end of the port any more; it goes by the UART");
}

/// Lets the link go where it can. `hello` introduces the hypervisor. Says whether it has come by another way to whoever is at its
/// other end, who has to be told all anew.
pub(crate) fn choose(hello: fn() -> Message<'static>) -> bool {
    let (open, by_port) = (port::is_open(), BY_PORT.load(Ordering::Relaxed));
    if open && !by_port && is_framed() {
        with_turn(|| {
            say_by_uart(&hello());
            say_by_uart(&Message::Carrier { carrier: Carrier::Port });
            BY_PORT.store(true, Ordering::Relaxed);
            IS_BACK.store(false, Ordering::Relaxed);
        });
        if let Some(address) = port::address() {
            log::info!("link: it goes by the port {} of the virtio console at {address}", port::NAME);
        }
        return true;
    }
    if !open && by_port {
        with_turn(|| {
            // Another thread may have noticed it meanwhile.
            if BY_PORT.load(Ordering::Relaxed) {
                come_back();
            }
        });
    }
    IS_BACK.swap(false, Ordering::Relaxed)
}

/// Somebody has come to the UART: is told where the link goes, if it goes by the port. `hello` introduces the hypervisor.
pub(crate) fn point_out(hello: fn() -> Message<'static>) {
    if BY_PORT.load(Ordering::Relaxed) {
        with_turn(|| {
            say_by_uart(&hello());
            say_by_uart(&Message::Carrier { carrier: Carrier::Port });
        });
    }
}

/// Waits until all that was sent is gone, but no longer than `milliseconds`: the host is about to be switched off.
pub(crate) fn drain(milliseconds: u64) {
    let end = host::milliseconds().saturating_add(milliseconds);
    while BY_PORT.load(Ordering::Relaxed) && !port::is_drained() && host::milliseconds() < end {
        sched::block(Some(Ticks(sysreg::cntpct_el0().saturating_add(host::ticks(1000)))));
    }
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
