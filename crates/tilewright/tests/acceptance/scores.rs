//! The table of score functions, in every float type.

use tilewright::FlexAttention;
use tilewright::mods;
use tilewright::prelude::*;

use crate::attention::{Captured, Sizes, check_call, learned, table};

const BATCH: usize = 4;
const HEADS: usize = 2;
const QUERIES: usize = 13;
const KEYS: usize = 19;

fn check(captured: &[Captured], attend: impl Fn(&Tensor, &Tensor, &Tensor, &[Tensor]) -> FlexAttention) {
    let sizes = Sizes {
        batch: BATCH,
        heads: HEADS,
        key_batch: BATCH,
        key_heads: 1,
        queries: QUERIES,
        keys: KEYS,
        head_size: 8,
        value_size: 5,
    };
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        check_call(dtype, &sizes, captured, &attend);
    }
}

/// A score function of the score, its place and the captured arrays.
fn score(captured: &[Captured], f: impl Fn(Tensor, At, &[Tensor]) -> Tensor) {
    check(captured, |q, k, v, c| flex_attention(q, k, v).score(|s, at| f(s, at, c)));
}

#[test]
fn identity() {
    check(&[], |q, k, v, _| flex_attention(q, k, v));
    score(&[], |s, _, _| s);
}

#[test]
fn double() {
    score(&[], |s, _, _| s * 2.0);
}

#[test]
fn squared() {
    score(&[], |s, _, _| s.square());
}

#[test]
fn causal() {
    score(&[], |s, at, _| at.query.ge(at.key).select(s, f64::NEG_INFINITY));
}

#[test]
fn inverse_causal() {
    score(&[], |s, at, _| select(at.query.le(at.key), s, f64::NEG_INFINITY));
}

#[test]
fn relative() {
    score(&[], |s, at, _| s + (at.query - at.key).cast(s.dtype()));
}

#[test]
fn relative_causal() {
    score(&[], |s, at, _| {
        at.query.ge(at.key).select(s + (at.query - at.key).cast(s.dtype()), f64::NEG_INFINITY)
    });
}

#[test]
fn alibi() {
    check(&[], |q, k, v, _| flex_attention(q, k, v).score(mods::alibi));
}

#[test]
fn softcap() {
    check(&[], |q, k, v, _| flex_attention(q, k, v).score(mods::softcap(1.5)));
}

#[test]
fn trig() {
    score(&[], |s, at, _| s.cos().sin() + at.batch.cast(s.dtype()).tan());
}

#[test]
fn silu() {
    score(&[], |s, _, _| s * s.sigmoid());
}

#[test]
fn head_offset() {
    score(&[learned([HEADS])], |s, at, c| s * c[0].at([at.head]));
}

#[test]
fn relative_1d() {
    score(&[learned([2 * KEYS])], |s, at, c| s + c[0].at([(at.query - at.key).abs()]));
}

#[test]
fn relative_signed() {
    let last = KEYS as i64 - 1;
    score(&[learned([HEADS, QUERIES + KEYS - 1])], |s, at, c| {
        s + c[0].at([at.head, at.query - at.key + last])
    });
    check(&[learned([HEADS, QUERIES + KEYS - 1])], |q, k, v, c| {
        flex_attention(q, k, v).score(mods::relative(c[0]))
    });
}

#[test]
fn absolute_2d() {
    score(&[learned([QUERIES, KEYS])], |s, at, c| s + c[0].at([at.query, at.key]));
}

#[test]
fn flipped_2d() {
    score(&[learned([KEYS, QUERIES])], |s, at, c| s + c[0].at([at.key, at.query]));
}

#[test]
fn chained_2d() {
    score(&[learned([QUERIES, KEYS])], |s, at, c| s + c[0].at([at.query]).at([at.key]));
}

#[test]
fn head_bias() {
    score(&[learned([HEADS, QUERIES, KEYS])], |s, at, c| s + c[0].at([at.head, at.query, at.key]));
}

