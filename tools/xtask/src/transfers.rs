//! What it costs to save a VM of 512 MiB, all of which it has written to, and to restore it: rows of `cargo xtask bench`, which
//! the hypervisor measures itself ([`selftest=transfer`](../../../el2/checks/src/transfer_cost.rs)).

use crate::bench::{Row, parse};
use crate::compile::checks_image;
use crate::tree::Tree;
use abi::host_arguments::AllOff;
use anyhow::{Result, ensure};
use croft::session::{Options, Session};
use croft::site::{Host, Site, Vm};
use std::time::Duration;

/// A fifth of that, where nothing else runs.
const LIMIT: Duration = Duration::from_secs(180);
const CPU: &str = "cortex-a76,cntfrq=1000000000";
const GUEST: u64 = 512 << 20;

/// All rows.
pub(crate) fn measure(tree: &Tree) -> Result<Vec<Row>> {
    let vm = |name: &str| {
        let mut vm = Vm::new(name, tree.target("payloads/sharing.img"), GUEST);
        vm.cmdline = "role=full".to_owned();
        vm
    };
    let mut place = vm("place");
    place.autostart = false;
    let host = Host { cpu: CPU.into(), cpus: 1, memory: 2 << 30, disks: Vec::new() };
    let options = Options {
        image: Some(checks_image(tree)),
        all_off: AllOff::Stay,
        icount: true,
        boot_arguments: "selftest=transfer".to_owned(),
        ..Options::default()
    };
    let session = Session::start(&Site::new("(transfers)", host, vec![vm("full"), place]), &options)?;
    let outcome = session.wait_stopped(LIMIT);
    let log = session.log().transcript();
    let rows = parse(&log, "bench ");
    ensure!(rows.len() == 5, "{outcome}: selftest=transfer measured only {rows:?}; it printed:\n{log}");
    Ok(rows)
}
