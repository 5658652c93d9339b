//! Loops over lanes: a function of one, two or three operands, compiled for each instruction set.

use std::marker::PhantomData;

use crate::isa::{Compiled, Isa, Kernel, Machine, Plain, select};

/// One operand of a loop.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    /// The first lane of the first row.
    pub data: *mut u8,
    /// Bytes from row to row.
    pub row: isize,
    /// Whether each lane has its own element; else a row has one.
    pub vector: bool,
}

/// What a loop works on: rows of lanes. The output overlaps no operand.
pub(crate) struct Span {
    pub rows: usize,
    pub lanes: usize,
    pub out: Operand,
    pub operands: [Operand; 3],
}

impl Operand {
    /// A row as a slice, or its one element.
    ///
    /// # Safety
    /// The row has `lanes` elements of `T`.
    #[inline(always)]
    unsafe fn row<T>(&self, row: usize, lanes: usize) -> &[T] {
        let length = if self.vector { lanes } else { 1 };
        // SAFETY: as the caller vouches.
        unsafe {
            std::slice::from_raw_parts(unknown(self.data.offset(row as isize * self.row)).cast(), length)
        }
    }

    /// A row of the output.
    ///
    /// # Safety
    /// The row has `lanes` elements of `T` that nothing else refers to.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "it stands for raw memory")]
    unsafe fn row_mut<T>(&self, row: usize, lanes: usize) -> &mut [T] {
        // SAFETY: as the caller vouches.
        unsafe {
            std::slice::from_raw_parts_mut(unknown(self.data.offset(row as isize * self.row)).cast(), lanes)
        }
    }
}

/// An address of which the compiler knows nothing. Rows then look unrelated to it, and whether an output overlaps an
/// operand is looked at for each row; else it is looked at for all rows at once, which fails where one steps backward,
/// and elements are then taken one at a time.
#[inline(always)]
pub(super) fn unknown(address: *mut u8) -> *mut u8 {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        let mut address = address;
        // SAFETY: no instruction.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) address, options(pure, readonly, nostack, preserves_flags));
        }
        address
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    address
}

/// A function of one element. `apply` must be `#[inline(always)]`.
pub(crate) trait Map1 {
    type Input: Copy;
    type Output: Copy;
    fn apply<M: Machine>(x: Self::Input) -> Self::Output;

    /// Whether `apply` does not hold for `x`, which is rare: then `apply_rarely` does.
    #[inline(always)]
    fn is_rare(_: Self::Input) -> bool {
        false
    }

    /// The function at an element that is rare, too slow to be used for all.
    #[inline(always)]
    fn apply_rarely(x: Self::Input) -> Self::Output {
        Self::apply::<Plain>(x)
    }
}

/// A function of two elements. `apply` must be `#[inline(always)]`.
pub(crate) trait Map2 {
    type Input: Copy;
    type Output: Copy;
    fn apply<M: Machine>(x: Self::Input, y: Self::Input) -> Self::Output;
}

struct Loop1<F>(PhantomData<F>);

impl<F: Map1> Kernel for Loop1<F> {
    type Arguments = Span;

    #[inline(always)]
    unsafe fn run<M: Machine>(span: &Span) {
        for row in 0..span.rows {
            // SAFETY: the span's rows are of these types and lengths, and its output is not shared.
            let (out, x) = unsafe {
                (
                    span.out.row_mut::<F::Output>(row, span.lanes),
                    span.operands[0].row::<F::Input>(row, span.lanes),
                )
            };
            if !span.operands[0].vector {
                out.fill(if F::is_rare(x[0]) { F::apply_rarely(x[0]) } else { F::apply::<M>(x[0]) });
                continue;
            }
            let mut any_rare = false;
            for (out, &x) in out.iter_mut().zip(x) {
                any_rare |= F::is_rare(x);
                *out = F::apply::<M>(x);
            }
            if any_rare {
                for (out, &x) in out.iter_mut().zip(x).filter(|(_, x)| F::is_rare(**x)) {
                    *out = F::apply_rarely(x);
                }
            }
        }
    }
}

struct Loop2<F>(PhantomData<F>);

impl<F: Map2> Kernel for Loop2<F> {
    type Arguments = Span;

