//! The scans that have names.

use std::borrow::Borrow;

use super::associative_scan;
use crate::Tensor;

/// The first-order linear recurrence yₜ = aₜ yₜ₋₁ + bₜ along an axis, from y₋₁ = 0. Slices of `a` broadcast
/// to those of `b`. (For a start of its own, another direction or the final state:
/// [`associative_scan`] with `(l.0 * r.0, r.0 * l.1 + r.1)`.)
#[track_caller]
pub fn linear_recurrence(a: impl Borrow<Tensor>, b: impl Borrow<Tensor>, axis: isize) -> Tensor {
    let (a, b) = (*a.borrow(), *b.borrow());
    associative_scan((a, b), axis, |left, right| (left.0 * right.0, right.0 * left.1 + right.1)).call().1
}

impl Tensor {
    /// Running sums along an axis: position t holds the sum of positions 0 to t.
    #[track_caller]
    pub fn cumsum(&self, axis: isize) -> Tensor {
        associative_scan(*self, axis, |left, right| left + right).call()
    }

    /// Running products along an axis.
    #[track_caller]
    pub fn cumprod(&self, axis: isize) -> Tensor {
        associative_scan(*self, axis, |left, right| left * right).call()
    }

    /// Running greatest elements along an axis; NaN from the first NaN on.
    #[track_caller]
    pub fn cummax(&self, axis: isize) -> Tensor {
        associative_scan(*self, axis, |left, right| left.maximum(right)).call()
    }

    /// Running least elements along an axis; NaN from the first NaN on.
    #[track_caller]
    pub fn cummin(&self, axis: isize) -> Tensor {
        associative_scan(*self, axis, |left, right| left.minimum(right)).call()
    }

    /// Running log Σ eˣ along an axis, of floats; −∞ as long as every element is.
    #[track_caller]
    pub fn logcumsumexp(&self, axis: isize) -> Tensor {
        associative_scan(*self, axis, |left: Tensor, right| {
            // Of equal infinities the difference is none.
            let difference = left.eq(right).select(0.0, left - right);
            left.maximum(right) + (-difference.abs()).exp().log1p()
        })
        .call()
    }
}
