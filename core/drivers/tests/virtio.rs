//! The driver of a console with several ports against a device: the transport and the queues of our own guests' devices, with a
//! device of such ports behind them. The driver's writes are played on them as if a guest had made them.

mod pci;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use devices::Outside;
use devices::saved::Unfit;
use drivers::Registers;
use drivers::virtio::console::{BUFFER, Console, MEMORY, MOST_AT_ONCE};
use drivers::virtio::queue::Rings;
use drivers::virtio::{Broken, Shape, Transport, Unusable, accept, place, probe, register};
use pack::Damaged;
use proptest::prelude::*;
use units::Ipa;
use virtio::saved::SavedEntropy;
use virtio::{AccessSize, Chain, Device, Effect, Fault, GuestMemory, Mmio, Progress, Queue, QueueError, VirtioKind};

const RAM: u64 = 0x8000_0000;
const SIZE: usize = MEMORY as usize;

/// The device's ports: number 0 is somebody else's, number 1 has our name.
struct Ports {
    names: [&'static str; 2],
    /// Whether somebody is at each port's other end, and whether the driver has opened it.
    open: [bool; 2],
    opened: [bool; 2],
    several: bool,
    /// What the device has to say, on the control queue.
    says: VecDeque<Vec<u8>>,
    /// What is to go into each port, and what came out of it.
    input: [VecDeque<u8>; 2],
    output: [Vec<u8>; 2],
    /// The other end takes what comes.
    takes: bool,
    /// It gives buffers for what comes back as they are.
    empties: bool,
    chain: Chain,
    config: [u8; 12],
}

impl Ports {
    fn new(open: bool) -> Self {
        let mut config = [0; 12];
        config[4] = 31;
        Self {
            names: ["other", "ours"],
            open: [open; 2],
            opened: [false; 2],
            several: true,
            says: VecDeque::new(),
            input: Default::default(),
            output: Default::default(),
            takes: true,
            empties: false,
            chain: Chain::new(64),
            config,
        }
    }

    fn say(&mut self, port: u32, event: u16, value: u16, name: &str) {
        let head = [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.says.push_back([&head, name.as_bytes()].concat());
    }

    fn set_open(&mut self, port: u32, open: bool) {
        self.open[port as usize] = open;
        self.say(port, 6, open.into(), "");
    }

    fn hear(&mut self, port: u32, event: u16, value: u16) {
        match (event, value) {
            (0, 1) => (0..2).for_each(|port| self.say(port, 1, 0, "")),
            (3, 1) => {
                self.say(port, 4, 1, "");
                self.say(port, 7, 1, &format!("{}\0", self.names[port as usize]));
                if self.open[port as usize] {
                    self.say(port, 6, 1, "");
                }
            }
            (6, value) => self.opened[port as usize] = value == 1,
            other => panic!("{other:?} of port {port}"),
        }
    }
}

impl Device for Ports {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Console
    }

