//! What Python sees: a decoder from a layout of JSON, or of flat Avro records, and its `decode(values)`.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyTuple};

use crate::avro::{Field, Flat, Kind};
use crate::layout::{Action, Cell, Layout, Read, Step};
use crate::rows::{Columns, decode};
use crate::time::Unit;

/// Of what both sides say to each other; Python goes without a wheel of another.
const PROTOCOL: u32 = 3;

/// Bytes from which the interpreter's lock is given back: for fewer, getting it again can cost more than all the work.
const UNLOCKED_BYTES: usize = 16_384;

enum Reader<T> {
    Json(Layout<T>),
    Avro(Flat<T>),
}

impl<T: Cell> Reader<T> {
    fn decode(&self, unit: Unit, values: &[&[u8]]) -> Columns<T> {
        match self {
            Self::Json(layout) => decode(layout, unit, values),
            Self::Avro(flat) => flat.decode(unit, values),
        }
    }
}

enum AnyReader {
    F32(Reader<f32>),
    F64(Reader<f64>),
    I32(Reader<i32>),
    I64(Reader<i64>),
}

/// Reads records of one layout. Immutable, so any thread may use it.
#[pyclass(frozen, module = "streamer_native")]
struct Decoder {
    reader: AnyReader,
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
        let reader = match dtype {
            "float32" => AnyReader::F32(layout(columns, constants, fields)?),
            "float64" => AnyReader::F64(layout(columns, constants, fields)?),
            "int32" => AnyReader::I32(layout(columns, constants, fields)?),
            "int64" => AnyReader::I64(layout(columns, constants, fields)?),
            _ => return Err(unknown("dtype", dtype)),
        };
        Ok(Decoder { reader, unit: Unit::named(unit).ok_or_else(|| unknown("unit", unit))? })
    }

    /// `fields`: (kinds of the branches, whether they are a union, actions). `frame`: with what every value begins.
    #[staticmethod]
    fn avro(
        dtype: &str,
        unit: &str,
        columns: usize,
        constants: &Bound<PyList>,
        fields: &Bound<PyList>,
        frame: &[u8],
    ) -> PyResult<Self> {
        let reader = match dtype {
            "float32" => AnyReader::F32(flat(columns, constants, fields, frame)?),
            "float64" => AnyReader::F64(flat(columns, constants, fields, frame)?),
            "int32" => AnyReader::I32(flat(columns, constants, fields, frame)?),
            "int64" => AnyReader::I64(flat(columns, constants, fields, frame)?),
            _ => return Err(unknown("dtype", dtype)),
        };
        Ok(Decoder { reader, unit: Unit::named(unit).ok_or_else(|| unknown("unit", unit))? })
    }

    /// (x, times, marks, how many rows are not sure, how many have a time): the first three in the machine's byte order.
    ///
    /// What is not bytes is not sure. RuntimeError: a mistake of this program.
    fn decode<'py>(&self, py: Python<'py>, values: &Bound<'py, PyList>) -> PyResult<Found<'py>> {
        match &self.reader {
            AnyReader::F32(reader) => columns(py, reader, self.unit, values, f32::to_ne_bytes),
            AnyReader::F64(reader) => columns(py, reader, self.unit, values, f64::to_ne_bytes),
            AnyReader::I32(reader) => columns(py, reader, self.unit, values, i32::to_ne_bytes),
            AnyReader::I64(reader) => columns(py, reader, self.unit, values, i64::to_ne_bytes),
        }
    }
}

fn unknown(what: &str, name: &str) -> PyErr {
    PyValueError::new_err(format!("{what} {name}"))
}

fn columns<'py, T: Cell, const WIDTH: usize>(
    py: Python<'py>,
    reader: &Reader<T>,
    unit: Unit,
    values: &Bound<'py, PyList>,
    to_bytes: fn(T) -> [u8; WIDTH],
) -> PyResult<Found<'py>> {
    // Holding the objects keeps their bytes, which never change: they are read without the lock.
    let held: Vec<Bound<'py, PyAny>> = values.iter().collect();
    let texts: Vec<&[u8]> =
        held.iter().map(|value| value.cast::<PyBytes>().map_or(&[][..], |bytes| bytes.as_bytes())).collect();
    let work = || catch_unwind(AssertUnwindSafe(|| reader.decode(unit, &texts)));
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

