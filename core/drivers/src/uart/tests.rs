//! The UARTs over models of them. Those of a 16550 are looked at by their interrupt line, too.

extern crate std;

use core::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::vec::Vec;

use super::*;
use crate::fake::{Access, Fake};

#[test]
fn a_pl011_is_set_up_and_a_generic_uart_is_not() {
    let fake = Fake::new(0x1000);
    let uart = Uart::new(ConsoleKind::Pl011, &fake).unwrap();
    uart.init();
    uart.enable_receive_interrupt();
    uart.quiet_receive_interrupt();
    assert_eq!(
        fake.log(),
        [
            Access::Write32(0x2c, 0x70),
            Access::Write32(0x30, 0x301),
            Access::Write32(0x34, 0),
            Access::Write32(0x38, 0x50),
            Access::Write32(0x44, 0x50),
        ]
    );
    let uart = Uart::new(ConsoleKind::Sbsa, &fake).unwrap();
    uart.init();
    uart.enable_receive_interrupt();
    uart.quiet_receive_interrupt();
    assert_eq!(fake.log(), [Access::Write32(0x38, 0x50), Access::Write32(0x44, 0x50)]);
}

#[test]
fn a_pl011_waits_for_room_and_for_bytes() {
    let fake = Fake::new(0x48);
    let uart = Uart::new(ConsoleKind::Pl011, &fake).unwrap();
    fake.answer(0x18, [1 << 5, 0]);
    assert!(!uart.try_send(b'a'));
    assert!(uart.try_send(b'b'));
    assert_eq!(fake.log(), [Access::Write32(0, u32::from(b'b'))]);
    fake.answer(0x18, [0, 1 << 4]);
    // Flags of errors stand above the byte.
    fake.answer(0, [0xf41]);
    assert_eq!((uart.receive(), uart.receive()), (Some(0x41), None));
}

#[test]
fn too_few_registers_are_refused() {
    let console = |kind, size| Uart::new(kind, &Fake::new(size)).map(|_| ());
    assert_eq!(console(ConsoleKind::Pl011, 0x44), Err(TooSmall { is: 0x44, needed: 0x48 }));
    let kind = |register_shift, register_width| ConsoleKind::Ns16550 { register_shift, register_width };
    assert_eq!(console(kind(0, 1), 5), Err(TooSmall { is: 5, needed: 6 }));
    assert_eq!(console(kind(0, 1), 6), Ok(()));
    assert_eq!(console(kind(2, 4), 0x17), Err(TooSmall { is: 0x17, needed: 0x18 }));
    assert_eq!(console(kind(2, 1), 0x15), Ok(()));
}

/// A 16550 on a board that has its registers `1 << shift` bytes apart and answers accesses of `width` bytes alone.
struct Board {
    shift: u8,
    width: u64,
    is_designware: bool,
    received: RefCell<VecDeque<u8>>,
    sent: RefCell<Vec<u8>>,
    /// The transmitter takes none of the next bytes.
    is_sending: Cell<bool>,
    enabled: Cell<u8>,
    line_control: Cell<u8>,
    fifos: Cell<u8>,
    modem: Cell<u8>,
    /// DesignWare: the line was written to while a byte was on its way.
    busy: Cell<bool>,
    /// DesignWare: bytes are said to wait, though there are none.
    timeout: Cell<bool>,
}

impl Board {
    fn new(shift: u8, width: u64, is_designware: bool) -> Self {
        Self {
            shift,
            width,
            is_designware,
            received: RefCell::default(),
            sent: RefCell::default(),
            is_sending: Cell::new(false),
            enabled: Cell::new(0xf),
            line_control: Cell::new(3),
            fifos: Cell::new(0),
            modem: Cell::new(0),
            busy: Cell::new(false),
            timeout: Cell::new(false),
        }
    }

    fn uart(&self) -> Uart<&Self> {
        let kind = ConsoleKind::Ns16550 { register_shift: self.shift, register_width: self.width as u8 };
        Uart::new(kind, self).unwrap()
    }

    /// Whether its interrupt line is up. Busy detection cannot be disabled.
    fn interrupts(&self) -> bool {
        let waits = !self.received.borrow().is_empty() || self.timeout.get();
        self.modem.get() & 1 << 3 != 0 && (self.busy.get() || self.enabled.get() & 1 != 0 && waits)
    }

    fn register(&self, offset: u64, width: u64) -> u64 {
        assert_eq!(width, self.width, "at {offset:#x}");
        assert!(offset.is_multiple_of(1 << self.shift), "{offset:#x} is between two registers");
        offset >> self.shift
    }

    fn read(&self, offset: u64, width: u64) -> u8 {
        match self.register(offset, width) {
            0 => {
                self.timeout.set(false);
                self.received.borrow_mut().pop_front().unwrap_or(0)
            }
            1 => self.enabled.get(),
            2 if self.busy.get() => 0xc7,
            2 if self.timeout.get() => 0xcc,
            2 if self.interrupts() => 0xc4,
            2 => 0xc1,
            3 => self.line_control.get(),
            5 => {
                let room = if self.is_sending.get() { 0 } else { 0x60 };
                room | u8::from(!self.received.borrow().is_empty())
            }
            31 if self.is_designware => {
                self.busy.set(false);
                0
            }
            other => panic!("register {other} is read"),
        }
    }

    fn write(&self, offset: u64, width: u64, value: u8) {
        let register = self.register(offset, width);
        assert!(register > 1 || self.line_control.get() & 0x80 == 0, "the divisor is written to");
        match register {
            0 => {
                assert!(!self.is_sending.get(), "{value:#x} is lost");
                self.sent.borrow_mut().push(value);
            }
            1 => self.enabled.set(value),
            2 => self.fifos.set(value),
            3 if self.is_designware && self.is_sending.get() => self.busy.set(true),
            3 => self.line_control.set(value),
            4 => self.modem.set(value),
            other => panic!("register {other} is written"),
        }
    }
}

