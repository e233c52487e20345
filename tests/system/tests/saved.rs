//! VMs that are saved to a file and restored from it: on another host with another counter, from a file that is damaged, on a CPU that
//! lacks what they know, and when the client goes away.

use abi::bundle::TimeAway;
use abi::crc32c;
use abi::link::Carrier;
use abi::link::request::{Ask, MAX_CHUNK};
use anyhow::{Context, Result, bail, ensure};
use croft::control::{self, About, ControlError, Order, Report};
use croft::session::{Condition, PortBus, Told};
use croft::site::Vm;
use snapshot::file::{Content, PAGE, Reader, Run as Pages, Section, Writer};
use snapshot::{SavedTime, SavedVm};
use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use system::core_file::Core;
use system::host::{Host, Run};
use system::operator::Operator;
use system::{BOOT, SOON, guest, scenario};

/// The VM that is saved.
const NAME: &str = "kept";
const LOST: &[&str] = &["FAILED"];
/// For how long it is away at least, in seconds: longer than clocks of whole seconds are apart.
const AWAY: u64 = 4;
/// How many seconds may pass between two instructions of a guest, on a computer that does other things too.
const SLOW: u64 = 20;

#[path = "saved/early.rs"]
mod early;
#[path = "saved/enclaves.rs"]
mod enclaves;
#[path = "saved/killed.rs"]
mod killed;
#[path = "saved/lost.rs"]
mod lost;
#[path = "saved/moment.rs"]
mod moment;

fn main() -> ExitCode {
    system::run(vec![
        scenario("saved::goes_on_on_a_host_with_another_counter", another_counter),
        scenario("saved::refused_files_and_hosts", refused),
        scenario("saved::whoever_goes_away_leaves_a_vm_that_runs", gone),
        scenario("saved::what_runs_is_saved_as_it_was_at_one_moment", moment::one_moment),
        scenario("saved::what_finds_no_memory_to_be_copied_waits", moment::no_room),
        scenario("saved::a_pause_is_short", moment::short_pause),
        scenario("saved::runs_before_its_memory_has_come", early::early),
        scenario("saved::enclaves_are_gone_behind_a_restore", enclaves::gone),
        scenario("saved::a_pause_takes_effect_in_a_ring_of_calls", enclaves::paused),
        scenario("saved::killed_at_any_moment", killed::killed),
        scenario("saved::what_is_lost_is_sent_again", lost::sent_again),
        scenario("saved::a_refused_state_leaves_nothing", lost::leaves_nothing),
    ])
}

fn host(cpu: &'static str) -> Host {
    Host { cpu, cpus: 2, memory: 512, ..Host::default() }
}

/// The guest that notices what it lost.
fn kept() -> Result<Vm> {
    guest::payload(NAME, "kept", 2, "")
}

/// A run with its socket.
struct Operated {
    run: Run,
    socket: PathBuf,
    operator: Operator,
}

impl Operated {
    fn new(run: Run, folder: &Path, name: &str) -> Result<Self> {
        let socket = folder.join(name);
        let about = About { vcpus: vec![2, 2], ..About::default() };
        let operator = Operator::with(&run, about, socket.clone())?;
        Ok(Self { run, socket, operator })
    }

    fn order(&self, order: &Order) -> Result<(), ControlError> {
        self.operator.order(order).map(drop)
    }

    fn save(&self, file: &Path) -> Result<(), ControlError> {
        self.order(&Order::Save { vm: NAME.to_owned(), file: file.to_path_buf(), compress: false })
    }

    fn restore(&self, file: &Path) -> Result<(), ControlError> {
        self.order(&Order::Restore { vm: None, file: file.to_path_buf(), pause: false })
    }

    fn dump(&self, file: &Path) -> Result<(), ControlError> {
        self.order(&Order::Dump { vm: NAME.to_owned(), file: file.to_path_buf() })
    }

