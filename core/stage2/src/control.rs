//! The two registers that point a CPU at a guest's tables: VTCR_EL2 (their shape) and VTTBR_EL2 (their place and VMID).

use units::{IPA_BITS, Pa};

use crate::Stage2Error;

/// Bytes of a guest's physical address space.
pub const IPA_SIZE: u64 = 1 << IPA_BITS;

const T0SZ: u64 = 64 - IPA_BITS as u64;
/// Start at level 1 (4 KiB granule).
const SL0_LEVEL_1: u64 = 0b01 << 6;
/// Walks are Normal, inner write-back, as EL2's own mapping of the tables is: no cache maintenance is needed.
const IRGN0_WRITE_BACK: u64 = 0b01 << 8;
const ORGN0_WRITE_BACK: u64 = 0b01 << 10;
const SH0_INNER: u64 = 0b11 << 12;
const TG0_4_KIB: u64 = 0b00 << 14;
const PS_SHIFT: u32 = 16;
const VS_16_BIT: u64 = 1 << 19;
const RES1: u64 = 1 << 31;

/// PARange of 40 bits, the least that can hold a 40-bit IPA space.
const PA_RANGE_40: u64 = 0b0010;
/// PARange of 48 bits, the most that descriptors of this format (VTCR_EL2.DS = 0) can express.
const PA_RANGE_48: u64 = 0b0101;

/// The value of VTCR_EL2 for all guests of this host.
///
/// `id_aa64mmfr0` and `id_aa64mmfr1` are the values of those ID registers; on a host with unlike CPUs, those of the CPU
/// with the smaller PARange. VMIDs are 16 bits wide if the CPU has them (ID_AA64MMFR1_EL1.VMIDBits = 2), else 8.
///
/// # Errors
///
/// [`Stage2Error::PhysicalRange`] if the CPU has fewer than 40 physical address bits.
pub const fn vtcr_el2(id_aa64mmfr0: u64, id_aa64mmfr1: u64) -> Result<u64, Stage2Error> {
    let pa_range = id_aa64mmfr0 & 0xf;
    if pa_range < PA_RANGE_40 {
        return Err(Stage2Error::PhysicalRange(pa_range));
    }
    let output_size = if pa_range > PA_RANGE_48 { PA_RANGE_48 } else { pa_range };
    let vmid_size = if (id_aa64mmfr1 >> 4) & 0xf == 2 { VS_16_BIT } else { 0 };
    let walk = IRGN0_WRITE_BACK | ORGN0_WRITE_BACK | SH0_INNER;
    Ok(RES1 | vmid_size | output_size << PS_SHIFT | TG0_4_KIB | walk | SL0_LEVEL_1 | T0SZ)
}

/// The value of VTTBR_EL2: the root table and the VMID. CnP stays 0, so CPUs never share TLB entries through it.
#[must_use]
pub const fn vttbr_el2(root: Pa, vmid: u16) -> u64 {
    (vmid as u64) << 48 | root.0
}

#[cfg(test)]
mod tests {
    use super::{vtcr_el2, vttbr_el2};
    use crate::Stage2Error;
    use units::Pa;

    #[test]
    fn cortex_a72_gets_44_bits_and_8_bit_vmids() {
        assert_eq!(vtcr_el2(0x1124, 0), Ok(0x8004_3558));
    }

    #[test]
    fn cpus_with_52_bits_are_limited_to_48_and_get_16_bit_vmids() {
        assert_eq!(vtcr_el2(0x6, 0x20), Ok(0x800d_3558));
    }

    #[test]
    fn forty_bits_will_do() {
        assert_eq!(vtcr_el2(0x2, 0), Ok(0x8002_3558));
    }

    #[test]
    fn a_cpu_with_36_bits_is_refused() {
        assert_eq!(vtcr_el2(0x1, 0), Err(Stage2Error::PhysicalRange(1)));
    }

    #[test]
    fn vttbr_holds_root_and_vmid() {
        assert_eq!(vttbr_el2(Pa(0x4020_0000), 3), 0x0003_0000_4020_0000);
    }
}
