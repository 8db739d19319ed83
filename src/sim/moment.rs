//! Points in time as logs write them.

use crate::limiter::time::Timestamp;

const MICROS: u64 = 1_000_000;
/// Numbers from here on are milliseconds, then microseconds, then nanoseconds: in seconds they would
/// be years beyond 5000.
const MILLIS_FROM: u64 = 100_000_000_000;

/// Reads what combined logs have between brackets: `10/Oct/2025:13:55:36 -0700`.
pub fn of_combined(text: &[u8]) -> Option<Timestamp> {
    let mut text = Digits(text);
    let day = text.number(2)?;
    text.skip(b"/")?;
    let month = month(text.take(3)?)?;
    text.skip(b"/")?;
    let year = text.number(4)?;
    text.skip(b":")?;
    let of_day = text.time_of_day()?;
    let offset = match text.0 {
        [] => 0,
        [b' ', rest @ ..] => {
            text.0 = rest;
            text.offset()?
        }
        _ => return None,
    };
    text.0.is_empty().then_some(())?;
    moment(year, month, day, of_day, offset, 0)
}

/// Reads RFC 3339 and what is close to it: a space in place of `T`, no zone at all (UTC then), an
/// offset without a colon. A fraction is cut behind microseconds.
pub fn of_rfc3339(text: &[u8]) -> Option<Timestamp> {
    let mut text = Digits(text);
    let year = text.number(4)?;
    text.skip(b"-")?;
    let month = text.number(2)?;
    text.skip(b"-")?;
    let day = text.number(2)?;
    text.skip(b"Tt ")?;
    let of_day = text.time_of_day()?;
    let micros = text.fraction()?;
    let offset = match text.0 {
        [] => 0,
        [b'Z' | b'z'] => return moment(year, month, day, of_day, 0, micros),
        _ => text.offset()?,
    };
    text.0.is_empty().then_some(())?;
    moment(year, month, day, of_day, offset, micros)
}

/// Reads a number: seconds since the epoch, with a fraction or without; or milliseconds,
/// microseconds, nanoseconds, as its size tells.
pub fn of_number(text: &[u8]) -> Option<Timestamp> {
    let mut text = Digits(text);
    let whole = text.any_number()?;
    let micros = text.fraction()?;
    text.0.is_empty().then_some(())?;
    let micros = if whole < MILLIS_FROM {
        whole.checked_mul(MICROS)?.checked_add(micros)?
    } else if whole < MILLIS_FROM.checked_mul(1_000)? {
        whole.checked_mul(1_000)?.checked_add(micros / 1_000)?
    } else if whole < MILLIS_FROM.checked_mul(MICROS)? {
        whole
    } else {
        whole / 1_000
    };
    Some(Timestamp::from_micros(micros))
}

/// Whatever of the three it is.
pub fn of_any(text: &[u8]) -> Option<Timestamp> {
    match text {
        [_, _, b'/', ..] => of_combined(text),
        [_, _, _, _, b'-', ..] => of_rfc3339(text),
        _ => of_number(text),
    }
}

/// The moment as people read it, in UTC: `2026-01-01 00:00:00`.
pub fn shown(at: Timestamp) -> String {
    let seconds = at.as_micros() / MICROS;
    let shown = humantime::format_rfc3339_seconds(
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds),
    );
    shown.to_string().replace('T', " ").replace('Z', "")
}

/// What is not read yet.
struct Digits<'a>(&'a [u8]);

