//! Times of day as people write them: RFC 3339, UTC, or seconds since 1970.

use std::time::{SystemTime, UNIX_EPOCH};

const MICROSECONDS: u64 = 1_000_000;
const DAY: i64 = 86_400;

/// What one may write.
const FORMS: &str = "write now, 2026-11-25T22:17:38Z (RFC 3339), or the seconds since 1970 with @ before them";

/// The time in `text`, in microseconds since 1970. `now` is this computer's.
///
/// # Errors
/// What one may write instead.
pub fn parse(text: &str) -> Result<u64, String> {
    if text == "now" {
        return Ok(now());
    }
    let parsed = match text.strip_prefix('@') {
        Some(seconds) => parse_seconds(seconds),
        None => parse_rfc3339(text),
    };
    parsed.ok_or_else(|| FORMS.to_owned())
}

/// This computer's time, in microseconds since 1970; 0 if it believes that it is earlier.
#[must_use]
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// A number made of digits alone: `parse` of the standard library takes a sign too.
fn digits(text: &str) -> Option<u64> {
    if is_digits(text) { text.parse().ok() } else { None }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `12` or `12.345`; what is finer than a microsecond is left out.
fn parse_seconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let fraction = is_digits(fraction).then(|| format!("{fraction:0<6}"))?;
    digits(whole)?.checked_mul(MICROSECONDS)?.checked_add(digits(fraction.get(..6)?)?)
}

/// `2026-11-25T22:17:38.5+01:00`. A leap second is the next minute's first.
fn parse_rfc3339(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| digits(text.get(from..to)?);
    let marks = [(4, "-"), (7, "-"), (13, ":"), (16, ":")];
    if marks.iter().any(|&(at, mark)| text.get(at..at + 1) != Some(mark))
        || !["T", "t", " "].contains(&text.get(10..11)?)
    {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute) = (number(11, 13)?, number(14, 16)?);
    let rest = text.get(17..)?;
    let end = rest.find(['Z', 'z', '+', '-'])?;
    let (seconds, zone) = rest.split_at_checked(end)?;
    let whole = seconds.split_once('.').map_or(seconds, |(whole, _)| whole);
    let second = digits(whole).filter(|second| whole.len() == 2 && *second <= 60)?;
    let fraction = parse_seconds(seconds)? % MICROSECONDS;
    let ahead = match zone {
        "Z" | "z" => 0,
        _ => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let pair = |text: &str, limit: u64| digits(text).filter(|number| text.len() == 2 && *number < limit);
            let ahead = (pair(hours, 24)? * 3600 + pair(minutes, 60)? * 60) as i64;
            if zone.starts_with('-') { -ahead } else { ahead }
        }
    };
    let valid = (1..=12).contains(&month) && (1..=days_in(year, month)).contains(&day) && hour < 24 && minute < 60;
    let date = valid.then(|| days_from_1970(year as i64, month as i64, day as i64))?;
    let seconds = date * DAY + (hour * 3600 + minute * 60 + second) as i64 - ahead;
    u64::try_from(seconds).ok()?.checked_mul(MICROSECONDS)?.checked_add(fraction)
}

fn days_in(year: u64, month: u64) -> u64 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a day of the Gregorian calendar. A year is counted from March, so that a leap day is its last; in
/// such a year the months' lengths repeat after five, 153 days.
fn days_from_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month < 3 { year - 1 } else { year };
    let month = (month + 9) % 12;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day
        - 1
        - 719_468
}

/// A time in microseconds since 1970 as RFC 3339 has it, to the millisecond.
#[must_use]
pub fn show(microseconds: u64) -> String {
    let milliseconds = microseconds / 1000;
    let (second, fraction) = (milliseconds / 1000, milliseconds % 1000);
    let (day, second) = ((second / DAY as u64) as i64, second % DAY as u64);
    // The year is guessed from below, and is at most one too small.
    let mut year = 1970 + day * 400 / 146_097 - 1;
    while days_from_1970(year + 1, 1, 1) <= day {
        year += 1;
    }
    let month = (1..=12).rev().find(|&month| days_from_1970(year, month, 1) <= day).unwrap_or(1);
    let date = day - days_from_1970(year, month, 1) + 1;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{fraction:03}Z")
}

#[cfg(test)]
mod tests {
    use super::{days_from_1970, days_in, parse, show};
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn known_times() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2001-09-09T01:46:40Z", 1_000_000_000),
            ("2026-11-25T22:17:38Z", 1_795_645_058),
            ("2106-02-07T06:28:15Z", 4_294_967_295),
        ] {
            assert_eq!(parse(text), Ok(seconds * 1_000_000), "{text}");
            assert_eq!(show(seconds * 1_000_000), text.replace('Z', ".000Z"));
            assert_eq!(parse(&format!("@{seconds}")), Ok(seconds * 1_000_000));
        }
        assert_eq!(parse("2001-09-09t03:46:40.25+02:00"), Ok(1_000_000_000_250_000));
        assert_eq!(parse("2001-09-08 23:16:40.1234567-02:30"), Ok(1_000_000_000_123_456));
        assert_eq!(parse("@1.5"), Ok(1_500_000));
        assert_eq!(parse("2016-12-31T23:59:60Z"), parse("2017-01-01T00:00:00Z"), "a leap second");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "@",
            "@-1",
            "@+1",
            "@1.x",
            "@99999999999999999999",
            "1000000000",
            "tomorrow",
            "2026-11-25",
            "2026-11-25T22:17:38",
            "2026-13-25T22:17:38Z",
            "2026-02-29T22:17:38Z",
            "2026-00-10T22:17:38Z",
            "2026-11-25T24:17:38Z",
            "2026-11-25T22:60:38Z",
            "2026-11-25T22:17:61Z",
            "2026-11-25T22:17:38.Z",
            "2026-11-25T22:17:038Z",
            "2026-11-25T22:17:38+1:00",
            "2026-11-25T22:17:38Zulu",
            "2026/11/25T22:17:38Z",
            "1969-12-31T23:59:59Z",
            "2026-11-25T22:17:3\u{e9}Z",
        ] {
            assert!(parse(text).is_err_and(|why| why.contains("RFC 3339")), "{text}");
        }
    }

    #[test]
    fn days_follow_one_another() {
        let mut expected = 0;
        for year in 1970..2500 {
            for month in 1..=12 {
                for day in 1..=days_in(year, month) {
                    assert_eq!(days_from_1970(year as i64, month as i64, day as i64), expected, "{year}-{month}-{day}");
                    let noon = (expected as u64 * 86_400 + 43_200) * 1_000_000;
                    assert_eq!(show(noon), format!("{year:04}-{month:02}-{day:02}T12:00:00.000Z"));
                    expected += 1;
                }
            }
        }
    }

    #[test]
    fn now_is_now() {
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as u64;
        assert!(parse("now").expect("a time").abs_diff(ours) < 60_000_000);
    }
}
