//! Accesses to devices, by a guest with a page of code, a page of RAM in front of the UART, and whatever else a test maps.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::vec::Vec;

use a64::Unsupported;
use abi::bundle::Doors as Policy;
use cpu::inject::AbortKind;
use cpu::translation::{Memory, Rights};
use devices::bus::Place;
use machine::{MachinePlan, RAM_BASE, Spec, Target, UART_BASE};
use proptest::prelude::*;
use services::Facts;
use units::{AccessSize, Direction, Hz, Ipa, RegisterAccess, Va};

use super::{Guest, Refusal, Registers, StackPointer, Written, abort_of, described, undescribed};
use crate::exits::DebugState;

pub(crate) const CODE: u64 = 0x1000;
/// Where each vCPU's record of stolen time is.
pub(crate) const RECORD: Ipa = Ipa(0x0999_0000);
/// EL1, on SP_EL1.
pub(crate) const KERNEL: u64 = 0x3c5;
pub(crate) const USER: u64 = 0x3c0;
/// SCTLR_EL1.EE: EL1's data is big-endian.
const BIG_ENDIAN: u64 = 1 << 25;
const WORD: RegisterAccess = RegisterAccess { rt: 1, bytes: 4, sign_extend: false, sixty_four: false };

pub(crate) const STP_W1_W2_AT_X3: u32 = 0x2900_0861;
const LDP_W1_W2_AT_X3: u32 = 0x2940_0861;
const LDP_X1_X2_AT_X3: u32 = 0xa940_0861;
const LDR_X1_AT_X3_THEN_ADD_8: u32 = 0xf840_8461;
const LDR_X1_AT_SP_THEN_ADD_8: u32 = 0xf840_87e1;
const LDTR_X1_AT_X3: u32 = 0xf840_0861;
pub(crate) const LDXR_W1_AT_X3: u32 = 0x885f_7c61;
const LDR_Q0_AT_X3: u32 = 0x3dc0_0060;
const DC_ZVA_X3: u32 = 0xd50b_7423;
const NOP: u32 = 0xd503_201f;

/// What is mapped at a page of virtual addresses.
#[derive(Clone, Copy)]
struct Mapped {
    ipa: u64,
    memory: Memory,
    for_user: bool,
    is_read_only: bool,
}

pub(crate) struct Fake {
    plan: MachinePlan,
    pages: BTreeMap<u64, Mapped>,
    code: u32,
    pub(crate) sctlr_el1: u64,
    asked: Cell<usize>,
    pub(crate) doors: Policy,
    pub(crate) debug: DebugState,
    /// A table for this page has to be waited for.
    waits_at: Option<u64>,
}

impl Fake {
    /// A guest whose code is `word`, with RAM in front of the UART and nothing behind it.
    pub(crate) fn new(word: u32) -> Self {
        let spec = Spec {
            name: "one",
            vcpus: 2,
            memory_bytes: 0x20_0000,
            ipa_bits: 40,
            virtio: &[],
            generic_watchdog: false,
            enclave: false,
            counter_frequency: Hz(1_000_000),
            timers: machine::Timers::Cpu,
        };
        let plan = MachinePlan::new(spec).unwrap();
        let mut fake = Self {
            plan,
            pages: BTreeMap::new(),
            code: word,
            sctlr_el1: 0,
            asked: Cell::new(0),
            doors: Policy::default(),
            debug: DebugState::default(),
            waits_at: None,
        };
        fake.map(CODE, RAM_BASE.0, Memory::Normal, true);
        fake.map(UART_BASE - 0x1000, RAM_BASE.0 + 0x1000, Memory::Normal, true);
        fake.map(UART_BASE, UART_BASE, Memory::Device, true);
        fake
    }

    /// The page at `va` cannot be written.
    pub(crate) fn protect(mut self, va: u64) -> Self {
        self.pages.entry(va).and_modify(|page| page.is_read_only = true);
        self
    }

    /// A table for the page at `va` has not come yet.
    fn waiting_at(mut self, va: u64) -> Self {
        self.waits_at = Some(va);
        self
    }

    fn map(&mut self, va: u64, ipa: u64, memory: Memory, for_user: bool) {
        self.pages.insert(va, Mapped { ipa, memory, for_user, is_read_only: false });
    }

    /// How often it was asked for something in its memory.
    pub(crate) fn questions(&self) -> usize {
        self.asked.get()
    }

    fn ask(&self) {
        self.asked.set(self.asked.get() + 1);
    }
}

impl Guest for Fake {
    fn device(&self, ipa: Ipa) -> Option<Target> {
        self.plan.find(ipa)
    }

    fn is_ram(&self, ipa: Ipa) -> bool {
        self.plan.ram().contains(ipa)
    }

