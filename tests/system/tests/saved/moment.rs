//! A VM that runs while it is saved: its memory in the file is that of one moment, and it stands still only briefly.

use super::{LOST, Operated, host};
use abi::link::Command;
use abi::link::request::{Ask, MAX_BULK_CHUNK};
use anyhow::{Context, Result, ensure};
use croft::control::Order;
use croft::session::{Condition, Told};
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use system::host::Host;
use system::{BOOT, SOON, guest};

/// The guest that notices if its memory is not that of one moment.
const MOMENT: &str = "moment";

/// What it says next: how many sweeps it has done, and how long it did not run in the last one, in ticks.
fn sweep(host: &Operated) -> Result<(u64, u64)> {
    let console = host.run.console(MOMENT)?;
    console.expect_unless("moment: sweep ", LOST, BOOT)?;
    let text = console.expect_unless(".", LOST, SOON)?;
    let (number, rest) = text.trim_end_matches('.').split_once(", marks ").with_context(|| text.clone())?;
    let (_, gap) = rest.split_once(", gap ").with_context(|| text.clone())?;
    Ok((number.parse()?, gap.parse()?))
}

/// The number of the last sweep that it has told of, looked at or not.
fn newest(host: &Operated) -> Result<u64> {
    let text = host.run.console(MOMENT)?.transcript();
    let mut sweeps = text.lines().filter_map(|line| line.split_once("moment: sweep ")?.1.split_once(", marks "));
    Ok(sweeps.next_back().context("no sweep")?.0.parse()?)
}

/// What it may say first when it goes on from a file for which `save` asks: it was saved after what it had told of before, and before
/// what it tells of once there is an answer, but for what is under way.
fn saved(host: &Operated, save: impl FnOnce() -> Result<()>) -> Result<RangeInclusive<u64>> {
    let before = newest(host)?;
    save()?;
    // Statistics come behind what the console had to say by then.
    host.run.statistics(SOON)?;
    Ok(before..=newest(host)? + 2)
}

/// Waits until it has done more than these.
fn beyond(host: &Operated, sweeps: &RangeInclusive<u64>) -> Result<()> {
    while sweep(host)?.0 <= *sweeps.end() {}
    Ok(())
}

/// What it says when it has done so many more.
fn sweeps(host: &Operated, count: u32) -> Result<()> {
    for _ in 0..count {
        sweep(host)?;
    }
    Ok(())
}

/// Asks for all of a VM whose state is taken, and writes it to `file`.
fn take_out(host: &Operated, file: &Path) -> Result<()> {
    let (vm, session) = (host.run.vm(MOMENT)?, host.run.session());
    let (mut check, mut bytes) = (croft::saved::Check::new(), Vec::new());
    while !check.is_whole() {
        let (offset, length) = (bytes.len() as u64, MAX_BULK_CHUNK as u32);
        for told in session.ask(vm, Ask::SaveNext { offset, length }, SOON)? {
            if let Told::Value(piece) = told {
                check.take(&piece)?;
                bytes.extend(piece);
            }
        }
    }
    session.ask(vm, Ask::EndTransfer, SOON)?;
    Ok(fs::write(file, bytes)?)
}

/// It is restored from `file`, and goes on with one of these sweeps, which are over by then.
fn goes_on_from(host: &Operated, file: &Path, sweeps: &RangeInclusive<u64>) -> Result<()> {
    beyond(host, sweeps)?;
    host.order(&Order::Stop { vm: MOMENT.to_owned(), force: true, seconds: 60 })?;
    host.order(&Order::Restore { vm: None, file: file.to_path_buf(), pause: false })?;
    // What it said before it was stopped is passed over.
    let (mut last, mut number) = (*sweeps.end(), sweep(host)?.0);
    while number > last {
        last = number;
        (number, _) = sweep(host)?;
    }
    ensure!(sweeps.contains(&number), "it goes on with {number}, none of {sweeps:?}");
    self::sweeps(host, 3)
}

/// How often a block was copied because its guest stored into it.
fn copied(host: &Operated) -> Result<u64> {
    let text = host.run.session().statistics(SOON)?;
    let json = croft::statistics::to_json(&croft::statistics::select(&text, &[MOMENT.to_owned()]))?;
    json["vms"][0]["blocks_copied"].as_u64().with_context(|| text)
}

