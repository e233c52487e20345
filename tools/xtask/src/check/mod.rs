//! `cargo xtask test`: everything that CI checks, part by part, and one line at the end with the result.
//!
//! A failed part does not stop the others. A test that can't be run here is skipped with its reason shown; it never passes.

mod harness;
pub(crate) mod parts;
pub(crate) mod payloads;
mod skips;
mod tally;

use crate::tree::Tree;
use anyhow::{Result, bail};
use clap::ValueEnum;
use std::time::Instant;

pub(crate) use harness::Each;
pub(crate) use tally::Tally;

/// How many of the slowest are shown at the end.
const SLOWEST: usize = 10;

/// A part of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Formatting, the rules of the tree, clippy on everything
    Lint,
    /// The tests of everything that runs on this machine
    Host,
    /// Building everything for bare metal
    Build,
    /// The bare-metal payloads, as guests
    Payloads,
    /// Whole systems: Linux guests under the hypervisor
    System,
    /// The budgets: instructions per operation
    Bench,
}

/// What is to be tested.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only tests whose name contains this
    name: Option<String>,
    /// Only these parts
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// Only what needs no emulated machine: lint and host
    #[arg(long)]
    quick: bool,
}

impl Arguments {
    /// Whether any part needs an emulated machine.
    pub(crate) fn needs_setup(&self) -> bool {
        self.parts().iter().any(needs_build)
    }

    fn parts(&self) -> Vec<Part> {
        let wanted = |part: &Part| match (self.quick, &self.only[..], &self.name) {
            (true, ..) => matches!(part, Part::Lint | Part::Host),
            // A name is looked for where tests have names; what is needed to run them is built.
            (false, [], Some(_)) => !matches!(part, Part::Lint | Part::Bench),
            (false, [], None) => true,
            (false, only, _) => only.contains(part) || (*part == Part::Build && only.iter().any(needs_build)),
        };
        Part::value_variants().iter().copied().filter(wanted).collect()
    }
}

fn needs_build(part: &Part) -> bool {
    matches!(part, Part::Payloads | Part::System | Part::Bench)
}

/// Whether a name selects among the tests of a part.
fn has_names(part: &Part) -> bool {
    matches!(part, Part::Host | Part::Payloads | Part::System)
}

/// Runs the parts and prints the closing line; fails if anything failed.
pub(crate) fn test(tree: &Tree, arguments: &Arguments) -> Result<()> {
    let name = arguments.name.as_deref().unwrap_or_default();
    let mut total = Tally::default();
    let mut ran = Vec::new();
    for part in arguments.parts() {
        println!("\n== {}", title(part));
        let start = Instant::now();
        let tally = parts::run(tree, part, name).unwrap_or_else(|error| Tally::failure(format!("{error:#}")));
        println!("== {}: {tally} ({:.0} s)", title(part), start.elapsed().as_secs_f64());
        ran.push((part, !tally.is_empty()));
        total += tally;
    }
    total += of_unknown_name(name, &ran);
    println!();
    total.slowest(SLOWEST).iter().for_each(|(time, what)| println!("{:7.1} s  {what}", time.as_secs_f64()));
    total.skipped.iter().for_each(|why| println!("skipped: {why}"));
    total.failures.iter().for_each(|what| println!("FAILED: {what}"));
    println!("{total}");
    if !total.failures.is_empty() || total.failed > 0 {
        bail!("not everything passed");
    }
    Ok(())
}

/// A failure if a name selected nothing in the parts that have run, each with whether anything was counted in it.
fn of_unknown_name(name: &str, ran: &[(Part, bool)]) -> Tally {
    let is_found = ran.iter().any(|(part, has_counted)| has_names(part) && *has_counted);
    if name.is_empty() || is_found {
        return Tally::default();
    }
    Tally::failure(format!("no test has {name:?} in its name"))
}

fn title(part: Part) -> String {
    part.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Arguments, Part, of_unknown_name};
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// That everything was built says nothing about a name.
    #[test]
    fn a_name_that_no_test_has_is_a_failure() {
        let nothing = [(Part::Host, false), (Part::Build, true), (Part::Payloads, false), (Part::System, false)];
        assert_eq!(of_unknown_name("no-such-name", &nothing).failures, ["no test has \"no-such-name\" in its name"]);
        assert_eq!(of_unknown_name("lint", &[(Part::Lint, true)]).failed, 1);
        assert!(of_unknown_name("", &nothing).is_empty());
        for part in [Part::Host, Part::Payloads, Part::System] {
            assert!(of_unknown_name("a_name", &[(Part::Build, true), (part, true)]).is_empty(), "{part:?}");
        }
    }

    /// On a fresh clone the test command fetches first whatever could else be skipped: nothing that was asked for, only for the want of it.
    #[test]
    fn what_could_be_skipped_for_want_of_setup_is_fetched() {
        let needs_setup = |words: &str| {
            let line = ["test"].into_iter().chain(words.split_whitespace());
            Line::try_parse_from(line).expect(words).arguments.needs_setup()
        };
        let parts = ["payloads", "system", "bench"].map(|part| format!("--only {part}"));
        for words in ["", "a_name", "--only lint --only system"].into_iter().chain(parts.iter().map(String::as_str)) {
            assert!(needs_setup(words), "{words:?}");
        }
        for words in ["--quick", "--quick a_name", "--only lint", "--only host a_name", "--only build"] {
            assert!(!needs_setup(words), "{words:?}");
        }
    }
}
