//! Derivatives of element-wise functions. The Jacobian is diagonal, so the product with it serves both
//! modes: with a cotangent of the result, or with a tangent of the operand.

use tilewright_ir::{Binary, Compare, Result, Unary, Value};

use crate::emit::Emit;

/// `t · f′(x)`, where `y = f(x)`; none where the derivative is zero.
pub(crate) fn unary(e: &mut Emit, unary: Unary, x: Value, y: Value, t: Value) -> Result<Option<Value>> {
    let product = match unary {
        Unary::Neg => e.neg(t)?,
        Unary::Abs => {
            let sign = e.unary(Unary::Sign, x)?;
            e.mul(t, sign)?
        }
        Unary::Exp => e.mul(t, y)?,
        Unary::Expm1 => {
            let exp = e.unary(Unary::Exp, x)?;
            e.mul(t, exp)?
        }
        Unary::Log => e.div(t, x)?,
        Unary::Log1p => {
            let one = e.like(x, 1.0)?;
            let denominator = e.add(one, x)?;
            e.div(t, denominator)?
        }
        Unary::Sqrt => {
            let double = e.add(y, y)?;
            e.div(t, double)?
        }
        Unary::Rsqrt => {
            let ratio = e.div(y, x)?;
            let slope = e.scale(ratio, -0.5)?;
            e.mul(t, slope)?
        }
        Unary::Sin => {
            let cos = e.unary(Unary::Cos, x)?;
            e.mul(t, cos)?
        }
        Unary::Cos => {
            let sin = e.unary(Unary::Sin, x)?;
            let slope = e.neg(sin)?;
            e.mul(t, slope)?
        }
        Unary::Tan => {
            let square = e.mul(y, y)?;
            let product = e.mul(t, square)?;
            e.add(t, product)?
        }
        // (1 − y)(1 + y) keeps the digits that 1 − y² loses near |y| = 1.
        Unary::Tanh => {
            let one = e.like(y, 1.0)?;
            let below = e.sub(one, y)?;
            let above = e.add(one, y)?;
            let slope = e.mul(below, above)?;
            e.mul(t, slope)?
        }
        Unary::Sigmoid => {
            let one = e.like(y, 1.0)?;
            let complement = e.sub(one, y)?;
            let slope = e.mul(y, complement)?;
            e.mul(t, slope)?
        }
        Unary::Erf => {
            let square = e.mul(x, x)?;
            let exponent = e.neg(square)?;
            let bell = e.unary(Unary::Exp, exponent)?;
            let slope = e.scale(bell, std::f64::consts::FRAC_2_SQRT_PI)?;
            e.mul(t, slope)?
        }
        Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Round | Unary::Not => return Ok(None),
    };
    Ok(Some(product))
}

/// `t · ∂f/∂(left or right)`, where `z = f(x, y)`; `side` is 0 for the left operand, 1 for the right.
/// None where the derivative is zero.
pub(crate) fn binary(
    e: &mut Emit,
    binary: Binary,
    side: usize,
    [x, y, z]: [Value; 3],
    t: Value,
) -> Result<Option<Value>> {
    let left = side == 0;
    let product = match binary {
        Binary::Add => t,
        Binary::Sub if left => t,
        Binary::Sub => e.neg(t)?,
        Binary::Mul => e.mul(t, if left { y } else { x })?,
        Binary::Div => {
            let quotient = e.div(t, y)?;
            if left {
                quotient
            } else {
                let product = e.mul(quotient, z)?;
                e.neg(product)?
            }
        }
        Binary::Rem if left => t,
        Binary::Rem => {
            let quotient = e.div(x, y)?;
            let floor = e.unary(Unary::Floor, quotient)?;
            let slope = e.neg(floor)?;
            e.mul(t, slope)?
        }
        Binary::Pow if left => power_base(e, x, y, t)?,
        Binary::Pow => {
            let zero = e.equals(x, 0.0)?;
            let base = e.replace(zero, 1.0, x)?;
            let log = e.unary(Unary::Log, base)?;
            let slope = e.mul(z, log)?;
            e.mul(t, slope)?
        }
        Binary::Max => extremum(e, if left { [x, y] } else { [y, x] }, Compare::Gt, t)?,
        Binary::Min => extremum(e, if left { [x, y] } else { [y, x] }, Compare::Lt, t)?,
        Binary::Atan2 => {
            let xx = e.mul(x, x)?;
            let yy = e.mul(y, y)?;
            let radius = e.add(xx, yy)?;
            let numerator = if left { y } else { e.neg(x)? };
            let slope = e.div(numerator, radius)?;
            e.mul(t, slope)?
        }
        Binary::And | Binary::Or | Binary::Xor => return Ok(None),
    };
    Ok(Some(product))
}

/// `t · y · x^(y − 1)`, with 0 instead of 0 · ∞ where base and exponent are both 0.
fn power_base(e: &mut Emit, x: Value, y: Value, t: Value) -> Result<Value> {
    let zero_base = e.equals(x, 0.0)?;
    let zero_exponent = e.equals(y, 0.0)?;
    let both = e.binary(Binary::And, zero_base, zero_exponent)?;
    let one = e.like(y, 1.0)?;
    let less = e.sub(y, one)?;
    let exponent = e.replace(both, 1.0, less)?;
    let power = e.binary(Binary::Pow, x, exponent)?;
    let slope = e.mul(y, power)?;
    e.mul(t, slope)
}

/// `t` where `mine` wins over `other`, half of it at a tie, else 0.
fn extremum(e: &mut Emit, [mine, other]: [Value; 2], wins: Compare, t: Value) -> Result<Value> {
    let tie = e.compare(Compare::Eq, mine, other)?;
    let half = e.scale(t, 0.5)?;
    let rest = e.select_or(tie, half, 0.0)?;
    let wins = e.compare(wins, mine, other)?;
    e.select(wins, t, rest)
}
