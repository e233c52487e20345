//! What a guest sees at the edges of what it may have, of each command, and of what it gets wrong.

use super::{BASE, Channel, Guest, Machine, config};
use crate::Limits;
use crate::channel::Registers;
use crate::encoding::{Size, decode};
use crate::guestinfo::Refused;
use crate::service::{ExceptionLevel, Host, Outcome, Service, Shutdown};
use abi::bundle::{Calls, Group};
use abi::calls::vmware::{MAGIC, command};
use abi::calls::{NO_COMMAND, own};
use std::vec::Vec;

const RPCI: u32 = 0xc943_5052;
const TCLO: u32 = 0xcf4c_4354;

/// The whole payload `length` from the guest, or to it, at the beginning of its memory.
fn out(length: usize, (id, high, low): Channel) -> Registers {
    [u64::from(MAGIC), 0x1_0000, length as u64, id << 16 | 0x5659, BASE, low, high, 0x86_0000_0018]
}

fn into(length: usize, (id, high, low): Channel) -> Registers {
    [u64::from(MAGIC), 0x1_0000, length as u64, id << 16 | 0x5659, high, BASE, low, 0x86_0000_001c]
}

impl Guest {
    /// What X1 says of a payload that goes as a whole.
    fn whole(&mut self, mut x: Registers) -> u64 {
        assert_eq!(self.call(&mut x), Outcome::Done);
        x[1]
    }

    fn own(&mut self, command: u64, x1: u64) -> Registers {
        let mut x = [u64::from(own::MAGIC), x1, command, 0x5543, BASE, 0, 0, 0x86_0000_000e];
        assert_eq!(self.call(&mut x), Outcome::Done);
        x
    }
}

/// The channel that is given up is the one that was not used for the longest time, whichever way the others were.
#[test]
fn any_call_is_a_use_of_its_channel() {
    let uses: [fn(&mut Guest, Channel, Channel); 3] = [
        |guest, used, _| assert_eq!(guest.status(1, 1, used), 0x81),
        |guest, used, other| {
            assert_eq!(guest.status(1, 4, used), 0x81);
            assert_eq!(guest.status(1, 4, other), 0x81);
            assert_eq!(guest.whole(out(4, used)), 0x1_0000);
        },
        |guest, used, other| {
            assert!(guest.send(used, b"log x"));
            assert_eq!(guest.low(0, 0x3_001e, used)[1], 2);
            assert_eq!(guest.status(1, 4, other), 0x81);
            assert_eq!(guest.whole(into(2, used)), 0x1_0000);
        },
    ];
    for using in uses {
        let mut guest = Guest::new(Limits { channels: 2, ..Limits::DEFAULT });
        let (used, other) = (guest.open(RPCI).unwrap(), guest.open(RPCI).unwrap());
        using(&mut guest, used, other);
        guest.open(RPCI).unwrap();
        assert_eq!((guest.status(9, 0, used), guest.status(9, 0, other)), (0, 4));
    }
}

#[test]
fn both_cookies_are_random() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let (_, high, low) = guest.open(RPCI).unwrap();
    assert_eq!(high << 32 | low, Machine::new().random());
}

#[test]
fn a_message_has_at_most_what_it_may_and_all_have_at_most_what_they_may() {
    let limits = Limits { message: 40, buffers: 60, ..Limits::DEFAULT };
    let mut guest = Guest::new(limits);
    let (one, other) = (guest.open(RPCI).unwrap(), guest.open(RPCI).unwrap());
    assert_eq!((guest.status(1, 41, one), guest.status(1, 40, one)), (0, 0x81));
    assert_eq!(guest.service.buffered(), 40);
    assert_eq!((guest.status(1, 21, other), guest.status(1, 20, other)), (0, 0x81));
    assert_eq!(guest.service.buffered(), 60);
    // Nothing to say is a message too, and there is nothing of it to send.
    assert_eq!(guest.status(1, 0, other), 1);
}

/// A reply for which there is no room becomes an error, if that is shorter.
#[test]
fn an_error_takes_no_more_room_than_the_reply() {
    for (length, reply) in [(13, b"1 vvvvvvvvvvvvv".as_slice()), (14, b"0 Out of memory")] {
        let mut guest = Guest::new(Limits { buffers: 64, ..Limits::DEFAULT });
        let value = [b"info-set guestinfo.v ".as_slice(), &std::vec![b'v'; length]].concat();
        assert_eq!(guest.ask(&value), b"1 ");
        let [asks, other, over] = [(); 3].map(|()| guest.open(RPCI).unwrap());
        let get = b"info-get guestinfo.v";
        guest.machine.memory[..get.len()].copy_from_slice(get);
        let announced = [(asks, 20), (other, 43), (over, 1)].map(|(channel, length)| guest.status(1, length, channel));
        assert_eq!((announced, guest.service.buffered()), ([0x81; 3], 64));
        // One byte has a reply of fifteen.
        assert_eq!(guest.status(2, u64::from(b'x'), over), 1);
        assert_eq!(guest.whole(out(20, asks)), 0x1_0000);
        assert_eq!(guest.receive(asks).unwrap(), reply, "{length}");
    }
}

