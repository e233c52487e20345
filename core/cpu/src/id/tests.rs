//! Nothing unknown shines through, and what the supported models show is written down.
extern crate std;
use super::policy::{Limit, shown};
use super::{COUNT, GuestIds, HostIds, Inputs, encoding, index, index_of_syndrome, models};
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
        (24, 0x1101_0000_0111_0011),
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
        (24, 0x1101_0000_0111_0011),
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
