//! Random programs through the whole pipeline, forward and backward: against the reference interpreter, and the
//! same bits on any number of threads. `TILEWRIGHT_CASES` sets how many of each kind.

use tilewright::pipeline::{Layout, Program, compile};
use tilewright::{DType, Graph, Type};
use tilewright_autodiff::reverse;
use tilewright_generate::{Config, Random, random_attention, random_graph, random_inputs, random_scan};
use tilewright_interp::{Array, Precision};

use crate::golden;

fn cases() -> u64 {
    std::env::var("TILEWRIGHT_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200)
}

/// Bytes at an aligned place.
struct Bytes {
    words: Vec<u64>,
    length: usize,
}

impl Bytes {
    fn new(bytes: &[u8]) -> Bytes {
        let mut aligned = Bytes { words: vec![0; bytes.len().div_ceil(8)], length: bytes.len() };
        aligned.bytes_mut().copy_from_slice(bytes);
        aligned
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.length]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.length]
    }
}

fn run(program: &Program, inputs: &[Bytes], threads: usize) -> tilewright::Result<Vec<Vec<u8>>> {
    let mut outputs: Vec<Bytes> =
        program.outputs().iter().map(|ty| Bytes::new(&vec![0; ty.bytes()])).collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(Bytes::bytes).collect();
    let mut places: Vec<&mut [u8]> = outputs.iter_mut().map(Bytes::bytes_mut).collect();
    program.run(&inputs, &mut places, threads)?;
    Ok(outputs.iter().map(|output| output.bytes().to_vec()).collect())
}

/// Appends the gradients of all floating inputs, for random cotangents of the floating results, which become
/// further inputs.
fn with_gradients(mut graph: Graph, mut inputs: Vec<Array>, seed: u64) -> (Graph, Vec<Array>) {
    let mut random = Random::new(seed ^ 0xc07);
    let mut results = graph.results().to_vec();
    let differentiated = graph.parameters().to_vec();
    let differentiated: Vec<_> =
        differentiated.into_iter().filter(|&value| graph.ty(value).dtype.is_float()).collect();
    let mut cotangents = Vec::new();
    for &result in &results {
        let ty = graph.ty(result).clone();
        if ty.dtype.is_float() {
            let array = golden::random(&mut random, ty.dtype, &ty.shape, 0);
            inputs.push(golden::interpreted(&array));
            cotangents.push((result, graph.parameter(ty)));
        }
    }
    let gradients =
        reverse(&mut graph, &cotangents, &differentiated).expect("generated programs differentiate");
    results.extend(gradients.into_iter().flatten());
    graph.set_results(results);
    (graph, inputs)
}

fn check(label: &str, graph: Graph, inputs: &[Array]) {
    let layouts: Vec<Layout> = graph.parameter_types().iter().map(|ty| Layout::packed(&ty.shape)).collect();
    let program = compile(graph, &layouts).unwrap_or_else(|error| panic!("{label}: {error}"));
    let graph = &program.traced;
    let bytes: Vec<Bytes> = inputs.iter().map(|input| Bytes::new(&input.to_bytes())).collect();
    let found = run(&program, &bytes, 1).unwrap_or_else(|error| panic!("{label}: {error}\n{graph}"));
    let golden = tilewright_interp::run(graph, inputs, Precision::Exact).expect("a sound program");
    let plain = tilewright_interp::run(graph, inputs, Precision::Typed).expect("a sound program");
    let narrow = |dtype: &DType| matches!(dtype, DType::BF16 | DType::F16);
    let float = |dtype: &DType| dtype.is_float();
    let types = || {
        inputs.iter().map(|input| input.ty().dtype).chain(program.outputs().into_iter().map(|ty| ty.dtype))
    };
    let coarsest =
        types().find(narrow).or(types().find(|dtype| *dtype == DType::F32)).or(types().find(float));
    let coarsest = coarsest.unwrap_or(DType::F64);
    for (i, (golden, plain)) in golden.iter().zip(&plain).enumerate() {
        let Type { dtype, shape } = golden.ty().clone();
        let found = tilewright::Array::from_bytes(dtype, shape, &found[i]).unwrap();
        let label = format!("{label}, result {i} of\n{graph}");
        let sampled = |seed| {
            let results = tilewright_interp::run(graph, inputs, Precision::Sampled(seed));
            results.expect("a sound program")[i].to_f64s()
        };
        golden::check_small(&label, &found, &golden.to_f64s(), &plain.to_f64s(), coarsest, sampled);
    }
    for threads in [2, 3, 8] {
        assert!(run(&program, &bytes, threads).unwrap() == found, "{label} on {threads} threads\n{graph}");
    }
}

#[test]
fn attention() {
    for seed in 0..cases() {
        let (graph, inputs) = random_attention(seed);
        let (graph, inputs) = with_gradients(graph, inputs, seed);
        check(&format!("attention {seed}"), graph, &inputs);
    }
}

#[test]
fn ordinary_operations() {
    for seed in 0..cases() {
        let dtype =
            Random::new(seed ^ 0x9a).pick(&[DType::F64, DType::F64, DType::F32, DType::F32, DType::BF16]);
        let config =
            Config { dtype, differentiable: true, operations: 6 + seed as usize % 16, ..Config::default() };
        let graph = random_graph(seed, &config);
        let inputs = random_inputs(&graph, seed);
        let (graph, inputs) = with_gradients(graph, inputs, seed);
        check(&format!("graph {seed}"), graph, &inputs);
    }
}

#[test]
fn scans() {
    for seed in 0..cases() {
        let (graph, inputs) = random_scan(seed);
        let (graph, inputs) = with_gradients(graph, inputs, seed);
        check(&format!("scan {seed}"), graph, &inputs);
    }
}

#[test]
fn second_derivatives_of_scans() {
    for seed in 0..cases() / 2 {
        let (graph, inputs) = random_scan(seed);
        let (graph, inputs) = with_gradients(graph, inputs, seed);
        let (graph, inputs) = with_gradients(graph, inputs, seed + 1);
        check(&format!("scan {seed}, twice"), graph, &inputs);
    }
}
