//! The same over PCI: a card whose structures are what section 4.1.4 says, written from there, with the same device behind it.

use super::{Laid, Link, Machine, Ports, receive, send};
use drivers::Registers;
use drivers::virtio::console::{Console, DEVICE_ID};
use drivers::virtio::pci::{Pci, Piece};
use drivers::virtio::{NamedRegisters, Shape, Transport, Unusable, accept, place, probe, register, reset};
use std::cell::Cell;
use std::rc::Rc;
use virtio::AccessSize;

/// Where its structures are in its registers.
const COMMON: u64 = 0x100;
const ISR: u64 = 0x1003;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const SIZE: u64 = 0x4000;
/// How far its places for notifications are apart. Queue n has that with the number 7 - n.
const APART: u32 = 4;

struct Card {
    link: Link,
    /// What it says of the sizes of its queues, where that is not so.
    queue_size: Cell<Option<u16>>,
    /// What it says of the places of notifications, where that is not so.
    notify_offset: Cell<Option<u16>>,
    queue: Cell<u16>,
    notified: Cell<u32>,
}

impl Card {
    fn new(ports: Ports) -> (Rc<Machine>, Rc<Self>) {
        let machine = Machine::new(ports);
        let link = Link(Rc::clone(&machine));
        let (queue_size, notify_offset, queue, notified) = Default::default();
        (machine, Rc::new(Self { link, queue_size, notify_offset, queue, notified }))
    }
}

/// The card's registers.
struct Bar(Rc<Card>);

/// Which register behind MMIO is at `offset` of the common structure, of how many bytes it is.
fn common(offset: u64) -> (u64, u64) {
    match offset {
        0x00 => (register::DEVICE_FEATURES_SEL, 4),
        0x04 => (register::DEVICE_FEATURES, 4),
        0x08 => (register::DRIVER_FEATURES_SEL, 4),
        0x0c => (register::DRIVER_FEATURES, 4),
        0x14 => (register::STATUS, 1),
        0x16 => (register::QUEUE_SEL, 2),
        0x18 => (register::QUEUE_SIZE, 2),
        0x1c => (register::QUEUE_READY, 2),
        0x20 => (register::QUEUE_DESC, 4),
        0x24 => (register::QUEUE_DESC + 4, 4),
        0x28 => (register::QUEUE_DRIVER, 4),
        0x2c => (register::QUEUE_DRIVER + 4, 4),
        0x30 => (register::QUEUE_DEVICE, 4),
        0x34 => (register::QUEUE_DEVICE + 4, 4),
        other => panic!("nothing that is used is at {other:#x}"),
    }
}

impl Bar {
    fn read(&self, offset: u64, width: u64) -> u64 {
        assert!(offset.is_multiple_of(width));
        let card = &self.0;
        match offset {
            ISR => {
                assert_eq!(width, 1);
                let status = card.link.read(register::INTERRUPT_STATUS);
                card.link.write(register::INTERRUPT_ACK, status);
                status.into()
            }
            DEVICE..NOTIFY => card.link.read(register::CONFIG + offset - DEVICE).into(),
            COMMON..ISR => match offset - COMMON {
                0x18 => {
                    assert_eq!(width, 2);
                    card.queue_size.get().map_or_else(|| card.link.read(register::QUEUE_SIZE_MAX).into(), u64::from)
                }
                0x1e => {
                    assert_eq!(width, 2);
                    card.notify_offset.get().unwrap_or(7 - card.queue.get()).into()
                }
                inner => {
                    let (register, size) = common(inner);
                    assert_eq!(width, size, "at {inner:#x}");
                    card.link.read(register).into()
                }
            },
            _ => panic!("nothing that is read is at {offset:#x}"),
        }
    }

    fn write(&self, offset: u64, width: u64, value: u64) {
        assert!(offset.is_multiple_of(width));
        let card = &self.0;
        if offset >= NOTIFY {
            let queue = 7 - (offset - NOTIFY) / u64::from(APART);
            assert_eq!((queue, width), (value, 2));
            card.notified.set(card.notified.get() + 1);
            return card.link.write(register::QUEUE_NOTIFY, value as u32);
        }
        let (register, size) = common(offset - COMMON);
        assert_eq!(width, size, "at {offset:#x}");
        if register == register::QUEUE_SEL {
            card.queue.set(value as u16);
        }
        card.link.write(register, value as u32);
    }
}

impl Registers for Bar {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read8(&self, offset: u64) -> u8 {
        self.read(offset, 1) as u8
    }

    fn read16(&self, offset: u64) -> u16 {
        self.read(offset, 2) as u16
    }

    fn read32(&self, offset: u64) -> u32 {
        self.read(offset, 4) as u32
    }

    fn read64(&self, _: u64) -> u64 {
        unreachable!("section 4.1.3.1 demands 32 bits")
    }

    fn write8(&self, offset: u64, value: u8) {
        self.write(offset, 1, value.into());
    }

    fn write16(&self, offset: u64, value: u16) {
        self.write(offset, 2, value.into());
    }

    fn write32(&self, offset: u64, value: u32) {
        self.write(offset, 4, value.into());
    }

