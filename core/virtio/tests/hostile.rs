//! The fuzzer's checks of the virtio devices, on random input.

#[path = "../../../fuzz/src/host_disk.rs"]
pub mod host_disk;
#[path = "../../../fuzz/src/input.rs"]
pub mod input;
#[path = "../../../fuzz/src/virtio_device.rs"]
pub mod virtio_device;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

proptest! {
    #[test]
    fn a_random_queue_costs_a_bounded_amount(data in vec(any::<u8>(), 0..1000)) {
        virtio_device::queue(&data);
    }

    #[test]
    fn a_random_driver_harms_only_itself(data in vec(any::<u8>(), 0..2000)) {
        virtio_device::mmio(&data);
    }

    #[test]
    fn a_disk_of_the_hosts_is_asked_for_what_it_has(data in vec(any::<u8>(), 0..2000)) {
        host_disk::guest(&data);
    }
}
