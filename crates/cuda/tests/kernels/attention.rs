//! Attention, forward and backward, against the interpreter.

use tilewright_cuda::codegen::Step;
use tilewright_generate::{Random, random_attention_of};
use tilewright_interp::Array;
use tilewright_ir::{DType, ErrorKind};
use tilewright_schedule::Layout;

use crate::case::{Case, SMALL, Sizes, attention, inputs, with_gradients};
use crate::host::run;
use crate::table::{MASKS, Mask, SCORES, Score};

/// Runs cases and checks their results.
fn check(cases: &[Case]) {
    let Some(found) = run(cases.iter().map(|case| (&case.plan, &case.program, bytes(&case.inputs)))) else {
        return;
    };
    for (case, (found, fault)) in cases.iter().zip(found) {
        assert_eq!(case.program.fault(fault), None, "{}", case.label);
        case.check(&found);
    }
}

fn bytes(inputs: &[Array]) -> Vec<Vec<u8>> {
    inputs.iter().map(Array::to_bytes).collect()
}

/// Cases of generated programs.
fn generated(dtype: DType, seeds: std::ops::Range<u64>) -> impl Iterator<Item = Case> {
    seeds.map(move |seed| {
        let (graph, inputs) = random_attention_of(dtype, seed);
        let (graph, inputs) = with_gradients(graph, inputs, &mut Random::new(seed ^ 0xc07));
        Case::new(format!("{dtype} {seed}"), graph, inputs)
    })
}

#[test]
fn generated_programs() {
    let cases = [(DType::F32, 0..4), (DType::BF16, 8..11), (DType::F16, 14..17)]
        .into_iter()
        .flat_map(|(dtype, seeds)| generated(dtype, seeds));
    check(&cases.collect::<Vec<_>>());
}

#[test]
fn every_function_with_and_without_a_mask() {
    let cases: Vec<Case> = SCORES
        .iter()
        .enumerate()
        .map(|(i, score)| {
            let mask = (i % 5 != 0).then(|| &MASKS[i % MASKS.len()]);
            Case::of(DType::F32, SMALL, score, mask)
        })
        .collect();
    check(&cases);
}

#[test]
fn every_function_in_half_types() {
    let cases: Vec<Case> = SCORES
        .iter()
        .enumerate()
        .step_by(4)
        .map(|(i, score)| {
            let mask = (i % 5 != 1).then(|| &MASKS[(i + 1) % MASKS.len()]);
            let dtype = if i % 2 == 0 { DType::BF16 } else { DType::F16 };
            Case::of(dtype, SMALL, score, mask)
        })
        .collect();
    check(&cases);
}

#[test]
fn lengths_and_sizes() {
    let shapes = [
        Sizes { queries: 1, keys: 1, ..SMALL },
        Sizes { queries: 1, keys: 130, ..SMALL },
        Sizes { queries: 129, keys: 1, heads: 1, ..SMALL },
        Sizes { queries: 64, keys: 64, head_size: 64, value_size: 64, batch: 1, key_batch: 1, ..SMALL },
        Sizes { queries: 20, keys: 33, head_size: 128, value_size: 16, batch: 1, key_batch: 1, ..SMALL },
        Sizes { queries: 17, keys: 40, head_size: 40, value_size: 200, batch: 1, key_batch: 1, ..SMALL },
        Sizes { queries: 5, keys: 20, heads: 6, key_heads: 3, ..SMALL },
        Sizes { queries: 5, keys: 20, batch: 3, key_batch: 1, ..SMALL },
    ];
    let relative = SCORES.iter().position(|score| score.name == "relative").unwrap();
    let cases: Vec<Case> = shapes
        .into_iter()
        .enumerate()
        .flat_map(|(i, sizes)| {
            let dtype = if i % 2 == 0 { DType::BF16 } else { DType::F32 };
            let mask = if i % 3 == 0 { None } else { Some(&MASKS[i % 2]) };
            [Case::of(dtype, sizes, &SCORES[relative], mask)]
        })
        .collect();
    check(&cases);
}

