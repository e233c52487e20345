//! A command on its way: whether it is allowed to its enclave, and its steps, each of which is one of the universal API's.

use abi::enclave::{EnclaveCommand, EnclaveCompletion, EnclaveStatus, MAX_BLOCKS, MAX_ENCLAVES, MEASUREMENT_SIZE};
use devices::bus::{Outside, Request};
use devices::memory::{Fault, GuestMemory};
use units::{BLOCK_SIZE, Ipa, PAGE_SIZE, Range, VcpuId};

use super::{EnclaveDevice, Progress, Running};
use crate::backend::{EnclaveBackend, Entered, Leave, NotCarriedOut, PART, Universal};
use crate::parse::{Contents, EnclaveOperation, PageRights};
use crate::table::{EnclaveState, EnclaveThread};
use crate::trace::{EnclaveTrace, Traced};

/// The parts of a page.
const PARTS: u32 = (PAGE_SIZE / PART as u64) as u32;

/// A command that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) cookie: u64,
    /// As the command says, and then as the completion does.
    pub(super) id: u64,
    slot: usize,
    /// Whose time it takes.
    owner: Option<VcpuId>,
    task: Task,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    /// Memory is donated block by block, once there is an enclave for it.
    Donate { is_open: bool },
    /// Pages are added, so many of them by now, and so many parts of the next one.
    Add { adding: Adding, pages: u32, parts: u32 },
    /// It ends, with this status: first its tables, and then its blocks.
    End { status: EnclaveStatus },
    /// The operation is one step.
    At(EnclaveOperation),
    /// It runs.
    Run,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Adding {
    offset: u64,
    count: u32,
    rights: PageRights,
    contents: Contents,
    measured: bool,
}

/// What a step of a job has led to: the completion's status, length and value; or nothing yet.
pub(super) type Outcome = Option<(EnclaveStatus, u32, u64)>;

/// The step is to be made again.
#[derive(Debug)]
pub(super) struct NotYet;

/// Why an access to the guest's memory was not made.
#[derive(Debug)]
pub(super) enum Refusal {
    Later,
    Address,
}

impl Refusal {
    fn of(_: Fault, memory: &dyn GuestMemory) -> Self {
        if memory.is_refused_for_now() { Self::Later } else { Self::Address }
    }
}

/// The state, and the completion's status and value, of an enclave that has stopped running.
const fn after(leave: Leave) -> (EnclaveState, EnclaveStatus, u64) {
    match leave {
        Leave::Returned(value) => (EnclaveState::Finalised, EnclaveStatus::Done, value),
        Leave::Outcall(value) => (EnclaveState::CallsOutside, EnclaveStatus::Outcall, value),
        Leave::Interrupted => (EnclaveState::Interrupted, EnclaveStatus::Interrupted, 0),
        Leave::Faulted => (EnclaveState::Failed, EnclaveStatus::Fault, 0),
        Leave::Failed => (EnclaveState::Failed, EnclaveStatus::Mechanism, 0),
    }
}

