//! What is open in a frame: passed on where that can be and is accepted, computed where not, and looked at.

use std::vec::Vec;

use proptest::prelude::*;
use switch::Reason;

use super::super::offload::Sum;
use super::{HEADER, LINUX, PLAIN, frame, mac, packet, world};

/// A header of a frame with an open checksum from `start` on, divided or not.
pub(super) fn header(flags: u8, kind: u8, before: u16, segment: u16, start: u16, offset: u16) -> [u8; HEADER] {
    let words = [before, segment, start, offset, 7];
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    let bytes: Vec<u8> = [flags, kind].into_iter().chain(words).collect();
    bytes.try_into().unwrap()
}

#[test]
fn what_is_open_is_passed_on_or_closed() {
    let world = world(&[(0, 1500, LINUX), (0, 1500, LINUX), (0, 1500, PLAIN), (0, 1500, PLAIN)]);
    (1..3).for_each(|port| world.give(port, 8, 0x8000, 2));
    let pass = |to: u8, header: &[u8; HEADER], length| {
        let before = world.rams[usize::from(to)].half(0x1802);
        world.offer_frame(0, header, &packet(mac(to), mac(0), length, 6), 500);
        world.work(0);
        world.arrived(to.into(), before).concat()
    };
    let open = header(1, 0, 0, 0, 34, 16);
    assert_eq!(
        pass(1, &open, 101)[..HEADER],
        header(1, 0, 0, 0, 34, 16)[..10].iter().copied().chain([1, 0]).collect::<Vec<_>>()
    );
    // For one that takes none, the checksum is computed: the sum over all of it is then all ones.
    let closed = pass(2, &open, 101);
    assert_eq!(closed[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    let as_it_was = packet(mac(2), mac(0), 101, 6);
    let sum = |bytes: &[u8]| {
        let mut sum: u32 =
            bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    };
    let body = &closed[HEADER..];
    assert_eq!(u16::from_be_bytes([body[50], body[51]]), !sum(&as_it_was[34..]));
    assert_eq!((&body[..50], &body[52..]), (&as_it_was[..50], &as_it_was[52..]));
    // Segments go to one who makes them, and to no other.
    let divided = header(1, 1 | 0x80, 54, 1400, 34, 16);
    assert_eq!(pass(1, &divided, 20_000)[..10], divided[..10]);
    assert_eq!(pass(2, &divided, 20_000), []);
    assert_eq!(world.counted(2, Reason::Offload), 1);
    // A driver that has accepted nothing may leave nothing open.
    world.offer_frame(2, &open, &packet(mac(1), mac(2), 101, 6), 500);
    world.work(2);
    assert_eq!(world.counted(2, Reason::Header), 1);
}

/// Of what packet a header may say what.
#[test]
fn a_header_is_of_its_frame() {
    let world = world(&[(0, 1500, LINUX), (0, 1500, LINUX)]);
    let passes = |header: [u8; HEADER], packet: &[(usize, u8)]| {
        let (before, dropped) = (world.rams[1].half(0x1802), world.counted(0, Reason::Header));
        if world.rams[1].half(0x1002) == before {
            world.give(1, 1, 0x1000, 1);
        }
        let mut sent = frame(mac(1), mac(0), 1000);
        packet.iter().for_each(|&(at, byte)| sent[at] = byte);
        world.offer_frame(0, &header, &sent, 4000);
        world.work(0);
        let arrived = world.rams[1].half(0x1802) != before;
        assert_ne!(arrived, world.counted(0, Reason::Header) > dropped);
        arrived
    };
    let tcp4 = [(12, 8), (13, 0), (14, 0x45), (23, 6)];
    let udp4 = [(12, 8), (13, 0), (14, 0x45), (23, 17)];
    let tcp6 = [(12, 0x86), (13, 0xdd), (14, 0x60), (20, 6)];
    let udp6 = [(12, 0x86), (13, 0xdd), (14, 0x60), (20, 17)];
    let open = |start, offset| header(1, 0, 0, 0, start, offset);
    for (packet, start, offset) in [(tcp4, 34, 16), (udp4, 34, 6), (tcp6, 54, 16), (udp6, 54, 6)] {
        for other_start in 0..1000 {
            // Further in there may be a packet in the packet.
            assert_eq!(passes(open(other_start, offset), &packet), (start..1000 - offset - 1).contains(&other_start));
        }
        for other in (0..100).chain([u16::MAX]) {
            assert_eq!(passes(open(start, other), &packet), other == offset, "{start} {other}");
            assert_eq!(passes(open(start + 30, other), &packet), [6, 16].contains(&other), "{start} {other}");
        }
    }
    // Another EtherType, another version, a header of IPv4 that is too short, or longer, and what has no checksum there.
    for (at, byte, start) in [(13, 6, 34), (14, 0x55, 34), (14, 0x44, 34), (14, 0x44, 30), (14, 0x46, 34), (23, 1, 34)]
    {
        assert!(!passes(open(start, 16), &[&tcp4[..], &[(at, byte)]].concat()), "{at} {byte:#x}");
    }
    assert!(passes(open(38, 16), &[&tcp4[..], &[(14, 0x46)]].concat()), "a header with options");
    let divided = |kind, before, segment, start, offset| header(1, kind, before, segment, start, offset);
    for segment in [0, 1, 7, 1461, 1500, 1501, 0xfffe, 0xffff] {
        assert!(!passes(divided(1, 54, segment, 34, 16), &tcp4), "{segment}");
    }
    for segment in [8, 536, 1460] {
        assert!(passes(divided(1, 54, segment, 34, 16), &tcp4), "{segment}");
    }
    assert!(passes(divided(4, 74, 1440, 54, 16), &tcp6) && !passes(divided(4, 74, 1441, 54, 16), &tcp6));
    assert!(passes(divided(4, 0, 1400, 62, 16), &[&tcp6[..], &[(20, 60)]].concat()), "behind options");
    for (at, byte) in [(20, 44), (20, 17), (20, 59)] {
        assert!(!passes(divided(4, 0, 1400, 62, 16), &[&tcp6[..], &[(at, byte)]].concat()), "behind {byte}");
    }
    // The other version's, UDP divided, from elsewhere on, a place for the checksum that is not TCP's, and no open checksum.
    assert!(!passes(divided(4, 0, 1400, 54, 16), &tcp4) && !passes(divided(1, 0, 1400, 54, 16), &tcp6));
    assert!(!passes(divided(1, 0, 1400, 34, 6), &udp4) && !passes(divided(1, 0, 1400, 35, 16), &tcp4));
    assert!(!passes(divided(1, 0, 1400, 34, 6), &tcp4) && !passes(header(0, 1, 54, 1400, 34, 16), &tcp4));
    assert!(!passes(divided(1, 51, 1400, 34, 16), &tcp4) && passes(divided(1, 52, 1400, 34, 16), &tcp4));
    assert!(passes([0; HEADER], &[(12, 9), (13, 9)]), "where nothing is open, a frame is what it is");
}

/// The sum over pieces, however they are cut, is that over all of it byte by byte.
#[test]
fn a_sum_does_not_depend_on_how_it_is_cut() {
    let bytes: Vec<u8> = (0..997_u32).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 13) as u8 | 0xc0).collect();
    let mut whole: u32 = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    while whole > 0xffff {
        whole = (whole & 0xffff) + (whole >> 16);
    }
    for cut in (1..40).chain([255, 256, 996, 997]) {
        let mut sum = Sum::default();
        bytes.chunks(cut).for_each(|piece| sum.add(piece));
        assert_eq!(u16::from_be_bytes(sum.checksum()), !(whole as u16), "{cut}");
    }
}

