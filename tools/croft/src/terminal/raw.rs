//! The terminal in raw mode: every key goes through, Ctrl-C too.

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{IsTerminal, stdin, stdout};

/// Raw mode; the terminal is as before when this is dropped, or when this process panics.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Whether a person sits at both ends.
    #[must_use]
    pub fn possible() -> bool {
        stdin().is_terminal() && stdout().is_terminal()
    }

    /// Enters raw mode.
    ///
    /// # Errors
    /// If standard input is no terminal, or the terminal refuses.
    pub fn enter() -> std::io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        let (restore, report) = (before.clone(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            let _ = tcsetattr(stdin(), OptionalActions::Now, &restore);
            report(panic);
        }));
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nothing that could be done about a terminal that is gone.
        // Not after all output was shown: the terminal may have stopped showing any.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}
