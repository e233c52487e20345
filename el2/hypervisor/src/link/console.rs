//! One UART for all: the hypervisor's log, every VM's consoles, the operator's commands.
//!
//! Guests and the log write into buffers; one thread empties them into the UART, as frames for `croft` (`abi::link`) or
//! as text in which each line carries its source's name, and passes input on to its VM. A guest whose buffer is full
//! sees its own UART's FIFO full and waits: output is not lost, and costs no other guest anything.

extern crate alloc;

use alloc::boxed::Box;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, Ordering};

use abi::link::request::{self, Answer, Reply};
use abi::link::{self, Channel, Command, Decoder, Event, Message, StopReason, VmState};
use arrayvec::ArrayVec;
use devices::Stream;
use fair::Ring;
use hw::sync::{IrqLock, unmask_irqs};
use hw::{firmware, sysreg, uart};
use units::{Ticks, VmId};
use vmware::Shutdown;

use crate::exit::interrupts;
use crate::host;
use crate::host::text::Text;
use crate::link::dues::Dues;
use crate::link::operator::Operator;
use crate::link::stats;
use crate::link::{arrivals, carrier};
use crate::output;
use crate::output::buffers::write_left_out;
use crate::output::log_sink;
use crate::output::port;
use crate::sched::{self, Thread};
use crate::vm::{self, Stop, Vm, alarm, counters};

/// Bytes moved at a time from one source, so that none keeps the others waiting; no line of the log is longer.
const CHUNK: usize = log_sink::LONGEST;
/// The thread's weight. It is for the operator: what the thread does for a guest, that guest's vCPUs pay ([`Dues`]).
const WEIGHT: u16 = abi::bundle::DEFAULT_WEIGHT;
/// How long an unfinished line waits for its end, in microseconds: prompts have none.
const LINE_MICROSECONDS: u64 = 20_000;
/// How often a guest's tools are looked at that are to answer the operator, in microseconds.
const ANSWER_MICROSECONDS: u64 = 50_000;
/// How long the power button stays pressed, in microseconds.
const PRESS_MICROSECONDS: u64 = 100_000;
/// As many frames that came by the port are handled before output is looked at again.
const FRAMES_AT_ONCE: usize = 32;
/// How long a port may take to be opened when we begin, in milliseconds.
const PORT_MILLISECONDS: u64 = 100;
/// How long the last output may take before the host is switched off, in milliseconds.
const LAST_MILLISECONDS: u64 = 2_000;
/// Ctrl-] starts a command in text mode.
const COMMAND_KEY: u8 = 0x1d;

static POWER_OFF_AT_END: AtomicBool = AtomicBool::new(false);
/// All VMs are made, so the hypervisor can introduce itself.
static OPEN: AtomicBool = AtomicBool::new(false);

/// Starts the console's thread.
///
/// # Errors
/// When there is no memory for it.
#[inline(never)]
pub(crate) fn start(arguments: &abi::HostArguments<'_>) -> Result<(), frames::FramesError> {
    counters::set_timed(arguments.exit_times);
    carrier::set_framed(arguments.link == abi::host_arguments::LinkMode::Framed);
    POWER_OFF_AT_END.store(arguments.all_off == abi::host_arguments::AllOff::PowerOff, Ordering::Relaxed);
    let thread = Thread::spawn("console", run, 0, (WEIGHT, u64::MAX))?;
    output::set_reader(thread);
    uart::enable_receive_interrupt();
    Ok(())
}

/// All VMs are made: the thread begins its work, whatever was printed until now first.
pub(crate) fn open() {
    // Pairs with the acquire in `run`: all VMs that were made are seen by then.
    OPEN.store(true, Ordering::Release);
    output::wake_reader();
}

