//! `croft ps`, `guestinfo`, `stop`, `reboot`, `pause`, `resume` and `time` from outside: the program itself, over a real socket,
//! against a hypervisor that is a thread of this test.
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

#[path = "operate/followed.rs"]
mod followed;
#[path = "operate/moved.rs"]
mod moved;
#[path = "operate/refused.rs"]
mod refused;
#[path = "operate/unread.rs"]
mod unread;

use abi::bundle::Doors;
use abi::crc32c;
use abi::link::request::{Answer, Ask, Guest, HOST, MAX_PIECE, Reply, Request};
use abi::link::{self, Channel, Command as Order, Decoder, Event, MAX_PAYLOAD, Message, StopReason, VmState};
use croft::control::{self, About, Place, Server};
use croft::session::{Options, Session};
use pack::Value;
use snapshot::file::{PAGES_OF_A_PIECE, Reader, Section};
use snapshot::{SavedCpu, SavedMachine};
use std::collections::BTreeMap;
use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use units::VmId;

mod made_up;

const STATISTICS: &str = "\
web: started 1 time, 512 MiB, 1028 KiB tables; exits: interrupt 3 device 4
  vCPU 0: ran 1.234 s, waited 0.001 s for a CPU, 0.000 s of it stolen
db: started 1 time, 64 MiB, 8 KiB tables; exits: hvc 5
memory in KiB: 60 total, 50 free (40 zeroed), 30 guests, 20 their tables, 10 hypervisor, 5 reserved
instruction caches emptied for guests' memory: 7 times
";

/// What is said of the first VM when it was stopped.
const STOPPED: &str = "web: stopped by the operator\n";
/// What the first VM's tools call its system.
const SYSTEM: &str = "Linux 6.1.0-27-arm64 Debian GNU/Linux 12 (bookworm) Debian GNU/Linux 12";

/// Two VMs: one with tools, one without VMware's door.
struct Fake {
    output: PipeWriter,
    store: BTreeMap<String, Vec<u8>>,
    gathered: Vec<u8>,
    /// Whether the first VM's tools can shut it down.
    tools: bool,
    boots: u32,
    on: bool,
    /// It powers itself off when it goes on.
    ends: bool,
    /// What came of a saved VM.
    stream: Vec<u8>,
    /// The request for more of a saved VM that it has not answered.
    held: Option<u32>,
    /// How often it was paused.
    pauses: u32,
    /// Whether there is a clock to be set, and what it shows.
    clock: Option<u64>,
}

impl Fake {
    fn frame(&mut self, channel: Channel, payload: &[u8]) {
        let mut bytes = Vec::new();
        link::encode(channel, payload, crc32c::compute, |byte| bytes.push(byte)).unwrap();
        self.output.write_all(&bytes).unwrap();
    }

    fn say(&mut self, message: Message<'_>) {
        let mut buffer = [0; MAX_PAYLOAD];
        let payload = message.encode(&mut buffer).unwrap();
        self.frame(Channel::Control, payload);
    }

    fn tell(&mut self, id: u32, answer: Answer<'_>) {
        let mut buffer = [0; MAX_PAYLOAD];
        let reply = Reply { id, answer };
        let payload = reply.encode(&mut buffer).unwrap();
        self.frame(Channel::Requests, payload);
    }

    fn is_set(&self, key: &str) -> bool {
        self.store.get(key).is_some_and(|value| !value.is_empty())
    }

    fn start(&mut self) {
        self.boots += 1;
        self.frame(Channel::Log, b"0.3 INFO: web started\n");
        self.on = true;
        self.say(Message::VmState { vm: 0, state: VmState::Running { boots: self.boots } });
    }

    fn end(&mut self, reason: StopReason<'_>) {
        self.on = false;
        self.say(Message::VmState { vm: 0, state: VmState::Stopped(reason) });
    }

    /// A save that stands still waits for nothing else.
    fn pause(&mut self, vm: u16) {
        self.pauses += 1;
        let pauses = self.pauses.to_string().into_bytes();
        self.store.insert(PAUSES.to_owned(), pauses);
        self.say(Message::VmState { vm, state: VmState::Paused });
        if let Some(id) = self.held.take() {
            self.tell(id, Answer::Refused("the save has ended"));
        }
    }

