//! The service as a client sees it: the golden trace of `vmware-rpctool`, every error, hostile registers.

use crate::Limits;
use crate::channel::{PIECE, Registers};
use crate::encoding::{Door, decode};
use crate::service::{
    BufferError, Config, ExceptionLevel, Host, Outcome, Service, Shutdown, WallTime, WatchdogCall, Whose,
};
use abi::bundle::Calls;
use abi::calls::vmware::{MAGIC, command};
use abi::calls::{self, own};
use proptest::prelude::*;
use std::vec::Vec;
use units::Direction;

mod edges;
mod memory;

const DCC: Door = Door::DebugChannel { rt: 31 };

/// A host with 64 KiB of guest memory at 0x10000, one page of which may be missing.
pub(crate) struct Machine {
    pub(crate) memory: Vec<u8>,
    pub(crate) missing: Option<u64>,
    pub(crate) log: Vec<Vec<u8>>,
    pub(crate) log_is_full: bool,
    pub(crate) now: u64,
    pub(crate) guest_now: u64,
    /// Bytes that one call has copied at most, and how many all calls have.
    most: usize,
    copied: usize,
    random: u64,
}

const BASE: u64 = 0x10000;

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            memory: std::vec![0; 1 << 17],
            missing: None,
            log: Vec::new(),
            log_is_full: false,
            now: 0,
            guest_now: 0,
            most: 0,
            copied: 0,
            random: 1,
        }
    }

    fn count(&mut self, bytes: usize) {
        self.most = self.most.max(bytes);
        self.copied += bytes;
    }

    fn range(&self, at: u64, length: usize, direction: Direction) -> Result<std::ops::Range<usize>, BufferError> {
        let first = at & !4095;
        for page in (first..at.saturating_add(length as u64)).step_by(4096) {
            if self.missing == Some(page) {
                return Err(BufferError::Fault { address: page.max(at), status: 7, direction });
            }
        }
        let start =
            usize::try_from(at.checked_sub(BASE).ok_or(BufferError::NotMemory)?).map_err(|_| BufferError::NotMemory)?;
        let end = start.checked_add(length).filter(|&end| end <= self.memory.len()).ok_or(BufferError::NotMemory)?;
        Ok(start..end)
    }
}

impl Host for Machine {
    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), BufferError> {
        let range = self.range(from, into.len(), Direction::Read)?;
        self.count(into.len());
        into.copy_from_slice(&self.memory[range]);
        Ok(())
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), BufferError> {
        let range = self.range(to, bytes.len(), Direction::Write)?;
        self.count(bytes.len());
        self.memory[range].copy_from_slice(bytes);
        Ok(())
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.random
    }

    fn time(&mut self) -> WallTime {
        WallTime { seconds: 0x1_2345_6789, microseconds: 5 }
    }

    fn milliseconds(&mut self) -> u64 {
        self.now
    }

    fn guest_milliseconds(&mut self) -> u64 {
        self.guest_now
    }

    fn log(&mut self, text: &[u8]) -> bool {
        self.log.push(text.to_vec());
        !self.log_is_full
    }

    fn features(&mut self) -> u64 {
        0
    }

    fn statistic(&mut self, number: u32) -> Option<(&'static str, u64, u32)> {
        (number < 2).then_some(("interrupt", 42, 2))
    }

    fn clock(&mut self) -> (u64, u64) {
        (1_000_000_000, 7)
    }

    fn watchdog(&mut self, request: WatchdogCall, whose: Whose, level: ExceptionLevel) -> Result<u64, u64> {
        match request {
            WatchdogCall::Query => Ok(if whose == Whose::Vm { 3 } else { 4 }),
            _ if level == ExceptionLevel::User => Err(own::status::REFUSED),
            _ => Ok(100),
        }
    }
}

