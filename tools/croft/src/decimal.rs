//! Decimal numbers as people write them, without the rounding of a floating-point number: `62.5M`, `0.5`.

/// What `text` is, counted in units of which one is `one`; with K, M or G behind it a thousand, a million, a billion times
/// that. `None` if it is no such number, is no whole number of units, or does not fit 64 bits.
#[must_use]
pub fn parse(text: &str, one: u64) -> Option<u64> {
    let text = text.trim();
    let factor = match text.as_bytes().last()? {
        b'K' | b'k' => 1_000,
        b'M' => 1_000_000,
        b'G' | b'g' => 1_000_000_000,
        _ => 1,
    };
    let number = if factor == 1 { text } else { text.get(..text.len() - 1)? };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || number.ends_with('.') || !is_number(whole) || !is_number(fraction) || fraction.len() > 18 {
        return None;
    }
    let scale = 10_u128.pow(fraction.len() as u32);
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let units = digits.checked_mul(u128::from(one) * factor)?;
    if units.is_multiple_of(scale) { u64::try_from(units / scale).ok() } else { None }
}

/// `units`, of which one is `one`, with at least one place behind the point.
#[must_use]
pub fn show(units: u64, one: u64) -> String {
    let (whole, mut rest) = (units / one, units % one);
    let mut text = format!("{whole}.");
    loop {
        rest *= 10;
        text.push(char::from(b'0' + (rest / one) as u8));
        rest %= one;
        if rest == 0 {
            return text;
        }
    }
}

/// A frequency as one would write it.
#[must_use]
pub fn show_frequency(hertz: u64) -> String {
    let (one, unit) = match hertz {
        1_000_000_000.. => (1_000_000_000, "G"),
        1_000_000.. => (1_000_000, "M"),
        1_000.. => (1_000, "K"),
        _ => return hertz.to_string(),
    };
    format!("{}{unit}", show(hertz, one).trim_end_matches(".0"))
}

#[cfg(test)]
mod tests {
    use super::{parse, show, show_frequency};

    #[test]
    fn decimals_are_exact() {
        for (text, one, units) in [
            ("62.5M", 1, 62_500_000),
            ("1G", 1, 1_000_000_000),
            ("19.2M", 1, 19_200_000),
            ("24000000", 1, 24_000_000),
            ("1.0", 1_000_000, 1_000_000),
            ("0.000001", 1_000_000, 1),
            ("2", 1_000_000, 2_000_000),
        ] {
            assert_eq!(parse(text, one), Some(units), "{text}");
        }
        for bad in ["", "-1", ".5", "5.", "1.5", "1e3", "1,5", "M", "1.2.3M", "62.5MHz", "99999999999G", "ü", "0x10"] {
            assert_eq!(parse(bad, 1), None, "{bad}");
        }
        assert_eq!(parse("0.0000001", 1_000_000), None);
        assert_eq!(parse(&format!("0.{}", "0".repeat(40)), 1), None);
    }

    #[test]
    fn decimals_are_shown_as_one_would_write_them() {
        assert_eq!((show(1_000_000, 1_000_000), show(1_500, 1_000_000)), ("1.0".to_owned(), "0.0015".to_owned()));
        let shown = [62_500_000, 1_000_000_000, 24_000_000, 999, 32_768].map(show_frequency);
        assert_eq!(shown, ["62.5M", "1G", "24M", "999", "32.768K"]);
    }
}