/// The UART and what is known of whoever is at its other end.
struct Port {
    /// Whose line is being written in text mode, and whether it has begun.
    source: Option<Source>,
    line_open: bool,
    /// Who gets the input in text mode.
    focus: u16,
    command_key: bool,
    ended: bool,
    /// An unfinished line waits.
    held_back: bool,
    /// When the log may say how many lines were left out about some VM, in milliseconds.
    settle_at: Option<u64>,
    released: ArrayVec<(VmId, u64), { abi::bundle::MAX_VMS }>,
    dues: Dues,
    operator: Operator,
    /// Bytes of which the log has said that the UART did not take them.
    lost: u64,
    /// The same of the port.
    lost_by_port: u64,
    /// Interrupts of which the log has said that nobody handles them.
    unclaimed: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Log,
    Uart(VmId),
    Virtio(VmId),
}

/// Where a chunk of output may end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Behind a line's end alone.
    AtLines,
    Anywhere,
}

impl Source {
    fn channel(self) -> Channel {
        match self {
            Self::Log => Channel::Log,
            Self::Uart(vm) => Channel::Console(vm),
            Self::Virtio(vm) => Channel::VirtioConsole(vm),
        }
    }
}

fn run(_: usize) -> ! {
    unmask_irqs();
    // Pairs with the release in `open`.
    while !OPEN.load(Ordering::Acquire) {
        sched::block(None);
    }
    arrivals::start();
    // The stack is for what is called: a saved VM's state is taken in on it. So nothing below is inlined here either.
    let mut decoder = Box::new(Decoder::new(hw::memory::crc32c));
    let mut port = Box::new(Port {
        source: None,
        line_open: false,
        focus: 0,
        command_key: false,
        ended: false,
        held_back: false,
        settle_at: None,
        released: ArrayVec::new(),
        dues: Dues::default(),
        operator: Operator::default(),
        lost: 0,
        lost_by_port: 0,
        unclaimed: 0,
    });
    if carrier::is_framed() {
        await_port();
        // Whichever way it goes, nobody has been introduced there yet.
        let _ = carrier::choose(hello);
        port.introduce();
    }
    loop {
        output::begin_look();
        if carrier::choose(hello) {
            port.introduce();
        }
        let mut busy = port.take_input(&mut decoder);
        busy |= arrivals::is_any() && port.take_posted();
        if busy {
            port.dues.charge_nobody();
        }
        port.serve_devices();
        busy |= port.drain();
        port.report_loss();
        // While nobody takes anything, the states wait too.
        if !carrier::is_full() && output::take_changed() {
            port.report_states();
            busy = true;
        }
        if busy {
            // Others may want this CPU, and output more of our attention.
            sched::yield_now();
        } else if !output::is_waiting() {
            port.dues.charge_nobody();
            sched::block(port.deadline());
        }
    }
}

/// What introduces us.
fn hello() -> Message<'static> {
    let build = concat!("undercroft ", env!("CARGO_PKG_VERSION"));
    Message::Hello { version: link::VERSION, vms: vm::all().count() as u16, build }
}

/// Gives a port that there is a moment to be opened, so that the link need not begin by the UART.
fn await_port() {
    let end = host::milliseconds().saturating_add(PORT_MILLISECONDS);
    while port::address().is_some() && !port::is_open() && host::milliseconds() < end {
        sched::block(Some(Ticks(sysreg::cntpct_el0().saturating_add(host::ticks(1000)))));
    }
}

impl Port {
    /// When something happens by itself.
    fn deadline(&self) -> Option<Ticks> {
        let line = self.held_back.then(|| sysreg::cntpct_el0().saturating_add(host::ticks(LINE_MICROSECONDS)));
        let release = self.released.iter().map(|&(_, at)| at).chain(self.dues.next_turn()).min();
        let alarm = alarm::next_alarm();
        let answer =
            self.operator.is_waiting().then(|| sysreg::cntpct_el0().saturating_add(host::ticks(ANSWER_MICROSECONDS)));
        let settle =
            self.settle_at.map(|at| sysreg::cntpct_el0() + host::ticks(at.saturating_sub(host::milliseconds()) * 1000));
        [line, release, alarm, answer, settle].into_iter().flatten().min().map(Ticks)
    }

