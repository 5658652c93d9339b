//! Elements of gathers and scatters: who checks an index, and what it reaches.

use tilewright_ir::{Binary, Compare, Graph, Node, Op, Result, Value};
use tilewright_plan::{Kind, Register};

use super::{Argument, Lowering, positions};
use crate::elementwise;

impl<'a> Lowering<'a> {
    pub(super) fn gather(&mut self, node: &Node, index: &[Register]) -> Result<Register> {
        let (array, indices) = node.operands.split_first().expect("the array of a gather");
        let leading = index.len() - (self.shape(*array).len() - indices.len());
        let (space, rest) = index.split_at(leading);
        let mut at = Vec::new();
        for (axis, &operand) in indices.iter().enumerate() {
            let position = self.element(operand, space)?;
            at.push(self.checked_index(*array, axis, position));
        }
        at.extend(rest);
        self.element(*array, &at)
    }

    /// One element of a value, at indices as a gather has them: perhaps negative, perhaps out of range.
    pub fn gathered(&mut self, value: Value, index: &[Register]) -> Result<Register> {
        let at: Vec<Register> =
            index.iter().enumerate().map(|(axis, &i)| self.checked_index(value, axis, i)).collect();
        self.element(value, &at)
    }

    /// A gather's index, made fit for [`Lowering::element`] of what it indexes.
    pub(super) fn checked_index(&mut self, value: Value, axis: usize, index: Register) -> Register {
        match self.checked[value.index()][axis] {
            Checked::ByLoad | Checked::Ignored => index,
            Checked::No => {
                let extent = self.shape(value)[axis];
                let counted = self.counted(index, extent);
                self.clamped(counted, extent)
            }
        }
    }

    pub(super) fn scatter_add(
        &mut self,
        node: &Node,
        value: Value,
        shape: &[usize],
        index: &[Register],
    ) -> Result<Register> {
        let (updates, indices) = node.operands.split_first().expect("the updates of a scatter");
        let dtype = self.dtype(value);
        let space = &self.shape(*updates)[..self.shape(*updates).len() - (shape.len() - indices.len())];
        let (places, rest) = index.split_at(indices.len());
        let zero = self.builder.constant(Kind::of(dtype), 0);
        let mut total = None;
        self.check_limit(space.iter().product(), value)?;
        for position in positions(space) {
            let position = self.constants(&position);
            let mut here = self.builder.constant(Kind::Bool, true);
            for (axis, &operand) in indices.iter().enumerate() {
                let target = self.element(operand, &position)?;
                let target = self.counted(target, shape[axis]);
                let equal = self.index_compare(Compare::Eq, target, places[axis]);
                here = self.builder.binary(Binary::And, here, equal);
            }
            if self.is_false(here) {
                continue;
            }
            let update = self.element(*updates, &[&position[..], rest].concat())?;
            let added = self.builder.select(here, update, zero);
            total = Some(match total {
                Some(total) => self.builder.binary(Binary::Add, total, added),
                None => added,
            });
        }
        Ok(elementwise::round(&mut self.builder, total.unwrap_or(zero), dtype))
    }
}

/// Who checks an index that is passed on to an element of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Checked {
    /// The load of a table, which also counts negative indices from the end.
    ByLoad,
    /// Nobody needs to: the element does not depend on it.
    Ignored,
    /// Nobody does.
    No,
}

/// For each value of a region and each of its axes, who checks an index along it that is passed to
/// [`Lowering::element`]. Found from the first value to the last: a value may have many users.
pub(super) fn who_checks(region: &Graph, arguments: &[Argument]) -> Vec<Vec<Checked>> {
    let mut checked: Vec<Vec<Checked>> = vec![Vec::new(); region.value_count()];
    for (&parameter, argument) in region.parameters().iter().zip(arguments) {
        let by = match argument {
            Argument::Table(_) => Checked::ByLoad,
            Argument::Input(_) | Argument::Part { .. } => Checked::No,
        };
        checked[parameter.index()] = vec![by; region.ty(parameter).rank()];
    }
    for node in region.nodes() {
        for &value in &node.results {
            let axes = 0..region.ty(value).rank();
            checked[value.index()] = axes.map(|axis| of_axis(region, &checked, node, value, axis)).collect();
        }
    }
    checked
}

fn of_axis(region: &Graph, checked: &[Vec<Checked>], node: &Node, value: Value, axis: usize) -> Checked {
    let of = |value: Value, axis: usize| checked[value.index()][axis];
    let shape = |value: Value| &region.ty(value).shape;
    match &node.op {
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_) | Op::StopGradient => {
            let operands = node.operands.iter().map(|&operand| of(operand, axis));
            operands.fold(Checked::Ignored, |all, one| match (all, one) {
                (Checked::No, _) | (_, Checked::No) => Checked::No,
                (Checked::Ignored, other) | (other, Checked::Ignored) => other,
                (Checked::ByLoad, Checked::ByLoad) => Checked::ByLoad,
            })
        }
        Op::Broadcast { shape: _, axes } => match axes.iter().position(|&a| a == axis) {
            Some(i) if shape(node.operands[0])[i] == shape(value)[axis] => of(node.operands[0], i),
            Some(_) | None => Checked::Ignored,
        },
        Op::Transpose { permutation } => of(node.operands[0], permutation[axis]),
        Op::Gather => {
            let (array, indexed) = (node.operands[0], node.operands.len() - 1);
            let leading = shape(value).len() - (shape(array).len() - indexed);
            if axis < leading { Checked::No } else { of(array, axis - leading + indexed) }
        }
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Reshape { .. }
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Reverse { .. }
        | Op::Concatenate { .. }
        | Op::Reduce { .. }
        | Op::ArgMax { .. }
        | Op::Dot(_)
        | Op::ScatterAdd { .. }
        | Op::RandomBits { .. }
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => Checked::No,
    }
}
