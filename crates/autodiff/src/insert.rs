//! Vectorisation over one axis that stands among the others, for regions that work element by element.
//!
//! [`crate::batch()`] puts its axes in front, which costs transpositions where the data has them elsewhere.
//! A region of element-wise operations, broadcasts and reductions behind the axis needs none.

use tilewright_ir::{Graph, Node, Op, Result, Value};

use crate::batch::live_nodes;
use crate::emit::Emit;

/// Whether [`insert_axis`] can put the axis at position `axis` of every value of `region`.
pub(crate) fn can_insert(region: &Graph, axis: usize, batched: &[bool]) -> bool {
    let mut varies = vec![false; region.value_count()];
    for (parameter, &batched) in region.parameters().iter().zip(batched) {
        varies[parameter.index()] = batched;
    }
    let live = live_nodes(region, region.results());
    region.nodes().iter().zip(live).filter(|(_, live)| *live).all(|(node, _)| {
        let vary = node.operands.iter().any(|operand| varies[operand.index()]);
        node.results.iter().for_each(|result| varies[result.index()] = vary);
        !vary || fits(region, node, axis)
    })
}

fn fits(region: &Graph, node: &Node, axis: usize) -> bool {
    match &node.op {
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_) | Op::StopGradient => true,
        Op::Broadcast { shape: _, axes } => axes.len() >= axis && axes[..axis].iter().copied().eq(0..axis),
        Op::Reduce { kind: _, axes } => axes.iter().all(|&other| other >= axis),
        Op::Reshape { shape } => {
            let from = &region.ty(node.operands[0]).shape;
            from.len() >= axis && shape.len() >= axis && from[..axis] == shape[..axis]
        }
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Transpose { .. }
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Reverse { .. }
        | Op::Concatenate { .. }
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

/// Inlines `region` (for which [`can_insert`] holds) at `length` positions of an axis inserted at `axis`,
/// which the arguments paired with `true` have, and so the results paired with `true`.
pub(crate) fn insert_axis(
    graph: &mut Graph,
    region: &Graph,
    length: usize,
    axis: usize,
    arguments: &[(Value, bool)],
) -> Result<Vec<(Value, bool)>> {
    let mut map = vec![None; region.value_count()];
    for (parameter, &argument) in region.parameters().iter().zip(arguments) {
        map[parameter.index()] = Some(argument);
    }
    let mapped =
        |map: &[Option<(Value, bool)>], value: &Value| map[value.index()].expect("operands come first");
    let live = live_nodes(region, region.results());
    for (node, _) in region.nodes().iter().zip(live).filter(|(_, live)| *live) {
        let mut e = Emit::new(graph, node.origin.clone());
        let operands: Vec<(Value, bool)> = node.operands.iter().map(|value| mapped(&map, value)).collect();
        let batched = operands.iter().any(|&(_, batched)| batched);
        let mut values = Vec::new();
        for operand in operands {
            values.push(if batched { with_axis(&mut e, length, axis, operand)? } else { operand.0 });
        }
        let op = if batched { widened(&node.op, length, axis) } else { node.op.clone() };
        for (result, value) in node.results.iter().zip(e.ops(op, &values)?) {
            map[result.index()] = Some((value, batched));
        }
    }
    Ok(region.results().iter().map(|value| mapped(&map, value)).collect())
}

/// `value` with the axis.
pub(crate) fn with_axis(
    e: &mut Emit,
    length: usize,
    axis: usize,
    (value, batched): (Value, bool),
) -> Result<Value> {
    if batched {
        return Ok(value);
    }
    let shape = inserted(&e.shape(value), length, axis);
    e.repeat(value, &shape, &[axis])
}

/// `shape` with `extent` at position `axis`.
pub(crate) fn inserted(shape: &[usize], extent: usize, axis: usize) -> Vec<usize> {
    [&shape[..axis], &[extent], &shape[axis..]].concat()
}

/// The operation on values with the axis.
fn widened(op: &Op, length: usize, axis: usize) -> Op {
    let moved = |axes: &[usize]| axes.iter().map(|&a| if a < axis { a } else { a + 1 }).collect::<Vec<_>>();
    match op {
        Op::Broadcast { shape, axes } => {
            Op::Broadcast { shape: inserted(shape, length, axis), axes: inserted(&moved(axes), axis, axis) }
        }
        Op::Reduce { kind, axes } => Op::Reduce { kind: *kind, axes: moved(axes) },
        Op::Reshape { shape } => Op::Reshape { shape: inserted(shape, length, axis) },
        Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::StopGradient
        | Op::Constant(_)
        | Op::Iota { .. }
        | Op::Transpose { .. }
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Reverse { .. }
        | Op::Concatenate { .. }
        | Op::ArgMax { .. }
        | Op::Dot(_)
        | Op::Gather
        | Op::ScatterAdd { .. }
        | Op::RandomBits { .. }
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => op.clone(),
    }
}