    fn run(mut self, mut input: PipeReader) {
        self.say(Message::Hello { version: link::VERSION, vms: 2, build: "fake" });
        self.say(Message::Vm { vm: 0, name: "web", state: VmState::Running { boots: 1 } });
        self.say(Message::Vm { vm: 1, name: "db", state: VmState::Running { boots: 1 } });
        self.frame(Channel::Log, b"0.1 INFO: Undercroft\n0.2 WARN: \x1b[2Jodd\n");
        self.frame(Channel::Console(VmId(0)), b"Debian\r\nweb login: ");
        self.frame(Channel::VirtioConsole(VmId(0)), b"hvc0 login: ");
        // An answer to nothing, and one that is no answer at all, must not matter.
        self.tell(4711, Answer::Refused("nobody asked"));
        let mut decoder = Decoder::new(crc32c::compute);
        let mut byte = [0];
        while input.read_exact(&mut byte).is_ok() {
            match decoder.push(byte[0]) {
                Some(Event::Frame { channel: Channel::Requests, payload }) => {
                    let payload = payload.to_vec();
                    self.answer(Request::decode(&payload).unwrap());
                }
                Some(Event::Frame { channel: Channel::Control, payload }) => match Order::decode(payload) {
                    Some(Order::ForceStop { vm: 0 }) => self.end(StopReason::Forced),
                    Some(Order::ForceStop { vm }) => {
                        self.say(Message::VmState { vm, state: VmState::Stopped(StopReason::Forced) });
                    }
                    Some(Order::Reset { vm: 0 }) if self.is_set(REFUSES) => {
                        self.say(Message::Refused { text: "reboot: the VM is being saved or restored" });
                    }
                    Some(Order::Reset { vm: 0 }) if self.is_set(CRASHES) => {
                        self.end(StopReason::Crashed("there is no memory"));
                    }
                    Some(Order::Reset { vm: 0 }) => self.start(),
                    Some(Order::PauseVm { .. }) if self.is_set(REFUSES) => {
                        self.say(Message::Refused { text: "pause: the VM does not run" });
                    }
                    Some(Order::PauseVm { vm }) => self.pause(vm),
                    // What was restored is a guest that ends at once.
                    Some(Order::ResumeVm { vm: 0 }) if self.ends => self.end(StopReason::PowerOff),
                    Some(Order::ResumeVm { vm }) => {
                        let state = VmState::Running { boots: self.boots };
                        self.say(Message::VmState { vm, state });
                    }
                    Some(Order::Stats) => {
                        // It may be cut anywhere.
                        let (first, second) = STATISTICS.split_at(40);
                        self.say(Message::Stats { text: first });
                        self.say(Message::Stats { text: second });
                        self.say(Message::StatsEnd);
                    }
                    // Nonsense is its end.
                    None => return,
                    other => panic!("{other:?}"),
                },
                // A guest that echoes.
                Some(Event::Frame { channel, payload }) => {
                    let payload = payload.to_vec();
                    self.frame(channel, &payload);
                }
                _ => {}
            }
        }
    }

