//! Random numbers for guests, from all that the host offers: the boot loader's seed (`/chosen/rng-seed`), the CPU's own
//! generator where there is one (FEAT_RNG), and the counter. How they become a stream, and when more is mixed in, is
//! [`services::random`].

use hw::sync::PreemptLock;
use hw::{rndr, sysreg};
use services::random::Generator;

static GENERATOR: PreemptLock<Option<Generator>> = PreemptLock::new(None);

/// Keys the generator. `seed` is what the boot loader gave, if anything.
#[inline(never)]
pub(crate) fn init(seed: Option<&[u8]>) {
    *GENERATOR.lock() = Some(Generator::new(seed.unwrap_or(&[]), fresh));
}

/// What the host has to add just now.
fn fresh() -> u64 {
    rndr::random().unwrap_or(0) ^ sysreg::cntpct_el0()
}

/// Whether the host offers anything that nobody can guess.
#[must_use]
pub(crate) fn has_good_source(seed: Option<&[u8]>) -> bool {
    seed.is_some_and(|seed| seed.len() >= 32) || rndr::random().is_some()
}

/// Fills `into` with random bytes.
pub(crate) fn fill(into: &mut [u8]) {
    with(|generator| generator.fill(into, fresh));
}

/// Some random bytes.
#[must_use]
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// As [`bytes`], with a key that nothing else was made with: for what a VM starts with.
#[must_use]
pub(crate) fn seed<const N: usize>() -> [u8; N] {
    with(|generator| generator.renew(fresh));
    bytes()
}

fn with(work: impl FnOnce(&mut Generator)) {
    match GENERATOR.lock().as_mut() {
        Some(generator) => work(generator),
        None => unreachable!("the generator is keyed before there are guests"),
    }
}
