//! A fake device, an array of bytes, for tests: it remembers what was written to it in which order, and a test says
//! what some registers answer. An access beyond its end, or an unaligned one, is a bug of the driver, and fails the
//! test.

extern crate std;

use core::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::vec::Vec;

use crate::Registers;

/// A write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Of a byte: offset and value.
    Write8(u64, u8),
    /// Of two bytes.
    Write16(u64, u16),
    /// Of four bytes.
    Write32(u64, u32),
    /// Of eight bytes.
    Write64(u64, u64),
}

/// See above. What was written reads back, unless the test says otherwise.
#[derive(Debug)]
pub(crate) struct Fake {
    size: u64,
    values: RefCell<BTreeMap<u64, u64>>,
    frozen: RefCell<BTreeMap<u64, u64>>,
    answers: RefCell<BTreeMap<u64, VecDeque<u64>>>,
    log: RefCell<Vec<Access>>,
    /// How many reads there were, by offset.
    reads: RefCell<BTreeMap<u64, usize>>,
}

impl Fake {
    /// A device with `size` bytes of registers, all zero.
    pub(crate) fn new(size: u64) -> Self {
        Self {
            size,
            values: RefCell::default(),
            frozen: RefCell::default(),
            answers: RefCell::default(),
            log: RefCell::default(),
            reads: RefCell::default(),
        }
    }

    /// The register at `offset` reads as `value` until something is written to it.
    pub(crate) fn set(&self, offset: u64, value: u64) {
        self.values.borrow_mut().insert(offset, value);
    }

    /// The register at `offset` reads as `value` whatever is written to it.
    pub(crate) fn freeze(&self, offset: u64, value: u64) {
        self.frozen.borrow_mut().insert(offset, value);
    }

    /// The next reads of `offset` give `values`, one each, before it is itself again.
    pub(crate) fn answer(&self, offset: u64, values: impl IntoIterator<Item = u64>) {
        self.answers.borrow_mut().entry(offset).or_default().extend(values);
    }

    /// What was written, in its order, since this was last asked.
    pub(crate) fn log(&self) -> Vec<Access> {
        self.log.take()
    }

    /// How often the register at `offset` was read.
    pub(crate) fn reads_of(&self, offset: u64) -> usize {
        self.reads.borrow().get(&offset).copied().unwrap_or(0)
    }

    fn check(&self, offset: u64, width: u64) {
        assert!(offset + width <= self.size, "{width} bytes at {offset:#x} of {:#x}", self.size);
        assert!(offset.is_multiple_of(width), "{width} bytes at {offset:#x}");
    }

    fn read(&self, offset: u64, width: u64) -> u64 {
        self.check(offset, width);
        *self.reads.borrow_mut().entry(offset).or_default() += 1;
        if let Some(answer) = self.answers.borrow_mut().get_mut(&offset).and_then(VecDeque::pop_front) {
            return answer;
        }
        let frozen = self.frozen.borrow().get(&offset).copied();
        frozen.or_else(|| self.values.borrow().get(&offset).copied()).unwrap_or(0)
    }

    fn write(&self, offset: u64, width: u64, value: u64, access: Access) {
        self.check(offset, width);
        self.log.borrow_mut().push(access);
        self.set(offset, value);
    }
}

impl Registers for &Fake {
    fn size(&self) -> u64 {
        self.size
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

    fn read64(&self, offset: u64) -> u64 {
        self.read(offset, 8)
    }

    fn write8(&self, offset: u64, value: u8) {
        self.write(offset, 1, u64::from(value), Access::Write8(offset, value));
    }

    fn write16(&self, offset: u64, value: u16) {
        self.write(offset, 2, u64::from(value), Access::Write16(offset, value));
    }

    fn write32(&self, offset: u64, value: u32) {
        self.write(offset, 4, u64::from(value), Access::Write32(offset, value));
    }

    fn write64(&self, offset: u64, value: u64) {
        self.write(offset, 8, value, Access::Write64(offset, value));
    }
}
