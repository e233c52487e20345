//! A session with a hypervisor that is a thread of this test.

use super::{Condition, Notice, Options, Outcome, RequestError, ScriptError, Session, Told, carrier};
use abi::crc32c;
use abi::link::request::{self, Answer, Ask, Reply, Request};
use abi::link::{self, Carrier, Channel, Command, Decoder, Event, MAX_PAYLOAD, Message, StopReason, VmState};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::sync::mpsc;
use std::time::Duration;
use units::VmId;

const SOON: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(30);
const WEB: Channel = Channel::Console(VmId(0));
const DB: Channel = Channel::Console(VmId(1));

/// The hypervisor's end of the line.
struct Fake {
    output: PipeWriter,
    input: PipeReader,
    decoder: Decoder,
}

impl Fake {
    fn frame(&mut self, channel: Channel, bytes: &[u8]) {
        let mut frames = Vec::new();
        link::encode_stream(channel, bytes, crc32c::compute, |byte| frames.push(byte)).unwrap();
        self.output.write_all(&frames).unwrap();
    }

    fn say(&mut self, message: Message<'_>) {
        let mut buffer = [0; MAX_PAYLOAD];
        let payload = message.encode(&mut buffer).unwrap();
        self.frame(Channel::Control, payload);
    }

    fn state(&mut self, vm: u16, state: VmState<'_>) {
        self.say(Message::VmState { vm, state });
    }

    fn hello(&mut self) {
        self.say(Message::Hello { version: link::VERSION, vms: 2, build: "fake 1" });
        for (vm, name) in [(0, "web"), (1, "db")] {
            self.say(Message::Vm { vm, name, state: VmState::Running { boots: 1 } });
        }
    }

    /// The next frame from the tool.
    fn hear(&mut self) -> (Channel, Vec<u8>) {
        let mut byte = [0];
        loop {
            self.input.read_exact(&mut byte).unwrap();
            if let Some(Event::Frame { channel, payload }) = self.decoder.push(byte[0]) {
                return (channel, payload.to_vec());
            }
        }
    }
}

fn start(options: &Options) -> (Session, Fake) {
    let (tool_input, output) = std::io::pipe().unwrap();
    let (input, tool_output) = std::io::pipe().unwrap();
    let names = vec!["web".to_owned(), "db".to_owned()];
    let session = Session::over(tool_input, tool_output, names, options).unwrap();
    (session, Fake { output, input, decoder: Decoder::new(crc32c::compute) })
}

#[test]
fn consoles_are_kept_apart() {
    let (session, mut fake) = start(&Options::default());
    fake.hello();
    fake.frame(WEB, b"web boots\r\nweb login: ");
    fake.frame(DB, b"db boots\r\ndb login: ");
    let web = session.console("web").unwrap();
    assert_eq!(web.expect("login: ", SOON).unwrap(), "web boots\r\nweb login: ");
    assert_eq!(session.console("db").unwrap().expect("db login: ", SOON).unwrap(), "db boots\r\ndb login: ");
    assert!(matches!(web.expect("boots", SHORT), Err(ScriptError::Deadline { .. })), "what is matched is gone");
    let missed = [
        web.expect("boots", SHORT).map(drop),
        session.wait_for("web", SHORT, Condition::is_off).map(drop),
        session.statistics(SHORT).map(drop),
    ];
    for missed in missed {
        let said = missed.unwrap_err().to_string();
        assert!(said.starts_with("waited 30ms for "), "it says for how long it waited: {said}");
    }
    assert!(session.console("mail").err().unwrap().to_string().contains("there are web, db"));
    assert_eq!(session.damage(), 0);
}

