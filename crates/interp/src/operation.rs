//! One operation: its results from its operands.

use tilewright_ir::{Op, Result, Scalar};

use crate::array::{Array, Data};
use crate::elements::{compare, float_binary, float_unary, integer_binary, integer_unary, wrapping};
use crate::evaluator::Operands;
use crate::rounding::rounding;
use crate::{Precision, attention, gradient, indexing, movement, random, reduction, scan};

/// Fills `results`, whose types are set.
pub(crate) fn evaluate(
    op: &Op,
    operands: Operands<'_>,
    results: &mut [Array],
    precision: Precision,
) -> Result<()> {
    let result = &mut results[0];
    match op {
        Op::Constant(literal) => *result = Array::from_literal(literal),
        Op::Iota { dtype, shape, axis } => {
            let positions = movement::positions(shape, *axis);
            if dtype.is_float() {
                let round = rounding(*dtype, precision);
                result.fill(positions.map(|position| round(position as f64)));
            } else {
                let wrap = wrapping(*dtype);
                result.fill_integers(positions.map(|position| wrap(position as i64)));
            }
        }
        Op::Unary(unary) => match &operands.get(0).data {
            Data::Float(x) => {
                let (function, round) = (float_unary(*unary), rounding(result.ty.dtype, precision));
                result.fill(x.iter().map(|&x| round(function(x))));
            }
            Data::Integer(x) => {
                let (function, wrap) = (integer_unary(*unary), wrapping(result.ty.dtype));
                result.fill_integers(x.iter().map(|&x| wrap(function(x))));
            }
        },
        Op::Binary(binary) => match (&operands.get(0).data, &operands.get(1).data) {
            (Data::Float(x), Data::Float(y)) => {
                let (function, round) = (float_binary(*binary), rounding(result.ty.dtype, precision));
                result.fill(x.iter().zip(y).map(|(&x, &y)| round(function(x, y))));
            }
            (x, y) => {
                let (function, wrap) = (integer_binary(*binary), wrapping(result.ty.dtype));
                let pairs = x.integers().iter().zip(y.integers());
                result.fill_integers(pairs.map(|(&x, &y)| wrap(function(x, y))));
            }
        },
        Op::Compare(comparison) => match (&operands.get(0).data, &operands.get(1).data) {
            (Data::Float(x), Data::Float(y)) => {
                let holds = compare(*comparison);
                result.fill_integers(x.iter().zip(y).map(|(x, y)| holds(x, y) as i64));
            }
            (x, y) => {
                let holds = compare(*comparison);
                result.fill_integers(x.integers().iter().zip(y.integers()).map(|(x, y)| holds(x, y) as i64));
            }
        },
        Op::Select => {
            let condition = operands.get(0).integers();
            let pick = |i: usize| if condition[i] != 0 { operands.get(1) } else { operands.get(2) };
            if result.ty.dtype.is_float() {
                result.fill((0..condition.len()).map(|i| pick(i).floats()[i]));
            } else {
                result.fill_integers((0..condition.len()).map(|i| pick(i).integers()[i]));
            }
        }
        Op::Cast(_) => cast(operands.get(0), result, precision),
        Op::StopGradient | Op::Reshape { .. } => movement::copy(operands.get(0), result),
        Op::Broadcast { shape, axes } => movement::broadcast(operands.get(0), shape, axes, result),
        Op::Transpose { permutation } => movement::transpose(operands.get(0), permutation, result),
        Op::Slice { start, limit: _, step } => movement::slice(operands.get(0), start, step, result),
        Op::Pad { low, high: _, interior } => {
            movement::pad(operands.get(0), operands.get(1), low, interior, result);
        }
        Op::Reverse { axes } => movement::reverse(operands.get(0), axes, result),
        Op::Concatenate { axis } => movement::concatenate(operands, *axis, result),
        Op::Reduce { kind, axes } => reduction::reduce(operands.get(0), *kind, axes, result, precision),
        Op::ArgMax { axis } => reduction::argmax(operands.get(0), *axis, result),
        Op::Dot(axes) => reduction::dot(operands.get(0), operands.get(1), axes, result, precision),
        Op::Gather => indexing::gather(operands, result)?,
        Op::ScatterAdd { .. } => indexing::scatter_add(operands, result, precision)?,
        Op::RandomBits { shape: _ } => random::random_bits(operands.get(0), result),
        Op::FlexAttention(attention) => attention::evaluate(attention, operands, results, precision)?,
        Op::FlexAttentionBackward(attention) => {
            gradient::evaluate(attention, operands, results, precision)?;
        }
        Op::AssociativeScan(scan) => scan::evaluate(scan, operands, results, precision)?,
    }
    Ok(())
}

fn cast(x: &Array, result: &mut Array, precision: Precision) {
    let dtype = result.ty.dtype;
    match (&x.data, dtype.is_float()) {
        (Data::Float(x), true) => {
            let round = rounding(dtype, precision);
            result.fill(x.iter().map(|&x| round(x)));
        }
        (Data::Integer(x), true) => {
            let round = rounding(dtype, precision);
            result.fill(x.iter().map(|&x| round(x as f64)));
        }
        (Data::Float(x), false) => {
            result.fill_integers(x.iter().map(|&x| Scalar::Float(x).cast(dtype).to_i64()));
        }
        (Data::Integer(x), false) => {
            result.fill_integers(x.iter().map(|&x| Scalar::Integer(x).cast(dtype).to_i64()));
        }
    }
}
