//! Derivatives of scans, in both modes and twice, against central differences of the sequential fold.

mod common;

use common::{Random, add, array, build, check, check_first, evaluate, f64s, gradient};
use tilewright_interp::Array;
use tilewright_ir::{
    AssociativeScan, Binary, Compare, DType, DotAxes, Graph, Op, Reduction, Type, Unary, Value,
};

fn without(shape: &[usize], axis: usize) -> Vec<usize> {
    shape.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, &d)| d).collect()
}

/// A graph of one scan over parameters `leaves` and `captures`, that gives only the leaves in `shown`.
fn scan(
    leaves: &[Type],
    captures: &[Type],
    axis: usize,
    reverse: bool,
    shown: &[usize],
    body: impl FnOnce(&mut Graph, &[Value], &[Value], &[Value]) -> Vec<Value>,
) -> Graph {
    let slices: Vec<Type> = leaves.iter().map(|ty| Type::new(ty.dtype, without(&ty.shape, axis))).collect();
    let parameters = [&slices[..], &slices, captures].concat();
    let n = leaves.len();
    let combine = build(&parameters, |g, x| body(g, &x[..n], &x[n..2 * n], &x[2 * n..]));
    build(&[leaves, captures].concat(), |g, x| {
        let scan = AssociativeScan { combine, leaves: n, axis, reverse };
        let results = g.add(Op::AssociativeScan(Box::new(scan)), x, None).unwrap();
        shown.iter().map(|&i| results[i]).collect()
    })
}

fn mul(g: &mut Graph, x: Value, y: Value) -> Value {
    add(g, Op::Binary(Binary::Mul), &[x, y])
}

fn sum(g: &mut Graph, x: Value, y: Value) -> Value {
    add(g, Op::Binary(Binary::Add), &[x, y])
}

fn recurrence(g: &mut Graph, l: &[Value], r: &[Value]) -> Vec<Value> {
    let decayed = mul(g, r[0], l[1]);
    vec![mul(g, l[0], r[0]), sum(g, decayed, r[1])]
}

fn inputs(types: &[Type], random: &mut Random) -> Vec<Array> {
    types.iter().map(|ty| array(random, ty, -1.2, 1.2)).collect()
}

/// The scans of a graph, in order.
fn scans(graph: &Graph) -> Vec<&AssociativeScan> {
    let mut scans = Vec::new();
    for node in graph.nodes() {
        if let Op::AssociativeScan(scan) = &node.op {
            scans.push(&**scan);
        }
    }
    scans
}

#[test]
fn linear_recurrence_with_a_loss_on_one_leaf() {
    let mut random = Random::new(1);
    for (shape, axis) in [(vec![1], 0), (vec![2], 0), (vec![5], 0), (vec![17, 2], 0), (vec![2, 3, 2], 1)] {
        for reverse in [false, true] {
            for shown in [vec![0], vec![1], vec![0, 1]] {
                let types = [f64s(&shape), f64s(&shape)];
                let graph = scan(&types, &[], axis, reverse, &shown, |g, l, r, _| recurrence(g, l, r));
                let name = format!("recurrence {shape:?} reverse {reverse} shown {shown:?}");
                check(&name, &graph, &inputs(&types, &mut random), &[0, 1]);
            }
        }
    }
}

#[test]
fn adjoint_of_the_linear_recurrence_has_two_leaves() {
    let types = [f64s(&[9, 3]), f64s(&[9, 3])];
    for (axis, shown, leaves) in [(0, vec![1], 2), (1, vec![1], 2), (0, vec![0, 1], 3), (1, vec![0, 1], 3)] {
        let graph = scan(&types, &[], axis, false, &shown, |g, l, r, _| recurrence(g, l, r));
        let adjoint = gradient(&graph, &[0, 1]);
        let scans = scans(&adjoint);
        assert_eq!(scans.len(), 2);
        assert_eq!((scans[1].leaves, scans[1].reverse), (leaves, true));
    }
    // An element-wise scan is differentiated where it stands, without transpositions.
    let graph = scan(&types, &[], 1, false, &[1], |g, l, r, _| recurrence(g, l, r));
    assert!(!gradient(&graph, &[0, 1]).nodes().iter().any(|node| matches!(node.op, Op::Transpose { .. })));
    // The Jacobian of a sum is 1: the adjoint is a sum from the end, of one leaf.
    let graph = scan(&types[..1], &[], 0, false, &[0], |g, l, r, _| vec![sum(g, l[0], r[0])]);
    assert_eq!(scans(&gradient(&graph, &[0]))[1].leaves, 1);
}

