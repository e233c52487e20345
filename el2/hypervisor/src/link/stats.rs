//! Statistics, as text for the operator: each VM's exits, the time of its vCPUs, its ports, its watchdogs, and the host's memory.

use core::fmt::{self, Write};

use clock::Rate;
use hw::{cache, sysreg};
use stage2::Policy;
use switch::{Counters, Mac};
use units::{Ticks, Times};

use crate::host::{self, memory};
use crate::sched;
use crate::vm;
use crate::vm::counters::{self, Counters as OfExits, Reason};
use crate::vm::guest_memory::Code;
use crate::vm::host_disk;

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
    writeln!(out, "instruction caches emptied for guests' memory: {}", Times(cache::forgotten_instructions()))
}

/// Writes one VM's statistics, as text.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write_vm(vm: &vm::Vm, out: &mut dyn Write) -> fmt::Result {
    let usage = memory::vm_usage(vm.id);
    write!(
        out,
        "{}: started {}, {} MiB, {} KiB tables; exits:",
        vm.config.name,
        Times(vm.boots().into()),
        usage.guest / 256,
        usage.tables * 4
    )?;
    let timed = counters::is_timed();
    for (index, name) in Reason::NAMES.iter().enumerate() {
        let sum = |of: fn(&OfExits, usize) -> u64| vm.vcpus().iter().map(|vcpu| of(&vcpu.counters, index)).sum::<u64>();
        let count = sum(OfExits::exits);
        if count == 0 {
            continue;
        }
        write!(out, " {name} {count}")?;
        if timed {
            write!(out, " ({} ns)", host::get().counter.nanoseconds(sum(OfExits::ticks)))?;
        }
    }
    writeln!(out)?;
    for vcpu in vm.vcpus() {
        let run = host::get().counter.nanoseconds(sched::run_time(vcpu.thread()));
        // A part of what it waited, and so looked at before that.
        let stolen = host::get().counter.nanoseconds(vcpu.stolen_time().0) / 1_000_000;
        let wait = host::get().counter.nanoseconds(vcpu.thread().wait_time().0) / 1_000_000;
        let run = run / 1_000_000;
        let (id, part) = (vcpu.id.0, |ms: u64| (ms / 1000, ms % 1000));
        let ((s, ms), (waited, rest), (stolen, more)) = (part(run), part(wait), part(stolen));
        writeln!(
            out,
            "  vCPU {id}: ran {s}.{ms:03} s, waited {waited}.{rest:03} s for a CPU, {stolen}.{more:03} s of it stolen"
        )?;
    }
    let (clock, now) = (vm.clock(), Ticks(sysreg::cntpct_el0()));
    let still = if clock.is_stopped() { ", stands still" } else { "" };
    let (count, stood, hertz) = (clock.guest(now).0, clock.stood(now).0, clock.frequency().0);
    write!(out, "  counter: at {count} of {hertz} Hz")?;
    if clock.rate() != Rate::REAL {
        write!(out, " at {} millionths of real time", clock.rate().0)?;
    }
    writeln!(out, ", stood still for {stood} ticks{still}")?;
    let (policy, Code { done, mapped, executable, copied }) = {
        let ram = vm.ram.lock();
        (ram.policy(), ram.code())
    };
    let policy = match policy {
        Policy::OnDemand => "on-demand",
        Policy::Strict => "strict",
        Policy::Eager => "eager",
    };
    writeln!(
        out,
        "  code: {policy}, {executable} of {mapped} pages executable; made so {}, taken back {}, lines cleaned {}, caches emptied {}, \
         blocks split {}, joined {}",
        done.granted, done.taken, done.lines, done.invalidations, done.splits, done.promotions
    )?;
    writeln!(out, "  saved while it ran: {copied} blocks copied")?;
    writeln!(out, "  paid for: {} us of others' work", host::get().counter.nanoseconds(vm.console.paid()) / 1000)?;
    host_disk::write(vm.id, out)?;
    for (number, port) in vm.config.ports.iter().enumerate() {
        let Some(Counters { sent, received, floods, dropped }) = vm.devices.counters(number) else { continue };
        write!(
            out,
            "  port {number} on {}{}, {}: sent {} frames {} bytes {floods} floods, received {} frames {} bytes; dropped:",
            port.network,
            Vlan(port.vlan),
            Mac(port.mac),
            sent.frames,
            sent.bytes,
            received.frames,
            received.bytes
        )?;
        for (name, count) in switch::Reason::NAMES.iter().zip(dropped).filter(|reason| reason.1 > 0) {
            write!(out, " {name} {count}")?;
        }
        writeln!(out)?;
    }
    vm.doors.watchdogs.write(vm, out)
}

/// A VLAN's number behind its network's name; nothing for none.
struct Vlan(u16);

impl fmt::Display for Vlan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(out, ".{}", self.0) }
    }
}
