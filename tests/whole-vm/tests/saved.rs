//! A random VM, saved, restored in a new one and saved again, is the same file; and a restore without memory says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use abi::bundle::Doors;
use abi::calls::{self, vmware};
use devices::{
    SavedClockPage, SavedGenerationId, SavedGenericWatchdog, SavedMemoryTimer, SavedPl031, SavedPl061, SavedUart,
};
use enclave::SavedEnclaveDevice;
use pack::{Damaged, Part, Reader};
use proptest::prelude::*;
use snapshot::SavedVm;
use snapshot::file::FileError;
use units::VcpuId;
use virtio::saved::{SavedBlock, SavedConsole, SavedEntropy, SavedMmio, SavedNet};
use whole_vm::file::read;
use whole_vm::play::played;
use whole_vm::{Cause, WholeVm};

#[global_allocator]
static HEAP: scarce::Heap = scarce::Heap;

const FIRST: VcpuId = VcpuId(0);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_random_vm_saved_restored_and_saved_is_the_same_bytes(data in proptest::collection::vec(any::<u8>(), 0..6000)) {
        if let Some((vm, policy, stops)) = played(&data) {
            again(&vm, policy, stops);
        }
    }
}

#[test]
fn a_vm_with_a_little_of_everything_is_the_same_bytes() {
    let (vm, policy) = rich();
    again(&vm, policy, true);
}

fn again(vm: &WholeVm, policy: Doors, stops: bool) {
    let file = vm.to_file();
    let mut other = WholeVm::for_state(policy, stops);
    // The host that it goes on with has counted further.
    other.pass(1 << 40);
    other.restore_file(&file).expect("it was just saved");
    assert_eq!(vm.save(), other.save());
    assert!(file == other.to_file(), "memory is another one");
}

/// Calls through the door that `HVC #0x86` is.
fn door(vm: &mut WholeVm, values: &[u64]) -> [u64; 7] {
    (0..7).for_each(|number| vm.set_register(FIRST, number, 0));
    (0..).zip(values).for_each(|(number, &value)| vm.set_register(FIRST, number, value));
    vm.set_register(FIRST, 7, calls::LOW.into());
    vm.exit(FIRST, Cause { esr: 0x5a00_0086, far: 0, hpfar: 0 });
    std::array::from_fn(|number| vm.register(FIRST, number as u8))
}

/// A step of a channel, by its number and cookies.
fn step(vm: &mut WholeVm, channel: (u64, u64, u64), step: u64, value: u64) -> [u64; 7] {
    let (id, high, low) = channel;
    let port = u64::from(vmware::PORT_LOW);
    door(
        vm,
        &[vmware::MAGIC.into(), value, step << 16 | u64::from(vmware::command::MESSAGE), id << 16 | port, high, low],
    )
}

fn open(vm: &mut WholeVm, protocol: u64) -> (u64, u64, u64) {
    let x = step(vm, (0, 0, 0), 0, protocol);
    (x[3] >> 16, x[4], x[5])
}

fn send(vm: &mut WholeVm, channel: (u64, u64, u64), message: &[u8], words: usize) {
    step(vm, channel, 1, message.len() as u64);
    for word in message.chunks(4).take(words) {
        let mut bytes = [0; 4];
        bytes[..word.len()].copy_from_slice(word);
        step(vm, channel, 2, u32::from_le_bytes(bytes).into());
    }
}

/// A load or store of W1.
fn access(vm: &mut WholeVm, at: u64, stored: Option<u64>) {
    stored.into_iter().for_each(|value| vm.set_register(FIRST, 1, value));
    let write = if stored.is_some() { 1 << 6 } else { 0 };
    let esr = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 1 << 16 | write | 7;
    vm.exit(FIRST, Cause { esr, far: at, hpfar: at >> 12 << 4 });
}

/// Writes a system register, by op0, op1, CRn, CRm and op2.
fn system_register(vm: &mut WholeVm, (op0, op1, crn, crm, op2): (u64, u64, u64, u64, u64), value: u64) {
    vm.set_register(FIRST, 1, value);
    let iss = op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | 1 << 5 | crm << 1;
    vm.exit(FIRST, Cause { esr: 0x18 << 26 | 1 << 25 | iss, far: 0, hpfar: 0 });
}

