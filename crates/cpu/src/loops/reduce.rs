//! Reductions of rows, in an order that depends on sizes only.
//!
//! Where lanes run along the row, a row is summed into [`WIDTH`] partial results, of which each takes every
//! `WIDTH`-th element, and these are joined as a tree. Where they run across rows, each lane is a row; a
//! tile's elements are summed first and then added to what there is, so that errors grow with the number
//! of tiles instead of elements.

use std::marker::PhantomData;

use tilewright_ir::Result;
use tilewright_plan::Kind;
use tilewright_plan::loops::{Lanes, RowReduction};

use crate::isa::{Compiled, Isa, Kernel, Machine, select};
use crate::math::{double, single};
use crate::memory::Aligned;
use crate::tile::size;

/// Partial results of a row.
const WIDTH: usize = 32;

/// A tile's values, and where they are summed.
pub(super) struct Fold {
    lines: usize,
    /// Elements of each line in the tile.
    count: usize,
    from: *const u8,
    /// Bytes from line to line, or from element to element where lanes are lines.
    row: isize,
    /// [`WIDTH`] partial results for each line, or one.
    partial: *mut u8,
    /// Number of the first element in its row.
    start: usize,
    /// For `ArgMax`: the position of each line's greatest so far, −1 where there is none.
    positions: *mut i64,
}

/// How one sink reduces.
#[derive(Clone, Copy)]
pub(super) struct Reducer {
    kind: Kind,
    lanes: Lanes,
    argmax: bool,
    fold: Compiled<Fold>,
    join: Compiled<Join>,
    identity: u64,
}

/// Partial results of a group's lines.
pub(super) struct Partial {
    values: Aligned<u64>,
    positions: Aligned<i64>,
}

/// Partial results joined into others, lane by lane; or, where `from` is none, the partial results of each
/// line into one.
pub(super) struct Join {
    count: usize,
    from: *const u8,
    to: *mut u8,
}

trait Element: Copy + PartialOrd + 'static {
    const ZERO: Self;
    const ONE: Self;
    const LEAST: Self;
    const GREATEST: Self;
    fn add(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    fn greater(self, other: Self) -> Self;
    fn lesser(self, other: Self) -> Self;
    fn is_nan(self) -> bool;
}

macro_rules! float_element {
    ($float:ty, $module:ident) => {
        impl Element for $float {
            const ZERO: $float = 0.0;
            const ONE: $float = 1.0;
            const LEAST: $float = <$float>::NEG_INFINITY;
            const GREATEST: $float = <$float>::INFINITY;
            #[inline(always)]
            fn add(self, other: $float) -> $float {
                self + other
            }
            #[inline(always)]
            fn multiply(self, other: $float) -> $float {
                self * other
            }
            #[inline(always)]
            fn greater(self, other: $float) -> $float {
                $module::max(self, other)
            }
            #[inline(always)]
            fn lesser(self, other: $float) -> $float {
                $module::min(self, other)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                self != self
            }
        }
    };
}

