//! For checks: a piece of code to which a CPU can be sent that waits at a mailbox ([`pen`]). It writes down what it finds, into
//! the mailbox's own half, and goes back to wait: it has no more than its registers, as the code that waits.

use core::arch::global_asm;

use bringup::mailbox;
use units::Pa;

use crate::{pen, sysreg};

global_asm!(
    r#"
    .pushsection .text.pen_visitor, "ax"
pen_visitor:
    str     x0, [x9, #{visit} + 8]
    mrs     x10, mpidr_el1
    str     x10, [x9, #{visit} + 16]
    mrs     x10, CurrentEL
    lsr     x10, x10, #2
    str     x10, [x9, #{visit} + 24]
    mrs     x10, sctlr_el2
    str     x10, [x9, #{visit} + 32]
    mrs     x10, daif
    str     x10, [x9, #{visit} + 40]
    dsb     sy
    ldr     x10, [x9, #{visit}]
    add     x10, x10, #1
    str     x10, [x9, #{visit}]
    dsb     sy
    add     x10, x9, #{code}
    br      x10
    dsb     nsh
    isb
    .popsection
    "#,
    visit = const VISIT,
    code = const mailbox::CODE,
);

unsafe extern "C" {
    fn pen_visitor();
}

fn visitor() -> Pa {
    Pa((pen_visitor as *const ()).addr() as u64)
}

/// What a CPU found when it visited the code of [`send`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visit {
    /// How often it came.
    pub count: u64,
    /// X0 when it came.
    pub x0: u64,
    /// MPIDR_EL1.
    pub mpidr: u64,
    /// The exception level.
    pub level: u64,
    /// SCTLR_EL2.
    pub sctlr: u64,
    /// PSTATE.DAIF, in bits 9:6.
    pub daif: u64,
}

/// Where in a mailbox a visitor writes what it found: words in the order of [`Visit`].
const VISIT: usize = 64;

/// Lets the CPU of `mailbox` go to a piece of code that writes down what it finds, and goes back to wait.
pub fn send(mailbox: Pa) {
    pen::let_go(mailbox, visitor(), 0);
}

/// Writes a number and an address into `mailbox` as they are, the address being that of the code that writes down what it
/// finds, or none.
pub fn write_raw(mailbox: Pa, number: u32, has_address: bool) {
    pen::write(mailbox, mailbox::ADDRESS, if has_address { visitor().0 } else { 0 });
    // The upper half is reserved.
    pen::write(mailbox, mailbox::NUMBER, number.into());
    sysreg::sev();
}

/// What the CPU of `mailbox` has written down.
#[must_use]
pub fn visit(mailbox: Pa) -> Visit {
    let [count, x0, mpidr, level, sctlr, daif] = [0, 1, 2, 3, 4, 5].map(|index| pen::read(mailbox, VISIT + 8 * index));
    Visit { count, x0, mpidr, level, sctlr, daif }
}
