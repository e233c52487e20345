//! Sizes as people write them: a whole number with K, M or G (powers of 1024).

/// What follows "not a size" in every message.
pub const HINT: &str = "write a number with K, M or G";

/// The bytes that `text` means: `512M`, `2G`, `65536`. `None` if it is no size, or none that fits 64 bits.
#[must_use]
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `bytes` in the largest unit that leaves no rest, or with one decimal if that would be a long number.
#[must_use]
pub fn show(bytes: u64) -> String {
    for (shift, unit) in [(30, 'G'), (20, 'M'), (10, 'K')] {
        let one = 1u64 << shift;
        if bytes >= one {
            return if bytes.is_multiple_of(one) {
                format!("{}{unit}", bytes >> shift)
            } else if bytes.is_multiple_of(one >> 10) && bytes >> shift < 10 {
                continue;
            } else {
                format!("{:.1}{unit}", bytes as f64 / one as f64)
            };
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::{parse, show};

    #[test]
    fn sizes_are_understood() {
        assert_eq!(parse("512M"), Some(512 << 20));
        assert_eq!(parse(" 2g "), Some(2 << 30));
        assert_eq!(parse("64K"), Some(65536));
        assert_eq!(parse("4096"), Some(4096));
        for bad in ["", "M", "512Q", "-1M", "1.5G", "0x10", "1 M", "512MB", "99999999999G", "ü"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown_as_one_would_write_them() {
        assert_eq!(show(512 << 20), "512M");
        assert_eq!(show(2 << 30), "2G");
        assert_eq!(show(1536 << 20), "1536M");
        assert_eq!(show(45_200_000), "43.1M");
        assert_eq!(show(100), "100");
    }
}
