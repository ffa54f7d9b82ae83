//! Reads JSON as far as it is sure of it. Whatever is unusual is `Unsure`, and the Python path decides.
//!
//! Everything that this accepts is valid JSON, and means the same to every parser: no repeated meaning, no lone
//! surrogate, no number out of range, no bytes that are not UTF-8, no depth beyond `MAX_DEPTH`.

/// Not an error: somebody else has to look.
#[derive(Debug, PartialEq)]
pub struct Unsure;

pub type Sure<T> = Result<T, Unsure>;

/// A number of so many digits is surely in 64 bits; one of more may come round to 0, and is no number that begins with zeros.
const EXACT_DIGITS: u32 = 19;

/// Levels of what is passed over: the bits of a `u64`, so nothing recurses.
const MAX_DEPTH: u32 = 64;

/// A number as it is written: `size` times ten to the power of `exponent`, if it has at most 19 digits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Number<'a> {
    pub text: &'a [u8],
    negative: bool,
    /// Written without point and exponent; never -0, and in 64 bits.
    integer: bool,
    /// At most 19 digits behind leading zeros: `size` has them all.
    whole: bool,
    size: u64,
    exponent: i64,
}

impl Number<'_> {
    /// None: written with a point or an exponent, or beyond 64 bits.
    #[inline(always)]
    pub fn integer(&self) -> Option<i64> {
        let size = i64::try_from(self.size).ok().filter(|_| self.integer)?;
        Some(if self.negative { -size } else { size })
    }

    #[inline(always)]
    pub fn is_integer(&self) -> bool {
        self.integer
    }

    #[inline(always)]
    fn signed(&self, size: f64) -> f64 {
        if self.negative { -size } else { size }
    }

    /// Correctly rounded. None: infinite.
    #[inline(always)]
    pub fn float(&self) -> Option<f64> {
        if self.whole && self.size <= 1 << 53 && (-22..=22).contains(&self.exponent) {
            // Both are exact, so the one operation rounds correctly.
            return Some(self.signed(scaled(self.size as f64, self.exponent)));
        }
        let found: f64 = std::str::from_utf8(self.text).ok()?.parse().ok()?;
        found.is_finite().then_some(found)
    }

    /// `float()` rounded to 32 bits. None: infinite.
    #[inline(always)]
    pub fn single(&self) -> Option<f32> {
        if self.whole && (-22..=22).contains(&self.exponent) {
            // `near` is at most two units in the last place from the number, and `float()` at most half of one. All of
            // them round to one float32, unless a border between two (the middle of the 29 bits that go) is so near.
            let near = scaled(self.size as f64, self.exponent);
            let from_border = (near.to_bits() & ((1 << 29) - 1)).abs_diff(1 << 28);
            let normal = (f64::from(f32::MIN_POSITIVE)..f64::from(f32::MAX)).contains(&near);
            if from_border > 8 && normal {
                return Some(self.signed(near) as f32);
            }
        }
        let found = self.float()? as f32;
        found.is_finite().then_some(found)
    }
}

