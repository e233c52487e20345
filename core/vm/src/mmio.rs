//! A guest's accesses to its devices: which registers of which devices are loaded or stored, or what the guest gets instead.
//!
//! For most instructions the syndrome says all there is to know ([`described`]). For the others (pairs, writeback, `DC
//! ZVA`) the instruction itself is read from the guest's memory and decoded ([`undescribed`]). Both decide everything
//! before anything is done: a guest whose access is refused has lost nothing, and finds its registers unchanged.
//!
//! Nothing is done here. The caller makes each [`Operation`] at its device, in order, then writes the base register
//! back, and then the guest continues after the instruction.
//!
//! The guest may change its tables and its code at any moment, on another vCPU too. So what is found in its memory must
//! explain what the CPU says about the exit; where it does not, the guest executes the instruction [again](Refusal::Again).

use a64::{Base, Instruction, Resolved, Transfer, Unsupported};
use abi::bundle::Doors as Policy;
use cpu::inject::AbortKind;
use cpu::pstate;
use cpu::translation::{Form, Memory, Rights, rights};
use machine::Target;
use services::Facts;
use units::{AccessSize, ByteOrder, Direction, Ipa, PAGE_SIZE, RegisterAccess, Va};

use crate::exits::DebugState;

#[cfg(test)]
pub(crate) mod tests;

/// What can be asked about the guest whose exit it is. The answers cost something, so each is asked for where it decides.
pub trait Guest {
    /// What answers at `ipa` beside RAM.
    fn device(&self, ipa: Ipa) -> Option<Target>;

    /// Whether RAM is at `ipa`.
    fn is_ram(&self, ipa: Ipa) -> bool;

    /// Where `va` is for an access with these rights, and what memory the guest says it is, by its own tables.
    ///
    /// # Errors
    /// The abort that these tables have for the access, or [`Refusal::Again`] where a table has to be waited for.
    fn translate(&self, va: Va, rights: Rights, direction: Direction) -> Result<(Ipa, Memory), Refusal>;

    /// The abort that the guest gets whose walk of its own tables for `va` came to `table`, where no RAM is.
    fn refused_walk(&self, va: Va, table: Ipa) -> AbortKind;

    /// Four bytes of RAM, if RAM is there.
    fn word(&self, ipa: Ipa) -> Option<[u8; 4]>;

    /// SP_EL0 or SP_EL1.
    fn stack_pointer(&self, which: StackPointer) -> u64;

    /// SCTLR_EL1.
    fn sctlr_el1(&self) -> u64;

    /// DCZID_EL0.
    fn dczid_el0(&self) -> u64;

    /// Its debug registers.
    fn debug(&self) -> DebugState;

    /// What the site file says of its doors.
    fn doors(&self) -> &Policy;

    /// What answers to calls by the SMC calling convention depend on.
    fn facts(&self) -> Facts;
}

/// The registers that an exit leaves in memory.
#[derive(Clone, Copy, Debug)]
pub struct Registers<'a> {
    /// X0 to X30.
    pub x: &'a [u64; 31],
    /// Where the guest is.
    pub pc: u64,
    /// And in which state.
    pub pstate: u64,
}

impl Registers<'_> {
    /// Which stack pointer `SP` means.
    #[must_use]
    pub const fn stack_pointer(&self) -> StackPointer {
        // PSTATE.SP; EL0 has only its own.
        if pstate::is_user(self.pstate) || self.pstate & 1 == 0 { StackPointer::El0 } else { StackPointer::El1 }
    }

    /// One of X0 to X30; XZR is 0.
    pub(crate) fn register(&self, number: u8) -> u64 {
        self.x.get(usize::from(number)).copied().unwrap_or(0)
    }
}

/// One of a guest's stack pointers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StackPointer {
    /// SP_EL0.
    El0,
    /// SP_EL1.
    El1,
}

/// One load or store of one register of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Where.
    pub target: Target,
    /// How wide.
    pub size: AccessSize,
    /// The guest's register.
    register: RegisterAccess,
    /// How the guest's data lies in memory. Devices are little-endian.
    order: ByteOrder,
}

impl Operation {
    #[inline(always)]
    fn new(target: Target, register: RegisterAccess, order: ByteOrder) -> Self {
        // A decoder gave it: 1, 2, 4 or 8.
        let size = AccessSize::from_bytes(register.bytes.into()).unwrap_or(AccessSize::Double);
        Self { target, size, register, order }
    }

