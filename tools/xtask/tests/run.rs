//! `cargo xtask run` from outside, as far as it gets without building anything.

use std::process::Command;

/// A site that is not there, or has mistakes, is told at once, however it is called: cargo is not even started.
#[test]
fn a_site_is_looked_at_before_anything_is_built() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("wrong"), "[host]\nmemory = 1\n").expect("written");
    for arguments in [&["nosuch.toml"][..], &["nosuch"], &["--timeout", "9", "nosuch"], &["--icount", "wrong"]] {
        let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
        xtask.arg("run").args(arguments).current_dir(folder.path()).env("CARGO", folder.path().join("no-cargo"));
        let output = xtask.output().expect("started");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let file = arguments.last().copied().unwrap_or_default();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.lines().all(|line| line.starts_with(&format!("{file}:"))), "{said}");
    }
}

/// A name that selects nothing is a mistake of whoever typed it, and no success, though every part that was asked for is content.
#[test]
#[cfg(unix)]
fn a_name_that_no_test_has_is_a_failure() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().expect("a folder");
    let cargo = folder.path().join("cargo");
    std::fs::write(&cargo, "#!/bin/sh\nexit 0\n").expect("written");
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let output = xtask.args(["test", "--only", "host", "no-such-name"]).env("CARGO", &cargo).output().expect("started");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("FAILED: no test has \"no-such-name\" in its name"), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
}
