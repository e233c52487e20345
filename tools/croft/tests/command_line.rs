//! The program from outside: exit statuses, messages, and that nothing is left running. QEMU is played by a shell script
//! that prints what a hypervisor would have sent.
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

#[path = "command_line/built.rs"]
mod built;
#[path = "command_line/silent.rs"]
mod silent;

use abi::crc32c;
use abi::link::{self, Channel, MAX_PAYLOAD, Message, StopReason, VmState};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use units::VmId;

const SITE: &str = r#"[host]
cpu = "cortex-a76"
cpus = 2
memory = "512M"

[[vm]]
name = "web"
vcpus = 1
memory = "64M"
kernel = "Image"
"#;

/// A folder with a site, a kernel, and something that calls itself QEMU.
struct Stage {
    folder: tempfile::TempDir,
}

impl Stage {
    /// `act` is what the pretended QEMU does, in shell.
    fn new(act: &str) -> Self {
        let stage = Self { folder: tempfile::tempdir().unwrap() };
        let mut image = vec![0; 4096];
        image[16..24].copy_from_slice(&8192u64.to_le_bytes());
        image[56..60].copy_from_slice(b"ARMd");
        fs::write(stage.path("Image"), image).unwrap();
        fs::write(stage.path("site.toml"), SITE).unwrap();
        fs::write(stage.path("undercroft.img"), "").unwrap();
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'QEMU emulator version 11.1.3'; exit; fi\n\
             cd {}\necho $$ > pid\necho \"$@\" > arguments\n{act}\n",
            stage.folder.path().display()
        );
        stage.pretend(&script);
        stage
    }

    /// Makes this the pretended QEMU. Another process writes it: what another test's thread starts just then would have it open for
    /// writing too, for a moment, and nothing can be executed while that is so.
    fn pretend(&self, script: &str) {
        let write = "printf %s \"$1\" > qemu && chmod 755 qemu";
        let status = Command::new("sh").args(["-c", write, "sh", script]).current_dir(self.folder.path()).status();
        assert!(status.unwrap().success());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_croft"));
        command.args(arguments).env("UNDERCROFT_QEMU", self.path("qemu")).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a run and waits until its QEMU is there.
    fn spawn(&self, command: &mut Command) -> std::process::Child {
        let child = command.spawn().unwrap();
        let started = Instant::now();
        while fs::read_to_string(self.path("pid")).map_or(0, |pid| pid.len()) == 0 {
            assert!(started.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }

    /// A command with a private folder for sockets that is this stage's alone.
    fn private(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.env("XDG_RUNTIME_DIR", self.path("private"));
        command
    }

    /// Starts a run that others can find by this stage's private folder, and waits until they can.
    fn host(&self, arguments: &[&str]) -> Host {
        use std::os::unix::fs::DirBuilderExt;
        let _ = fs::DirBuilder::new().mode(0o700).create(self.path("private"));
        let mut run = self.private(&[&["run", "--image", "undercroft.img"], arguments].concat());
        let mut host = Host(run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        // It listens before it shows what its hypervisor says.
        let mut shown = BufReader::new(host.0.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("web: paused") {
            line.clear();
            assert!(shown.read_line(&mut line).unwrap() > 0, "it ended");
        }
        std::thread::spawn(move || std::io::copy(&mut shown, &mut std::io::sink()));
        host
    }

    fn socket(&self, host: &Host) -> PathBuf {
        self.path("private/undercroft").join(format!("{}.socket", host.0.id()))
    }

    /// What becomes of `croft pause web`, with more arguments, from another folder.
    fn asked(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = self.private(&[&["pause", "web"], arguments].concat());
        let output = command.current_dir("/").output().unwrap();
        (output.status.code(), text(&output.stderr))
    }

    /// What becomes of it where the host is reached; its VM is paused already.
    fn paused(&self) -> (Option<i32>, String) {
        (Some(1), "croft: web does not run: it is paused\n".to_owned())
    }

    /// How many hosts seem to run.
    fn registered(&self) -> usize {
        fs::read_dir(self.path("private/undercroft")).unwrap().count()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let all = [&["run", "site.toml", "--image", "undercroft.img"], arguments].concat();
        self.command(&all).output().unwrap()
    }

    /// Whether the pretended QEMU is still there.
    fn is_running(&self) -> bool {
        // One that was ended before it could write its number is not there.
        let pid = fs::read_to_string(self.path("pid")).unwrap_or_default();
        !pid.trim().is_empty() && Path::new("/proc").join(pid.trim()).join("exe").exists()
    }

    /// Writes what the hypervisor would send into `frames`.
    fn record(&self, end: VmState<'_>) {
        let mut bytes = b"early text\n".to_vec();
        let mut buffer = [0; MAX_PAYLOAD];
        let messages = [
            Message::Hello { version: link::VERSION, vms: 1, build: "fake" },
            Message::Vm { vm: 0, name: "web", state: VmState::Running { boots: 1 } },
            Message::VmState { vm: 0, state: end },
            Message::AllStopped,
        ];
        let console = Channel::Console(VmId(0));
        link::encode(console, b"Linux\r\nbye\r\n", crc32c::compute, |byte| bytes.push(byte)).unwrap();
        let is_over = matches!(end, VmState::Stopped(_));
        for message in messages.into_iter().take(if is_over { 4 } else { 3 }) {
            let payload = message.encode(&mut buffer).unwrap();
            link::encode(Channel::Control, payload, crc32c::compute, |byte| bytes.push(byte)).unwrap();
        }
        fs::write(self.path("frames"), bytes).unwrap();
    }
}

/// A run that is ended, and its QEMU with it, when this is dropped.
struct Host(std::process::Child);

impl Drop for Host {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let process = rustix::process::Pid::from_child(&self.0);
            let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_clean_run_is_status_0_with_consoles_as_lines() {
    let stage = Stage::new("cat frames");
    stage.record(VmState::Stopped(StopReason::PowerOff));
    let output = stage.run(&["--until-stopped", "--log-dir", "logs", "--icount", "--qemu-arg", "-no-reboot"]);
    let out = text(&output.stdout);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("[web] Linux\n[web] bye\n") && out.contains("[croft] web: powered off\n"), "{out}");
    assert_eq!(fs::read(stage.path("logs/web.console")).unwrap(), b"Linux\r\nbye\r\n");
    let log = fs::read_to_string(stage.path("logs/hypervisor.log")).unwrap();
    assert!(log.starts_with("20") && log.ends_with("Z early text\n"), "{log}");
    let arguments = fs::read_to_string(stage.path("arguments")).unwrap();
    for part in
        ["-cpu cortex-a76", "-append link=framed all-off=poweroff", "-no-reboot", "exit-with-parent=on", "-icount"]
    {
        assert!(arguments.contains(part), "{arguments}");
    }
}

#[test]
fn a_crash_is_status_1_with_one_line() {
    let stage = Stage::new("cat frames");
    stage.record(VmState::Stopped(StopReason::Crashed("no memory at 0x0")));
    let output = stage.run(&["--until-stopped"]);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), said.as_str()), (Some(1), "croft: web: crashed: no memory at 0x0\n"));
}

#[test]
fn a_host_that_dies_is_status_3() {
    let stage = Stage::new("echo 'undercroft: entered at EL1, needs EL2'; exit 7");
    let output = stage.run(&["--until-stopped"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3));
    assert!(said.contains("exit status: 7 while web ran; last line of the log: undercroft: entered"), "{said}");
}

#[test]
fn a_timeout_is_status_124_and_nothing_stays() {
    let stage = Stage::new("exec sleep 600");
    let output = stage.run(&["--timeout", "0.5"]);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), said.as_str()), (Some(124), "croft: timed out after 0.5s; not off: web\n"));
    assert!(!stage.is_running());
}

