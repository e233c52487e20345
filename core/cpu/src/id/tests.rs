//! Nothing unknown shines through, and what the supported models show is written down.
extern crate std;
use super::field::registers;
use super::names::features;
use super::policy::{Limit, common, shown};
use super::{COUNT, GuestIds, HostIds, Inputs, encoding, fields, index, index_of_syndrome, models};
use crate::controls::controls;
use crate::encoding::SysregEncoding;
use proptest::prelude::*;
use std::vec::Vec;

const INPUTS: Inputs = Inputs { ipa_bits: 40 };

/// Guest values that are not zero.
fn visible(host: &HostIds) -> Vec<(usize, u64)> {
    let guest = GuestIds::new(host, INPUTS);
    guest.0.iter().copied().enumerate().filter(|&(_, value)| value != 0).collect()
}

#[test]
fn indices_and_encodings_belong_together() {
    for position in 0..COUNT {
        assert_eq!(index(encoding(position)), Some(position));
    }
    assert_eq!(index(SysregEncoding::new(3, 0, 0, 4, 0)), Some(24));
    assert_eq!(index(SysregEncoding::new(3, 0, 0, 0, 5)), None);
    assert_eq!(index(SysregEncoding::new(3, 0, 0, 8, 0)), None);
    assert_eq!(index(SysregEncoding::new(3, 1, 0, 4, 0)), None);
    assert_eq!(index(SysregEncoding::new(2, 0, 0, 4, 0)), None);
}

#[test]
fn the_fast_path_agrees_with_the_encoding() {
    for iss in 0..1_u64 << 22 {
        let read = iss & 1 != 0;
        let expected = if read { index(SysregEncoding::from_syndrome(iss)) } else { None };
        assert_eq!(index_of_syndrome(0x6200_0000 | iss), expected, "{iss:#x}");
    }
}

#[test]
fn a_guest_reads_its_own_registers_and_no_others() {
    let guest = GuestIds::new(&models::MAX, INPUTS);
    assert!((0..COUNT).all(|index| guest.get(index) == guest.0[index]));
    assert_eq!((guest.get(index(SysregEncoding::new(3, 0, 0, 4, 0)).unwrap()) & 0xff, guest.get(COUNT)), (0x11, 0));
    // ID_AA64ISAR3_EL1 has fields that guests are shown.
    let mut host = models::MAX;
    host.0[registers::ISAR3] = u64::MAX;
    assert_ne!(GuestIds::new(&host, INPUTS).get(registers::ISAR3), 0);
}

/// ID_AA64MMFR0_EL1.PARange.
#[test]
fn codes_of_physical_address_sizes() {
    let mut host = models::MAX;
    for (code, bits) in [(0, 32), (1, 36), (2, 40), (3, 42), (4, 44), (5, 48), (6, 52), (7, 56)] {
        host.set_field(fields::MMFR0_PARANGE, code);
        assert_eq!(host.physical_address_bits(), bits);
    }
    for (ipa_bits, code) in
        [(32, 0), (35, 0), (36, 1), (39, 1), (40, 2), (41, 2), (42, 3), (43, 3), (44, 4), (47, 4), (48, 5), (52, 5)]
    {
        assert_eq!(GuestIds::new(&host, Inputs { ipa_bits }).get(registers::MMFR0) & 0xf, code, "{ipa_bits} bits");
    }
}

