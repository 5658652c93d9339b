//! Derivatives of programs: reverse mode, forward mode, and the vectorisation that both build on.
//!
//! Everything is a transformation of [`tilewright_ir::Graph`]s: derivatives are appended to the program as
//! ordinary operations, so they are differentiated again, simplified and fused like any other. One rule per
//! operation ([`rules`]) serves programs and regions alike; the operations that hold regions differentiate
//! those with the same functions ([`attention`], [`scan`]).

#![forbid(unsafe_code)]

mod attention;
mod batch;
mod blocks;
mod dense;
mod dependence;
mod emit;
mod forward;
mod jacobian;
mod reverse;
mod rules;
mod scan;

pub use batch::batch;
pub use forward::forward;
pub use reverse::reverse;
