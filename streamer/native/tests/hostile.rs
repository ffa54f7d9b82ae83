//! Hostile bytes: nothing panics, and what is sure is what another parser reads. Mutations of good values, seeded.

use std::time::{Duration, Instant};

use serde_json::Value;
use streamer_native::layout::{Action, Cell, Layout, Read, Step};
use streamer_native::rows::{CAREFUL, TIMED, decode};
use streamer_native::time::Unit;

const GOOD: [&[u8]; 4] = [
    br#"{"x":[1.5,-2e3,16777216],"ts":1760000000000,"a":{"b":[0,"w",{"c":7}]},"word":"run"}"#,
    br#"{"ts":1760000000000.5,"other":{"k":[[],{},"\u00e9\ud83d\ude00\n",null,true]},"x":[1,2,3],"a":{"b":[1,2,{"c":0.25}]},"word":7}"#,
    b"{ \"word\" : null ,\r\n\t\"x\" : [ 0.1 , 0.30000000000000004 , -0.0 ] , \"a\" : null }",
    b"{\"x\":[1e22,9007199254740993.0,5e-324],\"\xc3\xa9\":\"\xf0\x9f\x98\x80\",\"a\":{},\"ts\":null}",
];
const PARTS: [&[u8]; 24] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b",",
    b":",
    b"\\",
    b"\\u12",
    b"\\ud800",
    b"\xff",
    b"\xed\xa0\x80",
    b"\x00",
    b"\n",
    b"-",
    b".",
    b"e",
    b"0",
    b"99999999999999999999",
    b"1e400",
    b"null",
    b"\xef\xbb\xbf",
    b"\"x\":[1,2,3],",
    b"[[[[[[[[[[[[[[[[",
];

/// xorshift: the same bytes in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn value(&mut self) -> Vec<u8> {
        let mut value = GOOD[self.below(GOOD.len())].to_vec();
        for _ in 0..self.below(4) {
            let at = self.below(value.len() + 1);
            let end = (at + [0, 0, 1, 1, 8, 40][self.below(6)]).min(value.len());
            match self.below(4) {
                0 if at < value.len() => value[at] = self.below(256) as u8,
                1 => value.truncate(end),
                2 => drop(value.splice(at..end, value[at..end].repeat(3))),
                _ => drop(value.splice(at..end, PARTS[self.below(PARTS.len())].iter().copied())),
            }
        }
        value
    }
}

fn path(steps: &[&str]) -> Vec<Step> {
    let step = |step: &&str| step.parse().map_or_else(|_| Step::Name(step.as_bytes().into()), Step::Place);
    steps.iter().map(step).collect()
}

fn number(at: usize) -> Read<f64> {
    Read::Field(vec![Action::Number { at, null: Some(-1.0) }])
}

fn layout() -> Layout<f64> {
    let words = [(b"run"[..].into(), 5.0), (b"7"[..].into(), 6.0)].into();
    let word = Action::Category { at: 5, null: Some(0.0), no: None, yes: None, words, other: Some(9.0) };
    let fields = vec![
        (path(&["x"]), Read::Numbers { at: 0, nulls: vec![Some(-1.0), None, None] }),
        (path(&["a", "b", "0"]), number(3)),
        (path(&["a", "b", "2", "c"]), number(4)),
        (path(&["word"]), Read::Field(vec![word, Action::Present { at: 6, no: 0.0, yes: 1.0 }])),
        (path(&["ts"]), Read::Field(vec![Action::Time])),
    ];
    Layout::new(7, &[], fields).unwrap()
}

/// What a row must be, by serde_json; panics where it is no good row.
fn expected(value: &[u8]) -> (Vec<f64>, Option<f64>) {
    let told = || String::from_utf8_lossy(value).into_owned();
    let found: Value = serde_json::from_slice(value).unwrap_or_else(|error| panic!("{error}: {}", told()));
    let or_missing = |each: Option<&Value>| match each {
        None | Some(Value::Null) => -1.0,
        Some(each) => each.as_f64().unwrap_or_else(|| panic!("{each}: {}", told())),
    };
    let x = found["x"].as_array().unwrap();
    assert_eq!(x.len(), 3, "{}", told());
    let mut row: Vec<f64> = x.iter().map(|each| or_missing(Some(each))).collect();
    row.push(or_missing(found.pointer("/a/b/0")));
    row.push(or_missing(found.pointer("/a/b/2/c")));
    let word = match found.get("word") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(each) => Some(each.as_i64().unwrap().to_string()),
    };
    row.push(word.as_deref().map_or(0.0, |word| match word {
        "run" => 5.0,
        "7" => 6.0,
        _ => 9.0,
    }));
    row.push(f64::from(u8::from(word.is_some())));
    (row, found.get("ts").filter(|each| !each.is_null()).map(|each| each.as_f64().unwrap()))
}

