//! A VM's life: made once from the bundle, started, reset, stopped, started again; its memory comes and goes with it.
//!
//! All that changes a VM's state goes through [`Vm::power`]'s lock, and the work itself is done by the VM's own vCPU
//! threads: vCPU 0's thread loads the images and starts the machine; when the VM is to stop, every vCPU is asked to
//! leave the guest, and the last one to leave takes the machine apart and, for a reset, starts it again. So nothing is
//! freed while a vCPU may use it, and no other VM waits for any of it.

extern crate alloc;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ::devices::Change;
use abi::bundle::{Bundle, VmConfig};
use clock::{GuestClock, GuestTicks, VmClock};
use fair::{By, Restarts};
use hw::sync::{IrqLock, PreemptGuard, PreemptLock};
use hw::sysreg;
use log::Level;
use machine::{BootInfo, MachinePlan, Spec, VirtioKind};
use services::psci::{CpuOffOutcome, PsciError, Start, VmPower};
use services::stolen_time::RECORD_SIZE;
use spin::Once;
use units::{Ipa, Pa, Ticks, VcpuId, VcpuSet, VmId};
use vgic::Vgic;

pub(crate) mod alarm;
pub(crate) mod counters;
pub(crate) mod devices;
pub(crate) mod doors;
pub(crate) mod guest_memory;
pub mod handle;
pub(crate) mod images;
pub(crate) mod outside;
pub(crate) mod watchdog;

use crate::host::text::{Sentence, sentence};
use crate::host::{self, entropy, memory, wall_clock};
use crate::output;
use crate::output::buffers::VmConsole;
use crate::output::log_sink::Line;
use crate::sched;
use crate::vm::devices::Devices;
use crate::vm::guest_memory::GuestRam;
use alarm::Alarm;
use doors::Doors;
use handle::{VcpuHandle, request};
use images::Layout;

/// Why a VM stops.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::large_enum_variant, reason = "a VM that cannot go on says why without an allocation that could fail")]
pub(crate) enum Stop {
    /// It starts afresh, because its guest wants it to, or a watchdog.
    Reset,
    /// It starts afresh, because the operator wants it to.
    Restart,
    /// The guest powered itself off.
    PowerOff,
    /// The operator stopped it.
    Operator,
    /// It cannot go on.
    Crashed(Sentence),
}

/// Where a VM is in its life.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    /// Off, for this reason.
    Off(Stop),
    /// Its images are being loaded.
    Booting,
    Running,
    /// It waits for its vCPUs to leave.
    Stopping(Stop),
}

/// The state of a VM, all of it under one lock.
pub(crate) struct Power {
    phase: Phase,
    machine: VmPower,
    /// vCPUs whose threads are in the guest or on their way out.
    running: u8,
    /// The VM is to be started by vCPU 0's thread.
    boot: bool,
    /// It is to stop as soon as it has started: asked for while its images were being loaded.
    stop_next: Option<Stop>,
    /// If it powers itself off before this time, in milliseconds, it is started again: the operator's reboot of a guest
    /// without tools, which only has a power button.
    again_until: u64,
    /// When it was started, in milliseconds, and how many short lives it has had.
    started_at: u64,
    restarts: Restarts,
}

/// What a vCPU's thread is to do.
pub(crate) enum Task {
    /// Start the VM.
    Boot,
    /// Run the vCPU.
    Run(Start),
    /// End the VM, in which no vCPU is.
    End,
}

impl Power {
    /// Whether the guest of `vm`, whose state this is, runs.
    #[must_use]
    pub(crate) fn is_running(&self, vm: &Vm) -> bool {
        self.phase == Phase::Running && !vm.is_paused()
    }

