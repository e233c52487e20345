//! A paused VM's machine as a value: all but its vCPUs' registers, which [`crate::vcpu::saved`] adds.
//!
//! The caller holds the lock of the VM's life, and no vCPU is in its guest or may enter it: so nothing changes
//! meanwhile except by outside events at the devices, each of which has its own lock.
//!
//! Whatever is saved is taken apart into its fields first, all of which are named: one that is added later does not compile until
//! somebody has said whether it is saved, and why not.

extern crate alloc;

use alloc::vec::Vec;

use ::devices::Change;
use ::vm::SavedLife;
use ::vm::stolen::Stolen;
use clock::{GuestClock, VmClock};
use machine::Timers;
use pack::{Boxed, Damaged, Reader, Writer};
use services::psci::SavedPower;
use snapshot::{SavedMachine, SavedTime, SavedVcpu, SavedVm};
use units::{Ticks, VcpuId, VcpuSet};
use vgic::Vgic;

use super::devices::Devices;
use super::doors::Doors;
use super::{Life, Vm, gic_config, new_clock};
use crate::host;
use crate::host::text::{Sentence, sentence};

impl Vm {
    /// Whether no vCPU is in its guest, or may enter it.
    pub(crate) fn is_left(&self) -> bool {
        self.clock.lock().is_left()
    }

