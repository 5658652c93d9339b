//! Leaves out what no result needs. Parameters stay.

use tilewright_ir::{Graph, Result, Value};

/// Dead code elimination.
pub(super) fn eliminate(graph: &Graph) -> Result<Graph> {
    let live = live(graph);
    let mut new = Graph::new();
    let mut map: Vec<Option<Value>> = vec![None; graph.value_count()];
    let lookup = |map: &[Option<Value>], value: Value| map[value.index()].expect("what is needed is live");
    for &parameter in graph.parameters() {
        map[parameter.index()] = Some(new.parameter(graph.ty(parameter).clone()));
    }
    for (node, _) in graph.nodes().iter().zip(live).filter(|(_, live)| *live) {
        let operands: Vec<Value> = node.operands.iter().map(|&value| lookup(&map, value)).collect();
        let results = new.add(node.op.clone(), &operands, node.origin.clone())?;
        for (old, new) in node.results.iter().zip(results) {
            map[old.index()] = Some(new);
        }
    }
    new.set_results(graph.results().iter().map(|&value| lookup(&map, value)).collect());
    Ok(new)
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