#[test]
fn what_is_sent_arrives_on_its_channel() {
    let (session, mut fake) = start(&Options::default());
    session.console("db").unwrap().send("root\r").unwrap();
    assert_eq!(fake.hear(), (DB, b"root\r".to_vec()));
    session.control(Command::PowerButton { vm: 1 }).unwrap();
    let (channel, payload) = fake.hear();
    assert_eq!((channel, Command::decode(&payload)), (Channel::Control, Some(Command::PowerButton { vm: 1 })));
    session.virtio_console("web").unwrap().send([7; 2000]).unwrap();
    assert_eq!(fake.hear(), (Channel::VirtioConsole(VmId(0)), vec![7; 1024]));
    assert_eq!(fake.hear(), (Channel::VirtioConsole(VmId(0)), vec![7; 976]));
}

#[test]
fn large_requests_and_answers_go_by_the_bulk_channel() {
    let (session, mut fake) = start(&Options::default());
    let block = vec![0xff; request::MAX_BULK_CHUNK];
    let sent = block.clone();
    let hypervisor = std::thread::spawn(move || {
        let mut decoder = Decoder::with_buffer(vec![0; link::decoder_buffer(link::MAX_BULK)], crc32c::compute);
        let mut byte = [0];
        let mut hear = || loop {
            fake.input.read_exact(&mut byte).unwrap();
            if let Some(Event::Frame { channel, payload }) = decoder.push(byte[0]) {
                break (channel, payload.to_vec());
            }
        };
        let (channel, payload) = hear();
        let ask = Ask::RestoreNext { offset: 7, bytes: &sent, last: true };
        let id = Request::decode(&payload).unwrap().id;
        assert_eq!((channel, Request::decode(&payload)), (Channel::Bulk, Some(Request { id, vm: 0, ask })));
        let mut head = [0; request::VALUE_HEAD];
        let head = Reply::value_head(id, sent.len(), &mut head).unwrap();
        let mut frame = Vec::new();
        link::encode_parts(Channel::Bulk, &[head, &sent], crc32c::compute, |run| frame.extend(run)).unwrap();
        fake.output.write_all(&frame).unwrap();
        for answer in [Answer::More, Answer::Done] {
            let mut buffer = [0; MAX_PAYLOAD];
            let reply = Reply { id, answer };
            fake.frame(Channel::Requests, reply.encode(&mut buffer).unwrap());
        }
        fake
    });
    let told = session.ask(0, Ask::RestoreNext { offset: 7, bytes: &block, last: true }, SOON).unwrap();
    assert_eq!(told, [Told::Value(block.clone()), Told::More]);
    let fake = hypervisor.join().unwrap();
    let too_long = session.ask(0, Ask::Set { key: "k", offset: 0, value: &block, last: true }, SOON);
    assert_eq!(too_long, Err(RequestError::TooLong));
    assert_eq!(session.damage(), 0);
    drop(fake);
}

/// A session with a port, and its two fakes: at the serial port, and at the port.
fn start_with_port() -> (Session, Fake, Fake) {
    let (session, uart) = start(&Options::default());
    let (tool_input, output) = std::io::pipe().unwrap();
    let (input, tool_output) = std::io::pipe().unwrap();
    carrier::attach(&session.shared, tool_input, tool_output);
    (session, uart, Fake { output, input, decoder: Decoder::new(crc32c::compute) })
}

fn go_over(uart: &mut Fake, port: &mut Fake) {
    uart.say(Message::Hello { version: link::VERSION, vms: 2, build: "fake 1" });
    uart.say(Message::Carrier { carrier: Carrier::Port });
    port.hello();
}

