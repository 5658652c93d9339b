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

use crate::batch::{batch, prune};
use crate::emit::Emit;
use crate::forward::forward;
use crate::insert::{can_insert, insert_axis, inserted, with_axis};
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
    let batched: Vec<bool> = (0..scan.leaves + wanted.len()).map(|i| i < 2 * scan.leaves).collect();
    let axis = if can_insert(&scan.combine, scan.axis, &batched) { scan.axis } else { 0 };
    let arrange = |e: &mut Emit, x: Value| move_axis(e, x, scan.axis, axis);
    let mut arriving = Vec::new();
    for &cotangent in cotangents {
        arriving.push(cotangent.map(|cotangent| arrange(e, cotangent)).transpose()?);
    }
    let mut firsts = Firsts { first: if scan.reverse { length - 1 } else { 0 }, axis, made: Vec::new() };
    let mut previous_states = Vec::new();
    let mut elements = Vec::new();
    for (&element, &state) in leaves.iter().zip(&node.results) {
        let (element, state) = (arrange(e, element)?, arrange(e, state)?);
        let first = firsts.like(e, state)?;
        previous_states.push(previous(e, scan, axis, (first, element), state)?);
        elements.push(element);
    }
    let arguments = [&previous_states[..], &elements, captures].concat();
    let steps = Steps { scan, graph: steps(e, scan, length, axis, &batched)?, length, axis, arguments };

    let states = state_cotangents(e, &steps, &arriving)?;
    let mut inner = Vec::new();
    for &state in &states {
        inner.push(match state {
            Some(state) => {
                let first = firsts.like(e, state)?;
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
        let first = firsts.like(e, state)?;
        let later = gradients[i].map_or_else(|| e.like(state, 0.0), Ok)?;
        gradients[i] = Some(e.select(first, state, later)?);
    }
    for gradient in gradients[..scan.leaves].iter_mut().flatten() {
        *gradient = move_axis(e, *gradient, axis, scan.axis)?;
    }
    Ok(gradients)
}

/// `x` with its axis `from` moved to position `to`.
fn move_axis(e: &mut Emit, x: Value, from: usize, to: usize) -> Result<Value> {
    let mut order: Vec<usize> = (0..e.graph.ty(x).rank()).collect();
    let axis = order.remove(from);
    order.insert(to, axis);
    e.transpose(x, &order)
}

/// Where the position along `axis` is the scan's first, at every element of an array: one value for each shape.
struct Firsts {
    first: usize,
    axis: usize,
    made: Vec<(Vec<usize>, Value)>,
}

impl Firsts {
    /// For an array like `x`.
    fn like(&mut self, e: &mut Emit, x: Value) -> Result<Value> {
        let shape = e.shape(x);
        if let Some((_, first)) = self.made.iter().find(|(made, _)| *made == shape) {
            return Ok(*first);
        }
        let position = e.op(Op::Iota { dtype: DType::I64, shape: shape.clone(), axis: self.axis }, &[])?;
        let first = e.splat(&Type::new(DType::I64, shape.clone()), self.first as i64)?;
        let first = e.compare(Compare::Eq, position, first)?;
        self.made.push((shape, first));
        Ok(first)
    }
}

/// The state at the previous position; at the first, the element.
fn previous(
    e: &mut Emit,
    scan: &AssociativeScan,
    axis: usize,
    (first, elements): (Value, Value),
    states: Value,
) -> Result<Value> {
    let length = e.graph.ty(states).shape[axis];
    let moved = if scan.reverse {
        let rest = e.slice_axis(states, axis, 1, length)?;
        e.pad_axis(rest, axis, 0, 1)?
    } else {
        let rest = e.slice_axis(states, axis, 0, length - 1)?;
        e.pad_axis(rest, axis, 1, 0)?
    };
    e.select(first, elements, moved)
}

/// The combine function at `length` positions of `axis`, which the parameters that are `batched` have: the
/// captures are shared.
fn steps(e: &Emit, scan: &AssociativeScan, length: usize, axis: usize, batched: &[bool]) -> Result<Graph> {
    let mut graph = Graph::new();
    let mut arguments = Vec::new();
    for (ty, &batched) in scan.combine.parameter_types().into_iter().zip(batched) {
        let shape = if batched { inserted(&ty.shape, length, axis) } else { ty.shape.clone() };
        arguments.push((graph.parameter(Type::new(ty.dtype, shape)), batched));
    }
    let results = if axis == 0 {
        batch(&mut graph, &scan.combine, &[length], &arguments)?
    } else {
        insert_axis(&mut graph, &scan.combine, length, axis, &arguments)?
    };
    let mut inner = Emit::new(&mut graph, e.origin.clone());
    let results = results
        .into_iter()
        .map(|result| with_axis(&mut inner, length, axis, result))
        .collect::<Result<_>>()?;
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
