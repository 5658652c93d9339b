//! The combine functions of the table, forward, backward, twice backward and in forward mode.

use tilewright::prelude::*;

use crate::common::{agrees, random, to_f64s};
use crate::derivatives::check;

/// A coefficient whose products neither vanish nor explode.
fn gate(x: Tensor) -> Tensor {
    x.tanh() * 0.1 + 0.9
}

fn recurrence(x: &[Tensor], axis: isize, reverse: bool) -> Vec<Tensor> {
    let scan = associative_scan((gate(x[0]), x[1]), axis, |l, r| (l.0 * r.0, r.0 * l.1 + r.1));
    let (a, b) = if reverse { scan.reverse().call() } else { scan.call() };
    vec![a, b]
}

#[test]
fn coupled_leaves_of_the_linear_recurrence() {
    for length in [1, 2, 3, 5, 17, 128, 1000, 4097] {
        let shape: &[usize] = &[2, length];
        check(&format!("length {length}"), &[shape, shape], |x| recurrence(x, 1, false), 1);
    }
    let shape: &[usize] = &[33, 5];
    for leaf in [0, 1] {
        check("outer axis", &[shape, shape], |x| recurrence(x, 0, false), leaf);
        check("from the end", &[shape, shape], |x| recurrence(x, -2, true), leaf);
        check("rows from the end", &[shape, shape], |x| recurrence(x, -1, true), leaf);
    }
}

#[test]
fn sums_products_and_extrema() {
    for length in [1, 2, 3, 5, 17, 128, 1000, 4097] {
        check("sum", &[&[length, 2]], |x| vec![x[0].cumsum(0)], 0);
        check("product", &[&[2, length]], |x| vec![gate(x[0]).cumprod(1)], 0);
    }
    check("max", &[&[3, 130]], |x| vec![x[0].cummax(1)], 0);
    check("min", &[&[130, 3]], |x| vec![x[0].cummin(0)], 0);
    check("log-sum-exp", &[&[3, 130]], |x| vec![x[0].logcumsumexp(-1)], 0);
    let sum_and_product = |x: &[Tensor]| {
        let (sum, product) = associative_scan((x[0], gate(x[1])), 0, |l, r| (l.0 + r.0, l.1 * r.1)).call();
        vec![sum, product]
    };
    check("sum of a tuple", &[&[17], &[17]], sum_and_product, 0);
    check("product of a tuple", &[&[17], &[17]], sum_and_product, 1);
}

#[test]
fn exclusive_or_of_truth_values_and_integers() {
    let f = compile(|x: Tensor| {
        let bits = associative_scan(x.gt(0.0), 1, |l, r| l ^ r).call();
        let numbers = (x * 100.0).cast(DType::I64);
        (bits.cast(DType::I64), associative_scan(numbers, -1, |l, r| l ^ r).reverse().call())
    });
    let x = random(&[3, 1000], 1);
    agrees(&f, &x, 0.0);
    let (bits, _) = f.call(&x).unwrap();
    let (x, bits) = (to_f64s(&x), to_f64s(&bits));
    for row in 0..3 {
        let row = row * 1000..(row + 1) * 1000;
        let parity = x[row.clone()].iter().filter(|&&x| x > 0.0).count() % 2;
        assert_eq!(bits[row.end - 1], parity as f64);
    }
}

#[test]
fn nested_trees() {
    check(
        "nested tree",
        &[&[9, 2], &[9, 2], &[9]],
        |x| {
            let map = std::collections::BTreeMap::from([("c".to_owned(), x[2])]);
            let tree = (gate(x[0]), vec![(x[1], map)]);
            let (_, rest) = associative_scan(tree, 0, |l, r| {
                let ((y, left), (z, right)) = (&l.1[0], &r.1[0]);
                let map = std::collections::BTreeMap::from([("c".to_owned(), left["c"].maximum(right["c"]))]);
                (l.0 * r.0, vec![(r.0 * y + z, map)])
            })
            .call();
            vec![rest[0].0, rest[0].1["c"]]
        },
        0,
    );
}

