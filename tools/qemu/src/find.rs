//! Which QEMU to use: the one named by `UNDERCROFT_QEMU`, the one on PATH if it is new enough, or the one that
//! `cargo xtask setup` put into `.undercroft/bin`.

use crate::{Error, io};
use serde_json::{Value, json};
use std::env;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PROGRAM: &str = "qemu-system-aarch64";

/// The oldest QEMU that will do: the first that implements WFE as the architecture says.
pub const MINIMUM: Version = Version { major: 11, minor: 1, micro: 0 };

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl Version {
    /// Reads the version out of what `--version` prints: `QEMU emulator version 11.1.3 (Debian ...)`.
    pub fn parse(printed: &str) -> Option<Version> {
        let after = printed.split_once("version ")?.1;
        let number = after.split(|letter: char| !(letter.is_ascii_digit() || letter == '.')).next()?;
        let mut parts = number.split('.').map(|part| part.parse().ok());
        let (major, minor) = (parts.next()??, parts.next()??);
        Some(Version { major, minor, micro: parts.next().flatten().unwrap_or(0) })
    }
}

/// A QEMU that can be started and is new enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// The program: a path, or a name that PATH resolves.
    pub program: PathBuf,
    /// Its version, at least [`MINIMUM`].
    pub version: Version,
}

impl Qemu {
    /// Whether it has a CPU model of this name with AArch64.
    #[must_use]
    pub fn has_wide_model(&self, name: &str) -> bool {
        let output = Command::new(&self.program).args(["-cpu", "help"]).output();
        let printed = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        wide_models(&printed).any(|model| model == name)
    }

    /// The properties that may be given to the CPUs of a model; `None` if it does not tell.
    #[must_use]
    pub fn cpu_properties(&self, model: &str) -> Option<Vec<Property>> {
        // `-device TYPE,help` does without a machine, and without one a model does not have all.
        let words = ["-M", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"];
        let mut asked = Command::new(&self.program);
        asked.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut qemu = asked.spawn().ok()?;
        let list =
            json!({ "execute": "device-list-properties", "arguments": { "typename": format!("{model}-arm-cpu") } });
        let orders = [json!({ "execute": "qmp_capabilities" }), list, json!({ "execute": "quit" })];
        let sent = orders.iter().try_for_each(|order| writeln!(qemu.stdin.as_mut()?, "{order}").ok());
        let output = qemu.wait_with_output().ok()?;
        let properties = properties(&String::from_utf8_lossy(&output.stdout));
        (sent.is_some() && !properties.is_empty()).then_some(properties)
    }
}

/// The models in what `-cpu help` prints, a name a line, without those that have AArch32 alone.
fn wide_models(printed: &str) -> impl Iterator<Item = &str> {
    const NARROW: [&str; 10] =
        ["arm", "cortex-m", "cortex-r", "cortex-a7 ", "cortex-a8 ", "cortex-a9 ", "cortex-a15 ", "pxa", "sa1", "ti9"];
    let names = printed.lines().filter_map(|line| line.strip_prefix("  ")).map(str::trim);
    names.filter(|name| !NARROW.iter().any(|narrow| format!("{name} ").starts_with(narrow)))
}

/// A property of a model of CPUs, which may be given behind its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub form: Form,
}

/// What a property takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `on` or `off`.
    Flag,
    /// A whole number without a sign of at most so many bits.
    Number(u32),
    /// One with a sign.
    Signed(u32),
    /// What this program knows nothing of.
    Other,
}

impl Form {
    /// By QEMU's name of the type. What is wired up inside of QEMU cannot be given.
    fn of(word: &str) -> Option<Form> {
        Some(match word {
            "bool" => Form::Flag,
            "uint8" => Form::Number(8),
            "uint16" => Form::Number(16),
            "uint32" => Form::Number(32),
            "uint64" => Form::Number(64),
            "int32" => Form::Signed(32),
            "int64" => Form::Signed(64),
            _ if word.starts_with("link<") || word.starts_with("child<") => return None,
            _ => Form::Other,
        })
    }

    /// Whether QEMU takes `value`: its words for yes and no (`qapi_bool_parse`), and numbers as C writes them.
    #[must_use]
    pub fn takes(self, value: &str) -> bool {
        let number = |digits: &str, bits: u32| {
            let hexadecimal =
                digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")).map(|digits| (digits, 16));
            let octal = digits.strip_prefix('0').filter(|rest| !rest.is_empty()).map(|digits| (digits, 8));
            let (digits, radix) = hexadecimal.or(octal).unwrap_or((digits, 10));
            let unsigned = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            u64::from_str_radix(digits, radix).ok().filter(|_| unsigned).is_some_and(|number| number >> (bits - 1) <= 1)
        };
        match self {
            Form::Flag => ["on", "yes", "true", "y", "off", "no", "false", "n"].contains(&value),
            Form::Number(bits) => number(value, bits),
            Form::Signed(bits) => number(value.strip_prefix('-').unwrap_or(value), bits - 1),
            Form::Other => true,
        }
    }

