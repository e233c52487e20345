//! A guest's devices and the wires between them: registers to device models, interrupt lines to the GIC model, bytes to
//! the console.
//!
//! One lock a VM is around all of them. Interrupt lines are passed on under it, so that two vCPUs cannot pass them on
//! in the wrong order.
//!
//! Whoever holds the lock is not preempted, and a guest chooses what its virtio queues make of work. So a device stops where
//! its share of accesses is used up, or where memory has to be made ready first ([`Wait`]); the lock is let go of, and the work
//! goes on there afterwards: by the vCPU that asked for it, and by some vCPU of the VM, again and again at a
//! pace that the console's thread keeps. So the guest pays for it, and a paused VM's devices stand still.

extern crate alloc;

use alloc::collections::VecDeque;
use clock::GuestTicks;
use core::cell::Cell;
use log::Level;
use machine::DeviceKind;
use units::{Ipa, Ticks, VcpuSet};
use virtio::{AccessSize, Console, Effect, Entropy, Fault, GuestMemory, Mmio, Progress};

use crate::host::entropy;
use crate::vm::Vm;
use crate::vm::guest_memory::{GuestRam, RamError};
use crate::vm::watchdog;
use hw::sync::PreemptLock;

/// Bytes of input that wait for a guest to take them.
const INPUT: usize = 4096;
/// Transports of the virtio devices, in the order in which the VM's plan lists them.
const VIRTIO_CONSOLE: u8 = 0;
const VIRTIO_ENTROPY: u8 = 1;

/// How often a device may access the guest's memory under the lock, a few hundred bytes at a time at most. More than the
/// longest descriptor chain takes, which is read in one go.
const ACCESSES: u16 = 2048;
const _: () = assert!(ACCESSES > 4 * virtio::queue::LARGEST);
type FillRandom = fn(&mut [u8]);

/// What the unfinished work of a VM's devices waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Another turn: this one's share is used up.
    Turn,
    /// The guest's memory around here to be made ready.
    Memory(Ipa),
}

/// One VM's devices.
pub(crate) struct Devices {
    uart: devices::Pl011,
    clock: devices::Pl031,
    gpio: devices::Pl061,
    watchdog: devices::GenericWatchdog,
    console: Mmio<Console>,
    entropy: Mmio<Entropy<FillRandom>>,
    /// Input for the UART that its FIFO has no room for yet.
    input: VecDeque<u8>,
    /// The machine is off.
    off: bool,
    /// The interrupt lines as the GIC model has them, a bit each in the order of [`Devices::LINES`].
    lines: u8,
    /// There is unfinished work, of which nobody knows yet who will do it.
    wait: Option<Wait>,
}

/// A VM's memory as virtio devices see it: what the guest sees already, and only so many accesses to it.
struct Memory<'a> {
    ram: &'a PreemptLock<GuestRam>,
    left: Cell<u16>,
    /// The last access was refused for now only.
    is_refused: Cell<bool>,
    /// What the guest does not see yet, of all that was accessed.
    missing: Cell<Option<Ipa>>,
}

impl<'a> Memory<'a> {
    fn of(vm: &'a Vm) -> Self {
        Self { ram: &vm.ram, left: Cell::new(ACCESSES), is_refused: Cell::new(false), missing: Cell::new(None) }
    }

    fn access<T>(&self, at: Ipa, access: impl FnOnce(&GuestRam) -> Result<T, RamError>) -> Result<T, Fault> {
        let Some(left) = self.left.get().checked_sub(1) else {
            self.is_refused.set(true);
            return Err(Fault(at));
        };
        self.left.set(left);
        let result = access(&self.ram.lock());
        self.is_refused.set(false);
        if let Err(RamError::NotShown(place)) = result {
            self.is_refused.set(true);
            self.missing.set(Some(place));
        }
        result.map_err(|_| Fault(at))
    }
}

impl GuestMemory for Memory<'_> {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        self.access(from, |ram| ram.read(from, into))
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        self.access(to, |ram| ram.write(to, bytes))
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        self.access(at, |ram| ram.index(at)).map(hw::memory::read_index)
    }

    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault> {
        self.access(at, |ram| ram.index(at)).map(|place| hw::memory::write_index(place, value))
    }

    fn is_refused_for_now(&self) -> bool {
        self.is_refused.get()
    }
}