#[test]
fn sums_products_and_extrema() {
    let mut random = Random::new(2);
    for binary in [Binary::Add, Binary::Mul, Binary::Max, Binary::Min] {
        let types = [f64s(&[2, 7])];
        let graph =
            scan(&types, &[], 1, false, &[0], |g, l, r, _| vec![add(g, Op::Binary(binary), &[l[0], r[0]])]);
        check(binary.name(), &graph, &inputs(&types, &mut random), &[0]);
    }
    // Products through zero, where division by the element would fail.
    let graph = scan(&[f64s(&[5])], &[], 0, false, &[0], |g, l, r, _| vec![mul(g, l[0], r[0])]);
    check("product through zero", &graph, &[Array::from_f64s(f64s(&[5]), &[1.5, 0.0, 2.0, 0.0, -1.0])], &[0]);
}

#[test]
fn tuple_of_independent_leaves() {
    let mut random = Random::new(3);
    let types = [f64s(&[6, 2]), f64s(&[6])];
    let graph =
        scan(&types, &[], 0, true, &[0, 1], |g, l, r, _| vec![sum(g, l[0], r[0]), mul(g, l[1], r[1])]);
    check("sum and product", &graph, &inputs(&types, &mut random), &[0, 1]);
}

/// (m, s[, acc]) with s = Σ exp(x − m): leaves coupled through m; `acc` has one more axis.
fn softmax(g: &mut Graph, l: &[Value], r: &[Value]) -> Vec<Value> {
    let m = add(g, Op::Binary(Binary::Max), &[l[0], r[0]]);
    let weight = |g: &mut Graph, x: Value| {
        let difference = add(g, Op::Binary(Binary::Sub), &[x, m]);
        add(g, Op::Unary(Unary::Exp), &[difference])
    };
    let (a, b) = (weight(g, l[0]), weight(g, r[0]));
    let mut results = vec![m];
    for (&left, &right) in l.iter().zip(r).skip(1) {
        let shape = g.ty(left).shape.clone();
        let axes: Vec<usize> = (0..g.ty(a).rank()).collect();
        let spread = |g: &mut Graph, x: Value| {
            add(g, Op::Broadcast { shape: shape.clone(), axes: axes.clone() }, &[x])
        };
        let (a, b) = (spread(g, a), spread(g, b));
        let (x, y) = (mul(g, left, a), mul(g, right, b));
        results.push(sum(g, x, y));
    }
    results
}

#[test]
fn log_sum_exp_and_online_softmax() {
    let mut random = Random::new(4);
    let types = [f64s(&[2, 6]), f64s(&[2, 6])];
    let graph = scan(&types, &[], 1, false, &[1], |g, l, r, _| softmax(g, l, r));
    check("log-sum-exp", &graph, &inputs(&types, &mut random), &[0, 1]);

    let types = [f64s(&[5, 2]), f64s(&[5, 2]), f64s(&[5, 2, 3])];
    for shown in [vec![2], vec![0, 1, 2]] {
        let graph = scan(&types, &[], 0, false, &shown, |g, l, r, _| softmax(g, l, r));
        // Blocks between leaves of different shapes stay element-wise: no block has more than acc's elements.
        let adjoint = gradient(&graph, &[0, 1, 2]);
        for ty in scans(&adjoint)[1].combine.parameter_types() {
            assert!(ty.elements() <= 6, "{ty}");
        }
        check("online softmax", &graph, &inputs(&types, &mut random), &[0, 1, 2]);
    }
}

