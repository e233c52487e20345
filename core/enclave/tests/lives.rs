//! Enclaves' lives, by the driver of the fuzzer: what a guest is told, and what of it reaches the mechanism.

#[path = "../../../fuzz/src/enclave_device.rs"]
pub mod enclave_device;
#[path = "../../../fuzz/src/input.rs"]
pub mod input;

use abi::enclave::{
    COMMAND_SIZE, ENCLAVE_BASE, EnclaveCommand, EnclaveCompletion, EnclaveOpcode, EnclaveStatus, flags, interrupt,
    register, rights, status_bits,
};
use devices::bus::{Change, Device};
use enclave::measure::Measuring;
use enclave::models::{ModelCall, Player, SevModel, SgxModel, TrustZoneModel};
use enclave::parse::PageRights;
use enclave::{
    ByIsolation, EnclaveBackend, EnclaveDevice, EnclaveThread, EnclaveTrace, Leave, NoMechanism, NoTrace, Traced,
};
use enclave_device::{COMMANDS, COMPLETIONS, Driver, PAYLOAD, RAM, World};
use pack::{Reader, Writer};
use units::{BLOCK_SIZE, VcpuId};

const MEMORY: u64 = RAM + BLOCK_SIZE;
const EXPECTED: u64 = PAYLOAD + 0x8000;
const MEASURED_TO: u64 = PAYLOAD + 0x9000;

/// What every enclave here computes: it calls outside with one more than its first argument, and returns twice the answer.
fn program(call: ModelCall) -> Leave {
    match call {
        ModelCall::Enter([first, ..]) => Leave::Outcall(first + 1),
        ModelCall::Resume(answer) => Leave::Returned(answer * 2),
    }
}

/// The same by registers, as the hypervisor lets it run.
fn runs(thread: &mut EnclaveThread) -> Leave {
    if thread.pc == ENCLAVE_BASE + 8 {
        thread.pc += 4;
        program(ModelCall::Enter([thread.general[0], 0, 0]))
    } else {
        program(ModelCall::Resume(thread.general[0]))
    }
}

fn command(opcode: EnclaveOpcode, enclave: u64) -> EnclaveCommand {
    EnclaveCommand { enclave, ..EnclaveCommand::new(opcode, 0x100 + opcode as u64) }
}

fn create(memory: u64, blocks: u32) -> EnclaveCommand {
    let payload_length = blocks * BLOCK_SIZE as u32;
    EnclaveCommand { payload: memory, payload_length, arguments: [8, 0, 0], ..command(EnclaveOpcode::Create, 0) }
}

fn add(enclave: u64, offset: u64, pages: u32) -> EnclaveCommand {
    let arguments = [offset, rights::READ | rights::EXECUTE, 0];
    let payload_length = pages * 0x1000;
    EnclaveCommand { payload: PAYLOAD, payload_length, arguments, ..command(EnclaveOpcode::AddPages, enclave) }
}

fn finalise(enclave: u64) -> EnclaveCommand {
    EnclaveCommand { payload: EXPECTED, payload_length: 32, ..command(EnclaveOpcode::Finalise, enclave) }
}

fn enter(enclave: u64, first: u64) -> EnclaveCommand {
    EnclaveCommand { arguments: [first, 0, 0], ..command(EnclaveOpcode::Enter, enclave) }
}

fn resume(enclave: u64, answer: u64) -> EnclaveCommand {
    EnclaveCommand { arguments: [answer, 0, 0], ..command(EnclaveOpcode::Resume, enclave) }
}

/// The measurement of an enclave of a block with one page of the payload.
fn measured(world: &World) -> [u8; 32] {
    let mut page = [0; 0x1000];
    world.peek(PAYLOAD, &mut page);
    let mut measuring = Measuring::new(BLOCK_SIZE, 8);
    measuring.page(0, PageRights::ReadExecute, true);
    measuring.contents(&page);
    measuring.finish()
}

