//! Named scans at their extremes, and `check_associative`.

use tilewright::{check_associative, prelude::*};

use crate::common::to_f64s;

#[test]
fn log_sum_exp_keeps_extremes() {
    let f = compile(|x: Tensor| (x.logcumsumexp(0), grad(|x: &Tensor| x.logcumsumexp(0).index(0, -1))(&x)));
    let low = f64::NEG_INFINITY;
    let (y, gradient) = f.call(&Array::new([5], &[low, low, 1000.0, 1000.0, -1000.0]).unwrap()).unwrap();
    assert_eq!(to_f64s(&y), [low, low, 1000.0, 1000.0 + 2f64.ln(), 1000.0 + 2f64.ln()]);
    assert_eq!(to_f64s(&gradient), [0.0, 0.0, 0.5, 0.5, 0.0]);
}

#[test]
fn extrema_keep_nan() {
    let f = compile(|x: Tensor| (x.cummax(0), x.cummin(0)));
    let (most, least) = f.call(&Array::new([4], &[1.0f32, 3.0, f32::NAN, 2.0]).unwrap()).unwrap();
    for (found, second) in [(most, 3.0), (least, 1.0)] {
        let found = to_f64s(&found);
        assert_eq!(found[..2], [1.0, second]);
        assert!(found[2].is_nan() && found[3].is_nan());
    }
}

#[test]
fn combine_functions_are_tried() {
    let (number, matrix) = (Array::scalar(0.0f32), Array::zeros(DType::F64, [3, 3]).unwrap());
    let wrong = check_associative(|x: Tensor, y| x + y * y, &number).unwrap().unwrap();
    let [a, b, c] = wrong.inputs.each_ref().map(|leaves| to_f64s(&leaves[0].1)[0]);
    let expected = [(a + b * b) + c * c, a + (b + c * c).powi(2)];
    for (found, expected) in wrong.values.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{wrong}");
    }
    let text = wrong.to_string();
    for part in ["not associative", "(a·b)·c is", "a = [", "c = ["] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    assert!(check_associative(|l: Tensor, r: Tensor| r.matmul(l), &matrix).unwrap().is_none());
    assert!(check_associative(|l: Tensor, r: Tensor| l - r, &matrix).unwrap().is_some());
    let flagged = (Array::scalar(false), Array::scalar(0i32));
    let lifted = |l: (Tensor, Tensor), r: (Tensor, Tensor)| (l.0 | r.0, r.0.select(r.1, l.1 + r.1));
    assert!(check_associative(lifted, &flagged).unwrap().is_none());
    let pair = (Array::scalar(0.0f64), Array::scalar(0.0f64));
    let swapped = |l: (Tensor, Tensor), r: (Tensor, Tensor)| (l.0 * r.0, l.0 * l.1 + r.1);
    let found = check_associative(swapped, &pair).unwrap().unwrap();
    assert_eq!(found.differs.0.as_str(), "1");
}
