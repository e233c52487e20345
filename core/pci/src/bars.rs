//! Where a function's blocks of registers are, and where they are put.

use platform::PciWindow;
use units::{Pa, Range};

use crate::{BadFunction, Configuration, Function, functions, register};

/// Bits of a block's register: it is of ports; it takes an address of 64 bits (of the field that says how long it is).
const IS_PORTS: u32 = 1;
const WIDTH: u32 = 3 << 1;
const WIDE: u32 = 2 << 1;
/// The others of memory are flags, too.
const FLAGS: u32 = 0xf;
/// The smallest block.
const SMALLEST: u64 = 16;

fn register(bar: u8) -> u64 {
    register::BAR0 + 4 * u64::from(bar)
}

/// Whether block number `bar` is of ports.
pub(crate) fn is_of_ports(function: &Function<'_>, bar: u8) -> bool {
    function.read32(register(bar)) & IS_PORTS != 0
}

/// Whether block number `bar` is one, and not the second half of a wide one's address.
fn is_first(function: &Function<'_>, bar: u8) -> bool {
    let mut next = 0;
    while next < bar {
        let is_wide = function.read32(register(next)) & (IS_PORTS | WIDTH) == WIDE;
        next += if is_wide { 2 } else { 1 };
    }
    next == bar
}

/// The places of the windows that blocks can have.
#[derive(Debug)]
pub struct BarPlaces<'w> {
    windows: &'w [PciWindow],
    /// Nothing on the bus has a place that was given by somebody else.
    is_free: bool,
    /// What was given last ends here, in which window.
    given: Option<(usize, u64)>,
}

impl<'w> BarPlaces<'w> {
    /// The places for functions of `bus`, none of which was given an address by us. They raise no interrupts from now on.
    #[inline(never)]
    #[must_use]
    pub fn new(bus: &dyn Configuration, windows: &'w [PciWindow]) -> Self {
        let mut is_free = true;
        for function in functions(bus) {
            is_free &= !function.is_placed();
            function.silence();
        }
        Self { windows, is_free, given: None }
    }

    /// Where block number `bar` of `function` is, or is put. The function does not answer meanwhile.
    pub(crate) fn place(&mut self, function: &Function<'_>, bar: u8) -> Result<Range<Pa>, BadFunction> {
        let low = register(bar);
        let first = function.read32(low);
        let is_wide = match first & WIDTH {
            _ if first & IS_PORTS != 0 || !is_first(function, bar) => return Err(BadFunction::Registers),
            0 => false,
            WIDE if bar < 5 => true,
            _ => return Err(BadFunction::Registers),
        };
        let high = is_wide.then_some(low + 4);
        let read =
            || u64::from(high.map_or(0, |high| function.read32(high))) << 32 | u64::from(function.read32(low) & !FLAGS);
        let write = |address: u64| {
            function.write32(low, address as u32);
            if let Some(high) = high {
                function.write32(high, (address >> 32) as u32);
            }
        };
        let address = read();
        // What it keeps of all ones is how it is aligned, and so how large it is.
        write(u64::MAX);
        let mask = read() | if is_wide { 0 } else { 0xffff_ffff << 32 };
        write(address);
        let size = (!mask).wrapping_add(1);
        if !size.is_power_of_two() || !(SMALLEST..=1 << 40).contains(&size) || !is_wide && size >> 32 != 0 {
            return Err(BadFunction::Registers);
        }
        if !self.is_free {
            let kept = self.windows.iter().find_map(|window| window.find(address, size)).filter(|_| address != 0);
            return kept.ok_or(BadFunction::HalfPlaced);
        }
        // What stands there from before might be where we have put another one.
        let (address, registers) = self.give(size, is_wide).ok_or(BadFunction::NoRoom)?;
        write(address);
        if read() == address { Ok(registers) } else { Err(BadFunction::Forgetful) }
    }

    /// Puts the blocks that nobody needs out of the way, of a function whose others were placed: it answers in all of them, and in what
    /// stands there from before others may lie. So may they in its ROM.
    pub(crate) fn place_others(&mut self, function: &Function<'_>, is_placed: [bool; 6]) -> Result<(), BadFunction> {
        function.write32(register::ROM, 0);
        for (bar, is_placed) in (0..).zip(is_placed) {
            // Where nothing is to be placed there is no block in memory.
            if self.is_free && !is_placed && self.place(function, bar) == Err(BadFunction::NoRoom) {
                return Err(BadFunction::NoRoom);
            }
        }
        Ok(())
    }

    /// The next place of `size` bytes, a power of two.
    fn give(&mut self, size: u64, is_wide: bool) -> Option<(u64, Range<Pa>)> {
        let (first, end) = self.given.unwrap_or((0, 0));
        for (number, window) in self.windows.iter().enumerate().skip(first) {
            // An address of 0 is none.
            let from = window.bus_address.max(1).max(if number == first { end } else { 0 });
            let Some(address) = from.checked_next_multiple_of(size) else { continue };
            let is_reached = is_wide || address.checked_add(size).is_some_and(|end| end <= 1 << 32);
            if let Some(registers) = window.find(address, size).filter(|_| is_reached) {
                self.given = Some((number, address + size));
                return Some((address, registers));
            }
        }
        None
    }
}
