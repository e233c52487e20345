//! The queue against a driver that keeps the rules, and against each way of breaking them.

use units::Ipa;

use super::{Queue, QueueError};
use crate::chain::Chain;
use crate::memory::Fault;
use crate::testing::{AVAILABLE, BUFFERS, DESCRIPTORS, INDIRECT, NEXT, RAM, Ram, USED, WRITE};

const SIZE: u16 = 8;

fn queue(event_index: bool, indirect: bool) -> Queue {
    let mut queue = Queue::new(SIZE);
    queue.set_features(event_index, indirect);
    queue.place(SIZE, Ipa(DESCRIPTORS), Ipa(AVAILABLE), Ipa(USED));
    assert!(queue.make_ready());
    queue
}

/// Takes the one chain that starts at descriptor 0.
fn pop_one(ram: &Ram, queue: &mut Queue) -> Result<Chain, QueueError> {
    let mut chain = Chain::new(SIZE);
    ram.offer(SIZE, 0, &[0]);
    queue.pop(ram, &mut chain)?;
    Ok(chain)
}

#[test]
fn a_request_is_read_and_its_answer_written_across_descriptors() {
    let ram = Ram::new();
    ram.put(BUFFERS, b"hello ");
    ram.put(BUFFERS + 0x100, b"world");
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 6), NEXT, 3);
    ram.descriptor(DESCRIPTORS, 3, (BUFFERS + 0x100, 5), NEXT, 5);
    ram.descriptor(DESCRIPTORS, 5, (BUFFERS + 0x200, 2), NEXT | WRITE, 1);
    ram.descriptor(DESCRIPTORS, 1, (BUFFERS + 0x300, 8), WRITE, 0);
    let mut queue = queue(false, false);
    let mut chain = pop_one(&ram, &mut queue).unwrap();
    assert_eq!((chain.unread(), chain.unwritten()), (11, 10));
    assert_eq!((chain.readable().len(), chain.writable().len()), (2, 2));

    let mut text = [0; 16];
    assert_eq!(chain.read(&ram, &mut text[..4]), Ok(4));
    assert_eq!(chain.read(&ram, &mut text[4..]), Ok(7));
    assert_eq!(&text[..11], b"hello world");
    assert_eq!(chain.write(&ram, b"abc"), Ok(3));
    assert_eq!(chain.write(&ram, b"defghijklm"), Ok(7));
    assert_eq!(ram.get(BUFFERS + 0x200, 2), b"ab");
    assert_eq!(ram.get(BUFFERS + 0x300, 8), b"cdefghij");

    queue.push(&ram, &chain).unwrap();
    assert_eq!((ram.used(0), ram.half(USED + 2)), ((0, 10), 1));
    assert_eq!(queue.take_interrupt(&ram), Ok(true));
    assert_eq!(queue.take_interrupt(&ram), Ok(false));
    assert_eq!(queue.pop(&ram, &mut chain), Ok(false));
}

/// A ring may end with the address space, and no later.
#[test]
fn rings_lie_within_the_address_space() {
    let ready = |descriptors: u64, available: u64, used: u64| {
        let mut queue = Queue::new(SIZE);
        queue.place(SIZE, Ipa(descriptors), Ipa(available), Ipa(used));
        queue.make_ready()
    };
    // Eight descriptors of 16 bytes; a header of four, eight entries of two or eight, and a word behind them.
    let [descriptors, available, used] = [128 + 16, 22 + 2, 70 + 2].map(|size: u64| size.wrapping_neg());
    assert!(ready(descriptors, available, used));
    assert!(!ready(descriptors + 16, available, used));
    assert!(!ready(descriptors, available + 2, used) && !ready(descriptors, available, used + 4));
}

#[test]
fn all_buffers_may_be_offered_at_once() {
    let ram = Ram::new();
    let (mut queue, mut chain) = (queue(false, false), Chain::new(SIZE));
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 1), 0, 0);
    ram.offer(SIZE, 0, &[0; SIZE as usize]);
    for _ in 0..SIZE {
        assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
    }
    assert_eq!(queue.pop(&ram, &mut chain), Ok(false));
}

