//! What Python sees of record batches: `records(data, begin, end)` and `crc32c(data, begin, end)`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::records::read;

type Columns<'py> =
    (Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyDict>);

/// (offsets, timestamps, keys, values, row -> headers) of the batch that `data` holds between `begin` and `end`. None: not
/// sure. RuntimeError: a mistake of this program.
#[pyfunction]
pub fn records<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyBytes>,
    begin: usize,
    end: usize,
) -> PyResult<Option<Columns<'py>>> {
    let raw = part(data, begin, end)?;
    let found = catch_unwind(AssertUnwindSafe(|| read(raw)))
        .map_err(|_| PyRuntimeError::new_err("the native reader of batches has a mistake: it panicked"))?;
    let Some(found) = found else { return Ok(None) };
    let bytes = |column: Vec<Option<&[u8]>>| {
        PyList::new(py, column.into_iter().map(|part| part.map(|part| PyBytes::new(py, part))))
    };
    let headers = PyDict::new(py);
    for (row, pairs) in found.headers {
        let pairs = pairs
            .into_iter()
            .map(|(name, value)| (PyString::new(py, &name), value.map(|value| PyBytes::new(py, value))))
            .map(|pair| pair.into_pyobject(py))
            .collect::<PyResult<Vec<Bound<PyTuple>>>>()?;
        headers.set_item(row, PyTuple::new(py, pairs)?)?;
    }
    let offsets = PyList::new(py, found.offsets)?;
    let timestamps = PyList::new(py, found.timestamps)?;
    Ok(Some((offsets, timestamps, bytes(found.keys)?, bytes(found.values)?, headers)))
}

/// The checksum of record batches, over `data` between `begin` and `end`.
#[pyfunction]
pub fn crc32c(data: &Bound<PyBytes>, begin: usize, end: usize) -> PyResult<u32> {
    Ok(::crc32c::crc32c(part(data, begin, end)?))
}

fn part<'a>(data: &'a Bound<PyBytes>, begin: usize, end: usize) -> PyResult<&'a [u8]> {
    data.as_bytes().get(begin..end).ok_or_else(|| PyValueError::new_err("no such part"))
}
