//! The adjoint recurrence of a scan as a scan.
//!
//! With y_t = f(y_{t−1}, x_t) and M_t = ∂f/∂left at (y_{t−1}, x_t), the states' cotangents are
//! λ_t = ḡ_t + M_{t+1}ᵀ λ_{t+1}: affine maps, whose composition is associative (Blelloch, "Prefix sums and
//! their applications", 1990). The scan's leaves are blocks of M and the parts of λ.
//!
//! M has a block for each pair of leaves (i, j) where output i depends on left argument j, and for each
//! pair that products of such blocks reach. Within a block only the elements that shapes allow to differ
//! from zero are kept: where an axis of leaf j is aligned with one of leaf i ([`crate::dependence`]), the
//! block is diagonal along it. A block therefore has leaf i's shape, followed by an axis for each *mixed*
//! axis of leaf j; for element-wise functions there are none, and products of blocks are element-wise.
//!
//! Columns come from forward mode with basis tangents: 1 along the aligned axes of one leaf (whose elements
//! do not meet there) and one-hot along its mixed ones. A block that is known to be 1 is not stored, and
//! where all blocks are diagonal, equal ones are stored once: a linear recurrence keeps two leaves.

use std::collections::BTreeMap;

use tilewright_ir::{AssociativeScan, Binary, Compare, DType, Graph, Op, Result, Type, Value};

use crate::batch::{batch, inline_live};
use crate::blocks::{self, Leaf};
use crate::dependence::{Alignment, alignments, join, proper_axes};
use crate::emit::Emit;
use crate::forward::forward;
use crate::insert::inserted;

/// One step of a scan at every position at once: a graph `(left…, right…, capture…) -> leaf…` whose leaves
/// have the scan axis at `axis`.
pub(crate) struct Steps<'a> {
    pub scan: &'a AssociativeScan,
    pub graph: Graph,
    pub length: usize,
    pub axis: usize,
    pub arguments: Vec<Value>,
}

/// The structure of M: its leaves, and the alignment of each block.
struct Structure {
    leaves: Vec<Leaf>,
    blocks: BTreeMap<(usize, usize), Alignment>,
}

/// How a block takes part in the adjoint scan.
#[derive(Clone, Copy)]
enum Slot {
    /// It is 1 everywhere.
    One,
    /// The scan's leaf of this number.
    Leaf(usize),
}

/// The cotangents λ of the states, from the cotangents of the results; leaves have the scan axis
/// where the steps have it.
pub(crate) fn state_cotangents(
    e: &mut Emit,
    steps: &Steps,
    cotangents: &[Option<Value>],
) -> Result<Vec<Option<Value>>> {
    let structure = structure(&steps.scan.combine, cotangents);
    if structure.blocks.is_empty() {
        return Ok(cotangents.to_vec());
    }
    let columns = columns(e, steps, &structure)?;
    let mut slots: BTreeMap<(usize, usize), Slot> = BTreeMap::new();
    let mut stored: Vec<((usize, usize), Value)> = Vec::new();
    let diagonal = structure.blocks.keys().all(|(i, j)| i == j);
    for &(i, j) in structure.blocks.keys() {
        let column = columns.get(&(i, j)).copied();
        let equal = |&(_, value): &((usize, usize), Value)| diagonal && Some(value) == column;
        let slot = match column {
            Some(value) if i == j && e.is_splat(value, 1.0) && structure.is_alone(i) => Slot::One,
            Some(_) if stored.iter().any(equal) => {
                Slot::Leaf(stored.iter().position(equal).expect("it was just seen"))
            }
            Some(value) => {
                stored.push(((i, j), value));
                Slot::Leaf(stored.len() - 1)
            }
            None => {
                let shape = inserted(&structure.block_shape(i, j), steps.length, steps.axis);
                let zeros = e.zeros(&Type::new(structure.leaves[i].ty.dtype, shape))?;
                stored.push(((i, j), zeros));
                Slot::Leaf(stored.len() - 1)
            }
        };
        slots.insert((i, j), slot);
    }

    let coupled: Vec<usize> = (0..structure.leaves.len())
        .filter(|&leaf| structure.blocks.keys().any(|&(i, j)| i == leaf || j == leaf))
        .collect();
    let mut operands = Vec::new();
    for &(_, value) in &stored {
        operands.push(next(e, steps, value)?);
    }
    for &leaf in &coupled {
        let ty = &structure.leaves[leaf].ty;
        let ty = Type::new(ty.dtype, inserted(&ty.shape, steps.length, steps.axis));
        operands.push(cotangents[leaf].map_or_else(|| e.zeros(&ty), Ok)?);
    }
    let scan = AssociativeScan {
        combine: combine(e, &structure, &slots, &stored, &coupled)?,
        leaves: operands.len(),
        axis: steps.axis,
        reverse: !steps.scan.reverse,
    };
    let results = e.ops(Op::AssociativeScan(Box::new(scan)), &operands)?;
    let mut states = cotangents.to_vec();
    for (&leaf, &state) in coupled.iter().zip(&results[stored.len()..]) {
        states[leaf] = Some(state);
    }
    Ok(states)
}