#[test]
fn an_indirect_table_has_as_many_descriptors_as_its_length_says() {
    let ram = Ram::new();
    let table = RAM + 0x3000;
    ram.descriptor(DESCRIPTORS, 0, (table, 32), INDIRECT, 0);
    ram.descriptor(table, 0, (BUFFERS, 4), NEXT, 2);
    ram.descriptor(table, 2, (BUFFERS, 4), 0, 0);
    assert_eq!(pop_one(&ram, &mut queue(false, true)).err(), Some(QueueError::NoSuchDescriptor(2)));
}

#[test]
fn rings_wrap() {
    let ram = Ram::new();
    let mut queue = queue(true, false);
    let mut chain = Chain::new(SIZE);
    ram.descriptor(DESCRIPTORS, 2, (BUFFERS, 1), 0, 0);
    for round in 0..70_000u32 {
        ram.offer(SIZE, round as u16, &[2]);
        assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
        queue.push(&ram, &chain).unwrap();
    }
    assert_eq!(ram.half(USED + 2), (70_000u32 & 0xffff) as u16);
}

#[test]
fn indirect_descriptors_may_follow_direct_ones() {
    let ram = Ram::new();
    let table = RAM + 0x3000;
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 4), NEXT, 1);
    ram.descriptor(DESCRIPTORS, 1, (table, 32), INDIRECT, 0);
    ram.descriptor(table, 0, (BUFFERS + 8, 4), NEXT, 1);
    ram.descriptor(table, 1, (BUFFERS + 16, 4), WRITE, 0);
    let chain = pop_one(&ram, &mut queue(false, true)).unwrap();
    assert_eq!((chain.unread(), chain.unwritten()), (8, 4));
}

#[test]
fn event_index_asks_for_notification_when_empty_and_interrupts_when_passed() {
    let ram = Ram::new();
    let mut queue = queue(true, false);
    let mut chain = Chain::new(SIZE);
    for head in 0..SIZE {
        ram.descriptor(DESCRIPTORS, head, (BUFFERS, 1), 0, 0);
    }
    ram.offer(SIZE, 0, &[0, 1, 2]);
    // The driver wants to hear of the second buffer.
    ram.put(AVAILABLE + 4 + u64::from(SIZE) * 2, &1u16.to_le_bytes());
    let mut interrupts = [false; 3];
    for interrupt in &mut interrupts {
        assert_eq!(queue.pop(&ram, &mut chain), Ok(true));
        queue.push(&ram, &chain).unwrap();
        *interrupt = queue.take_interrupt(&ram).unwrap();
    }
    assert_eq!(interrupts, [false, true, false]);
    assert_eq!(ram.half(USED + 4 + u64::from(SIZE) * 8), 0);
    assert_eq!(queue.pop(&ram, &mut chain), Ok(false));
    assert_eq!(ram.half(USED + 4 + u64::from(SIZE) * 8), 3);
}

#[test]
fn interrupts_can_be_switched_off_by_flag() {
    let ram = Ram::new();
    let mut queue = queue(false, false);
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 1), 0, 0);
    ram.put(AVAILABLE, &1u16.to_le_bytes());
    let chain = pop_one(&ram, &mut queue).unwrap();
    queue.push(&ram, &chain).unwrap();
    assert_eq!(queue.take_interrupt(&ram), Ok(false));
}

#[test]
fn a_loop_ends_after_as_many_steps_as_the_queue_is_long() {
    let ram = Ram::new();
    for flags in [NEXT, NEXT | WRITE] {
        for length in [0, 1] {
            ram.descriptor(DESCRIPTORS, 0, (BUFFERS, length), flags, 1);
            ram.descriptor(DESCRIPTORS, 1, (BUFFERS, length), flags, 0);
            *ram.accesses.borrow_mut() = 0;
            assert_eq!(pop_one(&ram, &mut queue(true, true)).err(), Some(QueueError::ChainTooLong));
            assert!(*ram.accesses.borrow() <= usize::from(SIZE) + 5);
        }
    }
}

#[test]
fn a_chain_as_long_as_the_queue_is_fine_and_one_more_is_not() {
    let table = RAM + 0x3000;
    for (entries, expected) in [(SIZE, None), (SIZE + 1, Some(QueueError::ChainTooLong))] {
        let ram = Ram::new();
        ram.descriptor(DESCRIPTORS, 0, (table, u32::from(entries) * 16), INDIRECT, 0);
        for entry in 0..entries {
            let flags = if entry + 1 < entries { NEXT } else { 0 };
            ram.descriptor(table, entry, (BUFFERS, 1), flags, entry + 1);
        }
        assert_eq!(pop_one(&ram, &mut queue(false, true)).err(), expected);
    }
}

