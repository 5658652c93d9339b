//! Fused loop nests: element-wise work, reductions, and chains of both over one row (softmax, layer norm,
//! cross entropy and their gradients).
//!
//! Meaning: for each index of the parallel axes, in any order: the phases one after the other, each over
//! the whole row. Which axis the machine's lanes run along changes nothing of the meaning.

use tilewright_ir::{DType, Scalar};

use crate::{Program, Table, View};

/// A fused loop nest. *Axes* below are the parallel axes followed by the row's axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Loops {
    /// Extents of the parallel axes, outermost first; may be none.
    pub parallel: Vec<usize>,
    /// Extents of the row's axes, outermost first; may be none, which is one element.
    pub row: Vec<usize>,
    /// What is done with the row.
    pub phases: Vec<Phase>,
    /// How many numbers each row carries from phase to phase ([`Source::RowScalar`]).
    pub row_scalars: usize,
    /// How many whole rows of numbers are carried from phase to phase ([`Source::RowValue`]).
    pub row_values: usize,
    /// The arrays that the programs read at computed indices.
    pub tables: Vec<Table>,
    /// Which axis lanes run along.
    pub lanes: Lanes,
}

/// Which axis the lanes of the machine run along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// The row's innermost axis.
    Row,
    /// The innermost parallel axis: for sums over leading axes.
    Parallel,
}

/// One pass over a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// Whether it runs once per row (with the row's axes at 0) instead of once per element.
    pub once: bool,
    /// The code, whose input i is `sources[i]`.
    pub program: Program,
    /// What feeds the program.
    pub sources: Vec<Source>,
    /// What becomes of the program's results, in order.
    pub sinks: Vec<Sink>,
}

/// What feeds an input of a phase's program.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// An element of a buffer, one stride per axis. Elements outside `valid` are not read.
    Load {
        /// Where.
        view: View,
        /// Element type.
        dtype: DType,
        /// For each axis the half-open range of positions that are read, and what stands elsewhere.
        valid: Option<(Vec<(usize, usize)>, Scalar)>,
    },
    /// The position along this axis, `I64`.
    Index(usize),
    /// A number of the row that an earlier phase made.
    RowScalar(usize),
    /// An element of a row that an earlier phase made.
    RowValue(usize),
}

/// What becomes of a result of a phase's program.
#[derive(Clone, Debug, PartialEq)]
pub enum Sink {
    /// Stored to a buffer, one stride per axis (0 along the row where the phase runs once).
    Store {
        /// Where.
        view: View,
        /// Element type.
        dtype: DType,
    },
    /// Combined over the row into a number of the row.
    Reduce {
        /// How.
        kind: RowReduction,
        /// Which number of the row.
        scalar: usize,
    },
    /// Becomes a number of the row, in a phase that runs once.
    RowScalar(usize),
    /// Kept for later phases.
    RowValue(usize),
}

/// How a row is reduced. Sums of `F32` are kept in `F32`, in an order that depends on sizes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowReduction {
    /// Sum.
    Sum,
    /// Product.
    Prod,
    /// Greatest; NaN if any is. Of `Bool`: any.
    Max,
    /// Least; NaN if any is. Of `Bool`: all.
    Min,
    /// Row-major position of the first greatest, `I64`; NaN counts as greatest.
    ArgMax,
}
