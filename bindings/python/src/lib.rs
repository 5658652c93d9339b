//! The native half of the Python package: runs programs, given as text, on memory that Python owns.
//!
//! Python traces a user's function to the compiler's text form (`tilewright/_trace`) and hands it over with arrays of any
//! library, whose addresses, shapes and strides are asked for by DLPack. Nothing is copied: inputs are read where they
//! are, and programs run there, without the interpreter lock: on the CPU, or on a stream of the GPU.

mod array;
mod dlpack;
mod memory;
mod program;

use std::path::PathBuf;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use tilewright::Device;
use tilewright::pipeline::Stream;
use tilewright_ir::{DType, Error, Type};
use tilewright_pictures::{Matrix, heat_maps};

use crate::dlpack::Order;
use crate::memory::{allocate, borrow};

/// Runs `program` on arrays; results are allocated by `empty` (PyTorch's function), or are arrays of our own.
///
/// On a GPU, with PyTorch, the program is asked of `stream`, by its handle, and nothing is waited for. A read out of range
/// is then raised by the next call of the same program, or by `synchronize`. Without PyTorch, arrays are lent to the
/// GPU's own stream, by the protocol of DLPack, and the run is waited for.
#[pyfunction]
#[pyo3(signature = (program, inputs, empty, threads, stream = 0))]
fn call<'py>(
    py: Python<'py>,
    program: &str,
    inputs: Vec<Bound<'py, PyAny>>,
    empty: Option<Bound<'py, PyAny>>,
    threads: usize,
    stream: usize,
) -> PyResult<Bound<'py, PyList>> {
    let order = if empty.is_some() { Order::Callers } else { Order::Librarys };
    let inputs = borrow(inputs, order)?;
    let device = inputs.device().map_err(|error| raise(py, error))?;
    let compiled = program::compiled(program, &inputs.tensors).map_err(|error| raise(py, error))?;
    let tensors = &inputs.tensors;
    if let Device::Cuda(number) = device {
        let executable = py.detach(|| compiled.on_gpu(number)).map_err(|error| raise(py, error))?;
        let Some(empty) = empty else {
            let (outputs, targets) = allocate(py, None, compiled.results(), device)?;
            // SAFETY: `inputs` and `outputs` keep the memory alive until this returns, after the run; the outputs were
            // allocated just now, and nothing else refers to them.
            py.detach(|| unsafe { program::run_lent(&executable, tensors, &targets) })
                .map_err(|error| raise(py, error))?;
            return PyList::new(py, outputs);
        };
        let scratch = Type::new(DType::U8, [executable.scratch_bytes()]);
        let (_scratch, scratch) = allocate(py, Some(&empty), &[scratch], device)?;
        let (outputs, targets) = allocate(py, Some(&empty), compiled.results(), device)?;
        let (scratch, stream) = (scratch[0].start(), Stream::from_handle(stream));
        // SAFETY: PyTorch gives memory out, and takes it back, in the order of the stream: what was allocated or is lent
        // stays until the run is over, and nobody else uses the outputs or the scratch memory before. Its allocations
        // begin at multiples of 512.
        unsafe { program::enqueue(&executable, tensors, &targets, scratch, stream) }
            .map_err(|error| raise(py, error))?;
        return PyList::new(py, outputs);
    }
    let (outputs, targets) = allocate(py, empty.as_ref(), compiled.results(), device)?;
    py.detach(|| {
        // SAFETY: `inputs` and `outputs` keep the memory alive until this returns; the outputs were allocated just
        // now, packed, and nothing else refers to them.
        unsafe { compiled.run(tensors, &targets, threads) }
    })
    .map_err(|error| raise(py, error))?;
    PyList::new(py, outputs)
}

/// Waits for what was asked of a GPU's own stream, and raises the reads out of range that programs met there.
#[pyfunction]
fn synchronize(py: Python<'_>, number: usize) -> PyResult<()> {
    py.detach(|| Device::Cuda(number).synchronize()).map_err(|error| raise(py, error))
}

/// The kind of each block that a mask leaves, row-major in `[batch, heads, query blocks, key blocks]`: 0 empty,
/// 1 partial, 2 full.
#[pyfunction]
fn block_kinds<'py>(
    py: Python<'py>,
    program: &str,
    captures: Vec<Bound<'py, PyAny>>,
    slices: (usize, usize),
    lengths: (usize, usize),
    block: (usize, usize),
) -> PyResult<Bound<'py, PyBytes>> {
    let captures = borrow(captures, Order::Callers)?;
    captures.check_on_host().map_err(|error| raise(py, error))?;
    let tensors = &captures.tensors;
    let kinds = py.detach(|| {
        // SAFETY: `captures` keeps the memory alive until this returns.
        unsafe { program::block_kinds(program, tensors, slices, lengths, block) }
    });
    Ok(PyBytes::new(py, &kinds.map_err(|error| raise(py, error))?))
}

/// What a program for such arrays consists of, for people. Compiles it where it is new, and runs nothing.
#[pyfunction]
fn explain(py: Python<'_>, program: &str, inputs: Vec<Bound<'_, PyAny>>) -> PyResult<String> {
    let inputs = borrow(inputs, Order::Callers)?;
    let compiled = program::compiled(program, &inputs.tensors).map_err(|error| raise(py, error))?;
    Ok(compiled.explain())
}

/// Draws a matrix, of floats or whole numbers, as colours to a PNG file.
#[pyfunction]
fn heat_map(
    py: Python<'_>,
    path: PathBuf,
    title: &str,
    x: &str,
    y: &str,
    matrix: Bound<'_, PyAny>,
) -> PyResult<()> {
    let borrowed = borrow(vec![matrix], Order::Callers)?;
    borrowed.check_on_host().map_err(|error| raise(py, error))?;
    let tensor = &borrowed.tensors[0];
    let &[rows, columns] = tensor.form.shape.as_slice() else {
        let rank = tensor.form.shape.len();
        return Err(raise(py, Error::argument("matrix", format!("2 axes expected, {rank} found"))));
    };
    // SAFETY: `borrowed` keeps the memory alive.
    let values = unsafe { tensor.numbers() };
    let matrix = Matrix { name: String::new(), rows, columns, values };
    heat_maps(&path, title, x, y, 1, &[matrix]).map_err(|error| PyOSError::new_err(error.to_string()))
}

/// The Python exception for an error of the compiler.
fn raise(py: Python<'_>, error: Error) -> PyErr {
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
    module.add_class::<array::Array>()?;
    module.add_function(wrap_pyfunction!(call, module)?)?;
    module.add_function(wrap_pyfunction!(synchronize, module)?)?;
    module.add_function(wrap_pyfunction!(explain, module)?)?;
    module.add_function(wrap_pyfunction!(block_kinds, module)?)?;
    module.add_function(wrap_pyfunction!(heat_map, module)?)?;
    Ok(())
}
