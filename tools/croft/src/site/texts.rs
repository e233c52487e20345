//! The texts of a site file that have their own rules, and the search for what an unknown word was meant to be.

use abi::bundle;

/// Which text.
#[derive(Clone, Copy, Debug)]
pub(super) enum Text {
    /// QEMU's name of a CPU model.
    CpuModel,
    /// A VM's name.
    Name,
    /// A file's.
    Path,
    /// A kernel's command line.
    CommandLine,
    /// A disk's serial number.
    Serial,
    /// The name of a host's disk.
    HostDisk,
    /// A network's name.
    Network,
    /// A station's address.
    Mac,
}

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

impl Text {
    /// What may stand there, in words.
    pub(super) fn range(self) -> String {
        match self {
            Self::CpuModel => "QEMU's name of a 64-bit CPU model with EL2, also with properties".to_owned(),
            Self::Name => bundle::VmProblem::Name.to_string(),
            Self::Path => "a path, relative to the folder of the site file".to_owned(),
            Self::Serial => bundle::VmProblem::Serial.to_string(),
            Self::HostDisk => bundle::VmProblem::HostDisk.to_string(),
            Self::Network => bundle::VmProblem::Network.to_string(),
            Self::Mac => {
                "an address is one of a single station, six pairs of hexadecimal digits: \"52:54:00:12:34:56\""
                    .to_owned()
            }
            Self::CommandLine => format!("a command line is one line of at most {} bytes", bundle::MAX_CMDLINE),
        }
    }

    /// Whether a text may stand there.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub(super) fn check(self, text: &str) -> Result<(), String> {
        let good = match self {
            Self::CpuModel => return check_cpu(text),
            Self::Name => bundle::check_name(text).is_ok(),
            Self::Path => true,
            Self::Serial => bundle::check_serial(text).is_ok(),
            Self::HostDisk => bundle::check_host_disk(text).is_ok(),
            Self::Network => bundle::check_name(text).is_ok(),
            Self::Mac => mac(text).is_some_and(|mac| bundle::check_mac(mac).is_ok()),
            Self::CommandLine => text.len() <= bundle::MAX_CMDLINE && !text.contains(['\0', '\n', '\r']),
        };
        if good { Ok(()) } else { Err(self.range()) }
    }
}

/// An address as six pairs of hexadecimal digits with colons between them.
pub(super) fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut mac {
        let pair =
            pairs.next().filter(|pair| pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    pairs.next().is_none().then_some(mac)
}

/// A model, possibly with properties: `max,pauth-qarma3=on`. Those that QEMU takes and that leave no CPU for a hypervisor are refused
/// too: one without AArch64 executes none of its instructions, so that it could not even say why.
fn check_cpu(cpu: &str) -> Result<(), String> {
    let mut parts = cpu.split(',');
    let model = parts.next().unwrap_or_default();
    // QEMU passes over what is empty.
    let properties: Vec<&str> = parts.filter(|property| !property.is_empty()).collect();
    for property in &properties {
        let (name, value) = property.split_once('=').unwrap_or((property, ""));
        // QEMU's words for "no" (`qapi_bool_parse`).
        let is_off = ["off", "no", "false", "n"].contains(&value);
        match name {
            "aarch64" if is_off => {
                return Err(format!("{property}: a 32-bit CPU cannot execute a 64-bit hypervisor; leave it out"));
            }
            "has_el2" if is_off => {
                return Err(format!("{property}: a hypervisor needs a CPU with EL2; leave it out"));
            }
            _ => {}
        }
    }
    let is_known = CPU_MODELS.contains(&model);
    if is_known && properties.is_empty() {
        return Ok(());
    }
    let qemu = qemu::find().ok();
    if !is_known && !qemu.as_ref().is_some_and(|qemu| qemu.has_wide_model(model)) {
        let hint = nearest(model, &CPU_MODELS).map_or(String::new(), |known| format!("did you mean \"{known}\"? "));
        let all = CPU_MODELS.join(", ");
        return Err(format!("QEMU has no such 64-bit CPU model; {hint}there are {all}, also with properties"));
    }
    let known = qemu.and_then(|qemu| qemu.cpu_properties(model));
    properties.iter().try_for_each(|property| check_property(model, property, known.as_deref()))
}

/// A property of a model, of which `known` are those that QEMU knows, where there is one to ask. Whether they go together it says itself
/// when it starts.
fn check_property(model: &str, property: &str, known: Option<&[qemu::Property]>) -> Result<(), String> {
    let Some((name, value)) = property.split_once('=') else {
        let (name, value) = match property.strip_prefix('-') {
            Some(name) => (name, "off"),
            None => (property.trim_start_matches('+'), "on"),
        };
        return Err(format!("{property}: a property is written with its value, as {name}={value}"));
    };
    let Some(known) = known else { return Ok(()) };
    match known.iter().find(|known| known.name == name) {
        Some(known) if known.form.takes(value) => Ok(()),
        Some(known) => Err(format!("{property}: {name} takes {}", known.form.described())),
        None => {
            let names: Vec<&str> = known.iter().map(|known| &*known.name).collect();
            let hint = match nearest(name, &names) {
                Some(other) => format!("did you mean {other}?"),
                None => format!("it has {}", names.join(", ")),
            };
            Err(format!("{property}: QEMU's {model} has no such property; {hint}"))
        }
    }
}

/// The one of `known` that was probably meant by `name`.
pub(super) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let (away, nearest) = known.iter().map(|other| (distance(name, other), *other)).min()?;
    (away <= 1 + nearest.len() / 3).then_some(nearest)
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
