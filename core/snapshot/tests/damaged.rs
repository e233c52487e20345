//! What the fuzzer runs (`fuzz/src/saved_vm.rs`), on fewer inputs: a saved state that is damaged anywhere.

#[path = "../../../fuzz/src/saved_vm.rs"]
pub mod saved_vm;

use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Up to three bytes have another value; now and then some are missing.
    #[test]
    fn a_damaged_state_is_refused_or_is_another_one(cut in any::<u8>(), changes in vec(any::<[u8; 3]>(), 0..=3)) {
        let mut data = vec![cut];
        data.extend(changes.as_flattened());
        saved_vm::saved_vm(&data);
    }
}

/// Each byte of it has other values, one at a time.
#[test]
fn each_byte_may_be_any_other() {
    for place in 0..saved_vm::good().len() as u16 {
        let [low, high] = place.to_le_bytes();
        for value in [0, 1, 0x80, 0xff] {
            saved_vm::saved_vm(&[0, low, high, value]);
        }
    }
}
