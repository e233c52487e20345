//! The host's interrupts: those that arrive while a guest runs, and those that arrive in EL2.

use core::sync::atomic::{AtomicU32, Ordering};

use hw::percpu::this_cpu;
use hw::sync::is_unpreemptible;
use hw::{gic, nopreempt};
use units::IntId;

use crate::exit::checks::{Checks, Place};
use crate::output;
use crate::sched;
use crate::vcpu::{self, Vcpu};
use crate::vm::handle::request;

/// The console's interrupt, or [`gic::SPURIOUS`].
static CONSOLE: AtomicU32 = AtomicU32::new(gic::SPURIOUS);

/// Enables `interrupt` as the console's.
pub(crate) fn set_console(interrupt: IntId) {
    CONSOLE.store(interrupt.0, Ordering::Relaxed);
    gic::enable_spi(interrupt);
}

/// How many interrupts are handled in one go. Whatever makes them, what was interrupted gets its turn in between, and so
/// does whoever waits for the CPU.
const ROUNDS: usize = 16;

/// Takes and handles the pending interrupts of this CPU, at most [`ROUNDS`]: what is left is pending still, and comes again
/// as soon as IRQs are let in. IRQs are masked.
pub(crate) fn handle() {
    let _ = fair::go(ROUNDS, || Some(gic::acknowledge()).filter(|&interrupt| interrupt < gic::SPURIOUS), dispatch);
}

/// As [`handle`], while `vcpu` ran. The timer of the guest, by far the most frequent one, is handed over on the spot.
#[inline(always)]
pub(crate) fn handle_from_guest(vcpu: &'static Vcpu) {
    let interrupt = gic::acknowledge();
    if interrupt == gic::VIRTUAL_TIMER.0 {
        gic::drop_priority(interrupt);
        if !vcpu.hand_over_timer() {
            timer_fired(vcpu);
        }
    } else if interrupt < gic::SPURIOUS {
        dispatch(interrupt);
        handle();
    }
}

/// The interrupt hook: an interrupt arrived while this CPU was in EL2 with IRQs let in, and would go on at
/// `return_address`. In listed code, and while the thread holds a lock, the preemption has to wait, not the interrupt.
pub(crate) extern "C" fn interrupt_in_el2<C: Checks>(return_address: u64) {
    C::interrupted(return_address);
    handle();
    C::interrupt_is_handled();
    if sched::wants_reschedule() {
        if is_unpreemptible() || nopreempt::is_listed(return_address) {
            this_cpu().preempt_pending.store(1, Ordering::Relaxed);
        } else {
            C::before_preemption(Place::AtOnce);
            sched::preempt();
        }
    }
}

/// The preemption that had to wait ([`interrupt_in_el2`]) happens now. IRQs are masked.
pub(crate) fn preempt_deferred<C: Checks>() {
    C::before_preemption(Place::Deferred);
    sched::preempt();
}

#[inline(never)]
fn dispatch(interrupt: u32) {
    match IntId(interrupt) {
        gic::VIRTUAL_TIMER => {
            gic::drop_priority(interrupt);
            let loaded = *vcpu::loaded_here().lock();
            match loaded {
                Some(vcpu) => timer_fired(vcpu),
                // Fired just before its vCPU was unloaded; it will fire again where that goes.
                None => gic::set_active(gic::VIRTUAL_TIMER, false),
            }
        }
        gic::HYPERVISOR_TIMER => {
            sched::timer_fired();
            gic::end(interrupt);
        }
        gic::MAINTENANCE => {
            // Choosing list registers anew removes the cause; until then it would only arrive again.
            let loaded = *vcpu::loaded_here().lock();
            if let Some(vcpu) = loaded {
                vcpu.refresh_interrupts();
            }
            gic::end(interrupt);
        }
        gic::KICK => {
            gic::end(interrupt);
            sched::kicked();
        }
        gic::HALT => loop {
            hw::sysreg::wfi();
        },
        IntId(other) => {
            if other == CONSOLE.load(Ordering::Relaxed) {
                output::input_arrived();
            }
            gic::end(other);
        }
    }
}

/// The virtual timer of `vcpu`, loaded here, fired: the long way, through the model.
#[cold]
fn timer_fired(vcpu: &'static Vcpu) {
    vcpu.with_gic(|gic| gic.raise_hardware(vcpu.id, gic::VIRTUAL_TIMER, gic::VIRTUAL_TIMER));
    if !vcpu.thread().is_running() {
        vcpu.request(request::INTERRUPTS);
    }
}
