//! The intermediate representation: what every other stage reads and writes.
//!
//! A program is one [`Graph`]: operations in static single assignment form, in an arena, each after
//! its operands. Every value has a static [`Type`]: an element type and a shape. Higher-order
//! operations (attention, scans) hold *regions*, which are graphs of their own: isolated from above,
//! so that whatever a region reads from outside is an explicit operand of its operation (a *capture*)
//! and a parameter of the region. Nothing is found by name.
//!
//! Evaluation is pure. No operation has a side effect, reads a clock or depends on the order in which
//! others run; random numbers are functions of a key and a counter. The one partial operation is
//! [`Op::Gather`], whose index may be out of range; that is an error of the run.
//!
//! The text form ([`Graph`]'s `Display`, and [`parse`]) prints and reads everything but origins.

#![forbid(unsafe_code)]

mod error;
mod graph;
mod infer;
mod lexer;
mod literal;
mod op;
mod parse;
mod print;
mod types;
mod verify;

pub use error::{Error, ErrorKind, Result};
pub use graph::{Graph, Node, NodeId, Origin, Value, ValueDefinition};
pub use infer::infer;
pub use literal::{Literal, Scalar};
pub use op::{
    AssociativeScan, Binary, Compare, Contribution, DotAxes, FlexAttention, FlexAttentionBackward, Op,
    Reduction, Unary,
};
pub use parse::parse;
pub use types::{DType, Type, element_count};
pub use verify::verify;
