//! Checks the hypervisor's machine code: no thread can need more stack than it has.
//!
//! A thread of the hypervisor has one stack of 32 KiB (`el2/hw/src/stack.rs`), and what overflows it stops the machine. Which path
//! takes most of it no test can show, for a test takes the paths that it takes. So the frames, which are in the machine code, are
//! added up along all direct calls. Where a function calls through a pointer, it may be any function whose address is taken, and the
//! deepest of these is added ([`TABLES`] says of some which); they call each other so at most [`NESTED`] deep (a window's access, the
//! device's word to its VM, a line of the log). On top of that comes an interrupt, which is taken on the same stack wherever IRQs are
//! not masked.
//!
//! A panic is not added up: it says what it has to say first of all, and needs no way back.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;

use crate::branches::{Code, Flow, flow};

/// Bytes of a stack, as `el2/hw/src/stack.rs` has them.
const STACK: u64 = 32 << 10;
/// So much stays free, at least: for what a compiler of another day lays out in another way.
const SPARE: u64 = 2 << 10;
/// So deep do functions that are called through pointers call others so.
const NESTED: usize = 3;
/// Where stacks begin, by what is in the names of the functions: the boot CPU, all others, and each kind of thread.
const BEGINS: [&str; 7] = [
    "undercroft_main",
    "4boot9secondary17h",
    "4exit3run4live17h",
    "4link7console3run17h",
    "4link8arrivals3run17h",
    "2vm8watchdog3run17h",
    "9host_disk3run17h",
];
/// What saves the registers for an interrupt that comes while we run.
const INTERRUPT: &str = "own_interrupt";
/// Whom these call, through the CPU's area or by entering a guest, whose exits go on on the same stack.
const CALLS: [(&str, &[&str]); 3] = [
    (INTERRUPT, &["10interrupts16interrupt_in_el217h"]),
    ("9nopreempt11preempt_now17h", &["10interrupts16preempt_deferred17h"]),
    ("enter_guest", &["guest_exit_plain", "guest_exit_clearing"]),
];
/// In which tables of functions pointers are, by what is in the names of those who call by them and of those who are called: what
/// writes texts, the log, and the registers of a thread's guest. Anybody else may call whatever has its address taken.
const TABLES: [(&str, &str); 3] =
    [("4core3fmt", "3fmt"), ("3log13___private_api", "3log3Log"), ("5sched", "7threads9Registers")];
/// What ends in a report, and does not come back. The vectors choose a stack for it; what else is in them only leads on.
const ENDS: [&str; 4] = ["rust_begin_unwind", "9panicking", "stack_overflow", "exception_vectors"];
/// Functions that call themselves, by what is in their names, and how deep at most: walks go through four levels of tables, and
/// what is sorted has at most some dozens of elements.
const RECURSIVE: [(&str, u64); 3] = [("6stage2", 4), ("9quicksort", 8), ("11median3_rec", 3)];

/// What a function takes and whom it calls.
#[derive(Debug, Default)]
struct Function {
    name: String,
    frame: u64,
    calls: Vec<u64>,
    /// It ends by going on at these, its frame gone.
    tails: Vec<u64>,
    /// It calls through pointers: which of [`TABLES`] they are in, or one more for any.
    indirect: Option<usize>,
    /// How often it is on the stack at once.
    times: u64,
}

/// How much is taken at most by what is called through a pointer in each of [`TABLES`], and in any.
type Pointed = [u64; TABLES.len() + 1];

/// The functions of a program by where they begin.
struct Program(BTreeMap<u64, Function>);

/// Checks the hypervisor's ELF file.
///
/// # Errors
/// Names each thread whose stack may be too small, with the path that takes most of it.
pub(crate) fn check(elf: &[u8]) -> Result<()> {
    let mut program = Program::read(&Code::read(elf)?)?;
    for (from, called) in CALLS {
        let called = called.iter().map(|name| program.only(name)).collect::<Result<Vec<u64>>>()?;
        let from = program.0.entry(program.only(from)?).or_default();
        from.indirect = None;
        from.calls.extend(called);
    }
    program.judge(&BEGINS, INTERRUPT)
}

