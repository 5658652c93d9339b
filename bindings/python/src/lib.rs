//! The native half of the Python package: runs programs, given as text, on memory that Python owns.
//!
//! Python traces a user's function to the compiler's text form (`tilewright/torch/_trace.py`) and hands it over with
//! the tensors' addresses, shapes and strides. Nothing is copied: inputs are read where they are, results are written
//! to memory that Python allocated. The interpreter lock is released while kernels run.

mod memory;
mod program;

use std::path::PathBuf;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;
use tilewright_ir::DType;
use tilewright_pictures::{Matrix, heat_maps};

use crate::memory::{Form, Tensor};

/// Runs `program` on tensors; results are allocated by `empty` (PyTorch's function).
#[pyfunction]
fn call_torch<'py>(
    py: Python<'py>,
    program: &str,
    inputs: Vec<Bound<'py, PyAny>>,
    empty: Bound<'py, PyAny>,
    threads: usize,
) -> PyResult<Bound<'py, PyList>> {
    let tensors: Vec<Tensor> = inputs.iter().map(|input| Tensor::of_torch(input)).collect::<PyResult<_>>()?;
    let compiled = program::compiled(program, &tensors).map_err(|error| raise(py, error))?;
    let made = compiled.results().iter().map(|ty| memory::empty_torch(py, &empty, ty));
    let (outputs, targets): (Vec<Bound<'py, PyAny>>, Vec<Tensor>) =
        made.collect::<PyResult<Vec<_>>>()?.into_iter().unzip();
    py.detach(|| {
        // SAFETY: `inputs` and `outputs` keep the tensors' memory alive until this returns; the outputs were
        // allocated just now, packed, and nothing else refers to them.
        unsafe { compiled.run(&tensors, &targets, threads) }
    })
    .map_err(|error| raise(py, error))?;
    PyList::new(py, outputs)
}

/// Writes the kind of each block that a mask leaves to `result` (`u8`, packed `[batch, heads, query blocks, key blocks]`):
/// 0 empty, 1 partial, 2 full.
#[pyfunction]
fn block_kinds(
    py: Python<'_>,
    program: &str,
    captures: Vec<Bound<'_, PyAny>>,
    result: Bound<'_, PyAny>,
    lengths: (usize, usize),
    block: (usize, usize),
) -> PyResult<()> {
    let tensors: Vec<Tensor> =
        captures.iter().map(|capture| Tensor::of_torch(capture)).collect::<PyResult<_>>()?;
    let target = Tensor::of_torch(&result)?;
    let Form { dtype, shape, .. } = &target.form;
    if *dtype != DType::U8 || !target.form.is_packed() || shape.len() != 4 {
        return Err(raise(py, tilewright_ir::Error::argument("result", "packed bytes with 4 axes expected")));
    }
    let kinds = py.detach(|| {
        // SAFETY: `captures` keeps the tensors' memory alive until this returns.
        unsafe { program::block_kinds(program, &tensors, (shape[0], shape[1]), lengths, block) }
    });
    let kinds = kinds.map_err(|error| raise(py, error))?;
    // SAFETY: `result` is packed bytes, kept alive here, and nobody else writes to it meanwhile.
    unsafe { target.bytes_mut() }.copy_from_slice(&kinds);
    Ok(())
}

/// What a program for such tensors consists of, for people. Compiles it where it is new, and runs nothing.
#[pyfunction]
fn explain_torch(py: Python<'_>, program: &str, inputs: Vec<Bound<'_, PyAny>>) -> PyResult<String> {
    let tensors: Vec<Tensor> = inputs.iter().map(|input| Tensor::of_torch(input)).collect::<PyResult<_>>()?;
    let compiled = program::compiled(program, &tensors).map_err(|error| raise(py, error))?;
    Ok(compiled.explain())
}

/// Draws a matrix as colours to a PNG file.
#[pyfunction]
fn heat_map(path: PathBuf, title: &str, x: &str, y: &str, rows: Vec<Vec<f64>>) -> PyResult<()> {
    let columns = rows.first().map_or(0, Vec::len);
    if rows.iter().any(|row| row.len() != columns) {
        return Err(PyValueError::new_err("rows: one length expected"));
    }
    let matrix = Matrix { name: String::new(), rows: rows.len(), columns, values: rows.concat() };
    heat_maps(&path, title, x, y, 1, &[matrix]).map_err(|error| PyOSError::new_err(error.to_string()))
}

/// The Python exception for an error of the compiler.
fn raise(py: Python<'_>, error: tilewright_ir::Error) -> PyErr {
    let exception = py
        .import("tilewright._errors")
        .and_then(|module| module.getattr("error_from"))
        .and_then(|class| class.call1((error.code(), error.to_string())));
    match exception {
        Ok(exception) => PyErr::from_value(exception),
        Err(failure) => failure,
    }
}

/// The native module.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(call_torch, module)?)?;
    module.add_function(wrap_pyfunction!(explain_torch, module)?)?;
    module.add_function(wrap_pyfunction!(block_kinds, module)?)?;
    module.add_function(wrap_pyfunction!(heat_map, module)?)?;
    Ok(())
}
