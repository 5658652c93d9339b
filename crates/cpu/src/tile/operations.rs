//! The loop for each instruction.

use tilewright_ir::{Binary, Compare, DType, Result, Unary};
use tilewright_plan::{Kind, Operation};

use super::compile::unsupported;
use super::convert::{bf16_bits, bf16_value, f16_bits, f16_value};
use super::map::{Map1, Map2, Span, choose, divide, map1, map2};
use crate::isa::{Compiled, Isa, Machine};
use crate::math::{double, integer, philox, single, widened};

/// The loop of a function of one element, given as a closure.
macro_rules! one {
    ($isa:expr, $input:ty => $output:ty, |$x:ident| $body:expr) => {
        one!($isa, M, $input => $output, |$x| $body)
    };
    ($isa:expr, $machine:ident, $input:ty => $output:ty, |$x:ident| $body:expr) => {{
        struct Function;
        impl Map1 for Function {
            type Input = $input;
            type Output = $output;
            #[inline(always)]
            fn apply<$machine: Machine>($x: $input) -> $output {
                $body
            }
        }
        Some(map1::<Function>($isa))
    }};
}

/// The loop of a function of angles, of which few are far.
macro_rules! of_angle {
    ($isa:expr, $function:ident) => {{
        struct Function;
        impl Map1 for Function {
            type Input = f32;
            type Output = f32;
            #[inline(always)]
            fn apply<M: Machine>(x: f32) -> f32 {
                widened::$function::<M>(x)
            }
            #[inline(always)]
            fn is_rare(x: f32) -> bool {
                widened::is_far(x)
            }
            #[inline(always)]
            fn apply_rarely(x: f32) -> f32 {
                widened::far::$function(x)
            }
        }
        Some(map1::<Function>($isa))
    }};
}

/// The loop of a function of two elements, given as a closure.
macro_rules! two {
    ($isa:expr, $input:ty => $output:ty, |$x:ident, $y:ident| $body:expr) => {
        two!($isa, M, $input => $output, |$x, $y| $body)
    };
    ($isa:expr, $machine:ident, $input:ty => $output:ty, |$x:ident, $y:ident| $body:expr) => {{
        struct Function;
        impl Map2 for Function {
            type Input = $input;
            type Output = $output;
            #[inline(always)]
            fn apply<$machine: Machine>($x: $input, $y: $input) -> $output {
                $body
            }
        }
        Some(map2::<Function>($isa))
    }};
}

/// The loop that makes `base + step · column`.
pub(super) fn ramp(kind: Kind, isa: Isa) -> Result<Compiled<Span>> {
    match kind {
        Kind::I32 => Ok(super::map::ramp::<i32>(isa)),
        Kind::I64 => Ok(super::map::ramp::<i64>(isa)),
        Kind::F64 | Kind::F32 | Kind::Bool => {
            Err(crate::memory::broken("a ramp of a type other than integer"))
        }
    }
}

/// The loop for an operation on operands of kind `from` with a result of kind `to`; none where it is the
/// identity.
pub(super) fn kernel(
    operation: &Operation,
    from: Kind,
    to: Kind,
    isa: Isa,
) -> Result<Option<Compiled<Span>>> {
    let kernel = match operation {
        Operation::Unary(function, _) => unary(*function, from, isa),
        Operation::Binary(function, ..) => binary(*function, from, isa),
        Operation::Compare(comparison, ..) => compare(*comparison, from, isa),
        Operation::Select(..) => Some(match to {
            Kind::F64 | Kind::I64 => choose::<u64>(isa),
            Kind::F32 | Kind::I32 => choose::<u32>(isa),
            Kind::Bool => choose::<u8>(isa),
        }),
        Operation::Cast(_) if from == to => return Ok(None),
        Operation::Cast(_) => cast(from, to, isa),
        Operation::Round(dtype, _) => match dtype {
            DType::BF16 => one!(isa, f32 => f32, |x| bf16_value(bf16_bits(x))),
            DType::F16 => one!(isa, f32 => f32, |x| f16_value(f16_bits(x))),
            DType::U8 => one!(isa, i32 => i32, |x| x & 0xff),
            DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::Bool => return Ok(None),
        },
        Operation::RandomBits(..) => two!(isa, i64 => i32, |key, counter| philox(key, counter)),
        Operation::Input(_) | Operation::Constant(_) | Operation::Load(..) => None,
    };
    kernel.map(Some).ok_or_else(|| unsupported(operation, from))
}

