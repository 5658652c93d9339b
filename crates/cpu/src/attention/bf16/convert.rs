//! From panels in `f32` to operands in `bf16`.
//!
//! A number may be held in two parts, the nearest `bf16` and that of what it leaves: 16 bits of the 24, so that a
//! product with each loses next to nothing.

use std::arch::x86_64::*;

use super::product::BLOCK;

/// Lanes of a vector.
const LANES: usize = 16;

/// 2ˣ for −½ ≤ x ≤ ½ is 1 + x·p(x) within 2.1·10⁻⁷: p by interpolation at Chebyshev's points, highest power first.
const POWER: [f32; 5] = [0.001_338_130_3, 0.009_666_369, 0.055_503_81, 0.240_223_5, std::f32::consts::LN_2];

/// Turns a row of scores, whole vectors of them, into weights relative to `origin`, and adds these to a vector of
/// partial sums. The weights are left in `bf16` where the scores began; in `low`, what that rounding took.
///
/// # Safety
/// The machine has the instructions; `low` holds as many numbers as `scores`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn weigh(scores: &mut [f32], origin: f32, sums: &mut [f32], low: Option<*mut u16>) {
    let count = scores.len() / LANES;
    let from = scores.as_mut_ptr();
    // SAFETY: whole vectors. What is written in place never reaches what is still to be read.
    unsafe {
        let mut sum = _mm512_loadu_ps(sums.as_ptr());
        let origin = _mm512_set1_ps(origin);
        for i in 0..count {
            let weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(from.add(i * LANES)), origin));
            sum = _mm512_add_ps(sum, weight);
            let high = _mm512_cvtneps_pbh(weight);
            store(high, from.cast::<u16>().add(i * LANES));
            if let Some(low) = low {
                store(_mm512_cvtneps_pbh(_mm512_sub_ps(weight, widened(high))), low.add(i * LANES));
            }
        }
        _mm512_storeu_ps(sums.as_mut_ptr(), sum);
    }
}

/// eˣ for x at most 0, to 3·10⁻⁷ and what the rounding of x·log₂ e takes: 0 far below, NaN for NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exponential(x: __m512) -> __m512 {
    // The greatest gives its second operand where either is NaN. 2⁻²⁰⁰ is 0.
    let power = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
    let power = _mm512_max_ps(_mm512_set1_ps(-200.0), power);
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(power);
    let part = _mm512_sub_ps(power, whole);
    let mut sum = _mm512_set1_ps(POWER[0]);
    for &coefficient in &POWER[1..] {
        sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(coefficient));
    }
    _mm512_scalef_ps(_mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0)), whole)
}

/// Multiplies rows of a panel.
///
/// # Safety
/// The machine has the instructions; the panel holds the rows, whole vectors of `columns`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn scale(panel: *mut f32, stride: usize, (rows, columns): (usize, usize), factor: f32) {
    let factor = _mm512_set1_ps(factor);
    for row in 0..rows {
        for column in (0..columns).step_by(LANES) {
            // SAFETY: within the panel.
            unsafe {
                let at = panel.add(row * stride + column);
                _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), factor));
            }
        }
    }
}

