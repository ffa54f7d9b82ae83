//! What of a record is read, and what becomes of it: a tree of fields, with actions at its leaves.

use std::collections::HashMap;

use crate::scan::{Key, Number};

/// A number of the contract's dtype, and what is certainly one.
pub trait Cell: Copy + Default + Send + Sync {
    /// None: it may not be finite, or not exact.
    fn of(number: &Number) -> Option<Self>;

    /// As `of`.
    fn whole(number: i64) -> Option<Self>;

    /// As `of`.
    fn real(number: f64) -> Option<Self>;
}

impl Cell for f32 {
    #[inline(always)]
    fn of(number: &Number) -> Option<Self> {
        if number.is_integer() { Self::whole(number.integer()?) } else { number.single() }
    }

    #[inline(always)]
    fn whole(number: i64) -> Option<Self> {
        (number.unsigned_abs() <= 1 << 24).then_some(number as f32)
    }

    #[inline(always)]
    fn real(number: f64) -> Option<Self> {
        Some(number as f32).filter(|held| held.is_finite())
    }
}

impl Cell for f64 {
    #[inline(always)]
    fn of(number: &Number) -> Option<Self> {
        if number.is_integer() { Self::whole(number.integer()?) } else { number.float() }
    }

    #[inline(always)]
    fn whole(number: i64) -> Option<Self> {
        (number.unsigned_abs() <= 1 << 53).then_some(number as f64)
    }

    #[inline(always)]
    fn real(number: f64) -> Option<Self> {
        Some(number).filter(|held| held.is_finite())
    }
}

impl Cell for i32 {
    fn of(number: &Number) -> Option<Self> {
        Self::whole(number.integer()?)
    }

    fn whole(number: i64) -> Option<Self> {
        number.try_into().ok()
    }

    fn real(_: f64) -> Option<Self> {
        None
    }
}

impl Cell for i64 {
    fn of(number: &Number) -> Option<Self> {
        number.integer()
    }

    fn whole(number: i64) -> Option<Self> {
        Some(number)
    }

    fn real(_: f64) -> Option<Self> {
        None
    }
}

/// What becomes of a field. `at`: the column. `null`: what stands for a field that is null or absent; None: Python decides.
pub enum Action<T> {
    Number {
        at: usize,
        null: Option<T>,
    },
    Flag {
        at: usize,
        null: Option<T>,
        no: T,
        yes: T,
    },
    Present {
        at: usize,
        no: T,
        yes: T,
    },
    Category {
        at: usize,
        null: Option<T>,
        no: Option<T>,
        yes: Option<T>,
        words: HashMap<Box<[u8]>, T>,
        other: Option<T>,
    },
    Time,
}

impl<T: Cell> Action<T> {
    pub fn absent(&self) -> Option<(usize, Option<T>)> {
        match self {
            Self::Number { at, null } | Self::Flag { at, null, .. } | Self::Category { at, null, .. } => {
                Some((*at, *null))
            }
            Self::Present { at, no, .. } => Some((*at, Some(*no))),
            Self::Time => None,
        }
    }
}

pub enum Step {
    Name(Box<[u8]>),
    Place(usize),
}

/// What is read at one path.
pub enum Read<T> {
    Field(Vec<Action<T>>),
    /// A list of exactly as many numbers: columns from `at` on.
    Numbers {
        at: usize,
        nulls: Vec<Option<T>>,
    },
}

pub enum Node<T> {
    Object(Object<T>),
    /// Places in rising order.
    List(Vec<(usize, Node<T>)>),
    Leaf(Leaf<T>),
    Numbers {
        at: usize,
        nulls: Vec<Option<T>>,
    },
}

pub struct Object<T> {
    pub keys: Vec<Key>,
    pub nodes: Vec<Node<T>>,
    pub index: HashMap<Box<[u8]>, usize>,
    /// Of its fields, which have successive slots, in `Rows`.
    pub first_slot: usize,
}

pub struct Leaf<T> {
    pub actions: Vec<Action<T>>,
    /// Null or absent is not certain for one of the actions.
    pub required: bool,
    /// Whatever the value is, its being there is all that counts.
    pub only_present: bool,
}

pub struct Layout<T> {
    pub root: Object<T>,
    /// A row of which nothing is there but constants.
    pub template: Vec<T>,
    /// Leaves that must be there.
    pub required: usize,
    pub slots: usize,
}

/// Steps of a path: a tree is walked by recursion.
const MAX_STEPS: usize = 32;

