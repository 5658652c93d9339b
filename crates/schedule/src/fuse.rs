//! Which operations are computed together, and which values are stored.
//!
//! Operations are looked at once, in order. Each is one of:
//!
//! * **floating**: computed wherever it is read, never stored: constants, positions, and cheap
//!   functions of at most one array of their own size (and smaller ones). Reading that array costs no
//!   more than reading the result would;
//! * **single**: a kernel of its own;
//! * a **member** of a cluster, which becomes one loop nest.
//!
//! A cluster has a *space*, some of whose axes are its *row*: its reductions are over exactly the row, and
//! all its members read each other at one and the same position. A member spans either the whole space
//! or the axes outside the row.
//!
//! Legality. Steps run in the order of their creation. An operation may join the cluster of the latest
//! step that it reads from, because whatever else it reads is then computed before; joining any earlier
//! one could make a cycle. An earlier cluster may be merged into that of its reader if nobody else has
//! read it, for then nothing is in the way of its running later. An array that is read at other positions
//! (a gathered table, under a padding, through a reshape that mixes axes) has to be complete, so it is
//! stored, and its reader never joins it. A cluster that reads nothing of an earlier one may become part of it if all that
//! it reads is computed before.
//!
//! Cost. A row that is passed over more than once must stay in cache. A reduction over outer axes runs
//! with lanes across and cannot share a loop with stores to best effect, so it rather reads an array
//! anew, or computes it anew from arrays that are stored anyway (a member that is *transparent*). An expensive
//! function, and what is computed of it, is computed anew where that reads fewer bytes than its result has, as for `f32`
//! of half types.

mod merge;

use std::collections::HashSet;

use tilewright_ir::{Graph, Node, NodeId, Op, Value, ValueDefinition};

use crate::access::{Access, Affine};
use crate::elementwise::is_expensive;
use crate::emit::reduced_axes;
use crate::normalise::Normal;
use crate::simplify::live;

/// Members of a cluster at most; bounds the time of fusing and the size of a program.
const MEMBERS: usize = 96;
/// Operations of a floating or transparent expression at most.
const OPERATIONS: usize = 8;
/// Arrays that such an expression reads at most.
const LEAVES: usize = 4;
/// Elements of a row that is passed over more than once, at most, where lanes run along it.
const LONG_ROW: usize = 1 << 16;
/// The same where lanes run across the rows.
const LONG_COLUMN: usize = 1 << 10;
/// Elements of the row of a cluster that has too few rows to share out among threads, at most.
const LONELY_ROW: usize = 1 << 13;
/// How many rows are enough for that.
const ENOUGH_ROWS: usize = 8;
/// An array this many times smaller than another costs little beside it.
const SMALLER: usize = 8;

/// What is computed in one go.
pub(crate) enum Step {
    /// Element-wise operations and reductions.
    Cluster(Cluster),
    /// An operation with a kernel of its own.
    Single(NodeId),
}

/// Nodes that become one loop nest.
#[derive(Default)]
pub(crate) struct Cluster {
    /// The nodes, ascending.
    pub members: Vec<NodeId>,
    /// Extents of the space.
    pub space: Vec<usize>,
    /// For each axis of the space, whether it belongs to the row.
    pub row: Vec<bool>,
    /// For each member, the space's axis for each axis of the positions that it computes at (those of its
    /// operand, for a reduction; else of its result); none where that axis stays at 0.
    pub domains: Vec<Vec<Option<usize>>>,
    /// For each member, whether it reads a reduction of this cluster, however indirectly.
    late: Vec<bool>,
}

impl Cluster {
    /// The domain of a member.
    pub fn domain(&self, member: NodeId) -> &[Option<usize>] {
        &self.domains[self.position(member)]
    }

    fn position(&self, member: NodeId) -> usize {
        self.members.binary_search(&member).expect("a member")
    }

    fn has_rows(&self) -> bool {
        self.row.contains(&true)
    }

    fn insert(&mut self, member: NodeId, domain: Vec<Option<usize>>, late: bool) {
        let position = self.members.binary_search(&member).expect_err("a node joins once");
        self.members.insert(position, member);
        self.domains.insert(position, domain);
        self.late.insert(position, late);
    }

    /// Whether the innermost axis belongs to the row.
    fn runs_along(&self) -> bool {
        let last = (0..self.space.len()).rev().find(|&axis| self.space[axis] > 1);
        last.is_none_or(|axis| self.row[axis])
    }

