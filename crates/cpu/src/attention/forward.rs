//! Attention forward: scores, softmax and output in one pass over the keys.
//!
//! A *unit* is one block of queries of one head. It walks the blocks of keys that the mask leaves; for each
//! it makes a panel of scores, turns it into weights relative to the greatest score so far, and adds weights
//! times values to the output, which is rescaled when a greater score appears (Milakov and Gimelshein 2018;
//! Dao 2023). No array of queries × keys ever exists.
//!
//! Where there are too few blocks of queries to keep threads busy, as in decoding, the keys are split among several
//! units, and what they found is merged in the order of the keys. The split depends on sizes only.

use std::ops::Range;

use tilewright_ir::{DType, Result};
use tilewright_plan::AttentionForward;
use tilewright_plan::attention::AttentionShape;

use super::keys::Source;
use super::operands::{column, key_place, matrix, panel_width};
use super::pack::Strided;
use super::product::{Target, width};
use super::regions::{Admitted, Pairs, Panel, Regions};
use super::results::{Found, Results};
use super::segments::{Segment, keys_of, pieces};
use super::vector::{Dispatch, Scalar, Vector, Work};
use crate::Context;
use crate::memory::{Aligned, Memory};
use crate::tile::{self, Stage, Tile};

/// Queries of a unit.
const QUERIES: usize = 64;
/// Keys of a panel of scores; a multiple of every panel's width.
pub(super) const KEYS: usize = 128;
/// Units that there should be, for threads to share.
const UNITS: usize = 16;
/// Keys that a split has at least.
const SPLIT: usize = 4 * KEYS;

/// Runs attention in the score type `S` on keys and values as `source` has them.
pub(super) fn forward<S: Dispatch>(
    kernel: &AttentionForward,
    source: &impl Source<S>,
    memory: &Memory,
    context: &Context,
) -> Result<()> {
    let shape = kernel.attention.shape;
    let score_dtype = super::score_dtype(kernel.attention.dtype);
    let rows = [shape.batch, shape.heads, shape.queries];
    let outputs = [shape.batch, shape.heads, shape.queries, shape.value_size];
    let output = matrix(&memory.write(&kernel.output, kernel.attention.dtype, &outputs)?);
    let unrounded = kernel.unrounded.as_ref().map(|view| memory.write(view, score_dtype, &outputs));
    let statistic = |view: &Option<_>| -> Result<Option<Strided>> {
        let array = view.as_ref().map(|view| memory.write(view, score_dtype, &rows)).transpose()?;
        Ok(array.map(|array| column(&array)))
    };
    let results = Results {
        output,
        unrounded: unrounded.transpose()?.map(|array| matrix(&array)),
        log_sum_exp: statistic(&kernel.log_sum_exp)?,
        maximum: statistic(&kernel.maximum)?,
    };
    let regions = Regions::forward(&kernel.attention, kernel.score.as_ref(), memory, context)?;
    let blocks = shape.queries.div_ceil(QUERIES);
    let units = shape.batch * shape.heads * blocks;
    let splits = UNITS.div_ceil(units.max(1)).clamp(1, (shape.keys / SPLIT).max(1));
    let split_keys = shape.keys.div_ceil(splits).next_multiple_of(KEYS);
    let found = Found::new(if splits == 1 { 0 } else { splits }, units, QUERIES, shape.value_size)?;
    let queries_of = |block: usize| block * QUERIES..((block + 1) * QUERIES).min(shape.queries);
    let length = |unit: usize| -> usize {
        let (head, block) = (unit / blocks, unit % blocks);
        let place = (head / shape.heads, head % shape.heads);
        let segments = keys_of(regions.blocks, place, &queries_of(block), shape.keys);
        segments.iter().map(|segment| segment.range.len()).sum()
    };
    let order = longest_first(shape.batch * shape.heads, blocks, length);
    let room = || Scratch::new(&shape, source, panel_width::<S>(context.isa));
    context.parallel_in(units * splits, room, |scratch, i| {
        let (unit, split) = (order[i / splits], i % splits);
        let (head, block) = (unit / blocks, unit % blocks);
        let unit = Unit {
            shape,
            results: &results,
            source,
            regions: &regions,
            score_dtype,
            batch: head / shape.heads,
            head: head % shape.heads,
            queries: queries_of(block),
            keys: split * split_keys..((split + 1) * split_keys).min(shape.keys),
            found: (splits > 1).then(|| found.at(split, unit)),
            scratch,
        };
        // SAFETY: the context's instruction set is the machine's; units write disjoint rows.
        unsafe { source.dispatch(context.isa, unit) }
    })?;
    if splits == 1 {
        return Ok(());
    }
    context.parallel(units, |unit| {
        let (head, block) = (unit / blocks, unit % blocks);
        let place = (head / shape.heads, head % shape.heads);
        for query in queries_of(block) {
            // SAFETY: the units are done, and only this task looks at this one's rows.
            unsafe {
                let (maximum, sum, mut output) = found.merged(unit, query - block * QUERIES);
                results.store([place.0, place.1, query], maximum, sum, &mut output);
            }
        }
        Ok(())
    })
}

