//! Element-wise methods against plain Rust.

mod common;

use std::slice::from_ref;

use common::{Input, assert_close, evaluate, integers, random};
use tilewright_ir::{DType, Type};
use tilewright_trace::{Operand, Tensor, select};

#[test]
fn unary_methods_are_their_functions() {
    type Case = (&'static str, fn(Tensor) -> Tensor, fn(f64) -> f64);
    let cases: &[Case] = &[
        ("neg", |x| -x, |x| -x),
        ("abs", |x| x.abs(), f64::abs),
        ("sign", |x| x.sign(), f64::signum),
        ("exp", |x| x.exp(), f64::exp),
        ("expm1", |x| x.expm1(), f64::exp_m1),
        ("log", |x| (x + 3.0).log(), |x| (x + 3.0).ln()),
        ("log1p", |x| (x * 0.4).log1p(), |x| (x * 0.4).ln_1p()),
        ("sqrt", |x| (x + 2.0).sqrt(), |x| (x + 2.0).sqrt()),
        ("rsqrt", |x| (x + 3.0).rsqrt(), |x| 1.0 / (x + 3.0).sqrt()),
        ("sin", |x| x.sin(), f64::sin),
        ("cos", |x| x.cos(), f64::cos),
        ("tan", |x| x.tan(), f64::tan),
        ("tanh", |x| x.tanh(), f64::tanh),
        ("sigmoid", |x| x.sigmoid(), |x| 1.0 / (1.0 + (-x).exp())),
        ("floor", |x| x.floor(), f64::floor),
        ("ceil", |x| x.ceil(), f64::ceil),
        ("round", |x| x.round(), f64::round_ties_even),
        ("reciprocal", |x| x.reciprocal(), |x| 1.0 / x),
        ("square", |x| x.square(), |x| x * x),
        ("pow 3", |x| (x + 3.0).pow(3), |x| (x + 3.0).powi(3)),
        ("pow 2", |x| x.pow(2.0), |x| x * x),
        ("pow ½", |x| (x + 2.0).pow(0.5), |x| (x + 2.0).sqrt()),
        ("relu", |x| x.relu(), |x| x.max(0.0)),
        ("silu", |x| x.silu(), |x| x / (1.0 + (-x).exp())),
        (
            "softplus",
            |x| (x * 400.0).softplus(),
            |x| if x > 1.0 { 400.0 * x } else { (400.0 * x).exp().ln_1p() },
        ),
        (
            "gelu_tanh",
            |x| x.gelu_tanh(),
            |x| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        ),
        ("clamp", |x| x.clamp(-0.5, 1), |x| x.clamp(-0.5, 1.0)),
        ("atan2", |x| x.atan2(0.3), |x| x.atan2(0.3)),
        ("rem", |x| x % 0.7, |x| x - 0.7 * (x / 0.7).floor()),
        ("numbers on the left", |x| 1.0 - 2 * (3.0 / (x + 5)), |x| 1.0 - 2.0 * (3.0 / (x + 5.0))),
        ("alias", |x| x.alias().stop_gradient(), |x| x),
    ];
    let x = random("x", &[2, 5], 1);
    for (name, f, expected) in cases {
        let (_, found) = evaluate(from_ref(&x), |t| f(t[0]));
        println!("{name}");
        assert_close(&found, &x.2.iter().map(|&x| expected(x)).collect::<Vec<_>>());
    }
}

/// The error function and its gelu have values in tables (Abramowitz and Stegun, table 7.1).
#[test]
fn error_function_agrees_with_the_table() {
    let x = Input("x", Type::new(DType::F64, [3]), vec![0.5, 1.0, -2.0]);
    let (_, erf) = evaluate(from_ref(&x), |t| t[0].erf());
    let expected = [0.520_499_877_8, 0.842_700_792_9, -0.995_322_265_0];
    assert!(erf.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9), "{erf:?}");
    let x = Input("x", Type::new(DType::F64, [1]), vec![std::f64::consts::SQRT_2]);
    let (_, gelu) = evaluate(&[x], |t| t[0].gelu());
    assert!((gelu[0] - 0.5 * std::f64::consts::SQRT_2 * 1.842_700_792_9).abs() < 1e-9, "{gelu:?}");
}

