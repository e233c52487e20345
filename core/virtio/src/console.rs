//! The console (section 5.3) with one port: queue 0 receives, queue 1 transmits.
//!
//! Between the guest and the outside lies a ring for each direction. Output that the outside doesn't take fills its
//! ring, and then the guest's buffers stay in the queue; [`Progress::Blocked`] says so. Input that the guest doesn't take
//! fills its ring, and then [`Console::push_input`] refuses more.

use devices::saved::Unfit;
use devices::{Outside, Stream};
use pack::Damaged;

use crate::chain::Chain;
use crate::device::{Device, Progress, VirtioKind};
use crate::memory::GuestMemory;
use crate::queue::{CHAINS_A_CALL, LARGEST, Queue, QueueError};
use crate::ring::Ring;
use crate::saved::SavedConsole;

/// Number of the queue that carries input to the guest.
pub const RECEIVE: u16 = 0;
/// Number of the queue that carries the guest's output.
pub const TRANSMIT: u16 = 1;

/// VIRTIO_CONSOLE_F_SIZE: the configuration space tells the window's size.
const FEATURE_SIZE: u64 = 1 << 0;

pub(crate) const INPUT_CAPACITY: usize = 1024;
pub(crate) const OUTPUT_CAPACITY: usize = 4096;
/// How many bytes are copied at a time, by way of the stack.
const PIECE: usize = 256;

/// A console.
#[derive(Debug)]
pub struct Console {
    /// The configuration space: columns, rows, both 16 bits wide.
    config: [u8; 4],
    input: Ring,
    output: Ring,
    receiving: Chain,
    transmitting: Chain,
    /// A chain is being read and was not returned yet.
    in_transmission: bool,
    /// As well, one that is being filled.
    in_reception: bool,
    /// Where the outside takes output; nowhere, if nobody listens.
    stream: Option<Stream>,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// A console whose window has no known size.
    #[must_use]
    pub fn new() -> Self {
        Self {
            config: [0; 4],
            input: Ring::new(INPUT_CAPACITY),
            output: Ring::new(OUTPUT_CAPACITY),
            receiving: Chain::new(LARGEST),
            transmitting: Chain::new(LARGEST),
            in_transmission: false,
            in_reception: false,
            stream: None,
        }
    }

    /// A console whose output goes to `stream`.
    #[must_use]
    pub fn connected(stream: Stream) -> Self {
        Self { stream: Some(stream), ..Self::new() }
    }

    /// Sets the window's size in characters; follow it with [`Mmio::config_changed`](crate::Mmio::config_changed).
    pub fn set_size(&mut self, columns: u16, rows: u16) {
        let [columns_low, columns_high] = columns.to_le_bytes();
        let [rows_low, rows_high] = rows.to_le_bytes();
        self.config = [columns_low, columns_high, rows_low, rows_high];
    }

    /// Takes in bytes for the guest, as many as there is room for, and returns how many. Then process queue
    /// [`RECEIVE`].
    pub fn push_input(&mut self, bytes: &[u8]) -> usize {
        self.input.push(bytes)
    }

    /// How many bytes of output wait.
    #[must_use]
    pub fn output_pending(&self) -> usize {
        self.output.len()
    }

    /// Hands the guest's output to `sink`, which returns how many bytes it took, until none is left or `sink` takes fewer
    /// than offered; returns how many it took in all. If processing was [`Progress::Blocked`], process queue
    /// [`TRANSMIT`] again.
    pub fn take_output(&mut self, mut sink: impl FnMut(&[u8]) -> usize) -> usize {
        let mut total = 0;
        loop {
            let offered = self.output.front().len();
            if offered == 0 {
                return total;
            }
            let taken = sink(self.output.front()).min(offered);
            self.output.consume(taken);
            total += taken;
            if taken < offered {
                return total;
            }
        }
    }

