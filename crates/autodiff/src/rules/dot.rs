//! The transpose of a sum of products.

use tilewright_ir::{DotAxes, Result, Value};

use crate::emit::{Emit, inverse};

/// The cotangent of one operand of `Dot(axes)` (`side` 0 is the left) from that of its result: the product
/// with the other operand, contracted over the axes that only the other one gave to the result.
pub(crate) fn transpose(
    e: &mut Emit,
    axes: &DotAxes,
    side: usize,
    operands: [Value; 2],
    cotangent: Value,
) -> Result<Value> {
    let ranks = operands.map(|operand| e.graph.ty(operand).rank());
    let batch = axes.left_batch.len();
    let (left_free, right_free) = (axes.left_free(ranks[0]), axes.right_free(ranks[1]));
    let left_result: Vec<usize> = (batch..batch + left_free.len()).collect();
    let right_result: Vec<usize> = (batch + left_free.len()..e.graph.ty(cotangent).rank()).collect();

    let (other, mine) = if side == 0 {
        let other = Side { batch: &axes.right_batch, contract: &axes.right_contract, free: right_free };
        (other, Side { batch: &axes.left_batch, contract: &axes.left_contract, free: left_free })
    } else {
        let other = Side { batch: &axes.left_batch, contract: &axes.left_contract, free: left_free };
        (other, Side { batch: &axes.right_batch, contract: &axes.right_contract, free: right_free })
    };
    let product = DotAxes {
        left_batch: (0..batch).collect(),
        right_batch: other.batch.to_vec(),
        left_contract: if side == 0 { right_result } else { left_result },
        right_contract: other.free,
    };
    let product = e.dot(cotangent, operands[1 - side], product)?;

    // The product's axes are batch, my free axes, then the other's contracted axes in ascending order.
    let mut pairs: Vec<(usize, usize)> =
        other.contract.iter().copied().zip(mine.contract.iter().copied()).collect();
    pairs.sort_unstable();
    let contract = pairs.into_iter().map(|(_, mine)| mine);
    let order: Vec<usize> = mine.batch.iter().copied().chain(mine.free).chain(contract).collect();
    e.transpose(product, &inverse(&order))
}

/// The roles of one operand's axes.
struct Side<'a> {
    batch: &'a [usize],
    contract: &'a [usize],
    free: Vec<usize>,
}
