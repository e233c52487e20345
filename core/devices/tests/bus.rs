//! Devices on a bus: each access reaches its device and frame, lines are told once, and a device that works holds up nobody.

use std::cell::{Cell, RefCell};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clock::{Period, Rate};
use pack::{Damaged, Reader, Writer};
use units::{AccessSize, Hz, IntId, Line, VcpuId};

use devices::memory::{GuestMemory, NoMemory};
use devices::{
    Access, Bus, Change, Device, ErasedFlash, GenerationId, GenericWatchdog, MemoryTimer, Moment, Outside, PL011_DR,
    PL011_FR, POWER_BUTTON_PIN, Pl031, Pl061, Place, Request, Slot, Stream, Uart, Wired,
};

const WORD: AccessSize = AccessSize::Word;
const NOW: u64 = 1_700_000_000;

/// An outside that remembers what it is told.
#[derive(Default)]
struct World {
    lines: RefCell<Vec<(u32, Line)>>,
    sent: RefCell<Vec<(Stream, u8)>>,
    requests: RefCell<Vec<String>>,
    room: Cell<usize>,
    count: Cell<u64>,
}

impl World {
    fn with_room(room: usize) -> Self {
        Self { room: Cell::new(room), ..Self::default() }
    }

    fn take_lines(&self) -> Vec<(u32, Line)> {
        self.lines.take()
    }

    fn take_requests(&self) -> Vec<String> {
        self.requests.take()
    }
}

impl Outside for World {
    fn seconds(&self) -> u64 {
        NOW
    }

    fn count(&self) -> u64 {
        self.count.get()
    }

    fn moment(&self) -> Moment {
        let time = Duration::from_secs(NOW);
        Moment {
            count: self.count.get(),
            period: Period::of(Hz(1_000_000), Rate::REAL),
            time,
            is_known: true,
            stood: 0,
        }
    }

    fn show(&self, _index: usize, _word: u64) {}

    fn caller(&self) -> Option<VcpuId> {
        None
    }

    fn memory(&self) -> &dyn GuestMemory {
        &NoMemory
    }

    fn has_room(&self, _stream: Stream) -> bool {
        self.room.get() > 0
    }

    fn send_byte(&self, stream: Stream, byte: u8) -> bool {
        assert!(self.room.get() > 0, "a byte for which there is no room is lost");
        self.sent.borrow_mut().push((stream, byte));
        self.room.set(self.room.get() - 1);
        self.room.get() > 0
    }

    fn send(&self, stream: Stream, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room.get());
        self.sent.borrow_mut().extend(bytes.iter().take(taken).map(|&byte| (stream, byte)));
        self.room.set(self.room.get() - taken);
        taken
    }

    fn set_line(&self, interrupt: IntId, line: Line) {
        self.lines.borrow_mut().push((interrupt.0, line));
    }

    fn request(&self, request: Request<'_>) {
        self.requests.borrow_mut().push(match request {
            Request::Report(text) => text.to_string(),
            other => format!("{other:?}"),
        });
    }
}

/// A device of registers, whose word 0 is the levels of its lines.
struct Registers(Vec<u32>);

impl Device for Registers {
    fn read(&mut self, access: &Access, _outside: &dyn Outside) -> u64 {
        u64::from(self.0[access.offset as usize / 4]) + 1000 * access.frame as u64
    }

    fn write(&mut self, access: &Access, value: u64, _outside: &dyn Outside) {
        self.0[access.offset as usize / 4] = value as u32;
    }

    fn lines(&self) -> u32 {
        self.0[0]
    }

    fn poll(&mut self, _outside: &dyn Outside) {
        self.0[0] = 0;
    }

    fn change(&mut self, change: Change, _outside: &dyn Outside) {
        if change == Change::Reset {
            self.0[1] = 0;
        }
    }

    fn save_to(&self, out: &mut Writer) {
        out.list(&self.0);
    }

    fn restore_from(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        self.0 = from.list(64, "its values")?;
        Ok(())
    }
}

struct Locked<D>(Mutex<Wired<D>>);

