//! How a restore ends before all of its memory has come: the guest, which runs meanwhile, ends its life, or nobody sends the rest.
//!
//! Both can happen at any moment, and a guest's next life begins on other CPUs. So what has become of the life into which memory comes is
//! asked, and it is stopped, under the lock of the VM's life and by that life's number: no other is meant, and no reason is told but the one
//! that there is.

extern crate alloc;

use alloc::boxed::Box;

use abi::link::request::Over;

use super::Restoring;
use crate::host::text::{Sentence, sentence};
use crate::vm::{Fate, Stop, Then};

impl Restoring {
    /// Whether the guest has ended the life that it was restored to, and how.
    ///
    /// # Errors
    /// If it was ended otherwise: a sentence that says how.
    pub(super) fn has_ended(&self) -> Result<Option<Over>, Sentence> {
        let (name, Some(life)) = (self.vm.config.name, self.life) else { return Ok(None) };
        match self.vm.fate(life) {
            Fate::Lives => Ok(None),
            Fate::Ends(Stop::PowerOff) if self.has_begun => Ok(Some(Over::PoweredOff)),
            Fate::Afresh if self.has_begun => Ok(Some(Over::Afresh)),
            Fate::Ends(Stop::Crashed(reason)) => {
                Err(sentence!("{name} has stopped while it was being restored: {reason}"))
            }
            Fate::Ends(_) | Fate::Afresh => Err(sentence!("{name} was stopped while it was being restored")),
        }
    }

    /// Nobody sends the rest. A guest that runs, and of whose memory some is still to come, cannot go on: it hears why.
    pub(super) fn give_up(self: Box<Self>, why: &str) {
        let Some(life) = self.life else { return };
        if self.has_begun && self.vm.ram.lock().has_all_come() {
            // All that is missing is that somebody says so.
            return self.vm.memory_has_come(life, Then::GoesOn);
        }
        let stop = if self.has_begun {
            Stop::Crashed(sentence!("its memory has not all come: {why}"))
        } else {
            // As it was.
            self.before
        };
        // Not another life, should it have begun one itself.
        self.vm.stop_in(life, stop);
    }
}
