//! The device: its registers, the emulated queue, and one command at a time on its way from the one ring into the other.
//!
//! The work of one call is bounded: by what `Outside` allows to be done in the guest's memory in one go, and by a number of steps. What is
//! left is asked for by `GoOn`. An enclave does not run within a call: the backend asks for that, and whoever owns the device takes it
//! out ([`EnclaveDevice::take_run`]), lets it run without the device's lock, and brings it back ([`EnclaveDevice::left`]).

mod work;

use abi::enclave::{
    COMMAND_SIZE, EnclaveCommand, EnclaveCompletion, EnclaveOpcode, EnclaveStatus, ID, MAX_RING_BITS, VERSION,
    interrupt, register, status_bits,
};
use devices::bus::{Access, Change, Device, Outside, Request};
use pack::{Damaged, Reader, Writer};
use units::{AccessSize, VcpuId};

use self::work::{Job, NotYet, Refusal};
use crate::backend::{EnclaveBackend, Leave};
use crate::parse::parse;
use crate::rings::Ring;
use crate::saved::SavedEnclaveDevice;
use crate::table::{EnclaveTable, EnclaveThread, THREAD_FLAGS};
use crate::trace::{EnclaveTrace, NoTrace, Traced};

/// How many steps one call makes at most, whatever they cost.
const STEPS: u32 = 64;

/// An enclave that is to run, or has run: which one, and its registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EnclaveRun {
    /// Its number among those of the VM.
    pub slot: usize,
    /// Its registers.
    pub thread: EnclaveThread,
}

/// The enclave that runs, or is to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Running {
    /// It has not been taken yet. If one has rung for it, no other vCPU takes it: that one may be the guest's only one by which the
    /// run can end, and did not ask for it.
    Waits { slot: usize, owner: Option<VcpuId> },
    /// This vCPU lets it run.
    Taken { slot: usize, by: VcpuId },
}

/// How far a step has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// There may be more.
    Went,
    /// There is nothing to do, or the guest, or the enclave, has to do something first.
    Idle,
    /// It is refused for now.
    Later,
}

/// The enclave device of a VM.
#[derive(Debug)]
pub struct EnclaveDevice<B, T = NoTrace> {
    backend: B,
    trace: T,
    commands: Ring<64>,
    /// Which vCPU has inserted each command that is in the ring. Nobody has whose bell was rung before the VM was restored.
    owners: [Option<VcpuId>; 1 << MAX_RING_BITS],
    completions: Ring<32>,
    interrupts: u32,
    masked: u32,
    broken: bool,
    gone: bool,
    resetting: bool,
    table: EnclaveTable,
    job: Option<Job>,
    running: Option<Running>,
    /// A completion that is not in its ring yet.
    waiting: Option<EnclaveCompletion>,
}

impl<B: EnclaveBackend> EnclaveDevice<B> {
    /// A device over `backend`, as after power on.
    #[must_use]
    pub fn new(backend: B) -> Self {
        Self::traced(backend, NoTrace)
    }
}

impl<B: EnclaveBackend, T: EnclaveTrace> EnclaveDevice<B, T> {
    /// One that says what it does.
    #[must_use]
    pub fn traced(backend: B, trace: T) -> Self {
        Self {
            backend,
            trace,
            commands: Ring::default(),
            owners: [None; 1 << MAX_RING_BITS],
            completions: Ring::default(),
            interrupts: 0,
            masked: interrupt::ALL,
            broken: false,
            gone: false,
            resetting: false,
            table: EnclaveTable::default(),
            job: None,
            running: None,
            waiting: None,
        }
    }

    /// The enclave that is to run, with its registers, if it is for vCPU `by` to let it: that one does, and then calls
    /// [`left`](Self::left). Only one runs at a time.
    pub fn take_run(&mut self, by: VcpuId) -> Option<EnclaveRun> {
        let Some(Running::Waits { slot, owner }) = self.running else { return None };
        if owner.is_some_and(|owner| owner != by) {
            return None;
        }
        let thread = self.table.get(slot)?.thread;
        self.running = Some(Running::Taken { slot, by });
        Some(EnclaveRun { slot, thread })
    }

