//! The platform devices under random accesses and random events from outside.

use std::collections::VecDeque;

use devices::{AccessSize, Effect, MemoryTimer, Pl011, Pl031, Pl061};
use units::Hz;

use super::input::Input;

const DATA: u64 = 0x00;
const FLAGS: u64 = 0x18;
const CONTROL: u64 = 0x30;
const TRANSMIT_FULL: u64 = 1 << 5;
const LOOPBACK: u64 = 1 << 7;

/// An offset, most often that of a register, sometimes anything.
fn offset(input: &mut Input<'_>) -> u64 {
    match input.byte() {
        255 => input.double(),
        254 => u64::from(input.half()),
        slot @ 224..=253 => 0xf88 + u64::from(slot - 224) * 4,
        slot => u64::from(slot) * 4,
    }
}

fn size(input: &mut Input<'_>) -> AccessSize {
    AccessSize::from_sas(input.byte().into())
}

/// The UART: every byte that the guest writes while there is room comes out once, in order, whatever else happens; so
/// does every byte that comes in.
pub fn pl011(data: &[u8]) {
    let mut input = Input(data);
    let mut uart = Pl011::new();
    let mut sent = VecDeque::new();
    let mut arriving = VecDeque::new();
    let mut blocked = false;
    while !input.is_empty() {
        match input.byte() % 6 {
            0 => {
                let byte = input.byte();
                let space = uart.receive_space();
                let loopback = uart.read(CONTROL, AccessSize::Word) & LOOPBACK != 0;
                let taken = uart.receive(byte);
                assert_eq!(taken, space > 0 && !loopback);
                if taken {
                    arriving.push_back(byte);
                }
            }
            1 => {
                blocked = !blocked;
                uart.set_transmit_blocked(blocked);
            }
            2 => {
                let byte = uart.take_transmit();
                assert_eq!(byte, sent.pop_front());
            }
            3 => {
                let offset = offset(&mut input);
                let size = size(&mut input);
                let value = uart.read(offset, size);
                assert_eq!(value & !size.mask(), 0);
                if offset == DATA {
                    assert_eq!(value as u8, arriving.pop_front().unwrap_or(0));
                }
            }
            choice => {
                let offset = if choice == 4 { DATA } else { offset(&mut input) };
                let value = input.word().into();
                write_pl011(&mut uart, (offset, value), &mut sent, &mut arriving);
            }
        }
        assert_eq!(uart.transmit_pending(), sent.len());
        assert!(sent.len() <= 32 && arriving.len() <= 32 && uart.receive_space() <= 32);
    }
}

fn write_pl011(uart: &mut Pl011, (offset, value): (u64, u64), sent: &mut VecDeque<u8>, arriving: &mut VecDeque<u8>) {
    let full = uart.read(FLAGS, AccessSize::Word) & TRANSMIT_FULL != 0;
    let loopback = uart.read(CONTROL, AccessSize::Word) & LOOPBACK != 0;
    let space = uart.receive_space();
    let effect = uart.write(offset, AccessSize::Word, value);
    if offset != DATA {
        assert_eq!(effect, Effect::None);
    } else if loopback {
        assert_eq!(effect, Effect::None);
        if space > 0 {
            arriving.push_back(value as u8);
        }
    } else if effect != Effect::None {
        assert!(sent.is_empty());
        assert_eq!(effect, Effect::Transmit(value as u8));
    } else if !full {
        sent.push_back(value as u8);
    }
}

/// The clock, the GPIO controller and the timer in memory: no panic, and an alarm or a deadline that is asked for comes in time.
pub fn rest(data: &[u8]) {
    let mut input = Input(data);
    let (mut clock, mut gpio, mut timer) = (Pl031::new(), Pl061::new(), MemoryTimer::new(Hz(62_500_000)));
    let mut now = 1 << 31;
    while !input.is_empty() {
        match input.byte() % 8 {
            0 => now += u64::from(input.word()),
            1 => gpio.set_input(input.byte(), input.byte() & 1 != 0),
            2 => {
                if let Some(alarm) = clock.next_alarm() {
                    assert!(!clock.line());
                    now = now.max(alarm);
                    clock.advance(now);
                    assert!(clock.line());
                }
            }
            3 | 4 => {
                let (offset, size) = (offset(&mut input), size(&mut input));
                assert_eq!(clock.read(offset, size, now) & !size.mask(), 0);
                assert_eq!(gpio.read(offset, size) & !size.mask(), 0);
                let frame = usize::from(input.byte() & 1);
                assert_eq!(timer.read_frame(frame, offset, size, now) & !size.mask(), 0);
            }
            5 => assert_eq!(
                gpio.write(0x400 + u64::from(input.byte()), AccessSize::Word, input.word().into()),
                Effect::None
            ),
            _ => {
                let (offset, size, value) = (offset(&mut input), size(&mut input), input.double());
                let effect = clock.write(offset, size, value, now);
                assert!(matches!(effect, Effect::None | Effect::AlarmChanged));
                assert_eq!(gpio.write(offset, size, value), Effect::None);
                timer.write_frame(usize::from(input.byte() & 1), offset, size, value, now);
                timer.advance(now);
                let before = timer;
                if let Some(deadline) = timer.deadline(now) {
                    timer.advance(deadline);
                    assert_ne!(timer, before, "no line moves at its deadline");
                    timer.advance(now);
                }
            }
        }
    }
}