impl<B: EnclaveBackend, T: EnclaveTrace> EnclaveDevice<B, T> {
    /// Whether the operation is allowed to the enclave, and what has to be done for it.
    pub(super) fn begin(
        &mut self,
        command: &EnclaveCommand,
        operation: EnclaveOperation,
        owner: Option<VcpuId>,
    ) -> Result<Job, EnclaveStatus> {
        use EnclaveState::{Beginning, CallsOutside, Created, Failed, Finalised, Interrupted, Running};
        let (cookie, id) = (command.cookie, command.enclave);
        let job = |id, slot, task| Job { cookie, id, slot, owner, task };
        let slot = match operation {
            EnclaveOperation::Query => return Ok(job(id, 0, Task::At(operation))),
            EnclaveOperation::Create { memory, entry } => {
                if !self.backend.is_present() {
                    return Err(EnclaveStatus::NoMechanism);
                }
                let slot = self.table.begin(memory, entry)?;
                return Ok(job(self.table.made(), slot, Task::Donate { is_open: false }));
            }
            _ => self.table.find(id)?,
        };
        let enclave = self.table.get_mut(slot).ok_or(EnclaveStatus::Unknown)?;
        let state = enclave.state;
        let fits = |allowed| if allowed { Ok(()) } else { Err(EnclaveStatus::State) };
        let task = match operation {
            EnclaveOperation::Query | EnclaveOperation::Create { .. } => return Err(EnclaveStatus::Invalid),
            EnclaveOperation::AddPages { offset, count, rights, contents, measured } => {
                fits(state == Created)?;
                let length = u64::from(count) * PAGE_SIZE;
                let size = enclave.memory.size;
                let is_within = offset.checked_add(length).is_some_and(|end| end <= size);
                let pages = (0..u64::from(count)).map(|page| offset.wrapping_add(page * PAGE_SIZE));
                if !is_within || pages.into_iter().any(|page| enclave.has_page(page)) {
                    return Err(EnclaveStatus::Invalid);
                }
                let adding = Adding { offset, count, rights, contents, measured };
                Task::Add { adding, pages: 0, parts: 0 }
            }
            EnclaveOperation::Finalise { .. } => {
                fits(state == Created)?;
                Task::At(operation)
            }
            EnclaveOperation::Measurement { .. } => {
                fits(matches!(state, Finalised | Running | CallsOutside | Interrupted))?;
                Task::At(operation)
            }
            EnclaveOperation::Enter { arguments } => {
                fits(state == Finalised)?;
                enclave.thread = EnclaveThread::at_entry(enclave.entry, arguments);
                Task::At(operation)
            }
            EnclaveOperation::Resume { answer } => {
                fits(matches!(state, CallsOutside | Interrupted))?;
                if state == CallsOutside
                    && let Some(first) = enclave.thread.general.first_mut()
                {
                    *first = answer;
                }
                Task::At(operation)
            }
            EnclaveOperation::Destroy => {
                fits(matches!(state, Beginning | Created | Finalised | CallsOutside | Interrupted | Failed))?;
                Task::End { status: EnclaveStatus::Done }
            }
        };
        Ok(job(id, slot, task))
    }

    /// The next step of a command.
    pub(super) fn advance(&mut self, job: &mut Job, outside: &dyn Outside) -> Result<Outcome, NotYet> {
        let slot = job.slot;
        match job.task {
            Task::At(EnclaveOperation::Query) => {
                let limits = (MAX_ENCLAVES as u64) << 32 | (MAX_BLOCKS as u64) << 40;
                Ok(Some((EnclaveStatus::Done, 0, u64::from(self.features()) | limits)))
            }
            Task::Donate { is_open } => self.donate(job, is_open, outside),
            Task::Add { adding, pages, parts } => self.add(job, adding, (pages, parts), outside),
            Task::End { status } => Ok(self.end(slot, outside)?.then_some((status, 0, 0))),
            Task::At(EnclaveOperation::Finalise { expected }) => self.finalise(slot, expected, outside),
            Task::At(EnclaveOperation::Measurement { to }) => {
                let measurement = self.table.get(slot).map(|enclave| enclave.measurement).unwrap_or_default();
                Ok(Some(match self.store(to, &measurement, outside) {
                    Ok(()) => (EnclaveStatus::Done, MEASUREMENT_SIZE as u32, 0),
                    Err(Refusal::Later) => return Err(NotYet),
                    Err(Refusal::Address) => (EnclaveStatus::Address, 0, 0),
                }))
            }
            Task::At(EnclaveOperation::Enter { arguments }) => {
                self.run(job, &Universal::Enter { slot, arguments }, outside)
            }
            Task::At(EnclaveOperation::Resume { answer }) => {
                self.run(job, &Universal::Resume { slot, answer }, outside)
            }
            // Its end comes by `left`.
            Task::Run | Task::At(_) => Ok(Some((EnclaveStatus::State, 0, 0))),
        }
    }

    fn donate(&mut self, job: &mut Job, is_open: bool, outside: &dyn Outside) -> Result<Outcome, NotYet> {
        let slot = job.slot;
        let Some(enclave) = self.table.get(slot) else { return Ok(Some((EnclaveStatus::Unknown, 0, 0))) };
        let (memory, entry, donated) = (enclave.memory, enclave.entry, enclave.donated);
        let told = if is_open {
            self.tell(&Universal::Donate { slot, block: enclave.block(donated) }, outside)
        } else {
            self.tell(&Universal::Create { slot, size: memory.size, entry }, outside)
        };
        let Some(enclave) = self.table.get_mut(slot) else { return Ok(None) };
        match told {
            Err(NotCarriedOut::Later) => return Err(NotYet),
            Err(failure) => {
                let is_address = failure == NotCarriedOut::Address;
                let status = if is_address { EnclaveStatus::Address } else { EnclaveStatus::Mechanism };
                (job.id, job.task) = (0, Task::End { status });
            }
            Ok(_) if is_open => enclave.donated += 1,
            Ok(_) => job.task = Task::Donate { is_open: true },
        }
        if enclave.donated * BLOCK_SIZE < memory.size || job.id == 0 {
            return Ok(None);
        }
        enclave.state = EnclaveState::Created;
        Ok(Some((EnclaveStatus::Done, 0, 0)))
    }

