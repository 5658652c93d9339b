//! Few queries against keys and values that are read where they lie: to pack them would cost more than the products.
//!
//! Memory's rate is the limit, so no lane of a vector should stand empty, and memory should never wait for arithmetic:
//! what is read next is asked for between the products, a few rows at a time.
//!
//! Fewest queries are multiplied along the head size, with a sum over lanes for each pair. More are the packed right
//! operand of a product whose left one are the keys, read an element at a time; its scores come out transposed. So are
//! the fewest where the log-sum-exp is wanted: a gradient may follow, whose scores add in this order, and a row's weights
//! must not differ by the scores' roundings.

use std::ops::Range;

use tilewright_ir::Result;
use tilewright_plan::attention::AttentionShape;

use super::keys::{Source, weigh};
use super::operands::{Operands, panel_width};
use super::pack::{pack_columns, pack_rows, read_rows};
use super::product::{Left, Panels, Target, WIDTH, product, product_of, width};
use super::regions::Admitted;
use super::vector::{Dispatch, Scalar, Vector, Work};
use crate::memory::Aligned;
use crate::{Context, Isa};

/// Queries that are few.
const FEW: usize = 16;
/// Queries whose scores are sums over lanes.
const FEWEST: usize = 4;
/// Keys that are multiplied at once.
const GROUP: usize = 8;

/// Whether there are so few queries that keys and values are not rearranged for them.
pub(super) fn few(shape: &AttentionShape) -> bool {
    shape.queries <= FEW
}

/// Keys and values as they lie in memory.
pub(super) struct InMemory {
    operands: Operands,
    /// Elements of a vector.
    lanes: usize,
    /// Whether scores may add in any order.
    any_order: bool,
}

/// What a unit keeps.
pub(super) struct Scratch<S: Scalar> {
    /// `[queries × head size]`, times the scale.
    queries: Aligned<S>,
    /// The queries, packed in panels of so many columns.
    across: Aligned<S>,
    columns: usize,
    /// `[keys × queries]`: the scores of a panel.
    scores: Aligned<S>,
    /// A panel of keys or values, in the score type.
    rows: Aligned<S>,
    /// A panel of values, padded.
    values: Aligned<S>,
}

impl InMemory {
    pub(super) fn new<S: Dispatch>(operands: &Operands, context: &Context, any_order: bool) -> InMemory {
        InMemory { operands: *operands, lanes: panel_width::<S>(context.isa) / WIDTH, any_order }
    }

    /// The values at some keys, as a right operand; and whether they are finite, if that matters.
    ///
    /// # Safety
    /// As [`Source::add_values`]. The operand is good until the scratch is used again.
    #[inline(always)]
    unsafe fn values<V: Vector>(
        &self,
        (place, range): ((usize, usize), Range<usize>),
        matters: bool,
        scratch: &mut Scratch<V::Scalar>,
    ) -> (Panels<V::Scalar>, bool) {
        let (values, size) = (&self.operands.value, self.operands.shape.value_size);
        // SAFETY: as the caller vouches; the scratch holds a panel of values.
        unsafe {
            let in_place = values.rows_in_place::<V::Scalar>(place, range.start);
            if let Some((data, row)) = in_place.filter(|_| !matters && size.is_multiple_of(width::<V>())) {
                return (Panels { data, stride: width::<V>(), row }, true);
            }
            let block = &mut scratch.rows[..range.len() * size];
            read_rows(values, (place.0, place.1, range.start), 1.0, size, block);
            let finite = !matters || block.iter().all(|x| x.is_finite());
            let row = size.next_multiple_of(width::<V>());
            pack_rows::<V>(block, size, scratch.values.as_mut_ptr(), row);
            (Panels { data: scratch.values.as_ptr(), stride: width::<V>(), row }, finite)
        }
    }
}

impl<S: Dispatch> Source<S> for InMemory {
    type Scratch = Scratch<S>;

    const GRAIN: usize = FEW;

    unsafe fn dispatch<W: Work<S>>(&self, isa: Isa, work: W) -> W::Output {
        // SAFETY: as the caller vouches.
        unsafe { S::dispatch(isa, work) }
    }

    fn scratch(&self, _: usize, keys: usize) -> Result<Scratch<S>> {
        let AttentionShape { head_size, value_size, .. } = self.operands.shape;
        let panel = WIDTH * self.lanes;
        let across = FEW.next_multiple_of(panel);
        Ok(Scratch {
            queries: Aligned::scratch(FEW * head_size)?,
            across: Aligned::scratch(across * head_size)?,
            columns: panel,
            scores: Aligned::scratch(across * keys)?,
            rows: Aligned::scratch(keys * head_size.max(value_size))?,
            values: Aligned::scratch(keys * value_size.next_multiple_of(panel))?,
        })
    }

    #[inline(always)]
    unsafe fn take_queries<V: Vector<Scalar = S>>(
        &self,
        place: (usize, usize, usize),
        rows: usize,
        scratch: &mut Scratch<S>,
    ) {
        let size = self.operands.shape.head_size;
        let queries = &mut scratch.queries[..rows * size];
        scratch.columns = if rows <= self.lanes { self.lanes } else { WIDTH * self.lanes };
        let panel = scratch.columns * size;
        // SAFETY: as the caller vouches; there are `FEW` rows at most, and room for as many.
        unsafe {
            read_rows(&self.operands.query, place, self.operands.scale, size, queries);
            for (i, block) in queries.chunks(panel.max(1)).enumerate() {
                pack_columns::<V>(block, size, scratch.columns, scratch.across.as_mut_ptr().add(i * panel));
            }
        }
    }