fn status(completion: EnclaveCompletion) -> EnclaveStatus {
    EnclaveStatus::from_number(completion.status).expect("a status")
}

/// What a guest does with one enclave, and all that it is told. The same commands for each mechanism.
fn life<B: EnclaveBackend, T: EnclaveTrace>(driver: &mut Driver<B, T>) -> Vec<EnclaveCompletion> {
    driver.world.poke(PAYLOAD, &[0x42; 0x1000]);
    let expected = measured(&driver.world);
    driver.world.poke(EXPECTED, &expected);
    let measurement =
        EnclaveCommand { payload: MEASURED_TO, payload_length: 32, ..command(EnclaveOpcode::Measurement, 1) };
    let commands = [
        command(EnclaveOpcode::Query, 0),
        create(MEMORY, 1),
        add(1, 0, 1),
        finalise(1),
        measurement,
        enter(1, 41),
        resume(1, 7),
        enter(1, 1),
        command(EnclaveOpcode::Destroy, 1),
        enter(1, 0),
        command(EnclaveOpcode::Seal, 1),
    ];
    let mut told = Vec::new();
    for command in &commands {
        told.push(driver.command(command, &mut runs));
        driver.write(register::INT_ACK, interrupt::ALL);
    }
    let mut written = [0; 32];
    driver.world.peek(MEASURED_TO, &mut written);
    assert_eq!(written, expected);
    told
}

#[test]
fn p2_a1_the_guest_sees_the_same_with_each_mechanism() {
    fn seen<B: EnclaveBackend>(backend: B) -> (Vec<u32>, Vec<EnclaveCompletion>, Vec<u8>) {
        let mut driver = Driver::new(EnclaveDevice::new(backend), 4);
        let mut registers: Vec<u32> = (0..32).map(|register| driver.read(register * 4)).collect();
        let told = life(&mut driver);
        registers.extend((0..32).map(|register| driver.read(register * 4)));
        let mut rings = vec![0; 0x8000];
        driver.world.peek(COMMANDS, &mut rings);
        (registers, told, rings)
    }
    let isolated = seen(ByIsolation);
    let statuses: Vec<_> = isolated.1.iter().map(|one| (status(*one), one.value, one.enclave)).collect();
    assert_eq!(
        statuses[1..],
        [
            (EnclaveStatus::Done, 0, 1),
            (EnclaveStatus::Done, 0, 1),
            (EnclaveStatus::Done, 0, 1),
            (EnclaveStatus::Done, 0, 1),
            (EnclaveStatus::Outcall, 42, 1),
            (EnclaveStatus::Done, 14, 1),
            (EnclaveStatus::Outcall, 2, 1),
            (EnclaveStatus::Done, 0, 1),
            (EnclaveStatus::Unknown, 0, 1),
            (EnclaveStatus::Unsupported, 0, 1),
        ]
    );
    let player = Player::new(program);
    assert!(seen(SgxModel(player)) == isolated);
    assert!(seen(SevModel(player)) == isolated);
    assert!(seen(TrustZoneModel(player)) == isolated);
}

/// A trace as text, a line for each thing that happened; the parts of a page by the first and the last.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl EnclaveTrace for Lines {
    fn note(&mut self, what: &Traced<'_>) {
        let line = match what {
            Traced::Inserted(tail) => format!("trapped: tail {tail}"),
            Traced::Retrieved(entry, bytes) => format!("queue: entry {entry}, {} bytes", bytes.len()),
            Traced::Parsed(Ok(operation)) => format!("parsed: {operation:x?}"),
            Traced::Parsed(Err(status)) => format!("parsed: {status:?}"),
            Traced::Translated(step) => {
                let step = format!("{step:?}");
                format!("translated: {}", step.split(' ').next().unwrap_or_default())
            }
            Traced::Native(native) => format!("native: {native:x?}"),
            Traced::Completed(completion) => format!("completed: {completion:x?}"),
            Traced::Interrupt => "interrupt".into(),
        };
        self.0.lock().expect("no poison").push(line);
    }
}

