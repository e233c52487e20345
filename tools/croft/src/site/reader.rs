//! From TOML to a [`Site`], collecting every mistake on the way.

use super::{Host, Lines, MAX_HOST_CPUS, Mistake, Site, SiteError, Vm};
use crate::kernel::Raw;
use crate::size;
use abi::bundle;
use abi::watchdog::Action;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The keys of each table: the required ones first.
const ROOT_KEYS: &[&str] = &["host", "vm"];
const HOST_KEYS: &[&str] = &["cpu", "cpus", "memory"];
const VM_KEYS: &[&str] = &[
    "name",
    "vcpus",
    "memory",
    "kernel",
    "load",
    "entry",
    "initrd",
    "cmdline",
    "weight",
    "affinity",
    "pause-stops-time",
    "vmware",
    "vmware-strict",
    "vmware-channels",
    "vmware-message",
    "vmware-keys",
    "vmware-store",
    "vmware-log",
    "vmware-user",
    "vmware-kernel",
    "time-sync",
    "wfe",
    "watchdog",
    "watchdog-action",
    "watchdog-actions",
    "watchdog-user",
    "vcpu-watchdog",
    "sbsa-watchdog",
];

/// Keys that do nothing unless one of others is there: each with those others, as one would write them.
const NEEDS: &[(&str, &[&str])] = &[
    ("vmware-strict", &["vmware = true"]),
    ("vmware-channels", &["vmware = true"]),
    ("vmware-message", &["vmware = true"]),
    ("vmware-keys", &["vmware = true"]),
    ("vmware-store", &["vmware = true"]),
    ("vmware-log", &["vmware = true"]),
    ("vmware-user", &["vmware = true"]),
    ("vmware-kernel", &["vmware = true"]),
    ("time-sync", &["vmware = true"]),
    ("watchdog-action", &["watchdog = 30000", "vcpu-watchdog = 30000"]),
    ("watchdog-actions", &["vmware = true", "wfe = true"]),
    ("watchdog-user", &["vmware = true", "wfe = true"]),
];

/// QEMU's models with an EL2 that is AArch64, as of version 11.1; a newer QEMU is asked about others.
const CPU_MODELS: [&str; 13] = [
    "a64fx",
    "cortex-a35",
    "cortex-a53",
    "cortex-a55",
    "cortex-a57",
    "cortex-a72",
    "cortex-a76",
    "cortex-a78ae",
    "cortex-a710",
    "max",
    "neoverse-n1",
    "neoverse-n2",
    "neoverse-v1",
];

/// Reads `text`, the contents of `file`.
pub(super) fn read(text: &str, file: &Path) -> Result<Site, SiteError> {
    let mut reader = Reader { text, file, mistakes: Vec::new() };
    let site = reader.site();
    match site {
        Some(site) if reader.mistakes.is_empty() => site.check_memory(0).map(|()| site),
        _ => Err(SiteError(reader.mistakes)),
    }
}

/// A value with the key that it belongs to.
struct Entry<'v, 't> {
    key: &'v str,
    value: &'v Spanned<DeValue<'t>>,
}

