//! The verifier: the invariants of a plan, numbered.
//!
//! 1. Every view names a buffer of the plan, has one stride per axis of the space it is seen in, and stays
//!    within the buffer wherever it is read or written.
//! 2. An element is loaded and stored at its buffer's type.
//! 3. A program's instructions read registers before them, of the kinds that they ask for; its inputs are
//!    fed, its tables exist and are indexed at each axis, and each result has a use.
//! 4. What a row carries is made by an earlier phase than reads it; numbers are set by phases that run once,
//!    reductions and kept values come from phases that do not.
//! 5. Inputs and constants are never written; what is read has been written; every output is written.
//! 6. Arena buffers are aligned and lie within the arena; two that share bytes do not live at once, but for
//!    a result that takes the place of an operand element by element.
//! 7. A block map is made once, and before it is read.

use tilewright_ir::{DType, Error, ErrorKind, Result};

use crate::attention::{Attention, AttentionShape};
use crate::loops::{RowReduction, Sink, Source};
use crate::{
    AttentionBackward, AttentionForward, Kernel, Kind, Loops, Operation, Place, Plan, Program, Scan, Table,
    View,
};

/// Checks the invariants listed above.
///
/// # Errors
/// [`ErrorKind::Invariant`] with the invariant's number and the kernel at fault.
pub fn verify(plan: &Plan) -> Result<()> {
    for (number, kernel) in plan.kernels.iter().enumerate() {
        let at = |error: Error| error.note(format!("in kernel {number}"));
        for look in looks(kernel) {
            look.check(plan).map_err(at)?;
        }
        programs(kernel).map_err(at)?;
    }
    order(plan)?;
    arena(plan)?;
    block_maps(plan)
}

fn broken(invariant: u32, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invariant { invariant, message: message.into() })
}

/// A view in the space that it is seen in.
struct Look<'a> {
    view: &'a View,
    /// For each axis the half-open range of positions.
    ranges: Vec<(usize, usize)>,
    dtype: DType,
}

impl<'a> Look<'a> {
    fn new(view: &'a View, extents: &[usize], dtype: DType) -> Look<'a> {
        Look { view, ranges: extents.iter().map(|&extent| (0, extent)).collect(), dtype }
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        let View { buffer, offset, strides } = self.view;
        let Some(named) = plan.buffers.get(buffer.0) else {
            return Err(broken(1, format!("buffer {} does not exist", buffer.0)));
        };
        if strides.len() != self.ranges.len() {
            return Err(broken(1, format!("{} strides for {} axes", strides.len(), self.ranges.len())));
        }
        if named.dtype != self.dtype {
            return Err(broken(2, format!("buffer {} holds {}, not {}", buffer.0, named.dtype, self.dtype)));
        }
        if self.ranges.iter().any(|range| range.0 >= range.1) {
            return Ok(());
        }
        let (mut low, mut high) = (*offset as i128, *offset as i128);
        for (&stride, &(first, end)) in strides.iter().zip(&self.ranges) {
            let ends = [stride as i128 * first as i128, stride as i128 * (end as i128 - 1)];
            low += ends[0].min(ends[1]);
            high += ends[0].max(ends[1]);
        }
        if low < 0 || high >= named.elements as i128 {
            return Err(broken(
                1,
                format!("elements {low} to {high} of buffer {}, which has {}", buffer.0, named.elements),
            ));
        }
        Ok(())
    }
}

fn looks(kernel: &Kernel) -> Vec<Look<'_>> {
    match kernel {
        Kernel::Loops(loops) => {
            let axes = axes(loops);
            let phases = loops.phases.iter().flat_map(|phase| {
                let mut stored = axes.clone();
                if phase.once {
                    stored[loops.parallel.len()..].fill(1);
                }
                let loads = loads(&phase.sources, &stored);
                loads.chain(stores(&phase.sinks, &stored)).collect::<Vec<_>>()
            });
            phases.chain(tables(&loops.tables)).collect()
        }
        Kernel::MatMul(product) => {
            let seen = |view, last: [usize; 2]| {
                Look::new(view, &[&product.batch[..], &last].concat(), product.dtype)
            };
            vec![
                seen(&product.left, [product.rows, product.depth]),
                seen(&product.right, [product.depth, product.columns]),
                seen(&product.output, [product.rows, product.columns]),
            ]
        }
        Kernel::ScatterAdd(scatter) => {
            let updates = [&scatter.space[..], &scatter.tail].concat();
            let output = [&scatter.indexed[..], &scatter.tail].concat();
            let indices = scatter.indices.iter().map(|(view, dtype)| Look::new(view, &scatter.space, *dtype));
            indices
                .chain([
                    Look::new(&scatter.updates, &updates, scatter.dtype),
                    Look::new(&scatter.output, &output, scatter.dtype),
                ])
                .collect()
        }
        Kernel::BlockMap(map) => tables(&map.tables).collect(),
        Kernel::AttentionForward(forward) => {
            let AttentionForward { attention: common, score: _, output, unrounded, log_sum_exp, maximum } =
                forward;
            let rows = log_sum_exp.iter().chain(maximum);
            attention(common)
                .chain([value_rows(common, output, common.dtype)])
                .chain(unrounded.iter().map(|view| value_rows(common, view, score_dtype(common))))
                .chain(rows.map(|v| scores(common, v)))
                .collect()
        }
        Kernel::AttentionBackward(backward) => backward_looks(backward),
        Kernel::Scan(scan) => {
            let axes = [&scan.parallel[..], &[scan.length]].concat();
            let outside = [&scan.parallel[..], &[1]].concat();
            loads(&scan.sources, &axes)
                .chain(loads(&scan.captured, &outside))
                .chain(loads(&scan.result_sources, &axes))
                .chain(stores(&scan.sinks, &axes))
                .chain(tables(&scan.tables))
                .collect()
        }
    }
}