    /// Adds the next part of a page; or the page, all of whose parts were given.
    fn add(
        &mut self,
        job: &mut Job,
        adding: Adding,
        (pages, parts): (u32, u32),
        outside: &dyn Outside,
    ) -> Result<Outcome, NotYet> {
        let slot = job.slot;
        let Adding { offset, count, rights, contents, measured } = adding;
        let Some(enclave) = self.table.get(slot) else { return Ok(Some((EnclaveStatus::Unknown, 0, 0))) };
        let page = offset + u64::from(pages) * PAGE_SIZE;
        let at = Ipa(enclave.memory.start.0 + page);
        let length = pages * PAGE_SIZE as u32;
        if parts == PARTS {
            return match self.tell(&Universal::Page { slot, offset: page, at, rights }, outside) {
                Err(NotCarriedOut::Later) => Err(NotYet),
                Err(_) => Ok(Some((self.fail(slot, EnclaveStatus::Mechanism), length, 0))),
                Ok(_) => {
                    if let Some(enclave) = self.table.get_mut(slot) {
                        enclave.note_page(page);
                    }
                    job.task = Task::Add { adding, pages: pages + 1, parts: 0 };
                    let is_last = pages + 1 == count;
                    Ok(is_last.then_some((EnclaveStatus::Done, length + PAGE_SIZE as u32, 0)))
                }
            };
        }
        let within = u64::from(parts) * PART as u64;
        let mut bytes = [0; PART];
        if let Contents::Copied(from) = contents {
            let from = from.0.checked_add(u64::from(length) + within).map(Ipa);
            match from.map_or(Err(Refusal::Address), |from| self.fetch(from, &mut bytes, outside)) {
                Ok(()) => {}
                Err(Refusal::Later) => return Err(NotYet),
                // A page that was begun is measured already.
                Err(Refusal::Address) if parts > 0 => {
                    return Ok(Some((self.fail(slot, EnclaveStatus::Address), length, 0)));
                }
                Err(Refusal::Address) => return Ok(Some((EnclaveStatus::Address, length, 0))),
            }
        }
        let at = Ipa(at.0 + within);
        let part = Universal::Part { slot, offset: page + within, at, rights, measured, bytes: &bytes };
        match self.tell(&part, outside) {
            Ok(_) => {}
            Err(NotCarriedOut::Later) => return Err(NotYet),
            Err(_) => return Ok(Some((self.fail(slot, EnclaveStatus::Mechanism), length, 0))),
        }
        if let Some(enclave) = self.table.get_mut(slot) {
            if parts == 0 {
                enclave.measuring.page(page, rights, measured);
            }
            if measured {
                enclave.measuring.contents(&bytes);
            }
        }
        job.task = Task::Add { adding, pages, parts: parts + 1 };
        Ok(None)
    }

    fn finalise(&mut self, slot: usize, expected: Ipa, outside: &dyn Outside) -> Result<Outcome, NotYet> {
        let mut bytes = [0; MEASUREMENT_SIZE];
        match self.fetch(expected, &mut bytes, outside) {
            Ok(()) => {}
            Err(Refusal::Later) => return Err(NotYet),
            Err(Refusal::Address) => return Ok(Some((EnclaveStatus::Address, 0, 0))),
        }
        let Some(enclave) = self.table.get_mut(slot) else { return Ok(Some((EnclaveStatus::Unknown, 0, 0))) };
        let measurement = enclave.measuring.clone().finish();
        enclave.measurement = measurement;
        if measurement != bytes {
            return Ok(Some((self.fail(slot, EnclaveStatus::Measurement), 0, 0)));
        }
        let told = self.tell(&Universal::Finalise { slot, measurement: &measurement }, outside);
        Ok(Some(match told {
            Err(NotCarriedOut::Later) => return Err(NotYet),
            Err(_) => (self.fail(slot, EnclaveStatus::Mechanism), 0, 0),
            Ok(_) => {
                self.set_state(slot, EnclaveState::Finalised);
                (EnclaveStatus::Done, 0, 0)
            }
        }))
    }

