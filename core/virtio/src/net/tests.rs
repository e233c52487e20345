//! Network devices on a switch, whose owner is the test: frames go where they may, whole and once, whatever the drivers and the memory do.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use devices::AccessSize;
use switch::{HEAD, MAX_FRAME, Mac, PortId, Reason, Switch};
use units::Ipa;

mod open;

use open::header;

use super::{Between, Delivery, Frame, HEADER, Link, Net, Received, Side};
use crate::memory::{Fault, GuestMemory};
use crate::{Mmio, Progress, QueueError};

/// A queue's size, and where its rings are: 8 KiB for each queue, then room for frames.
const SIZE: u16 = 64;
const SENT: u64 = 0x2_0000;
const BUFFERS: u64 = 0x6_0000;
const RAM: usize = 0x10_0000;
const DEVICE: u64 = 0xffff_ffff_ffff_ffff;

/// A guest's memory. It may refuse the access of a number, counted from when that was said, and all behind it.
struct Ram {
    bytes: RefCell<Vec<u8>>,
    left: Cell<usize>,
    is_refused: Cell<bool>,
    /// What was asked to be made ready.
    asked: RefCell<Vec<Ipa>>,
}

impl Ram {
    fn new() -> Self {
        Self {
            bytes: RefCell::new(vec![0; RAM]),
            left: Cell::new(usize::MAX),
            is_refused: Cell::new(false),
            asked: RefCell::default(),
        }
    }

    fn place(&self, at: Ipa, count: usize) -> Result<core::ops::Range<usize>, Fault> {
        self.is_refused.set(self.left.get() == 0);
        if self.is_refused.get() {
            return Err(Fault(at));
        }
        self.left.set(self.left.get() - 1);
        let start = usize::try_from(at.0).map_err(|_| Fault(at))?;
        let end = start.checked_add(count).filter(|&end| end <= RAM).ok_or(Fault(at))?;
        Ok(start..end)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.bytes.borrow_mut()[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn get(&self, at: u64, count: usize) -> Vec<u8> {
        self.bytes.borrow()[at as usize..][..count].to_vec()
    }

    fn half(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.get(at, 2).try_into().unwrap())
    }
}

impl GuestMemory for Ram {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        let place = self.place(from, into.len())?;
        into.copy_from_slice(&self.bytes.borrow()[place]);
        Ok(())
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        let place = self.place(to, bytes.len())?;
        self.bytes.borrow_mut()[place].copy_from_slice(bytes);
        Ok(())
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        let mut bytes = [0; 2];
        self.read(at, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault> {
        self.write(at, &value.to_le_bytes())
    }

    fn make_ready(&self, at: Ipa) -> Result<(), Fault> {
        self.asked.borrow_mut().push(at);
        self.place(at, 1).map(drop)
    }

    fn is_refused_for_now(&self) -> bool {
        self.is_refused.get()
    }
}

struct Pair<'a>(&'a Ram, &'a Ram, &'a World);

impl Between for Pair<'_> {
    fn copy(&self, from: Ipa, to: Ipa, length: usize) -> Result<(), Side> {
        let Self(sender, receiver, _) = self;
        let mut bytes = vec![0; length];
        sender.read(from, &mut bytes).map_err(Side::Sender)?;
        receiver.write(to, &bytes).map_err(Side::Receiver)
    }

    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Side> {
        self.2.reads.set(self.2.reads.get() + 1);
        if self.2.is_unread.get() {
            return Err(Side::Sender(Fault(from)));
        }
        self.0.read(from, into).map_err(Side::Sender)
    }

    fn is_used_up(&self) -> bool {
        self.2.is_used_up.get()
    }
}

/// All devices, their memory, and the switch between them.
struct World {
    switch: Switch,
    rams: Vec<Ram>,
    nets: Vec<RefCell<Option<Mmio<Net<Cable>>>>>,
    floods: Cell<usize>,
    /// The next deliveries find the receiver locked.
    busy: Cell<usize>,
    /// Before a delivery, this is stored into the sender's memory.
    meddling: RefCell<Option<(u64, Vec<u8>)>>,
    broken: RefCell<Vec<QueueError>>,
    /// How often something was read for a checksum.
    reads: Cell<usize>,
    /// The sender's memory is not read for one, though it could be.
    is_unread: Cell<bool>,
    /// Where the receiver's memory refuses, it is for want of a share.
    is_used_up: Cell<bool>,
    /// What each delivery costs.
    cost: Cell<u32>,
}

