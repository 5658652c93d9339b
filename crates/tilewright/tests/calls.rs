//! `compile` and `call`: caching, layouts, trees in and out, errors, panics, threads.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{agrees, random, random_f32};
use tilewright::prelude::*;

#[derive(Clone, Debug, Tree)]
struct Linear<L> {
    weight: L,
    bias: Option<L>,
    #[tree(static)]
    power: usize,
}

impl Linear<Tensor> {
    fn apply(&self, x: Tensor) -> Tensor {
        let y = x.matmul(self.weight);
        (0..self.power).fold(self.bias.map_or(y, |bias| y + bias), |y, _| y * y)
    }
}

fn linear(bias: bool, power: usize) -> Linear<Array> {
    Linear { weight: random(&[3, 2], 1), bias: bias.then(|| random(&[2], 2)), power }
}

/// A function is traced once for each structure, shape and element type, and never again.
#[test]
fn programs_are_kept() {
    let traced = AtomicUsize::new(0);
    let f = compile(|(layer, x): (Linear<Tensor>, Tensor)| {
        traced.fetch_add(1, Ordering::Relaxed);
        layer.apply(x)
    });
    let x = random(&[4, 3], 3);
    let calls = |layer: &Linear<Array>, x: &Array| {
        f.call((layer, x)).unwrap();
        traced.load(Ordering::Relaxed)
    };
    assert_eq!(calls(&linear(true, 1), &x), 1);
    assert_eq!(calls(&linear(true, 1), &random(&[4, 3], 9)), 1);
    assert_eq!(calls(&linear(false, 1), &x), 2);
    assert_eq!(calls(&linear(true, 2), &x), 3);
    assert_eq!(calls(&linear(true, 1), &random(&[5, 3], 3)), 4);
    assert_eq!(calls(&linear(false, 1), &x), 4);
    let explained = f.explain();
    assert_eq!(explained.matches("kernels").count(), 8, "{explained}");
    assert_eq!(f.dump().matches("# simplified").count(), 4);
}

#[test]
fn trees_go_in_and_out() {
    let f = compile(|(layer, x): (Linear<Tensor>, Vec<Tensor>)| {
        let outputs: Vec<Tensor> = x.iter().map(|&x| layer.apply(x)).collect();
        (Some(layer.clone()), outputs, [x[0], x[0]])
    });
    let inputs = (linear(true, 1), vec![random(&[4, 3], 3), random(&[1, 3], 4)]);
    agrees(&f, &inputs, 1e-14);
    let (layer, outputs, same) = f.call(&inputs).unwrap();
    assert_eq!(layer.unwrap().weight.to_vec::<f64>().unwrap(), inputs.0.weight.to_vec::<f64>().unwrap());
    assert_eq!(outputs[1].shape(), [1, 2]);
    assert_eq!(same[1].to_bytes().unwrap(), inputs.1[0].to_bytes().unwrap());
}

/// Strided, broadcast and reversed inputs have the values of packed ones (faults, row 15), and are not written.
#[test]
fn layouts_do_not_matter() {
    let f = compile(|(x, y): (Tensor, Tensor)| {
        (x * y + 1.0, x.matmul(y.transpose()).softmax(-1), x.sum(0), concatenate(&[x, y], 1))
    });
    let whole = random(&[7, 6], 5);
    let row = random(&[1, 4], 6);
    let views = [
        whole.slice(0, 1..6).unwrap().slice(1, 2..6).unwrap(),
        whole.flip(0).unwrap().slice(0, 0..5).unwrap().slice(1, 1..5).unwrap().flip(1).unwrap(),
        random(&[4, 5], 7).transpose(),
    ];
    let before = whole.to_bytes().unwrap();
    for view in views {
        let repeated = row.broadcast_to([5, 4]).unwrap();
        let strided = f.call((&view, &repeated)).unwrap();
        let packed = f.call((&view.to_packed().unwrap(), &repeated.to_packed().unwrap())).unwrap();
        let bits = |x: &(Array, Array, Array, Array)| [&x.0, &x.1, &x.2, &x.3].map(|x| x.to_bytes().unwrap());
        assert_eq!(bits(&strided), bits(&packed));
        agrees(&f, &(view, repeated), 1e-13);
    }
    assert_eq!(whole.to_bytes().unwrap(), before);
}

/// 64 threads that meet a new function compile it once and get the same bits (faults, row 20).
#[test]
fn threads_share_one_compilation() {
    let traced = AtomicUsize::new(0);
    let f = compile(|x: Tensor| {
        traced.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_millis(20));
        (x.sin() * 3.0).sum(-1)
    })
    .threads(1);
    let x = random_f32(&[16, 33], 1);
    let barrier = Barrier::new(64);
    let results: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let call = || {
            barrier.wait();
            f.call(&x).unwrap().to_bytes().unwrap()
        };
        let threads: Vec<_> = (0..64).map(|_| scope.spawn(call)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(traced.load(Ordering::Relaxed), 1);
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let x = random_f32(&[3, 2, 65, 16], 2);
    let run = |threads: usize| {
        let f = compile(|x: Tensor| {
            value_and_grad(|x: &Tensor| {
                flex_attention(x, x, x).mask(mods::causal).call().square().mean(..) + x.exp().sum(..)
            })(&x)
        })
        .threads(threads);
        let (value, gradient) = f.call(&x).unwrap();
        [value.to_bytes().unwrap(), gradient.to_bytes().unwrap()]
    };
    let one = run(1);
    for threads in [2, 3, 8] {
        assert_eq!(run(threads), one);
    }
}

