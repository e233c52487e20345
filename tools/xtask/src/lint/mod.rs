//! `cargo xtask lint`: everything that reads the source without running it.

mod begin;
mod documents;
mod layers;
mod orderings;
mod reports;
mod rooms;
mod specification;
mod style;
mod words;

use crate::compile::{BARE_METAL, FOR_UEFI};
use crate::hooks;
use crate::mutate;
use crate::setup::{Standard, deny};
use crate::tree::{TARGET, Tree, UEFI_TARGET, run};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// The longest that a source file may be, tests included: one idea fits.
const LONGEST_FILE: usize = 800;

/// The folders of what is built for bare metal.
const BARE_METAL_FOLDERS: [&str; 10] = [
    "boot/efi",
    "el2/checks",
    "el2/hw",
    "el2/stage",
    "el2/hypervisor",
    "guest/library",
    "guest/tools",
    "tests/linux",
    "tests/payload-rt",
    "tests/payloads",
];

/// The fuzz targets' workspace.
const FUZZ: &str = "fuzz/Cargo.toml";

/// The page that croft's table of the site file's keys makes.
const SITE_PAGE: &str = "docs/formats/site.md";

/// Formats everything, and writes the pages that are made of source.
pub(crate) fn format(tree: &Tree) -> Result<()> {
    run(tree.cargo().args(["fmt", "--all"]))?;
    run(tree.cargo().args(["fmt", "--manifest-path", FUZZ]))?;
    fs::write(tree.path(SITE_PAGE), croft::site::page()).with_context(|| format!("writing {SITE_PAGE}"))
}

