//! `f32` functions.
//!
//! Arguments are reduced to a small range, where a polynomial of least greatest error, fitted in forty
//! digits, stands for the function (Muller, "Elementary functions", 2016). Greatest errors in units of the
//! last place, over the samples of the tests: `exp`, `expm1`, `log`, `log1p`, `erf` 2, `tanh`, `sigmoid` 3. Those
//! of the functions in [`super::widened`]: 1.

use crate::isa::Machine;

const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Added to a float of at most 2²², leaves the nearest integer in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// c₀ + c₁x + …
#[inline(always)]
fn polynomial<M: Machine, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = M::multiply_add(sum, x, coefficients[i]);
    }
    sum
}

/// 2ⁿ for n in −126 ..= 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// x = n·log 2 + r with |r| at most half of log 2, and eʳ − 1, for |x| at most 200.
#[inline(always)]
fn reduced_expm1<M: Machine>(x: f32) -> (i32, f32) {
    let shifted = M::multiply_add(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    let whole = shifted - ROUNDER;
    let r = M::multiply_add(whole, -LN_2_LOW, M::multiply_add(whole, -LN_2_HIGH, x));
    let tail = polynomial::<M, 6>(
        r,
        [0.5, 0.166_666_67, 0.041_666_456, 0.008_333_31, 0.001_393_454_2, 1.989_198e-4],
    );
    (n, M::multiply_add(r * r, tail, r))
}

/// eˣ.
#[inline(always)]
pub(crate) fn exp<M: Machine>(x: f32) -> f32 {
    // Past these it is 0 and ∞ anyway; NaN passes.
    let x = if x < -105.0 { -105.0 } else { x };
    let x = if x > 90.0 { 90.0 } else { x };
    let (n, expm1) = reduced_expm1::<M>(x);
    let n = n.clamp(-160, 140);
    let half = n >> 1;
    (1.0 + expm1) * power_of_two(half) * power_of_two(n - half)
}

/// eˣ − 1.
#[inline(always)]
pub(crate) fn expm1<M: Machine>(x: f32) -> f32 {
    let bounded = if x < -30.0 { -30.0 } else { x };
    let bounded = if bounded > 90.0 { 90.0 } else { bounded };
    let (n, expm1) = reduced_expm1::<M>(bounded);
    // Doubled at the end, so that 2ⁿ does not overflow before the result does.
    let scale = power_of_two(n.clamp(-60, 128) - 1);
    let result = 2.0 * M::multiply_add(scale, expm1, scale - 0.5);
    if n == 0 { if x.abs() < 1e-30 { x } else { expm1 } } else { result }
}

/// log(m·2ᵉ) for 1 + f = m in √½ … √2, plus a small correction.
#[inline(always)]
fn log_reduced<M: Machine>(f: f32, exponent: f32, correction: f32) -> f32 {
    let tail = polynomial::<M, 10>(
        f,
        [
            0.333_333_33,
            -0.249_999_9,
            0.200_000_1,
            -0.166_680_02,
            0.142_865_25,
            -0.124_507_43,
            0.110_377_83,
            -0.106_461_92,
            0.105_308_65,
            -0.062_015,
        ],
    );
    let square = f * f;
    let small = M::multiply_add(exponent, LN_2_LOW, correction);
    let tail = M::multiply_add(square * f, tail, small);
    let rest = M::multiply_add(square, -0.5, tail);
    M::multiply_add(exponent, LN_2_HIGH, f + rest)
}

/// f and e with x = (1 + f)·2ᵉ and 1 + f in √½ … √2, for positive normal x.
#[inline(always)]
fn split(x: f32) -> (f32, f32) {
    let bits = x.to_bits().wrapping_sub(0x3f35_04f3);
    let exponent = (bits as i32) >> 23;
    let mantissa = (bits & 0x007f_ffff) + 0x3f35_04f3;
    (f32::from_bits(mantissa) - 1.0, exponent as f32)
}

/// Natural logarithm.
#[inline(always)]
pub(crate) fn log<M: Machine>(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let (f, exponent) = split(if tiny { x * 8_388_608.0 } else { x });
    let finite = log_reduced::<M>(f, if tiny { exponent - 23.0 } else { exponent }, 0.0);
    log_limits(x, finite)
}

/// `finite` but where the logarithm is not finite.
#[inline(always)]
fn log_limits(x: f32, finite: f32) -> f32 {
    let result = if x == f32::INFINITY { x } else { finite };
    let result = if x == 0.0 { f32::NEG_INFINITY } else { result };
    if x < 0.0 || x.is_nan() { f32::NAN } else { result }
}

/// log(1 + x).
#[inline(always)]
pub(crate) fn log1p<M: Machine>(x: f32) -> f32 {
    let sum = 1.0 + x;
    // What rounding took from the sum, relative to it.
    let lost = if x > 1.0 { 1.0 - (sum - x) } else { x - (sum - 1.0) };
    let (f, exponent) = split(sum);
    let finite = log_reduced::<M>(f, exponent, lost / sum);
    // Near 0 it is x, also −0.
    let finite = if x.abs() < 1e-8 { x } else { finite };
    log_limits(sum, finite)
}

/// Hyperbolic tangent: −u / (2 + u) of u = e⁻²|ˣ| − 1, where |x| = n·log 2 / 2 + r.
#[inline(always)]
pub(crate) fn tanh<M: Machine>(x: f32) -> f32 {
    let magnitude = x.abs();
    let bounded = if magnitude > 15.0 { 15.0 } else { magnitude };
    let shifted = M::multiply_add(bounded, -2.0 * std::f32::consts::LOG2_E, ROUNDER);
    let r = M::multiply_add(shifted - ROUNDER, std::f32::consts::LN_2 / 2.0, bounded);
    let tail = polynomial::<M, 5>(r, [2.0, -1.333_323_5, 0.666_660_5, -0.267_730_68, 0.089_257_28]);
    let expm1 = M::multiply_add(r * r, tail, -2.0 * r);
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    let u = M::multiply_add(scale, expm1, scale - 1.0);
    (-u / (2.0 + u)).copysign(x)
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid<M: Machine>(x: f32) -> f32 {
    let small = exp::<M>(-x.abs());
    (if x < 0.0 { small } else { 1.0 }) / (1.0 + small)
}

/// The error function: by its power series up to 1, and by the logarithm of its complement beyond.
#[inline(always)]
pub(crate) fn erf<M: Machine>(x: f32) -> f32 {
    let magnitude = x.abs();
    let series = polynomial::<M, 8>(
        x * x,
        [
            0.128_379_17,
            -0.376_126_38,
            0.112_837_83,
            -0.026_865_43,
            0.005_221_032,
            -8.484_08e-4,
            1.126_595_9e-4,
            -9.667_045e-6,
        ],
    );
    let near = M::multiply_add(series, x, x);
    let t = if magnitude > 4.0 { 4.0 } else { magnitude };
    let log_complement = polynomial::<M, 9>(
        t,
        [
            3.201_380_5e-4,
            -1.130_233_4,
            -0.631_826_05,
            -0.110_080_08,
            0.026_421_136,
            -0.004_759_596,
            5.968_056e-4,
            -4.605_804e-5,
            1.637_151_4e-6,
        ],
    );
    let far = (1.0 - exp::<M>(log_complement)).copysign(x);
    if magnitude <= 1.0 || x.is_nan() { near } else { far }
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

#[cfg(test)]
mod tests {
    use super::super::accuracy::check;
    use super::*;
    use crate::isa::{Fused, Plain};

    fn check_all<M: Machine>(slack: f64) {
        check("exp", 1.0 + slack, exp::<M>, libm::exp);
        check("expm1", 1.5 + slack, expm1::<M>, libm::expm1);
        check("log", 1.0 + slack, log::<M>, libm::log);
        check("log1p", 2.0 + slack, log1p::<M>, libm::log1p);
        check("tanh", 3.0 + slack, tanh::<M>, libm::tanh);
        check("sigmoid", 3.0 + slack, sigmoid::<M>, super::super::double::sigmoid);
        check("erf", 2.0 + slack, erf::<M>, libm::erf);
    }

    #[test]
    fn errors_stay_within_their_bounds_with_fused_arithmetic() {
        check_all::<Fused>(0.0);
    }

    #[test]
    fn errors_stay_within_their_bounds_without_fused_arithmetic() {
        check_all::<Plain>(1.0);
    }
}
