//! The doors: how a guest calls the hypervisor without a driver, and what happens when such an access is no call.
//!
//! Three doors, open where the site file says so: a read of the debug channel's status into XZR from any level and
//! `HVC #0x86` from EL1 lead to VMware's guest ABI (`core/vmware`); WFE leads to the WFE channel (`core/watchdog`).
//!
//! For the first one MDSCR_EL1 is virtual. Linux sets its TDCC bit, which makes EL0's accesses to the channel trap to EL1, with priority over
//! our traps; so the bit never reaches the hardware, and an access that is no call becomes the exception that the guest's kernel expects of
//! it ([`doors::DebugAccess::Refused`]). A CPU with fine-grained traps traps MDSCR_EL1 for that; on one without it traps anyway (`debug.rs`).

use ::vm::doors::{self, Abort, After, WatchdogRequest};
use ::vmware::{Access, BufferError, Door, ExceptionLevel, Outcome, WallTime};
use abi::calls::{self, vmware};
use abi::wfe as words;
use cpu::inject::{self, AbortKind};
use cpu::translation::{self, Form, Rights};
use cpu::{Direction, pstate};
use hw::vcpu::VcpuContext;
use units::{Ipa, PAGE_SIZE, Va};

use crate::exit::stage1::{self, Refused};
use crate::host::{self, entropy};
use crate::vcpu::Vcpu;
use crate::vcpu::exception::{complete, inject};
use crate::vm::Vm;
use crate::vm::counters::{self, Reason};
use crate::vm::guest_memory::{GuestRam, Missing, RamError};

/// ESR_EL2 of `MRS XZR, MDCCSR_EL0`.
const STATUS_READ: u64 = 0x6220_c3e3;
/// X7 of a call to the low port through the debug channel.
const LOW_CALL: u64 = calls::marked(calls::LOW);
/// The upper half of each word of the WFE channel, "WFE0".
const WORDS: u32 = (words::DETECT >> 32) as u32;
/// The short path: the call that every client begins with, GETVERSION. Says whether it was one. Not inlined, so that other
/// exits do not pay for the registers that it needs.
#[inline(never)]
pub(crate) fn null_call(vcpu: &'static Vcpu, context: &mut VcpuContext) -> bool {
    let x = &mut context.x;
    let is_version = x[7] == LOW_CALL
        && x[0] as u32 == vmware::MAGIC
        && x[2] as u16 == vmware::command::GET_VERSION
        && x[3] as u16 == vmware::PORT_LOW;
    if context.syndrome != STATUS_READ || !is_version || !vcpu.vm.config.doors.vmware {
        return false;
    }
    answer_version(context);
    complete(context);
    vcpu.counters.count(Reason::Call);
    true
}

/// As [`null_call`], by `HVC #0x86`.
#[inline(never)]
pub(crate) fn null_hvc(vcpu: &'static Vcpu, context: &mut VcpuContext) -> bool {
    let x = &mut context.x;
    let is_version = x[7] as u32 == calls::LOW
        && x[0] as u32 == vmware::MAGIC
        && x[2] as u16 == vmware::command::GET_VERSION
        && x[3] as u16 == vmware::PORT_LOW;
    if !is_version || !vcpu.vm.config.doors.vmware {
        return false;
    }
    answer_version(context);
    vcpu.counters.count(Reason::Call);
    true
}

#[inline(always)]
fn answer_version(context: &mut VcpuContext) {
    context.x[0] = vmware::VERSION;
    context.x[1] = u64::from(vmware::MAGIC);
    context.x[2] = vmware::PRODUCT;
}

/// What a WFE says by X0.
pub(crate) enum Word {
    /// Nothing: it is an ordinary one, or this VM has no WFE channel.
    None,
    /// Whether anybody is there.
    Detect,
    /// Something else, perhaps.
    Other,
}

/// See [`Word`]. All words of the channel have the same upper half: one comparison is all that an ordinary WFE pays.
#[inline(always)]
pub(crate) fn word(vcpu: &Vcpu, context: &VcpuContext) -> Word {
    match context.x[0] {
        word if (word >> 32) as u32 != WORDS || !vcpu.vm.config.doors.wfe => Word::None,
        words::DETECT => Word::Detect,
        _ => Word::Other,
    }
}

/// Says that somebody is there.
#[inline(always)]
pub(crate) fn answer_detection(vcpu: &Vcpu, context: &mut VcpuContext) {
    context.x[0] = words::AGENT;
    context.x[1] = doors::detected(&vcpu.vm.config.doors, level(context));
}

#[inline(always)]
fn level(context: &VcpuContext) -> ExceptionLevel {
    if pstate::is_user(context.pstate) { ExceptionLevel::User } else { ExceptionLevel::Kernel }
}