#[test]
fn every_shell_gets_its_completions() {
    let stage = Stage::new("");
    for (shell, mark) in [
        ("bash", "complete -F _croft"),
        ("zsh", "#compdef croft"),
        ("fish", "complete -c croft"),
        ("elvish", "edit:completion:arg-completer[croft]"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let output = stage.command(&["completions", shell]).output().unwrap();
        let script = text(&output.stdout);
        assert_eq!((output.status.code(), script.contains(mark)), (Some(0), true), "{shell}: {script}");
        assert!(script.contains("guestinfo") && script.contains("until-stopped"), "{shell} knows commands and options");
    }
    let wrong = stage.command(&["completions", "tcsh"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("bash, elvish, fish, powershell, zsh"), "{}", text(&wrong.stderr));
    // A shell that knows the language finds no mistake in it.
    let script = stage.command(&["completions", "bash"]).output().unwrap().stdout;
    fs::write(stage.path("script"), script).unwrap();
    let tried =
        "source ./script; COMP_WORDS=(croft gue) COMP_CWORD=1; _croft croft gue croft; echo \"${COMPREPLY[@]}\"";
    let completed = Command::new("bash").args(["-c", tried]).current_dir(stage.folder.path()).output().unwrap();
    assert_eq!(text(&completed.stdout), "guestinfo\n", "{}", text(&completed.stderr));
}

#[test]
fn a_signal_ends_the_host_too() {
    let stage = Stage::new("exec sleep 600");
    let mut child = stage.spawn(&mut stage.command(&["run", "site.toml", "--image", "undercroft.img"]));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(!stage.is_running());
}

/// What a guest's flood looks like: far more than any pipe holds.
const FLOOD: &str =
    "cat frames; yes 'a line of a flood' | head -c 100000 > flood; while cat flood; do sleep 0.01; done";

#[test]
fn nobody_who_reads_is_needed_for_a_timeout_or_a_signal() {
    for is_shared in [false, true] {
        let stage = Stage::new(FLOOD);
        stage.record(VmState::Running { boots: 2 });
        let command = |limit: &[&str]| {
            let (reader, writer) = std::io::pipe().unwrap();
            let all = [&["run", "site.toml", "--image", "undercroft.img"], limit].concat();
            let mut command = stage.command(&all);
            if is_shared {
                command.stderr(writer.try_clone().unwrap());
            }
            command.stdout(writer);
            (command, reader)
        };
        let (mut timed, _reader) = command(&["--timeout", "1"]);
        assert_eq!(timed.spawn().unwrap().wait().unwrap().code(), Some(124));
        assert!(!stage.is_running());
        // One that was ended before it could write its number has left none.
        let _ = fs::remove_file(stage.path("pid"));
        let (mut signalled, _reader) = command(&[]);
        let mut child = stage.spawn(&mut signalled);
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
        assert!(!stage.is_running());
    }
}

#[test]
fn output_that_cannot_be_written_is_status_4() {
    let stage = Stage::new(FLOOD);
    stage.record(VmState::Running { boots: 2 });
    let run = |out: Stdio| {
        let mut command = stage.command(&["run", "site.toml", "--image", "undercroft.img", "--log-dir", "logs"]);
        let output = command.stdout(out).spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(4));
        assert!(!stage.is_running());
        text(&output.stderr)
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(run(writer.into()), "croft: standard output: nobody reads it any more; the VMs were stopped\n");
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let said = run(full().into());
    assert!(said.starts_with("croft: standard output: No space left on device"), "{said}");
    // A run that is over before the first error shows is no better.
    let stage = Stage::new("cat frames");
    stage.record(VmState::Stopped(StopReason::PowerOff));
    let mut command = stage.command(&["run", "site.toml", "--image", "undercroft.img", "--until-stopped"]);
    let output = command.stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    let mut command = stage.command(&["bundle", "site.toml", "-o", "b"]);
    assert_eq!(command.stdout(full()).output().unwrap().status.code(), Some(4));
}

#[test]
fn logs_are_one_runs_and_an_earlier_ones_are_kept() {
    let stage = Stage::new("cat frames; exec sleep 600");
    stage.record(VmState::Running { boots: 2 });
    let logged = ["run", "site.toml", "--image", "undercroft.img", "--log-dir", "logs"];
    let mut first = stage.spawn(&mut stage.command(&logged));
    let started = Instant::now();
    while fs::read(stage.path("logs/web.console")).unwrap() != b"Linux\r\nbye\r\n" {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    let second = stage.command(&logged).output().unwrap();
    let said = text(&second.stderr);
    assert_eq!(second.status.code(), Some(3), "{said}");
    let owner = format!("site.toml (process {}); give this one another --log-dir\n", first.id());
    assert!(said.starts_with("croft: logs: another run keeps its logs there: ") && said.ends_with(&owner), "{said}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&first), rustix::process::Signal::TERM).unwrap();
    first.wait().unwrap();
    assert_eq!(fs::read(stage.path("logs/web.console")).unwrap(), b"Linux\r\nbye\r\n");
    stage.pretend(&fs::read_to_string(stage.path("qemu")).unwrap().replace("exec sleep 600", ""));
    stage.record(VmState::Stopped(StopReason::PowerOff));
    let third = stage.run(&["--until-stopped", "--log-dir", "logs"]);
    assert_eq!(third.status.code(), Some(0), "{}", text(&third.stderr));
    let said = text(&third.stdout);
    assert!(said.contains("[croft] logs: an earlier run's logs are kept: their names end with .1 now\n"), "{said}");
    for name in ["web.console", "web.console.1"] {
        assert_eq!(fs::read(stage.path("logs").join(name)).unwrap(), b"Linux\r\nbye\r\n", "{name}");
    }
}

#[test]
fn the_only_host_is_found_wherever_its_logs_are() {
    found_with_logs_in("logs");
}

#[test]
fn a_folder_for_logs_may_have_a_longer_path_than_a_socket() {
    found_with_logs_in(&"long".repeat(40));
}

fn found_with_logs_in(logs: &str) {
    let stage = Stage::new("cat frames; exec sleep 600");
    stage.record(VmState::Paused);
    let mut host = stage.host(&["site.toml", "--log-dir", logs]);
    assert_eq!(stage.asked(&[]), stage.paused(), "from another folder, and without --host");
    assert_eq!(stage.asked(&["--host", stage.path(logs).to_str().unwrap()]), stage.paused());
    host.0.kill().unwrap();
    host.0.wait().unwrap();
    // QEMU itself goes with its parent; the one that is played does not.
    let qemu = fs::read_to_string(stage.path("pid")).unwrap().trim().parse().unwrap();
    let qemu = rustix::process::Pid::from_raw(qemu).unwrap();
    rustix::process::kill_process(qemu, rustix::process::Signal::KILL).unwrap();
    let (status, text) = stage.asked(&[]);
    assert!(status == Some(3) && text.starts_with("croft: no host runs here;"), "{text}");
    assert_eq!(stage.registered(), 0, "what a killed run left is gone");
}

/// Its folder for logs may be moved or removed, and a cleaner may take its socket away.
#[test]
fn a_host_is_found_whatever_becomes_of_its_files() {
    let stage = Stage::new("cat frames; exec sleep 600");
    stage.record(VmState::Paused);
    let _host = stage.host(&["site.toml", "--log-dir", "logs"]);
    let named = |name: &str| stage.asked(&["--host", stage.path(name).to_str().unwrap()]);
    fs::rename(stage.path("logs"), stage.path("moved")).unwrap();
    assert_eq!(stage.asked(&[]), stage.paused());
    assert_eq!(named("moved"), stage.paused(), "by where it is");
    assert_eq!(named("logs"), stage.paused(), "by where it was");
    fs::remove_dir_all(stage.path("moved")).unwrap();
    assert_eq!(stage.asked(&[]), stage.paused());
    assert_eq!(named("logs"), stage.paused());
    assert_eq!(named("moved").0, Some(3), "it is not known by that name");
    fs::remove_dir_all(stage.path("private/undercroft")).unwrap();
    let started = Instant::now();
    while stage.asked(&[]) != stage.paused() {
        assert!(started.elapsed() < Duration::from_secs(60), "it is lost for good");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A client that cannot connect says nothing about the host, and takes nothing away from it.
#[test]
fn the_socket_of_a_host_that_lives_is_left_alone() {
    let stage = Stage::new("cat frames; exec sleep 600");
    stage.record(VmState::Paused);
    let host = stage.host(&["site.toml"]);
    // As of a run that has just started, has made its socket and does not listen yet.
    let other = stage.path("private/undercroft").join(format!("{}.socket", std::process::id()));
    drop(std::os::unix::net::UnixListener::bind(&other).unwrap());
    assert_eq!(stage.asked(&[]), stage.paused());
    assert!(stage.socket(&host).exists() && other.exists());
}

#[test]
fn of_several_hosts_each_is_told_once_with_its_site() {
    let stage = Stage::new("cat frames; exec sleep 600");
    stage.record(VmState::Paused);
    fs::copy(stage.path("site.toml"), stage.path("other.toml")).unwrap();
    let _first = stage.host(&["site.toml", "--log-dir", "logs"]);
    let second = stage.host(&["other.toml"]);
    let (logs, socket) = (stage.path("logs"), stage.socket(&second));
    for arguments in [&["pause", "web", "db", "mail"][..], &["ps"], &["log"], &["console", "web"], &["stop", "--all"]] {
        let output = stage.private(arguments).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        let mut lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.remove(0), "croft: more than one host runs; name one with --host:");
        lines.sort_unstable();
        let mut hosts = [format!("  {}  (site.toml)", logs.display()), format!("  {}  (other.toml)", socket.display())];
        hosts.sort_unstable();
        assert_eq!(lines, hosts, "{said}");
    }
    for place in [&logs, &socket] {
        assert_eq!(stage.asked(&["--host", place.to_str().unwrap()]), stage.paused(), "as it was told");
    }
}

/// What is wrong with a thing that the environment names is said with the variable's name.
#[test]
fn messages_name_the_variable_that_they_are_about() {
    let stage = Stage::new("cat frames");
    let said = |arguments: &[&str], variable: &str, value: &str| {
        let output = stage.command(arguments).env("XDG_RUNTIME_DIR", "").env(variable, value).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let run = ["run", "site.toml", "--image", "undercroft.img"];
    let cases: [(&[&str], &str, &str); 5] = [
        (&run, "UNDERCROFT_QEMU", "/nowhere/qemu"),
        (&run, "UNDERCROFT_QEMU", "/bin/true"),
        (&["ps"], "XDG_RUNTIME_DIR", "/nowhere"),
        (&["ps"], "XDG_RUNTIME_DIR", "/dev/null"),
        (&["ps"], "TMPDIR", "/nowhere"),
    ];
    for (arguments, variable, value) in cases {
        let (status, text) = said(arguments, variable, value);
        assert_eq!(status, Some(3), "{text}");
        let is_named = text.contains(value) && text.contains(&format!("; the variable {variable} "));
        assert!(text.starts_with("croft: ") && is_named, "{text}");
    }
}

#[test]
fn logs_that_are_incomplete_are_status_4() {
    // A folder in a file's place stands for a disk that takes nothing.
    let stage = Stage::new("mkdir -p logs/web.hvc0; cat frames");
    stage.record(VmState::Stopped(StopReason::PowerOff));
    let mut frames = Vec::new();
    link::encode(Channel::VirtioConsole(VmId(0)), b"gone", crc32c::compute, |byte| frames.push(byte)).unwrap();
    frames.extend(fs::read(stage.path("frames")).unwrap());
    fs::write(stage.path("frames"), frames).unwrap();
    let output = stage.run(&["--until-stopped", "--log-dir", "logs"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.starts_with("croft: logs: the logs are incomplete, 4 bytes are missing: logs/web.hvc0: "), "{said}");
    assert_eq!(fs::read(stage.path("logs/web.console")).unwrap(), b"Linux\r\nbye\r\n", "the rest is there");
}

#[test]
fn logs_go_into_a_folder() {
    let stage = Stage::new("cat frames");
    for place in ["site.toml", "/dev/null"] {
        let output = stage.run(&["--log-dir", place]);
        let said =
            format!("croft: {place}: that is no folder; --log-dir names one, which is made if it is not there\n");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(2), said));
    }
    let output = stage.run(&["--log-dir", "site.toml/logs"]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(3) && said.starts_with("croft: site.toml/logs: "), "{said}");
    assert!(!stage.path("pid").exists(), "QEMU was started");
}

#[test]
fn a_hypervisor_that_says_nothing_has_a_time_limit() {
    let stage = Stage::new("echo booting something else; exec sleep 600");
    let output = stage.run(&["--hello", "2"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("did not say hello within 2s") && said.contains("output: booting something else"), "{said}");
    assert!(!stage.is_running());
    // 0 is for ever: it says that it waits, and still does.
    let mut command = stage.command(&["run", "site.toml", "--image", "undercroft.img", "--hello", "0"]);
    let mut waits = Host(command.stderr(Stdio::null()).spawn().unwrap());
    let mut shown = BufReader::new(waits.0.stdout.take().unwrap());
    let mut line = String::new();
    while line != "[croft] the hypervisor has not said hello for 5 s; it is waited for\n" {
        line.clear();
        assert!(shown.read_line(&mut line).unwrap() > 0, "it ended, and has not said that it waits");
    }
    std::thread::spawn(move || std::io::copy(&mut shown, &mut std::io::sink()));
    let pid = rustix::process::Pid::from_child(&waits.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(waits.0.wait().unwrap().code(), Some(128 + 15), "it waited no longer");
    assert!(!stage.is_running());
}

#[test]
fn mistakes_in_the_site_are_status_2() {
    let stage = Stage::new("");
    fs::write(stage.path("site.toml"), SITE.replace("\"64M\"", "\"64Q\"")).unwrap();
    let output = stage.run(&[]);
    let said = "site.toml:9: memory = \"64Q\": not a size; write a number with K, M or G\n";
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(2), said));
    fs::remove_file(stage.path("Image")).unwrap();
    fs::write(stage.path("site.toml"), SITE).unwrap();
    let output = stage.command(&["bundle", "site.toml", "-o", "out"]).output().unwrap();
    let said =
        "site.toml:10: kernel = \"Image\": there is no such file; paths are relative to the folder of the site file\n";
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(2), said));
    assert!(!stage.path("out").exists());
}

/// What stands in a file, or is its name, does not reach the terminal as more than text.
#[test]
fn nothing_in_a_site_file_disturbs_a_terminal() {
    let stage = Stage::new("");
    let sites = [
        format!("{SITE}\"\\u001b[2J\\u0007\\nkey\" = 1\n"),
        SITE.replace("\"web\"", "\"\\u001b[2Jweb\""),
        SITE.replace("\"Image\"", "\"\\u001b]0;title\\u0007\\n\""),
        SITE.replace("vcpus = 1", "vcpus = \"\u{9b}2J\u{202e}\""),
        SITE.replace("cortex-a76", "\\u001b[2J,x"),
        format!("{SITE}key \u{9b} = 1\n"),
    ];
    for site in sites {
        fs::write(stage.path("odd\u{1b}[2J.toml"), &site).unwrap();
        let output = stage.command(&["check", "odd\u{1b}[2J.toml"]).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said:?}");
        let odd = said.trim_end_matches('\n').chars().find(|letter| letter.is_control() || *letter == '\u{202e}');
        assert_eq!(odd, None, "{said:?}");
        assert!(said.starts_with("odd\\u{1b}[2J.toml:"), "{said:?}");
    }
}

/// A site is a file that comes to an end, and so are a kernel and a ramdisk.
#[test]
fn what_has_no_end_is_no_site() {
    let stage = Stage::new("");
    fs::write(stage.path("long.toml"), SITE.to_owned() + &"# and so on\n".repeat(100_000)).unwrap();
    fs::write(stage.path("bytes.toml"), b"\xff\xfe").unwrap();
    for (file, why) in [
        ("/dev/zero", "is no site file: it is larger than 1M"),
        ("long.toml", "is no site file: it is larger than 1M"),
        (".", "that is a folder; name the site file in it"),
        ("site", "cannot be read: there is no such file; did you mean site.toml?"),
        ("bytes.toml", "is no site file: it is not text in UTF-8"),
        ("nowhere", "cannot be read: there is no such file"),
        ("site.toml/x", "cannot be read: Not a directory (os error 20)"),
    ] {
        for arguments in
            [&["check", file][..], &["run", file, "--image", "undercroft.img"], &["bundle", file, "-o", "x"]]
        {
            let output = stage.command(arguments).output().unwrap();
            let said = (output.status.code(), text(&output.stderr));
            assert_eq!(said, (Some(2), format!("{file}: {why}\n")), "{arguments:?}");
        }
    }
    for (key, most) in [("kernel", "1G, the most that a kernel may have"), ("initrd", "64M, the VM's memory")] {
        fs::File::create(stage.path("huge")).unwrap().set_len(1 << 40).unwrap();
        let site = if key == "kernel" { SITE.replace("Image", "huge") } else { format!("{SITE}initrd = \"huge\"\n") };
        fs::write(stage.path("site.toml"), site).unwrap();
        let output = stage.command(&["check", "site.toml"]).output().unwrap();
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(&format!(": it is larger than {most}\n")), "{said}");
    }
}

#[test]
fn every_mistake_is_one_line_and_starts_nothing() {
    let second = "[[vm]]\nname = \"web\"\nvcpus = 1\nmemory = \"64M\"\nkernel = \"Image\"\n";
    let mistakes = [
        ("a VM named twice", format!("{SITE}{second}"), "name"),
        ("zero vCPUs", SITE.replace("vcpus = 1", "vcpus = 0"), "vcpus = 0"),
        ("nine vCPUs", SITE.replace("vcpus = 1", "vcpus = 9"), "vcpus = 9"),
        ("no such kernel", SITE.replace("\"Image\"", "\"Nowhere\""), "there is no such file"),
        ("a kernel that is no Image", SITE.replace("\"Image\"", "\"site.toml\""), "no arm64 Image"),
        ("a VM larger than its host", SITE.replace("\"64M\"", "\"2G\""), "the VMs do not fit"),
        ("a VM smaller than its kernel", SITE.replace("\"64M\"", "\"1M\""), "memory = \"1M\""),
        ("an unknown key", SITE.replace("vcpus", "vcpu"), "vcpu"),
        ("no VM", SITE.split("[[vm]]").next().unwrap().to_owned(), "[[vm]]"),
        ("no TOML", "[host".to_owned(), "site.toml:1"),
    ];
    for (what, site, said) in mistakes {
        let stage = Stage::new("exec sleep 600");
        fs::write(stage.path("site.toml"), site).unwrap();
        for arguments in [
            &["run", "site.toml", "--image", "undercroft.img"][..],
            &["bundle", "site.toml", "-o", "out"],
            &["check", "site.toml"],
        ] {
            let output = stage.command(arguments).output().unwrap();
            let told = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{what}: {told}");
            assert!(told.starts_with("site.toml") && told.contains(said), "{what}: {told}");
            let lines = if what == "an unknown key" { 2 } else { 1 };
            assert_eq!(told.lines().count(), lines, "{what}: {told}");
        }
        assert!(!stage.path("pid").exists(), "{what}: QEMU was started");
        assert!(!stage.path("out").exists(), "{what}: a bundle was written");
    }
}

#[test]
fn a_bundle_is_written_whole() {
    let stage = Stage::new("");
    let output = stage.command(&["bundle", "site.toml", "-o", "site.bundle"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "site.bundle: 1 VM, 8K\n"));
    let bytes = fs::read(stage.path("site.bundle")).unwrap();
    assert_eq!(abi::bundle::Bundle::parse(&bytes, crc32c::compute).unwrap().vm_count(), 1);
    let output = stage.command(&["check", "site.toml"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "site.toml: 1 VM, no mistakes\n"));
    let output = stage.command(&["bundle", "site.toml", "-o", "no/such/folder"]).output().unwrap();
    let said = "croft: no/such/folder: cannot be written: there is no folder no/such\n";
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(2), said));
    // What is no regular file is written to, not replaced.
    let output = stage.command(&["bundle", "site.toml", "-o", "/dev/full"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    assert!(fs::metadata("/dev/full").unwrap().file_type().is_char_device());
    let output = stage.command(&["bundle", "site.toml", "-o", "/dev/stdout"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), "/dev/stdout: 1 VM, 8K\n"));
    assert_eq!(output.stdout, bytes);
}

