//! Loop nests in the shapes that the GPU engine cuts differently: runs along rows and across them, teams of every size,
//! rows cut into parts, rows kept in shared and in scratch memory, lengths that no run divides, padding, strides.

use tilewright_cuda::codegen::Step;
use tilewright_generate::Random;
use tilewright_interp::Array;
use tilewright_ir::{DType, parse};

use crate::case::{Case, with_gradients};
use crate::host;

/// A program with `T` for a type and `A`, `B`, … for extents.
fn case(label: &str, text: &str, dtype: DType, extents: &[usize], gradients: bool) -> Case {
    let mut text = text.replace("T[", &format!("{dtype}["));
    for (letter, extent) in ('A'..).zip(extents) {
        text = text.replace(&format!("<{letter}>"), &extent.to_string());
    }
    let graph = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut random = Random::new(extents.iter().sum::<usize>() as u64);
    let mut inputs = Vec::new();
    for ty in graph.parameter_types() {
        let elements: Vec<f64> = (0..ty.elements()).map(|_| random.float(-2.0, 2.0)).collect();
        inputs.push(Array::from_f64s(ty.clone(), &elements));
    }
    let label = format!("{label} of {dtype}, {extents:?}");
    if !gradients {
        return Case::new(label, graph, inputs);
    }
    let (graph, inputs) = with_gradients(graph, inputs, &mut random);
    Case::new(label, graph, inputs)
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

/// Whether a case has a loop nest whose text says so.
fn has(case: &Case, words: &str) -> bool {
    case.program.steps.iter().any(|(_, step)| match step {
        Step::Launch(launch) => launch.source.entry == "loops" && launch.source.body.contains(words),
        Step::Zero { .. } => false,
    })
}

const SUM: &str = "graph(%x: T[<A>, <B>]) -> (%y) { %y = reduce_sum %x axes=[1] }";
const SUM_ACROSS: &str = "graph(%x: T[<A>, <B>]) -> (%y) { %y = reduce_sum %x axes=[0] }";
const ARGMAX: &str = "graph(%x: T[<A>, <B>]) -> (%y) { %y = argmax %x axis=1 }";
const SOFTMAX: &str = "graph(%x: T[<A>, <B>]) -> (%y) {
  %m = reduce_max %x axes=[1]
  %mb: T[<A>, <B>] = broadcast %m axes=[0]
  %c = sub %x, %mb
  %e = exp %c
  %s = reduce_sum %e axes=[1]
  %sb: T[<A>, <B>] = broadcast %s axes=[0]
  %y = div %e, %sb
}";
const SOFTMAX_ACROSS: &str = "graph(%x: T[<A>, <B>]) -> (%y) {
  %m = reduce_max %x axes=[0]
  %mb: T[<A>, <B>] = broadcast %m axes=[1]
  %c = sub %x, %mb
  %e = exp %c
  %s = reduce_sum %e axes=[0]
  %sb: T[<A>, <B>] = broadcast %s axes=[1]
  %y = div %e, %sb
}";

/// Rows that teams of each size hold in registers.
pub fn held() -> Vec<Case> {
    let shapes = [[3, 1000], [4100, 1024], [2, 50]];
    let softmax = |shape: &[usize; 2]| case("softmax", SOFTMAX, DType::F32, shape, false);
    shapes.iter().map(softmax).chain([case("softmax", SOFTMAX, DType::BF16, &[4100, 768], false)]).collect()
}

#[test]
fn sums_of_rows_by_every_team() {
    let mut cases = Vec::new();
    for (length, team) in
        [(7, "a thread does a row"), (50, "4 threads"), (250, "32 threads"), (2001, "256 threads")]
    {
        let sums = case("sum", SUM, DType::F32, &[37, length], true);
        assert!(has(&sums, team), "{length}");
        cases.push(sums);
        cases.push(case("sum", SUM, DType::BF16, &[5, 2 * length], true));
        cases.push(case("softmax", SOFTMAX, DType::F32, &[3, length], true));
        cases.push(case("argmax", ARGMAX, DType::F32, &[9, length], false));
    }
    cases.push(case("sum", SUM, DType::F64, &[3, 130], true));
    check(&cases);
}

#[test]
fn sums_across_rows() {
    let mut cases = Vec::new();
    for (length, width) in [(7, 300), (130, 37), (130, 4), (33, 1)] {
        cases.push(case("sum across", SUM_ACROSS, DType::F32, &[length, width], true));
        cases.push(case("sum across", SUM_ACROSS, DType::F16, &[length, width], false));
        cases.push(case("softmax across", SOFTMAX_ACROSS, DType::F32, &[length, width], true));
    }
    assert!(cases.iter().any(|case| has(case, "a lane of 8 warps")));
    check(&cases);
}

