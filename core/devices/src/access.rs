//! How the 32-bit registers of a PrimeCell answer accesses of other widths.

use units::AccessSize;

/// The offset of the 32-bit register that `offset` lies in.
pub(crate) const fn register_offset(offset: u64) -> u64 {
    offset & !3
}

/// The part of a 32-bit register's value that a read at `offset` of this size sees.
pub(crate) fn extract(register: u32, offset: u64, size: AccessSize) -> u64 {
    (u64::from(register) >> (8 * (offset & 3))) & size.mask()
}

/// What a write at `offset` of this size means for the 32-bit register there. PrimeCell peripherals sit on APB, which
/// has no byte lanes: a store reaches a register only at the register's own address, and only its low 32 bits do.
pub(crate) fn written(offset: u64, size: AccessSize, value: u64) -> Option<u32> {
    if offset & 3 == 0 { u32::try_from(value & size.mask() & 0xffff_ffff).ok() } else { None }
}

/// The eight identification bytes at the end of a PrimeCell's page (PeriphID0-3 at 0xfe0, CellID0-3 at 0xff0), one a
/// word; `None` if `offset` isn't there.
pub(crate) fn identification(offset: u64, peripheral: u32) -> Option<u32> {
    /// What every PrimeCell answers in CellID, lowest byte first.
    const CELL: u32 = 0xb105_f00d;
    let byte = |id: u32, base: u64| id.to_le_bytes().get(((offset - base) / 4) as usize).copied().map(u32::from);
    match offset {
        0xfe0..0xff0 => byte(peripheral, 0xfe0),
        0xff0..0x1000 => byte(CELL, 0xff0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_reads_see_their_part_and_narrow_writes_only_the_register_itself() {
        assert_eq!(extract(0x1234_5678, 0x41, AccessSize::Byte), 0x56);
        assert_eq!(extract(0x1234_5678, 0x42, AccessSize::Half), 0x1234);
        assert_eq!(extract(0x1234_5678, 0x40, AccessSize::Double), 0x1234_5678);
        assert_eq!(written(0x40, AccessSize::Byte, 0x1ff), Some(0xff));
        assert_eq!(written(0x41, AccessSize::Byte, 0xff), None);
        assert_eq!(written(0x40, AccessSize::Double, u64::MAX), Some(u32::MAX));
    }
}
