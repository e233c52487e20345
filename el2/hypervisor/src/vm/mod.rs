//! A VM: made once from the bundle, started, reset, stopped, started again ([`life`]); its memory comes and goes with its life.
//!
//! The work is done by the VM's own vCPU threads: vCPU 0's thread loads the images and starts the machine; when the VM is to
//! stop, every vCPU is asked to leave the guest, and the last one to leave takes the machine apart and, for a reset, starts it
//! again. `core/vm` decides the order.

extern crate alloc;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ::devices::Change;
use ::vm::needs;
use ::vm::progress::Allowance;
use abi::bundle::{Bundle, Coherency, VmConfig};
use clock::{GuestClock, GuestTicks, Rate, Standstill, VmClock};
use cpu::exit::Wanted;
use hw::sync::{IrqLock, PreemptLock};
use hw::{heap, sysreg};
use log::Level;
use machine::{BootInfo, MachinePlan};
use services::psci::{Start, VmPower};
use services::stolen_time::RECORD_SIZE;
use spin::Once;
use stage2::{Allowed, Point, Policy};
use units::{ByteOrder, Hz, Ipa, Pa, Scale, Ticks, VcpuId, VcpuSet, VmId};
use vgic::Vgic;

pub(crate) mod alarm;
pub(crate) mod counters;
pub(crate) mod devices;
pub(crate) mod doors;
pub(crate) mod guest_memory;
pub mod handle;
pub(crate) mod host_disk;
pub(crate) mod images;
mod life;
pub(crate) mod network;
pub(crate) mod outside;
pub(crate) mod saved;
mod time;
pub(crate) mod watchdog;

use crate::host::text::{Sentence, sentence};
use crate::host::{self, entropy, wall_clock};
use crate::output::buffers::VmConsole;
use crate::output::log_sink::Line;
use crate::sched;
use crate::vm::devices::Devices;
use crate::vm::guest_memory::{GuestRam, Missing, RamError, Use};
use alarm::Alarm;
use doors::Doors;
use handle::{VcpuHandle, request};
use images::Layout;

/// Why a VM stops.
pub(crate) type Stop = ::vm::Stop<Sentence>;

/// A VM's life.
pub(crate) type Life = ::vm::Life<Sentence>;

/// What has become of one.
pub(crate) type Fate = ::vm::Fate<Sentence>;

/// What a VM does as soon as it has been restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// It goes on.
    GoesOn,
    /// It stands still until the operator lets it go on.
    StandsStill,
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
    life: PreemptLock<Life>,
    bundle: Bundle<'static>,
    vcpus: Once<Box<[&'static VcpuHandle]>>,
    vttbr: AtomicU64,
    /// Its time. A leaf: nobody takes another lock under this one.
    clock: PreemptLock<VmClock>,
    /// The host's ticks in nanoseconds as its guest has them.
    nanoseconds: Scale,
    /// The host's count at which the next of its memory-mapped timers is to be looked at; the largest if never.
    timer_at: AtomicU64,
    /// The page of the vCPUs' records of stolen time; 0 while the VM is off.
    records: AtomicU64,
    /// The pages by which the guest's counter tells the time, by their devices' slots; 0 for other devices, and while the VM is off.
    clock_pages: Box<[AtomicU64]>,
    /// Its vCPUs stand still, as its life says, for readers without that lock. Written under it.
    paused: AtomicBool,
}

// What is counted before a site is accepted: these, and about as much again that is made on the way, such as rings and the tree.
const _: () = assert!(
    2 * (size_of::<Vm>() + size_of::<VmConsole>() + size_of::<vmware::Service>()) as u64 <= needs::HEAP_OF_A_VM
);

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
    let (threads, cpus) = (sched::thread_count(), sched::online().count_ones());
    let disks = (config.disks.count(), config.disks.on_host());
    let needed = needs::heap_to_make(config.vcpus, disks, config.ports.count(), threads, cpus);
    // What follows asks no more: it is counted in this.
    if !heap::has_room((needed + needs::HEAP_OF_OUR_OWN) as usize) {
        return Err(format!(
            "{}: not made: {} KiB of the hypervisor's heap are not left for it",
            config.name,
            needed >> 10
        ));
    }
    // Before and behind the frame with a VM in it: the boot CPU's stack does not hold both.
    let vm = make(id, config, bundle, VmConsole::boxed())?;
    let clock = vm.clock.lock().clock();
    time::warn_of_misleading(vm, &clock);
    let vcpus: Result<Box<[_]>, _> = (0..vm.config.vcpus).map(|id| make_vcpu(vm, VcpuId(id))).collect();
    let vcpus = vcpus.map_err(|error| format!("{}: no memory for its vCPUs: {error}", vm.config.name))?;
    vm.vcpus.call_once(|| vcpus);
    if let Some(slot) = VMS.get(usize::from(id.0)) {
        slot.call_once(|| vm);
    }
    Ok(vm)
}

