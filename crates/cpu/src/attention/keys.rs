//! Where the forward reads keys and values: packed once for all queries, or, where few queries read them, as they
//! lie in memory, since to pack them would cost more than the products.
//!
//! In place, the keys are the left operand of the product, whose elements are read one at a time, and the few
//! queries its packed right one; the scores come out transposed.

use std::ops::Range;

use tilewright_ir::Result;
use tilewright_plan::attention::AttentionShape;

use super::operands::{Layout, Operands, Packed};
use super::pack::{Strided, pack_columns, pack_rows, read_rows};
use super::product::{Left, Panels, Target, product, width};
use super::vector::{Dispatch, Scalar, Vector};
use crate::Context;
use crate::memory::Aligned;

/// Queries that are few.
const FEW: usize = 16;

/// Keys and values of a call.
pub(super) enum Source<S: Scalar> {
    Packed { keys: Packed<S>, values: Packed<S> },
    InPlace { keys: Strided, values: Strided, shape: AttentionShape },
}

impl<S: Dispatch> Source<S> {
    pub(super) fn new(operands: &Operands, context: &Context) -> Result<Source<S>> {
        let shape = operands.shape;
        if shape.queries <= FEW {
            return Ok(Source::InPlace { keys: operands.key, values: operands.value, shape });
        }
        let keyed = |size| [shape.key_batch, shape.key_heads, shape.keys, size];
        let pack = |array, size, layout| Packed::new(context, array, keyed(size), 1.0, layout);
        Ok(Source::Packed {
            keys: pack(operands.key, shape.head_size, Layout::Transposed)?,
            values: pack(operands.value, shape.value_size, Layout::Rows)?,
        })
    }

    /// How many columns before the key at `position` a panel of scores begins.
    pub(super) fn skip(&self, position: usize, width: usize) -> usize {
        match self {
            Source::Packed { .. } => position % width,
            Source::InPlace { .. } => 0,
        }
    }

    /// `scores = queries · keys`, `skip` columns before the first key on. `queries` are so many rows of `head_size`
    /// elements.
    ///
    /// # Safety
    /// The machine has the vectors; the keys are within the array, and the target is as wide as they are, in whole
    /// panels.
    #[inline(always)]
    pub(super) unsafe fn scores<V: Vector<Scalar = S>>(
        &self,
        (queries, rows, size): (&[S], usize, usize),
        (place, range): ((usize, usize), Range<usize>),
        scores: Target<S>,
        scratch: &mut Scratch<S>,
    ) {
        match self {
            Source::Packed { keys, .. } => {
                let skip = self.skip(range.start, width::<V>());
                let panels = (skip + range.len()).div_ceil(width::<V>());
                let left = Left { data: queries.as_ptr(), row: size, column: 1 };
                // SAFETY: as the caller vouches.
                unsafe {
                    product::<V>((rows, size, panels), left, keys.panels(place, range.start - skip), scores);
                }
            }
            Source::InPlace { keys, .. } => {
                let panels = rows.div_ceil(width::<V>());
                let across = panels * width::<V>();
                // SAFETY: as the caller vouches; the scratch holds `FEW` queries, and a panel of keys.
                unsafe {
                    for (panel, block) in
                        queries[..rows * size].chunks(width::<V>() * size.max(1)).enumerate()
                    {
                        let to = scratch.queries.as_mut_ptr().add(panel * width::<V>() * size);
                        pack_columns::<V>(block, size, to);
                    }
                    let right = Panels {
                        data: scratch.queries.as_ptr(),
                        stride: size * width::<V>(),
                        row: width::<V>(),
                    };
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
                            *scores.data.add(row * scores.row + column) =
                                *transposed.add(column * across + row);
                        }
                    }
                }
            }
        }
    }

    /// The values at some keys, as a right operand; and whether they are finite, if that matters.
    ///
    /// # Safety
    /// As [`Source::scores`]. The operand is good until the scratch is used again.
    #[inline(always)]
    pub(super) unsafe fn values<V: Vector<Scalar = S>>(
        &self,
        place: (usize, usize),
        range: Range<usize>,
        matters: bool,
        scratch: &mut Scratch<S>,
    ) -> (Panels<S>, bool) {
        match self {
            Source::Packed { values, .. } => {
                (values.panels(place, range.start), !matters || values.finite(place, range))
            }
            Source::InPlace { values, shape, .. } => {
                let size = shape.value_size;
                // SAFETY: as the caller vouches; the scratch holds a panel of values.
                unsafe {
                    let in_place = values.rows_in_place::<S>(place, range.start);
                    if let Some((data, row)) =
                        in_place.filter(|_| !matters && size.is_multiple_of(width::<V>()))
                    {
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
    }
}

/// What a unit needs to read keys and values in place; nothing where they are packed.
pub(super) struct Scratch<S: Scalar> {
    /// The queries, packed.
    queries: Aligned<S>,
    /// `[keys, queries]`.
    scores: Aligned<S>,
    /// A panel of keys or values, in the score type.
    rows: Aligned<S>,
    /// A panel of values, padded.
    values: Aligned<S>,
}

impl<S: Scalar> Scratch<S> {
    /// For panels of so many keys.
    pub(super) fn new(source: &Source<S>, keys: usize, width: usize) -> Result<Scratch<S>> {
        let (few, shape) = match source {
            Source::Packed { .. } => (0, None),
            Source::InPlace { shape, .. } => (FEW.next_multiple_of(width), Some(shape)),
        };
        let size = |of: fn(&AttentionShape) -> usize| shape.map_or(0, of);
        let (head_size, value_size) = (size(|shape| shape.head_size), size(|shape| shape.value_size));
        Ok(Scratch {
            queries: Aligned::new(few * head_size)?,
            scores: Aligned::new(few * keys)?,
            rows: Aligned::new(keys * head_size.max(value_size))?,
            values: Aligned::new(keys * value_size.next_multiple_of(width))?,
        })
    }
}