    /// It has run, and has these registers now.
    pub fn left(&mut self, run: &EnclaveRun, leave: Leave, outside: &dyn Outside) {
        // A reset of the machine may have come between.
        if matches!(self.running, Some(Running::Taken { slot, .. }) if slot == run.slot) {
            self.running = None;
            if let Some(enclave) = self.table.get_mut(run.slot) {
                enclave.thread = EnclaveThread { flags: run.thread.flags & THREAD_FLAGS, ..run.thread };
            }
            self.end_run(run.slot, leave);
        }
        self.work(outside);
    }

    /// The enclaves, for tests.
    #[must_use]
    pub const fn table(&self) -> &EnclaveTable {
        &self.table
    }

    /// Takes the state out.
    #[must_use]
    pub fn save(&self) -> SavedEnclaveDevice {
        let Self {
            backend: _,
            trace: _,
            commands,
            owners: _,
            completions,
            interrupts,
            masked,
            broken,
            gone,
            resetting,
            table,
            job,
            running: _,
            waiting,
        } = self;
        // What was under way never ends there.
        let under_way = job.map(|job| EnclaveCompletion {
            cookie: job.cookie,
            status: EnclaveStatus::Gone as i32,
            enclave: job.id,
            ..EnclaveCompletion::default()
        });
        let waits = waiting.or(under_way);
        let EnclaveCompletion { cookie, status, length, value, enclave } = waits.unwrap_or_default();
        let goes = !table.is_empty() && !resetting && !gone;
        SavedEnclaveDevice {
            commands: commands.base,
            commands_bits: commands.bits,
            commands_head: commands.head,
            commands_tail: commands.tail,
            completions: completions.base,
            completions_bits: completions.bits,
            completions_head: completions.head,
            completions_tail: completions.tail,
            interrupts: interrupts | if goes { interrupt::STATUS } else { 0 },
            masked: *masked,
            broken: *broken,
            gone: *gone || goes,
            made: table.made(),
            waiting: waits.is_some(),
            waiting_cookie: cookie,
            waiting_status: status.cast_unsigned(),
            waiting_length: length,
            waiting_value: value,
            waiting_enclave: enclave,
        }
    }

    fn has_work(&self) -> bool {
        self.resetting || self.job.is_some() || self.waiting.is_some() || !self.commands.is_empty()
    }

    fn status(&self) -> u32 {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(self.broken, status_bits::BROKEN)
            | bit(self.gone, status_bits::GONE)
            | bit(self.resetting, status_bits::RESETTING)
    }

