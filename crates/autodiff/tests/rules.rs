//! Every ordinary operation's derivative, first and second, in both modes.

mod common;

use common::{Random, add, array, build, check, check_first, evaluate, f64s, gradient};
use tilewright_interp::Array;
use tilewright_ir::{Binary, Compare, DType, DotAxes, Literal, Op, Reduction, Scalar, Type, Unary};

/// Where a function is smooth, and away from its kinks.
fn domain(unary: Unary) -> (f64, f64) {
    match unary {
        Unary::Log | Unary::Log1p | Unary::Sqrt | Unary::Rsqrt => (0.3, 2.0),
        Unary::Tan => (-1.0, 1.0),
        Unary::Abs | Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Round => (0.1, 0.4),
        Unary::Neg
        | Unary::Exp
        | Unary::Expm1
        | Unary::Sin
        | Unary::Cos
        | Unary::Tanh
        | Unary::Sigmoid
        | Unary::Erf
        | Unary::Not => (-1.5, 1.5),
    }
}

#[test]
fn unary_functions() {
    let mut random = Random::new(1);
    for unary in Unary::ALL.into_iter().filter(|&unary| unary != Unary::Not) {
        let ty = f64s(&[7]);
        let graph = build(std::slice::from_ref(&ty), |g, x| vec![add(g, Op::Unary(unary), &[x[0]])]);
        let (low, high) = domain(unary);
        check(unary.name(), &graph, &[array(&mut random, &ty, low, high)], &[0]);
    }
}

#[test]
fn binary_functions() {
    let mut random = Random::new(2);
    for binary in Binary::ALL {
        if matches!(binary, Binary::And | Binary::Or | Binary::Xor) {
            continue;
        }
        let ty = f64s(&[7]);
        let graph = build(&[ty.clone(), ty.clone()], |g, x| vec![add(g, Op::Binary(binary), &[x[0], x[1]])]);
        let inputs = match binary {
            Binary::Rem => {
                let parts = [7.3, -4.1, 5.6, -9.2, 0.4, 11.7, -2.3];
                let divisors = [2.1, 1.7, -2.4, -3.1, 1.3, 2.9, 1.1];
                [Array::from_f64s(ty.clone(), &parts), Array::from_f64s(ty, &divisors)]
            }
            _ => [array(&mut random, &ty, 0.5, 2.0), array(&mut random, &ty, 2.1, 3.0)],
        };
        check(binary.name(), &graph, &inputs, &[0, 1]);
        let swapped = build(&[inputs[0].ty().clone(), inputs[0].ty().clone()], |g, x| {
            vec![add(g, Op::Binary(binary), &[x[1], x[0]])]
        });
        if binary != Binary::Rem {
            check(binary.name(), &swapped, &inputs, &[0, 1]);
        }
    }
}

#[test]
fn ties_of_maximum_share() {
    for (binary, expected) in [(Binary::Max, [0.5, 0.0, 1.0]), (Binary::Min, [0.5, 1.0, 0.0])] {
        let ty = f64s(&[3]);
        let graph = build(&[ty.clone(), ty.clone()], |g, x| vec![add(g, Op::Binary(binary), &[x[0], x[1]])]);
        let inputs = [
            Array::from_f64s(ty.clone(), &[1.0, 2.0, 3.0]),
            Array::from_f64s(ty.clone(), &[1.0, 5.0, -1.0]),
            Array::from_f64s(ty, &[3.0, 7.0, 11.0]),
        ];
        let gradients = evaluate(&gradient(&graph, &[0, 1]), &inputs);
        let cotangent = inputs[2].to_f64s();
        for i in 0..3 {
            assert_eq!(gradients[0].to_f64s()[i], expected[i] * cotangent[i]);
            assert_eq!(gradients[1].to_f64s()[i], (1.0 - expected[i]) * cotangent[i]);
        }
    }
}