#[derive(Clone)]
struct Cable {
    world: Rc<World>,
    port: PortId,
}

impl Link for Cable {
    fn port(&self) -> (&Switch, PortId) {
        (&self.world.switch, self.port)
    }

    fn may_flood(&mut self) -> bool {
        let left = self.world.floods.get();
        self.world.floods.set(left.saturating_sub(1));
        left > 0
    }

    fn deliver(&mut self, to: PortId, frame: &Frame<'_>, spent: &mut u32) -> Delivery {
        let world = &self.world;
        *spent = world.cost.get();
        if world.busy.get() > 0 {
            world.busy.set(world.busy.get() - 1);
            return Delivery::Busy;
        }
        let (sender, receiver) = (&world.rams[usize::from(self.port.0)], &world.rams[usize::from(to.0)]);
        if let Some((at, bytes)) = world.meddling.take() {
            sender.put(at, &bytes);
        }
        let mut net = world.nets[usize::from(to.0)].borrow_mut();
        let Some(net) = net.as_mut() else { return Delivery::Absent };
        match net.receive(receiver, frame, &Pair(sender, receiver, world)) {
            Ok(Received::Taken | Received::Dropped(_)) => Delivery::Done,
            Ok(Received::Unread(at)) => Delivery::Unread(at),
            Err(error) => {
                world.broken.borrow_mut().push(error);
                Delivery::Done
            }
        }
    }
}

const fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

/// All that is offered, and what Linux accepts: all of it.
const LINUX: u64 = super::feature::ALL;
const PLAIN: u64 = 0;

/// A world in which each port is on a network, with that MTU and features.
fn world(ports: &[(u16, u16, u64)]) -> Rc<World> {
    let addresses = (0..).zip(ports).map(|(number, port)| (port.0, mac(number)));
    let world = Rc::new(World {
        switch: Switch::new(addresses).unwrap(),
        rams: ports.iter().map(|_| Ram::new()).collect(),
        nets: ports.iter().map(|_| RefCell::new(None)).collect(),
        floods: Cell::new(usize::MAX),
        busy: Cell::new(0),
        meddling: RefCell::default(),
        broken: RefCell::default(),
        reads: Cell::default(),
        is_unread: Cell::default(),
        is_used_up: Cell::default(),
        cost: Cell::default(),
    });
    for (number, &(_, mtu, features)) in ports.iter().enumerate() {
        let link = Cable { world: world.clone(), port: PortId(number as u16) };
        let mut mmio = Mmio::new(Net::new(link, mac(number as u8).0, mtu));
        begin(&mut mmio, features);
        *world.nets[number].borrow_mut() = Some(mmio);
    }
    world
}

/// What its driver does: queue *n* has its rings at *n* times 8 KiB.
fn begin(mmio: &mut Mmio<Net<Cable>>, features: u64) {
    let mut set = |register, value: u64| {
        let _ = mmio.write(register, AccessSize::Word, value);
    };
    for (register, value) in
        [(0x070, 3), (0x024, 0), (0x020, features & 0xffff_ffff), (0x024, 1), (0x020, 1 | features >> 32), (0x070, 11)]
    {
        set(register, value);
    }
    for queue in 0..2 {
        let at = queue * 0x2000;
        for (register, value) in
            [(0x030, queue), (0x038, SIZE.into()), (0x080, at), (0x090, at + 0x1000), (0x0a0, at + 0x1800), (0x044, 1)]
        {
            set(register, value);
        }
    }
    set(0x070, 15);
    assert!(mmio.is_live());
}

