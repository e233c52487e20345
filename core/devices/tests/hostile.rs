//! The fuzzer's checks of the platform devices, on random input.

#[path = "../../../fuzz/src/input.rs"]
pub mod input;
#[path = "../../../fuzz/src/platform_devices.rs"]
pub mod platform_devices;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

proptest! {
    #[test]
    fn pl011_keeps_its_promises(data in vec(any::<u8>(), 0..1000)) {
        platform_devices::pl011(&data);
    }

    #[test]
    fn clock_and_gpio_keep_theirs(data in vec(any::<u8>(), 0..1000)) {
        platform_devices::rest(&data);
    }
}