    fn features(&self) -> u64 {
        if self.several { 0b11 } else { 0b01 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64; 6]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn reset(&mut self) {}

    fn let_go(&mut self, _: usize) {}

    fn exchange(&mut self, _: &dyn Outside) -> usize {
        0
    }

    type Saved = SavedEntropy;

    fn save(&self) -> Result<SavedEntropy, Damaged> {
        unreachable!("it is not saved")
    }

    fn restore(&mut self, _: &SavedEntropy) -> Result<(), Unfit> {
        unreachable!("it is not saved")
    }

    fn process<M: GuestMemory>(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &M,
    ) -> Result<Progress, QueueError> {
        let mut chain = std::mem::replace(&mut self.chain, Chain::new(64));
        let port = if index < 2 { 0 } else { index / 2 - 1 };
        match index {
            2 => {}
            3 => {
                while queues[3].pop(memory, &mut chain)? {
                    let mut message = [0; 8];
                    assert_eq!(chain.read(memory, &mut message)?, 8);
                    let [p0, p1, p2, p3, e0, e1, v0, v1] = message;
                    let (port, event) = (u32::from_le_bytes([p0, p1, p2, p3]), u16::from_le_bytes([e0, e1]));
                    self.hear(port, event, u16::from_le_bytes([v0, v1]));
                    queues[3].push(memory, &chain)?;
                }
            }
            _ if index.is_multiple_of(2) => {
                while self.empties && queues[index].pop(memory, &mut chain)? {
                    queues[index].push(memory, &chain)?;
                }
                while self.opened[port] && !self.input[port].is_empty() && queues[index].pop(memory, &mut chain)? {
                    let count = (chain.unwritten() as usize).min(self.input[port].len());
                    let bytes: Vec<u8> = self.input[port].drain(..count).collect();
                    assert_eq!(chain.write(memory, &bytes)?, count);
                    queues[index].push(memory, &chain)?;
                }
            }
            _ => {
                while (self.takes || !self.open[port]) && queues[index].pop(memory, &mut chain)? {
                    let mut bytes = vec![0; chain.unread() as usize];
                    chain.read(memory, &mut bytes)?;
                    // What nobody reads is lost.
                    if self.open[port] {
                        self.output[port].extend(bytes);
                    }
                    queues[index].push(memory, &chain)?;
                }
            }
        }
        while !self.says.is_empty() && queues[2].pop(memory, &mut chain)? {
            let message = self.says.pop_front().expect("it is there");
            chain.write(memory, &message)?;
            queues[2].push(memory, &chain)?;
        }
        self.chain = chain;
        Ok(Progress::Idle)
    }
}

/// The device's memory, as both see it.
struct Ram(RefCell<Vec<u8>>);

impl Ram {
    fn place(at: Ipa, count: usize) -> Result<std::ops::Range<usize>, Fault> {
        let start = at.0.checked_sub(RAM).ok_or(Fault(at))? as usize;
        if start + count > SIZE { Err(Fault(at)) } else { Ok(start..start + count) }
    }
}

impl GuestMemory for Ram {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        into.copy_from_slice(&self.0.borrow()[Self::place(from, into.len())?]);
        Ok(())
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        self.0.borrow_mut()[Self::place(to, bytes.len())?].copy_from_slice(bytes);
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
}

/// The device, and the machine around it.
struct Machine {
    mmio: RefCell<Mmio<Ports>>,
    ram: Ram,
    taken: Cell<u64>,
    legacy: Cell<bool>,
    /// What the rings say is not the device's word: so what the driver then does may be against the rules.
    is_forged: Cell<bool>,
    /// Where each queue's ring of used buffers is, and how large it is, in the order in which they were laid out.
    rings: RefCell<Vec<(u64, u16)>>,
}

impl Machine {
    fn new(ports: Ports) -> Rc<Self> {
        let ram = Ram(RefCell::new(vec![0; SIZE]));
        let mmio = RefCell::new(Mmio::new(ports));
        Rc::new(Self {
            mmio,
            ram,
            taken: Cell::new(RAM),
            legacy: Cell::new(false),
            is_forged: Cell::new(false),
            rings: RefCell::default(),
        })
    }

    fn ports<T>(&self, work: impl FnOnce(&mut Ports) -> T) -> T {
        let done = work(self.mmio.borrow_mut().device_mut());
        let _ = self.mmio.borrow_mut().poll(&self.ram).expect("a driver that keeps the rules");
        done
    }

    fn take(&self, bytes: u64) -> u64 {
        let start = self.taken.get().next_multiple_of(16);
        self.taken.set(start + bytes);
        start
    }

    fn poke(&self, at: u64, bytes: &[u8]) {
        self.ram.write(Ipa(at), bytes).expect("it is there");
    }
}

#[derive(Clone)]
struct Link(Rc<Machine>);

struct Laid {
    machine: Rc<Machine>,
    shape: Shape,
    table: u64,
    available: u64,
    used: u64,
    buffers: u64,
}

impl Transport for Link {
    type Rings = Laid;

    fn read(&self, register: u64) -> u32 {
        if register == register::VERSION && self.0.legacy.get() {
            return 1;
        }
        self.0.mmio.borrow().read(register, AccessSize::Word) as u32
    }

    fn write(&self, register: u64, value: u32) {
        let mut mmio = self.0.mmio.borrow_mut();
        let done = match mmio.write(register, AccessSize::Word, value.into()) {
            Effect::Notify(queue) => mmio.process(queue, &self.0.ram).map(drop),
            Effect::Started => mmio.poll(&self.0.ram).map(drop),
            Effect::Broken(error) => Err(error),
            Effect::None | Effect::Reset => Ok(()),
            Effect::InVain(early) => panic!("the driver waits in vain: {early:?}"),
        };
        assert!(done.is_ok() || self.0.is_forged.get(), "{done:?}");
    }

    fn accept(&self, features: u64) {
        accept(self, features);
    }

    fn lay_out(&mut self, queue: u16, shape: Shape) -> Option<Laid> {
        let (laid, addresses) = Laid::new(&self.0, shape);
        place(self, queue, shape.count, addresses).then_some(laid)
    }
}

impl Registers for Link {
    fn size(&self) -> u64 {
        0x200
    }

    fn read8(&self, _: u64) -> u8 {
        unreachable!("section 4.2.2.2 demands 32 bits")
    }

