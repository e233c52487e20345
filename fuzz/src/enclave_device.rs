//! The enclave device under random commands and random registers, over a memory that notices what may not happen to it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use abi::enclave::{
    COMMAND_SIZE, COMPLETION_SIZE, EnclaveCommand, EnclaveCompletion, EnclaveOpcode, EnclaveStatus, register,
};
use devices::bus::{Access, Change, Device, Moment, Outside, Request, Stream};
use devices::memory::{Fault, GuestMemory, Isolation, NotIsolated};
use enclave::{ByIsolation, EnclaveBackend, EnclaveDevice, EnclaveTrace, Leave};
use units::{AccessSize, BLOCK_SIZE, IntId, Ipa, Line, PAGE_SIZE, VcpuId};

use super::input::Input;

/// Where the guest's RAM begins.
pub const RAM: u64 = 0x4000_0000;
/// And how much it is.
pub const RAM_SIZE: u64 = 8 * BLOCK_SIZE;
/// Where the ring of commands is.
pub const COMMANDS: u64 = RAM;
/// The ring of completions.
pub const COMPLETIONS: u64 = RAM + 0x4000;
/// Payloads.
pub const PAYLOAD: u64 = RAM + 0x10_0000;
/// What an enclave is expected to be.
const EXPECTED: u64 = PAYLOAD + 0x8_0000;

/// What an enclave of the test sees: where, from which page, and how.
type Shown = BTreeMap<u64, (u64, bool, bool)>;

/// A guest's memory and what else is outside of the device.
#[derive(Default)]
pub struct World {
    pages: RefCell<BTreeMap<u64, Box<[u8; PAGE_SIZE as usize]>>>,
    /// The blocks that have left the guest.
    pub taken: RefCell<BTreeSet<u64>>,
    /// How much of each page was stored since it left.
    stored: RefCell<BTreeMap<u64, BTreeSet<u64>>>,
    /// The enclaves that are open, and what they see.
    pub open: RefCell<BTreeMap<usize, Shown>>,
    /// How often memory was reached in one call.
    pub accesses: Cell<u32>,
    /// How often it is still allowed.
    pub share: Cell<Option<u32>>,
    is_refused: Cell<bool>,
    /// Which vCPUs were told that the enclave that they let run is called off.
    pub called_off: RefCell<Vec<VcpuId>>,
    /// The host has no memory for tables.
    pub has_nothing: Cell<bool>,
    /// The device has more to do.
    pub goes_on: Cell<bool>,
    /// The vCPU on whose time the device works.
    pub caller: Cell<VcpuId>,
    /// Which one was asked last to let an enclave run.
    pub asked: Cell<Option<VcpuId>>,
    /// Its interrupt.
    pub line: Cell<bool>,
    /// Where another CPU stores as soon as something was read from there.
    pub meddles: Cell<Option<u64>>,
}

impl World {
    fn spend(&self, at: Ipa) -> Result<(), Fault> {
        self.is_refused.set(false);
        if let Some(left) = self.share.get() {
            self.is_refused.set(left == 0);
            self.share.set(Some(left.checked_sub(1).ok_or(Fault(at))?));
        }
        self.accesses.set(self.accesses.get() + 1);
        Ok(())
    }

    fn is_guests(&self, at: u64, length: usize) -> bool {
        let end = at.checked_add(length as u64);
        let is_inside = at >= RAM && end.is_some_and(|end| end <= RAM + RAM_SIZE);
        let taken = self.taken.borrow();
        is_inside && (at..at + length as u64).step_by(64).all(|at| !taken.contains(&(at & !(BLOCK_SIZE - 1))))
    }

    /// Bytes, whoever's they are.
    pub fn peek(&self, at: u64, into: &mut [u8]) {
        let pages = self.pages.borrow();
        for (at, byte) in (at..).zip(into) {
            let page = pages.get(&(at & !(PAGE_SIZE - 1)));
            *byte = page.map_or(0, |page| page[(at % PAGE_SIZE) as usize]);
        }
    }

