//! What arrives by the port: a separate thread decodes it, so that the consoles' thread does not wait for transfers, nor
//! transfers for it.
//!
//! Frames for the consoles' thread go into a box of fixed size, from which it takes them in order. While the box is full nothing
//! is read, and the tool has to wait. All memory for this is taken before the port is used, so that no frame finds none.

extern crate alloc;

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use abi::link::{self, Channel, Decoder, Event};
use drivers::virtio::console::MOST_AT_ONCE;
use fair::Ring;
use hw::sync::{IrqLock, unmask_irqs};

use crate::exit::interrupts::{self, Handler};
use crate::output::{self, port};
use crate::sched::{self, Thread};
use crate::vm::host_disk;

/// The thread's weight, that of one more guest.
const WEIGHT: u16 = abi::bundle::DEFAULT_WEIGHT;
/// What stands before a payload in the box: the channel's number and the length.
const HEAD: usize = 3;

/// The box.
struct Posted {
    /// Heads and payloads, whole ones only. A large piece has its head here alone.
    ring: Ring<4096>,
    /// The large piece, if there is one.
    piece: Option<Vec<u8>>,
    /// The memory for the next one, while nobody has it.
    spare: Option<Vec<u8>>,
    /// Where frames are put together, until the port's thread has it.
    buffer: Vec<u8>,
    /// The port's thread waits for room.
    waiter: Option<&'static Thread>,
}

/// Something is in the box: changed under its lock, and looked at without it, in each round of the consoles' thread.
static IS_POSTED: AtomicBool = AtomicBool::new(false);
static POSTED: IrqLock<Posted> =
    IrqLock::new(Posted { ring: Ring::new(), piece: None, spare: None, buffer: Vec::new(), waiter: None });
/// A frame arrived that was damaged: what was asked by it is not known.
static IS_DAMAGED: AtomicBool = AtomicBool::new(false);

/// Bytes of the heap that are taken while there is a port: where frames of all channels are put together, and a large piece.
pub(super) const HEAP: usize = link::decoder_buffer(link::MAX_BULK) + link::MAX_BULK;

/// Takes what memory there has to be.
fn prepare() -> Result<(), TryReserveError> {
    let (mut buffer, mut spare) = (Vec::new(), Vec::new());
    buffer.try_reserve_exact(link::decoder_buffer(link::MAX_BULK))?;
    buffer.resize(link::decoder_buffer(link::MAX_BULK), 0);
    spare.try_reserve_exact(link::MAX_BULK)?;
    let mut posted = POSTED.lock();
    posted.buffer = buffer;
    posted.spare = Some(spare);
    Ok(())
}

/// Looks for a port. If there is one, the thread is started that takes what comes by it.
#[inline(never)]
pub(super) fn start() {
    if !port::may_be() {
        return;
    }
    if prepare().is_err() {
        return log::warn!("the link's port is not used: there is no memory for what comes by it");
    }
    let Some(line) = port::find() else { return abandon() };
    let thread = match Thread::spawn("link", run, 0, (WEIGHT, u64::MAX)) {
        Ok(thread) => thread,
        Err(error) => return log::warn!("the link's port is not used: {error}"),
    };
    port::set_thread(thread);
    // One that shares its line with a disk hears of its interrupts from there.
    let connected = if host_disk::has(line) { Ok(()) } else { interrupts::connect(line, Handler::LinkPort, 0) };
    match connected {
        // What the device has said meanwhile came without an interrupt that anybody handled. It is taken back here: the line of
        // a device that interrupts by edges would stay up, and no other edge would ever come.
        Ok(()) => port::interrupted(),
        Err(error) => {
            log::warn!("the link's port is not used: its interrupt {}: {}", line.interrupt.0, error.sentence())
        }
    }
}

/// There is no port: nobody needs the memory for it.
fn abandon() {
    let mut posted = POSTED.lock();
    let unused = (core::mem::take(&mut posted.buffer), posted.spare.take());
    drop(posted);
    drop(unused);
}

fn run(_: usize) -> ! {
    unmask_irqs();
    let buffer = core::mem::take(&mut POSTED.lock().buffer);
    let mut decoder = Decoder::with_buffer(buffer, hw::memory::crc32c);
    let mut piece = [0; MOST_AT_ONCE];
    loop {
        port::attend();
        match port::receive(&mut piece) {
            0 => sched::block(None),
            count => {
                let mut bytes = piece.get(..count).unwrap_or_default();
                while let Some(event) = decoder.take(&mut bytes) {
                    hear(&event);
                }
                sched::yield_now();
            }
        }
    }
}

