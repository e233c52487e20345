//! The link loses some of what goes by it while a VM is saved, or has never had it: what is lost comes again.

use super::{Frozen, NAME, Operated, contents, forget_generation, host, kept, rewritten};
use abi::bundle::TimeAway;
use abi::link::Channel;
use abi::link::request::{Ask, MAX_BULK_CHUNK, MAX_CHUNK, Request};
use anyhow::{Context, Result, ensure};
use croft::control::Order;
use croft::session::{Condition, RequestError, Told};
use pack::Boxed;
use std::fs;
use std::thread;
use std::time::Duration;
use system::SOON;
use system::host::Host;

/// More answers of [`MAX_BULK_CHUNK`] than fit into all that is between the hypervisor and this.
const TOO_MANY: u32 = 40;

/// Nothing takes what comes by the port while a VM is sent, as if the tool had been stopped. What was lost by that is known to be as soon
/// as anything is taken again, and is sent again: all of the VM comes. Then the port is shut in the middle of the next one, which
/// comes by the UART from there on, and so goes the way back.
pub(super) fn sent_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("frozen.saved");
    let again = folder.path().join("again.saved");
    let vms = vec![kept()?, Frozen::vm(TimeAway::Freeze)?];
    let here = Operated::new(Host { port: true, ..host("max") }.start_and_stay(vms)?, folder.path(), "here")?;
    here.tick_of(Frozen::NAME)?;
    here.tick()?;
    here.order(&Order::Pause { vm: Frozen::NAME.to_owned() })?;
    let save =
        |to: &std::path::Path| Order::Save { vm: Frozen::NAME.to_owned(), file: to.to_path_buf(), compress: false };
    here.order(&save(&file))?;
    let (vm, session) = (here.run.vm(Frozen::NAME)?, here.run.session());
    session.ask(vm, Ask::Save, SOON)?;
    let mut bytes: Vec<u8> = Vec::new();
    let next = |bytes: &Vec<u8>| Ask::SaveNext { offset: bytes.len() as u64, length: MAX_BULK_CHUNK as u32 };
    let take = |bytes: &mut Vec<u8>, told: Vec<Told>| {
        told.into_iter().for_each(|told| {
            if let Told::Value(piece) = told {
                bytes.extend(piece)
            }
        });
    };
    let first = session.ask(vm, next(&bytes), SOON)?;
    take(&mut bytes, first);
    ensure!(!bytes.is_empty(), "nothing came");
    let mut lost = None;
    // An emulator that stood still meanwhile has lost nothing: all of it comes then, and the port is held for longer.
    for seconds in [3_u32, 6, 12, 24] {
        session.hold_port(true);
        // Of numbers that no request has: nobody waits for their answers.
        for id in 0..TOO_MANY {
            let mut buffer = [0; 64];
            let request = Request { id: 1 << 30 | seconds << 8 | id, vm, ask: next(&bytes) };
            session.send(Channel::Requests, request.encode(&mut buffer).context("a request")?)?;
        }
        let answer = thread::scope(|scope| {
            let asked = scope.spawn(|| session.ask(vm, next(&bytes), SOON));
            // Each answer is waited for until nobody is believed to take it, and from the first one on not even that.
            thread::sleep(Duration::from_secs(seconds.into()));
            session.hold_port(false);
            asked.join().ok()
        });
        match answer {
            Some(Ok(told)) => take(&mut bytes, told),
            other => {
                lost = other.and_then(Result::err);
                break;
            }
        }
    }
    ensure!(lost == Some(RequestError::Lost), "nothing was lost, or nobody said so: {lost:?}");
    loop {
        let told = session.ask(vm, next(&bytes), SOON)?;
        take(&mut bytes, told);
        let mut check = croft::saved::Check::new();
        check.take(&bytes)?;
        if check.is_whole() {
            break;
        }
    }
    session.ask(vm, Ask::EndTransfer, SOON)?;
    fs::write(&again, &bytes)?;
    same(&file, &again)?;
    // What has been forgotten cannot be asked for.
    session.ask(vm, Ask::Save, SOON)?;
    let refusal =
        session.ask(vm, Ask::SaveNext { offset: 1, length: 9 }, SOON).err().context("it gave what it has not")?;
    ensure!(refusal.to_string().contains("not asked for in order"), "{refusal}");
    let mut begin = Vec::new();
    take(&mut begin, session.ask(vm, Ask::SaveNext { offset: 0, length: 900 }, SOON)?);
    for offset in [0, 100, 100] {
        let mut part = Vec::new();
        take(&mut part, session.ask(vm, Ask::SaveNext { offset, length: 800 }, SOON)?);
        ensure!(begin.get(offset as usize..offset as usize + 800) == Some(&*part), "at {offset} comes something else");
    }
    // The port is shut while this goes on, which knows nothing of it.
    session.shut_port();
    while !session.log().transcript().contains("it goes by the UART") {
        session.ask(vm, Ask::SaveNext { offset: 900, length: 0 }, SOON).or_else(only_lost)?;
    }
    session.ask(vm, Ask::EndTransfer, SOON)?;
    // The way back. Each piece is sent twice, the second time with what stood before it, as if other pieces had been lost.
    here.order(&Order::Stop { vm: Frozen::NAME.to_owned(), force: true, seconds: 60 })?;
    session.ask(vm, Ask::Restore, SOON)?;
    for start in (0..bytes.len()).step_by(MAX_CHUNK / 2) {
        let end = bytes.len().min(start + MAX_CHUNK / 2);
        for from in [start, start.saturating_sub(100)] {
            let piece = bytes.get(from..end).context("a piece")?;
            let mut ask = Ask::RestoreNext { offset: from as u64, bytes: piece, last: true };
            while session.ask(vm, ask, SOON)?.contains(&Told::More) {
                ask = Ask::RestoreNext { offset: end as u64, bytes: &[], last: true };
            }
        }
    }
    session.ask(vm, Ask::RestoreEnd { pause: true }, SOON)?;
    here.order(&save(&again))?;
    same(&file, &again)?;
    // The frame that was cut off when nobody took it is damaged, and no other.
    ensure!(here.run.damage() <= 1, "{} pieces of the link were damaged", here.run.damage());
    here.run.check_complaints(&["the link's port took nothing", "it goes by the UART"])
}

