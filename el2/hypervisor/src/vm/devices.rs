//! A guest's devices: made in the order of its plan's rows, a lock around each, and what the rest of the hypervisor does
//! with some of them.
//!
//! `core/devices` and `core/virtio` define what a device does; [`crate::vm::outside`] is what it can reach. Interrupt lines are
//! passed on under the device's lock, so that two vCPUs cannot pass them on in the wrong order.
//!
//! The holder of such a lock is not preempted, and a guest chooses how much work its virtio queues cause. So a device stops when
//! its share of accesses is used up, or when memory has to be prepared first ([`Wait`]); the lock is released, and the work
//! continues there afterwards: first by the vCPU that asked for it, then by any vCPU of the VM, again and again at a pace that
//! the consoles' thread sets. So the guest pays for it, and a paused VM's devices stand still. That thread itself only moves
//! bytes that the devices hold, and checks whether there is more to do.

extern crate alloc;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ::vm::AtExpiry;
use clock::GuestTicks;
use devices::{
    Access, AccessSize, Bus, Change, ClockPage, Device, ErasedFlash, GenerationId, GenericWatchdog, MemoryTimer,
    Outside, POWER_BUTTON_PIN, Pl031, Pl061, Slot, Stream, Uart, Wired,
};
use hw::sync::PreemptLock;
use machine::{DeviceKind, MachinePlan, Row, UART_BASE, VirtioKind};
use units::{Ipa, Ticks, VcpuSet};
use virtio::{Console, Entropy, Mmio, Vacant};

use crate::host::entropy;
use crate::vm::Vm;
use crate::vm::guest_memory::Missing;
use crate::vm::outside::Surroundings;

/// What the unfinished work of a VM's devices waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Another turn: this one's share is used up.
    Turn,
    /// The guest's memory to be made ready there.
    Memory(Missing),
}

impl Wait {
    /// The more urgent of the two: of two devices that wait, the one that needs memory comes first, as nobody else makes it ready.
    #[must_use]
    fn and(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(Self::Memory(_)), _) | (_, None) => one,
            _ => other,
        }
    }
}

/// A device with its lock.
struct Locked<D>(PreemptLock<Wired<D>>);

impl<D: Device + 'static> Slot for Locked<D> {
    fn read(&self, access: &Access, outside: &dyn Outside) -> u64 {
        self.0.lock().read(access, outside)
    }

    fn write(&self, access: &Access, value: u64, outside: &dyn Outside) {
        self.0.lock().write(access, value, outside);
    }

    fn enter(&self, work: &mut dyn FnMut(&mut Wired<dyn Device>)) {
        work(&mut *self.0.lock());
    }
}

impl<D: Device + 'static> Locked<D> {
    /// Puts `device` behind a lock, for ever, with its lines connected as `row` says.
    fn new(device: D, row: &Row) -> &'static Self {
        let interrupts = row.lines.iter().map(|line| line.interrupt);
        Box::leak(Box::new(Self(PreemptLock::new(Wired::new(device, interrupts)))))
    }

    /// Does something with it for which no vCPU of `vm` has asked, and tells those that are concerned.
    fn work<R>(&self, vm: &Vm, work: impl FnOnce(&mut D, &dyn Outside) -> R) -> R {
        let outside = Surroundings::of(vm);
        let result = self.0.lock().work(&outside, |device| work(device, &outside));
        vm.refresh(outside.concerned());
        result
    }
}

/// One VM's devices.
pub(crate) struct Devices {
    /// All of them, as accesses and changes of the machine's state find them.
    bus: Bus,
    /// Those with which the rest of the hypervisor has to do: the UART where the short path of an exit looks for it, and the
    /// first of each other kind.
    uart: &'static Locked<Uart>,
    gpio: Option<&'static Locked<Pl061>>,
    watchdog: Option<&'static Locked<GenericWatchdog>>,
    timer: Option<&'static Locked<MemoryTimer>>,
    console: Option<&'static Locked<Mmio<Console>>>,
    clock_page: Option<&'static Locked<ClockPage<Fill>>>,
}

