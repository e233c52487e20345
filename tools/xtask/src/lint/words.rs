//! One word, one meaning: that no public type of `core/` has the name of another crate's, unless docs/words.md lists both and says why.

use super::Text;
use super::quoted;
use std::collections::{BTreeMap, BTreeSet};

/// The page with the names that may stand in several crates.
const PAGE: &str = "docs/words.md";
/// The heading of its table of them.
const HEADING: &str = "## Names that several crates have";

/// A name, and the crates that have it.
type Names<'t> = BTreeMap<&'t str, BTreeSet<&'t str>>;

/// What of the sources is against that rule, or of the page not true.
pub(super) fn check(texts: &[Text]) -> Vec<String> {
    let mut found = Names::new();
    for text in texts {
        let Some((package, rest)) = text.path.strip_prefix("core/").and_then(|path| path.split_once('/')) else {
            continue;
        };
        if rest.starts_with("src/") && !rest.contains("tests") {
            for name in public_types(&text.contents) {
                found.entry(name).or_default().insert(package);
            }
        }
    }
    found.retain(|_, crates| crates.len() > 1);
    let page = texts.iter().find(|text| text.path == PAGE).map_or("", |text| &text.contents);
    let accepted = accepted(page);
    let mut wrong = Vec::new();
    for (name, crates) in &found {
        match accepted.get(name) {
            Some(listed) if listed == crates => {}
            Some(_) => wrong.push(format!("{PAGE}: {name} is in {}", list(crates))),
            None => wrong.push(format!(
                "{name} is the name of a type of {}: take another word, or say in {PAGE} why not",
                list(crates)
            )),
        }
    }
    let gone = accepted.keys().filter(|name| !found.contains_key(**name));
    wrong.extend(gone.map(|name| format!("{PAGE}: {name} is no longer in several crates")));
    wrong
}

fn list(crates: &BTreeSet<&str>) -> String {
    crates.iter().copied().collect::<Vec<_>>().join(", ")
}

/// The names of the public types that a source defines, up to its tests: in inner modules and in calls of macros too, and what it offers
/// of others under a name of its own.
fn public_types(source: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    let mut lines = source.lines().map(str::trim_start).take_while(|line| *line != "mod tests {");
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_prefix("pub ") else { continue };
        let kinds = ["struct ", "enum ", "trait ", "unsafe trait ", "type ", "union "];
        if let Some(rest) = kinds.iter().find_map(|kind| rest.strip_prefix(kind)) {
            // The name of a macro's parameter is none.
            found.extend(name(rest));
        } else if rest.starts_with("use ") {
            // All lines of the statement, which may be one.
            let mut statement = vec![line];
            while !statement.last().is_some_and(|line| line.contains(';'))
                && let Some(next) = lines.next()
            {
                statement.push(next);
            }
            for line in statement {
                let renamed = line.split(" as ").skip(1).filter_map(name);
                found.extend(renamed.filter(|name| name.starts_with(char::is_uppercase) && !is_constant(name)));
            }
        }
    }
    found
}

/// The name with which a text begins.
fn name(text: &str) -> Option<&str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next().filter(|name| !name.is_empty())
}

fn is_constant(name: &str) -> bool {
    name.len() > 1 && !name.contains(char::is_lowercase)
}

/// The rows of the page's table: a name, and the crates that may have it.
fn accepted(page: &str) -> Names<'_> {
    let rows = page.lines().skip_while(|line| *line != HEADING).skip(1).take_while(|line| !line.starts_with("## "));
    rows.filter(|line| line.starts_with("| `"))
        .filter_map(|line| {
            let mut cells = line.split('|').skip(1);
            let name = quoted(cells.next()?).first().copied()?;
            Some((name, quoted(cells.next()?).into_iter().collect()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(files: &[(&str, &str)]) -> Vec<String> {
        let texts: Vec<Text> =
            files.iter().map(|(path, contents)| Text { path: (*path).into(), contents: (*contents).into() }).collect();
        check(&texts)
    }

    #[test]
    fn a_name_that_two_crates_have_is_told_unless_it_is_listed() {
        let one = ("core/a/src/lib.rs", "//! A.\npub struct Level(u8);\npub(crate) enum Own {}\nstruct Private;\n");
        let two = ("core/b/src/x.rs", "//! B.\npub enum Level<'a> {}\npub enum Own {}\nstruct Private;\n");
        let told = complaints(&[one, two]);
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("Level is the name of a type of a, b"), "{told:?}");
        let page =
            format!("| `Else` | `a`, `b` | before |\n{HEADING}\n| name | crates | why |\n| `Level` | `a`, `b` | x |\n");
        assert!(complaints(&[one, two, (PAGE, &page)]).is_empty());
        // Neither more crates than are listed, nor fewer, nor names that nobody has twice.
        assert_eq!(complaints(&[one, two, ("core/c/src/lib.rs", "pub type Level = u8;\n"), (PAGE, &page)]).len(), 1);
        assert_eq!(complaints(&[one, (PAGE, &page)]), ["docs/words.md: Level is no longer in several crates"]);
    }

    #[test]
    fn a_type_is_public_wherever_it_stands() {
        let one = ("core/a/src/lib.rs", "pub struct Level(u8);\n");
        for hidden in [
            "pub mod inner {\n    //! I.\n    pub struct Level;\n}\n",
            "bitflags::bitflags! {\n    pub struct Level: u8 {}\n}\n",
            "pub unsafe trait Level {}\n",
            "pub use crate::other::Height as Level;\n",
            "pub use crate::other::{\n    Depth as Below, Height as Level,\n};\n",
            "pub use crate::other::Depth;\npub use crate::other::Height as Level;\n",
            "pub use crate::other::Depth;\npub struct Level;\n",
            "pub use crate::other::{\n    Depth,\n};\npub struct Level;\n",
        ] {
            let told = complaints(&[one, ("core/b/src/lib.rs", hidden)]);
            assert_eq!(told.len(), 1, "{hidden}");
            assert!(told[0].starts_with("Level is the name of a type of a, b"), "{told:?}");
        }
        for other in [
            "macro_rules! m {\n    () => {\n        pub struct $name;\n    };\n}\n",
            "mod tests {\n    pub struct Level;\n}\n",
            "use crate::Height as Level;\n",
        ] {
            assert!(complaints(&[one, ("core/b/src/lib.rs", other)]).is_empty(), "{other}");
        }
    }

    #[test]
    fn a_constant_is_no_type() {
        let both =
            [("core/a/src/lib.rs", "pub use x::ONE as LEVEL;\n"), ("core/b/src/lib.rs", "pub use y::TWO as LEVEL;\n")];
        assert!(complaints(&both).is_empty());
    }

    #[test]
    fn one_crate_may_have_a_name_twice_and_tests_have_any() {
        let twice = [("core/a/src/x.rs", "pub struct Row;\n"), ("core/a/src/y.rs", "pub struct Row;\n")];
        assert!(complaints(&twice).is_empty());
        let tests =
            [twice[0], ("core/b/src/x/tests.rs", "pub struct Row;\n"), ("el2/hw/src/a.rs", "pub struct Row;\n")];
        assert!(complaints(&tests).is_empty());
    }
}