impl<'a> Digits<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn skip(&mut self, any_of: &[u8]) -> Option<()> {
        any_of.contains(self.take(1)?.first()?).then_some(())
    }

    fn number(&mut self, digits: usize) -> Option<u64> {
        self.take(digits)?.iter().try_fold(0_u64, |number, byte| {
            byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0'))
        })
    }

    /// As many digits as there are, one at least.
    fn any_number(&mut self) -> Option<u64> {
        let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let taken = self.take(digits).filter(|taken| !taken.is_empty())?;
        taken.iter().try_fold(0_u64, |number, byte| {
            number.checked_mul(10)?.checked_add(u64::from(byte - b'0'))
        })
    }

    /// `.123456` in microseconds; nothing is none.
    fn fraction(&mut self) -> Option<u64> {
        let [b'.' | b',', rest @ ..] = self.0 else { return Some(0) };
        self.0 = rest;
        let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let taken = self.take(digits).filter(|taken| !taken.is_empty())?;
        let (micros, _) = taken.iter().take(6).fold((0, MICROS / 10), |(micros, unit), byte| {
            (micros + unit * u64::from(byte - b'0'), unit / 10)
        });
        Some(micros)
    }

    /// `13:55:36` in seconds. A leap second is the last one once more.
    fn time_of_day(&mut self) -> Option<u64> {
        let hour = self.number(2).filter(|hour| *hour < 24)?;
        self.skip(b":")?;
        let minute = self.number(2).filter(|minute| *minute < 60)?;
        self.skip(b":")?;
        let second = self.number(2).filter(|second| *second <= 60)?.min(59);
        Some(hour * 3_600 + minute * 60 + second)
    }

    /// `-0700`, `+02:00`, `Z` in seconds.
    fn offset(&mut self) -> Option<i64> {
        let sign = match self.take(1)? {
            b"+" => 1,
            b"-" => -1,
            b"Z" | b"z" => return Some(0),
            _ => return None,
        };
        let hours = self.number(2).filter(|hours| *hours < 24)?;
        if let [b':', rest @ ..] = self.0 {
            self.0 = rest;
        }
        let minutes = self.number(2).filter(|minutes| *minutes < 60)?;
        i64::try_from(hours * 3_600 + minutes * 60).ok().map(|seconds| sign * seconds)
    }
}

fn month(name: &[u8]) -> Option<u64> {
    Some(match name {
        b"Jan" => 1,
        b"Feb" => 2,
        b"Mar" => 3,
        b"Apr" => 4,
        b"May" => 5,
        b"Jun" => 6,
        b"Jul" => 7,
        b"Aug" => 8,
        b"Sep" => 9,
        b"Oct" => 10,
        b"Nov" => 11,
        b"Dec" => 12,
        _ => return None,
    })
}

fn moment(
    year: u64,
    month: u64,
    day: u64,
    of_day: u64,
    offset: i64,
    micros: u64,
) -> Option<Timestamp> {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_of_month = match month {
        2 => 28 + u64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || !(1..=days_of_month).contains(&day) {
        return None;
    }
    // Howard Hinnant, chrono-compatible low-level date algorithms: `days_from_civil`.
    let year = if month <= 2 { year - 1 } else { year };
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    let of_era = (year % 400) * 365 + (year % 400) / 4 - (year % 400) / 100 + of_year;
    let days = (year / 400) * 146_097 + of_era - 719_468;
    let seconds = (days * 86_400 + of_day).checked_add_signed(offset.checked_neg()?)?;
    Some(Timestamp::from_micros(seconds * MICROS + micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(at: Option<Timestamp>) -> Option<f64> {
        at.map(|at| at.as_micros() as f64 / 1e6)
    }

    #[test]
    fn the_three_ways_to_write_a_moment() {
        for (text, expected) in [
            ("10/Oct/2000:13:55:36 -0700", Some(971_211_336.0)),
            ("01/Jan/1970:00:00:00 +0000", Some(0.0)),
            ("29/Feb/2024:23:59:60 +0000", Some(1_709_251_199.0)),
            ("29/Feb/2023:23:59:59 +0000", None),
            ("31/Apr/2023:23:59:59 +0000", None),
            ("01/Jan/1970:00:00:00 +0100", None),
            ("10/Okt/2000:13:55:36 -0700", None),
            ("10/Oct/2000:24:00:00 -0700", None),
            ("10/Oct/2000:13:55:36 -0700 ", None),
            ("2000-10-10T20:55:36Z", Some(971_211_336.0)),
            ("2000-10-10T13:55:36.25-07:00", Some(971_211_336.25)),
            ("2000-10-10T13:55:36,25-0700", Some(971_211_336.25)),
            ("2000-10-10 20:55:36.123456789", Some(971_211_336.123_456)),
            ("2000-10-10T20:55:36.Z", None),
            ("2000-13-10T20:55:36Z", None),
            ("1999-12-31T23:59:59Z", Some(946_684_799.0)),
            ("2100-03-01T00:00:00Z", Some(4_107_542_400.0)),
            ("971211336", Some(971_211_336.0)),
            ("971211336.5", Some(971_211_336.5)),
            ("971211336500", Some(971_211_336.5)),
            ("971211336500000", Some(971_211_336.5)),
            ("971211336500000000", Some(971_211_336.5)),
            ("", None),
            ("-1", None),
            ("9712113365000000000000", None),
        ] {
            assert_eq!(seconds(of_any(text.as_bytes())), expected, "{text}");
        }
        assert_eq!(shown(Timestamp::from_micros(971_211_336_250_000)), "2000-10-10 20:55:36");
    }
}
