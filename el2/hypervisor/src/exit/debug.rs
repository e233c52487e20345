//! A vCPU's debug registers, where an access to one of them traps (`core/cpu/src/debug.rs` says which do).
//!
//! Breakpoints, watchpoints and single step are the guest's own. A CPU with fine-grained traps lets it reach their
//! registers once it has used one; on others each access to a debug register traps to here, and is made on the guest's
//! behalf, since the registers that must not be reached trap only together with them.

use cpu::sysreg::DebugRegister;
use cpu::{Direction, debug, inject};
use hw::state::{DebugBank, DebugPolicy};
use hw::vcpu::VcpuContext;

use crate::host;
use crate::vcpu::Vcpu;
use crate::vcpu::exception::{complete, inject};

/// Carries out a trapped access to `register`; `rt` is the general register that it moves.
pub(crate) fn access(
    vcpu: &'static Vcpu,
    context: &mut VcpuContext,
    register: DebugRegister,
    direction: Direction,
    rt: u8,
) {
    let features = &host::get().features;
    let value = context.register(rt);
    let result = vcpu.with_state(|state| {
        let is_write = direction == Direction::Write;
        let (bank, index) = match register {
            DebugRegister::Mdscr if state.controls.debug != DebugPolicy::Natural => {
                if is_write {
                    state.write_mdscr(value, features);
                }
                return Access::Done(state.controls.mdscr);
            }
            DebugRegister::Mdscr => {
                state.load_debug(features);
                return Access::Again;
            }
            DebugRegister::Mdccint => {
                if is_write {
                    state.controls.mdccint = value & debug::MDCCINT_BITS;
                }
                return Access::Done(state.controls.mdccint);
            }
            DebugRegister::ClaimSet => {
                if is_write {
                    state.controls.claim |= value & debug::CLAIM_TAGS;
                }
                return Access::Done(debug::CLAIM_TAGS);
            }
            DebugRegister::ClaimClear => {
                if is_write {
                    state.controls.claim &= !value;
                }
                return Access::Done(state.controls.claim);
            }
            DebugRegister::BreakpointValue(index) => (DebugBank::BreakpointValue, index),
            DebugRegister::BreakpointControl(index) => (DebugBank::BreakpointControl, index),
            DebugRegister::WatchpointValue(index) => (DebugBank::WatchpointValue, index),
            DebugRegister::WatchpointControl(index) => (DebugBank::WatchpointControl, index),
        };
        if state.controls.debug != DebugPolicy::TrapAll {
            // They are loaded now, and the access is made again, untrapped.
            state.load_debug(features);
            return Access::Again;
        }
        let done = match direction {
            Direction::Read => state.read_debug(bank, index, features),
            Direction::Write => state.write_debug(bank, index, value, features).map(|()| 0),
        };
        done.map_or(Access::Undefined, Access::Done)
    });
    match result {
        Access::Done(read) => {
            if direction == Direction::Read {
                context.set_register(rt, read);
            }
            complete(context);
        }
        Access::Again => {}
        Access::Undefined => inject(context, inject::undefined),
    }
}

/// What became of an access.
enum Access {
    /// It was carried out; a read gave this.
    Done(u64),
    /// The guest makes it again, untrapped.
    Again,
    /// The CPU has no such register.
    Undefined,
}