#[test]
fn long_rows_are_cut_into_parts() {
    let cases = [
        case("sum", SUM, DType::F32, &[1, 20_003], false),
        case("argmax", ARGMAX, DType::F32, &[2, 16_385], false),
        case("sum across", SUM_ACROSS, DType::F32, &[1000, 9], false),
        case("sum across", SUM_ACROSS, DType::BF16, &[777, 3], false),
        case(
            "norm",
            "graph(%x: T[<A>]) -> (%z) { %q = mul %x, %x\n %s = reduce_sum %q axes=[0]\n %z = sqrt %s }",
            DType::F32,
            &[30_001],
            false,
        ),
    ];
    for case in &cases {
        assert!(
            has(case, "the reductions of parts of rows") && has(case, "from the reductions"),
            "{}",
            case.label
        );
    }
    check(&cases);
}

#[test]
fn rows_too_long_for_registers() {
    check(&[
        case("softmax", SOFTMAX, DType::F64, &[2, 6000], false),
        case("softmax", SOFTMAX, DType::F32, &[3, 9001], false),
        case("softmax", SOFTMAX, DType::BF16, &[2, 7000], false),
    ]);
}

#[test]
fn runs_of_strided_and_padded_arrays() {
    let turned = "graph(%x: T[<A>, <B>], %b: T[<A>]) -> (%y) {
      %t = transpose %x permutation=[1, 0]
      %w: T[<B>, <A>] = broadcast %b axes=[1]
      %y = add %t, %w
    }";
    let padded = "graph(%x: T[<A>, <B>], %fill: T[], %z: T[<A>, <C>]) -> (%y) {
      %p = pad %x, %fill low=[0, 3] high=[0, 5] interior=[0, 0]
      %y = mul %p, %z
    }";
    let positions = "graph(%x: T[<A>, <B>]) -> (%y) {
      %i: i64[<A>, <B>] = iota axis=1
      %f: T[<A>, <B>] = cast %i
      %y = mul %x, %f
    }";
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        for (rows, columns) in [(5, 64), (33, 19), (1, 1)] {
            cases.push(case("turned", turned, dtype, &[rows, columns], true));
            cases.push(case("padded", padded, dtype, &[rows, columns, columns + 8], true));
            let by_whole_runs = padded.replace("low=[0, 3] high=[0, 5]", "low=[1, 16] high=[0, 8]");
            let by_whole_runs = by_whole_runs.replace("T[<A>, <C>]", "T[<D>, <C>]");
            let extents = [rows, columns, columns + 24, rows + 1];
            cases.push(case("padded by whole runs", &by_whole_runs, dtype, &extents, true));
            cases.push(case("positions", positions, dtype, &[rows, columns], true));
        }
    }
    check(&cases);
}

/// Updates of a table: few rows that many go to, more rows than a block owns, more updates for a block than it keeps,
/// parts, and many more rows than updates.
#[test]
fn scattered_sums() {
    let text = "graph(%x: T[<A>, <B>], %i: i32[<C>]) -> (%y) { %y = gather %x, %i }";
    let mut cases = Vec::new();
    for (rows, columns, updates, same) in [
        (70, 5, 300, 1),
        (3000, 3, 40, 1),
        (900, 300, 50, 40),
        (3, 300, 40, 1),
        (5, 2, 5000, 1),
        (40, 1, 2500, 1),
        (64, 300, 2100, 50),
    ] {
        let mut text = text.replace("T[", "f32[");
        for (letter, extent) in [("<A>", rows), ("<B>", columns), ("<C>", updates)] {
            text = text.replace(letter, &extent.to_string());
        }
        let graph = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let types: Vec<_> = graph.parameter_types().into_iter().cloned().collect();
        let mut random = Random::new(updates as u64);
        let table: Vec<f64> = (0..rows * columns).map(|_| random.float(-1.0, 1.0)).collect();
        let indices: Vec<i64> = (0..updates).map(|_| random.integer(0, rows as i64 - 1) / same).collect();
        let inputs =
            vec![Array::from_f64s(types[0].clone(), &table), Array::from_i64s(types[1].clone(), &indices)];
        let (graph, inputs) = with_gradients(graph, inputs, &mut random);
        cases.push(Case::new(format!("{updates} updates of {rows}×{columns}"), graph, inputs));
    }
    for entry in ["scatter_add", "scatter_parts", "scatter_few"] {
        let mut steps = cases.iter().flat_map(|case| &case.program.steps);
        let launched = |(_, step): &(usize, Step)| match step {
            Step::Launch(launch) => launch.source.entry == entry,
            Step::Zero { .. } => false,
        };
        assert!(steps.any(launched), "{entry} is tested");
    }
    check(&cases);
}
