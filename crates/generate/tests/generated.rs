//! What the generators promise: programs that verify, print, read back, run and stay well-conditioned.

use tilewright_generate::{
    Config, Random, random_attention, random_attention_of, random_graph, random_inputs, random_scan_of,
};
use tilewright_interp::{Array, Precision, run};
use tilewright_ir::{Binary, Compare, DType, Graph, Op, Reduction, Unary, parse, verify};

const PROGRAMS: u64 = 400;

#[track_caller]
fn check(graph: &Graph, inputs: &[Array], seed: u64) -> (Vec<Array>, Vec<Array>) {
    verify(graph).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{graph}"));
    let read = parse(&graph.to_string()).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{graph}"));
    assert!(read == *graph, "seed {seed}: {graph}");
    let [exact, typed] = [Precision::Exact, Precision::Typed].map(|precision| {
        run(graph, inputs, precision).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{graph}"))
    });
    (exact, typed)
}

/// Root mean square of the difference beside that of the values, or of 1 where they are small.
fn relative_error(golden: &[f64], other: &[f64]) -> f64 {
    let square = |x: f64| if x.is_finite() { x * x } else { 0.0 };
    let error: f64 = golden.iter().zip(other).filter(|(x, y)| x != y).map(|(x, y)| (x - y).powi(2)).sum();
    let size: f64 = golden.iter().map(|&x| square(x)).sum::<f64>().max(golden.len() as f64).max(1.0);
    (error / size).sqrt()
}

#[test]
fn ordinary_programs() {
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        for differentiable in [false, true] {
            let config = Config { dtype, differentiable, operations: 15, ..Config::default() };
            for seed in 0..PROGRAMS / 4 {
                let graph = random_graph(seed, &config);
                let (exact, typed) = check(&graph, &random_inputs(&graph, seed), seed);
                for (golden, typed) in exact.iter().zip(&typed) {
                    let (golden_elements, typed_elements) = (golden.to_f64s(), typed.to_f64s());
                    assert!(golden_elements.iter().all(|x| x.is_finite()), "seed {seed}: {graph}");
                    if !golden.ty().dtype.is_float() {
                        assert_eq!(golden, typed, "seed {seed}: {graph}");
                    }
                    let error = relative_error(&golden_elements, &typed_elements);
                    let limit = match dtype {
                        DType::F64 => 0.0,
                        DType::F32 => 1e-4,
                        _ => 1.0,
                    };
                    assert!(error <= limit, "seed {seed}: error {error}\n{graph}");
                }
            }
        }
    }
}

#[test]
fn attention_programs() {
    let mut empty_rows = 0;
    for seed in 0..PROGRAMS {
        let (graph, inputs) = random_attention(seed);
        let (exact, typed) = check(&graph, &inputs, seed);
        let log_sum_exp = exact[1].to_f64s();
        assert!(exact[0].to_f64s().iter().all(|x| x.is_finite()), "seed {seed}: {graph}");
        assert!(
            log_sum_exp.iter().all(|&x| x.abs() < 60.0 || x == f64::NEG_INFINITY),
            "seed {seed}: {graph}"
        );
        empty_rows += log_sum_exp.iter().filter(|x| x.is_infinite()).count();
        let limit = match exact[0].ty().dtype {
            DType::F64 => 1e-300,
            DType::F32 => 1e-5,
            DType::F16 => 1e-2,
            _ => 1e-1,
        };
        for (golden, typed) in exact.iter().zip(&typed) {
            let error = relative_error(&golden.to_f64s(), &typed.to_f64s());
            assert!(error < limit, "seed {seed}: error {error}\n{graph}");
        }
    }
    assert!(empty_rows > 100);
}

