//! Checks the hypervisor's machine code: the short path of an exit has no indirect branch.
//!
//! A guest's branch history chooses among the targets that EL2's own indirect branches were seen to have (Spectre-BHB).
//! The vectors overwrite it where an exit leaves the short path, not before, so that short exits cost nothing more.
//! That is right as long as no code that can be reached before then branches indirectly: no call through a pointer or a
//! vtable, no jump table (the compiler is told to make none, `.cargo/config.toml`). Returns are predicted by other
//! means.
//!
//! All direct branches and calls are followed, wherever they lead, whether or not their condition can hold: a CPU
//! follows them speculatively too. A barrier (DSB NSH and ISB) ends a path, since no CPU speculates past it: the panic
//! handler begins with one.

use anyhow::{Context, Result, bail, ensure};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};
use std::collections::{BTreeMap, HashMap};

/// Where an exit comes in, by both ways that do not begin with a call of firmware.
const ENTRIES: [&str; 2] = ["guest_exit_plain", "guest_exit_clearing"];
/// A function that lies on every way; if it cannot be reached, nothing was looked at.
const HOOK: &str = "undercroft_exit";
const DSB_NSH: u32 = 0xd503_379f;
const ISB: u32 = 0xd503_3fdf;

/// What an instruction does to the flow of control.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flow {
    /// It goes on behind it.
    Next,
    /// It goes on there.
    Jump(u64),
    /// It goes on there or behind it.
    Fork(u64),
    /// It goes on there, and behind it when that returns.
    Call(u64),
    /// It goes on where a register says.
    Indirect,
    /// It returns, or does not exist.
    End,
}

/// The program, as far as it is executable.
pub(crate) struct Code {
    pub(crate) words: HashMap<u64, u32>,
    /// Functions by address: name and end.
    functions: BTreeMap<u64, (String, u64)>,
}

/// Checks the hypervisor's ELF file.
///
/// # Errors
/// Names each indirect branch that can be reached, and how.
pub(crate) fn check(elf: &[u8]) -> Result<()> {
    let code = Code::read(elf)?;
    let mut reached: HashMap<u64, u64> = HashMap::new();
    let mut found = Vec::new();
    let mut ways: Vec<(u64, u64)> = Vec::new();
    for entry in ENTRIES {
        let start = code.address_of(entry).with_context(|| format!("no {entry} in the hypervisor's symbols"))?;
        ways.push((start, start));
    }
    while let Some((start, caller)) = ways.pop() {
        let mut at = start;
        while !reached.contains_key(&at) {
            reached.insert(at, caller);
            let word = *code.words.get(&at).with_context(|| format!("{at:#x} is reached and no code"))?;
            if word == ISB && code.words.get(&(at - 4)) == Some(&DSB_NSH) {
                break;
            }
            match flow(word, at) {
                Flow::Next => {}
                Flow::Jump(to) => {
                    at = to;
                    continue;
                }
                Flow::Fork(to) => ways.push((to, caller)),
                Flow::Call(to) => {
                    ways.push((to, at));
                    // Nothing is behind the call of a function that does not return.
                    if code.function(at) != code.function(at + 4) {
                        break;
                    }
                }
                Flow::Indirect => {
                    found.push(at);
                    break;
                }
                Flow::End => break,
            }
            at += 4;
        }
    }
    let hook = code.address_of(HOOK).context("no exit hook in the hypervisor's symbols")?;
    ensure!(reached.contains_key(&hook), "the vectors do not call {HOOK}: nothing was looked at");
    if !found.is_empty() {
        let lines: Vec<String> = found.iter().map(|&at| code.describe(at, &reached)).collect();
        bail!("the short path of an exit can reach indirect branches:\n{}", lines.join("\n"));
    }
    Ok(())
}

