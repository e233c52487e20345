//! What the command line may say besides ([`crate::host_arguments`]) to the image that has checks of the hypervisor in it: how a
//! test chooses one. The image that ships knows none of these words.

/// Which check is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SelfTest {
    /// None: VMs run.
    #[default]
    No,
    /// `selftest=percpu`: the per-CPU area, threads that move, deferred preemption; then the host is powered off.
    PerCpu,
    /// `selftest=mailboxes`: what CPUs that wait at mailboxes do, and do not; then the host is powered off.
    Mailboxes,
    /// `selftest=switch`: what switches of threads and vCPUs cost; then the host is powered off.
    Switch,
    /// `selftest=transfer`: what it costs to save the first VM and to restore it as the second; then the host is powered off.
    Transfer,
    /// `selftest=wander`: VMs run, and their threads move to another CPU at each preemption.
    Wander,
    /// `selftest=scrub`: VMs run, and are paused again and again, taken out, made as after power on, and put back.
    Scrub,
    /// `selftest=hunger`: VMs run, and when one was started again nothing is left of the hypervisor's heap.
    Hunger,
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

/// The words that choose checks, understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CheckArguments {
    /// `selftest=percpu`, `mailboxes`, `switch`, `transfer`, `wander`, `scrub`, `hunger` or `crash-...`; nothing by default.
    pub selftest: SelfTest,
    /// `tdcc=hardware`, for the tests' own test: guests' MDSCR_EL1.TDCC reaches the hardware, and no process can call.
    pub tdcc_in_hardware: bool,
    /// `heap=small`: VMs get no more of the heap than it begins with.
    pub small_heap: bool,
    /// `vectors=calling`: every CPU calls its firmware at each exit, as some have to.
    pub calls_firmware: bool,
    /// `deactivation=common`: ICC_DIR_EL1 does not trap by itself, as on some CPUs, but with all registers of both groups.
    pub traps_in_common: bool,
    /// `cpus=unlike`: of the CPUs beside the one that booted each has another feature.
    pub unlike_cpus: bool,
    /// `cpus=used`: each CPU is as somebody may leave it who was in the middle of an interrupt, and had guests.
    pub used_cpus: bool,
}

impl CheckArguments {
    /// Reads the command line. A later word wins over an earlier one.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut arguments = Self::default();
        for word in text.split_ascii_whitespace() {
            arguments.take(word);
        }
        arguments
    }

    /// Whether `word` means something here.
    #[must_use]
    pub fn knows(word: &str) -> bool {
        Self::default().take(word)
    }

    fn take(&mut self, word: &str) -> bool {
        let Some((_, choice)) = WORDS.iter().find(|(known, _)| *known == word) else { return false };
        match *choice {
            Choice::SelfTest(which) => self.selftest = which,
            Choice::TdccInHardware => self.tdcc_in_hardware = true,
            Choice::SmallHeap => self.small_heap = true,
            Choice::CallsFirmware => self.calls_firmware = true,
            Choice::TrapsInCommon => self.traps_in_common = true,
            Choice::UnlikeCpus => self.unlike_cpus = true,
            Choice::UsedCpus => self.used_cpus = true,
        }
        true
    }
}

/// What a word chooses.
#[derive(Clone, Copy)]
enum Choice {
    SelfTest(SelfTest),
    TdccInHardware,
    SmallHeap,
    CallsFirmware,
    TrapsInCommon,
    UnlikeCpus,
    UsedCpus,
}

/// All words, so that whoever looks for them in the image that ships looks for each.
static WORDS: [(&str, Choice); 18] = [
    ("selftest=percpu", Choice::SelfTest(SelfTest::PerCpu)),
    ("selftest=mailboxes", Choice::SelfTest(SelfTest::Mailboxes)),
    ("selftest=switch", Choice::SelfTest(SelfTest::Switch)),
    ("selftest=transfer", Choice::SelfTest(SelfTest::Transfer)),
    ("selftest=wander", Choice::SelfTest(SelfTest::Wander)),
    ("selftest=scrub", Choice::SelfTest(SelfTest::Scrub)),
    ("selftest=hunger", Choice::SelfTest(SelfTest::Hunger)),
    ("selftest=crash-panic", Choice::SelfTest(SelfTest::Crash(Crash::Panic))),
    ("selftest=crash-undefined", Choice::SelfTest(SelfTest::Crash(Crash::Undefined))),
    ("selftest=crash-write-code", Choice::SelfTest(SelfTest::Crash(Crash::WriteCode))),
    ("selftest=crash-execute-data", Choice::SelfTest(SelfTest::Crash(Crash::ExecuteData))),
    ("selftest=crash-overflow", Choice::SelfTest(SelfTest::Crash(Crash::Overflow))),
    ("tdcc=hardware", Choice::TdccInHardware),
    ("heap=small", Choice::SmallHeap),
    ("vectors=calling", Choice::CallsFirmware),
    ("deactivation=common", Choice::TrapsInCommon),
    ("cpus=unlike", Choice::UnlikeCpus),
    ("cpus=used", Choice::UsedCpus),
];

/// All words that mean something here.
pub fn words() -> impl Iterator<Item = &'static str> {
    WORDS.iter().map(|&(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::{CheckArguments, Crash, SelfTest};

    #[test]
    fn words_choose_checks_and_the_last_wins() {
        assert_eq!(CheckArguments::parse("link=framed quiet"), CheckArguments::default());
        assert_eq!(CheckArguments::parse("selftest=wander selftest=percpu").selftest, SelfTest::PerCpu);
        assert_eq!(CheckArguments::parse("selftest=crash-overflow").selftest, SelfTest::Crash(Crash::Overflow));
        let all = [
            ("percpu", SelfTest::PerCpu),
            ("mailboxes", SelfTest::Mailboxes),
            ("switch", SelfTest::Switch),
            ("transfer", SelfTest::Transfer),
            ("wander", SelfTest::Wander),
            ("scrub", SelfTest::Scrub),
            ("hunger", SelfTest::Hunger),
            ("crash-panic", SelfTest::Crash(Crash::Panic)),
            ("crash-undefined", SelfTest::Crash(Crash::Undefined)),
            ("crash-write-code", SelfTest::Crash(Crash::WriteCode)),
            ("crash-execute-data", SelfTest::Crash(Crash::ExecuteData)),
        ];
        for (name, check) in all {
            assert_eq!(CheckArguments::parse(&std::format!("selftest={name}")).selftest, check, "{name}");
        }
        let both = CheckArguments::parse("tdcc=hardware vectors=calling");
        assert!(both.tdcc_in_hardware && both.calls_firmware && both.selftest == SelfTest::No);
        assert!(CheckArguments::parse("selftest=hunger heap=small").small_heap && !both.small_heap);
        assert!(CheckArguments::parse("deactivation=common").traps_in_common && !both.traps_in_common);
        assert!(CheckArguments::parse("cpus=unlike").unlike_cpus && !both.unlike_cpus);
        assert!(CheckArguments::parse("cpus=used").used_cpus && !both.used_cpus);
        assert!(CheckArguments::knows("selftest=switch") && CheckArguments::knows("tdcc=hardware"));
        assert!(!CheckArguments::knows("selftest=nothing") && !CheckArguments::knows("link=framed"));
    }
}