/// The virtio console is set up, with event indices, and given more to send than goes out.
fn transmit(vm: &mut WholeVm) {
    let (console, ram) = (0x0a00_0000, vm.ram().0);
    vm.exit(FIRST, Cause { esr: 0x9200_0007, far: ram, hpfar: ram >> 12 << 4 });
    // A descriptor of 6,000 bytes, and the index of one that is offered.
    vm.store(ram, ram + 0x3000);
    vm.store(ram + 8, 6000);
    vm.store(ram + 0x1000, 1 << 16);
    let features = [(0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 1 << 28 | 1 << 29), (0x70, 11)];
    let queue = [(0x30, 1), (0x38, 8), (0x80, ram), (0x90, ram + 0x1000), (0xa0, ram + 0x2000), (0x44, 1), (0x70, 15)];
    let all = features.into_iter().chain(queue).chain([(0x50, 1)]);
    all.for_each(|(offset, value)| access(vm, console + offset, Some(value)));
}

/// The disk is set up. A sector is written, and its block discarded; then three are read, two of which go where the guest has seen no
/// memory yet.
fn read_disk(vm: &mut WholeVm) {
    let (disk, ram) = (0x0a00_0400, vm.ram().0 + 0x1_0000);
    let [unseen, other] = [4, 6].map(|mebibytes| vm.ram().0 + (mebibytes << 20));
    // The header, of sector 3; where the data goes, and the answer.
    vm.store(ram + 0x3008, 3);
    let room = [(ram + 0x4000, 512, 3), (unseen, 512, 3), (other, 512, 3), (ram + 0x3010, 1, 2)];
    let pieces = [(ram + 0x3000, 16_u64, 1_u64)].into_iter().chain(room);
    for (index, (at, length, flags)) in (0..).zip(pieces) {
        vm.store(ram + index * 16, at);
        vm.store(ram + index * 16 + 8, length | flags << 32 | (index + 1) << 48);
    }
    // A header and a sector; a header and a range of eight: both are read, and answered by a byte each.
    vm.store(ram + 0x5000, 1);
    vm.store(ram + 0x6000, 11);
    vm.store(ram + 0x6018, 8);
    for (index, at, length) in [(5, ram + 0x5000, 528_u64), (7, ram + 0x6000, 32)] {
        vm.store(ram + index * 16, at);
        vm.store(ram + index * 16 + 8, length | 1 << 32 | (index + 1) << 48);
        vm.store(ram + (index + 1) * 16, at + 0x800);
        vm.store(ram + (index + 1) * 16 + 8, 1 | 2 << 32);
    }
    vm.store(ram + 0x1000, 3 << 16 | 5 << 32 | 7 << 48);
    let features = [(0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 1 << 28 | 1 << 29), (0x70, 11)];
    let queue = [(0x30, 0), (0x38, 16), (0x80, ram), (0x90, ram + 0x1000), (0xa0, ram + 0x2000), (0x44, 1), (0x70, 15)];
    let all = features.into_iter().chain(queue).chain([(0x50, 0)]);
    all.for_each(|(offset, value)| access(vm, disk + offset, Some(value)));
}

/// An SGI and an SPI are active while their priorities and groups change: GICR_IGROUPR0 and GICR_IPRIORITYR0, then ISACTIVER, then others.
fn change_while_active(vm: &mut WholeVm) {
    for (frame, word, bytes) in [(0x080b_0000, 0, 0), (0x0800_0000, 3 * 4, 96)] {
        let writes = [(0x80 + word, u32::MAX), (0x400 + bytes, 0x8080_8080), (0x300 + word, 1), (0x80 + word, 0)];
        for (offset, value) in writes.into_iter().chain([(0x400 + bytes, 0x4040_4040)]) {
            access(vm, frame + offset, Some(value.into()));
        }
    }
}