fn unary(function: Unary, kind: Kind, isa: Isa) -> Option<Compiled<Span>> {
    match kind {
        Kind::F32 => unary_f32(function, isa),
        Kind::F64 => unary_f64(function, isa),
        Kind::I32 => match function {
            Unary::Neg => one!(isa, i32 => i32, |x| x.wrapping_neg()),
            Unary::Abs => one!(isa, i32 => i32, |x| x.wrapping_abs()),
            Unary::Sign => one!(isa, i32 => i32, |x| (x > 0) as i32 - (x < 0) as i32),
            Unary::Not => one!(isa, i32 => i32, |x| !x),
            _ => None,
        },
        Kind::I64 => match function {
            Unary::Neg => one!(isa, i64 => i64, |x| x.wrapping_neg()),
            Unary::Abs => one!(isa, i64 => i64, |x| x.wrapping_abs()),
            Unary::Sign => one!(isa, i64 => i64, |x| (x > 0) as i64 - (x < 0) as i64),
            Unary::Not => one!(isa, i64 => i64, |x| !x),
            _ => None,
        },
        Kind::Bool => match function {
            Unary::Not => one!(isa, u8 => u8, |x| x ^ 1),
            _ => None,
        },
    }
}

fn unary_f32(function: Unary, isa: Isa) -> Option<Compiled<Span>> {
    match function {
        Unary::Neg => one!(isa, f32 => f32, |x| -x),
        Unary::Abs => one!(isa, f32 => f32, |x| x.abs()),
        Unary::Sign => one!(isa, f32 => f32, |x| single::sign(x)),
        Unary::Exp => one!(isa, M, f32 => f32, |x| single::exp::<M>(x)),
        Unary::Expm1 => one!(isa, M, f32 => f32, |x| single::expm1::<M>(x)),
        Unary::Log => one!(isa, M, f32 => f32, |x| single::log::<M>(x)),
        Unary::Log1p => one!(isa, M, f32 => f32, |x| single::log1p::<M>(x)),
        Unary::Sqrt => one!(isa, f32 => f32, |x| x.sqrt()),
        Unary::Rsqrt => one!(isa, f32 => f32, |x| 1.0 / x.sqrt()),
        Unary::Sin => of_angle!(isa, sin),
        Unary::Cos => of_angle!(isa, cos),
        Unary::Tan => of_angle!(isa, tan),
        Unary::Tanh => one!(isa, M, f32 => f32, |x| single::tanh::<M>(x)),
        Unary::Sigmoid => one!(isa, M, f32 => f32, |x| single::sigmoid::<M>(x)),
        Unary::Erf => one!(isa, M, f32 => f32, |x| single::erf::<M>(x)),
        Unary::Floor => one!(isa, f32 => f32, |x| x.floor()),
        Unary::Ceil => one!(isa, f32 => f32, |x| x.ceil()),
        Unary::Round => one!(isa, f32 => f32, |x| x.round_ties_even()),
        Unary::Not => None,
    }
}

fn unary_f64(function: Unary, isa: Isa) -> Option<Compiled<Span>> {
    match function {
        Unary::Neg => one!(isa, f64 => f64, |x| -x),
        Unary::Abs => one!(isa, f64 => f64, |x| x.abs()),
        Unary::Sign => one!(isa, f64 => f64, |x| double::sign(x)),
        Unary::Exp => one!(isa, f64 => f64, |x| libm::exp(x)),
        Unary::Expm1 => one!(isa, f64 => f64, |x| libm::expm1(x)),
        Unary::Log => one!(isa, f64 => f64, |x| libm::log(x)),
        Unary::Log1p => one!(isa, f64 => f64, |x| libm::log1p(x)),
        Unary::Sqrt => one!(isa, f64 => f64, |x| x.sqrt()),
        Unary::Rsqrt => one!(isa, f64 => f64, |x| 1.0 / x.sqrt()),
        Unary::Sin => one!(isa, f64 => f64, |x| libm::sin(x)),
        Unary::Cos => one!(isa, f64 => f64, |x| libm::cos(x)),
        Unary::Tan => one!(isa, f64 => f64, |x| libm::tan(x)),
        Unary::Tanh => one!(isa, f64 => f64, |x| libm::tanh(x)),
        Unary::Sigmoid => one!(isa, f64 => f64, |x| double::sigmoid(x)),
        Unary::Erf => one!(isa, f64 => f64, |x| libm::erf(x)),
        Unary::Floor => one!(isa, f64 => f64, |x| x.floor()),
        Unary::Ceil => one!(isa, f64 => f64, |x| x.ceil()),
        Unary::Round => one!(isa, f64 => f64, |x| x.round_ties_even()),
        Unary::Not => None,
    }
}