#[test]
fn a_reply_as_a_whole_has_the_length_that_was_said_and_was_not_begun() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let channel = guest.open(RPCI).unwrap();
    assert!(guest.send(channel, b"info-get guestinfo.nope"));
    assert_eq!(guest.low(0, 0x3_001e, channel)[1], 16);
    assert_eq!(guest.whole(into(15, channel)), 0);
    assert_eq!(guest.low(1, 0x4_001e, channel)[1], 0x6f4e_2030);
    assert_eq!(guest.whole(into(16, channel)), 0, "four bytes of it were taken");
    assert_eq!(guest.machine.copied, 0);
}

#[test]
fn a_request_that_waits_is_not_asked_for_again() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let channel = guest.open(TCLO).unwrap();
    assert_eq!(guest.low(0, 0x3_001e, channel)[1], 5);
    assert_eq!(guest.low(0, 0x3_001e, channel)[1], 5, "its length is asked twice");
    assert_eq!(guest.receive(channel).unwrap(), b"reset");
}

/// Each group alone: its commands are answered, and no others.
#[test]
fn each_command_is_in_its_group() {
    let commands = [
        (command::MESSAGE, Group::Rpc),
        (command::GET_TIME, Group::Time),
        (command::GET_TIME_FULL, Group::Time),
        (command::GET_TIME_FULL_WITH_LAG, Group::Time),
        (command::STOP_CATCH_UP, Group::Time),
        (command::GET_MHZ, Group::Hardware),
        (command::GET_DEVICE, Group::Hardware),
        (command::TOGGLE_DEVICE, Group::Hardware),
        (command::GET_OPTIONS, Group::Hardware),
        (command::GET_HARDWARE_VERSION, Group::Hardware),
        (command::GET_UUID, Group::Hardware),
        (command::GET_MEMORY, Group::Hardware),
    ];
    for (bit, only) in Group::LIST.into_iter().enumerate() {
        let config = config(Limits::DEFAULT);
        let service = Service::new(crate::service::Config { user: Calls(1 << bit), ..config }, 0);
        let mut guest = Guest { service, machine: Machine::new(), level: ExceptionLevel::User };
        for (command, group) in commands {
            let is_answered = guest.low(0, u64::from(command), (0, 0, 0))[0] != NO_COMMAND;
            assert_eq!(is_answered, group == only, "{command} where only {only:?} may be called");
        }
    }
}

#[test]
fn what_the_machine_is_made_of() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let ask = |guest: &mut Guest, command: u16| guest.low(0, u64::from(command), (0, 0, 0));
    assert_eq!(ask(&mut guest, command::GET_HARDWARE_VERSION)[..2], [20, u64::from(MAGIC)]);
    assert_eq!(ask(&mut guest, command::GET_MEMORY)[..2], [0xffff_f000, 0x1177], "8 GiB is more than can be said");
    assert_eq!(ask(&mut guest, command::GET_TIME)[..3], [0x2345_6789, 5, 1_000_000]);
    guest.service.set_megahertz(1800);
    assert_eq!(ask(&mut guest, command::GET_MHZ)[0], 1800);
}

