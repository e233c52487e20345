//! Which tests of payloads are skipped, and where: all of them, by what each model of a CPU has and has not.
//!
//! A payload asks the machine what it has, and through the hypervisor. One that hides a feature which the CPU has would make its tests
//! skip, and nothing would fail. So this table says what QEMU's models lack, from what Arm's manuals and QEMU say of them and not from
//! what a guest sees. A skip that is not in it is a failure, and so is one that is in it and did not come: then the table, or a test's
//! question, is wrong.

use super::Tally;

/// A test, the models on which it is skipped, and what these lack.
struct Skip {
    test: &'static str,
    models: &'static [&'static str],
    /// What the test must say.
    why: &'static str,
}

/// Where pointer authentication (FEAT_PAuth, Armv8.3) is not there.
const WITHOUT_PAUTH: &[&str] = &["a64fx", "cortex-a57", "cortex-a72", "cortex-a76", "max,pauth=off"];
/// Armv8.0 to 8.2, of which none has SCXTNUM_ELx (FEAT_CSV2_2).
const WITHOUT_CONTEXT_NUMBERS: &[&str] = &["a64fx", "cortex-a57", "cortex-a72", "cortex-a76"];

const SKIPS: [Skip; 6] = [
    // FEAT_PAN is of Armv8.1.
    Skip { test: "access::privileged_access_never", models: &["cortex-a72"], why: "the CPU has no PSTATE.PAN" },
    // QEMU's loads of SIMD registers carry no syndrome, and the hypervisor does not emulate them.
    Skip {
        test: "mmio::simd_registers",
        models: &["cortex-a72", "max"],
        why: "the machine refuses SIMD loads from devices with an abort, as it may",
    },
    Skip { test: "registers::context_numbers_on_each_cpu", models: WITHOUT_CONTEXT_NUMBERS, why: "no context numbers" },
    // FEAT_RAS is of Armv8.2, and A64FX has it not.
    Skip {
        test: "registers::deferred_error_on_each_cpu",
        models: &["a64fx", "cortex-a57", "cortex-a72"],
        why: "no DISR_EL1",
    },
    Skip { test: "registers::pauth_keys_survive", models: WITHOUT_PAUTH, why: "no pointer authentication" },
    Skip { test: "registers::pauth_on_each_cpu", models: WITHOUT_PAUTH, why: "no pointer authentication" },
];

/// What a computer that is busy with other things may make come too late. Where time is counted in instructions nothing is busy: there
/// the same tests run too, and fail for it.
const BUSY: [&str; 2] = [
    "wfe::p4_a6_pats_keep_it_quiet: this machine is too busy to pat a watchdog of 200 ms in time",
    "wfe::no_serror_is_for_a_cpu_that_is_off: this machine is too busy to start a CPU in time",
];

/// What is wrong with what a payload has skipped, in `usual` VMs on this model, or in others, where nothing may be skipped. `all` says
/// whether all of its tests were run.
pub(super) fn wrong(payload: &str, model: &str, usual: bool, all: bool, tally: &Tally) -> Vec<String> {
    let of_payload = |skip: &&Skip| skip.test.split("::").next() == Some(payload);
    let expected: Vec<String> = SKIPS
        .iter()
        .filter(of_payload)
        .filter(|skip| usual && skip.models.contains(&model))
        .map(|skip| format!("{}: {}", skip.test, skip.why))
        .collect();
    let is_known = |skipped: &&String| expected.contains(skipped) || BUSY.contains(&skipped.as_str());
    let not_expected = tally.skipped.iter().filter(|skipped| !is_known(skipped));
    let not_expected =
        not_expected.map(|skipped| format!("{skipped}: that is no reason to skip it on {model} (skips.rs)"));
    let missing = expected.iter().filter(|skip| all && !tally.skipped.contains(skip));
    let missing = missing.map(|skip| format!("{skip}: on {model} it should be skipped with this reason (skips.rs)"));
    not_expected.chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(what: &[&str]) -> Tally {
        Tally { skipped: what.iter().map(|&what| what.to_owned()).collect(), ..Tally::default() }
    }

    #[test]
    fn what_a_model_has_is_tested_there() {
        let pan = skipped(&["access::privileged_access_never: the CPU has no PSTATE.PAN"]);
        assert!(wrong("access", "cortex-a72", true, true, &pan).is_empty());
        assert_eq!(wrong("access", "max", true, true, &pan).len(), 1, "max has it");
        assert_eq!(wrong("access", "cortex-a72", false, false, &pan).len(), 1, "the others are for the rest");
        let other = skipped(&["access::privileged_access_never: no time"]);
        assert_eq!(wrong("access", "cortex-a72", true, true, &other).len(), 2, "another reason");
    }

    #[test]
    fn a_busy_computer_may_skip_what_is_counted_elsewhere() {
        assert!(wrong("wfe", "max", false, true, &skipped(&BUSY)).is_empty());
        assert_eq!(
            wrong("wfe", "max", true, true, &skipped(&["wfe::p4_a1_detect: this machine does not trap WFE"])).len(),
            1
        );
    }

    #[test]
    fn what_a_model_lacks_is_found_out() {
        assert_eq!(wrong("access", "cortex-a72", true, true, &Tally::default()).len(), 1);
        assert!(wrong("access", "cortex-a72", true, false, &Tally::default()).is_empty(), "one test was chosen");
        assert!(wrong("virtio", "cortex-a72", true, true, &Tally::default()).is_empty());
    }
}
