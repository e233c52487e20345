//! The VM itself: its parts, made as the hypervisor makes them, and what the outside does to it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use abi::bundle::{CpuCounters, Doors, Time, TimeSource};
use clock::saved::Away;
use clock::{GuestClock, GuestTicks, VmClock};
use devices::{
    Access, Bus, Change, ClockPage, Device, ErasedFlash, GenerationId, GenericWatchdog, MemoryTimer, Moment, Outside,
    POWER_BUTTON_PIN, Pl031, Pl061, Slot, Stream, Uart, Wired,
};
use machine::{DeviceKind, MachinePlan, Row};
use services::psci::VmPower;
use units::{Hz, Ticks, VcpuId, VcpuSet};
use vgic::{Line, Vgic};
use virtio::{Console, Entropy, Mmio, Vacant, VirtioKind};
use vm::{Bite, GuestCounter, Life, Stop, Watchdogs, Which};
use vmware::{Config, Limits, Service};

use crate::exits::Done;
use crate::hardware::{Memory, Registers, Shared, Surroundings};
use std::cell::RefCell;

/// The host's counter.
pub(crate) const HOST: Hz = Hz(1_000_000);
pub(crate) const VCPUS: u8 = 3;
pub(crate) const GIC: vgic::Config =
    vgic::Config { vcpus: VCPUS as usize, list_registers: 2, priority_bits: 5, preemption_bits: 5 };
/// The time of day when the host's counter is 0, in seconds.
const BEGIN: u64 = 1_700_000_000;

/// More than the plan has.
const MOST_DEVICES: usize = 32;

/// A device with its lock.
pub(crate) struct Locked<D>(Mutex<Wired<D>>);

impl<D: Device + 'static> Locked<D> {
    fn new(device: D, row: &Row) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Wired::new(device, row.lines.iter().map(|line| line.interrupt)))))
    }

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

/// What makes bytes that nobody can guess.
type Fill = fn(&mut [u8]);

/// The devices, those of them twice that the outside has to do with.
pub(crate) struct Devices {
    pub(crate) bus: Bus<Arc<dyn Slot>>,
    uart: Arc<Locked<Uart>>,
    clock_page: Arc<Locked<ClockPage<Fill>>>,
    gpio: Arc<Locked<Pl061>>,
    watchdog: Arc<Locked<GenericWatchdog>>,
    console: Arc<Locked<Mmio<Console>>>,
}

impl Devices {
    pub(crate) fn new(plan: &MachinePlan) -> Self {
        fn zeros(bytes: &mut [u8]) {
            bytes.fill(0);
        }
        let (mut uart, mut gpio, mut watchdog, mut console, mut clock_page) = (None, None, None, None, None);
        let slots = plan.rows().iter().map(|row| -> Arc<dyn Slot> {
            match row.device {
                DeviceKind::Flash => Locked::new(ErasedFlash, row),
                DeviceKind::Pl011 => uart.insert(Locked::new(Uart::new(Some(Stream::Uart)), row)).clone(),
                DeviceKind::Pl031 => Locked::new(Pl031::new(), row),
                DeviceKind::Pl061 => gpio.insert(Locked::new(Pl061::new(), row)).clone(),
                DeviceKind::Watchdog => watchdog.insert(Locked::new(GenericWatchdog::new(), row)).clone(),
                DeviceKind::Timer => Locked::new(MemoryTimer::new(plan.counter_frequency()), row),
                DeviceKind::Generation => Locked::new(GenerationId::new(zeros as fn(&mut [u8])), row),
                DeviceKind::ClockPage => clock_page.insert(Locked::new(ClockPage::new(zeros as Fill), row)).clone(),
                DeviceKind::Virtio(VirtioKind::Console) => {
                    console.insert(Locked::new(Mmio::new(Console::connected(Stream::Virtio)), row)).clone()
                }
                DeviceKind::Virtio(VirtioKind::Entropy) => {
                    Locked::new(Mmio::new(Entropy::new(zeros as fn(&mut [u8]))), row)
                }
                DeviceKind::Virtio(kind) => panic!("there is no {} device yet", kind.name()),
                DeviceKind::VacantVirtio => Locked::new(Vacant, row),
            }
        });
        let bus = Bus::of(slots.collect());
        let missing = "it is in the plan";
        Self {
            bus,
            uart: uart.expect(missing),
            clock_page: clock_page.expect(missing),
            gpio: gpio.expect(missing),
            watchdog: watchdog.expect(missing),
            console: console.expect(missing),
        }
    }
}

