//! Two banks of NOR flash that nobody has written to: erased, and nothing can be written to them.
//!
//! Boot loaders look here for their settings, and end at an abort. No command is one: the chips are not there to be written
//! to, nor to be identified, so a driver finds none.

use pack::{Damaged, Reader, Writer};

use crate::bus::{Access, Change, Device, Outside};

/// Erased flash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ErasedFlash;

impl Device for ErasedFlash {
    fn read(&mut self, access: &Access, _outside: &dyn Outside) -> u64 {
        access.size.mask()
    }

    fn write(&mut self, _access: &Access, _value: u64, _outside: &dyn Outside) {}

    fn lines(&self) -> u32 {
        0
    }

    fn poll(&mut self, _outside: &dyn Outside) {}

    fn change(&mut self, _change: Change, _outside: &dyn Outside) {}

    /// It has none.
    fn save_to(&self, _out: &mut Writer) {}

    fn restore_from(&mut self, _from: &mut Reader<'_>) -> Result<(), Damaged> {
        Ok(())
    }
}
