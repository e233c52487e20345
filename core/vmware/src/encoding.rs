//! Which register contents are a call: X7 says so, as [`abi::calls`] writes it down.

use abi::calls::MARK;

/// How the guest called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// `MRS Xt, MDCCSR_EL0`.
    DebugChannel {
        /// The register number in the instruction.
        rt: u8,
    },
    /// `HVC #0x86`.
    Hvc,
}

/// Width of an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// One byte.
    Byte,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
}

impl Size {
    /// All bits of an item set.
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Half => 0xffff,
            Self::Word => 0xffff_ffff,
        }
    }
}

/// Which way data moves: as by the instructions IN and OUT, whose place a call takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortDirection {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

/// One item or many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// One, in W0.
    Single,
    /// In memory.
    String {
        /// As many as X2 says; otherwise one.
        repeated: bool,
        /// Towards lower addresses.
        backwards: bool,
    },
}

/// A call: an access to a port that the machine does not have, spelled in registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Which port.
    pub port: u16,
    /// How wide.
    pub size: Size,
    /// Which way.
    pub direction: PortDirection,
    /// How many.
    pub form: Form,
}

/// The call in W3 and X7, if it is one. `None`: the instruction is to do what it does on a machine without us.
#[must_use]
#[inline]
pub const fn decode(door: Door, x3: u64, x7: u64) -> Option<Access> {
    match door {
        // A guest that wants to know the status names a register for it.
        Door::DebugChannel { rt } if rt != 31 || (x7 >> 32) as u32 != MARK => return None,
        Door::DebugChannel { .. } | Door::Hvc => {}
    }
    let word = x7 as u32;
    let size = match word & 3 {
        0 => Size::Byte,
        1 => Size::Half,
        2 => Size::Word,
        _ => return None,
    };
    let direction = if word & 4 != 0 { PortDirection::In } else { PortDirection::Out };
    let with_port = word & 8 != 0;
    let string = word & 16 != 0;
    let allowed = match (string, with_port) {
        (false, false) => 0x1fff,
        (false, true) => 0x1f,
        (true, _) => 0x3f,
    };
    if word & !allowed != 0 {
        return None;
    }
    let form = if string { Form::String { repeated: with_port, backwards: word & 32 != 0 } } else { Form::Single };
    let port = if string || with_port { x3 as u16 } else { (word >> 5) as u16 & 0xff };
    Some(Access { port, size, direction, form })
}

#[cfg(test)]
mod tests {
    use super::{Access, Door, Form, PortDirection, Size, decode};
    use abi::calls::vmware::{PORT_HIGH, PORT_LOW};
    use abi::calls::{HIGH_IN, HIGH_OUT, LOW};
    use proptest::prelude::*;

    const DCC: Door = Door::DebugChannel { rt: 31 };
    const MARKED: u64 = 0x86 << 32;

    #[test]
    fn the_three_calls_of_real_clients() {
        let low = Access { port: PORT_LOW, size: Size::Word, direction: PortDirection::In, form: Form::Single };
        assert_eq!(decode(DCC, 0xffff_edc7_5658, MARKED | u64::from(LOW)), Some(low));
        assert_eq!(decode(Door::Hvc, 0x5658, u64::from(LOW)), Some(low));
        let string = Form::String { repeated: true, backwards: false };
        let high = |direction| Access { port: PORT_HIGH, size: Size::Byte, direction, form: string };
        assert_eq!(decode(DCC, 0x1_5659, MARKED | u64::from(HIGH_OUT)), Some(high(PortDirection::Out)));
        assert_eq!(decode(DCC, 0x1_5659, MARKED | u64::from(HIGH_IN)), Some(high(PortDirection::In)));
    }

    #[test]
    fn near_misses_are_no_calls() {
        for mark in [0x85u64, 0x87, 0x186, 0, 0x8600_0000] {
            assert_eq!(decode(DCC, 0x5658, mark << 32 | 0x0e), None, "{mark:#x}");
        }
        assert_eq!(decode(DCC, 0x5658, 0x86), None, "the mark in the low half");
        assert_eq!(decode(DCC, 0x5658, MARKED | 0x0f), None, "size 3");
        assert_eq!(decode(Door::DebugChannel { rt: 3 }, 0x5658, MARKED | 0x0e), None);
        for bit in 5..32 {
            assert_eq!(decode(DCC, 0x5658, MARKED | 0x0e | 1 << bit), None, "bit {bit}");
        }
        let immediate = decode(DCC, 0x5658, MARKED | 0x71 << 5 | 4).map(|access| access.port);
        assert_eq!(immediate, Some(0x71));
    }

    proptest! {
        #[test]
        fn a_call_says_all_of_its_control_word(x3: u64, w7 in 0u32..0x2000) {
            if let Some(access) = decode(DCC, x3, MARKED | u64::from(w7)) {
                let size = match access.size { Size::Byte => 0, Size::Half => 1, Size::Word => 2 };
                let direction = if access.direction == PortDirection::In { 4 } else { 0 };
                let rest = match access.form {
                    Form::Single if w7 & 8 != 0 => 8,
                    Form::Single => u32::from(access.port) << 5,
                    Form::String { repeated, backwards } => 16 | u32::from(repeated) << 3 | u32::from(backwards) << 5,
                };
                prop_assert_eq!(size | direction | rest, w7);
            }
        }
    }
}