    /// Stores bytes, whoever's they are.
    pub fn poke(&self, at: u64, bytes: &[u8]) {
        let mut pages = self.pages.borrow_mut();
        for (at, &byte) in (at..).zip(bytes) {
            let page = pages.entry(at & !(PAGE_SIZE - 1)).or_insert_with(|| Box::new([0; PAGE_SIZE as usize]));
            page[(at % PAGE_SIZE) as usize] = byte;
        }
    }

    fn block_of(at: u64) -> u64 {
        at & !(BLOCK_SIZE - 1)
    }
}

impl GuestMemory for World {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        self.spend(from)?;
        if !self.is_guests(from.0, into.len()) {
            return Err(Fault(from));
        }
        self.peek(from.0, into);
        if self.meddles.get() == Some(from.0) {
            self.meddles.set(None);
            self.poke(from.0, &[0xff; COMMAND_SIZE]);
        }
        Ok(())
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        self.spend(to)?;
        if !self.is_guests(to.0, bytes.len()) {
            return Err(Fault(to));
        }
        self.poke(to.0, bytes);
        Ok(())
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        Err(Fault(at))
    }

    fn store_u16(&self, at: Ipa, _value: u16) -> Result<(), Fault> {
        Err(Fault(at))
    }

    fn isolate(&self, what: &Isolation<'_>) -> Result<(), NotIsolated> {
        if let Isolation::CallOff { by } = *what {
            self.called_off.borrow_mut().push(by);
            return Ok(());
        }
        self.spend(Ipa(0)).map_err(|_| NotIsolated::Memory)?;
        if self.has_nothing.get() && matches!(what, Isolation::Open { .. } | Isolation::Show { .. }) {
            return Err(NotIsolated::Host);
        }
        let (mut taken, mut open, mut stored) =
            (self.taken.borrow_mut(), self.open.borrow_mut(), self.stored.borrow_mut());
        match *what {
            Isolation::Open { enclave } => assert!(open.insert(enclave, Shown::new()).is_none()),
            Isolation::Take { block } => {
                assert!(block.is_aligned(BLOCK_SIZE));
                if !(RAM..RAM + RAM_SIZE).contains(&block.0) {
                    return Err(NotIsolated::Memory);
                }
                assert!(taken.insert(block.0), "{block} was taken already");
            }
            Isolation::Store { at, bytes } => {
                assert!(taken.contains(&Self::block_of(at.0)), "{at} is the guest's");
                assert_eq!(at.0 / PAGE_SIZE, (at.0 + bytes.0.len() as u64 - 1) / PAGE_SIZE);
                let page = stored.entry(at.0 & !(PAGE_SIZE - 1)).or_default();
                page.extend((0..bytes.0.len() as u64).map(|byte| at.0 % PAGE_SIZE + byte));
                drop((taken, open, stored));
                self.poke(at.0, bytes.0);
            }
            Isolation::Show { enclave, at, page, writable, executable } => {
                assert!(!(writable && executable));
                assert!(taken.contains(&Self::block_of(page.0)) && page.is_aligned(PAGE_SIZE));
                assert_eq!(
                    stored.get(&page.0).map_or(0, BTreeSet::len),
                    PAGE_SIZE as usize,
                    "{page} is not all stored"
                );
                assert!(open.iter().all(|(_, shown)| shown.values().all(|&(other, ..)| other != page.0)));
                let shown = open.get_mut(&enclave).expect("it is open");
                assert!(shown.insert(at.0, (page.0, writable, executable)).is_none());
            }
            Isolation::Enter { enclave } => assert!(open.contains_key(&enclave)),
            Isolation::CallOff { .. } => {}
            Isolation::Close { enclave } => {
                if open.remove(&enclave).is_none() {
                    return Err(NotIsolated::Memory);
                }
            }
            Isolation::Return { block } => {
                assert!(taken.remove(&block.0), "{block} was not taken");
                let is_seen = |&(page, ..): &(u64, bool, bool)| Self::block_of(page) == block.0;
                assert!(!open.values().any(|shown| shown.values().any(is_seen)), "{block} is still seen");
                stored.retain(|page, _| Self::block_of(*page) != block.0);
                self.pages.borrow_mut().retain(|page, _| Self::block_of(*page) != block.0);
            }
        }
        Ok(())
    }

    fn is_refused_for_now(&self) -> bool {
        self.is_refused.get()
    }
}

