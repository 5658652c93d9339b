//! The table of bad input and faults: the variant, the argument, the axis, both sizes and the user's line; and that
//! the library works afterwards.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use tilewright::prelude::*;
use tilewright::tree::{MapLeaves, leaves};
use tilewright::{Compiled, ErrorKind, mods};
use tilewright_generate::Random;
use tilewright_interp::Precision;

use crate::attention::{Inputs, Outputs, Sizes, check_call, inputs, learned, with_gradients};
use crate::golden::{elements, random, reference};

const SIZES: Sizes = Sizes {
    batch: 2,
    heads: 2,
    key_batch: 2,
    key_heads: 1,
    queries: 9,
    keys: 7,
    head_size: 4,
    value_size: 3,
};

fn array(dtype: DType, shape: &[usize]) -> Array {
    random(&mut Random::new(1), dtype, shape, 5)
}

/// A line of this file, and what stands at the place that an error names, which is at most a few lines below.
type Place = (u32, &'static str);

/// The error of a call that must fail: it has the code, names the place, holds `parts`, and is short. The library
/// works afterwards.
#[track_caller]
fn refused<T, O, F, A>(f: &Compiled<T, O, F>, inputs: A, code: &str, place: Place, parts: &[&str]) -> Error
where
    O: MapLeaves<Tensor, Array>,
    F: Fn(T) -> O,
    A: MapLeaves<Array, Tensor, Output = T>,
{
    let Err(error) = f.call(inputs) else { panic!("the call succeeded, not refused with {code}: {parts:?}") };
    let text = error.to_string();
    assert_eq!(error.code(), code, "{text}");
    let origin = error.origin().unwrap_or_else(|| panic!("no line: {text}"));
    let (line, column) = (origin.line as usize, origin.column as usize);
    assert!(origin.file.ends_with("faults.rs"), "{text}");
    assert!((1..6).contains(&(origin.line - place.0)), "a line after {} expected: {text}", place.0);
    let named = &include_str!("faults.rs").lines().nth(line - 1).expect("a line of this file")[column - 1..];
    assert!(named.starts_with(place.1), "`{}` expected: {text}", place.1);
    assert!(text.len() < 1000, "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    let works = compile(|x: Tensor| flex_attention(&x, &x, &x).mask(mods::causal).call());
    let output = works.call(&array(DType::F32, &[1, 1, 3, 2])).unwrap();
    assert!(elements(&output).iter().all(|x| x.is_finite()));
    error
}

#[test]
fn row_01_shapes_that_disagree() {
    let place = (line!(), "call()");
    let f = compile(|(q, k, v): (Tensor, Tensor, Tensor)| flex_attention(&q, &k, &v).call());
    type Case = ([&'static [usize]; 3], &'static str, Option<usize>, &'static [&'static str]);
    let cases: [Case; 8] = [
        ([&[2, 3, 4], &[1, 1, 3, 4], &[1, 1, 3, 4]], "query", None, &["4 axes", "[2, 3, 4]"]),
        ([&[1, 1, 3, 4], &[3, 4], &[1, 1, 3, 4]], "key", None, &["4 axes", "[3, 4]"]),
        ([&[1, 1, 3, 4], &[1, 1, 3, 4], &[3]], "value", None, &["4 axes", "[3]"]),
        ([&[1, 1, 3, 4], &[1, 1, 3, 8], &[1, 1, 3, 4]], "key", Some(3), &["head size 4", "8 found"]),
        ([&[4, 1, 3, 4], &[3, 1, 3, 4], &[3, 1, 3, 4]], "key", Some(0), &["4", "3 found"]),
        ([&[4, 1, 3, 4], &[4, 1, 3, 4], &[1, 1, 3, 4]], "value", Some(0), &["4 as key", "1 found"]),
        ([&[1, 2, 3, 4], &[1, 2, 3, 4], &[1, 1, 3, 4]], "value", Some(1), &["2 as key", "1 found"]),
        ([&[1, 1, 3, 4], &[1, 1, 3, 4], &[1, 1, 5, 4]], "value", Some(2), &["3 as key", "5 found"]),
    ];
    for (shapes, argument, axis, parts) in cases {
        let [q, k, v] = shapes.map(|shape| array(DType::F32, shape));
        let error = refused(&f, (&q, &k, &v), "shape", place, parts);
        let ErrorKind::Shape { argument: named, axis: at, .. } = error.kind() else { panic!("{error}") };
        assert_eq!((named.as_str(), *at), (argument, axis), "{error}");
    }
}

#[test]
fn row_02_element_types() {
    let place = (line!(), "call()");
    let f = compile(|(q, k, v): (Tensor, Tensor, Tensor)| flex_attention(&q, &k, &v).call());
    let of = |dtype| array(dtype, &[1, 1, 3, 4]);
    for (types, argument, found) in [
        ([DType::F32, DType::BF16, DType::F32], "key", DType::BF16),
        ([DType::F32, DType::F32, DType::F64], "value", DType::F64),
        ([DType::F16, DType::BF16, DType::BF16], "key", DType::BF16),
        ([DType::I32, DType::I32, DType::I32], "query", DType::I32),
        ([DType::U8, DType::F32, DType::F32], "query", DType::U8),
        ([DType::F32, DType::I64, DType::F32], "key", DType::I64),
    ] {
        let [q, k, v] = types.map(of);
        let error = refused(&f, (&q, &k, &v), "dtype", place, &[argument, found.name()]);
        let ErrorKind::DType { argument: named, found: given, .. } = error.kind() else { panic!("{error}") };
        assert_eq!((named.as_str(), *given), (argument, found), "{error}");
    }
}

#[test]
fn row_03_heads_that_do_not_divide() {
    let place = (line!(), "call()");
    let f = compile(|(q, k): (Tensor, Tensor)| flex_attention(&q, &k, &k).call());
    for key_heads in [2, 4, 0] {
        let (q, k) = (array(DType::F32, &[1, 3, 5, 4]), array(DType::F32, &[1, key_heads, 5, 4]));
        let found = format!("{key_heads} found");
        let error = refused(&f, (&q, &k), "shape", place, &["key", "axis 1", "3", &found]);
        assert!(matches!(error.kind(), ErrorKind::Shape { axis: Some(1), .. }), "{error}");
    }
}

/// Attention with a learned bias of relative positions, and its gradients.
fn relative(q: &Tensor, k: &Tensor, v: &Tensor, c: &[Tensor]) -> tilewright::FlexAttention {
    flex_attention(q, k, v).score(|s, at| s + c[0].at([at.head, at.query - at.key + 20]))
}

fn zero(arrays: &[&Array]) -> bool {
    arrays.iter().all(|array| elements(array).iter().all(|&x| x == 0.0))
}

#[test]
fn row_04_no_queries() {
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let sizes = Sizes { queries: 0, ..SIZES };
        let ((output, lse, maximum), (dq, dk, dv, captured)) =
            check_call(dtype, &sizes, &[learned([2, 40])], relative);
        assert_eq!((output.shape(), dq.shape()), (&[2, 2, 0, 3][..], &[2, 2, 0, 4][..]));
        assert_eq!((lse.shape(), maximum.shape()), (&[2, 2, 0][..], &[2, 2, 0][..]));
        assert_eq!((dk.shape(), dv.shape()), (&[2, 1, 7, 4][..], &[2, 1, 7, 3][..]));
        assert!(zero(&[&dk, &dv, &captured[0]]));
    }
}

#[test]
fn row_05_no_keys() {
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let sizes = Sizes { keys: 0, ..SIZES };
        let ((output, lse, maximum), (dq, dk, dv, captured)) =
            check_call(dtype, &sizes, &[learned([2, 40])], relative);
        assert!(zero(&[&output, &dq, &captured[0]]));
        assert!(elements(&lse).iter().chain(&elements(&maximum)).all(|&x| x == f64::NEG_INFINITY));
        assert_eq!((dk.shape(), dv.shape()), (&[2, 1, 0, 4][..], &[2, 1, 0, 3][..]));
    }
}

