//! Random programs of the ordinary operations.

use tilewright_ir::{
    Binary, Compare, DType, DotAxes, Graph, Literal, Op, Reduction, Scalar, Type, Unary, Value,
};

use crate::Random;

/// What [`random_graph`] makes.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many operations it draws; each adds a few nodes.
    pub operations: usize,
    /// The float type.
    pub dtype: DType,
    /// Whether all results are floats with gradients that central differences can check: then there is no
    /// `stop_gradient`.
    pub differentiable: bool,
    /// The greatest extent of an axis.
    pub extent: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config { operations: 12, dtype: DType::F32, differentiable: false, extent: 5 }
    }
}

/// A value of the program.
#[derive(Clone, Copy, Debug)]
struct Entry {
    value: Value,
    /// Magnitude of a float that no element exceeds.
    bound: f64,
    /// Whether every evaluation has the same bits.
    exact: bool,
}

/// Bound of the inputs.
const INPUT_BOUND: f64 = 2.0;

/// A random program whose results are up to four of its values.
pub fn random_graph(seed: u64, config: &Config) -> Graph {
    let mut builder = Builder { random: Random::new(seed), config, graph: Graph::new(), entries: Vec::new() };
    for _ in 0..2 {
        let shape = builder.shape();
        builder.parameter(Type::new(config.dtype, shape));
    }
    for _ in 0..config.operations {
        builder.operation();
    }
    builder.finish()
}

struct Builder<'c> {
    random: Random,
    config: &'c Config,
    graph: Graph,
    entries: Vec<Entry>,
}

