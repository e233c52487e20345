//! The transport: negotiation, the status machine, and what happens to drivers that break the rules.

use std::vec::Vec;

use devices::AccessSize;

use super::{Early, Effect, Mmio, register};
use crate::console::{Console, RECEIVE, TRANSMIT};
use crate::device::Progress;
use crate::entropy::Entropy;
use crate::queue::QueueError;
use crate::testing::{AVAILABLE, BUFFERS, DESCRIPTORS, INDIRECT, NEXT, RAM, Ram, Reluctant, USED, WRITE};
use proptest::prelude::*;

mod bus;
mod edges;

const WORD: AccessSize = AccessSize::Word;
const SIZE: u16 = 8;

fn set<D: crate::Device>(mmio: &mut Mmio<D>, offset: u64, value: u64) {
    assert_eq!(mmio.write(offset, WORD, value), Effect::None, "register {offset:#x}");
}

/// Accepts `features` and sets queue `queue` up at the usual place, up to but without DRIVER_OK.
fn negotiate<D: crate::Device>(mmio: &mut Mmio<D>, features: u64, queue: u16) {
    set(mmio, register::STATUS, 3);
    for half in 0..2 {
        set(mmio, register::DRIVER_FEATURES_SEL, half);
        set(mmio, register::DRIVER_FEATURES, features >> (32 * half) & 0xffff_ffff);
    }
    set(mmio, register::STATUS, 11);
    set(mmio, register::QUEUE_SEL, queue.into());
    set(mmio, register::QUEUE_SIZE, SIZE.into());
    set(mmio, register::QUEUE_DESC_LOW, DESCRIPTORS);
    set(mmio, register::QUEUE_DRIVER_LOW, AVAILABLE);
    set(mmio, register::QUEUE_DEVICE_LOW, USED);
}

fn started_console(queue: u16) -> Mmio<Console> {
    let mut mmio = Mmio::new(Console::new());
    negotiate(&mut mmio, 1 << 32, queue);
    set(&mut mmio, register::QUEUE_READY, 1);
    assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
    mmio
}

#[test]
fn identifies_itself_and_offers_its_features() {
    let mut mmio = Mmio::new(Console::new());
    assert_eq!(mmio.read(0, WORD), 0x7472_6976);
    assert_eq!(mmio.read(4, WORD), 2);
    assert_eq!(mmio.read(8, WORD), 3);
    assert_eq!(mmio.read(register::DEVICE_FEATURES, WORD), 1 << 28 | 1 << 29 | 1);
    set(&mut mmio, register::DEVICE_FEATURES_SEL, 1);
    assert_eq!(mmio.read(register::DEVICE_FEATURES, WORD), 1);
    set(&mut mmio, register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(mmio.read(register::DEVICE_FEATURES, WORD), 0);
    assert_eq!(mmio.read(register::QUEUE_SIZE_MAX, WORD), 256, "drivers want 128 at least");
    set(&mut mmio, register::QUEUE_SEL, 2);
    assert_eq!(mmio.read(register::QUEUE_SIZE_MAX, WORD), 0);
    assert_eq!(mmio.read(0, AccessSize::Byte), 0);
}

#[test]
fn features_that_were_not_offered_or_are_legacy_are_refused() {
    for features in [0, 1 << 32 | 1 << 5] {
        let mut mmio = Mmio::new(Console::new());
        negotiate(&mut mmio, features, 0);
        assert_eq!(mmio.read(register::STATUS, WORD), 3);
        // Going on regardless does not start the device.
        set(&mut mmio, register::STATUS, 7);
        assert!(!mmio.is_live());
    }
}

#[test]
fn what_was_agreed_on_can_not_be_changed() {
    let mut mmio = started_console(TRANSMIT);
    set(&mut mmio, register::DRIVER_FEATURES_SEL, 0);
    set(&mut mmio, register::DRIVER_FEATURES, u32::MAX.into());
    set(&mut mmio, register::STATUS, 1);
    assert_eq!(mmio.read(register::STATUS, WORD), 15);
    set(&mut mmio, register::QUEUE_SIZE, 3);
    assert_eq!(mmio.read(register::QUEUE_READY, WORD), 1);
    assert!(mmio.is_live());
}

#[test]
fn output_goes_out_and_stops_when_nobody_takes_it() {
    let ram = Ram::new();
    let mut mmio = started_console(TRANSMIT);
    for head in 0..3 {
        ram.descriptor(DESCRIPTORS, head, (BUFFERS, 2000), 0, 0);
    }
    ram.put(BUFFERS, b"first");
    ram.offer(SIZE, 0, &[0, 1, 2]);
    assert_eq!(mmio.write(register::QUEUE_NOTIFY, WORD, TRANSMIT.into()), Effect::Notify(TRANSMIT));
    // 4096 bytes fit: two buffers, and a part of the third.
    assert_eq!(mmio.process(TRANSMIT, &ram), Ok(Progress::Blocked));
    assert_eq!((mmio.device().output_pending(), ram.half(USED + 2)), (4096, 2));
    assert!(mmio.line());
    assert_eq!(mmio.read(register::INTERRUPT_STATUS, WORD), 1);
    set(&mut mmio, register::INTERRUPT_ACK, 1);
    assert!(!mmio.line());

    let mut output = Vec::new();
    let mut take = |bytes: &[u8]| {
        output.extend_from_slice(bytes);
        bytes.len()
    };
    assert_eq!(mmio.device_mut().take_output(&mut take), 4096);
    assert_eq!(mmio.process(TRANSMIT, &ram), Ok(Progress::Idle));
    assert_eq!(mmio.device_mut().take_output(&mut take), 2000 * 3 - 4096);
    assert_eq!((&output[..5], &output[2000..2005], output.len()), (&b"first"[..], &b"first"[..], 6000));
    assert_eq!((ram.half(USED + 2), ram.used(2)), (3, (2, 0)));
}

#[test]
fn input_waits_for_a_buffer() {
    let ram = Ram::new();
    let mut mmio = started_console(RECEIVE);
    assert_eq!(mmio.device_mut().push_input(b"typed"), 5);
    assert_eq!(mmio.process(RECEIVE, &ram), Ok(Progress::Idle));
    assert!(!mmio.line());
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 3), WRITE, 0);
    ram.descriptor(DESCRIPTORS, 1, (BUFFERS + 3, 3), WRITE, 0);
    ram.offer(SIZE, 0, &[0, 1]);
    assert_eq!(mmio.poll(&ram), Ok(Progress::Idle));
    assert!(mmio.line());
    assert_eq!(ram.get(BUFFERS, 6), b"typed\0");
    assert_eq!((ram.used(0), ram.used(1)), ((0, 3), (1, 2)));
}

