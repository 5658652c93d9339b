//! Lowered gradients of random attention, run pair by pair by the plan's definitions, against the
//! interpreter's; and what each key promises about the indices of its pairs.

use std::collections::{HashMap, HashSet};

use tilewright_generate::{random_attention_of, random_inputs};
use tilewright_interp::{Array, Precision};
use tilewright_ir::{DType, FlexAttentionBackward, Graph, Node, Op, Scalar, Value};
use tilewright_plan::attention::{AttentionShape, ReductionKey};
use tilewright_plan::{AttentionBackward, BufferId, Kernel, Program, View, evaluate};

use super::{BlockMaps, lower_backward};
use crate::Operand;

/// A random attention and its gradient, as the operands and expected results of the gradient.
struct Case {
    op: FlexAttentionBackward,
    operands: Vec<Array>,
    expected: Vec<Array>,
}

/// None where the seed's attention has a log-sum-exp that is not finite or nothing to differentiate.
fn case(seed: u64, with_log_sum_exp: bool) -> Option<Case> {
    let (mut graph, mut inputs) = random_attention_of(DType::F64, seed);
    let forward = graph.nodes().iter().find(|node| matches!(node.op, Op::FlexAttention(_)))?.clone();
    let wanted: Vec<Value> =
        forward.operands.iter().copied().filter(|&value| graph.ty(value).dtype.is_float()).collect();
    let mut cotangents = Graph::new();
    let mut seeds = Vec::new();
    for &result in &forward.results[..1 + usize::from(with_log_sum_exp)] {
        let ty = graph.ty(result).clone();
        cotangents.parameter(ty.clone());
        let cotangent = graph.parameter(ty);
        seeds.push((result, cotangent));
    }
    inputs.extend(random_inputs(&cotangents, seed + 1));
    tilewright_autodiff::reverse(&mut graph, &seeds, &wanted).unwrap();
    let is_backward = |node: &&Node| matches!(node.op, Op::FlexAttentionBackward(_));
    let node = graph.nodes().iter().find(is_backward)?.clone();
    let Op::FlexAttentionBackward(op) = node.op else { return None };
    graph.set_results(node.operands.iter().chain(&node.results).copied().collect());
    let mut operands = tilewright_interp::run(&graph, &inputs, Precision::Exact).unwrap();
    let expected = operands.split_off(node.operands.len());
    Some(Case { op: *op, operands, expected })
}

fn view(rank: usize) -> View {
    View { buffer: BufferId(0), offset: 0, strides: vec![0; rank] }
}

fn lower(case: &Case) -> AttentionBackward {
    let operand = |(i, array): (usize, &Array)| {
        let ty = array.ty().clone();
        Operand { view: view(ty.rank()), ty, name: i.to_string(), origin: None }
    };
    let operands: Vec<Operand> = case.operands.iter().enumerate().map(operand).collect();
    let results: Vec<Option<View>> = case.expected.iter().map(|one| Some(view(one.ty().rank()))).collect();
    let kernels = lower_backward(&case.op, &operands, &results, &mut BlockMaps::default(), &None).unwrap();
    match kernels.into_iter().last() {
        Some(Kernel::AttentionBackward(kernel)) => *kernel,
        other => panic!("{other:?}"),
    }
}

/// The row-major place of an index, one out of range being none.
fn place(indices: &[i64], shape: &[usize]) -> Option<usize> {
    indices
        .iter()
        .zip(shape)
        .try_fold(0, |place, (&index, &extent)| Some(place * extent + evaluate::position(index, extent)?))
}

/// One pair of every batch element, head, query and key.
fn pairs(shape: &AttentionShape) -> impl Iterator<Item = [usize; 4]> {
    let AttentionShape { batch, heads, queries, keys, .. } = *shape;
    (0..batch * heads * queries * keys)
        .map(move |i| [i / keys / queries / heads, i / keys / queries % heads, i / keys % queries, i % keys])
}

fn key_of(key: ReductionKey, [_, _, q, k]: [usize; 4]) -> Option<i64> {
    let (q, k) = (q as i64, k as i64);
    match key {
        ReductionKey::Head => Some(0),
        ReductionKey::Query => Some(q),
        ReductionKey::Key => Some(k),
        ReductionKey::Difference => Some(q - k),
        ReductionKey::Sum => Some(q + k),
        ReductionKey::Pair | ReductionKey::Bucket { .. } | ReductionKey::Any => None,
    }
}

