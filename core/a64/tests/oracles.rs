//! The decoder against two disassemblers that others wrote, disarm64 and yaxpeax-arm.
//!
//! Both print assembly, so one small reader of assembly turns their lines into what [`a64::decode`] should have said.
//! Every combination of the bits that divide loads and stores into classes is tried, each with several registers and
//! constants, and after that a large sample of random words. Words must agree in both directions: what we decode, the
//! others read alike, and what we refuse is no plain load or store for them either.
use a64::{Addressing, Base, Extension, Instruction, Transfer, Unsupported, decode};
use disarm64::decoder_load_store;
use std::fmt::Write;
use units::{Direction, RegisterAccess};
use yaxpeax_arch::{Decoder, U8Reader};
use yaxpeax_arm::armv8::a64::InstDecoder;

/// Mnemonics of the families that we decode, without their size suffix.
const FAMILIES: [&str; 17] = [
    "ldr", "str", "ldur", "stur", "ldtr", "sttr", "ldp", "stp", "ldnp", "stnp", "ldar", "stlr", "ldlar", "stllr",
    "ldapr", "ldapur", "stlur",
];

/// What a line of assembly says: an instruction that we should decode, or `None`.
fn read(line: &str) -> Option<Instruction> {
    let (mnemonic, operands) = line.split_once(char::is_whitespace)?;
    if mnemonic == "prfm" || mnemonic == "prfum" || mnemonic == "rprfm" {
        return Some(Instruction::Prefetch);
    }
    let (family, suffix) = ["sb", "sh", "sw", "b", "h", ""].iter().find_map(|&suffix| {
        let family = mnemonic.strip_suffix(suffix)?;
        FAMILIES.contains(&family).then_some((family, suffix))
    })?;
    let operands = operands.trim();
    let (registers, address) = match operands.split_once('[') {
        Some((registers, address)) => (registers, Some(address)),
        None => (operands, None),
    };
    let mut names = registers.split(',').map(str::trim).filter(|name| !name.is_empty());
    let (rt, sixty_four) = general(names.next()?)?;
    let bytes = match suffix {
        "sb" | "b" => 1,
        "sh" | "h" => 2,
        "sw" => 4,
        _ if sixty_four => 8,
        _ => 4,
    };
    let first = RegisterAccess { rt, bytes, sign_extend: suffix.starts_with('s'), sixty_four };
    let mut second = None;
    if family.ends_with('p') {
        second = Some(RegisterAccess { rt: general(names.next()?)?.0, ..first });
    }
    let (base, addressing) = match address {
        Some(text) => read_address(text)?,
        None => (Base::ProgramCounter, Addressing::Offset(constant(names.next()?)?)),
    };
    Some(Instruction::Transfer(Transfer {
        direction: if family.starts_with("ld") { Direction::Read } else { Direction::Write },
        first,
        second,
        base,
        addressing,
        unprivileged: matches!(family, "ldtr" | "sttr"),
        ordered: matches!(family, "ldar" | "stlr" | "ldlar" | "stllr" | "ldapr" | "ldapur" | "stlur"),
    }))
}

/// The text behind the opening bracket.
fn read_address(text: &str) -> Option<(Base, Addressing)> {
    let (inside, behind) = text.split_once(']')?;
    let mut parts = inside.split(',').map(str::trim);
    let base = match parts.next()? {
        "sp" => Base::StackPointer,
        name => Base::Register(general(name)?.0),
    };
    if let Some(after) = behind.strip_prefix(',') {
        return Some((base, Addressing::PostIndex(constant(after)?)));
    }
    let Some(second) = parts.next() else {
        let zero = if behind == "!" { Addressing::PreIndex(0) } else { Addressing::Offset(0) };
        return Some((base, zero));
    };
    if second.starts_with('#') {
        let offset = constant(second)?;
        let addressing = if behind == "!" { Addressing::PreIndex(offset) } else { Addressing::Offset(offset) };
        return Some((base, addressing));
    }
    let (rm, _) = general(second)?;
    let (name, amount) = match parts.next() {
        None => ("lsl", "0"),
        Some(extension) => extension.split_once(' ').unwrap_or((extension, "0")),
    };
    let extension = match name {
        "uxtw" => Extension::Uxtw,
        "lsl" => Extension::Lsl,
        "sxtw" => Extension::Sxtw,
        "sxtx" => Extension::Sxtx,
        _ => return None,
    };
    Some((base, Addressing::Register { rm, extension, shift: u8::try_from(constant(amount)?).ok()? }))
}

