//! Enclaves of VMs that are saved, and of those that stand still.

use super::{Operated, host};
use anyhow::Result;
use croft::control::Order;
use croft::session::Condition;
use croft::site::Vm;
use system::host::Host;
use system::{BOOT, SOON, guest};

const NAME: &str = "enclave";
const LOST: &[&str] = &["FAILED"];

fn vm(words: &str) -> Result<Vm> {
    Ok(Vm { enclave: true, ..guest::payload(NAME, NAME, 2, words)? })
}

/// A guest that goes on from a saved state finds its enclave gone. It makes one of a block that is still to come, and when all has come
/// nothing else is missing.
pub(super) fn gone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("enclave.saved");
    let here = Operated::new(
        Host { port: true, ..host("max") }.start_and_stay(vec![vm("role=gone")?])?,
        folder.path(),
        "here",
    )?;
    here.run.console(NAME)?.expect_unless("enclave: ready.", LOST, BOOT)?;
    here.order(&Order::Save { vm: NAME.to_owned(), file: file.clone(), compress: false })?;
    here.order(&Order::Stop { vm: NAME.to_owned(), force: true, seconds: 60 })?;
    here.order(&Order::Restore { vm: None, file, pause: false })?;
    here.run.console(NAME)?.expect_unless("payload: 1 passed, 0 failed", LOST, BOOT)?;
    here.run.wait_for(NAME, SOON, Condition::is_off)?;
    here.run.check_log()
}

/// An enclave runs that never returns, and the ring is full of calls to go on with it: a pause takes effect, and leaves those that have not begun.
pub(super) fn paused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let here = Operated::new(host("max").start_and_stay(vec![vm("role=paused")?])?, folder.path(), "here")?;
    let console = here.run.console(NAME)?;
    console.expect_unless("enclave: calls.", LOST, BOOT)?;
    for _ in 0..5 {
        here.order(&Order::Pause { vm: NAME.to_owned() })?;
        here.order(&Order::Resume { vm: NAME.to_owned() })?;
    }
    console.send("x")?;
    console.expect_unless("payload: 1 passed, 0 failed", LOST, BOOT)?;
    here.run.check_log()
}