macro_rules! integer_element {
    ($integer:ty, $least:expr, $greatest:expr) => {
        impl Element for $integer {
            const ZERO: $integer = 0;
            const ONE: $integer = 1;
            const LEAST: $integer = $least;
            const GREATEST: $integer = $greatest;
            #[inline(always)]
            fn add(self, other: $integer) -> $integer {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn multiply(self, other: $integer) -> $integer {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn greater(self, other: $integer) -> $integer {
                self.max(other)
            }
            #[inline(always)]
            fn lesser(self, other: $integer) -> $integer {
                self.min(other)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                false
            }
        }
    };
}

float_element!(f64, double);
float_element!(f32, single);
integer_element!(i64, i64::MIN, i64::MAX);
integer_element!(i32, i32::MIN, i32::MAX);
// Truth values.
integer_element!(u8, 0, 1);

trait Monoid<T> {
    const IDENTITY: T;
    fn join(x: T, y: T) -> T;
}

macro_rules! monoid {
    ($name:ident, $identity:ident, $join:ident) => {
        struct $name;
        impl<T: Element> Monoid<T> for $name {
            const IDENTITY: T = T::$identity;
            #[inline(always)]
            fn join(x: T, y: T) -> T {
                x.$join(y)
            }
        }
    };
}

monoid!(Sum, ZERO, add);
monoid!(Product, ONE, multiply);
monoid!(Greatest, LEAST, greater);
monoid!(Least, GREATEST, lesser);

struct AlongRow<T, F>(PhantomData<(T, F)>);

impl<T: Element, F: Monoid<T>> Kernel for AlongRow<T, F> {
    type Arguments = Fold;

    #[inline(always)]
    unsafe fn run<M: Machine>(fold: &Fold) {
        for line in 0..fold.lines {
            // SAFETY: the caller vouches for so many elements in each line, and for the partial results.
            let (row, partial) = unsafe {
                let row = fold.from.offset(line as isize * fold.row).cast::<T>();
                let partial = fold.partial.cast::<[T; WIDTH]>().add(line);
                (std::slice::from_raw_parts(row, fold.count), &mut *partial)
            };
            let mut lanes = *partial;
            let (whole, rest) = row.as_chunks::<WIDTH>();
            for chunk in whole {
                for lane in 0..WIDTH {
                    lanes[lane] = F::join(lanes[lane], chunk[lane]);
                }
            }
            for (lane, &x) in lanes.iter_mut().zip(rest) {
                *lane = F::join(*lane, x);
            }
            *partial = lanes;
        }
    }
}

struct AcrossRows<T, F>(PhantomData<(T, F)>);

impl<T: Element, F: Monoid<T>> Kernel for AcrossRows<T, F> {
    type Arguments = Fold;

    #[inline(always)]
    unsafe fn run<M: Machine>(fold: &Fold) {
        for start in (0..fold.lines).step_by(WIDTH) {
            let width = WIDTH.min(fold.lines - start);
            let mut lanes = [F::IDENTITY; WIDTH];
            for element in 0..fold.count {
                // SAFETY: the caller vouches for so many elements, of so many lines each.
                let row = unsafe {
                    let row = fold.from.offset(element as isize * fold.row).cast::<T>();
                    std::slice::from_raw_parts(row.add(start), width)
                };
                match <&[T; WIDTH]>::try_from(row) {
                    Ok(row) => {
                        for lane in 0..WIDTH {
                            lanes[lane] = F::join(lanes[lane], row[lane]);
                        }
                    }
                    Err(_) => {
                        for (lane, &x) in lanes.iter_mut().zip(row) {
                            *lane = F::join(*lane, x);
                        }
                    }
                }
            }
            // SAFETY: as above, a partial result for each line.
            let partial =
                unsafe { std::slice::from_raw_parts_mut(fold.partial.cast::<T>().add(start), width) };
            for (partial, &lane) in partial.iter_mut().zip(&lanes) {
                *partial = F::join(*partial, lane);
            }
        }
    }
}

/// The first greatest; NaN is greater than all.
struct ArgMax<T>(PhantomData<T>);

impl<T: Element> ArgMax<T> {
    fn better(x: T, best: T) -> bool {
        !best.is_nan() && (x > best || x.is_nan())
    }
}

impl<T: Element> Kernel for ArgMax<T> {
    type Arguments = Fold;

    #[inline(always)]
    unsafe fn run<M: Machine>(fold: &Fold) {
        let size = size_of::<T>() as isize;
        // Without a partial result in each lane, lines are lanes where they follow one another.
        let (line_stride, element_stride) = if fold.row < 0 { (size, -fold.row) } else { (fold.row, size) };
        for line in 0..fold.lines as isize {
            // SAFETY: the caller vouches for the elements and for a value and a position for each line.
            unsafe {
                let best = fold.partial.cast::<T>().offset(line);
                let position = fold.positions.offset(line);
                for element in 0..fold.count as isize {
                    let x = *fold.from.offset(line * line_stride + element * element_stride).cast::<T>();
                    if *position < 0 || Self::better(x, *best) {
                        *best = x;
                        *position = (fold.start as isize + element) as i64;
                    }
                }
            }
        }
    }
}

struct JoinLanes<T, F>(PhantomData<(T, F)>);

impl<T: Element, F: Monoid<T>> Kernel for JoinLanes<T, F> {
    type Arguments = Join;

    #[inline(always)]
    unsafe fn run<M: Machine>(join: &Join) {
        // SAFETY: the caller vouches for `count` results, or for `count` lines of them.
        unsafe {
            if join.from.is_null() {
                for line in 0..join.count {
                    let mut lanes = *join.to.cast::<[T; WIDTH]>().add(line);
                    let mut width = WIDTH / 2;
                    while width > 0 {
                        for lane in 0..width {
                            lanes[lane] = F::join(lanes[lane], lanes[lane + width]);
                        }
                        width /= 2;
                    }
                    // The results move down over partial results that were read before.
                    *join.to.cast::<T>().add(line) = lanes[0];
                }
            } else {
                for i in 0..join.count {
                    let to = join.to.cast::<T>().add(i);
                    *to = F::join(*to, *join.from.cast::<T>().add(i));
                }
            }
        }
    }
}

fn kernels<T: Element>(kind: RowReduction, lanes: Lanes, isa: Isa) -> (Compiled<Fold>, Compiled<Join>) {
    macro_rules! of {
        ($monoid:ident) => {
            match lanes {
                Lanes::Row => (select::<AlongRow<T, $monoid>>(isa), select::<JoinLanes<T, $monoid>>(isa)),
                Lanes::Parallel => {
                    (select::<AcrossRows<T, $monoid>>(isa), select::<JoinLanes<T, $monoid>>(isa))
                }
            }
        };
    }
    match kind {
        RowReduction::Sum => of!(Sum),
        RowReduction::Prod => of!(Product),
        RowReduction::Max => of!(Greatest),
        RowReduction::Min => of!(Least),
        RowReduction::ArgMax => (select::<ArgMax<T>>(isa), select::<JoinLanes<T, Greatest>>(isa)),
    }
}

/// The bits of what a reduction over nothing gives.
fn identity(reduction: RowReduction, kind: Kind) -> u64 {
    fn value<T: Element>(reduction: RowReduction) -> T {
        match reduction {
            RowReduction::Sum => T::ZERO,
            RowReduction::Prod => T::ONE,
            RowReduction::Max | RowReduction::ArgMax => T::LEAST,
            RowReduction::Min => T::GREATEST,
        }
    }
    match kind {
        Kind::F64 => value::<f64>(reduction).to_bits(),
        Kind::F32 => value::<f32>(reduction).to_bits() as u64,
        Kind::I64 => value::<i64>(reduction) as u64,
        Kind::I32 => value::<i32>(reduction) as u32 as u64,
        Kind::Bool => value::<u8>(reduction) as u64,
    }
}

impl Reducer {
    /// The way to reduce values of a kind.
    pub fn new(reduction: RowReduction, kind: Kind, lanes: Lanes, isa: Isa) -> Reducer {
        let (fold, join) = match kind {
            Kind::F64 => kernels::<f64>(reduction, lanes, isa),
            Kind::F32 => kernels::<f32>(reduction, lanes, isa),
            Kind::I64 => kernels::<i64>(reduction, lanes, isa),
            Kind::I32 => kernels::<i32>(reduction, lanes, isa),
            Kind::Bool => kernels::<u8>(reduction, lanes, isa),
        };
        let argmax = reduction == RowReduction::ArgMax;
        Reducer { kind, lanes, argmax, fold, join, identity: identity(reduction, kind) }
    }

    /// Partial results for a line.
    fn width(&self) -> usize {
        if self.lanes == Lanes::Row && !self.argmax { WIDTH } else { 1 }
    }

    /// Room for the partial results of so many lines.
    pub fn partial(&self, lines: usize) -> Result<Partial> {
        let mut partial = Partial {
            values: Aligned::new(lines * self.width())?,
            positions: Aligned::new(if self.argmax { lines } else { 0 })?,
        };
        self.clear(&mut partial);
        Ok(partial)
    }

    /// Makes partial results those over no elements.
    pub fn clear(&self, partial: &mut Partial) {
        let pattern = match size(self.kind) {
            8 => self.identity,
            4 => self.identity << 32 | self.identity,
            _ => self.identity.wrapping_mul(0x0101_0101_0101_0101),
        };
        partial.values.fill(pattern);
        partial.positions.fill(-1);
    }

    /// Adds a tile: `count` elements of each of `lines` lines, of which the first is element `start` of its
    /// row. Rows of the tile are `stride` values apart.
    ///
    /// # Safety
    /// The tile can be read; the partial results are for so many lines.
    pub unsafe fn add(
        &self,
        partial: &mut Partial,
        tile: *const u8,
        stride: usize,
        lines: usize,
        (start, count): (usize, usize),
    ) {
        let row = (stride * size(self.kind)) as isize;
        let row = if self.argmax && self.lanes == Lanes::Parallel { -row } else { row };
        let fold = Fold {
            lines,
            count,
            from: tile,
            row,
            partial: partial.values.as_mut_ptr().cast(),
            start,
            positions: partial.positions.as_mut_ptr(),
        };
        // SAFETY: as the caller vouches.
        unsafe { (self.fold)(&fold) }
    }

    /// Adds what later chunks of the same lines gave.
    pub fn join(&self, partial: &mut Partial, later: &Partial, lines: usize) {
        if !self.argmax {
            let from = later.values.as_ptr().cast();
            let to = partial.values.as_mut_ptr().cast();
            // SAFETY: both have so many values.
            unsafe { (self.join)(&Join { count: lines * self.width(), from, to }) };
            return;
        }
        let stride = if self.lanes == Lanes::Row { 1 } else { lines };
        for line in (0..lines).filter(|&line| later.positions[line] >= 0) {
            let width = size(self.kind);
            // SAFETY: each line has a value and a position.
            unsafe {
                let value = later.values.as_ptr().cast::<u8>().add(line * width);
                (self.fold)(&Fold {
                    lines: 1,
                    count: 1,
                    from: value,
                    row: (stride * width) as isize,
                    partial: partial.values.as_mut_ptr().cast::<u8>().add(line * width),
                    start: later.positions[line] as usize,
                    positions: partial.positions.as_mut_ptr().add(line),
                });
            }
        }
    }

    /// The results, side by side.
    pub fn finish(&self, partial: &mut Partial, lines: usize, to: &mut [u64]) {
        if self.argmax {
            for (to, &position) in to.iter_mut().zip(&partial.positions[..lines]) {
                *to = position.max(0) as u64;
            }
            return;
        }
        if self.width() > 1 {
            let join = Join { count: lines, from: std::ptr::null(), to: partial.values.as_mut_ptr().cast() };
            // SAFETY: there are partial results of so many lines.
            unsafe { (self.join)(&join) };
        }
        let words = (lines * size(self.kind)).div_ceil(8);
        to[..words].copy_from_slice(&partial.values[..words]);
    }

    /// The kind of the results.
    pub fn result(&self) -> Kind {
        if self.argmax { Kind::I64 } else { self.kind }
    }
}
