//! `cargo xtask bench`: instructions per operation, beside the published numbers of other hypervisors.
//!
//! The payload `bench` runs as the only VM on a machine with one CPU whose time is counted in instructions (QEMU's
//! `-icount shift=0,sleep=off` with a counter of 1 GHz), so what it measures is what all exception levels together
//! executed. That is repeatable to the last instruction, on any machine and under any load; it is not cycles. The
//! others were measured by the same method, with the same kind of payload: Bao, Xen 4.20 as shipped by Debian, and KVM
//! of Linux 6.12 in VHE mode. SPECIFICATION.md says what a switch of guests is there.

use crate::tree::Tree;
use crate::trial::Trial;
use crate::{compile, disk, linux_bench, net, switches, transfers};
use abi::bundle::{Doors, Time};
use anyhow::{Context, Result, ensure};
use croft::site::Vm;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An operation, what it may cost, and what it costs elsewhere.
#[derive(Clone, Copy, Debug)]
struct Budget {
    name: &'static str,
    what: &'static str,
    most: f64,
    bare: &'static str,
    bao: &'static str,
    xen: &'static str,
    kvm: &'static str,
}

const fn row(name: &'static str, what: &'static str, most: f64, others: [&'static str; 4]) -> Budget {
    let [bare, bao, xen, kvm] = others;
    Budget { name, what, most, bare, bao, xen, kvm }
}

/// The rows that the gate knows. What the payload measures beside them is shown without a budget.
const BUDGETS: [Budget; 45] = [
    row("null-hvc", "null call (HVC, PSCI_VERSION)", 106.0, ["4", "192", "568", "1,322"]),
    row("null-hvc-max", "the same on the CPU model max", 108.0, ["-"; 4]),
    row("null-mdccsr", "null call (MDCCSR_EL0, GETVERSION)", 160.0, ["-"; 4]),
    row("rpc-100", "RPC of 100 bytes, 4 bytes a call", 21_045.0, ["-"; 4]),
    row("rpc-60000", "RPC of 60,000 bytes in one transfer", 41_915.0, ["-"; 4]),
    row("wfe-unmatched", "unmatched WFE", 110.0, ["-"; 4]),
    row("id-register", "trapped ID register", 133.0, ["0", "-", "526", "1,640"]),
    row("physical-count", "read of CNTPCT_EL0 (no CNTPOFF_EL2)", 140.0, ["-"; 4]),
    row("scaled-count", "the same, scaled", 140.0, ["-"; 4]),
    row("memory-count", "a word of the counter in memory, scaled", 293.0, ["-"; 4]),
    row("scaled-timer-write", "write of CNTP_CVAL_EL0, scaled", 942.0, ["-"; 4]),
    row("scaled-timer", "physical timer, scaled: fire, ack., EOI", 2_380.0, ["-"; 4]),
    row("gicd-iidr", "emulated GICD_IIDR read", 165.0, ["0", "226", "672", "2,073"]),
    row("gicd-isenabler", "emulated GICD_ISENABLER read", 208.0, ["0", "1,289", "777", "3,941"]),
    row("uart-flags", "emulated UARTFR read", 236.0, ["0", "-", "-", "-"]),
    row("uart-data", "a byte to the console (UARTDR write)", 294.0, ["0", "-", "-", "-"]),
    row("uart-input", "emulated UARTDR read: nothing typed", 1_010.0, ["-"; 4]),
    row("data-fault", "first access to 2 MiB: zeroed, mapped", 108_782.0, ["-"; 4]),
    row("fetch-fault", "first fetch from a page, maintained", 1_775.0, ["-"; 4]),
    row("fetch-fault-elided", "the same, CTR_EL0.IDC and DIC set", 1_210.0, ["-"; 4]),
    row("fetch-fault-split", "first fetch from a block: it is split", 6_801.0, ["-"; 4]),
    row("fetch-fault-join", "fetch behind which a block is one again", 135_096.0, ["-"; 4]),
    row("disk-read", "a read of 4 KiB from a disk, polled", 5_279.0, ["-"; 4]),
    row("virtio-notify", "a notification, nothing offered", 1_173.0, ["-"; 4]),
    row("net-64", "a frame of 64 bytes, port to port", 6_796.0, ["-"; 4]),
    row("net-1500", "the same of 1,500 bytes", 7_522.0, ["-"; 4]),
    row("enclave-call", "a call of an enclave, which returns", 3_375.0, ["-"; 4]),
    row("enclave-page", "a page for an enclave, measured", 195_300.0, ["-"; 4]),
    row("self-sgi", "self-SGI: send, acknowledge, EOI", 265.0, ["9", "784", "1,135", "2,703"]),
    row("virtual-timer", "virtual timer: fire, acknowledge, EOI", 119.0, ["12", "211", "1,197", "2,621"]),
    row("reset-to-guest", "reset to a guest's first instruction", 707_500.0, ["700", "304,000", "105 M", "-"]),
    row("thread-switch", "switch of the hypervisor's threads", 219.0, ["-"; 4]),
    row("link-uart", "a KiB on the link, by the UART", 55_242.0, ["-"; 4]),
    row("link-port", "a KiB on the link, by its port", 4_275.0, ["-"; 4]),
    row("link-port-pci", "the same, on PCI", 4_275.0, ["-"; 4]),
    row("save-pause", "a guest's pause, saved with 512 MiB", 222_500.0, ["-"; 4]),
    row("save-page", "a page of that, saved", 4_919.0, ["-"; 4]),
    row("saved-page-bytes", "the same, bytes of the file", 4_098.0, ["-"; 4]),
    row("restore-page", "a page, restored", 6_803.0, ["-"; 4]),
    row("restore-to-guest", "until that runs, restored", 389_400.0, ["-"; 4]),
    row("vcpu-switch", "from one guest to another, by a WFE", 643.0, ["-", "-", "3,872", "8,591"]),
    row("vcpu-switch-fp", "the same, both using FP registers", 700.0, ["-", "-", "3,872", "9,008"]),
    row("vcpu-switch-max", "by a WFE, on the CPU model max", 693.0, ["-"; 4]),
    row("null-hvc-64-vms", "null call, 64 VMs", 106.0, ["-"; 4]),
    row("vcpu-switch-64-vms", "from one guest to another, 64 VMs", 643.0, ["-"; 4]),
];

/// What must not cost more because there are many VMs: the row with many, and the one without.
const CROWDS: [(&str, &str); 2] = [("null-hvc-64-vms", "null-hvc"), ("vcpu-switch-64-vms", "vcpu-switch")];
/// By how much it may differ: a cell of a table that lies elsewhere.
const CROWD_PART: f64 = 0.01;

/// The CPU that has everything, which also says in CTR_EL0 that its instruction caches need no maintenance.
const COHERENT_CPU: &str = "max,cntfrq=1000000000";

/// A measured operation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// Which operation.
    pub(crate) name: String,
    /// What it takes.
    pub(crate) instructions: f64,
}