    /// Buttons to release, clocks that ring, devices that asked for attention.
    #[inline(never)]
    fn serve_devices(&mut self) {
        let now = sysreg::cntpct_el0();
        while let Some(index) = self.released.iter().position(|&(_, at)| at <= now) {
            let (id, _) = self.released.swap_remove(index);
            if let Some(vm) = vm::by_id(id) {
                // One that is being restored has the button that it had.
                let _ = vm.deliver(|vm| vm.devices.set_power_button(vm, false));
            }
        }
        self.dues.serve(now);
        let ringing = alarm::take_alarm();
        // A paused VM's devices stand still with it: they are looked at, and its clock is listened for, when it goes on.
        for vm in vm::all().filter(|vm| !vm.is_paused()) {
            let rings = ringing && vm.alarm.take_due();
            // Pairs with the release in `VmConsole::ask_for_service`.
            if vm.console.service.swap(false, Ordering::AcqRel) || rings {
                self.poll_devices(vm);
                self.dues.charge(vm);
            }
            // Pairs with the release in `VmConsole::ask_for_turn`.
            if vm.console.unfinished.swap(false, Ordering::AcqRel) {
                self.dues.put_off(vm);
            }
            if ringing {
                vm.alarm.watch();
            }
        }
        self.operator.look_after(send_reply);
    }

    /// Moves the bytes that the devices of `vm` hold, unless it is paused. What is to be done beside that is for its vCPUs.
    fn poll_devices(&mut self, vm: &Vm) {
        if vm.is_paused() {
            return;
        }
        if vm.devices.look(vm).is_some() {
            self.dues.go_on(vm);
        }
    }

    /// Moves output on, a chunk from each source. Says whether there was any.
    #[inline(never)]
    fn drain(&mut self) -> bool {
        self.held_back = false;
        self.settle_at = None;
        // What nobody takes stays where it is, so that this thread has time for all else.
        if carrier::is_full() {
            return false;
        }
        // Whole lines of the log, since they come from several places.
        let mut busy = self.drain_one(Source::Log, &output::LOG, Cut::AtLines) > 0;
        if busy {
            self.dues.charge_nobody();
        }
        for vm in vm::all() {
            // Only those that have something, so that the number of others costs nothing. Pairs with the release in
            // `VmConsole::announce`.
            if !vm.console.pending.swap(false, Ordering::AcqRel) {
                continue;
            }
            if carrier::is_full() {
                // Pairs with the swap above, in the round that follows when there is room.
                vm.console.pending.store(true, Ordering::Release);
                break;
            }
            if self.dues.asks_to_pay(vm) {
                // Looked at again when it has paid. Pairs with the swap above.
                vm.console.pending.store(true, Ordering::Release);
                continue;
            }
            let held_back = core::mem::take(&mut self.held_back);
            let lines = self.drain_reports(vm) + self.drain_one(Source::Log, &vm.console.log, Cut::AtLines);
            let cut = Self::cut(vm);
            let taken = self.drain_one(Source::Uart(vm.id), &vm.console.uart, cut)
                + self.drain_one(Source::Virtio(vm.id), &vm.console.virtio, cut);
            if taken > 0 {
                self.poll_devices(vm);
            }
            if lines + taken > 0 || self.held_back || self.settle_at.is_some() {
                // Pairs with the swap above, in the next round of this thread's own.
                vm.console.pending.store(true, Ordering::Release);
            }
            busy |= lines + taken > 0;
            self.held_back |= held_back;
            self.dues.charge(vm);
        }
        busy
    }

    /// Where output of `vm` may be cut: unfinished lines are held back in text mode, while it is still writing, so that its lines
    /// are not torn by others'.
    fn cut(vm: &Vm) -> Cut {
        let quiet = sysreg::cntpct_el0().saturating_sub(vm.console.last_output.load(Ordering::Relaxed));
        if !carrier::is_framed() && quiet < host::ticks(LINE_MICROSECONDS) { Cut::AtLines } else { Cut::Anywhere }
    }

