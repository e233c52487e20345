//! The VM itself: its parts, made as the hypervisor makes them, and what the outside does to it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use abi::bundle::{Backend, CpuCounters, Disk, Disks, Doors, Port, Ports, Time, TimeSource};
use clock::saved::Away;
use clock::{GuestClock, GuestTicks, VmClock};
use devices::{Access, Change, Device, Moment, Outside, Slot, Wired};
use machine::{DeviceKind, MachinePlan, Row, Spec, VirtioKind, Wire};
use services::psci::VmPower;
use switch::{Mac, PortId, Switch};
use units::{BLOCK_SIZE, Hz, IPA_BITS, Ipa, Range, Ticks, VcpuId, VcpuSet};
use vgic::{Line, Vgic};
use virtio::net::{Delivery, Frame, Link};
use virtio::{Block, Net};
use vm::devices::{Fill, Holder, Keeper};
use vm::stolen::{NotStolen, PausedWait, Stolen};
use vm::{Bite, GuestCounter, Life, Round, RoundStep, Stop, Watchdogs};
use vmware::{Config, Limits, Service};

use crate::exits::Done;
use crate::hardware::{MOST_DEVICES, Memory, Registers, Shared, Surroundings};
use std::cell::{Cell, RefCell};

/// The host's counter.
pub(crate) const HOST: Hz = Hz(1_000_000);
pub(crate) const VCPUS: u8 = 3;
pub(crate) const GIC: vgic::Config = vgic::Config {
    vcpus: VCPUS as usize,
    list_registers: 2,
    priority_bits: 5,
    preemption_bits: 5,
    tells_of_group_0: true,
    traps_deactivation: true,
};
/// The time of day when the host's counter is 0, in seconds.
const BEGIN: u64 = 1_700_000_000;

/// What is on its disks, and the serial number of the first.
const IMAGE: &[u8] = &[0xa5; 64 << 10];
pub(crate) const SERIAL: &str = "whole";
/// How much memory there is for what is written to the first.
pub(crate) const CHANGES: u64 = BLOCK_SIZE;

/// How many ports its network has. Nobody is at the others.
const PORTS: u16 = 8;

/// The address of a port.
pub(crate) const fn mac(port: u16) -> [u8; 6] {
    [2, 0, 0, 0, 0, port as u8]
}

/// A cable to a switch to which nobody else is connected.
pub(crate) struct Cable(Switch, PortId);

impl Cable {
    fn new(port: u16) -> Self {
        let ports = (0..PORTS).map(|port| (0, Mac(mac(port))));
        Self(Switch::new(ports).expect("each has an address of its own"), PortId(port))
    }
}

impl Link for Cable {
    fn port(&self) -> (&Switch, PortId) {
        (&self.0, self.1)
    }

    fn may_flood(&mut self) -> bool {
        true
    }

    fn deliver(&mut self, _to: PortId, _frame: &Frame<'_>, _spent: &mut u32) -> Delivery {
        Delivery::Absent
    }
}

/// A device with its lock, and its number on the bus.
pub(crate) struct Locked<D> {
    wired: Mutex<Wired<D>>,
    slot: usize,
}

impl<D: Device + 'static> Locked<D> {
    fn with<R>(&self, work: impl FnOnce(&mut Wired<D>) -> R) -> R {
        work(&mut self.wired.lock().unwrap_or_else(PoisonError::into_inner))
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

/// As long as the VM is there, each behind its lock.
pub(crate) struct Counted;

impl Holder for Counted {
    type Held<D: Device + 'static> = Arc<Locked<D>>;
    type Slot = Arc<dyn Slot>;
    type Link = Cable;

    fn hold<D: Device + 'static>(device: Wired<D>, slot: usize) -> Arc<Locked<D>> {
        Arc::new(Locked { wired: Mutex::new(device), slot })
    }

    fn on_bus<D: Device + 'static>(held: &Arc<Locked<D>>) -> Arc<dyn Slot> {
        held.clone()
    }
}

impl Keeper<Counted> for WholeVm {
    fn work<D: Device + 'static, R>(&self, held: &Arc<Locked<D>>, work: impl FnOnce(&mut D, &dyn Outside) -> R) -> R {
        let outside = self.surroundings(held.slot);
        let result = held.with(|wired| wired.work(&outside, |device| work(device, &outside)));
        self.concerned.set(self.concerned.get().union(outside.concerned()));
        result
    }
}

pub(crate) type Devices = vm::devices::Devices<Counted>;

