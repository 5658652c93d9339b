//! Traced values: plain Rust closures over [`Tensor`] record themselves into an [`ir`](tilewright_ir) graph.
//!
//! [`trace`] opens a recording, calls the function once with tensors that stand for its inputs, and closes
//! it again. A [`Tensor`] is a small copyable name of a value of that recording; operators and methods on it
//! append operations. The functions inside a higher-order operation (a score function, a mask, a combine)
//! are traced the same way into a graph of their own, and whatever they use from outside becomes a
//! *capture*: an operand of the operation and a parameter of the region.
//!
//! Building never fails in the middle of a function: the first error is kept with the user's line, the
//! value is *poisoned* (it has a best-guess type and records nothing), and [`trace`] returns the error.

#![forbid(unsafe_code)]

#[macro_use]
mod recording;
mod arguments;
mod attention;
mod create;
mod elementwise;
mod index;
mod linear;
pub mod mods;
mod nn;
mod operators;
mod random;
mod reduce;
mod scan;
mod shape;
mod tensor;
pub mod tree;

pub use arguments::{Axes, Dims, REST};
pub use attention::{At, FlexAttention, flex_attention};
pub use create::{arange, constant, eye, full, iota, ones, zeros};
pub use elementwise::select;
pub use index::Indices;
pub use linear::einsum;
pub use nn::cross_entropy;
pub use random::Key;
pub use recording::{Traced, append, trace};
pub use scan::{Scan, associative_scan, linear_recurrence};
pub use shape::{concatenate, stack};
pub use tensor::{Operand, Tensor};
pub use tree::TensorTree;
