//! From TOML to a [`Site`], collecting every mistake on the way. `keys.rs` says which values are allowed.

use super::keys::{self, Absent, Form, Key, Needs, Table, Value};
use super::texts::{Text, nearest};
use super::{Host, Lines, Mistake, Site, SiteError, Vm, VmLines};
use crate::kernel::Raw;
use crate::{decimal, size};
use abi::bundle::{self, Group};
use abi::watchdog::Action;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

mod disks;
mod networks;

use networks::Networks;

/// Reads `text`, the contents of `file`.
pub(super) fn read(text: &str, file: &Path) -> Result<Site, SiteError> {
    let mut reader =
        Reader { text, file, mistakes: Vec::new(), lines: Lines::default(), networks: Networks::default() };
    let site = reader.site();
    match site {
        Some(site) if reader.mistakes.is_empty() => site.check_memory(0).map(|()| site),
        _ => Err(SiteError(reader.mistakes)),
    }
}

type Inclusive = RangeInclusive<u64>;

/// A value with the key that it belongs to.
struct Entry<'v, 't> {
    key: &'v str,
    value: &'v Spanned<DeValue<'t>>,
}

/// What the keys of a table say, all of it right: a row each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Values(Vec<Found>);

/// What a key says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    /// Its name.
    key: &'static str,
    /// The value, or the one that stands for it; `None` if the key is not there and none does.
    value: Option<Value>,
    /// The line of the value; 0 if the key is not there.
    line: usize,
}

impl Values {
    /// # Panics
    /// If there is no such row, here and below: whoever asks for a value means one, and one of its form.
    fn find(&self, name: &str) -> &Found {
        self.0.iter().find(|found| found.key == name).unwrap_or_else(|| panic!("there is no row for `{name}`"))
    }

    fn line(&self, name: &str) -> usize {
        self.find(name).line
    }

    fn given_number(&self, name: &str) -> Option<u64> {
        match self.find(name).value {
            Some(Value::Number(number)) => Some(number),
            None => None,
            _ => panic!("`{name}` is no number"),
        }
    }

    fn given_text(&self, name: &str) -> Option<&str> {
        match &self.find(name).value {
            Some(Value::Text(text)) => Some(text),
            None => None,
            _ => panic!("`{name}` is no text"),
        }
    }

    fn number(&self, name: &str) -> u64 {
        self.given_number(name).unwrap_or_else(|| panic!("`{name}` may be missing"))
    }

    fn text(&self, name: &str) -> &str {
        self.given_text(name).unwrap_or_else(|| panic!("`{name}` may be missing"))
    }

    /// What an inner table says, if it is there.
    fn given_table(&self, name: &str) -> Option<&Values> {
        match &self.find(name).value {
            Some(Value::Table(values)) => Some(values),
            None => None,
            _ => panic!("`{name}` is no table"),
        }
    }

    /// What the tables of a list say, which may be missing.
    fn tables(&self, name: &str) -> &[Values] {
        match &self.find(name).value {
            Some(Value::Tables(all)) => all,
            None => &[],
            _ => panic!("`{name}` is no list of tables"),
        }
    }

    /// Several texts, which may be missing.
    fn texts(&self, name: &str) -> &[String] {
        match &self.find(name).value {
            Some(Value::Texts(all)) => all,
            None => &[],
            _ => panic!("`{name}` is no list of texts"),
        }
    }

    fn flag(&self, name: &str) -> bool {
        match self.find(name).value {
            Some(Value::Flag(on)) => on,
            _ => panic!("`{name}` is no flag"),
        }
    }
}

struct Reader<'t> {
    text: &'t str,
    file: &'t Path,
    mistakes: Vec<Mistake>,
    lines: Lines,
    networks: Networks,
}

impl<'t> Reader<'t> {
    fn line(&self, span: Range<usize>) -> usize {
        1 + self.text.bytes().take(span.start).filter(|&byte| byte == b'\n').count()
    }

    fn wrong_at(&mut self, span: Range<usize>, message: impl Into<String>) {
        let line = self.line(span);
        self.mistakes.push(Mistake { file: self.file.to_path_buf(), line, message: message.into() });
    }

