//! Encoder and decoder against each other, over clean, noisy and cut lines.

use super::{
    Carrier, Channel, Command, Decoder, Event, LinkError, MAX_BULK, MAX_ENCODED, MAX_PAYLOAD, Message, RETURN_TO_TEXT,
    START, StopReason, VmState, decoder_buffer, encode, encode_parts, encode_stream,
};
use crate::crc32c::compute;
use proptest::prelude::*;
use std::{string::String, vec, vec::Vec};
use units::VmId;

/// An event that owns its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Owned {
    Text(u8),
    Frame(Channel, Vec<u8>),
    Damaged,
}

impl From<Event<'_>> for Owned {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(byte) => Self::Text(byte),
            Event::Frame { channel, payload } => Self::Frame(channel, payload.to_vec()),
            Event::Damaged => Self::Damaged,
        }
    }
}

fn frame(channel: Channel, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(channel, payload, compute, |byte| bytes.push(byte)).unwrap();
    bytes
}

fn decode(bytes: &[u8]) -> Vec<Owned> {
    let mut decoder = Decoder::new(compute);
    let mut events: Vec<Owned> = bytes.iter().filter_map(|&byte| decoder.push(byte).map(Owned::from)).collect();
    events.extend(decoder.finish().map(Owned::from));
    events
}

/// As [`decode`], by a decoder for all channels that gets `step` bytes at a time.
fn decode_steps(bytes: &[u8], step: usize) -> Vec<Owned> {
    let mut decoder = Decoder::with_buffer(vec![0; decoder_buffer(MAX_BULK)], compute);
    let mut events = Vec::new();
    for mut piece in bytes.chunks(step) {
        while let Some(event) = decoder.take(&mut piece) {
            events.push(Owned::from(event));
        }
        assert!(piece.is_empty());
    }
    events.extend(decoder.finish().map(Owned::from));
    events
}

fn text(text: &str) -> Vec<Owned> {
    text.bytes().map(Owned::Text).collect()
}

const CONSOLE: Channel = Channel::Console(VmId(3));

#[test]
fn the_bytes_on_the_line_are_as_documented() {
    let checksum = compute(0, b"\x16\x02\x00A\xff").to_le_bytes();
    let bytes = frame(CONSOLE, b"A\xff");
    assert_eq!(bytes[..7], [START, 0x16, 2, 0, b'A', 0xfe, 0x7f]);
    assert_eq!(bytes.len(), 7 + 4 + checksum.iter().filter(|&&byte| byte >= 0xfe).count());
}

#[test]
fn channels_have_numbers_and_back() {
    for number in 0..=255 {
        if let Some(channel) = Channel::from_number(number) {
            assert_eq!(channel.number(), Some(number));
        } else {
            assert!((4..16).contains(&number) || number > 17 + 2 * 63, "{number}");
        }
    }
    assert_eq!(Channel::VirtioConsole(VmId(1)).number(), Some(19));
    assert_eq!(encode(Channel::Console(VmId(64)), b"", compute, |_| ()), Err(LinkError::NoChannel(64)));
}

#[test]
fn text_and_frames_share_the_line() {
    let line = [b"hello".to_vec(), frame(CONSOLE, b"login: "), b"x".to_vec(), frame(Channel::Log, b"")].concat();
    let expected = [
        text("hello"),
        vec![Owned::Frame(CONSOLE, b"login: ".to_vec())],
        text("x"),
        vec![Owned::Frame(Channel::Log, vec![])],
    ];
    assert_eq!(decode(&line), expected.concat());
}

#[test]
fn a_cut_frame_harms_only_itself() {
    let whole = frame(CONSOLE, b"0123456789");
    for cut in 1..whole.len() {
        let line = [&whole[..cut], &whole].concat();
        assert_eq!(decode(&line), [Owned::Damaged, Owned::Frame(CONSOLE, b"0123456789".to_vec())], "cut at {cut}");
    }
}

#[test]
fn a_panic_amid_a_frame_is_readable() {
    let whole = frame(CONSOLE, &[b'a'; 100]);
    for cut in 0..whole.len() {
        let line = [&whole[..cut], &RETURN_TO_TEXT, b"panic!"].concat();
        let mut events = decode(&line);
        events.retain(|event| *event != Owned::Damaged);
        assert_eq!(events, text("panic!"), "cut at {cut}");
    }
}