/// The trace of a life, with a page's parts but the first two and the last left out.
fn traced<B: EnclaveBackend>(backend: B) -> String {
    let lines = Lines::default();
    life(&mut Driver::new(EnclaveDevice::traced(backend, lines.clone()), 4));
    let lines = lines.0.lock().expect("no poison");
    let mut parts = 0;
    let mut text = String::new();
    for line in lines.iter() {
        if line.starts_with("translated: ") {
            parts = if line == "translated: Part" { parts + 1 } else { 0 };
        }
        if parts == 3 && line.starts_with("translated") {
            text += "...\n";
        }
        if !(3..16).contains(&parts) {
            text += line;
            text += "\n";
        }
    }
    text
}

fn compare(name: &str, text: &str) {
    let path = format!("{}/tests/traces/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("WRITE_TRACES").is_some() {
        std::fs::write(&path, text).expect("a folder");
    }
    let file = std::fs::read_to_string(&path).expect("a trace");
    for (number, (line, in_file)) in text.lines().zip(file.lines()).enumerate() {
        assert_eq!(line, in_file, "{path}, line {}", number + 1);
    }
    assert_eq!(text.lines().count(), file.lines().count(), "{path}");
}

/// The order is that of the file; that it is the one which the check asks for, for the one command of a call, is said here.
#[test]
fn p2_a2_the_way_of_a_command() {
    let text = traced(ByIsolation);
    compare("isolation", &text);
    let call: Vec<_> = text.lines().skip_while(|line| !line.contains("Enter")).collect();
    let before: Vec<_> = text.lines().take_while(|line| !line.contains("Enter")).collect();
    let kinds = |lines: &[&str]| {
        lines.iter().map(|line| line.split([':', ' ']).next().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&before[before.len() - 2..]), ["trapped", "queue"]);
    assert_eq!(kinds(&call[..5]), ["parsed", "translated", "native", "completed", "interrupt"]);
}

#[test]
fn p2_a3_each_mechanism_has_its_own_commands() {
    let player = Player::new(program);
    compare("sgx-model", &traced(SgxModel(player)));
    compare("sev-model", &traced(SevModel(player)));
    compare("trustzone-model", &traced(TrustZoneModel(player)));
    let natives =
        |text: String| text.lines().filter(|line| line.starts_with("native")).map(String::from).collect::<Vec<_>>();
    let all = [
        natives(traced(ByIsolation)),
        natives(traced(SgxModel(player))),
        natives(traced(SevModel(player))),
        natives(traced(TrustZoneModel(player))),
    ];
    for (number, one) in all.iter().enumerate() {
        assert!(all[..number].iter().flatten().all(|line| !one.contains(line)));
    }
}

#[test]
fn p2_a4_the_tail_inserts_and_nothing_else() {
    let lines = Lines::default();
    let mut driver = Driver::new(EnclaveDevice::traced(ByIsolation, lines.clone()), 4);
    (0..3).for_each(|_| driver.put(&command(EnclaveOpcode::Query, 0).to_bytes()));
    driver.device.poll(&driver.world);
    assert!(driver.completions().is_empty() && driver.world.accesses.get() == 0);
    driver.ring();
    assert_eq!(driver.completions().len(), 3);
    let insertions = lines.0.lock().unwrap().iter().filter(|line| line.starts_with("trapped")).count();
    assert_eq!(insertions, 1);
}

#[test]
fn p2_a7_what_is_something_else_is_never_called() {
    for flip in [0, 100, 255] {
        let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
        let mut expected = measured(&driver.world);
        expected[flip / 8] ^= 1 << (flip % 8);
        driver.world.poke(EXPECTED, &expected);
        driver.command(&create(MEMORY, 1), &mut runs);
        driver.command(&add(1, 0, 1), &mut runs);
        let mut told = |command| status(driver.command(&command, &mut |_| panic!("it runs")));
        assert_eq!(told(finalise(1)), EnclaveStatus::Measurement);
        for again in [enter(1, 0), resume(1, 0), finalise(1), add(1, 0x1000, 1)] {
            assert_eq!(told(again), EnclaveStatus::State);
        }
        assert_eq!(told(command(EnclaveOpcode::Destroy, 1)), EnclaveStatus::Done);
        assert!(driver.world.taken.borrow().is_empty());
    }
}

