//! Random score functions.

use tilewright_ir::{Binary, Compare, DType, Graph, Op, Reduction, Type, Unary, Value};

use crate::attention::{Captures, Region, Sizes};
use crate::{Random, random_array};

/// A score function of one to three terms that captures arrays of `dtype` or of the score type.
pub(crate) fn random_score(
    random: &mut Random,
    sizes: &Sizes,
    captures: &mut Captures,
    dtype: DType,
    score_type: DType,
) -> Graph {
    let mut graph = Graph::new();
    let mut score = graph.parameter(Type::scalar(score_type));
    let pair = [(); 4].map(|()| graph.parameter(Type::scalar(DType::I32)));
    let region = Region { graph, pair, random, sizes, captures };
    let mut writer = ScoreWriter { region, dtype, score_type };
    for _ in 0..writer.region.random.below(4) {
        score = writer.term(score);
    }
    let mut graph = writer.region.graph;
    graph.set_results(vec![score]);
    graph
}

struct ScoreWriter<'a> {
    region: Region<'a>,
    dtype: DType,
    score_type: DType,
}

impl ScoreWriter<'_> {
    /// The score with one more modification.
    fn term(&mut self, score: Value) -> Value {
        match self.region.random.below(8) {
            0..3 => {
                let bias = self.expression(2);
                self.region.binary(Binary::Add, score, bias)
            }
            3 => {
                let expression = self.expression(1);
                let gate = self.unary(Unary::Sigmoid, expression);
                self.region.binary(Binary::Mul, score, gate)
            }
            4 => {
                let cap = self.region.random.float(2.0, 6.0);
                let cap = self.float(cap);
                let ratio = self.region.binary(Binary::Div, score, cap);
                let bent = self.unary(Unary::Tanh, ratio);
                self.region.binary(Binary::Mul, bent, cap)
            }
            5 => {
                let condition = self.condition();
                let half = self.float(0.5);
                let halved = self.region.binary(Binary::Mul, score, half);
                let bias = self.expression(1);
                let otherwise = self.region.binary(Binary::Add, halved, bias);
                self.region.add(Op::Select, &[condition, score, otherwise])
            }
            // With few pairs it is improbable that one lies near the kink.
            6 if self.region.sizes.queries * self.region.sizes.keys <= 64 => {
                let least = self.region.random.float(-1.5, 0.0);
                let least = self.float(least);
                let binary = self.region.random.pick(&[Binary::Max, Binary::Min]);
                self.region.binary(binary, score, least)
            }
            _ => {
                let (factor, bias) = (self.expression(0), self.expression(1));
                let sine = self.unary(Unary::Sin, score);
                let product = self.region.binary(Binary::Mul, sine, factor);
                self.region.binary(Binary::Add, product, bias)
            }
        }
    }

    fn float(&mut self, x: f64) -> Value {
        self.region.graph.scalar(self.score_type, x)
    }

    fn unary(&mut self, unary: Unary, x: Value) -> Value {
        self.region.add(Op::Unary(unary), &[x])
    }

    /// An expression that does not read the score, of magnitude below about 5.
    fn expression(&mut self, depth: usize) -> Value {
        if depth == 0 {
            return if self.region.random.once_in(4) { self.position() } else { self.read() };
        }
        match self.region.random.below(7) {
            0 => {
                let x = self.expression(depth - 1);
                let unary = self.region.random.pick(&[Unary::Tanh, Unary::Sigmoid, Unary::Sin, Unary::Erf]);
                self.unary(unary, x)
            }
            1 => {
                let x = self.expression(depth - 1);
                let bounded = self.unary(Unary::Tanh, x);
                self.unary(Unary::Exp, bounded)
            }
            2 | 3 => {
                let (x, y) = (self.expression(depth - 1), self.expression(depth - 1));
                let binary = self.region.random.pick(&[Binary::Add, Binary::Sub]);
                self.region.binary(binary, x, y)
            }
            4 => {
                let (x, y) = (self.expression(depth - 1), self.expression(depth - 1));
                let bounded = self.unary(Unary::Sin, y);
                self.region.binary(Binary::Mul, x, bounded)
            }
            5 => {
                let condition = self.condition();
                let (x, y) = (self.expression(depth - 1), self.expression(depth - 1));
                self.region.add(Op::Select, &[condition, x, y])
            }
            _ => self.expression(0),
        }
    }

    /// A truth of the positions.
    fn condition(&mut self) -> Value {
        let [_, h, q, k] = self.region.pair;
        let compare = self.region.random.pick(&Compare::ALL);
        let (x, y) = match self.region.random.below(3) {
            0 => (q, k),
            1 => (self.region.binary(Binary::Add, q, h), k),
            _ => (k, self.region.integer(2)),
        };
        self.region.compare(compare, x, y)
    }

    /// A small multiple of a combination of the positions.
    fn position(&mut self) -> Value {
        let [b, h, q, k] = self.region.pair;
        let x = match self.region.random.below(4) {
            0 => self.region.binary(Binary::Sub, q, k),
            1 => self.region.binary(Binary::Sub, k, q),
            2 => h,
            _ => b,
        };
        let x = self.region.add(Op::Cast(self.score_type), &[x]);
        let greatest = self.region.sizes.queries.max(self.region.sizes.keys).max(4);
        let factor = self.float(2.0 / greatest as f64);
        self.region.binary(Binary::Mul, x, factor)
    }

    /// A read of a new learned array at a random map of the positions.
    fn read(&mut self) -> Value {
        let Sizes { batch, heads, queries, keys, .. } = *self.region.sizes;
        let [b, h, q, k] = self.region.pair;
        let longest = queries.max(keys);
        let (shape, indices) = match self.region.random.below(19) {
            0 => (vec![], vec![]),
            1 => (vec![batch], vec![b]),
            2 => (vec![heads], vec![h]),
            3 => (vec![queries], vec![q]),
            4 => (vec![keys], vec![k]),
            5 => (vec![queries + keys - 1], vec![self.difference()]),
            6 => (vec![heads, queries + keys - 1], vec![h, self.difference()]),
            7 => {
                let difference = self.region.binary(Binary::Sub, q, k);
                (vec![longest], vec![self.unary(Unary::Abs, difference)])
            }
            8 => (vec![5], vec![self.clamped(2)]),
            9 => (vec![heads, 7], vec![h, self.clamped(3)]),
            10 => (vec![4], vec![self.region.table(&[queries], 4, &[q])]),
            11 => (vec![heads, 6], vec![h, self.region.table(&[queries, keys], 6, &[q, k])]),
            12 => (vec![3], vec![self.region.table(&[batch, queries, keys], 3, &[b, q, k])]),
            13 => (vec![heads, queries, keys], vec![h, q, k]),
            14 => {
                let group = self.region.integer(2);
                let group = self.region.binary(Binary::Div, b, group);
                (vec![batch.div_ceil(2), heads, queries, keys], vec![group, h, q, k])
            }
            15 => (vec![keys, queries], vec![k, q]),
            16 => (vec![queries + keys], vec![self.region.binary(Binary::Add, q, k)]),
            17 => {
                // A chain of tables.
                let first = self.region.table(&[keys], 5, &[k]);
                (vec![3], vec![self.region.table(&[5], 3, &[first])])
            }
            _ => {
                // An index that counts from the end.
                let length = self.region.integer(keys);
                (vec![keys], vec![self.region.binary(Binary::Sub, k, length)])
            }
        };
        if self.region.random.once_in(12) {
            return self.row_product(longest);
        }
        if self.region.random.once_in(5) && indices.len() >= 2 {
            // The same element, a row first: B[h][q].
            let row = self.capture(&shape);
            let row = self.region.add(Op::Gather, &[row, indices[0]]);
            return self.element(row, &indices[1..]);
        }
        let array = self.capture(&shape);
        self.element(array, &indices)
    }

    /// A new learned array.
    fn capture(&mut self, shape: &[usize]) -> Value {
        let dtype = self.region.random.pick(&[self.dtype, self.score_type]);
        let array = random_array(self.region.random, Type::new(dtype, shape));
        self.region.captures.add(&mut self.region.graph, array)
    }

    /// One element, in the score type.
    fn element(&mut self, array: Value, indices: &[Value]) -> Value {
        let x = if indices.is_empty() {
            array
        } else {
            self.region.add(Op::Gather, &[&[array], indices].concat())
        };
        self.in_score_type(x)
    }

    fn in_score_type(&mut self, x: Value) -> Value {
        if self.region.graph.ty(x).dtype == self.score_type {
            x
        } else {
            self.region.add(Op::Cast(self.score_type), &[x])
        }
    }

    /// The product of two rows of a learned array, of the query's and of the key's position.
    fn row_product(&mut self, longest: usize) -> Value {
        let [_, _, q, k] = self.region.pair;
        let array = self.capture(&[longest, 3]);
        let rows = [q, k].map(|index| {
            let row = self.region.add(Op::Gather, &[array, index]);
            self.in_score_type(row)
        });
        let products = self.region.binary(Binary::Mul, rows[0], rows[1]);
        let sum = self.region.add(Op::Reduce { kind: Reduction::Sum, axes: vec![0] }, &[products]);
        self.unary(Unary::Tanh, sum)
    }

    /// `q − k + keys − 1`, from 0.
    fn difference(&mut self) -> Value {
        let [_, _, q, k] = self.region.pair;
        let difference = self.region.binary(Binary::Sub, q, k);
        let last = self.region.integer(self.region.sizes.keys - 1);
        self.region.binary(Binary::Add, difference, last)
    }

    /// `clamp(q − k, −width, width) + width`.
    fn clamped(&mut self, width: usize) -> Value {
        let [_, _, q, k] = self.region.pair;
        let difference = self.region.binary(Binary::Sub, q, k);
        let (low, high) = (self.region.graph.scalar(DType::I32, -(width as i64)), self.region.integer(width));
        let above = self.region.binary(Binary::Max, difference, low);
        let clamped = self.region.binary(Binary::Min, above, high);
        self.region.binary(Binary::Add, clamped, high)
    }
}