#[test]
fn each_level_calls_what_it_may() {
    let config = Config { user: Calls(0b1000), kernel: Calls(0b0111), ..config(Limits::DEFAULT) };
    let mut guest = Guest { service: Service::new(config, 0), machine: Machine::new(), level: ExceptionLevel::User };
    let refused = |guest: &mut Guest, command| guest.low(!MAGIC as u64, command, (0, 0, 0))[0] == calls::NO_COMMAND;
    let own = |guest: &mut Guest| {
        let mut x = [u64::from(own::MAGIC), 0, 0, u64::from(own::PORT), 0, 0, 0, 0x86_0000_000e];
        assert_eq!(guest.call(&mut x), Outcome::Done);
        x[0]
    };
    for command in [command::MESSAGE, command::GET_TIME_FULL, command::GET_MHZ, command::GET_DEVICE] {
        assert!(refused(&mut guest, command.into()), "{command} from EL0");
        guest.level = ExceptionLevel::Kernel;
        assert!(!refused(&mut guest, command.into()), "{command} from EL1");
        guest.level = ExceptionLevel::User;
    }
    assert!(!refused(&mut guest, command::GET_VERSION.into()), "whether anybody answers may always be asked");
    assert_eq!(own(&mut guest), own::status::DONE);
    guest.level = ExceptionLevel::Kernel;
    assert_eq!(own(&mut guest), calls::NO_COMMAND);
    // A bulk transfer belongs to the channels.
    let channel = guest.open(0xc943_5052).unwrap();
    assert_eq!(guest.status(1, 4, channel), 0x81);
    let (id, high, low) = channel;
    let out = [u64::from(MAGIC), 0x1_0000, 4, id << 16 | 0x5659, BASE, low, high, 0x86_0000_0018];
    guest.level = ExceptionLevel::User;
    let mut x = out;
    assert_eq!((guest.call(&mut x), x[1]), (Outcome::Done, 0));
    guest.level = ExceptionLevel::Kernel;
    let mut x = out;
    assert_eq!((guest.call(&mut x), x[1]), (Outcome::Done, 0x1_0000));
}

fn config(limits: Limits) -> Config {
    Config {
        uuid: core::array::from_fn(|n| n as u8),
        memory: 1 << 33,
        megahertz: 2400,
        time_sync: false,
        limits,
        user: Calls::ALL,
        kernel: Calls::ALL,
    }
}

pub(crate) struct Guest {
    pub(crate) service: Service,
    pub(crate) machine: Machine,
    level: ExceptionLevel,
}

/// An open channel: number, high and low cookie.
type Channel = (u64, u64, u64);

impl Guest {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { service: Service::new(config(limits), 0), machine: Machine::new(), level: ExceptionLevel::User }
    }

    fn call(&mut self, x: &mut Registers) -> Outcome {
        let access = decode(DCC, x[3], x[7]).unwrap();
        self.service.call(access, x, self.level, &mut self.machine)
    }

    /// As a guest does, which executes its instruction until it has its answer: what that is, and how often it was `Again` before.
    fn call_to_the_end(&mut self, x: &mut Registers) -> (Outcome, usize) {
        let mut times = 0;
        loop {
            let before = *x;
            match self.call(x) {
                Outcome::Again => assert_eq!(*x, before),
                outcome => return (outcome, times),
            }
            times += 1;
        }
    }

    fn low(&mut self, x1: u64, x2: u64, (id, high, low): Channel) -> Registers {
        // With garbage where stacks have it.
        let mut x =
            [0xffff_0000_0000 | u64::from(MAGIC), x1, x2, 0xabcd_0000_5658 | id << 16, high, low, 6, 0x86_0000_000e];
        assert_eq!(self.call(&mut x), Outcome::Done);
        assert_eq!((x[6], x[7]), (6, 0x86_0000_000e));
        x
    }

    fn open(&mut self, protocol: u32) -> Option<Channel> {
        let x = self.low(u64::from(protocol), 0x1e, (0, 0, 0));
        (x[2] == 0x1_0000).then_some((x[3] >> 16, x[4], x[5]))
    }

    fn status(&mut self, sub: u64, x1: u64, channel: Channel) -> u64 {
        self.low(x1, sub << 16 | 0x1e, channel)[2] >> 16
    }

    fn send(&mut self, channel: Channel, message: &[u8]) -> bool {
        if self.status(1, message.len() as u64, channel) & 1 == 0 {
            return false;
        }
        message.chunks(4).all(|part| {
            let mut word = [0; 4];
            word[..part.len()].copy_from_slice(part);
            self.status(2, u64::from(u32::from_le_bytes(word)), channel) == 1
        })
    }

    fn receive(&mut self, channel: Channel) -> Option<Vec<u8>> {
        let x = self.low(0, 0x3_001e, channel);
        if x[2] == 0x1_0000 {
            return None;
        }
        assert_eq!((x[2], x[3]), (0x83_0000, 0x1_0000));
        let mut reply = Vec::new();
        while reply.len() < x[1] as usize {
            let x = self.low(1, 0x4_001e, channel);
            assert_eq!((x[2], x[3]), (0x1_0000, 0x2_0000));
            reply.extend((x[1] as u32).to_le_bytes());
        }
        reply.truncate(x[1] as usize);
        assert_eq!(self.status(5, 1, channel), 1);
        Some(reply)
    }

    fn ask(&mut self, message: &[u8]) -> Vec<u8> {
        let channel = self.open(0xc943_5052).unwrap();
        assert!(self.send(channel, message));
        let reply = self.receive(channel).unwrap();
        assert_eq!(self.status(6, 0, channel), 1);
        reply
    }
}