impl<D: Device + 'static> Slot for Locked<D> {
    fn read(&self, access: &Access, outside: &dyn Outside) -> u64 {
        self.0.lock().expect("no test panics with it").read(access, outside)
    }

    fn write(&self, access: &Access, value: u64, outside: &dyn Outside) {
        self.0.lock().expect("no test panics with it").write(access, value, outside);
    }

    fn enter(&self, work: &mut dyn FnMut(&mut Wired<dyn Device>)) {
        work(&mut *self.0.lock().expect("no test panics with it"));
    }
}

fn slot<D: Device + 'static>(device: D, interrupts: &[u32]) -> &'static Locked<D> {
    Box::leak(Box::new(Locked(Mutex::new(Wired::new(device, interrupts.iter().map(|&number| IntId(number)))))))
}

fn place(slot: usize, offset: u64) -> Place {
    Place { slot, frame: 0, offset }
}

#[test]
fn an_access_reaches_its_device_its_frame_and_no_other() {
    let world = World::default();
    let bus = Bus::new(vec![slot(Registers(vec![0; 4]), &[]), slot(Registers(vec![0; 4]), &[])]);
    bus.write(place(1, 8), WORD, 7, &world);
    assert_eq!((bus.read(place(0, 8), WORD, &world), bus.read(place(1, 8), WORD, &world)), (0, 7));
    assert_eq!(bus.read(Place { slot: 1, frame: 1, offset: 8 }, WORD, &world), 1007);
    bus.write(place(2, 8), WORD, 7, &world);
    assert_eq!(bus.read(place(2, 8), WORD, &world), 0, "there is no third");
}

/// The controller hears of each line that moves, by its own interrupt, and of nothing else.
#[test]
fn a_device_with_several_lines_moves_each_of_them() {
    let world = World::default();
    let device = slot(Registers(vec![0; 4]), &[40, 41, 50]);
    let bus = Bus::new(vec![device]);
    bus.write(place(0, 0), WORD, 0b101, &world);
    assert_eq!(world.take_lines(), [(40, Line::High), (50, Line::High)]);
    bus.write(place(0, 0), WORD, 0b110, &world);
    assert_eq!(world.take_lines(), [(40, Line::Low), (41, Line::High)]);
    bus.write(place(0, 4), WORD, 1, &world);
    assert_eq!(world.take_lines(), [], "what has not moved is not told again");
    // A fourth line leads nowhere.
    bus.write(place(0, 0), WORD, 0b1110, &world);
    assert_eq!(world.take_lines(), []);
    device.0.lock().unwrap().poll(&world);
    assert_eq!(world.take_lines(), [(41, Line::Low), (50, Line::Low)]);
    // Thirty-two are as good as one.
    let wide = slot(Registers(vec![0; 4]), &(32..64).collect::<Vec<_>>());
    wide.0.lock().unwrap().work(&world, |device| device.0[0] = 1 << 31);
    assert_eq!(world.take_lines(), [(63, Line::High)]);
}

/// A device that was put back tells the controller of each of its lines, whatever that was told before the move.
#[test]
fn a_device_that_was_moved_tells_of_all_its_lines() {
    let world = World::default();
    let mut out = Writer::new();
    slot(Registers(vec![0b10, 9]), &[]).0.lock().unwrap().save_to(&mut out);
    let saved = out.finish().expect("there is memory for it");
    let other = slot(Registers(vec![0; 4]), &[40, 41]);
    other.0.lock().unwrap().restore_from(&mut Reader::new(&saved), &world).unwrap();
    assert_eq!(world.take_lines(), [(40, Line::Low), (41, Line::High)]);
    assert_eq!(other.read(&Access { frame: 0, offset: 4, size: WORD }, &world), 9);
    other.write(&Access { frame: 0, offset: 0, size: WORD }, 0, &world);
    assert_eq!(world.take_lines(), [(41, Line::Low)]);
    let short = other.0.lock().unwrap().restore_from(&mut Reader::new(&saved[..7]), &world);
    assert_eq!((short, world.take_lines()), (Err(Damaged::Short), vec![]));
}

