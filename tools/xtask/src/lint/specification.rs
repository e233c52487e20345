//! Whether `docs/spec` and the tests agree: each check names tests that exist, or says that it is not built; each test
//! whose name carries an identifier is named by that check. docs/spec/README.md says how a check is written.

use super::{Text, quoted};
use std::collections::BTreeMap;

/// The words of a check that nothing proves.
const NOT_BUILT: &str = "not built yet";

/// A row of a table in `docs/spec` that begins with an identifier.
struct Row<'t> {
    page: &'t str,
    last_cell: &'t str,
}

/// Where a test is, as a check writes it (`doors`, `system::tools`, `core/clock`, `tools/xtask`), and its name.
type Test = (String, String);

/// What is wrong between the pages of `docs/spec` and the tests in `sources`, and with the identifiers in `texts`.
pub(super) fn check(pages: &[Text], sources: &[Text], texts: &[Text]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut rows = BTreeMap::new();
    for page in pages {
        for line in page.contents.lines() {
            let mut cells = line.trim().trim_matches('|').split('|').map(str::trim);
            let (Some(id), Some(last_cell)) = (cells.next(), cells.next_back()) else { continue };
            if identifiers(id) == [id] && rows.insert(id, Row { page: &page.path, last_cell }).is_some() {
                wrong.push(format!("{}: {id} has a second row", page.path));
            }
        }
    }
    let tests: Vec<Test> = sources.iter().flat_map(tests_in).collect();
    let known =
        |wanted: &str| tests.iter().any(|(place, name)| place == wanted || wanted == format!("{place}::{name}"));
    for (id, row) in rows.iter().filter(|(id, _)| is_check(id)) {
        let named = quoted(row.last_cell);
        if named.is_empty() && row.last_cell != NOT_BUILT {
            wrong.push(format!("{}: {id} names no test; if there is none it must say \"{NOT_BUILT}\"", row.page));
        }
        for test in named.iter().filter(|test| !known(test)) {
            wrong.push(format!("{}: {id} names {test}, and there is no such test", row.page));
        }
    }
    for (place, name) in &tests {
        let Some(id) = carried(name) else { continue };
        match rows.get(id.as_str()) {
            None => wrong.push(format!("{place}::{name} carries {id}, which is not in docs/spec")),
            Some(row) if !quoted(row.last_cell).contains(&format!("{place}::{name}").as_str()) => {
                wrong.push(format!("{}: the row of {id} does not name {place}::{name}", row.page));
            }
            Some(_) => {}
        }
    }
    for text in texts.iter().filter(|text| text.path == "docs/adding.md") {
        for test in quoted(&text.contents.replace('\n', " ")).into_iter().filter(|test| !known(test)) {
            let is_test = |place: &str| tests.iter().any(|(known, _)| known == place);
            let is_of_a_layer = |place: &str| place.contains('/') || place.starts_with("system::");
            if test.rsplit_once("::").is_some_and(|(place, _)| is_test(place) || is_of_a_layer(place)) {
                wrong.push(format!("{} names {test}, and there is no such test", text.path));
            }
        }
    }
    for text in texts {
        for id in identifiers(&text.contents).into_iter().filter(|id| !rows.contains_key(id)) {
            wrong.push(format!("{} speaks of {id}, which is not in docs/spec", text.path));
        }
    }
    wrong
}

/// Whether it identifies a check, not a requirement.
fn is_check(id: &str) -> bool {
    id.get(3..4) == Some("A")
}

/// All identifiers in a text: `P`, a digit, `-`, one or two capitals, a number.
fn identifiers(text: &str) -> Vec<&str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-')
        .filter(|word| is_identifier(word))
        .collect()
}

fn is_identifier(word: &str) -> bool {
    let Some((mechanism, rest)) = word.split_once('-') else { return false };
    let number = rest.trim_start_matches(|letter: char| letter.is_ascii_uppercase());
    matches!(mechanism.as_bytes(), [b'P', b'1'..=b'9'])
        && (1..=2).contains(&(rest.len() - number.len()))
        && !number.is_empty()
        && number.bytes().all(|digit| digit.is_ascii_digit())
}

/// The identifier that a test's name begins with: `p1_a5_...` carries P1-A5.
fn carried(name: &str) -> Option<String> {
    let mut words = name.split('_');
    let id = format!("{}-{}", words.next()?, words.next()?).to_uppercase();
    is_identifier(&id).then_some(id)
}