    /// Waits until nobody saves or restores the VM any more: that a client has gone away shows when it is told something.
    fn is_left(&self) -> Result<()> {
        // A hundred seconds, on a computer that has much to do.
        for _ in 0..1000 {
            let Some(Report::Vms(vms)) = self.operator.order(&Order::List)? else { bail!("no list of VMs") };
            if vms.iter().all(|vm| vm.transfer.is_none()) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!("somebody goes on saving or restoring a VM for nobody")
    }

    /// Where the pages are whose contents the guest knows. It says so first.
    fn pages(&self) -> Result<u64> {
        let console = self.run.console(NAME)?;
        console.expect_unless("kept: pages at 0x", LOST, BOOT)?;
        let text = console.expect(".", SOON)?;
        u64::from_str_radix(text.trim_end_matches('.'), 16).with_context(|| text.clone())
    }

    fn force_off(&self) -> Result<()> {
        self.order(&Order::Stop { vm: NAME.to_owned(), force: true, seconds: 60 })?;
        Ok(())
    }

    /// What the guest says next.
    fn tick(&self) -> Result<Tick> {
        self.tick_of(NAME)
    }

    fn tick_of(&self, name: &str) -> Result<Tick> {
        let console = self.run.console(name)?;
        console.expect_unless("kept: tick ", LOST, SOON)?;
        let text = console.expect_unless(".", LOST, SOON)?;
        let mut numbers = text.split(|letter: char| !letter.is_ascii_digit()).filter(|word| !word.is_empty());
        let mut next = || numbers.next().with_context(|| text.clone())?.parse::<u64>().context("a number");
        let [number, count, frequency, clock] = [next()?, next()?, next()?, next()?];
        let [generation, disruption, life, time] = [next()?, next()?, next()?, next()?];
        Ok(Tick { number, count, frequency, clock, generation, disruption, life, time })
    }

    /// What it says first in another life than that in which it said `fresh`: whatever goes on from a file has a generation of its
    /// own. What the VM said that was here before is passed over, of which nobody knows how much it is.
    fn first_after(&self, name: &str, fresh: Tick) -> Result<Tick> {
        let mut last = self.tick_of(name)?;
        // On a computer that has much to do, that may be some minutes of ticks.
        for _ in 0..2000 {
            if last.generation != fresh.generation {
                return Ok(last);
            }
            last = self.tick_of(name)?;
        }
        anyhow::bail!("{name} goes on as what was here before: {fresh:?}, then {last:?}")
    }

    /// The number of the last tick that has come, looked at or not.
    fn newest(&self) -> Result<u64> {
        let text = self.run.console(NAME)?.transcript();
        let mut ticks = text.lines().filter_map(|line| line.trim_end().strip_suffix('.')?.split_once("kept: tick "));
        let (_, last) = ticks.next_back().context("it has not ticked")?;
        let number = last.split(|letter: char| !letter.is_ascii_digit()).find(|word| !word.is_empty());
        number.with_context(|| last.to_owned())?.parse().context("a number")
    }

    /// What it says when it has ticked so often more.
    fn ticks(&self, count: u32) -> Result<Tick> {
        for _ in 1..count {
            self.tick()?;
        }
        self.tick()
    }
}

#[derive(Clone, Copy, Debug)]
struct Tick {
    number: u64,
    count: u64,
    frequency: u64,
    clock: u64,
    generation: u64,
    /// What VMClock's page says: its marker of disruptions, its count of generations, and the time in microseconds.
    disruption: u64,
    life: u64,
    time: u64,
}

impl Tick {
    /// What is another whenever it goes on a second time.
    fn markers(&self) -> [u64; 3] {
        [self.generation, self.disruption, self.life]
    }