#[test]
fn powers_at_zero() {
    let ty = f64s(&[4]);
    let graph = build(&[ty.clone(), ty.clone()], |g, x| vec![add(g, Op::Binary(Binary::Pow), &[x[0], x[1]])]);
    let inputs = [
        Array::from_f64s(ty.clone(), &[0.0, 0.0, 0.0, -2.0]),
        Array::from_f64s(ty.clone(), &[2.0, 1.0, 0.0, 3.0]),
        Array::from_f64s(ty, &[3.0, 3.0, 3.0, 3.0]),
    ];
    let base = evaluate(&gradient(&graph, &[0]), &inputs);
    assert_eq!(base[0].to_f64s(), [0.0, 3.0, 0.0, 36.0]);
    let exponent = evaluate(&gradient(&graph, &[1]), &inputs);
    assert_eq!(exponent[0].to_f64s()[..3], [0.0, 0.0, 0.0]);
}

#[test]
fn kinks_and_hidden_sides_are_exactly_zero() {
    let ty = f64s(&[2]);
    let absolute = build(std::slice::from_ref(&ty), |g, x| vec![add(g, Op::Unary(Unary::Abs), &[x[0]])]);
    let inputs = [Array::from_f64s(ty.clone(), &[0.0, -2.0]), Array::from_f64s(ty.clone(), &[5.0, 5.0])];
    assert_eq!(evaluate(&gradient(&absolute, &[0]), &inputs)[0].to_f64s(), [0.0, -5.0]);

    // The side that is not shown has an infinite value and a cotangent that must not become NaN.
    let hidden = build(std::slice::from_ref(&ty), |g, x| {
        let limit = g.splat(&f64s(&[2]), 10.0).unwrap();
        let shown = add(g, Op::Compare(Compare::Lt), &[x[0], limit]);
        let exp = add(g, Op::Unary(Unary::Exp), &[x[0]]);
        vec![add(g, Op::Select, &[shown, x[0], exp])]
    });
    let inputs = [Array::from_f64s(ty.clone(), &[1.0, 2.0]), Array::from_f64s(ty, &[f64::INFINITY, 5.0])];
    assert_eq!(evaluate(&gradient(&hidden, &[0]), &inputs)[0].to_f64s(), [f64::INFINITY, 5.0]);
}

#[test]
fn moving_elements() {
    let ops: Vec<(Vec<usize>, Op)> = vec![
        (vec![3, 1], Op::Broadcast { shape: vec![3, 2, 4], axes: vec![0, 2] }),
        (vec![], Op::Broadcast { shape: vec![3, 2], axes: vec![] }),
        (vec![1, 4], Op::Broadcast { shape: vec![1, 4, 2], axes: vec![0, 1] }),
        (vec![4, 3], Op::Reshape { shape: vec![2, 6] }),
        (vec![2, 3, 4], Op::Transpose { permutation: vec![2, 0, 1] }),
        (vec![7, 5], Op::Slice { start: vec![1, 0], limit: vec![6, 5], step: vec![2, 3] }),
        (vec![7, 5], Op::Slice { start: vec![2, 3], limit: vec![2, 5], step: vec![1, 1] }),
        (vec![2, 3, 2], Op::Reverse { axes: vec![0, 2] }),
        (vec![4], Op::StopGradient),
    ];
    let mut random = Random::new(3);
    for (shape, op) in ops {
        let ty = f64s(&shape);
        // Squared, so that second derivatives show too.
        let graph = build(std::slice::from_ref(&ty), |g, x| {
            let square = add(g, Op::Binary(Binary::Mul), &[x[0], x[0]]);
            vec![add(g, op.clone(), &[square])]
        });
        if matches!(op, Op::StopGradient) {
            let zero = evaluate(
                &gradient(&graph, &[0]),
                &[array(&mut random, &ty, -1.0, 1.0), array(&mut random, &ty, 1.0, 2.0)],
            );
            assert_eq!(zero[0].to_f64s(), [0.0; 4]);
            continue;
        }
        check(&op.name(), &graph, &[array(&mut random, &ty, -1.0, 1.0)], &[0]);
    }
}