/// The network device is set up, and a frame to everybody offered, which takes it several turns.
fn flood(vm: &mut WholeVm) {
    let (net, ram) = (0x0a00_0600, vm.ram().0 + 0x2_0000);
    vm.store(ram, ram + 0x3000);
    vm.store(ram + 8, 100);
    vm.store(ram + 0x1000, 1 << 16);
    // Behind a header of twelve bytes: to everybody, from 02:00:00:00:00:00.
    vm.store(ram + 0x3008, 0xffff_ffff_0000_0000);
    vm.store(ram + 0x3010, 0x0002_ffff);
    let features = [(0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 0x1_0021), (0x70, 11)];
    let queue = [(0x30, 1), (0x38, 8), (0x80, ram), (0x90, ram + 0x1000), (0xa0, ram + 0x2000), (0x44, 1), (0x70, 15)];
    let all = features.into_iter().chain(queue).chain([(0x50, 1)]);
    all.for_each(|(offset, value)| access(vm, net + offset, Some(value)));
}

/// A VM that has something wherever it can, paused.
fn rich() -> (WholeVm, Doors) {
    let policy = Doors {
        vmware: true,
        wfe: true,
        watchdog_choices: 0x1f,
        watchdog_milliseconds: 500,
        generic_watchdog: true,
        user_calls: WholeVm::every_call(),
        kernel_calls: WholeVm::every_call(),
        ..Doors::default()
    };
    let mut vm = WholeVm::running(policy, true);
    vm.pass(1000);
    let asks = open(&mut vm, (vmware::channel::RPCI | vmware::channel::WITH_COOKIES).into());
    let messages = [
        "info-set guestinfo.ip 10.0.0.1",
        "info-set guestinfo.vmtools.versionString 12",
        "SetGuestInfo  1 host",
        "SetGuestInfo  5 Linux",
        "SetGuestInfo  7 5000",
        "tools.capability.statechange",
        "vmx.set_option synctime 0 1",
        // Its reply is left.
        "info-get guestinfo.ip",
    ];
    for message in messages {
        step(&mut vm, asks, 5, 1);
        send(&mut vm, asks, message.as_bytes(), usize::MAX);
    }
    step(&mut vm, asks, 3, 0);
    step(&mut vm, asks, 4, 0);
    let arrives = open(&mut vm, vmware::channel::RPCI.into());
    send(&mut vm, arrives, b"info-set guestinfo.half", 3);
    let tools = open(&mut vm, (vmware::channel::TCLO | vmware::channel::WITH_COOKIES).into());
    for _ in 0..2 {
        send(&mut vm, tools, b"", 0);
        step(&mut vm, tools, 3, 0);
        step(&mut vm, tools, 5, 1);
        send(&mut vm, tools, b"OK ", 1);
    }
    step(&mut vm, tools, 3, 0);
    access(&mut vm, 0x0900_0038, Some(0x50));
    access(&mut vm, 0x0900_002c, Some(0x70));
    access(&mut vm, 0x0900_0030, Some(0x301));
    // CPU_ON of the second vCPU; CNTP_CVAL_EL0 and CNTP_CTL_EL0; MDSCR_EL1 and OSLAR_EL1.
    (0..).zip([0xc400_0003, 1, vm.ram().0, 7]).for_each(|(number, value)| vm.set_register(FIRST, number, value));
    vm.exit(FIRST, Cause { esr: 0x5a00_0000, far: 0, hpfar: 0 });
    for (encoding, value) in
        [((3, 3, 14, 2, 2), 5000), ((3, 3, 14, 2, 1), 1), ((2, 0, 0, 2, 2), 1 << 15), ((2, 0, 1, 0, 4), 1)]
    {
        system_register(&mut vm, encoding, value);
    }
    // DBGCLAIMSET_EL1, DBGBVR1_EL1, DBGWVR0_EL1, MDCCINT_EL1.
    system_register(&mut vm, (2, 0, 7, 8, 6), 3);
    system_register(&mut vm, (2, 0, 0, 1, 4), 0x4000_0000);
    system_register(&mut vm, (2, 0, 0, 0, 6), 0x4000_0000);
    system_register(&mut vm, (2, 0, 0, 2, 0), 3 << 29);
    // A PL031 whose alarm has rung: RTCMR is RTCDR.
    access(&mut vm, 0x0901_0000, None);
    let now = vm.register(FIRST, 1);
    access(&mut vm, 0x0901_0004, Some(now));
    // A Generic Watchdog whose second signal has risen: WOR, WCS.
    access(&mut vm, 0x0b03_0008, Some(10));
    access(&mut vm, 0x0b03_0000, Some(1));
    vm.pass(11);
    vm.pass(11);
    transmit(&mut vm);
    vm.type_in(&[b'u'; 200]);
    (0..400).for_each(|_| access(&mut vm, 0x0900_0000, Some(b'x'.into())));
    read_disk(&mut vm);
    change_while_active(&mut vm);
    flood(&mut vm);
    vm.pause();
    (vm, policy)
}

