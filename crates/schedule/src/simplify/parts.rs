//! Arrays that are made of parts.

use tilewright_ir::{Binary, Graph, Op, Result, Scalar, Value};

use super::{rebuild, uses};

/// Terms and sums of a sum that are looked at, at most: each sum is looked at anew, and may hold another more than once.
const TERMS: usize = 128;

/// A sum of arrays that are zero but for a part each, which are neighbours along an axis and fill it, is these parts side
/// by side. The cotangent of an array that is cut into parts is such a sum. And what is side by side is converted part by
/// part, so that each part is stored as it is to be read.
///
/// Adding the zeros makes a negative zero a positive one, which it stays alone: the only bit that differs.
pub(super) fn join(graph: &Graph) -> Result<Graph> {
    let uses = uses(graph);
    rebuild(graph, |new, node, operands| {
        if let Op::Binary(Binary::Add) = node.op {
            let Some((axis, parts)) = side_by_side(new, operands) else { return Ok(None) };
            return Ok(Some(vec![new.add1(Op::Concatenate { axis }, &parts, node.origin.clone())?]));
        }
        let Op::Cast(dtype) = node.op else { return Ok(None) };
        let Some(joined) = new.producer(operands[0]).filter(|_| uses[node.operands[0].index()] == 1) else {
            return Ok(None);
        };
        let Op::Concatenate { axis } = joined.op else { return Ok(None) };
        let mut parts = joined.operands.clone();
        for part in &mut parts {
            *part = new.add1(Op::Cast(dtype), &[*part], node.origin.clone())?;
        }
        Ok(Some(vec![new.add1(Op::Concatenate { axis }, &parts, node.origin.clone())?]))
    })
}

/// Whether there is any padding.
pub(super) fn is_any(graph: &Graph) -> bool {
    graph.nodes().iter().any(|node| matches!(node.op, Op::Pad { .. }))
}

/// The axis and the parts of a sum of paddings with zeros that fill it without a gap.
fn side_by_side(graph: &Graph, terms: &[Value]) -> Option<(usize, Vec<Value>)> {
    let mut open = terms.to_vec();
    // Where each part begins, its axis, and the part.
    let mut parts: Vec<(usize, usize, Value)> = Vec::new();
    let mut seen = 0;
    while let Some(term) = open.pop() {
        seen += 1;
        if seen > TERMS {
            return None;
        }
        let node = graph.producer(term)?;
        if let Op::Binary(Binary::Add) = node.op {
            open.extend(&node.operands);
            continue;
        }
        let Op::Pad { low, high, interior } = &node.op else { return None };
        let fill = graph.constant(node.operands[1])?.splat()?;
        let mut padded = (0..low.len()).filter(|&axis| low[axis] + high[axis] + interior[axis] > 0);
        let axis = padded.next()?;
        if interior[axis] > 0 || padded.next().is_some() || !is_zero(fill) {
            return None;
        }
        parts.push((low[axis], axis, node.operands[0]));
    }
    parts.sort_unstable();
    let axis = parts.first()?.1;
    let mut end = 0;
    for &(begin, along, part) in &parts {
        if begin != end || along != axis {
            return None;
        }
        end += graph.ty(part).shape[axis];
    }
    (end == graph.ty(terms[0]).shape[axis])
        .then(|| (axis, parts.into_iter().map(|(.., part)| part).collect()))
}

fn is_zero(number: Scalar) -> bool {
    match number {
        Scalar::Float(x) => x == 0.0,
        Scalar::Integer(x) => x == 0,
        Scalar::Bool(_) => false,
    }
}
