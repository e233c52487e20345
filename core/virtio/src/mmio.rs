//! The MMIO transport, version 2 (section 4.2): one window of registers for one device.
//!
//! [`Mmio`] wraps a [`Device`] and does everything that is the same for all kinds: feature negotiation, the status
//! machine of section 3.1, setting up queues, the two interrupt causes, and stopping a device whose driver broke
//! the rules. Registers take aligned 32-bit accesses only, as section 4.2.2.2 demands of drivers; the configuration space,
//! from 0x100 on, takes any size.
//!
//! Setting a queue up doesn't look at guest memory; it only checks what the rings' arithmetic relies on. That the rings lie in
//! the guest's memory shows at each access.

use alloc::vec::Vec;
use core::fmt;

use devices::saved::Unfit;
use devices::{Access, AccessSize, Change, Outside, Request};
use pack::{Damaged, Reader, Writer};
use units::Ipa;

pub use early::Early;

use crate::device::{Device, Progress};
use crate::memory::GuestMemory;
use crate::queue::{Queue, QueueError};
use crate::saved::SavedMmio;

/// Bytes from one device's window to the next on QEMU's `virt` machine, whose map our guests have.
pub const WINDOW_SIZE: u64 = 0x200;
/// And how many windows there are, with a device behind them or without.
pub const TRANSPORTS: usize = 32;

/// Register offsets (section 4.2.2).
mod register {
    pub(super) const MAGIC_VALUE: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// "virt" in the bytes' order.
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// The transport's version; 1 is the legacy one.
const VERSION: u32 = 2;
/// "UCft", for Undercroft: nobody assigns these.
const VENDOR: u32 = u32::from_le_bytes(*b"UCft");

/// All windows without a device, in one frame: each has the device ID 0, which drivers are to leave alone (section
/// 4.2.3.1.1). There are drivers that look into all of the machine's windows, and end at the first abort.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vacant;

impl Vacant {
    /// What the guest reads at `offset` of all windows together.
    #[must_use]
    pub fn register(self, offset: u64, size: AccessSize) -> u64 {
        let value = match (offset % WINDOW_SIZE, size) {
            (register::MAGIC_VALUE, AccessSize::Word) => MAGIC,
            (register::VERSION, AccessSize::Word) => VERSION,
            (register::VENDOR_ID, AccessSize::Word) => VENDOR,
            _ => 0,
        };
        value.into()
    }
}

impl devices::Device for Vacant {
    fn read(&mut self, access: &Access, _outside: &dyn Outside) -> u64 {
        self.register(access.offset, access.size)
    }

    fn write(&mut self, _access: &Access, _value: u64, _outside: &dyn Outside) {}

    fn lines(&self) -> u32 {
        0
    }

    fn poll(&mut self, _outside: &dyn Outside) {}

    fn change(&mut self, _change: Change, _outside: &dyn Outside) {}

    /// It has none.
    fn save_to(&self, _out: &mut Writer) {}

    fn restore_from(&mut self, _from: &mut Reader<'_>) -> Result<(), Damaged> {
        Ok(())
    }
}

/// Device status bits (section 2.1).
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;
const STATUS_NEEDS_RESET: u32 = 64;
/// ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK and FAILED: what a driver may set.
const STATUS_BY_DRIVER: u32 = 1 | 2 | STATUS_DRIVER_OK | STATUS_FEATURES_OK | 128;

/// Causes of the interrupt (InterruptStatus).
const INTERRUPT_USED: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX and VIRTIO_F_VERSION_1.
const FEATURE_INDIRECT: u64 = 1 << 28;
const FEATURE_EVENT_INDEX: u64 = 1 << 29;
const FEATURE_VERSION_1: u64 = 1 << 32;
const TRANSPORT_FEATURES: u64 = FEATURE_INDIRECT | FEATURE_EVENT_INDEX | FEATURE_VERSION_1;

/// What the owner of a transport has to do after a register write. The interrupt line may have changed too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// Call [`Mmio::process`] for this queue, soon.
    Notify(u16),
    /// The driver is ready: call [`Mmio::poll`], in case the device has something for it.
    Started,
    /// The driver has reset the device.
    Reset,
    /// The driver set queue number so-and-so up wrongly, and the device stopped.
    Broken(QueueError),
    /// The driver waits in vain, and this is why. Said once in each life of the device.
    InVain(Early),
}

