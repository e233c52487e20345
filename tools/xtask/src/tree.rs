//! Paths in the work tree, and how other programs are called.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The name of the target that everything on bare metal is built for.
pub(crate) const TARGET: &str = "aarch64-unknown-none-softfloat";

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
