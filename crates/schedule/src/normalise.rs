//! The graph as the fuser wants it: every view expressible, every result with storage of its own.
//!
//! Where a view cannot be had without moving data, or an array needs a place of its own, a copy is
//! inserted. In a normalised graph, and there only, [`Op::StopGradient`] stands for a copy; those that
//! the user wrote have done their work and are gone.

use std::collections::{HashMap, HashSet};

use tilewright_ir::{
    DType, DotAxes, Graph, Literal, Op, Origin, Result, Scalar, Value, ValueDefinition, infer,
};

use crate::Layout;
use crate::access::{Access, Affine, packed};
use crate::contraction;

/// A normalised graph, and for each of its values how it is read. A value that is its own base is
/// computed (or a parameter, or a constant); any other is a view.
pub(crate) struct Normal {
    pub graph: Graph,
    pub accesses: Vec<Access>,
}

/// Normalises a graph whose parameters lie as `inputs` say.
pub(crate) fn normalise(graph: &Graph, inputs: &[Layout]) -> Result<Normal> {
    let mut normal = Normaliser {
        graph: Graph::new(),
        accesses: Vec::new(),
        copies: HashMap::new(),
        strided: HashMap::new(),
    };
    let mut map: Vec<Option<Value>> = vec![None; graph.value_count()];
    for (&parameter, layout) in graph.parameters().iter().zip(inputs) {
        let ty = graph.ty(parameter);
        let value = normal.graph.parameter(ty.clone());
        normal.accesses.push(Access::identity(value, &ty.shape));
        if !layout.is_packed(&ty.shape) {
            normal.strided.insert(value, layout.clone());
        }
        map[parameter.index()] = Some(value);
    }
    let orders = memory_orders(graph);
    for node in graph.nodes() {
        let operands: Vec<Value> =
            node.operands.iter().map(|v| map[v.index()].expect("operands come first")).collect();
        let results = normal.node(&node.op, &operands, node.origin.clone())?;
        for (old, new) in node.results.iter().zip(results) {
            map[old.index()] = Some(new);
            if let Some(order) = orders.get(old) {
                normal.accesses[new.index()].flat.strides = ordered(&graph.ty(*old).shape, order);
            }
        }
    }
    let mut taken = HashSet::new();
    let mut results = Vec::new();
    for result in graph.results() {
        let value = map[result.index()].expect("results are values");
        results.push(normal.own(value, &mut taken)?);
    }
    normal.graph.set_results(results);
    Ok(Normal { graph: normal.graph, accesses: normal.accesses })
}

/// For results of attention, which may lie in any order of axes, that in which they are read: only ever transposed so,
/// but for attention and its gradient, which take any. A product then reads what the heads come to as it lies.
fn memory_orders(graph: &Graph) -> HashMap<Value, &[usize]> {
    let is_attention = |op: &Op| matches!(op, Op::FlexAttention(_) | Op::FlexAttentionBackward(_));
    let mut orders: HashMap<Value, &[usize]> = HashMap::new();
    let mut others: HashSet<Value> = graph.results().iter().copied().collect();
    for node in graph.nodes() {
        for &operand in &node.operands {
            if !graph.producer(operand).is_some_and(|producer| is_attention(&producer.op)) {
                continue;
            }
            if let Op::Transpose { permutation } = &node.op {
                if *orders.entry(operand).or_insert(permutation) != permutation {
                    others.insert(operand);
                }
            } else if !is_attention(&node.op) {
                others.insert(operand);
            }
        }
    }
    orders.retain(|value, order| {
        // The innermost axis stays, so that rows are read and written whole.
        !others.contains(value) && order.last() == Some(&(order.len() - 1))
    });
    orders
}

/// The strides of an array that is packed with its axes in this order.
fn ordered(shape: &[usize], order: &[usize]) -> Vec<isize> {
    let extents: Vec<usize> = order.iter().map(|&axis| shape[axis]).collect();
    let mut strides = vec![0; shape.len()];
    for (&axis, stride) in order.iter().zip(packed(&extents)) {
        strides[axis] = stride;
    }
    strides
}

struct Normaliser {
    graph: Graph,
    accesses: Vec<Access>,
    copies: HashMap<Value, Value>,
    /// The parameters that are not packed.
    strided: HashMap<Value, Layout>,
}