/// FP and AdvSIMD of ID_AA64PFR0_EL1 (bits 16 and 20) are signed, and -1 is the least; no other field of it is.
#[test]
fn two_cpus_have_the_lesser_value_of_each_field_in_common() {
    let of = |field: u64, shift: u32| field << shift;
    for shift in [16, 20] {
        for (one, other, less) in [(0xf, 0, 0xf), (0, 0xf, 0xf), (0, 1, 0), (1, 0, 0), (0xf, 0xf, 0xf)] {
            assert_eq!(
                common(registers::PFR0, of(one, shift), of(other, shift)),
                of(less, shift),
                "{one:#x}, {other:#x}"
            );
        }
    }
    for (one, other, less) in [(0xf, 0, 0), (0, 0xf, 0), (3, 0xf, 3), (2, 1, 1)] {
        assert_eq!(common(registers::ISAR0, of(one, 4), of(other, 4)), of(less, 4), "{one:#x}, {other:#x}");
        assert_eq!(common(registers::PFR0, of(one, 28), of(other, 28)), of(less, 28), "{one:#x}, {other:#x}");
    }
    // The same for names: -1 has no FP, 0 has it, and of a field that is not signed 15 is the most.
    let named =
        |shift, before, after| -> Vec<(&str, bool)> { features(registers::PFR0, shift, before, after).collect() };
    assert_eq!(named(16, 0, 0xf), [("FEAT_FP", true)]);
    assert_eq!(named(20, 0xf, 0), [("FEAT_AdvSIMD", false)]);
    assert_eq!(named(16, 0, 1), [("FEAT_FP16", false)]);
    assert_eq!(named(48, 1, 0xf), []);
    assert_eq!(named(48, 0xf, 0), [("FEAT_DIT", true)]);
}

#[test]
fn rows_do_not_overlap() {
    for register in 0..COUNT {
        let mut seen = 0_u64;
        for row in shown(register) {
            assert_eq!(row.shift % 4, 0);
            assert_eq!(seen & 0xf << row.shift, 0, "register {register}, bit {}", row.shift);
            seen |= 0xf << row.shift;
        }
    }
}

// What a guest can use is what is switched, and what is switched is what it can use. These tests know the fields and bits of the
// manual by themselves; only the numbers are those of the policy's table.

/// HCR_EL2.APK and API.
const POINTER_KEYS_ENABLED: u64 = 3 << 40;
/// HCR_EL2.EnSCXT.
const CONTEXT_NUMBERS_ENABLED: u64 = 1 << 53;

#[test]
fn pointer_keys_are_enabled_exactly_where_they_are_switched() {
    // APA, API, GPA and GPI of ISAR1; GPA3 and APA3 of ISAR2. Each alone, and all together.
    let fields = [(41, 4), (41, 8), (41, 24), (41, 28), (42, 8), (42, 12)];
    let values = [0, 1, 2, 5, 6, 15_u64];
    for combination in 0..values.len().pow(6) {
        let mut host = HostIds([0; COUNT]);
        for (position, (register, shift)) in fields.into_iter().enumerate() {
            host.0[register] |= values[combination / values.len().pow(position as u32) % values.len()] << shift;
        }
        let guest = GuestIds::new(&host, INPUTS);
        let any_of = |ids: &[u64; COUNT]| fields.iter().any(|&(register, shift)| ids[register] >> shift & 0xf != 0);
        let enabled = controls(&host, 0).hcr & POINTER_KEYS_ENABLED;
        let what = (host.0[41], host.0[42]);
        assert!(enabled == 0 || enabled == POINTER_KEYS_ENABLED, "keys and instructions go together: {what:x?}");
        assert_eq!(enabled != 0, host.switched().pointer_keys, "enabled, switched: {what:x?}");
        assert_eq!(any_of(&guest.0), host.switched().pointer_keys, "shown, switched: {what:x?}");
        assert_eq!(any_of(&host.0), any_of(&guest.0), "had by the host, shown: {what:x?}");
    }
}

#[test]
fn context_numbers_are_enabled_exactly_where_they_are_switched() {
    for (csv2, fraction) in (0..16).flat_map(|csv2| (0..16).map(move |fraction| (csv2, fraction))) {
        let mut host = HostIds([0; COUNT]);
        host.0[24] = csv2 << 56;
        host.0[25] = fraction << 32;
        let guest = GuestIds::new(&host, INPUTS);
        let shown = guest.0[24] >> 56 >= 2 || guest.0[25] >> 32 & 0xf >= 2;
        let enabled = controls(&host, 0).hcr & CONTEXT_NUMBERS_ENABLED != 0;
        assert_eq!((enabled, shown), (host.switched().context_numbers, enabled), "CSV2 {csv2}, CSV2_frac {fraction}");
        assert_eq!(guest.0[24] >> 56, csv2.min(3), "what the predictors promise is shown");
    }
}

