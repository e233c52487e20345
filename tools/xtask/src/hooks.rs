//! What the hypervisor has for its checks alone, read out of the sources: the functions of `el2/hw` and `el2/hypervisor` that nothing
//! mentions but the checks (`el2/checks`), and the hooks among the statics.
//!
//! A function that only checks call is in their image alone, because nothing leads to it in the one that ships (`shipped.rs` looks). A hook
//! would lead the other way: a static at which code that ships looks, and which nothing ever sets there. So a static that the checks, or a
//! function for them, have to do with must be written by something that ships, too, or be nothing that ships looks at. A field of a value
//! is not seen, nor one behind a lock: whoever takes a lock is taken to write.

use crate::lint::sources;
use crate::tree::Tree;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// The folders of what ships.
const SHIPPED: [&str; 2] = ["el2/hw/src", "el2/hypervisor/src"];
/// The folder of the checks.
const CHECKS: &str = "el2/checks/src";
/// How a static is written to.
const WRITES: [&str; 9] = [
    ".store(",
    ".swap(",
    ".fetch_",
    ".compare_exchange",
    ".call_once(",
    ".try_call_once(",
    ".lock(",
    ".set(",
    ".get_or",
];

/// What there is for the checks.
pub(crate) struct ForChecks {
    /// Functions and statics of what ships that only checks have to do with.
    pub(crate) names: Vec<String>,
    /// The hooks.
    hooks: Vec<String>,
}

/// That there is no hook.
///
/// # Errors
/// Names each.
pub(crate) fn check(tree: &Tree) -> Result<()> {
    let hooks = find(tree)?.hooks;
    ensure!(
        hooks.is_empty(),
        "read by what ships, and written by nothing but checks; make it a function of `exit::checks::Checks`: {}",
        hooks.join(", ")
    );
    Ok(())
}

/// Reads the tree's sources.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn find(tree: &Tree) -> Result<ForChecks> {
    let read = |folder: &str| -> Result<String> {
        let mut all = String::new();
        for file in sources(&tree.path(folder))? {
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            for line in text.lines().map(|line| line.split("//").next().unwrap_or_default()) {
                // Without what stands in quotes.
                all.extend(line.split('"').step_by(2));
                all.push('\n');
            }
        }
        Ok(all)
    };
    let shipped = SHIPPED.map(read).into_iter().collect::<Result<String>>()?;
    Ok(judge(&shipped, &read(CHECKS)?))
}

/// What of these sources, without their comments, is for checks alone.
fn judge(shipped: &str, checks: &str) -> ForChecks {
    let (mut counts, in_checks) = (count(shipped), count(checks));
    let (mut rest, mut bodies, mut names) = (String::new(), String::new(), Vec::new());
    let mut lines = shipped.lines();
    while let Some(line) = lines.next() {
        let alone = defined(line, "fn ").filter(|name| counts.get(name) == Some(&1) && in_checks.contains_key(name));
        let Some(name) = alone else {
            rest.extend([line, "\n"]);
            continue;
        };
        names.push(name.to_owned());
        bodies.extend([line, "\n"]);
        // Up to the brace that stands below its beginning.
        let end = format!("{}}}", " ".repeat(line.len() - line.trim_start().len()));
        if !line.trim_end().ends_with(['}', ';']) {
            bodies.extend(lines.by_ref().take_while(|line| *line != end).flat_map(|line| [line, "\n"]));
        }
    }
    let touched = count(&bodies);
    counts = count(&rest);
    let mut hooks = Vec::new();
    // Of their own, whatever it is called.
    let own: BTreeSet<&str> =
        checks.lines().filter_map(|line| defined(line, "static ").or_else(|| defined(line, "const "))).collect();
    for name in rest.lines().filter_map(|line| defined(line, "static ")) {
        if !touched.contains_key(name) && (!in_checks.contains_key(name) || own.contains(name)) {
            continue;
        }
        match counts.get(name) {
            // Its definition.
            None | Some(1) => names.push(name.to_owned()),
            Some(_) if is_written(&rest, name) => {}
            Some(_) => hooks.push(name.to_owned()),
        }
    }
    ForChecks { names, hooks }
}

