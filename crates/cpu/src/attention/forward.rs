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

use super::keys::{self, Source};
use super::operands::{Operands, column, key_place, matrix, panel_width};
use super::pack::{Strided, read_rows};
use super::product::{Left, Target, product, width};
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
const KEYS: usize = 128;
/// Units that there should be, for threads to share.
const UNITS: usize = 16;
/// Keys that a split has at least.
const SPLIT: usize = 4 * KEYS;

/// Runs attention in the score type `S`.
pub(super) fn forward<S: Dispatch>(
    kernel: &AttentionForward,
    memory: &Memory,
    context: &Context,
) -> Result<()> {
    let operands = Operands::new(&kernel.attention, memory)?;
    let shape = operands.shape;
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
    let source = Source::<S>::new(&operands, context)?;
    let regions = Regions::forward(&kernel.attention, kernel.score.as_ref(), memory, context)?;
    let blocks = shape.queries.div_ceil(QUERIES);
    let units = shape.batch * shape.heads * blocks;
    let splits = UNITS.div_ceil(units.max(1)).clamp(1, (shape.keys / SPLIT).max(1));
    let split_keys = shape.keys.div_ceil(splits).next_multiple_of(KEYS);
    let found = Found::new(if splits == 1 { 0 } else { splits }, units, QUERIES, shape.value_size)?;
    context.parallel(units * splits, |i| {
        let (unit, split) = (i / splits, i % splits);
        let (head, block) = (unit / blocks, unit % blocks);
        let unit = Unit {
            operands: &operands,
            results: &results,
            source: &source,
            regions: &regions,
            score_dtype,
            batch: head / shape.heads,
            head: head % shape.heads,
            queries: block * QUERIES..((block + 1) * QUERIES).min(shape.queries),
            keys: split * split_keys..((split + 1) * split_keys).min(shape.keys),
            found: (splits > 1).then(|| found.at(split, unit)),
            scratch: Scratch::new(&shape, &source, panel_width::<S>(context.isa))?,
        };
        // SAFETY: the context's instruction set is the machine's; units write disjoint rows.
        unsafe { S::dispatch(context.isa, unit) }
    })?;
    if splits == 1 {
        return Ok(());
    }
    context.parallel(units, |unit| {
        let (head, block) = (unit / blocks, unit % blocks);
        let place = (head / shape.heads, head % shape.heads);
        for query in block * QUERIES..((block + 1) * QUERIES).min(shape.queries) {
            // SAFETY: the units are done, and only this task looks at this one's rows.
            unsafe {
                let (maximum, sum, mut output) = found.merged(unit, query - block * QUERIES);
                results.store([place.0, place.1, query], maximum, sum, &mut output);
            }
        }
        Ok(())
    })
}

struct Unit<'a, S: Scalar> {
    operands: &'a Operands,
    results: &'a Results,
    source: &'a Source<S>,
    regions: &'a Regions<'a>,
    score_dtype: DType,
    batch: usize,
    head: usize,
    queries: Range<usize>,
    /// The keys that it looks at.
    keys: Range<usize>,
    /// Where its rows go if it does not look at all keys.
    found: Option<*mut S>,
    scratch: Scratch<S>,
}

/// What a unit keeps in the caches.
struct Scratch<S: Scalar> {
    /// `[QUERIES × head_size]`, times the scale.
    query: Aligned<S>,
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
    source: keys::Scratch<S>,
    tile: tile::Scratch,
}

impl<S: Scalar> Scratch<S> {
    fn new(shape: &AttentionShape, source: &Source<S>, width: usize) -> Result<Scratch<S>> {
        let stride = KEYS + width;
        let output_stride = shape.value_size.next_multiple_of(width);
        Ok(Scratch {
            query: Aligned::new(QUERIES * shape.head_size)?,
            scores: Aligned::new(QUERIES * stride)?,
            stride,
            output: Aligned::new(QUERIES * output_stride)?,
            output_stride,
            maximum: [S::NEG_INFINITY; QUERIES],
            sums: Aligned::new(QUERIES * width)?,
            admitted: Aligned::new(QUERIES * KEYS)?,
            source: keys::Scratch::new(source, KEYS, width)?,
            tile: tile::Scratch::new(),
        })
    }
}

