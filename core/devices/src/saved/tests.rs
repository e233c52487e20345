//! Any state that can be saved comes back as it was, an impossible state is refused, and a device continues as if nothing had
//! happened.

use std::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::*;

use pack::testing::{assert_bounded, through_bytes};

use crate::{
    AccessSize, GenericWatchdog, Pl011, Pl031, Pl061, SavedGenericWatchdog, SavedPl011, SavedPl031, SavedPl061,
    SavedUart, Uart,
};

const WORD: AccessSize = AccessSize::Word;

fn pl011() -> impl Strategy<Value = SavedPl011> {
    let fifo = || vec(any::<u8>(), 0..=32);
    let registers = (0..=0xff_u32, 0..=0xffff_u32, 0..=0x3f_u32, 0..=0xff_u32, any::<u32>());
    let interrupts = (0..=0x3f_u32, 0..=0x7ff_u32, 0..=0x7ff_u32, 0..=7_u32);
    (fifo(), fifo(), any::<bool>(), registers, interrupts).prop_map(
        |(received, to_send, overrun, (ilpr, ibrd, fbrd, lcr_h, cr), (ifls, imsc, ris, dmacr))| SavedPl011 {
            received,
            to_send,
            overrun,
            ilpr,
            ibrd,
            fbrd,
            lcr_h,
            cr: cr & 0xff87,
            ifls,
            imsc,
            ris,
            dmacr,
        },
    )
}

fn pl031() -> impl Strategy<Value = SavedPl031> {
    any::<(u32, u32, u32, bool, bool, Option<u64>)>().prop_map(
        |(offset, load, matches, enabled_interrupt, raised, alarm)| SavedPl031 {
            offset,
            load,
            matches,
            enabled_interrupt,
            raised,
            alarm,
        },
    )
}

fn pl061() -> impl Strategy<Value = SavedPl061> {
    any::<[u8; 9]>().prop_map(
        |[
            inputs,
            outputs,
            direction,
            level_sensitive,
            both_edges,
            rising_or_high,
            enabled,
            edges,
            alternate_function,
        ]| SavedPl061 {
            inputs,
            outputs,
            direction,
            level_sensitive,
            both_edges,
            rising_or_high,
            enabled,
            edges,
            alternate_function,
        },
    )
}

fn generic_watchdog() -> impl Strategy<Value = SavedGenericWatchdog> {
    any::<(bool, bool, bool, bool, u64, u64, Option<u64>)>().prop_map(
        |(enabled, first, second, expired, offset, compare, paused)| SavedGenericWatchdog {
            enabled,
            first,
            second,
            expired,
            offset: offset >> 16,
            compare,
            paused,
        },
    )
}

proptest! {
    #[test]
    fn what_was_put_in_is_taken_out(uart in pl011(), clock in pl031(), gpio in pl061(), generic in generic_watchdog(),
                                    input in vec(any::<u8>(), 0..100)) {
        prop_assert_eq!(Pl011::restored(&uart).map(|uart| uart.save()), Ok(Ok(uart.clone())));
        prop_assert_eq!(Pl031::restored(&clock).save(), clock);
        prop_assert_eq!(Pl061::restored(&gpio).save(), gpio);
        prop_assert_eq!(GenericWatchdog::restored(&generic).map(|generic| generic.save()), Ok(generic));
        let saved = SavedUart { model: uart, input };
        prop_assert_eq!(through_bytes(&saved), Ok(saved.clone()));
        prop_assert_eq!(through_bytes(&clock), Ok(clock));
        prop_assert_eq!(through_bytes(&gpio), Ok(gpio));
        prop_assert_eq!(through_bytes(&generic), Ok(generic));
        let mut other = Uart::new(None);
        prop_assert_eq!(other.restore(&saved), Ok(()));
        prop_assert_eq!(other.save(), Ok(saved));
    }

    /// The device after any accesses is, once moved, the same device in each of its fields.
    #[test]
    fn a_device_that_was_moved_is_the_same(accesses in vec((0..0x430_u64, any::<u32>(), any::<u8>()), 0..60), now in 0..1_u64 << 40) {
        let (mut uart, mut clock, mut gpio, mut generic) =
            (Pl011::new(), Pl031::new(), Pl061::new(), GenericWatchdog::new());
        // What somebody at the other end takes is not the UART's state: in both, nobody takes anything.
        uart.set_transmit_blocked(true);
        for (offset, value, byte) in accesses {
            let _ = uart.write((offset % 0x4c) & !3, WORD, value.into());
            uart.receive(byte);
            if byte & 3 == 0 {
                let _ = uart.read(crate::PL011_DR, WORD);
                uart.take_transmit();
            }
            let _ = clock.write((offset % 0x20) & !3, WORD, value.into(), now);
            let _ = gpio.write(offset & !3, WORD, value.into());
            gpio.set_input(byte % 8, byte & 8 != 0);
            let _ = generic.write_control((offset % 0x18) & !3, WORD, value.into(), now);
            generic.advance(now + u64::from(byte));
        }
        prop_assert_eq!(Pl011::restored(&uart.save().expect("there is memory")), Ok(uart));
        prop_assert_eq!(Pl031::restored(&clock.save()), clock);
        prop_assert_eq!(Pl061::restored(&gpio.save()), gpio);
        prop_assert_eq!(GenericWatchdog::restored(&generic.save()), Ok(generic));
    }
}

