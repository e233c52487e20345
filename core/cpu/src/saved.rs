//! A vCPU's registers as a value: taken out of one and put into another, on this host or on another.
//!
//! The owner of the registers lends all of them as [`Registers`], by naming every field of its own state, so that one that is
//! added and forgotten does not compile. System registers are saved with their names, in the order of the table that switches
//! them ([`crate::registers`]): a host that has one more, or one less, says which.
//!
//! What EL2 decides for a guest (its traps, offsets, the tables of stage 2) is not among them. The values may come from a file:
//! one that would let a guest run outside of EL1 and EL0 is refused.

use alloc::vec::Vec;
use core::fmt;

use pack::{Damaged, Reader, Value, Writer, value};

use crate::controls::HCR_VSE;
use crate::pstate;
use crate::registers::{ContextNumbers, Debug, El1, General, InterruptState, Keys, Vectors};

/// All registers of a vCPU that is not loaded, where they are kept. What the CPU does not have is not among them.
#[derive(Debug)]
pub struct Registers<'a> {
    /// General registers.
    pub general: &'a mut General,
    /// System registers that every CPU has.
    pub el1: &'a mut El1,
    /// Keys of pointer authentication.
    pub keys: Option<&'a mut Keys>,
    /// Context numbers.
    pub context_numbers: Option<&'a mut ContextNumbers>,
    /// VDISR_EL2, the guest's DISR_EL1.
    pub deferred_error: Option<&'a mut u64>,
    /// FP/SIMD registers.
    pub vectors: &'a mut Vectors,
    /// Breakpoints and watchpoints, and how many there are of them.
    pub debug: &'a mut Debug,
    /// How many breakpoints there are.
    pub breakpoints: usize,
    /// How many watchpoints.
    pub watchpoints: usize,
    /// The virtual interrupt interface. ICH_HCR_EL2 is not the guest's.
    pub interrupts: &'a mut InterruptState,
    /// HCR_EL2, of which VSE is the guest's.
    pub hcr: &'a mut u64,
    /// OSLSR_EL1.OSLK.
    pub os_lock: &'a mut bool,
    /// MDSCR_EL1 as the guest sees it, and which of its bits do not reach the register, where that is emulated: without FEAT_FGT, and
    /// where the guest may call through the debug channel.
    pub mdscr: Option<(&'a mut u64, u64)>,
    /// MDCCINT_EL1.
    pub mdccint: &'a mut u64,
    /// The claim tags.
    pub claim: &'a mut u64,
}

/// The name of a register, padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Name(pub [u8; 16]);

impl Name {
    /// The name `text`, of which more than 16 bytes are cut.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut name = [0; 16];
        for (to, from) in name.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Self(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.iter().take_while(|byte| **byte != 0) {
            write!(out, "{}", if byte.is_ascii_graphic() { char::from(*byte) } else { '?' })?;
        }
        Ok(())
    }
}

impl Value for Name {
    fn pack(&self, out: &mut Writer) {
        let Self(name) = self;
        name.pack(out);
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Value::unpack(from).map(Self)
    }
}

/// The system register that is not saved by what it holds, which is another value where it is emulated.
const MDSCR: &str = "mdscr_el1";
/// The most system registers that a vCPU has: those of all tables but that one, and DISR_EL1.
const SYSTEM: usize = El1::COUNT - 1 + Keys::COUNT + ContextNumbers::COUNT + 1;
/// The most breakpoints, and watchpoints.
const POINTS: usize = 16;

/// The registers of a vCPU.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SavedRegisters {
    /// X0 to X30.
    pub x: [u64; 31],
    /// Where the guest continues.
    pub pc: u64,
    /// PSTATE, in the layout of SPSR_EL2.
    pub pstate: u64,
    /// System registers, in the order of their table.
    pub system: Vec<(Name, u64)>,
    /// Q0 to Q31, the low half first.
    pub q: [[u64; 2]; 32],
    /// FPCR.
    pub fpcr: u64,
    /// FPSR.
    pub fpsr: u64,
    /// DBGBVR`n`_EL1 and DBGBCR`n`_EL1.
    pub breakpoints: Vec<(u64, u64)>,
    /// DBGWVR`n`_EL1 and DBGWCR`n`_EL1.
    pub watchpoints: Vec<(u64, u64)>,
    /// OSLSR_EL1.OSLK.
    pub os_lock: bool,
    /// MDSCR_EL1 as the guest sees it.
    pub mdscr: u64,
    /// MDCCINT_EL1.
    pub mdccint: u64,
    /// The claim tags.
    pub claim: u64,
    /// ICH_VMCR_EL2.
    pub vmcr: u64,
    /// ICH_AP0R0_EL2 and up.
    pub active_priorities_0: [u64; 4],
    /// ICH_AP1R0_EL2 and up.
    pub active_priorities_1: [u64; 4],
    /// An SError is pending.
    pub pending_error: bool,
}