#[test]
fn joining_and_padding() {
    let mut random = Random::new(4);
    let types = [f64s(&[2, 3]), f64s(&[2, 1]), f64s(&[2, 2])];
    let graph = build(&types, |g, x| vec![add(g, Op::Concatenate { axis: 1 }, &[x[0], x[1], x[2], x[0]])]);
    let inputs: Vec<Array> = types.iter().map(|ty| array(&mut random, ty, -1.0, 1.0)).collect();
    check("concatenate", &graph, &inputs, &[0, 1, 2]);

    let types = [f64s(&[3, 2]), f64s(&[])];
    let pad = Op::Pad { low: vec![1, 0], high: vec![0, 2], interior: vec![2, 1] };
    let graph = build(&types, |g, x| {
        let square = add(g, Op::Binary(Binary::Mul), &[x[1], x[1]]);
        vec![add(g, pad, &[x[0], square])]
    });
    let inputs: Vec<Array> = types.iter().map(|ty| array(&mut random, ty, -1.0, 1.0)).collect();
    check("pad", &graph, &inputs, &[0, 1]);
}

#[test]
fn reductions() {
    let mut random = Random::new(5);
    for kind in Reduction::ALL {
        for axes in [vec![], vec![1], vec![0, 2], vec![0, 1, 2]] {
            let ty = f64s(&[2, 5, 3]);
            let graph = build(std::slice::from_ref(&ty), |g, x| {
                vec![add(g, Op::Reduce { kind, axes: axes.clone() }, &[x[0]])]
            });
            check(kind.name(), &graph, &[array(&mut random, &ty, 0.5, 1.5)], &[0]);
        }
    }
}

#[test]
fn products_with_zeros() {
    let ty = f64s(&[3, 5]);
    let graph = build(std::slice::from_ref(&ty), |g, x| {
        vec![add(g, Op::Reduce { kind: Reduction::Prod, axes: vec![1] }, &[x[0]])]
    });
    let elements = [2.0, -1.0, 0.0, 3.0, 0.5, 0.0, 1.5, 0.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0, 2.0];
    check("product with zeros", &graph, &[Array::from_f64s(ty, &elements)], &[0]);
}

#[test]
fn ties_of_reductions_share() {
    let ty = f64s(&[4]);
    let graph = build(std::slice::from_ref(&ty), |g, x| {
        vec![add(g, Op::Reduce { kind: Reduction::Max, axes: vec![0] }, &[x[0]])]
    });
    let inputs = [Array::from_f64s(ty, &[1.0, 7.0, 7.0, 2.0]), Array::from_f64s(f64s(&[]), &[3.0])];
    assert_eq!(evaluate(&gradient(&graph, &[0]), &inputs)[0].to_f64s(), [0.0, 1.5, 1.5, 0.0]);
}

#[test]
fn dots() {
    let cases = [
        (
            vec![3, 4],
            vec![4, 2],
            DotAxes { left_contract: vec![1], right_contract: vec![0], ..DotAxes::default() },
        ),
        (vec![3], vec![2], DotAxes::default()),
        (
            vec![2, 3, 4],
            vec![4, 5, 2],
            DotAxes {
                left_batch: vec![0],
                right_batch: vec![2],
                left_contract: vec![2],
                right_contract: vec![0],
            },
        ),
        // Two contracted axes in crossed order, two batch axes in crossed order, free axes between.
        (
            vec![2, 3, 4, 2, 3],
            vec![4, 3, 2, 2, 3],
            DotAxes {
                left_batch: vec![3, 1],
                right_batch: vec![2, 4],
                left_contract: vec![2, 4],
                right_contract: vec![0, 1],
            },
        ),
    ];
    let mut random = Random::new(6);
    for (left, right, axes) in cases {
        let types = [f64s(&left), f64s(&right)];
        let graph = build(&types, |g, x| vec![add(g, Op::Dot(axes.clone()), &[x[0], x[1]])]);
        let inputs: Vec<Array> = types.iter().map(|ty| array(&mut random, ty, -1.0, 1.0)).collect();
        check("dot", &graph, &inputs, &[0, 1]);
    }
}