/// The interrupt controller has forgotten its lines when the machine starts afresh.
#[test]
fn a_line_that_is_high_after_a_reset_is_told_anew() {
    let world = World::default();
    let bus = Bus::new(vec![slot(Registers(vec![0; 4]), &[40])]);
    bus.write(place(0, 0), WORD, 1, &world);
    assert_eq!(world.take_lines(), [(40, Line::High)]);
    bus.slots().for_each(|slot| slot.enter(&mut |wired| wired.change(Change::Pause, &world)));
    assert_eq!(world.take_lines(), []);
    bus.slots().for_each(|slot| slot.enter(&mut |wired| wired.change(Change::Reset, &world)));
    assert_eq!(world.take_lines(), [(40, Line::High)]);
}

/// A device that does not come back from a write until it is told to.
struct Disk {
    begun: Sender<()>,
    end: Receiver<()>,
    is_done: bool,
}

impl Device for Disk {
    fn read(&mut self, _access: &Access, _outside: &dyn Outside) -> u64 {
        self.is_done.into()
    }

    fn write(&mut self, _access: &Access, _value: u64, _outside: &dyn Outside) {
        self.begun.send(()).expect("the test waits for it");
        self.is_done = self.end.recv_timeout(Duration::from_secs(60)).is_ok();
    }

    fn lines(&self) -> u32 {
        self.is_done.into()
    }

    fn poll(&mut self, _outside: &dyn Outside) {}

    fn change(&mut self, _change: Change, _outside: &dyn Outside) {}

    fn save_to(&self, _out: &mut Writer) {}

    fn restore_from(&mut self, _from: &mut Reader<'_>) -> Result<(), Damaged> {
        Ok(())
    }
}

/// While one thread is inside a disk, another one uses the UART beside it; then the disk's thread passes its own line on.
#[test]
fn a_device_that_works_does_not_hold_up_another_one() {
    let ((begun, has_begun), (end, may_end)) = (channel(), channel());
    let disk = slot(Disk { begun, end: may_end, is_done: false }, &[50]);
    let bus = Arc::new(Bus::new(vec![disk, slot(Uart::new(Some(Stream::Uart)), &[33])]));
    let its_bus = Arc::clone(&bus);
    let worker = std::thread::spawn(move || {
        let world = World::default();
        its_bus.write(place(0, 0), WORD, 1, &world);
        world.take_lines()
    });
    has_begun.recv().unwrap();
    let world = World::with_room(10);
    bus.write(place(1, PL011_DR), WORD, b'x'.into(), &world);
    assert_eq!(world.sent.take(), [(Stream::Uart, b'x')]);
    end.send(()).unwrap();
    assert_eq!(worker.join().unwrap(), [(50, Line::High)]);
    assert_eq!(bus.read(place(0, 0), WORD, &world), 1, "only the word ended it");
}

#[test]
fn a_uart_keeps_what_finds_no_room_until_it_is_polled_with_room() {
    let world = World::with_room(1);
    let mut uart = Wired::new(Uart::new(Some(Stream::Uart)), [IntId(33)]);
    let at = |offset| Access { frame: 0, offset, size: WORD };
    // FIFOs on.
    uart.write(&at(0x2c), 1 << 4, &world);
    for byte in [1, 2, 3] {
        uart.write(&at(PL011_DR), byte, &world);
    }
    assert_eq!(world.sent.take(), [(Stream::Uart, 1)]);
    uart.read(&at(PL011_FR), &world);
    assert_eq!(world.take_requests(), ["Yield"], "the guest looks in vain");
    // Somebody polls it although nobody has made room.
    uart.poll(&world);
    uart.write(&at(PL011_DR), 4, &world);
    assert_eq!(world.sent.take(), []);
    world.room.set(10);
    uart.poll(&world);
    assert_eq!(world.sent.take(), [2, 3, 4].map(|byte| (Stream::Uart, byte)));
    uart.read(&at(PL011_FR), &world);
    assert_eq!(world.take_requests(), [""; 0]);
    uart.write(&at(PL011_DR), 5, &world);
    assert_eq!(world.sent.take(), [(Stream::Uart, 5)], "nothing waits before it, so it does not wait");
}