/// Runs the kernel pair by pair: the cotangents of the query and of each capture. Also checks that equal
/// keys have equal indices, and that pairs that own elements own different ones.
fn run(kernel: &AttentionBackward, operands: &[Array]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let shape = kernel.attention.shape;
    let AttentionShape { head_size, value_size, .. } = shape;
    let arrays: Vec<Vec<f64>> = operands.iter().map(Array::to_f64s).collect();
    let [query, key, value, output, log_sum_exp, d_output] = [0, 1, 2, 3, 4, 5].map(|i| &arrays[i]);
    let tables: Vec<&Array> =
        kernel.attention.tables.iter().map(|table| &operands[table.name.parse::<usize>().unwrap()]).collect();
    let literals: Vec<_> = tables.iter().map(|table| table.to_literal()).collect();
    let load = |table: usize, indices: &[i64]| match place(indices, &tables[table].ty().shape) {
        Some(place) => literals[table].element(place),
        None => Scalar::Integer(0),
    };
    let evaluate = |program: &Program, inputs: &[Scalar]| {
        evaluate::run(program, inputs, load, |_, _| unreachable!("no region is random"))
    };
    let mut d_query = vec![0.0; query.len()];
    let mut captures: Vec<Vec<f64>> =
        kernel.captures.iter().map(|capture| vec![0.0; capture.shape.iter().product()]).collect();
    let mut indices_of = HashMap::new();
    let mut owned = HashSet::new();
    for pair in pairs(&shape) {
        let [b, h, q, k] = pair;
        let row = (b * shape.heads + h) * shape.queries + q;
        let key_batch = if shape.key_batch == 1 { 0 } else { b };
        let column = (key_batch * shape.key_heads + h / (shape.heads / shape.key_heads)) * shape.keys + k;
        let dot = |x: &[f64], i: usize, y: &[f64], j: usize, n: usize| -> f64 {
            (0..n).map(|e| x[i * n + e] * y[j * n + e]).sum()
        };
        let mut inputs: Vec<Scalar> = pair.iter().map(|&i| Scalar::Integer(i as i64)).collect();
        let live = kernel.attention.mask.as_ref().is_none_or(|mask| evaluate(mask, &inputs)[0].to_bool());
        if !live || log_sum_exp[row] == f64::NEG_INFINITY {
            continue;
        }
        inputs.push(Scalar::Float(kernel.attention.scale * dot(query, row, key, column, head_size)));
        inputs.push(Scalar::Float(0.0));
        let score = match &kernel.joint {
            Some(joint) => evaluate(joint, &inputs)[0].to_f64(),
            None => inputs[4].to_f64(),
        };
        let p = (score - log_sum_exp[row]).exp();
        let mut g =
            dot(d_output, row, value, column, value_size) - dot(d_output, row, output, row, value_size);
        if kernel.log_sum_exp_cotangent.is_some() {
            g += arrays[6][row];
        }
        inputs[5] = Scalar::Float(p * g);
        let results = match &kernel.joint {
            Some(joint) => evaluate(joint, &inputs),
            None => vec![inputs[4], inputs[5]],
        };
        for e in 0..head_size {
            d_query[row * head_size + e] +=
                kernel.attention.scale * results[1].to_f64() * key[column * head_size + e];
        }
        for (number, reduction) in kernel.reductions.iter().enumerate() {
            let shape = &kernel.captures[reduction.capture].shape;
            let inputs = if matches!(reduction.key, ReductionKey::Bucket { .. } | ReductionKey::Any) {
                &inputs[..5]
            } else {
                &inputs[..4]
            };
            let indices: Vec<i64> =
                evaluate(&reduction.indices, inputs).into_iter().map(Scalar::to_i64).collect();
            let element = match reduction.key {
                ReductionKey::Bucket { size } => Some(indices[0] as usize).filter(|&i| i < size),
                _ => place(&indices, shape),
            };
            let element = element.expect("the indices of a live pair are in range");
            if let Some(key) = key_of(reduction.key, pair) {
                let first = *indices_of.entry((number, b, h, key)).or_insert(element);
                assert_eq!(first, element, "{:?} at {pair:?}", reduction.key);
            }
            if reduction.key == ReductionKey::Pair {
                assert!(owned.insert((number, b, h, element)), "two owners: {pair:?}");
            }
            captures[reduction.capture][element] += results[reduction.result].to_f64();
        }
    }
    (d_query, captures)
}

fn assert_near(found: &[f64], expected: &Array, what: &str) {
    let expected = expected.to_f64s();
    let scale = expected.iter().fold(1.0f64, |all, x| all.max(x.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-9 * scale, "{what}: {found} for {expected}");
    }
}

#[test]
fn lowered_gradients_are_the_interpreters() {
    let mut keys: HashMap<&str, usize> = HashMap::new();
    for seed in 0..300 {
        let Some(case) = case(seed, seed % 3 == 0) else { continue };
        let kernel = lower(&case);
        let (d_query, captures) = run(&kernel, &case.operands);
        assert_near(&d_query, &case.expected[0], &format!("seed {seed}, the query"));
        for (i, found) in captures.iter().enumerate() {
            assert_near(found, &case.expected[3 + i], &format!("seed {seed}, capture {i} of {kernel:#?}"));
        }
        for reduction in &kernel.reductions {
            let name = match reduction.key {
                ReductionKey::Head => "head",
                ReductionKey::Query => "query",
                ReductionKey::Key => "key",
                ReductionKey::Difference => "difference",
                ReductionKey::Sum => "sum",
                ReductionKey::Bucket { .. } => "bucket",
                ReductionKey::Pair => "pair",
                ReductionKey::Any => "any",
            };
            *keys.entry(name).or_default() += 1;
        }
        *keys.entry("zero").or_default() += kernel.zero_terms.len();
    }
    println!("{keys:?}");
    for name in ["head", "query", "key", "difference", "bucket", "pair", "zero"] {
        assert!(keys.get(name).is_some_and(|&count| count >= 3), "too few of {name}: {keys:?}");
    }
}
