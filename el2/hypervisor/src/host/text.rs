//! Text that needs no memory, or says when there is none.
//!
//! Answers to the operator and news of VMs must get out at any time, also when guests have used up the heap. A failed
//! allocation in `format!` or `String` would stop the machine; here a sentence has a fixed buffer, and a long text ends
//! early.

extern crate alloc;

use alloc::string::String;
use core::fmt::{self, Write};

use arrayvec::ArrayString;

/// Bytes of a sentence; what is longer is cut.
const ROOM: usize = 400;

/// A sentence.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Sentence(ArrayString<ROOM>);

impl Sentence {
    /// Writes it down.
    #[must_use]
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        let mut sentence = Self::default();
        let _ = sentence.write_fmt(text);
        sentence
    }
}

impl Write for Sentence {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.0.remaining_capacity();
        let cut = (0..=room.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.get(..cut).map_or(Err(fmt::Error), |text| self.0.try_push_str(text).map_err(|_| fmt::Error))
    }
}

impl From<pack::Damaged> for Sentence {
    fn from(damaged: pack::Damaged) -> Self {
        Self::new(format_args!("{damaged}"))
    }
}

impl core::ops::Deref for Sentence {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl From<&str> for Sentence {
    fn from(text: &str) -> Self {
        Self::new(format_args!("{text}"))
    }
}

/// As `format!`, into a [`Sentence`].
macro_rules! sentence {
    ($($text:tt)*) => { $crate::host::text::Sentence::new(format_args!($($text)*)) };
}
pub(crate) use sentence;

/// A text of any length, as far as there is memory for it.
#[derive(Default)]
pub(crate) struct Text(String);

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.try_reserve(text.len()).map_err(|_| fmt::Error)?;
        self.0.push_str(text);
        Ok(())
    }
}

impl Text {
    /// What `write` writes, or as much of it as there is memory for.
    pub(crate) fn of(write: impl FnOnce(&mut dyn Write) -> fmt::Result) -> Self {
        let mut text = Self::default();
        if write(&mut text).is_err() {
            log::warn!("the hypervisor has no memory left for the whole of a text that was asked for");
        }
        text
    }
}

impl core::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}
