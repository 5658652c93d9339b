//! Vectorisation: a region that is written for one element, applied to all positions of some leading axes
//! at once. Values that depend on no batched argument are computed once.

use tilewright_ir::{
    AssociativeScan, DType, DotAxes, Error, ErrorKind, Graph, Node, Op, Result, Type, Value,
};

use crate::emit::Emit;

/// A value, and whether it has the leading axes in front of its own.
type Batched = (Value, bool);

/// The most positions for which an operation without a vectorised form is repeated.
const REPEAT_LIMIT: usize = 4096;

/// Inlines `region`, vectorised over axes of extents `leading`. An argument paired with `true` has these
/// axes in front of its parameter's; so has a result paired with `true`. Only what the results need is
/// inlined.
///
/// Random numbers with batched keys and attention on batched arguments have no vectorised form: they are
/// repeated for each position, of which there may be 4,096 at most.
///
/// # Errors
/// Where an argument's type is not its parameter's, an array would be too large, or too many repetitions
/// would be needed.
pub fn batch(
    graph: &mut Graph,
    region: &Graph,
    leading: &[usize],
    arguments: &[(Value, bool)],
) -> Result<Vec<(Value, bool)>> {
    if arguments.len() != region.parameters().len() {
        return Err(Error::shape("arguments", region.parameters().len(), arguments.len()));
    }
    let mut map: Vec<Option<Batched>> = vec![None; region.value_count()];
    for (i, (&parameter, &(argument, batched))) in region.parameters().iter().zip(arguments).enumerate() {
        let ty = region.ty(parameter);
        let expected = if batched { with_leading(leading, ty) } else { ty.clone() };
        if expected != *graph.ty(argument) {
            return Err(Error::shape(format!("argument {i}"), expected, graph.ty(argument)));
        }
        map[parameter.index()] = Some((argument, batched));
    }
    let live = live_nodes(region, region.results());
    for (node, _) in region.nodes().iter().zip(live).filter(|(_, live)| *live) {
        let operands: Vec<Batched> =
            node.operands.iter().map(|value| map[value.index()].expect("operands come first")).collect();
        let mut emit = Emit::new(graph, node.origin.clone());
        let results = if operands.iter().any(|&(_, batched)| batched) {
            let values = batch_node(&mut emit, region, node, leading, &operands)?;
            values.into_iter().map(|value| (value, true)).collect::<Vec<_>>()
        } else {
            let operands: Vec<Value> = operands.into_iter().map(|(value, _)| value).collect();
            emit.ops(node.op.clone(), &operands)?.into_iter().map(|value| (value, false)).collect()
        };
        for (result, value) in node.results.iter().zip(results) {
            map[result.index()] = Some(value);
        }
    }
    Ok(region.results().iter().map(|value| map[value.index()].expect("results are live")).collect())
}

/// Copies what the results of `region` need to the end of `graph`, with `arguments` for its parameters.
pub(crate) fn inline_live(graph: &mut Graph, region: &Graph, arguments: &[Value]) -> Result<Vec<Value>> {
    let arguments: Vec<Batched> = arguments.iter().map(|&value| (value, false)).collect();
    Ok(batch(graph, region, &[], &arguments)?.into_iter().map(|(value, _)| value).collect())
}

/// The region without what its results do not need. It keeps all its parameters.
pub(crate) fn prune(region: &Graph) -> Result<Graph> {
    let mut pruned = Graph::new();
    let parameters: Vec<Value> =
        region.parameter_types().into_iter().map(|ty| pruned.parameter(ty.clone())).collect();
    let results = inline_live(&mut pruned, region, &parameters)?;
    pruned.set_results(results);
    Ok(pruned)
}

/// For each node whether one of `values` needs it.
pub(crate) fn live_nodes(graph: &Graph, values: &[Value]) -> Vec<bool> {
    let mut needed = vec![false; graph.value_count()];
    values.iter().for_each(|value| needed[value.index()] = true);
    let mut live = vec![false; graph.nodes().len()];
    for (id, node) in graph.nodes().iter().enumerate().rev() {
        live[id] = node.results.iter().any(|result| needed[result.index()]);
        if live[id] {
            node.operands.iter().for_each(|operand| needed[operand.index()] = true);
        }
    }
    live
}

fn with_leading(leading: &[usize], ty: &Type) -> Type {
    Type::new(ty.dtype, [leading, &ty.shape].concat())
}

/// `value` with the leading axes.
fn expand(e: &mut Emit, leading: &[usize], (value, batched): Batched) -> Result<Value> {
    if batched {
        return Ok(value);
    }
    let shape = [leading, &e.shape(value)[..]].concat();
    let missing: Vec<usize> = (0..leading.len()).collect();
    e.repeat(value, &shape, &missing)
}

