//! A VM that runs before its memory has come: it waits for what it touches, and for nothing else.

use super::{LOST, Operated, host};
use abi::crc32c;
use abi::link::Command;
use abi::link::request::{Ask, MAX_BULK_CHUNK, Over};
use anyhow::{Context, Result, ensure};
use croft::control::{self, Order};
use croft::saved::{Check, Contents};
use croft::session::{Condition, Told};
use snapshot::file::Pieces;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use system::host::Host;
use system::{BOOT, SOON, guest};

/// The guest that notices if its memory is not that of one moment. It goes through sixteen blocks, and has written to all others.
const EARLY: &str = "early";
/// Its neighbour.
const BESIDE: &str = "kept";
/// Blocks of 2 MiB that it has, and pieces of one.
const ALL: usize = 128;
const IN_A_BLOCK: usize = 32;
/// Pieces that it needs for a sweep. It needs little else: its image, its stack, its device's queue.
const SWEPT: usize = 16 * IN_A_BLOCK;

fn sweep(host: &Operated) -> Result<u64> {
    let console = host.run.console(EARLY)?;
    console.expect_unless("moment: sweep ", LOST, BOOT)?;
    let text = console.expect_unless(",", LOST, SOON)?;
    text.trim_end_matches(',').parse().with_context(|| text.clone())
}

/// How often it had found VMClock's marker changed by the end of its last sweep.
fn marks(host: &Operated) -> Result<u64> {
    // The line may be about to come.
    for _ in 0..2000 {
        let text = host.run.console(EARLY)?.transcript();
        let (_, last) = text.rsplit_once("moment: sweep ").with_context(|| text.clone())?;
        if let Some((before, _)) = last.split_once(", gap ")
            && let Some((_, marks)) = before.split_once(", marks ")
        {
            return marks.parse().with_context(|| last.to_owned());
        }
        thread::sleep(Duration::from_millis(5));
    }
    anyhow::bail!("its last line does not end")
}

/// Types something for it.
fn type_in(host: &Operated, text: &str) -> Result<()> {
    Ok(host.run.console(EARLY)?.send(text)?)
}

/// How often it has said so.
fn sweeps(host: &Operated) -> Result<usize> {
    Ok(host.run.console(EARLY)?.transcript().matches("moment: sweep ").count())
}

/// A saved VM that is being sent by hand.
struct Sending<'a> {
    host: &'a Operated,
    file: PathBuf,
    from: File,
    contents: Contents,
    pieces: Pieces,
    offset: u64,
    left: Vec<u64>,
}

impl<'a> Sending<'a> {
    /// Sends the state alone.
    fn begin(host: &'a Operated, file: &Path) -> Result<Self> {
        let mut from = File::open(file)?;
        let contents = Check::file(&mut from, file)?;
        let (length, sections) = contents.index().begin();
        let mut begin = vec![0; length as usize];
        File::open(file)?.read_exact(&mut begin)?;
        let pieces = Pieces::begin(crc32c::compute, &mut begin, sections);
        let left = contents.index().others().collect();
        host.run.session().ask(host.run.vm(EARLY)?, Ask::Restore, SOON)?;
        let mut sending = Self { host, file: file.to_path_buf(), from, contents, pieces, offset: 0, left };
        sending.send(&begin)?;
        Ok(sending)
    }

    /// Sends bytes, or asks alone; says which piece the VM waits for.
    fn send(&mut self, bytes: &[u8]) -> Result<Option<u64>> {
        let told = self.send_and_hear(bytes)?;
        ensure!(!told.iter().any(|told| matches!(told, Told::Over(_))), "its guest has ended: {told:?}");
        Ok(told.iter().find_map(|told| if let Told::Wanted(piece) = told { Some(u64::from(*piece)) } else { None }))
    }