impl World {
    /// The driver of `port` offers a chain of these pieces on a queue; the descriptor's number is that of the ring's entry times `DEEP`.
    fn offer(&self, port: usize, queue: u64, pieces: &[(u64, u32)]) {
        let (ram, base) = (&self.rams[port], queue * 0x2000);
        let index = ram.half(base + 0x1002);
        // Chains one behind the other in the table, around which they wrap.
        let free = self.next_descriptor(port, queue);
        for (nth, &(at, length)) in (0..).zip(pieces) {
            let number = (free + nth) % SIZE;
            let more = usize::from(nth) + 1 < pieces.len();
            let flags = u16::from(more) | if queue == 0 { 2 } else { 0 };
            let next = (free + nth + 1) % SIZE;
            let entry = base + u64::from(number) * 16;
            ram.put(entry, &at.to_le_bytes());
            ram.put(entry + 8, &length.to_le_bytes());
            ram.put(entry + 12, &[flags.to_le_bytes(), next.to_le_bytes()].concat());
        }
        ram.put(base + 0x1004 + u64::from(index % SIZE) * 2, &free.to_le_bytes());
        ram.put(base + 0x1002, &index.wrapping_add(1).to_le_bytes());
        // Where the next chain begins, in memory that nobody else uses.
        ram.put(base + 0x1f00, &((free + pieces.len() as u16) % SIZE).to_le_bytes());
    }

    fn next_descriptor(&self, port: usize, queue: u64) -> u16 {
        self.rams[port].half(queue * 0x2000 + 0x1f00)
    }

    /// Offers a frame, cut into pieces of at most `cut` bytes, header first.
    fn offer_frame(&self, port: usize, header: &[u8; HEADER], frame: &[u8], cut: usize) {
        let all = [header, frame].concat();
        self.rams[port].put(SENT, &all);
        let cut = cut.max(all.len().div_ceil(usize::from(SIZE)));
        let pieces: Vec<_> =
            (0..all.len()).step_by(cut).map(|at| (SENT + at as u64, cut.min(all.len() - at) as u32)).collect();
        self.offer(port, 1, &pieces);
    }

    fn process(&self, port: usize, queue: u16) -> Result<Progress, QueueError> {
        let mut net = self.nets[port].borrow_mut();
        net.as_mut().unwrap().process(queue, &self.rams[port])
    }

    /// Sends a plain frame, and lets the device work until it has nothing to do.
    fn send(&self, port: usize, frame: &[u8]) {
        self.offer_frame(port, &[0; HEADER], frame, 4000);
        self.work(port);
    }

    fn work(&self, port: usize) {
        while self.process(port, 1).unwrap() == Progress::More {}
    }

    /// Gives `port` so many buffers of that length, a chain of `pieces` each.
    fn give(&self, port: usize, count: u64, length: u32, pieces: u32) {
        for _ in 0..count {
            let at = BUFFERS + u64::from(self.rams[port].half(0x1002)) % 8 * 0x1_1000;
            let part = length / pieces;
            let all: Vec<_> = (0..pieces)
                .map(|nth| (at + u64::from(nth * part), if nth + 1 < pieces { part } else { length - nth * part }))
                .collect();
            self.offer(port, 0, &all);
        }
    }

    /// What has arrived at `port` from used entry `from` on: each entry's bytes, header included.
    fn arrived(&self, port: usize, from: u16) -> Vec<Vec<u8>> {
        let ram = &self.rams[port];
        let count = ram.half(0x1802);
        (from..count)
            .map(|index| {
                let entry = ram.get(0x1804 + u64::from(index % SIZE) * 8, 8);
                let (mut head, length) = (
                    u64::from(entry[0]) | u64::from(entry[1]) << 8,
                    u32::from_le_bytes(entry[4..].try_into().unwrap()),
                );
                let mut bytes = Vec::new();
                loop {
                    let descriptor = ram.get(head * 16, 16);
                    let at = u64::from_le_bytes(descriptor[..8].try_into().unwrap());
                    let piece = u32::from_le_bytes(descriptor[8..12].try_into().unwrap());
                    bytes.extend(ram.get(at, piece as usize));
                    if descriptor[12] & 1 == 0 {
                        break;
                    }
                    head = u64::from(descriptor[14]);
                }
                bytes.truncate(length as usize);
                bytes
            })
            .collect()
    }

