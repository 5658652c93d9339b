//! Where the forward reads keys and values, and how it multiplies by them.
//!
//! In the score type they are packed once for all queries, or, where few queries read them, read as they lie in memory,
//! since to pack them would cost more than the products.
//!
//! In place, the keys are the left operand of the product, whose elements are read one at a time, and the few
//! queries its packed right one; the scores come out transposed.

use std::ops::Range;

use tilewright_ir::Result;
use tilewright_plan::attention::AttentionShape;

use super::operands::{Layout, Operands, Packed, panel_width};
use super::pack::{pack_columns, pack_rows, read_rows};
use super::product::{Left, Panels, Target, product, width};
use super::regions::Admitted;
use super::vector::{Dispatch, Scalar, Vector, Work};
use crate::memory::Aligned;
use crate::{Context, Isa};

/// Queries that are few.
const FEW: usize = 16;

/// Keys and values of a call.
pub(super) trait Source<S: Scalar>: Sync {
    /// What a unit keeps for it.
    type Scratch: Send;

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
    unsafe fn take_queries(&self, place: (usize, usize, usize), rows: usize, scratch: &mut Self::Scratch);

    /// How many columns before the key at `position` a panel of scores begins.
    fn skip(&self, position: usize) -> usize;

    /// The scores of the unit's queries with some keys, from [`Source::skip`] columns before the first key on.
    ///
    /// # Safety
    /// The machine has the vectors; the keys are within the array, and the target is as wide as they are, in whole
    /// panels, and as high as `scratch` was made for.
    unsafe fn scores<V: Vector<Scalar = S>>(
        &self,
        rows: usize,
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
        rows: usize,
        keys: ((usize, usize), Range<usize>),
        weights: (*const S, usize),
        target: Target<S>,
        mask: Option<Admitted>,
        scratch: &mut Self::Scratch,
    );
}

/// Keys and values in the score type.
pub(super) struct Keys<S: Scalar> {
    operands: Operands,
    place: Place<S>,
    width: usize,
}

enum Place<S: Scalar> {
    Packed { keys: Packed<S>, values: Packed<S> },
    InMemory,
}

impl<S: Dispatch> Keys<S> {
    pub(super) fn new(operands: &Operands, context: &Context) -> Result<Keys<S>> {
        let shape = operands.shape;
        let keyed = |size| [shape.key_batch, shape.key_heads, shape.keys, size];
        let pack = |array, size, layout| Packed::new(context, array, keyed(size), 1.0, layout);
        let place = if few(&shape) {
            Place::InMemory
        } else {
            Place::Packed {
                keys: pack(operands.key, shape.head_size, Layout::Transposed)?,
                values: pack(operands.value, shape.value_size, Layout::Rows)?,
            }
        };
        Ok(Keys { operands: *operands, place, width: panel_width::<S>(context.isa) })
    }