/// What the short path sends for it changes what it shows, as if it had sent it itself.
#[test]
fn a_byte_that_left_by_the_short_path_has_been_sent() {
    let world = World::with_room(10);
    let mut uart = Wired::new(Uart::new(Some(Stream::Uart)), [IntId(33)]);
    let raw = Access { frame: 0, offset: 0x3c, size: WORD };
    assert_eq!((uart.read(&raw, &world), uart.device().model().transmits_quietly()), (0, true));
    uart.device_quietly().has_transmitted(b'x');
    assert_eq!((uart.read(&raw, &world), world.take_lines(), world.sent.take()), (0x20, vec![], vec![]));
}

#[test]
fn input_waits_for_room_in_the_fifo_and_raises_the_line() {
    let world = World::default();
    let mut uart = Wired::new(Uart::new(None), [IntId(33)]);
    let at = |offset| Access { frame: 0, offset, size: WORD };
    uart.write(&at(0x38), 1 << 4 | 1 << 6, &world);
    uart.work(&world, |uart| uart.receive(b"abc"));
    assert_eq!(world.take_lines(), [(33, Line::High)]);
    let bytes: Vec<_> = (0..3).map(|_| uart.read(&at(PL011_DR), &world) as u8).collect();
    assert_eq!((bytes.as_slice(), world.take_lines()), (b"abc".as_slice(), vec![(33, Line::Low)]));
    uart.work(&world, |uart| uart.receive(b"d"));
    uart.change(Change::Reset, &world);
    assert_eq!(uart.read(&at(PL011_DR), &world), 0, "what was typed for another life is gone");
    // Nobody listens, so it never waits.
    uart.write(&at(PL011_DR), 1, &world);
    assert_eq!(uart.read(&at(PL011_FR), &world) & 1 << 3, 0);
}

#[test]
fn the_clock_asks_for_its_alarm_again_if_it_was_called_too_early() {
    let world = World::default();
    let mut clock = Wired::new(Pl031::new(), [IntId(34)]);
    let at = |offset| Access { frame: 0, offset, size: WORD };
    assert_eq!(clock.read(&at(0), &world), NOW);
    clock.write(&at(0x04), NOW + 10, &world);
    assert_eq!(world.take_requests(), [""; 0], "its interrupt is masked");
    clock.write(&at(0x10), 1, &world);
    clock.poll(&world);
    let alarm = format!("AlarmAt({})", NOW + 10);
    assert_eq!(world.take_requests(), [alarm.clone(), alarm]);
    clock.write(&at(0x04), NOW, &world);
    assert_eq!(world.take_lines(), [(34, Line::High)]);
    clock.change(Change::Reset, &world);
    assert_eq!((clock.read(&at(0x10), &world), clock.device().next_alarm()), (0, None));
}

#[test]
fn the_power_button_is_a_line_and_a_reset_lets_go_of_it() {
    let world = World::default();
    let mut gpio = Wired::new(Pl061::new(), [IntId(39)]);
    let at = |offset| Access { frame: 0, offset, size: WORD };
    gpio.write(&at(0x408), 8, &world);
    gpio.write(&at(0x410), 8, &world);
    gpio.work(&world, |gpio| gpio.set_input(POWER_BUTTON_PIN, true));
    assert_eq!(world.take_lines(), [(39, Line::High)]);
    assert_eq!(gpio.read(&at(0x418), &world), 8);
    gpio.change(Change::Reset, &world);
    assert_eq!((gpio.read(&at(0x418), &world), gpio.read(&at(0x20), &world)), (0, 0));
}

