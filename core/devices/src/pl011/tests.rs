//! The UART against what Linux's amba-pl011 driver does with it.

use std::vec::Vec;

use super::{CR_LBE, FR_BUSY, FR_RXFE, FR_RXFF, FR_TXFE, FR_TXFF, INTERRUPT_RX, INTERRUPT_TX, Pl011, register};
use crate::{AccessSize, Effect};

const WORD: AccessSize = AccessSize::Word;
const RECEIVE_INTERRUPTS: u64 = 0x50;
const TRANSMIT_INTERRUPT: u64 = 0x20;

/// A UART as the driver leaves it after opening: FIFOs on, triggers at half, receive interrupts on.
fn opened() -> Pl011 {
    let mut uart = Pl011::new();
    let settings = [
        (register::IFLS, 0x12),
        (register::LCR_H, 0x70),
        (register::CR, 0xf01),
        (register::ICR, 0x7ff),
        (register::IMSC, RECEIVE_INTERRUPTS),
    ];
    for (offset, value) in settings {
        assert_eq!(uart.write(offset, WORD, value), Effect::None);
    }
    uart
}

fn flags(uart: &mut Pl011) -> u32 {
    uart.read(register::FR, WORD) as u32
}

#[test]
fn identification_is_that_of_r1p5() {
    let mut uart = Pl011::new();
    let id: Vec<u64> = (0xfe0..0x1000).step_by(4).map(|offset| uart.read(offset, WORD)).collect();
    assert_eq!(id, [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn reset_values_are_the_manuals() {
    let mut uart = Pl011::new();
    assert_eq!(uart.read(register::CR, WORD), 0x300);
    assert_eq!(uart.read(register::IFLS, WORD), 0x12);
    assert_eq!(flags(&mut uart) & !7, FR_TXFE | FR_RXFE);
    assert_eq!(uart.read(register::RIS, WORD), 0);
    assert!(!uart.line());
}

#[test]
fn bytes_leave_at_once_even_before_the_guest_enables_the_uart() {
    let mut uart = Pl011::new();
    assert_eq!(uart.write(register::DR, AccessSize::Byte, 0x41), Effect::Transmit(b'A'));
    assert_eq!(flags(&mut uart) & (FR_TXFE | FR_TXFF | FR_BUSY), FR_TXFE);
}

#[test]
fn transmit_interrupt_comes_after_writing_and_stays_away_when_there_is_nothing_to_say() {
    let mut uart = opened();
    // The driver fills the FIFO, then unmasks the interrupt if text is left over.
    let _ = uart.write(register::DR, WORD, b'a'.into());
    let _ = uart.write(register::IMSC, WORD, RECEIVE_INTERRUPTS | TRANSMIT_INTERRUPT);
    assert!(uart.line());
    // It has nothing more: it masks the interrupt, and that is the end of it.
    let _ = uart.write(register::IMSC, WORD, RECEIVE_INTERRUPTS);
    assert!(!uart.line());
    // One that clears and leaves it unmasked isn't called again either.
    let _ = uart.write(register::IMSC, WORD, TRANSMIT_INTERRUPT);
    let _ = uart.write(register::ICR, WORD, TRANSMIT_INTERRUPT);
    assert!(!uart.line());
}

#[test]
fn a_blocked_uart_keeps_a_whole_fifo_and_wakes_the_driver_when_half_of_it_is_gone() {
    let mut uart = opened();
    let _ = uart.write(register::IMSC, WORD, TRANSMIT_INTERRUPT);
    uart.set_transmit_blocked(true);
    let mut count = 0u8;
    while flags(&mut uart) & FR_TXFF == 0 {
        assert_eq!(uart.write(register::DR, WORD, count.into()), Effect::None);
        count += 1;
    }
    assert_eq!(count, 32);
    assert!(!uart.line());
    assert_eq!(flags(&mut uart) & (FR_BUSY | FR_TXFE), FR_BUSY);

    uart.set_transmit_blocked(false);
    for expected in 0..16 {
        assert!(!uart.line());
        assert_eq!(uart.take_transmit(), Some(expected));
    }
    assert!(uart.line());
    // The interrupt handler writes half a FIFO without looking at TXFF. Order and every byte are kept.
    for byte in 32..48u8 {
        assert_eq!(uart.write(register::DR, WORD, byte.into()), Effect::None);
    }
    assert!(!uart.line());
    let rest: Vec<u8> = core::iter::from_fn(|| uart.take_transmit()).collect();
    assert_eq!(rest, (16..48).collect::<Vec<u8>>());
    assert_eq!(uart.write(register::DR, WORD, 7), Effect::Transmit(7));
}

#[test]
fn without_fifos_one_byte_waits() {
    let mut uart = Pl011::new();
    uart.set_transmit_blocked(true);
    let _ = uart.write(register::DR, WORD, 1);
    assert_ne!(flags(&mut uart) & FR_TXFF, 0);
    assert_eq!(uart.read(register::RIS, WORD) as u32 & INTERRUPT_TX, 0);
    assert_eq!(uart.take_transmit(), Some(1));
    assert_ne!(uart.read(register::RIS, WORD) as u32 & INTERRUPT_TX, 0);

    assert!(uart.receive(b'x'));
    assert!(!uart.receive(b'y'));
    assert_ne!(flags(&mut uart) & FR_RXFF, 0);
}

#[test]
fn one_key_interrupts_at_once_and_reading_it_ends_that() {
    let mut uart = opened();
    assert!(uart.receive(b'k'));
    assert!(uart.line());
    assert_eq!(uart.read(register::RIS, WORD), RECEIVE_INTERRUPTS);
    assert_eq!(uart.read(register::DR, AccessSize::Half), b'k'.into());
    assert!(!uart.line());
    assert_eq!(uart.read(register::RIS, WORD), 0);
    assert_ne!(flags(&mut uart) & FR_RXFE, 0);
}

#[test]
fn a_paste_fills_the_fifo_and_no_further() {
    let mut uart = opened();
    let taken = (0..100).take_while(|&byte| uart.receive(byte)).count();
    assert_eq!((taken, uart.receive_space()), (32, 0));
    assert_ne!(uart.read(register::RIS, WORD) as u32 & INTERRUPT_RX, 0);
    for expected in 0..32 {
        assert!(uart.line());
        assert_eq!(uart.read(register::DR, WORD), expected);
    }
    assert!(!uart.line());
    assert_eq!(uart.receive_space(), 32);
}

#[test]
fn clearing_the_receive_interrupts_with_bytes_left_loses_none_of_them() {
    for count in [1, 15, 16, 32] {
        let mut uart = opened();
        for byte in 0..count {
            assert!(uart.receive(byte));
        }
        // Before each byte is taken, and with the interrupts masked meanwhile: what is left is told of.
        for byte in 0..count {
            let _ = uart.write(register::IMSC, WORD, 0);
            let _ = uart.write(register::ICR, WORD, 0x7ff);
            assert!(!uart.line());
            let _ = uart.write(register::IMSC, WORD, RECEIVE_INTERRUPTS);
            assert!(uart.line(), "{} bytes of {count} are left, and nothing says so", count - byte);
            assert_eq!(uart.read(register::DR, WORD), byte.into());
        }
        assert!(!uart.line());
        let _ = uart.write(register::ICR, WORD, 0x7ff);
        assert!(!uart.line());
    }
}

/// What a driver does that knows one of the two receive interrupts (xv6 for `virt` unmasks RXIM and TXIM, and no RTIM): with FIFOs and
/// without, with any trigger, and whether it clears the interrupt before it reads or afterwards.
#[test]
fn each_receive_interrupt_alone_tells_of_every_byte() {
    let without_fifos = [1_u8].map(|count| (0x60, count));
    let with_fifos = [1, 2, 15, 16, 32].map(|count| (0x70, count));
    for (line, count) in without_fifos.into_iter().chain(with_fifos) {
        for (mask, level) in [(0x10, 0), (0x40, 0), (0x10, 4), (0x30, 2)] {
            let mut uart = opened();
            for (offset, value) in [(register::LCR_H, line), (register::IFLS, level << 3), (register::IMSC, mask)] {
                let _ = uart.write(offset, WORD, value);
            }
            for byte in 0..count {
                assert!(uart.receive(byte));
                assert!(uart.line(), "byte {byte} of {count}, mask {mask:#x}");
            }
            for byte in 0..count {
                assert!(uart.line(), "{} bytes of {count} are left, mask {mask:#x}", count - byte);
                assert_eq!(uart.read(register::DR, WORD), byte.into());
            }
            assert!(!uart.line());
            // One comes between the last look at FR and the clearing.
            assert!(uart.receive(b'k'));
            let _ = uart.write(register::ICR, WORD, 0x7ff);
            assert!(uart.line(), "a byte is there, and none can follow; mask {mask:#x}");
            assert_eq!(uart.read(register::DR, WORD), b'k'.into());
            assert!(!uart.line());
            assert!(uart.receive(b'l') && uart.line());
        }
    }
}

#[test]
fn loopback_returns_what_is_sent_and_reports_overrun() {
    let mut uart = opened();
    let _ = uart.write(register::CR, WORD, 0xf81);
    assert!(!uart.receive(b'!'));
    for byte in 0..33u64 {
        assert_eq!(uart.write(register::DR, WORD, byte), Effect::None);
    }
    assert_eq!(uart.read(register::RSR_ECR, WORD), 8);
    let _ = uart.write(register::RSR_ECR, WORD, 0);
    for byte in 0..32 {
        assert_eq!(uart.read(register::DR, WORD), byte);
    }
}

#[test]
fn what_leaves_quietly_changes_nothing_else() {
    let write = |uart: &mut Pl011, register, value: u32| _ = uart.write(register, WORD, value.into());
    let quiet = |prepare: &dyn Fn(&mut Pl011)| {
        let mut uart = Pl011::new();
        prepare(&mut uart);
        uart.transmits_quietly()
    };
    assert!(quiet(&|_| {}), "a UART as it comes");
    assert!(!quiet(&|uart| uart.set_transmit_blocked(true)), "nobody takes bytes");
    assert!(!quiet(&|uart| write(uart, register::CR, CR_LBE)), "it would come back");
    let unmask = |uart: &mut Pl011| write(uart, register::IMSC, INTERRUPT_TX);
    assert!(!quiet(&unmask), "the line would rise");
    let after_a_byte = |uart: &mut Pl011| {
        unmask(uart);
        write(uart, register::DR, 0);
    };
    assert!(quiet(&after_a_byte), "the line is up already");

    // Whenever it says so, a byte leaves and the line stays as it is.
    for steps in 0..4096_u32 {
        let mut uart = Pl011::new();
        for step in 0_u32..6 {
            match steps >> (2 * step) & 3 {
                0 => write(&mut uart, register::IMSC, INTERRUPT_TX * (step & 1)),
                1 => write(&mut uart, register::ICR, 0x7ff),
                2 => uart.set_transmit_blocked(step & 1 == 0),
                _ => write(&mut uart, register::DR, b'x'.into()),
            }
        }
        let (line, quiet, flags) = (uart.line(), uart.transmits_quietly(), uart.flag_register());
        assert_eq!(flags, uart.read(register::FR, WORD), "{steps:#x}");
        let effect = uart.write(register::DR, WORD, u64::from(b'y'));
        if quiet {
            assert_eq!((effect, uart.line()), (Effect::Transmit(b'y'), line), "{steps:#x}");
        }
    }
}

/// What a driver has set up it may read again, in the bits that there are; what only shows something takes no write.
#[test]
fn each_register_keeps_its_own_bits() {
    let mut uart = Pl011::new();
    let kept = [
        (register::ILPR, 0xff),
        (register::IBRD, 0xffff),
        (register::FBRD, 0x3f),
        (register::LCR_H, 0xff),
        (register::CR, 0xff87),
        (register::IFLS, 0x3f),
        (register::IMSC, 0x7ff),
        (register::DMACR, 0x7),
    ];
    for pattern in [0xaaaa_aaaa_u64, 0x5555_5555, 0xffff_ffff, 0] {
        kept.iter().for_each(|&(offset, _)| _ = uart.write(offset, WORD, pattern));
        for (offset, bits) in kept {
            assert_eq!(uart.read(offset, WORD), pattern & bits, "{offset:#x}");
        }
    }
    for offset in [register::FR, register::RIS, register::MIS] {
        let before = uart.clone();
        let _ = uart.write(offset, WORD, 0xffff_ffff);
        assert_eq!(uart, before, "{offset:#x}");
    }
}

#[test]
fn masked_interrupts_are_those_that_are_raised_and_let_through() {
    let mut uart = opened();
    assert!(uart.receive(b'k'));
    let _ = uart.write(register::IMSC, WORD, 0x30);
    assert_eq!((uart.read(register::RIS, WORD), uart.read(register::MIS, WORD)), (0x50, 0x10));
}

/// A part of the data register that lies behind the data takes no byte.
#[test]
fn only_the_data_itself_takes_a_byte() {
    let mut uart = opened();
    assert!(uart.receive(b'k') && uart.receive(b'l'));
    for offset in 1..4 {
        assert_eq!(uart.read(register::DR + offset, AccessSize::Byte), 0);
    }
    assert_eq!(uart.read(register::DR, AccessSize::Byte), b'k'.into());
    assert_eq!(uart.read(register::DR, WORD), b'l'.into());
}

/// By DDI 0183 table 3-4: CTS, DSR and DCD of a terminal that is attached and ready, and what is in the FIFOs of one byte.
#[test]
fn flags_are_the_manuals() {
    let mut uart = Pl011::new();
    assert_eq!(flags(&mut uart), 0x97, "both empty");
    assert!(uart.receive(1));
    assert_eq!(flags(&mut uart), 0xc7, "the receiver's is full");
    uart.set_transmit_blocked(true);
    let _ = uart.write(register::DR, WORD, 1);
    assert_eq!(flags(&mut uart), 0x6f, "and the transmitter's, which is busy with it");
    let _ = uart.write(register::LCR_H, WORD, 0x10);
    assert_eq!(flags(&mut uart), 0x0f, "FIFOs are longer");
}

/// 1/8, 1/4, 1/2, 3/4 and 7/8 of 32 bytes (DDI 0183 table 3-13), and the reserved codes, which nobody uses.
#[test]
fn the_transmit_interrupt_comes_at_the_level_that_was_asked_for() {
    for (code, level) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28), (5, 28), (7, 28)] {
        let mut uart = opened();
        let _ = uart.write(register::IFLS, WORD, code);
        let _ = uart.write(register::IMSC, WORD, TRANSMIT_INTERRUPT);
        uart.set_transmit_blocked(true);
        for _ in 0..32 {
            let _ = uart.write(register::DR, WORD, 0);
        }
        assert!(!uart.line());
        while !uart.line() {
            assert!(uart.take_transmit().is_some(), "it never comes");
        }
        assert_eq!(uart.transmit_pending(), level, "code {code}");
    }
}

/// Overrun is told beside the byte that is read, by its interrupt, and until it is cleared; each byte that is sent is told, too.
#[test]
fn loopback_interrupts_as_a_line_would() {
    let mut uart = opened();
    let _ = uart.write(register::CR, WORD, 0xf81);
    let _ = uart.write(register::DR, WORD, 1);
    assert_eq!(uart.read(register::RIS, WORD), RECEIVE_INTERRUPTS | TRANSMIT_INTERRUPT);
    for byte in 2..=33 {
        let _ = uart.write(register::DR, WORD, byte);
    }
    assert_eq!(uart.read(register::RIS, WORD), RECEIVE_INTERRUPTS | TRANSMIT_INTERRUPT | 1 << 10);
    assert_eq!(uart.read(register::DR, WORD), 1 << 11 | 1);
    let _ = uart.write(register::ICR, WORD, 0x7ff);
    let _ = uart.write(register::RSR_ECR, WORD, 0);
    assert_eq!((uart.read(register::RIS, WORD), uart.read(register::DR, WORD)), (RECEIVE_INTERRUPTS, 2));
}