#[test]
fn strided_inputs() {
    // [B, S, H, D] in memory, backwards along the queries.
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let mut random = Random::new(5);
        let (graph, limits) = attention(dtype, SMALL, &SCORES[1], Some(&MASKS[0]));
        let inputs = inputs(&graph, &limits, &mut random);
        let (graph, inputs) = with_gradients(graph, inputs, &mut random);
        let mut layouts: Vec<Layout> =
            graph.parameter_types().iter().map(|ty| Layout::packed(&ty.shape)).collect();
        let mut case = Case::new(format!("strided {dtype}"), graph, inputs);
        let mut moved = bytes(&case.inputs);
        for (number, reversed) in [(0, true), (1, false), (3, false)] {
            let shape = case.inputs[number].ty().shape.clone();
            let [_, heads, length, size] = shape[..] else { panic!("four axes") };
            let row = (heads * size) as isize;
            let layout = Layout {
                strides: vec![length as isize * row, size as isize, if reversed { -row } else { row }, 1],
                offset: if reversed { (length as isize - 1) * row } else { 0 },
            };
            moved[number] = permuted(&moved[number], &shape, &layout, dtype.size());
            layouts[number] = layout;
        }
        let Case { label, graph, inputs, .. } = case;
        case = Case::laid_out(label, graph, inputs, &layouts);
        cases.push((case, moved));
    }
    let runs = cases.iter().map(|(case, moved)| (&case.plan, &case.program, moved.clone()));
    let Some(found) = run(runs) else { return };
    for ((case, _), (found, _)) in cases.iter().zip(found) {
        case.check(&found);
    }
}

/// Packed elements, in another order.
fn permuted(bytes: &[u8], shape: &[usize], layout: &Layout, size: usize) -> Vec<u8> {
    let mut moved = vec![0; bytes.len()];
    for (flat, element) in bytes.chunks_exact(size).enumerate() {
        let (mut rest, mut place) = (flat, layout.offset);
        for axis in (0..shape.len()).rev() {
            place += (rest % shape[axis]) as isize * layout.strides[axis];
            rest /= shape[axis];
        }
        moved[place as usize * size..][..size].copy_from_slice(element);
    }
    moved
}

#[test]
fn nothing_of_a_masked_pair_shows() {
    let third = &MASKS[2];
    let late = &MASKS[1];
    let mut cases = Vec::new();
    for (dtype, score) in [(DType::BF16, 4), (DType::F32, 10)] {
        for (mask, hides_keys) in [(third, true), (late, false)] {
            let clean = Case::of(dtype, SMALL, &SCORES[score], Some(mask));
            for poison in [f64::NAN, f64::INFINITY] {
                let hidden = |row: usize| if hides_keys { row % 70 % 3 != 1 } else { row % 37 < 5 };
                // Keys and values; or queries and the output's cotangent.
                let cotangent = clean.inputs.len() - 2;
                let poisoned = if hides_keys { [1, 2] } else { [0, cotangent] };
                let mut inputs = bytes(&clean.inputs);
                for number in poisoned {
                    let ty = clean.inputs[number].ty().clone();
                    let size = ty.shape[3];
                    let numbers = clean.inputs[number].to_f64s();
                    let numbers: Vec<f64> = numbers
                        .into_iter()
                        .enumerate()
                        .map(|(i, x)| if hidden(i / size) { poison } else { x })
                        .collect();
                    inputs[number] = Array::from_f64s(ty, &numbers).to_bytes();
                }
                cases.push((Case::of(dtype, SMALL, &SCORES[score], Some(mask)), inputs));
            }
        }
    }
    let Some(found) = run(cases.iter().map(|(case, inputs)| (&case.plan, &case.program, inputs.clone())))
    else {
        return;
    };
    for ((case, _), (found, _)) in cases.iter().zip(found) {
        case.check(&found);
    }
}

