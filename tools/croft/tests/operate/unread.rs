//! Commands whose output finds no reader, or no room.

use super::{Stage, terminal, text, until};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// Once the terminal is full, a command that has taken over its signals must not wait for whoever reads it.
#[test]
fn a_console_that_nobody_reads_is_left() {
    use rustix::process::Signal;
    let ways = [
        (Some(Signal::TERM), &[128 + 15][..]),
        (Some(Signal::HUP), &[128 + 1]),
        (Some(Signal::INT), &[128 + 2]),
        // By the person at it. What had come and was not shown counts; but it may be on its way.
        (None, &[0, 4]),
    ];
    for (signal, statuses) in ways {
        let stage = Stage::new(true);
        assert!(stage.says(&["ps"]).contains("web-1"), "all that was said before has come");
        let (mut person, program) = terminal();
        let mut croft = Command::new(env!("CARGO_BIN_EXE_croft"));
        croft.args(["console", "web", "--host"]).arg(stage.folder.path());
        let end = || Stdio::from(program.try_clone().unwrap());
        let mut croft = croft.env("TERM", "xterm").stdin(end()).stdout(end()).stderr(Stdio::null()).spawn().unwrap();
        until(&mut person, "login: ");
        // The guest repeats all of it: more than a terminal takes.
        for _ in 0..256 {
            person.write_all(&[b'x'; 1024]).unwrap();
        }
        match signal {
            Some(signal) => {
                rustix::process::kill_process(rustix::process::Pid::from_child(&croft), signal).unwrap();
            }
            None => person.write_all(b"\x1dq").unwrap(),
        }
        let mut looks = 0;
        let ended = loop {
            if let Some(ended) = croft.try_wait().unwrap() {
                break ended;
            }
            looks += 1;
            if looks > 3000 {
                croft.kill().unwrap();
                panic!("it has not ended by {signal:?}");
            }
            thread::sleep(Duration::from_millis(20));
        };
        assert!(ended.code().is_some_and(|code| statuses.contains(&code)), "{ended} by {signal:?}");
        let after = rustix::termios::tcgetattr(&program).unwrap();
        assert!(after.local_modes.contains(rustix::termios::LocalModes::ECHO), "the terminal is as it was");
    }
}

/// What could not be written matters where all else is well.
#[test]
fn of_several_vms_a_failure_is_told_and_not_what_could_not_be_written() {
    let status = |vms: &[&str]| {
        let stage = Stage::new(true);
        assert!(stage.says(&["ps"]).contains("web-1"), "all that was said before has come");
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut croft = Command::new(env!("CARGO_BIN_EXE_croft"));
        croft.arg("pause").args(vms).arg("--host").arg(stage.folder.path()).stdout(full);
        let output = croft.output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = status(&["web", "db"]);
    assert_eq!(code, Some(4), "{said}");
    for vms in [["nobody", "db"], ["web", "nobody"]] {
        let (code, said) = status(&vms);
        assert!(said.contains("nobody"), "{said}");
        assert_eq!(code, Some(2), "{said}");
    }
}
