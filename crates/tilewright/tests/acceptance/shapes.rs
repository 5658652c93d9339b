//! Lengths, head sizes, grouping and layouts.

use tilewright::mods;
use tilewright::prelude::*;

use crate::attention::{Captured, Sizes, check_call, inputs, learned, with_gradients};
use crate::golden::{check_all, elements};

const SIZES: Sizes = Sizes {
    batch: 1,
    heads: 1,
    key_batch: 1,
    key_heads: 1,
    queries: 1,
    keys: 1,
    head_size: 8,
    value_size: 4,
};

/// Attention with a learned bias of relative positions, causal where `masked`.
fn check(dtype: DType, sizes: Sizes, masked: bool) {
    let captured = [learned([sizes.heads, sizes.queries + sizes.keys - 1])];
    check_call(dtype, &sizes, &captured, |q, k, v, c| {
        let attention = flex_attention(q, k, v).score(mods::relative(c[0]));
        if masked { attention.mask(mods::causal) } else { attention }
    });
}

fn lengths(pairs: &[(usize, usize)]) {
    for &(queries, keys) in pairs {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
            let sizes = Sizes { batch: 2, key_batch: 2, heads: 3, key_heads: 3, queries, keys, ..SIZES };
            check(dtype, sizes, queries >= keys);
        }
    }
}

#[test]
fn short_lengths() {
    lengths(&[(1, 1), (1, 17), (17, 1), (17, 17), (37, 17), (17, 37), (37, 37), (1, 129), (129, 1)]);
}

#[test]
fn lengths_about_a_block() {
    lengths(&[(127, 128), (129, 37), (37, 127), (128, 129)]);
}

#[test]
fn lengths_of_several_blocks() {
    for (queries, keys) in [(256, 37), (17, 277), (277, 256), (1025, 17), (1, 1025)] {
        check(DType::F32, Sizes { queries, keys, ..SIZES }, queries > keys);
    }
    check(DType::BF16, Sizes { queries: 129, keys: 277, ..SIZES }, false);
}

/// Too large for the interpreter: plain loops in `f64` over the definition.
#[test]
fn a_thousand_queries_and_keys() {
    const LENGTH: usize = 1025;
    let sizes = Sizes { queries: LENGTH, keys: LENGTH, head_size: 16, value_size: 8, ..SIZES };
    let captured = [learned([1, 2 * LENGTH - 1])];
    let f = compile(with_gradients(|q, k, v, c| {
        flex_attention(q, k, v).score(mods::relative(c[0])).mask(mods::causal)
    }));
    let inputs = inputs(DType::F32, &sizes, &captured, 3);
    let found = f.call(&inputs).unwrap();
    let ((q, k, v, captured), (output_cotangent, lse_cotangent)) = &inputs;
    let [q, k, v, bias] = [q, k, v, &captured[0]].map(elements);
    let [output_cotangent, lse_cotangent] = [output_cotangent, lse_cotangent].map(elements);
    let (d, e) = (sizes.head_size, sizes.value_size);
    let scale = 1.0 / (d as f64).sqrt();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let mut output = vec![0.0; LENGTH * e];
    let mut log_sum_exp = vec![0.0; LENGTH];
    let mut gradients = [vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()], vec![0.0; bias.len()]];
    for i in 0..LENGTH {
        let query = &q[i * d..][..d];
        let scores: Vec<f64> =
            (0..=i).map(|j| dot(query, &k[j * d..][..d]) * scale + bias[i + LENGTH - 1 - j]).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        log_sum_exp[i] = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
        let output = &mut output[i * e..][..e];
        let cotangent = &output_cotangent[i * e..][..e];
        let weights: Vec<f64> = scores.iter().map(|s| (s - log_sum_exp[i]).exp()).collect();
        for (j, p) in weights.iter().enumerate() {
            (0..e).for_each(|c| output[c] += p * v[j * e + c]);
        }
        let mean = dot(cotangent, output);
        for (j, p) in weights.iter().enumerate() {
            let slope = p * (dot(cotangent, &v[j * e..][..e]) - mean + lse_cotangent[i]);
            (0..d).for_each(|c| gradients[0][i * d + c] += slope * scale * k[j * d + c]);
            (0..d).for_each(|c| gradients[1][j * d + c] += slope * scale * query[c]);
            (0..e).for_each(|c| gradients[2][j * e + c] += p * cotangent[c]);
            gradients[3][i + LENGTH - 1 - j] += slope;
        }
    }
    let ((found_output, found_lse, _), (dq, dk, dv, captured)) = &found;
    let results = [found_output, found_lse, dq, dk, dv, &captured[0]];
    let expected = [&output, &log_sum_exp, &gradients[0], &gradients[1], &gradients[2], &gradients[3]];
    for (i, (found, expected)) in results.into_iter().zip(expected).enumerate() {
        let found = elements(found);
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut found.iter().zip(expected).map(|(x, y)| x - y));
        let size = norm(&mut expected.iter().copied());
        assert!(error <= 2e-6 * size, "result {i}: {error:e} of {size:e}");
    }
}