impl Outside for World {
    fn seconds(&self) -> u64 {
        0
    }

    fn count(&self) -> u64 {
        0
    }

    fn moment(&self) -> Moment {
        Moment { count: 0, period: None, time: std::time::Duration::ZERO, is_known: false, stood: 0 }
    }

    fn show(&self, _index: usize, _word: u64) {}

    fn caller(&self) -> Option<VcpuId> {
        Some(self.caller.get())
    }

    fn memory(&self) -> &dyn GuestMemory {
        self
    }

    fn has_room(&self, _stream: Stream) -> bool {
        false
    }

    fn send_byte(&self, _stream: Stream, _byte: u8) -> bool {
        false
    }

    fn send(&self, _stream: Stream, _bytes: &[u8]) -> usize {
        0
    }

    fn set_line(&self, _interrupt: IntId, line: Line) {
        self.line.set(line == Line::High);
    }

    fn request(&self, request: Request<'_>) {
        match request {
            Request::GoOn => self.goes_on.set(true),
            Request::Run(owner) => self.asked.set(Some(owner.unwrap_or(self.caller.get()))),
            _ => panic!("{request:?}"),
        }
    }
}

/// The guest's driver.
pub struct Driver<B, T> {
    /// The device.
    pub device: EnclaveDevice<B, T>,
    /// And what is around it.
    pub world: World,
    bits: u32,
    tail: u32,
    head: u32,
}

impl<B: EnclaveBackend, T: EnclaveTrace> Driver<B, T> {
    /// One with rings of `1 << bits` entries.
    pub fn new(device: EnclaveDevice<B, T>, bits: u32) -> Self {
        let mut driver = Self { device, world: World::default(), bits, tail: 0, head: 0 };
        driver.set_up();
        driver
    }

    /// Describes the rings anew.
    pub fn set_up(&mut self) {
        (self.tail, self.head) = (0, 0);
        let bits = self.bits;
        let registers = [
            (register::CQ_BASE_LOW, COMMANDS as u32),
            (register::CQ_SIZE, bits),
            (register::RQ_BASE_LOW, COMPLETIONS as u32),
            (register::RQ_SIZE, bits),
            (register::INT_MASK, 0),
        ];
        registers.into_iter().for_each(|(offset, value)| self.write(offset, value));
    }

    /// Reads a register.
    pub fn read(&mut self, offset: u64) -> u32 {
        let access = Access { frame: 0, offset, size: AccessSize::Word };
        Device::read(&mut self.device, &access, &self.world) as u32
    }

    /// Writes one.
    pub fn write(&mut self, offset: u64, value: u32) {
        let access = Access { frame: 0, offset, size: AccessSize::Word };
        Device::write(&mut self.device, &access, value.into(), &self.world);
    }

    /// Puts a command into the ring, without inserting it.
    pub fn put(&mut self, bytes: &[u8; COMMAND_SIZE]) {
        self.world.poke(COMMANDS + u64::from(self.tail) * COMMAND_SIZE as u64, bytes);
        self.tail = (self.tail + 1) % (1 << self.bits);
    }

    /// Inserts what was put into the ring.
    pub fn ring(&mut self) {
        self.write(register::CQ_TAIL, self.tail);
    }

    /// What there is in the other ring, taken out.
    pub fn completions(&mut self) -> Vec<EnclaveCompletion> {
        let tail = self.read(register::RQ_TAIL);
        let mut all = Vec::new();
        while self.head != tail {
            let mut bytes = [0; COMPLETION_SIZE];
            self.world.peek(COMPLETIONS + u64::from(self.head) * COMPLETION_SIZE as u64, &mut bytes);
            all.push(EnclaveCompletion::from_bytes(&bytes));
            self.head = (self.head + 1) % (1 << self.bits);
        }
        self.write(register::RQ_HEAD, self.head);
        all
    }

