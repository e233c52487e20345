//! That each atomic ordering names its counterpart.
//!
//! An acquire without its release, or a release without its acquire, orders nothing, and no test on an ordinary machine shows it.
//! So every ordering except `Relaxed` has a comment close above it that says what it pairs with, so that a reader can compare the
//! two. That holds for all code that somebody runs, not for tests: a test's threads may use the strictest ordering and say nothing.

use super::{quoted, sources};
use crate::tree::Tree;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders of what somebody runs.
const FOLDERS: [&str; 4] = ["core", "el2", "guest", "tools"];
/// How far above its ordering a comment may begin, in lines.
const CLOSE: usize = 6;
/// What the comment says.
const SAID: &str = "airs with";

/// What may stand in front of `fn` where a function is defined.
const QUALIFIERS: [&str; 6] = ["pub", "const", "async", "unsafe", "extern", "\"C\""];

/// Checks the sources of all that somebody runs.
///
/// # Errors
/// Names each ordering that does not say what it pairs with.
pub(crate) fn check(tree: &Tree) -> Result<()> {
    let mut texts: Vec<(PathBuf, String)> = Vec::new();
    for folder in FOLDERS {
        let top = tree.path(folder);
        for file in sources(&top)?.into_iter().filter(|file| !file.strip_prefix(&top).is_ok_and(is_test)) {
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            texts.push((file, text));
        }
    }
    let functions: BTreeSet<&str> = texts.iter().flat_map(|(_, text)| functions(text)).collect();
    let mut wrong = Vec::new();
    for (file, text) in &texts {
        let file = file.display();
        for line in unexplained(text) {
            wrong.push(format!("{file}:{line}: say close above it what this ordering pairs with"));
        }
        for (line, name) in counterparts(text).into_iter().filter(|(_, name)| !functions.contains(&**name)) {
            wrong.push(format!("{file}:{line}: there is no function {name} for this ordering to pair with"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The names of the functions that a source defines, down to where its own tests begin. What stands in comments and texts is none.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().take_while(|line| !line.starts_with("mod tests {"));
    lines.filter_map(|line| {
        let (before, rest) = line.split_once("fn ")?;
        let is_defined = before.split_whitespace().all(|word| QUALIFIERS.contains(&word) || word.starts_with("pub("));
        rest.split(|letter: char| !is_of_a_name(letter)).next().filter(|name| is_defined && !name.is_empty())
    })
}

/// The functions that comments name as the counterparts of orderings, with the numbers of the lines that say so. They are in the sentence
/// that does, which may have several lines; another one explains. What is not written like a function (a static, a type) is not looked
/// for.
fn counterparts(text: &str) -> Vec<(usize, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(said) = comment(line).and_then(|line| line.split_once(SAID)) else { continue };
        let rest = lines.iter().skip(at + 1).map_while(|line| comment(line));
        let all = rest.fold(said.1.to_owned(), |all, line| format!("{all} {}", line.trim_start_matches('/').trim()));
        let sentence = all.split(". ").next().unwrap_or_default();
        let names = quoted(sentence).into_iter().map(|name| name.rsplit("::").next().unwrap_or(name));
        let names = names.filter(|name| name.chars().all(|letter| is_of_a_name(letter) && !letter.is_uppercase()));
        found.extend(names.map(|name| (at + 1, name.to_owned())));
    }
    found
}

/// A line that is a comment.
fn comment(line: &str) -> Option<&str> {
    Some(line.trim_start()).filter(|line| line.starts_with("//"))
}

fn is_of_a_name(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Whether a file, of which this is the path below its folder, holds nothing but tests.
fn is_test(file: &Path) -> bool {
    file.iter().any(|part| part == "tests" || part == "tests.rs")
}

/// The numbers of the lines with an ordering that no comment explains, down to where the file's own tests begin.
fn unexplained(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().take_while(|line| !line.starts_with("mod tests {")).collect();
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
    use super::{check, counterparts, functions, unexplained};
    use crate::tree::Tree;
    use std::fs;

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

    #[test]
    fn a_counterpart_is_a_function() {
        let text = "// Pairs with the swap in `take`, and the bits of `IDLE`.\nx();\n// Pairs with that in `Gone::gone`: it is.\n";
        assert_eq!(counterparts(text), [(1, "take".to_owned()), (3, "gone".to_owned())]);
        assert_eq!(functions("pub(crate) const fn take<T>(x: T) {}\nfn b() {}\n").collect::<Vec<_>>(), ["take", "b"]);
    }

    /// A comment may go on in the next line, with names that nobody has any more; what it says behind that is no counterpart.
    #[test]
    fn a_counterpart_may_be_on_the_next_line() {
        let text =
            "// Pairs with the swap in `take` and\n// the load in `Other::look`. It is\n// `fine`.\nx();\n// `y`.\n";
        assert_eq!(counterparts(text), [(1, "take".to_owned()), (1, "look".to_owned())]);
    }

    #[test]
    fn what_is_not_code_defines_no_function() {
        let text = "// As fn gone did.\nlet x = \"fn said\"; // fn behind\n    pub unsafe extern \"C\" fn kept() {}\n/// fn old() is.\n";
        assert_eq!(functions(text).collect::<Vec<_>>(), ["kept"]);
        assert_eq!(functions("call(|f: fn (u8)| f(1));\nmod tests {\n    fn tried() {}\n}\n").count(), 0);
    }

    #[test]
    fn every_folder_of_what_somebody_runs_is_read() {
        let root = std::env::temp_dir().join(format!("tests/orderings-{}", std::process::id()));
        let file = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let bare = "FLAG.store(true, Ordering::Release);\n";
        for path in ["core/a/tests/b.rs", "core/a/src/tests.rs", "core/a/src/b/tests/c.rs", "tests/a/src/b.rs"] {
            file(path, bare);
        }
        file(
            "tools/a/src/lib.rs",
            &format!("#[cfg(test)]\nextern crate std;\n#[cfg(test)]\nmod tests {{\n    {bare}}}\n"),
        );
        let tree = Tree::at(root.clone());
        let before = check(&tree);
        let mut found = Vec::new();
        for folder in ["core", "el2", "guest", "tools"] {
            let path = format!("{folder}/a/src/parking.rs");
            file(&path, bare);
            found.push((format!("{path}:1:"), check(&tree).unwrap_err().to_string()));
            fs::remove_file(root.join(path)).unwrap();
        }
        fs::remove_dir_all(root).unwrap();
        before.unwrap();
        for (place, said) in found {
            assert!(said.contains(&place), "{said} does not name {place}");
        }
    }
}
