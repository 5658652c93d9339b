//! The tile machine: runs a [`tilewright_plan::Program`] over tiles of rows × columns elements.
//!
//! A program is compiled once per kernel ([`TileProgram::compile`]) and run for each tile
//! ([`TileProgram::run`]). Each of its instructions is a loop over the lanes of a tile, so the cost of
//! choosing the loop is shared by a thousand elements and no code need be generated.
//!
//! *Variance* says along which axes of the tile a value changes; it flows from the inputs to everything
//! computed from them. What is uniform, or changes along rows, columns or *diagonals* only (a function of
//! q − k, such as a relative position and whatever is read there), is computed once per tile into a short
//! vector; a row sees a diagonal vector one element further back than the row before does. Only what changes
//! along both axes in another way is computed for each element, a *strip* of a few rows
//! at a time, so that its registers stay in the first-level cache; registers whose lives do not overlap
//! share a buffer.
//!
//! An integer that changes by a constant from column to column is *linear* and is kept as its value in the
//! first column: `q − k + n` costs one instruction per row. A load whose indices are all linear moves along
//! its table by a constant stride, so it is a copy of a row.
//!
//! *Stages*: a program may be run in two calls, of which the second knows further inputs. Values that the
//! second needs from the first are kept for the whole tile in the [`Scratch`].

mod analysis;
mod compile;
mod convert;
mod execute;
mod load;
mod map;
mod operations;
#[cfg(test)]
mod tests;

use tilewright_ir::{DType, Scalar};

use crate::memory::Array;

pub use compile::TileProgram;
pub(crate) use convert::{Convert, Move, size};
pub use execute::Scratch;

/// Along which axes of a tile a value changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variance {
    /// Along none.
    Uniform,
    /// From row to row.
    Row,
    /// From column to column.
    Column,
    /// Along both, but not from an element to the one below and to the right of it.
    Diagonal,
    /// Along both.
    Full,
}

impl Variance {
    /// The variance of what is computed from both.
    pub fn join(self, other: Variance) -> Variance {
        let diagonal = |variance| matches!(variance, Variance::Uniform | Variance::Diagonal);
        if diagonal(self) && diagonal(other) {
            return if self == Variance::Uniform { other } else { self };
        }
        Variance::of(self.rows() || other.rows(), self.columns() || other.columns())
    }

    /// The variance of a value that changes along rows, and along columns, or not.
    pub fn of(rows: bool, columns: bool) -> Variance {
        match (rows, columns) {
            (false, false) => Variance::Uniform,
            (true, false) => Variance::Row,
            (false, true) => Variance::Column,
            (true, true) => Variance::Full,
        }
    }

    /// Whether it changes from row to row.
    pub fn rows(self) -> bool {
        matches!(self, Variance::Row | Variance::Diagonal | Variance::Full)
    }

    /// Whether it changes from column to column.
    pub fn columns(self) -> bool {
        matches!(self, Variance::Column | Variance::Diagonal | Variance::Full)
    }
}

/// What an input of a program is, known when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Feed {
    /// One number for the whole tile: [`Argument::Scalar`].
    Uniform,
    /// [`Argument::Scalar`] plus the number of the row, an integer.
    RowPosition,
    /// [`Argument::Scalar`] plus the number of the column, an integer.
    ColumnPosition,
    /// Elements in memory, which change along these axes: [`Argument::Array`]. Where they are diagonal, its two
    /// strides are opposite.
    Array(Variance, DType),
}

/// What feeds an input for one tile.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A number.
    Scalar(Scalar),
    /// Elements, the first of them that of row 0 and column 0, with the distances between neighbours in
    /// elements. Only those strides are looked at along which the feed changes.
    Array {
        /// The element of row 0 and column 0.
        data: *const u8,
        /// Elements from row to row.
        row_stride: isize,
        /// Elements from column to column; 1 is fastest.
        column_stride: isize,
    },
    /// Nothing: an input that belongs to the other stage.
    Absent,
}

/// Where a result goes.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Nowhere.
    Skip,
    /// To memory, converted to the element type. An array that is also an argument must be exactly that
    /// argument; others may not overlap.
    Array {
        /// The element of row 0 and column 0.
        data: *mut u8,
        /// Its type.
        dtype: DType,
        /// Elements from row to row.
        row_stride: isize,
        /// Elements from column to column; 1 is fastest.
        column_stride: isize,
    },
}

/// Which elements of a tile count, a byte each (0 or 1): where it is 0 a load reads nothing and gives 0.
#[derive(Clone, Copy, Debug)]
pub struct Live {
    /// The byte of row 0 and column 0.
    pub data: *const u8,
    /// Bytes from row to row.
    pub row_stride: isize,
}

/// Which part of a program to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// What does not depend on the late inputs; for a program without such, all of it.
    Early,
    /// The rest, for the same tile and scratch as the early stage before it.
    Late,
}

/// One tile to run a program over.
#[derive(Clone, Copy)]
pub struct Tile<'a> {
    /// Rows, at least 1.
    pub rows: usize,
    /// Columns, at least 1. Strips are of whole rows: a few thousand columns at most keep them in cache.
    pub columns: usize,
    /// What feeds each input.
    pub arguments: &'a [Argument],
    /// Where each result goes. Results of the other stage are not looked at.
    pub targets: &'a [Target],
    /// The tables that loads read.
    pub tables: &'a [Array],
    /// Which elements count; all if absent.
    pub live: Option<Live>,
}
