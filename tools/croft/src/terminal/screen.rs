//! One terminal for all consoles and the log.

use super::look::{Look, Stripper};
use super::{Backlog, LOG_NAME, Outlet};
use crate::session::{Condition, Notice};
use abi::link::{Channel, Command};
use std::collections::HashMap;
use std::io::{Result, Write};
use units::VmId;

/// Ctrl-].
const COMMAND_KEY: u8 = 0x1d;
/// How much of each channel is kept for a redraw.
const KEPT: usize = 32 << 10;
/// Text in inverse video, and back.
const INVERSE: &str = "\x1b[7m";
const PLAIN: &str = "\x1b[0m";
/// What a guest may have left behind: colours, a scroll region (the cursor keeps its place), a hidden cursor.
const SANE: &str = "\x1b[0m\x1b7\x1b[r\x1b8\x1b[?25h";
/// A blank screen.
const BLANK: &str = "\x1b[2J\x1b[H";

const FOR_A_VM: &str = "that is for a VM; Ctrl-] n goes to one";

const HELP: &[&str] = &[
    "Ctrl-] and then:",
    "  n      the next VM",
    "  0..9   the VM with this number",
    "  l      the hypervisor's log",
    "  v      the VM's virtio console, and back",
    "  p      press the VM's power button",
    "  r      reset the VM",
    "  k      stop the VM at once",
    "  s      statistics",
    "  q      quit: ends the emulated host",
    "  Ctrl-] sends Ctrl-] itself",
];

/// What the person wants that the screen cannot do itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this to a guest.
    Send(Channel, Vec<u8>),
    /// Tell the hypervisor.
    Tell(Command),
    /// Quit.
    Quit,
}

/// What is in the foreground, what is kept of the rest.
pub struct Screen<W> {
    out: W,
    names: Vec<String>,
    conditions: Vec<Condition>,
    foreground: Channel,
    kept: HashMap<Channel, Vec<u8>>,
    /// The command key was pressed.
    commanding: bool,
    look: Look,
    stripper: Stripper,
}

