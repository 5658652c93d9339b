//! Checks of derivatives against the interpreter: reverse mode against central differences, forward mode
//! against reverse mode, and second derivatives against central differences of the first.

#![allow(dead_code, reason = "each test file uses a part")]

use tilewright_autodiff::{forward, reverse};
pub use tilewright_generate::Random;
use tilewright_interp::{Array, Precision, run};
use tilewright_ir::{DType, Graph, Op, Type, Value, verify};

/// A float array with elements in `low..high`.
pub fn array(random: &mut Random, ty: &Type, low: f64, high: f64) -> Array {
    let elements: Vec<f64> = (0..ty.elements()).map(|_| random.float(low, high)).collect();
    Array::from_f64s(ty.clone(), &elements)
}

pub fn f64s(shape: &[usize]) -> Type {
    Type::new(DType::F64, shape)
}

/// A graph with the given parameters, whose results `body` makes.
pub fn build(parameters: &[Type], body: impl FnOnce(&mut Graph, &[Value]) -> Vec<Value>) -> Graph {
    let mut graph = Graph::new();
    let parameters: Vec<Value> = parameters.iter().map(|ty| graph.parameter(ty.clone())).collect();
    let results = body(&mut graph, &parameters);
    graph.set_results(results);
    graph
}

pub fn add(graph: &mut Graph, op: Op, operands: &[Value]) -> Value {
    graph.add1(op, operands, None).unwrap()
}

pub fn evaluate(graph: &Graph, inputs: &[Array]) -> Vec<Array> {
    verify(graph).unwrap();
    run(graph, inputs, Precision::Exact).unwrap()
}

/// `graph` extended by a cotangent parameter for each float result; its results become the gradients of the
/// parameters `wrt`, zeros where there are none.
pub fn gradient(graph: &Graph, wrt: &[usize]) -> Graph {
    let mut extended = graph.clone();
    let outputs: Vec<Value> =
        graph.results().iter().copied().filter(|&value| graph.ty(value).dtype.is_float()).collect();
    let pairs: Vec<(Value, Value)> =
        outputs.iter().map(|&value| (value, extended.parameter(graph.ty(value).clone()))).collect();
    let inputs: Vec<Value> = wrt.iter().map(|&i| graph.parameters()[i]).collect();
    let gradients = reverse(&mut extended, &pairs, &inputs).unwrap();
    let results = inputs
        .iter()
        .zip(gradients)
        .map(|(&input, gradient)| gradient.unwrap_or_else(|| extended.splat(graph.ty(input), 0.0).unwrap()))
        .collect();
    extended.set_results(results);
    extended
}

pub fn dot(x: &[Array], y: &[Array]) -> f64 {
    let pair =
        |(x, y): (&Array, &Array)| x.to_f64s().iter().zip(y.to_f64s()).map(|(a, b)| a * b).sum::<f64>();
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(pair).sum()
}

fn random_like(types: Vec<&Type>, random: &mut Random) -> Vec<Array> {
    types.into_iter().map(|ty| array(random, ty, -1.0, 1.0)).collect()
}

fn floats(arrays: Vec<Array>) -> Vec<Array> {
    arrays.into_iter().filter(|array| array.ty().dtype.is_float()).collect()
}

/// Compares the gradient of `Σ ⟨cotangents, results⟩` with central differences, element by element.
pub fn check_reverse(name: &str, graph: &Graph, inputs: &[Array], wrt: &[usize], cotangents: &[Array]) {
    let analytic = evaluate(&gradient(graph, wrt), &[inputs, cotangents].concat());
    let objective = |inputs: &[Array]| dot(&floats(evaluate(graph, inputs)), cotangents);
    for (&i, analytic) in wrt.iter().zip(&analytic) {
        let elements = inputs[i].to_f64s();
        for (j, &gradient) in analytic.to_f64s().iter().enumerate() {
            let at = |delta: f64| {
                let mut moved = elements.clone();
                moved[j] += delta;
                let mut inputs = inputs.to_vec();
                inputs[i] = Array::from_f64s(inputs[i].ty().clone(), &moved);
                objective(&inputs)
            };
            let step = 1e-3;
            // Fourth order: the error is in step⁴.
            let expected =
                (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step);
            assert!(
                (gradient - expected).abs() <= 2e-8 * (1.0 + expected.abs()),
                "{name}: gradient of input {i}, element {j}: {gradient}, central differences {expected}"
            );
        }
    }
}

/// Compares ⟨cotangents, J·tangents⟩ by forward mode with ⟨Jᵀ·cotangents, tangents⟩ by reverse mode.
pub fn check_forward(
    name: &str,
    graph: &Graph,
    inputs: &[Array],
    wrt: &[usize],
    cotangents: &[Array],
    random: &mut Random,
) {
    let tangents = random_like(wrt.iter().map(|&i| inputs[i].ty()).collect(), random);
    let mut extended = graph.clone();
    let pairs: Vec<(Value, Value)> =
        wrt.iter().map(|&i| (graph.parameters()[i], extended.parameter(inputs[i].ty().clone()))).collect();
    let outputs: Vec<Value> =
        graph.results().iter().copied().filter(|&value| graph.ty(value).dtype.is_float()).collect();
    let results = forward(&mut extended, &pairs, &outputs).unwrap();
    let results = outputs
        .iter()
        .zip(results)
        .map(|(&output, tangent)| tangent.unwrap_or_else(|| extended.splat(graph.ty(output), 0.0).unwrap()))
        .collect();
    extended.set_results(results);
    let pushed = dot(cotangents, &evaluate(&extended, &[inputs, &tangents].concat()));
    let gradients = evaluate(&gradient(graph, wrt), &[inputs, cotangents].concat());
    let pulled = dot(&gradients, &tangents);
    assert!(
        (pushed - pulled).abs() <= 1e-10 * (1.0 + pushed.abs()),
        "{name}: forward mode {pushed}, reverse mode {pulled}"
    );
}

/// First derivatives in both modes, and second derivatives in both modes.
pub fn check(name: &str, graph: &Graph, inputs: &[Array], wrt: &[usize]) {
    let mut random = Random::new(0x5eed);
    check_first(name, graph, inputs, wrt, &mut random);
    let first = gradient(graph, wrt);
    let outputs = floats(evaluate(graph, inputs));
    let cotangents = random_like(outputs.iter().map(Array::ty).collect(), &mut random);
    let inputs = [inputs, &cotangents].concat();
    let wrt: Vec<usize> = wrt.iter().copied().chain(inputs.len() - cotangents.len()..inputs.len()).collect();
    check_first(&format!("gradient of {name}"), &first, &inputs, &wrt, &mut random);
}

/// First derivatives in both modes.
pub fn check_first(name: &str, graph: &Graph, inputs: &[Array], wrt: &[usize], random: &mut Random) {
    let outputs = floats(evaluate(graph, inputs));
    let cotangents = random_like(outputs.iter().map(Array::ty).collect(), random);
    check_reverse(name, graph, inputs, wrt, &cotangents);
    check_forward(name, graph, inputs, wrt, &cotangents, random);
}
