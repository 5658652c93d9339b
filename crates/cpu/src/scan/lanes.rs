//! Short vectors of one element type, and the scan of one register's lanes.
//!
//! A register of 2ᵏ lanes is scanned in k steps (Sklansky 1960): in step s the upper half of each group of
//! 2ˢ⁺¹ lanes is combined with the last lane of the group's lower half. Backwards, everything is mirrored:
//! *upper* means *lower* and *last* means *first*.

//!
//! A *block* of four registers is transposed four lanes at a time, so that a quarter of each register's
//! elements, every fourth one, lies in a register of its own.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;

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
    /// Whether blocks may be asked for: the width is a multiple of four.
    const BLOCKS: bool = Self::WIDTH.is_multiple_of(4);
    /// Transposes each square of four neighbouring lanes of four registers; its own inverse.
    fn transpose(block: [Self; 4]) -> [Self; 4];
    /// What belongs to the squares of a transposed block, a lane each, in the order in which the block's elements
    /// lie in memory.
    fn in_order(self) -> Self;
    /// The inverse of [`Lanes::in_order`], with what belongs to the square before each, in the order of a scan, in
    /// its place; `first` stands before the first.
    fn before_each(self, first: Self, reverse: bool) -> Self;
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
    fn transpose(block: [Self; 4]) -> [Self; 4] {
        from_fn(|i| Portable(from_fn(|lane| block[lane % 4].0[lane / 4 * 4 + i])))
    }
    #[inline(always)]
    fn in_order(self) -> Self {
        let squares = N / 4;
        Portable(from_fn(|place| self.0[place % squares * 4 + place / squares]))
    }
    #[inline(always)]
    fn before_each(self, first: Self, reverse: bool) -> Self {
        let place = |lane: usize| lane % 4 * (N / 4) + lane / 4;
        Portable(from_fn(|lane| match (place(lane), reverse) {
            (0, false) => first.0[lane],
            (place, true) if place + 1 == N => first.0[lane],
            (place, false) => self.0[place - 1],
            (place, true) => self.0[place + 1],
        }))
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
