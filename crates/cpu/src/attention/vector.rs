//! The machine's vectors, as the attention engine sees them.
//!
//! The engine is written once over [`Vector`]; [`run`] instantiates it for each instruction set inside a
//! function with that set's target features, so that everything inlines into it. An instruction set is no
//! more than the dozen operations below.

use tilewright_ir::DType;

use crate::isa::Isa;
use crate::memory::Number;

/// A float that attention is computed in, with the constants of its exponential.
pub(crate) trait Scalar: Number + Default + PartialOrd + PartialEq {
    /// Its element type.
    const DTYPE: DType;
    /// log₂ e.
    const LOG2_E: Self;
    /// 1.5·2ᵐ for m bits of fraction: adding it rounds to an integer, which the lowest bits then hold.
    const ROUNDER: Self;
    /// −ln 2, the bits that multiply exactly by every exponent.
    const MINUS_LN2_HIGH: Self;
    /// −ln 2, the rest.
    const MINUS_LN2_LOW: Self;
    /// Below this, the exponential is 0.
    const EXP_UNDERFLOW: Self;
    /// A polynomial for eʳ on |r| ≤ ln 2 / 2, highest power first.
    const EXP_POLYNOMIAL: &'static [Self];
    /// −∞.
    const NEG_INFINITY: Self;
    /// ∞.
    const INFINITY: Self;
    /// Whether it is neither infinite nor NaN.
    fn is_finite(self) -> bool;
    /// The sum.
    fn plus(self, other: Self) -> Self;
    /// The nearest value.
    fn from_f64(x: f64) -> Self;
    /// The value.
    fn to_f64(self) -> f64;
}

impl Scalar for f32 {
    const DTYPE: DType = DType::F32;
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const ROUNDER: f32 = 12582912.0;
    const MINUS_LN2_HIGH: f32 = -355.0 / 512.0;
    const MINUS_LN2_LOW: f32 = 2.121_944_4e-4;
    const EXP_UNDERFLOW: f32 = -87.3;
    // Cephes, expf: 2 units in the last place.
    const EXP_POLYNOMIAL: &'static [f32] =
        &[1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.0e-1, 1.0, 1.0];
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;
    const INFINITY: f32 = f32::INFINITY;
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
    fn plus(self, other: f32) -> f32 {
        self + other
    }
    fn from_f64(x: f64) -> f32 {
        x as f32
    }
    fn to_f64(self) -> f64 {
        self as f64
    }
}

impl Scalar for f64 {
    const DTYPE: DType = DType::F64;
    const LOG2_E: f64 = std::f64::consts::LOG2_E;
    const ROUNDER: f64 = 6755399441055744.0;
    const MINUS_LN2_HIGH: f64 = -6.931_471_803_691_238e-1;
    const MINUS_LN2_LOW: f64 = -1.908_214_929_270_587_7e-10;
    const EXP_UNDERFLOW: f64 = -708.3;
    // Taylor's series: its first missing term is below 2⁻⁵⁷ at ln 2 / 2.
    const EXP_POLYNOMIAL: &'static [f64] = &[
        1.0 / 6227020800.0,
        1.0 / 479001600.0,
        1.0 / 39916800.0,
        1.0 / 3628800.0,
        1.0 / 362880.0,
        1.0 / 40320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;
    const INFINITY: f64 = f64::INFINITY;
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }
    fn plus(self, other: f64) -> f64 {
        self + other
    }
    fn from_f64(x: f64) -> f64 {
        x
    }
    fn to_f64(self) -> f64 {
        self
    }
}

