//! AVX2 with FMA. Every method asks for both features, which [`super::Arithmetic`] lets the caller
//! promise.
//!
//! The last step of a scan, from one half of a register to the other, is done on the halves: with whole
//! registers the compiler fills lanes that do not matter from whatever is at hand, such as the carried
//! state, and the next register then waits for it three times as long.

use std::arch::x86_64::*;
use std::array::from_fn;

use super::{Arithmetic, Lanes, Portable};
use crate::scan::monoid::Monoid;

macro_rules! arithmetic {
    ($name:ident, $register:ident, $doc:literal, $add:ident, $mul:ident, $max:ident, $min:ident, $fma:ident,
        $compare:ident, $blend:ident) => {
        #[doc = $doc]
        #[derive(Clone, Copy)]
        pub(crate) struct $name($register);

        impl Arithmetic for $name {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: the features are the caller's promise, here and below.
                Self(unsafe { $add(self.0, other.0) })
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $mul(self.0, other.0) })
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                // SAFETY: as above. The instruction gives its second operand where either is NaN.
                Self(unsafe {
                    $blend($max(self.0, other.0), self.0, $compare::<_CMP_UNORD_Q>(self.0, self.0))
                })
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe {
                    $blend($min(self.0, other.0), self.0, $compare::<_CMP_UNORD_Q>(self.0, self.0))
                })
            }
            #[inline(always)]
            fn mul_add(self, factor: Self, term: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $fma(self.0, factor.0, term.0) })
            }
        }
    };
}

arithmetic!(
    F32x8,
    __m256,
    "Eight floats.",
    _mm256_add_ps,
    _mm256_mul_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    _mm256_fmadd_ps,
    _mm256_cmp_ps,
    _mm256_blendv_ps
);
arithmetic!(
    F32x4,
    __m128,
    "Four floats.",
    _mm_add_ps,
    _mm_mul_ps,
    _mm_max_ps,
    _mm_min_ps,
    _mm_fmadd_ps,
    _mm_cmp_ps,
    _mm_blendv_ps
);
arithmetic!(
    F64x4,
    __m256d,
    "Four doubles.",
    _mm256_add_pd,
    _mm256_mul_pd,
    _mm256_max_pd,
    _mm256_min_pd,
    _mm256_fmadd_pd,
    _mm256_cmp_pd,
    _mm256_blendv_pd
);
arithmetic!(
    F64x2,
    __m128d,
    "Two doubles.",
    _mm_add_pd,
    _mm_mul_pd,
    _mm_max_pd,
    _mm_min_pd,
    _mm_fmadd_pd,
    _mm_cmp_pd,
    _mm_blendv_pd
);

// SAFETY: `load` and `store` move eight elements.
unsafe impl Lanes for F32x8 {
    type Element = f32;
    type Single = Portable<f32, 1, true>;
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn load(pointer: *const f32) -> Self {
        // SAFETY: the caller's promise.
        F32x8(unsafe { _mm256_loadu_ps(pointer) })
    }
    #[inline(always)]
    unsafe fn store(self, pointer: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(pointer, self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, pointer: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_stream_ps(pointer, self.0) }
    }
    #[inline(always)]
    fn splat(element: f32) -> Self {
        // SAFETY: the features are the caller's promise, here and below.
        F32x8(unsafe { _mm256_set1_ps(element) })
    }
    #[inline(always)]
    fn transpose([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
            let (next_low, next_high) = (_mm256_unpacklo_ps(c.0, d.0), _mm256_unpackhi_ps(c.0, d.0));
            [
                F32x8(_mm256_shuffle_ps::<0b01_00_01_00>(low, next_low)),
                F32x8(_mm256_shuffle_ps::<0b11_10_11_10>(low, next_low)),
                F32x8(_mm256_shuffle_ps::<0b01_00_01_00>(high, next_high)),
                F32x8(_mm256_shuffle_ps::<0b11_10_11_10>(high, next_high)),
            ]
        }
    }
    #[inline(always)]
    fn in_order(self) -> Self {
        // SAFETY: as above.
        F32x8(unsafe { _mm256_permutevar8x32_ps(self.0, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)) })
    }
    #[inline(always)]
    fn before_each(self, first: Self, reverse: bool) -> Self {
        // SAFETY: as above.
        F32x8(unsafe {
            if reverse {
                let moved = _mm256_permutevar8x32_ps(self.0, _mm256_setr_epi32(1, 3, 5, 7, 2, 4, 6, 7));
                _mm256_blend_ps::<0b1000_0000>(moved, first.0)
            } else {
                let moved = _mm256_permutevar8x32_ps(self.0, _mm256_setr_epi32(0, 1, 3, 5, 0, 2, 4, 6));
                _mm256_blend_ps::<0b0000_0001>(moved, first.0)
            }
        })
    }
    #[inline(always)]
    fn scan<M: Monoid<S>, const S: usize>(mut state: [Self; S], reverse: bool) -> ([Self; S], [f32; S]) {
        // SAFETY: as above.
        unsafe {
            let partner = state.map(|F32x8(x)| {
                F32x8(match reverse {
                    false => _mm256_permute_ps::<0b10_10_00_00>(x),
                    true => _mm256_permute_ps::<0b11_11_01_01>(x),
                })
            });
            let changed = M::combine(partner, state);
            state = from_fn(|i| {
                F32x8(match reverse {
                    false => _mm256_blend_ps::<0b1010_1010>(state[i].0, changed[i].0),
                    true => _mm256_blend_ps::<0b0101_0101>(state[i].0, changed[i].0),
                })
            });
            let partner = state.map(|F32x8(x)| {
                F32x8(match reverse {
                    false => _mm256_permute_ps::<0b01_01_01_01>(x),
                    true => _mm256_permute_ps::<0b10_10_10_10>(x),
                })
            });
            let changed = M::combine(partner, state);
            state = from_fn(|i| {
                F32x8(match reverse {
                    false => _mm256_blend_ps::<0b1100_1100>(state[i].0, changed[i].0),
                    true => _mm256_blend_ps::<0b0011_0011>(state[i].0, changed[i].0),
                })
            });
            let low = state.map(|F32x8(x)| F32x4(_mm256_castps256_ps128(x)));
            let high = state.map(|F32x8(x)| F32x4(_mm256_extractf128_ps::<1>(x)));
            if reverse {
                let first = high.map(|F32x4(x)| F32x4(_mm_permute_ps::<0b00_00_00_00>(x)));
                let low = M::combine(first, low);
                let whole = from_fn(|i| F32x8(_mm256_set_m128(high[i].0, low[i].0)));
                (whole, low.map(|F32x4(x)| _mm_cvtss_f32(x)))
            } else {
                let last = low.map(|F32x4(x)| F32x4(_mm_permute_ps::<0b11_11_11_11>(x)));
                let high = M::combine(last, high);
                let whole = from_fn(|i| F32x8(_mm256_set_m128(high[i].0, low[i].0)));
                (whole, high.map(|F32x4(x)| _mm_cvtss_f32(_mm_permute_ps::<0b11_11_11_11>(x))))
            }
        }
    }
}

