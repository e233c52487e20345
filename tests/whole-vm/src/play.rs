//! Any bytes, played as what a guest and the outside do: on two VMs, of which one is taken out and put into a new one wherever
//! the bytes say so. Both must do the same.

use abi::bundle::Doors;
use abi::calls::{self, own, vmware};
use units::{PAGE_SIZE, VcpuId};
use vgic::list_register;
use vm::Stop;
use vm::exits::Cause;

use crate::whole::{VCPUS, VcpuState, WholeVm};

/// The most that one exit does: what a device does in a share of work, each of them being polled, and what else is looked at.
pub const BOUND: u64 = 40_000;

/// Numbers out of bytes; zeros behind the last.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_at(N.min(self.0.len()));
        let mut bytes = [0; N];
        bytes[..taken.len()].copy_from_slice(taken);
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn double(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// One of these, or any number at all.
    fn one_of(&mut self, some: &[u64]) -> u64 {
        let which = usize::from(self.byte());
        some.get(which % (some.len() + 1)).copied().unwrap_or_else(|| self.double())
    }
}

/// Something that happens to a VM.
#[derive(Clone, Copy, Debug)]
enum Event {
    Exit(VcpuId, Cause),
    /// The guest sets one of its registers.
    Set(VcpuId, u8, u64),
    /// It goes to another level, or has another byte order.
    Become(VcpuId, u64, u64),
    /// It writes its memory.
    Store(u64, u64),
    /// It acknowledges the interrupt of a list register, or ends it.
    Interrupt(VcpuId, u8),
    Pass(u64),
    Type(u8),
    TakeOutput,
    Press(bool),
    SetTime,
    Pause,
    Resume,
    Start,
    Stop(bool),
    /// The second VM is taken out and put into a new one, if they stand still.
    Move,
}

/// Addresses of devices, and near them.
const PLACES: [u64; 29] = [
    0x0800_0000,
    0x0800_0100,
    0x0800_0200,
    0x0800_0f00,
    0x080a_0000,
    0x080b_0000,
    0x080d_0100,
    0x0900_0000,
    0x0901_0000,
    0x0903_0000,
    0x0910_0000,
    0x0911_0000,
    0x0912_0000,
    0x0913_0000,
    0x0913_0028,
    0x0914_0000,
    0x0915_0000,
    0x0a00_0000,
    0x0a00_0200,
    0x0a00_0400,
    // The second of a kind.
    0x0b00_0000,
    0x0b02_0000,
    0x0b03_0000,
    0x0b03_1000,
    0x0b04_0000,
    0x0b04_1000,
    0x0b06_0000,
    0x0b07_0000,
    0x0b09_0000,
];
/// Words of code: loads and stores of pairs and with writeback, DC ZVA.
const CODE: [u64; 5] = [0x2900_0861, 0xa940_0861, 0xf840_8461, 0xb900_0061, 0xd50b_7423];
/// Where instructions are, in RAM that everybody may read.
const TEXT: u64 = 0x4000_0000;

