//! The records of one batch (Kafka's record batch v2, not compressed) as columns: an accelerator of the client's parser.
//!
//! It reads only batches that it is sure about: all records well-formed, their offsets growing and within the batch. Of every
//! other batch the Python path says what it holds.

use std::borrow::Cow;
use std::fmt::Write;
use std::str;

/// Bytes before the records of a batch; bytes up to which its length does not count.
pub const HEADER: usize = 61;
pub const LENGTH_END: usize = 12;
/// Bits of the attributes
const CODEC: u16 = 0x07;
const LOG_APPEND_TIME: u16 = 0x08;

/// Name and value; a value may be null. Bytes of a name that are no UTF-8 are told as Python escapes them.
pub type Header<'a> = (Cow<'a, str>, Option<&'a [u8]>);

/// What a batch holds, in columns of one length.
#[derive(Debug, Default, PartialEq)]
pub struct Records<'a> {
    pub offsets: Vec<i64>,
    pub timestamps: Vec<i64>,
    pub keys: Vec<Option<&'a [u8]>>,
    pub values: Vec<Option<&'a [u8]>>,
    /// Row and headers, only of rows that have any.
    pub headers: Vec<(usize, Vec<Header<'a>>)>,
}

/// The records of `batch`, which is exactly one. None: not sure.
pub fn read(batch: &[u8]) -> Option<Records<'_>> {
    let base = i64::from_be_bytes(at(batch, 0)?);
    let length = usize::try_from(i32::from_be_bytes(at(batch, 8)?)).ok()?;
    let attributes = u16::from_be_bytes(at(batch, 21)?);
    let last = i64::from(i32::from_be_bytes(at(batch, 23)?));
    let first_time = i64::from_be_bytes(at(batch, 27)?);
    let newest_time = i64::from_be_bytes(at(batch, 35)?);
    let count = usize::try_from(i32::from_be_bytes(at(batch, 57)?)).ok()?;
    if batch.len() != LENGTH_END.checked_add(length)? || batch[16] != 2 || attributes & CODEC != 0 {
        return None;
    }
    let mut left = Bytes(&batch[HEADER..]);
    let rows = count.min(left.0.len()); // a record has a byte at least
    let mut found = Records {
        offsets: Vec::with_capacity(rows),
        timestamps: Vec::with_capacity(rows),
        keys: Vec::with_capacity(rows),
        values: Vec::with_capacity(rows),
        headers: Vec::new(),
    };
    let end = base.checked_add(last)?;
    let mut before = base.checked_sub(1)?;
    for row in 0..count {
        let size = left.length()?;
        let mut record = Bytes(left.take(size)?);
        record.varint()?; // attributes: none are defined
        let time = record.varint()?;
        let offset = base.checked_add(record.varint()?)?;
        if offset <= before || offset > end {
            return None;
        }
        before = offset;
        found.offsets.push(offset);
        found.timestamps.push(if attributes & LOG_APPEND_TIME == 0 {
            first_time.checked_add(time)?
        } else {
            newest_time
        });
        found.keys.push(record.nullable()?);
        found.values.push(record.nullable()?);
        let headers = record.length()?;
        if headers > 0 {
            found.headers.push((row, record.headers(headers)?));
        }
        if !record.0.is_empty() {
            return None;
        }
    }
    left.0.is_empty().then_some(found)
}

fn at<const N: usize>(batch: &[u8], place: usize) -> Option<[u8; N]> {
    batch.get(place..place + N)?.try_into().ok()
}

/// What is still to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        let (found, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(found)
    }

    /// A number as protocol buffers write it: zigzag, seven bits at a time, ten bytes at most.
    fn varint(&mut self) -> Option<i64> {
        let mut number: u64 = 0;
        for place in 0..10 {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if place == 9 && bits > 1 {
                return None;
            }
            number |= bits << (7 * place);
            if byte & 0x80 == 0 {
                return Some((number >> 1) as i64 ^ -((number & 1) as i64));
            }
        }
        None
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.varint()?).ok()
    }

    /// Bytes behind their length, or null, whose length is below 0.
    fn nullable(&mut self) -> Option<Option<&'a [u8]>> {
        match self.varint()? {
            ..0 => Some(None),
            size => Some(Some(self.take(usize::try_from(size).ok()?)?)),
        }
    }

    fn headers(&mut self, count: usize) -> Option<Vec<Header<'a>>> {
        let mut found = Vec::with_capacity(count.min(self.0.len()));
        for _ in 0..count {
            let size = self.length()?;
            found.push((text(self.take(size)?), self.nullable()?));
        }
        Some(found)
    }
}

