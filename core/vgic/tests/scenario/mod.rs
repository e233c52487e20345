//! What random guests, devices and owners do.

use proptest::prelude::*;

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Access {
        vcpu: usize,
        frame: Option<usize>,
        offset: u64,
        size: u64,
        write: Option<u64>,
    },
    Line {
        vcpu: usize,
        id: u32,
        high: bool,
    },
    Pulse {
        id: u32,
    },
    Sgi {
        vcpu: usize,
        value: u64,
        group1: bool,
    },
    Acknowledge {
        vcpu: usize,
    },
    End {
        vcpu: usize,
    },
    Deactivate {
        vcpu: usize,
        which: usize,
    },
    Fire {
        vcpu: usize,
        id: u32,
        ready_made: bool,
    },
    Withdraw {
        vcpu: usize,
        id: u32,
    },
    Move {
        vcpu: usize,
    },
    /// Writes ICC_IGRPEN0_EL1 and ICC_IGRPEN1_EL1 (a bit each), ICC_PMR_EL1, and ICC_CTLR_EL1.EOImode.
    Interface {
        vcpu: usize,
        groups: u64,
        mask: u64,
        split_end: bool,
    },
    Power {
        vcpu: usize,
    },
    Settle {
        vcpu: usize,
    },
    /// The VM is taken out and put into a host with so many list registers.
    Restore {
        list_registers: usize,
    },
}

impl Operation {
    /// The vCPU that does it itself, and therefore must be on.
    pub(crate) fn actor(&self) -> Option<usize> {
        match *self {
            Self::Power { .. } | Self::Line { .. } | Self::Pulse { .. } | Self::Restore { .. } => None,
            Self::Access { vcpu, .. }
            | Self::Sgi { vcpu, .. }
            | Self::Acknowledge { vcpu }
            | Self::End { vcpu }
            | Self::Deactivate { vcpu, .. }
            | Self::Fire { vcpu, .. }
            | Self::Withdraw { vcpu, .. }
            | Self::Move { vcpu }
            | Self::Interface { vcpu, .. }
            | Self::Settle { vcpu } => Some(vcpu),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) vcpus: usize,
    pub(crate) list_registers: usize,
    pub(crate) priority_bits: u8,
    pub(crate) prompt: bool,
    /// ICC_CTLR_EL1.EOImode of the guest at its start, and whether it changes it in between.
    pub(crate) split_end: bool,
    pub(crate) changes_mode: bool,
    /// What is left of ICH_VMCR_EL2: binary points, and whether there is one for both groups.
    pub(crate) binary_points: u64,
    /// Whether EOIcount counts with EOImode one.
    pub(crate) counts_drops: bool,
    /// Whether the host's GIC says that Group 0 is disabled when Group 1 is, and whether the model was told so.
    pub(crate) confuses_groups: bool,
}

fn word_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0xFFFF_FFFF_u64),
        Just(0_u64),
        (0..32_u32).prop_map(|bit| 1_u64 << bit),
        any::<u32>().prop_map(u64::from),
        any::<u64>(),
    ]
}

/// Offsets within the registers that both kinds of frame lay out alike; `word` is the first word that exists.
fn bank_offset(words: core::ops::Range<u64>) -> impl Strategy<Value = (u64, u64)> {
    let word = words.clone();
    prop_oneof![
        8 => (1..8_u64, word.clone()).prop_map(|(family, word)| (family * 0x80 + word * 4, 4)),
        2 => (1..8_u64, word.clone()).prop_map(|(family, word)| (family * 0x80 + word * 4, 4)),
        3 => (word.clone(), 0..8_u64).prop_map(|(word, part)| (0x400 + word * 32 + part * 4, 4)),
        3 => (word.clone(), 0..32_u64).prop_map(|(word, part)| (0x400 + word * 32 + part, 1)),
        1 => (word, 0..2_u64).prop_map(|(word, part)| (0xC00 + word * 8 + part * 4, 4)),
    ]
}

