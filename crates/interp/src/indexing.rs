//! Reads and additions at computed indices.

use tilewright_ir::{Error, ErrorKind, Result, Type};

use crate::Precision;
use crate::array::{Array, Data};
use crate::elements::wrapping;
use crate::evaluator::Operands;
use crate::rounding::rounding;

/// The position of the first of the elements that `index` (of the leading axes of an array of type `ty`)
/// selects.
///
/// # Errors
/// [`ErrorKind::Index`].
pub(crate) fn locate(ty: &Type, index: impl Iterator<Item = i64>) -> Result<usize> {
    let mut position = 0;
    let mut axes = 0;
    for (axis, index) in index.enumerate() {
        let size = ty.shape[axis];
        let from_start = if index < 0 { index.wrapping_add(size as i64) } else { index };
        if !(0..size as i64).contains(&from_start) {
            return Err(Error::new(ErrorKind::Index { buffer: ty.to_string(), axis, index, size }));
        }
        position = position * size + from_start as usize;
        axes = axis + 1;
    }
    Ok(position * ty.shape[axes..].iter().product::<usize>())
}

pub(crate) fn gather(operands: Operands<'_>, result: &mut Array) -> Result<()> {
    let array = operands.get(0);
    let axes = operands.len() - 1;
    let block: usize = array.ty.shape[axes..].iter().product();
    let count = if axes == 0 { 1 } else { operands.get(1).ty.elements() };
    let start = |i: usize| locate(&array.ty, operands.from(1).map(|index| index.integers()[i]));
    let starts: Vec<usize> = (0..count).map(start).collect::<Result<_>>()?;
    let offsets = starts.into_iter().flat_map(|start| start..start + block);
    match &array.data {
        Data::Float(elements) => result.fill(offsets.map(|offset| elements[offset])),
        Data::Integer(elements) => result.fill_integers(offsets.map(|offset| elements[offset])),
    }
    Ok(())
}

pub(crate) fn scatter_add(operands: Operands<'_>, result: &mut Array, precision: Precision) -> Result<()> {
    let updates = operands.get(0);
    let axes = operands.len() - 1;
    let block: usize = result.ty.shape[axes..].iter().product();
    let count = if axes == 0 { 1 } else { operands.get(1).ty.elements() };
    let dtype = result.ty.dtype;
    *result = Array::zeros(result.ty.clone());
    for i in 0..count {
        let start = locate(&result.ty, operands.from(1).map(|index| index.integers()[i]))?;
        match (&updates.data, &mut result.data) {
            (Data::Float(updates), Data::Float(sums)) => {
                let accumulate = rounding(dtype.accumulator(), precision);
                for j in 0..block {
                    sums[start + j] = accumulate(sums[start + j] + updates[i * block + j]);
                }
            }
            (Data::Integer(updates), Data::Integer(sums)) => {
                let wrap = wrapping(dtype);
                for j in 0..block {
                    sums[start + j] = wrap(sums[start + j].wrapping_add(updates[i * block + j]));
                }
            }
            (Data::Float(_), Data::Integer(_)) | (Data::Integer(_), Data::Float(_)) => {
                unreachable!("the typing rules ask for one type")
            }
        }
    }
    if let Data::Float(sums) = &mut result.data {
        let round = rounding(dtype, precision);
        sums.iter_mut().for_each(|sum| *sum = round(*sum));
    }
    Ok(())
}
