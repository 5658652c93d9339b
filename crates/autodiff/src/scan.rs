//! Derivatives of scans.
//!
//! Reverse mode. The cotangents λ of the states are a scan in the other direction ([`crate::jacobian`]).
//! With them, the cotangents of elements and captures are those of one step, y_t = f(y_{t−1}, x_t), taken at
//! all positions at once: the combine function is vectorised over the scan axis and differentiated. The
//! first position has no left state; there x stands in for it, λ is passed on as it is, and zero is fed to
//! the step. Nothing is kept but arrays of the leaves' size (times the columns of mixed axes): memory is
//! linear in the length.
//!
//! Forward mode: pairs of states and tangents combine by `((l, l'), (r, r')) -> (f(l, r), f'(l, r; l', r'))`,
//! which is associative because f is; so the derivative is a scan again.
//!
//! Both yield ordinary operations and scans, so higher derivatives are taken the same way.

use tilewright_ir::{AssociativeScan, Compare, DType, Graph, Node, Op, Result, Type, Value};

use crate::batch::{axis_from_front, axis_to_front, batch, prune};
use crate::emit::Emit;
use crate::forward::forward;
use crate::jacobian::{Steps, state_cotangents};
use crate::reverse::pull_back;

/// The cotangents of leaves and captures.
pub(crate) fn vjp(
    e: &mut Emit,
    scan: &AssociativeScan,
    node: &Node,
    cotangents: &[Option<Value>],
    wanted: &[bool],
) -> Result<Vec<Option<Value>>> {
    let (leaves, captures) = node.operands.split_at(scan.leaves);
    let length = e.graph.ty(leaves[0]).shape[scan.axis];
    if length == 0 {
        let cotangent = |i: usize| cotangents.get(i).copied().flatten().filter(|_| wanted[i]);
        return Ok((0..wanted.len()).map(cotangent).collect());
    }
    let elements = to_front(e, leaves, scan.axis)?;
    let states = to_front(e, &node.results, scan.axis)?;
    let mut arriving = Vec::new();
    for &cotangent in cotangents {
        arriving.push(match cotangent {
            Some(cotangent) => Some(axis_to_front(e, cotangent, scan.axis)?),
            None => None,
        });
    }
    let mut arguments = Vec::new();
    for (&element, &state) in elements.iter().zip(&states) {
        arguments.push(previous(e, scan, state, element)?);
    }
    arguments.extend(&elements);
    arguments.extend(captures);
    let steps = Steps { scan, graph: steps(e, scan, length)?, length, arguments };

    let states = state_cotangents(e, &steps, &arriving)?;
    let mut inner = Vec::new();
    for &state in &states {
        inner.push(match state {
            Some(state) => {
                let first = is_first(e, scan, state)?;
                Some(e.replace(first, 0.0, state)?)
            }
            None => None,
        });
    }
    let wanted_arguments = [&vec![false; scan.leaves][..], wanted].concat();
    let pulled = pull_back(e.graph, &steps.graph, &steps.arguments, &inner, &wanted_arguments)?;
    let mut gradients = pulled[scan.leaves..].to_vec();
    for i in (0..scan.leaves).filter(|&i| wanted[i]) {
        let Some(state) = states[i] else { continue };
        let first = is_first(e, scan, state)?;
        let later = gradients[i].map_or_else(|| e.like(state, 0.0), Ok)?;
        gradients[i] = Some(e.select(first, state, later)?);
    }
    for gradient in gradients[..scan.leaves].iter_mut().flatten() {
        *gradient = axis_from_front(e, *gradient, scan.axis)?;
    }
    Ok(gradients)
}

fn to_front(e: &mut Emit, values: &[Value], axis: usize) -> Result<Vec<Value>> {
    values.iter().map(|&value| axis_to_front(e, value, axis)).collect()
}

/// Where the position along axis 0 is the scan's first, at every element of an array like `x`.
fn is_first(e: &mut Emit, scan: &AssociativeScan, x: Value) -> Result<Value> {
    let shape = e.shape(x);
    let first = if scan.reverse { shape[0] as i64 - 1 } else { 0 };
    let position = e.op(Op::Iota { dtype: DType::I64, shape: shape.clone(), axis: 0 }, &[])?;
    let first = e.splat(&Type::new(DType::I64, shape), first)?;
    e.compare(Compare::Eq, position, first)
}