    /// VMClock has the time of the real-time clock, and so many seconds more; the two are read one after the other.
    fn shows_more(&self, seconds: RangeInclusive<u64>) -> Result<()> {
        let more = (self.time / 1_000_000).checked_sub(self.clock).context(format!("VMClock is behind: {self:?}"))?;
        ensure!(seconds.contains(&more), "VMClock shows {more} seconds more, not {seconds:?}: {self:?}");
        Ok(())
    }
}

/// Between two looks the counter has counted as many seconds as the real-time clock, which shows whole ones.
fn go_together(before: Tick, after: Tick) -> Result<()> {
    ensure!(before.count < after.count && before.number <= after.number, "{before:?}, then {after:?}");
    ensure!(before.frequency == after.frequency, "{before:?}, then {after:?}");
    let counted = (after.count - before.count) as f64 / before.frequency as f64;
    let passed = (after.clock as i64 - before.clock as i64) as f64;
    ensure!((counted - passed).abs() < 2.0, "it counted {counted} s where {passed} s passed: {before:?}, {after:?}");
    Ok(())
}

/// A VM that began on a host with 62.5 MHz goes on while it is saved, and on hosts with 1 GHz and with 24 MHz, where it is saved again,
/// and on one with its own frequency, where its virtual timer is the hardware's again: nothing of its memory is lost, no vCPU sees its
/// counter go back, a second stays one, and the time that it was away has passed for it.
///
/// Beside it one whose time stands still while it is saved, and in a pause: its counter is where it was, to the tick.
fn another_counter() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kept.saved");
    let frozen = Frozen { file: folder.path().join("frozen.saved"), again: folder.path().join("again.saved") };
    let vms = vec![kept()?, Frozen::vm(TimeAway::Freeze)?];
    let first = Operated::new(host("max,cntfrq=62500000").start_and_stay(vms)?, folder.path(), "first")?;
    let left = frozen.leave(&first)?;
    let began = first.ticks(5)?;
    ensure!(began.frequency == 62_500_000, "{began:?}");
    first.save(&file)?;
    // It has ticked on while nobody looked.
    let mut newest = first.newest()?;
    let mut before = first.tick()?;
    ensure!(began.markers() == before.markers(), "it was saved, and has not gone on from there: {began:?}, {before:?}");
    let mut markers = began.markers().to_vec();
    before.shows_more(0..=SLOW)?;
    // Also after it was saved, all goes on here.
    go_together(began, first.ticks(20)?)?;
    first.run.check_log()?;
    drop(first);
    let saved = fs::metadata(&file)?.len();
    ensure!(
        (256 << 10..1 << 20).contains(&saved),
        "a guest that has written to some seventy pages takes {saved} bytes"
    );
    let hosts =
        [("second", "max,cntfrq=1000000000"), ("third", "max,cntfrq=24000000"), ("fourth", "max,cntfrq=62500000")];
    for (name, cpu) in hosts {
        thread::sleep(Duration::from_secs(AWAY));
        // One host's link stays on its serial port, the others' goes by a port, in large pieces; the last one has it on PCI.
        let port_bus = if name == "fourth" { PortBus::Pci } else { PortBus::Mmio };
        let host = Host { port: name != "second", port_bus, ..host(cpu) };
        let carrier = if host.port { Carrier::Port } else { Carrier::Uart };
        // The choice goes with it: by the site file of the second host its time would go on.
        let mut vms = vec![kept()?];
        vms.extend((name == "second").then(|| Frozen::vm(TimeAway::Advance)).transpose()?);
        let next = Operated::new(host.start_and_stay(vms)?, folder.path(), name)?;
        if name == "second" {
            frozen.come_back(&next, left)?;
        }
        let here = next.tick()?;
        ensure!(next.run.carrier() == carrier, "the link goes by {:?}", next.run.carrier());
        let on_pci = next.run.log().transcript().contains("of the virtio console at PCI ");
        ensure!(on_pci == (name == "fourth"), "{}", next.run.log().transcript());
        let in_use = next.restore(&file).err().context("it took the place of a VM that runs")?;
        ensure!(in_use.to_string().contains("takes the place of one that is off"), "{in_use}");
        next.force_off()?;
        next.restore(&file)?;
        let after = next.first_after(NAME, here)?;
        ensure!(after.clock >= before.clock + AWAY, "the time that it was away has not passed: {before:?}, {after:?}");
        let left = before.number..newest.max(before.number) + 20;
        ensure!(left.contains(&after.number), "it went on with another state: it left in {left:?}, {after:?}");
        let fresh = after.markers();
        ensure!(fresh.iter().all(|marker| !markers.contains(marker)), "it had one before: {after:?}, {markers:?}");
        markers.extend(fresh);
        after.shows_more(0..=SLOW)?;
        go_together(before, after)?;
        go_together(after, next.ticks(30)?)?;
        next.save(&file)?;
        newest = next.newest()?;
        before = next.tick()?;
        next.ticks(3)?;
        next.run.check_log()?;
    }
    Ok(())
}

/// A VM whose time stands still while it is saved, and in a pause, in two files: as it left, and as it came back.
struct Frozen {
    file: PathBuf,
    again: PathBuf,
}

impl Frozen {
    const NAME: &'static str = "frozen";
    const TWIN: &'static str = "twin";

    fn vm(away: TimeAway) -> Result<Vm> {
        let mut vm = guest::payload(Self::NAME, "kept", 1, "")?;
        vm.pause_stops_time = true;
        vm.time.away = away;
        Ok(vm)
    }

    /// One whose place its clone can take.
    fn twin() -> Result<Vm> {
        Ok(Vm { name: Self::TWIN.to_owned(), ..Self::vm(TimeAway::Freeze)? })
    }

    fn leave(&self, host: &Operated) -> Result<Tick> {
        let last = host.tick_of(Self::NAME)?;
        host.order(&Order::Save { vm: Self::NAME.to_owned(), file: self.file.clone(), compress: false })?;
        host.order(&Order::Stop { vm: Self::NAME.to_owned(), force: true, seconds: 60 })?;
        Ok(last)
    }