/// A VM without vCPUs.
#[inline(never)]
fn make(
    id: VmId,
    config: VmConfig<'static>,
    bundle: Bundle<'static>,
    console: Box<VmConsole>,
) -> Result<&'static Vm, String> {
    let host = host::get();
    let clock = new_clock(&config, Ticks(0));
    let plan = ::vm::machine(&config, time::counter(&clock)).map_err(|error| format!("{}: {error}", config.name))?;
    check_images(&config, bundle).map_err(|error| format!("{}: {error}", config.name))?;
    let devices = Devices::new(id, &plan, &config, bundle).map_err(|error| format!("{}: {error}", config.name))?;
    let clock_pages = plan.rows().iter().map(|_| AtomicU64::new(0)).collect();
    let ram = plan.ram();
    let gic = Vgic::new(gic_config(config.vcpus));
    Ok(Box::leak(Box::new(Vm {
        id,
        config,
        plan,
        gic: IrqLock::new(gic),
        devices,
        ram: PreemptLock::new(GuestRam::new(id, ram, config.disks.changes(), policy(config.coherency))),
        doors: Doors::new(config.name, &config.doors, config.memory, clock.frequency()),
        console,
        alarm: Alarm::new(),
        life: PreemptLock::new(Life::new(VmPower::new(config.vcpus, ram))),
        bundle,
        vcpus: Once::new(),
        vttbr: AtomicU64::new(0),
        clock: PreemptLock::new(time::vm_clock(&config, clock)),
        nanoseconds: clock.ticks_of(host.counter),
        timer_at: AtomicU64::new(u64::MAX),
        records: AtomicU64::new(0),
        clock_pages,
        paused: AtomicBool::new(false),
    })))
}

/// Reads the images of a VM's disks, whose checksums must be right. Nobody writes them later, so it is done once: not for a VM that
/// has the image of one that was made before.
fn check_images(config: &VmConfig<'static>, bundle: Bundle<'static>) -> Result<(), String> {
    for disk in config.disks.iter() {
        let Some(image) = disk.image() else { continue };
        let is_known = all().any(|vm| vm.config.disks.iter().any(|other| other.image() == Some(image)));
        if !is_known {
            bundle.verify(image).map_err(|error| format!("disk {}: {error}", disk.serial))?;
        }
    }
    Ok(())
}

/// What the interrupt controller of a VM with so many vCPUs is made of here.
fn gic_config(vcpus: u8) -> vgic::Config {
    let host = host::get();
    vgic::Config {
        vcpus: usize::from(vcpus),
        list_registers: usize::from(host.features.list_registers),
        priority_bits: host.priority_bits,
        preemption_bits: 5 + host.features.priority_words.trailing_zeros() as u8,
        tells_of_group_0: host::tells_of_group_0(),
        traps_deactivation: host::traps_deactivation(),
    }
}

/// The clock of a VM that begins at `now`.
pub(crate) fn new_clock(config: &VmConfig<'_>, now: Ticks) -> GuestClock {
    let host = host::get().counter;
    let frequency = if config.time.frequency == 0 { host } else { Hz(config.time.frequency.into()) };
    // There is a scale between any two of the frequencies and rates that a bundle and a CPU can have.
    GuestClock::start(now, host, frequency, Rate(config.time.rate))
        .unwrap_or_else(|| GuestClock::like_the_hosts(now, host))
}