    #[inline(always)]
    unsafe fn run<M: Machine>(span: &Span) {
        let [a, b, _] = span.operands;
        for row in 0..span.rows {
            // SAFETY: the span's rows are of these types and lengths, and its output is not shared.
            let (out, x, y) = unsafe {
                (
                    span.out.row_mut::<F::Output>(row, span.lanes),
                    a.row::<F::Input>(row, span.lanes),
                    b.row::<F::Input>(row, span.lanes),
                )
            };
            match (a.vector, b.vector) {
                (true, true) => {
                    for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
                        *out = F::apply::<M>(x, y);
                    }
                }
                (true, false) => {
                    let y = y[0];
                    for (out, &x) in out.iter_mut().zip(x) {
                        *out = F::apply::<M>(x, y);
                    }
                }
                (false, true) => {
                    let x = x[0];
                    for (out, &y) in out.iter_mut().zip(y) {
                        *out = F::apply::<M>(x, y);
                    }
                }
                (false, false) => out.fill(F::apply::<M>(x[0], y[0])),
            }
        }
    }
}

struct Quotient;

impl Map2 for Quotient {
    type Input = f32;
    type Output = f32;
    #[inline(always)]
    fn apply<M: Machine>(x: f32, y: f32) -> f32 {
        x / y
    }
}

/// Division in `f32`; of many numbers by one, by its reciprocal.
struct Divide;

impl Divide {
    /// Divisors for which, with dividends that are not [rare](Divide::rarity), quotient and remainder are normal numbers:
    /// 2⁻³² to 2³².
    const RANGE: std::ops::RangeInclusive<f32> = 2.328_306_4e-10..=4_294_967_296.0;

    /// x / y to the last bit (Markstein 1990): the remainder of x · (1 / y), which is exact, tells how far it is off.
    /// For a divisor within [`Divide::RANGE`].
    #[inline(always)]
    fn by_reciprocal<M: Machine>(out: &mut [f32], x: &[f32], y: f32) {
        let reciprocal = 1.0 / y;
        let mut rarity = 0;
        for (out, &x) in out.iter_mut().zip(x) {
            let near = x * reciprocal;
            let left = M::multiply_add(-near, y, x);
            rarity |= Divide::rarity(x);
            *out = M::multiply_add(left, reciprocal, near).copysign(near);
        }
        if rarity >> 30 != 0 {
            for (out, &x) in out.iter_mut().zip(x).filter(|(_, x)| Divide::rarity(**x) >> 30 != 0) {
                *out = x / y;
            }
        }
    }

    /// Less than 2³⁰ for absolute values from 2⁻⁶³ up to 2⁶⁵; looked at for many dividends at once.
    #[inline(always)]
    fn rarity(x: f32) -> u32 {
        x.abs().to_bits().wrapping_sub(0x2000_0000)
    }
}

impl Kernel for Divide {
    type Arguments = Span;

    #[inline(always)]
    unsafe fn run<M: Machine>(span: &Span) {
        let [a, b, _] = span.operands;
        // SAFETY (both): the span's rows are of these types and lengths, and its output is not shared.
        if !M::FUSED || !a.vector || b.vector {
            return unsafe { Loop2::<Quotient>::run::<M>(span) };
        }
        for row in 0..span.rows {
            let (out, x, y) = unsafe {
                (span.out.row_mut(row, span.lanes), a.row(row, span.lanes), b.row::<f32>(row, span.lanes)[0])
            };
            if Divide::RANGE.contains(&y.abs()) {
                Divide::by_reciprocal::<M>(out, x, y);
            } else {
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = x / y);
            }
        }
    }
}

struct Choose<T>(PhantomData<T>);

impl<T: Copy> Kernel for Choose<T> {
    type Arguments = Span;

    #[inline(always)]
    unsafe fn run<M: Machine>(span: &Span) {
        let [c, a, b] = span.operands;
        for row in 0..span.rows {
            // SAFETY: the span's rows are of these types and lengths, and its output is not shared.
            let (out, c, x, y) = unsafe {
                (
                    span.out.row_mut::<T>(row, span.lanes),
                    c.row::<u8>(row, span.lanes),
                    a.row::<T>(row, span.lanes),
                    b.row::<T>(row, span.lanes),
                )
            };
            let chosen = |c: u8, x: T, y: T| if c != 0 { x } else { y };
            match (span.operands[0].vector, a.vector, b.vector) {
                (false, true, _) if c[0] != 0 => out.copy_from_slice(x),
                (false, false, _) if c[0] != 0 => out.fill(x[0]),
                (false, _, true) => out.copy_from_slice(y),
                (false, _, false) => out.fill(y[0]),
                (true, true, true) => {
                    for (((out, &c), &x), &y) in out.iter_mut().zip(c).zip(x).zip(y) {
                        *out = chosen(c, x, y);
                    }
                }
                (true, true, false) => {
                    let y = y[0];
                    for ((out, &c), &x) in out.iter_mut().zip(c).zip(x) {
                        *out = chosen(c, x, y);
                    }
                }
                (true, false, true) => {
                    let x = x[0];
                    for ((out, &c), &y) in out.iter_mut().zip(c).zip(y) {
                        *out = chosen(c, x, y);
                    }
                }
                (true, false, false) => {
                    let (x, y) = (x[0], y[0]);
                    for (out, &c) in out.iter_mut().zip(c) {
                        *out = chosen(c, x, y);
                    }
                }
            }
        }
    }
}