/// Document 1 of three has no position: the others are as if it had never been.
#[test]
fn row_06_an_empty_document() {
    let f = compile(with_gradients(|q, k, v, c| flex_attention(q, k, v).mask(mods::document(c[0]))));
    let sizes = Sizes { batch: 1, key_batch: 1, queries: 7, ..SIZES };
    let with_numbers = |numbers: [i32; 7]| {
        let mut inputs = inputs(DType::F32, &sizes, &[], 1);
        inputs.0.3 = vec![Array::new([1, 7], &numbers).unwrap()];
        let ((output, lse, maximum), (dq, dk, dv, _)) = f.call(&inputs).unwrap();
        [output, lse, maximum, dq, dk, dv].map(|array| array.to_bytes().unwrap())
    };
    assert_eq!(with_numbers([0, 0, 0, 2, 2, 2, 2]), with_numbers([0, 0, 0, 1, 1, 1, 1]));
}

#[test]
fn row_07_rows_with_every_key_masked() {
    let masked = |q: &Tensor, k: &Tensor, v: &Tensor, c: &[Tensor]| {
        relative(q, k, v, c).mask(|at| at.query.gt(3) & at.batch.eq(0))
    };
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        let ((output, lse, maximum), (dq, dk, dv, _)) =
            check_call(dtype, &SIZES, &[learned([2, 40])], masked);
        for (row, lse) in elements(&lse).into_iter().enumerate() {
            let sees = row % SIZES.queries > 3 && row < SIZES.heads * SIZES.queries;
            assert_eq!(lse == f64::NEG_INFINITY, !sees, "row {row}");
            assert_eq!(elements(&maximum)[row] == f64::NEG_INFINITY, !sees, "row {row}");
            for (array, width) in [(&output, SIZES.value_size), (&dq, SIZES.head_size)] {
                let row = &elements(array)[row * width..][..width];
                assert!(sees || row.iter().all(|x| *x == 0.0), "{row:?}");
            }
        }
        let second = |array: &Array| array.slice(0, 1..2).unwrap();
        assert!(zero(&[&second(&dk), &second(&dv)]));
    }
}