#[test]
fn each_broken_rule_has_its_error() {
    /// Address, length, flags, next.
    type Entry = (u64, u32, u16, u16);
    let cases: [(&[Entry], QueueError); 9] = [
        (&[(BUFFERS, 1, NEXT, SIZE)], QueueError::NoSuchDescriptor(SIZE)),
        (&[(BUFFERS, 1, NEXT | WRITE, 1), (BUFFERS, 1, 0, 0)], QueueError::ReadableAfterWritable),
        (&[(u64::MAX, 2, 0, 0)], QueueError::AddressWraps(Ipa(u64::MAX))),
        (&[(BUFFERS, u32::MAX, NEXT, 1), (BUFFERS, 1, WRITE, 0)], QueueError::ChainTooLarge),
        (&[(BUFFERS, 16, INDIRECT | NEXT, 1)], QueueError::MisplacedIndirect),
        (&[(BUFFERS, 17, INDIRECT, 0)], QueueError::IndirectLength(17)),
        (&[(BUFFERS, 0, INDIRECT, 0)], QueueError::IndirectLength(0)),
        (&[(0x1000, 16, INDIRECT, 0)], QueueError::Fault(Fault(Ipa(0x1000)))),
        // The table is itself: its first entry is indirect again.
        (&[(DESCRIPTORS, 16, INDIRECT, 0)], QueueError::MisplacedIndirect),
    ];
    for (descriptors, expected) in cases {
        let ram = Ram::new();
        for (index, &(address, length, flags, next)) in (0..).zip(descriptors) {
            ram.descriptor(DESCRIPTORS, index, (address, length), flags, next);
        }
        assert_eq!(pop_one(&ram, &mut queue(false, true)).err(), Some(expected));
    }
}

#[test]
fn indirect_without_the_feature_is_an_error() {
    let ram = Ram::new();
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 16), INDIRECT, 0);
    assert_eq!(pop_one(&ram, &mut queue(false, false)).err(), Some(QueueError::MisplacedIndirect));
}

#[test]
fn an_available_index_that_jumps_is_an_error() {
    let ram = Ram::new();
    ram.put(AVAILABLE + 2, &(SIZE + 1).to_le_bytes());
    let outcome = queue(false, false).pop(&ram, &mut Chain::new(SIZE));
    assert_eq!(outcome, Err(QueueError::AvailableIndex { index: SIZE + 1, expected: 0 }));
}

#[test]
fn a_buffer_outside_ram_shows_when_used() {
    let ram = Ram::new();
    ram.descriptor(DESCRIPTORS, 0, (0x1000, 4), NEXT, 1);
    ram.descriptor(DESCRIPTORS, 1, (RAM + 0xfffe, 4), WRITE, 0);
    let mut chain = pop_one(&ram, &mut queue(false, false)).unwrap();
    assert_eq!(chain.read(&ram, &mut [0; 4]), Err(Fault(Ipa(0x1000))));
    assert_eq!(chain.write(&ram, &[0; 4]), Err(Fault(Ipa(RAM + 0xfffe))));
}

#[test]
fn only_valid_places_make_a_queue_ready() {
    let (descriptors, available, used) = (Ipa(DESCRIPTORS), Ipa(AVAILABLE), Ipa(USED));
    let mut queue = Queue::new(SIZE);
    let mut ready = |size, descriptors, available, used| {
        queue.place(size, descriptors, available, used);
        queue.make_ready()
    };
    assert!(ready(1, descriptors, available, used));
    assert!(!ready(0, descriptors, available, used));
    assert!(!ready(3, descriptors, available, used));
    assert!(!ready(SIZE * 2, descriptors, available, used));
    assert!(!ready(SIZE, Ipa(DESCRIPTORS + 8), available, used));
    assert!(!ready(SIZE, descriptors, Ipa(AVAILABLE + 1), used));
    assert!(!ready(SIZE, descriptors, available, Ipa(USED + 2)));
    assert!(!ready(SIZE, Ipa(u64::MAX - 15), available, used));
    assert!(!ready(SIZE, descriptors, available, Ipa(u64::MAX - 3)));
}
