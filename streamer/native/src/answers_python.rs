//! What Python sees of answers: `answers(pieces, keys, times, outputs)`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::answers::{Output, write_row};

/// (float32 numbers in the machine's byte order, how many per row, labels or nothing)
type Given<'py> = (Bound<'py, PyBytes>, usize, Vec<Bound<'py, PyBytes>>);

/// The values of rows: see `Encoder.steps`. `times`: int64 in the machine's byte order. None: not sure.
#[pyfunction]
pub fn answers<'py>(
    py: Python<'py>,
    pieces: Vec<Bound<'py, PyBytes>>,
    keys: &Bound<'py, PyList>,
    times: &Bound<'py, PyBytes>,
    outputs: Vec<Given<'py>>,
) -> PyResult<Option<Bound<'py, PyList>>> {
    let times = cells(times.as_bytes(), i64::from_ne_bytes)?;
    let numbers = outputs
        .iter()
        .map(|(numbers, ..)| cells(numbers.as_bytes(), f32::from_ne_bytes))
        .collect::<PyResult<Vec<Vec<f32>>>>()?;
    let outputs: Vec<Output> = numbers
        .iter()
        .zip(&outputs)
        .map(|(numbers, (_, width, labels))| Output {
            numbers,
            width: *width,
            labels: labels.iter().map(|label| label.as_bytes()).collect(),
        })
        .collect();
    let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
    if keys.len() != times.len() {
        return Err(PyValueError::new_err("as many keys as times"));
    }
    let found = PyList::empty(py);
    let mut out = Vec::new();
    for (row, key) in keys.iter().enumerate() {
        let Ok(key) = key.cast::<PyBytes>() else { return Ok(None) };
        out.clear();
        let work = || write_row(&mut out, &pieces, key.as_bytes(), times[row], &outputs, row);
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Some(())) => found.append(PyBytes::new(py, &out))?,
            Ok(None) => return Ok(None),
            Err(_) => return Err(PyRuntimeError::new_err("the native encoder has a mistake: it panicked")),
        }
    }
    Ok(Some(found))
}

fn cells<T, const WIDTH: usize>(bytes: &[u8], from: fn([u8; WIDTH]) -> T) -> PyResult<Vec<T>> {
    let cells = bytes.chunks_exact(WIDTH);
    if !cells.remainder().is_empty() {
        return Err(PyValueError::new_err("a part of a number"));
    }
    Ok(cells.map(|cell| from(cell.try_into().unwrap_or([0; WIDTH]))).collect()) // each is of that width
}
