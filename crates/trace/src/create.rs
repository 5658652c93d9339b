//! Tensors out of nothing.

use tilewright_ir::{DType, Error, Literal, Op, Scalar, Type};

use crate::arguments::{self, Dims};
use crate::elementwise::number;
use crate::recording::{poison, record};
use crate::{Operand, Tensor};

/// An array of one value.
#[track_caller]
pub fn full(shape: impl Dims, value: impl Into<Operand>, dtype: DType) -> Tensor {
    let shape = check!("full", Type::scalar(dtype), shape.shape_for(0));
    let value = match value.into() {
        Operand::Tensor(tensor) => tensor.cast(dtype),
        Operand::Number(scalar) => check!("full", Type::new(dtype, shape), number(dtype, scalar)),
    };
    value.broadcast_to(shape)
}

/// An array of zeros; of `false` for `bool`.
#[track_caller]
pub fn zeros(shape: impl Dims, dtype: DType) -> Tensor {
    if dtype == DType::Bool { full(shape, false, dtype) } else { full(shape, 0, dtype) }
}

/// An array of ones; of `true` for `bool`.
#[track_caller]
pub fn ones(shape: impl Dims, dtype: DType) -> Tensor {
    if dtype == DType::Bool { full(shape, true, dtype) } else { full(shape, 1, dtype) }
}

/// A constant array from its elements in row-major order.
#[track_caller]
pub fn constant<T: Into<Scalar> + Copy>(shape: impl Dims, dtype: DType, elements: &[T]) -> Tensor {
    let shape = check!("constant", Type::scalar(dtype), shape.shape_for(elements.len()));
    let ty = Type::new(dtype, shape);
    if tilewright_ir::element_count(&ty.shape) != Ok(elements.len()) {
        let error = Error::shape("elements", format!("as many as {:?} has", ty.shape), elements.len());
        return poison(error.in_operation("constant"), ty);
    }
    let literal = Literal::from_scalars(ty, elements.iter().map(|&x| x.into()));
    record(Op::Constant(literal), &[])
}

/// The position along `axis`, at every element of `shape`.
#[track_caller]
pub fn iota(shape: impl Dims, axis: isize, dtype: DType) -> Tensor {
    let shape = check!("iota", Type::scalar(dtype), shape.shape_for(0));
    let axis = check!("iota", Type::new(dtype, shape), arguments::axis(axis, shape.len()));
    record(Op::Iota { dtype, shape, axis }, &[])
}

/// 0, 1, … `length` − 1.
#[track_caller]
pub fn arange(length: usize, dtype: DType) -> Tensor {
    iota([length], 0, dtype)
}

/// The identity matrix.
#[track_caller]
pub fn eye(size: usize, dtype: DType) -> Tensor {
    let shape = [size, size];
    iota(shape, 0, DType::I64).eq(iota(shape, 1, DType::I64)).cast(dtype)
}

impl Tensor {
    /// Zeros of this tensor's type.
    #[track_caller]
    pub fn zeros_like(&self) -> Tensor {
        zeros(self.shape(), self.dtype())
    }

    /// Ones of this tensor's type.
    #[track_caller]
    pub fn ones_like(&self) -> Tensor {
        ones(self.shape(), self.dtype())
    }

    /// The elements of the last two axes on and below diagonal `diagonal`, zero elsewhere.
    #[track_caller]
    pub fn tril(&self, diagonal: i64) -> Tensor {
        self.triangle("tril", |row, column| column.le(row + diagonal))
    }

    /// The elements of the last two axes on and above diagonal `diagonal`, zero elsewhere.
    #[track_caller]
    pub fn triu(&self, diagonal: i64) -> Tensor {
        self.triangle("triu", |row, column| column.ge(row + diagonal))
    }

    #[track_caller]
    fn triangle(self, operation: &str, keeps: impl Fn(Tensor, Tensor) -> Tensor) -> Tensor {
        let ty = self.ty();
        if ty.rank() < 2 {
            let error = Error::shape("operand", "at least 2 axes", format!("{:?}", ty.shape));
            return poison(error.in_operation(operation), ty);
        }
        let shape = &ty.shape[ty.rank() - 2..];
        keeps(iota(shape, 0, DType::I64), iota(shape, 1, DType::I64)).select(self, self.zeros_like())
    }
}