#[test]
fn two_tensors_broadcast() {
    let (x, y) = (random("x", &[3, 1, 2], 2), random("y", &[4, 1], 3));
    let both = [x.clone(), y.clone()];
    type Case = (fn(Tensor, Tensor) -> Tensor, fn(f64, f64) -> f64);
    let cases: &[Case] = &[
        (|x, y| x + y, |x, y| x + y),
        (|x, y| x - y, |x, y| x - y),
        (|x, y| x * y, |x, y| x * y),
        (|x, y| x / y, |x, y| x / y),
        (|x, y| x.maximum(y), f64::max),
        (|x, y| x.minimum(y), f64::min),
        (|x, y| x.lt(y), |x, y| (x < y) as u8 as f64),
        (|x, y| x.le(y), |x, y| (x <= y) as u8 as f64),
        (|x, y| x.gt(y), |x, y| (x > y) as u8 as f64),
        (|x, y| x.ge(y), |x, y| (x >= y) as u8 as f64),
        (|x, y| x.eq(y), |x, y| (x == y) as u8 as f64),
        (|x, y| x.ne(y), |x, y| (x != y) as u8 as f64),
        (|x, y| x.gt(0.0).select(y, -7), |x, y| if x > 0.0 { y } else { -7.0 }),
        (|x, y| select(y.gt(0.0), 1.5, x), |x, y| if y > 0.0 { 1.5 } else { x }),
        (|x, y| x.gt(0.0) & !y.gt(0.0) | x.lt(-1), |x, y| (x > 0.0 && y <= 0.0 || x < -1.0) as u8 as f64),
        (|x, y| x.gt(0.0) ^ y.gt(0.0), |x, y| ((x > 0.0) != (y > 0.0)) as u8 as f64),
    ];
    for (f, expected) in cases {
        let (ty, found) = evaluate(&both, |t| f(t[0], t[1]));
        assert_eq!(ty.shape, [3, 4, 2]);
        let expected = common::build(&[3, 4, 2], |i| expected(x.2[2 * i[0] + i[2]], y.2[i[1]]));
        assert_close(&found, &expected);
    }
}

#[test]
fn integers_divide_towards_the_floor() {
    let x = integers("x", &[4], &[7, -7, 5, 0]);
    let (_, quotients) = evaluate(from_ref(&x), |t| t[0] / 2);
    assert_eq!(quotients, [3.0, -4.0, 2.0, 0.0]);
    let (_, remainders) = evaluate(from_ref(&x), |t| t[0] % 3);
    assert_eq!(remainders, [1.0, 2.0, 2.0, 0.0]);
    let (ty, wide) = evaluate(&[x], |t| t[0].cast(DType::F32) / 2);
    assert_eq!((ty.dtype, wide), (DType::F32, vec![3.5, -3.5, 2.5, 0.0]));
}

/// The type of a number adapts to the tensor, whatever Rust type it has.
#[test]
fn numbers_of_any_rust_type_are_operands() {
    let operands: Vec<Operand> = vec![2.0f64.into(), 2.0f32.into(), 2i64.into(), 2i32.into(), 2usize.into()];
    for operand in operands {
        let (_, found) = evaluate(&[integers("x", &[1], &[5])], |t| t[0].maximum(7).minimum(operand));
        assert_eq!(found, [2.0]);
    }
}

#[test]
fn sums_of_iterators() {
    let (_, found) = evaluate(&[random("x", &[2], 4)], |t| (1..4).map(|i| t[0] * 0.0 + i as f64).sum());
    assert_eq!(found, [6.0, 6.0]);
}