impl<W: Write> Screen<W> {
    /// For the VMs of these names; the first is in the foreground.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn new(out: W, names: Vec<String>, look: Look) -> Result<Self> {
        let conditions = vec![Condition::Unknown; names.len()];
        let foreground = Channel::Console(VmId(0));
        let (kept, stripper) = (HashMap::new(), Stripper::default());
        let mut screen = Self { out, names, conditions, foreground, kept, commanding: false, look, stripper };
        screen.redraw()?;
        Ok(screen)
    }

    /// The VM in the foreground.
    fn vm(&self) -> Option<VmId> {
        match self.foreground {
            Channel::Console(vm) | Channel::VirtioConsole(vm) => Some(vm),
            Channel::Control | Channel::Log | Channel::Requests | Channel::Bulk => None,
        }
    }

    fn name(&self, vm: u16) -> &str {
        self.names.get(usize::from(vm)).map_or("?", String::as_str)
    }

    fn title(&self) -> String {
        let name = match self.foreground {
            Channel::Control | Channel::Log | Channel::Requests | Channel::Bulk => format!("log of {LOG_NAME}"),
            Channel::Console(VmId(vm)) => format!("VM {vm}: {}", self.name(vm)),
            Channel::VirtioConsole(VmId(vm)) => format!("VM {vm}: {}, virtio console", self.name(vm)),
        };
        let condition = self.vm().and_then(|vm| self.conditions.get(usize::from(vm.0)));
        let condition = condition.filter(|condition| **condition != Condition::Unknown);
        let condition = condition.map_or(String::new(), |condition| format!(" ({condition})"));
        format!("{name}{condition} - Ctrl-] h for help")
    }

    /// What begins and ends croft's own words.
    fn marks(&self) -> (&'static str, &'static str) {
        if self.look == Look::Full { (INVERSE, PLAIN) } else { ("", "") }
    }

    /// A line of croft's own.
    fn remark(&mut self, text: &str) -> Result<()> {
        let (inverse, plain) = self.marks();
        write!(self.out, "\r\n{inverse}[croft] {text}{plain}\r\n")?;
        self.out.flush()
    }

    /// Bytes of the foreground as they are; the log has bare line ends, which a raw terminal takes literally.
    fn write(&mut self, channel: Channel, bytes: &[u8]) -> Result<()> {
        let stripped;
        let bytes = if self.look == Look::Plain {
            stripped = self.stripper.strip(bytes);
            &stripped
        } else {
            bytes
        };
        if channel == Channel::Log {
            for line in bytes.split_inclusive(|&byte| byte == b'\n') {
                let text = line.strip_suffix(b"\n").unwrap_or(line);
                self.out.write_all(text)?;
                if text.len() < line.len() {
                    self.out.write_all(b"\r\n")?;
                }
            }
        } else {
            self.out.write_all(bytes)?;
        }
        self.out.flush()
    }

    fn redraw(&mut self) -> Result<()> {
        let (inverse, plain) = self.marks();
        let blank = if self.look == Look::Plain { "\r\n".to_owned() } else { format!("{SANE}{BLANK}") };
        write!(self.out, "{blank}{inverse} {} {plain}\r\n", self.title())?;
        self.stripper = Stripper::default();
        let kept = self.kept.remove(&self.foreground).unwrap_or_default();
        self.write(self.foreground, &kept)?;
        self.kept.insert(self.foreground, kept);
        Ok(())
    }

    fn keep(&mut self, channel: Channel, bytes: &[u8]) {
        let kept = self.kept.entry(channel).or_default();
        kept.extend_from_slice(bytes);
        if kept.len() > 2 * KEPT {
            // From the start of a line, so that no escape sequence is cut in two.
            let surplus = kept.len() - KEPT;
            let line = kept.iter().skip(surplus).position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            kept.drain(..surplus + line);
        }
    }

    /// Shows what happened.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn show(&mut self, notice: &Notice) -> Result<()> {
        match notice {
            Notice::Output { channel, bytes } => {
                self.keep(*channel, bytes);
                if *channel == self.foreground { self.write(*channel, bytes) } else { Ok(()) }
            }
            Notice::Changed { vm, condition } => {
                let slot = self.conditions.get_mut(usize::from(*vm));
                let before = slot.map(|slot| std::mem::replace(slot, condition.clone()));
                // That all VMs run at the start is no news.
                let news = before != Some(Condition::Unknown) || *condition != Condition::Running { boots: 1 };
                let text = format!("{}: {condition}", self.name(*vm));
                if news { self.remark(&text) } else { Ok(()) }
            }
            Notice::Statistics(text) => text
                .lines()
                .try_for_each(|line| write!(self.out, "\r\n{line}"))
                .and_then(|()| self.remark("that's all")),
            Notice::Refused(text) => self.remark(&format!("refused: {text}")),
            Notice::Remark(text) => self.remark(text),
            Notice::AllStopped => self.remark("all VMs are off; Ctrl-] q quits"),
            Notice::Failed => {
                self.foreground = Channel::Log;
                self.redraw()
            }
            Notice::Ended | Notice::Keys(_) | Notice::Signal(_) | Notice::Unwritable(_) => Ok(()),
        }
    }

    /// Undoes what a guest may have done to the terminal, and goes to a new line.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn finish(&mut self) -> Result<()> {
        let sane = if self.look == Look::Plain { "" } else { SANE };
        write!(self.out, "{sane}\r\n")?;
        self.out.flush()
    }

    /// Takes what was typed.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn keys(&mut self, keys: &[u8]) -> Result<Vec<Action>> {
        let mut actions = Vec::new();
        let mut typed = Vec::new();
        for &key in keys {
            if self.commanding {
                self.commanding = false;
                if key == COMMAND_KEY {
                    typed.push(key);
                } else {
                    self.send(&mut typed, &mut actions)?;
                    actions.extend(self.command(key)?);
                }
            } else if key == COMMAND_KEY {
                self.commanding = true;
            } else {
                typed.push(key);
            }
        }
        self.send(&mut typed, &mut actions)?;
        Ok(actions)
    }

    /// What was typed goes to the foreground; the log takes nothing.
    fn send(&mut self, typed: &mut Vec<u8>, actions: &mut Vec<Action>) -> Result<()> {
        let typed = std::mem::take(typed);
        if typed.is_empty() {
            return Ok(());
        }
        if self.vm().is_none() {
            return self.remark("the log takes no input; Ctrl-] n goes to a VM");
        }
        actions.push(Action::Send(self.foreground, typed));
        Ok(())
    }

    fn switch(&mut self, to: Channel) -> Result<Option<Action>> {
        self.foreground = to;
        self.redraw().map(|()| None)
    }

    fn command(&mut self, key: u8) -> Result<Option<Action>> {
        let count = self.names.len() as u16;
        match key {
            b'n' => {
                let next = self.vm().map_or(0, |vm| (vm.0 + 1) % count.max(1));
                self.switch(Channel::Console(VmId(next)))
            }
            b'0'..=b'9' if u16::from(key - b'0') < count => self.switch(Channel::Console(VmId(u16::from(key - b'0')))),
            b'0'..=b'9' => self
                .remark(&format!("there is no VM {}; they end at {}", key - b'0', count.saturating_sub(1)))
                .map(|()| None),
            b'l' => self.switch(Channel::Log),
            b'v' => match self.foreground {
                Channel::Console(vm) => self.switch(Channel::VirtioConsole(vm)),
                Channel::VirtioConsole(vm) => self.switch(Channel::Console(vm)),
                Channel::Control | Channel::Log | Channel::Requests | Channel::Bulk => {
                    self.remark(FOR_A_VM).map(|()| None)
                }
            },
            b'p' => self.for_a_vm(|vm| Command::PowerButton { vm }),
            b'r' => self.for_a_vm(|vm| Command::Reboot { vm }),
            b'k' => self.for_a_vm(|vm| Command::ForceStop { vm }),
            b's' => Ok(Some(Action::Tell(Command::Stats))),
            b't' => Ok(Some(Action::Tell(Command::ExitTimes { on: true }))),
            b'T' => Ok(Some(Action::Tell(Command::ExitTimes { on: false }))),
            b'q' => Ok(Some(Action::Quit)),
            b'h' | b'?' => {
                for line in HELP {
                    write!(self.out, "\r\n{line}")?;
                }
                let vms: Vec<String> = self.names.iter().enumerate().map(|(vm, name)| format!("{vm} {name}")).collect();
                self.remark(&vms.join(", ")).map(|()| None)
            }
            _ => self.remark("no such command; Ctrl-] h for help").map(|()| None),
        }
    }

    /// A command for the VM in the foreground, if one is there.
    fn for_a_vm(&mut self, command: impl Fn(u16) -> Command) -> Result<Option<Action>> {
        match self.vm() {
            Some(vm) => Ok(Some(Action::Tell(command(vm.0)))),
            None => self.remark(FOR_A_VM).map(|()| None),
        }
    }
}

