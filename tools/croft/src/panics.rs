//! What a panic does: it ends the program.
//!
//! The release profile says so. The profile that tests are built with cannot, for cargo would compile all dependencies twice, once
//! more for the programs that tests start. So the programs say it themselves: a thread that is gone while others wait for it would
//! be a program that hangs.

use std::panic;
use std::process;

/// From now on a panic on any thread is reported, and ends the program by SIGABRT.
pub fn end_the_program() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        report(what);
        process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::thread;

    /// Set in the process that panics.
    const PANICS: &str = "CROFT_TEST_PANICS";

    #[test]
    fn of_another_thread_is_the_end() {
        if std::env::var_os(PANICS).is_some() {
            end_the_program();
            let _ = thread::spawn(|| panic!("on purpose")).join();
            process::exit(0);
        }
        let this = "panics::tests::of_another_thread_is_the_end";
        let mut again = Command::new(std::env::current_exe().expect("this program"));
        let end = again.args([this, "--exact", "--nocapture"]).env(PANICS, "1").output().expect("it can be started");
        assert_eq!(end.status.signal(), Some(6), "{end:?}");
        assert!(String::from_utf8_lossy(&end.stderr).contains("on purpose"), "{end:?}");
    }
}