/// One node with at least one batched operand. Its results are batched.
fn batch_node(
    e: &mut Emit,
    region: &Graph,
    node: &Node,
    leading: &[usize],
    operands: &[Batched],
) -> Result<Vec<Value>> {
    let n = leading.len();
    let shifted = |axes: &[usize]| axes.iter().map(|axis| axis + n).collect::<Vec<_>>();
    let before = |first: usize, list: &[usize]| [&vec![first; n][..], list].concat();
    let op = match &node.op {
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_) | Op::StopGradient => {
            node.op.clone()
        }
        Op::Broadcast { shape, axes } => {
            Op::Broadcast { shape: [leading, shape].concat(), axes: (0..n).chain(shifted(axes)).collect() }
        }
        Op::Reshape { shape } => Op::Reshape { shape: [leading, shape].concat() },
        Op::Transpose { permutation } => {
            Op::Transpose { permutation: (0..n).chain(shifted(permutation)).collect() }
        }
        Op::Slice { start, limit, step } => {
            Op::Slice { start: before(0, start), limit: [leading, limit].concat(), step: before(1, step) }
        }
        Op::Pad { low, high, interior } => {
            let pad = Op::Pad { low: before(0, low), high: before(0, high), interior: before(0, interior) };
            if operands[1].1 {
                return Ok(vec![pad_with_batched(e, leading, pad, operands)?]);
            }
            let array = expand(e, leading, operands[0])?;
            return Ok(vec![e.op(pad, &[array, operands[1].0])?]);
        }
        Op::Reverse { axes } => Op::Reverse { axes: shifted(axes) },
        Op::Concatenate { axis } => Op::Concatenate { axis: axis + n },
        Op::Reduce { kind, axes } => Op::Reduce { kind: *kind, axes: shifted(axes) },
        Op::ArgMax { axis } => Op::ArgMax { axis: axis + n },
        Op::Dot(axes) => return Ok(vec![batch_dot(e, region, node, axes, n, operands)?]),
        Op::Gather | Op::ScatterAdd { .. } => return Ok(vec![batch_indexed(e, node, leading, operands)?]),
        Op::AssociativeScan(scan) => return batch_scan(e, scan, leading, operands),
        Op::RandomBits { .. } | Op::FlexAttention(_) | Op::FlexAttentionBackward(_) => {
            return repeat(e, node, leading, operands);
        }
        Op::Constant(_) | Op::Iota { .. } => unreachable!("has no operands"),
    };
    let operands: Vec<Value> =
        operands.iter().map(|&operand| expand(e, leading, operand)).collect::<Result<_>>()?;
    e.ops(op, &operands)
}

/// A pad whose filling differs between positions.
fn pad_with_batched(e: &mut Emit, leading: &[usize], pad: Op, operands: &[Batched]) -> Result<Value> {
    let array = expand(e, leading, operands[0])?;
    let blank = e.splat(&Type::scalar(e.dtype(array)), 0i64)?;
    let padded = e.op(pad.clone(), &[array, blank])?;
    let inside = e.splat(&Type::new(DType::Bool, e.shape(array)), true)?;
    let outside = e.splat(&Type::scalar(DType::Bool), false)?;
    let inside = e.op(pad, &[inside, outside])?;
    let axes: Vec<usize> = (0..leading.len()).collect();
    let filling = e.broadcast(operands[1].0, &e.shape(padded), &axes)?;
    e.select(inside, padded, filling)
}

/// A product: the leading axes are batch axes if both operands have them, else free axes of the one that
/// does, which are then brought to the front.
fn batch_dot(
    e: &mut Emit,
    region: &Graph,
    node: &Node,
    axes: &DotAxes,
    n: usize,
    operands: &[Batched],
) -> Result<Value> {
    let [(left, left_batched), (right, right_batched)] = [operands[0], operands[1]];
    let shift = |axes: &[usize], by: usize| axes.iter().map(|axis| axis + by).collect::<Vec<_>>();
    let (l, r) = (if left_batched { n } else { 0 }, if right_batched { n } else { 0 });
    let mut batched = DotAxes {
        left_batch: shift(&axes.left_batch, l),
        right_batch: shift(&axes.right_batch, r),
        left_contract: shift(&axes.left_contract, l),
        right_contract: shift(&axes.right_contract, r),
    };
    if left_batched && right_batched {
        batched.left_batch.splice(0..0, 0..n);
        batched.right_batch.splice(0..0, 0..n);
        return e.dot(left, right, batched);
    }
    let product = e.dot(left, right, batched)?;
    let ahead = if left_batched {
        axes.left_batch.len()
    } else {
        axes.left_batch.len() + axes.left_free(region.ty(node.operands[0]).rank()).len()
    };
    let rank = e.graph.ty(product).rank();
    let order: Vec<usize> = (ahead..ahead + n).chain(0..ahead).chain(ahead + n..rank).collect();
    e.transpose(product, &order)
}

