//! What it costs to save a VM and to restore it, in ticks of the counter, which are instructions where time is counted so (`cargo
//! xtask bench`): the boot argument `selftest=transfer`. The first VM of the site is saved, and then restored into the second, which is
//! off and of the same shape, as `croft` does it: the state, then each piece of memory that the guest waits for, until it has executed
//! something, then all others. Then lines `bench <row> <number>` say what came out, and the host is switched off.
//!
//! Neither the link is in this, which has rows of its own (`link_cost`), nor what `croft` does: pieces go from a buffer into the other VM.
//! There is one CPU, so that nothing is counted that others do meanwhile, and the VM that was saved stands still once that has been
//! measured.

use alloc::vec::Vec;

use abi::link::request::MAX_BULK_CHUNK;
use hw::sync::unmask_irqs;
use hw::sysreg;
use snapshot::file::{Content, FileError, PAGE, PAGES_OF_A_PIECE, Pieces, Reader, Run, Section};
use undercroft::host::text::Sentence;
use undercroft::link::transfer::{Transfer, Written};
use undercroft::sched::{self, Thread};
use undercroft::vm::{self, Then, Vm};
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
    /// From the request to restore until the other guest has executed something, and how many pieces it has waited for until then.
    to_guest: u64,
    wanted: u64,
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
                log::info!("the guest waited for {} pieces before it had executed anything", cost.wanted);
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

/// A saved VM up to its memory, and how many sections that is.
struct Begin {
    bytes: Vec<u8>,
    sections: u32,
}

#[expect(
    clippy::result_large_err,
    reason = "a sentence has its room with it, so that none needs memory that may be used up"
)]
fn measure(from: &'static Vm, to: &'static Vm) -> Result<Cost, Sentence> {
    let mut cost = Cost::default();
    let mut begin = save(from, &mut cost)?;
    let mut pieces = Pieces::begin(hw::memory::crc32c, &mut begin.bytes, begin.sections);
    let mut sending = Sending { to, restoring: Transfer::default(), offset: 0 };
    timed(&mut cost.to_guest, || {
        sending.restoring.restore(to)?;
        sending.send(&begin.bytes)
    })?;
    let count = from.memory() / PAGE_SIZE / PAGES_OF_A_PIECE;
    let mut left: Vec<u64> = Vec::new();
    left.try_reserve_exact(count as usize).map_err(|_| no_memory())?;
    left.extend((0..count).rev());
    // Not on the stack, of which a state that is read takes most.
    let mut page: Vec<[u8; PAGE]> = Vec::new();
    page.try_reserve_exact(1).map_err(|_| no_memory())?;
    page.resize(1, [0; PAGE]);
    let page = page.first_mut().ok_or_else(no_memory)?;
    let mut exits = None;
    // Until it has left a page that it was let execute.
    while exits.is_none_or(|exits| to.exits() == exits) {
        if exits.is_none() && to.executable_pages() > 0 {
            exits = Some(to.exits());
        }
        let wanted = sending.restoring.wanted(to).map(u64::from);
        if let Some(place) = left.iter().position(|&piece| Some(piece) == wanted) {
            let bytes = piece_of(from, left.remove(place), &mut pieces, page)?;
            timed(&mut cost.to_guest, || sending.send(&bytes))?;
            cost.wanted += 1;
        } else {
            timed(&mut cost.to_guest, sched::yield_now);
        }
    }
    cost.restore = cost.to_guest;
    while let Some(piece) = left.pop() {
        let bytes = piece_of(from, piece, &mut pieces, page)?;
        timed(&mut cost.restore, || sending.send(&bytes))?;
    }
    let end = pieces.end().map_err(wrong)?;
    timed(&mut cost.restore, || {
        sending.send(&end)?;
        sending.restoring.restore_end(to, Then::StandsStill)
    })?;
    Ok(cost)
}

/// Saves all of `from`, which stands still from then on.
#[expect(clippy::result_large_err, reason = "as above")]
fn save(from: &'static Vm, cost: &mut Cost) -> Result<Begin, Sentence> {
    let mut saving = Transfer::default();
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
    let (mut piece, mut reader) = (Vec::new(), Reader::new(hw::memory::crc32c));
    piece.try_reserve_exact(MAX_BULK_CHUNK).map_err(|_| no_memory())?;
    let mut begin = Begin { bytes: Vec::new(), sections: 0 };
    let mut has_state = false;
    while saving.has_more() {
        piece.clear();
        timed(&mut cost.save, || {
            saving.save_next(from, cost.bytes, MAX_BULK_CHUNK as u32, &mut |bytes| piece.extend_from_slice(bytes))
        })?;
        cost.bytes += piece.len() as u64;
        let mut unread = &*piece;
        while !has_state && !unread.is_empty() {
            let section = reader.read(&mut unread).map_err(wrong)?;
            has_state = matches!(section, Some(Section::State(_)));
            if section.is_none() {
                break;
            }
        }
        if begin.sections == 0 {
            begin.bytes.extend_from_slice(piece.get(..piece.len() - unread.len()).unwrap_or_default());
        }
        if has_state && begin.sections == 0 {
            begin.sections = reader.sections();
        }
    }
    saving.end(from)?;
    Ok(begin)
}

/// A VM that is restored.
struct Sending {
    to: &'static Vm,
    restoring: Transfer,
    offset: u64,
}

impl Sending {
    #[expect(clippy::result_large_err, reason = "as above")]
    fn send(&mut self, bytes: &[u8]) -> Result<(), Sentence> {
        for piece in bytes.chunks(MAX_BULK_CHUNK) {
            let mut progress = self.restoring.restore_next(self.to, self.offset, piece)?;
            self.offset += piece.len() as u64;
            while progress == Written::More {
                progress = self.restoring.restore_next(self.to, self.offset, &[])?;
            }
        }
        Ok(())
    }
}

/// A piece of what was saved, as it is sent.
#[expect(clippy::result_large_err, reason = "as above")]
fn piece_of(from: &Vm, piece: u64, pieces: &mut Pieces, page: &mut [u8; PAGE]) -> Result<Vec<u8>, Sentence> {
    let mut all: Vec<[u8; PAGE]> = Vec::new();
    all.try_reserve_exact(PAGES_OF_A_PIECE as usize).map_err(|_| no_memory())?;
    let first = piece * PAGES_OF_A_PIECE;
    for number in first..first + PAGES_OF_A_PIECE {
        if !Transfer::page(from, number, page)? {
            page.fill(0);
        }
        all.push(*page);
    }
    let runs = (first..).zip(&all).map(|(first, page)| Run { first, count: 1, content: Content::Page(page) });
    pieces.piece(runs).map_err(wrong)
}

fn wrong(error: FileError) -> Sentence {
    Sentence::new(format_args!("{error}"))
}

fn no_memory() -> Sentence {
    Sentence::from("there is no memory for a piece")
}
