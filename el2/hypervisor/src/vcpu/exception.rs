//! The end of an exit: the instruction is stepped over, or the guest gets an exception.

use cpu::{inject, pstate};
use hw::sysreg;
use hw::vcpu::VcpuContext;

/// Steps over an instruction that was carried out for the guest.
#[inline(always)]
pub(crate) fn complete(context: &mut VcpuContext) {
    context.skip_instruction();
    context.pstate = pstate::after_instruction(context.pstate);
}

/// Lets `make` turn the guest's state into that of an exception taken to EL1.
pub(crate) fn inject(context: &mut VcpuContext, make: impl FnOnce(&mut inject::GuestState)) {
    let mut state = inject::GuestState {
        pc: context.pc,
        pstate: context.pstate,
        elr_el1: sysreg::elr_el1::read(),
        spsr_el1: sysreg::spsr_el1::read(),
        esr_el1: sysreg::esr_el1::read(),
        far_el1: sysreg::far_el1::read(),
        vbar_el1: sysreg::vbar_el1::read(),
        sctlr_el1: sysreg::sctlr_el1::read(),
    };
    make(&mut state);
    context.pc = state.pc;
    context.pstate = state.pstate;
    sysreg::elr_el1::write(state.elr_el1);
    sysreg::spsr_el1::write(state.spsr_el1);
    sysreg::esr_el1::write(state.esr_el1);
    sysreg::far_el1::write(state.far_el1);
}
