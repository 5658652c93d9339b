//! Derivatives of attention: query, key, value and captures read in every form.

mod common;

use common::{Random, add, array, build, check, check_first, evaluate, f64s, gradient};
use tilewright_interp::Array;
use tilewright_ir::{
    Binary, Compare, DType, DotAxes, FlexAttention, FlexAttentionBackward, Graph, Op, Type, Unary, Value,
};

const BATCH: usize = 2;
const HEADS: usize = 2;
const QUERIES: usize = 3;
const KEYS: usize = 4;

/// What a region sees.
struct At<'a> {
    score: Value,
    b: Value,
    h: Value,
    q: Value,
    k: Value,
    captures: &'a [Value],
}

type Score = fn(&mut Graph, &At) -> Value;
type Mask = fn(&mut Graph, &At) -> Value;

fn i32s() -> Type {
    Type::scalar(DType::I32)
}

fn mul(g: &mut Graph, x: Value, y: Value) -> Value {
    add(g, Op::Binary(Binary::Mul), &[x, y])
}

fn sum(g: &mut Graph, x: Value, y: Value) -> Value {
    add(g, Op::Binary(Binary::Add), &[x, y])
}

fn sub(g: &mut Graph, x: Value, y: Value) -> Value {
    add(g, Op::Binary(Binary::Sub), &[x, y])
}

fn read(g: &mut Graph, array: Value, indices: &[Value]) -> Value {
    add(g, Op::Gather, &[&[array], indices].concat())
}

fn shifted(g: &mut Graph, x: Value, by: i64) -> Value {
    let by = g.scalar(DType::I32, by);
    sum(g, x, by)
}

/// A graph of one attention call, that gives only the results in `shown`.
fn attention(
    [query, key, value]: [Type; 3],
    captures: &[Type],
    score: Score,
    mask: Option<Mask>,
    shown: &[usize],
) -> Graph {
    let accumulator = query.dtype.accumulator();
    let mut types = vec![Type::scalar(accumulator), i32s(), i32s(), i32s(), i32s()];
    types.extend_from_slice(captures);
    let score = build(&types, |g, x| {
        let at = At { score: x[0], b: x[1], h: x[2], q: x[3], k: x[4], captures: &x[5..] };
        vec![score(g, &at)]
    });
    let mask = mask.map(|mask| {
        build(&types[1..], |g, x| {
            let at = At { score: x[0], b: x[0], h: x[1], q: x[2], k: x[3], captures: &x[4..] };
            vec![mask(g, &at)]
        })
    });
    let attention = FlexAttention { scale: 0.7, score, mask };
    build(&[&[query, key, value], captures].concat(), |g, x| {
        let results = g.add(Op::FlexAttention(Box::new(attention)), x, None).unwrap();
        shown.iter().map(|&i| results[i]).collect()
    })
}

fn standard() -> [Type; 3] {
    [f64s(&[BATCH, HEADS, QUERIES, 2]), f64s(&[BATCH, HEADS, KEYS, 2]), f64s(&[BATCH, HEADS, KEYS, 3])]
}

fn causal(g: &mut Graph, at: &At) -> Value {
    add(g, Op::Compare(Compare::Ge), &[at.q, at.k])
}

/// Admits no key to query 1, and never key 2.
fn holes(g: &mut Graph, at: &At) -> Value {
    let (one, two) = (g.scalar(DType::I32, 1), g.scalar(DType::I32, 2));
    let row = add(g, Op::Compare(Compare::Ne), &[at.q, one]);
    let column = add(g, Op::Compare(Compare::Ne), &[at.k, two]);
    add(g, Op::Binary(Binary::And), &[row, column])
}

fn identity(_: &mut Graph, at: &At) -> Value {
    at.score
}

fn softcap(g: &mut Graph, at: &At) -> Value {
    let tanh = add(g, Op::Unary(Unary::Tanh), &[at.score]);
    let cap = g.scalar(DType::F64, 2.0);
    mul(g, tanh, cap)
}

fn inputs(graph: &Graph, random: &mut Random) -> Vec<Array> {
    graph.parameter_types().into_iter().map(|ty| array(random, ty, -1.0, 1.0)).collect()
}

/// The gradients of attention that a graph has.
fn backward(graph: &Graph) -> &FlexAttentionBackward {
    for node in graph.nodes() {
        if let Op::FlexAttentionBackward(backward) = &node.op {
            return backward;
        }
    }
    panic!("no gradient of attention");
}

