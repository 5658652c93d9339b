//! Derivatives of programs: reverse mode, forward mode, and the vectorisation that both build on.
//!
//! Everything is a transformation of [`tilewright_ir::Graph`]s: derivatives are appended to the program as
//! ordinary operations, so they are differentiated again, simplified and fused like any other. One rule per
//! operation (`rules`) serves programs and regions alike; the operations that hold regions differentiate
//! those with the same functions (`attention`, `scan`).
//!
//! What derivatives cost. Reverse mode is linear in the nodes. The gradient of attention is one operation
//! that keeps nothing but the output and the log-sum-exp; its forward mode and its second derivatives are
//! dense, with memory in the product of both lengths (`dense`). The gradient of a scan is another scan, in
//! memory linear in its length (`scan`, `jacobian`), and so are all its further derivatives.

#![forbid(unsafe_code)]

mod attention;
mod batch;
mod blocks;
mod dense;
mod dependence;
mod emit;
mod forward;
mod insert;
mod jacobian;
mod reverse;
mod rules;
mod scan;

pub use batch::batch;
pub use forward::forward;
pub use reverse::reverse;