fn event(input: &mut Input<'_>) -> Event {
    let which = input.byte();
    let vcpu = VcpuId(which >> 6 & 3);
    match which & 0x1f {
        0..=6 => device(vcpu, input),
        7 => Event::Exit(vcpu, Cause { esr: input.double(), far: input.double(), hpfar: input.double() }),
        8 => {
            let esr = u64::from(input.byte()) << 26 | u64::from(input.word()) & 0x3ff_ffff;
            Event::Exit(vcpu, Cause { esr, far: input.one_of(&PLACES), hpfar: u64::from(input.word()) })
        }
        // RAM that is not shown, or was.
        9 => {
            let class = if input.byte() & 1 == 0 { 0x24 } else { 0x20 };
            let at = TEXT + u64::from(input.half()) * PAGE_SIZE;
            Event::Exit(vcpu, Cause { esr: class << 26 | 1 << 25 | 7, far: at, hpfar: at >> 8 })
        }
        // HVC and SMC, by SMCCC and VMware's way.
        10 | 11 => {
            let immediate = if input.byte() & 1 == 0 { 0 } else { 0x86 };
            let class = if which & 0x20 == 0 { 0x16 } else { 0x17 };
            Event::Exit(vcpu, Cause { esr: class << 26 | 1 << 25 | immediate, far: 0, hpfar: 0 })
        }
        12 => Event::Exit(vcpu, Cause { esr: 0x6220_c3e3, far: 0, hpfar: 0 }),
        13 => Event::Exit(vcpu, Cause { esr: 1 << 26 | 1 << 25 | u64::from(input.byte() & 7), far: 0, hpfar: 0 }),
        // Trapped system registers: ICC_SGI1R_EL1, ICC_DIR_EL1, CNTP_*, those of debug (MDSCR_EL1, MDCCINT_EL1, the claim tags, a
        // breakpoint, a watchpoint), or any.
        14 => {
            let any = input.word() & 0x1ff_ffff;
            let others = [0x3a_3416, 0x32_3017, 0x34_f85c, 0x32_f85c, 0x34_f87c];
            let debug = [0x24_0004, 0x20_0004, 0x2c_1c10, 0x2c_1c12, 0x28_0004, 0x2e_0002];
            let iss = input.one_of(&[&others[..], &debug].concat()) & 0x3f_fffe;
            let iss = if any & 1 == 0 { iss | u64::from(any >> 24) } else { u64::from(any) };
            Event::Exit(vcpu, Cause { esr: 0x18 << 26 | 1 << 25 | iss, far: 0, hpfar: 0 })
        }
        15..=18 => {
            let number = input.byte() % 31;
            let values = [
                TEXT,
                0x4070_0000,
                0,
                1,
                8,
                100,
                0x8400_0002,
                0xc400_0003,
                0x8400_0008,
                0x8400_0009,
                0xc400_0001,
                vmware::MAGIC.into(),
                vmware::PORT_LOW.into(),
                vmware::PORT_HIGH.into(),
                calls::marked(calls::LOW),
                own::PORT.into(),
                own::MAGIC.into(),
                abi::wfe::DETECT,
                abi::wfe::CONFIGURE,
                abi::wfe::PAT,
                abi::wfe::CONFIGURE_OWN,
                abi::wfe::QUERY,
                vmware::command::MESSAGE.into(),
                0x4952_5043,
                0x1_0000,
            ];
            Event::Set(vcpu, number, input.one_of(&values))
        }
        19 => Event::Become(vcpu, u64::from(input.byte()), input.one_of(&[0, 1 << 25, 1 << 24])),
        20 | 21 => Event::Store(TEXT + u64::from(input.half()) * 8, input.one_of(&CODE)),
        22 | 23 => Event::Interrupt(vcpu, input.byte()),
        24 => Event::Pass(u64::from(input.word() >> (input.byte() & 31))),
        25 => Event::Type(input.byte()),
        26 if which & 0x20 != 0 => Event::SetTime,
        26 => Event::TakeOutput,
        27 => Event::Press(which & 0x20 != 0),
        28 => Event::Pause,
        29 => Event::Resume,
        30 if input.byte() & 7 == 0 => Event::Stop(which & 0x20 != 0),
        30 => Event::Start,
        _ => Event::Move,
    }
}

/// A data abort at a device: with a syndrome of the access, or without.
fn device(vcpu: VcpuId, input: &mut Input<'_>) -> Event {
    let at = input.one_of(&PLACES).wrapping_add(u64::from(input.byte() & 0x7c));
    let shape = u64::from(input.half());
    // ISV, SAS, SSE, SRT, SF and WnR as they come.
    let valid = if shape & 7 == 0 { 0 } else { 1 << 24 };
    let iss =
        valid | (shape >> 3 & 3) << 22 | (shape >> 5 & 1) << 21 | (shape >> 6 & 31) << 16 | (shape >> 11 & 1) << 15;
    let esr = 0x24 << 26 | 1 << 25 | iss | (shape >> 12 & 1) << 6 | 7;
    Event::Exit(vcpu, Cause { esr, far: at, hpfar: at >> 12 << 4 })
}

fn happen(vm: &mut WholeVm, event: Event) {
    let registers = |vm: &WholeVm, id: VcpuId| {
        (vm.place(id) == VcpuState::In).then(|| id.index()).filter(|&index| index < vm.vcpus.len())
    };
    match event {
        Event::Exit(id, cause) => vm.exit(id, cause),
        Event::Set(id, number, value) => {
            if let Some(index) = registers(vm, id) {
                vm.vcpus[index].registers.set(number, value);
            }
        }
        Event::Become(id, mode, sctlr) => {
            if let Some(index) = registers(vm, id) {
                let state = &mut vm.vcpus[index].registers.state;
                state.pstate = [0x3c0, 0x3c4, 0x3c5][usize::from(mode as u8 % 3)] | (mode >> 4 & 1) << 22;
                (state.sctlr_el1, state.pc) = (sctlr, TEXT + (mode >> 2) * 8);
            }
        }
        Event::Store(at, value) => {
            let mut memory = vm.shared.memory.borrow_mut();
            let _ = memory.write(units::Ipa(at), &value.to_le_bytes());
        }
        Event::Interrupt(id, number) => {
            if let Some(index) = registers(vm, id) {
                interrupt(&mut vm.vcpus[index].registers.list, number);
            }
        }
        Event::Pass(ticks) => vm.pass(ticks),
        Event::Type(byte) => vm.type_in(&[byte; 3]),
        Event::TakeOutput => drop(vm.take_output()),
        Event::Press(is_pressed) => vm.press(is_pressed),
        Event::SetTime => vm.set_time(),
        Event::Pause => vm.pause(),
        Event::Resume => vm.resume(),
        Event::Start => vm.start(),
        Event::Stop(restarts) => vm.stop(if restarts { Stop::Restart } else { Stop::Operator }),
        Event::Move => {}
    }
}

