//! What `croft ps`, `croft guestinfo`, `croft stop`, `croft reboot` and `croft time` print.
//!
//! Names, reports and values come from guests, which are not trusted with a terminal: there, each character that is not
//! printable is shown as its number. A value that goes into a file or a pipe is written unchanged.

use crate::control::{ControlError, Report, Vm};
use crate::printable::line as printable;
use crate::session::SessionError;
use crate::{moment, size};
use abi::calls::vmware::DAEMON_IS_LOST;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::Duration;

/// What every key begins with.
const PREFIX: &str = "guestinfo.";

/// A key with its prefix.
#[must_use]
pub fn whole_key(key: &str) -> String {
    if key.starts_with(PREFIX) { key.to_owned() } else { format!("{PREFIX}{key}") }
}

/// The VMs that are wanted, or all.
///
/// # Errors
/// One is not there.
pub fn select(vms: Vec<Vm>, wanted: &[String]) -> Result<Vec<Vm>, ControlError> {
    if let Some(missing) = wanted.iter().find(|name| vms.iter().all(|vm| vm.name != **name)) {
        let known = vms.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(ControlError::NotThere(SessionError::NoVm { wanted: missing.clone(), known }.to_string()));
    }
    Ok(vms.into_iter().filter(|vm| wanted.is_empty() || wanted.contains(&vm.name)).collect())
}

/// How many columns the terminal has that is standard output; `None` if there is none, or it does not say.
#[must_use]
pub fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|&columns| columns > 0)
}

/// The place of the operating system in a row.
const SYSTEM: usize = 5;
/// It is made no shorter than this.
const LEAST: usize = 8;

/// The operating system in few words: the tools say `Linux`, its release and then the distribution, of which the first name will do.
fn distribution(system: &str) -> &str {
    let name = system.strip_prefix("Linux ").and_then(|rest| rest.split_once(' ')).map_or(system, |(_, name)| name);
    name.find(')').and_then(|end| name.get(..=end)).unwrap_or(name)
}

/// The beginning of a text that has no room.
fn shortened(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

/// As many letters as the longest cell of each column has.
fn widths(rows: &[[String; 9]]) -> [usize; 9] {
    let mut widths = [0; 9];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    widths
}

/// The VMs as a table. On a terminal of so many columns, where it would be too wide, what a guest says of its operating system is
/// shortened; nowhere else, for a program may read it.
#[must_use]
pub fn show_table(vms: &[Vm], columns: Option<usize>) -> String {
    let mut rows =
        vec![["VM", "STATE", "VCPUS", "TOOLS", "HOST", "OS", "IP", "UPTIME", "HEARTBEAT"].map(str::to_owned)];
    for vm in vms {
        let guest = vm.guest.clone().unwrap_or_default();
        let known = |text: &str| if text.is_empty() { "-".to_owned() } else { printable(text) };
        let uptime = if guest.uptime == 0 { "-".to_owned() } else { duration(guest.uptime) };
        let heartbeat = guest.heartbeat.map_or("-".to_owned(), |milliseconds| {
            let ago = format!("{}.{} s ago", milliseconds / 1000, milliseconds % 1000 / 100);
            if milliseconds < DAEMON_IS_LOST { ago } else { format!("lost, {ago}") }
        });
        rows.push([
            printable(&vm.name),
            printable(&vm.state),
            vm.vcpus.to_string(),
            known(&guest.tools),
            known(&guest.host_name),
            known(&guest.system),
            known(&guest.address),
            uptime,
            heartbeat,
        ]);
    }
    // How much wider than the terminal it is, with two blanks between its columns.
    let excess = |rows: &[[String; 9]]| {
        columns.map_or(0, |columns| (widths(rows).iter().sum::<usize>() + 16).saturating_sub(columns))
    };
    if excess(&rows) > 0 {
        rows.iter_mut().for_each(|row| row[SYSTEM] = distribution(&row[SYSTEM]).to_owned());
        let room = widths(&rows)[SYSTEM].saturating_sub(excess(&rows)).max(LEAST);
        rows.iter_mut().for_each(|row| row[SYSTEM] = shortened(&row[SYSTEM], room));
    }
    let widths = widths(&rows);
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Days, hours, minutes, seconds: as many as it takes.
fn duration(seconds: u64) -> String {
    let (days, hours, minutes, seconds) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}:{seconds:02}"),
        (0, _) => format!("{hours}:{minutes:02}:{seconds:02}"),
        _ => format!("{days} d {hours}:{minutes:02}:{seconds:02}"),
    }
}

