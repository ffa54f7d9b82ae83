//! Values of answers as JSON: the numbers of a call between the pieces of a template. What Python writes, byte by byte.

use std::io::Write;

/// Digits of a number: float32 survives them.
const DIGITS: i32 = 9;
const SMALLEST: u128 = 100_000_000;
const POWERS: usize = 32;
const POWER: [u128; POWERS] = {
    let mut powers = [1; POWERS];
    let mut place = 1;
    while place < POWERS {
        powers[place] = powers[place - 1] * 10;
        place += 1;
    }
    powers
};

/// One output of a model: `width` numbers per row, and the label of the largest where there are labels.
pub struct Output<'a> {
    pub numbers: &'a [f32],
    pub width: usize,
    pub labels: Vec<&'a [u8]>,
}

/// Appends the value of `row`: its key, its time and its outputs, each behind its piece; the last piece ends it. None: not
/// sure (a key that must be escaped, a number that is none).
pub fn write_row(
    out: &mut Vec<u8>,
    pieces: &[&[u8]],
    key: &[u8],
    time: i64,
    outputs: &[Output],
    row: usize,
) -> Option<()> {
    let mut pieces = pieces.iter();
    out.extend_from_slice(pieces.next()?);
    if key.iter().any(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        return None;
    }
    out.extend_from_slice(key);
    out.extend_from_slice(pieces.next()?);
    write!(out, "{time}").ok()?;
    for output in outputs {
        let numbers = output.numbers.get(row * output.width..(row + 1) * output.width)?;
        for &number in numbers {
            out.extend_from_slice(pieces.next()?);
            write_number(out, number)?;
        }
        if !output.labels.is_empty() {
            out.extend_from_slice(pieces.next()?);
            out.extend_from_slice(output.labels.get(largest(numbers))?);
        }
    }
    out.extend_from_slice(pieces.next()?);
    pieces.next().is_none().then_some(())
}

/// The first of the largest.
fn largest(numbers: &[f32]) -> usize {
    let mut found = 0;
    for (place, number) in numbers.iter().enumerate() {
        if *number > numbers[found] {
            found = place;
        }
    }
    found
}

/// As C writes it with `%.9g`. None: no finite number.
pub fn write_number(out: &mut Vec<u8>, number: f32) -> Option<()> {
    if !number.is_finite() {
        return None;
    }
    if number.is_sign_negative() {
        out.push(b'-');
    }
    if number == 0.0 {
        out.push(b'0');
        return Some(());
    }
    let (digits, exponent) = decimal(number.abs()).or_else(|| printed(number.abs()))?;
    let mut text = [0; DIGITS as usize];
    let mut left = digits;
    for place in text.iter_mut().rev() {
        *place = b'0' + (left % 10) as u8;
        left /= 10;
    }
    let kept = text.iter().rposition(|&digit| digit != b'0').map_or(1, |place| place + 1);
    let significant = &text[..kept];
    if (-4..DIGITS).contains(&exponent) {
        if exponent < 0 {
            out.extend_from_slice(b"0.");
            out.extend(std::iter::repeat_n(b'0', (-exponent - 1) as usize));
            out.extend_from_slice(significant);
        } else {
            let whole = exponent as usize + 1;
            out.extend_from_slice(&text[..whole]);
            if kept > whole {
                out.push(b'.');
                out.extend_from_slice(&text[whole..kept]);
            }
        }
    } else {
        out.push(significant[0]);
        if kept > 1 {
            out.push(b'.');
            out.extend_from_slice(&significant[1..]);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "e{sign}{:02}", exponent.abs()).ok()?;
    }
    Some(())
}