#[test]
fn p2_a8_only_the_copy_is_looked_at() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    driver.world.meddles.set(Some(COMMANDS));
    let told = driver.command(&create(MEMORY, 1), &mut runs);
    let mut bytes = [0; COMMAND_SIZE];
    driver.world.peek(COMMANDS, &mut bytes);
    assert_eq!((bytes, status(told)), ([0xff; COMMAND_SIZE], EnclaveStatus::Done));
}

/// What is stored for the enclave and what is measured is what was read first, though the guest changes its page behind that.
#[test]
fn p2_a8_a_page_is_read_once() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    let expected = measured(&driver.world);
    driver.world.poke(EXPECTED, &expected);
    driver.command(&create(MEMORY, 1), &mut runs);
    driver.world.meddles.set(Some(PAYLOAD));
    driver.command(&add(1, 0, 1), &mut runs);
    let (mut inside, mut outside) = ([0; 0x1000], [0; 0x1000]);
    driver.world.peek(MEMORY, &mut inside);
    driver.world.peek(PAYLOAD, &mut outside);
    assert_eq!((inside, outside[..64].iter().all(|&byte| byte == 0xff)), ([0; 0x1000], true));
    assert_eq!(status(driver.command(&finalise(1), &mut runs)), EnclaveStatus::Done);
}

#[test]
fn p2_a8_addresses_are_the_guests_own() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    let mut told = |command| {
        let told = driver.command(&command, &mut runs);
        (status(told), told.enclave)
    };
    let outside = RAM + 8 * BLOCK_SIZE;
    assert_eq!(told(create(outside, 1)), (EnclaveStatus::Address, 0));
    // The second of its blocks is not there: the first is the guest's again.
    assert_eq!(told(create(outside - BLOCK_SIZE, 2)), (EnclaveStatus::Address, 0));
    assert_eq!(told(create(outside - BLOCK_SIZE, 1)), (EnclaveStatus::Done, 3));
    assert_eq!(told(create(outside - BLOCK_SIZE, 1)).0, EnclaveStatus::Address);
    assert_eq!(told(create(MEMORY, 1)), (EnclaveStatus::Done, 4));
    assert_eq!(told(EnclaveCommand { payload: outside, ..add(3, 0, 1) }).0, EnclaveStatus::Address);
    // Its own memory, and another one's.
    assert_eq!(told(EnclaveCommand { payload: MEMORY, ..add(4, 0, 1) }).0, EnclaveStatus::Address);
    assert_eq!(told(EnclaveCommand { payload: MEMORY, ..add(3, 0, 1) }).0, EnclaveStatus::Address);
    assert_eq!(told(EnclaveCommand { payload: MEMORY, ..finalise(3) }).0, EnclaveStatus::Address);
    assert_eq!(told(add(3, 0x1f_f000, 2)).0, EnclaveStatus::Invalid);
    assert_eq!(told(add(3, 0, 2)).0, EnclaveStatus::Done);
    assert_eq!(told(add(3, 0x1000, 1)).0, EnclaveStatus::Invalid);
    assert_eq!(told(add(2, 0, 1)).0, EnclaveStatus::Unknown);
    assert_eq!(told(add(u64::MAX, 0, 1)).0, EnclaveStatus::Unknown);
    assert_eq!(driver.world.taken.borrow().len(), 2);
}

