//! Views of views become one view, and views of everything vanish.

use tilewright_ir::{Graph, Node, Op, Result, Value};

use super::rebuild;

/// Composition and removal of broadcasts, reshapes, transpositions, slices, paddings and reversals.
pub(super) fn compose(graph: &Graph) -> Result<Graph> {
    rebuild(graph, |new, node, operands| {
        let Some(&operand) = operands.first() else { return Ok(None) };
        let Some((op, source)) = through(new, &node.op, operand) else { return Ok(None) };
        let mut operands = operands.to_vec();
        operands[0] = source;
        if is_nothing(new, &op, &operands) {
            return Ok(Some(vec![source]));
        }
        let last = operands.len();
        operands.truncate(if matches!(op, Op::Pad { .. } | Op::Concatenate { .. }) { last } else { 1 });
        Ok(Some(new.add(op, &operands, node.origin.clone())?))
    })
}

/// Whether there is any view.
pub(super) fn is_any(graph: &Graph) -> bool {
    graph.nodes().iter().any(|node| is_view(&node.op))
}

/// The view, and what it is of, that `op` of `operand` is; nothing where `op` is no view.
fn through(graph: &Graph, op: &Op, operand: Value) -> Option<(Op, Value)> {
    let inner = graph.producer(operand);
    let inside = |node: &Node| node.operands[0];
    let composed = inner.and_then(|node| match (op, &node.op) {
        (Op::Reshape { .. }, Op::Reshape { .. }) => Some((op.clone(), inside(node))),
        (Op::Transpose { permutation: outer }, Op::Transpose { permutation: inner }) => {
            let permutation = outer.iter().map(|&axis| inner[axis]).collect();
            Some((Op::Transpose { permutation }, inside(node)))
        }
        (Op::Broadcast { shape, axes: outer }, Op::Broadcast { axes: inner, .. }) => {
            let axes = inner.iter().map(|&axis| outer[axis]).collect();
            Some((Op::Broadcast { shape: shape.clone(), axes }, inside(node)))
        }
        (Op::Reverse { axes: outer }, Op::Reverse { axes: inner }) => {
            let once = |axis: &usize| outer.contains(axis) != inner.contains(axis);
            let mut axes: Vec<usize> = outer.iter().chain(inner).copied().filter(once).collect();
            axes.sort_unstable();
            Some((Op::Reverse { axes }, inside(node)))
        }
        (Op::Slice { start, limit, step }, inner) => sliced(graph, node, inner, [start, limit, step]),
        _ => None,
    });
    composed.or_else(|| is_view(op).then(|| (op.clone(), operand)))
}

fn is_view(op: &Op) -> bool {
    match op {
        Op::Broadcast { .. }
        | Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Reverse { .. }
        | Op::Concatenate { .. } => true,
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::StopGradient
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

/// A slice of a slice, of the inner part of a padding, or of one part of a concatenation.
fn sliced(graph: &Graph, node: &Node, inner: &Op, outer: [&Vec<usize>; 3]) -> Option<(Op, Value)> {
    let [start, limit, step] = outer;
    let slice = |start, limit, step| Op::Slice { start, limit, step };
    if let Op::Slice { start: first, step: by, .. } = inner {
        let at = |list: &[usize]| -> Vec<usize> {
            (0..list.len()).map(|axis| first[axis] + list[axis] * by[axis]).collect()
        };
        let shape = &graph.ty(node.operands[0]).shape;
        let ends = at(limit).into_iter().zip(shape).map(|(end, &extent)| end.min(extent)).collect();
        let starts: Vec<usize> = at(start).into_iter().zip(shape).map(|(s, &extent)| s.min(extent)).collect();
        let steps = step.iter().zip(by).map(|(outer, inner)| outer * inner).collect();
        return Some((slice(starts, ends, steps), node.operands[0]));
    }
    if let Op::Pad { low, interior, .. } = inner {
        let shape = &graph.ty(node.operands[0]).shape;
        let within = (0..low.len()).all(|axis| {
            interior[axis] == 0 && start[axis] >= low[axis] && limit[axis] <= low[axis] + shape[axis]
        });
        let moved = |list: &[usize]| list.iter().zip(low).map(|(position, low)| position - low).collect();
        return within.then(|| (slice(moved(start), moved(limit), step.clone()), node.operands[0]));
    }
    if let Op::Concatenate { axis } = inner {
        let mut offset = 0;
        for &part in &node.operands {
            let extent = graph.ty(part).shape[*axis];
            if start[*axis] >= offset && limit[*axis] <= offset + extent {
                let (mut start, mut limit) = (start.clone(), limit.clone());
                start[*axis] -= offset;
                limit[*axis] -= offset;
                return Some((slice(start, limit, step.clone()), part));
            }
            offset += extent;
        }
    }
    None
}

/// Whether a view shows its operand as it is.
fn is_nothing(graph: &Graph, op: &Op, operands: &[Value]) -> bool {
    let source = &graph.ty(operands[0]).shape;
    let ascending = |axes: &[usize]| axes.iter().enumerate().all(|(i, &axis)| i == axis);
    match op {
        Op::Broadcast { shape, .. } | Op::Reshape { shape } => shape == source,
        Op::Transpose { permutation } => ascending(permutation),
        Op::Slice { start, limit, step } => {
            start.iter().all(|&s| s == 0) && limit == source && step.iter().all(|&s| s == 1)
        }
        Op::Pad { low, high, interior } => {
            let gaps = interior.iter().zip(source).all(|(&gap, &extent)| gap == 0 || extent <= 1);
            gaps && low.iter().chain(high).all(|&n| n == 0)
        }
        Op::Reverse { axes } => axes.iter().all(|&axis| source[axis] <= 1),
        Op::Concatenate { .. } => operands.len() == 1,
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::StopGradient
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
