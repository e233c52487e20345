//! `uc-info`: what the hypervisor says about itself and this VM. Needs no privileges. Ends with status 1 where no hypervisor
//! answers, 3 if its output could not be written.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the symbol that the program's entry calls")]

use guest::features;
use guest_tools::{exit, say, start};

/// The program, called by the entry with the stack that the kernel left.
// SAFETY: the name is the entry's, and each tool defines it once.
#[unsafe(no_mangle)]
extern "C" fn tool_main(stack: *const u64) -> ! {
    let _words = start(stack);
    let Some(version) = guest::version() else {
        say!("no hypervisor answers here");
        exit(1)
    };
    say!("Undercroft calls {}.{}", version.major, version.minor);
    for (_, name) in features::NAMES.iter().filter(|(bit, _)| version.features & bit != 0) {
        say!("feature {name}");
    }
    let unknown = features::unnamed(version.features);
    if unknown != 0 {
        say!("features {unknown:#x}, which this program does not know");
    }
    say!("vmware-abi {}", if guest::is_vmware() { "yes" } else { "no" });
    if let Some((frequency, lag)) = guest::clock() {
        say!("counter-hz {frequency}");
        say!("counter-lag {lag}");
    }
    let mut number = 0;
    while let Some((name, count)) = guest::statistic(number) {
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        say!("count {} {count}", core::str::from_utf8(&name[..length]).unwrap_or("?"));
        number += 1;
    }
    exit(0)
}
