//! What was written is read; damage of any kind is noticed or is another value, and never more than that.

use std::vec::Vec;
use std::{format, vec};

use abi::bundle::Doors;
use clock::saved::{Away, Clock, Timer};
use cpu::saved::{Name, SavedRegisters};
use devices::{SavedUart, Uart};
use pack::{Boxed, Damaged};
use proptest::prelude::*;
use services::psci::SavedPower;
use units::{Ipa, Range};
use vgic::{Config, Vgic};
use virtio::saved::{SavedChain, SavedConsole, SavedMmio};
use virtio::{Console, Mmio};
use vm::{SavedLife, SavedStart, SavedWatchdogs};
use vmware::saved::SavedService;
use watchdog::SavedWatchdog;

use crate::{CpuDifference, Difference, SavedCpu, SavedMachine, SavedTime, SavedVcpu, SavedVm, bounds};

/// A heap that counts.
#[global_allocator]
static HEAP: scarce::Heap = scarce::Heap;

pub(crate) fn machine() -> SavedMachine {
    SavedMachine {
        vcpus: 2,
        memory: 1 << 30,
        devices: 9,
        memory_timer: false,
        identification: [0x11; 56],
        cpu: SavedCpu { midr: 5, ..SavedCpu::default() },
    }
}

fn vcpu(number: u8, word: u64) -> SavedVcpu {
    SavedVcpu {
        number,
        registers: SavedRegisters {
            pc: word,
            system: Vec::from([(Name::new("sctlr_el1"), word)]),
            ..Default::default()
        },
        physical_timer: Timer { version: 1, control: 1, compare: word },
        stolen: word,
        stolen_frequency: 62_500_000,
    }
}

pub(crate) fn vm(words: [u64; 4], devices: Vec<u8>, has_calls: bool) -> SavedVm {
    let [first, second, third, fourth] = words;
    let config = Config {
        vcpus: 2,
        list_registers: 4,
        priority_bits: 5,
        preemption_bits: 5,
        tells_of_group_0: true,
        traps_deactivation: true,
    };
    let watchdog = SavedWatchdog { timeout: fourth, action: 2, remaining: None, acted: 3 };
    SavedVm {
        machine: Boxed::new(machine()).unwrap(),
        time: SavedTime {
            clock: Clock {
                version: 3,
                count: first,
                frequency: 1_000_000,
                rate: 1_000_000,
                is_stopped: true,
                stood: second,
                virtual_count: third,
            },
            away: if has_calls { Away::Freeze } else { Away::Advance },
        },
        life: SavedLife {
            power: SavedPower { count: 2, on: 1, pending: 2 },
            starts: [
                None,
                Some(SavedStart { entry: Ipa(third), context: second, is_big_endian: true }),
                None,
                None,
                None,
                None,
                None,
                None,
            ],
        },
        gic: Boxed::new(Vgic::new(config).save().unwrap()).unwrap(),
        vcpus: Vec::from([vcpu(0, second), vcpu(1, third)]),
        devices,
        watchdogs: SavedWatchdogs { has_begun: true, vm: watchdog, own: [watchdog; 8] },
        calls: has_calls.then(|| Boxed::new(SavedService::default()).unwrap()),
    }
}

pub(crate) fn any_vm() -> impl Strategy<Value = SavedVm> {
    (any::<[u64; 4]>(), proptest::collection::vec(any::<u8>(), 0..99), any::<bool>())
        .prop_map(|(words, devices, has_calls)| vm(words, devices, has_calls))
}

proptest! {
    #[test]
    fn what_was_written_is_read(saved in any_vm()) {
        prop_assert_eq!(SavedVm::from_bytes(&saved.to_bytes().unwrap()), Ok(saved));
    }

    /// A flipped bit is noticed, or it is a bit of some value, and then of that alone.
    #[test]
    fn a_flipped_bit_is_noticed_or_is_another_value(saved in any_vm(), place in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut bytes = saved.to_bytes().unwrap();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        if let Ok(other) = SavedVm::from_bytes(&bytes) {
            prop_assert_ne!(&other, &saved);
            prop_assert_eq!(other.to_bytes().unwrap(), bytes);
        }
    }

    #[test]
    fn stolen_time_is_never_less_on_another_host(stolen in 0..1_u64 << 50, saved in 1..2_000_000_000_u64, here in 1..2_000_000_000_u64) {
        let vcpu = SavedVcpu { stolen, stolen_frequency: saved, ..vcpu(0, 0) };
        prop_assert_eq!(vcpu.stolen_here(saved), stolen);
        let ticks = vcpu.stolen_here(here);
        prop_assert!(u128::from(ticks) * u128::from(saved) >= u128::from(stolen) * u128::from(here));
        prop_assert!(u128::from(ticks) * u128::from(saved) < u128::from(stolen) * u128::from(here) + u128::from(saved));
    }
}

