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
//! A device that breaks its rules, or answers nothing for too many looks ([`Disk::is_silent`]), is reset and not used any more: all that it
//! has, and all that is asked of it afterwards, ends in I/O errors.

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ::vm::host_disks::{DiskPart, FoundDisk, disk_claims};
use abi::bundle::{Bundle, MAX_HOST_DISKS};
use drivers::virtio::Broken;
use drivers::virtio::block::{DEVICE_ID, Disk, Facts, SERIAL, SLOTS};
use hw::sync::{PreemptLock, relax, unmask_irqs, without_irqs};
use hw::sysreg;
use hw::virtio::{Device, Interrupt};
use platform::InterruptLine;
use spin::Once;
use units::{BLOCK_SIZE, DiskOutcome, DiskRequest, IntId, Ticks, VmId};
use virtio::block::host::{self as guest, Backend, MOST_SLOTS};

use crate::host::virtio::{Address, Found, Use};
use crate::host::{self, memory};
use crate::sched::{self, Thread};
use crate::vm::handle::request;
use crate::vm::{self, Vm};

/// So often is looked whether a disk that has requests still answers.
const LOOK_SECONDS: u64 = 5;
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
    /// Somebody handles that line's interrupts.
    is_heard: AtomicBool,
}

struct State {
    disk: Disk<Device>,
    /// How what was asked for with a slot has ended, until its owner has taken note.
    outcomes: [Option<DiskOutcome>; SLOTS as usize],
    /// Whose each slot is.
    owners: [Option<VmId>; SLOTS as usize],
}

impl HostsDisk {
    /// Its serial number.
    fn serial(&self) -> &[u8] {
        let end = self.serial.iter().position(|&byte| byte == 0).unwrap_or(SERIAL);
        self.serial.get(..end).unwrap_or_default()
    }

    /// Takes note of what the device has answered. Says whether it has done something, or still has something to do. Whose requests
    /// these were pays for what the thread has done since `paid_until`, by its own clock.
    fn attend(&self, paid_until: &mut u64) -> bool {
        let now = sysreg::cntpct_el0();
        let (mut is_busy, mut waiting, mut why) = (false, 0_u64, None);
        let mut state = self.state.lock();
        // As many as it can have at once: what it answers meanwhile interrupts again.
        for _ in 0..SLOTS {
            match state.disk.take() {
                Ok(Some((slot, outcome))) => {
                    waiting |= state.ended(slot, outcome);
                    is_busy = true;
                }
                Ok(None) => break,
                Err(Broken(broken)) => {
                    why = Some(broken);
                    break;
                }
            }
        }
        if state.disk.is_silent(now, host::ticks(LOOK_SECONDS * 1_000_000)) {
            state.disk.give_up();
            why = Some("it has requests, and answers nothing");
        }
        if why.is_some() {
            // Whatever it had.
            waiting |= (0..SLOTS).fold(0, |waiting, slot| waiting | state.ended(slot, DiskOutcome::Failed));
        }
        is_busy |= state.disk.under_way() > 0;
        drop(state);
        if let Some(why) = why {
            log::error!("the host's disk virtio{} is not used any more: {why}", self.number);
        }
        let payers = || vm::all().filter(|vm| waiting >> vm.id.0 & 1 != 0);
        let now = sched::own_run_time();
        let share = now.saturating_sub(core::mem::replace(paid_until, now)) / u64::from(waiting.count_ones().max(1));
        payers().for_each(|vm| vm.console.owe(share));
        payers().for_each(go_on);
        is_busy
    }
}

impl State {
    /// What was asked for with a slot has ended so. Whose it is: that VM's bit, or none.
    fn ended(&mut self, slot: u16, outcome: DiskOutcome) -> u64 {
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
    part: DiskPart,
    vm: VmId,
    counts: &'static Counts,
    is_offered: bool,
}

impl fmt::Debug for Part {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "virtio{} from {}", self.disk.number, self.part.first_sector)
    }
}

impl Backend for Part {
    fn facts(&self) -> guest::Facts {
        let Facts { block, most, has_cache, discard, zero, .. } = self.disk.facts;
        guest::Facts {
            sectors: self.part.sectors,
            block,
            is_read_only: self.part.is_read_only,
            has_cache,
            discard: discard.map(|limits| (limits.most, limits.alignment)),
            zero: zero.map(|limits| limits.most),
            slots: self.part.slots.into(),
            room: most as usize,
        }
    }

    fn fill(&mut self, slot: usize, offset: usize, bytes: &[u8]) {
        self.disk.state.lock().disk.fill(self.part.slot(slot), offset as u32, bytes);
    }

    fn copy(&mut self, slot: usize, offset: usize, into: &mut [u8]) {
        self.disk.state.lock().disk.copy(self.part.slot(slot), offset as u32, into);
    }