/// What is no call of ours is an access to a port where nothing is: it reads as ones, and what is written is lost.
#[test]
fn what_is_almost_a_call_is_none() {
    let mut guest = Guest::new(Limits::DEFAULT);
    let magic = u64::from(MAGIC);
    let garbage = 0xfedc_ba98_0000_0000;
    let version = u64::from(command::GET_VERSION);
    for (x0, w7, result) in [
        (garbage | magic ^ 1, 0x0e, 0xffff_ffff),
        (garbage | magic, 0x0d, 0x564d_ffff),
        (garbage | magic, 0x0c, 0x564d_58ff),
    ] {
        let mut x = [x0, 0, version, 0x5658, 0, 0, 0, 0x86 << 32 | w7];
        let before = x;
        assert_eq!((guest.call(&mut x), x[0]), (Outcome::Done, result), "{w7:#x}");
        assert_eq!(x[1..], before[1..]);
    }
    // Payloads: another magic word, another size, another request. And a string of ours, in another size.
    let channel = guest.open(RPCI).unwrap();
    assert_eq!(guest.status(1, 4, channel), 0x81);
    let whole = out(4, channel);
    let with = |register: usize, value: u64| {
        let mut x = whole;
        x[register] = value;
        x
    };
    let string = [0, 0, 4, 0x5543, BASE, 0, 0, 0x86_0000_0019];
    for mut x in [with(0, magic ^ 1), with(7, 0x86_0000_0019), with(1, 0x1_0001), string] {
        let before = x;
        assert_eq!((guest.call(&mut x), x), (Outcome::Done, before));
    }
    assert_eq!((guest.machine.copied, guest.machine.log.len()), (0, 0));
    assert_eq!(guest.whole(whole), 0x1_0000, "as it is, it is one");
    for (w7, size) in [(0x0c, Size::Byte), (0x0d, Size::Half), (0x0e, Size::Word)] {
        assert_eq!(decode(super::DCC, 0x5658, 0x86 << 32 | w7).map(|access| access.size), Some(size));
    }
}

/// The guest is told why in a few words, and the operator in which line of the site file to look.
#[test]
fn why_a_value_is_refused() {
    let mut guest = Guest::new(Limits { message: 64, keys: 2, store: 80, ..Limits::DEFAULT });
    assert_eq!(guest.ask(b"info-set guestinfo. x"), b"0 Invalid key");
    assert_eq!(guest.service.set(b"guestinfo.a", &[b'x'; 65]), Err(Refused::TooLong));
    assert_eq!(guest.service.set(b"guestinfo.a", &[b'x'; 64]), Ok(()), "as long as a message may be");
    assert_eq!(guest.ask(b"info-set guestinfo.b"), b"0 Out of memory");
    assert_eq!(guest.ask(b"info-set guestinfo.a"), b"1 ");
    assert_eq!(guest.ask(b"info-set guestinfo.b"), b"1 ");
    assert_eq!(guest.ask(b"info-set guestinfo.c"), b"0 Too many keys");
    assert_eq!(Refused::TooLong.text(), b"Value too long");
    let named = [
        (Refused::Key, "guestinfo. and a name"),
        (Refused::TooLong, "vmware-message"),
        (Refused::TooManyKeys, "vmware-keys"),
        (Refused::Full, "vmware-store"),
    ];
    named.iter().for_each(|(why, name)| assert!(why.sentence().contains(name), "{why:?}"));
}

/// Wherever the heap ends, a value is set or refused, and the service goes on.
#[test]
fn a_value_needs_its_memory() {
    for allocations in 0..6 {
        let mut guest = Guest::new(Limits::DEFAULT);
        let set = scarce::with_only(allocations, || guest.service.set(b"guestinfo.a", b"value"));
        assert_eq!(set, if allocations < 3 { Err(Refused::Full) } else { Ok(()) }, "{allocations}");
        assert_eq!(guest.service.state.store.get(b"guestinfo.a").is_some(), set.is_ok());
    }
}

/// As short as a reply may be, it is asked for as a whole: an allocation that nobody asked about would end the host.
#[test]
fn a_reply_needs_its_memory() {
    let get = b"info-get guestinfo.v";
    let replies = (0..6).map(|allocations| {
        let mut guest = Guest::new(Limits::DEFAULT);
        assert_eq!(guest.ask(b"info-set guestinfo.v x"), b"1 ");
        let channel = guest.open(RPCI).unwrap();
        assert_eq!(guest.status(1, get.len() as u64, channel), 0x81);
        guest.machine.memory[..get.len()].copy_from_slice(get);
        let mut x = out(get.len(), channel);
        scarce::with_only(allocations, || guest.call(&mut x));
        guest.receive(channel).unwrap()
    });
    let replies: Vec<Vec<u8>> = replies.collect();
    assert!(replies.iter().all(|reply| [&b""[..], b"0 Out of memory", b"1 x"].contains(&&reply[..])), "{replies:?}");
    assert_eq!((&replies[0][..], &replies[5][..]), (&b""[..], &b"1 x"[..]));
}

