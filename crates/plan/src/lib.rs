//! The plan: what the back ends consume.
//!
//! A [`Plan`] is a list of buffers and an ordered list of [`Kernel`]s of a few closed kinds. A kernel says
//! what is computed, in which tiles, over which views of buffers; the code that a user wrote stands in it
//! as a [`Program`]: straight-line, typed, scalar code that runs once for each element of a tile.
//!
//! A plan holds no closures, no graph and no names: it prints, compares and could be stored.

#![forbid(unsafe_code)]

pub mod attention;
pub mod buffer;
mod effects;
pub mod evaluate;
pub mod loops;
pub mod matmul;
mod print;
pub mod program;
pub mod scan;
mod verify;

pub use attention::{AttentionBackward, AttentionForward, BlockMap};
pub use buffer::{Buffer, BufferId, Place, Table, View};
pub use loops::Loops;
pub use matmul::{MatMul, ScatterAdd};
pub use program::{Instruction, Kind, Operation, Program, Register};
pub use scan::Scan;
pub use verify::verify;

/// A compiled program, for any back end.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Every array that a kernel reads or writes.
    pub buffers: Vec<Buffer>,
    /// The kernels, in the order of their effects.
    pub kernels: Vec<Kernel>,
    /// How many block maps the kernels make and read.
    pub block_maps: usize,
    /// Bytes of the arena that [`Place::Arena`] buffers share.
    pub arena_bytes: usize,
}

/// One kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Kernel {
    /// Fused element-wise work and reductions.
    Loops(Loops),
    /// A batch of matrix products.
    MatMul(MatMul),
    /// Sums of updates at computed places.
    ScatterAdd(ScatterAdd),
    /// The blocks that a mask leaves.
    BlockMap(BlockMap),
    /// Attention.
    AttentionForward(AttentionForward),
    /// Gradient of attention.
    AttentionBackward(Box<AttentionBackward>),
    /// A scan.
    Scan(Scan),
}
