//! A paused VM as a value: taken out, and put into the same VM or one of the same shape.
//!
//! Nothing here costs a guest that runs. The caller holds the lock of the VM's life from the first register to the last
//! ([`Still`]), so that nobody resumes it, stops it or starts a vCPU in between. What is saved is taken apart into all its fields,
//! as in [`crate::vm::saved`].

extern crate alloc;

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ::vm::stolen::Stolen;
use hw::sync::PreemptGuard;
use hw::sysreg;
use hw::vcpu::VcpuContext;
use services::psci::Start;
use snapshot::{SavedVcpu, SavedVm};
use spin::Once;
use units::{ByteOrder, Ipa, MAX_VCPUS, Ticks, VcpuId, VcpuSet};

use super::time::SavedTimes;
use super::{VCPUS, Vcpu};
use crate::host;
use crate::host::text::{Sentence, sentence};
use crate::vm::handle::request;
use crate::vm::{Life, Vm};

/// A paused VM that all its vCPUs have left, and which stays so.
pub struct Still {
    vm: &'static Vm,
    life: PreemptGuard<'static, Life>,
    /// By which count all of it is saved and put in: so its clock loses nothing in between.
    now: Ticks,
}

impl Still {
    /// `vm`, if it is paused and its vCPUs stand still; they take a moment.
    #[must_use]
    pub fn of(vm: &'static Vm) -> Option<Self> {
        let life = vm.life();
        let is_still = life.save().is_some() && vm.is_left();
        is_still.then(|| Self { vm, life, now: Ticks(sysreg::cntpct_el0()) })
    }

    /// The vCPUs that have registers.
    fn vcpus(&self) -> impl Iterator<Item = &'static Vcpu> {
        let (vm, begun) = (self.vm, self.life.begun());
        let all = VCPUS.iter().filter_map(Once::get).copied();
        all.filter(move |vcpu| core::ptr::eq(vcpu.vm, vm) && begun.contains(vcpu.id))
    }

    /// Takes its state out.
    ///
    /// # Errors
    /// A sentence that says why that is impossible.
    pub fn save(&self) -> Result<SavedVm, Sentence> {
        let life = self.life.save().ok_or_else(|| sentence!("it is not paused"))?;
        let mut vcpus = Vec::new();
        for vcpu in self.vcpus() {
            vcpus.try_reserve(1).map_err(|_| sentence!("the hypervisor has no memory left for its vCPUs"))?;
            vcpus.push(vcpu.save_registers_out()?);
        }
        self.vm.save_machine(&life, vcpus, self.now)
    }

    /// Behind a restore on a host that may be another one: where a vCPU's virtual timer is the hardware's, its line in the model goes
    /// down. Where the VM was saved that timer was emulated, perhaps, and its line was up: here nobody would take it down. On the
    /// host on which it was taken out the line stands for an interrupt that the hardware has active, and has to stay.
    pub fn forget_timers_elsewhere(&self) {
        if self.vm.clock().hardware_offset().is_none() && host::get().controls.cnthctl_scaled != 0 {
            return;
        }
        let interrupt = self.vm.plan.timer_interrupts().virtual_;
        for vcpu in self.vcpus() {
            let concerned = self.vm.gic.lock().set_ppi_level(vcpu.id, interrupt, vgic::Line::Low);
            self.vm.refresh(concerned);
        }
    }

    /// Puts a state in, of which it takes away what is large. The guest sees nothing of its memory before it touches it.
    ///
    /// # Errors
    /// A sentence that says what does not fit. The VM cannot go on then: some of it may have been put in.
    pub fn restore(&mut self, saved: &mut SavedVm) -> Result<(), Sentence> {
        let mut numbers = VcpuSet::EMPTY;
        for (place, vcpu) in saved.vcpus.iter().enumerate() {
            let is_next = place.checked_sub(1).and_then(|before| saved.vcpus.get(before));
            if usize::from(vcpu.number) >= MAX_VCPUS || is_next.is_some_and(|before| before.number >= vcpu.number) {
                return Err(sentence!("its vCPUs do not stand in order"));
            }
            numbers.insert(VcpuId(vcpu.number));
        }
        self.vm.ram.lock().hide().map_err(|error| sentence!("{error}"))?;
        self.vm.restore_machine(&mut self.life, saved, numbers, self.now)?;
        for (vcpu, saved) in self.vcpus().zip(&saved.vcpus) {
            if self.life.was_put_in(vcpu.id) {
                // It has not begun in this life.
                vcpu.scrub();
            }
            vcpu.put_registers_in(saved)?;
        }
        Ok(())
    }

    /// Makes everything but its memory as it is after power on, by the ways of a reset and not by those of [`Still::restore`]: what
    /// that forgets shows then. For checks.
    ///
    /// # Errors
    /// A sentence.
    pub fn scrub(&mut self) -> Result<(), Sentence> {
        self.vm.scrub_machine(&mut self.life, self.now)?;
        for vcpu in self.vcpus() {
            vcpu.scrub();
        }
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.vm.config.name
    }
}