fn axes(loops: &Loops) -> Vec<usize> {
    [&loops.parallel[..], &loops.row].concat()
}

fn loads<'a>(sources: &'a [Source], axes: &[usize]) -> impl Iterator<Item = Look<'a>> {
    sources.iter().filter_map(move |source| match source {
        Source::Load { view, dtype, valid } => {
            let mut look = Look::new(view, axes, *dtype);
            if let Some((ranges, _)) = valid {
                look.ranges = ranges.clone();
            }
            Some(look)
        }
        Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => None,
    })
}

fn stores<'a>(sinks: &'a [Sink], axes: &[usize]) -> impl Iterator<Item = Look<'a>> {
    sinks.iter().filter_map(move |sink| match sink {
        Sink::Store { view, dtype } => Some(Look::new(view, axes, *dtype)),
        Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => None,
    })
}

fn tables(tables: &[Table]) -> impl Iterator<Item = Look<'_>> {
    tables.iter().map(|table| Look::new(&table.view, &table.shape, table.dtype))
}

fn queries<'a>(attention: &Attention, view: &'a View) -> Look<'a> {
    let AttentionShape { batch, heads, queries, head_size, .. } = attention.shape;
    Look::new(view, &[batch, heads, queries, head_size], attention.dtype)
}

fn keys<'a>(attention: &Attention, view: &'a View) -> Look<'a> {
    let AttentionShape { key_batch, key_heads, keys, head_size, .. } = attention.shape;
    Look::new(view, &[key_batch, key_heads, keys, head_size], attention.dtype)
}

fn values<'a>(attention: &Attention, view: &'a View) -> Look<'a> {
    let AttentionShape { key_batch, key_heads, keys, value_size, .. } = attention.shape;
    Look::new(view, &[key_batch, key_heads, keys, value_size], attention.dtype)
}

fn value_rows<'a>(attention: &Attention, view: &'a View, dtype: DType) -> Look<'a> {
    let AttentionShape { batch, heads, queries, value_size, .. } = attention.shape;
    Look::new(view, &[batch, heads, queries, value_size], dtype)
}

fn scores<'a>(attention: &Attention, view: &'a View) -> Look<'a> {
    let AttentionShape { batch, heads, queries, .. } = attention.shape;
    Look::new(view, &[batch, heads, queries], score_dtype(attention))
}

fn score_dtype(attention: &Attention) -> DType {
    if attention.dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

fn attention(attention: &Attention) -> impl Iterator<Item = Look<'_>> {
    [
        queries(attention, &attention.query),
        keys(attention, &attention.key),
        values(attention, &attention.value),
    ]
    .into_iter()
    .chain(tables(&attention.tables))
}