#[test]
fn version_as_the_tools_ask() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let x = guest.low(0xa9b2_a797, 0xffff_0000_000a, (0, 4, 5));
    assert_eq!(x[..3], [6, u64::from(MAGIC), 2]);
    assert_eq!(x[3..6], [0xabcd_0000_5658, 4, 5]);
}

#[test]
fn the_golden_trace_of_rpctool() {
    let mut guest = Guest::new(Limits::DEFAULT);
    assert_eq!(guest.ask(b"info-set guestinfo.x hello world\0"), b"1 ");
    let channel = guest.open(0xc943_5052).unwrap();
    assert_eq!(guest.low(20, 0x1_001e, channel)[2], 0x81_0000);
    for word in [0x6f66_6e69u64, 0x7465_672d, 0x6575_6720, 0x6e69_7473, 0x782e_6f66] {
        assert_eq!(guest.low(word, 0x2_001e, channel)[2], 0x1_0000);
    }
    let x = guest.low(0, 0x3_001e, channel);
    assert_eq!((x[1], x[2], x[3]), (13, 0x83_0000, 0x1_0000));
    assert_eq!(guest.low(1, 0x4_001e, channel)[1], 0x6568_2031);
    assert_eq!(guest.receive(channel).unwrap(), b"1 hello world");
    assert_eq!(guest.low(0, 0x6_001e, channel)[2], 0x1_0000);
    assert_eq!(guest.service.open_channels(), 0);
}

#[test]
fn what_rpci_answers() {
    let mut guest = Guest::new(Limits::DEFAULT);
    assert_eq!(guest.ask(b"info-get guestinfo.nope"), b"0 No value found");
    assert_eq!(guest.ask(b"nonsense"), b"0 Unknown command");
    assert_eq!(guest.ask(b"log some text"), b"1 ");
    assert_eq!(guest.machine.log, [b"some text"]);
    assert_eq!(guest.ask(b"SetGuestInfo  7 60600\0"), b"1 ");
    assert_eq!(guest.ask(b"SetGuestInfo  1 box"), b"1 ");
    assert_eq!(guest.ask(b"tools.capability.statechange "), b"1 ");
    assert_eq!(guest.ask(b"vmx.capability.unified_loop toolbox\0"), b"1 ");
    assert_eq!(guest.ask(b"info-set guestinfo.ip 10.0.2.15\0"), b"1 ");
    let report = &guest.service.state.report;
    assert_eq!((report.uptime, report.host_name.as_str(), report.address.as_str()), (606, "box", "10.0.2.15"));
    assert!(report.soft_power);
    assert_eq!(guest.ask(b"vmx.set_option synctime 0 1"), b"1 ");
    assert_eq!(guest.low(0, 13, (0, 0, 0))[0], 0x400);
    assert_eq!(guest.ask(&[0]), b"0 Unknown command");
}

#[test]
fn wrong_channels_cookies_and_lengths() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let channel = guest.open(0xc943_5052).unwrap();
    let (id, high, low) = channel;
    for other in [(id + 1, high, low), (id, high ^ 1, low), (id, high, low ^ 1)] {
        assert_eq!(guest.status(1, 4, other), 4);
        assert_eq!(guest.status(6, 0, other), 4);
    }
    assert_eq!(guest.status(2, 0, channel), 0, "payload without size");
    assert_eq!(guest.status(4, 1, channel), 0, "nothing to receive");
    assert_eq!(guest.low(0, 0x3_001e, channel)[2], 0x1_0000);
    assert_eq!(guest.status(1, 65537, channel), 0);
    assert_eq!(guest.status(9, 0, channel), 0);
    assert_eq!(guest.open(0x1234), None);
    // Without the flag cookies are not looked at.
    let plain = guest.open(0x4943_5052).unwrap();
    assert_eq!(guest.status(1, 4, (plain.0, 77, 78)), 0x81);
    // The receiver gives up.
    assert!(guest.send(channel, b"log x"));
    assert_eq!(guest.status(4, 0, channel), 1);
    assert_eq!(guest.low(0, 0x3_001e, channel)[2], 0x1_0000);
}