/// The nine digits as a number, and the power of ten of the first: of the exact value, rounded half to even. None: beyond
/// 128 bits.
fn decimal(number: f32) -> Option<(u32, i32)> {
    let bits = number.to_bits();
    let (fraction, biased) = (bits & 0x7f_ffff, (bits >> 23) as i32);
    let (mantissa, power) = if biased == 0 { (fraction, -149) } else { (fraction | 0x80_0000, biased - 150) };
    let mut exponent = f64::from(number).log10().floor() as i32; // may be one off beside a power of ten
    for _ in 0..3 {
        let scale = DIGITS - 1 - exponent;
        let ten = *POWER.get(scale.unsigned_abs() as usize)?;
        let (above, below) = if scale >= 0 { (ten, 1) } else { (1, ten) };
        let numerator = u128::from(mantissa).checked_mul(above)?;
        let (numerator, denominator) = if power >= 0 {
            (numerator.checked_mul(1u128.checked_shl(power as u32)?)?, below)
        } else {
            (numerator, below.checked_mul(1u128.checked_shl(-power as u32)?)?)
        };
        let (whole, rest) = if power < 0 && below == 1 {
            (numerator >> -power, numerator & (denominator - 1)) // as of nearly all: no division
        } else {
            (numerator / denominator, numerator % denominator)
        };
        if whole < SMALLEST {
            exponent -= 1;
            continue;
        }
        if whole >= 10 * SMALLEST {
            exponent += 1;
            continue;
        }
        let half = rest.checked_mul(2)?;
        let up = half > denominator || half == denominator && whole % 2 == 1;
        let rounded = whole + u128::from(up);
        return Some(if rounded == 10 * SMALLEST {
            (SMALLEST as u32, exponent + 1)
        } else {
            (rounded as u32, exponent)
        });
    }
    None
}

/// The same for numbers that are so small that none lies half-way between two decimals of nine digits.
fn printed(number: f32) -> Option<(u32, i32)> {
    if number > 1e-20 {
        return None;
    }
    let text = format!("{:.8e}", f64::from(number));
    let (digits, exponent) = text.split_once('e')?;
    Some((digits.replace('.', "").parse().ok()?, exponent.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(number: f32) -> String {
        let mut out = Vec::new();
        write_number(&mut out, number).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_written_as_c_does() {
        let known = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (0.1, "0.100000001"),
            (123456.789, "123456.789"),
            (1e-4, "9.99999975e-05"),
            (0.000_122_070_31, "0.000122070312"),
            (6.103_515_6e-5, "6.10351562e-05"), // half-way, to the even digit
            (16_777_216.0, "16777216"),
            (999_999_999.0, "1e+09"),
            (1e10, "1e+10"),
            (f32::MAX, "3.40282347e+38"),
            (f32::MIN_POSITIVE, "1.17549435e-38"),
            (1e-45, "1.40129846e-45"),
            (2.5e-21, "2.49999992e-21"),
        ];
        for (number, text) in known {
            assert_eq!(told(number), text);
        }
    }

    #[test]
    fn every_number_is_written_and_read_back() {
        for bits in (0..=u32::MAX).step_by(9_973) {
            let number = f32::from_bits(bits);
            if number.is_finite() {
                assert_eq!(told(number).parse::<f32>().unwrap().to_bits(), bits, "{number:e}");
            } else {
                assert_eq!(write_number(&mut Vec::new(), number), None);
            }
        }
    }

    #[test]
    fn digits_are_those_of_the_exact_value() {
        for bits in (1..f32::INFINITY.to_bits()).step_by(99_991) {
            let number = f32::from_bits(bits);
            let text = format!("{:.8e}", f64::from(number));
            let (digits, exponent) = text.split_once('e').unwrap();
            let wanted = (digits.replace('.', "").parse().unwrap(), exponent.parse().unwrap());
            assert_eq!(decimal(number).or_else(|| printed(number)), Some(wanted), "{number:e}");
        }
    }

    #[test]
    fn a_row_is_its_pieces_and_what_stands_between() {
        let pieces: [&[u8]; 6] = [b"{\"stream\":\"", b"\",\"ts\":", b",\"y\":[", b",", b"],\"label\":", b"}"];
        let outputs = [Output { numbers: &[0.5, 0.25, 1.0, 3.0], width: 2, labels: vec![b"\"a\"", b"\"b\""] }];
        let mut out = Vec::new();
        write_row(&mut out, &pieces, b"k", -7, &outputs, 1).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), r#"{"stream":"k","ts":-7,"y":[1,3],"label":"b"}"#);
        for key in [&b"\""[..], b"\\", b"\n"] {
            assert_eq!(write_row(&mut Vec::new(), &pieces, key, 0, &outputs, 0), None);
        }
        assert_eq!(write_row(&mut Vec::new(), &pieces[..5], b"k", 0, &outputs, 0), None);
        assert_eq!(write_row(&mut Vec::new(), &pieces, b"k", 0, &outputs, 2), None);
    }
}