#[test]
fn the_port_is_heard_when_the_serial_port_says_so() {
    let (session, mut uart, mut port) = start_with_port();
    port.frame(WEB, b"second ");
    assert!(session.console("web").unwrap().expect("second", SHORT).is_err(), "it is not its turn");
    assert_eq!(session.carrier(), Carrier::Uart);
    session.console("db").unwrap().send("early\r").unwrap();
    assert_eq!(uart.hear(), (DB, b"early\r".to_vec()));
    uart.frame(WEB, b"first ");
    go_over(&mut uart, &mut port);
    session.console("web").unwrap().expect("first second ", SOON).unwrap();
    assert_eq!(session.carrier(), Carrier::Port);
    session.console("db").unwrap().send("late\r").unwrap();
    assert_eq!(port.hear(), (DB, b"late\r".to_vec()));
    // The serial port is heard all the same: whatever is wrong is said there.
    uart.output.write_all(b"a line of text\r\n").unwrap();
    session.log().expect("a line of text", SOON).unwrap();
    port.state(0, VmState::Stopped(StopReason::PowerOff));
    port.state(1, VmState::Stopped(StopReason::PowerOff));
    // The host ends, and its serial port first: what is in the port is not lost.
    drop(uart);
    std::thread::sleep(SHORT);
    port.frame(Channel::Log, b"statistics\n");
    port.say(Message::AllStopped);
    drop(port);
    assert_eq!(session.wait_stopped(SOON), Outcome::PoweredOff);
    assert!(session.log().transcript().ends_with("statistics\n"));
    assert_eq!(session.damage(), 0);
}

#[test]
fn a_port_that_is_shut_leaves_the_link_to_the_serial_port() {
    let (session, mut uart, mut port) = start_with_port();
    go_over(&mut uart, &mut port);
    session.wait_for("web", SOON, |condition| matches!(condition, Condition::Running { .. })).unwrap();
    // It comes later than what is said behind it, and belongs before.
    uart.say(Message::Carrier { carrier: Carrier::Uart });
    uart.hello();
    uart.frame(WEB, b"second ");
    std::thread::sleep(SHORT);
    port.frame(WEB, b"first ");
    drop(port);
    session.console("web").unwrap().expect("first second ", SOON).unwrap();
    assert_eq!(session.carrier(), Carrier::Uart);
    session.console("db").unwrap().send("late\r").unwrap();
    assert_eq!(uart.hear(), (DB, b"late\r".to_vec()));
    assert!(!session.has_ended());
    assert_eq!(session.damage(), 0);
}

/// What is lost on its way is known to be at once, however long an answer may take, where it can be asked for again.
#[test]
fn who_transfers_a_vm_hears_at_once_what_is_lost() {
    let (session, mut uart, mut port) = start_with_port();
    go_over(&mut uart, &mut port);
    session.wait_for("web", SOON, |condition| matches!(condition, Condition::Running { .. })).unwrap();
    let never = Duration::from_secs(3600);
    let ask = |vm, ask| std::thread::scope(|scope| scope.spawn(|| session.ask(vm, ask, never)).join().unwrap());
    let next = Ask::SaveNext { offset: 7, length: 9 };
    // Nobody took it, and the hypervisor says so when somebody does.
    let hypervisor = std::thread::spawn(move || {
        let heard = port.hear();
        port.say(Message::Lost);
        let again = port.hear();
        // A part of this answer was lost. It is no answer.
        let id = Request::decode(&again.1).unwrap().id;
        for answer in [Answer::Value(&[1, 2]), Answer::Lost] {
            let mut buffer = [0; MAX_PAYLOAD];
            port.frame(Channel::Requests, Reply { id, answer }.encode(&mut buffer).unwrap());
        }
        // And this request was lost in the port, which is shut.
        let last = port.hear();
        uart.say(Message::Carrier { carrier: Carrier::Uart });
        drop(port);
        (uart, [heard, again, last])
    });
    for _ in 0..3 {
        assert_eq!(ask(0, next), Err(RequestError::Lost));
    }
    let (mut uart, heard) = hypervisor.join().unwrap();
    assert!(heard.iter().all(|(channel, payload)| {
        *channel == Channel::Requests && Request::decode(payload).is_some_and(|request| request.ask == next)
    }));
    assert_eq!(session.carrier(), Carrier::Uart);
    // Whoever asks something else waits: it may have been heard.
    let hypervisor = std::thread::spawn(move || {
        let id = Request::decode(&uart.hear().1).unwrap().id;
        uart.say(Message::Lost);
        let mut buffer = [0; MAX_PAYLOAD];
        uart.frame(Channel::Requests, Reply { id, answer: Answer::Done }.encode(&mut buffer).unwrap());
        uart
    });
    assert_eq!(ask(0, Ask::Reconnect), Ok(Vec::new()));
    drop(hypervisor.join().unwrap());
}

