//! The host's interrupts: those that arrive while a guest runs, and those that arrive in EL2.
//!
//! A CPU's own interrupts (timers, SGIs, maintenance) have an arm each in `dispatch`. A device's interrupt finds its handler in a
//! table by its number: a device that interrupts is one line among the [`Handler`]s, and a call of [`connect`] where it is set
//! up. A handler is chosen by a `match` and not by a pointer: this is on the short path of an exit, where a guest's branch
//! history could choose the target of an indirect call.

use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use hw::percpu::this_cpu;
use hw::sync::is_unpreemptible;
use hw::{gic, nopreempt};
use platform::InterruptLine;
use units::IntId;

use crate::exit::checks::{Checks, Place};
use crate::output;
use crate::sched;
use crate::vcpu::{self, Vcpu};
use crate::vm::handle::request;
use crate::vm::host_disk;

/// Makes [`Handler`] of lines `Name(which of these devices) => what it does`. What it does stands in a room below this one, runs
/// with IRQs masked on the CPU that took the interrupt, and makes the device take its interrupt back.
macro_rules! handlers {
    ($($(#[$doc:meta])* $name:ident($device:pat) => $handle:expr;)+) => {
        /// What handles the interrupts of a kind of device.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Handler { $($(#[$doc])* $name),+ }

        impl Handler {
            const ALL: &[Self] = &[$(Self::$name),+];

            fn handle(self, device: u8) {
                match (self, device) { $((Self::$name, $device) => $handle),+ }
            }
        }
    };
}

handlers! {
    /// The UART to talk through.
    Console(_) => output::input_arrived();
    /// The virtio console with the link's port.
    LinkPort(_) => output::port::interrupted();
    /// A virtio disk, by its number, and what shares its line on PCI.
    HostDisk(number) => output::port::interrupted_beside(host_disk::interrupted(number));
}

/// Shared interrupts begin here.
const FIRST_SHARED: u32 = 32;
/// Who handles each shared interrupt: the handler's place in [`Handler::ALL`], plus one, in the upper half, which of its devices
/// in the lower; 0 for nobody. LPIs, which begin at 8192, will need a table of their own.
static SHARED: [AtomicU16; (gic::SPURIOUS - FIRST_SHARED) as usize] =
    [const { AtomicU16::new(0) }; (gic::SPURIOUS - FIRST_SHARED) as usize];
/// Interrupts that nobody handles, and that were disabled when they came.
static UNCLAIMED: AtomicU32 = AtomicU32::new(0);

/// Why an interrupt cannot be connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unconnectable {
    /// It is not a shared interrupt.
    NotShared,
    /// It is another device's already.
    Taken,
}

impl Unconnectable {
    /// A sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NotShared => "a device's must be from 32 to 1019",
            Self::Taken => "it is another device's already",
        }
    }
}

/// From now on `handler` handles the interrupt of `line` for the device of its kind with the number `device`; the interrupt is
/// signalled as `line` says, routed to this CPU and enabled.
///
/// # Errors
/// Why it stays as it was.
pub fn connect(line: InterruptLine, handler: Handler, device: u8) -> Result<(), Unconnectable> {
    let entry = entry(line.interrupt).ok_or(Unconnectable::NotShared)?;
    let value = (handler as u16 + 1) << 8 | u16::from(device);
    // Pairs with the acquire in `handle_shared`: what the handler needs is seen by whichever CPU takes the interrupt.
    entry.compare_exchange(0, value, Ordering::Release, Ordering::Relaxed).map_err(|_| Unconnectable::Taken)?;
    gic::enable_spi(line);
    Ok(())
}

fn entry(interrupt: IntId) -> Option<&'static AtomicU16> {
    SHARED.get(interrupt.0.checked_sub(FIRST_SHARED)? as usize)
}

/// How many interrupts came that no device of ours has.
#[must_use]
pub fn unclaimed() -> u32 {
    UNCLAIMED.load(Ordering::Relaxed)
}

/// One that nobody handles is disabled: its device would raise it for ever.
fn handle_shared(interrupt: IntId) {
    // Pairs with the release in `connect`.
    let value = entry(interrupt).map_or(0, |entry| entry.load(Ordering::Acquire));
    match usize::from(value >> 8).checked_sub(1).and_then(|place| Handler::ALL.get(place)) {
        Some(handler) => handler.handle(value as u8),
        None => disable_unclaimed(interrupt),
    }
}

#[cold]
#[inline(never)]
fn disable_unclaimed(interrupt: IntId) {
    gic::disable_spi(interrupt);
    UNCLAIMED.fetch_add(1, Ordering::Relaxed);
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
        other => {
            handle_shared(other);
            gic::end(interrupt);
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
