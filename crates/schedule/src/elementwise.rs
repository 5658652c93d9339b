//! From an element-wise operation of `ir` to instructions of a program.
//!
//! Registers hold narrow floats in `F32` and `u8` in `I32` (see [`Kind`]); a result of a narrow type is
//! rounded to it at once, so that a fused program gives the bits that an unfused one would.

use tilewright_ir::{Binary, DType, Op, Scalar, Unary};
use tilewright_plan::{Kind, Operation, Register};

use crate::builder::Push;

/// Appends the instructions of `op` on registers that hold elements of the type `operand`, giving an
/// element of the type `result`; or nothing where `op` is not a function of single elements.
///
/// For [`Op::Select`] `operand` is the type of the two sides.
pub(crate) fn push(
    program: &mut impl Push,
    op: &Op,
    registers: &[Register],
    operand: DType,
    result: DType,
) -> Option<Register> {
    let kind = Kind::of(result);
    let register = match op {
        Op::Unary(unary) => program.push(Operation::Unary(*unary, registers[0]), kind),
        Op::Binary(binary) => program.push(Operation::Binary(*binary, registers[0], registers[1]), kind),
        Op::Compare(compare) => {
            program.push(Operation::Compare(*compare, registers[0], registers[1]), Kind::Bool)
        }
        Op::Select => {
            return Some(program.push(Operation::Select(registers[0], registers[1], registers[2]), kind));
        }
        Op::Cast(_) => return Some(cast(program, registers[0], operand, result)),
        Op::StopGradient => return Some(registers[0]),
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
        | Op::AssociativeScan(_) => return None,
    };
    Some(round(program, register, result))
}

/// Appends a conversion of an element of type `from` to type `to`.
pub(crate) fn cast(program: &mut impl Push, register: Register, from: DType, to: DType) -> Register {
    let converted = match (Kind::of(from), Kind::of(to)) {
        (from, to) if from == to => register,
        (Kind::F64 | Kind::F32, _) if to == DType::U8 => {
            let clamped = clamp_to_u8(program, register, Kind::of(from));
            return program.push(Operation::Cast(clamped), Kind::I32);
        }
        (_, kind) => program.push(Operation::Cast(register), kind),
    };
    if widens(from, to) { converted } else { round(program, converted, to) }
}

/// Whether every element of type `from` is one of type `to`.
fn widens(from: DType, to: DType) -> bool {
    from == to || from == DType::Bool
}

/// A float to integer conversion saturates, but wrapping an `I32` to `u8` would not.
fn clamp_to_u8(program: &mut impl Push, register: Register, kind: Kind) -> Register {
    let low = program.push(Operation::Constant(Scalar::Float(0.0)), kind);
    let high = program.push(Operation::Constant(Scalar::Float(255.0)), kind);
    let raised = program.push(Operation::Binary(Binary::Max, register, low), kind);
    program.push(Operation::Binary(Binary::Min, raised, high), kind)
}

/// Appends the rounding or wrapping that makes a register hold an element of `dtype`.
pub(crate) fn round(program: &mut impl Push, register: Register, dtype: DType) -> Register {
    match dtype {
        DType::BF16 | DType::F16 => program.push(Operation::Round(dtype, register), Kind::F32),
        DType::U8 => program.push(Operation::Round(dtype, register), Kind::I32),
        DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::Bool => register,
    }
}

/// Whether the operation takes so long, element for element, that computing it twice costs more than
/// storing it once.
pub(crate) fn is_expensive(op: &Op) -> bool {
    match op {
        Op::Unary(unary) => match unary {
            Unary::Exp
            | Unary::Expm1
            | Unary::Log
            | Unary::Log1p
            | Unary::Sin
            | Unary::Cos
            | Unary::Tan
            | Unary::Tanh
            | Unary::Sigmoid
            | Unary::Erf => true,
            Unary::Neg
            | Unary::Abs
            | Unary::Sign
            | Unary::Sqrt
            | Unary::Rsqrt
            | Unary::Floor
            | Unary::Ceil
            | Unary::Round
            | Unary::Not => false,
        },
        Op::Binary(binary) => match binary {
            Binary::Pow | Binary::Atan2 | Binary::Rem => true,
            Binary::Add
            | Binary::Sub
            | Binary::Mul
            | Binary::Div
            | Binary::Max
            | Binary::Min
            | Binary::And
            | Binary::Or
            | Binary::Xor => false,
        },
        Op::RandomBits { .. } | Op::Gather => true,
        Op::Compare(_) | Op::Select | Op::Cast(_) | Op::StopGradient => false,
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
        | Op::ScatterAdd { .. }
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => false,
    }
}
