//! The layers of the tree (ARCHITECTURE.md): that a crate depends only on crates of its own layer and of those below it, and nothing
//! that ships on what tests it.
//!
//! A layer is a folder at the root. Dependencies for tests alone are free: an oracle or a model may stand anywhere.

use super::{Text, all_files};
use crate::tree::Tree;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;

/// A layer, and those whose crates its own may depend on.
const LAYERS: [(&str, &[&str]); 6] = [
    ("core", &["core"]),
    ("el2", &["core", "el2"]),
    ("guest", &["core", "guest"]),
    ("tools", &["core", "tools"]),
    ("tests", &["core", "el2", "guest", "tools", "tests"]),
    ("fuzz", &["core", "tests"]),
];

/// Checks the manifests of all crates.
///
/// # Errors
/// Names each dependency against the layers.
pub(super) fn check(tree: &Tree) -> Result<()> {
    let mut files = Vec::new();
    all_files(&tree.path("."), "", &mut files)?;
    let mut manifests = Vec::new();
    for path in files.into_iter().filter(|path| path.ends_with("/Cargo.toml")) {
        let contents = fs::read_to_string(tree.path(&path)).with_context(|| format!("reading {path}"))?;
        manifests.push(Text { path, contents });
    }
    let wrong = judge(&manifests)?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// What is wrong with the crates of these manifests.
fn judge(manifests: &[Text]) -> Result<Vec<String>> {
    let mut crates = BTreeMap::new();
    for manifest in manifests {
        let table: toml::Table = manifest.contents.parse().with_context(|| manifest.path.clone())?;
        let name = table.get("package").and_then(|package| package.get("name")).and_then(toml::Value::as_str);
        let name = name.with_context(|| format!("{} names no package", manifest.path))?.to_owned();
        let layer = manifest.path.split('/').next().unwrap_or_default();
        crates.insert(name, (layer, table));
    }
    let mut wrong = Vec::new();
    for (name, (layer, table)) in &crates {
        let Some((_, below)) = LAYERS.iter().find(|(known, _)| known == layer) else {
            wrong.push(format!("{name} is in {layer}/, which is no layer"));
            continue;
        };
        for used in dependencies(table) {
            if let Some((other, _)) = crates.get(used).filter(|(other, _)| !below.contains(other)) {
                wrong.push(format!("{name}, in {layer}/, depends on {used}, in {other}/"));
            }
        }
    }
    Ok(wrong)
}

/// What a crate depends on when it is built, on any target.
fn dependencies(manifest: &toml::Table) -> impl Iterator<Item = &str> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let targets = targets.into_iter().flat_map(toml::Table::values).filter_map(toml::Value::as_table);
    let tables = std::iter::once(manifest).chain(targets);
    tables.filter_map(|table| table.get("dependencies")?.as_table()).flat_map(toml::Table::keys).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(path: &str, text: &str) -> Text {
        let name = path.rsplit('/').next().unwrap_or_default();
        Text { path: format!("{path}/Cargo.toml"), contents: format!("[package]\nname = \"{name}\"\n{text}") }
    }

    #[test]
    fn dependencies_go_down_the_layers() {
        let all = |text: &str| {
            let others = [manifest("core/a", ""), manifest("el2/hw", "[dependencies]\na = \"1\"\nspin = \"1\"\n")];
            let more = [manifest("tests/model", "[dependencies]\nhw.workspace = true\n"), manifest("core/b", text)];
            judge(&others.into_iter().chain(more).collect::<Vec<_>>()).unwrap()
        };
        assert!(
            all("[dependencies]\na = { workspace = true }\n[dev-dependencies]\nmodel.workspace = true\n").is_empty()
        );
        assert_eq!(all("[dependencies]\nhw = { path = \"x\" }\n"), ["b, in core/, depends on hw, in el2/"]);
        assert_eq!(all("[target.'cfg(unix)'.dependencies]\nmodel = \"1\"\n").len(), 1);
        assert_eq!(judge(&[manifest("boot/efi", "")]).unwrap(), ["efi is in boot/, which is no layer"]);
    }
}