#[test]
fn query_key_and_value() {
    let mut random = Random::new(1);
    let scores: [(&str, Score); 2] = [("identity", identity), ("softcap", softcap)];
    let masks: [(&str, Option<Mask>); 3] = [("none", None), ("causal", Some(causal)), ("holes", Some(holes))];
    for (score_name, score) in scores {
        for (mask_name, mask) in masks {
            for shown in [vec![0], vec![0, 1]] {
                let graph = attention(standard(), &[], score, mask, &shown);
                let name = format!("score {score_name}, mask {mask_name}, results {shown:?}");
                let inputs = inputs(&graph, &mut random);
                if mask_name == "holes" && shown.len() == 2 {
                    // The empty row's log-sum-exp is −∞, which has no differences.
                    continue;
                }
                check(&name, &graph, &inputs, &[0, 1, 2]);
            }
        }
    }
}

#[test]
fn only_the_log_sum_exp() {
    let mut random = Random::new(2);
    let graph = attention(standard(), &[], softcap, Some(causal), &[1]);
    let inputs = inputs(&graph, &mut random);
    check("log-sum-exp", &graph, &inputs, &[0, 1]);
    assert!(backward(&gradient(&graph, &[0])).log_sum_exp_cotangent);
    let graph = attention(standard(), &[], softcap, Some(causal), &[0]);
    assert!(!backward(&gradient(&graph, &[0])).log_sum_exp_cotangent);
}

#[test]
fn the_row_maximum_is_a_constant() {
    let graph = attention(standard(), &[], identity, None, &[2]);
    let mut random = Random::new(3);
    let cotangent = array(&mut random, &f64s(&[BATCH, HEADS, QUERIES]), -1.0, 1.0);
    let inputs = [inputs(&graph, &mut random), vec![cotangent]].concat();
    for gradient in evaluate(&gradient(&graph, &[0, 1, 2]), &inputs) {
        assert!(gradient.to_f64s().iter().all(|&x| x == 0.0));
    }
}

#[test]
fn grouped_heads_and_shared_batch() {
    let mut random = Random::new(4);
    for (key_batch, key_heads) in [(1, 2), (1, 4), (2, 2), (1, 1)] {
        let types = [
            f64s(&[2, 4, QUERIES, 2]),
            f64s(&[key_batch, key_heads, KEYS, 2]),
            f64s(&[key_batch, key_heads, KEYS, 1]),
        ];
        let graph = attention(types, &[], softcap, Some(causal), &[0, 1]);
        let inputs = inputs(&graph, &mut random);
        let name = format!("key batch {key_batch}, key heads {key_heads}");
        check(&name, &graph, &inputs, &[0, 1, 2]);
    }
}

