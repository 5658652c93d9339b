//! The gradient of attention, in one pass over the pairs (Dao 2023, algorithm 2): weights are made again
//! from queries, keys and the stored log-sum-exp, so that no array of queries × keys ever exists.
//!
//! A *unit* owns every [`Split::count`]th block of keys of one key head and walks all queries that see them.
//! The cotangents of its keys and values are its own. Those of the queries are summed by each split apart,
//! and then over the splits in their order. The split depends on sizes only, so that the result does not
//! depend on the number of threads.

use std::ops::Range;

use tilewright_ir::{DType, Result};
use tilewright_plan::attention::AttentionShape;
use tilewright_plan::{AttentionBackward, Operation, View};

use super::factors::Factors;
use super::operands::{Operands, Shared, column, key_place, matrix, panel_width};
use super::pack::Strided;
use super::reductions::{Division, Reductions, Terms};
use super::regions::{Admitted, Pairs, Panel, Regions};
use super::segments::{Segment, pieces, queries_of};
use super::vector::{Dispatch, Scalar, Vector, Work};
use crate::Context;
use crate::memory::{Aligned, Array, Memory};
use crate::tile::{self, Stage, Tile};

/// Queries of a panel.
const QUERIES: usize = 64;
/// Keys of a panel; a multiple of every panel's width.
pub(super) const KEYS: usize = 128;
/// Units that there should be, for threads to share.
const UNITS: usize = 16;
/// Elements between rows of a panel; a little more than its keys, so that rows do not meet in one cache set.
pub(super) const STRIDE: usize = KEYS + 16;
/// Rows behind those of a head's queries, for products in whole blocks of rows.
pub(super) const SPARE: usize = 32;