/// Number and width of a general-purpose register as data.
fn general(name: &str) -> Option<(u8, bool)> {
    let sixty_four = name.starts_with('x');
    let rest = name.strip_prefix(['x', 'w'])?;
    let number = if rest == "zr" { 31 } else { rest.parse().ok()? };
    Some((number, sixty_four))
}

/// `#4`, `#-0x8`, `$+0xc` or `0xfffffffffffffffc`.
fn constant(text: &str) -> Option<i64> {
    let text = text.trim().trim_start_matches(['#', '$', '+']);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let magnitude = match digits.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok()?,
        None => digits.parse().ok()?,
    };
    let value = magnitude.cast_signed();
    Some(if negative { -value } else { value })
}

/// Both oracles, with a line to write into.
#[derive(Default)]
struct Oracles {
    yaxpeax: InstDecoder,
    line: String,
}

impl Oracles {
    fn disarm64(&mut self, word: u32) -> Option<Instruction> {
        // PRFM with a register offset exists only with bit 14 set; disarm64 reads it without as well.
        if word & 0xffe0_4c00 == 0xf8a0_0800 {
            return None;
        }
        let opcode = decoder_load_store::decode(word)?;
        self.line.clear();
        write!(self.line, "{opcode}").expect("a string takes any text");
        read(&self.line)
    }

    fn yaxpeax(&mut self, word: u32) -> Option<Instruction> {
        let instruction = self.yaxpeax.decode(&mut U8Reader::new(&word.to_le_bytes())).ok()?;
        self.line.clear();
        write!(self.line, "{instruction}").expect("a string takes any text");
        read(&self.line)
    }

    fn check(&mut self, word: u32) {
        let ours = decode(word);
        let (one, other) = (self.disarm64(word), self.yaxpeax(word));
        for theirs in [one, other] {
            let agreed = match (ours, theirs) {
                (Ok(ours), Some(theirs)) => ours == theirs,
                (Err(Unsupported::Unpredictable), _) => true,
                (Err(_), None) => true,
                _ => false,
            };
            assert!(agreed, "{word:#010x}: {ours:?}, disarm64 {one:?}, yaxpeax-arm {other:?}");
        }
    }
}

/// A small deterministic generator (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// Bits 27 and 25 say "load or store".
const LOAD_STORE: u32 = 0x0800_0000;

#[test]
fn every_class_of_load_and_store() {
    let mut oracles = Oracles::default();
    // Bits 31:28, 26, 24:21 and 15:10 divide the classes; bits 20:16 hold a register, an opcode or part of a constant.
    for class in 0..1_u32 << 15 {
        let high = (class & 0xf) << 28 | (class >> 4 & 1) << 26 | (class >> 5 & 0xf) << 21;
        let word = LOAD_STORE | high | (class >> 9) << 10;
        for middle in [0, 1, 7, 16, 24, 30, 31] {
            for (rn, rt) in [(1, 2), (31, 31), (middle, middle)] {
                oracles.check(word | middle << 16 | rn << 5 | rt);
            }
        }
    }
}

#[test]
fn a_sample_of_all_loads_and_stores() {
    let mut oracles = Oracles::default();
    let mut random = Random(1);
    for _ in 0..300_000 {
        let word = (random.next() as u32 & !0x0a00_0000) | LOAD_STORE;
        oracles.check(word);
    }
}
