//! The attention engine against plain loops in f64: every class of score function, mask, shape and type.

mod functions;
mod plans;
mod reference;

use functions::{Function, Mask, captured, identity, masks, softcap, squared};
use plans::{Call, Order, round};
use reference::{Inputs, Results, evaluate};
use tilewright_cpu::Isa;
use tilewright_ir::DType;
use tilewright_plan::attention::AttentionShape;

/// Numbers from −1 to 1 by a xorshift generator.
fn random(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn shape(batch: usize, heads: usize, queries: usize, keys: usize, size: usize) -> AttentionShape {
    AttentionShape {
        batch,
        heads,
        key_batch: batch,
        key_heads: heads,
        queries,
        keys,
        head_size: size,
        value_size: size,
    }
}

fn inputs(shape: &AttentionShape, dtype: DType, table: usize, seed: u64) -> Inputs {
    let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, head_size, value_size } = *shape;
    let numbers = |count: usize, factor: f64, dtype: DType, i: u64| -> Vec<f64> {
        random(count, seed * 16 + i).into_iter().map(|x| round(dtype, x * factor)).collect()
    };
    let score_dtype = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Inputs {
        query: numbers(batch * heads * queries * head_size, 2.0, dtype, 1),
        key: numbers(key_batch * key_heads * keys * head_size, 2.0, dtype, 2),
        value: numbers(key_batch * key_heads * keys * value_size, 2.0, dtype, 3),
        output_cotangent: numbers(batch * heads * queries * value_size, 1.0, dtype, 4),
        log_sum_exp_cotangent: numbers(batch * heads * queries, 1.0, score_dtype, 5),
        table: numbers(table, 1.0, score_dtype, 6),
    }
}

fn call<'a>(shape: AttentionShape, dtype: DType, function: &'a Function, mask: &'a Mask) -> Call<'a> {
    Call {
        shape,
        dtype,
        scale: 1.0 / (shape.head_size as f64).sqrt(),
        function,
        mask,
        order: Order::Packed,
        blocks: (64, 64),
        threads: 2,
        isa: Isa::preferred(),
    }
}

fn root_mean_square(x: &[f64], y: &[f64]) -> f64 {
    // Equal infinities have no difference.
    let square = |(x, y): (&f64, &f64)| if x == y { 0.0 } else { (x - y) * (x - y) };
    (x.iter().zip(y).map(square).sum::<f64>() / x.len().max(1) as f64).sqrt()
}

/// The golden rule: the error of each result, relative to that of a plain evaluation in the type.
fn check(call: &Call, inputs: &Inputs, found: &Results) {
    let evaluate = |round: &dyn Fn(f64) -> f64| {
        evaluate(&call.shape, call.scale, call.function, call.mask, inputs, round, |x| x)
    };
    let truth = evaluate(&|x| x);
    let plain = evaluate(&|x| round(call.dtype, x));
    let case = format!("{}, {}, {:?}, {}", call.function.name, call.mask.name, call.shape, call.dtype);
    let (factor, least) = match call.dtype {
        DType::F64 => (0.0, 1e-13),
        DType::F32 => (4.0, 1e-8),
        _ => (1.35, 1e-6),
    };
    for (((name, found), (_, truth)), (_, plain)) in
        found.named().into_iter().zip(truth.named()).zip(plain.named())
    {
        let size = root_mean_square(truth, &vec![0.0; truth.len()]);
        let size = if size.is_finite() { size.max(1.0) } else { 1.0 };
        let (error, allowed) =
            (root_mean_square(found, truth), factor * root_mean_square(plain, truth) + least * size);
        assert!(error <= allowed, "{name} of {case}: error {error:e}, allowed {allowed:e}");
    }
}

fn run_and_check(call: &Call, seed: u64) {
    let table = call.function.table.iter().product();
    let inputs = inputs(&call.shape, call.dtype, table, seed);
    check(call, &inputs, &call.run(&inputs).unwrap());
}