fn only_lost(error: RequestError) -> Result<Vec<Told>, RequestError> {
    if error == RequestError::Lost { Ok(Vec::new()) } else { Err(error) }
}

/// Two files of a VM that stood still hold the same, but for how long it stood.
fn same(one: &std::path::Path, other: &std::path::Path) -> Result<()> {
    let ((memory, mut state), (again, mut other)) = (contents(one)?, contents(other)?);
    state.time.clock.stood = other.time.clock.stood;
    forget_generation(&mut state)?;
    forget_generation(&mut other)?;
    ensure!(memory == again && state == other, "another VM came");
    Ok(())
}

/// A restore is refused when the devices have got their states already. At its next start the VM has none of them: the generation that
/// was saved would tell a guest that its random numbers are still its own. And one that ends as soon as it has been restored was
/// restored.
pub(super) fn leaves_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kept.saved");
    let wrong = folder.path().join("wrong.saved");
    let here = Operated::new(host("max").start_and_stay(vec![kept()?])?, folder.path(), "here")?;
    let saved = here.ticks(2)?;
    here.save(&file)?;
    here.force_off()?;
    fs::write(&wrong, with_calls(&fs::read(&file)?)?)?;
    let refusal = here.restore(&wrong).err().context("it took a state with calls that it has not")?;
    ensure!(refusal.to_string().contains("it was saved with VMware's guest ABI"), "{refusal}");
    here.run.wait_for(NAME, SOON, Condition::is_off)?;
    here.order(&Order::Start { vm: NAME.to_owned() })?;
    // It counts its ticks from the begin.
    let mut tick = here.tick()?;
    while tick.number > 1 {
        tick = here.tick()?;
    }
    ensure!(tick.generation != saved.generation, "it has what was saved: {saved:?}, then {tick:?}");
    here.run.check_log()
}

/// The saved VM `bytes`, with calls that its site file does not let it have: found out behind the devices.
fn with_calls(bytes: &[u8]) -> Result<Vec<u8>> {
    rewritten(
        bytes,
        |run, put| put(run.content, run.count),
        |state| state.calls = Some(Boxed::new(Default::default()).expect("there is memory")),
    )
}