/// With a heap that ends at any point, a file is refused for that reason, and no other; nothing is lost, and when there is memory again
/// the same VM takes it.
#[test]
fn a_restore_without_memory_says_so_wherever_it_ends() {
    let (vm, policy) = rich();
    let file = vm.to_file();
    let mut refused = 0;
    for allocations in 0.. {
        let mut other = WholeVm::for_state(policy, true);
        let mut restored = scarce::with_only(allocations, || {
            read(&file, |_, _, _| {}).and_then(|state| other.put_in(state).map_err(FileError::State))
        });
        if restored == Err(FileError::State(Damaged::NoMemory)) {
            restored = Err(FileError::NoMemory);
        }
        match restored {
            Ok(()) => break,
            Err(error) => assert_eq!(error, FileError::NoMemory, "after {allocations} allocations"),
        }
        refused += 1;
    }
    assert!(refused > 30, "{refused} allocations are too few for what is in it");
    let mut other = WholeVm::for_state(policy, true);
    let ((), held) = scarce::most_held(|| other.restore_file(&file).expect("there is memory"));
    assert!(held > 0 && vm.save() == other.save());
}

type Fields = BTreeMap<String, Vec<String>>;

/// Each field of a value by its path, with all that it holds in lists.
fn fields(into: &mut Fields, begin: &str, value: &impl Debug) {
    let text = format!("{value:#?}");
    let mut path: Vec<String> = Vec::new();
    for line in text.lines() {
        let depth = (line.len() - line.trim_start().len()) / 4;
        let line = line.trim().trim_end_matches(',');
        let (name, value) = line.split_once(": ").unwrap_or(("", line));
        path.truncate(depth);
        path.push(name.to_owned());
        if !value.ends_with(['{', '[', '(', ')', ']', '}']) || value.ends_with("[]") {
            let names: Vec<&str> = path.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
            into.entry(format!("{begin}.{}", names.join("."))).or_default().push(value.to_owned());
        }
    }
}

fn all_fields(saved: &SavedVm) -> Fields {
    fn device<P: Part + Debug>(into: &mut Fields, from: &mut Reader<'_>) -> bool {
        let mut look = from.clone();
        let Ok(part) = look.part::<P>() else { return false };
        fields(into, P::NAME, &part);
        *from = look;
        true
    }
    let mut all = Fields::new();
    let SavedVm { machine: _, time, life, gic, vcpus, devices, watchdogs, calls } = saved;
    fields(&mut all, "time", time);
    fields(&mut all, "life", life);
    fields(&mut all, "gic", gic);
    // By the number: beside a VM with more of them, each list of all their values would differ.
    vcpus.iter().filter(|vcpu| vcpu.number == 0).for_each(|vcpu| fields(&mut all, "vcpus", vcpu));
    fields(&mut all, "watchdogs", watchdogs);
    fields(&mut all, "calls", calls);
    let mut from = Reader::new(devices);
    while from.left() > 0 {
        let known = device::<SavedUart>(&mut all, &mut from)
            || device::<SavedPl031>(&mut all, &mut from)
            || device::<SavedPl061>(&mut all, &mut from)
            || device::<SavedGenericWatchdog>(&mut all, &mut from)
            || device::<SavedMemoryTimer>(&mut all, &mut from)
            || device::<SavedGenerationId>(&mut all, &mut from)
            || device::<SavedClockPage>(&mut all, &mut from)
            || device::<SavedEnclaveDevice>(&mut all, &mut from)
            || device::<SavedMmio<SavedConsole>>(&mut all, &mut from)
            || device::<SavedMmio<SavedEntropy>>(&mut all, &mut from)
            || device::<SavedMmio<SavedBlock>>(&mut all, &mut from)
            || device::<SavedMmio<SavedNet>>(&mut all, &mut from);
        assert!(known, "a device that is not known here");
    }
    all
}

