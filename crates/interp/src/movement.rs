//! Operations that move elements: each reads or writes an array through strides.

use crate::array::{Array, Data};
use crate::evaluator::Operands;

/// The strides, in elements, of a packed array in row-major order.
pub(crate) fn packed_strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis] as isize;
    }
    strides
}

/// `start + Σ index · stride` for each index of `shape` in row-major order. The stride of an axis of extent 1
/// may be anything, also so large that it wraps.
pub(crate) struct Offsets {
    shape: Vec<usize>,
    strides: Vec<isize>,
    index: Vec<usize>,
    offset: isize,
    remaining: usize,
}

impl Offsets {
    pub(crate) fn new(shape: &[usize], strides: Vec<isize>, start: isize) -> Offsets {
        let remaining = shape.iter().product();
        Offsets { shape: shape.to_vec(), strides, index: vec![0; shape.len()], offset: start, remaining }
    }
}

impl Iterator for Offsets {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.remaining = self.remaining.checked_sub(1)?;
        let offset = self.offset;
        for axis in (0..self.shape.len()).rev() {
            self.index[axis] += 1;
            self.offset = self.offset.wrapping_add(self.strides[axis]);
            if self.index[axis] < self.shape[axis] {
                break;
            }
            let walked = self.strides[axis].wrapping_mul(self.shape[axis] as isize);
            self.offset = self.offset.wrapping_sub(walked);
            self.index[axis] = 0;
        }
        Some(offset as usize)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining, Some(self.remaining))
    }
}

/// The position along `axis` of each element of `shape`.
pub(crate) fn positions(shape: &[usize], axis: usize) -> Offsets {
    let mut strides = vec![0; shape.len()];
    strides[axis] = 1;
    Offsets::new(shape, strides, 0)
}

/// Fills `result` with the elements of `x` at the offsets.
fn read(x: &Array, offsets: Offsets, result: &mut Array) {
    match &x.data {
        Data::Float(x) => result.fill(offsets.map(|offset| x[offset])),
        Data::Integer(x) => result.fill_integers(offsets.map(|offset| x[offset])),
    }
}

/// Puts the elements of `x` at the offsets of `result`.
fn write(x: &Array, offsets: Offsets, result: &mut Array) {
    match (&x.data, &mut result.data) {
        (Data::Float(x), Data::Float(result)) => offsets.zip(x).for_each(|(at, &x)| result[at] = x),
        (Data::Integer(x), Data::Integer(result)) => offsets.zip(x).for_each(|(at, &x)| result[at] = x),
        (Data::Float(_), Data::Integer(_)) | (Data::Integer(_), Data::Float(_)) => {
            unreachable!("the typing rules ask for one type")
        }
    }
}

pub(crate) fn copy(x: &Array, result: &mut Array) {
    match &x.data {
        Data::Float(x) => result.fill(x.iter().copied()),
        Data::Integer(x) => result.fill_integers(x.iter().copied()),
    }
}

pub(crate) fn broadcast(x: &Array, shape: &[usize], axes: &[usize], result: &mut Array) {
    let mut strides = vec![0; shape.len()];
    for ((&axis, &extent), stride) in axes.iter().zip(&x.ty.shape).zip(packed_strides(&x.ty.shape)) {
        strides[axis] = if extent == 1 { 0 } else { stride };
    }
    read(x, Offsets::new(shape, strides, 0), result);
}

pub(crate) fn transpose(x: &Array, permutation: &[usize], result: &mut Array) {
    let packed = packed_strides(&x.ty.shape);
    let strides = permutation.iter().map(|&axis| packed[axis]).collect();
    read(x, Offsets::new(&result.ty.shape.clone(), strides, 0), result);
}

pub(crate) fn slice(x: &Array, start: &[usize], step: &[usize], result: &mut Array) {
    let packed = packed_strides(&x.ty.shape);
    let first = packed.iter().zip(start).map(|(&stride, &start)| stride * start as isize).sum();
    let strides =
        packed.iter().zip(step).map(|(&stride, &step)| stride.wrapping_mul(step as isize)).collect();
    read(x, Offsets::new(&result.ty.shape.clone(), strides, first), result);
}

pub(crate) fn reverse(x: &Array, axes: &[usize], result: &mut Array) {
    let mut strides = packed_strides(&x.ty.shape);
    let mut first = 0;
    for &axis in axes {
        first += strides[axis] * (x.ty.shape[axis] as isize - 1);
        strides[axis] = -strides[axis];
    }
    read(x, Offsets::new(&x.ty.shape, strides, first), result);
}

pub(crate) fn pad(x: &Array, value: &Array, low: &[usize], interior: &[usize], result: &mut Array) {
    broadcast(value, &result.ty.shape.clone(), &[], result);
    let packed = packed_strides(&result.ty.shape);
    let first = packed.iter().zip(low).map(|(&stride, &low)| stride * low as isize).sum();
    let spaced = |(&stride, &gap): (&isize, &usize)| stride.wrapping_mul((gap as isize).wrapping_add(1));
    let strides = packed.iter().zip(interior).map(spaced).collect();
    write(x, Offsets::new(&x.ty.shape, strides, first), result);
}

pub(crate) fn concatenate(operands: Operands<'_>, axis: usize, result: &mut Array) {
    *result = Array::zeros(result.ty.clone());
    let packed = packed_strides(&result.ty.shape);
    let mut first = 0;
    for operand in operands.from(0) {
        write(operand, Offsets::new(&operand.ty.shape, packed.clone(), first), result);
        first += packed[axis] * operand.ty.shape[axis] as isize;
    }
}
