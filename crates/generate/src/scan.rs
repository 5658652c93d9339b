//! Random scans, with combine functions that are associative.

use tilewright_interp::Array;
use tilewright_ir::{AssociativeScan, Binary, DType, DotAxes, Graph, Op, Reduction, Type, Unary, Value};

use crate::{Random, random_array};

/// [`random_scan_of`] a float type that the seed chooses: `f32` or `f64`, now and then a narrow one.
pub fn random_scan(seed: u64) -> (Graph, Vec<Array>) {
    let dtype = Random::new(seed ^ 0x5c).pick(&[DType::F32, DType::F32, DType::F64, DType::F64, DType::BF16]);
    random_scan_of(dtype, seed)
}

/// A program of one `associative_scan` with its inputs: one of the combine functions that models use, now and then
/// lifted to segments, along a random axis, forwards or backwards. Parameters are the leaves, then the captures;
/// results are all that the scan gives. Magnitudes stay moderate over the whole length.
pub fn random_scan_of(dtype: DType, seed: u64) -> (Graph, Vec<Array>) {
    let mut random = Random::new(seed);
    let kind = random.pick(&KINDS);
    let lifted = random.once_in(4);
    let length = random.pick(&[0, 1, 2, 3, 7, 16, 33, 100]);
    let mut slice: Vec<usize> = (0..random.below(3)).map(|_| random.pick(&[1, 2, 3, 5])).collect();
    let axis = random.below(slice.len() + 1);
    let mut shape = slice.clone();
    shape.insert(axis, length);
    // Matrices start a segment as a whole.
    let starts = lifted.then(|| random_array(&mut random, Type::new(DType::Bool, shape.clone())));
    if kind.of_matrices() {
        slice.extend([2, 2]);
        shape.extend([2, 2]);
    }

    let elements = kind.leaves().iter().map(|&leaf| leaf.array(&mut random, dtype, &shape));
    let mut inputs: Vec<Array> = starts.into_iter().chain(elements).collect();
    let leaves = inputs.len();
    if kind == Kind::Captured {
        let ty = Type::new(dtype, if random.once_in(2) { slice.clone() } else { vec![] });
        let elements: Vec<f64> = (0..ty.elements()).map(|_| random.float(-0.1, 0.1)).collect();
        inputs.push(Array::from_f64s(ty, &elements));
    }
    let combine = kind.combine(&inputs, leaves, lifted, axis);
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
    /// (a, x), (b, y) → (a + b, max(x + b, y)): a linear recurrence where sums stand for products, and maxima for sums.
    Tropical,
    /// l + r + c·l·r with a captured c.
    Captured,
    /// The product of 2 × 2 matrices.
    Matrix,
    /// The same, of sums and maxima.
    TropicalMatrix,
}

const KINDS: [Kind; 10] = [
    Kind::Sum,
    Kind::Product,
    Kind::Maximum,
    Kind::Linear,
    Kind::Complex,
    Kind::Softmax,
    Kind::Tropical,
    Kind::Captured,
    Kind::Matrix,
    Kind::TropicalMatrix,
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
        }
    }
}

impl Kind {
    fn leaves(self) -> &'static [Leaf] {
        match self {
            Kind::Sum | Kind::Maximum | Kind::Captured | Kind::TropicalMatrix => &[Leaf::Any],
            Kind::Product => &[Leaf::NearOne],
            Kind::Linear => &[Leaf::Below(0.95), Leaf::Any],
            Kind::Complex => &[Leaf::Below(0.7), Leaf::Below(0.7)],
            Kind::Softmax => &[Leaf::Any, Leaf::Positive],
            Kind::Tropical => &[Leaf::Any, Leaf::Any],
            Kind::Matrix => &[Leaf::Below(0.8)],
        }
    }

    fn of_matrices(self) -> bool {
        matches!(self, Kind::Matrix | Kind::TropicalMatrix)
    }

    /// The combine function for `inputs`: `leaves` of them, then captures. Lifted, the first leaf says where a
    /// segment starts: (f, x), (g, y) → (f | g, g ? y : x·y).
    fn combine(self, inputs: &[Array], leaves: usize, lifted: bool, axis: usize) -> Graph {
        let mut graph = Graph::new();
        let slice = |input: &Array| {
            let mut ty = input.ty().clone();
            ty.shape.remove(axis);
            ty
        };
        let mut left: Vec<Value> =
            inputs[..leaves].iter().map(|input| graph.parameter(slice(input))).collect();
        let mut right: Vec<Value> =
            inputs[..leaves].iter().map(|input| graph.parameter(slice(input))).collect();
        let captured: Vec<Value> =
            inputs[leaves..].iter().map(|input| graph.parameter(input.ty().clone())).collect();
        let mut add = |op: Op, operands: &[Value]| {
            graph.add1(op, operands, None).expect("the generator keeps to the typing rules")
        };
        let [sum, difference, product, maximum] =
            [Binary::Add, Binary::Sub, Binary::Mul, Binary::Max].map(Op::Binary);
        let starts = lifted.then(|| (left.remove(0), right.remove(0)));
        let shape = slice(&inputs[leaves - 1]).shape;
        let (l, r) = (left[0], right[0]);
        let mut results = match self {
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
                let axes = (0..inputs[leaves].ty().rank()).collect();
                let factor = add(Op::Broadcast { shape: shape.clone(), axes }, &captured);
                let bent = add(product, &[both, factor]);
                let plain = add(sum.clone(), &[l, r]);
                vec![add(sum, &[plain, bent])]
            }
            Kind::Tropical => {
                let moved = add(sum.clone(), &[left[1], r]);
                vec![add(sum, &[l, r]), add(maximum, &[moved, right[1]])]
            }
            Kind::Matrix => {
                let rank = shape.len();
                let batch: Vec<usize> = (0..rank - 2).collect();
                let axes = DotAxes {
                    left_batch: batch.clone(),
                    right_batch: batch,
                    left_contract: vec![rank - 1],
                    right_contract: vec![rank - 2],
                };
                vec![add(Op::Dot(axes), &[l, r])]
            }
            Kind::TropicalMatrix => {
                // Elements of l at (row, inner), of r at (inner, column), over (row, inner, column).
                let rank = shape.len();
                let wide = [&shape[..], &[2]].concat();
                let rows = Op::Broadcast { shape: wide.clone(), axes: (0..rank).collect() };
                let columns =
                    Op::Broadcast { shape: wide, axes: (0..rank - 2).chain([rank - 1, rank]).collect() };
                let (l, r) = (add(rows, &[l]), add(columns, &[r]));
                let sums = add(sum, &[l, r]);
                vec![add(Op::Reduce { kind: Reduction::Max, axes: vec![rank - 1] }, &[sums])]
            }
        };
        if let Some((f, g)) = starts {
            let axes: Vec<usize> = (0..slice(&inputs[0]).rank()).collect();
            let start = add(Op::Broadcast { shape, axes }, &[g]);
            for (result, &r) in results.iter_mut().zip(&right) {
                *result = add(Op::Select, &[start, r, *result]);
            }
            results.insert(0, add(Op::Binary(Binary::Or), &[f, g]));
        }
        graph.set_results(results);
        graph
    }
}
