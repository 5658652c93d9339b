//! The reference interpreter: what every operation of `tilewright_ir` means, in plain loops.
//!
//! Everything else in the project is tested against it, so it prefers the shortest true statement of an
//! operation over speed, and shares no code with the engines. Its transcendental functions are those of the
//! `libm` crate, so that it gives the same bits on every machine.
//!
//! [`Precision::Exact`] is the golden reference: floats are `f64` throughout, whatever their declared type.
//! [`Precision::Typed`] is the yardstick of tolerances: a plain, unfused evaluation that rounds the result of
//! each operation to its declared type.

#![forbid(unsafe_code)]

mod array;
mod attention;
mod elements;
mod evaluator;
mod gradient;
mod indexing;
mod movement;
mod operation;
mod random;
mod reduction;
mod rounding;
mod scan;

pub use array::Array;
pub use random::philox;

use evaluator::Evaluator;
use tilewright_ir::{Error, Graph, Result};

/// How floats are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// All in `f64`; the elements of the results are not rounded to the results' types.
    Exact,
    /// Each operation's result rounded to its declared type; sums of narrow floats are kept in `f32`.
    /// Attention is the unfused sequence: scores, probabilities and their gradients are rounded to the type
    /// of the query before each matrix product, and are in the score type elsewhere.
    Typed,
    /// As [`Precision::Typed`], but each rounding goes up or down at random, the likelier the nearer, and right on
    /// the average (Parker, Monte Carlo arithmetic, 1997). One typed evaluation may be close to the exact one by
    /// luck, a single number that is a sum of much larger ones above all; the errors for several seeds tell how
    /// large they are wont to be.
    Sampled(u64),
}

/// Evaluates a graph: one array for each parameter gives one for each result.
///
/// # Errors
/// [`Error`]s of kind `Shape` or `DType` where an input's type is not its parameter's, of kind `Index` where
/// a gather reads outside its array, of kind `OutOfMemory` where a value does not fit.
pub fn run(graph: &Graph, inputs: &[Array], precision: Precision) -> Result<Vec<Array>> {
    let parameters = graph.parameter_types();
    if inputs.len() != parameters.len() {
        return Err(Error::shape("inputs", parameters.len(), inputs.len()));
    }
    let mut evaluator = Evaluator::new(graph, precision, &vec![0; inputs.len()])?;
    for (i, (input, expected)) in inputs.iter().zip(parameters).enumerate() {
        if input.ty() != expected {
            return Err(Error::shape(format!("input {i}"), expected, input.ty()));
        }
        evaluator.set(i, input);
    }
    evaluator.run(0)?;
    Ok((0..graph.results().len()).map(|i| evaluator.result(i).clone()).collect())
}
