//! Matrix products and scattered sums.

use tilewright_ir::{DType, Origin};

use crate::View;

/// `output[batch…, i, j] = Σₖ left[batch…, i, k] · right[batch…, k, j]`. Narrow floats accumulate in `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct MatMul {
    /// Extents of the batch axes.
    pub batch: Vec<usize>,
    /// Rows of `left` and `output`.
    pub rows: usize,
    /// Columns of `right` and `output`.
    pub columns: usize,
    /// The contracted extent.
    pub depth: usize,
    /// Element type of all three.
    pub dtype: DType,
    /// `[batch…, rows, depth]`.
    pub left: View,
    /// `[batch…, depth, columns]`.
    pub right: View,
    /// `[batch…, rows, columns]`.
    pub output: View,
}

/// `output = 0`, then for each `i` of the index space in row-major order and each `j` of the tail:
/// `output[index₀[i], index₁[i], …, j] += updates[i, j]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ScatterAdd {
    /// Extents of the index space.
    pub space: Vec<usize>,
    /// Extents of the output's indexed axes.
    pub indexed: Vec<usize>,
    /// Extents of the remaining axes.
    pub tail: Vec<usize>,
    /// One integer array for each indexed axis, over the index space.
    pub indices: Vec<(View, DType)>,
    /// Element type of updates and output.
    pub dtype: DType,
    /// `[space…, tail…]`.
    pub updates: View,
    /// `[indexed…, tail…]`, packed.
    pub output: View,
    /// The user's line, for an index out of range.
    pub origin: Option<Origin>,
}