    /// Stops `vm`, whose state this is, or makes it start afresh. The first reason counts.
    pub(crate) fn stop(&mut self, vm: &Vm, stop: Stop) {
        match self.phase {
            Phase::Running => self.phase = Phase::Stopping(stop),
            Phase::Booting => {
                self.stop_next.get_or_insert(stop);
                // Perhaps it waits for its turn to start afresh.
                vm.vcpus().iter().for_each(|vcpu| sched::wake(vcpu.thread()));
                return;
            }
            Phase::Off(_) | Phase::Stopping(_) => return,
        }
        // Under the lock: a vCPU that leaves at once must not clear the requests before all are made, or the VM's next life
        // would find one.
        for vcpu in vm.vcpus() {
            vcpu.request(request::STOP);
        }
    }

    /// Lets the vCPUs of `vm`, whose state this is, stand still, and its watchdogs with them; its clock too, if its site
    /// file says so, as soon as they all do. Says whether it ran.
    ///
    /// The watchdogs first: a vCPU that has not stopped yet may still set one up, whose time then begins with the VM's going
    /// on.
    pub(crate) fn pause(&self, vm: &Vm) -> bool {
        if !self.is_running(vm) {
            return false;
        }
        // Pairs with the acquire in `is_paused`: a vCPU that finds it set finds its watchdogs standing still too.
        vm.paused.store(true, Ordering::Release);
        vm.doors.watchdogs.pause(vm);
        vm.devices.change(vm, Change::Pause);
        for vcpu in vm.vcpus() {
            vcpu.request(request::PAUSE);
        }
        vm.clock.lock().pause(Ticks(sysreg::cntpct_el0()));
        log::info!("{}: paused", vm.config.name);
        output::vm_changed();
        true
    }
}

/// What [`Vm::touch`] found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touched {
    /// The guest sees it now.
    Now,
    /// The guest saw it before.
    Before,
}

/// One VM. Lives for ever; its memory does not.
pub struct Vm {
    /// Its number.
    pub(crate) id: VmId,
    /// What the bundle says about it.
    pub(crate) config: VmConfig<'static>,
    /// Its machine.
    pub(crate) plan: MachinePlan,
    /// Its interrupt controller.
    pub(crate) gic: IrqLock<Vgic>,
    /// Its other devices.
    pub(crate) devices: Devices,
    /// Its memory.
    pub(crate) ram: PreemptLock<GuestRam>,
    /// How its guest calls us.
    pub(crate) doors: Doors,
    /// Its console's buffers.
    pub(crate) console: Box<VmConsole>,
    /// When its real-time clock rings.
    pub(crate) alarm: Alarm,
    power: PreemptLock<Power>,
    bundle: Bundle<'static>,
    vcpus: Once<Box<[&'static VcpuHandle]>>,
    vttbr: AtomicU64,
    /// Its time. A leaf: nobody takes another lock under this one.
    clock: PreemptLock<VmClock>,
    /// The page of the vCPUs' records of stolen time; 0 while the VM is off.
    records: AtomicU64,
    boots: AtomicU32,
    /// Its vCPUs stand still. Written under the lock of `power`.
    paused: AtomicBool,
}

static VMS: [Once<&'static Vm>; abi::bundle::MAX_VMS] = [const { Once::new() }; abi::bundle::MAX_VMS];

/// All VMs.
pub fn all() -> impl Iterator<Item = &'static Vm> {
    VMS.iter().filter_map(Once::get).copied()
}

/// VM number `id`.
#[must_use]
pub(crate) fn by_id(id: VmId) -> Option<&'static Vm> {
    VMS.get(usize::from(id.0)).and_then(Once::get).copied()
}