    /// `key = value: what is wrong`, with the value as it stands in the file (its first line).
    fn wrong(&mut self, entry: &Entry<'_, 't>, what: impl AsRef<str>) {
        let shown = self.text.get(entry.value.span()).unwrap_or_default().lines().next().unwrap_or_default();
        let message = match entry.value.get_ref() {
            DeValue::Table(_) => format!("{}: {}", entry.key, what.as_ref()),
            _ => format!("{} = {shown}: {}", entry.key, what.as_ref()),
        };
        self.wrong_at(entry.value.span(), message);
    }

    fn site(&mut self) -> Option<Site> {
        let root = match DeTable::parse(self.text) {
            Ok(root) => root,
            Err(error) => {
                let message = format!("not TOML: {}", error.message().replace('\n', ", "));
                self.wrong_at(error.span().unwrap_or(0..0), message);
                return None;
            }
        };
        let root = root.get_ref();
        self.refuse_unknown(root, &keys::TABLES.map(|table| table.name), "a site file");
        let host = entry(root, "host").and_then(|found| self.host(&found));
        if let Some(found) = entry(root, "network") {
            self.networks(&found);
        }
        let vms = match entry(root, "vm") {
            Some(found) => self.vms(&found),
            None => {
                self.wrong_at(0..0, "there is no VM; describe at least one in a [[vm]] table");
                Vec::new()
            }
        };
        if let Some(host) = &host {
            self.check_affinities(root, &vms, host);
        }
        self.check_writers(&vms);
        Some(Site { file: self.file.to_path_buf(), host, vms, lines: std::mem::take(&mut self.lines) })
    }

