//! What few drivers do: addresses beyond 4 GiB, features that they do not accept, a reset in the middle of a buffer; and what a
//! device of any kind is told of its driver.

use std::vec::Vec;

use devices::{AccessSize, Outside, saved::Unfit};
use pack::Damaged;
use units::Ipa;

use super::{SIZE, WORD, negotiate, set, started_console};
use crate::console::{Console, RECEIVE, TRANSMIT};
use crate::device::{Device, Progress, VirtioKind};
use crate::entropy::Entropy;
use crate::memory::{Fault, GuestMemory};
use crate::mmio::{Early, Effect, Mmio, register};
use crate::queue::{Queue, QueueError};
use crate::saved::SavedEntropy;
use crate::testing::{AVAILABLE, BUFFERS, DESCRIPTORS, INDIRECT, RAM, Ram, Reluctant, USED, WRITE};

const EVENT_INDEX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// A device that writes down what it is told.
#[derive(Default)]
struct Told {
    written: Vec<(u64, Vec<u8>)>,
    accepted: Option<u64>,
}

impl Device for Told {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Entropy
    }

    fn features(&self) -> u64 {
        1 << 5
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn config_write(&mut self, offset: u64, bytes: &[u8]) {
        self.written.push((offset, bytes.to_vec()));
    }

    fn activate(&mut self, features: u64) {
        self.accepted = Some(features);
    }

    fn reset(&mut self) {}

    fn let_go(&mut self, _index: usize) {}

    fn exchange(&mut self, _outside: &dyn Outside) -> usize {
        0
    }

    type Saved = SavedEntropy;

    fn save(&self) -> Result<SavedEntropy, Damaged> {
        Ok(SavedEntropy { filling: None })
    }

    fn restore(&mut self, _saved: &SavedEntropy) -> Result<(), Unfit> {
        Ok(())
    }

    fn process<M: GuestMemory>(&mut self, _: usize, _: &mut [Queue], _: &M) -> Result<Progress, QueueError> {
        Ok(Progress::Idle)
    }
}

#[test]
fn a_device_is_told_what_its_driver_writes_and_accepts() {
    let mut mmio = Mmio::new(Told::default());
    assert_eq!(mmio.read(register::DEVICE_FEATURES, WORD), 1 << 5 | 1 << 28 | 1 << 29);
    negotiate(&mut mmio, VERSION_1 | 1 << 5, 0);
    assert_eq!(mmio.write(register::CONFIG + 6, AccessSize::Half, 0x1234_5678), Effect::None);
    set(&mut mmio, register::QUEUE_READY, 1);
    assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
    let Told { written, accepted } = mmio.device();
    assert_eq!((&written[..], *accepted), (&[(6, Vec::from([0x78, 0x56]))][..], Some(VERSION_1 | 1 << 5)));
}

#[test]
fn only_the_console_has_a_feature_of_its_own() {
    let entropy = Mmio::new(Entropy::new(|bytes: &mut [u8]| bytes.fill(0)));
    assert_eq!(entropy.read(register::DEVICE_FEATURES, WORD), 1 << 28 | 1 << 29);
    assert_eq!((VirtioKind::Console.name(), VirtioKind::Entropy.name()), ("virtio-console", "virtio-rng"));
}

/// A length and a base of all ones: there are no regions of shared memory (section 4.2.2).
#[test]
fn there_is_no_shared_memory() {
    let mmio = Mmio::new(Console::new());
    for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(mmio.read(offset, WORD), 0xffff_ffff, "register {offset:#x}");
    }
    assert_eq!((mmio.read(0xac, WORD), mmio.read(0xc0, WORD)), (0, 0));
}

