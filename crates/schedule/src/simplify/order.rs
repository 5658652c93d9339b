//! The order of operations.

use tilewright_ir::{Graph, Result};

use super::copy;

/// Puts what single numbers come to of the parameters before all else, so that whatever reads them need not wait: the
/// step count of an optimiser, for one, is then known where the last gradient of a small parameter is, and that
/// parameter's update is part of the same loop.
pub(super) fn numbers_first(graph: &Graph) -> Result<Graph> {
    let early = early(graph);
    let nodes = |wanted: bool| {
        graph.nodes().iter().zip(&early).filter_map(move |(node, &early)| (early == wanted).then_some(node))
    };
    copy(graph, nodes(true).chain(nodes(false)))
}

/// Whether anything that could be first is not.
pub(super) fn is_any(graph: &Graph) -> bool {
    early(graph).windows(2).any(|pair| pair == [false, true])
}

/// For each node, whether it makes single numbers of single numbers, and these of parameters.
fn early(graph: &Graph) -> Vec<bool> {
    let single = |&value: &_| graph.ty(value).elements() == 1;
    let mut known = vec![false; graph.value_count()];
    for parameter in graph.parameters().iter().filter(|parameter| single(parameter)) {
        known[parameter.index()] = true;
    }
    let mut early = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        let is =
            node.operands.iter().all(|operand| known[operand.index()]) && node.results.iter().all(single);
        for result in &node.results {
            known[result.index()] = is;
        }
        early.push(is);
    }
    early
}
