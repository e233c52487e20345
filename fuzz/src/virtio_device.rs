//! The virtio devices under random rings, random registers, and both at once.

use std::cell::{Cell, RefCell};

use units::Ipa;
use virtio::{AccessSize, Block, Chain, Console, Device, Entropy, Fault, GuestMemory, Mmio, Queue};

use super::input::Input;

/// The guest's RAM starts at address 0, so that small random numbers are addresses in it.
const RAM_SIZE: usize = 0x4000;
/// The memory for what devices keep, and the part of it that is the disk's: a list of a page, and two pages behind it.
const ANNEX: usize = 0x6000;
const CHANGES: std::ops::Range<u64> = 0x2000..0x5000;
/// The longest that the queues here are.
pub(crate) const QUEUE_SIZE: u16 = 64;

pub(crate) struct Ram {
    bytes: RefCell<Vec<u8>>,
    annex: RefCell<Vec<u8>>,
    pub(crate) accesses: Cell<usize>,
}

impl Ram {
    pub(crate) fn new() -> Self {
        let (bytes, annex) = (RefCell::new(vec![0; RAM_SIZE]), RefCell::new(vec![0; ANNEX]));
        Self { bytes, annex, accesses: Cell::new(0) }
    }

    fn place(&self, at: Ipa, count: usize) -> Result<std::ops::Range<usize>, Fault> {
        self.accesses.set(self.accesses.get() + 1);
        let start = usize::try_from(at.0).map_err(|_| Fault(at))?;
        let end = start.checked_add(count).filter(|&end| end <= RAM_SIZE).ok_or(Fault(at))?;
        Ok(start..end)
    }

    /// A store by one of the guest's CPUs; one that leads nowhere faults, which is not our matter here.
    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        let _ = self.write(Ipa(at), bytes);
    }

    /// Fills a table of 64 descriptors. By `style`, chains go up or anywhere, and the upper half of the table is writable,
    /// or anything is anything; pieces may all be empty.
    pub(crate) fn fill_table(&self, table: u64, style: u8, mut seed: u64) {
        for index in 0..u64::from(QUEUE_SIZE) {
            // Any generator does (this is xorshift64); a fuzzer mutates the seed.
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let next = if style & 1 != 0 { index + 1 + (seed >> 48) % 9 } else { (seed >> 48) % 64 };
            let writable = if style & 2 != 0 { index >= 32 } else { seed & 2 != 0 };
            let chained = seed >> 32 & 7 != 0;
            let indirect = style & 4 != 0 && seed >> 36 & 7 == 0;
            let flags = u64::from(chained && !indirect) | u64::from(writable) << 1 | u64::from(indirect) << 2;
            let plain = if style & 8 != 0 { 0 } else { seed >> 16 & 0x1ff };
            let length = if indirect { 16 * (seed >> 16 & 63) } else { plain };
            let address = if indirect { table } else { seed & 0x3fff };
            self.put(table + index * 16, &address.to_le_bytes());
            self.put(table + index * 16 + 8, &(length | flags << 32 | next << 48).to_le_bytes());
        }
    }

    /// Each pair of descriptors of the table is a request of a disk: a read or a flush, with room for a sector and the answer.
    fn put_requests(&self) {
        for number in 0..u64::from(QUEUE_SIZE) / 2 {
            let (table, head) = (0x1000 + 32 * number, 0x2800 + 16 * number);
            let kind: u64 = if number % 4 == 3 { 4 } else { 0 };
            self.put(head, &kind.to_le_bytes());
            self.put(table, &head.to_le_bytes());
            self.put(table + 8, &(16 | 1 << 32 | (2 * number + 1) << 48).to_le_bytes());
            self.put(table + 16, &0x3000_u64.to_le_bytes());
            self.put(table + 24, &(513_u64 | 2 << 32).to_le_bytes());
        }
    }

    /// What the guest's CPUs write meanwhile: mostly ring indices and descriptors, so that something happens.
    pub(crate) fn scribble(&self, input: &mut Input<'_>, rings: (u64, u64)) {
        let (descriptors, available) = rings;
        match input.byte() % 4 {
            0 => self.put(input.half().into(), &input.double().to_le_bytes()),
            1 => {
                // A descriptor of reasonable address and length, with any flags and any next.
                let at = descriptors.wrapping_add(u64::from(input.byte() % 64) * 16);
                let start = u64::from(input.half() & 0x3fff);
                let rest =
                    u64::from(input.half()) | u64::from(input.byte() & 7) << 32 | u64::from(input.byte() % 70) << 48;
                self.put(at, &start.to_le_bytes());
                self.put(at.wrapping_add(8), &rest.to_le_bytes());
            }
            2 => {
                // One more buffer, as a driver that keeps the rules would offer it.
                let at = available.wrapping_add(2);
                if let Ok(index) = self.load_u16(Ipa(at)) {
                    let entry = available.wrapping_add(4 + u64::from(index % QUEUE_SIZE) * 2);
                    self.put(entry, &u16::from(input.byte() % 66).to_le_bytes());
                    self.put(at, &index.wrapping_add(1).to_le_bytes());
                }
            }
            _ => self.put(available.wrapping_add(2), &input.half().to_le_bytes()),
        }
    }
}