#[test]
fn scores_that_are_not_finite_show_as_in_the_definition() {
    let sizes = Sizes {
        heads: 16,
        key_heads: 16,
        batch: 1,
        key_batch: 1,
        queries: 6,
        keys: 100,
        head_size: 1,
        value_size: 1,
    };
    let mut cases = Vec::new();
    for mask in [None, Some(&MASKS[2])] {
        let (graph, _) = attention(DType::F32, sizes, &SCORES[0], mask);
        let mut inputs = inputs(&graph, &[], &mut Random::new(3));
        let mut keys = inputs[1].to_f64s();
        let values = [0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        for head in 0..16 {
            keys[head * 100 + 4] += values[head % 4];
            keys[head * 100 + 76] += values[head / 4];
        }
        inputs[1] = Array::from_f64s(inputs[1].ty().clone(), &keys);
        cases.push(Case::new("not finite".into(), graph, inputs));
    }
    let Some(found) = run(cases.iter().map(|case| (&case.plan, &case.program, bytes(&case.inputs)))) else {
        return;
    };
    for (case, (found, _)) in cases.iter().zip(found) {
        let golden =
            tilewright_interp::run(&case.graph, &case.inputs, tilewright_interp::Precision::Exact).unwrap();
        for (golden, found) in golden.iter().zip(found) {
            let found = Array::from_bytes(golden.ty().clone(), &found).to_f64s();
            for (i, (x, y)) in found.iter().zip(golden.to_f64s()).enumerate() {
                let same = *x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() < 1e-5;
                assert!(same, "element {i}: {x}, not {y}");
            }
        }
    }
}

#[test]
fn an_index_out_of_range_is_reported_where_the_pair_is_admitted() {
    let score = Score {
        name: "out of range",
        captures: &[("w", "f32[30]", 0)],
        body: "%x = gather %w, %q\n %out = add %s, %x",
    };
    let mask = |limit: usize| {
        let body = format!("%limit: i32[] = constant {limit}\n %out = lt %q, %limit");
        Mask { name: "early", captures: &[], body: body.leak() }
    };
    // Queries to 36: 30 is the first that the array has not.
    let cases = [
        Case::of(DType::F32, SMALL, &score, Some(&mask(30))),
        Case::of(DType::F32, SMALL, &score, Some(&mask(37))),
    ];
    let Some(found) = run(cases.iter().map(|case| (&case.plan, &case.program, bytes(&case.inputs)))) else {
        return;
    };
    assert_eq!(cases[0].program.fault(found[0].1), None);
    let fault = cases[1].program.fault(found[1].1).expect("a fault");
    let ErrorKind::Index { axis: 0, index: 30..37, size: 30, .. } = fault.kind() else { panic!("{fault}") };
}

#[test]
fn nothing_to_do() {
    let cases: Vec<Case> = [(0, 2, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0)]
        .into_iter()
        .flat_map(|(batch, heads, queries, keys)| {
            let sizes = Sizes { batch, heads, key_batch: batch, key_heads: heads, queries, keys, ..SMALL };
            [None, Some(&MASKS[0])].map(|mask| Case::of(DType::F32, sizes, &SCORES[4], mask))
        })
        .collect();
    check(&cases);
}

/// One of each kernel, at shapes that the sanitizers of a GPU get through soon.
#[test]
fn sanitized() {
    let names = ["relative", "window table", "pair", "by the score", "key bias", "head gain"];
    let cases: Vec<Case> = SCORES
        .iter()
        .filter(|score| names.contains(&score.name))
        .zip([DType::F32, DType::BF16, DType::F16].into_iter().cycle())
        .map(|(score, dtype)| Case::of(dtype, SMALL, score, Some(&MASKS[1])))
        .collect();
    assert_eq!(cases.len(), names.len());
    check(&cases);
}

/// Lengths at which half types take Hopper's own instructions.
const LONG: Sizes = Sizes {
    batch: 1,
    heads: 2,
    key_batch: 1,
    key_heads: 1,
    queries: 150,
    keys: 200,
    head_size: 64,
    value_size: 64,
};

fn hopper(dtype: DType, sizes: Sizes, score: &str, mask: Option<&Mask>) -> Case {
    let score = SCORES.iter().find(|known| known.name == score).expect("a score function of the table");
    let label = format!("{score}, {dtype}, {sizes:?}", score = score.name);
    let mut random = Random::new(17);
    let (graph, limits) = attention(dtype, sizes, score, mask);
    let inputs = inputs(&graph, &limits, &mut random);
    let case = Case::new(label, graph, inputs);
    let mut entries = case.program.steps.iter().filter_map(|(_, step)| match step {
        Step::Launch(launch) => Some(launch.source.entry.as_str()),
        Step::Zero { .. } => None,
    });
    assert!(entries.next_back() == Some("attention_forward_hopper"), "{}", case.label);
    case
}

#[test]
fn forward_by_warpgroups() {
    let wide = Sizes { queries: 70, keys: 130, heads: 1, ..LONG };
    let cases = [
        hopper(DType::BF16, LONG, "squared", None),
        hopper(DType::BF16, LONG, "softcap", Some(&MASKS[0])),
        hopper(DType::F16, Sizes { keys: 500, ..LONG }, "relative", Some(&MASKS[1])),
        hopper(DType::F16, LONG, "head gain", Some(&MASKS[2])),
        hopper(DType::BF16, Sizes { head_size: 96, value_size: 40, ..wide }, "key bias", Some(&MASKS[3])),
        hopper(DType::BF16, Sizes { head_size: 128, value_size: 128, ..wide }, "identity", Some(&MASKS[0])),
        hopper(DType::F16, Sizes { head_size: 256, value_size: 256, ..wide }, "identity", None),
    ];
    check(&cases);
}

#[test]
fn items_in_a_row_by_warpgroups() {
    // The first 128 queries, which are an item, see nothing.
    let late = Mask {
        name: "late",
        captures: &[],
        body: "%limit: i32[] = constant 130\n %late = ge %q, %limit\n %behind = ge %q, %k\n %out = and %late, %behind",
    };
    // Head sizes that leave room for the queries of one item only; and values wider than keys.
    let one_at_a_time = Sizes { head_size: 192, value_size: 192, queries: 140, keys: 70, ..LONG };
    let cases = [
        hopper(DType::BF16, LONG, "identity", Some(&late)),
        hopper(DType::F16, one_at_a_time, "identity", Some(&MASKS[0])),
        hopper(DType::BF16, one_at_a_time, "key bias", Some(&late)),
        hopper(DType::BF16, Sizes { batch: 2, value_size: 128, ..LONG }, "alibi", Some(&MASKS[3])),
    ];
    let texts = |says: &str| {
        let said = |case: &&Case| {
            let mut steps = case.program.steps.iter();
            steps.any(|(_, step)| matches!(step, Step::Launch(l) if l.source.body.contains(says)))
        };
        cases.iter().filter(said).count()
    };
    assert_eq!([texts("QUERY_TILES = 1;"), texts("QUERY_TILES = 2;")], [2, 2]);
    check(&cases);
}

#[test]
fn nothing_of_a_masked_pair_shows_by_warpgroups() {
    let mut cases = Vec::new();
    for poison in [f64::NAN, f64::INFINITY] {
        let case = hopper(DType::BF16, LONG, "identity", Some(&MASKS[2]));
        let mut inputs = bytes(&case.inputs);
        for number in [1, 2] {
            let numbers = case.inputs[number].to_f64s().into_iter().enumerate();
            let numbers: Vec<f64> =
                numbers.map(|(i, x)| if i / 64 % 200 % 3 != 1 { poison } else { x }).collect();
            inputs[number] = Array::from_f64s(case.inputs[number].ty().clone(), &numbers).to_bytes();
        }
        cases.push((case, inputs));
    }
    let Some(found) = run(cases.iter().map(|(case, inputs)| (&case.plan, &case.program, inputs.clone())))
    else {
        return;
    };
    for ((case, _), (found, _)) in cases.iter().zip(found) {
        case.check(&found);
    }
}

/// A gradient that is done in one pass, by warpgroups.
fn one_pass(dtype: DType, sizes: Sizes, score: &str, mask: Option<&Mask>) -> Case {
    let score = SCORES.iter().find(|known| known.name == score).expect("a score function of the table");
    let case = Case::of(dtype, sizes, score, mask);
    let mut entries = case.program.steps.iter().filter_map(|(_, step)| match step {
        Step::Launch(launch) => Some(launch.source.entry.as_str()),
        Step::Zero { .. } => None,
    });
    assert!(entries.any(|entry| entry == "attention_backward_hopper"), "{}", case.label);
    case
}

#[test]
fn gradients_by_warpgroups() {
    let wide = Sizes { head_size: 128, value_size: 128, queries: 70, keys: 140, heads: 2, ..LONG };
    let cases = [
        one_pass(DType::BF16, LONG, "identity", None),
        one_pass(DType::BF16, wide, "squared", Some(&MASKS[0])),
        one_pass(DType::F16, wide, "softcap", None),
        one_pass(DType::F16, LONG, "alibi", Some(&MASKS[1])),
        one_pass(DType::BF16, Sizes { head_size: 104, value_size: 40, ..wide }, "identity", Some(&MASKS[3])),
        one_pass(DType::BF16, Sizes { batch: 2, ..LONG }, "head gain", Some(&MASKS[2])),
    ];
    check(&cases);
}

#[test]
fn captured_gradients_by_warpgroups() {
    let wide = Sizes { head_size: 128, value_size: 128, queries: 200, keys: 140, heads: 1, ..LONG };
    let far = Sizes { queries: 250, keys: 130, batch: 2, key_batch: 2, ..LONG };
    let cases = [
        one_pass(DType::BF16, LONG, "key bias", Some(&MASKS[0])),
        one_pass(DType::F16, wide, "query gain", None),
        one_pass(DType::BF16, LONG, "query gain", Some(&MASKS[1])),
        one_pass(DType::BF16, far, "relative", Some(&MASKS[1])),
        // Rounds of heads that are walked up and down.
        one_pass(DType::BF16, Sizes { heads: 4, key_heads: 2, ..far }, "relative", Some(&MASKS[0])),
        one_pass(DType::BF16, wide, "relative", None),
        one_pass(DType::F16, Sizes { queries: 100, ..wide }, "sum", Some(&MASKS[0])),
        one_pass(DType::BF16, Sizes { queries: 90, keys: 150, ..LONG }, "relative and sum", Some(&MASKS[2])),
        one_pass(DType::BF16, LONG, "query and key", None),
        one_pass(DType::BF16, LONG, "head gate", Some(&MASKS[3])),
        one_pass(DType::BF16, Sizes { heads: 2, key_heads: 2, ..far }, "head gate", Some(&MASKS[0])),
        one_pass(DType::F16, Sizes { heads: 1, key_heads: 1, ..wide }, "head gain", None),
        one_pass(DType::BF16, LONG, "window table", None),
        one_pass(DType::BF16, LONG, "graph distance", None),
        one_pass(DType::BF16, LONG, "indirect", None),
    ];
    check(&cases);
}

/// Without a cotangent of the log-sum-exp, as models have it.
fn of_the_output(dtype: DType, sizes: Sizes, score: &str, mask: Option<&Mask>) -> Case {
    let score = SCORES.iter().find(|known| known.name == score).expect("a score function of the table");
    let label = format!("{} in {dtype} of {sizes:?}, of the output alone", score.name);
    let mut random = Random::new(label.len() as u64);
    let (mut graph, limits) = attention(dtype, sizes, score, mask);
    graph.set_results(graph.results()[..1].to_vec());
    let inputs = inputs(&graph, &limits, &mut random);
    let (graph, inputs) = with_gradients(graph, inputs, &mut random);
    Case::new(label, graph, inputs)
}

#[test]
fn gains_by_warpgroups() {
    let wide = Sizes { head_size: 128, value_size: 128, queries: 200, keys: 140, heads: 1, ..LONG };
    let several = Sizes { batch: 2, key_batch: 2, key_heads: 2, ..LONG };
    let narrow = Sizes { head_size: 104, value_size: 40, ..several };
    let cases = [
        (1, one_pass(DType::BF16, several, "head gate", Some(&MASKS[0]))),
        (1, one_pass(DType::F16, wide, "head gain", None)),
        (1, one_pass(DType::BF16, narrow, "head gain", Some(&MASKS[3]))),
        (1, of_the_output(DType::BF16, several, "scalar", Some(&MASKS[0]))),
        // Gains of queries; of the first the keys' cotangents are sums over heads.
        (1, one_pass(DType::BF16, LONG, "query gain", Some(&MASKS[0]))),
        (1, one_pass(DType::F16, Sizes { value_size: 40, ..wide }, "indirect", None)),
        (1, one_pass(DType::BF16, narrow, "query and key", Some(&MASKS[1]))),
        // Its term of the cotangent alone does not vanish.
        (0, one_pass(DType::BF16, several, "scalar", None)),
        // Two heads share keys.
        (0, one_pass(DType::BF16, LONG, "head gain", None)),
    ];
    for (gains, case) in &cases {
        let says = format!("constexpr int GAINS = {gains};");
        let mut steps = case.program.steps.iter();
        let said = steps.any(|(_, step)| matches!(step, Step::Launch(l) if l.source.body.contains(&says)));
        assert!(said, "{}", case.label);
    }
    check(&cases.map(|(_, case)| case));
}

#[test]
fn owned_pairs_by_warpgroups() {
    let wide = Sizes { head_size: 128, value_size: 128, queries: 70, keys: 140, ..LONG };
    let shared = Sizes { batch: 2, key_batch: 2, queries: 140, keys: 70, ..LONG };
    let cases = [
        one_pass(DType::BF16, Sizes { batch: 2, ..wide }, "pair", None),
        one_pass(DType::F16, shared, "pair", Some(&MASKS[0])),
        one_pass(DType::BF16, shared, "pair, flipped, by batch and head", Some(&MASKS[1])),
        one_pass(DType::BF16, shared, "pair, rows of the batch", None),
    ];
    check(&cases);
}

#[test]
fn nothing_of_a_masked_pair_shows_in_one_pass() {
    let mut cases = Vec::new();
    let wide = Sizes { head_size: 128, value_size: 128, queries: 70, keys: 140, heads: 1, ..LONG };
    for (poison, sizes) in [(f64::NAN, LONG), (f64::INFINITY, wide)] {
        for (mask, hides_keys) in [(&MASKS[2], true), (&MASKS[1], false)] {
            let case = one_pass(DType::BF16, sizes, "identity", Some(mask));
            let hidden =
                |row: usize| if hides_keys { row % sizes.keys % 3 != 1 } else { row % sizes.queries < 5 };
            let cotangent = case.inputs.len() - 2;
            let poisoned = if hides_keys { [1, 2] } else { [0, cotangent] };
            let mut inputs = bytes(&case.inputs);
            for number in poisoned {
                let ty = case.inputs[number].ty().clone();
                let size = ty.shape[3];
                let numbers = case.inputs[number].to_f64s().into_iter().enumerate();
                let numbers: Vec<f64> =
                    numbers.map(|(i, x)| if hidden(i / size) { poison } else { x }).collect();
                inputs[number] = Array::from_f64s(ty, &numbers).to_bytes();
            }
            cases.push((case, inputs));
        }
    }
    let Some(found) = run(cases.iter().map(|(case, inputs)| (&case.plan, &case.program, inputs.clone())))
    else {
        return;
    };
    for ((case, _), (found, _)) in cases.iter().zip(found) {
        case.check(&found);
    }
}
