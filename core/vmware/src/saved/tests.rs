//! Any state that can be saved comes back as it was, and what no guest can bring about is refused.

use std::string::String;
use std::vec;
use std::vec::Vec;

use abi::bundle::Calls;
use pack::testing::{assert_bounded, through_bytes};
use pack::{Damaged, Writer};
use proptest::option;
use proptest::prelude::*;

use super::{BEYOND, SavedChannel, SavedMessage, SavedReport, SavedRequest, SavedRequests, SavedService, SavedValue};
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
    prop::collection::vec(any::<u8>(), 0..20)
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    "[ -~]{0,96}".prop_map(String::into_bytes)
}

fn channel() -> impl Strategy<Value = SavedChannel> {
    let incoming =
        option::of((bytes(), 0..40_usize).prop_map(|(bytes, more)| SavedMessage { place: bytes.len() + more, bytes }));
    let outgoing = option::of(
        (bytes(), any::<prop::sample::Index>())
            .prop_map(|(bytes, place)| SavedMessage { place: place.index(bytes.len() + 1), bytes }),
    );
    (any::<(bool, Option<[u32; 2]>, u64)>(), incoming, outgoing, any::<prop::sample::Index>()).prop_map(
        |((host_asks, cookies, used), incoming, outgoing, moved)| {
            let most = [&incoming, &outgoing].into_iter().flatten().map(|message| message.bytes.len()).max();
            let most = most.unwrap_or(0);
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
    let request = || bytes().prop_map(|text| SavedRequest { text });
    (numbers, prop::collection::vec(request(), 0..=33), option::of(request())).prop_map(
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
    let store = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..=50), 0..=3).prop_map(|values| {
        let keys = (b'a'..).map(|name| [b"guestinfo.", &[name][..]].concat());
        keys.zip(values).map(|(key, value)| SavedValue { key, value }).collect()
    });
    (prop::collection::vec(option::of(channel()), 0..=4), any::<u64>(), store, report(), requests(), any::<bool>())
        .prop_map(|(channels, calls, store, report, requests, time_sync)| SavedService {
            channels,
            calls,
            store,
            report,
            requests,
            time_sync,
        })
}

proptest! {
    #[test]
    fn what_was_put_in_is_taken_out(saved in saved(), earlier in saved()) {
        let mut service = service();
        // Whatever was there before is gone.
        prop_assert_eq!(service.restore(earlier, NOW), Ok(()));
        prop_assert_eq!(service.restore(saved.clone(), NOW), Ok(()));
        prop_assert_eq!(service.save(NOW), Ok(saved.clone()));
        prop_assert_eq!(through_bytes(&saved), Ok(saved));
    }
}

#[test]
fn what_no_guest_can_bring_about_is_refused() {
    let refusal = |change: &dyn Fn(&mut SavedService)| {
        let mut saved = SavedService::default();
        change(&mut saved);
        match service().restore(saved, NOW) {
            Err(Damaged::Impossible(what)) => what,
            other => panic!("{other:?}"),
        }
    };
    let with =
        |channel: SavedChannel| refusal(&move |saved: &mut SavedService| saved.channels.push(Some(channel.clone())));
    let value = |key: &[u8]| SavedValue { key: key.to_vec(), value: Vec::new() };
    assert!(refusal(&|saved| saved.channels.resize(5, None)).contains("more channels"));
    let long = |place| Some(SavedMessage { bytes: Vec::from([0; 64]), place });
    assert!(with(SavedChannel { incoming: long(63), ..SavedChannel::default() }).contains("longer"));
    assert!(with(SavedChannel { incoming: long(65), ..SavedChannel::default() }).contains("longer"));
    assert!(with(SavedChannel { outgoing: long(65), ..SavedChannel::default() }).contains("moved"));
    assert!(with(SavedChannel { moved: 65, outgoing: long(0), ..SavedChannel::default() }).contains("moved"));
    let bytes = Vec::from([0; 101 + BEYOND]);
    let big = SavedChannel { outgoing: Some(SavedMessage { bytes, place: 0 }), ..SavedChannel::default() };
    assert!(refusal(&|saved| saved.channels.resize(4, Some(big.clone()))).contains("on their way"));
    assert!(refusal(&|saved| saved.store.push(value(b"other"))).contains("value"));
    assert!(
        refusal(&|saved| saved.store = Vec::from([value(b"guestinfo.a"), value(b"guestinfo.a")])).contains("value")
    );
    assert!(refusal(&|saved| saved.report.system.push(b'\n')).contains("text"));
    assert!(refusal(&|saved| saved.report.system.resize(97, b'x')).contains("text"));
    assert!(refusal(&|saved| saved.requests.waiting.resize(34, SavedRequest::default())).contains("requests"));
    assert!(refusal(&|saved| saved.requests.time_set = 4).contains("clock"));
}

/// Of each list as many values are read as any VM may have, and one more is refused by the list's name.
#[test]
fn no_list_is_longer_than_any_guests() {
    let mut tried = 0;
    let mut bounded = |list: &'static str, most: usize, with: &dyn Fn(&mut SavedService, usize)| {
        let of = |count| {
            let mut saved = SavedService::default();
            with(&mut saved, count);
            saved
        };
        assert_bounded(list, most, of);
        tried += 1;
    };
    let channel = |channel: SavedChannel| Vec::from([Some(channel)]);
    let message = |count| Some(SavedMessage { bytes: vec![1; count], place: 0 });
    bounded("SavedService.channels", 256, &|saved, count| saved.channels.resize(count, None));
    bounded("SavedService.store", 1024, &|saved, count| saved.store.resize(count, SavedValue::default()));
    bounded("SavedMessage.bytes", 1 << 20, &|saved, count| {
        saved.channels = channel(SavedChannel { incoming: message(count), ..SavedChannel::default() });
    });
    bounded("SavedValue.key", 256, &|saved, count| {
        saved.store = vec![SavedValue { key: vec![1; count], ..SavedValue::default() }];
    });
    bounded("SavedValue.value", 65536, &|saved, count| {
        saved.store = vec![SavedValue { value: vec![1; count], ..SavedValue::default() }];
    });
    bounded("SavedReport.version", 96, &|saved, count| saved.report.version.resize(count, b'x'));
    bounded("SavedReport.host_name", 96, &|saved, count| saved.report.host_name.resize(count, b'x'));
    bounded("SavedReport.system", 96, &|saved, count| saved.report.system.resize(count, b'x'));
    bounded("SavedReport.address", 96, &|saved, count| saved.report.address.resize(count, b'x'));
    bounded("SavedRequests.waiting", 33, &|saved, count| {
        saved.requests.waiting.resize(count, SavedRequest::default());
    });
    bounded("SavedRequest.text", 32, &|saved, count| {
        saved.requests.outstanding = Some(SavedRequest { text: vec![1; count] });
    });
    assert_eq!(tried, 11);
}

