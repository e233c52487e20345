//! `cargo xtask bench --linux`: what a Linux guest loses against the same kernel on the bare machine.
//!
//! The same Debian kernel with the same initramfs runs twice, counted in instructions: on the bare machine, and as a VM.
//! Its only process is `tests/linux-bench`, which measures everything once to settle and once to report.

use crate::bench::{Row, find, parse};
use crate::setup::guests;
use crate::tree::Tree;
use crate::trial::Trial;
use anyhow::{Context, Result, ensure};
use croft::site::Vm;
use std::path::Path;
use std::time::Duration;

/// The kernel that is measured.
pub(crate) const KERNEL: &str = "linux-6.12-cloud";

/// An operation, and by how much a guest may be slower than the bare machine: a part of it, and a number on top.
struct Bound {
    name: &'static str,
    what: &'static str,
    part: f64,
    more: f64,
}

const fn bound(name: &'static str, what: &'static str, part: f64, more: f64) -> Bound {
    Bound { name, what, part, more }
}

/// The rows. What is allowed on top of the part for fork and exec and for page faults is by how much two boots of the bare
/// machine differ among themselves (addresses, hash chains), for boot by a percent; the other rows repeat to the last digit.
const BOUNDS: [Bound; 6] = [
    bound("boot", "boot to the first process", 0.03, 8_000_000.0),
    bound("fork-exec", "fork, exec, exit, wait", 0.001, 500.0),
    bound("pipe", "pipe ping-pong", 0.001, 0.0),
    bound("page-fault", "4 KiB anonymous page fault", 0.001, 5.0),
    bound("usleep", "usleep(1 ms)", 0.0, 1500.0),
    bound("cpu-loop", "CPU loop", 0.001, 0.0),
];

/// Measures both, shows both; fails if a bound is exceeded.
pub(crate) fn compare(tree: &Tree, json: Option<&Path>) -> Result<()> {
    let (bare, guest) = measure(tree)?;
    show(&bare, &guest);
    if let Some(file) = json {
        let rows = BOUNDS.iter().map(|bound| {
            let (bare, guest) = (find(&bare, bound.name), find(&guest, bound.name));
            serde_json::json!({ "name": bound.name, "bare": bare, "guest": guest })
        });
        let text = serde_json::json!({ "rows": rows.collect::<Vec<_>>() }).to_string();
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    let wrong = violations(&bare, &guest);
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// Prints the table.
pub(crate) fn show(bare: &[Row], guest: &[Row]) {
    println!("virtual nanoseconds = instructions, idle time included; Debian's 6.12 kernel, 1 CPU, 512 MiB\n");
    println!("{:<30}{:>16}{:>16}{:>14}{:>10}", "operation", "bare machine", "guest", "more", "%");
    for bound in &BOUNDS {
        let (Some(bare), Some(guest)) = (find(bare, bound.name), find(guest, bound.name)) else { continue };
        let (more, part) = (guest - bare, (guest - bare) / bare * 100.0);
        println!("{:<30}{bare:>16.1}{guest:>16.1}{more:>14.1}{part:>10.2}", bound.what);
    }
    println!();
}

/// How many rows there are to object to.
pub(crate) const fn bounds() -> usize {
    BOUNDS.len()
}

/// The rows on the bare machine, and in a guest.
pub(crate) fn measure(tree: &Tree) -> Result<(Vec<Row>, Vec<Row>)> {
    let mut vm = Vm::new("linux-bench", guests::image(tree, KERNEL), 512 << 20);
    vm.initrd = Some(guests::initramfs(tree));
    // No randomised addresses: with them, page tables and so costs differ from boot to boot.
    vm.cmdline = "console=ttyAMA0 quiet nokaslr norandmaps randomize_kstack_offset=off rdinit=/bin/linux-bench".into();
    let trial = Trial::measured(vm, Duration::from_secs(300));
    let rows = |transcript: String| {
        let rows = parse(&transcript, "linux-bench ");
        ensure!(rows.len() == BOUNDS.len(), "linux-bench measured {} rows; it printed:\n{transcript}", rows.len());
        Ok(rows)
    };
    Ok((rows(trial.bare()?.good()?)?, rows(trial.under_undercroft(tree)?.good()?)?))
}

/// What exceeds its bound, or was not measured.
pub(crate) fn violations(bare: &[Row], guest: &[Row]) -> Vec<String> {
    let check = |bound: &Bound| match (find(bare, bound.name), find(guest, bound.name)) {
        (Some(bare), Some(guest)) if guest <= bare + bare * bound.part + bound.more => None,
        (Some(bare), Some(guest)) => {
            Some(format!("{} takes {guest:.1} in a guest and {bare:.1} on the bare machine", bound.name))
        }
        _ => Some(format!("{} was not measured", bound.name)),
    };
    BOUNDS.iter().filter_map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        let text = |pipe: &str, usleep: &str| {
            format!(
                "linux-bench boot 1\nlinux-bench fork-exec 1\nlinux-bench pipe {pipe}\nlinux-bench page-fault 1\n\
                     linux-bench usleep {usleep}\nlinux-bench cpu-loop 1\n"
            )
        };
        let rows = |text: String| parse(&text, "linux-bench ");
        let bare = rows(text("10000", "1050000"));
        assert_eq!(violations(&bare, &rows(text("10010", "1051500"))), [""; 0]);
        assert_eq!(violations(&bare, &rows(text("10011", "1051501"))).len(), 2);
        assert_eq!(violations(&bare, &[]).len(), BOUNDS.len());
    }
}
