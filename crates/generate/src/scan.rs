//! Random scans, with combine functions that are associative.

use tilewright_interp::Array;
use tilewright_ir::{AssociativeScan, Binary, DType, DotAxes, Graph, Op, Type, Unary, Value};

use crate::{Random, random_array};

/// [`random_scan_of`] a float type that the seed chooses: `f32` or `f64`, now and then a narrow one.
pub fn random_scan(seed: u64) -> (Graph, Vec<Array>) {
    let dtype = Random::new(seed ^ 0x5c).pick(&[DType::F32, DType::F32, DType::F64, DType::F64, DType::BF16]);
    random_scan_of(dtype, seed)
}

/// A program of one `associative_scan` with its inputs: one of the combine functions that models use, along a
/// random axis, forwards or backwards. Parameters are the leaves, then the captures; results are all
/// that the scan gives. Magnitudes stay moderate over the whole length.
pub fn random_scan_of(dtype: DType, seed: u64) -> (Graph, Vec<Array>) {
    let mut random = Random::new(seed);
    let kind = random.pick(&KINDS);
    let length = random.pick(&[0, 1, 2, 3, 7, 16, 33, 100]);
    let mut slice: Vec<usize> = (0..random.below(3)).map(|_| random.pick(&[1, 2, 3, 5])).collect();
    let axis = random.below(slice.len() + 1);
    if kind == Kind::Matrix {
        slice.extend([2, 2]);
    }
    let mut shape = slice.clone();
    shape.insert(axis, length);

    let mut inputs: Vec<Array> =
        kind.leaves().iter().map(|&leaf| leaf.array(&mut random, dtype, &shape)).collect();
    let leaves = inputs.len();
    if kind == Kind::Captured {
        let ty = Type::new(dtype, if random.once_in(2) { slice.clone() } else { vec![] });
        let elements: Vec<f64> = (0..ty.elements()).map(|_| random.float(-0.1, 0.1)).collect();
        inputs.push(Array::from_f64s(ty, &elements));
    }
    let combine = kind.combine(&inputs, leaves, axis);
    let mut graph = Graph::new();
    let operands: Vec<Value> = inputs.iter().map(|input| graph.parameter(input.ty().clone())).collect();
    let scan = AssociativeScan { combine, leaves, axis, reverse: random.once_in(2) };
    let results = graph.add(Op::AssociativeScan(Box::new(scan)), &operands, None);
    graph.set_results(results.expect("the generator keeps to the typing rules"));
    (graph, inputs)
}

/// A combine function.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// l + r.
    Sum,
    /// l · r.
    Product,
    /// max(l, r).
    Maximum,
    /// (a, x), (b, y) → (a·b, x·b + y): a linear recurrence.
    Linear,
    /// (x, y), (u, v) → (x·u − y·v, x·v + y·u): complex numbers.
    Complex,
    /// (m, s), (n, t) → the maximum, and the sum of exponentials relative to it.
    Softmax,
    /// l + r + c·l·r with a captured c.
    Captured,
    /// (f, x), (g, y) → (f | g, g ? y : x + y): sums that start anew at flags.
    Segmented,
    /// The product of 2 × 2 matrices.
    Matrix,
}

const KINDS: [Kind; 9] = [
    Kind::Sum,
    Kind::Product,
    Kind::Maximum,
    Kind::Linear,
    Kind::Complex,
    Kind::Softmax,
    Kind::Captured,
    Kind::Segmented,
    Kind::Matrix,
];

/// The values of a leaf.
#[derive(Clone, Copy)]
enum Leaf {
    /// Between −2 and 2.
    Any,
    /// Of magnitude 0.8 to 1.1.
    NearOne,
    /// Of magnitude below the given one.
    Below(f64),
    /// Between 0.5 and 1.5.
    Positive,
    /// Truth values.
    Flag,
}