    fn refuse_unknown(&mut self, table: &DeTable<'t>, known: &[&str], what: &str) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let hint = match nearest(name, known) {
                    Some(other) => format!("did you mean `{other}`?"),
                    None => format!("{what} has {}", known.join(", ")),
                };
                self.wrong_at(key.span(), format!("{name}: there is no such key; {hint}"));
            }
        }
    }

    /// What the keys of a table say; nothing if one of them is wrong or missing.
    fn values(&mut self, table: &DeTable<'t>, of: &'static Table, at: Range<usize>) -> Option<Values> {
        let before = self.mistakes.len();
        self.refuse_unknown(table, &of.names(), of.head);
        let mut all = Vec::new();
        for key in of.keys {
            let Some(entry) = entry(table, key.name) else {
                let value = match &key.absent {
                    Absent::Wrong => {
                        let Key { name, example, .. } = key;
                        self.wrong_at(at.clone(), format!("`{name}` is missing; write for example {name} = {example}"));
                        None
                    }
                    Absent::WrongWithout(other, theirs) => {
                        if entry(table, other).is_none() {
                            let Key { name, example, .. } = key;
                            let hint = format!("write for example {name} = {example}, or {other} = {theirs}");
                            self.wrong_at(at.clone(), format!("`{name}` is missing; {hint}"));
                        }
                        None
                    }
                    Absent::Unknown(_) => None,
                    Absent::Usual(value) | Absent::Said(value, _) => Some(value.clone()),
                };
                all.push(Found { key: key.name, value, line: 0 });
                continue;
            };
            let value = self.value(&entry, &key.form);
            if value.is_some() {
                self.refuse_idle(table, key, &entry);
            }
            all.push(Found { key: key.name, value, line: self.line(entry.value.span()) });
        }
        (self.mistakes.len() == before).then_some(Values(all))
    }

    /// A key that does nothing without another one is a mistake: its writer expects something of it.
    fn refuse_idle(&mut self, table: &DeTable<'t>, key: &Key, found: &Entry<'_, 't>) {
        let is_on = |key: &str| entry(table, key).is_some_and(|found| found.value.get_ref().as_bool() != Some(false));
        if !is_on(key.name) {
            return;
        }
        match key.needs {
            Needs::AnyOf(needed) if !needed.iter().any(|other| is_on(other.split(' ').next().unwrap_or(other))) => {
                let needed = needed.join(" or ");
                self.wrong(found, format!("it does nothing without {needed}; add that, or leave it out"));
            }
            Needs::Key(other, message) if !is_on(other) => self.wrong(found, message),
            Needs::Without(other, message) if is_on(other) => self.wrong(found, message),
            _ => {}
        }
    }

    /// A value of this form.
    fn value(&mut self, entry: &Entry<'_, 't>, form: &Form) -> Option<Value> {
        Some(match form {
            Form::Text(rule) => {
                let text = self.text(entry)?;
                if let Err(wrong) = rule.check(&text) {
                    self.wrong(entry, wrong);
                    return None;
                }
                Value::Text(text)
            }
            Form::Texts(rule, most, what) => Value::Texts(self.texts(entry, *rule, *most, what)?),
            Form::Flag => Value::Flag(self.flag(entry)?),
            Form::Number(range, what) => Value::Number(self.number(entry, form, range, what)?),
            Form::Size(whose, range, step) => Value::Number(self.stepped_size(entry, form, whose, range, *step)?),
            Form::Bound(range, what) => Value::Number(self.bytes_or_number(entry, form, range, what)?),
            Form::Frequency(range) => {
                let what = "a counter's frequency in hertz";
                Value::Number(self.decimal(entry, form, 1, range, what, "\"62.5M\"")?)
            }
            Form::Millionths(range, what) => {
                Value::Number(self.decimal(entry, form, keys::MILLION, range, what, "\"0.5\"")?)
            }
            Form::Table(table) => {
                let inner = self.table(entry, &format!("{} = {{ {} }}", entry.key, table.example()))?;
                Value::Table(self.values(inner, table, entry.value.span())?)
            }
            Form::Tables(table, most, what) => Value::Tables(self.tables(entry, table, *most, what, None)?),
            Form::Named(table, most, what) => {
                Value::Tables(self.tables(entry, table, *most, what, table.keys.first())?)
            }
            Form::Address(alignment) => Value::Number(self.address(entry, *alignment)?),
            Form::Cpus => Value::Number(self.cpus(entry)?),
            Form::Choice(names, what) => Value::Number(self.choice(entry, names, what)?),
            Form::Action => Value::Number(self.action(entry)?),
            Form::Actions => Value::Number(self.actions(entry)?),
            Form::Calls => Value::Number(self.calls(entry)?),
        })
    }

    /// What a size without a unit means, if it can hardly be meant.
    fn unit_hint(&self, entry: &Entry<'_, 't>, bytes: u64) -> String {
        let written = self.text.get(entry.value.span()).unwrap_or_default().trim_matches('"').trim();
        let is_bare = written.bytes().all(|byte| byte.is_ascii_digit());
        if is_bare && (1..1 << 20).contains(&bytes) {
            format!("that is {bytes} bytes; write {} = \"{bytes}M\" for MiB: ", entry.key)
        } else {
            String::new()
        }
    }

    fn table<'v>(&mut self, entry: &Entry<'v, 't>, hint: &str) -> Option<&'v DeTable<'t>> {
        let table = entry.value.get_ref().as_table();
        if table.is_none() {
            self.wrong(entry, format!("not a table; write {hint}"));
        }
        table
    }

    /// What a text says in the place of a table with nothing but the key `key`.
    fn named(&mut self, found: &Entry<'_, 't>, table: &'static Table, key: &Key) -> Option<Values> {
        let value = self.value(found, &key.form)?;
        let line = self.line(found.value.span());
        let rest = table.keys.iter().map(|other| match &other.absent {
            _ if other.name == key.name => Found { key: key.name, value: Some(value.clone()), line },
            Absent::Usual(usual) | Absent::Said(usual, _) => {
                Found { key: other.name, value: Some(usual.clone()), line: 0 }
            }
            Absent::Wrong | Absent::WrongWithout(..) | Absent::Unknown(_) => {
                Found { key: other.name, value: None, line: 0 }
            }
        });
        Some(Values(rest.collect()))
    }

    /// A table, or a list of tables of which there may be so many; a text in the place of one, if that is the value of `short`.
    fn tables(
        &mut self,
        found: &Entry<'_, 't>,
        table: &'static Table,
        most: usize,
        what: &str,
        short: Option<&'static Key>,
    ) -> Option<Vec<Values>> {
        let hint = format!("{} = {{ {} }}", found.key, table.example());
        let Some(list) = found.value.get_ref().as_array() else {
            if let Some(key) = short.filter(|_| found.value.get_ref().is_str()) {
                return self.named(found, table, key).map(|values| vec![values]);
            }
            let inner = self.table(found, &format!("{hint}, or a list of such"))?;
            return self.values(inner, table, found.value.span()).map(|values| vec![values]);
        };
        if list.len() > most {
            self.wrong_at(found.value.span(), format!("{}: {} {what}; a VM has at most {most}", found.key, list.len()));
        }
        let all: Vec<_> = list
            .iter()
            .map(|value| {
                let one = Entry { key: found.key, value };
                if let Some(key) = short.filter(|_| value.get_ref().is_str()) {
                    return self.named(&one, table, key);
                }
                let inner = self.table(&one, &hint)?;
                self.values(inner, table, value.span())
            })
            .collect();
        if list.len() > most { None } else { all.into_iter().collect() }
    }

    fn text(&mut self, entry: &Entry<'_, 't>) -> Option<String> {
        let text = entry.value.get_ref().as_str();
        if text.is_none() {
            self.wrong(entry, "not a text; put it in double quotes");
        }
        text.map(str::to_owned)
    }

    /// A whole number within `range`, which `what` counts.
    fn number(&mut self, entry: &Entry<'_, 't>, form: &Form, range: &Inclusive, what: &str) -> Option<u64> {
        let value = entry
            .value
            .get_ref()
            .as_integer()
            .and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok());
        let number = value.and_then(|value| u64::try_from(value).ok()).filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(entry, format!("{what}: it must be a whole number {}", form.range()));
        }
        number
    }

    fn size(&mut self, entry: &Entry<'_, 't>) -> Option<u64> {
        let parsed = match entry.value.get_ref() {
            DeValue::String(text) => size::parse(text),
            DeValue::Integer(number) if number.radix() == 10 => size::parse(number.as_str()),
            _ => None,
        };
        if parsed.is_none() {
            self.wrong(entry, format!("not a size; {}", size::HINT));
        }
        parsed
    }

    fn host(&mut self, found: &Entry<'_, 't>) -> Option<Host> {
        let table = self.table(found, "[host], then its keys")?;
        let keys = self.values(table, &keys::HOST, found.value.span())?;
        self.lines.host_memory = keys.line("memory");
        self.lines.host_disk = keys.line("disk");
        let (cpu, cpus) = (keys.text("cpu").to_owned(), keys.number("cpus") as u8);
        let folder = self.file.parent().unwrap_or(Path::new(""));
        let disks = keys.texts("disk").iter().map(|path| folder.join(path)).collect();
        Some(Host { cpu, cpus, memory: keys.number("memory"), disks })
    }

    fn vms(&mut self, found: &Entry<'_, 't>) -> Vec<Vm> {
        let Some(array) = found.value.get_ref().as_array().filter(|array| !array.is_empty()) else {
            self.wrong(found, "not a list of VMs; begin each VM with [[vm]]");
            return Vec::new();
        };
        if array.len() > bundle::MAX_VMS {
            self.wrong(found, format!("{} VMs; a site has at most {}", array.len(), bundle::MAX_VMS));
        }
        let mut vms: Vec<Vm> = Vec::new();
        for value in array.iter() {
            let Some(vm) = self.vm(&Entry { key: "vm", value }) else { continue };
            if let Some((_, first)) = vms.iter().zip(&self.lines.vms).find(|(other, _)| other.name == vm.name) {
                let message = format!(
                    "name = \"{}\": the VM of line {} has this name already; each needs its own",
                    vm.name, first.table
                );
                let at = value
                    .get_ref()
                    .as_table()
                    .and_then(|table| entry(table, "name"))
                    .map_or(value.span(), |name| name.value.span());
                self.wrong_at(at, message);
            }
            vms.push(vm);
        }
        vms
    }

    fn vm(&mut self, found: &Entry<'_, 't>) -> Option<Vm> {
        let table = self.table(found, "[[vm]], then its keys")?;
        let at = found.value.span();
        let keys = self.values(table, &keys::VM, at.clone())?;
        let lines = VmLines {
            table: self.line(at),
            memory: keys.line("memory"),
            kernel: keys.line("kernel"),
            initrd: keys.line("initrd"),
            disks: std::array::from_fn(|index| {
                keys.tables("disk").get(index).map_or(0, |disk| disk.line("image").max(disk.line("host")))
            }),
        };
        let is_sound = [self.check_store(table, &keys), self.check_calls(table, &keys)];
        let coherency = self.coherency(table, &keys)?;
        is_sound.into_iter().collect::<Option<()>>()?;
        let folder = self.file.parent().unwrap_or(Path::new(""));
        let disks = self.disks(&keys, folder)?;
        let ports = self.ports(&keys)?;
        let load = keys.given_number("load");
        // Beside the VM that it is about: of one that is refused neither is kept.
        self.lines.vms.push(lines);
        Some(Vm {
            name: keys.text("name").to_owned(),
            vcpus: keys.number("vcpus") as u8,
            memory: keys.number("memory"),
            kernel: folder.join(keys.text("kernel")),
            program: load.map(|load| Raw { load, entry: keys.given_number("entry").unwrap_or(load) }),
            initrd: keys.given_text("initrd").map(|path| folder.join(path)),
            disks,
            ports,
            cmdline: keys.text("cmdline").to_owned(),
            weight: keys.number("weight") as u16,
            affinity: keys.number("affinity"),
            autostart: keys.flag("autostart"),
            enclave: keys.flag("enclave"),
            pause_stops_time: keys.flag("pause-stops-time"),
            time: keys.given_table("time").map_or(bundle::Time::default(), |time| bundle::Time {
                frequency: time.number("frequency") as u32,
                rate: time.number("rate") as u32,
                source: bundle::TimeSource::LIST.get(time.number("source") as usize).copied().unwrap_or_default(),
                away: bundle::TimeAway::LIST.get(time.number("away") as usize).copied().unwrap_or_default(),
            }),
            coherency,
            doors: doors(&keys),
        })
    }

    /// A guest's physical address.
    fn address(&mut self, found: &Entry<'_, 't>, alignment: u64) -> Option<u64> {
        let text = found.value.get_ref().as_str();
        let digits = text.and_then(|text| text.strip_prefix("0x")).map(|digits| digits.replace('_', ""));
        let address = digits.and_then(|digits| u64::from_str_radix(&digits, 16).ok());
        let good = address.filter(|address| address.is_multiple_of(alignment));
        if good.is_none() {
            let what = format!(
                "an address in the VM's memory, which begins at 0x40000000, is wanted, as text and a multiple of {alignment}: \"0x40200000\""
            );
            self.wrong(found, what);
        }
        good
    }

    /// The number of one of these names.
    fn choice(&mut self, found: &Entry<'_, 't>, names: &[&str], what: &str) -> Option<u64> {
        let text = self.text(found)?;
        let known = names.iter().position(|&name| name == text);
        if known.is_none() {
            let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
            self.wrong(found, format!("{what}: write one of {}", names.join(", ")));
        }
        known.map(|number| number as u64)
    }

    /// The two bounds of a VM's values must let it keep one, or none: of a bound that is written down something is expected.
    fn check_store(&mut self, table: &DeTable<'t>, keys: &Values) -> Option<()> {
        let (count, bytes) = (keys.number("vmware-keys"), keys.number("vmware-store"));
        let (key, wrong) = if count == 0 && bytes > 0 {
            ("vmware-store", "no value is kept with vmware-keys = 0; let that be more, or leave this out")
        } else if bytes == 0 && count > 0 {
            ("vmware-keys", "no value is kept with vmware-store = 0; let that be more, or leave this out")
        } else {
            return Some(());
        };
        // The usual value of the one goes with whatever is said of the other.
        let Some(found) = entry(table, key) else { return Some(()) };
        self.wrong(&found, wrong);
        None
    }

    /// What is about calls does nothing where nobody may make them.
    fn check_calls(&mut self, table: &DeTable<'t>, keys: &Values) -> Option<()> {
        // Where none are answered, each key has been told of already.
        if !keys.flag("vmware") {
            return Some(());
        }
        let [user, kernel] = ["vmware-user", "vmware-kernel"].map(|key| bundle::Calls(keys.number(key) as u8));
        let either = |group| user.has(group) || kernel.has(group);
        let (rpc, own, by_wfe) = (either(Group::Rpc), user.has(Group::Own), keys.flag("wfe"));
        let needs_rpc = "neither vmware-user nor vmware-kernel has \"rpc\"; add it there, or leave this out";
        let rules = [
            ("vmware-channels", rpc, needs_rpc),
            ("vmware-message", rpc, needs_rpc),
            ("vmware-log", rpc, needs_rpc),
            (
                "time-sync",
                !keys.flag("time-sync") || rpc || either(Group::Time),
                "neither vmware-user nor vmware-kernel has \"time\" or \"rpc\"; add one there, or leave this out",
            ),
            (
                "watchdog-user",
                !keys.flag("watchdog-user") || by_wfe || own,
                "it does nothing without wfe = true or \"own\" in vmware-user; add one, or leave it out",
            ),
            (
                "watchdog-actions",
                by_wfe || kernel.has(Group::Own) || own && keys.flag("watchdog-user"),
                "nobody may set a watchdog up: it needs wfe = true or \"own\" in vmware-kernel; add one, or leave this out",
            ),
        ];
        let mut is_sound = Some(());
        for (key, has_effect, wrong) in rules {
            if !has_effect && let Some(found) = entry(table, key) {
                self.wrong(&found, wrong);
                is_sound = None;
            }
        }
        is_sound
    }

    fn coherency(&mut self, table: &DeTable<'t>, keys: &Values) -> Option<bundle::Coherency> {
        let known = bundle::Coherency::of(keys.number("coherency"), keys.flag("coherency-strict"));
        if known.is_none()
            && let Some(found) = entry(table, "coherency-strict")
        {
            self.wrong(&found, "it belongs to pages that are executable on demand; leave it or `coherency` out");
        }
        known
    }

    fn action(&mut self, found: &Entry<'_, 't>) -> Option<u64> {
        let text = self.text(found)?;
        let known = Action::from_name(&text);
        if known.is_none() {
            self.wrong(found, format!("an action is one of {}", Form::Action.range()));
        }
        known.map(|action| action.number().into())
    }

    /// A list of actions, not empty: a bit each.
    fn actions(&mut self, found: &Entry<'_, 't>) -> Option<u64> {
        let Some(list) = found.value.get_ref().as_array().filter(|list| !list.is_empty()) else {
            self.wrong(found, format!("write a list of what the guest may choose, of {}", Form::Actions.range()));
            return None;
        };
        let bits: Vec<_> = list.iter().map(|value| self.action(&Entry { key: found.key, value })).collect();
        bits.into_iter().try_fold(0, |set, number| Some(set | 1 << number?))
    }

    /// A number, or a size as text, within `range`, which `what` counts.
    fn bytes_or_number(&mut self, entry: &Entry<'_, 't>, form: &Form, range: &Inclusive, what: &str) -> Option<u64> {
        if entry.value.get_ref().as_str().is_none() {
            return self.number(entry, form, range, what);
        }
        let size = self.size(entry)?;
        if !range.contains(&size) {
            self.wrong(entry, format!("{what}: it must be {}", form.range()));
        }
        range.contains(&size).then_some(size)
    }

    /// A number that may have a point, in units of which one is `one`, as text or as TOML has numbers.
    fn decimal(
        &mut self,
        entry: &Entry<'_, 't>,
        form: &Form,
        one: u64,
        range: &Inclusive,
        what: &str,
        example: &str,
    ) -> Option<u64> {
        let written = match entry.value.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
            DeValue::Float(number) => Some(number.as_str().to_owned()),
            _ => None,
        };
        let number = written.and_then(|text| decimal::parse(&text, one)).filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(entry, format!("{what}: it must be {}; write for example {example}", form.range()));
        }
        number
    }

    /// A size within `range` and in steps, of what `whose` names.
    fn stepped_size(
        &mut self,
        entry: &Entry<'_, 't>,
        form: &Form,
        whose: &str,
        range: &Inclusive,
        step: u64,
    ) -> Option<u64> {
        let size = self.size(entry)?;
        let good = size.is_multiple_of(step) && range.contains(&size);
        if !good {
            let hint = self.unit_hint(entry, size);
            // None of it is what a disk has without the key.
            let none = if size == 0 && entry.key == "changes" {
                "; if its guest is not to write it, leave the key out"
            } else {
                ""
            };
            self.wrong(entry, format!("{hint}{whose} has {}{none}", form.range()));
        }
        good.then_some(size)
    }

    /// The groups of calls that a level may make.
    fn calls(&mut self, found: &Entry<'_, 't>) -> Option<u64> {
        let names = keys::calls();
        let known = |value: &Spanned<DeValue<'t>>| {
            let name = value.get_ref().as_str()?;
            names.iter().position(|known| *known == name)
        };
        let bits = found
            .value
            .get_ref()
            .as_array()
            .and_then(|array| array.iter().try_fold(0, |bits, value| known(value).map(|bit| bits | 1 << bit)));
        if bits.is_none() {
            let all = Form::Calls.range();
            self.wrong(found, format!("write a list of what this level may call, of {all}; [] for nothing"));
        }
        bits
    }

    fn flag(&mut self, entry: &Entry<'_, 't>) -> Option<bool> {
        let value = entry.value.get_ref().as_bool();
        if value.is_none() {
            self.wrong(entry, format!("write {}", Form::Flag.range()));
        }
        value
    }

    /// A list of CPUs: a bit each.
    fn cpus(&mut self, entry: &Entry<'_, 't>) -> Option<u64> {
        let hint = "write a list of CPU numbers, for example affinity = [0, 2]";
        let Some(array) = entry.value.get_ref().as_array().filter(|array| !array.is_empty()) else {
            self.wrong(entry, format!("not a list of CPUs; {hint}, or leave it out"));
            return None;
        };
        array.iter().try_fold(0u64, |mask, value| {
            let cpu = self.number(&Entry { key: entry.key, value }, &Form::Cpus, &(0..=63), "a CPU's number")?;
            Some(mask | 1 << cpu)
        })
    }

    /// CPUs that an affinity names must be there.
    fn check_affinities(&mut self, root: &DeTable<'t>, vms: &[Vm], host: &Host) {
        let present = (1u64 << host.cpus) - 1;
        for vm in vms.iter().filter(|vm| vm.affinity != bundle::ANY_CPU && vm.affinity & !present != 0) {
            let tables = entry(root, "vm").and_then(|found| found.value.get_ref().as_array());
            let mut tables =
                tables.into_iter().flat_map(|array| array.iter()).filter_map(|value| value.get_ref().as_table());
            let own = tables
                .find(|table| entry(table, "name").is_some_and(|name| name.value.get_ref().as_str() == Some(&vm.name)));
            if let Some(found) = own.and_then(|table| entry(table, "affinity")) {
                self.wrong(&found, format!("the host's CPUs are numbered 0 to {}", host.cpus - 1));
            }
        }
    }
}

