//! What is followed as it comes: the log, and consoles; and how whoever follows them learns of the end.

use super::{Stage, text, until, untimed};
use abi::link::Channel;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

#[test]
fn the_log_is_followed_to_the_hosts_end() {
    let stage = Stage::new(true);
    assert!(stage.says(&["ps"]).contains("web-1"), "all that was said before has come");
    let mut follower = stage.start(&["log", "--follow"]);
    let mut out = follower.stdout.take().unwrap();
    assert_eq!(untimed(&until(&mut out, "odd\n")), "0.1 INFO: Undercroft\n0.2 WARN: [2Jodd\n");
    assert_eq!(stage.says(&["reboot", "--force", "web"]), "web: running, boot 2\n");
    assert_eq!(untimed(&until(&mut out, "started\n")), "0.3 INFO: web started\n");
    // Nobody reads this one any more: it ends with the next line.
    let mut unread = stage.start(&["log", "--follow"]);
    until(&mut unread.stdout.take().unwrap(), "started\n");
    assert_eq!(stage.says(&["reboot", "--force", "web"]), "web: running, boot 3\n");
    assert_eq!(unread.wait().unwrap().code(), Some(4));
    drop(stage);
    assert_eq!(ended(follower), (Some(3), ENDED_UNDER_VMS.to_owned()));
}

#[test]
fn a_console_is_shown_and_typed_to() {
    let stage = Stage::new(true);
    assert!(stage.says(&["ps"]).contains("web-1"), "all that was said before has come");
    assert_eq!(stage.says(&["console", "web"]), "Debian\r\nweb login: ", "no input: it ends");
    assert_eq!(stage.says(&["console", "--virtio", "web"]), "hvc0 login: ");
    let mut console = stage.start(&["console", "web"]);
    let (mut input, mut out) = (console.stdin.take().unwrap(), console.stdout.take().unwrap());
    until(&mut out, "login: ");
    // Ctrl-] is nothing special without a terminal, and no byte is.
    input.write_all(b"root\x1dq\xff\0\r").unwrap();
    let mut echo = [0; 9];
    out.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"root\x1dq\xff\0\r");
    drop(input);
    assert_eq!(console.wait().unwrap().code(), Some(0));
    assert_eq!(stage.says(&["console", "db"]), "", "another VM's is another");
    // One that follows does not keep the host from ending.
    let mut console = stage.start(&["console", "web"]);
    until(console.stdout.as_mut().unwrap(), "login: ");
    drop(stage);
    assert_eq!(ended(console), (Some(3), ENDED_UNDER_VMS.to_owned()));
}

/// What is said to those who follow something when a host is given up under its VMs.
const ENDED_UNDER_VMS: &str = "croft: the host has ended: `croft run` ended it\n";

/// The exit status of a command, and what it said of it.
fn ended(mut command: Child) -> (Option<i32>, String) {
    // The end of its input would be its end too.
    let _input = command.stdin.take();
    let output = command.wait_with_output().unwrap();
    (output.status.code(), text(&output.stderr))
}

/// Whoever follows something learns whether its VMs had their own end or the host went away under them, from the host or from its silence.
#[test]
fn who_follows_a_host_that_dies_is_told_so() {
    let orders = [&["console", "web"][..], &["console", "--virtio", "web"], &["log", "--follow"]];
    let follow = |stage: &Stage, order: &[&str]| {
        let mut follower = stage.start(order);
        until(follower.stdout.as_mut().unwrap(), if order[0] == "log" { "odd\n" } else { "login: " });
        follower
    };
    // All VMs are off, then it ends.
    let stage = Stage::new(true);
    assert!(stage.says(&["ps"]).contains("web-1"), "all that was said before has come");
    let followers = orders.map(|order| follow(&stage, order));
    stage.says(&["stop", "--force", "web"]);
    stage.says(&["stop", "--force", "db"]);
    drop(stage);
    assert_eq!(followers.map(ended), [(); 3].map(|()| (Some(0), String::new())));
    // The hypervisor goes away, and `croft run` is still there.
    let stage = Stage::new(true);
    assert!(stage.says(&["ps"]).contains("web-1"), "all that was said before has come");
    let followers = orders.map(|order| follow(&stage, order));
    let _ = stage.session.send(Channel::Control, b"\xff nothing that the hypervisor would understand");
    let said = "croft: the host has ended: the link ended while web, db ran; last line of the log: 0.2 WARN: ";
    for (status, told) in followers.map(ended) {
        assert!(status == Some(3) && told.starts_with(said) && told.lines().count() == 1, "{status:?} {told}");
    }
    // `croft run` is killed.
    for order in orders {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("croft.socket")).unwrap();
        let mut croft = Command::new(env!("CARGO_BIN_EXE_croft"));
        croft.args(order).arg("--host").arg(folder.path()).stdin(Stdio::piped()).stderr(Stdio::piped());
        let follower = croft.stdout(Stdio::null()).spawn().unwrap();
        let (mut client, _) = listener.accept().unwrap();
        BufReader::new(client.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
        client.write_all(b"{\"Output\":[]}\n").unwrap();
        drop(client);
        let said = "croft: the host has ended: its `croft run` is gone, and did not say why\n";
        assert_eq!(ended(follower), (Some(3), said.to_owned()), "{order:?}");
    }
}

/// One who follows a console and does not read, while much comes: it is told so at the end of what it can still have, and the
/// one beside it that reads misses nothing.
#[test]
fn who_follows_too_slowly_is_told_and_delays_nobody() {
    // More than a follower may be behind, and a socket holds, in pieces of 64 bytes.
    const ROUNDS: usize = 12;
    const PIECES: usize = 1000;
    const BYTES: usize = 64;
    let stage = Stage::new(true);
    assert!(stage.says(&["ps"]).contains("web-1"), "all that was said before has come");
    let follow = || {
        let stream = UnixStream::connect(stage.socket()).unwrap();
        (&stream).write_all(b"{\"Console\":{\"vm\":\"web\",\"virtio\":false}}\n").unwrap();
        // Far more than it takes: whoever waits in vain is not to do so for ever.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        // It is let in, and has what came before.
        let mut line = String::new();
        for _ in 0..2 {
            reader.read_line(&mut line).unwrap();
        }
        assert!(line.starts_with("{\"Output\":[]}\n{\"Output\":["), "{line}");
        (stream, reader)
    };
    let (_slow, unread) = follow();
    let (mut typing, mut read) = follow();
    let typed = format!("{:?}\n", [b'x'; BYTES]).repeat(PIECES);
    for _ in 0..ROUNDS {
        typing.write_all(typed.as_bytes()).unwrap();
        let mut missing = PIECES * BYTES;
        while missing > 0 {
            let mut line = String::new();
            read.read_line(&mut line).unwrap();
            missing -= line.matches("120").count();
        }
    }
    let last = unread.lines().map(Result::unwrap).last().unwrap();
    assert_eq!(last, "{\"Failed\":\"more came than was read here; the rest is lost\"}");
}