    fn counted(&self, port: usize, reason: Reason) -> u64 {
        self.nets[port].borrow().as_ref().unwrap().device().counters().dropped(reason)
    }

    fn traffic(&self, port: usize) -> (u64, u64) {
        let net = self.nets[port].borrow();
        let counters = net.as_ref().unwrap().device().counters();
        (counters.sent.frames, counters.received.frames)
    }
}

fn frame(to: Mac, from: Mac, length: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length.max(HEAD)).map(|at| (at * 7 % 251) as u8).collect();
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame.truncate(length);
    frame
}

/// The same with the head of an IPv4 packet in it.
fn packet(to: Mac, from: Mac, length: usize, protocol: u8) -> Vec<u8> {
    let mut frame = frame(to, from, length.max(HEAD + 20));
    (frame[14], frame[23]) = (0x45, protocol);
    frame.truncate(length);
    frame
}

#[test]
fn a_frame_arrives_whole() {
    let world = world(&[(0, 1500, LINUX), (0, 1500, LINUX)]);
    world.give(1, 1, 2048, 1);
    let sent = frame(mac(1), mac(0), 60);
    world.send(0, &sent);
    let mut header = vec![0; HEADER];
    header[10] = 1;
    assert_eq!(world.arrived(1, 0), [[header, sent].concat()]);
    assert_eq!((world.traffic(0), world.traffic(1)), ((1, 0), (0, 1)));
    let is_told = |port: usize| world.nets[port].borrow().as_ref().unwrap().line();
    assert!(is_told(1) && is_told(0), "both drivers want to know");
    assert_eq!(world.rams[0].half(0x2000 + 0x1802), 1, "the sender has its buffer back");
}

/// Each length of a chain: without a header, without a head, up to the largest, and beyond.
#[test]
fn every_length() {
    for features in [LINUX, PLAIN] {
        let world = world(&[(0, 65_535, LINUX), (0, 65_535, features)]);
        let mut lost = 0;
        let mut seen = 0;
        // All short ones, all around the ends, and some between.
        let lengths = (0..2100).chain((2100..65_400).step_by(997)).chain(65_400..=65_562_usize);
        for length in lengths {
            let whole = frame(mac(1), mac(0), MAX_FRAME as usize + 100);
            let all = [&[0; HEADER][..], &whole].concat();
            world.rams[0].put(SENT, &all[..length]);
            world.offer(0, 1, &[(SENT, length as u32)]);
            if world.rams[1].half(0x1002).wrapping_sub(seen) == 0 {
                world.give(1, 1, 0x1_1000, 1);
            }
            world.work(0);
            if (HEADER + HEAD..=HEADER + MAX_FRAME as usize).contains(&length) {
                let arrived = world.arrived(1, seen);
                assert_eq!(arrived.len(), 1, "{length}");
                assert_eq!(arrived[0][HEADER..], all[HEADER..length], "{length}");
                seen += 1;
            } else {
                lost += 1;
            }
            assert_eq!(world.counted(0, Reason::Length), lost, "{length}");
        }
        assert!(world.broken.borrow().is_empty());
    }
}