/// QEMU is asked what its CPUs can be given, once there is something to ask; what it says of `max` is played.
#[test]
fn properties_of_the_cpu_are_checked_against_qemus() {
    let list = r#"{"return": [{"name": "cntfrq", "type": "uint64"}, {"name": "pauth", "type": "bool"}]}"#;
    let wired = r#"{"return": [{"name": "memory", "type": "link<memory-region>"}]}"#;
    let said = format!("echo '{wired}'; echo '{list}'");
    let stage = Stage::new(&format!("while read line; do case $line in *max-arm-cpu*) {said};; esac; done"));
    let check = |cpu: &str| {
        fs::write(stage.path("site.toml"), SITE.replacen("cortex-a76", cpu, 1)).unwrap();
        let output = stage.command(&["check", "site.toml"]).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    for cpu in ["max", "max,pauth=off", "max,pauth=on,cntfrq=1000000000", "max,", "cortex-a72,foo=bar"] {
        assert_eq!(check(cpu), (Some(0), String::new()), "{cpu}");
    }
    for (cpu, said) in [
        ("max,foo=bar", "foo=bar: QEMU's max has no such property; it has cntfrq, pauth"),
        ("max,cntfrq=24000000,paut=on", "paut=on: QEMU's max has no such property; did you mean pauth?"),
        ("max,memory=x", "memory=x: QEMU's max has no such property; it has cntfrq, pauth"),
        ("max,pauth=7", "pauth=7: pauth takes on or off"),
        ("max,cntfrq=24M", "cntfrq=24M: cntfrq takes a whole number"),
        ("max,-pauth", "-pauth: a property is written with its value, as pauth=off"),
        ("max,pauth", "pauth: a property is written with its value, as pauth=on"),
    ] {
        let wrong = format!("site.toml:2: cpu = \"{cpu}\": {said}\n");
        assert_eq!(check(cpu), (Some(2), wrong));
    }
}

#[test]
fn a_clock_that_will_be_wrong_is_noted() {
    let stage = Stage::new("");
    let site = fs::read_to_string(stage.path("site.toml")).unwrap();
    let check = |cpu: &str, time: &str| {
        let site = site.replacen("cortex-a76", cpu, 1) + time + "\n";
        fs::write(stage.path("site.toml"), site).unwrap();
        let output = stage.command(&["check", "site.toml"]).output().unwrap();
        assert_eq!((output.status.code(), &*text(&output.stderr)), (Some(0), ""));
        text(&output.stdout)
    };
    let cp15 = "time = { rate = \"0.5\", source = \"cp15\" }";
    let told = check("cortex-a72", cp15);
    let (first, note) = told.split_once('\n').unwrap();
    assert_eq!(first, "site.toml: 1 VM, no mistakes");
    assert!(note.starts_with("site.toml: note: web: time.source = \"cp15\": the CPU cortex-a72 cannot trap"), "{note}");
    assert_eq!(check("max", cp15), "site.toml: 1 VM, no mistakes\n");
    assert_eq!(check("cortex-a72", "time = { rate = \"0.5\" }"), "site.toml: 1 VM, no mistakes\n");
}

#[test]
fn a_bundle_is_never_written_over_what_it_is_made_of() {
    let stage = Stage::new("");
    std::os::unix::fs::symlink("site.toml", stage.path("link")).unwrap();
    std::os::unix::fs::symlink("data.img", stage.path("data")).unwrap();
    for name in ["initrd", "root.img", "data.img"] {
        fs::write(stage.path(name), [0; 512]).unwrap();
    }
    let disks = "initrd = \"initrd\"\ndisk = [{ image = \"root.img\" }, { image = \"data.img\" }]\n";
    fs::write(stage.path("site.toml"), format!("{SITE}{disks}")).unwrap();
    for place in ["site.toml", "./site.toml", "link", "Image", "initrd", "root.img", "data.img", "data"] {
        let before = fs::read(stage.path(place)).unwrap();
        let output = stage.command(&["bundle", "site.toml", "-o", place]).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with(&format!("croft: {place}: it is read for the bundle (")), "{said}");
        assert_eq!(fs::read(stage.path(place)).unwrap(), before);
    }
}

