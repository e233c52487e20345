//! A VM's devices: made in the order of its plan's rows, and what the outside does to each kind of them.
//!
//! There may be any number of a kind. Each has its registers, its lines, its place in the saved state and what happens to the
//! machine from the [`Bus`]. What comes from elsewhere comes here: a Generic Watchdog and a memory-mapped timer are let know what
//! time it is, a clock page that it was set, each of them. What there is once outside has one device at its other end: the VM's
//! two consoles are the UART at [`UART_BASE`] and the first virtio console, its power button is at the first GPIO controller.
//!
//! How devices are held, and what is around them during a call, is the owner's ([`Holder`], [`Keeper`]): the hypervisor's are there
//! for ever, behind locks that are its own; those of the VM of the tests go with it.

use alloc::vec::Vec;
use core::ops::Deref;

use clock::GuestTicks;
use devices::{
    Bus, ClockPage, Device, ErasedFlash, GenerationId, GenericWatchdog, MemoryTimer, Outside, POWER_BUTTON_PIN, Pl031,
    Pl061, Slot, Stream, Uart, Wired,
};
use enclave::{ByIsolation, EnclaveDevice};
use machine::{DeviceKind, MachinePlan, Row, TIMER_BASE, UART_BASE, VirtioKind};
use units::Ipa;
use virtio::block::host::Backend;
use virtio::net::Link;
use virtio::{Console, Disk, Entropy, Mmio, Net, Vacant};

use crate::AtExpiry;

/// What makes bytes that nobody can guess.
pub type Fill = fn(&mut [u8]);

/// How devices are held: each behind a lock.
pub trait Holder {
    /// One whose kind is known.
    type Held<D: Device + 'static>: Clone;
    /// One on the bus.
    type Slot: Deref<Target = dyn Slot>;
    /// What its network devices are connected with.
    type Link: Link + Send + 'static;

    /// Holds `device`, in slot number `slot` of the bus.
    fn hold<D: Device + 'static>(device: Wired<D>, slot: usize) -> Self::Held<D>;

    /// The same device, on the bus.
    fn on_bus<D: Device + 'static>(held: &Self::Held<D>) -> Self::Slot;
}

/// Whoever has a VM's devices.
pub trait Keeper<H: Holder> {
    /// Does something with a device under its lock for which no vCPU has asked, passes its lines on, and tells the vCPUs that these
    /// concern.
    fn work<D: Device + 'static, R>(&self, held: &H::Held<D>, work: impl FnOnce(&mut D, &dyn Outside) -> R) -> R;
}

/// One VM's devices.
pub struct Devices<H: Holder> {
    bus: Bus<H::Slot>,
    uart: H::Held<Uart>,
    /// The timer at the place where the short path of an exit looks for one.
    quick_timer: Option<H::Held<MemoryTimer>>,
    gpio: Option<H::Held<Pl061>>,
    generic_watchdogs: Vec<H::Held<GenericWatchdog>>,
    timers: Vec<H::Held<MemoryTimer>>,
    console: Option<H::Held<Mmio<Console>>>,
    nets: Vec<H::Held<Mmio<Net<H::Link>>>>,
    clock_pages: Vec<H::Held<ClockPage<Fill>>>,
    enclaves: Option<H::Held<EnclaveDevice<ByIsolation>>>,
}

/// Why there cannot be the devices of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoDevices {
    /// There is nothing where each VM's first console has to be.
    #[error("its plan has no UART at {UART_BASE:#x}")]
    NoUart,
    /// Nobody says what is on a disk.
    #[error("its plan has more disks than there are contents for")]
    NoDisk,
    /// Nobody says what a network device is connected with.
    #[error("its plan has more network devices than there are ports for")]
    NoPort,
}

