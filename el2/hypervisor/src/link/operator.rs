//! The operator's requests about guests behind VMware's door, and about the host, and the answers: channel 2 of the
//! link (`abi::link::request`).
//!
//! This is the console thread's work, never an exit's, so it may take memory. Values are copied out of the service
//! under its lock and sent without it: a guest never waits for the UART. A request that a guest's tools must carry out
//! is answered when they have done so, or have not in time.

extern crate alloc;

use alloc::vec::Vec;

use abi::link::request::{Answer, Ask, Guest, HOST, MAX_KEY, MAX_PIECE, Reply, Request};
use arrayvec::ArrayString;
use pack::{Value as _, Writer};
use snapshot::Place;
use units::VmId;
use vmware::tclo::TimeSet;
use vmware::{Service, Shutdown};

use crate::host::text::{Sentence, sentence};
use crate::host::{self, wall_clock};
use crate::link::transfer::{Transfer, Written};
use crate::vm::{self, Then, Vm};

/// How long tools that poll may take to set their guest's clock, in milliseconds. The tool that asks waits a little longer.
const PATIENCE: u64 = 15_000;
/// At most this many requests wait for guests' tools.
const MAX_WAITING: usize = 64;

/// The operator's side of the conversation.
#[derive(Default)]
pub(crate) struct Operator {
    /// A value of which not all pieces have come: the request's number, and the value so far.
    gathering: Option<(u32, Vec<u8>)>,
    /// Guests whose clocks are being set: the request's number, the VM, and until when it is waited for.
    setting: Vec<(u32, &'static Vm, u64)>,
    /// The VM that is being saved or restored.
    pub(crate) transfer: Transfer,
}

/// Why a request is refused: a sentence.
type Refusal = Sentence;

impl Operator {
    /// Answers the request in a frame's payload through `send`, which says whether all of that is on its way. Returns the VM whose
    /// power button is to be pressed, if one is.
    pub(crate) fn answer(&mut self, payload: &[u8], mut send: impl FnMut(&Reply<'_>) -> bool) -> Option<&'static Vm> {
        let Some(Request { id, vm, ask }) = Request::decode(payload) else {
            log::warn!("link: a request arrived that this version does not know");
            return None;
        };
        let mut is_lost = false;
        let mut tell = |answer: Answer<'_>| is_lost |= !send(&Reply { id, answer });
        let done = match (vm, vm::by_id(VmId(vm))) {
            (HOST, _) => ask_host(ask, &mut tell),
            // Not among the others, whose frame on the stack is large: a state that is read takes most of it.
            (_, Some(vm)) => match self.carry_on(id, vm, ask, &mut tell) {
                Some(done) => done,
                None => self.carry_out(id, vm, ask, &mut tell),
            },
            (_, None) => Err(sentence!("there is no VM number {vm}")),
        };
        match done {
            Ok(RequestState::Waiting) => None,
            Ok(RequestState::Done) => {
                send(&Reply { id, answer: if is_lost { Answer::Lost } else { Answer::Done } });
                None
            }
            Ok(RequestState::Press(vm)) => {
                tell(Answer::ByButton);
                tell(Answer::Done);
                Some(vm)
            }
            Err(refusal) => {
                tell(Answer::Refused(&refusal));
                None
            }
        }
    }

    /// What belongs to a saving or restoring of a VM; `None` if it is something else.
    #[inline(never)]
    fn carry_on(
        &mut self,
        id: u32,
        vm: &'static Vm,
        ask: Ask<'_>,
        tell: &mut impl FnMut(Answer<'_>),
    ) -> Option<Result<RequestState, Refusal>> {
        let transfer = &mut self.transfer;
        let done = match ask {
            Ask::Save => return Some(transfer.save(id, vm).map(|()| RequestState::Waiting)),
            Ask::SaveNext { offset, length } => {
                transfer.save_next(vm, offset, length, &mut |piece| tell(Answer::Value(piece)))
            }
            Ask::Restore => transfer.restore(vm),
            Ask::RestoreNext { offset, bytes, last } => return Some(self.restore_next(vm, offset, bytes, last, tell)),
            Ask::RestoreEnd { pause } => transfer.restore_end(vm, if pause { Then::StandsStill } else { Then::GoesOn }),
            Ask::EndTransfer => transfer.end(vm),
            _ => return None,
        };
        Some(done.map(|()| RequestState::Done))
    }

    #[inline(never)]
    fn restore_next(
        &mut self,
        vm: &'static Vm,
        offset: u64,
        bytes: &[u8],
        last: bool,
        tell: &mut impl FnMut(Answer<'_>),
    ) -> Result<RequestState, Refusal> {
        let progress = self.transfer.restore_next(vm, offset, bytes)?;
        // Answers go behind the last part alone: the other end sends on without waiting for them.
        if !last {
            return Ok(RequestState::Waiting);
        }
        match progress {
            Written::All => {}
            Written::More => tell(Answer::More),
            Written::Over(how) => tell(Answer::Over(how)),
        }
        if let Some(piece) = self.transfer.wanted(vm) {
            tell(Answer::Wanted { piece });
        }
        Ok(RequestState::Done)
    }

    #[inline(never)]
    fn carry_out(
        &mut self,
        id: u32,
        vm: &'static Vm,
        ask: Ask<'_>,
        tell: &mut impl FnMut(Answer<'_>),
    ) -> Result<RequestState, Refusal> {
        match ask {
            Ask::Guest => {
                must_run(vm)?;
                let (report, heartbeat, alive, channels) = with_service(vm, |service| {
                    let now = vm.milliseconds();
                    (service.state.report, service.silent(now), service.has_tools(now), service.open_channels())
                })?;
                tell(Answer::Guest(Guest {
                    version: report.version.as_str(),
                    host_name: report.host_name.as_str(),
                    system: report.system.as_str(),
                    address: report.address.as_str(),
                    uptime: report.uptime,
                    heartbeat,
                    can_stop: alive && report.soft_power,
                    channels: channels as u16,
                }));
            }
            Ask::Keys => {
                let keys = with_service(vm, |service| {
                    let mut keys = Vec::new();
                    keys.try_reserve_exact(service.state.store.iter().count()).map_err(|_| no_memory(vm))?;
                    keys.extend(service.state.store.iter().filter_map(|(key, value)| {
                        let name = core::str::from_utf8(key).ok()?;
                        Some((ArrayString::<MAX_KEY>::from(name).ok()?, value.len() as u32))
                    }));
                    Ok::<_, Refusal>(keys)
                })??;
                for (key, length) in &keys {
                    tell(Answer::Key { key, length: *length });
                }
            }
            Ask::Get { key } => {
                let value = with_service(vm, |service| {
                    let Some(value) = service.state.store.get(key.as_bytes()) else { return Ok::<_, Refusal>(None) };
                    let mut copy = Vec::new();
                    copy.try_reserve_exact(value.len()).map_err(|_| no_memory(vm))?;
                    copy.extend_from_slice(value);
                    Ok(Some(copy))
                })??;
                let value = value.ok_or_else(|| sentence!("{} has no value for {key}", vm.config.name))?;
                for piece in value.chunks(MAX_PIECE) {
                    tell(Answer::Value(piece));
                }
            }
            Ask::Set { key, offset, value, last } => {
                self.gather(id, offset, value)?;
                if !last {
                    return Ok(RequestState::Waiting);
                }
                let (_, whole) = self.gathering.take().unwrap_or_default();
                let set = with_service(vm, |service| service.set(key.as_bytes(), &whole))?;
                set.map_err(|refused| sentence!("{}: {key}: {}", vm.config.name, refused.sentence()))?;
            }
            Ask::Stop | Ask::Restart { .. } => {
                must_run(vm)?;
                let restart = if let Ask::Restart { seconds } = ask { Some(seconds) } else { None };
                let what = if restart.is_some() { Shutdown::Restart } else { Shutdown::Halt };
                let asked = vm.deliver(|vm| vm.doors.ask_to_stop(vm, what)).map_err(|_| no_state(vm))?;
                // Tools start their guest again themselves. So an earlier request to do it for them is forgotten; and where the button
                // is pressed instead, this is noted before: a quick guest would be off, and stay so, before anybody noted it.
                vm.start_again_after_power_off(restart.filter(|_| !asked));
                if !asked {
                    return Ok(RequestState::Press(vm));
                }
                tell(Answer::ByTools);
            }
            Ask::Reconnect => with_service(vm, Service::drop_channels)?,
            Ask::SetGuestTime => {
                must_run(vm)?;
                let now = host::milliseconds();
                let name = vm.config.name;
                let asked = with_service(vm, |service| {
                    service.has_tools(vm.milliseconds()) && service.state.requests.set_time()
                })?;
                if !asked {
                    return Err(sentence!("{name}: its tools do not answer"));
                }
                // Behind the request, which can be carried out without anybody who waits: that it was made is a part of the answer.
                if self.setting.len() >= MAX_WAITING || self.setting.try_reserve(1).is_err() {
                    return Err(sentence!(
                        "{name}: its tools were asked; too many requests wait already for their answers"
                    ));
                }
                self.setting.push((id, vm, now.saturating_add(PATIENCE)));
                return Ok(RequestState::Waiting);
            }
            Ask::Machine => {
                let mut out = Writer::new();
                let place = Place {
                    machine: vm.shape(),
                    rate: vm.config.time.rate,
                    doors: vm.config.doors,
                    counter: host::get().counter.0,
                    traps: host::get().controls.cnthctl_scaled != 0,
                };
                place.pack(&mut out);
                tell(Answer::Value(&out.finish()?));
            }
            // What belongs to a transfer was carried on with.
            _ => return Err(Sentence::from("the host's time is asked of the host")),
        }
        Ok(RequestState::Done)
    }

    /// Whether somebody waits for an answer of some guest's tools.
    #[must_use]
    pub(crate) fn is_waiting(&self) -> bool {
        !self.setting.is_empty() || self.transfer.is_under_way()
    }

    /// Answers requests that waited for guests' tools, or for a VM to stand still, as far as the result is known now.
    pub(crate) fn look_after(&mut self, mut send: impl FnMut(&Reply<'_>) -> bool) {
        match self.transfer.look_after() {
            Some((id, Ok(()))) => send(&Reply { id, answer: Answer::Done }),
            Some((id, Err(refusal))) => send(&Reply { id, answer: Answer::Refused(&refusal) }),
            None => true,
        };
        let now = host::milliseconds();
        self.setting.retain(|&(id, vm, until)| {
            let name = vm.config.name;
            // An answer that came counts, however late: so the time is looked at only where there is none.
            let answer = match with_service(vm, |service| service.state.requests.time_set()) {
                Ok(TimeSet::Waiting) if now < until => return true,
                Ok(TimeSet::Done) => Ok(()),
                Ok(TimeSet::Waiting) => Err(sentence!("{name}: its tools have not answered in time")),
                Ok(TimeSet::Failed) => Err(sentence!("{name}: its tools could not set its clock")),
                Ok(TimeSet::Never) => Err(sentence!("{name}: its tools have gone meanwhile")),
                Err(refusal) => Err(refusal),
            };
            match answer {
                Ok(()) => send(&Reply { id, answer: Answer::Done }),
                Err(refusal) => send(&Reply { id, answer: Answer::Refused(&refusal) }),
            };
            false
        });
    }

    /// Takes the next piece of a value. A piece that doesn't follow the one before is refused, and so what comes behind
    /// a piece that was refused.
    fn gather(&mut self, id: u32, offset: u32, piece: &[u8]) -> Result<(), Refusal> {
        // Taken out, and put back only at the end: with each way out that refuses, what was gathered goes too.
        let (known, mut value) = self.gathering.take().unwrap_or_default();
        if offset == 0 {
            value.clear();
        } else if known != id || value.len() != offset as usize {
            return Err(Sentence::from("the pieces of the value did not come in order"));
        }
        let limit = vmware::Limits::DEFAULT.message;
        if value.len() + piece.len() > limit {
            return Err(sentence!("a value has at most {limit} bytes"));
        }
        value
            .try_reserve(piece.len())
            .map_err(|_| Sentence::from("the hypervisor has no memory left for the value"))?;
        value.extend_from_slice(piece);
        self.gathering = Some((id, value));
        Ok(())
    }
}

/// How far a request has come.
enum RequestState {
    /// More pieces are to come, or the guest's tools have to do something first.
    Waiting,
    Done,
    /// It is done when this VM's power button has been pressed.
    Press(&'static Vm),
}

/// What is asked of the host itself.
fn ask_host(ask: Ask<'_>, tell: &mut impl FnMut(Answer<'_>)) -> Result<RequestState, Refusal> {
    match ask {
        Ask::Time => {
            tell(Answer::Time { microseconds: wall_clock::microseconds(), settable: wall_clock::is_settable() });
            Ok(RequestState::Done)
        }
        Ask::SetTime { microseconds } => match wall_clock::set(microseconds) {
            Ok(()) => {
                vm::all().for_each(Vm::time_was_set);
                Ok(RequestState::Done)
            }
            Err(refused) => Err(Sentence::from(refused.sentence())),
        },
        _ => Err(sentence!("there is no VM number {HOST}")),
    }
}

fn no_memory(vm: &Vm) -> Refusal {
    sentence!("{}: the hypervisor has no memory left for the answer", vm.config.name)
}

fn no_state(vm: &Vm) -> Refusal {
    sentence!("{} is being restored and has no state yet", vm.config.name)
}

fn must_run(vm: &Vm) -> Result<(), Refusal> {
    if vm.stopped().is_some() { Err(sentence!("{} is off", vm.config.name)) } else { Ok(()) }
}

fn with_service<T>(vm: &Vm, work: impl FnOnce(&mut Service) -> T) -> Result<T, Refusal> {
    match &vm.doors.service {
        Some(service) => vm.deliver(|_| work(&mut service.lock())).map_err(|_| no_state(vm)),
        None => {
            let name = vm.config.name;
            Err(sentence!("{name} does not offer VMware's guest ABI; its site file would say vmware = true"))
        }
    }
}