    /// Moves a chunk, which ends where `cut` lets it; returns its length.
    #[inline(never)]
    fn drain_one<const N: usize>(&mut self, source: Source, ring: &IrqLock<Ring<N>>, cut: Cut) -> usize {
        let mut chunk = [0_u8; CHUNK];
        let mut ring = ring.lock();
        let limit = match cut {
            Cut::AtLines => ring.whole_lines(CHUNK),
            Cut::Anywhere => CHUNK,
        };
        self.held_back |= limit == 0 && ring.room() < N;
        let taken = chunk.get_mut(..limit).map_or(0, |chunk| ring.pop_into(chunk));
        drop(ring);
        if taken > 0 {
            let bytes = chunk.get(..taken).unwrap_or(&[]);
            self.emit(source, bytes);
        }
        taken
    }

    /// Says what was lost while the UART did not take anything, as soon as it does again, and which interrupts were.
    fn report_loss(&mut self) {
        let dropped = uart::dropped();
        if dropped != self.lost && !uart::is_stuck() {
            log::warn!("the UART took nothing for a while: {} bytes of output are lost", dropped - self.lost);
            self.lost = dropped;
            self.send(&Message::Lost);
        }
        let lost = port::lost();
        if lost != self.lost_by_port && !carrier::is_full() {
            log::warn!(
                "the link's port took nothing for a while: {} bytes of output are lost",
                lost - self.lost_by_port
            );
            self.lost_by_port = lost;
            self.send(&Message::Lost);
        }
        if arrivals::take_damaged() {
            self.send(&Message::Lost);
        }
        let unclaimed = interrupts::unclaimed();
        if unclaimed != self.unclaimed {
            log::warn!("{} interrupts came that no driver handles, and were disabled", unclaimed - self.unclaimed);
            self.unclaimed = unclaimed;
        }
    }

    /// Moves lines about `vm`; returns their length.
    #[inline(never)]
    fn drain_reports(&mut self, vm: &Vm) -> usize {
        let mut chunk = [0_u8; CHUNK];
        let mut reports = vm.console.reports.lock();
        reports.settle(host::milliseconds(), |out, left_out| write_left_out(out, vm.config.name, left_out));
        self.settle_at = [self.settle_at, reports.next()].into_iter().flatten().min();
        let limit = reports.ring().whole_lines(CHUNK);
        let taken = chunk.get_mut(..limit).map_or(0, |chunk| reports.ring().pop_into(chunk));
        drop(reports);
        if taken > 0 {
            self.emit(Source::Log, chunk.get(..taken).unwrap_or(&[]));
        }
        taken
    }

    #[inline(never)]
    fn emit(&mut self, source: Source, bytes: &[u8]) {
        if carrier::is_framed() {
            for chunk in bytes.chunks(link::MAX_PAYLOAD) {
                let _ = carrier::send(source.channel(), &[chunk]);
            }
        } else {
            self.emit_text(source, bytes);
        }
    }

    /// Readable text: each line begins with its source's name. Carriage returns are the hypervisor's own business.
    fn emit_text(&mut self, source: Source, bytes: &[u8]) {
        for &byte in bytes {
            if self.line_open && self.source != Some(source) {
                self.end_line();
            }
            if byte == b'\r' {
                continue;
            }
            if byte == b'\n' {
                if self.source != Some(source) || !self.line_open {
                    self.begin_line(source);
                }
                self.end_line();
                continue;
            }
            if !self.line_open {
                self.begin_line(source);
            }
            uart::send(byte);
        }
    }

    fn begin_line(&mut self, source: Source) {
        let name = |id: VmId| vm::by_id(id).map_or("?", |vm| vm.config.name);
        let _ = match source {
            Source::Log => uart::Emergency.write_str("[undercroft] "),
            Source::Uart(id) => write!(uart::Emergency, "[{}] ", name(id)),
            Source::Virtio(id) => write!(uart::Emergency, "[{} hvc0] ", name(id)),
        };
        self.source = Some(source);
        self.line_open = true;
    }

    fn end_line(&mut self) {
        uart::send(b'\r');
        uart::send(b'\n');
        self.line_open = false;
    }

    #[inline(never)]
    fn send(&self, message: &Message<'_>) {
        if !carrier::is_framed() {
            return;
        }
        let mut buffer = [0_u8; link::MAX_PAYLOAD];
        if let Some(payload) = message.encode(&mut buffer) {
            let _ = carrier::send(Channel::Control, &[payload]);
        }
    }

