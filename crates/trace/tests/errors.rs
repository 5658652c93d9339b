//! Bad input: the error names the argument, the axis, both sizes and the user's line, and the library stays
//! usable. The numbers are rows of the project's list of faults.

mod common;

use std::cell::Cell;

use common::{Input, error, evaluate, random};
use tilewright_ir::{DType, Error, Type};
use tilewright_trace::{Tensor, associative_scan, concatenate, einsum, flex_attention, ones, trace};

/// Checks an error's code, that its text holds all of `parts`, and that its line is `line` of this file.
#[track_caller]
fn check(error: Error, code: &str, line: u32, parts: &[&str]) {
    let text = error.to_string();
    assert!(text.len() < 1000, "{text}");
    assert_eq!(error.code(), code, "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    let origin = error.origin().unwrap_or_else(|| panic!("no origin:\n{text}"));
    assert!(origin.file.ends_with("errors.rs"), "{text}");
    assert_eq!(origin.line, line, "{text}");
}

fn typed(name: &'static str, dtype: DType, shape: &[usize]) -> Input {
    let ty = Type::new(dtype, shape);
    Input(name, ty.clone(), vec![0.0; ty.elements()])
}

fn floats(name: &'static str, shape: &[usize]) -> Input {
    typed(name, DType::F32, shape)
}

/// Row 1: rank, head size and batch of query, key and value. Row 3: heads.
#[test]
fn attention_names_the_tensor_the_axis_and_both_sizes() {
    let query = floats("q", &[2, 6, 5, 8]);
    let cases: &[(&[usize], &[usize], &[&str])] = &[
        (&[2, 6, 5], &[2, 6, 5, 8], &["key", "4 axes", "[2, 6, 5]", "`k`: f32[2, 6, 5]"]),
        (&[2, 6, 5, 4], &[2, 6, 5, 8], &["key", "axis 3", "8", "4 found"]),
        (&[3, 6, 5, 8], &[3, 6, 5, 8], &["key", "axis 0", "2", "3 found"]),
        (&[2, 6, 5, 8], &[2, 6, 7, 8], &["value", "axis 2", "5", "7 found"]),
        (&[2, 4, 5, 8], &[2, 4, 5, 8], &["key", "axis 1", "6 heads", "4 found"]),
        (&[2, 0, 5, 8], &[2, 0, 5, 8], &["key", "axis 1", "6 heads", "0 found"]),
    ];
    for (key, value, parts) in cases {
        let inputs = [query.clone(), floats("k", key), floats("v", value)];
        let found = error(&inputs, |t| flex_attention(&t[0], &t[1], &t[2]).call());
        check(found, "shape", line!() - 1, parts);
    }
}

/// Row 2.
#[test]
fn attention_refuses_mixed_and_integer_types() {
    let of = |name, dtype| typed(name, dtype, &[1, 1, 4, 8]);
    let inputs = [of("q", DType::F32), of("k", DType::BF16), of("v", DType::F32)];
    let found = error(&inputs, |t| flex_attention(&t[0], &t[1], &t[2]).call());
    check(found, "dtype", line!() - 1, &["key", "f32", "bf16 found"]);
    let inputs = [of("q", DType::I32)];
    let found = error(&inputs, |t| flex_attention(&t[0], &t[0], &t[0]).call());
    check(found, "dtype", line!() - 1, &["query", "float", "i32 found"]);
}

#[test]
fn a_capture_with_another_number_of_indices() {
    let inputs = [floats("q", &[1, 4, 8, 16]), floats("bias", &[4, 15, 1])];
    let found = error(&inputs, |t| {
        flex_attention(&t[0], &t[0], &t[0])
            .score(|s, at| s + t[1].at([at.head, at.query - at.key + 7]))
            .call()
    });
    let parts = ["captured array", "3 indices", "2 found", "`bias`: f32[4, 15, 1]", "index every axis"];
    check(found, "shape", line!() - 4, &parts);
    let found = error(&inputs, |t| {
        flex_attention(&t[0], &t[0], &t[0])
            .score(|s, at| s + t[1].at([at.head, at.query, at.key, at.key]))
            .call()
    });
    check(found, "shape", line!() - 3, &["3 axes", "indexed with 4", "`bias`: f32[4, 15, 1]", "reshape"]);
}

/// Row 18: what a score function, mask or combine may not return or do. (That a Rust `if` cannot ask a
/// tensor is said by the compiler: see the documentation of `Tensor`.)
#[test]
fn functions_must_return_what_they_are_for() {
    let inputs = [floats("q", &[1, 1, 4, 8]), floats("x", &[3])];
    let found = error(&inputs, |t| flex_attention(&t[0], &t[0], &t[0]).score(|s, _| s + t[1]).call());
    check(found, "trace", line!() - 1, &["score function must return one number", "f32[3]", "select"]);
    let found = error(&inputs, |t| flex_attention(&t[0], &t[0], &t[0]).mask(|at| at.query - at.key).call());
    check(found, "dtype", line!() - 1, &["mask's result", "bool expected", "i32 found"]);
    let found = error(&inputs, |t| {
        flex_attention(&t[0], &t[0], &t[0])
            .score(|s, _| s + flex_attention(&t[0], &t[0], &t[0]).call().sum(..))
            .call()
    });
    check(found, "trace", line!() - 3, &["flex_attention cannot stand in a score function"]);
    let found = error(&inputs, |t| associative_scan(t[1], 0, |l, _| l.unsqueeze(0)).call());
    check(found, "shape", line!() - 1, &["combine's result", "[] expected", "[1] found"]);
    let found = error(&inputs, |t| associative_scan(t[1], 0, |l, r| l.eq(r)).call());
    check(found, "dtype", line!() - 1, &["combine's result", "f32 expected", "bool found"]);
}

#[test]
fn scans_need_one_extent() {
    let inputs = [floats("a", &[4, 3]), floats("b", &[5, 3])];
    let found = error(&inputs, |t| associative_scan((t[0], t[1]), 0, |l, r| (l.0 + r.0, l.1 + r.1)).call().0);
    check(found, "shape", line!() - 1, &["leaf 1", "axis 0", "4 expected", "5 found", "`b`: f32[5, 3]"]);
    let found = error(&inputs, |t| t[0].cumsum(2));
    check(found, "shape", line!() - 1, &["axis of a rank-2 array", "2 found"]);
}

#[test]
fn a_value_of_a_score_function_stays_inside() {
    let inputs = [floats("q", &[1, 1, 4, 8])];
    let leak = Cell::new(None);
    let found = error(&inputs, |t| {
        let _ = flex_attention(&t[0], &t[0], &t[0]).score(|s, _| {
            leak.set(Some(s));
            s
        });
        leak.get().unwrap() + 1.0
    });
    check(found, "trace", line!() - 2, &["outside the function that made it"]);
    // A value of a score function is none of its mask, and one of a finished trace is none of the next.
    let found = error(&inputs, |t| {
        let attention = flex_attention(&t[0], &t[0], &t[0]).score(|s, _| {
            leak.set(Some(s));
            s
        });
        attention.mask(|at| at.query.cast(DType::F32).lt(leak.get().unwrap())).call()
    });
    check(found, "trace", line!() - 2, &["outside the function that made it"]);
    let found = error(&inputs, |t| t[0] + leak.get().unwrap());
    check(found, "trace", line!() - 1, &["outside the function that made it"]);
}

#[test]
fn ordinary_operations_name_their_operands() {
    let inputs = [floats("x", &[2, 3]), floats("y", &[4]), typed("i", DType::I64, &[2])];
    let found = error(&inputs, |t| t[0] + t[1]);
    let parts = ["add: right: axis 0", "1 or 3", "4 found", "`x`: f32[2, 3]", "`y`: f32[4]"];
    check(found, "shape", line!() - 2, &parts);
    let found = error(&inputs, |t| t[0] * t[2]);
    check(found, "dtype", line!() - 1, &["mul", "f32 expected, i64 found", "cast"]);
    let found = error(&inputs, |t| t[2] + 0.5);
    check(found, "dtype", line!() - 1, &["0.5", "i64"]);
    let found = error(&inputs, |t| t[0].exp().matmul(t[1]));
    check(found, "shape", line!() - 1, &["matmul: right: axis 0: 3 expected, 4 found", "made by exp at"]);
    let found = error(&inputs, |t| t[0].softmax(2));
    check(found, "shape", line!() - 1, &["softmax", "rank-2", "2 found"]);
    let found = error(&inputs, |t| t[0].reshape([4, -1]));
    check(found, "shape", line!() - 1, &["reshape", "6 elements"]);
    let found = error(&inputs, |t| concatenate(&[t[0], t[1]], 0));
    check(found, "shape", line!() - 1, &["concatenate: operand 1", "2 axes", "1 found"]);
    let found = error(&inputs, |t| einsum("ab,b->a", &[t[0], t[1]]));
    check(found, "shape", line!() - 1, &["operand 1: axis 0: 3 for `b` expected, 4 found"]);
    let found = error(&inputs, |t| t[2].exp());
    check(found, "dtype", line!() - 1, &["exp", "float", "i64 found"]);
    let found = error(&inputs, |t| t[0].slice(1, 2..5));
    check(found, "argument", line!() - 1, &["slice", "position 5", "extent 3"]);
    let found = error(&inputs, |_| ones([1usize << 40, 1 << 40], DType::F32));
    check(found, "too_large", line!() - 1, &["[1099511627776, 1099511627776]"]);
}

/// The first error is the one that is told, whatever follows from it.
#[test]
fn the_first_error_wins() {
    let inputs = [floats("x", &[2, 3]), floats("y", &[4])];
    let found = error(&inputs, |t| {
        let wrong = t[0] + t[1];
        let rows = wrong.matmul(t[0].transpose()).softmax(-1).index(0, 0);
        flex_attention(&rows, &rows, &rows).score(|s, at| s * rows.at([at.key])).call() + t[1].log()
    });
    check(found, "shape", line!() - 4, &["add"]);
}

/// Row 17: a panic in the function reaches its caller, and the next trace starts afresh.
#[test]
fn a_panic_leaves_the_library_usable() {
    let inputs = [("q".to_string(), Type::new(DType::F32, [1, 1, 4, 8]))];
    for depth in 0..3 {
        let panic = std::panic::catch_unwind(|| {
            trace(
                &inputs,
                |t| match depth {
                    0 => panic!("in the function"),
                    1 => flex_attention(&t[0], &t[0], &t[0]).score(|_, _| panic!("in the score")).call(),
                    _ => associative_scan(t[0], 0, |_, _| panic!("in the combine")).call(),
                },
                |&output| vec![output],
            )
        });
        let message = *panic.unwrap_err().downcast::<&str>().unwrap();
        assert!(message.starts_with("in the"));
        let (_, found) = evaluate(&[random("x", &[1], 1)], |t| t[0] * 0.0 + 1);
        assert_eq!(found, [1.0]);
    }
    // Also inside a recording that goes on.
    let (_, found) = evaluate(&[random("x", &[2], 1)], |t| {
        let attempt = std::panic::AssertUnwindSafe(|| associative_scan(t[0], 0, |_, _| panic!("no")).call());
        assert!(std::panic::catch_unwind(attempt).is_err());
        t[0] * 0.0 + 2
    });
    assert_eq!(found, [2.0, 2.0]);
}

/// Row 19: deep programs, on a thread with a small stack.
#[test]
fn a_hundred_thousand_operations_do_not_overflow_a_stack() {
    let thread = std::thread::Builder::new().stack_size(128 << 10).spawn(|| {
        let inputs = [("x".to_string(), Type::new(DType::F32, [2]))];
        let chain = |t: &[Tensor]| (0..100_000).fold(t[0], |x, _| x.sin());
        trace(&inputs, chain, |&output| vec![output]).unwrap().graph.nodes().len()
    });
    assert_eq!(thread.unwrap().join().unwrap(), 100_000);
}

/// A traced function may trace another function.
#[test]
fn recordings_nest() {
    let (_, found) = evaluate(&[random("x", &[2], 1)], |t| {
        let (_, inner) = evaluate(&[random("y", &[1], 2)], |u| u[0] * 0.0 + 3);
        let wrong = error(&[random("y", &[1], 2)], |u| u[0] + t[0]);
        assert_eq!(wrong.code(), "trace");
        t[0] * 0.0 + inner[0]
    });
    assert_eq!(found, [3.0, 3.0]);
}
