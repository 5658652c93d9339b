//! Each row of the acceptance table of score functions, and the key that each learned read gets.

use tilewright_ir::{DType, Graph, Op, Result, Type, Value};
use tilewright_plan::{AttentionBackward, BufferId, Kernel, View};
use tilewright_trace::{At, Tensor, flex_attention, mods, select, trace};

use super::{BlockMaps, lower_backward, lower_forward};
use crate::Operand;

const BATCH: usize = 2;
const HEADS: usize = 4;
const LENGTH: usize = 37;
const S: usize = LENGTH;

type Score = fn(Tensor, At, &[Tensor]) -> Tensor;

/// What a capture is: its type; learned if it is a float's.
fn array(dtype: DType, shape: &[usize]) -> Type {
    Type::new(dtype, shape)
}

fn learned(shape: &[usize]) -> Type {
    array(DType::F32, shape)
}

fn integers(shape: &[usize]) -> Type {
    array(DType::I32, shape)
}

/// A program that computes attention and the gradients of its float captures.
fn gradient(captures: &[Type], score: Score, with_log_sum_exp: bool) -> Result<Graph> {
    let heads = Type::new(DType::F32, [BATCH, HEADS, LENGTH, 8]);
    let mut inputs: Vec<(String, Type)> =
        ["query", "key", "value"].map(|name| (name.to_string(), heads.clone())).to_vec();
    inputs.extend(captures.iter().enumerate().map(|(i, ty)| (format!("capture{i}"), ty.clone())));
    let traced = trace(
        &inputs,
        |t| flex_attention(&t[0], &t[1], &t[2]).score(|s, at| score(s, at, &t[3..])).call_with_lse(),
        |(output, log_sum_exp)| vec![*output, *log_sum_exp],
    )?;
    let mut graph = traced.graph;
    let wanted: Vec<Value> = graph.parameters()[3..]
        .iter()
        .copied()
        .filter(|&parameter| graph.ty(parameter).dtype.is_float())
        .collect();
    let results = graph.results().to_vec();
    let mut seeds = Vec::new();
    for &result in &results[..1 + usize::from(with_log_sum_exp)] {
        let cotangent = graph.parameter(graph.ty(result).clone());
        seeds.push((result, cotangent));
    }
    let gradients = tilewright_autodiff::reverse(&mut graph, &seeds, &wanted)?;
    graph.set_results(results.into_iter().chain(gradients.into_iter().flatten()).collect());
    Ok(graph)
}

fn view(rank: usize) -> View {
    View { buffer: BufferId(0), offset: 0, strides: vec![0; rank] }
}

/// The backward kernel of a graph that has one.
fn backward(graph: &Graph) -> Result<AttentionBackward> {
    for node in graph.nodes() {
        if let Op::FlexAttentionBackward(op) = &node.op {
            let operand = |(i, &value): (usize, &Value)| {
                let ty = graph.ty(value).clone();
                Operand { view: view(ty.rank()), ty, name: format!("operand {i}"), origin: None }
            };
            let operands: Vec<Operand> = node.operands.iter().enumerate().map(operand).collect();
            let results: Vec<Option<View>> =
                node.results.iter().map(|&result| Some(view(graph.ty(result).rank()))).collect();
            let kernels = lower_backward(op, &operands, &results, &mut BlockMaps::default(), &None)?;
            if let Some(Kernel::AttentionBackward(kernel)) = kernels.into_iter().last() {
                return Ok(*kernel);
            }
        }
    }
    panic!("no gradient of attention")
}

/// What becomes of each read, a line each, in the order of the reductions, zero terms last.
fn reads(captures: &[Type], score: Score) -> Vec<String> {
    described(captures, score, false)
}

fn described(captures: &[Type], score: Score, with_log_sum_exp: bool) -> Vec<String> {
    let kernel = backward(&gradient(captures, score, with_log_sum_exp).unwrap()).unwrap();
    let reductions =
        kernel.reductions.iter().map(|one| format!("{} {:?}: {}", one.capture, one.key, one.reason));
    reductions.chain(kernel.zero_terms.iter().map(|one| format!("{} {}", one.capture, one.reason))).collect()
}

