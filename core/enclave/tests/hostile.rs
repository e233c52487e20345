//! The fuzzer's checks of the enclave device, on random input; and a million random commands.

#[path = "../../../fuzz/src/enclave_device.rs"]
pub mod enclave_device;
#[path = "../../../fuzz/src/input.rs"]
pub mod input;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

use abi::enclave::{EnclaveCommand, EnclaveStatus};
use enclave::{ByIsolation, EnclaveDevice, Leave};
use enclave_device::Driver;

proptest! {
    #[test]
    fn a_random_guest_gets_a_status_each_time(data in vec(any::<u8>(), 0..1500)) {
        let _ = enclave_device::commands(&data);
    }

    #[test]
    fn random_registers_cost_a_bounded_amount(data in vec(any::<u8>(), 0..1000)) {
        enclave_device::registers(&data);
    }
}

/// The random guest comes far enough: its enclaves run, call outside, are interrupted, and fail.
#[test]
fn a_random_guest_comes_to_every_end() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut statuses = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let mut data = Vec::new();
        for _ in 0..1500 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            data.push((seed >> 24) as u8);
        }
        statuses.extend(enclave_device::commands(&data));
    }
    // Not by commands, or not with this mechanism, which does not fail and is there.
    let never = [EnclaveStatus::Mechanism, EnclaveStatus::NoMechanism, EnclaveStatus::Gone];
    for &status in EnclaveStatus::ALL {
        assert_eq!(statuses.contains(&(status as i32)), !never.contains(&status), "{status:?}");
    }
}

/// A hundred times what the check asks for: random bytes of 64, every second one with the right beginning, and an end to each.
#[test]
fn p2_a8_a_million_random_commands() {
    let mut driver = Driver::new(EnclaveDevice::new(ByIsolation), 7);
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut next = || {
        // xorshift64
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut ends = std::collections::BTreeMap::new();
    for _ in 0..10_000 {
        let mut cookies = Vec::new();
        for _ in 0..100 {
            let mut bytes = [0; 64];
            bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = next().to_le_bytes());
            if next() & 1 == 0 {
                let opcode = (next() % 12) as u8;
                bytes[..8].copy_from_slice(&[b'V', b'S', b'E', b'C', 1, 0, opcode, 0]);
            }
            cookies.push(EnclaveCommand::from_bytes(&bytes).cookie);
            driver.put(&bytes);
        }
        driver.ring();
        driver.settle(&mut |_| Leave::Interrupted);
        let all = driver.completions();
        assert_eq!(all.iter().map(|one| one.cookie).collect::<Vec<_>>(), cookies);
        for one in all {
            *ends.entry(one.status).or_insert(0) += 1;
        }
    }
    assert_eq!(ends.values().sum::<u32>(), 1_000_000);
    assert!(ends.keys().all(|&status| status < 0 && EnclaveStatus::from_number(status).is_some()));
}
