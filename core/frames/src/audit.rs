//! Counts everything anew and compares: for tests, and for a check on request. Costs what the host has.

use crate::carved::FRAMES;
use crate::state::Kind;
use crate::{FrameAllocator, Owner, Usage};

/// What the books say wrongly.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AuditError {
    /// The counters do not agree with the blocks.
    #[error("the frame counters do not agree with the blocks, which hold {0} frames of RAM")]
    Counters(u64),
    /// The parts do not add up to the total.
    #[error("frames by owner add up to {0}, but {1} frames are RAM")]
    Sum(u64, u64),
    /// A VM's list of runs does not hold its blocks, or its account does not say what it has.
    #[error("the account of VM {0} does not match its blocks")]
    Account(usize),
    /// A record and its block do not agree.
    #[error("the record of carved block {0} does not match it")]
    Record(usize),
}

impl FrameAllocator<'_> {
    /// Checks the books.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, which is a defect of this crate.
    pub fn audit(&self) -> Result<(), AuditError> {
        let mut found = Usage::default();
        for (block, state) in self.blocks.iter().enumerate() {
            if state.kind() == Kind::Carved {
                self.audit_record(block, &mut found)?;
            } else if let Some(owner) = state.owner() {
                let frames = FRAMES as u64;
                found.total += frames;
                match state.kind() {
                    Kind::Scrubbing => found.scrubbing += frames,
                    Kind::Free if state.is_clean() => {
                        found.free += frames;
                        found.free_clean += frames;
                    }
                    _ => *counter(&mut found, owner) += frames,
                }
            }
        }
        let said = self.usage;
        if said != found {
            return Err(AuditError::Counters(found.total));
        }
        let owned = said.hypervisor + said.guest + said.tables + said.shared + said.enclave;
        let sum = said.free + said.scrubbing + said.spare + said.reserved + owned;
        if sum != said.total {
            return Err(AuditError::Sum(sum, said.total));
        }
        (0..self.vms.len()).try_for_each(|vm| self.audit_vm(vm))
    }

    fn audit_record(&self, block: usize, found: &mut Usage) -> Result<(), AuditError> {
        let record = self.record(block);
        let available = record.available().count();
        let overlap = record.used.intersection(record.reserved.union(record.absent));
        let twice = record.reserved.intersection(record.absent);
        let sound = record.in_use
            && record.block as usize == block
            && u64::from(record.free) == available
            && overlap.is_empty()
            && twice.is_empty()
            && record.owner.is_some() != record.used.is_empty()
            && !record.is_wholly_free();
        if !sound {
            return Err(AuditError::Record(block));
        }
        found.total += FRAMES as u64 - record.absent.count();
        found.spare += available;
        found.reserved += record.reserved.count();
        if let Some(owner) = record.owner {
            *counter(found, owner) += record.used.count();
        }
        Ok(())
    }

    fn audit_vm(&self, vm: usize) -> Result<(), AuditError> {
        let account = self.vms[vm];
        let belongs = |owner: Option<Owner>| match owner {
            Some(Owner::Guest(holder) | Owner::Tables(holder)) => usize::from(holder.0) == vm,
            _ => false,
        };
        let mut listed = 0;
        let mut run = account.runs;
        while let Some(head) = (run as usize).checked_sub(1) {
            let state = self.blocks[head];
            let rest = &self.blocks[head + 1..];
            let more = rest.iter().take_while(|next| next.owner() == state.owner() && !next.is_head()).count();
            listed += more as u64 + 1;
            run = state.link();
            if !state.is_head() || !belongs(state.owner()) || listed > self.blocks.len() as u64 {
                return Err(AuditError::Account(vm));
            }
        }
        let blocks = self.blocks.iter().filter(|state| belongs(state.owner())).count() as u64;
        let records = self.carved.iter().filter(|record| record.in_use && belongs(record.owner));
        let frames = blocks * FRAMES as u64 + records.map(|record| record.used.count()).sum::<u64>();
        if listed != blocks || frames != account.usage.guest + account.usage.tables {
            return Err(AuditError::Account(vm));
        }
        Ok(())
    }
}