/// A call, by whichever door.
pub(crate) fn carry_out(vcpu: &'static Vcpu, context: &mut VcpuContext, call: Access, door: Door) {
    let Some(service) = &vcpu.vm.doors.service else { return };
    let level = level(context);
    let rights = translation::rights(context.pstate, Form::Plain);
    let mut caller = Caller { vm: vcpu.vm, vcpu, rights, level, missing: None };
    let Some(x) = context.x.first_chunk_mut() else { return };
    let mut outcome = service.lock().call(call, x, level, &mut caller);
    if let Some(missing) = caller.missing {
        // Nothing has happened yet. Now that no lock is held, the block is made ready, and the guest calls again.
        vcpu.vm.touch(missing);
        outcome = Outcome::Again;
    }
    match doors::after(door, &outcome) {
        After::Behind => {}
        After::StepOver => complete(context),
        After::Again { back, abort } => {
            context.pc = context.pc.wrapping_sub(back);
            if let Some(Abort { address, kind, direction }) = abort {
                inject(context, |state| inject::data_abort(state, address, kind, direction));
            }
        }
    }
}

/// The world as the service sees it during a call. The caller's vCPU is loaded.
struct Caller {
    vm: &'static Vm,
    vcpu: &'static Vcpu,
    /// With what rights it reaches its memory: those of a load or store in the place of the call.
    rights: Rights,
    level: ExceptionLevel,
    /// Where its memory is not ready yet. To make it so takes longer than the service's lock may be held.
    missing: Option<Missing>,
}

impl Caller {
    /// Calls `move_part` for each page's part of `address..address + length`, with its place and the offset in the whole.
    fn for_each_page(
        &mut self,
        address: u64,
        length: usize,
        direction: Direction,
        mut move_part: impl FnMut(&mut GuestRam, Ipa, usize, usize) -> Result<(), RamError>,
    ) -> Result<(), BufferError> {
        let mut done = 0;
        while done < length {
            let at = address.wrapping_add(done as u64);
            let part = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(length - done);
            let fault = |kind: AbortKind| BufferError::Fault { address: at, status: kind.status() as u8, direction };
            let ipa = match stage1::translate_shown(self.vcpu, Va(at), self.rights, direction) {
                Ok((ipa, _)) => ipa,
                Err(Refused::NotReady(table)) => {
                    self.missing = Some(table);
                    return Err(fault(AbortKind::External));
                }
                Err(Refused::Abort(AbortKind::External | AbortKind::ExternalOnWalk(_))) => {
                    return Err(BufferError::NotMemory);
                }
                Err(Refused::Abort(kind)) => return Err(fault(kind)),
            };
            let result = move_part(&mut self.vm.ram.lock(), ipa, done, part);
            match result {
                Ok(()) => done += part,
                Err(RamError::NotReady(missing)) => {
                    self.missing = Some(missing);
                    // A fault is what lets the service take everything back.
                    return Err(fault(AbortKind::External));
                }
                Err(_) => return Err(BufferError::NotMemory),
            }
        }
        Ok(())
    }
}

impl ::vmware::Host for Caller {
    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), BufferError> {
        self.for_each_page(from, into.len(), Direction::Read, |ram, at, offset, part| {
            into.get_mut(offset..offset + part).map_or(Ok(()), |into| ram.read(at, into))
        })
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), BufferError> {
        self.for_each_page(to, bytes.len(), Direction::Write, |ram, at, offset, part| {
            bytes.get(offset..offset + part).map_or(Ok(()), |bytes| ram.write(at, bytes))
        })
    }

    fn random(&mut self) -> u64 {
        u64::from_le_bytes(entropy::bytes())
    }

    fn time(&mut self) -> WallTime {
        let now = self.vm.wall_clock();
        WallTime { seconds: now / 1_000_000, microseconds: (now % 1_000_000) as u32 }
    }

    fn milliseconds(&mut self) -> u64 {
        host::milliseconds()
    }

    fn guest_milliseconds(&mut self) -> u64 {
        self.vm.milliseconds()
    }

    fn log(&mut self, text: &[u8]) -> bool {
        self.vm.console.push_log(format_args!("{}: guest: {}", self.vm.config.name, Printable(text)))
    }

    fn features(&mut self) -> u64 {
        doors::features(&self.vm.config.doors, self.level, host::wfe_traps())
    }

    fn statistic(&mut self, number: u32) -> Option<(&'static str, u64, u32)> {
        counters::of_vm(self.vm, number as usize)
    }

    fn clock(&mut self) -> (u64, u64) {
        let clock = self.vm.clock();
        (clock.frequency().0, clock.hardware_offset().map_or(0, |offset| offset.0))
    }

    fn watchdog(
        &mut self,
        request: ::vmware::WatchdogCall,
        whose: ::vmware::Whose,
        level: ExceptionLevel,
    ) -> Result<u64, u64> {
        let (scope, request) = WatchdogRequest::by_call(request, whose);
        let caller = ::vm::Caller { level, vcpu: self.vcpu.id, scope };
        self.vm.doors.watchdogs.carry_out(self.vm, caller, request).map_err(doors::status_of)
    }
}

/// A guest's text without what could disturb a terminal.
struct Printable<'a>(&'a [u8]);

impl core::fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for &byte in self.0.iter().take(512) {
            let byte = if byte.is_ascii_graphic() || byte == b' ' { byte } else { b'.' };
            core::fmt::Write::write_char(f, char::from(byte))?;
        }
        Ok(())
    }
}