#[test]
fn what_no_guest_can_bring_about_is_refused() {
    let long = SavedPl011 { received: Vec::from([0; 33]), ..SavedPl011::default() };
    assert!(Pl011::restored(&long).is_err());
    let registers = [
        SavedPl011 { ilpr: 0x100, ..SavedPl011::default() },
        SavedPl011 { ibrd: 0x1_0000, ..SavedPl011::default() },
        SavedPl011 { fbrd: 0x40, ..SavedPl011::default() },
        SavedPl011 { lcr_h: 0x100, ..SavedPl011::default() },
        SavedPl011 { cr: 0x8, ..SavedPl011::default() },
        SavedPl011 { ifls: 0x40, ..SavedPl011::default() },
        SavedPl011 { imsc: 0x800, ..SavedPl011::default() },
        SavedPl011 { ris: 0x800, ..SavedPl011::default() },
        SavedPl011 { dmacr: 8, ..SavedPl011::default() },
    ];
    for saved in registers {
        assert!(Pl011::restored(&saved).is_err(), "{saved:?}");
        let before = Uart::new(None);
        let mut uart = before.clone();
        assert!(uart.restore(&SavedUart { model: saved, input: Vec::new() }).is_err());
        assert_eq!(uart, before, "nothing has changed");
    }
    let mut uart = Uart::new(None);
    assert!(uart.restore(&SavedUart { model: SavedPl011::default(), input: Vec::from([0; 4097]) }).is_err());
    assert_eq!(uart.restore(&SavedUart { model: SavedPl011::default(), input: Vec::from([0; 4096]) }), Ok(()));
    let generic = SavedGenericWatchdog { offset: 1 << 48, ..SavedGenericWatchdog::default() };
    assert!(GenericWatchdog::restored(&generic).is_err());
}

/// A byte that is written between the move and the first look outside is not lost.
#[test]
fn a_uart_that_was_moved_waits_until_it_knows_of_room() {
    let mut uart = Pl011::restored(&SavedPl011::default()).unwrap();
    assert_eq!(uart.write(crate::PL011_DR, WORD, 7), crate::Effect::None);
    assert_eq!((uart.take_transmit(), uart.take_transmit()), (Some(7), None));
}

/// Of each list as many values are read as any VM may have, and one more is refused by the list's name.
#[test]
fn no_list_is_longer_than_any_vms() {
    let bytes = |count| core::iter::repeat_n(b'x', count).collect();
    let uart = |input, model| SavedUart { model, input };
    assert_bounded("SavedUart.input", 4096, |count| uart(bytes(count), SavedPl011::default()));
    assert_bounded("SavedPl011.received", 32, |count| {
        uart(bytes(0), SavedPl011 { received: bytes(count), ..SavedPl011::default() })
    });
    assert_bounded("SavedPl011.to_send", 32, |count| {
        uart(bytes(0), SavedPl011 { to_send: bytes(count), ..SavedPl011::default() })
    });
}
