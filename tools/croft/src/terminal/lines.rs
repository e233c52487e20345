//! Everything as lines of text, each with its source's name.

use super::{Backlog, LOG_NAME, Outlet};
use crate::session::Notice;
use abi::link::Channel;
use std::collections::BTreeMap;
use std::io::{Result, Write};
use units::VmId;

/// A line longer than this is cut in two, so that a guest without line ends fills no memory.
const LONGEST: usize = 4096;

/// Writes lines.
pub struct Lines<W> {
    out: W,
    names: Vec<String>,
    /// Lines that are not complete, by channel number.
    open: BTreeMap<u8, (String, Vec<u8>)>,
}

impl<W: Write> Lines<W> {
    /// For the VMs of these names.
    pub fn new(out: W, names: Vec<String>) -> Self {
        Self { out, names, open: BTreeMap::new() }
    }

    fn name(&self, vm: u16) -> &str {
        self.names.get(usize::from(vm)).map_or("?", String::as_str)
    }

    /// Shows what happened.
    ///
    /// # Errors
    /// If nobody takes the text any more.
    pub fn show(&mut self, notice: &Notice) -> Result<()> {
        match notice {
            Notice::Output { channel, bytes } => self.output(*channel, bytes),
            Notice::Changed { vm, condition } => {
                let text = format!("{}: {condition}", self.name(*vm));
                self.remark(&text)
            }
            Notice::Statistics(text) => text.lines().try_for_each(|line| self.remark(line)),
            Notice::Refused(text) => self.remark(&format!("refused: {text}")),
            Notice::Remark(text) => self.remark(text),
            Notice::Ended => self.finish(),
            Notice::AllStopped | Notice::Failed | Notice::Keys(_) | Notice::Signal(_) | Notice::Unwritable(_) => Ok(()),
        }
    }

    /// A line of croft's own.
    fn remark(&mut self, text: &str) -> Result<()> {
        line(&mut self.out, "croft", text.as_bytes())
    }

    fn output(&mut self, channel: Channel, bytes: &[u8]) -> Result<()> {
        let name = match channel {
            Channel::Control | Channel::Log | Channel::Requests | Channel::Bulk => LOG_NAME.to_owned(),
            Channel::Console(VmId(vm)) => self.name(vm).to_owned(),
            Channel::VirtioConsole(VmId(vm)) => format!("{} hvc0", self.name(vm)),
        };
        let (name, open) = self.open.entry(channel.number().unwrap_or_default()).or_insert((name, Vec::new()));
        for &byte in bytes {
            if byte == b'\n' || open.len() >= LONGEST {
                line(&mut self.out, name, open)?;
                open.clear();
            }
            if byte != b'\n' {
                open.push(byte);
            }
        }
        Ok(())
    }

    /// Writes out what has no line end.
    ///
    /// # Errors
    /// As [`Lines::show`].
    pub fn finish(&mut self) -> Result<()> {
        for (name, open) in std::mem::take(&mut self.open).into_values() {
            if !open.is_empty() {
                line(&mut self.out, &name, &open)?;
            }
        }
        Ok(())
    }
}

/// One line without the control characters that would do things to a terminal or a log viewer.
fn line(out: &mut impl Write, name: &str, bytes: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    let plain: String = text.chars().filter(|letter| *letter == '\t' || !letter.is_control()).collect();
    writeln!(out, "[{name}] {plain}")?;
    out.flush()
}

impl Lines<Outlet> {
    /// How far the writing is.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        self.out.backlog()
    }
}

#[cfg(test)]
mod tests {
    use super::{Lines, Notice};
    use crate::session::Condition;
    use abi::link::Channel;
    use units::VmId;

    #[test]
    fn lines_are_put_together_and_named() {
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out, vec!["web".to_owned(), "db".to_owned()]);
        let mut print = |channel, text: &str| {
            lines.show(&Notice::Output { channel, bytes: text.as_bytes().to_vec() }).unwrap();
        };
        print(Channel::Console(VmId(0)), "Boo");
        print(Channel::Console(VmId(1)), "\x1b[1mHello\r\n");
        print(Channel::Log, "VM 0 runs\n");
        print(Channel::Console(VmId(0)), "ting\r\nlogin: ");
        lines.show(&Notice::Changed { vm: 1, condition: Condition::PoweredOff }).unwrap();
        lines.show(&Notice::Ended).unwrap();
        let text = String::from_utf8(out).unwrap();
        let expected = "[db] [1mHello\n[undercroft] VM 0 runs\n[web] Booting\n[croft] db: powered off\n[web] login: \n";
        assert_eq!(text, expected);
    }
}