#[test]
fn entropy_fills_buffers_in_shares() {
    let ram = Ram::new();
    let mut mmio = Mmio::new(Entropy::new(|bytes: &mut [u8]| bytes.fill(0xa5)));
    negotiate(&mut mmio, 1 << 32, 0);
    set(&mut mmio, register::QUEUE_READY, 1);
    assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 100), WRITE, 0);
    ram.descriptor(DESCRIPTORS, 1, (BUFFERS + 100, 0x4000), WRITE, 0);
    ram.offer(SIZE, 0, &[0, 1, 0]);
    for _ in 0..4 {
        assert_eq!(mmio.process(0, &ram), Ok(Progress::More));
        assert_eq!((ram.half(USED + 2), ram.used(0)), (1, (0, 100)));
    }
    assert_eq!(mmio.process(0, &ram), Ok(Progress::Idle));
    assert_eq!(ram.used(1), (1, 1024));
    assert_eq!(ram.half(USED + 2), 3);
    assert_eq!(ram.get(BUFFERS, 1125), [&[0xa5; 1124][..], &[0]].concat());
}

#[test]
fn a_broken_queue_stops_the_device_until_it_is_reset() {
    let ram = Ram::new();
    let mut mmio = started_console(TRANSMIT);
    ram.offer(SIZE, 0, &[SIZE]);
    assert_eq!(mmio.process(TRANSMIT, &ram), Err(QueueError::NoSuchDescriptor(SIZE)));
    assert_eq!(mmio.read(register::STATUS, WORD), 15 | 64);
    assert_eq!(mmio.read(register::INTERRUPT_STATUS, WORD), 2);
    assert_eq!(mmio.process(TRANSMIT, &ram), Ok(Progress::Idle));
    assert_eq!(mmio.write(register::QUEUE_NOTIFY, WORD, TRANSMIT.into()), Effect::None);
    assert_eq!(mmio.write(register::STATUS, WORD, 0), Effect::Reset);
    assert!(!mmio.line());
    assert_eq!(mmio.read(register::STATUS, WORD), 0);
    assert_eq!(mmio.read(register::QUEUE_READY, WORD), 0);
}

