//! What guests see: each function by its number, as a guest would call it.

extern crate std;

use crate::psci::{AffinityState, Call, CpuOffOutcome, PsciError, Reset, SavedPower, Start, Suspension, VmPower};
use crate::{Facts, INVALID_PARAMETERS, NOT_SUPPORTED, Need, Request, Workaround, Workarounds, decode, psci, trng};
use pack::{Reader, Value, Writer};
use proptest::prelude::*;
use std::vec::Vec;
use units::{ByteOrder, Ipa, Range, VcpuId};

const FACTS: Facts = Facts {
    workarounds: Workarounds {
        branch_target: Need::Unknown,
        store_bypass: Need::Unknown,
        branch_history: Need::Unknown,
    },
    stolen_time: None,
};
const RAM: Range<Ipa> = Range { start: Ipa(0x4000_0000), size: 0x1000_0000 };
const ENTRY: u64 = 0x4008_0000;
/// The upper half of a register, which 32-bit calls must not see.
const HIGH: u64 = 0xdead_beef_0000_0000;

fn call(function: u64, arguments: [u64; 3]) -> Request {
    decode(function, arguments, &FACTS)
}

fn answer(function: u64, first: u64) -> u64 {
    match call(function, [first, 0, 0]) {
        Request::Answer(answer) => answer,
        other => panic!("{function:#x} gives {other:?}"),
    }
}

fn negative(code: i64) -> u64 {
    code as u64
}

// SMCCC

#[test]
fn versions() {
    assert_eq!(answer(0x8400_0000, 0), 0x1_0001, "PSCI 1.1");
    assert_eq!(answer(0x8000_0000, 0), 0x1_0001, "SMCCC 1.1");
    assert_eq!(answer(0x8400_0050, 0), 0x1_0000, "TRNG 1.0");
    assert_eq!(answer(HIGH | 0x8400_0000, 0), 0x1_0001, "a function number has 32 bits");
}

#[test]
fn unknown_functions_are_not_supported() {
    let strangers = [
        0xc400_0000, // PSCI_VERSION has no 64-bit form
        0xc400_0002, // nor has CPU_OFF
        0x8400_0005, // MIGRATE
        0x8400_0007, // MIGRATE_INFO_UP_CPU
        0x8400_000b, // CPU_FREEZE
        0x8400_000e, // SYSTEM_SUSPEND
        0xc400_000e, // SYSTEM_SUSPEND
        0x8400_000f, // PSCI_SET_SUSPEND_MODE
        0x8400_0010, // PSCI_STAT_RESIDENCY
        0x8400_0013, // MEM_PROTECT
        0x8400_001f,
        0xc400_0050, // TRNG_VERSION has no 64-bit form
        0x8400_0060, // FF-A
        0x8000_0002, // SMCCC_ARCH_SOC_ID
        0x8100_0000, // CPU service
        0x8200_0000, // SiP service
        0x8300_0000, // OEM service
        0xc500_0020, // paravirtualized time without a record
        0xc500_0021,
        0x8600_ff01, // vendor hypervisor's UID
        0x8600_0000,
        0xb200_0000, // trusted application
        0xbf00_ff01, // Trusted OS
        0x0400_0000, // a yielding call with PSCI's number
        0x0000_0000,
        0xffff_ffff,
        0x8400_0100,
        0x8401_0000,
    ];
    for function in strangers {
        assert_eq!(answer(function, 0), NOT_SUPPORTED, "{function:#x}");
        assert_eq!(answer(0x8400_000a, function), NOT_SUPPORTED, "PSCI_FEATURES of {function:#x}");
        assert_eq!(answer(0x8000_0001, function), NOT_SUPPORTED, "SMCCC_ARCH_FEATURES of {function:#x}");
    }
    assert_eq!(NOT_SUPPORTED, u64::MAX);
}