    /// Presses a VM's power button; it is released a moment later.
    fn press(&mut self, vm: &Vm) {
        if vm.deliver(|vm| vm.devices.set_power_button(vm, true)).is_err() {
            return self
                .send(&Message::Refused { text: "power button: the VM is being restored and has no state yet" });
        }
        let at = sysreg::cntpct_el0().saturating_add(host::ticks(PRESS_MICROSECONDS));
        // Pressed again, it stays pressed for longer: once for each VM is enough.
        self.released.retain(|(id, _)| *id != vm.id);
        let _ = self.released.try_push((vm.id, at));
    }

    /// Says who is here.
    #[inline(never)]
    fn introduce(&mut self) {
        self.send(&hello());
        // A VM that is off already is said to be so by `report_states`, after the last of its output.
        output::note_change();
        for vm in vm::all() {
            self.send(&Message::Vm {
                vm: vm.id.0,
                name: vm.config.name,
                state: VmState::Running { boots: vm.boots() },
            });
        }
    }

    /// Moves all that a VM which is off has written, as far as there is room. Says whether that is all.
    fn drain_whole(&mut self, vm: &Vm) -> bool {
        while !carrier::is_full() {
            let moved = self.drain_reports(vm)
                + self.drain_one(Source::Log, &vm.console.log, Cut::AtLines)
                + self.drain_one(Source::Uart(vm.id), &vm.console.uart, Cut::Anywhere)
                + self.drain_one(Source::Virtio(vm.id), &vm.console.virtio, Cut::Anywhere);
            if moved == 0 {
                return true;
            }
        }
        false
    }

    /// Moves all that waits; waits for room itself, but no longer than [`LAST_MILLISECONDS`].
    fn drain_all(&mut self) {
        let end = host::milliseconds().saturating_add(LAST_MILLISECONDS);
        loop {
            if carrier::is_full() {
                if host::milliseconds() >= end {
                    return;
                }
                sched::block(Some(Ticks(sysreg::cntpct_el0().saturating_add(host::ticks(1000)))));
                output::look_again();
            } else if !self.drain() && !carrier::is_full() {
                return;
            }
        }
    }

    #[inline(never)]
    fn report_states(&mut self) {
        let lost = port::lost();
        // What was reported decides about the end, not a second look: a VM that stops between the two would never be said to
        // have stopped. It has noted a change, so its turn comes in the next round.
        let mut all_off = true;
        for vm in vm::all() {
            let stop = vm.stopped();
            match stop {
                // The state comes behind all that the VM has written, so it waits for room with that.
                Some(_) if !self.drain_whole(vm) => return output::note_change(),
                Some(_) => {}
                None => all_off = false,
            }
            self.send(&Message::VmState { vm: vm.id.0, state: state_of(vm, stop.as_ref()) });
        }
        if all_off && !self.ended {
            self.ended = true;
            // The statistics of many VMs fill the ring: lines that still wait in it would make room.
            self.drain_all();
            let text = Text::of(stats::write);
            output::push_log(text.as_bytes());
            log::info!("all VMs are off");
            self.drain_all();
            self.send(&Message::AllStopped);
            if POWER_OFF_AT_END.load(Ordering::Relaxed) {
                carrier::drain(LAST_MILLISECONDS);
                firmware::power_off();
            }
        } else if !all_off {
            self.ended = false;
        }
        if port::lost() != lost {
            // What was lost may be a state, so all are told anew.
            self.ended = false;
            output::note_change();
        }
    }

    /// Handles what arrived by the UART. Says whether anything did.
    #[inline(never)]
    fn take_input(&mut self, decoder: &mut Decoder) -> bool {
        let mut any = false;
        while let Some(byte) = uart::receive() {
            any = true;
            match decoder.push(byte) {
                None => {}
                Some(Event::Text(byte)) => self.typed(byte),
                Some(Event::Frame { channel, payload }) => self.take_frame(channel, payload),
                Some(Event::Damaged) => {
                    log::warn!("link: a damaged frame arrived");
                    self.send(&Message::Lost);
                }
            }
        }
        any
    }

