//! From the first Rust instruction to the idle loop.

extern crate alloc;

use alloc::string::String;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ::vm::{Needs, Share, Watchdogs};
use abi::HostArguments;
use abi::bundle::Bundle;
use cpu::id::HostIds;
use cpu::speculation::Plan;
use frames::Owner;
use hw::boot as entry;
use hw::{crash, firmware, gic, memory as physical, percpu, sysreg, uart};
use platform::{BootMethod, Conduit, Cpu, DeviceKind, InterruptLine, Platform, PlatformError};
use units::{CpuId, Pa, Range, VmId};

use crate::exit::checks::Checks;
use crate::exit::interrupts::{self, Handler};
use crate::exit::run;
use crate::host::{self, entropy, memory, speculation, wall_clock};
use crate::link::{console, last_words};
use crate::output;
use crate::output::log_sink;
use crate::sched;
use crate::vm::{self, host_disk, network, watchdog};

/// Devices are mapped in pieces of this size: what is near a device is a device too.
const DEVICE_STEP: u64 = 64 << 10;

/// So many microseconds a CPU may take to come: ages, even for an emulated one on a busy machine.
const PATIENCE: u64 = 10_000_000;

/// With less memory than this, in MiB, no VM is worth starting.
const LEAST_MEMORY_MIB: u64 = 64;

// What is called here once is not inlined: `main` and `start` never return, and all that they inline would stay on the boot
// CPU's stack, which becomes the idle thread's.

/// CPUs that have come up.
static STARTED: AtomicU32 = AtomicU32::new(1);
/// The one that was started last does not take part.
static UNLIKE: AtomicBool = AtomicBool::new(false);

/// The boot CPU's way in; `tree` is where the loader says the device tree is.
pub fn main<C: Checks>(tree: Pa) -> ! {
    let blob = blob(tree);
    let mut described = describe(blob, tree);
    let (console, psci) = match &described {
        Ok(platform) => (platform.console, platform.psci),
        Err(_) => remains(blob),
    };
    if let Some(console) = console {
        // If it does not work there is nothing to say it with.
        let _ = uart::init(console.kind, console.registers);
    }
    firmware::set_conduit(match psci.map(|psci| psci.conduit) {
        Some(Conduit::Smc) => firmware::Conduit::Smc,
        Some(Conduit::Hvc) => firmware::Conduit::Hvc,
        None => firmware::Conduit::None,
    });
    if entry::exception_level() != 2 {
        refuse(format_args!(
            "started at EL{}, but a hypervisor needs EL2: with QEMU add virtualization=on to -M virt",
            entry::exception_level()
        ));
    }
    // By reference, for the description is large.
    let platform = match &mut described {
        Ok(platform) => platform,
        Err(error) => refuse(format_args!("the device tree: {error}")),
    };
    let memory = platform.memory.iter().map(|range| range.size).sum::<u64>() >> 20;
    if memory < LEAST_MEMORY_MIB {
        refuse(format_args!("memory: the host has {memory} MiB, at least {LEAST_MEMORY_MIB} are needed"));
    }
    own_interrupts(platform);
    if let Err(unfit) = host::init(platform.timer.frequency) {
        refuse(format_args!("this CPU cannot run it: {unfit}"));
    }
    start::<C>(platform, blob, tree)
}

#[inline(never)]
fn describe(blob: &'static [u8], tree: Pa) -> Result<Platform<'static>, PlatformError> {
    Platform::from_device_tree(blob, tree)
}

/// What is left of a device tree that is no good: it may do to say why, and to switch off.
#[inline(never)]
fn remains(blob: &[u8]) -> (Option<platform::Console>, Option<platform::Psci>) {
    (platform::Console::from_device_tree(blob), platform::Psci::from_device_tree(blob))
}

/// Says why Undercroft does not start, and switches the machine off.
fn refuse(reason: core::fmt::Arguments<'_>) -> ! {
    let _ = writeln!(uart::Emergency, "undercroft: does not start: {reason}");
    firmware::power_off()
}

/// The device tree's bytes, which stay where they are for as long as we run; empty if there is none.
fn blob(tree: Pa) -> &'static [u8] {
    let header = physical::constant(tree, 8);
    match header.try_into().ok().and_then(platform::device_tree_size) {
        Some(size) => physical::constant(tree, size as u64),
        None => &[],
    }
}

