//! Scans in the shapes that the GPU engines cut differently: steps or rows next to each other, many rows or few long
//! ones, states of one number and of many, and lengths on both sides of a run, a tile, a group and a stretch of tiles.

use tilewright_cuda::codegen::Step;
use tilewright_generate::{Random, gated_recurrence, random_inputs};
use tilewright_interp::Array;
use tilewright_ir::{DType, parse};
use tilewright_schedule::Layout;

use crate::case::{Case, with_gradients};
use crate::host;

const SUM: &str = "(%l: T[], %r: T[]) -> (%s) { %s = add %l, %r }";
const RECURRENCE: &str = "(%a: T[], %b: T[], %c: T[], %d: T[]) -> (%p, %y) \
    { %p = mul %a, %c\n %m = mul %c, %b\n %y = add %m, %d }";

/// A scan of some leaves, all of one shape.
struct Scan {
    name: &'static str,
    leaves: usize,
    combine: &'static str,
    dtype: DType,
    shape: Vec<usize>,
    axis: usize,
    reverse: bool,
    gradients: bool,
}

impl Scan {
    fn case(&self) -> Case {
        let Scan { name, leaves, combine, dtype, shape, axis, reverse, gradients } = self;
        let ty = format!("{dtype}{shape:?}");
        // What is combined lacks the scan's axis.
        let rest: Vec<usize> = [&shape[..*axis], &shape[axis + 1..]].concat();
        let element = format!("{dtype}{rest:?}");
        let list = |letter: &str, ty: &str| {
            (0..*leaves).map(|i| format!("%{letter}{i}{ty}")).collect::<Vec<_>>().join(", ")
        };
        let text = format!(
            "graph({}) -> ({}) {{\n {} = associative_scan {} leaves={leaves} axis={axis} reverse={reverse} combine{} }}",
            list("x", &format!(": {ty}")),
            list("y", ""),
            list("y", ""),
            list("x", ""),
            combine.replace("T[]", &element)
        );
        let graph = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let mut random = Random::new(shape.iter().sum::<usize>() as u64);
        let mut inputs = Vec::new();
        for ty in graph.parameter_types() {
            let elements: Vec<f64> = (0..ty.elements()).map(|_| random.float(-0.9, 0.9)).collect();
            inputs.push(Array::from_f64s(ty.clone(), &elements));
        }
        let label = format!("{name} of {dtype} over axis {axis} of {shape:?}, reverse {reverse}");
        if !gradients {
            return Case::new(label, graph, inputs);
        }
        let (graph, inputs) = with_gradients(graph, inputs, &mut random);
        Case::new(label, graph, inputs)
    }
}

fn sum(dtype: DType, shape: &[usize], axis: usize, reverse: bool) -> Scan {
    let gradients = dtype == DType::F32;
    Scan { name: "sum", leaves: 1, combine: SUM, dtype, shape: shape.to_vec(), axis, reverse, gradients }
}

fn recurrence(dtype: DType, shape: &[usize], axis: usize, reverse: bool) -> Scan {
    let (name, shape) = ("recurrence", shape.to_vec());
    Scan { name, leaves: 2, combine: RECURRENCE, dtype, shape, axis, reverse, gradients: true }
}

/// Sums and recurrences by each engine, with gradients: kernels that have to be fast.
pub fn tuned() -> Vec<Case> {
    let shapes: [(&[usize], usize); 4] =
        [(&[600, 700], 1), (&[2, 20_000], 1), (&[2, 65, 4096], 1), (&[3000, 33], 0)];
    let sums = shapes.iter().map(|&(shape, axis)| sum(DType::F32, shape, axis, false).case());
    let recurrences = shapes.iter().map(|&(shape, axis)| recurrence(DType::F32, shape, axis, false).case());
    sums.chain(recurrences).collect()
}

fn check(cases: &[Case]) {
    let bytes = |case: &Case| case.inputs.iter().map(Array::to_bytes).collect();
    let Some(found) = host::run(cases.iter().map(|case| (&case.plan, &case.program, bytes(case)))) else {
        return;
    };
    for (case, (found, fault)) in cases.iter().zip(found) {
        assert_eq!(case.program.fault(fault), None, "{}", case.label);
        case.check(&found);
    }
}