impl<H: Holder> Devices<H> {
    /// The devices of `plan`, as after power on; `fill` is what makes random bytes, and `disks` and `nets` are its disks and network devices, each
    /// in their order.
    ///
    /// # Errors
    /// If its first console, a disk or a network device is missing.
    pub fn new<B: Backend + 'static>(
        plan: &MachinePlan,
        fill: Fill,
        disks: impl IntoIterator<Item = Disk<&'static [u8], B>>,
        nets: impl IntoIterator<Item = Net<H::Link>>,
    ) -> Result<Self, NoDevices> {
        let (mut disks, mut nets) = (disks.into_iter(), nets.into_iter());
        let mut held_nets = Vec::new();
        let (mut uart, mut quick_timer, mut gpio, mut console, mut enclaves) = (None, None, None, None, None);
        let (mut generic_watchdogs, mut timers, mut clock_pages) = (Vec::new(), Vec::new(), Vec::new());
        let mut slots = Vec::new();
        for (slot, row) in plan.rows().iter().enumerate() {
            let place = Place { row, slot };
            // Exhaustive, so that a kind of device that is planned and forgotten here does not compile.
            slots.push(match row.device {
                DeviceKind::Flash => place.hold::<H, _>(ErasedFlash).1,
                // Only one of them has somebody at its other end.
                DeviceKind::Pl011 if row.start() == Ipa(UART_BASE) => {
                    let (held, slot) = place.hold::<H, _>(Uart::new(Some(Stream::Uart)));
                    uart = Some(held);
                    slot
                }
                DeviceKind::Pl011 => place.hold::<H, _>(Uart::new(None)).1,
                DeviceKind::Pl031 => place.hold::<H, _>(Pl031::new()).1,
                DeviceKind::Pl061 => {
                    let (held, slot) = place.hold::<H, _>(Pl061::new());
                    gpio.get_or_insert(held);
                    slot
                }
                DeviceKind::GenericWatchdog => {
                    let (held, slot) = place.hold::<H, _>(GenericWatchdog::new());
                    generic_watchdogs.push(held);
                    slot
                }
                DeviceKind::Timer => {
                    let (held, slot) = place.hold::<H, _>(MemoryTimer::new(plan.counter_frequency()));
                    if row.frames.get(MemoryTimer::TIMER_FRAME).is_some_and(|frame| frame.start == Ipa(TIMER_BASE)) {
                        quick_timer = Some(held.clone());
                    }
                    timers.push(held);
                    slot
                }
                DeviceKind::Generation => place.hold::<H, _>(GenerationId::new(fill)).1,
                DeviceKind::ClockPage => {
                    let (held, slot) = place.hold::<H, _>(ClockPage::new(fill));
                    clock_pages.push(held);
                    slot
                }
                DeviceKind::Enclave => {
                    let (held, slot) = place.hold::<H, _>(EnclaveDevice::new(ByIsolation));
                    enclaves.get_or_insert(held);
                    slot
                }
                DeviceKind::Virtio(VirtioKind::Console) if console.is_none() => {
                    let (held, slot) = place.hold::<H, _>(Mmio::new(Console::connected(Stream::Virtio)));
                    console = Some(held);
                    slot
                }
                DeviceKind::Virtio(VirtioKind::Console) => place.hold::<H, _>(Mmio::new(Console::new())).1,
                DeviceKind::Virtio(VirtioKind::Entropy) => place.hold::<H, _>(Mmio::new(Entropy::new(fill))).1,
                DeviceKind::Virtio(VirtioKind::Block) => {
                    place.hold::<H, _>(Mmio::new(disks.next().ok_or(NoDevices::NoDisk)?)).1
                }
                DeviceKind::Virtio(VirtioKind::Net) => {
                    let (held, slot) = place.hold::<H, _>(Mmio::new(nets.next().ok_or(NoDevices::NoPort)?));
                    held_nets.push(held);
                    slot
                }
                DeviceKind::VacantVirtio => place.hold::<H, _>(Vacant).1,
            });
        }
        let uart = uart.ok_or(NoDevices::NoUart)?;
        Ok(Self {
            bus: Bus::of(slots),
            uart,
            quick_timer,
            gpio,
            generic_watchdogs,
            timers,
            console,
            nets: held_nets,
            clock_pages,
            enclaves,
        })
    }

    /// Its network devices, in their order.
    #[inline(always)]
    pub fn nets(&self) -> &[H::Held<Mmio<Net<H::Link>>>] {
        &self.nets
    }

    /// All of them, as accesses and changes of the machine's state find them.
    #[inline(always)]
    pub const fn bus(&self) -> &Bus<H::Slot> {
        &self.bus
    }

    /// The UART that is the VM's first console.
    #[inline(always)]
    pub const fn uart(&self) -> &H::Held<Uart> {
        &self.uart
    }

    /// The memory-mapped timer whose timer frame is at [`TIMER_BASE`].
    #[inline(always)]
    pub const fn quick_timer(&self) -> Option<&H::Held<MemoryTimer>> {
        self.quick_timer.as_ref()
    }

    /// All memory-mapped timers, each to be polled when one of them has asked for that.
    #[inline(always)]
    pub fn timers(&self) -> &[H::Held<MemoryTimer>] {
        &self.timers
    }

    /// The first enclave device: enclaves of another one are never let run.
    pub const fn enclaves(&self) -> Option<&H::Held<EnclaveDevice<ByIsolation>>> {
        self.enclaves.as_ref()
    }

    /// Input for the UART. What does not fit is lost, as on a real line.
    pub fn receive(&self, owner: &impl Keeper<H>, bytes: &[u8]) {
        owner.work(&self.uart, |uart, _| uart.receive(bytes));
    }

    /// Input for the virtio console, for which the devices are then to be polled. What does not fit is lost.
    pub fn receive_virtio(&self, owner: &impl Keeper<H>, bytes: &[u8]) {
        if let Some(console) = &self.console {
            owner.work(console, |console, _| console.device_mut().push_input(bytes));
        }
    }

    /// Presses or releases the power button.
    pub fn set_power_button(&self, owner: &impl Keeper<H>, is_pressed: bool) {
        if let Some(gpio) = &self.gpio {
            owner.work(gpio, |gpio, _| gpio.set_input(POWER_BUTTON_PIN, is_pressed));
        }
    }

    /// The operator has set the time of day. The guest hears of it at once, by an edge, or when it goes on.
    pub fn time_was_set(&self, owner: &impl Keeper<H>, is_paused: bool) {
        for page in &self.clock_pages {
            owner.work(page, |page, outside| page.time_was_set(outside));
            if !is_paused {
                owner.work(page, |page, _| page.lower());
            }
        }
    }

    /// All of the guest's memory has come. If its clock stood still for some of it, it hears of that, likewise.
    pub fn memory_has_come(&self, owner: &impl Keeper<H>, is_paused: bool) {
        for page in &self.clock_pages {
            owner.work(page, |page, outside| page.memory_has_come(outside));
            if !is_paused {
                owner.work(page, |page, _| page.lower());
            }
        }
    }

    /// Lets each Generic Watchdog know what time it is. How many second signals rise by that, and what the guest's counter shows when
    /// the next of them has something to do.
    pub fn advance_generic_watchdogs(
        &self,
        owner: &impl Keeper<H>,
        at_expiry: AtExpiry,
    ) -> (usize, Option<GuestTicks>) {
        let mut sum = (0, None);
        for generic_watchdog in &self.generic_watchdogs {
            let (has_expired, deadline) = owner.work(generic_watchdog, |device, outside| {
                let now = outside.count();
                let has_expired = device.advance(now);
                if has_expired && at_expiry == AtExpiry::BeginAnew {
                    device.begin_anew(now);
                }
                (has_expired, device.deadline())
            });
            sum.0 += usize::from(has_expired);
            sum.1 = [sum.1, deadline].into_iter().flatten().min();
        }
        (sum.0, sum.1.map(GuestTicks))
    }
}

/// A row of the plan, and its number.
struct Place<'a> {
    row: &'a Row,
    slot: usize,
}

impl Place<'_> {
    /// `device`, with its lines connected as the row says, and the same on the bus.
    fn hold<H: Holder, D: Device + 'static>(&self, device: D) -> (H::Held<D>, H::Slot) {
        let wired = Wired::new(device, self.row.lines.iter().map(|line| line.interrupt));
        let held = H::hold(wired, self.slot);
        let slot = H::on_bus(&held);
        (held, slot)
    }
}

/// When each of several devices is to be looked at, by their slots: a device that has another deadline leaves those of the others
/// as they are.
#[derive(Clone, Debug)]
pub struct Deadlines(Vec<Option<u64>>);

impl Deadlines {
    /// None yet, of as many devices as `plan` has.
    #[must_use]
    pub fn new(plan: &MachinePlan) -> Self {
        Self(plan.rows().iter().map(|_| None).collect())
    }

    /// The device in `slot` is to be looked at then, or not at all. When the next of all is.
    pub fn set(&mut self, slot: usize, at: Option<u64>) -> Option<u64> {
        if let Some(place) = self.0.get_mut(slot) {
            *place = at;
        }
        self.0.iter().flatten().copied().min()
    }
}