#[test]
fn identity_at_awkward_lengths() {
    let (function, masks) = (identity(), masks());
    for (i, (queries, keys)) in
        [(1, 1), (1, 300), (17, 37), (64, 128), (65, 129), (130, 257), (277, 40)].into_iter().enumerate()
    {
        for mask in &masks {
            run_and_check(&call(shape(2, 2, queries, keys, 24), DType::F32, &function, mask), i as u64);
        }
    }
}

#[test]
fn every_function_with_and_without_a_mask() {
    let masks = masks();
    let shape = shape(2, 2, 75, 140, 8);
    for (i, function) in captured(shape).iter().chain(&[squared(), softcap()]).enumerate() {
        for mask in &masks {
            run_and_check(&call(shape, DType::F32, function, mask), i as u64);
        }
    }
}

#[test]
fn every_type() {
    let masks = masks();
    let shape = shape(1, 2, 70, 135, 8);
    for dtype in [DType::F64, DType::BF16, DType::F16] {
        let functions = captured(shape);
        for (i, function) in functions.iter().chain(&[identity(), squared(), softcap()]).enumerate() {
            run_and_check(&call(shape, dtype, function, &masks[i % masks.len()]), i as u64);
        }
    }
}

/// Where few keys have all the weight, the gradient is a difference of nearly equal numbers, in which a rounded output or
/// score would show. Where products of `bf16` are the machine's, weights and the scores' cotangents are rounded once more,
/// where they are multiplied; how these roundings fall differs. Captured arrays get the cotangents as they were before.
#[test]
fn gradients_of_half_types_lose_little_but_their_own_rounding() {
    let masks = masks();
    let shape = shape(1, 1, 70, 260, 64);
    for (function, dtype) in [
        (identity(), DType::BF16),
        (squared(), DType::BF16),
        (squared(), DType::F16),
        (softcap(), DType::F16),
    ] {
        let mut inputs = inputs(&shape, dtype, 0, 7);
        inputs.query.iter_mut().for_each(|x| *x *= 4.0);
        let found = call(shape, dtype, &function, &masks[1]).run(&inputs).unwrap();
        let evaluate = |factor: &dyn Fn(f64) -> f64| {
            evaluate(&shape, 0.125, &function, &masks[1], &inputs, |x| x, factor)
        };
        let truth = evaluate(&|x| x);
        let (allowed, factor) = match dtype {
            DType::BF16 => (evaluate(&|x| round(dtype, x)), 1.1),
            _ => (truth.clone(), 1.02),
        };
        for (((name, found), (_, truth)), (_, allowed)) in
            found.named().into_iter().zip(truth.named()).zip(allowed.named())
        {
            let factor = if name.starts_with("table") { 1.02 } else { factor };
            let rounded: Vec<f64> = allowed.iter().map(|&x| round(dtype, x)).collect();
            let (error, allowed) = (root_mean_square(found, truth), root_mean_square(&rounded, truth));
            assert!(
                error <= factor * allowed + 1e-5,
                "{name} of {}, {dtype}: {error:e} > {allowed:e}",
                function.name
            );
        }
    }
}

#[test]
fn grouped_heads_and_shared_keys_and_unequal_sizes() {
    let masks = masks();
    for (i, (key_batch, key_heads)) in [(1, 4), (3, 2), (1, 1), (3, 1)].into_iter().enumerate() {
        let shape = AttentionShape { key_batch, key_heads, value_size: 18, ..shape(3, 4, 37, 140, 10) };
        for (j, function) in captured(shape).iter().enumerate().skip(i).step_by(2) {
            run_and_check(&call(shape, DType::F32, function, &masks[(i + j) % masks.len()]), i as u64);
        }
    }
}