    /// Lets the device go on while it wants to, and an enclave run as `program` says.
    pub fn settle(&mut self, program: &mut dyn FnMut(&mut enclave::EnclaveThread) -> Leave) {
        loop {
            if let Some(mut run) = self.world.asked.take().and_then(|by| self.device.take_run(by)) {
                let leave = program(&mut run.thread);
                self.device.left(&run, leave, &self.world);
            } else if self.world.goes_on.take() {
                self.world.share.set(self.world.share.get().map(|_| 3));
                self.device.poll(&self.world);
            } else {
                return;
            }
        }
    }

    /// Has one command done.
    pub fn command(
        &mut self,
        command: &EnclaveCommand,
        program: &mut dyn FnMut(&mut enclave::EnclaveThread) -> Leave,
    ) -> EnclaveCompletion {
        self.put(&command.to_bytes());
        self.ring();
        self.settle(program);
        let all = self.completions();
        assert_eq!(all.len(), 1, "{command:?}: {all:?}");
        assert_eq!(all[0].cookie, command.cookie);
        all[0]
    }
}

/// A command that is often a possible one, of a guest that has made so many enclaves.
fn command(input: &mut Input<'_>, cookie: u64, made: u64) -> [u8; COMMAND_SIZE] {
    let shape = input.byte();
    if shape == 0xff {
        let mut bytes = [0; COMMAND_SIZE];
        bytes.fill_with(|| input.byte());
        return bytes;
    }
    let page = |byte: u8| u64::from(byte % 64) * PAGE_SIZE;
    let payload = match input.byte() {
        0 => input.double(),
        1..64 => 0,
        // Not the first, where the rings are.
        64..128 => RAM + u64::from(1 + input.byte() % 8) * BLOCK_SIZE,
        choice => PAYLOAD + page(choice),
    };
    let payload_length = match input.byte() {
        0 => input.word(),
        1..64 => 0,
        64..128 => BLOCK_SIZE as u32 * u32::from(input.byte() % 3),
        128..192 => 32,
        choice => PAGE_SIZE as u32 * u32::from(choice % 4),
    };
    let first = if input.byte() & 1 == 0 { 0 } else { page(input.byte()) };
    let second = if input.byte() & 1 == 0 { 0 } else { [1, 3, 5, 7][usize::from(input.byte() % 4)] };
    let opcode = u16::from(shape % 13);
    let id = made.wrapping_add(1).wrapping_sub(u64::from(input.byte() % 6));
    if opcode == EnclaveOpcode::Finalise as u16 && payload_length != 0 {
        let finalise = EnclaveCommand::new(EnclaveOpcode::Finalise, cookie);
        return EnclaveCommand { enclave: id, payload: EXPECTED, payload_length: 32, ..finalise }.to_bytes();
    }
    if opcode == EnclaveOpcode::Create as u16 && payload_length != 0 {
        // Not the first block, where the rings are.
        let payload = RAM + u64::from(1 + input.byte() % 8) * BLOCK_SIZE;
        let payload_length = BLOCK_SIZE as u32 * u32::from(1 + input.byte() % 2);
        let create = EnclaveCommand::new(EnclaveOpcode::Create, cookie);
        return EnclaveCommand { payload, payload_length, ..create }.to_bytes();
    }
    if matches!(opcode, 4..=6) && payload_length != 0 {
        return EnclaveCommand { opcode, enclave: id, cookie, ..EnclaveCommand::new(EnclaveOpcode::Query, 0) }
            .to_bytes();
    }
    let command = EnclaveCommand {
        opcode,
        cookie,
        enclave: if opcode < 2 { 0 } else { id },
        flags: u32::from(input.byte() % 8).saturating_sub(4),
        payload_length,
        arguments: [first, second, 0],
        payload,
        ..EnclaveCommand::new(EnclaveOpcode::Query, 0)
    };
    command.to_bytes()
}

