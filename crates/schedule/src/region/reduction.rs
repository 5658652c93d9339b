//! Elements of reductions and products: as many terms as they have.

use tilewright_ir::{Binary, Compare, DType, DotAxes, Node, Reduction, Result, Scalar, Value};
use tilewright_plan::{Kind, Register};

use super::{Lowering, positions};
use crate::elementwise;

impl<'a> Lowering<'a> {
    pub(super) fn reduce(
        &mut self,
        operand: Value,
        kind: Reduction,
        axes: &[usize],
        index: &[Register],
    ) -> Result<Register> {
        let (shape, dtype) = (self.shape(operand), self.dtype(operand));
        let reduced: Vec<usize> = axes.iter().map(|&axis| shape[axis]).collect();
        let function = match kind {
            Reduction::Sum => Binary::Add,
            Reduction::Prod => Binary::Mul,
            Reduction::Max => Binary::Max,
            Reduction::Min => Binary::Min,
        };
        let mut total = None;
        self.check_limit(reduced.iter().product(), operand)?;
        for position in positions(&reduced) {
            let mut rest = index.iter();
            let at: Vec<Register> = (0..shape.len())
                .map(|axis| match axes.iter().position(|&a| a == axis) {
                    Some(i) => self.constant(position[i]),
                    None => *rest.next().expect("an index for each axis that stays"),
                })
                .collect();
            let element = self.element(operand, &at)?;
            total = Some(match total {
                Some(total) => self.builder.binary(function, total, element),
                None => element,
            });
        }
        let accumulator = dtype.accumulator();
        let total = match total {
            Some(total) => total,
            None => self.builder.constant(Kind::of(accumulator), nothing(kind, dtype)),
        };
        Ok(elementwise::round(&mut self.builder, total, dtype))
    }

    pub(super) fn arg_max(&mut self, operand: Value, axis: usize, index: &[Register]) -> Result<Register> {
        let mut best = None;
        for i in 0..self.shape(operand)[axis] {
            let mut at = index.to_vec();
            at.insert(axis, self.constant(i));
            let element = self.element(operand, &at)?;
            let position = self.builder.constant(Kind::I64, i as i64);
            best = Some(match best {
                None => (element, position),
                Some((greatest, first)) => {
                    let greater = self.exceeds(element, greatest);
                    (
                        self.builder.select(greater, element, greatest),
                        self.builder.select(greater, position, first),
                    )
                }
            });
        }
        Ok(best.expect("an element on an axis of extent at least 1").1)
    }

    /// Whether `x` is greater than `y`, a NaN being greater than any number.
    pub(super) fn exceeds(&mut self, x: Register, y: Register) -> Register {
        let greater = self.builder.compare(Compare::Gt, x, y);
        if !matches!(self.builder.kind(x), Kind::F64 | Kind::F32) {
            return greater;
        }
        let x_is_nan = self.builder.compare(Compare::Ne, x, x);
        let y_is_number = self.builder.compare(Compare::Eq, y, y);
        let first_nan = self.builder.binary(Binary::And, x_is_nan, y_is_number);
        self.builder.binary(Binary::Or, greater, first_nan)
    }

    pub(super) fn dot(&mut self, node: &Node, axes: &DotAxes, index: &[Register]) -> Result<Register> {
        let (left, right) = (node.operands[0], node.operands[1]);
        let dtype = self.dtype(left);
        let left_free = axes.left_free(self.shape(left).len());
        let right_free = axes.right_free(self.shape(right).len());
        let (batch, free) = index.split_at(axes.left_batch.len());
        let (left_index, right_index) = free.split_at(left_free.len());
        let contracted: Vec<usize> = axes.left_contract.iter().map(|&axis| self.shape(left)[axis]).collect();
        self.check_limit(contracted.iter().product(), left)?;
        let zero = self.constant(0);
        let place = |rank: usize, parts: [(&[usize], &[Register]); 3]| {
            let mut at = vec![zero; rank];
            for (axes, registers) in parts {
                axes.iter().zip(registers).for_each(|(&axis, &register)| at[axis] = register);
            }
            at
        };
        let mut total = None;
        for position in positions(&contracted) {
            let position = self.constants(&position);
            let left_at = place(
                self.shape(left).len(),
                [(&axes.left_batch, batch), (&left_free, left_index), (&axes.left_contract, &position)],
            );
            let right_at = place(
                self.shape(right).len(),
                [(&axes.right_batch, batch), (&right_free, right_index), (&axes.right_contract, &position)],
            );
            let x = self.element(left, &left_at)?;
            let y = self.element(right, &right_at)?;
            let product = self.builder.binary(Binary::Mul, x, y);
            total = Some(match total {
                Some(total) => self.builder.binary(Binary::Add, total, product),
                None => product,
            });
        }
        let total = match total {
            Some(total) => total,
            None => self.builder.constant(Kind::of(dtype), 0),
        };
        Ok(elementwise::round(&mut self.builder, total, dtype))
    }
}

/// What a reduction over no elements gives.
fn nothing(kind: Reduction, dtype: DType) -> Scalar {
    let extreme = |float: f64, integer: fn(DType) -> i64, truth: bool| {
        if dtype.is_float() {
            Scalar::Float(float)
        } else if dtype == DType::Bool {
            Scalar::Bool(truth)
        } else {
            Scalar::Integer(integer(dtype))
        }
    };
    match kind {
        Reduction::Sum => Scalar::Integer(0).cast(dtype),
        Reduction::Prod => Scalar::Integer(1).cast(dtype),
        Reduction::Max => extreme(f64::NEG_INFINITY, least_integer, false),
        Reduction::Min => extreme(f64::INFINITY, greatest_integer, true),
    }
}

fn least_integer(dtype: DType) -> i64 {
    match dtype {
        DType::I64 => i64::MIN,
        DType::I32 => i64::from(i32::MIN),
        DType::U8 | DType::Bool | DType::F64 | DType::F32 | DType::BF16 | DType::F16 => 0,
    }
}

fn greatest_integer(dtype: DType) -> i64 {
    match dtype {
        DType::I64 => i64::MAX,
        DType::I32 => i64::from(i32::MAX),
        DType::U8 => 255,
        DType::Bool | DType::F64 | DType::F32 | DType::BF16 | DType::F16 => 1,
    }
}
