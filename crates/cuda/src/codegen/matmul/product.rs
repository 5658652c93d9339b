//! Matrix products as libraries know them: matrices whose columns lie one after the other, or their transposes, and a
//! batch of them at even distances. So a product of strided operands needs no copy, whichever axis of each is dense.

use tilewright_ir::DType;
use tilewright_plan::{MatMul, View};

use crate::codegen::Argument;

/// One operand: a matrix with dense columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// The first element of the first matrix.
    pub start: Argument,
    /// Whether the product reads the transpose of what is stored.
    pub transposed: bool,
    /// Elements from a stored column to the next.
    pub lead: i64,
    /// Elements from a matrix of the batch to the next.
    pub batch_stride: i64,
}

/// `output = first · second`, of `rows × depth` and `depth × columns`, for each of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Element type of all three. Half types are summed as `f32`.
    pub dtype: DType,
    /// Rows of `first` and `output`.
    pub rows: usize,
    /// Columns of `second` and `output`.
    pub columns: usize,
    /// The contracted extent.
    pub depth: usize,
    /// How many matrices each operand has.
    pub batch: usize,
    /// Left operand.
    pub first: Operand,
    /// Right operand.
    pub second: Operand,
    /// Result; not transposed.
    pub output: Operand,
}

/// Products that one matrix product may be made of; where it would be more, a kernel does it.
const MOST: usize = 16;

/// An axis, and how far each of left, right and output move along it.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    strides: [isize; 3],
}

/// The products that a matrix product is; none where its operands do not lie so, or there is nothing to add.
pub(super) fn products(matmul: &MatMul) -> Vec<Product> {
    lay_out(matmul).unwrap_or_default()
}

fn lay_out(matmul: &MatMul) -> Option<Vec<Product>> {
    let MatMul { batch, rows, columns, depth, dtype, left, right, output } = matmul;
    let supported = match dtype {
        DType::F64 | DType::F32 | DType::BF16 | DType::F16 => true,
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => false,
    };
    let results = batch.iter().product::<usize>() * rows * columns;
    if !supported || *depth == 0 || results == 0 {
        return None;
    }
    let of = |axis: usize| [left.strides[axis], right.strides[axis], output.strides[axis]];
    let mut outer: Vec<Axis> = Vec::new();
    for (axis, &extent) in batch.iter().enumerate().filter(|(_, extent)| **extent > 1) {
        let inner = Axis { extent, strides: of(axis) };
        match outer.last_mut() {
            Some(last) if (0..3).all(|i| last.strides[i] == inner.strides[i] * extent as isize) => {
                *last = Axis { extent: last.extent * extent, strides: inner.strides };
            }
            _ => outer.push(inner),
        }
    }
    let n = batch.len();
    let mut row = Axis { extent: *rows, strides: [left.strides[n], 0, output.strides[n]] };
    let mut column = Axis { extent: *columns, strides: [0, right.strides[n + 1], output.strides[n + 1]] };
    let (left_depth, right_depth) = (left.strides[n + 1], right.strides[n]);
    // Where one operand is the same for the whole batch, the batch is more rows, or more columns.
    if let Some(last) = outer.last().copied() {
        for (axis, shared) in [(&mut row, 1), (&mut column, 0)] {
            let follows = (0..3).all(|i| last.strides[i] == axis.strides[i] * axis.extent as isize);
            if last.strides[shared] == 0 && (follows || axis.extent == 1) {
                let strides = if axis.extent == 1 { last.strides } else { axis.strides };
                *axis = Axis { extent: axis.extent * last.extent, strides };
                outer.pop();
                break;
            }
        }
    }
    let inner = outer.pop().unwrap_or(Axis { extent: 1, strides: [0; 3] });
    let calls: usize = outer.iter().map(|axis| axis.extent).product();
    if calls > MOST {
        return None;
    }
    // A library's result has dense columns: ours, where its rows are dense, is the transposed product.
    let flip = column.strides[2] == 1 || column.extent == 1;
    let (m, n, first, second) = match flip {
        true => (column, row, (right, 1, right_depth), (left, 0, left_depth)),
        false => (row, column, (left, 0, left_depth), (right, 1, right_depth)),
    };
    let place = |view: &View, operand: usize, call: usize| {
        let mut rest = call;
        let mut elements = view.offset;
        for axis in outer.iter().rev() {
            elements += (rest % axis.extent) as isize * axis.strides[operand];
            rest /= axis.extent;
        }
        Argument::Buffer { buffer: view.buffer, bytes: elements * dtype.size() as isize }
    };
    let make = |call: usize| {
        let (view, i, depth_stride) = first;
        let k = (*depth, depth_stride);
        let left = operand(place(view, i, call), (m.extent, m.strides[i]), k, inner.strides[i])?;
        let (view, i, depth_stride) = second;
        let k = (*depth, depth_stride);
        let right = operand(place(view, i, call), k, (n.extent, n.strides[i]), inner.strides[i])?;
        let result = operand(
            place(output, 2, call),
            (m.extent, m.strides[2]),
            (n.extent, n.strides[2]),
            inner.strides[2],
        )?;
        (!result.transposed).then_some(Product {
            dtype: *dtype,
            rows: m.extent,
            columns: n.extent,
            depth: *depth,
            batch: inner.extent,
            first: left,
            second: right,
            output: result,
        })
    };
    (0..calls).map(make).collect()
}

