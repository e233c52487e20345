//! A VM's console buffers: what guests write waits here until the console's thread takes it.

extern crate alloc;

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fair::{Pace, Reports, Ring};
use hw::sync::IrqLock;
use hw::sysreg;

use super::{DIRTY, announce, wake_reader};
use crate::host;
use crate::output::log_sink::Line;

/// The log has at most this many lines at once about what one guest causes, and then one in so many milliseconds.
const REPORTS_AT_ONCE: u64 = 10;
const REPORT_MILLISECONDS: u64 = 1000;

/// How long the console's thread may work for a guest before a vCPU has to pay for it, in microseconds.
const CREDIT_MICROSECONDS: u64 = 1_000;

/// A VM's console buffers.
pub(crate) struct VmConsole {
    pub(crate) uart: IrqLock<Ring<4096>>,
    pub(crate) virtio: IrqLock<Ring<4096>>,
    /// The guest's own lines for the log. They wait here, so that a guest which has much to say displaces nobody else's.
    pub(crate) log: IrqLock<Ring<2048>>,
    /// What the hypervisor says about the guest, at the guest's own pace; in milliseconds.
    pub(crate) reports: IrqLock<Reports<4096>>,
    /// One of the buffers may have something in it.
    pub(crate) pending: AtomicBool,
    /// When it last wrote something.
    pub(crate) last_output: AtomicU64,
    /// Its devices have work that waits for the console's thread.
    pub(crate) service: AtomicBool,
    /// They have work that one of its vCPUs began, and that is to be gone on with at their pace.
    pub(crate) unfinished: AtomicBool,
    /// For how many ticks of the counter the console's thread has worked for the guest, and no vCPU has paid yet.
    owed: AtomicU64,
    /// How many ticks its vCPUs have paid.
    paid: AtomicU64,
}

impl VmConsole {
    /// Empty. Boxed here, in a frame of its own: the buffers do not fit the stack together with the rest of a VM.
    #[inline(never)]
    #[must_use]
    pub(crate) fn boxed() -> Box<Self> {
        Box::new(Self {
            uart: IrqLock::new(Ring::new()),
            virtio: IrqLock::new(Ring::new()),
            log: IrqLock::new(Ring::new()),
            reports: IrqLock::new(Reports::new(Pace::new(REPORT_MILLISECONDS, REPORTS_AT_ONCE))),
            pending: AtomicBool::new(false),
            last_output: AtomicU64::new(0),
            service: AtomicBool::new(false),
            unfinished: AtomicBool::new(false),
            owed: AtomicU64::new(0),
            paid: AtomicU64::new(0),
        })
    }

    /// Takes a byte of the guest's UART. Says whether there is room for another one.
    pub(crate) fn push_uart(&self, byte: u8) -> bool {
        self.last_output.store(sysreg::cntpct_el0(), Ordering::Relaxed);
        let mut ring = self.uart.lock();
        ring.push(byte);
        let room = ring.room() > 0;
        drop(ring);
        self.announce();
        if !room {
            // The guest can only wait now, so there is nothing to be gathered any more.
            self.ask_for_service();
            wake_reader();
        }
        room
    }

    /// As [`VmConsole::push_uart`] with room left behind it, if that can be done on the short path of an exit: the console's thread
    /// knows already that there is output. Says whether it was done; if not, nothing was.
    #[inline(always)]
    pub(crate) fn push_uart_quickly(&self, byte: u8) -> bool {
        if !DIRTY.load(Ordering::Relaxed) {
            return false;
        }
        let mut ring = self.uart.lock();
        if ring.room() < 2 {
            return false;
        }
        ring.push(byte);
        drop(ring);
        self.last_output.store(sysreg::cntpct_el0(), Ordering::Relaxed);
        // The thread may have looked just before: then it is woken here after all.
        self.announce();
        true
    }

    /// The console's thread has worked for the guest, for so many ticks.
    pub(crate) fn owe(&self, ticks: u64) {
        self.owed.fetch_add(ticks, Ordering::Relaxed);
    }

    /// Whether a vCPU has to pay before more is done for the guest.
    #[must_use]
    pub(crate) fn is_in_debt(&self) -> bool {
        self.owed.load(Ordering::Relaxed) > host::ticks(CREDIT_MICROSECONDS)
    }

    /// Whoever calls this pays so many ticks. What waited for that goes on.
    #[must_use]
    pub(crate) fn take_owed(&self) -> u64 {
        let owed = self.owed.swap(0, Ordering::Relaxed);
        self.paid.fetch_add(owed, Ordering::Relaxed);
        if owed > host::ticks(CREDIT_MICROSECONDS) {
            wake_reader();
        }
        owed
    }

    /// How many ticks were paid.
    #[must_use]
    pub(crate) fn paid(&self) -> u64 {
        self.paid.load(Ordering::Relaxed)
    }

    /// Takes what there is room for of the guest's virtio console; returns how much that was.
    pub(crate) fn push_virtio(&self, bytes: &[u8]) -> usize {
        self.last_output.store(sysreg::cntpct_el0(), Ordering::Relaxed);
        let taken = self.virtio.lock().push_some(bytes);
        self.announce();
        taken
    }

    /// Takes a line of the guest's for the log, whole or not at all. Says which.
    pub(crate) fn push_log(&self, text: fmt::Arguments<'_>) -> bool {
        let line = Line::of(log::Level::Info, text);
        let mut ring = self.log.lock();
        let is_room = ring.room() >= line.as_bytes().len();
        if is_room {
            ring.push_some(line.as_bytes());
        }
        drop(ring);
        self.announce();
        is_room
    }

    /// Takes a line about VM `name`, which that guest caused; at the guest's pace.
    pub(crate) fn report(&self, name: &str, line: &Line) {
        let count = |out: &mut dyn fmt::Write, left_out| write_left_out(out, name, left_out);
        self.reports.lock().push(line.as_bytes(), host::milliseconds(), count);
        self.announce();
    }

    /// Takes a line about the VM's life, which comes seldom enough by itself.
    pub(crate) fn tell(&self, line: &Line) {
        self.reports.lock().push_always(line.as_bytes());
        self.announce();
    }

    fn announce(&self) {
        // Pairs with the swap in the reader's `drain`, as do the two below with theirs: whoever takes it sees what was written before.
        self.pending.store(true, Ordering::Release);
        announce();
    }

    /// Lets the console's thread go on with the VM's devices' work when it is their turn.
    pub(crate) fn ask_for_turn(&self) {
        // Pairs with the swap in the reader's `serve_devices`.
        self.unfinished.store(true, Ordering::Release);
        announce();
    }

    /// Lets the console's thread look after the VM's devices.
    pub(crate) fn ask_for_service(&self) {
        // Pairs with the swap in the reader's `serve_devices`.
        self.service.store(true, Ordering::Release);
        announce();
    }
}

/// How many lines about VM `name` there would have been.
pub(crate) fn write_left_out(out: &mut dyn fmt::Write, name: &str, left_out: u32) -> fmt::Result {
    let line = Line::of(log::Level::Warn, format_args!("{name}: {left_out} more lines about it were left out"));
    out.write_str(core::str::from_utf8(line.as_bytes()).unwrap_or("?\n"))
}
