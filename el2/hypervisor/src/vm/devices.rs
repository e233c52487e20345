//! A guest's devices, a lock around each.
//!
//! `core/vm` ([`::vm::devices`]) makes them in the order of the plan's rows, and knows which of them the outside has to do with;
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
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use ::vm::AtExpiry;
use ::vm::devices::{Deadlines, Fill, Holder, Keeper};
use abi::bundle::{Backend, Bundle, VmConfig};
use clock::GuestTicks;
use devices::{Access, AccessSize, Bus, Change, Device, MemoryTimer, Outside, Slot, Wired};
use enclave::{EnclaveRun, Leave};
use hw::sync::{PreemptGuard, PreemptLock};
use machine::MachinePlan;
use switch::Counters;
use units::{Ticks, VcpuId, VcpuSet, VmId};
use virtio::block::host::HostBlock;
use virtio::{Block, Disk, Mmio, Net};

use crate::host::entropy;
use crate::vm::Vm;
use crate::vm::guest_memory::Missing;
use crate::vm::host_disk;
use crate::vm::network::{self, Cable};
use crate::vm::outside::Surroundings;

/// What the unfinished work of a VM's devices waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Another turn: this one's share is used up.
    Turn,
    /// The guest's memory to be made ready there.
    Memory(Missing),
    /// An enclave to run.
    Enclave,
}

impl Wait {
    /// The more urgent of the two: of two devices that wait, the one that needs memory comes first, as nobody else makes it ready.
    #[must_use]
    fn and(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(Self::Memory(_)), _) | (_, None) | (Some(Self::Enclave), Some(Self::Turn)) => one,
            _ => other,
        }
    }
}

/// A device with its lock, and its number on the bus.
pub(crate) struct Locked<D> {
    wired: PreemptLock<Wired<D>>,
    slot: usize,
}

impl<D: Device + 'static> Slot for Locked<D> {
    fn read(&self, access: &Access, outside: &dyn Outside) -> u64 {
        self.wired.lock().read(access, outside)
    }

    fn write(&self, access: &Access, value: u64, outside: &dyn Outside) {
        self.wired.lock().write(access, value, outside);
    }

    fn enter(&self, work: &mut dyn FnMut(&mut Wired<dyn Device>)) {
        work(&mut *self.wired.lock());
    }
}

impl<D> Locked<D> {
    /// Its number on the bus.
    pub(super) const fn slot(&self) -> usize {
        self.slot
    }

    /// The device, as soon as nobody else works on it.
    pub(super) fn lock(&self) -> PreemptGuard<'_, Wired<D>> {
        self.wired.lock()
    }

    /// The device, if nobody else works on it.
    pub(super) fn try_lock(&self) -> Option<PreemptGuard<'_, Wired<D>>> {
        self.wired.try_lock()
    }
}

/// For ever, each behind its lock.
struct ForEver;

impl Holder for ForEver {
    type Held<D: Device + 'static> = &'static Locked<D>;
    type Slot = &'static dyn Slot;
    type Link = Cable;

    fn hold<D: Device + 'static>(device: Wired<D>, slot: usize) -> &'static Locked<D> {
        Box::leak(Box::new(Locked { wired: PreemptLock::new(device), slot }))
    }

    fn on_bus<D: Device + 'static>(held: &&'static Locked<D>) -> &'static dyn Slot {
        *held
    }
}

impl Keeper<ForEver> for Vm {
    fn work<D: Device + 'static, R>(
        &self,
        held: &&'static Locked<D>,
        work: impl FnOnce(&mut D, &dyn Outside) -> R,
    ) -> R {
        let outside = Surroundings::of(self, held.slot);
        let result = held.wired.lock().work(&outside, |device| work(device, &outside));
        // Its lines are in the GIC model by now: a vCPU looks once for each time that it is asked. Behind the device's lock, for which one
        // that looks at once, and then accesses this device, would wait.
        self.refresh(outside.concerned());
        result
    }
}

/// One VM's devices.
pub(crate) struct Devices {
    parts: ::vm::devices::Devices<ForEver>,
    /// When its memory-mapped timers are to be looked at, by the host's counter. Taken under those devices' locks.
    deadlines: PreemptLock<Deadlines>,
}