    fn read16(&self, _: u64) -> u16 {
        unreachable!("section 4.2.2.2 demands 32 bits")
    }

    fn read32(&self, offset: u64) -> u32 {
        self.read(offset)
    }

    fn read64(&self, _: u64) -> u64 {
        unreachable!("section 4.2.2.2 demands 32 bits")
    }

    fn write8(&self, _: u64, _: u8) {
        unreachable!("section 4.2.2.2 demands 32 bits")
    }

    fn write16(&self, _: u64, _: u16) {
        unreachable!("section 4.2.2.2 demands 32 bits")
    }

    fn write32(&self, offset: u64, value: u32) {
        self.write(offset, value);
    }

    fn write64(&self, _: u64, _: u64) {
        unreachable!("section 4.2.2.2 demands 32 bits")
    }
}

impl Laid {
    /// A queue, and where its three parts are.
    fn new(machine: &Rc<Machine>, shape: Shape) -> (Self, [u64; 3]) {
        let count = u64::from(shape.count);
        let [table, available, used] = [16 * count, 6 + 2 * count, 6 + 8 * count].map(|bytes| machine.take(bytes));
        let buffers = machine.take(count * u64::from(shape.length));
        machine.rings.borrow_mut().push((used, shape.count));
        let laid = Self { machine: Rc::clone(machine), shape, table, available, used, buffers };
        (laid, [table, available, used])
    }

    fn buffer(&self, buffer: u16) -> u64 {
        self.buffers + u64::from(buffer) * u64::from(self.shape.length)
    }
}

impl Rings for Laid {
    fn offer(&mut self, slot: u16, buffer: u16, length: u32) {
        let descriptor = self.table + 16 * u64::from(buffer);
        self.machine.poke(descriptor, &self.buffer(buffer).to_le_bytes());
        self.machine.poke(descriptor + 8, &length.to_le_bytes());
        self.machine.poke(descriptor + 12, &(u32::from(self.shape.device_writes) << 1).to_le_bytes());
        self.machine.poke(self.available + 4 + 2 * u64::from(slot), &buffer.to_le_bytes());
    }

    fn publish(&mut self, count: u16) {
        self.machine.poke(self.available + 2, &count.to_le_bytes());
    }

    fn set_interrupts(&mut self, on: bool) {
        self.machine.poke(self.available, &u16::from(!on).to_le_bytes());
    }

    fn used_count(&self) -> u16 {
        self.machine.ram.load_u16(Ipa(self.used + 2)).expect("it is there")
    }

    fn used(&self, slot: u16) -> (u32, u32) {
        let mut entry = [0; 8];
        self.machine.ram.read(Ipa(self.used + 4 + 8 * u64::from(slot)), &mut entry).expect("it is there");
        let value = u64::from_le_bytes(entry);
        (value as u32, (value >> 32) as u32)
    }

    fn fill(&mut self, buffer: u16, offset: u32, bytes: &[u8]) {
        assert!(offset as usize + bytes.len() <= self.shape.length as usize);
        self.machine.poke(self.buffer(buffer) + u64::from(offset), bytes);
    }

    fn copy(&self, buffer: u16, into: &mut [u8]) {
        self.machine.ram.read(Ipa(self.buffer(buffer)), into).expect("it is there");
    }
}

fn started(ports: Ports) -> (Rc<Machine>, Console<Link>) {
    let machine = Machine::new(ports);
    let link = Link(Rc::clone(&machine));
    assert_eq!(probe(&link), Ok(Some(3)));
    let mut console = Console::start(link, "ours").expect("it is there");
    // Each answer may be one to what was heard before.
    (0..4).for_each(|_| console.attend().expect("it is there"));
    (machine, console)
}

/// Sends all of `bytes`, in buffers filled in pieces of `piece`; says how many were sent.
fn send(console: &mut Console<impl Transport>, bytes: &[u8], piece: usize) -> usize {
    let mut sent = 0;
    for bytes in bytes.chunks(BUFFER as usize) {
        let Some(buffer) = console.room().expect("it is there") else {
            break;
        };
        for (number, part) in bytes.chunks(piece).enumerate() {
            console.fill(buffer, (number * piece) as u32, part);
        }
        console.send(buffer, bytes.len() as u32);
        sent += bytes.len();
    }
    sent
}

fn receive(console: &mut Console<impl Transport>) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), [0; MOST_AT_ONCE]);
    loop {
        match console.receive(&mut piece).expect("it is there") {
            0 => return all,
            count => all.extend(&piece[..count]),
        }
    }
}