/// `exponent` is in -22 to 22.
#[inline(always)]
fn scaled(size: f64, exponent: i64) -> f64 {
    let power = POWERS[exponent.unsigned_abs() as usize];
    if exponent < 0 { size / power } else { size * power }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token<'a> {
    Null,
    True,
    False,
    /// As JSON writes it.
    Number(Number<'a>),
    Integer(i64),
    /// May be NaN or infinite.
    Float(f64),
    /// Without escapes, and UTF-8: the bytes are the text.
    Text(&'a [u8]),
}

/// A field's name as records mostly write it: in quotes, with the colon. Its first bytes are compared as one number.
pub struct Key {
    text: Box<[u8]>,
    head: u128,
    /// Of the bits of `head` that count
    mask: u128,
}

impl Key {
    const HEAD: usize = 16;

    /// None: JSON writes `name` with escapes, in more than one way.
    pub fn of(name: &[u8]) -> Option<Self> {
        if name.iter().any(|byte| matches!(byte, ..0x20 | b'"' | b'\\')) {
            return None;
        }
        let text = [b"\"", name, b"\":"].concat();
        let mut head = [0; Self::HEAD];
        let mut mask = [0; Self::HEAD];
        let size = text.len().min(Self::HEAD);
        head[..size].copy_from_slice(&text[..size]);
        mask[..size].fill(0xff);
        Some(Key { text: text.into(), head: u128::from_le_bytes(head), mask: u128::from_le_bytes(mask) })
    }
}

pub struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        Scan { text, at: 0 }
    }

    /// The next byte. 0 at the end, which is nowhere allowed in JSON.
    #[inline(always)]
    pub fn peek(&self) -> u8 {
        self.text.get(self.at).copied().unwrap_or(0)
    }

    /// Passes over the byte that was looked at.
    #[inline(always)]
    pub fn step(&mut self) {
        self.at += 1;
    }

    #[inline(always)]
    pub fn blank(&mut self) {
        while matches!(self.peek(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
    }

    #[inline(always)]
    pub fn expect(&mut self, byte: u8) -> Sure<()> {
        if self.peek() != byte {
            return Err(Unsure);
        }
        self.at += 1;
        Ok(())
    }

    /// Nothing but blanks is left.
    pub fn end(&mut self) -> Sure<()> {
        self.blank();
        if self.at == self.text.len() { Ok(()) } else { Err(Unsure) }
    }

    /// Passes over `key`, if it is next and written without blanks.
    #[inline(always)]
    pub fn is_key(&mut self, key: &Key) -> bool {
        let end = self.at + key.text.len();
        let found = match self.text.get(self.at..self.at + Key::HEAD) {
            Some(head) => {
                let head = u128::from_le_bytes(head.try_into().expect("as many bytes"));
                (head ^ key.head) & key.mask == 0
                    && (key.text.len() <= Key::HEAD
                        || self.text.get(self.at + Key::HEAD..end) == Some(&key.text[Key::HEAD..]))
            }
            None => self.text.get(self.at..end) == Some(&key.text[..]),
        };
        if found {
            self.at = end;
        }
        found
    }

    /// After an opening quote: the text up to the closing one. Unsure: escapes.
    fn plain_text(&mut self) -> Sure<&'a [u8]> {
        let start = self.at;
        let mut ascii = true;
        loop {
            self.at = special(self.text, self.at);
            match self.peek() {
                b'"' => break,
                0x80.. => {
                    ascii = false;
                    self.at += 1;
                }
                _ => return Err(Unsure),
            }
        }
        let found = &self.text[start..self.at];
        self.at += 1;
        if !ascii && std::str::from_utf8(found).is_err() {
            return Err(Unsure);
        }
        Ok(found)
    }

    /// After an opening quote: passes over a text, which may have escapes.
    fn skip_text(&mut self) -> Sure<()> {
        let start = self.at;
        let mut ascii = true;
        loop {
            self.at = special(self.text, self.at);
            match self.peek() {
                b'"' => break,
                b'\\' => {
                    self.at += 1;
                    self.escape()?;
                }
                0x80.. => {
                    ascii = false;
                    self.at += 1;
                }
                _ => return Err(Unsure),
            }
        }
        let found = &self.text[start..self.at];
        self.at += 1;
        if !ascii && std::str::from_utf8(found).is_err() {
            return Err(Unsure);
        }
        Ok(())
    }

    /// After a backslash. Surrogates only in pairs.
    fn escape(&mut self) -> Sure<()> {
        let what = self.peek();
        self.at += 1;
        match what {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(()),
            b'u' => match self.four_hex()? {
                0xD800..=0xDBFF => {
                    self.expect(b'\\')?;
                    self.expect(b'u')?;
                    if matches!(self.four_hex()?, 0xDC00..=0xDFFF) { Ok(()) } else { Err(Unsure) }
                }
                0xDC00..=0xDFFF => Err(Unsure),
                _ => Ok(()),
            },
            _ => Err(Unsure),
        }
    }

    fn four_hex(&mut self) -> Sure<u32> {
        let mut found = 0;
        for _ in 0..4 {
            found = found * 16 + char::from(self.peek()).to_digit(16).ok_or(Unsure)?;
            self.at += 1;
        }
        Ok(found)
    }

    fn word(&mut self, word: &[u8]) -> Sure<()> {
        let end = self.at + word.len();
        if self.text.get(self.at..end) != Some(word) {
            return Err(Unsure);
        }
        self.at = end;
        Ok(())
    }

    pub fn null(&mut self) -> Sure<()> {
        self.word(b"null")
    }

    /// Anything but a list and an object.
    pub fn token(&mut self) -> Sure<Token<'a>> {
        match self.peek() {
            b'"' => {
                self.at += 1;
                Ok(Token::Text(self.plain_text()?))
            }
            b'n' => self.word(b"null").map(|()| Token::Null),
            b't' => self.word(b"true").map(|()| Token::True),
            b'f' => self.word(b"false").map(|()| Token::False),
            _ => {
                let number = self.number()?;
                // What is rounded to infinity, no parser likes.
                if number.integer().or_else(|| number.float().map(|_| 0)).is_none() {
                    return Err(Unsure);
                }
                Ok(Token::Number(number))
            }
        }
    }

    /// Digits, added to `number` as long as there are at most 19 behind leading zeros; else `number` means nothing.
    #[inline(always)]
    fn digits(&mut self, number: &mut u64, significant: &mut u32) {
        while let Some(eight) = eight_digits(self.text, self.at) {
            if *number == 0 && *significant <= EXACT_DIGITS {
                *significant = 0;
            }
            *number = number.wrapping_mul(100_000_000).wrapping_add(eight);
            *significant += 8;
            self.at += 8;
        }
        loop {
            let digit = self.peek().wrapping_sub(b'0');
            if digit > 9 {
                return;
            }
            if *number == 0 && *significant <= EXACT_DIGITS {
                *significant = 0;
            }
            *number = number.wrapping_mul(10).wrapping_add(u64::from(digit));
            *significant = significant.saturating_add(1);
            self.at += 1;
        }
    }

    /// A number as JSON writes it. Unsure: -0, an integer beyond 64 bits.
    #[inline(always)]
    pub fn number(&mut self) -> Sure<Number<'a>> {
        let start = self.at;
        let negative = self.peek() == b'-';
        if negative {
            self.at += 1;
        }
        if let Some((size, length, decimals)) = short(self.text, self.at) {
            self.at += length;
            let text = &self.text[start..self.at];
            return Ok(Number { text, negative, integer: false, whole: true, size, exponent: -decimals });
        }
        let first = self.peek();
        let whole = self.at;
        let (mut number, mut significant) = (0_u64, 0_u32);
        self.digits(&mut number, &mut significant);
        let length = self.at - whole;
        if length == 0 || (first == b'0' && length > 1) {
            return Err(Unsure);
        }
        let mut exponent = 0_i64;
        let next = self.peek();
        if next != b'.' && next | 0x20 != b'e' {
            if length > 19 || (negative && number == 0) {
                return Err(Unsure);
            }
            let text = &self.text[start..self.at];
            return Ok(Number { text, negative, integer: true, whole: true, size: number, exponent: 0 });
        }
        if next == b'.' {
            self.at += 1;
            let point = self.at;
            self.digits(&mut number, &mut significant);
            if self.at == point {
                return Err(Unsure);
            }
            exponent = -((self.at - point) as i64);
        }
        if self.peek() | 0x20 == b'e' {
            self.at += 1;
            exponent += self.exponent()?;
        }
        let text = &self.text[start..self.at];
        Ok(Number { text, negative, integer: false, whole: significant <= EXACT_DIGITS, size: number, exponent })
    }

    /// After the e. At most four digits.
    fn exponent(&mut self) -> Sure<i64> {
        let negative = self.peek() == b'-';
        if negative || self.peek() == b'+' {
            self.at += 1;
        }
        let (start, mut found) = (self.at, 0_i64);
        while self.peek().is_ascii_digit() && self.at - start <= 4 {
            found = found * 10 + i64::from(self.peek() - b'0');
            self.at += 1;
        }
        if !(1..=4).contains(&(self.at - start)) {
            return Err(Unsure);
        }
        Ok(if negative { -found } else { found })
    }

    /// Passes over any value, which must be valid.
    pub fn skip(&mut self) -> Sure<()> {
        // A bit for each open level, the innermost lowest: 1 for an object.
        let (mut levels, mut depth) = (0_u64, 0_u32);
        loop {
            self.blank();
            let first = self.peek();
            if first == b'{' || first == b'[' {
                if depth == MAX_DEPTH {
                    return Err(Unsure);
                }
                self.at += 1;
                self.blank();
                let object = first == b'{';
                if self.peek() != if object { b'}' } else { b']' } {
                    levels = levels << 1 | u64::from(object);
                    depth += 1;
                    if object {
                        self.skip_name()?;
                    }
                    continue;
                }
                self.at += 1;
            } else if first == b'"' {
                self.at += 1;
                self.skip_text()?;
            } else {
                self.token()?;
            }
            loop {
                if depth == 0 {
                    return Ok(());
                }
                self.blank();
                let object = levels & 1 == 1;
                let next = self.peek();
                self.at += 1;
                if next == b',' {
                    if object {
                        self.blank();
                        self.skip_name()?;
                    }
                    break;
                }
                if next != if object { b'}' } else { b']' } {
                    return Err(Unsure);
                }
                levels >>= 1;
                depth -= 1;
            }
        }
    }

    /// A field's name, and its colon. Unsure: escapes.
    pub fn name(&mut self) -> Sure<&'a [u8]> {
        self.expect(b'"')?;
        let found = self.plain_text()?;
        self.colon()?;
        Ok(found)
    }

    fn skip_name(&mut self) -> Sure<()> {
        self.expect(b'"')?;
        self.skip_text()?;
        self.colon()
    }

    #[inline(always)]
    fn colon(&mut self) -> Sure<()> {
        self.blank();
        self.expect(b':')
    }
}