#[test]
fn a_long_frame_takes_several_buffers_or_is_dropped() {
    let ports = [(0, 9000, LINUX), (0, 9000, LINUX), (0, 9000, LINUX & !super::feature::MERGEABLE), (0, 1500, LINUX)];
    let world = world(&ports);
    let long = |to| frame(mac(to), mac(0), 4000);
    world.give(1, 2, 1500, 3);
    world.send(0, &long(1));
    assert_eq!((world.arrived(1, 0).len(), world.counted(1, Reason::Room)), (0, 1), "4000 bytes do not fit into 3000");
    world.give(1, 1, 1500, 1);
    world.send(0, &long(1));
    let arrived = world.arrived(1, 0);
    assert_eq!(arrived.iter().map(Vec::len).collect::<Vec<_>>(), [1500, 1500, 1012]);
    assert_eq!(arrived[0][10..12], [3, 0], "how many buffers it is in");
    assert_eq!(arrived.concat()[HEADER..], long(1));
    // A driver that takes one buffer a frame.
    world.give(2, 3, 1500, 1);
    world.send(0, &long(2));
    assert_eq!((world.arrived(2, 0).len(), world.counted(2, Reason::Room)), (0, 1));
    // One whose packets are shorter.
    world.give(3, 4, 0x1000, 1);
    world.send(0, &long(3));
    world.send(0, &frame(mac(3), mac(0), 1519));
    assert_eq!((world.arrived(3, 0).len(), world.counted(3, Reason::Mtu)), (0, 2));
    world.send(0, &frame(mac(3), mac(0), 1518));
    assert_eq!(world.arrived(3, 0).len(), 1);
    // A buffer too small for the head.
    world.give(1, 1, 25, 1);
    world.send(0, &frame(mac(1), mac(0), 60));
    assert_eq!(world.counted(1, Reason::Room), 2);
}

#[test]
fn nobody_gets_what_is_not_for_it() {
    let world = world(&[(0, 1500, LINUX), (0, 1500, LINUX), (0, 1500, LINUX), (1, 1500, LINUX)]);
    (0..4).for_each(|port| world.give(port, 8, 2048, 1));
    let arrived = || [0, 1, 2, 3].map(|port| world.arrived(port, 0).len());
    world.send(0, &frame(mac(1), mac(2), 60));
    world.send(0, &frame(mac(1), mac(0x55), 60));
    assert_eq!((arrived(), world.counted(0, Reason::Forged)), ([0; 4], 2));
    let mut tagged = frame(mac(1), mac(0), 60);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 7]);
    world.send(0, &tagged);
    assert_eq!((arrived(), world.counted(0, Reason::Tagged)), ([0; 4], 1));
    world.send(0, &frame(mac(3), mac(0), 60));
    assert_eq!((arrived(), world.counted(0, Reason::Unknown)), ([0; 4], 1), "it is on another network");
    world.send(0, &frame(Mac([1, 0x80, 0xc2, 0, 0, 0]), mac(0), 60));
    assert_eq!((arrived(), world.counted(0, Reason::Reserved)), ([0; 4], 1));
    world.send(0, &frame(mac(1), mac(0), 60));
    assert_eq!(arrived(), [0, 1, 0, 0]);
    world.send(0, &frame(Mac([0xff; 6]), mac(0), 60));
    assert_eq!(arrived(), [0, 2, 1, 0], "all others of its network");
    world.send(3, &frame(Mac([0xff; 6]), mac(3), 60));
    assert_eq!(arrived(), [0, 2, 1, 0], "there is nobody else");
    world.floods.set(1);
    (0..3).for_each(|_| world.send(1, &frame(Mac([0x33, 0x33, 0, 0, 0, 1]), mac(1), 60)));
    assert_eq!((arrived(), world.counted(1, Reason::Pace)), ([1, 2, 2, 0], 2));
    // Nobody there, or nobody who has begun.
    begin_anew(&world, 2);
    world.send(0, &frame(mac(2), mac(0), 60));
    assert_eq!(world.counted(2, Reason::Down), 1);
    *world.nets[2].borrow_mut() = None;
    world.send(0, &frame(mac(2), mac(0), 60));
    assert_eq!(world.counted(0, Reason::Down), 1);
}

fn begin_anew(world: &World, port: usize) {
    let mut net = world.nets[port].borrow_mut();
    let _ = net.as_mut().unwrap().write(0x070, AccessSize::Word, 0);
}