fn binary(function: Binary, kind: Kind, isa: Isa) -> Option<Compiled<Span>> {
    match kind {
        Kind::F32 => match function {
            Binary::Add => two!(isa, f32 => f32, |x, y| x + y),
            Binary::Sub => two!(isa, f32 => f32, |x, y| x - y),
            Binary::Mul => two!(isa, f32 => f32, |x, y| x * y),
            Binary::Div => Some(divide(isa)),
            Binary::Rem => two!(isa, f32 => f32, |x, y| single::rem(x, y)),
            Binary::Pow => two!(isa, M, f32 => f32, |x, y| widened::pow::<M>(x, y)),
            Binary::Max => two!(isa, f32 => f32, |x, y| single::max(x, y)),
            Binary::Min => two!(isa, f32 => f32, |x, y| single::min(x, y)),
            Binary::Atan2 => two!(isa, M, f32 => f32, |y, x| widened::atan2::<M>(y, x)),
            Binary::And | Binary::Or | Binary::Xor => None,
        },
        Kind::F64 => match function {
            Binary::Add => two!(isa, f64 => f64, |x, y| x + y),
            Binary::Sub => two!(isa, f64 => f64, |x, y| x - y),
            Binary::Mul => two!(isa, f64 => f64, |x, y| x * y),
            Binary::Div => two!(isa, f64 => f64, |x, y| x / y),
            Binary::Rem => two!(isa, f64 => f64, |x, y| double::rem(x, y)),
            Binary::Pow => two!(isa, f64 => f64, |x, y| libm::pow(x, y)),
            Binary::Max => two!(isa, f64 => f64, |x, y| double::max(x, y)),
            Binary::Min => two!(isa, f64 => f64, |x, y| double::min(x, y)),
            Binary::Atan2 => two!(isa, f64 => f64, |y, x| libm::atan2(y, x)),
            Binary::And | Binary::Or | Binary::Xor => None,
        },
        Kind::I32 => match function {
            Binary::Add => two!(isa, i32 => i32, |x, y| x.wrapping_add(y)),
            Binary::Sub => two!(isa, i32 => i32, |x, y| x.wrapping_sub(y)),
            Binary::Mul => two!(isa, i32 => i32, |x, y| x.wrapping_mul(y)),
            Binary::Div => two!(isa, i32 => i32, |x, y| integer::div_i32(x, y)),
            Binary::Rem => two!(isa, i32 => i32, |x, y| integer::rem_i32(x, y)),
            Binary::Max => two!(isa, i32 => i32, |x, y| x.max(y)),
            Binary::Min => two!(isa, i32 => i32, |x, y| x.min(y)),
            Binary::And => two!(isa, i32 => i32, |x, y| x & y),
            Binary::Or => two!(isa, i32 => i32, |x, y| x | y),
            Binary::Xor => two!(isa, i32 => i32, |x, y| x ^ y),
            Binary::Pow | Binary::Atan2 => None,
        },
        Kind::I64 => match function {
            Binary::Add => two!(isa, i64 => i64, |x, y| x.wrapping_add(y)),
            Binary::Sub => two!(isa, i64 => i64, |x, y| x.wrapping_sub(y)),
            Binary::Mul => two!(isa, i64 => i64, |x, y| x.wrapping_mul(y)),
            Binary::Div => two!(isa, i64 => i64, |x, y| integer::div_i64(x, y)),
            Binary::Rem => two!(isa, i64 => i64, |x, y| integer::rem_i64(x, y)),
            Binary::Max => two!(isa, i64 => i64, |x, y| x.max(y)),
            Binary::Min => two!(isa, i64 => i64, |x, y| x.min(y)),
            Binary::And => two!(isa, i64 => i64, |x, y| x & y),
            Binary::Or => two!(isa, i64 => i64, |x, y| x | y),
            Binary::Xor => two!(isa, i64 => i64, |x, y| x ^ y),
            Binary::Pow | Binary::Atan2 => None,
        },
        Kind::Bool => match function {
            Binary::And | Binary::Min | Binary::Mul => two!(isa, u8 => u8, |x, y| x & y),
            Binary::Or | Binary::Max => two!(isa, u8 => u8, |x, y| x | y),
            Binary::Xor | Binary::Add | Binary::Sub => two!(isa, u8 => u8, |x, y| x ^ y),
            Binary::Div | Binary::Rem | Binary::Pow | Binary::Atan2 => None,
        },
    }
}