/// Runs the gradient of attention in the score type `S`, its products by `factors`.
pub(super) fn backward<S: Dispatch>(
    kernel: &AttentionBackward,
    operands: &Operands,
    factors: &impl Factors<S>,
    memory: &Memory,
    context: &Context,
) -> Result<()> {
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

    let rows = Rows::new(kernel, operands, memory, context)?;
    let scale = operands.scale;
    let division = Division::new(kernel, key_batch * key_heads, keys.div_ceil(KEYS), UNITS);
    let splits = division.splits;
    let padded = head_size.next_multiple_of(panel_width::<S>(context.isa));
    let query_sums =
        query_cotangent.map(|_| Shared::new(splits * batch * heads * (queries + SPARE) * padded));
    let mut call = Call {
        shape,
        rows,
        regions: Regions::backward(&kernel.attention, kernel.joint.as_ref(), memory, context)?,
        reductions: Reductions::new(kernel, division, memory, context)?,
        terms: Term::of(kernel),
        score_dtype: super::score_dtype(dtype),
        factors,
        key_cotangent,
        value_cotangent,
        splits,
        query_sums: query_sums.transpose()?,
        query_stride: padded,
    };
    context.parallel(division.lanes, |lane| {
        let mut scratch = Scratch::new(&call)?;
        for (head, split) in division.units(lane, key_batch * key_heads) {
            let place = (head / key_heads, head % key_heads);
            let unit = Unit { call: &call, place, split, lane, scratch: &mut scratch };
            // SAFETY: the context's instruction set is the machine's; units write disjoint places.
            unsafe { factors.dispatch(context.isa, unit)? };
        }
        Ok(())
    })?;
    if let (Some(array), Some(sums)) = (query_cotangent, &mut call.query_sums) {
        let sums: &[S] = sums.numbers();
        let blocks = queries.div_ceil(QUERIES);
        context.parallel(batch * heads * blocks, |i| {
            let (head, block) = (i / blocks, i % blocks);
            let mut row = vec![0.0; head_size];
            for query in block * QUERIES..((block + 1) * QUERIES).min(queries) {
                row.fill(0.0);
                for split in 0..splits {
                    let at = ((split * batch * heads + head) * (queries + SPARE) + query) * padded;
                    for (sum, x) in row.iter_mut().zip(&sums[at..at + head_size]) {
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
    call.reductions.finish(&call.regions, memory, context)
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
        let output = matrix(&memory.read(&kernel.output, super::score_dtype(dtype), &extents)?);
        let cotangent = matrix(&memory.read(&kernel.output_cotangent, dtype, &extents)?);
        let log_sum_exp = column(&statistic(&kernel.log_sum_exp)?);
        let log_sum_exp_cotangent =
            kernel.log_sum_exp_cotangent.as_ref().map(statistic).transpose()?.map(|array| column(&array));
        let count = batch * heads * queries;
        let (log_sum_exps, deltas) = (Shared::<S>::new(count)?, Shared::<S>::new(count)?);
        context.parallel(batch * heads, |head| {
            // SAFETY: this head's elements are written by this task only; rows are within the arrays; the
            // context's instruction set is the machine's.
            unsafe {
                let log_sum_exps = std::slice::from_raw_parts_mut(log_sum_exps.at(head * queries), queries);
                let deltas = std::slice::from_raw_parts_mut(deltas.at(head * queries), queries);
                log_sum_exp.read_row([head / heads, head % heads, 0], 1.0, log_sum_exps);
                if let Some(array) = log_sum_exp_cotangent {
                    array.read_row([head / heads, head % heads, 0], 1.0, deltas);
                }
                let place = (head / heads, head % heads);
                S::dispatch(context.isa, Deltas { output, cotangent, place, size: value_size, deltas });
            }
            Ok(())
        })?;
        Ok(Rows { log_sum_exp: log_sum_exps.into_inner(), delta: deltas.into_inner() })
    }
}

/// Computes the deltas of a head, in whose place the log-sum-exp's cotangents stand.
struct Deltas<'a, S> {
    output: Strided,
    cotangent: Strided,
    place: (usize, usize),
    size: usize,
    deltas: &'a mut [S],
}

impl<S: Scalar> Work<S> for Deltas<'_, S> {
    type Output = ();

    /// The products are summed as the microkernel sums those of cotangents and values: where a row sees one
    /// key only, and its output is a value, their difference is exactly 0.
    #[inline(always)]
    unsafe fn run<V: Vector<Scalar = S>>(self) {
        let Deltas { output, cotangent, place: (batch, head), size, deltas } = self;
        let (mut outputs, mut cotangents) = (vec![S::default(); size], vec![S::default(); size]);
        for (query, delta) in deltas.iter_mut().enumerate() {
            // SAFETY: rows within the arrays; no vector has more than 16 lanes.
            unsafe {
                output.read_row([batch, head, query], 1.0, &mut outputs);
                cotangent.read_row([batch, head, query], 1.0, &mut cotangents);
                let mut sum = V::splat(S::default());
                for (&x, &y) in cotangents.iter().zip(&outputs) {
                    sum = V::splat(x).fma(V::splat(y), sum);
                }
                let mut lanes = [S::default(); 16];
                sum.sub(V::splat(*delta)).store(lanes.as_mut_ptr());
                *delta = lanes[0];
            }
        }
    }
}

/// What all units of a call share.
struct Call<'a, S: Scalar, F> {
    shape: AttentionShape,
    rows: Rows<S>,
    regions: Regions<'a>,
    reductions: Reductions<'a, S>,
    /// Where each late result of the joint program goes.
    terms: Vec<Term>,
    score_dtype: DType,
    factors: &'a F,
    key_cotangent: Option<Strided>,
    value_cotangent: Option<Strided>,
    splits: usize,
    /// `[splits, batch, heads, queries + SPARE, query_stride]`, less the scale; absent where not wanted.
    query_sums: Option<Shared<S>>,
    query_stride: usize,
}

/// Where a late result of the joint program, d_score or a term, goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Term {
    /// It is the cotangent that the program is given.
    Given,
    /// It is another late result.
    Same(usize),
    /// A panel of its own.
    Panel(usize),
}

impl Term {
    /// Of d_score and of each term.
    fn of(kernel: &AttentionBackward) -> Vec<Term> {
        let Some(joint) = &kernel.joint else { return vec![Term::Given] };
        let late = &joint.results[1..];
        let mut panels = 0;
        let places = late.iter().enumerate().map(|(i, result)| {
            if joint.instructions[result.index()].operation == Operation::Input(5) {
                return Term::Given;
            }
            if let Some(earlier) = late[..i].iter().position(|other| other == result) {
                return Term::Same(earlier);
            }
            panels += 1;
            Term::Panel(panels - 1)
        });
        places.collect()
    }
}

struct Unit<'a, S: Scalar, F: Factors<S>> {
    call: &'a Call<'a, S, F>,
    /// The key batch and head.
    place: (usize, usize),
    split: usize,
    lane: usize,
    scratch: &'a mut Scratch<S, F::Sums>,
}

