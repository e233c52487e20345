//! The ports of payloads, which know their addresses (`tests/payloads/src/bin/net.rs`).

use abi::bundle::{Port, Ports};

/// The largest packet of their networks.
const MTU: u16 = 65_535;

/// A payload's four ports: two on one network, one on another, and one in a VLAN of the first one.
pub(crate) fn ports() -> Ports<String> {
    let port = |(last, network, vlan): (u8, &str, u16)| Port {
        network: network.to_owned(),
        vlan,
        mac: [0x52, 0x54, 0, 0xaa, 0xbb, last],
        mtu: MTU,
    };
    Ports::of([(1, "lan", 0), (2, "lan", 0), (3, "dmz", 0), (4, "lan", 7)].map(port)).unwrap_or_default()
}