/// One register of lanes.
///
/// # Safety
/// Every function may use the instruction set of its type: call them only where the machine has it.
/// Pointers must be good for [`Vector::LANES`] scalars, at any alignment.
pub(crate) trait Vector: Copy {
    /// A lane.
    type Scalar: Scalar;
    /// How many lanes.
    const LANES: usize;
    /// Rows of the register block of a matrix product, beside [`super::product::WIDTH`] vectors.
    const ROWS: usize;
    unsafe fn splat(x: Self::Scalar) -> Self;
    unsafe fn load(from: *const Self::Scalar) -> Self;
    unsafe fn store(self, to: *mut Self::Scalar);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self · factor + addend`, rounded once where the machine can.
    unsafe fn fma(self, factor: Self, addend: Self) -> Self;
    /// The greater; `other` where either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// 2ⁿ where `self` is [`Scalar::ROUNDER`] + n, for n within the exponent's range.
    unsafe fn power_of_two(self) -> Self;
    /// 0 where `x < bound`, else `self`.
    unsafe fn zero_where_less(self, x: Self, bound: Self) -> Self;
    /// The greatest of the lanes, none of which may be NaN.
    unsafe fn greatest(self) -> Self::Scalar;
    /// The sum of the lanes, halves first.
    unsafe fn total(self) -> Self::Scalar;

    /// Rows and columns of the matrices that [`Vector::transpose`] takes.
    const SQUARE: usize = 1;
    /// Transposes a square: from rows that lie so many elements apart to others.
    ///
    /// # Safety
    /// As the trait's; the pointers are good for [`Vector::SQUARE`] rows of as many scalars.
    #[inline(always)]
    unsafe fn transpose((from, _): (*const Self::Scalar, usize), (to, _): (*mut Self::Scalar, usize)) {
        // SAFETY: squares are single elements unless a machine has something better.
        unsafe { *to = *from }
    }

    /// eˣ for x at most about 88 (`f32`), 709 (`f64`): 0 below the least normal number, NaN for NaN.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: as the trait's.
        unsafe {
            let rounder = Self::splat(Self::Scalar::ROUNDER);
            let rounded = self.fma(Self::splat(Self::Scalar::LOG2_E), rounder);
            let n = rounded.sub(rounder);
            let r = n.fma(Self::splat(Self::Scalar::MINUS_LN2_HIGH), self);
            let r = n.fma(Self::splat(Self::Scalar::MINUS_LN2_LOW), r);
            let coefficients = Self::Scalar::EXP_POLYNOMIAL;
            let mut sum = Self::splat(coefficients[0]);
            for &coefficient in &coefficients[1..] {
                sum = sum.fma(r, Self::splat(coefficient));
            }
            let underflow = Self::splat(Self::Scalar::EXP_UNDERFLOW);
            sum.mul(rounded.power_of_two()).zero_where_less(self, underflow)
        }
    }

    /// The sum of the lanes, in a fixed order.
    #[inline(always)]
    unsafe fn sum(self) -> f64 {
        let mut lanes = [Self::Scalar::default(); 16];
        // SAFETY: as the trait's; no vector has more than 16 lanes.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes[..Self::LANES].iter().map(|x| x.to_f64()).sum()
    }
}

/// A piece of work that is written over vectors of `S`.
pub(crate) trait Work<S: Scalar> {
    type Output;
    /// Must be `#[inline(always)]`.
    ///
    /// # Safety
    /// Only where the machine has the instruction set of `V`.
    unsafe fn run<V: Vector<Scalar = S>>(self) -> Self::Output;
}

/// A float that [`Work`] can be dispatched for.
pub(crate) trait Dispatch: Scalar {
    /// Runs `work` with the widest vectors of `isa`.
    ///
    /// # Safety
    /// The machine must have `isa`; besides, what `work` asks for.
    unsafe fn dispatch<W: Work<Self>>(isa: Isa, work: W) -> W::Output;
}

impl Dispatch for f32 {
    unsafe fn dispatch<W: Work<f32>>(isa: Isa, work: W) -> W::Output {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => x86::avx512::<f32, x86::F32x16, W>(work),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::avx2::<f32, x86::F32x8, W>(work),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => neon::neon::<f32, neon::F32x4, W>(work),
                _ => work.run::<Lanes<f32, 4>>(),
            }
        }
    }
}

