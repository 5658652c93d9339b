//! What functions become in the text form, and attention against the definition.

mod common;

use common::{assert_close, build, evaluate, evaluate_all, integers, place, random};
use tilewright_ir::{DType, Type, verify};
use tilewright_trace::mods::{alibi, and, causal, document, not, padding, sliding_window, softcap};
use tilewright_trace::{At, Key, Tensor, flex_attention, trace};

fn text(types: &[(&str, DType, &[usize])], f: impl Fn(&[Tensor]) -> Tensor) -> String {
    let inputs: Vec<(String, Type)> =
        types.iter().map(|(name, dtype, shape)| (name.to_string(), Type::new(*dtype, *shape))).collect();
    let graph = trace(&inputs, f, |&output| vec![output]).unwrap().graph;
    verify(&graph).unwrap();
    graph.to_string()
}

const SMALL: &[(&str, DType, &[usize])] = &[
    ("q", DType::F32, &[1, 4, 8, 16]),
    ("k", DType::F32, &[1, 2, 8, 16]),
    ("bias", DType::F32, &[4, 15]),
    ("unused", DType::F32, &[3]),
];

#[test]
fn attention_captures_what_it_uses() {
    let text = text(SMALL, |x| {
        let last = x[1].dim(2) as i64 - 1;
        flex_attention(&x[0], &x[1], &x[1])
            .score(|s, at| s + x[2].at([at.head, at.query - at.key + last]))
            .mask(|at| at.query.ge(at.key))
            .call()
    });
    let expected = "\
graph(%0: f32[1, 4, 8, 16], %1: f32[1, 2, 8, 16], %2: f32[4, 15], %3: f32[3]) -> (%4) {
  %4: f32[1, 4, 8, 16], %5: f32[1, 4, 8], %6: f32[1, 4, 8] = flex_attention %0, %1, %1, %2 scale=0.25 \
score(%0: f32[], %1: i32[], %2: i32[], %3: i32[], %4: i32[], %5: f32[4, 15]) -> (%10) {
    %6: i32[] = sub %3, %4
    %7: i32[] = constant 7
    %8: i32[] = add %6, %7
    %9: f32[] = gather %5, %2, %8
    %10: f32[] = add %0, %9
  } mask(%0: i32[], %1: i32[], %2: i32[], %3: i32[], %4: f32[4, 15]) -> (%5) {
    %5: bool[] = ge %2, %3
  }
}";
    assert_eq!(text, expected);
}

/// One capture of one array, though score and mask read it several times; chained reads are one gather.
#[test]
fn captures_are_shared_and_chained_reads_are_one() {
    let text = text(&[("q", DType::F32, &[1, 1, 4, 8]), ("table", DType::F32, &[4, 4])], |x| {
        flex_attention(&x[0], &x[0], &x[0])
            .score(|s, at| s + x[1].at([at.query]).at([at.key]) + x[1].at([at.key, at.query]))
            .mask(|at| x[1].at([at.query, at.key]).gt(0.0))
            .call()
    });
    assert!(text.contains("flex_attention %0, %0, %0, %1 scale"), "{text}");
    assert_eq!(text.matches("gather %5, %3, %4").count(), 1, "{text}");
    assert_eq!(text.matches("gather").count(), 3, "{text}");
}

/// Attention by its definition, over `admits`, with scores changed by `score(s, b, h, q, k)`.
fn dense(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    [batch, heads, queries, keys, size]: [usize; 5],
    score: impl Fn(f64, usize, usize, usize, usize) -> f64,
    admits: impl Fn(usize, usize, usize, usize) -> bool,
) -> Vec<f64> {
    let (of_query, of_key) = ([batch, heads, queries, size], [batch, heads, keys, size]);
    build(&of_query, |i| {
        let (mut total, mut sum) = (0.0, 0.0);
        for key in (0..keys).filter(|&key| admits(i[0], i[1], i[2], key)) {
            let product = (0..size).map(|d| {
                q[place(&of_query, &[i[0], i[1], i[2], d])] * k[place(&of_key, &[i[0], i[1], key, d])]
            });
            let s = score(product.sum::<f64>() / (size as f64).sqrt(), i[0], i[1], i[2], key);
            total += s.exp();
            sum += s.exp() * v[place(&of_key, &[i[0], i[1], key, i[3]])];
        }
        if total == 0.0 { 0.0 } else { sum / total }
    })
}

#[test]
fn modifications_compose() {
    let sizes @ [b, h, q, k, d] = [2, 2, 5, 5, 3];
    let inputs = [
        random("q", &[b, h, q, d], 1),
        random("k", &[b, h, k, d], 2),
        random("v", &[b, h, k, d], 3),
        integers("documents", &[b, q], &[0, 0, 1, 1, 1, 5, 5, 5, 5, 7]),
        integers("lengths", &[b], &[3, 5]),
    ];
    let (documents, lengths) = (inputs[3].2.clone(), [3, 5]);
    let (_, found) = evaluate(&inputs, |t| {
        flex_attention(&t[0], &t[1], &t[2])
            .score(alibi)
            .score(softcap(1.5))
            .mask(and(document(t[3]), not(sliding_window(0))))
            .mask(padding(t[4]))
            .call()
    });
    let slope = |h: usize| 2f64.powf(-8.0 * (h + 1) as f64 / 2.0);
    let expected = dense(
        &inputs[0].2,
        &inputs[1].2,
        &inputs[2].2,
        sizes,
        |s, _, h, q, k| 1.5 * ((s + (k as f64 - q as f64) * slope(h)) / 1.5).tanh(),
        |b, _, q, k| documents[b * 5 + q] == documents[b * 5 + k] && q != k && k < lengths[b],
    );
    assert_close(&found, &expected);
}

