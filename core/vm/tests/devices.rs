//! The devices of a machine that has each kind twice: whom of them what comes from outside reaches.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use abi::bundle::{Disk, Disks, Doors, Port, Ports, Time, TimeSource, Vm};
use clock::GuestTicks;
use devices::memory::{GuestMemory, NoMemory};
use devices::{Access, Change, Device, GenericWatchdog, Moment, Outside, Place, Request, Slot, Stream, Wired};
use machine::{DeviceKind, MachinePlan, Row, Spec, TIMER_BASE, UART_BASE, VirtioKind, Wire};
use pack::Writer;
use units::{AccessSize, Hz, IPA_BITS, IntId, Ipa, Line, Range, VcpuId};
use virtio::net::NoLink;
use virtio::{Block, Net};

use vm::devices::{Deadlines, Holder, Keeper, NoDevices};
use vm::{AtExpiry, GuestCounter, machine};

/// Where the second one of each kind begins, and which SPI is its first line's: for one kind behind the other.
const SECOND: (u64, u32) = (0x0b00_0000, 64);

/// A device behind its lock.
struct Locked<D>(Mutex<Wired<D>>);

impl<D: Device + 'static> Locked<D> {
    fn with<R>(&self, work: impl FnOnce(&mut Wired<D>) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<D: Device + 'static> Slot for Locked<D> {
    fn read(&self, access: &Access, outside: &dyn Outside) -> u64 {
        self.with(|wired| wired.read(access, outside))
    }

    fn write(&self, access: &Access, value: u64, outside: &dyn Outside) {
        self.with(|wired| wired.write(access, value, outside));
    }

    fn enter(&self, work: &mut dyn FnMut(&mut Wired<dyn Device>)) {
        self.with(|wired| work(wired));
    }
}

struct Counted;

impl Holder for Counted {
    type Held<D: Device + 'static> = Arc<Locked<D>>;
    type Slot = Arc<dyn Slot>;
    type Link = NoLink;

    fn hold<D: Device + 'static>(device: Wired<D>, _: usize) -> Arc<Locked<D>> {
        Arc::new(Locked(Mutex::new(device)))
    }

    fn on_bus<D: Device + 'static>(held: &Arc<Locked<D>>) -> Arc<dyn Slot> {
        held.clone()
    }
}

type Devices = vm::devices::Devices<Counted>;

/// What is around the devices: a clock, and whoever sees their lines.
#[derive(Default)]
struct World {
    count: Cell<u64>,
    stood: Cell<u64>,
    lines: RefCell<Vec<(IntId, Line)>>,
}

impl Keeper<Counted> for World {
    fn work<D: Device + 'static, R>(&self, held: &Arc<Locked<D>>, work: impl FnOnce(&mut D, &dyn Outside) -> R) -> R {
        held.with(|wired| wired.work(self, |device| work(device, self)))
    }
}

impl Outside for World {
    fn seconds(&self) -> u64 {
        0
    }

    fn count(&self) -> u64 {
        self.count.get()
    }

    fn moment(&self) -> Moment {
        let (count, stood) = (self.count.get(), self.stood.get());
        Moment { count, period: None, time: Duration::ZERO, is_known: false, stood }
    }

    fn show(&self, _: usize, _: u64) {}

    fn caller(&self) -> Option<VcpuId> {
        None
    }

    fn memory(&self) -> &dyn GuestMemory {
        &NoMemory
    }

    fn has_room(&self, _: Stream) -> bool {
        false
    }

    fn send_byte(&self, _: Stream, _: u8) -> bool {
        false
    }

    fn send(&self, _: Stream, _: &[u8]) -> usize {
        0
    }

    fn set_line(&self, interrupt: IntId, line: Line) {
        self.lines.borrow_mut().push((interrupt, line));
    }