#[test]
fn p2_a8_rings_that_cannot_be_break_the_device_until_a_reset() {
    let broken: [&[(u64, u32)]; 7] = [
        &[(register::CQ_BASE_LOW, COMMANDS as u32 + 32)],
        &[(register::CQ_BASE_LOW, 0x1000)],
        &[(register::CQ_BASE_HIGH, 1)],
        &[(register::CQ_SIZE, 0)],
        &[(register::CQ_SIZE, 9)],
        &[(register::RQ_BASE_LOW, COMPLETIONS as u32 + 16)],
        &[(register::RQ_BASE_LOW, 0x1000)],
    ];
    for registers in broken {
        let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
        registers.iter().for_each(|&(register, value)| driver.write(register, value));
        driver.put(&command(EnclaveOpcode::Query, 0).to_bytes());
        driver.ring();
        assert_eq!(driver.read(register::STATUS), status_bits::BROKEN, "{registers:x?}");
        assert_eq!((driver.read(register::INT_STATUS), driver.device.lines()), (interrupt::STATUS, 1));
        driver.write(register::RESET, 0);
        assert_eq!((driver.read(register::STATUS), driver.device.lines()), (0, 0));
        driver.set_up();
        driver.command(&command(EnclaveOpcode::Query, 0), &mut runs);
    }
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    driver.write(register::CQ_TAIL, 16);
    assert_eq!(driver.read(register::STATUS), status_bits::BROKEN);
}

#[test]
fn p2_a9_a_host_without_a_mechanism_says_so() {
    let mut driver = Driver::new(EnclaveDevice::new(NoMechanism), 4);
    assert_eq!(driver.read(register::ID), abi::enclave::ID);
    assert_eq!(driver.read(register::FEATURES), 1);
    let query = driver.command(&command(EnclaveOpcode::Query, 0), &mut runs);
    assert_eq!((status(query), query.value & 0xffff_ffff), (EnclaveStatus::Done, 1));
    assert_eq!(status(driver.command(&create(MEMORY, 1), &mut runs)), EnclaveStatus::NoMechanism);
    assert_eq!(status(driver.command(&enter(1, 0), &mut runs)), EnclaveStatus::Unknown);
}

/// With a ring of two entries there is room for one completion at a time: the others wait, and none is lost.
#[test]
fn a_full_ring_of_completions_makes_the_device_wait() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    driver.write(register::RQ_SIZE, 1);
    for cookie in 0..9 {
        driver.put(&EnclaveCommand { cookie, ..command(EnclaveOpcode::Query, 0) }.to_bytes());
    }
    driver.ring();
    for cookie in 0..9_u32 {
        driver.settle(&mut runs);
        assert_eq!(driver.read(register::RQ_TAIL), (cookie + 1) % 2);
        let mut bytes = [0; 32];
        driver.world.peek(COMPLETIONS + u64::from(cookie % 2) * 32, &mut bytes);
        assert_eq!(EnclaveCompletion::from_bytes(&bytes).cookie, cookie.into());
        driver.write(register::RQ_HEAD, (cookie + 1) % 2);
    }
    assert_eq!(driver.read(register::CQ_HEAD), 9);
}

/// An enclave that was interrupted has all of its registers afterwards; one that called outside, all but X0.
#[test]
fn a_suspended_enclave_keeps_its_registers() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    life(&mut driver);
    let expected = measured(&driver.world);
    driver.world.poke(EXPECTED, &expected);
    driver.command(&create(MEMORY, 1), &mut runs);
    driver.command(&add(2, 0, 1), &mut runs);
    driver.command(&finalise(2), &mut runs);
    let full = EnclaveThread { general: [5; 31], stack: 6, pc: ENCLAVE_BASE + 0x40, flags: 0xffff_ffff };
    let mut runs = |leave, command| {
        let mut before = full;
        let told = driver.command(&command, &mut |thread| {
            before = std::mem::replace(thread, full);
            leave
        });
        (before, status(told), told.value)
    };
    let entry = EnclaveThread::at_entry(8, [1, 2, 3]);
    let called = EnclaveCommand { arguments: [1, 2, 3], ..enter(2, 0) };
    assert_eq!(runs(Leave::Interrupted, called), (entry, EnclaveStatus::Interrupted, 0));
    let kept = EnclaveThread { flags: 0xf000_0000, ..full };
    assert_eq!(runs(Leave::Outcall(3), resume(2, 9)), (kept, EnclaveStatus::Outcall, 3));
    let mut answered = kept;
    answered.general[0] = 9;
    assert_eq!(runs(Leave::Returned(4), resume(2, 9)), (answered, EnclaveStatus::Done, 4));
    // Nothing of a call is left for the next.
    assert_eq!(runs(Leave::Faulted, enter(2, 0)).0, EnclaveThread::at_entry(8, [0; 3]));
    assert_eq!(status(driver.command(&enter(2, 0), &mut self::runs)), EnclaveStatus::State);
}