/// Whether a case has a scan whose text says so.
fn has(case: &Case, words: &str) -> bool {
    case.program.steps.iter().any(|(_, step)| match step {
        Step::Launch(launch) => launch.source.entry == "scan" && launch.source.body.contains(words),
        Step::Zero { .. } => false,
    })
}

#[test]
fn rows_of_every_length() {
    let mut cases = Vec::new();
    for (i, length) in [1, 2, 3, 5, 17, 128, 513, 1000, 4097].into_iter().enumerate() {
        cases.push(recurrence(DType::F32, &[2, length], 1, i % 2 == 1).case());
        cases.push(sum(DType::BF16, &[3, length], 1, i % 2 == 0).case());
    }
    cases.push(recurrence(DType::F64, &[3, 130], 1, false).case());
    cases.push(sum(DType::I64, &[2, 700], 1, true).case());
    check(&cases);
}

#[test]
fn rows_next_to_each_other() {
    let mut cases = Vec::new();
    for (i, length) in [1, 3, 17, 65, 130].into_iter().enumerate() {
        cases.push(recurrence(DType::F32, &[2, length, 37], 1, i % 2 == 1).case());
        cases.push(sum(DType::F16, &[length, 33], 0, i % 2 == 0).case());
    }
    assert!(cases.iter().all(|case| has(case, "a lane for each row") || case.label.contains("[1, 33]")));
    check(&cases);
}

#[test]
fn few_long_rows_look_back() {
    let cases = [
        // More tiles than a group has, of rows whose steps or whose neighbours lie side by side.
        recurrence(DType::F32, &[2, 4 * 4096 + 5], 1, false).case(),
        sum(DType::F32, &[3, 5 * 4096 + 1], 1, true).case(),
        recurrence(DType::F32, &[64 * 40 + 3, 5], 0, true).case(),
        sum(DType::I32, &[64 * 70, 3], 0, false).case(),
    ];
    assert!(cases.iter().all(|case| has(case, "looks back")));
    check(&cases);
}

/// Elements of two and eight bytes, and states of words without flags.
#[test]
fn tiles_of_every_type() {
    let cases = [
        sum(DType::BF16, &[3, 4 * 4096 + 7], 1, true).case(),
        sum(DType::I64, &[1, 4 * 4096 + 2], 1, false).case(),
        recurrence(DType::F64, &[2, 4 * 2048 + 1], 1, false).case(),
        recurrence(DType::F16, &[2, 4 * 4096 + 3], 1, true).case(),
    ];
    assert!(cases.iter().all(|case| has(case, "a tile looks back")));
    check(&cases);
}

#[test]
fn whole_rows_where_there_are_many() {
    let many = recurrence(DType::F32, &[600, 700], 1, false);
    let case = Scan { gradients: false, ..many }.case();
    assert!(has(&case, "a block does whole rows"));
    check(&[case]);
}

/// States of nine numbers have small tiles, so that there are stretches of groups of tiles.
#[test]
fn stretches_of_matrix_products() {
    let mut combine = String::from("(");
    let names = |letter: &str| (0..9).map(|i| format!("%{letter}{i}: T[]")).collect::<Vec<_>>().join(", ");
    let results = (0..9).map(|i| format!("%y{i}")).collect::<Vec<_>>().join(", ");
    combine += &format!("{}, {}) -> ({results}) {{\n", names("l"), names("r"));
    for (row, column) in (0..9).map(|i| (i / 3, i % 3)) {
        // r · l: right after left.
        for k in 0..3 {
            combine += &format!("%t{row}{column}{k} = mul %r{}, %l{}\n", 3 * row + k, 3 * k + column);
        }
        combine += &format!("%u{row}{column} = add %t{row}{column}0, %t{row}{column}1\n");
        combine += &format!("%y{} = add %u{row}{column}, %t{row}{column}2\n", 3 * row + column);
    }
    combine += "}";
    let scan = |shape: &[usize], axis| Scan {
        name: "3×3 products",
        leaves: 9,
        combine: Box::leak(combine.clone().into_boxed_str()),
        dtype: DType::F32,
        shape: shape.to_vec(),
        axis,
        reverse: axis == 0,
        gradients: false,
    };
    let cases = [scan(&[8 * 1100 + 3, 2], 0).case(), scan(&[1, 256 * 66 + 9], 1).case()];
    assert!(has(&cases[0], "a lane for each row") && cases.iter().all(|case| has(case, "looks back")));
    check(&cases);
}