#[test]
fn the_port_with_our_name_is_opened_and_carries_both_ways() {
    let (machine, mut console) = started(Ports::new(true));
    assert!(console.is_open());
    assert_eq!(machine.ports(|ports| ports.opened), [false, true]);
    let bytes: Vec<u8> = (0..100_000_u32).map(|number| (number * 7) as u8).collect();
    machine.ports(|ports| ports.input[1].extend(&bytes));
    assert_eq!(receive(&mut console), bytes, "more than all buffers hold: each is given again");
    assert_eq!(send(&mut console, &bytes, 1000), bytes.len());
    assert_eq!(machine.ports(|ports| std::mem::take(&mut ports.output)), [vec![], bytes]);
    assert_eq!(console.is_drained(), Ok(true));
}

#[test]
fn it_closes_and_opens_again() {
    let (machine, mut console) = started(Ports::new(false));
    assert!(!console.is_open(), "nobody is there yet");
    machine.ports(|ports| ports.set_open(1, true));
    console.attend().unwrap();
    assert!(console.is_open());
    machine.ports(|ports| ports.set_open(0, false));
    console.attend().unwrap();
    assert!(console.is_open(), "another port is none of ours");
    machine.ports(|ports| ports.takes = false);
    send(&mut console, &[1; 100], 100);
    assert_eq!(console.is_drained(), Ok(false));
    machine.ports(|ports| ports.set_open(1, false));
    console.attend().unwrap();
    assert!(!console.is_open());
    assert_eq!(console.is_drained(), Ok(true), "what nobody takes is given back");
    machine.ports(|ports| ports.set_open(1, true));
    machine.ports(|ports| ports.takes = true);
    console.attend().unwrap();
    assert_eq!(send(&mut console, b"again", 5), 5);
    assert_eq!(machine.ports(|ports| ports.output[1].clone()), b"again");
}

#[test]
fn there_is_no_room_until_the_other_end_takes_something() {
    let (machine, mut console) = started(Ports::new(true));
    machine.ports(|ports| ports.takes = false);
    let bytes = vec![5; 1 << 20];
    let sent = send(&mut console, &bytes, 4096);
    assert_eq!((sent, console.room()), (16 * BUFFER as usize, Ok(None)));
    // Only a driver that waits is interrupted.
    let line = || machine.mmio.borrow().line();
    let acknowledge = || {
        let status = machine.mmio.borrow().read(register::INTERRUPT_STATUS, AccessSize::Word);
        let _ = machine.mmio.borrow_mut().write(register::INTERRUPT_ACK, AccessSize::Word, status);
    };
    acknowledge();
    console.wait_for_room(true);
    machine.ports(|ports| ports.takes = true);
    assert!(line());
    assert!(console.room().unwrap().is_some());
    acknowledge();
    console.wait_for_room(false);
    send(&mut console, b"quiet", 5);
    assert!(!line());
}

#[test]
fn what_is_of_no_use_is_refused_by_name() {
    let machine = Machine::new(Ports { several: false, ..Ports::new(true) });
    assert_eq!(Console::start(Link(Rc::clone(&machine)), "ours").err(), Some(Unusable::OnePort));
    assert_ne!(Link(Rc::clone(&machine)).read(register::STATUS) & 128, 0, "it was told so");
    machine.legacy.set(true);
    assert_eq!(probe(&Link(machine)), Err(Unusable::Legacy));
    let (machine, console) = started(Ports { names: ["ours", "ours"], ..Ports::new(true) });
    assert!(console.is_open());
    assert_eq!(machine.ports(|ports| ports.opened), [true, false], "the first of that name");
    let (_, console) = started(Ports { names: ["this", "that"], ..Ports::new(true) });
    assert!(!console.is_open());
}

/// What each queue's ring of used buffers says, and what the driver says then: queues 0 and 1 are port 0's, 2 and 3 ours, 4 and
/// 5 the control queues, in the order in which they are laid out.
#[test]
fn a_device_that_breaks_its_rules_is_reset() {
    let lies: [(usize, u16, [u32; 2], &str); 5] = [
        (2, 1, [0, 4097], "it has written more than a buffer holds"),
        (2, 1, [8, 1], "it has used a buffer that it was not given"),
        (2, 9, [0, 1], "it has used more buffers than it was given"),
        (3, 1, [0, 0], "it has used more buffers than it was given"),
        (4, 60_000, [3, 8], "it has used more buffers than it was given"),
    ];
    for (queue, count, entry, said) in lies {
        let (machine, mut console) = started(Ports::new(true));
        machine.is_forged.set(true);
        let (used, _) = machine.rings.borrow()[queue];
        machine.poke(used + 4, &[entry[0].to_le_bytes(), entry[1].to_le_bytes()].concat());
        machine.poke(used + 2, &count.to_le_bytes());
        let answer = match queue {
            2 => console.receive(&mut [0; MOST_AT_ONCE]).map(drop),
            3 => console.room().map(drop),
            _ => console.attend(),
        };
        assert_eq!(answer, Err(Broken(said)));
        assert_eq!(Link(Rc::clone(&machine)).read(register::STATUS), 0, "it was reset");
        assert!(!console.is_open());
        assert_eq!((console.room(), console.receive(&mut [0; MOST_AT_ONCE])), (Ok(None), Ok(0)));
        // Nor is it heard any more, if it does not care for that.
        machine.mmio.borrow_mut().device_mut().set_open(1, true);
        assert_eq!(console.attend(), Ok(()));
        assert!(!console.is_open());
    }
}