#[test]
fn complex_recurrence_as_pairs() {
    let mut random = Random::new(5);
    let types = [f64s(&[6, 2]), f64s(&[6, 2]), f64s(&[6, 2]), f64s(&[6, 2])];
    let product = |g: &mut Graph, x: [Value; 2], y: [Value; 2]| {
        let (ac, bd) = (mul(g, x[0], y[0]), mul(g, x[1], y[1]));
        let (ad, bc) = (mul(g, x[0], y[1]), mul(g, x[1], y[0]));
        [add(g, Op::Binary(Binary::Sub), &[ac, bd]), sum(g, ad, bc)]
    };
    for shown in [vec![2, 3], vec![0, 3]] {
        let graph = scan(&types, &[], 0, false, &shown, |g, l, r, _| {
            let a = product(g, [l[0], l[1]], [r[0], r[1]]);
            let decayed = product(g, [r[0], r[1]], [l[2], l[3]]);
            vec![a[0], a[1], sum(g, decayed[0], r[2]), sum(g, decayed[1], r[3])]
        });
        check("complex recurrence", &graph, &inputs(&types, &mut random), &[0, 1, 2, 3]);
    }
}

fn matmul(g: &mut Graph, x: Value, y: Value, batch: usize) -> Value {
    let axes = DotAxes {
        left_batch: (0..batch).collect(),
        right_batch: (0..batch).collect(),
        left_contract: vec![batch + 1],
        right_contract: vec![batch],
    };
    add(g, Op::Dot(axes), &[x, y])
}

#[test]
fn matrix_products() {
    let mut random = Random::new(6);
    for (shape, axis, batch, right_first) in
        [(vec![5, 2, 2], 0, 0, true), (vec![5, 2, 2], 0, 0, false), (vec![2, 4, 3, 3], 1, 1, true)]
    {
        let types = [f64s(&shape)];
        let graph = scan(&types, &[], axis, false, &[0], |g, l, r, _| {
            vec![if right_first { matmul(g, r[0], l[0], batch) } else { matmul(g, l[0], r[0], batch) }]
        });
        let adjoint = gradient(&graph, &[0]);
        // The block is diagonal along batch and along the free axis of the state.
        let size = shape[shape.len() - 1];
        let slice: usize = without(&shape, axis).iter().product();
        assert_eq!(scans(&adjoint)[1].combine.parameter_types()[0].elements(), slice * size);
        check("matrix product", &graph, &inputs(&types, &mut random), &[0]);
    }
}

#[test]
fn affine_maps_of_vectors() {
    // (A, b) with A a matrix and b a vector: two leaves of different rank, neither element-wise.
    let mut random = Random::new(7);
    let types = [f64s(&[4, 2, 2]), f64s(&[4, 2])];
    for shown in [vec![1], vec![0, 1]] {
        let graph = scan(&types, &[], 0, false, &shown, |g, l, r, _| {
            let product = matmul(g, r[0], l[0], 0);
            let contract = DotAxes { left_contract: vec![1], right_contract: vec![0], ..DotAxes::default() };
            let moved = add(g, Op::Dot(contract), &[r[0], l[1]]);
            vec![product, sum(g, moved, r[1])]
        });
        check("affine maps", &graph, &inputs(&types, &mut random), &[0, 1]);
    }
}

#[test]
fn whole_slice_dependence() {
    // Each element of the state depends on the sum of all: neither aligned nor a plain product.
    let mut random = Random::new(8);
    let types = [f64s(&[4, 3]), f64s(&[4, 3])];
    let graph = scan(&types, &[], 0, false, &[0, 1], |g, l, r, _| {
        let total = add(g, Op::Reduce { kind: Reduction::Sum, axes: vec![0] }, &[l[1]]);
        let total = add(g, Op::Broadcast { shape: vec![3], axes: vec![] }, &[total]);
        let share = mul(g, total, r[0]);
        vec![mul(g, l[0], r[0]), sum(g, share, r[1])]
    });
    check_first("sum over the slice", &graph, &inputs(&types, &mut random), &[0, 1], &mut random);
}

#[test]
fn two_mixed_axes() {
    // A captured map of the flattened slice mixes both of its axes.
    let mut random = Random::new(14);
    let (types, captures) = ([f64s(&[3, 2, 3])], [f64s(&[6, 6])]);
    let graph = scan(&types, &captures, 0, false, &[0], |g, l, r, c| {
        let flat = add(g, Op::Reshape { shape: vec![6] }, &[l[0]]);
        let contract = DotAxes { left_contract: vec![0], right_contract: vec![0], ..DotAxes::default() };
        let mapped = add(g, Op::Dot(contract), &[flat, c[0]]);
        let mapped = add(g, Op::Reshape { shape: vec![2, 3] }, &[mapped]);
        vec![sum(g, mapped, r[0])]
    });
    let inputs = inputs(&[&types[..], &captures].concat(), &mut random);
    check_first("map of the flattened slice", &graph, &inputs, &[0, 1], &mut random);
}

