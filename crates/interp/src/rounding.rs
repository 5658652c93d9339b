//! Rounding to float types: to the nearest value, or at random to one of the two next to it.

use tilewright_ir::{DType, Scalar};

use crate::Precision;

/// Rounding of a float to the values that an operation with a result of `dtype` gives.
pub(crate) fn rounding(dtype: DType, precision: Precision) -> impl Fn(f64) -> f64 + Copy {
    debug_assert!(dtype.is_float(), "{dtype} is not a float type");
    move |x| match (precision, dtype) {
        (Precision::Exact, _) | (_, DType::F64) => x,
        (Precision::Typed, DType::F32) => x as f32 as f64,
        (Precision::Typed, _) => nearest(x, dtype),
        (Precision::Sampled(seed), _) => sampled(x, dtype, seed),
    }
}

fn nearest(x: f64, dtype: DType) -> f64 {
    Scalar::Float(x).cast(dtype).to_f64()
}

/// One of the two values next to `x`, each the likelier the nearer it is: right on the average. Which one, is a
/// function of `x` and the seed.
fn sampled(x: f64, dtype: DType, seed: u64) -> f64 {
    let near = nearest(x, dtype);
    if near == x || !near.is_finite() {
        return near;
    }
    let far = neighbour(near, dtype, x > near);
    let share = (x - near) / (far - near);
    if far.is_finite() && uniform(x.to_bits(), seed) < share { far } else { near }
}

/// The value of the type next to one of its values.
fn neighbour(x: f64, dtype: DType, upwards: bool) -> f64 {
    let mut bytes = Scalar::Float(x).to_bytes(dtype);
    let mut bits = bytes.iter().rev().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
    let sign = 1 << (8 * bytes.len() - 1);
    // The bits below the sign count the values from zero on.
    if bits & !sign == 0 {
        bits = if upwards { 1 } else { sign | 1 };
    } else if (bits & sign == 0) == upwards {
        bits += 1;
    } else {
        bits -= 1;
    }
    let length = bytes.len();
    bytes.copy_from_slice(&bits.to_le_bytes()[..length]);
    Scalar::from_bytes(dtype, &bytes).to_f64()
}

/// A number from 0 up to 1 for some bits and a seed (the finaliser of SplitMix64).
fn uniform(bits: u64, seed: u64) -> f64 {
    let mut z = bits ^ seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_next_to_each_other() {
        for (x, dtype, above) in [
            (1.0, DType::F32, 1.0 + f64::from(f32::EPSILON)),
            (-1.0, DType::F32, -1.0 + f64::from(f32::EPSILON) / 2.0),
            (1.0, DType::BF16, 1.0078125),
            (0.0, DType::F16, 2f64.powi(-24)),
            (-2f64.powi(-24), DType::F16, 0.0),
        ] {
            assert_eq!(neighbour(x, dtype, true), above, "{x}");
            assert_eq!(neighbour(above, dtype, false), x, "{above}");
        }
    }

    #[test]
    fn samples_are_neighbours_and_right_on_the_average() {
        let (low, high) = (1.0, 1.0078125);
        let x = low + 0.25 * (high - low);
        let samples: Vec<f64> = (0..4000).map(|seed| sampled(x, DType::BF16, seed)).collect();
        assert!(samples.iter().all(|&y| y == low || y == high));
        let above = samples.iter().filter(|&&y| y == high).count();
        assert!((900..1100).contains(&above), "{above}");
        assert_eq!(sampled(high, DType::BF16, 7), high);
        assert!(sampled(f64::NAN, DType::F32, 7).is_nan());
        assert_eq!(sampled(1e300, DType::F16, 7), f64::INFINITY);
    }
}