    /// Number of the guest's register, 31 for XZR.
    #[must_use]
    #[inline(always)]
    pub const fn rt(&self) -> u8 {
        self.register.rt
    }

    /// What a load leaves in the register, for which the device answered `value`.
    #[must_use]
    #[inline(always)]
    pub const fn loaded(&self, value: u64) -> u64 {
        self.register.loaded(self.order.arrange(self.size, value))
    }

    /// What a store gives the device, of a register that holds `value`.
    #[must_use]
    #[inline(always)]
    pub const fn stored(&self, value: u64) -> u64 {
        self.order.arrange(self.size, value)
    }
}

/// What an instruction does that the syndrome does not describe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operations {
    first: Operation,
    second: Option<Operation>,
    /// The base register's new value, once both are made.
    pub writeback: Option<(Written, u64)>,
}

impl Operations {
    /// Nothing but `first`.
    #[inline(always)]
    pub(crate) const fn single(first: Operation) -> Self {
        Self { first, second: None, writeback: None }
    }

    /// In the order in which they are to be made.
    pub fn iter(&self) -> impl Iterator<Item = Operation> {
        core::iter::once(self.first).chain(self.second)
    }
}

/// A base register that is written back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// X0 to X30.
    Register(u8),
    /// One of the stack pointers.
    StackPointer(StackPointer),
}

/// Why an instruction is not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is not the instruction that was executed, or not where it was: the guest changed something meanwhile.
    Again,
    /// The guest gets this abort, for this address.
    Abort(Va, AbortKind),
    /// It is of a kind that makes no sense on a device.
    Unable {
        /// The instruction.
        word: u32,
        /// What is wrong with it.
        why: Unsupported,
    },
}

/// The abort that a guest gets for an instruction that makes no sense on a device.
#[must_use]
pub const fn abort_of(why: Unsupported) -> AbortKind {
    match why {
        Unsupported::Exclusive | Unsupported::Atomic => AbortKind::UnsupportedAtomic,
        _ => AbortKind::External,
    }
}

/// What an access to `target` does that the syndrome describes as one of `register`, at the guest's `far`.
///
/// # Errors
/// Why nothing.
#[inline(always)]
pub fn described(
    guest: &impl Guest,
    registers: Registers<'_>,
    target: Target,
    far: Va,
    register: RegisterAccess,
    direction: Direction,
) -> Result<Operation, Refusal> {
    if target.offset() & u64::from(register.bytes - 1) != 0 {
        return Err(Refusal::Abort(far, AbortKind::Alignment));
    }
    // An access that begins in RAM and ends in a device exits at the first byte of the device's page (as FAR_EL2 says), with
    // the size of the whole; to carry it out as if it began there would lose its part in RAM.
    if far.0.is_multiple_of(PAGE_SIZE) && register.bytes > 1 {
        begins_at(guest, registers, far, direction)?;
    }
    Ok(Operation::new(target, register, pstate::byte_order(registers.pstate, guest.sctlr_el1())))
}

/// Makes sure that an access at the begin of a device's page begins there.
///
/// The architecture lets an unaligned access that touches Device memory fault (DDI 0487 B2.5.2, "Alignment of data accesses"),
/// and so does one that begins in the page before. Such accesses need Normal memory at stage 1 in front of the device: where
/// there is none, nothing more is to be done, and hardly any guest has any.
#[inline(never)]
fn begins_at(guest: &impl Guest, registers: Registers<'_>, far: Va, direction: Direction) -> Result<(), Refusal> {
    let before = guest.translate(Va(far.0.wrapping_sub(1)), Rights::Kernel, Direction::Read);
    match before {
        Ok((_, Memory::Normal)) => {}
        Err(Refusal::Again) => return Err(Refusal::Again),
        _ => return Ok(()),
    }
    let word = fetch(guest, registers).ok_or(Refusal::Again)?;
    let Ok(Instruction::Transfer(transfer)) = a64::decode(word) else { return Err(Refusal::Again) };
    let resolved = resolve(guest, registers, &transfer, far, direction)?;
    let starts_here = resolved.address.0 << 8 == far.0 << 8;
    if starts_here { Ok(()) } else { Err(Refusal::Abort(resolved.address, AbortKind::Alignment)) }
}