    /// It is restored, saved before it goes on, and goes on.
    fn come_back(&self, host: &Operated, last: Tick) -> Result<()> {
        // One that has not begun yet cannot be stopped.
        let here = host.tick_of(Self::NAME)?;
        host.order(&Order::Stop { vm: Self::NAME.to_owned(), force: true, seconds: 60 })?;
        host.order(&Order::Restore { vm: None, file: self.file.clone(), pause: true })?;
        host.order(&Order::Save { vm: Self::NAME.to_owned(), file: self.again.clone(), compress: false })?;
        let (left, came) = (time_of(&self.file)?, time_of(&self.again)?);
        ensure!(left.away == came.away && left.clock.count == came.clock.count, "{left:?}, then {came:?}");
        let stood = (came.clock.stood - left.clock.stood) / left.clock.frequency;
        ensure!(stood >= AWAY, "it was away for {AWAY} s at least, and stood still for {stood}");
        host.order(&Order::Resume { vm: Self::NAME.to_owned() })?;
        // Its real-time clock has stood still with its counter; VMClock says how late it is, and that its counter was disturbed.
        let tick = host.first_after(Self::NAME, here)?;
        tick.shows_more(AWAY - 1..=AWAY + 300)?;
        ensure!(last.markers().iter().all(|marker| !tick.markers().contains(marker)), "{last:?}, then {tick:?}");
        go_together(last, tick)
    }
}

/// The clock in a file.
fn time_of(file: &Path) -> Result<SavedTime> {
    Ok(contents(file)?.1.time)
}

/// A VM is cloned while it stands still, and while it runs. It goes on as it was; its clone has the same memory, and a machine in the
/// same state. Where no clone can go on nothing happens.
fn cloned(host: &Operated, folder: &Path) -> Result<()> {
    let clone = |name: &str, pause| Order::Clone { vm: Frozen::NAME.to_owned(), name: name.to_owned(), pause };
    let off = |name: &str| Order::Stop { vm: name.to_owned(), force: true, seconds: 60 };
    let refusal = host.order(&clone("nobody", false)).err().context("a VM that is not there was cloned to")?;
    ensure!(refusal.to_string().contains("kept, frozen, twin"), "{refusal}");
    let refusal = host.order(&clone(Frozen::TWIN, false)).err().context("a clone took the place of a VM that runs")?;
    ensure!(refusal.to_string().contains("takes the place of one that is off"), "{refusal}");
    host.tick_of(Frozen::TWIN)?;
    host.order(&off(Frozen::TWIN))?;
    let refusal = host.order(&Order::Clone { vm: NAME.to_owned(), name: Frozen::TWIN.to_owned(), pause: false });
    let refusal = refusal.err().context("a VM with two vCPUs was cloned to one with one")?;
    ensure!(refusal.to_string().contains("twin is no place for a clone of kept"), "{refusal}");
    let last = host.tick_of(Frozen::NAME)?;
    host.order(&Order::Pause { vm: Frozen::NAME.to_owned() })?;
    host.order(&clone(Frozen::TWIN, true))?;
    let mut files = Vec::new();
    for name in [Frozen::NAME, Frozen::TWIN] {
        ensure!(host.run.condition(name)? == Condition::Paused, "{name} is {}", host.run.condition(name)?);
        let file = folder.join(name);
        host.order(&Order::Save { vm: name.to_owned(), file: file.clone(), compress: false })?;
        files.push(contents(&file)?);
    }
    let [(memory, mut state), (copied, mut twin)] = files.try_into().ok().context("two files")?;
    ensure!(memory == copied, "the clone has another memory");
    ensure!(state.time.clock.count == twin.time.clock.count, "{:?}, and its clone {:?}", state.time, twin.time);
    // It was away for a moment in which its clock stood still.
    state.time.clock.stood = twin.time.clock.stood;
    forget_generation(&mut state)?;
    forget_generation(&mut twin)?;
    ensure!(state == twin, "the clone is in another state: {twin:?}, not {state:?}");
    for name in [Frozen::NAME, Frozen::TWIN] {
        host.order(&Order::Resume { vm: name.to_owned() })?;
        let mut tick = host.tick_of(name)?;
        while tick.count <= state.time.clock.count {
            tick = host.tick_of(name)?;
        }
        go_together(last, tick)?;
        let is_same = name == Frozen::NAME;
        ensure!((tick.generation == last.generation) == is_same, "{name}: {last:?}, then {tick:?}");
        ensure!((tick.life == last.life) == is_same, "{name}: {last:?}, then {tick:?}");
        // Its time stood still in the pause, also that of the one that was cloned.
        ensure!(tick.disruption != last.disruption, "{name}: {last:?}, then {tick:?}");
    }
    host.order(&off(Frozen::TWIN))?;
    host.order(&clone(Frozen::TWIN, false))?;
    for name in [Frozen::NAME, Frozen::TWIN] {
        host.tick_of(name)?;
        host.order(&off(name))?;
    }
    Ok(())
}

