//! Orders that the hypervisor refuses, and VMs that come to another end than was wanted.

use super::*;

/// Nobody waits for what will not come, and a VM that ends as soon as it starts is not one that is late.
#[test]
fn a_refusal_and_another_end_are_told_at_once() {
    let stage = Stage::new(true);
    let fails = |arguments: &[&str]| {
        let output = stage.croft(arguments);
        (output.status.code(), text(&output.stderr))
    };
    let failed = |said: &str| (Some(1), format!("croft: {said}\n"));
    assert_eq!(stage.says(&["guestinfo", "web", "set", REFUSES, "1"]), "");
    assert_eq!(fails(&["pause", "web"]), failed("web: pause: the VM does not run"));
    assert_eq!(fails(&["reboot", "--force", "web"]), failed("web: reboot: the VM is being saved or restored"));
    assert_eq!(stage.says(&["guestinfo", "web", "set", REFUSES, ""]), "");
    assert_eq!(stage.says(&["guestinfo", "web", "set", CRASHES, "1"]), "");
    let crashed = failed("web is crashed: there is no memory instead");
    assert_eq!(fails(&["reboot", "--force", "web"]), crashed);
    // The same end once more is no news, and the hypervisor's word for it is in the message when the time is up.
    let late = "web did not reboot by force within 1 s, it is crashed: there is no memory";
    let (status, said) = fails(&["reboot", "--wait", "1", "web"]);
    assert!(status == Some(1) && said.ends_with(&format!("croft: {late}\n")), "{said}");
    assert_eq!(stage.says(&["guestinfo", "web", "set", CRASHES, ""]), "");
    assert_eq!(stage.says(&["start", "web"]), "web: running, boot 2\n");
    assert_eq!(stage.says(&["stop", "--force", "web"]), STOPPED);
    assert_eq!(stage.says(&["guestinfo", "web", "set", CRASHES, "1"]), "");
    assert_eq!(fails(&["start", "web"]), crashed);
}
