//! Each register in each direction, for each of the ways in which they are kept from a guest.

use cpu::debug::{DebugBank, DebugPolicy};
use cpu::sysreg::DebugRegister;
use units::Direction;

use super::{DebugSink, DebugState, Way, access};

use DebugPolicy::{Natural, TrapAll, TrapStatus};
use Direction::{Read, Write};

const POLICIES: [DebugPolicy; 3] = [TrapAll, TrapStatus, Natural];
/// What the guest writes.
const VALUE: u64 = 0xffff_ffff_0000_50f0;

const fn state(policy: DebugPolicy) -> DebugState {
    DebugState { policy, mdscr: 0x8000, mdccint: 1 << 30, claim: 0x31, breakpoints: 6, watchpoints: 4 }
}

fn look(policy: DebugPolicy, register: DebugRegister, direction: Direction) -> Way {
    access(&state(policy), register, direction, VALUE)
}

#[test]
fn the_status_register_is_shown_where_it_traps_for_ever_and_loaded_where_it_does_not() {
    for policy in [TrapAll, TrapStatus] {
        assert_eq!(look(policy, DebugRegister::Mdscr, Read), Way::Shown(0x8000), "{policy:?}");
        assert_eq!(look(policy, DebugRegister::Mdscr, Write), Way::Write(DebugSink::Mdscr(VALUE)), "{policy:?}");
    }
    for direction in [Read, Write] {
        assert_eq!(look(Natural, DebugRegister::Mdscr, direction), Way::Load);
    }
}

/// They trap by every policy, and the hardware has none of them.
#[test]
fn what_the_hardware_never_has_is_kept_here() {
    for policy in POLICIES {
        assert_eq!(look(policy, DebugRegister::Mdccint, Read), Way::Shown(1 << 30));
        let enables = access(&state(policy), DebugRegister::Mdccint, Write, u64::MAX);
        assert_eq!(enables, Way::Write(DebugSink::Mdccint(3 << 29)), "its other bits are RES0");
        assert_eq!(look(policy, DebugRegister::ClaimSet, Read), Way::Shown(0xff), "eight tags there are");
        assert_eq!(look(policy, DebugRegister::ClaimClear, Read), Way::Shown(0x31), "three of them set");
        assert_eq!(
            look(policy, DebugRegister::ClaimSet, Write),
            Way::Write(DebugSink::Claim(0xf1)),
            "to those that are set"
        );
        assert_eq!(look(policy, DebugRegister::ClaimClear, Write), Way::Write(DebugSink::Claim(0x01)), "from them");
    }
}

/// How many registers of points the guest has in each bank.
const POINTS: [(DebugBank, u8); 4] = [
    (DebugBank::BreakpointValue, 6),
    (DebugBank::BreakpointControl, 6),
    (DebugBank::WatchpointValue, 4),
    (DebugBank::WatchpointControl, 4),
];

#[test]
fn points_are_loaded_once_or_accessed_each_time() {
    for (bank, count) in POINTS {
        for number in 0..16 {
            for direction in [Read, Write] {
                for policy in [TrapStatus, Natural] {
                    assert_eq!(look(policy, DebugRegister::Point(bank, number), direction), Way::Load);
                }
            }
            let both = [Read, Write].map(|direction| look(TrapAll, DebugRegister::Point(bank, number), direction));
            let made = [Way::Read(bank, number), Way::Write(DebugSink::Point(bank, number, VALUE))];
            let expected = if number < count { made } else { [Way::Undefined; 2] };
            assert_eq!(both, expected, "{bank:?} {number}");
        }
    }
}