impl Program {
    fn read(code: &Code) -> Result<Self> {
        let mut functions = BTreeMap::new();
        for (start, end, name) in code.functions() {
            let mut function = Function { name: name.to_owned(), times: 1, ..Function::default() };
            if !ENDS.iter().any(|known| name.contains(known)) {
                function.look_at(code, start, end)?;
            }
            functions.insert(start, function);
        }
        Ok(Self(functions))
    }

    fn judge(mut self, begins: &[&str], interrupt: &str) -> Result<()> {
        self.settle_recursion()?;
        let interrupt = self.only(interrupt)?;
        let begins = begins.iter().map(|name| Ok((*name, self.only(name)?))).collect::<Result<Vec<_>>>()?;
        let called: Vec<u64> =
            self.0.values().flat_map(|function| function.calls.iter().chain(&function.tails)).copied().collect();
        // All others that nobody calls are in a table of functions, or in a variable; but for what comes before a stack is there.
        let by_pointer = |at: &u64| {
            !called.contains(at) && *at != interrupt && !begins.iter().any(|&(_, begin)| self.leads(*at, begin))
        };
        let by_pointer: Vec<u64> = self.0.keys().copied().filter(by_pointer).collect();
        let mut pointed = Pointed::default();
        for _ in 0..NESTED {
            let mut known = BTreeMap::new();
            let mut deeper = Pointed::default();
            for &at in &by_pointer {
                let depth = self.depth(at, &pointed, &mut known);
                let name = &self.0[&at].name;
                let tables = TABLES.iter().map(|(_, called)| name.contains(called)).chain([true]);
                for (deepest, is_in) in deeper.iter_mut().zip(tables) {
                    *deepest = (*deepest).max(if is_in { depth } else { 0 });
                }
            }
            pointed = deeper;
        }
        let mut known = BTreeMap::new();
        let on_top = self.depth(interrupt, &pointed, &mut known);
        let mut too_deep = Vec::new();
        for (_, begin) in begins {
            let needed = self.depth(begin, &pointed, &mut known) + on_top + SPARE;
            if needed > STACK {
                let path = self.path(begin, &pointed, &known).join("\n    ");
                too_deep.push(format!("{needed} bytes, {on_top} of these for an interrupt:\n    {path}"));
            }
        }
        if !too_deep.is_empty() {
            bail!("a stack has {STACK} bytes, {SPARE} of which are to spare; needed are\n{}", too_deep.join("\n"));
        }
        Ok(())
    }

    /// Takes calls of themselves out of functions of which it is known how deep they go.
    ///
    /// # Errors
    /// If two call each other, or one itself of which nothing is known.
    fn settle_recursion(&mut self) -> Result<()> {
        for (&at, function) in &mut self.0 {
            if function.calls.contains(&at) {
                let known = RECURSIVE.iter().find(|(name, _)| function.name.contains(name));
                let (_, times) = known.with_context(|| format!("how deep does {} call itself?", function.name))?;
                function.times = *times;
                function.calls.retain(|&to| to != at);
            }
            function.tails.retain(|&to| to != at);
        }
        // Of those that are left, each is done when all that it calls are.
        let mut done: Vec<u64> = Vec::new();
        let mut left: Vec<u64> = self.0.keys().copied().collect();
        while !left.is_empty() {
            let before = left.len();
            left.retain(|at| {
                let function = &self.0[at];
                let is_done = function.calls.iter().chain(&function.tails).all(|to| done.contains(to));
                if is_done {
                    done.push(*at);
                }
                !is_done
            });
            let round: Vec<&str> = left.iter().map(|at| self.0[at].name.as_str()).take(8).collect();
            ensure!(left.len() < before, "these call each other, or who does: {}", round.join(", "));
        }
        Ok(())
    }

