//! Runs of bytes that stand for themselves: in text and in most of what is transferred, everything.

use super::ESCAPE;
use zerocopy::FromBytes;

const ONES: u64 = 0x0101_0101_0101_0101;
const TOPS: u64 = 0x8080_8080_8080_8080;

/// How many bytes at the start of `bytes` are neither a start nor an escape. Where they are aligned, and by that nearly always,
/// eight are looked at in one step: a CPU that has no vector registers to spare would take five instructions for each.
pub(super) fn length(bytes: &[u8]) -> usize {
    let single = |bytes: &[u8]| bytes.iter().position(|&byte| byte >= ESCAPE);
    let (before, rest) = bytes.split_at(bytes.len().min(bytes.as_ptr().addr().wrapping_neg() & 7));
    if let Some(found) = single(before) {
        return found;
    }
    let words = <[u64]>::ref_from_bytes(rest.get(..rest.len() & !7).unwrap_or_default()).unwrap_or_default();
    let plain = 8 * words.iter().take_while(|&&word| !has_special(word)).count();
    let behind = rest.get(plain..).unwrap_or_default();
    before.len() + plain + single(behind).unwrap_or(behind.len())
}

/// Whether one of the bytes is 0xfe or 0xff: with bit 0 set and all turned over it is zero, and no other one is. A zero byte is
/// the one that borrows when 1 is taken from each, or stands above one that does; for "is there one" that is as good.
fn has_special(word: u64) -> bool {
    let turned = !(word | ONES);
    turned.wrapping_sub(ONES) & !turned & TOPS != 0
}

#[cfg(test)]
mod tests {
    use super::{has_special, length};
    use proptest::prelude::*;

    #[test]
    fn every_byte_counts_at_every_place() {
        for place in 0..8 {
            for byte in 0..=255_u8 {
                for others in [0, 1, 0x7f, 0x80, 0xfd] {
                    let mut bytes = [others; 8];
                    bytes[place] = byte;
                    assert_eq!(has_special(u64::from_le_bytes(bytes)), byte >= 0xfe, "{byte:#x} at {place}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_run_ends_at_the_first_special_byte(
            bytes in proptest::collection::vec(prop_oneof![20 => any::<u8>(), 1 => Just(0xfe)], 0..200), start in 0..9_usize,
        ) {
            let bytes = &bytes[start.min(bytes.len())..];
            let expected = bytes.iter().position(|&byte| byte >= 0xfe).unwrap_or(bytes.len());
            prop_assert_eq!(length(bytes), expected);
        }
    }
}
