//! What instructions mean, one scalar at a time.
//!
//! This is the definition that vectorised evaluators are tested against, what constants are folded with,
//! and what runs where speed does not matter. Floats are computed in `f64` and rounded to the kind; for
//! the basic operations of `F32` that is the correctly rounded result.

use half::{bf16, f16};
use tilewright_ir::{Binary, Compare, DType, Scalar, Unary};

use crate::{Kind, Operation, Program, Register};

/// The value that a register of `kind` holds after `value` is put into it: rounded, wrapped or tested.
pub fn hold(value: Scalar, kind: Kind) -> Scalar {
    value.cast(match kind {
        Kind::F64 => DType::F64,
        Kind::F32 => DType::F32,
        Kind::I64 => DType::I64,
        Kind::I32 => DType::I32,
        Kind::Bool => DType::Bool,
    })
}

/// A function of a register of `kind`.
pub fn unary(function: Unary, kind: Kind, x: Scalar) -> Scalar {
    let result = match (kind, x) {
        (Kind::F64 | Kind::F32, x) => Scalar::Float(unary_float(function, x.to_f64())),
        (Kind::I64 | Kind::I32, x) => Scalar::Integer(unary_integer(function, x.to_i64())),
        (Kind::Bool, x) => Scalar::Bool(if function == Unary::Not { !x.to_bool() } else { x.to_bool() }),
    };
    hold(result, kind)
}

