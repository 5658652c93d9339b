//! What is refused, with its facts and line; panics, tracing faults, sizes, threads (faults, rows 1, 14, 17, 18, 20).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use tilewright::prelude::*;

use crate::common::{random, random_f32, to_f64s};

type Pair = (Tensor, Tensor);

/// The error of a function of two arrays, which must name this file, the code and all parts.
#[track_caller]
fn refused(shapes: [&[usize]; 2], f: impl Fn(Pair) -> Tensor, code: &str, parts: &[&str]) {
    let error = compile(f).call((&random(shapes[0], 1), &random(shapes[1], 2))).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.code(), code, "{text}");
    assert!(error.origin().unwrap().file.ends_with("faults.rs"), "{text}");
    assert!(text.len() < 1000);
    for part in ["associative_scan"].iter().chain(parts) {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

fn sums(l: Pair, r: Pair) -> Pair {
    (l.0 + r.0, l.1 + r.1)
}

#[test]
fn wrong_arguments_are_refused() {
    let same: [&[usize]; 2] = [&[4, 3], &[4, 3]];
    let scan = |x: Pair| associative_scan(x, 0, sums);
    refused(
        [&[4, 3], &[5, 3]],
        move |x| scan(x).call().0,
        "shape",
        &["leaf 1", "axis 0", "4 expected", "5 found"],
    );
    refused([&[4, 3], &[]], move |x| scan(x).call().0, "shape", &["leaf 1", "more than 0 axes"]);
    refused(same, |x| associative_scan(x, 2, sums).call().0, "shape", &["axis", "rank-2", "2 found"]);
    refused(same, |x| associative_scan(x, -3, sums).call().0, "shape", &["axis", "rank-2", "-3 found"]);
    refused(
        same,
        |x| associative_scan(Vec::<Tensor>::new(), 0, |l, _| l).call().first().copied().unwrap_or(x.0),
        "shape",
        &["elements", "at least 1 leaf"],
    );
    refused(
        same,
        |x| associative_scan(vec![x.0, x.1], 0, |l, _| vec![l[0]]).call()[0],
        "shape",
        &["result of combine", "2 leaves", "1 found"],
    );
    let maps = |name: &'static str| {
        move |x: Pair| {
            let tree = |name: &str, x| std::collections::BTreeMap::from([(name.to_owned(), x)]);
            associative_scan(tree("a", x.0), 0, |l, r| tree(name, l["a"] + r["a"])).call()["a"]
        }
    };
    refused(same, maps("b"), "shape", &["leaf 0 of combine's result", "`a` expected", "`b` found"]);
    refused(
        same,
        |x| associative_scan(x.0, 0, |l, r| (l + r).sum(..)).call(),
        "shape",
        &["[3] expected", "[] found"],
    );
    refused(
        same,
        |x| associative_scan(x.0, 0, |l, r| (l + r).cast(DType::F32)).call(),
        "dtype",
        &["f64", "f32"],
    );
}

#[test]
fn wrong_options_are_refused() {
    let same: [&[usize]; 2] = [&[4, 3], &[4, 3]];
    let sum = |x: Tensor| associative_scan(x, 0, |l, r| l + r);
    refused(same, move |x| sum(x.0).exclusive().call(), "argument", &["exclusive", "needs init"]);
    refused(same, move |x| sum(x.0).init(x.1).call(), "shape", &["leaf 0 of init", "[3]", "[4, 3] found"]);
    refused(
        same,
        move |x| sum(x.0).init(x.1.index(0, 0).cast(DType::I64)).call(),
        "dtype",
        &["leaf 0 of init", "f64 expected", "i64 found"],
    );
    refused(
        same,
        move |x| sum(x.0).segments(x.1).call(),
        "dtype",
        &["segments", "bool expected", "f64 found"],
    );
    let starts = |n: usize| iota([n], 0, DType::I64).eq(0);
    refused(
        same,
        move |x| sum(x.0).segments(starts(5)).call(),
        "shape",
        &["segments", "axis 0", "4 expected", "5"],
    );
    refused([&[0, 3], &[4, 3]], move |x| sum(x.0).call_with_carry().1, "argument", &["length 0", "init"]);
}

#[test]
fn tracing_faults_of_the_combine_function() {
    let same: [&[usize]; 2] = [&[4, 3], &[4, 3]];
    let leaked = std::cell::Cell::new(None);
    let error = compile(|x: Tensor| {
        let y = associative_scan(x, 0, |l, r| {
            leaked.set(Some(l));
            l + r
        })
        .call();
        y + leaked.get().unwrap()
    })
    .call(&random(same[0], 1))
    .unwrap_err();
    assert_eq!(error.code(), "trace", "{error}");
    assert!(error.to_string().contains("outside the function that made it"), "{error}");
}

#[test]
fn a_panic_in_the_combine_function_leaves_all_usable() {
    let first = AtomicUsize::new(0);
    let f = compile(|x: Tensor| {
        associative_scan(x, 0, |l, r| {
            assert!(first.fetch_add(1, Ordering::Relaxed) > 0, "the user's own words");
            l + r
        })
        .call()
    });
    let x = Array::new([3], &[1.0f64, 2.0, 3.0]).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| f.call(&x))).unwrap_err();
    assert_eq!(*panic.downcast::<&str>().unwrap(), "the user's own words");
    assert_eq!(to_f64s(&f.call(&x).unwrap()), [1.0, 3.0, 6.0]);
}

#[test]
fn sizes_that_overflow_are_refused() {
    let f = compile(|x: Tensor| x.broadcast_to([usize::MAX / 2, 3, 4]).cumsum(0).sum(..));
    let error = f.call(&random(&[1, 3, 1], 1)).unwrap_err();
    assert!(["too-large", "too_large", "out-of-memory", "out_of_memory"].contains(&error.code()), "{error}");
}

#[test]
fn threads_share_one_compilation_and_every_count_gives_the_same_bits() {
    let traced = AtomicUsize::new(0);
    let recurrence = |x: &Pair| linear_recurrence(x.0.sigmoid(), x.1, 1);
    let f = compile(|x: Pair| {
        traced.fetch_add(1, Ordering::Relaxed);
        value_and_grad(|x: &Pair| recurrence(x).square().sum(..))(&x)
    });
    let inputs = (random_f32(&[2, 100_000], 1), random_f32(&[2, 100_000], 2));
    let bits = |(value, (a, b)): (Array, (Array, Array))| [value, a, b].map(|x| x.to_bytes().unwrap());
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..64).map(|_| scope.spawn(|| bits(f.call(&inputs).unwrap()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(traced.load(Ordering::Relaxed), 1);
    assert!(results.iter().all(|result| *result == results[0]));
    let f = f.threads(1);
    assert_eq!(bits(f.call(&inputs).unwrap()), results[0]);
}