    /// Handles frames that arrived by the port, some of them. Says whether there were any.
    #[inline(never)]
    fn take_posted(&mut self) -> bool {
        let mut payload = [0; link::MAX_PAYLOAD];
        let mut any = false;
        for _ in 0..FRAMES_AT_ONCE {
            let Some((channel, length, piece)) = arrivals::next(&mut payload) else { break };
            any = true;
            if let Some(piece) = piece {
                self.take_frame(channel, &piece);
                arrivals::give_back(piece);
                // Each is as much work as many others.
                break;
            }
            self.take_frame(channel, payload.get(..length).unwrap_or_default());
        }
        any
    }

    fn take_frame(&mut self, channel: Channel, payload: &[u8]) {
        match channel {
            Channel::Control => {
                if let Some(command) = Command::decode(payload) {
                    self.obey(command);
                }
            }
            Channel::Requests | Channel::Bulk => {
                if let Some(vm) = self.operator.answer(payload, send_reply) {
                    self.press(vm);
                }
            }
            Channel::Console(id) => {
                if let Some(vm) = vm::by_id(id) {
                    self.pass_on(vm, Stream::Uart, payload);
                }
            }
            Channel::VirtioConsole(id) => {
                if let Some(vm) = vm::by_id(id) {
                    self.pass_on(vm, Stream::Virtio, payload);
                    vm.console.ask_for_service();
                }
            }
            Channel::Log => log::warn!("link: a frame arrived on a channel that only sends"),
        }
    }

    /// A byte of text: for the VM in focus, or part of a command.
    fn typed(&mut self, byte: u8) {
        if core::mem::take(&mut self.command_key) {
            return self.typed_command(byte);
        }
        if byte == COMMAND_KEY {
            self.command_key = true;
            return;
        }
        if let Some(vm) = vm::by_id(VmId(self.focus)) {
            self.pass_on(vm, Stream::Uart, &[byte]);
        }
    }

    /// Input for a VM's console. It waits if the VM waits for a state: as if it were typed then.
    fn pass_on(&mut self, vm: &Vm, stream: Stream, bytes: &[u8]) {
        let passed_on = vm.deliver(|vm| match stream {
            Stream::Uart => vm.devices.receive(vm, bytes),
            Stream::Virtio => vm.devices.receive_virtio(vm, bytes),
        });
        if passed_on.is_err() {
            self.operator.transfer.keep_input(vm, stream, bytes);
        }
    }

    fn typed_command(&mut self, byte: u8) {
        let count = vm::all().count() as u16;
        match byte {
            b'0'..=b'9' if u16::from(byte - b'0') < count => self.focus = u16::from(byte - b'0'),
            b'n' => self.focus = (self.focus + 1) % count.max(1),
            b'p' => self.obey(Command::PowerButton { vm: self.focus }),
            b's' => return self.obey(Command::Stats),
            b't' => return self.obey(Command::ExitTimes { on: !counters::is_timed() }),
            _ => {
                log::info!(
                    "Ctrl-] then: 0-9 or n choose the VM that gets the input, p power button, s statistics, t time exits"
                );
                return;
            }
        }
        if let Some(vm) = vm::by_id(VmId(self.focus)) {
            log::info!("input goes to {}", vm.config.name);
        }
    }