#[test]
fn workarounds_follow_the_host() {
    let functions = [0x8000_8000_u64, 0x8000_7fff, 0x8000_3fff];
    let with = |need| Facts {
        workarounds: Workarounds { branch_target: need, store_bypass: need, branch_history: need },
        ..FACTS
    };
    for function in functions {
        let features = |facts| decode(0x8000_0001, [function, 0, 0], &facts);
        assert_eq!(features(with(Need::Unknown)), Request::Answer(NOT_SUPPORTED));
        assert_eq!(features(with(Need::Required)), Request::Answer(0));
        assert_eq!(features(with(Need::NotRequired)), Request::Answer(1));
        assert_eq!(decode(function, [0; 3], &with(Need::Unknown)), Request::Answer(NOT_SUPPORTED));
        assert_eq!(decode(function, [0; 3], &with(Need::NotRequired)), Request::Answer(0));
    }
    let required = with(Need::Required);
    let expected = [Workaround::BranchTarget, Workaround::StoreBypass { enable: false }, Workaround::BranchHistory];
    for (function, workaround) in functions.into_iter().zip(expected) {
        assert_eq!(decode(function, [HIGH, 0, 0], &required), Request::Workaround(workaround));
    }
    let on = Request::Workaround(Workaround::StoreBypass { enable: true });
    assert_eq!(decode(0x8000_7fff, [1, 0, 0], &required), on);
}

#[test]
fn what_is_there_is_found() {
    for function in [0x8000_0000_u64, 0x8000_0001, 0x8400_0000, 0x8400_0050] {
        assert_eq!(answer(0x8000_0001, function), 0, "{function:#x}");
    }
}

#[test]
fn stolen_time_needs_a_record() {
    let facts = Facts { stolen_time: Some(Ipa(0x4000_1000)), ..FACTS };
    let with = |function, first| decode(function, [first, 0, 0], &facts);
    assert_eq!(with(0x8000_0001, 0xc500_0020), Request::Answer(0));
    assert_eq!(with(0xc500_0020, 0xc500_0020), Request::Answer(0));
    assert_eq!(with(0xc500_0020, 0xc500_0021), Request::Answer(0));
    assert_eq!(with(0xc500_0020, 0xc500_0022), Request::Answer(NOT_SUPPORTED));
    assert_eq!(with(0xc500_0021, 0), Request::Answer(0x4000_1000));
    assert_eq!(with(0xc500_0022, 0), Request::Answer(NOT_SUPPORTED));
}

// TRNG

fn draw(function: u64, bits: u64) -> trng::Draw {
    match call(function, [bits, 0, 0]) {
        Request::Entropy(draw) => draw,
        other => panic!("{bits} bits give {other:?}"),
    }
}

#[test]
fn trng_features_and_identity() {
    for function in [0x8400_0050_u64, 0x8400_0051, 0x8400_0052, 0x8400_0053, 0xc400_0053] {
        assert_eq!(answer(0x8400_0051, function), 0, "{function:#x}");
    }
    assert_eq!(answer(0x8400_0051, 0x8400_0054), NOT_SUPPORTED);
    let Request::Answers(uuid) = call(0x8400_0052, [0; 3]) else { panic!("no UUID") };
    assert_ne!(uuid[0], u64::from(u32::MAX), "all ones would mean that there is no generator");
    assert!(uuid.iter().all(|&part| part <= u64::from(u32::MAX)));
    let bytes: Vec<u8> = uuid.iter().flat_map(|&part| (part as u32).to_le_bytes()).collect();
    assert_eq!((bytes[6] >> 4, bytes[8] >> 6), (4, 2), "a random UUID");
}

