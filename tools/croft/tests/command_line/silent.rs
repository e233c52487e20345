//! A host whose process stands still.

use super::Stage;
use abi::link::VmState;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// It takes connections and answers none: whoever asks is told why that takes so long, and gets the answer when it comes.
#[test]
fn one_that_is_stopped_is_told_of() {
    let stage = Stage::new("cat frames; exec sleep 600");
    stage.record(VmState::Paused);
    let host = stage.host(&["site.toml"]);
    let process = Pid::from_child(&host.0);
    kill_process(process, Signal::STOP).unwrap();
    let mut asks = stage.private(&["log"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Should nothing be said, that is over in a minute.
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(60));
        let _ = kill_process(process, Signal::CONT);
    });
    let mut said = String::new();
    BufReader::new(asks.stderr.take().unwrap()).read_line(&mut said).unwrap();
    kill_process(process, Signal::CONT).unwrap();
    assert!(
        said.starts_with("croft: the host has not answered for 10 s; perhaps its `croft run` is stopped"),
        "{said}"
    );
    let output = asks.wait_with_output().unwrap();
    assert!(output.status.success() && super::text(&output.stdout).contains("early text"), "{output:?}");
}