#[test]
fn any_order_in_memory() {
    let masks = masks();
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        let shape = shape(2, 3, 70, 131, 17);
        for (i, function) in [identity(), softcap()].iter().enumerate() {
            run_and_check(
                &Call { order: Order::Reversed, ..call(shape, dtype, function, &masks[i]) },
                i as u64,
            );
        }
    }
}

#[test]
fn any_size_of_blocks() {
    let masks = masks();
    let shape = shape(1, 2, 200, 210, 4);
    let functions = captured(shape);
    for (i, blocks) in [(128, 128), (32, 32), (32, 128), (100, 30), (7, 200)].into_iter().enumerate() {
        for mask in &masks[1..] {
            let function = &functions[3 + i % 4];
            run_and_check(&Call { blocks, ..call(shape, DType::F32, function, mask) }, i as u64);
        }
    }
}

#[test]
fn every_instruction_set() {
    let masks = masks();
    let shape = shape(1, 2, 70, 150, 9);
    for isa in Isa::available() {
        for dtype in [DType::F32, DType::BF16, DType::F64] {
            for (i, function) in captured(shape).iter().chain(&[identity(), softcap()]).enumerate() {
                let mask = &masks[i % masks.len()];
                run_and_check(&Call { isa, ..call(shape, dtype, function, mask) }, i as u64);
            }
        }
    }
}

/// Few queries read keys and values where they lie, and where there are few heads the keys are split among units.
#[test]
fn few_queries_and_many_keys() {
    let masks = masks();
    for (i, (queries, heads, size)) in
        [(1, 1, 64), (1, 4, 24), (5, 2, 16), (16, 1, 48), (17, 1, 16), (90, 1, 32)].into_iter().enumerate()
    {
        let shape = AttentionShape { key_heads: 1, ..shape(1, heads, queries, 1300, size) };
        let functions = [identity(), captured(shape).remove(3), squared()];
        for (j, dtype) in [DType::F32, DType::BF16, DType::F64].into_iter().enumerate() {
            for (k, mask) in masks.iter().enumerate() {
                let order = if (i + k).is_multiple_of(2) { Order::Packed } else { Order::Reversed };
                let function = &functions[(i + j + k) % 3];
                let call = Call { order, ..call(shape, dtype, function, mask) };
                let inputs = inputs(&shape, dtype, function.table.iter().product(), i as u64);
                let found = call.run(&inputs).unwrap();
                check(&call, &inputs, &found);
                // Without the log-sum-exp, scores may add in another order.
                let output = call.output(&inputs).unwrap();
                check(&call, &inputs, &Results { output, ..found });
            }
        }
    }
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    for shape in [shape(2, 4, 70, 300, 8), shape(1, 2, 3, 2100, 16)] {
        same_bits(AttentionShape { key_heads: 2, ..shape });
    }
}

fn same_bits(shape: AttentionShape) {
    let masks = masks();
    for function in captured(shape) {
        for mask in &masks[..2] {
            let inputs = inputs(&shape, DType::F32, function.table.iter().product(), 7);
            let run =
                |threads| Call { threads, ..call(shape, DType::F32, &function, mask) }.run(&inputs).unwrap();
            let one = run(1);
            for threads in [2, 3, 8] {
                let other = run(threads);
                for ((name, x), (_, y)) in one.named().into_iter().zip(other.named()) {
                    let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert!(bits(x) == bits(y), "{name} of {} with {threads} threads", function.name);
                }
            }
        }
    }
}

