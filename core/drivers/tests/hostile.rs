//! The fuzzer's checks of the driver of the host's disks, on random devices.

#[path = "../../../fuzz/src/disk_device.rs"]
pub mod disk_device;
#[path = "../../../fuzz/src/input.rs"]
pub mod input;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

proptest! {
    #[test]
    fn a_random_device_has_what_it_was_given_and_no_more(data in vec(any::<u8>(), 0..3000)) {
        disk_device::device(&data);
    }
}
