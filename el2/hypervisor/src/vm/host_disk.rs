//! The host's disks, and the parts of them that guests have.
//!
//! They are looked for when the bundle has a VM with such a disk, before the first VM is made. Then each guest's disk gets its part of a
//! host's disk, with slots for requests that are its alone, so that no guest's requests wait for another's; one that cannot have its part,
//! because there is no such disk, or because another may write there too, is a VM that is not made.
//!
//! A guest's vCPU moves what it writes into a slot's buffer and gives that to the device ([`Part`]); it does not wait. The device
//! interrupts when it has answered, this module's thread takes note of the answers, and asks the vCPUs of those VMs to go on. So a
//! guest's bytes are moved by itself, and what is left of a VM that has gone ends in its slots, and nowhere else.
//!
//! A device that breaks its rules, or answers nothing for [`PATIENCE_SECONDS`], is reset and not used any more: all that it has, and all that is
//! asked of it afterwards, ends in I/O errors.

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::bundle::{Bundle, HostDisk, HostPart, MAX_HOST_DISKS};
use drivers::virtio::Broken;
use drivers::virtio::block::{DEVICE_ID, Disk, Facts, Outcome, Request, SECTOR, SERIAL, SLOTS};
use hw::sync::{PreemptLock, relax, unmask_irqs, without_irqs};
use hw::sysreg;
use hw::virtio::{Device, Interrupt};
use platform::InterruptLine;
use spin::Once;
use units::{BLOCK_SIZE, IntId, Ticks, VmId};
use virtio::block::host::{self as guest, Backend, MOST_SLOTS};

use crate::host::virtio::{Address, Found, Use};
use crate::host::{self, memory};
use crate::sched::{self, Thread};
use crate::vm::handle::request;
use crate::vm::{self, Vm};

/// After so many seconds without any answer, a disk that has requests is given up.
const PATIENCE_SECONDS: u64 = 30;
/// So often is looked whether that is so.
const LOOK_SECONDS: u64 = 10;
/// So long is waited for a disk's serial number when the host starts.
const SERIAL_SECONDS: u64 = 5;
/// The thread's weight, that of one more guest.
const WEIGHT: u16 = abi::bundle::DEFAULT_WEIGHT;

/// The disks, by their numbers.
static DISKS: [Once<HostsDisk>; MAX_HOST_DISKS] = [const { Once::new() }; MAX_HOST_DISKS];
/// What each guest's disk has.
static CLAIMS: Once<Vec<Claim>> = Once::new();
static THREAD: Once<&'static Thread> = Once::new();
/// The thread looks by itself from time to time, because something is under way.
static IS_WATCHED: AtomicBool = AtomicBool::new(false);

/// A disk of the host's.
struct HostsDisk {
    number: usize,
    facts: Facts,
    serial: [u8; SERIAL],
    state: PreemptLock<State>,
    interrupt: Interrupt,
    /// The line of that, which other devices on PCI may have too.
    line: InterruptLine,
}

struct State {
    disk: Disk<Device>,
    /// How what was asked for with a slot has ended, until its owner has taken note.
    outcomes: [Option<Outcome>; SLOTS as usize],
    /// Whose each slot is.
    owners: [Option<VmId>; SLOTS as usize],
    /// When the device answered last, or was asked for something while it had nothing.
    since: u64,
}

impl HostsDisk {
    fn bytes(&self) -> u64 {
        self.facts.sectors.saturating_mul(SECTOR.into())
    }

    /// Its serial number.
    fn serial(&self) -> &[u8] {
        let end = self.serial.iter().position(|&byte| byte == 0).unwrap_or(SERIAL);
        self.serial.get(..end).unwrap_or_default()
    }

    /// Takes note of what the device has answered. Says whether it has done something, or still has something to do.
    fn attend(&self) -> bool {
        let now = sysreg::cntpct_el0();
        let (mut is_busy, mut waiting, mut why) = (false, 0_u64, None);
        let mut state = self.state.lock();
        // As many as it can have at once: what it answers meanwhile interrupts again.
        for _ in 0..SLOTS {
            match state.disk.take() {
                Ok(Some((slot, outcome))) => {
                    waiting |= state.ended(slot, outcome);
                    state.since = now;
                    is_busy = true;
                }
                Ok(None) => break,
                Err(Broken(broken)) => {
                    why = Some(broken);
                    break;
                }
            }
        }
        let patience = host::ticks(PATIENCE_SECONDS * 1_000_000);
        if state.disk.under_way() > 0 && now.saturating_sub(state.since) >= patience {
            state.disk.give_up();
            why = Some("it has answered nothing for 30 s");
        }
        if why.is_some() {
            // Whatever it had.
            waiting |= (0..SLOTS).fold(0, |waiting, slot| waiting | state.ended(slot, Outcome::Failed));
        }
        is_busy |= state.disk.under_way() > 0;
        drop(state);
        if let Some(why) = why {
            log::error!("the host's disk virtio{} is not used any more: {why}", self.number);
        }
        vm::all().filter(|vm| waiting >> vm.id.0 & 1 != 0).for_each(go_on);
        is_busy
    }
}