/// What a unit keeps in the caches.
struct Scratch<S: Scalar, F> {
    /// `[QUERIES × STRIDE]`: raw scores.
    scores: Aligned<S>,
    /// `[QUERIES × STRIDE]`: scores, then weights.
    weights: Aligned<S>,
    /// `[QUERIES × STRIDE]`: cotangents of weights, then of the scores that the softmax sees.
    slopes: Aligned<S>,
    /// `[panel, QUERIES × STRIDE]`: late results of the joint program.
    panels: Aligned<S>,
    sums: F,
    /// `[QUERIES × KEYS]`: which pairs the mask admits.
    admitted: Aligned<u8>,
    tile: tile::Scratch,
}

impl<S: Dispatch, F> Scratch<S, F> {
    fn new(call: &Call<S, impl Factors<S, Sums = F>>) -> Result<Scratch<S, F>> {
        let panels = call.terms.iter().filter(|term| matches!(term, Term::Panel(_))).count();
        Ok(Scratch {
            scores: Aligned::new(QUERIES * STRIDE)?,
            weights: Aligned::new(QUERIES * STRIDE)?,
            slopes: Aligned::new(QUERIES * STRIDE)?,
            panels: Aligned::new(panels * QUERIES * STRIDE)?,
            sums: call.factors.sums()?,
            admitted: Aligned::new(QUERIES * KEYS)?,
            tile: tile::Scratch::new(),
        })
    }
}

impl<S: Dispatch, F: Factors<S>> Work<S> for Unit<'_, S, F> {
    type Output = Result<()>;

    #[inline(always)]
    unsafe fn run<V: Vector<Scalar = S>>(mut self) -> Result<()> {
        let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, .. } = self.call.shape;
        let batches = if key_batch == 1 { 0..batch } else { self.place.0..self.place.0 + 1 };
        let group = heads / key_heads;
        for first in (0..keys).step_by(KEYS).skip(self.split).step_by(self.call.splits) {
            let keys = first..(first + KEYS).min(keys);
            self.call.factors.clear(&mut self.scratch.sums);
            for batch in batches.clone() {
                for head in self.place.1 * group..(self.place.1 + 1) * group {
                    let segments = queries_of(self.call.regions.blocks, (batch, head), &keys, queries);
                    for Segment { range, full } in pieces(segments, QUERIES) {
                        // SAFETY: as the caller vouches for the vectors; the ranges are within the arrays.
                        unsafe { self.tile::<V>((batch, head), range, keys.clone(), full)? };
                    }
                }
            }
            // SAFETY: these keys are the unit's own.
            unsafe {
                let arrays = [self.call.key_cotangent.as_ref(), self.call.value_cotangent.as_ref()];
                self.call.factors.store(&self.scratch.sums, &(self.place, keys), arrays);
            }
        }
        Ok(())
    }
}