#[test]
fn coupled_sums() {
    // The diagonal of the Jacobian is 1, but only in the second case is it so in its powers.
    let mut random = Random::new(15);
    for both_ways in [true, false] {
        let types = [f64s(&[6, 2]), f64s(&[6, 2])];
        let graph = scan(&types, &[], 0, true, &[0, 1], |g, l, r, _| {
            let (up, down) = (mul(g, l[0], r[0]), mul(g, l[1], r[1]));
            let first = sum(g, l[0], r[0]);
            let second = sum(g, l[1], up);
            vec![if both_ways { sum(g, first, down) } else { first }, sum(g, second, r[1])]
        });
        check("coupled sums", &graph, &inputs(&types, &mut random), &[0, 1]);
        let blocks = scans(&gradient(&graph, &[0, 1]))[1].leaves - 2;
        assert_eq!(blocks, if both_ways { 4 } else { 1 });
    }
}

#[test]
fn leaves_of_two_float_types() {
    let graph_of = |first: DType| {
        let types = [Type::new(first, [5, 2]), f64s(&[5, 3, 2])];
        scan(&types, &[], 0, false, &[0, 1], |g, l, r, _| {
            let spread = |g: &mut Graph, x: Value| {
                let wide = add(g, Op::Cast(DType::F64), &[x]);
                add(g, Op::Broadcast { shape: vec![3, 2], axes: vec![1] }, &[wide])
            };
            let (decay, carried) = (spread(g, r[0]), spread(g, l[0]));
            let decayed = mul(g, decay, l[1]);
            let mixed = sum(g, decayed, carried);
            vec![mul(g, l[0], r[0]), sum(g, mixed, r[1])]
        })
    };
    let (narrow, wide) = (graph_of(DType::F32), graph_of(DType::F64));
    let mut random = Random::new(16);
    let narrow_inputs: Vec<Array> = gradient(&narrow, &[0, 1])
        .parameter_types()
        .iter()
        .map(|ty| array(&mut random, ty, -1.0, 1.0))
        .collect();
    let wide_inputs: Vec<Array> =
        narrow_inputs.iter().map(|x| Array::from_f64s(f64s(&x.ty().shape), &x.to_f64s())).collect();
    let narrow = evaluate(&gradient(&narrow, &[0, 1]), &narrow_inputs);
    let wide = evaluate(&gradient(&wide, &[0, 1]), &wide_inputs);
    for (narrow, wide) in narrow.iter().zip(&wide) {
        for (narrow, wide) in narrow.to_f64s().into_iter().zip(wide.to_f64s()) {
            assert!((narrow - wide).abs() <= 1e-12 * (1.0 + wide.abs()), "{narrow} {wide}");
        }
    }
}

#[test]
fn broadcast_leaves_of_a_state_space() {
    // a [b, n] decays h [b, d, n].
    let mut random = Random::new(9);
    let types = [f64s(&[2, 5, 2]), f64s(&[2, 5, 3, 2])];
    for shown in [vec![1], vec![0, 1]] {
        let graph = scan(&types, &[], 1, false, &shown, |g, l, r, _| {
            let a = add(g, Op::Broadcast { shape: vec![2, 3, 2], axes: vec![0, 2] }, &[r[0]]);
            let decayed = mul(g, a, l[1]);
            vec![mul(g, l[0], r[0]), sum(g, decayed, r[1])]
        });
        check("state space", &graph, &inputs(&types, &mut random), &[0, 1]);
    }
}

