//! Two banks of erased NOR flash, which cannot be written.
//!
//! Boot loaders look here for their settings, and would crash at an abort. The chips answer no command, not even
//! identification, so a driver finds none.

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
