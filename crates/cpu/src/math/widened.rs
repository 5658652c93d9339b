//! `f32` functions that are computed in double precision, without branches, and rounded once: to within one unit in
//! the last place. The polynomials are of least greatest error, fitted in forty digits (Muller, "Elementary
//! functions", 2016).

use crate::isa::Machine;

/// Added to a double of at most 2⁵¹, leaves the nearest integer in the low bits.
const ROUNDER: f64 = 6_755_399_441_055_744.0;

/// c₀ + c₁x + …
#[inline(always)]
fn polynomial<M: Machine, const N: usize>(x: f64, coefficients: [f64; N]) -> f64 {
    let mut sum = coefficients[N - 1];
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = M::multiply_add_f64(sum, x, coefficients[i]);
    }
    sum
}

/// Whether an angle is too large to be reduced by [`reduced`], and sine, cosine and tangent have to be `libm`'s.
#[inline(always)]
pub(crate) fn is_far(x: f32) -> bool {
    x.abs() > 1_048_576.0
}

/// Sine and cosine of r and the number n of quarter turns, for x = n·π/2 + r that is not far (Cody and Waite 1980:
/// the first part of π/2 has 33 bits, so that its product with n is exact).
#[inline(always)]
fn reduced<M: Machine>(x: f32) -> (f64, f64, u64) {
    const FIRST: f64 = f64::from_bits(0x3ff9_21fb_5440_0000);
    const REST: f64 = f64::from_bits(0x3dd0_b461_1a62_6331);
    let x = x as f64;
    let shifted = M::multiply_add_f64(x, std::f64::consts::FRAC_2_PI, ROUNDER);
    let n = shifted - ROUNDER;
    let r = M::multiply_add_f64(n, -REST, M::multiply_add_f64(n, -FIRST, x));
    let square = r * r;
    let sine_tail = polynomial::<M, 4>(
        square,
        [
            -0.166_666_666_406_927_95,
            0.008_333_329_292_698_91,
            -1.983_930_834_572_597_6e-4,
            2.718_084_063_220_772_5e-6,
        ],
    );
    let cosine_tail = polynomial::<M, 4>(
        square,
        [
            -0.499_999_996_932_203_1,
            0.041_666_620_215_213_106,
            -0.001_388_667_716_124_749_7,
            2.438_314_479_715_112_7e-5,
        ],
    );
    let sine = M::multiply_add_f64(square * r, sine_tail, r);
    let cosine = M::multiply_add_f64(square, cosine_tail, 1.0);
    (sine, cosine, shifted.to_bits())
}

/// `x`, or −x where bit 1 of n is set.
#[inline(always)]
fn with_half_turns(x: f64, n: u64) -> f64 {
    f64::from_bits(x.to_bits() ^ ((n & 2) << 62))
}

/// Sine of an angle that is not far.
#[inline(always)]
pub(crate) fn sin<M: Machine>(x: f32) -> f32 {
    let (sine, cosine, n) = reduced::<M>(x);
    let result = with_half_turns(if n & 1 == 0 { sine } else { cosine }, n) as f32;
    if x == 0.0 { x } else { result }
}

/// Cosine of an angle that is not far.
#[inline(always)]
pub(crate) fn cos<M: Machine>(x: f32) -> f32 {
    let (sine, cosine, n) = reduced::<M>(x);
    with_half_turns(if n & 1 == 0 { cosine } else { sine }, n.wrapping_add(n & 1)) as f32
}

/// Tangent of an angle that is not far.
#[inline(always)]
pub(crate) fn tan<M: Machine>(x: f32) -> f32 {
    let (sine, cosine, n) = reduced::<M>(x);
    let (over, under) = if n & 1 == 0 { (sine, cosine) } else { (-cosine, sine) };
    let result = (over / under) as f32;
    if x == 0.0 { x } else { result }
}

/// Sine, cosine and tangent of any angle.
pub(crate) mod far {
    /// Sine.
    #[inline(always)]
    pub(crate) fn sin(x: f32) -> f32 {
        libm::sin(x as f64) as f32
    }

    /// Cosine.
    #[inline(always)]
    pub(crate) fn cos(x: f32) -> f32 {
        libm::cos(x as f64) as f32
    }

    /// Tangent.
    #[inline(always)]
    pub(crate) fn tan(x: f32) -> f32 {
        libm::tan(x as f64) as f32
    }
}

/// log₂ x for x that is not negative: of its exponent, and of what remains, between √½ and √2, by the series of the
/// inverse hyperbolic tangent.
#[inline(always)]
fn log2<M: Machine>(x: f64) -> f64 {
    const SQRT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
    // Integers below 2⁵² stand in the low bits of this float plus themselves.
    const COUNT: f64 = 4_503_599_627_370_496.0;
    const BIAS: u64 = 1024;
    let bits = x.to_bits().wrapping_sub(SQRT_HALF).wrapping_add(BIAS << 52);
    let exponent = f64::from_bits(COUNT.to_bits() | (bits >> 52)) - (COUNT + BIAS as f64);
    let rest = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) + SQRT_HALF);
    let s = (rest - 1.0) / (rest + 1.0);
    let series = polynomial::<M, 6>(
        s * s,
        [
            2.885_390_081_777_849_5,
            0.961_796_694_114_260_8,
            0.577_077_942_074_505_9,
            0.412_209_283_889_531,
            0.319_904_321_960_400_6,
            0.282_920_904_708_003_1,
        ],
    );
    let finite = M::multiply_add_f64(s, series, exponent);
    let result = if x < f64::INFINITY { finite } else { x };
    if x == 0.0 { f64::NEG_INFINITY } else { result }
}

