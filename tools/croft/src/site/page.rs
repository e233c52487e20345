//! The page about site files, written from the table of their keys: `docs/formats/site.md`.

use super::keys::{Absent, Key, Needs, TABLES, Table};
use std::fmt::Write;

/// What stands before the tables.
const INTRODUCTION: &str = "\
# The site file

A site file says which VMs there are, and which machine `croft run` emulates for them. It is TOML: a table `[host]` and a table `[[vm]]` for each VM,
in the order of their numbers. `croft check SITE.toml` reports every mistake with its line and what would be right; a key without effect is one too.

A size is a number with `K`, `M` or `G` (powers of 1024) in quotes; a number alone counts bytes. A frequency may have a point, and `K`, `M` or `G`
(powers of 1000). Paths are relative to the folder of the site file.

This page is written by `cargo xtask fmt` from the table in `tools/croft/src/site/keys.rs`, which the reader of site files works with;
`cargo xtask lint` fails if they differ.
";

/// The page.
#[must_use]
pub fn page() -> String {
    let all = TABLES.iter().flat_map(|table| std::iter::once(*table).chain(table.inner()));
    all.fold(INTRODUCTION.to_owned(), |page, table| page + &section(table))
}

fn section(table: &Table) -> String {
    let mut text = format!("\n## `{}`\n\n{}\n\n", table.head, table.says);
    text.push_str(
        "| key | what stands there | if it is left out | for example | what it is for |\n|---|---|---|---|---|\n",
    );
    for key in table.keys {
        // Writing to a text cannot fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | `{}` | {}{} |",
            key.name,
            key.form.described(),
            absent(key),
            key.example,
            key.says,
            needs(key)
        );
    }
    text
}

fn absent(key: &Key) -> String {
    match &key.absent {
        Absent::Wrong => "a mistake".to_owned(),
        Absent::WrongWithout(other, _) => format!("a mistake, unless there is `{other}`"),
        Absent::Unknown(says) | Absent::Said(_, says) => (*says).to_owned(),
        Absent::Usual(value) => format!("`{}`", key.form.shown(value)),
    }
}

fn needs(key: &Key) -> String {
    let quoted = |needed: &&str| format!("`{needed}`");
    match key.needs {
        Needs::Nothing => String::new(),
        Needs::AnyOf(needed) => {
            format!(" Only with {}.", needed.iter().map(quoted).collect::<Vec<_>>().join(" or "))
        }
        Needs::Key(needed, _) => format!(" Only with `{needed}`."),
        Needs::Without(other, _) => format!(" Only without `{other}`."),
    }
}