/// In what a clone differs, by its purpose: its generation, what VMClock says, and that its guest is to hear of both.
fn forget_generation(state: &mut SavedVm) -> Result<()> {
    for name in [&b"\x0ageneration"[..], b"\x0aclock-page"] {
        let at = state.devices.windows(name.len()).position(|bytes| bytes == name).context("no such device")?;
        let value = at + name.len() + 2 + 4;
        let length = state.devices.get(value - 4..value).context("its length")?.try_into().map(u32::from_le_bytes)?;
        state.devices.get_mut(value..value + length as usize).context("its value")?.fill(0);
    }
    let bank = state.gic.shared.first_mut().context("SPIs")?;
    let theirs = 1 << 14 | 1 << 15;
    (bank.latched, bank.level) = (bank.latched & !theirs, bank.level & !theirs);
    Ok(())
}

/// The memory in a file, as it is written, and the state.
fn contents(file: &Path) -> Result<(Vec<u8>, SavedVm)> {
    let bytes = fs::read(file)?;
    let (mut reader, mut input, mut memory) = (Reader::new(crc32c::compute), &*bytes, Vec::new());
    let mut state = None;
    while let Some(section) = reader.read(&mut input)? {
        match section {
            Section::Memory(runs) => {
                memory.extend(runs.into_iter().map(|run| format!("{run:?}")).collect::<String>().bytes())
            }
            Section::State(found) => state = Some(found.into_inner()),
            Section::End => return Ok((memory, state.context("no state")?)),
            _ => {}
        }
    }
    anyhow::bail!("{}: it does not end", file.display())
}

/// What the guest `kept` writes to its pages, as its source says: a page is of one of two words, or of words that follow from one
/// number. One of them it may just have been writing.
fn holds_its_pages(core: &Core, pages: u64) -> Result<()> {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    const INVERSE: u64 = 0xf1de_83e1_9937_733d;
    let mut wrong = Vec::new();
    for page in 0..64 {
        let (words, _) = core.memory(pages + page * 4096, 4096)?.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let first = words.first().copied().unwrap_or_default();
        let seed = first.wrapping_mul(INVERSE) >> 32;
        let follows = |(index, word): (u64, &u64)| (seed << 32 | index).wrapping_mul(FACTOR) == *word;
        let is_plain = words.iter().all(|word| [0, 0x5a5a_5a5a_5a5a_5a5a].contains(word) && *word == first);
        let is_numbered = seed > 1 && (0..).zip(&words).all(follows);
        if !(is_plain || is_numbered) {
            wrong.push(page);
        }
    }
    ensure!(wrong.len() <= 1, "pages {wrong:?} from {pages:#x} on are not in the core as the guest wrote them");
    Ok(())
}

/// A core of the paused VM, and one of the file that it was saved to, are the same: its memory where it is, its vCPUs at what they do.
fn dumped(here: &Operated, pages: u64, saved: &Path, folder: &Path) -> Result<()> {
    let files = ["kept.core", "saved.core"].map(|name| folder.join(name));
    here.dump(&files[0])?;
    ensure!(here.run.condition(NAME)? == Condition::Paused, "it is {}", here.run.condition(NAME)?);
    croft::dump::file(saved, &files[1])?;
    ensure!(fs::read(&files[0])? == fs::read(&files[1])?, "the VM and the file are not the same in a core");
    let core = Core::open(&files[0])?;
    holds_its_pages(&core, pages)?;
    ensure!(core.threads.iter().map(|thread| thread.number).eq(0..2), "{:?}", core.threads);
    for thread in &core.threads {
        // EL1, on SP_EL1.
        ensure!(thread.pstate & 0x1f == 5 && core.instruction(thread.pc)? != 0, "{thread:x?}");
        core.memory(thread.sp, 16)?;
        core.instruction(thread.x[30])?;
    }
    Ok(())
}