/// A form in which a score function reads learned arrays: its name, their shapes, the function, and how many
/// indices each contribution has.
type Form = (&'static str, Vec<Vec<usize>>, Score, Vec<usize>);

fn captured() -> Vec<Form> {
    vec![
        (
            "head and difference",
            vec![vec![HEADS, QUERIES + KEYS]],
            |g, at| {
                let difference = sub(g, at.q, at.k);
                let index = shifted(g, difference, KEYS as i64);
                let bias = read(g, at.captures[0], &[at.h, index]);
                sum(g, at.score, bias)
            },
            vec![2],
        ),
        (
            "negative index",
            vec![vec![8]],
            |g, at| {
                let difference = sub(g, at.q, at.k);
                let bias = read(g, at.captures[0], &[difference]);
                sum(g, at.score, bias)
            },
            vec![1],
        ),
        (
            "chained",
            vec![vec![QUERIES, KEYS]],
            |g, at| {
                let row = read(g, at.captures[0], &[at.q]);
                let bias = read(g, row, &[at.k]);
                sum(g, at.score, bias)
            },
            vec![2],
        ),
        (
            "chained, two index types",
            vec![vec![QUERIES, KEYS]],
            |g, at| {
                let row = read(g, at.captures[0], &[at.q]);
                let k = add(g, Op::Cast(DType::I64), &[at.k]);
                let bias = read(g, row, &[k]);
                sum(g, at.score, bias)
            },
            vec![2],
        ),
        (
            "symmetric",
            vec![vec![4]],
            |g, at| {
                let (left, right) = (read(g, at.captures[0], &[at.q]), read(g, at.captures[0], &[at.k]));
                let score = sum(g, at.score, left);
                mul(g, score, right)
            },
            vec![1, 1],
        ),
        (
            "gate",
            vec![vec![HEADS]],
            |g, at| {
                let gate = read(g, at.captures[0], &[at.h]);
                let gate = add(g, Op::Unary(Unary::Sigmoid), &[gate]);
                mul(g, at.score, gate)
            },
            vec![1],
        ),
        (
            "scalar",
            vec![vec![]],
            |g, at| {
                let product = mul(g, at.score, at.captures[0]);
                sum(g, product, at.captures[0])
            },
            vec![0],
        ),
        (
            "rows and a weight",
            vec![vec![BATCH, 4, 3], vec![HEADS]],
            |g, at| {
                let left = read(g, at.captures[0], &[at.b, at.q]);
                let right = read(g, at.captures[0], &[at.b, at.k]);
                let contract =
                    DotAxes { left_contract: vec![0], right_contract: vec![0], ..DotAxes::default() };
                let product = add(g, Op::Dot(contract), &[left, right]);
                let weight = read(g, at.captures[1], &[at.h]);
                let term = mul(g, product, weight);
                sum(g, at.score, term)
            },
            vec![1, 2, 2],
        ),
        (
            "whole array",
            vec![vec![2, 3]],
            |g, at| {
                let square = mul(g, at.captures[0], at.captures[0]);
                let total =
                    add(g, Op::Reduce { kind: tilewright_ir::Reduction::Sum, axes: vec![0, 1] }, &[square]);
                mul(g, at.score, total)
            },
            vec![0],
        ),
        (
            "whole array and a read",
            vec![vec![4]],
            |g, at| {
                let total = add(
                    g,
                    Op::Reduce { kind: tilewright_ir::Reduction::Sum, axes: vec![0] },
                    &[at.captures[0]],
                );
                let one = read(g, at.captures[0], &[at.k]);
                let factor = mul(g, total, one);
                mul(g, at.score, factor)
            },
            vec![0, 1],
        ),
        (
            "array of indices",
            vec![vec![4]],
            |g, at| {
                let offsets = add(g, Op::Iota { dtype: DType::I32, shape: vec![2], axis: 0 }, &[]);
                let q = add(g, Op::Broadcast { shape: vec![2], axes: vec![] }, &[at.q]);
                let indices = sum(g, q, offsets);
                let pair = read(g, at.captures[0], &[indices]);
                let product =
                    add(g, Op::Reduce { kind: tilewright_ir::Reduction::Prod, axes: vec![0] }, &[pair]);
                sum(g, at.score, product)
            },
            vec![0],
        ),
        (
            "row term",
            vec![vec![QUERIES]],
            |g, at| {
                let bias = read(g, at.captures[0], &[at.q]);
                sum(g, at.score, bias)
            },
            vec![1],
        ),
        ("unused", vec![vec![3]], |_, at| at.score, vec![]),
    ]
}

#[test]
fn captures_in_every_form() {
    let mut random = Random::new(5);
    for (name, shapes, score, mut indices) in captured() {
        let captures: Vec<Type> = shapes.iter().map(|shape| f64s(shape)).collect();
        let graph = attention(standard(), &captures, score, Some(causal), &[0, 1]);
        let inputs = inputs(&graph, &mut random);
        let wrt: Vec<usize> = (0..inputs.len()).collect();
        check(name, &graph, &inputs, &wrt);

        let adjoint = gradient(&graph, &wrt);
        let mut found: Vec<usize> = backward(&adjoint).contributions.iter().map(|c| c.indices).collect();
        found.sort_unstable();
        indices.sort_unstable();
        assert_eq!(found, indices, "{name}");
        let constant = gradient(&graph, &[0, 1, 2]);
        assert!(backward(&constant).learned.is_empty() && backward(&constant).contributions.is_empty());
    }
}

#[test]
fn integer_captures_carry_no_gradient() {
    let mut random = Random::new(6);
    let captures = [f64s(&[5]), Type::new(DType::I64, [BATCH, KEYS])];
    let graph = attention(
        standard(),
        &captures,
        |g, at| {
            let bucket = read(g, at.captures[1], &[at.b, at.k]);
            let bias = read(g, at.captures[0], &[bucket]);
            sum(g, at.score, bias)
        },
        Some(|g, at| {
            let bucket = read(g, at.captures[1], &[at.b, at.k]);
            let limit = g.scalar(DType::I64, 4);
            add(g, Op::Compare(Compare::Lt), &[bucket, limit])
        }),
        &[0, 1],
    );
    let mut inputs = inputs(&graph, &mut random);
    // The last is out of range, but masked out.
    inputs[4] = Array::from_i64s(captures[1].clone(), &[0, 3, 1, 4, 2, 2, 0, 77]);
    check("buckets", &graph, &inputs, &[0, 1, 2, 3]);
}

#[test]
fn nothing_leaks_from_masked_pairs() {
    // Key 2 is never admitted; it holds NaN, and so does the row of the table that it would read.
    let mut random = Random::new(7);
    let graph = attention(
        standard(),
        &[f64s(&[KEYS])],
        |g, at| {
            let bias = read(g, at.captures[0], &[at.k]);
            mul(g, at.score, bias)
        },
        Some(holes),
        &[0],
    );
    let clean = inputs(&graph, &mut random);
    let mut dirty = clean.clone();
    for (i, size) in [(1, 2), (2, 3)] {
        let mut elements = clean[i].to_f64s();
        for (j, element) in elements.iter_mut().enumerate() {
            if j / size % KEYS == 2 {
                *element = f64::NAN;
            }
        }
        dirty[i] = Array::from_f64s(clean[i].ty().clone(), &elements);
    }
    let mut table = clean[3].to_f64s();
    table[2] = f64::NAN;
    dirty[3] = Array::from_f64s(clean[3].ty().clone(), &table);

    let first = gradient(&graph, &[0, 1, 2, 3]);
    let second = gradient(&first, &[0, 1, 2, 3, 4]);
    let types: Vec<Type> = second.parameter_types()[4..].iter().map(|&ty| ty.clone()).collect();
    let rest: Vec<Array> = types.iter().map(|ty| array(&mut random, ty, -1.0, 1.0)).collect();
    for (graph, count) in [(&first, 1), (&second, rest.len())] {
        let of = |inputs: &[Array]| evaluate(graph, &[inputs, &rest[..count]].concat());
        for (clean, dirty) in of(&clean).iter().zip(of(&dirty)) {
            for (clean, dirty) in clean.to_f64s().into_iter().zip(dirty.to_f64s()) {
                assert!((clean - dirty).abs() <= 1e-12 * (1.0 + clean.abs()), "{clean} {dirty}");
            }
        }
    }
}

#[test]
fn computed_captures_and_half_types() {
    // The table is made in the same graph from a smaller array, whose gradient flows through it.
    let mut random = Random::new(8);
    let small = f64s(&[4]);
    let types = [&standard()[..], &[small]].concat();
    let score = build(&[f64s(&[]), i32s(), i32s(), i32s(), i32s(), f64s(&[4, 4])], |g, x| {
        let bias = read(g, x[5], &[x[3], x[4]]);
        vec![sum(g, x[0], bias)]
    });
    let call = FlexAttention { scale: 1.0, score, mask: None };
    let graph = build(&types, |g, x| {
        let rows = add(g, Op::Broadcast { shape: vec![4, 4], axes: vec![0] }, &[x[3]]);
        let columns = add(g, Op::Broadcast { shape: vec![4, 4], axes: vec![1] }, &[x[3]]);
        let table = mul(g, rows, columns);
        vec![add_first(g, Op::FlexAttention(Box::new(call)), &[x[0], x[1], x[2], table])]
    });
    let inputs = inputs(&graph, &mut random);
    check_first("computed table", &graph, &inputs, &[0, 1, 2, 3], &mut random);

    let half = |shape: &[usize]| Type::new(DType::BF16, shape);
    let graph = attention(
        [half(&[1, 1, 2, 2]), half(&[1, 1, 2, 2]), half(&[1, 1, 2, 2])],
        &[half(&[2])],
        |g, at| {
            let bias = read(g, at.captures[0], &[at.k]);
            let bias = add(g, Op::Cast(DType::F32), &[bias]);
            sum(g, at.score, bias)
        },
        None,
        &[0],
    );
    let adjoint = gradient(&graph, &[0, 1, 2, 3]);
    let joint = &backward(&adjoint).joint;
    assert_eq!(joint.ty(*joint.results().last().unwrap()), &Type::scalar(DType::F32));
    assert_eq!(adjoint.ty(adjoint.results()[3]), &half(&[2]));
}

fn add_first(g: &mut Graph, op: Op, operands: &[Value]) -> Value {
    g.add(op, operands, None).unwrap()[0]
}