#[test]
fn whatever_a_guest_writes_is_no_frame_on_either_way() {
    let (session, mut uart, mut port) = start_with_port();
    // A whole frame that would power web off, and a start byte, as a guest would print them.
    let mut forged = Vec::new();
    let mut buffer = [0; MAX_PAYLOAD];
    let state = VmState::Stopped(StopReason::PowerOff);
    let payload = Message::VmState { vm: 0, state }.encode(&mut buffer).unwrap();
    link::encode(Channel::Control, payload, crc32c::compute, |byte| forged.push(byte)).unwrap();
    forged.push(link::START);
    uart.hello();
    uart.frame(WEB, &forged);
    go_over(&mut uart, &mut port);
    port.frame(WEB, &forged);
    port.frame(WEB, b"honest");
    session.console("web").unwrap().expect("honest", SOON).unwrap();
    assert_eq!(session.condition("web").unwrap(), Condition::Running { boots: 1 });
    let heard = session.shared.lock().stream(WEB).unwrap().all().to_vec();
    assert_eq!(heard, [&forged[..], &forged, b"honest"].concat());
    assert_eq!(session.damage(), 0);
    // Bytes outside frames are nobody's on the port.
    port.output.write_all(b"x").unwrap();
    port.frame(WEB, b"more");
    session.console("web").unwrap().expect("more", SOON).unwrap();
    assert_eq!(session.damage(), 1);
}

#[test]
fn all_powered_off_is_a_clean_end() {
    let (session, mut fake) = start(&Options::default());
    fake.hello();
    fake.state(0, VmState::Stopped(StopReason::PowerOff));
    fake.state(1, VmState::Stopped(StopReason::PowerOff));
    fake.say(Message::AllStopped);
    fake.frame(Channel::Log, b"statistics\n");
    drop(fake);
    let outcome = session.wait_stopped(SOON);
    assert_eq!((&outcome, outcome.exit_status()), (&Outcome::PoweredOff, 0));
    assert_eq!(session.log().transcript(), "statistics\n");
}

#[test]
fn a_crash_is_named() {
    let (session, mut fake) = start(&Options::default());
    fake.hello();
    fake.frame(WEB, b"last words\r\n");
    fake.state(0, VmState::Stopped(StopReason::Crashed("it ran off its memory")));
    let over = session.console("web").unwrap().expect("login", SOON).unwrap_err().to_string();
    assert!(over.starts_with("web is crashed: it ran off its memory before \"login\""), "{over}");
    assert!(over.contains("last words"), "{over}");
    fake.state(1, VmState::Stopped(StopReason::PowerOff));
    drop(fake);
    let outcome = session.wait_stopped(SOON);
    assert_eq!((outcome.to_string().as_str(), outcome.exit_status()), ("web: crashed: it ran off its memory", 1));
}

#[test]
fn a_panic_ends_every_wait() {
    let (session, mut fake) = start(&Options::default());
    fake.hello();
    fake.say(Message::Panic { text: "panic at vector 4\nx0 = 1\n" });
    fake.say(Message::Panic { text: "x1 = 2\n" });
    drop(fake);
    let over = session.console("db").unwrap().expect("login", SOON).unwrap_err().to_string();
    assert!(over.starts_with("the hypervisor failed: panic at vector 4 before"), "{over}");
    let outcome = session.wait_stopped(SOON);
    assert_eq!(outcome.exit_status(), 1);
    assert!(session.log().transcript().ends_with("x1 = 2\n"));
}

#[test]
fn a_host_that_goes_away_leaves_its_last_words() {
    let (session, mut fake) = start(&Options::default());
    fake.output.write_all(b"undercroft: entered at EL1, needs EL2\r\n").unwrap();
    drop(fake);
    let outcome = session.wait_stopped(SOON);
    let said = "the link ended while web, db ran; last line of the log: undercroft: entered at EL1, needs EL2";
    assert_eq!((outcome.to_string().as_str(), outcome.exit_status()), (said, 3));
}

