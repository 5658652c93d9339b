//! Keys and values of a forward in `bf16`.

use std::ops::Range;

use tilewright_ir::Result;

use super::convert;
use super::held::{Held, Layout, WINDOW};
use super::product::{BLOCK, Multiplier, Ready, Rows, product};
use crate::attention::keys::Source;
use crate::attention::operands::Operands;
use crate::attention::product::{Panels, Target};
use crate::attention::regions::Admitted;
use crate::attention::vector::{Vector, Work, dispatch_bf16};
use crate::memory::Aligned;
use crate::{Context, Isa};

/// Keys and values, and the queries where they lie.
pub(crate) struct Keys {
    by: Multiplier,
    operands: Operands,
    keys: Held,
    values: Held,
    /// What the queries are multiplied by, and the scores after the product: the scale is the queries' where that
    /// rounds nothing.
    factors: (f32, f32),
    /// Whether weights are held in two parts. A gradient is told the output as it was before it was rounded, and would
    /// see what is missing from it; an output in `bf16` shows nothing.
    exact: bool,
}

impl Keys {
    /// Nothing where the machine has no products of `bf16`, and where values are not finite: products are over all
    /// pairs of a block, and 0 times such a number would show.
    pub(crate) fn new(operands: &Operands, exact: bool, context: &Context) -> Result<Option<Keys>> {
        let Some(by) = Multiplier::of(context.isa) else { return Ok(None) };
        let shape = operands.shape;
        let keyed = |size| [shape.key_batch, shape.key_heads, shape.keys, size];
        let values = Held::new(context, operands.value, keyed(shape.value_size), Layout::CouplesAcross)?;
        if !values.finite {
            return Ok(None);
        }
        let keys = Held::new(context, operands.key, keyed(shape.head_size), Layout::CouplesAlong)?;
        let scale = operands.scale as f32;
        let factors = if is_power_of_two(scale) { (scale, 1.0) } else { (1.0, scale) };
        Ok(Some(Keys { by, operands: *operands, keys, values, factors, exact }))
    }
}

/// Whether multiplying by it changes the exponent only.
fn is_power_of_two(x: f32) -> bool {
    x.is_normal() && x.to_bits() << 9 == 0
}

/// What a unit keeps.
pub(crate) struct Scratch {
    /// `[WINDOW × padded head size]`.
    queries: Aligned<u16>,
    /// What the rounding of the weights took, at twice the distance of their rows; nothing unless wanted.
    low: Aligned<u16>,
}

impl Source<f32> for Keys {
    type Scratch = Scratch;

    const GRAIN: usize = BLOCK;

    unsafe fn dispatch<W: Work<f32>>(&self, _: Isa, work: W) -> W::Output {
        // SAFETY: `new` has seen to the instruction set; units use no other tiles.
        unsafe {
            let _ready = Ready::new(self.by);
            dispatch_bf16(work)
        }
    }

    fn scratch(&self, rows: usize, stride: usize) -> Result<Scratch> {
        debug_assert_eq!(rows, WINDOW);
        let low = if self.exact { 2 * rows * stride } else { 0 };
        Ok(Scratch { queries: Aligned::new(rows * self.keys.size)?, low: Aligned::new(low)? })
    }

    #[inline(always)]
    unsafe fn take_queries<V: Vector<Scalar = f32>>(
        &self,
        place: (usize, usize, usize),
        rows: usize,
        scratch: &mut Scratch,
    ) {
        let size = self.operands.shape.head_size;
        for (i, row) in scratch.queries.chunks_exact_mut(self.keys.size.max(1)).take(rows).enumerate() {
            // SAFETY: as the caller vouches.
            unsafe { self.operands.query.copy_row([place.0, place.1, place.2 + i], &mut row[..size]) };
            for x in row {
                *x = ((f32::from_bits(u32::from(*x) << 16) * self.factors.0).to_bits() >> 16) as u16;
            }
        }
    }

    fn skip(&self, position: usize) -> usize {
        position % BLOCK
    }

    #[inline(always)]
    unsafe fn scores<V: Vector<Scalar = f32>>(
        &self,
        rows: &Range<usize>,
        (place, range): ((usize, usize), Range<usize>),
        scores: Target<f32>,
        scratch: &mut Scratch,
    ) {
        let skip = self.skip(range.start);
        let panels = (skip + range.len()).div_ceil(BLOCK);
        let extents = (rows.len().next_multiple_of(BLOCK), self.keys.size, panels);
        // SAFETY: as the caller vouches; the panel of scores has room for whole blocks.
        unsafe {
            let queries = scratch.queries.as_ptr().add(rows.start * self.keys.size);
            let left = Rows { data: queries, row: self.keys.size };
            let keys = self.keys.right(place, range.start - skip);
            product(self.by, extents, [(left, keys)], scores);
            if self.factors.1 != 1.0 {
                convert::scale(scores.data, scores.row, (rows.len(), panels * BLOCK), self.factors.1);
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<V: Vector<Scalar = f32>>(
        &self,
        scores: &mut [f32],
        (row, stride): (usize, usize),
        origin: f32,
        sums: &mut [f32],
        scratch: &mut Scratch,
    ) {
        // SAFETY: as the caller vouches; the lower parts have the rows' distance.
        unsafe {
            let low = self.exact.then(|| scratch.low.as_mut_ptr().add(row * 2 * stride));
            convert::weigh(scores, origin, sums, low);
        }
    }

    #[inline(always)]
    unsafe fn add_values<V: Vector<Scalar = f32>>(
        &self,
        rows: &Range<usize>,
        (place, range): ((usize, usize), Range<usize>),
        (weights, stride): (*const f32, usize),
        target: Target<f32>,
        _: Option<Admitted>,
        scratch: &mut Scratch,
    ) {
        let skip = self.skip(range.start);
        let depth = (skip + range.len()).next_multiple_of(BLOCK);
        let extents = (rows.len().next_multiple_of(BLOCK), depth, self.values.size / BLOCK);
        let values: Panels<u32> = self.values.right(place, range.start - skip);
        // SAFETY: as the caller vouches; weights before and after the keys are 0.
        unsafe {
            let high = (Rows { data: weights.cast(), row: 2 * stride }, values);
            if self.exact {
                let low = scratch.low.as_ptr().add(rows.start * 2 * stride);
                let low = (Rows { data: low, row: 2 * stride }, values);
                product(self.by, extents, [high, low], target);
            } else {
                product(self.by, extents, [high], target);
            }
        }
    }
}