#[test]
fn enclaves_are_gone_behind_a_restore_and_the_guest_is_told() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    driver.command(&create(MEMORY, 1), &mut runs);
    driver.write(register::INT_ACK, interrupt::ALL);
    // A command is under way.
    driver.world.share.set(Some(2));
    driver.put(&add(1, 0, 1).to_bytes());
    driver.ring();
    let saved = driver.device.save();
    let mut out = Writer::new();
    driver.device.save_to(&mut out);
    let bytes = out.finish().unwrap();

    let mut restored = EnclaveDevice::new(ByIsolation);
    restored.restore_from(&mut Reader::new(&bytes)).unwrap();
    assert_eq!(restored.save(), saved);
    let before = driver.world.taken.borrow().len();
    assert_eq!(before, 1, "the VM that runs on keeps its enclave");
    driver.device = restored;
    driver.world.taken.borrow_mut().clear();
    driver.world.open.borrow_mut().clear();
    driver.world.share.set(None);
    assert_eq!(driver.read(register::STATUS), status_bits::GONE);
    assert_eq!((driver.read(register::INT_STATUS), driver.device.lines()), (interrupt::STATUS, 1));
    driver.device.poll(&driver.world);
    let told = driver.completions();
    let ends: Vec<_> = told.iter().map(|&one| (one.cookie, status(one), one.enclave)).collect();
    assert_eq!(ends, [(0x102, EnclaveStatus::Gone, 1)]);
    assert_eq!(status(driver.command(&add(1, 0, 1), &mut runs)), EnclaveStatus::Unknown);
    // An identifier is nobody else's later.
    assert_eq!(driver.command(&create(MEMORY, 1), &mut runs).enclave, 2);
    driver.device.change(Change::Reset, &driver.world);
    assert_eq!(driver.read(register::STATUS), 0);
}

/// That enclaves go is told by an interrupt, which may be raised already.
#[test]
fn an_interrupt_that_is_raised_stays_so_when_enclaves_go() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    driver.command(&create(MEMORY, 1), &mut runs);
    driver.write(register::INT_ACK, interrupt::ALL);
    assert_eq!(driver.device.save().interrupts, interrupt::STATUS);
    driver.write(register::CQ_TAIL, 16);
    assert_eq!(driver.read(register::INT_STATUS), interrupt::STATUS);
    assert_eq!(driver.device.save().interrupts, interrupt::STATUS);
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let good = EnclaveDevice::new(ByIsolation).save();
    let put = |saved: enclave::SavedEnclaveDevice| {
        let mut out = Writer::new();
        out.part(&saved);
        EnclaveDevice::new(ByIsolation).restore_from(&mut Reader::new(&out.finish().unwrap())).is_ok()
    };
    assert!(put(good));
    let ring = enclave::SavedEnclaveDevice { commands: COMMANDS, commands_bits: 2, commands_tail: 3, ..good };
    assert!(put(ring));
    assert!(!put(enclave::SavedEnclaveDevice { commands_tail: 4, ..ring }));
    assert!(!put(enclave::SavedEnclaveDevice { completions_head: 1, ..good }));
    assert!(!put(enclave::SavedEnclaveDevice { masked: 4, ..good }));
    assert!(!put(enclave::SavedEnclaveDevice { waiting_cookie: 4, ..good }));
}

