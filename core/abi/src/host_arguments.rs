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

/// The host's boot arguments, understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostArguments<'a> {
    /// `link=text` (the default) or `link=framed`.
    pub link: LinkMode,
    /// `all-off=stay` (the default) or `all-off=poweroff`.
    pub all_off: AllOff,
    /// `exit-times=off` (the default) or `exit-times=on`: whether exits are timed besides being counted.
    pub exit_times: bool,
    /// `cache-maintenance=needed` (the default) or `cache-maintenance=always`: whether all maintenance of caches is done that
    /// CTR_EL0 says is not needed, for CPUs that say so wrongly.
    pub maintains_always: bool,
    text: &'a str,
}

/// One understood word.
enum Word {
    Link(LinkMode),
    AllOff(AllOff),
    ExitTimes(bool),
    MaintainsAlways(bool),
}

fn understand(word: &str) -> Option<Word> {
    match word {
        "link=text" => Some(Word::Link(LinkMode::Text)),
        "link=framed" => Some(Word::Link(LinkMode::Framed)),
        "all-off=stay" => Some(Word::AllOff(AllOff::Stay)),
        "all-off=poweroff" => Some(Word::AllOff(AllOff::PowerOff)),
        "exit-times=off" => Some(Word::ExitTimes(false)),
        "cache-maintenance=needed" => Some(Word::MaintainsAlways(false)),
        "cache-maintenance=always" => Some(Word::MaintainsAlways(true)),
        "exit-times=on" => Some(Word::ExitTimes(true)),
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
                Word::MaintainsAlways(always) => arguments.maintains_always = always,
                Word::ExitTimes(timed) => arguments.exit_times = timed,
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
    use super::{AllOff, HostArguments, LinkMode};
    use std::vec::Vec;

    #[test]
    fn nothing_said_means_text_and_stay() {
        assert_eq!(HostArguments::parse(""), HostArguments::default());
    }

    #[test]
    fn words_are_understood_in_any_order_and_the_last_wins() {
        let arguments = HostArguments::parse(
            "  all-off=poweroff quiet link=framed\tlink=what exit-times=on cache-maintenance=always",
        );
        assert!(arguments.exit_times && arguments.maintains_always);
        assert_eq!((arguments.link, arguments.all_off), (LinkMode::Framed, AllOff::PowerOff));
        assert_eq!(arguments.unknown().collect::<Vec<_>>(), ["quiet", "link=what"]);
        assert_eq!(HostArguments::parse("link=framed link=text").link, LinkMode::Text);
        let back = HostArguments::parse(
            "all-off=poweroff exit-times=on cache-maintenance=always all-off=stay exit-times=off cache-maintenance=needed",
        );
        assert_eq!(back, HostArguments { text: back.text, ..HostArguments::default() });
        assert_eq!(back.unknown().count(), 0);
        // What the image with checks understands means nothing to the one that ships.
        assert_eq!(HostArguments::parse("selftest=crash-panic tdcc=hardware").unknown().count(), 2);
    }
}