/// What is to be measured, and where the result goes.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Arguments {
    /// Also write the result to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare a Linux guest with the same kernel on the bare machine instead
    #[arg(long)]
    linux: bool,
}

/// Builds, measures, shows; fails if a budget is exceeded.
pub(crate) fn bench(tree: &Tree, arguments: &Arguments) -> Result<()> {
    compile::build(tree)?;
    if arguments.linux {
        return linux_bench::compare(tree, arguments.json.as_deref());
    }
    let rows = measure(tree)?;
    show(&rows);
    if let Some(file) = &arguments.json {
        write_json(file, &rows)?;
    }
    let wrong = violations(&rows);
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// Runs the payload and reads its rows.
pub(crate) fn measure(tree: &Tree) -> Result<Vec<Row>> {
    let mut vm = Vm::new("bench", tree.target("payloads/bench.img"), 64 << 20);
    vm.doors = Doors { vmware: true, wfe: true, ..Doors::default() };
    let transcript = Trial::measured(vm, Duration::from_secs(120)).under_undercroft(tree)?.good()?;
    let mut rows = parse(&transcript, "bench ");
    ensure!(!rows.is_empty(), "the payload bench measured nothing; it printed:\n{transcript}");
    let mut scaled = Vm::new("bench", tree.target("payloads/bench.img"), 64 << 20);
    scaled.cmdline = "rows=scaled".to_owned();
    scaled.time = Time { frequency: 24_000_000, ..Time::default() };
    let transcript = Trial::measured(scaled, Duration::from_secs(120)).under_undercroft(tree)?.good()?;
    rows.extend(parse(&transcript, "bench "));
    let mut coherent = Vm::new("bench", tree.target("payloads/bench.img"), 64 << 20);
    coherent.cmdline = "rows=coherent".to_owned();
    let mut coherent = Trial::measured(coherent, Duration::from_secs(120));
    coherent.cpu = COHERENT_CPU.into();
    rows.extend(parse(&coherent.under_undercroft(tree)?.good()?, "bench "));
    let image = tree.target("payloads/bench.img");
    let mut reading = Vm::new("bench", &image, 64 << 20);
    reading.cmdline = "rows=disk".to_owned();
    disk::write(&disk::beside(&image))?;
    reading.disks = disk::of(&disk::beside(&image));
    let transcript = Trial::measured(reading, Duration::from_secs(120)).under_undercroft(tree)?.good()?;
    rows.extend(parse(&transcript, "bench "));
    let mut sending = Vm::new("bench", &image, 64 << 20);
    sending.cmdline = "rows=net".to_owned();
    sending.ports = net::ports();
    let transcript = Trial::measured(sending, Duration::from_secs(120)).under_undercroft(tree)?.good()?;
    rows.extend(parse(&transcript, "bench "));
    let mut calling = Vm::new("enclave", tree.target("payloads/enclave.img"), 64 << 20);
    calling.cmdline = "role=costs".to_owned();
    calling.enclave = true;
    let transcript = Trial::measured(calling, Duration::from_secs(120)).under_undercroft(tree)?.good()?;
    rows.extend(parse(&transcript, "bench "));
    rows.extend(switches::measure(tree)?);
    rows.extend(transfers::measure(tree)?);
    Ok(rows)
}

/// Reads the lines `<word><name> <instructions>`, whatever stands before them.
pub(crate) fn parse(transcript: &str, word: &str) -> Vec<Row> {
    let row = |line: &str| {
        let (before, after) = line.split_once(word)?;
        let mut words = after.split_whitespace();
        let (name, number, rest) = (words.next()?, words.next()?, words.next());
        let whole = rest.is_none() && !before.ends_with(|letter: char| letter.is_alphanumeric() || letter == '-');
        Some(Row { name: name.to_owned(), instructions: number.parse().ok().filter(|_| whole)? })
    };
    transcript.lines().filter_map(row).collect()
}

/// What the gate objects to: a budget that is exceeded, or one that nothing was measured for.
pub(crate) fn violations(rows: &[Row]) -> Vec<String> {
    let check = |budget: &Budget| match find(rows, budget.name) {
        None => Some(format!("{} was not measured", budget.name)),
        Some(cost) if cost > budget.most => {
            Some(format!("{} takes {cost} instructions, its budget is {}", budget.name, budget.most))
        }
        Some(_) => None,
    };
    let grown = |(crowd, alone): &(&str, &str)| {
        let (many, few) = (find(rows, crowd)?, find(rows, alone)?);
        (many > few * (1.0 + CROWD_PART)).then(|| format!("{crowd} takes {many} instructions, {alone} only {few}"))
    };
    BUDGETS.iter().filter_map(check).chain(CROWDS.iter().filter_map(grown)).collect()
}

/// How many rows have a budget.
pub(crate) const fn budgets() -> usize {
    BUDGETS.len()
}

/// The value of a row.
pub(crate) fn find(rows: &[Row], name: &str) -> Option<f64> {
    rows.iter().find(|row| row.name == name).map(|row| row.instructions)
}

/// Prints the table.
pub(crate) fn show(rows: &[Row]) {
    println!("instructions per operation, all exception levels (QEMU -icount shift=0, second pass)\n");
    let heads = ["operation", "Undercroft", "budget", "bare", "Bao", "Xen 4.20", "KVM VHE"];
    let line = |cells: [&str; 7]| {
        let [operation, rest @ ..] = cells;
        println!("{operation:<40}{}", rest.map(|cell| format!("{cell:>11}")).concat());
    };
    line(heads);
    for budget in &BUDGETS {
        let measured = find(rows, budget.name).map_or("-".into(), |cost| format!("{cost:.1}"));
        line([budget.what, &measured, &budget.most.to_string(), budget.bare, budget.bao, budget.xen, budget.kvm]);
    }
    for row in rows.iter().filter(|row| BUDGETS.iter().all(|budget| budget.name != row.name)) {
        line([&row.name, &format!("{:.1}", row.instructions), "-", "", "", "", ""]);
    }
    println!();
}

/// Writes `{"rows":[{"name","instructions","budget"}]}`; a row without a budget has null there.
fn write_json(file: &Path, rows: &[Row]) -> Result<()> {
    let rows = rows.iter().map(|row| {
        let budget = BUDGETS.iter().find(|budget| budget.name == row.name).map(|budget| budget.most);
        serde_json::json!({ "name": row.name, "instructions": row.instructions, "budget": budget })
    });
    let text = serde_json::json!({ "rows": rows.collect::<Vec<_>>() }).to_string();
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(value: f64) -> Vec<Row> {
        BUDGETS.iter().map(|budget| Row { name: budget.name.into(), instructions: value }).collect()
    }

    #[test]
    fn reads_a_console_with_names_before_its_lines() {
        let text = "[bench] bench null-hvc 101.5\r\nlog: a bench of two 2\nlinux-bench fork 3\nbench self-sgi 4\n";
        let expected = [("null-hvc", 101.5), ("self-sgi", 4.0)];
        let expected = expected.map(|(name, instructions)| Row { name: name.into(), instructions });
        assert_eq!(parse(text, "bench "), expected);
        assert_eq!(parse(text, "linux-bench ").len(), 1);
    }

    #[test]
    fn objects_to_what_is_too_much_or_missing() {
        assert_eq!(violations(&rows(100.0)), [""; 0]);
        assert_eq!(
            violations(&rows(204.0)).len(),
            10,
            "one each of 108, 110, 119, 133, 160 and 165, two of 106 and two of 140 instructions"
        );
        assert_eq!(violations(&[]).len(), BUDGETS.len());
        let mut grown = rows(100.0);
        grown.iter_mut().filter(|row| row.name.ends_with("64-vms")).for_each(|row| row.instructions = 101.5);
        assert_eq!(violations(&grown).len(), CROWDS.len());
    }

    /// Of each row of the specification's table its name, its budget, and what it measured.
    fn promised() -> Vec<(&'static str, f64, f64)> {
        let number = |cell: &str| cell.replace(',', "").parse().expect("a number");
        let page = include_str!("../../../SPECIFICATION.md").lines();
        let cells = page.map(|line| line.split(" | ").collect::<Vec<_>>());
        let rows = cells.filter(|cells| cells.len() == 8);
        let named = rows.filter_map(|cells| Some((cells[1].strip_prefix('`')?.strip_suffix('`')?, cells)));
        named.map(|(name, cells)| (name, number(cells[2]), number(cells[3]))).collect()
    }

    #[test]
    fn the_specification_promises_these_budgets() {
        let mut promised = promised();
        assert!(promised.iter().all(|(_, budget, measured)| measured <= budget), "{promised:?}");
        promised.sort_by_key(|&(name, ..)| BUDGETS.iter().position(|budget| budget.name == name));
        let told: Vec<_> = promised.iter().map(|&(name, budget, _)| (name, budget)).collect();
        assert_eq!(told, BUDGETS.map(|budget| (budget.name, budget.most)));
    }

    #[test]
    fn writes_json() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("rows.json");
        let mut all = rows(1.0);
        all.push(Row { name: "more".into(), instructions: 2.5 });
        write_json(&file, &all).expect("written");
        let text = std::fs::read_to_string(&file).expect("read");
        assert!(text.starts_with(r#"{"rows":[{"budget":106.0,"instructions":1.0,"name":"null-hvc"}"#), "{text}");
        assert!(text.ends_with(r#"{"budget":null,"instructions":2.5,"name":"more"}]}"#), "{text}");
    }
}