#[test]
fn row_08_nan_in_masked_keys() {
    let f = compile(with_gradients(|q, k, v, c| relative(q, k, v, c).mask(|at| at.key.lt(4))));
    let clean = inputs(DType::F32, &SIZES, &[learned([2, 40])], 1);
    let mut spoiled = clean.clone();
    for array in [&mut spoiled.0.1, &mut spoiled.0.2] {
        let values: Vec<f32> = array.to_vec().unwrap();
        let width = *array.shape().last().unwrap();
        let at = |i: usize| if i / width % SIZES.keys < 4 { values[i] } else { f32::NAN };
        *array = Array::new(array.shape(), &(0..values.len()).map(at).collect::<Vec<f32>>()).unwrap();
    }
    assert_eq!(bits(&f.call(&clean).unwrap()), bits(&f.call(&spoiled).unwrap()));
}

fn bits(outputs: &Outputs<Array>) -> Vec<Vec<u8>> {
    leaves::<Array, _>(outputs).iter().map(|(_, array)| array.to_bytes().unwrap()).collect()
}

/// What a score function gives for some pairs: the results are finite, infinite and NaN where the reference's are.
#[test]
fn row_09_scores_that_are_not_finite() {
    let special = [f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        for special in special {
            let places: [fn(At) -> Tensor; 4] = [
                |at| at.key.eq(3) & at.query.eq(2),
                |at| at.query.eq(5),
                |at| at.key.eq(0),
                |at| at.query.ge(at.key) & at.head.eq(1),
            ];
            for (i, place) in places.into_iter().enumerate() {
                let f = compile(with_gradients(|q, k, v, _| {
                    flex_attention(q, k, v).score(|s, at| place(at).select(special, s))
                }));
                let inputs = inputs(dtype, &SIZES, &[], 1);
                let found = f.call(&inputs).unwrap();
                let golden = reference(&f.program(&inputs).unwrap(), &inputs, Precision::Exact);
                let tolerance = if dtype == DType::BF16 { 0.05 } else { 1e-4 };
                for ((path, found), golden) in leaves::<Array, _>(&found).iter().zip(&golden) {
                    for (x, y) in elements(found).iter().zip(golden) {
                        let same = x == y
                            || (x.is_nan() && y.is_nan())
                            || (x - y).abs() <= tolerance * (1.0 + y.abs());
                        assert!(same, "{dtype}, {special} at place {i}, result {path}: {x}, reference {y}");
                    }
                }
            }
        }
    }
}