    /// What it takes, in words.
    #[must_use]
    pub fn described(self) -> &'static str {
        match self {
            Form::Flag => "on or off",
            Form::Number(_) => "a whole number",
            Form::Signed(_) => "a whole number, also below 0",
            Form::Other => "something else",
        }
    }
}

/// The properties in what QEMU answers, of which one line has the list.
fn properties(answers: &str) -> Vec<Property> {
    let lists = answers.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lists = lists.filter_map(|answer| Some(answer.get("return")?.as_array()?.clone()));
    let property = |about: Value| {
        let form = Form::of(about.get("type")?.as_str()?)?;
        Some(Property { name: about.get("name")?.as_str()?.to_owned(), form })
    };
    lists.flatten().filter_map(property).collect()
}

/// Finds a QEMU that is new enough, looking for `.undercroft` upwards from the current folder, from this program's own
/// folder, and from the work tree that this program was built in: installed elsewhere, it finds that tree's.
///
/// # Errors
/// [`Error::Missing`] if there is none at all, [`Error::TooOld`] if all there are are too old.
pub fn find() -> Result<Qemu, Error> {
    find_from(&starts())
}

/// From where [`find`] looks.
fn starts() -> Vec<PathBuf> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    env::current_dir().into_iter().chain(env::current_exe()).chain([own]).collect()
}

/// As [`find`], with the folders given from which `.undercroft` is looked for upwards.
///
/// # Errors
/// As [`find`].
pub fn find_from(starts: &[PathBuf]) -> Result<Qemu, Error> {
    let named = env::var_os("UNDERCROFT_QEMU").filter(|named| !named.is_empty());
    choose(named.as_deref().map(Path::new), Path::new(PROGRAM), starts)
}

/// The one that is named; else the one on PATH, if it will do; else the first that setup made.
fn choose(named: Option<&Path>, on_path: &Path, starts: &[PathBuf]) -> Result<Qemu, Error> {
    if let Some(named) = named {
        return check(named).map_err(|error| Error::Named(Box::new(error)));
    }
    let from_path = check(on_path);
    if from_path.is_ok() {
        return from_path;
    }
    let own = starts.iter().flat_map(|start| start.ancestors()).map(|up| up.join(".undercroft/bin").join(PROGRAM));
    match own.into_iter().find(|program| program.is_file()) {
        Some(program) => check(&program),
        None => from_path,
    }
}

