//! Movement of elements, creation, reductions, products and indexing, against plain loops.

mod common;

use std::slice::from_ref;

use common::{assert_close, build, each, evaluate, evaluate_all, integers, place, random};
use tilewright_ir::DType;
use tilewright_trace::{
    REST, Tensor, arange, associative_scan, concatenate, constant, cross_entropy, einsum, eye, full, iota,
    ones, stack, zeros,
};

const SHAPE: [usize; 3] = [2, 3, 4];

/// Checks that `f` moves element `from(index)` of a 2×3×4 array to each index of its result.
#[track_caller]
fn moves(f: impl FnOnce(Tensor) -> Tensor, shape: &[usize], from: impl Fn(&[usize]) -> [usize; 3]) {
    let x = random("x", &SHAPE, 5);
    let (ty, found) = evaluate(from_ref(&x), |t| f(t[0]));
    assert_eq!(ty.shape, shape);
    assert_close(&found, &build(shape, |index| x.2[place(&SHAPE, &from(index))]));
}

#[test]
fn movement() {
    let unflat = |p: usize| [p / 12, p / 4 % 3, p % 4];
    moves(|x| x.reshape([4, -1]), &[4, 6], |i| unflat(6 * i[0] + i[1]));
    moves(|x| x.reshape([REST, 2usize]), &[12, 2], |i| unflat(2 * i[0] + i[1]));
    moves(|x| x.flatten(), &[24], |i| unflat(i[0]));
    moves(|x| x.permute([2, 0, 1]), &[4, 2, 3], |i| [i[1], i[2], i[0]]);
    moves(|x| x.transpose(), &[2, 4, 3], |i| [i[0], i[2], i[1]]);
    moves(|x| x.swap_axes(0, -1), &[4, 3, 2], |i| [i[2], i[1], i[0]]);
    moves(|x| x.move_axis(-1, 0), &[4, 2, 3], |i| [i[1], i[2], i[0]]);
    moves(|x| x.unsqueeze(1).unsqueeze(-1), &[2, 1, 3, 4, 1], |i| [i[0], i[2], i[3]]);
    moves(|x| x.unsqueeze(0).squeeze(0), &SHAPE, |i| [i[0], i[1], i[2]]);
    moves(|x| x.broadcast_to([5, 2, 3, 4]), &[5, 2, 3, 4], |i| [i[1], i[2], i[3]]);
    moves(|x| x.slice(1, 1..), &[2, 2, 4], |i| [i[0], i[1] + 1, i[2]]);
    moves(|x| x.slice(-1, ..-1), &[2, 3, 3], |i| [i[0], i[1], i[2]]);
    moves(|x| x.slice(-1, -3..=-1), &[2, 3, 3], |i| [i[0], i[1], i[2] + 1]);
    moves(|x| x.slice_by(2, 1.., 2), &[2, 3, 2], |i| [i[0], i[1], 2 * i[2] + 1]);
    moves(|x| x.narrow(2, 1, 2), &[2, 3, 2], |i| [i[0], i[1], i[2] + 1]);
    moves(|x| x.index(1, -1), &[2, 4], |i| [i[0], 2, i[1]]);
    moves(|x| x.split(2, -1)[1], &[2, 3, 2], |i| [i[0], i[1], i[2] + 2]);
    moves(|x| x.flip([2, 0]), &SHAPE, |i| [1 - i[0], i[1], 3 - i[2]]);
    moves(|x| x.roll(1, 1), &SHAPE, |i| [i[0], (i[1] + 2) % 3, i[2]]);
    moves(|x| x.roll(-5, 2), &SHAPE, |i| [i[0], i[1], (i[2] + 1) % 4]);
    moves(|x| concatenate(&[x, x.slice(1, ..1)], 1), &[2, 4, 4], |i| [i[0], i[1] % 3, i[2]]);
    moves(
        |x| stack(&[x, x.flip(0)], 1),
        &[2, 2, 3, 4],
        |i| [if i[1] == 1 { 1 - i[0] } else { i[0] }, i[2], i[3]],
    );
}

