//! Whether the targets of documents' and comments' links exist: files, decisions, sections of texts that have a name.

use super::{Text, quoted};
use std::path::{Component, Path, PathBuf};

/// The folders whose paths are checked wherever a document has them in quotes.
const TOP: [&str; 9] = ["core/", "el2/", "guest/", "tools/", "tests/", "fuzz/", "docs/", "demo/", ".ci/"];

/// Ways to point to a text that this repository does not have: say which text it is, or point to one that is here.
const NAMELESS: [&str; 3] = ["design, section", "(specification, section", "(the specification, section"];

/// What of the documents and of the comments in `texts` points to nothing. `files` has all paths of the tree.
pub(super) fn check(texts: &[Text], files: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for text in texts {
        let is_document = text.path.ends_with(".md");
        for (number, line) in (1..).zip(text.contents.lines()) {
            let at = format!("{}:{number}", text.path);
            let Some(said) = (if is_document { Some(line) } else { comment(line) }) else { continue };
            for nameless in NAMELESS.iter().filter(|nameless| said.to_lowercase().contains(*nameless)) {
                wrong.push(format!("{at}: \"{nameless}\" names a text that is not here"));
            }
            for number in decisions(said).filter(|number| !is_decision(files, number)) {
                wrong.push(format!("{at}: there is no decision {number}"));
            }
            let mut paths: Vec<&str> = documents(said).collect();
            if is_document {
                paths.extend(links(line));
                paths.extend(quoted(line).into_iter().filter(|path| is_path(path)));
            }
            for path in paths.into_iter().filter(|path| !is_there(&text.path, path, files)) {
                wrong.push(format!("{at}: {path} is not there"));
            }
        }
    }
    wrong.dedup();
    wrong
}

/// The comment of a line of code.
fn comment(line: &str) -> Option<&str> {
    line.split_once("// ").or_else(|| line.split_once("//! ")).or_else(|| line.split_once("/// ")).map(|(_, said)| said)
}

/// The numbers behind the word "decision".
fn decisions(said: &str) -> impl Iterator<Item = &str> {
    said.match_indices("decision 0").filter_map(|(at, _)| said.get(at + 9..at + 13))
}

fn is_decision(files: &[String], number: &str) -> bool {
    files.iter().any(|path| path.starts_with(&format!("docs/decisions/{number}-")))
}

/// Names of documents among the words.
fn documents(said: &str) -> impl Iterator<Item = &str> {
    let apart = |letter: char| !(letter.is_ascii_alphanumeric() || "-_./".contains(letter));
    let words = said.split(apart).map(|word| word.trim_end_matches('.'));
    words.filter(|word| word.ends_with(".md") && word.len() > 3 && !word.contains("//"))
}

/// What Markdown links of a line point to in this tree.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#', ' ']).next());
    targets.filter(|target| !target.is_empty() && !target.contains("://"))
}

/// Whether something in quotes is meant as a path of this tree.
fn is_path(quoted: &str) -> bool {
    let is_plain = quoted.bytes().all(|letter| letter.is_ascii_alphanumeric() || b"-_./".contains(&letter));
    is_plain && (TOP.iter().any(|top| quoted.starts_with(top)) || (quoted.ends_with(".rs") && quoted.contains('/')))
}

/// Whether a path is there: from the folder of what names it, from the root, or as the end of a longer one.
fn is_there(from: &str, path: &str, files: &[String]) -> bool {
    let beside = plain(&Path::new(from).parent().unwrap_or(Path::new("")).join(path));
    let path = path.trim_end_matches('/');
    let end = format!("/{path}");
    let is = |wanted: &str, file: &str| {
        file.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    files.iter().any(|file| is(&beside, file) || is(path, file) || file.ends_with(&end))
}

/// A path without its turns.
fn plain(path: &Path) -> String {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => _ = plain.pop(),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, contents: &str) -> Vec<String> {
        let files = ["README.md", "docs/style.md", "docs/decisions/0001-layers.md", "el2/hw/src/boot.rs", ".ci/run"];
        check(&[Text { path: path.into(), contents: contents.into() }], &files.map(String::from))
    }

    #[test]
    fn what_is_there_is_there() {
        let document = "[style](style.md), [one](decisions/0001-layers.md#why), [out](https://example.org/x.md), decision 0001,\n\
            `hw/src/boot.rs`, `el2/hw`, `core/<crate>`, `.ci/run`, `x.rs`, ../README.md\n";
        assert_eq!(complaints("docs/a.md", document), Vec::<String>::new());
        assert_eq!(
            complaints("el2/hw/src/a.rs", "// docs/style.md, decision 0001\nlet x = \"no.md\";\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_is_not_there_is_found() {
        let wrong =
            complaints("docs/a.md", "[style](styles.md), `el2/hw/src/gone.rs`, `exit/gone.rs`, decision 0099\n");
        let all = wrong.join("\n");
        for gone in ["styles.md is not", "el2/hw/src/gone.rs is not", "exit/gone.rs is not", "no decision 0099"] {
            assert!(all.contains(gone), "{gone}: {all}");
        }
        assert_eq!(complaints("a.rs", "x(); // see docs/gone.md.\n"), ["a.rs:1: docs/gone.md is not there"]);
    }

    #[test]
    fn a_text_without_a_name_is_refused() {
        let wrong = complaints("a.rs", "//! The short path (design, section 3).\n");
        assert_eq!(wrong, ["a.rs:1: \"design, section\" names a text that is not here"]);
        assert_eq!(complaints("a.rs", "//! As virtio has it (virtio 1.3, section 2.7).\n"), Vec::<String>::new());
    }
}
