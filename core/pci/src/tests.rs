//! Functions that play what QEMU's do, and functions that lie.

extern crate std;

use crate::{BadFunction, BarPlaces, Configuration, Function, Structure, Structures, functions, virtio_from};
use core::cell::{Cell, RefCell};
use drivers::Registers;
use platform::PciWindow;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;
use units::{Pa, Range};

/// A block of registers: its number, its register's flags, its size.
type Bar = (u8, u32, u64);

/// A function's configuration space, of which the command and the blocks' registers can be written.
#[derive(Clone)]
struct Card {
    bytes: [u8; 256],
    bars: Vec<Bar>,
    /// Its blocks' registers keep no address.
    forgets: bool,
    /// A block's register was written while the function answered there.
    moved_in_use: bool,
}

impl Card {
    fn new(vendor: u16, device: u16) -> Self {
        let mut card = Self { bytes: [0; 256], bars: Vec::new(), forgets: false, moved_in_use: false };
        card.put(0, &vendor.to_le_bytes());
        card.put(2, &device.to_le_bytes());
        card
    }

    /// QEMU 11.1's `virtio-serial-pci`, as it is on a bus without ports: blocks 1 and 4, MSI-X, and five structures.
    fn console() -> Self {
        let mut card = Self::new(0x1af4, 0x1003);
        card.put(6, &[0x10]);
        card.put(0x34, &[0x98]);
        card.put(0x3d, &[1]);
        card.bars = vec![(1, 0, 0x1000), (4, 4 | 8, 0x4000)];
        for &(index, flags, _) in &card.bars.clone() {
            card.put(0x10 + 4 * u64::from(index), &flags.to_le_bytes());
        }
        card.put(0x98, &[0x11, 0x84, 2, 0x80]);
        card.structure(0x84, 0x70, 5, 0, 0, 0);
        card.structure(0x70, 0x60, 2, 4, 0x3000, 0x1000);
        card.put(0x80, &[4]);
        card.structure(0x60, 0x50, 4, 4, 0x2000, 0x1000);
        card.structure(0x50, 0x40, 3, 4, 0x1000, 0x1000);
        card.structure(0x40, 0, 1, 4, 0, 0x1000);
        card
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn structure(&mut self, at: u64, next: u8, kind: u8, bar: u8, offset: u32, length: u32) {
        self.put(at, &[9, next, 16, kind, bar, 0, 0, 0]);
        self.put(at + 8, &offset.to_le_bytes());
        self.put(at + 12, &length.to_le_bytes());
    }

    fn half(&self, at: u64) -> u16 {
        u16::from_le_bytes([self.bytes[at as usize], self.bytes[at as usize + 1]])
    }

    fn write(&mut self, at: u64, word: u32) {
        if (0x10..0x28).contains(&at) {
            self.moved_in_use |= self.half(4) & 2 != 0;
            let index = ((at - 0x10) / 4) as u8;
            let Some((shift, flags, size)) = self.bars.iter().find_map(|&(bar, flags, size)| match index {
                _ if index == bar => Some((0, flags, size)),
                _ if flags & 6 == 4 && index == bar + 1 => Some((32, 0, size)),
                _ => None,
            }) else {
                return;
            };
            let kept = if self.forgets && word != u32::MAX { 0 } else { word & (size.wrapping_neg() >> shift) as u32 };
            self.put(at, &(kept | flags).to_le_bytes());
        } else if at == 4 {
            // Beside the command is the status, where zeros change nothing.
            assert_eq!(word >> 16, 0);
            self.put(at, &(word as u16).to_le_bytes());
        } else if at == 0x30 {
            self.put(at, &word.to_le_bytes());
        } else {
            // Of a capability the first two bytes stay.
            self.put(at + 2, &((word >> 16) as u16).to_le_bytes());
        }
    }
}

/// A change to a card, and what is said of it.
type Lie = (fn(&mut Card), BadFunction);

/// A bus: what is where.
struct Bus(RefCell<BTreeMap<u8, Card>>);

impl Bus {
    fn new(cards: impl IntoIterator<Item = (u8, Card)>) -> Self {
        Self(RefCell::new(cards.into_iter().collect()))
    }