/// A fold by halves equals the fold in order that the interpreter does.
#[test]
fn scans_are_associative() {
    for seed in 0..PROGRAMS {
        let (graph, inputs) = random_scan_of(DType::F64, seed);
        let (results, _) = check(&graph, &inputs, seed);
        let Op::AssociativeScan(scan) = &graph.nodes()[0].op else { panic!("a scan") };
        let (leaves, captures) = inputs.split_at(scan.leaves);
        let length = leaves[0].ty().shape[scan.axis];
        if length == 0 {
            continue;
        }
        let position = |arrays: &[Array], at: usize| -> Vec<Array> {
            arrays.iter().map(|array| slice(array, scan.axis, at)).collect()
        };
        let mut parts: Vec<Vec<Array>> = (0..length).map(|at| position(leaves, at)).collect();
        if scan.reverse {
            parts.reverse();
        }
        while parts.len() > 1 {
            let combine = |pair: &[Vec<Array>]| match pair {
                [left, right] => {
                    let arguments = [left, right, captures].concat();
                    run(&scan.combine, &arguments, Precision::Exact).unwrap()
                }
                _ => pair[0].clone(),
            };
            parts = parts.chunks(2).map(combine).collect();
        }
        let last = position(&results, if scan.reverse { 0 } else { length - 1 });
        for (by_halves, in_order) in parts[0].iter().zip(&last) {
            let error = relative_error(&in_order.to_f64s(), &by_halves.to_f64s());
            assert!(error < 1e-12, "seed {seed}: error {error}\n{graph}");
        }
    }
}

/// The part of an array at one position of an axis.
fn slice(array: &Array, axis: usize, at: usize) -> Array {
    let shape = &array.ty().shape;
    let inner: usize = shape[axis + 1..].iter().product();
    let elements = array.to_f64s();
    let part: Vec<f64> = elements
        .chunks(inner.max(1))
        .enumerate()
        .filter(|(i, _)| i % shape[axis] == at)
        .flat_map(|(_, block)| block.to_vec())
        .collect();
    let mut ty = array.ty().clone();
    ty.shape.remove(axis);
    Array::from_f64s(ty, &part)
}

/// The sum of the finite float results, each element with a weight, where the float inputs are moved by
/// `step` in a random direction. Moved inputs are not rounded to their types: the graph is read as `f64`.
fn weighted_sum(graph: &Graph, inputs: &[Array], step: f64) -> f64 {
    let mut random = Random::new(99);
    let moved: Vec<Array> = inputs
        .iter()
        .map(|input| {
            let moved: Vec<f64> =
                input.to_f64s().iter().map(|x| x + step * random.float(-1.0, 1.0)).collect();
            if input.ty().dtype.is_float() {
                Array::from_f64s(input.ty().clone(), &moved)
            } else {
                input.clone()
            }
        })
        .collect();
    let results = run(graph, &moved, Precision::Exact).unwrap();
    let floats = results.iter().filter(|result| result.ty().dtype.is_float());
    floats
        .flat_map(Array::to_f64s)
        .map(|x| random.float(-1.0, 1.0) * if x.is_finite() { x } else { 0.0 })
        .sum()
}

/// Central differences of two steps agree where nothing jumps or bends between them.
#[track_caller]
fn check_smooth(graph: &Graph, inputs: &[Array], seed: u64) {
    let slope =
        |step: f64| (weighted_sum(graph, inputs, step) - weighted_sum(graph, inputs, -step)) / (2.0 * step);
    let (wide, narrow) = (slope(2e-6), slope(1e-6));
    let tolerance = 1e-4 * (1.0 + narrow.abs());
    assert!((wide - narrow).abs() < tolerance, "seed {seed}: slopes {wide} and {narrow}\n{graph}");
}

#[test]
fn differentiable_programs_have_slopes() {
    let config = Config { dtype: DType::F64, differentiable: true, ..Config::default() };
    for seed in 0..PROGRAMS {
        let graph = random_graph(seed, &config);
        check_smooth(&graph, &random_inputs(&graph, seed), seed);
        let (graph, inputs) = random_attention_of(DType::F64, seed);
        check_smooth(&graph, &inputs, seed);
        let (graph, inputs) = random_scan_of(DType::F64, seed);
        check_smooth(&graph, &inputs, seed);
    }
}

#[test]
fn every_ordinary_operation_is_drawn() {
    let mut names: Vec<String> = (0..PROGRAMS)
        .flat_map(|seed| {
            let graph = random_graph(seed, &Config::default());
            graph.nodes().iter().map(|node| node.op.name()).collect::<Vec<_>>()
        })
        .collect();
    names.sort();
    names.dedup();
    let families = Unary::ALL.len() + Binary::ALL.len() + Compare::ALL.len() + Reduction::ALL.len();
    assert_eq!(names.len(), families + 17, "{names:?}");
}