/// The VMs as JSON; what is not known is `null`.
#[must_use]
pub fn show_json(vms: &[Vm]) -> String {
    let known = |text: &str| if text.is_empty() { Value::Null } else { Value::from(text) };
    let list: Vec<Value> = vms
        .iter()
        .map(|vm| {
            let guest = vm.guest.as_ref().map(|guest| {
                json!({
                    "tools": known(&guest.tools),
                    "host_name": known(&guest.host_name),
                    "system": known(&guest.system),
                    "address": known(&guest.address),
                    "uptime_seconds": if guest.uptime == 0 { Value::Null } else { guest.uptime.into() },
                    "heartbeat_milliseconds": guest.heartbeat,
                    "can_stop": guest.can_stop,
                })
            });
            let boots = if vm.boots == 0 { Value::Null } else { vm.boots.into() };
            json!({
                "name": vm.name,
                "state": vm.word,
                "boots": boots,
                "reason": vm.reason,
                "transfer": vm.transfer,
                "vcpus": vm.vcpus,
                "guest": guest,
            })
        })
        .collect();
    format!("{:#}\n", Value::from(list))
}

/// The keys, one a line, each with the length of its value.
#[must_use]
pub fn show_keys(keys: &[(String, u32)]) -> String {
    keys.iter().map(|(key, length)| format!("{} ({length} bytes)\n", printable(key))).collect()
}

/// A value and a line's end.
#[must_use]
pub fn show_value(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let text = if std::io::stdout().is_terminal() { printable(&text) } else { text.into_owned() };
    format!("{text}\n")
}

/// The host's time of day; what it is worth if the host has no clock.
#[must_use]
pub fn show_time(report: Report) -> String {
    match report {
        Report::Time { microseconds, settable: true } => format!("{}\n", moment::show(microseconds)),
        Report::Time { microseconds, settable: false } => {
            format!("{} (the host has no real-time clock: counted from its start)\n", moment::show(microseconds))
        }
        _ => String::new(),
    }
}

/// The log as text that cannot disturb a terminal, in whole lines, however the pieces are cut.
#[derive(Debug, Default)]
pub struct LogLines(Vec<u8>);

impl LogLines {
    /// The lines that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.0.extend(bytes);
        let whole = self.0.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        tame(&self.0.drain(..whole).collect::<Vec<_>>())
    }

    /// What is left.
    pub fn finish(&mut self) -> String {
        tame(&std::mem::take(&mut self.0))
    }
}

fn tame(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().filter(|letter| matches!(letter, '\n' | '\t') || !letter.is_control()).collect()
}

/// Something on the way.
#[must_use]
pub fn show_progress(report: Report) -> String {
    if let Report::Progress(text) = report { format!("{}\n", printable(&text)) } else { String::new() }
}

/// What is said of a copy that takes its time while it does: on a terminal one line, which is written over; elsewhere a line now and then.
#[derive(Debug)]
pub struct Meanwhile {
    is_terminal: bool,
    /// When the next one is due, since the begin.
    due: Duration,
    /// How many characters are on the terminal's line.
    shown: usize,
}