#[test]
fn padding_and_triangles() {
    let x = random("x", &SHAPE, 6);
    let (_, padded) = evaluate(from_ref(&x), |t| t[0].pad(1, 1, 2, -1));
    assert_close(
        &padded,
        &build(&[2, 6, 4], |i| match i[1] {
            1..=3 => x.2[place(&SHAPE, &[i[0], i[1] - 1, i[2]])],
            _ => -1.0,
        }),
    );
    let (_, lower) = evaluate(from_ref(&x), |t| t[0].tril(1));
    assert_close(&lower, &build(&SHAPE, |i| if i[2] <= i[1] + 1 { x.2[place(&SHAPE, i)] } else { 0.0 }));
    let (_, upper) = evaluate(from_ref(&x), |t| t[0].triu(0));
    assert_close(&upper, &build(&SHAPE, |i| if i[2] >= i[1] { x.2[place(&SHAPE, i)] } else { 0.0 }));
}

#[test]
fn creation() {
    let outputs = evaluate_all(&[], |_| {
        vec![
            zeros([2], DType::F32),
            ones([2], DType::I32),
            full([2], 2.5, DType::F64),
            iota([2, 2], -1, DType::I64),
            arange(3, DType::F32),
            eye(2, DType::F32),
            constant([2], DType::U8, &[3i64, 4]),
            ones([1], DType::Bool),
        ]
    });
    let expected: [&[f64]; 8] = [
        &[0., 0.],
        &[1., 1.],
        &[2.5, 2.5],
        &[0., 1., 0., 1.],
        &[0., 1., 2.],
        &[1., 0., 0., 1.],
        &[3., 4.],
        &[1.],
    ];
    for ((_, found), expected) in outputs.iter().zip(expected) {
        assert_eq!(found, expected);
    }
}

#[test]
fn reductions() {
    let x = random("x", &SHAPE, 7);
    let rows: Vec<Vec<f64>> =
        (0..2).map(|i| build(&[3, 4], |j| x.2[place(&SHAPE, &[i, j[0], j[1]])])).collect();
    type Case = (fn(Tensor) -> Tensor, fn(&[f64]) -> f64);
    let mean = |row: &[f64]| row.iter().sum::<f64>() / row.len() as f64;
    let cases: &[Case] = &[
        (|x| x.sum([1, 2]), |row| row.iter().sum()),
        (|x| x.prod([-1, 1]), |row| row.iter().product()),
        (|x| x.max([1, 2]), |row| row.iter().copied().fold(f64::MIN, f64::max)),
        (|x| x.min([1, 2]), |row| row.iter().copied().fold(f64::MAX, f64::min)),
        (|x| x.gt(1.0).any([1, 2]), |row| row.iter().any(|&x| x > 1.0) as u8 as f64),
        (|x| x.gt(-1.9).all([1, 2]), |row| row.iter().all(|&x| x > -1.9) as u8 as f64),
        (|x| x.log_sum_exp([1, 2]), |row| row.iter().map(|x| x.exp()).sum::<f64>().ln()),
        (
            |x| x.reshape([2, -1]).argmax(-1),
            |row| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as f64,
        ),
        (
            |x| x.reshape([2, -1]).argmin(1),
            |row| (0..row.len()).min_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as f64,
        ),
    ];
    for (f, expected) in cases {
        let (ty, found) = evaluate(from_ref(&x), |t| f(t[0]));
        assert_eq!(ty.shape, [2]);
        assert_close(&found, &rows.iter().map(|row| expected(row)).collect::<Vec<_>>());
    }
    let (_, means) = evaluate(from_ref(&x), |t| t[0].mean([1, 2]));
    assert_close(&means, &rows.iter().map(|row| mean(row)).collect::<Vec<_>>());
    let (_, variances) = evaluate(from_ref(&x), |t| t[0].var([1, 2]));
    let variance =
        |row: &Vec<f64>| row.iter().map(|x| (x - mean(row)).powi(2)).sum::<f64>() / row.len() as f64;
    assert_close(&variances, &rows.iter().map(variance).collect::<Vec<_>>());
    let (ty, total) = evaluate(from_ref(&x), |t| t[0].sum(..));
    assert_eq!(ty.rank(), 0);
    assert_close(&total, &[x.2.iter().sum()]);
    for (f, shape) in [
        ((|x| x.max_keep(1)) as fn(Tensor) -> Tensor, [2, 1, 4]),
        (|x| x.mean_keep([0, 2]), [1, 3, 1]),
        (|x| x.var_keep(-1), [2, 3, 1]),
        (|x| x.sum_keep(..), [1, 1, 1]),
    ] {
        assert_eq!(evaluate(from_ref(&x), |t| f(t[0])).0.shape, shape);
    }
}

