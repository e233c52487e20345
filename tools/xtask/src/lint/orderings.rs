//! That each atomic ordering names its counterpart.
//!
//! An acquire without its release, or a release without its acquire, orders nothing, and no test on an ordinary machine shows it.
//! So every ordering in `el2/` except `Relaxed` has a comment close above it that says what it pairs with, so that a reader can
//! compare the two.

use super::sources;
use crate::tree::Tree;
use anyhow::{Result, ensure};
use std::fs;

/// How far above its ordering a comment may begin, in lines.
const CLOSE: usize = 6;
/// What the comment says.
const SAID: &str = "airs with";

/// Checks the sources of `el2/`.
///
/// # Errors
/// Names each ordering that does not say what it pairs with.
pub(crate) fn check(tree: &Tree) -> Result<()> {
    let mut wrong = Vec::new();
    for file in sources(&tree.path("el2"))? {
        for line in unexplained(&fs::read_to_string(&file)?) {
            wrong.push(format!("{}:{line}: say close above it what this ordering pairs with", file.display()));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The numbers of the lines with an ordering that no comment explains.
fn unexplained(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let has_ordering = |line: &str| {
        let code = line.split("//").next().unwrap_or(line);
        ["Acquire", "Release", "AcqRel", "SeqCst"].iter().any(|name| code.contains(&format!("Ordering::{name}")))
    };
    let is_explained = |at: usize| {
        let above = lines.get(at.saturating_sub(CLOSE)..at).unwrap_or(&[]);
        above.iter().any(|line| line.trim_start().starts_with("//") && line.contains(SAID))
    };
    let numbered = lines.iter().enumerate();
    numbered.filter(|&(at, line)| has_ordering(line) && !is_explained(at)).map(|(at, _)| at + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::unexplained;

    #[test]
    fn an_ordering_without_its_counterpart_is_found() {
        let right = "// Pairs with the load in `take`.\nFLAG.store(true, Ordering::Release);\n";
        assert!(unexplained(right).is_empty());
        assert!(unexplained("COUNT.fetch_add(1, Ordering::Relaxed); // not Ordering::SeqCst\n").is_empty());
        for wrong in ["FLAG.store(true, Ordering::Release);", "// Now.\nfence(Ordering::SeqCst);"] {
            assert_eq!(unexplained(wrong), [wrong.lines().count()], "{wrong}");
        }
        // A comment that is far away is about something else.
        let far = format!("{right}{}FLAG.load(Ordering::Acquire);\n", "next();\n".repeat(9));
        assert_eq!(unexplained(&far), [12]);
    }
}