/// Work is the sender's, and comes in bounded parts: a frame for many takes several calls.
#[test]
fn a_flood_takes_turns() {
    let world = world(&[(0, 1500, LINUX); 20]);
    (1..20).for_each(|port| world.give(port, 1, 2048, 1));
    world.offer_frame(0, &[0; HEADER], &frame(Mac([0xff; 6]), mac(0), 60), 4000);
    let mut calls = 1;
    while world.process(0, 1).unwrap() == Progress::More {
        calls += 1;
        if calls == 3 {
            // What the frame is must not change in the middle: nobody else gets it.
            world.rams[0].put(SENT + HEADER as u64 + 6, &mac(7).0);
        }
    }
    let reached = (1..20).filter(|&port| world.arrived(port, 0).len() == 1).count();
    assert!((8..19).contains(&reached), "{reached}");
    assert!((1..20).all(|port| world.arrived(port, 0).iter().all(|all| all[18..24] == mac(0).0)));
    assert_eq!(world.counted(0, Reason::Forged), 1);
}

/// What a receiver makes a delivery cost is of the sender's share too: no call does more for it.
#[test]
fn an_expensive_delivery_ends_a_call() {
    let world = world(&[(0, 1500, LINUX); 20]);
    (1..20).for_each(|port| world.give(port, 1, 2048, 1));
    world.cost.set(super::WORK_A_CALL);
    world.offer_frame(0, &[0; HEADER], &frame(Mac([0xff; 6]), mac(0), 60), 4000);
    let calls = (1..).find(|_| world.process(0, 1).unwrap() == Progress::Idle);
    assert_eq!(calls, Some(20), "one for each port, and one for the end");
    assert!((1..20).all(|port| world.arrived(port, 0).len() == 1));
    // The same of frames for one: each is in a call of its own.
    world.give(1, 4, 2048, 1);
    (0..4).for_each(|_| world.offer_frame(0, &[0; HEADER], &frame(mac(1), mac(0), 60), 4000));
    let calls = (1..).find(|_| world.process(0, 1).unwrap() == Progress::Idle);
    assert_eq!((calls, world.arrived(1, 1).len()), (Some(5), 4));
}

/// A driver that changes the source address in its memory between the check and the copy, or what is said of the packet behind it.
#[test]
fn what_was_checked_is_what_arrives() {
    let world = world(&[(0, 1500, LINUX), (0, 1500, LINUX)]);
    world.give(1, 1, 2048, 1);
    let sent = frame(mac(1), mac(0), 60);
    *world.meddling.borrow_mut() = Some((SENT + HEADER as u64, [mac(5).0, mac(6).0].concat()));
    world.send(0, &sent);
    assert_eq!(world.arrived(1, 0)[0][HEADER..], sent);
    world.give(1, 1, 2048, 1);
    *world.meddling.borrow_mut() = Some((SENT + HEADER as u64 + 12, vec![0x66; 12]));
    let sent = packet(mac(1), mac(0), 101, 6);
    world.offer_frame(0, &header(1, 0, 0, 0, 34, 16), &sent, 4000);
    world.work(0);
    assert_eq!(world.arrived(1, 1)[0][HEADER..], sent);
}

#[test]
fn one_that_cannot_be_had_is_asked_again() {
    let world = world(&[(0, 1500, LINUX), (0, 1500, LINUX)]);
    world.give(1, 4, 2048, 1);
    world.busy.set(3);
    world.offer_frame(0, &[0; HEADER], &frame(mac(1), mac(0), 60), 4000);
    let calls = (1..).find(|_| world.process(0, 1).unwrap() == Progress::Idle);
    assert_eq!((calls, world.arrived(1, 0).len(), world.traffic(0).0), (Some(4), 1, 1));
    // Whoever keeps a port busy makes the frames for it be dropped, and no others.
    world.busy.set(usize::from(super::TRIES) + 1);
    world.offer_frame(0, &[0; HEADER], &frame(mac(1), mac(0), 60), 4000);
    let calls = (1..).find(|_| world.process(0, 1).unwrap() == Progress::Idle);
    assert_eq!((calls, world.arrived(1, 0).len()), (Some(usize::from(super::TRIES) + 1), 1));
    assert_eq!((world.counted(0, Reason::Busy), world.traffic(0).0), (1, 1));
    world.busy.set(usize::from(super::TRIES));
    world.send(0, &frame(mac(1), mac(0), 60));
    assert_eq!(
        (world.arrived(1, 0).len(), world.counted(0, Reason::Busy)),
        (2, 1),
        "the next one is asked for as often"
    );
}

