//! What somebody new relies on before anything works: cargo's aliases, and what CONTRIBUTING tells an editor.
//!
//! An alias that is quiet leaves the terminal blank for the minute in which cargo builds, and for as long as it waits for another build.
//! The block for rust-analyzer names the target of bare-metal code, which the folders' own configurations name too.

use crate::tree::{TARGET, Tree, UEFI_TARGET};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;

const CONFIGURATION: &str = ".cargo/config.toml";
const PAGE: &str = "CONTRIBUTING.md";
/// The key that names the editor's target.
const EDITORS_TARGET: &str = "rust-analyzer.cargo.target";

/// Checks both, in all of cargo's configurations that lead to bare metal, and in the root's.
pub(super) fn check(tree: &Tree) -> Result<()> {
    let read = |path: &str| fs::read_to_string(tree.path(path)).with_context(|| format!("reading {path}"));
    let mut wrong = aliases(CONFIGURATION, &read(CONFIGURATION)?);
    let page = read(PAGE)?;
    for folder in super::BARE_METAL_FOLDERS {
        // As cargo does: the nearest one, here or above.
        let places = Path::new(folder).ancestors().map(|up| up.join(CONFIGURATION).to_string_lossy().into_owned());
        let found = places.filter_map(|place| Some((read(&place).ok()?, place))).next();
        let (text, place) = found.with_context(|| format!("{folder} has no {CONFIGURATION}"))?;
        match target(&text) {
            Some(target) if target == TARGET => wrong.extend(editor(&page, &target)),
            // An editor has one target at a time, and the loader is small.
            Some(target) if target == UEFI_TARGET && folder == "boot/efi" => {}
            other => wrong.push(format!("{place} names the target {other:?}, and `cargo xtask` builds for {TARGET}")),
        }
        wrong.extend(aliases(&place, &text));
    }
    wrong.sort();
    wrong.dedup();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// What is wrong with the aliases in a configuration of cargo's, which is at `place`.
fn aliases(place: &str, configuration: &str) -> Vec<String> {
    let Ok(parsed) = configuration.parse::<toml::Table>() else { return vec![format!("{place} is no TOML")] };
    let Some(aliases) = parsed.get("alias").and_then(toml::Value::as_table) else {
        return vec![format!("{place} has no aliases")];
    };
    let is_quiet = |word: &str| matches!(word, "--quiet" | "-q");
    let says_so = |value: &toml::Value| match value {
        toml::Value::String(words) => words.split_whitespace().any(is_quiet),
        toml::Value::Array(words) => words.iter().filter_map(toml::Value::as_str).any(is_quiet),
        _ => false,
    };
    let quiet = aliases.iter().filter(|(_, value)| says_so(value));
    quiet.map(|(name, _)| format!("{place}: the alias {name} is quiet, and so is the first minute")).collect()
}

/// The target that a configuration of cargo's names for builds.
fn target(configuration: &str) -> Option<String> {
    let parsed = configuration.parse::<toml::Table>().ok()?;
    Some(parsed.get("build")?.get("target")?.as_str()?.to_owned())
}

/// What is wrong with the page's block for editors, for code that is built for `target`.
fn editor(page: &str, target: &str) -> Vec<String> {
    let blocks = page.split("```json\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let parsed = blocks.map(|(block, _)| serde_json::from_str::<Value>(block));
    let named: Vec<_> = parsed.map(|block| block.ok()?.get(EDITORS_TARGET)?.as_str().map(str::to_owned)).collect();
    match &named[..] {
        [Some(named)] if named == target => Vec::new(),
        [Some(named)] => vec![format!("{PAGE}: {EDITORS_TARGET} is {named}, and the code is built for {target}")],
        _ => vec![format!("{PAGE} has no block of JSON, or more than one, that has {EDITORS_TARGET}")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_that_is_quiet_is_found() {
        let aliases = |line: &str| aliases("a.toml", &format!("[alias]\n{line}\n"));
        assert_eq!(aliases("xtask = \"run --package xtask --\""), Vec::<String>::new());
        for quiet in ["\"run --quiet --package xtask --\"", "\"run -q -p xtask --\"", "[\"run\", \"--quiet\"]"] {
            let found = aliases(&format!("croft = \"run\"\nxtask = {quiet}"));
            assert_eq!(found, ["a.toml: the alias xtask is quiet, and so is the first minute"]);
        }
    }

    #[test]
    fn another_target_for_editors_is_found() {
        let page = |named: &str| {
            format!("Words.\n\n```json\n{{ \"{EDITORS_TARGET}\": \"{named}\", \"x\": false }}\n```\nMore.\n")
        };
        assert_eq!(target("[build]\ntarget = \"bare\"\n"), Some("bare".to_owned()));
        assert_eq!(target("[alias]\nx = \"y\"\n"), None);
        assert_eq!(editor(&page("bare"), "bare"), Vec::<String>::new());
        assert_eq!(editor(&page("none"), "bare").len(), 1);
        for other in ["", "```json\n{\n```\n", "```json\n{}\n```\n", &format!("{0}{0}", page("bare"))] {
            assert!(editor(other, "bare").iter().any(|said| said.contains("or more than one")), "{other}");
        }
    }
}