/// What makes a VM's vCPU, which is known above this room, with its thread; gives what others see of it.
pub(crate) type MakeVcpu = fn(&'static Vm, VcpuId) -> Result<&'static VcpuHandle, frames::FramesError>;

/// Makes the VM that `config` describes, off, with vCPUs by `make_vcpu`.
///
/// # Errors
/// A sentence for the log.
#[inline(never)]
pub(crate) fn create(
    id: VmId,
    config: VmConfig<'static>,
    bundle: Bundle<'static>,
    make_vcpu: MakeVcpu,
) -> Result<&'static Vm, String> {
    let host = host::get();
    let plan = MachinePlan::new(Spec {
        name: config.name,
        vcpus: config.vcpus,
        memory_bytes: config.memory,
        ipa_bits: stage2::IPA_BITS,
        virtio: &[VirtioKind::Console, VirtioKind::Entropy],
        watchdog: config.doors.generic_watchdog,
        counter_frequency: host.counter,
    })
    .map_err(|error| format!("{}: {error}", config.name))?;
    let devices = Devices::new(&plan).map_err(|error| format!("{}: {error}", config.name))?;
    let ram = plan.ram();
    let machine = VmPower::new(config.vcpus, ram);
    let gic = Vgic::new(vgic::Config {
        vcpus: usize::from(config.vcpus),
        list_registers: usize::from(host.features.list_registers),
        priority_bits: host.priority_bits,
        preemption_bits: 5 + host.features.priority_words.trailing_zeros() as u8,
    });
    let vm: &'static Vm = Box::leak(Box::new(Vm {
        id,
        config,
        plan,
        gic: IrqLock::new(gic),
        devices,
        ram: PreemptLock::new(GuestRam::new(id, ram)),
        doors: Doors::new(config.name, &config.doors, config.memory),
        console: VmConsole::boxed(),
        alarm: Alarm::new(),
        power: PreemptLock::new(Power {
            phase: Phase::Off(Stop::PowerOff),
            machine,
            running: 0,
            boot: false,
            stop_next: None,
            again_until: 0,
            started_at: 0,
            restarts: Restarts::default(),
        }),
        bundle,
        vcpus: Once::new(),
        vttbr: AtomicU64::new(0),
        clock: PreemptLock::new(VmClock::new(
            GuestClock::like_the_hosts(Ticks(0), host.counter),
            config.pause_stops_time,
        )),
        records: AtomicU64::new(0),
        boots: AtomicU32::new(0),
        paused: AtomicBool::new(false),
    }));
    let vcpus: Result<Box<[_]>, _> = (0..vm.config.vcpus).map(|id| make_vcpu(vm, VcpuId(id))).collect();
    let vcpus = vcpus.map_err(|error| format!("{}: no memory for its vCPUs: {error}", vm.config.name))?;
    vm.vcpus.call_once(|| vcpus);
    if let Some(slot) = VMS.get(usize::from(id.0)) {
        slot.call_once(|| vm);
    }
    Ok(vm)
}

