//! What Python sees of packing: `Packer(...)` and `sealed(batch, producer, epoch, sequence)`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::pack::{Batch, Headers, seal};
use crate::records::HEADER;

fn mistake<T>(_: T) -> PyErr {
    PyRuntimeError::new_err("the native packer has a mistake: it panicked")
}

/// Packs answers of one partition into batches of at most `size` bytes.
#[pyclass(module = "streamer_native")]
pub struct Packer {
    batch: Batch,
}

#[pymethods]
impl Packer {
    #[new]
    fn new(size: usize) -> Self {
        Packer { batch: Batch::new(size) }
    }

    /// Adds rows from `first` on as far as there is room, and returns the first that is left. `source`: name of the header
    /// that names the source of a row, `prefix` and its offset; `shared`: the headers of all rows.
    #[allow(clippy::too_many_arguments)]
    fn add(
        &mut self,
        times: &Bound<PyList>,
        keys: &Bound<PyList>,
        values: &Bound<PyList>,
        offsets: &Bound<PyList>,
        source: &str,
        prefix: &[u8],
        shared: Vec<(String, Option<Bound<PyBytes>>)>,
        first: usize,
    ) -> PyResult<usize> {
        let shared: Vec<(&[u8], Option<&[u8]>)> = shared
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_ref().map(|value| value.as_bytes())))
            .collect();
        let headers = Headers::new(source.as_bytes(), prefix, &shared);
        if [keys.len(), values.len(), offsets.len()] != [times.len(); 3] {
            return Err(PyValueError::new_err("columns of different lengths"));
        }
        for row in first..times.len() {
            let (key, value) = (keys.get_item(row)?, values.get_item(row)?);
            let (key, value) = (key.cast::<PyBytes>()?, value.cast::<PyBytes>()?);
            let (time, offset): (i64, i64) = (times.get_item(row)?.extract()?, offsets.get_item(row)?.extract()?);
            let work = || self.batch.add(time, key.as_bytes(), value.as_bytes(), &headers, offset);
            if !catch_unwind(AssertUnwindSafe(work)).map_err(mistake)? {
                return Ok(row);
            }
        }
        Ok(times.len())
    }

    /// How many rows are in the open batch.
    #[getter]
    fn count(&self) -> i32 {
        self.batch.count()
    }

    /// Bytes of the open batch.
    #[getter]
    fn size(&self) -> usize {
        self.batch.len()
    }

    /// The open batch, nobody's yet; the next one is open.
    fn take<'py>(&mut self, py: Python<'py>, transactional: bool) -> PyResult<Bound<'py, PyBytes>> {
        let batch = catch_unwind(AssertUnwindSafe(|| self.batch.take(transactional))).map_err(mistake)?;
        Ok(PyBytes::new(py, &batch))
    }
}

/// A batch of `Packer` with who writes it and its checksum.
#[pyfunction]
pub fn sealed<'py>(
    py: Python<'py>,
    batch: &Bound<'py, PyBytes>,
    producer: i64,
    epoch: i16,
    sequence: i32,
) -> PyResult<Bound<'py, PyBytes>> {
    let batch = batch.as_bytes();
    if batch.len() < HEADER {
        return Err(PyValueError::new_err("no batch"));
    }
    PyBytes::new_with(py, batch.len(), |out| {
        out.copy_from_slice(batch);
        seal(out, producer, epoch, sequence);
        Ok(())
    })
}
