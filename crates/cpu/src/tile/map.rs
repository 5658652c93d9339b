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
        unsafe { std::slice::from_raw_parts(self.data.offset(row as isize * self.row).cast(), length) }
    }

    /// A row of the output.
    ///
    /// # Safety
    /// The row has `lanes` elements of `T` that nothing else refers to.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "it stands for raw memory")]
    unsafe fn row_mut<T>(&self, row: usize, lanes: usize) -> &mut [T] {
        // SAFETY: as the caller vouches.
        unsafe { std::slice::from_raw_parts_mut(self.data.offset(row as isize * self.row).cast(), lanes) }
    }
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

/// The loop of `select`, by a byte, over elements of `T`.
pub(crate) fn choose<T: Copy>(isa: Isa) -> Compiled<Span> {
    select::<Choose<T>>(isa)
}

/// The loop that makes linear values.
pub(crate) fn ramp<T: Wrapping>(isa: Isa) -> Compiled<Span> {
    select::<Ramp<T>>(isa)
}
