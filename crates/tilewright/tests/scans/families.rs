//! The combine functions of the table, forward, backward, twice backward and in forward mode.

use tilewright::prelude::*;

use crate::common::{agrees, random, to_f64s};
use crate::derivatives::{LENGTHS, check, check_lengths};

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
    check_lengths("recurrence", |n| vec![vec![2, n]; 2], |x| recurrence(x, 1, false), &[0, 1]);
    check_lengths("from the end, over columns", |n| vec![vec![n, 3]; 2], |x| recurrence(x, 0, true), &[1]);
    let shape: &[usize] = &[33, 5];
    for leaf in [0, 1] {
        check("outer axis", &[shape, shape], |x| recurrence(x, 0, false), leaf);
        check("from the end", &[shape, shape], |x| recurrence(x, -2, true), leaf);
        check("rows from the end", &[shape, shape], |x| recurrence(x, -1, true), leaf);
    }
}

#[test]
fn sums_products_and_extrema() {
    check_lengths("sum", |n| vec![vec![n, 2]], |x| vec![x[0].cumsum(0)], &[0]);
    check_lengths("product", |n| vec![vec![2, n]], |x| vec![gate(x[0]).cumprod(1)], &[0]);
    check_lengths("max", |n| vec![vec![3, n]], |x| vec![x[0].cummax(1)], &[0]);
    check_lengths("min", |n| vec![vec![n, 3]], |x| vec![x[0].cummin(0)], &[0]);
    check_lengths("log-sum-exp", |n| vec![vec![3, n]], |x| vec![x[0].logcumsumexp(-1)], &[0]);
    let sum_and_product = |x: &[Tensor]| {
        let (sum, product) = associative_scan((x[0], gate(x[1])), 0, |l, r| (l.0 + r.0, l.1 * r.1)).call();
        vec![sum, product]
    };
    check_lengths("tuple", |n| vec![vec![n]; 2], sum_and_product, &[0, 1]);
}

#[test]
fn exclusive_or_of_truth_values_and_integers() {
    let f = compile(|x: Tensor| {
        let bits = associative_scan(x.gt(0.0), 1, |l, r| l ^ r).call();
        let numbers = (x * 100.0).cast(DType::I64);
        (bits.cast(DType::I64), associative_scan(numbers, -1, |l, r| l ^ r).reverse().call())
    });
    for length in LENGTHS {
        let x = random(&[3, length], 1);
        agrees(&f, &x, 0.0);
        let (bits, _) = f.call(&x).unwrap();
        let (x, bits) = (to_f64s(&x), to_f64s(&bits));
        for row in 0..3 {
            let row = row * length..(row + 1) * length;
            let parity = x[row.clone()].iter().filter(|&&x| x > 0.0).count() % 2;
            assert_eq!(bits[row.end - 1], parity as f64);
        }
    }
}

#[test]
fn nested_trees() {
    check_lengths(
        "nested tree",
        |n| vec![vec![n, 2], vec![n, 2], vec![n]],
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
        &[0, 1],
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
    check_lengths("complex recurrence", |n| vec![vec![2, n]; 4], scan, &[0, 1]);
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
    check_lengths("arg-max", |n| vec![vec![3, n]], scan, &[0]);
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
    check_lengths("online softmax", |n| vec![vec![2, n], vec![2, n, 3]], scan, &[1, 2]);
}

/// Sums that start anew at flags, lifted by hand.
#[test]
fn segmented_sums() {
    fn scan(x: &[Tensor]) -> Vec<Tensor> {
        let starts = (iota(x[0].shape(), 0, DType::I64) % 7).eq(3);
        let (_, sums) = associative_scan((starts, x[0]), 0, |l: (Tensor, Tensor), r| {
            (l.0 | r.0, r.0.select(r.1, l.1 + r.1))
        })
        .call();
        vec![sums, sums * sums]
    }
    check_lengths("segmented sum", |n| vec![vec![n, 3]], scan, &[0, 1]);
}

#[test]
fn matrix_products() {
    fn scan(x: &[Tensor]) -> Vec<Tensor> {
        let near_one = x[0] * 0.05 + tilewright::eye(x[0].dim(-1), x[0].dtype());
        vec![associative_scan(near_one, 0, |l, r| r.matmul(l)).call()]
    }
    check_lengths("2 × 2", |n| vec![vec![n, 2, 2]], scan, &[0]);
    check_lengths("3 × 3", |n| vec![vec![n, 2, 3, 3]], scan, &[0]);
}

/// State space: coefficients of each channel's states, inputs of each channel.
#[test]
fn leaves_of_different_trailing_shapes() {
    fn scan(x: &[Tensor]) -> Vec<Tensor> {
        let (a, b) =
            associative_scan((gate(x[0]), x[1]), 1, |l, r| (l.0 * r.0, r.0.unsqueeze(1) * l.1 + r.1)).call();
        vec![a, b]
    }
    check_lengths("[b, l, d, n] with [b, l, n]", |n| vec![vec![2, n, 2], vec![2, n, 3, 2]], scan, &[0, 1]);
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
    check_lengths("scalar gate", |n| vec![vec![2, n, 3], vec![2, n, 3], vec![]], scan, &[0, 1]);
    check_lengths("gate of each channel", |n| vec![vec![2, n, 3], vec![2, n, 3], vec![3]], scan, &[0, 1]);
}

#[test]
fn scans_in_a_program() {
    check_lengths(
        "chained",
        |n| vec![vec![3, n]; 2],
        |x| vec![recurrence(&[x[0], recurrence(x, 1, false)[1]], 1, true)[1]],
        &[0],
    );
    check_lengths("two axes", |n| vec![vec![3, n]], |x| vec![(x[0].cumsum(0).cumsum(1) * 0.1).tanh()], &[0]);
    check_lengths(
        "into a product",
        |n| vec![vec![n, 3], vec![n, 3], vec![3, 4]],
        |x| vec![recurrence(&x[..2], 0, false)[1].matmul(x[2]).tanh()],
        &[0],
    );
    check_lengths(
        "between element-wise work",
        |n| vec![vec![3, n]; 2],
        |x| vec![(linear_recurrence(x[0].sigmoid(), x[1].sin() * x[0], 1) * x[1]).tanh() + x[0]],
        &[0],
    );
}