impl GuestMemory for Ram {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        let place = self.place(from, into.len())?;
        into.copy_from_slice(&self.bytes.borrow()[place]);
        Ok(())
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        let place = self.place(to, bytes.len())?;
        self.bytes.borrow_mut()[place].copy_from_slice(bytes);
        Ok(())
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        let mut bytes = [0; 2];
        self.read(at, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault> {
        self.write(at, &value.to_le_bytes())
    }

    fn read_annex(&self, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        into.copy_from_slice(&self.annex.borrow()[in_a_page(at, into.len())]);
        Ok(())
    }

    fn write_annex(&self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.annex.borrow_mut()[in_a_page(at, bytes.len())].copy_from_slice(bytes);
        Ok(())
    }
}

/// These bytes of the annex, which are the disk's own and in one page.
fn in_a_page(at: u64, count: usize) -> std::ops::Range<usize> {
    let end = at + count as u64;
    assert!(CHANGES.contains(&at) && end <= CHANGES.end && at / 4096 == (end - 1) / 4096, "{count} bytes at {at}");
    at as usize..end as usize
}

/// A queue in memory that is nothing but random: a chain's totals are those of its pieces, and taking one costs a bounded
/// number of accesses.
pub fn queue(data: &[u8]) {
    let mut input = Input(data);
    let ram = Ram::new();
    let features = input.byte();
    let (descriptors, available, used) = (u64::from(input.half()) & 0x3ff0, 0x1800, 0x2000);
    let mut queue = Queue::new(QUEUE_SIZE);
    queue.set_features(features & 1 != 0, features & 2 != 0);
    queue.place(1 << (features >> 2 & 7), Ipa(descriptors), Ipa(available), Ipa(used));
    let ready = queue.make_ready();
    ram.fill_table(descriptors, input.byte(), input.double() | 1);
    let mut chain = Chain::new(QUEUE_SIZE);
    while !input.is_empty() {
        for _ in 0..=input.byte() % 8 {
            ram.scribble(&mut input, (descriptors, available));
        }
        ram.accesses.set(0);
        let outcome = queue.pop(&ram, &mut chain);
        assert!(ram.accesses.get() <= usize::from(QUEUE_SIZE) + 5);
        assert!(ready || outcome == Ok(false));
        match outcome {
            Ok(true) => use_chain(&ram, &mut queue, &mut chain, input.byte()),
            Ok(false) => {}
            // The transport would stop the device; here it goes on from the start of the rings.
            Err(_) => {
                ram.put(available + 2, &[0; 2]);
                let _ = queue.make_ready();
            }
        }
    }
}

fn use_chain(ram: &Ram, queue: &mut Queue, chain: &mut Chain, request: u8) {
    let total = |pieces: &[units::Range<Ipa>]| pieces.iter().map(|piece| piece.size).sum::<u64>();
    let (readable, writable) = (total(chain.readable()), total(chain.writable()));
    assert_eq!((readable, writable), (chain.unread().into(), chain.unwritten().into()));
    let mut buffer = [0; 512];
    ram.accesses.set(0);
    if let Ok(read) = chain.read(ram, &mut buffer) {
        assert_eq!(u64::from(chain.unread()), readable - read as u64);
        // Fewer than there are, if the next piece cannot be reached: the next call says so.
        if (read as u64) < readable.min(512) {
            assert!(chain.read(ram, &mut buffer).is_err());
        }
    }
    if let Ok(written) = chain.write(ram, &buffer) {
        assert_eq!(chain.written() as usize, written);
        if (written as u64) < writable.min(512) {
            assert!(chain.write(ram, &buffer).is_err());
        }
    }
    assert!(ram.accesses.get() <= usize::from(QUEUE_SIZE));
    if request & 1 == 0 && queue.push(ram, chain).is_ok() {
        let _ = queue.take_interrupt(ram);
    }
}

/// A console, an entropy device and a disk under a driver that does anything.
pub fn mmio(data: &[u8]) {
    let mut input = Input(data);
    let seed = input.byte();
    if seed & 1 == 0 {
        let mut console = Mmio::new(Console::new());
        drive(&mut console, &mut input, |console, input| {
            let request = usize::from(input.byte());
            let pending = console.output_pending();
            assert!(console.push_input(&[seed; 256][..request]) <= request);
            let mut left = request * 16;
            let taken = console.take_output(|bytes| {
                let taken = left.min(bytes.len());
                left -= taken;
                taken
            });
            assert_eq!(taken, pending.min(request * 16));
        });
    } else if seed & 2 == 0 {
        // One that is written has more blocks than pages for them, and a last one that is not whole.
        let changes = if seed & 4 == 0 { 0..0 } else { CHANGES };
        let mut disk = Mmio::new(Block::with_changes([seed; 5 * 4096 - 512], 1, "fuzzed", changes));
        drive(&mut disk, &mut input, |_, _| {});
    } else {
        let mut entropy = Mmio::new(Entropy::new(|bytes: &mut [u8]| bytes.fill(seed)));
        drive(&mut entropy, &mut input, |_, _| {});
    }
}

/// Registers that matter to a queue's set-up, and the status.
pub(crate) const SETUP: [(u64, u64); 12] = [
    (0x070, 0),
    (0x070, 3),
    (0x024, 1),
    (0x020, 1),
    (0x024, 0),
    (0x020, 0x3000_0000),
    (0x070, 11),
    (0x038, QUEUE_SIZE as u64),
    (0x080, 0x1000),
    (0x090, 0x1800),
    (0x0a0, 0x2000),
    (0x044, 1),
];

/// Plays a driver that does anything; `outside` is what may happen beside it.
pub fn drive<D: Device>(mmio: &mut Mmio<D>, input: &mut Input<'_>, mut outside: impl FnMut(&mut D, &mut Input<'_>)) {
    let ram = Ram::new();
    ram.put_requests();
    while !input.is_empty() {
        match input.byte() % 8 {
            // Set up one queue by the rules, but for what later writes make of it.
            0 => {
                let queue = u64::from(input.byte() % 2);
                for (register, value) in SETUP {
                    let _ = mmio.write(0x030, AccessSize::Word, queue);
                    let _ = mmio.write(register, AccessSize::Word, value);
                }
                let _ = mmio.write(0x070, AccessSize::Word, 15);
            }
            1 => outside(mmio.device_mut(), input),
            2 => {
                let _ = mmio.write(u64::from(input.byte()) * 4, AccessSize::Word, input.word().into());
            }
            3 => {
                let size = AccessSize::from_sas(input.byte().into());
                let offset = if size == AccessSize::Double { input.double() } else { input.byte().into() };
                assert_eq!(mmio.read(offset, size) & !size.mask(), 0);
                let _ = mmio.write(offset, size, input.double());
            }
            4 => {
                ram.accesses.set(0);
                let live = mmio.is_live();
                let outcome = mmio.process(input.byte().into(), &ram);
                // At most 64 chains of at most 64 descriptors, each used once, and the rings' own accesses.
                assert!(ram.accesses.get() <= 64 * (2 * 64 + 16));
                assert!(outcome.is_ok() || live && !mmio.is_live() && mmio.line());
            }
            5 => {
                let _ = mmio.poll(&ram);
            }
            _ => ram.scribble(input, (0x1000, 0x1800)),
        }
    }
}
