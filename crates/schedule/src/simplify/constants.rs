//! Computes what depends on constants only: element-wise operations on numbers, on arrays of one number,
//! and on small arrays.

use tilewright_ir::{DType, Graph, Literal, Node, Op, Result, Scalar, Type, Value};
use tilewright_plan::{Kind, Register};

use super::rebuild;
use crate::builder::Builder;
use crate::elementwise;

/// Arrays with more elements than this are not computed ahead.
const SMALL: usize = 256;

/// Constant folding. An array constant of one number becomes a broadcast scalar.
pub(super) fn fold(graph: &Graph) -> Result<Graph> {
    rebuild(graph, |new, node, operands| match &node.op {
        Op::Constant(literal) => match literal.splat() {
            Some(number) if !literal.ty().shape.is_empty() => {
                Ok(Some(vec![new.splat(literal.ty(), number)?]))
            }
            _ => Ok(None),
        },
        _ if operands.is_empty() => Ok(None),
        _ => folded(new, node, operands),
    })
}

/// The number that every element of a value is known to have.
pub(super) fn uniform(graph: &Graph, value: Value) -> Option<Scalar> {
    let node = graph.producer(value)?;
    match &node.op {
        Op::Constant(literal) => literal.splat(),
        Op::Broadcast { .. } => graph.constant(node.operands[0])?.splat(),
        _ => None,
    }
}

fn folded(new: &mut Graph, node: &Node, operands: &[Value]) -> Result<Option<Vec<Value>>> {
    let dtype = new.ty(*operands.last().expect("an operand")).dtype;
    let numbers: Option<Vec<Scalar>> = operands.iter().map(|&value| uniform(new, value)).collect();
    if let Some(numbers) = numbers {
        let types: Vec<&Type> = operands.iter().map(|&value| new.ty(value)).collect();
        let result = tilewright_ir::infer(&node.op, &types)?.swap_remove(0);
        let Some(number) = element(&node.op, &numbers, dtype, result.dtype) else { return Ok(None) };
        return Ok(Some(vec![new.splat(&result, number)?]));
    }
    let literals: Option<Vec<Literal>> = operands.iter().map(|&value| new.constant(value).cloned()).collect();
    let Some(literals) = literals else { return Ok(None) };
    let types: Vec<&Type> = literals.iter().map(Literal::ty).collect();
    let result = tilewright_ir::infer(&node.op, &types)?.swap_remove(0);
    if result.elements() > SMALL || types.iter().any(|ty| ty.shape != result.shape) {
        return Ok(None);
    }
    let elements: Option<Vec<Scalar>> = (0..result.elements())
        .map(|i| {
            let numbers: Vec<Scalar> = literals.iter().map(|literal| literal.element(i)).collect();
            element(&node.op, &numbers, dtype, result.dtype)
        })
        .collect();
    let Some(elements) = elements else { return Ok(None) };
    let literal = Literal::from_scalars(result, elements);
    Ok(Some(vec![new.add1(Op::Constant(literal), &[], node.origin.clone())?]))
}

/// What an element-wise operation makes of numbers; nothing for any other.
fn element(op: &Op, numbers: &[Scalar], operand: DType, result: DType) -> Option<Scalar> {
    let mut builder = Builder::new();
    let registers: Vec<Register> = numbers
        .iter()
        .enumerate()
        .map(|(i, &number)| {
            let dtype = if i == 0 && matches!(op, Op::Select) { DType::Bool } else { operand };
            builder.constant(Kind::of(dtype), number)
        })
        .collect();
    let register = elementwise::push(&mut builder, op, &registers, operand, result)?;
    builder.constant_value(register)
}