fn backward_looks(backward: &AttentionBackward) -> Vec<Look<'_>> {
    let common = &backward.attention;
    let rows = std::iter::once(&backward.log_sum_exp).chain(&backward.log_sum_exp_cotangent);
    let captures =
        backward.captures.iter().map(|capture| Look::new(&capture.view, &capture.shape, capture.dtype));
    attention(common)
        .chain([
            value_rows(common, &backward.output, score_dtype(common)),
            value_rows(common, &backward.output_cotangent, common.dtype),
        ])
        .chain(rows.map(|view| scores(common, view)))
        .chain(backward.query_cotangent.iter().map(|view| queries(common, view)))
        .chain(backward.key_cotangent.iter().map(|view| keys(common, view)))
        .chain(backward.value_cotangent.iter().map(|view| values(common, view)))
        .chain(captures)
        .collect()
}

/// Invariants 3 and 4.
fn programs(kernel: &Kernel) -> Result<()> {
    let integers = |count: usize| vec![Kind::I32; count];
    match kernel {
        Kernel::Loops(loops) => phases(loops),
        Kernel::MatMul(_) | Kernel::ScatterAdd(_) => Ok(()),
        Kernel::BlockMap(map) => program(&map.mask, &integers(4), &map.tables, Some(&[Kind::Bool])),
        Kernel::AttentionForward(forward) => {
            let common = &forward.attention;
            mask(common)?;
            let score = Kind::of(scores(common, &forward.output).dtype);
            let inputs = [&integers(4)[..], &[score]].concat();
            forward.score.iter().try_for_each(|code| program(code, &inputs, &common.tables, Some(&[score])))
        }
        Kernel::AttentionBackward(backward) => {
            let common = &backward.attention;
            mask(common)?;
            let score = Kind::of(scores(common, &backward.log_sum_exp).dtype);
            let inputs = [&integers(4)[..], &[score, score]].concat();
            backward.joint.iter().try_for_each(|code| program(code, &inputs, &common.tables, None))?;
            let pair = &inputs[..5];
            backward.reductions.iter().try_for_each(|reduction| {
                if reduction.capture >= backward.captures.len() {
                    return Err(broken(3, "a reduction feeds no capture"));
                }
                program(&reduction.indices, pair, &common.tables, None)
            })
        }
        Kernel::Scan(scan) => scan_programs(scan),
    }
}

fn mask(attention: &Attention) -> Result<()> {
    let inputs = vec![Kind::I32; 4];
    attention.mask.iter().try_for_each(|code| program(code, &inputs, &attention.tables, Some(&[Kind::Bool])))
}

fn scan_programs(scan: &Scan) -> Result<()> {
    let kinds = |sources: &[Source]| -> Result<Vec<Kind>> {
        sources
            .iter()
            .map(|source| match source {
                Source::Load { dtype, .. } => Ok(Kind::of(*dtype)),
                Source::Index(_) => Ok(Kind::I64),
                Source::RowScalar(_) | Source::RowValue(_) => Err(broken(4, "a scan has no phases")),
            })
            .collect()
    };
    let stored: Result<Vec<Kind>> = scan
        .sinks
        .iter()
        .map(|sink| match sink {
            Sink::Store { dtype, .. } => Ok(Kind::of(*dtype)),
            Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => {
                Err(broken(4, "a scan only stores"))
            }
        })
        .collect();
    program(&scan.elements, &kinds(&scan.sources)?, &scan.tables, None)?;
    let state: Vec<Kind> = scan.elements.results.iter().map(|&r| scan.elements.kind(r)).collect();
    if state.len() != scan.state || scan.live.len() != scan.state {
        return Err(broken(3, format!("a state of {} where {} is declared", state.len(), scan.state)));
    }
    let combined = [&state[..], &state, &kinds(&scan.captured)?].concat();
    program(&scan.combine, &combined, &scan.tables, Some(&state))?;
    let inputs = [&state[..], &kinds(&scan.result_sources)?].concat();
    program(&scan.results, &inputs, &scan.tables, Some(&stored?))
}

