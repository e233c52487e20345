//! The mailbox of the parking protocol (Arm, "Multi-processor Startup for ARM Platforms", version 1): a page of its own for each CPU,
//! half of it the operating system's and half of it the firmware's, which we are here.
//!
//! Whoever wants the CPU writes the address first, then the number, and wakes it. The CPU waits until both are there, takes the address
//! out, which tells that it has gone, and jumps, with the mailbox's address in X0. A number alone, an address alone, or another CPU's
//! number let nobody go: that is what keeps a CPU parked through anything that wakes it.

use units::Pa;

/// Bytes of a mailbox, and what its address is a multiple of.
pub const SIZE: u64 = 4096;
/// Where the number stands, 32 bits: which CPU is meant, by its GICC's "CPU interface number".
pub const NUMBER: usize = 0;
/// Where the address stands to which the CPU is to jump, 64 bits.
pub const ADDRESS: usize = 8;
/// Where the firmware's half begins.
pub const FIRMWARE: usize = 2048;
/// Where a CPU announces, in the firmware's half, that it waits here: 64 bits, [`announced`].
pub const ANNOUNCEMENT: usize = FIRMWARE;
/// Where the firmware's half holds the CPU's own number, 32 bits, which the code there waits for.
pub const OWN_NUMBER: usize = FIRMWARE + 8;
/// Where the firmware's half names whose mailbox it is: 64 bits, the affinity fields of MPIDR_EL1.
pub const OWNER: usize = FIRMWARE + 16;
/// Where the firmware's half names another mailbox, 64 bits: all of a machine are a ring. Some firmware has one word for all CPUs, and
/// whoever is sent by it is sent to one mailbox with all others; by these it comes to its own.
pub const NEXT: usize = FIRMWARE + 24;
/// Where the code is that waits. It finds its mailbox by its own address: whoever can send a CPU somewhere can send it here, also
/// where nothing goes along.
pub const CODE: usize = FIRMWARE + 64;
/// What it announces with, beside its exception level; before, there is zero.
pub const ANNOUNCED: u64 = 0x0000_6465_6b72_6170;
/// Where in an announcement the exception level stands.
pub const LEVEL_SHIFT: u32 = 56;
/// The number that means nobody. Linux refuses a mailbox that does not hold it.
pub const NOBODY: u32 = 0xffff_ffff;

/// A mailbox's first bytes before anybody waits there: no address, and `number`, which is [`NOBODY`], or the CPU's own where an address
/// alone is to let it go, as from a spin table. The rest of the operating system's half is zeros.
#[must_use]
pub const fn fresh(number: u32) -> [u8; 16] {
    let [a, b, c, d] = number.to_le_bytes();
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// What a CPU announces that has come at exception level `level`.
#[must_use]
pub const fn announced(level: u8) -> u64 {
    ANNOUNCED | (level as u64) << LEVEL_SHIFT
}

/// The exception level at which the CPU has come that announced this; `None` if none has.
#[must_use]
pub const fn level(announcement: u64) -> Option<u8> {
    if announcement & ((1 << LEVEL_SHIFT) - 1) == ANNOUNCED { Some((announcement >> LEVEL_SHIFT) as u8) } else { None }
}

/// Where the CPU with the number `own` goes that finds `number` and `address` in its mailbox; `None` if it waits on.
#[must_use]
pub const fn lets_go(own: u32, number: u32, address: u64) -> Option<Pa> {
    if number == own && number != NOBODY && address != 0 { Some(Pa(address)) } else { None }
}