fn layout<'py, T>(columns: usize, constants: &Bound<'py, PyList>, fields: &Bound<'py, PyList>) -> PyResult<Reader<T>>
where
    T: Cell + FromPyObjectOwned<'py>,
{
    let mut wanted = Vec::new();
    for each in fields.iter() {
        let (path, actions): (Bound<'py, PyList>, Bound<'py, PyList>) = each.extract()?;
        let steps: Vec<Step> = path.iter().map(|each| step(&each)).collect::<PyResult<_>>()?;
        wanted.push((steps, read(&actions)?));
    }
    Layout::new(columns, &known(constants)?, wanted).map(Reader::Json).map_err(PyValueError::new_err)
}

fn flat<'py, T>(
    columns: usize,
    constants: &Bound<'py, PyList>,
    fields: &Bound<'py, PyList>,
    frame: &[u8],
) -> PyResult<Reader<T>>
where
    T: Cell + FromPyObjectOwned<'py>,
{
    let mut wanted = Vec::new();
    for each in fields.iter() {
        let (kinds, union, actions): (Bound<'py, PyList>, bool, Bound<'py, PyList>) = each.extract()?;
        let branches = kinds.iter().map(|each| kind(&each)).collect::<PyResult<_>>()?;
        let actions = actions.iter().map(|each| action(&each)).collect::<PyResult<_>>()?;
        wanted.push(Field { branches, union, actions });
    }
    Flat::new(columns, &known(constants)?, wanted, frame.into()).map(Reader::Avro).map_err(PyValueError::new_err)
}

fn kind(given: &Bound<PyAny>) -> PyResult<Kind> {
    if let Ok(size) = given.extract::<usize>() {
        return Ok(Kind::Fixed(size));
    }
    if let Ok(symbols) = given.cast::<PyList>() {
        let symbols = symbols.iter().map(|each| Ok(each.cast::<PyBytes>()?.as_bytes().into()));
        return Ok(Kind::Enum(symbols.collect::<PyResult<_>>()?));
    }
    let name: String = given.extract()?;
    Ok(match name.as_str() {
        "null" => Kind::Null,
        "boolean" => Kind::Boolean,
        "int" | "long" => Kind::Long,
        "float" => Kind::Float,
        "double" => Kind::Double,
        "string" => Kind::Text,
        "bytes" => Kind::Sized,
        _ => return Err(unknown("kind", &name)),
    })
}

fn known<'py, T: FromPyObjectOwned<'py>>(constants: &Bound<'py, PyList>) -> PyResult<Vec<(usize, T)>> {
    let mut known = Vec::new();
    for each in constants.iter() {
        known.push(each.extract()?);
    }
    Ok(known)
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
    let kind = given.get_item(0).and_then(|first| first.get_item(0)?.extract::<String>());
    if kind.is_ok_and(|kind| kind == "numbers") {
        let (_, at, nulls): (String, usize, Vec<Option<T>>) = given.get_item(0)?.extract()?;
        return Ok(Read::Numbers { at, nulls });
    }
    Ok(Read::Field(given.iter().map(|each| action(&each)).collect::<PyResult<_>>()?))
}

fn action<'py, T>(given: &Bound<'py, PyAny>) -> PyResult<Action<T>>
where
    T: Cell + FromPyObjectOwned<'py>,
{
    let given = given.cast::<PyTuple>()?;
    let kind: String = given.get_item(0)?.extract()?;
    Ok(match kind.as_str() {
        "time" => Action::Time,
        "number" => {
            let (_, at, null): (String, usize, Option<T>) = given.extract()?;
            Action::Number { at, null }
        }
        "flag" => {
            let (_, at, null, no, yes): (String, usize, Option<T>, T, T) = given.extract()?;
            Action::Flag { at, null, no, yes }
        }
        "present" => {
            let (_, at, no, yes): (String, usize, T, T) = given.extract()?;
            Action::Present { at, no, yes }
        }
        "category" => {
            type Category<'py, T> = (String, usize, Option<T>, Option<T>, Option<T>, Bound<'py, PyDict>, Option<T>);
            let (_, at, null, no, yes, table, other): Category<'py, T> = given.extract()?;
            let mut words = HashMap::new();
            for (word, number) in table.iter() {
                let number = number.extract::<T>().map_err(Into::into)?;
                words.insert(word.cast::<PyBytes>()?.as_bytes().into(), number);
            }
            Action::Category { at, null, no, yes, words, other }
        }
        _ => return Err(unknown("action", &kind)),
    })
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
