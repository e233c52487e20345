//! Whole lives of a VM on that machine: it is started, its vCPUs switch each other on and off, a device stores into what they execute,
//! it is paused, its memory is replaced by that of a saved state, it is resumed, and it resets in memory that was another VM's. The
//! real [`Life`] decides the order of events, the real [`Mmio`] what the device stores and where.
//!
//! Three things keep stale code out: no vCPU is in the guest whose memory is exchanged; a life's mappings end with it; and a device
//! has no other way into the guest's memory than the hypervisor has. Each is left out in one test.

extern crate std;

use core::array;
use core::cell::RefCell;
use std::collections::BTreeMap;
use std::string::String;

use cpu::exit::Wanted;
use services::psci::{Start, VmPower};
use units::{AccessSize, BLOCK_SIZE, ByteOrder, Ipa, Range, VcpuId};
use virtio::{Entropy, Fault, GuestMemory, Mmio};
use vm::{Ask, Effect, End, Life, Stop, Task};

use super::{ANOTHERS, CELL, CPUS, OFFSET, Omitted, RAM, STRICT, Shape, USUAL, World, cells, show};
use crate::{Policy, Stage2};

/// Where the guest has the device's rings, beside what it executes.
const RINGS: u64 = 8 * BLOCK_SIZE;
const DESCRIPTORS: u64 = RINGS;
const AVAILABLE: u64 = RINGS + 0x1000;
const USED: u64 = RINGS + 0x2000;

/// What a vCPU's thread does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Thread {
    Idle,
    Loading,
    InGuest,
    Standing,
}

/// How often something happened that the proof is about.
#[derive(Clone, Copy, Default, Debug)]
struct Happened {
    lives: u32,
    restores: u32,
    pauses: u32,
    device_stores: u32,
}

/// A device that stores into the guest's memory: the bytes come from a function that makes them.
type Device = Entropy<fn(&mut [u8])>;

struct Vm {
    memory: Memory,
    life: Life<&'static str>,
    threads: [Thread; CPUS],
    asked: [Option<Ask>; CPUS],
    device: Mmio<Device>,
    offered: u16,
    now: u64,
    happened: Happened,
}

/// The guest's memory as the device sees it.
struct Memory {
    world: RefCell<World>,
    rings: RefCell<BTreeMap<u64, u8>>,
    /// Whose exit leads to the device's work, and what it has stored into the guest.
    cpu: usize,
    stores: RefCell<u32>,
}

impl GuestMemory for Memory {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        let rings = self.rings.borrow();
        (from.0..).zip(into).for_each(|(at, byte)| *byte = rings.get(&at).copied().unwrap_or(0));
        Ok(())
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        if to.0 >= RINGS {
            self.rings.borrow_mut().extend((to.0..).zip(bytes.iter().copied()));
            return Ok(());
        }
        assert_eq!(bytes.len() as u64, CELL, "a buffer is filled at once");
        *self.stores.borrow_mut() += 1;
        self.world.borrow_mut().store_of_the_hypervisors(self.cpu, to.0 + OFFSET);
        Ok(())
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        let mut bytes = [0; 2];
        self.read(at, &mut bytes).map(|()| u16::from_le_bytes(bytes))
    }

    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault> {
        self.write(at, &value.to_le_bytes())
    }
}

impl World {
    /// As [`World::rewrite`], into what the guest does not see yet too.
    fn store_of_the_hypervisors(&mut self, cpu: usize, cell: u64) {
        if self.tables.translate(&&self.machine, Ipa(cell - OFFSET)).is_none() {
            self.at_el2(cpu, |tables, hardware, rules| show(tables, hardware, Ipa(cell - OFFSET), rules));
        }
        self.rewrite(cpu, cell);
    }

    /// A life is over: its tables go, and its memory to others, who leave theirs in all instruction caches.
    fn dismantle(&mut self) {
        if self.shape.omitted != Omitted::Dismantling {
            let fresh = Stage2::new(&mut &self.machine).unwrap();
            let old = core::mem::replace(&mut self.tables, fresh);
            old.destroy(&mut &self.machine, &mut &self.machine);
        }
        for cpu in &mut self.machine.0.borrow_mut().cpus {
            cpu.instructions.extend(cells().map(|cell| (cell, ANOTHERS)));
        }
    }
}

/// What the device's bytes are does not count.
fn fill(bytes: &mut [u8]) {
    bytes.fill(7);
}

impl Vm {
    fn new(shape: Shape, seed: u64) -> Self {
        let world = World::new(shape, seed);
        let executable = Range { start: Ipa(0), size: RAM.size };
        let (rings, stores) = (RefCell::default(), RefCell::default());
        Self {
            memory: Memory { world: RefCell::new(world), rings, cpu: 0, stores },
            life: Life::new(VmPower::new(CPUS as u8, executable)),
            threads: [Thread::Idle; CPUS],
            asked: [None; CPUS],
            device: Mmio::new(Entropy::new(fill as fn(&mut [u8]))),
            offered: 0,
            now: 0,
            happened: Happened::default(),
        }
    }