#[test]
fn channels_that_nobody_closes_are_given_up() {
    let mut guest = Guest::new(Limits { channels: 8, ..Limits::DEFAULT });
    let first = guest.open(0xc943_5052).unwrap();
    for _ in 0..100 {
        guest.open(0xc943_5052).unwrap();
    }
    assert_eq!(guest.service.open_channels(), 8);
    assert_eq!(guest.status(1, 4, first), 4);
}

#[test]
fn replies_that_nobody_takes_are_bounded() {
    let limits = Limits { channels: 32, buffers: 10_000, ..Limits::DEFAULT };
    let mut guest = Guest::new(limits);
    let value = [b"info-set guestinfo.v ".as_slice(), &[b'v'; 3000]].concat();
    assert_eq!(guest.ask(&value), b"1 ");
    let get = b"info-get guestinfo.v";
    let channels: Vec<Channel> = (0..limits.channels).map(|_| guest.open(0xc943_5052).unwrap()).collect();
    // Some word by word, some as a whole.
    for (number, &channel) in channels.iter().enumerate() {
        if number % 2 == 0 {
            assert!(guest.send(channel, get));
        } else {
            assert_eq!(guest.status(1, get.len() as u64, channel), 0x81);
            guest.machine.memory[..get.len()].copy_from_slice(get);
            let (id, high, low) = channel;
            let length = get.len() as u64;
            let mut x = [u64::from(MAGIC), 0x1_0000, length, id << 16 | 0x5659, BASE, low, high, 0x86_0000_0018];
            assert_eq!((guest.call(&mut x), x[1]), (Outcome::Done, 0x1_0000));
        }
        assert!(guest.service.buffered() <= limits.buffers + (number + 1) * 15, "{}", guest.service.buffered());
    }
    let replies: Vec<Vec<u8>> = channels.iter().map(|&channel| guest.receive(channel).unwrap()).collect();
    let whole = replies.iter().filter(|reply| reply.len() == 3002).count();
    let refused = replies.iter().filter(|reply| *reply == b"0 Out of memory").count();
    assert_eq!((whole, refused), (3, 29));
    assert_eq!(guest.ask(get).len(), 3002, "what was taken makes room");
}

#[test]
fn bulk_both_ways_and_a_missing_page() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let message = [b"info-set guestinfo.big ".as_slice(), &std::vec![b'v'; 60_000]].concat();
    guest.machine.memory[..message.len()].copy_from_slice(&message);
    let (id, high, low) = guest.open(0xc943_5052).unwrap();
    assert_eq!(guest.status(1, message.len() as u64, (id, high, low)), 0x81);
    let out = [u64::from(MAGIC), 0x1_0000, message.len() as u64, id << 16 | 0x565b, BASE, low, high, 0x86_0000_0018];
    guest.machine.missing = Some(BASE + 0x3000);
    let mut x = out;
    let fault = Outcome::Fault { address: BASE + 0x3000, status: 7, direction: Direction::Read };
    assert_eq!((guest.call_to_the_end(&mut x), x), ((fault, 1), out), "nothing changed");
    guest.machine.missing = None;
    assert_eq!(
        guest.call_to_the_end(&mut x),
        (Outcome::Done, 6),
        "60,023 bytes are eight pieces, of which one was there"
    );
    assert_eq!(x, out, "X1 is success, and that it was");
    assert_eq!(guest.receive((id, high, low)).unwrap(), b"1 ");
    assert!(guest.send((id, high, low), b"info-get guestinfo.big"));
    assert_eq!(guest.low(0, 0x3_001e, (id, high, low))[1], 60_002);
    let bulk_in = [u64::from(MAGIC), 0x1_0000, 60_002, id << 16 | 0x5659, high, BASE + 1, low, 0x86_0000_001c];
    let mut x = bulk_in;
    guest.machine.missing = Some(BASE + 0x1000);
    let fault = Outcome::Fault { address: BASE + 0x1000, status: 7, direction: Direction::Write };
    assert_eq!((guest.call_to_the_end(&mut x), x), ((fault, 0), bulk_in));
    guest.machine.missing = None;
    assert_eq!((guest.call_to_the_end(&mut x), x), ((Outcome::Done, 7), bulk_in));
    // Nobody waited longer than for a piece, and nothing was copied twice.
    assert_eq!((guest.machine.most, guest.machine.copied), (PIECE, 60_023 + 60_002));
    let value = [b"1 ".as_slice(), &[b'v'; 60_000]].concat();
    assert_eq!(guest.machine.memory[1..][..60_002], value);
    assert_eq!(guest.machine.memory[1..6], *b"1 vvv");
    let mut x = bulk_in;
    x[5] = 8;
    assert_eq!(guest.call(&mut x), Outcome::Done);
    assert_eq!(x[1], 0, "not memory, or already received");
}