    /// The values at some keys, as a right operand; and whether they are finite, if that matters.
    ///
    /// # Safety
    /// As [`Source::add_values`]. The operand is good until the scratch is used again.
    #[inline(always)]
    unsafe fn values<V: Vector<Scalar = S>>(
        &self,
        (place, range): ((usize, usize), Range<usize>),
        matters: bool,
        scratch: &mut Scratch<S>,
    ) -> (Panels<S>, bool) {
        if let Place::Packed { values, .. } = &self.place {
            return (values.panels(place, range.start), !matters || values.finite(place, range));
        }
        let (values, size) = (&self.operands.value, self.operands.shape.value_size);
        // SAFETY: as the caller vouches; the scratch holds a panel of values.
        unsafe {
            let in_place = values.rows_in_place::<S>(place, range.start);
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

/// Whether there are so few queries that keys and values are not rearranged for them.
pub(super) fn few(shape: &AttentionShape) -> bool {
    shape.queries <= FEW
}

impl<S: Dispatch> Source<S> for Keys<S> {
    type Scratch = Scratch<S>;

    unsafe fn dispatch<W: Work<S>>(&self, isa: Isa, work: W) -> W::Output {
        // SAFETY: as the caller vouches.
        unsafe { S::dispatch(isa, work) }
    }

    fn scratch(&self, rows: usize, stride: usize) -> Result<Scratch<S>> {
        let (few, keys, shape) = match self.place {
            Place::Packed { .. } => (0, 0, self.operands.shape),
            Place::InMemory => (FEW.next_multiple_of(self.width), stride, self.operands.shape),
        };
        let (head_size, value_size) = (shape.head_size, shape.value_size);
        Ok(Scratch {
            queries: Aligned::new(rows * head_size)?,
            across: Aligned::new(few * head_size)?,
            scores: Aligned::new(few * keys)?,
            rows: Aligned::new(keys * head_size.max(value_size))?,
            values: Aligned::new(keys * value_size.next_multiple_of(self.width))?,
        })
    }

    #[inline(always)]
    unsafe fn take_queries(&self, place: (usize, usize, usize), rows: usize, scratch: &mut Scratch<S>) {
        let size = self.operands.shape.head_size;
        let queries = &mut scratch.queries[..rows * size];
        // SAFETY: as the caller vouches.
        unsafe { read_rows(&self.operands.query, place, self.operands.scale, size, queries) };
    }

    fn skip(&self, position: usize) -> usize {
        match self.place {
            Place::Packed { .. } => position % self.width,
            Place::InMemory => 0,
        }
    }

    #[inline(always)]
    unsafe fn scores<V: Vector<Scalar = S>>(
        &self,
        rows: usize,
        (place, range): ((usize, usize), Range<usize>),
        scores: Target<S>,
        scratch: &mut Scratch<S>,
    ) {
        let size = self.operands.shape.head_size;
        if let Place::Packed { keys, .. } = &self.place {
            let skip = self.skip(range.start);
            let panels = (skip + range.len()).div_ceil(width::<V>());
            let left = Left { data: scratch.queries.as_ptr(), row: size, column: 1 };
            // SAFETY: as the caller vouches.
            unsafe {
                product::<V>((rows, size, panels), left, keys.panels(place, range.start - skip), scores)
            };
            return;
        }
        let keys = &self.operands.key;
        let panels = rows.div_ceil(width::<V>());
        let across = panels * width::<V>();
        // SAFETY: as the caller vouches; the scratch holds `FEW` queries, and a panel of keys.
        unsafe {
            let queries = &scratch.queries[..rows * size];
            for (panel, block) in queries.chunks(width::<V>() * size.max(1)).enumerate() {
                let to = scratch.across.as_mut_ptr().add(panel * width::<V>() * size);
                pack_columns::<V>(block, size, to);
            }
            let right =
                Panels { data: scratch.across.as_ptr(), stride: size * width::<V>(), row: width::<V>() };
            let left = match keys.rows_in_place::<S>(place, range.start) {
                Some((data, row)) => Left { data, row, column: 1 },
                None => {
                    let block = &mut scratch.rows[..range.len() * size];
                    read_rows(keys, (place.0, place.1, range.start), 1.0, size, block);
                    Left { data: block.as_ptr(), row: size, column: 1 }
                }
            };
            let transposed = scratch.scores.as_mut_ptr();
            let target = Target { data: transposed, row: across, add: false };
            product::<V>((range.len(), size, panels), left, right, target);
            for row in 0..rows {
                for column in 0..range.len() {
                    *scores.data.add(row * scores.row + column) = *transposed.add(column * across + row);
                }
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

    #[inline(always)]
    unsafe fn add_values<V: Vector<Scalar = S>>(
        &self,
        rows: usize,
        (place, range): ((usize, usize), Range<usize>),
        (weights, stride): (*const S, usize),
        target: Target<S>,
        mask: Option<Admitted>,
        scratch: &mut Scratch<S>,
    ) {
        let size = self.operands.shape.value_size;
        // SAFETY: as the caller vouches.
        unsafe {
            let weights = Left { data: weights.add(self.skip(range.start)), row: stride, column: 1 };
            let (values, finite) = self.values::<V>((place, range.clone()), mask.is_some(), scratch);
            let extents = (rows, range.len(), size.div_ceil(width::<V>()));
            match mask {
                Some(mask) if !finite => mask.product::<V>(extents, weights, values, target, false),
                _ => product::<V>(extents, weights, values, target),
            }
        }
    }
}

/// What a unit keeps: its queries, and what it needs to read keys and values in place.
pub(super) struct Scratch<S: Scalar> {
    /// `[queries × head size]`, times the scale.
    queries: Aligned<S>,
    /// The queries, packed.
    across: Aligned<S>,
    /// `[keys, queries]`.
    scores: Aligned<S>,
    /// A panel of keys or values, in the score type.
    rows: Aligned<S>,
    /// A panel of values, padded.
    values: Aligned<S>,
}