impl State {
    /// What was asked for with a slot has ended so. Whose it is: that VM's bit, or none.
    fn ended(&mut self, slot: u16, outcome: Outcome) -> u64 {
        let slot = usize::from(slot);
        let (Some(place), Some(owner)) = (self.outcomes.get_mut(slot), self.owners.get_mut(slot)) else { return 0 };
        let Some(owner) = owner.take() else { return 0 };
        *place = Some(outcome);
        1 << (owner.0 % 64)
    }
}

const _: () = assert!(abi::bundle::MAX_VMS <= 64 && drivers::virtio::block::MEMORY <= BLOCK_SIZE);

/// The devices of `vm` have something to go on with: one of its vCPUs sees to it.
fn go_on(vm: &'static Vm) {
    if let Some(vcpu) = vm.vcpus().iter().find(|vcpu| vcpu.is_on()) {
        vcpu.request(request::DEVICES);
        if vcpu.is_on() {
            return;
        }
    }
    // It was switched off just now, or one is about to be switched on.
    vm.console.ask_for_turn();
}

/// A part of a host's disk, for a guest.
pub(crate) struct Part {
    disk: &'static HostsDisk,
    first_sector: u64,
    sectors: u64,
    is_read_only: bool,
    first_slot: u16,
    slots: u16,
    vm: VmId,
    counts: &'static Counts,
    is_offered: bool,
}

impl fmt::Debug for Part {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "virtio{} from {}", self.disk.number, self.first_sector)
    }
}

impl Part {
    fn slot(&self, slot: usize) -> u16 {
        // A guest's disk has no other slots; the remainder keeps one that had from another's.
        self.first_slot + slot as u16 % self.slots.max(1)
    }

    /// The sector on the whole disk, if all of so many from this one on are this guest's.
    fn place(&self, sector: u64, count: u64) -> Option<u64> {
        let is_within = sector.checked_add(count).is_some_and(|end| end <= self.sectors);
        is_within.then(|| self.first_sector + sector)
    }

    fn wish(&self, wish: guest::Request) -> Option<Request> {
        let of_bytes = |bytes: u32| u64::from(bytes / SECTOR);
        let can_write = !self.is_read_only;
        match wish {
            guest::Request::Read(at, bytes) => Some(Request::Read(self.place(at, of_bytes(bytes))?, bytes)),
            guest::Request::Write(at, bytes) if can_write => {
                Some(Request::Write(self.place(at, of_bytes(bytes))?, bytes))
            }
            guest::Request::Flush => Some(Request::Flush),
            guest::Request::Discard(at, count) if can_write => {
                Some(Request::Discard(self.place(at, count.into())?, count))
            }
            guest::Request::Zero(at, count, may) if can_write => {
                Some(Request::Zero(self.place(at, count.into())?, count, may))
            }
            _ => None,
        }
    }
}

impl Backend for Part {
    fn facts(&self) -> guest::Facts {
        let Facts { block, most, has_cache, discard, zero, .. } = self.disk.facts;
        guest::Facts {
            sectors: self.sectors,
            block,
            is_read_only: self.is_read_only,
            has_cache,
            discard: discard.map(|limits| (limits.most, limits.alignment)),
            zero: zero.map(|limits| limits.most),
            slots: self.slots.into(),
            room: most as usize,
        }
    }

    fn fill(&mut self, slot: usize, offset: usize, bytes: &[u8]) {
        self.disk.state.lock().disk.fill(self.slot(slot), offset as u32, bytes);
    }

    fn copy(&mut self, slot: usize, offset: usize, into: &mut [u8]) {
        self.disk.state.lock().disk.copy(self.slot(slot), offset as u32, into);
    }

