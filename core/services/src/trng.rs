//! The true random number generator interface, TRNG 1.0 (DEN0098).
//!
//! A guest asks for up to 96 (32-bit call) or 192 (64-bit call) bits of conditioned entropy, which come back in X1 to X3
//! with the least significant bits in X3. Where the entropy comes from is the caller's business: a closure.

use abi::calls::arm::{TRNG_FEATURES, TRNG_GET_UUID, TRNG_RND_32, TRNG_RND_64, TRNG_VERSION};

use crate::{INVALID_PARAMETERS, NOT_SUPPORTED, Request, SUCCESS};

/// Version 1.0.
const VERSION: u64 = 0x1_0000;
/// `NO_ENTROPY`: come back later.
const NO_ENTROPY: u64 = -3_i64 as u64;

/// Which generator this is, 5d8a8f6e-0e1b-4f0f-9d43-6b21c7b4a930: a version 4 UUID made once for Undercroft. Its bytes
/// travel in W0 to W3, the first byte lowest (DEN0098 section 2.4).
const UUID: [u64; 4] = [0x6e8f_8a5d, 0x0f4f_1b0e, 0x216b_439d, 0x30a9_b4c7];

/// How wide the caller's registers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Width {
    Word,
    Doubleword,
}

/// A request for random bits whose size has been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Draw {
    bits: u8,
    width: Width,
}

impl Draw {
    /// How many bits are asked for: 1 to 192.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.bits as u32
    }

    /// What X0 to X3 get. `entropy` returns 64 fresh random bits, or `None` when it has none to give now; it is called
    /// up to three times. Bits that were not asked for come back as zero.
    pub fn answers(self, mut entropy: impl FnMut() -> Option<u64>) -> [u64; 4] {
        let register_bits = match self.width {
            Width::Word => 32,
            Width::Doubleword => 64,
        };
        let mut answers = [SUCCESS, 0, 0, 0];
        let mut left = u32::from(self.bits);
        for register in answers.iter_mut().skip(1).rev() {
            if left == 0 {
                break;
            }
            let Some(random) = entropy() else { return [NO_ENTROPY, 0, 0, 0] };
            let here = left.min(register_bits);
            *register = random & (u64::MAX >> (64 - here));
            left -= here;
        }
        answers
    }
}

/// Whether `function` is one of these.
pub(crate) const fn is_implemented(function: u32) -> bool {
    matches!(function, TRNG_VERSION | TRNG_FEATURES | TRNG_GET_UUID | TRNG_RND_32 | TRNG_RND_64)
}

/// Reads one of these functions.
pub(crate) fn decode(function: u32, arguments: [u64; 3]) -> Request {
    match function {
        TRNG_VERSION => Request::Answer(VERSION),
        TRNG_FEATURES if is_implemented(arguments[0] as u32) => Request::Answer(SUCCESS),
        TRNG_GET_UUID => Request::Answers(UUID),
        TRNG_RND_32 => draw(u64::from(arguments[0] as u32), 96, Width::Word),
        TRNG_RND_64 => draw(arguments[0], 192, Width::Doubleword),
        _ => Request::Answer(NOT_SUPPORTED),
    }
}

fn draw(bits: u64, most: u8, width: Width) -> Request {
    match u8::try_from(bits) {
        Ok(bits) if bits >= 1 && bits <= most => Request::Entropy(Draw { bits, width }),
        // DEN0098 section 2.5: the registers behind the error code are zero.
        _ => Request::Answers([INVALID_PARAMETERS, 0, 0, 0]),
    }
}