    fn with(card: Card) -> Self {
        Self::new([(0x10, card)])
    }

    fn read16(&self, offset: u64) -> u16 {
        (self.read(offset & !3) >> (8 * (offset & 2))) as u16
    }

    fn command(&self, number: u8) -> u16 {
        self.0.borrow()[&number].half(4)
    }

    fn open(&self, windows: &[PciWindow]) -> Result<Structures, BadFunction> {
        let mut places = BarPlaces::new(self, windows);
        let opened = Function::new(self, 0x10).expect("it is there").open(&mut places);
        assert!(!self.0.borrow()[&0x10].moved_in_use);
        opened
    }
}

impl Configuration for Bus {
    fn read(&self, offset: u64) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 1 << 20);
        let cards = self.0.borrow();
        let Some(card) = cards.get(&((offset >> 12) as u8)) else { return u32::MAX };
        let bytes = card.bytes.get((offset & 0xfff) as usize..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |&bytes| u32::from_le_bytes(bytes))
    }

    fn write(&self, offset: u64, value: u32) {
        assert!(offset.is_multiple_of(4));
        let mut cards = self.0.borrow_mut();
        cards.get_mut(&((offset >> 12) as u8)).expect("something is there").write(offset & 0xfff, value);
    }
}

fn window(start: u64, size: u64, bus_address: u64) -> PciWindow {
    PciWindow { memory: Range::new(Pa(start), size).unwrap(), bus_address }
}

/// Those of QEMU's `virt`.
fn windows() -> [PciWindow; 2] {
    [window(0x1000_0000, 0x2eff_0000, 0x1000_0000), window(0x80_0000_0000, 0x80_0000_0000, 0x80_0000_0000)]
}

#[test]
fn functions_are_found_behind_a_first_one_that_has_several() {
    let card = || Card::new(0x1b36, 8);
    let mut several = card();
    several.put(0xe, &[0x80]);
    let cards =
        [(0, card()), (1, card()), (8, several.clone()), (10, card()), (0x11, several), (0xf8, Card::console())];
    let bus = Bus::new(cards);
    let found: Vec<u8> = functions(&bus).map(|function| function.number()).collect();
    assert_eq!(found, [0, 8, 10, 0xf8]);
    let console = |first| virtio_from(&bus, 3, first).map(|function| function.device());
    assert_eq!([0, 0xf8, 0xf9, 0x100].map(console), [Some(31), Some(31), None, None]);
    assert_eq!(std::format!("{:?}", Function::new(&bus, 10).unwrap()), "01.2");
    assert!(Function::new(&bus, 0x20).is_none());
    // All that is there is silent before any of it is used, and stays so.
    let _ = BarPlaces::new(&bus, &[]);
    let _ = BarPlaces::new(&bus, &[]);
    assert_eq!([0, 8, 10, 0xf8].map(|number| bus.command(number)), [1 << 10; 4]);
    assert_eq!(bus.command(1), 0, "nobody may be there");
}

#[test]
fn registers_get_a_place_where_nothing_has_one() {
    let bus = Bus::with(Card::console());
    let structures = bus.open(&windows()).unwrap();
    let registers = Range::new(Pa(0x1000_0000), 0x4000).unwrap();
    let structure = |offset| Structure { registers, offset, length: 0x1000 };
    let [common, isr, device, notify] = [0, 0x1000, 0x2000, 0x3000].map(structure);
    assert_eq!(structures, Structures { common, notify, isr, device, notify_multiplier: 4 });
    assert_eq!((bus.read(0x1_0020), bus.read(0x1_0024)), (0x1000_000c, 0));
    assert_eq!(bus.read(0x1_0014), 0x1000_4000, "nobody needs that block, which answers all the same");
    assert_eq!(bus.command(0x10), 2, "it answers, interrupts by its pin, and does no DMA yet");
    assert_eq!(bus.read16(0x1_009a), 2, "and by no message");
    let function = Function::new(&bus, 0x10).unwrap();
    function.allow_dma();
    function.allow_dma();
    assert_eq!((bus.command(0x10), function.pin()), (2 | 4, Ok(1)));
}