impl<S: Dispatch> Work<S> for Unit<'_, S> {
    type Output = Result<()>;

    #[inline(always)]
    unsafe fn run<V: Vector<Scalar = S>>(mut self) -> Result<()> {
        let shape = self.operands.shape;
        let rows = self.queries.len();
        let query = &mut self.scratch.query[..rows * shape.head_size];
        let place = (self.batch, self.head, self.queries.start);
        // SAFETY: the rows are within the array.
        unsafe { read_rows(&self.operands.query, place, self.operands.scale, shape.head_size, query) };
        let segments = keys_of(self.regions.blocks, (self.batch, self.head), &self.queries, shape.keys);
        let own = self.keys.clone();
        for Segment { range, full } in pieces(segments, KEYS).filter(|piece| own.contains(&piece.range.start))
        {
            // SAFETY: as the caller vouches for the vectors; the keys are within the array.
            unsafe { self.panel::<V>(range, full)? };
        }
        // SAFETY: the unit's rows are its own.
        unsafe { self.finish::<V>() };
        Ok(())
    }
}

impl<S: Dispatch> Unit<'_, S> {
    /// Takes in the pairs of the unit's queries with some keys, at most [`KEYS`]. The mask is evaluated
    /// unless they are all admitted.
    #[inline(always)]
    unsafe fn panel<V: Vector<Scalar = S>>(&mut self, keys: Range<usize>, full: bool) -> Result<()> {
        let shape = self.operands.shape;
        let rows = self.queries.len();
        let place = key_place(&shape, self.batch, self.head);
        let Scratch { query, scores, stride, output, output_stride, maximum, sums, admitted, source, tile } =
            &mut self.scratch;
        let (stride, output_stride) = (*stride, *output_stride);
        let (batch, head, first) = (self.batch, self.head, self.queries.start);
        let pairs = Pairs { batch, head, query: first, key: keys.start, rows, columns: keys.len() };
        if !full && !self.regions.admitted(pairs, admitted, KEYS, tile)? {
            return Ok(());
        }
        let mask = (!full).then_some(Admitted { bytes: admitted, stride: KEYS });
        // The panel begins where a packed panel does: its first `skip` columns are not among the keys.
        let skip = self.source.skip(keys.start, width::<V>());
        let columns = skip + keys.len();
        // SAFETY: every extent is within its buffer; see `Scratch` and `Source`.
        unsafe {
            let target = Target { data: scores.as_mut_ptr(), row: stride, add: false };
            self.source.scores::<V>((query, rows, shape.head_size), (place, keys.clone()), target, source);
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
                let scores = &mut scores[row * stride..][..columns.next_multiple_of(V::LANES)];
                scores[..skip].fill(S::NEG_INFINITY);
                scores[columns..].fill(S::NEG_INFINITY);
                if let Some(mask) = mask {
                    mask.overwrite(row, &mut scores[skip..columns], S::NEG_INFINITY);
                }
                let output = &mut output[row * output_stride..][..output_stride];
                let sums = &mut sums[row * V::LANES..][..V::LANES];
                weigh::<V>(scores, &mut maximum[row], sums, output);
            }
            let weights = Left { data: scores.as_ptr().add(skip), row: stride, column: 1 };
            let (values, finite) = self.source.values::<V>(place, keys.clone(), mask.is_some(), source);
            let target = Target { data: output.as_mut_ptr(), row: output_stride, add: true };
            match mask {
                Some(mask) if !finite => {
                    mask.product((rows, keys.len(), shape.value_size), weights, values, target, false)
                }
                _ => product::<V>((rows, keys.len(), output_stride / width::<V>()), weights, values, target),
            }
        }
        Ok(())
    }

    /// Stores the unit's results, or hands them on to be merged.
    #[inline(always)]
    unsafe fn finish<V: Vector<Scalar = S>>(&mut self) {
        let Scratch { output, output_stride, maximum, sums, .. } = &mut self.scratch;
        let size = self.operands.shape.value_size;
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

/// Turns a row of scores into weights relative to its greatest score so far, and rescales what was summed
/// relative to a lesser one.
#[inline(always)]
unsafe fn weigh<V: Vector>(
    scores: &mut [V::Scalar],
    maximum: &mut V::Scalar,
    sums: &mut [V::Scalar],
    output: &mut [V::Scalar],
) {
    let zero = V::Scalar::default();
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
        let mut sum = V::load(sums.as_ptr());
        if greatest > *maximum {
            let factor = V::splat(*maximum).sub(V::splat(greatest)).exp();
            *maximum = greatest;
            sum = sum.mul(factor);
            for lanes in output.chunks_exact_mut(V::LANES) {
                V::load(lanes.as_ptr()).mul(factor).store(lanes.as_mut_ptr());
            }
        }
        // Where every score is −∞ there is nothing to be relative to.
        let origin = V::splat(if *maximum == V::Scalar::NEG_INFINITY { zero } else { *maximum });
        for lanes in scores.chunks_exact_mut(V::LANES) {
            let weight = V::load(lanes.as_ptr()).sub(origin).exp();
            weight.store(lanes.as_mut_ptr());
            sum = sum.add(weight);
        }
        sum.store(sums.as_mut_ptr());
    }
}