#[test]
fn a_queue_set_up_wrongly_stops_the_device() {
    let mut mmio = Mmio::new(Console::new());
    negotiate(&mut mmio, 1 << 32, 0);
    set(&mut mmio, register::QUEUE_DRIVER_LOW, RAM + 1);
    assert_eq!(mmio.write(register::QUEUE_READY, WORD, 1), Effect::Broken(QueueError::InvalidSetup(0)));
    assert_eq!(mmio.read(register::STATUS, WORD), 11 | 64);
    assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::None);
    assert!(!mmio.is_live());
}

/// LK's driver makes its queues ready before it sets FEATURES_OK; QEMU's devices take that.
#[test]
fn a_queue_may_be_set_up_before_the_features_are_agreed_on() {
    let ram = Ram::new();
    let mut mmio = Mmio::new(Console::new());
    set(&mut mmio, register::STATUS, 3);
    set(&mut mmio, register::QUEUE_SEL, TRANSMIT.into());
    set(&mut mmio, register::QUEUE_SIZE, SIZE.into());
    set(&mut mmio, register::QUEUE_DESC_LOW, DESCRIPTORS);
    set(&mut mmio, register::QUEUE_DRIVER_LOW, AVAILABLE);
    set(&mut mmio, register::QUEUE_DEVICE_LOW, USED);
    set(&mut mmio, register::QUEUE_READY, 1);
    set(&mut mmio, register::DRIVER_FEATURES, 1 << 28);
    set(&mut mmio, register::DRIVER_FEATURES_SEL, 1);
    set(&mut mmio, register::DRIVER_FEATURES, 1);
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 16), INDIRECT, 0);
    ram.descriptor(BUFFERS, 0, (BUFFERS + 0x800, 5), 0, 0);
    ram.offer(SIZE, 0, &[0]);
    assert_eq!(mmio.process(TRANSMIT, &ram), Ok(Progress::Idle));
    set(&mut mmio, register::STATUS, 11);
    assert_eq!((mmio.read(register::STATUS, WORD), mmio.read(register::QUEUE_READY, WORD)), (11, 1));
    assert_eq!(mmio.device().output_pending(), 0, "nothing is looked at before DRIVER_OK");
    assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
    // The descriptor is indirect: the queue has the features that were agreed on after it was made ready.
    assert_eq!((mmio.poll(&ram), mmio.device().output_pending()), (Ok(Progress::Idle), 5));
}

/// A driver that breaks the order of initialisation waits for ever: the log says why, once in each life of the device, and what
/// would be right. When the driver goes on, so does the device.
#[test]
fn a_notification_that_comes_to_nothing_is_told_once() {
    let ram = Ram::new();
    let mut mmio = Mmio::new(Console::new());
    let notify = |mmio: &mut Mmio<Console>, queue: u32| mmio.write(register::QUEUE_NOTIFY, WORD, queue.into());
    for _ in 0..2 {
        set(&mut mmio, register::STATUS, 3);
        assert_eq!(notify(&mut mmio, 1), Effect::InVain(Early::Features { queue: 1, status: 3 }));
        for queue in [0, 1, 2, 77, u32::MAX] {
            assert_eq!(notify(&mut mmio, queue), Effect::None);
        }
        assert_eq!(mmio.write(register::STATUS, WORD, 0), Effect::Reset);
    }
    negotiate(&mut mmio, 1 << 32, TRANSMIT);
    set(&mut mmio, register::QUEUE_READY, 1);
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 5), 0, 0);
    ram.offer(SIZE, 0, &[0]);
    let early = Early::Driver { queue: 1, status: 11 };
    assert_eq!(notify(&mut mmio, 1), Effect::InVain(early));
    assert_eq!(mmio.process(TRANSMIT, &ram), Ok(Progress::Idle));
    assert_eq!(mmio.device().output_pending(), 0, "nothing is looked at before DRIVER_OK");
    let said = std::format!("{early}");
    assert!(said.contains("Status is 0xb, without DRIVER_OK (4)") && said.contains("notifies after that"), "{said}");
    assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
    assert_eq!((mmio.poll(&ram), mmio.device().output_pending()), (Ok(Progress::Idle), 5));
    assert_eq!(notify(&mut mmio, 1), Effect::Notify(TRANSMIT));
    assert_eq!(notify(&mut mmio, 0), Effect::None, "one line is enough");
}