#[test]
fn row_10_masked_pairs_read_nothing() {
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let (_, (_, _, _, captured)) = check_call(dtype, &SIZES, &[learned([5])], |q, k, v, c| {
            flex_attention(q, k, v).score(|s, at| s + c[0].at([at.key + 1])).mask(|at| at.key.lt(3))
        });
        let gradient = elements(&captured[0]);
        assert!(gradient[0] == 0.0 && gradient[4] == 0.0 && gradient[1] != 0.0, "{gradient:?}");
    }
    // An empty array that no pair reads.
    check_call(DType::F32, &SIZES, &[learned([0])], |q, k, v, c| {
        flex_attention(q, k, v).score(|s, at| s + c[0].at([at.key])).mask(|at| at.key.lt(0))
    });
}

#[test]
fn row_11_live_pairs_out_of_range() {
    let place = (line!(), "at([at.head");
    let read = |s: Tensor, at: At, c: &[Tensor]| s + c[0].at([at.head, at.query - at.key + 6]);
    let forward = compile(|(q, k, v, bias): (Tensor, Tensor, Tensor, Tensor)| {
        flex_attention(&q, &k, &v).score(|s, at| read(s, at, &[bias])).call()
    });
    let backward =
        compile(with_gradients(|q, k, v, c| flex_attention(q, k, v).score(|s, at| read(s, at, c))));
    let inputs = inputs(DType::F32, &SIZES, &[learned([2, 14])], 1);
    let (q, k, v, captured) = &inputs.0;
    // The greatest index is 8 + 6.
    let parts = ["index 14", "axis 1", "size 14"];
    for error in [
        refused(&forward, (q, k, v, &captured[0]), "index", place, &parts),
        refused(&backward, &inputs, "index", place, &parts),
    ] {
        let ErrorKind::Index { axis: 1, index: 14, size: 14, .. } = error.kind() else { panic!("{error}") };
    }
    let place = (line!(), "at([at.key])");
    let masked = compile(|(q, k, v, t): (Tensor, Tensor, Tensor, Tensor)| {
        flex_attention(&q, &k, &v).mask(|at| t.at([at.key]).eq(1)).call()
    });
    let table = array(DType::I32, &[4]);
    refused(&masked, (q, k, v, &table), "index", place, &["axis 0", "size 4"]);
}

#[test]
fn row_12_empty_arrays_and_negative_indices() {
    let place = (line!(), "at([at.key])");
    let f = compile(|(q, k, v, bias): (Tensor, Tensor, Tensor, Tensor)| {
        flex_attention(&q, &k, &v).score(|s, at| s + bias.at([at.key])).call()
    });
    let (q, k, v, _) = inputs(DType::F32, &SIZES, &[], 1).0;
    refused(&f, (&q, &k, &v, &array(DType::F32, &[0])), "index", place, &["index 0", "axis 0", "size 0"]);
    let place = (line!(), "at([at])");
    let outside = compile(|(table, at): (Tensor, Tensor)| table.at([at]));
    refused(
        &outside,
        (&array(DType::F32, &[0]), &array(DType::I32, &[2])),
        "index",
        place,
        &["axis 0", "size 0"],
    );
    // Negative ones count from the end, down to the beginning and not beyond.
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        check_call(dtype, &SIZES, &[learned([9])], |q, k, v, c| {
            flex_attention(q, k, v).score(|s, at| s + c[0].at([at.query - at.key - 2]))
        });
    }
    let place = (line!(), "at([-at.key - 1])");
    let beyond = compile(|(q, k, v, bias): (Tensor, Tensor, Tensor, Tensor)| {
        flex_attention(&q, &k, &v).score(|s, at| s + bias.at([-at.key - 1])).call()
    });
    refused(
        &beyond,
        (&q, &k, &v, &array(DType::F32, &[6])),
        "index",
        place,
        &["index -7", "axis 0", "size 6"],
    );
}

