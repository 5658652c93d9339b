//! Attention with a score function and a mask, written as ordinary closures.

use std::panic::Location;

use tilewright_ir::{DType, Error, Op, Result, Type};

use crate::Tensor;
use crate::recording::{
    self, Frame, FrameKind, Open, PartialRead, describe, lifted, partial_read, poison, record_all,
};

/// Where a score stands, and the sizes of the call.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Batch index, a rank-0 `i32`.
    pub batch: Tensor,
    /// Query head, a rank-0 `i32`.
    pub head: Tensor,
    /// Position of the query, a rank-0 `i32`.
    pub query: Tensor,
    /// Position of the key, a rank-0 `i32`.
    pub key: Tensor,
    /// How many query heads there are.
    pub heads: usize,
    /// How many queries there are.
    pub queries: usize,
    /// How many keys there are.
    pub keys: usize,
}

/// A score function or mask being traced: it may be opened several times, once for each closure.
struct Draft {
    frame: Frame,
    leading: usize,
    at: At,
    result: Tensor,
}

/// Attention about to be recorded; [`FlexAttention::call`] records it.
#[must_use = "call() records the attention"]
pub struct FlexAttention {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: Option<f64>,
    score: Draft,
    mask: Option<Draft>,
}

/// Attention of `query [B, H, Q, D]` over `key [Bk, Hk, K, D]` and `value [Bk, Hk, K, V]`, three tensors of one
/// float type: B_k is B or 1, and H a multiple of H_k (grouped heads). [`FlexAttention::score`] and
/// [`FlexAttention::mask`] say what is done to each score, [`FlexAttention::call`] gives the output.
///
/// Memory is proportional to the inputs: no array of all scores is made, forward or backward.
pub fn flex_attention(query: &Tensor, key: &Tensor, value: &Tensor) -> FlexAttention {
    let (queries, keys) = (query.shape(), key.shape());
    let extent = |shape: &[usize], axis: usize| shape.get(axis).copied().unwrap_or(1);
    let sizes = [extent(&queries, 1), extent(&queries, 2), extent(&keys, 2)];
    let dtype = if query.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    FlexAttention {
        query: *query,
        key: *key,
        value: *value,
        scale: None,
        score: Draft::new(Some(dtype), sizes),
        mask: None,
    }
}

impl Draft {
    /// A region that receives a score, where its type is given, and the four indices.
    fn new(score: Option<DType>, [heads, queries, keys]: [usize; 3]) -> Draft {
        let mut frame = Frame::new(FrameKind::Pair);
        let score = score.map(|dtype| frame.parameter("score", Type::scalar(dtype)));
        let [batch, head, query, key] =
            ["batch", "head", "query", "key"].map(|name| frame.parameter(name, Type::scalar(DType::I32)));
        let at = At { batch, head, query, key, heads, queries, keys };
        let leading = 4 + score.is_some() as usize;
        Draft { frame, leading, at, result: score.unwrap_or(batch) }
    }

    /// Ends a closure that was traced into it, and gives it back; empty again outside of any recording.
    fn close(self, open: Open, result: Tensor) -> Draft {
        Draft { frame: open.close().unwrap_or(Frame::new(FrameKind::Pair)), result, ..self }
    }

    /// Takes the frame out to trace one more closure into it.
    fn open(&mut self) -> Open {
        Open::new(std::mem::replace(&mut self.frame, Frame::new(FrameKind::Pair)))
    }
}

/// A closure's result, converted to what the region must return; an error where it is not one number.
#[track_caller]
fn one_number(what: &str, result: Tensor, dtype: DType) -> Tensor {
    let ty = result.ty();
    if result.is_poisoned() || (ty.rank() == 0 && ty.dtype == dtype) {
        return result;
    }
    if ty.rank() == 0 && ty.dtype.is_float() && dtype.is_float() {
        return result.cast(dtype);
    }
    let guess = Type::scalar(dtype);
    if ty.rank() == 0 {
        let error = Error::dtype(format!("the {what}'s result"), dtype, ty.dtype);
        return poison(error.in_operation("flex_attention").note(describe(result)), guess);
    }
    let error = match partial_read(result) {
        Some(PartialRead { array, indices, origin }) => {
            let (rank, facts) = (array.rank(), describe(array));
            Error::shape("captured array", format!("{rank} indices, one for each axis,"), indices)
                .at(origin)
                .note(format!("{facts}, captured by flex_attention at {}", Location::caller()))
                .help("index every axis, or reshape it before the call")
        }
        None => Error::trace(format!("the {what} must return one number, returned {ty}"))
            .note(describe(result))
            .help("it is called for one pair of a query and a key; use `select` to choose between numbers"),
    };
    poison(error.in_operation("flex_attention"), guess)
}