/// A network card of virtio's, and another maker's device with a console's number.
#[test]
fn a_console_is_one_by_maker_and_number() {
    let cards = [(0, Card::new(0x1af4, 0x1000)), (8, Card::new(0x1b36, 0x1003)), (0x10, Card::new(0x1af4, 0x1043))];
    let bus = Bus::new(cards);
    assert_eq!(virtio_from(&bus, 3, 0).map(|function| function.number()), Some(0x10));
}

#[test]
fn registers_that_have_a_place_in_a_window_keep_it() {
    let mut card = Card::console();
    card.put(4, &[7]);
    card.put(0x20, &0x0040_000c_u32.to_le_bytes());
    card.put(0x24, &0x80_u32.to_le_bytes());
    card.put(0x9a, &[2, 0x80]);
    let bus = Bus::with(card.clone());
    let structures = bus.open(&windows()).unwrap();
    assert_eq!(structures.common.registers, Range::new(Pa(0x80_0040_0000), 0x4000).unwrap());
    assert_eq!((bus.read(0x1_0020), bus.read(0x1_0024), bus.command(0x10)), (0x0040_000c, 0x80, 2));
    // The CPUs may see it elsewhere.
    let elsewhere = [window(0x5000_0000, 0x100_0000, 0x80_0000_0000)];
    assert_eq!(Bus::with(card.clone()).open(&elsewhere).unwrap().isr.registers.start, Pa(0x5040_0000));
    // Outside of all windows it stays nowhere, and where it may go nobody knows: others are placed, too.
    let outside = [window(0x5000_0000, 0x40_3fff, 0x80_0000_0000)];
    let bus = Bus::with(card);
    assert_eq!(bus.open(&outside), Err(BadFunction::HalfPlaced));
    assert_eq!(bus.command(0x10) & 7, 0);
    // Where nothing answers, no place is taken, and what stands there may be in the way of what was put there.
    let mut silent = Card::console();
    silent.put(0x20, &0x1000_400c_u32.to_le_bytes());
    assert_eq!(Bus::with(silent).open(&windows()).unwrap().common.registers.start, Pa(0x1000_0000));
    let mut other = Card::new(0x8086, 0x10d3);
    other.put(4, &[2]);
    assert_eq!(Bus::new([(8, other), (0x10, Card::console())]).open(&windows()), Err(BadFunction::HalfPlaced));
}

#[test]
fn places_are_given_one_behind_the_other_and_end_with_the_windows() {
    let give = |flags: u32, size: u64, windows: &[PciWindow], count: u8| -> Vec<Option<u64>> {
        let cards = (0..count).map(|number| {
            let mut card = Card::console();
            card.bars = vec![(4, flags, size)];
            card.put(0x20, &flags.to_le_bytes());
            (number << 3, card)
        });
        let bus = Bus::new(cards);
        let mut places = BarPlaces::new(&bus, windows);
        let opened = functions(&bus).map(|function| function.open(&mut places));
        let start = |opened: Result<Structures, BadFunction>| match opened {
            Ok(structures) => Some(structures.common.registers.start.0),
            Err(BadFunction::NoRoom) => None,
            Err(error) => panic!("{error:?}"),
        };
        opened.map(start).collect()
    };
    let both = [window(0x1000_2000, 0xa000, 0x1000_2000), window(0x80_0000_0000, 0x8000, 0x80_0000_0000)];
    let [a, b, c, d] = [0x1000_4000, 0x1000_8000, 0x80_0000_0000, 0x80_0000_4000];
    assert_eq!(give(4, 0x4000, &both, 5), [Some(a), Some(b), Some(c), Some(d), None]);
    assert_eq!(give(0, 0x4000, &both, 3), [Some(a), Some(b), None], "the second window is beyond 32 bits");
    assert_eq!(give(4, 1 << 32, &both, 1), [None]);
    assert_eq!(give(4, 0x4000, &[], 1), [None]);
    assert_eq!(give(4, 0x4000, &[window(0x1000_0000, 0x8000, 0)], 2), [Some(0x1000_4000), None], "0 is no address");
    let last = u64::MAX - 0x3fff;
    assert_eq!(give(4, 0x4000, &[window(0x1000_0000, 0x3fff, last)], 1), [None]);
}