/// STREAMER_FUZZ_S: how long it goes on beyond the first million.
#[test]
fn what_is_sure_is_what_another_parser_reads() {
    let (layout, mut chance, mut sure) = (layout(), Chance(0x9E37_79B9_7F4A_7C15), 0_u64);
    let seconds = std::env::var("STREAMER_FUZZ_S").map_or(0, |text| text.parse().unwrap());
    let (begun, mut tried) = (Instant::now(), 0_u64);
    while tried < 1_000_000 || begun.elapsed() < Duration::from_secs(seconds) {
        let values: Vec<Vec<u8>> = (0..64).map(|_| chance.value()).collect();
        let texts: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        let found = decode(&layout, Unit::Milliseconds, &texts);
        for (row, value) in texts.iter().enumerate() {
            if found.marks[row] & CAREFUL != 0 {
                continue;
            }
            sure += 1;
            let (x, time) = expected(value);
            let bits = |row: &[f64]| row.iter().map(|each| each.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found.x[row * 7..row * 7 + 7]), bits(&x), "{}", String::from_utf8_lossy(value));
            assert_eq!(found.marks[row] & TIMED != 0, time.is_some());
            if let Some(time) = time {
                let micros = (time * 1_000.0).round_ties_even();
                assert_eq!(found.times[row], (micros / 1_000.0).floor() as i64, "{}", String::from_utf8_lossy(value));
            }
        }
        tried += 64;
    }
    assert!(sure * 4 > tried, "only {sure} of {tried} were sure");
    println!("{tried} values, {sure} of them sure");
}

#[test]
fn the_good_ones_are_sure() {
    let found = decode(&layout(), Unit::Milliseconds, &GOOD);
    assert_eq!(found.marks, [TIMED, TIMED, 0, 0]);
}

#[test]
fn depth_does_not_matter_to_the_stack() {
    for (open, close) in [("[", "]"), ("{\"k\":", "}")] {
        for (levels, sure) in [(60, true), (100, false), (1_000_000, false)] {
            let inner = format!("{}1{}", open.repeat(levels), close.repeat(levels));
            let value = format!("{{\"m\":{inner},\"x\":[1,2,3]}}");
            assert_eq!(decode(&layout(), Unit::Milliseconds, &[value.as_bytes()]).careful, usize::from(!sure));
        }
    }
}

#[test]
fn a_layout_that_contradicts_itself_is_refused() {
    for other in [&["x", "y"][..], &["a"], &["a", "0"], &["a", "b", "c"], &["0"], &[]] {
        let fields = vec![
            (path(&["x"]), Read::Numbers { at: 0, nulls: vec![None] }),
            (path(&["a", "b", "0"]), number(0)),
            (path(other), number(0)),
        ];
        assert!(Layout::new(1, &[], fields).is_err(), "{other:?}");
    }
    assert!(Layout::new(1, &[], vec![(path(&["a"]), number(1))]).is_err());
    assert!(Layout::new(1, &[(1, 0.0)], vec![]).is_err());
}

#[test]
fn a_name_that_is_written_with_escapes_is_refused() {
    for name in ["a\"b", "a\\", "\n", "a\u{1}"] {
        assert!(Layout::new(1, &[], vec![(path(&[name]), number(0))]).is_err(), "{name:?}");
        assert!(Layout::new(1, &[], vec![(path(&["in", name]), number(0))]).is_err(), "{name:?}");
    }
}

/// One column for each of `names`, which is null where the field is absent.
fn columns(names: &[&str]) -> Layout<f64> {
    let fields = names.iter().enumerate().map(|(at, name)| (path(&[name]), number(at)));
    Layout::new(names.len(), &[], fields.collect()).unwrap()
}

