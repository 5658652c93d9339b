//! Forward mode: one walk over the arena, in which each node on a path from an input to an output turns the
//! tangents of its operands into those of its results.

use tilewright_ir::{Error, Graph, Op, Result, Value};

use crate::batch::{inline_live, live_nodes};
use crate::emit::Emit;
use crate::rules;

/// Appends the derivative of each of `outputs` in the direction in which each input changes by its tangent;
/// none where it is zero.
///
/// `inputs` pairs values with their tangents, which have the same types. Inputs are independent variables,
/// and conventions are those of [`crate::reverse`].
///
/// # Errors
/// Where a tangent's type is not its input's, or an array would be too large.
pub fn forward(
    graph: &mut Graph,
    inputs: &[(Value, Value)],
    outputs: &[Value],
) -> Result<Vec<Option<Value>>> {
    let live = live_nodes(graph, outputs);
    let mut tangents: Vec<Option<Value>> = vec![None; graph.value_count()];
    let mut is_input = vec![false; tangents.len()];
    for (i, &(input, tangent)) in inputs.iter().enumerate() {
        if graph.ty(input) != graph.ty(tangent) {
            return Err(Error::shape(format!("tangent {i}"), graph.ty(input), graph.ty(tangent)));
        }
        is_input[input.index()] = true;
        if graph.ty(input).dtype.is_float() {
            tangents[input.index()] = Some(tangent);
        }
    }
    for (id, _) in live.iter().enumerate().filter(|(_, live)| **live) {
        let node = &graph.nodes()[id];
        let arriving: Vec<Option<Value>> =
            node.operands.iter().map(|operand| tangents[operand.index()]).collect();
        if arriving.iter().all(Option::is_none) || matches!(node.op, Op::StopGradient) {
            continue;
        }
        let node = node.clone();
        let mut emit = Emit::new(graph, node.origin.clone());
        let leaving = rules::jvp(&mut emit, &node, &arriving)
            .map_err(|error| error.in_operation(node.op.name()).at(node.origin.clone()))?;
        for (&result, tangent) in node.results.iter().zip(leaving) {
            if emit.dtype(result).is_float() && !is_input[result.index()] {
                tangents[result.index()] = tangent;
            }
        }
    }
    Ok(outputs.iter().map(|output| tangents[output.index()]).collect())
}

/// Applies the jvp of `region` at `arguments`: the tangents of the region's results, from the tangents of
/// the arguments.
pub(crate) fn push_forward(
    graph: &mut Graph,
    region: &Graph,
    arguments: &[Value],
    tangents: &[Option<Value>],
) -> Result<Vec<Option<Value>>> {
    let mut tangent_map = region.clone();
    let mut inputs = Vec::new();
    let mut operands = arguments.to_vec();
    for (&parameter, &tangent) in region.parameters().iter().zip(tangents) {
        let Some(tangent) = tangent else { continue };
        inputs.push((parameter, tangent_map.parameter(region.ty(parameter).clone())));
        operands.push(tangent);
    }
    let results = forward(&mut tangent_map, &inputs, region.results())?;
    tangent_map.set_results(results.iter().copied().flatten().collect());
    let mut values = inline_live(graph, &tangent_map, &operands)?.into_iter();
    Ok(results.into_iter().map(|result| result.and_then(|_| values.next())).collect())
}
