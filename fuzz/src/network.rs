//! Two network devices on a switch, and a third in another VLAN, whose drivers do anything.

use std::cell::RefCell;
use std::rc::Rc;

use switch::{MAX_FRAME, Mac, PortId, Switch};
use units::Ipa;
use virtio::net::{Between, Delivery, Frame, Link, Net, Received, Side};
use virtio::{AccessSize, GuestMemory, Mmio};

use super::input::Input;
use super::virtio_device::{QUEUE_SIZE, Ram, SETUP};

/// Port 2 is in a VLAN of its own.
const PORTS: [(u16, Mac); 3] = [(0, mac(0)), (0, mac(1)), (1, mac(2))];

const fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

struct World {
    switch: Switch,
    rams: [Ram; 3],
    /// None while it works.
    nets: [RefCell<Option<Mmio<Net<Cable>>>>; 3],
}

#[derive(Clone)]
struct Cable(Rc<World>, PortId);

impl Link for Cable {
    fn port(&self) -> (&Switch, PortId) {
        (&self.0.switch, self.1)
    }

    fn may_flood(&mut self) -> bool {
        true
    }

    fn deliver(&mut self, to: PortId, frame: &Frame<'_>, _spent: &mut u32) -> Delivery {
        let Self(world, from) = self;
        assert_eq!(from.0 ^ to.0, 1, "a frame from port {} to port {}", from.0, to.0);
        let [sender, receiver] = [*from, to].map(|port| &world.rams[usize::from(port.0)]);
        let mut net = world.nets[usize::from(to.0)].borrow_mut();
        let Some(net) = net.as_mut() else { return Delivery::Busy };
        let before = net.device().counters().received;
        let is_live = net.is_live();
        let received = net.receive(receiver, frame, &Pair { sender, receiver });
        let after = net.device().counters().received;
        let bytes = after.bytes - before.bytes;
        match received {
            Ok(Received::Taken) => assert_eq!((after.frames, bytes), (before.frames + 1, frame.length().into())),
            _ => assert_eq!(after, before),
        }
        match received {
            Ok(Received::Taken | Received::Dropped(_)) => Delivery::Done,
            Ok(Received::Unread(at)) => Delivery::Unread(at),
            Err(_) => {
                assert!(is_live && !net.is_live() && net.line());
                Delivery::Done
            }
        }
    }
}

struct Pair<'a> {
    sender: &'a Ram,
    receiver: &'a Ram,
}

impl Between for Pair<'_> {
    fn copy(&self, from: Ipa, to: Ipa, length: usize) -> Result<(), Side> {
        assert!(length <= MAX_FRAME as usize);
        let mut bytes = vec![0; length];
        self.sender.read(from, &mut bytes).map_err(Side::Sender)?;
        self.receiver.write(to, &bytes).map_err(Side::Receiver)
    }

    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Side> {
        self.sender.read(from, into).map_err(Side::Sender)
    }

    fn is_used_up(&self) -> bool {
        false
    }
}

/// No frame leaves its segment, what arrives is counted as what it is, and a call has bounded work at both ends.
pub fn network(data: &[u8]) {
    let mut input = Input(data);
    let world = Rc::new(World {
        switch: Switch::new(PORTS).expect("their addresses differ"),
        rams: std::array::from_fn(|_| Ram::new()),
        nets: std::array::from_fn(|_| RefCell::new(None)),
    });
    for (port, (_, mac)) in (0..).zip(PORTS) {
        let net = Net::new(Cable(world.clone(), PortId(port)), mac.0, 1500);
        *world.nets[usize::from(port)].borrow_mut() = Some(Mmio::new(net));
    }
    while !input.is_empty() {
        let port = usize::from(input.byte() % 3);
        step(&world, port, &mut input);
        let counters = world.nets[2].borrow().as_ref().map(|net| *net.device().counters());
        assert!(counters.is_some_and(|counters| counters.received.frames == 0));
    }
    // They hold each other.
    world.nets.iter().for_each(|net| drop(net.take()));
}

fn step(world: &World, port: usize, input: &mut Input<'_>) {
    let ram = &world.rams[port];
    let Some(mut mmio) = world.nets[port].take() else { panic!("port {port} is at work") };
    match input.byte() % 8 {
        // Set up both queues by the rules.
        0 => {
            let features = input.word() | 0x3000_0000;
            for (register, value) in SETUP {
                let value = if register == 0x020 && value > 1 { features.into() } else { value };
                for queue in [0, 1] {
                    let _ = mmio.write(0x030, AccessSize::Word, queue);
                    let _ = mmio.write(register, AccessSize::Word, value);
                }
            }
            let _ = mmio.write(0x070, AccessSize::Word, 15);
        }
        1 => {
            // A frame that may be good: a header, then who sends it and to whom, and an IPv4 packet.
            let at = u64::from(input.half() & 0x3fff);
            ram.put(at, &input.double().to_le_bytes());
            ram.put(at + 8, &input.word().to_le_bytes());
            ram.put(at + 12, &[2, 0, 0, 0, 0, input.byte() % 3]);
            ram.put(at + 18, &mac(port as u8).0);
            ram.put(at + 24, &[8, 0, 0x45]);
            ram.put(at + 35, &[if input.byte() & 1 == 0 { 6 } else { 17 }]);
        }
        2 => ram.fill_table(0x1000, input.byte(), input.double() | 1),
        3 => {
            let _ = mmio.write(u64::from(input.byte()) * 4, AccessSize::Word, input.word().into());
        }
        4 | 5 => {
            world.rams.iter().for_each(|ram| ram.accesses.set(0));
            let live = mmio.is_live();
            let outcome = mmio.process(input.byte().into(), ram);
            let a_queue = usize::from(QUEUE_SIZE) * (2 * usize::from(QUEUE_SIZE) + 16);
            // A call brings five frames at most, each into all buffers that there are.
            assert!(world.rams.iter().all(|ram| ram.accesses.get() <= 6 * a_queue));
            assert!(outcome.is_ok() || live && !mmio.is_live() && mmio.line());
        }
        _ => ram.scribble(input, (0x1000, 0x1800)),
    }
    *world.nets[port].borrow_mut() = Some(mmio);
}