#[test]
fn a_generic_watchdog_has_two_frames_and_asks_to_be_looked_after() {
    let world = World::default();
    let mut watchdog = Wired::new(GenericWatchdog::new(), [IntId(42)]);
    let at = |frame, offset| Access { frame, offset, size: WORD };
    let (control, refresh) = (GenericWatchdog::CONTROL_FRAME, GenericWatchdog::REFRESH_FRAME);
    watchdog.write(&at(control, 8), 100, &world);
    watchdog.write(&at(control, 0), 1, &world);
    assert_eq!(world.take_requests(), ["DeadlineAt(101)"]);
    world.count.set(50);
    watchdog.write(&at(refresh, 0), 1, &world);
    assert_eq!(world.take_requests(), ["DeadlineAt(151)"]);
    assert_eq!((watchdog.read(&at(control, 0x10), &world), watchdog.read(&at(refresh, 0x10), &world)), (150, 0));
    watchdog.change(Change::Pause, &world);
    world.count.set(1000);
    watchdog.change(Change::Resume, &world);
    assert_eq!(world.take_requests(), ["DeadlineAt(1101)"], "it has as much time left as before");
    // As in a pause, so while some of its memory has not come.
    watchdog.change(Change::Stall, &world);
    world.count.set(2000);
    watchdog.change(Change::Unstall, &world);
    assert_eq!(world.take_requests(), ["DeadlineAt(2101)"]);
    world.count.set(2101);
    watchdog.work(&world, |watchdog| watchdog.advance(2101));
    assert_eq!(world.take_lines(), [(42, Line::High)]);
    watchdog.change(Change::PowerOff, &world);
    assert_eq!(watchdog.device().deadline(), None);
}

/// Its frames are read through the bus as they are written, and each says whose it is; in a third one there is nothing.
#[test]
fn a_generic_watchdog_is_known_in_both_frames() {
    let world = World::default();
    let mut watchdog = Wired::new(GenericWatchdog::new(), [IntId(42)]);
    let mut id = |frame| watchdog.read(&Access { frame, offset: 0xfcc, size: WORD }, &world);
    assert_eq!([id(0), id(1), id(2)], [0x0001_043b, 0x0001_043b, 0]);
}

/// Makes `writes` to a device, takes its state out, and puts that into another one, which then shows the same in the registers `read`.
fn is_the_same_elsewhere<D: Device>(mut device: D, mut other: D, frame: usize, writes: &[(u64, u64)], read: &[u64]) {
    let world = World::with_room(10);
    let at = |offset| Access { frame, offset, size: WORD };
    let look = |device: &mut D| -> Vec<u64> { read.iter().map(|&offset| device.read(&at(offset), &world)).collect() };
    let new = look(&mut other);
    assert_eq!(other.lines(), 0);
    writes.iter().for_each(|&(offset, value)| device.write(&at(offset), value, &world));
    let shown = look(&mut device);
    assert!(shown.iter().zip(&new).all(|(shown, new)| shown != new), "{shown:x?} would prove nothing");
    let mut out = Writer::new();
    device.save_to(&mut out);
    let saved = out.finish().expect("there is memory for it");
    let mut reader = Reader::new(&saved);
    other.restore_from(&mut reader).expect("it was just written");
    assert_eq!((look(&mut other), other.lines()), (shown, device.lines()));
    assert!(other.restore_from(&mut Reader::new(&saved[..saved.len() - 1])).is_err(), "it is cut off");
}

#[test]
fn each_device_goes_elsewhere_by_what_it_gives_the_bus() {
    let watchdog = GenericWatchdog::new;
    is_the_same_elsewhere(watchdog(), watchdog(), 0, &[(0x8, 100), (0x0, 1)], &[0x0, 0x8, 0x10]);
    let timer = || MemoryTimer::new(Hz(24_000_000));
    is_the_same_elsewhere(timer(), timer(), 1, &[(0x20, 9), (0x2c, 3), (0x30, 8)], &[0x20, 0x2c, 0x30]);
    is_the_same_elsewhere(timer(), timer(), 0, &[(0x40, 7), (0x80, 5)], &[0x40, 0x80]);
    let uart = || Uart::new(Some(Stream::Uart));
    is_the_same_elsewhere(uart(), uart(), 0, &[(0x24, 3), (0x38, 0x20), (0x0, 65)], &[0x24, 0x38, 0x3c]);
    let clock = Pl031::new;
    is_the_same_elsewhere(clock(), clock(), 0, &[(0x8, 5), (0x4, 9), (0x10, 1)], &[0x0, 0x4, 0x8, 0x10]);
    let gpio = Pl061::new;
    is_the_same_elsewhere(gpio(), gpio(), 0, &[(0x400, 3), (0x3fc, 1), (0x410, 7)], &[0x400, 0x3fc, 0x410]);
}