#[test]
fn a_busy_port_is_passed_over_in_a_flood() {
    let world = world(&[(0, 1500, LINUX); 3]);
    (1..3).for_each(|port| world.give(port, 1, 2048, 1));
    world.busy.set(usize::from(super::TRIES) + 1);
    world.send(0, &frame(Mac([0xff; 6]), mac(0), 60));
    assert_eq!(([1, 2].map(|port| world.arrived(port, 0).len()), world.counted(0, Reason::Busy)), ([0, 1], 1));
}

/// Whatever memory refuses for now, and when: the sender's frame goes once, and the receiver's buffers are whole or untouched.
#[test]
fn memory_may_refuse_anywhere() {
    for accesses in 0..60 {
        let world = world(&[(0, 9000, LINUX), (0, 9000, LINUX)]);
        world.give(1, 4, 1500, 2);
        world.offer_frame(0, &[0; HEADER], &frame(mac(1), mac(0), 4000), 700);
        world.rams[0].left.set(accesses);
        while world.process(0, 1).unwrap() == Progress::More {
            world.rams[0].left.set(accesses.max(1) + 20);
        }
        assert_eq!(world.arrived(1, 0).concat().len(), HEADER + 4000, "{accesses}");
        assert_eq!((world.traffic(0), world.rams[0].half(0x2000 + 0x1802)), ((1, 0), 1), "{accesses}");
    }
    let mut were_dropped = 0;
    for accesses in 0..60 {
        let world = world(&[(0, 9000, LINUX), (0, 9000, LINUX)]);
        world.give(1, 4, 1500, 2);
        world.rams[1].left.set(accesses);
        world.send(0, &frame(mac(1), mac(0), 4000));
        let is_dropped = world.counted(1, Reason::Memory) == 1;
        were_dropped += usize::from(is_dropped);
        assert_eq!(world.arrived(1, 0).len(), if is_dropped { 0 } else { 3 }, "{accesses}");
        world.rams[1].left.set(usize::MAX);
        // What was missing is made ready by its own guest, once.
        assert_eq!(world.process(1, 0), Ok(Progress::Idle));
        assert_eq!(world.process(1, 0), Ok(Progress::Idle));
        assert_eq!(world.rams[1].asked.borrow().len(), usize::from(is_dropped), "{accesses}");
        let from = world.rams[1].half(0x1802);
        if !is_dropped {
            world.give(1, 3, 1500, 2);
        }
        world.send(0, &frame(mac(1), mac(0), 4000));
        assert_eq!(world.arrived(1, from).concat()[HEADER..], frame(mac(1), mac(0), 4000), "{accesses}");
    }
    assert!(were_dropped > 15, "{were_dropped}");
}

/// Memory that is not read, though it is ready: the frame is tried as often as at a busy port, and the next one goes on.
#[test]
fn what_is_never_read_is_not_tried_for_ever() {
    let world = world(&[(0, 1500, LINUX), (0, 1500, PLAIN), (0, 1500, PLAIN)]);
    (1..3).for_each(|port| world.give(port, 4, 2048, 1));
    world.is_unread.set(true);
    world.offer_frame(0, &header(1, 0, 0, 0, 34, 16), &packet(mac(1), mac(0), 101, 6), 4000);
    let calls = (1..200).find(|_| world.process(0, 1).unwrap() == Progress::Idle);
    assert_eq!(calls, Some(usize::from(super::TRIES) + 1));
    assert_eq!((world.counted(0, Reason::Memory), world.arrived(1, 0).len()), (1, 0));
    world.offer_frame(0, &header(1, 0, 0, 0, 34, 16), &packet(Mac([0xff; 6]), mac(0), 101, 6), 4000);
    assert!((1..200).any(|_| world.process(0, 1).unwrap() == Progress::Idle));
    assert_eq!(world.counted(0, Reason::Memory), 3, "a flood, for each port");
    world.is_unread.set(false);
    world.send(0, &frame(mac(1), mac(0), 60));
    assert_eq!(world.arrived(1, 0).len(), 1);
}

