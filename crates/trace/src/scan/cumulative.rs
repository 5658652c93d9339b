//! The scans that have names.

use std::borrow::Borrow;

use super::associative_scan;
use crate::Tensor;

/// The first-order linear recurrence yₜ = aₜ yₜ₋₁ + bₜ along an axis, from y₋₁ = 0. Slices of `a` broadcast
/// to those of `b`. (For a start of its own, another direction or the final state:
/// [`associative_scan`] with `(l.0 * r.0, r.0 * l.1 + r.1)`.)
///
/// ```
/// use tilewright::prelude::*;
///
/// let f = compile(|(a, b): (Tensor, Tensor)| linear_recurrence(a, b, -1));
/// let a = Array::new([3], &[0.5f32, 2.0, 0.0])?;
/// let b = Array::new([3], &[1.0f32, 1.0, 1.0])?;
/// assert_eq!(f.call((&a, &b))?.to_vec::<f32>()?, [1.0, 3.0, 1.0]);
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors (of the trace)
/// `Shape` where the extents along the axis differ, or slices do not broadcast; `DType` where the types do.
#[track_caller]
pub fn linear_recurrence(a: impl Borrow<Tensor>, b: impl Borrow<Tensor>, axis: isize) -> Tensor {
    let (a, b) = (*a.borrow(), *b.borrow());
    associative_scan((a, b), axis, |left, right| (left.0 * right.0, right.0 * left.1 + right.1)).call().1
}

impl Tensor {
    /// Running sums along an axis: position t holds the sum of positions 0 to t.
    ///
    /// ```
    /// use tilewright::prelude::*;
    ///
    /// let f = compile(|x: Tensor| x.cumsum(-1));
    /// let y = f.call(&Array::new([2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])?)?;
    /// assert_eq!(y.to_vec::<f32>()?, [1.0, 3.0, 6.0, 4.0, 9.0, 15.0]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors (of the trace)
    /// `Shape` for an axis that it does not have.
    #[track_caller]
    pub fn cumsum(&self, axis: isize) -> Tensor {
        associative_scan(*self, axis, |left, right| left + right).call()
    }

    /// Running products along an axis.
    ///
    /// ```
    /// use tilewright::prelude::*;
    ///
    /// let f = compile(|x: Tensor| x.cumprod(-1));
    /// let y = f.call(&Array::new([2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])?)?;
    /// assert_eq!(y.to_vec::<f32>()?, [1.0, 2.0, 6.0, 4.0, 20.0, 120.0]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors (of the trace)
    /// `Shape` for an axis that it does not have.
    #[track_caller]
    pub fn cumprod(&self, axis: isize) -> Tensor {
        associative_scan(*self, axis, |left, right| left * right).call()
    }

    /// Running greatest elements along an axis; NaN from the first NaN on.
    ///
    /// ```
    /// use tilewright::prelude::*;
    ///
    /// let f = compile(|x: Tensor| x.cummax(-1));
    /// let y = f.call(&Array::new([2, 3], &[1.0f32, 3.0, 2.0, 4.0, 5.0, 6.0])?)?;
    /// assert_eq!(y.to_vec::<f32>()?, [1.0, 3.0, 3.0, 4.0, 5.0, 6.0]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors (of the trace)
    /// `Shape` for an axis that it does not have.
    #[track_caller]
    pub fn cummax(&self, axis: isize) -> Tensor {
        associative_scan(*self, axis, |left, right| left.maximum(right)).call()
    }

    /// Running least elements along an axis; NaN from the first NaN on.
    ///
    /// ```
    /// use tilewright::prelude::*;
    ///
    /// let f = compile(|x: Tensor| x.cummin(-1));
    /// let y = f.call(&Array::new([2, 3], &[2.0f32, 3.0, 1.0, 6.0, 5.0, 4.0])?)?;
    /// assert_eq!(y.to_vec::<f32>()?, [2.0, 2.0, 1.0, 6.0, 5.0, 4.0]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors (of the trace)
    /// `Shape` for an axis that it does not have.
    #[track_caller]
    pub fn cummin(&self, axis: isize) -> Tensor {
        associative_scan(*self, axis, |left, right| left.minimum(right)).call()
    }

    /// Running log Σ eˣ along an axis, of floats; −∞ as long as every element is.
    ///
    /// ```
    /// use tilewright::prelude::*;
    ///
    /// let f = compile(|x: Tensor| x.logcumsumexp(0));
    /// let y = f.call(&Array::new([2], &[1000.0f64, 1000.0])?)?.to_vec::<f64>()?;
    /// assert!(y[0] == 1000.0 && (y[1] - 1000.0 - 2f64.ln()).abs() < 1e-12);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors (of the trace)
    /// `Shape` for an axis that it does not have; `DType` for elements that are no floats.
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
