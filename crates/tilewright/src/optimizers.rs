//! Optimisers and learning rate schedules, as functions on traced trees: a training step with its update
//! compiles to one program.
//!
//! ```
//! use tilewright::optimizers::{AdamState, adamw, clip_by_global_norm, cosine};
//! use tilewright::prelude::*;
//!
//! let step = compile(|(w, state): (Tensor, AdamState<Tensor>)| {
//!     let (loss, gradient) = value_and_grad(|w: &Tensor| (w - 3.0).square().sum(..))(&w);
//!     let (gradient, _) = clip_by_global_norm(gradient, 1.0);
//!     let rate = cosine(state.step, 0.5, 5, 60);
//!     let (w, state) = adamw(rate).weight_decay(0.0).update(w, state, gradient);
//!     (loss, w, state)
//! });
//! let mut w = Array::zeros(DType::F32, [4])?;
//! let mut state = AdamState::new(&w)?;
//! for _ in 0..60 {
//!     (_, w, state) = step.call((&w, &state))?;
//! }
//! assert!(w.to_vec::<f32>()?.iter().all(|x| (x - 3.0).abs() < 0.2));
//! # Ok::<(), Error>(())
//! ```

use std::collections::BTreeMap;

use tilewright_trace::tree::{leaves, map_leaves};
use tilewright_trace::{Operand, Tensor, TensorTree, full, select, zeros};

use crate::tree::Tree;
use crate::{Array, DType, Result};

/// The gradient of each leaf of a model, in the order of its leaves.
fn gradients<T: TensorTree>(gradients: &T) -> std::vec::IntoIter<Tensor> {
    leaves(gradients).into_iter().map(|(_, tensor)| tensor).collect::<Vec<_>>().into_iter()
}

/// Zeros for each floating leaf, `f32` for narrower ones, by path.
fn zeros_by_path<T: Tree<Array>>(model: &T) -> Result<BTreeMap<String, Array>> {
    let floats = leaves(model).into_iter().filter(|(_, leaf)| leaf.dtype().is_float());
    floats
        .map(|(path, leaf)| Ok((path.to_string(), Array::zeros(leaf.dtype().accumulator(), leaf.shape())?)))
        .collect()
}

/// The rate as a tensor of `dtype`.
#[track_caller]
fn rate_as(rate: Operand, dtype: DType) -> Tensor {
    full((), rate, dtype)
}

/// Stochastic gradient descent. See [`sgd`].
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    rate: Operand,
    momentum: f64,
}

/// What [`Sgd`] carries from step to step.
#[derive(Clone, Debug, tilewright::Tree)]
pub struct SgdState<L> {
    /// The running direction of each floating leaf, by its path.
    pub velocity: BTreeMap<String, L>,
}

/// Stochastic gradient descent: `x − rate · velocity`, where `velocity ← momentum · velocity + gradient`.
pub fn sgd(rate: impl Into<Operand>) -> Sgd {
    Sgd { rate: rate.into(), momentum: 0.0 }
}

impl SgdState<Array> {
    /// The state before the first step.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new<T: Tree<Array>>(model: &T) -> Result<SgdState<Array>> {
        Ok(SgdState { velocity: zeros_by_path(model)? })
    }
}

impl Sgd {
    /// Sets the share of the velocity that stays; 0 where not given.
    #[must_use]
    pub fn momentum(mut self, momentum: f64) -> Sgd {
        self.momentum = momentum;
        self
    }

    /// The model and the state after one step. Leaves that are no floats stay.
    #[track_caller]
    pub fn update<T: TensorTree>(
        &self,
        model: T,
        state: SgdState<Tensor>,
        gradient: T,
    ) -> (T, SgdState<Tensor>) {
        let SgdState { mut velocity } = state;
        let mut gradients = gradients(&gradient);
        let model = map_leaves(&model, |path, x| {
            let gradient = gradients.next();
            let (Some(velocity), Some(gradient)) = (velocity.get_mut(path.as_str()), gradient) else {
                return Ok(*x);
            };
            let wide = velocity.dtype();
            *velocity = *velocity * self.momentum + gradient.cast(wide);
            Ok((x.cast(wide) - rate_as(self.rate, wide) * *velocity).cast(x.dtype()))
        });
        (model.expect("the mapper does not fail"), SgdState { velocity })
    }
}

/// Adam with decoupled weight decay. See [`adamw`].
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    rate: Operand,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
}