/// The devices of `plan`. Where a guest's would be random, these have zeros.
pub(crate) fn devices(plan: &MachinePlan) -> Devices {
    fn zeros(bytes: &mut [u8]) {
        bytes.fill(0);
    }
    let disks = [(SERIAL, CHANGES), ("twin", 0)];
    let disks = disks.map(|(serial, changes)| {
        virtio::Disk::<_, Infallible>::Image(Block::with_changes(IMAGE, 1, serial, 0..changes))
    });
    let nets = [0, 1].map(|port| Net::new(Cable::new(port), mac(port), 1500));
    Devices::new(plan, zeros as Fill, disks, nets).expect("the plan has a UART, two disks and two ports")
}

/// Where the second device of a kind is, whose SPI, of the first of its lines, is that beside it. The second frame is behind the
/// first one.
pub const TWINS: [(DeviceKind, u64, u32); 12] = [
    (DeviceKind::Pl011, 0x0b00_0000, 64),
    (DeviceKind::Pl031, 0x0b01_0000, 65),
    (DeviceKind::Pl061, 0x0b02_0000, 66),
    (DeviceKind::GenericWatchdog, 0x0b03_0000, 67),
    (DeviceKind::Timer, 0x0b04_0000, 68),
    (DeviceKind::Generation, 0x0b05_0000, 70),
    (DeviceKind::ClockPage, 0x0b06_0000, 71),
    (DeviceKind::Enclave, 0x0b0b_0000, 76),
    (DeviceKind::Virtio(VirtioKind::Console), 0x0b07_0000, 72),
    (DeviceKind::Virtio(VirtioKind::Entropy), 0x0b08_0000, 73),
    (DeviceKind::Virtio(VirtioKind::Block), 0x0b09_0000, 74),
    (DeviceKind::Virtio(VirtioKind::Net), 0x0b0a_0000, 75),
];

/// The machine of a VM that has every device, and those of [`TWINS`] twice.
fn plan(policy: Doors) -> MachinePlan {
    let config: abi::bundle::Vm<&str, &[u8], ()> = abi::bundle::Vm {
        vcpus: VCPUS,
        enclave: true,
        disks: Disks::of([Disk { backend: Backend::Image { image: IMAGE, changes: CHANGES }, serial: SERIAL }])
            .unwrap_or_default(),
        ports: Ports::of([Port { network: "lan", vlan: 0, mac: mac(0), mtu: 1500 }]).unwrap_or_default(),
        doors: Doors { generic_watchdog: true, ..policy },
        time: Time { source: TimeSource::Mmio, ..Time::default() },
        ..abi::bundle::Vm::new("whole", b"".as_slice(), 8 << 20)
    };
    let counter = GuestCounter { frequency: HOST, shown: CpuCounters::Native };
    let first = vm::machine(&config, counter).expect("there can be such a machine");
    let mut rows = first.rows().to_vec();
    for (kind, start, spi) in TWINS {
        let like = first.first(kind).expect("it has every device");
        let frames = (start..).step_by(0x1000).zip(&like.frames);
        let lines = (spi..).zip(&like.lines);
        rows.push(Row {
            device: kind,
            frames: frames.map(|(start, frame)| Range { start: Ipa(start), size: frame.size }).collect(),
            lines: lines.map(|(spi, line)| Wire::spi(spi, line.trigger)).collect(),
        });
    }
    let spec = Spec {
        name: config.name,
        vcpus: VCPUS,
        memory_bytes: config.memory,
        ipa_bits: IPA_BITS,
        virtio: &[],
        generic_watchdog: true,
        enclave: true,
        counter_frequency: HOST,
        timers: first.timers(),
    };
    MachinePlan::with_devices(spec, rows).expect("there is room for two of each")
}

/// Where a vCPU's thread is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VcpuState {
    /// Nowhere: the vCPU is off, or has not begun.
    Out,
    /// In the guest.
    In,
    /// It stands still until the VM goes on.
    Standing,
}

pub(crate) struct Vcpu {
    pub(crate) registers: Registers,
    pub(crate) place: VcpuState,
    pub(crate) is_to_leave: bool,
    pub(crate) is_to_stand: bool,
    /// For how long its thread has waited for a CPU in all, what of that was not stolen from it, and what was as its record says.
    pub(crate) waited: Ticks,
    pub(crate) not_stolen: NotStolen,
    pub(crate) stolen: Stolen,
    /// While it stands still for a pause: what its thread had waited when that was asked of it, and what it waits meanwhile.
    pub(crate) standing: Option<(Ticks, PausedWait)>,
}

