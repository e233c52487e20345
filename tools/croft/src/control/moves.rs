//! Which VMs are being saved or restored through this host.
//!
//! A VM that is being saved stands still for moments, and is shown as paused then. One that is being restored is off until the file has said
//! what it is, paused until its state is in, and runs while its memory comes. From what the hypervisor reports of them alone, neither can be
//! told from a VM that somebody paused or stopped, and an order that depends on it would be refused for the wrong reason, or waited for in
//! vain.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is done with all of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// It is being saved, dumped, or cloned.
    Out,
    /// It is being restored, or made a clone of another one, and waits for its state.
    In,
    /// It has its state, and its memory comes: it is its guest's, and the operator's, again.
    Arriving,
}

impl Move {
    /// One fixed word for it, for programs (`docs/formats/control.md`).
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Out => "saved",
            Self::In => "restored",
            Self::Arriving => "arriving",
        }
    }

    /// What is done, for people, behind "it is".
    pub(super) const fn sentence(self) -> &'static str {
        match self {
            Self::Out => "being saved",
            Self::In | Self::Arriving => "being restored",
        }
    }
}

/// What is under way, by the VM's number, what was begun last at the end. The hypervisor has one transfer at a time and refuses a second
/// one, so that there are two only for a moment.
#[derive(Debug, Default)]
pub(super) struct Moves(Mutex<BTreeMap<u16, Vec<Move>>>);

/// As long as it is there, its move is under way.
#[derive(Debug)]
pub(super) struct UnderWay<'a> {
    moves: &'a Moves,
    vm: u16,
    what: Move,
}

impl Moves {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, Vec<Move>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that this is done with a VM, as long as the result is there.
    pub(super) fn begin(&self, vm: u16, what: Move) -> UnderWay<'_> {
        self.lock().entry(vm).or_default().push(what);
        UnderWay { moves: self, vm, what }
    }

    /// What is done with a VM.
    pub(super) fn of(&self, vm: u16) -> Option<Move> {
        self.lock().get(&vm)?.last().copied()
    }
}

impl UnderWay<'_> {
    /// The VM has its state.
    pub(super) fn arrives(&mut self) {
        if let Some(what) =
            self.moves.lock().get_mut(&self.vm).and_then(|all| all.iter_mut().find(|what| **what == self.what))
        {
            *what = Move::Arriving;
        }
        self.what = Move::Arriving;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut moves = self.moves.lock();
        if let Some(all) = moves.get_mut(&self.vm)
            && let Some(place) = all.iter().position(|what| *what == self.what)
        {
            all.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_known_until_its_last_order_is_over() {
        let moves = Moves::default();
        assert_eq!(moves.of(1), None);
        let first = moves.begin(1, Move::Out);
        let second = moves.begin(1, Move::In);
        assert_eq!((moves.of(1), moves.of(0)), (Some(Move::In), None));
        drop(second);
        assert_eq!(moves.of(1), Some(Move::Out), "whoever was refused ends nothing");
        let third = moves.begin(1, Move::In);
        drop(first);
        assert_eq!(moves.of(1), Some(Move::In), "the first one's end is not its");
        drop(third);
        assert_eq!(moves.of(1), None);
        let mut again = moves.begin(1, Move::In);
        assert_eq!(moves.of(1), Some(Move::In));
        again.arrives();
        assert_eq!(moves.of(1), Some(Move::Arriving));
        drop(again);
        assert_eq!(moves.of(1), None);
    }
}
