//! For tests of what a VM's record becomes, in each crate that writes it down: a VM all of whose fields have something to lose.

use super::{
    Backend, Calls, Coherency, Disk, Disks, Doors, HostPart, Port, Ports, Quota, Time, TimeAway, TimeSource, Vm,
};

/// A VM with a value in each field that no other has and that is not the usual one. Each number is so large that a field of another width
/// has other bytes; so several are more than a VM may have.
#[must_use]
pub const fn largest<'a, File: Copy, Program: Copy>(
    file: File,
    program: Option<Program>,
) -> Vm<&'a str, File, Program> {
    let one = Disk { backend: Backend::Image { image: file, changes: u64::MAX - 7 }, serial: "c" };
    let part = HostPart { disk: "h", offset: u64::MAX - 8, size: u64::MAX - 9, read_only: true };
    let other = Disk { backend: Backend::Host(part), serial: "d" };
    let port = Port { network: "e", vlan: 4001, mac: [0x52, 0x54, 1, 2, 3, 4], mtu: 60_003 };
    Vm {
        vcpus: 200,
        memory: u64::MAX,
        weight: 60_000,
        affinity: u64::MAX - 1,
        autostart: false,
        enclave: true,
        pause_stops_time: true,
        time: Time { frequency: u32::MAX, rate: u32::MAX - 1, source: TimeSource::Mmio, away: TimeAway::Freeze },
        coherency: Coherency::Strict,
        doors: Doors {
            vmware: true,
            strict: true,
            time_sync: true,
            wfe: true,
            watchdog_user: true,
            watchdog_milliseconds: u32::MAX - 2,
            watchdog_action: 201,
            watchdog_choices: 202,
            vcpu_watchdog_milliseconds: u32::MAX - 3,
            generic_watchdog: true,
            quota: Quota {
                channels: 60_001,
                message: u32::MAX - 4,
                keys: 60_002,
                store: u32::MAX - 5,
                log: u32::MAX - 6,
            },
            user_calls: Calls(203),
            kernel_calls: Calls(204),
        },
        name: "a",
        kernel: file,
        program,
        initrd: Some(file),
        disks: Disks([Some(one), Some(other), None, None, None, None, None, None]),
        ports: Ports([Some(port), Some(Port { network: "f", ..port }), None, None]),
        cmdline: "b",
    }
}