/// A matrix of some rows and columns (each with its stride) as one with dense columns, or as the transpose of one.
fn operand(
    start: Argument,
    rows: (usize, isize),
    columns: (usize, isize),
    batch_stride: isize,
) -> Option<Operand> {
    let dense = |along: (usize, isize), across: (usize, isize)| {
        let lead = if across.0 == 1 { along.0 as isize } else { across.1 };
        ((along.1 == 1 || along.0 == 1) && lead >= along.0 as isize).then_some(lead as i64)
    };
    let (transposed, lead) = match dense(rows, columns) {
        Some(lead) => (false, lead),
        None => (true, dense(columns, rows)?),
    };
    Some(Operand { start, transposed, lead, batch_stride: batch_stride as i64 })
}

#[cfg(test)]
mod tests {
    use tilewright_plan::BufferId;

    use super::*;

    fn view(buffer: usize, strides: &[isize]) -> View {
        View { buffer: BufferId(buffer), offset: 3, strides: strides.to_vec() }
    }

    /// What a library computes, on operands whose elements are distinct numbers.
    fn evaluate(products: &[Product], operands: [&[f64]; 2], results: usize) -> Vec<f64> {
        let mut output = vec![0.0; results];
        for product in products {
            let place = |operand: &Operand, batch: usize, row: usize, column: usize| {
                let Argument::Buffer { bytes, .. } = operand.start else { panic!("a buffer") };
                let (along, across) = if operand.transposed { (column, row) } else { (row, column) };
                (bytes / 8) as usize
                    + batch * operand.batch_stride as usize
                    + along
                    + across * operand.lead as usize
            };
            let of = |operand: &Operand| match operand.start {
                Argument::Buffer { buffer, .. } => operands[buffer.0],
                _ => panic!("a buffer"),
            };
            for batch in 0..product.batch {
                for row in 0..product.rows {
                    for column in 0..product.columns {
                        let sum = (0..product.depth)
                            .map(|k| {
                                of(&product.first)[place(&product.first, batch, row, k)]
                                    * of(&product.second)[place(&product.second, batch, k, column)]
                            })
                            .sum();
                        output[place(&product.output, batch, row, column)] = sum;
                    }
                }
            }
        }
        output
    }