/// A lint: its name, and what runs it.
pub(crate) type Lint = (&'static str, fn(&Tree) -> Result<()>);

/// All lints that every machine can run, the quickest first.
pub(crate) const LINTS: [Lint; 14] = [
    ("formatting", formatted),
    ("layout", layout),
    ("documents", documents),
    ("aliases and editors", begin::check),
    ("layers", layers::check),
    ("rooms", rooms::check),
    ("reports", reports::check),
    ("orderings", orderings::check),
    ("hooks", hooks::check),
    ("mutations", mutate::all_apply),
    ("clippy (host)", clippy_host),
    ("clippy (fuzz targets)", clippy_fuzz),
    ("clippy (bare metal)", clippy_bare_metal),
    ("check and doc (bare metal, each folder)", in_its_folder),
];

/// Runs all lints, up to the first that fails.
pub(crate) fn lint(tree: &Tree) -> Result<()> {
    for (name, lint) in LINTS {
        lint(tree).with_context(|| name)?;
    }
    match dependencies(tree)? {
        None => println!("dependencies: fine"),
        Some(why) => println!("dependencies: skipped: {why}"),
    }
    Ok(())
}

/// Whether everything is formatted, and the pages that are made of source are what it makes.
fn formatted(tree: &Tree) -> Result<()> {
    run(tree.cargo().args(["fmt", "--all", "--check"]))?;
    run(tree.cargo().args(["fmt", "--check", "--manifest-path", FUZZ]))?;
    let page = fs::read_to_string(tree.path(SITE_PAGE)).with_context(|| format!("reading {SITE_PAGE}"))?;
    ensure!(
        page == croft::site::page(),
        "{SITE_PAGE} is not what the table of keys makes; `cargo xtask fmt` writes it"
    );
    Ok(())
}

/// Clippy on everything that runs on this machine.
fn clippy_host(tree: &Tree) -> Result<()> {
    let mut cargo = tree.cargo();
    cargo.args(["clippy", "--quiet", "--workspace", "--all-targets"]);
    cargo.args(BARE_METAL.iter().chain([&FOR_UEFI]).flat_map(|package| ["--exclude", package]));
    run(cargo.args(["--", "-D", "warnings"]))
}

/// Clippy on the fuzz targets, without the fuzzer, which is C++.
fn clippy_fuzz(tree: &Tree) -> Result<()> {
    let mut cargo = tree.cargo();
    cargo.args(["clippy", "--quiet", "--all-targets", "--no-default-features", "--manifest-path", FUZZ]);
    cargo.env("CARGO_TARGET_DIR", tree.target("fuzz"));
    run(cargo.args(["--", "-D", "warnings"]))
}

/// Clippy on everything that runs on bare metal, and in guests.
fn clippy_bare_metal(tree: &Tree) -> Result<()> {
    for (target, packages) in [(TARGET, &BARE_METAL[..]), (UEFI_TARGET, &[FOR_UEFI])] {
        let mut cargo = tree.cargo();
        cargo.args(["clippy", "--quiet", "--release"]);
        cargo.args(packages.iter().flat_map(|package| ["-p", package]));
        Standard::find(tree)?.apply(&mut cargo, target);
        run(cargo.args(["--", "-D", "warnings"]))?;
    }
    Ok(())
}

/// That plain `cargo check` and `cargo doc` mean bare metal in the folders of what is built for it, for whoever stands there,
/// and for editors: each has a `.cargo/config.toml` that says so. Where core has to be built too, only `cargo xtask` knows how.
fn in_its_folder(tree: &Tree) -> Result<()> {
    for folder in BARE_METAL_FOLDERS {
        for order in [&["check", "--quiet"][..], &["doc", "--quiet", "--no-deps"]] {
            let mut cargo = tree.cargo();
            cargo.current_dir(tree.path(folder)).args(order).env("RUSTDOCFLAGS", "-Dwarnings");
            Standard::find(tree)?.add_sources(&mut cargo);
            run(&mut cargo).with_context(|| format!("in {folder}"))?;
        }
    }
    Ok(())
}

/// Licences, sources and doubled versions of what we and the fuzz targets depend on, if cargo-deny is here; else the reason why
/// not.
pub(crate) fn dependencies(tree: &Tree) -> Result<Option<String>> {
    // deny.toml serves both. What it allows must be met in what ships; the exceptions are the fuzzer's own.
    let (unmet, foreign) = ("license-not-encountered", "license-exception-not-encountered");
    for (manifest, deny, allow) in [("Cargo.toml", Some(unmet), foreign), (FUZZ, None, unmet)] {
        let Some(mut program) = deny::find(tree) else {
            return Ok(Some("cargo-deny is not installed; `cargo xtask setup --all` fetches it".into()));
        };
        program.arg("--manifest-path").arg(tree.path(manifest)).arg("--config").arg(tree.path("deny.toml"));
        program.args(["check", "--hide-inclusion-graph", "--allow", allow, "--allow", "duplicate"]);
        program.args(deny.iter().flat_map(|lint| ["--deny", lint]));
        // The advisories need a database from elsewhere; the other checks need nothing.
        run(program.args(["licenses", "bans", "sources"])).with_context(|| format!("on {manifest}"))?;
    }
    Ok(None)
}

/// The rules of the tree that no compiler knows: `core/` has no unsafe code and no hardware, no file grows beyond its idea.
fn layout(tree: &Tree) -> Result<()> {
    let mut wrong = Vec::new();
    for entry in fs::read_dir(tree.path("core"))? {
        let folder = entry?.path();
        let root = folder.join("src/lib.rs");
        let text = fs::read_to_string(&root).with_context(|| format!("reading {}", root.display()))?;
        for rule in ["#![no_std]", "#![forbid(unsafe_code)]"] {
            if !text.contains(rule) && !text.contains(&rule.replace("#![no_std]", "#![cfg_attr(not(test), no_std)]")) {
                wrong.push(format!("{} lacks {rule}", root.display()));
            }
        }
        for file in sources(&folder.join("src"))? {
            let text = fs::read_to_string(&file)?;
            for never in ["asm!(", "target_arch"] {
                if text.contains(never) {
                    wrong.push(format!("{} has {never}, which belongs into el2/", file.display()));
                }
            }
        }
    }
    for folder in ["core", "el2", "tools", "tests", "boot", "guest"] {
        for file in sources(&tree.path(folder))? {
            let lines = fs::read_to_string(&file)?.lines().count();
            if lines > LONGEST_FILE {
                wrong.push(format!("{} has {lines} lines; split it below {LONGEST_FILE}", file.display()));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A file of the tree, and what it holds.
struct Text {
    path: String,
    contents: String,
}

/// That what documents and comments point to is there, and that each check of `docs/spec` names the tests that prove it.
fn documents(tree: &Tree) -> Result<()> {
    let mut files = Vec::new();
    all_files(&tree.path("."), "", &mut files)?;
    let mut texts = Vec::new();
    // What a changelog tells of may be gone by now; its lines are looked at below.
    for path in files.iter().filter(|path| *path != "CHANGELOG.md" && (path.ends_with(".rs") || path.ends_with(".md")))
    {
        let contents = fs::read_to_string(tree.path(path)).with_context(|| format!("reading {path}"))?;
        texts.push(Text { path: path.clone(), contents });
    }
    // The lint's own tests speak of what is not there.
    texts.retain(|text| !text.path.starts_with("tools/xtask/src/lint/"));
    let (pages, others): (Vec<_>, Vec<_>) = texts.into_iter().partition(|text| text.path.starts_with("docs/spec/"));
    let path = "CHANGELOG.md".to_owned();
    let changelog = Text { contents: fs::read_to_string(tree.path(&path))?, path };
    let mut wrong = specification::check(&pages, &others, &others);
    wrong.extend(style::check(&[changelog]));
    wrong.extend(documents::check(&pages, &files));
    wrong.extend(documents::check(&others, &files));
    wrong.extend(style::check(&pages));
    wrong.extend(style::check(&others));
    wrong.extend(words::check(&others));
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The paths of all files below `folder` that belong to the work tree, each with `prefix` in front.
fn all_files(folder: &Path, prefix: &str, found: &mut Vec<String>) -> Result<()> {
    const NOT_OURS: [&str; 4] = [".git", ".undercroft", "target", "corpus"];
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if entry.file_type()?.is_dir() {
            if !NOT_OURS.contains(&name.as_str()) {
                all_files(&entry.path(), &format!("{path}/"), found)?;
            }
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// What stands between backquotes in a line.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// All Rust files below a folder; none if there is no such folder.
pub(crate) fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(found) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}
