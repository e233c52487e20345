//! The generation identifier of a virtual machine ("Virtual Machine Generation ID", Microsoft, 2012): sixteen bytes that change
//! whenever the machine continues from a state from which it, or a copy of it, may have continued before. A guest mixes them into
//! its random numbers; otherwise two copies would draw the same ones, and make the same keys. Linux has a driver
//! (`drivers/virt/vmgenid.c`), which finds the device in a device tree since 6.10.
//!
//! To the guest the frame is memory that it can only read. The guest has no register to acknowledge the interrupt, so it is an
//! edge: the line is high from the change until the machine continues, and the first vCPU that runs finds the interrupt pending.
//!
//! The identifier stays the same over a reset: no memory survives that, so no random number drawn before is known afterwards.

use pack::{Damaged, Reader, Writer};

use crate::AccessSize;
use crate::bus::{Access, Change, Device, Outside};

/// A generation identifier whose bytes `S` makes, a function that fills what it is given with bytes that nobody can guess.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GenerationId<S> {
    source: S,
    /// 0 until the machine is started for the first time.
    id: u128,
    /// It has changed, and the machine has not gone on since.
    has_changed: bool,
}

/// The state of a generation identifier. Any value is one that can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SavedGenerationId {
    /// The first eight bytes.
    pub first: u64,
    /// The other eight.
    pub second: u64,
    /// The line is high.
    pub has_changed: bool,
}

impl SavedGenerationId {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedGenerationId as "generation" { first, second, has_changed });

impl<S: FnMut(&mut [u8])> GenerationId<S> {
    /// One whose bytes `source` makes. It has none yet.
    #[must_use]
    pub const fn new(source: S) -> Self {
        Self { source, id: 0, has_changed: false }
    }

    /// Takes the state out.
    #[must_use]
    pub const fn save(&self) -> SavedGenerationId {
        let &Self { source: _, id, has_changed } = self;
        SavedGenerationId { first: low(id), second: low(id >> 64), has_changed }
    }

    /// Puts a state in.
    pub const fn restore(&mut self, saved: &SavedGenerationId) {
        let &SavedGenerationId { first, second, has_changed } = saved;
        self.id = first as u128 | (second as u128) << 64;
        self.has_changed = has_changed;
    }

    /// The guest reads `size` bytes at `offset`.
    #[must_use]
    pub fn read_at(&self, offset: u64, size: AccessSize) -> u64 {
        let bits = u32::try_from(offset).ok().and_then(|offset| offset.checked_mul(8));
        low(bits.and_then(|bits| self.id.checked_shr(bits)).unwrap_or(0)) & size.mask()
    }

    fn renew(&mut self) {
        let mut bytes = [0; 16];
        (self.source)(&mut bytes);
        self.id = u128::from_le_bytes(bytes);
    }
}

/// The low 64 bits.
const fn low(value: u128) -> u64 {
    (value & u64::MAX as u128) as u64
}

impl<S: FnMut(&mut [u8]) + Send> Device for GenerationId<S> {
    fn read(&mut self, access: &Access, _outside: &dyn Outside) -> u64 {
        self.read_at(access.offset, access.size)
    }

    fn write(&mut self, _access: &Access, _value: u64, _outside: &dyn Outside) {}

    fn lines(&self) -> u32 {
        self.has_changed.into()
    }

    fn poll(&mut self, _outside: &dyn Outside) {}

    fn change(&mut self, change: Change, _outside: &dyn Outside) {
        match change {
            Change::Reset => {
                self.has_changed = false;
                if self.id == 0 {
                    self.renew();
                }
            }
            Change::Fork => {
                self.renew();
                self.has_changed = true;
            }
            Change::PowerOff | Change::Resume => self.has_changed = false,
            Change::Forget | Change::Pause | Change::Stall | Change::Unstall => {}
        }
    }

    fn save_to(&self, out: &mut Writer) {
        out.part(&self.save());
    }

    fn restore_from(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        let saved = from.part()?;
        self.restore(&saved);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pack::{Reader, Writer};
    use proptest::prelude::*;

    use super::{GenerationId, SavedGenerationId};
    use crate::{AccessSize, Device as _};

    #[test]
    fn sixteen_bytes_are_read_in_any_pieces_and_nothing_behind_them() {
        let mut device =
            GenerationId::new(|bytes: &mut [u8]| bytes.iter_mut().zip(1..).for_each(|(byte, n)| *byte = n));
        assert_eq!(device.read_at(0, AccessSize::Double), 0);
        device.renew();
        assert_eq!(device.read_at(0, AccessSize::Double), 0x0807_0605_0403_0201);
        assert_eq!(device.read_at(8, AccessSize::Double), 0x100f_0e0d_0c0b_0a09);
        assert_eq!(device.read_at(12, AccessSize::Word), 0x100f_0e0d);
        assert_eq!((device.read_at(5, AccessSize::Half), device.read_at(15, AccessSize::Byte)), (0x0706, 0x10));
        for offset in [16, 24, 0xfff, 1 << 32, u64::MAX] {
            assert_eq!(device.read_at(offset, AccessSize::Byte), 0, "{offset:#x}");
        }
        let saved = device.save();
        assert_eq!(
            saved,
            SavedGenerationId { first: 0x0807_0605_0403_0201, second: 0x100f_0e0d_0c0b_0a09, has_changed: false }
        );
    }

    proptest! {
        #[test]
        fn any_state_comes_back(first in any::<u64>(), second in any::<u64>(), has_changed in any::<bool>()) {
            let saved = SavedGenerationId { first, second, has_changed };
            let mut out = Writer::new();
            out.part(&saved);
            let bytes = out.finish().expect("there is memory");
            let mut device = GenerationId::new(|_: &mut [u8]| panic!("what is put in is not made anew"));
            device.restore_from(&mut Reader::new(&bytes)).expect("it was just written");
            prop_assert_eq!(device.save(), saved);
            prop_assert_eq!((device.read_at(0, AccessSize::Double), device.read_at(8, AccessSize::Double)), (first, second));
            prop_assert_eq!(device.lines(), u32::from(has_changed));
        }
    }
}