/// A transfer that was begun and is not gone on with: what comes next on its channel finds it as if it had not been.
#[test]
fn a_transfer_that_is_given_up() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let value = [b"info-set guestinfo.v ".as_slice(), &[b'v'; 20_000]].concat();
    guest.machine.memory[..value.len()].copy_from_slice(&value);
    let (id, high, low) = guest.open(0xc943_5052).unwrap();
    let out =
        |length: usize| [u64::from(MAGIC), 0x1_0000, length as u64, id << 16 | 0x5659, BASE, low, high, 0x86_0000_0018];
    let mut x = out(value.len());
    assert_eq!(guest.status(1, value.len() as u64, (id, high, low)), 0x81);
    assert_eq!(guest.call(&mut x), Outcome::Again);
    // A word at a time, what was begun as a whole: the guest's mistake.
    assert_eq!(guest.status(2, 0, (id, high, low)), 1);
    assert_eq!((guest.call(&mut x), x[1]), (Outcome::Done, 0));
    // Another message.
    assert_eq!(guest.status(1, value.len() as u64, (id, high, low)), 0x81);
    let mut x = out(value.len());
    assert_eq!((guest.call_to_the_end(&mut x), x[1]), ((Outcome::Done, 2), 0x1_0000));
    assert_eq!(guest.receive((id, high, low)).unwrap(), b"1 ");
    // The other way: begun, and received anew.
    assert!(guest.send((id, high, low), b"info-get guestinfo.v"));
    assert_eq!(guest.low(0, 0x3_001e, (id, high, low))[1], 20_002);
    let bulk_in = [u64::from(MAGIC), 0x1_0000, 20_002, id << 16 | 0x5659, high, BASE, low, 0x86_0000_001c];
    let mut x = bulk_in;
    assert_eq!(guest.call(&mut x), Outcome::Again);
    assert_eq!(guest.low(0, 0x3_001e, (id, high, low))[1], 20_002);
    guest.machine.copied = 0;
    assert_eq!((guest.call_to_the_end(&mut x), x[1]), ((Outcome::Done, 2), 0x1_0000));
    assert_eq!(guest.machine.copied, 20_002);
}

#[test]
fn the_daemons_conversation() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let channel = guest.open(0xcf4c_4354).unwrap();
    let poll = |guest: &mut Guest| {
        assert!(guest.send(channel, b""));
        guest.receive(channel)
    };
    for request in crate::tclo::GREETING {
        assert_eq!(poll(&mut guest).unwrap(), request.as_bytes());
        assert_eq!(guest.status(5, 1, channel), 1);
        assert!(guest.send(channel, b"OK ATR toolbox"));
    }
    assert_eq!(poll(&mut guest), None);
    assert!(!guest.service.ask_to_stop(Shutdown::Halt, 0), "it has not said that it can");
    assert_eq!(guest.ask(b"tools.capability.statechange "), b"1 ");
    assert!(guest.service.ask_to_stop(Shutdown::Halt, 9_999));
    assert!(!guest.service.ask_to_stop(Shutdown::Halt, 10_000), "no longer there");
    assert_eq!(poll(&mut guest).unwrap(), b"OS_Halt");
    guest.service.restart();
    assert_eq!(guest.status(1, 0, channel), 4);
}