#[test]
fn what_nothing_traps_is_switched_and_counts_are_those_that_are_shown() {
    for value in 0..16 {
        let mut host = HostIds([0; COUNT]);
        host.0[24] = value << 28;
        // DISR_EL1 is there with FEAT_RAS, hidden or not.
        assert_eq!(host.switched().deferred_error, value != 0, "RAS {value}");
        host.0[32] = value << 12 | (15 - value) << 20;
        let guest = GuestIds::new(&host, INPUTS).0[32];
        assert_eq!(u64::from(host.switched().breakpoints), (guest >> 12 & 0xf) + 1);
        assert_eq!(u64::from(host.switched().watchpoints), (guest >> 20 & 0xf) + 1);
    }
}

/// Each field of each register alone, with each value: EL2 enables nothing for guests but what is switched.
#[test]
fn no_field_enables_anything_else() {
    for (register, shift, value) in (0..COUNT)
        .flat_map(|register| (0..16).flat_map(move |field| (1..16).map(move |value| (register, 4 * field, value))))
    {
        let mut host = HostIds([0; COUNT]);
        // With HCRX_EL2 and the fine-grained traps there is more that could be enabled.
        host.0[49] = 1 << 40;
        host.0[48] = 2 << 56;
        host.0[register] = host.0[register] & !(0xf << shift) | value << shift;
        let (controls, switched) = (controls(&host, 6), host.switched());
        let what = (register, shift, value);
        // FIEN, EnSCXT and ATA, APK and API, DCT, NV: the enables of HCR_EL2.
        let enabled = controls.hcr & (1 << 47 | 1 << 53 | 1 << 56 | 3 << 40 | 1 << 57 | 1 << 42);
        let keys = if switched.pointer_keys { POINTER_KEYS_ENABLED } else { 0 };
        let numbers = if switched.context_numbers { CONTEXT_NUMBERS_ENABLED } else { 0 };
        assert_eq!(enabled, keys | numbers, "{what:?}");
        // TALLINT is the one trap of HCRX_EL2 that we set; its other bits enable something. VINMI, VFNMI are not set either.
        assert_eq!(controls.hcrx.unwrap_or(0) & !(1 << 6), 0, "{what:?}");
        // The fine-grained registers' enables have bits that are 1 in no value of ours.
        let traps = controls.fine_grained.unwrap_or_default();
        assert_eq!(traps.hfgitr & !(1 << 62), 0, "{what:?}");
        assert_eq!((traps.hfgrtr, traps.hfgwtr, traps.hafgrtr), (0, 0, 0), "{what:?}");
        assert_eq!(controls.cptr & 0x1100, 0x1100, "SVE and SME trap: {what:?}");
    }
}

/// A CPU of the far future, with every bit set, shows the list and nothing else.
#[test]
fn nothing_unknown_shines_through() {
    let guest = GuestIds::new(&HostIds([u64::MAX; COUNT]), INPUTS);
    for (register, &value) in guest.0.iter().enumerate() {
        let mut unexplained = value;
        for row in shown(register) {
            let field = value >> row.shift & 0xf;
            let fits = match row.limit {
                Limit::AtMost(limit) => field <= limit,
                Limit::Always(constant) => field == constant,
                // All ones is -1 there: the feature is absent.
                Limit::SignedAtMost(_) => field == 0xf,
                Limit::AddressBits => field == 2,
                Limit::Count => true,
            };
            assert!(fits, "register {register}, bit {}: {field}", row.shift);
            unexplained &= !(0xf << row.shift);
        }
        assert_eq!(unexplained, 0, "register {register}");
    }
}