/// A gather or scatter: the position on the leading axes joins the indices.
fn batch_indexed(e: &mut Emit, node: &Node, leading: &[usize], operands: &[Batched]) -> Result<Value> {
    let (array, indices) = operands.split_first().expect("an indexed operation has an array");
    let gather = matches!(node.op, Op::Gather);
    if gather && !array.1 {
        let mut values = vec![array.0];
        for &index in indices {
            values.push(expand(e, leading, index)?);
        }
        return e.op(Op::Gather, &values);
    }
    let mut own: Vec<Value> =
        indices.iter().map(|&index| expand(e, leading, index)).collect::<Result<_>>()?;
    // An unsigned byte could not count the positions.
    for index in &mut own {
        if e.dtype(*index) == DType::U8 {
            *index = e.cast(*index, DType::I32)?;
        }
    }
    let (dtype, shape) =
        own.first().map_or((DType::I64, leading.to_vec()), |&index| (e.dtype(index), e.shape(index)));
    let mut values = vec![expand(e, leading, *array)?];
    for axis in 0..leading.len() {
        values.push(e.op(Op::Iota { dtype, shape: shape.clone(), axis }, &[])?);
    }
    values.extend(own);
    match &node.op {
        Op::ScatterAdd { shape } => e.op(Op::ScatterAdd { shape: [leading, shape].concat() }, &values),
        _ => e.op(Op::Gather, &values),
    }
}

/// A scan: its region is vectorised too.
fn batch_scan(
    e: &mut Emit,
    scan: &AssociativeScan,
    leading: &[usize],
    operands: &[Batched],
) -> Result<Vec<Value>> {
    let mut values = Vec::new();
    for (i, &operand) in operands.iter().enumerate() {
        values.push(if i < scan.leaves { expand(e, leading, operand)? } else { operand.0 });
    }
    let mut combine = Graph::new();
    let mut arguments = Vec::new();
    for (i, ty) in scan.combine.parameter_types().into_iter().enumerate() {
        let batched = i < 2 * scan.leaves || operands[i - scan.leaves].1;
        let ty = if batched { with_leading(leading, ty) } else { ty.clone() };
        arguments.push((combine.parameter(ty), batched));
    }
    let results = batch(&mut combine, &scan.combine, leading, &arguments)?;
    let mut inner = Emit::new(&mut combine, e.origin.clone());
    let results =
        results.into_iter().map(|result| expand(&mut inner, leading, result)).collect::<Result<_>>()?;
    combine.set_results(results);
    let scan = AssociativeScan {
        combine,
        leaves: scan.leaves,
        axis: scan.axis + leading.len(),
        reverse: scan.reverse,
    };
    e.ops(Op::AssociativeScan(Box::new(scan)), &values)
}

/// The node once for each position, the results stacked.
fn repeat(e: &mut Emit, node: &Node, leading: &[usize], operands: &[Batched]) -> Result<Vec<Value>> {
    let positions: usize = leading.iter().product();
    if positions > REPEAT_LIMIT {
        let what = format!("repetitions of {} in a vectorised region", node.op.name());
        return Err(Error::new(ErrorKind::Limit { what, limit: REPEAT_LIMIT }).at(node.origin.clone()));
    }
    let mut flat = Vec::new();
    for &(value, batched) in operands {
        let own = if batched { e.shape(value)[leading.len()..].to_vec() } else { vec![] };
        let value = if batched { e.reshape(value, &[&[positions], &own[..]].concat())? } else { value };
        flat.push((value, batched, own));
    }
    let mut parts: Vec<Vec<Value>> = vec![Vec::new(); node.results.len()];
    for position in 0..positions {
        let mut values = Vec::new();
        for (value, batched, own) in &flat {
            values.push(if *batched {
                let slice = e.slice_axis(*value, 0, position, position + 1)?;
                e.reshape(slice, own)?
            } else {
                *value
            });
        }
        for (result, parts) in e.ops(node.op.clone(), &values)?.into_iter().zip(&mut parts) {
            let row = [&[1], &e.shape(result)[..]].concat();
            parts.push(e.reshape(result, &row)?);
        }
    }
    let mut results = Vec::new();
    for parts in parts {
        let stacked = e.op(Op::Concatenate { axis: 0 }, &parts)?;
        let own = e.shape(stacked)[1..].to_vec();
        results.push(e.reshape(stacked, &[leading, &own].concat())?);
    }
    Ok(results)
}
