//! CRC-32C (Castagnoli, as in iSCSI, RFC 3720 section 12.1): chosen because Arm CPUs compute it in one instruction
//! (CRC32CX, Arm ARM DDI 0487 section C6.2) and so checking a bundle costs the hypervisor next to nothing.
//!
//! The portable version takes eight bytes a step through eight tables, which are built at compile time.

/// A CRC-32C function. The first argument is the checksum of the bytes before these, 0 at the start, so that
/// `f(f(0, a), b)` is the checksum of `a` followed by `b`. Initial and final inversion happen inside.
pub type Crc32c = fn(u32, &[u8]) -> u32;

/// The polynomial 0x1EDC6F41, bit-reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// `TABLES[n][b]`: what byte `b` contributes with `n` zero bytes behind it.
const TABLES: [[u32; 256]; 8] = build_tables();

const fn build_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let shorter = tables[table - 1][byte];
            tables[table][byte] = (shorter >> 8) ^ tables[0][(shorter & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// What `byte` (of any width, the low eight bits count) contributes with `zeros` bytes behind it.
const fn contribution(zeros: usize, byte: u32) -> u32 {
    TABLES[zeros & 7][(byte & 0xff) as usize]
}

/// The checksum of `bytes`, continuing from `seed`; see [`Crc32c`].
#[must_use]
pub fn compute(seed: u32, bytes: &[u8]) -> u32 {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut crc = !seed;
    for word in words {
        let value = u64::from_le_bytes(*word) ^ u64::from(crc);
        let (low, high) = (value as u32, (value >> 32) as u32);
        crc = contribution(7, low)
            ^ contribution(6, low >> 8)
            ^ contribution(5, low >> 16)
            ^ contribution(4, low >> 24)
            ^ contribution(3, high)
            ^ contribution(2, high >> 8)
            ^ contribution(1, high >> 16)
            ^ contribution(0, high >> 24);
    }
    for &byte in tail {
        crc = (crc >> 8) ^ contribution(0, crc ^ u32::from(byte));
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::{POLYNOMIAL, compute};
    use proptest::prelude::*;

    /// One bit at a time: slow and obvious.
    fn naive(seed: u32, bytes: &[u8]) -> u32 {
        let mut crc = !seed;
        for &byte in bytes {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
            }
        }
        !crc
    }

    #[test]
    fn known_values_hold() {
        assert_eq!(compute(0, b"123456789"), 0xE306_9283);
        // RFC 3720, appendix B.4.
        assert_eq!(compute(0, &[0; 32]), 0x8A91_36AA);
        assert_eq!(compute(0, &[0xff; 32]), 0x62A8_AB43);
        assert_eq!(compute(0, &[]), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_the_naive_one_and_continues(a in any::<std::vec::Vec<u8>>(), b in any::<std::vec::Vec<u8>>()) {
            let whole = [a.clone(), b.clone()].concat();
            prop_assert_eq!(compute(0, &whole), naive(0, &whole));
            prop_assert_eq!(compute(compute(0, &a), &b), compute(0, &whole));
        }
    }
}