fn hear(event: &Event<'_>) {
    match *event {
        Event::Frame { channel: Channel::Bulk, payload } => post_piece(payload),
        Event::Frame { channel, payload } => post(channel, payload, None),
        // The port carries frames alone; a text byte is one of a frame that was cut off, and each is not worth a line.
        Event::Text(_) => {}
        Event::Damaged => {
            log::warn!("link: a damaged frame arrived");
            // Looked at by the consoles' thread when it has sent the line.
            IS_DAMAGED.store(true, Ordering::Relaxed);
        }
    }
}

/// Whether a damaged frame has arrived since this was asked last.
pub(super) fn take_damaged() -> bool {
    IS_DAMAGED.load(Ordering::Relaxed) && IS_DAMAGED.swap(false, Ordering::Relaxed)
}

/// Puts a large piece into the box, in its place between the frames.
fn post_piece(payload: &[u8]) {
    // Without a lock, it is large. There is room for the longest that a frame can have.
    let mut piece = spare();
    piece.clear();
    piece.extend_from_slice(payload);
    post(Channel::Bulk, &[], Some(piece));
}

/// The memory for a large piece; waits until nobody else has it.
fn spare() -> Vec<u8> {
    loop {
        let mut posted = POSTED.lock();
        if let Some(spare) = posted.spare.take() {
            return spare;
        }
        posted.waiter = Some(sched::current());
        drop(posted);
        port::attend();
        sched::block(None);
    }
}

/// Puts a frame into the box, or a large piece; waits for room.
fn post(channel: Channel, payload: &[u8], mut piece: Option<Vec<u8>>) {
    let Some(number) = channel.number() else {
        return;
    };
    loop {
        let mut posted = POSTED.lock();
        if posted.ring.room() >= HEAD + payload.len() && (piece.is_none() || posted.piece.is_none()) {
            if let Some(piece) = piece.take() {
                posted.piece = Some(piece);
            }
            let [low, high] = (payload.len() as u16).to_le_bytes();
            [number, low, high].iter().chain(payload).for_each(|&byte| posted.ring.push(byte));
            IS_POSTED.store(true, Ordering::Relaxed);
            drop(posted);
            // The reader looks at the flag without the lock. Where it did so just before, it would sleep beside a full box.
            output::look_again();
            output::wake_reader();
            return;
        }
        posted.waiter = Some(sched::current());
        drop(posted);
        // Whoever is to make room may be waiting for the port itself, of which this thread alone hears.
        port::attend();
        sched::block(None);
    }
}

/// Gives a large piece's memory back.
pub(super) fn give_back(piece: Vec<u8>) {
    let mut posted = POSTED.lock();
    posted.spare = Some(piece);
    let waiter = posted.waiter.take();
    drop(posted);
    if let Some(waiter) = waiter {
        sched::wake(waiter);
    }
}

/// Whether something is in the box.
pub(super) fn is_any() -> bool {
    IS_POSTED.load(Ordering::Relaxed)
}

/// Takes the next frame out of the box into `payload`, or the large piece; says whose it is, how long, and which piece.
pub(super) fn next(payload: &mut [u8; link::MAX_PAYLOAD]) -> Option<(Channel, usize, Option<Vec<u8>>)> {
    let mut posted = POSTED.lock();
    let mut head = [0; HEAD];
    if posted.ring.pop_into(&mut head) < HEAD {
        IS_POSTED.store(false, Ordering::Relaxed);
        return None;
    }
    let [number, low, high] = head;
    let length =
        payload.get_mut(..usize::from(u16::from_le_bytes([low, high]))).map_or(0, |room| posted.ring.pop_into(room));
    let channel = Channel::from_number(number)?;
    // Under the same lock as its head, before the port's thread is woken: that would find the last piece still in its place
    // otherwise, wait again, and not be woken a second time.
    let piece = if channel == Channel::Bulk { posted.piece.take() } else { None };
    let waiter = posted.waiter.take();
    drop(posted);
    if let Some(waiter) = waiter {
        sched::wake(waiter);
    }
    Some((channel, length, piece))
}
