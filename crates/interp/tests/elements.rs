//! Functions of single elements: special functions against published digits, and rounding in
//! `Precision::Typed` against the machine's own `f32`.

use tilewright_interp::{Array, Precision, run};
use tilewright_ir::{Binary, DType, ErrorKind, Graph, Op, Reduction, Type, Unary};

fn unary(unary: Unary, x: f64) -> f64 {
    let mut graph = Graph::new();
    let parameter = graph.parameter(Type::scalar(DType::F64));
    let result = graph.add1(Op::Unary(unary), &[parameter], None).unwrap();
    graph.set_results(vec![result]);
    let input = Array::from_f64s(Type::scalar(DType::F64), &[x]);
    run(&graph, &[input], Precision::Exact).unwrap()[0].to_f64s()[0]
}

#[test]
fn special_functions() {
    let cases = [
        (Unary::Erf, 0.5, 0.520_499_877_813_046_5),
        (Unary::Erf, -2.5, -0.999_593_047_982_555),
        (Unary::Expm1, 1e-10, 1.000_000_000_05e-10),
        (Unary::Log1p, 1e-10, 9.999_999_999_5e-11),
        (Unary::Tanh, 0.3, 0.291_312_612_451_590_9),
        (Unary::Sigmoid, -800.0, 0.0),
        (Unary::Sigmoid, 2.0, 0.880_797_077_977_882_3),
        (Unary::Rsqrt, 0.0, f64::INFINITY),
        (Unary::Round, 2.5, 2.0),
        (Unary::Round, -3.5, -4.0),
        (Unary::Sign, -0.1, -1.0),
    ];
    for (function, x, expected) in cases {
        let found = unary(function, x);
        let close = found == expected || ((found - expected) / expected).abs() < 3e-16;
        assert!(close, "{}({x}) = {found}, expected {expected}", function.name());
    }
}

#[test]
fn typed_f32_is_the_machines_f32() {
    let count = 1000;
    let ty = Type::new(DType::F32, [count]);
    let inputs = [0.37, 0.81]
        .map(|step| (1..=count).map(|i| (i as f64 * step).sin() * 3.0).collect::<Vec<f64>>())
        .map(|elements| Array::from_f64s(ty.clone(), &elements));
    let single = |array: &Array| array.to_f64s().into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let [x, y] = inputs.each_ref().map(single);
    type Function = fn(f32, f32) -> f32;
    let functions: [(Binary, Function); 4] = [
        (Binary::Add, |x, y| x + y),
        (Binary::Sub, |x, y| x - y),
        (Binary::Mul, |x, y| x * y),
        (Binary::Div, |x, y| x / y),
    ];
    for (binary, function) in functions {
        let mut graph = Graph::new();
        let parameters = [(); 2].map(|()| graph.parameter(ty.clone()));
        let result = graph.add1(Op::Binary(binary), &parameters, None).unwrap();
        let sum = Op::Reduce { kind: Reduction::Sum, axes: vec![0] };
        let sum = graph.add1(sum, &[result], None).unwrap();
        graph.set_results(vec![result, sum]);
        let results = run(&graph, &inputs, Precision::Typed).unwrap();
        let expected: Vec<f32> = x.iter().zip(&y).map(|(&x, &y)| function(x, y)).collect();
        assert!(single(&results[0]) == expected, "{}", binary.name());
        let total = expected.iter().fold(0f32, |sum, x| sum + x);
        assert_eq!(single(&results[1]), [total], "the sum of {}", binary.name());
        let exact = run(&graph, &inputs, Precision::Exact).unwrap();
        assert!(exact[1].to_f64s()[0] != total as f64, "exact sums do not round");
    }
}

#[test]
fn narrow_sums_are_kept_in_f32() {
    // 1 + 1/256 is no bf16, so a bf16 sum would stay at 1.
    let mut graph = Graph::new();
    let x = graph.parameter(Type::new(DType::BF16, [257]));
    let sum = graph.add1(Op::Reduce { kind: Reduction::Sum, axes: vec![0] }, &[x], None).unwrap();
    graph.set_results(vec![sum]);
    let elements = [&[1.0][..], &[1.0 / 256.0; 256]].concat();
    let input = Array::from_f64s(Type::new(DType::BF16, [257]), &elements);
    assert_eq!(run(&graph, &[input], Precision::Typed).unwrap()[0].to_f64s(), [2.0]);
}

#[test]
fn inputs_are_checked() {
    let mut graph = Graph::new();
    let x = graph.parameter(Type::new(DType::F32, [2]));
    graph.set_results(vec![x]);
    let input = |dtype, extent| Array::zeros(Type::new(dtype, [extent]));
    assert!(run(&graph, &[input(DType::F32, 2)], Precision::Exact).is_ok());
    for inputs in [vec![], vec![input(DType::F32, 3)], vec![input(DType::F64, 2)]] {
        let error = run(&graph, &inputs, Precision::Exact).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Shape { .. }), "{error}");
    }
}
