//! The products of the backward in `bf16`.
//!
//! Weights and slopes are rounded once more, where they are multiplied (docs/design/0012). The sums of keys and values are
//! transposed, which makes the panels of pairs right operands, whose couples are neighbouring queries.

use std::ops::Range;

use tilewright_ir::Result;
use tilewright_plan::attention::AttentionShape;

use super::convert::{self, Panel};
use super::held::{Held, Layout, WINDOW};
use super::product::{BLOCK, Multiplier, Ready, Rows, product};
use crate::attention::backward::{KEYS, SPARE, STRIDE};
use crate::attention::factors::{self, At};
use crate::attention::operands::Operands;
use crate::attention::pack::Strided;
use crate::attention::product::{Panels, Target};
use crate::attention::regions::Admitted;
use crate::attention::vector::{Vector, Work, dispatch_bf16};
use crate::memory::Aligned;
use crate::{Context, Isa};

const _: () = assert!(SPARE >= BLOCK && KEYS.is_multiple_of(BLOCK) && STRIDE >= KEYS);

/// Queries, keys, values and the output's cotangent, as each product reads them.
pub(crate) struct Factors {
    by: Multiplier,
    shape: AttentionShape,
    scale: f32,
    queries: Held,
    queries_across: Held,
    cotangents: Held,
    cotangents_across: Held,
    keys: Held,
    keys_across: Held,
    values: Held,
}

impl Factors {
    /// Nothing where the machine has no products of `bf16`, and where an operand is not finite: products are over all
    /// pairs of a block, and 0 times such a number would show.
    pub(crate) fn new(operands: &Operands, cotangent: Strided, context: &Context) -> Result<Option<Factors>> {
        let Some(by) = Multiplier::of(context.isa) else { return Ok(None) };
        let shape = operands.shape;
        let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, head_size, value_size } =
            shape;
        let queried = |array, size, layout| Held::new(context, array, [batch, heads, queries, size], layout);
        let keyed =
            |array, size, layout| Held::new(context, array, [key_batch, key_heads, keys, size], layout);
        let factors = Factors {
            by,
            shape,
            scale: operands.scale as f32,
            queries: queried(operands.query, head_size, Layout::Along)?,
            queries_across: queried(operands.query, head_size, Layout::Across)?,
            cotangents: queried(cotangent, value_size, Layout::Along)?,
            cotangents_across: queried(cotangent, value_size, Layout::Across)?,
            keys: keyed(operands.key, head_size, Layout::CouplesAlong)?,
            keys_across: keyed(operands.key, head_size, Layout::CouplesAcross)?,
            values: keyed(operands.value, value_size, Layout::CouplesAlong)?,
        };
        let finite = [&factors.queries, &factors.cotangents, &factors.keys, &factors.values];
        let finite = finite.into_iter().all(|held| held.finite);
        Ok(finite.then_some(factors))
    }

    /// `sums += acrossᵀ · panel`, for the queries of a panel of pairs.
    ///
    /// # Safety
    /// As [`factors::Factors::scores`].
    unsafe fn add_across(
        &self,
        across: &Held,
        (place, queries): &At,
        (panel, keys): (*const f32, &Range<usize>),
        sums: &mut Aligned<f32>,
        rounded: &mut Aligned<u32>,
    ) {
        let columns = keys.len();
        let (window, offset) = (queries.start / WINDOW * WINDOW, queries.start % WINDOW);
        let panel = Panel { data: panel, stride: STRIDE, rows: queries.len(), columns };
        let extents = (across.size, WINDOW, columns.div_ceil(BLOCK));
        let target = Target { data: sums[keys.start % KEYS..].as_mut_ptr(), row: STRIDE, add: true };
        // SAFETY: as the caller vouches; a panel's queries are within one window.
        unsafe {
            panel.couples((offset, WINDOW), rounded.as_mut_ptr());
            let right = Panels { data: rounded.as_ptr(), stride: BLOCK, row: STRIDE };
            product(self.by, extents, [(across.left(*place, window), right)], target);
        }
    }
}

/// What a unit keeps.
pub(crate) struct Sums {
    /// `[padded size × STRIDE]`: the columns are keys.
    keys: Aligned<f32>,
    values: Aligned<f32>,
    /// A panel as it is multiplied: `[WINDOW / 2 × STRIDE]` couples, or twice as many rows.
    rounded: Aligned<u32>,
}

impl factors::Factors<f32> for Factors {
    type Sums = Sums;

    const GRAIN: usize = WINDOW;

    unsafe fn dispatch<W: Work<f32>>(&self, _: Isa, work: W) -> W::Output {
        // SAFETY: `new` has seen to the instruction set; units use no other tiles.
        unsafe {
            let _ready = Ready::new(self.by);
            dispatch_bf16(work)
        }
    }