/// What is set aside grows with each thing that a guest may have: by itself, what keeps it, and as much again.
#[test]
fn more_is_set_aside_for_who_may_have_more() {
    let most = |change: fn(&mut Limits)| {
        let mut limits = Limits::DEFAULT;
        change(&mut limits);
        limits.most_memory() - Limits::DEFAULT.most_memory()
    };
    assert_eq!(most(|limits| limits.store += 1), 2);
    assert_eq!(most(|limits| limits.buffers += 1), 2);
    assert_eq!(most(|limits| limits.message += 1), 6, "the message, its reply, and a copy of its value");
    assert_eq!((most(|limits| limits.keys += 1), most(|limits| limits.channels += 1)), (512, 512));
    let none = Limits { channels: 0, message: 0, buffers: 0, keys: 0, store: 0, ..Limits::DEFAULT };
    assert_eq!(none.most_memory(), 0);
}

#[test]
fn what_the_tools_tell_of_their_guest() {
    let mut guest = Guest::new(Limits::DEFAULT);
    assert_eq!(guest.ask(b"SetGuestInfo  5 Debian GNU/Linux"), b"1 ");
    assert_eq!(guest.service.state.report.system.as_str(), "Debian GNU/Linux");
    // The newer form: a version, a short name of 129 bytes, and the long one.
    let mut newer = b"SetGuestInfo  11 ".to_vec();
    newer.extend([b'.'; 4 + 129]);
    newer.extend(b"Debian 13");
    assert_eq!(guest.ask(&newer), b"1 ");
    assert_eq!(guest.service.state.report.system.as_str(), "Debian 13");
    assert_eq!(guest.ask(b"info-set guestinfo.vmtools.versionString 12.5.0"), b"1 ");
    assert_eq!(guest.service.state.report.version.as_str(), "12.5.0");
    for accepted in [
        "SetGuestDiskInfo",
        "tools.set.versiontype",
        "tools.set.version",
        "tools.os.statechange.status",
        "update.tools.health",
    ] {
        assert_eq!(guest.ask(accepted.as_bytes()), b"1 ", "{accepted}");
    }
}

/// A line costs what keeps it too, or a guest could write any number of empty ones. A string of no bytes is no line.
#[test]
fn an_empty_line_has_its_price() {
    let mut guest = Guest::new(Limits { log: 100, ..Limits::DEFAULT });
    let mut nothing = [0, 0, 0, 0x5543, BASE, 0, 0, 0x86_0000_0018];
    assert_eq!((guest.call(&mut nothing), guest.machine.log.len()), (Outcome::Done, 0));
    let taken = (0..100).filter(|_| guest.own(4, 0)[0] == own::status::DONE).count();
    assert_eq!((taken, guest.machine.log.len()), (50, 50), "of 800 bytes, 16 each");
}

#[test]
fn a_kernel_pats_its_watchdog() {
    let mut guest = Guest::new(Limits::DEFAULT);
    assert_eq!(guest.own(3, 2)[0], own::status::REFUSED);
    guest.level = ExceptionLevel::Kernel;
    assert_eq!(guest.own(3, 2)[..2], [own::status::DONE, 100]);
}

/// Who closes its channel is not there any more; a power cycle forgets values, and a journey only channels.
#[test]
fn what_goes_with_the_channels_and_what_stays() {
    let with_tools = || {
        let mut guest = Guest::new(Limits::DEFAULT);
        let channel = guest.open(TCLO).unwrap();
        assert_eq!(guest.ask(b"tools.capability.statechange "), b"1 ");
        assert_eq!(guest.ask(b"info-set guestinfo.v x"), b"1 ");
        assert!(guest.send(channel, b""));
        assert!(guest.service.ask_to_stop(Shutdown::Halt, 0));
        (guest, channel)
    };
    let (mut guest, channel) = with_tools();
    assert_eq!(guest.status(6, 0, channel), 1);
    assert!(!guest.service.has_tools(0) && !guest.service.ask_to_stop(Shutdown::Halt, 0));
    let (mut guest, channel) = with_tools();
    guest.service.drop_channels();
    assert_eq!((guest.status(1, 0, channel), guest.service.open_channels()), (4, 0));
    assert!(!guest.service.has_tools(0) && guest.service.state.report.soft_power);
    assert_eq!(guest.ask(b"info-get guestinfo.v"), b"1 x");
    let (mut guest, _) = with_tools();
    guest.service.forget();
    assert_eq!((guest.service.open_channels(), guest.service.has_tools(0)), (0, false));
    assert_eq!(guest.ask(b"info-get guestinfo.v"), b"0 No value found");
}

#[test]
fn so_many_requests_wait_and_none_is_long() {
    let mut requests = crate::tclo::Requests::default();
    assert!(!requests.push(&[b'x'; 33]));
    let taken: Vec<bool> = (0..34).map(|_| requests.push(&[b'x'; 32])).collect();
    assert_eq!(taken.iter().filter(|&&taken| taken).count(), 32);
    assert!(!taken[32] && !taken[33]);
}