    /// Where the only function is that has `name` in its name.
    fn only(&self, name: &str) -> Result<u64> {
        let mut found = self.0.iter().filter(|(_, function)| function.name.contains(name)).map(|(&at, _)| at);
        match (found.next(), found.next()) {
            (Some(at), None) => Ok(at),
            (None, _) => bail!("no {name} in the hypervisor's symbols"),
            (Some(_), Some(_)) => bail!("more than one {name} in the hypervisor's symbols"),
        }
    }

    /// Whether the function at `from` is the one at `to`, or calls it, or who does.
    fn leads(&self, from: u64, to: u64) -> bool {
        let function = &self.0[&from];
        from == to || function.calls.iter().chain(&function.tails).any(|&next| self.leads(next, to))
    }

    /// How many bytes of stack the function at `at` takes with all that it calls; one called through a pointer takes `pointed`.
    fn depth(&self, at: u64, pointed: &Pointed, known: &mut BTreeMap<u64, u64>) -> u64 {
        if let Some(depth) = known.get(&at) {
            return *depth;
        }
        let function = &self.0[&at];
        let below = function.calls.iter().map(|&to| self.depth(to, pointed, known)).max().unwrap_or_default();
        let behind = function.tails.iter().map(|&to| self.depth(to, pointed, known)).max().unwrap_or_default();
        let below = below.max(function.through_pointer(pointed));
        let depth = (function.frame * function.times + below).max(behind);
        known.insert(at, depth);
        depth
    }

    /// The way that takes most, with what each function takes.
    fn path(&self, begin: u64, pointed: &Pointed, known: &BTreeMap<u64, u64>) -> Vec<String> {
        let mut lines = Vec::new();
        let mut at = begin;
        loop {
            let function = &self.0[&at];
            let own = function.frame * function.times;
            lines.push(format!("{own:6} {}", function.name));
            let deepest = function.calls.iter().chain(&function.tails).max_by_key(|to| known.get(*to));
            let pointed = function.through_pointer(pointed);
            match deepest {
                Some(&next) if known.get(&next) >= Some(&pointed.max(1)) => at = next,
                _ => {
                    if pointed > 0 {
                        lines.push(format!("{pointed:6} through a pointer"));
                    }
                    return lines;
                }
            }
        }
    }
}

impl Function {
    /// How much is taken by what it calls through a pointer, if it does.
    fn through_pointer(&self, pointed: &Pointed) -> u64 {
        self.indirect.and_then(|table| pointed.get(table)).copied().unwrap_or_default()
    }