/// The time of the tools is the guest's, in which it can run: not the host's, and not what passes while the VM is paused.
#[test]
fn the_daemons_time_is_the_guests() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let channel = guest.open(0xcf4c_4354).unwrap();
    assert_eq!(guest.ask(b"tools.capability.statechange "), b"1 ");
    // The host has been up for long, and the guest is slow.
    (guest.machine.now, guest.machine.guest_now) = (3_600_000, 2000);
    assert!(guest.send(channel, b""));
    assert_eq!(guest.receive(channel).unwrap(), b"reset");
    (guest.machine.now, guest.machine.guest_now) = (7_200_000, 3000);
    assert!(guest.send(channel, b"ERROR State change already in progress"));
    guest.machine.now = 9_000_000;
    assert!(guest.service.has_tools(12_999) && !guest.service.has_tools(13_000));
    // The clock of a VM that is paused may run on.
    guest.service.pause(3400);
    assert!(
        guest.service.has_tools(90_000) && guest.service.ask_to_stop(Shutdown::Halt, 90_000),
        "nothing is expected of it"
    );
    let saved = guest.service.save(90_000).unwrap();
    assert_eq!((guest.service.silent(90_000), saved.report.silent, saved.requests.quiet), (Some(400), Some(400), 100));
    // It goes on, here or elsewhere, and has as much time as before.
    let mut other = Guest::new(Limits::DEFAULT);
    other.service.restore(saved, 500_000).unwrap();
    assert_eq!(other.service.silent(600_000), Some(400), "it is still paused");
    for (guest, now) in [(&mut guest, 90_000), (&mut other, 600_000)] {
        guest.service.resume(now);
        assert!(guest.service.has_tools(now + 9599) && !guest.service.has_tools(now + 9600));
        guest.machine.guest_now = now + 99;
        assert!(guest.send(channel, b""));
        assert_eq!(guest.receive(channel), None, "it was busy, and is left alone");
        guest.machine.guest_now = now + 100;
        assert!(guest.send(channel, b""));
        assert_eq!(guest.receive(channel).unwrap(), b"reset");
    }
}

#[test]
fn time_and_other_commands() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let x = guest.low(0, 55, (0, 0, 9));
    assert_eq!(x[..6], [u64::from(MAGIC), 5, 1_000_000, 0x2345_6789, 1, 0]);
    assert_eq!(guest.low(0, 46, (0, 0, 9))[5], 9);
    assert_eq!(guest.low(0, 1, (0, 0, 0))[0], 2400);
    assert_eq!(guest.low(0, 11, (0, 0, 0))[0], 0);
    assert_eq!(guest.low(0, 19, (0, 0, 0))[..4], [0x0302_0100, 0x0706_0504, 0x0b0a_0908, 0x0f0e_0d0c]);
    for unknown in [0u64, 2, 36, 99, 0xffff] {
        assert_eq!(guest.low(7, unknown, (0, 0, 0))[..2], [calls::NO_COMMAND, 7]);
    }
    assert_eq!(guest.low(0, 85, (0, 0, 0))[0], calls::NO_COMMAND, "for kernels");
    guest.level = ExceptionLevel::Kernel;
    assert_eq!(guest.low(0, 85, (0, 0, 0))[0], 0);
}

#[test]
fn our_own_calls() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let own = |guest: &mut Guest, command: u64, x1: u64, x4: u64| {
        let mut x = [u64::from(own::MAGIC), x1, command, 0x5543, x4, 1, 0, 0x86_0000_000e];
        (guest.call(&mut x), x)
    };
    assert_eq!(own(&mut guest, 0, 0, 0).1[..4], [0, u64::from(own::MAGIC), 0x1_0000, 3]);
    let (_, x) = own(&mut guest, 1, 1, 0);
    assert_eq!((x[..3].to_vec(), x[3].to_le_bytes()), (std::vec![0, 42, 2], *b"interrup"));
    assert_eq!(own(&mut guest, 1, 2, 0).1[0], own::status::ARGUMENT);
    assert_eq!(own(&mut guest, 2, 0, 0).1[..3], [0, 1_000_000_000, 7]);
    assert_eq!(own(&mut guest, 3, 1, 50).1[0], own::status::REFUSED);
    assert_eq!((own(&mut guest, 3, 0, 0).1[1], own(&mut guest, 3, 4, 0).1[1]), (3, 4), "the VM's and the vCPU's");
    assert_eq!(own(&mut guest, 3, 7, 0).1[0], own::status::ARGUMENT);
    guest.machine.memory[..4].copy_from_slice(b"line");
    assert_eq!(own(&mut guest, 4, 4, BASE).1[0], 0);
    assert_eq!(guest.machine.log, [b"line"]);
    assert_eq!(own(&mut guest, 4, 2000, BASE).1[0], own::status::ARGUMENT);
    assert_eq!(own(&mut guest, 9, 0, 0).1[0], calls::NO_COMMAND);
}