/// The name that a line defines behind this word.
fn defined<'t>(line: &'t str, what: &str) -> Option<&'t str> {
    let (before, rest) = line.split_once(what)?;
    let known = ["pub", "const", "unsafe", "extern"];
    let is_defined = before.split_whitespace().all(|word| known.contains(&word) || word.starts_with("pub("));
    let rest = rest.strip_prefix("mut ").unwrap_or(rest);
    is_defined.then(|| words(rest).next()).flatten().filter(|name| rest.starts_with(name))
}

/// Whether something is written into this static: the statement that begins with its name does, or what it binds is used for that.
fn is_written(text: &str, name: &str) -> bool {
    let is_of_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.match_indices(name).any(|(at, _)| {
        if text[..at].ends_with(is_of_word) || text[at + name.len()..].starts_with(is_of_word) {
            return false;
        }
        // What is bound is used in the statement behind it.
        let is_bound = text[..at].lines().last().is_some_and(|line| line.contains("let Some("));
        let ends: &[char] = if is_bound { &[';'] } else { &[';', '{'] };
        let statement = text[at..].split(ends).next().unwrap_or_default();
        WRITES.iter().any(|write| statement.contains(write))
    })
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

/// How often each word is there.
fn count(text: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    words(text).for_each(|word| *counts.entry(word).or_default() += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::{check, judge};
    use crate::tree::Tree;

    const SHIPPED: &str = "
static ONLINE: AtomicU64 = AtomicU64::new(0);
pub fn run() {
    ONLINE.fetch_add(1, Ordering::Relaxed);
    helper();
}
pub fn helper() {}
impl Thread {
    pub fn nudge(&self) {
        ONLINE.load(Ordering::Relaxed);
    }
}
";

    #[test]
    fn what_only_checks_mention_is_for_them() {
        let found = judge(SHIPPED, "fn test() { thread.nudge(); helper(); }");
        assert_eq!((found.names, found.hooks), (vec!["nudge".to_owned()], vec![]));
        assert!(judge(SHIPPED, "").names.is_empty());
    }

    #[test]
    fn a_static_that_only_checks_set_is_a_hook() {
        let look = "pub fn turn() {\n    if HOOK.load(Ordering::Relaxed) {\n        wait();\n    }\n}\n";
        let hook = "pub static HOOK: AtomicBool = AtomicBool::new(false);\n";
        let set = "pub fn set_hook() {\n    HOOK.store(true, Ordering::Relaxed);\n}\n";
        let by_function = judge(&[SHIPPED, hook, look, set].concat(), "set_hook();");
        assert_eq!((by_function.names, by_function.hooks), (vec!["set_hook".to_owned()], vec!["HOOK".to_owned()]));
        assert_eq!(judge(&[SHIPPED, hook, look].concat(), "HOOK.store(true, Ordering::Relaxed);").hooks, ["HOOK"]);
        // Another one whose name has this one in it.
        let longer =
            "fn longer() {\n    HOOKS.store(1, Ordering::Relaxed);\n    MY_HOOK.store(1, Ordering::Relaxed);\n}\n";
        assert_eq!(judge(&[SHIPPED, hook, look, set, longer].concat(), "set_hook();").hooks, ["HOOK"]);
        let own = "static HOOK: AtomicBool = AtomicBool::new(false);\nHOOK.store(true, Ordering::Relaxed);";
        assert!(judge(&[SHIPPED, hook, look].concat(), own).hooks.is_empty(), "theirs");
        // What ships sets it, too; or nothing that ships looks at it.
        let also = "fn also() {\n    HOOK.swap(true, Ordering::Relaxed);\n}\n";
        assert!(judge(&[SHIPPED, hook, look, set, also].concat(), "set_hook();").hooks.is_empty());
        let own = judge(&[SHIPPED, hook, set].concat(), "set_hook();");
        assert_eq!((own.names, own.hooks), (vec!["set_hook".to_owned(), "HOOK".to_owned()], vec![]));
    }

    #[test]
    fn there_is_no_hook() {
        check(&Tree::find().unwrap()).unwrap();
    }
}
