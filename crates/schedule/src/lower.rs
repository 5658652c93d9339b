//! From a graph to a plan.

use tilewright_ir::{Error, ErrorKind, Graph, NodeId, Op, Origin, Result, Value};
use tilewright_plan::loops::{Lanes, Phase, Sink, Source};
use tilewright_plan::{Kernel, Kind, Loops, Operation, Place, Plan, Program, ScatterAdd, View};

use crate::access::{Affine, Valid};
use crate::arrays::{Arrays, reach};
use crate::fuse::{Fusion, Step, fuse};
use crate::normalise::normalise;
use crate::{Operand, attention, buffers, contraction, emit, parts, scan};

/// How an input lies in the bytes that it is given in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Elements between neighbours along each axis; 0 repeats, negative runs backwards.
    pub strides: Vec<isize>,
    /// The element at the origin.
    pub offset: isize,
}

/// Lowers a graph to a plan, given how each of its parameters lies in memory.
///
/// # Errors
/// [`ErrorKind::Layout`] where a layout has not one stride per axis or reaches below its first element;
/// [`ErrorKind::Limit`] where the program is too large; those of the higher-order operations.
pub fn lower(graph: &Graph, inputs: &[Layout]) -> Result<Plan> {
    if inputs.len() != graph.parameters().len() {
        return Err(Error::shape("layouts", graph.parameters().len(), inputs.len()));
    }
    let normal = normalise(graph, inputs)?;
    let Fusion { steps, stored, made } = fuse(&normal);
    let mut arrays = Arrays::new(&normal, made);
    for (number, (&parameter, layout)) in normal.graph.parameters().iter().zip(inputs).enumerate() {
        let shape = arrays.shape(parameter);
        let elements = input_elements(number, layout, shape)?;
        let strided = (*layout != Layout::packed(shape)).then(|| layout.clone());
        arrays.give(parameter, elements, Place::Input(number), strided);
    }
    for (number, &result) in normal.graph.results().iter().enumerate() {
        arrays.give(result, arrays.ty(result).elements(), Place::Output(number), None);
    }
    let parts = parts::of(&normal);
    for node in normal.graph.nodes() {
        for &value in &node.results {
            let own = !parts.contains_key(&value);
            if stored[value.index()] && arrays.home(value).is_none() && own {
                let place = match &node.op {
                    Op::Constant(literal) => Place::Constant(literal.clone()),
                    _ => Place::Arena(0),
                };
                arrays.give(value, arrays.ty(value).elements(), place, None);
            }
        }
    }
    for (&part, (whole, layout)) in &parts {
        if let (true, Some(buffer)) = (stored[part.index()], arrays.home(*whole)) {
            arrays.give_within(part, buffer, layout.clone());
        }
    }
    let mut block_maps = attention::BlockMaps::default();
    let mut kernels = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Cluster(cluster) => kernels.push(Kernel::Loops(emit::emit(&arrays, cluster, number))),
            Step::Single(node) => kernels.extend(single(&arrays, *node, &mut block_maps)?),
        }
    }
    scan::fuse(&mut kernels, &arrays.buffers);
    let mut plan = Plan { buffers: arrays.buffers, kernels, block_maps: block_maps.count(), arena_bytes: 0 };
    buffers::place(&mut plan);
    Ok(plan)
}

pub(crate) fn input_elements(number: usize, layout: &Layout, shape: &[usize]) -> Result<usize> {
    let refused = |message: &str| {
        Error::new(ErrorKind::Layout { argument: format!("input {number}"), message: message.into() })
    };
    if layout.strides.len() != shape.len() {
        return Err(refused(&format!("{} strides for {} axes", layout.strides.len(), shape.len())));
    }
    reach(layout, shape).ok_or_else(|| refused("its strides reach outside the array"))
}

