//! Counting exits, always; timing them when asked to.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hw::cache;

use crate::host::{self, memory};
use crate::vm;

/// Why guests exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(crate) enum Reason {
    /// A physical interrupt.
    Interrupt,
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
    /// An identification register.
    IdRegister,
    /// Another system register or instruction.
    SystemRegister,
    /// WFI.
    Wfi,
    /// WFE.
    Wfe,
    /// The first use of FP/SIMD since the vCPU came to its CPU.
    FloatingPoint,
    /// RAM touched for the first time.
    Memory,
    /// A device's registers.
    Device,
    /// An access to nothing.
    Nothing,
    /// A call to the hypervisor through the debug channel, HVC #0x86 or WFE.
    Call,
    /// Anything else.
    Other,
}

const REASONS: usize = Reason::Other as usize + 1;
const NAMES: [&str; REASONS] = [
    "interrupt",
    "hvc",
    "smc",
    "id-register",
    "system-register",
    "wfi",
    "wfe",
    "floating-point",
    "memory",
    "device",
    "nothing",
    "call",
    "other",
];

static TIMED: AtomicBool = AtomicBool::new(false);

/// Counts exits' durations from now on, or no longer.
pub(crate) fn set_timed(timed: bool) {
    TIMED.store(timed, Ordering::Relaxed);
}

/// Whether exits are timed.
#[inline(always)]
pub(crate) fn is_timed() -> bool {
    TIMED.load(Ordering::Relaxed)
}

/// One vCPU's counts. Only its own thread writes; anybody reads.
pub(crate) struct Counters {
    count: [AtomicU64; REASONS],
    ticks: [AtomicU64; REASONS],
}

impl Counters {
    /// All zero.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self { count: [const { AtomicU64::new(0) }; REASONS], ticks: [const { AtomicU64::new(0) }; REASONS] }
    }

    /// One more exit for `reason`. A load and a store: there is one writer.
    #[inline(always)]
    pub(crate) fn count(&self, reason: Reason) {
        let counter = &self.count[reason as usize];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// `ticks` were spent on an exit for `reason`.
    pub(crate) fn add_ticks(&self, reason: Reason, ticks: u64) {
        let counter = &self.ticks[reason as usize];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(ticks), Ordering::Relaxed);
    }
}

/// Statistic `number` of a VM: its name, the sum over the VM's vCPUs, and how many statistics there are.
#[must_use]
pub(crate) fn of_vm(vm: &vm::Vm, number: usize) -> Option<(&'static str, u64, u32)> {
    let name = *NAMES.get(number)?;
    let count = |counters: &Counters| counters.count.get(number).map_or(0, |count| count.load(Ordering::Relaxed));
    Some((name, vm.vcpus().iter().map(|vcpu| count(&vcpu.counters)).sum(), REASONS as u32))
}

/// Writes the statistics of all VMs and of memory, as text.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write(out: &mut dyn Write) -> fmt::Result {
    for vm in vm::all() {
        write_vm(vm, out)?;
    }
    let usage = memory::usage();
    // KiB, so that even a single lost frame shows.
    let kib = |frames: u64| frames * 4;
    writeln!(
        out,
        "memory in KiB: {} total, {} free ({} zeroed), {} guests, {} their tables, {} hypervisor, {} reserved",
        kib(usage.total),
        kib(usage.free + usage.scrubbing + usage.spare),
        kib(usage.free_clean),
        kib(usage.guest),
        kib(usage.tables),
        kib(usage.hypervisor),
        kib(usage.reserved),
    )?;
    writeln!(out, "instruction caches emptied for guests' memory: {} times", cache::forgotten_instructions())
}

/// Writes one VM's statistics, as text.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write_vm(vm: &vm::Vm, out: &mut dyn Write) -> fmt::Result {
    let usage = memory::vm_usage(vm.id);
    write!(
        out,
        "{}: started {} times, {} MiB, {} KiB tables; exits:",
        vm.config.name,
        vm.boots(),
        usage.guest / 256,
        usage.tables * 4
    )?;
    let timed = is_timed();
    for (index, name) in NAMES.iter().enumerate() {
        let sum = |select: fn(&Counters) -> &[AtomicU64; REASONS]| -> u64 {
            vm.vcpus().iter().map(|vcpu| select(&vcpu.counters)[index].load(Ordering::Relaxed)).sum()
        };
        let count = sum(|counters| &counters.count);
        if count == 0 {
            continue;
        }
        write!(out, " {name} {count}")?;
        if timed {
            write!(out, " ({} ns)", host::get().counter.nanoseconds(sum(|counters| &counters.ticks)))?;
        }
    }
    writeln!(out)?;
    for vcpu in vm.vcpus() {
        let run = host::get().counter.nanoseconds(vcpu.thread().run_time());
        let wait = host::get().counter.nanoseconds(vcpu.thread().wait_time()) / 1_000_000;
        let run = run / 1_000_000;
        let stolen = host::get().counter.nanoseconds(vcpu.stolen_time()) / 1_000_000;
        let (id, part) = (vcpu.id.0, |ms: u64| (ms / 1000, ms % 1000));
        let ((s, ms), (waited, rest), (stolen, more)) = (part(run), part(wait), part(stolen));
        writeln!(
            out,
            "  vCPU {id}: ran {s}.{ms:03} s, waited {waited}.{rest:03} s for a CPU, {stolen}.{more:03} s of it stolen"
        )?;
    }
    vm.doors.watchdogs.write(out)
}
