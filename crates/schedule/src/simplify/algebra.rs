//! Identities of arithmetic and logic that hold for every value, NaN and signed zeros included.

use tilewright_ir::{Binary, Compare, DType, Graph, Op, Result, Scalar, Unary, Value};

use super::constants::uniform;
use super::rebuild;

/// Algebraic simplification.
pub(super) fn simplify(graph: &Graph) -> Result<Graph> {
    rebuild(graph, |new, node, operands| {
        let simpler = match &node.op {
            Op::Unary(function) => undone(new, *function, operands[0]),
            Op::Binary(function) => match binary(new, *function, operands[0], operands[1]) {
                None => None,
                Some(Simpler::Value(value)) => Some(value),
                Some(Simpler::Number(number)) => Some(new.splat(&new.ty(operands[0]).clone(), number)?),
                Some(Simpler::Square) => {
                    let square = [operands[0], operands[0]];
                    Some(new.add1(Op::Binary(Binary::Mul), &square, node.origin.clone())?)
                }
            },
            Op::Compare(comparison) if operands[0] == operands[1] => {
                let ty = new.ty(operands[0]).with_dtype(DType::Bool);
                let exact = !new.ty(operands[0]).dtype.is_float();
                let holds = matches!(comparison, Compare::Eq | Compare::Le | Compare::Ge);
                if exact { Some(new.splat(&ty, holds)?) } else { None }
            }
            Op::Compare(_) => None,
            Op::Select => match uniform(new, operands[0]) {
                Some(condition) => Some(if condition.to_bool() { operands[1] } else { operands[2] }),
                None => {
                    let [x, y] = [1, 2].map(|side| chosen_before(new, operands, side));
                    if x == y {
                        Some(x)
                    } else if [x, y] != operands[1..] {
                        Some(new.add1(Op::Select, &[operands[0], x, y], node.origin.clone())?)
                    } else {
                        None
                    }
                }
            },
            Op::Cast(dtype) => {
                let source = cast_source(new, operands[0], *dtype);
                if new.ty(source).dtype == *dtype {
                    Some(source)
                } else if source != operands[0] {
                    Some(new.add1(Op::Cast(*dtype), &[source], node.origin.clone())?)
                } else {
                    None
                }
            }
            Op::StopGradient => Some(operands[0]),
            Op::Reduce { axes, .. } if axes.is_empty() => Some(operands[0]),
            Op::Constant(_)
            | Op::Iota { .. }
            | Op::Broadcast { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Reverse { .. }
            | Op::Concatenate { .. }
            | Op::Reduce { .. }
            | Op::ArgMax { .. }
            | Op::Dot(_)
            | Op::Gather
            | Op::ScatterAdd { .. }
            | Op::RandomBits { .. }
            | Op::FlexAttention(_)
            | Op::FlexAttentionBackward(_)
            | Op::AssociativeScan(_) => None,
        };
        Ok(simpler.map(|value| vec![value]))
    })
}

enum Simpler {
    Value(Value),
    Number(Scalar),
    Square,
}

/// `x` for `neg (neg x)` and `not (not x)`.
fn undone(graph: &Graph, function: Unary, operand: Value) -> Option<Value> {
    let inner = graph.producer(operand)?;
    let involution = matches!(function, Unary::Neg | Unary::Not);
    (involution && inner.op == Op::Unary(function)).then(|| inner.operands[0])
}

fn binary(graph: &Graph, function: Binary, x: Value, y: Value) -> Option<Simpler> {
    let dtype = graph.ty(x).dtype;
    let (left, right) = (uniform(graph, x), uniform(graph, y));
    let is = |number: Option<Scalar>, wanted: f64| {
        number.is_some_and(|number| {
            let number = number.to_f64();
            number == wanted && number.is_sign_negative() == wanted.is_sign_negative()
        })
    };
    // x + (−0) is x for every x; x + 0 is not, for x = −0.
    let nothing = if dtype.is_float() { -0.0 } else { 0.0 };
    let all = if dtype == DType::Bool { 1.0 } else { -1.0 };
    match function {
        Binary::Add if is(right, nothing) => Some(Simpler::Value(x)),
        Binary::Add if is(left, nothing) => Some(Simpler::Value(y)),
        Binary::Sub if is(right, 0.0) => Some(Simpler::Value(x)),
        Binary::Sub if x == y && !dtype.is_float() => Some(Simpler::Number(Scalar::Integer(0))),
        Binary::Mul if is(right, 1.0) => Some(Simpler::Value(x)),
        Binary::Mul if is(left, 1.0) => Some(Simpler::Value(y)),
        Binary::Mul if !dtype.is_float() && (is(left, 0.0) || is(right, 0.0)) => {
            Some(Simpler::Number(Scalar::Integer(0)))
        }
        Binary::Div | Binary::Pow if is(right, 1.0) => Some(Simpler::Value(x)),
        Binary::Pow if is(right, 2.0) => Some(Simpler::Square),
        Binary::Max | Binary::Min | Binary::And | Binary::Or if x == y => Some(Simpler::Value(x)),
        Binary::Or | Binary::Xor if is(right, 0.0) => Some(Simpler::Value(x)),
        Binary::Or | Binary::Xor if is(left, 0.0) => Some(Simpler::Value(y)),
        Binary::And if is(left, 0.0) || is(right, 0.0) => Some(Simpler::Number(Scalar::Integer(0))),
        Binary::And if is(right, all) && dtype != DType::U8 => Some(Simpler::Value(x)),
        Binary::And if is(left, all) && dtype != DType::U8 => Some(Simpler::Value(y)),
        Binary::Or if dtype == DType::Bool && (is(left, 1.0) || is(right, 1.0)) => {
            Some(Simpler::Number(Scalar::Bool(true)))
        }
        Binary::Add
        | Binary::Sub
        | Binary::Mul
        | Binary::Div
        | Binary::Rem
        | Binary::Pow
        | Binary::Max
        | Binary::Min
        | Binary::Atan2
        | Binary::And
        | Binary::Or
        | Binary::Xor => None,
    }
}

/// What can be converted to `dtype` in place of a value that is itself a conversion.
fn cast_source(graph: &Graph, value: Value, dtype: DType) -> Value {
    let Some(node) = graph.producer(value) else { return value };
    let Op::Cast(middle) = node.op else { return value };
    let source = node.operands[0];
    let from = graph.ty(source).dtype;
    // An integer to integer conversion wraps, one from a float saturates.
    let detour = from.is_integer() && middle.is_float() && dtype.is_integer();
    if keeps(from, middle) && !detour { source } else { value }
}

/// Whether every element of one type is exactly one of the other.
fn keeps(from: DType, to: DType) -> bool {
    use DType::*;
    from == to
        || match from {
            Bool => true,
            U8 => to != Bool,
            I32 => matches!(to, I64 | F64),
            BF16 | F16 => matches!(to, F32 | F64),
            F32 => to == F64,
            I64 | F64 => false,
        }
}

/// What a branch of a selection comes to where it is itself one by the same condition.
fn chosen_before(new: &Graph, operands: &[Value], side: usize) -> Value {
    match new.producer(operands[side]) {
        Some(node) if matches!(node.op, Op::Select) && node.operands[0] == operands[0] => node.operands[side],
        _ => operands[side],
    }
}