    fn look_at(&mut self, code: &Code, start: u64, end: u64) -> Result<()> {
        for at in (start..end).step_by(4) {
            let Some(&word) = code.words.get(&at) else { continue };
            ensure!(!moves_by_register(word), "{at:#x} in {} moves SP by what a register says", self.name);
            self.frame += taken(word);
            let leaves = |to: &u64| !(start..end).contains(to);
            match flow(word, at) {
                Flow::Call(to) => self.calls.extend(code.function(to)),
                Flow::Jump(to) | Flow::Fork(to) if leaves(&to) => self.tails.extend(code.function(to)),
                Flow::Indirect => {
                    let table = TABLES.iter().position(|(callers, _)| self.name.contains(callers));
                    self.indirect = Some(table.unwrap_or(TABLES.len()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// By how much an instruction lowers SP: SUB of an immediate, or a store before which SP is moved.
fn taken(word: u32) -> u64 {
    let signed = |value: u32, bits: u32| i64::from(value) << (64 - bits) >> (64 - bits);
    if word & 0xff80_03ff == 0xd100_03ff {
        let shift = if word >> 22 & 1 == 1 { 12 } else { 0 };
        return u64::from(word >> 10 & 0xfff) << shift;
    }
    let offset = match word {
        // STP of 64-bit registers, with writeback of SP.
        _ if word & 0xffc0_03e0 == 0xa980_03e0 => 8 * signed(word >> 15 & 0x7f, 7),
        // STR, likewise.
        _ if word & 0xffe0_0fe0 == 0xf800_0fe0 => signed(word >> 12 & 0x1ff, 9),
        _ => 0,
    };
    offset.min(0).unsigned_abs()
}

/// SUB of SP by a register: nobody knows then how large a frame is.
const fn moves_by_register(word: u32) -> bool {
    word & 0xffe0_03ff == 0xcb20_03ff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(functions: &[(&str, u64, &[usize], bool)]) -> Program {
        let functions = functions.iter().enumerate().map(|(number, (name, frame, calls, indirect))| {
            let calls = calls.iter().map(|&to| to as u64).collect();
            let name = (*name).to_owned();
            (
                number as u64,
                Function {
                    name,
                    frame: *frame,
                    calls,
                    indirect: indirect.then_some(TABLES.len()),
                    times: 1,
                    ..Function::default()
                },
            )
        });
        Program(functions.collect())
    }

    fn judged(functions: &[(&str, u64, &[usize], bool)]) -> Result<(), String> {
        program(functions).judge(&["begin"], "interrupt").map_err(|error| error.to_string())
    }

    #[test]
    fn the_deepest_path_and_an_interrupt_must_fit() {
        let fits = STACK - SPARE - 5_000;
        let of = |frame| {
            let path = ("middle", frame, [3].as_slice(), false);
            judged(&[
                ("begin", 2_000, &[1, 2], false),
                ("other", 500, &[], false),
                path,
                ("leaf", 1_000, &[], false),
                ("interrupt", 2_000, &[], false),
            ])
        };
        assert_eq!(of(fits), Ok(()));
        let told = of(fits + 1).unwrap_err();
        assert!(told.contains("32769 bytes, 2000 of these for an interrupt") && told.contains("middle"), "{told}");
        assert!(!told.contains("other"), "{told}");
    }

    #[test]
    fn what_is_called_through_a_pointer_is_the_deepest_that_can_be() {
        // It calls through a pointer itself, and so do those: three deep.
        let of =
            |frame| judged(&[("begin", 0, &[], true), ("in a table", frame, &[], true), ("interrupt", 0, &[], false)]);
        let fits = (STACK - SPARE) / NESTED as u64;
        assert_eq!(of(fits), Ok(()));
        let told = of(fits + 1).unwrap_err();
        assert!(told.contains("through a pointer"), "{told}");
    }

    #[test]
    fn who_calls_itself_must_be_known() {
        let of = |name, frame| {
            judged(&[("begin", 0, &[1], false), (name, frame, &[1], false), ("interrupt", 0, &[], false)])
        };
        assert_eq!(of("6stage2 walk", (STACK - SPARE) / 4), Ok(()));
        assert!(of("6stage2 walk", (STACK - SPARE) / 4 + 1).is_err());
        assert_eq!(of("another", 8), Err("how deep does another call itself?".to_owned()));
        let both = judged(&[
            ("begin", 0, &[1], false),
            ("one", 8, &[2], false),
            ("two", 8, &[1], false),
            ("interrupt", 0, &[], false),
        ]);
        assert_eq!(both, Err("these call each other, or who does: begin, one, two".to_owned()));
    }

    #[test]
    fn a_thread_that_is_not_there_was_not_looked_at() {
        assert_eq!(judged(&[("interrupt", 0, &[], false)]), Err("no begin in the hypervisor's symbols".to_owned()));
    }

    #[test]
    fn frames_are_read() {
        assert_eq!(taken(0xd100_c3ff), 48); // sub sp, sp, #48
        assert_eq!(taken(0xd140_07ff), 4096); // sub sp, sp, #1, lsl #12
        assert_eq!(taken(0xa9bf_7bfd), 16); // stp x29, x30, [sp, #-16]!
        assert_eq!(taken(0xf81e_0ffe), 32); // str x30, [sp, #-32]!
        assert_eq!(taken(0xa9bf_7bfd & !0x3e0 | 1 << 5), 0); // stp x29, x30, [x1, #-16]!
        assert_eq!(taken(0x9100_c3ff), 0); // add sp, sp, #48
        assert!(moves_by_register(0xcb29_63ff) && !moves_by_register(0xcb09_0108)); // sub sp, sp, x9; sub x8, x8, x9
    }
}