/// What the instruction at PC does, which was refused at `far` and which the syndrome does not describe.
///
/// # Errors
/// Why nothing.
pub fn undescribed(
    guest: &impl Guest,
    registers: Registers<'_>,
    far: Va,
    direction: Direction,
) -> Result<Operations, Refusal> {
    let word = fetch(guest, registers).ok_or(Refusal::Again)?;
    match a64::decode(word) {
        Ok(Instruction::Transfer(transfer)) => both(guest, registers, &transfer, far, direction),
        // DC ZVA faults on Device memory (DDI 0487 D7.4.9): as alignment.
        Ok(Instruction::ZeroBlock { rt })
            if direction == Direction::Write && same_block(guest.dczid_el0(), registers.register(rt), far.0) =>
        {
            Err(Refusal::Abort(far, AbortKind::Alignment))
        }
        // Other cache maintenance says in the syndrome that it is that, a prefetch never aborts, and the others access no
        // memory: none of them can have exited like this.
        Ok(Instruction::ZeroBlock { .. } | Instruction::CacheMaintenance { .. } | Instruction::Prefetch)
        | Err(Unsupported::NotMemory) => Err(Refusal::Again),
        Err(why) => Err(Refusal::Unable { word, why }),
    }
}

/// Whether two addresses are in one block of DC ZVA, whose size in words DCZID_EL0.BS gives as a power of two.
const fn same_block(dczid_el0: u64, one: u64, other: u64) -> bool {
    // Without the tags, which are the top byte.
    (one ^ other) << 8 >> 8 >> ((dczid_el0 & 0xf) + 2) == 0
}

/// The instruction at the guest's PC. It is read as EL1 reads, which may read whatever is mapped at all, also code that EL0
/// may execute and not read. Instructions are little-endian, whatever data is.
fn fetch(guest: &impl Guest, registers: Registers<'_>) -> Option<u32> {
    let (ipa, _) = guest.translate(Va(registers.pc), Rights::Kernel, Direction::Read).ok()?;
    guest.word(ipa).map(u32::from_le_bytes)
}

/// Where `transfer` goes with the guest's registers, if it is what was aborted at `far`.
fn resolve(
    guest: &impl Guest,
    registers: Registers<'_>,
    transfer: &Transfer,
    far: Va,
    direction: Direction,
) -> Result<Resolved, Refusal> {
    let resolved = transfer.resolve(registers.x, guest.stack_pointer(registers.stack_pointer()), registers.pc);
    if transfer.explains(&resolved, far, direction) { Ok(resolved) } else { Err(Refusal::Again) }
}

/// Both accesses of a pair: nothing is done if either cannot be made, by the guest's own tables and with the rights of this
/// instruction, or is not on a device.
fn both(
    guest: &impl Guest,
    registers: Registers<'_>,
    transfer: &Transfer,
    far: Va,
    direction: Direction,
) -> Result<Operations, Refusal> {
    let resolved = resolve(guest, registers, transfer, far, direction)?;
    let form = if transfer.unprivileged { Form::Unprivileged } else { Form::Plain };
    let rights = rights(registers.pstate, form);
    let order = pstate::byte_order(registers.pstate, guest.sctlr_el1());
    let operation = |distance, register: RegisterAccess| {
        let va = Va(resolved.address.0.wrapping_add(distance));
        // An aligned part lies in one page. One that is not faults on Device memory, which begins or ends here.
        if va.0 & u64::from(register.bytes - 1) != 0 {
            return Err(Refusal::Abort(va, AbortKind::Alignment));
        }
        let (ipa, _) = guest.translate(va, rights, direction)?;
        match guest.device(ipa) {
            Some(target) => Ok(Operation::new(target, register, order)),
            // It is the part that was refused, and now it is elsewhere.
            None if far.0.wrapping_sub(va.0) << 8 >> 8 < register.bytes.into() => Err(Refusal::Again),
            // Half in RAM, half in a device: no half is done.
            None if guest.is_ram(ipa) => Err(Refusal::Abort(far, AbortKind::External)),
            None => Err(Refusal::Abort(va, AbortKind::External)),
        }
    };
    let first = operation(0, transfer.first)?;
    let second = transfer.second.map(|second| operation(transfer.first.bytes.into(), second)).transpose()?;
    let writeback = resolved.writeback.and_then(|(base, value)| {
        let written = match base {
            Base::Register(number) => Written::Register(number),
            Base::StackPointer => Written::StackPointer(registers.stack_pointer()),
            Base::ProgramCounter => return None,
        };
        Some((written, value))
    });
    Ok(Operations { first, second, writeback })
}
