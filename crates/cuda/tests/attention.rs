//! Attention on the GPU engine's kernels, against the interpreter: generated programs, forward and backward.

mod host;

use tilewright_autodiff::reverse;
use tilewright_cuda::codegen::{Program, Target, lower};
use tilewright_generate::{Random, random_attention_of};
use tilewright_interp::{Array, Precision};
use tilewright_ir::{DType, Graph, Type};
use tilewright_plan::{Kernel, Plan};
use tilewright_schedule::{Layout, simplify};

/// A program and its inputs.
struct Case {
    label: String,
    graph: Graph,
    inputs: Vec<Array>,
    plan: Plan,
    program: Program,
}

fn plan_of(graph: &Graph) -> Plan {
    let layouts: Vec<Layout> = graph.parameter_types().iter().map(|ty| Layout::packed(&ty.shape)).collect();
    tilewright_schedule::lower(&simplify(graph).unwrap(), &layouts).unwrap()
}

/// Appends the gradients of all floating inputs, for random cotangents, which become further inputs.
fn with_gradients(mut graph: Graph, mut inputs: Vec<Array>, seed: u64) -> (Graph, Vec<Array>) {
    let mut random = Random::new(seed ^ 0xc07);
    let mut results = graph.results().to_vec();
    let wanted: Vec<_> =
        graph.parameters().iter().copied().filter(|&value| graph.ty(value).dtype.is_float()).collect();
    let mut cotangents = Vec::new();
    for &result in &results {
        let ty = graph.ty(result).clone();
        let elements: Vec<f64> = (0..ty.elements()).map(|_| random.float(-1.0, 1.0)).collect();
        inputs.push(Array::from_f64s(ty.clone(), &elements));
        cotangents.push((result, graph.parameter(ty)));
    }
    results.extend(reverse(&mut graph, &cotangents, &wanted).unwrap().into_iter().flatten());
    graph.set_results(results);
    (graph, inputs)
}

fn root_mean_square(x: &[f64], y: &[f64]) -> f64 {
    let square = |(x, y): (&f64, &f64)| if x == y { 0.0 } else { (x - y) * (x - y) };
    (x.iter().zip(y).map(square).sum::<f64>() / x.len().max(1) as f64).sqrt()
}

/// The golden rule: the error of each result, relative to that of a plain evaluation in its type.
fn check(case: &Case, found: &[Vec<u8>]) {
    let golden = tilewright_interp::run(&case.graph, &case.inputs, Precision::Exact).unwrap();
    let plain = tilewright_interp::run(&case.graph, &case.inputs, Precision::Typed).unwrap();
    for (i, (golden, plain)) in golden.iter().zip(&plain).enumerate() {
        let ty: Type = golden.ty().clone();
        let found = Array::from_bytes(ty, &found[i]).to_f64s();
        let (golden, plain) = (golden.to_f64s(), plain.to_f64s());
        let finite: Vec<f64> = golden.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).collect();
        let size = root_mean_square(&finite, &vec![0.0; finite.len()]).max(1.0);
        let narrow = case.inputs[0].ty().dtype.size() == 2;
        let (factor, least) = if narrow { (1.35, 2e-3) } else { (4.0, 1e-6) };
        let error = root_mean_square(&found, &golden);
        let allowed = factor * root_mean_square(&plain, &golden) + least * size;
        assert!(
            error <= allowed,
            "{}, result {i}: error {error:e}, allowed {allowed:e}\n{}",
            case.label,
            case.graph
        );
    }
}

fn cases(dtype: DType, seeds: std::ops::Range<u64>) -> Vec<Case> {
    let mut cases = Vec::new();
    for seed in seeds {
        let (graph, inputs) = random_attention_of(dtype, seed);
        let (graph, inputs) = with_gradients(graph, inputs, seed);
        let plan = plan_of(&graph);
        if plan.kernels.iter().any(|kernel| matches!(kernel, Kernel::Loops(_))) {
            continue;
        }
        let program = lower(&plan, Target::HOPPER).unwrap();
        cases.push(Case { label: format!("{dtype} {seed}"), graph, inputs, plan, program });
    }
    cases
}

fn run(cases: &[Case]) {
    if !host::available() {
        return;
    }
    eprintln!("{} cases", cases.len());
    let kernels = host::Kernels::compile(cases.iter().map(|case| &case.program));
    for case in cases {
        let inputs: Vec<Vec<u8>> = case.inputs.iter().map(Array::to_bytes).collect();
        let (found, fault) = kernels.run(&case.plan, &case.program, &inputs);
        assert_eq!(fault, u64::MAX, "{}", case.label);
        check(case, &found);
    }
}

#[test]
fn generated_programs_in_f32() {
    run(&cases(DType::F32, 0..12));
}

#[test]
fn generated_programs_in_bf16() {
    run(&cases(DType::BF16, 0..12));
}
