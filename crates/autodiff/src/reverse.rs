//! Reverse mode: one walk over the arena from its end, in which each node on a path from an input to an
//! output hands the cotangents of its results on to its operands. Linear in the nodes; no recursion over
//! them, so any depth will do.

use tilewright_ir::{Error, Graph, Op, Result, Value};

use crate::batch::inline_live;
use crate::emit::Emit;
use crate::rules;

/// Appends the gradient of `Σ ⟨cotangent, output⟩` with respect to each of `inputs`; none where it is zero.
///
/// `outputs` pairs values with their cotangents, which have the same types; a value may occur more than
/// once. Inputs are independent variables: where one is computed from another, what flows into it does not
/// flow on. Integers and booleans carry no gradient. Each new node carries the origin of the node that it
/// differentiates.
///
/// Conventions at the points without a derivative: `abs` has 0 at 0; a tie of `max` or `min` of two gives
/// half to each, a reduction's ties share equally; rounding functions and `sign` have 0 everywhere; the row
/// maximum of attention is a constant. What a `select` does not show gets exactly 0.
///
/// # Errors
/// Where a cotangent's type is not its output's, or an array would be too large.
pub fn reverse(
    graph: &mut Graph,
    outputs: &[(Value, Value)],
    inputs: &[Value],
) -> Result<Vec<Option<Value>>> {
    let nodes = graph.nodes().len();
    let depends = dependents(graph, inputs);
    let mut is_input = vec![false; depends.len()];
    inputs.iter().for_each(|input| is_input[input.index()] = true);

    let mut cotangents: Vec<Option<Value>> = vec![None; depends.len()];
    for (i, &(output, cotangent)) in outputs.iter().enumerate() {
        if graph.ty(output) != graph.ty(cotangent) {
            return Err(Error::shape(format!("cotangent {i}"), graph.ty(output), graph.ty(cotangent)));
        }
        if depends[output.index()] {
            accumulate(&mut Emit::new(graph, None), &mut cotangents[output.index()], cotangent)?;
        }
    }
    for id in (0..nodes).rev() {
        let node = &graph.nodes()[id];
        let flows = |value: &Value| cotangents[value.index()].filter(|_| !is_input[value.index()]);
        let arriving: Vec<Option<Value>> = node.results.iter().map(flows).collect();
        if arriving.iter().all(Option::is_none) {
            continue;
        }
        let node = node.clone();
        let wanted: Vec<bool> = node.operands.iter().map(|operand| depends[operand.index()]).collect();
        let mut emit = Emit::new(graph, node.origin.clone());
        let leaving = rules::vjp(&mut emit, &node, &arriving, &wanted)
            .map_err(|error| error.in_operation(node.op.name()).at(node.origin.clone()))?;
        for (&operand, cotangent) in node.operands.iter().zip(leaving) {
            if let Some(cotangent) = cotangent.filter(|_| depends[operand.index()]) {
                debug_assert_eq!(emit.ty(operand), emit.ty(cotangent), "cotangent of {}", node.op.name());
                accumulate(&mut emit, &mut cotangents[operand.index()], cotangent)?;
            }
        }
    }
    Ok(inputs.iter().map(|input| cotangents[input.index()]).collect())
}

fn accumulate(e: &mut Emit, total: &mut Option<Value>, term: Value) -> Result<()> {
    *total = rules::sum(e, *total, Some(term))?;
    Ok(())
}

/// For each value whether a gradient may flow from it to one of `inputs`.
pub(crate) fn dependents(graph: &Graph, inputs: &[Value]) -> Vec<bool> {
    let mut depends = vec![false; graph.value_count()];
    for &input in inputs {
        depends[input.index()] = graph.ty(input).dtype.is_float();
    }
    for node in graph.nodes() {
        let flows = !matches!(node.op, Op::StopGradient)
            && node.operands.iter().any(|operand| depends[operand.index()]);
        for &result in node.results.iter().filter(|_| flows) {
            depends[result.index()] |= graph.ty(result).dtype.is_float();
        }
    }
    depends
}

/// Applies the vjp of `region` at `arguments`: the cotangents of the arguments that are `wanted`, from the
/// cotangents of the region's results.
pub(crate) fn pull_back(
    graph: &mut Graph,
    region: &Graph,
    arguments: &[Value],
    cotangents: &[Option<Value>],
    wanted: &[bool],
) -> Result<Vec<Option<Value>>> {
    let mut adjoint = region.clone();
    let mut seeds = Vec::new();
    let mut operands = arguments.to_vec();
    for (&result, &cotangent) in region.results().iter().zip(cotangents) {
        let Some(cotangent) = cotangent else { continue };
        seeds.push((result, adjoint.parameter(region.ty(result).clone())));
        operands.push(cotangent);
    }
    let inputs: Vec<Value> = select(region.parameters(), wanted);
    let gradients = reverse(&mut adjoint, &seeds, &inputs)?;
    adjoint.set_results(gradients.iter().copied().flatten().collect());
    let mut values = inline_live(graph, &adjoint, &operands)?.into_iter();
    let mut gradients = gradients.into_iter();
    let one = |&wanted: &bool| {
        let gradient = if wanted { gradients.next().flatten() } else { None };
        gradient.and_then(|_| values.next())
    };
    Ok(wanted.iter().map(one).collect())
}

fn select<T: Copy>(items: &[T], chosen: &[bool]) -> Vec<T> {
    items.iter().zip(chosen).filter(|(_, chosen)| **chosen).map(|(&item, _)| item).collect()
}
