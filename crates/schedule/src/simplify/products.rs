//! Products in the order in which they are read.

use tilewright_ir::{DotAxes, Graph, Op, Result};

use super::{rebuild, uses};

/// A product of two arrays whose result is only read with the axes of the one before those of the other becomes the
/// product of the other with the one. The gradient of a weight is such a product: read transposed, each of its elements
/// would come from another part of memory.
pub(super) fn turn(graph: &Graph) -> Result<Graph> {
    let uses = uses(graph);
    rebuild(graph, |new, node, operands| {
        let Op::Transpose { permutation } = &node.op else { return Ok(None) };
        let product = node.operands[0];
        let Some(producer) = graph.producer(product).filter(|_| uses[product.index()] == 1) else {
            return Ok(None);
        };
        let Op::Dot(axes) = &producer.op else { return Ok(None) };
        let left = producer.operands[0];
        let batch = axes.left_batch.len();
        let left_free = axes.left_free(graph.ty(left).rank()).len();
        let rank = permutation.len();
        let turned = (0..batch).chain(batch + left_free..rank).chain(batch..batch + left_free);
        if !turned.eq(permutation.iter().copied()) {
            return Ok(None);
        }
        let DotAxes { left_batch, right_batch, left_contract, right_contract } = axes.clone();
        let axes = DotAxes {
            left_batch: right_batch,
            right_batch: left_batch,
            left_contract: right_contract,
            right_contract: left_contract,
        };
        let made = new.producer(operands[0]).expect("what became of a product is one");
        let operands = [made.operands[1], made.operands[0]];
        Ok(Some(vec![new.add1(Op::Dot(axes), &operands, producer.origin.clone())?]))
    })
}

/// Whether there is any product.
pub(super) fn is_any(graph: &Graph) -> bool {
    graph.nodes().iter().any(|node| matches!(node.op, Op::Dot(_)))
}
