//! From panels in `f32` to operands in `bf16`.

use std::arch::x86_64::*;

use super::product::BLOCK;

/// Lanes of a vector.
const LANES: usize = 16;

/// 1 in `bf16`.
const ONE: i16 = 0x3F80;

/// 2ˣ for −½ ≤ x ≤ ½ is 1 + x·p(x) within 2.1·10⁻⁷: p by interpolation at Chebyshev's points, highest power first.
const POWER: [f32; 5] = [0.001_338_130_3, 0.009_666_369, 0.055_503_81, 0.240_223_5, std::f32::consts::LN_2];

/// Turns a row of scores, whole couples of vectors, into weights relative to `origin`, left in `bf16` where the scores
/// began. Adds them to a vector of partial sums, and what they were rounded to to the vector behind it.
///
/// # Safety
/// The machine has the instructions; `sums` holds two vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn weigh(scores: &mut [f32], origin: f32, sums: &mut [f32]) {
    let from = scores.as_mut_ptr();
    let (sum_at, rounded_at) = sums.split_at_mut(LANES);
    // SAFETY: whole vectors. What is written in place never reaches what is still to be read; the ones are any bits.
    unsafe {
        let ones = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi16(ONE));
        let (mut sum, mut rounded_sum) =
            (_mm512_loadu_ps(sum_at.as_ptr()), _mm512_loadu_ps(rounded_at.as_ptr()));
        let origin = _mm512_set1_ps(origin);
        for i in 0..scores.len() / (2 * LANES) {
            let scores = from.add(i * 2 * LANES);
            let weights = [scores, scores.add(LANES)]
                .map(|scores| exponential(_mm512_sub_ps(_mm512_loadu_ps(scores), origin)));
            sum = _mm512_add_ps(sum, _mm512_add_ps(weights[0], weights[1]));
            let rounded = _mm512_cvtne2ps_pbh(weights[1], weights[0]);
            rounded_sum = _mm512_dpbf16_ps(rounded_sum, rounded, ones);
            from.cast::<__m512bh>().add(i).write_unaligned(rounded);
        }
        _mm512_storeu_ps(sum_at.as_mut_ptr(), sum);
        _mm512_storeu_ps(rounded_at.as_mut_ptr(), rounded_sum);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    /// Weights of scores relative to the first of them, and their sum before and after they were rounded.
    fn weights(scores: &[f32]) -> (Vec<f32>, [f32; 2]) {
        let mut row = scores.to_vec();
        row.resize(scores.len().next_multiple_of(2 * LANES), f32::NEG_INFINITY);
        let mut sums = [0.0; 2 * LANES];
        // SAFETY: the caller has looked for the instructions; the buffers are whole vectors.
        unsafe { weigh(&mut row, scores[0], &mut sums) };
        let halves = row.iter().flat_map(|x| [x.to_bits() << 16, x.to_bits() & 0xFFFF_0000]);
        let weights = halves.take(scores.len()).map(f32::from_bits).collect();
        (weights, [&sums[..LANES], &sums[LANES..]].map(|sums| sums.iter().sum()))
    }

    #[test]
    fn weights_over_the_whole_range() {
        if !Isa::available().contains(&Isa::Avx512Bf16) {
            return;
        }
        for step in 0..200_000 {
            let x = -(step as f32) * 0.0006;
            let (found, sums) = weights(&[0.0, x]);
            let (weight, [sum, rounded], truth) =
                (f64::from(found[1]), sums.map(f64::from), f64::from(x).exp());
            // A rounding of x·log₂ e and the polynomial; then one to 8 bits, below whose normal numbers there is 0.
            let share = 3e-7 + 1e-7 * -f64::from(x);
            let least = f64::from(f32::MIN_POSITIVE);
            let bound = (share + 0.5f64.powi(8)) * truth + least;
            assert!((weight - truth).abs() <= bound, "exp {x}: {weight:e}, not {truth:e}");
            assert!((sum - 1.0 - truth).abs() <= share * truth + 1.2e-7, "1 + exp {x}: {sum:e}");
            assert!((rounded - 1.0 - weight).abs() <= 1.2e-7, "1 + {weight:e}: {rounded:e}");
        }
    }

    #[test]
    fn weights_at_the_ends() {
        if !Isa::available().contains(&Isa::Avx512Bf16) {
            return;
        }
        let (found, sums) = weights(&[3.0, f32::NEG_INFINITY, -1e30, 3.0]);
        assert_eq!((found, sums), (vec![1.0, 0.0, 0.0, 1.0], [2.0, 2.0]));
        let (found, _) = weights(&[0.0, f32::NAN]);
        assert!(found[1].is_nan());
        assert!(weights(&[f32::INFINITY]).0[0].is_nan());
    }
}