    /// As [`Sending::send`]; says all that is told.
    fn send_and_hear(&mut self, bytes: &[u8]) -> Result<Vec<Told>> {
        let mut told = Vec::new();
        for bytes in bytes.chunks(MAX_BULK_CHUNK).chain(bytes.is_empty().then_some(bytes)) {
            let ask = Ask::RestoreNext { offset: self.offset, bytes, last: true };
            told = self.host.run.session().ask(self.host.run.vm(EARLY)?, ask, SOON)?;
            self.offset += bytes.len() as u64;
            while told.contains(&Told::More) {
                let ask = Ask::RestoreNext { offset: self.offset, bytes: &[], last: true };
                told = self.host.run.session().ask(self.host.run.vm(EARLY)?, ask, SOON)?;
            }
        }
        Ok(told)
    }

    /// Sends what the guest waits for, until it has ended its life, and says how.
    fn serve_to_the_end(&mut self) -> Result<Over> {
        for _ in 0..20_000 {
            let told = self.send_and_hear(&[])?;
            for told in told {
                match told {
                    Told::Over(how) => return Ok(how),
                    Told::Wanted(piece) => {
                        let Self { contents, from, file, pieces, .. } = self;
                        let piece = u64::from(piece);
                        let bytes = contents.index().piece(piece, from, file, |runs| pieces.piece(runs))??;
                        if let [Told::Over(how), ..] = &*self.send_and_hear(&bytes)? {
                            return Ok(*how);
                        }
                    }
                    _ => {}
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
        anyhow::bail!("its guest does not end")
    }

    fn send_piece(&mut self, piece: u64) -> Result<Option<u64>> {
        self.left.retain(|left| *left != piece);
        let Self { contents, from, file, pieces, .. } = self;
        let bytes = contents.index().piece(piece, from, file, |runs| pieces.piece(runs))??;
        self.send(&bytes)
    }

    /// Sends what the guest waits for, until it has said this often how far it is. How many pieces that took.
    fn serve(&mut self, said: usize) -> Result<usize> {
        let mut sent = 0;
        for _ in 0..20_000 {
            match self.send(&[])? {
                Some(piece) => {
                    ensure!(self.left.contains(&piece), "it waits for piece {piece}, which has come or is zeros");
                    self.send_piece(piece)?;
                    sent += 1;
                }
                None => thread::sleep(Duration::from_millis(1)),
            }
            if sweeps(self.host)? >= said {
                return Ok(sent);
            }
        }
        anyhow::bail!("it says nothing, {sent} of its pieces have come")
    }

    /// What it waits for.
    fn wanted(&mut self) -> Result<u64> {
        for _ in 0..5_000 {
            if let Some(piece) = self.send(&[])? {
                return Ok(piece);
            }
            thread::sleep(Duration::from_millis(2));
        }
        anyhow::bail!("it waits for nothing")
    }
}

/// Its guest says something when what it needed for that has come, and nothing else has; it finds all as it was, then and when the rest has
/// come.
fn speaks_early(host: &Operated, file: &Path) -> Result<()> {
    let (before, marks_before) = (sweeps(host)?, marks(host)?);
    let mut sending = Sending::begin(host, file)?;
    let all = sending.left.len();
    ensure!(all > (ALL - 16) * IN_A_BLOCK, "only {all} of its pieces hold anything");
    // It is not paused, whoever looks. If it is, it goes on when both the operator and what it waits for let it.
    let waits_for = sending.wanted()?;
    host.run.wait_for(EARLY, SOON, |condition| matches!(condition, Condition::Running { .. }))?;
    host.order(&Order::Pause { vm: EARLY.to_owned() })?;
    sending.send_piece(waits_for)?;
    ensure!(host.run.condition(EARLY)? == Condition::Paused, "what came let it go on, which was paused");
    host.order(&Order::Resume { vm: EARLY.to_owned() })?;
    let sent = 1 + sending.serve(before + 1)?;
    println!("    it spoke when {sent} of {all} pieces had come");
    // It was somewhere in a sweep when it was saved.
    ensure!((8..SWEPT + 64).contains(&sent) && 2 * sent < all, "it said something when {sent} of {all} had come");
    // It was restored, which is one, and then paused by the operator, which is another. That it stands still for each piece is none. It
    // counts on from where it was saved, when it had found no more than when it was stopped.
    let early = marks(host)?;
    ensure!(
        early <= marks_before + 2,
        "it found {early} disruptions when {sent} pieces had come, {marks_before} before"
    );
    // What is not all there is not saved, nor begun anew.
    let save = Order::Save { vm: EARLY.to_owned(), file: file.with_extension("no"), compress: false };
    let refused = host.order(&save).err().context("it was saved")?;
    ensure!(refused.to_string().contains("is being saved or restored"), "{refused}");
    ensure!(!file.with_extension("no").exists(), "something of it was saved");
    for piece in sending.left.clone() {
        sending.send_piece(piece)?;
    }
    for (first, count) in sending.contents.index().zeros().to_vec() {
        let bytes = sending.pieces.zeros(first, count)?;
        sending.send(&bytes)?;
    }
    let end = sending.pieces.end()?;
    sending.send(&end)?;
    host.run.session().ask(host.run.vm(EARLY)?, Ask::RestoreEnd { pause: false }, SOON)?;
    let said = sweeps(host)?;
    while sweeps(host)? < said + 3 {
        sweep(host)?;
    }
    // Now that all has come it hears once that it stood still.
    let found = marks(host)?;
    ensure!(found == early + 1, "it found {found} disruptions when all had come, and {early} before");
    Ok(())
}

/// Its guest powers itself off, or resets itself, when some of its memory has come: whoever sends it hears which, and no life that
/// begins then is stopped.
fn ends_itself(host: &Operated, file: &Path) -> Result<()> {
    for (letter, how) in [("r", Over::Afresh), ("p", Over::PoweredOff)] {
        let mut sending = Sending::begin(host, file)?;
        let first = sending.wanted()?;
        sending.send_piece(first)?;
        type_in(host, letter)?;
        let ended = sending.serve_to_the_end()?;
        ensure!(ended == how, "it has typed {letter}, and its guest ended so: {ended:?}");
        // It is told as often as it is asked, for an answer may be lost.
        ensure!(sending.send_and_hear(&[])? == [Told::Over(how)]);
        host.run.session().ask(host.run.vm(EARLY)?, Ask::EndTransfer, SOON)?;
        if how == Over::Afresh {
            host.run.console(EARLY)?.expect_unless("moment: begins.", LOST, BOOT)?;
            sweep(host)?;
            host.order(&Order::Stop { vm: EARLY.to_owned(), force: true, seconds: 60 })?;
        } else {
            host.run.wait_for(EARLY, SOON, |condition| *condition == Condition::PoweredOff)?;
        }
    }
    Ok(())
}

/// The same by croft: it was typed before the guest was saved, and is read when that goes on. Croft says what has become of it, and
/// ends well.
fn ends_itself_by_croft(host: &Operated, file: &Path) -> Result<()> {
    host.order(&Order::Start { vm: EARLY.to_owned() })?;
    sweep(host)?;
    for (letter, says) in
        [("r", "was reset, and starts afresh, before all"), ("p", "has powered itself off before all")]
    {
        host.order(&Order::Pause { vm: EARLY.to_owned() })?;
        type_in(host, letter)?;
        // The link is in order: what was typed has arrived before it is saved.
        host.order(&Order::Save { vm: EARLY.to_owned(), file: file.to_path_buf(), compress: false })?;
        host.order(&Order::Stop { vm: EARLY.to_owned(), force: true, seconds: 60 })?;
        let mut told = Vec::new();
        let restore = Order::Restore { vm: None, file: file.to_path_buf(), pause: false };
        control::perform(control::connect(&host.socket)?, &restore, |report| told.push(format!("{report:?}")))?;
        ensure!(told.iter().any(|line| line.contains(says)), "{told:?}");
        if letter == "r" {
            host.run.console(EARLY)?.expect_unless("moment: begins.", LOST, BOOT)?;
            sweep(host)?;
        } else {
            host.run.wait_for(EARLY, SOON, |condition| *condition == Condition::PoweredOff)?;
        }
    }
    Ok(())
}

/// What its guest takes for no command.
const LETTERS: &[u8] = b"abcdefghijklmnoqstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// So many bytes wait at a console for a VM's state.
const WAIT: usize = 256;
/// What is typed there, in two pieces: more than wait.
const TYPED: [usize; 2] = [200, 100];

/// What comes from outside before a VM has its state is not lost behind the operator's back: what is typed waits for the guest for
/// which it was typed, in its order, as far as there is room; and all else is refused.
fn waits_for_its_state(host: &Operated, file: &Path) -> Result<()> {
    let (vm, session) = (host.run.vm(EARLY)?, host.run.session());
    let bytes = std::fs::read(file)?;
    session.ask(vm, Ask::Restore, SOON)?;
    let mut sent = 0;
    let mut send = |piece: &[u8]| -> Result<()> {
        let mut bytes = piece;
        while session.ask(vm, Ask::RestoreNext { offset: sent, bytes, last: true }, SOON)?.contains(&Told::More) {
            (sent, bytes) = (sent + bytes.len() as u64, &[]);
        }
        sent += bytes.len() as u64;
        Ok(())
    };
    let (first, rest) = bytes.split_at(MAX_BULK_CHUNK.min(bytes.len() / 2));
    send(first)?;
    host.run.wait_for(EARLY, SOON, |condition| *condition == Condition::Paused)?;
    let letters: String = (0..TYPED.iter().sum())
        .filter_map(|at| LETTERS.get((at + at / 7) % LETTERS.len()))
        .map(|&letter| char::from(letter))
        .collect();
    let (one, other) = letters.split_at(TYPED[0]);
    let refusals = session.refusals().len();
    type_in(host, one)?;
    host.run.control(Command::PowerButton { vm })?;
    let asks = [
        Ask::Stop,
        Ask::Restart { seconds: 1 },
        Ask::Keys,
        Ask::Get { key: "guest.here" },
        Ask::Set { key: "guest.here", offset: 0, value: b"yes", last: true },
        Ask::Reconnect,
        Ask::SetGuestTime,
    ];
    for ask in asks {
        let refused = session.ask(vm, ask, SOON).err().with_context(|| format!("it has no state, and took {ask:?}"))?;
        let why = "is being restored and has no state yet";
        ensure!(refused.to_string().contains(why), "{ask:?}: {refused}");
    }
    // The link is in order.
    let refused = session.refusals().split_off(refusals);
    ensure!(refused == ["power button: the VM is being restored and has no state yet"], "the button: {refused:?}");
    type_in(host, other)?;
    for piece in rest.chunks(MAX_BULK_CHUNK) {
        send(piece)?;
    }
    session.ask(vm, Ask::RestoreEnd { pause: true }, SOON)?;
    host.order(&Order::Resume { vm: EARLY.to_owned() })?;
    // What had no room is lost, and does not come later, before what is typed now.
    type_in(host, "!")?;
    let console = host.run.console(EARLY)?;
    for (place, letter) in letters.chars().take(WAIT).chain(['!']).enumerate() {
        console.expect_unless("moment: typed ", LOST, SOON)?;
        let found = console.expect(".", SOON)?;
        ensure!(found.starts_with(letter), "byte {place}: {found:?} was read where {letter:?} was typed");
    }
    host.order(&Order::Stop { vm: EARLY.to_owned(), force: true, seconds: 60 })?;
    Ok(())
}

/// Whoever sends it says that there is no more, or says nothing: it is stopped, and says why. Its neighbour runs.
fn stops_without(host: &Operated, file: &Path, end: Option<Ask>) -> Result<()> {
    let mut sending = Sending::begin(host, file)?;
    let first = sending.wanted()?;
    sending.send_piece(first)?;
    let why = if let Some(end) = end {
        host.run.session().ask(host.run.vm(EARLY)?, end, SOON)?;
        "its memory has not all come: nobody wants it any more"
    } else {
        "its memory has not all come: nobody sends it any more"
    };
    host.run.wait_for(EARLY, SOON, |condition| matches!(condition, Condition::Crashed(said) if said == why))?;
    host.tick_of(BESIDE)?;
    Ok(())
}

/// A piece that comes twice is refused, and the VM stopped: what its guest has stored since is not written over.
fn refuses_a_second_time(host: &Operated, file: &Path) -> Result<()> {
    let mut sending = Sending::begin(host, file)?;
    let first = sending.wanted()?;
    sending.send_piece(first)?;
    let again = sending.send_piece(first);
    ensure!(
        again.is_err_and(|why| format!("{why:#}").contains("is not what is still to come there")),
        "a piece came twice, and was not refused"
    );
    host.run.wait_for(EARLY, SOON, |condition| matches!(condition, Condition::Crashed(_)))?;
    host.tick_of(BESIDE)?;
    Ok(())
}

/// The operator stops it while it waits. Whoever sends it hears so.
fn is_stopped(host: &Operated, file: &Path) -> Result<()> {
    let mut sending = Sending::begin(host, file)?;
    let first = sending.wanted()?;
    host.order(&Order::Stop { vm: EARLY.to_owned(), force: true, seconds: 60 })?;
    let refused = sending.send_piece(first).err().context("something came for a VM that is off")?;
    ensure!(format!("{refused:#}").contains("was stopped while it was being restored"), "{refused:#}");
    ensure!(host.run.condition(EARLY)? == Condition::Forced, "it is {}", host.run.condition(EARLY)?);
    Ok(())
}

pub(super) fn early() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("early.saved");
    let packed = folder.path().join("packed.saved");
    let mut vm = guest::payload(EARLY, "moment", 1, "")?;
    // So that what it hears of its standing still is seen.
    vm.pause_stops_time = true;
    // It has values, which the operator may ask for.
    vm.doors.vmware = true;
    vm.memory = (ALL as u64) * (2 << 20);
    let host = Host { port: true, memory: 1024, ..host("max") };
    let here =
        Operated::new(host.start_and_stay(vec![vm, guest::payload(BESIDE, "kept", 2, "")?])?, folder.path(), "here")?;
    sweep(&here)?;
    sweep(&here)?;
    for (file, compress) in [(&file, false), (&packed, true)] {
        here.order(&Order::Save { vm: EARLY.to_owned(), file: file.clone(), compress })?;
    }
    let stop = || here.order(&Order::Stop { vm: EARLY.to_owned(), force: true, seconds: 60 });
    stop()?;
    speaks_early(&here, &file)?;
    stop()?;
    stops_without(&here, &file, Some(Ask::EndTransfer))?;
    stops_without(&here, &file, None)?;
    refuses_a_second_time(&here, &file)?;
    is_stopped(&here, &file)?;
    ends_itself(&here, &file)?;
    ends_itself_by_croft(&here, &folder.path().join("ends.saved"))?;
    // By croft, from a file that is compressed too.
    for file in [&packed, &file] {
        here.order(&Order::Restore { vm: None, file: file.clone(), pause: false })?;
        let before = sweeps(&here)?;
        while sweeps(&here)? < before + 3 {
            sweep(&here)?;
        }
        stop()?;
    }
    waits_for_its_state(&here, &file)?;
    here.run.check_log_but(&["its memory has not all come", "nobody asks any more"])
}
