//! Calls of VMware's guest ABI, as the hypervisor's `exit/doors.rs` carries them out.

use cpu::inject::AbortKind;
use cpu::pstate;
use cpu::translation::{Form, Rights, rights};
use units::{Direction, Ipa, PAGE_SIZE, Range, Va, VcpuId};
use vm::doors::{self, Abort, After, WatchdogRequest};
use vm::exits::Exception;
use vm::{Caller, Watchdogs};
use vmware::{Access, BufferError, Door, ExceptionLevel, Host, Outcome, WallTime};

use crate::exits::{Done, translate};
use crate::hardware::{Refused, Shared};
use crate::whole::{HOST, WholeVm};

/// The world as the service sees it during a call.
struct World<'a> {
    shared: &'a Shared,
    ram: Range<Ipa>,
    rights: Rights,
    level: ExceptionLevel,
    vcpu: VcpuId,
    watchdogs: &'a mut Watchdogs,
    policy: &'a abi::bundle::Doors,
    /// The milliseconds of the VM's clock, and of the host's.
    now: [u64; 2],
    missing: Option<Ipa>,
    logged: &'a mut Vec<Done>,
}

impl World<'_> {
    fn for_each_page(
        &mut self,
        address: u64,
        length: usize,
        direction: Direction,
        mut move_part: impl FnMut(&Shared, Ipa, usize, usize) -> Result<(), Refused>,
    ) -> Result<(), BufferError> {
        let mut done = 0;
        while done < length {
            let at = address.wrapping_add(done as u64);
            let part = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(length - done);
            let fault = |kind: AbortKind| BufferError::Fault { address: at, status: kind.status() as u8, direction };
            let (ipa, _) = translate(self.shared, self.ram, Va(at), self.rights, direction).map_err(fault)?;
            match move_part(self.shared, ipa, done, part) {
                Ok(()) => done += part,
                Err(Refused::NotShown(place)) => {
                    self.missing = Some(place);
                    return Err(fault(AbortKind::External));
                }
                Err(Refused::Outside) => return Err(BufferError::NotMemory),
            }
        }
        Ok(())
    }
}

impl Host for World<'_> {
    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), BufferError> {
        self.for_each_page(from, into.len(), Direction::Read, |shared, at, offset, part| {
            shared.memory.borrow().read(at, &mut into[offset..offset + part])
        })
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), BufferError> {
        self.for_each_page(to, bytes.len(), Direction::Write, |shared, at, offset, part| {
            shared.memory.borrow_mut().write(at, &bytes[offset..offset + part])
        })
    }

    fn random(&mut self) -> u64 {
        4
    }

    fn time(&mut self) -> WallTime {
        WallTime { seconds: self.now[1] / 1000, microseconds: (self.now[1] % 1000) as u32 * 1000 }
    }

    fn milliseconds(&mut self) -> u64 {
        self.now[1]
    }

    fn guest_milliseconds(&mut self) -> u64 {
        self.now[0]
    }

    fn log(&mut self, text: &[u8]) -> bool {
        self.logged.push(Done::Logged(text.len()));
        true
    }

    fn features(&mut self) -> u64 {
        doors::features(self.policy, self.level, true)
    }

    fn statistic(&mut self, number: u32) -> Option<(&'static str, u64, u32)> {
        (number == 0).then_some(("exits", 1, 1))
    }

    fn clock(&mut self) -> (u64, u64) {
        (HOST.0, 0)
    }

    fn watchdog(
        &mut self,
        request: vmware::WatchdogCall,
        whose: vmware::Whose,
        level: ExceptionLevel,
    ) -> Result<u64, u64> {
        let (scope, request) = WatchdogRequest::by_call(request, whose);
        let caller = Caller { level, vcpu: self.vcpu, scope };
        self.watchdogs.carry_out(caller, request, self.now[0]).map_err(doors::status_of)
    }
}

impl WholeVm {
    /// A call of VMware's guest ABI.
    pub(crate) fn call(&mut self, id: VcpuId, call: Access, door: Door) {
        let state = self.vcpus[id.index()].registers.state.pstate;
        let level = if pstate::is_user(state) { ExceptionLevel::User } else { ExceptionLevel::Kernel };
        let now = [self.milliseconds(), self.host_milliseconds()];
        let registers = &mut self.vcpus[id.index()].registers;
        let mut x = [0; 8];
        x.copy_from_slice(&registers.x[..8]);
        let mut world = World {
            shared: &self.shared,
            ram: self.plan.ram(),
            rights: rights(registers.state.pstate, Form::Plain),
            level,
            vcpu: id,
            watchdogs: &mut self.watchdogs,
            policy: &self.policy,
            now,
            missing: None,
            logged: &mut self.done,
        };
        let mut outcome = self.service.call(call, &mut x, level, &mut world);
        let missing = world.missing;
        self.vcpus[id.index()].registers.x[..8].copy_from_slice(&x);
        if let Some(missing) = missing {
            self.show(missing);
            outcome = Outcome::Again;
        }
        match doors::after(door, &outcome) {
            After::Behind => {}
            After::StepOver => self.complete(id),
            After::Again { back, abort } => {
                let state = &mut self.vcpus[id.index()].registers.state;
                state.pc = state.pc.wrapping_sub(back);
                match abort {
                    Some(Abort { address, kind, direction }) => {
                        self.inject(id, Exception::Data(address, kind, direction));
                    }
                    None => self.done.push(Done::Again),
                }
            }
        }
    }
}
