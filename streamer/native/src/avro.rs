//! Flat Avro records as columns: no lists, no maps, no unions but of plain values, read by the schema that wrote them.
//!
//! As with JSON a row is sure, or it is marked and Python decides it.

use crate::layout::{Action, Cell, set, template};
use crate::rows::{Columns, act, with_foresight};
use crate::scan::{Sure, Token, Unsure};
use crate::time::Unit;

/// How a value lies in bytes. `Sized` and `Fixed` are only ever passed over.
pub enum Kind {
    Null,
    Boolean,
    Long,
    Float,
    Double,
    Text,
    Sized,
    Fixed(usize),
    Enum(Vec<Box<[u8]>>),
}

pub struct Field<T> {
    /// Of a union; else there is one.
    pub branches: Vec<Kind>,
    /// Which branch it is stands in front of the value.
    pub union: bool,
    pub actions: Vec<Action<T>>,
}

/// Values that begin with `frame` and go on with these fields, in this order.
pub struct Flat<T> {
    frame: Vec<u8>,
    fields: Vec<Field<T>>,
    template: Vec<T>,
}

impl<T: Cell> Flat<T> {
    /// Err: the sentence that says what cannot be read so.
    pub fn new(
        columns: usize,
        constants: &[(usize, T)],
        fields: Vec<Field<T>>,
        frame: Vec<u8>,
    ) -> Result<Self, String> {
        let mut template = template(columns, constants)?;
        for (at, null) in fields.iter().flat_map(|field| &field.actions).filter_map(Action::absent) {
            set(&mut template, at, null.unwrap_or_default())?;
        }
        Ok(Flat { frame, fields, template })
    }

    pub fn decode(&self, unit: Unit, values: &[&[u8]]) -> Columns<T> {
        let mut found = Columns::with_capacity(values.len(), self.template.len());
        for value in with_foresight(values) {
            found.push(&self.template, |x| self.row(unit, value, x));
        }
        found
    }