    fn run(&mut self, job: &mut Job, step: &Universal<'_>, outside: &dyn Outside) -> Result<Outcome, NotYet> {
        let slot = job.slot;
        match self.tell(step, outside) {
            Err(NotCarriedOut::Later) => Err(NotYet),
            Err(_) | Ok(Entered::Done) => Ok(Some((EnclaveStatus::Mechanism, 0, 0))),
            Ok(Entered::Left(leave)) => {
                let (state, status, value) = after(leave);
                self.set_state(slot, state);
                Ok(Some((status, 0, value)))
            }
            Ok(Entered::Runs) => {
                job.task = Task::Run;
                self.set_state(slot, EnclaveState::Running);
                self.running = Some(Running::Waits { slot, owner: job.owner });
                outside.request(Request::Run(job.owner));
                Ok(None)
            }
        }
    }

    pub(super) fn end_run(&mut self, slot: usize, leave: Leave) {
        let (state, status, value) = after(leave);
        self.set_state(slot, state);
        // Without a job the guest has reset the device meanwhile.
        if let Some(Job { cookie, id, .. }) = self.job.take()
            && !self.resetting
        {
            let status = status as i32;
            self.waiting = Some(EnclaveCompletion { cookie, status, value, enclave: id, length: 0 });
        }
    }

    /// The next step of an enclave's end; whether that was the last one.
    fn end(&mut self, slot: usize, outside: &dyn Outside) -> Result<bool, NotYet> {
        let Some(enclave) = self.table.get(slot) else { return Ok(true) };
        let is_closed = enclave.is_closed;
        let last = enclave.donated.checked_sub(1);
        let told = match last {
            _ if !is_closed => self.tell(&Universal::End { slot }, outside),
            Some(last) => self.tell(&Universal::Release { slot, block: enclave.block(last) }, outside),
            None => {
                self.table.remove(slot);
                return Ok(true);
            }
        };
        // A mechanism that cannot even end one has no more to say of it.
        if told == Err(NotCarriedOut::Later) {
            return Err(NotYet);
        }
        if let Some(enclave) = self.table.get_mut(slot) {
            enclave.is_closed = true;
            if is_closed {
                enclave.donated -= 1;
            }
        }
        Ok(false)
    }

    pub(super) fn step_of_reset(&mut self, outside: &dyn Outside) -> Progress {
        self.job = None;
        self.waiting = None;
        let Some(slot) = self.table.first() else {
            self.resetting = false;
            return Progress::Went;
        };
        match self.end(slot, outside) {
            Ok(_) => Progress::Went,
            Err(NotYet) => Progress::Later,
        }
    }

    /// Has a step translated, and the mechanism's commands carried out.
    fn tell(&mut self, step: &Universal<'_>, outside: &dyn Outside) -> Result<Entered, NotCarriedOut> {
        self.trace.note(&Traced::Translated(step));
        let mut entered = Entered::Done;
        for native in &self.backend.translate(step) {
            self.trace.note(&Traced::Native(native));
            entered = self.backend.carry_out(native, outside)?;
        }
        Ok(entered)
    }

    /// Nobody waits for the enclave that runs, or is to: it need not begin, or is to leave.
    pub(super) fn call_off(&mut self, outside: &dyn Outside) {
        match self.running {
            Some(Running::Waits { .. }) => self.running = None,
            // Whatever is said of that, `left` comes in its time.
            Some(Running::Taken { slot, by }) => drop(self.tell(&Universal::CallOff { slot, by }, outside)),
            None => {}
        }
    }

    fn set_state(&mut self, slot: usize, state: EnclaveState) {
        if let Some(enclave) = self.table.get_mut(slot) {
            enclave.state = state;
        }
    }

    fn fail(&mut self, slot: usize, status: EnclaveStatus) -> EnclaveStatus {
        self.set_state(slot, EnclaveState::Failed);
        status
    }

    /// Reads the guest's memory, of which an enclave's is no part, whatever the mechanism.
    pub(super) fn fetch(&self, from: Ipa, into: &mut [u8], outside: &dyn Outside) -> Result<(), Refusal> {
        self.is_the_guests(from, into.len())?;
        let memory = outside.memory();
        memory.read(from, into).map_err(|fault| Refusal::of(fault, memory))
    }

    pub(super) fn store(&self, to: Ipa, bytes: &[u8], outside: &dyn Outside) -> Result<(), Refusal> {
        self.is_the_guests(to, bytes.len())?;
        let memory = outside.memory();
        memory.write(to, bytes).map_err(|fault| Refusal::of(fault, memory))
    }

    fn is_the_guests(&self, start: Ipa, length: usize) -> Result<(), Refusal> {
        let range = Range { start, size: length as u64 };
        if self.table.has_donated(range) { Err(Refusal::Address) } else { Ok(()) }
    }
}
