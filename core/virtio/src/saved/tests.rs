//! Any state that can be saved comes back as it was; what no driver can bring about is refused; and a device that was moved in
//! the middle of a chain goes on there.

use std::vec;
use std::vec::Vec;

use pack::testing::{assert_bounded, through_bytes};
use proptest::collection::vec as many;
use proptest::option;
use proptest::prelude::*;
use units::{Ipa, Range};

use super::{
    SavedBlock, SavedChain, SavedChanges, SavedConsole, SavedDiskRequest, SavedEntropy, SavedMmio, SavedQueue,
};
use crate::testing::{BUFFERS, DESCRIPTORS, Ram, USED, started};
use crate::{Block, Console, Device, Entropy, Mmio, Progress};

/// A chain of up to five pieces, worked on up to anywhere.
fn chain() -> impl Strategy<Value = SavedChain> {
    let pieces = many((any::<u32>(), 1..0x1_0000_u64), 0..5);
    (pieces, any::<[prop::sample::Index; 4]>(), any::<u16>()).prop_map(|(pieces, places, head)| {
        let [readable, read, write, offset] = places;
        let segments: Vec<_> =
            pieces.into_iter().map(|(start, size)| Range { start: Ipa(start.into()), size }).collect();
        let readable_segments = readable.index(segments.len() + 1);
        let (first, second) = segments.split_at(readable_segments);
        let place = |segments: &[Range<Ipa>], which: &prop::sample::Index| {
            let segment = which.index(segments.len() + 1);
            (segment, segments.get(segment).map_or(0, |piece| offset.index(piece.size as usize) as u64))
        };
        let (read, write) = (place(first, &read), place(second, &write));
        let written = before(second, write);
        SavedChain { segments, readable_segments, head, read, write, written }
    })
}

/// How many bytes are before a place in a chain.
fn before(segments: &[Range<Ipa>], (segment, offset): (usize, u64)) -> u32 {
    (segments[..segment].iter().map(|piece| piece.size).sum::<u64>() + offset) as u32
}

/// A queue that is ready at a place where one may be, or one with anything in its registers.
fn queue() -> impl Strategy<Value = SavedQueue> {
    let counts = any::<(u16, u16, u16)>();
    (0..=8_u16, any::<u16>(), any::<[u32; 3]>(), any::<(bool, bool, bool)>(), counts).prop_map(
        |(bits, size, [first, second, third], (ready, event_index, indirect), counts)| SavedQueue {
            size: if ready { 1 << bits } else { size },
            descriptors: Ipa(u64::from(first) << 4),
            available: Ipa(u64::from(second) << 4),
            used: Ipa(u64::from(third) << 4),
            ready,
            event_index,
            indirect,
            next_available: counts.0,
            next_used: counts.1,
            considered: counts.2,
        },
    )
}

fn mmio<S: core::fmt::Debug + Clone>(
    device: impl Strategy<Value = S>,
    queues: usize,
) -> impl Strategy<Value = SavedMmio<S>> {
    let registers = any::<(u32, u32, u32, u32, u64)>();
    (device, many(queue(), queues), 0..=0xff_u32, 0..4_u32, registers).prop_map(
        |(device, queues, status, interrupt_status, (generation, one, other, queue_select, features))| SavedMmio {
            device,
            queues,
            status: status & 0xcf,
            interrupt_status,
            generation,
            device_features_select: one,
            driver_features_select: other,
            queue_select,
            // VIRTIO_F_VERSION_1 alone is what every device has.
            driver_features: if status & 8 == 0 { features } else { 1 << 32 },
        },
    )
}

fn console() -> impl Strategy<Value = SavedConsole> {
    (any::<[u8; 4]>(), many(any::<u8>(), 0..1024), many(any::<u8>(), 0..4096), option::of(chain()), option::of(chain()))
        .prop_map(|(config, input, output, receiving, transmitting)| SavedConsole {
            config,
            input,
            output,
            receiving,
            transmitting,
        })
}

fn entropy() -> impl Strategy<Value = SavedEntropy> {
    option::of(chain()).prop_map(|filling| SavedEntropy { filling })
}

