//! The hypervisor's statistics: what `croft stat` prints, and the same as JSON for programs.
//!
//! They come as text, a block for each VM (a line with its name, and lines that begin with blanks) and then the host's lines;
//! `el2/hypervisor/src/link/stats.rs` writes them. The JSON is described in `docs/formats/control.md`.

use serde_json::{Map, Value, json};

/// A line that is none of those that the hypervisor is known to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the hypervisor's statistics have a line that this croft cannot take apart: {0:?}; without --json it is printed"
)]
pub struct UnknownLine(String);

/// The lines about these VMs; all lines, the host's too, if none is named.
#[must_use]
pub fn select(text: &str, vms: &[String]) -> String {
    let mut wanted = vms.is_empty();
    let mut selected = String::new();
    for line in text.lines() {
        if !line.starts_with(' ') {
            wanted = vms.is_empty()
                || line.split_once(": started ").is_some_and(|(name, _)| vms.iter().any(|vm| vm == name));
        }
        if wanted {
            selected.push_str(line);
            selected.push('\n');
        }
    }
    selected
}

/// The same as JSON, numbers as numbers.
///
/// # Errors
/// The text is of another hypervisor's making.
pub fn to_json(text: &str) -> Result<Value, UnknownLine> {
    let mut vms: Vec<Value> = Vec::new();
    let mut host = Map::new();
    for line in text.lines() {
        let unknown = || UnknownLine(line.to_owned());
        if let Some(counter) = counter(line) {
            *vms.last_mut().and_then(|vm| vm.get_mut("counter")).ok_or_else(unknown)? = counter;
        } else if let Some(code) = code(line) {
            *vms.last_mut().and_then(|vm| vm.get_mut("code")).ok_or_else(unknown)? = code;
        } else if let Some(blocks) = copied(line) {
            *vms.last_mut().and_then(|vm| vm.get_mut("blocks_copied")).ok_or_else(unknown)? = blocks.into();
        } else if let Some(microseconds) = paid(line) {
            *vms.last_mut().and_then(|vm| vm.get_mut("paid_microseconds")).ok_or_else(unknown)? = microseconds.into();
        } else if line.starts_with(' ') {
            let entry = vcpu(line).or_else(|| port(line)).or_else(|| watchdog(line)).or_else(|| disk(line));
            let (list, entry) = entry.ok_or_else(unknown)?;
            let list = vms.last_mut().and_then(|vm| vm.get_mut(list)).and_then(Value::as_array_mut);
            list.ok_or_else(unknown)?.push(entry);
        } else if let Some(found) = vm(line) {
            vms.push(found);
        } else {
            let (key, value) = memory(line).or_else(|| caches(line)).ok_or_else(unknown)?;
            host.insert(key.to_owned(), value);
        }
    }
    let host = if host.is_empty() { Value::Null } else { host.into() };
    Ok(json!({ "vms": vms, "host": host }))
}

/// The number before `end`, and what comes behind that.
fn number<'t>(text: &'t str, end: &str) -> Option<(u64, &'t str)> {
    let (digits, rest) = text.split_once(end)?;
    Some((digits.parse().ok()?, rest))
}

/// The number before `time` or `times`, and what comes behind that.
fn times(text: &str) -> Option<(u64, &str)> {
    let (count, rest) = number(text, " time")?;
    Some((count, if count == 1 { rest } else { rest.strip_prefix('s')? }))
}

/// The seconds before `end` in milliseconds, and what comes behind.
fn milliseconds<'t>(text: &'t str, end: &str) -> Option<(u64, &'t str)> {
    let (seconds, rest) = text.split_once(end)?;
    let (whole, part) = seconds.split_once('.')?;
    let part = part.parse::<u64>().ok().filter(|_| part.len() == 3)?;
    Some((whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(part)?, rest))
}

