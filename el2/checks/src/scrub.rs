//! VMs that are paused all the time, and each time taken out, made as they were after power on, and put back: the boot argument
//! `selftest=scrub`.
//!
//! Memory stays, but is unmapped until the guest touches it again. Everything else that a guest can see of its machine goes
//! through a [`SavedVm`] and its bytes: whatever is forgotten there is lost, and the guest notices. No guest may notice anything.

use core::sync::atomic::{AtomicU64, Ordering};

use hw::sync::unmask_irqs;
use hw::sysreg;
use snapshot::SavedVm;
use undercroft::host::text::Sentence;
use undercroft::sched::{self, Thread};
use undercroft::vcpu::saved::Still;
use undercroft::vm::Vm;
use undercroft::{host, vm};
use units::Ticks;

/// For how long VMs run in between, in microseconds: at first, and how much longer each time. A guest touches all of its memory anew
/// each time, so what it gets done in a fixed time is next to nothing where the host is slow, and it would never come to its end.
const RUN_MICROSECONDS: u64 = 4_000;
const MORE_MICROSECONDS: u64 = 40;
/// How often it is looked whether their vCPUs stand still.
const LOOK_MICROSECONDS: u64 = 200;
/// A line of the log for so many times, so that the scenario sees that it tests something.
const TOLD: u64 = 50;

/// How often VMs were put back.
static DONE: AtomicU64 = AtomicU64::new(0);

/// Starts the thread that does it.
pub(crate) fn start() {
    match Thread::spawn("scrub", run, 0, (10_000, sched::online())) {
        Ok(thread) => sched::wake(thread),
        Err(error) => log::error!("selftest: {error}"),
    }
}

fn run(_: usize) -> ! {
    unmask_irqs();
    loop {
        for vm in vm::all() {
            wait(RUN_MICROSECONDS + MORE_MICROSECONDS * DONE.load(Ordering::Relaxed));
            if vm.pause() {
                exchange(vm);
                vm.resume();
            }
        }
    }
}

fn wait(microseconds: u64) {
    sched::block(Some(Ticks(sysreg::cntpct_el0() + host::ticks(microseconds))));
}

/// Takes the state of `vm` out and puts it back, once its vCPUs stand still. If it ends meanwhile, that is well too.
fn exchange(vm: &'static Vm) {
    let mut still = loop {
        match Still::of(vm) {
            Some(still) => break still,
            None if !vm.is_paused() => return,
            None => wait(LOOK_MICROSECONDS),
        }
    };
    let result = there_and_back(&mut still);
    drop(still);
    match result {
        Ok(bytes) => {
            let done = DONE.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(TOLD) {
                log::info!("states were taken out, scrubbed and put back {done} times, the last one of {bytes} bytes");
            }
        }
        Err(reason) => log::error!("selftest: {reason}"),
    }
}

/// How many bytes the state has.
#[expect(
    clippy::result_large_err,
    reason = "a sentence has its room with it, so that none needs memory that may be used up"
)]
fn there_and_back(still: &mut Still) -> Result<usize, Sentence> {
    let bytes = still.save()?.to_bytes()?;
    still.scrub()?;
    if still.save()?.to_bytes()? == bytes {
        return Err(Sentence::from("scrubbing changes nothing"));
    }
    still.restore(&mut SavedVm::from_bytes(&bytes)?)?;
    let again = still.save()?.to_bytes()?;
    match again.iter().zip(&bytes).position(|(one, other)| one != other) {
        None if again.len() == bytes.len() => Ok(bytes.len()),
        place => Err(Sentence::new(format_args!(
            "a state that was put in comes out as another one, from byte {} of {} on",
            place.unwrap_or(again.len().min(bytes.len())),
            bytes.len()
        ))),
    }
}
