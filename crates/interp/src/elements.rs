//! Functions of single elements.

use tilewright_ir::{Binary, Compare, DType, Unary};

/// Wrapping of an integer to the range of `dtype`; of `bool`, the lowest bit.
pub(crate) fn wrapping(dtype: DType) -> fn(i64) -> i64 {
    match dtype {
        DType::I64 => |x| x,
        DType::I32 => |x| x as i32 as i64,
        DType::U8 => |x| x as u8 as i64,
        DType::Bool => |x| x & 1,
        DType::F64 | DType::F32 | DType::BF16 | DType::F16 => unreachable!("{dtype} is not an integer type"),
    }
}

/// The least and the greatest value of an integer type or `bool`.
pub(crate) fn bounds(dtype: DType) -> (i64, i64) {
    match dtype {
        DType::I64 => (i64::MIN, i64::MAX),
        DType::I32 => (i32::MIN as i64, i32::MAX as i64),
        DType::U8 => (0, u8::MAX as i64),
        DType::Bool => (0, 1),
        DType::F64 | DType::F32 | DType::BF16 | DType::F16 => unreachable!("{dtype} is not an integer type"),
    }
}

/// A function of one float.
pub(crate) fn float_unary(unary: Unary) -> fn(f64) -> f64 {
    match unary {
        Unary::Neg => |x| -x,
        Unary::Abs => f64::abs,
        Unary::Sign => |x| if x.is_nan() || x == 0.0 { x } else { x.signum() },
        Unary::Exp => libm::exp,
        Unary::Expm1 => libm::expm1,
        Unary::Log => libm::log,
        Unary::Log1p => libm::log1p,
        Unary::Sqrt => f64::sqrt,
        Unary::Rsqrt => |x| 1.0 / x.sqrt(),
        Unary::Sin => libm::sin,
        Unary::Cos => libm::cos,
        Unary::Tan => libm::tan,
        Unary::Tanh => libm::tanh,
        Unary::Sigmoid => |x| 1.0 / (1.0 + libm::exp(-x)),
        Unary::Erf => libm::erf,
        Unary::Floor => f64::floor,
        Unary::Ceil => f64::ceil,
        Unary::Round => f64::round_ties_even,
        Unary::Not => unreachable!("not of floats"),
    }
}

/// A function of one integer or truth value, before it is wrapped.
pub(crate) fn integer_unary(unary: Unary) -> fn(i64) -> i64 {
    match unary {
        Unary::Neg => i64::wrapping_neg,
        Unary::Abs => i64::wrapping_abs,
        Unary::Sign => i64::signum,
        Unary::Not => |x| !x,
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
        | Unary::Round => unreachable!("{} of integers", unary.name()),
    }
}

/// A function of two floats.
pub(crate) fn float_binary(binary: Binary) -> fn(f64, f64) -> f64 {
    match binary {
        Binary::Add => |x, y| x + y,
        Binary::Sub => |x, y| x - y,
        Binary::Mul => |x, y| x * y,
        Binary::Div => |x, y| x / y,
        Binary::Rem => remainder,
        Binary::Pow => libm::pow,
        Binary::Max => |x, y| if x.is_nan() || x > y { x } else { y },
        Binary::Min => |x, y| if x.is_nan() || x < y { x } else { y },
        Binary::Atan2 => libm::atan2,
        Binary::And | Binary::Or | Binary::Xor => unreachable!("{} of floats", binary.name()),
    }
}

/// x − y·⌊x / y⌋ without its rounding errors: `fmod` is exact.
fn remainder(x: f64, y: f64) -> f64 {
    let truncated = libm::fmod(x, y);
    if truncated == 0.0 {
        truncated.copysign(y)
    } else if (truncated < 0.0) != (y < 0.0) {
        truncated + y
    } else {
        truncated
    }
}

/// A function of two integers or truth values, before it is wrapped.
pub(crate) fn integer_binary(binary: Binary) -> fn(i64, i64) -> i64 {
    match binary {
        Binary::Add => i64::wrapping_add,
        Binary::Sub => i64::wrapping_sub,
        Binary::Mul => i64::wrapping_mul,
        Binary::Div => |x, y| if y == 0 { 0 } else { floor_divide(x, y) },
        Binary::Rem => |x, y| if y == 0 { 0 } else { x.wrapping_sub(y.wrapping_mul(floor_divide(x, y))) },
        Binary::Max => i64::max,
        Binary::Min => i64::min,
        Binary::And => |x, y| x & y,
        Binary::Or => |x, y| x | y,
        Binary::Xor => |x, y| x ^ y,
        Binary::Pow | Binary::Atan2 => unreachable!("{} of integers", binary.name()),
    }
}

fn floor_divide(x: i64, y: i64) -> i64 {
    let rounded_down = x.wrapping_rem(y) != 0 && (x < 0) != (y < 0);
    x.wrapping_div(y).wrapping_sub(rounded_down as i64)
}

/// A comparison.
pub(crate) fn compare<T: PartialOrd>(compare: Compare) -> fn(&T, &T) -> bool {
    match compare {
        Compare::Eq => |x, y| x == y,
        Compare::Ne => |x, y| x != y,
        Compare::Lt => |x, y| x < y,
        Compare::Le => |x, y| x <= y,
        Compare::Gt => |x, y| x > y,
        Compare::Ge => |x, y| x >= y,
    }
}
