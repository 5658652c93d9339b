//! Which elements of a source array each element of a value depends on, as far as shapes tell.
//!
//! An axis of the source is *aligned* with an axis of the value if the element at position p of that axis
//! depends on the source's elements at position p only. All other axes are *mixed*. For a combine function
//! that works element by element every axis is aligned; for a product of matrices `y · x` the rows of `y`
//! are aligned and its columns mixed.
//!
//! Axes of extent 1 carry no information and are left out: all axis numbers here count the others.

use tilewright_ir::{Graph, Op, Type, Unary, Value};

/// For each axis of the source the axis of the value that it is aligned with; none where it is mixed.
pub(crate) type Alignment = Vec<Option<usize>>;

/// The axes of `shape` that have another extent than 1.
pub(crate) fn proper_axes(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).filter(|&axis| shape[axis] != 1).collect()
}

/// The alignment of each value of `region` with `source`; none where no derivative can flow.
pub(crate) fn alignments(region: &Graph, source: Value) -> Vec<Option<Alignment>> {
    let mut known: Vec<Option<Alignment>> = vec![None; region.value_count()];
    let axes = proper_axes(&region.ty(source).shape).len();
    known[source.index()] = Some((0..axes).map(Some).collect());
    for node in region.nodes() {
        let types: Vec<&Type> = node.operands.iter().map(|&operand| region.ty(operand)).collect();
        for &result in &node.results {
            let ty = region.ty(result);
            if !ty.dtype.is_float() || is_flat(&node.op) {
                continue;
            }
            let mut joined: Option<Alignment> = None;
            for (side, operand) in node.operands.iter().enumerate() {
                let Some(alignment) = &known[operand.index()] else { continue };
                let moved = alignment
                    .iter()
                    .map(|image| image.and_then(|axis| move_axis(&node.op, side, axis, &types, ty)))
                    .collect();
                joined = Some(join(joined, moved));
            }
            known[result.index()] = joined;
        }
    }
    known
}

/// The alignment of a value that depends on the source in two ways.
pub(crate) fn join(one: Option<Alignment>, other: Alignment) -> Alignment {
    match one {
        None => other,
        Some(one) => one.into_iter().zip(other).map(|(a, b)| if a == b { a } else { None }).collect(),
    }
}

/// Whether the derivative is zero wherever it exists.
fn is_flat(op: &Op) -> bool {
    match op {
        Op::StopGradient => true,
        Op::Unary(unary) => matches!(unary, Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Round),
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
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
        | Op::RandomBits { .. }
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => false,
    }
}

/// [`image`] in numbers that leave out the axes of extent 1.
fn move_axis(op: &Op, side: usize, axis: usize, operands: &[&Type], result: &Type) -> Option<usize> {
    let from = proper_axes(&operands[side].shape)[axis];
    let to = match op {
        Op::Reshape { shape } => return reshaped(axis, &operands[side].shape, shape),
        _ => image(op, side, from, operands, result)?,
    };
    proper_axes(&result.shape).iter().position(|&other| other == to)
}

/// The axis of the result along which position p depends on position p of `axis` of operand `side` only.
fn image(op: &Op, side: usize, axis: usize, operands: &[&Type], result: &Type) -> Option<usize> {
    let operand = operands[side];
    let ahead = |gone: &[usize]| axis - gone.iter().filter(|&&other| other < axis).count();
    match op {
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_) | Op::StopGradient => {
            Some(axis)
        }
        Op::Broadcast { shape: _, axes } => Some(axes[axis]),
        Op::Transpose { permutation } => permutation.iter().position(|&from| from == axis),
        Op::Slice { start, limit: _, step } => {
            let whole = result.shape[axis] == operand.shape[axis];
            (whole && start[axis] == 0 && step[axis] == 1).then_some(axis)
        }
        Op::Pad { low, high: _, interior: _ } => {
            let whole = side == 0 && result.shape[axis] == operand.shape[axis];
            (whole && low[axis] == 0).then_some(axis)
        }
        Op::Reverse { axes } => (!axes.contains(&axis)).then_some(axis),
        Op::Concatenate { axis: joined } => (axis != *joined).then_some(axis),
        Op::Reduce { kind: _, axes } => (!axes.contains(&axis)).then(|| ahead(axes)),
        Op::Dot(axes) => {
            let (batch, free, before) = if side == 0 {
                (&axes.left_batch, axes.left_free(operand.rank()), 0)
            } else {
                let left = axes.left_free(operands[0].rank()).len();
                (&axes.right_batch, axes.right_free(operand.rank()), left)
            };
            let in_free = || free.iter().position(|&other| other == axis);
            batch
                .iter()
                .position(|&other| other == axis)
                .or_else(|| in_free().map(|position| batch.len() + before + position))
        }
        Op::Gather => {
            let indices = operands.len() - 1;
            let leading = operands.get(1).map_or(0, |index| index.rank());
            axis.checked_sub(indices).map(|tail| leading + tail)
        }
        Op::ScatterAdd { shape: _ } => {
            let indices = operands.len() - 1;
            let leading = operands.get(1).map_or(0, |index| index.rank());
            axis.checked_sub(leading).map(|tail| indices + tail)
        }
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Reshape { .. }
        | Op::ArgMax { .. }
        | Op::RandomBits { .. }
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => None,
    }
}

/// A reshape keeps the axes in front of the first and behind the last that it changes.
fn reshaped(axis: usize, from: &[usize], to: &[usize]) -> Option<usize> {
    let extents = |shape: &[usize]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    let (from, to) = (extents(from), extents(to));
    let same_front = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let same_back = from.iter().rev().zip(to.iter().rev()).take_while(|(a, b)| a == b).count();
    if axis < same_front {
        Some(axis)
    } else if axis + same_back >= from.len() {
        Some(axis + to.len() - from.len())
    } else {
        None
    }
}
