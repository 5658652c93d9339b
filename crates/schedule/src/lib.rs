//! From a graph to a plan: simplify, fuse, analyse index maps, plan buffers.
//!
//! [`simplify`] rewrites a graph to a smaller one that means the same. [`lower`] groups its operations
//! into kernels, lowers the higher-order ones, and gives every array a place.

#![forbid(unsafe_code)]

mod access;
mod arrays;
mod attention;
mod buffers;
mod builder;
mod contraction;
mod elementwise;
mod emit;
mod fuse;
mod lower;
mod normalise;
mod operand;
mod parts;
pub(crate) mod region;
mod scan;
mod simplify;

pub use attention::block_map;
pub use lower::{Layout, lower};
pub(crate) use operand::Operand;
pub use simplify::simplify;