impl Screen<Outlet> {
    /// How far the writing is.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        self.out.backlog()
    }
}

#[cfg(test)]
mod tests {
    use super::{Action, Look, Screen};
    use crate::session::{Condition, Notice};
    use abi::link::{Channel, Command};
    use units::VmId;

    const WEB: Channel = Channel::Console(VmId(0));
    const DB: Channel = Channel::Console(VmId(1));

    fn screen() -> Screen<Vec<u8>> {
        with_look(Look::Full)
    }

    fn with_look(look: Look) -> Screen<Vec<u8>> {
        Screen::new(Vec::new(), vec!["web".to_owned(), "db".to_owned()], look).unwrap()
    }

    fn print(screen: &mut Screen<Vec<u8>>, channel: Channel, text: &str) {
        screen.show(&Notice::Output { channel, bytes: text.as_bytes().to_vec() }).unwrap();
    }

    /// What was written since the last call.
    fn shown(screen: &mut Screen<Vec<u8>>) -> String {
        String::from_utf8(std::mem::take(&mut screen.out)).unwrap()
    }

    #[test]
    fn only_the_foreground_is_shown_and_the_rest_is_kept() {
        let mut screen = screen();
        assert!(shown(&mut screen).contains("VM 0: web - Ctrl-] h for help"));
        print(&mut screen, WEB, "web login: ");
        print(&mut screen, DB, "db login: ");
        print(&mut screen, Channel::Log, "one\ntwo\n");
        assert_eq!(shown(&mut screen), "web login: ");
        assert_eq!(screen.keys(b"\x1dn").unwrap(), []);
        let text = shown(&mut screen);
        assert!(text.contains("VM 1: db") && text.ends_with("db login: "), "{text:?}");
        screen.keys(b"\x1dl").unwrap();
        assert!(shown(&mut screen).ends_with("one\r\ntwo\r\n"));
        screen.keys(b"\x1d0").unwrap();
        assert!(shown(&mut screen).ends_with("web login: "));
    }

