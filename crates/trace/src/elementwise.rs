//! Functions of each element, comparisons and choice.

use std::borrow::Borrow;

use tilewright_ir::{Binary, Compare, DType, Error, Literal, Op, Result, Scalar, Type, Unary};

use crate::recording::{self, alive, describe, record};
use crate::{Operand, Tensor};

/// The shape that two shapes broadcast to: extents of 1, and missing leading axes, are repeated.
pub(crate) fn broadcast_shapes(left: &[usize], right: &[usize]) -> Result<Vec<usize>> {
    let rank = left.len().max(right.len());
    let extent =
        |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank)
        .map(|axis| match (extent(left, axis), extent(right, axis)) {
            (l, r) if l == r => Ok(l),
            (1, r) => Ok(r),
            (l, 1) => Ok(l),
            (l, r) => Err(Error::axis("right", axis + right.len() - rank, format!("1 or {l}"), r)),
        })
        .collect()
}

/// A number as a constant of the element type of the tensor that it meets.
#[track_caller]
pub(crate) fn number(dtype: DType, scalar: Scalar) -> Result<Tensor> {
    let fits = match scalar {
        Scalar::Float(x) => dtype.is_float() || (dtype.is_integer() && x.fract() == 0.0),
        Scalar::Integer(_) => dtype != DType::Bool,
        Scalar::Bool(_) => dtype == DType::Bool,
    };
    if !fits {
        return Err(Error::dtype(
            format!("the number {scalar}"),
            format!("a number that fits {dtype}"),
            dtype,
        )
        .help("cast the tensor to the type that the number needs"));
    }
    Ok(record(Op::Constant(Literal::scalar(dtype, scalar)), &[]))
}

/// Two operands with one element type and one shape.
#[track_caller]
fn agree(left: Operand, right: Operand) -> Result<(Tensor, Tensor)> {
    for operand in [left, right] {
        if let Operand::Tensor(tensor) = operand {
            alive(tensor)?;
        }
    }
    let (left, right) = match (left, right) {
        (Operand::Tensor(left), Operand::Tensor(right)) => (left, right),
        (Operand::Tensor(left), Operand::Number(right)) => (left, number(left.dtype(), right)?),
        (Operand::Number(left), Operand::Tensor(right)) => (number(right.dtype(), left)?, right),
        (Operand::Number(left), Operand::Number(right)) => {
            let float = matches!((left, right), (Scalar::Float(_), _) | (_, Scalar::Float(_)));
            let dtype = if float { DType::F32 } else { DType::I64 };
            (number(dtype, left)?, number(dtype, right)?)
        }
    };
    let facts = |error: Error| {
        error.note(format!("left: {}", describe(left))).note(format!("right: {}", describe(right)))
    };
    if left.dtype() != right.dtype() {
        return Err(facts(
            Error::dtype("right", left.dtype(), right.dtype())
                .help("two tensors must have one element type: cast one of them"),
        ));
    }
    let shape = broadcast_shapes(&left.shape(), &right.shape()).map_err(facts)?;
    Ok((left.broadcast_to(&shape), right.broadcast_to(&shape)))
}

fn guess(operand: Operand) -> Type {
    match operand {
        Operand::Tensor(tensor) => tensor.ty(),
        Operand::Number(_) => Type::scalar(DType::F32),
    }
}

#[track_caller]
pub(crate) fn binary(binary: Binary, left: Operand, right: Operand) -> Tensor {
    let (left, right) = check!(binary.name(), guess(left), agree(left, right));
    record(Op::Binary(binary), &[left, right])
}

#[track_caller]
pub(crate) fn unary(unary: Unary, x: impl Borrow<Tensor>) -> Tensor {
    record(Op::Unary(unary), &[*x.borrow()])
}

#[track_caller]
fn compare(compare: Compare, left: Operand, right: Operand) -> Tensor {
    let guess = guess(left).with_dtype(DType::Bool);
    let (left, right) = check!(compare.name(), guess, agree(left, right));
    record(Op::Compare(compare), &[left, right])
}

/// `x` where `condition` (a `bool` tensor) holds, else `y`; the three broadcast together.
#[track_caller]
pub fn select(condition: impl Borrow<Tensor>, x: impl Into<Operand>, y: impl Into<Operand>) -> Tensor {
    condition.borrow().select(x, y)
}

