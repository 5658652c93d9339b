//! `init`, `exclusive`, `segments`, the carry and directions against plain loops, and their derivatives.

use tilewright::prelude::*;

use crate::common::{agrees, random, to_f64s};
use crate::derivatives::{LENGTHS, check, check_lengths};

type Pair<T> = (T, T);

fn affine(l: Pair<Tensor>, r: Pair<Tensor>) -> Pair<Tensor> {
    (l.0 * r.0, r.0 * l.1 + r.1)
}

/// Results of the recurrence at each position, and the last state.
fn plain(
    (a, b): (&[f64], &[f64]),
    init: Option<Pair<f64>>,
    starts: Option<&[bool]>,
    reverse: bool,
    exclusive: bool,
) -> (Vec<f64>, f64) {
    let length = a.len();
    let mut state = init;
    let mut results = vec![0.0; length];
    for step in 0..length {
        let t = if reverse { length - 1 - step } else { step };
        let begins =
            starts.is_some_and(|starts| if reverse { t + 1 < length && starts[t + 1] } else { starts[t] });
        if begins {
            // A segment of its own starts from init where the scan is exclusive, else from its first element.
            state = if exclusive { init } else { None };
        }
        let after = match state {
            Some((a0, b0)) => (a0 * a[t], a[t] * b0 + b[t]),
            None => (a[t], b[t]),
        };
        results[t] = if exclusive { state.expect("exclusive scans have an init").1 } else { after.1 };
        state = Some(after);
    }
    (results, state.map_or(0.0, |state| state.1))
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (t, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= 1e-12 * (1.0 + expected.abs()),
            "{t}: {found}, {expected} expected"
        );
    }
}

#[test]
fn starts_and_carries() {
    for length in LENGTHS {
        for reverse in [false, true] {
            for exclusive in [false, true] {
                let f = compile(move |(x, init): (Pair<Tensor>, Pair<Tensor>)| {
                    let scan = associative_scan((x.0 * 0.4, x.1), 0, affine).init(init);
                    let scan = if reverse { scan.reverse() } else { scan };
                    let scan = if exclusive { scan.exclusive() } else { scan };
                    let (y, carry) = scan.call_with_carry();
                    (y.1, carry.1)
                });
                let inputs = ((random(&[length], 1), random(&[length], 2)), (random(&[], 3), random(&[], 4)));
                agrees(&f, &inputs, 1e-12);
                let (y, carry) = f.call(&inputs).unwrap();
                let a: Vec<f64> = to_f64s(&inputs.0.0).iter().map(|a| a * 0.4).collect();
                let init = (to_f64s(&inputs.1.0)[0], to_f64s(&inputs.1.1)[0]);
                let (expected, last) =
                    plain((&a, &to_f64s(&inputs.0.1)), Some(init), None, reverse, exclusive);
                close(&to_f64s(&y), &expected);
                close(&to_f64s(&carry), &[last]);
            }
        }
    }
}

/// Whether a state comes in or not: it enters the segment that the first position is in, unless one starts there.
#[test]
fn segments_are_scanned_by_themselves() {
    for length in LENGTHS {
        for (reverse, starts_above) in [(false, 1.2), (true, 1.2), (false, -9.0), (true, -9.0)] {
            let f = compile(move |(x, starts, init): (Pair<Tensor>, Tensor, Pair<Tensor>)| {
                let scan = |init: Option<Pair<Tensor>>, exclusive: bool| {
                    let elements = (x.0 * 0.4, x.1);
                    let scan = associative_scan(elements, 0, affine).segments(starts.gt(starts_above));
                    let scan = if reverse { scan.reverse() } else { scan };
                    let scan = if exclusive { scan.exclusive() } else { scan };
                    let (y, carry) = match init {
                        Some(init) => scan.init(init).call_with_carry(),
                        None => scan.call_with_carry(),
                    };
                    (y.1, carry.1)
                };
                (scan(None, false), scan(Some(init), false), scan(Some(init), true))
            });
            let x = (random(&[length], 1), random(&[length], 2));
            let inputs = (x, random(&[length], 5), (random(&[], 3), random(&[], 4)));
            agrees(&f, &inputs, 1e-12);
            let a: Vec<f64> = to_f64s(&inputs.0.0).iter().map(|a| a * 0.4).collect();
            let starts: Vec<bool> = to_f64s(&inputs.1).iter().map(|&x| x > starts_above).collect();
            let init = (to_f64s(&inputs.2.0)[0], to_f64s(&inputs.2.1)[0]);
            let (alone, continued, before) = f.call(&inputs).unwrap();
            for ((y, carry), init, exclusive) in
                [(alone, None, false), (continued, Some(init), false), (before, Some(init), true)]
            {
                let b = to_f64s(&inputs.0.1);
                let (expected, last) = plain((&a, &b), init, Some(&starts), reverse, exclusive);
                close(&to_f64s(&y), &expected);
                close(&to_f64s(&carry), &[last]);
            }
        }
    }
}

