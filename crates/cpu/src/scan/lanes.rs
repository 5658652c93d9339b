//! Short vectors of one element type, and the scan of one register's lanes.
//!
//! A register of 2ᵏ lanes is scanned in k steps (Sklansky 1960): in step s the upper half of each group of
//! 2ˢ⁺¹ lanes is combined with the last lane of the group's lower half. Backwards, everything is mirrored:
//! *upper* means *lower* and *last* means *first*.

use std::array::from_fn;

use super::monoid::Monoid;

/// An element that hot scans know: the arithmetic of `ir`'s like-named operations.
pub(crate) trait Element: Copy + Default + Send + Sync + PartialEq + 'static {
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    /// `self · factor + term`, in one rounding.
    fn fused(self, factor: Self, term: Self) -> Self;
}

macro_rules! float_element {
    ($t:ty) => {
        impl Element for $t {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                self * other
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                // NaN where either is, unlike `f32::max`.
                if self.is_nan() || self > other { self } else { other }
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                if self.is_nan() || self < other { self } else { other }
            }
            #[inline(always)]
            fn fused(self, factor: Self, term: Self) -> Self {
                self.mul_add(factor, term)
            }
        }
    };
}

macro_rules! integer_element {
    ($t:ty) => {
        impl Element for $t {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                Ord::max(self, other)
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                Ord::min(self, other)
            }
            #[inline(always)]
            fn fused(self, factor: Self, term: Self) -> Self {
                self.wrapping_mul(factor).wrapping_add(term)
            }
        }
    };
}

float_element!(f32);
float_element!(f64);
integer_element!(i32);
integer_element!(i64);

/// The arithmetic of a vector.
///
/// Methods of a vector that needs a processor feature may only be called where that feature is present.
pub(crate) trait Arithmetic: Copy {
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    /// `self · factor + term`, in one rounding where the machine does it.
    fn mul_add(self, factor: Self, term: Self) -> Self;
}

/// A vector of `WIDTH` elements, a power of two.
///
/// # Safety
/// Implementors promise that `load` and `store` touch exactly `WIDTH` elements.
pub(crate) unsafe trait Lanes: Arithmetic {
    type Element: Element;
    /// One lane of the same arithmetic.
    type Single: Lanes<Element = Self::Element>;
    const WIDTH: usize;

    /// # Safety
    /// `pointer` must be valid for reading `WIDTH` elements; no alignment is asked for.
    unsafe fn load(pointer: *const Self::Element) -> Self;
    /// # Safety
    /// `pointer` must be valid for writing `WIDTH` elements; no alignment is asked for.
    unsafe fn store(self, pointer: *mut Self::Element);
    /// [`Lanes::store`] past the caches, where the machine can.
    ///
    /// # Safety
    /// As for [`Lanes::store`]; and the pointer must be aligned to the vector's size.
    unsafe fn stream(self, pointer: *mut Self::Element);
    /// The element in every lane.
    fn splat(element: Self::Element) -> Self;
    /// Scans the lanes of each of the state's elements; and the state after all lanes.
    fn scan<M: Monoid<S>, const S: usize>(state: [Self; S], reverse: bool)
    -> ([Self; S], [Self::Element; S]);
}

/// A vector without intrinsics; `FUSED` says that the machine multiplies and adds in one rounding.
#[derive(Clone, Copy)]
pub(crate) struct Portable<E, const N: usize, const FUSED: bool = false>([E; N]);

impl<E: Element, const N: usize, const FUSED: bool> Arithmetic for Portable<E, N, FUSED> {
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Portable(from_fn(|i| self.0[i].add(other.0[i])))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Portable(from_fn(|i| self.0[i].mul(other.0[i])))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Portable(from_fn(|i| self.0[i].max(other.0[i])))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Portable(from_fn(|i| self.0[i].min(other.0[i])))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        match FUSED {
            true => Portable(from_fn(|i| self.0[i].fused(factor.0[i], term.0[i]))),
            false => self.mul(factor).add(term),
        }
    }
}

// SAFETY: `load` and `store` move one array of N elements.
unsafe impl<E: Element, const N: usize, const FUSED: bool> Lanes for Portable<E, N, FUSED> {
    type Element = E;
    type Single = Portable<E, 1, FUSED>;
    const WIDTH: usize = N;

    #[inline(always)]
    unsafe fn load(pointer: *const E) -> Self {
        // SAFETY: the caller's promise.
        Portable(unsafe { pointer.cast::<[E; N]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, pointer: *mut E) {
        // SAFETY: the caller's promise.
        unsafe { pointer.cast::<[E; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, pointer: *mut E) {
        // SAFETY: the caller's promise.
        unsafe { super::store::copy(pointer.cast(), (&raw const self.0).cast(), size_of::<[E; N]>(), true) }
    }
    #[inline(always)]
    fn splat(element: E) -> Self {
        Portable([element; N])
    }
    #[inline(always)]
    fn scan<M: Monoid<S>, const S: usize>(mut state: [Self; S], reverse: bool) -> ([Self; S], [E; S]) {
        for step in 0..N.trailing_zeros() as usize {
            let partner = |lane: usize| {
                let group = lane & !((2 << step) - 1);
                if reverse { group + (1 << step) } else { group + (1 << step) - 1 }
            };
            let changes = |lane: usize| (lane >> step) & 1 == !reverse as usize;
            let changed = M::combine(state.map(|x| Portable(from_fn(|lane| x.0[partner(lane)]))), state);
            state = from_fn(|i| {
                Portable(from_fn(|lane| if changes(lane) { changed[i].0[lane] } else { state[i].0[lane] }))
            });
        }
        (state, state.map(|x| x.0[if reverse { 0 } else { N - 1 }]))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2 {
    //! AVX2 with FMA. Every method asks for both features, which [`super::Arithmetic`] lets the caller
    //! promise.
    //!
    //! The last step of a scan, from one half of a register to the other, is done on the halves: with whole
    //! registers the compiler fills lanes that do not matter from whatever is at hand, such as the carried
    //! state, and the next register then waits for it three times as long.

    use std::arch::x86_64::*;
    use std::array::from_fn;

    use super::super::monoid::Monoid;
    use super::{Arithmetic, Lanes, Portable};

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
}
