//! What simplifying rewrites, run before and after: the same bits.

mod support;

use tilewright_interp::{Array, Precision};
use tilewright_ir::{Graph, Op, Scalar, parse};
use tilewright_schedule::{Layout, lower, simplify};

/// Runs a program as it stands, and its plan once simplified.
#[track_caller]
fn check(text: &str, inputs: &[&[f64]]) -> Graph {
    let graph = parse(text).unwrap_or_else(|error| panic!("{error}"));
    let types = graph.parameter_types();
    let arrays: Vec<Array> =
        types.iter().zip(inputs).map(|(&ty, elements)| Array::from_f64s(ty.clone(), elements)).collect();
    let expected = tilewright_interp::run(&graph, &arrays, Precision::Typed).expect("a sound program");
    let simplified = simplify(&graph).expect("a sound program");
    let layouts: Vec<Layout> = types.iter().map(|ty| Layout::packed(&ty.shape)).collect();
    let plan = lower(&simplified, &layouts).expect("a sound program");
    let memory: Vec<Vec<Scalar>> =
        arrays.iter().map(|array| array.to_literal().elements().collect()).collect();
    for (expected, found) in expected.iter().zip(support::run(&plan, &simplified, &memory)) {
        assert_eq!(expected.to_bytes(), found.to_bytes(), "{graph}\n{simplified}");
    }
    simplified
}

fn has(graph: &Graph, is: impl Fn(&Op) -> bool) -> bool {
    graph.nodes().iter().any(|node| is(&node.op))
}

#[test]
fn one_update_for_each_row_is_a_selection() {
    let text = "graph(%u: f32[2, 1, 3], %t: i64[2, 1, 3]) -> (%y) {
  %i: i64[2, 1, 3] = iota axis=0
  %k: i64[2, 1, 3] = iota axis=2
  %y: f32[2, 4, 3] = scatter_add %u, %i, %t, %k
}";
    let updates = [1.5, -0.0, 0.0, f64::NAN, f64::INFINITY, -2.0];
    // A negative index counts from the end.
    let simplified = check(text, &[&updates, &[0.0, 3.0, -1.0, -4.0, 2.0, 1.0]]);
    assert!(!has(&simplified, |op| matches!(op, Op::ScatterAdd { .. })), "{simplified}");
}

#[test]
fn several_updates_for_a_row_are_added() {
    let text = "graph(%u: f32[2, 3], %t: i32[2, 3]) -> (%y) {
  %i: i32[2, 3] = iota axis=0
  %y: f32[2, 4] = scatter_add %u, %i, %t
}";
    let simplified = check(text, &[&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[0.0, 0.0, 3.0, 1.0, 1.0, 1.0]]);
    assert!(has(&simplified, |op| matches!(op, Op::ScatterAdd { .. })), "{simplified}");
}

#[test]
fn rows_that_are_left_out_stay_zero() {
    let text = "graph(%u: f32[2, 1], %t: i32[2, 1]) -> (%y) {
  %i: i32[2, 1] = iota axis=0
  %y: f32[3, 4] = scatter_add %u, %i, %t
}";
    check(text, &[&[1.0, 2.0], &[0.0, -1.0]]);
}

#[test]
fn what_is_read_is_widened_and_not_the_whole() {
    let text = "graph(%x: bf16[6, 4], %i: i32[2]) -> (%y) {
  %w: f32[6, 4] = cast %x
  %n = neg %w
  %y = gather %n, %i
}";
    let elements: Vec<f64> = (0..24).map(|i| i as f64 - 9.5).collect();
    let simplified = check(text, &[&elements, &[5.0, -6.0]]);
    let widened = has(&simplified, |op| matches!(op, Op::Cast(_)));
    let whole = simplified
        .nodes()
        .iter()
        .any(|node| !matches!(node.op, Op::Gather) && simplified.ty(node.results[0]).elements() == 24);
    assert!(widened && !whole, "{simplified}");
}

#[test]
fn a_product_read_the_other_way_is_turned() {
    let text = "graph(%g: f32[2, 3, 4], %x: f32[2, 3, 5]) -> (%y) {
  %p = dot %g, %x left_batch=[] right_batch=[] left_contract=[0, 1] right_contract=[0, 1]
  %y = transpose %p permutation=[1, 0]
}";
    let numbers = |count: usize| (0..count).map(|i| (i * 7 % 11) as f64).collect::<Vec<_>>();
    let simplified = check(text, &[&numbers(24), &numbers(30)]);
    assert!(!has(&simplified, |op| matches!(op, Op::Transpose { .. })), "{simplified}");
}

#[test]
fn a_sum_of_parts_is_put_together() {
    let text = "graph(%a: f32[2, 3], %b: f32[2, 1], %c: f32[2, 2]) -> (%y) {
  %z: f32[] = constant 0
  %pa: f32[2, 6] = pad %a, %z low=[0, 0] high=[0, 3] interior=[0, 0]
  %pb: f32[2, 6] = pad %b, %z low=[0, 5] high=[0, 0] interior=[0, 0]
  %pc: f32[2, 6] = pad %c, %z low=[0, 3] high=[0, 1] interior=[0, 0]
  %ab = add %pa, %pb
  %s = add %ab, %pc
  %y: bf16[2, 6] = cast %s
}";
    let numbers = |count: usize| (1..=count).map(|i| i as f64 / 3.0).collect::<Vec<_>>();
    let simplified = check(text, &[&numbers(6), &numbers(2), &numbers(4)]);
    assert!(!has(&simplified, |op| matches!(op, Op::Pad { .. } | Op::Binary(_))), "{simplified}");
    let last = simplified.nodes().last().expect("a node");
    assert!(matches!(last.op, Op::Concatenate { axis: 1 }), "{simplified}");
}

/// What has a gap, an overlap or another filling stays a sum.
#[test]
fn a_sum_that_is_no_whole_of_parts_stays() {
    for (fill, low, high) in [(0, 2, 2), (0, 4, 0), (1, 3, 1)] {
        let text = format!(
            "graph(%a: f32[2, 3], %b: f32[2, 2]) -> (%y) {{
  %z: f32[] = constant 0
  %f: f32[] = constant {fill}
  %pa: f32[2, 6] = pad %a, %z low=[0, 0] high=[0, 3] interior=[0, 0]
  %pb: f32[2, 6] = pad %b, %f low=[0, {low}] high=[0, {high}] interior=[0, 0]
  %y = add %pa, %pb
}}"
        );
        let numbers = |count: usize| (1..=count).map(|i| i as f64 / 3.0).collect::<Vec<_>>();
        let simplified = check(&text, &[&numbers(6), &numbers(4)]);
        assert!(has(&simplified, |op| matches!(op, Op::Pad { .. })), "{simplified}");
    }
}

/// A padding doubled 60 times has 2⁶⁰ terms, which nobody may walk over.
#[test]
fn sums_that_hold_a_sum_twice_are_not_walked_over() {
    let mut text = String::from(
        "graph(%a: f32[1]) -> (%s59) {
  %z: f32[] = constant 0
  %p: f32[2] = pad %a, %z low=[0] high=[1] interior=[0]
  %s0 = add %p, %p
",
    );
    for i in 1..60 {
        text += &format!("  %s{i} = add %s{0}, %s{0}\n", i - 1);
    }
    check(&(text + "}"), &[&[1.0]]);
}