#[test]
fn row_14_sizes_that_overflow() {
    let huge = 1usize << 40;
    for error in [
        Array::zeros(DType::F32, [huge, huge]).unwrap_err(),
        Array::scalar(1.0f32).broadcast_to([huge, huge]).unwrap_err(),
        Array::from_bytes(DType::U8, [huge, huge], &[]).unwrap_err(),
    ] {
        assert_eq!(error.code(), "too_large", "{error}");
    }
    let x = array(DType::F32, &[1]);
    let place = (line!(), "broadcast_to([");
    let f = compile(|x: Tensor| x.broadcast_to([1usize << 40, 1 << 40]).sum(..));
    refused(&f, &x, "too_large", place, &["2^63"]);
    let place = (line!(), "zeros([");
    let f =
        compile(|x: Tensor| (x.reshape([1, 1]) + zeros([1usize << 32, 1usize << 32], DType::F32)).sum(..));
    refused(&f, &x, "too_large", place, &["2^63"]);
    // An output that fits in the address space and not in memory.
    let f = compile(|x: Tensor| x.broadcast_to([1usize << 44]) + 1.0);
    assert_eq!(f.call(&x).unwrap_err().code(), "out_of_memory");
    // More keys than an index of a key can name.
    let place = (line!(), "call()");
    let f = compile(|(q, k): (Tensor, Tensor)| flex_attention(&q, &k, &k).call());
    let long = array(DType::F32, &[1, 1, 1, 1]).broadcast_to([1, 1, 1 << 31, 1]).unwrap();
    refused(&f, (&array(DType::F32, &[1, 1, 2, 1]), &long), "shape", place, &["key", "axis 2", "2147483648"]);
}