fn compare(comparison: Compare, kind: Kind, isa: Isa) -> Option<Compiled<Span>> {
    macro_rules! comparisons {
        ($element:ty) => {
            match comparison {
                Compare::Eq => two!(isa, $element => u8, |x, y| (x == y) as u8),
                Compare::Ne => two!(isa, $element => u8, |x, y| (x != y) as u8),
                Compare::Lt => two!(isa, $element => u8, |x, y| (x < y) as u8),
                Compare::Le => two!(isa, $element => u8, |x, y| (x <= y) as u8),
                Compare::Gt => two!(isa, $element => u8, |x, y| (x > y) as u8),
                Compare::Ge => two!(isa, $element => u8, |x, y| (x >= y) as u8),
            }
        };
    }
    match kind {
        Kind::F32 => comparisons!(f32),
        Kind::F64 => comparisons!(f64),
        Kind::I32 => comparisons!(i32),
        Kind::I64 => comparisons!(i64),
        Kind::Bool => comparisons!(u8),
    }
}

fn cast(from: Kind, to: Kind, isa: Isa) -> Option<Compiled<Span>> {
    match (from, to) {
        (Kind::F64, Kind::F32) => one!(isa, f64 => f32, |x| x as f32),
        (Kind::F64, Kind::I64) => one!(isa, f64 => i64, |x| x as i64),
        (Kind::F64, Kind::I32) => one!(isa, f64 => i32, |x| x as i32),
        (Kind::F64, Kind::Bool) => one!(isa, f64 => u8, |x| (x != 0.0) as u8),
        (Kind::F32, Kind::F64) => one!(isa, f32 => f64, |x| x as f64),
        (Kind::F32, Kind::I64) => one!(isa, f32 => i64, |x| x as i64),
        (Kind::F32, Kind::I32) => one!(isa, f32 => i32, |x| x as i32),
        (Kind::F32, Kind::Bool) => one!(isa, f32 => u8, |x| (x != 0.0) as u8),
        (Kind::I64, Kind::F64) => one!(isa, i64 => f64, |x| x as f64),
        (Kind::I64, Kind::F32) => one!(isa, i64 => f32, |x| x as f32),
        (Kind::I64, Kind::I32) => one!(isa, i64 => i32, |x| x as i32),
        (Kind::I64, Kind::Bool) => one!(isa, i64 => u8, |x| (x != 0) as u8),
        (Kind::I32, Kind::F64) => one!(isa, i32 => f64, |x| x as f64),
        (Kind::I32, Kind::F32) => one!(isa, i32 => f32, |x| x as f32),
        (Kind::I32, Kind::I64) => one!(isa, i32 => i64, |x| x as i64),
        (Kind::I32, Kind::Bool) => one!(isa, i32 => u8, |x| (x != 0) as u8),
        (Kind::Bool, Kind::F64) => one!(isa, u8 => f64, |x| x as f64),
        (Kind::Bool, Kind::F32) => one!(isa, u8 => f32, |x| x as f32),
        (Kind::Bool, Kind::I64) => one!(isa, u8 => i64, |x| x as i64),
        (Kind::Bool, Kind::I32) => one!(isa, u8 => i32, |x| x as i32),
        (Kind::F64, Kind::F64)
        | (Kind::F32, Kind::F32)
        | (Kind::I64, Kind::I64)
        | (Kind::I32, Kind::I32)
        | (Kind::Bool, Kind::Bool) => None,
    }
}
