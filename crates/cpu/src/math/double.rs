//! `f64` functions that `libm` does not have. The others are `libm`'s: the same bits on every machine.

/// −1, 0 or 1; NaN stays.
#[inline(always)]
pub(crate) fn sign(x: f64) -> f64 {
    if x.is_nan() { x } else { (x > 0.0) as i32 as f64 - (x < 0.0) as i32 as f64 }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// x − y·⌊x / y⌋.
#[inline(always)]
pub(crate) fn rem(x: f64, y: f64) -> f64 {
    x - y * (x / y).floor()
}

/// The greater; NaN if either is.
#[inline(always)]
pub(crate) fn max(x: f64, y: f64) -> f64 {
    if x > y || x.is_nan() { x } else { y }
}

/// The lesser; NaN if either is.
#[inline(always)]
pub(crate) fn min(x: f64, y: f64) -> f64 {
    if x < y || x.is_nan() { x } else { y }
}
