//! The devices against drivers that others wrote: those of the `virtio-drivers` crate.
//!
//! The crate's transport is replaced by one that plays register accesses on [`Mmio`], as a trapped guest would, and its
//! view of memory by one arena a test, whose addresses mean nothing to the driver's side.
#![expect(unsafe_code, reason = "the driver's memory interface hands out raw pointers")]

use std::alloc::{Layout, alloc_zeroed};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use units::Ipa;
use virtio::{AccessSize, Block, Console, Device, Effect, Entropy, Fault, GuestMemory, Mmio, Progress};
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Where the arena lies for the device.
const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 64 * PAGE_SIZE;

thread_local! {
    /// This test's arena, never freed, and how many pages of it are taken.
    static ARENA: NonNull<u8> = {
        let layout = Layout::from_size_align(RAM_SIZE, PAGE_SIZE).expect("a valid layout");
        // SAFETY: the layout's size is not zero.
        NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory")
    };
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

fn take_pages(pages: usize) -> (u64, NonNull<u8>) {
    let offset = TAKEN.replace(TAKEN.get() + pages) * PAGE_SIZE;
    assert!(offset + pages * PAGE_SIZE <= RAM_SIZE, "the test's arena is too small");
    // SAFETY: the offset lies inside the arena.
    (RAM + offset as u64, ARENA.with(|arena| unsafe { arena.add(offset) }))
}

/// The arena as the device sees it.
struct Arena;

impl Arena {
    fn place(at: Ipa, count: usize) -> Result<NonNull<u8>, Fault> {
        let offset = at.0.checked_sub(RAM).and_then(|offset| usize::try_from(offset).ok()).ok_or(Fault(at))?;
        if offset.checked_add(count).is_none_or(|end| end > RAM_SIZE) {
            return Err(Fault(at));
        }
        // SAFETY: the offset lies inside the arena.
        Ok(ARENA.with(|arena| unsafe { arena.add(offset) }))
    }
}

impl GuestMemory for Arena {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        let place = Self::place(from, into.len())?;
        // SAFETY: the bytes lie in the arena, and driver and device share one thread.
        unsafe { place.as_ptr().copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        let place = Self::place(to, bytes.len())?;
        // SAFETY: as for `read`.
        unsafe { place.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        let mut bytes = [0; 2];
        self.read(at, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault> {
        self.write(at, &value.to_le_bytes())
    }
}

struct ArenaHal;

// SAFETY: pages come zeroed from the arena, aligned, and are never handed out twice.
unsafe impl Hal for ArenaHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (u64, NonNull<u8>) {
        take_pages(pages)
    }

    unsafe fn dma_dealloc(_address: u64, _pointer: NonNull<u8>, _pages: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_address: u64, _size: usize) -> NonNull<u8> {
        unreachable!("only for PCI")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> u64 {
        let (address, copy) = take_pages(buffer.len().div_ceil(PAGE_SIZE));
        // SAFETY: the caller promises a valid buffer, and the copy is ours alone.
        unsafe { copy.as_ptr().copy_from_nonoverlapping(buffer.cast::<u8>().as_ptr(), buffer.len()) };
        address
    }

    unsafe fn unshare(address: u64, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            let place = Arena::place(Ipa(address), buffer.len()).expect("an address that was shared");
            // SAFETY: the caller promises a valid buffer.
            unsafe { buffer.cast::<u8>().as_ptr().copy_from_nonoverlapping(place.as_ptr(), buffer.len()) };
        }
    }
}

/// Plays the driver's requests as register accesses. Notifications are served before the store that makes them returns.
struct Registers<D>(Rc<RefCell<Mmio<D>>>);

impl<D: Device> Registers<D> {
    fn load(&self, offset: u64) -> u32 {
        self.0.borrow().read(offset, AccessSize::Word) as u32
    }

    fn store(&self, offset: u64, value: u32) {
        let mut mmio = self.0.borrow_mut();
        let mut progress = match mmio.write(offset, AccessSize::Word, value.into()) {
            Effect::Notify(queue) => mmio.process(queue, &Arena).expect("a driver that keeps the rules"),
            Effect::Started => mmio.poll(&Arena).expect("a driver that keeps the rules"),
            Effect::Broken(error) => panic!("{error}"),
            Effect::InVain(early) => panic!("{early}"),
            Effect::None | Effect::Reset => Progress::Idle,
        };
        while progress == Progress::More {
            progress = mmio.poll(&Arena).expect("a driver that keeps the rules");
        }
        assert_ne!(progress, Progress::Blocked);
    }

    fn store_address(&self, offset: u64, address: u64) {
        self.store(offset, address as u32);
        self.store(offset + 4, (address >> 32) as u32);
    }
}

impl<D: Device> Transport for Registers<D> {
    fn device_type(&self) -> DeviceType {
        DeviceType::try_from(self.load(0x008)).expect("a known device")
    }

    fn read_device_features(&mut self) -> u64 {
        self.store(0x014, 0);
        let low = self.load(0x010);
        self.store(0x014, 1);
        u64::from(low) | u64::from(self.load(0x010)) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        self.store(0x024, 0);
        self.store(0x020, features as u32);
        self.store(0x024, 1);
        self.store(0x020, (features >> 32) as u32);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.store(0x030, queue.into());
        self.load(0x034)
    }

    fn notify(&mut self, queue: u16) {
        self.store(0x050, queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.load(0x070))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.store(0x070, status.bits());
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, descriptors: u64, driver: u64, device: u64) {
        self.store(0x030, queue.into());
        self.store(0x038, size);
        self.store_address(0x080, descriptors);
        self.store_address(0x090, driver);
        self.store_address(0x0a0, device);
        self.store(0x044, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.store(0x030, queue.into());
        self.store(0x044, 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.store(0x030, queue.into());
        self.load(0x044) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let status = self.load(0x060);
        self.store(0x064, status);
        InterruptStatus::from_bits_retain(status)
    }

    fn read_config_generation(&self) -> u32 {
        self.load(0x0fc)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let mut value = T::new_zeroed();
        for (byte, at) in value.as_mut_bytes().iter_mut().zip(0x100 + offset as u64..) {
            *byte = self.0.borrow().read(at, AccessSize::Byte) as u8;
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> virtio_drivers::Result<()> {
        Ok(())
    }
}

fn behind_registers<D: Device>(device: D) -> (Rc<RefCell<Mmio<D>>>, Registers<D>) {
    let mmio = Rc::new(RefCell::new(Mmio::new(device)));
    (Rc::clone(&mmio), Registers(mmio))
}

#[test]
fn console_carries_both_directions() {
    let mut console = Console::new();
    console.set_size(80, 25);
    assert_eq!(console.push_input(b"typed before the driver came"), 28);
    let (mmio, registers) = behind_registers(console);
    let mut driver = VirtIOConsole::<ArenaHal, _>::new(registers).expect("the driver to accept the device");
    assert!(mmio.borrow().is_live());
    let size = driver.size().expect("a readable size").expect("a size");
    assert_eq!((size.columns, size.rows), (80, 25));

    let mut input = Vec::new();
    while let Some(byte) = driver.recv(true).expect("input") {
        input.push(byte);
    }
    assert_eq!(input, b"typed before the driver came");

    mmio.borrow_mut().device_mut().push_input(b"and after");
    assert_eq!(mmio.borrow_mut().poll(&Arena), Ok(Progress::Idle));
    assert!(mmio.borrow().line());
    assert!(driver.ack_interrupt().expect("a used buffer"));
    assert!(!mmio.borrow().line());
    assert_eq!(driver.recv(true), Ok(Some(b'a')));

    driver.send_bytes(b"Welcome to the undercroft\n").expect("output");
    for byte in b"login: " {
        driver.send(*byte).expect("output");
    }
    let mut output = Vec::new();
    mmio.borrow_mut().device_mut().take_output(|bytes| {
        output.extend_from_slice(bytes);
        bytes.len()
    });
    assert_eq!(output, b"Welcome to the undercroft\nlogin: ");
}

#[test]
fn entropy_arrives_request_after_request() {
    let mut state = 0u8;
    let source = move |bytes: &mut [u8]| {
        for byte in bytes {
            state = state.wrapping_add(1);
            *byte = state;
        }
    };
    let (mmio, registers) = behind_registers(Entropy::new(source));
    let mut driver = VirtIORng::<ArenaHal, _>::new(registers).expect("the driver to accept the device");
    let mut expected = 0u8;
    for length in [1, 7, 64, 1000] {
        let mut bytes = vec![0; length];
        assert_eq!(driver.request_entropy(&mut bytes), Ok(length));
        for byte in bytes {
            expected = expected.wrapping_add(1);
            assert_eq!(byte, expected);
        }
    }
    drop(driver);
    assert!(mmio.borrow().is_live());
}

#[test]
fn a_disk_is_read_and_not_written() {
    let image: Vec<u8> = (0..40 * 512_u32).map(|at| (at / 512 + at % 7) as u8).collect();
    let (mmio, registers) = behind_registers(Block::new(image.clone(), 1, "serial"));
    let mut driver = VirtIOBlk::<ArenaHal, _>::new(registers).expect("the driver to accept the device");
    assert_eq!((driver.capacity(), driver.readonly()), (40, true));
    let mut serial = [0; 20];
    let length = driver.device_id(&mut serial).expect("a serial number");
    assert_eq!(serial.get(..length), Some(&b"serial"[..]));
    let mut bytes = vec![0; image.len()];
    assert_eq!(driver.read_blocks(0, &mut bytes), Ok(()));
    assert!(bytes == image);
    assert_eq!(driver.read_blocks(39, &mut [0; 1024]), Err(virtio_drivers::Error::IoError));
    assert_eq!(driver.write_blocks(3, &[0; 512]), Err(virtio_drivers::Error::IoError));
    let mut sector = [0; 512];
    assert_eq!(driver.read_blocks(3, &mut sector), Ok(()));
    assert!(Some(&sector[..]) == image.get(3 * 512..4 * 512));
    drop(driver);
    assert!(mmio.borrow().is_live());
}
