//! From a graph to a plan: simplify, fuse, analyse index maps, plan buffers.
//!
//! [`simplify`] rewrites a graph to a smaller one that means the same. [`lower`] groups its operations
//! into kernels, lowers the higher-order ones, and gives every array a place.

#![forbid(unsafe_code)]

mod attention;
mod builder;
mod elementwise;
mod operand;
pub(crate) mod region;
mod scan;

pub(crate) use operand::Operand;