/// Buffers for which the share does not do are as none, and nothing is made ready for them.
#[test]
fn a_share_that_is_used_up_is_no_memory_that_is_missing() {
    let world = world(&[(0, 9000, LINUX), (0, 9000, LINUX)]);
    world.give(1, 4, 1500, 2);
    for (is_used_up, counted) in [(true, (1, 0)), (false, (1, 1))] {
        world.is_used_up.set(is_used_up);
        world.rams[1].left.set(12);
        world.send(0, &frame(mac(1), mac(0), 4000));
        assert_eq!((world.counted(1, Reason::Room), world.counted(1, Reason::Memory)), counted);
        world.rams[1].left.set(usize::MAX);
        assert_eq!(world.process(1, 0), Ok(Progress::Idle));
        assert_eq!(world.rams[1].asked.borrow().len() as u64, counted.1);
    }
}

#[test]
fn a_receiver_that_breaks_its_ring_harms_itself() {
    let world = world(&[(0, 1500, LINUX), (0, 1500, LINUX), (0, 1500, LINUX)]);
    world.offer(1, 0, &[(DEVICE, 2048)]);
    world.send(0, &frame(mac(1), mac(0), 60));
    assert_eq!((world.broken.borrow().len(), world.counted(1, Reason::Down)), (1, 1));
    assert!(!world.nets[1].borrow().as_ref().unwrap().is_live());
    world.send(0, &frame(mac(1), mac(0), 60));
    assert_eq!((world.broken.borrow().len(), world.counted(1, Reason::Down)), (1, 2));
    world.give(2, 2, 2048, 1);
    world.send(0, &frame(mac(2), mac(0), 60));
    assert_eq!(world.arrived(2, 0).len(), 1);
    // A sender whose frame is not in its memory is stopped itself.
    world.offer(0, 1, &[(SENT, 40), (1 << 40, 100)]);
    assert!(matches!(world.process(0, 1), Err(QueueError::Fault(_))));
    assert_eq!(world.arrived(2, 0).len(), 1);
}

#[test]
fn a_saved_device_returns_its_chain_and_sends_nothing_twice() {
    let world = world(&[(0, 1500, LINUX), (0, 1500, LINUX)]);
    world.give(1, 4, 2048, 1);
    world.busy.set(1);
    world.offer_frame(0, &[0; HEADER], &frame(mac(1), mac(0), 60), 4000);
    assert_eq!(world.process(0, 1), Ok(Progress::More));
    let saved = world.nets[0].borrow().as_ref().unwrap().save().unwrap();
    assert!(saved.device.sending.is_some());
    let link = Cable { world: world.clone(), port: PortId(0) };
    let mut other = Mmio::new(Net::new(link.clone(), [2, 0, 0, 0, 0, 9], 1500));
    other.restore(&saved).unwrap();
    assert_eq!(other.read(0x105, AccessSize::Byte), 9, "its guest sees the address of the place");
    let generation = |mmio: &Mmio<Net<Cable>>| mmio.read(0x0fc, AccessSize::Word);
    let before = generation(world.nets[0].borrow().as_ref().unwrap());
    assert_eq!((other.read(0x060, AccessSize::Word), generation(&other)), (2, before + 1), "and is told to look");
    assert!(other.line());
    let mut own = Mmio::new(Net::new(link.clone(), mac(0).0, 1500));
    own.restore(&saved).unwrap();
    assert_eq!((own.read(0x060, AccessSize::Word), generation(&own)), (0, before), "in its own place nothing is new");
    assert_eq!(other.process(1, &world.rams[0]), Ok(Progress::Idle));
    assert_eq!((world.rams[0].half(0x2000 + 0x1802), world.arrived(1, 0).len()), (1, 0));
    let mut smaller = Mmio::new(Net::new(link, mac(0).0, 1400));
    assert!(smaller.restore(&saved).is_err());
    // After a reset nothing is left of it.
    let mut net = world.nets[0].borrow_mut();
    let net = net.as_mut().unwrap();
    net.reset();
    assert_eq!(net.save().unwrap().device.sending, None);
    assert_eq!(net.save().unwrap().device.features, 0);
}
