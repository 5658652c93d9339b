//! The matrix product of the attention engine: a register-blocked microkernel over packed panels
//! (Goto and van de Geijn 2008, the innermost two loops; the outer ones are attention's own blocks).
//!
//! The right operand lies in *panels* of [`width`] columns; the left one is read an element at a time and
//! may have any strides, so that a transposed product needs no transposition.

use super::vector::Vector;

/// Vectors across a register block.
pub(crate) const WIDTH: usize = 2;

/// Columns of a panel.
pub(crate) const fn width<V: Vector>() -> usize {
    WIDTH * V::LANES
}

/// A strided matrix that is read an element at a time.
#[derive(Clone, Copy)]
pub(crate) struct Left<S> {
    /// The element (0, 0).
    pub data: *const S,
    /// Elements between rows.
    pub row: usize,
    /// Elements between columns.
    pub column: usize,
}

/// A packed right operand.
#[derive(Clone, Copy)]
pub(crate) struct Panels<S> {
    /// The first panel, at the first row.
    pub data: *const S,
    /// Elements between panels.
    pub stride: usize,
    /// Elements between the rows of a panel.
    pub row: usize,
}

/// The result, row-major.
#[derive(Clone, Copy)]
pub(crate) struct Target<S> {
    /// The element (0, 0).
    pub data: *mut S,
    /// Elements between rows; at least `panels` panels wide.
    pub row: usize,
    /// Whether the product is added to what stands there.
    pub add: bool,
}

/// `target (+)= left [rows × depth] · right [depth × panels·width]`.
///
/// # Safety
/// The machine has the instruction set of `V`, and the operands cover the extents.
#[inline(always)]
pub(crate) unsafe fn product<V: Vector>(
    extents: (usize, usize, usize),
    left: Left<V::Scalar>,
    right: Panels<V::Scalar>,
    target: Target<V::Scalar>,
) {
    // SAFETY: as the caller vouches.
    unsafe { product_of::<V, WIDTH>(extents, left, right, target) }
}

/// As [`product`], with panels of `W` vectors.
///
/// # Safety
/// As [`product`].
#[inline(always)]
pub(crate) unsafe fn product_of<V: Vector, const W: usize>(
    (rows, depth, panels): (usize, usize, usize),
    left: Left<V::Scalar>,
    right: Panels<V::Scalar>,
    target: Target<V::Scalar>,
) {
    for panel in 0..panels {
        // SAFETY: within the extents that the caller vouches for.
        unsafe {
            let right = Panels { data: right.data.add(panel * right.stride), ..right };
            let target = Target { data: target.data.add(panel * W * V::LANES), ..target };
            let mut row = 0;
            while row < rows {
                let left = Left { data: left.data.add(row * left.row), ..left };
                let target = Target { data: target.data.add(row * target.row), ..target };
                row += match rows - row {
                    8.. if V::ROWS >= 8 => block::<V, 8, W>(depth, left, right, target),
                    6.. if V::ROWS >= 6 => block::<V, 6, W>(depth, left, right, target),
                    4.. => block::<V, 4, W>(depth, left, right, target),
                    2.. => block::<V, 2, W>(depth, left, right, target),
                    _ => block::<V, 1, W>(depth, left, right, target),
                };
            }
        }
    }
}

/// One register block; gives its rows.
#[inline(always)]
unsafe fn block<V: Vector, const ROWS: usize, const W: usize>(
    depth: usize,
    left: Left<V::Scalar>,
    right: Panels<V::Scalar>,
    target: Target<V::Scalar>,
) -> usize {
    // SAFETY: the caller vouches for `ROWS` rows, `depth` columns and one panel.
    unsafe {
        let mut sums = [[V::splat(Default::default()); W]; ROWS];
        let (mut from, mut at) = (left.data, right.data);
        for _ in 0..depth {
            let mut columns = [V::splat(Default::default()); W];
            for (i, column) in columns.iter_mut().enumerate() {
                *column = V::load(at.add(i * V::LANES));
            }
            let mut element = from;
            for sum in &mut sums {
                let x = V::splat(*element);
                for (sum, &column) in sum.iter_mut().zip(&columns) {
                    *sum = x.fma(column, *sum);
                }
                element = element.add(left.row);
            }
            from = from.add(left.column);
            at = at.add(right.row);
        }
        for (row, sum) in sums.iter().enumerate() {
            for (i, &sum) in sum.iter().enumerate() {
                let to = target.data.add(row * target.row + i * V::LANES);
                if target.add { V::load(to).add(sum).store(to) } else { sum.store(to) }
            }
        }
    }
    ROWS
}
