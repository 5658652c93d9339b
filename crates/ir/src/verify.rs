//! The verifier: the invariants of a graph, numbered. Every pass is followed by it in debug builds.
//!
//! 1. Each operand is defined before the node that reads it.
//! 2. Each node's results have the types that [`crate::infer`] gives, and name their node.
//! 3. Parameters and results name values of the graph.
//! 4. Regions keep these invariants too, and read nothing from outside but their parameters.
//! 5. Regions of attention hold no higher-order operation and no `random_bits`: they run once per pair.
//!
//! 1 to 3 hold for every graph that was built with [`Graph::add`]; they are checked for the sake of code
//! that rewrites.

use crate::graph::ValueDefinition;
use crate::{Error, ErrorKind, Graph, Op, Result, Type, Value, infer};

/// Checks the invariants listed above.
///
/// # Errors
/// [`ErrorKind::Invariant`] with the invariant's number, the value and the user's line.
pub fn verify(graph: &Graph) -> Result<()> {
    for (id, node) in graph.nodes().iter().enumerate() {
        let at = |error: Error| error.in_operation(node.op.name()).at(node.origin.clone());
        let first = node.results.iter().map(|value| value.index()).min().unwrap_or(0);
        if let Some(operand) = node.operands.iter().find(|operand| operand.index() >= first) {
            return Err(at(broken(1, format!("{operand} is read before it is defined"))));
        }
        let types: Vec<&Type> = node.operands.iter().map(|&value| graph.ty(value)).collect();
        let inferred = infer(&node.op, &types).map_err(at)?;
        let defined: Vec<&Type> = node.results.iter().map(|&value| graph.ty(value)).collect();
        if inferred.iter().collect::<Vec<_>>() != defined {
            return Err(at(broken(
                2,
                format!("{} has another type than its operation gives", node.results[0]),
            )));
        }
        for (i, &result) in node.results.iter().enumerate() {
            match graph.definition(result) {
                ValueDefinition::Result(node, number) if node.index() == id && number == i => {}
                _ => return Err(at(broken(2, format!("{result} does not name its node")))),
            }
        }
        for (_, region) in node.op.regions() {
            verify(region).map_err(at)?;
            if matches!(node.op, Op::FlexAttention(_) | Op::FlexAttentionBackward(_)) {
                pairwise(region).map_err(at)?;
            }
        }
    }
    let outside = |value: &&Value| value.index() >= graph.value_count();
    if let Some(value) = graph.parameters().iter().chain(graph.results()).find(outside) {
        return Err(broken(3, format!("{value} is not a value of the graph")));
    }
    Ok(())
}

fn pairwise(region: &Graph) -> Result<()> {
    let refused = |op: &Op| !op.regions().is_empty() || matches!(op, Op::RandomBits { .. });
    match region.nodes().iter().find(|node| refused(&node.op)) {
        Some(node) => {
            Err(broken(5, format!("{} stands in a region of attention", node.op.name()))
                .at(node.origin.clone()))
        }
        None => Ok(()),
    }
}

fn broken(invariant: u32, message: String) -> Error {
    Error::new(ErrorKind::Invariant { invariant, message })
}
