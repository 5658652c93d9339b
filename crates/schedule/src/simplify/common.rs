//! Computes equal things once: nodes with equal operations (regions included) on the same operands.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use tilewright_ir::{Binary, Compare, Graph, NodeId, Op, Result, Value, ValueDefinition};

use super::rebuild;

/// Common subexpression elimination.
pub(super) fn share(graph: &Graph) -> Result<Graph> {
    let mut seen: HashMap<(u64, Vec<Value>), Vec<NodeId>> = HashMap::new();
    rebuild(graph, |new, node, operands| {
        let mut key = operands.to_vec();
        if commutes(&node.op) {
            key.sort_unstable();
        }
        let candidates = seen.entry((digest(&node.op), key)).or_default();
        if let Some(&equal) = candidates.iter().find(|&&earlier| new.node(earlier).op == node.op) {
            return Ok(Some(new.node(equal).results.clone()));
        }
        let results = new.add(node.op.clone(), operands, node.origin.clone())?;
        if let ValueDefinition::Result(id, _) = new.definition(results[0]) {
            candidates.push(id);
        }
        Ok(Some(results))
    })
}

fn commutes(op: &Op) -> bool {
    match op {
        Op::Binary(binary) => match binary {
            Binary::Add
            | Binary::Mul
            | Binary::Max
            | Binary::Min
            | Binary::And
            | Binary::Or
            | Binary::Xor => true,
            Binary::Sub | Binary::Div | Binary::Rem | Binary::Pow | Binary::Atan2 => false,
        },
        Op::Compare(compare) => matches!(compare, Compare::Eq | Compare::Ne),
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Unary(_)
        | Op::Select
        | Op::Cast(_)
        | Op::StopGradient
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
        | Op::AssociativeScan(_) => false,
    }
}

/// Equal for equal operations. Regions are left out: their operands tell enough apart.
fn digest(op: &Op) -> u64 {
    let mut state = DefaultHasher::new();
    std::mem::discriminant(op).hash(&mut state);
    match op {
        Op::Constant(literal) => literal.hash(&mut state),
        Op::Iota { dtype, shape, axis } => (dtype, shape, axis).hash(&mut state),
        Op::Unary(unary) => unary.hash(&mut state),
        Op::Binary(binary) => binary.hash(&mut state),
        Op::Compare(compare) => compare.hash(&mut state),
        Op::Cast(dtype) => dtype.hash(&mut state),
        Op::Broadcast { shape, axes } => (shape, axes).hash(&mut state),
        Op::Reshape { shape } => shape.hash(&mut state),
        Op::Transpose { permutation } => permutation.hash(&mut state),
        Op::Slice { start, limit, step } => (start, limit, step).hash(&mut state),
        Op::Pad { low, high, interior } => (low, high, interior).hash(&mut state),
        Op::Reverse { axes } => axes.hash(&mut state),
        Op::Concatenate { axis } => axis.hash(&mut state),
        Op::Reduce { kind, axes } => (kind, axes).hash(&mut state),
        Op::ArgMax { axis } => axis.hash(&mut state),
        Op::Dot(axes) => axes.hash(&mut state),
        Op::ScatterAdd { shape } | Op::RandomBits { shape } => shape.hash(&mut state),
        Op::Select
        | Op::StopGradient
        | Op::Gather
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => {}
    }
    state.finish()
}