impl Vcpu {
    fn new() -> Self {
        Self {
            registers: Registers::default(),
            place: VcpuState::Out,
            is_to_leave: false,
            is_to_stand: false,
            waited: Ticks(0),
            not_stolen: NotStolen::default(),
            stolen: Stolen::default(),
            standing: None,
        }
    }

    /// No more is stolen than its record says, when its thread has waited so much.
    pub(crate) const fn nothing_is_stolen(&mut self, waited: Ticks) {
        self.not_stolen = NotStolen::when(waited, self.stolen);
    }
}

/// A VM.
pub struct WholeVm {
    pub(crate) plan: MachinePlan,
    pub(crate) policy: Doors,
    pub(crate) life: Life<&'static str>,
    pub(crate) watchdogs: Watchdogs,
    pub(crate) service: Service,
    pub(crate) clock: VmClock,
    /// A pause stops its clock.
    pub(crate) clock_stops: bool,
    pub(crate) now: Ticks,
    pub(crate) devices: Devices,
    pub(crate) shared: Shared,
    pub(crate) vcpus: Vec<Vcpu>,
    /// For how long threads wait for a CPU before they next do what is asked of them.
    pub(crate) delay: u64,
    /// A device has more to do.
    pub(crate) is_unfinished: bool,
    /// Whose interrupts have changed by what the outside did to devices.
    concerned: Cell<VcpuSet>,
    /// What was done since the last [`WholeVm::take_done`].
    pub(crate) done: Vec<Done>,
}

impl WholeVm {
    /// A VM that is off, with doors by `policy`. A pause stops its time if `pause_stops_time` says so, and so does being saved then.
    ///
    /// # Panics
    /// If there can be no such machine.
    #[must_use]
    pub fn new(policy: Doors, pause_stops_time: bool) -> Self {
        // The machine has one.
        let policy = Doors { generic_watchdog: true, ..policy };
        let plan = plan(policy);
        let away = if pause_stops_time { Away::Freeze } else { Away::Advance };
        Self {
            life: Life::new(VmPower::new(VCPUS, plan.ram())),
            watchdogs: Watchdogs::new(&policy),
            service: service(&policy, &plan),
            clock: VmClock::new(GuestClock::like_the_hosts(Ticks(0), HOST), pause_stops_time, away),
            clock_stops: pause_stops_time,
            now: Ticks(1),
            devices: devices(&plan),
            shared: Shared {
                gic: RefCell::new(Vgic::new(GIC)),
                memory: RefCell::new(Memory::new(plan.ram())),
                sent: Default::default(),
                pages: Default::default(),
                work: Default::default(),
            },
            vcpus: (0..VCPUS).map(|_| Vcpu::new()).collect(),
            delay: 0,
            is_unfinished: false,
            concerned: Cell::new(VcpuSet::EMPTY),
            done: Vec::new(),
            plan,
            policy,
        }
    }

    /// A VM that runs, vCPU 0 in its guest.
    #[must_use]
    pub fn running(policy: Doors, pause_stops_time: bool) -> Self {
        let mut vm = Self::new(policy, pause_stops_time);
        vm.start();
        vm.take_done();
        vm
    }

    /// A VM that is built for a state, which is to be [put in](Self::put_in).
    #[must_use]
    pub fn for_state(policy: Doors, pause_stops_time: bool) -> Self {
        let mut vm = Self::new(policy, pause_stops_time);
        vm.life.start_for_state();
        vm.life.is_built(0);
        vm
    }

    /// Where a vCPU is.
    #[must_use]
    pub fn place(&self, vcpu: VcpuId) -> VcpuState {
        self.vcpus.get(vcpu.index()).map_or(VcpuState::Out, |vcpu| vcpu.place)
    }

    /// A general-purpose register of a vCPU.
    #[must_use]
    pub fn register(&self, vcpu: VcpuId, number: u8) -> u64 {
        self.vcpus.get(vcpu.index()).map_or(0, |vcpu| vcpu.registers.get(number))
    }

    /// The guest sets a register of a vCPU.
    pub fn set_register(&mut self, vcpu: VcpuId, number: u8, value: u64) {
        if let Some(vcpu) = self.vcpus.get_mut(vcpu.index()) {
            vcpu.registers.set(number, value);
        }
    }

    /// The page that the guest sees at `at`, of a device that tells it something there, as words.
    #[must_use]
    pub fn shown_page(&self, at: u64) -> Option<[u64; 14]> {
        let slot = self.plan.rows().iter().position(|row| row.start() == Ipa(at))?;
        self.shared.pages.borrow().get(slot).copied()
    }