/// A VM runs on while it is saved, and changes all that it has before anything of that is sent. What is saved is its memory as it was
/// when it stood still: it finds each word as its registers say, when it goes on from the file.
pub(super) fn one_moment() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("moment.saved");
    let host = Host { port: true, ..host("max") };
    let here =
        Operated::new(host.start_and_stay(vec![guest::payload(MOMENT, "moment", 1, "")?])?, folder.path(), "here")?;
    sweeps(&here, 2)?;
    let ask = || Ok(here.run.session().ask(here.run.vm(MOMENT)?, Ask::Save, SOON).map(drop)?);
    let saved_in = saved(&here, ask)?;
    // One of these it has begun since.
    beyond(&here, &saved_in)?;
    ensure!(
        copied(&here)? >= 17,
        "it went through sixteen blocks and its device one, and {} were copied",
        copied(&here)?
    );
    take_out(&here, &file)?;
    // It goes on here too.
    sweeps(&here, 3)?;
    goes_on_from(&here, &file, &saved_in)?;
    // Once more by croft, as fast as that is.
    sweeps(&here, 1)?;
    let order = Order::Save { vm: MOMENT.to_owned(), file: file.clone(), compress: false };
    let saved_in = saved(&here, || Ok(here.order(&order)?))?;
    goes_on_from(&here, &file, &saved_in)?;
    here.run.check_log()
}

/// On a host whose memory is used up the VM stands still when it stores into what is not sent yet, and goes on as that is. If the operator
/// pauses it meanwhile, it goes on when the operator says so, and not before.
pub(super) fn no_room() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("moment.saved");
    let mut vm = guest::payload(MOMENT, "moment", 1, "")?;
    // The largest for which there is room.
    vm.memory = 484 << 20;
    let host = Host { port: true, ..host("max") };
    let here = Operated::new(host.start_and_stay(vec![vm])?, folder.path(), "here")?;
    sweeps(&here, 2)?;
    let ask = || Ok(here.run.session().ask(here.run.vm(MOMENT)?, Ask::Save, SOON).map(drop)?);
    let saved_in = saved(&here, ask)?;
    here.run.wait_for(MOMENT, SOON, |condition| *condition == Condition::Paused)?;
    take_out(&here, &file)?;
    here.run.wait_for(MOMENT, SOON, |condition| matches!(condition, Condition::Running { .. }))?;
    sweeps(&here, 3)?;
    ensure!(copied(&here)? < 16, "{} blocks were copied, and there was no memory for sixteen", copied(&here)?);
    goes_on_from(&here, &file, &saved_in)?;
    let (vm, session) = (here.run.vm(MOMENT)?, here.run.session());
    session.ask(vm, Ask::Save, SOON)?;
    here.run.wait_for(MOMENT, SOON, |condition| *condition == Condition::Paused)?;
    session.control(Command::PauseVm { vm })?;
    take_out(&here, &file)?;
    // What has become of the VM is told before this is.
    session.statistics(SOON)?;
    let condition = here.run.condition(MOMENT)?;
    ensure!(condition == Condition::Paused, "the operator has paused it, and it is {condition}");
    session.control(Command::ResumeVm { vm })?;
    here.run.wait_for(MOMENT, SOON, |condition| matches!(condition, Condition::Running { .. }))?;
    sweeps(&here, 2)?;
    here.run.check_log()
}

/// The pause of a guest of 512 MiB that has touched all of it, in instructions: one is a tick of its counter. Copies are in what it
/// says too, of which each is one of its own.
pub(super) fn short_pause() -> Result<()> {
    const MOST: u64 = 2_000_000;
    let folder = tempfile::tempdir()?;
    let mut vm = guest::payload(MOMENT, "moment", 1, "")?;
    vm.memory = 512 << 20;
    let host = Host { cpu: "max,cntfrq=1000000000", ..Host::default() };
    let here = Operated::new(host.start_counted(vec![vm])?, folder.path(), "here")?;
    let (number, without) = sweep(&here)?;
    here.run.session().ask(here.run.vm(MOMENT)?, Ask::Save, SOON)?;
    let mut gaps = Vec::new();
    for _ in 0..4 {
        gaps.push(sweep(&here)?.1);
    }
    println!("a guest of 512 MiB did not run for {gaps:?} instructions, {without} before, in sweep {number}");
    let longest = gaps.iter().copied().max().unwrap_or_default();
    ensure!(longest <= MOST, "it did not run for {gaps:?} instructions, {without} before");
    ensure!(copied(&here)? >= 16, "{} blocks were copied", copied(&here)?);
    Ok(())
}
