//! Plans of random programs, run by the definitions of plans, against the reference interpreter.

mod support;

use tilewright_generate::{Config, Random, random_graph, random_inputs};
use tilewright_interp::{Array, Precision};
use tilewright_ir::{DType, Graph, Scalar};
use tilewright_schedule::{Layout, lower, simplify};

/// Root mean square of the difference beside that of the golden values, or of 1 where they are small.
fn relative_error(golden: &[f64], other: &[f64]) -> f64 {
    let error: f64 = golden.iter().zip(other).filter(|(x, y)| x != y).map(|(x, y)| (x - y).powi(2)).sum();
    let size: f64 = golden.iter().map(|x| x * x).sum::<f64>().max(golden.len() as f64).max(1.0);
    (error / size).sqrt()
}

#[track_caller]
fn check(graph: &Graph, layouts: &[Layout], memory: &[Vec<Scalar>], inputs: &[Array], label: &str) {
    let exact = tilewright_interp::run(graph, inputs, Precision::Exact).expect("a sound program");
    let typed = tilewright_interp::run(graph, inputs, Precision::Typed).expect("a sound program");
    let simplified = simplify(graph).unwrap_or_else(|error| panic!("{label}: {error}\n{graph}"));
    tilewright_ir::verify(&simplified).unwrap_or_else(|error| panic!("{label}: {error}\n{graph}"));
    for graph in [graph, &simplified] {
        compare(graph, layouts, memory, &exact, &typed, label);
    }
}

fn compare(
    graph: &Graph,
    layouts: &[Layout],
    memory: &[Vec<Scalar>],
    exact: &[Array],
    typed: &[Array],
    label: &str,
) {
    let plan = lower(graph, layouts).unwrap_or_else(|error| panic!("{label}: {error}\n{graph}"));
    tilewright_plan::verify(&plan).unwrap_or_else(|error| panic!("{label}: {error}\n{graph}\n{plan}"));
    let results = support::run(&plan, graph, memory);
    for (i, ((golden, plain), found)) in exact.iter().zip(typed).zip(&results).enumerate() {
        let golden = golden.to_f64s();
        let allowed = 2.0 * relative_error(&golden, &plain.to_f64s()) + 1e-6;
        let allowed = if found.ty().dtype == DType::F64 { 1e-12 } else { allowed };
        let error = relative_error(&golden, &found.to_f64s());
        assert!(
            error <= allowed,
            "{label}: result {i} is off by {error:e}, not {allowed:e}\n{graph}\n{plan}"
        );
    }
}

fn elements(array: &Array) -> Vec<Scalar> {
    let dtype = array.ty().dtype;
    array.to_bytes().chunks(dtype.size()).map(|bytes| Scalar::from_bytes(dtype, bytes)).collect()
}

#[test]
fn packed_inputs() {
    for (dtype, operations) in [(DType::F64, 8), (DType::F64, 25), (DType::F32, 15), (DType::BF16, 12)] {
        let config = Config { dtype, operations, ..Config::default() };
        for seed in 0..150 {
            let graph = random_graph(seed, &config);
            let inputs = random_inputs(&graph, seed);
            let layouts: Vec<Layout> =
                graph.parameter_types().iter().map(|ty| Layout::packed(&ty.shape)).collect();
            let memory: Vec<Vec<Scalar>> = inputs.iter().map(elements).collect();
            check(&graph, &layouts, &memory, &inputs, &format!("{dtype} seed {seed}"));
        }
    }
}

/// Inputs with gaps, backwards, transposed and repeated are read where they lie.
#[test]
fn strided_inputs() {
    let config = Config { operations: 12, dtype: DType::F64, ..Config::default() };
    for seed in 0..150 {
        let graph = random_graph(seed, &config);
        let mut random = Random::new(seed);
        let mut inputs = random_inputs(&graph, seed);
        let (mut layouts, mut memory) = (Vec::new(), Vec::new());
        for input in &mut inputs {
            let (layout, elements) = scattered(&mut random, input);
            layouts.push(layout);
            memory.push(elements);
        }
        check(&graph, &layouts, &memory, &inputs, &format!("seed {seed}"));
    }
}

/// A random layout, and memory in which the array lies so. Where the layout repeats an axis, the array
/// is made to repeat too.
fn scattered(random: &mut Random, array: &mut Array) -> (Layout, Vec<Scalar>) {
    let shape = array.ty().shape.clone();
    let mut order: Vec<usize> = (0..shape.len()).collect();
    order.sort_by_key(|_| random.below(1000));
    let (mut layout, mut size) = (Layout { strides: vec![0; shape.len()], offset: 3 }, 1);
    for axis in order {
        let reach = size as isize * (shape[axis] as isize - 1).max(0);
        match random.below(4) {
            0 => continue,
            1 => (layout.strides[axis], layout.offset) = (-(size as isize), layout.offset + reach),
            _ => layout.strides[axis] = size as isize,
        }
        size = (size * shape[axis].max(1)) + random.below(3);
    }
    let place = |position: usize| {
        let (mut rest, mut at) = (position, layout.offset);
        for (&extent, &stride) in shape.iter().zip(&layout.strides).rev() {
            at += stride * (rest % extent) as isize;
            rest /= extent;
        }
        at as usize
    };
    let mut memory = vec![Scalar::Integer(0); size + 8];
    for (position, element) in elements(array).into_iter().enumerate() {
        memory[place(position)] = element;
    }
    let bytes: Vec<u8> = (0..array.ty().elements())
        .flat_map(|position| memory[place(position)].to_bytes(array.ty().dtype))
        .collect();
    *array = Array::from_bytes(array.ty().clone(), &bytes);
    (layout, memory)
}