impl Default for Devices {
    fn default() -> Self {
        Self::new()
    }
}

impl Devices {
    const LINES: [DeviceKind; 6] = [
        DeviceKind::Pl011,
        DeviceKind::Pl031,
        DeviceKind::Pl061,
        DeviceKind::Virtio(VIRTIO_CONSOLE),
        DeviceKind::Virtio(VIRTIO_ENTROPY),
        DeviceKind::WatchdogControl,
    ];

    /// Devices as after power on.
    #[must_use]
    pub(crate) fn new() -> Self {
        let fill: FillRandom = entropy::fill;
        Self {
            uart: devices::Pl011::new(),
            clock: devices::Pl031::new(),
            gpio: devices::Pl061::new(),
            watchdog: devices::GenericWatchdog::new(),
            console: Mmio::new(Console::new()),
            entropy: Mmio::new(Entropy::new(fill)),
            input: VecDeque::with_capacity(INPUT),
            off: false,
            lines: 0,
            wait: None,
        }
    }

    /// Back to power on; the clock keeps its time, and the watchdog what it did.
    pub(crate) fn reset(&mut self) {
        self.uart = devices::Pl011::new();
        self.clock.reset();
        self.gpio = devices::Pl061::new();
        self.watchdog.reset();
        self.console.reset();
        self.entropy.reset();
        self.input.clear();
        self.off = false;
        self.lines = 0;
        self.wait = None;
    }

    /// The guest reads `size` at `offset` of `device`.
    pub(crate) fn read(&mut self, vm: &Vm, device: DeviceKind, offset: u64, size: AccessSize) -> u64 {
        match device {
            DeviceKind::Pl011 => {
                let value = self.uart.read(offset, size);
                self.feed_uart();
                value
            }
            DeviceKind::Pl031 => self.clock.read(offset, size, vm.seconds()),
            DeviceKind::Pl061 => self.gpio.read(offset, size),
            DeviceKind::WatchdogControl => self.watchdog.read_control(offset, size),
            DeviceKind::WatchdogRefresh => self.watchdog.read_refresh(offset, size),
            DeviceKind::Virtio(VIRTIO_CONSOLE) => self.console.read(offset, size),
            DeviceKind::Virtio(VIRTIO_ENTROPY) => self.entropy.read(offset, size),
            DeviceKind::Virtio(_) => virtio::read_vacant(offset, size),
            _ => 0,
        }
    }

    /// The guest writes `value` of `size` at `offset` of `device`.
    pub(crate) fn write(&mut self, vm: &Vm, device: DeviceKind, offset: u64, size: AccessSize, value: u64) {
        match device {
            DeviceKind::Pl011 => {
                if let devices::Effect::Transmit(byte) = self.uart.write(offset, size, value) {
                    let room = vm.console.push_uart(byte);
                    self.uart.set_transmit_blocked(!room);
                }
                self.feed_uart();
            }
            DeviceKind::Pl031 => {
                if self.clock.write(offset, size, value, vm.seconds()) == devices::Effect::AlarmChanged
                    && let Some(at) = self.clock.next_alarm()
                {
                    vm.ring_at(at);
                }
            }
            DeviceKind::Pl061 => {
                let _ = self.gpio.write(offset, size, value);
            }
            DeviceKind::WatchdogControl => {
                let effect = self.watchdog.write_control(offset, size, value, vm.count());
                self.watch(vm, effect);
            }
            DeviceKind::WatchdogRefresh => {
                let effect = self.watchdog.write_refresh(offset, size, value, vm.count());
                self.watch(vm, effect);
            }
            DeviceKind::Virtio(VIRTIO_CONSOLE) => {
                let effect = self.console.write(offset, size, value);
                self.serve_console(vm, effect);
            }
            DeviceKind::Virtio(VIRTIO_ENTROPY) => match self.entropy.write(offset, size, value) {
                Effect::Notify(queue) => self.serve_entropy(vm, queue),
                Effect::Broken(error) => vm.report(Level::Warn, format_args!("virtio-rng: {error}")),
                Effect::None | Effect::Reset | Effect::Started => {}
            },
            _ => {}
        }
    }