/// Errors come out of `call` with the line and the input's path, and again at the next call.
#[test]
fn errors_surface_with_the_line() {
    let f = compile(|(layer, x): (Linear<Tensor>, Tensor)| {
        let y = x.matmul(layer.weight);
        y + layer.bias.unwrap()
    });
    let mut layer = linear(true, 1);
    layer.bias = Some(random(&[5], 2));
    for _ in 0..2 {
        let error = f.call((&layer, &random(&[4, 3], 3))).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code(), "shape");
        assert!(error.origin().unwrap().file.ends_with("calls.rs"), "{text}");
        for part in ["add", "axis 0", "1 or 2", "5 found", "`0.bias`: f64[5]", "made by dot at"] {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
    }
    assert!(f.call((&linear(true, 1), &random(&[4, 3], 3))).is_ok());
}

/// A value made outside the function is no value of it.
#[test]
fn outputs_belong_to_the_function() {
    let husk = zeros([2], DType::F32);
    let f = compile(|_: Tensor| husk);
    assert_eq!(f.call(&random(&[2], 1)).unwrap_err().code(), "trace");
    let f = compile(|x: Tensor| x + husk);
    assert_eq!(f.call(&random(&[2], 1)).unwrap_err().code(), "trace");
}

/// Rows 17 and 21: a panic in the function reaches the caller, also while a compilation is under way, and the
/// compiled function works afterwards.
#[test]
fn a_panic_leaves_the_function_usable() {
    let fail = AtomicUsize::new(2);
    let f = compile(|x: Tensor| {
        if fail.load(Ordering::Relaxed) > 0 {
            fail.fetch_sub(1, Ordering::Relaxed);
            panic!("the user's own words");
        }
        x + 1.0
    });
    let x = random(&[2], 1);
    for _ in 0..2 {
        let panic = catch_unwind(AssertUnwindSafe(|| f.call(&x))).unwrap_err();
        assert_eq!(*panic.downcast::<&str>().unwrap(), "the user's own words");
    }
    agrees(&f, &x, 1e-15);
}

/// Row 19: long programs compile, on a thread with an ordinary stack.
#[test]
fn a_hundred_thousand_operations_compile() {
    let f = compile(|x: Tensor| (0..50_000).fold(x, |x, _| (x + 1.0) * 0.5));
    let y = f.call(&Array::new([2], &[3.0f64, -1.0]).unwrap()).unwrap();
    assert_eq!(y.to_vec::<f64>().unwrap(), [1.0, 1.0]);
}

/// Row 11 and 12 through the public face: out of range is an error with the line, negative counts from the end.
#[test]
fn gathers_out_of_range_are_errors() {
    let f = compile(|(table, at): (Tensor, Tensor)| table.at([at]));
    let table = Array::new([3], &[1.0f32, 2.0, 3.0]).unwrap();
    let good = f.call((&table, &Array::new([2], &[-1i32, 0]).unwrap())).unwrap();
    assert_eq!(good.to_vec::<f32>().unwrap(), [3.0, 1.0]);
    for wrong in [3i32, -4, i32::MAX, i32::MIN] {
        let error = f.call((&table, &Array::new([2], &[0, wrong]).unwrap())).unwrap_err();
        assert_eq!(error.code(), "index", "{error}");
        assert!(error.origin().unwrap().file.ends_with("calls.rs"), "{error}");
    }
}

/// The blocks of a mask that captures nothing are counted. A causal one of 256 queries, in blocks of 64, by 256 keys,
/// in blocks of 128: all four of the first keys are live, of which two lie on the diagonal, and two of the second.
#[test]
fn explain_counts_the_blocks_of_a_mask() {
    let causal = compile(|x: Tensor| flex_attention(&x, &x, &x).mask(mods::causal).call());
    causal.call(&random(&[1, 1, 256, 8], 1)).unwrap();
    let explained = causal.explain();
    assert!(explained.contains("6 of 8 live (2 full, 4 partial)"), "{explained}");
    let padded = compile(|(x, length): (Tensor, Tensor)| {
        flex_attention(&x, &x, &x).mask(|at| at.key.lt(length.at([at.batch]))).call()
    });
    padded.call((&random(&[1, 1, 256, 8], 1), &Array::new([1], &[100i32]).unwrap())).unwrap();
    let explained = padded.explain();
    assert!(explained.contains("live blocks depend on what it captures"), "{explained}");
}