#[test]
fn random_bits_fill_from_x3_downwards() {
    let ones = || Some(u64::MAX);
    assert_eq!(draw(0xc400_0053, 192).answers(ones), [0, u64::MAX, u64::MAX, u64::MAX]);
    assert_eq!(draw(0xc400_0053, 64).answers(ones), [0, 0, 0, u64::MAX]);
    assert_eq!(draw(0xc400_0053, 65).answers(ones), [0, 0, 1, u64::MAX]);
    assert_eq!(draw(0xc400_0053, 1).answers(ones), [0, 0, 0, 1]);
    assert_eq!(draw(0x8400_0053, 96).answers(ones), [0, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff]);
    assert_eq!(draw(0x8400_0053, HIGH | 33).answers(ones), [0, 0, 1, 0xffff_ffff]);
    assert_eq!([draw(0xc400_0053, 192).bits(), draw(0x8400_0053, HIGH | 33).bits()], [192, 33]);
}

#[test]
fn entropy_may_run_out() {
    let mut once = Some(7);
    assert_eq!(draw(0xc400_0053, 128).answers(|| once.take()), [negative(-3), 0, 0, 0]);
}

#[test]
fn too_many_bits_or_none_are_refused() {
    let refused = Request::Answers([INVALID_PARAMETERS, 0, 0, 0]);
    for bits in [0, 193, 256, HIGH | 8, u64::MAX] {
        assert_eq!(call(0xc400_0053, [bits, 0, 0]), refused, "{bits}");
    }
    for bits in [0, 97, 256, 0x1_0000_0000] {
        assert_eq!(call(0x8400_0053, [bits, 0, 0]), refused, "{bits}");
    }
}

// PSCI, the calls

#[test]
fn psci_features() {
    let offered = [
        0x8400_0000_u64,
        0x8400_0001,
        0xc400_0001,
        0x8400_0002,
        0x8400_0003,
        0xc400_0003,
        0x8400_0004,
        0xc400_0004,
        0x8400_0006,
        0x8400_0008,
        0x8400_0009,
        0x8400_000a,
        0x8400_0012,
        0xc400_0012,
        0x8000_0000,
    ];
    for function in offered {
        assert_eq!(answer(0x8400_000a, HIGH | function), 0, "{function:#x}");
    }
}

#[test]
fn psci_calls_are_read() {
    let arguments = [HIGH | 1, HIGH | ENTRY, HIGH | 0x77];
    let [target, entry, context] = arguments;
    assert_eq!(call(0xc400_0003, arguments), Request::Psci(Call::CpuOn { target, entry, context }));
    let short = Request::Psci(Call::CpuOn { target: 1, entry: ENTRY, context: 0x77 });
    assert_eq!(call(0x8400_0003, arguments), short);
    let long = Request::Psci(Call::CpuSuspend { power_state: 1, entry, context });
    assert_eq!(call(0xc400_0001, arguments), long);
    let short = Request::Psci(Call::CpuSuspend { power_state: 1, entry: ENTRY, context: 0x77 });
    assert_eq!(call(0x8400_0001, arguments), short);
    let long = Request::Psci(Call::AffinityInfo { target, level: 2 });
    assert_eq!(call(0xc400_0004, [target, HIGH | 2, 0]), long);
    let short = Request::Psci(Call::AffinityInfo { target: 1, level: 2 });
    assert_eq!(call(0x8400_0004, [target, HIGH | 2, 0]), short);
    assert_eq!(call(0x8400_0002, arguments), Request::Psci(Call::CpuOff));
    assert_eq!(call(0x8400_0008, arguments), Request::Psci(Call::SystemOff));
    assert_eq!(call(0x8400_0009, arguments), Request::Psci(Call::SystemReset(Reset::Cold)));
    assert_eq!(answer(0x8400_0006, 0), 2, "no Trusted OS that would have to migrate");
}

#[test]
fn system_reset2_knows_the_warm_reset_only() {
    for function in [0x8400_0012, 0xc400_0012] {
        assert_eq!(call(function, [HIGH, 0x55, 0]), Request::Psci(Call::SystemReset(Reset::Warm)));
        for unknown in [1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
            assert_eq!(answer(function, unknown), INVALID_PARAMETERS, "{unknown:#x}");
        }
    }
}