    fn translate(&self, va: Va, rights: Rights, direction: Direction) -> Result<(Ipa, Memory), Refusal> {
        self.ask();
        let number = va.0 << 8 >> 8 & !0xfff;
        if self.waits_at == Some(number) {
            return Err(Refusal::Again);
        }
        let page = self.pages.get(&number).ok_or(Refusal::Abort(va, AbortKind::Translation(3)))?;
        if rights == Rights::User && !page.for_user || direction == Direction::Write && page.is_read_only {
            return Err(Refusal::Abort(va, AbortKind::Permission(3)));
        }
        Ok((Ipa(page.ipa | va.0 & 0xfff), page.memory))
    }

    fn refused_walk(&self, _: Va, _: Ipa) -> AbortKind {
        AbortKind::ExternalOnWalk(2)
    }

    fn word(&self, ipa: Ipa) -> Option<[u8; 4]> {
        self.ask();
        self.is_ram(ipa).then_some(self.code.to_le_bytes())
    }

    fn stack_pointer(&self, which: StackPointer) -> u64 {
        match which {
            StackPointer::El0 => UART_BASE,
            StackPointer::El1 => UART_BASE + 0x10,
        }
    }

    fn sctlr_el1(&self) -> u64 {
        self.sctlr_el1
    }

    fn dczid_el0(&self) -> u64 {
        4
    }

    fn debug(&self) -> DebugState {
        self.debug
    }

    fn doors(&self) -> &Policy {
        &self.doors
    }

    fn facts(&self) -> Facts {
        Facts { stolen_time: Some(RECORD), ..Facts::default() }
    }
}

/// Registers with this X3.
pub(crate) fn with_x3(x3: u64) -> [u64; 31] {
    let mut x = [0x1122_3344_5566_7788; 31];
    x[3] = x3;
    x
}

fn at(x: &[u64; 31], pstate: u64) -> Registers<'_> {
    Registers { x, pc: CODE, pstate }
}

fn uart(guest: &Fake, offset: u64) -> Target {
    guest.plan.find(Ipa(UART_BASE + offset)).unwrap()
}

/// What `word` does at X3, refused there, as the kernel.
fn run(word: u32, x3: u64, direction: Direction) -> Result<Vec<(Target, u8)>, Refusal> {
    let guest = Fake::new(word);
    let operations = undescribed(&guest, at(&with_x3(x3), KERNEL), Va(x3), direction)?;
    Ok(operations.iter().map(|operation| (operation.target, operation.rt())).collect())
}

#[test]
fn an_access_that_the_syndrome_describes_is_made_in_the_guests_byte_order() {
    let mut guest = Fake::new(NOP);
    let x = with_x3(0);
    let target = uart(&guest, 0x18);
    let ask =
        |guest: &Fake| described(guest, at(&x, KERNEL), target, Va(UART_BASE + 0x18), WORD, Direction::Read).unwrap();
    let little = ask(&guest);
    assert_eq!((little.target, little.size, little.rt()), (target, AccessSize::Word, 1));
    assert_eq!(little.loaded(0x1_8182_8384), 0x8182_8384);
    assert_eq!(little.stored(0x1_8182_8384), 0x8182_8384, "no more than the access's size");
    guest.sctlr_el1 = BIG_ENDIAN;
    let big = ask(&guest);
    assert_eq!(big.loaded(0x8182_8384), 0x8483_8281);
    assert_eq!(big.stored(0x1_8182_8384), 0x8483_8281);
    assert_eq!(guest.asked.get(), 0, "tables and memory are not looked at");
}

#[test]
fn what_is_not_aligned_is_refused_where_it_is() {
    let guest = Fake::new(NOP);
    for (bytes, offset) in [(2, 1), (4, 2), (8, 4)] {
        let far = Va(UART_BASE + offset);
        let register = RegisterAccess { bytes, ..WORD };
        let result = described(&guest, at(&with_x3(0), KERNEL), uart(&guest, offset), far, register, Direction::Read);
        assert_eq!(result, Err(Refusal::Abort(far, AbortKind::Alignment)));
    }
}

