//! Clusters that become one: an earlier one its reader's, and one that reads nothing of an earlier one part of that.

use super::*;

/// So many steps are looked through for one beside which a cluster can run; bounds the time of fusing.
const NEAR: usize = 8;

impl Fuser<'_> {
    /// An earlier cluster beside which a cluster of sums over outer axes can run, if it reads nothing that is made
    /// later: one over the same space and row that reads an array of that size which this one reads too, so that it is
    /// read once.
    pub(super) fn beside(&self, step: usize) -> Option<usize> {
        let cluster = self.cluster(step).filter(|cluster| !cluster.runs_along())?;
        let large = |step: usize| -> Vec<Leaf> {
            let members = self.cluster(step).map_or(&[][..], |cluster| &cluster.members);
            let nodes = members.iter().map(|&member| self.graph.node(member));
            nodes
                .flat_map(|node| {
                    self.leaves(node, Some(step)).into_iter().filter(|leaf| self.is_large(leaf, node))
                })
                .collect()
        };
        let read = self.read_outside(step);
        let latest = read.iter().filter_map(|base| self.made[base.index()]).max();
        let own = large(step);
        let first = latest.map_or(0, |step| step + 1).max(step.saturating_sub(NEAR));
        (first..step).rev().find(|&other| {
            self.cluster(other).is_some_and(|beside| {
                beside.space == cluster.space
                    && beside.row == cluster.row
                    && beside.members.len() + cluster.members.len() <= MEMBERS
                    && large(other)
                        .iter()
                        .any(|leaf| own.iter().any(|mine| mine.base == leaf.base && mine.index == leaf.index))
            })
        })
    }

    /// What the members of a cluster read that it does not make.
    fn read_outside(&self, step: usize) -> Vec<Value> {
        let members = self.cluster(step).map_or(&[][..], |cluster| &cluster.members);
        let leaves =
            members.iter().flat_map(|&member| self.leaves(self.graph.node(member), Some(step)).into_iter());
        leaves.map(|leaf| leaf.base).filter(|base| self.made[base.index()] != Some(step)).collect()
    }

    /// Makes a cluster part of an earlier one with the same axes.
    pub(super) fn advance(&mut self, step: usize, earlier: usize) {
        for base in self.read_outside(step) {
            self.note_read(base, earlier);
        }
        let Some(Step::Cluster(from)) = self.steps[step].take() else { return };
        let Some(Step::Cluster(to)) = &mut self.steps[earlier] else { return };
        for ((member, domain), late) in from.members.into_iter().zip(from.domains).zip(from.late) {
            to.insert(member, domain, late);
            for value in &self.graph.node(member).results {
                self.made[value.index()] = Some(earlier);
            }
        }
        self.first_reader[earlier] = self.first_reader[earlier].min(self.first_reader[step]);
    }

    /// Merges the earlier clusters that a member reads into its own, where that is legal.
    pub(super) fn merge_sources(&mut self, id: NodeId, leaves: &[Leaf], step: usize) {
        let mut sources: Vec<usize> =
            leaves.iter().filter_map(|leaf| self.made[leaf.base.index()]).filter(|&s| s != step).collect();
        sources.sort_unstable();
        sources.dedup();
        for source in sources.into_iter().rev() {
            if self.first_reader[source] > step
                && let Some((axes, late)) = self.merged_axes(id, leaves, source, step)
            {
                self.merge(id, source, step, &axes, late);
            }
        }
    }

    /// Where the axes of an earlier cluster's space lie in the space of the cluster that `id` is in.
    fn merged_axes(
        &self,
        id: NodeId,
        leaves: &[Leaf],
        source: usize,
        step: usize,
    ) -> Option<(Vec<Option<usize>>, bool)> {
        let (from, to) = (self.cluster(source)?, self.cluster(step)?);
        if from.members.len() + to.members.len() > MEMBERS {
            return None;
        }
        let domain = to.domain(id);
        let mut axes: Vec<Option<usize>> = vec![None; from.space.len()];
        let mut late = false;
        for leaf in leaves.iter().filter(|leaf| self.made[leaf.base.index()] == Some(source)) {
            let range = self.range(from, leaf.base);
            for (position, axis) in leaf.index.as_ref()?.iter().zip(range) {
                let Some(axis) = axis.filter(|&axis| from.space[axis] != 1) else { continue };
                let (own, stride) = position.single()?;
                let target = domain[own]?;
                if stride != 1 || position.offset != 0 || from.space[axis] != to.space[target] {
                    return None;
                }
                if axes[axis].is_some_and(|bound| bound != target) {
                    return None;
                }
                axes[axis] = Some(target);
            }
            let ValueDefinition::Result(member, _) = self.graph.definition(leaf.base) else { return None };
            late |= is_reduction(&self.graph.node(member).op) || from.late[from.position(member)];
        }
        // A row that lanes run along becomes that of a cluster which has none.
        let takes_row = !to.has_rows() && from.has_rows() && from.runs_along();
        let row = if takes_row { vec![true; to.space.len()] } else { to.row.clone() };
        spread_along_row(&to.space, &row, &from.space, &mut axes)?;
        if !is_injective(&axes) {
            return None;
        }
        let covered = |axis: usize| axes.contains(&Some(axis)) || to.space[axis] == 1;
        let within = |row: bool| (0..to.space.len()).filter(move |&axis| to.row[axis] == row);
        if !within(false).all(covered) {
            return None;
        }
        let whole = within(true).all(covered);
        let partly = within(true).any(|axis| axes.contains(&Some(axis)) && to.space[axis] > 1);
        if !whole && partly {
            return None;
        }
        let rows_agree = from.space.iter().enumerate().all(|(axis, &extent)| {
            extent == 1 || axes[axis].is_none_or(|target| from.row[axis] == to.row[target])
        });
        let bound = (0..axes.len()).all(|axis| axes[axis].is_some() || from.space[axis] == 1);
        let agree = match (from.has_rows(), to.has_rows()) {
            (false, false) => true,
            (false, true) => to.runs_along() || self.is_read_once(leaves, source),
            (true, true) => whole && rows_agree,
            (true, false) => bound,
        };
        let rows = if to.has_rows() { to } else { from };
        (agree && (!late || rows.can_repeat())).then_some((axes, late))
    }

    /// Whether what a step gives to a node is read by nothing else.
    fn is_read_once(&self, leaves: &[Leaf], step: usize) -> bool {
        let mut given = leaves.iter().filter(|leaf| self.made[leaf.base.index()] == Some(step));
        given.all(|leaf| !self.stored[leaf.base.index()] && self.uses[leaf.base.index()] == 1)
    }

    fn merge(&mut self, id: NodeId, source: usize, step: usize, axes: &[Option<usize>], late: bool) {
        let Some(Step::Cluster(from)) = self.steps[source].take() else { return };
        let Some(Step::Cluster(to)) = &mut self.steps[step] else { return };
        for (axis, &target) in axes.iter().enumerate() {
            if let Some(target) = target {
                to.row[target] |= from.row[axis];
            }
        }
        for ((member, domain), was_late) in from.members.into_iter().zip(from.domains).zip(from.late) {
            let domain = domain.into_iter().map(|axis| axis.and_then(|axis| axes[axis])).collect();
            to.insert(member, domain, was_late);
            for value in &self.graph.node(member).results {
                self.made[value.index()] = Some(step);
            }
        }
        let position = to.position(id);
        to.late[position] |= late;
        // Who has read the source reads what now stands here: this cluster may not be moved past that reader.
        self.first_reader[step] = self.first_reader[step].min(self.first_reader[source]);
    }
}
