//! The gradient of attention, in one pass over the pairs (Dao 2023, algorithm 2): weights are made again
//! from queries, keys and the stored log-sum-exp, so that no array of queries × keys ever exists.
//!
//! A *unit* owns every [`Split::count`]th block of keys of one key head and walks all queries that see them.
//! The cotangents of its keys and values are its own. Those of the queries are summed by each split apart,
//! and then over the splits in their order. The split depends on sizes only, so that the result does not
//! depend on the number of threads.

use std::ops::Range;

use tilewright_ir::Result;
use tilewright_plan::AttentionBackward;
use tilewright_plan::View;
use tilewright_plan::attention::AttentionShape;

use super::operands::{Layout, Operands, Packed, Pointer, column, key_place, matrix, panel_width};
use super::pack::Strided;
use super::product::{Left, Target, product, width};
use super::vector::{Dispatch, Scalar, Vector, Work};
use crate::Context;
use crate::memory::{Aligned, Array, Memory};

/// Queries of a panel.
const QUERIES: usize = 64;
/// Keys of a panel; a multiple of every panel's width.
const KEYS: usize = 128;
/// Units that there should be, for threads to share.
const UNITS: usize = 16;

/// Runs the gradient of attention in the score type `S`.
pub(super) fn backward<S: Dispatch>(
    kernel: &AttentionBackward,
    memory: &Memory,
    context: &Context,
) -> Result<()> {
    let operands = Operands::new(&kernel.attention, memory)?;
    let shape = operands.shape;
    let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, head_size, value_size } = shape;
    let dtype = kernel.attention.dtype;
    let written = |view: &Option<View>, extents: [usize; 4]| -> Result<Option<Strided>> {
        let array = view.as_ref().map(|view| memory.write(view, dtype, &extents)).transpose()?;
        Ok(array.map(|array| matrix(&array)))
    };
    let query_cotangent = written(&kernel.query_cotangent, [batch, heads, queries, head_size])?;
    let key_cotangent = written(&kernel.key_cotangent, [key_batch, key_heads, keys, head_size])?;
    let value_cotangent = written(&kernel.value_cotangent, [key_batch, key_heads, keys, value_size])?;
    let output_extents = [batch, heads, queries, value_size];
    let output_cotangent = matrix(&memory.read(&kernel.output_cotangent, dtype, &output_extents)?);

    let rows = Rows::new(kernel, &operands, memory, context)?;
    let queried = |size| [batch, heads, queries, size];
    let keyed = |size| [key_batch, key_heads, keys, size];
    let scale = operands.scale;
    let splits = UNITS.div_ceil((key_batch * key_heads).max(1)).min(keys.div_ceil(KEYS).max(1));
    let padded = head_size.next_multiple_of(panel_width::<S>(context.isa));
    let query_sums = match query_cotangent {
        Some(_) => Aligned::<S>::new(splits * batch * heads * queries * padded)?,
        None => Aligned::new(0)?,
    };
    let call = Call {
        shape,
        rows,
        queries: Packed::<S>::new(context, operands.query, queried(head_size), scale, Layout::Rows)?,
        cotangents: Packed::new(context, output_cotangent, queried(value_size), 1.0, Layout::Rows)?,
        keys: Packed::new(context, operands.key, keyed(head_size), 1.0, Layout::Transposed)?,
        key_rows: Packed::new(context, operands.key, keyed(head_size), 1.0, Layout::Rows)?,
        values: Packed::new(context, operands.value, keyed(value_size), 1.0, Layout::Transposed)?,
        key_cotangent,
        value_cotangent,
        splits,
        query_sums: query_cotangent.map(|_| Pointer(query_sums.as_ptr().cast_mut())),
        query_stride: padded,
    };
    context.parallel(key_batch * key_heads * splits, |i| {
        let (head, split) = (i / splits, i % splits);
        let place = (head / key_heads, head % key_heads);
        let unit = Unit { call: &call, place, split, scratch: Scratch::new(&shape, context)? };
        // SAFETY: the context's instruction set is the machine's; units write disjoint places.
        unsafe { S::dispatch(context.isa, unit) }
    })?;
    if let Some(array) = query_cotangent {
        let blocks = queries.div_ceil(QUERIES);
        context.parallel(batch * heads * blocks, |i| {
            let (head, block) = (i / blocks, i % blocks);
            let mut row = vec![0.0; head_size];
            for query in block * QUERIES..((block + 1) * QUERIES).min(queries) {
                row.fill(0.0);
                for split in 0..splits {
                    let at = ((split * batch * heads + head) * queries + query) * padded;
                    for (sum, x) in row.iter_mut().zip(&query_sums[at..at + head_size]) {
                        *sum += x.to_f64();
                    }
                }
                row.iter_mut().for_each(|x| *x *= scale);
                // SAFETY: a row of the array, written by this task only.
                unsafe { array.write_row([head / heads, head % heads, query], &row) };
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What the backward needs of each row of scores: `[batch, heads, queries]`.
struct Rows<S: Scalar> {
    log_sum_exp: Aligned<S>,
    /// The sum of the output's cotangent times the output, less the log-sum-exp's cotangent.
    delta: Aligned<S>,
}

impl<S: Dispatch> Rows<S> {
    fn new(
        kernel: &AttentionBackward,
        operands: &Operands,
        memory: &Memory,
        context: &Context,
    ) -> Result<Rows<S>> {
        let AttentionShape { batch, heads, queries, value_size, .. } = operands.shape;
        let dtype = kernel.attention.dtype;
        let statistic = |view: &View| -> Result<Array> {
            memory.read(view, super::score_dtype(dtype), &[batch, heads, queries])
        };
        let extents = [batch, heads, queries, value_size];
        let output = matrix(&memory.read(&kernel.output, dtype, &extents)?);
        let cotangent = matrix(&memory.read(&kernel.output_cotangent, dtype, &extents)?);
        let log_sum_exp = column(&statistic(&kernel.log_sum_exp)?);
        let log_sum_exp_cotangent =
            kernel.log_sum_exp_cotangent.as_ref().map(statistic).transpose()?.map(|array| column(&array));
        let count = batch * heads * queries;
        let mut rows = Rows::<S> { log_sum_exp: Aligned::new(count)?, delta: Aligned::new(count)? };
        let (log_sum_exps, deltas) =
            (Pointer(rows.log_sum_exp.as_mut_ptr()), Pointer(rows.delta.as_mut_ptr()));
        context.parallel(batch * heads, |head| {
            let place = [head / heads, head % heads, 0];
            let (mut left, mut right) = (vec![S::default(); value_size], vec![S::default(); value_size]);
            // SAFETY: this head's elements are written by this task only; rows are within the arrays.
            unsafe {
                let log_sum_exps = std::slice::from_raw_parts_mut(log_sum_exps.add(head * queries), queries);
                let deltas = std::slice::from_raw_parts_mut(deltas.add(head * queries), queries);
                log_sum_exp.read_row(place, 1.0, log_sum_exps);
                if let Some(array) = log_sum_exp_cotangent {
                    array.read_row(place, 1.0, deltas);
                }
                for (query, delta) in deltas.iter_mut().enumerate() {
                    let place = [place[0], place[1], query];
                    output.read_row(place, 1.0, &mut left);
                    cotangent.read_row(place, 1.0, &mut right);
                    let sum: f64 = left.iter().zip(&right).map(|(x, y)| x.to_f64() * y.to_f64()).sum();
                    *delta = S::from_f64(sum - delta.to_f64());
                }
            }
            Ok(())
        })?;
        Ok(rows)
    }
}

/// What all units of a call share.
struct Call<S: Scalar> {
    shape: AttentionShape,
    rows: Rows<S>,
    /// Times the scale.
    queries: Packed<S>,
    cotangents: Packed<S>,
    keys: Packed<S>,
    key_rows: Packed<S>,
    values: Packed<S>,
    key_cotangent: Option<Strided>,
    value_cotangent: Option<Strided>,
    splits: usize,
    /// `[splits, batch, heads, queries, query_stride]`, less the scale; absent where not wanted.
    query_sums: Option<Pointer<S>>,
    query_stride: usize,
}

struct Unit<'a, S: Scalar> {
    call: &'a Call<S>,
    /// The key batch and head.
    place: (usize, usize),
    split: usize,
    scratch: Scratch<S>,
}

/// What a unit keeps in the caches.
struct Scratch<S: Scalar> {
    /// `[QUERIES × stride]`: scores, then weights.
    weights: Aligned<S>,
    /// `[QUERIES × stride]`: cotangents of weights, then of scores.
    slopes: Aligned<S>,
    stride: usize,
    /// `[KEYS × …]`, padded to panels.
    key_sums: Aligned<S>,
    value_sums: Aligned<S>,
}

impl<S: Dispatch> Scratch<S> {
    fn new(shape: &AttentionShape, context: &Context) -> Result<Scratch<S>> {
        let width = panel_width::<S>(context.isa);
        let stride = KEYS + 16;
        Ok(Scratch {
            weights: Aligned::new(QUERIES * stride)?,
            slopes: Aligned::new(QUERIES * stride)?,
            stride,
            key_sums: Aligned::new(KEYS * shape.head_size.next_multiple_of(width))?,
            value_sums: Aligned::new(KEYS * shape.value_size.next_multiple_of(width))?,
        })
    }
}

impl<S: Dispatch> Work<S> for Unit<'_, S> {
    type Output = Result<()>;

    #[inline(always)]
    unsafe fn run<V: Vector<Scalar = S>>(mut self) -> Result<()> {
        let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, .. } = self.call.shape;
        let batches = if key_batch == 1 { 0..batch } else { self.place.0..self.place.0 + 1 };
        let group = heads / key_heads;
        for first in (0..keys).step_by(KEYS).skip(self.split).step_by(self.call.splits) {
            let keys = first..(first + KEYS).min(keys);
            self.scratch.key_sums.fill(S::default());
            self.scratch.value_sums.fill(S::default());
            for batch in batches.clone() {
                for head in self.place.1 * group..(self.place.1 + 1) * group {
                    for query in (0..queries).step_by(QUERIES) {
                        let queries = query..(query + QUERIES).min(queries);
                        // SAFETY: as the caller vouches for the vectors; the ranges are within the arrays.
                        unsafe { self.panel::<V>((batch, head), queries, keys.clone()) };
                    }
                }
            }
            // SAFETY: these keys are the unit's own.
            unsafe { self.store(keys) };
        }
        Ok(())
    }
}

impl<S: Dispatch> Unit<'_, S> {
    /// Adds what the pairs of some queries, at most [`QUERIES`], with a block of keys contribute.
    #[inline(always)]
    unsafe fn panel<V: Vector<Scalar = S>>(
        &mut self,
        (batch, head): (usize, usize),
        queries: Range<usize>,
        keys: Range<usize>,
    ) {
        let call = self.call;
        let AttentionShape { heads, head_size, value_size, .. } = call.shape;
        let Scratch { weights, slopes, stride, key_sums, value_sums } = &mut self.scratch;
        let stride = *stride;
        let place = key_place(&call.shape, batch, head);
        let (rows, columns) = (queries.len(), keys.len());
        let panels = |size: usize| size.div_ceil(width::<V>());
        let first = (batch * heads + head) * call.shape.queries + queries.start;
        let transposed = |data: &[S]| Left { data: data.as_ptr(), row: 1, column: stride };
        // SAFETY: every extent is within its buffer; see `Scratch` and `Packed`.
        unsafe {
            product::<V>(
                (rows, head_size, panels(columns)),
                call.queries.left((batch, head), queries.start),
                call.keys.panels(place, keys.start),
                Target { data: weights.as_mut_ptr(), row: stride, add: false },
            );
            for row in 0..rows {
                let weights = &mut weights[row * stride..][..columns.next_multiple_of(V::LANES)];
                weights_of::<V>(weights, call.rows.log_sum_exp[first + row]);
            }
            if call.value_cotangent.is_some() {
                let row = panels(value_size) * width::<V>();
                product::<V>(
                    (columns, rows, panels(value_size)),
                    transposed(weights),
                    call.cotangents.panels((batch, head), queries.start),
                    Target { data: value_sums.as_mut_ptr(), row, add: true },
                );
            }
            product::<V>(
                (rows, value_size, panels(columns)),
                call.cotangents.left((batch, head), queries.start),
                call.values.panels(place, keys.start),
                Target { data: slopes.as_mut_ptr(), row: stride, add: false },
            );
            for row in 0..rows {
                let range = row * stride..row * stride + columns.next_multiple_of(V::LANES);
                let live = call.rows.log_sum_exp[first + row] != S::NEG_INFINITY;
                let delta = call.rows.delta[first + row];
                slopes_of::<V>(&weights[range.clone()], &mut slopes[range], delta, live);
            }
            if let Some(sums) = call.query_sums {
                let row = call.query_stride;
                let split = self.split * call.shape.batch * heads * call.shape.queries;
                product::<V>(
                    (rows, columns, panels(head_size)),
                    Left { data: slopes.as_ptr(), row: stride, column: 1 },
                    call.key_rows.panels(place, keys.start),
                    Target { data: sums.add((split + first) * row), row, add: true },
                );
            }
            if call.key_cotangent.is_some() {
                let row = panels(head_size) * width::<V>();
                product::<V>(
                    (columns, rows, panels(head_size)),
                    transposed(slopes),
                    call.queries.panels((batch, head), queries.start),
                    Target { data: key_sums.as_mut_ptr(), row, add: true },
                );
            }
        }
    }

    /// Stores the cotangents of a block of keys and values.
    unsafe fn store(&self, keys: Range<usize>) {
        let AttentionShape { head_size, value_size, .. } = self.call.shape;
        let arrays = [
            (&self.call.key_cotangent, &self.scratch.key_sums, head_size),
            (&self.call.value_cotangent, &self.scratch.value_sums, value_size),
        ];
        for (array, sums, size) in arrays {
            let Some(array) = array else { continue };
            let stride = sums.len() / KEYS;
            for (row, key) in keys.clone().enumerate() {
                // SAFETY: the caller's own rows.
                unsafe {
                    array.write_row([self.place.0, self.place.1, key], &sums[row * stride..][..size]);
                }
            }
        }
    }
}