/// The lines of one read each; `captures` are the learned ones, then the others.
#[test]
fn every_score_function_of_the_acceptance_table_gets_its_key() {
    const DIAGONAL: &str = "Difference: depends on q − k: diagonal sums";
    const ZERO: &str = "zero: constant along each row";
    let s = |shape: &[usize]| vec![learned(shape)];
    let cases: Vec<(&str, Vec<Type>, Score, Vec<String>)> = vec![
        (
            "head_offset",
            s(&[HEADS]),
            |s, at, c| s * c[0].at([at.head]),
            vec!["0 Head: depends on h only: one partial a tile".into()],
        ),
        (
            "relative_1d",
            s(&[2 * S]),
            |s, at, c| s + c[0].at([(at.query - at.key).abs()]),
            vec![format!("0 {DIAGONAL}")],
        ),
        (
            "relative_signed",
            s(&[HEADS, 2 * S - 1]),
            |s, at, c| s + c[0].at([at.head, at.query - at.key + (S as i64 - 1)]),
            vec!["0 Difference: depends on h, q − k: diagonal sums".into()],
        ),
        (
            "absolute_2d",
            s(&[S, S]),
            |s, at, c| s + c[0].at([at.query, at.key]),
            vec!["0 Pair: one owner for each (q, k), summed over b and h: plain stores".into()],
        ),
        (
            "flipped_2d",
            s(&[S, S]),
            |s, at, c| s + c[0].at([at.key, at.query]),
            vec!["0 Pair: one owner for each (q, k), summed over b and h: plain stores".into()],
        ),
        (
            "chained_2d",
            s(&[S, S]),
            |s, at, c| s + c[0].at([at.query]).at([at.key]),
            vec!["0 Pair: one owner for each (q, k), summed over b and h: plain stores".into()],
        ),
        (
            "head_bias",
            s(&[HEADS, S, S]),
            |s, at, c| s + c[0].at([at.head, at.query, at.key]),
            vec!["0 Pair: one owner for each (q, k), summed over b: plain stores".into()],
        ),
        (
            "batch_head_bias",
            s(&[BATCH, HEADS, S, S]),
            |s, at, c| s + c[0].at([at.batch, at.head, at.query, at.key]),
            vec!["0 Pair: one owner for each (q, k): plain stores".into()],
        ),
        (
            "pair_bias",
            s(&[BATCH / 2, HEADS, S, S]),
            |s, at, c| s + c[0].at([at.batch / 2, at.head, at.query, at.key]),
            vec!["0 Pair: one owner for each (q, k), summed over b: plain stores".into()],
        ),
        (
            "multiplicative_query",
            s(&[S]),
            |s, at, c| s * c[0].at([at.query]),
            vec!["0 Query: depends on q: row sums".into()],
        ),
        (
            "local_window_table",
            s(&[17]),
            |s, at, c| s + c[0].at([(at.query - at.key + 8).clamp(0i64, 16i64)]),
            vec![format!("0 {DIAGONAL}")],
        ),
        (
            "bucketed by a captured table",
            vec![learned(&[HEADS, 32]), integers(&[S, S])],
            |s, at, c| s + c[0].at([at.head, c[1].at([at.query, at.key])]),
            vec!["0 Bucket { size: 128 }: any of 128 elements at each pair: a histogram".into()],
        ),
        (
            "bucketed in the function",
            s(&[HEADS, 32]),
            |s, at, c| mods::bucketed(c[0], true, 128)(s, at),
            vec!["0 Difference: depends on h, q − k: diagonal sums".into()],
        ),
        (
            "global_tokens",
            s(&[S]),
            |s, at, c| s + c[0].at([at.key]),
            vec!["0 Key: depends on k: column sums".into()],
        ),
        (
            "indirect",
            vec![learned(&[S]), integers(&[S])],
            |s, at, c| s + s * c[0].at([c[1].at([at.query])]),
            vec!["0 Query: depends on q through a table: row sums".into()],
        ),
        (
            "indirect, added",
            vec![learned(&[S]), integers(&[S])],
            |s, at, c| s + c[0].at([c[1].at([at.query])]),
            vec![format!("0 {ZERO}")],
        ),
        (
            "graph_distance",
            vec![learned(&[HEADS, 9]), integers(&[BATCH, S, S])],
            |s, at, c| s + c[0].at([at.head, c[1].at([at.batch, at.query, at.key])]),
            vec!["0 Bucket { size: 36 }: any of 36 elements at each pair: a histogram".into()],
        ),
        (
            "symmetric",
            s(&[S]),
            |s, at, c| s + c[0].at([at.query]) + c[0].at([at.key]),
            vec!["0 Key: depends on k: column sums".into(), format!("0 {ZERO}")],
        ),
        (
            "sum_index",
            s(&[2 * S]),
            |s, at, c| s + c[0].at([at.query + at.key]),
            vec!["0 Sum: depends on q + k: counter-diagonal sums".into()],
        ),
        (
            "head_gate",
            s(&[HEADS]),
            |s, at, c| s * c[0].at([at.head]).sigmoid(),
            vec!["0 Head: depends on h only: one partial a tile".into()],
        ),
        (
            "head_gate on the whole array",
            s(&[HEADS]),
            |s, at, c| s * c[0].sigmoid().at([at.head]),
            vec!["0 Head: depends on h only: one partial a tile".into()],
        ),
        (
            "distinct",
            vec![learned(&[S]), learned(&[S])],
            |s, at, c| s + c[0].at([at.query]) + c[1].at([at.key]),
            vec!["1 Key: depends on k: column sums".into(), format!("0 {ZERO}")],
        ),
        ("scalar", s(&[]), |s, _, c| s * c[0] + c[0], vec!["0 Head: one element: one partial a tile".into()]),
        ("zero_dim", s(&[1]), |s, _, c| s + c[0].at([0i64]), vec![format!("0 {ZERO}")]),
        (
            "extra_axis",
            vec![learned(&[BATCH, HEADS, 4, S]), integers(&[])],
            |s, at, c| s * c[0].at([at.batch, at.head, c[1], at.query]),
            vec!["0 Query: depends on b, h, q: row sums".into()],
        ),
        (
            "computed_in_graph",
            s(&[BATCH, S, S]),
            |s, at, c| s + c[0].at([at.batch, at.query, at.key]),
            vec!["0 Pair: one owner for each (q, k), summed over h: plain stores".into()],
        ),
        (
            "radial",
            vec![learned(&[BATCH, S, 2]), learned(&[HEADS])],
            |s, at, c| {
                let left = c[0].at([at.batch, at.query]);
                s + left.dot(c[0].at([at.batch, at.key])) * c[1].at([at.head])
            },
            vec![
                "0 Query: depends on b, q: row sums".into(),
                "0 Query: depends on b, q: row sums".into(),
                "0 Key: depends on b, k: column sums".into(),
                "0 Key: depends on b, k: column sums".into(),
                "1 Head: depends on h only: one partial a tile".into(),
            ],
        ),
        (
            "a bias behind a causal choice",
            s(&[S]),
            |s, at, c| {
                let biased = s + c[0].at([at.query]);
                select(at.query.ge(at.key), biased, f64::NEG_INFINITY)
            },
            vec![format!("0 {ZERO}")],
        ),
        (
            "a bias behind another choice",
            s(&[S]),
            |s, at, c| select(at.query.ge(at.key), s + c[0].at([at.query]), s),
            vec!["0 Query: depends on q: row sums".into()],
        ),
        (
            "a bias inside a softcap",
            s(&[S]),
            |s, at, c| mods::softcap(5.0)(s + c[0].at([at.query]), at),
            vec!["0 Query: depends on q: row sums".into()],
        ),
        (
            "one read twice",
            s(&[S]),
            |s, at, c| s * c[0].at([at.key]) + c[0].at([at.key]),
            vec!["0 Key: depends on k: column sums".into()],
        ),
        (
            "two dilated axes",
            s(&[S, S]),
            |s, at, c| s + c[0].at([at.query / 2, at.key]),
            vec!["0 Bucket { size: 1369 }: any of 1369 elements at each pair: a histogram".into()],
        ),
        (
            "an axis of extent 1",
            s(&[1, 2 * S]),
            |s, at, c| s + c[0].at([at.query / 1000, at.query - at.key]),
            vec![format!("0 {DIAGONAL}")],
        ),
        (
            "a large table, indexed by anything",
            vec![learned(&[300, 300]), integers(&[S, S])],
            |s, at, c| s + c[0].at([c[1].at([at.query, at.key]), at.key]),
            vec!["0 Any: any element at each pair: sorted by element".into()],
        ),
        (
            "a flat index of both",
            s(&[S * S]),
            |s, at, c| s + c[0].at([at.query * S as i64 + at.key]),
            vec!["0 Pair: one owner for each (q, k), summed over b and h: plain stores".into()],
        ),
    ];
    for (name, captures, score, expected) in cases {
        assert_eq!(reads(&captures, score), expected, "{name}");
    }
}