/// What a guest has at most is in the bytes that a file has at most for it, and few of those are left.
#[test]
fn the_largest_state_has_the_most_bytes() {
    let limits = LIMITS;
    let part = (limits.buffers + limits.channels * BEYOND) / limits.channels / 2;
    let message = |place| Some(SavedMessage { bytes: vec![1; part], place });
    let channel = SavedChannel {
        cookies: Some([1; 2]),
        incoming: message(part),
        outgoing: message(0),
        ..SavedChannel::default()
    };
    let text = || vec![b'x'; 96];
    let request = || SavedRequest { text: vec![1; 32] };
    let saved = SavedService {
        channels: vec![Some(channel); limits.channels],
        store: vec![SavedValue { key: vec![1; 50], value: vec![1; limits.store / limits.keys - 50] }; limits.keys],
        report: SavedReport {
            version: text(),
            host_name: text(),
            system: text(),
            address: text(),
            silent: Some(1),
            ..SavedReport::default()
        },
        requests: SavedRequests {
            channel: Some(1),
            waiting: vec![request(); 33],
            outstanding: Some(request()),
            ..SavedRequests::default()
        },
        ..SavedService::default()
    };
    let mut out = Writer::new();
    out.part(&saved);
    let (bytes, most) = (out.finish().expect("there is memory").len(), SavedService::most_bytes(&limits));
    assert!(bytes <= most && bytes + 250 > most, "{bytes} of {most}");
    let more = |change: fn(&mut Limits)| {
        let mut limits = LIMITS;
        change(&mut limits);
        SavedService::most_bytes(&limits) - most
    };
    assert_eq!((more(|limits| limits.buffers += 1), more(|limits| limits.store += 1)), (1, 1));
    assert_eq!((more(|limits| limits.channels += 1), more(|limits| limits.keys += 1)), (64 + BEYOND, 8));
    // Who may have nothing has numbers, four texts, and as many requests as can wait beside the one that was made.
    let none = Limits { channels: 0, buffers: 0, keys: 0, store: 0, ..LIMITS };
    assert_eq!(SavedService::most_bytes(&none), 128 + 4 * 96 + 34 * (32 + 5));
}

/// All room for messages may be taken, and each channel's next reply say so: that much is put in, and not a byte more.
#[test]
fn as_many_messages_come_back_as_can_be_on_their_way() {
    assert!(BEYOND >= crate::rpci::NO_ROOM.len() && BEYOND >= crate::tclo::Requests::LONGEST);
    for (more, fits) in [(0, true), (1, false)] {
        let channel = |more| {
            let bytes = vec![1; LIMITS.buffers / LIMITS.channels + BEYOND + more];
            Some(SavedChannel { outgoing: Some(SavedMessage { bytes, place: 0 }), ..SavedChannel::default() })
        };
        let mut channels = vec![channel(0); LIMITS.channels];
        channels[0] = channel(more);
        let saved = SavedService { channels, ..SavedService::default() };
        assert_eq!(service().restore(saved, NOW).is_ok(), fits);
    }
}