/// What is closed keeps the bits that say nothing of answering, DMA and interrupts.
#[test]
fn a_closed_function_is_silent_and_else_as_it_was() {
    let mut card = Card::console();
    card.put(4, &[7, 1]);
    let bus = Bus::with(card);
    Function::new(&bus, 0x10).unwrap().close();
    assert_eq!(bus.command(0x10), 1 << 8 | 1 << 10);
}

#[test]
fn neither_kind_of_messages_stays_on() {
    let mut card = Card::console();
    card.put(0x34, &[0xa4]);
    card.put(0xa4, &[5, 0x98, 0x81, 0]);
    card.put(0x9a, &[2, 0x80]);
    let bus = Bus::with(card);
    bus.open(&windows()).unwrap();
    assert_eq!((bus.read16(0x1_00a6), bus.read16(0x1_009a)), (0x80, 2));
}

/// The second of two that can be used is not, nor is one whose block has a number that is reserved.
#[test]
fn the_first_structure_that_can_be_used_holds() {
    let mut card = Card::console();
    card.put(0x34, &[0xa4]);
    card.structure(0xa4, 0xb8, 1, 6, 0, 0x38);
    card.structure(0xb8, 0x98, 1, 4, 0x800, 0x38);
    let common = Bus::with(card).open(&windows()).unwrap().common;
    assert_eq!((common.offset, common.length), (0x800, 0x38));
}

/// As with QEMU's `modern-pio-notify=on`: of two notifications, the first is in ports.
#[test]
fn a_structure_in_ports_is_passed_over() {
    let mut card = Card::console();
    card.bars.push((2, 1, 0x20));
    card.put(0x18, &[1]);
    card.put(0x34, &[0xa4]);
    card.structure(0xa4, 0x98, 2, 2, 0, 4);
    let structures = Bus::with(card).open(&windows()).unwrap();
    assert_eq!((structures.notify.offset, structures.notify.length), (0x3000, 0x1000));
}

/// Registers that remember the last write to them.
#[derive(Default)]
struct Written(Cell<(u64, u32)>);

impl Registers for Written {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read8(&self, _: u64) -> u8 {
        unreachable!("words alone")
    }

    fn read16(&self, _: u64) -> u16 {
        unreachable!("words alone")
    }

    fn read32(&self, offset: u64) -> u32 {
        let (last, value) = self.0.get();
        if offset == last { value } else { 0 }
    }

    fn read64(&self, _: u64) -> u64 {
        unreachable!("words alone")
    }

    fn write8(&self, _: u64, _: u8) {
        unreachable!("words alone")
    }

    fn write16(&self, _: u64, _: u16) {
        unreachable!("words alone")
    }

    fn write32(&self, offset: u64, value: u32) {
        self.0.set((offset, value));
    }

    fn write64(&self, _: u64, _: u64) {
        unreachable!("words alone")
    }
}

#[test]
fn a_configuration_space_is_read_and_written_by_words() {
    let registers = Written::default();
    Configuration::write(&registers, 0x1_0004, 0x1234_5678);
    assert_eq!(Configuration::read(&registers, 0x1_0004), 0x1234_5678);
    assert_eq!(Configuration::read(&registers, 0x1_0008), 0);
}

#[test]
fn each_fault_has_a_sentence_of_its_own() {
    use BadFunction::{Forgetful, HalfPlaced, Header, Loop, NoPin, NoRoom, Outside, Registers, Structure};
    let faults = [Header, Loop, Structure, Outside, Registers, NoRoom, HalfPlaced, Forgetful, NoPin];
    let sentences: BTreeSet<&str> = faults.map(BadFunction::sentence).into();
    assert_eq!(sentences.len(), faults.len());
    assert!(Loop.sentence().contains("no end") && NoPin.sentence().contains("pin"));
}

/// What stands in a block that nobody needs, or in the ROM's register, is not where the others were put.
#[test]
fn what_nobody_needs_is_out_of_the_way() {
    let mut card = Card::console();
    card.put(0x14, &0x1000_0000_u32.to_le_bytes());
    card.put(0x30, &0x1000_0001_u32.to_le_bytes());
    let bus = Bus::with(card);
    let structures = bus.open(&windows()).unwrap();
    let other = Pa(u64::from(bus.read(0x1_0014)));
    assert!(!structures.common.registers.contains(other) && other.0 != 0, "{other:?}");
    assert_eq!(bus.read(0x1_0030), 0);
}

