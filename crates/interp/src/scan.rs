//! Scans, as a fold from one end to the other.

use tilewright_ir::{AssociativeScan, Result};

use crate::Precision;
use crate::array::{Array, Data};
use crate::evaluator::{Evaluator, Operands};

pub(crate) fn evaluate(
    scan: &AssociativeScan,
    operands: Operands<'_>,
    results: &mut [Array],
    precision: Precision,
) -> Result<()> {
    let AssociativeScan { combine, leaves, axis, reverse } = scan;
    let (leaves, axis) = (*leaves, *axis);
    let stages = [vec![1; 2 * leaves], vec![0; operands.len() - leaves]].concat();
    let mut evaluator = Evaluator::new(combine, precision, &stages)?;
    for (i, capture) in operands.from(leaves).enumerate() {
        evaluator.set(2 * leaves + i, capture);
    }
    for (i, result) in results.iter_mut().enumerate() {
        *result = operands.get(i).clone();
    }
    let length = results[0].ty.shape[axis];
    if length < 2 {
        return Ok(());
    }
    evaluator.run(0)?;
    for step in 1..length {
        let (before, at) = if *reverse { (length - step, length - step - 1) } else { (step - 1, step) };
        for (i, result) in results.iter().enumerate() {
            read_slice(result, axis, before, evaluator.parameter(i));
            read_slice(operands.get(i), axis, at, evaluator.parameter(leaves + i));
        }
        evaluator.run(1)?;
        for (i, result) in results.iter_mut().enumerate() {
            write_slice(evaluator.result(i), axis, at, result);
        }
    }
    Ok(())
}

/// The ranges of an array's elements that have `position` along `axis`.
fn blocks(shape: &[usize], axis: usize, position: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let block: usize = shape[axis + 1..].iter().product();
    let extent = shape[axis];
    let outer: usize = shape[..axis].iter().product();
    (0..outer).map(move |i| (i * extent + position) * block..(i * extent + position + 1) * block)
}

fn read_slice(array: &Array, axis: usize, position: usize, slice: &mut Array) {
    let blocks = blocks(&array.ty.shape, axis, position);
    match &array.data {
        Data::Float(elements) => slice.fill(blocks.flat_map(|block| elements[block].iter().copied())),
        Data::Integer(elements) => {
            slice.fill_integers(blocks.flat_map(|block| elements[block].iter().copied()));
        }
    }
}

fn write_slice(slice: &Array, axis: usize, position: usize, array: &mut Array) {
    let blocks = blocks(&array.ty.shape, axis, position).flatten();
    match (&slice.data, &mut array.data) {
        (Data::Float(slice), Data::Float(elements)) => {
            blocks.zip(slice).for_each(|(at, &x)| elements[at] = x);
        }
        (Data::Integer(slice), Data::Integer(elements)) => {
            blocks.zip(slice).for_each(|(at, &x)| elements[at] = x);
        }
        (Data::Float(_), Data::Integer(_)) | (Data::Integer(_), Data::Float(_)) => {
            unreachable!("the typing rules ask for one type")
        }
    }
}