    /// Whether it can go on elsewhere, or later. What is on a host's disk may be something else by then, and nothing would tell.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub(crate) fn must_be_movable(&self) -> Result<(), Sentence> {
        let name = self.config.name;
        match self.config.disks.iter().find(|disk| disk.host().is_some()) {
            Some(disk) => Err(sentence!(
                "{name} cannot be saved or restored: its disk {} is on a disk of the host's, which may change meanwhile",
                disk.serial
            )),
            None => Ok(()),
        }
    }

    /// Its shape, by which a state finds out whether it is this machine's.
    pub(crate) fn shape(&self) -> SavedMachine {
        SavedMachine {
            vcpus: self.config.vcpus,
            memory: self.config.memory,
            devices: self.plan.rows().len() as u32,
            memory_timer: self.plan.timers() == Timers::Memory,
            identification: host::get().guest_ids.0,
            cpu: host::guests_cpu(),
        }
    }

    /// Takes its state out as of `now`, with that of its `vcpus`.
    ///
    /// # Errors
    /// A sentence that says why that is impossible.
    pub(crate) fn save_machine(
        &self,
        life: &SavedLife,
        vcpus: Vec<SavedVcpu>,
        now: Ticks,
    ) -> Result<SavedVm, Sentence> {
        let Self {
            // Which VM of the site it is: the state may go on in another.
            id: _,
            // These the VM in which it goes on has from its own site file. In what they must agree, `shape` and `link::transfer` say.
            config: _,
            plan: _,
            gic,
            devices,
            // Its memory goes another way, a page at a time; what a page may be used for, the guest asks anew.
            ram: _,
            doors,
            // What waits in these is for this host's operator, who will get it here.
            console: _,
            // The real-time clock sets it when the VM goes on.
            alarm: _,
            // The caller has its lock, and gives what is saved of it.
            life: _,
            // The images are in its memory.
            bundle: _,
            // The caller has saved them.
            vcpus: _,
            // The address of this host's tables for its memory.
            vttbr: _,
            clock,
            // It follows from the host's counter and the site file's rate, which is the clock's: what reads the file sees to that.
            nanoseconds: _,
            // The memory-mapped timer sets it when the VM goes on.
            timer_at: _,
            // Addresses of this host's. Each vCPU's stolen time is saved with it; the device writes the clock's page anew.
            records: _,
            clock_pages: _,
            // It is: only then is it saved.
            paused: _,
        } = self;
        let Doors { service, watchdogs } = doors;
        let time = *clock.lock();
        let clock = time.clock();
        let milliseconds = clock.milliseconds(now);
        let traps = host::get().controls.cnthctl_scaled != 0;
        let calls = service.as_ref().map(|service| service.lock().save(milliseconds).and_then(Boxed::new)).transpose();
        Ok(SavedVm {
            machine: Boxed::new(self.shape())?,
            time: SavedTime { clock: clock.save(now, traps), away: time.away() },
            life: *life,
            gic: Boxed::new(gic.lock().save().map_err(|unfit| sentence!("{unfit}"))?)?,
            vcpus,
            devices: Self::save_devices(devices)?,
            watchdogs: watchdogs.save(milliseconds),
            calls: calls?,
        })
    }

    fn save_devices(devices: &Devices) -> Result<Vec<u8>, Damaged> {
        let mut out = Writer::new();
        for slot in devices.bus().slots() {
            slot.enter(&mut |wired| wired.save_to(&mut out));
        }
        out.finish()
    }

    /// Puts a state in at `now`, but for the registers of its vCPUs, which are these. VMware's service takes its part as it is: there
    /// may be no room for a second one.
    ///
    /// # Errors
    /// A sentence that says what does not fit. Some of it may have been put in.
    pub(crate) fn restore_machine(
        &self,
        life: &mut Life,
        saved: &mut SavedVm,
        vcpus: VcpuSet,
        now: Ticks,
    ) -> Result<(), Sentence> {
        // The vCPUs' registers are the caller's.
        let SavedVm { machine, time, life: saved_life, gic, vcpus: _, devices, watchdogs, calls } = saved;
        machine.compare(&self.shape()).map_err(|difference| sentence!("{difference}"))?;
        life.restore(saved_life, vcpus)?;
        let SavedTime { clock: saved_clock, away } = time;
        let clock = GuestClock::restore(saved_clock, host::get().counter, now);
        let clock = clock.map_err(|refused| sentence!("{refused}"))?;
        // Its choice goes with it, whatever the site file says of those that begin here.
        self.set_clock(VmClock::new(clock, self.config.pause_stops_time, *away), now);
        super::time::warn_of_virtual_counter(self, &clock, saved_clock);
        let gic = Vgic::restore(gic_config(self.config.vcpus), gic).map_err(|unfit| sentence!("{unfit}"))?;
        *self.gic.lock() = gic;
        // Behind the interrupt controller, which hears of their lines: what it heard before it was put in would be lost.
        self.restore_devices(devices)?;
        self.doors.watchdogs.restore(watchdogs, vcpus)?;
        match (&self.doors.service, calls.take()) {
            (Some(service), Some(calls)) => {
                self.doors.set_counter(clock.frequency());
                service.lock().restore(calls.into_inner(), clock.milliseconds(now)).map_err(Sentence::from)
            }
            (None, None) => Ok(()),
            (Some(_), None) => {
                Err(sentence!("it was saved without VMware's guest ABI; its site file says vmware = true"))
            }
            (None, Some(_)) => {
                Err(sentence!("it was saved with VMware's guest ABI; its site file would say vmware = true"))
            }
        }
    }

    fn restore_devices(&self, saved: &[u8]) -> Result<(), Damaged> {
        let mut from = Reader::new(saved);
        let mut done = Ok(());
        self.devices.restore(self, |wired, outside| {
            if done.is_ok() {
                done = wired.restore_from(&mut from, outside);
            }
        });
        done?;
        if from.left() > 0 { Err(Damaged::Long("devices")) } else { Ok(()) }
    }

    /// Tells its devices, and by them its guest, that it goes on from a state that may go on elsewhere too.
    pub(crate) fn has_forked(&self) {
        self.devices.change(self, Change::Fork);
    }

    /// A state was refused when some of it was in already: what outlasts a start is none of it then.
    pub(crate) fn forget_state(&self) {
        self.devices.change(self, Change::Fork);
        self.doors.scrub();
    }

    /// The clock of a paused VM that all vCPUs have left.
    fn set_clock(&self, clock: VmClock, now: Ticks) {
        let mut place = self.clock.lock();
        *place = clock;
        place.pause(now);
    }

    /// Makes everything as it is after power on, but memory and vCPUs' registers: what is forgotten when a state is put in shows
    /// then. For checks.
    pub(crate) fn scrub_machine(&self, life: &mut Life, now: Ticks) -> Result<(), Sentence> {
        let power = SavedPower { count: self.config.vcpus, on: 1, pending: 0 };
        let nobody = SavedLife { power, starts: Default::default() };
        life.restore(&nobody, life.begun())?;
        self.set_clock(super::time::vm_clock(&self.config, new_clock(&self.config, now)), now);
        self.gic.lock().reset();
        // Otherwise at the end of a life, with all of its memory.
        self.ram.lock().end_enclaves();
        self.devices.change(self, Change::Reset);
        self.doors.scrub();
        Ok(())
    }

    /// Sets a vCPU's record of stolen time, which it brings up to date itself whenever it runs.
    pub(crate) fn write_stolen_time(&self, vcpu: VcpuId, stolen: Stolen) {
        if let Some(handle) = self.vcpus().get(vcpu.index()) {
            handle.set_stolen_time(self.record(vcpu), stolen, self.nanoseconds(stolen.0));
        }
    }
}

impl Doors {
    /// As after power on: no watchdogs, no channels, no values.
    fn scrub(&self) {
        self.watchdogs.stop();
        if let Some(service) = &self.service {
            service.lock().forget();
        }
    }
}
