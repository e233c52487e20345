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
            Self::CommandLine => text.len() <= bundle::MAX_CMDLINE && !text.contains(['\0', '\n', '\r']),
        };
        if good { Ok(()) } else { Err(self.range()) }
    }
}

/// A model, possibly with properties: `max,pauth-qarma3=on`. QEMU itself judges the properties, but for those that it takes and that
/// leave no CPU for a hypervisor: one without AArch64 executes none of its instructions, so that it could not even say why.
fn check_cpu(cpu: &str) -> Result<(), String> {
    let mut parts = cpu.split(',');
    let model = parts.next().unwrap_or_default();
    for property in parts {
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
    if CPU_MODELS.contains(&model) || qemu::find().is_ok_and(|qemu| qemu.has_wide_model(model)) {
        return Ok(());
    }
    let hint = nearest(model, &CPU_MODELS).map_or(String::new(), |known| format!("did you mean \"{known}\"? "));
    let all = CPU_MODELS.join(", ");
    Err(format!("QEMU has no such 64-bit CPU model; {hint}there are {all}, also with properties"))
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