    fn row(&self, unit: Unit, value: &[u8], x: &mut [T]) -> Sure<Option<i64>> {
        let mut bytes = Bytes(value.strip_prefix(&self.frame[..]).ok_or(Unsure)?);
        let mut time = None;
        for field in &self.fields {
            let branch = if field.union { usize::try_from(bytes.long()?).map_err(|_| Unsure)? } else { 0 };
            let token = bytes.token(field.branches.get(branch).ok_or(Unsure)?)?;
            for action in &field.actions {
                act(action, unit, token, x, &mut time)?;
            }
        }
        if bytes.0.is_empty() { Ok(time) } else { Err(Unsure) }
    }
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    #[inline(always)]
    fn take(&mut self, size: usize) -> Sure<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(size).ok_or(Unsure)?;
        self.0 = left;
        Ok(taken)
    }

    #[inline(always)]
    fn array<const SIZE: usize>(&mut self) -> Sure<[u8; SIZE]> {
        let (taken, left) = self.0.split_first_chunk().ok_or(Unsure)?;
        self.0 = left;
        Ok(*taken)
    }

    /// Zigzag, seven bits to a byte, at most 64 in all.
    #[inline(always)]
    fn long(&mut self) -> Sure<i64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return Err(Unsure);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok((number >> 1) as i64 ^ -((number & 1) as i64));
            }
        }
        Err(Unsure)
    }

    fn sized(&mut self) -> Sure<&'a [u8]> {
        let size = usize::try_from(self.long()?).map_err(|_| Unsure)?;
        self.take(size)
    }

    #[inline(always)]
    fn token<'b>(&mut self, kind: &'b Kind) -> Sure<Token<'b>>
    where
        'a: 'b,
    {
        Ok(match kind {
            Kind::Double => Token::Float(f64::from_le_bytes(self.array()?)),
            Kind::Float => Token::Float(f32::from_le_bytes(self.array()?).into()),
            Kind::Long => Token::Integer(self.long()?),
            Kind::Null => Token::Null,
            Kind::Boolean => match self.array()? {
                [0] => Token::False,
                [1] => Token::True,
                _ => return Err(Unsure),
            },
            Kind::Text => {
                let text = self.sized()?;
                std::str::from_utf8(text).map_err(|_| Unsure)?;
                Token::Text(text)
            }
            Kind::Enum(symbols) => {
                let at = usize::try_from(self.long()?).map_err(|_| Unsure)?;
                Token::Text(symbols.get(at).ok_or(Unsure)?)
            }
            Kind::Sized => self.sized().map(|_| Token::Null)?,
            Kind::Fixed(size) => self.take(*size).map(|_| Token::Null)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{CAREFUL, TIMED};

    fn long(number: i64) -> Vec<u8> {
        let (mut left, mut found) = (((number << 1) ^ (number >> 63)) as u64, Vec::new());
        while left >= 0x80 {
            found.push(left as u8 | 0x80);
            left >>= 7;
        }
        found.push(left as u8);
        found
    }

    fn only(kind: Kind, actions: Vec<Action<f64>>) -> Field<f64> {
        Field { branches: vec![kind], union: false, actions }
    }

    /// A double or null, a text that nobody wants, a boolean, an enum, a time.
    fn flat() -> Flat<f64> {
        let words = [(b"run"[..].into(), 5.0)].into();
        let word = Action::Category { at: 2, null: None, no: None, yes: None, words, other: Some(9.0) };
        let symbols = vec![b"run"[..].into(), b"idle"[..].into()];
        let number = vec![Action::Number { at: 0, null: Some(-1.0) }, Action::Present { at: 3, no: 0.0, yes: 1.0 }];
        let fields = vec![
            Field { branches: vec![Kind::Null, Kind::Double], union: true, actions: number },
            only(Kind::Sized, vec![]),
            only(Kind::Fixed(2), vec![]),
            only(Kind::Boolean, vec![Action::Flag { at: 1, null: None, no: 0.0, yes: 1.0 }]),
            only(Kind::Enum(symbols), vec![word]),
            only(Kind::Long, vec![Action::Time]),
        ];
        Flat::new(5, &[(4, 7.0)], fields, b"id".into()).unwrap()
    }

    fn value(number: Option<f64>, text: &[u8], truth: bool, symbol: i64, time: i64) -> Vec<u8> {
        let told = number.map_or(vec![0], |number| [&[2][..], &number.to_le_bytes()].concat());
        let size = long(text.len() as i64);
        [b"id", &told[..], &size, text, b"..", &[u8::from(truth)], &long(symbol), &long(time)].concat()
    }

    #[test]
    fn plain_records_are_columns() {
        let values = [value(Some(0.5), b"abc", true, 0, 1_760_000_000_000), value(None, b"", false, 1, -1)];
        let found = flat().decode(Unit::Milliseconds, &[&values[0], &values[1]]);
        assert_eq!(found.x, [0.5, 1.0, 5.0, 1.0, 7.0, -1.0, 0.0, 9.0, 0.0, 7.0]);
        assert_eq!((found.times, found.marks), (vec![1_760_000_000_000, -1], vec![TIMED, TIMED]));
    }

    #[test]
    fn a_number_that_is_none_was_not_there() {
        let there = vec![Action::Present { at: 0, no: 0.0, yes: 1.0 }];
        let flat = Flat::<f64>::new(1, &[], vec![only(Kind::Double, there)], vec![]).unwrap();
        let values = [f64::NAN, 0.0, f64::INFINITY].map(f64::to_le_bytes);
        let found = flat.decode(Unit::Milliseconds, &[&values[0], &values[1], &values[2]]);
        assert_eq!(found.x, [0.0, 1.0, 1.0]);
    }

    #[test]
    fn numbers_have_64_bits() {
        for number in [0, 1, -1, 63, 64, -65, i64::MAX, i64::MIN, 1 << 53] {
            assert_eq!(Bytes(&long(number)).long(), Ok(number));
        }
        for hostile in
            [&[0x80; 30][..], &[0xFF; 10], &[], &[0x80], &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2]]
        {
            assert_eq!(Bytes(hostile).long(), Err(Unsure));
        }
    }

    /// Cut anywhere, longer, of another frame, with bytes that are no boolean, no branch, no symbol, no length, not finite.
    #[test]
    fn whatever_is_odd_is_not_sure() {
        let good = value(Some(0.5), b"abc", true, 0, 1);
        let mut odd: Vec<Vec<u8>> = (0..good.len()).map(|end| good[..end].to_vec()).collect();
        odd.push([&good[..], b"\0"].concat());
        for (at, byte) in [(0, b'x'), (2, 4), (2, 1), (11, 200), (11, 1), (17, 2), (18, 4), (18, 1)] {
            let mut spoiled = good.clone();
            spoiled[at] = byte;
            odd.push(spoiled);
        }
        odd.push(value(Some(f64::NAN), b"", true, 0, 1));
        odd.push(value(Some(f64::INFINITY), b"", true, 0, 1));
        for each in odd {
            assert_eq!(flat().decode(Unit::Milliseconds, &[&each]).marks, [CAREFUL], "{each:?}");
        }
    }

    /// Every byte before the time changed to every other: nothing panics, and what is sure is what was written.
    #[test]
    fn hostile_bytes() {
        let good = value(Some(0.5), b"abc", true, 1, 1_760_000_000_000);
        let mut sure = 0;
        for at in 0..19 {
            for byte in 0..=255 {
                let mut spoiled = good.clone();
                spoiled[at] = byte;
                let found = flat().decode(Unit::Milliseconds, &[&spoiled]);
                if found.marks[0] & CAREFUL == 0 {
                    sure += 1;
                    let number = f64::from_le_bytes(spoiled[3..11].try_into().unwrap());
                    let symbol = i64::from(found.x[2] == 9.0);
                    let text = &spoiled[12..15];
                    let mut again = value(Some(number), text, found.x[1] == 1.0, symbol, found.times[0]);
                    again[15..17].copy_from_slice(&spoiled[15..17]);
                    assert_eq!(again, spoiled);
                }
            }
        }
        assert!(sure > 1_000, "{sure}");
    }

    #[test]
    fn columns_that_are_not_there_are_refused() {
        let number = |at| vec![only(Kind::Double, vec![Action::Number { at, null: None }])];
        assert!(Flat::<f64>::new(1, &[], number(1), vec![]).is_err());
        assert!(Flat::<f64>::new(1, &[(1, 0.0)], number(0), vec![]).is_err());
    }
}