/// A row that is read for each pair, a value computed in the function, and rank-0 captures.
#[test]
fn rows_and_computed_values_are_captured() {
    let sizes @ [b, h, q, k, d] = [2, 2, 4, 4, 3];
    let inputs = [
        random("q", &[b, h, q, d], 4),
        random("k", &[b, h, k, d], 5),
        random("v", &[b, h, k, d], 6),
        random("c", &[b, q, 3], 7),
        random("w", &[h], 8),
        random("t", &[], 9),
    ];
    let (_, found) = evaluate(&inputs, |x| {
        let doubled = x[3] * 2.0;
        flex_attention(&x[0], &x[1], &x[2])
            .score(|s, at: At| {
                let rows = doubled.at([at.batch, at.query]).dot(x[3].at([at.batch, at.key]));
                s + rows * x[4].at([at.head]) * x[5]
            })
            .call()
    });
    let c = |b: usize, i: usize, j: usize| inputs[3].2[(b * 4 + i) * 3 + j];
    let radial = |b, q, k| (0..3).map(|j| 2.0 * c(b, q, j) * c(b, k, j)).sum::<f64>();
    let expected = dense(
        &inputs[0].2,
        &inputs[1].2,
        &inputs[2].2,
        sizes,
        |s, b, h, q, k| s + radial(b, q, k) * inputs[4].2[h] * inputs[5].2[0],
        |_, _, _, _| true,
    );
    assert_close(&found, &expected);
}

/// The buckets of T5 up to distance 16: of 8 one-sided ones, 4 exact and then two an octave; of 4 for each side, 2
/// exact and then 2 for three octaves.
#[test]
fn buckets_are_exact_then_logarithmic() {
    let inputs = [random("q", &[1, 1, 20, 1], 1)];
    let biases = |bidirectional: bool| {
        // With zero scores and one key, the log-sum-exp of each query is its bucket's bias: the bucket's number.
        let found = evaluate_all(&inputs, |t| {
            let zero = t[0] * 0.0;
            let table = tilewright_trace::arange(8, DType::F64).unsqueeze(0);
            let (_, lse) = flex_attention(&zero, &zero.slice(2, ..1), &zero.slice(2, ..1))
                .score(tilewright_trace::mods::bucketed(table, bidirectional, 16))
                .call_with_lse();
            vec![lse]
        });
        found[0].1.clone()
    };
    let expected = [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7].map(|x| x as f64);
    assert_close(&biases(false), &expected);
    let expected = [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3].map(|x| x as f64);
    assert_close(&biases(true), &expected);
}

#[test]
fn log_sum_exp_and_maximum_come_out() {
    let inputs = [random("q", &[1, 1, 3, 2], 1), random("k", &[1, 1, 4, 2], 2)];
    let found = evaluate_all(&inputs, |t| {
        let (output, lse, maximum) =
            flex_attention(&t[0], &t[1], &t[1]).scale(1.0).mask(causal).call_with_max();
        vec![output, lse, maximum]
    });
    let score =
        |q: usize, k: usize| (0..2).map(|d| inputs[0].2[2 * q + d] * inputs[1].2[2 * k + d]).sum::<f64>();
    assert_close(&found[1].1, &build(&[3], |q| (0..=q[0]).map(|k| score(q[0], k).exp()).sum::<f64>().ln()));
    assert_close(&found[2].1, &build(&[3], |q| (0..=q[0]).map(|k| score(q[0], k)).fold(f64::MIN, f64::max)));
}

#[test]
fn random_numbers_are_uniform_normal_and_repeatable() {
    let draws = |seed: i64| {
        evaluate_all(&[], move |_| {
            let [a, b] = Key::new(seed).split();
            let uniform = a.uniform([2000], DType::F64);
            vec![uniform, b.normal([2000], DType::F32), a.uniform([2000], DType::BF16), b.fold_in(3).tensor()]
        })
    };
    let first = draws(1);
    assert_eq!(first, draws(1));
    assert_ne!(first[0].1, draws(2)[0].1);
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let variance = |x: &[f64]| x.iter().map(|y| (y - mean(x)).powi(2)).sum::<f64>() / x.len() as f64;
    for uniform in [&first[0].1, &first[2].1] {
        assert!(uniform.iter().all(|x| (0.0..1.0).contains(x)));
        assert!((mean(uniform) - 0.5).abs() < 0.02 && (variance(uniform) - 1.0 / 12.0).abs() < 0.005);
    }
    assert!(mean(&first[1].1).abs() < 0.06 && (variance(&first[1].1) - 1.0).abs() < 0.08);
    let (_, dropped) =
        evaluate(&[], |_| tilewright_trace::ones([4000], DType::F32).dropout(0.25, &Key::new(5)));
    assert!(dropped.iter().all(|&x| x == 0.0 || (x - 4.0 / 3.0).abs() < 1e-9));
    assert!((mean(&dropped) - 1.0).abs() < 0.04);
}
