//! What a guest's device can reach: memory, time, the console's buffers, the GIC model, the log.
//!
//! It is made for one call of one device, limits the device's accesses to the guest's memory, and afterwards says what
//! the caller has to do without the device's lock: vCPUs to interrupt, work to continue.

use core::cell::Cell;
use core::ptr;

use clock::GuestTicks;
use devices::memory::{Isolation, NotIsolated};
use devices::{Moment, Outside, Request, Stream};
use log::Level;
use machine::{DeviceKind, Row};
use units::{IntId, Ipa, Line, VcpuId, VcpuSet};
use virtio::net::{Between, Frame, Side};
use virtio::{Fault, GuestMemory, VirtioKind};

use crate::sched::{self, Thread};
use crate::vm::Vm;
use crate::vm::devices::Wait;
use crate::vm::guest_memory::{GuestRam, RamError};
use crate::vm::handle::{VcpuHandle, request};
use crate::vm::watchdog;

/// What a device may do to the guest's memory under its lock, in instructions, about: whoever comes before the guest waits for
/// little more than that. A page goes to the console in two such shares.
const SHARE: u32 = 8_000;
/// What an access costs by which something is read, with the device's own work around it: a descriptor is read and checked.
const READING: u32 = 150;
/// One by which something is stored: the tables are looked at whether the guest executes it.
const STORING: u32 = 500;
/// A byte: it is copied up to three times, and some are random.
const BYTE: u32 = 2;
/// A byte for an enclave: it is measured, too (the bench's row `enclave-page`, by 4,096).
const MEASURING: u32 = 42;
/// So many bytes of a disk or a frame are as much as one instruction: they are only copied, 64 by thirteen.
const BYTES_OF_A_DISK: u32 = 4;
/// What a frame that arrives may cost for each of its bytes, beside a usual share: buffers may be small.
const ARRIVING: u32 = 2;
/// A byte that is read for a checksum: it is copied, and added up eight at a time.
const SUMMING: u32 = 1;
/// A page that the guest may not execute any more.
const TAKING: u32 = 1_000;
/// A block that becomes pages for that: a table is written.
const SPLITTING: u32 = 6_000;

/// The surroundings of a device of one VM.
pub(crate) struct Surroundings<'a> {
    vm: &'a Vm,
    memory: Memory<'a>,
    concerned: Cell<VcpuSet>,
    is_unfinished: Cell<bool>,
    is_in_vain: Cell<bool>,
    moves_timer: Cell<bool>,
}

impl<'a> Surroundings<'a> {
    /// Those of the device of `vm` in `slot`.
    #[must_use]
    pub(crate) fn of(vm: &'a Vm, slot: usize) -> Self {
        Self::with_share(vm, slot, SHARE)
    }

    /// Those of one that only looks whether there is something to do in the guest's memory.
    #[must_use]
    pub(crate) fn of_a_look(vm: &'a Vm, slot: usize) -> Self {
        Self::with_share(vm, slot, 0)
    }

    /// Those of one that takes in this frame, which another guest sends and pays for: so much may its buffers cost that one. What the sender
    /// makes expensive is added: its pieces, and a checksum that is open.
    #[must_use]
    pub(crate) fn of_an_arrival(vm: &'a Vm, slot: usize, frame: &Frame<'_>) -> Self {
        let pieces = if frame.is_open() { 2 * frame.pieces() } else { frame.pieces() };
        let bytes = frame.length().saturating_mul(if frame.is_open() { ARRIVING + 2 * SUMMING } else { ARRIVING });
        Self::with_share(vm, slot, SHARE.saturating_add(bytes).saturating_add(pieces.saturating_mul(STORING)))
    }

    /// The memory, and what of the VM at `sender` goes there in one copy.
    pub(crate) fn way_from(&'a self, sender: &'a Vm) -> (&'a dyn GuestMemory, Way<'a>) {
        (&self.memory, Way { sender, memory: &self.memory })
    }

    fn with_share(vm: &'a Vm, slot: usize, share: u32) -> Self {
        Self {
            vm,
            memory: Memory {
                vm,
                slot: Cell::new(slot),
                left: Cell::new(share),
                spent: Cell::new(0),
                is_refused: Cell::new(false),
                wants: Cell::new(None),
            },
            concerned: Cell::new(VcpuSet::EMPTY),
            is_unfinished: Cell::new(false),
            is_in_vain: Cell::new(false),
            moves_timer: Cell::new(false),
        }
    }