#[test]
fn names_of_any_length_in_any_order_and_between_blanks_are_told_apart() {
    let long = "a name that is longer than sixteen bytes";
    let names = ["", "a", "ab", "\u{e9}", ":", "thirteenbytes", "fourteen_bytes", "fifteenth_bytes", long, &long[..39]];
    let layout = columns(&names);
    let mut chance = Chance(7);
    let values: Vec<String> = (0..2_000)
        .map(|_| {
            let mut order: Vec<usize> = (0..names.len()).collect();
            (1..names.len()).rev().for_each(|at| order.swap(at, chance.below(at + 1)));
            order.truncate(chance.below(names.len() + 1));
            let blank = ["", "", " "][chance.below(3)];
            let fields = order.iter().map(|at| format!("\"{}\"{blank}:{at}", names[*at]));
            format!("{{{}}}", fields.collect::<Vec<_>>().join([",", ", "][chance.below(2)]))
        })
        .collect();
    let texts: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
    let found = decode(&layout, Unit::Milliseconds, &texts);
    assert_eq!(found.careful, 0);
    for (row, value) in values.iter().enumerate() {
        let known: Value = serde_json::from_str(value).unwrap();
        for (at, name) in names.iter().enumerate() {
            let there = known.get(name).map_or(-1.0, |each| each.as_f64().unwrap());
            assert_eq!(found.x[row * names.len() + at], there, "{name:?} of {value}");
        }
    }
}

#[test]
fn short_numbers_are_what_the_standard_library_reads() {
    fn both(text: &str) -> (Option<f64>, Option<f32>) {
        fn one<T: Cell>(text: &str) -> Option<T> {
            // Once with many bytes behind it, once with few: it is read in two ways.
            let values = [format!("{{\"v\":{text},\"after it\":null}}"), format!("{{\"v\":{text}}}")];
            let texts = values.each_ref().map(|value| value.as_bytes());
            let layout =
                Layout::new(1, &[], vec![(path(&["v"]), Read::Field(vec![Action::Number { at: 0, null: None }]))]);
            let found = decode::<T>(&layout.unwrap(), Unit::Milliseconds, &texts);
            assert_eq!(found.marks[0], found.marks[1], "{text}");
            (found.careful == 0).then(|| found.x[0])
        }
        (one(text), one(text))
    }
    for number in 0..100_000_u32 {
        let (first, decimals) = (number / 10_000, number % 10_000);
        let digits = [1, 2, 3, 4, 5][number as usize % 5];
        let sign = ["", "-"][number as usize / 7 % 2];
        let text = format!("{sign}{first}.{:.digits$}", format!("{decimals:04}{first}"));
        let (double, single) = both(&text);
        assert_eq!(double.map(f64::to_bits), Some(text.parse::<f64>().unwrap().to_bits()), "{text}");
        assert_eq!(single.map(f32::to_bits), Some((text.parse::<f64>().unwrap() as f32).to_bits()), "{text}");
    }
    // Multiples of 2^64, which 64 bits take for 0, and numbers that begin with zeros.
    for times in (1..2_000_u128).chain([1 << 63, u128::MAX >> 64]) {
        let digits = times << 64;
        for text in [
            format!("{digits}.0"),
            format!("{digits}.000000"),
            format!("-{digits}.5"),
            format!("{digits}e0"),
            format!("{digits}7.25"),
        ] {
            let double: f64 = text.parse().unwrap();
            let single = Some(double as f32).filter(|found| found.is_finite());
            assert_eq!(both(&text), (Some(double), single), "{text}");
        }
    }
    for zeros in 1..60 {
        let text = format!("0.{}18446744073709551616", "0".repeat(zeros));
        assert_eq!(both(&text).0, Some(text.parse().unwrap()), "{text}");
    }
    for good in ["1.5e3", "0.5E-2", "1.25e0", "0.00001", "9.99999", "1.123456", "0.1234567891"] {
        assert_eq!(both(good).0, Some(good.parse().unwrap()), "{good}");
    }
    for bad in [
        "1.",
        "1.e5",
        "1.5e",
        "1.5.2",
        ".5",
        "00.5",
        "1:5",
        "1.5/",
        "1.5:",
        "-.5",
        "--1.5",
        "1.\u{b2}",
        "1.5\u{2e}",
        "1/5",
    ] {
        assert_eq!(both(bad), (None, None), "{bad}");
    }
}
