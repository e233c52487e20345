//! A vCPU: its thread, its registers, its requests.
//!
//! The thread owns the general registers; the rest of the state lives in [`GuestState`] and stays in a CPU's registers
//! until another vCPU comes to that CPU ([`Vcpu::go_on`]). Other threads never touch a running vCPU: they set a request
//! bit and interrupt it, and it serves the request before it enters the guest again.

extern crate alloc;

use alloc::boxed::Box;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ::vm::needs;
use ::vm::stolen::NotStolen;
use clock::GuestTicks;
use cpu::registers::General;
use cpu::retry::Tries;
use cpu::{controls, reset};
use hw::percpu::this_cpu;
use hw::state::{Controls, El1, Features, GuestState, active_priorities, read_list_register, write_list_register};
use hw::sync::{IrqLock, PreemptLock, with_irqs, without_irqs};
use hw::vcpu::{ContextHandle, VcpuContext};
use hw::{gic, sysreg};
use log::Level;
use services::psci::Start;
use services::stolen_time::STOLEN_OFFSET;
use spin::Once;
use units::{Pa, Ticks, VcpuId, VcpuSet};
use vgic::{ListRegisters, Power, Vgic, virtual_control};

mod cpu_interface;
mod devices;
pub(crate) mod exception;
pub mod saved;
mod time;
pub(crate) mod traps;

use crate::host;
use crate::sched::{self, NOBODY, Occupant, Registers, Thread};
use crate::vm::Vm;
use crate::vm::devices::Wait;
use crate::vm::handle::{VcpuHandle, request};
use time::{Time, View};

/// How many vCPUs there can be on one host.
pub(crate) const MAX_TOTAL: usize = 512;
/// CNTV_CTL_EL0 and CNTP_CTL_EL0: ENABLE and IMASK.
const TIMER_ENABLE: u64 = 1;
const TIMER_MASKED: u64 = 2;
/// ISTATUS: the condition is met.
const TIMER_STATUS: u64 = 4;

/// Why a vCPU's thread left the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leave {
    /// The VM stops.
    Stopped,
    /// The vCPU switched itself off.
    SwitchedOff,
    /// The vCPU suspended itself and was woken: it starts afresh.
    Resumed(Start),
}

/// What [`Vcpu::heed`] found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heed {
    /// The guest may be entered.
    Enter,
    /// Time has passed: more may be asked by now.
    LookAgain,
    /// The VM stops.
    Leave,
}

/// One virtual CPU. Lives for ever.
///
/// In this order in memory: behind an offset, the address of the state's lock, which each switch takes twice, would be computed
/// at each use, for a load with acquire has no offset.
#[repr(C)]
pub struct Vcpu {
    state: IrqLock<GuestState>,
    /// The machine it belongs to.
    pub(crate) vm: &'static Vm,
    /// What others see of it.
    handle: VcpuHandle,
    /// Its VM's clock and the EL1 physical timer. Its own thread's business.
    time: PreemptLock<Time>,
    /// What its counter shows.
    view: View,
    /// What it was let to try again.
    pub(crate) tries: PreemptLock<Tries>,
    index: usize,
    context: Once<ContextHandle>,
    /// Its general registers, while it stands still.
    general: PreemptLock<General>,
    /// Others may need its CPU: it gives it away while it waits.
    gives_way: AtomicBool,
    list: IrqLock<ListRegisters>,
    /// A copy of [`ListRegisters::at_rest`], which a switch looks at without the lock.
    at_rest: AtomicBool,
    /// List registers that the timer's short path filled since the last sync.
    list_filled: AtomicU32,
    /// The list register by which the virtual timer's interrupt can be handed over without asking the model; 0 if the
    /// model must be asked.
    timer_list_register: AtomicU64,
}

// What is counted before a site is accepted: these, and what an allocator adds.
const _: () =
    assert!((size_of::<Vcpu>() + size_of::<Thread>() + size_of::<VcpuContext>() + 256) as u64 <= needs::HEAP_OF_A_VCPU);