// SAFETY: `load` and `store` move four elements.
unsafe impl Lanes for F64x4 {
    type Element = f64;
    type Single = Portable<f64, 1, true>;
    const WIDTH: usize = 4;

    #[inline(always)]
    unsafe fn load(pointer: *const f64) -> Self {
        // SAFETY: the caller's promise.
        F64x4(unsafe { _mm256_loadu_pd(pointer) })
    }
    #[inline(always)]
    unsafe fn store(self, pointer: *mut f64) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_pd(pointer, self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, pointer: *mut f64) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_stream_pd(pointer, self.0) }
    }
    #[inline(always)]
    fn splat(element: f64) -> Self {
        // SAFETY: the features are the caller's promise, here and below.
        F64x4(unsafe { _mm256_set1_pd(element) })
    }
    #[inline(always)]
    fn transpose([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        // SAFETY: as above.
        unsafe {
            let (even, odd) = (_mm256_unpacklo_pd(a.0, b.0), _mm256_unpackhi_pd(a.0, b.0));
            let (next_even, next_odd) = (_mm256_unpacklo_pd(c.0, d.0), _mm256_unpackhi_pd(c.0, d.0));
            [
                F64x4(_mm256_permute2f128_pd::<0x20>(even, next_even)),
                F64x4(_mm256_permute2f128_pd::<0x20>(odd, next_odd)),
                F64x4(_mm256_permute2f128_pd::<0x31>(even, next_even)),
                F64x4(_mm256_permute2f128_pd::<0x31>(odd, next_odd)),
            ]
        }
    }
    #[inline(always)]
    fn in_order(self) -> Self {
        self
    }
    #[inline(always)]
    fn before_each(self, first: Self, reverse: bool) -> Self {
        // SAFETY: as above.
        F64x4(unsafe {
            if reverse {
                _mm256_blend_pd::<0b1000>(_mm256_permute4x64_pd::<0b11_11_10_01>(self.0), first.0)
            } else {
                _mm256_blend_pd::<0b0001>(_mm256_permute4x64_pd::<0b10_01_00_00>(self.0), first.0)
            }
        })
    }
    #[inline(always)]
    fn scan<M: Monoid<S>, const S: usize>(mut state: [Self; S], reverse: bool) -> ([Self; S], [f64; S]) {
        // SAFETY: as above.
        unsafe {
            let partner = state.map(|F64x4(x)| {
                F64x4(match reverse {
                    false => _mm256_permute_pd::<0b0000>(x),
                    true => _mm256_permute_pd::<0b1111>(x),
                })
            });
            let changed = M::combine(partner, state);
            state = from_fn(|i| {
                F64x4(match reverse {
                    false => _mm256_blend_pd::<0b1010>(state[i].0, changed[i].0),
                    true => _mm256_blend_pd::<0b0101>(state[i].0, changed[i].0),
                })
            });
            let low = state.map(|F64x4(x)| F64x2(_mm256_castpd256_pd128(x)));
            let high = state.map(|F64x4(x)| F64x2(_mm256_extractf128_pd::<1>(x)));
            if reverse {
                let first = high.map(|F64x2(x)| F64x2(_mm_unpacklo_pd(x, x)));
                let low = M::combine(first, low);
                let whole = from_fn(|i| F64x4(_mm256_set_m128d(high[i].0, low[i].0)));
                (whole, low.map(|F64x2(x)| _mm_cvtsd_f64(x)))
            } else {
                let last = low.map(|F64x2(x)| F64x2(_mm_unpackhi_pd(x, x)));
                let high = M::combine(last, high);
                let whole = from_fn(|i| F64x4(_mm256_set_m128d(high[i].0, low[i].0)));
                (whole, high.map(|F64x2(x)| _mm_cvtsd_f64(_mm_unpackhi_pd(x, x))))
            }
        }
    }
}