impl Builder<'_> {
    fn finish(mut self) -> Graph {
        let candidates: Vec<Value> = self
            .entries
            .iter()
            .map(|entry| entry.value)
            .filter(|&value| !self.config.differentiable || self.graph.ty(value).dtype.is_float())
            .collect();
        let mut results = vec![*candidates.last().expect("there are float parameters")];
        for _ in 0..self.random.below(4) {
            results.push(self.random.pick(&candidates));
        }
        self.graph.set_results(results);
        self.graph
    }

    fn operation(&mut self) {
        match self.random.below(20) {
            0..4 => self.unary(),
            4..7 => self.binary(),
            7 => self.kinked(),
            8 => self.jump(),
            9 => self.comparison(),
            10 => self.selection(),
            11..14 => self.movement(),
            14 => self.joining(),
            15 => self.reduction(),
            16 => self.dot(),
            17 => self.gather(),
            18 => self.scatter(),
            _ => self.integers(),
        }
    }

    fn extent(&mut self) -> usize {
        if self.random.once_in(20) { self.random.below(2) } else { 1 + self.random.below(self.config.extent) }
    }

    fn shape(&mut self) -> Vec<usize> {
        (0..self.random.below(4)).map(|_| self.extent()).collect()
    }

    fn ty(&self, entry: Entry) -> Type {
        self.graph.ty(entry.value).clone()
    }

    fn add(&mut self, op: Op, operands: &[Value]) -> Value {
        self.graph.add1(op, operands, None).expect("the generator keeps to the typing rules")
    }

    fn keep(&mut self, value: Value, bound: f64, exact: bool) -> Entry {
        let entry = Entry { value, bound, exact };
        self.push(entry);
        entry
    }

    /// Lets later operations read a value, unless it has grown large.
    fn push(&mut self, entry: Entry) {
        let ty = self.graph.ty(entry.value);
        if ty.rank() <= 5 && ty.elements() <= 400 {
            self.entries.push(entry);
        }
    }

    fn parameter(&mut self, ty: Type) -> Entry {
        let value = self.graph.parameter(ty);
        self.keep(value, INPUT_BOUND, true)
    }

    /// A value of the program that fits.
    fn find(&mut self, fits: impl Fn(&Type, &Entry) -> bool) -> Option<Entry> {
        let fitting: Vec<Entry> =
            self.entries.iter().filter(|entry| fits(self.graph.ty(entry.value), entry)).copied().collect();
        if fitting.is_empty() { None } else { Some(self.random.pick(&fitting)) }
    }

    fn float(&mut self) -> Entry {
        let dtype = self.config.dtype;
        self.find(|ty, _| ty.dtype == dtype).expect("there are float parameters")
    }

    /// A float value of which no element exceeds `limit`.
    fn float_within(&mut self, limit: f64) -> Entry {
        let entry = self.float();
        self.within(entry, limit)
    }

    fn within(&mut self, entry: Entry, limit: f64) -> Entry {
        if entry.bound <= limit {
            return entry;
        }
        if limit >= 1.0 && self.random.once_in(2) {
            let value = self.add(Op::Unary(Unary::Tanh), &[entry.value]);
            return Entry { value, bound: 1.0, exact: false };
        }
        let factor = self.splat(&self.ty(entry), limit / entry.bound);
        let value = self.add(Op::Binary(Binary::Mul), &[entry.value, factor]);
        Entry { value, bound: limit, exact: false }
    }

    /// Another value of this type: one that there is, a new parameter, or a constant.
    fn other(&mut self, ty: &Type, exact: bool) -> Entry {
        let fitting = self.find(|found, entry| found == ty && (entry.exact || !exact));
        match fitting {
            Some(entry) if !self.random.once_in(4) => entry,
            _ if self.graph.parameters().len() < 8 => self.parameter(ty.clone()),
            _ => {
                let x = self.random.float(-INPUT_BOUND, INPUT_BOUND);
                let value = self.splat(ty, x);
                self.keep(value, INPUT_BOUND, true)
            }
        }
    }

    fn splat(&mut self, ty: &Type, x: f64) -> Value {
        self.graph.splat(ty, x).expect("the shapes are small")
    }

    fn apply(&mut self, binary: Binary, x: Value, y: f64) -> Value {
        let y = self.splat(&self.graph.ty(x).clone(), y);
        self.add(Op::Binary(binary), &[x, y])
    }

    fn unary(&mut self) {
        let unary = self.random.pick(&[
            Unary::Neg,
            Unary::Exp,
            Unary::Expm1,
            Unary::Log,
            Unary::Log1p,
            Unary::Sqrt,
            Unary::Rsqrt,
            Unary::Sin,
            Unary::Cos,
            Unary::Tan,
            Unary::Tanh,
            Unary::Sigmoid,
            Unary::Erf,
        ]);
        let (limit, bound) = match unary {
            Unary::Neg => (8.0, 8.0),
            Unary::Exp | Unary::Expm1 => (2.0, 7.4),
            Unary::Log | Unary::Log1p | Unary::Sqrt | Unary::Rsqrt => (2.0, 2.5),
            Unary::Tan => (1.0, 1.6),
            _ => (8.0, 1.0),
        };
        let x = self.float_within(limit);
        // The functions that are not defined everywhere read x² + 1/2.
        let argument = match unary {
            Unary::Log | Unary::Log1p | Unary::Sqrt | Unary::Rsqrt => {
                let square = self.add(Op::Binary(Binary::Mul), &[x.value, x.value]);
                self.apply(Binary::Add, square, 0.5)
            }
            _ => x.value,
        };
        let value = self.add(Op::Unary(unary), &[argument]);
        self.keep(value, bound, false);
    }

    fn binary(&mut self) {
        let x = self.float_within(4.0);
        let y = self.other(&self.ty(x), false);
        let y = self.within(y, 4.0);
        let (value, bound) = match self.random.below(6) {
            0 => (self.add(Op::Binary(Binary::Add), &[x.value, y.value]), x.bound + y.bound),
            1 => (self.add(Op::Binary(Binary::Sub), &[x.value, y.value]), x.bound + y.bound),
            2 => (self.add(Op::Binary(Binary::Mul), &[x.value, y.value]), x.bound * y.bound),
            3 => {
                let square = self.add(Op::Binary(Binary::Mul), &[y.value, y.value]);
                let divisor = self.apply(Binary::Add, square, 0.75);
                (self.add(Op::Binary(Binary::Div), &[x.value, divisor]), x.bound / 0.75)
            }
            4 => {
                let base = self.add(Op::Unary(Unary::Sigmoid), &[x.value]);
                let base = self.apply(Binary::Add, base, 0.5);
                let exponent = self.within(y, 2.0);
                (self.add(Op::Binary(Binary::Pow), &[base, exponent.value]), 4.0)
            }
            _ => {
                let square = self.add(Op::Binary(Binary::Mul), &[y.value, y.value]);
                let right = self.apply(Binary::Add, square, 0.25);
                (self.add(Op::Binary(Binary::Atan2), &[x.value, right]), 1.6)
            }
        };
        self.keep(value, bound, false);
    }

    /// `max`, `min`, `abs` with the kink where no value lies.
    fn kinked(&mut self) {
        let x = self.float_within(4.0);
        let kink = self.random.float(-1.0, 1.0);
        let value = match self.random.below(3) {
            0 => self.apply(Binary::Max, x.value, kink),
            1 => self.apply(Binary::Min, x.value, kink),
            _ => {
                let shifted = self.apply(Binary::Sub, x.value, kink);
                self.add(Op::Unary(Unary::Abs), &[shifted])
            }
        };
        self.keep(value, x.bound + 1.0, false);
    }

    /// A function that is constant but for jumps, of an exact value.
    fn jump(&mut self) {
        let x = self.exact_float();
        match self.random.below(6) {
            0 => {
                let kind = self.random.pick(&[Unary::Floor, Unary::Ceil, Unary::Round, Unary::Sign]);
                let value = self.add(Op::Unary(kind), &[x.value]);
                self.keep(value, x.bound + 1.0, true);
            }
            1 => {
                let dtype = self.random.pick(&[DType::I32, DType::I64]);
                let value = self.add(Op::Cast(dtype), &[x.value]);
                self.keep(value, 0.0, true);
            }
            2 if !self.config.differentiable => {
                let value = self.add(Op::StopGradient, &[x.value]);
                self.keep(value, x.bound, true);
            }
            3 => {
                let key = self.random.integer(0, 1 << 40);
                let key = self.graph.scalar(DType::I64, key);
                let shape = self.shape();
                let bits = self.add(Op::RandomBits { shape }, &[key]);
                self.keep(bits, 0.0, true);
            }
            _ => {
                let ty = self.ty(x);
                let axes: Vec<usize> = (0..ty.rank()).filter(|&axis| ty.shape[axis] > 0).collect();
                if !axes.is_empty() {
                    let axis = self.random.pick(&axes);
                    let value = self.add(Op::ArgMax { axis }, &[x.value]);
                    self.keep(value, 0.0, true);
                }
            }
        }
    }

    fn exact_float(&mut self) -> Entry {
        let dtype = self.config.dtype;
        self.find(|ty, entry| ty.dtype == dtype && entry.exact).expect("there are float parameters")
    }

    fn comparison(&mut self) {
        let x = match self.find(|ty, _| ty.dtype.is_integer()) {
            Some(integer) if self.random.once_in(2) => integer,
            _ => self.exact_float(),
        };
        let y = self.other(&self.ty(x), true);
        let value = if self.random.once_in(6) {
            let bools = [x, y].map(|entry| self.add(Op::Cast(DType::Bool), &[entry.value]));
            let binary = self.random.pick(&[Binary::And, Binary::Or, Binary::Xor, Binary::Max]);
            self.add(Op::Binary(binary), &bools)
        } else {
            let compare = self.random.pick(&Compare::ALL);
            self.add(Op::Compare(compare), &[x.value, y.value])
        };
        let entry = self.keep(value, 1.0, true);
        match self.random.below(4) {
            0 => {
                let value = self.add(Op::Unary(Unary::Not), &[entry.value]);
                self.keep(value, 1.0, true);
            }
            1 => {
                let value = self.add(Op::Cast(self.config.dtype), &[entry.value]);
                self.keep(value, 1.0, true);
            }
            _ => {}
        }
    }

    fn selection(&mut self) {
        let Some(condition) = self.find(|ty, _| ty.dtype == DType::Bool) else { return self.comparison() };
        let ty = Type::new(self.config.dtype, self.ty(condition).shape);
        let (x, y) = (self.other(&ty, false), self.other(&ty, false));
        let value = self.add(Op::Select, &[condition.value, x.value, y.value]);
        self.keep(value, x.bound.max(y.bound), x.exact && y.exact);
    }

    /// An operation that only moves elements, of any type.
    fn movement(&mut self) {
        let entry = self.random.pick(&self.entries.clone());
        let ty = self.ty(entry);
        let op = match self.random.below(6) {
            0 => {
                let mut shape = ty.shape.clone();
                let mut axes: Vec<usize> = (0..ty.rank()).collect();
                if ty.rank() < 4 {
                    let position = self.random.below(ty.rank() + 1);
                    shape.insert(position, self.extent());
                    axes.iter_mut().filter(|axis| **axis >= position).for_each(|axis| *axis += 1);
                }
                for (i, &axis) in axes.iter().enumerate() {
                    if ty.shape[i] == 1 {
                        shape[axis] = self.extent();
                    }
                }
                Op::Broadcast { shape, axes }
            }
            1 => Op::Reshape { shape: self.regrouped(&ty.shape) },
            2 => {
                let mut permutation: Vec<usize> = (0..ty.rank()).collect();
                for i in (1..ty.rank()).rev() {
                    permutation.swap(i, self.random.below(i + 1));
                }
                Op::Transpose { permutation }
            }
            3 => {
                let limit: Vec<usize> = ty.shape.iter().map(|&d| d - self.random.below(d + 1) / 3).collect();
                let start = limit.iter().map(|&limit| self.random.below(limit + 1) / 2).collect();
                let step = ty.shape.iter().map(|_| 1 + self.random.below(2)).collect();
                Op::Slice { start, limit, step }
            }
            4 => Op::Reverse { axes: (0..ty.rank()).filter(|_| self.random.once_in(2)).collect() },
            _ => {
                let mut amounts = |limit: usize| ty.shape.iter().map(|_| self.random.below(limit)).collect();
                let (low, high, interior) = (amounts(3), amounts(2), amounts(2));
                let value = match ty.dtype {
                    dtype if dtype.is_float() => Scalar::Float(self.random.float(-2.0, 2.0)),
                    DType::Bool => Scalar::Bool(self.random.once_in(2)),
                    _ => Scalar::Integer(3),
                };
                let value = self.graph.scalar(ty.dtype, value);
                let bound = entry.bound.max(INPUT_BOUND);
                let padded = self.add(Op::Pad { low, high, interior }, &[entry.value, value]);
                self.keep(padded, bound, entry.exact);
                return;
            }
        };
        let moved = self.add(op, &[entry.value]);
        self.keep(moved, entry.bound, entry.exact);
    }

    /// Another shape with as many elements: two neighbours merged, or an axis of 1 put in.
    fn regrouped(&mut self, shape: &[usize]) -> Vec<usize> {
        let mut shape = shape.to_vec();
        if shape.len() >= 2 && self.random.once_in(2) {
            let axis = self.random.below(shape.len() - 1);
            let inner = shape.remove(axis + 1);
            shape[axis] *= inner;
        } else {
            shape.insert(self.random.below(shape.len() + 1), 1);
        }
        shape
    }

    fn joining(&mut self) {
        let first = self.float();
        let ty = self.ty(first);
        if ty.rank() == 0 {
            return self.binary();
        }
        let second = self.other(&ty, false);
        let axis = self.random.below(ty.rank());
        let operands = [first.value, second.value, first.value];
        let operands = &operands[..1 + self.random.below(3)];
        let value = self.add(Op::Concatenate { axis }, operands);
        self.keep(value, first.bound.max(second.bound), first.exact && second.exact);
    }

    fn reduction(&mut self) {
        let kind = self.random.pick(&Reduction::ALL);
        let x = self.float_within(if kind == Reduction::Prod { 1.4 } else { 8.0 });
        let ty = self.ty(x);
        let mut axes: Vec<usize> = (0..ty.rank()).filter(|_| self.random.once_in(2)).collect();
        let (operand, bound) = match kind {
            Reduction::Sum => (x.value, x.bound * ty.elements() as f64),
            Reduction::Prod => {
                axes.truncate(1);
                let extent = axes.first().map_or(1, |&axis| ty.shape[axis]);
                (x.value, x.bound.max(1.0).powi(extent as i32))
            }
            // Over nothing these are infinite. Elements may be equal: irregular differences part them.
            Reduction::Max | Reduction::Min => {
                axes.retain(|&axis| ty.shape[axis] > 0);
                let noise = self.noise(&ty);
                (self.add(Op::Binary(Binary::Add), &[x.value, noise]), x.bound + 1.0)
            }
        };
        let value = self.add(Op::Reduce { kind, axes }, &[operand]);
        let entry = Entry { value, bound, exact: false };
        let entry = self.within(entry, 8.0);
        self.push(entry);
    }

    fn noise(&mut self, ty: &Type) -> Value {
        let elements: Vec<Scalar> =
            (0..ty.elements()).map(|_| Scalar::Float(self.random.float(-1.0, 1.0))).collect();
        self.add(Op::Constant(Literal::from_scalars(ty.clone(), elements)), &[])
    }

    fn dot(&mut self) {
        let x = self.float_within(2.0);
        let ty = self.ty(x);
        let mut axes = DotAxes::default();
        let mut right_shape = Vec::new();
        for axis in 0..ty.rank() {
            match self.random.below(3) {
                0 => {
                    axes.left_batch.push(axis);
                    axes.right_batch.push(right_shape.len());
                    right_shape.push(ty.shape[axis]);
                }
                1 => {
                    axes.left_contract.push(axis);
                    axes.right_contract.push(right_shape.len());
                    right_shape.push(ty.shape[axis]);
                }
                _ => {}
            }
        }
        if right_shape.len() < 3 {
            let extent = self.extent();
            right_shape.push(extent);
        }
        let right = self.other(&Type::new(ty.dtype, right_shape), false);
        let right = self.within(right, 2.0);
        let contracted: usize = axes.left_contract.iter().map(|&axis| ty.shape[axis]).product();
        let value = self.add(Op::Dot(axes), &[x.value, right.value]);
        let bound = x.bound * right.bound * contracted as f64;
        let entry = self.within(Entry { value, bound, exact: false }, 8.0);
        self.push(entry);
    }

    /// An integer array of this shape with elements from `-size` (or 0) up to `size - 1`.
    fn indices(&mut self, shape: &[usize], dtype: DType, size: usize) -> Value {
        let ty = Type::new(dtype, shape);
        let raw = if !shape.is_empty() && self.random.once_in(3) {
            let axis = self.random.below(shape.len());
            self.add(Op::Iota { dtype, shape: shape.to_vec(), axis }, &[])
        } else {
            self.other(&ty, true).value
        };
        let size_value = self.graph.splat(&ty, size as i64).expect("the shapes are small");
        let index = self.add(Op::Binary(Binary::Rem), &[raw, size_value]);
        if self.random.once_in(4) { self.add(Op::Binary(Binary::Sub), &[index, size_value]) } else { index }
    }

    fn gather(&mut self) {
        let array = self.random.pick(&self.entries.clone());
        let ty = self.ty(array);
        let axes = self.random.below(ty.rank() + 1);
        if ty.shape[..axes].contains(&0) {
            return;
        }
        let shape: Vec<usize> = (0..self.random.below(3)).map(|_| self.extent()).collect();
        let dtype = self.random.pick(&[DType::I32, DType::I64]);
        let mut operands = vec![array.value];
        for &extent in &ty.shape[..axes] {
            operands.push(self.indices(&shape, dtype, extent));
        }
        let value = self.add(Op::Gather, &operands);
        self.keep(value, array.bound, array.exact);
    }

    fn scatter(&mut self) {
        let updates = self.float_within(4.0);
        let ty = self.ty(updates);
        let leading = self.random.below(ty.rank() + 1);
        let (shape, tail) = ty.shape.split_at(leading);
        let axes = 1 + self.random.below(2);
        let dtype = self.random.pick(&[DType::I32, DType::I64]);
        let mut operands = vec![updates.value];
        let mut result = Vec::new();
        for _ in 0..axes {
            let extent = 1 + self.random.below(self.config.extent);
            operands.push(self.indices(shape, dtype, extent));
            result.push(extent);
        }
        result.extend(tail);
        let value = self.add(Op::ScatterAdd { shape: result }, &operands);
        let bound = updates.bound * ty.elements().max(1) as f64;
        let entry = self.within(Entry { value, bound, exact: false }, 8.0);
        self.push(entry);
    }

    /// An integer operation, sometimes converted to floats.
    fn integers(&mut self) {
        let x = match self.find(|ty, _| ty.dtype.is_integer()) {
            Some(integer) => integer,
            None => {
                let dtype = self.random.pick(&[DType::I32, DType::I64, DType::U8]);
                let shape = self.shape();
                self.parameter(Type::new(dtype, shape))
            }
        };
        let ty = self.ty(x);
        let value = if self.random.once_in(4) {
            let unary = self.random.pick(&[Unary::Neg, Unary::Abs, Unary::Sign, Unary::Not]);
            self.add(Op::Unary(unary), &[x.value])
        } else {
            let y = self.other(&ty, true);
            let binary = self.random.pick(&[
                Binary::Add,
                Binary::Sub,
                Binary::Mul,
                Binary::Div,
                Binary::Rem,
                Binary::Max,
                Binary::Min,
                Binary::And,
                Binary::Or,
                Binary::Xor,
            ]);
            self.add(Op::Binary(binary), &[x.value, y.value])
        };
        self.keep(value, 0.0, true);
        if self.random.once_in(2) {
            let seven = self.graph.splat(&ty, 7).expect("the shapes are small");
            let small = self.add(Op::Binary(Binary::Rem), &[value, seven]);
            let float = self.add(Op::Cast(self.config.dtype), &[small]);
            self.keep(float, 7.0, true);
        }
    }
}