#[test]
fn batch_head_bias() {
    score(&[learned([BATCH, HEADS, QUERIES, KEYS])], |s, at, c| {
        s + c[0].at([at.batch, at.head, at.query, at.key])
    });
}

#[test]
fn pair_bias() {
    score(&[learned([BATCH / 2, HEADS, QUERIES, KEYS])], |s, at, c| {
        s + c[0].at([at.batch / 2, at.head, at.query, at.key])
    });
}

#[test]
fn multiplicative_query() {
    score(&[learned([QUERIES])], |s, at, c| s * c[0].at([at.query]));
}

#[test]
fn local_window_table() {
    score(&[learned([17])], |s, at, c| s + c[0].at([(at.query - at.key + 8).clamp(0, 16)]));
}

#[test]
fn bucketed() {
    score(&[learned([HEADS, 32]), table([QUERIES, KEYS], 32)], |s, at, c| {
        s + c[0].at([at.head, c[1].at([at.query, at.key])])
    });
}

#[test]
fn bucketed_by_logarithm() {
    for bidirectional in [false, true] {
        check(&[learned([HEADS, 8])], |q, k, v, c| {
            flex_attention(q, k, v).score(mods::bucketed(c[0], bidirectional, 16))
        });
    }
}

#[test]
fn global_tokens() {
    score(&[learned([KEYS])], |s, at, c| s + c[0].at([at.key]));
}

#[test]
fn indirect() {
    score(&[learned([QUERIES]), table([QUERIES], QUERIES)], |s, at, c| s + c[0].at([c[1].at([at.query])]));
}

#[test]
fn graph_distance() {
    score(&[learned([HEADS, 6]), table([BATCH, QUERIES, KEYS], 6)], |s, at, c| {
        s + c[0].at([at.head, c[1].at([at.batch, at.query, at.key])])
    });
}

#[test]
fn symmetric() {
    score(&[learned([KEYS])], |s, at, c| s + c[0].at([at.query]) + c[0].at([at.key]));
}

#[test]
fn sum_index() {
    score(&[learned([QUERIES + KEYS])], |s, at, c| s + c[0].at([at.query + at.key]));
}

#[test]
fn head_gate() {
    score(&[learned([HEADS])], |s, at, c| s * c[0].at([at.head]).sigmoid());
}

#[test]
fn distinct() {
    score(&[learned([QUERIES]), learned([KEYS])], |s, at, c| s + c[0].at([at.query]) + c[1].at([at.key]));
}

#[test]
fn scalar() {
    score(&[learned([])], |s, _, c| {
        let t = c[0].cast(s.dtype());
        s * t + t
    });
}

#[test]
fn zero_dim() {
    score(&[learned([1])], |s, _, c| s + c[0].at([0]));
}

#[test]
fn extra_axis() {
    score(&[learned([BATCH, HEADS, 4, QUERIES]), table([], 4)], |s, at, c| {
        s + c[0].at([at.batch, at.head, c[1], at.query])
    });
}

#[test]
fn computed_in_graph() {
    check(&[learned([BATCH, KEYS])], |q, k, v, c| {
        let pairs = c[0].unsqueeze(2) + c[0].unsqueeze(1);
        flex_attention(q, k, v).score(|s, at| s + pairs.at([at.batch, at.query, at.key]))
    });
}

#[test]
fn radial() {
    score(&[learned([BATCH, KEYS, 3]), learned([HEADS])], |s, at, c| {
        let dot = (c[0].at([at.batch, at.query]) * c[0].at([at.batch, at.key])).sum(-1);
        s + dot * c[1].at([at.head])
    });
}

#[test]
fn unused() {
    score(&[learned([QUERIES])], |s, at, c| {
        let _ = c[0].at([at.query]);
        s
    });
}

#[test]
fn composed() {
    check(&[learned([QUERIES + KEYS]), learned([HEADS])], |q, k, v, c| {
        flex_attention(q, k, v)
            .score(|s, at| s + c[0].at([at.query + at.key]))
            .score(mods::softcap(2.0))
            .score(|s, at| s * c[1].at([at.head]).sigmoid())
    });
}