/// An hour counted in the age of the universe is no reason to end the VMs.
#[test]
fn any_number_of_seconds_can_be_waited_for_hello() {
    let stage = Stage::new("cat frames");
    stage.record(VmState::Stopped(StopReason::PowerOff));
    let output = stage.run(&["--until-stopped", "--hello", "18000000000000000000"]);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
fn an_old_qemu_and_a_missing_image_are_named() {
    let stage = Stage::new("");
    stage.pretend("#!/bin/sh\necho 'QEMU emulator version 9.2.0'\n");
    let output = stage.run(&[]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(3) && said.contains("9.2.0") && said.lines().count() == 1, "{said}");
    for (image, why) in [
        ("nowhere.img", "there is no such file"),
        ("/dev/null", "that is no file with an image"),
        (".", "that is no file with an image"),
    ] {
        let output = stage.command(&["run", "site.toml", "--image", image]).output().unwrap();
        let said = format!("croft: {image}: {why}; `cargo xtask build` makes target/undercroft.img\n");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(2), said));
    }
}

#[test]
fn the_links_port_is_on_the_bus_that_is_named() {
    let stage = Stage::new("exit 7");
    for (arguments, device) in [
        (&[][..], "-device virtio-serial-device,max_ports=2"),
        (&["--port-bus", "mmio"], "-device virtio-serial-device,max_ports=2"),
        (&["--port-bus", "pci"], "-device virtio-serial-pci,max_ports=2"),
    ] {
        stage.run(arguments);
        let given = fs::read_to_string(stage.path("arguments")).unwrap();
        assert!(given.contains(device) && given.matches("virtio-serial").count() == 1, "{arguments:?}: {given}");
        fs::remove_file(stage.path("arguments")).unwrap();
    }
    let wrong = [
        (&["--port-bus", "usb"][..], "invalid value 'usb' for '--port-bus <BUS>'\n  [possible values: mmio, pci]"),
        (&["--port-bus"], "a value is required for '--port-bus <BUS>'"),
        (&["--port-bus", "pci", "--icount"], "the argument '--port-bus <BUS>' cannot be used with '--icount'"),
    ];
    for (arguments, said) in wrong {
        let output = stage.run(arguments);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(said), "{told}");
        assert!(!stage.path("arguments").exists(), "QEMU was started");
    }
}

#[test]
fn help_tells_the_exit_statuses() {
    let stage = Stage::new("");
    for arguments in [&["--help"][..], &["run", "--help"], &["bundle", "--help"]] {
        let output = stage.command(arguments).output().unwrap();
        assert!(text(&output.stdout).contains("Exit status:"), "{arguments:?}");
    }
}

/// A guest that is idle on a CPU of its own is counted as if it ran: nobody is to take that for load.
#[test]
fn help_tells_what_counts_as_run_time() {
    let stage = Stage::new("");
    let output = stage.command(&["stat", "--help"]).output().unwrap();
    let said = text(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("One that has its CPU to itself has it also while its guest is idle"), "{said}");
}
