//! What of a guest's RAM is its enclaves': blocks that have left its tables, and for each enclave tables of its own
//! ([decision 0039](../../../../../docs/decisions/0039-enclaves.md)).
//!
//! A block that was taken is nobody's to look at: not the guest's, whose access is answered as if nothing was there, and not its devices',
//! since all that the hypervisor does to the guest's RAM goes by the list of blocks. It comes back as one that was never touched: zeroed
//! piece by piece before it is seen again.

use core::mem;

use abi::enclave::MAX_ENCLAVES;
use devices::memory::Isolation;
use hw::{cache, memory as physical, tlb};
use stage2::{Attributes, Effects, Permissions, Stage2};
use units::{BLOCK_SIZE, Ipa, PAGE_SIZE, Pa, Range, VmId};

use super::{GuestRam, Missing, RamError, State, Tables, Tlb, Use};
use crate::host::memory;

/// Behind the VMIDs of all VMs.
const FIRST_VMID: u16 = 1 + abi::bundle::MAX_VMS as u16;
// All CPUs have VMIDs of eight bits at least.
const _: () = assert!(FIRST_VMID as usize + abi::bundle::MAX_VMS <= 256);

/// A VM's enclaves, as far as memory is concerned.
#[derive(Default)]
pub(super) struct Enclaves {
    tables: [Option<Stage2>; MAX_ENCLAVES],
    /// Which of them the TLBs may know something of, by the one VMID that all of the VM have: only one runs at a time.
    known: Option<usize>,
}

impl Enclaves {
    fn vttbr(&self, vm: VmId, enclave: usize) -> Option<u64> {
        let tables = self.tables.get(enclave)?.as_ref()?;
        Some(stage2::vttbr_el2(tables.root(), FIRST_VMID + vm.0))
    }

    /// All end with the VM. None runs.
    pub(super) fn destroy(mut self, vm: VmId) {
        (0..MAX_ENCLAVES).for_each(|enclave| self.close(vm, enclave));
    }

    fn close(&mut self, vm: VmId, enclave: usize) {
        let Some(vttbr) = self.vttbr(vm, enclave) else { return };
        if let Some(tables) = self.tables.get_mut(enclave).and_then(Option::take) {
            tables.destroy(&mut Tables(vm), &mut Tlb(vttbr));
        }
        self.known = None;
    }
}

impl GuestRam {
    /// Does what the enclave device asks.
    ///
    /// # Errors
    /// When that is not the guest's to ask, or not now.
    pub(crate) fn isolate(&mut self, what: &Isolation<'_>) -> Result<(), RamError> {
        match *what {
            Isolation::Open { enclave } => self.open_enclave(enclave),
            Isolation::Take { block } => self.take(block),
            Isolation::Store { at, bytes } => {
                physical::write_frame(self.taken(at)?, bytes.0);
                Ok(())
            }
            Isolation::Show { enclave, at, page, writable, executable } => {
                let mut permissions = Permissions::READ;
                permissions.set(Permissions::WRITE, writable);
                permissions.set(Permissions::EXECUTE, executable);
                self.show_enclave(enclave, at, page, permissions)
            }
            Isolation::Enter { enclave } => {
                self.enclaves.vttbr(self.vm, enclave).map(|_| ()).ok_or(RamError::Outside(Ipa(0)))
            }
            Isolation::Close { enclave } => {
                self.enclaves.close(self.vm, enclave);
                Ok(())
            }
            Isolation::Return { block } => self.return_block(block),
            // Not memory's business: whoever runs it is asked.
            Isolation::CallOff { .. } => Ok(()),
        }
    }

    /// The tables by which the enclave runs. What TLBs know of another one is gone.
    pub(crate) fn enter_enclave(&mut self, enclave: usize) -> Option<u64> {
        let vttbr = self.enclaves.vttbr(self.vm, enclave)?;
        if self.enclaves.known != Some(enclave) {
            tlb::with_vttbr(vttbr, tlb::invalidate_vmid);
            self.enclaves.known = Some(enclave);
        }
        Some(vttbr)
    }