    fn features(&self) -> u32 {
        use EnclaveOpcode::{AddPages, Create, Destroy, Enter, Finalise, Measurement, Query, Resume};
        if self.backend.is_present() {
            [Query, Create, AddPages, Finalise, Enter, Resume, Destroy, Measurement]
                .into_iter()
                .fold(0, |features, opcode| features | 1 << opcode as u32)
        } else {
            1 << Query as u32
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::ID => ID,
            register::VERSION => VERSION.into(),
            register::FEATURES => self.features(),
            register::STATUS => self.status(),
            register::CQ_BASE_LOW => low(self.commands.base),
            register::CQ_BASE_HIGH => high(self.commands.base),
            register::CQ_SIZE => self.commands.bits,
            register::CQ_HEAD => self.commands.head,
            register::CQ_TAIL => self.commands.tail,
            register::RQ_BASE_LOW => low(self.completions.base),
            register::RQ_BASE_HIGH => high(self.completions.base),
            register::RQ_SIZE => self.completions.bits,
            register::RQ_HEAD => self.completions.head,
            register::RQ_TAIL => self.completions.tail,
            register::INT_STATUS => self.interrupts,
            register::INT_MASK => self.masked,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32, outside: &dyn Outside) {
        match offset {
            register::CQ_TAIL => self.insert(value, outside),
            register::RQ_HEAD => {
                if value < self.completions.entries() {
                    self.completions.head = value;
                    self.work(outside);
                } else {
                    self.break_down();
                }
            }
            register::CQ_BASE_LOW | register::CQ_BASE_HIGH | register::CQ_SIZE if !self.has_work() => {
                let Ring { base, bits, .. } = self.commands;
                let (base, bits) = described(base, bits, offset - register::CQ_BASE_LOW, value);
                self.commands.describe(base, bits);
            }
            register::RQ_BASE_LOW | register::RQ_BASE_HIGH | register::RQ_SIZE if !self.has_work() => {
                let Ring { base, bits, .. } = self.completions;
                let (base, bits) = described(base, bits, offset - register::RQ_BASE_LOW, value);
                self.completions.describe(base, bits);
            }
            register::INT_ACK => self.interrupts &= !value,
            register::INT_MASK => self.masked = value & interrupt::ALL,
            register::RESET => self.reset(outside),
            _ => {}
        }
    }

    /// The tail was written: commands are inserted.
    fn insert(&mut self, tail: u32, outside: &dyn Outside) {
        self.trace.note(&Traced::Inserted(tail));
        if self.resetting || self.broken {
            return;
        }
        if tail >= self.commands.entries() || self.completions.entries() == 0 {
            self.break_down();
            return;
        }
        let caller = outside.caller();
        while self.commands.tail != tail {
            if let Some(owner) = self.owners.get_mut(self.commands.tail as usize) {
                *owner = caller;
            }
            self.commands.tail = self.commands.next(self.commands.tail);
        }
        self.work(outside);
    }

    /// The guest ends all that it has here.
    fn reset(&mut self, outside: &dyn Outside) {
        self.commands.describe(0, 0);
        self.completions.describe(0, 0);
        (self.interrupts, self.masked) = (0, interrupt::ALL);
        (self.broken, self.gone) = (false, false);
        self.waiting = None;
        self.resetting = true;
        self.call_off(outside);
        self.work(outside);
    }

    fn break_down(&mut self) {
        self.broken = true;
        self.raise(interrupt::STATUS);
    }

    fn raise(&mut self, bit: u32) {
        let before = self.is_raised();
        self.interrupts |= bit;
        if !before && self.is_raised() {
            self.trace.note(&Traced::Interrupt);
        }
    }

    const fn is_raised(&self) -> bool {
        self.interrupts & !self.masked != 0
    }

    /// Goes on for as long as it may.
    fn work(&mut self, outside: &dyn Outside) {
        for _ in 0..STEPS {
            match self.step(outside) {
                Progress::Went => {}
                Progress::Idle => return,
                Progress::Later => break,
            }
        }
        outside.request(Request::GoOn);
    }

    fn step(&mut self, outside: &dyn Outside) -> Progress {
        match self.running {
            Some(Running::Taken { .. }) => return Progress::Idle,
            // Who was asked to let it run has not.
            Some(Running::Waits { owner, .. }) => {
                outside.request(Request::Run(owner));
                return Progress::Idle;
            }
            None => {}
        }
        if self.resetting {
            return self.step_of_reset(outside);
        }
        if self.broken {
            return Progress::Idle;
        }
        if let Some(completion) = self.waiting {
            return self.complete(&completion, outside);
        }
        if let Some(mut job) = self.job {
            return match self.advance(&mut job, outside) {
                Ok(Some((status, length, value))) => {
                    self.job = None;
                    self.waiting = Some(EnclaveCompletion {
                        cookie: job.cookie,
                        status: status as i32,
                        length,
                        value,
                        enclave: job.id,
                    });
                    Progress::Went
                }
                Ok(None) => {
                    self.job = Some(job);
                    if self.running.is_some() { Progress::Idle } else { Progress::Went }
                }
                Err(NotYet) => {
                    self.job = Some(job);
                    Progress::Later
                }
            };
        }
        if self.commands.is_empty() {
            return Progress::Idle;
        }
        self.retrieve(outside)
    }

    /// Copies the next command out of the ring, and looks at the copy alone from here on.
    fn retrieve(&mut self, outside: &dyn Outside) -> Progress {
        let mut bytes = [0; COMMAND_SIZE];
        let head = self.commands.head;
        if let Err(access) = self.fetch(self.commands.place(head), &mut bytes, outside) {
            return self.refused_ring(access);
        }
        self.trace.note(&Traced::Retrieved(head, &bytes));
        self.commands.head = self.commands.next(head);
        let command = EnclaveCommand::from_bytes(&bytes);
        let parsed = parse(&command);
        self.trace.note(&Traced::Parsed(&parsed));
        let owner = self.owners.get(head as usize).copied().flatten();
        let begun = parsed.and_then(|operation| self.begin(&command, operation, owner));
        match begun {
            Ok(job) => self.job = Some(job),
            Err(status) => {
                let (cookie, enclave) = (command.cookie, command.enclave);
                let status = status as i32;
                self.waiting = Some(EnclaveCompletion { cookie, status, enclave, ..EnclaveCompletion::default() });
            }
        }
        Progress::Went
    }

    fn complete(&mut self, completion: &EnclaveCompletion, outside: &dyn Outside) -> Progress {
        if self.completions.entries() == 0 {
            self.break_down();
            return Progress::Idle;
        }
        if self.completions.is_full() {
            // Until the guest writes RQ_HEAD.
            return Progress::Idle;
        }
        let place = self.completions.place(self.completions.tail);
        if let Err(access) = self.store(place, &completion.to_bytes(), outside) {
            return self.refused_ring(access);
        }
        self.completions.tail = self.completions.next(self.completions.tail);
        self.waiting = None;
        self.trace.note(&Traced::Completed(completion));
        self.raise(interrupt::COMPLETION);
        Progress::Went
    }

    fn refused_ring(&mut self, access: Refusal) -> Progress {
        match access {
            Refusal::Later => Progress::Later,
            Refusal::Address => {
                self.break_down();
                Progress::Idle
            }
        }
    }

    fn start_afresh(&mut self) {
        self.backend.forget();
        self.table.forget();
        self.owners = [None; 1 << MAX_RING_BITS];
        self.commands.describe(0, 0);
        self.completions.describe(0, 0);
        (self.interrupts, self.masked) = (0, interrupt::ALL);
        (self.broken, self.gone, self.resetting) = (false, false, false);
        (self.job, self.running, self.waiting) = (None, None, None);
    }
}

/// A ring's base and size after a write to the register that is so far behind the base's.
const fn described(base: u64, bits: u32, offset: u64, value: u32) -> (u64, u32) {
    match offset {
        0 => (base & !0xffff_ffff | value as u64, bits),
        4 => (base & 0xffff_ffff | (value as u64) << 32, bits),
        _ => (base, value),
    }
}

const fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

const fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

impl<B: EnclaveBackend, T: EnclaveTrace> Device for EnclaveDevice<B, T> {
    /// Registers have 32 bits, and are read and written as such, or not at all.
    fn read(&mut self, access: &Access, _outside: &dyn Outside) -> u64 {
        if access.size == AccessSize::Word { self.read_register(access.offset).into() } else { 0 }
    }