static VCPUS: [Once<&'static Vcpu>; MAX_TOTAL] = [const { Once::new() }; MAX_TOTAL];
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The vCPU with this number, as [`VcpuContext::owner`] has it.
#[inline(always)]
#[must_use]
pub(crate) fn by_index(index: usize) -> Option<&'static Vcpu> {
    VCPUS.get(index).and_then(Once::get).copied()
}

/// The vCPU whose state is in each CPU's registers.
static LOADED: [IrqLock<Option<&'static Vcpu>>; platform::MAX_CPUS] =
    [const { IrqLock::new(None) }; platform::MAX_CPUS];

/// The vCPU whose state is in this CPU's registers. IRQs are masked, or it may be another's a moment later.
#[inline(always)]
pub(crate) fn loaded_here() -> &'static IrqLock<Option<&'static Vcpu>> {
    match LOADED.get(usize::from(this_cpu().cpu.0)) {
        Some(loaded) => loaded,
        None => unreachable!("CPU {} is more than there can be", this_cpu().cpu.0),
    }
}

impl Vcpu {
    /// Makes vCPU `id` of `vm`, with a thread that does `run` with the vCPU's number ([`by_index`]). Gives what others see of it.
    ///
    /// # Errors
    /// When there is no memory or no number for it.
    pub(crate) fn create(
        vm: &'static Vm,
        id: VcpuId,
        run: fn(usize) -> !,
    ) -> Result<&'static VcpuHandle, frames::FramesError> {
        let index = COUNT.fetch_add(1, Ordering::Relaxed) as usize;
        let fixed = &host::get().controls;
        let controls = Controls {
            hcr: fixed.hcr,
            mdcr: fixed.mdcr,
            cptr: fixed.cptr,
            vttbr: 0,
            vmpidr: reset::vmpidr_el2(id),
            cntvoff: 0,
            scaled_time: time::scaled_controls(&vm.clock()),
            os_lock: true,
            ..Controls::default()
        };
        let vcpu: &'static Self = Box::leak(Box::new(Self {
            state: IrqLock::new(GuestState::new(controls)),
            vm,
            handle: VcpuHandle::new(id),
            time: PreemptLock::new(Time::new(vm.clock())),
            view: View::new(),
            tries: PreemptLock::new(Tries::new()),
            index,
            context: Once::new(),
            general: PreemptLock::new(General::default()),
            gives_way: AtomicBool::new(false),
            list: IrqLock::new(ListRegisters::new()),
            at_rest: AtomicBool::new(false),
            list_filled: AtomicU32::new(0),
            timer_list_register: AtomicU64::new(0),
        }));
        VCPUS.get(index).ok_or(frames::FramesError::OutOfFrames)?.call_once(|| vcpu);
        let share = (vm.config.weight, vm.config.affinity);
        let thread = Thread::spawn(vm.config.name, run, index, share)?;
        thread.set_occupant(Occupant {
            registers: vcpu,
            loaded_on: &vcpu.handle.loaded_on,
            requests: &vcpu.handle.requests,
            alarm: request::TIMER,
        });
        vcpu.handle.set_thread(thread);
        Ok(&vcpu.handle)
    }

    /// Whether others may need its CPU. Otherwise it waits in the guest, by the CPU's own WFI.
    #[inline(always)]
    #[must_use]
    pub(crate) fn gives_way(&self) -> bool {
        self.gives_way.load(Ordering::Relaxed)
    }

    /// Puts its state into this CPU's registers, unless it is there, and the state that was there into memory. IRQs are
    /// masked; called by the vCPU's own thread. It is on.
    #[inline(always)]
    fn load(&'static self) {
        let features = &host::get().features;
        let mut loaded = loaded_here().lock();
        if loaded.is_some_and(|other| core::ptr::eq(other, self)) {
            return;
        }
        if let Some(other) = loaded.replace(self) {
            other.save(features);
        }
        debug_assert!(!self.is_loaded());
        sched::occupy();
        // Pairs with the acquire in `VcpuHandle::loaded_on`: `sync_others` asks a vCPU of which it finds this.
        self.loaded_on.store(u32::from(this_cpu().cpu.0), Ordering::Release);
        self.state.lock().load(features);
        if let Some(context) = self.context.get() {
            context.make_current();
        }
        drop(loaded);
        if !self.at_rest.load(Ordering::Relaxed) {
            self.refresh_interrupts();
        }
    }

    /// Its thread goes on after others ran, perhaps on another CPU. IRQs are masked.
    ///
    /// Does nothing while the vCPU is off: its thread is scheduled then too, to load images or to wait, and its state is to
    /// be reset in memory.
    #[inline(always)]
    pub(crate) fn go_on(&'static self) {
        if self.resident.load(Ordering::Relaxed) {
            self.load();
            self.tell_stolen_time();
        }
    }

    /// When its thread has waited so much in all, no more is stolen than its record says, in which something else may have been put.
    fn nothing_is_stolen(&self, waited: Ticks) {
        self.not_stolen.store(NotStolen::when(waited, self.stolen_time()).0, Ordering::Relaxed);
    }

    /// Brings its record up to date. While the vCPU is off its thread may wait too; that is nobody's loss, and not counted.
    #[inline(always)]
    fn tell_stolen_time(&self) {
        let stolen = NotStolen(self.not_stolen.load(Ordering::Relaxed)).stolen(self.thread().wait_time());
        self.stolen.store(stolen.0, Ordering::Relaxed);
        if let Some(record) = self.vm.record(self.id) {
            let time = Pa(record.0 + STOLEN_OFFSET);
            hw::memory::write_word(time, self.vm.nanoseconds(stolen.0));
        }
    }

    /// Saves this CPU's registers, which hold its state.
    ///
    /// The list registers of a vCPU at rest are empty, and stay so until somebody asks it to look
    /// ([`request::INTERRUPTS`]), which it does before it enters the guest: there is nothing to do for them, neither now
    /// nor when it is loaded again.
    #[inline(always)]
    fn save(&self, features: &Features) {
        let physical = if self.is_at_rest() { 0 } else { self.take_back_interrupts() };
        self.save_registers(physical, features);
    }

    /// Saves the rest; `physical` are the interrupts of this CPU that are to be deactivated once the timer is disarmed.
    #[inline(always)]
    fn save_registers(&self, mut physical: u32, features: &Features) {
        self.state.lock().save(features);
        // Behind that, which has disarmed the timer: it would fire again at once, here, for nobody.
        while physical != 0 {
            gic::set_active(units::IntId(physical.trailing_zeros()), false);
            physical &= physical - 1;
        }
        // Pairs with the acquires in `Thread::is_movable` and `VcpuHandle::loaded_on`: whoever finds it nowhere finds all
        // of its state in memory, or another CPU would run it with what it was before.
        self.loaded_on.store(NOBODY, Ordering::Release);
    }

    /// Empties the list registers into the model; returns the physical interrupts that are let go of, to be deactivated. It is
    /// loaded, and about to leave.
    #[inline(never)]
    fn take_back_interrupts(&self) -> u32 {
        let mut list = self.list.lock();
        self.collect(&mut list);
        let mut used = list.used;
        let mut gic = self.vm.gic.lock_masked();
        let others = gic.sync(self.id, &mut list);
        let physical = gic.detach_hardware(self.id);
        let usual_control = gic.usual_control();
        drop(gic);
        // The model has everything now; what is loaded next time is chosen afresh.
        while used != 0 {
            write_list_register(used.trailing_zeros() as usize, 0);
            used &= used - 1;
        }
        list.forget(usual_control);
        self.at_rest.store(false, Ordering::Relaxed);
        drop(list);
        self.vm.refresh_others(others, self.id);
        physical
    }

    /// Reads the list registers that the guest may have changed.
    fn collect(&self, list: &mut ListRegisters) {
        list.used |= self.list_filled.swap(0, Ordering::Relaxed) as u16;
        let mut used = list.used;
        while used != 0 {
            let index = used.trailing_zeros() as usize;
            if let Some(value) = list.lr.get_mut(index) {
                *value = read_list_register(index);
            }
            used &= used - 1;
        }
        list.vmcr = sysreg::ich_vmcr_el2::read();
        if list.hcr & virtual_control::LRENPIE != 0 {
            list.hcr = sysreg::ich_hcr_el2::read();
        }
    }

    /// Chooses the list registers anew from what is pending. It is loaded.
    pub(crate) fn refresh_interrupts(&self) {
        self.with_gic(|_| VcpuSet::EMPTY);
    }

    /// Waits until the GIC model has what is in the list registers of other vCPUs. One that runs does that itself; one that was
    /// preempted may have left its registers where it ran, and that CPU is asked to empty them. Both happen soon, and whatever this
    /// vCPU is asked it does meanwhile, so that two cannot wait for each other: it goes on with an answer that is right, however
    /// long another CPU takes for its part.
    #[inline(never)]
    pub(crate) fn sync_others(&self, set: VcpuSet) {
        for id in set.iter().filter(|&id| id != self.id) {
            let Some(vcpu) = self.vm.vcpus().get(id.index()) else { continue };
            let before = vcpu.syncs();
            let mut is_asked = false;
            while vcpu.syncs() == before
                && let Some(cpu) = vcpu.loaded_on()
            {
                if !vcpu.thread().is_running() {
                    // At each look: it may have run meanwhile, and have left its registers once more, on this CPU or on another.
                    sched::ask_to_release(cpu);
                } else if !core::mem::replace(&mut is_asked, true) {
                    vcpu.request(request::INTERRUPTS);
                }
                // Only what it is asked for others' sake: for all else it has time until it is done here.
                // Pairs with the addition in `sched::ask`.
                if self.has_requests()
                    && self.requests.fetch_and(!request::INTERRUPTS, Ordering::AcqRel) & request::INTERRUPTS != 0
                {
                    self.refresh_interrupts();
                }
                hw::sync::relax();
            }
        }
    }

    /// Lets `work` change the GIC model, which knows everything about this vCPU meanwhile, and brings the list registers
    /// up to date. `work` returns the other vCPUs that are concerned. It is loaded.
    pub(crate) fn with_gic(&self, work: impl FnOnce(&mut Vgic) -> VcpuSet) {
        let mut list = self.list.lock();
        let list = &mut *list;
        self.collect(list);
        let mut gic = self.vm.gic.lock_masked();
        let mut concerned = gic.sync(self.id, list);
        self.withdraw_timer(&mut gic);
        concerned = concerned.union(work(&mut gic));
        gic.flush(self.id, list);
        if list.hcr & virtual_control::LRENPIE != 0 {
            gic.note_running(self.id, list.vmcr, active_priorities(&host::get().features));
        }
        let timer = gic.hardware_list_register(self.id, gic::VIRTUAL_TIMER, gic::VIRTUAL_TIMER);
        drop(gic);
        // Pairs with the acquire in `VcpuHandle::syncs`: whoever sees it change sees the model as it is now.
        self.syncs.store(self.syncs.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        self.timer_list_register.store(timer.unwrap_or(0), Ordering::Relaxed);
        self.at_rest.store(list.at_rest, Ordering::Relaxed);
        let mut dirty = core::mem::take(&mut list.dirty);
        while dirty != 0 {
            let index = dirty.trailing_zeros() as usize;
            write_list_register(index, list.lr.get(index).copied().unwrap_or(0));
            dirty &= dirty - 1;
        }
        if core::mem::take(&mut list.hcr_dirty) {
            sysreg::ich_hcr_el2::write(list.hcr);
        }
        let mut deactivate = core::mem::take(&mut list.deactivate);
        while deactivate != 0 {
            gic::set_active(units::IntId(deactivate.trailing_zeros()), false);
            deactivate &= deactivate - 1;
        }
        concerned.remove(self.id);
        if !concerned.is_empty() {
            self.vm.refresh_others(concerned, self.id);
        }
    }

    /// The virtual timer's line is a level: its interrupt, fired and not yet taken, goes away with its cause. Between sync
    /// and flush; it is loaded.
    #[inline(always)]
    fn withdraw_timer(&self, gic: &mut Vgic) {
        if gic.hardware_linked(self.id) >> gic::VIRTUAL_TIMER.0 & 1 != 0
            && sysreg::cntv_ctl_el0::read() & (TIMER_ENABLE | TIMER_MASKED | TIMER_STATUS)
                != TIMER_ENABLE | TIMER_STATUS
            && gic.lower_hardware(self.id, gic::VIRTUAL_TIMER)
        {
            gic::set_active(gic::VIRTUAL_TIMER, false);
        }
    }

    /// The virtual timer's interrupt, active on this CPU, goes to the guest through a free list register if nothing
    /// stands in the way. Says whether that was possible.
    #[inline(always)]
    pub(crate) fn hand_over_timer(&self) -> bool {
        let value = self.timer_list_register.load(Ordering::Relaxed);
        let free = sysreg::ich_elrsr_el2() as u32;
        if value == 0 || free == 0 {
            return false;
        }
        let index = free.trailing_zeros();
        write_list_register(index as usize, value);
        self.list_filled.store(self.list_filled.load(Ordering::Relaxed) | 1 << index, Ordering::Relaxed);
        true
    }

    /// An SGI of group 1 to itself alone, if `value` (ICC_SGI1R_EL1) says that and nothing stands in the way. It is loaded;
    /// IRQs are masked.
    #[inline(always)]
    pub(crate) fn send_sgi_to_self(&self, value: u64) -> bool {
        let mut list = self.list.lock_masked();
        let free = sysreg::ich_elrsr_el2() as u16 & !(self.list_filled.load(Ordering::Relaxed) as u16);
        let Some(index) = self.vm.gic.lock_masked().sgi_list_register(self.id, value, &mut list, free) else {
            return false;
        };
        write_list_register(index, list.lr.get(index).copied().unwrap_or(0));
        self.at_rest.store(false, Ordering::Relaxed);
        true
    }

    /// WFI: sleeps until an interrupt is pending for the guest, its counter shows `until` (WFIT), or something is asked of the
    /// vCPU. It is loaded.
    ///
    /// The model has nothing to say of a vCPU at rest of which nothing was asked: nothing is pending for it.
    pub(crate) fn wait_for_interrupt(&'static self, until: Option<GuestTicks>) {
        let knows_nothing = |now| self.is_at_rest() && !self.is_timer_due(now);
        self.wait(knows_nothing, |gic, vmcr| gic.has_deliverable(self.id, vmcr), until);
    }

    /// CPU_SUSPEND with power down: as WFI, but whatever the CPU interface masks.
    pub(crate) fn wait_for_wake_up(&'static self) {
        self.wait(|_| false, |gic, _| gic.has_wake_request(self.id), None);
    }

    /// Whether its list registers are empty, and all that could fill them would be asked of it.
    #[inline(always)]
    fn is_at_rest(&self) -> bool {
        self.at_rest.load(Ordering::Relaxed) && self.list_filled.load(Ordering::Relaxed) == 0
    }

    fn wait(
        &'static self,
        knows_nothing: impl Fn(Ticks) -> bool,
        awake: impl Fn(&Vgic, u64) -> bool,
        until: Option<GuestTicks>,
    ) {
        let timer = self.vm.plan.timer_interrupts().virtual_;
        let mut stands_in = false;
        loop {
            let answered = request::INTERRUPTS | request::TIMER | request::DEVICES;
            // Pairs with the addition in `sched::ask`. The bits go before what they ask for is done: one that is set
            // meanwhile is found later.
            let asked = self.requests.fetch_and(!answered, Ordering::AcqRel);
            if asked & request::DEVICES != 0 {
                // Here, since the guest would take its return for a wake-up.
                self.carry_on(Wait::Turn);
            }
            let mut ready = false;
            // One for all that is looked at: what fires later has a deadline.
            let now = Ticks(sysreg::cntpct_el0());
            if asked & (request::INTERRUPTS | request::TIMER) != 0 || !knows_nothing(now) {
                self.update_timers_at(now);
                let vmcr = sysreg::ich_vmcr_el2::read();
                let has_fired = self.hardware_timer_is_up(now);
                // Between sync and flush: at any other time list registers hold a part of what waits, and the model does not know it.
                self.with_gic(|gic| {
                    ready = awake(gic, vmcr);
                    if ready || !has_fired {
                        return VcpuSet::EMPTY;
                    }
                    // A timer that has fired does not wake it once more. Who does is whoever lets it have the interrupt, also when it has
                    // left this CPU, where the physical one is.
                    stands_in = true;
                    let concerned = gic.raise_stand_in(self.id, timer);
                    ready = concerned.is_none() || awake(gic, vmcr);
                    concerned.unwrap_or(VcpuSet::EMPTY)
                });
            }
            let deadline = self.next_deadline(now, until);
            if ready || self.has_requests() || deadline.is_some_and(|deadline| deadline <= now) {
                break;
            }
            sched::block(deadline);
        }
        if stands_in {
            self.with_gic(|gic| gic.set_ppi_level(self.id, timer, vgic::Line::Low));
        }
    }

    /// Puts its registers into the state of a CPU that was just switched on (PSCI, section 6.4), to start as `start`
    /// says. It is not loaded.
    pub(crate) fn reset(&self, start: Start, context: &mut VcpuContext) {
        let owner = context.owner;
        *context = VcpuContext { owner, pc: start.entry.0, pstate: reset::PSTATE, ..VcpuContext::default() };
        context.set_register(0, start.context);
        self.reset_time();
        let usual_control = self.vm.gic.lock().usual_control();
        let mut state = self.state.lock();
        state.controls.vttbr = self.vm.vttbr();
        state.controls.os_lock = true;
        traps::prepare(&self.vm.config.doors, &mut state.controls);
        let all = VCPUS.iter().filter_map(Once::get);
        let gives_way = !sched::has_cpu_of_its_own(self.thread(), all.filter_map(|vcpu| vcpu.made_thread()));
        self.gives_way.store(gives_way, Ordering::Relaxed);
        // WFIT and WFET, which wait by the hardware's virtual count, trap together with WFI and WFE.
        if gives_way || time::traps_virtual(&state.controls) {
            state.controls.hcr |= controls::HCR_TWI | controls::HCR_TWE;
        }
        state.reset(El1 {
            sctlr_el1: reset::sctlr_el1(start.order),
            cpacr_el1: reset::CPACR_EL1,
            mdscr_el1: reset::MDSCR_EL1,
            cntkctl_el1: reset::CNTKCTL_EL1,
            ..El1::default()
        });
        state.interrupts.hcr = usual_control;
        drop(state);
        self.list.lock().forget(usual_control);
        self.at_rest.store(false, Ordering::Relaxed);
        *self.tries.lock() = Tries::new();
        self.timer_list_register.store(0, Ordering::Relaxed);
    }

    /// The context that its thread runs the guest with; once, by that thread.
    pub(crate) fn make_context(&'static self) -> &'static mut VcpuContext {
        let (context, handle) = VcpuContext::create(self.index);
        self.context.call_once(|| handle);
        context
    }

    /// Lets `run` run the guest until the vCPU leaves it: it is on and loaded meanwhile, whenever its thread runs. IRQs are masked.
    pub(crate) fn on(&'static self, run: impl FnOnce() -> Leave) -> Leave {
        without_irqs(|| {
            self.resident.store(true, Ordering::Relaxed);
            self.tell_power(Power::On);
            self.load();
            // What its thread waited while the vCPU was off does not count.
            self.nothing_is_stolen(self.thread().wait_time());
            let leave = run();
            self.resident.store(false, Ordering::Relaxed);
            self.unload();
            if !matches!(leave, Leave::Resumed(_)) {
                self.tell_power(Power::Off);
            }
            self.hand_timer_over();
            // Others may be able to. Behind the store above, so that whoever asks later sees that it is off.
            // Pairs with the addition in `sched::ask`.
            if self.requests.fetch_and(!request::DEVICES, Ordering::AcqRel) & request::DEVICES != 0 {
                self.vm.console.ask_for_turn();
            }
            leave
        })
    }

    /// Tells the GIC model whether the vCPU is on, for the interrupts that may go to any.
    fn tell_power(&self, power: Power) {
        let concerned = self.vm.gic.lock().set_power(self.id, power);
        self.vm.refresh_others(concerned, self.id);
    }

    /// Does what is asked of it. It is loaded; IRQs are masked, and stay so until its guest is entered, or more might be asked.
    #[inline(always)]
    pub(crate) fn heed(&'static self, context: &mut VcpuContext) -> Heed {
        if !self.has_requests() {
            return Heed::Enter;
        }
        // Pairs with the release in `sched::ask`: what was written before the bit was set is seen from here on.
        let requests = self.requests.swap(0, Ordering::AcqRel);
        if requests & request::STOP != 0 {
            return Heed::Leave;
        }
        if requests & request::PAUSE != 0 {
            self.stand_still(requests & !request::PAUSE, context);
            return Heed::LookAgain;
        }
        if requests & request::SERROR != 0 {
            sysreg::hcr_el2::write(sysreg::hcr_el2::read() | controls::HCR_VSE);
        }
        if requests & request::TIMER != 0 {
            self.update_timers();
        }
        if requests & request::DEVICES != 0 {
            with_irqs(|| self.carry_on(Wait::Turn));
            // Whatever else was asked, interrupts among it, was taken off above: it is done here as well.
            self.refresh_interrupts();
            return Heed::LookAgain;
        }
        self.refresh_interrupts();
        Heed::Enter
    }

    /// Sleeps for as long as the VM is paused; what else was asked is asked again.
    ///
    /// Its registers are in memory meanwhile, where they may be saved and put in ([`saved`]): the hardware's timer would fire by
    /// a count that its clock, which may stand still, does not reach. It goes by the VM's clock as that is afterwards.
    #[cold]
    fn stand_still(&'static self, requests: u32, context: &mut VcpuContext) {
        // Pairs with the swap in `heed`, which is this thread's own, and the looks of others. The physical timer's deadline
        // is another one, perhaps.
        self.requests.fetch_or(requests | request::INTERRUPTS | request::TIMER, Ordering::AcqRel);
        self.resident.store(false, Ordering::Relaxed);
        Registers::unload(self);
        *self.general.lock() = context.general();
        let before = self.thread().wait_time();
        let wait = with_irqs(|| self.vm.stand_still(self));
        context.set_general(&self.general.lock());
        // What its thread waited before its guest's clock could stop, and since the pause is over, is stolen when it is told.
        self.nothing_is_stolen(wait.over(before));
        // Before it is loaded: its counters' offset and controls are loaded with the registers.
        self.adopt_clock();
        self.resident.store(true, Ordering::Relaxed);
        self.load();
    }

    /// Hands a physical SError that arrived while this guest ran on to the guest.
    pub(crate) fn inject_serror(&self) {
        self.vm.report(Level::Warn, format_args!("SError while vCPU {} ran; handed to the guest", self.id.0));
        sysreg::hcr_el2::write(sysreg::hcr_el2::read() | controls::HCR_VSE);
    }

    /// Lets the loaded vCPU use its FP/SIMD registers.
    pub(crate) fn load_fp(&self) {
        self.state.lock().load_fp();
    }

    /// Lets `work` at the state of the loaded vCPU.
    pub fn with_state<R>(&self, work: impl FnOnce(&mut GuestState) -> R) -> R {
        work(&mut self.state.lock())
    }

    /// The loaded vCPU's OS lock.
    pub(crate) fn set_os_lock(&self, locked: bool) {
        self.state.lock().controls.os_lock = locked;
        sysreg::oslar_el1(u64::from(locked));
    }

    /// See [`Vcpu::set_os_lock`].
    #[must_use]
    pub(crate) fn os_lock(&self) -> bool {
        self.state.lock().controls.os_lock
    }
}

impl Deref for Vcpu {
    type Target = VcpuHandle;

    #[inline(always)]
    fn deref(&self) -> &VcpuHandle {
        &self.handle
    }
}

impl Registers for Vcpu {
    fn resume(&'static self) {
        self.go_on();
    }

    /// Takes its state out of this CPU's registers, if it is there, and all about its interrupts back into the model. IRQs
    /// are masked; its thread is here or does not run.
    fn unload(&'static self) {
        let mut loaded = loaded_here().lock();
        if loaded.is_some_and(|other| core::ptr::eq(other, self)) {
            let physical = self.take_back_interrupts();
            self.save_registers(physical, &host::get().features);
            *loaded = None;
            sched::vacate();
        }
    }
}
