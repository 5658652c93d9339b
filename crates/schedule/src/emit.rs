//! From a cluster to a fused loop nest.
//!
//! A reduction's result is known only when its row is done, so a cluster runs in *levels*: a value's
//! level is how many reductions of the cluster lie on the longest way to it. Level l becomes two phases:
//! one that runs once per row and computes what depends on no position in the row, then one over the
//! row's elements, with the reductions of that level. Emission is driven by demand, from the stores and
//! the reductions; what a later phase needs from an earlier one is computed anew where that is cheap,
//! else carried. Whatever is neither stored nor in the cluster is computed where it is read.

use std::collections::HashMap;

use tilewright_ir::{Binary, DType, Node, NodeId, Op, Reduction, Value, ValueDefinition};
use tilewright_plan::loops::{Lanes, Phase, RowReduction, Sink, Source};
use tilewright_plan::{Kind, Loops, Operation, Register, Table, View};

use crate::access::{Access, Affine, Restriction, packed, restrict};
use crate::arrays::Arrays;
use crate::builder::{Builder, Push};
use crate::elementwise;
use crate::fuse::Cluster;

/// Operations beyond which a value is carried to a later phase rather than computed there anew.
const RECOMPUTED: usize = 3;

/// Lowers one cluster, which is the step of that number.
pub(crate) fn emit(arrays: &Arrays, cluster: &Cluster, step: usize) -> Loops {
    let mut emitter = Emitter::new(arrays, cluster, step);
    for &member in &cluster.members {
        if emitter.is_reduction(member) {
            emitter.reduce(member);
        } else {
            // In order, so that no computation has far to go to what it needs; what turns out to be
            // needed by nobody is left out in the end.
            let value = arrays.graph.node(member).results[0];
            emitter.compute(value, &emitter.range(member), emitter.phase(member));
        }
    }
    for &member in &cluster.members {
        for &value in &arrays.graph.node(member).results {
            if arrays.home(value).is_some() {
                emitter.store(value);
            }
        }
    }
    emitter.finish()
}

struct Emitter<'a> {
    arrays: &'a Arrays<'a>,
    cluster: &'a Cluster,
    step: usize,
    /// Parallel axes, then row axes.
    extents: Vec<usize>,
    parallel: usize,
    /// The loop axis of each axis of the cluster's space.
    loop_axis: Vec<usize>,
    levels: HashMap<NodeId, usize>,
    phases: Vec<Stage>,
    scalars: HashMap<Value, usize>,
    values: HashMap<Value, usize>,
    scalar_count: usize,
    tables: Vec<Table>,
}

/// A phase in the making.
#[derive(Default)]
struct Stage {
    code: Builder,
    results: Vec<Register>,
    sources: Vec<Source>,
    sinks: Vec<Sink>,
    memo: HashMap<(Value, Vec<Affine>), Register>,
}

impl Stage {
    fn input(&mut self, source: Source, kind: Kind) -> Register {
        let number = self.sources.iter().position(|earlier| *earlier == source).unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        });
        self.code.input(number, kind)
    }

    fn sink(&mut self, register: Register, sink: Sink) {
        self.results.push(register);
        self.sinks.push(sink);
    }

    /// The phase, without the instructions and sources that nothing needs.
    fn finish(self, once: bool) -> Phase {
        let mut program = self.code.program(&self.results);
        let mut sources = Vec::new();
        for instruction in &mut program.instructions {
            if let Operation::Input(number) = &mut instruction.operation {
                sources.push(self.sources[*number].clone());
                *number = sources.len() - 1;
            }
        }
        Phase { once, program, sources, sinks: self.sinks }
    }
}

