//! Attention against closed forms and a softmax written out, with the corner cases of the definition.

use tilewright_interp::{Array, Precision, run};
use tilewright_ir::{DType, ErrorKind, Graph, Type, parse};

/// Attention of four operands, of `f64`, with a score that adds `bias[q, k]`, and the given mask.
fn program(queries: usize, keys: usize, mask: &str) -> Graph {
    let text = format!(
        "graph(%q: f64[1, 2, {queries}, 3], %k: f64[1, 1, {keys}, 3], %v: f64[1, 1, {keys}, 2], %bias: f64[4, 4])
           -> (%out, %lse, %top) {{
           %out, %lse, %top = flex_attention %q, %k, %v, %bias scale=0.5
             score(%s: f64[], %b: i32[], %h: i32[], %q: i32[], %k: i32[], %bias: f64[4, 4]) -> (%sum) {{
               %read = gather %bias, %q, %k
               %sum = add %s, %read
             }}
             mask(%b: i32[], %h: i32[], %q: i32[], %k: i32[], %bias: f64[4, 4]) -> (%admit) {{
               {mask}
             }}
         }}"
    );
    parse(&text).unwrap_or_else(|error| panic!("{error}"))
}

const CAUSAL: &str = "%admit = ge %q, %k";

fn numbers(shape: &[usize], seed: u64) -> Array {
    let count = shape.iter().product::<usize>() as u64;
    let elements: Vec<f64> = (0..count).map(|i| ((i * 7 + seed * 13) as f64 * 0.7).sin()).collect();
    Array::from_f64s(Type::new(DType::F64, shape), &elements)
}

fn inputs(queries: usize, keys: usize) -> Vec<Array> {
    vec![
        numbers(&[1, 2, queries, 3], 1),
        numbers(&[1, 1, keys, 3], 2),
        numbers(&[1, 1, keys, 2], 3),
        numbers(&[4, 4], 4),
    ]
}

fn close(x: f64, y: f64) -> bool {
    (x - y).abs() < 1e-14
}

#[test]
fn equals_a_softmax_written_out() {
    let inputs = inputs(4, 3);
    let results = run(&program(4, 3, CAUSAL), &inputs, Precision::Exact).unwrap();
    let [query, key, value, bias] = [0, 1, 2, 3].map(|i| inputs[i].to_f64s());
    let (output, lse, top) = (results[0].to_f64s(), results[1].to_f64s(), results[2].to_f64s());
    for row in 0..8 {
        let q = row % 4;
        let score = |k: usize| {
            let product: f64 = (0..3).map(|d| query[row * 3 + d] * key[k * 3 + d]).sum();
            0.5 * product + bias[q * 4 + k]
        };
        let admitted = 0..(q + 1).min(3);
        let weights: Vec<f64> = admitted.clone().map(|k| score(k).exp()).collect();
        let sum: f64 = weights.iter().sum();
        assert!(close(lse[row], sum.ln()));
        assert!(close(top[row], admitted.map(score).fold(f64::NEG_INFINITY, f64::max)));
        for d in 0..2 {
            let expected: f64 = weights.iter().enumerate().map(|(k, w)| w / sum * value[k * 2 + d]).sum();
            assert!(close(output[row * 2 + d], expected), "row {row}");
        }
    }
}

#[test]
fn masked_pairs_read_nothing_and_add_nothing() {
    // Key 3 is masked out for every query but would be NaN; keys from 4 on have no bias to read.
    let mut inputs = inputs(4, 6);
    let expected = run(&program(4, 6, CAUSAL), &inputs, Precision::Exact).unwrap();
    for i in [1, 2] {
        let mut elements = inputs[i].to_f64s();
        let size = inputs[i].ty().shape[3];
        elements[4 * size..].fill(f64::NAN);
        inputs[i] = Array::from_f64s(inputs[i].ty().clone(), &elements);
    }
    let results = run(&program(4, 6, CAUSAL), &inputs, Precision::Exact).unwrap();
    assert_eq!(results, expected);
    assert!(results[0].to_f64s().iter().all(|x| x.is_finite()));
}

#[test]
fn a_live_pair_that_reads_outside_is_an_index_error() {
    let error = run(&program(4, 6, "%admit = le %q, %k"), &inputs(4, 6), Precision::Exact).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Index { axis: 1, index: 4, size: 4, .. }), "{error}");
}