/// A device behind MMIO registers.
#[derive(Debug)]
pub struct Mmio<D> {
    device: D,
    queues: Vec<Queue>,
    status: u32,
    interrupt_status: u32,
    generation: u32,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    driver_features: u64,
    /// A notification that comes to nothing was reported since the last reset. It is no part of what is saved: at worst it is
    /// reported once more.
    in_vain: bool,
}

impl<D: Device> Mmio<D> {
    /// Puts `device` behind registers.
    #[must_use]
    pub fn new(device: D) -> Self {
        let queues = device.queue_sizes().iter().map(|&size| Queue::new(size)).collect();
        Self {
            device,
            queues,
            status: 0,
            interrupt_status: 0,
            generation: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            driver_features: 0,
            in_vain: false,
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, to exchange data with the outside. If its configuration changes, call
    /// [`config_changed`](Self::config_changed).
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The level of the interrupt.
    #[must_use]
    pub fn line(&self) -> bool {
        self.interrupt_status != 0
    }

    /// Whether the driver runs the device: it has set DRIVER_OK, and nothing has gone wrong since.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
    }

    /// Tells the driver that the configuration space has changed.
    pub fn config_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.status & STATUS_DRIVER_OK != 0 {
            self.interrupt_status |= INTERRUPT_CONFIG;
        }
    }

    /// Back to the state after creation, as when the driver writes 0 to Status.
    pub fn reset(&mut self) {
        self.status = 0;
        self.interrupt_status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.driver_features = 0;
        self.in_vain = false;
        for queue in &mut self.queues {
            queue.reset();
        }
        self.device.reset();
    }

    /// The guest reads `size` bytes at `offset` of the window.
    #[must_use]
    pub fn read(&self, offset: u64, size: AccessSize) -> u64 {
        if offset >= register::CONFIG {
            return self.read_config(offset - register::CONFIG, size);
        }
        if size != AccessSize::Word {
            return 0;
        }
        let queue = self.selected_queue();
        let value = match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.device.kind().device_id(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(self.offered_features(), self.device_features_select),
            register::QUEUE_SIZE_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => queue.map_or(0, |queue| queue.is_ready().into()),
            register::INTERRUPT_STATUS => self.interrupt_status,
            register::STATUS => self.status,
            register::CONFIG_GENERATION => self.generation,
            // No shared memory regions: a length and a base of all ones say so (section 4.2.2).
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        };
        value.into()
    }

    /// The guest writes `size` bytes at `offset` of the window.
    pub fn write(&mut self, offset: u64, size: AccessSize, value: u64) -> Effect {
        if offset >= register::CONFIG {
            let bytes = value.to_le_bytes();
            self.device.config_write(offset - register::CONFIG, bytes.get(..size.bytes()).unwrap_or(&[]));
            return Effect::None;
        }
        if size != AccessSize::Word {
            return Effect::None;
        }
        let value = (value & AccessSize::Word.mask()) as u32;
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_select = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_select = value,
            register::DRIVER_FEATURES => self.write_driver_features(value),
            register::QUEUE_SEL => self.queue_select = value,
            register::QUEUE_READY => return self.write_queue_ready(value),
            register::QUEUE_NOTIFY => return self.notify(value),
            register::INTERRUPT_ACK => self.interrupt_status &= !value,
            register::STATUS => return self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
        Effect::None
    }

    /// Lets the device work on one queue, a bounded amount. Call it after [`Effect::Notify`] and as [`Progress`] says. Where the
    /// memory refuses for now, there is [`Progress::More`] to do, and the next call goes on where this one stopped.
    ///
    /// # Errors
    /// If the driver broke the queue. The device has then already been stopped, and its interrupt raised; the error is
    /// for the log.
    pub fn process<M: GuestMemory>(&mut self, queue: u16, memory: &M) -> Result<Progress, QueueError> {
        let index = usize::from(queue);
        if !self.is_live() || !self.queues.get(index).is_some_and(Queue::is_ready) {
            return Ok(Progress::Idle);
        }
        let refused = |outcome: &Result<Progress, QueueError>| {
            matches!(outcome, Err(QueueError::Fault(_))) && memory.is_refused_for_now()
        };
        let mut outcome = self.device.process(index, &mut self.queues, memory);
        if refused(&outcome) {
            outcome = Ok(Progress::More);
        }
        // The driver is told now of what was done, however much is left to do.
        let outcome = outcome.and_then(|progress| {
            for queue in &mut self.queues {
                if queue.take_interrupt(memory)? {
                    self.interrupt_status |= INTERRUPT_USED;
                }
            }
            Ok(progress)
        });
        if refused(&outcome) { Ok(Progress::More) } else { outcome.inspect_err(|_| self.stop()) }
    }