/// Of a disk of four sectors.
fn block() -> impl Strategy<Value = SavedBlock> {
    let request = (chain(), any::<[u8; 16]>(), option::of(0..3_u8), any::<[u8; 16]>()).prop_map(
        |(chain, header, answer, range)| {
            let header_read = before(&chain.segments[..chain.readable_segments], chain.read).min(16) as u8;
            SavedDiskRequest { chain, header, header_read, answer, range }
        },
    );
    (option::of(request), 1..=2_u32, any::<u32>(), any::<u32>()).prop_map(|(request, next, free, spare)| {
        let changes = SavedChanges { pages: 2, next, free, spare };
        SavedBlock { sectors: 4, checksum: 7, request, changes }
    })
}

fn disk() -> Block<[u8; 2048]> {
    Block::with_changes([0; 2048], 7, "disk", 0..2 * 4096)
}

fn no_random(_: &mut [u8]) {}

proptest! {
    #[test]
    fn what_was_put_in_is_taken_out(
        one in mmio(console(), 2),
        other in mmio(entropy(), 1),
        third in mmio(block(), 1),
    ) {
        prop_assert_eq!(through_bytes(&third), Ok(third.clone()));
        let mut transport = Mmio::new(disk());
        prop_assert_eq!(transport.restore(&third), Ok(()));
        prop_assert_eq!(transport.save(), Ok(third));
        prop_assert_eq!(through_bytes(&one), Ok(one.clone()));
        prop_assert_eq!(through_bytes(&other), Ok(other.clone()));
        let mut transport = Mmio::new(Console::new());
        prop_assert_eq!(transport.restore(&one), Ok(()));
        prop_assert_eq!(transport.save(), Ok(one));
        let mut transport = Mmio::new(Entropy::new(no_random));
        prop_assert_eq!(transport.restore(&other), Ok(()));
        prop_assert_eq!(transport.save(), Ok(other));
    }
}

/// A console that is moved while half of a buffer has gone out sends the other half on the other host, once, and returns the
/// buffer there.
#[test]
fn a_console_goes_on_in_the_middle_of_a_chain() {
    let ram = Ram::new();
    let text: Vec<u8> = (0..6000_u32).map(|number| number as u8).collect();
    ram.put(BUFFERS, &text);
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 6000), 0, 0);
    ram.offer(8, 0, &[0]);
    let mut here = started(Console::new(), 1);
    assert_eq!(here.process(1, &ram), Ok(Progress::Blocked), "4096 bytes have gone into its ring");
    let saved = here.save().expect("there is memory");
    assert!(saved.device.transmitting.is_some());
    let mut there = Mmio::new(Console::new());
    assert_eq!(there.restore(&saved), Ok(()));
    let mut sent = Vec::new();
    for _ in 0..2 {
        there.device_mut().take_output(|bytes| {
            sent.extend_from_slice(bytes);
            bytes.len()
        });
        assert!(there.process(1, &ram).is_ok());
    }
    there.device_mut().take_output(|bytes| {
        sent.extend_from_slice(bytes);
        bytes.len()
    });
    assert_eq!(sent, text);
    assert_eq!((ram.half(USED + 2), there.line()), (1, true));
}