#[test]
fn error_codes() {
    let codes = [
        (PsciError::InvalidParameters, -2),
        (PsciError::AlreadyOn, -4),
        (PsciError::OnPending, -5),
        (PsciError::InvalidAddress, -9),
    ];
    for (error, code) in codes {
        assert_eq!(error.value(), negative(code));
    }
    assert_eq!([AffinityState::On, AffinityState::Off, AffinityState::OnPending].map(AffinityState::value), [0, 1, 2]);
}

// PSCI, the state

fn power() -> VmPower {
    VmPower::new(3, RAM)
}

/// Whom the VM's watchdog speaks for where the one that it names is off.
#[test]
fn the_first_that_is_on_comes_before_those_that_are_about_to_be() {
    assert_eq!(power().first_on().map(|vcpu| vcpu.0), Some(0));
    let with = |on, pending| {
        let mut power = VmPower::new(3, RAM);
        power.restore(&SavedPower { count: 3, on, pending }).expect("such a VM");
        power.first_on().map(|vcpu| vcpu.0)
    };
    assert_eq!(with(0, 0b110), Some(1));
    assert_eq!((with(0b100, 0b010), with(0b110, 0b001)), (Some(2), Some(1)));
    assert_eq!(with(0, 0), None);
}

#[test]
fn a_cpu_goes_on_and_off_again_and_again() {
    let mut power = power();
    for round in 0..100 {
        assert_eq!(power.affinity_info(2, 0), Ok(AffinityState::Off));
        let start = Start { vcpu: VcpuId(2), entry: Ipa(ENTRY), context: round, order: ByteOrder::Little };
        assert_eq!(power.cpu_on(2, ENTRY, round, ByteOrder::Little), Ok(start));
        assert_eq!(power.affinity_info(2, 0), Ok(AffinityState::OnPending));
        assert_eq!(power.cpu_on(2, ENTRY, 0, ByteOrder::Little), Err(PsciError::OnPending));
        power.started(VcpuId(2));
        assert_eq!(power.affinity_info(2, 0), Ok(AffinityState::On));
        assert_eq!(power.cpu_on(2, ENTRY, 0, ByteOrder::Little), Err(PsciError::AlreadyOn));
        assert_eq!(power.cpu_off(VcpuId(2)), CpuOffOutcome::OthersRun);
    }
}

#[test]
fn only_the_first_cpu_is_on_at_first() {
    let power = power();
    assert!(power.is_on(VcpuId(0)) && !power.is_on(VcpuId(1)) && !power.is_on(VcpuId(200)));
    assert_eq!(power.clone().cpu_on(0, ENTRY, 0, ByteOrder::Little), Err(PsciError::AlreadyOn));
}

#[test]
fn cpus_that_are_not_there() {
    let mut power = power();
    for target in [3, 8, 0xff, 0x100, 0x1_0001, 0x8000_0001, 1 << 32, 1 << 40 | 1, u64::MAX] {
        assert_eq!(power.cpu_on(target, ENTRY, 0, ByteOrder::Little), Err(PsciError::InvalidParameters), "{target:#x}");
        assert_eq!(power.affinity_info(target, 0), Err(PsciError::InvalidParameters), "{target:#x}");
    }
}

#[test]
fn entries_outside_memory_or_between_words() {
    let mut power = power();
    for entry in [0, RAM.start.0 - 4, RAM.end().0, ENTRY + 1, ENTRY + 2, u64::MAX, u64::MAX - 3] {
        assert_eq!(power.cpu_on(1, entry, 0, ByteOrder::Little), Err(PsciError::InvalidAddress), "{entry:#x}");
        let suspended = power.cpu_suspend(VcpuId(0), 1 << 16, entry, 0, ByteOrder::Little);
        assert_eq!(suspended, Err(PsciError::InvalidAddress), "{entry:#x}");
    }
    assert_eq!(power.affinity_info(1, 0), Ok(AffinityState::Off), "a refused CPU_ON changes nothing");
    assert!(power.cpu_on(1, RAM.end().0 - 4, 0, ByteOrder::Little).is_ok());
}