    /// Lets the device work on all its queues, for when something has happened outside.
    ///
    /// # Errors
    /// As [`process`](Self::process).
    pub fn poll<M: GuestMemory>(&mut self, memory: &M) -> Result<Progress, QueueError> {
        let mut progress = Progress::Idle;
        for queue in 0..self.queues.len() as u16 {
            progress = progress.and(self.process(queue, memory)?);
        }
        Ok(progress)
    }

    /// Lets `work` put something that came from outside into buffers of one queue, and looks after the interrupt; `None` if the driver does not
    /// run the device. Where the memory refuses for now, `work` has left the queue as it was.
    ///
    /// # Errors
    /// If the driver broke the queue. The device has then already been stopped; the error is for the log.
    pub fn take_in<M: GuestMemory, R>(
        &mut self,
        queue: usize,
        memory: &M,
        work: impl FnOnce(&mut D, &mut Queue) -> Result<R, QueueError>,
    ) -> Option<Result<R, QueueError>> {
        if !self.is_live() {
            return None;
        }
        let queue = self.queues.get_mut(queue)?;
        let outcome = work(&mut self.device, queue).and_then(|result| {
            match queue.take_interrupt(memory) {
                Ok(true) => self.interrupt_status |= INTERRUPT_USED,
                // If it is refused for now, it is looked at when the device next works.
                Ok(false) => {}
                Err(_) if memory.is_refused_for_now() => {}
                Err(error) => return Err(error),
            }
            Ok(result)
        });
        if outcome.is_err() {
            self.stop();
        }
        Some(outcome)
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn selected_queue(&self) -> Option<&Queue> {
        self.queues.get(self.queue_select as usize)
    }

    /// The device can't go on: section 2.1.2, DEVICE_NEEDS_RESET.
    fn stop(&mut self) {
        if self.status & STATUS_NEEDS_RESET == 0 {
            self.status |= STATUS_NEEDS_RESET;
            self.config_changed();
        }
    }

    fn read_config(&self, offset: u64, size: AccessSize) -> u64 {
        let mut bytes = [0; 8];
        let config = usize::try_from(offset).ok().and_then(|offset| self.device.config().get(offset..));
        for (byte, &source) in bytes.iter_mut().zip(config.unwrap_or(&[])).take(size.bytes()) {
            *byte = source;
        }
        u64::from_le_bytes(bytes)
    }

    fn write_driver_features(&mut self, value: u32) {
        // What was agreed on stays agreed on.
        if self.status & STATUS_FEATURES_OK == 0 {
            set_half(&mut self.driver_features, self.driver_features_select, value);
        }
    }

    fn write_status(&mut self, value: u32) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Reset;
        }
        // A driver sets bits; only a reset clears them.
        let mut status = self.status | value & STATUS_BY_DRIVER;
        let acceptable =
            self.driver_features & !self.offered_features() == 0 && self.driver_features & FEATURE_VERSION_1 != 0;
        if self.status & STATUS_FEATURES_OK == 0 && !acceptable {
            status &= !STATUS_FEATURES_OK;
        }
        if status & STATUS_FEATURES_OK == 0 {
            status &= !STATUS_DRIVER_OK;
        }
        let started = status & !self.status & STATUS_DRIVER_OK != 0;
        let agreed = status & !self.status & STATUS_FEATURES_OK != 0;
        self.status = status;
        if agreed {
            // A queue that was set up before has those that were agreed on too.
            let (event_index, indirect) = self.ring_features();
            self.queues.iter_mut().for_each(|queue| queue.set_features(event_index, indirect));
        }
        if !started {
            return Effect::None;
        }
        self.device.activate(self.driver_features);
        if self.is_live() { Effect::Started } else { Effect::None }
    }

    /// Whether the driver has accepted event indices, and indirect descriptors.
    fn ring_features(&self) -> (bool, bool) {
        (self.driver_features & FEATURE_EVENT_INDEX != 0, self.driver_features & FEATURE_INDIRECT != 0)
    }

    /// A driver has to set FEATURES_OK before it sets its queues up (section 3.1.1), but the device need not insist: drivers
    /// that do it the other way round work with QEMU's devices, and LK's is one. Nothing looks at a queue before DRIVER_OK.
    fn write_queue_ready(&mut self, value: u32) -> Effect {
        let select = self.queue_select;
        let (event_index, indirect) = self.ring_features();
        let Some(queue) = self.queues.get_mut(select as usize) else { return Effect::None };
        if value & 1 == 0 {
            queue.make_unready();
            // The buffer that the device held is the driver's again (section 4.2.2.1, QueueReady). If the device kept it, it would
            // read from where the driver has something else by now, and return it to a ring that never had it.
            self.device.let_go(select as usize);
            return Effect::None;
        }
        if queue.is_ready() {
            return Effect::None;
        }
        queue.set_features(event_index, indirect);
        if queue.make_ready() {
            return Effect::None;
        }
        queue.make_unready();
        self.stop();
        Effect::Broken(QueueError::InvalidSetup(select as u16))
    }

    fn write_queue_register(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else { return };
        if queue.is_ready() {
            return;
        }
        let address = |mut address: Ipa, select| {
            set_half(&mut address.0, select, value);
            address
        };
        match offset {
            // A size that does not fit 16 bits is as wrong as 0, which `make_ready` refuses.
            register::QUEUE_SIZE => queue.state.size = u16::try_from(value).unwrap_or(0),
            register::QUEUE_DESC_LOW => queue.state.descriptors = address(queue.state.descriptors, 0),
            register::QUEUE_DESC_HIGH => queue.state.descriptors = address(queue.state.descriptors, 1),
            register::QUEUE_DRIVER_LOW => queue.state.available = address(queue.state.available, 0),
            register::QUEUE_DRIVER_HIGH => queue.state.available = address(queue.state.available, 1),
            register::QUEUE_DEVICE_LOW => queue.state.used = address(queue.state.used, 0),
            register::QUEUE_DEVICE_HIGH => queue.state.used = address(queue.state.used, 1),
            _ => {}
        }
    }

    fn notify(&mut self, value: u32) -> Effect {
        let status = self.status;
        let queue = self.queues.get(value as usize);
        let early = if status & STATUS_NEEDS_RESET != 0 {
            // What stopped the device was reported then.
            return Effect::None;
        } else if status & STATUS_FEATURES_OK == 0 {
            Early::Features { queue: value, status }
        } else if status & STATUS_DRIVER_OK == 0 {
            Early::Driver { queue: value, status }
        } else if queue.is_some_and(Queue::is_ready) {
            return Effect::Notify(value as u16);
        } else {
            Early::Queue { queue: value, exists: queue.is_some() }
        };
        if core::mem::replace(&mut self.in_vain, true) { Effect::None } else { Effect::InVain(early) }
    }
}