    /// The same become those of the next device, in `slot`.
    pub(crate) fn pass_on_to(&self, slot: usize) {
        self.memory.slot.set(slot);
    }

    /// Whether it is this vCPU that calls.
    fn is_callers(&self, vcpu: VcpuId) -> bool {
        self.vm.vcpus().get(vcpu.index()).is_some_and(|vcpu| is_on(sched::current(), vcpu))
    }

    /// What it has cost so far, in instructions, about.
    #[must_use]
    pub(crate) fn spent(&self) -> u32 {
        self.memory.spent.get()
    }

    /// The vCPUs for which interrupt lines have changed: they are to choose their list registers anew.
    #[must_use]
    pub(crate) fn concerned(&self) -> VcpuSet {
        self.concerned.get()
    }

    /// Whether the guest looked at something that it has to wait for.
    #[must_use]
    pub(crate) fn is_in_vain(&self) -> bool {
        self.is_in_vain.get()
    }

    /// Whether a memory-mapped timer has another deadline: a vCPU has to see to it that it is looked at then.
    #[must_use]
    pub(crate) fn moves_timer(&self) -> bool {
        self.moves_timer.get()
    }

    /// What the device's unfinished work waits for, if there is any; whoever asks has to see to it that it is gone on with.
    #[must_use]
    pub(crate) fn wait(&self) -> Option<Wait> {
        self.is_unfinished.get().then(|| self.memory.wants.get().unwrap_or(Wait::Turn))
    }
}

/// Whether `thread` is that of `vcpu`.
fn is_on(thread: &'static Thread, vcpu: &VcpuHandle) -> bool {
    vcpu.made_thread().is_some_and(|own| ptr::eq(own, thread))
}

impl Outside for Surroundings<'_> {
    fn seconds(&self) -> u64 {
        self.vm.seconds()
    }

    fn count(&self) -> u64 {
        self.vm.count()
    }

    fn moment(&self) -> Moment {
        self.vm.moment()
    }

    fn show(&self, index: usize, word: u64) {
        self.vm.show_clock(self.memory.slot.get(), index, word);
    }

    fn caller(&self) -> Option<VcpuId> {
        let thread = sched::current();
        self.vm.vcpus().iter().find(|vcpu| is_on(thread, vcpu)).map(|vcpu| vcpu.id)
    }

    fn memory(&self) -> &dyn GuestMemory {
        &self.memory
    }

    fn has_room(&self, stream: Stream) -> bool {
        match stream {
            Stream::Uart => self.vm.console.uart.lock().room() > 0,
            Stream::Virtio => self.vm.console.virtio.lock().room() > 0,
        }
    }

    fn send_byte(&self, stream: Stream, byte: u8) -> bool {
        match stream {
            Stream::Uart => self.vm.console.push_uart(byte),
            Stream::Virtio => {
                self.vm.console.push_virtio(&[byte]);
                self.has_room(stream)
            }
        }
    }

    fn send(&self, stream: Stream, bytes: &[u8]) -> usize {
        match stream {
            Stream::Uart => {
                let room = self.vm.console.uart.lock().room().min(bytes.len());
                bytes.iter().take(room).for_each(|&byte| {
                    self.vm.console.push_uart(byte);
                });
                room
            }
            Stream::Virtio => self.vm.console.push_virtio(bytes),
        }
    }

    fn set_line(&self, interrupt: IntId, line: Line) {
        let concerned = self.vm.gic.lock().set_spi_level(interrupt, line);
        self.concerned.set(self.concerned.get().union(concerned));
    }

    fn request(&self, request: Request<'_>) {
        match request {
            Request::Poll => self.vm.console.ask_for_service(),
            Request::GoOn => self.is_unfinished.set(true),
            Request::Yield => self.is_in_vain.set(true),
            Request::AlarmAt(seconds) => self.vm.ring_at(seconds),
            Request::DeadlineAt(count) => {
                // Never, while the guest's clock stands still: it is asked for again when that goes on.
                if let Some(at) = self.vm.when(GuestTicks(count)) {
                    watchdog::watch(self.vm.id, &self.vm.doors.watchdogs, at);
                }
            }
            Request::TimerAt(count) => {
                self.moves_timer.set(true);
                self.vm.set_timer(self.memory.slot.get(), count.and_then(|count| self.vm.when(GuestTicks(count))));
            }
            // Another's goes on with the devices' work when it is asked to, and finds the same request.
            Request::Run(Some(vcpu)) if !self.is_callers(vcpu) => self.vm.ask(vcpu, request::DEVICES),
            Request::Run(_) => {
                self.memory.wants.set(Some(Wait::Enclave));
                self.is_unfinished.set(true);
            }
            Request::Report(text) => self.vm.report(Level::Warn, text),
        }
    }
}