impl Meanwhile {
    /// Nothing was said yet.
    #[must_use]
    pub const fn new(is_terminal: bool) -> Self {
        Self { is_terminal, due: Duration::from_secs(if is_terminal { 1 } else { 10 }), shown: 0 }
    }

    /// So long after the begin, it is so far: what is to be written of that.
    #[must_use]
    pub fn say(&mut self, after: Duration, what: &str, bytes: u64, of: Option<u64>) -> Option<String> {
        if after < self.due {
            return None;
        }
        self.due = after + if self.is_terminal { Duration::from_millis(200) } else { Duration::from_secs(10) };
        let far = of.map_or_else(
            || format!("{} so far", size::show(bytes)),
            |of| format!("{} of {}", size::show(bytes), size::show(of)),
        );
        let text = format!("croft: {}, {far}", printable(what));
        if !self.is_terminal {
            return Some(format!("{text}\n"));
        }
        let before = std::mem::replace(&mut self.shown, text.chars().count());
        Some(format!("\r{text:<before$}"))
    }

    /// What removes it from the terminal.
    #[must_use]
    pub fn clear(&mut self) -> Option<String> {
        let shown = std::mem::take(&mut self.shown);
        (shown > 0).then(|| format!("\r{:shown$}\r", ""))
    }
}

#[cfg(test)]
mod tests {
    use super::{LogLines, Meanwhile, distribution, duration, shortened, show_json, show_table, whole_key};
    use crate::control::{Guest, Vm};
    use std::time::Duration;

    fn vms() -> Vec<Vm> {
        let guest = Guest {
            tools: "12.2.0".to_owned(),
            host_name: "web\u{1b}[2J".to_owned(),
            system: "Debian GNU/Linux 12 (bookworm)".to_owned(),
            address: "10.0.2.15".to_owned(),
            uptime: 3700,
            heartbeat: Some(140),
            can_stop: true,
        };
        vec![
            Vm {
                name: "web".to_owned(),
                state: "running, boot 2".to_owned(),
                word: "running".to_owned(),
                boots: 2,
                vcpus: 2,
                guest: Some(guest),
                ..Vm::default()
            },
            Vm {
                name: "database".to_owned(),
                state: "crashed: no memory".to_owned(),
                word: "crashed".to_owned(),
                reason: Some("no memory".to_owned()),
                vcpus: 1,
                ..Vm::default()
            },
        ]
    }

