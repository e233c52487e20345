//! A guest's disk on a host's, under random rings and registers, while what is behind it ends requests in any order, well or badly.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use units::{DiskOutcome, DiskRequest};
use virtio::Mmio;
use virtio::block::host::{Backend, Facts, HostBlock};

use super::input::Input;
use super::virtio_device::drive;

const SECTORS: u64 = 40;
const SLOTS: usize = 5;
/// Less than the longest requests have.
const ROOM: usize = 4096;

struct Behind {
    facts: Facts,
    bytes: Vec<u8>,
    buffers: Vec<[u8; ROOM]>,
    under_way: [Option<DiskRequest>; SLOTS],
    outcomes: [Option<DiskOutcome>; SLOTS],
    /// Told of what was begun.
    is_sent: bool,
}

/// What is behind the disk; the fuzzer has the other half.
#[derive(Clone)]
struct Hand(Arc<Mutex<Behind>>);

impl Hand {
    fn new(seed: u8) -> Self {
        let facts = Facts {
            sectors: SECTORS,
            block: if seed & 1 == 0 { 512 } else { 2048 },
            is_read_only: seed & 6 == 6,
            has_cache: seed & 8 == 0,
            discard: (seed & 16 == 0).then_some((16, 4)),
            zero: (seed & 32 == 0).then_some(8),
            slots: SLOTS,
            room: ROOM,
        };
        Self(Arc::new(Mutex::new(Behind {
            facts,
            bytes: vec![seed; SECTORS as usize * 512],
            buffers: vec![[0; ROOM]; SLOTS],
            under_way: [None; SLOTS],
            outcomes: [None; SLOTS],
            is_sent: true,
        })))
    }

    fn behind(&self) -> MutexGuard<'_, Behind> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what is under way in a slot, if anything is.
    fn end(&self, slot: usize, how: u8) {
        let behind = &mut *self.behind();
        assert!(behind.is_sent, "what was begun is to be told of before the call ends");
        let Some(wish) = behind.under_way[slot].take() else { return };
        let outcome = match how % 4 {
            0 => DiskOutcome::Failed,
            1 => DiskOutcome::Unknown,
            _ => DiskOutcome::Done,
        };
        let (first, count) = wish.range().unwrap_or_default();
        let place = first as usize * 512..(first + count) as usize * 512;
        if outcome == DiskOutcome::Done {
            let (bytes, buffer) = (&mut behind.bytes[place], &mut behind.buffers[slot]);
            match wish {
                DiskRequest::Read(..) => buffer[..bytes.len()].copy_from_slice(bytes),
                DiskRequest::Write(..) => bytes.copy_from_slice(&buffer[..bytes.len()]),
                DiskRequest::Discard(..) | DiskRequest::Zero(..) => bytes.fill(0),
                DiskRequest::Flush => {}
            }
        }
        behind.outcomes[slot] = Some(outcome);
    }
}

impl Backend for Hand {
    fn facts(&self) -> Facts {
        self.behind().facts
    }

    fn fill(&mut self, slot: usize, offset: usize, bytes: &[u8]) {
        let mut behind = self.behind();
        assert!(behind.under_way[slot].is_none(), "the buffer is somebody else's");
        behind.buffers[slot][offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn copy(&mut self, slot: usize, offset: usize, into: &mut [u8]) {
        let behind = self.behind();
        assert!(behind.under_way[slot].is_none(), "the buffer is somebody else's");
        into.copy_from_slice(&behind.buffers[slot][offset..offset + into.len()]);
    }

    fn begin(&mut self, slot: usize, wish: DiskRequest) {
        let behind = &mut *self.behind();
        let facts = &behind.facts;
        assert!(behind.under_way[slot].is_none() && behind.outcomes[slot].is_none(), "the slot is taken");
        if let Some((first, count)) = wish.range() {
            let block = u64::from(facts.block) / 512;
            assert!(count > 0 && first + count <= SECTORS && first % block == 0 && count % block == 0, "{wish:?}");
        }
        assert!(!(wish.changes() && facts.is_read_only), "{wish:?}");
        match wish {
            DiskRequest::Read(_, bytes) | DiskRequest::Write(_, bytes) => assert!(bytes as usize <= ROOM),
            DiskRequest::Flush => assert!(facts.has_cache),
            DiskRequest::Discard(_, count) => assert!(facts.discard.is_some_and(|(most, _)| count <= most)),
            DiskRequest::Zero(_, count, _) => assert!(facts.zero.is_some_and(|most| count <= most)),
        }
        behind.under_way[slot] = Some(wish);
        behind.is_sent = false;
    }

    fn send(&mut self) {
        self.behind().is_sent = true;
    }

    fn outcome(&mut self, slot: usize) -> Option<DiskOutcome> {
        self.behind().outcomes[slot].take()
    }
}

/// The disk asks for nothing that is not on it, and touches no buffer that it gave away; a call's work is bounded.
pub fn guest(data: &[u8]) {
    let mut input = Input(data);
    let hand = Hand::new(input.byte());
    let mut disk = Mmio::new(HostBlock::new(hand.clone(), "fuzzed"));
    drive(&mut disk, &mut input, |_, input| {
        let (slot, how) = (usize::from(input.byte()) % SLOTS, input.byte());
        hand.end(slot, how);
    });
    // Whatever became of it, nothing is left behind when all has ended.
    (0..SLOTS).for_each(|slot| hand.end(slot, 2));
    disk.reset();
    let _ = disk.device_mut();
}