/// A panel in `f32`, whose rows are 0 from their last column on to a whole vector.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub data: *const f32,
    /// Elements between rows, as in what it is converted to.
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Panel {
    /// Sixteen columns of a row; zeros beyond it.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(&self, row: usize, column: usize) -> __m512 {
        if row >= self.rows || column >= self.columns {
            return _mm512_setzero_ps();
        }
        // SAFETY: the caller vouches for the panel.
        unsafe { _mm512_loadu_ps(self.data.add(row * self.stride + column)) }
    }

    /// Rows of the nearest `bf16`, padded with zeros to whole blocks.
    ///
    /// # Safety
    /// The machine has the instructions; the panel and `to` hold so much.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub(super) unsafe fn rows(self, to: *mut u16) {
        for row in 0..self.rows.next_multiple_of(BLOCK) {
            for column in (0..self.columns.next_multiple_of(BLOCK)).step_by(LANES) {
                // SAFETY: as the caller vouches.
                unsafe {
                    let near = _mm512_cvtneps_pbh(self.load(row, column));
                    store(near, to.add(row * self.stride + column));
                }
            }
        }
    }

    /// Couples of the nearest `bf16` of neighbouring rows, of a panel that begins `offset` rows into a window of so many
    /// rows; the rest of the window, and the columns up to whole blocks, are zeros.
    ///
    /// # Safety
    /// As [`Panel::rows`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub(super) unsafe fn couples(self, (offset, window): (usize, usize), to: *mut u32) {
        // Of the words [even rows' … | odd rows' …], in turn.
        let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * LANES) as u16);
        for step in 0..window / 2 {
            // A row before the panel is one beyond it.
            let (even, odd) = ((2 * step).wrapping_sub(offset), (2 * step + 1).wrapping_sub(offset));
            for column in (0..self.columns.next_multiple_of(BLOCK)).step_by(LANES) {
                // SAFETY: as the caller vouches.
                unsafe {
                    let order = _mm512_loadu_si512(order.as_ptr().cast());
                    let words = _mm512_cvtne2ps_pbh(self.load(odd, column), self.load(even, column));
                    let words = std::mem::transmute::<__m512bh, __m512i>(words);
                    let couples = _mm512_permutexvar_epi16(order, words);
                    _mm512_storeu_si512(to.add(step * self.stride + column).cast(), couples);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
unsafe fn store(x: __m256bh, to: *mut u16) {
    // SAFETY: the caller vouches for 16 elements.
    unsafe { to.cast::<__m256bh>().write_unaligned(x) };
}

/// As `f32`, exactly.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
fn widened(x: __m256bh) -> __m512 {
    // SAFETY: both are 256 bits of any value.
    let words = unsafe { std::mem::transmute::<__m256bh, __m256i>(x) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    /// Weights of scores relative to the first of them, and their sum.
    fn weights(scores: &[f32]) -> (Vec<f32>, f32) {
        let mut row = scores.to_vec();
        row.resize(scores.len().next_multiple_of(LANES), f32::NEG_INFINITY);
        let (mut sums, mut low) = ([0.0; LANES], vec![0u16; row.len()]);
        // SAFETY: the caller has looked for the instructions; the buffers are whole vectors.
        unsafe { weigh(&mut row, scores[0], &mut sums, Some(low.as_mut_ptr())) };
        let float = |half: u16| f32::from_bits(u32::from(half) << 16);
        let halves = row.iter().flat_map(|x| [x.to_bits() as u16, (x.to_bits() >> 16) as u16]);
        let weights = halves.zip(&low).take(scores.len()).map(|(high, &low)| float(high) + float(low));
        (weights.collect(), sums.iter().sum())
    }

    #[test]
    fn weights_over_the_whole_range() {
        if !Isa::available().contains(&Isa::Avx512Bf16) {
            return;
        }
        for step in 0..200_000 {
            let x = -(step as f32) * 0.0006;
            let (found, truth) = (weights(&[0.0, x]).0[1] as f64, (x as f64).exp());
            // A rounding of x·log₂ e, the polynomial, and two roundings to 8 bits each; below the normal numbers of
            // the lower part, a rounding to 8 bits only; below those of the upper one, 0.
            let share = if truth < 1e-30 { 4e-3 } else { 2.2e-5 + 1e-7 * -x as f64 };
            let least = f64::from(f32::MIN_POSITIVE);
            assert!((found - truth).abs() <= share * truth + least, "exp {x}: {found:e}, not {truth:e}");
        }
    }

    #[test]
    fn weights_at_the_ends() {
        if !Isa::available().contains(&Isa::Avx512Bf16) {
            return;
        }
        let (found, sum) = weights(&[3.0, f32::NEG_INFINITY, -1e30, 3.0]);
        assert_eq!((found, sum), (vec![1.0, 0.0, 0.0, 1.0], 2.0));
        let (found, _) = weights(&[0.0, f32::NAN]);
        assert!(found[1].is_nan());
        assert!(weights(&[f32::INFINITY]).0[0].is_nan());
    }
}
