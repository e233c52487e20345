//! The switch beside a naive one, which looks at every port for every frame.

use super::{Counters, Destination, HEAD, MAX_PORTS, Mac, PortId, Problem, Reason, Switch};
use proptest::prelude::*;
use std::string::ToString;
use std::vec::Vec;

const fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

fn head(to: Mac, from: Mac) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..6].copy_from_slice(&to.0);
    head[6..12].copy_from_slice(&from.0);
    head[12..].copy_from_slice(&[8, 0]);
    head
}

fn of_kind(kind: u16, mut head: [u8; HEAD]) -> [u8; HEAD] {
    head[12..].copy_from_slice(&kind.to_be_bytes());
    head
}

const EVERYBODY: Mac = Mac([0xff; 6]);

/// All that a frame from `from` with that head reaches, found by looking at everyone.
fn naive(ports: &[(u16, Mac)], from: usize, to: Mac, source: Mac, kind: u16) -> Result<Vec<u16>, Reason> {
    let (segment, own) = ports[from];
    if source != own {
        return Err(Reason::Forged);
    }
    if [0x8100, 0x88a8, 0x9100].contains(&kind) {
        return Err(Reason::Tagged);
    }
    if to.0[..5] == [1, 0x80, 0xc2, 0, 0] && to.0[5] < 16 {
        return Err(Reason::Reserved);
    }
    let all = ports
        .iter()
        .enumerate()
        .filter(|&(port, &(on, mac))| port != from && on == segment && (to.0[0] % 2 == 1 || mac == to));
    let reached: Vec<_> = all.map(|(port, _)| port as u16).collect();
    if reached.is_empty() && to.0[0].is_multiple_of(2) { Err(Reason::Unknown) } else { Ok(reached) }
}

/// As well, by the switch.
fn reached(switch: &Switch, from: u16, head: &[u8; HEAD]) -> Result<Vec<u16>, Reason> {
    let from = PortId(from);
    Ok(match switch.judge(from, head)? {
        Destination::One(port) => [port.0].to_vec(),
        Destination::All => {
            let mut round = switch.round(from);
            let mut all: Vec<_> = core::iter::from_fn(|| switch.next(from, &mut round)).map(|port| port.0).collect();
            assert_eq!(switch.next(from, &mut round), None);
            all.sort_unstable();
            all
        }
    })
}

#[test]
fn a_frame_reaches_its_destination_and_nobody_else() {
    // Ports 0 to 2 on one segment, 3 and 4, with addresses that are there too, on another.
    let switch = Switch::new([(7, mac(1)), (7, mac(2)), (7, mac(3)), (9, mac(1)), (9, mac(4))]).unwrap();
    assert_eq!(switch.count(), 5);
    assert_eq!(reached(&switch, 0, &head(mac(2), mac(1))), Ok([1].to_vec()));
    assert_eq!(reached(&switch, 3, &head(mac(4), mac(1))), Ok([4].to_vec()));
    assert_eq!(reached(&switch, 4, &head(mac(1), mac(4))), Ok([3].to_vec()));
    assert_eq!(reached(&switch, 0, &head(EVERYBODY, mac(1))), Ok([1, 2].to_vec()));
    assert_eq!(reached(&switch, 1, &head(EVERYBODY, mac(2))), Ok([0, 2].to_vec()));
    assert_eq!(reached(&switch, 4, &head(EVERYBODY, mac(4))), Ok([3].to_vec()));
    assert_eq!(reached(&switch, 0, &head(mac(4), mac(1))), Err(Reason::Unknown), "it is on the other segment");
    assert_eq!(reached(&switch, 0, &head(mac(1), mac(1))), Err(Reason::Unknown), "to itself");
    assert_eq!(reached(&switch, 0, &head(mac(2), mac(3))), Err(Reason::Forged));
    assert_eq!(reached(&switch, 0, &head(EVERYBODY, EVERYBODY)), Err(Reason::Forged));
    let pause = Mac([1, 0x80, 0xc2, 0, 0, 1]);
    assert_eq!(reached(&switch, 0, &head(pause, mac(1))), Err(Reason::Reserved));
    assert_eq!(reached(&switch, 0, &head(Mac([1, 0x80, 0xc2, 0, 0, 0x10]), mac(1))), Ok([1, 2].to_vec()));
    assert_eq!(reached(&switch, 5, &head(mac(2), mac(1))), Err(Reason::Unknown), "there is no such port");
    for tag in [0x8100, 0x88a8, 0x9100] {
        for to in [mac(2), EVERYBODY] {
            assert_eq!(reached(&switch, 0, &of_kind(tag, head(to, mac(1)))), Err(Reason::Tagged), "{tag:#x}");
        }
    }
    assert_eq!(reached(&switch, 0, &of_kind(0x86dd, head(mac(2), mac(1)))), Ok([1].to_vec()));
}

