//! Gathers that read less, and scatters that need not be.

use tilewright_ir::{Binary, Compare, DType, Graph, Node, Op, Result, Value};

use super::rebuild;

/// Gathers before functions of single elements, and scatters of one update for each row as selections.
pub(super) fn simplify(graph: &Graph) -> Result<Graph> {
    rebuild(graph, |new, node, operands| {
        if node.op == Op::Gather {
            gathered_before(new, node, operands)
        } else if let Op::ScatterAdd { shape } = &node.op {
            selected(new, node, operands, shape)
        } else {
            Ok(None)
        }
    })
}

/// Whether there is anything to look at.
pub(super) fn is_any(graph: &Graph) -> bool {
    graph.nodes().iter().any(|node| matches!(node.op, Op::Gather | Op::ScatterAdd { .. }))
}

/// A function of what is read of its operand, in place of what is read of its result: the whole result need not be
/// there for that. Not where what would be read is wider.
fn gathered_before(new: &mut Graph, node: &Node, operands: &[Value]) -> Result<Option<Vec<Value>>> {
    let (mut source, mut functions) = (operands[0], Vec::new());
    while let Some(producer) = new.producer(source)
        && let Op::Cast(_) | Op::Unary(_) = producer.op
        && new.ty(producer.operands[0]).dtype.size() <= new.ty(source).dtype.size()
    {
        functions.push((producer.op.clone(), producer.origin.clone()));
        source = producer.operands[0];
    }
    if functions.is_empty() {
        return Ok(None);
    }
    let mut value = new.add1(Op::Gather, &[&[source], &operands[1..]].concat(), node.origin.clone())?;
    if new.ty(value).elements() > new.ty(source).elements() {
        return Ok(None);
    }
    for (op, origin) in functions.into_iter().rev() {
        value = new.add1(op, &[value], origin)?;
    }
    Ok(Some(vec![value]))
}

/// What a scatter comes to that adds one update to each row of zeros along one axis, while every other index is the
/// update's own position: each element is its row's update if it is at that row's index, and else zero. The gradient
/// of picking one element a row, as of a cross entropy, is such a scatter; as a selection it is part of the loop that
/// reads it, and no array of zeros is made.
fn selected(new: &mut Graph, node: &Node, operands: &[Value], shape: &[usize]) -> Result<Option<Vec<Value>>> {
    let (updates, indices) = (operands[0], &operands[1..]);
    let own = new.ty(updates).shape.clone();
    if indices.len() != shape.len() || own.len() != shape.len() {
        return Ok(None);
    }
    let is_position = |axis: usize| own[axis] == shape[axis] && is_iota(new, indices[axis], axis);
    let mut others = (0..shape.len()).filter(|&axis| !is_position(axis));
    let (Some(axis), None) = (others.next(), others.next()) else { return Ok(None) };
    if own[axis] != 1 {
        return Ok(None);
    }
    let origin = || node.origin.clone();
    // Read from the positions themselves, so that negative indices count from the end, and others fault, as before.
    let dtype = if i32::try_from(shape[axis]).is_ok() { DType::I32 } else { DType::I64 };
    let line = new.add1(Op::Iota { dtype, shape: vec![shape[axis]], axis: 0 }, &[], origin())?;
    let places = new.add1(Op::Gather, &[line, indices[axis]], origin())?;
    // Added to zero as before: −0 comes to 0.
    let zeros = new.splat(&new.ty(updates).clone(), 0.0)?;
    let updates = new.add1(Op::Binary(Binary::Add), &[zeros, updates], origin())?;
    let mut spread = |value: Value| -> Result<Value> {
        let row: Vec<usize> = (0..shape.len()).filter(|&of| of != axis).collect();
        let extents = row.iter().map(|&of| shape[of]).collect();
        let value = new.add1(Op::Reshape { shape: extents }, &[value], origin())?;
        new.add1(Op::Broadcast { shape: shape.to_vec(), axes: row }, &[value], origin())
    };
    let (places, updates) = (spread(places)?, spread(updates)?);
    let positions = new.add1(Op::Iota { dtype, shape: shape.to_vec(), axis }, &[], origin())?;
    let here = new.add1(Op::Compare(Compare::Eq), &[positions, places], origin())?;
    let zeros = new.splat(&new.ty(updates).clone(), 0.0)?;
    Ok(Some(vec![new.add1(Op::Select, &[here, updates, zeros], origin())?]))
}

/// Whether a value is the position along an axis.
fn is_iota(graph: &Graph, value: Value, axis: usize) -> bool {
    let Some(node) = graph.producer(value) else { return false };
    if let Op::Cast(_) = node.op {
        return is_iota(graph, node.operands[0], axis);
    }
    matches!(node.op, Op::Iota { axis: of, .. } if of == axis)
}
