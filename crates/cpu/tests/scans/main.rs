//! Scans on the CPU, from the graph to the bits: against the sequential fold in `f64`, for any number of
//! threads and every instruction set of the machine.

mod combines;

use combines::{Combine, FAMILY};
use tilewright_cpu::Isa;
use tilewright_generate::{Random, gated_recurrence, random_inputs, random_scan};
use tilewright_interp::{Array, Precision};
use tilewright_ir::{AssociativeScan, DType, Graph, Op, Type, Value};
use tilewright_schedule::{Layout, lower};

fn packed(shape: &[usize]) -> Layout {
    let mut strides = vec![1isize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis] as isize;
    }
    Layout { strides, offset: 0 }
}

/// Runs a graph on packed inputs, and gives the bytes of its results.
fn run_bytes(graph: &Graph, inputs: &[Array], threads: usize, isa: Isa) -> Vec<Vec<u8>> {
    let layouts: Vec<Layout> = inputs.iter().map(|input| packed(&input.ty().shape)).collect();
    let plan = lower(graph, &layouts).expect("the graph can be lowered");
    let bytes: Vec<Vec<u64>> = inputs.iter().map(|input| aligned(&input.to_bytes())).collect();
    let bytes: Vec<&[u8]> = bytes.iter().zip(inputs).map(|(b, i)| &as_bytes(b)[..i.ty().bytes()]).collect();
    let types: Vec<Type> = graph.result_types().into_iter().cloned().collect();
    let mut outputs: Vec<Vec<u64>> = types.iter().map(|ty| vec![0; ty.bytes().div_ceil(8)]).collect();
    let mut views: Vec<&mut [u8]> =
        outputs.iter_mut().zip(&types).map(|(o, ty)| &mut as_bytes_mut(o)[..ty.bytes()]).collect();
    tilewright_cpu::run_with(&plan, &bytes, &mut views, threads, isa).expect("the plan runs");
    views.into_iter().map(|view| view.to_vec()).collect()
}

fn aligned(bytes: &[u8]) -> Vec<u64> {
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(whole);
    }
    words
}

fn as_bytes(words: &[u64]) -> &[u8] {
    // SAFETY: any bytes of plain numbers may be read.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 8) }
}

fn as_bytes_mut(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: any bytes may be written to plain numbers.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 8) }
}

/// How far a result may be from the exact one, relative to the largest exact one.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 2e-5,
        DType::F16 => 2e-3,
        DType::BF16 => 1.6e-2,
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => 0.0,
    }
}

fn check(graph: &Graph, inputs: &[Array], what: &str) {
    let expected = tilewright_interp::run(graph, inputs, Precision::Exact).expect("the graph is well-formed");
    let isas = Isa::available();
    for &isa in &isas {
        let first = run_bytes(graph, inputs, 1, isa);
        for (number, (bytes, expected)) in first.iter().zip(&expected).enumerate() {
            let found = Array::from_bytes(expected.ty().clone(), bytes).to_f64s();
            let exact = expected.to_f64s();
            let scale = exact.iter().filter(|x| x.is_finite()).fold(1.0, |m: f64, x| m.max(x.abs()));
            for (i, (&found, &exact)) in found.iter().zip(&exact).enumerate() {
                let near = (found - exact).abs() <= tolerance(expected.ty().dtype) * scale;
                let same = found == exact || (found.is_nan() && exact.is_nan());
                assert!(
                    near || same,
                    "{what}, {}: result {number}, element {i}: {found}, not {exact}",
                    isa.name()
                );
            }
        }
        for threads in [2, 3, 8] {
            assert_eq!(run_bytes(graph, inputs, threads, isa), first, "{what}: {threads} threads");
        }
    }
}