impl Vm {
    /// Its vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> &[&'static VcpuHandle] {
        self.vcpus.get().map_or(&[], |vcpus| vcpus)
    }

    /// VTTBR_EL2 for its vCPUs.
    #[must_use]
    pub(crate) fn vttbr(&self) -> u64 {
        // Pairs with the release in `build`: who enters by these tables finds them written.
        self.vttbr.load(Ordering::Acquire)
    }

    /// Its clock, as it is now.
    #[must_use]
    pub(crate) fn clock(&self) -> GuestClock {
        self.clock.lock().clock()
    }

    /// What its counters show.
    #[must_use]
    pub(crate) fn count(&self) -> u64 {
        self.clock().guest(Ticks(sysreg::cntpct_el0())).0
    }

    /// How many milliseconds its clock has counted.
    #[must_use]
    pub(crate) fn milliseconds(&self) -> u64 {
        self.clock().milliseconds(Ticks(sysreg::cntpct_el0()))
    }

    /// Seconds since 1970, as its real-time clock has them: the host's, less what its counters have stood still for in this
    /// life, so that the two clocks of a guest stay together.
    #[must_use]
    pub(crate) fn seconds(&self) -> u64 {
        wall_clock::microseconds().saturating_sub(self.stood_microseconds()) / wall_clock::MICROSECONDS
    }

    /// Lets its real-time clock ring when that shows `seconds`, or later, if its counters stand still before that.
    pub(crate) fn ring_at(&self, seconds: u64) {
        self.alarm.set(seconds.saturating_add(self.stood_microseconds().div_ceil(wall_clock::MICROSECONDS)));
    }

    fn stood_microseconds(&self) -> u64 {
        let clock = self.clock();
        clock.frequency().nanoseconds(clock.stood(Ticks(sysreg::cntpct_el0())).0) / 1000
    }

    /// When its counters show `count`, or now if they have; `None` while they stand still before that.
    #[must_use]
    pub(crate) fn when(&self, count: GuestTicks) -> Option<Ticks> {
        self.clock().host(count, Ticks(sysreg::cntpct_el0()))
    }

    /// Where vCPU `vcpu`'s record of stolen time is in memory, while there is one. Its vCPUs only: they are gone before it is.
    #[inline(always)]
    #[must_use]
    pub(crate) fn record(&self, vcpu: VcpuId) -> Option<Pa> {
        match self.records.load(Ordering::Relaxed) {
            0 => None,
            page => Some(Pa(page + vcpu.index() as u64 * RECORD_SIZE)),
        }
    }

    /// How often it has been started.
    #[must_use]
    pub(crate) fn boots(&self) -> u32 {
        self.boots.load(Ordering::Relaxed)
    }

    /// Why it is off; `None` while it is not.
    #[must_use]
    pub(crate) fn stopped(&self) -> Option<Stop> {
        match &self.power.lock().phase {
            Phase::Off(stop) => Some(stop.clone()),
            _ => None,
        }
    }

    /// Starts it, if it is off. Says whether it was.
    pub(crate) fn start(&self) -> bool {
        let mut power = self.power.lock();
        if !matches!(power.phase, Phase::Off(_)) || power.boot {
            return false;
        }
        power.boot = true;
        power.phase = Phase::Booting;
        drop(power);
        if let Some(first) = self.vcpus().first() {
            sched::wake(first.thread());
        }
        true
    }

    /// A line for the log about what its guest causes, under the VM's name; at the guest's own pace.
    pub(crate) fn report(&self, level: Level, text: fmt::Arguments<'_>) {
        if level <= log::max_level() {
            let name = self.config.name;
            self.console.report(name, &Line::of(level, format_args!("{name}: {text}")));
        }
    }

    /// A line for the log about its life.
    fn tell(&self, level: Level, text: fmt::Arguments<'_>) {
        self.console.tell(&Line::of(level, format_args!("{}: {text}", self.config.name)));
    }

    /// The state of its life, which nobody changes as long as the caller has it.
    pub(crate) fn life(&self) -> PreemptGuard<'_, Power> {
        self.power.lock()
    }

    /// See [`Power::stop`].
    pub(crate) fn stop(&self, stop: Stop) {
        self.life().stop(self, stop);
    }

    /// If it powers itself off within so many seconds, it is started again; with `None` it stays off.
    pub(crate) fn start_again_after_power_off(&self, seconds: Option<u32>) {
        let until = seconds.map_or(0, |seconds| host::milliseconds().saturating_add(u64::from(seconds) * 1000));
        self.power.lock().again_until = until;
    }

    /// Whether its vCPUs stand still.
    #[must_use]
    pub(crate) fn is_paused(&self) -> bool {
        // Pairs with the stores in `pause`, `resume` and `take_apart`.
        self.paused.load(Ordering::Acquire)
    }

    /// See [`Power::pause`].
    pub(crate) fn pause(&self) -> bool {
        self.life().pause(self)
    }

    /// Lets it go on. Says whether it was paused.
    pub(crate) fn resume(&self) -> bool {
        let power = self.power.lock();
        if !self.is_paused() {
            return false;
        }
        // Pairs with the acquire in `is_paused`.
        self.paused.store(false, Ordering::Release);
        // Before the watchdogs, whose deadlines are never while it stands, and before the vCPUs, which copy it.
        self.clock.lock().resume(Ticks(sysreg::cntpct_el0()));
        self.doors.watchdogs.resume(self);
        self.devices.change(self, Change::Resume);
        self.console.ask_for_service();
        self.alarm.watch();
        for vcpu in self.vcpus() {
            sched::wake(vcpu.thread());
        }
        drop(power);
        log::info!("{}: goes on", self.config.name);
        output::vm_changed();
        true
    }

    /// `vcpu` stands still for as long as the VM is paused, or until it is to leave. Its registers are in memory; called by
    /// its thread. For how long that waited for a CPU meanwhile, in the host's ticks: nobody stole that time from the guest.
    pub(crate) fn stand_still(&self, vcpu: &VcpuHandle) -> u64 {
        let mut waited = 0;
        let mut power = self.power.lock();
        self.clock.lock().leave(Ticks(sysreg::cntpct_el0()));
        while self.is_paused() && !vcpu.is_to_stop() {
            drop(power);
            let before = vcpu.thread().wait_time();
            sched::block(None);
            power = self.power.lock();
            if self.is_paused() {
                waited += vcpu.thread().wait_time().wrapping_sub(before);
            }
        }
        // Under the lock of its life, so that no pause comes between: the clock would stop though this vCPU goes on.
        self.clock.lock().enter();
        drop(power);
        waited
    }

    /// What `vcpu`'s thread does next; waits until there is something.
    pub(crate) fn next_task(&self, vcpu: &VcpuHandle) -> Task {
        loop {
            let mut power = self.power.lock();
            if vcpu.id == VcpuId(0) && core::mem::take(&mut power.boot) {
                return Task::Boot;
            }
            // Nobody is in the guest who could be the last to leave it.
            if vcpu.id == VcpuId(0) && matches!(power.phase, Phase::Stopping(_)) && power.running == 0 {
                return Task::End;
            }
            if power.phase == Phase::Running
                && let Some(start) = vcpu.start.lock().take()
            {
                power.machine.started(vcpu.id);
                power.running += 1;
                self.clock.lock().enter();
                return Task::Run(start);
            }
            drop(power);
            sched::block(None);
        }
    }

    /// A vCPU has left the guest and is unloaded. The last one to leave ends the VM's life, or begins it anew.
    pub(crate) fn left(&self) {
        let mut power = self.power.lock();
        power.running -= 1;
        self.clock.lock().leave(Ticks(sysreg::cntpct_el0()));
        if power.running > 0 {
            return;
        }
        drop(power);
        self.end();
    }

    /// Ends the VM's life, or begins it anew, if no vCPU is in the guest or about to be.
    pub(crate) fn end(&self) {
        let mut power = self.power.lock();
        if power.running > 0 || matches!(power.phase, Phase::Off(_) | Phase::Booting) {
            return;
        }
        let stop = match &power.phase {
            Phase::Stopping(stop) => stop.clone(),
            // A vCPU was switched on and has not begun yet: the VM goes on.
            Phase::Running if self.vcpus().iter().any(|vcpu| vcpu.start.lock().is_some()) => return,
            _ => Stop::PowerOff,
        };
        let is_to_start_again = host::milliseconds() < core::mem::take(&mut power.again_until);
        let stop = if stop == Stop::PowerOff && is_to_start_again { Stop::Restart } else { stop };
        let length = host::milliseconds().saturating_sub(power.started_at);
        let wait = match stop {
            Stop::Reset => Some(power.restarts.wait(length, By::Guest)),
            Stop::Restart => Some(power.restarts.wait(length, By::Operator)),
            _ => None,
        };
        power.phase = Phase::Booting;
        drop(power);
        self.take_apart();
        if let Some(wait) = wait {
            self.tell(Level::Info, format_args!("starts afresh"));
            self.wait_for_its_turn(wait);
            self.boot();
        } else {
            self.set_off(stop);
        }
    }

    /// Waits so many milliseconds before it starts afresh: a VM that resets itself again and again, and so has its images loaded
    /// and its memory cleared all the time, is slowed down. What the operator wants is not made to wait.
    fn wait_for_its_turn(&self, milliseconds: u64) {
        if milliseconds == 0 {
            return;
        }
        self.tell(
            Level::Warn,
            format_args!("it resets itself again and again within seconds; it starts again in {milliseconds} ms"),
        );
        let until = sysreg::cntpct_el0().saturating_add(host::ticks(milliseconds * 1000));
        while self.power.lock().stop_next.is_none() && sysreg::cntpct_el0() < until {
            sched::block(Some(Ticks(until)));
        }
    }

    fn set_off(&self, stop: Stop) {
        match &stop {
            Stop::Crashed(reason) => self.tell(Level::Error, format_args!("stopped: {reason}")),
            Stop::Operator => self.tell(Level::Info, format_args!("stopped by the operator")),
            _ => self.tell(Level::Info, format_args!("powered off")),
        }
        let mut power = self.power.lock();
        // A stop that was asked for while the VM was being taken apart has what it wanted; left here, it would end the next
        // life as it begins.
        power.stop_next = None;
        power.phase = Phase::Off(stop);
        drop(power);
        output::vm_changed();
    }

    /// Gives its memory back. No vCPU is in the guest or loaded.
    fn take_apart(&self) {
        // Pairs with the acquire in `is_paused`.
        self.paused.store(false, Ordering::Release);
        self.doors.watchdogs.stop();
        self.devices.change(self, Change::PowerOff);
        for vcpu in self.vcpus() {
            vcpu.start.lock().take();
            vcpu.clear_requests();
        }
        self.records.store(0, Ordering::Relaxed);
        // Pairs with the release in `build`, and with the acquire in `vttbr`: nobody enters by tables that are about to go.
        let vttbr = self.vttbr.swap(0, Ordering::AcqRel);
        self.ram.lock().destroy(vttbr);
        let frames = memory::release_guest(self.id);
        self.report(Level::Debug, format_args!("gave {frames} frames back"));
    }

    /// Builds the machine, loads the images, and starts vCPU 0.
    pub(crate) fn boot(&self) {
        match self.build() {
            Ok(start) => {
                let boots = self.boots.fetch_add(1, Ordering::Relaxed) + 1;
                self.tell(Level::Info, format_args!("started ({boots})"));
                let mut power = self.power.lock();
                power.started_at = host::milliseconds();
                power.machine.reset();
                let first = self.vcpus().first();
                match power.stop_next.take() {
                    Some(stop) => power.phase = Phase::Stopping(stop),
                    None => {
                        power.phase = Phase::Running;
                        // Under the lock: stored behind it, the start could outlast this life and begin a later one.
                        if let Some(first) = first {
                            *first.start.lock() = Some(start);
                        }
                    }
                }
                drop(power);
                if let Some(first) = first {
                    sched::wake(first.thread());
                }
                output::vm_changed();
            }
            Err(reason) => {
                self.take_apart();
                self.set_off(Stop::Crashed(reason));
            }
        }
    }

    fn build(&self) -> Result<Start, Sentence> {
        let mut ram = self.ram.lock();
        let root = ram.build().map_err(|error| sentence!("{error}"))?;
        let records = ram.add_readable(machine::STOLEN_TIME).map_err(|error| sentence!("{error}"))?;
        drop(ram);
        self.records.store(records.0, Ordering::Relaxed);
        for vcpu in self.vcpus() {
            vcpu.forget_stolen_time();
        }
        // Pairs with the acquire in `vttbr`.
        self.vttbr.store(stage2::vttbr_el2(root, self.id.0 + 1), Ordering::Release);
        self.gic.lock().reset();
        self.devices.change(self, Change::Reset);
        self.doors.restart();
        let clock = GuestClock::like_the_hosts(Ticks(sysreg::cntpct_el0()), host::get().counter);
        *self.clock.lock() = VmClock::new(clock, self.config.pause_stops_time);

        let kernel = self.bundle.verify(&self.config.kernel).map_err(|error| sentence!("kernel: {error}"))?;
        let initrd = match &self.config.initrd {
            Some(blob) => self.bundle.verify(blob).map_err(|error| sentence!("initrd: {error}"))?,
            None => &[],
        };
        let Layout { placement, kernel } = images::lay_out(&self.config, &self.plan, kernel, initrd.len() as u64)?;
        let tree = machine::device_tree(
            &self.plan,
            &BootInfo {
                bootargs: self.config.cmdline,
                initrd: placement.initrd,
                rng_seed: entropy::seed(),
                kaslr_seed: u64::from_le_bytes(entropy::seed()),
                caches: caches(),
                vmware: self.config.doors.vmware,
            },
        )
        .map_err(|error| sentence!("device tree: {error}"))?;
        let load = |at, bytes| GuestRam::load(&self.ram, at, bytes).map_err(|fault| sentence!("{fault}"));
        for (at, bytes) in kernel {
            load(at, bytes)?;
        }
        load(placement.device_tree.start, &tree)?;
        if let Some(at) = placement.initrd {
            load(at.start, initrd)?;
        }
        Ok(Start { vcpu: VcpuId(0), entry: placement.entry, context: placement.device_tree.start.0 })
    }

    /// PSCI CPU_ON.
    ///
    /// # Errors
    /// What the caller gets instead of success.
    pub(crate) fn cpu_on(&self, target: u64, entry: u64, context: u64) -> Result<(), PsciError> {
        let start = self.power.lock().machine.cpu_on(target, entry, context)?;
        if let Some(vcpu) = self.vcpus().get(start.vcpu.index()) {
            *vcpu.start.lock() = Some(start);
            sched::wake(vcpu.thread());
        }
        Ok(())
    }

    /// PSCI CPU_OFF by `vcpu`.
    pub(crate) fn cpu_off(&self, vcpu: VcpuId) -> CpuOffOutcome {
        self.power.lock().machine.cpu_off(vcpu)
    }

    /// Looks something up in the state of its CPUs.
    pub(crate) fn with_power_state<R>(&self, look: impl FnOnce(&VmPower) -> R) -> R {
        look(&self.power.lock().machine)
    }

    /// The guest touched RAM that it was not shown yet. A piece of it at a time is made ready, and between two pieces the
    /// thread may be preempted.
    pub(crate) fn touch(&self, ipa: Ipa) -> Touched {
        if self.ram.lock().is_shown(ipa) {
            return Touched::Before;
        }
        if let Err(error) = GuestRam::show(&self.ram, ipa) {
            let text = sentence!("no memory at {ipa}: {error}");
            self.stop(Stop::Crashed(text));
        }
        Touched::Now
    }

    /// Tells vCPUs, all but `me`, to choose their list registers anew.
    pub(crate) fn refresh_others(&self, set: VcpuSet, me: VcpuId) {
        for id in set.iter().filter(|&id| id != me) {
            if let Some(vcpu) = self.vcpus().get(id.index()) {
                vcpu.request(request::INTERRUPTS);
            }
        }
    }

    /// Tells vCPUs to choose their list registers anew; for callers that are no vCPU of this VM.
    pub(crate) fn refresh(&self, set: VcpuSet) {
        for id in set.iter() {
            if let Some(vcpu) = self.vcpus().get(id.index()) {
                vcpu.request(request::INTERRUPTS);
            }
        }
    }
}

/// The first-level caches of this CPU, which the guest is told of: Linux complains where a machine says nothing.
fn caches() -> Option<machine::Caches> {
    let [instruction, data] = hw::cache::first_level()?.map(|(size, sets, line)| machine::Cache { size, sets, line });
    Some(machine::Caches { instruction, data })
}