impl Devices {
    /// The devices of `plan`, which is that of `vm` as `config` has it, as after power on. What is on its disks is read where it lies in `bundle`.
    ///
    /// # Errors
    /// A sentence for the log.
    // Not a part of `make`'s frame, on which the deepest calls of a start are.
    #[inline(never)]
    pub(crate) fn new(
        vm: VmId,
        plan: &MachinePlan,
        config: &VmConfig<'static>,
        bundle: Bundle<'static>,
    ) -> Result<Self, String> {
        let fill: Fill = entropy::fill;
        let mut disks = Vec::with_capacity(config.disks.count());
        let mut annex = 0;
        for disk in config.disks.iter() {
            let wrong = |error: &dyn fmt::Display| format!("disk {}: {error}", disk.serial);
            disks.push(match &disk.backend {
                Backend::Image { image, changes } => {
                    let contents = bundle.blob(image).map_err(|error| wrong(&error))?;
                    let changes = annex..annex + changes;
                    annex = changes.end;
                    Disk::Image(Block::with_changes(contents, image.crc32c, disk.serial, changes))
                }
                Backend::Host(_) => {
                    let part = host_disk::part(vm, disk.serial).map_err(|error| wrong(&error))?;
                    Disk::Host(HostBlock::new(part, disk.serial))
                }
            });
        }
        let nets = network::devices(vm, &config.ports);
        let parts = ::vm::devices::Devices::new(plan, fill, disks, nets).map_err(|error| error.to_string())?;
        Ok(Self { parts, deadlines: PreemptLock::new(Deadlines::new(plan)) })
    }

    /// The devices as accesses find them.
    #[inline(always)]
    pub(crate) fn bus(&self) -> &Bus {
        self.parts.bus()
    }

