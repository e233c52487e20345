//! What the terminal can show: what TERM and NO_COLOR say.

use std::ffi::OsStr;

/// What may be sent to a terminal besides text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Look {
    /// All that a terminal understands.
    #[default]
    Full,
    /// No colours and no inverse video of croft's own (NO_COLOR is set and not empty, <https://no-color.org>).
    Sober,
    /// Nothing but text: TERM is not set, or `dumb`. What guests send is stripped too.
    Plain,
}

impl Look {
    /// As the environment says.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::of(std::env::var_os("TERM").as_deref(), std::env::var_os("NO_COLOR").as_deref())
    }

    fn of(term: Option<&OsStr>, no_color: Option<&OsStr>) -> Self {
        match term {
            None => Self::Plain,
            Some(term) if term.is_empty() || term == "dumb" => Self::Plain,
            Some(_) if no_color.is_some_and(|value| !value.is_empty()) => Self::Sober,
            Some(_) => Self::Full,
        }
    }
}

/// Takes control sequences out of a stream, also ones that come in pieces (ECMA-48: an escape and one character, or a control
/// sequence up to its final character, or a string up to its terminator).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stripper(Within);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
    Text,
    Escape,
    Sequence,
    String,
    StringEscape,
}

impl Stripper {
    /// The text in `bytes`.
    pub fn strip(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.0 = match (self.0, byte) {
                (Within::String, 0x1b) => Within::StringEscape,
                (Within::String, 0x07 | 0x18 | 0x1a) | (Within::StringEscape, b'\\') => Within::Text,
                (Within::String, _) => Within::String,
                (Within::StringEscape, _) | (_, 0x1b) => Within::Escape,
                (Within::Escape, b'[') => Within::Sequence,
                (Within::Escape, b']' | b'P' | b'X' | b'^' | b'_') => Within::String,
                // Intermediate characters: the final one is still to come.
                (Within::Escape, 0x20..=0x2f) => Within::Escape,
                (Within::Escape, _) | (Within::Sequence, 0x40..=0x7e | 0x18 | 0x1a) => Within::Text,
                (Within::Sequence, _) => Within::Sequence,
                (Within::Text, b'\t' | b'\n' | b'\r' | 0x08 | 0x20..=0x7e | 0x80..) => {
                    text.push(byte);
                    Within::Text
                }
                (Within::Text, _) => Within::Text,
            };
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Look, Stripper};
    use std::ffi::OsStr;

    #[test]
    fn the_environment_is_heeded() {
        let look = |term: Option<&'static str>, color: Option<&'static str>| {
            Look::of(term.map(OsStr::new), color.map(OsStr::new))
        };
        assert_eq!(look(Some("xterm"), None), Look::Full);
        assert_eq!(look(Some("xterm"), Some("")), Look::Full, "an empty NO_COLOR is none");
        assert_eq!(look(Some("xterm"), Some("1")), Look::Sober);
        for term in [Some("dumb"), Some(""), None] {
            assert_eq!(look(term, None), Look::Plain);
        }
    }

    #[test]
    fn sequences_are_stripped_however_they_are_cut() {
        let noisy = b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07a\x1b]0;t\x1b\\b\x1b(Bc\x1b7d\x07\x1b[6ne\r\n\xc3\xa9";
        let plain = b"red abcde\r\n\xc3\xa9";
        assert_eq!(Stripper::default().strip(noisy), plain);
        let mut stripper = Stripper::default();
        let by_bytes: Vec<u8> = noisy.iter().flat_map(|&byte| stripper.strip(&[byte])).collect();
        assert_eq!(by_bytes, plain);
    }
}
