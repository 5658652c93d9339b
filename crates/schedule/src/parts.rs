//! What is only a part of a concatenation is made where it lies there: nothing is copied.

use std::collections::HashMap;

use tilewright_ir::{Node, Op, Value, ValueDefinition};

use crate::Layout;
use crate::normalise::Normal;

/// For computed arrays that are read by nobody but one concatenation, and by it whole: that, and their place in it.
pub(crate) fn of(normal: &Normal) -> HashMap<Value, (Value, Layout)> {
    let graph = &normal.graph;
    let base = |value: Value| normal.accesses[value.index()].base;
    let mut reads = vec![0usize; graph.value_count()];
    let computed = |node: &&Node| base(node.results[0]) == node.results[0];
    for operand in graph.nodes().iter().filter(computed).flat_map(|node| &node.operands) {
        reads[base(*operand).index()] += 1;
    }
    for &result in graph.results() {
        reads[base(result).index()] += 1;
    }
    let mut parts = HashMap::new();
    for node in graph.nodes() {
        let Op::Concatenate { axis } = node.op else { continue };
        let whole = node.results[0];
        let row: usize = graph.ty(whole).shape[axis..].iter().product();
        let mut offset = 0;
        for &operand in &node.operands {
            let (part, part_shape) = (base(operand), &graph.ty(operand).shape);
            let part_row: usize = part_shape[axis..].iter().product();
            let fits = reads[part.index()] == 1
                && normal.accesses[operand.index()].is_whole(part_shape, graph.ty(part).elements())
                && anywhere(normal, part);
            if let Some(strides) = fits.then(|| spread(normal, part, part_row, row)).flatten() {
                parts.insert(part, (whole, Layout { strides, offset: offset as isize }));
            }
            offset += part_row;
        }
    }
    parts
}

/// Whether what computes an array stores it with any strides.
fn anywhere(normal: &Normal, value: Value) -> bool {
    let ValueDefinition::Result(node, _) = normal.graph.definition(value) else { return false };
    match &normal.graph.node(node).op {
        Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::StopGradient
        | Op::Reduce { .. }
        | Op::ArgMax { .. }
        | Op::Gather
        | Op::RandomBits { .. }
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => true,
        // Products and scattered sums are packed, constants given; what is itself put together has parts of its own.
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Broadcast { .. }
        | Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Reverse { .. }
        | Op::Concatenate { .. }
        | Op::Dot(_)
        | Op::ScatterAdd { .. } => false,
    }
}

/// The strides of an array of packed elements, when each `part_row` of them follow each other `row` elements further on;
/// nothing where an axis crosses from one to the next.
fn spread(normal: &Normal, part: Value, part_row: usize, row: usize) -> Option<Vec<isize>> {
    let shape = &normal.graph.ty(part).shape;
    let strides = &normal.accesses[part.index()].flat.strides;
    let spread = strides.iter().zip(shape).map(|(&stride, &extent)| {
        let step = stride as usize;
        match extent {
            0 | 1 => Some(0),
            _ if step * extent <= part_row => Some(stride),
            _ if part_row > 0 && step.is_multiple_of(part_row) => Some((step / part_row * row) as isize),
            _ => None,
        }
    });
    spread.collect()
}