#[test]
fn a_device_that_gives_nothing_for_ever_is_left() {
    let (machine, mut console) = started(Ports::new(true));
    machine.ports(|ports| ports.empties = true);
    let said = "it gives buffers back that hold nothing, again and again";
    assert_eq!(console.receive(&mut [0; MOST_AT_ONCE]), Err(Broken(said)));
}

#[test]
fn a_port_that_is_taken_away_comes_back_by_its_name() {
    let (machine, mut console) = started(Ports::new(true));
    let replug = |console: &mut Console<Link>, port: u32, name: &'static str| {
        machine.ports(|ports| {
            ports.names[port as usize] = name;
            ports.say(port, 1, 0, "");
        });
        (0..4).for_each(|_| console.attend().unwrap());
    };
    machine.ports(|ports| {
        ports.opened[1] = false;
        ports.say(1, 2, 0, "");
    });
    console.attend().unwrap();
    assert!(!console.is_open());
    // By another name it is somebody else's, and what was ours is not written there.
    replug(&mut console, 1, "another");
    assert!(!console.is_open());
    machine.ports(|ports| ports.say(1, 2, 0, ""));
    replug(&mut console, 1, "ours");
    assert!(console.is_open() && machine.ports(|ports| ports.opened[1]), "it is opened again");
    machine.ports(|ports| ports.input[1].extend(b"in"));
    assert_eq!((receive(&mut console), send(&mut console, b"out", 3)), (b"in".to_vec(), 3));
    assert_eq!(machine.ports(|ports| ports.output[1].clone()), b"out");
    // And by another number.
    machine.ports(|ports| ports.say(1, 2, 0, ""));
    replug(&mut console, 0, "ours");
    send(&mut console, b"there", 5);
    assert_eq!(machine.ports(|ports| ports.output[0].clone()), b"there");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in between, what went in comes out, in order, on both sides.
    #[test]
    fn bytes_keep_their_order(steps in proptest::collection::vec((0..4_u8, 1..20_000_usize), 1..30)) {
        let (machine, mut console) = started(Ports::new(true));
        let (mut next, mut sent, mut given, mut received) = (0_u8, Vec::new(), Vec::new(), Vec::new());
        for (what, length) in steps {
            let bytes: Vec<u8> = (0..length).map(|_| { next = next.wrapping_mul(5).wrapping_add(1); next }).collect();
            match what {
                0 => {
                    let count = send(&mut console, &bytes, 700);
                    sent.extend(&bytes[..count]);
                }
                1 => {
                    machine.ports(|ports| ports.input[1].extend(&bytes));
                    given.extend(&bytes);
                }
                2 => received.extend(receive(&mut console)),
                _ => machine.ports(|ports| ports.takes = !ports.takes),
            }
            console.attend().unwrap();
        }
        machine.ports(|ports| ports.takes = true);
        received.extend(receive(&mut console));
        prop_assert_eq!(console.is_drained(), Ok(true));
        prop_assert_eq!(machine.ports(|ports| ports.output[1].clone()), sent);
        prop_assert_eq!(received, given);
    }

    /// Whatever a device writes into the rings, nothing worse happens than that it is reset.
    #[test]
    fn any_rings_are_survived(writes in proptest::collection::vec((0..6_usize, 0..140_u64, any::<u16>()), 1..40)) {
        let (machine, mut console) = started(Ports::new(true));
        machine.is_forged.set(true);
        let mut piece = [0; MOST_AT_ONCE];
        for (queue, place, value) in writes {
            let (used, count) = machine.rings.borrow()[queue];
            machine.poke(used + 2 + 2 * (place % (1 + 4 * u64::from(count))), &value.to_le_bytes());
            let _ = (console.room(), console.attend(), console.receive(&mut piece));
        }
    }
}
