//! A hypervisor that is built before it is run, and messages for which there is no room.

use super::{Stage, text};
use abi::link::{StopReason, VmState};
use std::fs;
use std::process::Command;

impl Stage {
    /// `croft run` in a project whose image is not built yet; `cargo` is played, in shell.
    fn building(&self, cargo: &str, arguments: &[&str]) -> Command {
        fs::create_dir_all(self.path("tools/xtask")).unwrap();
        fs::write(self.path("tools/xtask/Cargo.toml"), "").unwrap();
        let write = "printf %s \"$1\" > cargo && chmod 755 cargo";
        let script = format!("#!/bin/sh\n{cargo}\n");
        let status = Command::new("sh").args(["-c", write, "sh", &script]).current_dir(self.folder.path()).status();
        assert!(status.unwrap().success());
        let mut command = self.command(&[&["run", "site.toml"], arguments].concat());
        command.env("CARGO", self.path("cargo")).env_remove("CARGO_TARGET_DIR");
        command
    }

    /// Waits until the build has begun. Gives its process.
    fn builder(&self) -> String {
        for _ in 0..3000 {
            if let Ok(process) = fs::read_to_string(self.path("builder"))
                && process.ends_with('\n')
            {
                return process.trim().to_owned();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("nothing is built");
    }
}

fn is_there(process: &str) -> bool {
    fs::exists(format!("/proc/{process}/exe")).unwrap()
}

/// A build may take minutes, and is a part of the run: its time counts, and a signal ends it.
#[test]
fn a_build_ends_with_the_time_and_by_a_signal() {
    let builds = "echo $$ > builder\nexec sleep 60";
    let stage = Stage::new("cat frames");
    let output = stage.building(builds, &["--timeout", "1"]).output().unwrap();
    let said = text(&output.stderr);
    assert!(
        output.status.code() == Some(124) && said.ends_with("croft: timed out after 1s; nothing ran yet\n"),
        "{said}"
    );
    // On a busy computer the time may be up before the build has written who it is.
    if let Ok(builder) = fs::read_to_string(stage.path("builder")) {
        assert!(!is_there(builder.trim()), "its build goes on");
        fs::remove_file(stage.path("builder")).unwrap();
    }
    let mut run = stage.building(builds, &[]).spawn().unwrap();
    let builder = stage.builder();
    let process = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(128 + 15));
    assert!(!is_there(&builder), "its build goes on");
}

/// What is said of a build, or of an old image, finds no room; the run does not depend on it.
#[test]
fn a_run_needs_no_room_for_what_it_says() {
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let stage = Stage::new("cat frames");
    stage.record(VmState::Stopped(StopReason::PowerOff));
    let mut run = stage.building("mkdir target && : > target/undercroft.img", &["--until-stopped"]);
    assert_eq!(run.stderr(full()).status().unwrap().code(), Some(0));
    fs::create_dir(stage.path("core")).unwrap();
    fs::write(stage.path("core/new.rs"), "").unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    fs::File::options().write(true).open(stage.path("target/undercroft.img")).unwrap().set_modified(old).unwrap();
    let output = stage.building("exit 1", &["--until-stopped"]).output().unwrap();
    let said = text(&output.stderr);
    assert!(said.contains("undercroft.img is older than core/new.rs"), "{said}");
    let mut run = stage.building("exit 1", &["--until-stopped"]);
    assert_eq!(run.stderr(full()).status().unwrap().code(), Some(0));
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"]] {
        let status = stage.command(arguments).stdout(full()).status().unwrap();
        assert_eq!(status.code(), Some(4), "{arguments:?}");
    }
}

/// Which variable says where that is stands in the message.
#[test]
fn where_the_bundle_could_be_is_named() {
    let stage = Stage::new("cat frames");
    let mut run = stage.command(&["run", "site.toml", "--image", "undercroft.img"]);
    let output = run.env("TMPDIR", "/nowhere").env("XDG_RUNTIME_DIR", stage.folder.path()).output().unwrap();
    let said = text(&output.stderr);
    assert!(
        said.starts_with("croft: /nowhere: a temporary file for the bundle cannot be written (the variable TMPDIR"),
        "{said}"
    );
    assert_eq!((output.status.code(), said.lines().count()), (Some(3), 1), "{said}");
}

/// What a disk is made of is read and never written over, and what is missing is named.
#[test]
fn a_disk_to_boot_from() {
    let stage = Stage::new("exit 1");
    let image = |place: &str| {
        let words = ["image", "site.toml", "-o", place, "--image", "undercroft.img", "--arguments", "link=text"];
        let output = stage.command(&words).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (status, said) = image("disk.img");
    assert!(said.contains("BOOTAA64.EFI: it cannot be read (No such file"), "{said}");
    assert!(said.contains("`cargo xtask build` makes it"), "{said}");
    assert_eq!((status, stage.path("disk.img").exists()), (Some(2), false));
    fs::write(stage.path("BOOTAA64.EFI"), "MZ").unwrap();
    for input in ["site.toml", "Image", "undercroft.img", "BOOTAA64.EFI"] {
        let before = fs::read(stage.path(input)).unwrap();
        let (status, said) = image(input);
        assert!(said.contains("it is read for the disk"), "{input}: {said}");
        assert_eq!((status, fs::read(stage.path(input)).unwrap()), (Some(2), before), "{input}");
    }
    assert_eq!(image("disk.img"), (Some(0), String::new()));
    let disk = fs::read(stage.path("disk.img")).unwrap();
    let holds = |what: &[u8]| disk.windows(what.len()).any(|window| window == what);
    assert!(holds(b"EFI PART") && holds(b"link=text\n") && holds(b"UNDERCROFT"), "its files are missing");
}
