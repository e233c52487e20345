//! Random numbers for guests: ChaCha20, keyed from all that the host offers.
//!
//! The key is mixed from the boot loader's seed (`/chosen/rng-seed`), the CPU's own generator where there is one
//! (FEAT_RNG), and the counter. Every request for a new stream mixes more in.

use hw::sync::PreemptLock;
use hw::{rndr, sysreg};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

static GENERATOR: PreemptLock<Option<ChaCha20Rng>> = PreemptLock::new(None);

/// Keys the generator. `seed` is what the boot loader gave, if anything.
pub(crate) fn init(seed: Option<&[u8]>) {
    let mut key = [0_u8; 32];
    for (index, &byte) in seed.unwrap_or(&[]).iter().enumerate() {
        key[index % 32] = key[index % 32].rotate_left(3) ^ byte;
    }
    for chunk in key.chunks_mut(8) {
        let hardware = rndr::random().unwrap_or(0) ^ sysreg::cntpct_el0();
        for (byte, more) in chunk.iter_mut().zip(hardware.to_le_bytes()) {
            *byte ^= more;
        }
    }
    *GENERATOR.lock() = Some(ChaCha20Rng::from_seed(key));
}

/// Whether the host offers anything that nobody can guess.
#[must_use]
pub(crate) fn has_good_source(seed: Option<&[u8]>) -> bool {
    seed.is_some_and(|seed| seed.len() >= 32) || rndr::random().is_some()
}

/// Fills `into` with random bytes.
pub(crate) fn fill(into: &mut [u8]) {
    match GENERATOR.lock().as_mut() {
        Some(generator) => generator.fill_bytes(into),
        None => unreachable!("the generator is keyed before there are guests"),
    }
}

/// Some random bytes.
#[must_use]
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}