impl<S: Dispatch, F: Factors<S>> Unit<'_, S, F> {
    /// Adds what the pairs of some queries, at most [`QUERIES`], with a block of keys contribute. The mask is
    /// evaluated unless they are all admitted.
    #[inline(always)]
    unsafe fn tile<V: Vector<Scalar = S>>(
        &mut self,
        (batch, head): (usize, usize),
        queries: Range<usize>,
        keys: Range<usize>,
        full: bool,
    ) -> Result<()> {
        let (rows, columns) = (queries.len(), keys.len());
        let pairs = Pairs { batch, head, query: queries.start, key: keys.start, rows, columns };
        if full {
            // SAFETY: the caller's promise.
            return unsafe { self.panel::<V>(pairs, None) };
        }
        let Scratch { admitted, tile, .. } = &mut *self.scratch;
        self.call.regions.admit(pairs, admitted, KEYS, tile)?;
        let mask = Admitted { bytes: admitted, stride: KEYS };
        for (rows, columns) in mask.pieces(&pairs, F::GRAIN) {
            // SAFETY: a part of the pairs.
            unsafe { self.panel::<V>(pairs.piece(&rows, &columns), Some((rows.start, columns.start)))? };
        }
        Ok(())
    }

    /// Adds what pairs contribute. Which of them the mask admits stands in the scratch from a row and a column on, unless
    /// all are.
    #[inline(always)]
    unsafe fn panel<V: Vector<Scalar = S>>(
        &mut self,
        pairs: Pairs,
        admitted_from: Option<(usize, usize)>,
    ) -> Result<()> {
        let call = self.call;
        let Pairs { batch, head, rows, columns, .. } = pairs;
        let (queries, keys) = (pairs.query..pairs.query + rows, pairs.key..pairs.key + columns);
        let heads = call.shape.heads;
        let Scratch { scores, weights, slopes, panels, sums, admitted, tile } = &mut *self.scratch;
        let admitted = Admitted { bytes: admitted, stride: KEYS };
        let mask = admitted_from.map(|(row, column)| admitted.from(row, column));
        let padded = columns.next_multiple_of(V::LANES);
        let (queries_at, keys_at) = (((batch, head), queries), (key_place(&call.shape, batch, head), keys));
        let (queries, keys) = (&queries_at, &keys_at);
        let first = (batch * heads + head) * call.shape.queries + queries.1.start;
        let log_sum_exps = &call.rows.log_sum_exp[first..first + rows];
        let deltas = &call.rows.delta[first..first + rows];
        let panel = |data: *mut S| Panel { data: data.cast(), dtype: call.score_dtype, stride: STRIDE };
        let function = call.regions.function.as_ref();
        let raw = if function.is_some() { scores.as_mut_ptr() } else { weights.as_mut_ptr() };
        // SAFETY: every extent is within its buffer; see `Scratch` and `Packed`.
        unsafe {
            call.factors.scores::<V>(queries, keys, raw);
            let late = call.terms.iter().map(|term| match term {
                Term::Panel(i) => panel(panels.as_mut_ptr().add(i * QUERIES * STRIDE)).target(),
                Term::Given | Term::Same(_) => tile::Target::Skip,
            });
            let targets: Vec<tile::Target> =
                std::iter::once(panel(weights.as_mut_ptr()).target()).chain(late).collect();
            let [b, h, q, k] = pairs.positions();
            let scores = panel(raw);
            let arguments = [b, h, q, k, scores.argument(), panel(slopes.as_mut_ptr()).argument()];
            let live = mask.map(|mask| mask.live());
            let tables = &call.regions.tables;
            let function_tile =
                Tile { rows, columns, arguments: &arguments, targets: &targets, tables, live };
            if let Some(function) = function {
                function.run_ahead(Stage::Early, &function_tile, (QUERIES as isize, 0), tile)?;
            }
            for (row, &log_sum_exp) in log_sum_exps.iter().enumerate() {
                let weights = &mut weights[row * STRIDE..][..padded];
                weights[columns..].fill(S::NEG_INFINITY);
                if let Some(mask) = mask {
                    mask.overwrite(row, &mut weights[..columns], S::NEG_INFINITY);
                }
                weights_of::<V>(weights, log_sum_exp);
                if log_sum_exp.to_f64().is_nan() {
                    // −∞ less NaN is NaN, and a masked pair has no weight all the same.
                    clear(weights, row, columns, mask, log_sum_exp);
                }
            }
            if call.value_cotangent.is_some() {
                call.factors.add_to_values::<V>(queries, keys, weights.as_ptr(), mask, sums);
            }
            if call.query_sums.is_none() && call.key_cotangent.is_none() && call.reductions.is_empty() {
                return Ok(());
            }
            call.factors.slopes::<V>(queries, keys, slopes.as_mut_ptr());
            for row in 0..rows {
                let slopes = &mut slopes[row * STRIDE..][..padded];
                slopes_of::<V>(&weights[row * STRIDE..][..padded], slopes, deltas[row]);
                clear(slopes, row, columns, mask, log_sum_exps[row]);
            }
            if let Some(function) = function.filter(|_| call.terms.iter().any(|term| *term != Term::Given)) {
                function.run(Stage::Late, &function_tile, tile)?;
                for panel in panels.chunks_exact_mut(QUERIES * STRIDE) {
                    for row in 0..rows {
                        let panel = &mut panel[row * STRIDE..][..padded];
                        clear(panel, row, columns, mask, log_sum_exps[row]);
                    }
                }
            }
            let place_of = |term: Term| match term {
                Term::Given => slopes.as_ptr(),
                Term::Panel(i) => panels.as_ptr().add(i * QUERIES * STRIDE),
                Term::Same(_) => unreachable!("resolved to what it repeats"),
            };
            let late: Vec<*const S> = call
                .terms
                .iter()
                .map(|term| match term {
                    Term::Same(i) => place_of(call.terms[*i]),
                    term => place_of(*term),
                })
                .collect();
            let slopes = late[0];
            let query_sums = call.query_sums.as_ref().map(|sums| {
                let head = (self.split * call.shape.batch + batch) * heads + head;
                let row = head * (call.shape.queries + SPARE) + queries.1.start;
                (sums.at(row * call.query_stride), call.query_stride)
            });
            let wanted = (query_sums, call.key_cotangent.is_some());
            call.factors.add_slopes::<V>(queries, keys, slopes, mask, wanted, sums);
            let terms = Terms {
                pairs,
                lane: self.lane,
                split: self.split,
                ahead: QUERIES,
                admitted: mask,
                scores,
                panels: &late,
                stride: STRIDE,
            };
            call.reductions.add::<V>(&terms, &call.regions, tile)
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
unsafe fn slopes_of<V: Vector>(weights: &[V::Scalar], slopes: &mut [V::Scalar], delta: V::Scalar) {
    for (weights, slopes) in weights.chunks_exact(V::LANES).zip(slopes.chunks_exact_mut(V::LANES)) {
        // SAFETY: whole vectors.
        unsafe {
            let slope = V::load(slopes.as_ptr()).sub(V::splat(delta));
            V::load(weights.as_ptr()).mul(slope).store(slopes.as_mut_ptr());
        }
    }
}

/// Makes a row 0 past its columns, where the mask does not admit, and all of it where no key was seen.
#[inline(always)]
fn clear<S: Scalar>(row: &mut [S], query: usize, columns: usize, mask: Option<Admitted>, log_sum_exp: S) {
    if log_sum_exp == S::NEG_INFINITY {
        row.fill(S::default());
        return;
    }
    row[columns..].fill(S::default());
    if let Some(mask) = mask {
        mask.overwrite(query, &mut row[..columns], S::default());
    }
}