    fn begin(&mut self, slot: usize, wish: guest::Request) {
        self.counts.count(wish);
        let (slot, wish) = (self.slot(slot), self.wish(wish));
        let mut state = self.disk.state.lock();
        if state.disk.under_way() == 0 {
            state.since = sysreg::cntpct_el0();
        }
        if let Some(owner) = state.owners.get_mut(usize::from(slot)) {
            *owner = Some(self.vm);
        }
        if wish.is_some_and(|wish| state.disk.offer(slot, wish)) {
            self.is_offered = true;
        } else {
            state.ended(slot, Outcome::Failed);
        }
    }

    fn send(&mut self) {
        if !core::mem::take(&mut self.is_offered) {
            return;
        }
        self.disk.state.lock().disk.notify();
        if !IS_WATCHED.load(Ordering::Relaxed)
            && !IS_WATCHED.swap(true, Ordering::Relaxed)
            && let Some(thread) = THREAD.get()
        {
            sched::wake(thread);
        }
    }

    fn outcome(&mut self, slot: usize) -> Option<guest::Outcome> {
        let slot = self.slot(slot);
        let outcome = self.disk.state.lock().outcomes.get_mut(usize::from(slot))?.take()?;
        if outcome != Outcome::Done {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
        }
        Some(match outcome {
            Outcome::Done => guest::Outcome::Done,
            Outcome::Failed => guest::Outcome::Failed,
            Outcome::Unknown => guest::Outcome::Unknown,
        })
    }
}

/// A disk interrupts, or something else that has the same line, which is returned.
pub(crate) fn interrupted(number: u8) -> Option<IntId> {
    let line = DISKS.get(usize::from(number)).and_then(Once::get)?.line.interrupt;
    disks().filter(|disk| disk.line.interrupt == line).for_each(|disk| disk.interrupt.acknowledge());
    if let Some(thread) = THREAD.get() {
        sched::wake(thread);
    }
    Some(line)
}

/// Whether a disk has this line: whatever else has it hears of its interrupts from the disk's.
pub(crate) fn has(line: InterruptLine) -> bool {
    disks().any(|disk| disk.line.interrupt == line.interrupt)
}

fn disks() -> impl Iterator<Item = &'static HostsDisk> {
    DISKS.iter().filter_map(Once::get)
}

fn run(_: usize) -> ! {
    unmask_irqs();
    loop {
        // Before the look: whoever begins something behind it finds that nobody watches, and wakes this thread.
        IS_WATCHED.store(false, Ordering::Relaxed);
        let is_busy = disks().fold(false, |is_busy, disk| disk.attend() | is_busy);
        let until = is_busy.then(|| {
            IS_WATCHED.store(true, Ordering::Relaxed);
            Ticks(sysreg::cntpct_el0().saturating_add(host::ticks(LOOK_SECONDS * 1_000_000)))
        });
        sched::block(until);
    }
}

/// Looks for the host's disks, if a VM of the bundle has a part of one, and says what each VM gets. `connect` lets in the interrupt of one
/// of them, and says whether it could.
///
/// # Errors
/// If there is no memory for the thread.
#[inline(never)]
pub(crate) fn find(bundle: Bundle<'static>, connect: fn(InterruptLine, u8) -> bool) -> Result<(), frames::FramesError> {
    if bundle.vms().all(|vm| vm.disks.on_host() == 0) {
        return Ok(());
    }
    let thread = Thread::spawn("disks", run, 0, (WEIGHT, u64::MAX))?;
    THREAD.call_once(|| thread);
    let mut number = 0;
    host::virtio::find(DEVICE_ID, "virtio disk", &mut |found| {
        let Some(place) = DISKS.get(number) else { return Use::None };
        let line = found.line;
        let address = found.address;
        let is_shared = has(line);
        // A shared line would interrupt for ever while nobody knows of this disk.
        let opened = without_irqs(|| open(number, found).map(|disk| place.call_once(|| disk)));
        match opened {
            Ok(disk) => {
                say(disk, address);
                let is_connected = is_shared || connect(line, number as u8);
                if is_connected {
                    // What came meanwhile interrupted nobody, and a line that is up already would never rise again.
                    interrupted(number as u8);
                } else {
                    // It keeps its number, and is no VM's.
                    disk.state.lock().disk.give_up();
                }
                number += 1;
                if is_connected { Use::AndMore } else { Use::None }
            }
            Err(why) => {
                log::warn!("the virtio disk at {address} is not used: {why}");
                Use::None
            }
        }
    });
    CLAIMS.call_once(|| claims(bundle));
    Ok(())
}

