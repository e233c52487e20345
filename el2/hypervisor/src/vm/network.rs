//! The networks between VMs: one switch for all of them, and how a frame gets from one VM's device to another's.
//!
//! `core/switch` knows who may send to whom, `core/virtio` what a frame is ([`virtio::net`]). Here are the locks. A vCPU that sends holds its own
//! device's, and takes the receiver's for as long as a frame takes. Two that send to each other would wait for one another, and whoever
//! waits for one that is always at work does not get on: so nobody waits. The receiver's lock is tried once; if somebody has it, the sender
//! gives its own back, and comes again in another turn, before which it may be preempted. Who holds a device's lock waits for no other
//! device's, so there is no circle.
//!
//! A VM that stands still takes nothing in, or what is saved of it would not be of one moment: it says that it stands still before its state
//! is taken out, and each device's state is taken out under the lock under which frames arrive.

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use abi::bundle::{Bundle, Ports};
use fair::Pace;
use hw::sysreg;
use log::Level;
use spin::Once;
use switch::{Mac, PortId, Switch};
use units::VmId;
use virtio::Net;
use virtio::net::{Between, Delivery, Frame, Link, Received};

use super::outside::Surroundings;
use super::{Vm, by_id};
use crate::host;

/// A frame for a group may be sent so many times at once, and then once in so many microseconds.
const FLOODS_AT_ONCE: u64 = 256;
const FLOOD_MICROSECONDS: u64 = 1_000;

/// The switch, and where its ports are: the VM, and the number among its network devices.
struct Networks {
    switch: Switch,
    places: Vec<(VmId, u8)>,
}

static NETWORKS: Once<Networks> = Once::new();

/// Makes the switch, with all ports of the bundle's VMs. Before any of these is made.
///
/// # Errors
/// A sentence for the log, if there cannot be such a switch, which the bundle's checks exclude.
#[inline(never)]
pub(crate) fn create(bundle: &Bundle<'static>) -> Result<(), String> {
    // Segments: of each network that of no VLAN, and those of its VLANs.
    let mut segments: Vec<(&str, u16)> = Vec::new();
    let (mut ports, mut places) = (Vec::new(), Vec::new());
    for (id, vm) in (0..).map(VmId).zip(bundle.vms()) {
        for (number, port) in (0..).zip(vm.ports.iter()) {
            let own = (port.network, port.vlan);
            let segment = segments.iter().position(|segment| *segment == own).unwrap_or_else(|| {
                segments.push(own);
                segments.len() - 1
            });
            ports.push((segment as u16, Mac(port.mac)));
            places.push((id, number));
        }
    }
    let switch = Switch::new(ports).map_err(|problem| format!("the networks: {problem}"))?;
    NETWORKS.call_once(|| Networks { switch, places });
    Ok(())
}

/// The network devices of VM `id`, which has these ports.
#[inline(never)]
pub(super) fn devices(id: VmId, ports: &Ports<&'static str>) -> Vec<Net<Cable>> {
    let Some(networks) = NETWORKS.get() else { return Vec::new() };
    let first = networks.places.partition_point(|place| place.0.0 < id.0);
    let device = |(number, port): (usize, &abi::bundle::Port<&str>)| {
        let pace = Pace::new(host::ticks(FLOOD_MICROSECONDS), FLOODS_AT_ONCE);
        Net::new(Cable { vm: id, port: PortId((first + number) as u16), networks, pace }, port.mac, port.mtu)
    };
    ports.iter().enumerate().map(device).collect()
}

/// What a network device is connected with: a port of the switch.
pub(crate) struct Cable {
    vm: VmId,
    port: PortId,
    networks: &'static Networks,
    pace: Pace,
}

impl Link for Cable {
    fn port(&self) -> (&Switch, PortId) {
        (&self.networks.switch, self.port)
    }

    fn may_flood(&mut self) -> bool {
        self.pace.take(sysreg::cntpct_el0())
    }

    fn deliver(&mut self, to: PortId, frame: &Frame<'_>, spent: &mut u32) -> Delivery {
        let place = self.networks.places.get(usize::from(to.0));
        let (Some(sender), Some(&(id, number))) = (by_id(self.vm), place) else { return Delivery::Absent };
        by_id(id).map_or(Delivery::Absent, |vm| vm.take_frame(usize::from(number), sender, frame, spent))
    }
}

impl Vm {
    /// A frame arrives from `sender` at the network device of that number, whose lock the caller does not wait for.
    fn take_frame(&self, number: usize, sender: &Self, frame: &Frame<'_>, spent: &mut u32) -> Delivery {
        let Some(device) = self.devices.net(number) else { return Delivery::Absent };
        let Some(mut wired) = device.try_lock() else { return Delivery::Busy };
        let outside = Surroundings::of_an_arrival(self, device.slot(), frame);
        // Under the device's lock: who takes its state out has said before that it stands still, and takes the lock afterwards.
        let received = if self.is_paused() {
            wired.device_quietly().device_mut().missed(switch::Reason::Down);
            Ok(Received::Dropped(switch::Reason::Down))
        } else {
            let (memory, way) = outside.way_from(sender);
            // By a pointer, as all access to memory: what that takes of the stack is not to come on top of itself where it is added up.
            let (memory, way): (_, &dyn Between) = core::hint::black_box((memory, &way));
            wired.work(&outside, |net| net.receive(&memory, frame, way))
        };
        drop(wired);
        *spent = outside.spent();
        self.refresh(outside.concerned());
        match received {
            Ok(Received::Taken) => Delivery::Done,
            Ok(Received::Dropped(reason)) => {
                if reason == switch::Reason::Memory {
                    // One of its vCPUs makes it ready: the sender has no more to do with that.
                    self.console.ask_for_turn();
                }
                Delivery::Done
            }
            Ok(Received::Unread(at)) => Delivery::Unread(at),
            Err(error) => {
                self.report(Level::Warn, format_args!("{}: {error}", virtio::VirtioKind::Net.name()));
                Delivery::Done
            }
        }
    }
}