/// 2ˣ, but 2^±1000 beyond.
#[inline(always)]
fn exp2<M: Machine>(x: f64) -> f64 {
    let x = if x > 1000.0 { 1000.0 } else { x };
    let x = if x < -1000.0 { -1000.0 } else { x };
    let shifted = x + ROUNDER;
    let power = polynomial::<M, 9>(
        x - (shifted - ROUNDER),
        [
            0.999_999_999_999_762_3,
            0.693_147_180_546_514_4,
            0.240_226_506_988_803_2,
            0.055_504_109_393_410_89,
            0.009_618_128_542_870_41,
            0.001_333_345_206_279_177,
            1.540_385_174_451_419_4e-4,
            1.530_973_729_473_456e-5,
            1.317_585_882_142_459e-6,
        ],
    );
    power * f64::from_bits((shifted.to_bits() << 52).wrapping_add(1f64.to_bits()))
}

/// xʸ, with the limits of IEEE 754.
#[inline(always)]
pub(crate) fn pow<M: Machine>(x: f32, y: f32) -> f32 {
    let magnitude = x.abs();
    let power = exp2::<M>(y as f64 * log2::<M>(magnitude as f64)) as f32;
    let whole = y.floor() == y;
    let odd = whole && (y * 0.5).floor() != y * 0.5;
    let signed = if odd && x.is_sign_negative() { -power } else { power };
    let real = if x < 0.0 && magnitude < f32::INFINITY && !whole { f32::NAN } else { signed };
    let one = x == 1.0 || y == 0.0 || (magnitude == 1.0 && y.abs() == f32::INFINITY);
    let result = if one { 1.0 } else { real };
    if y.is_nan() && x != 1.0 { y } else { result }
}

/// The angle of the point (x, y), with the limits of IEEE 754: the arc tangent of the smaller of the two over the
/// larger, turned by an eighth where that is more than tan π/8.
#[inline(always)]
pub(crate) fn atan2<M: Machine>(y: f32, x: f32) -> f32 {
    use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, PI};
    const EIGHTH: f64 = 0.414_213_562_373_095_1;
    let (across, up) = (x.abs() as f64, y.abs() as f64);
    let (less, more) = if up > across { (across, up) } else { (up, across) };
    let endless = more == f64::INFINITY;
    let (less, more) = (
        if endless { (less == f64::INFINITY) as i32 as f64 } else { less },
        if endless || more == 0.0 { 1.0 } else { more },
    );
    let steep = less > more * EIGHTH;
    let over = if steep { less - more } else { less };
    let under = if steep { less + more } else { more };
    let q = over / under;
    let series = polynomial::<M, 7>(
        q * q,
        [
            0.999_999_999_979_163,
            -0.333_333_321_283_476_76,
            0.199_998_858_638_870_32,
            -0.142_816_367_501_699_07,
            0.110_410_075_788_413_48,
            -0.084_587_730_291_242_07,
            0.047_121_606_412_955_95,
        ],
    );
    let angle = M::multiply_add_f64(q, series, if steep { FRAC_PI_4 } else { 0.0 });
    let angle = if up > across { FRAC_PI_2 - angle } else { angle };
    let angle = if x.is_sign_negative() { PI - angle } else { angle };
    let result = (angle as f32).copysign(y);
    if x.is_nan() || y.is_nan() { f32::NAN } else { result }
}

#[cfg(test)]
mod tests {
    use super::super::accuracy::{SPECIAL, check, check2};
    use super::*;
    use crate::isa::{Fused, Plain};

    fn check_all<M: Machine>() {
        let whole = |near: fn(f32) -> f32, far: fn(f32) -> f32| {
            move |x: f32| if is_far(x) { far(x) } else { near(x) }
        };
        check("sin", 1.0, whole(sin::<M>, far::sin), libm::sin);
        check("cos", 1.0, whole(cos::<M>, far::cos), libm::cos);
        check("tan", 1.0, whole(tan::<M>, far::tan), libm::tan);
        check2("pow", 1.0, pow::<M>, libm::pow);
        check2("atan2", 1.0, atan2::<M>, libm::atan2);
    }

    #[test]
    fn errors_stay_within_their_bounds() {
        check_all::<Fused>();
        check_all::<Plain>();
    }

    /// Signs of zeros too.
    #[test]
    fn limits_are_those_of_ieee_754() {
        for &x in &SPECIAL {
            for &y in &SPECIAL {
                let (power, angle) =
                    (libm::pow(x as f64, y as f64) as f32, libm::atan2(x as f64, y as f64) as f32);
                let found = (pow::<Fused>(x, y), atan2::<Fused>(x, y));
                let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                assert!(same(found.0, power), "{x:e} to the {y:e}: {:e} for {power:e}", found.0);
                assert!((found.1 - angle).abs() < 1e-6 || same(found.1, angle), "angle of ({y:e}, {x:e})");
                assert!(angle.is_nan() || found.1.is_sign_negative() == angle.is_sign_negative());
            }
        }
    }
}