/// `web: started 2 times, 512 MiB, 1028 KiB tables; exits: interrupt 3 (1200 ns) hvc 4 (80 ns)`: durations only if exits are timed.
fn vm(line: &str) -> Option<Value> {
    let (name, rest) = line.split_once(": started ")?;
    let (boots, rest) = times(rest)?;
    let rest = rest.strip_prefix(", ")?;
    let (memory, rest) = number(rest, " MiB, ")?;
    let (tables, rest) = number(rest, " KiB tables; exits:")?;
    let (mut exits, mut times) = (Map::new(), Map::new());
    let mut words = rest.split_whitespace().peekable();
    while let Some(reason) = words.next() {
        exits.insert(reason.to_owned(), words.next()?.parse::<u64>().ok()?.into());
        if let Some(time) = words.next_if(|word| word.starts_with('(')) {
            words.next_if_eq(&"ns)")?;
            times.insert(reason.to_owned(), time.strip_prefix('(')?.parse::<u64>().ok()?.into());
        }
    }
    let times = if times.is_empty() { Value::Null } else { times.into() };
    Some(json!({
        "name": name,
        "boots": boots,
        "memory_mib": memory,
        "tables_kib": tables,
        "exits": exits,
        "exit_nanoseconds": times,
        "counter": null,
        "code": null,
        "blocks_copied": 0,
        "paid_microseconds": 0,
        "vcpus": [],
        "ports": [],
        "watchdogs": [],
        "disks": [],
    }))
}

/// `  vCPU 0: ran 1.234 s, waited 0.001 s for a CPU, 0.000 s of it stolen`
fn vcpu(line: &str) -> Option<(&'static str, Value)> {
    let (number, rest) = number(line.strip_prefix("  vCPU ")?, ": ran ")?;
    let (ran, rest) = milliseconds(rest, " s, waited ")?;
    let (waited, rest) = milliseconds(rest, " s for a CPU, ")?;
    let (stolen, rest) = milliseconds(rest, " s of it stolen")?;
    let entry = json!({
        "vcpu": number,
        "ran_milliseconds": ran,
        "waited_milliseconds": waited,
        "stolen_milliseconds": stolen,
    });
    rest.is_empty().then_some(("vcpus", entry))
}

/// `  port 0 on lan, 52:54:00:12:34:56: sent 5 frames 600 bytes 1 floods, received 2 frames 120 bytes; dropped: forged 3 room 1`; on its
/// VLAN 7 the network is `lan.7`.
fn port(line: &str) -> Option<(&'static str, Value)> {
    let (index, rest) = number(line.strip_prefix("  port ")?, " on ")?;
    let (network, rest) = rest.split_once(", ")?;
    let (network, vlan) = match network.split_once('.') {
        Some((network, vlan)) => (network, Some(vlan.parse::<u16>().ok()?)),
        None => (network, None),
    };
    let (mac, rest) = rest.split_once(": sent ")?;
    let (sent, rest) = number(rest, " frames ")?;
    let (sent_bytes, rest) = number(rest, " bytes ")?;
    let (floods, rest) = number(rest, " floods, received ")?;
    let (received, rest) = number(rest, " frames ")?;
    let (received_bytes, rest) = number(rest, " bytes; dropped:")?;
    let mut dropped = Map::new();
    let mut words = rest.split_whitespace();
    while let Some(reason) = words.next() {
        dropped.insert(reason.to_owned(), words.next()?.parse::<u64>().ok()?.into());
    }
    let entry = json!({
        "port": index,
        "network": network,
        "vlan": vlan,
        "mac": mac,
        "sent_frames": sent,
        "sent_bytes": sent_bytes,
        "floods": floods,
        "received_frames": received,
        "received_bytes": received_bytes,
        "dropped": dropped,
    });
    Some(("ports", entry))
}