#[test]
fn what_lies_is_refused_by_name() {
    let opened = |change: fn(&mut Card)| {
        let mut card = Card::console();
        change(&mut card);
        // As firmware may have left it.
        card.put(4, &[5]);
        let bus = Bus::with(card);
        let opened = bus.open(&windows());
        assert!(opened.is_ok() || bus.command(0x10) == 1 << 10, "it does nothing, and is silent");
        opened.map(drop)
    };
    let lies: [Lie; 16] = [
        (|card| card.put(0xe, &[1]), BadFunction::Header),
        (|card| card.put(0x41, &[0x98]), BadFunction::Loop),
        (|card| card.put(0x99, &[0x98]), BadFunction::Loop),
        (|card| card.put(6, &[0]), BadFunction::Structure),
        (|card| card.put(0x34, &[0]), BadFunction::Structure),
        (|card| card.put(0x43, &[5]), BadFunction::Structure),
        (|card| card.put(0x44, &[6]), BadFunction::Structure),
        (|card| card.structure(0x40, 0, 1, 4, 0, 0x37), BadFunction::Structure),
        (|card| card.structure(0x40, 0, 1, 4, 0x3fc9, 0x38), BadFunction::Outside),
        (|card| card.structure(0x40, 0, 1, 4, u32::MAX, 0x38), BadFunction::Outside),
        (|card| card.structure(0x40, 0, 1, 0, 0, 0x38), BadFunction::Registers),
        (|card| card.put(0x20, &[1]), BadFunction::Structure),
        (|card| card.structure(0x40, 0, 1, 5, 0, 0x38), BadFunction::Registers),
        (|card| card.bars[1].2 = 0x6000, BadFunction::Registers),
        (|card| card.bars[1].2 = 1 << 41, BadFunction::Registers),
        (|card| card.forgets = true, BadFunction::Forgetful),
    ];
    for (number, (change, error)) in lies.into_iter().enumerate() {
        assert_eq!(opened(change), Err(error), "lie {number}");
    }
    assert_eq!(opened(|card| card.structure(0x40, 0, 1, 4, 0x3fc8, 0x38)), Ok(()), "at the end of its registers");
    // A block of 64 bits cannot begin in the last register, whatever stands behind it.
    let mut card = Card::console();
    card.bars = vec![(5, 4, 0x4000)];
    card.put(0x20, &[0; 4]);
    card.put(0x24, &[4]);
    card.put(0x28, &[0xff; 4]);
    [0x40, 0x50, 0x60, 0x70].into_iter().for_each(|at| card.put(at + 4, &[5]));
    assert_eq!(Bus::with(card).open(&windows()), Err(BadFunction::Registers));
    for (pin, expected) in [(0, Err(BadFunction::NoPin)), (4, Ok(4)), (5, Err(BadFunction::NoPin))] {
        let mut card = Card::console();
        card.put(0x3d, &[pin]);
        let bus = Bus::with(card);
        assert_eq!(Function::new(&bus, 0x10).unwrap().pin(), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever stands in a configuration space, what is used is in a window.
    #[test]
    fn any_function_is_survived(
        changes in prop::collection::vec((4..256_u64, any::<u8>()), 0..20),
        sizes in prop::collection::vec((0..6_u8, prop_oneof![Just(0_u32), Just(4), any::<u32>()], any::<u64>()), 0..3),
        forgets: bool,
    ) {
        let mut card = Card::console();
        changes.into_iter().for_each(|(at, byte)| card.put(at, &[byte]));
        card.bars.extend(sizes.into_iter().map(|(bar, flags, size)| (bar, flags & 0xf, size)));
        card.forgets = forgets;
        if let Ok(structures) = Bus::with(card).open(&windows()) {
            for structure in [structures.common, structures.notify, structures.isr, structures.device] {
                let registers = structure.registers;
                prop_assert!(windows().iter().any(|window| window.memory.contains_range(registers)));
                prop_assert!(structure.offset + structure.length <= registers.size);
            }
        }
    }
}