/// A layer of a gated recurrence and its gradient: what both scans make of narrow gates, some of them a step apart.
fn gated(shape: [usize; 3], reverse: bool) -> Case {
    let graph = gated_recurrence(shape, reverse);
    let inputs = random_inputs(&graph, shape.iter().sum::<usize>() as u64);
    let (graph, inputs) = with_gradients(graph, inputs, &mut Random::new(1));
    Case::new(format!("gated recurrence of {shape:?}, reverse {reverse}"), graph, inputs)
}

#[test]
fn runs_that_sources_share() {
    let cases = [
        gated([2, 1, 33], false),
        gated([2, 2, 33], true),
        gated([1, 66, 70], true),
        gated([3, 200, 40], false),
        // Few rows, that are cut.
        gated([1, 64 * 33 + 5, 64], false),
    ];
    for case in &cases {
        assert_eq!(case.plan.kernels.len(), 2, "{}\n{}", case.label, case.plan);
    }
    assert!(cases[1..].iter().all(|case| has(case, "load_steps(loaded.")));
    check(&cases);
}

/// The width of lanes' rows is part of the text, how many there are and how long is not.
#[test]
fn a_gated_text_does_not_change_with_lengths() {
    let bodies = |shape| -> Vec<String> {
        let launches = gated(shape, false).program.steps.into_iter().filter_map(|(_, step)| match step {
            Step::Launch(launch) => Some(launch.source.body.clone()),
            Step::Zero { .. } => None,
        });
        launches.collect()
    };
    assert_eq!(bodies([2, 300, 64]), bodies([3, 501, 64]));
    assert_ne!(bodies([2, 300, 64]), bodies([2, 300, 80]));
}

/// What lies otherwise is read where it lies: nothing is copied, and unaligned rows are right.
#[test]
fn strided_rows() {
    check_strided(515);
}

#[test]
fn strided_rows_in_tiles() {
    check_strided(4 * 4096 + 3);
}

fn check_strided(length: usize) {
    let case = recurrence(DType::F32, &[3, length], 1, false).case();
    let (size, room) = (length as isize, length as isize + 85);
    let layouts = [
        Layout { strides: vec![-size - 1, 1], offset: 2 * (size + 1) + 1 },
        Layout { strides: vec![1, 3], offset: 0 },
        Layout { strides: vec![room, -1], offset: size - 1 },
        Layout { strides: vec![0, 0], offset: 3 },
    ];
    let elements = 4 * room as usize;
    let mut case = Case::laid_out(case.label, case.graph, case.inputs, &layouts);
    // The inputs' bytes, as their layouts have them.
    let mut bytes = Vec::new();
    for (input, layout) in case.inputs.iter_mut().zip(&layouts) {
        let mut elements = vec![9.0; elements];
        let values = input.to_f64s();
        let places: Vec<usize> = (0..values.len())
            .map(|i| {
                let (row, step) = ((i / length) as isize, (i % length) as isize);
                (layout.offset + row * layout.strides[0] + step * layout.strides[1]) as usize
            })
            .collect();
        for (value, &place) in values.iter().zip(&places) {
            elements[place] = *value;
        }
        let seen: Vec<f64> = places.iter().map(|&place| elements[place]).collect();
        *input = Array::from_f64s(input.ty().clone(), &seen);
        bytes.push(
            Array::from_f64s(tilewright_ir::Type::new(DType::F32, [elements.len()]), &elements).to_bytes(),
        );
    }
    let Some(found) = host::run(std::iter::once((&case.plan, &case.program, bytes))) else { return };
    case.check(&found[0].0);
}
