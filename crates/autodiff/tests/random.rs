//! Derivatives of random programs along random directions.

mod common;

use common::{Random, array, check_forward, dot, evaluate, gradient};
use tilewright_generate::{Config, random_attention_of, random_graph, random_inputs};
use tilewright_interp::Array;
use tilewright_ir::{DType, Graph};

/// Float parameters.
fn learned(inputs: &[Array]) -> Vec<usize> {
    (0..inputs.len()).filter(|&i| inputs[i].ty().dtype.is_float()).collect()
}

/// Reverse mode against a central difference along one direction, and against forward mode. Results that are
/// not finite (the log-sum-exp of an empty row) get no cotangent.
fn check_direction(
    name: &str,
    graph: &Graph,
    inputs: &[Array],
    wrt: &[usize],
    random: &mut Random,
) -> Vec<Array> {
    let outputs = evaluate(graph, inputs);
    let mut cotangents = Vec::new();
    for output in outputs.iter().filter(|output| output.ty().dtype.is_float()) {
        let finite = |(x, c): (f64, f64)| if x.is_finite() { c } else { 0.0 };
        let random = array(random, output.ty(), -1.0, 1.0).to_f64s();
        let elements: Vec<f64> = output.to_f64s().into_iter().zip(random).map(finite).collect();
        cotangents.push(Array::from_f64s(output.ty().clone(), &elements));
    }
    let directions: Vec<Array> = wrt.iter().map(|&i| array(random, inputs[i].ty(), -1.0, 1.0)).collect();
    let objective = |step: f64| {
        let mut inputs = inputs.to_vec();
        for (&i, direction) in wrt.iter().zip(&directions) {
            let moved = inputs[i]
                .to_f64s()
                .iter()
                .zip(direction.to_f64s())
                .map(|(x, d)| x + step * d)
                .collect::<Vec<_>>();
            inputs[i] = Array::from_f64s(inputs[i].ty().clone(), &moved);
        }
        let products = evaluate(graph, &inputs)
            .into_iter()
            .filter(|output| output.ty().dtype.is_float())
            .zip(&cotangents)
            .flat_map(|(x, c)| x.to_f64s().into_iter().zip(c.to_f64s()).collect::<Vec<_>>());
        products.filter(|&(_, c)| c != 0.0).map(|(x, c)| x * c).sum::<f64>()
    };
    let step = 1e-5;
    let (near, far) = (objective(step) - objective(-step), objective(2.0 * step) - objective(-2.0 * step));
    let expected = (8.0 * near - far) / (12.0 * step);
    let gradients = evaluate(&gradient(graph, wrt), &[inputs, &cotangents].concat());
    let found = dot(&gradients, &directions);
    let scale = 1.0 + objective(0.0).abs() + expected.abs();
    assert!((found - expected).abs() <= 1e-8 * scale, "{name}: {found}, central differences {expected}");
    check_forward(name, graph, inputs, wrt, &cotangents, random);
    cotangents
}

fn check_twice(name: &str, graph: &Graph, inputs: &[Array], random: &mut Random) {
    let wrt = learned(inputs);
    let cotangents = check_direction(name, graph, inputs, &wrt, random);
    let first = gradient(graph, &wrt);
    let inputs = [inputs, &cotangents].concat();
    let wrt = learned(&inputs);
    check_direction(&format!("gradient of {name}"), &first, &inputs, &wrt, random);
}

#[test]
fn random_programs() {
    let config = Config { operations: 14, dtype: DType::F64, differentiable: true, extent: 4 };
    let mut random = Random::new(1);
    for seed in 0..150 {
        let graph = random_graph(seed, &config);
        check_twice(&format!("program {seed}"), &graph, &random_inputs(&graph, seed), &mut random);
    }
}

#[test]
fn random_attention_programs() {
    let mut random = Random::new(2);
    for seed in 0..25 {
        let (graph, inputs) = random_attention_of(DType::F64, seed);
        check_twice(&format!("attention {seed}"), &graph, &inputs, &mut random);
    }
}