/// What the hardware does with a list register: its interrupt becomes active, or ends; or the guest changes its mask.
fn interrupt(list: &mut vgic::ListRegisters, number: u8) {
    if number & 0x80 != 0 {
        list.vmcr = u64::from(number & 3) | u64::from(number & 0x7c) << 25;
        return;
    }
    let index = usize::from(number & 1);
    if list.used >> index & 1 == 0 {
        return;
    }
    let value = list.lr[index];
    list.lr[index] = match value >> 62 {
        // Pending becomes active.
        1 => value & !list_register::STATE | 2 << 62,
        // Active ends; what is pending again stays so.
        2 => value & !list_register::STATE,
        3 => value & !list_register::STATE | 1 << 62,
        _ => value,
    };
}

/// What the guests may do, and whether a pause stops their time.
fn shape(input: &mut Input<'_>) -> (Doors, bool) {
    let shape = input.byte();
    let policy = Doors {
        vmware: shape & 1 == 0,
        strict: shape & 2 != 0,
        wfe: shape & 4 == 0,
        watchdog_user: shape & 8 != 0,
        watchdog_milliseconds: if shape & 0x10 != 0 { 500 } else { 0 },
        watchdog_action: input.byte() % 5,
        watchdog_choices: 0x1f,
        vcpu_watchdog_milliseconds: if shape & 0x20 != 0 { 300 } else { 0 },
        generic_watchdog: true,
        user_calls: WholeVm::every_call(),
        kernel_calls: WholeVm::every_call(),
        ..Doors::default()
    };
    (policy, shape & 0x40 != 0)
}

/// A VM to which all of `data` has happened, and which stands still then, with what it was made of. Nothing, if it is off.
#[must_use]
pub fn played(data: &[u8]) -> Option<(WholeVm, Doors, bool)> {
    let mut input = Input(data);
    let (policy, stops) = shape(&mut input);
    let mut vm = WholeVm::running(policy, stops);
    while !input.0.is_empty() {
        let event = event(&mut input);
        happen(&mut vm, event);
    }
    vm.pause();
    vm.save().is_some().then_some((vm, policy, stops))
}

/// Plays `data`.
///
/// # Panics
/// If a promise is broken.
pub fn play(data: &[u8]) {
    let mut input = Input(data);
    let (policy, stops) = shape(&mut input);
    let mut stays = WholeVm::running(policy, stops);
    let mut moves = WholeVm::running(policy, stops);
    for _ in 0..512 {
        if input.0.is_empty() {
            break;
        }
        let event = event(&mut input);
        for vm in [&mut stays, &mut moves] {
            vm.take_work();
            happen(vm, event);
            let work = vm.take_work();
            assert!(work <= BOUND, "{event:?} leads to {work} pieces of work");
        }
        if let Event::Move = event {
            move_it(&mut moves);
        }
        assert_eq!(stays.take_done(), moves.take_done(), "after {event:?}");
        assert!(stays.shows_time_like(&moves), "after {event:?}");
    }
    // Whatever became different and did not show yet shows in the states.
    for vm in [&mut stays, &mut moves] {
        vm.pause();
    }
    assert_eq!(stays.save(), moves.save());
    assert!(stays.looks_like(&moves), "all of it is alike");
    assert!((0..VCPUS).all(|id| stays.place(VcpuId(id)) == moves.place(VcpuId(id))));
}

/// Takes the state out, puts it into new parts, and looks that it is the same.
fn move_it(vm: &mut WholeVm) {
    let Some(saved) = vm.save() else { return };
    let bytes = saved.to_bytes().expect("there is memory");
    let read = snapshot::SavedVm::from_bytes(&bytes).expect("it was just written");
    assert_eq!(read, saved);
    vm.restore(read).expect("it was just taken out");
    assert_eq!(vm.save(), Some(saved), "what was put in is taken out");
}