#[test]
fn what_no_driver_can_bring_about_is_refused() {
    let good = started(Console::new(), 1).save().expect("there is memory");
    let refused = |change: fn(&mut SavedMmio<SavedConsole>)| {
        let mut saved = good.clone();
        change(&mut saved);
        let mut transport = Mmio::new(Console::new());
        let before = transport.save();
        assert!(transport.restore(&saved).is_err(), "{saved:?}");
        assert_eq!(transport.save(), before, "nothing has changed");
    };
    refused(|saved| saved.status |= 0x10);
    refused(|saved| saved.interrupt_status = 4);
    refused(|saved| saved.driver_features |= 1 << 40);
    refused(|saved| saved.queues.truncate(1));
    refused(|saved| saved.queues[1].size = 512);
    refused(|saved| saved.queues[1].used = Ipa(2));
    refused(|saved| saved.queues[1].available = Ipa(!1));
    refused(|saved| saved.device.input = vec![0; 1025]);
    refused(|saved| saved.device.output = vec![0; 4097]);
    let piece = Range { start: Ipa(BUFFERS), size: 8 };
    let chain =
        SavedChain { segments: vec![piece], readable_segments: 1, head: 0, read: (0, 7), write: (0, 0), written: 0 };
    let wrong: [fn(&mut SavedChain); 10] = [
        |chain| chain.written = 1,
        |chain| (chain.readable_segments, chain.read, chain.write) = (0, (0, 0), (0, 7)),
        |chain| chain.read = (0, 8),
        |chain| chain.read = (1, 1),
        |chain| chain.write = (1, 0),
        |chain| chain.readable_segments = 2,
        |chain| chain.segments[0].size = 0,
        |chain| chain.segments[0].start = Ipa(u64::MAX - 6),
        |chain| chain.segments = vec![Range { start: Ipa(0), size: u64::from(u32::MAX) }; 3],
        |chain| chain.segments = vec![chain.segments[0]; 257],
    ];
    let mut entropy = Entropy::new(no_random);
    let longest = SavedChain { segments: vec![piece; 256], ..chain.clone() };
    for good in [&chain, &longest] {
        assert_eq!(Device::restore(&mut entropy, &SavedEntropy { filling: Some(good.clone()) }), Ok(()));
    }
    for change in wrong {
        let mut chain = chain.clone();
        change(&mut chain);
        assert!(Device::restore(&mut entropy, &SavedEntropy { filling: Some(chain.clone()) }).is_err(), "{chain:?}");
    }
}

/// A disk goes on only with the image that it had, and with a request that there can be.
#[test]
fn a_disk_finds_its_contents_again() {
    let piece = Range { start: Ipa(BUFFERS), size: 8 };
    let chain =
        SavedChain { segments: vec![piece], readable_segments: 1, head: 0, read: (0, 7), write: (0, 0), written: 0 };
    let request = SavedDiskRequest { chain, header: [0; 16], header_read: 7, answer: None, range: [0; 16] };
    let changes = SavedChanges { pages: 2, next: 1, free: 0, spare: 0 };
    let good = SavedBlock { sectors: 4, checksum: 7, request: Some(request), changes };
    let mut disk = disk();
    assert_eq!(Device::restore(&mut disk, &good), Ok(()));
    let wrong: [fn(&mut SavedBlock); 11] = [
        |saved| saved.changes.pages = 3,
        |saved| saved.changes.next = 3,
        |saved| saved.changes.next = 0,
        |saved| saved.sectors = 5,
        |saved| saved.checksum = 8,
        |saved| saved.request.as_mut().unwrap().header_read = 17,
        // It would take the rest of the header from elsewhere, or bytes of another sector.
        |saved| saved.request.as_mut().unwrap().header_read = 6,
        |saved| saved.request.as_mut().unwrap().chain.read = (0, 6),
        |saved| saved.request.as_mut().unwrap().chain.written = 512,
        |saved| saved.request.as_mut().unwrap().answer = Some(3),
        |saved| saved.request.as_mut().unwrap().chain.read = (2, 0),
    ];
    for change in wrong {
        let mut saved = good.clone();
        change(&mut saved);
        assert!(Device::restore(&mut disk, &saved).is_err(), "{saved:?}");
        assert_eq!(Device::save(&disk), Ok(good.clone()), "nothing has changed");
    }
}

/// Of each list as many values are read as any VM may have, and one more is refused by the list's name.
#[test]
fn no_list_is_longer_than_any_vms() {
    let console = |input, output| SavedConsole {
        config: [0; 4],
        input: vec![1; input],
        output: vec![1; output],
        receiving: None,
        transmitting: None,
    };
    assert_bounded("SavedConsole.input", 1024, |count| console(count, 0));
    assert_bounded("SavedConsole.output", 4096, |count| console(0, count));
    assert_bounded("SavedChain.segments", 256, |count| {
        let segments = vec![Range { start: Ipa(BUFFERS), size: 8 }; count];
        let chain = SavedChain { segments, readable_segments: 0, head: 0, read: (0, 0), write: (0, 0), written: 0 };
        SavedEntropy { filling: Some(chain) }
    });
    let good = started(Console::new(), 1).save().expect("there is memory");
    assert_bounded("SavedMmio.queues", 2, |count| SavedMmio { queues: vec![good.queues[0]; count], ..good.clone() });
}