#[test]
fn log_sum_exp_and_softmax_keep_extremes() {
    let big = |x: f64| move |t: &[Tensor]| (t[0] * 0.0 + x).log_sum_exp(-1);
    let input = || [random("x", &[2], 8)];
    assert_eq!(evaluate(&input(), big(f64::NEG_INFINITY)).1, [f64::NEG_INFINITY]);
    assert_close(&evaluate(&input(), big(1000.0)).1, &[1000.0 + 2f64.ln()]);
    let (_, softmax) = evaluate(&[random("x", &[3, 5], 9)], |t| (t[0] * 500.0).softmax(-1).sum(-1));
    assert_close(&softmax, &[1.0; 3]);
    let (_, same) = evaluate(&[random("x", &[3, 5], 9)], |t| t[0].log_softmax(0).exp() - t[0].softmax(0));
    assert_close(&same, &[0.0; 15]);
}

#[test]
fn running_sums_and_recurrences() {
    let x = random("x", &SHAPE, 10);
    let (_, sums) = evaluate(from_ref(&x), |t| t[0].cumsum(1));
    assert_close(&sums, &build(&SHAPE, |i| (0..=i[1]).map(|j| x.2[place(&SHAPE, &[i[0], j, i[2]])]).sum()));

    let gate = random("gate", &[4], 11);
    let found = evaluate_all(&[x.clone(), gate.clone()], |t| {
        let decay = t[0].sigmoid();
        let (_, y) =
            associative_scan((decay, t[0]), 1, |l, r| (l.0 * r.0, r.0 * l.1 + r.1 * (t[1] * 0.0 + 1)))
                .reverse()
                .call();
        vec![y]
    });
    let mut expected = x.2.clone();
    each(&[2, 4], |i| {
        for t in (0..2).rev() {
            let (here, next) = (place(&SHAPE, &[i[0], t, i[1]]), place(&SHAPE, &[i[0], t + 1, i[1]]));
            expected[here] += expected[next] / (1.0 + (-x.2[here]).exp());
        }
    });
    assert_close(&found[0].1, &expected);
}

#[test]
fn matrix_products() {
    let x = random("x", &[2, 1, 3, 4], 12);
    let y = random("y", &[5, 4, 2], 13);
    let (ty, found) = evaluate(&[x.clone(), y.clone()], |t| t[0].matmul(t[1]));
    assert_eq!(ty.shape, [2, 5, 3, 2]);
    let product = |i: &[usize]| {
        (0..4).map(|k| x.2[(i[0] * 3 + i[2]) * 4 + k] * y.2[(i[1] * 4 + k) * 2 + i[3]]).sum::<f64>()
    };
    assert_close(&found, &build(&[2, 5, 3, 2], product));
    let row = random("row", &[4], 14);
    let (ty, found) = evaluate(&[x.clone(), row.clone()], |t| t[0].matmul(t[1]));
    assert_eq!(ty.shape, [2, 1, 3]);
    let expected = build(&[6], |i| (0..4).map(|k| x.2[i[0] * 4 + k] * row.2[k]).sum());
    assert_close(&found, &expected);
    let (ty, _) = evaluate(&[row.clone(), y], |t| t[0].matmul(t[1]));
    assert_eq!(ty.shape, [5, 2]);
    let (ty, found) = evaluate(from_ref(&row), |t| t[0].dot(t[0]) - t[0].matmul(t[0]));
    assert_eq!(ty.rank(), 0);
    assert_close(&found, &[0.0]);
}

#[test]
fn einstein_sums() {
    let (x, y) = (random("x", &[2, 3, 4], 15), random("y", &[5, 4, 2], 16));
    let both = [x.clone(), y.clone()];
    let at = |x: &[f64], shape: &[usize], index: [usize; 3]| x[place(shape, &index)];
    let (_, found) = evaluate(&both, |t| einsum("bqd,kdb->qbk", t));
    assert_close(
        &found,
        &build(&[3, 2, 5], |i| {
            (0..4)
                .map(|d| at(&x.2, &x.1.shape, [i[1], i[0], d]) * at(&y.2, &y.1.shape, [i[2], d, i[1]]))
                .sum()
        }),
    );
    let (_, found) = evaluate(from_ref(&x), |t| einsum("abc->ca", t));
    assert_close(&found, &build(&[4, 2], |i| (0..3).map(|b| at(&x.2, &x.1.shape, [i[1], b, i[0]])).sum()));
    let w = random("w", &[3], 17);
    let (_, found) = evaluate(&[x.clone(), y.clone(), w.clone()], |t| einsum("bqd, kdb, q -> dk", t));
    assert_close(
        &found,
        &build(&[4, 5], |i| {
            let mut sum = 0.0;
            each(&[2, 3], |j| {
                sum += at(&x.2, &x.1.shape, [j[0], j[1], i[0]])
                    * at(&y.2, &y.1.shape, [i[1], i[0], j[0]])
                    * w.2[j[1]]
            });
            sum
        }),
    );
}