    #[inline(never)]
    fn obey(&mut self, command: Command) {
        let find = |id: u16| {
            let vm = vm::by_id(VmId(id));
            if vm.is_none() {
                log::warn!("link: there is no VM number {id}");
            }
            vm
        };
        match command {
            Command::Attach { .. } => {
                carrier::set_framed(true);
                // Whoever was there before is there no longer.
                self.operator.transfer.give_up("somebody else has attached");
                carrier::point_out(hello);
                self.introduce();
            }
            Command::Detach => carrier::set_framed(false),
            Command::PowerButton { vm } => {
                // The tools in the guest, where they run, are surer than a button that nobody may watch.
                if let Some(vm) = find(vm) {
                    vm.start_again_after_power_off(None);
                    if vm.deliver(|vm| vm.doors.ask_to_stop(vm, Shutdown::Halt)) != Ok(true) {
                        self.press(vm);
                    }
                }
            }
            Command::ForceStop { vm } => {
                if let Some(vm) = find(vm) {
                    vm.stop(Stop::Operator);
                }
            }
            // A life that began while a state is put in would get the state's memory.
            Command::Reboot { vm } | Command::Reset { vm }
                if find(vm).is_some_and(|vm| self.operator.transfer.holds(vm)) =>
            {
                self.send(&Message::Refused { text: "reboot: the VM is being saved or restored" });
            }
            Command::Reboot { vm } => {
                if let Some(vm) = find(vm)
                    && !vm.start()
                    && vm.deliver(|vm| vm.doors.ask_to_stop(vm, Shutdown::Restart)) != Ok(true)
                {
                    vm.stop(Stop::Restart);
                }
            }
            Command::Reset { vm } => {
                if let Some(vm) = find(vm)
                    && !vm.start()
                {
                    vm.stop(Stop::Restart);
                }
            }
            Command::Stats => {
                let text = Text::of(stats::write);
                if carrier::is_framed() {
                    for piece in Message::pieces(&text) {
                        self.send(&Message::Stats { text: piece });
                    }
                    self.send(&Message::StatsEnd);
                } else {
                    output::push_log(text.as_bytes());
                }
            }
            Command::ExitTimes { on } => {
                counters::set_timed(on);
                log::info!("exits are {}", if on { "timed" } else { "counted only" });
            }
            Command::PauseVm { vm } => {
                let Some(vm) = find(vm) else { return };
                // In this order: what does not run does not begin to stand still for what is being saved. If it does that already, it
                // would go on by itself: from now on it is the operator who lets it.
                let did_run = vm.pause();
                let was_stalled = vm.ram.lock().forget_stall();
                let is_to_go_on = self.operator.transfer.keep_paused(vm);
                if !(did_run || was_stalled || is_to_go_on) {
                    self.send(&Message::Refused { text: "pause: the VM does not run" });
                }
            }
            Command::ResumeVm { vm } => {
                let Some(vm) = find(vm) else { return };
                // Should it stand still because of what is being saved, that is tried again.
                vm.ram.lock().forget_stall();
                if self.operator.transfer.stops(vm) {
                    self.send(&Message::Refused { text: "resume: the VM is being saved or restored" });
                } else if !vm.resume() {
                    self.send(&Message::Refused { text: "resume: the VM is not paused" });
                }
            }
        }
    }
}

/// Answers the operator, if anybody speaks frames. Says whether all of the answer is on its way.
fn send_reply(reply: &Reply<'_>) -> bool {
    if let Answer::Value(bytes) = reply.answer
        && bytes.len() > request::MAX_CHUNK
    {
        let mut head = [0; request::VALUE_HEAD];
        let head = Reply::value_head(reply.id, bytes.len(), &mut head).unwrap_or_default();
        return carrier::send(Channel::Bulk, &[head, bytes]).is_ok();
    }
    let mut buffer = [0_u8; link::MAX_PAYLOAD];
    reply.encode(&mut buffer).is_some_and(|payload| carrier::send(Channel::Requests, &[payload]).is_ok())
}

fn state_of<'a>(vm: &Vm, stop: Option<&'a Stop>) -> VmState<'a> {
    match stop {
        None if vm.is_paused() && !vm.is_stalled() => VmState::Paused,
        None | Some(Stop::Reset | Stop::Restart) => VmState::Running { boots: vm.boots() },
        Some(Stop::PowerOff) if vm.boots() == 0 => VmState::Stopped(StopReason::NotStarted),
        Some(Stop::PowerOff) => VmState::Stopped(StopReason::PowerOff),
        Some(Stop::Operator) => VmState::Stopped(StopReason::Forced),
        Some(Stop::Crashed(reason)) => VmState::Stopped(StopReason::Crashed(reason)),
    }
}