/// A VM's memory as devices see it: what the guest sees already, and only as much as a share allows.
struct Memory<'a> {
    vm: &'a Vm,
    /// Whose accesses they are, by the device's number on the bus.
    slot: Cell<usize>,
    /// What is left of the share.
    left: Cell<u32>,
    /// What was taken of it, and more than it if the last access cost that.
    spent: Cell<u32>,
    /// The last access was refused for now only.
    is_refused: Cell<bool>,
    /// What the work waits for, if it is not another turn.
    wants: Cell<Option<Wait>>,
}

impl Memory<'_> {
    /// Makes an access of this cost, if anything is left of the share; the last one may take more than that.
    fn access<T>(
        &self,
        at: Ipa,
        cost: u32,
        access: impl FnOnce(&mut GuestRam) -> Result<T, RamError>,
    ) -> Result<T, Fault> {
        if self.left.get() == 0 {
            self.is_refused.set(true);
            return Err(Fault(at));
        }
        self.access_anyway(at, cost, access)
    }

    fn access_anyway<T>(
        &self,
        at: Ipa,
        cost: u32,
        access: impl FnOnce(&mut GuestRam) -> Result<T, RamError>,
    ) -> Result<T, Fault> {
        self.spend(cost);
        let result = access(&mut self.vm.ram.lock());
        self.is_refused.set(false);
        if let Err(RamError::NotReady(missing)) = result {
            self.is_refused.set(true);
            self.wants.set(Some(Wait::Memory(missing)));
        }
        result.map_err(|_| Fault(at))
    }

    /// What copying costs.
    fn copying(&self, bytes: &[u8]) -> u32 {
        let is_a_disk = |row: &Row| matches!(row.device, DeviceKind::Virtio(VirtioKind::Block | VirtioKind::Net));
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if self.vm.plan.rows().get(self.slot.get()).is_some_and(is_a_disk) {
            length / BYTES_OF_A_DISK
        } else {
            length.saturating_mul(BYTE)
        }
    }

    fn spend(&self, cost: u32) {
        self.left.set(self.left.get().saturating_sub(cost));
        self.spent.set(self.spent.get().saturating_add(cost));
    }

    /// Stores something, and counts what that does to what the guest may execute.
    fn store(
        &self,
        ram: &mut GuestRam,
        store: impl FnOnce(&mut GuestRam) -> Result<(), RamError>,
    ) -> Result<(), RamError> {
        let before = ram.code().done;
        let result = store(ram);
        let after = ram.code().done;
        let (taken, splits) = (after.taken.wrapping_sub(before.taken), after.splits.wrapping_sub(before.splits));
        if taken | splits != 0 {
            let times = |count: u64, cost: u32| u32::try_from(count).unwrap_or(u32::MAX).saturating_mul(cost);
            self.spend(times(taken, TAKING).saturating_add(times(splits, SPLITTING)));
        }
        result
    }
}

impl GuestMemory for Memory<'_> {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        self.access(from, READING.saturating_add(self.copying(into)), |ram| ram.read(from, into))
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        let cost = STORING.saturating_add(self.copying(bytes));
        self.access(to, cost, |ram| self.store(ram, |ram| ram.write(to, bytes)))
    }

    /// Counted, but never refused for what it costs: there are a few around each buffer, which is nothing without the accesses
    /// that are refused. So a driver can be told at any time of what is done, and it can be looked whether there is more to do.
    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        self.access_anyway(at, READING, |ram| ram.load_index(at))
    }

    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault> {
        self.access(at, STORING, |ram| self.store(ram, |ram| ram.store_index(at, value)))
    }

    fn make_ready(&self, at: Ipa) -> Result<(), Fault> {
        self.access(at, READING, |ram| ram.is_writable(at))
    }

    fn read_annex(&self, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.access(Ipa(at), READING.saturating_add(self.copying(into)), |ram| ram.read_annex(at, into))
    }

    fn write_annex(&self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        let cost = READING.saturating_add(self.copying(bytes));
        self.access_anyway(Ipa(at), cost, |ram| ram.write_annex(at, bytes))
    }

    fn isolate(&self, what: &Isolation<'_>) -> Result<(), NotIsolated> {
        let cost = match what {
            // Under the device's lock, so the enclave is still with the vCPU that took it, or that one is about to bring it back. Anything
            // that is asked of it ends the run, also one that it has not begun.
            &Isolation::CallOff { by } => {
                self.vm.ask(by, request::INTERRUPTS);
                return Ok(());
            }
            // It is measured beside.
            Isolation::Store { bytes, .. } => {
                MEASURING.saturating_mul(u32::try_from(bytes.0.len()).unwrap_or(u32::MAX))
            }
            Isolation::Show { .. } | Isolation::Enter { .. } => STORING,
            Isolation::Open { .. } | Isolation::Take { .. } | Isolation::Close { .. } | Isolation::Return { .. } => {
                SPLITTING
            }
        };
        // A part of a page is more than a share: it does not come behind other work that has taken half of one. What is read for it has not.
        if cost > self.left.get() && self.left.get() < SHARE / 2 {
            self.is_refused.set(true);
            return Err(NotIsolated::Memory);
        }
        let mut why = NotIsolated::Memory;
        let isolate = |ram: &mut GuestRam| {
            ram.isolate(what).inspect_err(|error| {
                if error.is_the_hosts() {
                    why = NotIsolated::Host;
                }
            })
        };
        self.access(Ipa(0), cost, isolate).map_err(|_| why)
    }

    fn is_refused_for_now(&self) -> bool {
        self.is_refused.get()
    }
}