impl<D: Device> Mmio<D> {
    /// Takes the state out.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn save(&self) -> Result<SavedMmio<D::Saved>, Damaged> {
        let Self {
            device,
            queues,
            status,
            interrupt_status,
            generation,
            device_features_select,
            driver_features_select,
            queue_select,
            driver_features,
            in_vain: _,
        } = self;
        let mut all = Vec::new();
        all.try_reserve_exact(queues.len()).map_err(|_| Damaged::NoMemory)?;
        all.extend(queues.iter().map(Queue::save));
        Ok(SavedMmio {
            device: device.save()?,
            queues: all,
            status: *status,
            interrupt_status: *interrupt_status,
            generation: *generation,
            device_features_select: *device_features_select,
            driver_features_select: *driver_features_select,
            queue_select: *queue_select,
            driver_features: *driver_features,
        })
    }

    /// Puts a state in. It takes no memory.
    ///
    /// # Errors
    /// If no driver can bring such a device into it; nothing has changed then.
    pub fn restore(&mut self, saved: &SavedMmio<D::Saved>) -> Result<(), Unfit> {
        let SavedMmio {
            device,
            queues,
            status,
            interrupt_status,
            generation,
            device_features_select,
            driver_features_select,
            queue_select,
            driver_features,
        } = saved;
        if status & !(STATUS_BY_DRIVER | STATUS_NEEDS_RESET) != 0
            || interrupt_status & !(INTERRUPT_USED | INTERRUPT_CONFIG) != 0
        {
            return Err(Unfit("a register of a virtio transport has bits that do not exist"));
        }
        if status & STATUS_FEATURES_OK != 0 && driver_features & !self.offered_features() != 0 {
            return Err(Unfit("the driver of a virtio device has accepted features that this one does not have"));
        }
        if queues.len() != self.queues.len() {
            return Err(Unfit("a virtio device has another number of queues"));
        }
        let mut restored =
            self.queues.iter().zip(queues).map(|(queue, saved)| Queue::restored(queue.max_size(), saved));
        restored.try_for_each(|queue| queue.map(drop))?;
        self.device.restore(device)?;
        for (queue, saved) in self.queues.iter_mut().zip(queues) {
            *queue = Queue::restored(queue.max_size(), saved)?;
        }
        self.status = *status;
        self.interrupt_status = *interrupt_status;
        self.generation = *generation;
        self.device_features_select = *device_features_select;
        self.driver_features_select = *driver_features_select;
        self.queue_select = *queue_select;
        self.driver_features = *driver_features;
        self.in_vain = false;
        if self.device.has_another_config(device) {
            self.config_changed();
        }
        Ok(())
    }

    /// Lets `work` run on the device, moves bytes, and asks for what is left to be done. Returns how many bytes still wait to
    /// get out.
    fn work<M>(&mut self, outside: &dyn Outside, memory: &M, work: Work) -> usize
    where
        M: GuestMemory,
    {
        let outcome = match work {
            Work::Queue(queue) => self.process(queue, memory),
            Work::All => Self::poll(self, memory),
        };
        match outcome {
            Ok(Progress::More) => outside.request(Request::GoOn),
            Ok(Progress::Idle | Progress::Blocked) => {}
            Err(error) => self.report(error, outside),
        }
        self.device.exchange(outside)
    }

    fn report(&self, error: impl fmt::Display, outside: &dyn Outside) {
        outside.request(Request::Report(format_args!("{}: {error}", self.device.kind().name())));
    }
}

