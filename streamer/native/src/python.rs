//! What Python sees: `Decoder(...)` from a layout, and `decode(values)`.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyTuple};

use crate::layout::{Action, Cell, Layout, Read, Step};
use crate::rows::{Columns, decode};
use crate::time::Unit;

/// Of what both sides say to each other; Python goes without a wheel of another.
const PROTOCOL: u32 = 2;

/// Bytes from which the interpreter's lock is given back: for fewer, getting it again can cost more than all the work.
const UNLOCKED_BYTES: usize = 16_384;

enum AnyLayout {
    F32(Layout<f32>),
    F64(Layout<f64>),
    I32(Layout<i32>),
    I64(Layout<i64>),
}

/// Reads records of one layout. Immutable, so any thread may use it.
#[pyclass(frozen, module = "streamer_native")]
struct Decoder {
    layout: AnyLayout,
    unit: Unit,
}

type Found<'py> = (Bound<'py, PyByteArray>, Bound<'py, PyByteArray>, Bound<'py, PyByteArray>, usize, usize);

#[pymethods]
impl Decoder {
    /// `fields`: (path of names and places, actions); an action is a tuple that begins with its kind. See `formats/native.py`.
    #[new]
    fn new(
        dtype: &str,
        unit: &str,
        columns: usize,
        constants: &Bound<PyList>,
        fields: &Bound<PyList>,
    ) -> PyResult<Self> {
        let layout = match dtype {
            "float32" => AnyLayout::F32(layout(columns, constants, fields)?),
            "float64" => AnyLayout::F64(layout(columns, constants, fields)?),
            "int32" => AnyLayout::I32(layout(columns, constants, fields)?),
            "int64" => AnyLayout::I64(layout(columns, constants, fields)?),
            _ => return Err(PyValueError::new_err(format!("dtype {dtype}"))),
        };
        let unit = Unit::named(unit).ok_or_else(|| PyValueError::new_err(format!("unit {unit}")))?;
        Ok(Decoder { layout, unit })
    }

    /// (x, times, marks, how many rows are not sure, how many have a time): the first three in the machine's byte order.
    ///
    /// What is not bytes is not sure. RuntimeError: a mistake of this program.
    fn decode<'py>(&self, py: Python<'py>, values: &Bound<'py, PyList>) -> PyResult<Found<'py>> {
        match &self.layout {
            AnyLayout::F32(layout) => columns(py, layout, self.unit, values, f32::to_ne_bytes),
            AnyLayout::F64(layout) => columns(py, layout, self.unit, values, f64::to_ne_bytes),
            AnyLayout::I32(layout) => columns(py, layout, self.unit, values, i32::to_ne_bytes),
            AnyLayout::I64(layout) => columns(py, layout, self.unit, values, i64::to_ne_bytes),
        }
    }
}

fn columns<'py, T: Cell, const WIDTH: usize>(
    py: Python<'py>,
    layout: &Layout<T>,
    unit: Unit,
    values: &Bound<'py, PyList>,
    to_bytes: fn(T) -> [u8; WIDTH],
) -> PyResult<Found<'py>> {
    // Holding the objects keeps their bytes, which never change: they are read without the lock.
    let held: Vec<Bound<'py, PyAny>> = values.iter().collect();
    let texts: Vec<&[u8]> =
        held.iter().map(|value| value.cast::<PyBytes>().map_or(&[][..], |bytes| bytes.as_bytes())).collect();
    let work = || catch_unwind(AssertUnwindSafe(|| decode(layout, unit, &texts)));
    let size: usize = texts.iter().map(|text| text.len()).sum();
    let found: Columns<T> = if size < UNLOCKED_BYTES { work() } else { py.detach(work) }
        .map_err(|_| PyRuntimeError::new_err("the native decoder has a mistake: it panicked"))?;
    let x = filled(py, &found.x, to_bytes)?;
    let times = filled(py, &found.times, i64::to_ne_bytes)?;
    Ok((x, times, PyByteArray::new(py, &found.marks), found.careful, found.timed))
}

