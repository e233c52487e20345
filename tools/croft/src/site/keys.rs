//! The keys of a site file, a row each: name, allowed values, default, purpose.
//!
//! From these rows comes which keys are known and which one was probably meant, the checks of values and their messages, and the page
//! `docs/formats/site.md` (`page.rs`). A new key is a row here, a line in `reader.rs` that puts its value into the VM's record, that
//! record's row in `abi::bundle`, and whoever acts on it; docs/adding.md lists the places, decision 0034 says why there are several.

use super::MAX_HOST_CPUS;
use super::reader::Values;
use super::texts::Text;
use crate::{decimal, size};
use abi::bundle::{self, Coherency, Group, Quota, Time, TimeAway, TimeSource};
use abi::watchdog::{self, Action};
use std::ops::RangeInclusive;

/// What a value becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// `true` or `false`.
    Flag(bool),
    /// A number, bytes, an address; an action's number; a set, a bit each.
    Number(u64),
    /// A text.
    Text(String),
    /// What the keys of an inner table say.
    Table(Values),
    /// As well, of several.
    Tables(Vec<Values>),
    /// Several texts.
    Texts(Vec<String>),
}

/// What may stand behind a key.
#[derive(Debug)]
pub(super) enum Form {
    /// A text, with a rule of its own.
    Text(Text),
    /// Such a text, or a list of at most so many; what they are, for messages.
    Texts(Text, usize, &'static str),
    /// `true` or `false`.
    Flag,
    /// A whole number; what it counts, for messages.
    Number(RangeInclusive<u64>, &'static str),
    /// Bytes: whose they are, the range and the steps.
    Size(&'static str, RangeInclusive<u64>, u64),
    /// A whole number or bytes, as one likes; what it counts.
    Bound(RangeInclusive<u64>, &'static str),
    /// A frequency in hertz.
    Frequency(RangeInclusive<u64>),
    /// A number with a point, in millionths; what it is, for messages.
    Millionths(RangeInclusive<u64>, &'static str),
    /// A table with these keys.
    Table(&'static Table),
    /// Such a table, or a list of at most so many; what they are, for messages.
    Tables(&'static Table, usize, &'static str),
    /// As well; where only the first of its keys is to be said, which is a text, that text alone will do.
    Named(&'static Table, usize, &'static str),
    /// A guest's physical address, a multiple of this.
    Address(u64),
    /// A list of the host's CPUs.
    Cpus,
    /// One of these names, by its number; what is chosen.
    Choice(&'static [&'static str], &'static str),
    /// What a watchdog does.
    Action,
    /// A list of such, not empty.
    Actions,
    /// A list of groups of calls, maybe empty.
    Calls,
}

/// What it means that a key is not there.
#[derive(Debug)]
pub(super) enum Absent {
    /// It is a mistake.
    Wrong,
    /// It is one unless this other key is there, for which this is an example.
    WrongWithout(&'static str, &'static str),
    /// Nothing stands for it; the page says this.
    Unknown(&'static str),
    /// The same as this value, which the page shows.
    Usual(Value),
    /// The same as this value, of which the page says this.
    Said(Value, &'static str),
}

/// What a key needs to have an effect.
#[derive(Debug)]
pub(super) enum Needs {
    /// Nothing.
    Nothing,
    /// One of these, as one would write them.
    AnyOf(&'static [&'static str]),
    /// This key; and what is said where that is missing.
    Key(&'static str, &'static str),
    /// That this key is not there; and what is said where it is.
    Without(&'static str, &'static str),
}

/// A row.
#[derive(Debug)]
pub(super) struct Key {
    /// As one writes it.
    pub(super) name: &'static str,
    /// What may stand behind it.
    pub(super) form: Form,
    /// What it means if it is not there.
    pub(super) absent: Absent,
    /// A value, as one would write it.
    pub(super) example: &'static str,
    /// What it is for, in one line of Markdown.
    pub(super) says: &'static str,
    /// What it needs to have an effect.
    pub(super) needs: Needs,
}

/// A table of a site file.
#[derive(Debug)]
pub(super) struct Table {
    /// Its name, between brackets in the file.
    pub(super) name: &'static str,
    /// How its head is written.
    pub(super) head: &'static str,
    /// What it describes, in one line of Markdown.
    pub(super) says: &'static str,
    /// Its keys, the required ones first.
    pub(super) keys: &'static [Key],
}

/// Of which there are so many in one.
pub(super) const MILLION: u64 = 1_000_000;

const NO: Absent = Absent::Usual(Value::Flag(false));
const ALONE: Needs = Needs::Nothing;
const OF_IMAGE: Needs = Needs::Key("image", "it belongs to an image, which this disk has not; leave it out");
const OF_HOST: Needs = Needs::Key("host", "it belongs to a disk of the host's; leave it out, or say which with `host`");
const VMWARE: Needs = Needs::AnyOf(&["vmware = true"]);
const BY_CALLS: Needs = Needs::AnyOf(&["vmware = true", "wfe = true"]);

const fn key(
    name: &'static str,
    form: Form,
    absent: Absent,
    needs: Needs,
    example: &'static str,
    says: &'static str,
) -> Key {
    Key { name, form, absent, needs, example, says }
}

const fn usual(number: u64) -> Absent {
    Absent::Usual(Value::Number(number))
}

const fn time() -> Form {
    Form::Number(watchdog::MILLISECONDS, "the milliseconds until the watchdog acts")
}

/// All tables.
pub(super) static TABLES: [&Table; 3] = [&HOST, &NETWORK, &VM];

/// The emulated machine.
pub(super) static HOST: Table = Table {
    name: "host",
    head: "[host]",
    says: "The machine that `croft run` emulates. A site that is only meant for real hardware needs none.",
    keys: &[
        key("cpu", Form::Text(Text::CpuModel), Absent::Wrong, ALONE, "\"cortex-a76\"", "The model of its CPUs."),
        key(
            "cpus",
            Form::Number(1..=MAX_HOST_CPUS as u64, "the host's CPUs"),
            Absent::Wrong,
            ALONE,
            "4",
            "How many CPUs it has.",
        ),
        key(
            "memory",
            Form::Size("a host", 256 << 20..=64 << 30, 1 << 20),
            Absent::Wrong,
            ALONE,
            "\"4G\"",
            "Its RAM. All VMs must fit beside the hypervisor and their files.",
        ),
        key(
            "disk",
            Form::Texts(Text::Path, bundle::MAX_HOST_DISKS, "disks"),
            Absent::Unknown("no disk"),
            ALONE,
            "\"disk.img\"",
            "A file that is a disk of the machine's, or a list of files: whole sectors of 512 bytes, raw. The first is `virtio0`, with the serial number `disk0`; `--disk` of `croft run` adds more.",
        ),
    ],
};

/// A network.
pub(super) static NETWORK: Table = Table {
    name: "network",
    head: "[[network]]",
    says: "A network between virtual machines, to which no other and nothing outside belongs. There may be several, each with its own table.",
    keys: &[
        key(
            "name",
            Form::Text(Text::Network),
            Absent::Wrong,
            ALONE,
            "\"lan\"",
            "What it is called; no other network has that name.",
        ),
        key(
            "mtu",
            Form::Number(bundle::MTU, "the bytes of a network's largest packet"),
            usual(bundle::DEFAULT_MTU as u64),
            ALONE,
            "9000",
            "Bytes of the largest packet, of which all its guests are told. Longer frames are dropped.",
        ),
    ],
};

/// A virtual machine.
pub(super) static VM: Table = Table {
    name: "vm",
    head: "[[vm]]",
    says: "A virtual machine. There may be as many as memory allows, each with its own table.",
    keys: &[
        key(
            "name",
            Form::Text(Text::Name),
            Absent::Wrong,
            ALONE,
            "\"web\"",
            "What it is called; no other VM has that name.",
        ),
        key(
            "vcpus",
            Form::Number(1..=units::MAX_VCPUS as u64, "a VM's vCPUs"),
            Absent::Wrong,
            ALONE,
            "2",
            "How many CPUs its guest sees. All VMs together may have more than the host has.",
        ),
        key(
            "memory",
            Form::Size("a VM", bundle::MIN_MEMORY..=bundle::MAX_MEMORY, units::BLOCK_SIZE),
            Absent::Wrong,
            ALONE,
            "\"512M\"",
            "Its RAM.",
        ),
        key(
            "kernel",
            Form::Text(Text::Path),
            Absent::Wrong,
            ALONE,
            "\"path/to/Image\"",
            "What it runs: an arm64 `Image` or ELF executable, also packed (gzip, zstd, xz, lzma, lz4, EFI zboot), or with `load` a raw binary.",
        ),
        key(
            "load",
            Form::Address(units::PAGE_SIZE),
            Absent::Unknown("`kernel` is no raw binary"),
            ALONE,
            "\"0x40200000\"",
            "Where a raw binary goes in the VM's memory, which begins at 0x40000000.",
        ),
        key(
            "entry",
            Form::Address(4),
            Absent::Unknown("as `load`"),
            Needs::Key(
                "load",
                "it belongs to a raw binary, of which `load` says where it goes; leave it out, or add `load`",
            ),
            "\"0x40200104\"",
            "Where a raw binary begins.",
        ),
        key(
            "initrd",
            Form::Text(Text::Path),
            Absent::Unknown("no ramdisk"),
            ALONE,
            "\"path/to/initrd\"",
            "The initial ramdisk.",
        ),
        key(
            "disk",
            Form::Tables(&DISK, bundle::MAX_DISKS, "disks"),
            Absent::Unknown("no disk"),
            ALONE,
            "{ image = \"root.img\" }",
            "Its disk, or a list of its disks, each of which may be a table `[[vm.disk]]` too. To the guest they are virtio block devices, in this order.",
        ),
        key(
            "network",
            Form::Named(&PORT, bundle::MAX_PORTS, "ports"),
            Absent::Unknown("on no network"),
            ALONE,
            "\"lan\"",
            "The network that it is on, or a list of such, each of which may be a table `[[vm.network]]` too. To the guest they are virtio network devices, in this order.",
        ),
        key(
            "cmdline",
            Form::Text(Text::CommandLine),
            Absent::Usual(Value::Text(String::new())),
            ALONE,
            "\"console=ttyAMA0\"",
            "The kernel's command line.",
        ),
        key(
            "weight",
            Form::Number(1..=bundle::MAX_WEIGHT as u64, "a VM's weight"),
            usual(bundle::DEFAULT_WEIGHT as u64),
            ALONE,
            "200",
            "Its share of CPU time, relative to the other VMs'.",
        ),
        key(
            "affinity",
            Form::Cpus,
            Absent::Said(Value::Number(bundle::ANY_CPU), "every CPU"),
            ALONE,
            "[0, 2]",
            "The host's CPUs that it may use.",
        ),
        key(
            "autostart",
            Form::Flag,
            Absent::Usual(Value::Flag(true)),
            ALONE,
            "false",
            "Whether it starts with the host. One that does not is off until `croft start`, `restore` or `clone`.",
        ),
        key(
            "enclave",
            Form::Flag,
            NO,
            ALONE,
            "true",
            "Whether it has the enclave device, by which its guest makes enclaves of its own memory.",
        ),
        key(
            "pause-stops-time",
            Form::Flag,
            NO,
            ALONE,
            "true",
            "While it is paused, its counters stand still, so that its guest notices nothing.",
        ),
        key(
            "time",
            Form::Table(&TIME),
            Absent::Unknown("the host's frequency, real time"),
            ALONE,
            "{ frequency = \"62.5M\" }",
            "A time of its own. Where it is not the host's, its counters and timers are emulated.",
        ),
        key(
            "coherency",
            Form::Choice(&Coherency::NAMES, "when pages become executable"),
            usual(0),
            ALONE,
            "\"eager\"",
            "When a page becomes executable and the caches are made to agree about it: when it is executed; when the guest is shown it; as `eager` where the caches of all CPUs agree by themselves, else on demand.",
        ),
        key(
            "coherency-strict",
            Form::Flag,
            NO,
            ALONE,
            "true",
            "A page that is executed is read-only until it is written, and not executable then: code that does no cache maintenance works. Only with `coherency = \"on-demand\"`.",
        ),
        key(
            "vmware",
            Form::Flag,
            NO,
            ALONE,
            "true",
            "VMware's guest ABI is answered, for open-vm-tools, and our own calls beside it.",
        ),
        key(
            "vmware-strict",
            Form::Flag,
            NO,
            VMWARE,
            "true",
            "An access to the debug channel that is no call always gives the guest an exception; otherwise it does so only if the guest's kernel asks for that.",
        ),
        key(
            "vmware-channels",
            Form::Bound(Quota::CHANNELS, "channels"),
            usual(Quota::USUAL.channels as u64),
            VMWARE,
            "8",
            "RPC channels that may be open at once.",
        ),
        key(
            "vmware-message",
            Form::Bound(Quota::MESSAGE, "bytes in a message"),
            usual(Quota::USUAL.message as u64),
            VMWARE,
            "\"4K\"",
            "Bytes in a message of the guest's.",
        ),
        key(
            "vmware-keys",
            Form::Bound(Quota::KEYS, "keys"),
            usual(Quota::USUAL.keys as u64),
            VMWARE,
            "16",
            "Values that the guest and its operator may keep.",
        ),
        key(
            "vmware-store",
            Form::Bound(Quota::STORE, "bytes in all values"),
            usual(Quota::USUAL.store as u64),
            VMWARE,
            "\"64K\"",
            "Bytes in all these values and their keys.",
        ),
        key(
            "vmware-log",
            Form::Bound(Quota::LOG, "bytes a second for the log"),
            usual(Quota::USUAL.log as u64),
            VMWARE,
            "1024",
            "Bytes a second that the guest may write into the host's log.",
        ),
        key(
            "vmware-user",
            Form::Calls,
            Absent::Usual(Value::Number(bundle::Calls::ALL.0 as u64)),
            VMWARE,
            "[\"rpc\", \"own\"]",
            "What its processes may call.",
        ),
        key(
            "vmware-kernel",
            Form::Calls,
            Absent::Usual(Value::Number(bundle::Calls::ALL.0 as u64)),
            VMWARE,
            "[\"rpc\", \"time\"]",
            "What its kernel may call.",
        ),
        key("time-sync", Form::Flag, NO, VMWARE, "true", "The guest's tools follow the host's clock, forward."),
        key("wfe", Form::Flag, NO, ALONE, "true", "The WFE channel is answered: detection, and watchdogs."),
        key(
            "watchdog",
            time(),
            Absent::Said(Value::Number(0), "not armed at the start"),
            ALONE,
            "30000",
            "The VM's watchdog is armed from the start for so many milliseconds, and the guest cannot disarm it.",
        ),
        key(
            "watchdog-action",
            Form::Action,
            usual(bundle::DEFAULT_ACTION as u64),
            Needs::AnyOf(&["watchdog = 30000", "vcpu-watchdog = 30000", "sbsa-watchdog = true"]),
            "\"pause\"",
            "The action of watchdogs that the site file arms, and of the Generic Watchdog's second signal.",
        ),
        key(
            "watchdog-actions",
            Form::Actions,
            Absent::Said(Value::Number(0), "all; where the site file arms one, `watchdog-action` alone"),
            BY_CALLS,
            "[\"log\", \"reset\"]",
            "What the guest may choose for its watchdogs.",
        ),
        key("watchdog-user", Form::Flag, NO, BY_CALLS, "true", "The guest's processes may set up watchdogs too."),
        key(
            "vcpu-watchdog",
            time(),
            Absent::Said(Value::Number(0), "not armed at the start"),
            ALONE,
            "30000",
            "As `watchdog`, for a separate watchdog of each vCPU.",
        ),
        key(
            "sbsa-watchdog",
            Form::Flag,
            NO,
            ALONE,
            "true",
            "The machine has the Generic Watchdog of Arm's Base System Architecture, for which operating systems have a driver. Its second signal does `watchdog-action`.",
        ),
    ],
};

/// A disk.
static DISK: Table = Table {
    name: "disk",
    head: "disk = { ... }",
    says: "A disk: an image in the bundle, or a disk of the host's or a part of one, whose VM cannot be saved.",
    keys: &[
        key(
            "image",
            Form::Text(Text::Path),
            Absent::WrongWithout("host", "\"virtio0\""),
            ALONE,
            "\"root.img\"",
            "A file with its contents, as on a disk: a file system, or partitions. From 512 bytes to 4G, a multiple of 512.",
        ),
        key(
            "serial",
            Form::Text(Text::Serial),
            Absent::Unknown("`disk0` for the first one, `disk1` for the next"),
            ALONE,
            "\"root\"",
            "Its serial number, by which a guest finds it wherever it is: `/dev/disk/by-id/virtio-root`. No other disk of the VM has it.",
        ),
        key(
            "changes",
            Form::Size("what is written to a disk", bundle::CHANGES, units::BLOCK_SIZE),
            Absent::Unknown("its guest cannot write it"),
            OF_IMAGE,
            "\"64M\"",
            "Its guest can write it. So much memory is set aside for what is on it otherwise than in the image, with a list of 1 KiB for each MiB of that; what does not fit fails in the guest. It stays when the guest resets, and goes when the VM is off.",
        ),
        key(
            "host",
            Form::Text(Text::HostDisk),
            Absent::Unknown("`image` says what is on it"),
            Needs::Without(
                "image",
                "what is on a disk is in an image or on a disk of the host's; leave one of the two out",
            ),
            "\"virtio0\"",
            "A disk of the host's: by its number, in the order in which the hypervisor finds them and lists them in its log, or by its serial number, `serial:data`.",
        ),
        key(
            "offset",
            Form::Size("what is before a part of a disk", 0..=*bundle::HOST_BYTES.end(), bundle::SECTOR),
            usual(0),
            OF_HOST,
            "\"1G\"",
            "The part that is used begins so many bytes behind the beginning of the host's disk.",
        ),
        key(
            "size",
            Form::Size("a part of a disk", bundle::HOST_BYTES, bundle::SECTOR),
            Absent::Unknown("to the end of the host's disk"),
            OF_HOST,
            "\"20G\"",
            "How many bytes the part has. Two disks that may be written cannot have the same part.",
        ),
        key("read-only", Form::Flag, NO, OF_HOST, "true", "Its guest cannot write it."),
    ],
};

/// A port of a network.
static PORT: Table = Table {
    name: "port",
    head: "network = { ... }",
    says: "A port of a network. The guest's frames come from its address, or are dropped.",
    keys: &[
        key(
            "name",
            Form::Text(Text::Network),
            Absent::Wrong,
            ALONE,
            "\"lan\"",
            "The network, which has a table `[[network]]`.",
        ),
        key(
            "mac",
            Form::Text(Text::Mac),
            Absent::Unknown("made from the VM's name, and always the same"),
            ALONE,
            "\"52:54:00:12:34:56\"",
            "Its address. No other port of the network has it.",
        ),
        key(
            "vlan",
            Form::Number(bundle::VLAN, "the number of a VLAN"),
            Absent::Unknown("in none"),
            ALONE,
            "7",
            "The network's VLAN that it is in: it reaches those that are in the same. The guest knows nothing of it, and frames have no tag.",
        ),
    ],
};

/// A VM's own time.
static TIME: Table = Table {
    name: "time",
    head: "time = { ... }",
    says: "A virtual machine's own time. If it is the host's, nothing is emulated, and it costs nothing.",
    keys: &[
        key(
            "frequency",
            Form::Frequency(*Time::FREQUENCY.start() as u64..=*Time::FREQUENCY.end() as u64),
            Absent::Said(Value::Number(0), "that of the host on which it is created"),
            ALONE,
            "\"62.5M\"",
            "The frequency of its counters, for all its life and on whatever host.",
        ),
        key(
            "rate",
            Form::Millionths(*Time::RATE.start() as u64..=*Time::RATE.end() as u64, "how fast its time passes"),
            usual(Time::REAL as u64),
            ALONE,
            "\"0.5\"",
            "How fast its time passes: at half of real time a real minute is thirty seconds to it.",
        ),
        key(
            "source",
            Form::Choice(&TimeSource::NAMES, "which counter and timers the guest is told of"),
            usual(0),
            ALONE,
            "\"mmio\"",
            "Which counter and timers its device tree names: those of the CPU (`cp15`), or only the memory-mapped one (`mmio`), from which Linux before 6.18 takes all of its time. `auto` chooses the latter if its time is not the host's and the CPU cannot show it (no FEAT_ECV).",
        ),
        key(
            "away",
            Form::Choice(&TimeAway::NAMES, "what becomes of the time that it is saved"),
            usual(0),
            ALONE,
            "\"freeze\"",
            "Whether time passes between `croft save` and `croft restore`: with `advance` it has passed for the guest too, whose clocks are right at once (as far as both hosts have a clock); with `freeze` its clocks have stood still. Linux takes a jump of more than 20 s for a CPU that stood still, and may print a soft lockup and an RCU stall once, unless its `kernel.watchdog_thresh` is longer: `freeze` is for guests whose log must not have that. The choice goes with the saved VM.",
        ),
    ],
};

impl Table {
    /// The tables that stand in it as values of its keys.
    pub(super) fn inner(&self) -> impl Iterator<Item = &'static Table> {
        self.keys.iter().filter_map(|key| match key.form {
            Form::Table(table) | Form::Tables(table, ..) | Form::Named(table, ..) => Some(table),
            _ => None,
        })
    }

    /// Its keys, as one would write them in one line: those that go together.
    pub(super) fn example(&self) -> String {
        let is_apart = |key: &Key| matches!(key.needs, Needs::Without(..));
        let is_of = |key: &Key, other: &Key| matches!(key.needs, Needs::Key(name, _) if name == other.name);
        let goes = |key: &&Key| {
            !self.keys.iter().any(|other| is_apart(other) && (key.name == other.name || is_of(key, other)))
        };
        let keys = self.keys.iter().filter(goes);
        keys.map(|key| format!("{} = {}", key.name, key.example)).collect::<Vec<_>>().join(", ")
    }

    /// The names of all keys.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.keys.iter().map(|key| key.name).collect()
    }
}

/// The names of the groups of calls.
pub(super) fn calls() -> [&'static str; 4] {
    Group::LIST.map(Group::name)
}

/// A list of texts as it stands in a file.
fn list(names: impl Iterator<Item = &'static str>) -> String {
    names.map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

impl Form {
    /// The range of what may stand there, in words; what is said of a wrong value ends with it.
    pub(super) fn range(&self) -> String {
        match self {
            Self::Text(text) | Self::Texts(text, ..) => text.range(),
            Self::Flag => "true or false".to_owned(),
            Self::Number(range, _) | Self::Bound(range, _) => format!("from {} to {}", range.start(), range.end()),
            Self::Size(_, range, step) => {
                let (least, most, step) = (size::show(*range.start()), size::show(*range.end()), size::show(*step));
                format!("{least} to {most}, in steps of {step}")
            }
            Self::Frequency(range) => {
                let [least, most] = [range.start(), range.end()].map(|&hertz| decimal::show_frequency(hertz));
                format!("from {least} to {most}")
            }
            Self::Millionths(range, _) => {
                let [least, most] = [range.start(), range.end()].map(|&millionths| decimal::show(millionths, MILLION));
                format!("from {least} to {most}")
            }
            Self::Table(table) | Self::Tables(table, ..) | Self::Named(table, ..) => {
                format!("a table with {}", table.names().join(", "))
            }
            Self::Address(alignment) => format!("a multiple of {alignment}"),
            Self::Cpus => "from 0 to 63".to_owned(),
            Self::Choice(names, _) => list(names.iter().copied()),
            Self::Action | Self::Actions => Action::NAMES.join(", "),
            Self::Calls => list(calls().into_iter()),
        }
    }

    /// What may stand there, for the page.
    pub(super) fn described(&self) -> String {
        let range = self.range();
        match self {
            Self::Text(_) => format!("text: {}", range.rsplit_once(" is ").map_or(&*range, |(_, rule)| rule)),
            Self::Texts(_, most, _) => format!("text, or a list of up to {most}: {range}"),
            Self::Flag => "`true` or `false`".to_owned(),
            Self::Number(..) => format!("a whole number {range}"),
            Self::Size(..) => format!("a size, {range}"),
            Self::Bound(..) => format!("a whole number or a size, {range}"),
            Self::Frequency(_) => format!("a frequency in hertz as text, {range}"),
            Self::Millionths(..) => format!("a number as text, {range}"),
            Self::Table(_) => range,
            Self::Tables(_, most, _) => format!("{range}, or a list of up to {most}"),
            Self::Named(_, most, _) => format!("a name, {range}, or a list of up to {most}"),
            Self::Address(_) => format!("an address as text, {range}"),
            Self::Cpus => format!("a list of CPU numbers {range}, not empty"),
            Self::Choice(..) => format!("one of {range}"),
            Self::Action => format!("one of {}", list(Action::NAMES.into_iter())),
            Self::Actions => format!("a list of {}, not empty", list(Action::NAMES.into_iter())),
            Self::Calls => format!("a list of {range}"),
        }
    }

    /// A value as one would write it.
    pub(super) fn shown(&self, value: &Value) -> String {
        match (self, value) {
            (_, Value::Flag(on)) => on.to_string(),
            (_, Value::Text(text)) => format!("\"{text}\""),
            (Self::Choice(names, _), Value::Number(number)) => {
                format!("\"{}\"", names.get(*number as usize).unwrap_or(&"?"))
            }
            (Self::Action, Value::Number(number)) => {
                format!("\"{}\"", Action::from_number(*number).map_or("?", Action::name))
            }
            (Self::Calls, Value::Number(bits)) => {
                format!("[{}]", list((0..).zip(calls()).filter(|(bit, _)| bits >> bit & 1 != 0).map(|(_, name)| name)))
            }
            (Self::Millionths(..), Value::Number(millionths)) => format!("\"{}\"", decimal::show(*millionths, MILLION)),
            (_, Value::Table(_) | Value::Tables(_)) => "{}".to_owned(),
            (_, Value::Texts(_)) => "[]".to_owned(),
            (Self::Size(..), Value::Number(bytes)) => format!("\"{}\"", size::show(*bytes)),
            (_, Value::Number(number)) => number.to_string(),
        }
    }
}