/// The tests above would notice a field that is forgotten: in one VM or another each has a value that a new VM's has not.
#[test]
fn no_field_is_always_as_in_a_new_vm() {
    let new = |policy, stops| {
        let mut vm = WholeVm::running(policy, stops);
        vm.pause();
        all_fields(&vm.save().expect("it stands still"))
    };
    let (mut seen, mut differs) = (BTreeSet::new(), BTreeSet::new());
    let mut look = |vm: &WholeVm, policy, stops| {
        let (found, new) = (all_fields(&vm.save().expect("it stands still")), new(policy, stops));
        for path in found.keys().chain(new.keys()) {
            seen.insert(path.clone());
            if found.get(path) != new.get(path) {
                differs.insert(path.clone());
            }
        }
    };
    let (vm, policy) = rich();
    look(&vm, policy, true);
    let mut random = Random(1);
    for round in 0..1500_usize {
        let data: Vec<u8> = (0..50 + round % 400).map(|_| random.next() as u8).collect();
        if let Some((mut vm, policy, stops)) = played(&data) {
            scatter(&mut vm, &mut random);
            if vm.save().is_none() {
                continue;
            }
            look(&vm, policy, stops);
            if round % 16 == 0 {
                again(&vm, policy, stops);
            }
        }
    }
    let alike: Vec<_> = seen.difference(&differs).map(String::as_str).collect();
    assert_eq!(alike, ALIKE, "fields that never differ");
}

/// A linear congruential generator: the same numbers each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 24
    }
}

/// Where devices have registers, and how far those reach.
const DEVICES: [(u64, u64); 13] = [
    (0x0800_0000, 0x500),
    (0x0800_0c00, 0x20),
    (0x0800_6000, 0x400),
    (0x080a_0000, 0x80),
    (0x080b_0000, 0xd00),
    (0x0900_0000, 0x50),
    (0x0901_0000, 0x20),
    (0x0903_0000, 0x424),
    (0x0910_0000, 0x20),
    (0x0911_0000, 0x20),
    (0x0912_0000, 0x88),
    (0x0913_0000, 0x40),
    (0x0a00_0000, 0x800),
];

/// The guest writes anything into the registers of its devices, and sets some of its virtio devices up.
fn scatter(vm: &mut WholeVm, random: &mut Random) {
    vm.resume();
    let ram = vm.ram().0;
    if random.next() & 1 == 0 {
        // What will be a driver's ring offers a buffer, the first of a table of nothing.
        access(vm, ram, None);
        vm.store(ram + 0x1000, 1 << 16);
    }
    let places =
        [0x0a00_0000, 0x0a00_0200, 0x0a00_0400, 0x0a00_0600, 0x0b07_0000, 0x0b08_0000, 0x0b09_0000, 0x0b0a_0000];
    for virtio in places {
        if random.next() & 1 == 0 {
            let kind = random.next() & 1;
            let low = [(0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 0), (0x70, 11), (0x30, kind), (0x38, 8)];
            let high = [(0x80, ram), (0x90, ram + 0x1000), (0xa0, ram + 0x2000), (0x44, 1), (0x70, 15), (0x50, kind)];
            low.into_iter().chain(high).for_each(|(offset, value)| access(vm, virtio + offset, Some(value)));
        }
    }
    for _ in 0..300 {
        let (base, size) = DEVICES[random.next() as usize % DEVICES.len()];
        let (offset, value) = ((random.next() % size) & !3, random.next() >> (random.next() & 31));
        access(vm, base + offset, Some(value));
    }
    vm.pause();
}