#[test]
fn notifications_of_queues_that_are_not_there_are_told() {
    for (queue, exists) in [(0, true), (2, false), (u32::MAX, false)] {
        let mut mmio = started_console(TRANSMIT);
        let effect = mmio.write(register::QUEUE_NOTIFY, WORD, queue.into());
        assert_eq!(effect, Effect::InVain(Early::Queue { queue, exists }));
    }
    let mut stopped = started_console(TRANSMIT);
    stopped.stop();
    assert_eq!(stopped.write(register::QUEUE_NOTIFY, WORD, 0), Effect::None, "why it stopped was told then");
}

/// The device stands in the middle of a buffer, since nobody takes its output, and the driver takes the queue back and sets
/// another one up.
#[test]
fn a_queue_that_is_set_up_anew_has_nothing_of_the_old_one() {
    let ram = Ram::new();
    let mut mmio = started_console(TRANSMIT);
    ram.descriptor(DESCRIPTORS, 5, (BUFFERS, 4096 + 7), 0, 0);
    ram.offer(SIZE, 0, &[5]);
    assert_eq!(mmio.process(TRANSMIT, &ram), Ok(Progress::Blocked));
    set(&mut mmio, register::QUEUE_READY, 0);
    // A driver that breaks off does not have to be waited for: the memory is its own.
    ram.put(BUFFERS, b"new");
    ram.descriptor(DESCRIPTORS, 2, (BUFFERS, 3), 0, 0);
    ram.offer(SIZE, 0, &[2]);
    ram.put(USED + 2, &[0, 0]);
    set(&mut mmio, register::QUEUE_READY, 1);
    assert_eq!(mmio.device_mut().take_output(|bytes| bytes.len()), 4096);
    assert_eq!(mmio.process(TRANSMIT, &ram), Ok(Progress::Idle));
    let mut output = Vec::new();
    mmio.device_mut().take_output(|bytes| {
        output.extend_from_slice(bytes);
        bytes.len()
    });
    assert_eq!((ram.half(USED + 2), ram.used(0)), (1, (2, 0)), "one buffer was offered, and that one came back");
    assert_eq!(output, b"new");
}

/// Lets the device take a buffer whose memory is not ready, takes the queue back, and offers another one.
fn is_let_go<D: crate::Device>(mmio: &mut Mmio<D>) {
    let memory = Reluctant::new(Ram::new());
    memory.ram.descriptor(DESCRIPTORS, 5, (BUFFERS + 0x800, 16), WRITE, 0);
    memory.ram.offer(SIZE, 0, &[5]);
    // The ring becomes ready, then the descriptors; the buffer is taken and not ready when the driver breaks off.
    for _ in 0..3 {
        memory.next_turn(100);
        assert_eq!(mmio.process(0, &memory), Ok(Progress::More));
    }
    set(mmio, register::QUEUE_READY, 0);
    memory.ram.descriptor(DESCRIPTORS, 2, (BUFFERS, 1), WRITE, 0);
    memory.ram.offer(SIZE, 0, &[2]);
    set(mmio, register::QUEUE_READY, 1);
    work(mmio, 0, &memory, 100);
    assert_eq!((memory.ram.half(USED + 2), memory.ram.used(0)), (1, (2, 1)));
}

#[test]
fn a_buffer_half_filled_is_not_returned_to_a_queue_that_never_had_it() {
    let mut console = started_console(RECEIVE);
    console.device_mut().push_input(b"x");
    is_let_go(&mut console);
    let mut entropy = Mmio::new(Entropy::new(|bytes: &mut [u8]| bytes.fill(0xee)));
    negotiate(&mut entropy, 1 << 32, 0);
    set(&mut entropy, register::QUEUE_READY, 1);
    assert_eq!(entropy.write(register::STATUS, WORD, 15), Effect::Started);
    is_let_go(&mut entropy);
}

#[test]
fn a_new_window_size_reaches_the_driver() {
    let mut mmio = started_console(RECEIVE);
    mmio.device_mut().set_size(120, 50);
    mmio.config_changed();
    assert_eq!(mmio.read(register::INTERRUPT_STATUS, WORD), 2);
    assert_eq!(mmio.read(register::CONFIG_GENERATION, WORD), 1);
    assert_eq!(mmio.read(register::CONFIG, AccessSize::Half), 120);
    assert_eq!(mmio.read(register::CONFIG, WORD), 50 << 16 | 120);
    assert_eq!(mmio.read(register::CONFIG + 3, WORD), 0);
    assert_eq!(mmio.read(register::CONFIG + 0x80, WORD), 0);
}