    /// All of its enclaves end, and none runs: their blocks are the guest's again, as zeroes, where its memory stays.
    pub(crate) fn end_enclaves(&mut self) {
        mem::take(&mut self.enclaves).destroy(self.vm);
        for block in self.blocks.iter_mut().filter(|block| block.state == State::Taken) {
            block.state = State::Zeroing(0);
        }
    }

    /// Whether what is at `ipa` is an enclave's.
    pub(crate) fn is_taken(&self, ipa: Ipa) -> bool {
        self.block(self.index(ipa)).is_some_and(|block| block.state == State::Taken)
    }

    fn open_enclave(&mut self, enclave: usize) -> Result<(), RamError> {
        let place = self.enclaves.tables.get_mut(enclave).filter(|place| place.is_none());
        let place = place.ok_or(RamError::Outside(Ipa(0)))?;
        *place = Some(Stage2::new(&mut Tables(self.vm)).map_err(RamError::Tables)?);
        Ok(())
    }

    fn take(&mut self, at: Ipa) -> Result<(), RamError> {
        if !at.is_aligned(BLOCK_SIZE) {
            return Err(RamError::Outside(at));
        }
        self.find(at, Use::Store)?;
        // What is still to come would find no place for it: all of the block is waited for.
        if let Some(State::ToCome(came)) = self.block(self.index(at)).map(|block| block.state) {
            let piece = u64::from(came.trailing_ones().min(u32::BITS - 1));
            return Err(RamError::NotReady(Missing { at: Ipa(at.0 + piece * memory::PIECE), what: Use::Store }));
        }
        let range = Range { start: at, size: BLOCK_SIZE };
        self.change(at, |tables, hardware| {
            let (_, taken) = tables.pages(hardware.memory, range);
            let effects = Effects { taken, ..Effects::default() };
            tables.unmap(hardware.memory, hardware.tlb, range).map(|()| ((), effects))
        })?;
        let index = self.index(at);
        if let Some(block) = self.block_mut(index) {
            block.state = State::Taken;
        }
        self.mapped = self.mapped.saturating_sub(BLOCK_SIZE / PAGE_SIZE);
        Ok(())
    }

    /// Where it is, if it was taken.
    fn taken(&self, at: Ipa) -> Result<Pa, RamError> {
        let block = self.block(self.index(at)).filter(|block| block.state == State::Taken);
        let block = block.ok_or(RamError::Outside(at))?;
        Ok(Pa(block.pa.0 + at.0.wrapping_sub(self.range.start.0) % BLOCK_SIZE))
    }

    fn show_enclave(&mut self, enclave: usize, at: Ipa, page: Ipa, permissions: Permissions) -> Result<(), RamError> {
        let pa = self.taken(page)?;
        let vm = self.vm;
        let vttbr = self.enclaves.vttbr(vm, enclave).ok_or(RamError::Outside(at))?;
        if permissions.contains(Permissions::EXECUTE) {
            // Not only by physical addresses, where the caches do not go by these alone.
            cache::publish_code(Range { start: pa, size: PAGE_SIZE });
        }
        let tables = self.enclaves.tables.get_mut(enclave).and_then(Option::as_mut).ok_or(RamError::Outside(at))?;
        let attributes = Attributes::RAM.with_permissions(permissions);
        tables.map(&mut Tables(vm), &mut Tlb(vttbr), at, pa, PAGE_SIZE, attributes).map_err(RamError::Tables)
    }

    fn return_block(&mut self, at: Ipa) -> Result<(), RamError> {
        self.taken(at)?;
        let index = self.index(at);
        if let Some(block) = self.block_mut(index) {
            block.state = State::Zeroing(0);
        }
        Ok(())
    }
}
