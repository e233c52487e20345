//! That what a guest can cause to be said goes through its VM's own ring and rate.
//!
//! A line that is logged by `log::warn!` lands in the ring that all share: a guest that causes it in a loop erases what was said about
//! everybody else. `Vm::report` and `Vm::tell` put it into the VM's own, and count what was too much. So where the hypervisor works for a
//! guest, nothing else is used; what the operator causes may be, and is listed here.

use super::sources;
use crate::tree::Tree;
use anyhow::{Context, Result, ensure};
use std::fs;

/// Where the hypervisor works for guests.
const FOLDERS: [&str; 3] = ["el2/hypervisor/src/exit", "el2/hypervisor/src/vcpu", "el2/hypervisor/src/vm"];

/// What is said there all the same: the file, how many lines, and who causes them.
const OPERATORS: [(&str, usize, &str); 3] = [
    (
        "el2/hypervisor/src/vm/host_disk.rs",
        3,
        "the host's disks when the host starts, and that one of them is given up, once a disk",
    ),
    ("el2/hypervisor/src/vm/life.rs", 2, "paused, goes on: one line an order"),
    ("el2/hypervisor/src/vm/time.rs", 3, "what a VM's time is, said when the host starts and when the VM is restored"),
];

/// What of `log` says nothing by itself.
const SILENT: [&str; 3] = ["log::Level", "log::LevelFilter", "log::max_level"];

/// Looks at all of [`FOLDERS`].
pub(super) fn check(tree: &Tree) -> Result<()> {
    let mut found = Vec::new();
    let root = tree.path("");
    for folder in FOLDERS {
        for file in sources(&tree.path(folder))? {
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let path = file.strip_prefix(&root).unwrap_or(&file).to_string_lossy().into_owned();
            found.extend(said(&text).into_iter().map(|line| (path.clone(), line)));
        }
    }
    let wrong = judged(&found);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The numbers of the lines of `text` in which something is said to the log that all share.
fn said(text: &str) -> Vec<usize> {
    let is_code = |line: &str| !line.trim_start().starts_with("//");
    let says = |line: &str| {
        let rest = SILENT.iter().fold(line.to_owned(), |line, silent| line.replace(silent, ""));
        // `output::log::` and the like are other modules.
        let before = |at: usize| rest.get(..at).unwrap_or_default().trim_end_matches("::");
        rest.match_indices("log::").any(|(at, _)| !before(at).ends_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    (1..).zip(text.lines()).filter(|(_, line)| is_code(line) && says(line)).map(|(number, _)| number).collect()
}

/// What is wrong with lines that were found in these files.
fn judged(found: &[(String, usize)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, line) in found {
        if !OPERATORS.iter().any(|(listed, ..)| listed == path) {
            wrong.push(format!("{path}:{line}: a guest's doing is said by `Vm::report`, into the VM's own ring, or all others' lines go"));
        }
    }
    for (path, times, why) in OPERATORS {
        let count = found.iter().filter(|(found, _)| found == path).count();
        if count != times {
            wrong.push(format!("{path}: {count} lines for the log that all share, and {times} are listed ({why})"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_all_is_found() {
        let text = "use log::{Level, warn};\nuse log::Level;\n// Not log::warn!.\nif level <= log::max_level() {\n    log::warn!(\"x\");\n\
                    crate::output::log::push();\n    ::log::error!(\"y\");\nlet catalog::X = 1;\n";
        assert_eq!(said(text), [1, 5, 7]);
    }

    #[test]
    fn only_the_operators_lines_are_taken() {
        let all = || OPERATORS.iter().flat_map(|(path, times, _)| (0..*times).map(|line| ((*path).to_owned(), line)));
        assert_eq!(judged(&all().collect::<Vec<_>>()), Vec::<String>::new());
        let new = ("el2/hypervisor/src/exit/mmio.rs".to_owned(), 7);
        let wrong = judged(&all().chain([new]).collect::<Vec<_>>());
        assert!(wrong.len() == 1 && wrong[0].contains("mmio.rs:7: a guest's doing"), "{wrong:?}");
        assert_eq!(judged(&all().skip(1).collect::<Vec<_>>()).len(), 1);
    }
}