    /// Whether the row stays in cache when it is passed over again.
    fn can_repeat(&self) -> bool {
        let extents = |row: bool| -> usize {
            self.space.iter().zip(&self.row).filter(|(_, r)| **r == row).map(|(d, _)| *d).product()
        };
        let (length, rows) = (extents(true), extents(false));
        length <= if self.runs_along() { LONG_ROW } else { LONG_COLUMN }
            && (rows >= ENOUGH_ROWS || length <= LONELY_ROW)
    }
}

/// The result of fusing.
pub(crate) struct Fusion {
    /// The steps in an order in which they can run.
    pub steps: Vec<Step>,
    /// For each value, whether it is stored.
    pub stored: Vec<bool>,
    /// For each value, the step that computes it; none for what is there from the start or floats.
    pub made: Vec<Option<usize>>,
}

/// An array that a node reads.
struct Leaf {
    base: Value,
    /// The position along each of its axes, over the node's domain; nothing where the whole array has to
    /// be there.
    index: Option<Vec<Affine>>,
}

struct Fuser<'a> {
    graph: &'a Graph,
    accesses: &'a [Access],
    uses: Vec<usize>,
    stored: Vec<bool>,
    floating: Vec<bool>,
    transparent: Vec<bool>,
    /// For what is transparent and takes long to compute, of how many operations it is; else 0.
    slow: Vec<usize>,
    operations: Vec<usize>,
    steps: Vec<Option<Step>>,
    made: Vec<Option<usize>>,
    /// For each step, the first step that reads it.
    first_reader: Vec<usize>,
}

/// Groups the operations of a normalised graph.
pub(crate) fn fuse(normal: &Normal) -> Fusion {
    let graph = &normal.graph;
    let live = live(graph);
    let count = graph.value_count();
    let mut fuser = Fuser {
        graph,
        accesses: &normal.accesses,
        uses: vec![0; count],
        stored: vec![false; count],
        floating: vec![false; count],
        transparent: vec![false; count],
        slow: vec![0; count],
        operations: vec![0; count],
        steps: Vec::new(),
        made: vec![None; count],
        first_reader: Vec::new(),
    };
    fuser.survey(&live);
    for (node, _) in graph.nodes().iter().zip(&live).filter(|(_, live)| **live) {
        fuser.visit(node);
    }
    fuser.settle();
    let mut renumbered = vec![None; fuser.steps.len()];
    let mut steps = Vec::new();
    for (old, step) in fuser.steps.into_iter().enumerate() {
        if let Some(step) = step {
            renumbered[old] = Some(steps.len());
            steps.push(step);
        }
    }
    let made = fuser.made.into_iter().map(|step| step.and_then(|step| renumbered[step])).collect();
    Fusion { steps, stored: fuser.stored, made }
}

/// Whether the operation has a kernel of its own.
fn is_single(op: &Op) -> bool {
    match op {
        Op::Dot(_)
        | Op::ScatterAdd { .. }
        | Op::Pad { .. }
        | Op::Concatenate { .. }
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => true,
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
        | Op::RandomBits { .. } => false,
    }
}

fn is_reduction(op: &Op) -> bool {
    matches!(op, Op::Reduce { .. } | Op::ArgMax { .. })
}

impl<'a> Fuser<'a> {
    fn base(&self, value: Value) -> Value {
        self.accesses[value.index()].base
    }