/// From one VM's memory to another's, or its own.
pub(crate) struct Way<'a> {
    sender: &'a Vm,
    memory: &'a Memory<'a>,
}

impl Way<'_> {
    /// Copies a part of it, and says how much; `None` if the sender's memory refuses.
    fn part(&self, from: Ipa, to: Ipa, length: usize) -> Result<Option<usize>, Fault> {
        let cost = STORING + length as u32 / BYTES_OF_A_DISK;
        let memory = self.memory;
        if self.sender.id == memory.vm.id {
            return memory.access(to, cost, |ram| match ram.source(from, length) {
                Ok((at, length)) => memory.store(ram, |ram| ram.take_over(at, to, length)).map(|()| Some(length)),
                Err(_) => Ok(None),
            });
        }
        // Where a frame is found it stays while the lock is held. Two guests that send to each other want the same two locks, and take
        // them in the order of their numbers.
        let copy = |own: &GuestRam, ram: &mut GuestRam| match own.source(from, length) {
            Ok((at, length)) => memory.store(ram, |ram| ram.take_over(at, to, length)).map(|()| Some(length)),
            Err(_) => Ok(None),
        };
        if self.sender.id.0 < memory.vm.id.0 {
            let own = self.sender.ram.lock();
            memory.access(to, cost, |ram| copy(&own, ram))
        } else {
            memory.access(to, cost, |ram| copy(&self.sender.ram.lock(), ram))
        }
    }
}

impl Between for Way<'_> {
    fn copy(&self, from: Ipa, to: Ipa, length: usize) -> Result<(), Side> {
        let mut done = 0;
        while done < length {
            let [from, to] = [from, to].map(|at| at.checked_add(done as u64));
            let from = from.ok_or(Side::Sender(Fault(Ipa(u64::MAX))))?;
            let to = to.ok_or(Side::Receiver(Fault(Ipa(u64::MAX))))?;
            match self.part(from, to, length - done).map_err(Side::Receiver)? {
                Some(part) => done += part,
                None => return Err(Side::Sender(Fault(from))),
            }
        }
        Ok(())
    }

    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Side> {
        let (memory, length) = (self.memory, into.len());
        if memory.left.get() == 0 {
            memory.is_refused.set(true);
            return Err(Side::Receiver(Fault(from)));
        }
        memory.spend(READING.saturating_add((length as u32).saturating_mul(SUMMING)));
        // What lies together alone is found at once: at the border of a block, of RAM, or of a piece that is still to come the next byte may be
        // refused, and that is the place which has to be made ready.
        let ram = self.sender.ram.lock();
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = from.checked_add(done as u64).ok_or(Side::Sender(Fault(Ipa(u64::MAX))))?;
            let part = ram.source(at, rest.len()).and_then(|(_, part)| {
                let rest = rest.get_mut(..part).unwrap_or(&mut []);
                ram.read(at, rest).map(|()| part)
            });
            done += part.map_err(|_| Side::Sender(Fault(at)))?;
        }
        Ok(())
    }

    fn is_used_up(&self) -> bool {
        self.memory.left.get() == 0 && self.memory.wants.get().is_none()
    }
}