    fn request(&self, _: Request<'_>) {}
}

fn vm(disks: &[&'static str], source: TimeSource) -> Vm<&'static str, (), ()> {
    Vm {
        disks: Disks::of(disks.iter().map(|&serial| Disk::of_image((), serial))).expect("they are few"),
        ports: Ports::of([Port { network: "lan", vlan: 0, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }]).expect("it is one"),
        doors: Doors { generic_watchdog: true, ..Doors::default() },
        time: Time { source, ..Time::default() },
        ..Vm::new("vm", (), 2 << 20)
    }
}

/// A machine that has two of each kind: the second of each is behind all of the first ones.
fn twice() -> MachinePlan {
    let vm = vm(&["a"], TimeSource::Mmio);
    let once = machine(&vm, GuestCounter::USUAL).expect("there is such a machine");
    let (mut start, mut spi) = SECOND;
    let mut rows: Vec<Row> = once.rows().to_vec();
    for row in once.rows().iter().filter(|row| !matches!(row.device, DeviceKind::Flash | DeviceKind::VacantVirtio)) {
        let frames = row.frames.iter().zip((start..).step_by(0x1_0000));
        let frames = frames.map(|(frame, start)| Range { start: Ipa(start), size: frame.size }).collect();
        let lines = row.lines.iter().zip(spi..).map(|(line, spi)| Wire::spi(spi, line.trigger)).collect();
        rows.push(Row { device: row.device, frames, lines });
        (start, spi) = (start + 0x10_0000, spi + row.lines.len() as u32);
    }
    let spec = Spec {
        name: "twice",
        vcpus: 1,
        memory_bytes: vm.memory,
        ipa_bits: IPA_BITS,
        virtio: &[],
        generic_watchdog: true,
        enclave: true,
        counter_frequency: Hz(1_000_000),
        timers: once.timers(),
    };
    MachinePlan::with_devices(spec, rows).expect("there is room for two of each")
}

fn devices(plan: &MachinePlan, disks: usize, ports: u8) -> Result<Devices, NoDevices> {
    fn ones(bytes: &mut [u8]) {
        bytes.fill(1);
    }
    let disk = |_| virtio::Disk::<_, Infallible>::Image(Block::new(&[0; 512][..], 0, "disk"));
    let net = |last| Net::new(NoLink::default(), [2, 0, 0, 0, 0, last], 1500);
    Devices::new(plan, ones, (0..disks).map(disk), (0..ports).map(net))
}

/// The numbers of both devices of a kind.
fn both(plan: &MachinePlan, kind: DeviceKind) -> [usize; 2] {
    let rows = plan.rows().iter().enumerate();
    let slots: Vec<_> = rows.filter(|(_, row)| row.device == kind).map(|(slot, _)| slot).collect();
    slots.try_into().expect("there are two")
}

/// Whose states change by `work`.
fn changed(devices: &Devices, work: impl FnOnce()) -> Vec<usize> {
    let states = || -> Vec<_> {
        let saved = |slot: &dyn Slot| {
            let mut writer = Writer::new();
            slot.enter(&mut |wired| wired.save_to(&mut writer));
            writer.finish().expect("there is memory")
        };
        devices.bus().slots().map(saved).collect()
    };
    let before = states();
    work();
    let pairs = before.into_iter().zip(states()).enumerate();
    pairs.filter(|(_, (before, after))| before != after).map(|(slot, _)| slot).collect()
}

/// What is typed, and the power button, have one device each at their other end, however many there are.
#[test]
fn what_there_is_once_outside_reaches_the_first_of_its_kind() {
    let (plan, world) = (twice(), World::default());
    let devices = devices(&plan, 2, 2).unwrap();
    let [first, _] = both(&plan, DeviceKind::Pl011);
    assert_eq!(plan.rows()[first].start(), Ipa(UART_BASE));
    assert_eq!(changed(&devices, || devices.receive(&world, b"typed")), [first]);
    let uart = devices.uart().with(|wired| wired.device().save()).unwrap();
    assert_eq!([uart.model.received, uart.input].concat(), b"typed");
    let [first, _] = both(&plan, DeviceKind::Virtio(VirtioKind::Console));
    assert_eq!(changed(&devices, || devices.receive_virtio(&world, b"typed")), [first]);
    let [first, _] = both(&plan, DeviceKind::Pl061);
    assert_eq!(changed(&devices, || devices.set_power_button(&world, true)), [first]);
    assert_eq!(changed(&devices, || devices.set_power_button(&world, true)), [0; 0], "it is pressed already");
    assert_eq!(changed(&devices, || devices.set_power_button(&world, false)), [first]);
}

/// The short path of an exit looks for a timer at one place; whoever polls them wants all.
#[test]
fn all_timers_are_told_and_the_one_where_it_is_looked_for_is_known() {
    let plan = twice();
    let devices = devices(&plan, 2, 2).unwrap();
    let [first, _] = both(&plan, DeviceKind::Timer);
    assert_eq!(plan.rows()[first].frames[1].start, Ipa(TIMER_BASE));
    let [one, other] = devices.timers() else { panic!("there are two") };
    let quick = devices.quick_timer().unwrap();
    assert!(Arc::ptr_eq(quick, one) && !Arc::ptr_eq(quick, other));
    let without = machine(&vm(&[], TimeSource::Cp15), GuestCounter::USUAL).unwrap();
    let none = self::devices(&without, 0, 1).unwrap();
    assert!(none.timers().is_empty() && none.quick_timer().is_none());
}

/// What the guest hears by, of both clock pages: the edge's end is seen only when it goes on.
#[test]
fn each_clock_page_tells_its_guest_by_an_edge() {
    let (plan, world) = (twice(), World::default());
    let devices = devices(&plan, 2, 2).unwrap();
    for slot in devices.bus().slots() {
        slot.enter(&mut |wired| wired.change(Change::Reset, &world));
    }
    let pages = both(&plan, DeviceKind::ClockPage);
    let [one, other] = pages.map(|slot| plan.rows()[slot].lines[0].interrupt);
    let (up, down) = (Line::High, Line::Low);
    let told = [(one, up), (one, down), (other, up), (other, down)];
    let expected = |is_paused| if is_paused { vec![(one, up), (other, up)] } else { told.to_vec() };
    for is_paused in [false, true] {
        assert_eq!(changed(&devices, || devices.time_was_set(&world, is_paused)), pages);
        assert_eq!(world.lines.take(), expected(is_paused), "paused: {is_paused}");
        devices.time_was_set(&world, false);
        world.lines.take();
        devices.memory_has_come(&world, is_paused);
        assert_eq!(world.lines.take(), [], "its clock never stood still");
        world.stood.set(world.stood.get() + 1);
        assert_eq!(changed(&devices, || devices.memory_has_come(&world, is_paused)), pages);
        assert_eq!(world.lines.take(), expected(is_paused), "paused: {is_paused}");
    }
}

/// Their offsets are 100 and 300: the first signals rise behind those, the second ones behind twice that.
#[test]
fn every_generic_watchdog_is_let_know_what_time_it_is() {
    for (at_expiry, signals_later) in [(AtExpiry::Stay, 1), (AtExpiry::BeginAnew, 2)] {
        let (plan, world) = (twice(), World::default());
        let devices = devices(&plan, 2, 2).unwrap();
        let advance = |now| {
            world.count.set(now);
            let (signals, next) = devices.advance_generic_watchdogs(&world, at_expiry);
            (signals, next.map(|GuestTicks(next)| next))
        };
        assert_eq!(advance(0), (0, None), "none is enabled");
        for (slot, periods) in both(&plan, DeviceKind::GenericWatchdog).into_iter().zip([100, 300]) {
            // WOR, then WCS.
            for (offset, value) in [(8, periods), (0, 1)] {
                let place = Place { slot, frame: GenericWatchdog::CONTROL_FRAME, offset };
                devices.bus().write(place, AccessSize::Word, value, &world);
            }
        }
        assert_eq!(advance(0), (0, Some(101)));
        assert_eq!(advance(101), (0, Some(202)));
        let next = match at_expiry {
            AtExpiry::Stay => 301,
            AtExpiry::BeginAnew => 203 + 101,
        };
        assert_eq!(advance(203), (1, Some(next.min(301))), "{at_expiry:?}");
        assert_eq!(advance(301).0, 0);
        assert_eq!(advance(700).0, signals_later, "{at_expiry:?}");
    }
}

#[test]
fn there_are_no_devices_without_a_console_the_contents_of_a_disk_or_a_port() {
    let plan = twice();
    assert_eq!(devices(&plan, 1, 2).err(), Some(NoDevices::NoDisk));
    assert_eq!(devices(&plan, 2, 1).err(), Some(NoDevices::NoPort));
    let rows = plan.rows().iter().filter(|row| row.start() != Ipa(UART_BASE)).cloned().collect();
    let spec = Spec {
        name: "silent",
        vcpus: 1,
        memory_bytes: 2 << 20,
        ipa_bits: IPA_BITS,
        virtio: &[],
        generic_watchdog: true,
        enclave: true,
        counter_frequency: Hz(1_000_000),
        timers: plan.timers(),
    };
    let silent = MachinePlan::with_devices(spec, rows).unwrap();
    assert_eq!(devices(&silent, 2, 2).err(), Some(NoDevices::NoUart), "its other UART leads nowhere");
}

#[test]
fn the_next_deadline_is_that_of_all_devices() {
    let plan = machine(&vm(&[], TimeSource::Auto), GuestCounter::USUAL).unwrap();
    let mut deadlines = Deadlines::new(&plan);
    assert_eq!(deadlines.set(1, None), None);
    assert_eq!(deadlines.set(3, Some(50)), Some(50));
    assert_eq!(deadlines.set(1, Some(70)), Some(50), "a later one of another device hides nothing");
    assert_eq!(deadlines.set(1, Some(20)), Some(20));
    assert_eq!(deadlines.set(1, None), Some(50), "the other's stays");
    assert_eq!(deadlines.set(3, None), None);
    assert_eq!(deadlines.set(plan.rows().len(), Some(1)), None, "no device is there");
}