/// Where frames of `owner` are counted.
fn counter(usage: &mut Usage, owner: Owner) -> &mut u64 {
    match owner {
        Owner::Free => &mut usage.free,
        Owner::Reserved => &mut usage.reserved,
        Owner::Hypervisor => &mut usage.hypervisor,
        Owner::Guest(_) => &mut usage.guest,
        Owner::Tables(_) => &mut usage.tables,
        Owner::Shared => &mut usage.shared,
        Owner::Enclave => &mut usage.enclave,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::AuditError;
    use crate::carved::{FRAMES, FrameSet};
    use crate::{BlockState, CarvedBlock, FrameAllocator, Owner, Usage};
    use std::vec;
    use units::{BLOCK_SIZE, PAGE_SIZE, Pa, Range, VmId};

    const BLOCKS: u64 = 16;

    /// Two VMs with three blocks each, one of which has frames too; a block that is reserved in part; some that are clean, or lent.
    fn books() -> FrameAllocator<'static> {
        let ram = Range { start: Pa(0), size: BLOCKS * BLOCK_SIZE };
        let (metadata, carved) = (vec![BlockState::ABSENT; BLOCKS as usize], vec![CarvedBlock::UNUSED; 4]);
        let mut frames = FrameAllocator::new(metadata.leak(), carved.leak(), ram).unwrap();
        frames.add_memory(ram).unwrap();
        frames.reserve(Range { start: Pa(0), size: PAGE_SIZE }).unwrap();
        for vm in [1, 2] {
            frames.allocate_guest(VmId(vm), 3).unwrap();
        }
        drop(frames.allocate_frames(Owner::Tables(VmId(1)), 4).unwrap());
        let clean = frames.next_dirty_free_block().unwrap();
        frames.return_clean(clean.scrubbed()).unwrap();
        drop(frames.next_dirty_free_block().unwrap());
        assert_eq!(frames.audit(), Ok(()));
        frames
    }

    /// What is found after `change`.
    fn found(change: impl FnOnce(&mut FrameAllocator<'_>)) -> Result<(), AuditError> {
        let mut books = books();
        change(&mut books);
        books.audit()
    }

    /// A change of a record that makes it wrong.
    type Change = fn(&mut CarvedBlock);

    /// The record from which frames were given, and the number of its block.
    fn record<'a>(books: &'a mut FrameAllocator<'_>) -> &'a mut CarvedBlock {
        books.carved.iter_mut().find(|record| record.in_use && !record.used.is_empty()).unwrap()
    }

    #[test]
    fn each_wrong_counter_is_found() {
        let counters: [fn(&mut Usage) -> &mut u64; 11] = [
            |usage| &mut usage.total,
            |usage| &mut usage.free,
            |usage| &mut usage.free_clean,
            |usage| &mut usage.scrubbing,
            |usage| &mut usage.spare,
            |usage| &mut usage.reserved,
            |usage| &mut usage.hypervisor,
            |usage| &mut usage.guest,
            |usage| &mut usage.tables,
            |usage| &mut usage.shared,
            |usage| &mut usage.enclave,
        ];
        for (number, counter) in counters.into_iter().enumerate() {
            let wrong = found(|books| *counter(&mut books.usage) += 1);
            assert_eq!(wrong, Err(AuditError::Counters(BLOCKS * FRAMES as u64)), "counter {number}");
        }
    }

    /// Each is wrong in one thing alone.
    #[test]
    fn each_wrong_record_is_found() {
        let block = record(&mut books()).block as usize;
        let wrong: [(&str, Change); 7] = [
            ("it is nobody's", |record| record.in_use = false),
            ("it is another block's", |record| record.block += 1),
            ("more are free", |record| record.free += 1),
            ("some are used, and reserved", |record| record.reserved = record.reserved.union(record.used)),
            ("some are reserved, and no RAM", |record| record.absent = record.reserved),
            ("the used ones are nobody's", |record| record.owner = None),
            ("all are free", |record| {
                *record = CarvedBlock { free: FRAMES as u16, in_use: true, block: record.block, ..CarvedBlock::UNUSED }
            }),
        ];
        for (what, change) in wrong {
            let found = found(|books| {
                let record = record(books);
                record.reserved = FrameSet::span(500, 501).without(record.used);
                record.recount();
                change(record);
            });
            assert_eq!(found, Err(AuditError::Record(block)), "{what}");
        }
    }

    #[test]
    fn each_wrong_account_is_found() {
        let head = |books: &FrameAllocator<'_>, vm: usize| books.vms[vm].runs as usize - 1;
        let wrong = |vm| Err(AuditError::Account(vm));
        assert_eq!(found(|books| books.vms[1].usage.guest += 1), wrong(1), "it has more on its account than it has");
        assert_eq!(found(|books| books.vms[2].runs = 0), wrong(2), "its blocks are not listed");
        let no_head = |books: &mut FrameAllocator<'_>| {
            let first = head(books, 1);
            books.blocks[first] = BlockState::owned(Owner::Guest(VmId(1)));
        };
        assert_eq!(found(no_head), wrong(1), "its run has no head");
        let exchanged = |books: &mut FrameAllocator<'_>| {
            let runs = [1, 2].map(|vm: usize| books.vms[vm].runs);
            (books.vms[1].runs, books.vms[2].runs) = (runs[1], runs[0]);
        };
        assert_eq!(found(exchanged), wrong(1), "another's blocks are listed");
        let endless = |books: &mut FrameAllocator<'_>| {
            let first = head(books, 2);
            books.blocks[first] = books.blocks[first].with_link(first as u32 + 1);
        };
        assert_eq!(found(endless), wrong(2), "its list has no end");
    }

    #[test]
    fn one_vm_may_have_all() {
        let ram = Range { start: Pa(0), size: BLOCKS * BLOCK_SIZE };
        let metadata = vec![BlockState::ABSENT; BLOCKS as usize];
        let mut frames = FrameAllocator::new(metadata.leak(), &mut [], ram).unwrap();
        frames.add_memory(ram).unwrap();
        frames.allocate_guest(VmId(0), BLOCKS as usize).unwrap();
        assert_eq!(frames.audit(), Ok(()));
    }
}