/// Files that are damaged, or of other VMs, and a host whose CPU lacks what the guest knows: each is refused in a line, also by the
/// hypervisor, which is sent them past croft; the VM stays off, and can be started.
fn refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kept.saved");
    let mut other = kept()?;
    other.name = "other".to_owned();
    other.memory = 32 << 20;
    // One that a saved VM fits, and that has powered itself off.
    let ended = guest::payload("ended", "hello", 2, "")?;
    let here = Operated::new(host("max").start_and_stay(vec![kept()?, other, ended])?, folder.path(), "here")?;
    here.run.wait_for("ended", BOOT, |condition| *condition == Condition::PoweredOff)?;
    let pages = here.pages()?;
    here.ticks(2)?;
    here.save(&file)?;
    here.force_off()?;
    let good = fs::read(&file)?;
    let wrong = folder.path().join("wrong.saved");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    *flipped.get_mut(middle).context("a byte")? ^= 8;
    let cut = good.get(..good.len() - 50).context("its end")?.to_vec();
    let cases = [
        (cut, "the saved VM is incomplete: it ends after"),
        (flipped, "the saved VM is damaged: the checksum of section"),
        (b"MZ".repeat(100), "this is no saved VM"),
    ];
    let kept = here.run.vm(NAME)?;
    for (bytes, line) in cases {
        fs::write(&wrong, &bytes)?;
        let refusal = here.restore(&wrong).err().with_context(|| format!("it took a file of which is said: {line}"))?;
        ensure!(refusal.to_string().contains(line), "{refusal}");
        // Past croft.
        here.run.session().ask(kept, Ask::Restore, SOON)?;
        let mut refusal = None;
        for (number, piece) in bytes.chunks(MAX_CHUNK).enumerate() {
            let ask = Ask::RestoreNext { offset: (number * MAX_CHUNK) as u64, bytes: piece, last: true };
            if let Err(error) = here.run.session().ask(kept, ask, SOON) {
                refusal = Some(error);
                break;
            }
        }
        let refusal = match refusal {
            Some(error) => error,
            None => here.run.session().ask(kept, Ask::RestoreEnd { pause: false }, SOON).err().context("it took it")?,
        };
        ensure!(refusal.to_string().contains(line), "{refusal}");
        here.run.wait_for(NAME, SOON, Condition::is_off)?;
    }
    stays_as_it_was(&here, &good)?;
    let misfit = Order::Restore { vm: Some("other".to_owned()), file: file.clone(), pause: false };
    here.order(&Order::Stop { vm: "other".to_owned(), force: true, seconds: 60 })?;
    let refusal = here.order(&misfit).err().context("a VM of another size took it")?;
    ensure!(refusal.to_string().contains("64 MiB of memory, other has 2 and 32"), "{refusal}");
    let nobody = Order::Restore { vm: Some("nobody".to_owned()), file: file.clone(), pause: false };
    let refusal = here.order(&nobody).err().context("a VM that is not there took it")?;
    ensure!(refusal.to_string().contains("kept, other, ended"), "{refusal}");
    here.order(&Order::Start { vm: NAME.to_owned() })?;
    here.tick()?;
    here.force_off()?;
    here.order(&Order::Restore { vm: None, file: file.clone(), pause: true })?;
    ensure!(here.run.condition(NAME)? == Condition::Paused, "it is {}", here.run.condition(NAME)?);
    // The guest has touched nothing yet of the memory that was put in, and all of it is saved again.
    let again = folder.path().join("again.saved");
    here.save(&again)?;
    ensure!(
        fs::metadata(&again)?.len() == good.len() as u64,
        "{} bytes, not {}",
        fs::metadata(&again)?.len(),
        good.len()
    );
    dumped(&here, pages, &again, folder.path())?;
    let site = folder.path().join("site.toml");
    fs::write(&site, "[[vm]]")?;
    for taken in [folder.path(), &site] {
        for refusal in [here.save(taken), here.dump(taken)] {
            let refusal = refusal.err().context("it was written over something else")?;
            ensure!(refusal.to_string().contains("would be lost"), "{refusal}");
        }
    }
    here.force_off()?;
    crowded(&here, &good, &folder.path().join("crowded.saved"))?;
    here.force_off()?;
    here.order(&Order::Restore { vm: None, file: again, pause: true })?;
    here.order(&Order::Resume { vm: NAME.to_owned() })?;
    here.ticks(3)?;
    here.run.check_log()?;
    drop(here);
    let less = Operated::new(host("cortex-a76").start_and_stay(vec![self::kept()?])?, folder.path(), "less")?;
    less.tick()?;
    less.force_off()?;
    let refusal = less.restore(&file).err().context("a CPU that lacks what it knows took it")?.to_string();
    for feature in ["FEAT_SHA3", "FEAT_BTI", "FEAT_FlagM2"] {
        ensure!(refusal.contains(feature), "{feature} is not among what it lacks: {refusal}");
    }
    ensure!(!refusal.contains("FEAT_CRC32"), "both have that: {refusal}");
    ensure!(refusal.contains("the errata of a CPU whose MIDR_EL1 is"), "it is another CPU: {refusal}");
    less.order(&Order::Start { vm: NAME.to_owned() })?;
    less.tick()?;
    less.run.check_log()
}