    fn sums(&self) -> Result<Sums> {
        Ok(Sums {
            keys: Aligned::new(self.queries_across.size * STRIDE)?,
            values: Aligned::new(self.cotangents_across.size * STRIDE)?,
            rounded: Aligned::new(WINDOW / 2 * STRIDE)?,
        })
    }

    fn clear(&self, sums: &mut Sums) {
        sums.keys.fill(0.0);
        sums.values.fill(0.0);
    }

    #[inline(always)]
    unsafe fn scores<V: Vector<Scalar = f32>>(&self, queries: &At, keys: &At, scores: *mut f32) {
        let rows = queries.1.len();
        let panels = keys.1.len().div_ceil(BLOCK);
        let extents = (rows.next_multiple_of(BLOCK), self.queries.size, panels);
        let (left, right) =
            (self.queries.left(queries.0, queries.1.start), self.keys.right(keys.0, keys.1.start));
        // SAFETY: as the caller vouches; a panel has whole blocks of rows and columns.
        unsafe {
            product(self.by, extents, [(left, right)], Target { data: scores, row: STRIDE, add: false });
            if self.scale != 1.0 {
                convert::scale(scores, STRIDE, (rows, panels * BLOCK), self.scale);
            }
        }
    }

    #[inline(always)]
    unsafe fn slopes<V: Vector<Scalar = f32>>(&self, queries: &At, keys: &At, slopes: *mut f32) {
        let extents =
            (queries.1.len().next_multiple_of(BLOCK), self.cotangents.size, keys.1.len().div_ceil(BLOCK));
        let left = self.cotangents.left(queries.0, queries.1.start);
        let right = self.values.right(keys.0, keys.1.start);
        // SAFETY: as the caller vouches; a panel has whole blocks of rows and columns.
        unsafe {
            product(self.by, extents, [(left, right)], Target { data: slopes, row: STRIDE, add: false })
        }
    }

    #[inline(always)]
    unsafe fn add_to_values<V: Vector<Scalar = f32>>(
        &self,
        queries: &At,
        keys: &At,
        weights: *const f32,
        _: Option<Admitted>,
        sums: &mut Sums,
    ) {
        let panel = (weights, &keys.1);
        // SAFETY: as the caller vouches.
        unsafe {
            self.add_across(&self.cotangents_across, queries, panel, &mut sums.values, &mut sums.rounded)
        }
    }

    #[inline(always)]
    unsafe fn add_slopes<V: Vector<Scalar = f32>>(
        &self,
        queries: &At,
        keys: &At,
        slopes: *const f32,
        _: Option<Admitted>,
        (query_sums, keys_wanted): (Option<(*mut f32, usize)>, bool),
        sums: &mut Sums,
    ) {
        let (rows, columns) = (queries.1.len(), keys.1.len());
        // SAFETY: as the caller vouches.
        unsafe {
            if let Some((data, row)) = query_sums {
                let rounded = sums.rounded.as_mut_ptr().cast::<u16>();
                Panel { data: slopes, stride: STRIDE, rows, columns }.rows(rounded);
                let extents = (
                    rows.next_multiple_of(BLOCK),
                    columns.next_multiple_of(BLOCK),
                    self.keys_across.size / BLOCK,
                );
                let right = self.keys_across.right(keys.0, keys.1.start);
                let left = Rows { data: rounded, row: STRIDE };
                product(self.by, extents, [(left, right)], Target { data, row, add: true });
            }
            if keys_wanted {
                let panel = (slopes, &keys.1);
                self.add_across(&self.queries_across, queries, panel, &mut sums.keys, &mut sums.rounded);
            }
        }
    }

    unsafe fn store(&self, sums: &Sums, (place, keys): &At, [key, value]: [Option<&Strided>; 2]) {
        let AttentionShape { head_size, value_size, .. } = self.shape;
        let arrays = [(key, &sums.keys, head_size, self.scale), (value, &sums.values, value_size, 1.0)];
        for (array, sums, size, factor) in arrays {
            let Some(array) = array else { continue };
            let mut rows = vec![0.0f32; keys.len() * size];
            for (i, sums) in sums.chunks_exact(STRIDE).take(size).enumerate() {
                for (row, &sum) in rows.chunks_exact_mut(size).zip(sums) {
                    row[i] = factor * sum;
                }
            }
            for (row, key) in rows.chunks_exact(size.max(1)).zip(keys.clone()) {
                // SAFETY: the caller's own rows.
                unsafe { array.write_row([place.0, place.1, key], row) };
            }
        }
    }
}
