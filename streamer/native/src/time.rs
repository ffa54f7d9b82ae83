//! Event times, in milliseconds since 1970: as `records/times.py` reads them, where that is beyond doubt.

use crate::scan::{Sure, Token, Unsure};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unit {
    Seconds,
    Milliseconds,
    Microseconds,
    Nanoseconds,
    Iso8601,
}

/// Below it a fraction of microseconds is still seen.
const MICROS: f64 = (1_u64 << 53) as f64;

impl Unit {
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "s" => Self::Seconds,
            "ms" => Self::Milliseconds,
            "us" => Self::Microseconds,
            "ns" => Self::Nanoseconds,
            "iso8601" => Self::Iso8601,
            _ => return None,
        })
    }

    /// None: not given.
    pub fn milliseconds(self, token: Token) -> Sure<Option<i64>> {
        match (self, token) {
            (_, Token::Null) => Ok(None),
            (Self::Iso8601, Token::Text(text)) => iso(text).map(Some).ok_or(Unsure),
            (Self::Iso8601, _) => Err(Unsure),
            (_, Token::Number(number)) if number.is_integer() => {
                self.integer(number.integer().ok_or(Unsure)?).map(Some)
            }
            (_, Token::Number(number)) => self.float(number.float().ok_or(Unsure)?).map(Some),
            (_, Token::Integer(number)) => self.integer(number).map(Some),
            (_, Token::Float(number)) if number.is_finite() => self.float(number).map(Some),
            _ => Err(Unsure),
        }
    }

    fn integer(self, number: i64) -> Sure<i64> {
        match self {
            Self::Seconds => number.checked_mul(1_000).ok_or(Unsure),
            Self::Milliseconds => Ok(number),
            Self::Microseconds => Ok(number.div_euclid(1_000)),
            Self::Nanoseconds => Ok(number.div_euclid(1_000_000)),
            Self::Iso8601 => Err(Unsure),
        }
    }

    /// Read to the microsecond, and the millisecond counts that began.
    fn float(self, number: f64) -> Sure<i64> {
        let micros = match self {
            Self::Seconds => number * 1_000_000.0,
            Self::Milliseconds => number * 1_000.0,
            Self::Microseconds => number,
            Self::Nanoseconds => number * 0.001,
            Self::Iso8601 => return Err(Unsure),
        };
        if micros.abs() >= MICROS {
            return Err(Unsure);
        }
        Ok((micros.round_ties_even() as i64).div_euclid(1_000))
    }
}

/// `2026-01-31T12:00:00`, with three or six digits of a fraction or none, and `Z`, `+hh:mm`, `-hh:mm` or nothing (UTC).
/// None: another way to write it, or no time.
fn iso(text: &[u8]) -> Option<i64> {
    if text.len() < 19 || text[4] != b'-' || text[7] != b'-' || text[10] != b'T' || text[13] != b':' || text[16] != b':'
    {
        return None;
    }
    let year = number(&text[0..4], 1900, 9998)?;
    let month = number(&text[5..7], 1, 12)?;
    let day = number(&text[8..10], 1, days_of(year, month))?;
    let hour = number(&text[11..13], 0, 23)?;
    let minute = number(&text[14..16], 0, 59)?;
    let second = number(&text[17..19], 0, 59)?;
    let mut rest = &text[19..];
    let mut thousandths = 0;
    if let [b'.', fraction @ ..] = rest {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits != 3 && digits != 6 {
            return None;
        }
        thousandths = number(&fraction[..3], 0, 999)?;
        rest = &fraction[digits..];
    }
    let ahead = match rest {
        [] | b"Z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let minutes = number(&[*h1, *h2], 0, 23)? * 60 + number(&[*m1, *m2], 0, 59)?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    let seconds = (days_since_1970(year, month, day) * 24 + hour) * 3_600 + (minute - ahead) * 60 + second;
    Some(seconds * 1_000 + thousandths)
}

fn number(digits: &[u8], least: i64, most: i64) -> Option<i64> {
    let mut found = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        found = found * 10 + i64::from(digit - b'0');
    }
    (least..=most).contains(&found).then_some(found)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Of the Gregorian calendar; years begin in March, so that the leap day is the last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let years = if month <= 2 { year - 1 } else { year };
    let months = (month + 9) % 12;
    years * 365 + years / 4 - years / 100 + years / 400 + (months * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_is_the_day_after_the_one_before() {
        let mut expected = days_since_1970(1900, 1, 1);
        assert_eq!(expected, -25_567);
        for year in 1900..=9998 {
            for month in 1..=12 {
                for day in 1..=days_of(year, month) {
                    assert_eq!(days_since_1970(year, month, day), expected);
                    expected += 1;
                }
            }
        }
    }

    #[test]
    fn a_time_as_text() {
        assert_eq!(iso(b"1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(iso(b"2025-10-09T08:53:20.123+02:00"), Some(1_759_992_800_123));
        assert_eq!(iso(b"1969-12-31T23:59:59.999999"), Some(-1));
        for odd in
            [&b"2025-02-29T00:00:00Z"[..], b"2025-10-09 08:53:20", b"2025-10-09T08:53:20.1Z", b"2025-10-09T24:00:00Z"]
        {
            assert_eq!(iso(odd), None);
        }
    }
}
