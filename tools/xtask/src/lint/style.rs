//! The rules of docs/style.md that are about lines and words, and that no compiler knows.

use super::Text;

/// The longest line of a comment. Code is rustfmt's business.
const COMMENT: usize = 150;

/// The longest line of a document, but for tables, which cannot be broken.
const DOCUMENT: usize = 150;

/// What `core/` has nothing of, with the word that gives it away: locks, clocks, a log.
const NEVER_IN_CORE: [&str; 6] = ["spin::", "std::sync", "Mutex<", "Instant::", "SystemTime", "log::"];

/// What makes a file one that docs/unsafe.md has to know.
const UNSAFE: [&str; 4] = ["unsafe {", "unsafe fn", "unsafe impl", "global_asm!"];

/// Where a source may opt into unsafe code: a crate, or a test.
const OPTS_IN: [&str; 8] = [
    "boot/efi/",
    "core/virtio/tests/",
    "el2/hw/",
    "guest/library/",
    "guest/tools/",
    "tests/linux/",
    "tests/payload-rt/",
    "tests/scarce/",
];

/// What of the texts is against the rules.
pub(super) fn check(texts: &[Text]) -> Vec<String> {
    let mut wrong = Vec::new();
    let audit = texts.iter().find(|text| text.path == "docs/unsafe.md").map_or("", |text| &text.contents);
    for text in texts {
        if text.path.ends_with(".md") {
            long_document_lines(text, &mut wrong);
            continue;
        }
        for (number, line) in (1..).zip(text.contents.lines()) {
            let columns = line.chars().count();
            let is_comment = line.trim_start().starts_with("//") && !line.trim_start().starts_with("//! |");
            if is_comment && columns > COMMENT {
                wrong.push(format!("{}:{number}: a comment of {columns} columns; {COMMENT} are the most", text.path));
            }
        }
        if !text.contents.starts_with("//!") {
            wrong.push(format!("{} begins with no story (//!)", text.path));
        }
        if text.path.starts_with("core/") && text.path.contains("/src/") {
            let used = code(&text.contents).find_map(|line| NEVER_IN_CORE.iter().find(|word| line.contains(*word)));
            wrong.extend(used.map(|word| format!("{} has {word}, which is nothing for core/", text.path)));
        }
        if let Some(file) = text.path.strip_prefix("el2/hw/src/")
            && code(&text.contents).any(|line| UNSAFE.iter().any(|word| line.contains(word)))
            && !audit.contains(&format!("`{file}`"))
        {
            wrong.push(format!("{} has unsafe code, and docs/unsafe.md does not name it", text.path));
        }
        if code(&text.contents).any(|line| line.contains("[expect(unsafe_code"))
            && !OPTS_IN.iter().any(|place| text.path.starts_with(place))
        {
            wrong.push(format!("{} opts into unsafe code, which is for {} alone", text.path, OPTS_IN.join(", ")));
        }
    }
    wrong
}

/// A source's lines without comments, up to its tests. A line that is for tests alone may stand further up (`extern crate std`).
fn code(source: &str) -> impl Iterator<Item = &str> {
    let lines = source.lines().take_while(|line| !line.starts_with("mod tests {"));
    lines.filter(|line| !line.trim_start().starts_with("//"))
}

fn long_document_lines(text: &Text, wrong: &mut Vec<String>) {
    let mut is_code = false;
    for (number, line) in (1..).zip(text.contents.lines()) {
        is_code ^= line.trim_start().starts_with("```");
        let columns = line.chars().count();
        if columns > DOCUMENT && !is_code && !line.starts_with('|') {
            wrong.push(format!("{}:{number}: {columns} columns; {DOCUMENT} are the most", text.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, contents: &str) -> Vec<String> {
        let audit = Text { path: "docs/unsafe.md".into(), contents: "| `vcpu.rs` | `el2/hw` |".into() };
        check(&[audit, Text { path: path.into(), contents: contents.into() }])
    }

    #[test]
    fn lines_that_are_too_long() {
        let (comment, document) = ("x".repeat(148), "x".repeat(151));
        assert_eq!(complaints("tools/a.rs", &format!("//! A.\n// {comment}\n")).len(), 1);
        assert!(complaints("tools/a.rs", &format!("//! A.\n// {}\n", &comment[..147])).is_empty());
        assert_eq!(complaints("docs/a.md", &document).len(), 1);
        assert!(complaints("docs/a.md", &format!("| {document} |\n```\n{document}\n```\n")).is_empty());
    }

    #[test]
    fn a_file_begins_with_its_story() {
        assert_eq!(complaints("tools/a.rs", "use std::fs;\n"), ["tools/a.rs begins with no story (//!)"]);
    }

    #[test]
    fn core_has_no_locks_clocks_or_logs() {
        let wrong = complaints("core/cpu/src/a.rs", "//! A.\nuse spin::Once;\n");
        assert_eq!(wrong, ["core/cpu/src/a.rs has spin::, which is nothing for core/"]);
        assert!(
            complaints(
                "core/cpu/src/a.rs",
                "//! Not log::info.\n#[cfg(test)]\nmod tests {\n    use std::sync::Mutex;\n}\n"
            )
            .is_empty()
        );
        let behind = "//! A.\n#[cfg(test)]\nextern crate std;\nuse spin::Once;\n";
        assert_eq!(complaints("core/cpu/src/lib.rs", behind).len(), 1);
        assert!(complaints("el2/hypervisor/src/a.rs", "//! A.\nuse spin::Once;\n").is_empty());
    }

    #[test]
    fn unsafe_code_that_nobody_looked_at() {
        let source = "//! A.\nfn a() { unsafe { b() } }\n";
        assert_eq!(complaints("el2/hw/src/new.rs", source).len(), 1);
        assert!(complaints("el2/hw/src/vcpu.rs", source).is_empty());
        let opts_in = "//! A.\n#![expect(unsafe_code, reason = \"...\")]\n";
        assert_eq!(complaints("el2/other/src/lib.rs", opts_in).len(), 1);
        assert!(complaints("el2/hw/src/lib.rs", opts_in).is_empty());
        let for_an_item = "//! A.\n#[expect(unsafe_code, reason = \"...\")]\nfn a() {}\n";
        // The page says of this crate that it has none.
        let page = Text { path: "docs/unsafe.md".into(), contents: include_str!("../../../../docs/unsafe.md").into() };
        let source = Text { path: "el2/hypervisor/src/a.rs".into(), contents: for_an_item.into() };
        assert_eq!(check(&[page, source]).len(), 1);
    }
}
