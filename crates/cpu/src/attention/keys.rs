//! Where the forward reads keys and values, and how it multiplies by them: here, packed once for all queries in the
//! score type. (Few queries read them as they lie: [`super::few`].)

use std::ops::Range;

use tilewright_ir::Result;

use super::operands::{Layout, Operands, Packed, panel_width};
use super::pack::read_rows;
use super::product::{Left, Target, product, width};
use super::regions::Admitted;
use super::vector::{Dispatch, Scalar, Vector, Work};
use crate::memory::Aligned;
use crate::{Context, Isa};

/// Keys and values of a call.
pub(super) trait Source<S: Scalar>: Sync {
    /// What a unit keeps for it.
    type Scratch: Send;

    /// Rows of a panel of scores that pieces of it begin at multiples of.
    const GRAIN: usize;

    /// Runs `work` with the vectors that the products are made for.
    ///
    /// # Safety
    /// The machine has `isa`; besides, what `work` asks for.
    unsafe fn dispatch<W: Work<S>>(&self, isa: Isa, work: W) -> W::Output;

    /// For so many queries, and panels of scores whose rows lie so far apart.
    fn scratch(&self, rows: usize, stride: usize) -> Result<Self::Scratch>;

    /// Takes in a unit's queries: so many rows from a (batch, head, query) on.
    ///
    /// # Safety
    /// The rows are within the array.
    unsafe fn take_queries<V: Vector<Scalar = S>>(
        &self,
        place: (usize, usize, usize),
        rows: usize,
        scratch: &mut Self::Scratch,
    );

    /// How many columns before the key at `position` a panel of scores begins.
    fn skip(&self, position: usize) -> usize;

    /// The scores of some of the unit's queries with some keys, from [`Source::skip`] columns before the first key on.
    ///
    /// # Safety
    /// The machine has the vectors; the queries begin at a multiple of [`Source::GRAIN`], the keys are within the array,
    /// and the target, which begins at the first of the queries, is as wide as the keys, in whole panels, and as high as
    /// `scratch` was made for.
    unsafe fn scores<V: Vector<Scalar = S>>(
        &self,
        rows: &Range<usize>,
        keys: ((usize, usize), Range<usize>),
        scores: Target<S>,
        scratch: &mut Self::Scratch,
    );

    /// Turns the scores of a row, one of a panel whose rows lie `stride` apart, into weights relative to `origin`, for
    /// [`Source::add_values`] to read, and adds them to a vector of partial sums.
    ///
    /// # Safety
    /// The machine has the vectors; the row is whole panels wide.
    unsafe fn weigh<V: Vector<Scalar = S>>(
        &self,
        scores: &mut [S],
        place: (usize, usize),
        origin: S,
        sums: &mut [S],
        scratch: &mut Self::Scratch,
    );

    /// Adds to the target the values at some keys times their weights, which stand where the scores did. Of a pair that
    /// the mask does not admit nothing is added.
    ///
    /// # Safety
    /// As [`Source::scores`].
    unsafe fn add_values<V: Vector<Scalar = S>>(
        &self,
        rows: &Range<usize>,
        keys: ((usize, usize), Range<usize>),
        weights: (*const S, usize),
        target: Target<S>,
        mask: Option<Admitted>,
        scratch: &mut Self::Scratch,
    );
}

/// Keys and values, packed in the score type.
pub(super) struct Keys<S: Scalar> {
    operands: Operands,
    keys: Packed<S>,
    values: Packed<S>,
    width: usize,
}

impl<S: Dispatch> Keys<S> {
    pub(super) fn new(operands: &Operands, context: &Context) -> Result<Keys<S>> {
        let shape = operands.shape;
        let keyed = |size| [shape.key_batch, shape.key_heads, shape.keys, size];
        let pack = |array, size, layout| Packed::new(context, array, keyed(size), 1.0, layout);
        Ok(Keys {
            operands: *operands,
            keys: pack(operands.key, shape.head_size, Layout::Transposed)?,
            values: pack(operands.value, shape.value_size, Layout::Rows)?,
            width: panel_width::<S>(context.isa),
        })
    }
}

/// A unit's queries, `[queries × head size]`, times the scale.
pub(super) struct Queries<S: Scalar>(Aligned<S>);

impl<S: Dispatch> Source<S> for Keys<S> {
    type Scratch = Queries<S>;

    const GRAIN: usize = 16;

    unsafe fn dispatch<W: Work<S>>(&self, isa: Isa, work: W) -> W::Output {
        // SAFETY: as the caller vouches.
        unsafe { S::dispatch(isa, work) }
    }

    fn scratch(&self, rows: usize, _: usize) -> Result<Queries<S>> {
        Ok(Queries(Aligned::new(rows * self.operands.shape.head_size)?))
    }

    #[inline(always)]
    unsafe fn take_queries<V: Vector<Scalar = S>>(
        &self,
        place: (usize, usize, usize),
        rows: usize,
        queries: &mut Queries<S>,
    ) {
        let size = self.operands.shape.head_size;
        // SAFETY: as the caller vouches.
        unsafe {
            read_rows(&self.operands.query, place, self.operands.scale, size, &mut queries.0[..rows * size])
        }
    }

    fn skip(&self, position: usize) -> usize {
        position % self.width
    }

    #[inline(always)]
    unsafe fn scores<V: Vector<Scalar = S>>(
        &self,
        rows: &Range<usize>,
        (place, range): ((usize, usize), Range<usize>),
        scores: Target<S>,
        queries: &mut Queries<S>,
    ) {
        let (size, skip) = (self.operands.shape.head_size, self.skip(range.start));
        let panels = (skip + range.len()).div_ceil(width::<V>());
        // SAFETY: as the caller vouches.
        unsafe {
            let left = Left { data: queries.0.as_ptr().add(rows.start * size), row: size, column: 1 };
            let keys = self.keys.panels(place, range.start - skip);
            product::<V>((rows.len(), size, panels), left, keys, scores)
        };
    }

    #[inline(always)]
    unsafe fn weigh<V: Vector<Scalar = S>>(
        &self,
        scores: &mut [S],
        _: (usize, usize),
        origin: S,
        sums: &mut [S],
        _: &mut Queries<S>,
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
        _: &mut Queries<S>,
    ) {
        let size = self.operands.shape.value_size;
        // SAFETY: as the caller vouches.
        unsafe {
            let weights = Left { data: weights.add(self.skip(range.start)), row: stride, column: 1 };
            let values = self.values.panels(place, range.start);
            let extents = (rows.len(), range.len(), size.div_ceil(width::<V>()));
            match mask {
                Some(mask) if !self.values.finite::<V>(place, range) => {
                    mask.product::<V>(extents, weights, values, target, false)
                }
                _ => product::<V>(extents, weights, values, target),
            }
        }
    }
}

/// Turns a row of scores into weights relative to `origin`, and adds them to a vector of partial sums.
///
/// # Safety
/// The machine has the vectors; whole ones make the row.
#[inline(always)]
pub(super) unsafe fn weigh<V: Vector>(scores: &mut [V::Scalar], origin: V::Scalar, sums: &mut [V::Scalar]) {
    // SAFETY: whole vectors.
    unsafe {
        let (origin, mut sum) = (V::splat(origin), V::load(sums.as_ptr()));
        for lanes in scores.chunks_exact_mut(V::LANES) {
            let weight = V::load(lanes.as_ptr()).sub(origin).exp();
            weight.store(lanes.as_mut_ptr());
            sum = sum.add(weight);
        }
        sum.store(sums.as_mut_ptr());
    }
}