    fn answer(&mut self, Request { id, vm, ask }: Request<'_>) {
        let refused = match (vm, ask) {
            (HOST, Ask::Time) => {
                self.tell(id, Answer::Time { microseconds: self.clock.unwrap_or(77), settable: self.clock.is_some() });
                None
            }
            (HOST, Ask::SetTime { microseconds }) => match &mut self.clock {
                Some(clock) => {
                    *clock = microseconds;
                    None
                }
                None => Some("the host has no real-time clock"),
            },
            (0, Ask::SetGuestTime) if self.tools => None,
            (0, Ask::SetGuestTime) => Some("web: its tools do not answer"),
            (_, Ask::Time | Ask::SetTime { .. }) => panic!("{ask:?} is for the host, not for VM {vm}"),
            (vm, Ask::Machine) => {
                let (mut machine, identification) = (pack::Writer::new(), std::array::from_fn(|_| 0));
                let cpu = SavedCpu::default();
                let machine_of = SavedMachine {
                    vcpus: 2 - vm as u8,
                    memory: 64 << 20,
                    devices: 7,
                    memory_timer: false,
                    identification,
                    cpu,
                };
                let doors = Doors::default();
                snapshot::Place { machine: machine_of, rate: 1_000_000, doors, counter: 62_500_000, traps: true }
                    .pack(&mut machine);
                self.tell(id, Answer::Value(&machine.finish().unwrap()));
                None
            }
            (1, _) => Some("db does not offer it"),
            (_, Ask::Guest | Ask::Stop | Ask::Restart { .. }) if !self.on => Some("web is off"),
            (_, Ask::Guest) => {
                let guest = Guest {
                    version: "12.2.0",
                    host_name: "web-1",
                    system: SYSTEM,
                    address: "10.0.2.15",
                    uptime: 61,
                    heartbeat: Some(200),
                    can_stop: self.tools,
                    channels: 2,
                };
                self.tell(id, Answer::Guest(guest));
                None
            }
            (_, Ask::Keys) => {
                for (key, value) in self.store.clone() {
                    self.tell(id, Answer::Key { key: &key, length: value.len() as u32 });
                }
                None
            }
            (_, Ask::Get { key }) => match self.store.get(key).cloned() {
                Some(value) => {
                    value.chunks(MAX_PIECE).for_each(|piece| self.tell(id, Answer::Value(piece)));
                    None
                }
                None => Some("web has no such value"),
            },
            (_, Ask::Set { key, offset, value, last }) => {
                assert_eq!(offset as usize, self.gathered.len(), "pieces come in order");
                self.gathered.extend(value);
                if !last {
                    return;
                }
                self.store.insert(key.to_owned(), std::mem::take(&mut self.gathered));
                None
            }
            (_, Ask::Stop | Ask::Restart { .. }) => {
                self.tell(id, if self.tools { Answer::ByTools } else { Answer::ByButton });
                self.tell(id, Answer::Done);
                match ask {
                    Ask::Restart { seconds } => {
                        assert!(
                            [120, u32::MAX].contains(&seconds),
                            "what the tool waits for by itself, or as long as can be said"
                        );
                        self.start();
                    }
                    _ => self.end(StopReason::PowerOff),
                }
                return;
            }
            (_, Ask::SaveNext { .. }) if self.store.contains_key(HOLDS) => {
                self.held = Some(id);
                self.say(Message::VmState { vm, state: VmState::Paused });
                return;
            }
            (_, Ask::RestoreNext { .. }) if self.store.contains_key(HOLDS) => {
                self.say(Message::VmState { vm, state: VmState::Paused });
                return;
            }
            // It sends what is no saved VM.
            (_, Ask::SaveNext { .. }) => {
                self.tell(id, Answer::Value(&[7; 32]));
                None
            }
            // Its state has come; of its memory nothing more does.
            (_, Ask::RestoreNext { last: true, .. }) if self.store.contains_key(ARRIVES) => {
                if !self.stream.is_empty() {
                    return;
                }
                self.stream.push(0);
                let state = VmState::Running { boots: self.boots };
                self.say(Message::VmState { vm, state });
                self.tell(id, Answer::Wanted { piece: WANTED });
                None
            }
            (_, Ask::RestoreNext { .. }) if self.store.contains_key(ARRIVES) => return,
            (_, Ask::RestoreNext { last: true, .. }) if self.store.contains_key(UNFIT) => Some("web has other memory"),
            (_, Ask::RestoreNext { bytes, last, .. }) => {
                self.stream.extend_from_slice(bytes);
                if !last {
                    return;
                }
                self.tell(id, Answer::Wanted { piece: WANTED });
                None
            }
            (_, Ask::RestoreEnd { pause }) => {
                // One that runs waits for that first of all.
                let first = if pause { 0 } else { WANTED };
                assert_eq!(first_page(&self.stream), u64::from(first) * PAGES_OF_A_PIECE);
                self.ends = true;
                if pause {
                    self.say(Message::VmState { vm, state: VmState::Paused });
                } else {
                    self.end(StopReason::PowerOff);
                }
                None
            }
            (_, Ask::Restore) => None,
            (_, Ask::Reconnect | Ask::SetGuestTime | Ask::Save | Ask::EndTransfer) => None,
        };
        self.tell(id, refused.map_or(Answer::Done, Answer::Refused));
    }
}