/// On which of its queues a device works.
enum Work {
    Queue(u16),
    All,
}

impl<D: Device + Send> devices::Device for Mmio<D> {
    fn read(&mut self, access: &Access, _outside: &dyn Outside) -> u64 {
        Self::read(self, access.offset, access.size)
    }

    fn write(&mut self, access: &Access, value: u64, outside: &dyn Outside) {
        let work = match Self::write(self, access.offset, access.size, value) {
            Effect::None | Effect::Reset => return,
            Effect::Broken(error) => return self.report(error, outside),
            Effect::InVain(early) => return self.report(early, outside),
            Effect::Notify(queue) => Work::Queue(queue),
            Effect::Started => Work::All,
        };
        if self.work(outside, &outside.memory(), work) > 0 {
            outside.request(Request::Poll);
        }
    }

    fn lines(&self) -> u32 {
        self.line().into()
    }

    /// Not asked for again where bytes still wait: whoever takes them polls.
    fn poll(&mut self, outside: &dyn Outside) {
        self.device.exchange(outside);
        if self.is_live() {
            self.work(outside, &outside.memory(), Work::All);
        }
    }

    fn change(&mut self, change: Change, _outside: &dyn Outside) {
        match change {
            // A machine that is off has no driver, and no memory for its queues. Bytes that the device has taken stay.
            Change::Reset | Change::PowerOff => self.reset(),
            Change::Forget => self.device.forget(),
            Change::Pause | Change::Resume | Change::Stall | Change::Unstall | Change::Fork => {}
        }
    }

    fn save_to(&self, out: &mut Writer) {
        out.taken_out(self.save());
    }

    fn restore_from(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        Ok(self.restore(&from.part()?)?)
    }
}

/// The half of a 64-bit value that a select register chooses: 0 the low one, 1 the high one; there are no others.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => (value & 0xffff_ffff) as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Replaces the half of `value` that `select` chooses.
fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}

mod early;
#[cfg(test)]
mod tests;
