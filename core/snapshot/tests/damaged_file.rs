//! What the fuzzer runs (`fuzz/src/snapshot_file.rs`), on fewer inputs: a saved VM as a file that is damaged anywhere.

#[path = "../../../fuzz/src/saved_vm.rs"]
pub mod saved_vm;
#[path = "../../../fuzz/src/snapshot_file.rs"]
pub mod snapshot_file;

use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Up to three bytes have another value, and all checksums may be right.
    #[test]
    fn a_damaged_file_is_refused_or_is_another_one(how in any::<u8>(), changes in vec(any::<[u8; 3]>(), 0..=3)) {
        let mut data = vec![how];
        data.extend(changes.as_flattened());
        snapshot_file::snapshot_file(&data);
    }
}

/// Each byte before the state has other values, one at a time, with checksums that are right.
#[test]
fn each_byte_may_be_any_other() {
    let structured = snapshot_file::good().len().min(1200) as u16;
    for place in 0..structured {
        let [low, high] = place.to_le_bytes();
        for value in [0, 1, 0x80, 0xff] {
            snapshot_file::snapshot_file(&[255, low, high, value]);
        }
    }
}