/// `  counter: at 1200 of 62500000 Hz, stood still for 300 ticks, stands still`
fn counter(line: &str) -> Option<Value> {
    let (count, rest) = number(line.strip_prefix("  counter: at ")?, " of ")?;
    let (hertz, rest) = number(rest, " Hz, stood still for ")?;
    let (stood, rest) = number(rest, " ticks")?;
    let stands_still = match rest {
        "" => false,
        ", stands still" => true,
        _ => return None,
    };
    Some(json!({ "count": count, "hertz": hertz, "stood_still_ticks": stood, "stands_still": stands_still }))
}

/// `  saved while it ran: 12 blocks copied`
fn copied(line: &str) -> Option<u64> {
    line.strip_prefix("  saved while it ran: ")?.strip_suffix(" blocks copied")?.parse().ok()
}

/// `  paid for: 1200 us of others' work`
fn paid(line: &str) -> Option<u64> {
    line.strip_prefix("  paid for: ")?.strip_suffix(" us of others' work")?.parse().ok()
}

/// `  code: on-demand, 12 of 512 pages executable; made so 15, taken back 3, lines cleaned 960, caches emptied 15, blocks split 2, joined 0`
fn code(line: &str) -> Option<Value> {
    let (policy, rest) = line.strip_prefix("  code: ")?.split_once(", ")?;
    let (executable, rest) = number(rest, " of ")?;
    let (mapped, rest) = number(rest, " pages executable; made so ")?;
    let (granted, rest) = number(rest, ", taken back ")?;
    let (taken, rest) = number(rest, ", lines cleaned ")?;
    let (lines, rest) = number(rest, ", caches emptied ")?;
    let (emptied, rest) = number(rest, ", blocks split ")?;
    let (split, joined) = number(rest, ", joined ")?;
    Some(json!({
        "policy": policy,
        "pages_mapped": mapped,
        "pages_executable": executable,
        "pages_made_executable": granted,
        "pages_taken_back": taken,
        "lines_cleaned": lines,
        "caches_emptied": emptied,
        "blocks_split": split,
        "blocks_joined": joined.parse::<u64>().ok()?,
    }))
}

/// `  watchdog of vCPU 1: 20 of 30000 ms left to reset, stands still; acted 0 times`: nothing is left if it is not armed, and
/// the VM's own has no number.
fn watchdog(line: &str) -> Option<(&'static str, Value)> {
    let (whose, rest) = line.strip_prefix("  watchdog")?.split_once(": ")?;
    let vcpu = match whose {
        "" => None,
        whose => Some(whose.strip_prefix(" of vCPU ")?.parse::<u64>().ok()?),
    };
    let (armed, acted) = match rest.split_once("; acted ") {
        Some((armed, acted)) => (Some(armed), acted),
        None => (None, rest.strip_prefix("acted ")?),
    };
    let (acted, end) = times(acted)?;
    if !end.is_empty() {
        return None;
    }
    let armed = match armed {
        None => Value::Null,
        Some(armed) => {
            let (left, rest) = number(armed, " of ")?;
            let (timeout, rest) = number(rest, " ms left to ")?;
            let (action, stands_still) =
                rest.strip_suffix(", stands still").map_or((rest, false), |action| (action, true));
            json!({
                "left_milliseconds": left,
                "timeout_milliseconds": timeout,
                "action": action,
                "stands_still": stands_still,
            })
        }
    };
    Some(("watchdogs", json!({ "vcpu": vcpu, "armed": armed, "acted": acted })))
}

/// `  disk root on virtio0: 12 reads of 48 KiB, 3 writes of 12 KiB, 2 flushes, 1 others, 0 failed`
fn disk(line: &str) -> Option<(&'static str, Value)> {
    let (serial, rest) = line.strip_prefix("  disk ")?.split_once(" on ")?;
    let (host, rest) = rest.split_once(": ")?;
    let (reads, rest) = number(rest, " reads of ")?;
    let (read, rest) = number(rest, " KiB, ")?;
    let (writes, rest) = number(rest, " writes of ")?;
    let (written, rest) = number(rest, " KiB, ")?;
    let (flushes, rest) = number(rest, " flushes, ")?;
    let (others, rest) = number(rest, " others, ")?;
    let (failed, rest) = number(rest, " failed")?;
    let entry = json!({
        "serial": serial,
        "host_disk": host,
        "reads": reads,
        "kib_read": read,
        "writes": writes,
        "kib_written": written,
        "flushes": flushes,
        "others": others,
        "failed": failed,
    });
    rest.is_empty().then_some(("disks", entry))
}