/// The syndrome describes the whole access, and FAR_EL2 its part in the device.
#[test]
fn what_begins_in_ram_and_ends_in_a_device_is_refused_where_it_begins() {
    const LDR_W1_AT_X3: u32 = 0xb940_0061;
    let far = Va(UART_BASE);
    let ask =
        |guest: &Fake, x3: u64| described(guest, at(&with_x3(x3), KERNEL), uart(guest, 0), far, WORD, Direction::Read);
    let guest = Fake::new(LDR_W1_AT_X3);
    assert_eq!(ask(&guest, UART_BASE - 2), Err(Refusal::Abort(Va(UART_BASE - 2), AbortKind::Alignment)));
    assert!(ask(&guest, UART_BASE).is_ok(), "it begins at the page");
    assert!(ask(&guest, UART_BASE | 0x5a << 56).is_ok(), "a tag is no part of the address");
    assert_eq!(ask(&guest, UART_BASE + 0x100), Err(Refusal::Again), "another address than what exited");
    assert_eq!(ask(&Fake::new(NOP), UART_BASE), Err(Refusal::Again), "another instruction than what exited");
    let mut alone = Fake::new(NOP);
    alone.pages.remove(&(UART_BASE - 0x1000));
    assert!(ask(&alone, 0).is_ok(), "nothing can begin where no memory is");
    alone.map(UART_BASE - 0x1000, RAM_BASE.0, Memory::Device, true);
    assert!(ask(&alone, 0).is_ok(), "nor where nothing may be unaligned");
    let waiting = Fake::new(LDR_W1_AT_X3).waiting_at(UART_BASE - 0x1000);
    assert_eq!(
        ask(&waiting, UART_BASE - 2),
        Err(Refusal::Again),
        "what is there is not known before its table has come"
    );
    // A byte begins where it ends.
    let (byte, nop) = (RegisterAccess { bytes: 1, ..WORD }, Fake::new(NOP));
    let alone = described(&nop, at(&with_x3(0), KERNEL), uart(&nop, 0), far, byte, Direction::Read);
    assert!(alone.is_ok() && nop.questions() == 0);
}

#[test]
fn a_pair_is_two_accesses_in_their_order() {
    let guest = Fake::new(NOP);
    let both = |first, second| Ok(std::vec![(uart(&guest, first), 1), (uart(&guest, second), 2)]);
    assert_eq!(run(STP_W1_W2_AT_X3, UART_BASE + 0x18, Direction::Write), both(0x18, 0x1c));
    assert_eq!(run(LDP_W1_W2_AT_X3, UART_BASE + 0x18, Direction::Read), both(0x18, 0x1c));
    assert_eq!(run(LDP_X1_X2_AT_X3, UART_BASE + 0x20, Direction::Read), both(0x20, 0x28));
}

#[test]
fn nothing_of_a_pair_is_done_if_a_half_cannot_be() {
    let refused = |x3, far, guest: &Fake| undescribed(guest, at(&with_x3(x3), KERNEL), Va(far), Direction::Write);
    let mut guest = Fake::new(STP_W1_W2_AT_X3);
    let last = UART_BASE + 0xffc;
    let behind = UART_BASE + 0x1000;
    assert_eq!(refused(last, last, &guest), Err(Refusal::Abort(Va(behind), AbortKind::Translation(3))));
    guest.map(behind, RAM_BASE.0 + 0x2000, Memory::Normal, true);
    assert_eq!(refused(last, last, &guest), Err(Refusal::Abort(Va(last), AbortKind::External)), "half in RAM");
    guest.map(behind, 0x3000_0000, Memory::Device, true);
    assert_eq!(refused(last, last, &guest), Err(Refusal::Abort(Va(behind), AbortKind::External)), "half in nothing");
    assert_eq!(refused(last, behind, &guest), Err(Refusal::Again), "what exited was a device, and now is nothing");
    for inside in [behind + 2, behind | 0x5a << 56] {
        assert_eq!(refused(last, inside, &guest), Err(Refusal::Again), "likewise, whatever byte of it, with a tag too");
    }
    let before = UART_BASE - 4;
    assert_eq!(
        refused(before, UART_BASE, &guest),
        Err(Refusal::Abort(Va(UART_BASE), AbortKind::External)),
        "half in RAM"
    );
    let odd = UART_BASE + 0x1e;
    assert_eq!(refused(odd, odd, &guest), Err(Refusal::Abort(Va(odd), AbortKind::Alignment)));
    let waiting = Fake::new(STP_W1_W2_AT_X3).waiting_at(behind);
    assert_eq!(refused(last, last, &waiting), Err(Refusal::Again), "a half whose table is still to come");
}

#[test]
fn an_instruction_that_does_not_explain_the_exit_is_executed_again() {
    assert_eq!(run(STP_W1_W2_AT_X3, UART_BASE, Direction::Read), Err(Refusal::Again), "a store does not read");
    assert_eq!(run(NOP, UART_BASE, Direction::Read), Err(Refusal::Again));
    let x = with_x3(UART_BASE + 0x40);
    let guest = Fake::new(LDP_W1_W2_AT_X3);
    assert_eq!(undescribed(&guest, at(&x, KERNEL), Va(UART_BASE), Direction::Read), Err(Refusal::Again));
    let mut gone = Fake::new(LDP_W1_W2_AT_X3);
    gone.pages.remove(&CODE);
    assert_eq!(undescribed(&gone, at(&x, KERNEL), Va(UART_BASE + 0x40), Direction::Read), Err(Refusal::Again));
    gone.map(CODE, UART_BASE, Memory::Device, true);
    assert_eq!(undescribed(&gone, at(&x, KERNEL), Va(UART_BASE + 0x40), Direction::Read), Err(Refusal::Again));
}