impl Code {
    pub(crate) fn read(elf: &[u8]) -> Result<Code> {
        let file: ElfFile64<'_> = ElfFile64::parse(elf).context("no 64-bit ELF file")?;
        let mut words = HashMap::new();
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            let bytes = section.data()?;
            let (instructions, _) = bytes.as_chunks::<4>();
            let addresses = (section.address()..).step_by(4);
            words.extend(addresses.zip(instructions.iter().map(|bytes| u32::from_le_bytes(*bytes))));
        }
        let mut functions = BTreeMap::new();
        for symbol in file.symbols() {
            if words.contains_key(&symbol.address())
                && let Ok(name) = symbol.name()
                && !name.is_empty()
                && !name.starts_with('$')
            {
                let end = symbol.address() + symbol.size();
                // A label at a function's start takes nothing from it.
                if functions.get(&symbol.address()).is_none_or(|(_, known)| *known <= end) {
                    functions.insert(symbol.address(), (name.to_owned(), end));
                }
            }
        }
        Ok(Code { words, functions })
    }

    /// Words alone, for tests.
    #[cfg(test)]
    pub(crate) fn of(words: impl Iterator<Item = (u64, u32)>) -> Self {
        Self { words: words.collect(), functions: BTreeMap::new() }
    }

    /// With a function of the compiler's, for tests.
    #[cfg(test)]
    pub(crate) fn with_function(mut self, start: u64, end: u64) -> Self {
        self.functions.insert(start, (String::from("compiled"), end));
        self
    }

    pub(crate) fn address_of(&self, name: &str) -> Option<u64> {
        self.functions.iter().find(|(_, (known, _))| known == name).map(|(&address, _)| address)
    }

    /// The name of the function around `at`.
    pub(crate) fn name_at(&self, at: u64) -> Option<&str> {
        self.functions.get(&self.function(at)?).map(|(name, _)| name.as_str())
    }

    /// Each function: where it begins and ends, and its name. Assembly goes from one name to the next.
    pub(crate) fn functions(&self) -> impl Iterator<Item = (u64, u64, &str)> {
        let next = self.functions.keys().skip(1).copied().chain([u64::MAX]);
        let last = self.words.keys().max().map_or(0, |at| at + 4);
        self.functions.iter().zip(next).map(move |((&start, (name, end)), next)| {
            (start, if *end == start { next.min(last) } else { *end }, name.as_str())
        })
    }

    /// The function around `at`; assembly has no sizes, and goes from one name to the next.
    pub(crate) fn function(&self, at: u64) -> Option<u64> {
        let (&start, (_, end)) = self.functions.range(..=at).next_back()?;
        (*end == start || at < *end).then_some(start)
    }

    /// Whether what is at `at` is assembly: in no function of the compiler's, all of which have sizes.
    pub(crate) fn is_assembly(&self, at: u64) -> bool {
        self.functions.range(..=at).next_back().is_none_or(|(_, (_, end))| at >= *end)
    }

    fn describe(&self, at: u64, reached: &HashMap<u64, u64>) -> String {
        let name = |at: u64| {
            self.function(at).and_then(|start| self.functions.get(&start)).map_or("?", |(name, _)| name.as_str())
        };
        let mut line = format!("  {at:#x} in {}", name(at));
        let mut place = at;
        for _ in 0..16 {
            match reached.get(&place) {
                Some(&caller) if caller != place && name(caller) != name(place) => {
                    line.push_str(&format!(", called by {}", name(caller)));
                    place = caller;
                }
                _ => break,
            }
        }
        line
    }
}

/// Reads a branch (DDI 0487 C4.1.91, "Branches, Exception Generating and System instructions").
pub(crate) fn flow(word: u32, at: u64) -> Flow {
    let to = |bits: u32, low: u32| {
        let field = i64::from(word >> low) & ((1 << bits) - 1);
        let offset = field << (64 - bits) >> (64 - bits);
        at.wrapping_add_signed(offset * 4)
    };
    if word >> 26 == 0b00_0101 {
        return Flow::Jump(to(26, 0));
    }
    if word >> 26 == 0b10_0101 {
        return Flow::Call(to(26, 0));
    }
    if word >> 24 == 0b0101_0100 || word >> 25 & 0x3f == 0b01_1010 {
        return Flow::Fork(to(19, 5));
    }
    if word >> 25 & 0x3f == 0b01_1011 {
        return Flow::Fork(to(14, 5));
    }
    if word >> 25 == 0b110_1011 {
        // RET and ERET, with or without authentication; all others of this group are branches by register.
        return if matches!(word >> 21 & 0xf, 2 | 4) { Flow::End } else { Flow::Indirect };
    }
    // UDF, BRK.
    if word >> 16 == 0 || word >> 21 == 0b110_1010_0001 { Flow::End } else { Flow::Next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_read() {
        let cases = [
            (0x1400_0002, Flow::Jump(0x1008)), // b . + 8
            (0x17ff_ffff, Flow::Jump(0xffc)),  // b . - 4
            (0x9400_0003, Flow::Call(0x100c)), // bl . + 12
            (0x54ff_ffe1, Flow::Fork(0xffc)),  // b.ne . - 4
            (0xb400_0040, Flow::Fork(0x1008)), // cbz x0, . + 8
            (0x3500_0040, Flow::Fork(0x1008)), // cbnz w0, . + 8
            (0x3678_0040, Flow::Fork(0x1008)), // tbz w0, #15, . + 8
            (0xb707_ffe0, Flow::Fork(0xffc)),  // tbnz x0, #32, . - 4
            (0xd61f_0200, Flow::Indirect),     // br x16
            (0xd63f_00a0, Flow::Indirect),     // blr x5
            (0xd71f_0a11, Flow::Indirect),     // braa x16, x17
            (0xd65f_03c0, Flow::End),          // ret
            (0xd65f_0bff, Flow::End),          // retaa
            (0xd69f_03e0, Flow::End),          // eret
            (0xd420_0020, Flow::End),          // brk #1
            (0x0000_0000, Flow::End),          // udf #0
            (0xd503_201f, Flow::Next),         // nop
            (0xd400_0003, Flow::Next),         // smc #0
        ];
        for (word, expected) in cases {
            assert_eq!(flow(word, 0x1000), expected, "{word:#x}");
        }
    }
}