/// A graph of one scan that gives the leaves in `shown`.
fn scan(
    combine: &Combine,
    slice: &[usize],
    axis: usize,
    length: usize,
    reverse: bool,
    shown: &[usize],
) -> Graph {
    let region = (combine.region)(slice);
    let slices: Vec<Type> = region.result_types().into_iter().cloned().collect();
    let leaves: Vec<Type> = slices
        .iter()
        .map(|ty| {
            let mut shape = ty.shape.clone();
            shape.insert(axis.min(shape.len()), length);
            Type::new(ty.dtype, shape)
        })
        .collect();
    let captures: Vec<Type> =
        region.parameter_types()[2 * leaves.len()..].iter().map(|&ty| ty.clone()).collect();
    let mut graph = Graph::new();
    let operands: Vec<Value> = leaves.iter().chain(&captures).map(|ty| graph.parameter(ty.clone())).collect();
    let op = AssociativeScan { combine: region, leaves: leaves.len(), axis, reverse };
    let results = graph.add(Op::AssociativeScan(Box::new(op)), &operands, None).expect("well-formed");
    graph.set_results(shown.iter().map(|&i| results[i]).collect());
    graph
}

fn inputs(graph: &Graph, random: &mut Random) -> Vec<Array> {
    graph
        .parameter_types()
        .into_iter()
        .map(|ty| {
            let count = ty.elements();
            match ty.dtype {
                DType::F64 | DType::F32 | DType::BF16 | DType::F16 => {
                    let elements: Vec<f64> = (0..count).map(|_| random.float(-0.9, 0.9)).collect();
                    Array::from_f64s(ty.clone(), &elements)
                }
                DType::Bool => {
                    let elements: Vec<i64> = (0..count).map(|_| random.once_in(7) as i64).collect();
                    Array::from_i64s(ty.clone(), &elements)
                }
                DType::I64 | DType::I32 | DType::U8 => {
                    let elements: Vec<i64> = (0..count).map(|_| random.below(9) as i64 - 4).collect();
                    Array::from_i64s(ty.clone(), &elements)
                }
            }
        })
        .collect()
}

#[test]
fn random_scans_are_the_sequential_fold() {
    for seed in 0..200 {
        let (graph, inputs) = random_scan(seed);
        check(&graph, &inputs, &format!("seed {seed}"));
    }
}

#[test]
fn every_length_either_way_along_any_axis() {
    let mut random = Random::new(7);
    for combine in &FAMILY {
        for length in [0, 1, 2, 3, 5, 17, 128, 1000, 4097] {
            let slice: &[usize] = random.pick(&[&[], &[3], &[2, 5], &[17]]);
            let axis = random.below(slice.len() + 1);
            let reverse = random.once_in(2);
            let leaves = (combine.region)(slice).results().len();
            let shown: Vec<usize> = if random.once_in(2) { (0..leaves).collect() } else { vec![leaves - 1] };
            let graph = scan(combine, slice, axis, length, reverse, &shown);
            let inputs = inputs(&graph, &mut random);
            let what = format!("{} of {length} along {axis} of {slice:?}, reverse {reverse}", combine.name);
            check(&graph, &inputs, &what);
        }
    }
}

#[test]
fn long_rows_are_cut_into_chunks() {
    let mut random = Random::new(8);
    for combine in &FAMILY {
        for (slice, axis, length) in [(&[][..], 0, 70_001), (&[2][..], 1, 40_000), (&[40][..], 0, 5_000)] {
            let graph = scan(combine, slice, axis, length, random.once_in(2), &[0]);
            check(&graph, &inputs(&graph, &mut random), &format!("{} of {length}", combine.name));
        }
    }
}