    /// The guest stores eight bytes in RAM that it sees.
    pub fn store(&mut self, at: u64, value: u64) {
        let _ = self.shared.memory.borrow_mut().write(Ipa(at), &value.to_le_bytes());
    }

    /// What has happened since it was asked last.
    pub fn take_done(&mut self) -> Vec<Done> {
        std::mem::take(&mut self.done)
    }

    /// How much was done since it was asked last.
    pub fn take_work(&self) -> u64 {
        self.shared.work.take()
    }

    /// The milliseconds of its clock, by which its watchdogs go.
    pub(crate) fn milliseconds(&self) -> u64 {
        self.clock.clock().milliseconds(self.now)
    }

    /// Those of a host's clock that only runs forward.
    pub(crate) const fn host_milliseconds(&self) -> u64 {
        self.now.0 / (HOST.0 / 1000)
    }

    /// What is outside of the device in `slot`.
    pub(crate) fn surroundings(&self, slot: usize) -> Surroundings<'_> {
        let clock = self.clock.clock();
        let (GuestTicks(count), period) = clock.virtual_counter(self.now, HOST, false);
        let time = Duration::from_secs(BEGIN) + Duration::from_nanos(HOST.nanoseconds(self.now.0));
        let stood = clock.stood(self.now).0;
        Surroundings::new(&self.shared, slot, Moment { count, period, time, is_known: true, stood })
    }

    /// What a call of a device leaves to be done, once its lock is let go of.
    pub(crate) fn after(&mut self, concerned: VcpuSet, unfinished: Option<Option<Ipa>>) {
        if let Some(missing) = unfinished {
            self.is_unfinished = true;
            if let Some(place) = missing {
                self.show(place);
            }
        }
        self.refresh(concerned);
    }

    /// Does something with all devices.
    pub(crate) fn each_device(&mut self, mut work: impl FnMut(&mut Wired<dyn Device>, &dyn Outside)) {
        let mut concerned = VcpuSet::EMPTY;
        // No list that grows: a state is put in where there may be no memory.
        let mut unfinished = [None; MOST_DEVICES];
        for ((number, slot), unfinished) in self.devices.bus().slots().enumerate().zip(&mut unfinished) {
            let outside = self.surroundings(number);
            slot.enter(&mut |wired| work(wired, &outside));
            concerned = concerned.union(outside.concerned());
            *unfinished = outside.unfinished();
        }
        for one in unfinished {
            self.after(VcpuSet::EMPTY, one);
        }
        self.refresh(concerned);
    }

    /// Moves on what waits in the devices.
    pub fn poll(&mut self) {
        if self.life.is_running() {
            self.is_unfinished = false;
            self.each_device(|wired, outside| wired.poll(outside));
        }
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.each_device(|wired, outside| wired.change(change, outside));
    }

    /// Somebody types at the UART, and at the virtio console.
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.devices.receive(self, bytes);
        self.devices.receive_virtio(self, bytes);
        self.tell();
        self.poll();
    }

    /// Tells the vCPUs that concerns what the outside did to devices.
    fn tell(&mut self) {
        let concerned = self.concerned.take();
        self.refresh(concerned);
    }

    /// The console takes all that it was sent.
    pub fn take_output(&mut self) -> [Vec<u8>; 2] {
        let sent = self.shared.sent.each_ref().map(RefCell::take);
        self.poll();
        sent
    }

    /// The operator presses the power button, or lets go of it.
    pub fn press(&mut self, is_pressed: bool) {
        self.devices.set_power_button(self, is_pressed);
        self.tell();
    }

    /// The operator sets the time of day, to what it is.
    pub fn set_time(&mut self) {
        self.devices.time_was_set(self, self.life.is_paused());
        self.tell();
    }

    /// Time passes, by the host's counter: timers fire, watchdogs bite, devices go on.
    pub fn pass(&mut self, ticks: u64) {
        self.now = Ticks(self.now.0.saturating_add(ticks));
        for id in (0..VCPUS).map(VcpuId) {
            if self.place(id) == VcpuState::In {
                self.update_timer(id);
            }
        }
        self.look_after();
        self.poll();
    }

    /// All its threads wait for a CPU for so long, and get one each.
    pub fn wait_for_cpus(&mut self, ticks: u64) {
        self.threads_wait(ticks);
        self.pass(0);
    }

    /// The next time that something is asked of its threads, all wait for a CPU for so long before they do it.
    pub const fn delay(&mut self, ticks: u64) {
        self.delay = ticks;
    }

    pub(crate) fn threads_wait(&mut self, ticks: u64) {
        self.now = Ticks(self.now.0.saturating_add(ticks));
        for vcpu in &mut self.vcpus {
            vcpu.waited = vcpu.waited.after(ticks);
            match &mut vcpu.standing {
                Some((_, wait)) if self.life.is_paused() => wait.lasts(vcpu.waited),
                None if vcpu.place == VcpuState::In => vcpu.stolen = vcpu.not_stolen.stolen(vcpu.waited),
                Some(_) | None => {}
            }
        }
    }

    /// What a vCPU's record says of the time that was stolen from it, in ticks of the host's counter.
    #[must_use]
    pub fn stolen(&self, vcpu: VcpuId) -> u64 {
        self.vcpus.get(vcpu.index()).map_or(0, |vcpu| vcpu.stolen.0)
    }

    /// What its guest's counter shows.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.clock.clock().guest(self.now).0
    }

    /// A timer's line follows its registers.
    pub(crate) fn update_timer(&mut self, id: VcpuId) {
        let timer = self.vcpus[id.index()].registers.physical;
        let line = if timer.is_asserted(&self.clock.clock(), self.now) { Line::High } else { Line::Low };
        let interrupt = self.plan.timer_interrupts().physical;
        self.with_gic(id, |gic| gic.set_ppi_level(id, interrupt, line));
    }

    /// Lets its watchdogs act, if it is time.
    fn look_after(&mut self) {
        let mut round = Round::new(&self.policy, VCPUS);
        loop {
            match round.next(&mut self.watchdogs, &self.life, &self.clock.clock(), self.now) {
                RoundStep::Act(bite) => self.bites(bite),
                RoundStep::LetIn => {}
                RoundStep::Devices(at_expiry) => {
                    let (signals, next) = self.devices.advance_generic_watchdogs(self, at_expiry);
                    round.expired(signals, next);
                    self.tell();
                }
                RoundStep::Done(_) => return,
            }
        }
    }

    fn bites(&mut self, bite: Bite) {
        self.done.push(Done::Bite(bite));
        match bite.consequence() {
            vm::Consequence::Nothing => {}
            vm::Consequence::SError(id) => self.vcpus[id.index()].registers.serror = true,
            vm::Consequence::Pause => self.pause(),
            vm::Consequence::Stop(stop) => self.stop(stop),
        }
    }

    /// Shows RAM to the guest.
    pub(crate) fn show(&mut self, ipa: Ipa) -> bool {
        self.shared.work.count();
        self.shared.memory.borrow_mut().show(ipa)
    }

    /// Works on the interrupt controller for a vCPU: what its list registers say is folded back, and they are chosen anew.
    pub(crate) fn with_gic(&mut self, id: VcpuId, work: impl FnOnce(&mut Vgic) -> VcpuSet) {
        self.shared.work.count();
        let Some(vcpu) = self.vcpus.get_mut(id.index()) else { return };
        let list = &mut vcpu.registers.list;
        let mut gic = self.shared.gic.borrow_mut();
        let mut concerned = gic.sync(id, list);
        concerned = concerned.union(work(&mut gic));
        gic.flush(id, list);
        if list.hcr & vgic::virtual_control::LRENPIE != 0 {
            // The guest here ends interrupts in its list registers alone.
            gic.note_running(id, list.vmcr, [0; 2]);
        }
        drop(gic);
        // What is written to the hardware is what it holds from then on.
        (list.dirty, list.hcr_dirty, list.deactivate) = (0, false, 0);
        concerned.remove(id);
        self.refresh(concerned);
    }

    /// These vCPUs choose their list registers anew, if they are in the guest.
    pub(crate) fn refresh(&mut self, concerned: VcpuSet) {
        for id in (0..VCPUS).map(VcpuId) {
            if concerned.contains(id) && self.place(id) == VcpuState::In {
                self.with_gic(id, |_| VcpuSet::EMPTY);
            }
        }
    }
}

pub(crate) fn service(policy: &Doors, plan: &MachinePlan) -> Service {
    let config = Config {
        uuid: [0x5a; 16],
        memory: plan.ram().size,
        megahertz: 1,
        time_sync: policy.time_sync,
        limits: Limits::DEFAULT,
        user: policy.user_calls,
        kernel: policy.kernel_calls,
    };
    Service::new(config, 0)
}

/// Why it stops.
pub(crate) type Reason = Stop<&'static str>;