/// `base + step · lane`.
struct Ramp<T>(PhantomData<T>);

/// An integer that wraps.
pub(crate) trait Wrapping: Copy {
    /// `base + step · lane`.
    fn ramp(base: Self, step: Self, lane: u32) -> Self;
}

impl Wrapping for i32 {
    #[inline(always)]
    fn ramp(base: i32, step: i32, lane: u32) -> i32 {
        base.wrapping_add(step.wrapping_mul(lane as i32))
    }
}

impl Wrapping for i64 {
    #[inline(always)]
    fn ramp(base: i64, step: i64, lane: u32) -> i64 {
        base.wrapping_add(step.wrapping_mul(lane as i64))
    }
}

impl<T: Wrapping> Kernel for Ramp<T> {
    type Arguments = Span;

    #[inline(always)]
    unsafe fn run<M: Machine>(span: &Span) {
        for row in 0..span.rows {
            // SAFETY: the span's rows are of these types and lengths, and its output is not shared.
            let (out, base, step) = unsafe {
                (
                    span.out.row_mut::<T>(row, span.lanes),
                    span.operands[0].row::<T>(row, 1)[0],
                    span.operands[1].row::<T>(row, 1)[0],
                )
            };
            for (lane, out) in out.iter_mut().enumerate() {
                *out = T::ramp(base, step, lane as u32);
            }
        }
    }
}

/// The loop of a function of one element.
pub(crate) fn map1<F: Map1>(isa: Isa) -> Compiled<Span> {
    select::<Loop1<F>>(isa)
}

/// The loop of a function of two elements.
pub(crate) fn map2<F: Map2>(isa: Isa) -> Compiled<Span> {
    select::<Loop2<F>>(isa)
}

/// The loop of a division in `f32`.
pub(crate) fn divide(isa: Isa) -> Compiled<Span> {
    select::<Divide>(isa)
}

/// The loop of `select`, by a byte, over elements of `T`.
pub(crate) fn choose<T: Copy>(isa: Isa) -> Compiled<Span> {
    select::<Choose<T>>(isa)
}

/// The loop that makes linear values.
pub(crate) fn ramp<T: Wrapping>(isa: Isa) -> Compiled<Span> {
    select::<Ramp<T>>(isa)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_by_one_number_is_that_of_the_machine() {
        let special =
            [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-45, 1e-38, -3e38, 1e-19, 1e19];
        let ordinary =
            (0..1 << 16).map(|i| f32::from_bits(0x3F80_0000 + i * 127) * if i % 2 == 0 { 1.0 } else { -7e5 });
        let x: Vec<f32> = special.into_iter().chain(ordinary).collect();
        for isa in Isa::available() {
            for y in [3.0f32, 50.0, -0.7, 1.999_999_9, 1e-20, 0.0, -0.0, f32::INFINITY, f32::NAN, 1e30, 1e-18]
            {
                let mut out = vec![0.0f32; x.len()];
                let vector =
                    |data: *const f32| Operand { data: data.cast_mut().cast(), row: 0, vector: true };
                let divisor = Operand { vector: false, ..vector(&y) };
                let operands = [vector(x.as_ptr()), divisor, divisor];
                let span = Span { rows: 1, lanes: x.len(), out: vector(out.as_mut_ptr()), operands };
                // SAFETY: one row of so many lanes each; the machine has the set.
                unsafe { divide(isa)(&span) };
                for (&x, found) in x.iter().zip(out) {
                    let expected = x / y;
                    let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                    assert!(same, "{x:e} / {y:e} on {}: {found:e}, not {expected:e}", isa.name());
                }
            }
        }
    }
}