#[test]
fn time_runs_out() {
    let (session, mut fake) = start(&Options::default());
    fake.hello();
    fake.state(1, VmState::Stopped(StopReason::PowerOff));
    session.wait_for("db", SOON, Condition::is_off).unwrap();
    let outcome = session.wait_stopped(SHORT);
    assert_eq!((outcome.to_string().as_str(), outcome.exit_status()), ("timed out after 0.03s; not off: web", 124));
    let late = session.console("web").unwrap().expect("login", SHORT).unwrap_err().to_string();
    assert!(late.starts_with("waited 30ms for \"login\""), "{late}");
}

#[test]
fn a_stranger_is_recognised() {
    let (session, mut fake) = start(&Options::default());
    let version = link::VERSION + 1;
    fake.say(Message::Hello { version, vms: 2, build: "undercroft of tomorrow" });
    let outcome = session.wait_stopped(SOON);
    assert!(outcome.to_string().contains(&format!("undercroft of tomorrow speaks version {version}")), "{outcome}");
    drop(fake);
}

#[test]
fn a_reboot_shows_and_a_bad_text_ends_the_wait() {
    let (session, mut fake) = start(&Options::default());
    fake.hello();
    fake.state(0, VmState::Running { boots: 2 });
    let boots = session.wait_for("web", SOON, |condition| *condition == Condition::Running { boots: 2 });
    assert_eq!(boots.unwrap().to_string(), "running, boot 2");
    fake.frame(WEB, b"Kernel panic - not syncing\n");
    let lost = session.console("web").unwrap().expect_unless("login", &["Kernel panic"], SOON).unwrap_err();
    assert!(matches!(lost, ScriptError::Refused { .. }));
}

#[test]
fn a_kernel_that_says_that_it_panicked_is_known_until_the_next_boot() {
    let (session, mut fake) = start(&Options::default());
    fake.hello();
    fake.frame(WEB, b"dmesg | grep Kernel panic - not syncing\r\n");
    fake.frame(WEB, b"[    1.5] Kernel panic - not");
    fake.frame(WEB, b" syncing: No init found\r\nmarker\r\n");
    session.console("web").unwrap().expect("marker", SOON).unwrap();
    let words = "Kernel panic - not syncing: No init found";
    assert_eq!(session.standing(0).last_words.as_deref(), Some(words));
    assert_eq!((session.standing(0).boots, session.standing(1).last_words), (1, None));
    // By two consoles at once, and cut anywhere.
    let hvc = Channel::VirtioConsole(VmId(1));
    fake.frame(Channel::Console(VmId(1)), b"[    2.0] Kernel pan");
    fake.frame(hvc, b"[    2.0] Kernel panic - not syncing: Attempted to kill init!\r\nmarker\r\n");
    session.virtio_console("db").unwrap().expect("marker", SOON).unwrap();
    let words = "Kernel panic - not syncing: Attempted to kill init!";
    assert_eq!(session.standing(1).last_words.as_deref(), Some(words));
    fake.state(0, VmState::Running { boots: 2 });
    session.wait_for("web", SOON, |condition| *condition == Condition::Running { boots: 2 }).unwrap();
    assert_eq!((session.standing(0).boots, session.standing(0).last_words), (2, None));
    fake.state(0, VmState::Paused);
    session.wait_for("web", SOON, |condition| *condition == Condition::Paused).unwrap();
    assert_eq!(session.standing(0).boots, 2, "it is remembered");
}