/// A VM that was built for a file which is then refused is off for the reason for which it was.
fn stays_as_it_was(here: &Operated, good: &[u8]) -> Result<()> {
    let (vm, session) = (here.run.vm("ended")?, here.run.session());
    session.ask(vm, Ask::Restore, SOON)?;
    let mut stood = false;
    for (number, piece) in good.chunks(MAX_CHUNK).enumerate().take(20) {
        let ask = Ask::RestoreNext { offset: (number * MAX_CHUNK) as u64, bytes: piece, last: true };
        session.ask(vm, ask, SOON)?;
        stood |= here.run.condition("ended")? == Condition::Paused;
    }
    session.ask(vm, Ask::RestoreEnd { pause: false }, SOON).err().context("it took a part of a file")?;
    here.run.wait_for("ended", SOON, |condition| *condition == Condition::PoweredOff)?;
    ensure!(stood, "it was never built");
    Ok(())
}

/// Pages that the hypervisor writes for one request, at most.
const AT_ONCE: u64 = 1024;

/// A few bytes of a file may stand for all of a VM's memory. No more than [`AT_ONCE`] pages are written for one request, so that
/// others have their turn; all of them arrive, as another save shows.
fn crowded(here: &Operated, good: &[u8], file: &Path) -> Result<()> {
    let (bytes, pages) = fill_up(good)?;
    let (kept, session) = (here.run.vm(NAME)?, here.run.session());
    session.ask(kept, Ask::Restore, SOON)?;
    let mut more = 0;
    for (number, piece) in bytes.chunks(MAX_CHUNK).enumerate() {
        let mut ask = Ask::RestoreNext { offset: (number * MAX_CHUNK) as u64, bytes: piece, last: true };
        while session.ask(kept, ask, SOON)? == [Told::More] {
            more += 1;
            ask = Ask::RestoreNext { offset: (number * MAX_CHUNK + piece.len()) as u64, bytes: &[], last: true };
        }
    }
    // The last pages of each run need not be told.
    ensure!(more >= pages / AT_ONCE / 2, "{pages} pages were written in {more} times and one");
    session.ask(kept, Ask::RestoreEnd { pause: true }, SOON)?;
    here.run.wait_for(NAME, SOON, |condition| *condition == Condition::Paused)?;
    here.save(file)?;
    let (saved, _) = fill_up(&fs::read(file)?)?;
    ensure!(memory(&saved)? == memory(&bytes)?, "other memory was saved than was put in");
    Ok(())
}

/// The saved VM `bytes`, with other contents where it has nothing: a page again and again, and a word. Also how many pages these are.
fn fill_up(bytes: &[u8]) -> Result<(Vec<u8>, u64)> {
    let mut page = [0; PAGE];
    page.iter_mut().enumerate().for_each(|(place, byte)| *byte = (place / 8) as u8);
    let mut pages = 0;
    let fill = |run: Pages<'_>, put: Put<'_>| match run.content {
        Content::Fill(0) => {
            pages += run.count;
            let few = run.count.min(1500);
            put(Content::Page(&page), few)?;
            put(Content::Fill(0x0123_4567_89ab_cdef), run.count - few)
        }
        content => put(content, run.count),
    };
    let filled = rewritten(bytes, fill, |_| {})?;
    Ok((filled, pages))
}