    #[test]
    fn what_is_typed_goes_to_the_foreground() {
        let mut screen = screen();
        let actions = screen.keys(b"ls\x1d\x1d\r\x1d1root\r").unwrap();
        assert_eq!(actions, [Action::Send(WEB, b"ls\x1d\r".to_vec()), Action::Send(DB, b"root\r".to_vec())]);
        assert_eq!(screen.keys(b"\x1d").unwrap(), []);
        assert_eq!(screen.keys(b"p").unwrap(), [Action::Tell(Command::PowerButton { vm: 1 })]);
        assert_eq!(screen.keys(b"\x1dv").unwrap(), []);
        assert_eq!(screen.keys(b"x").unwrap(), [Action::Send(Channel::VirtioConsole(VmId(1)), b"x".to_vec())]);
        assert_eq!(screen.keys(b"\x1dlx\x1dk").unwrap(), []);
        assert!(shown(&mut screen).contains("the log takes no input"));
        assert_eq!(screen.keys(b"\x1ds\x1dq").unwrap(), [Action::Tell(Command::Stats), Action::Quit]);
    }

    #[test]
    fn help_and_mistakes_are_answered() {
        let mut screen = screen();
        screen.keys(b"\x1dh\x1dz\x1d7").unwrap();
        let text = shown(&mut screen);
        assert!(text.contains("press the VM's power button") && text.contains("0 web, 1 db"), "{text}");
        assert!(text.contains("no such command") && text.contains("there is no VM 7; they end at 1"), "{text}");
    }

    #[test]
    fn changes_are_remarked_but_not_the_first_start() {
        let mut screen = screen();
        shown(&mut screen);
        let change =
            |screen: &mut Screen<Vec<u8>>, condition| screen.show(&Notice::Changed { vm: 1, condition }).unwrap();
        change(&mut screen, Condition::Running { boots: 1 });
        assert_eq!(shown(&mut screen), "");
        change(&mut screen, Condition::PoweredOff);
        assert!(shown(&mut screen).contains("db: powered off"));
        screen.keys(b"\x1dn").unwrap();
        assert!(shown(&mut screen).contains("VM 1: db (powered off)"));
    }

    #[test]
    fn a_terminal_that_can_do_nothing_gets_text_alone() {
        for (look, clears) in [(Look::Plain, false), (Look::Sober, true)] {
            let mut screen = with_look(look);
            if look == Look::Plain {
                print(&mut screen, WEB, "\x1b[1mbold\x1b[0m\r\n");
            }
            screen.show(&Notice::Remark("a word".to_owned())).unwrap();
            screen.show(&Notice::Changed { vm: 1, condition: Condition::PoweredOff }).unwrap();
            screen.keys(b"\x1dh\x1dz").unwrap();
            let text = shown(&mut screen);
            assert!(!text.contains("\x1b[7m") && text.contains("[croft] a word"), "{look:?}: {text:?}");
            screen.keys(b"\x1dn").unwrap();
            screen.finish().unwrap();
            let text = shown(&mut screen);
            assert!(text.contains("VM 1: db"), "{look:?}: {text:?}");
            assert_eq!(text.contains('\x1b'), clears, "{look:?}: {text:?}");
        }
    }

    #[test]
    fn little_is_kept_of_a_flood() {
        let mut screen = screen();
        for _ in 0..10_000 {
            print(&mut screen, DB, "a line of a flood\n");
        }
        shown(&mut screen);
        screen.keys(b"\x1dn").unwrap();
        let text = shown(&mut screen);
        assert!(text.len() < 2 * super::KEPT + 200);
        assert!(text.lines().skip(1).all(|line| line == "a line of a flood"));
    }
}