impl<'a> Emitter<'a> {
    fn new(arrays: &'a Arrays<'a>, cluster: &'a Cluster, step: usize) -> Emitter<'a> {
        let axes = 0..cluster.space.len();
        let order: Vec<usize> = axes
            .clone()
            .filter(|&axis| !cluster.row[axis])
            .chain(axes.filter(|&axis| cluster.row[axis]))
            .collect();
        let mut loop_axis = vec![0; order.len()];
        for (i, &axis) in order.iter().enumerate() {
            loop_axis[axis] = i;
        }
        let mut emitter = Emitter {
            arrays,
            cluster,
            step,
            extents: order.iter().map(|&axis| cluster.space[axis]).collect(),
            parallel: cluster.row.iter().filter(|row| !**row).count(),
            loop_axis,
            levels: HashMap::new(),
            phases: Vec::new(),
            scalars: HashMap::new(),
            values: HashMap::new(),
            scalar_count: 0,
            tables: Vec::new(),
        };
        let mut last = 0;
        for &member in &cluster.members {
            let level = emitter.level(member);
            last = last.max(level + 1);
            emitter.levels.insert(member, level);
        }
        emitter.phases.resize_with(2 * last + 2, Stage::default);
        emitter
    }

    /// The longest way through reductions of the cluster that ends in this member.
    fn level(&self, member: NodeId) -> usize {
        let mut level = 0;
        let mut open: Vec<Value> = self.arrays.graph.node(member).operands.clone();
        while let Some(value) = open.pop() {
            let base = self.arrays.accesses[value.index()].base;
            let Some(producer) = self.producer(base) else { continue };
            if let Some(&earlier) = self.levels.get(&producer) {
                level = level.max(earlier + self.is_reduction(producer) as usize);
            } else if !self.is_stored(base) {
                open.extend(&self.arrays.graph.node(producer).operands);
            }
        }
        level
    }

    /// Whether an array lies complete in memory when this step runs.
    fn is_stored(&self, base: Value) -> bool {
        self.arrays.home(base).is_some() && self.arrays.made[base.index()].is_none_or(|made| made < self.step)
    }

    fn producer(&self, value: Value) -> Option<NodeId> {
        match self.arrays.graph.definition(value) {
            ValueDefinition::Parameter(_) => None,
            ValueDefinition::Result(node, _) => Some(node),
        }
    }

    fn is_reduction(&self, node: NodeId) -> bool {
        matches!(self.arrays.graph.node(node).op, Op::Reduce { .. } | Op::ArgMax { .. })
    }

    /// The phase in which a member is computed.
    fn phase(&self, member: NodeId) -> usize {
        let level = self.levels[&member];
        let in_row = self.cluster.domain(member).iter().flatten().any(|&axis| self.cluster.row[axis]);
        let once = !in_row && self.cluster.row.contains(&true);
        2 * level + !once as usize
    }

    /// Where in its own axes a node computes, over the loop axes.
    fn domain(&self, member: NodeId) -> Vec<Affine> {
        let rank = self.extents.len();
        let axis = |axis: &Option<usize>| match axis {
            Some(axis) => Affine::axis(self.loop_axis[*axis], rank),
            None => Affine::constant(0, rank),
        };
        self.cluster.domain(member).iter().map(axis).collect()
    }

    /// The same for the node's result.
    fn range(&self, member: NodeId) -> Vec<Affine> {
        let reduced = reduced_axes(&self.arrays.graph.node(member).op);
        let domain = self.domain(member);
        (0..domain.len()).filter(|axis| !reduced.contains(axis)).map(|axis| domain[axis].clone()).collect()
    }

    fn reduce(&mut self, member: NodeId) {
        let node = self.arrays.graph.node(member);
        let kind = row_reduction(&node.op).expect("a reduction");
        let phase = self.phase(member);
        let register = self.read(node.operands[0], &self.domain(member), phase);
        let scalar = self.new_scalar();
        self.scalars.insert(node.results[0], scalar);
        self.phases[phase].sink(register, Sink::Reduce { kind, scalar });
    }

    fn store(&mut self, value: Value) {
        let member = self.producer(value).expect("a member's result");
        let phase =
            if self.is_reduction(member) { 2 * (self.levels[&member] + 1) } else { self.phase(member) };
        let register = self.member(value, member, phase);
        let view = self.arrays.locate(
            &Access::identity(value, self.arrays.shape(value)),
            &self.range(member),
            self.extents.len(),
        );
        self.phases[phase].sink(register, Sink::Store { view, dtype: self.arrays.dtype(value) });
    }

    /// An element of a value, `at` a position over the loop axes.
    fn read(&mut self, value: Value, at: &[Affine], phase: usize) -> Register {
        let arrays = self.arrays;
        let access = &arrays.accesses[value.index()];
        let base = access.base;
        let dtype = arrays.dtype(base);
        if let Some(member) = self.producer(base).filter(|node| self.levels.contains_key(node))
            && access.valid.is_none()
        {
            return self.member(base, member, phase);
        }
        let rank = self.extents.len();
        if self.is_stored(base) {
            let valid = match &access.valid {
                None => None,
                Some(valid) => match restrict(valid, arrays.shape(value), at, &self.extents) {
                    Restriction::Box(ranges) => Some((ranges, valid.1)),
                    Restriction::Nowhere => {
                        return self.phases[phase].code.push(Operation::Constant(valid.1), Kind::of(dtype));
                    }
                    Restriction::Inexpressible => unreachable!("a padded array is read in a plain space"),
                },
            };
            let view = arrays.locate(access, at, rank);
            return self.phases[phase].input(Source::Load { view, dtype, valid }, Kind::of(dtype));
        }
        let index = access.index.as_ref().expect("an array that is not stored is seen by its axes");
        let index: Vec<Affine> = index.iter().map(|i| i.compose(at, rank)).collect();
        self.compute(base, &index, phase)
    }

    /// The element of a member's result at the current position.
    fn member(&mut self, value: Value, member: NodeId, phase: usize) -> Register {
        let dtype = self.arrays.dtype(value);
        let kind = Kind::of(dtype);
        if self.is_reduction(member) {
            let stage = &mut self.phases[phase];
            let register = stage.input(Source::RowScalar(self.scalars[&value]), kind);
            return elementwise::round(&mut stage.code, register, dtype);
        }
        let home = self.phase(member);
        let at = self.range(member);
        if home == phase {
            return self.compute(value, &at, phase);
        }
        if home.is_multiple_of(2) {
            let slot = match self.scalars.get(&value) {
                Some(&slot) => slot,
                None => {
                    let register = self.compute(value, &at, home);
                    let slot = self.new_scalar();
                    self.scalars.insert(value, slot);
                    self.phases[home].sink(register, Sink::RowScalar(slot));
                    slot
                }
            };
            return self.phases[phase].input(Source::RowScalar(slot), kind);
        }
        if self.is_cheap(member) {
            return self.compute(value, &at, phase);
        }
        let slot = match self.values.get(&value) {
            Some(&slot) => slot,
            None => {
                let register = self.compute(value, &at, home);
                let slot = self.values.len();
                self.values.insert(value, slot);
                self.phases[home].sink(register, Sink::RowValue(slot));
                slot
            }
        };
        self.phases[phase].input(Source::RowValue(slot), kind)
    }

    /// Whether computing a member anew costs less than keeping it: few operations, none slow, on at most
    /// one array.
    fn is_cheap(&self, member: NodeId) -> bool {
        let (mut operations, mut loads) = (0, 0);
        let mut open = vec![member];
        while let Some(node) = open.pop() {
            let node = self.arrays.graph.node(node);
            operations += !node.operands.is_empty() as usize;
            if elementwise::is_expensive(&node.op) || operations > RECOMPUTED {
                return false;
            }
            for &operand in &node.operands {
                let base = self.arrays.accesses[operand.index()].base;
                let producer = self.producer(base);
                match producer {
                    Some(producer) if self.levels.contains_key(&producer) => {
                        let in_row = self.phase(producer) % 2 == 1 && !self.is_reduction(producer);
                        if in_row {
                            open.push(producer);
                        }
                    }
                    Some(producer) if !self.is_stored(base) => open.push(producer),
                    _ => loads += (self.arrays.graph.ty(base).elements() > 1) as usize,
                }
            }
        }
        loads <= 1
    }

    /// The element of a node's result at a position, computed here.
    fn compute(&mut self, value: Value, at: &[Affine], phase: usize) -> Register {
        let key = (value, at.to_vec());
        if let Some(&register) = self.phases[phase].memo.get(&key) {
            return register;
        }
        let arrays = self.arrays;
        let node = arrays.graph.producer(value).expect("parameters are stored");
        let dtype = arrays.dtype(value);
        if self.is_same_along_row(at, phase) && !node.operands.is_empty() {
            let register = self.compute(value, at, phase - 1);
            let slot = self.new_scalar();
            self.phases[phase - 1].sink(register, Sink::RowScalar(slot));
            let register = self.phases[phase].input(Source::RowScalar(slot), Kind::of(dtype));
            self.phases[phase].memo.insert(key, register);
            return register;
        }
        let register = match &node.op {
            Op::Constant(literal) => {
                let value = literal.splat().expect("constant arrays are stored");
                self.phases[phase].code.push(Operation::Constant(value), Kind::of(dtype))
            }
            Op::Iota { axis, .. } => {
                let position = self.integer(&at[*axis], phase);
                elementwise::cast(&mut self.phases[phase].code, position, DType::I64, dtype)
            }
            Op::RandomBits { shape } => {
                let flat = Affine { offset: 0, strides: packed(shape) }.compose(at, self.extents.len());
                let key = self.read(node.operands[0], &[], phase);
                let counter = self.integer(&flat, phase);
                self.phases[phase].code.push(Operation::RandomBits(key, counter), Kind::I32)
            }
            Op::Gather => self.gather(node, at, phase),
            op => {
                let registers: Vec<Register> =
                    node.operands.iter().map(|&operand| self.read(operand, at, phase)).collect();
                let operand = arrays.dtype(*node.operands.last().expect("an operand"));
                elementwise::push(&mut self.phases[phase].code, op, &registers, operand, dtype)
                    .expect("only element-wise operations are computed in place")
            }
        };
        self.phases[phase].memo.insert(key, register);
        register
    }

    /// Whether a position in a phase over the row's elements does not move along the row.
    fn is_same_along_row(&self, at: &[Affine], phase: usize) -> bool {
        let moves = |position: &Affine| position.strides[self.parallel..].iter().any(|&stride| stride != 0);
        phase % 2 == 1 && self.parallel < self.extents.len() && !at.iter().any(moves)
    }

    fn new_scalar(&mut self) -> usize {
        self.scalar_count += 1;
        self.scalar_count - 1
    }

    fn gather(&mut self, node: &Node, at: &[Affine], phase: usize) -> Register {
        let arrays = self.arrays;
        let (array, indices) = (node.operands[0], &node.operands[1..]);
        let leading = indices.first().map_or(0, |&index| arrays.shape(index).len());
        let mut registers: Vec<Register> =
            indices.iter().map(|&index| self.read(index, &at[..leading], phase)).collect();
        for position in &at[leading..] {
            registers.push(self.integer(position, phase));
        }
        let table = Table {
            view: arrays.view(array),
            dtype: arrays.dtype(array),
            shape: arrays.shape(array).to_vec(),
            name: arrays.name(array),
            origin: node.origin.clone(),
        };
        let number = self.tables.iter().position(|earlier| *earlier == table).unwrap_or_else(|| {
            self.tables.push(table);
            self.tables.len() - 1
        });
        let kind = Kind::of(arrays.dtype(array));
        self.phases[phase].code.push(Operation::Load(number, registers), kind)
    }

    /// A position as an `I64`.
    fn integer(&mut self, position: &Affine, phase: usize) -> Register {
        let stage = &mut self.phases[phase];
        let mut sum = stage.code.constant(Kind::I64, position.offset as i64);
        for (axis, &stride) in position.strides.iter().enumerate().filter(|(_, stride)| **stride != 0) {
            let index = stage.input(Source::Index(axis), Kind::I64);
            let factor = stage.code.constant(Kind::I64, stride as i64);
            let term = stage.code.binary(Binary::Mul, index, factor);
            sum = stage.code.binary(Binary::Add, sum, term);
        }
        sum
    }

    fn finish(self) -> Loops {
        let phases: Vec<Phase> = self
            .phases
            .into_iter()
            .enumerate()
            .filter(|(_, stage)| !stage.sinks.is_empty())
            .map(|(number, stage)| stage.finish(number % 2 == 0))
            .collect();
        let lanes = lanes(&phases, self.parallel, &self.extents);
        let mut parallel = self.extents;
        let row = parallel.split_off(self.parallel);
        Loops {
            parallel,
            row,
            phases,
            row_scalars: self.scalar_count,
            row_values: self.values.len(),
            tables: self.tables,
            lanes,
        }
    }
}

/// Lanes run along the axis that most arrays are contiguous in; those that repeat along the other axis are few elements,
/// and count only where there are no others.
fn lanes(phases: &[Phase], parallel: usize, extents: &[usize]) -> Lanes {
    let row = (parallel..extents.len()).rev().find(|&axis| extents[axis] > 1);
    let across = (0..parallel).rev().find(|&axis| extents[axis] > 1);
    let (Some(row), Some(across)) = (row, across) else {
        return if row.is_some() { Lanes::Row } else { Lanes::Parallel };
    };
    let views = |phase: &Phase| -> Vec<View> {
        let loads = phase.sources.iter().filter_map(|source| match source {
            Source::Load { view, .. } => Some(view.clone()),
            Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => None,
        });
        let stores = phase.sinks.iter().filter_map(|sink| match sink {
            Sink::Store { view, .. } => Some(view.clone()),
            Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => None,
        });
        loads.chain(stores).collect()
    };
    let views: Vec<View> = phases.iter().filter(|phase| !phase.once).flat_map(views).collect();
    let contiguous = |axis: usize, other: usize| {
        let (mut whole, mut all) = (0, 0);
        for view in views.iter().filter(|view| view.strides[axis].abs() == 1) {
            whole += usize::from(view.strides[other] != 0);
            all += 1;
        }
        (whole, all)
    };
    if contiguous(across, row) > contiguous(row, across) { Lanes::Parallel } else { Lanes::Row }
}

/// The axes of its operand that a node's result lacks.
pub(crate) fn reduced_axes(op: &Op) -> &[usize] {
    match op {
        Op::Reduce { axes, .. } => axes,
        Op::ArgMax { axis } => std::slice::from_ref(axis),
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
        | Op::Dot(_)
        | Op::Gather
        | Op::ScatterAdd { .. }
        | Op::RandomBits { .. }
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => &[],
    }
}

fn row_reduction(op: &Op) -> Option<RowReduction> {
    match op {
        Op::Reduce { kind, .. } => Some(match kind {
            Reduction::Sum => RowReduction::Sum,
            Reduction::Prod => RowReduction::Prod,
            Reduction::Max => RowReduction::Max,
            Reduction::Min => RowReduction::Min,
        }),
        Op::ArgMax { .. } => Some(RowReduction::ArgMax),
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
        | Op::Dot(_)
        | Op::Gather
        | Op::ScatterAdd { .. }
        | Op::RandomBits { .. }
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => None,
    }
}