/// More than 2³¹ elements, in views that repeat few.
#[test]
fn row_14_more_elements_than_31_bits_count() {
    let f = compile(|x: Tensor| {
        (x.slice(0, -2..).sum(0), x.at([(1i64 << 31) + 5]), x.slice(0, (1 << 31) + 3..(1 << 31) + 4))
    });
    let x = array(DType::F64, &[1, 3]);
    let long = x.broadcast_to([(1 << 31) + 64, 3]).unwrap();
    let (last, one, cut) = f.call(&long).unwrap();
    let x = elements(&x);
    assert_eq!(elements(&last), x.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
    assert_eq!((elements(&one), elements(&cut)), (x.clone(), x));
}

#[test]
fn row_16_inputs_are_never_written() {
    let f = compile(with_gradients(|q, k, v, _| flex_attention(q, k, v).mask(mods::causal)));
    let ((x, ..), (_, lse)) =
        inputs(DType::F32, &Sizes { key_heads: 2, keys: 9, value_size: 4, ..SIZES }, &[], 1);
    let before = [x.to_bytes().unwrap(), lse.to_bytes().unwrap()];
    // One array as everything, upside down too.
    let backwards = x.flip(2).unwrap();
    let aliased: Inputs<Array> = ((x.clone(), backwards, x.clone(), vec![]), (x.clone(), lse.clone()));
    f.call(&aliased).unwrap();
    assert_eq!([x.to_bytes().unwrap(), lse.to_bytes().unwrap()], before);
    // A result that is an input is a copy of it.
    let same = compile(|x: Tensor| (x, x));
    let (a, b) = same.call(&x).unwrap();
    assert_eq!([a.to_bytes().unwrap(), b.to_bytes().unwrap()], [before[0].clone(), before[0].clone()]);
}

#[test]
fn row_17_panics_of_user_functions() {
    let panics = AtomicUsize::new(3);
    let panic_in = |place: usize| {
        if panics.load(Ordering::Relaxed) == place {
            panic!("the user's own words, {place}");
        }
    };
    let f = compile(|x: Tensor| {
        let value_and_grad = value_and_grad(|x: &Tensor| {
            let y = flex_attention(x, x, x)
                .score(|s, at| {
                    panic_in(3);
                    s + at.key.cast(s.dtype())
                })
                .mask(|at| {
                    panic_in(2);
                    at.query.ge(at.key)
                })
                .call();
            let y = associative_scan(y, 2, |l, r| {
                panic_in(1);
                l + r
            });
            y.call().sum(..)
        });
        value_and_grad(&x)
    });
    let x = array(DType::F32, &[1, 1, 5, 2]);
    for place in [3, 2, 1] {
        let panic = catch_unwind(AssertUnwindSafe(|| f.call(&x).map(drop)))
            .expect_err("the panic reaches the caller");
        assert_eq!(*panic.downcast::<String>().unwrap(), format!("the user's own words, {place}"));
        panics.fetch_sub(1, Ordering::Relaxed);
    }
    assert!(f.call(&x).is_ok());
}

#[test]
fn row_18_what_cannot_be_traced() {
    let (q, k, v, captured) = inputs(DType::F32, &SIZES, &[learned([2, 40])], 1).0;
    let bias = &captured[0];
    type Operands = (Tensor, Tensor, Tensor, Tensor);

    // Too few indices: the row of a captured array where one number is needed.
    let place = (line!(), "at([at.head])");
    let f = compile(|(q, k, v, bias): Operands| {
        flex_attention(&q, &k, &v).score(|s, at| s + bias.at([at.head])).call()
    });
    refused(
        &f,
        (&q, &k, &v, bias),
        "shape",
        place,
        &["2 indices", "1 found", "`3`: f32[2, 40]", "index every axis"],
    );
    // Too many.
    let place = (line!(), "at([at.head, at.key");
    let f = compile(|(q, k, v, bias): Operands| {
        flex_attention(&q, &k, &v).score(|s, at| s + bias.at([at.head, at.key, at.key])).call()
    });
    refused(&f, (&q, &k, &v, bias), "shape", place, &["2", "3", "f32[2, 40]"]);
    // A vector that no read gives.
    let place = (line!(), "score(");
    let f = compile(|(q, k, v, _): Operands| {
        flex_attention(&q, &k, &v).score(|s, _| s + arange(3, DType::F32)).call()
    });
    refused(&f, (&q, &k, &v, bias), "trace", place, &["one number", "f32[3]", "select"]);
    // A score that is a truth value, a mask that is a number.
    let place = (line!(), "score(");
    let f = compile(|(q, k, v, _): Operands| {
        flex_attention(&q, &k, &v).score(|_, at| at.query.ge(at.key)).call()
    });
    refused(&f, (&q, &k, &v, bias), "dtype", place, &["f32 expected", "bool found"]);
    let place = (line!(), "mask(");
    let f = compile(|(q, k, v, _): Operands| flex_attention(&q, &k, &v).mask(|at| at.query - at.key).call());
    refused(&f, (&q, &k, &v, bias), "dtype", place, &["bool expected", "i32 found"]);
    // Another attention, and random numbers, in a function of one pair.
    let place = (line!(), "call().sum");
    let f = compile(|(q, k, v, _): Operands| {
        flex_attention(&q, &k, &v).score(|s, _| s + flex_attention(&q, &k, &v).call().sum(..)).call()
    });
    refused(&f, (&q, &k, &v, bias), "trace", place, &["score function or mask", "outside"]);
    // Floats as indices, and types that differ.
    let place = (line!(), "at([s, s])");
    let f = compile(|(q, k, v, bias): Operands| {
        flex_attention(&q, &k, &v).score(|s, _| s + bias.at([s, s])).call()
    });
    refused(&f, (&q, &k, &v, bias), "dtype", place, &["integer", "f32 found"]);
    let place = (line!(), "s + at.key");
    let f = compile(|(q, k, v, _): Operands| flex_attention(&q, &k, &v).score(|s, at| s + at.key).call());
    refused(&f, (&q, &k, &v, bias), "dtype", place, &["f32 expected", "i32 found", "cast"]);
    // A value that has left the function that made it.
    let place = (line!(), "y + leaked");
    let f = compile(|(q, k, v, _): Operands| {
        let mut leaked = None;
        let y = flex_attention(&q, &k, &v).score(|s, _| *leaked.insert(s)).call();
        y + leaked.unwrap()
    });
    refused(&f, (&q, &k, &v, bias), "trace", place, &["outside the function that made it"]);
}

/// Compiles, or says that a limit is exceeded; in the time of a test, on the stack of a test.
#[track_caller]
fn compiles_or_limit<T, O, F, A>(f: &Compiled<T, O, F>, inputs: A)
where
    O: MapLeaves<Tensor, Array>,
    F: Fn(T) -> O,
    A: MapLeaves<Array, Tensor, Output = T>,
{
    if let Err(error) = f.program(inputs) {
        assert_eq!(error.code(), "limit", "{error}");
    }
}

#[test]
fn row_19_a_hundred_thousand_operations() {
    let long = |x: Tensor| (0..50_000).fold(x, |x, _| (x + 1.0) * 0.5);
    let x = array(DType::F64, &[2, 3]);
    let f = compile(|x: Tensor| long(x).sum(..));
    assert!(f.call(&x).unwrap().item::<f64>().unwrap().is_finite());
    let f = compile(|x: Tensor| grad(|x: &Tensor| long(x.sin()).sum(..))(&x));
    compiles_or_limit(&f, &x);
}

#[test]
fn row_19_a_hundred_thousand_operations_in_a_score_function() {
    let x = array(DType::F32, &[1, 1, 2, 2]);
    let long = |s: Tensor| (0..50_000).fold(s, |s, _| (s + 1.0) * 0.5);
    let f = compile(|x: Tensor| flex_attention(&x, &x, &x).score(|s, _| long(s)).call());
    compiles_or_limit(&f, &x);
    let f = compile(|x: Tensor| {
        grad(|x: &Tensor| flex_attention(x, x, x).score(|s, _| long(s)).call().sum(..))(&x)
    });
    compiles_or_limit(&f, &x);
}

#[test]
fn row_19_a_hundred_thousand_operations_in_a_combine_function() {
    let x = array(DType::F32, &[5]);
    let f = compile(|x: Tensor| {
        associative_scan(x, 0, |l: Tensor, r: Tensor| (0..50_000).fold(l + r, |x, _| (x * 2.0) * 0.5)).call()
    });
    compiles_or_limit(&f, &x);
}

#[test]
fn row_20_many_threads_compile_one_function() {
    let traced = AtomicUsize::new(0);
    let attend = with_gradients(|q, k, v, c| relative(q, k, v, c).mask(mods::causal));
    let f = compile(|inputs| {
        traced.fetch_add(1, Ordering::Relaxed);
        attend(inputs)
    });
    let inputs = inputs(DType::F32, &SIZES, &[learned([2, 40])], 1);
    let barrier = Barrier::new(64);
    let results: Vec<Vec<Vec<u8>>> = std::thread::scope(|scope| {
        let call = || {
            barrier.wait();
            bits(&f.call(&inputs).unwrap())
        };
        let threads: Vec<_> = (0..64).map(|_| scope.spawn(call)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(traced.load(Ordering::Relaxed), 1);
    assert!(results.iter().all(|result| *result == results[0]));
}