    /// Network device number `number`.
    pub(super) fn net(&self, number: usize) -> Option<&'static Locked<Mmio<Net<Cable>>>> {
        self.parts.nets().get(number).copied()
    }

    /// What network device number `number` has carried.
    #[must_use]
    pub(crate) fn counters(&self, number: usize) -> Option<Counters> {
        Some(*self.net(number)?.lock().device().device().counters())
    }

    /// All of them, each with what is around it for one call.
    fn each<'a>(
        &'a self,
        vm: &'a Vm,
        surroundings: fn(&'a Vm, usize) -> Surroundings<'a>,
    ) -> impl Iterator<Item = (&'a dyn Slot, Surroundings<'a>)> {
        self.bus().slots().enumerate().map(move |(number, slot)| (slot, surroundings(vm, number)))
    }

    /// Something happens to the machine, and to all devices.
    pub(crate) fn change(&self, vm: &Vm, change: Change) {
        let outside = Surroundings::of(vm, 0);
        // One after the other, each under its own lock alone: a vCPU may be at work on any of them. It is the caller that sees to it that no
        // change overtakes another, by the lock of the VM's life, or because no vCPU is in the guest.
        for (number, slot) in self.bus().slots().enumerate() {
            outside.pass_on_to(number);
            slot.enter(&mut |wired| wired.change(change, &outside));
        }
        vm.refresh(outside.concerned());
    }

    /// Puts the state of each in, in their order, with `put`.
    pub(crate) fn restore(&self, vm: &Vm, mut put: impl FnMut(&mut Wired<dyn Device>, &dyn Outside)) {
        for (slot, outside) in self.each(vm, Surroundings::of) {
            slot.enter(&mut |wired| put(wired, &outside));
            vm.refresh(outside.concerned());
        }
    }

    /// The operator has set the time of day. The guest hears of it at once, by an edge, or when it goes on.
    pub(crate) fn time_was_set(&self, vm: &Vm) {
        self.parts.time_was_set(vm, vm.is_paused());
    }

    /// All of the guest's memory has come. It hears of that, if its clock stood still for some of it.
    pub(crate) fn memory_has_come(&self, vm: &Vm) {
        self.parts.memory_has_come(vm, vm.is_paused());
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

    fn poll_in<'a>(&'a self, vm: &'a Vm, surroundings: fn(&'a Vm, usize) -> Surroundings<'a>) -> Option<Wait> {
        let mut wait = None;
        // For each its own, and so its own share of accesses.
        for (slot, outside) in self.each(vm, surroundings) {
            slot.enter(&mut |wired| wired.poll(&outside));
            // Not once for all: the next device's share may be long, and the guest would wait for this one's interrupt meanwhile.
            vm.refresh(outside.concerned());
            wait = Wait::and(wait, outside.wait());
        }
        wait
    }

    /// The enclave that is to run, if there is one and it is for `vcpu` to run it.
    pub(crate) fn take_enclave(&self, vcpu: VcpuId) -> Option<EnclaveRun> {
        self.parts.enclaves()?.wired.lock().device_quietly().take_run(vcpu)
    }

    /// It has run. What the work that is left waits for, if there is any.
    pub(crate) fn enclave_left(&self, vm: &Vm, run: &EnclaveRun, leave: Leave) -> Option<Wait> {
        let held = self.parts.enclaves()?;
        let outside = Surroundings::of(vm, held.slot);
        held.wired.lock().work(&outside, |device| device.left(run, leave, &outside));
        vm.refresh(outside.concerned());
        outside.wait()
    }

    /// The UART's flag register, for the short path of an exit; `None` while the UART waits for the console's thread, or somebody
    /// else works on it.
    #[inline(always)]
    #[must_use]
    pub(crate) fn uart_flags(&self) -> Option<u64> {
        let wired = self.parts.uart().wired.try_lock_masked()?;
        let uart = wired.device().model();
        (uart.transmit_pending() == 0).then(|| uart.flag_register())
    }

    /// The guest writes a byte to the UART's data register, on the short path of an exit: if it leaves at once, and no line and
    /// no thread has to hear of it. Says whether it was done; if not, nothing was.
    #[inline(always)]
    pub(crate) fn transmit_quickly(&self, vm: &Vm, byte: u8) -> bool {
        let Some(mut wired) = self.parts.uart().wired.try_lock_masked() else { return false };
        let uart = wired.device_quietly();
        // The byte is pushed last of all that can fail, for then the long path does all of this anew. It is noted under the same lock:
        // another vCPU's byte, or the console's thread, would find the flags of a UART that has not sent it.
        if !uart.model().transmits_quietly() || !vm.console.push_uart_quickly(byte) {
            return false;
        }
        uart.has_transmitted(byte);
        true
    }

    /// Lets the Generic Watchdogs know what time it is. How many second signals rise by that, and what the guest's counter shows when one
    /// has something to do next.
    pub(crate) fn advance_generic_watchdogs(&self, vm: &Vm, at_expiry: AtExpiry) -> (usize, Option<GuestTicks>) {
        self.parts.advance_generic_watchdogs(vm, at_expiry)
    }

    /// A word of the memory-mapped timer's frame, for the short path of an exit, where the guest's counter shows `count`; `None` if
    /// there is no such timer, or somebody else works on it.
    #[inline(always)]
    #[must_use]
    pub(crate) fn timer_word(&self, offset: u64, count: u64) -> Option<u64> {
        let wired = self.parts.quick_timer()?.wired.try_lock_masked()?;
        Some(wired.device().read_frame(MemoryTimer::TIMER_FRAME, offset, AccessSize::Word, count))
    }

    /// The memory-mapped timer in `slot` is to be looked at when the host's counter shows `at`, or not at all. Under its lock. `show`
    /// gets to know when the next of all is to be, before another deadline can come.
    pub(super) fn set_deadline(&self, slot: usize, at: Option<Ticks>, show: impl FnOnce(Option<Ticks>)) {
        let mut deadlines = self.deadlines.lock();
        show(deadlines.set(slot, at.map(|at| at.0)).map(Ticks));
    }

    /// Lets the memory-mapped timers know what time it is, which ask for their next deadlines themselves. The vCPUs that their lines
    /// concern.
    #[must_use]
    pub(crate) fn advance_timers(&self, vm: &Vm) -> VcpuSet {
        self.parts.timers().iter().fold(VcpuSet::EMPTY, |concerned, timer| {
            let outside = Surroundings::of(vm, timer.slot);
            // The guest may set this timer, on another CPU, before or after: under the timer's lock its line and its deadline are of one
            // state, and the deadline of the later one stands.
            timer.wired.lock().poll(&outside);
            concerned.union(outside.concerned())
        })
    }

    /// Input for the UART. What does not fit is lost, as on a real line.
    pub(crate) fn receive(&self, vm: &Vm, bytes: &[u8]) {
        self.parts.receive(vm, bytes);
    }

    /// Input for the virtio console, for which the devices are then to be [polled](Self::poll). What does not fit is lost.
    pub(crate) fn receive_virtio(&self, vm: &Vm, bytes: &[u8]) {
        self.parts.receive_virtio(vm, bytes);
    }

    /// Presses or releases the power button.
    pub(crate) fn set_power_button(&self, vm: &Vm, pressed: bool) {
        self.parts.set_power_button(vm, pressed);
    }
}