#[test]
fn indexing() {
    let x = random("x", &SHAPE, 18);
    let i = integers("i", &[3], &[1, -2, 0]);
    let j = integers("j", &[2, 1], &[2, 0]);
    let row = |i: usize| [1, 0, 0][i];
    let column = |j: usize| [2, 0][j];
    let all = [x.clone(), i.clone(), j.clone()];
    let (ty, found) = evaluate(&all, |t| t[0].at([t[1], t[2]]));
    assert_eq!(ty.shape, [2, 3, 4]);
    assert_close(&found, &build(&[2, 3, 4], |k| x.2[place(&SHAPE, &[row(k[1]), column(k[0]), k[2]])]));
    let (_, found) = evaluate(&all, |t| t[0].at((t[1], 1, -1)));
    assert_close(&found, &build(&[3], |k| x.2[place(&SHAPE, &[row(k[0]), 1, 3])]));
    let (ty, found) = evaluate(&all, |t| t[0].take(t[2], 1));
    assert_eq!(ty.shape, [2, 2, 1, 4]);
    assert_close(&found, &build(&[2, 2, 1, 4], |k| x.2[place(&SHAPE, &[k[0], column(k[1]), k[3]])]));
    let (_, found) =
        evaluate(&all, |t| t[0].take_along_axis(t[2].broadcast_to([2, 2, 4]).slice(1, ..1), 1).squeeze(1));
    assert_close(&found, &build(&[2, 4], |k| x.2[place(&SHAPE, &[k[0], 2, k[1]])]));
    let (_, found) = evaluate(&all, |t| t[0].scatter_add([t[2].index(1, 0)], [3, 3, 4]));
    assert_close(
        &found,
        &build(&[3, 3, 4], |k| match k[0] {
            2 => x.2[place(&SHAPE, &[0, k[1], k[2]])],
            0 => x.2[place(&SHAPE, &[1, k[1], k[2]])],
            _ => 0.0,
        }),
    );
    let (_, found) = evaluate(&[j], |t| t[0].squeeze(1).one_hot(3, DType::F32));
    assert_eq!(found, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
}

#[test]
fn norms_and_cross_entropy() {
    let (x, gain, bias) = (random("x", &[3, 4], 19), random("gain", &[4], 20), random("bias", &[4], 21));
    let all = [x.clone(), gain.clone(), bias.clone()];
    let row = |i: usize| &x.2[4 * i..4 * i + 4];
    let mean = |i: usize| row(i).iter().sum::<f64>() / 4.0;
    let variance = |i: usize| row(i).iter().map(|x| (x - mean(i)).powi(2)).sum::<f64>() / 4.0;
    let square = |i: usize| row(i).iter().map(|x| x * x).sum::<f64>() / 4.0;
    let (_, found) = evaluate(&all, |t| t[0].layer_norm(t[1], t[2], 1e-5));
    assert_close(
        &found,
        &build(&[3, 4], |i| {
            (row(i[0])[i[1]] - mean(i[0])) / (variance(i[0]) + 1e-5).sqrt() * gain.2[i[1]] + bias.2[i[1]]
        }),
    );
    let (_, found) = evaluate(&all, |t| t[0].rms_norm(t[1], 1e-6));
    assert_close(&found, &build(&[3, 4], |i| row(i[0])[i[1]] / (square(i[0]) + 1e-6).sqrt() * gain.2[i[1]]));
    let targets = integers("targets", &[3], &[3, 0, 1]);
    let (_, found) = evaluate(&[x.clone(), targets], |t| cross_entropy(t[0], t[1]));
    let total = |i: usize| row(i).iter().map(|x| x.exp()).sum::<f64>().ln();
    assert_close(&found, &[total(0) - row(0)[3], total(1) - row(1)[0], total(2) - row(2)[1]]);
}