/// (a + bi)(c + di) as pairs of reals: the coefficients turn and decay.
#[test]
fn complex_recurrence() {
    type Complex = (Tensor, Tensor);
    fn times(a: Complex, b: Complex) -> Complex {
        (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
    }
    fn scan(x: &[Tensor]) -> Vec<Tensor> {
        let size = gate(x[0]);
        let elements = ((size * x[1].cos(), size * x[1].sin()), (x[2], x[3]));
        let (_, (re, im)) = associative_scan(elements, 1, |l, r| {
            let moved = times(r.0, l.1);
            (times(l.0, r.0), (moved.0 + r.1.0, moved.1 + r.1.1))
        })
        .call();
        vec![re, im]
    }
    let shape: &[usize] = &[2, 70];
    check("real part", &[shape; 4], scan, 0);
    check("imaginary part", &[shape; 4], scan, 1);
}

#[test]
fn running_arg_max() {
    fn scan(x: &[Tensor]) -> Vec<Tensor> {
        let at = iota(x[0].shape(), 1, DType::I64);
        let (value, at) = associative_scan((x[0], at), 1, |l: (Tensor, Tensor), r| {
            let later = r.0.gt(l.0);
            (later.select(r.0, l.0), later.select(r.1, l.1))
        })
        .call();
        vec![value, at]
    }
    check("arg-max", &[&[3, 130]], scan, 0);
    let x = random(&[3, 130], 7);
    let at = to_f64s(&compile(|x: Tensor| scan(&[x])[1]).call(&x).unwrap());
    let x = to_f64s(&x);
    for row in 0..3 {
        let mut best = 0;
        for t in 0..130 {
            best = if x[row * 130 + t] > x[row * 130 + best] { t } else { best };
            assert_eq!(at[row * 130 + t], best as f64);
        }
    }
}

/// (m, s, acc) with acc one axis wider: attention's running softmax.
#[test]
fn online_softmax() {
    fn scan(x: &[Tensor]) -> Vec<Tensor> {
        let (m, s, acc) =
            associative_scan((x[0], x[0] * 0.0 + 1.0, x[1]), 1, |l: (Tensor, Tensor, Tensor), r| {
                let m = l.0.maximum(r.0);
                let (a, b) = ((l.0 - m).exp(), (r.0 - m).exp());
                (m, a * l.1 + b * r.1, a.unsqueeze(-1) * l.2 + b.unsqueeze(-1) * r.2)
            })
            .call();
        vec![m, s, acc / s.unsqueeze(-1)]
    }
    check("sum", &[&[2, 40], &[2, 40, 3]], scan, 1);
    check("weighted mean", &[&[2, 40], &[2, 40, 3]], scan, 2);
}

#[test]
fn matrix_products() {
    fn scan(x: &[Tensor]) -> Vec<Tensor> {
        let near_one = x[0] * 0.2 + tilewright::eye(x[0].dim(-1), x[0].dtype());
        vec![associative_scan(near_one, 0, |l, r| r.matmul(l)).call()]
    }
    check("2 × 2", &[&[17, 2, 2]], scan, 0);
    check("3 × 3", &[&[12, 2, 3, 3]], scan, 0);
}

/// State space: coefficients of each channel's states, inputs of each channel.
#[test]
fn leaves_of_different_trailing_shapes() {
    fn scan(x: &[Tensor]) -> Vec<Tensor> {
        let (a, b) =
            associative_scan((gate(x[0]), x[1]), 1, |l, r| (l.0 * r.0, r.0.unsqueeze(1) * l.1 + r.1)).call();
        vec![a, b]
    }
    check("[b, l, d, n] with [b, l, n]", &[&[2, 19, 2], &[2, 19, 3, 2]], scan, 1);
}

/// A gate of the combine function itself: a·b is measured in units of 1/g.
#[test]
fn captured_arrays() {
    fn scan(x: &[Tensor]) -> Vec<Tensor> {
        let g = gate(x[2]) + 0.1;
        let (a, b) =
            associative_scan((gate(x[0]), x[1]), 1, |l, r| (g * l.0 * r.0, g * r.0 * l.1 + r.1)).call();
        vec![a, b]
    }
    for leaf in [0, 1] {
        check("scalar gate", &[&[2, 33, 3], &[2, 33, 3], &[]], scan, leaf);
        check("gate of each channel", &[&[2, 33, 3], &[2, 33, 3], &[3]], scan, leaf);
    }
}

#[test]
fn scans_in_a_program() {
    let shape: &[usize] = &[6, 20];
    check(
        "chained",
        &[shape, shape],
        |x| vec![recurrence(&[x[0], recurrence(x, 1, false)[1]], 1, true)[1]],
        0,
    );
    check("two axes", &[shape], |x| vec![x[0].cumsum(0).cumsum(1).tanh()], 0);
    check(
        "into a product",
        &[shape, shape, &[20, 4]],
        |x| vec![recurrence(&x[..2], 1, false)[1].matmul(x[2]).tanh()],
        0,
    );
    check(
        "between element-wise work",
        &[shape, shape],
        |x| vec![(linear_recurrence(x[0].sigmoid(), x[1].sin() * x[0], 1) * x[1]).tanh() + x[0]],
        0,
    );
}
