//! Vectorised regions against the region applied to one position after the other.

mod common;

use common::{Random, add, array, build, evaluate, f64s};
use tilewright_autodiff::batch;
use tilewright_generate::{Config, random_attention_of, random_graph, random_inputs};
use tilewright_interp::Array;
use tilewright_ir::{AssociativeScan, Binary, DType, Graph, Op, Type};

/// Vectorises `region` over `leading` for the parameters in `batched`; `own` holds its inputs at each
/// position, of which those not batched are the same.
fn check_batch(name: &str, region: &Graph, leading: &[usize], batched: &[bool], own: &[Vec<Array>]) {
    let mut graph = Graph::new();
    let mut arguments = Vec::new();
    let mut inputs = Vec::new();
    for (i, (ty, &batched)) in region.parameter_types().into_iter().zip(batched).enumerate() {
        let shape = if batched { [leading, &ty.shape].concat() } else { ty.shape.clone() };
        let ty = Type::new(ty.dtype, shape);
        arguments.push((graph.parameter(ty.clone()), batched));
        inputs.push(if batched { stack(ty, own.iter().map(|inputs| &inputs[i])) } else { own[0][i].clone() });
    }
    let results = batch(&mut graph, region, leading, &arguments).unwrap();
    graph.set_results(results.iter().map(|&(value, _)| value).collect());
    let found = evaluate(&graph, &inputs);
    for (position, own) in own.iter().enumerate() {
        for (i, expected) in evaluate(region, own).iter().enumerate() {
            let (all, size) = (found[i].to_f64s(), expected.ty().elements());
            let found = if results[i].1 { &all[position * size..][..size] } else { &all[..] };
            for (found, expected) in found.iter().zip(expected.to_f64s()) {
                let same = *found == expected || (found - expected).abs() <= 1e-12 * (1.0 + expected.abs());
                assert!(same, "{name}, result {i}, position {position}: {found}, expected {expected}");
            }
        }
    }
}

fn stack<'a>(ty: Type, parts: impl Iterator<Item = &'a Array>) -> Array {
    if ty.dtype.is_float() {
        Array::from_f64s(ty, &parts.flat_map(Array::to_f64s).collect::<Vec<_>>())
    } else {
        Array::from_i64s(ty, &parts.flat_map(Array::to_i64s).collect::<Vec<_>>())
    }
}

/// Inputs at each position, of which those not `batched` are the same everywhere.
fn spread(inputs: impl Fn(u64) -> Vec<Array>, batched: &[bool], positions: usize) -> Vec<Vec<Array>> {
    let first = inputs(0);
    let at = |position| {
        let other = inputs(position as u64);
        let pick = |i: usize| if batched[i] { other[i].clone() } else { first[i].clone() };
        (0..batched.len()).map(pick).collect()
    };
    (0..positions).map(at).collect()
}

#[test]
fn random_regions() {
    let mut random = Random::new(1);
    for seed in 0..200 {
        let config = Config { operations: 12, dtype: DType::F64, ..Config::default() };
        let region = random_graph(seed, &config);
        let batched: Vec<bool> = region.parameters().iter().map(|_| random.once_in(2)).collect();
        let own = spread(|position| random_inputs(&region, seed + 1000 * position), &batched, 6);
        check_batch(&format!("region {seed}"), &region, &[2, 3], &batched, &own);
    }
}

#[test]
fn attention_is_repeated() {
    for seed in 0..3 {
        let (region, inputs) = random_attention_of(DType::F64, seed);
        let batched: Vec<bool> = (0..inputs.len()).map(|i| i == 1).collect();
        let mut random = Random::new(seed);
        let keys: Vec<Array> = (0..3).map(|_| array(&mut random, inputs[1].ty(), -1.0, 1.0)).collect();
        let at = |position: u64| {
            let mut inputs = inputs.clone();
            inputs[1] = keys[position as usize].clone();
            inputs
        };
        check_batch("attention", &region, &[3], &batched, &spread(at, &batched, 3));
    }
}

#[test]
fn scans_and_random_bits() {
    let combine = build(&[f64s(&[2]), f64s(&[2]), f64s(&[2])], |g, x| {
        let product = add(g, Op::Binary(Binary::Mul), &[x[0], x[2]]);
        vec![add(g, Op::Binary(Binary::Add), &[product, x[1]])]
    });
    let region = build(&[f64s(&[2, 4]), f64s(&[2]), Type::scalar(DType::I64)], |g, x| {
        let scan = AssociativeScan { combine, leaves: 1, axis: 1, reverse: true };
        let scanned = add(g, Op::AssociativeScan(Box::new(scan)), &[x[0], x[1]]);
        vec![scanned, add(g, Op::RandomBits { shape: vec![3] }, &[x[2]])]
    });
    for batched in [[true, false, false], [false, true, true], [true, true, true]] {
        let at = |position: u64| {
            let mut random = Random::new(position);
            let key = Array::from_i64s(Type::scalar(DType::I64), &[random.bits() as i64]);
            vec![
                array(&mut random, &f64s(&[2, 4]), -1.0, 1.0),
                array(&mut random, &f64s(&[2]), -1.0, 1.0),
                key,
            ]
        };
        check_batch("scan", &region, &[3], &batched, &spread(at, &batched, 3));
    }
}

#[test]
fn what_is_not_batched_is_computed_once() {
    let region = build(&[f64s(&[2]), f64s(&[2])], |g, x| {
        let once = add(g, Op::Binary(Binary::Mul), &[x[0], x[0]]);
        vec![once, add(g, Op::Binary(Binary::Add), &[once, x[1]])]
    });
    let mut graph = Graph::new();
    let (x, y) = (graph.parameter(f64s(&[2])), graph.parameter(f64s(&[5, 2])));
    let results = batch(&mut graph, &region, &[5], &[(x, false), (y, true)]).unwrap();
    assert_eq!((results[0].1, results[1].1), (false, true));
    assert_eq!(graph.ty(results[0].0), &f64s(&[2]));
    assert!(batch(&mut graph, &region, &[5], &[(x, true), (y, true)]).is_err());
    assert!(batch(&mut graph, &region, &[5], &[(x, false)]).is_err());
}