/// Python's `bytes.decode("utf-8", "backslashreplace")`.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut found = String::with_capacity(2 * bytes.len());
    for chunk in bytes.utf8_chunks() {
        found.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(found, "\\x{byte:02x}"); // a String takes all
        }
    }
    Cow::Owned(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::{nullable, varint};

    fn record(time: i64, offset: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header]) -> Vec<u8> {
        let mut body = vec![0];
        varint(&mut body, time);
        varint(&mut body, offset);
        for part in [key, value] {
            nullable(&mut body, part);
        }
        varint(&mut body, headers.len() as i64);
        for (name, value) in headers {
            nullable(&mut body, Some(name.as_bytes()));
            nullable(&mut body, *value);
        }
        let mut whole = Vec::new();
        varint(&mut whole, body.len() as i64);
        whole.extend(body);
        whole
    }

    fn batch(base: i64, attributes: u16, last: i32, records: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(base.to_be_bytes());
        out.extend([0; 8]); // length, leader epoch
        out.push(2);
        out.extend([0; 4]); // checksum
        out.extend(attributes.to_be_bytes());
        out.extend(last.to_be_bytes());
        out.extend(1_000i64.to_be_bytes());
        out.extend(2_000i64.to_be_bytes());
        out.extend([0; 14]);
        out.extend((records.len() as i32).to_be_bytes());
        out.extend(records.concat());
        let length = (out.len() - LENGTH_END) as i32;
        out[8..12].copy_from_slice(&length.to_be_bytes());
        out
    }

    #[test]
    fn records_come_in_columns() {
        let headers = [(Cow::from("a"), Some(&b"1"[..])), (Cow::from("b"), None)];
        let rows = [record(0, 0, Some(b"k"), Some(b"v"), &[]), record(-5, 3, None, None, &headers)];
        let raw = batch(40, 0, 3, &rows);
        let found = read(&raw).unwrap();
        assert_eq!((found.offsets, found.timestamps), (vec![40, 43], vec![1_000, 995]));
        assert_eq!((found.keys, found.values), (vec![Some(&b"k"[..]), None], vec![Some(&b"v"[..]), None]));
        assert_eq!(found.headers, vec![(1, headers.to_vec())]);
    }

    #[test]
    fn names_that_are_no_text_are_escaped() {
        assert_eq!(text(b"a\xff\xc3\xa9\xed\xa0"), "a\\xff\u{e9}\\xed\\xa0");
    }

    #[test]
    fn the_time_may_be_that_of_the_log() {
        let raw = batch(0, LOG_APPEND_TIME, 0, &[record(7, 0, None, None, &[])]);
        assert_eq!(read(&raw).unwrap().timestamps, [2_000]);
    }

    #[test]
    fn what_is_not_sure_is_not_read() {
        let good = record(0, 0, Some(b"k"), Some(b"v"), &[]);
        let rows = |records: &[Vec<u8>]| batch(0, 0, 9, records);
        assert!(read(&rows(&[good.clone()])).is_some());
        assert_eq!(read(&batch(0, 1, 9, &[good.clone()])), None, "compressed");
        assert_eq!(read(&rows(&[good.clone(), good.clone()])), None, "offsets that do not grow");
        assert_eq!(read(&rows(&[record(0, 10, None, None, &[])])), None, "an offset beyond the batch");
        assert_eq!(read(&rows(&[record(0, -1, None, None, &[])])), None, "an offset before the batch");
        assert_eq!(read(&rows(&[record(i64::MAX, 0, None, None, &[])])), None, "a time beyond all");
        let mut longer = rows(&[good.clone()]);
        longer.push(0);
        assert_eq!(read(&longer), None, "bytes behind the batch");
        for end in 0..longer.len() - 1 {
            assert_eq!(read(&longer[..end]), None, "cut off");
        }
        for place in LENGTH_END..longer.len() - 1 {
            for byte in 0..=255 {
                let mut raw = rows(&[good.clone()]);
                raw[place] = byte;
                read(&raw); // never a panic
            }
        }
    }
}
