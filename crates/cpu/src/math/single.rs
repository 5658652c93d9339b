//! `f32` functions.

use crate::isa::Machine;

macro_rules! through_double {
    ($($name:ident => $function:path;)*) => {$(
        #[inline(always)]
        pub(crate) fn $name<M: Machine>(x: f32) -> f32 {
            $function(x as f64) as f32
        }
    )*};
}

through_double! {
    exp => libm::exp;
    expm1 => libm::expm1;
    log => libm::log;
    log1p => libm::log1p;
    sin => libm::sin;
    cos => libm::cos;
    tan => libm::tan;
    tanh => libm::tanh;
    sigmoid => super::double::sigmoid;
    erf => libm::erf;
}

#[inline(always)]
pub(crate) fn atan2<M: Machine>(y: f32, x: f32) -> f32 {
    libm::atan2(y as f64, x as f64) as f32
}

#[inline(always)]
pub(crate) fn pow(x: f32, y: f32) -> f32 {
    libm::pow(x as f64, y as f64) as f32
}

/// −1, 0 or 1; NaN stays.
#[inline(always)]
pub(crate) fn sign(x: f32) -> f32 {
    if x.is_nan() { x } else { (x > 0.0) as i32 as f32 - (x < 0.0) as i32 as f32 }
}

/// x − y·⌊x / y⌋, in double precision: in single, a large quotient would leave nothing of the result.
#[inline(always)]
pub(crate) fn rem(x: f32, y: f32) -> f32 {
    super::double::rem(x as f64, y as f64) as f32
}

/// The greater; NaN if either is.
#[inline(always)]
pub(crate) fn max(x: f32, y: f32) -> f32 {
    if x > y || x.is_nan() { x } else { y }
}

/// The lesser; NaN if either is.
#[inline(always)]
pub(crate) fn min(x: f32, y: f32) -> f32 {
    if x < y || x.is_nan() { x } else { y }
}