/// The state at the previous position; at the first, the element.
fn previous(e: &mut Emit, scan: &AssociativeScan, states: Value, elements: Value) -> Result<Value> {
    let length = e.graph.ty(states).shape[0];
    let moved = if scan.reverse {
        let rest = e.slice_axis(states, 0, 1, length)?;
        e.pad_axis(rest, 0, 0, 1)?
    } else {
        let rest = e.slice_axis(states, 0, 0, length - 1)?;
        e.pad_axis(rest, 0, 1, 0)?
    };
    let first = is_first(e, scan, states)?;
    e.select(first, elements, moved)
}

/// The combine function vectorised over `length` positions in front; captures are shared.
fn steps(e: &Emit, scan: &AssociativeScan, length: usize) -> Result<Graph> {
    let mut graph = Graph::new();
    let mut arguments = Vec::new();
    for (i, ty) in scan.combine.parameter_types().into_iter().enumerate() {
        let batched = i < 2 * scan.leaves;
        let shape = if batched { [&[length], &ty.shape[..]].concat() } else { ty.shape.clone() };
        arguments.push((graph.parameter(Type::new(ty.dtype, shape)), batched));
    }
    let mut results = Vec::new();
    for (value, batched) in batch(&mut graph, &scan.combine, &[length], &arguments)? {
        let mut inner = Emit::new(&mut graph, e.origin.clone());
        let shape = [&[length], &inner.shape(value)[..]].concat();
        results.push(if batched { value } else { inner.repeat(value, &shape, &[0])? });
    }
    graph.set_results(results);
    Ok(graph)
}

/// The tangents of the states.
pub(crate) fn jvp(
    e: &mut Emit,
    scan: &AssociativeScan,
    node: &Node,
    tangents: &[Option<Value>],
) -> Result<Vec<Option<Value>>> {
    let (leaves, captures) = node.operands.split_at(scan.leaves);
    let mut active: Vec<bool> = tangents[..scan.leaves].iter().map(Option::is_some).collect();
    let learned: Vec<bool> = tangents[scan.leaves..].iter().map(Option::is_some).collect();
    let combine = loop {
        let (combine, reached) = pairs(scan, &active, &learned, e)?;
        if reached == active {
            break combine;
        }
        active = reached;
    };
    let mut operands = leaves.to_vec();
    for i in (0..scan.leaves).filter(|&i| active[i]) {
        operands.push(tangents[i].map_or_else(|| e.like(leaves[i], 0.0), Ok)?);
    }
    let count = operands.len();
    operands.extend(captures);
    operands.extend(tangents[scan.leaves..].iter().flatten());
    if count == scan.leaves {
        return Ok(vec![None; scan.leaves]);
    }
    let pair_scan = AssociativeScan { combine, leaves: count, axis: scan.axis, reverse: scan.reverse };
    let results = e.ops(Op::AssociativeScan(Box::new(pair_scan)), &operands)?;
    let mut tangents = results[scan.leaves..].iter().copied();
    Ok(active.into_iter().map(|active| if active { tangents.next() } else { None }).collect())
}

/// The combine function of states and tangents of the `active` leaves, for tangents of the `learned`
/// captures; and which leaves have tangents after it.
fn pairs(scan: &AssociativeScan, active: &[bool], learned: &[bool], e: &Emit) -> Result<(Graph, Vec<bool>)> {
    let mut graph = Graph::new();
    let types = scan.combine.parameter_types();
    let mut arguments = Vec::new();
    let mut inputs = Vec::new();
    for (types, has_tangent) in [
        (&types[..scan.leaves], active),
        (&types[scan.leaves..2 * scan.leaves], active),
        (&types[2 * scan.leaves..], learned),
    ] {
        let primals: Vec<Value> = types.iter().map(|&ty| graph.parameter(ty.clone())).collect();
        for (i, &primal) in primals.iter().enumerate().filter(|(i, _)| has_tangent[*i]) {
            inputs.push((primal, graph.parameter(types[i].clone())));
        }
        arguments.extend(primals);
    }
    let mut results = graph.inline(&scan.combine, &arguments)?;
    let tangents = forward(&mut graph, &inputs, &results)?;
    let reached: Vec<bool> = active.iter().zip(&tangents).map(|(&a, t)| a || t.is_some()).collect();
    let mut inner = Emit::new(&mut graph, e.origin.clone());
    for i in (0..scan.leaves).filter(|&i| active[i]) {
        let tangent = tangents[i].map_or_else(|| inner.like(results[i], 0.0), Ok)?;
        results.push(tangent);
    }
    graph.set_results(results);
    Ok((prune(&graph)?, reached))
}
