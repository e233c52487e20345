//! What a site file says of networks, and of the ports that VMs have on them.

use super::{Entry, Mistake, Reader, Values, entry, keys};
use crate::site::texts::{mac, nearest};
use abi::bundle;

/// A network, as its table says.
struct Network {
    name: String,
    mtu: u16,
}

/// All that has been read of networks.
#[derive(Default)]
pub(super) struct Networks {
    all: Vec<Network>,
    /// The ports so far: network, address, VM.
    ports: Vec<(String, [u8; 6], String)>,
}

impl<'t> Reader<'t> {
    /// The networks, each with a name of its own.
    pub(super) fn networks(&mut self, found: &Entry<'_, 't>) {
        let hint = "write [[network]], then its keys";
        let Some(array) = found.value.get_ref().as_array() else {
            self.wrong(found, format!("not a list of tables; {hint}"));
            return;
        };
        for value in array.iter() {
            let one = Entry { key: found.key, value };
            let Some(table) = self.table(&one, hint) else { continue };
            let Some(keys) = self.values(table, &keys::NETWORK, value.span()) else { continue };
            let name = keys.text("name").to_owned();
            if self.networks.all.iter().any(|other| other.name == name)
                && let Some(found) = entry(table, "name")
            {
                self.wrong(&found, "another network has the same name; each needs its own");
            }
            self.networks.all.push(Network { name, mtu: keys.number("mtu") as u16 });
        }
    }

    /// The ports, each of a network that there is, and with an address that no other one there has.
    pub(super) fn ports(&mut self, keys: &Values) -> Option<bundle::Ports<String>> {
        let mut all = Vec::new();
        let vm = keys.text("name").to_owned();
        for (index, port) in keys.tables("network").iter().enumerate() {
            let name = port.text("name").to_owned();
            let given = port.given_text("mac").and_then(mac);
            let mac = given.unwrap_or_else(|| mac_of(&vm, index));
            let mut wrong = |line, message| {
                self.mistakes.push(Mistake { file: self.file.to_path_buf(), line, message });
            };
            let Some(network) = self.networks.all.iter().find(|network| network.name == name) else {
                let names: Vec<_> = self.networks.all.iter().map(|network| &*network.name).collect();
                let hint = match nearest(&name, &names) {
                    Some(other) => format!("did you mean \"{other}\"?"),
                    None => format!("add a table [[network]] with name = \"{name}\""),
                };
                wrong(port.line("name"), format!("network \"{name}\": there is no such network; {hint}"));
                continue;
            };
            let mtu = network.mtu;
            if let Some((_, _, other)) = self.networks.ports.iter().find(|(on, taken, _)| *on == name && *taken == mac)
            {
                let text = switch::Mac(mac);
                let message = if given.is_some() {
                    format!("mac = \"{text}\": a port of {other} on the network \"{name}\" has it; each needs its own")
                } else {
                    format!(
                        "its address would be {text}, which a port of {other} on the network \"{name}\" has; give it one"
                    )
                };
                wrong(port.line(if given.is_some() { "mac" } else { "name" }), message);
            }
            self.networks.ports.push((name.clone(), mac, vm.clone()));
            all.push(bundle::Port { network: name, vlan: port.given_number("vlan").unwrap_or(0) as u16, mac, mtu });
        }
        bundle::Ports::of(all)
    }
}

/// The address of a VM's port of that number, of which the site file does not say one: locally administered, and the same wherever a VM of
/// that name has it.
fn mac_of(vm: &str, index: usize) -> [u8; 6] {
    // FNV-1a, whose numbers will not change.
    let hash = vm
        .bytes()
        .chain([0, index as u8])
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let [a, b, c, d, e, ..] = (hash ^ hash >> 40).to_le_bytes();
    [0x02, a, b, c, d, e]
}
