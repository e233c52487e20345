//! What the operator's tool asks about the guests behind VMware's door, and the answers: channel 2 of the link
//! (`abi::link::request`).
//!
//! This is the console thread's work, never an exit's, so it may take memory. Values are copied out of the service under
//! its lock and sent without it: a guest never waits for the UART.

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use abi::link::request::{Answer, Ask, Guest, MAX_KEY, MAX_PIECE, Reply, Request};
use backdoor::Service;
use units::VmId;

use crate::doors;
use crate::vm::{self, Vm};

/// The operator's side of the conversation.
#[derive(Default)]
pub(crate) struct Operator {
    /// A value of which not all pieces have come: the request's number, and the value so far.
    gathering: Option<(u32, Vec<u8>)>,
}

/// Why a request is refused: a sentence.
type Refusal = String;

impl Operator {
    /// Answers the request in a frame's payload through `send`. Returns the VM whose power button is to be pressed, if
    /// one is.
    pub(crate) fn answer(&mut self, payload: &[u8], mut send: impl FnMut(&Reply<'_>)) -> Option<&'static Vm> {
        let Some(Request { id, vm, ask }) = Request::decode(payload) else {
            log::warn!("link: a request arrived that this version does not know");
            return None;
        };
        let mut tell = |answer: Answer<'_>| send(&Reply { id, answer });
        let done = match vm::by_id(VmId(vm)) {
            Some(vm) => self.carry_out(id, vm, ask, &mut tell),
            None => Err(format!("there is no VM number {vm}")),
        };
        match done {
            Ok(Progress::Waiting) => None,
            Ok(Progress::Done) => {
                tell(Answer::Done);
                None
            }
            Ok(Progress::Press(vm)) => {
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

    fn carry_out(
        &mut self,
        id: u32,
        vm: &'static Vm,
        ask: Ask<'_>,
        tell: &mut impl FnMut(Answer<'_>),
    ) -> Result<Progress, Refusal> {
        match ask {
            Ask::Guest => {
                must_run(vm)?;
                let (report, alive, channels) = with_service(vm, |service| {
                    let now = doors::milliseconds();
                    let alive = service.state.requests.is_alive(&service.state.report, now);
                    (service.state.report, alive, service.open_channels())
                })?;
                let now = doors::milliseconds();
                tell(Answer::Guest(Guest {
                    version: report.version.as_str(),
                    host_name: report.host_name.as_str(),
                    system: report.system.as_str(),
                    address: report.address.as_str(),
                    uptime: report.uptime,
                    heartbeat: report.heartbeat.map(|beat| now.saturating_sub(beat)),
                    can_stop: alive && report.soft_power,
                    channels: channels as u16,
                }));
            }
            Ask::Keys => {
                let keys = with_service(vm, |service| {
                    let named = service.state.store.iter().filter_map(|(key, value)| {
                        let name = core::str::from_utf8(key).ok().filter(|name| name.len() <= MAX_KEY)?;
                        Some((String::from(name), value.len() as u32))
                    });
                    named.collect::<Vec<_>>()
                })?;
                for (key, length) in &keys {
                    tell(Answer::Key { key, length: *length });
                }
            }
            Ask::Get { key } => {
                let value = with_service(vm, |service| service.state.store.get(key.as_bytes()).map(<[u8]>::to_vec))?;
                let value = value.ok_or_else(|| format!("{} has no value for {key}", vm.config.name))?;
                for piece in value.chunks(MAX_PIECE) {
                    tell(Answer::Value(piece));
                }
            }
            Ask::Set { key, offset, value, last } => {
                self.gather(id, offset, value)?;
                if !last {
                    return Ok(Progress::Waiting);
                }
                let (_, whole) = self.gathering.take().unwrap_or_default();
                let set = with_service(vm, |service| service.set(key.as_bytes(), &whole))?;
                set.map_err(|refused| format!("{}: {key}: {}", vm.config.name, refused.sentence()))?;
            }
            Ask::Stop | Ask::Restart => {
                must_run(vm)?;
                if !vm.doors.ask_to_stop(ask == Ask::Restart) {
                    return Ok(Progress::Press(vm));
                }
                tell(Answer::ByTools);
            }
            Ask::Reconnect => with_service(vm, Service::drop_channels)?,
        }
        Ok(Progress::Done)
    }

    /// Takes the next piece of a value. A piece that doesn't follow the one before is refused, and so what comes behind
    /// a piece that was refused.
    fn gather(&mut self, id: u32, offset: u32, piece: &[u8]) -> Result<(), Refusal> {
        let (known, mut value) = self.gathering.take().unwrap_or_default();
        if offset == 0 {
            value.clear();
        } else if known != id || value.len() != offset as usize {
            return Err(String::from("the pieces of the value did not come in order"));
        }
        let limit = backdoor::Limits::DEFAULT.message;
        if value.len() + piece.len() > limit {
            return Err(format!("a value has at most {limit} bytes"));
        }
        value.try_reserve(piece.len()).map_err(|_| String::from("the hypervisor has no memory left for the value"))?;
        value.extend_from_slice(piece);
        self.gathering = Some((id, value));
        Ok(())
    }
}

/// How far a request has come.
enum Progress {
    /// More pieces are to come.
    Waiting,
    Done,
    /// It is done when this VM's power button has been pressed.
    Press(&'static Vm),
}

fn must_run(vm: &Vm) -> Result<(), Refusal> {
    if vm.stopped().is_some() { Err(format!("{} is off", vm.config.name)) } else { Ok(()) }
}

fn with_service<T>(vm: &Vm, work: impl FnOnce(&mut Service) -> T) -> Result<T, Refusal> {
    match &vm.doors.service {
        Some(service) => Ok(work(&mut service.lock())),
        None => {
            let name = vm.config.name;
            Err(format!("{name} does not offer VMware's guest ABI; its site file would say vmware = true"))
        }
    }
}