#[test]
fn rows_without_keys_are_empty() {
    for (keys, mask) in [(4, "%admit: bool[] = constant false"), (0, CAUSAL)] {
        let results = run(&program(3, keys, mask), &inputs(3, keys), Precision::Exact).unwrap();
        assert!(results[0].to_f64s().iter().all(|&x| x == 0.0));
        assert!(results[1].to_f64s().iter().all(|&x| x == f64::NEG_INFINITY));
        assert!(results[2].to_f64s().iter().all(|&x| x == f64::NEG_INFINITY));
    }
    let results = run(&program(0, 4, CAUSAL), &inputs(0, 4), Precision::Exact).unwrap();
    assert_eq!(results[0].to_f64s().len(), 0);
}

#[test]
fn a_constant_read_outside_matters_only_to_live_pairs() {
    let read = "%last: i32[] = constant 9 %row = gather %bias, %last, %last %admit = ge %q, %k";
    let text = |admit: &str| {
        format!(
            "graph(%x: f64[1, 1, 2, 1], %bias: f64[4, 4]) -> (%out) {{
               %out, %lse, %top = flex_attention %x, %x, %x, %bias scale=1.0
                 score(%s: f64[], %b: i32[], %h: i32[], %q: i32[], %k: i32[], %bias: f64[4, 4]) -> (%row) {{ {read} }}
                 mask(%b: i32[], %h: i32[], %q: i32[], %k: i32[], %bias: f64[4, 4]) -> (%admit) {{
                   %admit: bool[] = constant {admit}
                 }}
             }}"
        )
    };
    let inputs = [numbers(&[1, 1, 2, 1], 5), numbers(&[4, 4], 6)];
    let masked_out = run(&parse(&text("false")).unwrap(), &inputs, Precision::Exact).unwrap();
    assert_eq!(masked_out[0].to_f64s(), [0.0, 0.0]);
    let error = run(&parse(&text("true")).unwrap(), &inputs, Precision::Exact).unwrap_err();
    assert_eq!(error.code(), "index");
}

#[test]
fn bf16_rounds_before_each_product() {
    let text = "graph(%q: bf16[1, 1, 2, 3], %k: bf16[1, 1, 5, 3], %v: bf16[1, 1, 5, 2]) -> (%out, %lse) {
      %out, %lse, %top, %unrounded = flex_attention %q, %k, %v scale=0.3
        score(%s: f32[], %b: i32[], %h: i32[], %q: i32[], %k: i32[]) -> (%s) {}
    }";
    let narrow =
        |array: Array| Array::from_f64s(Type::new(DType::BF16, array.ty().shape.clone()), &array.to_f64s());
    let inputs = [([1, 1, 2, 3], 1), ([1, 1, 5, 3], 2), ([1, 1, 5, 2], 3)]
        .map(|(shape, seed)| narrow(numbers(&shape, seed)));
    let results = run(&parse(text).unwrap(), &inputs, Precision::Typed).unwrap();
    let [query, key, value] = inputs.each_ref().map(|input| input.to_f64s());
    let bf16 = |x: f32| Array::from_f64s(Type::scalar(DType::BF16), &[x as f64]).to_f64s()[0] as f32;
    for q in 0..2 {
        let product =
            |k: usize| (0..3).fold(0f32, |sum, d| sum + query[q * 3 + d] as f32 * key[k * 3 + d] as f32);
        let scores: Vec<f32> = (0..5).map(|k| bf16(product(k)) * 0.3f64 as f32).collect();
        let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|s| ((s - top) as f64).exp() as f32).collect();
        let sum = weights.iter().fold(0f32, |sum, weight| sum + weight);
        assert!((results[1].to_f64s()[q] - (top + sum.ln()) as f64).abs() < 2e-7);
        for d in 0..2 {
            let terms =
                weights.iter().zip(0..).map(|(weight, k)| bf16(weight / sum) * value[k * 2 + d] as f32);
            let expected = bf16(terms.fold(0f32, |sum, term| sum + term));
            assert_eq!(results[0].to_f64s()[q * 2 + d], expected as f64);
        }
    }
}