/// `memory in KiB: 6 total, 5 free (4 zeroed), 3 guests, 2 their tables, 1 hypervisor, 0 reserved`
fn memory(line: &str) -> Option<(&'static str, Value)> {
    let (total, rest) = number(line.strip_prefix("memory in KiB: ")?, " total, ")?;
    let (free, rest) = number(rest, " free (")?;
    let (zeroed, rest) = number(rest, " zeroed), ")?;
    let (guests, rest) = number(rest, " guests, ")?;
    let (tables, rest) = number(rest, " their tables, ")?;
    let (hypervisor, rest) = number(rest, " hypervisor, ")?;
    let (reserved, rest) = number(rest, " reserved")?;
    let entry = json!({
        "total": total,
        "free": free,
        "zeroed": zeroed,
        "guests": guests,
        "tables": tables,
        "hypervisor": hypervisor,
        "reserved": reserved,
    });
    rest.is_empty().then_some(("memory_kib", entry))
}

/// `instruction caches emptied for guests' memory: 7 times`
fn caches(line: &str) -> Option<(&'static str, Value)> {
    let (emptied, rest) = times(line.strip_prefix("instruction caches emptied for guests' memory: ")?)?;
    rest.is_empty().then_some(("instruction_caches_emptied", emptied.into()))
}

#[cfg(test)]
mod tests {
    use super::{select, to_json};
    use serde_json::json;

    const TEXT: &str = "\
web: started 2 times, 512 MiB, 1028 KiB tables; exits: interrupt 3 (1200 ns) id-register 4 (80 ns)
  vCPU 0: ran 1.234 s, waited 0.001 s for a CPU, 0.000 s of it stolen
  vCPU 1: ran 12.034 s, waited 2.500 s for a CPU, 1.250 s of it stolen
  counter: at 1200 of 62500000 Hz, stood still for 300 ticks, stands still
  code: on-demand, 12 of 512 pages executable; made so 15, taken back 3, lines cleaned 960, caches emptied 15, blocks split 2, joined 0
  saved while it ran: 3 blocks copied
  paid for: 1200 us of others' work
  disk root on virtio1: 12 reads of 48 KiB, 3 writes of 13 KiB, 2 flushes, 1 others, 4 failed
  port 0 on lan, 52:54:00:12:34:56: sent 5 frames 600 bytes 1 floods, received 2 frames 120 bytes; dropped: forged 3 room 1
  port 1 on dmz.7, 02:00:00:00:00:01: sent 0 frames 0 bytes 0 floods, received 0 frames 0 bytes; dropped:
  watchdog: 20 of 30000 ms left to reset, stands still; acted 1 time
  watchdog of vCPU 1: acted 2 times
db: started 1 time, 64 MiB, 8 KiB tables; exits:
  counter: at 7 of 62500000 Hz, stood still for 0 ticks
memory in KiB: 60 total, 50 free (40 zeroed), 30 guests, 20 their tables, 10 hypervisor, 5 reserved
instruction caches emptied for guests' memory: 7 times
";

