//! The GPIO controller: a PrimeCell PL061 (Arm DDI 0190), eight pins, of which the guest's power button is one.
//!
//! Pins that the guest makes outputs lead nowhere. Inputs are set from outside with [`Pl061::set_input`]; a press of the
//! power button is pin [`POWER_BUTTON_PIN`] high for about a tenth of a second, longer than the time for which Linux's
//! gpio-keys waits for a contact to settle.

use pack::{Damaged, Reader, Writer};

use crate::access::{extract, identification, register_offset, written};
use crate::bus::{Access, Change, Device, Outside};
use crate::{AccessSize, Effect};

/// The pin at which QEMU's `virt` machine, and so its guests' device trees and ACPI tables, have the power button.
pub const POWER_BUTTON_PIN: u8 = 3;

/// Register offsets (DDI 0190 table 3-1).
mod register {
    pub(super) const DIR: u64 = 0x400;
    pub(super) const IS: u64 = 0x404;
    pub(super) const IBE: u64 = 0x408;
    pub(super) const IEV: u64 = 0x40c;
    pub(super) const IE: u64 = 0x410;
    pub(super) const RIS: u64 = 0x414;
    pub(super) const MIS: u64 = 0x418;
    pub(super) const IC: u64 = 0x41c;
    pub(super) const AFSEL: u64 = 0x420;
}

/// Part 0x061, designer Arm (0x41), revision 0.
const PERIPHERAL_ID: u32 = 0x0004_1061;

/// A PL061. Each register is one bit a pin.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pl061 {
    /// What the outside drives.
    inputs: u8,
    /// What the guest last wrote.
    outputs: u8,
    direction: u8,
    level_sensitive: u8,
    both_edges: u8,
    rising_or_high: u8,
    enabled: u8,
    /// Edges seen and not yet cleared.
    edges: u8,
    alternate_function: u8,
}

/// The state of a PL061, a bit a pin. Any value is one that a guest and the outside can bring about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SavedPl061 {
    /// What the outside drives.
    pub inputs: u8,
    /// What the guest last wrote to GPIODATA.
    pub outputs: u8,
    /// GPIODIR.
    pub direction: u8,
    /// GPIOIS.
    pub level_sensitive: u8,
    /// GPIOIBE.
    pub both_edges: u8,
    /// GPIOIEV.
    pub rising_or_high: u8,
    /// GPIOIE.
    pub enabled: u8,
    /// Edges seen and not yet cleared.
    pub edges: u8,
    /// GPIOAFSEL.
    pub alternate_function: u8,
}

impl SavedPl061 {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedPl061 as "pl061" {
    inputs, outputs, direction, level_sensitive, both_edges, rising_or_high, enabled, edges, alternate_function
});

impl Pl061 {
    /// Takes the state out.
    #[must_use]
    pub const fn save(&self) -> SavedPl061 {
        let &Self {
            inputs,
            outputs,
            direction,
            level_sensitive,
            both_edges,
            rising_or_high,
            enabled,
            edges,
            alternate_function,
        } = self;
        SavedPl061 {
            inputs,
            outputs,
            direction,
            level_sensitive,
            both_edges,
            rising_or_high,
            enabled,
            edges,
            alternate_function,
        }
    }

    /// A controller with this state.
    #[must_use]
    pub const fn restored(saved: &SavedPl061) -> Self {
        let &SavedPl061 {
            inputs,
            outputs,
            direction,
            level_sensitive,
            both_edges,
            rising_or_high,
            enabled,
            edges,
            alternate_function,
        } = saved;
        Self {
            inputs,
            outputs,
            direction,
            level_sensitive,
            both_edges,
            rising_or_high,
            enabled,
            edges,
            alternate_function,
        }
    }

