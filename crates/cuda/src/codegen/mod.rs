//! From plans to CUDA C++ text and launches: pure, and tested without a GPU.
//!
//! The engines, one for each kind of kernel, are CUDA C++ by hand, under `engines/`. What is generated is what
//! stands above an engine in a kernel's text: its constants, its [`Parameters`] and the user's functions as
//! device functions ([`region`]). An engine asks for the machine by the functions of `engines/machine.cuh` only;
//! other definitions of these run the same text elsewhere, as the tests do on the CPU.

mod attention;
mod block_map;
mod functions;
mod intervals;
mod launch;
mod loops;
mod matmul;
mod parameters;
pub mod ranges;
pub mod region;
mod scan;
mod scatter;
mod stages;
pub mod tiles;
mod types;

pub use launch::{Launch, Program, Source, Step, Target, fault, lower};
pub use matmul::{Operand, Product};
pub use parameters::{Argument, Parameters};
pub use region::Site;

/// What every kernel's text begins with on a GPU: see [`Source::text`].
pub const MACHINE: &str = include_str!("../engines/machine.cuh");

/// What texts need beside it whose warps have different work.
const MACHINE_BARRIERS: &str = include_str!("../engines/machine_barriers.cuh");

const ARITHMETIC: &str = include_str!("../engines/arithmetic.cuh");
const FRAGMENTS: &str = include_str!("../engines/fragments.cuh");
