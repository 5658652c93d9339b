//! Known score functions and masks, to use as they are or to compose:
//! `flex_attention(&q, &k, &v).score(alibi).score(softcap(20.0)).mask(and(causal, not(padding(lengths))))`.
//!
//! A score function takes a score and its place ([`At`]) and gives a score. A mask takes a place and gives
//! a `bool`: whether the query may see the key.

use tilewright_ir::DType;

use crate::{At, Tensor};

/// Attention with linear biases: a penalty proportional to the distance, with a slope per head that falls
/// geometrically, `score + (key − query) · 2^(−8 (head + 1) / heads)` (Press et al. 2021).
#[track_caller]
pub fn alibi(score: Tensor, at: At) -> Tensor {
    let dtype = score.dtype();
    let exponent = (at.head + 1).cast(dtype) * (-8.0 * std::f64::consts::LN_2 / at.heads as f64);
    score + (at.key - at.query).cast(dtype) * exponent.exp()
}

/// Scores pressed smoothly into (−`cap`, `cap`): `cap · tanh(score / cap)`.
pub fn softcap(cap: f64) -> impl Fn(Tensor, At) -> Tensor + Copy {
    move |score: Tensor, _: At| cap * (score / cap).tanh()
}

/// A learned bias for each head and relative position: `score + bias[head, query − key + keys − 1]`, for a bias
/// `[heads, queries + keys − 1]`.
pub fn relative(bias: Tensor) -> impl Fn(Tensor, At) -> Tensor + Copy {
    move |score: Tensor, at: At| score + bias.at([at.head, at.query - at.key + (at.keys as i64 - 1)])
}

/// A learned bias `[heads, buckets]` for each head and bucket of relative positions, as T5 has it (Raffel et
/// al. 2020): exact distances for the near half of the buckets, logarithmically wider ones up to `furthest`
/// for the rest. Where `bidirectional`, half of the buckets are for keys after the query; else these
/// count as distance 0.
pub fn bucketed(bias: Tensor, bidirectional: bool, furthest: usize) -> impl Fn(Tensor, At) -> Tensor + Copy {
    move |score: Tensor, at: At| score + bias.at([at.head, bucket(at, bias.dim(-1), bidirectional, furthest)])
}

/// The bucket of [`bucketed`] that a pair falls in, `i32`.
fn bucket(at: At, buckets: usize, bidirectional: bool, furthest: usize) -> Tensor {
    let sided = if bidirectional { buckets / 2 } else { buckets };
    let (distance, base) = if bidirectional {
        ((at.query - at.key).abs(), at.key.gt(at.query).select(sided, 0i64).cast(DType::I32))
    } else {
        ((at.query - at.key).maximum(0i64), at.key.zeros_like())
    };
    let exact = sided / 2;
    let span = (furthest as f64 / exact.max(1) as f64).log2();
    let octaves =
        (distance.maximum(1i64).cast(DType::F32) / exact.max(1) as f64).log() / std::f64::consts::LN_2;
    // Nudged, so that a distance on the edge of a bucket counts as beyond it although logarithms are rounded.
    let far = (octaves * ((sided - exact) as f64 / span) + 1e-5).cast(DType::I32) + exact as i64;
    base + distance.lt(exact).select(distance, far.minimum(sided.saturating_sub(1)))
}

/// Keys not after the query.
#[track_caller]
pub fn causal(at: At) -> Tensor {
    at.query.ge(at.key)
}

/// Keys not after the query, and at most `window` before it.
pub fn sliding_window(window: usize) -> impl Fn(At) -> Tensor + Copy {
    move |at: At| at.query.ge(at.key) & (at.query - at.key).le(window)
}

/// Keys of the prefix, whose length per batch element is in `lengths [batch]`, and keys not after the query.
pub fn prefix(lengths: Tensor) -> impl Fn(At) -> Tensor + Copy {
    move |at: At| at.key.cast(lengths.dtype()).lt(lengths.at([at.batch])) | at.query.ge(at.key)
}

/// Keys of the query's own document: `documents [batch, length]` numbers each position's document.
pub fn document(documents: Tensor) -> impl Fn(At) -> Tensor + Copy {
    move |at: At| documents.at([at.batch, at.query]).eq(documents.at([at.batch, at.key]))
}

/// Keys within the batch element's own length, which is in `lengths [batch]`.
pub fn padding(lengths: Tensor) -> impl Fn(At) -> Tensor + Copy {
    move |at: At| at.key.cast(lengths.dtype()).lt(lengths.at([at.batch]))
}

/// For positions that are the pixels of pictures `width` wide, row by row: keys within a square of
/// 2·`radius` + 1 around the query.
pub fn neighbourhood(width: usize, radius: usize) -> impl Fn(At) -> Tensor + Copy {
    move |at: At| {
        let width = width as i64;
        let rows = (at.query / width - at.key / width).abs();
        let columns = (at.query % width - at.key % width).abs();
        rows.le(radius) & columns.le(radius)
    }
}

/// Keys at a distance that is a multiple of `step`.
pub fn dilated(step: usize) -> impl Fn(At) -> Tensor + Copy {
    move |at: At| ((at.query - at.key) % step as i64).eq(0)
}

/// A mask that was made ahead, block by block: `live` holds whether the pairs of a block of `query_block` × `key_block`
/// positions are admitted, as `bool` or as an integer that is not 0. It is `[query blocks, key blocks]`, or has
/// heads, or batch and heads, in front, of extent 1 where all share them. The blocks may have any size; the last ones
/// reach beyond the end. The pairs of blocks that are not live cost nothing; [`and`] with a mask of pairs cuts blocks
/// through.
///
/// ```
/// use tilewright::mods;
/// use tilewright::prelude::*;
///
/// let f = compile(|(x, live): (Tensor, Tensor)| {
///     flex_attention(&x, &x, &x).mask(mods::and(mods::blocks(live, [128, 64]), mods::causal)).call()
/// });
/// let x = Array::zeros(DType::F32, [1, 2, 256, 16])?;
/// let live = Array::new([2, 4], &[true, true, false, false, true, false, false, true])?;
/// assert_eq!(f.call((&x, &live))?.shape(), [1, 2, 256, 16]);
/// # Ok::<(), Error>(())
/// ```
pub fn blocks(live: Tensor, [query_block, key_block]: [usize; 2]) -> impl Fn(At) -> Tensor + Copy {
    move |at: At| {
        let shared = |axis: usize, position: Tensor| {
            if live.dim(axis as isize) == 1 { position.zeros_like() } else { position }
        };
        let rank = live.rank();
        let mut index = Vec::with_capacity(rank);
        if rank > 3 {
            index.push(shared(rank - 4, at.batch));
        }
        if rank > 2 {
            index.push(shared(rank - 3, at.head));
        }
        index.extend([at.query / query_block as i64, at.key / key_block as i64]);
        let live = live.at(index);
        if live.dtype() == DType::Bool { live } else { live.ne(0) }
    }
}

/// Pairs that both masks admit.
pub fn and(a: impl Fn(At) -> Tensor, b: impl Fn(At) -> Tensor) -> impl Fn(At) -> Tensor {
    move |at: At| a(at) & b(at)
}

/// Pairs that either mask admits.
pub fn or(a: impl Fn(At) -> Tensor, b: impl Fn(At) -> Tensor) -> impl Fn(At) -> Tensor {
    move |at: At| a(at) | b(at)
}

/// Pairs that the mask does not admit.
pub fn not(a: impl Fn(At) -> Tensor) -> impl Fn(At) -> Tensor {
    move |at: At| !a(at)
}
