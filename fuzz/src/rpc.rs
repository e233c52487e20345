//! The RPC channels as a whole: clients that mostly keep to the protocol but may send anything, against a naive model
//! of the values that they store.

use std::collections::BTreeMap;

use crate::doors::Machine;
use crate::input::Input;
use abi::bundle::Calls;
use vmware::{Config, Door, ExceptionLevel, Limits, Outcome, Service, Shutdown};

const LIMITS: Limits = Limits { channels: 4, message: 600, buffers: 700, keys: 3, key: 24, store: 1000, log: 64 };
/// The length of the error that a reply becomes for which there is no room.
const ERROR: usize = 15;
/// Where bulk transfers are.
const BUFFER: u64 = 1024;
const MAGIC: u64 = 0x564d_5868;
const LOW: u64 = 0x86_0000_000e;

/// Number, high and low cookie.
type Channel = (u64, u64, u64);

struct Guest {
    service: Service,
    machine: Machine,
    /// What is in the store.
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What was answered to OPEN, by number; the newest counts.
    channels: [Option<Channel>; LIMITS.channels],
    /// Whether it is the host who asks on it.
    is_tclo: [bool; LIMITS.channels],
}

/// A message: a command that is known, or not, and any bytes.
fn message(input: &mut Input<'_>) -> Vec<u8> {
    let start: &[u8] = match input.byte() % 13 {
        0 | 1 => b"info-set guestinfo.",
        2 | 3 => b"info-get guestinfo.",
        4 => b"log ",
        5 => b"SetGuestInfo  ",
        6 => b"vmx.set_option synctime 0 ",
        7 => b"tools.capability.",
        8 => b"OK ",
        9 => b"ERROR State change already in progress",
        10 => b"info-set guestinfo.k ",
        11 => b"info-get guestinfo.k\0",
        _ => b"",
    };
    let mut message = start.to_vec();
    let length = input.byte();
    message.extend((0..length / 8).map(|_| input.byte()));
    if length & 7 == 7 {
        // Long without many bytes of input.
        let byte = input.byte();
        message.resize(usize::from(input.half() % 640), byte);
    }
    message
}

impl Guest {
    fn call(&mut self, x: &mut [u64; 8], level: ExceptionLevel) -> Outcome {
        let before = *x;
        let access = vmware::decode(Door::DebugChannel { rt: 31 }, x[3], x[7]).expect("a call");
        let outcome = self.service.call(access, x, level, &mut self.machine);
        assert_eq!(before[6..], x[6..]);
        assert!(self.service.buffered() <= LIMITS.buffers + LIMITS.channels * ERROR);
        outcome
    }

    fn low(&mut self, x1: u64, sub: u64, (id, high, low): Channel) -> [u64; 8] {
        let mut x = [MAGIC, x1, sub << 16 | 0x1e, id << 16 | 0x5658, high, low, 0, LOW];
        assert_eq!(self.call(&mut x, ExceptionLevel::User), Outcome::Done);
        x
    }

    fn open(&mut self, protocol: u64) {
        let x = self.low(protocol, 0, (0, 0, 0));
        assert_eq!(x[2], 0x1_0000);
        let id = (x[3] >> 16) as usize;
        self.channels[id] = Some((x[3] >> 16, x[4], x[5]));
        self.is_tclo[id] = protocol as u32 & 0xffff == 0x4354;
    }

    /// The store as it is, which keeps its limits.
    fn stored(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let stored: BTreeMap<_, _> =
            self.service.state.store.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        assert!(stored.len() <= LIMITS.keys);
        assert!(stored.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() <= LIMITS.store);
        stored
    }

    /// Sends a message; says whether it was taken.
    fn send(&mut self, channel: Channel, message: &[u8], whole: bool) -> bool {
        let status = self.low(message.len() as u64, 1, channel)[2] >> 16;
        if status & 1 == 0 {
            return false;
        }
        assert!(message.len() <= LIMITS.message);
        if !whole {
            for part in message.chunks(4) {
                let mut word = [0; 4];
                word[..part.len()].copy_from_slice(part);
                assert_eq!(self.low(u32::from_le_bytes(word).into(), 2, channel)[2], 0x1_0000);
            }
            return true;
        }
        let (id, high, low) = channel;
        self.machine.put(BUFFER, message);
        let mut x = [MAGIC, 0, message.len() as u64, id << 16 | 0x5659, BUFFER, low, high, 0x86_0000_0018];
        x[1] = 0x1_0000;
        let outcome = self.call(&mut x, ExceptionLevel::User);
        assert_eq!(outcome, Outcome::Done);
        // An empty message was complete with its length.
        assert_eq!(x[1], if message.is_empty() { 0 } else { 0x1_0000 });
        true
    }

