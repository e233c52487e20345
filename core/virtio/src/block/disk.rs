//! A disk of one kind or the other behind one transport: the code of a transport is there once for each type of device.

use devices::Outside;
use devices::saved::Unfit;
use pack::Damaged;

use super::Block;
use super::host::{Backend, HostBlock};
use crate::device::{Device, Progress, VirtioKind};
use crate::memory::GuestMemory;
use crate::queue::{Queue, QueueError};
use crate::saved::SavedBlock;

/// A disk.
#[derive(Debug)]
pub enum Disk<I, B> {
    /// An image in memory.
    Image(Block<I>),
    /// At a backend.
    Host(HostBlock<B>),
}

/// Does the same with whichever it is.
macro_rules! either {
    ($self:expr, $disk:ident => $work:expr) => {
        match $self {
            Self::Image($disk) => $work,
            Self::Host($disk) => $work,
        }
    };
}

impl<I: AsRef<[u8]>, B: Backend> Device for Disk<I, B> {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Block
    }

    fn features(&self) -> u64 {
        either!(self, disk => disk.features())
    }

    fn queue_sizes(&self) -> &[u16] {
        either!(self, disk => disk.queue_sizes())
    }

    fn config(&self) -> &[u8] {
        either!(self, disk => disk.config())
    }

    fn config_write(&mut self, offset: u64, bytes: &[u8]) {
        either!(self, disk => disk.config_write(offset, bytes));
    }

    fn activate(&mut self, features: u64) {
        either!(self, disk => disk.activate(features));
    }

    fn reset(&mut self) {
        either!(self, disk => disk.reset());
    }

    fn forget(&mut self) {
        either!(self, disk => disk.forget());
    }

    fn let_go(&mut self, index: usize) {
        either!(self, disk => disk.let_go(index));
    }

    fn exchange(&mut self, outside: &dyn Outside) -> usize {
        either!(self, disk => disk.exchange(outside))
    }

    type Saved = SavedBlock;

    fn save(&self) -> Result<SavedBlock, Damaged> {
        either!(self, disk => disk.save())
    }

    fn restore(&mut self, saved: &SavedBlock) -> Result<(), Unfit> {
        either!(self, disk => disk.restore(saved))
    }

    fn process<M: GuestMemory>(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &M,
    ) -> Result<Progress, QueueError> {
        either!(self, disk => disk.process(index, queues, memory))
    }
}