/// What stands at the next position (in the scan's direction), 0 after the last.
fn next(e: &mut Emit, steps: &Steps, x: Value) -> Result<Value> {
    if steps.scan.reverse {
        let rest = e.slice_axis(x, steps.axis, 0, steps.length - 1)?;
        e.pad_axis(rest, steps.axis, 1, 0)
    } else {
        let rest = e.slice_axis(x, steps.axis, 1, steps.length)?;
        e.pad_axis(rest, steps.axis, 0, 1)
    }
}

impl Structure {
    fn block_shape(&self, i: usize, j: usize) -> Vec<usize> {
        [&self.leaves[i].ty.shape[..], &self.leaves[j].mixed_extents()].concat()
    }

    /// Whether no product of other blocks adds to the block (i, i).
    fn is_alone(&self, i: usize) -> bool {
        let meets = |j: usize| self.blocks.contains_key(&(i, j)) && self.blocks.contains_key(&(j, i));
        (0..self.leaves.len()).all(|j| j == i || !meets(j))
    }
}

/// The blocks that matter for the leaves with cotangents, closed under products.
fn structure(region: &Graph, cotangents: &[Option<Value>]) -> Structure {
    let count = cotangents.len();
    let known: Vec<Vec<Option<Alignment>>> =
        region.parameters()[..count].iter().map(|&left| alignments(region, left)).collect();
    let mut relevant: Vec<bool> = cotangents.iter().map(Option::is_some).collect();
    let mut blocks: BTreeMap<(usize, usize), Alignment> = BTreeMap::new();
    let mut waiting: Vec<usize> = (0..count).filter(|&i| relevant[i]).collect();
    while let Some(i) = waiting.pop() {
        for j in 0..count {
            let Some(alignment) = &known[j][region.results()[i].index()] else { continue };
            if !region.ty(region.parameters()[j]).dtype.is_float() {
                continue;
            }
            blocks.insert((i, j), alignment.clone());
            if !std::mem::replace(&mut relevant[j], true) {
                waiting.push(j);
            }
        }
    }
    while let Some(more) = grow(&blocks) {
        blocks = more;
    }
    let leaves = (0..count)
        .map(|leaf| {
            let column = blocks.iter().filter(|((_, j), _)| *j == leaf).map(|(_, alignment)| alignment);
            let mixed =
                column.flat_map(|alignment| (0..alignment.len()).filter(|&axis| alignment[axis].is_none()));
            let mut mixed: Vec<usize> = mixed.collect();
            mixed.sort_unstable();
            mixed.dedup();
            Leaf { ty: region.ty(region.parameters()[leaf]).clone(), mixed }
        })
        .collect();
    Structure { leaves, blocks }
}