    /// A controller after reset: all pins inputs, all of them low.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            inputs: 0,
            outputs: 0,
            direction: 0,
            level_sensitive: 0,
            both_edges: 0,
            rising_or_high: 0,
            enabled: 0,
            edges: 0,
            alternate_function: 0,
        }
    }

    /// The level of GPIOINTR.
    #[must_use]
    pub const fn line(&self) -> bool {
        self.raw_interrupts() & self.enabled != 0
    }

    /// The outside drives `pin` (0 to 7; others don't exist and do nothing) high or low.
    pub fn set_input(&mut self, pin: u8, high: bool) {
        let bit = 1u8.checked_shl(pin.into()).unwrap_or(0);
        let before = self.levels();
        self.inputs = if high { self.inputs | bit } else { self.inputs & !bit };
        self.detect_edges(before);
    }

    /// The guest reads `size` bytes at `offset`.
    #[must_use]
    pub fn read(&self, offset: u64, size: AccessSize) -> u64 {
        let at = register_offset(offset);
        let value = match at {
            // Address bits 9 to 2 choose the pins that the access is about.
            0..register::DIR => self.levels() & pins(at),
            register::DIR => self.direction,
            register::IS => self.level_sensitive,
            register::IBE => self.both_edges,
            register::IEV => self.rising_or_high,
            register::IE => self.enabled,
            register::RIS => self.raw_interrupts(),
            register::MIS => self.raw_interrupts() & self.enabled,
            register::AFSEL => self.alternate_function,
            _ => return extract(identification(at, PERIPHERAL_ID).unwrap_or(0), offset, size),
        };
        extract(value.into(), offset, size)
    }

    /// The guest writes `size` bytes at `offset`. There is never an effect outside the interrupt line.
    pub fn write(&mut self, offset: u64, size: AccessSize, value: u64) -> Effect {
        let Some(value) = written(offset, size, value) else { return Effect::None };
        let value = value.to_le_bytes()[0];
        let before = self.levels();
        match offset {
            0..register::DIR => {
                let chosen = pins(offset) & self.direction;
                self.outputs = self.outputs & !chosen | value & chosen;
            }
            register::DIR => self.direction = value,
            register::IS => self.level_sensitive = value,
            register::IBE => self.both_edges = value,
            register::IEV => self.rising_or_high = value,
            register::IE => self.enabled = value,
            register::IC => self.edges &= !value,
            register::AFSEL => self.alternate_function = value,
            _ => {}
        }
        self.detect_edges(before);
        Effect::None
    }

    /// What each pin carries: the guest's value on outputs, the outside's on inputs.
    const fn levels(&self) -> u8 {
        self.outputs & self.direction | self.inputs & !self.direction
    }

    const fn raw_interrupts(&self) -> u8 {
        let active_levels = !(self.levels() ^ self.rising_or_high);
        self.level_sensitive & active_levels | !self.level_sensitive & self.edges
    }

    /// Remembers the edges that the pins made since their levels were `before`.
    const fn detect_edges(&mut self, before: u8) {
        let now = self.levels();
        let wanted = self.both_edges | !(now ^ self.rising_or_high);
        self.edges |= (before ^ now) & wanted & !self.level_sensitive;
    }
}

impl Device for Pl061 {
    fn read(&mut self, access: &Access, _outside: &dyn Outside) -> u64 {
        Self::read(self, access.offset, access.size)
    }

    fn write(&mut self, access: &Access, value: u64, _outside: &dyn Outside) {
        // Never an effect outside the line.
        let _ = Self::write(self, access.offset, access.size, value);
    }

    fn lines(&self) -> u32 {
        self.line().into()
    }

    fn poll(&mut self, _outside: &dyn Outside) {}

    fn change(&mut self, change: Change, _outside: &dyn Outside) {
        match change {
            Change::Reset => *self = Self::new(),
            Change::PowerOff
            | Change::Forget
            | Change::Pause
            | Change::Resume
            | Change::Stall
            | Change::Unstall
            | Change::Fork => {}
        }
    }

    fn save_to(&self, out: &mut Writer) {
        out.part(&self.save());
    }

    fn restore_from(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        *self = Self::restored(&from.part()?);
        Ok(())
    }
}