    /// Takes what waits on a channel.
    fn receive(&mut self, channel: Channel, whole: bool) -> Option<Vec<u8>> {
        let x = self.low(0, 3, channel);
        if x[2] >> 16 != 0x83 {
            return None;
        }
        let length = x[1] as usize;
        let mut reply = Vec::new();
        if whole {
            let (id, high, low) = channel;
            let mut x = [MAGIC, 0x1_0000, length as u64, id << 16 | 0x5659, high, BUFFER, low, 0x86_0000_001c];
            assert_eq!((self.call(&mut x, ExceptionLevel::User), x[1]), (Outcome::Done, 0x1_0000));
            reply.extend(self.machine.get(BUFFER, length));
        } else {
            while reply.len() < length {
                let x = self.low(1, 4, channel);
                assert_eq!(x[2], 0x1_0000);
                reply.extend((x[1] as u32).to_le_bytes());
            }
            reply.truncate(length);
        }
        assert_eq!(self.low(1, 5, channel)[2], 0x1_0000);
        Some(reply)
    }

    /// What a message must have done, and its reply.
    fn check(&mut self, message: &[u8], reply: &[u8]) {
        let text = message.strip_suffix(&[0]).unwrap_or(message);
        let no_room = reply == b"0 Out of memory";
        let split = |text: &[u8]| {
            let mut words = text.splitn(2, |&byte| byte == b' ').map(<[u8]>::to_vec);
            (words.next().unwrap_or_default(), words.next().unwrap_or_default())
        };
        let (command, rest) = split(text);
        let (key, value) = split(&rest);
        match (command.as_slice(), reply) {
            (b"info-set", b"1 ") => drop(self.values.insert(key, value)),
            (b"info-set", b"0 Invalid key" | b"0 Too many keys") => {}
            (b"info-set", _) => assert!(no_room, "{reply:?}"),
            (b"info-get", _) => match self.values.get(&key) {
                Some(value) => assert!(no_room || reply == [b"1 ", value.as_slice()].concat()),
                None => assert_eq!(reply, b"0 No value found"),
            },
            _ => assert!(matches!(reply, b"1 " | b"0 " | b"0 Unknown command"), "{reply:?}"),
        }
        assert_eq!(self.stored(), self.values);
    }
}

/// Plays `data` as clients.
pub fn clients(data: &[u8]) {
    let config = Config {
        uuid: [7; 16],
        memory: 1 << 30,
        megahertz: 1,
        time_sync: true,
        limits: LIMITS,
        user: Calls::ALL,
        kernel: Calls::ALL,
    };
    let service = Service::new(config, 0);
    let machine = Machine::new();
    let mut guest = Guest { service, machine, values: BTreeMap::new(), channels: [None; 4], is_tclo: [false; 4] };
    // A value that takes most of what may be on its way, so that two replies are too much.
    guest.service.set(b"guestinfo.k", &[b'v'; 500]).expect("an empty store takes it");
    guest.values = guest.stored();
    let mut input = Input(data);
    while !input.is_empty() {
        let choice = input.byte();
        let slot = usize::from(choice >> 6);
        let whole = choice & 0x20 != 0;
        let channel = guest.channels[slot];
        match (choice & 15, channel) {
            (0, _) => guest.open([0xc943_5052, 0x4943_5052][usize::from(whole)]),
            (1, _) => guest.open([0xcf4c_4354, 0x4f4c_4354][usize::from(whole)]),
            (2, Some(channel)) => {
                assert_eq!(guest.low(0, 6, channel)[2], 0x1_0000);
                guest.channels[slot] = None;
            }
            (3, _) => guest.machine.pass(input.half().into()),
            (4, _) => {
                match input.byte() % 4 {
                    0 => guest.service.restart(),
                    1 => guest.service.drop_channels(),
                    2 => {
                        let what = if whole { Shutdown::Restart } else { Shutdown::Halt };
                        let _ = guest.service.ask_to_stop(what, guest.machine.now());
                        continue;
                    }
                    _ => {
                        let value = [input.byte(); 8];
                        if guest.service.set(b"guestinfo.k", &value).is_ok() {
                            guest.values.insert(b"guestinfo.k".to_vec(), value.to_vec());
                        }
                        continue;
                    }
                }
                assert_eq!((guest.service.open_channels(), guest.service.buffered()), (0, 0));
                guest.channels = [None; 4];
            }
            // A client that does not keep to the protocol.
            (5 | 6, Some(channel)) => {
                let (x1, sub) = (input.half(), input.byte() % 8);
                let x = guest.low(x1.into(), sub.into(), channel);
                assert!(sub != 0 || x[2] == 0, "there is no such protocol");
                if sub == 6 {
                    guest.channels[slot] = None;
                }
                guest.values = guest.stored();
            }
            (7, Some(channel)) => drop(guest.receive(channel, whole)),
            // One that does not take its reply.
            (8, Some(channel)) => {
                let message = message(&mut input);
                guest.send(channel, &message, whole);
                guest.values = guest.stored();
            }
            (_, Some(channel)) => {
                let message = message(&mut input);
                if guest.send(channel, &message, whole)
                    && let Some(reply) = guest.receive(channel, choice & 0x10 != 0)
                    && !guest.is_tclo[slot]
                {
                    guest.check(&message, &reply);
                }
            }
            (_, None) => {}
        }
    }
}
