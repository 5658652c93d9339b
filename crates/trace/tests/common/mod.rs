//! Traces a function and runs it on the reference interpreter.

#![allow(dead_code)]

use tilewright_interp::{Array, Precision, run};
use tilewright_ir::{DType, Error, Graph, Type, verify};
use tilewright_trace::{Tensor, trace};

/// An input: its name, type and elements.
#[derive(Clone)]
pub struct Input(pub &'static str, pub Type, pub Vec<f64>);

/// A float input with elements that look random.
pub fn random(name: &'static str, shape: &[usize], seed: u64) -> Input {
    let ty = Type::new(DType::F64, shape);
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 4.0 - 2.0
    };
    let elements = (0..ty.elements()).map(|_| next()).collect();
    Input(name, ty, elements)
}

pub fn integers(name: &'static str, shape: &[usize], elements: &[i64]) -> Input {
    Input(name, Type::new(DType::I64, shape), elements.iter().map(|&x| x as f64).collect())
}

fn traced(inputs: &[Input], f: impl FnOnce(&[Tensor]) -> Vec<Tensor>) -> Result<Graph, Error> {
    let parameters: Vec<(String, Type)> =
        inputs.iter().map(|Input(name, ty, _)| (name.to_string(), ty.clone())).collect();
    let graph = trace(&parameters, f, |outputs| outputs.clone())?.graph;
    verify(&graph)?;
    Ok(graph)
}

pub fn evaluate_all(inputs: &[Input], f: impl FnOnce(&[Tensor]) -> Vec<Tensor>) -> Vec<(Type, Vec<f64>)> {
    let graph = traced(inputs, f).unwrap_or_else(|error| panic!("{error}"));
    let arrays: Vec<Array> = inputs
        .iter()
        .map(|Input(_, ty, elements)| {
            if ty.dtype.is_float() {
                Array::from_f64s(ty.clone(), elements)
            } else {
                let elements: Vec<i64> = elements.iter().map(|&x| x as i64).collect();
                Array::from_i64s(ty.clone(), &elements)
            }
        })
        .collect();
    let outputs = run(&graph, &arrays, Precision::Exact).unwrap_or_else(|error| panic!("{error}"));
    let elements = |array: &Array| {
        if array.ty().dtype.is_float() {
            array.to_f64s()
        } else {
            array.to_i64s().into_iter().map(|x| x as f64).collect()
        }
    };
    outputs.iter().map(|array| (array.ty().clone(), elements(array))).collect()
}

/// The type and elements of the only output.
pub fn evaluate(inputs: &[Input], f: impl FnOnce(&[Tensor]) -> Tensor) -> (Type, Vec<f64>) {
    evaluate_all(inputs, |tensors| vec![f(tensors)]).remove(0)
}

/// The error of a function that does not trace.
pub fn error(inputs: &[Input], f: impl FnOnce(&[Tensor]) -> Tensor) -> Error {
    traced(inputs, |tensors| vec![f(tensors)]).expect_err("the function is wrong")
}

#[track_caller]
pub fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let close = found == expected || (found - expected).abs() <= 1e-12 * (1.0 + expected.abs());
        assert!(close || (found.is_nan() && expected.is_nan()), "element {i}: {found}, expected {expected}");
    }
}

/// Calls `f` with each index of a shape, in row-major order.
pub fn each(shape: &[usize], mut f: impl FnMut(&[usize])) {
    let mut index = vec![0; shape.len()];
    for _ in 0..shape.iter().product() {
        f(&index);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// The elements of an array of `shape` that `f` gives.
pub fn build(shape: &[usize], mut f: impl FnMut(&[usize]) -> f64) -> Vec<f64> {
    let mut elements = Vec::new();
    each(shape, |index| elements.push(f(index)));
    elements
}

/// Row-major place of an index.
pub fn place(shape: &[usize], index: &[usize]) -> usize {
    shape.iter().zip(index).fold(0, |place, (extent, i)| place * extent + i)
}