impl Leaf {
    fn array(self, random: &mut Random, dtype: DType, shape: &[usize]) -> Array {
        let ty = Type::new(dtype, shape);
        let mut fill = |element: fn(&mut Random, f64) -> f64, limit: f64| {
            let elements: Vec<f64> = (0..ty.elements()).map(|_| element(random, limit)).collect();
            Array::from_f64s(ty.clone(), &elements)
        };
        match self {
            Leaf::Any => fill(|random, limit| random.float(-limit, limit), 2.0),
            Leaf::Below(limit) => fill(|random, limit| random.float(-limit, limit), limit),
            Leaf::Positive => fill(|random, limit| random.float(0.5, limit), 1.5),
            Leaf::NearOne => fill(
                |random, limit| random.float(0.8, limit) * if random.once_in(2) { 1.0 } else { -1.0 },
                1.1,
            ),
            Leaf::Flag => random_array(random, Type::new(DType::Bool, shape)),
        }
    }
}

impl Kind {
    fn leaves(self) -> &'static [Leaf] {
        match self {
            Kind::Sum | Kind::Maximum | Kind::Captured => &[Leaf::Any],
            Kind::Product => &[Leaf::NearOne],
            Kind::Linear => &[Leaf::Below(0.95), Leaf::Any],
            Kind::Complex => &[Leaf::Below(0.7), Leaf::Below(0.7)],
            Kind::Softmax => &[Leaf::Any, Leaf::Positive],
            Kind::Segmented => &[Leaf::Flag, Leaf::Any],
            Kind::Matrix => &[Leaf::Below(0.8)],
        }
    }

    fn combine(self, inputs: &[Array], leaves: usize, axis: usize) -> Graph {
        let mut graph = Graph::new();
        let slice = |input: &Array| {
            let mut ty = input.ty().clone();
            ty.shape.remove(axis);
            ty
        };
        let left: Vec<Value> = inputs[..leaves].iter().map(|input| graph.parameter(slice(input))).collect();
        let right: Vec<Value> = inputs[..leaves].iter().map(|input| graph.parameter(slice(input))).collect();
        let captured: Vec<Value> =
            inputs[leaves..].iter().map(|input| graph.parameter(input.ty().clone())).collect();
        let mut add = |op: Op, operands: &[Value]| {
            graph.add1(op, operands, None).expect("the generator keeps to the typing rules")
        };
        let [sum, difference, product, maximum] =
            [Binary::Add, Binary::Sub, Binary::Mul, Binary::Max].map(Op::Binary);
        let (l, r) = (left[0], right[0]);
        let results = match self {
            Kind::Sum => vec![add(sum, &[l, r])],
            Kind::Product => vec![add(product, &[l, r])],
            Kind::Maximum => vec![add(maximum, &[l, r])],
            Kind::Linear => {
                let both = add(product.clone(), &[l, r]);
                let carried = add(product, &[left[1], r]);
                vec![both, add(sum, &[carried, right[1]])]
            }
            Kind::Complex => {
                let products = [(l, r), (left[1], right[1]), (l, right[1]), (left[1], r)]
                    .map(|(x, y)| add(product.clone(), &[x, y]));
                vec![add(difference, &products[..2]), add(sum, &products[2..])]
            }
            Kind::Softmax => {
                let top = add(maximum, &[l, r]);
                let parts = [(l, left[1]), (r, right[1])].map(|(m, s)| {
                    let below = add(difference.clone(), &[m, top]);
                    let factor = add(Op::Unary(Unary::Exp), &[below]);
                    add(product.clone(), &[s, factor])
                });
                vec![top, add(sum, &parts)]
            }
            Kind::Captured => {
                let both = add(product.clone(), &[l, r]);
                let shape = slice(&inputs[0]).shape;
                let axes = (0..inputs[leaves].ty().rank()).collect();
                let factor = add(Op::Broadcast { shape, axes }, &captured);
                let bent = add(product, &[both, factor]);
                let plain = add(sum.clone(), &[l, r]);
                vec![add(sum, &[plain, bent])]
            }
            Kind::Segmented => {
                let either = add(Op::Binary(Binary::Or), &[l, r]);
                let total = add(sum, &[left[1], right[1]]);
                vec![either, add(Op::Select, &[r, right[1], total])]
            }
            Kind::Matrix => {
                let rank = slice(&inputs[0]).rank();
                let batch: Vec<usize> = (0..rank - 2).collect();
                let axes = DotAxes {
                    left_batch: batch.clone(),
                    right_batch: batch,
                    left_contract: vec![rank - 1],
                    right_contract: vec![rank - 2],
                };
                vec![add(Op::Dot(axes), &[l, r])]
            }
        };
        graph.set_results(results);
        graph
    }
}
