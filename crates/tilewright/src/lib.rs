//! Attention and scans that are written as ordinary functions, traced, differentiated and compiled, with the
//! whole model they stand in, to fused kernels.
//!
//! ```
//! use tilewright::prelude::*;
//!
//! /// Causal attention with a learned bias for each head and relative position.
//! fn attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor {
//!     let last = k.dim(2) as i64 - 1;
//!     flex_attention(&q, &k, &v)
//!         .score(|s, at| s + bias.at([at.head, at.query - at.key + last])) // captured by using it
//!         .mask(|at| at.query.ge(at.key))
//!         .call()
//! }
//!
//! // One training step, compiled to one program: the loss, and the bias moved against its gradient.
//! let step = compile(|(x, bias): (Tensor, Tensor)| {
//!     let (loss, gradient) = value_and_grad(|bias: &Tensor| (attend(x, x, x, *bias) - x).square().mean(..))(&bias);
//!     (loss, bias - 0.5 * gradient)
//! });
//!
//! let x = Array::from_fn([1, 2, 16, 8], |i| ((3 * i[1] + 5 * i[2] + 7 * i[3]) as f32).sin())?;
//! let mut bias = Array::zeros(DType::F32, [2, 31])?;
//! let mut losses = Vec::new();
//! for _ in 0..20 {
//!     let (loss, moved) = step.call((&x, &bias))?;
//!     losses.push(loss.item::<f32>()?);
//!     bias = moved;
//! }
//! assert!(losses[19] < losses[0]);
//! println!("{}", step.explain());
//! # Ok::<(), Error>(())
//! ```
//!
//! A [`Tensor`] is a traced value, an [`Array`] a real one. [`compile`] makes a function on arrays out of a
//! function on tensors; [`grad`] and its kin differentiate inside of one. Models are structs with
//! `#[derive(Tree)]`. Errors surface from `call`, with the line of the call that is at fault.

#![forbid(unsafe_code)]

extern crate self as tilewright;

mod array;
mod check_associative;
mod compile;
mod device;
mod differentiate;
mod element;
mod explain;
pub mod optimizers;
pub mod pipeline;
mod profile;
mod weights;

/// Derives [`tree::Tree`] and [`tree::MapLeaves`] for a struct or enum whose first type parameter is its leaf.
///
/// Fields are subtrees (leaves, tensors' containers, other trees), but for those marked `#[tree(static)]`,
/// which are plain data with `Debug` and `Clone`.
///
/// ```
/// use tilewright::prelude::*;
///
/// #[derive(Tree)]
/// struct Linear<L> {
///     weight: L,
///     bias: Option<L>,
///     #[tree(static)]
///     name: String,
/// }
///
/// let layer = Linear { weight: Array::zeros(DType::F32, [2, 2])?, bias: None, name: "first".into() };
/// let apply = compile(|(layer, x): (Linear<Tensor>, Tensor)| x.matmul(layer.weight));
/// let y = apply.call((&layer, &Array::zeros(DType::F32, [5, 2])?))?;
/// assert_eq!(y.shape(), [5, 2]);
/// # Ok::<(), Error>(())
/// ```
pub use tilewright_derive::Tree;

pub use array::Array;
pub use check_associative::{Counterexample, check_associative};
pub use compile::{Compiled, compile};
pub use device::{Device, to_device};
pub use differentiate::{grad, jvp, value_and_grad, value_and_grad_with, vjp};
pub use element::Element;
pub use half::{bf16, f16};
pub use profile::{Profile, Span};
pub use tilewright_ir::{DType, Error, ErrorKind, Graph, Origin, Result, Scalar, Type};
pub use tilewright_trace::{
    At, Axes, Dims, FlexAttention, Indices, Key, Operand, REST, Scan, Tensor, TensorTree, arange,
    associative_scan, concatenate, constant, cross_entropy, einsum, eye, flex_attention, full, iota,
    linear_recurrence, mods, ones, select, stack, tree, zeros,
};
pub use weights::{load, save};

/// What most programs use.
pub mod prelude {
    pub use crate::{
        Array, At, DType, Device, Error, Key, REST, Result, Tensor, Tree, arange, associative_scan, compile,
        concatenate, cross_entropy, einsum, flex_attention, full, grad, iota, jvp, linear_recurrence, mods,
        ones, optimizers, select, stack, to_device, value_and_grad, value_and_grad_with, vjp, zeros,
    };
}

/// The README's example, compiled and run as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