macro_rules! unary_methods {
    ($($(#[$doc:meta])* $method:ident $unary:ident),* $(,)?) => {
        impl Tensor {$(
            $(#[$doc])*
            #[track_caller]
            pub fn $method(&self) -> Tensor {
                unary(Unary::$unary, self)
            }
        )*}
    };
}

unary_methods! {
    /// |x|, of numbers.
    abs Abs,
    /// −1, 0 or 1, of numbers; NaN stays.
    sign Sign,
    /// eˣ, of floats.
    exp Exp,
    /// eˣ − 1, exact near 0; of floats.
    expm1 Expm1,
    /// Natural logarithm, of floats.
    log Log,
    /// log(1 + x), exact near 0; of floats.
    log1p Log1p,
    /// Square root, of floats.
    sqrt Sqrt,
    /// 1 / √x, of floats.
    rsqrt Rsqrt,
    /// Sine, of floats.
    sin Sin,
    /// Cosine, of floats.
    cos Cos,
    /// Tangent, of floats.
    tan Tan,
    /// Hyperbolic tangent, of floats.
    tanh Tanh,
    /// 1 / (1 + e⁻ˣ), of floats.
    sigmoid Sigmoid,
    /// The error function, of floats.
    erf Erf,
    /// Greatest integer not above, of floats.
    floor Floor,
    /// Least integer not below, of floats.
    ceil Ceil,
    /// Nearest integer, ties to even; of floats.
    round Round,
}

macro_rules! compare_methods {
    ($($(#[$doc:meta])* $method:ident $compare:ident),* $(,)?) => {
        impl Tensor {$(
            $(#[$doc])*
            #[track_caller]
            pub fn $method(&self, other: impl Into<Operand>) -> Tensor {
                compare(Compare::$compare, self.into(), other.into())
            }
        )*}
    };
}

compare_methods! {
    /// Where equal, `bool`. Broadcasts.
    eq Eq,
    /// Where not equal, `bool`. Broadcasts.
    ne Ne,
    /// Where less, `bool`. Broadcasts.
    lt Lt,
    /// Where less or equal, `bool`. Broadcasts.
    le Le,
    /// Where greater, `bool`. Broadcasts.
    gt Gt,
    /// Where greater or equal, `bool`. Broadcasts.
    ge Ge,
}

impl Tensor {
    /// xʸ, of floats. Broadcasts. The exponents 2 and ½ become a product and a root.
    #[track_caller]
    pub fn pow(&self, exponent: impl Into<Operand>) -> Tensor {
        let exponent = exponent.into();
        if let Operand::Number(scalar) = exponent {
            if scalar.to_f64() == 2.0 {
                return self * self;
            }
            if scalar.to_f64() == 0.5 {
                return self.sqrt();
            }
        }
        binary(Binary::Pow, self.into(), exponent)
    }

    /// x², of numbers.
    #[track_caller]
    pub fn square(&self) -> Tensor {
        self * self
    }

    /// 1 / x.
    #[track_caller]
    pub fn reciprocal(&self) -> Tensor {
        1.0 / self
    }

    /// The greater of two elements; NaN if either is. Broadcasts.
    #[track_caller]
    pub fn maximum(&self, other: impl Into<Operand>) -> Tensor {
        binary(Binary::Max, self.into(), other.into())
    }

    /// The lesser of two elements; NaN if either is. Broadcasts.
    #[track_caller]
    pub fn minimum(&self, other: impl Into<Operand>) -> Tensor {
        binary(Binary::Min, self.into(), other.into())
    }

    /// The nearest value in `low..=high`.
    #[track_caller]
    pub fn clamp(&self, low: impl Into<Operand>, high: impl Into<Operand>) -> Tensor {
        self.maximum(low).minimum(high)
    }

    /// The angle of the point (`x`, self), of floats. Broadcasts.
    #[track_caller]
    pub fn atan2(&self, x: impl Into<Operand>) -> Tensor {
        binary(Binary::Atan2, self.into(), x.into())
    }

    /// `x` where this `bool` tensor holds, else `y`; the three broadcast together. The side that is not
    /// chosen never shows, not even as NaN in a gradient.
    #[track_caller]
    pub fn select(&self, x: impl Into<Operand>, y: impl Into<Operand>) -> Tensor {
        let (x, y) = (x.into(), y.into());
        let value = if matches!(x, Operand::Tensor(_)) { guess(x) } else { guess(y) };
        let (x, y) = check!("select", value, agree(x, y));
        let shape = check!("select", value, broadcast_shapes(&x.shape(), &self.shape()));
        let operands = [self.broadcast_to(&shape), x.broadcast_to(&shape), y.broadcast_to(&shape)];
        record(Op::Select, &operands)
    }

    /// Conversion to another element type. Float to integer truncates and saturates, NaN gives 0.
    #[track_caller]
    pub fn cast(&self, dtype: DType) -> Tensor {
        if self.dtype() == dtype { *self } else { record(Op::Cast(dtype), &[*self]) }
    }

    /// The tensor itself, through which no gradient passes.
    #[track_caller]
    pub fn stop_gradient(&self) -> Tensor {
        record(Op::StopGradient, &[*self])
    }

    /// A tensor of its own that equals this one: gradients with respect to it do not see other uses of this
    /// one.
    #[track_caller]
    pub fn alias(&self) -> Tensor {
        record(Op::Reshape { shape: self.shape() }, &[*self])
    }

    /// Where it is NaN, `bool`.
    #[track_caller]
    pub fn is_nan(&self) -> Tensor {
        self.ne(self)
    }

    /// Whether the tensor stands for a failed operation.
    pub(crate) fn is_poisoned(self) -> bool {
        matches!(self.slot, crate::tensor::Slot::Poisoned(_))
    }

    /// Widens a narrow float inside a score function or mask, where scores are `f32`.
    #[track_caller]
    pub(crate) fn widened(self) -> Tensor {
        let dtype = self.dtype();
        let pair = recording::innermost_kind() == recording::FrameKind::Pair;
        if pair { self.cast(dtype.accumulator()) } else { self }
    }
}
