//! Short vectors of one element type, with the two shuffles that a scan inside a register needs.
//!
//! A register of 2ᵏ lanes is scanned in k steps (Sklansky 1960): in step s the upper half of each group of
//! 2ˢ⁺¹ lanes is combined with the last lane of the group's lower half. Backwards, everything is mirrored:
//! *upper* means *lower* and *last* means *first*.

use std::array::from_fn;

/// An element that hot scans know: the arithmetic of `ir`'s like-named operations.
pub(crate) trait Element: Copy + Default + Send + Sync + PartialEq + 'static {
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
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
        }
    };
}

float_element!(f32);
float_element!(f64);
integer_element!(i32);
integer_element!(i64);

/// A vector of `WIDTH` elements, a power of two.
///
/// # Safety
/// Implementors promise that `load` and `store` touch exactly `WIDTH` elements. Methods of a vector that
/// needs a processor feature may only be called where that feature is present.
pub(crate) unsafe trait Lanes: Copy {
    type Element: Element;
    const WIDTH: usize;

    /// # Safety
    /// `pointer` must be valid for reading `WIDTH` elements; no alignment is asked for.
    unsafe fn load(pointer: *const Self::Element) -> Self;
    /// # Safety
    /// `pointer` must be valid for writing `WIDTH` elements; no alignment is asked for.
    unsafe fn store(self, pointer: *mut Self::Element);

    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    /// `self · factor + term`, in one rounding where the machine does it.
    fn mul_add(self, factor: Self, term: Self) -> Self;

    /// For each lane that step `step` changes: the lane that it is combined with. Others hold anything.
    fn partner(self, step: usize, reverse: bool) -> Self;
    /// The lanes that step `step` changes from `changed`, the rest from `self`.
    fn merge(self, changed: Self, step: usize, reverse: bool) -> Self;
    /// The last lane (the first where `reverse`) in every lane.
    fn end(self, reverse: bool) -> Self;
}

/// A vector without intrinsics.
#[derive(Clone, Copy)]
pub(crate) struct Portable<E, const N: usize>([E; N]);

/// Whether step `step` changes lane `lane`.
#[inline(always)]
fn changes(lane: usize, step: usize, reverse: bool) -> bool {
    (lane >> step) & 1 == !reverse as usize
}