/// Asks one program for its version.
fn check(program: &Path) -> Result<Qemu, Error> {
    let output = match Command::new(program).arg("--version").output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && program == Path::new(PROGRAM) => {
            return Err(Error::Missing);
        }
        Err(error) => return Err(io(format!("{} --version", program.display()))(error)),
    };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let program = program.to_path_buf();
    match Version::parse(&printed) {
        Some(version) if version >= MINIMUM => Ok(Qemu { program, version }),
        Some(found) => Err(Error::TooOld { program, found }),
        None => Err(Error::NoVersion { program, printed }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn reads_what_qemu_prints() {
        let debian = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright (c)";
        assert_eq!(Version::parse(debian), Some(Version { major: 11, minor: 1, micro: 3 }));
        assert_eq!(Version::parse("QEMU emulator version 12.0"), Some(Version { major: 12, minor: 0, micro: 0 }));
        assert_eq!(Version::parse("a window system"), None);
        assert_eq!(Version::parse("version next"), None);
    }

    /// A program in `folder` that says that it is QEMU of this version.
    fn played(folder: &Path, version: &str) -> PathBuf {
        std::fs::create_dir_all(folder).expect("a folder");
        let place = folder.join(PROGRAM);
        std::fs::write(&place, format!("#!/bin/sh\necho QEMU emulator version {version}\n")).expect("written");
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).expect("made a program");
        place
    }

    /// Wherever below a tree of ours somebody stands, and wherever croft was installed: setup's is found, the nearest one first; but
    /// what is named, and what is on PATH and new enough, comes before it.
    #[test]
    fn the_one_of_setup_is_found_from_below_and_from_elsewhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |path: &str| folder.path().join(path);
        let outer = played(&at("tree/.undercroft/bin"), "12.0.0");
        let inner = played(&at("tree/inner/.undercroft/bin"), "12.1.0");
        let (nowhere, old, new) = (at("nowhere"), played(&at("old"), "10.0.2"), played(&at("new"), "11.1.0"));
        let chosen = |named: Option<&Path>, on_path: &Path, starts: &[&str]| {
            let starts: Vec<PathBuf> = starts.iter().map(|start| at(start)).collect();
            choose(named, on_path, &starts).map(|found| found.program).map_err(|error| error.to_string())
        };
        for start in ["tree", "tree/sites", "tree/a/b/c/d", "tree/target/release/croft"] {
            assert_eq!(chosen(None, &nowhere, &[start]), Ok(outer.clone()), "{start}");
            // The tree that croft was built in is looked at last.
            assert_eq!(chosen(None, &nowhere, &["elsewhere", "bin/croft", start]), Ok(outer.clone()), "{start}");
        }
        assert_eq!(chosen(None, &nowhere, &["tree/inner/sites", "tree"]), Ok(inner.clone()));
        assert_eq!(chosen(None, &old, &["tree/inner/sites", "tree"]), Ok(inner));
        assert_eq!(chosen(None, &new, &["tree"]), Ok(new.clone()));
        assert_eq!(chosen(Some(&new), &old, &["tree"]), Ok(new));
        assert!(chosen(Some(&old), &nowhere, &["tree"]).is_err_and(|said| said.contains("10.0.2")));
        assert!(chosen(None, &old, &["elsewhere"]).is_err_and(|said| said.contains("10.0.2")));
    }

    #[test]
    fn it_is_looked_for_here_beside_croft_and_where_croft_was_built() {
        let here = env::current_dir().expect("this folder");
        let own = env::current_exe().expect("this program");
        assert_eq!(starts(), [here, own, PathBuf::from(env!("CARGO_MANIFEST_DIR"))]);
    }

    #[test]
    fn knows_models_that_are_64_bit() {
        let printed =
            "Available CPUs:\n  arm926\n  cortex-a15\n  cortex-a7\n  cortex-a76\n  cortex-m33\n  cortex-x9\n  max\n";
        assert_eq!(wide_models(printed).collect::<Vec<_>>(), ["cortex-a76", "cortex-x9", "max"]);
    }

    #[test]
    fn knows_what_properties_take() {
        let printed = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}
{"return": {}}
{"return": [{"name": "cntfrq", "type": "uint64", "default-value": 0}, {"name": "core-count", "type": "int32"}]}
{"return": [{"name": "memory", "type": "link<memory-region>"}, {"name": "pauth", "type": "bool"}]}
{"return": [{"name": "unnamed-gpio-in[0]", "type": "child<irq>"}, {"name": "x-new", "type": "str"}]}
{"event": "SHUTDOWN"}
no JSON
{"error": {"class": "GenericError"}}
"#;
        let found: Vec<_> = properties(printed).into_iter().map(|found| (found.name, found.form)).collect();
        let expected = [("cntfrq", Form::Number(64)), ("core-count", Form::Signed(32)), ("pauth", Form::Flag)];
        let expected = expected.into_iter().chain([("x-new", Form::Other)]);
        assert_eq!(found, expected.map(|(name, form)| (name.to_owned(), form)).collect::<Vec<_>>());
        for (form, good, bad) in [
            (Form::Flag, &["on", "off", "yes", "n"][..], &["", "1", "ON", "maybe"][..]),
            (
                Form::Number(64),
                &["0", "62500000", "0x10", "017", "18446744073709551615"],
                &["", "abc", "-1", "+1", "0x", "08"],
            ),
            (Form::Number(32), &["4294967295"], &["4294967296"]),
            (Form::Signed(32), &["-1", "2147483647"], &["2147483648", "--1", "one"]),
            (Form::Other, &["", "anything"], &[]),
        ] {
            good.iter().for_each(|value| assert!(form.takes(value), "{form:?} {value}"));
            bad.iter().for_each(|value| assert!(!form.takes(value), "{form:?} {value}"));
        }
    }

    #[test]
    fn orders_versions() {
        let old = Version { major: 10, minor: 9, micro: 9 };
        assert!(old < MINIMUM);
        assert!(Version { major: 11, minor: 1, micro: 3 } > MINIMUM);
    }

    #[test]
    fn says_what_is_needed() {
        let error = Error::TooOld { program: "qemu".into(), found: Version { major: 10, minor: 0, micro: 2 } };
        let text = error.to_string();
        assert!(text.contains("10.0.2") && text.contains("11.1.0") && text.contains("cargo xtask setup"), "{text}");
    }
}
