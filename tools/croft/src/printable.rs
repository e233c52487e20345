//! Untrusted text on a terminal.
//!
//! A guest, a site file and a file's name may have any character in them, and a terminal obeys some: they move its cursor, change
//! its title, or turn the direction of what follows. Such a character is shown as its number.

/// Text that cannot disturb a terminal, all in one line.
#[must_use]
pub fn line(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars() {
        if disturbs(letter) { shown.extend(letter.escape_unicode()) } else { shown.push(letter) }
    }
    shown
}

/// As [`line`], but lines stay lines.
#[must_use]
pub fn lines(text: &str) -> String {
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// Control characters, and those that Unicode has for the same: of direction, of joining, of no width.
fn disturbs(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::{line, lines};

    #[test]
    fn what_a_terminal_obeys_is_shown_as_its_number() {
        assert_eq!(line("a\u{7}é\u{1b}[2J\n\u{9b}"), "a\\u{7}é\\u{1b}[2J\\u{a}\\u{9b}");
        assert_eq!(line("gpj.\u{202e}exe"), "gpj.\\u{202e}exe");
        assert_eq!(lines("one\r\ntwo\n"), "one\\u{d}\ntwo\n");
    }
}