impl Normaliser {
    fn extent(&self, value: Value, axis: usize) -> usize {
        self.graph.ty(value).shape[axis]
    }

    fn node(&mut self, op: &Op, operands: &[Value], origin: Option<Origin>) -> Result<Vec<Value>> {
        match op {
            Op::StopGradient => return Ok(vec![operands[0]]),
            Op::Reduce { axes, .. } if axes.is_empty() => return Ok(vec![operands[0]]),
            // An axis of one position has nothing to reduce: it only goes.
            Op::Reduce { kind, axes } if axes.iter().any(|&axis| self.extent(operands[0], axis) == 1) => {
                let gone = |axis: usize| axes.contains(&axis) && self.extent(operands[0], axis) == 1;
                let kept: Vec<usize> =
                    (0..self.graph.ty(operands[0]).rank()).filter(|&axis| !gone(axis)).collect();
                let shape = kept.iter().map(|&axis| self.extent(operands[0], axis)).collect();
                let axes = (0..kept.len()).filter(|&i| axes.contains(&kept[i])).collect();
                let seen = self.node(&Op::Reshape { shape }, operands, origin.clone())?;
                return self.node(&Op::Reduce { kind: *kind, axes }, &seen, origin);
            }
            Op::ArgMax { axis } if self.extent(operands[0], *axis) == 1 => {
                let mut shape = self.graph.ty(operands[0]).shape.clone();
                shape.remove(*axis);
                let first = Op::Constant(Literal::scalar(DType::I64, 0i64));
                let first = self.node(&first, &[], origin.clone())?;
                return self.node(&Op::Broadcast { shape, axes: vec![] }, &first, origin);
            }
            Op::Broadcast { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Reverse { .. } => {
                let operands = self.viewable(op, operands)?;
                let values = self.graph.add(op.clone(), &operands, origin)?;
                let access = self.view(op, &operands, values[0]);
                self.accesses.push(access.unwrap_or_else(|| self.identity(values[0])));
                return Ok(values);
            }
            Op::Constant(_)
            | Op::Iota { .. }
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast(_)
            | Op::Reduce { .. }
            | Op::ArgMax { .. }
            | Op::RandomBits { .. }
            | Op::Concatenate { .. } => {}
            Op::Gather => {
                let mut operands = operands.to_vec();
                operands[0] = self.unpadded(operands[0])?;
                return self.computed(op, &operands, origin);
            }
            Op::Dot(axes) => {
                let (axes, operands) = self.matrices(axes, operands)?;
                return self.computed(&Op::Dot(axes), &operands, origin);
            }
            Op::AssociativeScan(scan) => {
                // Leaves are loaded as they are seen, padding and all.
                let mut operands = operands.to_vec();
                for capture in &mut operands[scan.leaves..] {
                    *capture = self.unpadded(*capture)?;
                }
                return self.computed(op, &operands, origin);
            }
            Op::ScatterAdd { .. } | Op::FlexAttention(_) | Op::FlexAttentionBackward(_) => {
                let operands =
                    operands.iter().map(|&value| self.unpadded(value)).collect::<Result<Vec<_>>>()?;
                return self.computed(op, &operands, origin);
            }
        }
        self.computed(op, operands, origin)
    }

    fn computed(&mut self, op: &Op, operands: &[Value], origin: Option<Origin>) -> Result<Vec<Value>> {
        let values = self.graph.add(op.clone(), operands, origin)?;
        for &value in &values {
            self.accesses.push(self.identity(value));
        }
        Ok(values)
    }

    fn identity(&self, value: Value) -> Access {
        Access::identity(value, &self.graph.ty(value).shape)
    }

    /// The operands of a view, the first one copied where the view asks for it.
    fn viewable(&mut self, op: &Op, operands: &[Value]) -> Result<Vec<Value>> {
        let types: Vec<_> = operands.iter().map(|&value| self.graph.ty(value)).collect();
        let result = infer(op, &types)?.swap_remove(0);
        let mut operands = operands.to_vec();
        if self.access(op, &operands, &result.shape).is_none() {
            operands[0] = self.copy(operands[0])?;
        }
        Ok(operands)
    }

    fn view(&self, op: &Op, operands: &[Value], result: Value) -> Option<Access> {
        self.access(op, operands, &self.graph.ty(result).shape)
    }

    fn access(&self, op: &Op, operands: &[Value], result: &[usize]) -> Option<Access> {
        let shape = &self.graph.ty(operands[0]).shape;
        let fill = operands.get(1).and_then(|&value| self.scalar(value));
        let access = self.accesses[operands[0].index()].through(op, shape, result, fill)?;
        let mixed = access.index.is_none() && self.strided.contains_key(&access.base);
        (!mixed).then_some(access)
    }

    /// The number that a rank-0 value is known to be.
    fn scalar(&self, value: Value) -> Option<Scalar> {
        self.graph.constant(self.accesses[value.index()].base)?.splat()
    }

    fn unpadded(&mut self, value: Value) -> Result<Value> {
        if self.accesses[value.index()].valid.is_some() { self.copy(value) } else { Ok(value) }
    }

    fn copy(&mut self, value: Value) -> Result<Value> {
        if let Some(&copy) = self.copies.get(&value) {
            return Ok(copy);
        }
        let origin = self.graph.producer(value).and_then(|node| node.origin.clone());
        let copy = self.computed(&Op::StopGradient, &[value], origin)?[0];
        self.copies.insert(value, copy);
        Ok(copy)
    }

    /// The operands of a contraction with each side a matrix in memory.
    fn matrices(&mut self, axes: &DotAxes, operands: &[Value]) -> Result<(DotAxes, Vec<Value>)> {
        let mut arranged = Vec::with_capacity(2);
        let ranks = [0, 1].map(|i| self.graph.ty(operands[i]).rank());
        let mut sides = contraction::sides(axes, ranks);
        for (&operand, side) in operands.iter().zip(&mut sides) {
            let mut operand = self.unpadded(operand)?;
            if !side.is_matrix(&self.graph.ty(operand).shape, &self.strides(operand)) {
                let permutation = side.order();
                *side = side.ordered();
                let transposed = self.node(&Op::Transpose { permutation }, &[operand], None)?[0];
                operand = self.copy(transposed)?;
            }
            arranged.push(operand);
        }
        let [left, right] = sides;
        let axes = DotAxes {
            left_batch: left.batch,
            right_batch: right.batch,
            left_contract: left.contract,
            right_contract: right.contract,
        };
        Ok((axes, arranged))
    }

    /// The distance in memory between neighbours along each axis of a value.
    fn strides(&self, value: Value) -> Vec<isize> {
        let access = &self.accesses[value.index()];
        match (self.strided.get(&access.base), &access.index) {
            (Some(layout), Some(index)) => {
                let rank = self.graph.ty(value).rank();
                let place = Affine { offset: layout.offset, strides: layout.strides.clone() };
                place.compose(index, rank).strides
            }
            _ => access.flat.strides.clone(),
        }
    }

    /// A value with the elements of `value` in row-major order, computed, and not yet a result.
    fn own(&mut self, value: Value, taken: &mut HashSet<Value>) -> Result<Value> {
        let access = &self.accesses[value.index()];
        let base = access.base;
        let whole = access.is_whole(&self.graph.ty(value).shape, self.graph.ty(base).elements());
        let computed = match self.graph.definition(base) {
            ValueDefinition::Parameter(_) => false,
            ValueDefinition::Result(node, _) => !matches!(self.graph.node(node).op, Op::Constant(_)),
        };
        if whole && computed && taken.insert(base) {
            return Ok(base);
        }
        let origin = self.graph.producer(value).and_then(|node| node.origin.clone());
        let copy = self.computed(&Op::StopGradient, &[value], origin)?[0];
        taken.insert(copy);
        Ok(copy)
    }
}

impl Layout {
    /// The layout of a packed row-major array.
    pub fn packed(shape: &[usize]) -> Layout {
        Layout { strides: packed(shape), offset: 0 }
    }

    fn is_packed(&self, shape: &[usize]) -> bool {
        let packed = packed(shape);
        shape.iter().zip(&self.strides).zip(&packed).all(|((&d, s), p)| d <= 1 || s == p)
    }
}
