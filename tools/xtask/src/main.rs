//! `cargo xtask`: everything that a developer or CI does with this work tree.
//!
//! Run it with `--help` for the list. Each command is a module; this file only reads the command line.

mod bench;
mod branches;
mod check;
mod compile;
mod cpio;
mod disk;
mod hooks;
mod image;
mod lint;
mod linux_bench;
mod mutate;
mod net;
mod predictors;
mod setup;
mod shipped;
mod size;
mod stacks;
mod start_calls;
mod starts;
mod switches;
mod transfers;
mod tree;
mod trial;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use croft::run;
use croft::site::Site;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;
use tree::Tree;

/// Builds, runs, tests and measures Undercroft.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch what this machine lacks into .undercroft: QEMU, the target's core, guest kernels
    Setup {
        /// Fetch what the tests need too, not only what `run` needs
        #[arg(long)]
        all: bool,
    },
    /// Build the hypervisor, the payloads and the guests' benchmark for bare metal
    Build,
    /// Run the demonstration: two Linux guests on an emulated machine
    Run {
        /// More arguments for `croft run`; a site file replaces the demonstration's
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check everything that CI checks
    Test(check::Arguments),
    /// Break the project on purpose, and see whether the tests notice
    Mutate(mutate::Arguments),
    /// Count instructions per operation, and hold them against the budgets
    Bench(bench::Arguments),
    /// Check formatting, the rules of the tree, clippy, dependencies
    Lint,
    /// Format everything
    Fmt,
}

fn main() -> ExitCode {
    croft::panics::end_the_program();
    let command = Arguments::parse().command;
    // Before anything is fetched and built, which takes minutes.
    if let Command::Run { arguments } = &command
        && let Some(Err(mistakes)) = run::site_among(arguments).map(|site| Site::read(Path::new(site)))
    {
        eprintln!("{mistakes}");
        return ExitCode::from(croft::session::status::USAGE);
    }
    match perform(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(command: Command) -> Result<()> {
    let tree = Tree::find()?;
    match &command {
        Command::Build | Command::Run { .. } | Command::Bench(_) => setup::when_needed(&tree, setup::Extent::Demo)?,
        Command::Test(arguments) if arguments.needs_setup() => setup::when_needed(&tree, setup::Extent::All)?,
        _ => {}
    }
    match command {
        Command::Setup { all } => setup::setup(&tree, if all { setup::Extent::All } else { setup::Extent::Demo }),
        Command::Build => compile::build(&tree),
        Command::Run { arguments } => demonstrate(&tree, &arguments),
        Command::Test(arguments) => check::test(&tree, &arguments),
        Command::Bench(arguments) => bench::bench(&tree, &arguments),
        Command::Mutate(arguments) => mutate::mutate(&tree, &arguments),
        Command::Lint => lint::lint(&tree),
        Command::Fmt => lint::format(&tree),
    }
}

/// Builds the hypervisor and croft, and becomes `croft run`. Comes back only if that does not work.
fn demonstrate(tree: &Tree, arguments: &[String]) -> Result<()> {
    compile::hypervisor(tree)?;
    let croft = compile::croft(tree)?;
    become_croft(&croft, &compile::hypervisor_image(tree), &tree.path("demo/site.toml"), arguments)
}

/// Becomes `croft run` of the site file among the arguments, or of the demonstration's: its exit status is ours, and signals reach it.
/// Comes back only if that does not work.
fn become_croft(croft: &Path, image: &Path, demonstration: &Path, arguments: &[String]) -> Result<()> {
    let mut croft = std::process::Command::new(croft);
    croft.args(["run", "--image"]).arg(image);
    if run::site_among(arguments).is_none() {
        croft.arg(demonstration);
    }
    let error = croft.args(arguments).exec();
    Err(error).with_context(|| format!("starting {}", tree::words(&croft)))
}

#[cfg(test)]
mod tests {
    use super::become_croft;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::Command;
    use std::{env, fs};

    /// Tells this test that it is to become the program of this name.
    const PLAYED: &str = "XTASK_TEST_PLAYED_CROFT";
    const ARGUMENTS: &str = "XTASK_TEST_ARGUMENTS";

    /// As one that fails, whose VMs failed, and that ran out of time. What becomes croft is this test in a process of its own.
    #[test]
    fn the_status_of_croft_is_that_of_run() {
        if let Some(croft) = env::var_os(PLAYED) {
            let arguments = env::var(ARGUMENTS).expect("arguments");
            let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
            let came_back = become_croft(Path::new(&croft), Path::new("our.img"), Path::new("demo.toml"), &arguments);
            panic!("{came_back:?}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let played = folder.path().join("croft");
        fs::write(&played, "#!/bin/sh\necho \"played: $*\"\nexit $STATUS\n").expect("written");
        fs::set_permissions(&played, fs::Permissions::from_mode(0o755)).expect("made a program");
        for (status, arguments, said) in [
            (0, "", "played: run --image our.img demo.toml\n"),
            (1, "--icount", "played: run --image our.img demo.toml --icount\n"),
            (3, "my.toml", "played: run --image our.img my.toml\n"),
            (124, "my.toml --timeout 5", "played: run --image our.img my.toml --timeout 5\n"),
        ] {
            let mut own = Command::new(env::current_exe().expect("this test's program"));
            own.args(["--exact", "--nocapture", "tests::the_status_of_croft_is_that_of_run"]);
            own.env(PLAYED, &played).env(ARGUMENTS, arguments).env("STATUS", status.to_string());
            let output = own.output().expect("started");
            let printed = String::from_utf8_lossy(&output.stdout);
            assert!(printed.ends_with(said), "{printed}");
            assert_eq!(output.status.code(), Some(status), "{arguments}: {printed}");
        }
    }
}