#[test]
fn nothing_of_a_masked_pair_shows() {
    let masks = masks();
    let (every_third, window) = (&masks[3], &masks[2]);
    let shape = shape(1, 2, 100, 150, 16);
    let functions = captured(shape);
    for function in functions.iter().chain(&[identity()]) {
        let clean = inputs(&shape, DType::F32, function.table.iter().product(), 3);
        let poisoned = |of: &[f64], size: usize, masked: &dyn Fn(usize) -> bool, poison: f64| -> Vec<f64> {
            of.iter().enumerate().map(|(i, &x)| if masked(i / size) { poison } else { x }).collect()
        };
        for poison in [f64::NAN, f64::INFINITY] {
            let hidden_key = |row: usize| row % shape.keys % 3 != 1;
            let hidden_query = |row: usize| row % shape.queries < 5;
            let key = poisoned(&clean.key, 16, &hidden_key, poison);
            let value = poisoned(&clean.value, 16, &hidden_key, poison);
            let query = poisoned(&clean.query, 16, &hidden_query, poison);
            let output_cotangent = poisoned(&clean.output_cotangent, 16, &hidden_query, poison);
            let copy = |x: &Vec<f64>| x.clone();
            let keys_poisoned = Inputs {
                query: copy(&clean.query),
                key,
                value,
                output_cotangent: copy(&clean.output_cotangent),
                log_sum_exp_cotangent: copy(&clean.log_sum_exp_cotangent),
                table: copy(&clean.table),
            };
            let queries_poisoned = Inputs {
                query,
                key: copy(&clean.key),
                value: copy(&clean.value),
                output_cotangent,
                log_sum_exp_cotangent: copy(&clean.log_sum_exp_cotangent),
                table: copy(&clean.table),
            };
            for (mask, inputs) in [(every_third, keys_poisoned), (window, queries_poisoned)] {
                let call = call(shape, DType::F32, function, mask);
                let found = call.run(&inputs).unwrap();
                check(&call, &clean, &found);
            }
        }
    }
}

#[test]
fn rows_that_see_nothing_have_zero_output_and_gradients() {
    let masks = masks();
    let shape = shape(1, 2, 100, 150, 16);
    let function = &captured(shape)[3];
    let inputs = inputs(&shape, DType::F32, function.table.iter().product(), 3);
    let found = call(shape, DType::F32, function, &masks[2]).run(&inputs).unwrap();
    for head in 0..2 {
        for row in head * 100..head * 100 + 5 {
            assert_eq!(found.log_sum_exp[row], f64::NEG_INFINITY);
            assert_eq!(found.maximum[row], f64::NEG_INFINITY);
            assert!(found.output[row * 16..(row + 1) * 16].iter().all(|&x| x == 0.0));
            assert!(found.query[row * 16..(row + 1) * 16].iter().all(|&x| x == 0.0));
        }
    }
}

#[test]
fn scores_that_are_not_finite_show_as_in_plain_loops() {
    let (function, masks) = (identity(), masks());
    // One query element of each sign a row, and keys of infinities and NaN in one or both of two places.
    let shape = shape(1, 16, 6, 300, 1);
    for mask in &masks {
        let mut inputs = inputs(&shape, DType::F32, 0, 5);
        let values = [0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        for head in 0..16 {
            inputs.key[head * 300 + 4] += values[head % 4];
            inputs.key[head * 300 + 220] += values[head / 4];
        }
        let call = call(shape, DType::F32, &function, mask);
        let found = call.forward(&inputs).unwrap();
        let truth = evaluate(&shape, call.scale, &function, mask, &inputs, |x| x, |x| x);
        for (found, truth) in found.iter().zip([&truth.output, &truth.log_sum_exp, &truth.maximum]) {
            for (i, (x, y)) in found.iter().zip(truth).enumerate() {
                let same = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() < 1e-5;
                assert!(same, "{}, element {i}: {x}, not {y}", mask.name);
            }
        }
    }
}

#[test]
fn nothing_to_do() {
    let (function, masks) = (identity(), masks());
    for (batch, heads, queries, keys) in [(0, 2, 5, 5), (1, 0, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0)] {
        for mask in &masks {
            let shape = AttentionShape { key_heads: heads.max(1), ..shape(batch, heads, queries, keys, 4) };
            run_and_check(&call(shape, DType::F32, &function, mask), 1);
        }
    }
}