    fn receive<M: GuestMemory>(&mut self, queue: &mut Queue, memory: &M) -> Result<Progress, QueueError> {
        for _ in 0..CHAINS_A_CALL {
            if !self.in_reception {
                if self.input.len() == 0 || !queue.pop(memory, &mut self.receiving)? {
                    return Ok(Progress::Idle);
                }
                self.in_reception = true;
            }
            while self.input.len() > 0 && self.receiving.unwritten() > 0 {
                let written = self.receiving.write(memory, self.input.front())?;
                self.input.consume(written);
            }
            queue.push(memory, &self.receiving)?;
            self.in_reception = false;
        }
        Ok(Progress::More)
    }

    fn transmit<M: GuestMemory>(&mut self, queue: &mut Queue, memory: &M) -> Result<Progress, QueueError> {
        // One call copies no more than its ring has room for.
        for _ in 0..CHAINS_A_CALL {
            if !self.in_transmission {
                if !queue.pop(memory, &mut self.transmitting)? {
                    return Ok(Progress::Idle);
                }
                self.in_transmission = true;
            }
            while self.transmitting.unread() > 0 {
                if self.output.space() == 0 {
                    return Ok(Progress::Blocked);
                }
                let mut piece = [0; PIECE];
                let wanted = PIECE.min(self.output.space());
                let read = self.transmitting.read(memory, piece.get_mut(..wanted).unwrap_or(&mut []))?;
                self.output.push(piece.get(..read).unwrap_or(&[]));
            }
            queue.push(memory, &self.transmitting)?;
            self.in_transmission = false;
        }
        Ok(Progress::More)
    }
}

impl Device for Console {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Console
    }

    fn features(&self) -> u64 {
        FEATURE_SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[LARGEST, LARGEST]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// Bytes already taken from the guest or meant for it stay; a buffer half read does not.
    fn reset(&mut self) {
        self.in_transmission = false;
        self.in_reception = false;
    }

    fn let_go(&mut self, index: usize) {
        match u16::try_from(index) {
            Ok(RECEIVE) => self.in_reception = false,
            Ok(TRANSMIT) => self.in_transmission = false,
            _ => {}
        }
    }

    fn exchange(&mut self, outside: &dyn Outside) -> usize {
        let stream = self.stream;
        // What nobody listens to is gone.
        self.take_output(|bytes| stream.map_or(bytes.len(), |stream| outside.send(stream, bytes)));
        self.output_pending()
    }

    type Saved = SavedConsole;

    fn save(&self) -> Result<SavedConsole, Damaged> {
        let Self { config, input, output, receiving, transmitting, in_transmission, in_reception, stream: _ } = self;
        Ok(SavedConsole {
            config: *config,
            input: input.save()?,
            output: output.save()?,
            receiving: in_reception.then(|| receiving.save()).transpose()?,
            transmitting: in_transmission.then(|| transmitting.save()).transpose()?,
        })
    }

    fn restore(&mut self, saved: &SavedConsole) -> Result<(), Unfit> {
        let SavedConsole { config, input, output, receiving, transmitting } = saved;
        if !self.input.fits(input) || !self.output.fits(output) {
            return Err(Unfit("more bytes wait in a virtio console than it keeps"));
        }
        // We look at all of it before we put any of it in: a second console for that would take memory.
        let into_it = receiving.as_ref().map(|chain| Ok((chain, self.receiving.look_at(chain)?))).transpose()?;
        let out_of_it =
            transmitting.as_ref().map(|chain| Ok((chain, self.transmitting.look_at(chain)?))).transpose()?;
        self.config = *config;
        self.input.restore(input);
        self.output.restore(output);
        self.in_reception = into_it.is_some();
        self.in_transmission = out_of_it.is_some();
        if let Some((chain, places)) = into_it {
            self.receiving.put(chain, places);
        }
        if let Some((chain, places)) = out_of_it {
            self.transmitting.put(chain, places);
        }
        Ok(())
    }

    fn process<M: GuestMemory>(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &M,
    ) -> Result<Progress, QueueError> {
        match (index, queues) {
            (0, [receive, ..]) => self.receive(receive, memory),
            (1, [_, transmit, ..]) => self.transmit(transmit, memory),
            _ => Ok(Progress::Idle),
        }
    }
}