#[test]
fn suspension() {
    let power = power();
    let suspend = |state| power.cpu_suspend(VcpuId(1), state, ENTRY, 9, ByteOrder::Little);
    let down =
        Suspension::PowerDown(Start { vcpu: VcpuId(1), entry: Ipa(ENTRY), context: 9, order: ByteOrder::Little });
    assert_eq!(suspend(0), Ok(Suspension::Standby));
    assert_eq!(suspend(0xffff), Ok(Suspension::Standby));
    assert_eq!(suspend(1 << 16), Ok(down));
    assert_eq!(suspend(1 << 16 | 0x1234), Ok(down));
    for bit in 17..32 {
        assert_eq!(suspend(1 << bit), Err(PsciError::InvalidParameters), "bit {bit}");
    }
    let standby = power.cpu_suspend(VcpuId(1), 0, 1, 0, ByteOrder::Little);
    assert_eq!(standby, Ok(Suspension::Standby), "a standby state has no entry to be wrong");
}

#[test]
fn groups_of_cpus() {
    let mut power = power();
    for level in 1..=3 {
        assert_eq!(power.affinity_info(0xff, level), Ok(AffinityState::On), "level {level}: affinity 0 does not count");
    }
    assert_eq!(power.affinity_info(0x100, 1), Err(PsciError::InvalidParameters));
    assert_eq!(power.affinity_info(0x100, 2), Ok(AffinityState::On));
    assert_eq!(power.affinity_info(0x1_0000, 2), Err(PsciError::InvalidParameters));
    assert_eq!(power.affinity_info(0x1_0000, 3), Ok(AffinityState::On));
    assert_eq!(power.affinity_info(1 << 32, 3), Err(PsciError::InvalidParameters));
    assert_eq!(power.affinity_info(1 << 24, 3), Err(PsciError::InvalidParameters), "not an affinity field");
    assert_eq!(power.affinity_info(0, 4), Err(PsciError::InvalidParameters));
    assert!(power.cpu_on(1, ENTRY, 0, ByteOrder::Little).is_ok());
    power.cpu_off(VcpuId(0));
    assert_eq!(power.affinity_info(0, 1), Ok(AffinityState::OnPending));
    power.restore(&SavedPower { count: 3, on: 0, pending: 0 }).unwrap();
    assert_eq!(power.affinity_info(0, 1), Ok(AffinityState::Off));
}

#[test]
fn what_no_vm_can_be_in_is_refused() {
    let mut vm = power();
    assert!(vm.restore(&SavedPower { count: 2, on: 1, pending: 0 }).is_err());
    assert!(vm.restore(&SavedPower { count: 3, on: 8, pending: 0 }).is_err());
    assert!(vm.restore(&SavedPower { count: 3, on: 1, pending: 8 }).is_err());
    assert!(vm.restore(&SavedPower { count: 3, on: 1, pending: 1 }).is_err());
    assert_eq!(vm, power(), "nothing has changed");
    vm.cpu_on(1, RAM.start.0, 0, ByteOrder::Little).unwrap();
    assert_eq!(vm.save(), SavedPower { count: 3, on: 0b001, pending: 0b010 });
    vm.started(VcpuId(1));
    assert_eq!(vm.save(), SavedPower { count: 3, on: 0b011, pending: 0 });
}

proptest! {
    /// Whatever was put in is taken out, comes through bytes, and is what the guest is told.
    #[test]
    fn power_that_was_put_in_is_taken_out(count in 1..=8_u8, on in any::<u8>(), pending in any::<u8>()) {
        let on = on & (0xff >> (8 - count));
        let pending = pending & !on & (0xff >> (8 - count));
        let saved = SavedPower { count, on, pending };
        let mut vm = VmPower::new(count, RAM);
        prop_assert_eq!(vm.restore(&saved), Ok(()));
        prop_assert_eq!(vm.save(), saved);
        for id in 0..count {
            let state = match (on >> id & 1, pending >> id & 1) {
                (0, 0) => AffinityState::Off,
                (0, _) => AffinityState::OnPending,
                _ => AffinityState::On,
            };
            prop_assert_eq!(vm.affinity_info(id.into(), 0), Ok(state));
        }
        let mut out = Writer::new();
        saved.pack(&mut out);
        let bytes = out.finish().expect("there is memory");
        prop_assert_eq!(SavedPower::unpack(&mut Reader::new(&bytes)), Ok(saved));
    }
}

