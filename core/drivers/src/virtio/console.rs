//! The console with several ports (section 5.3), of which one, known by its name, is ours.
//!
//! Every port has a queue for each direction. The device has two more, by which it announces ports, their names, and whether the
//! other end is open. Bytes go in the order of the buffers; a port whose other end is closed accepts bytes and loses them.
//! Nothing here waits: a caller that needs room looks again after an interrupt.

use super::queue::Queue;
use super::{Broken, Shape, Transport, Unusable, begin, finish, register, set_up};

/// The device ID of a console.
pub const DEVICE_ID: u32 = 3;

/// VIRTIO_CONSOLE_F_MULTIPORT.
const FEATURE_PORTS: u64 = 1 << 1;
/// Where the configuration space says how many ports there may be.
const CONFIG_PORTS: u64 = register::CONFIG + 4;

/// As many ports are looked at, the first ones.
const PORTS: u32 = 2;
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
/// The longest control message that is looked at: its head, and a name.
const MESSAGE: usize = 64;
const HEAD: usize = 8;

const RECEIVE: Shape = Shape { count: 8, length: 4096, device_writes: true };
const TRANSMIT: Shape = Shape { count: 16, length: 4096, device_writes: false };
const MESSAGES_IN: Shape = Shape { count: 16, length: MESSAGE as u32, device_writes: true };
const MESSAGES_OUT: Shape = Shape { count: 16, length: HEAD as u32, device_writes: false };

/// Bytes that [`Console::receive`] needs room for.
pub const MOST_AT_ONCE: usize = RECEIVE.length as usize;
/// Bytes in a buffer for [`Console::fill`].
pub const BUFFER: u32 = TRANSMIT.length;

/// As many bytes as [`Console::start`] lays out, with room to spare for their alignment.
pub const MEMORY: u64 = 256 << 10;

/// What is said on the control queues.
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_REMOVE: u16 = 2;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// A port's two queues.
#[derive(Debug)]
struct Port<T: Transport> {
    receive: Queue<T::Rings>,
    transmit: Queue<T::Rings>,
    /// Somebody is at the other end.
    is_open: bool,
    /// The device was given buffers to fill.
    is_stocked: bool,
}

/// A console of which one port is ours.
#[derive(Debug)]
pub struct Console<T: Transport> {
    transport: T,
    name: &'static str,
    messages_in: Queue<T::Rings>,
    messages_out: Queue<T::Rings>,
    ports: [Option<Port<T>>; PORTS as usize],
    /// The number of ours.
    ours: Option<u32>,
    /// The device broke its rules: whatever it says from then on is not heard.
    is_broken: bool,
}

impl<T: Transport> Console<T> {
    /// Starts the device; the port called `name` will be ours.
    ///
    /// # Errors
    /// If it is of no use. It is not running then.
    pub fn start(mut transport: T, name: &'static str) -> Result<Self, Unusable> {
        begin(&transport, FEATURE_PORTS, 0).map_err(
            |why| {
                if why == Unusable::Features { Unusable::OnePort } else { why }
            },
        )?;
        let known = transport.read(CONFIG_PORTS).min(PORTS);
        let mut ports = [const { None }; PORTS as usize];
        for (number, port) in (0..known).zip(&mut ports) {
            let first = first_queue(number);
            let receive = set_up(&mut transport, first, RECEIVE)?;
            let mut transmit = set_up(&mut transport, first + 1, TRANSMIT)?;
            // Whoever wants room takes buffers back itself.
            transmit.set_interrupts(false);
            *port = Some(Port { receive, transmit, is_open: false, is_stocked: false });
        }
        let mut messages_in = set_up(&mut transport, CONTROL_RECEIVE, MESSAGES_IN)?;
        let mut messages_out = set_up(&mut transport, CONTROL_TRANSMIT, MESSAGES_OUT)?;
        messages_out.set_interrupts(false);
        finish(&transport);
        messages_in.offer_all();
        messages_in.notify(&transport);
        let mut console = Self { transport, name, messages_in, messages_out, ports, ours: None, is_broken: false };
        // The queue is empty, so there is room.
        let _ = console.say(0, event::DEVICE_READY, 1);
        Ok(console)
    }