#[test]
fn terms_that_are_constant_along_rows_count_where_the_log_sum_exp_has_a_cotangent() {
    let score: Score = |s, at, c| s + c[0].at([at.query]);
    let captures = [learned(&[S])];
    assert_eq!(described(&captures, score, true), ["0 Query: depends on q: row sums"]);
    assert_eq!(described(&captures, score, false), ["0 zero: constant along each row"]);
}

#[test]
fn an_unused_capture_has_no_gradient() {
    let graph = gradient(&[learned(&[S])], |s, _, _| s * 2.0, false).unwrap();
    assert!(!graph.nodes().iter().any(|node| matches!(node.op, Op::FlexAttentionBackward(_))));
}

#[test]
fn masks_share_a_block_map_and_identities_vanish() {
    let heads = Type::new(DType::F32, [BATCH, HEADS, LENGTH, 8]);
    let inputs: Vec<(String, Type)> =
        ["query", "key", "value"].map(|name| (name.to_string(), heads.clone())).to_vec();
    let graph = trace(
        &inputs,
        |t| {
            let causal = flex_attention(&t[0], &t[1], &t[2]).mask(mods::causal).call();
            let capped = flex_attention(&causal, &t[1], &t[2]).score(mods::softcap(3.0)).mask(mods::causal);
            let window = flex_attention(&capped.call(), &t[1], &t[2]).mask(mods::sliding_window(5));
            flex_attention(&window.call(), &t[1], &t[2]).mask(|at| at.query.eq(at.query)).call()
        },
        |output| vec![*output],
    )
    .unwrap()
    .graph;
    let (mut block_maps, mut kernels) = (BlockMaps::default(), Vec::new());
    for node in graph.nodes() {
        if let Op::FlexAttention(op) = &node.op {
            let operand = |&value: &Value| Operand {
                view: view(4),
                ty: graph.ty(value).clone(),
                name: "x".into(),
                origin: None,
            };
            let operands: Vec<Operand> = node.operands.iter().map(operand).collect();
            let results = [Some(view(4)), None, None];
            kernels.extend(lower_forward(op, &operands, &results, &mut block_maps, &None).unwrap());
        }
    }
    let summary: Vec<String> = kernels
        .iter()
        .map(|kernel| match kernel {
            Kernel::BlockMap(map) => format!("map {} of {}×{}", map.slot, map.batch, map.heads),
            Kernel::AttentionForward(forward) => {
                format!("score {} map {:?}", forward.score.is_some(), forward.attention.block_map)
            }
            _ => "other".into(),
        })
        .collect();
    let expected = [
        "map 0 of 1×1",
        "score false map Some(0)",
        "score true map Some(0)",
        "map 1 of 1×1",
        "score false map Some(1)",
        "score false map None",
    ];
    assert_eq!(summary, expected);
}

#[test]
fn a_row_too_long_is_refused_with_a_limit() {
    let graph =
        gradient(&[learned(&[S, 400])], |s, at, c| s + c[0].at([at.query]).dot(c[0].at([at.key])), false)
            .unwrap();
    assert_eq!(backward(&graph).unwrap_err().code(), "limit");
}
