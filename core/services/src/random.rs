//! The random numbers behind TRNG, the entropy device and each VM's seeds: ChaCha20, whose key is renewed again and again.
//!
//! The first key is mixed from the boot loader's seed and from fresh bits of the host: its own generator where it has
//! one, and the counter. A new key is made of the old stream and of more fresh bits: for each VM that starts, and
//! whenever [`RENEWAL`] bytes went out under one key. So a guest that learns one key can compute neither earlier
//! output, since the old key is gone, nor, where the host has a generator, output after the next renewal.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// So many bytes are made with one key.
pub const RENEWAL: usize = 4096;

/// A source of random bytes.
#[derive(Debug)]
pub struct Generator {
    stream: ChaCha20Rng,
    /// How many bytes the key may still make.
    left: usize,
}

impl Generator {
    /// Keyed from `seed`, which may be empty or known to others, and from fresh bits.
    #[must_use]
    pub fn new(seed: &[u8], fresh: impl FnMut() -> u64) -> Self {
        let mut key = [0_u8; 32];
        for (slot, &byte) in (0..32).cycle().zip(seed) {
            if let Some(slot) = key.get_mut(slot) {
                *slot = slot.rotate_left(3) ^ byte;
            }
        }
        let mut generator = Self { stream: ChaCha20Rng::from_seed(key), left: 0 };
        generator.renew(fresh);
        generator
    }

    /// Makes a new key of the old stream and of fresh bits.
    pub fn renew(&mut self, mut fresh: impl FnMut() -> u64) {
        let mut key = [0_u8; 32];
        self.stream.fill_bytes(&mut key);
        for chunk in key.chunks_mut(8) {
            for (byte, more) in chunk.iter_mut().zip(fresh().to_le_bytes()) {
                *byte ^= more;
            }
        }
        self.stream = ChaCha20Rng::from_seed(key);
        self.left = RENEWAL;
    }

    /// Fills `into`, with more than one key if it is long. `fresh` is asked when a key is used up.
    pub fn fill(&mut self, into: &mut [u8], mut fresh: impl FnMut() -> u64) {
        let mut rest = into;
        while !rest.is_empty() {
            if self.left == 0 {
                self.renew(&mut fresh);
            }
            let (now, later) = rest.split_at_mut(self.left.min(rest.len()));
            self.stream.fill_bytes(now);
            self.left -= now.len();
            rest = later;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Generator, RENEWAL};
    use std::vec;
    use std::vec::Vec;

    const SEED: [u8; 32] = [7; 32];

    fn bytes(generator: &mut Generator, count: usize, fresh: u64) -> Vec<u8> {
        let mut bytes = vec![0; count];
        generator.fill(&mut bytes, || fresh);
        bytes
    }

    #[test]
    fn the_seed_and_the_fresh_bits_both_matter() {
        let first = |seed: &[u8], fresh| bytes(&mut Generator::new(seed, || fresh), 32, 0);
        assert_eq!(first(&SEED, 1), first(&SEED, 1));
        assert_ne!(first(&SEED, 1), first(&SEED, 2));
        assert_ne!(first(&SEED, 1), first(&[8; 32], 1));
        assert_ne!(first(&[], 1), first(&[0, 1], 1));
        // A seed of more than a key's length counts as a whole.
        assert_ne!(first(&[1; 64], 1), first(&[1; 63], 1));
    }

    /// Whoever knows all of a generator's state does not know what it makes after fresh bits were mixed in.
    #[test]
    fn fresh_bits_are_mixed_in_when_a_key_is_used_up_and_when_asked() {
        let [mut one, mut other] = [1, 1].map(|fresh| Generator::new(&SEED, || fresh));
        assert_eq!(bytes(&mut one, RENEWAL, 2), bytes(&mut other, RENEWAL, 3), "one key");
        assert_ne!(bytes(&mut one, 32, 2), bytes(&mut other, 32, 3), "the next");
        let [mut one, mut other] = [1, 1].map(|fresh| Generator::new(&SEED, || fresh));
        one.renew(|| 2);
        other.renew(|| 3);
        assert_ne!(bytes(&mut one, 32, 4), bytes(&mut other, 32, 4));
    }

    /// A host that has no generator, or one that is stuck, takes nothing away from what was there.
    #[test]
    fn fresh_bits_that_are_none_leave_the_old_stream_what_it_is_worth() {
        for stuck in [0, u64::MAX] {
            let [mut one, mut other] = [7, 8].map(|seed| Generator::new(&[seed; 32], || stuck));
            one.renew(|| stuck);
            other.renew(|| stuck);
            assert_ne!(bytes(&mut one, 32, stuck), bytes(&mut other, 32, stuck));
        }
    }

    /// Long requests are no way around it, nor is the way in which one is cut.
    #[test]
    fn the_length_of_a_request_does_not_matter() {
        let mut whole = Generator::new(&SEED, || 1);
        let mut pieces = Generator::new(&SEED, || 1);
        let long = bytes(&mut whole, 3 * RENEWAL, 2);
        let parts: Vec<u8> = (0..3 * RENEWAL / 64).flat_map(|_| bytes(&mut pieces, 64, 2)).collect();
        assert_eq!(long, parts);
        let mut other = Generator::new(&SEED, || 1);
        assert_ne!(long.get(RENEWAL..), bytes(&mut other, 3 * RENEWAL, 3).get(RENEWAL..));
    }
}