impl Vcpu {
    /// Takes its registers out. It stands still.
    fn save_registers_out(&self) -> Result<SavedVcpu, Sentence> {
        let host = host::get();
        let Self {
            // Its registers: `with_state` below has its lock.
            state: _,
            // Saved by the caller.
            vm: _,
            handle,
            time,
            // A copy of the clock, made anew when it goes on.
            view: _,
            // How often it has tried one access again: it may begin to count once more.
            tries: _,
            // Its number and its thread on this host.
            index: _,
            context: _,
            general,
            // It follows from how many CPUs and vCPUs the host has.
            gives_way: _,
            // It has left its CPU, so they are in the interrupt controller's model, and the copies of them are without meaning.
            list: _,
            at_rest: _,
            list_filled: _,
            timer_list_register: _,
        } = self;
        let (number, kept) = (handle.id.0, handle.save());
        let mut general = *general.lock();
        let SavedTimes { physical, trapped_virtual: trapped } = time.lock().save();
        let registers = self.with_state(|state| {
            if let Some(timer) = trapped {
                [state.el1.cntv_ctl_el0, state.el1.cntv_cval_el0] = timer;
            }
            let registers = state.registers(&mut general, &host.features).save();
            if trapped.is_some() {
                // The hardware's stays off.
                state.el1.cntv_ctl_el0 = 0;
            }
            registers
        });
        let mut registers = registers?;
        registers.pending_error |= kept.pending_error;
        Ok(SavedVcpu {
            number,
            registers,
            physical_timer: physical,
            stolen: kept.stolen.0,
            stolen_frequency: host.counter.0,
        })
    }

    /// Puts its registers in. It stands still, and looks at its interrupts, timers and clock when it goes on.
    fn put_registers_in(&self, saved: &SavedVcpu) -> Result<(), Sentence> {
        let host = host::get();
        let SavedVcpu { number: _, registers, physical_timer, stolen: _, stolen_frequency: _ } = saved;
        // It says which of the timers are emulated here.
        self.adopt_clock();
        let mut general = self.general.lock();
        let traps_virtual = self.time.lock().traps_virtual();
        let (put, timer) = self.with_state(|state| {
            let put = state.registers(&mut general, &host.features).restore(registers);
            let timer = [state.el1.cntv_ctl_el0, state.el1.cntv_cval_el0];
            if traps_virtual {
                // The hardware's stays off.
                state.el1.cntv_ctl_el0 = 0;
            }
            (put, timer)
        });
        if traps_virtual {
            self.time.lock().restore_virtual(timer);
        }
        put.map_err(|unfit| sentence!("{unfit}"))?;
        drop(general);
        self.time.lock().restore_physical(physical_timer).map_err(|refused| sentence!("{refused}"))?;
        self.vm.write_stolen_time(self.id, Stolen(saved.stolen_here(host.counter.0)));
        Ok(())
    }

    /// It is switched on with the registers that were put in: its thread takes over those that a thread has.
    pub(crate) fn take_registers(&self, context: &mut VcpuContext) {
        context.set_general(&self.general.lock());
        self.adopt_clock();
        // Pairs with the swap in `heed`, which is this thread's own.
        self.requests.fetch_or(request::INTERRUPTS | request::TIMER, Ordering::AcqRel);
    }

    /// Its registers are as after power on. It stands still.
    fn scrub(&self) {
        let mut context = VcpuContext::default();
        self.reset(Start { vcpu: self.id, entry: Ipa(0), context: 0, order: ByteOrder::Little }, &mut context);
        *self.general.lock() = context.general();
        // Pairs with the looks of its thread, which sleeps.
        self.requests.fetch_and(!request::SERROR, Ordering::AcqRel);
        self.vm.write_stolen_time(self.id, Stolen::default());
    }
}
