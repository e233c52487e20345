//! Any state that can be saved comes back as it was, and what no guest can bring about is refused.

use std::string::String;
use std::vec::Vec;

use abi::bundle::Calls;
use pack::{Damaged, Reader, Writer};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{SavedChannel, SavedReport, SavedRequests, SavedService};
use crate::limits::Limits;
use crate::service::{Config, Service};

const LIMITS: Limits = Limits { channels: 4, message: 64, buffers: 400, keys: 3, store: 200, ..Limits::DEFAULT };
/// Long enough after the host's start for whatever is said to be so long ago.
const NOW: u64 = 1 << 40;

fn service() -> Service {
    let (user, kernel) = (Calls::ALL, Calls::ALL);
    let config =
        Config { uuid: [7; 16], memory: 1 << 20, megahertz: 1, time_sync: false, limits: LIMITS, user, kernel };
    Service::new(config, 5)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..20)
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    "[ -~]{0,96}".prop_map(String::into_bytes)
}

fn channel() -> impl Strategy<Value = SavedChannel> {
    let incoming = option::of((bytes(), 0..40_usize).prop_map(|(bytes, more)| (bytes.clone(), bytes.len() + more)));
    let outgoing = option::of((bytes(), any::<prop::sample::Index>()).prop_map(|(bytes, place)| {
        let place = place.index(bytes.len() + 1);
        (bytes, place)
    }));
    (any::<(bool, Option<[u32; 2]>, u64)>(), incoming, outgoing, any::<prop::sample::Index>()).prop_map(
        |((host_asks, cookies, used), incoming, outgoing, moved)| {
            let most = [&incoming, &outgoing].into_iter().flatten().map(|(bytes, _)| bytes.len()).max().unwrap_or(0);
            SavedChannel { host_asks, cookies, used, incoming, outgoing, moved: moved.index(most + 1) }
        },
    )
}

fn report() -> impl Strategy<Value = SavedReport> {
    let others = (any::<u64>(), option::of(0..=NOW), any::<bool>(), any::<bool>());
    (text(), text(), text(), text(), others).prop_map(
        |(version, host_name, system, address, (uptime, silent, soft_power, last_ok))| SavedReport {
            version,
            host_name,
            system,
            address,
            uptime,
            silent,
            soft_power,
            last_ok,
        },
    )
}

fn requests() -> impl Strategy<Value = SavedRequests> {
    let numbers = (any::<Option<u16>>(), 0..NOW, any::<u32>(), 0..4_u8);
    (numbers, vec(bytes(), 0..=32), option::of(bytes())).prop_map(
        |((channel, quiet, busy, time_set), waiting, outstanding)| SavedRequests {
            channel,
            waiting,
            outstanding,
            quiet,
            busy,
            time_set,
        },
    )
}

fn saved() -> impl Strategy<Value = SavedService> {
    let store = vec(vec(any::<u8>(), 0..=50), 0..=3).prop_map(|values| {
        let keys = (b'a'..).map(|name| [b"guestinfo.", &[name][..]].concat());
        keys.zip(values).collect()
    });
    (vec(option::of(channel()), 0..=4), any::<u64>(), store, report(), requests(), any::<bool>()).prop_map(
        |(channels, calls, store, report, requests, time_sync)| SavedService {
            channels,
            calls,
            store,
            report,
            requests,
            time_sync,
        },
    )
}

proptest! {
    #[test]
    fn what_was_put_in_is_taken_out(saved in saved(), earlier in saved()) {
        let mut service = service();
        // Whatever was there before is gone.
        prop_assert_eq!(service.restore(&earlier, NOW), Ok(()));
        prop_assert_eq!(service.restore(&saved, NOW), Ok(()));
        prop_assert_eq!(service.save(NOW), Ok(saved.clone()));
        let mut out = Writer::new();
        out.part(&saved);
        let bytes = out.finish().expect("there is memory");
        prop_assert_eq!(Reader::new(&bytes).part(), Ok(saved));
    }
}

#[test]
fn what_no_guest_can_bring_about_is_refused() {
    let refusal = |change: &dyn Fn(&mut SavedService)| {
        let mut saved = SavedService::default();
        change(&mut saved);
        match service().restore(&saved, NOW) {
            Err(Damaged::Impossible(what)) => what,
            other => panic!("{other:?}"),
        }
    };
    let with =
        |channel: SavedChannel| refusal(&move |saved: &mut SavedService| saved.channels.push(Some(channel.clone())));
    assert!(refusal(&|saved| saved.channels.resize(5, None)).contains("more channels"));
    let long = |length| Some((Vec::from([0; 64]), length));
    assert!(with(SavedChannel { incoming: long(63), ..SavedChannel::default() }).contains("longer"));
    assert!(with(SavedChannel { incoming: long(65), ..SavedChannel::default() }).contains("longer"));
    assert!(with(SavedChannel { outgoing: long(65), ..SavedChannel::default() }).contains("moved"));
    assert!(with(SavedChannel { moved: 65, outgoing: long(0), ..SavedChannel::default() }).contains("moved"));
    let big = SavedChannel { outgoing: Some((Vec::from([0; 101]), 0)), ..SavedChannel::default() };
    assert!(refusal(&|saved| saved.channels.resize(4, Some(big.clone()))).contains("on their way"));
    assert!(refusal(&|saved| saved.store.push((Vec::from(*b"other"), Vec::new()))).contains("value"));
    assert!(refusal(&|saved| saved.report.system.push(b'\n')).contains("text"));
    assert!(refusal(&|saved| saved.report.system.resize(97, b'x')).contains("text"));
    assert!(refusal(&|saved| saved.requests.waiting.resize(33, Vec::new())).contains("requests"));
    assert!(refusal(&|saved| saved.requests.time_set = 4).contains("clock"));
}