#[test]
fn the_last_cpu_ends_the_vm() {
    let mut power = power();
    assert!(power.cpu_on(1, ENTRY, 0, ByteOrder::Little).is_ok());
    assert_eq!(power.cpu_off(VcpuId(0)), CpuOffOutcome::OthersRun, "one is about to run");
    power.started(VcpuId(1));
    assert_eq!(power.cpu_off(VcpuId(1)), CpuOffOutcome::NoneLeft);
}

#[test]
fn reset_starts_from_the_beginning() {
    let mut power = power();
    assert!(power.cpu_on(1, ENTRY, 0, ByteOrder::Little).is_ok());
    power.cpu_off(VcpuId(0));
    power.reset();
    assert_eq!(power, self::power());
    power.started(VcpuId(1));
    assert!(!power.is_on(VcpuId(1)), "only a pending CPU can start");
}

proptest! {
    #[test]
    fn calls_never_panic_and_only_known_ones_do_anything(
        function in prop_oneof![any::<u64>(), 0x8400_0000..0x8400_0060_u64, 0xc400_0000..0xc400_0060_u64],
        arguments in any::<[u64; 3]>(),
    ) {
        match call(function, arguments) {
            Request::Answer(_) => {}
            Request::Answers(_) | Request::Entropy(_) => prop_assert!(matches!(function as u32, 0x8400_0052 | 0x8400_0053 | 0xc400_0053)),
            Request::Psci(_) => prop_assert_eq!(psci::OWNER, (function as u32 >> 24) & 0x3f),
            Request::Workaround(_) => prop_assert!(false, "the host has none"),
        }
    }

    #[test]
    fn power_agrees_with_a_naive_model(
        count in 1_u8..=8,
        steps in prop::collection::vec((0_u8..4, 0_u8..10, prop::bool::weighted(0.9)), 0..60),
    ) {
        // 0 off, 1 pending, 2 on
        let mut model = [0; 8];
        model[0] = 2;
        let mut power = VmPower::new(count, RAM);
        for (step, target, good) in steps {
            let entry = if good { ENTRY } else { 0 };
            let there = target < count;
            let index = usize::from(target % 8);
            match step {
                0 => {
                    let expected = match (there, good, model[index]) {
                        (false, _, _) => Err(PsciError::InvalidParameters),
                        (_, false, _) => Err(PsciError::InvalidAddress),
                        (_, _, 2) => Err(PsciError::AlreadyOn),
                        (_, _, 1) => Err(PsciError::OnPending),
                        _ => Ok(Start { vcpu: VcpuId(target), entry: Ipa(entry), context: 5, order: ByteOrder::Little }),
                    };
                    if expected.is_ok() {
                        model[index] = 1;
                    }
                    prop_assert_eq!(power.cpu_on(target.into(), entry, 5, ByteOrder::Little), expected);
                }
                1 if there => {
                    power.started(VcpuId(target));
                    model[index] += i32::from(model[index] == 1);
                }
                2 if there => {
                    model[index] = 0;
                    let none = if model == [0; 8] { CpuOffOutcome::NoneLeft } else { CpuOffOutcome::OthersRun };
                    prop_assert_eq!(power.cpu_off(VcpuId(target)), none);
                }
                _ => {
                    let state = [AffinityState::Off, AffinityState::OnPending, AffinityState::On][model[index] as usize];
                    let expected = if there { Ok(state) } else { Err(PsciError::InvalidParameters) };
                    prop_assert_eq!(power.affinity_info(target.into(), 0), expected);
                }
            }
        }
    }
}
