//! Which operations are computed together.

use tilewright_ir::{NodeId, Op, ValueDefinition};

use crate::emit::reduced_axes;
use crate::normalise::Normal;

/// What is computed in one go.
pub(crate) enum Step {
    /// Element-wise operations and reductions.
    Cluster(Cluster),
    /// An operation with a kernel of its own.
    Single(NodeId),
}

/// Nodes that become one loop nest over a space, whose rows are reduced.
pub(crate) struct Cluster {
    /// The nodes, each after those it depends on.
    pub members: Vec<NodeId>,
    /// Extents of the space.
    pub space: Vec<usize>,
    /// For each axis of the space, whether it belongs to the row.
    pub row: Vec<bool>,
    /// For each member, the space's axis for each axis of the positions it computes at (its operand's, for
    /// a reduction; else its result's); none where that axis stays at 0.
    pub domains: Vec<Vec<Option<usize>>>,
}

impl Cluster {
    /// The domain of a member.
    pub fn domain(&self, member: NodeId) -> &[Option<usize>] {
        let position = self.members.binary_search(&member).expect("a member");
        &self.domains[position]
    }
}

/// The steps in an order in which they can run, and for each value whether it is stored.
pub(crate) struct Fusion {
    pub steps: Vec<Step>,
    pub stored: Vec<bool>,
}

/// Groups the operations of a normalised graph.
pub(crate) fn fuse(normal: &Normal) -> Fusion {
    let graph = &normal.graph;
    let mut fusion = Fusion { steps: Vec::new(), stored: vec![false; graph.value_count()] };
    for &result in graph.results() {
        fusion.stored[result.index()] = true;
    }
    for (number, node) in graph.nodes().iter().enumerate() {
        let base = normal.accesses[node.results[0].index()].base;
        if base != node.results[0] {
            continue;
        }
        let ValueDefinition::Result(id, _) = graph.definition(base) else {
            unreachable!("{number} has results")
        };
        match node.op {
            Op::Constant(ref literal) if literal.splat().is_some() => continue,
            Op::Constant(_) => {
                fusion.stored[base.index()] = true;
                continue;
            }
            Op::Iota { .. } if !graph.results().contains(&base) => continue,
            _ => {}
        }
        for &operand in &node.operands {
            let base = normal.accesses[operand.index()].base;
            let free = graph.producer(base).is_some_and(|node| match &node.op {
                Op::Constant(literal) => literal.splat().is_some(),
                Op::Iota { .. } => true,
                _ => false,
            });
            fusion.stored[base.index()] |= !free;
        }
        for &result in &node.results {
            fusion.stored[result.index()] |= true;
        }
        let step = match &node.op {
            Op::Dot(_) => Step::Single(id),
            Op::ScatterAdd { .. }
            | Op::Pad { .. }
            | Op::Concatenate { .. }
            | Op::FlexAttention(_)
            | Op::FlexAttentionBackward(_)
            | Op::AssociativeScan(_) => Step::Single(id),
            op => {
                let reduced = reduced_axes(op);
                let space = match reduced {
                    [] => graph.ty(base).shape.clone(),
                    _ => graph.ty(node.operands[0]).shape.clone(),
                };
                let rank = space.len();
                Step::Cluster(Cluster {
                    members: vec![id],
                    row: (0..rank).map(|axis| reduced.contains(&axis)).collect(),
                    space,
                    domains: vec![(0..rank).map(Some).collect()],
                })
            }
        };
        fusion.steps.push(step);
    }
    fusion
}
