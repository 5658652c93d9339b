//! Transposes of the operations that move elements without changing them.

use tilewright_ir::{Op, Result, Type, Value};

use crate::emit::Emit;

/// The transpose of a broadcast of an operand of `shape`: sums over what was repeated.
pub(crate) fn broadcast(e: &mut Emit, shape: &[usize], axes: &[usize], cotangent: Value) -> Result<Value> {
    let result = e.shape(cotangent);
    let kept = |axis: usize| axes.iter().position(|&a| a == axis).is_some_and(|i| shape[i] == result[axis]);
    let repeated: Vec<usize> = (0..result.len()).filter(|&axis| !kept(axis)).collect();
    let sum = e.sum(cotangent, &repeated)?;
    e.reshape(sum, shape)
}

/// The transpose of a slice of an operand of `shape`: zeros around and between.
pub(crate) fn slice(
    e: &mut Emit,
    shape: &[usize],
    start: &[usize],
    step: &[usize],
    cotangent: Value,
) -> Result<Value> {
    let extents = e.shape(cotangent);
    let mut low = start.to_vec();
    let mut high = vec![0; shape.len()];
    for axis in 0..shape.len() {
        match extents[axis].checked_sub(1) {
            Some(last) => high[axis] = shape[axis] - (start[axis] + last * step[axis] + 1),
            None => low[axis] = shape[axis],
        }
    }
    let interior = step.iter().map(|&step| step - 1).collect();
    let zero = e.zeros(&Type::scalar(e.dtype(cotangent)))?;
    e.op(Op::Pad { low, high, interior }, &[cotangent, zero])
}

/// The transpose of a pad with respect to its array, of `shape`: the positions that it went to.
pub(crate) fn pad_array(
    e: &mut Emit,
    shape: &[usize],
    low: &[usize],
    interior: &[usize],
    cotangent: Value,
) -> Result<Value> {
    let step: Vec<usize> = interior.iter().map(|&gap| gap + 1).collect();
    let limit = (0..shape.len())
        .map(|axis| low[axis] + shape[axis].checked_sub(1).map_or(0, |last| last * step[axis] + 1))
        .collect();
    e.op(Op::Slice { start: low.to_vec(), limit, step }, &[cotangent])
}

/// The transpose of `pad` with respect to the value that it fills with: the sum over all other positions,
/// which are chosen, not subtracted from the whole, so that it is exact.
pub(crate) fn pad_value(e: &mut Emit, pad: &Op, array: &Type, cotangent: Value) -> Result<Value> {
    let inside = e.splat(&Type::new(tilewright_ir::DType::Bool, array.shape.clone()), false)?;
    let outside = e.splat(&Type::scalar(tilewright_ir::DType::Bool), true)?;
    let filled = e.op(pad.clone(), &[inside, outside])?;
    let fill = e.select_or(filled, cotangent, 0.0)?;
    let axes: Vec<usize> = (0..array.rank()).collect();
    e.sum(fill, &axes)
}