/// What makes bytes that nobody can guess.
type Fill = fn(&mut [u8]);

impl Devices {
    /// The devices of `plan`, as after power on.
    ///
    /// # Errors
    /// A sentence for the log.
    pub(crate) fn new(plan: &MachinePlan) -> Result<Self, String> {
        let (mut uart, mut gpio, mut watchdog, mut timer) = (None, None, None, None);
        let (mut console, mut clock_page) = (None, None);
        let fill: Fill = entropy::fill;
        let mut slots: Vec<&'static dyn Slot> = Vec::new();
        for row in plan.rows() {
            // Exhaustive, so that a kind of device that is planned and forgotten here does not compile.
            slots.push(match row.device {
                DeviceKind::Flash => Locked::new(ErasedFlash, row),
                // Only one of a kind has somebody at its other end.
                DeviceKind::Pl011 if row.start() == Ipa(UART_BASE) => {
                    *uart.insert(Locked::new(Uart::new(Some(Stream::Uart)), row))
                }
                DeviceKind::Pl011 => Locked::new(Uart::new(None), row),
                DeviceKind::Pl031 => Locked::new(Pl031::new(), row),
                DeviceKind::Pl061 => {
                    let device = Locked::new(Pl061::new(), row);
                    gpio.get_or_insert(device);
                    device
                }
                DeviceKind::Watchdog => {
                    let device = Locked::new(GenericWatchdog::new(), row);
                    watchdog.get_or_insert(device);
                    device
                }
                DeviceKind::Timer => {
                    let device = Locked::new(MemoryTimer::new(plan.counter_frequency()), row);
                    timer.get_or_insert(device);
                    device
                }
                DeviceKind::Generation => Locked::new(GenerationId::new(fill), row),
                DeviceKind::ClockPage => {
                    let device = Locked::new(ClockPage::new(fill), row);
                    clock_page.get_or_insert(device);
                    device
                }
                DeviceKind::Virtio(VirtioKind::Console) if console.is_none() => {
                    *console.insert(Locked::new(Mmio::new(Console::connected(Stream::Virtio)), row))
                }
                DeviceKind::Virtio(VirtioKind::Console) => Locked::new(Mmio::new(Console::new()), row),
                DeviceKind::Virtio(VirtioKind::Entropy) => Locked::new(Mmio::new(Entropy::new(fill)), row),
                DeviceKind::Virtio(kind @ (VirtioKind::Network | VirtioKind::Block | VirtioKind::Socket)) => {
                    return Err(format!("its plan has a {} device, and there is none yet", kind.name()));
                }
                DeviceKind::VacantVirtio => Locked::new(Vacant, row),
            });
        }
        let uart = uart.ok_or_else(|| format!("its plan has no UART at {UART_BASE:#x}"))?;
        Ok(Self { bus: Bus::new(slots), uart, gpio, watchdog, timer, console, clock_page })
    }

    /// The devices as accesses find them.
    #[inline(always)]
    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Something happens to the machine, and to all devices.
    pub(crate) fn change(&self, vm: &Vm, change: Change) {
        let outside = Surroundings::of(vm);
        for slot in self.bus.slots() {
            slot.enter(&mut |wired| wired.change(change, &outside));
        }
        vm.refresh(outside.concerned());
    }

    /// The operator has set the time of day. The guest hears of it at once, by an edge, or when it goes on.
    pub(crate) fn time_was_set(&self, vm: &Vm) {
        let Some(page) = self.clock_page else { return };
        page.work(vm, |page, outside| page.time_was_set(outside));
        if !vm.is_paused() {
            page.work(vm, |page, _| page.lower());
        }
    }

    /// Moves on what waits: output that found no room, input, unfinished work. Says what that waits for then, if it is still
    /// unfinished; whoever asks has to see to it that it is gone on with.
    #[must_use]
    pub(crate) fn poll(&self, vm: &Vm) -> Option<Wait> {
        self.poll_in(vm, Surroundings::of)
    }

    /// As [`Devices::poll`], but of what the guest has in its memory nothing is worked on: that is for its vCPUs.
    #[must_use]
    pub(crate) fn look(&self, vm: &Vm) -> Option<Wait> {
        self.poll_in(vm, Surroundings::of_a_look)
    }