/// Each half of each address can be written, in any order and again; the other half stays.
#[test]
fn addresses_have_64_bits() {
    let mut mmio = Mmio::new(Console::new());
    for (low, high) in [
        (register::QUEUE_DESC_LOW, register::QUEUE_DESC_HIGH),
        (register::QUEUE_DRIVER_LOW, register::QUEUE_DRIVER_HIGH),
        (register::QUEUE_DEVICE_LOW, register::QUEUE_DEVICE_HIGH),
    ] {
        for (offset, value) in [(low, 0xffff_ffff), (high, 0xffff_ffff), (high, low), (low, high << 4)] {
            set(&mut mmio, offset, value);
        }
    }
    let saved = mmio.save().unwrap().queues[0];
    let places = [saved.descriptors, saved.available, saved.used].map(|address| address.0);
    assert_eq!(places, [0x80_0000_0840, 0x90_0000_0940, 0xa0_0000_0a40]);
}

/// What the driver has not accepted is not used: it notifies unasked, and no descriptor leads to a table of others.
#[test]
fn what_was_not_accepted_is_not_used() {
    let ram = Ram::new();
    let mut mmio = started_console(TRANSMIT);
    let event = USED + 4 + 8 * u64::from(SIZE);
    ram.put(event, &[0xaa; 2]);
    assert_eq!(mmio.process(TRANSMIT, &ram), Ok(Progress::Idle));
    assert_eq!(ram.half(event), 0xaaaa, "nobody asks for a notification");
    // With event indices it would want to hear of the 100th buffer alone.
    ram.put(AVAILABLE + 4 + 2 * u64::from(SIZE), &[100, 0]);
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 5), 0, 0);
    ram.offer(SIZE, 0, &[0]);
    assert_eq!((mmio.process(TRANSMIT, &ram), mmio.line()), (Ok(Progress::Idle), true));
    ram.descriptor(DESCRIPTORS, 1, (BUFFERS, 16), INDIRECT, 0);
    ram.offer(SIZE, 1, &[1]);
    assert_eq!(mmio.process(TRANSMIT, &ram), Err(QueueError::MisplacedIndirect));
}

/// A queue that was set up early has the features that are agreed on, also if the driver agrees and starts in one write.
#[test]
fn a_driver_may_agree_and_start_at_once() {
    let ram = Ram::new();
    let mut mmio = Mmio::new(Console::new());
    negotiate(&mut mmio, 0, TRANSMIT);
    set(&mut mmio, register::QUEUE_READY, 1);
    set(&mut mmio, register::DRIVER_FEATURES, 1);
    set(&mut mmio, register::DRIVER_FEATURES_SEL, 0);
    set(&mut mmio, register::DRIVER_FEATURES, EVENT_INDEX);
    assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
    let event = USED + 4 + 8 * u64::from(SIZE);
    ram.put(event, &[0xaa; 2]);
    assert_eq!(mmio.process(TRANSMIT, &ram), Ok(Progress::Idle));
    assert_eq!(ram.half(event), 0, "it asks for a notification");
}

/// Nobody is interrupted before DRIVER_OK, and FAILED (128) is the driver's to set.
#[test]
fn a_change_before_the_driver_is_ready_interrupts_nobody() {
    let mut mmio = Mmio::new(Console::new());
    set(&mut mmio, register::STATUS, 3 | 128);
    mmio.config_changed();
    assert_eq!((mmio.line(), mmio.read(register::CONFIG_GENERATION, WORD)), (false, 1));
    assert_eq!(mmio.read(register::STATUS, WORD), 3 | 128);
}

/// Memory that is not the guest's is no memory that is not ready yet: the device does not wait for it.
#[test]
fn memory_that_is_none_stops_the_device() {
    let mut mmio = Mmio::new(Console::new());
    negotiate(&mut mmio, VERSION_1, TRANSMIT);
    set(&mut mmio, register::QUEUE_DRIVER_LOW, RAM + 0x1_0000);
    set(&mut mmio, register::QUEUE_READY, 1);
    assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
    let fault = Fault(Ipa(RAM + 0x1_0002));
    assert_eq!(mmio.process(TRANSMIT, &Ram::new()), Err(QueueError::Fault(fault)));
    assert!(!mmio.is_live());
}