/// Where the next quote, backslash, control character or byte beyond ASCII is; the end if there is none.
#[inline(always)]
fn special(text: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    while let Some(eight) = text.get(at..at + 8) {
        let word = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        let (quote, slash) = (word ^ (b'"' as u64 * ONES), word ^ (b'\\' as u64 * ONES));
        // Borrows go upwards only: the lowest bit that is found is true.
        let found = (quote.wrapping_sub(ONES) & !quote
            | slash.wrapping_sub(ONES) & !slash
            | word.wrapping_sub(0x20 * ONES) & !word
            | word)
            & HIGH;
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(byte) = text.get(at) {
        if *byte < 0x20 || *byte >= 0x80 || *byte == b'"' || *byte == b'\\' {
            break;
        }
        at += 1;
    }
    at
}

/// Of a number with one digit before its point and at most five behind it, no exponent: its digits as one number, how many bytes
/// it has, and how many digits are behind the point.
#[inline(always)]
fn short(text: &[u8], at: usize) -> Option<(u64, usize, i64)> {
    let word = u64::from_le_bytes(text.get(at..at + 8)?.try_into().expect("eight bytes"));
    let digits = word ^ ZEROS;
    // The lowest byte that is no digit, and the one after a point, are surely found: carries go upwards.
    let others = (digits.wrapping_add(0x7676_7676_7676_7676) | digits) & 0x8080_8080_8080_8080;
    if others & 0xffff != 0x8000 || word >> 8 & 0xff != u64::from(b'.') {
        return None;
    }
    let behind = others >> 16;
    let decimals = behind.trailing_zeros() / 8;
    if behind == 0 || decimals == 0 || (word >> (16 + 8 * decimals)) as u8 | 0x20 == b'e' {
        return None;
    }
    let digits = digits & 0xff | digits >> 16 << 8;
    Some((joined(digits << (56 - 8 * decimals)), decimals as usize + 2, i64::from(decimals)))
}

const ZEROS: u64 = 0x3030_3030_3030_3030;

/// The number that the next eight bytes are, if all are digits.
#[inline(always)]
fn eight_digits(text: &[u8], at: usize) -> Option<u64> {
    let word = u64::from_le_bytes(text.get(at..at + 8)?.try_into().expect("eight bytes"));
    let low = word.wrapping_sub(ZEROS);
    if (word.wrapping_add(0x4646_4646_4646_4646) | low) & 0x8080_8080_8080_8080 != 0 {
        return None;
    }
    Some(joined(low))
}

/// Eight digits, the first in the lowest byte, as one number.
#[inline(always)]
fn joined(low: u64) -> u64 {
    let pairs = low.wrapping_mul(10).wrapping_add(low >> 8);
    let fours = (pairs & 0x0000_00FF_0000_00FF).wrapping_mul(100 + (1_000_000 << 32));
    let others = ((pairs >> 16) & 0x0000_00FF_0000_00FF).wrapping_mul(1 + (10_000 << 32));
    fours.wrapping_add(others) >> 32
}

/// Powers of ten that are exact.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];