/// With this key a save stands still until the VM is paused, and a restore for ever.
const HOLDS: &str = "guestinfo.holds";
/// With this key a restore goes on until the VM runs, and no further.
const ARRIVES: &str = "guestinfo.arrives";
/// What has this key is how often VMs were paused.
const PAUSES: &str = "guestinfo.pauses";
/// With this key pauses and resets are refused.
const REFUSES: &str = "guestinfo.refuses";
/// With this key the VM crashes when it starts.
const CRASHES: &str = "guestinfo.crashes";
/// With this key the VM is one that no saved VM fits.
const UNFIT: &str = "guestinfo.unfit";
/// A piece that a restored VM waits for from the start: in its second block, behind one of zeros.
const WANTED: u32 = 40;

/// The first page of the first section of memory in what came, which is whole.
fn first_page(stream: &[u8]) -> u64 {
    let (mut reader, mut unread, mut first) = (Reader::of_stream(crc32c::compute), stream, None);
    while let Some(section) = reader.read(&mut unread).unwrap() {
        if let Section::Memory(mut runs) = section {
            first = first.or(runs.next().map(|run| run.first));
        }
    }
    reader.finish().unwrap();
    first.unwrap()
}

/// A host that runs, and its socket.
struct Stage {
    server: Server,
    session: Arc<Session>,
    folder: tempfile::TempDir,
}

impl Stage {
    /// Where a saved VM of web's is.
    fn saved(&self) -> String {
        let file = self.folder.path().join("web.saved");
        fs::write(&file, made_up::saved(&made_up::counted(3))).unwrap();
        file.into_os_string().into_string().unwrap()
    }

    fn new(tools: bool) -> Self {
        Self::with(tools, About { site: "demo.toml".to_owned(), vcpus: vec![2, 1], ..About::default() })
    }