/// A guest that does anything: each command ends once, in order, with a status that there is; memory is the guest's or an enclave's;
/// and after a reset all of it is the guest's.
///
/// Returns the statuses that it was told.
pub fn commands(data: &[u8]) -> BTreeSet<i32> {
    let mut statuses = BTreeSet::new();
    let mut input = Input(data);
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 3);
    let mut cookie = 1;
    while !input.is_empty() {
        let mut expected = Vec::new();
        for _ in 0..=input.byte() % 6 {
            let bytes = command(&mut input, cookie, driver.device.table().made());
            expected.push(EnclaveCommand::from_bytes(&bytes).cookie);
            driver.put(&bytes);
            cookie += 1;
        }
        driver.world.share.set((input.byte() & 1 != 0).then_some(3));
        driver.world.accesses.set(0);
        let one = usize::from(input.byte() % 4);
        if let Some(enclave) = driver.device.table().get(one) {
            driver.world.poke(EXPECTED, &enclave.measuring.clone().finish());
        }
        driver.ring();
        assert!(driver.world.accesses.get() <= 200);
        let choice = input.byte();
        driver.settle(&mut |thread| {
            thread.general[0] = u64::from(choice);
            [Leave::Returned(1), Leave::Outcall(2), Leave::Interrupted, Leave::Faulted][usize::from(choice % 4)]
        });
        driver.world.share.set(None);
        driver.settle(&mut |_| Leave::Returned(0));
        let all = driver.completions();
        let seen: Vec<u64> = all.iter().map(|completion| completion.cookie).collect();
        assert_eq!(seen, expected);
        assert!(all.iter().all(|completion| EnclaveStatus::from_number(completion.status).is_some()));
        statuses.extend(all.iter().map(|completion| completion.status));
        match input.byte() {
            0 => reset(&mut driver),
            1 => {
                let saved = driver.device.save();
                let had = !driver.device.table().is_empty();
                assert_eq!(saved.gone, had);
            }
            _ => {}
        }
    }
    reset(&mut driver);
    statuses
}

fn reset<T: EnclaveTrace>(driver: &mut Driver<ByIsolation, T>) {
    driver.write(register::RESET, 1);
    driver.settle(&mut |_| Leave::Interrupted);
    assert_eq!(driver.read(register::STATUS), 0);
    assert!(driver.world.taken.borrow().is_empty() && driver.world.open.borrow().is_empty());
    driver.set_up();
}

/// Any register gets anything, whatever is in the rings: it is a bounded amount of work each time.
pub fn registers(data: &[u8]) {
    let mut input = Input(data);
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 2);
    while !input.is_empty() {
        match input.byte() % 8 {
            0 => driver
                .device
                .change([Change::Reset, Change::Pause, Change::Resume][usize::from(input.byte() % 3)], &driver.world),
            1 => driver.put(&command(&mut Input(&[1, 70, 1, 70, 1, 0, 0, 0, 0]), 0, 0)),
            2 => {
                let bytes = command(&mut input, 0, driver.device.table().made());
                driver.put(&bytes);
            }
            3 => driver.ring(),
            _ => {
                let offset = u64::from(input.byte() % 32) * 4;
                let value = match input.byte() {
                    0..64 => u32::from(input.byte() % 9),
                    64..96 => COMMANDS as u32,
                    96..128 => COMPLETIONS as u32,
                    _ => input.word(),
                };
                let _ = driver.read(offset);
                driver.world.accesses.set(0);
                driver.write(offset, value);
                assert!(driver.world.accesses.get() <= 200);
            }
        }
        // The machine may start afresh without the enclaves' end: its memory does too.
        if driver.device.table().is_empty() && !driver.world.taken.borrow().is_empty() {
            driver.world = World::default();
        }
        driver.settle(&mut |_| Leave::Returned(0));
    }
}
