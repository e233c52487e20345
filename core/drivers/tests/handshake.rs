//! What a device is told until it works or is given up, word by word (sections 3.1.1 and 4.2.3).

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use drivers::virtio::console::Console;
use drivers::virtio::queue::Rings;
use drivers::virtio::{NamedRegisters, Shape, Transport, Unusable, accept, place, probe, register};

const PORTS: u64 = 1 << 1;
const VERSION_1: u64 = 1 << 32;

/// A device that can so much, and remembers what it was told.
struct Device {
    kind: u32,
    features: u64,
    /// It lets FEATURES_OK (8) stand.
    agrees: bool,
    half: Cell<u32>,
    status: Cell<u32>,
    told: RefCell<Vec<(u64, u32)>>,
}

impl Device {
    fn new(features: u64, agrees: bool) -> Rc<Self> {
        let (half, status, told) = (Cell::new(0), Cell::new(0), RefCell::default());
        Rc::new(Self { kind: 3, features, agrees, half, status, told })
    }

    /// What was written into one register, and the 32 bits behind it.
    fn told(&self, register: u64) -> Vec<(u64, u32)> {
        self.told.borrow().iter().copied().filter(|&(told, _)| told & !7 == register).collect()
    }

    fn statuses(&self) -> Vec<u32> {
        self.told(register::STATUS).into_iter().map(|(_, value)| value).collect()
    }
}

impl NamedRegisters for Device {
    fn get(&self, register: u64) -> u32 {
        match register {
            register::MAGIC_VALUE => u32::from_le_bytes(*b"virt"),
            register::VERSION => 1,
            register::DEVICE_ID => self.kind,
            register::DEVICE_FEATURES => (self.features >> (32 * self.half.get())) as u32,
            register::STATUS => self.status.get(),
            // Of each queue just as much as the driver wants.
            register::QUEUE_SIZE_MAX => 64,
            _ => 0,
        }
    }

    fn set(&self, register: u64, value: u32) {
        self.told.borrow_mut().push((register, value));
        match register {
            register::DEVICE_FEATURES_SEL => self.half.set(value),
            register::STATUS => self.status.set(if self.agrees { value } else { value & !8 }),
            _ => {}
        }
    }
}

/// Nobody looks into these.
struct Nowhere;

impl Rings for Nowhere {
    fn offer(&mut self, _: u16, _: u16, _: u32) {}

    fn publish(&mut self, _: u16) {}

    fn set_interrupts(&mut self, _: bool) {}

    fn used_count(&self) -> u16 {
        0
    }

    fn used(&self, _: u16) -> (u32, u32) {
        (0, 0)
    }

    fn fill(&mut self, _: u16, _: u32, _: &[u8]) {}

    fn copy(&self, _: u16, _: &mut [u8]) {}
}

struct Link {
    device: Rc<Device>,
    has_memory: bool,
}

impl Transport for Link {
    type Rings = Nowhere;

    fn read(&self, register: u64) -> u32 {
        self.device.get(register)
    }

    fn write(&self, register: u64, value: u32) {
        self.device.set(register, value);
    }

    fn accept(&self, features: u64) {
        accept(&*self.device, features);
    }

    fn lay_out(&mut self, _queue: u16, _shape: Shape) -> Option<Nowhere> {
        self.has_memory.then_some(Nowhere)
    }
}

/// Each step tells all that were taken before it: ACKNOWLEDGE (1) and DRIVER (2), FEATURES_OK (8), DRIVER_OK (4).
#[test]
fn a_device_is_told_of_each_step() {
    let device = Device::new(PORTS | VERSION_1, true);
    assert!(Console::start(Link { device: Rc::clone(&device), has_memory: true }, "ours").is_ok());
    assert_eq!(device.statuses(), [0, 3, 11, 15]);
    let accepted: Vec<u32> = [(0, PORTS as u32), (1, 1)].into_iter().flat_map(|(half, bits)| [half, bits]).collect();
    let told = device.told.borrow();
    let driver =
        |&&(register, _): &&(u64, u32)| [register::DRIVER_FEATURES_SEL, register::DRIVER_FEATURES].contains(&register);
    assert_eq!(told.iter().filter(driver).map(|&(_, value)| value).collect::<Vec<_>>(), accepted);
}

/// Who is given up is told so (FAILED, 128), beside what it was told before.
#[test]
fn a_device_that_is_given_up_is_told() {
    for (features, agrees, has_memory, why, statuses) in [
        (PORTS, true, true, Unusable::OnePort, [0, 3, 131].as_slice()),
        (VERSION_1, true, true, Unusable::OnePort, &[0, 3, 131]),
        (PORTS | VERSION_1, false, true, Unusable::OnePort, &[0, 3, 11, 131]),
        (PORTS | VERSION_1, true, false, Unusable::Queue(2), &[0, 3, 11, 139]),
    ] {
        let device = Device::new(features, agrees);
        assert_eq!(Console::start(Link { device: Rc::clone(&device), has_memory }, "ours").err(), Some(why));
        assert_eq!(device.statuses(), statuses, "{why:?}");
    }
}

/// A queue is where its three addresses of 64 bits say, and has as many entries as the device may have at most.
#[test]
fn a_queue_may_be_anywhere() {
    let device = Device::new(VERSION_1, true);
    assert!(place(&*device, 4, 64, [0x1_2345_6000, 0x2_3456_7000, 0x3_4567_8000]));
    let halves = [
        (register::QUEUE_DESC, 0x2345_6000),
        (register::QUEUE_DESC + 4, 1),
        (register::QUEUE_DRIVER, 0x3456_7000),
        (register::QUEUE_DRIVER + 4, 2),
        (register::QUEUE_DEVICE, 0x4567_8000),
        (register::QUEUE_DEVICE + 4, 3),
    ];
    let all = [&[(register::QUEUE_SEL, 4), (register::QUEUE_SIZE, 64)][..], &halves, &[(register::QUEUE_READY, 1)]];
    assert_eq!(device.told.take(), all.concat());
    assert!(!place(&*device, 4, 128, [0; 3]));
    assert_eq!(device.told.take(), [(register::QUEUE_SEL, 4)]);
}

/// Nothing is nothing, in a legacy window too; and why a device is of no use is said in a sentence that tells what would help.
#[test]
fn nothing_has_no_interface_and_what_is_of_no_use_is_said() {
    let link = |kind| {
        let device = Rc::into_inner(Device::new(0, true)).expect("nobody else has it");
        Link { device: Rc::new(Device { kind, ..device }), has_memory: false }
    };
    assert_eq!((probe(&link(0)), probe(&link(3))), (Ok(None), Err(Unusable::Legacy)));
    for (why, said) in [
        (Unusable::Legacy, "force-legacy=false"),
        (Unusable::Reset, "reset"),
        (Unusable::Features, "accept"),
        (Unusable::Queue(1), "queue"),
        (Unusable::OnePort, "virtio-serial-"),
    ] {
        assert!(why.sentence().contains(said), "{why:?}");
    }
}