#[test]
fn the_base_register_is_the_one_that_the_state_selects() {
    let writeback = |word, x3, far, pstate| {
        let operations = undescribed(&Fake::new(word), at(&with_x3(x3), pstate), Va(far), Direction::Read).unwrap();
        operations.writeback
    };
    let next = |by| Some((by, UART_BASE + 0x18));
    let register = writeback(LDR_X1_AT_X3_THEN_ADD_8, UART_BASE + 0x10, UART_BASE + 0x10, KERNEL);
    assert_eq!(register, next(Written::Register(3)));
    let kernel = writeback(LDR_X1_AT_SP_THEN_ADD_8, 0, UART_BASE + 0x10, KERNEL);
    assert_eq!(kernel, next(Written::StackPointer(StackPointer::El1)));
    for on_sp_el0 in [USER, KERNEL & !1] {
        let written = writeback(LDR_X1_AT_SP_THEN_ADD_8, 0, UART_BASE, on_sp_el0);
        assert_eq!(written, Some((Written::StackPointer(StackPointer::El0), UART_BASE + 8)));
    }
}

#[test]
fn an_access_has_the_rights_of_its_instruction() {
    let mut guest = Fake::new(LDTR_X1_AT_X3);
    guest.map(UART_BASE, UART_BASE, Memory::Device, false);
    let x = with_x3(UART_BASE);
    let ask = |guest: &Fake, pstate| undescribed(guest, at(&x, pstate), Va(UART_BASE), Direction::Read);
    assert_eq!(ask(&guest, KERNEL), Err(Refusal::Abort(Va(UART_BASE), AbortKind::Permission(3))), "LDTR reads as EL0");
    guest.code = LDR_X1_AT_X3_THEN_ADD_8;
    assert!(ask(&guest, KERNEL).is_ok());
    assert!(ask(&guest, USER).is_err());
}

#[test]
fn what_makes_no_sense_on_a_device_is_named() {
    for (word, why, kind) in [
        (LDXR_W1_AT_X3, Unsupported::Exclusive, AbortKind::UnsupportedAtomic),
        (LDR_Q0_AT_X3, Unsupported::Simd, AbortKind::External),
    ] {
        assert_eq!(run(word, UART_BASE, Direction::Read), Err(Refusal::Unable { word, why }));
        assert_eq!(abort_of(why), kind);
    }
    let zero = |x3, direction| undescribed(&Fake::new(DC_ZVA_X3), at(&with_x3(x3), KERNEL), Va(UART_BASE), direction);
    let fault = Err(Refusal::Abort(Va(UART_BASE), AbortKind::Alignment));
    assert_eq!(zero(UART_BASE + 63, Direction::Write), fault, "DCZID_EL0 says 64 bytes");
    assert_eq!(zero(UART_BASE + 64, Direction::Write), Err(Refusal::Again), "another block");
    assert_eq!(zero(UART_BASE, Direction::Read), Err(Refusal::Again), "it does not read");
}

proptest! {
    /// Whatever the instruction and the registers are: what is done is on devices, covers what was refused, and is found out
    /// with a bounded number of questions.
    #[test]
    fn any_instruction_is_refused_or_explains_the_exit(
        word in prop_oneof![
            any::<u32>(),
            // Loads and stores of pairs, and of registers, with X3 as their base.
            any::<u32>().prop_map(|word| word & 0xd3ff_fc1f | 0x2800_0060),
            any::<u32>().prop_map(|word| word & 0xc3ff_fc1f | 0x3800_0060),
        ],
        near in -0x40..0x1040_i64,
        distance in -16..16_i64,
        is_read in any::<bool>(),
        is_user in any::<bool>(),
    ) {
        let direction = if is_read { Direction::Read } else { Direction::Write };
        let guest = Fake::new(word);
        let x3 = UART_BASE.wrapping_add_signed(near);
        let far = x3.wrapping_add_signed(distance);
        let x = with_x3(x3);
        let result = undescribed(&guest, at(&x, if is_user { USER } else { KERNEL }), Va(far), direction);
        prop_assert!(guest.asked.get() <= 4, "the instruction and two places");
        if let Ok(operations) = result {
            let covers = operations.iter().any(|operation| {
                let Target::Device(Place { offset, .. }) = operation.target else { return false };
                far.wrapping_sub(UART_BASE + offset) < operation.size.bytes() as u64
            });
            prop_assert!(covers, "{word:#x} at {far:#x}: {operations:?}");
        }
    }
}