fn entry<'v, 't>(table: &'v DeTable<'t>, key: &'v str) -> Option<Entry<'v, 't>> {
    table.get(key).map(|value| Entry { key, value })
}

/// How the guest may call the hypervisor.
fn doors(keys: &Values) -> bundle::Doors {
    bundle::Doors {
        vmware: keys.flag("vmware"),
        strict: keys.flag("vmware-strict"),
        time_sync: keys.flag("time-sync"),
        wfe: keys.flag("wfe"),
        watchdog_user: keys.flag("watchdog-user"),
        watchdog_milliseconds: keys.number("watchdog") as u32,
        watchdog_action: keys.number("watchdog-action") as u8,
        watchdog_choices: keys.number("watchdog-actions") as u8,
        vcpu_watchdog_milliseconds: keys.number("vcpu-watchdog") as u32,
        generic_watchdog: keys.flag("sbsa-watchdog"),
        quota: bundle::Quota {
            channels: keys.number("vmware-channels") as u16,
            message: keys.number("vmware-message") as u32,
            keys: keys.number("vmware-keys") as u16,
            store: keys.number("vmware-store") as u32,
            log: keys.number("vmware-log") as u32,
        },
        user_calls: bundle::Calls(keys.number("vmware-user") as u8),
        kernel_calls: bundle::Calls(keys.number("vmware-kernel") as u8),
    }
}