fn start<C: Checks>(platform: &mut Platform<'static>, blob: &'static [u8], tree: Pa) -> ! {
    if let Err(error) = map(platform) {
        refuse(format_args!("cannot map the host's memory: {error:?}"));
    }
    // Not sooner: the log's lock is an atomic exchange, which memory need not support while the MMU is off.
    log_sink::init();
    crash::set_prologue(last_words::crash_preamble);
    crash::set_epilogue(last_words::write_log_tail);
    park_others(platform, blob, tree);
    if !platform.put_first(sysreg::mpidr_el1()) {
        log::warn!("the device tree does not know the CPU that booted");
    }
    if let Err(error) = memory::init(platform) {
        refuse(format_args!("memory: {error}"));
    }
    wall_clock::init(platform.clock);
    entropy::init(platform.seed);
    if let Err(error) = gic::init_distributor(platform.gic.distributor) {
        refuse(format_args!("the GIC's Distributor: {}", error.sentence()));
    }
    let arguments = HostArguments::parse(platform.bootargs);
    // Before any CPU joins: it settles then what it does at exits.
    C::read(platform.bootargs);
    let plan = join::<C>(platform, sysreg::mpidr_el1());
    if arguments.maintains_always {
        hw::cache::distrust();
    }
    start_others::<C>(platform, C::cpus_to_start(platform.cpus.len() - 1));
    if let Err(error) = console::start(&arguments) {
        refuse(format_args!("memory: {error}"));
    }
    connect_interrupts(platform);
    // What is behind these windows is found out later: guests need not wait for that.
    if let Some(platform) = PLATFORM.get() {
        host::virtio::look_behind(platform);
    }
    log::info!(
        "Undercroft {} on {} CPUs, {} MiB",
        env!("CARGO_PKG_VERSION"),
        // Pairs with the addition in `secondary`.
        STARTED.load(Ordering::Acquire),
        memory::usage().total / 256
    );
    log::info!("speculation: {plan}");
    host::probe_group_0();
    host::init_deactivation(C::deactivation_trap);
    if !host::probe_wfe() {
        log::info!("WFE does not trap on this machine: guests that ask through it get no answer");
    }
    for word in arguments.unknown().filter(|word| !C::knows(word)) {
        log::warn!(
            "the boot argument \"{word}\" is unknown; known are link=text|framed, all-off=stay|poweroff, exit-times=off|on, \
             cache-maintenance=needed|always"
        );
    }
    if !entropy::has_good_source(platform.seed) {
        log::warn!("the host offers no randomness (no /chosen/rng-seed, no RNDR): guests' seeds can be guessed");
    }
    if C::replace_vms(platform) {
        console::open();
        sched::idle()
    }
    if let Err(reason) = make_vms::<C>(platform) {
        log::error!("no VM can be started: {reason}");
        output::vm_changed();
    }
    C::vms_are_made();
    console::open();
    sched::idle()
}

/// Has the other CPUs brought to mailboxes, and reads what describes the host again: it names these now.
#[inline(never)]
fn park_others(platform: &mut Platform<'static>, blob: &'static [u8], tree: Pa) {
    if platform.cpus.len() < 2 {
        return;
    }
    let size = stage::room(platform, blob);
    let Some(region) = memory::find_gap(platform, size) else {
        log::warn!("the other CPUs stay off: there are not {size} bytes of memory in one piece for their mailboxes");
        return;
    };
    // What is not in the new tree: who reads the old one, which is not changed, or waits at a mailbox that no tree names.
    let old = Range { start: tree, size: blob.len() as u64 };
    let kept = match stage::run(platform, blob, region, host::ticks(PATIENCE)) {
        Ok(report) => {
            stage::tell(&report);
            match describe(self::blob(report.tree), report.tree) {
                Ok(converted) => {
                    *platform = converted;
                    old
                }
                Err(error) => {
                    log::warn!("the other CPUs stay off: the device tree that names mailboxes: {error}");
                    region
                }
            }
        }
        Err(failure) => {
            log::warn!("the other CPUs stay off: {failure}");
            region
        }
    };
    if platform.reserved.try_push(kept).is_err() {
        refuse(format_args!("the device tree reserves too much to reserve mailboxes, too"));
    }
}

