//! The entropy device (section 5.4): one queue, whose buffers are filled with random bytes.
//!
//! A device need not fill a buffer (section 5.4.6.1), so a very long one is returned part full.

use devices::Outside;
use devices::saved::Unfit;
use pack::Damaged;

use crate::chain::Chain;
use crate::device::{Device, Progress, VirtioKind};
use crate::memory::GuestMemory;
use crate::queue::{CHAINS_A_CALL, LARGEST, Queue, QueueError};
use crate::saved::SavedEntropy;

/// The most bytes that one call makes: random bytes are not free, and the guest asks at no cost.
const BYTES_A_CALL: usize = 256;
/// The most bytes that one buffer gets.
const BYTES_A_BUFFER: usize = 1024;
/// How many bytes are made at a time, on the stack.
const PIECE: usize = 64;

/// An entropy device that gets its bytes from `S`, a function that fills what it is given.
#[derive(Debug)]
pub struct Entropy<S> {
    source: S,
    chain: Chain,
    /// The chain is being filled and was not returned yet.
    is_filling: bool,
}

impl<S: FnMut(&mut [u8])> Entropy<S> {
    /// An entropy device that hands out what `source` makes.
    #[must_use]
    pub fn new(source: S) -> Self {
        Self { source, chain: Chain::new(LARGEST), is_filling: false }
    }

    /// Fills the chain, or at most `limit` bytes of it, and returns how many.
    fn fill<M: GuestMemory>(&mut self, memory: &M, limit: usize) -> Result<usize, QueueError> {
        let total = limit.min(self.chain.unwritten() as usize);
        let mut done = 0;
        while done < total {
            let mut piece = [0; PIECE];
            let piece = piece.get_mut(..PIECE.min(total - done)).unwrap_or(&mut []);
            (self.source)(piece);
            done += self.chain.write(memory, piece)?;
        }
        Ok(done)
    }
}

impl<S: FnMut(&mut [u8])> Device for Entropy<S> {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[LARGEST]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn reset(&mut self) {
        self.is_filling = false;
    }

    fn let_go(&mut self, _index: usize) {
        self.is_filling = false;
    }

    fn exchange(&mut self, _outside: &dyn Outside) -> usize {
        0
    }

    type Saved = SavedEntropy;

    fn save(&self) -> Result<SavedEntropy, Damaged> {
        let Self { source: _, chain, is_filling } = self;
        Ok(SavedEntropy { filling: is_filling.then(|| chain.save()).transpose()? })
    }

    fn restore(&mut self, saved: &SavedEntropy) -> Result<(), Unfit> {
        let SavedEntropy { filling } = saved;
        if let Some(chain) = filling {
            let places = self.chain.look_at(chain)?;
            self.chain.put(chain, places);
        }
        self.is_filling = filling.is_some();
        Ok(())
    }

    fn process<M: GuestMemory>(
        &mut self,
        _index: usize,
        queues: &mut [Queue],
        memory: &M,
    ) -> Result<Progress, QueueError> {
        let [queue] = queues else { return Ok(Progress::Idle) };
        let mut budget = BYTES_A_CALL;
        for _ in 0..CHAINS_A_CALL {
            if budget == 0 {
                return Ok(Progress::More);
            }
            if !self.is_filling {
                if !queue.pop(memory, &mut self.chain)? {
                    return Ok(Progress::Idle);
                }
                self.is_filling = true;
            }
            let wanted = BYTES_A_BUFFER.saturating_sub(self.chain.written() as usize);
            let wanted = wanted.min(self.chain.unwritten() as usize);
            let filled = self.fill(memory, budget.min(wanted))?;
            budget -= filled;
            if filled < wanted {
                return Ok(Progress::More);
            }
            queue.push(memory, &self.chain)?;
            self.is_filling = false;
        }
        Ok(Progress::More)
    }
}