#[test]
fn a_length_past_the_limit_is_damage() {
    let long = [START, 0, 0x01, 0x04, b'x', b'y'];
    assert_eq!(decode(&long), [Owned::Damaged]);
    assert_eq!(
        decode(&[&long[..], &frame(CONSOLE, b"z")].concat()),
        [Owned::Damaged, Owned::Frame(CONSOLE, vec![b'z'])]
    );
    assert_eq!(encode(CONSOLE, &[0; 1025], compute, |_| ()), Err(LinkError::TooLong(1025, 1024)));
}

/// A frame that the line ends in, or that no encoder makes, is told once.
#[test]
fn what_cannot_become_a_frame_is_told() {
    let whole = frame(Channel::Control, b"abc");
    let mut decoder = Decoder::new(compute);
    assert!(whole[..5].iter().all(|&byte| decoder.push(byte).is_none()));
    assert_eq!(decoder.finish().map(Owned::from), Some(Owned::Damaged));
    assert_eq!(decoder.finish().map(Owned::from), None);
    assert_eq!(
        decode(&[START, super::ESCAPE, b'x', b'y', START, b'\n', b'z']),
        [&[Owned::Damaged], &text("z")[..]].concat()
    );
    // The line end behind a start is text's again, also where several bytes come at once.
    assert_eq!(decode_steps(&[&RETURN_TO_TEXT[..], b"text"].concat(), 6), text("text"));
}

/// A frame is as long as its channel's may be, and as the decoder's buffer is, whichever is less.
#[test]
fn a_frame_that_is_too_long_is_given_up_at_once() {
    assert_eq!((decoder_buffer(0), decoder_buffer(100)), (9, 109));
    let head = |payload: u16| [&[START][..], &frame(Channel::Control, b"")[1..2], &payload.to_le_bytes()].concat();
    let told = |payload: u16, buffer: usize| {
        let mut decoder = Decoder::with_buffer(vec![0; buffer], compute);
        head(payload).iter().filter_map(|&byte| decoder.push(byte).map(Owned::from)).next()
    };
    let most = MAX_PAYLOAD as u16;
    assert_eq!((told(most, 70_000), told(most + 1, 70_000)), (None, Some(Owned::Damaged)));
    let short = decoder_buffer(100);
    assert_eq!((told(100, short), told(103, short)), (None, Some(Owned::Damaged)));
}