#[test]
fn no_piece_of_it_is_enough_and_nothing_may_follow() {
    let bytes = vm([1, 2, 3, 4], Vec::from([5; 9]), true).to_bytes().unwrap();
    for end in 0..bytes.len() {
        assert_eq!(SavedVm::from_bytes(&bytes[..end]), Err(Damaged::Short), "{end}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(SavedVm::from_bytes(&longer), Err(Damaged::Long("vm")));
    assert_eq!(&bytes[..5], b"\x02vm\x01\x00");
}

/// Each feature has its name, what is no feature its bits, and a field of which nothing is named says so too.
#[test]
fn features_that_differ_are_all_named() {
    let (mut saved, mut here) = (machine(), machine());
    assert_eq!(saved.features(&here).count(), 0);
    // ID_AA64PFR0_EL1.FP, which is signed; ID_AA64ISAR0_EL1.AES and SHA3; ID_AA64MMFR0_EL1.PARange.
    (saved.identification[24], here.identification[24]) = (0x1_0000, 0xf_0000);
    (saved.identification[40], here.identification[40]) = (1 << 4 | 1 << 32, 2 << 4);
    here.identification[48] = 0x15;
    let all: Vec<_> = saved.features(&here).map(|feature| format!("{feature}")).collect();
    let expected = [
        "FEAT_FP16 is missing, FEAT_FP is missing",
        "FEAT_PMULL is new to it",
        "FEAT_SHA3 is missing",
        "bits 3:0 of ID register S3_0_C0_C7_0 were 0x1 and are 0x5",
    ];
    assert_eq!(all, expected);
}

#[test]
fn a_machine_of_another_shape_is_told_apart() {
    let compare = |change: fn(&mut SavedMachine)| {
        let mut here = machine();
        change(&mut here);
        machine().compare(&here)
    };
    assert_eq!(compare(|_| {}), Ok(()));
    assert_eq!(compare(|here| here.vcpus = 3), Err(Difference::Vcpus(2, 3)));
    assert_eq!(compare(|here| here.memory = 5), Err(Difference::Memory(1 << 30, 5)));
    assert_eq!(compare(|here| here.devices = 8), Err(Difference::Devices(9, 8)));
    // It is a device too, and how many there are says nothing of what would be right.
    let more = compare(|here| (here.devices, here.memory_timer) = (10, true)).unwrap_err();
    assert!(format!("{more}").contains("FEAT_ECV"), "{more}");
    let told = SavedMachine { memory_timer: true, ..machine() }.compare(&machine()).unwrap_err();
    assert!(format!("{told}").contains("time.source = \"mmio\" in the site file is right for it"), "{told}");
    assert_eq!(compare(|here| here.cpu.midr = 6), Err(Difference::Cpu(CpuDifference::Kind(5, 6))));
    let feature = compare(|here| here.identification[40] = 0x21).unwrap_err();
    assert_eq!(format!("{feature}"), "its guest knows ID register S3_0_C0_C6_0 as 0x11, here it is 0x21");
}

/// More vCPUs or bytes of devices than any VM has are refused by name.
#[test]
fn no_list_is_longer_than_any_vms() {
    let read = |vm: &SavedVm| SavedVm::from_bytes(&vm.to_bytes().unwrap());
    let mut full = vm([1, 2, 3, 4], vec![5; bounds::DEVICES], true);
    full.vcpus = (0..8).map(|number| vcpu(number, 7)).collect();
    assert_eq!(read(&full), Ok(full.clone()));
    full.vcpus.push(vcpu(8, 7));
    assert_eq!(read(&full), Err(Damaged::Many("SavedVm.vcpus", 9, 8)));
    let devices = vm([1, 2, 3, 4], vec![5; bounds::DEVICES + 1], true);
    assert_eq!(read(&devices), Err(Damaged::Many("SavedVm.devices", 0x1_0001, 0x1_0000)));
}

/// The most that a VM's parts have is within the bounds of its state: all registers that there are, and a machine of several consoles
/// whose rings and chains are full.
#[test]
fn the_largest_vm_is_within_bounds() {
    let mut largest = vm([1, 2, 3, 4], Vec::new(), false);
    let points = vec![(1, 2); 16];
    let registers = SavedRegisters {
        system: vec![(Name::new("sctlr_el1"), 1); 38],
        breakpoints: points.clone(),
        watchpoints: points,
        ..SavedRegisters::default()
    };
    largest.vcpus = (0..8).map(|number| SavedVcpu { registers: registers.clone(), ..vcpu(number, 7) }).collect();
    let chain = SavedChain {
        segments: vec![Range { start: Ipa(0), size: 8 }; 256],
        readable_segments: 0,
        head: 0,
        read: (0, 0),
        write: (0, 0),
        written: 0,
    };
    let console = SavedConsole {
        config: [0; 4],
        input: vec![1; 1024],
        output: vec![1; 4096],
        receiving: Some(chain.clone()),
        transmitting: Some(chain),
    };
    let console = SavedMmio { device: console, ..Mmio::new(Console::new()).save().unwrap() };
    let uart = SavedUart { input: vec![1; 4096], ..Uart::new(None).save().unwrap() };
    let mut devices = pack::Writer::new();
    (0..2).for_each(|_| devices.part(&uart));
    (0..4).for_each(|_| devices.part(&console));
    largest.devices = devices.finish().unwrap();
    let devices = largest.devices.len();
    assert!(devices < bounds::DEVICES, "{devices} bytes of devices");
    let bytes = largest.to_bytes().unwrap().len() - devices;
    let most = bounds::of_state(8, &Doors::default()) - bounds::DEVICES;
    assert!(bytes < most, "{bytes} bytes of {most}");
}