/// Lets the interrupts of the host's devices in.
#[inline(never)]
fn connect_interrupts(platform: &Platform<'_>) {
    for device in platform.devices() {
        let handler = match device.kind {
            DeviceKind::Console(_) => Handler::Console,
            // The GIC's own interrupt is each CPU's; nobody waits for the clock's.
            DeviceKind::Distributor | DeviceKind::Redistributors | DeviceKind::Clock => continue,
        };
        if let Some(line) = device.interrupt {
            let _ = connect(line, handler, 0);
        }
    }
}

/// Says whether that could be.
fn connect(line: InterruptLine, handler: Handler, device: u8) -> bool {
    let outcome = interrupts::connect(line, handler, device);
    if let Err(error) = outcome {
        log::warn!("interrupt {} of a device of the host is not used: {}", line.interrupt.0, error.sentence());
    }
    outcome.is_ok()
}

/// Builds EL2's address space and enters it.
#[inline(never)]
fn map(platform: &Platform<'_>) -> Result<(), hw::mmu::MapError> {
    entry::enter_virtual(&platform.memory, platform.device_memory(DEVICE_STEP), platform.later_devices())
}

/// Each CPU's own interrupts that are used: the timers', and that of the virtual CPU interface. Their numbers are constants on the
/// path of an exit.
fn own_interrupts(platform: &Platform<'_>) -> [InterruptLine; 3] {
    let lines = [platform.timer.hypervisor_physical, platform.timer.virtual_, platform.gic.maintenance];
    let numbers = lines.map(|line| line.interrupt);
    if numbers != [gic::HYPERVISOR_TIMER, gic::VIRTUAL_TIMER, gic::MAINTENANCE] {
        let [timer, virtual_timer, maintenance] = numbers.map(|number| number.0);
        refuse(format_args!(
            "the interrupts of EL2's timer, the virtual timer and the GIC's maintenance are {timer}, {virtual_timer} and {maintenance}; \
             they must be 26, 27 and 25, as the Server Base System Architecture recommends"
        ));
    }
    lines
}

/// What every CPU does before it runs threads. Returns what is done about its predictors.
fn join<C: Checks>(platform: &Platform<'_>, mpidr: u64) -> Plan {
    host::init_cpu();
    match platform.gic.redistributor(mpidr, gic::redistributor_type) {
        Some(redistributor) => {
            if let Err(error) = gic::init_cpu(redistributor, &own_interrupts(platform)) {
                refuse(format_args!("the Redistributor of CPU {mpidr:#x}: {}", error.sentence()));
            }
        }
        None => refuse(format_args!("CPU {mpidr:#x} has no Redistributor in the device tree")),
    }
    percpu::set_hooks(interrupts::interrupt_in_el2::<C>, interrupts::preempt_deferred::<C>);
    let plan = speculation::init_cpu(C::against_prediction);
    sched::join();
    plan
}

/// Where the other CPUs find the platform.
static PLATFORM: spin::Once<Platform<'static>> = spin::Once::new();

#[inline(never)]
fn publish(platform: &Platform<'static>) {
    PLATFORM.call_once(|| platform.clone());
}

#[inline(never)]
fn start_others<C: Checks>(platform: &Platform<'static>, count: usize) {
    publish(platform);
    for cpu in platform.cpus.iter().skip(1).take(count) {
        if let Err(error) = start_cpu::<C>(cpu) {
            log::warn!("CPU {} stays off: {error}", cpu.id.0);
        }
    }
    if platform.cpus_left_out > 0 {
        log::warn!("{} CPUs stay off: more than {} are not supported", platform.cpus_left_out, platform::MAX_CPUS);
    }
}

/// For checks: starts all CPUs that were left out at first.
pub fn start_rest<C: Checks>() {
    if let Some(platform) = PLATFORM.get() {
        start_others::<C>(platform, platform.cpus.len());
    }
}

/// For checks: starts the last CPU, which was left out at first. Returns its number.
///
/// # Errors
/// A sentence.
pub fn start_last<C: Checks>() -> Result<CpuId, String> {
    let last = PLATFORM.get().and_then(|platform| platform.cpus.last()).ok_or("there is no other CPU")?;
    start_cpu::<C>(last)?;
    Ok(last.id)
}

