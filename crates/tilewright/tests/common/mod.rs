//! Arrays that look random, and comparison with the reference interpreter.

#![allow(dead_code)]

use tilewright::pipeline::Program;
use tilewright::tree::{MapLeaves, Tree, leaves};
use tilewright::{Array, Compiled, DType, Tensor, Type};
use tilewright_interp::{Precision, run};

/// `f64` elements in −2..2.
pub fn random(shape: &[usize], seed: u64) -> Array {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    Array::from_fn(shape, |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 4.0 - 2.0
    })
    .unwrap()
}

pub fn random_f32(shape: &[usize], seed: u64) -> Array {
    let elements: Vec<f32> = random(shape, seed).to_vec::<f64>().unwrap().iter().map(|&x| x as f32).collect();
    Array::new(shape, &elements).unwrap()
}

/// What the program gives for arrays, by the reference interpreter.
pub fn reference(program: &Program, inputs: &[Array]) -> Vec<Vec<f64>> {
    let convert =
        |array: &Array| tilewright_interp::Array::from_bytes(array.ty().clone(), &array.to_bytes().unwrap());
    let inputs: Vec<_> = inputs.iter().map(convert).collect();
    let outputs = run(&program.traced, &inputs, Precision::Exact).unwrap_or_else(|error| panic!("{error}"));
    outputs.iter().map(|array| array.to_f64s()).collect()
}

/// Runs a function compiled and interpreted, and checks that floating outputs agree within `tolerance` times the
/// root mean square of the reference.
#[track_caller]
pub fn agrees<T, O, F, A>(f: &Compiled<T, O, F>, inputs: &A, tolerance: f64) -> Vec<Vec<f64>>
where
    O: MapLeaves<Tensor, Array>,
    F: Fn(T) -> O,
    A: Tree<Array>,
    for<'a> &'a A: MapLeaves<Array, Tensor, Output = T>,
{
    let outputs = f.call(inputs).unwrap_or_else(|error| panic!("{error}"));
    let arrays: Vec<Array> = leaves(inputs).into_iter().map(|(_, array)| array).collect();
    let expected = reference(&f.program(inputs).unwrap(), &arrays);
    for (i, ((_, found), expected)) in leaves::<Array, _>(&outputs).iter().zip(&expected).enumerate() {
        let found = to_f64s(found);
        assert_eq!(found.len(), expected.len());
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        let scale = norm(&mut expected.iter().copied());
        assert!(error <= tolerance * (scale + 1e-30), "output {i}: error {error:e}, norm {scale:e}");
    }
    expected
}

pub fn to_f64s(array: &Array) -> Vec<f64> {
    match array.dtype() {
        DType::F64 => array.to_vec::<f64>().unwrap(),
        DType::F32 => array.to_vec::<f32>().unwrap().into_iter().map(f64::from).collect(),
        DType::I64 => array.to_vec::<i64>().unwrap().into_iter().map(|x| x as f64).collect(),
        other => panic!("{other} is not used here"),
    }
}

pub fn ty(dtype: DType, shape: &[usize]) -> Type {
    Type::new(dtype, shape)
}