/// The units in the order in which they are begun: head by head, so that the keys of one stay in the caches, and a head's
/// longest first, so that no thread is left with a long one at the end.
fn longest_first(heads: usize, blocks: usize, length: impl Fn(usize) -> usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..heads * blocks).collect();
    order.sort_by_cached_key(|&unit| (unit / blocks, std::cmp::Reverse(length(unit))));
    order
}

struct Unit<'a, S: Scalar, K: Source<S>> {
    shape: AttentionShape,
    results: &'a Results,
    source: &'a K,
    regions: &'a Regions<'a>,
    score_dtype: DType,
    batch: usize,
    head: usize,
    queries: Range<usize>,
    /// The keys that it looks at.
    keys: Range<usize>,
    /// Where its rows go if it does not look at all keys.
    found: Option<*mut S>,
    scratch: &'a mut Scratch<S, K::Scratch>,
}

/// What a unit keeps in the caches.
struct Scratch<S: Scalar, K> {
    /// `[QUERIES × stride]`: scores, then weights.
    scores: Aligned<S>,
    /// Elements between rows of `scores`: a panel of keys, and where it begins within a packed panel.
    stride: usize,
    /// `[QUERIES × value_size, padded]`.
    output: Aligned<S>,
    /// Elements between rows of `output`.
    output_stride: usize,
    /// The greatest score of each row so far.
    maximum: [S; QUERIES],
    /// The sum of each row's weights, a vector of partial sums.
    sums: Aligned<S>,
    /// `[QUERIES × KEYS]`: which pairs the mask admits.
    admitted: Aligned<u8>,
    source: K,
    tile: tile::Scratch,
}

impl<S: Scalar, K> Scratch<S, K> {
    fn new(
        shape: &AttentionShape,
        source: &impl Source<S, Scratch = K>,
        width: usize,
    ) -> Result<Scratch<S, K>> {
        let stride = KEYS + width;
        let output_stride = shape.value_size.next_multiple_of(width);
        Ok(Scratch {
            scores: Aligned::scratch(QUERIES * stride)?,
            stride,
            output: Aligned::new(QUERIES * output_stride)?,
            output_stride,
            maximum: [S::NEG_INFINITY; QUERIES],
            sums: Aligned::new(QUERIES * width)?,
            admitted: Aligned::new(QUERIES * KEYS)?,
            source: source.scratch(QUERIES, stride)?,
            tile: tile::Scratch::new(),
        })
    }
}

impl<S: Dispatch, K: Source<S>> Work<S> for Unit<'_, S, K> {
    type Output = Result<()>;

    #[inline(always)]
    unsafe fn run<V: Vector<Scalar = S>>(mut self) -> Result<()> {
        self.scratch.output.fill(S::default());
        self.scratch.sums.fill(S::default());
        self.scratch.maximum.fill(S::NEG_INFINITY);
        let place = (self.batch, self.head, self.queries.start);
        // SAFETY: the rows are within the array.
        unsafe { self.source.take_queries::<V>(place, self.queries.len(), &mut self.scratch.source) };
        let segments = keys_of(self.regions.blocks, (self.batch, self.head), &self.queries, self.shape.keys);
        let own = self.keys.clone();
        for Segment { range, full } in pieces(segments, KEYS).filter(|piece| own.contains(&piece.range.start))
        {
            let (batch, head, query) = (self.batch, self.head, self.queries.start);
            let (rows, columns) = (self.queries.len(), range.len());
            let pairs = Pairs { batch, head, query, key: range.start, rows, columns };
            // SAFETY: as the caller vouches for the vectors; the keys are within the array.
            unsafe {
                if full {
                    self.panel::<V>(0..rows, range, None)?;
                    continue;
                }
                let Scratch { admitted, tile, .. } = &mut *self.scratch;
                self.regions.admit(pairs, admitted, KEYS, tile)?;
                let mask = Admitted { bytes: admitted, stride: KEYS };
                for (rows, columns) in mask.pieces(&pairs, K::GRAIN) {
                    let keys = pairs.key + columns.start..pairs.key + columns.end;
                    self.panel::<V>(rows, keys, Some(columns.start))?;
                }
            }
        }
        // SAFETY: the unit's rows are its own.
        unsafe { self.finish::<V>() };
        Ok(())
    }
}