fn phases(loops: &Loops) -> Result<()> {
    let mut scalars: Vec<Option<Kind>> = vec![None; loops.row_scalars];
    let mut values: Vec<Option<Kind>> = vec![None; loops.row_values];
    for (number, phase) in loops.phases.iter().enumerate() {
        let carried = |slots: &[Option<Kind>], slot: usize| {
            slots
                .get(slot)
                .copied()
                .flatten()
                .ok_or_else(|| broken(4, format!("phase {number} reads slot {slot} before it is made")))
        };
        let inputs: Result<Vec<Kind>> = phase
            .sources
            .iter()
            .map(|source| match source {
                Source::Load { dtype, .. } => Ok(Kind::of(*dtype)),
                Source::Index(axis) if *axis < axes(loops).len() => Ok(Kind::I64),
                Source::Index(axis) => Err(broken(3, format!("axis {axis} does not exist"))),
                Source::RowScalar(slot) => carried(&scalars, *slot),
                Source::RowValue(slot) if !phase.once => carried(&values, *slot),
                Source::RowValue(_) => Err(broken(4, "a phase that runs once reads a whole row")),
            })
            .collect();
        program(&phase.program, &inputs?, &loops.tables, None)?;
        if phase.program.results.len() != phase.sinks.len() {
            return Err(broken(3, format!("phase {number} has as many results as sinks")));
        }
        for (sink, &result) in phase.sinks.iter().zip(&phase.program.results) {
            let kind = phase.program.kind(result);
            let slot = match sink {
                Sink::Store { dtype, .. } if kind == Kind::of(*dtype) => continue,
                Sink::Store { dtype, .. } => return Err(broken(3, format!("{result} is stored as {dtype}"))),
                Sink::Reduce { kind: RowReduction::ArgMax, scalar } if !phase.once => {
                    scalars.get_mut(*scalar).map(|slot| (slot, Kind::I64))
                }
                Sink::Reduce { scalar, .. } if !phase.once => {
                    scalars.get_mut(*scalar).map(|slot| (slot, kind))
                }
                Sink::RowScalar(scalar) if phase.once => scalars.get_mut(*scalar).map(|slot| (slot, kind)),
                Sink::RowValue(value) if !phase.once => values.get_mut(*value).map(|slot| (slot, kind)),
                Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => {
                    return Err(broken(4, format!("phase {number} cannot make {sink:?}")));
                }
            };
            let (slot, kind) = slot.ok_or_else(|| broken(4, format!("{sink:?} has no slot")))?;
            if slot.replace(kind).is_some() {
                return Err(broken(4, format!("{sink:?} is made twice")));
            }
        }
    }
    Ok(())
}

/// Checks one program. Its results have the given kinds, if any are given.
fn program(code: &Program, inputs: &[Kind], tables: &[Table], results: Option<&[Kind]>) -> Result<()> {
    for (number, instruction) in code.instructions.iter().enumerate() {
        let fault = |message: &str| Err(broken(3, format!("r{number}: {message}")));
        let operands = instruction.operation.operands();
        if operands.iter().any(|operand| operand.index() >= number) {
            return fault("reads a register before it is defined");
        }
        let kinds: Vec<Kind> = operands.iter().map(|&operand| code.kind(operand)).collect();
        let kind = instruction.kind;
        let fits = match &instruction.operation {
            Operation::Input(input) => inputs.get(*input) == Some(&kind),
            Operation::Constant(_) | Operation::Cast(_) => true,
            Operation::Unary(..) | Operation::Binary(..) => kinds.iter().all(|&k| k == kind),
            Operation::Compare(..) => kind == Kind::Bool && kinds[0] == kinds[1],
            Operation::Select(..) => kinds == [Kind::Bool, kind, kind],
            Operation::Round(dtype, _) => kinds == [kind] && Kind::of(*dtype) == kind,
            Operation::Load(table, _) => tables.get(*table).is_some_and(|table| {
                let integers = kinds.iter().all(|k| matches!(k, Kind::I32 | Kind::I64));
                integers && kinds.len() == table.shape.len() && Kind::of(table.dtype) == kind
            }),
            Operation::RandomBits(..) => kind == Kind::I32 && kinds == [Kind::I64, Kind::I64],
        };
        if !fits {
            return fault("is of another kind than its operation gives or asks for");
        }
    }
    if code.results.iter().any(|result| result.index() >= code.instructions.len()) {
        return Err(broken(3, "a result is not defined"));
    }
    let found: Vec<Kind> = code.results.iter().map(|&result| code.kind(result)).collect();
    match results {
        Some(expected) if found != expected => {
            Err(broken(3, format!("results are {found:?}, not {expected:?}")))
        }
        _ => Ok(()),
    }
}

