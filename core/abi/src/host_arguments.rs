//! What the hypervisor's own command line may say (`/chosen/bootargs` of the host's device tree, QEMU's `-append`):
//! words separated by blanks, `name=value`. A later word wins over an earlier one. Words that mean nothing here are
//! not an error, since firmware and boot loaders add their own; the hypervisor logs them.

/// How the link starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LinkMode {
    /// Readable text, each line with its VM's name, until an `Attach` frame arrives.
    #[default]
    Text,
    /// `link=framed`: frames from the first byte on.
    Framed,
}

/// What happens when the last VM has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AllOff {
    /// The hypervisor stays and serves the link.
    #[default]
    Stay,
    /// `all-off=poweroff`: the host is powered off.
    PowerOff,
}

/// Which of its own checks the hypervisor runs instead of VMs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SelfTest {
    /// None: VMs run.
    #[default]
    No,
    /// `selftest=percpu`: the per-CPU area, threads that move, deferred preemption; then the host is powered off.
    PerCpu,
    /// `selftest=switch`: what switches of threads and vCPUs cost; then the host is powered off.
    Switch,
    /// `selftest=wander`: VMs run, and their threads move to another CPU at each preemption.
    Wander,
    /// `selftest=crash-...`: a fault of the hypervisor's own, which is to be reported and to stop the host.
    Crash(Crash),
}

/// A fault of the hypervisor's own, made on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// `crash-panic`: a panic of the Rust code.
    Panic,
    /// `crash-undefined`: an instruction that does not exist.
    Undefined,
    /// `crash-write-code`: a store into the code.
    WriteCode,
    /// `crash-execute-data`: a jump into data.
    ExecuteData,
    /// `crash-overflow`: more on a thread's stack than it holds.
    Overflow,
}

/// The host's boot arguments, understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostArguments<'a> {
    /// `link=text` (the default) or `link=framed`.
    pub link: LinkMode,
    /// `all-off=stay` (the default) or `all-off=poweroff`.
    pub all_off: AllOff,
    /// `exit-times=off` (the default) or `exit-times=on`: whether exits are timed besides being counted.
    pub exit_times: bool,
    /// `selftest=percpu`, `selftest=switch`, `selftest=wander` or `selftest=crash-...`; nothing by default.
    pub selftest: SelfTest,
    /// `tdcc=hardware`, for the tests' own test: guests' MDSCR_EL1.TDCC reaches the hardware, and no process can call.
    pub tdcc_in_hardware: bool,
    /// `vectors=calling`, for tests: every CPU calls its firmware at each exit, as some have to.
    pub calls_firmware: bool,
    text: &'a str,
}

/// One understood word.
enum Word {
    Link(LinkMode),
    AllOff(AllOff),
    ExitTimes(bool),
    SelfTest(SelfTest),
    TdccInHardware,
    CallsFirmware,
}

fn understand(word: &str) -> Option<Word> {
    match word {
        "link=text" => Some(Word::Link(LinkMode::Text)),
        "link=framed" => Some(Word::Link(LinkMode::Framed)),
        "all-off=stay" => Some(Word::AllOff(AllOff::Stay)),
        "all-off=poweroff" => Some(Word::AllOff(AllOff::PowerOff)),
        "exit-times=off" => Some(Word::ExitTimes(false)),
        "exit-times=on" => Some(Word::ExitTimes(true)),
        "selftest=percpu" => Some(Word::SelfTest(SelfTest::PerCpu)),
        "selftest=switch" => Some(Word::SelfTest(SelfTest::Switch)),
        "selftest=wander" => Some(Word::SelfTest(SelfTest::Wander)),
        "selftest=crash-panic" => Some(Word::SelfTest(SelfTest::Crash(Crash::Panic))),
        "selftest=crash-undefined" => Some(Word::SelfTest(SelfTest::Crash(Crash::Undefined))),
        "selftest=crash-write-code" => Some(Word::SelfTest(SelfTest::Crash(Crash::WriteCode))),
        "selftest=crash-execute-data" => Some(Word::SelfTest(SelfTest::Crash(Crash::ExecuteData))),
        "selftest=crash-overflow" => Some(Word::SelfTest(SelfTest::Crash(Crash::Overflow))),
        "tdcc=hardware" => Some(Word::TdccInHardware),
        "vectors=calling" => Some(Word::CallsFirmware),
        _ => None,
    }
}

impl<'a> HostArguments<'a> {
    /// Reads the command line; an empty one gives the defaults.
    #[must_use]
    pub fn parse(text: &'a str) -> Self {
        let mut arguments = Self { text, ..Self::default() };
        for word in text.split_ascii_whitespace().filter_map(understand) {
            match word {
                Word::Link(mode) => arguments.link = mode,
                Word::AllOff(action) => arguments.all_off = action,
                Word::ExitTimes(timed) => arguments.exit_times = timed,
                Word::SelfTest(which) => arguments.selftest = which,
                Word::TdccInHardware => arguments.tdcc_in_hardware = true,
                Word::CallsFirmware => arguments.calls_firmware = true,
            }
        }
        arguments
    }

    /// The words that were not understood, for the log.
    pub fn unknown(&self) -> impl Iterator<Item = &'a str> {
        self.text.split_ascii_whitespace().filter(|word| understand(word).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::{AllOff, Crash, HostArguments, LinkMode, SelfTest};
    use std::vec::Vec;

    #[test]
    fn nothing_said_means_text_and_stay() {
        assert_eq!(HostArguments::parse(""), HostArguments::default());
    }

    #[test]
    fn words_are_understood_in_any_order_and_the_last_wins() {
        let arguments = HostArguments::parse("  all-off=poweroff quiet link=framed\tlink=what exit-times=on");
        assert!(arguments.exit_times);
        assert_eq!((arguments.link, arguments.all_off), (LinkMode::Framed, AllOff::PowerOff));
        assert_eq!(arguments.unknown().collect::<Vec<_>>(), ["quiet", "link=what"]);
        assert_eq!(HostArguments::parse("link=framed link=text").link, LinkMode::Text);
        assert_eq!(HostArguments::parse("selftest=percpu").selftest, SelfTest::PerCpu);
        assert_eq!(HostArguments::parse("selftest=wander").selftest, SelfTest::Wander);
        assert_eq!(HostArguments::parse("selftest=crash-overflow").selftest, SelfTest::Crash(Crash::Overflow));
        assert!(HostArguments::parse("tdcc=hardware").tdcc_in_hardware && !arguments.tdcc_in_hardware);
        assert!(HostArguments::parse("vectors=calling").calls_firmware && !arguments.calls_firmware);
    }
}