impl<S: Dispatch, K: Source<S>> Unit<'_, S, K> {
    /// Takes in the pairs of some of the unit's queries with some keys, at most [`KEYS`]. Which of them the mask admits
    /// stands in the scratch from a column on, unless all are.
    #[inline(always)]
    unsafe fn panel<V: Vector<Scalar = S>>(
        &mut self,
        queries: Range<usize>,
        keys: Range<usize>,
        admitted_from: Option<usize>,
    ) -> Result<()> {
        let (first, rows) = (queries.start, queries.len());
        let place = key_place(&self.shape, self.batch, self.head);
        let Scratch { scores, stride, output, output_stride, maximum, sums, admitted, source, tile } =
            &mut *self.scratch;
        let (stride, output_stride) = (*stride, *output_stride);
        let (batch, head, query) = (self.batch, self.head, self.queries.start + first);
        let pairs = Pairs { batch, head, query, key: keys.start, rows, columns: keys.len() };
        let admitted = Admitted { bytes: admitted, stride: KEYS };
        let mask = admitted_from.map(|column| admitted.from(first, column));
        // The panel begins where a packed panel does: its first `skip` columns are not among the keys.
        let skip = self.source.skip(keys.start);
        let columns = skip + keys.len();
        // SAFETY: every extent is within its buffer; see `Scratch` and `Source`.
        unsafe {
            let scores = &mut scores[first * stride..];
            let target = Target { data: scores.as_mut_ptr(), row: stride, add: false };
            self.source.scores::<V>(&queries, (place, keys.clone()), target, source);
            if let Some(function) = &self.regions.function {
                let data = scores.as_mut_ptr().add(skip).cast();
                let scores = Panel { data, dtype: self.score_dtype, stride };
                let [b, h, q, k] = pairs.positions();
                let tile_of_pairs = Tile {
                    rows,
                    columns: keys.len(),
                    arguments: &[b, h, q, k, scores.argument()],
                    targets: &[scores.target()],
                    tables: &self.regions.tables,
                    live: mask.map(|mask| mask.live()),
                };
                function.run_ahead(Stage::Early, &tile_of_pairs, (0, KEYS as isize), tile)?;
            }
            for row in 0..rows {
                let scores = &mut scores[row * stride..][..columns.next_multiple_of(width::<V>())];
                scores[..skip].fill(S::NEG_INFINITY);
                scores[columns..].fill(S::NEG_INFINITY);
                if let Some(mask) = mask {
                    mask.overwrite(row, &mut scores[skip..columns], S::NEG_INFINITY);
                }
                let output = &mut output[(first + row) * output_stride..][..output_stride];
                let sums = &mut sums[(first + row) * V::LANES..][..V::LANES];
                let origin = relate::<V>(scores, &mut maximum[first + row], sums, output);
                self.source.weigh::<V>(scores, (first + row, stride), origin, sums, source);
            }
            let output = output[first * output_stride..].as_mut_ptr();
            let target = Target { data: output, row: output_stride, add: true };
            let weights = (scores.as_ptr(), stride);
            self.source.add_values::<V>(&queries, (place, keys), weights, target, mask, source);
        }
        Ok(())
    }

    /// Stores the unit's results, or hands them on to be merged.
    #[inline(always)]
    unsafe fn finish<V: Vector<Scalar = S>>(&mut self) {
        let Scratch { output, output_stride, maximum, sums, .. } = &mut *self.scratch;
        let size = self.shape.value_size;
        for (row, query) in self.queries.clone().enumerate() {
            let output = &mut output[row * *output_stride..][..size];
            // SAFETY: a vector of partial sums; rows within the arrays and the unit's own.
            unsafe {
                let sum = V::load(sums[row * V::LANES..].as_ptr()).sum();
                match self.found {
                    None => self.results.store([self.batch, self.head, query], maximum[row], sum, output),
                    Some(found) => {
                        let found = std::slice::from_raw_parts_mut(found.add(row * (2 + size)), 2 + size);
                        (found[0], found[1]) = (maximum[row], S::from_f64(sum));
                        found[2..].copy_from_slice(output);
                    }
                }
            }
        }
    }
}

/// What the weights of a row of scores are to be relative to: the greatest score so far. What was summed relative to a
/// lesser one is rescaled.
#[inline(always)]
unsafe fn relate<V: Vector>(
    scores: &[V::Scalar],
    maximum: &mut V::Scalar,
    sums: &mut [V::Scalar],
    output: &mut [V::Scalar],
) -> V::Scalar {
    // SAFETY: all lengths are multiples of the lanes.
    unsafe {
        let mut greatest = [V::splat(V::Scalar::NEG_INFINITY); 2];
        for (i, lanes) in scores.chunks_exact(V::LANES).enumerate() {
            greatest[i % 2] = V::load(lanes.as_ptr()).max(greatest[i % 2]);
        }
        let greatest = greatest[0].max(greatest[1]).greatest();
        if greatest == V::Scalar::INFINITY || *maximum == V::Scalar::INFINITY {
            // The sum is NaN from here on, whether or not a score is; so the maximum has to tell.
            let seen = *maximum != V::Scalar::INFINITY && V::load(sums.as_ptr()).sum().is_nan();
            if seen || scores.iter().any(|score| score.to_f64().is_nan()) {
                *maximum = V::Scalar::from_f64(f64::NAN);
            }
        }
        if greatest > *maximum {
            let factor = V::splat(*maximum).sub(V::splat(greatest)).exp();
            *maximum = greatest;
            V::load(sums.as_ptr()).mul(factor).store(sums.as_mut_ptr());
            for lanes in output.chunks_exact_mut(V::LANES) {
                V::load(lanes.as_ptr()).mul(factor).store(lanes.as_mut_ptr());
            }
        }
    }
    // Where every score is −∞ there is nothing to be relative to.
    if *maximum == V::Scalar::NEG_INFINITY { V::Scalar::default() } else { *maximum }
}