#[test]
fn gathers_and_scatters() {
    let mut random = Random::new(7);
    let index = Type::new(DType::I32, [5]);
    let rows = Array::from_i64s(index.clone(), &[0, 3, -1, 3, 1]);
    let columns = Array::from_i64s(index.clone(), &[2, 0, 1, 0, -2]);
    let ty = f64s(&[4, 3, 2]);
    let graph = build(&[ty.clone(), index.clone(), index.clone()], |g, x| {
        let square = add(g, Op::Binary(Binary::Mul), &[x[0], x[0]]);
        vec![add(g, Op::Gather, &[square, x[1], x[2]]), add(g, Op::Gather, &[square, x[1]])]
    });
    let inputs = [array(&mut random, &ty, -1.0, 1.0), rows.clone(), columns.clone()];
    check("gather", &graph, &inputs, &[0]);

    let updates = f64s(&[5, 2]);
    let graph = build(&[updates.clone(), index.clone(), index], |g, x| {
        let square = add(g, Op::Binary(Binary::Mul), &[x[0], x[0]]);
        vec![add(g, Op::ScatterAdd { shape: vec![4, 3, 2] }, &[square, x[1], x[2]])]
    });
    check("scatter_add", &graph, &[array(&mut random, &updates, -1.0, 1.0), rows, columns], &[0]);
}

#[test]
fn selects_and_casts() {
    let mut random = Random::new(8);
    let ty = f64s(&[6]);
    let graph = build(&[ty.clone(), ty.clone()], |g, x| {
        let condition = Literal::from_scalars(
            Type::new(DType::Bool, [6]),
            [true, false, true, true, false, false].map(Scalar::Bool),
        );
        let condition = add(g, Op::Constant(condition), &[]);
        let product = add(g, Op::Binary(Binary::Mul), &[x[0], x[1]]);
        let narrow = add(g, Op::Cast(DType::F32), &[product]);
        let wide = add(g, Op::Cast(DType::F64), &[narrow]);
        let whole = add(g, Op::Cast(DType::I64), &[product]);
        let steps = add(g, Op::Cast(DType::F64), &[whole]);
        let sum = add(g, Op::Binary(Binary::Add), &[wide, steps]);
        vec![add(g, Op::Select, &[condition, sum, x[1]]), whole]
    });
    let inputs = [array(&mut random, &ty, 0.1, 0.9), array(&mut random, &ty, 0.1, 0.9)];
    check("select and cast", &graph, &inputs, &[0, 1]);
}

#[test]
fn inputs_are_independent_variables() {
    let ty = f64s(&[3]);
    let mut graph = build(std::slice::from_ref(&ty), |g, x| {
        let square = add(g, Op::Binary(Binary::Mul), &[x[0], x[0]]);
        let product = add(g, Op::Binary(Binary::Mul), &[square, x[0]]);
        vec![square, product]
    });
    let (x, square, product) = (graph.parameters()[0], graph.results()[0], graph.results()[1]);
    let cotangent = graph.parameter(ty.clone());
    let gradients = tilewright_autodiff::reverse(&mut graph, &[(product, cotangent)], &[x, square]).unwrap();
    graph.set_results(gradients.into_iter().map(Option::unwrap).collect());
    let inputs = [Array::from_f64s(ty.clone(), &[2.0, 3.0, 5.0]), Array::from_f64s(ty, &[1.0, 10.0, 100.0])];
    let gradients = evaluate(&graph, &inputs);
    assert_eq!(gradients[0].to_f64s(), [4.0, 90.0, 2500.0]);
    assert_eq!(gradients[1].to_f64s(), [2.0, 30.0, 500.0]);
}

#[test]
fn a_long_chain_takes_linear_time_and_no_stack() {
    let ty = f64s(&[]);
    let graph = build(std::slice::from_ref(&ty), |g, x| {
        let mut y = x[0];
        for _ in 0..50_000 {
            let half = add(g, Op::Binary(Binary::Mul), &[y, x[0]]);
            y = add(g, Op::Unary(Unary::Sin), &[half]);
        }
        vec![y]
    });
    let chain = gradient(&graph, &[0]);
    assert!(chain.nodes().len() < 10 * graph.nodes().len());
    let mut random = Random::new(9);
    let short = build(std::slice::from_ref(&ty), |g, x| {
        let mut y = x[0];
        for _ in 0..20 {
            let half = add(g, Op::Binary(Binary::Mul), &[y, x[0]]);
            y = add(g, Op::Unary(Unary::Sin), &[half]);
        }
        vec![y]
    });
    check_first("chain", &short, &[array(&mut random, &ty, 0.8, 1.2)], &[0], &mut random);
}