    fn draw(&self, below: u64) -> u64 {
        self.memory.world.borrow().draw(below)
    }

    fn perform(&mut self, effects: &[Effect]) {
        for effect in effects {
            // Threads are never asleep here: they look at each turn.
            if let Effect::AskAll(ask) = effect {
                self.asked = self.asked.map(|before| if before == Some(Ask::Leave) { before } else { Some(*ask) });
            }
        }
    }

    fn outside(&self) -> [bool; CPUS] {
        array::from_fn(|id| self.threads[id] != Thread::InGuest)
    }

    /// The operator does something.
    fn order(&mut self) {
        let effects = match self.draw(9) {
            0..3 => self.life.start(),
            3 => self.life.stop([Stop::Restart, Stop::Operator][self.draw(2) as usize].clone()),
            4 | 5 => {
                let effects = self.life.pause();
                self.happened.pauses += u32::from(!effects.is_empty());
                self.perform(effects);
                return self.restore();
            }
            6 => self.life.resume(),
            _ => return self.restore(),
        };
        self.perform(effects);
    }

    /// Puts a state in, if the VM is paused and its vCPUs stand still.
    fn restore(&mut self) {
        let is_impatient = self.memory.world.borrow().shape.omitted == Omitted::Waiting;
        let (Some(saved), true) = (self.life.save(), is_impatient || !self.threads.contains(&Thread::InGuest)) else {
            return;
        };
        let cpu = self.draw(CPUS as u64) as usize;
        self.memory.world.get_mut().hide(cpu);
        // Whoever has not stood still goes on, and its faults show it again what is hidden.
        for id in (0..CPUS).filter(|&id| self.threads[id] == Thread::InGuest) {
            cells().for_each(|cell| self.memory.world.get_mut().access(id, cell, Wanted::Fetch));
        }
        self.memory.world.get_mut().machine.0.borrow_mut().replace_memory();
        let begun = self.life.begun();
        self.life.restore(&saved, begun).unwrap();
        self.happened.restores += 1;
    }

    /// A thread takes its next step.
    fn step(&mut self, id: usize) {
        let vcpu = VcpuId(id as u8);
        match self.threads[id] {
            Thread::Idle => match self.life.next_task(vcpu) {
                None => {}
                Some(Task::Boot) => self.threads[id] = Thread::Loading,
                Some(Task::End) => {
                    let end = self.life.end(self.now);
                    self.end(id, end);
                }
                Some(Task::Run(_) | Task::GoOn) => self.threads[id] = Thread::InGuest,
            },
            Thread::Loading => {
                self.load(id);
                let start = Start { vcpu: VcpuId(0), entry: Ipa(0), context: 0, order: ByteOrder::Little };
                let effects = self.life.started(start, self.now);
                self.threads[id] = Thread::Idle;
                self.perform(effects);
            }
            Thread::InGuest | Thread::Standing if self.asked[id] == Some(Ask::Leave) => self.leave(id),
            Thread::InGuest if self.asked[id].is_some() => {
                self.asked[id] = None;
                self.threads[id] = Thread::Standing;
            }
            Thread::InGuest => self.run(id),
            Thread::Standing if self.life.is_paused() => {}
            Thread::Standing => self.threads[id] = Thread::InGuest,
        }
    }

    fn leave(&mut self, id: usize) {
        self.threads[id] = Thread::Idle;
        let end = self.life.left(VcpuId(id as u8), self.now);
        self.end(id, end);
    }

    fn end(&mut self, id: usize, end: Option<End>) {
        let Some(end) = end else { return };
        self.asked = [None; CPUS];
        self.device.reset();
        self.memory.world.get_mut().dismantle();
        if end == End::Off {
            let effects = self.life.is_taken_apart();
            self.perform(effects);
        } else {
            self.threads[id] = Thread::Loading;
        }
    }

    /// Memory that was zeroed, and an image in it.
    fn load(&mut self, id: usize) {
        self.happened.lives += 1;
        let world = self.memory.world.get_mut();
        world.machine.0.borrow_mut().replace_memory();
        for cell in cells().take(4) {
            world.store_of_the_hypervisors(id, cell);
            let mut state = world.machine.0.borrow_mut();
            state.cleaning_to_memory.insert(cell);
            state.complete();
        }
    }

