//! A VM's saved state, which may come from any file: read, and put into every part of a VM.
//!
//! The input changes bytes of a valid state, since no fuzzer finds one by itself. Whatever is accepted must be written as the
//! same bytes again, and a part that takes a state must give the same state back, but for a network
//! device that had another port's address.

use abi::bundle::{Calls, Doors};
use clock::GuestClock;
use clock::saved::{Away, Clock, Timer};
use cpu::saved::{Name, SavedRegisters};
use devices::{ClockPage, Device, GenerationId, GenericWatchdog, Pl031, Pl061, Uart};
use pack::{Boxed, Damaged, Reader, Writer};
use services::psci::{Start, VmPower};
use snapshot::{SavedCpu, SavedMachine, SavedTime, SavedVcpu, SavedVm};
use units::{ByteOrder, Hz, Ipa, Range, Ticks, VcpuId};
use vgic::Vgic;
use virtio::net::NoLink;
use virtio::{Block, Console, Entropy, Mmio, Net};
use vm::{Life, SavedWatchdogs, Task, Watchdogs};
use vmware::{Config, Limits, Service};

const HOST: Hz = Hz(62_500_000);
const RAM: Range<Ipa> = Range { start: Ipa(0x4000_0000), size: 0x1000_0000 };
const GIC: vgic::Config = vgic::Config {
    vcpus: 2,
    list_registers: 4,
    priority_bits: 5,
    preemption_bits: 5,
    tells_of_group_0: true,
    traps_deactivation: true,
};
/// Long enough after the host's start for most of what a state may say to have been before.
const NOW: u64 = 1 << 40;

/// Each three bytes of `data` after the first are a place and a value; the first says how many bytes are cut off.
pub fn saved_vm(data: &[u8]) {
    let Some((&cut, changes)) = data.split_first() else { return };
    let mut bytes = good();
    let length = bytes.len();
    for change in changes.chunks_exact(3) {
        bytes[usize::from(u16::from_le_bytes([change[0], change[1]])) % length] = change[2];
    }
    // Mostly nothing is.
    bytes.truncate(length - usize::from(cut.saturating_sub(200)));
    look(&bytes);
    look(data);
}

fn look(bytes: &[u8]) {
    let Ok(saved) = SavedVm::from_bytes(bytes) else { return };
    assert_eq!(saved.to_bytes().as_deref(), Ok(bytes));
    let SavedVm { machine, time, life, gic, vcpus, devices, watchdogs, calls } = saved;
    let _ = machine.compare(&shape());
    if let Ok(clock) = GuestClock::restore(&time.clock, HOST, Ticks(NOW)) {
        let virtual_count = if clock.hardware_offset().is_some() { time.clock.count } else { time.clock.virtual_count };
        assert_eq!(clock.save(Ticks(NOW), false), Clock { virtual_count, ..time.clock });
    }
    let mut other = paused();
    if other.restore(&life, other.begun()).is_ok() {
        assert_eq!(other.save(), Some(life));
    }
    if let Ok(put) = Vgic::restore(GIC, &gic) {
        // Of vCPUs that are not there nothing is kept.
        let once = put.save().expect("nothing is loaded");
        assert_eq!(Vgic::restore(GIC, &once).expect("it was just saved").save(), Ok(once));
    }
    for vcpu in &vcpus {
        let _ = vcpu.stolen_here(HOST.0);
    }
    let mut all = every_device();
    if put(&mut all, &devices).is_ok() {
        let once = taken(&all);
        // The network device, which is the last, keeps its port's address, and tells the driver in a state with another one so. By
        // the next restore nothing is new.
        let address = devices.windows(10).rposition(|name| name == b"virtio-net").expect("it was put") + 16;
        if once[address..address + 6] == devices[address..address + 6] {
            assert_eq!(once, devices);
        }
        assert_eq!(once[..address], devices[..address]);
        let mut all = every_device();
        put(&mut all, &once).expect("it was just saved");
        assert_eq!(taken(&all), once);
    }
    let mut all = Watchdogs::new(&Doors::default());
    if all.restore(&watchdogs, other.begun()).is_ok() {
        assert_eq!(all.save(0), watchdogs);
    }
    let mut service = service();
    if let Some(calls) = calls
        && service.restore(calls.into_inner(), NOW).is_ok()
    {
        let once = service.save(NOW).expect("there is memory");
        service.restore(once.clone(), NOW).expect("it was just saved");
        assert_eq!(service.save(NOW), Ok(once));
        // A reply of a few bytes says that there is no room for one, and each channel may have that.
        assert!(service.buffered() <= Limits::DEFAULT.buffers + Limits::DEFAULT.channels * 32);
    }
}

