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