    fn write(&mut self, access: &Access, value: u64, outside: &dyn Outside) {
        if access.size == AccessSize::Word {
            self.write_register(access.offset, low(value), outside);
        }
    }

    fn lines(&self) -> u32 {
        self.is_raised().into()
    }

    fn poll(&mut self, outside: &dyn Outside) {
        if self.has_work() {
            self.work(outside);
        }
    }

    fn change(&mut self, change: Change, _outside: &dyn Outside) {
        match change {
            Change::Reset | Change::PowerOff | Change::Forget => self.start_afresh(),
            // It does nothing by itself, and whoever lets an enclave run has brought it back before.
            Change::Pause | Change::Stall | Change::Resume | Change::Unstall | Change::Fork => {}
        }
    }

    fn save_to(&self, out: &mut Writer) {
        out.part(&self.save());
    }

    fn restore_from(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        let saved: SavedEnclaveDevice = from.part()?;
        let (commands, completions) = saved.rings()?;
        self.start_afresh();
        (self.commands, self.completions) = (commands, completions);
        (self.interrupts, self.masked) = (saved.interrupts, saved.masked);
        (self.broken, self.gone) = (saved.broken, saved.gone);
        self.table = EnclaveTable::after(saved.made);
        self.waiting = saved.waiting();
        Ok(())
    }
}