impl Vm {
    /// Its vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> &[&'static VcpuHandle] {
        self.vcpus.get().map_or(&[], |vcpus| vcpus)
    }

    /// How much memory it has, in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.plan.ram().size
    }

    /// How many bytes of it there are, with those behind it that its guest does not see.
    pub(crate) fn memory_and_annex(&self) -> u64 {
        self.memory().saturating_add(self.config.disks.changes())
    }

    /// How many exits its vCPUs have had.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.vcpus().iter().map(|vcpu| vcpu.counters.all_exits()).sum()
    }

    /// How many of its pages are executable: each was executed. For checks.
    #[must_use]
    pub fn executable_pages(&self) -> u64 {
        self.ram.lock().code().executable
    }

    /// VTTBR_EL2 for its vCPUs.
    #[must_use]
    pub(crate) fn vttbr(&self) -> u64 {
        // Pairs with the release in `build_machine`: whoever enters by these tables finds them written.
        self.vttbr.load(Ordering::Acquire)
    }

    /// Its clock, as it is now.
    #[must_use]
    pub(crate) fn clock(&self) -> GuestClock {
        self.clock.lock().clock()
    }

    /// `ticks` of the host's counter in nanoseconds, of which its guest counts more or fewer if its time passes at another rate.
    #[inline(always)]
    #[must_use]
    pub(crate) fn nanoseconds(&self, ticks: u64) -> u64 {
        self.nanoseconds.nanoseconds(ticks)
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

    /// Seconds since 1970, as its real-time clock has them: the host's, less what its counters are behind real time in this
    /// life, because they stood still or are slow on purpose, so that the two clocks of a guest stay together.
    #[must_use]
    pub(crate) fn seconds(&self) -> u64 {
        self.microseconds(Standstill::Counts) / wall_clock::MICROSECONDS
    }

    /// Microseconds since 1970, as VMware's time commands answer: as its real-time clock has them, but for what its counters
    /// stood still for. Tools put the guest's clock right by them, and a guest that wants to know of a pause finds out.
    #[must_use]
    pub(crate) fn wall_clock(&self) -> u64 {
        self.microseconds(Standstill::IsLeftOut)
    }

    /// Lets its real-time clock ring when that shows `seconds`, or later, if its counters stand still before that.
    pub(crate) fn ring_at(&self, seconds: u64) {
        let wait =
            seconds.saturating_mul(wall_clock::MICROSECONDS).saturating_sub(self.microseconds(Standstill::Counts));
        self.alarm.set(wall_clock::microseconds().saturating_add(self.clock().real_microseconds(wait)));
    }

    /// Microseconds since 1970 for its guest, to whom what its counters stood still for is lost, or not.
    fn microseconds(&self, standstill: Standstill) -> u64 {
        let behind = self.clock().behind(Ticks(sysreg::cntpct_el0()), standstill);
        wall_clock::microseconds().saturating_sub_signed(behind)
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

    /// A line for the log about what its guest causes, under the VM's name; at the guest's own pace.
    pub(crate) fn report(&self, level: Level, text: fmt::Arguments<'_>) {
        if level <= log::max_level() {
            let name = self.config.name;
            self.console.report(name, &Line::of(level, format_args!("{name}: {text}")));
        }
    }

    /// Whether its vCPUs stand still.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        // Pairs with the store in `show_pause`.
        self.paused.load(Ordering::Acquire)
    }

    /// Gets its memory, and makes everything as it is after power on.
    fn build_machine(&self) -> Result<(), Sentence> {
        let root = GuestRam::build(&self.ram).map_err(|error| sentence!("{error}"))?;
        let records = self.ram.lock().add_readable(machine::STOLEN_TIME).map_err(|error| sentence!("{error}"))?;
        self.records.store(records.0, Ordering::Relaxed);
        self.build_clock_pages()?;
        for vcpu in self.vcpus() {
            vcpu.forget_stolen_time();
        }
        // Pairs with the acquire in `vttbr`.
        self.vttbr.store(stage2::vttbr_el2(root, self.id.0 + 1), Ordering::Release);
        self.gic.lock().reset();
        // Before the devices, one of which shows it to the guest: it would show the clock of the life before.
        let clock = new_clock(&self.config, Ticks(sysreg::cntpct_el0()));
        *self.clock.lock() = time::vm_clock(&self.config, clock);
        self.devices.change(self, Change::Reset);
        self.doors.restart();
        // In the life before it may have been another: one that was restored from another host.
        self.doors.set_counter(clock.frequency());
        Ok(())
    }

    /// Builds it, and loads its images.
    fn build(&self) -> Result<Start, Sentence> {
        self.build_machine()?;
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
        Ok(Start {
            vcpu: VcpuId(0),
            entry: placement.entry,
            context: placement.device_tree.start.0,
            order: ByteOrder::Little,
        })
    }

    /// Stage 2 refused the guest what it `wanted` at `ipa`, in its RAM. By `policy` instead of the VM's own, if one is given.
    pub(crate) fn allow(&self, ipa: Ipa, wanted: Wanted, point: Point, policy: Option<Policy>) -> Allowance {
        let what = if wanted == Wanted::Write { Use::Store } else { Use::Look };
        let mut touched = self.touch(Missing { at: ipa, what });
        if touched == Touched::Before && wanted == Wanted::Walk {
            // It stores where the hardware keeps flags in tables; to be ready to be looked at is not enough then.
            touched = self.touch(Missing { at: ipa, what: Use::Store });
        }
        if touched == Touched::Now && wanted != Wanted::Fetch {
            return Allowance::Now;
        }
        let allowed = {
            let mut ram = self.ram.lock();
            let policy = policy.unwrap_or(ram.policy());
            ram.allow(ipa, wanted, policy, point)
        };
        let result = match allowed {
            Ok(Allowed::Now { crowded: true, .. }) => GuestRam::promote(&self.ram, ipa, point).map(|()| Allowance::Now),
            Ok(Allowed::Now { .. }) => Ok(Allowance::Now),
            Ok(Allowed::Unmapped) if self.ram.lock().is_taken(ipa) => Ok(Allowance::Never),
            // Unmapped again: the VM is being taken apart.
            Ok(Allowed::Already | Allowed::Unmapped) if touched == Touched::Before => Ok(Allowance::Already),
            Ok(Allowed::Already | Allowed::Unmapped) => Ok(Allowance::Now),
            Ok(Allowed::Never) => Ok(Allowance::Never),
            Err(error) => Err(error),
        };
        result.unwrap_or_else(|error| {
            self.stop(Stop::Crashed(sentence!("no memory at {ipa}: {error}")));
            Allowance::Now
        })
    }

    /// The guest touched RAM that it was not shown yet, or that is held. A piece of it at a time is made ready, and between two
    /// pieces the thread may be preempted.
    pub(crate) fn touch(&self, missing: Missing) -> Touched {
        if self.ram.lock().is_ready(missing) {
            return Touched::Before;
        }
        match GuestRam::make_ready(&self.ram, missing) {
            Ok(true) => {}
            Ok(false) => self.stall(missing),
            // Nothing will come of it: whoever asks finds out.
            Err(RamError::Taken(_)) => return Touched::Before,
            Err(error) => self.stop(Stop::Crashed(sentence!("no memory at {}: {error}", missing.at))),
        }
        Touched::Now
    }

    /// What is missing has to wait until it was sent: the VM stands still until then. Whoever missed it comes here again.
    #[cold]
    fn stall(&self, missing: Missing) {
        let mut life = self.life();
        // Under the lock of its life, so that it is not let go on before it stands still.
        if !life.is_running() {
            return;
        }
        let mut ram = self.ram.lock();
        let (is_to_come, is_held) = (ram.waits_for(missing), ram.stalls(missing));
        drop(ram);
        if is_to_come {
            // Whoever sends its memory hears what it waits for as an answer.
            self.stall_under(&mut life);
        } else if is_held {
            self.pause_under(&mut life);
        }
    }

    /// Tells vCPUs, all but `me`, to choose their list registers anew.
    pub(crate) fn refresh_others(&self, set: VcpuSet, me: VcpuId) {
        for id in set.iter().filter(|&id| id != me) {
            self.ask(id, request::INTERRUPTS);
        }
    }

    /// Tells vCPUs to choose their list registers anew; for callers that are no vCPU of this VM.
    pub(crate) fn refresh(&self, set: VcpuSet) {
        for id in set.iter() {
            self.ask(id, request::INTERRUPTS);
        }
    }

    /// Asks something ([`request`]) of vCPU `id`, if there is one.
    pub(crate) fn ask(&self, id: VcpuId, what: u32) {
        if let Some(vcpu) = self.vcpus().get(id.index()) {
            vcpu.request(what);
        }
    }
}

/// By which rules a VM's pages become executable on this host.
fn policy(coherency: Coherency) -> Policy {
    match coherency {
        Coherency::OnDemand => Policy::OnDemand,
        Coherency::Eager => Policy::Eager,
        Coherency::OffWhenCoherent if hw::cache::kind().is_coherent() => Policy::Eager,
        Coherency::OffWhenCoherent => Policy::OnDemand,
        Coherency::Strict => Policy::Strict,
    }
}

/// The first-level caches of this CPU, which the guest is told of: Linux complains where a machine says nothing.
fn caches() -> Option<machine::Caches> {
    let [instruction, data] = hw::cache::first_level()?.map(|(size, sets, line)| machine::Cache { size, sets, line });
    Some(machine::Caches { instruction, data })
}
