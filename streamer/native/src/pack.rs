//! Record batches (Kafka's v2, not compressed) of answers: the bytes that the client's builder would write.

use crate::records::{HEADER, LENGTH_END};

const SUMMED: usize = 21;
const MAGIC: u8 = 2;
const TRANSACTIONAL: u16 = 0x10;

/// What the headers of an answer are: its source, which is `prefix` and an offset, and those that all answers share.
pub struct Headers {
    before: Vec<u8>,
    prefix: Vec<u8>,
    shared: Vec<u8>,
}

impl Headers {
    pub fn new(source: &[u8], prefix: &[u8], shared: &[(&[u8], Option<&[u8]>)]) -> Self {
        let mut before = Vec::new();
        varint(&mut before, 1 + shared.len() as i64);
        nullable(&mut before, Some(source));
        let mut rest = Vec::new();
        for (name, value) in shared {
            nullable(&mut rest, Some(name));
            nullable(&mut rest, *value);
        }
        Headers { before, prefix: prefix.to_vec(), shared: rest }
    }

    fn write(&self, out: &mut Vec<u8>, offset: i64) {
        out.extend_from_slice(&self.before);
        let mut digits = [0; 20];
        let digits = decimal(offset, &mut digits);
        varint(out, (self.prefix.len() + digits.len()) as i64);
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(digits);
        out.extend_from_slice(&self.shared);
    }
}

/// A batch that is still open, of fewer than `size` bytes, as the client has it; one record goes in whatever its size.
pub struct Batch {
    out: Vec<u8>,
    record: Vec<u8>,
    size: usize,
    count: i32,
    first: i64,
    newest: i64,
}

impl Batch {
    pub fn new(size: usize) -> Self {
        Batch { out: vec![0; HEADER], record: Vec::new(), size, count: 0, first: 0, newest: 0 }
    }

    pub fn count(&self) -> i32 {
        self.count
    }

    /// Bytes, those of the batch's header among them.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether there was room.
    pub fn add(&mut self, time: i64, key: &[u8], value: &[u8], headers: &Headers, offset: i64) -> bool {
        let first = if self.count == 0 { time } else { self.first };
        let record = &mut self.record;
        record.clear();
        record.push(0); // attributes: none are defined
        varint(record, time.wrapping_sub(first));
        varint(record, i64::from(self.count));
        nullable(record, Some(key));
        nullable(record, Some(value));
        headers.write(record, offset);
        let mut length = Vec::with_capacity(5);
        varint(&mut length, record.len() as i64);
        if self.count > 0 && self.out.len() + length.len() + record.len() >= self.size || self.count == i32::MAX {
            return false;
        }
        self.newest = if self.count == 0 { time } else { self.newest.max(time) };
        self.first = first;
        self.count += 1;
        self.out.extend_from_slice(&length);
        self.out.extend_from_slice(record);
        true
    }

    /// What is in it, and begins anew. Nobody's yet: see `seal`.
    pub fn take(&mut self, transactional: bool) -> Vec<u8> {
        let mut out = std::mem::replace(&mut self.out, vec![0; HEADER]);
        let length = (out.len() - LENGTH_END) as i32;
        let attributes: u16 = if transactional { TRANSACTIONAL } else { 0 };
        out[8..12].copy_from_slice(&length.to_be_bytes());
        out[12..16].copy_from_slice(&(-1i32).to_be_bytes()); // the leader's epoch, which brokers set
        out[16] = MAGIC;
        out[21..23].copy_from_slice(&attributes.to_be_bytes());
        out[23..27].copy_from_slice(&(self.count - 1).to_be_bytes());
        out[27..35].copy_from_slice(&self.first.to_be_bytes());
        out[35..43].copy_from_slice(&self.newest.to_be_bytes());
        out[57..61].copy_from_slice(&self.count.to_be_bytes());
        (self.count, self.first, self.newest) = (0, 0, 0);
        out
    }
}

/// Says who writes a batch, and signs it with its checksum.
pub fn seal(batch: &mut [u8], producer: i64, epoch: i16, sequence: i32) {
    batch[43..51].copy_from_slice(&producer.to_be_bytes());
    batch[51..53].copy_from_slice(&epoch.to_be_bytes());
    batch[53..57].copy_from_slice(&sequence.to_be_bytes());
    let sum = crc32c::crc32c(&batch[SUMMED..]);
    batch[17..21].copy_from_slice(&sum.to_be_bytes());
}

/// Zigzag, seven bits at a time.
pub(crate) fn varint(out: &mut Vec<u8>, number: i64) {
    let mut left = ((number << 1) ^ (number >> 63)) as u64;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

pub(crate) fn nullable(out: &mut Vec<u8>, part: Option<&[u8]>) {
    varint(out, part.map_or(-1, |part| part.len() as i64));
    out.extend_from_slice(part.unwrap_or_default());
}

fn decimal(number: i64, room: &mut [u8; 20]) -> &[u8] {
    let mut at = room.len();
    let mut left = number.unsigned_abs();
    loop {
        at -= 1;
        room[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        room[at] = b'-';
    }
    &room[at..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::read;

    #[test]
    fn what_is_packed_is_read() {
        let headers = Headers::new(b"streamer-source", b"in/3/", &[(b"streamer-model", Some(b"m@1")), (b"none", None)]);
        let mut batch = Batch::new(100_000);
        for row in 0..300i64 {
            assert!(batch.add(1_000 - row, b"key", b"value", &headers, row * row));
        }
        assert_eq!((batch.count(), batch.is_empty()), (300, false));
        let mut raw = batch.take(true);
        assert!(batch.is_empty());
        seal(&mut raw, 7, 1, 40);
        let found = read(&raw).unwrap();
        assert_eq!(found.offsets, (0..300).collect::<Vec<_>>());
        assert_eq!(found.timestamps, (0..300).map(|row| 1_000 - row).collect::<Vec<_>>());
        assert!(found.keys.iter().all(|key| *key == Some(&b"key"[..])));
        assert!(found.values.iter().all(|value| *value == Some(&b"value"[..])));
        let (row, last) = found.headers.last().unwrap();
        assert_eq!((*row, &last[0].0[..], last[0].1), (299, "streamer-source", Some(&b"in/3/89401"[..])));
        assert_eq!((last[1].1, last[2].1), (Some(&b"m@1"[..]), None));
    }

    #[test]
    fn a_batch_is_full_and_one_record_always_fits() {
        let headers = Headers::new(b"s", b"", &[]);
        let mut batch = Batch::new(10);
        assert!(batch.add(0, b"k", &[7; 1_000], &headers, 0));
        assert!(!batch.add(0, b"k", b"v", &headers, 1));
        assert!(batch.len() > 1_000);
        batch.take(false);
        assert!(batch.add(0, b"k", b"v", &headers, 1));
    }

    #[test]
    fn offsets_are_written_in_digits() {
        for number in [0, 9, 10, -1, i64::MAX, i64::MIN] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }
}