/// What is known of a restored guest's clock is so for that life, whether it goes on at once or was restored to stand still.
#[test]
fn a_restored_guests_clock_is_wrong_until_its_life_ends() {
    let (session, mut fake) = start(&Options::default());
    fake.hello();
    let mut becomes = |state, condition: Condition| {
        fake.state(0, state);
        session.wait_for("web", SOON, |now| *now == condition).unwrap();
    };
    let is_wrong = || session.may_read_a_wrong_clock(0, "web") == Some("the log");
    becomes(VmState::Paused, Condition::Paused);
    assert!(!is_wrong());
    session.has_a_wrong_clock(0);
    assert!(is_wrong() && session.may_read_a_wrong_clock(1, "db").is_none());
    for _ in 0..2 {
        becomes(VmState::Running { boots: 2 }, Condition::Running { boots: 2 });
        assert!(is_wrong());
        becomes(VmState::Paused, Condition::Paused);
        assert!(is_wrong());
    }
    becomes(VmState::Running { boots: 3 }, Condition::Running { boots: 3 });
    assert!(!is_wrong());
    session.has_a_wrong_clock(0);
    assert!(is_wrong());
    becomes(VmState::Stopped(StopReason::PowerOff), Condition::PoweredOff);
    assert!(!is_wrong());
    becomes(VmState::Running { boots: 3 }, Condition::Running { boots: 3 });
    assert!(!is_wrong(), "another life");
    session.has_a_wrong_clock(0);
    becomes(VmState::Running { boots: 4 }, Condition::Running { boots: 4 });
    assert!(!is_wrong(), "another life, before anybody asked");
}

#[test]
fn statistics_and_refusals_are_collected() {
    let (session, mut fake) = start(&Options::default());
    let answered = std::thread::spawn(move || {
        assert_eq!(Command::decode(&fake.hear().1), Some(Command::Stats));
        fake.say(Message::Stats { text: "web: 3 exits\n" });
        fake.say(Message::Stats { text: "db: 4 exits\n" });
        fake.say(Message::StatsEnd);
        fake.say(Message::Refused { text: "pause: not yet" });
        fake
    });
    assert_eq!(session.statistics(SOON).unwrap(), "web: 3 exits\ndb: 4 exits\n");
    drop(answered.join().unwrap());
    let _ = session.wait_stopped(SOON);
    assert_eq!(session.refusals(), ["pause: not yet"]);
}

#[test]
fn logs_are_kept_and_notices_given() {
    let folder = tempfile::tempdir().unwrap();
    let (listener, notices) = mpsc::channel();
    let log_dir = Some(folder.path().join("logs"));
    let before = crate::moment::now();
    let (session, mut fake) = start(&Options { log_dir, listener: Some(listener), ..Options::default() });
    fake.output.write_all(b"early\n").unwrap();
    fake.frame(Channel::Log, b"late\n");
    fake.frame(WEB, b"\x1b[1mraw\xff\r\n");
    fake.frame(Channel::VirtioConsole(VmId(1)), b"hvc");
    fake.frame(Channel::Console(VmId(7)), b"nobody");
    drop(fake);
    let _ = session.wait_stopped(SOON);
    let read = |name: &str| std::fs::read(folder.path().join("logs").join(name)).ok();
    let log = String::from_utf8(read("hypervisor.log").unwrap()).unwrap();
    let lines: Vec<(&str, &str)> = log.lines().map(|line| line.split_once(' ').unwrap()).collect();
    assert_eq!([lines[0].1, lines[1].1], ["early", "late"], "each behind the time of day");
    for (time, _) in lines {
        let time = crate::moment::parse(time).unwrap();
        assert!((before / 1_000_000 * 1_000_000..=crate::moment::now()).contains(&time), "{log}");
    }
    assert_eq!(session.timed_log(), log.as_bytes());
    assert_eq!(read("web.console").unwrap(), b"\x1b[1mraw\xff\r\n");
    assert_eq!(read("db.console").unwrap(), b"");
    assert_eq!((read("db.hvc0").unwrap(), read("web.hvc0")), (b"hvc".to_vec(), None));
    let all: Vec<Notice> = notices.try_iter().collect();
    assert!(all.contains(&Notice::Output { channel: WEB, bytes: b"\x1b[1mraw\xff\r\n".to_vec() }));
    assert_eq!((all.last(), session.damage()), (Some(&Notice::Ended), 1));
}
