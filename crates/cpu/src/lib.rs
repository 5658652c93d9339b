//! Runs a plan on the CPU.
//!
//! No code is generated at run time: a program becomes a list of SIMD loops over tiles that stay in the
//! first-level cache ([`tile`]), so that compiling costs microseconds. An engine per kind of kernel walks
//! memory in tiles and calls it.
//!
//! Results do not depend on the number of threads: work is split by sizes only, and every sum has one order.
//!
//! Unsafe code stands where memory is read through checked views ([`memory`]), where a loop is compiled
//! for an instruction set ([`isa`]), and in the kernels.

mod attention;
mod block_map;
pub mod ceiling;
pub mod clock;
mod context;
pub mod isa;
mod loops;
mod math;
mod matmul;
pub mod memory;
mod run;
mod scan;
mod scatter;
pub mod tile;

pub use block_map::{Blocks, Run, block_map};
pub use context::Context;
pub use isa::Isa;
pub use run::{profile, run, run_with};