#[test]
fn flash_is_erased_and_stays_so() {
    let world = World::default();
    let mut flash = Wired::new(ErasedFlash, [IntId(40)]);
    for size in [AccessSize::Byte, AccessSize::Half, WORD, AccessSize::Double] {
        let access = Access { frame: 0, offset: 0x100, size };
        flash.write(&access, 0, &world);
        assert_eq!(flash.read(&access, &world), size.mask());
    }
    assert_eq!(world.take_lines(), [], "it has no line");
}

/// A generation is another one when the machine's state was put in, and the guest hears of it by an edge when it goes on; a pause, a
/// reset and the state itself change nothing.
#[test]
fn a_generation_is_told_of_by_one_edge() {
    let world = World::default();
    let mut made = 0;
    let source = move |bytes: &mut [u8]| {
        made += 1;
        bytes.fill(made);
    };
    let mut device = Wired::new(GenerationId::new(source), [IntId::spi(14)]);
    let access = Access { frame: 0, offset: 4, size: WORD };
    device.change(Change::Reset, &world);
    device.write(&access, 7, &world);
    for change in [Change::Pause, Change::Resume, Change::PowerOff, Change::Reset] {
        device.change(change, &world);
        assert_eq!((device.read(&access, &world), world.take_lines()), (0x0101_0101, Vec::new()), "{change:?}");
    }
    let mut saved = Writer::new();
    device.save_to(&mut saved);
    let saved = saved.finish().unwrap();
    device.restore_from(&mut Reader::new(&saved), &world).unwrap();
    assert_eq!(device.read(&access, &world), 0x0101_0101, "nobody said that it goes on from there a second time");
    world.take_lines();
    device.change(Change::Fork, &world);
    assert_eq!((device.read(&access, &world), world.take_lines()), (0x0202_0202, vec![(46, Line::High)]));
    device.change(Change::Pause, &world);
    assert_eq!(world.take_lines(), []);
    device.change(Change::Resume, &world);
    assert_eq!(world.take_lines(), [(46, Line::Low)], "or the next change is no edge");
    assert_eq!(device.read(&access, &world), 0x0202_0202);
}

/// The timer in memory asks for its deadline whenever that moves, raises its line when it is polled then, and after a pause asks
/// anew: its counter may have stood still.
#[test]
fn the_timer_in_memory_asks_to_be_polled_at_its_deadline() {
    let world = World::default();
    let mut timer = Wired::new(MemoryTimer::new(Hz(24_000_000)), [IntId::spi(12), IntId::spi(13)]);
    let access = |offset| Access { frame: MemoryTimer::TIMER_FRAME, offset, size: WORD };
    world.count.set(100);
    timer.write(&access(0x38), 50, &world);
    timer.write(&access(0x3c), 1, &world);
    assert_eq!(world.take_requests(), ["TimerAt(None)", "TimerAt(Some(150))"]);
    assert_eq!((timer.read(&access(0x38), &world), timer.read(&access(0x3c), &world)), (50, 1));
    world.count.set(149);
    timer.poll(&world);
    assert_eq!((world.take_lines(), world.take_requests()), (Vec::new(), vec!["TimerAt(Some(150))".to_owned()]));
    for [stop, go_on] in [[Change::Pause, Change::Resume], [Change::Stall, Change::Unstall]] {
        timer.change(stop, &world);
        assert_eq!(world.take_requests(), [""; 0]);
        timer.change(go_on, &world);
        assert_eq!(world.take_requests(), ["TimerAt(Some(150))"], "{go_on:?}");
    }
    world.count.set(150);
    timer.poll(&world);
    assert_eq!((world.take_lines(), world.take_requests()), (vec![(45, Line::High)], vec!["TimerAt(None)".to_owned()]));
    timer.change(Change::Reset, &world);
    assert_eq!(timer.read(&access(0x3c), &world), 0);
    assert_eq!(world.take_requests(), ["TimerAt(None)"]);
}