#[test]
fn head_sizes() {
    for (head_size, value_size) in [
        (1, 1),
        (8, 16),
        (16, 8),
        (24, 40),
        (32, 32),
        (64, 48),
        (80, 64),
        (96, 128),
        (128, 80),
        (192, 33),
        (256, 256),
    ] {
        for dtype in [DType::F32, DType::BF16] {
            check(dtype, Sizes { queries: 9, keys: 19, head_size, value_size, ..SIZES }, false);
        }
    }
    for dtype in [DType::F16, DType::F64] {
        check(dtype, Sizes { queries: 7, keys: 9, head_size: 256, value_size: 17, ..SIZES }, false);
    }
}

#[test]
fn grouped_heads() {
    for (heads, key_heads) in [(4, 1), (4, 2), (4, 4), (6, 3), (3, 1)] {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
            let sizes = Sizes { batch: 2, key_batch: 2, heads, key_heads, queries: 11, keys: 7, ..SIZES };
            check(dtype, sizes, true);
        }
    }
}

#[test]
fn one_key_batch_for_all() {
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
        check(dtype, Sizes { batch: 3, heads: 2, key_heads: 1, queries: 11, keys: 13, ..SIZES }, false);
    }
}

/// Query, key, value, captured array and cotangents that are transposed, cut out, flipped and repeated.
#[test]
fn strided_inputs() {
    let sizes = Sizes { batch: 2, heads: 2, key_batch: 2, key_heads: 2, queries: 12, keys: 10, ..SIZES };
    let captured = [Captured::Learned(vec![2, 21])];
    let f = compile(with_gradients(|q, k, v, c| {
        flex_attention(q, k, v).score(mods::relative(c[0])).mask(mods::causal)
    }));
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        // `b s h d` in memory, as projections leave it; flipped; every head the same; one of a wider array.
        let ((q, k, v, captured), (output, lse)) = inputs(dtype, &sizes, &captured, 4);
        let q = q.reshape([2, 12, 2, 8]).unwrap().permute(&[0, 2, 1, 3]).unwrap();
        let k = k.flip(2).unwrap().flip(3).unwrap();
        let v = v.slice(1, 1..2).unwrap().broadcast_to(sizes.value()).unwrap();
        let bias = captured[0].reshape([21, 2]).unwrap().transpose();
        let output = output.slice(2, 3..4).unwrap().broadcast_to(sizes.output()).unwrap();
        let lse = lse.flip(2).unwrap();
        let strided = ((q, k, v, vec![bias]), (output, lse));
        let found = f.call(&strided).unwrap();
        check_all(&format!("{dtype} strided"), &f.program(&strided).unwrap(), &strided, &found);
        let packed = tilewright::tree::map_leaves(&strided, |_, array: &Array| array.to_packed()).unwrap();
        let from_packed = f.call(&packed).unwrap();
        let bits = |x| {
            tilewright::tree::leaves::<Array, _>(x)
                .iter()
                .map(|(_, x)| x.to_bytes().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(bits(&found), bits(&from_packed), "{dtype}");
    }
}

/// A slice of a longer sequence, as a cache of keys and values is.
#[test]
fn keys_in_a_longer_array() {
    let sizes = Sizes { batch: 2, heads: 2, key_batch: 2, key_heads: 1, queries: 5, keys: 20, ..SIZES };
    let f = compile(with_gradients(|q, k, v, _| flex_attention(q, k, v)));
    let ((q, k, v, captured), cotangents) = inputs(DType::F32, &sizes, &[], 5);
    let cut = |x: Array| x.slice(2, 4..17).unwrap();
    let inputs = ((q, cut(k), cut(v), captured), cotangents);
    let found = f.call(&inputs).unwrap();
    check_all("cut", &f.program(&inputs).unwrap(), &inputs, &found);
}