#[test]
fn an_address_is_a_ports_alone() {
    assert_eq!(Switch::new([(0, mac(1)), (1, mac(1)), (0, mac(1))]).unwrap_err(), Problem::Taken(mac(1)));
    assert_eq!(Switch::new([(0, EVERYBODY)]).unwrap_err(), Problem::Group(EVERYBODY));
    let numbered = |number: u16| (3, Mac([2, 0, 0, 0, (number >> 8) as u8, number as u8]));
    assert_eq!(Switch::new((0..MAX_PORTS as u16).map(numbered)).unwrap().count(), MAX_PORTS);
    assert_eq!(Switch::new((0..=MAX_PORTS as u16).map(numbered)).unwrap_err(), Problem::Many);
    assert_eq!(mac(0xab).to_string(), "52:54:00:00:00:ab");
}

#[test]
fn each_reason_is_counted_by_itself() {
    let mut counters = Counters::default();
    counters.drop(Reason::Length);
    counters.drop(Reason::Memory);
    counters.drop(Reason::Memory);
    assert_eq!(counters.dropped, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    assert_eq!((counters.dropped(Reason::Memory), Reason::NAMES[Reason::Memory as usize]), (2, "memory"));
    assert_eq!(Reason::NAMES[Reason::Forged as usize], "forged");
    counters.sent.count(60);
    counters.sent.count(1500);
    assert_eq!((counters.sent.frames, counters.sent.bytes, counters.received.frames), (2, 1560, 0));
}

/// Few addresses, so that two are often the same; some of groups, some reserved.
fn addresses() -> impl Strategy<Value = Mac> {
    prop_oneof![
        6 => (0u8..12).prop_map(mac),
        1 => Just(EVERYBODY),
        1 => (0u8..32).prop_map(|last| Mac([1, 0x80, 0xc2, 0, 0, last])),
        1 => any::<[u8; 6]>().prop_map(Mac),
    ]
}

/// Types of frames, some of which have a tag.
fn kinds() -> impl Strategy<Value = u16> {
    prop_oneof![4 => Just(0x0800), 1 => Just(0x8100), 1 => Just(0x88a8), 1 => Just(0x9100), 1 => any::<u16>()]
}

proptest! {
    #[test]
    fn it_says_what_the_naive_one_says(
        ports in prop::collection::vec((0u16..3, addresses()), 1..24),
        frames in prop::collection::vec((0usize..24, addresses(), prop::option::of(addresses()), kinds()), 1..100),
    ) {
        let is_good = ports.iter().enumerate().all(|(index, port)| !port.1.is_group() && !ports[..index].contains(port));
        prop_assert_eq!(Switch::new(ports.iter().copied()).is_ok(), is_good);
        let mut good: Vec<(u16, Mac)> = Vec::new();
        for port in ports {
            if !port.1.is_group() && !good.contains(&port) {
                good.push(port);
            }
        }
        let ports = if good.is_empty() { [(0, mac(1))].to_vec() } else { good };
        let switch = Switch::new(ports.iter().copied()).unwrap();
        for (from, to, forged, kind) in frames {
            let from = from % ports.len();
            let source = forged.unwrap_or(ports[from].1);
            let found = reached(&switch, from as u16, &of_kind(kind, head(to, source)));
            prop_assert_eq!(found, naive(&ports, from, to, source, kind));
        }
    }
}