    fn begin(&mut self, slot: usize, wish: DiskRequest) {
        self.counts.count(wish);
        let (slot, wish) = (self.part.slot(slot), self.part.place(wish));
        let mut state = self.disk.state.lock();
        if let Some(owner) = state.owners.get_mut(usize::from(slot)) {
            *owner = Some(self.vm);
        }
        if wish.is_some_and(|wish| state.disk.offer(slot, wish)) {
            self.is_offered = true;
        } else {
            state.ended(slot, DiskOutcome::Failed);
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

    fn outcome(&mut self, slot: usize) -> Option<DiskOutcome> {
        let slot = self.part.slot(slot);
        let outcome = self.disk.state.lock().outcomes.get_mut(usize::from(slot))?.take()?;
        if outcome != DiskOutcome::Done {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
        }
        Some(outcome)
    }
}

/// A disk interrupts, or something else that has the same line, which is returned.
pub(crate) fn interrupted(number: u8) -> Option<IntId> {
    let line = DISKS.get(usize::from(number)).and_then(Once::get)?.line.interrupt;
    on(line).for_each(|disk| disk.interrupt.acknowledge());
    if let Some(thread) = THREAD.get() {
        sched::wake(thread);
    }
    Some(line)
}

/// Whether a disk has this line, and is heard: whatever else has it hears of its interrupts from the disk's.
pub(crate) fn has(line: InterruptLine) -> bool {
    on(line.interrupt).next().is_some()
}

/// The disks that are heard by this line.
fn on(line: IntId) -> impl Iterator<Item = &'static HostsDisk> {
    disks().filter(move |disk| disk.line.interrupt == line && disk.is_heard.load(Ordering::Relaxed))
}

fn disks() -> impl Iterator<Item = &'static HostsDisk> {
    DISKS.iter().filter_map(Once::get)
}

fn run(_: usize) -> ! {
    unmask_irqs();
    // This thread has a weight of its own, and guests choose how much it does: so they pay for it, as they do for the consoles'
    // (`link/dues.rs`), where a vCPU goes on with what was answered. What was woken up for and found nobody's is the next one's.
    let mut paid_until = sched::own_run_time();
    loop {
        // Before the look: whoever begins something behind it finds that nobody watches, and wakes this thread.
        IS_WATCHED.store(false, Ordering::Relaxed);
        let is_busy = disks().fold(false, |is_busy, disk| disk.attend(&mut paid_until) | is_busy);
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
    // Each that is found has a number, whether it can be used or not: the next one would be taken for it otherwise, and be written.
    let count = Cell::new(0);
    let mut adopt = |found: Found| {
        let number = count.replace(count.get() + 1);
        let (line, address) = (found.line, found.address);
        let is_shared = has(line);
        let opened = DISKS.get(number).ok_or_else(|| format!("a host has at most {MAX_HOST_DISKS} disks"));
        // A shared line would interrupt for ever while nobody knows of this disk.
        let opened = opened.and_then(|place| without_irqs(|| open(number, found).map(|disk| place.call_once(|| disk))));
        let disk = match opened {
            Ok(disk) => disk,
            Err(why) => {
                log::warn!("the host's disk virtio{number} at {address} is not used: {why}");
                return Use::None;
            }
        };
        say(disk, address);
        if is_shared || connect(line, number as u8) {
            // What came meanwhile interrupted nobody, and a line that is up already would never rise again.
            interrupted(number as u8);
            return Use::AndMore;
        }
        disk.is_heard.store(false, Ordering::Relaxed);
        disk.state.lock().disk.give_up();
        Use::None
    };
    let mut missed = || count.set(count.get() + 1);
    host::virtio::find_each(DEVICE_ID, "virtio disk", &mut adopt, &mut missed);
    CLAIMS.call_once(|| claims(bundle, count.get()));
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
    if disk.offer_serial(0) {
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
        if outcome == DiskOutcome::Done {
            disk.copy(0, 0, &mut serial);
        }
    }
    let facts = *disk.facts();
    let (outcomes, owners) = ([None; SLOTS as usize], [None; SLOTS as usize]);
    let state = PreemptLock::new(State { disk, outcomes, owners });
    Ok(HostsDisk { number, facts, serial, state, interrupt, line, is_heard: AtomicBool::new(true) })
}

/// What a guest's disk has of a host's.
struct Claim {
    vm: VmId,
    serial: &'static str,
    part: Result<DiskPart, String>,
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
    fn count(&self, wish: DiskRequest) {
        let add = |counter: &AtomicU64, more: u64| {
            counter.fetch_add(more, Ordering::Relaxed);
        };
        match wish {
            DiskRequest::Read(_, bytes) => {
                add(&self.reads, 1);
                add(&self.bytes_read, bytes.into());
            }
            DiskRequest::Write(_, bytes) => {
                add(&self.writes, 1);
                add(&self.bytes_written, bytes.into());
            }
            DiskRequest::Flush => add(&self.flushes, 1),
            DiskRequest::Discard(..) | DiskRequest::Zero(..) => add(&self.others, 1),
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

/// What each guest's disk has, where the host has so many disks.
fn claims(bundle: Bundle<'static>, count: usize) -> Vec<Claim> {
    let about = |number| match DISKS.get(number).and_then(Once::get) {
        Some(disk) => FoundDisk {
            number,
            serial: disk.serial(),
            sectors: disk.facts.sectors,
            block: disk.facts.block,
            is_read_only: disk.facts.is_read_only,
            is_usable: !disk.state.lock().disk.is_broken(),
        },
        None => FoundDisk::unusable(number),
    };
    let found: Vec<_> = (0..count).map(about).collect();
    let claims = disk_claims(bundle.vms(), &found, SLOTS, MOST_SLOTS as u16).into_iter();
    claims
        .map(|claim| Claim { vm: claim.vm, serial: claim.serial, part: claim.part, counts: Counts::default() })
        .collect()
}

/// What disk `serial` of `vm` has of a host's.
///
/// # Errors
/// Why it has nothing.
pub(crate) fn part(vm: VmId, serial: &str) -> Result<Part, String> {
    let claim = CLAIMS.get().and_then(|all| all.iter().find(|claim| claim.vm == vm && claim.serial == serial));
    let claim = claim.ok_or("it was not looked for")?;
    let part = *claim.part.as_ref().map_err(String::clone)?;
    let disk = DISKS.get(part.number).and_then(Once::get).ok_or("it has gone")?;
    Ok(Part { disk, part, vm, counts: &claim.counts, is_offered: false })
}