fn say(disk: &HostsDisk, address: Address) {
    let Facts { sectors, block, is_read_only, has_cache, .. } = disk.facts;
    let serial = core::str::from_utf8(disk.serial()).unwrap_or("?");
    log::info!(
        "the host's disk virtio{} at {address}: {} KiB, blocks of {block} bytes, serial \"{}\"{}{}",
        disk.number,
        sectors / 2,
        serial.escape_default(),
        if is_read_only { ", read-only" } else { "" },
        if has_cache { "" } else { ", no write cache: nothing has to be flushed" },
    );
}

/// Starts a disk, and asks it for its serial number.
fn open(number: usize, found: Found) -> Result<HostsDisk, String> {
    let Found { mut device, interrupt, line, .. } = found;
    device.give(memory::allocate_block().map_err(|error| format!("{error}"))?.range());
    let mut disk = Disk::start(device).map_err(|error| String::from(error.sentence()))?;
    let mut serial = [0; SERIAL];
    if disk.offer(0, Request::Serial) {
        disk.notify();
        let end = sysreg::cntpct_el0().saturating_add(host::ticks(SERIAL_SECONDS * 1_000_000));
        let outcome = loop {
            match disk.take() {
                Ok(Some((_, outcome))) => break outcome,
                Ok(None) if sysreg::cntpct_el0() < end => relax(),
                Ok(None) => {
                    disk.give_up();
                    return Err(String::from("it does not say its serial number"));
                }
                Err(Broken(why)) => return Err(String::from(why)),
            }
        };
        if outcome == Outcome::Done {
            disk.copy(0, 0, &mut serial);
        }
    }
    let facts = *disk.facts();
    let (outcomes, owners) = ([None; SLOTS as usize], [None; SLOTS as usize]);
    let state = PreemptLock::new(State { disk, outcomes, owners, since: 0 });
    Ok(HostsDisk { number, facts, serial, state, interrupt, line })
}

/// What a guest's disk has of a host's.
struct Claim {
    vm: VmId,
    vm_name: &'static str,
    serial: &'static str,
    part: Result<Claimed, String>,
    counts: Counts,
}

/// What was asked of a host's disk for a guest's.
#[derive(Default)]
struct Counts {
    reads: AtomicU64,
    bytes_read: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    flushes: AtomicU64,
    /// Discards and zeroes.
    others: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    fn count(&self, wish: guest::Request) {
        let add = |counter: &AtomicU64, more: u64| {
            counter.fetch_add(more, Ordering::Relaxed);
        };
        match wish {
            guest::Request::Read(_, bytes) => {
                add(&self.reads, 1);
                add(&self.bytes_read, bytes.into());
            }
            guest::Request::Write(_, bytes) => {
                add(&self.writes, 1);
                add(&self.bytes_written, bytes.into());
            }
            guest::Request::Flush => add(&self.flushes, 1),
            guest::Request::Discard(..) | guest::Request::Zero(..) => add(&self.others, 1),
        }
    }
}