fn start_cpu<C: Checks>(cpu: &Cpu) -> Result<(), String> {
    let BootMethod::Mailbox(mailbox) = cpu.boot else { return Err("it does not wait at a mailbox".into()) };
    let frame = || memory::allocate_frames(Owner::Hypervisor, 1).map(|frame| frame.start());
    let memory =
        || Ok::<_, frames::FramesError>((memory::allocate_stack()?, memory::allocate_stack()?, [frame()?, frame()?]));
    let (stack, emergency, frames) = memory().map_err(|error| alloc::format!("{error}"))?;
    // Pairs with the addition in `secondary`, of the CPU that was started before this one.
    let before = STARTED.load(Ordering::Acquire);
    entry::start_cpu(cpu.id, cpu.mpidr, mailbox, stack, frames, emergency, secondary::<C>)
        .map_err(|error| alloc::format!("no memory: {error:?}"))?;
    let deadline = sysreg::cntpct_el0().saturating_add(host::ticks(PATIENCE));
    // Pairs with the addition in `secondary`: the CPU has joined the scheduler by then.
    while STARTED.load(Ordering::Acquire) == before {
        if UNLIKE.swap(false, Ordering::Relaxed) {
            return Err("it has other features than the CPU that booted".into());
        }
        if sysreg::cntpct_el0() > deadline {
            return Err("it was started and has not come up within ten seconds".into());
        }
        hw::sync::relax();
    }
    Ok(())
}

/// The other CPUs' way in.
fn secondary<C: Checks>() -> ! {
    let Some(platform) = PLATFORM.get() else { unreachable!("set before the CPU was started") };
    // Before it is told anything of guests.
    if !host::is_alike(C::identification(HostIds(hw::ids::read_all()))) {
        UNLIKE.store(true, Ordering::Relaxed);
        loop {
            sysreg::wfi();
        }
    }
    join::<C>(platform, sysreg::mpidr_el1());
    // Pairs with the loads in `start_cpu`: whoever starts threads on this CPU sees what it has set up.
    STARTED.fetch_add(1, Ordering::AcqRel);
    sched::idle()
}

/// Reads the bundle and makes its VMs.
#[inline(never)]
fn make_vms<C: Checks>(platform: &Platform<'static>) -> Result<(), String> {
    let initrd = platform.initrd.ok_or("there is no initial ramdisk; it should be a bundle, made by `croft bundle`")?;
    let bytes = physical::constant(initrd.start, initrd.size);
    let bundle = Bundle::parse(bytes, physical::crc32c).map_err(|error| alloc::format!("the bundle: {error}"))?;
    let memory: u64 = platform.memory.iter().map(|range| range.size).sum();
    let needs = Needs::of(bundle.vms().map(|vm| Share::of(&vm)), platform.cpus.len(), memory, initrd.size);
    needs.fit(memory).map_err(|error| alloc::format!("{error}"))?;
    // That sum does not count what firmware keeps for itself.
    let free = memory::least_free(platform.cpus.len());
    if needs.of_vms() > free {
        let (wanted, free) = (needs.of_vms() >> 20, free >> 20);
        return Err(alloc::format!(
            "the VMs need {wanted} MiB, and of the host's {} MiB only {free} are free; give it more, or the VMs less",
            memory >> 20
        ));
    }
    memory::set_spare(free - needs.of_vms());
    if bundle.vms().any(|vm| Watchdogs::may_be_used(&vm.doors)) {
        watchdog::start().map_err(|error| alloc::format!("{error}"))?;
    }
    memory::prepare_heap(C::heap(needs.heap)).map_err(|error| alloc::format!("{error}"))?;
    host_disk::find(bundle, |line, number| connect(line, Handler::HostDisk, number))
        .map_err(|error| alloc::format!("{error}"))?;
    network::create(&bundle)?;
    for (id, config) in (0..).map(VmId).zip(bundle.vms()) {
        if config.doors.wfe && !host::wfe_traps() {
            log::warn!("{}: its WFE channel stays closed: WFE does not trap on this machine", config.name);
        }
        if let Err(reason) = vm::create(id, config, bundle, run::make_vcpu::<C>) {
            log::error!("{reason}");
        }
    }
    if vm::all().next().is_none() {
        // None will ever say that it is off.
        output::vm_changed();
    }
    // Only when all are made: whether a vCPU keeps its CPU while it waits depends on which others may run there, and is
    // decided at its start.
    for vm in vm::all().filter(|vm| vm.config.autostart) {
        vm.start();
    }
    Ok(())
}