    /// Whether our port is there, with somebody at its other end.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.port().is_some_and(|port| port.is_open)
    }

    /// Takes note of what the device has said.
    ///
    /// # Errors
    /// If it broke its rules; it was reset, and nothing works any more.
    pub fn attend(&mut self) -> Result<(), Broken> {
        if self.is_broken {
            return Ok(());
        }
        let done = self.try_attend();
        self.reset_if_broken(done)
    }

    /// A buffer to be filled and sent, if there is one, or whoever is at the other end has yet to take what was sent.
    ///
    /// # Errors
    /// As [`Console::attend`].
    pub fn room(&mut self) -> Result<Option<u16>, Broken> {
        let done = self.try_room();
        self.reset_if_broken(done)
    }

    /// Whether the device is to interrupt when there is room.
    pub fn wait_for_room(&mut self, wait: bool) {
        if let Some(port) = self.port_mut() {
            port.transmit.set_interrupts(wait);
        }
    }

    /// Writes into a buffer that [`Console::room`] gave.
    pub fn fill(&mut self, buffer: u16, offset: u32, bytes: &[u8]) {
        if let Some(port) = self.port_mut() {
            port.transmit.fill(buffer, offset, bytes);
        }
    }

    /// Sends the first `length` bytes of such a buffer.
    pub fn send(&mut self, buffer: u16, length: u32) {
        let Some(port) = self.ours.and_then(|ours| self.ports.get_mut(ours as usize)).and_then(Option::as_mut) else {
            return;
        };
        port.transmit.offer(buffer, length);
        port.transmit.notify(&self.transport);
    }

    /// Whether the device has taken all that was sent.
    ///
    /// # Errors
    /// As [`Console::attend`].
    pub fn is_drained(&mut self) -> Result<bool, Broken> {
        self.room()?;
        Ok(self.port().is_none_or(|port| port.transmit.is_at_rest()))
    }

    /// Moves what came next to `into`, which has room for [`MOST_AT_ONCE`], and says how much that is: 0 for nothing.
    ///
    /// # Errors
    /// As [`Console::attend`].
    pub fn receive(&mut self, into: &mut [u8]) -> Result<usize, Broken> {
        let done = self.try_receive(into);
        self.reset_if_broken(done)
    }

    fn port(&self) -> Option<&Port<T>> {
        self.ports.get(self.ours? as usize)?.as_ref()
    }

    fn port_mut(&mut self) -> Option<&mut Port<T>> {
        self.ports.get_mut(self.ours? as usize)?.as_mut()
    }

    fn reset_if_broken<V>(&mut self, done: Result<V, Broken>) -> Result<V, Broken> {
        if done.is_err() {
            self.transport.write(register::STATUS, 0);
            self.ours = None;
            self.is_broken = true;
        }
        done
    }

    fn try_room(&mut self) -> Result<Option<u16>, Broken> {
        let Some(port) = self.port_mut() else {
            return Ok(None);
        };
        while port.transmit.take()?.is_some() {}
        Ok(port.transmit.unused())
    }

    fn try_receive(&mut self, into: &mut [u8]) -> Result<usize, Broken> {
        let Some(port) = self.ours.and_then(|ours| self.ports.get_mut(ours as usize)).and_then(Option::as_mut) else {
            return Ok(0);
        };
        // A device may give a buffer back that it has written nothing into. It has it again at once: one that does nothing else
        // would keep us here for ever.
        for _ in 0..RECEIVE.count {
            let Some((buffer, written)) = port.receive.take()? else {
                return Ok(0);
            };
            let count = into.len().min(written as usize);
            port.receive.copy(buffer, into.get_mut(..count).unwrap_or_default());
            port.receive.offer(buffer, RECEIVE.length);
            port.receive.notify(&self.transport);
            if count > 0 {
                return Ok(count);
            }
        }
        Err(Broken("it gives buffers back that hold nothing, again and again"))
    }

    fn try_attend(&mut self) -> Result<(), Broken> {
        // No more than it was given, so that it ends whatever the device does.
        for _ in 0..MESSAGES_IN.count {
            let Some((buffer, written)) = self.messages_in.take()? else {
                break;
            };
            let mut message = [0; MESSAGE];
            self.messages_in.copy(buffer, &mut message);
            self.messages_in.offer(buffer, MESSAGES_IN.length);
            self.messages_in.notify(&self.transport);
            self.hear(message.get(..written as usize).unwrap_or(&message))?;
        }
        Ok(())
    }

    /// What the device said: a port's number, the event, a value, and behind that perhaps a name.
    fn hear(&mut self, message: &[u8]) -> Result<(), Broken> {
        let Some((&[p0, p1, p2, p3, e0, e1, v0, v1], name)) = message.split_first_chunk::<HEAD>() else {
            return Ok(());
        };
        let number = u32::from_le_bytes([p0, p1, p2, p3]);
        let Some(Some(port)) = self.ports.get_mut(number as usize) else {
            return Ok(());
        };
        match u16::from_le_bytes([e0, e1]) {
            event::PORT_ADD => self.say(number, event::PORT_READY, 1),
            // A port may be taken away, and come back: by another number, or by its own with another name.
            event::PORT_NAME => {
                let is_its_name = name.strip_suffix(b"\0").unwrap_or(name) == self.name.as_bytes();
                if !is_its_name || self.ours.is_some_and(|ours| ours != number) {
                    self.ours = self.ours.filter(|&ours| ours != number);
                    return Ok(());
                }
                self.ours = Some(number);
                if !core::mem::replace(&mut port.is_stocked, true) {
                    port.receive.offer_all();
                }
                port.receive.notify(&self.transport);
                self.say(number, event::PORT_OPEN, 1)
            }
            event::PORT_OPEN => {
                port.is_open = u16::from_le_bytes([v0, v1]) != 0;
                Ok(())
            }
            event::PORT_REMOVE => {
                port.is_open = false;
                self.ours = self.ours.filter(|&ours| ours != number);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn say(&mut self, port: u32, event: u16, value: u16) -> Result<(), Broken> {
        while self.messages_out.take()?.is_some() {}
        let buffer = self.messages_out.unused().ok_or(Broken("it does not listen to what it is told"))?;
        let [[p0, p1, p2, p3], [e0, e1, v0, v1]] =
            [port.to_le_bytes(), (u32::from(value) << 16 | u32::from(event)).to_le_bytes()];
        self.messages_out.fill(buffer, 0, &[p0, p1, p2, p3, e0, e1, v0, v1]);
        self.messages_out.offer(buffer, MESSAGES_OUT.length);
        self.messages_out.notify(&self.transport);
        Ok(())
    }
}

/// The number of a port's first queue, by which it receives; the next one transmits.
const fn first_queue(port: u32) -> u16 {
    if port == 0 { 0 } else { 2 * port as u16 + 2 }
}

#[cfg(test)]
mod tests {
    use super::first_queue;

    /// Two queues for port 0, two for control messages, and then two for each further port (section 5.3.2).
    #[test]
    fn queues_are_numbered_port_by_port() {
        assert_eq!([0, 1, 2, 5].map(first_queue), [0, 4, 6, 12]);
    }
}
