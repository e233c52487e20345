//! The layers of the tree (ARCHITECTURE.md): that a crate depends only on crates of its own layer and of those below it, and nothing
//! that ships on what tests it.
//!
//! A layer is a folder at the root. What a build script depends on runs where the crate is built, and what it makes is in the crate, so that
//! counts; a crate under another name is the same crate. Dependencies for tests alone are free: an oracle or a model may stand anywhere.

use super::{Text, all_files};
use crate::tree::Tree;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;

/// A layer, and those whose crates its own may depend on.
const LAYERS: [(&str, &[&str]); 7] = [
    ("core", &["core"]),
    ("boot", &["core", "boot"]),
    ("el2", &["core", "el2"]),
    ("guest", &["core", "guest"]),
    ("tools", &["core", "tools"]),
    ("tests", &["core", "boot", "el2", "guest", "tools", "tests"]),
    ("fuzz", &["core", "tests"]),
];

/// The manifest of the workspace, which is no crate.
const ROOT: &str = "Cargo.toml";

/// Checks the manifests of all crates.
///
/// # Errors
/// Names each dependency against the layers.
pub(super) fn check(tree: &Tree) -> Result<()> {
    let mut files = Vec::new();
    all_files(&tree.path("."), "", &mut files)?;
    let mut manifests = Vec::new();
    for path in files.into_iter().filter(|path| path.ends_with("/Cargo.toml") || path == ROOT) {
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
    let mut workspace = toml::Table::new();
    for manifest in manifests {
        let table: toml::Table = manifest.contents.parse().with_context(|| manifest.path.clone())?;
        if manifest.path == ROOT {
            workspace = table;
            continue;
        }
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
        for used in dependencies(table, &workspace) {
            if let Some((other, _)) = crates.get(used).filter(|(other, _)| !below.contains(other)) {
                wrong.push(format!("{name}, in {layer}/, depends on {used}, in {other}/"));
            }
        }
    }
    Ok(wrong)
}

/// The crates on which a crate depends when it is built, on any target, by their own names.
fn dependencies<'t>(manifest: &'t toml::Table, workspace: &'t toml::Table) -> impl Iterator<Item = &'t str> {
    let shared = workspace.get("workspace").and_then(|all| all.get("dependencies")).and_then(toml::Value::as_table);
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let targets = targets.into_iter().flat_map(toml::Table::values).filter_map(toml::Value::as_table);
    let tables = std::iter::once(manifest).chain(targets);
    let kinds = tables.flat_map(|table| ["dependencies", "build-dependencies"].map(|kind| table.get(kind)));
    kinds.flatten().filter_map(toml::Value::as_table).flatten().map(move |(name, value)| {
        let is_shared = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
        let value = shared.filter(|_| is_shared).and_then(|shared| shared.get(name)).unwrap_or(value);
        value.get("package").and_then(toml::Value::as_str).unwrap_or(name)
    })
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
        assert_eq!(judge(&[manifest("cellar/efi", "")]).unwrap(), ["efi is in cellar/, which is no layer"]);
    }

    #[test]
    fn neither_a_build_script_nor_another_name_is_a_way_around() {
        let root =
            "[workspace.dependencies]\nhw = { path = \"el2/hw\" }\ncpu = { path = \"el2/hw\", package = \"hw\" }\n";
        for text in [
            "[build-dependencies]\nhw = { path = \"x\" }\n",
            "[target.'cfg(unix)'.build-dependencies]\nhw.workspace = true\n",
            "[dependencies]\nregisters = { path = \"x\", package = \"hw\" }\n",
            "[dependencies.registers]\npath = \"x\"\npackage = \"hw\"\n",
            "[dependencies]\ncpu = { workspace = true }\n",
        ] {
            let root = Text { path: ROOT.into(), contents: root.into() };
            let all = [root, manifest("el2/hw", ""), manifest("core/b", text)];
            assert_eq!(judge(&all).unwrap(), ["b, in core/, depends on hw, in el2/"], "{text}");
        }
        // And what is called like a crate of ours is not always that.
        let other = manifest("core/b", "[dependencies]\nhw = { version = \"1\", package = \"hardware\" }\n");
        assert!(judge(&[manifest("el2/hw", ""), other]).unwrap().is_empty());
    }
}