    fn shape(&self, value: Value) -> &'a [usize] {
        &self.graph.ty(value).shape
    }

    /// Whether a node's results are their own bases.
    fn is_computed(&self, node: &Node) -> bool {
        self.base(node.results[0]) == node.results[0]
    }

    /// Extents of the positions that a node computes at.
    fn domain(&self, node: &Node) -> &'a [usize] {
        self.shape(if is_reduction(&node.op) { node.operands[0] } else { node.results[0] })
    }

    /// Counts uses, and marks what has to be stored whatever the clusters are.
    fn survey(&mut self, live: &[bool]) {
        for result in self.graph.results() {
            self.stored[result.index()] = true;
        }
        for (node, _) in self.graph.nodes().iter().zip(live).filter(|(_, live)| **live) {
            if !self.is_computed(node) {
                continue;
            }
            self.stored[node.results[0].index()] |= match &node.op {
                Op::Constant(literal) => literal.splat().is_none(),
                Op::FlexAttention(_) => true,
                _ => false,
            };
            for (number, &operand) in node.operands.iter().enumerate() {
                let access = &self.accesses[operand.index()];
                self.uses[access.base.index()] += 1;
                let complete = is_single(&node.op)
                    || matches!(node.op, Op::Gather) && number == 0
                    || access.valid.is_some()
                    || access.index.is_none();
                self.stored[access.base.index()] |= complete;
            }
        }
    }

    fn visit(&mut self, node: &'a Node) {
        if !self.is_computed(node) {
            return;
        }
        let result = node.results[0];
        if is_single(&node.op) {
            let ValueDefinition::Result(id, _) = self.graph.definition(result) else { return };
            let step = self.push(Step::Single(id));
            for &value in &node.results {
                self.made[value.index()] = Some(step);
            }
            for &operand in &node.operands {
                self.note_read(self.base(operand), step);
            }
            return;
        }
        if let Op::Constant(_) = node.op {
            self.floating[result.index()] = !self.stored[result.index()];
            return;
        }
        let leaves = self.leaves(node, None);
        let operations = self.expression(node);
        let short = !is_reduction(&node.op) && operations <= OPERATIONS && leaves.len() <= LEAVES;
        let complete = leaves.iter().any(|leaf| leaf.index.is_none());
        if short && !complete && !self.stored[result.index()] {
            let mut large = self.large(&leaves, node);
            let anew: usize = large.iter().map(|leaf| self.slow[leaf.base.index()]).sum();
            let slow = is_expensive(&node.op) || large.len() > 1 && anew > 0;
            if !slow && large.len() <= 1 {
                self.operations[result.index()] = operations;
                self.floating[result.index()] = true;
                return;
            }
            let beyond = if anew > 0 { self.leaves(node, Some(usize::MAX)) } else { Vec::new() };
            if slow && anew > 0 {
                large = self.large(&beyond, node);
            }
            let again = match slow {
                true => operations + anew <= OPERATIONS && self.is_narrower(&large, result),
                false => large.len() <= 2 && self.uses[result.index()] <= 2,
            };
            let stays = |leaf: &&Leaf| {
                self.stored[leaf.base.index()]
                    || self.graph.producer(leaf.base).is_none_or(|n| is_single(&n.op))
            };
            self.transparent[result.index()] = again && large.iter().all(stays);
            if slow && self.transparent[result.index()] {
                self.slow[result.index()] = operations + anew;
            }
        }
        self.assign(node, leaves);
    }

    fn push(&mut self, step: Step) -> usize {
        self.steps.push(Some(step));
        self.first_reader.push(usize::MAX);
        self.steps.len() - 1
    }

    fn note_read(&mut self, base: Value, reader: usize) {
        if let Some(step) = self.made[base.index()]
            && step != reader
        {
            self.first_reader[step] = self.first_reader[step].min(reader);
        }
    }

    /// How many operations it takes to compute a node where it is read.
    fn expression(&self, node: &Node) -> usize {
        let inner = node.operands.iter().map(|&operand| self.operations[self.base(operand).index()]);
        1 + inner.sum::<usize>()
    }

    /// The arrays among those that a node reads of which it reads about as many elements as it computes.
    fn large<'l>(&self, leaves: &'l [Leaf], node: &Node) -> Vec<&'l Leaf> {
        leaves.iter().filter(|leaf| self.is_large(leaf, node)).collect()
    }

    /// Whether a node reads about as many elements of an array as it computes.
    fn is_large(&self, leaf: &Leaf, node: &Node) -> bool {
        let domain = self.domain(node);
        let Some(index) = &leaf.index else { return true };
        let moving = |axis: usize| index.iter().any(|position| position.strides[axis] != 0);
        let read: usize = (0..domain.len()).filter(|&axis| moving(axis)).map(|axis| domain[axis]).product();
        read > 1 && read * SMALLER > domain.iter().product()
    }

    /// Whether reading some arrays moves fewer bytes than reading what is computed of them.
    fn is_narrower(&self, leaves: &[&Leaf], result: Value) -> bool {
        let bytes = |value: Value| self.graph.ty(value).dtype.size();
        !leaves.is_empty() && leaves.iter().map(|leaf| bytes(leaf.base)).sum::<usize>() < bytes(result)
    }

    /// What a node of step `own` reads, through whatever is computed in place.
    fn leaves(&self, node: &Node, own: Option<usize>) -> Vec<Leaf> {
        let rank = self.domain(node).len();
        let mut leaves: Vec<Leaf> = Vec::new();
        let mut open: Vec<(Value, Option<Vec<Affine>>)> = self.reads(node, rank);
        open.reverse();
        while let Some((value, at)) = open.pop() {
            let access = &self.accesses[value.index()];
            let index = match (&at, &access.index, &access.valid) {
                (Some(at), Some(index), None) => {
                    Some(index.iter().map(|i| i.compose(at, rank)).collect::<Vec<_>>())
                }
                _ => None,
            };
            match (index, self.graph.producer(access.base)) {
                (Some(index), Some(producer)) if self.is_seen_through(access.base, own) => {
                    let inner = self.reads(producer, self.shape(access.base).len());
                    open.extend(inner.into_iter().rev().map(|(value, at)| {
                        let at = at.map(|at| at.iter().map(|i| i.compose(&index, rank)).collect());
                        (value, at)
                    }));
                }
                (index, _) => {
                    let again = leaves.iter().any(|leaf| leaf.base == access.base && leaf.index == index);
                    if !again {
                        leaves.push(Leaf { base: access.base, index });
                    }
                }
            }
        }
        leaves
    }

    fn is_seen_through(&self, base: Value, own: Option<usize>) -> bool {
        let outside = self.made[base.index()].is_none() || self.made[base.index()] != own;
        self.floating[base.index()] || self.transparent[base.index()] && outside && own.is_some()
    }

    /// A node's operands with their positions over the node's domain; none for a table, read anywhere.
    fn reads(&self, node: &Node, rank: usize) -> Vec<(Value, Option<Vec<Affine>>)> {
        let identity = |count: usize| Some((0..count).map(|axis| Affine::axis(axis, rank)).collect());
        let operands = node.operands.iter().enumerate();
        operands
            .map(|(number, &operand)| match (&node.op, number) {
                (Op::Gather, 0) => (operand, None),
                _ => (operand, identity(self.shape(operand).len())),
            })
            .collect()
    }

    /// Puts a node into a cluster: the latest that it reads from, or a new one.
    fn assign(&mut self, node: &'a Node, leaves: Vec<Leaf>) {
        let result = node.results[0];
        let ValueDefinition::Result(id, _) = self.graph.definition(result) else { return };
        let latest = leaves.iter().filter_map(|leaf| self.made[leaf.base.index()]).max();
        let joined = latest.and_then(|step| Some((step, self.fit(node, &leaves, step)?)));
        // What is transparent may be read in place of the cluster it is in.
        let (step, leaves) = match joined {
            Some((step, (domain, late))) => {
                self.join(id, node, step, domain, late);
                (step, leaves)
            }
            None => {
                let leaves = self.leaves(node, Some(usize::MAX));
                (self.start(id, node), leaves)
            }
        };
        self.made[result.index()] = Some(step);
        self.merge_sources(id, &leaves, step);
        for leaf in &leaves {
            self.note_read(leaf.base, step);
        }
        if is_reduction(&node.op)
            && let Some(earlier) = self.beside(step)
        {
            self.advance(step, earlier);
        }
    }

    fn start(&mut self, id: NodeId, node: &Node) -> usize {
        let space = self.domain(node).to_vec();
        let reduced = reduced_axes(&node.op);
        self.push(Step::Cluster(Cluster {
            members: vec![id],
            row: (0..space.len()).map(|axis| reduced.contains(&axis)).collect(),
            domains: vec![(0..space.len()).map(Some).collect()],
            late: vec![false],
            space,
        }))
    }

    fn cluster(&self, step: usize) -> Option<&Cluster> {
        match &self.steps[step] {
            Some(Step::Cluster(cluster)) => Some(cluster),
            _ => None,
        }
    }

    /// The space's axis for each axis of a member's result.
    fn range(&self, cluster: &Cluster, base: Value) -> Vec<Option<usize>> {
        let ValueDefinition::Result(id, _) = self.graph.definition(base) else { return Vec::new() };
        let reduced = reduced_axes(&self.graph.node(id).op);
        let domain = cluster.domain(id);
        (0..domain.len()).filter(|axis| !reduced.contains(axis)).map(|axis| domain[axis]).collect()
    }

    /// The domain that a node would have in a cluster, and whether it would be late; nothing where it
    /// may not join.
    fn fit(&self, node: &Node, leaves: &[Leaf], step: usize) -> Option<(Vec<Option<usize>>, bool)> {
        let cluster = self.cluster(step)?;
        if cluster.members.len() >= MEMBERS {
            return None;
        }
        let extents = self.domain(node);
        let mut domain: Vec<Option<usize>> = vec![None; extents.len()];
        let mut late = false;
        for leaf in leaves.iter().filter(|leaf| self.made[leaf.base.index()] == Some(step)) {
            let index = leaf.index.as_ref()?;
            let range = self.range(cluster, leaf.base);
            for (position, axis) in index.iter().zip(range) {
                let Some(axis) = axis.filter(|&axis| cluster.space[axis] != 1) else { continue };
                let (own, stride) = position.single()?;
                if stride != 1 || position.offset != 0 || extents[own] != cluster.space[axis] {
                    return None;
                }
                if domain[own].is_some_and(|bound| bound != axis) {
                    return None;
                }
                domain[own] = Some(axis);
            }
            let ValueDefinition::Result(id, _) = self.graph.definition(leaf.base) else { return None };
            late |= is_reduction(&self.graph.node(id).op) || cluster.late[cluster.position(id)];
        }
        spread_along_row(&cluster.space, &cluster.row, extents, &mut domain)?;
        let covered = |axis: usize| domain.contains(&Some(axis)) || cluster.space[axis] == 1;
        let axes = || 0..cluster.space.len();
        if !axes().filter(|&axis| !cluster.row[axis]).all(covered) || !is_injective(&domain) {
            return None;
        }
        let whole = axes().all(covered);
        let within_row = domain.iter().flatten().any(|&axis| cluster.row[axis] && cluster.space[axis] > 1);
        if !whole && within_row {
            return None;
        }
        if whole && cluster.has_rows() && late && within_row && !cluster.can_repeat() {
            return None;
        }
        if is_reduction(&node.op) && !self.reduces_rows(node, cluster, &domain, whole) {
            return None;
        }
        Some((domain, late))
    }

    /// Whether a reduction of a cluster's values is over its row, or can make it one.
    fn reduces_rows(&self, node: &Node, cluster: &Cluster, domain: &[Option<usize>], whole: bool) -> bool {
        let reduced = reduced_axes(&node.op);
        let row: Vec<bool> = (0..cluster.space.len())
            .map(|axis| {
                domain.iter().enumerate().any(|(i, bound)| *bound == Some(axis) && reduced.contains(&i))
            })
            .collect();
        let differs = |axis: usize| row[axis] != cluster.row[axis] && cluster.space[axis] != 1;
        if !whole || !row.contains(&true) {
            return false;
        }
        if cluster.has_rows() {
            return !(0..row.len()).any(differs);
        }
        let last = (0..row.len()).rev().find(|&axis| cluster.space[axis] > 1);
        let along = last.is_some_and(|axis| row[axis]);
        let stores = cluster
            .members
            .iter()
            .any(|&member| self.graph.node(member).results.iter().any(|value| self.stored[value.index()]));
        along || !stores && self.uses[self.base(node.operands[0]).index()] == 1
    }

    fn join(&mut self, id: NodeId, node: &Node, step: usize, domain: Vec<Option<usize>>, late: bool) {
        let Some(Step::Cluster(cluster)) = &mut self.steps[step] else { return };
        for &axis in reduced_axes(&node.op) {
            if let Some(axis) = domain[axis] {
                cluster.row[axis] = true;
            }
        }
        cluster.insert(id, domain, late);
    }

    /// Marks what one step makes and another reads.
    fn settle(&mut self) {
        let mut read = HashSet::new();
        for (number, step) in self.steps.iter().enumerate() {
            let Some(Step::Cluster(cluster)) = step else { continue };
            for &member in &cluster.members {
                for leaf in self.leaves(self.graph.node(member), Some(number)) {
                    if self.made[leaf.base.index()] != Some(number) {
                        read.insert(leaf.base);
                    }
                }
            }
        }
        for value in read {
            self.stored[value.index()] = true;
        }
    }
}

/// Binds the axes that nothing has bound, and that are longer than 1, to those of a space's row, in order.
fn spread_along_row(
    space: &[usize],
    row: &[bool],
    extents: &[usize],
    domain: &mut [Option<usize>],
) -> Option<()> {
    let free: Vec<usize> =
        (0..extents.len()).filter(|&axis| domain[axis].is_none() && extents[axis] != 1).collect();
    if free.is_empty() {
        return Some(());
    }
    let unbound = |axis: &usize| !domain.contains(&Some(*axis)) && space[*axis] != 1;
    let row: Vec<usize> = (0..space.len()).filter(|&axis| row[axis]).filter(unbound).collect();
    let fits =
        free.len() == row.len() && free.iter().zip(&row).all(|(&own, &axis)| extents[own] == space[axis]);
    if !fits {
        return None;
    }
    for (own, axis) in free.into_iter().zip(row) {
        domain[own] = Some(axis);
    }
    Some(())
}

fn is_injective(domain: &[Option<usize>]) -> bool {
    let bound: Vec<usize> = domain.iter().flatten().copied().collect();
    let distinct: HashSet<usize> = bound.iter().copied().collect();
    bound.len() == distinct.len()
}