fn unary_float(function: Unary, x: f64) -> f64 {
    match function {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign if x.is_nan() => x,
        Unary::Sign => f64::from((x > 0.0) as i8 - (x < 0.0) as i8),
        Unary::Exp => x.exp(),
        Unary::Expm1 => x.exp_m1(),
        Unary::Log => x.ln(),
        Unary::Log1p => x.ln_1p(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Erf => libm::erf(x),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Not => f64::NAN,
    }
}

/// Integer functions; those that are of floats only give 0, and no verified program asks for them.
fn unary_integer(function: Unary, x: i64) -> i64 {
    match function {
        Unary::Neg => x.wrapping_neg(),
        Unary::Abs => x.wrapping_abs(),
        Unary::Sign => x.signum(),
        Unary::Not => !x,
        Unary::Exp
        | Unary::Expm1
        | Unary::Log
        | Unary::Log1p
        | Unary::Sqrt
        | Unary::Rsqrt
        | Unary::Sin
        | Unary::Cos
        | Unary::Tan
        | Unary::Tanh
        | Unary::Sigmoid
        | Unary::Erf
        | Unary::Floor
        | Unary::Ceil
        | Unary::Round => 0,
    }
}

/// A function of two registers of `kind`.
pub fn binary(function: Binary, kind: Kind, x: Scalar, y: Scalar) -> Scalar {
    let result = match kind {
        Kind::F64 | Kind::F32 => Scalar::Float(binary_float(function, x.to_f64(), y.to_f64())),
        Kind::I64 | Kind::I32 => Scalar::Integer(binary_integer(function, x.to_i64(), y.to_i64())),
        Kind::Bool => Scalar::Bool(binary_bool(function, x.to_bool(), y.to_bool())),
    };
    hold(result, kind)
}

fn binary_float(function: Binary, x: f64, y: f64) -> f64 {
    match function {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
        Binary::Rem => x - y * (x / y).floor(),
        Binary::Pow => x.powf(y),
        Binary::Max if x.is_nan() || y.is_nan() => f64::NAN,
        Binary::Max => x.max(y),
        Binary::Min if x.is_nan() || y.is_nan() => f64::NAN,
        Binary::Min => x.min(y),
        Binary::Atan2 => x.atan2(y),
        Binary::And | Binary::Or | Binary::Xor => f64::NAN,
    }
}

fn binary_integer(function: Binary, x: i64, y: i64) -> i64 {
    match function {
        Binary::Add => x.wrapping_add(y),
        Binary::Sub => x.wrapping_sub(y),
        Binary::Mul => x.wrapping_mul(y),
        Binary::Div | Binary::Rem if y == 0 => 0,
        Binary::Div => {
            let quotient = x.wrapping_div(y);
            if x.wrapping_rem(y) != 0 && (x < 0) != (y < 0) { quotient - 1 } else { quotient }
        }
        Binary::Rem => {
            let remainder = x.wrapping_rem(y);
            if remainder != 0 && (remainder < 0) != (y < 0) { remainder + y } else { remainder }
        }
        Binary::Max => x.max(y),
        Binary::Min => x.min(y),
        Binary::And => x & y,
        Binary::Or => x | y,
        Binary::Xor => x ^ y,
        Binary::Pow | Binary::Atan2 => 0,
    }
}

fn binary_bool(function: Binary, x: bool, y: bool) -> bool {
    match function {
        Binary::And | Binary::Min | Binary::Mul => x && y,
        Binary::Or | Binary::Max => x || y,
        Binary::Xor | Binary::Add | Binary::Sub => x != y,
        Binary::Div | Binary::Rem | Binary::Pow | Binary::Atan2 => false,
    }
}

/// A comparison of two registers of one kind.
pub fn compare(comparison: Compare, x: Scalar, y: Scalar) -> bool {
    let ordering = match (x, y) {
        (Scalar::Float(x), Scalar::Float(y)) => x.partial_cmp(&y),
        (x, y) => Some(x.to_i64().cmp(&y.to_i64())),
    };
    match comparison {
        Compare::Eq => ordering.is_some_and(|o| o.is_eq()),
        Compare::Ne => !ordering.is_some_and(|o| o.is_eq()),
        Compare::Lt => ordering.is_some_and(|o| o.is_lt()),
        Compare::Le => ordering.is_some_and(|o| o.is_le()),
        Compare::Gt => ordering.is_some_and(|o| o.is_gt()),
        Compare::Ge => ordering.is_some_and(|o| o.is_ge()),
    }
}

/// [`crate::Operation::Round`]: a float rounded to a narrower float, an integer wrapped to `u8`.
pub fn round(dtype: DType, x: Scalar) -> Scalar {
    match dtype {
        DType::BF16 => Scalar::Float(bf16::from_f32(x.to_f64() as f32).to_f64()),
        DType::F16 => Scalar::Float(f16::from_f32(x.to_f64() as f32).to_f64()),
        DType::U8 => Scalar::Integer(x.to_i64() & 0xff),
        DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::Bool => x,
    }
}

/// The element that an index names on an axis of `extent` elements, a negative index counting from the
/// end; none where it is out of range.
pub fn position(index: i64, extent: usize) -> Option<usize> {
    let counted = if index < 0 { index.checked_add(extent as i64)? } else { index };
    (0..extent as i64).contains(&counted).then_some(counted as usize)
}

/// The results of a program for one element: `load` gives the element of a table at some indices,
/// `random_bits` the bits for a key and a counter.
pub fn run(
    program: &Program,
    inputs: &[Scalar],
    mut load: impl FnMut(usize, &[i64]) -> Scalar,
    random_bits: impl Fn(i64, i64) -> i32,
) -> Vec<Scalar> {
    let mut values: Vec<Scalar> = Vec::with_capacity(program.instructions.len());
    for instruction in &program.instructions {
        let kind = instruction.kind;
        let value = |register: &Register| values[register.index()];
        values.push(match &instruction.operation {
            Operation::Input(number) => inputs[*number],
            Operation::Constant(value) => *value,
            Operation::Unary(function, x) => unary(*function, kind, value(x)),
            Operation::Binary(function, x, y) => binary(*function, kind, value(x), value(y)),
            Operation::Compare(comparison, x, y) => Scalar::Bool(compare(*comparison, value(x), value(y))),
            Operation::Select(condition, x, y) => value(if value(condition).to_bool() { x } else { y }),
            Operation::Cast(x) => hold(value(x), kind),
            Operation::Round(dtype, x) => round(*dtype, value(x)),
            Operation::Load(table, indices) => {
                let indices: Vec<i64> = indices.iter().map(|index| value(index).to_i64()).collect();
                load(*table, &indices)
            }
            Operation::RandomBits(key, counter) => {
                let bits = random_bits(value(key).to_i64(), value(counter).to_i64());
                Scalar::Integer(bits.into())
            }
        });
    }
    program.results.iter().map(|register| values[register.index()]).collect()
}