/// Two vCPUs that ring in turn: the driver's lock orders the tail, and each completion has its command's cookie.
#[test]
fn p2_a12_each_completion_belongs_to_its_command() {
    let mut driver = Driver::new(EnclaveDevice::<_, NoTrace>::new(ByIsolation), 5);
    let zeroes = |cookie, enclave, page: u64| EnclaveCommand {
        cookie,
        flags: flags::ZEROES,
        payload: 0,
        ..add(enclave, page * 0x1000, 1)
    };
    driver.command(&create(MEMORY, 1), &mut runs);
    driver.command(&create(MEMORY + BLOCK_SIZE, 1), &mut runs);
    driver.world.share.set(Some(3));
    for page in 0..10 {
        driver.put(&zeroes(page, 1, page).to_bytes());
        driver.ring();
        driver.put(&zeroes(0x1000 + page, 2, page).to_bytes());
        driver.ring();
    }
    driver.settle(&mut runs);
    let told = driver.completions();
    assert_eq!(told.len(), 20);
    assert!(told.iter().all(|one| status(*one) == EnclaveStatus::Done && one.enclave == 1 + (one.cookie >> 12)));
}

/// A reset of the device while an enclave runs calls it off, and is done behind its end; the run has no completion.
#[test]
fn a_reset_calls_off_who_runs() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    made(&mut driver, 1);
    driver.put(&enter(1, 0).to_bytes());
    driver.ring();
    let run = driver.device.take_run(VcpuId(0)).unwrap();
    assert_eq!(driver.device.take_run(VcpuId(0)), None);
    assert!(driver.world.called_off.borrow().is_empty());
    driver.world.caller.set(VcpuId(3));
    driver.write(register::RESET, 1);
    assert_eq!(driver.read(register::STATUS), status_bits::RESETTING);
    assert_eq!(*driver.world.called_off.borrow(), [VcpuId(0)]);
    assert_eq!(driver.world.taken.borrow().len(), 1);
    driver.device.left(&run, Leave::Interrupted, &driver.world);
    assert_eq!(driver.read(register::STATUS), 0);
    assert!(driver.world.taken.borrow().is_empty());
    assert_eq!(driver.read(register::RQ_TAIL), 0);
}

/// An enclave with one page that can be called; the second one is of the block behind the first one's.
fn made(driver: &mut Driver<ByIsolation, NoTrace>, id: u64) {
    let expected = measured(&driver.world);
    driver.world.poke(EXPECTED, &expected);
    for command in [create(MEMORY + (id - 1) * BLOCK_SIZE, 1), add(id, 0, 1), finalise(id)] {
        assert_eq!(status(driver.command(&command, &mut runs)), EnclaveStatus::Done);
    }
}

/// One that was not begun is not waited for.
#[test]
fn a_reset_before_the_run_needs_nobody_to_run_it() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    made(&mut driver, 1);
    driver.put(&enter(1, 0).to_bytes());
    driver.ring();
    driver.write(register::RESET, 1);
    assert_eq!(driver.read(register::STATUS), 0);
    assert!(driver.world.called_off.borrow().is_empty() && driver.world.taken.borrow().is_empty());
    assert_eq!(driver.device.take_run(VcpuId(0)), None);
}

/// Who looks whether there is something to do may do nothing in the guest's memory: that the enclave waits is not forgotten by that.
#[test]
fn a_run_that_nobody_took_is_asked_for_until_somebody_does() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    made(&mut driver, 1);
    driver.put(&enter(1, 4).to_bytes());
    driver.ring();
    for share in [0, 0, 1, 0] {
        driver.world.asked.set(None);
        driver.world.share.set(Some(share));
        driver.device.poll(&driver.world);
        assert_eq!(driver.world.asked.get(), Some(VcpuId(0)), "with a share of {share}");
    }
    driver.world.share.set(None);
    driver.settle(&mut runs);
    let told = driver.completions();
    assert_eq!(told.iter().map(|&one| (status(one), one.value)).collect::<Vec<_>>(), [(EnclaveStatus::Outcall, 5)]);
}

