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
mod predictors;
mod setup;
mod shipped;
mod size;
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

/// Builds the hypervisor and croft, and becomes `croft run`: its exit status is ours, and signals reach it. Comes back only if
/// that does not work.
fn demonstrate(tree: &Tree, arguments: &[String]) -> Result<()> {
    compile::hypervisor(tree)?;
    let mut croft = std::process::Command::new(compile::croft(tree)?);
    croft.args(["run", "--image"]).arg(compile::hypervisor_image(tree));
    if run::site_among(arguments).is_none() {
        croft.arg(tree.path("demo/site.toml"));
    }
    let error = croft.args(arguments).exec();
    Err(error).with_context(|| format!("starting {}", tree::words(&croft)))
}
