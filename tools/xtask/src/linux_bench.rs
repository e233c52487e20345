//! `cargo xtask bench --linux`: how much slower a Linux guest is than the same kernel on the bare machine.
//!
//! The same Debian kernel with the same initramfs runs, counted in instructions, on the bare machine and as a VM. Its only
//! process is `linux-bench` (`tests/linux`), which measures everything once to settle and once to report.
//!
//! A run nearly repeats to the last digit, but any change, also of the hypervisor's code, changes a kernel's random numbers,
//! hence its hash chains, and it changes a boot by as much as five percent, by whole ticks of 4 ms. So each side runs with
//! several seeds. Of an operation the least counts: what it costs when chance adds nothing. Of a boot it is the value in the
//! middle: among a few boots there is one with much luck on either side, or on one. Where a row is beyond its bound both sides
//! run with more seeds, which helps against chance and not against what costs more.

use crate::bench::{Row, find, parse};
use crate::setup::guests;
use crate::tree::Tree;
use crate::trial::{Report, Trial};
use anyhow::{Context, Result, ensure};
use croft::site::Vm;
use std::path::Path;
use std::time::Duration;

/// The kernel that is measured.
pub(crate) const KERNEL: &str = "linux-6.12-cloud";

/// What QEMU's random numbers start from: with so many numbers from 1 on both sides run in any case, and with so many at most.
const SEEDS: (u32, u32) = (3, 11);

/// An operation, and by how much a guest may be slower than the bare machine: a part of it, and a number on top.
#[derive(Clone, Copy)]
struct Bound {
    name: &'static str,
    what: &'static str,
    part: f64,
    more: f64,
}

const fn bound(name: &'static str, what: &'static str, part: f64, more: f64) -> Bound {
    Bound { name, what, part, more }
}

/// The boot without `quiet`: some hundred lines go to the PL011, by two accesses of its registers a byte, each an exit. Chance
/// moves a boot by half a percent, so the bound is above the 3 % that are the aim.
const LOUD: &str = "boot-loud";

/// The rows. What is allowed on top of the part for fork and exec and for page faults is by how much boots of the bare machine
/// differ among themselves from seed to seed (addresses, hash chains); the other rows do not depend
/// on the seed.
const BOUNDS: [Bound; 7] = [
    bound("boot", "boot to the first process", 0.03, 0.0),
    bound(LOUD, "the same, log on the console", 0.04, 0.0),
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
    let mut loud = vm.clone();
    loud.cmdline = vm.cmdline.replace(" quiet", "");
    let usual: Vec<Bound> = BOUNDS.into_iter().filter(|bound| bound.name != LOUD).collect();
    // What a process does behind the boot is the same then; its boot is not.
    let loudly: Vec<Bound> =
        BOUNDS.into_iter().filter(|bound| bound.name == LOUD).map(|bound| Bound { name: "boot", ..bound }).collect();
    let mut sides = runs(tree, &vm, &usual)?;
    let (bare, guest) = runs(tree, &loud, &loudly)?;
    for (side, loud) in [(&mut sides.0, bare), (&mut sides.1, guest)] {
        side.extend(find(&loud, "boot").map(|instructions| Row { name: LOUD.to_owned(), instructions }));
    }
    Ok(sides)
}

/// The rows of runs with as many seeds as it takes for these bounds, on the bare machine and in a guest.
fn runs(tree: &Tree, vm: &Vm, bounds: &[Bound]) -> Result<(Vec<Row>, Vec<Row>)> {
    let (mut of_bare, mut of_guest) = (Vec::new(), Vec::new());
    for seed in 1..=SEEDS.1 {
        if seed > SEEDS.0 && beyond(bounds, &summary(&of_bare), &summary(&of_guest)).is_empty() {
            break;
        }
        let mut trial = Trial::measured(vm.clone(), Duration::from_secs(300));
        trial.qemu_args = vec!["-seed".into(), seed.to_string()];
        // Both at once: what counts instructions does not mind company.
        let (bare, guest) = std::thread::scope(|scope| {
            let bare = scope.spawn(|| trial.bare()?.good());
            let guest = trial.under_undercroft(tree).and_then(Report::good);
            (bare.join().expect("a run ends without a panic"), guest)
        });
        of_bare.push(rows(&bare?)?);
        of_guest.push(rows(&guest?)?);
    }
    Ok((summary(&of_bare), summary(&of_guest)))
}

/// The rows of a run.
fn rows(transcript: &str) -> Result<Vec<Row>> {
    let rows = parse(transcript, "linux-bench ");
    // All but that of the other boot.
    ensure!(rows.len() == BOUNDS.len() - 1, "linux-bench measured {} rows; it printed:\n{transcript}", rows.len());
    Ok(rows)
}

/// One value for each row of all runs: the middle one of boots, and the least of all else.
fn summary(runs: &[Vec<Row>]) -> Vec<Row> {
    let Some(first) = runs.first() else { return Vec::new() };
    let summarise = |row: &Row| {
        let mut all: Vec<f64> = runs.iter().filter_map(|run| find(run, &row.name)).collect();
        all.sort_by(f64::total_cmp);
        let place = if row.name == "boot" { all.len() / 2 } else { 0 };
        let instructions = all.get(place).copied().unwrap_or(row.instructions);
        Row { name: row.name.clone(), instructions }
    };
    first.iter().map(summarise).collect()
}

/// What exceeds its bound, or was not measured.
pub(crate) fn violations(bare: &[Row], guest: &[Row]) -> Vec<String> {
    beyond(&BOUNDS, bare, guest)
}

fn beyond(bounds: &[Bound], bare: &[Row], guest: &[Row]) -> Vec<String> {
    let check = |bound: &Bound| match (find(bare, bound.name), find(guest, bound.name)) {
        (Some(bare), Some(guest)) if guest <= bare + bare * bound.part + bound.more => None,
        (Some(bare), Some(guest)) => {
            Some(format!("{} takes {guest:.1} in a guest and {bare:.1} on the bare machine", bound.name))
        }
        _ => Some(format!("{} was not measured", bound.name)),
    };
    bounds.iter().filter_map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_counts_and_of_boots_the_middle() {
        let run = |boot: f64, pipe: f64| {
            let row = |(name, instructions)| Row { name: String::from(name), instructions };
            [("boot", boot), ("pipe", pipe)].map(row).to_vec()
        };
        let runs = [run(810.0, 12.0), run(790.0, 11.0), run(800.0, 13.0)];
        assert_eq!(summary(&runs).iter().map(|row| row.instructions).collect::<Vec<_>>(), [800.0, 11.0]);
        assert!(summary(&[]).is_empty());
    }

    #[test]
    fn what_is_within_its_bounds_needs_no_more_seeds() {
        let row = |name: &str, instructions| Row { name: name.to_owned(), instructions };
        let loudly = [Bound { name: "boot", ..BOUNDS[1] }];
        assert_eq!(BOUNDS[1].name, LOUD);
        let more = |guest: f64| {
            beyond(&loudly, &[row("boot", 100.0), row("pipe", 1.0)], &[row("boot", guest), row("pipe", 9.0)])
        };
        assert_eq!((more(104.0).len(), more(104.1).len()), (0, 1));
        assert_eq!(beyond(&loudly, &[], &[]).len(), 1, "before the first run");
    }

    #[test]
    fn bounds() {
        let text = |pipe: &str, usleep: &str| {
            format!(
                "linux-bench boot 1\nlinux-bench boot-loud 1\nlinux-bench fork-exec 1\nlinux-bench pipe {pipe}\nlinux-bench page-fault 1\n\
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