fn access(vcpus: usize) -> impl Strategy<Value = Operation> {
    let place = prop_oneof![
        6 => bank_offset(1..4).prop_map(|(offset, size)| (None, offset, size)),
        6 => (0..vcpus, bank_offset(0..1)).prop_map(|(frame, (offset, size))| (Some(frame), 0x1_0000 + offset, size)),
        3 => (0..96_u64).prop_map(|spi| (None, 0x6100 + spi * 8, 8)),
        1 => Just((None, 0, 4)),
        1 => (0..vcpus).prop_map(|frame| (Some(frame), 0x14, 4)),
        1 => (0..vcpus).prop_map(|frame| (Some(frame), 0, 4)),
        1 => (prop::option::of(0..vcpus), 0..0x2_0000_u64, prop_oneof![Just(1_u64), Just(2), Just(4), Just(8)]),
    ];
    let router = prop_oneof![4 => 0..vcpus as u64, 1 => Just(1_u64 << 31), 1 => Just(200_u64)];
    (0..vcpus, place, prop::option::weighted(0.7, word_value()), router).prop_map(
        |(vcpu, (frame, offset, size), write, router)| {
            let write = write.map(|value| match (frame, offset) {
                (None, 0x6100..0x6400) => router,
                (None, 0) if value & 4 != 0 => 3,
                (Some(_), 0x14) if value & 4 != 0 => 0,
                (Some(_), 0) => (value & 3) << 24,
                _ => value,
            });
            Operation::Access { vcpu, frame, offset, size, write }
        },
    )
}

fn operation(vcpus: usize) -> impl Strategy<Value = Operation> {
    let timer = || prop_oneof![Just(27_u32), Just(30_u32)];
    prop_oneof![
        6 => access(vcpus),
        3 => (0..vcpus, 16..128_u32, any::<bool>())
            .prop_filter("a timer has no software line", |(_, id, _)| ![27, 30].contains(id))
            .prop_map(|(vcpu, id, high)| Operation::Line { vcpu, id, high }),
        1 => (32..128_u32).prop_map(|id| Operation::Pulse { id }),
        3 => (0..vcpus, 0..16_u64, 0..256_u64, any::<bool>(), 0..8_u8).prop_map(|(vcpu, sgi, list, group1, odd)| {
            let odd = match odd {
                0 => 1 << 40,
                1 => 1 << 16,
                2 => 1 << 44,
                _ => 0,
            };
            // Often to itself alone, as that has a short way.
            let list = if list & 1 == 0 { 1 << vcpu } else { list };
            Operation::Sgi { vcpu, value: sgi << 24 | list | odd, group1 }
        }),
        8 => (0..vcpus).prop_map(|vcpu| Operation::Acknowledge { vcpu }),
        5 => (0..vcpus).prop_map(|vcpu| Operation::End { vcpu }),
        3 => (0..vcpus, 0..64_usize).prop_map(|(vcpu, which)| Operation::Deactivate { vcpu, which }),
        2 => (0..vcpus, timer(), any::<bool>())
            .prop_map(|(vcpu, id, ready_made)| Operation::Fire { vcpu, id, ready_made }),
        1 => (0..vcpus, timer()).prop_map(|(vcpu, id)| Operation::Withdraw { vcpu, id }),
        1 => (0..vcpus).prop_map(|vcpu| Operation::Move { vcpu }),
        3 => (0..vcpus, prop_oneof![3 => Just(3_u64), 2 => 0..3_u64], prop_oneof![Just(0xFF_u64), any::<u8>().prop_map(u64::from)],
              any::<bool>())
            .prop_map(|(vcpu, groups, mask, split_end)| Operation::Interface { vcpu, groups, mask, split_end }),
        1 => (0..vcpus).prop_map(|vcpu| Operation::Power { vcpu }),
        2 => (0..vcpus).prop_map(|vcpu| Operation::Settle { vcpu }),
        1 => (1..=16_usize).prop_map(|list_registers| Operation::Restore { list_registers }),
    ]
}

pub(crate) fn scenario() -> impl Strategy<Value = (Setting, u64, Vec<Operation>)> {
    let list_registers = prop_oneof![Just(1_usize), Just(2), Just(4), Just(16), 1..=16_usize];
    let binary_points = prop_oneof![2 => Just(0_u64), 1 => any::<u64>()];
    let interface = (any::<bool>(), any::<bool>(), binary_points, any::<bool>(), any::<bool>());
    (1..=4_usize, list_registers, 5..=8_u8, any::<bool>(), interface, any::<u64>()).prop_flat_map(
        |(vcpus, list_registers, priority_bits, prompt, interface, seed)| {
            let (split_end, changes_mode, binary_points, counts_drops, confuses_groups) = interface;
            // The fields of ICH_VMCR_EL2; each binary point is at least what the preemption bits leave.
            let least = 7 - u64::from(priority_bits.min(7));
            let (zero, one) = ((binary_points & 7).max(least), (binary_points >> 3 & 7).max(least + 1));
            let binary_points = zero << 21 | one << 18 | (binary_points >> 6 & 1) << 4;
            let setting = Setting {
                vcpus,
                list_registers,
                priority_bits,
                prompt,
                split_end,
                changes_mode,
                binary_points,
                counts_drops,
                confuses_groups,
            };
            (Just(setting), Just(seed), prop::collection::vec(operation(vcpus), 1..160))
        },
    )
}