#[test]
fn a_host_with_nothing_shows_only_what_is_ours() {
    let expected = [(24, 0x0100_0011), (32, 0xf0_0000_0000)];
    assert_eq!(visible(&HostIds([0; COUNT])), expected);
}

#[test]
fn an_absent_floating_point_unit_stays_absent() {
    let mut host = models::CORTEX_A57;
    host.0[24] |= 0xff_0000;
    assert_eq!(GuestIds::new(&host, INPUTS).0[24], 0x01ff_0011);
}

#[test]
fn addresses_are_capped_by_both_sides() {
    let parange = |host: &HostIds, ipa_bits| GuestIds::new(host, Inputs { ipa_bits }).0[48] & 0xf;
    assert_eq!(parange(&models::MAX, 40), 2);
    assert_eq!(parange(&models::MAX, 48), 5);
    assert_eq!(parange(&models::MAX, 52), 5);
    assert_eq!(parange(&models::CORTEX_A76, 48), 2);
    assert_eq!(parange(&models::CORTEX_A57, 36), 1);
}

/// The registers of each model that are not zero: if the policy changes, so does this list, and somebody looks at it.
#[test]
fn goldens() {
    let a57 = [(24, 0x0100_0011), (32, 0xf0_1030_5006), (40, 0x1_1120), (48, 0x122)];
    assert_visible(&models::CORTEX_A57, &a57);
    assert_visible(&models::CORTEX_A72, &a57);
    let a76 = [
        (24, 0x1100_0000_0111_0011),
        (25, 0x10),
        (32, 0xf0_1030_5008),
        (40, 0x1000_1021_1120),
        (41, 0x10_0001),
        (48, 0x10_0122),
        (49, 0x20_2002),
        (50, 0x11),
    ];
    assert_visible(&models::CORTEX_A76, &a76);
    let n2 = [
        (24, 0x1201_0000_0111_0011),
        (25, 0x21),
        (32, 0xf0_1030_5009),
        (40, 0x1221_1111_1021_2120),
        (41, 0x0011_1111_0121_1052),
        (48, 0x10_0122),
        (49, 0x20_2002),
        (50, 0x1021_0011_1010_0011),
    ];
    assert_visible(&models::NEOVERSE_N2, &n2);
    let max = [
        (24, 0x1301_0000_0111_0011),
        (25, 0x21),
        (32, 0xf0_1030_5009),
        (40, 0x1221_1111_1021_2120),
        (41, 0x0111_2111_1021_1502),
        (42, 0x0010_0000_0010_0010),
        (48, 0x10_0122),
        (49, 0x1020_0030_2002),
        (50, 0x1021_0011_1000_0011),
    ];
    assert_visible(&models::MAX, &max);
}

fn assert_visible(host: &HostIds, expected: &[(usize, u64)]) {
    let (visible, expected) = (visible(host), expected.to_vec());
    assert_eq!(visible, expected, "in hexadecimal: {visible:x?}");
}

#[test]
fn two_unlike_cpus_have_the_lesser_in_common() {
    let common = models::MAX.common(&models::CORTEX_A72);
    assert_eq!(visible(&common), visible(&models::CORTEX_A72));
    let mut without = models::CORTEX_A76;
    without.0[24] |= 0xff_0000;
    assert_eq!(models::CORTEX_A76.common(&without).0[24] & 0xff_0000, 0xff_0000);
}

proptest! {
    /// A guest on a host that shows less never sees more.
    #[test]
    fn hiding_is_idempotent(raw in proptest::collection::vec(any::<u64>(), COUNT)) {
        let mut host = HostIds([0; COUNT]);
        host.0.copy_from_slice(&raw);
        let once = GuestIds::new(&host, INPUTS);
        let twice = GuestIds::new(&HostIds(once.0), INPUTS);
        prop_assert_eq!(once, twice);
    }
}
