//! The bus: how the guest's accesses and outside events reach every device.
//!
//! A device is one file that implements [`Device`], and one row in the machine's plan, which says where its frames are and which
//! interrupts its lines lead to. The owner of a VM makes the devices in the order of the plan's rows, puts a lock around each
//! ([`Slot`]) and gives them to a [`Bus`]; the plan says for an address in which slot to look ([`Place`]).
//!
//! There is a lock for each device and none for all of them: a disk that works does not hold up the UART. Within that lock,
//! [`Wired`] compares a device's lines with what the interrupt controller was told last, and tells it what has changed. It must
//! happen under the lock: two threads that passed a line's levels on after they released it could do so in the wrong order, and a
//! line that is low for the controller but high for the device is an interrupt that never arrives.
//!
//! A device calls only the [`Outside`] that each call passes in, and keeps none: so a call may come from a vCPU, from a thread
//! that has finished a piece of work for the device, or from a test.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::time::Duration;

use clock::Period;
use pack::{Damaged, Reader, Writer};
use units::{AccessSize, IntId, Line, VcpuId};

use crate::memory::GuestMemory;

/// The most interrupt lines that a device has.
pub const MAX_LINES: usize = 32;

/// One load or store of a device's register, all of it within the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// In which of its frames, counted as in its row of the plan.
    pub frame: usize,
    /// How far behind the frame's first address.
    pub offset: u64,
    /// How wide.
    pub size: AccessSize,
}

/// Where an address leads to on the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// To which device: the number of its row in the plan.
    pub slot: usize,
    /// To which of its frames.
    pub frame: usize,
    /// And how far behind the frame's first address.
    pub offset: u64,
}

/// What happens to the machine that a device is a part of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It starts afresh: all lines are low, also for the interrupt controller.
    Reset,
    /// It is off, and has no memory any more; what the guest has written is still passed on.
    PowerOff,
    /// It is off, and what devices keep beside its guest's memory has gone too: it does not just start afresh.
    Forget,
    /// It stands still.
    Pause,
    /// It goes on.
    Resume,
    /// It stands still until some of its memory has come. That may be hundreds of times.
    Stall,
    /// It goes on behind that.
    Unstall,
    /// Its state was put in while it stands still: it goes on from where it, or another one, may have gone on before.
    Fork,
}

/// Where the bytes go that a device sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// To whoever watches the VM's UART.
    Uart,
    /// To whoever watches its virtio console.
    Virtio,
}

/// What a guest's counter and the time of day are at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// What its virtual counter shows.
    pub count: u64,
    /// How long a tick of that takes, in the guest's time; nothing, if there is no telling.
    pub period: Option<Period>,
    /// The real time since 1970 (UTC), even if the guest's clocks stood still.
    pub time: Duration,
    /// Whether the host has a clock from which that comes.
    pub is_known: bool,
    /// For how many ticks of its own the guest's clock has stood still since its start.
    pub stood: u64,
}

/// What a device asks of the outside, beside what it gets at once.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// [Poll](Device::poll) it when the outside has moved on: bytes wait that it has no room for.
    Poll,
    /// Poll it soon, on the guest's account: its share of work is done, and there is more.
    GoOn,
    /// Let others run: the guest looks at something that only they can change.
    Yield,
    /// Poll it when the time of day has come to so many seconds.
    AlarmAt(u64),
    /// Its deadline, by the guest's counter, may have come nearer.
    DeadlineAt(u64),
    /// Poll it when the guest's counter shows this, as exactly as a timer of the CPU; not any more, if it is nothing.
    TimerAt(Option<u64>),
    /// An enclave is to run, on the time of this vCPU, which takes it from the device once no lock is held; of whichever asks, if it is none.
    Run(Option<VcpuId>),
    /// A line for the log about what the guest did.
    Report(fmt::Arguments<'a>),
}

/// What is outside of a device: the rest of the machine, and the world.
pub trait Outside {
    /// The time of day, in seconds since 1970.
    fn seconds(&self) -> u64;

    /// What the guest's counter shows.
    fn count(&self) -> u64;

    /// What the guest's virtual counter and the time of day are now.
    fn moment(&self) -> Moment;

    /// Stores a word of the page that the guest sees of this device, if it has one: as a whole, and behind all that was stored before.
    fn show(&self, index: usize, word: u64);

    /// The vCPU on whose time the device works, if it is one's.
    fn caller(&self) -> Option<VcpuId>;

    /// The guest's memory.
    fn memory(&self) -> &dyn GuestMemory;

    /// Whether there is room for a byte.
    fn has_room(&self, stream: Stream) -> bool;

    /// Takes a byte, for which there was room. Says whether there is room for another one.
    fn send_byte(&self, stream: Stream, byte: u8) -> bool;

    /// Takes as many bytes as there is room for, and returns how many.
    fn send(&self, stream: Stream, bytes: &[u8]) -> usize;

    /// The line of this interrupt has changed.
    fn set_line(&self, interrupt: IntId, line: Line);

    /// The device asks for something.
    fn request(&self, request: Request<'_>);
}

/// A device. Every method is to be written for every device: one that has nothing to do says so.
pub trait Device: Send {
    /// The guest reads a register.
    fn read(&mut self, access: &Access, outside: &dyn Outside) -> u64;

    /// The guest writes a register.
    fn write(&mut self, access: &Access, value: u64, outside: &dyn Outside);

    /// The levels of its interrupt lines: bit *n* is line *n* of its row.
    fn lines(&self) -> u32;

    /// Time has passed, or the outside has moved on: goes on with whatever waits for that.
    fn poll(&mut self, outside: &dyn Outside);

    /// Something happens to the machine.
    fn change(&mut self, change: Change, outside: &dyn Outside);

