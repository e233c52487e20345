//! Judging what kernels and the hypervisor print.

use std::collections::BTreeSet;

/// Words in a kernel's line, in small letters, that make it worth a look.
const SUSPICIOUS: [&str; 7] = ["warn", "error", "fail", "bug", "unable", "call trace", "stall"];

/// The suspicious lines of a kernel's log, made comparable between boots and machines: without time stamps, and with
/// every number replaced by `#`.
pub fn suspicious(transcript: &str) -> BTreeSet<String> {
    let suspicious = |line: &&str| {
        let small = line.to_lowercase();
        SUSPICIOUS.iter().any(|word| small.contains(word))
    };
    transcript.lines().filter(suspicious).map(normalise).collect()
}

/// A kernel's line without its time stamp and numbers.
fn normalise(line: &str) -> String {
    let line = line.trim();
    let stamped = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    let text = match stamped {
        Some((stamp, text)) if stamp.trim().parse::<f64>().is_ok() => text,
        _ => line,
    };
    let mut normal = String::new();
    for word in text.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric()) {
        let (body, end) = match word.char_indices().last() {
            Some((at, last)) if !last.is_ascii_alphanumeric() => word.split_at(at),
            _ => (word, ""),
        };
        let hexadecimal = body.len() >= 8 && body.chars().all(|letter| letter.is_ascii_hexdigit());
        if hexadecimal || body.starts_with("0x") || body.starts_with(|letter: char| letter.is_ascii_digit()) {
            normal.push('#');
        } else {
            normal.push_str(body);
        }
        normal.push_str(end);
    }
    normal
}

/// What a kernel thinks of its CPU's weaknesses, and what it does about them: a line each, as the guest's test `poweroff` prints
/// them.
pub fn vulnerabilities(transcript: &str) -> BTreeSet<&str> {
    transcript.lines().filter_map(|line| line.trim().strip_prefix("uc: vulnerability ")).collect()
}

/// What the hypervisor's log complains about: warnings and errors.
pub fn complaints(log: &str) -> Vec<String> {
    let bad = |line: &&str| [" WARN: ", " ERROR: ", "panic"].iter().any(|word| line.contains(word));
    log.lines().filter(bad).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_comparable_whatever_their_numbers() {
        let one = "[    2.353233] foo 9000000.uart: ERROR -19 at 0xffff800008 (deadbeef01)\r\nfine\r\n";
        let two = "[   12.000001] foo 9000800.uart: ERROR -22 at 0xffff900008 (deadbeef77)\r\n[    0.1] well\n";
        assert_eq!(suspicious(one), suspicious(two));
        assert_eq!(suspicious(one).first().map(String::as_str), Some("foo #.uart: ERROR -# at # (#)"));
        assert!(suspicious("[    1.0] rcu: INFO: rcu_sched self-detected stall on CPU").len() == 1);
        assert!(suspicious("[    1.0] Failsafe? Unable to").len() == 1);
    }

    #[test]
    fn the_hypervisor_complains_by_level() {
        let log = "1.099 INFO: Undercroft\n1.2 WARN: CPU 1 stays off\n1.3 ERROR: no VM\n";
        assert_eq!(complaints(log), ["1.2 WARN: CPU 1 stays off", "1.3 ERROR: no VM"]);
    }
}