/// Drivers that look into every window of the machine go by these three.
#[test]
fn a_vacant_window_says_that_it_is_one() {
    let mmio = Mmio::new(Console::new());
    for offset in (0..super::WINDOW_SIZE).step_by(4) {
        let same = matches!(offset, register::MAGIC_VALUE | register::VERSION | register::VENDOR_ID);
        let expected = if same { mmio.read(offset, WORD) } else { 0 };
        assert_eq!(super::Vacant.register(offset, WORD), expected, "register {offset:#x}");
    }
    for size in [AccessSize::Byte, AccessSize::Half, AccessSize::Double] {
        assert_eq!(super::Vacant.register(0, size), mmio.read(0, size));
    }
}

/// Lets the device work on `queue` until there is nothing to do, and prepares memory between two calls; returns how many calls
/// it took.
fn work<D: crate::Device>(mmio: &mut Mmio<D>, queue: u16, memory: &Reluctant, accesses: usize) -> usize {
    for calls in 1..10_000 {
        match mmio.process(queue, memory).unwrap() {
            Progress::More => {}
            Progress::Idle | Progress::Blocked => return calls,
        }
        memory.next_turn(accesses);
    }
    panic!("it comes to no end");
}

#[test]
fn memory_that_is_not_ready_is_waited_for_outside_of_the_call() {
    const BLOCKS: u16 = 8;
    let ram = Ram::new();
    let mut mmio = Mmio::new(Entropy::new(|bytes: &mut [u8]| bytes.fill(0xee)));
    negotiate(&mut mmio, 1 << 32, 0);
    set(&mut mmio, register::QUEUE_READY, 1);
    assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
    for index in 0..BLOCKS {
        let flags = if index + 1 < BLOCKS { WRITE | NEXT } else { WRITE };
        ram.descriptor(DESCRIPTORS, index, (BUFFERS + u64::from(index) * 256, 1), flags, index + 1);
    }
    ram.offer(SIZE, 0, &[0]);
    let memory = Reluctant::new(ram);
    let (mut calls, mut prepared) = (0, 0);
    loop {
        prepared += usize::from(memory.next_turn(100));
        calls += 1;
        if mmio.process(0, &memory) == Ok(Progress::Idle) {
            break;
        }
        assert!(calls < 100 && mmio.is_live(), "stopped, although the driver did nothing wrong");
    }
    // The buffers, the descriptors, and the two rings, each in a call of its own.
    assert_eq!((prepared, calls), (usize::from(BLOCKS) + 3, usize::from(BLOCKS) + 4));
    assert_eq!((memory.ram.half(USED + 2), memory.ram.used(0)), (1, (0, BLOCKS.into())));
    assert!(mmio.line());
    assert_eq!(memory.ram.get(BUFFERS + 256, 2), [0xee, 0]);
}

/// The longest chain that there can be takes many more accesses than a turn has, whatever its pieces are.
#[test]
fn a_chain_that_is_longer_than_a_turn_is_collected_in_several() {
    const ACCESSES: usize = 10;
    for length in [0, 1] {
        let memory = Reluctant::new(Ram::new());
        let mut mmio = Mmio::new(Entropy::new(|bytes: &mut [u8]| bytes.fill(0xee)));
        negotiate(&mut mmio, 1 << 32, 0);
        set(&mut mmio, register::QUEUE_SIZE, 256);
        set(&mut mmio, register::QUEUE_READY, 1);
        assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
        for index in 0..256 {
            let flags = if index < 255 { WRITE | NEXT } else { WRITE };
            memory.ram.descriptor(DESCRIPTORS, index, (BUFFERS + u64::from(index), length), flags, index + 1);
        }
        memory.ram.offer(256, 0, &[0, 0]);
        let calls = work(&mut mmio, 0, &memory, ACCESSES);
        assert_eq!((memory.ram.half(USED + 2), memory.ram.used(1)), (2, (0, 256 * length)));
        assert!(calls > 2 * 256 / ACCESSES && mmio.is_live(), "{calls} calls");
        // The driver breaks off in the midst of one, and the next one is collected from its own beginning.
        memory.ram.offer(256, 2, &[0]);
        memory.next_turn(ACCESSES);
        assert_eq!(mmio.process(0, &memory), Ok(Progress::More));
        set(&mut mmio, register::QUEUE_READY, 0);
        memory.ram.descriptor(DESCRIPTORS, 7, (BUFFERS, 3), WRITE, 0);
        memory.ram.offer(256, 0, &[7]);
        set(&mut mmio, register::QUEUE_READY, 1);
        work(&mut mmio, 0, &memory, ACCESSES);
        assert_eq!((memory.ram.half(USED + 2), memory.ram.used(0)), (1, (7, 3)));
    }
}