    /// The UART's flag register, for the short path of an exit; `None` while the UART waits for the console's thread.
    #[inline(always)]
    #[must_use]
    pub(crate) fn uart_flags(&self) -> Option<u64> {
        (!self.uart_waits()).then(|| self.uart.flag_register())
    }

    /// Whether bytes of the UART wait for the console's thread.
    #[inline(always)]
    #[must_use]
    pub(crate) fn uart_waits(&self) -> bool {
        self.uart.transmit_pending() > 0
    }

    /// The guest writes a byte to the UART's data register, on the short path of an exit: if it leaves at once, and no line and
    /// no thread has to hear of it. Says whether it was done; if not, nothing was.
    #[inline(always)]
    pub(crate) fn transmit_quickly(&mut self, vm: &Vm, byte: u8) -> bool {
        if !self.uart.transmits_quietly() || !vm.console.push_uart_quickly(byte) {
            return false;
        }
        // It has left.
        let _ = self.uart.write(devices::PL011_DR, AccessSize::Byte, byte.into());
        true
    }

    fn watch(&self, vm: &Vm, effect: devices::Effect) {
        if effect == devices::Effect::AlarmChanged
            && let Some(at) = self.watchdog_deadline(vm)
        {
            watchdog::watch(vm.id, &vm.doors.watchdogs, at);
        }
    }

    /// When the watchdog has something to do, by the host's counter.
    #[must_use]
    pub(crate) fn watchdog_deadline(&self, vm: &Vm) -> Option<Ticks> {
        vm.when(GuestTicks(self.watchdog.deadline()?))
    }

    /// Lets the watchdog know what time it is; says whether its second signal rises.
    pub(crate) fn advance_watchdog(&mut self, vm: &Vm) -> bool {
        let expired = self.watchdog.advance(vm.count());
        let changed = self.update_lines(vm);
        vm.refresh(changed);
        expired
    }

    /// The machine is paused, and its watchdog with it.
    pub(crate) fn pause_watchdog(&mut self, vm: &Vm) {
        self.watchdog.pause(vm.count());
    }

    /// The machine goes on.
    pub(crate) fn resume_watchdog(&mut self, vm: &Vm) {
        self.watchdog.resume(vm.count());
        self.watch(vm, devices::Effect::AlarmChanged);
    }

    /// The watchdog's second signal was dealt with.
    pub(crate) fn begin_watchdog_anew(&mut self, vm: &Vm) {
        self.watchdog.begin_anew(vm.count());
        let changed = self.update_lines(vm);
        vm.refresh(changed);
    }

    /// The machine is off, and has no memory any more; what it has written is still passed on.
    pub(crate) fn power_off(&mut self) {
        self.watchdog.disable();
        self.off = true;
    }

    fn serve_entropy(&mut self, vm: &Vm, queue: u16) {
        let memory = Memory::of(vm);
        match self.entropy.process(queue, &memory) {
            Ok(progress) => self.note(progress, &memory),
            Err(error) => vm.report(Level::Warn, format_args!("virtio-rng: {error}")),
        }
    }

    /// A device has worked, and says how far it has come.
    fn note(&mut self, progress: Progress, memory: &Memory<'_>) {
        if progress == Progress::More {
            let wait = memory.missing.get().map_or(Wait::Turn, Wait::Memory);
            // Of two devices that wait, the one that needs memory comes first: nobody else makes it ready.
            if self.wait.is_none() || wait != Wait::Turn {
                self.wait = Some(wait);
            }
        }
    }

    /// What unfinished work waits for, if there is any; who asks has to see to it that it is gone on with.
    #[must_use]
    pub(crate) fn take_wait(&mut self) -> Option<Wait> {
        self.wait.take()
    }