    /// A vCPU does something in its guest.
    fn run(&mut self, id: usize) {
        let cell = self.memory.world.get_mut().machine.0.borrow_mut().draw_cell();
        match self.draw(16) {
            0..6 => self.memory.world.get_mut().access(id, cell, Wanted::Fetch),
            6..9 => self.memory.world.get_mut().access(id, cell, Wanted::Write),
            9..13 => self.ring(id, cell),
            13 | 14 => {
                let target = self.draw(CPUS as u64);
                _ = self.life.cpu_on(target, 0, 0, ByteOrder::Little);
            }
            _ if self.draw(8) == 0 => {
                let effects = self.life.stop(Stop::Reset);
                self.perform(effects);
            }
            _ if self.draw(2) == 0 => {
                _ = self.life.cpu_off(VcpuId(id as u8));
                self.leave(id);
            }
            _ => {}
        }
    }

    /// A vCPU gives the device a buffer to fill: somewhere among what is executed.
    fn ring(&mut self, id: usize, cell: u64) {
        let is_new = !self.device.is_live();
        // QueueSel, QueueNum, QueueDesc, QueueDriver, QueueDevice, QueueReady and Status of section 4.2.2 of virtio.
        let mut set = |offset, value: u64| _ = self.device.write(offset, AccessSize::Word, value);
        if is_new {
            let queue = [(0x30, 0), (0x38, 4), (0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED), (0x44, 1)];
            let begin = [(0x70, 0), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)];
            begin.into_iter().chain(queue).chain([(0x70, 15)]).for_each(|(offset, value)| set(offset, value));
            self.memory.rings.get_mut().clear();
            self.offered = 0;
        }
        // One descriptor, which the device writes; then it is available.
        let ipa = cell - OFFSET;
        let mut put = |at: u64, bytes: &[u8]| self.memory.rings.get_mut().extend((at..).zip(bytes.iter().copied()));
        put(DESCRIPTORS, &ipa.to_le_bytes());
        put(DESCRIPTORS + 8, &(CELL as u32).to_le_bytes());
        put(DESCRIPTORS + 12, &2_u16.to_le_bytes());
        self.offered = self.offered.wrapping_add(1);
        put(AVAILABLE + 2, &self.offered.to_le_bytes());
        self.memory.cpu = id;
        _ = self.device.process(0, &self.memory).unwrap();
        self.happened.device_stores = *self.memory.stores.borrow();
    }

    fn turn(&mut self) -> Option<String> {
        self.now += 20_000;
        self.memory.world.get_mut().machine.0.borrow_mut().outside = self.outside();
        match self.draw(24) {
            0 | 1 => self.order(),
            which => self.step(which as usize % CPUS),
        }
        self.memory.world.get_mut().machine.0.borrow_mut().complaint.take()
    }
}

/// What the first of so many VMs finds stale, and what happened until then.
fn run(shape: Shape) -> (Option<String>, Happened) {
    let mut all = Happened::default();
    for seed in 1..=40 {
        let mut vm = Vm::new(shape, seed);
        let complaint = (0..600).find_map(|_| vm.turn());
        let Happened { lives, restores, pauses, device_stores } = vm.happened;
        all.lives += lives;
        all.restores += restores;
        all.pauses += pauses;
        all.device_stores += device_stores;
        if complaint.is_some() {
            return (complaint, all);
        }
    }
    (None, all)
}

/// With nothing left out, and with this.
fn prove(shape: Shape, omitted: Omitted) {
    let (complaint, happened) = run(shape);
    assert_eq!(complaint, None);
    let Happened { lives, restores, pauses, device_stores } = happened;
    assert!(lives > 100 && restores > 50 && pauses > 100 && device_stores > 500, "too little of it: {happened:?}");
    assert_ne!(run(Shape { omitted, ..shape }).0, None, "{omitted:?} is not needed");
}

const EAGER: Shape = Shape { policy: Policy::Eager, ..USUAL };

#[test]
fn a_device_that_stores_past_the_door_is_found() {
    prove(USUAL, Omitted::Taking);
    prove(STRICT, Omitted::Taking);
    prove(EAGER, Omitted::Taking);
}

#[test]
fn a_state_that_is_put_in_below_the_mappings_is_found() {
    prove(USUAL, Omitted::Hiding);
    prove(STRICT, Omitted::Hiding);
}

#[test]
fn a_state_that_is_put_in_while_vcpus_run_is_found() {
    prove(USUAL, Omitted::Waiting);
    prove(STRICT, Omitted::Waiting);
}

#[test]
fn a_life_in_the_tables_of_the_one_before_is_found() {
    prove(USUAL, Omitted::Dismantling);
    prove(EAGER, Omitted::Dismantling);
}

#[test]
fn each_step_of_the_maintenance_is_needed_in_a_whole_life() {
    for omitted in [Omitted::Clean, Omitted::Invalidation, Omitted::WaitForInvalidation, Omitted::TlbInvalidation] {
        prove(USUAL, omitted);
    }
}
