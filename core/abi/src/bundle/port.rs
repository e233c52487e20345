//! A VM's ports: on which networks it is, and by which address.
//!
//! A network has nothing but a name, by which its ports belong together, and the largest packet that it carries.

use super::{Bundle, VmProblem};
use core::fmt;
use core::marker::PhantomData;
use core::ops::RangeInclusive;
use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// At most this many ports has a VM.
pub const MAX_PORTS: usize = 4;
/// The largest packet of a network: from what every host of the Internet takes to what a frame can hold.
pub const MTU: RangeInclusive<u64> = 576..=65_535;
/// The numbers of VLANs (IEEE 802.1Q); 0 stands for none.
pub const VLAN: RangeInclusive<u64> = 1..=4094;
/// That of a network of which nothing is said.
pub const DEFAULT_MTU: u16 = 1500;

/// A port of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port<Text> {
    /// The network, which has such a name as a VM has. All ports that say the same are on one.
    pub network: Text,
    /// The VLAN that it belongs to, one of [`VLAN`], or 0: it sees ports of the network that say the same. Frames have no tag.
    pub vlan: u16,
    /// Its address: that of a single station, which no other port of the network has.
    pub mac: [u8; 6],
    /// The largest packet of the network, one of [`MTU`].
    pub mtu: u16,
}

/// The ports of a VM, in their order. As bytes it is a list, so that a VM without one takes a byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports<Text>(pub(super) [Option<Port<Text>>; MAX_PORTS]);

impl<Text> Default for Ports<Text> {
    fn default() -> Self {
        Self([const { None }; MAX_PORTS])
    }
}

impl<Text> Ports<Text> {
    /// These ports; `None` if there are too many.
    #[must_use]
    pub fn of(all: impl IntoIterator<Item = Port<Text>>) -> Option<Self> {
        let mut ports = Self::default();
        let mut places = ports.0.iter_mut();
        for port in all {
            *places.next()? = Some(port);
        }
        Some(ports)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Port<Text>> {
        self.0.iter().flatten()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    /// The same ports with their texts in the form that `text` gives them.
    #[must_use]
    pub fn with<'a, NewText>(&'a self, text: impl Fn(&'a Text) -> NewText) -> Ports<NewText> {
        Ports(self.0.each_ref().map(|port| {
            let Port { network, vlan, mac, mtu } = port.as_ref()?;
            Some(Port { network: text(network), vlan: *vlan, mac: *mac, mtu: *mtu })
        }))
    }
}

impl<Text: Serialize> Serialize for Ports<Text> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.count()))?;
        for port in self.iter() {
            list.serialize_element(port)?;
        }
        list.end()
    }
}

impl<'de, Text: Deserialize<'de>> Deserialize<'de> for Ports<Text> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<Text>(PhantomData<Text>);

        impl<'de, Text: Deserialize<'de>> Visitor<'de> for List<Text> {
            type Value = Ports<Text>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "a list of at most {MAX_PORTS} ports")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut ports = Ports::default();
                let mut places = ports.0.iter_mut();
                while let Some(port) = list.next_element()? {
                    *places.next().ok_or_else(|| A::Error::invalid_length(MAX_PORTS + 1, &self))? = Some(port);
                }
                Ok(ports)
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// Whether `mac` may be a port's: not that of a group, and not all zeros.
///
/// # Errors
/// [`VmProblem::Mac`].
pub const fn check_mac(mac: [u8; 6]) -> Result<(), VmProblem> {
    if mac[0] & 1 == 0 && !matches!(mac, [0, 0, 0, 0, 0, 0]) { Ok(()) } else { Err(VmProblem::Mac(mac)) }
}

impl Ports<&str> {
    /// Everything about them that can be judged without the rest of the bundle.
    pub(super) fn check(&self) -> Result<(), VmProblem> {
        for (index, port) in self.iter().enumerate() {
            super::check_name(port.network).map_err(|_| VmProblem::Network)?;
            check_mac(port.mac)?;
            if port.vlan != 0 && !VLAN.contains(&port.vlan.into()) {
                return Err(VmProblem::Vlan(port.vlan));
            }
            if !MTU.contains(&port.mtu.into()) {
                return Err(VmProblem::Mtu(port.mtu));
            }
            self.iter().take(index).find_map(|other| port.clash(other)).map_or(Ok(()), Err)?;
        }
        Ok(())
    }
}

impl Port<&str> {
    /// Why it and the other one cannot both be, if they are on one network.
    fn clash(&self, other: &Self) -> Option<VmProblem> {
        match (self.network == other.network, self.mac == other.mac, self.mtu == other.mtu) {
            (true, true, _) => Some(VmProblem::MacTaken(self.mac)),
            (true, false, false) => Some(VmProblem::MtuDiffers(self.mtu)),
            _ => None,
        }
    }
}

impl<'a> Bundle<'a> {
    /// Whether one of these cannot be beside a port of the first `count` VMs.
    pub(super) fn check_ports(&self, ports: &Ports<&'a str>, count: u16) -> Result<(), VmProblem> {
        for port in ports.iter() {
            let mut others = self.vms().take(usize::from(count));
            let problem = others.find_map(|vm| vm.ports.iter().find_map(|other| port.clash(other)));
            problem.map_or(Ok(()), Err)?;
        }
        Ok(())
    }
}
