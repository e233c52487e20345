//! Which QEMU to use: the one named by `UNDERCROFT_QEMU`, the one on PATH if it is new enough, or the one that
//! `cargo xtask setup` put into `.undercroft/bin`.

use crate::{Error, io};
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

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
}

/// The models in what `-cpu help` prints, a name a line, without those that have AArch32 alone.
fn wide_models(printed: &str) -> impl Iterator<Item = &str> {
    const NARROW: [&str; 10] =
        ["arm", "cortex-m", "cortex-r", "cortex-a7 ", "cortex-a8 ", "cortex-a9 ", "cortex-a15 ", "pxa", "sa1", "ti9"];
    let names = printed.lines().filter_map(|line| line.strip_prefix("  ")).map(str::trim);
    names.filter(|name| !NARROW.iter().any(|narrow| format!("{name} ").starts_with(narrow)))
}

/// Finds a QEMU that is new enough, looking for `.undercroft` upwards from the current folder, from this program's own
/// folder, and from the work tree that this program was built in: installed elsewhere, it finds that tree's.
///
/// # Errors
/// [`Error::Missing`] if there is none at all, [`Error::TooOld`] if all there are are too old.
pub fn find() -> Result<Qemu, Error> {
    let mut starts = Vec::new();
    starts.extend(env::current_dir().ok());
    starts.extend(env::current_exe().ok());
    starts.push(PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    find_from(&starts)
}

/// As [`find`], with the folders given from which `.undercroft` is looked for upwards.
///
/// # Errors
/// As [`find`].
pub fn find_from(starts: &[PathBuf]) -> Result<Qemu, Error> {
    if let Some(named) = env::var_os("UNDERCROFT_QEMU").filter(|named| !named.is_empty()) {
        return check(Path::new(&named)).map_err(|error| Error::Named(Box::new(error)));
    }
    let from_path = check(Path::new(PROGRAM));
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

    #[test]
    fn reads_what_qemu_prints() {
        let debian = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright (c)";
        assert_eq!(Version::parse(debian), Some(Version { major: 11, minor: 1, micro: 3 }));
        assert_eq!(Version::parse("QEMU emulator version 12.0"), Some(Version { major: 12, minor: 0, micro: 0 }));
        assert_eq!(Version::parse("a window system"), None);
        assert_eq!(Version::parse("version next"), None);
    }

    #[test]
    fn knows_models_that_are_64_bit() {
        let printed =
            "Available CPUs:\n  arm926\n  cortex-a15\n  cortex-a7\n  cortex-a76\n  cortex-m33\n  cortex-x9\n  max\n";
        assert_eq!(wide_models(printed).collect::<Vec<_>>(), ["cortex-a76", "cortex-x9", "max"]);
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
