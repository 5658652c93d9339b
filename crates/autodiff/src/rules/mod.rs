//! One rule per operation and mode. A `vjp` turns the cotangents of a node's results into those of its
//! operands, a `jvp` the tangents of its operands into those of its results; none stands for zero.

mod dot;
mod pointwise;
mod reduce;
mod shape;

use tilewright_ir::{Node, Op, Result, Value};

use crate::emit::{Emit, inverse};
use crate::{attention, scan};

/// The cotangents of the operands of `node`, where `wanted`, from those of its results, of which there is
/// at least one.
pub(crate) fn vjp(
    e: &mut Emit,
    node: &Node,
    cotangents: &[Option<Value>],
    wanted: &[bool],
) -> Result<Vec<Option<Value>>> {
    match &node.op {
        Op::FlexAttention(attention) => return attention::vjp(e, attention, node, cotangents, wanted),
        Op::FlexAttentionBackward(backward) => {
            return attention::backward_vjp(e, backward, node, cotangents, wanted);
        }
        Op::AssociativeScan(scan) => return scan::vjp(e, scan, node, cotangents, wanted),
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::StopGradient
        | Op::Broadcast { .. }
        | Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Reverse { .. }
        | Op::Concatenate { .. }
        | Op::Reduce { .. }
        | Op::ArgMax { .. }
        | Op::Dot(_)
        | Op::Gather
        | Op::ScatterAdd { .. }
        | Op::RandomBits { .. } => {}
    }
    let Some(cotangent) = cotangents[0] else { return Ok(vec![None; wanted.len()]) };
    (0..wanted.len())
        .map(|side| if wanted[side] { vjp_operand(e, node, side, cotangent) } else { Ok(None) })
        .collect()
}

/// [`vjp`] for one operand of an operation with one result.
fn vjp_operand(e: &mut Emit, node: &Node, side: usize, g: Value) -> Result<Option<Value>> {
    let operands = &node.operands;
    let ty = e.ty(operands[side]);
    let cotangent = match &node.op {
        Op::Unary(unary) => return pointwise::unary(e, *unary, operands[0], node.results[0], g),
        Op::Binary(binary) => {
            let values = [operands[0], operands[1], node.results[0]];
            return pointwise::binary(e, *binary, side, values, g);
        }
        Op::Select => match side {
            1 => e.select_or(operands[0], g, 0.0)?,
            _ => e.replace(operands[0], 0.0, g)?,
        },
        Op::Cast(_) => e.cast(g, ty.dtype)?,
        Op::Broadcast { shape: _, axes } => shape::broadcast(e, &ty.shape, axes, g)?,
        Op::Reshape { shape: _ } => e.reshape(g, &ty.shape)?,
        Op::Transpose { permutation } => e.transpose(g, &inverse(permutation))?,
        Op::Slice { start, limit: _, step } => shape::slice(e, &ty.shape, start, step, g)?,
        Op::Pad { low, high: _, interior } => match side {
            0 => shape::pad_array(e, &ty.shape, low, interior, g)?,
            _ => shape::pad_value(e, &node.op, &e.ty(operands[0]), g)?,
        },
        Op::Reverse { .. } => e.op(node.op.clone(), &[g])?,
        Op::Concatenate { axis } => {
            let before: usize = operands[..side].iter().map(|&x| e.graph.ty(x).shape[*axis]).sum();
            e.slice_axis(g, *axis, before, before + ty.shape[*axis])?
        }
        Op::Reduce { kind, axes } => reduce::vjp(e, *kind, axes, [operands[0], node.results[0]], g)?,
        Op::Dot(axes) => dot::transpose(e, axes, side, [operands[0], operands[1]], g)?,
        Op::Gather => e.op(Op::ScatterAdd { shape: ty.shape }, &with_first(g, operands))?,
        Op::ScatterAdd { shape: _ } => e.op(Op::Gather, &with_first(g, operands))?,
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Compare(_)
        | Op::StopGradient
        | Op::ArgMax { .. }
        | Op::RandomBits { .. }
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => return Ok(None),
    };
    Ok(Some(cotangent))
}

/// The tangents of the results of `node` from those of its operands, of which there is at least one.
pub(crate) fn jvp(e: &mut Emit, node: &Node, tangents: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
    let operands = &node.operands;
    let tangent = match &node.op {
        Op::FlexAttention(attention) => return attention::jvp(e, attention, node, tangents),
        Op::FlexAttentionBackward(backward) => return attention::backward_jvp(e, backward, node, tangents),
        Op::AssociativeScan(scan) => return scan::jvp(e, scan, node, tangents),
        Op::Unary(unary) => match tangents[0] {
            Some(t) => pointwise::unary(e, *unary, operands[0], node.results[0], t)?,
            None => None,
        },
        Op::Binary(binary) => {
            let values = [operands[0], operands[1], node.results[0]];
            let mut total = None;
            for (side, tangent) in tangents.iter().enumerate() {
                let Some(t) = *tangent else { continue };
                let term = pointwise::binary(e, *binary, side, values, t)?;
                total = sum(e, total, term)?;
            }
            total
        }
        Op::Dot(axes) => {
            let mut total = None;
            for (side, tangent) in tangents.iter().enumerate() {
                let Some(t) = *tangent else { continue };
                let pair = if side == 0 { [t, operands[1]] } else { [operands[0], t] };
                let term = e.dot(pair[0], pair[1], axes.clone())?;
                total = sum(e, total, Some(term))?;
            }
            total
        }
        Op::Reduce { kind, axes } => match tangents[0] {
            Some(t) => Some(reduce::jvp(e, *kind, axes, [operands[0], node.results[0]], t)?),
            None => None,
        },
        // Linear in the operands that have tangents.
        Op::Cast(_)
        | Op::Broadcast { .. }
        | Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::Slice { .. }
        | Op::Reverse { .. }
        | Op::Gather
        | Op::ScatterAdd { .. } => match tangents[0] {
            Some(t) => Some(e.op(node.op.clone(), &with_first(t, operands))?),
            None => None,
        },
        Op::Select => {
            let x = tangent_or_zero(e, operands[1], tangents[1])?;
            let y = tangent_or_zero(e, operands[2], tangents[2])?;
            Some(e.select(operands[0], x, y)?)
        }
        Op::Pad { .. } | Op::Concatenate { .. } => {
            let parts: Vec<Value> = operands
                .iter()
                .zip(tangents)
                .map(|(&operand, &tangent)| tangent_or_zero(e, operand, tangent))
                .collect::<Result<_>>()?;
            Some(e.op(node.op.clone(), &parts)?)
        }
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Compare(_)
        | Op::StopGradient
        | Op::ArgMax { .. }
        | Op::RandomBits { .. } => None,
    };
    Ok(vec![tangent])
}

fn with_first(first: Value, operands: &[Value]) -> Vec<Value> {
    std::iter::once(first).chain(operands[1..].iter().copied()).collect()
}

fn tangent_or_zero(e: &mut Emit, operand: Value, tangent: Option<Value>) -> Result<Value> {
    tangent.map_or_else(|| e.like(operand, 0.0), Ok)
}

/// The sum of two values either of which may be zero.
pub(crate) fn sum(e: &mut Emit, x: Option<Value>, y: Option<Value>) -> Result<Option<Value>> {
    match (x, y) {
        (Some(x), Some(y)) => Ok(Some(e.add(x, y)?)),
        (one, None) | (None, one) => Ok(one),
    }
}
