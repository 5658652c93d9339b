//! A family of associative combine functions, on slices of any shape.

use tilewright_ir::{Binary, Compare, DType, DotAxes, Graph, Op, Type, Unary, Value};

/// A combine function: `(left…, right…, capture…) -> leaf…` for leaves with the given slice shape.
pub struct Combine {
    pub name: &'static str,
    /// Whether it has gradients.
    pub float: bool,
    pub region: fn(&[usize]) -> Graph,
}

pub const FAMILY: [Combine; 17] = [
    Combine { name: "sum", float: true, region: |s| fold(DType::F32, Binary::Add, s) },
    Combine { name: "sum of doubles", float: true, region: |s| fold(DType::F64, Binary::Add, s) },
    Combine { name: "sum of halves", float: false, region: |s| fold(DType::BF16, Binary::Add, s) },
    Combine { name: "sum of integers", float: false, region: |s| fold(DType::I32, Binary::Add, s) },
    Combine { name: "product", float: true, region: |s| fold(DType::F64, Binary::Mul, s) },
    Combine { name: "product of long integers", float: false, region: |s| fold(DType::I64, Binary::Mul, s) },
    Combine { name: "greatest", float: false, region: |s| fold(DType::F32, Binary::Max, s) },
    Combine { name: "least of doubles", float: false, region: |s| fold(DType::F64, Binary::Min, s) },
    Combine { name: "exclusive or of bytes", float: false, region: |s| fold(DType::U8, Binary::Xor, s) },
    Combine { name: "exclusive or", float: false, region: |s| fold(DType::Bool, Binary::Xor, s) },
    Combine { name: "affine", float: true, region: |s| affine(DType::F32, s) },
    Combine { name: "affine, in doubles", float: true, region: |s| affine(DType::F64, s) },
    Combine { name: "arg-max", float: false, region: arg_max },
    Combine { name: "segmented sum", float: false, region: segmented },
    Combine { name: "affine, scaled by a capture", float: true, region: captured },
    Combine { name: "log-sum-exp", float: true, region: log_sum_exp },
    Combine { name: "two by two", float: true, region: two_by_two },
];

fn build(parameters: &[Type], body: impl FnOnce(&mut Graph, &[Value]) -> Vec<Value>) -> Graph {
    let mut graph = Graph::new();
    let parameters: Vec<Value> = parameters.iter().map(|ty| graph.parameter(ty.clone())).collect();
    let results = body(&mut graph, &parameters);
    graph.set_results(results);
    graph
}

fn add(graph: &mut Graph, op: Op, operands: &[Value]) -> Value {
    graph.add1(op, operands, None).expect("well-formed")
}

fn fold(dtype: DType, function: Binary, slice: &[usize]) -> Graph {
    let ty = Type::new(dtype, slice);
    build(&[ty.clone(), ty], |g, x| vec![add(g, Op::Binary(function), &[x[0], x[1]])])
}

fn affine(dtype: DType, slice: &[usize]) -> Graph {
    let ty = Type::new(dtype, slice);
    build(&vec![ty; 4], |g, x| {
        let moved = add(g, Op::Binary(Binary::Mul), &[x[2], x[1]]);
        vec![add(g, Op::Binary(Binary::Mul), &[x[0], x[2]]), add(g, Op::Binary(Binary::Add), &[moved, x[3]])]
    })
}

fn arg_max(slice: &[usize]) -> Graph {
    let (value, index) = (Type::new(DType::F32, slice), Type::new(DType::I64, slice));
    build(&[value.clone(), index.clone(), value, index], |g, x| {
        let right = add(g, Op::Compare(Compare::Gt), &[x[2], x[0]]);
        vec![add(g, Op::Select, &[right, x[2], x[0]]), add(g, Op::Select, &[right, x[3], x[1]])]
    })
}

fn segmented(slice: &[usize]) -> Graph {
    let (flag, value) = (Type::new(DType::Bool, slice), Type::new(DType::F32, slice));
    build(&[flag.clone(), value.clone(), flag, value], |g, x| {
        let flag = add(g, Op::Binary(Binary::Or), &[x[0], x[2]]);
        let sum = add(g, Op::Binary(Binary::Add), &[x[1], x[3]]);
        vec![add(g, Op::Select, &[x[2], x[3], sum]), flag].into_iter().rev().collect()
    })
}

/// (a, b): affine maps whose product is measured in units of a captured scalar: a ∘ a' = a·a'·c.
fn captured(slice: &[usize]) -> Graph {
    let ty = Type::new(DType::F32, slice);
    build(&[ty.clone(), ty.clone(), ty.clone(), ty.clone(), Type::scalar(DType::F32)], |g, x| {
        let unit = add(g, Op::Broadcast { shape: slice.to_vec(), axes: vec![] }, &[x[4]]);
        let scaled = add(g, Op::Binary(Binary::Mul), &[unit, x[2]]);
        let moved = add(g, Op::Binary(Binary::Mul), &[scaled, x[1]]);
        vec![
            add(g, Op::Binary(Binary::Mul), &[x[0], scaled]),
            add(g, Op::Binary(Binary::Add), &[moved, x[3]]),
        ]
    })
}

fn log_sum_exp(slice: &[usize]) -> Graph {
    let ty = Type::new(DType::F64, slice);
    build(&[ty.clone(), ty], |g, x| {
        let most = add(g, Op::Binary(Binary::Max), &[x[0], x[1]]);
        let least = add(g, Op::Binary(Binary::Min), &[x[0], x[1]]);
        let gap = add(g, Op::Binary(Binary::Sub), &[least, most]);
        let exp = add(g, Op::Unary(Unary::Exp), &[gap]);
        let log = add(g, Op::Unary(Unary::Log1p), &[exp]);
        vec![add(g, Op::Binary(Binary::Add), &[most, log])]
    })
}

/// Products of 2 × 2 matrices: `right · left`.
fn two_by_two(slice: &[usize]) -> Graph {
    let shape = [slice, &[2, 2]].concat();
    let ty = Type::new(DType::F64, shape);
    let rank = slice.len();
    build(&[ty.clone(), ty], |g, x| {
        let batch: Vec<usize> = (0..rank).collect();
        let axes = DotAxes {
            left_batch: batch.clone(),
            right_batch: batch,
            left_contract: vec![rank + 1],
            right_contract: vec![rank],
        };
        vec![add(g, Op::Dot(axes), &[x[1], x[0]])]
    })
}
