//! Shorthand for appending operations that all come from one line of the user's code.

use tilewright_ir::{
    Binary, Compare, DType, DotAxes, Graph, Literal, Op, Origin, Reduction, Result, Scalar, Type,
};
use tilewright_ir::{Unary, Value};

/// A graph under construction and the origin that new nodes carry. Operations that would change nothing
/// (a reshape to the same shape, a product with the constant 1) are not appended.
pub(crate) struct Emit<'g> {
    pub graph: &'g mut Graph,
    pub origin: Option<Origin>,
}

impl<'g> Emit<'g> {
    pub fn new(graph: &'g mut Graph, origin: Option<Origin>) -> Emit<'g> {
        Emit { graph, origin }
    }

    pub fn ty(&self, value: Value) -> Type {
        self.graph.ty(value).clone()
    }

    pub fn shape(&self, value: Value) -> Vec<usize> {
        self.graph.ty(value).shape.clone()
    }

    pub fn dtype(&self, value: Value) -> DType {
        self.graph.ty(value).dtype
    }

    pub fn op(&mut self, op: Op, operands: &[Value]) -> Result<Value> {
        self.graph.add1(op, operands, self.origin.clone())
    }

    pub fn ops(&mut self, op: Op, operands: &[Value]) -> Result<Vec<Value>> {
        self.graph.add(op, operands, self.origin.clone())
    }

    /// An array of `ty` whose elements are all `value`.
    pub fn splat(&mut self, ty: &Type, value: impl Into<Scalar>) -> Result<Value> {
        let scalar = self.op(Op::Constant(Literal::scalar(ty.dtype, value)), &[])?;
        self.broadcast(scalar, &ty.shape, &[])
    }

    pub fn zeros(&mut self, ty: &Type) -> Result<Value> {
        self.splat(ty, 0i64)
    }

    /// An array like `value` whose elements are all `element`.
    pub fn like(&mut self, value: Value, element: f64) -> Result<Value> {
        let ty = self.ty(value);
        self.splat(&ty, element)
    }

    /// Whether every element of `value` is known to be `element`.
    pub fn is_splat(&self, value: Value, element: f64) -> bool {
        let mut value = value;
        while let Some(node) = self.graph.producer(value) {
            if let Op::Constant(literal) = &node.op {
                return literal.ty().dtype.is_float()
                    && literal.splat().is_some_and(|x| x.to_f64() == element);
            }
            if !matches!(node.op, Op::Broadcast { .. } | Op::Reshape { .. } | Op::Transpose { .. }) {
                return false;
            }
            value = node.operands[0];
        }
        false
    }

    pub fn unary(&mut self, unary: Unary, x: Value) -> Result<Value> {
        self.op(Op::Unary(unary), &[x])
    }

    pub fn neg(&mut self, x: Value) -> Result<Value> {
        self.unary(Unary::Neg, x)
    }

    pub fn binary(&mut self, binary: Binary, x: Value, y: Value) -> Result<Value> {
        self.op(Op::Binary(binary), &[x, y])
    }

    pub fn add(&mut self, x: Value, y: Value) -> Result<Value> {
        self.binary(Binary::Add, x, y)
    }

    pub fn sub(&mut self, x: Value, y: Value) -> Result<Value> {
        self.binary(Binary::Sub, x, y)
    }

    pub fn mul(&mut self, x: Value, y: Value) -> Result<Value> {
        if self.is_splat(x, 1.0) {
            return Ok(y);
        }
        if self.is_splat(y, 1.0) {
            return Ok(x);
        }
        self.binary(Binary::Mul, x, y)
    }

    pub fn div(&mut self, x: Value, y: Value) -> Result<Value> {
        self.binary(Binary::Div, x, y)
    }

    /// `x` times a constant.
    pub fn scale(&mut self, x: Value, factor: f64) -> Result<Value> {
        let factor = self.like(x, factor)?;
        self.mul(x, factor)
    }

    pub fn compare(&mut self, compare: Compare, x: Value, y: Value) -> Result<Value> {
        self.op(Op::Compare(compare), &[x, y])
    }

    /// Where each element of `x` is `element`.
    pub fn equals(&mut self, x: Value, element: f64) -> Result<Value> {
        let element = self.like(x, element)?;
        self.compare(Compare::Eq, x, element)
    }

    pub fn select(&mut self, condition: Value, x: Value, otherwise: Value) -> Result<Value> {
        self.op(Op::Select, &[condition, x, otherwise])
    }

    /// `x` where the condition holds, else `element`.
    pub fn select_or(&mut self, condition: Value, x: Value, element: f64) -> Result<Value> {
        let element = self.like(x, element)?;
        self.select(condition, x, element)
    }

    /// `element` where the condition holds, else `x`.
    pub fn replace(&mut self, condition: Value, element: f64, x: Value) -> Result<Value> {
        let element = self.like(x, element)?;
        self.select(condition, element, x)
    }

    pub fn cast(&mut self, x: Value, dtype: DType) -> Result<Value> {
        if self.dtype(x) == dtype { Ok(x) } else { self.op(Op::Cast(dtype), &[x]) }
    }

    pub fn reshape(&mut self, x: Value, shape: &[usize]) -> Result<Value> {
        if self.graph.ty(x).shape == shape {
            return Ok(x);
        }
        self.op(Op::Reshape { shape: shape.to_vec() }, &[x])
    }

    pub fn transpose(&mut self, x: Value, permutation: &[usize]) -> Result<Value> {
        if permutation.iter().copied().eq(0..permutation.len()) {
            return Ok(x);
        }
        self.op(Op::Transpose { permutation: permutation.to_vec() }, &[x])
    }

    pub fn broadcast(&mut self, x: Value, shape: &[usize], axes: &[usize]) -> Result<Value> {
        if self.graph.ty(x).shape == shape {
            return Ok(x);
        }
        self.op(Op::Broadcast { shape: shape.to_vec(), axes: axes.to_vec() }, &[x])
    }

    /// `x` repeated along the axes of `shape` that `missing` names (ascending), which it does not have.
    pub fn repeat(&mut self, x: Value, shape: &[usize], missing: &[usize]) -> Result<Value> {
        let axes: Vec<usize> = (0..shape.len()).filter(|axis| !missing.contains(axis)).collect();
        self.broadcast(x, shape, &axes)
    }

    pub fn reduce(&mut self, kind: Reduction, x: Value, axes: &[usize]) -> Result<Value> {
        if axes.is_empty() {
            return Ok(x);
        }
        self.op(Op::Reduce { kind, axes: axes.to_vec() }, &[x])
    }

    pub fn sum(&mut self, x: Value, axes: &[usize]) -> Result<Value> {
        self.reduce(Reduction::Sum, x, axes)
    }

    pub fn dot(&mut self, x: Value, y: Value, axes: DotAxes) -> Result<Value> {
        self.op(Op::Dot(axes), &[x, y])
    }

    /// The positions `start .. limit` along one axis.
    pub fn slice_axis(&mut self, x: Value, axis: usize, start: usize, limit: usize) -> Result<Value> {
        let shape = self.shape(x);
        if (start, limit) == (0, shape[axis]) {
            return Ok(x);
        }
        let mut from = vec![0; shape.len()];
        let mut to = shape;
        from[axis] = start;
        to[axis] = limit;
        let step = vec![1; to.len()];
        self.op(Op::Slice { start: from, limit: to, step }, &[x])
    }

    /// Zeros added before and after one axis.
    pub fn pad_axis(&mut self, x: Value, axis: usize, low: usize, high: usize) -> Result<Value> {
        let rank = self.graph.ty(x).rank();
        let mut lows = vec![0; rank];
        let mut highs = vec![0; rank];
        lows[axis] = low;
        highs[axis] = high;
        let zero = self.zeros(&Type::scalar(self.dtype(x)))?;
        self.op(Op::Pad { low: lows, high: highs, interior: vec![0; rank] }, &[x, zero])
    }
}

/// The permutation that undoes `permutation`.
pub(crate) fn inverse(permutation: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; permutation.len()];
    for (to, &from) in permutation.iter().enumerate() {
        inverse[from] = to;
    }
    inverse
}