/// The machine of a VM that has every device.
fn plan(policy: Doors) -> MachinePlan {
    let config: abi::bundle::Vm<&str, &[u8], ()> = abi::bundle::Vm {
        vcpus: VCPUS,
        doors: Doors { generic_watchdog: true, ..policy },
        time: Time { source: TimeSource::Mmio, ..Time::default() },
        ..abi::bundle::Vm::new("whole", b"".as_slice(), 8 << 20)
    };
    let counter = GuestCounter { frequency: HOST, shown: CpuCounters::Native };
    vm::machine(&config, counter).expect("there can be such a machine")
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
    /// A device has more to do.
    pub(crate) is_unfinished: bool,
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
        let plan = plan(policy);
        let vcpu =
            || Vcpu { registers: Registers::default(), place: VcpuState::Out, is_to_leave: false, is_to_stand: false };
        let away = if pause_stops_time { Away::Freeze } else { Away::Advance };
        Self {
            life: Life::new(VmPower::new(VCPUS, plan.ram())),
            watchdogs: Watchdogs::new(&policy),
            service: service(&policy, &plan),
            clock: VmClock::new(GuestClock::like_the_hosts(Ticks(0), HOST), pause_stops_time, away),
            clock_stops: pause_stops_time,
            now: Ticks(1),
            devices: Devices::new(&plan),
            shared: Shared {
                gic: RefCell::new(Vgic::new(GIC)),
                memory: RefCell::new(Memory::new(plan.ram())),
                sent: Default::default(),
                page: Default::default(),
                work: Default::default(),
            },
            vcpus: (0..VCPUS).map(|_| vcpu()).collect(),
            is_unfinished: false,
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

    /// The guest stores eight bytes in RAM that it sees.
    pub fn store(&mut self, at: u64, value: u64) {
        let _ = self.shared.memory.borrow_mut().write(units::Ipa(at), &value.to_le_bytes());
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

    pub(crate) fn surroundings(&self) -> Surroundings<'_> {
        let clock = self.clock.clock();
        let (GuestTicks(count), period) = clock.virtual_counter(self.now, HOST, false);
        let time = Duration::from_secs(BEGIN) + Duration::from_nanos(HOST.nanoseconds(self.now.0));
        let stood = clock.stood(self.now).0;
        Surroundings::new(&self.shared, Moment { count, period, time, is_known: true, stood })
    }

    /// What a call of a device leaves to be done, once its lock is let go of.
    pub(crate) fn after(&mut self, concerned: VcpuSet, unfinished: Option<Option<units::Ipa>>) {
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
        for (slot, unfinished) in self.devices.bus.slots().zip(&mut unfinished) {
            let outside = self.surroundings();
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
        let outside = self.surroundings();
        self.devices.uart.with(|wired| wired.work(&outside, |uart| uart.receive(bytes)));
        self.devices.console.with(|wired| wired.work(&outside, |console| console.device_mut().push_input(bytes)));
        let concerned = outside.concerned();
        self.refresh(concerned);
        self.poll();
    }

    /// The console takes all that it was sent.
    pub fn take_output(&mut self) -> [Vec<u8>; 2] {
        let sent = self.shared.sent.each_ref().map(RefCell::take);
        self.poll();
        sent
    }

    /// The operator presses the power button, or lets go of it.
    pub fn press(&mut self, is_pressed: bool) {
        let outside = self.surroundings();
        self.devices.gpio.with(|wired| wired.work(&outside, |gpio| gpio.set_input(POWER_BUTTON_PIN, is_pressed)));
        let concerned = outside.concerned();
        self.refresh(concerned);
    }

    /// The operator sets the time of day, to what it is.
    pub fn set_time(&mut self) {
        let outside = self.surroundings();
        self.devices.clock_page.with(|wired| wired.work(&outside, |page| page.time_was_set(&outside)));
        if !self.life.is_paused() {
            self.devices.clock_page.with(|wired| wired.work(&outside, ClockPage::lower));
        }
        let concerned = outside.concerned();
        self.refresh(concerned);
    }

    /// Time passes, by the host's counter: timers fire, watchdogs bite, devices go on.
    pub fn pass(&mut self, ticks: u64) {
        self.now = Ticks(self.now.0.saturating_add(ticks));
        for id in (0..VCPUS).map(VcpuId) {
            if self.place(id) == VcpuState::In {
                self.update_timer(id);
            }
        }
        self.advance_watchdog();
        for which in Which::called(VCPUS) {
            let now = self.milliseconds();
            if let Some(bite) = self.watchdogs.look(&self.life, which, now) {
                self.bites(bite);
            }
        }
        self.poll();
    }

    /// A timer's line follows its registers.
    pub(crate) fn update_timer(&mut self, id: VcpuId) {
        let timer = self.vcpus[id.index()].registers.physical;
        let line = if timer.is_asserted(&self.clock.clock(), self.now) { Line::High } else { Line::Low };
        let interrupt = self.plan.timer_interrupts().physical;
        self.with_gic(id, |gic| gic.set_ppi_level(id, interrupt, line));
    }

    fn advance_watchdog(&mut self) {
        if !self.life.is_running() {
            return;
        }
        let bite = Bite::of_device(&self.policy);
        let outside = self.surroundings();
        let has_expired = self.devices.watchdog.with(|wired| {
            wired.work(&outside, |device| {
                let now = outside.count();
                let has_expired = device.advance(now);
                if has_expired && bite.at_expiry() == vm::AtExpiry::BeginAnew {
                    device.begin_anew(now);
                }
                has_expired
            })
        });
        let concerned = outside.concerned();
        self.refresh(concerned);
        if has_expired {
            self.bites(bite);
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
    pub(crate) fn show(&mut self, ipa: units::Ipa) -> bool {
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
