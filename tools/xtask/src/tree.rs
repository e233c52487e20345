//! Paths in the work tree, and how other programs are called.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::NamedTempFile;

/// The name of the target that everything on bare metal is built for.
pub(crate) const TARGET: &str = "aarch64-unknown-none-softfloat";

/// The name of the target that the loader for UEFI is built for.
pub(crate) const UEFI_TARGET: &str = "aarch64-unknown-uefi";

/// The work tree's folders.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The work tree that this program was built from, or the one around the current folder if it has moved.
    pub(crate) fn find() -> Result<Tree> {
        let built_from = Path::new(env!("CARGO_MANIFEST_DIR"));
        let here = std::env::current_dir().context("the current folder")?;
        let ups = here.ancestors().chain(built_from.ancestors());
        let root = ups.into_iter().find(|up| up.join("tools/xtask/Cargo.toml").is_file());
        Ok(Tree { root: root.context("run this inside the Undercroft work tree")?.to_path_buf() })
    }

    /// Another one, a copy.
    pub(crate) fn at(root: PathBuf) -> Tree {
        Tree { root }
    }

    /// A path in the work tree.
    pub(crate) fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// A path in the ignored folder that `setup` fills.
    pub(crate) fn store(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(".undercroft").join(below)
    }

    /// A path in cargo's target folder.
    pub(crate) fn target(&self, below: impl AsRef<Path>) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => self.root.join(folder).join(below),
            None => self.root.join("target").join(below),
        }
    }

    /// A command that runs in the work tree's root.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// Cargo, the one that runs us.
    pub(crate) fn cargo(&self) -> Command {
        self.command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }
}

/// Writes a file beside its place and moves it there: whoever reads it meanwhile has the old one or the new one. Beside it under a
/// name of its own, for another `cargo xtask` may be about to write the same.
pub(crate) fn replace(place: &Path, content: &[u8]) -> Result<()> {
    replace_with(place, content, 0o666)
}

/// As [`replace`], with what is in the file `from`, and with its mode.
pub(crate) fn copy(from: &Path, place: &Path) -> Result<()> {
    let reading = || format!("reading {}", from.display());
    let mode = fs::metadata(from).with_context(reading)?.permissions().mode();
    replace_with(place, &fs::read(from).with_context(reading)?, mode)
}

fn replace_with(place: &Path, content: &[u8], mode: u32) -> Result<()> {
    let wrong = || format!("writing {}", place.display());
    let folder = place.parent().with_context(wrong)?;
    sweep(folder);
    let mut fresh = begin(folder, mode).with_context(wrong)?;
    fresh.write_all(content).with_context(wrong)?;
    fresh.persist(place).map(drop).with_context(wrong)
}

/// What the name of a file begins and ends with that is being written.
const FRESH: (&str, &str) = (".tmp", ".new");

/// A file of its own in `folder`, which is locked for as long as it is open: whoever is killed lets go of it.
fn begin(folder: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    // Less what the process's mask takes from it.
    builder.permissions(fs::Permissions::from_mode(mode)).prefix(FRESH.0).suffix(FRESH.1);
    loop {
        let fresh = builder.tempfile_in(folder)?;
        fresh.as_file().lock()?;
        // Before it was locked, another one's `sweep` may have taken it for one that was left.
        if fresh.as_file().metadata()?.nlink() > 0 {
            return Ok(fresh);
        }
    }
}

/// Removes what is left in `folder` of those that were killed: what nobody has locked. Where that fails it stays, and does no harm.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_fresh = |name: &str| name.starts_with(FRESH.0) && name.ends_with(FRESH.1);
        if entry.file_name().to_str().is_some_and(is_fresh)
            && let Ok(left) = fs::File::open(entry.path())
            && left.try_lock().is_ok()
        {
            // It is locked meanwhile: whoever has just made it waits, and finds it gone.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Runs a command to its end; what it prints is seen.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {}", words(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", words(command));
    }
    Ok(())
}

/// Runs a command to its end and gives what it printed on standard output; its errors are shown only when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {}", words(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", words(command), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as one would type it.
pub(crate) fn words(command: &Command) -> String {
    let program = std::iter::once(command.get_program());
    program.chain(command.get_args()).map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{begin, copy, replace};
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;
    use std::thread;

    /// As two builds in one tree do.
    #[test]
    fn two_that_write_one_file_do_not_meet() {
        const WRITERS: usize = 4;
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("demo.cpio");
        let begin = Barrier::new(WRITERS);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (begin, place) = (&begin, &place);
                scope.spawn(move || {
                    begin.wait();
                    for _ in 0..50 {
                        replace(place, &vec![writer as u8; 100_000]).expect("written");
                        let found = fs::read(place).expect("there at any time");
                        assert!(found.len() == 100_000 && found.iter().all(|byte| *byte == found[0]), "half of one");
                    }
                });
            }
        });
        let left: Vec<_> = fs::read_dir(folder.path()).expect("read").map(|entry| entry.expect("one").path()).collect();
        assert_eq!(left, [place]);
    }

    /// What somebody left who was killed goes; what somebody writes stays, and is whole.
    #[test]
    fn what_was_left_half_written_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let [place, left] = ["demo.cpio", ".tmpAbCd.new"].map(|name| folder.path().join(name));
        fs::write(&left, "half").expect("written");
        let mut writing = begin(folder.path(), 0o644).expect("made");
        replace(&place, b"whole").expect("written");
        assert!(!left.exists(), "nobody writes it any more");
        writing.write_all(b"whole too").expect("written");
        writing.persist(&place).expect("nobody has taken it away");
        assert_eq!(fs::read(&place).expect("read"), b"whole too");
    }

    #[test]
    fn a_copy_can_be_executed_if_the_file_can() {
        let folder = tempfile::tempdir().expect("a folder");
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        fs::write(&from, "#!").expect("written");
        for mode in [0o644, 0o755] {
            fs::set_permissions(&from, fs::Permissions::from_mode(mode)).expect("set");
            copy(&from, &to).expect("copied");
            assert_eq!(fs::metadata(&to).expect("there").permissions().mode() & 0o100, mode & 0o100);
        }
        assert_eq!(fs::read(&to).expect("read"), b"#!");
    }
}