/// A driver whose device never comes to an end hears of each buffer that is done.
#[test]
fn what_is_done_is_told_of_though_there_is_more_to_do() {
    let memory = Reluctant::new(Ram::new());
    let mut mmio = Mmio::new(Entropy::new(|bytes: &mut [u8]| bytes.fill(0xee)));
    negotiate(&mut mmio, 1 << 32, 0);
    set(&mut mmio, register::QUEUE_READY, 1);
    assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
    memory.ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 1), WRITE, 0);
    // The second is in memory that nobody makes ready.
    memory.ram.descriptor(DESCRIPTORS, 1, (BUFFERS + 0x800, 1), WRITE, 0);
    memory.ram.offer(SIZE, 0, &[0, 1]);
    // The available ring, the descriptors, the buffer and the used ring have to be made ready first.
    for _ in 0..5 {
        assert!(!mmio.line(), "nothing is done yet");
        memory.next_turn(100);
        assert_eq!(mmio.process(0, &memory), Ok(Progress::More));
    }
    assert_eq!((memory.ram.half(USED + 2), mmio.line()), (1, true));
}

/// Whoever only looks whether there is a buffer writes nothing where the driver was asked already.
#[test]
fn a_driver_is_asked_once_to_notify() {
    let ram = Ram::new();
    let mut mmio = Mmio::new(Console::new());
    negotiate(&mut mmio, 1 << 32 | 1 << 29, TRANSMIT);
    set(&mut mmio, register::QUEUE_READY, 1);
    assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
    let event = USED + 4 + 8 * u64::from(SIZE);
    let mut ask = |expected: u16, offered: &[u16]| {
        ram.put(event, &[0xaa; 2]);
        ram.offer(SIZE, 0, offered);
        assert_eq!(mmio.process(TRANSMIT, &ram), Ok(Progress::Idle));
        assert_eq!(ram.half(event), expected, "behind {} buffers", offered.len());
    };
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 1), 0, 0);
    ask(0, &[]);
    ask(0xaaaa, &[]);
    ask(1, &[0]);
    ask(0xaaaa, &[0]);
}

/// Chains of at most 8 descriptors in all: where each piece of memory is, and how long.
fn chains() -> impl Strategy<Value = Vec<Vec<(u64, u32)>>> {
    let piece = (0u64..0x4000, 0u32..700).prop_map(|(at, length)| (BUFFERS + at, length));
    prop::collection::vec(prop::collection::vec(piece, 1..4), 1..3)
}

fn offer(ram: &Ram, chains: &[Vec<(u64, u32)>], flags: u16) {
    let mut index = 0;
    let mut heads = Vec::new();
    for chain in chains {
        heads.push(index);
        for (nth, &piece) in chain.iter().enumerate() {
            let more = if nth + 1 < chain.len() { NEXT } else { 0 };
            ram.descriptor(DESCRIPTORS, index, piece, flags | more, index + 1);
            index += 1;
        }
    }
    ram.offer(SIZE, 0, &heads);
}

proptest! {
    /// Wherever a device has to stop, what comes of it is what would have come without.
    #[test]
    fn work_in_pieces_gives_what_work_in_one_gives(
        chains in chains(), accesses in 10usize..30, input in prop::collection::vec(any::<u8>(), 1..1000),
    ) {
        for (queue, flags) in [(TRANSMIT, 0), (RECEIVE, WRITE)] {
            let whole = Reluctant::new(Ram::new());
            let pieces = Reluctant::new(Ram::new());
            let [one, other] = [(&whole, None), (&pieces, Some(accesses))].map(|(memory, accesses)| {
                for at in 0..0x4800 {
                    memory.ram.put(BUFFERS + at, &[(at % 251) as u8]);
                }
                offer(&memory.ram, &chains, flags);
                let mut mmio = started_console(queue);
                mmio.device_mut().push_input(&input);
                let calls = match accesses {
                    None => usize::from(mmio.process(queue, &memory.ram) != Ok(Progress::More)),
                    Some(accesses) => work(&mut mmio, queue, memory, accesses),
                };
                assert!(calls > 0 && mmio.is_live());
                let mut output = Vec::new();
                mmio.device_mut().take_output(|bytes| {
                    output.extend_from_slice(bytes);
                    bytes.len()
                });
                (output, mmio.line(), memory.ram.get(RAM, 0x1_0000))
            });
            prop_assert!(one == other);
        }
    }
}