#[test]
fn captured_gate() {
    let mut random = Random::new(10);
    let types = [f64s(&[6, 3]), f64s(&[6, 3])];
    let captures = [f64s(&[3]), f64s(&[])];
    let graph = scan(&types, &captures, 0, false, &[1], |g, l, r, c| {
        let gate = add(g, Op::Unary(Unary::Sigmoid), &[c[0]]);
        let shift = add(g, Op::Broadcast { shape: vec![3], axes: vec![] }, &[c[1]]);
        let gated = mul(g, r[0], gate);
        let decayed = mul(g, gated, l[1]);
        let b = sum(g, decayed, r[1]);
        let product = mul(g, l[0], gated);
        vec![product, sum(g, b, shift)]
    });
    let inputs = inputs(&[&types[..], &captures].concat(), &mut random);
    check("captured gate", &graph, &inputs, &[0, 1, 2, 3]);
    check("captured gate, captures only", &graph, &inputs, &[2]);
}

#[test]
fn captured_matrix() {
    // y H with a captured H: its gradient is one product over all positions, not a matrix for each.
    let mut random = Random::new(11);
    let types = [f64s(&[5, 3])];
    let captures = [f64s(&[3, 3])];
    let graph = scan(&types, &captures, 0, false, &[0], |g, l, r, c| {
        let contract = DotAxes { left_contract: vec![0], right_contract: vec![0], ..DotAxes::default() };
        let moved = add(g, Op::Dot(contract), &[l[0], c[0]]);
        vec![sum(g, moved, r[0])]
    });
    let inputs = inputs(&[&types[..], &captures].concat(), &mut random);
    check_first("captured matrix", &graph, &inputs, &[0, 1], &mut random);
    let adjoint = gradient(&graph, &[1]);
    let largest = adjoint.nodes().iter().flat_map(|node| &node.results);
    assert!(largest.map(|&value| adjoint.ty(value).elements()).max().unwrap() <= 5 * 3 * 3);
}

#[test]
fn integer_leaves_take_part() {
    // Running arg-max: the index carries no gradient but follows the value.
    let mut random = Random::new(12);
    let types = [f64s(&[7]), Type::new(DType::I64, [7])];
    let graph = scan(&types, &[], 0, false, &[0, 1], |g, l, r, _| {
        let keep = add(g, Op::Compare(Compare::Ge), &[l[0], r[0]]);
        vec![add(g, Op::Select, &[keep, l[0], r[0]]), add(g, Op::Select, &[keep, l[1], r[1]])]
    });
    let positions = Array::from_i64s(types[1].clone(), &[0, 1, 2, 3, 4, 5, 6]);
    check("arg-max", &graph, &[array(&mut random, &types[0], -1.0, 1.0), positions], &[0]);

    // Segments: a flag cuts the sum.
    let types = [Type::new(DType::Bool, [7]), f64s(&[7])];
    for reverse in [false, true] {
        let graph = scan(&types, &[], 0, reverse, &[1], |g, l, r, _| {
            let product = mul(g, l[1], r[1]);
            vec![add(g, Op::Binary(Binary::Or), &[l[0], r[0]]), add(g, Op::Select, &[r[0], r[1], product])]
        });
        let flags = Array::from_i64s(types[0].clone(), &[0, 0, 1, 0, 0, 1, 0]);
        check("segments", &graph, &[flags, array(&mut random, &types[1], -1.0, 1.0)], &[1]);
    }
}

#[test]
fn scans_of_scans_and_no_positions() {
    let mut random = Random::new(13);
    let ty = f64s(&[4, 3]);
    let graph = build(std::slice::from_ref(&ty), |g, x| {
        let cumulative = |g: &mut Graph, x: Value, axis: usize| {
            let slice = f64s(&without(&[4, 3], axis));
            let combine = build(&[slice.clone(), slice], |g, x| vec![mul(g, x[0], x[1])]);
            let scan = AssociativeScan { combine, leaves: 1, axis, reverse: false };
            add(g, Op::AssociativeScan(Box::new(scan)), &[x])
        };
        let rows = cumulative(g, x[0], 0);
        vec![cumulative(g, rows, 1)]
    });
    check("scan of scan", &graph, &[array(&mut random, &ty, 0.5, 1.5)], &[0]);

    let types = [f64s(&[2, 0]), f64s(&[2, 0])];
    let graph = scan(&types, &[], 1, false, &[0, 1], |g, l, r, _| recurrence(g, l, r));
    let empty = inputs(&types, &mut random);
    assert_eq!(evaluate(&gradient(&graph, &[0, 1]), &[&empty[..], &empty].concat()), empty);
}
