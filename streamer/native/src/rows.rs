//! The records of a fetch become columns. A row is sure, or it is marked and Python decides it.

use std::hint::black_box;
use std::mem::replace;

use crate::layout::{Action, Cell, Layout, Leaf, Node, Object};
use crate::scan::{Scan, Sure, Token, Unsure};
use crate::time::Unit;

/// The row is not sure: nothing of it counts.
pub const CAREFUL: u8 = 1;
/// The record itself says when it was.
pub const TIMED: u8 = 2;

/// How many values ahead of the work are touched.
const AHEAD: usize = 2;
/// Bytes of a line of the processor's caches; lines of a value that are looked for.
const LINE: usize = 64;
const LINES: usize = 16;

pub struct Columns<T> {
    /// [rows, columns]
    pub x: Vec<T>,
    /// Milliseconds since 1970, where `TIMED`.
    pub times: Vec<i64>,
    pub marks: Vec<u8>,
    pub careful: usize,
    pub timed: usize,
}

impl<T: Copy> Columns<T> {
    pub fn with_capacity(rows: usize, columns: usize) -> Self {
        Columns {
            x: Vec::with_capacity(rows * columns),
            times: Vec::with_capacity(rows),
            marks: Vec::with_capacity(rows),
            careful: 0,
            timed: 0,
        }
    }

    /// One more row: `template`, as far as `fill` puts nothing else into it. `fill` says what time the record gives.
    #[inline(always)]
    pub fn push(&mut self, template: &[T], fill: impl FnOnce(&mut [T]) -> Sure<Option<i64>>) {
        let start = self.x.len();
        self.x.extend_from_slice(template);
        let found = fill(&mut self.x[start..]);
        let (sure, time) = (found.is_ok(), found.unwrap_or(None));
        self.careful += usize::from(!sure);
        self.timed += usize::from(time.is_some());
        self.times.push(time.unwrap_or(0));
        self.marks.push(if sure { 0 } else { CAREFUL } | if time.is_some() { TIMED } else { 0 });
    }
}

pub fn decode<T: Cell>(layout: &Layout<T>, unit: Unit, values: &[&[u8]]) -> Columns<T> {
    let mut found = Columns::with_capacity(values.len(), layout.template.len());
    let mut rows = Rows { unit, slots: vec![Slot { seen: 0, next: 0 }; layout.slots], row: 0, there: 0, time: None };
    for value in with_foresight(values) {
        found.push(&layout.template, |x| rows.row(layout, value, x));
    }
    found
}