fn shape() -> SavedMachine {
    SavedMachine {
        vcpus: 2,
        memory: RAM.size,
        devices: 8,
        memory_timer: false,
        identification: [0; cpu::id::COUNT],
        cpu: SavedCpu::default(),
    }
}

fn paused() -> Life<()> {
    let mut life = Life::new(VmPower::new(2, RAM));
    life.start();
    assert_eq!(life.next_task(VcpuId(0)), Some(Task::Boot));
    life.started(Start { vcpu: VcpuId(0), entry: RAM.start, context: 0, order: ByteOrder::Little }, 0);
    assert!(life.next_task(VcpuId(0)).is_some());
    life.pause();
    life
}

fn service() -> Service {
    let limits = Limits::DEFAULT;
    let (user, kernel) = (Calls::ALL, Calls::ALL);
    Service::new(Config { uuid: [0; 16], memory: RAM.size, megahertz: 1, time_sync: true, limits, user, kernel }, 0)
}

fn every_device() -> [Box<dyn Device>; 11] {
    fn zeros(bytes: &mut [u8]) {
        bytes.fill(0);
    }
    [
        Box::new(Uart::new(None)),
        Box::new(Pl031::new()),
        Box::new(Pl061::new()),
        Box::new(GenericWatchdog::new()),
        Box::new(GenerationId::new(zeros as fn(&mut [u8]))),
        Box::new(ClockPage::new(zeros as fn(&mut [u8]))),
        Box::new(Mmio::new(Console::new())),
        Box::new(Mmio::new(Entropy::new(zeros as fn(&mut [u8])))),
        Box::new(Mmio::new(Block::new([0; 2048], 1, "disk"))),
        Box::new(Mmio::new(Block::with_changes([0; 2048], 1, "written", 0..2 * 4096))),
        Box::new(Mmio::new(Net::new(NoLink::default(), [2, 0, 0, 0, 0, 1], 1500))),
    ]
}

fn taken(devices: &[Box<dyn Device>]) -> Vec<u8> {
    let mut out = Writer::new();
    devices.iter().for_each(|device| device.save_to(&mut out));
    out.finish().expect("there is memory")
}

fn put(devices: &mut [Box<dyn Device>], saved: &[u8]) -> Result<(), Damaged> {
    let mut from = Reader::new(saved);
    devices.iter_mut().try_for_each(|device| device.restore_from(&mut from))?;
    if from.left() > 0 { Err(Damaged::Long("devices")) } else { Ok(()) }
}

/// A state that has a little of everything.
pub fn good() -> Vec<u8> {
    let vcpu = |number| SavedVcpu {
        number,
        registers: SavedRegisters { system: vec![(Name::new("sctlr_el1"), 1)], pstate: 5, ..SavedRegisters::default() },
        physical_timer: Timer { version: Timer::VERSION, control: 1, compare: 7 },
        stolen: 9,
        stolen_frequency: HOST.0,
    };
    let mut service = service();
    service.set(b"guestinfo.a", b"value").expect("there is room");
    let saved = SavedVm {
        machine: Boxed::new(shape()).expect("there is memory"),
        time: SavedTime {
            clock: Clock { count: 5, ..GuestClock::like_the_hosts(Ticks(0), HOST).save(Ticks(NOW), false) },
            away: Away::Advance,
        },
        life: paused().save().expect("it is paused"),
        gic: Boxed::new(Vgic::new(GIC).save().expect("nothing is loaded")).expect("there is memory"),
        vcpus: vec![vcpu(0), vcpu(1)],
        devices: taken(&every_device()),
        watchdogs: SavedWatchdogs { has_begun: true, ..Watchdogs::new(&Doors::default()).save(0) },
        calls: Some(Boxed::new(service.save(NOW).expect("there is memory")).expect("there is memory")),
    };
    saved.to_bytes().expect("there is memory")
}
