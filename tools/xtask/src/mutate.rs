//! `cargo xtask mutate`: breaks the project on purpose, and checks whether the tests notice.
//!
//! For the hypervisor there is our own list of breaks, a patch each, with the test that has to fail (`docs/mutations`).
//! They are tried on a copy of the work tree, one after the other. For a crate of `core/` cargo-mutants makes the
//! breaks; `docs/mutations/accepted.toml` has those that may survive, with reasons. docs/mutations.md has the results.

use crate::check::payloads::{self, Until};
use crate::check::{Each, Tally, parts};
use crate::compile;
use crate::tree::{self, Tree};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What is to be broken.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// `el2`, or a crate of core/
    #[arg(long, value_name = "PART", default_value = "el2")]
    part: String,
    /// Only breaks whose name contains one of these
    names: Vec<String>,
}

/// A break of the hypervisor's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutation {
    patch: String,
    breaks: String,
    test: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    mutation: Vec<Mutation>,
}

/// A break of cargo-mutants' that may survive.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Accepted {
    /// Its words, without the line.
    mutant: String,
    /// How many breaks with these words the reason speaks of; one more with the same words is not accepted.
    #[serde(default = "once")]
    times: usize,
    reason: String,
}

fn once() -> usize {
    1
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AcceptedTable {
    #[serde(default)]
    accepted: Vec<Accepted>,
}

/// Tries the breaks of a part; fails if one stays unseen.
pub(crate) fn mutate(tree: &Tree, arguments: &Arguments) -> Result<()> {
    let names = &arguments.names;
    if arguments.part == "el2" { hypervisor(tree, names) } else { of_crate(tree, &arguments.part, names) }
}

fn folder(tree: &Tree) -> PathBuf {
    tree.path("docs/mutations")
}

fn patch(tree: &Tree, mutation: &Mutation) -> PathBuf {
    folder(tree).join(format!("{}.patch", mutation.patch))
}

fn read(tree: &Tree) -> Result<Vec<Mutation>> {
    let path = folder(tree).join("table.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let table: Table = toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
    Ok(table.mutation)
}

/// Whether all patches are in the table, and apply, and the table of survivors is in order: for the lint.
pub(crate) fn all_apply(tree: &Tree) -> Result<()> {
    let mutations = read(tree)?;
    let mut wrong = Vec::new();
    let named: BTreeSet<&str> = mutations.iter().map(|mutation| &*mutation.patch).collect();
    for entry in fs::read_dir(folder(tree))? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|ending| ending == "patch") && !named.contains(&*stem) {
            wrong.push(format!("{} is not in table.toml", path.display()));
        }
    }
    for mutation in &mutations {
        let check = tree.command("git").args(["apply", "--check"]).arg(patch(tree, mutation)).output()?;
        if !check.status.success() {
            let said = String::from_utf8_lossy(&check.stderr);
            wrong.push(format!("{}.patch no longer applies; make it anew: {}", mutation.patch, said.trim()));
        }
    }
    let accepted = read_accepted(tree)?;
    for pair in accepted.windows(2) {
        if file_of(&pair[0]) > file_of(&pair[1]) {
            wrong.push(format!(
                "accepted.toml is sorted by file, but has after {}: {}",
                file_of(&pair[0]),
                pair[1].mutant
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The file of a row's break.
fn file_of(row: &Accepted) -> &str {
    row.mutant.split(':').next().unwrap_or_default()
}

/// What became of a break.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Caught,
    Survived,
    /// It could not be tried.
    Wrong(String),
}

/// Whether `mutation` is one of those that are named, or all are meant.
fn is_named(mutation: &Mutation, names: &[String]) -> bool {
    names.is_empty() || names.iter().any(|name| mutation.patch.contains(name))
}

fn hypervisor(tree: &Tree, names: &[String]) -> Result<()> {
    ensure!(std::env::var_os("CARGO_TARGET_DIR").is_none(), "unset CARGO_TARGET_DIR: broken images would go there");
    let chosen: Vec<Mutation> = read(tree)?.into_iter().filter(|mutation| is_named(mutation, names)).collect();
    ensure!(!chosen.is_empty(), "no break in docs/mutations has \"{}\" in its name", names.join("\" or \""));
    let copy = copy(tree)?;
    // The payloads too: a test of whole systems takes them as it finds them.
    compile::build(&copy)?;
    // A test that fails anyway would prove nothing.
    let tests: BTreeSet<&str> = chosen.iter().map(|mutation| &*mutation.test).collect();
    let mut sound = BTreeMap::new();
    for test in tests {
        let tally = run_test(&copy, test)?;
        let wrong = match &tally {
            tally if tally.failed > 0 => format!("the test fails without any break: {}", tally.failures.join("; ")),
            tally if tally.passed == 0 => "there is no such test".to_owned(),
            _ => String::new(),
        };
        sound.insert(test.to_owned(), wrong);
    }
    let mut fates = Vec::new();
    for mutation in chosen {
        println!("\n== {}: {}", mutation.patch, mutation.breaks);
        let fate = match sound.get(&mutation.test) {
            Some(wrong) if !wrong.is_empty() => Fate::Wrong(wrong.clone()),
            _ => try_one(&copy, &mutation).unwrap_or_else(|error| Fate::Wrong(format!("{error:#}"))),
        };
        println!("== {}: {fate:?}", mutation.patch);
        fates.push((mutation, fate));
    }
    println!();
    for (mutation, fate) in &fates {
        let Mutation { patch, breaks, test } = mutation;
        let said = match fate {
            Fate::Caught => "caught",
            Fate::Survived => "SURVIVED",
            Fate::Wrong(why) => why,
        };
        println!("| `{patch}` | {breaks} | `{test}` | {said} |");
    }
    let unseen = fates.iter().filter(|(_, fate)| *fate != Fate::Caught).count();
    ensure!(unseen == 0, "{unseen} of {} breaks were not seen", fates.len());
    Ok(())
}

/// Applies one break to the copy, and runs its test there.
fn try_one(copy: &Tree, mutation: &Mutation) -> Result<Fate> {
    let path = patch(copy, mutation);
    tree::output(copy.command("git").arg("apply").arg(&path)).context("it does not apply")?;
    let built = compile::hypervisors(copy).context("it does not build");
    let tried = built.and_then(|()| run_test(copy, &mutation.test));
    tree::output(copy.command("git").args(["apply", "--reverse"]).arg(&path)).context("it cannot be taken back")?;
    Ok(if tried?.failed > 0 { Fate::Caught } else { Fate::Survived })
}

/// Runs the tests that a row of the table names.
fn run_test(copy: &Tree, test: &str) -> Result<Tally> {
    match test.split(' ').collect::<Vec<_>>()[..] {
        ["system", binary, scenario] => {
            let mut cargo = copy.cargo();
            cargo.args([
                "test",
                "-p",
                "system",
                "--test",
                binary,
                "--",
                "--format=pretty",
                "--test-threads=1",
                scenario,
            ]);
            parts::harness(&mut cargo, Each::Test)
        }
        ["host", package, name] => {
            let mut cargo = copy.cargo();
            cargo.args(["test", "-p", package, "--", name]);
            parts::harness(&mut cargo, Each::Program)
        }
        [name] if name.contains("::") => payloads::run(copy, name, Until::Failure),
        _ => bail!("\"{test}\": a test is PAYLOAD::TEST, system BINARY SCENARIO or host CRATE TEST"),
    }
}

/// A copy of the work tree as it is, with what `setup` has fetched and a target folder of its own.
fn copy(tree: &Tree) -> Result<Tree> {
    let root = tree.target("mutate/tree");
    let files = tree::output(tree.command("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let files: Vec<&str> = files.lines().filter(|file| tree.path(file).is_file()).collect();
    for folder in ["core", "docs", "el2", "guest", "tests", "tools"] {
        remove_what_is_gone(&root, folder.as_ref(), &files.iter().map(Path::new).collect())?;
    }
    for file in files {
        let (from, to) = (tree.path(file), root.join(file));
        // What is as it was keeps its time, and cargo what it made of it.
        let text = fs::read(&from).with_context(|| format!("reading {file}"))?;
        if fs::read(&to).is_ok_and(|old| old == text) {
            continue;
        }
        fs::create_dir_all(to.parent().unwrap_or(&root))?;
        fs::copy(&from, &to).with_context(|| format!("copying {file}"))?;
    }
    let store = root.join(".undercroft");
    if !store.exists() {
        std::os::unix::fs::symlink(fs::canonicalize(tree.store(""))?, &store).context("linking .undercroft")?;
    }
    // Without it git would look for the tree around this one, and apply nothing.
    if !root.join(".git").exists() {
        tree::output(tree.command("git").args(["init", "--quiet"]).arg(&root))?;
    }
    Ok(Tree::at(root))
}

/// Removes the files below `folder` of the copy that are not among `files`.
fn remove_what_is_gone(root: &Path, folder: &Path, files: &BTreeSet<&Path>) -> Result<()> {
    let there = match fs::read_dir(root.join(folder)) {
        Ok(there) => there,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", folder.display())),
    };
    for entry in there {
        let entry = entry?;
        let place = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            remove_what_is_gone(root, &place, files)?;
            // A folder with nothing in it may still be taken for a member of the workspace (`tests/*`).
            let is_empty = fs::read_dir(entry.path())?.next().is_none();
            if is_empty {
                fs::remove_dir(entry.path()).with_context(|| format!("removing {}", place.display()))?;
            }
        } else if !files.contains(&*place) {
            fs::remove_file(entry.path()).with_context(|| format!("removing {}", place.display()))?;
        }
    }
    Ok(())
}

/// The breaks that cargo-mutants makes in one crate; which of them the crate's own tests do not see.
fn of_crate(tree: &Tree, package: &str, names: &[String]) -> Result<()> {
    ensure!(
        tree.path("core").join(package).is_dir(),
        "--part is el2 or a crate of core/, and there is no core/{package}"
    );
    let there = tree.cargo().args(["mutants", "--version"]).output().is_ok_and(|output| output.status.success());
    ensure!(there, "cargo-mutants is not installed; `cargo install cargo-mutants --locked` does that");
    let folder = tree.target(format!("mutate/{package}"));
    fs::create_dir_all(&folder)?;
    let mut cargo = tree.cargo();
    cargo.args(["mutants", "--jobs", "1", "--no-shuffle", "--timeout", "120", "--package", package]);
    cargo.arg("--output").arg(&folder).env("PROPTEST_CASES", "64");
    for name in names {
        cargo.args(["--re", name]);
    }
    // 2: some survived; 3: some took too long, which is as good as a failed test.
    let status = cargo.status().context("starting cargo-mutants")?;
    ensure!(matches!(status.code(), Some(0 | 2 | 3)), "cargo-mutants ended with {status}");
    let survivors = survivors(&folder.join("mutants.out/missed.txt"))?;
    let accepted = read_accepted(tree)?;
    let rows: Vec<&Accepted> = accepted.iter().filter(|row| is_of(row, package)).collect();
    for row in &rows {
        if survivors.contains(&row.mutant) {
            println!("survives, accepted: {}: {}", row.mutant, row.reason);
        }
    }
    // A run of some breaks says nothing of the others.
    let extent = if names.is_empty() { Extent::Whole } else { Extent::Named };
    let wrong = judge(&survivors, &rows, extent);
    ensure!(wrong.is_empty(), "core/{package} and docs/mutations/accepted.toml disagree:\n{}", wrong.join("\n"));
    Ok(())
}

fn read_accepted(tree: &Tree) -> Result<Vec<Accepted>> {
    let path = folder(tree).join("accepted.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let table: AcceptedTable = toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
    Ok(table.accepted)
}

/// Whether a row is about a break of `package`.
fn is_of(row: &Accepted, package: &str) -> bool {
    row.mutant
        .strip_prefix("core/")
        .and_then(|rest| rest.strip_prefix(package))
        .is_some_and(|rest| rest.starts_with('/'))
}

/// The words of those that survived, without the places, which every edit moves.
fn survivors(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.lines().map(without_place).collect())
}

/// `core/watchdog/src/words.rs:3:4: replace ...` without `:3:4`.
fn without_place(line: &str) -> String {
    match line.split_once(": ") {
        Some((place, words)) => format!("{}: {words}", place.split(':').next().unwrap_or(place)),
        None => line.to_owned(),
    }
}

/// How much of a crate was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Whole,
    /// Only breaks with some words in their names.
    Named,
}

/// Where the survivors and the rows of their crate disagree: what survived unaccepted, or more often than accepted; and
/// after a run of the whole crate, what is accepted and was caught. Rows with the same words add up: two breaks may have
/// two reasons.
fn judge(survivors: &[String], rows: &[&Accepted], extent: Extent) -> Vec<String> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for survivor in survivors {
        counts.entry(survivor).or_default().0 += 1;
    }
    for row in rows {
        counts.entry(&row.mutant).or_default().1 += row.times;
    }
    let wrong = counts.into_iter().filter_map(|(words, (survived, accepted))| match (survived, accepted) {
        (_, 0) => Some(format!("SURVIVED: {words}")),
        _ if survived > accepted => Some(format!("SURVIVED {survived} times, accepted {accepted}: {words}")),
        (0, _) if extent == Extent::Whole => Some(format!("accepted, but caught now: {words}")),
        _ if survived < accepted && extent == Extent::Whole => {
            Some(format!("accepted {accepted} times, but only {survived} survive now: {words}"))
        }
        _ => None,
    });
    wrong.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaks_are_chosen_by_parts_of_their_names() {
        let text = |text: &str| text.to_owned();
        let mutation = Mutation { patch: text("wfi-is-channel"), breaks: text(""), test: text("") };
        assert!(is_named(&mutation, &[]) && is_named(&mutation, &[text("range"), text("wfi-")]));
        assert!(!is_named(&mutation, &[text("range"), text("wfx")]));
    }

    #[test]
    fn survivors_are_known_by_their_words() {
        let line = "core/watchdog/src/timer.rs:169:20: replace < with <= in Watchdog::expire";
        let words = "core/watchdog/src/timer.rs: replace < with <= in Watchdog::expire";
        assert_eq!(without_place(line), words);
    }

    fn row(words: &str, times: usize) -> Accepted {
        Accepted { mutant: words.to_owned(), times, reason: "a reason".to_owned() }
    }

    #[test]
    fn a_row_accepts_as_many_breaks_as_it_speaks_of() {
        let (one, two, three) = (row("core/a/src/lib.rs: one", 1), row("core/a/src/lib.rs: two", 2), row("new", 1));
        let survive = |rows: &[&Accepted]| rows.iter().map(|row| row.mutant.clone()).collect::<Vec<String>>();
        let judge = |survivors: &[&Accepted], extent| judge(&survive(survivors), &[&one, &two], extent);
        for extent in [Extent::Whole, Extent::Named] {
            assert_eq!(judge(&[&two, &one, &two], extent), Vec::<String>::new());
            assert_eq!(judge(&[&one, &two, &two, &three], extent), ["SURVIVED: new"]);
            let again = "SURVIVED 2 times, accepted 1: core/a/src/lib.rs: one";
            assert_eq!(judge(&[&one, &one, &two, &two], extent), [again]);
        }
        // Two reasons for breaks with the same words add up.
        assert_eq!(super::judge(&survive(&[&one, &one]), &[&one, &one], Extent::Whole), Vec::<String>::new());
    }

    #[test]
    fn a_row_whose_break_is_caught_now_is_wrong_once_the_whole_crate_was_run() {
        let (one, two) = (row("core/a/src/lib.rs: one", 1), row("core/a/src/lib.rs: two", 2));
        let survivors = [two.mutant.clone()];
        assert_eq!(judge(&survivors, &[&one, &two], Extent::Named), Vec::<String>::new());
        let gone = [
            "accepted, but caught now: core/a/src/lib.rs: one",
            "accepted 2 times, but only 1 survive now: core/a/src/lib.rs: two",
        ];
        assert_eq!(judge(&survivors, &[&one, &two], Extent::Whole), gone);
        // What another crate's row says, this run cannot know.
        assert!(is_of(&one, "a") && !is_of(&row("core/ab/src/lib.rs: one", 1), "a") && !is_of(&one, "ab"));
    }

    #[test]
    fn what_is_gone_from_the_tree_goes_from_its_copy_with_its_folders() {
        let copy = tempfile::tempdir().unwrap();
        for folder in ["tests/old/src", "tests/new"] {
            fs::create_dir_all(copy.path().join(folder)).unwrap();
        }
        for file in ["tests/old/src/main.rs", "tests/new/a.rs", "tests/new/b.rs"] {
            fs::write(copy.path().join(file), "").unwrap();
        }
        let kept = Path::new("tests/new/b.rs");
        remove_what_is_gone(copy.path(), Path::new("tests"), &BTreeSet::from([kept])).unwrap();
        assert!(copy.path().join(kept).is_file());
        assert!(!copy.path().join("tests/old").exists() && !copy.path().join("tests/new/a.rs").exists());
    }
}