/// Invariant 5.
fn order(plan: &Plan) -> Result<()> {
    let given = |place: &Place| matches!(place, Place::Input(_) | Place::Constant(_));
    let mut written: Vec<bool> = plan.buffers.iter().map(|buffer| given(&buffer.place)).collect();
    for (number, kernel) in plan.kernels.iter().enumerate() {
        if let Some(view) = kernel.reads().into_iter().find(|view| !written[view.buffer.0]) {
            return Err(broken(5, format!("kernel {number} reads buffer {} first", view.buffer.0)));
        }
        for view in kernel.writes() {
            if given(&plan.buffers[view.buffer.0].place) {
                return Err(broken(5, format!("kernel {number} writes buffer {}", view.buffer.0)));
            }
            written[view.buffer.0] = true;
        }
    }
    let unwritten = plan
        .buffers
        .iter()
        .zip(&written)
        .position(|(buffer, written)| matches!(buffer.place, Place::Output(_)) && !written);
    match unwritten {
        Some(buffer) => Err(broken(5, format!("the output in buffer {buffer} is not written"))),
        None => Ok(()),
    }
}

/// Invariant 6.
fn arena(plan: &Plan) -> Result<()> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; plan.buffers.len()];
    for (number, kernel) in plan.kernels.iter().enumerate() {
        for view in kernel.reads().into_iter().chain(kernel.writes()) {
            lives[view.buffer.0].get_or_insert((number, number)).1 = number;
        }
    }
    let mut placed: Vec<(usize, usize, usize)> = Vec::new();
    for (number, buffer) in plan.buffers.iter().enumerate() {
        let Place::Arena(offset) = buffer.place else { continue };
        let end = offset + buffer.elements * buffer.dtype.size();
        if offset % 64 != 0 || end > plan.arena_bytes {
            return Err(broken(6, format!("buffer {number} lies at {offset}..{end}")));
        }
        if lives[number].is_some() && end > offset {
            placed.push((offset, end, number));
        }
    }
    // Along time: at each kernel, what lives is disjoint. Events in order of birth; the living are few.
    placed.sort_by_key(|&(_, _, buffer)| lives[buffer]);
    let mut living: Vec<(usize, usize, usize)> = Vec::new();
    for (offset, end, buffer) in placed {
        let (born, _) = lives[buffer].unwrap_or_default();
        living.retain(|&(_, _, other)| lives[other].is_some_and(|(_, last)| last >= born));
        for &(other_offset, other_end, other) in &living {
            let shared = offset < other_end && other_offset < end;
            let replaced = offset == other_offset
                && lives[other].is_some_and(|(first, last)| last == born && first < born)
                && is_replaced(&plan.kernels[born], other, buffer);
            if shared && !replaced {
                return Err(broken(6, format!("buffers {other} and {buffer} share bytes in kernel {born}")));
            }
        }
        living.push((offset, end, buffer));
    }
    Ok(())
}

/// Whether a kernel stores each element of `result` where the same iteration, and no other, has read
/// an element of the same size of `operand`.
fn is_replaced(kernel: &Kernel, operand: usize, result: usize) -> bool {
    let Kernel::Loops(loops) = kernel else { return false };
    let reads: Vec<&View> = kernel.reads().into_iter().filter(|view| view.buffer.0 == operand).collect();
    let writes: Vec<&View> = kernel.writes().into_iter().filter(|view| view.buffer.0 == result).collect();
    let [write] = writes[..] else { return false };
    let tabled = loops.tables.iter().any(|table| table.view.buffer.0 == operand);
    !tabled && reads.iter().all(|read| read.offset == write.offset && read.strides == write.strides)
}

/// Invariant 7.
fn block_maps(plan: &Plan) -> Result<()> {
    let mut made = vec![false; plan.block_maps];
    for (number, kernel) in plan.kernels.iter().enumerate() {
        let read = match kernel {
            Kernel::AttentionForward(forward) => forward.attention.block_map,
            Kernel::AttentionBackward(backward) => backward.attention.block_map,
            Kernel::BlockMap(map) => {
                match made.get_mut(map.slot) {
                    Some(made) if !*made => *made = true,
                    _ => return Err(broken(7, format!("kernel {number} cannot make map {}", map.slot))),
                }
                None
            }
            Kernel::Loops(_) | Kernel::MatMul(_) | Kernel::ScatterAdd(_) | Kernel::Scan(_) => None,
        };
        if let Some(slot) = read
            && made.get(slot) != Some(&true)
        {
            return Err(broken(7, format!("kernel {number} reads map {slot} before it is made")));
        }
    }
    Ok(())
}
