//! A host whose process stands still.

use super::{Stage, text};
use abi::crc32c;
use abi::link::{Channel, Command as Order, Decoder, Event, VmState};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Should nothing be said, whoever waits for it does so no longer.
fn ends_in_a_minute(host: Pid) -> Sender<()> {
    let (test, is_over) = channel();
    std::thread::spawn(move || {
        if is_over.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
            let _ = kill_process(host, Signal::KILL);
        }
    });
    test
}

/// It takes connections and answers none: whoever asks is told why that takes so long, also where an answer may take its time, and gets
/// the answer when it comes.
#[test]
fn one_that_is_stopped_is_told_of() {
    let stage = Stage::new("cat frames; exec sleep 600");
    stage.record(VmState::Paused);
    let host = stage.host(&["site.toml"]);
    let process = Pid::from_child(&host.0);
    kill_process(process, Signal::STOP).unwrap();
    let ask = |words: &[&str]| stage.private(words).spawn().unwrap();
    let asking = [&["log"][..], &["pause", "web"], &["log", "--follow"]].map(ask);
    let _limit = ends_in_a_minute(process);
    let mut asking = asking.map(|mut asks| {
        let mut errors = BufReader::new(asks.stderr.take().unwrap());
        let mut said = String::new();
        errors.read_line(&mut said).unwrap();
        assert!(
            said.starts_with("croft: the host has not answered for 10 s; perhaps its `croft run` is stopped"),
            "{said}"
        );
        (asks, errors)
    });
    kill_process(process, Signal::CONT).unwrap();
    let ends = |(asks, errors): &mut (Child, BufReader<ChildStderr>)| {
        let mut rest = String::new();
        errors.read_to_string(&mut rest).unwrap();
        (asks.wait().unwrap().code(), rest)
    };
    let [log, pause, follow] = &mut asking;
    assert_eq!(ends(log), (Some(0), String::new()));
    assert_eq!(ends(pause), stage.paused());
    follow.0.kill().unwrap();
    follow.0.wait().unwrap();
    let mut printed = String::new();
    log.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(printed.contains("early text"), "{printed}");
}

/// Whoever wants to type there can still leave: no key is the guest's before it answers.
#[test]
fn a_console_of_one_that_is_stopped_is_left_by_a_signal() {
    let stage = Stage::new("cat frames; exec sleep 600");
    stage.record(VmState::Paused);
    let host = stage.host(&["site.toml"]);
    let process = Pid::from_child(&host.0);
    kill_process(process, Signal::STOP).unwrap();
    let _limit = ends_in_a_minute(process);
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let program = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let end = || Stdio::from(program.try_clone().unwrap());
    let mut console = stage.private(&["console", "web"]).stdin(end()).stdout(end()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(console.stderr.take().unwrap()).read_line(&mut said).unwrap();
    let modes = tcgetattr(&program).unwrap().local_modes;
    // It has the signal's number only if it was still there to be ended by it.
    kill_process(Pid::from_child(&console), Signal::INT).unwrap();
    let ended = console.wait().unwrap();
    kill_process(process, Signal::CONT).unwrap();
    assert!(said.contains("has not answered for 10 s"), "{said}");
    assert!(modes.contains(LocalModes::ISIG | LocalModes::ECHO), "{modes:?}");
    assert_eq!(ended.code(), Some(128 + 2));
}

/// What somebody wanted of it who has not waited for it is not done when it goes on: they may want something else by now.
#[test]
fn what_was_given_up_is_not_done() {
    let stage = Stage::new("cat frames; cat > received; exec sleep 600");
    stage.record(VmState::Paused);
    let host = stage.host(&["site.toml"]);
    let process = Pid::from_child(&host.0);
    kill_process(process, Signal::STOP).unwrap();
    let _limit = ends_in_a_minute(process);
    let mut asks = stage.private(&["stop", "--force", "web"]).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(asks.stderr.take().unwrap()).read_line(&mut said).unwrap();
    asks.kill().unwrap();
    asks.wait().unwrap();
    kill_process(process, Signal::CONT).unwrap();
    // This one is done, as far as the pretended QEMU does anything.
    // It takes longer than a host may be silent, and this one is not: it has heard of it.
    let late = stage.private(&["stop", "--force", "web", "--wait", "11"]).output().unwrap();
    let said = "croft: web did not stop by force within 11 s, it is paused\n";
    assert_eq!((late.status.code(), &*text(&late.stderr)), (Some(1), said));
    let mut decoder = Decoder::new(crc32c::compute);
    let stops = fs::read(stage.path("received")).unwrap().into_iter().filter(|&byte| {
        let order = match decoder.push(byte) {
            Some(Event::Frame { channel: Channel::Control, payload }) => Order::decode(payload),
            _ => None,
        };
        matches!(order, Some(Order::ForceStop { .. }))
    });
    assert_eq!(stops.count(), 1);
}