proptest! {
    /// Whatever a header says: what a receiver is told agrees with the frame that it has.
    #[test]
    fn a_receiver_is_told_what_can_be(
        flags in any::<u8>(), kind in prop_oneof![Just(0), Just(1), Just(4), Just(0x81), any::<u8>()],
        before in prop_oneof![0u16..200, any::<u16>()], segment in prop_oneof![0u16..1600, any::<u16>()],
        start in prop_oneof![0u16..200, any::<u16>()], offset in prop_oneof![0u16..40, any::<u16>()],
        length in 14usize..1500, features in any::<u64>(), receiver in any::<u64>(),
        is_6: bool, protocol in prop_oneof![Just(6u8), Just(17u8), any::<u8>()], is_right: bool,
    ) {
        // One half of them leaves TCP open where it is, as it may be divided.
        let (flags, protocol) = if is_right { (1, 6) } else { (flags, protocol) };
        let (start, offset) = if is_right { (if is_6 { 54 } else { 34 }, 16) } else { (start, offset) };
        let world = world(&[(0, 1500, features & LINUX), (0, 1500, receiver & LINUX)]);
        world.give(1, 4, 0x1000, 1);
        let mut sent = packet(mac(1), mac(0), 1500, protocol);
        if is_6 {
            sent[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
            sent[20] = protocol;
        }
        world.offer_frame(0, &header(flags, kind, before, segment, start, offset), &sent[..length], 400);
        world.work(0);
        let arrived = world.arrived(1, 0);
        let dropped = world.counted(0, Reason::Header) + world.counted(1, Reason::Offload) + world.counted(1, Reason::Mtu);
        prop_assert_eq!(arrived.len() as u64 + dropped, 1);
        let Some(arrived) = arrived.first() else { return Ok(()) };
        let word = |at: usize| u32::from(u16::from_le_bytes([arrived[at], arrived[at + 1]]));
        prop_assert_eq!(arrived.len(), HEADER + length);
        prop_assert!(arrived[0] <= 1, "no flag but that of an open checksum");
        let (told_before, told_segment, told_start, told_offset) = (word(2), word(4), word(6), word(8));
        if arrived[0] == 1 {
            prop_assert!(receiver & 2 != 0 && features & 1 != 0);
            let least = if is_6 { 54 } else { 34 };
            prop_assert!(told_start >= least && told_start + told_offset + 2 <= length as u32);
            prop_assert!(told_offset == 6 || told_offset == 16);
        } else {
            prop_assert_eq!((told_start, told_offset, arrived[1]), (0, 0, 0));
        }
        match arrived[1] & 0x7f {
            0 => prop_assert_eq!((arrived[1], told_before, told_segment), (0, 0, 0)),
            1 => prop_assert!(features >> 11 & 1 != 0 && receiver >> 7 & 1 != 0 && arrived[0] == 1),
            4 => prop_assert!(features >> 12 & 1 != 0 && receiver >> 8 & 1 != 0 && arrived[0] == 1),
            other => prop_assert!(false, "{}", other),
        }
        prop_assert!(told_before <= length as u32 && told_segment <= 1500);
        prop_assert_eq!(word(10), 1);
    }
}

/// Nothing of an open checksum is read for one who has no buffer.
#[test]
fn no_checksum_is_computed_for_nobody() {
    let world = world(&[(0, 1500, LINUX), (0, 1500, PLAIN)]);
    let open = header(1, 0, 0, 0, 34, 16);
    let sent = packet(mac(1), mac(0), 101, 6);
    world.offer_frame(0, &open, &sent, 4000);
    world.work(0);
    assert_eq!((world.reads.get(), world.counted(1, Reason::Room)), (0, 1));
    world.give(1, 1, 2048, 1);
    world.offer_frame(0, &open, &sent, 4000);
    world.work(0);
    assert_eq!((world.reads.get(), world.arrived(1, 0).len()), (1, 1));
}