    fn with(tools: bool, about: About) -> Self {
        let (tool_input, output) = std::io::pipe().unwrap();
        let (input, tool_output) = std::io::pipe().unwrap();
        let fake = Fake {
            output,
            store: BTreeMap::new(),
            gathered: Vec::new(),
            tools,
            boots: 1,
            on: true,
            ends: false,
            stream: Vec::new(),
            held: None,
            pauses: 0,
            clock: tools.then_some(0),
        };
        thread::spawn(move || fake.run(input));
        let names = vec!["web".to_owned(), "db".to_owned()];
        let session = Arc::new(Session::over(tool_input, tool_output, names, &Options::default()).unwrap());
        // The last line that the hypervisor says by itself.
        session.virtio_console("web").unwrap().expect("hvc0 login: ", Duration::from_secs(60)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let place = Place::at(&folder.path().join("croft.socket")).unwrap();
        let server = control::serve(&session, about, &place).unwrap();
        Self { server, session, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("croft.socket")
    }

    fn croft(&self, arguments: &[&str]) -> Output {
        let (command, rest) = arguments.split_first().unwrap();
        croft(command, rest, &["--host", self.folder.path().to_str().unwrap()])
    }

    /// A command that goes on.
    fn start(&self, arguments: &[&str]) -> Child {
        let mut croft = Command::new(env!("CARGO_BIN_EXE_croft"));
        croft.args(arguments).arg("--host").arg(self.folder.path());
        croft.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What a command prints when it succeeds.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.croft(arguments);
        assert_eq!((output.status.code(), &*text(&output.stderr)), (Some(0), ""), "{arguments:?}");
        text(&output.stdout)
    }
}

fn croft(command: &str, arguments: &[&str], host: &[&str]) -> Output {
    let mut croft = Command::new(env!("CARGO_BIN_EXE_croft"));
    croft.arg(command).args(host).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A limit that no clock can hold ends nothing, whether croft asks or somebody else at the socket.
#[test]
fn however_long_a_client_wants_to_wait_the_host_goes_on() {
    let stage = Stage::new(true);
    let ever = u64::MAX.to_string();
    stage.says(&["reboot", "--wait", &ever, "web"]);
    let order = format!("{{\"Stop\":{{\"vm\":\"web\",\"force\":false,\"seconds\":{ever}}}}}\n");
    let said = exchange(&stage.socket(), order.as_bytes());
    assert!(said.ends_with("\"Done\"\n"), "{said}");
    assert!(stage.says(&["ps"]).contains("powered off"));
}

#[test]
fn ps_shows_all_vms_and_what_their_tools_report() {
    let stage = Stage::new(true);
    let table = stage.says(&["ps"]);
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect()).collect();
    assert_eq!(
        rows[1],
        ["web", "running", "2", "12.2.0", "web-1", SYSTEM, "10.0.2.15", "1:01", "0.2 s ago"],
        "{table}"
    );
    assert_eq!(rows[2], ["db", "running", "1", "-", "-", "-", "-", "-", "-"], "{table}");
    let json: serde_json::Value = serde_json::from_str(&stage.says(&["ps", "--json"])).unwrap();
    assert_eq!(json[0]["guest"]["host_name"], "web-1");
    let one = stage.says(&["ps", "db"]);
    assert!(one.lines().count() == 2 && one.contains("\ndb "), "{one}");
    let json: serde_json::Value = serde_json::from_str(&stage.says(&["ps", "--json", "db"])).unwrap();
    assert_eq!((&json[0]["name"], &json[1]), (&"db".into(), &serde_json::Value::Null));
}

/// An argument that names what is not there is a wrong argument, whatever is to be done with it.
#[test]
fn a_vm_that_is_not_there_is_status_2() {
    let stage = Stage::new(true);
    for arguments in [
        &["ps", "mail"][..],
        &["ps", "web", "mail"],
        &["stat", "mail"],
        &["console", "mail"],
        &["console", "--virtio", "mail"],
        &["guestinfo", "mail"],
        &["guestinfo", "mail", "get", "x"],
        &["guestinfo", "mail", "set", "x", "y"],
        &["start", "mail"],
        &["stop", "mail"],
        &["stop", "--force", "mail"],
        &["reboot", "mail"],
        &["pause", "mail"],
        &["resume", "mail"],
        &["time", "--sync", "mail"],
    ] {
        let refused = stage.croft(arguments);
        let said = "croft: there is no VM named mail; there are web, db\n";
        assert_eq!((refused.status.code(), &*text(&refused.stderr)), (Some(2), said), "{arguments:?}");
    }
}

#[test]
fn values_go_both_ways_whatever_their_length() {
    let stage = Stage::new(true);
    let long = "0123456789abcdef".repeat(3750);
    for value in ["", "hello world", "-5", "--force", "-", &long] {
        assert_eq!(stage.says(&["guestinfo", "web", "set", "x", value]), "");
        assert_eq!(stage.says(&["guestinfo", "web", "get", "guestinfo.x"]), format!("{value}\n"));
    }
    assert_eq!(stage.says(&["guestinfo", "web"]), "guestinfo.x (60000 bytes)\n");
    // The host may be named behind everything else too.
    let folder = stage.folder.path().to_str().unwrap();
    let behind = croft("guestinfo", &["web", "get", "guestinfo.x", "--host", folder], &[]);
    assert_eq!((behind.status.code(), text(&behind.stdout).trim_end()), (Some(0), &*long));
    let refused = stage.croft(&["guestinfo", "web", "get", "nope"]);
    assert_eq!((refused.status.code(), &*text(&refused.stderr)), (Some(1), "croft: web has no such value\n"));
    let refused = stage.croft(&["guestinfo", "mail"]);
    assert_eq!(
        (refused.status.code(), &*text(&refused.stderr)),
        (Some(2), "croft: there is no VM named mail; there are web, db\n")
    );
    let long_key = "k".repeat(5000);
    let refused = stage.croft(&["guestinfo", "web", "get", &long_key]);
    assert!(text(&refused.stderr).contains("a key has at most 256 bytes"), "{}", text(&refused.stderr));
}

#[test]
fn stop_and_reboot_prefer_the_tools() {
    let stage = Stage::new(true);
    assert_eq!(stage.says(&["reboot", "web"]), "web: its tools were asked\nweb: running, boot 2\n");
    assert!(stage.says(&["ps"]).contains("running, boot 2"));
    assert_eq!(stage.says(&["stop", "web"]), "web: its tools were asked\nweb: powered off\n");
    assert!(stage.says(&["ps"]).contains("powered off"));
    for again in [&["stop", "web"][..], &["stop", "--force", "web"]] {
        let again = stage.croft(again);
        let said = "croft: web does not need a stop: it is powered off\n";
        assert_eq!((again.status.code(), &*text(&again.stderr)), (Some(1), said));
    }
    assert_eq!(stage.says(&["reboot", "web"]), "web is off; starting it\nweb: running, boot 3\n");
}

#[test]
fn without_tools_the_button_is_pressed() {
    let stage = Stage::new(false);
    let by_button = |end: &str| format!("web: its tools do not answer; pressed its power button\nweb: {end}\n");
    assert_eq!(stage.says(&["reboot", "web"]), by_button("running, boot 2"));
    assert!(stage.says(&["ps"]).contains("running, boot 2"));
    assert_eq!(stage.says(&["stop", "web"]), by_button("powered off"));
    // Of tools that could not call nothing is said.
    for (vmware, said) in [(true, "its tools do not answer; pressed"), (false, "pressed")] {
        let stage = Stage::with(false, About { vmware: vec![vmware, false], ..About::default() });
        assert_eq!(stage.says(&["stop", "web"]), format!("web: {said} its power button\nweb: powered off\n"));
    }
}

#[test]
fn force_does_not_ask() {
    let stage = Stage::new(true);
    assert_eq!(stage.says(&["reboot", "--force", "web"]), "web: running, boot 2\n");
    assert!(stage.says(&["ps"]).contains("running, boot 2"));
    assert_eq!(stage.says(&["stop", "--force", "web"]), STOPPED);
    assert!(stage.says(&["ps"]).contains("stopped by the operator"));
}

#[test]
fn pause_and_resume() {
    let stage = Stage::new(true);
    let refused = |arguments: &[&str]| {
        let output = stage.croft(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        text(&output.stderr)
    };
    // The fake's first words are under way until it has answered something.
    assert!(stage.says(&["ps"]).contains("running"));
    assert_eq!(refused(&["resume", "web"]), "croft: web does not stand still: it is running\n");
    assert_eq!(stage.says(&["pause", "web"]), "web: paused\n");
    assert!(stage.says(&["ps"]).contains("paused"));
    assert_eq!(refused(&["pause", "web"]), "croft: web does not run: it is paused\n");
    // A guest that stands still cannot do anything itself: nobody waits for it.
    for arguments in [&["stop", "web"][..], &["reboot", "web"], &["time", "--sync", "web"]] {
        let said = refused(arguments);
        assert!(said.starts_with("croft: web is paused and cannot ") && said.contains("`croft resume web`"), "{said}");
    }
    let json: serde_json::Value = serde_json::from_str(&stage.says(&["ps", "--json"])).unwrap();
    assert_eq!((&json[0]["state"], &json[0]["boots"]), (&"paused".into(), &1.into()));
    assert_eq!(stage.says(&["resume", "web"]), "web: running\n");
    assert!(!stage.says(&["ps"]).contains("paused"));
}

#[test]
fn several_vms_or_all_that_suit() {
    let stage = Stage::new(true);
    let states = || {
        let json: serde_json::Value = serde_json::from_str(&stage.says(&["ps", "--json"])).unwrap();
        [json[0]["state"].as_str().unwrap().to_owned(), json[1]["state"].as_str().unwrap().to_owned()]
    };
    assert_eq!(states(), ["running", "running"]);
    assert_eq!(stage.says(&["pause", "web", "db"]), "web: paused\ndb: paused\n");
    assert_eq!(states(), ["paused", "paused"]);
    assert_eq!(stage.says(&["resume", "--all"]), "web: running\ndb: running\n");
    assert_eq!(stage.says(&["stop", "--force", "web"]), STOPPED);
    assert_eq!(stage.says(&["pause", "--all"]), "db: paused\n", "the one that is off is left alone");
    assert_eq!(states(), ["stopped", "paused"]);
    assert_eq!(stage.says(&["start", "--all"]), "web: running, boot 2\n");
    assert_eq!(states(), ["running", "paused"]);
    // One that fails keeps the next one from nothing; of two failures the worse is told.
    let output = stage.croft(&["pause", "db", "mail", "web"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stderr).lines().count(), 2, "{}", text(&output.stderr));
    assert_eq!(states(), ["paused", "paused"]);
    for wrong in [&["pause"][..], &["pause", "--all", "web"]] {
        assert_eq!(stage.croft(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn start_is_for_vms_that_are_off() {
    let stage = Stage::new(true);
    assert!(stage.says(&["ps"]).contains("running"));
    let refused = stage.croft(&["start", "web"]);
    let said = "croft: web does not need a start: it is running\n";
    assert_eq!((refused.status.code(), &*text(&refused.stderr)), (Some(1), said));
    assert_eq!(stage.says(&["stop", "--force", "web"]), STOPPED);
    assert_eq!(stage.says(&["start", "web"]), "web: running, boot 2\n");
    assert!(stage.says(&["ps"]).contains("running, boot 2"));
}

#[test]
fn statistics_are_printed_and_taken_apart() {
    let stage = Stage::new(true);
    assert_eq!(stage.says(&["stat"]), STATISTICS);
    assert_eq!(stage.says(&["stat", "db"]), "db: started 1 time, 64 MiB, 8 KiB tables; exits: hvc 5\n");
    let json: serde_json::Value = serde_json::from_str(&stage.says(&["stat", "--json"])).unwrap();
    assert_eq!((&json["vms"][0]["exits"]["device"], &json["vms"][1]["name"]), (&4.into(), &"db".into()));
    assert_eq!(json["host"]["memory_kib"]["free"], 50);
    let json: serde_json::Value = serde_json::from_str(&stage.says(&["stat", "--json", "db"])).unwrap();
    assert_eq!((&json["vms"][0]["exits"]["hvc"], &json["vms"][1]), (&5.into(), &serde_json::Value::Null));
}

#[test]
fn the_log_is_printed_without_what_disturbs_a_terminal() {
    let stage = Stage::new(true);
    assert!(stage.says(&["ps"]).contains("web-1"), "all that was said before has come");
    assert_eq!(untimed(&stage.says(&["log"])), "0.1 INFO: Undercroft\n0.2 WARN: [2Jodd\n");
}

/// Lines of the log without the time of day that each has before it.
fn untimed(log: &str) -> String {
    let now = croft::moment::now();
    let line = |line: &str| {
        let (time, said) = line.split_once(' ').unwrap();
        let time = croft::moment::parse(time).unwrap();
        assert!(time <= now && now - time < 3_600_000_000, "{line}");
        format!("{said}\n")
    };
    log.lines().map(line).collect()
}

/// Reads until `end` has come.
fn until(reader: &mut impl Read, end: &str) -> String {
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !said.ends_with(end.as_bytes()) {
        reader.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    text(&said)
}

/// A terminal's two ends: a person's, and a program's.
fn terminal() -> (fs::File, fs::File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (fs::File::from(master), slave)
}

#[test]
fn a_narrow_terminal_gets_a_narrow_table() {
    let stage = Stage::new(true);
    let (mut person, program) = terminal();
    let shown = |columns, person: &mut fs::File| {
        let size = rustix::termios::Winsize { ws_row: 25, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&program, size).unwrap();
        let mut croft = Command::new(env!("CARGO_BIN_EXE_croft"));
        croft.args(["ps", "web", "--host"]).arg(stage.folder.path()).stdout(program.try_clone().unwrap());
        assert_eq!(croft.status().unwrap().code(), Some(0));
        until(person, "ago\r\n")
    };
    assert!(shown(200, &mut person).contains(SYSTEM));
    let narrow = shown(80, &mut person);
    assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
    assert!(narrow.contains("Debian GNU/Li…  10.0.2.15"), "{narrow}");
}

#[test]
fn a_terminal_is_left_as_it_was() {
    let stage = Stage::new(true);
    assert!(stage.says(&["ps"]).contains("web-1"), "all that was said before has come");
    for (leave, status) in [(&b"\x1dq"[..], Some(0)), (b"", Some(128 + 15))] {
        let (mut master, slave) = terminal();
        let is_cooked =
            || rustix::termios::tcgetattr(&slave).unwrap().local_modes.contains(rustix::termios::LocalModes::ECHO);
        assert!(is_cooked());
        let mut croft = Command::new(env!("CARGO_BIN_EXE_croft"));
        croft.args(["console", "web", "--host"]).arg(stage.folder.path());
        let end = || Stdio::from(slave.try_clone().unwrap());
        let mut croft = croft.env("TERM", "xterm").stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let shown = until(&mut master, "login: ");
        assert!(shown.contains("Ctrl-] q leaves") && !is_cooked(), "{shown}");
        master.write_all(b"\x03x").unwrap();
        until(&mut master, "\x03x");
        if leave.is_empty() {
            let process = rustix::process::Pid::from_child(&croft);
            rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
        } else {
            master.write_all(leave).unwrap();
        }
        assert_eq!(croft.wait().unwrap().code(), status);
        assert!(is_cooked());
    }
}

#[test]
fn the_hosts_time_is_shown_and_set() {
    let stage = Stage::new(true);
    assert_eq!(stage.says(&["time"]), "1970-01-01T00:00:00.000Z\n");
    let set = stage.says(&["time", "--set", "2026-11-25T23:17:38.25+01:00"]);
    assert_eq!(set, "the host's time is set to 2026-11-25T22:17:38.250Z\n");
    assert_eq!(stage.says(&["time"]), "2026-11-25T22:17:38.250Z\n");
    assert!(stage.says(&["time", "--set", "now"]).starts_with("the host's time is set to 20"));
    let shown = stage.says(&["time"]);
    let shown = croft::moment::parse(shown.trim()).unwrap();
    let now = croft::moment::parse("now").unwrap();
    assert!(now.abs_diff(shown) < 60_000_000, "{shown}, and it is {now}");
    assert_eq!(stage.says(&["time", "--sync", "web"]), "web: its tools have set its clock\n");
    let wrong = stage.croft(&["time", "--set", "noon"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("RFC 3339"), "{}", text(&wrong.stderr));
    assert_eq!(stage.croft(&["time", "--set", "now", "--sync", "web"]).status.code(), Some(2));
}

#[test]
fn a_clock_that_cannot_be_set_is_told() {
    let stage = Stage::new(false);
    let refused = |arguments: &[&str]| {
        let output = stage.croft(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        text(&output.stderr)
    };
    assert_eq!(
        stage.says(&["time"]),
        "1970-01-01T00:00:00.000Z (the host has no real-time clock: counted from its start)\n"
    );
    assert_eq!(refused(&["time", "--set", "now"]), "croft: the host has no real-time clock\n");
    assert_eq!(refused(&["time", "--sync", "web"]), "croft: web: its tools do not answer\n");
    // Which force would not help.
    stage.says(&["pause", "web"]);
    let said = "croft: web is paused and cannot set its clock; `croft resume web` lets it go on\n";
    assert_eq!(refused(&["time", "--sync", "web"]), said);
}

#[test]
fn a_host_that_is_not_there_is_status_3() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap();
    let output = croft("ps", &[], &["--host", place]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).starts_with(&format!("croft: no host runs at {place};")), "{}", text(&output.stderr));
    let mut alone = Command::new(env!("CARGO_BIN_EXE_croft"));
    let output = alone.arg("ps").env("XDG_RUNTIME_DIR", folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).starts_with("croft: no host runs here;"), "{}", text(&output.stderr));
}

#[test]
fn the_socket_is_the_owners_and_goes_with_the_host() {
    use std::os::unix::fs::PermissionsExt;
    let stage = Stage::new(true);
    let socket = stage.socket();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let Stage { server, folder, .. } = stage;
    drop(server);
    assert!(folder.path().exists() && !socket.exists());
}

/// Whatever a client sends, the server and the next client are none the worse.
#[test]
fn nonsense_is_refused() {
    let stage = Stage::new(true);
    for nonsense in [&b"\n"[..], b"{}\n", b"\xff\xfe\n", &[b'x'; 600 << 10]] {
        let said = exchange(&stage.socket(), nonsense);
        assert!(said.is_empty() || said.contains("does not know the order"), "{said}");
    }
    assert!(stage.says(&["ps"]).contains("web-1"));
}

fn exchange(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = control::connect(socket).unwrap();
    // The server may have had enough of it before all is written.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut said = String::new();
    let _ = stream.read_to_string(&mut said);
    said
}
