//! Attention kernels and block maps.
//!
//! The programs have fixed inputs. A mask program: `0 b, 1 h, 2 q, 3 k` (`I32`). A score program: `0 b,
//! 1 h, 2 q, 3 k, 4 score` (`F32`, or `F64` for `f64` attention). A joint program: those and `5 cotangent`.

use tilewright_ir::{DType, Origin};

use crate::{Program, Table, View};

/// The sizes of an attention call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    /// Batch of the queries.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Batch of keys and values: `batch` or 1.
    pub key_batch: usize,
    /// Key heads, a divisor of `heads`; query head h reads key head h / (heads / key_heads).
    pub key_heads: usize,
    /// Query length.
    pub queries: usize,
    /// Key length.
    pub keys: usize,
    /// Size of a query or key vector.
    pub head_size: usize,
    /// Size of a value vector.
    pub value_size: usize,
}

/// What forward and backward have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Sizes.
    pub shape: AttentionShape,
    /// Element type of query, key, value, output and their cotangents. The score type is `f64` for `f64`,
    /// else `f32`; log-sum-exp, maximum and the unrounded output have it.
    pub dtype: DType,
    /// Factor of the dot products.
    pub scale: f64,
    /// `[batch, heads, queries, head_size]`.
    pub query: View,
    /// `[key_batch, key_heads, keys, head_size]`.
    pub key: View,
    /// `[key_batch, key_heads, keys, value_size]`.
    pub value: View,
    /// Result: a `Bool`. Absent where every pair is admitted.
    pub mask: Option<Program>,
    /// The captured arrays that mask and score read.
    pub tables: Vec<Table>,
    /// The block map of the mask, an index below [`crate::Plan::block_maps`]; present with `mask`.
    pub block_map: Option<usize>,
    /// The user's line.
    pub origin: Option<Origin>,
}

/// Attention. See `tilewright_ir::FlexAttention` for the meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionForward {
    /// Sizes, inputs, mask.
    pub attention: Attention,
    /// Result: the score. Absent where it is the identity.
    pub score: Option<Program>,
    /// `[batch, heads, queries, value_size]`.
    pub output: View,
    /// The output in the score type, where wanted.
    pub unrounded: Option<View>,
    /// `[batch, heads, queries]`, where wanted.
    pub log_sum_exp: Option<View>,
    /// `[batch, heads, queries]`, where wanted.
    pub maximum: Option<View>,
}

/// Gradient of attention. See `tilewright_ir::FlexAttentionBackward` for the meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionBackward {
    /// Sizes, inputs, mask.
    pub attention: Attention,
    /// Results: score', d_score, then the value of each *term* (see [`CaptureReduction`]). The first does
    /// not depend on the cotangent. Absent where the score function is the identity.
    pub joint: Option<Program>,
    /// `[batch, heads, queries, value_size]`, in the score type.
    pub output: View,
    /// `[batch, heads, queries]`.
    pub log_sum_exp: View,
    /// `[batch, heads, queries, value_size]`.
    pub output_cotangent: View,
    /// `[batch, heads, queries]`, where it is not zero.
    pub log_sum_exp_cotangent: Option<View>,
    /// As `query`; absent where not wanted.
    pub query_cotangent: Option<View>,
    /// As `key`; absent where not wanted.
    pub key_cotangent: Option<View>,
    /// As `value`; absent where not wanted.
    pub value_cotangent: Option<View>,
    /// Cotangents of captured arrays.
    pub captures: Vec<CaptureCotangent>,
    /// The reductions that feed `captures`: each term's values summed by a key.
    pub reductions: Vec<CaptureReduction>,
    /// Terms that need no reduction, because their sums are proved to be zero. For people.
    pub zero_terms: Vec<ZeroTerm>,
}

/// A term whose sums are all zero, and so is not computed.
#[derive(Clone, Debug, PartialEq)]
pub struct ZeroTerm {
    /// Which of [`AttentionBackward::captures`] it would go to.
    pub capture: usize,
    /// Why it is zero: a line for people.
    pub reason: String,
    /// The user's line that reads the capture.
    pub origin: Option<Origin>,
}

/// The cotangent of one captured array: zeros, plus what the reductions that name it hold, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptureCotangent {
    /// Where it goes, packed, one stride an axis.
    pub view: View,
    /// Its element type; sums are kept in the score type.
    pub dtype: DType,
    /// Extent of each axis.
    pub shape: Vec<usize>,
}

/// One term: a value for each admitted pair, summed over all pairs with equal *key*, and the sums then
/// added to a cotangent at indices that are a function of the key.
///
/// The key is the smallest function of (b, h, q, k) that determines the indices, so that the sums over it
/// need no scatter; only the (much fewer) keys are scattered, in ascending order.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptureReduction {
    /// The key.
    pub key: ReductionKey,
    /// Which result of the joint program is summed.
    pub result: usize,
    /// Which of [`AttentionBackward::captures`] receives the sums.
    pub capture: usize,
    /// Inputs `0 b, 1 h, 2 q, 3 k` (`I32`), for [`ReductionKey::Bucket`] and [`ReductionKey::Any`] also
    /// `4 score`; results the index of each axis of the capture, negative ones counting from its end.
    /// Evaluated at any one pair of the key.
    pub indices: Program,
    /// Why this key: a line for people.
    pub reason: String,
    /// The user's line that reads the capture.
    pub origin: Option<Origin>,
}

/// What the indices of a captured read depend on, within one batch element and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReductionKey {
    /// Nothing but b and h: one sum.
    Head,
    /// q: row sums.
    Query,
    /// k: column sums.
    Key,
    /// q − k: sums along diagonals.
    Difference,
    /// q + k: sums along counter-diagonals.
    Sum,
    /// A number in `0..size` that the indices program gives as its only result (row-major, none negative),
    /// not known to be simpler: a small table, indexed by anything; the capture is seen as flat. One
    /// histogram.
    Bucket {
        /// Elements of the capture.
        size: usize,
    },
    /// q and k, and different pairs of one (b, h) are known to have different indices: each element has one
    /// owner within a (b, h).
    Pair,
    /// Anything: sorted by the flat index of the capture.
    Any,
}

/// The blocks that a mask leaves. Block (i, j) covers queries `i·query_block ..` and keys `j·key_block ..`;
/// it is *full* where the mask admits each of its pairs, *empty* where it admits none, else *partial*.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockMap {
    /// Which block map it makes.
    pub slot: usize,
    /// Batch extent: 1 where the mask does not depend on b.
    pub batch: usize,
    /// Head extent: 1 where the mask does not depend on h.
    pub heads: usize,
    /// Query length.
    pub queries: usize,
    /// Key length.
    pub keys: usize,
    /// Queries per block.
    pub query_block: usize,
    /// Keys per block.
    pub key_block: usize,
    /// The mask.
    pub mask: Program,
    /// The arrays that the mask reads.
    pub tables: Vec<Table>,
}