/// Fields that no VM of this file has with another value, for the reason that stands above them. So nothing here tells whether they are
/// forgotten; what does is named beside that: mostly the test of the part itself, with any values in all of its fields.
const ALIKE: [&str; 66] = [
    // Where tools are late, or the host's clock was set: `core/vmware::what_was_put_in_is_taken_out`.
    "calls.requests.busy",
    "calls.requests.quiet",
    "calls.requests.time_set",
    // Random bytes are zeros here, and an edge is over at once: `core/devices`, a test in the file of each device.
    "clock-page.has_changed",
    // Nobody makes enclaves here, whose memory nothing isolates: `core/enclave`,
    // `enclaves_are_gone_behind_a_restore_and_the_guest_is_told` and `a_state_that_cannot_be_is_refused`.
    "enclave.broken",
    "enclave.commands",
    "enclave.commands_bits",
    "enclave.commands_head",
    "enclave.commands_tail",
    "enclave.completions",
    "enclave.completions_bits",
    "enclave.completions_head",
    "enclave.completions_tail",
    "enclave.gone",
    "enclave.interrupts",
    "enclave.made",
    "enclave.masked",
    "enclave.waiting",
    "enclave.waiting_cookie",
    "enclave.waiting_enclave",
    "enclave.waiting_length",
    "enclave.waiting_status",
    "enclave.waiting_value",
    // As the clock page.
    "generation.first",
    "generation.has_changed",
    "generation.second",
    // All VMs here have one configuration; and what a guest's timer does by itself: `core/vgic`, the test `against_naive`.
    "gic.preemption_bits",
    "gic.priority_bits",
    "gic.vcpu_count",
    "gic.vcpus.private.level",
    // A vCPU that is being switched on has begun before the VM stands still: `core/services::power_that_was_put_in_is_taken_out`,
    // `core/vm::what_was_put_in_is_taken_out` of a life.
    "life.power.count",
    "life.power.pending",
    "life.starts",
    // One frequency, which no guest can write: `core/devices/src/memory_timer.rs`.
    "memory-timer.frequency",
    "memory-timer.physical.version",
    "memory-timer.virtual_.version",
    // One host, and one site file for both VMs: `core/clock::what_is_saved_comes_back`.
    "time.away",
    "time.clock.frequency",
    "time.clock.is_stopped",
    "time.clock.rate",
    "time.clock.version",
    // No instruction runs here, and no thread waits for a CPU. Registers: `core/cpu::what_was_put_in_is_taken_out`, the payload
    // `registers`. Stolen time: `tests/time.rs`.
    "vcpus.number",
    "vcpus.physical_timer.version",
    "vcpus.registers.active_priorities_0",
    "vcpus.registers.active_priorities_1",
    "vcpus.registers.fpcr",
    "vcpus.registers.fpsr",
    "vcpus.registers.q",
    "vcpus.stolen",
    "vcpus.stolen_frequency",
    // What is on the disk is the same in all of them: `core/virtio::a_disk_finds_its_contents_again`. And what a driver seldom leaves half done:
    // `core/virtio::what_was_put_in_is_taken_out`.
    "virtio-mmio.device.changes.free",
    "virtio-mmio.device.changes.pages",
    "virtio-mmio.device.checksum",
    "virtio-mmio.device.config",
    "virtio-mmio.device.filling",
    // Of a port of one site file, and a frame that is sent before its VM can be saved:
    // `core/virtio::a_saved_device_returns_its_chain_and_sends_nothing_twice`.
    "virtio-mmio.device.mac",
    "virtio-mmio.device.mtu",
    "virtio-mmio.device.receiving",
    "virtio-mmio.device.request",
    "virtio-mmio.device.sectors",
    "virtio-mmio.device.sending",
    // These are armed by the site file alone: `core/vm::what_was_put_in_is_taken_out` of watchdogs.
    "watchdogs.has_begun",
    "watchdogs.own.action",
    "watchdogs.own.timeout",
    "watchdogs.vm.action",
    "watchdogs.vm.timeout",
];
