//! How EL2 is protected from what a guest leaves behind in this CPU's predictors. `cpu::speculation` decides what a CPU
//! needs; here are the means.
//!
//! The vectors overwrite a guest's branch history where an exit leaves the short path. One way leads past them: a WFE
//! gives the CPU to another thread on the short path itself. If that thread is on its short path too, it enters its own
//! guest, without an indirect branch in between, and after hundreds of EL2's own instructions, whose branches push the
//! first guest's out of the history. Any other thread first clears the history: a thread that gives the CPU away from
//! the short path leaves a note ([`defer`]), and a thread that continues elsewhere looks for it ([`settle`]).

use core::sync::atomic::Ordering;

use crate::firmware;
use crate::percpu::this_cpu;
use crate::vectors::{Set, choose};

unsafe extern "C" {
    fn forget_branch_history();
}

/// How this CPU forgets what a guest has left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Means {
    /// It needs nothing of the kind.
    Nothing,
    /// Its branch history is overwritten by so many rounds of a loop; if that is 0, CLRBHB clears it.
    Clear(u8),
    /// Firmware's function of this number does it, at each exit.
    Call(u32),
}

/// Makes this CPU's exits do it from now on. IRQs are masked.
pub fn apply(means: Means) {
    let area = this_cpu();
    let (set, rounds, function) = match means {
        Means::Nothing => (Set::Plain, 0, 0),
        Means::Clear(rounds) => (Set::Clearing, u64::from(rounds), 0),
        Means::Call(function) => (Set::Calling, 0, function),
    };
    // Before the vectors that read them: an exit would clear by no rounds, or call function 0.
    area.history_rounds.store(rounds, Ordering::Relaxed);
    area.workaround.store(function, Ordering::Relaxed);
    choose(set);
}

/// The branch history is the guest's that has just left, and stays so while another thread goes on. IRQs are masked.
#[inline(always)]
pub fn defer() {
    this_cpu().foreign_history.store(1, Ordering::Relaxed);
}

/// Forgets a branch history of which a note was left. IRQs are masked.
#[inline(always)]
pub fn settle() {
    if this_cpu().foreign_history.load(Ordering::Relaxed) != 0 {
        forget();
    }
}

/// Forgets what code behind vectors that call no firmware has left, by whichever means this CPU needs. IRQs are masked. On the way here
/// were returns, and no indirect branch.
#[inline(always)]
pub fn forget_all() {
    forget();
    let function = this_cpu().workaround.load(Ordering::Relaxed);
    if function != 0 {
        let _ = firmware::call(function, 0);
    }
}

/// Forgets the branch history, whosever it is. IRQs are masked, or the note of one CPU would go and the history of another.
#[inline(never)]
pub fn forget() {
    this_cpu().foreign_history.store(0, Ordering::Relaxed);
    // SAFETY: branches to the next instruction; changes X1, X2 and the flags, as any function may.
    unsafe { forget_branch_history() };
}