impl Registers for &Board {
    fn size(&self) -> u64 {
        if self.is_designware { 0x100 } else { 8 << self.shift }
    }

    fn read8(&self, offset: u64) -> u8 {
        self.read(offset, 1)
    }

    fn read16(&self, offset: u64) -> u16 {
        u16::from(self.read(offset, 2))
    }

    fn read32(&self, offset: u64) -> u32 {
        u32::from(self.read(offset, 4))
    }

    fn read64(&self, offset: u64) -> u64 {
        u64::from(self.read(offset, 8))
    }

    fn write8(&self, offset: u64, value: u8) {
        self.write(offset, 1, value);
    }

    fn write16(&self, offset: u64, value: u16) {
        self.write(offset, 2, value as u8);
    }

    fn write32(&self, offset: u64, value: u32) {
        self.write(offset, 4, value as u8);
    }

    fn write64(&self, offset: u64, value: u64) {
        self.write(offset, 8, value as u8);
    }
}

/// Boards as there are: registers a byte apart, four apart with narrow and wide accesses, two apart.
fn boards() -> impl Iterator<Item = Board> {
    [(0, 1), (2, 1), (2, 4), (1, 2), (3, 4)]
        .into_iter()
        .flat_map(|(shift, width)| [false, true].map(|is_designware| (shift, width, is_designware)))
        .filter(|&(shift, _, is_designware)| !is_designware || shift == 2)
        .map(|(shift, width, is_designware)| Board::new(shift, width, is_designware))
}

#[test]
fn a_16550_talks_and_listens_wherever_its_registers_are() {
    for board in boards() {
        board.line_control.set(0x80);
        let uart = board.uart();
        uart.init();
        assert_eq!((board.enabled.get(), board.line_control.get(), board.fifos.get()), (0, 3, 1));
        assert_eq!(board.modem.get(), 0b1011, "DTR, RTS and OUT2");
        assert!(uart.try_send(b'x'));
        board.is_sending.set(true);
        assert!(!uart.try_send(b'y'));
        board.is_sending.set(false);
        assert!(uart.try_send(b'z'));
        assert_eq!(*board.sent.borrow(), b"xz");
        board.received.borrow_mut().extend(*b"ok");
        assert_eq!((uart.receive(), uart.receive(), uart.receive()), (Some(b'o'), Some(b'k'), None));
    }
}

/// Where accesses are wider than the registers are apart, they would reach the neighbours.
#[test]
fn accesses_are_no_wider_than_registers_are_apart() {
    let board = Board::new(0, 1, false);
    let kind = ConsoleKind::Ns16550 { register_shift: 0, register_width: 4 };
    assert!(Uart::new(kind, &board).unwrap().try_send(b'x'));
}

#[test]
fn a_16550_interrupts_once_until_it_is_read_empty() {
    for board in boards() {
        let uart = board.uart();
        uart.init();
        board.received.borrow_mut().push_back(b'0');
        assert!(!board.interrupts(), "nobody asked for it yet");
        uart.enable_receive_interrupt();
        for round in 0..3 {
            assert!(board.interrupts(), "round {round}: the byte is not announced");
            uart.quiet_receive_interrupt();
            assert!(!board.interrupts(), "round {round}: the handler would be called for ever");
            board.received.borrow_mut().push_back(b'1');
            assert!(!board.interrupts());
            let mut count = 0;
            while uart.receive().is_some() {
                count += 1;
            }
            assert_eq!(count, 2);
            assert!(!board.interrupts());
            board.received.borrow_mut().push_back(b'2');
        }
        // The handler on another CPU, between a look that found nothing and the next: the reader is woken, and looks again.
        while uart.receive().is_some() {}
        uart.quiet_receive_interrupt();
        assert_eq!(uart.receive(), None);
        board.received.borrow_mut().push_back(b'3');
        assert!(board.interrupts());
    }
}

#[test]
fn a_designware_is_talked_out_of_its_own_interrupts() {
    let board = Board::new(2, 4, true);
    let uart = board.uart();
    // It still sends what the firmware wrote, with the line as it has to be.
    board.is_sending.set(true);
    uart.init();
    assert!(!board.interrupts());
    uart.enable_receive_interrupt();
    board.busy.set(true);
    assert!(board.interrupts());
    uart.quiet_receive_interrupt();
    assert_eq!(uart.receive(), None);
    assert!(!board.interrupts(), "the interrupt for a line that is busy stays");
    board.timeout.set(true);
    assert!(board.interrupts());
    uart.quiet_receive_interrupt();
    assert_eq!(uart.receive(), None);
    assert!(!board.interrupts(), "the timeout stays");
    // A timeout with bytes keeps them.
    board.received.borrow_mut().push_back(b'x');
    board.timeout.set(true);
    uart.quiet_receive_interrupt();
    assert_eq!((uart.receive(), uart.receive()), (Some(b'x'), None));
}

/// Whoever says that it is busy without having the register that takes this back is not read beyond its end.
#[test]
fn the_status_of_a_designware_is_read_where_there_is_one() {
    for (size, reads) in [(0x7c, 0), (0x7f, 0), (0x80, 1), (0x100, 1)] {
        let fake = Fake::new(size);
        fake.freeze(2 << 2, 7);
        let uart = Uart::new(ConsoleKind::Ns16550 { register_shift: 2, register_width: 4 }, &fake).unwrap();
        uart.quiet_receive_interrupt();
        assert_eq!(fake.reads_of(31 << 2), reads, "{size:#x} bytes of registers");
    }
}
