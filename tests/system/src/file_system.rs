//! File systems as files, made and looked at by this computer's tools.

use crate::place;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many files are on a disk of [`file_system`].
pub const FILES: usize = 40;
/// How many bytes the largest has.
const LARGEST: usize = 300_000;

/// What a program of this computer prints.
///
/// # Errors
/// If it fails, or there is no such program.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| name.clone())?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// An ext4 file system with files, no two of them alike, and `SUMS`, by which `sha256sum -c` judges them. `salt` makes it another one.
///
/// # Errors
/// If it cannot be made.
pub fn file_system(folder: &Path, name: &str, salt: u64) -> Result<PathBuf> {
    let files = folder.join(format!("{name}.files"));
    fs::create_dir(&files)?;
    let mut state = salt | 1;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state >> 33
    };
    for number in 0..FILES {
        let bytes: Vec<u8> = (0..next() as usize % LARGEST).map(|_| next() as u8).collect();
        fs::write(files.join(format!("file-{number}")), bytes)?;
    }
    let names = (0..FILES).map(|number| format!("file-{number}"));
    let sums = output(Command::new("sha256sum").current_dir(&files).args(names))?;
    fs::write(files.join("SUMS"), sums)?;
    let image = folder.join(format!("{name}.img"));
    match administer("mke2fs -q -t ext4 -d \"$0\" \"$1\" 24M", [&files, &image])? {
        0 => Ok(image),
        other => bail!("mke2fs ends with {other}"),
    }
}

/// Runs a tool of administrators', with these files as `$0` and `$1`. Its status.
fn administer(command: &str, files: [&Path; 2]) -> Result<i32> {
    // Those that setup unpacked, whatever this computer has.
    let own = place::project().join(".undercroft/bin");
    let path = format!("{}:{}", own.display(), std::env::var("PATH").unwrap_or_default());
    let tool = command.split(' ').next().unwrap_or_default();
    ensure!(own.join(tool).is_file(), "no {}; run `cargo xtask setup --all`", own.join(tool).display());
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(format!("exec {command}")).args(files);
    shell.env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null());
    match shell.status()?.code() {
        Some(status) => Ok(status),
        None => bail!("{command} was ended"),
    }
}

/// Mends an ext4 file system as it is mended when it is mounted next: what its journal has is done.
///
/// # Errors
/// If there is more to mend than that.
pub fn recover(image: &Path) -> Result<()> {
    let first = administer("e2fsck -fp \"$0\"", [image, image])?;
    ensure!(first <= 1, "e2fsck -p ends with {first}");
    let again = administer("e2fsck -fn \"$0\"", [image, image])?;
    ensure!(again == 0, "the file system is not consistent: e2fsck ends with {again}");
    Ok(())
}

/// The SHA-256 of file `name` in the top folder of an ext4 file system; of nothing, if there is none.
///
/// # Errors
/// If it cannot be read.
pub fn sum_of(image: &Path, name: &str) -> Result<String> {
    let file = image.with_extension("dumped");
    fs::write(&file, [])?;
    let status = administer(&format!("debugfs -R \"dump /{name} $1\" \"$0\""), [image, &file])?;
    ensure!(status == 0, "debugfs ends with {status}");
    let sum = output(Command::new("sha256sum").arg(&file))?;
    Ok(sum.split(' ').next().unwrap_or_default().to_owned())
}

/// The SHA-256 of each of these files in the top folder of an ext4 file system; of nothing, for one that is not there.
///
/// # Errors
/// If they cannot be read.
pub fn sums_of(image: &Path, names: &[String]) -> Result<Vec<String>> {
    let folder = image.with_extension("dumps");
    fs::create_dir_all(&folder)?;
    let mut orders = String::new();
    for name in names {
        let file = folder.join(name);
        fs::write(&file, [])?;
        orders += &format!("dump /{name} {}\n", file.display());
    }
    let list = image.with_extension("orders");
    fs::write(&list, orders)?;
    let status = administer("debugfs -f \"$1\" \"$0\"", [image, &list])?;
    ensure!(status == 0, "debugfs ends with {status}");
    let sums = output(Command::new("sha256sum").current_dir(&folder).args(names))?;
    fs::remove_dir_all(&folder)?;
    Ok(sums.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}