/// What [`AdamW`] carries from step to step.
#[derive(Clone, Debug, tilewright::Tree)]
pub struct AdamState<L> {
    /// Steps taken, a rank-0 `i64`.
    pub step: L,
    /// The running mean of the gradient of each floating leaf, by its path.
    pub first: BTreeMap<String, L>,
    /// The running mean of its square.
    pub second: BTreeMap<String, L>,
}

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019), with β₁ = 0.9, β₂ = 0.999, ε = 1e-8 and a
/// weight decay of 0.01 where not set otherwise.
pub fn adamw(rate: impl Into<Operand>) -> AdamW {
    AdamW { rate: rate.into(), beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
}

impl AdamState<Array> {
    /// The state before the first step.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new<T: Tree<Array>>(model: &T) -> Result<AdamState<Array>> {
        let moments = zeros_by_path(model)?;
        Ok(AdamState { step: Array::scalar(0i64), first: moments.clone(), second: moments })
    }
}

impl AdamW {
    /// Sets how much of the running means of the gradient and of its square stays at each step.
    #[must_use]
    pub fn betas(mut self, beta1: f64, beta2: f64) -> AdamW {
        (self.beta1, self.beta2) = (beta1, beta2);
        self
    }

    /// Sets what is added to the root of the mean square.
    #[must_use]
    pub fn epsilon(mut self, epsilon: f64) -> AdamW {
        self.epsilon = epsilon;
        self
    }

    /// Sets the share of each weight, times the rate, that goes at each step.
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: f64) -> AdamW {
        self.weight_decay = weight_decay;
        self
    }

    /// The model and the state after one step. Leaves that are no floats stay.
    #[track_caller]
    pub fn update<T: TensorTree>(
        &self,
        model: T,
        state: AdamState<Tensor>,
        gradient: T,
    ) -> (T, AdamState<Tensor>) {
        let AdamState { step, mut first, mut second } = state;
        let step = step + 1;
        let mut gradients = gradients(&gradient);
        let model = map_leaves(&model, |path, x| {
            let gradient = gradients.next();
            let moments = (first.get_mut(path.as_str()), second.get_mut(path.as_str()));
            let ((Some(first), Some(second)), Some(gradient)) = (moments, gradient) else { return Ok(*x) };
            let wide = first.dtype();
            let (gradient, wide_x, count) = (gradient.cast(wide), x.cast(wide), step.cast(wide));
            *first = *first * self.beta1 + gradient * (1.0 - self.beta1);
            *second = *second * self.beta2 + gradient * gradient * (1.0 - self.beta2);
            // The means start at 0: what they lack of their full weight is 1 − βᵗ.
            let weight = |beta: f64| -(count * beta.ln()).expm1();
            let mean = *first / weight(self.beta1);
            let root = (*second / weight(self.beta2)).sqrt() + self.epsilon;
            let moved = mean / root + wide_x * self.weight_decay;
            Ok((wide_x - rate_as(self.rate, wide) * moved).cast(x.dtype()))
        });
        (model.expect("the mapper does not fail"), AdamState { step, first, second })
    }
}

/// The gradient scaled so that its norm over all floating leaves is at most `limit`, and the norm it had.
#[track_caller]
pub fn clip_by_global_norm<T: TensorTree>(gradient: T, limit: f64) -> (T, Tensor) {
    let mut square = zeros((), DType::F32);
    for (_, leaf) in leaves(&gradient) {
        if leaf.dtype().is_float() {
            square = square + leaf.cast(DType::F32).square().sum(..);
        }
    }
    let norm = square.sqrt();
    let factor = limit / norm.maximum(limit);
    let clipped = map_leaves(&gradient, |_, leaf| {
        let float = leaf.dtype().is_float();
        Ok(if float { leaf * factor.cast(leaf.dtype()) } else { *leaf })
    });
    (clipped.expect("the mapper does not fail"), norm)
}

/// A rate that rises linearly from 0 to `peak` over `warmup` steps and falls to 0 along half a cosine wave at
/// step `total`; `step` counts the steps taken, as [`AdamState::step`] does. The result is a rank-0 `f32`.
#[track_caller]
pub fn cosine(step: Tensor, peak: f64, warmup: usize, total: usize) -> Tensor {
    let step = step.cast(DType::F32);
    let rising = (step + 1.0) * (peak / warmup.max(1) as f64);
    let progress = (step - warmup as f64) / total.saturating_sub(warmup).max(1) as f64;
    let falling = ((progress.clamp(0.0, 1.0) * std::f64::consts::PI).cos() + 1.0) * (peak / 2.0);
    select(step.lt(warmup as f64), rising, falling)
}
