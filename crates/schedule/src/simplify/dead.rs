//! Leaves out what no result needs. Parameters stay.

use tilewright_ir::{Graph, Result};

use super::copy;

/// Dead code elimination.
pub(super) fn eliminate(graph: &Graph) -> Result<Graph> {
    let live = live(graph);
    copy(graph, graph.nodes().iter().zip(live).filter_map(|(node, live)| live.then_some(node)))
}

/// Whether anything is dead.
pub(super) fn is_any(graph: &Graph) -> bool {
    live(graph).contains(&false)
}

/// For each node, whether a result needs it.
pub(crate) fn live(graph: &Graph) -> Vec<bool> {
    let mut wanted = vec![false; graph.value_count()];
    for result in graph.results() {
        wanted[result.index()] = true;
    }
    let mut live = vec![false; graph.nodes().len()];
    for (number, node) in graph.nodes().iter().enumerate().rev() {
        live[number] = node.results.iter().any(|result| wanted[result.index()]);
        if live[number] {
            node.operands.iter().for_each(|operand| wanted[operand.index()] = true);
        }
    }
    live
}