    fn write64(&self, _: u64, _: u64) {
        unreachable!("section 4.1.3.1 demands 32 bits")
    }
}

struct Plugged {
    machine: Rc<Machine>,
    registers: Pci<Bar>,
}

impl Plugged {
    fn new(machine: &Rc<Machine>, card: &Rc<Card>) -> Self {
        let part = |offset, length, alignment| {
            Piece::new(Bar(Rc::clone(card)), offset, length, alignment).expect("it is there")
        };
        let (common, notify, device) = (part(COMMON, 0x38, 4), part(NOTIFY, 0x20, 2), part(DEVICE, 0xc, 4));
        let registers = Pci::new(DEVICE_ID, common, notify, device, APART);
        Self { machine: Rc::clone(machine), registers }
    }
}

impl Transport for Plugged {
    type Rings = Laid;

    fn read(&self, register: u64) -> u32 {
        self.registers.get(register)
    }

    fn write(&self, register: u64, value: u32) {
        self.registers.set(register, value);
    }

    fn accept(&self, features: u64) {
        accept(&self.registers, features);
    }

    fn lay_out(&mut self, queue: u16, shape: Shape) -> Option<Laid> {
        let (laid, addresses) = Laid::new(&self.machine, shape);
        (self.registers.find_doorbell(queue) && place(&self.registers, queue, shape.count, addresses)).then_some(laid)
    }
}

#[test]
fn a_console_on_pci_carries_both_ways() {
    let (machine, card) = Card::new(Ports::new(true));
    let plugged = Plugged::new(&machine, &card);
    assert_eq!(probe(&plugged), Ok(Some(DEVICE_ID)));
    let mut console = Console::start(plugged, "ours").expect("it is there");
    (0..4).for_each(|_| console.attend().expect("it keeps the rules"));
    assert!(console.is_open());
    let bytes: Vec<u8> = (0..100_000_u32).map(|number| (number * 7) as u8).collect();
    machine.ports(|ports| ports.input[1].extend(&bytes));
    assert_eq!(receive(&mut console), bytes);
    let before = card.notified.get();
    assert_eq!(send(&mut console, &bytes, 1000), bytes.len());
    assert_eq!(machine.ports(|ports| std::mem::take(&mut ports.output)), [vec![], bytes]);
    assert!(card.notified.get() > before);
    // Reading why takes the interrupt back.
    let isr = Piece::new(Bar(card), ISR, 1, 1).expect("it is there");
    let line = || machine.mmio.borrow().line();
    console.wait_for_room(true);
    send(&mut console, b"more", 4);
    assert!(line());
    assert_eq!((isr.take_interrupt() & 1, line()), (1, false));
    assert_eq!(isr.take_interrupt(), 0);
}

#[test]
fn a_console_on_pci_that_lies_is_refused() {
    let start = |change: fn(&Card)| {
        let (machine, card) = Card::new(Ports::new(true));
        change(&card);
        Console::start(Plugged::new(&machine, &card), "ours").err()
    };
    assert_eq!(start(|_| ()), None);
    for size in [0, 1, 7] {
        let (machine, card) = Card::new(Ports::new(true));
        card.queue_size.set(Some(size));
        assert_eq!(Console::start(Plugged::new(&machine, &card), "ours").err(), Some(Unusable::Queue(0)), "{size}");
        assert_ne!(machine.mmio.borrow().read(register::STATUS, AccessSize::Word) & 128, 0, "it was told so");
    }
    // The last place that there is, and the first behind it, which is beyond the structure.
    assert_eq!(start(|card| card.notify_offset.set(Some(8))), Some(Unusable::Queue(0)));
    assert_eq!(start(|card| card.notify_offset.set(Some(u16::MAX))), Some(Unusable::Queue(0)));
}

#[test]
fn a_structure_is_within_its_registers() {
    let (_, card) = Card::new(Ports::new(true));
    let part = |offset, length, alignment| Piece::new(Bar(Rc::clone(&card)), offset, length, alignment).is_some();
    assert!(part(SIZE - 4, 4, 4) && part(1, 1, 1));
    assert!(!part(SIZE - 3, 4, 1) && !part(2, 4, 4) && !part(u64::MAX, 4, 1));
}

/// One that is never reset may write into memory that it knew before.
#[test]
fn a_device_that_does_not_come_back_from_its_reset_is_left() {
    struct Stuck(Cell<u32>);

    impl Transport for Stuck {
        type Rings = Laid;

        fn read(&self, _: u64) -> u32 {
            self.0.set(self.0.get().saturating_sub(1));
            u32::from(self.0.get() > 0)
        }

        fn write(&self, _: u64, _: u32) {}

        fn accept(&self, _: u64) {}

        fn lay_out(&mut self, _: u16, _: Shape) -> Option<Laid> {
            unreachable!("it gets no memory")
        }
    }

    assert_eq!(reset(&Stuck(Cell::new(100))), Ok(()));
    assert_eq!(reset(&Stuck(Cell::new(u32::MAX))), Err(Unusable::Reset));
    assert_eq!(Console::start(Stuck(Cell::new(u32::MAX)), "ours").err(), Some(Unusable::Reset));
}