impl Dispatch for f64 {
    unsafe fn dispatch<W: Work<f64>>(isa: Isa, work: W) -> W::Output {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => x86::avx2::<f64, x86::F64x4, W>(work),
                _ => work.run::<Lanes<f64, 2>>(),
            }
        }
    }
}

/// Runs `work` with the vectors of AVX-512, where its instructions for `bf16` may be used too.
///
/// # Safety
/// The machine must have [`Isa::Avx512Bf16`]; besides, what `work` asks for.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn dispatch_bf16<W: Work<f32>>(work: W) -> W::Output {
    // SAFETY: as the caller vouches.
    unsafe { x86::avx512bf16::<f32, x86::F32x16, W>(work) }
}

/// Vectors in plain Rust, for machines without a set of their own.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<S, const N: usize>([S; N]);

macro_rules! portable {
    ($scalar:ty, $bits:ty, $lanes:literal) => {
        impl Vector for Lanes<$scalar, $lanes> {
            type Scalar = $scalar;
            const LANES: usize = $lanes;
            const ROWS: usize = 4;
            #[inline(always)]
            unsafe fn splat(x: $scalar) -> Self {
                Lanes([x; $lanes])
            }
            #[inline(always)]
            unsafe fn load(from: *const $scalar) -> Self {
                // SAFETY: the caller's pointer is good for the lanes.
                unsafe { Lanes(from.cast::<[$scalar; $lanes]>().read_unaligned()) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $scalar) {
                // SAFETY: the caller's pointer is good for the lanes.
                unsafe { to.cast::<[$scalar; $lanes]>().write_unaligned(self.0) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                Lanes(std::array::from_fn(|i| self.0[i] + other.0[i]))
            }
            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                Lanes(std::array::from_fn(|i| self.0[i] - other.0[i]))
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                Lanes(std::array::from_fn(|i| self.0[i] * other.0[i]))
            }
            #[inline(always)]
            unsafe fn fma(self, factor: Self, addend: Self) -> Self {
                Lanes(std::array::from_fn(|i| self.0[i] * factor.0[i] + addend.0[i]))
            }
            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self {
                Lanes(std::array::from_fn(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] }))
            }
            #[inline(always)]
            unsafe fn power_of_two(self) -> Self {
                const FRACTION: u32 = <$scalar>::MANTISSA_DIGITS - 1;
                let one = <$scalar>::to_bits(1.0);
                Lanes(self.0.map(|x| <$scalar>::from_bits((x.to_bits() << FRACTION).wrapping_add(one))))
            }
            #[inline(always)]
            unsafe fn zero_where_less(self, x: Self, bound: Self) -> Self {
                Lanes(std::array::from_fn(|i| if x.0[i] < bound.0[i] { 0.0 } else { self.0[i] }))
            }
            #[inline(always)]
            unsafe fn greatest(self) -> $scalar {
                self.0.into_iter().fold(<$scalar>::NEG_INFINITY, <$scalar>::max)
            }
            #[inline(always)]
            unsafe fn total(self) -> $scalar {
                let (low, high) = self.0.split_at($lanes / 2);
                low.iter().zip(high).map(|(low, high)| low + high).sum()
            }
        }
    };
}
portable!(f32, u32, 4);
portable!(f64, u64, 2);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Scalar, Vector, Work};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn avx2<S: Scalar, V: Vector<Scalar = S>, W: Work<S>>(work: W) -> W::Output {
        // SAFETY: the caller vouches for AVX2 and FMA.
        unsafe { work.run::<V>() }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn avx512<S: Scalar, V: Vector<Scalar = S>, W: Work<S>>(work: W) -> W::Output {
        // SAFETY: the caller vouches for AVX-512.
        unsafe { work.run::<V>() }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub(super) unsafe fn avx512bf16<S: Scalar, V: Vector<Scalar = S>, W: Work<S>>(work: W) -> W::Output {
        // SAFETY: the caller vouches for AVX-512 and its instructions for `bf16`.
        unsafe { work.run::<V>() }
    }

    /// Implements [`Vector`] by one intrinsic a function.
    macro_rules! vector {
        ($name:ident, $register:ty, $scalar:ty, lanes $lanes:literal, rows $rows:literal,
         $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $fma:ident, $max:ident,
         power |$p:ident| $power:expr, zero |$value:ident, $x:ident, $bound:ident| $zero:expr,
         greatest |$all:ident| $greatest:expr, total |$lanes_of:ident| $total:expr
         $(, square $square:literal $transpose:ident)?) => {
            #[derive(Clone, Copy)]
            pub(crate) struct $name($register);

            // SAFETY (all of them): the trait's contract is that of the intrinsics.
            impl Vector for $name {
                type Scalar = $scalar;
                const LANES: usize = $lanes;
                const ROWS: usize = $rows;
                #[inline(always)]
                unsafe fn splat(x: $scalar) -> Self {
                    unsafe { $name($splat(x)) }
                }
                #[inline(always)]
                unsafe fn load(from: *const $scalar) -> Self {
                    unsafe { $name($load(from)) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut $scalar) {
                    unsafe { $store(to, self.0) }
                }
                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    unsafe { $name($add(self.0, other.0)) }
                }
                #[inline(always)]
                unsafe fn sub(self, other: Self) -> Self {
                    unsafe { $name($sub(self.0, other.0)) }
                }
                #[inline(always)]
                unsafe fn mul(self, other: Self) -> Self {
                    unsafe { $name($mul(self.0, other.0)) }
                }
                #[inline(always)]
                unsafe fn fma(self, factor: Self, addend: Self) -> Self {
                    unsafe { $name($fma(self.0, factor.0, addend.0)) }
                }
                #[inline(always)]
                unsafe fn max(self, other: Self) -> Self {
                    unsafe { $name($max(self.0, other.0)) }
                }
                #[inline(always)]
                unsafe fn power_of_two(self) -> Self {
                    let $p = self.0;
                    unsafe { $name($power) }
                }
                #[inline(always)]
                unsafe fn zero_where_less(self, x: Self, bound: Self) -> Self {
                    let ($value, $x, $bound) = (self.0, x.0, bound.0);
                    unsafe { $name($zero) }
                }
                #[inline(always)]
                unsafe fn greatest(self) -> $scalar {
                    let $all = self.0;
                    unsafe { $greatest }
                }
                #[inline(always)]
                unsafe fn total(self) -> $scalar {
                    let $lanes_of = self.0;
                    unsafe { $total }
                }
                $(
                    const SQUARE: usize = $square;
                    #[inline(always)]
                    unsafe fn transpose(from: (*const $scalar, usize), to: (*mut $scalar, usize)) {
                        unsafe { $transpose(from, to) }
                    }
                )?
            }
        };
    }

    /// Transposes eight rows of eight: pairs of rows interleaved by one element, by two, then by four.
    #[inline(always)]
    unsafe fn transpose_8((from, from_row): (*const f32, usize), (to, to_row): (*mut f32, usize)) {
        // SAFETY: the caller vouches for AVX2 and the rows.
        unsafe {
            let rows: [__m256; 8] = std::array::from_fn(|i| _mm256_loadu_ps(from.add(i * from_row)));
            let pairs: [__m256d; 8] = std::array::from_fn(|i| {
                let (even, odd) = (rows[i / 2 * 2], rows[i / 2 * 2 + 1]);
                let pair =
                    if i % 2 == 0 { _mm256_unpacklo_ps(even, odd) } else { _mm256_unpackhi_ps(even, odd) };
                _mm256_castps_pd(pair)
            });
            let fours: [__m256; 8] = std::array::from_fn(|i| {
                let (low, high) = (pairs[i / 4 * 4 + i % 4 / 2], pairs[i / 4 * 4 + i % 4 / 2 + 2]);
                let four =
                    if i % 2 == 0 { _mm256_unpacklo_pd(low, high) } else { _mm256_unpackhi_pd(low, high) };
                _mm256_castpd_ps(four)
            });
            for i in 0..4 {
                let (low, high) = (fours[i], fours[i + 4]);
                _mm256_storeu_ps(to.add(i * to_row), _mm256_permute2f128_ps::<0x20>(low, high));
                _mm256_storeu_ps(to.add((i + 4) * to_row), _mm256_permute2f128_ps::<0x31>(low, high));
            }
        }
    }

    vector!(F32x8, __m256, f32, lanes 8, rows 6,
    _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps,
    _mm256_fmadd_ps, _mm256_max_ps,
    power |p| {
        let shifted = _mm256_slli_epi32::<23>(_mm256_castps_si256(p));
        _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_set1_epi32(0x3F80_0000)))
    },
    zero |value, x, bound| _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, bound), value),
    greatest |all| {
        let four = _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
    },
    total |all| {
        let four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    },
    square 8 transpose_8);

    vector!(F64x4, __m256d, f64, lanes 4, rows 6,
    _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd, _mm256_sub_pd, _mm256_mul_pd,
    _mm256_fmadd_pd, _mm256_max_pd,
    power |p| {
        let shifted = _mm256_slli_epi64::<52>(_mm256_castpd_si256(p));
        _mm256_castsi256_pd(_mm256_add_epi64(shifted, _mm256_set1_epi64x(0x3FF0_0000_0000_0000)))
    },
    zero |value, x, bound| _mm256_andnot_pd(_mm256_cmp_pd::<_CMP_LT_OQ>(x, bound), value),
    greatest |all| {
        let two = _mm_max_pd(_mm256_castpd256_pd128(all), _mm256_extractf128_pd::<1>(all));
        _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)))
    },
    total |all| {
        let two = _mm_add_pd(_mm256_castpd256_pd128(all), _mm256_extractf128_pd::<1>(all));
        _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
    });

    vector!(F32x16, __m512, f32, lanes 16, rows 8,
        _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps,
        _mm512_fmadd_ps, _mm512_max_ps,
        power |p| {
            let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(p));
            _mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(0x3F80_0000)))
        },
        zero |value, x, bound| _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound), value),
        greatest |all| _mm512_reduce_max_ps(all),
        total |all| _mm512_reduce_add_ps(all),
        square 8 transpose_8);
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::{Scalar, Vector, Work};

    #[target_feature(enable = "neon")]
    pub(super) unsafe fn neon<S: Scalar, V: Vector<Scalar = S>, W: Work<S>>(work: W) -> W::Output {
        // SAFETY: the caller vouches for NEON.
        unsafe { work.run::<V>() }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct F32x4(float32x4_t);

    // SAFETY (all of them): the trait's contract is that of the intrinsics.
    impl Vector for F32x4 {
        type Scalar = f32;
        const LANES: usize = 4;
        const ROWS: usize = 8;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { F32x4(vdupq_n_f32(x)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { F32x4(vld1q_f32(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { vst1q_f32(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { F32x4(vaddq_f32(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { F32x4(vsubq_f32(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { F32x4(vmulq_f32(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn fma(self, factor: Self, addend: Self) -> Self {
            unsafe { F32x4(vfmaq_f32(addend.0, self.0, factor.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            unsafe { F32x4(vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn power_of_two(self) -> Self {
            unsafe {
                let shifted = vshlq_n_u32::<23>(vreinterpretq_u32_f32(self.0));
                F32x4(vreinterpretq_f32_u32(vaddq_u32(shifted, vdupq_n_u32(0x3F80_0000))))
            }
        }
        #[inline(always)]
        unsafe fn zero_where_less(self, x: Self, bound: Self) -> Self {
            unsafe { F32x4(vbslq_f32(vcltq_f32(x.0, bound.0), vdupq_n_f32(0.0), self.0)) }
        }
        #[inline(always)]
        unsafe fn greatest(self) -> f32 {
            unsafe { vmaxvq_f32(self.0) }
        }
        #[inline(always)]
        unsafe fn total(self) -> f32 {
            unsafe { vaddvq_f32(self.0) }
        }
    }
}