/// Each of `values`. The memory of a later one comes nearer while this one is worked on: each is an object of its own, somewhere.
pub fn with_foresight<'a>(values: &'a [&'a [u8]]) -> impl Iterator<Item = &'a [u8]> {
    values.iter().enumerate().map(|(at, value)| {
        if let Some(later) = values.get(at + AHEAD) {
            // Else the compiler leaves out a load that nobody uses.
            black_box(later.chunks(LINE).take(LINES).fold(0, |all, line| all ^ line[0]));
        }
        *value
    })
}

#[derive(Clone, Copy)]
struct Slot {
    /// The last row that had it: a second time is a repetition.
    seen: u32,
    /// The field that came next in the record before; most records have their fields in one order.
    next: u32,
}

/// What is remembered from field to field, and from record to record.
struct Rows {
    unit: Unit,
    /// Of each field, and of the place before an object's first
    slots: Vec<Slot>,
    row: u32,
    /// Required leaves of this row.
    there: usize,
    time: Option<i64>,
}

impl Rows {
    fn row<T: Cell>(&mut self, layout: &Layout<T>, value: &[u8], x: &mut [T]) -> Sure<Option<i64>> {
        (self.row, self.there, self.time) = (self.row + 1, 0, None);
        let mut scan = Scan::new(value);
        scan.blank();
        self.object(&layout.root, &mut scan, x)?;
        scan.end()?;
        if self.there == layout.required { Ok(self.time) } else { Err(Unsure) }
    }

    fn object<T: Cell>(&mut self, object: &Object<T>, scan: &mut Scan, x: &mut [T]) -> Sure<()> {
        scan.expect(b'{')?;
        scan.blank();
        if scan.peek() == b'}' {
            scan.step();
            return Ok(());
        }
        let mut before = object.first_slot;
        loop {
            let guess = self.slots[before].next as usize;
            let field = if object.keys.get(guess).is_some_and(|key| scan.is_key(key)) {
                Some(guess)
            } else {
                let found = object.index.get(scan.name()?).copied();
                if let Some(field) = found {
                    self.slots[before].next = field as u32;
                }
                found
            };
            scan.blank();
            match field {
                Some(field) => {
                    before = object.first_slot + 1 + field;
                    if replace(&mut self.slots[before].seen, self.row) == self.row {
                        return Err(Unsure);
                    }
                    match &object.nodes[field] {
                        Node::Leaf(leaf) => self.leaf(leaf, scan, x)?,
                        node => self.node(node, scan, x)?,
                    }
                }
                None => scan.skip()?,
            }
            scan.blank();
            if scan.peek() != b',' {
                return scan.expect(b'}');
            }
            scan.step();
            scan.blank();
        }
    }

    fn node<T: Cell>(&mut self, node: &Node<T>, scan: &mut Scan, x: &mut [T]) -> Sure<()> {
        match node {
            Node::Leaf(leaf) => self.leaf(leaf, scan, x),
            Node::Numbers { at, nulls } => {
                self.there += 1;
                numbers(nulls, scan, &mut x[*at..*at + nulls.len()])
            }
            _ if scan.peek() == b'n' => scan.null(),
            Node::Object(object) => self.object(object, scan, x),
            Node::List(items) => self.list(items, scan, x),
        }
    }

    fn list<T: Cell>(&mut self, items: &[(usize, Node<T>)], scan: &mut Scan, x: &mut [T]) -> Sure<()> {
        scan.expect(b'[')?;
        scan.blank();
        if scan.peek() == b']' {
            scan.step();
            return Ok(());
        }
        let mut wanted = items.iter().peekable();
        for place in 0.. {
            match wanted.next_if(|(at, _)| *at == place) {
                Some((_, node)) => self.node(node, scan, x)?,
                None => scan.skip()?,
            }
            scan.blank();
            if scan.peek() != b',' {
                break;
            }
            scan.step();
            scan.blank();
        }
        scan.expect(b']')
    }

    #[inline(always)]
    fn leaf<T: Cell>(&mut self, leaf: &Leaf<T>, scan: &mut Scan, x: &mut [T]) -> Sure<()> {
        self.there += usize::from(leaf.required);
        if let [Action::Number { at, null }] = leaf.actions[..] {
            if scan.peek() != b'n' {
                x[at] = T::of(&scan.number()?).ok_or(Unsure)?;
                return Ok(());
            }
            scan.null()?;
            return null.map(|_| ()).ok_or(Unsure); // the row began with it
        }
        if leaf.only_present {
            if scan.peek() == b'n' {
                return scan.null();
            }
            scan.skip()?;
            for action in &leaf.actions {
                if let Action::Present { at, yes, .. } = action {
                    x[*at] = *yes;
                }
            }
            return Ok(());
        }
        let token = scan.token()?;
        for action in &leaf.actions {
            act(action, self.unit, token, x, &mut self.time)?;
        }
        Ok(())
    }
}

/// What a cell means to one action: a number for its column of `x`, or the `time` of the record.
#[inline(always)]
pub fn act<T: Cell>(action: &Action<T>, unit: Unit, token: Token, x: &mut [T], time: &mut Option<i64>) -> Sure<()> {
    let (at, number) = match action {
        Action::Number { at, null } => {
            let number = match token {
                Token::Float(number) => T::real(number),
                Token::Integer(number) => T::whole(number),
                Token::Number(number) => T::of(&number),
                Token::Null => *null,
                _ => None,
            };
            (at, number)
        }
        Action::Time => {
            *time = unit.milliseconds(token)?;
            return Ok(());
        }
        Action::Present { at, no, yes } => {
            // NaN is no value, as in training.
            let nothing = token == Token::Null || matches!(token, Token::Float(number) if number.is_nan());
            (at, Some(if nothing { *no } else { *yes }))
        }
        Action::Flag { at, null, no, yes } => {
            let truth = |number| match number {
                Some(0.0) => Some(*no),
                Some(1.0) => Some(*yes),
                _ => None,
            };
            let number = match token {
                Token::Null => *null,
                Token::False => Some(*no),
                Token::True => Some(*yes),
                Token::Number(number) => truth(f64::of(&number)),
                Token::Integer(number) => truth(f64::whole(number)),
                Token::Float(number) => truth(Some(number)),
                Token::Text(_) => None,
            };
            (at, number)
        }
        Action::Category { at, null, no, yes, words, other } => {
            let word = |text: &[u8]| words.get(text).copied().or(*other);
            let number = match token {
                Token::Null => *null,
                Token::False => *no,
                Token::True => *yes,
                Token::Text(text) => word(text),
                // An integer is the word that it is written as.
                Token::Number(number) if number.is_integer() => word(number.text),
                Token::Integer(number) => word(number.to_string().as_bytes()),
                Token::Number(_) | Token::Float(_) => None,
            };
            (at, number)
        }
    };
    x[*at] = number.ok_or(Unsure)?;
    Ok(())
}

/// A list of as many numbers as `x` has places.
fn numbers<T: Cell>(nulls: &[Option<T>], scan: &mut Scan, x: &mut [T]) -> Sure<()> {
    scan.expect(b'[')?;
    let mut first = true;
    for (place, null) in x.iter_mut().zip(nulls) {
        if !first {
            scan.expect(b',')?;
        }
        first = false;
        scan.blank();
        *place = if scan.peek() == b'n' {
            scan.null()?;
            (*null).ok_or(Unsure)?
        } else {
            T::of(&scan.number()?).ok_or(Unsure)?
        };
        scan.blank();
    }
    scan.blank();
    scan.expect(b']')
}
