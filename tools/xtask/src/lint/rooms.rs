//! The rooms of the hypervisor, and that imports go one way between them.
//!
//! Each folder of `el2/hypervisor/src` is a room. The head of its root file lists them, a numbered line each; a room may use the
//! rooms that stand below it in that list, and no other. So the rooms that a room uses can be read without it, and there is no
//! circle. This module reads the paths that begin at the crate's root, `crate::...`, and those that climb there by `super::`.

use crate::tree::Tree;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// Checks the hypervisor's source.
///
/// # Errors
/// Names each import against the order, and each room that is not in it.
pub(crate) fn check(tree: &Tree) -> Result<()> {
    let folder = tree.path("el2/hypervisor/src");
    let root = folder.join("lib.rs");
    let order = order(&fs::read_to_string(&root).with_context(|| format!("reading {}", root.display()))?);
    let mut sources = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&folder, &path, &mut sources)?;
        } else if path != root && path != folder.join("main.rs") {
            sources.push((relative(&folder, &path), String::new()));
        }
    }
    sources.sort();
    let wrong = judge(&order, &sources);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn collect(root: &Path, folder: &Path, sources: &mut Vec<(PathBuf, String)>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, sources)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            sources.push((relative(root, &path), fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

fn relative(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_owned()
}

/// The rooms in the order in which the root file's head lists them: lines like ``//! 3. `exit`: ...``.
fn order(root: &str) -> Vec<String> {
    let name = |line: &str| {
        let (number, rest) = line.strip_prefix("//! ")?.split_once(". `")?;
        number.parse::<u32>().ok()?;
        Some(rest.split_once('`')?.0.to_owned())
    };
    root.lines().filter_map(name).collect()
}

/// What is wrong with `sources`, by their places below the root.
fn judge(order: &[String], sources: &[(PathBuf, String)]) -> Vec<String> {
    let rank = |room: &str| order.iter().position(|known| known == room);
    let mut wrong = Vec::new();
    for room in order {
        if !sources.iter().any(|(file, _)| file.starts_with(room)) {
            wrong.push(format!("the room {room} is in the order of the hypervisor's root file, and has no folder"));
        }
    }
    for (file, text) in sources {
        let room = match file.components().collect::<Vec<_>>().as_slice() {
            [room, _, ..] => room.as_os_str().to_string_lossy().into_owned(),
            _ => {
                wrong.push(format!("{} stands in no room: move it into a folder", file.display()));
                continue;
            }
        };
        let Some(own) = rank(&room) else {
            wrong.push(format!("the room {room} is not in the order of the hypervisor's root file"));
            continue;
        };
        for used in used_rooms(file, text) {
            match rank(&used) {
                Some(other) if other < own => wrong.push(format!(
                    "{} uses the room {used}, which stands above {room}: let {used} hand it down, or move it below",
                    file.display()
                )),
                Some(_) => {}
                // Whatever the root itself had (a re-export, a macro) would be a way around the order.
                None => wrong.push(format!("{} uses {used} of the root, which is no room", file.display())),
            }
        }
    }
    wrong.dedup();
    wrong
}

/// The names behind `crate::` in `text`, and behind as many `super::` as lead from `file` to the root; without its comments.
fn used_rooms(file: &Path, text: &str) -> Vec<String> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or(line)).collect::<Vec<_>>().join("\n");
    let depth = file.components().count() - usize::from(file.ends_with("mod.rs"));
    let climb = "super::".repeat(depth);
    let mut used = Vec::new();
    for prefix in ["crate::", &climb] {
        for (at, _) in code.match_indices(prefix) {
            let before = code.get(..at).and_then(|code| code.chars().next_back());
            if before.is_some_and(|last| last.is_alphanumeric() || last == '_' || last == ':') {
                continue;
            }
            heads(code.get(at + prefix.len()..).unwrap_or(""), &mut used);
        }
    }
    used
}

/// The first name of each path at the begin of `code`: one, or several in braces.
fn heads(code: &str, into: &mut Vec<String>) {
    let name =
        |code: &str| code.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect::<String>();
    let Some(list) = code.strip_prefix('{') else {
        into.push(name(code));
        return;
    };
    let mut depth = 0;
    let mut item = String::new();
    for letter in list.chars() {
        match letter {
            ',' if depth == 0 => into.push(name(std::mem::take(&mut item).trim())),
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if letter != ',' || depth > 0 {
            item.push(letter);
        }
    }
    into.push(name(item.trim()));
    // Behind the last comma there may be nothing.
    into.retain(|name| !name.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "//! The rooms:\n//!\n//! 1. `boot`: the start\n//! 2. `vm`: a machine\n//! 3. `host`: below\n";

    /// What is wrong with one file, beside harmless ones in every room.
    fn wrong(file: &str, text: &str) -> Vec<String> {
        let mut sources: Vec<(PathBuf, String)> =
            ["boot", "vm", "host"].map(|room| (PathBuf::from(room).join("other.rs"), String::new())).into();
        sources.push((file.into(), text.into()));
        judge(&order(ROOT), &sources)
    }

    #[test]
    fn imports_down_the_list_are_right() {
        assert_eq!(order(ROOT), ["boot", "vm", "host"]);
        for text in ["use crate::host::ticks;", "use crate::{host, vm::Vm};", "use crate::vm::{self, watchdog};"] {
            assert!(wrong("vm/mod.rs", text).is_empty(), "{text}");
        }
        // A comment is no import, nor is a path of another crate's, nor one of this room's own.
        for text in ["/// See [`crate::boot::main`].", "use other::crate::boot;", "use super::boot;"] {
            assert!(wrong("vm/watchdog.rs", text).is_empty(), "{text}");
        }
    }

    #[test]
    fn imports_against_the_order_are_found() {
        let cases = [
            ("host/memory.rs", "use crate::vm::Vm;"),
            ("host/memory.rs", "pub(crate) use crate::{host, vm::{Vm, by_id}};"),
            ("host/memory.rs", "use crate::{\n    host::ticks,\n    boot,\n};"),
            ("host/memory.rs", "fn go() {\n    crate::boot::main();\n}"),
            ("vm/mod.rs", "macro_rules! go { () => { $crate::boot::main() }; }"),
            ("vm/mod.rs", "use super::boot::main;"),
            ("vm/watchdog.rs", "use super::super::boot::main;"),
            ("vm/devices/disk.rs", "use super::super::super::boot;"),
        ];
        for (file, text) in cases {
            let found = wrong(file, text);
            assert!(matches!(found.as_slice(), [one] if one.contains("which stands above")), "{text}: {found:?}");
        }
    }

    #[test]
    fn rooms_and_the_order_name_the_same() {
        assert!(wrong("cellar/mod.rs", "").iter().any(|line| line.contains("cellar is not in the order")));
        assert!(wrong("loose.rs", "").iter().any(|line| line.contains("stands in no room")));
        let order = order(ROOT);
        let missing = judge(&order, &[("boot/mod.rs".into(), String::new()), ("vm/mod.rs".into(), String::new())]);
        assert!(missing.iter().any(|line| line.contains("host") && line.contains("has no folder")), "{missing:?}");
    }
}