    /// What the definition says.
    fn define(matmul: &MatMul, operands: [&[f64]; 2], results: usize) -> Vec<f64> {
        let mut output = vec![0.0; results];
        let count: usize = matmul.batch.iter().product();
        for batch in 0..count {
            let at = |view: &View, row: usize, column: usize| {
                let (mut rest, mut place) = (batch, view.offset);
                for axis in (0..matmul.batch.len()).rev() {
                    place += (rest % matmul.batch[axis]) as isize * view.strides[axis];
                    rest /= matmul.batch[axis];
                }
                let last = &view.strides[matmul.batch.len()..];
                (place + row as isize * last[0] + column as isize * last[1]) as usize
            };
            for row in 0..matmul.rows {
                for column in 0..matmul.columns {
                    let terms = (0..matmul.depth).map(|k| {
                        operands[0][at(&matmul.left, row, k)] * operands[1][at(&matmul.right, k, column)]
                    });
                    output[at(&matmul.output, row, column)] = terms.sum();
                }
            }
        }
        output
    }

    /// Whether the products are the matrix product; how many there are, and the batch of each.
    #[track_caller]
    fn check(batch: &[usize], sizes: [usize; 3], strides: [&[isize]; 3], expected: (usize, usize)) {
        let matmul = MatMul {
            batch: batch.to_vec(),
            rows: sizes[0],
            columns: sizes[1],
            depth: sizes[2],
            dtype: DType::F64,
            left: view(0, strides[0]),
            right: view(1, strides[1]),
            output: view(2, strides[2]),
        };
        let products = products(&matmul);
        assert_eq!((products.len(), products.first().map_or(0, |product| product.batch)), expected);
        if products.is_empty() {
            return;
        }
        let operands = [1.0, 7.0].map(|step| (0..4000).map(|i| (i as f64 * step) % 97.0).collect::<Vec<_>>());
        let operands = [&operands[0][..], &operands[1][..]];
        assert!(evaluate(&products, operands, 4000) == define(&matmul, operands, 4000));
    }

    #[test]
    fn either_axis_of_each_operand_may_be_dense() {
        for left in [[5, 1], [1, 4]] {
            for right in [[3, 1], [1, 5]] {
                for output in [[3, 1], [1, 4], [8, 1]] {
                    check(&[], [4, 3, 5], [&left, &right, &output], (1, 1));
                }
            }
        }
    }

    #[test]
    fn a_batch_that_shares_its_right_operand_is_more_rows() {
        check(&[6], [4, 3, 5], [&[20, 5, 1], &[0, 3, 1], &[12, 3, 1]], (1, 1));
        check(&[2, 3], [4, 3, 5], [&[60, 20, 5, 1], &[0, 0, 3, 1], &[36, 12, 3, 1]], (1, 1));
        check(&[6], [1, 3, 5], [&[5, 99, 1], &[0, 3, 1], &[3, 99, 1]], (1, 1));
    }

    #[test]
    fn even_batches_are_one_call_and_others_some() {
        check(&[2, 3], [4, 3, 5], [&[60, 20, 5, 1], &[45, 15, 3, 1], &[36, 12, 3, 1]], (1, 6));
        check(&[2, 3], [4, 3, 5], [&[20, 40, 5, 1], &[45, 15, 3, 1], &[36, 12, 3, 1]], (2, 3));
        check(&[6], [4, 3, 5], [&[0, 5, 1], &[15, 3, 1], &[12, 3, 1]], (1, 6));
    }

    #[test]
    fn vectors_are_matrices_of_one_row_or_column() {
        check(&[], [1, 3, 5], [&[77, 1], &[3, 1], &[77, 1]], (1, 1));
        check(&[], [4, 1, 5], [&[5, 1], &[1, 77], &[1, 77]], (1, 1));
        check(&[], [4, 1, 5], [&[5, 1], &[2, 77], &[2, 77]], (1, 1));
        check(&[], [4, 3, 1], [&[1, 77], &[77, 1], &[3, 1]], (1, 1));
    }

    #[test]
    fn what_a_library_does_not_know_is_left_to_the_kernel() {
        check(&[], [4, 3, 5], [&[5, -1], &[3, 1], &[3, 1]], (0, 0));
        check(&[], [4, 3, 5], [&[10, 2], &[3, 1], &[3, 1]], (0, 0));
        check(&[], [4, 3, 5], [&[0, 1], &[3, 1], &[3, 1]], (0, 0));
        check(&[], [4, 3, 0], [&[5, 1], &[3, 1], &[3, 1]], (0, 0));
    }
}