    /// Takes its state out, as a section; nothing, if it has none. See [`crate::saved`].
    fn save_to(&self, out: &mut Writer);

    /// Puts a state in that was taken out of such a device.
    ///
    /// # Errors
    /// What is wrong with it; nothing has changed then.
    fn restore_from(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged>;
}

/// A device and its wires to the interrupt controller.
#[derive(Debug)]
pub struct Wired<D: ?Sized> {
    /// Where each of its lines leads to.
    interrupts: Box<[IntId]>,
    /// The lines as the interrupt controller was told last.
    told: u32,
    device: D,
}

impl<D: Device> Wired<D> {
    /// Connects the lines of `device`, in their order, with these interrupts. All lines are low.
    #[must_use]
    pub fn new(device: D, interrupts: impl IntoIterator<Item = IntId>) -> Self {
        Self { interrupts: interrupts.into_iter().take(MAX_LINES).collect(), told: 0, device }
    }
}

impl<D: ?Sized> Wired<D> {
    /// The device.
    #[inline(always)]
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, for what cannot move a line; [`work`](Self::work) is for the rest.
    #[inline(always)]
    pub fn device_quietly(&mut self) -> &mut D {
        &mut self.device
    }
}

impl<D: Device + ?Sized> Wired<D> {
    /// The guest reads a register.
    pub fn read(&mut self, access: &Access, outside: &dyn Outside) -> u64 {
        self.work(outside, |device| device.read(access, outside))
    }

    /// The guest writes a register.
    pub fn write(&mut self, access: &Access, value: u64, outside: &dyn Outside) {
        self.work(outside, |device| device.write(access, value, outside));
    }

    /// See [`Device::poll`].
    pub fn poll(&mut self, outside: &dyn Outside) {
        self.work(outside, |device| device.poll(outside));
    }

    /// See [`Device::change`].
    pub fn change(&mut self, change: Change, outside: &dyn Outside) {
        if change == Change::Reset {
            // The interrupt controller has forgotten its lines too. A line that is high afterwards is told anew; compared with
            // what was told in the life before, it would not be.
            self.told = 0;
        }
        self.work(outside, |device| device.change(change, outside));
    }

    /// See [`Device::save_to`]. What the interrupt controller was told is its own state.
    pub fn save_to(&self, out: &mut Writer) {
        let Self { interrupts: _, told: _, device } = self;
        device.save_to(out);
    }

    /// See [`Device::restore_from`]. The interrupt controller is told of all lines: it may have come from elsewhere too.
    ///
    /// # Errors
    /// Those of the device.
    pub fn restore_from(&mut self, from: &mut Reader<'_>, outside: &dyn Outside) -> Result<(), Damaged> {
        self.device.restore_from(from)?;
        let now = self.device.lines();
        self.told = !now;
        self.tell(now, outside);
        Ok(())
    }

    /// Does something with the device, a thread's completion of its work for example, and passes its lines on.
    #[inline(always)]
    pub fn work<R>(&mut self, outside: &dyn Outside, work: impl FnOnce(&mut D) -> R) -> R {
        let result = work(&mut self.device);
        let now = self.device.lines();
        if now != self.told {
            self.tell(now, outside);
        }
        result
    }

    fn tell(&mut self, now: u32, outside: &dyn Outside) {
        let changed = now ^ self.told;
        self.told = now;
        for (number, &interrupt) in self.interrupts.iter().enumerate() {
            if changed >> number & 1 != 0 {
                outside.set_line(interrupt, if now >> number & 1 != 0 { Line::High } else { Line::Low });
            }
        }
    }
}

/// A device behind its lock.
pub trait Slot: Send + Sync {
    /// [`Wired::read`] under the lock. Beside [`enter`](Self::enter), because each access comes here, and an implementation, which
    /// knows what device it has, saves three calls through pointers.
    fn read(&self, access: &Access, outside: &dyn Outside) -> u64;

    /// [`Wired::write`] under the lock.
    fn write(&self, access: &Access, value: u64, outside: &dyn Outside);

    /// Takes the lock, does `work`, and lets go of it.
    fn enter(&self, work: &mut dyn FnMut(&mut Wired<dyn Device>));
}

/// All devices of a machine, in the order of the plan's rows. `S` is how their owner holds them: for ever, or in a test for as
/// long as the machine is there.
pub struct Bus<S = &'static dyn Slot> {
    slots: Vec<S>,
}

impl Bus {
    /// A bus with these devices.
    #[must_use]
    pub fn new(slots: Vec<&'static dyn Slot>) -> Self {
        Self::of(slots)
    }
}

impl<S: Deref<Target = dyn Slot>> Bus<S> {
    /// A bus with devices that are held in another way.
    #[must_use]
    pub fn of(slots: Vec<S>) -> Self {
        Self { slots }
    }

    /// Every device.
    pub fn slots(&self) -> impl Iterator<Item = &dyn Slot> {
        self.slots.iter().map(|slot| &**slot)
    }

    /// The guest reads. Where no device is, it reads zero; the plan names no such place.
    pub fn read(&self, place: Place, size: AccessSize, outside: &dyn Outside) -> u64 {
        let access = Access { frame: place.frame, offset: place.offset, size };
        self.slots.get(place.slot).map_or(0, |slot| slot.read(&access, outside))
    }

    /// The guest writes.
    pub fn write(&self, place: Place, size: AccessSize, value: u64, outside: &dyn Outside) {
        let access = Access { frame: place.frame, offset: place.offset, size };
        if let Some(slot) = self.slots.get(place.slot) {
            slot.write(&access, value, outside);
        }
    }
}

impl<S> fmt::Debug for Bus<S> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "a bus with {} devices", self.slots.len())
    }
}