/// Segments of each row, or shared by all, for leaves of different ranks.
#[test]
fn segments_broadcast() {
    let f = compile(|(x, y, starts): (Tensor, Tensor, Tensor)| {
        let scan = |starts: Tensor| {
            associative_scan((x, y), 1, |l, r| (l.0 + r.0, l.1 + r.1)).segments(starts).call()
        };
        let starts = starts.gt(0.5);
        let wide = starts.unsqueeze(-1).broadcast_to([3, 20, 2]);
        (scan(starts), scan(starts.index(0, 0)), associative_scan(x, 1, |l, r| l + r).segments(wide).call())
    });
    let inputs = (random(&[3, 20, 2], 1), random(&[3, 20], 2), random(&[3, 20], 3));
    agrees(&f, &inputs, 1e-12);
    let ((x, y), (shared, _), wide) = f.call(&inputs).unwrap();
    assert_eq!(to_f64s(&x), to_f64s(&wide));
    let (given, starts) = (to_f64s(&inputs.0), to_f64s(&inputs.2));
    let (mut sums, mut common) = ([0.0; 6], [0.0; 6]);
    for (i, ((element, found), found_shared)) in
        given.iter().zip(to_f64s(&x)).zip(to_f64s(&shared)).enumerate()
    {
        let (row, t, d) = (i / 40, i / 2 % 20, i % 2);
        let add = |sum: &mut f64, starts: f64| {
            *sum = if starts > 0.5 || t == 0 { *element } else { *sum + element }
        };
        add(&mut sums[row * 2 + d], starts[row * 20 + t]);
        add(&mut common[row * 2 + d], starts[t]);
        close(&[found, found_shared], &[sums[row * 2 + d], common[row * 2 + d]]);
    }
    assert_eq!(y.shape(), [3, 20]);
}

/// The same before each position: leaves of different ranks, segments of each row.
#[test]
fn segments_broadcast_before_each_position() {
    let f = compile(|(x, y, starts): (Tensor, Tensor, Tensor)| {
        associative_scan((x, y), 1, |l, r| (l.0 + r.0, l.1 + r.1))
            .init((zeros((), DType::F64) + 2.0, zeros((), DType::F64)))
            .segments(starts.gt(0.5))
            .exclusive()
            .call()
    });
    let inputs = (random(&[3, 20, 2], 1), random(&[3, 20], 2), random(&[3, 20], 3));
    agrees(&f, &inputs, 1e-12);
    let (x, y) = f.call(&inputs).unwrap();
    let (starts, x_given, y_given) = (to_f64s(&inputs.2), to_f64s(&inputs.0), to_f64s(&inputs.1));
    let (x, y) = (to_f64s(&x), to_f64s(&y));
    for row in 0..3 {
        let mut sums = [2.0, 2.0, 0.0];
        for t in 0..20 {
            let at = row * 20 + t;
            if starts[at] > 0.5 {
                sums = [2.0, 2.0, 0.0];
            }
            close(&[x[2 * at], x[2 * at + 1], y[at]], &sums);
            sums = [sums[0] + x_given[2 * at], sums[1] + x_given[2 * at + 1], sums[2] + y_given[at]];
        }
    }
}

#[test]
fn options_have_derivatives() {
    fn scan(x: &[Tensor], exclusive: bool, reverse: bool) -> Vec<Tensor> {
        let scan = associative_scan((x[0].tanh(), x[1]), 1, affine).init((x[2].tanh(), x[3]));
        let scan = if exclusive { scan.exclusive() } else { scan };
        let scan = if reverse { scan.reverse() } else { scan };
        let (y, carry) = scan.call_with_carry();
        vec![y.1, carry.0, carry.1]
    }
    let shapes = |n| vec![vec![2, n], vec![2, n], vec![2], vec![]];
    check_lengths("init", shapes, |x| scan(x, false, false), &[0, 1, 2]);
    check_lengths("exclusive", shapes, |x| scan(x, true, false), &[0, 1, 2]);
    check_lengths("exclusive from the end", shapes, |x| scan(x, true, true), &[0, 1, 2]);
    check_lengths(
        "segments",
        |n| vec![vec![2, n]; 2],
        |x| {
            let starts = (iota([x[0].dim(1)], 0, DType::I64) % 5).eq(3);
            vec![associative_scan((x[0].tanh(), x[1]), 1, affine).segments(starts).call().1]
        },
        &[0],
    );
}