impl SavedRegisters {
    /// The version of this type: another one means another set of fields, or another meaning. 2: MDSCR_EL1 is the guest's, once.
    pub const VERSION: u16 = 2;
}

value!(SavedRegisters as "registers" {
    x, pc, pstate, system[SYSTEM], q, fpcr, fpsr, breakpoints[POINTS], watchpoints[POINTS], os_lock, mdscr, mdccint, claim, vmcr,
    active_priorities_0, active_priorities_1, pending_error
});

/// Why registers cannot be put into a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// It was saved without this register, which CPUs have here.
    Missing(&'static str),
    /// It was saved with this register, which no CPU has here.
    Unknown(Name),
    /// It was saved with so many breakpoints or watchpoints, here there are others.
    Breakpoints(usize, usize),
    /// No guest could have brought this about.
    Impossible(&'static str),
}

impl fmt::Display for Unfit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => {
                write!(out, "a vCPU was saved without the register {name}, which this host's CPUs have")
            }
            Self::Unknown(name) => {
                write!(out, "a vCPU was saved with the register {name}, which this host's CPUs do not have")
            }
            Self::Breakpoints(saved, here) => {
                write!(out, "a vCPU was saved with {saved} breakpoints and watchpoints, this host's CPUs have {here}")
            }
            Self::Impossible(what) => write!(out, "a vCPU's registers are damaged: {what}"),
        }
    }
}

impl core::error::Error for Unfit {}

/// Lets `look` look at each system register, by its name; but not at MDSCR_EL1.
fn each(
    el1: &mut El1,
    keys: Option<&mut Keys>,
    context_numbers: Option<&mut ContextNumbers>,
    deferred_error: Option<&mut u64>,
    mut look: impl FnMut(&'static str, &mut u64),
) {
    el1.each(|name, value| {
        if name != MDSCR {
            look(name, value);
        }
    });
    if let Some(keys) = keys {
        keys.each(&mut look);
    }
    if let Some(context_numbers) = context_numbers {
        context_numbers.each(&mut look);
    }
    if let Some(deferred_error) = deferred_error {
        look("disr_el1", deferred_error);
    }
}

/// System registers that are taken out, with room for all that there are.
struct System(Vec<(Name, u64)>);

impl System {
    // Not inlined, for each of some sixty registers calls it.
    #[inline(never)]
    fn add(&mut self, name: &str, value: u64) {
        self.0.push((Name::new(name), value));
    }
}

/// System registers that are put in, in the order of the table, as they were saved.
struct Expected<'s> {
    rest: &'s [(Name, u64)],
    /// The first that is not the one that comes next: it is either missing, or that one is unknown.
    missing: Option<&'static str>,
}

impl Expected<'_> {
    // As [`System::add`].
    #[inline(never)]
    fn take(&mut self, name: &'static str, place: &mut u64) {
        if self.missing.is_some() {
            return;
        }
        match self.rest.split_first() {
            Some(((saved, value), rest)) if *saved == Name::new(name) => {
                *place = *value;
                self.rest = rest;
            }
            _ => self.missing = Some(name),
        }
    }
}