    #[test]
    fn a_table_has_a_line_for_each() {
        let text = show_table(&vms(), None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "VM        STATE               VCPUS  TOOLS   HOST          OS                              IP         UPTIME   HEARTBEAT",
                "web       running, boot 2     2      12.2.0  web\\u{1b}[2J  Debian GNU/Linux 12 (bookworm)  10.0.2.15  1:01:40  0.1 s ago",
                "database  crashed: no memory  1      -       -             -                               -          -        -",
            ]
        );
    }

    #[test]
    fn only_a_narrow_terminal_gets_less_of_the_system() {
        let mut vms = vms();
        let long = "Linux 6.12.117+deb13-cloud-arm64 Debian GNU/Linux 13 (trixie) Debian GNU/Linux 13 13 (trixie)";
        vms[0].guest.as_mut().unwrap().system = long.to_owned();
        let whole = show_table(&vms, None);
        assert!(whole.contains(long));
        let width = whole.lines().next().unwrap().chars().count();
        let row = |columns| show_table(&vms, Some(columns)).lines().nth(1).unwrap().to_owned();
        assert_eq!(row(width), row(1000), "it fits");
        assert!(row(width).contains(long));
        let least =
            "web       running, boot 2     2      12.2.0  web\\u{1b}[2J  Debian …  10.0.2.15  1:01:40  0.1 s ago";
        assert!(row(width - 1).contains("  Debian GNU/Linux 13 (trixie)  10.0.2.15"), "{}", row(width - 1));
        let width = row(width - 1).chars().count();
        assert!(row(width - 1).contains("  Debian GNU/Linux 13 (trixi…  10.0.2.15"), "{}", row(width - 1));
        assert_eq!(row(width - 1).chars().count(), width - 1);
        assert_eq!((row(80), row(1)), (least.to_owned(), least.to_owned()), "no shorter than the name");
    }

    #[test]
    fn json_says_null_where_nothing_is_known() {
        let value: serde_json::Value = serde_json::from_str(&show_json(&vms())).unwrap();
        assert_eq!(value[0]["guest"]["address"], "10.0.2.15");
        assert_eq!(value[0]["guest"]["heartbeat_milliseconds"], 140);
        assert!(value[1]["guest"].is_null());
        assert_eq!((&value[0]["state"], &value[0]["boots"]), (&"running".into(), &2.into()), "a word and a number");
        assert_eq!((&value[1]["state"], &value[1]["reason"]), (&"crashed".into(), &"no memory".into()));
        assert!(value[1]["boots"].is_null() && value[0]["reason"].is_null());
    }

    #[test]
    fn the_log_comes_in_lines_that_are_tame() {
        let mut lines = LogLines::default();
        let whole = "1 é\u{1b}[2J\n2 \u{9b}x\ty\r\n3 rest".as_bytes();
        let mut said: String = whole.iter().map(|&byte| lines.push(&[byte])).collect();
        assert_eq!(said, "1 é[2J\n2 x\ty\n");
        said.push_str(&lines.finish());
        assert!(said.ends_with("\n3 rest") && lines.finish().is_empty());
    }

    #[test]
    fn how_far_it_is_is_said_from_time_to_time() {
        let seconds = Duration::from_secs_f64;
        let mut file = Meanwhile::new(false);
        assert_eq!(file.say(seconds(9.9), "web: being saved", 5 << 20, None), None);
        let said = "croft: web: being saved, 5M so far\n".to_owned();
        assert_eq!(file.say(seconds(10.0), "web: being saved", 5 << 20, None), Some(said));
        assert_eq!((file.say(seconds(19.0), "web", 6 << 20, None), file.clear()), (None, None));
        assert!(
            file.say(seconds(20.0), "\u{1b}web", 7 << 20, Some(8 << 20))
                .is_some_and(|said| said.ends_with("web, 7M of 8M\n"))
        );
        let mut terminal = Meanwhile::new(true);
        assert_eq!((terminal.say(seconds(0.9), "a", 1, None), terminal.clear()), (None, None));
        assert_eq!(terminal.say(seconds(1.0), "a", 1000, None), Some("\rcroft: a, 1000 so far".to_owned()));
        assert_eq!(terminal.say(seconds(1.1), "a", 1000, None), None);
        // It covers what was there.
        assert_eq!(terminal.say(seconds(1.2), "a", 1 << 10, None), Some("\rcroft: a, 1K so far  ".to_owned()));
        assert_eq!((terminal.clear(), terminal.clear()), (Some(format!("\r{:19}\r", "")), None));
    }

    #[test]
    fn small_things() {
        assert_eq!(whole_key("a"), "guestinfo.a");
        assert_eq!(whole_key("guestinfo.a"), "guestinfo.a");
        assert_eq!((duration(59), duration(90061)), ("0:59".to_owned(), "1 d 1:01:01".to_owned()));
        let long = "Linux 6.12.117+deb13-cloud-arm64 Debian GNU/Linux 13 (trixie) Debian GNU/Linux 13 13 (trixie)";
        assert_eq!(distribution(long), "Debian GNU/Linux 13 (trixie)");
        for whole in ["Debian GNU/Linux 12 (bookworm)", "FreeBSD 14.1", "Linux 6.1", "Linux", "-", ""] {
            assert_eq!(distribution(whole), whole);
        }
        assert_eq!((&*shortened("éé", 2), &*shortened("ééé", 2)), ("éé", "é…"));
    }
}