/// The pins that a data access at `offset` (below 0x400, a multiple of 4) is about.
const fn pins(offset: u64) -> u8 {
    (offset >> 2) as u8
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::{POWER_BUTTON_PIN, Pl061, register};
    use crate::AccessSize;

    const WORD: AccessSize = AccessSize::Word;
    const BUTTON: u64 = 1 << POWER_BUTTON_PIN;

    fn write(gpio: &mut Pl061, offset: u64, value: u64) {
        let _ = gpio.write(offset, WORD, value);
    }

    #[test]
    fn a_press_gives_gpio_keys_an_interrupt_for_each_edge() {
        let mut gpio = Pl061::new();
        write(&mut gpio, register::IBE, BUTTON);
        write(&mut gpio, register::IE, BUTTON);
        for high in [true, false] {
            gpio.set_input(POWER_BUTTON_PIN, high);
            assert!(gpio.line());
            assert_eq!(gpio.read(register::MIS, WORD), BUTTON);
            assert_eq!(gpio.read(BUTTON << 2, WORD), if high { BUTTON } else { 0 });
            write(&mut gpio, register::IC, BUTTON);
            assert!(!gpio.line());
        }
    }

    #[test]
    fn one_edge_only_if_so_asked() {
        let mut gpio = Pl061::new();
        write(&mut gpio, register::IE, 0xff);
        write(&mut gpio, register::IEV, 1);
        gpio.set_input(0, true);
        assert!(gpio.line());
        write(&mut gpio, register::IC, 1);
        gpio.set_input(0, false);
        assert!(!gpio.line());
        gpio.set_input(8, true);
        assert!(!gpio.line());
    }

    #[test]
    fn a_level_is_not_cleared_but_goes() {
        let mut gpio = Pl061::new();
        write(&mut gpio, register::IS, 0xff);
        write(&mut gpio, register::IEV, 0xff);
        write(&mut gpio, register::IE, 0xff);
        gpio.set_input(5, true);
        // Told again, it is as high as before.
        gpio.set_input(5, true);
        write(&mut gpio, register::IC, 0xff);
        assert!(gpio.line());
        gpio.set_input(5, false);
        assert!(!gpio.line());
    }

    #[test]
    fn outputs_keep_what_is_written_through_the_mask() {
        let mut gpio = Pl061::new();
        write(&mut gpio, register::DIR, 0xf0);
        write(&mut gpio, 0x3fc, 0xff);
        assert_eq!(gpio.read(0x3fc, WORD), 0xf0);
        write(&mut gpio, 0x40 << 2, 0);
        assert_eq!(gpio.read(0x3fc, WORD), 0xb0);
        assert_eq!(gpio.read(0x10 << 2, WORD), 0x10);
    }

    #[test]
    fn each_register_keeps_its_own_bits() {
        let mut gpio = Pl061::new();
        let kept = [register::DIR, register::IS, register::IBE, register::IEV, register::IE, register::AFSEL];
        for shift in 0..4 {
            kept.iter().zip(0..).for_each(|(&offset, number)| write(&mut gpio, offset, 0x133 << shift | number));
            for (&offset, number) in kept.iter().zip(0..) {
                assert_eq!(gpio.read(offset, WORD), (0x133 << shift | number) & 0xff, "{offset:#x}");
            }
        }
        assert_eq!(gpio.read(0x424, WORD), 0);
    }

    /// By its mask register and its raw one: which of the pins that interrupt are let through.
    #[test]
    fn raw_and_masked_interrupts_differ_by_the_mask() {
        let mut gpio = Pl061::new();
        write(&mut gpio, register::IBE, 0xff);
        write(&mut gpio, register::IE, 0b0110);
        for pin in [0, 1] {
            gpio.set_input(pin, true);
        }
        assert_eq!((gpio.read(register::RIS, WORD), gpio.read(register::MIS, WORD)), (0b11, 0b10));
        // Levels and edges beside each other.
        write(&mut gpio, register::IS, 0b1100);
        write(&mut gpio, register::IEV, 0b0100);
        gpio.set_input(2, true);
        assert_eq!((gpio.read(register::RIS, WORD), gpio.read(register::MIS, WORD)), (0b1111, 0b0110));
        gpio.set_input(3, true);
        write(&mut gpio, register::IC, 0b0001);
        assert_eq!(gpio.read(register::RIS, WORD), 0b0110);
    }

    #[test]
    fn identification_is_the_pl061s() {
        let gpio = Pl061::new();
        let id: Vec<u64> = (0xfe0..0xff0).step_by(4).map(|offset| gpio.read(offset, WORD)).collect();
        assert_eq!(id, [0x61, 0x10, 0x04, 0x00]);
    }
}
