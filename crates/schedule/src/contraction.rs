//! From a contraction to a batch of matrix products.

use tilewright_ir::{DotAxes, Value};
use tilewright_plan::{MatMul, View};

use crate::access::{packed, reshape_strides};
use crate::arrays::Arrays;

/// The axes of one side of a contraction.
pub(crate) struct Side {
    pub batch: Vec<usize>,
    pub free: Vec<usize>,
    pub contract: Vec<usize>,
}

/// The axes of both sides, whose operands have these ranks.
pub(crate) fn sides(axes: &DotAxes, ranks: [usize; 2]) -> [Side; 2] {
    [
        Side {
            batch: axes.left_batch.clone(),
            free: axes.left_free(ranks[0]),
            contract: axes.left_contract.clone(),
        },
        Side {
            batch: axes.right_batch.clone(),
            free: axes.right_free(ranks[1]),
            contract: axes.right_contract.clone(),
        },
    ]
}

impl Side {
    /// Whether the free axes are like one axis in memory, and the contracted ones too.
    pub fn is_matrix(&self, shape: &[usize], strides: &[isize]) -> bool {
        [&self.free, &self.contract].iter().all(|axes| merged(shape, strides, axes).is_some())
    }

    /// Its axes with those of a matrix last: batch, free, contracted.
    pub fn order(&self) -> Vec<usize> {
        [&self.batch[..], &self.free, &self.contract].concat()
    }

    /// The same side once its axes are in that order.
    pub fn ordered(&self) -> Side {
        let (batch, free) = (self.batch.len(), self.batch.len() + self.free.len());
        let rank = free + self.contract.len();
        Side { batch: (0..batch).collect(), free: (batch..free).collect(), contract: (free..rank).collect() }
    }
}

/// The stride of some axes seen as one, in the given order.
fn merged(shape: &[usize], strides: &[isize], axes: &[usize]) -> Option<isize> {
    let extents: Vec<usize> = axes.iter().map(|&axis| shape[axis]).collect();
    let strides: Vec<isize> = axes.iter().map(|&axis| strides[axis]).collect();
    Some(reshape_strides(&extents, &strides, &[extents.iter().product()])?[0])
}

/// Lowers a contraction whose two sides are matrices in memory.
pub(crate) fn lower(arrays: &Arrays, axes: &DotAxes, operands: &[Value], result: Value) -> MatMul {
    let shapes = [arrays.shape(operands[0]), arrays.shape(operands[1])];
    let sides = sides(axes, shapes.map(|shape| shape.len()));
    let extent = |i: usize, axes: &[usize]| axes.iter().map(|&axis| shapes[i][axis]).product::<usize>();
    let matrix = |i: usize, last: [&[usize]; 2]| -> View {
        let view = arrays.view(operands[i]);
        let merged =
            |axes| merged(shapes[i], &view.strides, axes).expect("the side of a normalised contraction");
        let mut strides: Vec<isize> = sides[i].batch.iter().map(|&axis| view.strides[axis]).collect();
        strides.extend(last.map(merged));
        View { strides, ..view }
    };
    let batch: Vec<usize> = sides[0].batch.iter().map(|&axis| shapes[0][axis]).collect();
    let (rows, columns) = (extent(0, &sides[0].free), extent(1, &sides[1].free));
    let mut output = arrays.view(result);
    output.strides = packed(&[&batch[..], &[rows, columns]].concat());
    MatMul {
        rows,
        columns,
        depth: extent(0, &sides[0].contract),
        dtype: arrays.dtype(result),
        left: matrix(0, [&sides[0].free, &sides[0].contract]),
        right: matrix(1, [&sides[1].contract, &sides[1].free]),
        output,
        batch,
    }
}