#[test]
fn strided_inputs_are_read_where_they_are() {
    let mut random = Random::new(9);
    for combine in FAMILY.iter().filter(|combine| combine.name != "two by two") {
        let graph = scan(combine, &[6], 0, 50, random.once_in(2), &[0]);
        let packed_inputs = inputs(&graph, &mut random);
        let expected = tilewright_interp::run(&graph, &packed_inputs, Precision::Exact).unwrap();
        // Every input [50, 6] lies transposed, backwards along one axis.
        let mut layouts = Vec::new();
        let mut stored = Vec::new();
        for input in &packed_inputs {
            if input.ty().shape != [50, 6] {
                layouts.push(packed(&input.ty().shape));
                stored.push(aligned(&input.to_bytes()));
                continue;
            }
            let size = input.ty().dtype.size();
            let bytes = input.to_bytes();
            let mut moved = vec![0; bytes.len()];
            for (i, j) in (0..50).flat_map(|i| (0..6).map(move |j| (i, j))) {
                let (from, to) = ((i * 6 + j) * size, (j * 50 + 49 - i) * size);
                moved[to..to + size].copy_from_slice(&bytes[from..from + size]);
            }
            layouts.push(Layout { strides: vec![-1, 50], offset: 49 });
            stored.push(aligned(&moved));
        }
        let plan = lower(&graph, &layouts).unwrap();
        let bytes: Vec<&[u8]> =
            stored.iter().zip(&packed_inputs).map(|(b, i)| &as_bytes(b)[..i.ty().bytes()]).collect();
        let ty = expected[0].ty();
        let mut output = vec![0u64; ty.bytes().div_ceil(8)];
        let mut views = [&mut as_bytes_mut(&mut output)[..ty.bytes()]];
        tilewright_cpu::run(&plan, &bytes, &mut views, 2).unwrap();
        let found = Array::from_bytes(ty.clone(), views[0]).to_f64s();
        for (found, exact) in found.iter().zip(expected[0].to_f64s()) {
            assert!((found - exact).abs() <= tolerance(ty.dtype) * exact.abs().max(1.0), "{}", combine.name);
        }
    }
}

#[test]
fn gradients_run() {
    let mut random = Random::new(10);
    for combine in FAMILY.iter().filter(|combine| combine.float) {
        for length in [1, 2, 5, 300] {
            let slice: &[usize] = random.pick(&[&[], &[3], &[2, 5]]);
            let mut graph =
                scan(combine, slice, random.below(slice.len() + 1), length, random.once_in(2), &[0]);
            let parameters = graph.parameters().to_vec();
            let output = graph.results()[0];
            let cotangent = graph.parameter(graph.ty(output).clone());
            let wanted: Vec<Value> =
                parameters.into_iter().filter(|&value| graph.ty(value).dtype.is_float()).collect();
            let gradients =
                tilewright_autodiff::reverse(&mut graph, &[(output, cotangent)], &wanted).unwrap();
            graph.set_results(gradients.into_iter().flatten().collect());
            let inputs = inputs(&graph, &mut random);
            check(&graph, &inputs, &format!("gradient of {} of {length}", combine.name));
        }
    }
}

/// What scans make themselves of narrow gates, at positions a step apart and where there are none.
#[test]
fn gates_are_read_where_they_are() {
    for (shape, reverse) in
        [([2, 1, 40], false), ([1, 2, 70], true), ([2, 300, 33], true), ([70, 90, 1], false)]
    {
        let mut graph = gated_recurrence(shape, reverse);
        let (gates, output) = (graph.parameters()[0], graph.results()[0]);
        let cotangent = graph.parameter(graph.ty(output).clone());
        let gradients = tilewright_autodiff::reverse(&mut graph, &[(output, cotangent)], &[gates]).unwrap();
        graph.set_results(gradients.into_iter().flatten().chain([output]).collect());
        check(&graph, &random_inputs(&graph, 12), &format!("gated recurrence of {shape:?}"));
    }
}

#[test]
fn what_is_too_large_for_a_cache_is_streamed_over_an_outer_axis() {
    let mut random = Random::new(11);
    // Rows of whole cache lines, of whole vectors, and of neither.
    for (lanes, length) in [(2064, 1100), (1032, 2100), (1403, 1501)] {
        for combine in FAMILY.iter().filter(|combine| ["sum", "affine"].contains(&combine.name)) {
            let reverse = random.once_in(2);
            let graph =
                scan(combine, &[lanes], 0, length, reverse, &[(combine.region)(&[1]).results().len() - 1]);
            check(&graph, &inputs(&graph, &mut random), &format!("{} of {length} by {lanes}", combine.name));
        }
    }
}