struct Reader<'t> {
    text: &'t str,
    file: &'t Path,
    mistakes: Vec<Mistake>,
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
        self.refuse_unknown(root, ROOT_KEYS, "a site file");
        let host = entry(root, "host").and_then(|found| self.host(&found));
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
        Some(Site { file: self.file.to_path_buf(), host, vms })
    }

    fn refuse_unknown(&mut self, table: &DeTable<'t>, known: &[&str], what: &str) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let nearest = known.iter().map(|other| (distance(name, other), *other)).min();
                let hint = match nearest {
                    Some((away, other)) if away <= 1 + other.len() / 3 => format!("did you mean `{other}`?"),
                    _ => format!("{what} has {}", known.join(", ")),
                };
                self.wrong_at(key.span(), format!("{name}: there is no such key; {hint}"));
            }
        }
    }

    /// A key that does nothing without another one is a mistake: its writer expects something of it.
    fn refuse_idle(&mut self, table: &DeTable<'t>) {
        let is_on = |key: &str| entry(table, key).is_some_and(|found| found.value.get_ref().as_bool() != Some(false));
        for (key, needed) in NEEDS {
            let is_met = needed.iter().any(|other| is_on(other.split(' ').next().unwrap_or(other)));
            if is_on(key)
                && !is_met
                && let Some(found) = entry(table, key)
            {
                let needed = needed.join(" or ");
                self.wrong(&found, format!("it does nothing without {needed}; add that, or leave it out"));
            }
        }
    }

    /// QEMU's name of a CPU model, possibly with properties: `max,pauth-qarma3=on`. QEMU itself judges the properties.
    fn cpu(&mut self, entry: &Entry<'_, 't>) -> Option<String> {
        let cpu = self.text(entry)?;
        let model = cpu.split(',').next().unwrap_or_default();
        if CPU_MODELS.contains(&model) || qemu::find().is_ok_and(|qemu| qemu.has_wide_model(model)) {
            return Some(cpu);
        }
        let nearest = CPU_MODELS.iter().map(|known| (distance(model, known), *known)).min();
        let hint = match nearest {
            Some((away, known)) if away <= 1 + known.len() / 3 => format!("did you mean \"{known}\"? "),
            _ => String::new(),
        };
        let all = CPU_MODELS.join(", ");
        self.wrong(entry, format!("QEMU has no such 64-bit CPU model; {hint}there are {all}, also with properties"));
        None
    }

    /// What a size without a unit means, if it can hardly be meant.
    fn unit_hint(&self, entry: &Entry<'_, 't>, bytes: u64) -> String {
        let written = self.text.get(entry.value.span()).unwrap_or_default().trim_matches('"').trim();
        let is_bare = written.bytes().all(|byte| byte.is_ascii_digit());
        if is_bare && bytes < 1 << 20 {
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

    fn required<'v>(
        &mut self,
        table: &'v DeTable<'t>,
        at: Range<usize>,
        key: &'v str,
        example: &str,
    ) -> Option<Entry<'v, 't>> {
        let found = entry(table, key);
        if found.is_none() {
            self.wrong_at(at, format!("`{key}` is missing; write for example {key} = {example}"));
        }
        found
    }

    fn text(&mut self, entry: &Entry<'_, 't>) -> Option<String> {
        let text = entry.value.get_ref().as_str();
        if text.is_none() {
            self.wrong(entry, "not a text; put it in double quotes");
        }
        text.map(str::to_owned)
    }

    /// A whole number within `range`, which `what` counts.
    fn number(&mut self, entry: &Entry<'_, 't>, range: std::ops::RangeInclusive<u64>, what: &str) -> Option<u64> {
        let (least, most) = (range.start(), range.end());
        let value = entry
            .value
            .get_ref()
            .as_integer()
            .and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok());
        let number = value.and_then(|value| u64::try_from(value).ok()).filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(entry, format!("{what}: it must be a whole number from {least} to {most}"));
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
        self.refuse_unknown(table, HOST_KEYS, "[host]");
        let at = found.value.span();
        let cpu = self.required(table, at.clone(), "cpu", "\"cortex-a76\"").and_then(|entry| self.cpu(&entry));
        let cpus = self
            .required(table, at.clone(), "cpus", "4")
            .and_then(|entry| self.number(&entry, 1..=u64::from(MAX_HOST_CPUS), "the host's CPUs"));
        let memory_entry = self.required(table, at.clone(), "memory", "\"4G\"");
        let memory = memory_entry.as_ref().and_then(|entry| {
            let memory = self.size(entry)?;
            let good = memory.is_multiple_of(1 << 20) && (256 << 20..=64 << 30).contains(&memory);
            if !good {
                let hint = self.unit_hint(entry, memory);
                self.wrong(entry, format!("{hint}a host has 256M to 64G, in whole M"));
            }
            good.then_some(memory)
        });
        let memory_line = memory_entry.map_or(0, |entry| self.line(entry.value.span()));
        let lines = Lines { table: self.line(at), memory: memory_line, ..Lines::default() };
        Some(Host { cpu: cpu?, cpus: cpus? as u8, memory: memory?, lines })
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
            if let Some(first) = vms.iter().find(|other| other.name == vm.name) {
                let at = value
                    .get_ref()
                    .as_table()
                    .and_then(|table| entry(table, "name"))
                    .map_or(value.span(), |name| name.value.span());
                let message = format!(
                    "name = \"{}\": the VM of line {} has this name already; each needs its own",
                    vm.name, first.lines.table
                );
                self.wrong_at(at, message);
            }
            vms.push(vm);
        }
        vms
    }

    fn vm(&mut self, found: &Entry<'_, 't>) -> Option<Vm> {
        let table = self.table(found, "[[vm]], then its keys")?;
        self.refuse_unknown(table, VM_KEYS, "[[vm]]");
        let at = found.value.span();
        let name = self.required(table, at.clone(), "name", "\"web\"").and_then(|entry| {
            let name = self.text(&entry)?;
            let checked = bundle::check_name(&name);
            checked.map_err(|problem| self.wrong(&entry, problem.to_string())).ok().map(|()| name)
        });
        let vcpus = self
            .required(table, at.clone(), "vcpus", "2")
            .and_then(|entry| self.number(&entry, 1..=units::MAX_VCPUS as u64, "a VM's vCPUs"));
        let memory_entry = self.required(table, at.clone(), "memory", "\"512M\"");
        let memory = memory_entry.as_ref().and_then(|entry| self.vm_memory(entry));
        let kernel_entry = self.required(table, at.clone(), "kernel", "\"path/to/Image\"");
        let kernel = kernel_entry.as_ref().and_then(|entry| self.text(entry));
        let raw = self.raw(table);
        let initrd_entry = entry(table, "initrd");
        let initrd = initrd_entry.as_ref().and_then(|entry| self.text(entry));
        let cmdline = entry(table, "cmdline").map_or(Some(String::new()), |entry| self.cmdline(&entry));
        let weight = entry(table, "weight").map_or(Some(u64::from(bundle::DEFAULT_WEIGHT)), |entry| {
            self.number(&entry, 1..=u64::from(bundle::MAX_WEIGHT), "a VM's weight")
        });
        let pause_stops_time = entry(table, "pause-stops-time").map_or(Some(false), |entry| self.yes(&entry));
        let affinity = entry(table, "affinity").map_or(Some(bundle::ANY_CPU), |entry| self.affinity(&entry));
        let before = self.mistakes.len();
        let doors = self.doors(table);
        if self.mistakes.len() == before {
            self.refuse_idle(table);
        }
        let line = |entry: &Option<Entry<'_, 't>>| entry.as_ref().map_or(0, |entry| self.line(entry.value.span()));
        let lines = Lines {
            table: self.line(at),
            memory: line(&memory_entry),
            kernel: line(&kernel_entry),
            initrd: line(&initrd_entry),
        };
        let folder = self.file.parent().unwrap_or(Path::new(""));
        Some(Vm {
            name: name?,
            vcpus: vcpus? as u8,
            memory: memory?,
            kernel: folder.join(kernel?),
            raw: raw?,
            initrd: initrd.map(|path| folder.join(path)),
            cmdline: cmdline?,
            weight: weight? as u16,
            affinity: affinity?,
            pause_stops_time: pause_stops_time?,
            doors: doors?,
            lines,
        })
    }

    /// Where a raw binary goes; without `load` the kernel is none.
    fn raw(&mut self, table: &DeTable<'t>) -> Option<Option<Raw>> {
        let Some(found) = entry(table, "load") else {
            if let Some(found) = entry(table, "entry") {
                self.wrong(
                    &found,
                    "it belongs to a raw binary, of which `load` says where it goes; leave it out, or add `load`",
                );
                return None;
            }
            return Some(None);
        };
        let load = self.address(&found, units::PAGE_SIZE);
        let start = entry(table, "entry").map_or(load, |found| self.address(&found, 4));
        Some(Some(Raw { load: load?, entry: start? }))
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

    /// How the guest may call the hypervisor.
    fn doors(&mut self, table: &DeTable<'t>) -> Option<bundle::Doors> {
        let mut yes = |key| entry(table, key).map_or(Some(false), |found| self.yes(&found));
        let (vmware, strict, time_sync) = (yes("vmware"), yes("vmware-strict"), yes("time-sync"));
        let (wfe, watchdog_user, generic_watchdog) = (yes("wfe"), yes("watchdog-user"), yes("sbsa-watchdog"));
        let mut milliseconds = |key| {
            entry(table, key).map_or(Some(0), |found| {
                self.number(&found, 100..=86_400_000, "the milliseconds until the watchdog acts")
            })
        };
        let (of_vm, of_vcpus) = (milliseconds("watchdog"), milliseconds("vcpu-watchdog"));
        let action = entry(table, "watchdog-action")
            .map_or(Some(bundle::DEFAULT_ACTION.number()), |found| self.watchdog_action(&found));
        let choices = entry(table, "watchdog-actions").map_or(Some(0), |found| self.watchdog_choices(&found));
        let quota = self.quota(table);
        let (user_calls, kernel_calls) = (self.calls(table, "vmware-user"), self.calls(table, "vmware-kernel"));
        Some(bundle::Doors {
            quota: quota?,
            user_calls: user_calls?,
            kernel_calls: kernel_calls?,
            vmware: vmware?,
            strict: strict?,
            time_sync: time_sync?,
            wfe: wfe?,
            watchdog_user: watchdog_user?,
            watchdog_milliseconds: of_vm? as u32,
            watchdog_action: action?,
            watchdog_choices: choices?,
            vcpu_watchdog_milliseconds: of_vcpus? as u32,
            generic_watchdog: generic_watchdog?,
        })
    }

    fn watchdog_action(&mut self, found: &Entry<'_, 't>) -> Option<u8> {
        let text = self.text(found)?;
        let known = Action::from_name(&text).map(Action::number);
        if known.is_none() {
            self.wrong(found, format!("an action is one of {}", Action::NAMES.join(", ")));
        }
        known
    }

    /// A list of actions, not empty: a bit each.
    fn watchdog_choices(&mut self, found: &Entry<'_, 't>) -> Option<u8> {
        let Some(list) = found.value.get_ref().as_array().filter(|list| !list.is_empty()) else {
            self.wrong(found, format!("write a list of what the guest may choose, of {}", Action::NAMES.join(", ")));
            return None;
        };
        let bits: Vec<_> = list.iter().map(|value| self.watchdog_action(&Entry { key: found.key, value })).collect();
        bits.into_iter().try_fold(0, |set, number| Some(set | 1 << number?))
    }

    /// How much a guest may have of VMware's service.
    fn quota(&mut self, table: &DeTable<'t>) -> Option<bundle::Quota> {
        let usual = bundle::Quota::default();
        let mut bound = |key, usual: u64, range, what: &str| {
            entry(table, key).map_or(Some(usual), |found| self.bytes_or_number(&found, range, what))
        };
        let channels = bound("vmware-channels", usual.channels.into(), bundle::Quota::CHANNELS, "channels");
        let message = bound("vmware-message", usual.message.into(), bundle::Quota::MESSAGE, "bytes in a message");
        let keys = bound("vmware-keys", usual.keys.into(), bundle::Quota::KEYS, "keys");
        let store = bound("vmware-store", usual.store.into(), bundle::Quota::STORE, "bytes in all values");
        let log = bound("vmware-log", usual.log.into(), bundle::Quota::LOG, "bytes a second for the log");
        Some(bundle::Quota {
            channels: channels? as u16,
            message: message? as u32,
            keys: keys? as u16,
            store: store? as u32,
            log: log? as u32,
        })
    }

    /// A number, or a size as text, within `range`, which `what` counts.
    fn bytes_or_number(
        &mut self,
        entry: &Entry<'_, 't>,
        range: std::ops::RangeInclusive<u64>,
        what: &str,
    ) -> Option<u64> {
        if entry.value.get_ref().as_str().is_none() {
            return self.number(entry, range, what);
        }
        let size = self.size(entry)?;
        if !range.contains(&size) {
            self.wrong(entry, format!("{what}: it must be from {} to {}", range.start(), range.end()));
        }
        range.contains(&size).then_some(size)
    }

    /// The groups of calls that a level may make.
    fn calls(&mut self, table: &DeTable<'t>, key: &str) -> Option<bundle::Calls> {
        let Some(found) = entry(table, key) else { return Some(bundle::Calls::ALL) };
        let names = bundle::Group::LIST.map(bundle::Group::name);
        let known = |value: &Spanned<DeValue<'t>>| {
            let name = value.get_ref().as_str()?;
            names.iter().position(|known| *known == name)
        };
        let bits = found
            .value
            .get_ref()
            .as_array()
            .and_then(|array| array.iter().try_fold(0u8, |bits, value| known(value).map(|bit| bits | 1 << bit)));
        if bits.is_none() {
            let all = names.map(|name| format!("\"{name}\"")).join(", ");
            self.wrong(&found, format!("write a list of what this level may call, of {all}; [] for nothing"));
        }
        bits.map(bundle::Calls)
    }

    fn yes(&mut self, entry: &Entry<'_, 't>) -> Option<bool> {
        let value = entry.value.get_ref().as_bool();
        if value.is_none() {
            self.wrong(entry, "write true or false");
        }
        value
    }

    fn vm_memory(&mut self, entry: &Entry<'_, 't>) -> Option<u64> {
        let memory = self.size(entry)?;
        let range = bundle::MIN_MEMORY..=bundle::MAX_MEMORY;
        let good = memory.is_multiple_of(units::BLOCK_SIZE) && range.contains(&memory);
        if !good {
            let hint = self.unit_hint(entry, memory);
            self.wrong(entry, format!("{hint}a VM has 2M to 256G, in steps of 2M"));
        }
        good.then_some(memory)
    }

    fn cmdline(&mut self, entry: &Entry<'_, 't>) -> Option<String> {
        let cmdline = self.text(entry)?;
        let good = cmdline.len() <= bundle::MAX_CMDLINE && !cmdline.contains(['\0', '\n', '\r']);
        if !good {
            self.wrong(entry, format!("a command line is one line of at most {} bytes", bundle::MAX_CMDLINE));
        }
        good.then_some(cmdline)
    }

    fn affinity(&mut self, entry: &Entry<'_, 't>) -> Option<u64> {
        let hint = "write a list of CPU numbers, for example affinity = [0, 2]";
        let Some(array) = entry.value.get_ref().as_array().filter(|array| !array.is_empty()) else {
            self.wrong(entry, format!("not a list of CPUs; {hint}, or leave it out"));
            return None;
        };
        array.iter().try_fold(0u64, |mask, value| {
            let cpu = self.number(&Entry { key: "affinity", value }, 0..=63, "a CPU's number")?;
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

/// How many letters must be put in, left out or replaced to make `b` of `a` (Levenshtein's distance).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, other) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(letter != other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}
