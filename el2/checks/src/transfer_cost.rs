//! What it costs to save a VM and to restore it, in ticks of the counter, which are instructions where time is counted so (`cargo
//! xtask bench`): the boot argument `selftest=transfer`. The first VM of the site is saved, and each piece of it goes at once into
//! the second, which is off and of the same shape. Then lines `bench <row> <number>` say what came out, and the host is switched off.
//!
//! The link is not in this, which has rows of its own (`link_cost`): pieces go from a buffer into the other VM. There is one CPU, so
//! that nothing is counted that others do meanwhile, and the VM that was saved stands still once that has been measured.

use alloc::vec::Vec;

use abi::link::request::MAX_BULK_CHUNK;
use hw::sync::unmask_irqs;
use hw::sysreg;
use undercroft::host::text::Sentence;
use undercroft::link::transfer::{Transfer, Written};
use undercroft::sched::{self, Thread};
use undercroft::vm::{self, Vm};
use units::PAGE_SIZE;

use crate::selftest;

/// How long the first VM has to fill its memory, in microseconds of instructions.
const SETTLE_MICROSECONDS: u64 = 3_000_000;

/// What was counted, in ticks.
#[derive(Default)]
struct Cost {
    /// From the request to save until the state is taken and the guest may go on.
    pause: u64,
    /// All further pieces.
    save: u64,
    /// From the request to restore until the other guest has executed something.
    to_guest: u64,
    /// All pieces on their way in.
    restore: u64,
    bytes: u64,
}

/// Starts the thread that measures.
pub(crate) fn start() {
    match Thread::spawn("transfer", run, 0, (10_000, sched::online())) {
        Ok(thread) => sched::wake(thread),
        Err(error) => log::error!("selftest: {error}"),
    }
}

fn run(_: usize) -> ! {
    unmask_irqs();
    selftest::sleep(SETTLE_MICROSECONDS);
    let mut vms = vm::all();
    if let (Some(from), Some(to)) = (vms.next(), vms.next()) {
        let pages = from.memory() / PAGE_SIZE;
        match measure(from, to) {
            Ok(cost) => {
                let rows = [
                    ("save-pause", cost.pause * 10),
                    ("save-page", cost.save * 10 / pages),
                    ("saved-page-bytes", cost.bytes * 10 / pages),
                    ("restore-page", cost.restore * 10 / pages),
                    ("restore-to-guest", cost.to_guest * 10),
                ];
                for (name, tenths) in rows {
                    log::info!("bench {name} {}.{}", tenths / 10, tenths % 10);
                }
            }
            Err(why) => log::error!("selftest: {why}"),
        }
    } else {
        log::error!("selftest: there are no two VMs");
    }
    selftest::end()
}

/// How long `work` takes.
fn timed<R>(ticks: &mut u64, work: impl FnOnce() -> R) -> R {
    let begin = sysreg::cntpct_el0();
    let result = work();
    *ticks += sysreg::cntpct_el0().wrapping_sub(begin);
    result
}

#[expect(
    clippy::result_large_err,
    reason = "a sentence has its room with it, so that none needs memory that may be used up"
)]
fn measure(from: &'static Vm, to: &'static Vm) -> Result<Cost, Sentence> {
    let (mut saving, mut restoring, mut cost) = (Transfer::default(), Transfer::default(), Cost::default());
    timed(&mut cost.pause, || {
        saving.save(0, from)?;
        loop {
            match saving.look_after() {
                Some((_, answer)) => return answer,
                None => sched::yield_now(),
            }
        }
    })?;
    from.pause();
    timed(&mut cost.restore, || restoring.restore(to))?;
    let mut piece = Vec::new();
    piece.try_reserve_exact(MAX_BULK_CHUNK).map_err(|_| Sentence::from("there is no memory for a piece"))?;
    while saving.has_more() {
        piece.clear();
        timed(&mut cost.save, || {
            saving.save_next(from, cost.bytes, MAX_BULK_CHUNK as u32, &mut |bytes| piece.extend_from_slice(bytes))
        })?;
        timed(&mut cost.restore, || {
            let mut progress = restoring.restore_next(to, cost.bytes, &piece)?;
            while progress == Written::More {
                progress = restoring.restore_next(to, cost.bytes + piece.len() as u64, &[])?;
            }
            Ok::<_, Sentence>(())
        })?;
        cost.bytes += piece.len() as u64;
    }
    let mut end = 0;
    let exits = to.exits();
    timed(&mut end, || {
        restoring.restore_end(to, false)?;
        while to.exits() == exits {
            sched::yield_now();
        }
        Ok::<_, Sentence>(())
    })?;
    cost.to_guest = cost.restore + end;
    saving.end(from)?;
    Ok(cost)
}