    fn poll_in<'a>(&self, vm: &'a Vm, surroundings: fn(&'a Vm) -> Surroundings<'a>) -> Option<Wait> {
        let mut wait = None;
        for slot in self.bus.slots() {
            // For each its own, and so its own share of accesses.
            let outside = surroundings(vm);
            slot.enter(&mut |wired| wired.poll(&outside));
            vm.refresh(outside.concerned());
            wait = Wait::and(wait, outside.wait());
        }
        wait
    }

    /// The UART's flag register, for the short path of an exit; `None` while the UART waits for the console's thread, or somebody
    /// else works on it.
    #[inline(always)]
    #[must_use]
    pub(crate) fn uart_flags(&self) -> Option<u64> {
        let wired = self.uart.0.try_lock_masked()?;
        let uart = wired.device().model();
        (uart.transmit_pending() == 0).then(|| uart.flag_register())
    }

    /// The guest writes a byte to the UART's data register, on the short path of an exit: if it leaves at once, and no line and
    /// no thread has to hear of it. Says whether it was done; if not, nothing was.
    #[inline(always)]
    pub(crate) fn transmit_quickly(&self, vm: &Vm, byte: u8) -> bool {
        let Some(mut wired) = self.uart.0.try_lock_masked() else { return false };
        let uart = wired.device_quietly();
        if !uart.model().transmits_quietly() || !vm.console.push_uart_quickly(byte) {
            return false;
        }
        uart.has_transmitted(byte);
        true
    }

    /// Lets the Generic Watchdog know what time it is. Says whether its second signal rises by that, and when it has something to
    /// do next, by the host's counter.
    pub(crate) fn advance_watchdog(&self, vm: &Vm, at_expiry: AtExpiry) -> (bool, Option<Ticks>) {
        let Some(watchdog) = self.watchdog else { return (false, None) };
        watchdog.work(vm, |device, outside| {
            let now = outside.count();
            let expired = device.advance(now);
            if expired && at_expiry == AtExpiry::BeginAnew {
                device.begin_anew(now);
            }
            let deadline = device.deadline().and_then(|count| vm.when(GuestTicks(count)));
            (expired, deadline)
        })
    }

    /// A word of the memory-mapped timer's frame, for the short path of an exit, where the guest's counter shows `count`; `None` if
    /// there is no such timer, or somebody else works on it.
    #[inline(always)]
    #[must_use]
    pub(crate) fn timer_word(&self, offset: u64, count: u64) -> Option<u64> {
        let wired = self.timer?.0.try_lock_masked()?;
        Some(wired.device().read_frame(MemoryTimer::TIMER_FRAME, offset, AccessSize::Word, count))
    }

    /// Lets the memory-mapped timer know what time it is, which asks for its next deadline itself. The vCPUs that its lines concern.
    #[must_use]
    pub(crate) fn advance_timer(&self, vm: &Vm) -> VcpuSet {
        let Some(timer) = self.timer else { return VcpuSet::EMPTY };
        let outside = Surroundings::of(vm);
        timer.0.lock().poll(&outside);
        outside.concerned()
    }

    /// Input for the UART. What does not fit is lost, as on a real line.
    pub(crate) fn receive(&self, vm: &Vm, bytes: &[u8]) {
        self.uart.work(vm, |uart, _| uart.receive(bytes));
    }

    /// Input for the virtio console, for which the devices are then to be [polled](Self::poll). What does not fit is lost.
    pub(crate) fn receive_virtio(&self, vm: &Vm, bytes: &[u8]) {
        if let Some(console) = self.console {
            console.work(vm, |console, _| console.device_mut().push_input(bytes));
        }
    }

    /// Presses or releases the power button.
    pub(crate) fn set_power_button(&self, vm: &Vm, pressed: bool) {
        if let Some(gpio) = self.gpio {
            gpio.work(vm, |gpio, _| gpio.set_input(POWER_BUTTON_PIN, pressed));
        }
    }
}
