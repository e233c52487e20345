//! How much of the host's memory the service takes: never more than was set aside for it, and with none left it says
//! so.

use super::{BASE, Guest};
use crate::Limits;
use crate::guestinfo::Refused;
use abi::calls::vmware::MAGIC;
use proptest::prelude::*;
use std::vec::Vec;

/// A heap that counts, and runs out when a test wants it.
#[global_allocator]
static HEAP: scarce::Heap = scarce::Heap;

/// A VM that may have little, so that a few steps reach every bound, in pieces that are large beside what keeps them.
const SMALL: Limits =
    Limits { channels: 8, message: 4096, buffers: 8192, keys: 8, store: 16384, log: 0, ..Limits::DEFAULT };

/// What guest or operator do next.
#[derive(Clone, Debug)]
enum Step {
    /// Opens a channel: the guest's questions, or the host's.
    Open(bool),
    /// Announces a message of so many bytes, and sends so many words of it.
    Begin {
        channel: u64,
        length: u64,
        words: u64,
    },
    /// Sets a value; the reply is taken, or left.
    Set {
        channel: u64,
        key: u8,
        length: usize,
        is_taken: bool,
    },
    /// Asks for a value, and lets the reply wait.
    Get {
        channel: u64,
        key: u8,
    },
    /// Polls for the host's requests.
    Poll(u64),
    Close(u64),
    /// The operator sets a value.
    Operator {
        key: u8,
        length: usize,
    },
    Reset,
}

fn steps() -> impl Strategy<Value = Step> {
    let (channel, key) = (0u64..8, 0u8..9);
    let length = || prop_oneof![3 => Just(4000usize), 1 => 0usize..5000];
    prop_oneof![
        4 => prop::bool::weighted(0.9).prop_map(Step::Open),
        2 => (channel.clone(), prop_oneof![Just(4096u64), 0u64..6000], 0u64..40)
            .prop_map(|(channel, length, words)| Step::Begin { channel, length, words }),
        4 => (channel.clone(), key.clone(), length(), any::<bool>())
            .prop_map(|(channel, key, length, is_taken)| Step::Set { channel, key, length, is_taken }),
        4 => (channel.clone(), key.clone()).prop_map(|(channel, key)| Step::Get { channel, key }),
        1 => channel.clone().prop_map(Step::Poll),
        1 => channel.prop_map(Step::Close),
        2 => (key, prop_oneof![length(), Just(16000)]).prop_map(|(key, length)| Step::Operator { key, length }),
        1 => Just(Step::Reset),
    ]
}

fn key(number: u8) -> [u8; 11] {
    let mut key = *b"guestinfo.a";
    key[10] += number;
    key
}

impl Guest {
    /// Sends `message` as a whole. Without cookies a channel is known by its number.
    fn send_whole(&mut self, channel: u64, message: &[u8]) {
        if self.status(1, message.len() as u64, (channel, 0, 0)) & 1 == 0 {
            return;
        }
        self.machine.memory[..message.len()].copy_from_slice(message);
        let length = message.len() as u64;
        self.call(&mut [u64::from(MAGIC), 0x1_0000, length, channel << 16 | 0x5659, BASE, 0, 0, 0x86_0000_0018]);
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Open(asks) => drop(self.open(if asks { 0x4943_5052 } else { 0x4f4c_4354 })),
            Step::Begin { channel, length, words } => {
                self.status(1, length, (channel, 0, 0));
                for _ in 0..words {
                    self.status(2, 0x7878_7878, (channel, 0, 0));
                }
            }
            Step::Set { channel, key: number, length, is_taken } => {
                self.send_whole(
                    channel,
                    &[b"info-set ", key(number).as_slice(), b" ", &std::vec![b'v'; length]].concat(),
                );
                if is_taken {
                    self.status(5, 1, (channel, 0, 0));
                }
            }
            Step::Get { channel, key: number } => {
                self.send_whole(channel, &[b"info-get ", key(number).as_slice()].concat());
            }
            Step::Poll(channel) => {
                self.status(1, 0, (channel, 0, 0));
                self.status(3, 0, (channel, 0, 0));
            }
            Step::Close(channel) => drop(self.status(6, 0, (channel, 0, 0))),
            Step::Operator { key: number, length } => {
                let value = std::vec![b'o'; length];
                let set = self.service.set(&key(number), &value);
                assert!(length <= SMALL.message || set == Err(Refused::TooLong));
            }
            Step::Reset => self.service.restart(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The host sets twice as much aside as is counted here: what an allocator loses between pieces is not in it.
    #[test]
    fn no_more_is_held_than_was_set_aside(all in prop::collection::vec(steps(), 1..200)) {
        // What the test holds at a time: a value, and the message with it.
        const OURS: usize = 2 * 5100;
        let mut guest = Guest::new(SMALL);
        let (_, most) = scarce::most_held(|| {
            for step in &all {
                guest.take(step);
                // Those that say that there is no room come on top.
                let most = SMALL.buffers + SMALL.channels * crate::rpci::NO_ROOM.len();
                assert!(guest.service.buffered() <= most, "{} bytes are on their way", guest.service.buffered());
            }
        });
        let bound = SMALL.most_memory() / 2 + OURS;
        prop_assert!(most <= bound, "{} bytes are more than {}", most, bound);
    }

    /// With a heap that ends at any point, each call still has its answer, and the service goes on when there is memory again.
    #[test]
    fn without_memory_each_call_has_an_answer(all in prop::collection::vec(steps(), 1..60), allocations in 0usize..40) {
        let mut guest = Guest::new(Limits { keys: 9, store: 65536, ..SMALL });
        for step in &all {
            // What the test itself allocates is not tried.
            let Prepared { channel, message } = Prepared::of(step);
            scarce::with_only(allocations, || match step {
                Step::Operator { key: number, .. } => drop(guest.service.set(&key(*number), &message)),
                Step::Set { .. } | Step::Get { .. } => guest.send_whole(channel, &message),
                other => guest.take(other),
            });
        }
        guest.service.restart();
        prop_assert_eq!(guest.ask(b"info-set guestinfo.a v"), b"1 ");
        prop_assert_eq!(guest.ask(b"info-get guestinfo.a"), b"1 v");
    }
}

/// A step's bytes.
struct Prepared {
    channel: u64,
    message: Vec<u8>,
}

impl Prepared {
    fn of(step: &Step) -> Self {
        let (channel, message) = match *step {
            Step::Set { channel, key: number, length, .. } => {
                (channel, [b"info-set ", key(number).as_slice(), b" ", &std::vec![b'v'; length]].concat())
            }
            Step::Get { channel, key: number } => (channel, [b"info-get ", key(number).as_slice()].concat()),
            Step::Operator { length, .. } => (0, std::vec![b'o'; length]),
            _ => (0, Vec::new()),
        };
        Self { channel, message }
    }
}