#[test]
fn a_string_moves_on_page_by_page() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let mut x = [0, 1, 300, 0x5543, BASE + 0xf80, 5, 6, 0x86_0000_0018];
    guest.machine.missing = Some(BASE + 0x1000);
    assert_eq!(guest.call(&mut x), Outcome::Again);
    assert_eq!((x[2], x[4]), (300 - 0x80, BASE + 0x1000));
    assert!(matches!(guest.call(&mut x), Outcome::Fault { address, .. } if address == BASE + 0x1000));
    assert_eq!((x[2], x[4]), (300 - 0x80, BASE + 0x1000));
    guest.machine.missing = None;
    assert_eq!(guest.call(&mut x), Outcome::Done);
    assert_eq!((x[2], x[4]), (0, BASE + 0xf80 + 300));
    assert_eq!(guest.machine.log.concat().len(), 300);
}

#[test]
fn the_log_cannot_be_flooded() {
    let mut guest = Guest::new(Limits { log: 100, ..Limits::DEFAULT });
    for _ in 0..100 {
        guest.ask(b"log 0123456789");
    }
    assert!(guest.machine.log.len() < 40);
    assert_eq!(guest.ask(b"log 0123456789"), b"0 ");
}

#[test]
fn a_full_log_is_told() {
    let mut guest = Guest::new(Limits::DEFAULT);
    guest.machine.log_is_full = true;
    assert_eq!(guest.ask(b"log 0123456789"), b"0 ");
    let mut x = [u64::from(own::MAGIC), 4, 4, 0x5543, BASE, 0, 0, 0x86_0000_000e];
    assert_eq!((guest.call(&mut x), x[0]), (Outcome::Done, own::status::UNAVAILABLE));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_registers_leave_the_service_whole(calls in proptest::collection::vec((any::<[u64; 7]>(), 0u64..64, any::<u16>()), 1..200)) {
        let limits = Limits { channels: 4, buffers: 4096, store: 1024, ..Limits::DEFAULT };
        let mut guest = Guest::new(limits);
        for (mut x, w7, choice) in calls {
            // Most calls look right at first glance.
            if choice & 7 != 0 {
                x[0] = u64::from(MAGIC);
                x[3] = x[3] << 16 & 0x3_0000 | [0x5658, 0x5658, 0x5659, 0x5543][usize::from(choice >> 3 & 3)];
                x[2] = if choice & 0x20 != 0 { x[2] & 0x7_ffff } else { x[2] & 0x7_0000 | 0x1e };
                x[1] = if choice & 0x40 != 0 { 0xc943_5052 } else { x[1] & 0x1fff };
                x[4] = if choice & 0x80 != 0 { BASE + (x[4] & 0xffff) } else { x[4] };
            }
            let mut registers = [x[0], x[1], x[2], x[3], x[4], x[5], x[6], 0x86 << 32 | w7];
            if let Some(access) = decode(DCC, registers[3], registers[7]) {
                let before = registers;
                let outcome = guest.service.call(access, &mut registers, ExceptionLevel::User, &mut guest.machine);
                prop_assert_eq!(&before[6..], &registers[6..]);
                if matches!(outcome, Outcome::Fault { .. }) {
                    prop_assert_eq!(before, registers);
                }
            }
            prop_assert!(guest.service.open_channels() <= 4);
        }
    }

    #[test]
    fn a_message_arrives_as_it_was_sent(value in proptest::collection::vec(1u8.., 0..600)) {
        let mut guest = Guest::new(Limits::DEFAULT);
        let set = [b"info-set guestinfo.v ".as_slice(), &value].concat();
        prop_assert_eq!(guest.ask(&set), b"1 ");
        prop_assert_eq!(guest.ask(b"info-get guestinfo.v"), [b"1 ".as_slice(), &value].concat());
    }
}