// SAFETY: `load` and `store` move one array of N elements.
unsafe impl<E: Element, const N: usize> Lanes for Portable<E, N> {
    type Element = E;
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
        self.mul(factor).add(term)
    }
    #[inline(always)]
    fn partner(self, step: usize, reverse: bool) -> Self {
        Portable(from_fn(|i| {
            let group = i & !((2 << step) - 1);
            self.0[if reverse { group + (1 << step) } else { group + (1 << step) - 1 }]
        }))
    }
    #[inline(always)]
    fn merge(self, changed: Self, step: usize, reverse: bool) -> Self {
        Portable(from_fn(|i| if changes(i, step, reverse) { changed.0[i] } else { self.0[i] }))
    }
    #[inline(always)]
    fn end(self, reverse: bool) -> Self {
        Portable([self.0[if reverse { 0 } else { N - 1 }]; N])
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2 {
    //! AVX2 with FMA. Every method asks for both features, which [`super::Lanes`] lets the caller promise.

    use std::arch::x86_64::*;

    use super::Lanes;

    /// Eight floats.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x8(__m256);

    /// Four doubles.
    #[derive(Clone, Copy)]
    pub(crate) struct F64x4(__m256d);

    macro_rules! arithmetic {
        ($add:ident, $mul:ident, $max:ident, $min:ident, $fma:ident, $cmp:ident, $blendv:ident) => {
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
                    $blendv($max(self.0, other.0), self.0, $cmp::<_CMP_UNORD_Q>(self.0, self.0))
                })
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe {
                    $blendv($min(self.0, other.0), self.0, $cmp::<_CMP_UNORD_Q>(self.0, self.0))
                })
            }
            #[inline(always)]
            fn mul_add(self, factor: Self, term: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $fma(self.0, factor.0, term.0) })
            }
        };
    }

    // SAFETY: `load` and `store` move eight elements.
    unsafe impl Lanes for F32x8 {
        type Element = f32;
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
        arithmetic!(
            _mm256_add_ps,
            _mm256_mul_ps,
            _mm256_max_ps,
            _mm256_min_ps,
            _mm256_fmadd_ps,
            _mm256_cmp_ps,
            _mm256_blendv_ps
        );
        #[inline(always)]
        fn partner(self, step: usize, reverse: bool) -> Self {
            // SAFETY: the features are the caller's promise.
            F32x8(unsafe {
                match (step, reverse) {
                    (0, false) => _mm256_permute_ps::<0b10_10_00_00>(self.0),
                    (0, true) => _mm256_permute_ps::<0b11_11_01_01>(self.0),
                    (1, false) => _mm256_permute_ps::<0b01_01_01_01>(self.0),
                    (1, true) => _mm256_permute_ps::<0b10_10_10_10>(self.0),
                    (_, false) => {
                        let last = _mm256_permute_ps::<0b11_11_11_11>(self.0);
                        _mm256_permute2f128_ps::<0x00>(last, last)
                    }
                    (_, true) => {
                        let first = _mm256_permute_ps::<0b00_00_00_00>(self.0);
                        _mm256_permute2f128_ps::<0x11>(first, first)
                    }
                }
            })
        }
        #[inline(always)]
        fn merge(self, changed: Self, step: usize, reverse: bool) -> Self {
            // SAFETY: as above.
            F32x8(unsafe {
                match (step, reverse) {
                    (0, false) => _mm256_blend_ps::<0b1010_1010>(self.0, changed.0),
                    (0, true) => _mm256_blend_ps::<0b0101_0101>(self.0, changed.0),
                    (1, false) => _mm256_blend_ps::<0b1100_1100>(self.0, changed.0),
                    (1, true) => _mm256_blend_ps::<0b0011_0011>(self.0, changed.0),
                    (_, false) => _mm256_blend_ps::<0b1111_0000>(self.0, changed.0),
                    (_, true) => _mm256_blend_ps::<0b0000_1111>(self.0, changed.0),
                }
            })
        }
        #[inline(always)]
        fn end(self, reverse: bool) -> Self {
            // SAFETY: as above.
            F32x8(unsafe {
                if reverse {
                    _mm256_broadcastss_ps(_mm256_castps256_ps128(self.0))
                } else {
                    let last = _mm256_permute_ps::<0b11_11_11_11>(self.0);
                    _mm256_permute2f128_ps::<0x11>(last, last)
                }
            })
        }
    }

    // SAFETY: `load` and `store` move four elements.
    unsafe impl Lanes for F64x4 {
        type Element = f64;
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
        arithmetic!(
            _mm256_add_pd,
            _mm256_mul_pd,
            _mm256_max_pd,
            _mm256_min_pd,
            _mm256_fmadd_pd,
            _mm256_cmp_pd,
            _mm256_blendv_pd
        );
        #[inline(always)]
        fn partner(self, step: usize, reverse: bool) -> Self {
            // SAFETY: the features are the caller's promise.
            F64x4(unsafe {
                match (step, reverse) {
                    (0, false) => _mm256_permute_pd::<0b0000>(self.0),
                    (0, true) => _mm256_permute_pd::<0b1111>(self.0),
                    (_, false) => _mm256_permute4x64_pd::<0b01_01_01_01>(self.0),
                    (_, true) => _mm256_permute4x64_pd::<0b10_10_10_10>(self.0),
                }
            })
        }
        #[inline(always)]
        fn merge(self, changed: Self, step: usize, reverse: bool) -> Self {
            // SAFETY: as above.
            F64x4(unsafe {
                match (step, reverse) {
                    (0, false) => _mm256_blend_pd::<0b1010>(self.0, changed.0),
                    (0, true) => _mm256_blend_pd::<0b0101>(self.0, changed.0),
                    (_, false) => _mm256_blend_pd::<0b1100>(self.0, changed.0),
                    (_, true) => _mm256_blend_pd::<0b0011>(self.0, changed.0),
                }
            })
        }
        #[inline(always)]
        fn end(self, reverse: bool) -> Self {
            // SAFETY: as above.
            F64x4(unsafe {
                if reverse {
                    _mm256_permute4x64_pd::<0b00_00_00_00>(self.0)
                } else {
                    _mm256_permute4x64_pd::<0b11_11_11_11>(self.0)
                }
            })
        }
    }
}