    #[test]
    fn every_line_is_taken_apart() {
        let found = to_json(TEXT).unwrap();
        let web = json!({
            "name": "web",
            "boots": 2,
            "memory_mib": 512,
            "tables_kib": 1028,
            "exits": { "interrupt": 3, "id-register": 4 },
            "exit_nanoseconds": { "interrupt": 1200, "id-register": 80 },
            "counter": { "count": 1200, "hertz": 62_500_000, "stood_still_ticks": 300, "stands_still": true },
            "code": {
                "policy": "on-demand",
                "pages_mapped": 512,
                "pages_executable": 12,
                "pages_made_executable": 15,
                "pages_taken_back": 3,
                "lines_cleaned": 960,
                "caches_emptied": 15,
                "blocks_split": 2,
                "blocks_joined": 0,
            },
            "blocks_copied": 3,
            "paid_microseconds": 1200,
            "vcpus": [
                { "vcpu": 0, "ran_milliseconds": 1234, "waited_milliseconds": 1, "stolen_milliseconds": 0 },
                { "vcpu": 1, "ran_milliseconds": 12034, "waited_milliseconds": 2500, "stolen_milliseconds": 1250 },
            ],
            "ports": [
                {
                    "port": 0,
                    "network": "lan",
                    "vlan": null,
                    "mac": "52:54:00:12:34:56",
                    "sent_frames": 5,
                    "sent_bytes": 600,
                    "floods": 1,
                    "received_frames": 2,
                    "received_bytes": 120,
                    "dropped": { "forged": 3, "room": 1 },
                },
                {
                    "port": 1,
                    "network": "dmz",
                    "vlan": 7,
                    "mac": "02:00:00:00:00:01",
                    "sent_frames": 0,
                    "sent_bytes": 0,
                    "floods": 0,
                    "received_frames": 0,
                    "received_bytes": 0,
                    "dropped": {},
                },
            ],
            "watchdogs": [
                {
                    "vcpu": null,
                    "armed": {
                        "left_milliseconds": 20,
                        "timeout_milliseconds": 30000,
                        "action": "reset",
                        "stands_still": true,
                    },
                    "acted": 1,
                },
                { "vcpu": 1, "armed": null, "acted": 2 },
            ],
            "disks": [{
                "serial": "root",
                "host_disk": "virtio1",
                "reads": 12,
                "kib_read": 48,
                "writes": 3,
                "kib_written": 13,
                "flushes": 2,
                "others": 1,
                "failed": 4,
            }],
        });
        assert_eq!(found["vms"][0], web);
        assert_eq!((&found["vms"][1]["name"], &found["vms"][1]["exits"]), (&json!("db"), &json!({})));
        assert_eq!(found["vms"][1]["counter"]["stands_still"], false);
        assert!(found["vms"][1]["exit_nanoseconds"].is_null(), "nothing was timed");
        assert_eq!(found["host"]["memory_kib"]["tables"], 20);
        assert_eq!(found["host"]["instruction_caches_emptied"], 7);
    }

    #[test]
    fn some_vms_are_picked_without_the_host() {
        let picked = select(TEXT, &["web".to_owned()]);
        assert_eq!(picked.lines().count(), 12, "{picked}");
        assert!(picked.ends_with("  watchdog of vCPU 1: acted 2 times\n"), "{picked}");
        assert!(to_json(&picked).unwrap()["host"].is_null());
        assert_eq!(select(TEXT, &[]), TEXT);
    }

    #[test]
    fn a_line_that_is_not_known_is_named() {
        let without_vm = "  vCPU 0: ran 1.234 s, waited 0.001 s for a CPU, 0.000 s of it stolen";
        let no_counter =
            "web: started 1 time, 64 MiB, 8 KiB tables; exits:\n  counter: at 7 of 8 Hz, stood still for 0 ticks?";
        for text in [
            "weather: sunny",
            "  vCPU 0: ran 1 s",
            "web: started often",
            without_vm,
            "memory in KiB: 1 total",
            no_counter,
            "  counter: at 7 of 8 Hz, stood still for 0 ticks",
            "  disk a on b: 1 reads of 2 KiB",
            "  code: eager, 1 pages executable; made so 1",
        ] {
            let odd = text.lines().last().unwrap();
            let error = to_json(text).unwrap_err().to_string();
            assert!(error.contains(odd), "{error}");
        }
    }
}
