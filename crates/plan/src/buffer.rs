//! Buffers, and how kernels look at them.

use tilewright_ir::{DType, Literal, Origin};

/// A buffer of a plan: an index into [`crate::Plan::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub usize);

/// A one-dimensional run of elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// Element type.
    pub dtype: DType,
    /// How many elements it has; for an input, how many its views reach over.
    pub elements: usize,
    /// Where its elements are.
    pub place: Place,
}

/// Where a buffer's elements are.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// The program's input of this number; never written.
    Input(usize),
    /// The program's output of this number, packed.
    Output(usize),
    /// Constant data, packed.
    Constant(Literal),
    /// The arena, from this byte on (a multiple of 64); shared with buffers that live at other times.
    Arena(usize),
}

/// A strided look at a buffer: element (i, j, …) of the space it is seen in is the buffer's element
/// `offset + i·strides[0] + j·strides[1] + …`. A stride of 0 repeats.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The buffer.
    pub buffer: BufferId,
    /// The element at the origin.
    pub offset: isize,
    /// Elements between neighbours along each axis.
    pub strides: Vec<isize>,
}

/// An array that a program reads at computed indices ([`crate::Operation::Load`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Where it is, one stride an axis.
    pub view: View,
    /// Its element type.
    pub dtype: DType,
    /// Extent of each axis.
    pub shape: Vec<usize>,
    /// What to call it in an error, as the user would.
    pub name: String,
    /// The user's line.
    pub origin: Option<Origin>,
}