/// One round towards the closure: products of blocks, and an axis mixed in one block of a column mixed in
/// all. None once nothing changes; alignments only ever lose axes and blocks are only added, so it ends.
fn grow(blocks: &BTreeMap<(usize, usize), Alignment>) -> Option<BTreeMap<(usize, usize), Alignment>> {
    let mut grown = blocks.clone();
    for (&(i, j), outer) in blocks {
        for (&(from, k), inner) in blocks.iter().filter(|((from, _), _)| *from == j) {
            debug_assert_eq!(from, j);
            let product = inner.iter().map(|image| image.and_then(|axis| outer[axis])).collect();
            let joined = join(grown.get(&(i, k)).cloned(), product);
            grown.insert((i, k), joined);
        }
    }
    for (&(_, j), alignment) in &blocks.clone() {
        for ((_, other), images) in grown.iter_mut().filter(|((_, other), _)| *other == j) {
            debug_assert_eq!(*other, j);
            for (image, mine) in images.iter_mut().zip(alignment) {
                *image = image.filter(|_| mine.is_some());
            }
        }
    }
    (grown != *blocks).then_some(grown)
}

/// The blocks of M at every position that do not vanish.
fn columns(e: &mut Emit, steps: &Steps, structure: &Structure) -> Result<BTreeMap<(usize, usize), Value>> {
    let mut jacobian = steps.graph.clone();
    let parameters = jacobian.parameters().to_vec();
    let mut blocks = Vec::new();
    for (j, leaf) in structure.leaves.iter().enumerate() {
        let rows: Vec<usize> =
            structure.blocks.keys().filter(|(_, column)| *column == j).map(|&(i, _)| i).collect();
        if rows.is_empty() {
            continue;
        }
        let outputs: Vec<Value> = rows.iter().map(|&i| steps.graph.results()[i]).collect();
        let tangents = if leaf.mixed.is_empty() {
            let ones = Emit::new(&mut jacobian, e.origin.clone()).like(parameters[j], 1.0)?;
            forward(&mut jacobian, &[(parameters[j], ones)], &outputs)?
        } else {
            one_hot_columns(&mut jacobian, steps, j, leaf, &outputs)?
        };
        let present = rows.iter().zip(tangents).filter_map(|(&i, tangent)| Some(((i, j), tangent?)));
        blocks.extend(present);
    }
    jacobian.set_results(blocks.iter().map(|&(_, value)| value).collect());
    let values = inline_live(e.graph, &jacobian, &steps.arguments)?;
    Ok(blocks.iter().map(|&(block, _)| block).zip(values).collect())
}

/// The derivatives of `outputs` by left argument `j`, whose mixed axes come last.
fn one_hot_columns(
    jacobian: &mut Graph,
    steps: &Steps,
    j: usize,
    leaf: &Leaf,
    outputs: &[Value],
) -> Result<Vec<Option<Value>>> {
    let mut direction = steps.graph.clone();
    let tangent = direction.parameter(direction.ty(direction.parameters()[j]).clone());
    let tangents = forward(&mut direction, &[(steps.graph.parameters()[j], tangent)], outputs)?;
    direction.set_results(tangents.iter().copied().flatten().collect());

    let basis = leaf.mixed_extents();
    let mut arguments: Vec<(Value, bool)> =
        jacobian.parameters().iter().map(|&parameter| (parameter, false)).collect();
    let own = jacobian.ty(jacobian.parameters()[j]).clone();
    let mut e = Emit::new(jacobian, None);
    let shape = [&basis[..], &own.shape].concat();
    let proper = proper_axes(&leaf.ty.shape);
    let mut hot = e.splat(&Type::new(DType::Bool, shape.clone()), true)?;
    for (axis, &mixed) in leaf.mixed.iter().enumerate() {
        let basis_position = e.op(Op::Iota { dtype: DType::I64, shape: shape.clone(), axis }, &[])?;
        let own_axis = proper[mixed] + (proper[mixed] >= steps.axis) as usize;
        let axis = basis.len() + own_axis;
        let position = e.op(Op::Iota { dtype: DType::I64, shape: shape.clone(), axis }, &[])?;
        let equal = e.compare(Compare::Eq, basis_position, position)?;
        hot = e.binary(Binary::And, hot, equal)?;
    }
    arguments.push((e.cast(hot, own.dtype)?, true));
    let mut values = batch(e.graph, &direction, &basis, &arguments)?.into_iter();
    let mut columns = Vec::new();
    for tangent in tangents {
        let Some((value, batched)) = tangent.and_then(|_| values.next()) else {
            columns.push(None);
            continue;
        };
        let rank = e.graph.ty(value).rank();
        columns.push(Some(if batched {
            let order: Vec<usize> = (basis.len()..rank).chain(0..basis.len()).collect();
            e.transpose(value, &order)?
        } else {
            let shape = [&e.shape(value)[..], &basis].concat();
            let missing: Vec<usize> = (rank..rank + basis.len()).collect();
            e.repeat(value, &shape, &missing)?
        }));
    }
    Ok(columns)
}