/// Writes what was asked for the disks of `vm`, as text.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write(vm: VmId, out: &mut dyn fmt::Write) -> fmt::Result {
    for claim in CLAIMS.get().into_iter().flatten().filter(|claim| claim.vm == vm) {
        let Ok(part) = &claim.part else { continue };
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &claim.counts;
        writeln!(
            out,
            "  disk {} on virtio{}: {} reads of {} KiB, {} writes of {} KiB, {} flushes, {} others, {} failed",
            claim.serial,
            part.number,
            value(&counts.reads),
            value(&counts.bytes_read) >> 10,
            value(&counts.writes),
            value(&counts.bytes_written) >> 10,
            value(&counts.flushes),
            value(&counts.others),
            value(&counts.failed)
        )?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Claimed {
    number: usize,
    /// In bytes.
    start: u64,
    end: u64,
    is_read_only: bool,
    first_slot: u16,
    slots: u16,
}

/// What each guest's disk has, in the order of the bundle. A VM of which one disk cannot be had takes nothing from those behind it.
fn claims(bundle: Bundle<'static>) -> Vec<Claim> {
    let mut all: Vec<Claim> = Vec::new();
    for (id, vm) in (0..).map(VmId).zip(bundle.vms()) {
        let before = all.len();
        let mut is_sound = true;
        for disk in vm.disks.iter() {
            let Some(part) = disk.host() else { continue };
            let part = claim(part).and_then(|claimed| match other_writer(&all, &claimed) {
                None => Ok(claimed),
                Some(other) => Err(format!(
                    "disk {} of {} may write to the same part of virtio{}",
                    other.serial, other.vm_name, claimed.number
                )),
            });
            is_sound &= part.is_ok();
            all.push(Claim { vm: id, vm_name: vm.name, serial: disk.serial, part, counts: Counts::default() });
        }
        if !is_sound {
            let of_this = all.iter_mut().skip(before).filter(|claim| claim.part.is_ok());
            of_this.for_each(|claim| claim.part = Err(String::from("another disk of the VM cannot be had")));
        }
    }
    for disk in disks() {
        let sharers =
            all.iter().filter(|claim| claim.part.as_ref().is_ok_and(|part| part.number == disk.number)).count();
        let each = (usize::from(SLOTS) / sharers.max(1)).min(MOST_SLOTS) as u16;
        let mut first = 0;
        for claim in &mut all {
            let Ok(part) = &mut claim.part else { continue };
            if part.number != disk.number {
                continue;
            }
            if each == 0 {
                claim.part = Err(format!("more than {SLOTS} disks of VMs are on virtio{}", disk.number));
                continue;
            }
            (part.first_slot, part.slots) = (first, each);
            first += each;
        }
    }
    all
}

/// The part of a host's disk that is meant, if there is such a disk, and it is on that.
fn claim(part: &HostPart<&'static str>) -> Result<Claimed, String> {
    let name = part.disk;
    let is_meant = |disk: &&HostsDisk| match HostDisk::named(name) {
        Some(HostDisk::Number(number)) => disk.number == number,
        Some(HostDisk::Serial(serial)) => disk.serial() == serial.as_bytes(),
        None => false,
    };
    let mut meant = disks().filter(is_meant);
    let count = disks().count();
    let Some(disk) = meant.next() else {
        return Err(format!("the host has no disk {name}; it has {count}, and the log says which"));
    };
    if meant.next().is_some() {
        return Err(format!("the host has several disks {name}"));
    }
    if disk.state.lock().disk.is_broken() {
        return Err(format!("{name} is not used, as the log says"));
    }
    let bytes = disk.bytes();
    let Some(end) = part.end(bytes) else {
        return Err(format!(
            "{name} has {bytes} bytes, and the part of it would begin at {} and have {}",
            part.offset, part.size
        ));
    };
    let block = u64::from(disk.facts.block);
    // What is behind the last whole block cannot be reached.
    let end = if part.size == 0 { end - end % block } else { end };
    if !(part.offset | end).is_multiple_of(block) || part.offset >= end {
        return Err(format!("{name} has blocks of {block} bytes, and a part of it begins and ends with one"));
    }
    if disk.facts.is_read_only && !part.read_only {
        return Err(format!("{name} cannot be written; add read-only = true"));
    }
    let is_read_only = part.read_only;
    Ok(Claimed { number: disk.number, start: part.offset, end, is_read_only, first_slot: 0, slots: 0 })
}

/// Who may write to what `claimed` may write to.
fn other_writer<'c>(all: &'c [Claim], claimed: &Claimed) -> Option<&'c Claim> {
    all.iter().find(|claim| {
        claim.part.as_ref().is_ok_and(|other| {
            let both_write = !other.is_read_only && !claimed.is_read_only;
            let is_apart = other.end <= claimed.start || claimed.end <= other.start;
            other.number == claimed.number && both_write && !is_apart
        })
    })
}

/// What disk `serial` of `vm` has of a host's.
///
/// # Errors
/// Why it has nothing.
pub(crate) fn part(vm: VmId, serial: &str) -> Result<Part, String> {
    let claim = CLAIMS.get().and_then(|all| all.iter().find(|claim| claim.vm == vm && claim.serial == serial));
    let claim = claim.ok_or("it was not looked for")?;
    let claimed = claim.part.as_ref().map_err(String::clone)?;
    let disk = DISKS.get(claimed.number).and_then(Once::get).ok_or("it has gone")?;
    let sector = u64::from(SECTOR);
    Ok(Part {
        disk,
        first_sector: claimed.start / sector,
        sectors: (claimed.end - claimed.start) / sector,
        is_read_only: claimed.is_read_only,
        first_slot: claimed.first_slot,
        slots: claimed.slots,
        vm,
        counts: &claim.counts,
        is_offered: false,
    })
}