/// Writes so many pages, if any.
type Put<'a> = &'a mut dyn FnMut(Content<'_>, u64) -> Result<()>;

/// The saved VM `bytes` once more, with what `memory` puts in the place of each run, and with its state as `change` leaves it.
fn rewritten(
    bytes: &[u8],
    mut memory: impl FnMut(Pages<'_>, Put<'_>) -> Result<()>,
    change: impl Fn(&mut SavedVm),
) -> Result<Vec<u8>> {
    let (mut about, mut reader, mut input) = (Reader::new(crc32c::compute), Reader::new(crc32c::compute), bytes);
    let mut writer = Writer::new(crc32c::compute);
    let Some(Section::Vm(vm)) = about.read(&mut &*bytes)? else { anyhow::bail!("no VM") };
    let (mut out, mut machine) = (Vec::new(), None);
    while let Some(section) = reader.read(&mut input)? {
        match section {
            Section::Vm(_) => {}
            Section::Machine(read) => machine = Some(read),
            Section::Moment(moment) => out = writer.begin(&vm, machine.as_ref().context("no machine")?, moment)?,
            Section::Memory(runs) => {
                for run in runs {
                    memory(run, &mut |content, count| {
                        if count > 0 {
                            out.extend(writer.memory(content, count)?);
                        }
                        Ok(())
                    })?;
                }
            }
            Section::State(state) => {
                let mut state = (*state).clone();
                change(&mut state);
                out.extend(writer.state(&state)?);
            }
            Section::End => out.extend(writer.end()?),
        }
    }
    Ok(out)
}

/// What the pages hold, run by run.
fn memory(bytes: &[u8]) -> Result<Vec<(u64, u64, Vec<u8>)>> {
    let (mut reader, mut input, mut found) = (Reader::new(crc32c::compute), bytes, Vec::<(u64, u64, Vec<u8>)>::new());
    while let Some(section) = reader.read(&mut input)? {
        match section {
            Section::Memory(runs) => {
                for run in runs {
                    let content = match run.content {
                        Content::Fill(word) => word.to_le_bytes().to_vec(),
                        Content::Page(bytes) => bytes.to_vec(),
                    };
                    match found.last_mut() {
                        Some((_, count, last)) if *last == content => *count += run.count,
                        _ => found.push((run.first, run.count, content)),
                    }
                }
            }
            Section::End => break,
            _ => {}
        }
    }
    Ok(found)
}

/// The client of a save goes away at any moment: there is no file and no half of one, and the VM goes on. So it does if nobody asks for
/// more though the link is there, and after many saves it is as it was.
fn gone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("files");
    fs::create_dir(&place)?;
    let file = place.join("kept.saved");
    let vms = vec![kept()?, Frozen::vm(TimeAway::Freeze)?, Frozen::twin()?];
    let here = Operated::new(Host { port: true, ..host("max") }.start_and_stay(vms)?, folder.path(), "here")?;
    cloned(&here, folder.path())?;
    let mut before = here.ticks(3)?;
    let session = here.run.session();
    let came = session.came_by_port();
    here.save(&file)?;
    let all = session.came_by_port() - came;
    control_file(&file)?;
    fs::remove_file(&file)?;
    let order = format!("{{\"Save\":{{\"vm\":\"{NAME}\",\"file\":\"{}\"}}}}\n", file.display());
    for round in 0..8_u64 {
        let mut client = control::connect(&here.socket)?;
        // From its beginning to half of it, however long that takes.
        session.hold_port_after((round + 1) * all / 17);
        client.write_all(order.as_bytes())?;
        ensure!(session.wait_until_port_is_held(SOON), "round {round}: it was saved before half of it had come");
        client.shutdown(Shutdown::Both)?;
        drop(client);
        session.hold_port(false);
        here.is_left()?;
        let after = here.ticks(2)?;
        go_together(before, after)?;
        before = after;
        here.run.wait_for(NAME, SOON, |condition| matches!(condition, Condition::Running { .. }))?;
        let left: Vec<_> = fs::read_dir(&place)?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        ensure!(left.is_empty(), "round {round} left {left:?}");
    }
    let kept = here.run.vm(NAME)?;
    // What the last client left ends when its going away was noticed: the VM, which runs, does not tell.
    while let Err(refused) = here.run.session().ask(kept, Ask::Save, SOON) {
        ensure!(refused.to_string().contains("one VM can be at a time"), "{refused}");
        thread::sleep(Duration::from_millis(100));
    }
    // It goes on at once, and is another VM's turn when nobody has asked for more.
    go_together(before, here.ticks(2)?)?;
    here.run.log().expect("nobody asks any more", SOON)?;
    here.save(&file)?;
    here.run.check_log_but(&["nobody asks any more"])
}

/// A file that is there is whole.
fn control_file(file: &Path) -> Result<()> {
    croft::saved::Check::file(&mut fs::File::open(file)?, file)?;
    Ok(())
}