impl FlexAttention {
    /// Changes each score: `|score, at| score + bias.at([at.head, at.query - at.key + n])`. The score is a
    /// rank-0 tensor, `f32` (`f64` for `f64` attention), already scaled. Tensors from outside are captured by
    /// using them. Several score functions apply one after the other.
    #[track_caller]
    pub fn score(mut self, f: impl FnOnce(Tensor, At) -> Tensor) -> FlexAttention {
        let dtype = if self.query.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let open = self.score.open();
        let result = f(self.score.result, self.score.at);
        let result = one_number("score function", result, dtype);
        self.score = self.score.close(open, result);
        self
    }

    /// Admits only the pairs for which `f` holds: `|at| at.query.ge(at.key)`. Several masks must all hold.
    #[track_caller]
    pub fn mask(mut self, f: impl FnOnce(At) -> Tensor) -> FlexAttention {
        let At { heads, queries, keys, .. } = self.score.at;
        let earlier = self.mask.as_ref().map(|mask| mask.result);
        let mut draft = self.mask.take().unwrap_or_else(|| Draft::new(None, [heads, queries, keys]));
        let open = draft.open();
        let admitted = one_number("mask", f(draft.at), DType::Bool);
        let admitted = match earlier {
            Some(earlier) => earlier & admitted,
            None => admitted,
        };
        self.mask = Some(draft.close(open, admitted));
        self
    }

    /// The factor of the dot products; 1/√D where not given.
    pub fn scale(mut self, scale: f64) -> FlexAttention {
        self.scale = Some(scale);
        self
    }

    /// The output `[B, H, Q, V]`.
    #[track_caller]
    pub fn call(self) -> Tensor {
        self.call_with_max().0
    }

    /// The output, and the log-sum-exp of each row's scores, `[B, H, Q]` of the score type: −∞ for a row that
    /// sees no key.
    #[track_caller]
    pub fn call_with_lse(self) -> (Tensor, Tensor) {
        let (output, log_sum_exp, _) = self.call_with_max();
        (output, log_sum_exp)
    }

    /// The output, the log-sum-exp and the maximum of each row's scores.
    #[track_caller]
    pub fn call_with_max(self) -> (Tensor, Tensor, Tensor) {
        let inputs = [self.query, self.key, self.value];
        match self.finish() {
            Ok(Some((op, captures))) => {
                let results = record_all(op, &[&inputs[..], &captures].concat(), 3);
                (results[0], results[1], results[2])
            }
            Ok(None) => {
                let output = recording::poisoned(inputs[0].ty());
                (output, output, output)
            }
            Err(error) => {
                let output = poison(error.in_operation("flex_attention"), inputs[0].ty());
                (output, output, output)
            }
        }
    }

    /// The operation and its captures; none where a region is poisoned.
    fn finish(self) -> Result<Option<(Op, Vec<Tensor>)>> {
        let FlexAttention { query, score, mask, scale, .. } = self;
        let mut captures: Vec<Tensor> = Vec::new();
        for draft in std::iter::once(&score).chain(&mask) {
            for (capture, _) in &draft.frame.captures {
                if !captures.iter().any(|earlier| earlier.same(*capture)) {
                    captures.push(*capture);
                }
            }
        }
        let mut region = |draft: Draft| {
            let open = Open::new(draft.frame);
            let values = lifted(&[draft.result])?;
            let (Some(frame), Some(values)) = (open.close(), values) else { return Ok(None) };
            frame.region(draft.leading, &captures, &values).map(Some)
        };
        let Some(score) = region(score)? else { return Ok(None) };
        let mask = match mask.map(&mut region).transpose()? {
            None => None,
            Some(None) => return Ok(None),
            Some(mask) => mask,
        };
        let head_size = query.shape().last().copied().unwrap_or(1);
        let scale = scale.unwrap_or(1.0 / (head_size as f64).sqrt());
        Ok(Some((Op::FlexAttention(Box::new(tilewright_ir::FlexAttention { scale, score, mask })), captures)))
    }
}
