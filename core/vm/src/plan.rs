//! From what a site says of a VM to the plan of its machine: the same for `croft`, which tries whether the images find their places,
//! for the hypervisor, which makes the machine, and for the VM of the tests. A device that a VM has is listed here, or follows from
//! a key of the site file here, and nowhere else.

use abi::bundle::{CpuCounters, MAX_DISKS, MAX_PORTS, TimeSource, Vm};
use machine::{MachineError, MachinePlan, Spec, Timers, VirtioKind};
use units::{Hz, IPA_BITS};

/// The virtio devices of every VM, in the order of their transports. Behind them are its disks, in their order, and then its
/// network devices.
const VIRTIO: &[VirtioKind] = &[VirtioKind::Console, VirtioKind::Entropy];

/// What a host adds to the plan of a VM's machine. Where things are does not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestCounter {
    /// The frequency of the guest's counter.
    pub frequency: Hz,
    /// How far the host's CPUs can show it.
    pub shown: CpuCounters,
}

impl GuestCounter {
    /// For those who plan a machine without a host: what most of today's CPUs have, and nothing is emulated.
    pub const USUAL: Self = Self { frequency: Hz(1_000_000_000), shown: CpuCounters::Native };
}

/// The machine of the VM that `config` describes.
///
/// # Errors
/// Why there can be no such machine.
pub fn machine<Text: AsRef<str>, File, Program>(
    config: &Vm<Text, File, Program>,
    counter: GuestCounter,
) -> Result<MachinePlan, MachineError> {
    let mut virtio = [VirtioKind::Net; VIRTIO.len() + MAX_DISKS + MAX_PORTS];
    let disks = core::iter::repeat_n(&VirtioKind::Block, config.disks.count());
    virtio.iter_mut().zip(VIRTIO.iter().chain(disks)).for_each(|(place, kind)| *place = *kind);
    let count = VIRTIO.len() + config.disks.count() + config.ports.count();
    MachinePlan::new(Spec {
        name: config.name.as_ref(),
        vcpus: config.vcpus,
        memory_bytes: config.memory,
        ipa_bits: IPA_BITS,
        virtio: virtio.get(..count).unwrap_or(&virtio),
        generic_watchdog: config.doors.generic_watchdog,
        enclave: config.enclave,
        counter_frequency: counter.frequency,
        timers: timers(config.time.source, counter.shown),
    })
}

/// Which counter and timers a guest is told of, whose site file has `source`.
const fn timers(source: TimeSource, shown: CpuCounters) -> Timers {
    if source.is_memory(shown) {
        return Timers::Memory;
    }
    match shown {
        CpuCounters::Native => Timers::Cpu,
        CpuCounters::Trapped | CpuCounters::VirtualUntrapped => Timers::Physical,
    }
}

#[cfg(test)]
mod tests {
    use super::{GuestCounter, VIRTIO, machine};
    use abi::bundle::{CpuCounters, Disk, Disks, Port, Ports, TimeSource};
    use machine::{DeviceKind, MachineError, Timers, VirtioKind};
    use std::string::String;
    use std::vec::Vec;
    use units::{Hz, Ipa};

    type Vm = abi::bundle::Vm<String, (), ()>;

    fn vm() -> Vm {
        Vm::new("a", (), 64 << 20)
    }

    #[test]
    fn a_machine_has_what_the_site_says() {
        let mut vm = Vm { vcpus: 3, ..vm() };
        let plan = machine(&vm, GuestCounter { frequency: Hz(24_000_000), ..GuestCounter::USUAL }).unwrap();
        assert_eq!((plan.name(), plan.vcpus(), plan.ram().size), ("a", 3, 64 << 20));
        assert_eq!((plan.counter_frequency(), plan.timers()), (Hz(24_000_000), Timers::Cpu));
        let virtio: Vec<_> = plan
            .rows()
            .iter()
            .filter_map(|row| if let DeviceKind::Virtio(kind) = row.device { Some(kind) } else { None })
            .collect();
        assert_eq!(virtio, VIRTIO);
        assert_eq!(plan.first(DeviceKind::GenericWatchdog), None);
        vm.doors.generic_watchdog = true;
        assert!(machine(&vm, GuestCounter::USUAL).unwrap().first(DeviceKind::GenericWatchdog).is_some());
        vm.disks = Disks::of(["a", "b"].map(|serial| Disk::of_image((), serial.into()))).unwrap();
        let plan = machine(&vm, GuestCounter::USUAL).unwrap();
        let disks = plan.rows().iter().filter(|row| row.device == DeviceKind::Virtio(VirtioKind::Block));
        let places: Vec<_> = disks.map(|row| row.start()).collect();
        assert_eq!(places, [Ipa(0x0a00_0400), Ipa(0x0a00_0600)], "behind those of every VM");
        let ports = [1, 2].map(|last| Port { network: "lan".into(), vlan: 0, mac: [2, 0, 0, 0, 0, last], mtu: 1500 });
        vm.ports = Ports::of(ports).unwrap();
        let plan = machine(&vm, GuestCounter::USUAL).unwrap();
        let nets = plan.rows().iter().filter(|row| row.device == DeviceKind::Virtio(VirtioKind::Net));
        let places: Vec<_> = nets.map(|row| row.start()).collect();
        assert_eq!(places, [Ipa(0x0a00_0800), Ipa(0x0a00_0a00)], "behind the disks");
        vm.memory += 4096;
        assert_eq!(machine(&vm, GuestCounter::USUAL).unwrap_err(), MachineError::MemorySize(vm.memory));
        vm.memory = 1 << 40;
        let largest = machine(&vm, GuestCounter::USUAL).unwrap_err();
        assert_eq!(largest, MachineError::MemoryTooLarge { memory: 1 << 40, bits: 40 });
    }

    /// Each choice of the site file on each kind of host.
    #[test]
    fn the_timers_are_those_that_show_the_guests_time() {
        use CpuCounters::{Native, Trapped, VirtualUntrapped};
        let told = |source, shown| {
            let mut vm = vm();
            vm.time.source = source;
            let plan = machine(&vm, GuestCounter { shown, ..GuestCounter::USUAL }).unwrap();
            let has_device = plan.first(DeviceKind::Timer).is_some();
            assert_eq!(has_device, plan.timers() == Timers::Memory, "{source:?} {shown:?}");
            plan.timers()
        };
        let rows = [
            (TimeSource::Auto, [Timers::Cpu, Timers::Physical, Timers::Memory]),
            (TimeSource::Cp15, [Timers::Cpu, Timers::Physical, Timers::Physical]),
            (TimeSource::Mmio, [Timers::Memory; 3]),
        ];
        for (source, expected) in rows {
            assert_eq!([Native, Trapped, VirtualUntrapped].map(|shown| told(source, shown)), expected, "{source:?}");
        }
    }

    /// `croft` plans without the host that the VM will have: what it places must have the same places there.
    #[test]
    fn where_memory_is_does_not_depend_on_the_host() {
        let here = machine(&vm(), GuestCounter::USUAL).unwrap();
        let there = GuestCounter { frequency: Hz(1_000_000), shown: CpuCounters::VirtualUntrapped };
        let there = machine(&vm(), there).unwrap();
        assert_eq!((here.ram(), here.ram().start), (there.ram(), Ipa(0x4000_0000)));
    }
}