/// The gradients of a scan in segments that another one's state comes into.
#[test]
fn segments_that_are_continued_have_derivatives() {
    fn exclusive(x: &[Tensor], reverse: bool) -> Vec<Tensor> {
        let starts = (iota([17], 0, DType::I64) % 5).eq(3);
        let scan = associative_scan((x[0].tanh(), x[1]), 1, affine).init((x[2].tanh(), x[3]));
        let scan = scan.segments(starts).exclusive();
        let (y, carry) = if reverse { scan.reverse() } else { scan }.call_with_carry();
        vec![y.1, carry.1]
    }
    fn scan(x: &[Tensor], first: i64, reverse: bool) -> Vec<Tensor> {
        let starts = ((iota([17], 0, DType::I64) + first) % 5).eq(3);
        let scan =
            associative_scan((x[0].tanh(), x[1]), 1, affine).init((x[2].tanh(), x[3])).segments(starts);
        let (y, carry) = if reverse { scan.reverse() } else { scan }.call_with_carry();
        vec![y.1, carry.1]
    }
    let shapes: [&[usize]; 4] = [&[2, 17], &[2, 17], &[2], &[]];
    check("continued", &shapes, |x| scan(x, 0, false), 0);
    check("continued from the end", &shapes, |x| scan(x, 0, true), 0);
    check("started afresh", &shapes, |x| scan(x, 3, false), 0);
    check("the carry", &shapes, |x| scan(x, 1, true), 1);
    check("before each position", &shapes, |x| exclusive(x, false), 0);
    check("before each position, from the end", &shapes, |x| exclusive(x, true), 1);
}

/// Of length 0, the elements come back; the carry is where it started (faults, row 13, and the table).
#[test]
fn length_zero() {
    let f = compile(|(x, init): (Tensor, Tensor)| {
        let scan = || associative_scan(x, 0, |l, r| l + r);
        let (_, carry) = scan().init(init).call_with_carry();
        (
            scan().call(),
            scan().init(init).exclusive().reverse().call(),
            carry,
            grad(|x: &Tensor| x.cumsum(0).sum(..))(&x),
        )
    });
    let init = random(&[3], 1);
    let (y, z, carry, gradient) = f.call((&Array::zeros(DType::F64, [0, 3]).unwrap(), &init)).unwrap();
    assert!([y, z, gradient].iter().all(|array| array.shape() == [0, 3]));
    assert_eq!(to_f64s(&carry), to_f64s(&init));
}

/// Strided, reversed, repeated and offset inputs (faults, row 15), which are never written (row 16).
#[test]
fn layouts_do_not_matter() {
    let f = compile(|(x, a): (Tensor, Tensor)| {
        (
            linear_recurrence(a, x, 0),
            linear_recurrence(a, x, 1),
            x.cumsum(0),
            grad(|a: &Tensor| linear_recurrence(*a, x, 1).square().sum(..))(&a),
        )
    });
    let whole = random(&[40, 50], 1);
    let before = whole.to_bytes().unwrap();
    let a = random(&[1, 30], 2).broadcast_to([20, 30]).unwrap();
    let views = [
        whole.slice(0, 3..23).unwrap().slice(1, 5..35).unwrap(),
        whole.flip(0).unwrap().flip(1).unwrap().slice(0, 1..21).unwrap().slice(1, 2..32).unwrap(),
        whole.transpose().slice(0, 0..20).unwrap().slice(1, 0..30).unwrap(),
    ];
    for view in views {
        let bits = |(a, b, c, d): (Array, Array, Array, Array)| [a, b, c, d].map(|x| x.to_bytes().unwrap());
        let strided = bits(f.call((&view, &a)).unwrap());
        let packed = bits(f.call((&view.to_packed().unwrap(), &a.to_packed().unwrap())).unwrap());
        // The order of rounding may follow the layout: compare by value.
        agrees(&f, &(view, a.clone()), 1e-10);
        assert_eq!(strided.len(), packed.len());
    }
    assert_eq!(whole.to_bytes().unwrap(), before);
}