/// An enclave is let run by the vCPU that has rung for it, whichever finds that it waits: one that never ends would keep another from ending
/// it.
#[test]
fn who_rings_lets_it_run() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    for id in 1..=2 {
        made(&mut driver, id);
    }
    for id in [1, 2] {
        driver.world.caller.set(VcpuId(id));
        driver.put(&enter(id.into(), 0).to_bytes());
        driver.ring();
    }
    // The second one's command was inserted, and rung for, while the first one's waited; a third one looks.
    driver.world.caller.set(VcpuId(3));
    for id in [1, 2] {
        driver.world.asked.set(None);
        driver.device.poll(&driver.world);
        assert_eq!(driver.world.asked.get(), Some(VcpuId(id)));
        assert!(!driver.world.goes_on.get());
        let others = (0..8).filter(|&other| other != id);
        assert!(others.map(VcpuId).all(|other| driver.device.take_run(other).is_none()));
        let run = driver.device.take_run(VcpuId(id)).unwrap();
        driver.device.left(&run, Leave::Interrupted, &driver.world);
    }
    let told = driver.completions();
    assert_eq!(told.iter().map(|one| one.enclave).collect::<Vec<_>>(), [1, 2]);
}

/// Who has rung for what is in the ring is not saved: whoever finds it lets it run.
#[test]
fn what_was_rung_for_before_a_restore_is_anybodys() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    let expected = measured(&driver.world);
    driver.world.poke(EXPECTED, &expected);
    driver.world.caller.set(VcpuId(1));
    driver.world.share.set(Some(0));
    for command in [create(MEMORY, 1), add(1, 0, 1), finalise(1), enter(1, 0)] {
        driver.put(&command.to_bytes());
    }
    driver.ring();
    let mut out = Writer::new();
    driver.device.save_to(&mut out);
    driver.device.restore_from(&mut Reader::new(&out.finish().unwrap())).unwrap();
    driver.world.caller.set(VcpuId(2));
    driver.world.share.set(None);
    driver.device.poll(&driver.world);
    assert_eq!(driver.world.asked.get(), Some(VcpuId(2)));
    assert!(driver.device.take_run(VcpuId(2)).is_some());
}

/// What the host lacks is not the guest's mistake.
#[test]
fn a_host_without_memory_is_told_as_the_mechanisms_failure() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 4);
    driver.world.has_nothing.set(true);
    assert_eq!(status(driver.command(&create(MEMORY, 1), &mut runs)), EnclaveStatus::Mechanism);
    assert!(driver.world.taken.borrow().is_empty());
    driver.world.has_nothing.set(false);
    driver.command(&create(MEMORY, 1), &mut runs);
    driver.world.has_nothing.set(true);
    assert_eq!(status(driver.command(&add(2, 0, 1), &mut runs)), EnclaveStatus::Mechanism);
    driver.world.has_nothing.set(false);
    assert_eq!(status(driver.command(&enter(2, 0), &mut runs)), EnclaveStatus::State);
    assert_eq!(status(driver.command(&command(EnclaveOpcode::Destroy, 2), &mut runs)), EnclaveStatus::Done);
    // Hardware that fails while it runs.
    let expected = measured(&driver.world);
    driver.world.poke(EXPECTED, &expected);
    for command in [create(MEMORY, 1), add(3, 0, 1), finalise(3)] {
        assert_eq!(status(driver.command(&command, &mut runs)), EnclaveStatus::Done);
    }
    assert_eq!(status(driver.command(&enter(3, 0), &mut |_| Leave::Failed)), EnclaveStatus::Mechanism);
    assert_eq!(status(driver.command(&enter(3, 0), &mut runs)), EnclaveStatus::State);
}