    fn skip(&self, _: usize) -> usize {
        0
    }

    #[inline(always)]
    unsafe fn scores<V: Vector<Scalar = S>>(
        &self,
        rows: &Range<usize>,
        (place, range): ((usize, usize), Range<usize>),
        scores: Target<S>,
        scratch: &mut Scratch<S>,
    ) {
        debug_assert_eq!(rows.start, 0, "few queries are not cut");
        let rows = rows.len();
        let AttentionShape { head_size: size, value_size, .. } = self.operands.shape;
        let Scratch { queries, across, columns, scores: transposed, rows: block, .. } = scratch;
        // SAFETY: as the caller vouches; the scratch holds a panel of keys.
        let keys = unsafe {
            match self.operands.key.rows_in_place::<S>(place, range.start) {
                Some((data, row)) => Left { data, row, column: 1 },
                None => {
                    let block = &mut block[..range.len() * size];
                    read_rows(&self.operands.key, (place.0, place.1, range.start), 1.0, size, block);
                    Left { data: block.as_ptr(), row: size, column: 1 }
                }
            }
        };
        let fewest = self.any_order && rows <= FEWEST && size.is_multiple_of(V::LANES);
        let panels = rows.div_ceil(*columns);
        let row = panels * *columns;
        let right = Panels { data: across.as_ptr(), stride: size * *columns, row: *columns };
        for first in (0..range.len()).step_by(GROUP) {
            let count = GROUP.min(range.len() - first);
            let next = range.start + first;
            self.operands.value.fetch(place, next..next + count, value_size);
            // SAFETY: the queries and the group's keys are there, and have places among the scores.
            unsafe {
                let left = Left { data: keys.data.add(first * keys.row), ..keys };
                if fewest {
                    let target = Target { data: scores.data.add(first), ..scores };
                    sums_over_lanes::<V>((rows, count, size), queries.as_ptr(), left, target);
                    continue;
                }
                let target = Target { data: transposed.as_mut_ptr().add(first * row), row, add: false };
                if *columns == V::LANES {
                    product_of::<V, 1>((count, size, panels), left, right, target);
                } else {
                    product::<V>((count, size, panels), left, right, target);
                }
            }
        }
        if fewest {
            return;
        }
        for query in 0..rows {
            for key in 0..range.len() {
                // SAFETY: as above.
                unsafe { *scores.data.add(query * scores.row + key) = transposed[key * row + query] };
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<V: Vector<Scalar = S>>(
        &self,
        scores: &mut [S],
        _: (usize, usize),
        origin: S,
        sums: &mut [S],
        _: &mut Scratch<S>,
    ) {
        // SAFETY: as the caller vouches.
        unsafe { weigh::<V>(scores, origin, sums) }
    }

    #[inline(always)]
    unsafe fn add_values<V: Vector<Scalar = S>>(
        &self,
        rows: &Range<usize>,
        (place, range): ((usize, usize), Range<usize>),
        (weights, stride): (*const S, usize),
        target: Target<S>,
        mask: Option<Admitted>,
        scratch: &mut Scratch<S>,
    ) {
        let AttentionShape { head_size, value_size, keys, .. } = self.operands.shape;
        // SAFETY: as the caller vouches.
        unsafe {
            let weights = Left { data: weights, row: stride, column: 1 };
            let rows = rows.len();
            let (values, finite) = self.values::<V>((place, range.clone()), mask.is_some(), scratch);
            let panels = value_size.div_ceil(width::<V>());
            if let Some(mask) = mask.filter(|_| !finite) {
                mask.product::<V>((rows, range.len(), panels), weights, values, target, false);
                return;
            }
            for first in (0..range.len()).step_by(GROUP) {
                let count = GROUP.min(range.len() - first);
                let next = (range.end + first).min(keys);
                self.operands.key.fetch(place, next..(next + count).min(keys), head_size);
                let weights = Left { data: weights.data.add(first), ..weights };
                let values = Panels { data: values.data.add(first * values.row), ..values };
                product::<V>((rows, count, panels), weights, values, target);
            }
        }
    }
}

/// The scores of some queries with at most [`GROUP`] keys, each a sum over lanes.
///
/// # Safety
/// The machine has the vectors, whole ones make the size, and the operands cover the extents.
#[inline(always)]
unsafe fn sums_over_lanes<V: Vector>(
    (rows, keys, size): (usize, usize, usize),
    queries: *const V::Scalar,
    left: Left<V::Scalar>,
    scores: Target<V::Scalar>,
) {
    // SAFETY: as the caller vouches. Beyond the last key the last one is taken again, and not stored.
    unsafe {
        for query in 0..rows {
            let mut sums = [V::splat(Default::default()); GROUP];
            for depth in (0..size).step_by(V::LANES) {
                let factor = V::load(queries.add(query * size + depth));
                for (key, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(left.data.add(key.min(keys - 1) * left.row + depth)).fma(factor, *sum);
                }
            }
            for (key, sum) in sums[..keys].iter().enumerate() {
                *scores.data.add(query * scores.row + key) = sum.total();
            }
        }
    }
}
