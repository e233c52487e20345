//! `cargo xtask`: everything that a developer or CI does with this work tree.
//!
//! Run it with `--help` for the list. Each command is a module; this file only reads the command line.

mod cpio;
mod setup;
mod tree;

use anyhow::Result;
use clap::{Parser, Subcommand};
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
}

fn main() -> Result<()> {
    let tree = Tree::find()?;
    match Arguments::parse().command {
        Command::Setup { all } => setup::setup(&tree, if all { setup::Extent::All } else { setup::Extent::Demo }),
    }
}
