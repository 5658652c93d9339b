//! Operations that sum, or otherwise combine, many elements into one.

use tilewright_ir::{Binary, DType, DotAxes, Reduction};

use crate::Precision;
use crate::array::{Array, Data};
use crate::elements::{bounds, float_binary, integer_binary, wrapping};
use crate::movement::{Offsets, packed_strides};
use crate::rounding::rounding;

/// Strides into a result without `axes`, for a walk over `shape`.
fn strides_without(shape: &[usize], axes: &[usize]) -> Vec<isize> {
    let kept: Vec<usize> = (0..shape.len()).filter(|axis| !axes.contains(axis)).collect();
    let extents: Vec<usize> = kept.iter().map(|&axis| shape[axis]).collect();
    let mut strides = vec![0; shape.len()];
    for (&axis, stride) in kept.iter().zip(packed_strides(&extents)) {
        strides[axis] = stride;
    }
    strides
}

/// The combining function and what a reduction of nothing is, for floats and for integers.
fn parts(kind: Reduction, dtype: DType) -> (Binary, f64, i64) {
    match kind {
        Reduction::Sum => (Binary::Add, 0.0, 0),
        Reduction::Prod => (Binary::Mul, 1.0, 1),
        Reduction::Max if dtype.is_float() => (Binary::Max, f64::NEG_INFINITY, 0),
        Reduction::Max => (Binary::Max, 0.0, bounds(dtype).0),
        Reduction::Min if dtype.is_float() => (Binary::Min, f64::INFINITY, 0),
        Reduction::Min => (Binary::Min, 0.0, bounds(dtype).1),
    }
}

pub(crate) fn reduce(x: &Array, kind: Reduction, axes: &[usize], result: &mut Array, precision: Precision) {
    let dtype = x.ty.dtype;
    let offsets = Offsets::new(&x.ty.shape, strides_without(&x.ty.shape, axes), 0);
    let count = result.ty.elements();
    let (binary, float, integer) = parts(kind, dtype);
    match &x.data {
        Data::Float(x) => {
            let combine = float_binary(binary);
            let (accumulate, round) = (rounding(dtype.accumulator(), precision), rounding(dtype, precision));
            let mut sums = vec![float; count];
            for (offset, &x) in offsets.zip(x) {
                sums[offset] = accumulate(combine(sums[offset], x));
            }
            result.fill(sums.into_iter().map(round));
        }
        Data::Integer(x) => {
            let (combine, wrap) = (integer_binary(binary), wrapping(dtype));
            let mut sums = vec![integer; count];
            for (offset, &x) in offsets.zip(x) {
                sums[offset] = wrap(combine(sums[offset], x));
            }
            result.fill_integers(sums);
        }
    }
}

pub(crate) fn argmax(x: &Array, axis: usize, result: &mut Array) {
    match &x.data {
        Data::Float(elements) => first_greatest(elements, &x.ty.shape, axis, result, |new, best| {
            new > best || new.is_nan() && !best.is_nan()
        }),
        Data::Integer(elements) => {
            first_greatest(elements, &x.ty.shape, axis, result, |new, best| new > best)
        }
    }
}

fn first_greatest<T: Copy>(
    elements: &[T],
    shape: &[usize],
    axis: usize,
    result: &mut Array,
    greater: impl Fn(T, T) -> bool,
) {
    let stride = packed_strides(shape)[axis] as usize;
    let mut kept = shape.to_vec();
    let extent = kept.remove(axis);
    let mut strides = packed_strides(shape);
    strides.remove(axis);
    result.fill_integers(Offsets::new(&kept, strides, 0).map(|first| {
        let element = |position: usize| elements[first + position * stride];
        (1..extent).fold(0, |best, new| if greater(element(new), element(best)) { new } else { best }) as i64
    }));
}

pub(crate) fn dot(x: &Array, y: &Array, axes: &DotAxes, result: &mut Array, precision: Precision) {
    let dtype = result.ty.dtype;
    let shape = result.ty.shape.clone();
    let pick =
        |strides: &[isize], axes: &[usize]| -> Vec<isize> { axes.iter().map(|&a| strides[a]).collect() };
    let (left, right) = (packed_strides(&x.ty.shape), packed_strides(&y.ty.shape));
    let (left_free, right_free) = (axes.left_free(x.ty.rank()), axes.right_free(y.ty.rank()));
    let left_outer =
        [pick(&left, &axes.left_batch), pick(&left, &left_free), vec![0; right_free.len()]].concat();
    let right_outer =
        [pick(&right, &axes.right_batch), vec![0; left_free.len()], pick(&right, &right_free)].concat();
    let contracted: Vec<usize> = axes.left_contract.iter().map(|&axis| x.ty.shape[axis]).collect();
    let inner: Vec<(usize, usize)> = Offsets::new(&contracted, pick(&left, &axes.left_contract), 0)
        .zip(Offsets::new(&contracted, pick(&right, &axes.right_contract), 0))
        .collect();
    let outer = Offsets::new(&shape, left_outer, 0).zip(Offsets::new(&shape, right_outer, 0));
    match (&x.data, &y.data) {
        (Data::Float(x), Data::Float(y)) => {
            let (accumulate, round) = (rounding(dtype.accumulator(), precision), rounding(dtype, precision));
            result.fill(outer.map(|(i, j)| {
                let products = inner.iter().map(|&(di, dj)| accumulate(x[i + di] * y[j + dj]));
                round(products.fold(0.0, |sum, product| accumulate(sum + product)))
            }));
        }
        (x, y) => {
            let (x, y, wrap) = (x.integers(), y.integers(), wrapping(dtype));
            result.fill_integers(outer.map(|(i, j)| {
                let products = inner.iter().map(|&(di, dj)| x[i + di].wrapping_mul(y[j + dj]));
                wrap(products.fold(0, i64::wrapping_add))
            }));
        }
    }
}