/// The kernels of an operation that is not fused.
fn single(arrays: &Arrays, id: NodeId, block_maps: &mut attention::BlockMaps) -> Result<Vec<Kernel>> {
    let node = arrays.graph.node(id);
    let operands = || -> Vec<Operand> { node.operands.iter().map(|&value| arrays.operand(value)).collect() };
    let results = || -> Vec<Option<View>> {
        node.results.iter().map(|&value| arrays.home(value).map(|_| arrays.view(value))).collect()
    };
    let origin = &node.origin;
    match &node.op {
        Op::Dot(axes) => {
            Ok(vec![Kernel::MatMul(contraction::lower(arrays, axes, &node.operands, node.results[0]))])
        }
        Op::ScatterAdd { shape } => {
            Ok(vec![Kernel::ScatterAdd(scatter(arrays, shape, &node.operands, node.results[0], origin))])
        }
        Op::Concatenate { axis } => Ok(concatenate(arrays, *axis, &node.operands, node.results[0])),
        Op::Pad { low, interior, .. } => Ok(pad(arrays, low, interior, &node.operands, node.results[0])),
        Op::FlexAttention(attention) => {
            attention::lower_forward(attention, &operands(), &results(), block_maps, origin)
        }
        Op::FlexAttentionBackward(attention) => {
            attention::lower_backward(attention, &operands(), &results(), block_maps, origin)
        }
        Op::AssociativeScan(scan) => {
            let windows: Vec<Option<Valid>> =
                node.operands.iter().map(|value| arrays.accesses[value.index()].valid.clone()).collect();
            let kernels = scan::lower(scan, &operands(), &windows, &results(), origin)?;
            Ok(kernels.into_iter().map(Kernel::Scan).collect())
        }
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
        | Op::Reverse { .. }
        | Op::Reduce { .. }
        | Op::ArgMax { .. }
        | Op::Gather
        | Op::RandomBits { .. } => unreachable!("the fuser puts {} into clusters", node.op.name()),
    }
}

fn scatter(
    arrays: &Arrays,
    shape: &[usize],
    operands: &[Value],
    result: Value,
    origin: &Option<Origin>,
) -> ScatterAdd {
    let (updates, indices) = (operands[0], &operands[1..]);
    let (indexed, tail) = shape.split_at(indices.len());
    let updates_shape = arrays.shape(updates);
    ScatterAdd {
        space: updates_shape[..updates_shape.len() - tail.len()].to_vec(),
        indexed: indexed.to_vec(),
        tail: tail.to_vec(),
        indices: indices.iter().map(|&index| (arrays.view(index), arrays.dtype(index))).collect(),
        dtype: arrays.dtype(result),
        updates: arrays.view(updates),
        output: arrays.view(result),
        origin: origin.clone(),
    }
}

/// One copy per operand, each to its part of the result, but for what is made there.
fn concatenate(arrays: &Arrays, axis: usize, operands: &[Value], result: Value) -> Vec<Kernel> {
    let mut part = arrays.view(result);
    let mut kernels = Vec::new();
    for &operand in operands {
        if arrays.home(arrays.accesses[operand.index()].base) != Some(part.buffer) {
            kernels.push(copy(arrays, operand, arrays.shape(operand), part.clone()));
        }
        part.offset += part.strides[axis] * arrays.shape(operand)[axis] as isize;
    }
    kernels
}

/// The padding value everywhere, then the operand over it.
fn pad(arrays: &Arrays, low: &[usize], interior: &[usize], operands: &[Value], result: Value) -> Vec<Kernel> {
    let whole = arrays.view(result);
    let mut part = whole.clone();
    for axis in 0..low.len() {
        part.offset += whole.strides[axis] * low[axis] as isize;
        part.strides[axis] *= interior[axis] as isize + 1;
    }
    vec![
        copy(arrays, operands[1], arrays.shape(result), whole),
        copy(arrays, operands[0], arrays.shape(operands[0]), part),
    ]
}

/// Stores a value, or a number everywhere, to a part of a buffer that has the extents `space`.
fn copy(arrays: &Arrays, value: Value, space: &[usize], to: View) -> Kernel {
    let dtype = arrays.dtype(value);
    let kind = Kind::of(dtype);
    let access = &arrays.accesses[value.index()];
    let rank = space.len();
    let at: Vec<Affine> = (0..arrays.shape(value).len()).map(|axis| Affine::axis(axis, rank)).collect();
    let mut program = Program::default();
    let (register, sources) = match arrays.graph.constant(access.base).and_then(|literal| literal.splat()) {
        Some(number) if access.valid.is_none() => (program.push(Operation::Constant(number), kind), vec![]),
        _ => {
            let view = arrays.locate(access, &at, rank);
            let source = Source::Load { view, dtype, valid: access.valid.clone() };
            (program.push(Operation::Input(0), kind), vec![source])
        }
    };
    program.results = vec![register];
    let sinks = vec![Sink::Store { view: to, dtype }];
    Kernel::Loops(Loops {
        parallel: space.to_vec(),
        row: Vec::new(),
        phases: vec![Phase { once: false, program, sources, sinks }],
        row_scalars: 0,
        row_values: 0,
        tables: Vec::new(),
        lanes: Lanes::Parallel,
    })
}