impl<T: Cell> Layout<T> {
    /// Err: the sentence that says what cannot be read so.
    pub fn new(columns: usize, constants: &[(usize, T)], fields: Vec<(Vec<Step>, Read<T>)>) -> Result<Self, String> {
        let template = template(columns, constants)?;
        let mut layout = Layout { root: Object::empty(), template, required: 0, slots: 0 };
        for (path, read) in fields {
            let leaf = match read {
                Read::Field(actions) => {
                    let mut required = false;
                    for (at, null) in actions.iter().filter_map(Action::absent) {
                        set(&mut layout.template, at, null.unwrap_or_default())?;
                        required |= null.is_none();
                    }
                    layout.required += usize::from(required);
                    let only_present = actions.iter().all(|action| matches!(action, Action::Present { .. }));
                    Node::Leaf(Leaf { actions, required, only_present })
                }
                Read::Numbers { at, nulls } => {
                    if at + nulls.len() > columns {
                        return Err(format!("columns {at} to {} of {columns}", at + nulls.len()));
                    }
                    layout.required += 1;
                    Node::Numbers { at, nulls }
                }
            };
            if path.len() > MAX_STEPS {
                return Err(format!("a path has {} steps, at most {MAX_STEPS} are read", path.len()));
            }
            let mut steps = path.into_iter();
            match steps.next() {
                Some(Step::Name(name)) => layout.root.insert(name, steps, leaf)?,
                _ => return Err("a path begins with a name".into()),
            }
        }
        layout.slots = layout.root.number(0);
        Ok(layout)
    }
}

/// A row of constants alone.
pub fn template<T: Cell>(columns: usize, constants: &[(usize, T)]) -> Result<Vec<T>, String> {
    let mut row = vec![T::default(); columns];
    for (at, number) in constants {
        set(&mut row, *at, *number)?;
    }
    Ok(row)
}

pub fn set<T>(row: &mut [T], at: usize, number: T) -> Result<(), String> {
    let columns = row.len();
    *row.get_mut(at).ok_or(format!("column {at} of {columns}"))? = number;
    Ok(())
}

impl<T> Object<T> {
    fn empty() -> Self {
        Object { keys: Vec::new(), nodes: Vec::new(), index: HashMap::new(), first_slot: 0 }
    }

    fn insert(&mut self, name: Box<[u8]>, steps: impl Iterator<Item = Step>, leaf: Node<T>) -> Result<(), String> {
        if let Some(at) = self.index.get(&name) {
            return self.nodes[*at].insert(steps, leaf);
        }
        let node = Node::grown(steps, leaf)?;
        self.push(name, node)
    }

    fn push(&mut self, name: Box<[u8]>, node: Node<T>) -> Result<(), String> {
        self.keys.push(Key::of(&name).ok_or("a field's name is written with escapes")?);
        self.index.insert(name, self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    /// Gives slots to all fields in it, from `next` on; returns the first that is left.
    fn number(&mut self, next: usize) -> usize {
        self.first_slot = next;
        let own = self.nodes.len() + 1;
        self.nodes.iter_mut().fold(next + own, |next, node| node.number(next))
    }
}

impl<T> Node<T> {
    fn grown(mut steps: impl Iterator<Item = Step>, leaf: Node<T>) -> Result<Self, String> {
        // Not by recursion over the iterator, whose type would grow with it.
        let path: Vec<Step> = steps.by_ref().collect();
        path.into_iter().rev().try_fold(leaf, |inner, step| match step {
            Step::Name(name) => {
                let mut object = Object::empty();
                object.push(name, inner)?;
                Ok(Node::Object(object))
            }
            Step::Place(place) => Ok(Node::List(vec![(place, inner)])),
        })
    }

    fn insert(&mut self, mut steps: impl Iterator<Item = Step>, leaf: Node<T>) -> Result<(), String> {
        let (step, rest) = (steps.next(), steps.collect::<Vec<_>>().into_iter());
        match (self, step) {
            (Node::Object(object), Some(Step::Name(name))) => object.insert(name, rest, leaf),
            (Node::List(items), Some(Step::Place(place))) => {
                match items.binary_search_by_key(&place, |(at, _)| *at) {
                    Ok(found) => items[found].1.insert(rest, leaf)?,
                    Err(gap) => items.insert(gap, (place, Node::grown(rest, leaf)?)),
                }
                Ok(())
            }
            _ => Err("a field is read as two kinds of thing".into()),
        }
    }

    fn number(&mut self, next: usize) -> usize {
        match self {
            Node::Object(object) => object.number(next),
            Node::List(items) => items.iter_mut().fold(next, |next, (_, node)| node.number(next)),
            Node::Leaf(_) | Node::Numbers { .. } => next,
        }
    }
}