impl Registers<'_> {
    /// Takes them out.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn save(self) -> Result<SavedRegisters, Damaged> {
        let Self {
            general,
            el1,
            keys,
            context_numbers,
            deferred_error,
            vectors,
            debug,
            breakpoints,
            watchpoints,
            interrupts,
            hcr,
            os_lock,
            mdscr,
            mdccint,
            claim,
        } = self;
        let General { x, pc, pstate } = *general;
        let Vectors { q, fpcr, fpsr } = *vectors;
        let Debug { breakpoint_values, breakpoint_controls, watchpoint_values, watchpoint_controls } = debug;
        // What is to be loaded into ICH_HCR_EL2 follows from the interrupt controller's state.
        let InterruptState { vmcr, hcr: _, active_priorities_0, active_priorities_1 } = *interrupts;
        let mdscr = mdscr.map_or(el1.mdscr_el1, |(seen, _)| *seen);
        let mut system = System(Vec::new());
        system.0.try_reserve_exact(SYSTEM).map_err(|_| Damaged::NoMemory)?;
        each(el1, keys, context_numbers, deferred_error, |name, value| system.add(name, *value));
        Ok(SavedRegisters {
            x,
            pc,
            pstate,
            system: system.0,
            q,
            fpcr,
            fpsr,
            breakpoints: pairs(breakpoint_values, breakpoint_controls, breakpoints)?,
            watchpoints: pairs(watchpoint_values, watchpoint_controls, watchpoints)?,
            os_lock: *os_lock,
            mdscr,
            mdccint: *mdccint,
            claim: *claim,
            vmcr,
            active_priorities_0,
            active_priorities_1,
            pending_error: *hcr & HCR_VSE != 0,
        })
    }

    /// Puts them in.
    ///
    /// # Errors
    /// If they do not fit this host, or are not a guest's; nothing has changed then.
    pub fn restore(self, saved: &SavedRegisters) -> Result<(), Unfit> {
        let SavedRegisters {
            x,
            pc,
            pstate,
            system,
            q,
            fpcr,
            fpsr,
            breakpoints,
            watchpoints,
            os_lock,
            mdscr,
            mdccint,
            claim,
            vmcr,
            active_priorities_0,
            active_priorities_1,
            pending_error,
        } = saved;
        if !pstate::is_guests(*pstate) {
            return Err(Unfit::Impossible("PSTATE is not one of EL1 or EL0 in AArch64 state"));
        }
        for (saved, here) in [(breakpoints, self.breakpoints), (watchpoints, self.watchpoints)] {
            if saved.len() != here {
                return Err(Unfit::Breakpoints(saved.len(), here));
            }
        }
        let mut el1 = *self.el1;
        let mut keys = self.keys.as_deref().copied();
        let mut context_numbers = self.context_numbers.as_deref().copied();
        let mut deferred_error = self.deferred_error.as_deref().copied();
        fill(system, &mut el1, keys.as_mut(), context_numbers.as_mut(), deferred_error.as_mut())?;
        el1.mdscr_el1 = *mdscr;
        if let Some((seen, withheld)) = self.mdscr {
            *seen = *mdscr;
            el1.mdscr_el1 &= !withheld;
        }
        *self.el1 = el1;
        set(self.keys, keys);
        set(self.context_numbers, context_numbers);
        set(self.deferred_error, deferred_error);
        *self.general = General { x: *x, pc: *pc, pstate: *pstate };
        *self.vectors = Vectors { q: *q, fpcr: *fpcr, fpsr: *fpsr };
        let debug = self.debug;
        set_pairs(&mut debug.breakpoint_values, &mut debug.breakpoint_controls, breakpoints);
        set_pairs(&mut debug.watchpoint_values, &mut debug.watchpoint_controls, watchpoints);
        *self.interrupts = InterruptState {
            vmcr: *vmcr,
            hcr: self.interrupts.hcr,
            active_priorities_0: *active_priorities_0,
            active_priorities_1: *active_priorities_1,
        };
        *self.hcr = if *pending_error { *self.hcr | HCR_VSE } else { *self.hcr & !HCR_VSE };
        (*self.os_lock, *self.mdccint, *self.claim) = (*os_lock, *mdccint, *claim);
        Ok(())
    }
}

/// Sets all system registers from `system`, which must be these and no others.
fn fill(
    system: &[(Name, u64)],
    el1: &mut El1,
    keys: Option<&mut Keys>,
    context_numbers: Option<&mut ContextNumbers>,
    deferred_error: Option<&mut u64>,
) -> Result<(), Unfit> {
    let mut expected = Expected { rest: system, missing: None };
    each(el1, keys, context_numbers, deferred_error, |name, place| expected.take(name, place));
    match (expected.missing, expected.rest.first()) {
        (None, None) => Ok(()),
        (None, Some((unknown, _))) => Err(Unfit::Unknown(*unknown)),
        (Some(missing), None) => Err(Unfit::Missing(missing)),
        // It comes later, behind one that is not known here.
        (Some(missing), Some((unknown, _))) if system.iter().any(|(name, _)| *name == Name::new(missing)) => {
            Err(Unfit::Unknown(*unknown))
        }
        (Some(missing), Some(_)) => Err(Unfit::Missing(missing)),
    }
}

fn set<T>(place: Option<&mut T>, value: Option<T>) {
    if let (Some(place), Some(value)) = (place, value) {
        *place = value;
    }
}

fn pairs(values: &[u64; 16], controls: &[u64; 16], count: usize) -> Result<Vec<(u64, u64)>, Damaged> {
    let mut pairs = Vec::new();
    pairs.try_reserve_exact(count).map_err(|_| Damaged::NoMemory)?;
    pairs.extend(values.iter().copied().zip(controls.iter().copied()).take(count));
    Ok(pairs)
}

fn set_pairs(values: &mut [u64; 16], controls: &mut [u64; 16], pairs: &[(u64, u64)]) {
    for ((value, control), pair) in values.iter_mut().zip(controls).zip(pairs) {
        (*value, *control) = *pair;
    }
}

#[cfg(test)]
mod tests;