/// The composition of two affine maps: (E, v) of the later position, then of the earlier one.
fn combine(
    e: &Emit,
    structure: &Structure,
    slots: &BTreeMap<(usize, usize), Slot>,
    stored: &[((usize, usize), Value)],
    coupled: &[usize],
) -> Result<Graph> {
    let leaves = &structure.leaves;
    let alignment = |i: usize, j: usize| &structure.blocks[&(i, j)][..];
    let mut graph = Graph::new();
    let mut side = || -> (Vec<Value>, Vec<Value>) {
        let blocks = stored.iter().map(|&((i, j), _)| {
            graph.parameter(Type::new(structure.leaves[i].ty.dtype, structure.block_shape(i, j)))
        });
        let blocks = blocks.collect();
        (blocks, coupled.iter().map(|&leaf| graph.parameter(structure.leaves[leaf].ty.clone())).collect())
    };
    let (later, later_states) = side();
    let (earlier, earlier_states) = side();
    let block = |side: &[Value], pair: (usize, usize)| match slots[&pair] {
        Slot::One => None,
        Slot::Leaf(leaf) => Some(side[leaf]),
    };
    let mut e = Emit::new(&mut graph, e.origin.clone());
    let mut results = Vec::new();
    for (&((i, k), _), &outer) in stored.iter().zip(&later) {
        let mut total = None;
        for &(_, j) in structure.blocks.keys().filter(|(row, _)| *row == i) {
            if !structure.blocks.contains_key(&(j, k)) {
                continue;
            }
            let term = match (block(&later, (i, j)), block(&earlier, (j, k))) {
                (Some(outer), Some(inner)) => blocks::product(
                    &mut e,
                    [&leaves[i], &leaves[j], &leaves[k]],
                    alignment(i, j),
                    [outer, inner],
                )?,
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => unreachable!("a block that is 1 is alone, and is not stored"),
            };
            total = crate::rules::sum(&mut e, total, Some(term))?;
        }
        results.push(total.map_or_else(|| e.like(outer, 0.0), Ok)?);
    }
    for (&j, &state) in coupled.iter().zip(&earlier_states) {
        let mut total = state;
        for (&i, &carried) in coupled.iter().zip(&later_states) {
            if !structure.blocks.contains_key(&(i, j)) {
                continue;
            }
            let term = match block(&earlier, (i, j)) {
                Some(block) => blocks::transposed_product(
                    &mut e,
                    [&leaves[i], &leaves[j]],
                    alignment(i, j),
                    block,
                    carried,
                )?,
                None => carried,
            };
            total = e.add(total, term)?;
        }
        results.push(total);
    }
    graph.set_results(results);
    Ok(graph)
}