/// Turns a row of scores into weights.
#[inline(always)]
unsafe fn weights_of<V: Vector>(scores: &mut [V::Scalar], log_sum_exp: V::Scalar) {
    if log_sum_exp == V::Scalar::NEG_INFINITY {
        scores.fill(V::Scalar::default());
        return;
    }
    for lanes in scores.chunks_exact_mut(V::LANES) {
        // SAFETY: a whole vector.
        unsafe {
            let weight = V::load(lanes.as_ptr()).sub(V::splat(log_sum_exp)).exp();
            weight.store(lanes.as_mut_ptr());
        }
    }
}

/// Turns a row of the weights' cotangents into those of the scores.
#[inline(always)]
unsafe fn slopes_of<V: Vector>(
    weights: &[V::Scalar],
    slopes: &mut [V::Scalar],
    delta: V::Scalar,
    live: bool,
) {
    if !live {
        slopes.fill(V::Scalar::default());
        return;
    }
    for (weights, slopes) in weights.chunks_exact(V::LANES).zip(slopes.chunks_exact_mut(V::LANES)) {
        // SAFETY: whole vectors.
        unsafe {
            let slope = V::load(slopes.as_ptr()).sub(V::splat(delta));
            V::load(weights.as_ptr()).mul(slope).store(slopes.as_mut_ptr());
        }
    }
}
