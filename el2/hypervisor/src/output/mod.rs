//! Output that waits for the UART: the log, and what guests write. The rooms above put it here. They do not know who takes it;
//! they only wake a thread, the *reader*, which belongs to the link, above them all. The link's port of a virtio console is here
//! too, because its interrupts reach this room.

use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, Ordering};

use fair::Ring;
use hw::sync::IrqLock;
use hw::{sysreg, uart};
use spin::Once;
use units::Ticks;

pub(crate) mod buffers;
pub(crate) mod log_sink;
pub(crate) mod port;

use crate::host;
use crate::sched::{self, Thread};

/// How long output may wait for more of it, in microseconds.
const GATHER_MICROSECONDS: u64 = 1_000;
/// How many bytes of the log are kept for whoever reads it, and for a crash report.
pub(crate) const LOG_BYTES: usize = 16_384;

static READER: Once<&'static Thread> = Once::new();
/// Output waits, and the reader knows or will be woken.
static DIRTY: AtomicBool = AtomicBool::new(false);
static STATES_CHANGED: AtomicBool = AtomicBool::new(false);
/// Lines of the log.
pub(crate) static LOG: IrqLock<Ring<LOG_BYTES>> = IrqLock::new(Ring::new());

/// From now on `thread` takes output away; until now the log went to the UART at once.
pub(crate) fn set_reader(thread: &'static Thread) {
    READER.call_once(|| thread);
}

/// The reader looks at once.
pub(crate) fn wake_reader() {
    if let Some(thread) = READER.get() {
        sched::wake(thread);
    }
}

/// The reader looks for output now: what comes from here on is announced anew.
pub(crate) fn begin_look() {
    // Pairs with the swap in `announce`: whoever finds it set relies on a look that sees what it has written. A store would not see
    // that swap, so the flags that are read next could still be those from before it.
    let _ = DIRTY.swap(false, Ordering::AcqRel);
}

/// Whether output was announced since the reader's last look began.
#[inline(always)]
pub(crate) fn is_waiting() -> bool {
    // Pairs with the swap in `announce`.
    DIRTY.load(Ordering::Acquire)
}

/// The reader, which calls this itself, has been woken and does not know for what: it looks again before it sleeps.
pub(crate) fn look_again() {
    // Pairs with the load in `is_waiting`.
    DIRTY.store(true, Ordering::Release);
}

/// The state of some VM is another than what was last told.
pub(crate) fn note_change() {
    // Pairs with the swap in `take_changed`: whoever finds it set sees the VM's new state.
    STATES_CHANGED.store(true, Ordering::Release);
}

/// Whether the state of some VM changed since this was last asked.
pub(crate) fn take_changed() -> bool {
    // Pairs with the store in `note_change`.
    STATES_CHANGED.swap(false, Ordering::AcqRel)
}

/// There is output. The reader is woken a moment later, so that it finds more than one byte.
pub(crate) fn announce() {
    // Pairs with the swap in `begin_look`: the look that this one relies on, if it finds the flag set, sees what was written before.
    if !DIRTY.swap(true, Ordering::AcqRel)
        && let Some(thread) = READER.get()
    {
        let soon = sysreg::cntpct_el0().saturating_add(host::ticks(GATHER_MICROSECONDS));
        sched::wake_at(thread, Ticks(soon));
    }
}

/// Takes lines of the log.
pub(crate) fn push_log(text: &[u8]) {
    if READER.get().is_none() {
        let _ = uart::Emergency.write_str(core::str::from_utf8(text).unwrap_or("?\n"));
        return;
    }
    LOG.lock().push_lines_over(text);
    announce();
}

/// Wakes the thread at `deadline`.
pub(crate) fn attend_at(deadline: Ticks) {
    if let Some(thread) = READER.get() {
        sched::wake_at(thread, deadline);
    }
}

/// A VM was started or stopped.
pub(crate) fn vm_changed() {
    note_change();
    announce();
}

/// Bytes arrived.
pub(crate) fn input_arrived() {
    uart::quiet_receive_interrupt();
    if let Some(thread) = READER.get() {
        sched::wake(thread);
    }
}
