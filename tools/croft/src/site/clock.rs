//! Whether the emulated host can show a VM's time, as far as its CPU model tells: the warning of `croft check` and `croft ps`
//! where a guest may read a wrong clock. On real hardware the hypervisor's log says the same.

use super::{Host, Vm};
use abi::bundle::{CpuCounters, Time};

/// The only one of QEMU's models that has FEAT_ECV.
const WITH_ECV: &str = "max";
/// The frequency of the counters of its other models, where `cntfrq` says no other one.
const USUAL_FREQUENCY: u64 = 62_500_000;

/// How far the CPU of `host` can show `time`.
fn counters(host: &Host, time: &Time) -> CpuCounters {
    let mut words = host.cpu.split(',');
    if words.next() == Some(WITH_ECV) {
        return CpuCounters::Trapped;
    }
    let said = words.find_map(|word| word.strip_prefix("cntfrq=")).and_then(|number| number.parse().ok());
    let frequency = said.unwrap_or(USUAL_FREQUENCY);
    if time.rate == Time::REAL && (time.frequency == 0 || u64::from(time.frequency) == frequency) {
        CpuCounters::Native
    } else {
        CpuCounters::VirtualUntrapped
    }
}

/// What is to be said of `vm`, if its guest may read a wrong clock on `host`.
pub(super) fn wrong_clock(host: &Host, vm: &Vm) -> Option<String> {
    let model = host.cpu.split(',').next().unwrap_or_default();
    vm.time.source.misleads(counters(host, &vm.time)).then(|| {
        format!(
            "time.source = \"cp15\": the CPU {model} cannot trap CNTVCT_EL0 (no FEAT_ECV), so a kernel that takes its clock from there, as \
             Linux does, has the host's time by a wrong frequency; write \"mmio\", which Linux before 6.18 takes, or run it on the CPU {WITH_ECV}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{Host, Vm, wrong_clock};
    use abi::bundle::{Time, TimeSource};

    #[test]
    fn only_the_virtual_counter_of_a_cpu_that_cannot_trap_it_is_wrong() {
        let said = |cpu: &str, time: Time| {
            let host = Host { cpu: cpu.to_owned(), cpus: 1, memory: 1 << 30, disks: Vec::new() };
            let mut vm = Vm::new("web", "kernel", 64 << 20);
            vm.time = time;
            wrong_clock(&host, &vm)
        };
        let other = Time { frequency: 24_000_000, source: TimeSource::Cp15, ..Time::default() };
        let told = said("cortex-a72", other).unwrap();
        assert!(told.contains("cortex-a72") && told.contains("\"mmio\""), "{told}");
        assert!(said("cortex-a72", Time { rate: 500_000, frequency: 0, ..other }).is_some());
        assert!(said("cortex-a57,cntfrq=100000000", Time { frequency: 62_500_000, ..other }).is_some());
        for (cpu, time) in [
            ("max,cntfrq=100000000", other),
            ("cortex-a72", Time { source: TimeSource::Auto, ..other }),
            ("cortex-a72", Time { source: TimeSource::Mmio, ..other }),
            ("cortex-a72", Time { frequency: 0, ..other }),
            ("cortex-a72", Time { frequency: 62_500_000, ..other }),
            ("cortex-a72,cntfrq=24000000", other),
        ] {
            assert_eq!(said(cpu, time), None, "{cpu} {time:?}");
        }
    }
}