#[test]
fn the_longest_frame_and_streams_pass() {
    let bytes = frame(CONSOLE, &[0xff; MAX_PAYLOAD]);
    assert!(bytes.len() <= MAX_ENCODED);
    assert_eq!(decode(&bytes), [Owned::Frame(CONSOLE, vec![0xff; MAX_PAYLOAD])]);
    let mut stream = Vec::new();
    encode_stream(CONSOLE, &[5; 2500], compute, |byte| stream.push(byte)).unwrap();
    let lengths: Vec<_> = decode(&stream)
        .into_iter()
        .map(|event| match event {
            Owned::Frame(_, payload) => payload.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lengths, [1024, 1024, 452]);
}

#[test]
fn long_frames_have_a_long_length() {
    let short = frame(Channel::Bulk, &[1; 0x7fff]);
    assert_eq!(short[..4], [START, 3, 0xfe, 0x7f], "0x7fff, of which the low byte is escaped");
    let long = frame(Channel::Bulk, &[1; 0x1_0400]);
    assert_eq!(long[..7], [START, 3, 0x00, 0x84, 2, 0, 1]);
    let most = vec![0xff; MAX_BULK];
    let line = [short, long, frame(Channel::Bulk, &most), frame(CONSOLE, b"x")].concat();
    let expected = [
        Owned::Frame(Channel::Bulk, vec![1; 0x7fff]),
        Owned::Frame(Channel::Bulk, vec![1; 0x1_0400]),
        Owned::Frame(Channel::Bulk, most.clone()),
        Owned::Frame(CONSOLE, vec![b'x']),
    ];
    for step in [1, 7, 4096, line.len()] {
        assert_eq!(decode_steps(&line, step), expected, "{step} bytes at a time");
    }
    // Whoever has no room for such frames loses them, and nothing else.
    assert_eq!(decode(&line), [Owned::Damaged, Owned::Damaged, Owned::Damaged, Owned::Frame(CONSOLE, vec![b'x'])]);
    let longer = [most, vec![0]].concat();
    assert_eq!(encode(Channel::Bulk, &longer, compute, |_| ()), Err(LinkError::TooLong(MAX_BULK + 1, MAX_BULK)));
    // The other channels stay as short as they were, whatever a length says.
    assert_eq!(decode_steps(&[START, 0x16, 0x01, 0x04, b'x'], 1), [Owned::Damaged]);
    assert_eq!(decode_steps(&[START, 3, 0xfe, 0x7e, 0xfe, 0x7f, 0xfe, 0x7f, 0xfe, 0x7f, b'x'], 1), [Owned::Damaged]);
}

#[test]
fn messages_and_commands_survive_the_trip() {
    let mut buffer = [0; MAX_PAYLOAD];
    let long = "é".repeat(Message::MAX_TEXT / 2);
    let messages = [
        Message::Hello { version: 1, vms: 2, build: "undercroft 0.1.0" },
        Message::Vm { vm: 0, name: "web", state: VmState::Running { boots: 1 } },
        Message::VmState { vm: 63, state: VmState::Stopped(StopReason::Crashed("no memory at 0x0")) },
        Message::AllStopped,
        Message::Panic { text: &long },
        Message::StatsEnd,
        Message::Carrier { carrier: Carrier::Port },
        Message::Lost,
    ];
    for message in messages {
        assert_eq!(Message::decode(message.encode(&mut buffer).unwrap()), Some(message));
    }
    let commands = [Command::Attach { version: u16::MAX }, Command::Stats, Command::Reboot { vm: u16::MAX }];
    for command in commands {
        let mut short = [0; Command::MAX_ENCODED];
        assert_eq!(Command::decode(command.encode(&mut short).unwrap()), Some(command));
    }
    assert_eq!(Message::decode(&[99]), None);
    assert_eq!(Message::decode(&[]), None);
}

#[test]
fn long_texts_are_cut_between_characters() {
    let long: String = "aé".repeat(1000);
    let pieces: Vec<_> = Message::pieces(&long).collect();
    assert!(pieces.iter().all(|piece| piece.len() <= Message::MAX_TEXT));
    assert_eq!(pieces.concat(), long);
    assert_eq!(Message::pieces("").count(), 0);
}

fn any_frame() -> impl Strategy<Value = (Channel, Vec<u8>)> {
    let channel = any::<u8>().prop_filter_map("no channel", Channel::from_number);
    let byte = prop_oneof![any::<u8>(), Just(0xff), Just(0xfe), Just(b'\n')];
    (channel, proptest::collection::vec(byte, 0..64))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_frame_arrives(frames in proptest::collection::vec(any_frame(), 0..8)) {
        let line: Vec<u8> = frames.iter().flat_map(|(channel, payload)| frame(*channel, payload)).collect();
        let expected: Vec<_> = frames.into_iter().map(|(channel, payload)| Owned::Frame(channel, payload)).collect();
        prop_assert_eq!(decode(&line), expected);
    }

    /// Noise never forges a frame, and the frames behind the one that it hit arrive.
    #[test]
    fn noise_costs_no_more_than_it_hits(
        frames in proptest::collection::vec(any_frame(), 1..6),
        noise in proptest::collection::vec(any::<u8>(), 0..40),
        place in any::<prop::sample::Index>(),
    ) {
        let encoded: Vec<Vec<u8>> = frames.iter().map(|(channel, payload)| frame(*channel, payload)).collect();
        let hit = place.index(encoded.len());
        let broken = [&encoded[hit][..place.index(encoded[hit].len())], &noise].concat();
        // Noise may happen to be what it took the place of.
        prop_assume!(!broken.starts_with(&encoded[hit]));
        let mut line = encoded[..hit].concat();
        line.extend(&broken);
        line.extend(encoded[hit + 1..].concat());
        let got: Vec<_> = decode(&line).into_iter().filter(|event| matches!(event, Owned::Frame(..))).collect();
        let mut expected = frames;
        expected.remove(hit);
        let expected: Vec<_> = expected.into_iter().map(|(channel, payload)| Owned::Frame(channel, payload)).collect();
        prop_assert_eq!(got, expected);
    }

    /// However a frame's payload is put together, and however the line is cut, the same comes out.
    #[test]
    fn parts_and_steps_make_no_difference(
        frames in proptest::collection::vec((any_frame(), 0..64_usize), 0..6),
        noise in proptest::collection::vec(any::<u8>(), 0..20),
        step in 1..40_usize,
    ) {
        let mut line = Vec::new();
        for ((channel, payload), cut) in &frames {
            let (front, back) = payload.split_at(*cut.min(&payload.len()));
            let before = line.len();
            encode_parts(*channel, &[front, &[], back], compute, |run| line.extend_from_slice(run)).unwrap();
            prop_assert_eq!(&line[before..], &frame(*channel, payload)[..]);
            line.extend(&noise);
        }
        prop_assert_eq!(decode_steps(&line, step), decode_steps(&line, 1));
        prop_assert_eq!(decode_steps(&line, step), decode(&line));
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = (decode(&bytes), Message::decode(&bytes), Command::decode(&bytes));
    }
}