/// The tests that a source file has.
fn tests_in(source: &Text) -> Vec<Test> {
    let path = source.path.as_str();
    let stem = path.rsplit('/').next().and_then(|file| file.strip_suffix(".rs")).unwrap_or_default();
    let names: Vec<(String, &str)> = if path.starts_with("tests/payloads/src/bin/") {
        let functions = source.contents.lines().filter_map(|line| line.strip_suffix("() -> Verdict {"));
        functions.filter_map(function_name).map(|name| (stem.to_owned(), name)).collect()
    } else if path.starts_with("tests/system/tests/") {
        let place = format!("system::{stem}");
        let scenarios = source.contents.split('"').filter_map(|text| text.strip_prefix(stem)?.strip_prefix("::"));
        scenarios.map(|name| (place.clone(), name)).collect()
    } else if path.starts_with("el2/checks/") {
        let names = source.contents.split('"').filter(|text| carried(text).is_some());
        names.map(|name| ("selftest".to_owned(), name)).collect()
    } else if path.starts_with("core/") || path.starts_with("tools/") {
        let place = path.split('/').take(2).collect::<Vec<_>>().join("/");
        let mut is_test = false;
        let mut names = Vec::new();
        for line in source.contents.lines().map(str::trim) {
            if line.starts_with("#[test]") {
                is_test = true;
            } else if let Some(name) = function_name(line)
                && std::mem::take(&mut is_test)
            {
                names.push((place.clone(), name));
            }
        }
        names
    } else {
        Vec::new()
    };
    names.into_iter().map(|(place, name)| (place, name.to_owned())).collect()
}

/// The name of the function that a line begins.
fn function_name(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("fn ")?.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, contents: &str) -> Text {
        Text { path: path.to_owned(), contents: contents.to_owned() }
    }

    fn sources() -> Vec<Text> {
        vec![
            text("tests/payloads/src/bin/doors.rs", "fn p1_a1_version() -> Verdict {\n}\nfn other() -> Verdict {\n}\n"),
            text("tests/system/tests/tools.rs", r#"scenario("tools::not_vmware", run)"#),
            text("el2/checks/src/selftest.rs", r#"("p3_a1_alias", alias), ("crash", crash)"#),
            text(
                "core/clock/src/counter.rs",
                "fn helper() {}\n    #[test]\n    fn identity() {\n    }\n    fn later() {}\n",
            ),
        ]
    }

    const PAGE: &str = "| P1-C1 | required |\n| P1-A1 | answers | `doors::p1_a1_version`, `system::tools` |\n\
        | P1-A2 | later | not built yet |\n| P3-A1 | alias | `selftest::p3_a1_alias` |\n\
        | P5-A1 | same | `core/clock::identity`, `system::tools::not_vmware`, `doors::other` (a part) |\n";

    fn complaints(page: &str, said: &str) -> Vec<String> {
        check(&[text("docs/spec/1.md", page)], &sources(), &[text("a.rs", said)])
    }

    #[test]
    fn pages_and_tests_that_agree() {
        assert_eq!(complaints(PAGE, "// P1-A1 to P1-A2, and P3-A1; not P-1, AP1-A3 or P1-A\n"), Vec::<String>::new());
    }

    #[test]
    fn a_test_that_is_missing_is_found() {
        for gone in ["doors::nothing", "core/clock::helper", "core/clock::later", "system::tools::gone", "system::gone"]
        {
            let wrong = complaints(&PAGE.replace("doors::other", gone), "");
            assert_eq!(wrong, [format!("docs/spec/1.md: P5-A1 names {gone}, and there is no such test")]);
        }
    }

    #[test]
    fn a_check_without_a_test_says_so() {
        let wrong = complaints(&PAGE.replace("not built yet", "soon"), "");
        assert_eq!(wrong, ["docs/spec/1.md: P1-A2 names no test; if there is none it must say \"not built yet\""]);
    }

    #[test]
    fn a_test_with_an_unknown_identifier_is_found() {
        let wrong = complaints(&PAGE.replace("| P3-A1 |", "| P3-A2 |"), "");
        assert_eq!(wrong, ["selftest::p3_a1_alias carries P3-A1, which is not in docs/spec"]);
    }

    #[test]
    fn a_test_that_its_check_does_not_name_is_found() {
        let wrong = complaints(&PAGE.replace("`selftest::p3_a1_alias`", "not built yet"), "");
        assert_eq!(wrong, ["docs/spec/1.md: the row of P3-A1 does not name selftest::p3_a1_alias"]);
    }

    #[test]
    fn an_identifier_that_is_only_spoken_of_is_found() {
        assert_eq!(complaints(PAGE, "/// As P4-A9 says."), ["a.rs speaks of P4-A9, which is not in docs/spec"]);
    }

    #[test]
    fn a_page_of_examples_names_tests_that_exist() {
        let said = text("docs/adding.md", "`doors::other`, `system::tools`, `cpu::exit`, `doors::gone`");
        let wrong = check(&[text("docs/spec/1.md", PAGE)], &sources(), &[said]);
        assert_eq!(wrong, ["docs/adding.md names doors::gone, and there is no such test"]);
    }

    #[test]
    fn an_identifier_has_one_row() {
        let wrong = complaints(&format!("{PAGE}| P1-A2 | again | not built yet |\n"), "");
        assert_eq!(wrong, ["docs/spec/1.md: P1-A2 has a second row"]);
    }
}