    fn serve_console(&mut self, vm: &Vm, effect: Effect) {
        match effect {
            Effect::Notify(queue) => {
                let memory = Memory::of(vm);
                match self.console.process(queue, &memory) {
                    Ok(progress) => self.note(progress, &memory),
                    Err(error) => vm.report(Level::Warn, format_args!("virtio-console: {error}")),
                }
                self.console.device_mut().take_output(|bytes| vm.console.push_virtio(bytes));
                if self.console.device().output_pending() > 0 {
                    vm.console.ask_for_service();
                }
            }
            Effect::Started => self.poll(vm),
            Effect::Broken(error) => vm.report(Level::Warn, format_args!("virtio-console: {error}")),
            Effect::None | Effect::Reset => {}
        }
    }

    /// Moves on what waits: output that found no room, input, unfinished work.
    pub(crate) fn poll(&mut self, vm: &Vm) {
        self.uart.set_transmit_blocked(false);
        while let Some(byte) = self.uart.take_transmit() {
            if !vm.console.push_uart(byte) {
                self.uart.set_transmit_blocked(true);
                break;
            }
        }
        self.feed_uart();
        self.console.device_mut().take_output(|bytes| vm.console.push_virtio(bytes));
        self.wait = None;
        if self.console.is_live() && !self.off {
            let memory = Memory::of(vm);
            match self.console.poll(&memory) {
                Ok(progress) => self.note(progress, &memory),
                Err(error) => vm.report(Level::Warn, format_args!("virtio-console: {error}")),
            }
            self.console.device_mut().take_output(|bytes| vm.console.push_virtio(bytes));
        }
        if self.entropy.is_live() && !self.off {
            let memory = Memory::of(vm);
            if let Ok(progress) = self.entropy.poll(&memory) {
                self.note(progress, &memory);
            }
        }
        self.clock.advance(vm.seconds());
        let changed = self.update_lines(vm);
        vm.refresh(changed);
    }

    /// When the real-time clock rings next, in seconds since 1970 as the VM has them.
    #[must_use]
    pub(crate) fn next_alarm(&self) -> Option<u64> {
        self.clock.next_alarm()
    }

    /// Input for the UART. What does not fit is lost, as on a real line. Returns the vCPUs to be told.
    pub(crate) fn receive(&mut self, vm: &Vm, bytes: &[u8]) {
        let room = INPUT - self.input.len();
        self.input.extend(bytes.iter().take(room));
        self.feed_uart();
        let changed = self.update_lines(vm);
        vm.refresh(changed);
    }

    /// Input for the virtio console, for which it is then to be [polled](Self::poll). What does not fit is lost.
    pub(crate) fn receive_virtio(&mut self, bytes: &[u8]) {
        self.console.device_mut().push_input(bytes);
    }

    /// Presses or releases the power button.
    pub(crate) fn set_power_button(&mut self, vm: &Vm, pressed: bool) {
        self.gpio.set_input(devices::POWER_BUTTON_PIN, pressed);
        let changed = self.update_lines(vm);
        vm.refresh(changed);
    }

    fn feed_uart(&mut self) {
        while self.uart.receive_space() > 0
            && let Some(byte) = self.input.pop_front()
        {
            self.uart.receive(byte);
        }
    }

    /// Tells the GIC model about lines that changed; returns the vCPUs that are concerned.
    pub(crate) fn update_lines(&mut self, vm: &Vm) -> VcpuSet {
        let levels = [
            self.uart.line(),
            self.clock.line(),
            self.gpio.line(),
            self.console.line(),
            self.entropy.line(),
            self.watchdog.line(),
        ];
        let now = levels.iter().rev().fold(0, |set, &level| set << 1 | u8::from(level));
        let changed = now ^ self.lines;
        if changed == 0 {
            return VcpuSet::EMPTY;
        }
        self.lines = now;
        let mut concerned = VcpuSet::EMPTY;
        let mut gic = vm.gic.lock();
        for (bit, device) in Self::LINES.into_iter().enumerate() {
            if changed >> bit & 1 == 0 {
                continue;
            }
            if let Some(interrupt) = vm.plan.region(device).and_then(|region| region.interrupt) {
                let line = if now >> bit & 1 != 0 { vgic::Line::High } else { vgic::Line::Low };
                concerned = concerned.union(gic.set_spi_level(interrupt, line));
            }
        }
        concerned
    }
}
