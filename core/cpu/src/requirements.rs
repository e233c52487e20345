//! What Undercroft itself needs from a CPU, and what to say when it is not there.

use crate::id::{Field, HostIds, fields};

/// The CPU lacks something without which the hypervisor cannot run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Missing {
    /// No EL2.
    #[error("this CPU has no EL2 in AArch64 state: no virtual machine can run on it")]
    El2,
    /// EL2 exists only with HCR_EL2.E2H set.
    #[error("this CPU cannot run EL2 with HCR_EL2.E2H clear (ID_AA64MMFR4_EL1.E2H0), which this hypervisor needs")]
    E2hZero,
    /// EL1 in AArch64 state.
    #[error("this CPU has no EL1 in AArch64 state: no 64-bit guest can run on it")]
    El1,
    /// No system register interface of the GIC.
    #[error(
        "this CPU has no GICv3 system registers (ID_AA64PFR0_EL1.GIC): interrupts cannot reach guests; GICv2 is not supported"
    )]
    GicSystemRegisters,
    /// No 4 KiB granule for EL2's own tables.
    #[error("this CPU does not translate with 4 KiB pages (ID_AA64MMFR0_EL1.TGran4): the hypervisor cannot map itself")]
    Granule,
    /// No 4 KiB granule for stage 2.
    #[error("this CPU has no 4 KiB pages at stage 2 (ID_AA64MMFR0_EL1.TGran4_2): guest memory cannot be mapped")]
    Stage2Granule,
    /// Too few physical address bits.
    #[error("this CPU has {bits} physical address bits: guests need at least 36")]
    PhysicalAddressBits {
        /// How many it has.
        bits: u8,
    },
    /// No CRC32 instructions.
    #[error("this CPU has no CRC32 instructions (ID_AA64ISAR0_EL1.CRC32): the bundle cannot be checked")]
    Crc32,
}

/// Checks that a CPU with these identification registers can run the hypervisor; the first thing missing is named.
///
/// # Errors
///
/// [`Missing`], whose text is meant for the operator.
pub fn check(host: &HostIds) -> Result<(), Missing> {
    let signed = |field: Field| host.signed(field);
    let unsigned = |field: Field| host.field(field);
    if unsigned(fields::PFR0_EL2) == 0 {
        return Err(Missing::El2);
    }
    if signed(fields::MMFR4_E2H0) < 0 {
        return Err(Missing::E2hZero);
    }
    if unsigned(fields::PFR0_EL1) == 0 {
        return Err(Missing::El1);
    }
    if unsigned(fields::PFR0_GIC) == 0 {
        return Err(Missing::GicSystemRegisters);
    }
    if signed(fields::MMFR0_TGRAN4) < 0 {
        return Err(Missing::Granule);
    }
    // 0 means "as at stage 1", 1 means "not supported".
    if unsigned(fields::MMFR0_TGRAN4_2) == 1 {
        return Err(Missing::Stage2Granule);
    }
    let bits = host.physical_address_bits();
    if bits < 36 {
        return Err(Missing::PhysicalAddressBits { bits });
    }
    if unsigned(fields::ISAR0_CRC32) == 0 {
        return Err(Missing::Crc32);
    }
    Ok(())
}

/// Whether the virtual CPU interface with this ICH_VTR_EL2 traps ICC_DIR_EL1 by itself (ICH_HCR_EL2.TDIR; GIC IHI 0069H 12.4.9). Many
/// CPUs of Armv8.0 do not, and trap it with others (TC).
#[must_use]
pub const fn traps_deactivation(vtr: u64) -> bool {
    vtr & 1 << 19 != 0
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Missing, check, traps_deactivation};
    use crate::id::{Field, HostIds, fields, models};
    use std::string::ToString;

    #[test]
    fn the_supported_models_suffice() {
        for (name, host) in models::ALL {
            assert_eq!(check(host), Ok(()), "{name}");
        }
    }

    #[test]
    fn an_address_needs_36_bits() {
        let mut host: HostIds = models::CORTEX_A76;
        host.set_field(fields::MMFR0_PARANGE, 1);
        assert_eq!(check(&host), Ok(()));
        host.set_field(fields::MMFR0_PARANGE, 0);
        assert_eq!(check(&host), Err(Missing::PhysicalAddressBits { bits: 32 }));
    }

    #[test]
    fn each_thing_missing_is_named() {
        let without = |field: Field, value: u64| {
            let mut host: HostIds = models::CORTEX_A76;
            host.set_field(field, value);
            check(&host)
        };
        assert_eq!(without(fields::PFR0_EL2, 0), Err(Missing::El2));
        assert_eq!(without(fields::MMFR4_E2H0, 0xf), Err(Missing::E2hZero));
        assert_eq!(without(fields::PFR0_EL1, 0), Err(Missing::El1));
        assert_eq!(without(fields::PFR0_GIC, 0), Err(Missing::GicSystemRegisters));
        assert_eq!(without(fields::MMFR0_TGRAN4, 0xf), Err(Missing::Granule));
        assert_eq!(without(fields::MMFR0_TGRAN4_2, 1), Err(Missing::Stage2Granule));
        assert_eq!(without(fields::MMFR0_PARANGE, 0), Err(Missing::PhysicalAddressBits { bits: 32 }));
        assert_eq!(without(fields::ISAR0_CRC32, 0), Err(Missing::Crc32));
        // ICH_VTR_EL2.TDS, beside other fields.
        assert!(traps_deactivation(0x9008_0003) && !traps_deactivation(0x9090_0003));
        assert!(Missing::PhysicalAddressBits { bits: 32 }.to_string().contains("32"));
    }
}
