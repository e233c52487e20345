//! A UART at a line: a [`Pl011`], what was typed for it and waits for room in its FIFO, and where its output goes.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use pack::{Damaged, Reader, Writer};

use crate::Effect;
use crate::bus::{Access, Change, Device, Outside, Request, Stream};
use crate::pl011::{PL011_FR, Pl011, SavedPl011};
use crate::saved::Unfit;

/// Bytes of input that wait for a guest to take them.
const INPUT: usize = 4096;

/// A UART and its line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uart {
    model: Pl011,
    /// Input that the FIFO has no room for yet. Its memory is taken once, here.
    input: VecDeque<u8>,
    /// Where its output goes; nowhere, if nothing is at the line's other end.
    stream: Option<Stream>,
}

/// The state of a UART, and of what was typed for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedUart {
    /// Its registers and FIFOs.
    pub model: SavedPl011,
    /// What waits to get in, the oldest first.
    pub input: Vec<u8>,
}

impl SavedUart {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedUart as "uart" { model, input[INPUT] });

impl Uart {
    /// A UART after power on, whose output goes to `stream`.
    #[must_use]
    pub fn new(stream: Option<Stream>) -> Self {
        Self { model: Pl011::new(), input: VecDeque::with_capacity(INPUT), stream }
    }

    /// The UART itself.
    #[inline(always)]
    #[must_use]
    pub const fn model(&self) -> &Pl011 {
        &self.model
    }

    /// A byte leaves of which somebody else has seen to it that it [leaves quietly](Pl011::transmits_quietly).
    #[inline(always)]
    pub fn has_transmitted(&mut self, byte: u8) {
        let _ = self.model.write(crate::PL011_DR, crate::AccessSize::Byte, byte.into());
    }

    /// Input arrives. What does not fit is lost, as on a real line.
    pub fn receive(&mut self, bytes: &[u8]) {
        let room = INPUT.saturating_sub(self.input.len());
        self.input.extend(bytes.iter().take(room));
        self.feed();
    }

    /// Takes the state out. Where its output goes is not part of it.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn save(&self) -> Result<SavedUart, Damaged> {
        let Self { model, input, stream: _ } = self;
        let mut waiting = Vec::new();
        waiting.try_reserve_exact(input.len()).map_err(|_| Damaged::NoMemory)?;
        waiting.extend(input);
        Ok(SavedUart { model: model.save()?, input: waiting })
    }

    /// Puts a state in. Nothing leaves until the UART is polled, which asks whether there is room outside.
    ///
    /// # Errors
    /// If it is none that a UART can have; nothing has changed then.
    pub fn restore(&mut self, saved: &SavedUart) -> Result<(), Unfit> {
        let SavedUart { model, input } = saved;
        if input.len() > INPUT {
            return Err(Unfit("more input waits for the UART than it keeps"));
        }
        self.model = Pl011::restored(model)?;
        self.input.clear();
        self.input.extend(input);
        Ok(())
    }

    fn feed(&mut self) {
        while self.model.receive_space() > 0
            && let Some(byte) = self.input.pop_front()
        {
            self.model.receive(byte);
        }
    }

    /// Sends a byte. Says whether the line takes another one.
    fn send(&self, byte: u8, outside: &dyn Outside) -> bool {
        self.stream.is_none_or(|stream| outside.send_byte(stream, byte))
    }
}

impl Device for Uart {
    fn read(&mut self, access: &Access, outside: &dyn Outside) -> u64 {
        let value = self.model.read(access.offset, access.size);
        self.feed();
        if access.offset == PL011_FR && self.model.transmit_pending() > 0 {
            // It will look again and again until the outside has taken bytes.
            outside.request(Request::Yield);
        }
        value
    }

    fn write(&mut self, access: &Access, value: u64, outside: &dyn Outside) {
        if let Effect::Transmit(byte) = self.model.write(access.offset, access.size, value) {
            let is_room = self.send(byte, outside);
            self.model.set_transmit_blocked(!is_room);
        }
        self.feed();
    }

    fn lines(&self) -> u32 {
        self.model.line().into()
    }

    fn poll(&mut self, outside: &dyn Outside) {
        // Asked, not taken for granted: a byte that finds no room outside is lost.
        let mut is_room = self.stream.is_none_or(|stream| outside.has_room(stream));
        while is_room && let Some(byte) = self.model.take_transmit() {
            is_room = self.send(byte, outside);
        }
        self.model.set_transmit_blocked(!is_room);
        self.feed();
    }

    fn change(&mut self, change: Change, _outside: &dyn Outside) {
        match change {
            Change::Reset => {
                self.model = Pl011::new();
                self.input.clear();
            }
            Change::PowerOff
            | Change::Forget
            | Change::Pause
            | Change::Resume
            | Change::Stall
            | Change::Unstall
            | Change::Fork => {}
        }
    }

    fn save_to(&self, out: &mut Writer) {
        out.taken_out(self.save());
    }

    fn restore_from(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        Ok(self.restore(&from.part()?)?)
    }
}
