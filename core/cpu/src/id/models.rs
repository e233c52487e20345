//! Identification registers of the CPU models that we support on QEMU, as EL2 reads them on the `virt` machine with a
//! GICv3 and without EL3; facts for tests. The AArch32 block is left out: nothing depends on it.
use super::{COUNT, HostIds};

pub(crate) const CORTEX_A57: HostIds = host(&[
    (24, 0x0000_0000_0100_0222),
    (32, 0x0000_0000_1030_5106),
    (40, 0x0000_0000_0001_1120),
    (48, 0x0000_0000_0000_1124),
]);

pub(crate) const CORTEX_A72: HostIds = host(&[
    (24, 0x0000_0000_0100_0222),
    (32, 0x0000_0000_1030_5106),
    (40, 0x0000_0000_0001_1120),
    (48, 0x0000_0000_0000_1124),
]);

pub(crate) const CORTEX_A76: HostIds = host(&[
    (24, 0x1100_0000_1111_0112),
    (25, 0x0000_0000_0000_0010),
    (32, 0x0000_0000_1030_5408),
    (40, 0x0000_1000_1021_1120),
    (41, 0x0000_0000_0010_0001),
    (48, 0x0000_0000_0010_1122),
    (49, 0x0000_0000_1021_2122),
    (50, 0x0000_0000_0000_1011),
]);

pub(crate) const NEOVERSE_N2: HostIds = host(&[
    (24, 0x1201_0001_2111_0112),
    (25, 0x0000_0000_0000_0121),
    (28, 0x0000_1101_0011_0021),
    (32, 0x0000_00f0_1030_5609),
    (40, 0x1221_1111_1021_2120),
    (41, 0x0011_1111_0121_1052),
    (48, 0x0000_0222_0010_1125),
    (49, 0x0000_0000_1021_2122),
    (50, 0x1221_0111_1210_1011),
]);

/// The model with everything.
pub(crate) const MAX: HostIds = host(&[
    (24, 0x1301_0001_2111_0222),
    (25, 0x0000_1010_0200_0121),
    (28, 0x0111_1101_1011_0022),
    (29, 0x81f1_3fd1_0000_0000),
    (32, 0x1000_0000_1030_560a),
    (40, 0x1221_1111_1031_2120),
    (41, 0x0111_2111_1021_1502),
    (42, 0x1010_0000_0011_0012),
    (48, 0x2100_0323_1020_1126),
    (49, 0x0110_1120_1031_2122),
    (50, 0x1221_0111_1201_1011),
    (51, 0x1000_0000_1000_1111),
]);

/// All of them.
pub(crate) const ALL: [(&str, &HostIds); 5] = [
    ("cortex-a57", &CORTEX_A57),
    ("cortex-a72", &CORTEX_A72),
    ("cortex-a76", &CORTEX_A76),
    ("neoverse-n2", &NEOVERSE_N2),
    ("max", &MAX),
];

const fn host(registers: &[(usize, u64)]) -> HostIds {
    let mut ids = HostIds([0; COUNT]);
    let mut next = 0;
    while next < registers.len() {
        ids.0[registers[next].0] = registers[next].1;
        next += 1;
    }
    ids
}
