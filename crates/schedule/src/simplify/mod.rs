//! Rewrites a graph to a smaller one that means the same.
//!
//! The passes are functions from graph to graph, each linear in its size. None trades accuracy: a rewrite
//! gives the same bits for every input, NaN, infinities and the sign of zero included, but where it
//! saves a rounding or the addition of a zero.

mod algebra;
mod common;
mod constants;
mod dead;
mod indexing;
mod order;
mod parts;
mod products;
mod views;

pub(crate) use dead::live;

use tilewright_ir::{Graph, Node, Op, Result, Value};

/// A pass, and whether it has anything to do in a graph: of a long program each copy is felt.
type Pass = (fn(&Graph) -> bool, fn(&Graph) -> Result<Graph>);

const PASSES: [Pass; 12] = [
    (has_regions, regions),
    (dead::is_any, dead::eliminate),
    (views::is_any, views::compose),
    (always, constants::fold),
    (always, algebra::simplify),
    (indexing::is_any, indexing::simplify),
    (parts::is_any, parts::join),
    (views::is_any, views::compose),
    (products::is_any, products::turn),
    (always, common::share),
    (dead::is_any, dead::eliminate),
    (order::is_any, order::numbers_first),
];

/// Simplifies a graph and the regions in it.
///
/// # Errors
/// None for a verified graph but [`tilewright_ir::ErrorKind::Limit`].
pub fn simplify(graph: &Graph) -> Result<Graph> {
    let mut simpler: Option<Graph> = None;
    for (has_work, pass) in PASSES {
        let graph = simpler.as_ref().unwrap_or(graph);
        if has_work(graph) {
            simpler = Some(pass(graph)?);
        }
    }
    Ok(simpler.unwrap_or_else(|| graph.clone()))
}

fn always(_: &Graph) -> bool {
    true
}

fn has_regions(graph: &Graph) -> bool {
    graph.nodes().iter().any(|node| !node.op.regions().is_empty())
}

/// Simplifies the regions. They nest as deep as the user's functions do.
fn regions(graph: &Graph) -> Result<Graph> {
    rebuild(graph, |new, node, operands| {
        let mut op = node.op.clone();
        match &mut op {
            Op::FlexAttention(attention) => {
                attention.score = simplify(&attention.score)?;
                attention.mask = attention.mask.as_ref().map(simplify).transpose()?;
            }
            Op::FlexAttentionBackward(attention) => {
                attention.joint = simplify(&attention.joint)?;
                attention.mask = attention.mask.as_ref().map(simplify).transpose()?;
            }
            Op::AssociativeScan(scan) => scan.combine = simplify(&scan.combine)?,
            Op::Constant(_)
            | Op::Iota { .. }
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
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
            | Op::RandomBits { .. } => return Ok(None),
        }
        Ok(Some(new.add(op, operands, node.origin.clone())?))
    })
}

/// How often each value is read, or given as a result.
fn uses(graph: &Graph) -> Vec<usize> {
    let mut uses = vec![0; graph.value_count()];
    for value in graph.nodes().iter().flat_map(|node| &node.operands).chain(graph.results()) {
        uses[value.index()] += 1;
    }
    uses
}

/// A copy of a graph that has these of its nodes, each after what it reads.
fn copy<'a>(graph: &Graph, nodes: impl Iterator<Item = &'a Node>) -> Result<Graph> {
    let mut new = Graph::new();
    let mut map: Vec<Option<Value>> = vec![None; graph.value_count()];
    for &parameter in graph.parameters() {
        map[parameter.index()] = Some(new.parameter(graph.ty(parameter).clone()));
    }
    let lookup = |map: &[Option<Value>], value: Value| map[value.index()].expect("operands come first");
    for node in nodes {
        let operands: Vec<Value> = node.operands.iter().map(|&value| lookup(&map, value)).collect();
        let results = new.add(node.op.clone(), &operands, node.origin.clone())?;
        for (old, new) in node.results.iter().zip(results) {
            map[old.index()] = Some(new);
        }
    }
    new.set_results(graph.results().iter().map(|&value| lookup(&map, value)).collect());
    Ok(new)
}

/// A copy of a graph in which `rule` gives, for a node and the values that its operands have become, what
/// stands for its results; nothing where the node stays as it is.
fn rebuild(
    graph: &Graph,
    mut rule: impl FnMut(&mut Graph, &Node, &[Value]) -> Result<Option<Vec<Value>>>,
) -> Result<Graph> {
    let mut new = Graph::new();
    let mut map: Vec<Option<Value>> = vec![None; graph.value_count()];
    for &parameter in graph.parameters() {
        map[parameter.index()] = Some(new.parameter(graph.ty(parameter).clone()));
    }
    let lookup = |map: &[Option<Value>], value: Value| map[value.index()].expect("operands come first");
    for node in graph.nodes() {
        let operands: Vec<Value> = node.operands.iter().map(|&value| lookup(&map, value)).collect();
        let results = match rule(&mut new, node, &operands)? {
            Some(results) => results,
            None => new.add(node.op.clone(), &operands, node.origin.clone())?,
        };
        for (old, new) in node.results.iter().zip(results) {
            map[old.index()] = Some(new);
        }
    }
    new.set_results(graph.results().iter().map(|&value| lookup(&map, value)).collect());
    Ok(new)
}