fn filled<'py, T: Copy, const WIDTH: usize>(
    py: Python<'py>,
    numbers: &[T],
    to_bytes: fn(T) -> [u8; WIDTH],
) -> PyResult<Bound<'py, PyByteArray>> {
    PyByteArray::new_with(py, numbers.len() * WIDTH, |bytes| {
        for (place, number) in bytes.chunks_exact_mut(WIDTH).zip(numbers) {
            place.copy_from_slice(&to_bytes(*number));
        }
        Ok(())
    })
}

fn layout<'py, T>(columns: usize, constants: &Bound<'py, PyList>, fields: &Bound<'py, PyList>) -> PyResult<Layout<T>>
where
    T: Cell + FromPyObjectOwned<'py>,
{
    let mut known = Vec::new();
    for each in constants.iter() {
        known.push(each.extract::<(usize, T)>()?);
    }
    let mut wanted = Vec::new();
    for each in fields.iter() {
        let (path, actions): (Bound<'py, PyList>, Bound<'py, PyList>) = each.extract()?;
        let steps: Vec<Step> = path.iter().map(|each| step(&each)).collect::<PyResult<_>>()?;
        wanted.push((steps, read(&actions)?));
    }
    Layout::new(columns, &known, wanted).map_err(PyValueError::new_err)
}

fn step(given: &Bound<PyAny>) -> PyResult<Step> {
    match given.cast::<PyBytes>() {
        Ok(name) => Ok(Step::Name(name.as_bytes().into())),
        Err(_) => Ok(Step::Place(given.extract()?)),
    }
}

fn read<'py, T>(given: &Bound<'py, PyList>) -> PyResult<Read<T>>
where
    T: Cell + FromPyObjectOwned<'py>,
{
    let mut actions = Vec::new();
    for each in given.iter() {
        let each = each.cast_into::<PyTuple>()?;
        let kind: String = each.get_item(0)?.extract()?;
        match kind.as_str() {
            "numbers" => {
                let (_, at, nulls): (String, usize, Vec<Option<T>>) = each.extract()?;
                return Ok(Read::Numbers { at, nulls });
            }
            "time" => actions.push(Action::Time),
            "number" => {
                let (_, at, null): (String, usize, Option<T>) = each.extract()?;
                actions.push(Action::Number { at, null });
            }
            "flag" => {
                let (_, at, null, no, yes): (String, usize, Option<T>, T, T) = each.extract()?;
                actions.push(Action::Flag { at, null, no, yes });
            }
            "present" => {
                let (_, at, no, yes): (String, usize, T, T) = each.extract()?;
                actions.push(Action::Present { at, no, yes });
            }
            "category" => {
                type Category<'py, T> = (String, usize, Option<T>, Option<T>, Option<T>, Bound<'py, PyDict>, Option<T>);
                let (_, at, null, no, yes, table, other): Category<'py, T> = each.extract()?;
                let mut words = HashMap::new();
                for (word, number) in table.iter() {
                    let number = number.extract::<T>().map_err(Into::into)?;
                    words.insert(word.cast::<PyBytes>()?.as_bytes().into(), number);
                }
                actions.push(Action::Category { at, null, no, yes, words, other });
            }
            _ => return Err(PyValueError::new_err(format!("action {kind}"))),
        }
    }
    Ok(Read::Field(actions))
}

#[pymodule]
mod streamer_native {
    #[pymodule_export]
    use super::Decoder;
    #[pymodule_export]
    use crate::answers_python::answers;
    #[pymodule_export]
    use crate::pack_python::{Packer, sealed};
    #[pymodule_export]
    use crate::records_python::{crc32c, records};

    #[pymodule_export]
    const PROTOCOL: u32 = super::PROTOCOL;
}