/// The driver resets the device while it holds a buffer, and sets its queue up anew: that buffer is not returned.
#[test]
fn a_reset_lets_go_of_every_buffer() {
    fn restarted<D: Device>(mut mmio: Mmio<D>, queue: u16, buffer: u64, flags: u16) {
        let memory = Reluctant::new(Ram::new());
        memory.ram.descriptor(DESCRIPTORS, 5, (buffer, 16), flags, 0);
        memory.ram.offer(SIZE, 0, &[5]);
        for _ in 0..3 {
            memory.next_turn(100);
            assert_eq!(mmio.process(queue, &memory), Ok(Progress::More));
        }
        assert_eq!(mmio.write(register::STATUS, WORD, 0), Effect::Reset);
        set(&mut mmio, register::QUEUE_SEL, queue.into());
        assert_eq!((mmio.read(register::QUEUE_READY, WORD), mmio.line()), (0, false));
        memory.ram.descriptor(DESCRIPTORS, 2, (BUFFERS, 1), flags, 0);
        memory.ram.offer(SIZE, 0, &[2]);
        negotiate(&mut mmio, VERSION_1, queue);
        set(&mut mmio, register::QUEUE_READY, 1);
        assert_eq!(mmio.write(register::STATUS, WORD, 15), Effect::Started);
        super::work(&mut mmio, queue, &memory, 100);
        assert_eq!((memory.ram.half(USED + 2), memory.ram.used(0).0), (1, 2));
    }
    let elsewhere = BUFFERS + 0x800;
    restarted(started_console(TRANSMIT), TRANSMIT, elsewhere, 0);
    let mut receiving = started_console(RECEIVE);
    receiving.device_mut().push_input(b"x");
    restarted(receiving, RECEIVE, elsewhere, WRITE);
    let mut entropy = Mmio::new(Entropy::new(|bytes: &mut [u8]| bytes.fill(0xee)));
    negotiate(&mut entropy, VERSION_1, 0);
    set(&mut entropy, register::QUEUE_READY, 1);
    assert_eq!(entropy.write(register::STATUS, WORD, 15), Effect::Started);
    restarted(entropy, 0, elsewhere, WRITE);
}

/// Output that lies in two pieces is handed out in one go, unless whoever takes it has no room for all.
#[test]
fn output_is_handed_out_until_nobody_takes_it() {
    let ram = Ram::new();
    let mut mmio = started_console(TRANSMIT);
    let send = |mmio: &mut Mmio<Console>, nth: u16, length| {
        ram.descriptor(DESCRIPTORS, nth, (BUFFERS, length), 0, 0);
        ram.offer(SIZE, nth, &[nth]);
        assert_eq!(mmio.process(TRANSMIT, &ram), Ok(Progress::Idle));
    };
    send(&mut mmio, 0, 4000);
    assert_eq!(mmio.device_mut().take_output(|bytes| bytes.len()), 4000);
    send(&mut mmio, 1, 200);
    let mut offers = Vec::new();
    let taken = mmio.device_mut().take_output(|bytes| {
        offers.push(bytes.len());
        bytes.len()
    });
    assert_eq!((taken, offers), (200, Vec::from([96, 104])));
    send(&mut mmio, 2, 10);
    let mut offers = 0;
    let taken = mmio.device_mut().take_output(|_| {
        offers += 1;
        3
    });
    assert_eq!((taken, offers, mmio.device().output_pending()), (3, 1, 7));
}

#[test]
fn which_queue_is_missing_is_said() {
    let said = |exists| std::format!("{}", Early::Queue { queue: 1, exists });
    assert_eq!(said(true), "the driver notifies queue 1, which it has not made ready (QueueReady)");
    assert_eq!(said(false), "the driver notifies queue 1, which this device does not have");
}
