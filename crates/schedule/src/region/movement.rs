//! Elements of what only moves elements: paddings and concatenations.

use tilewright_ir::{Binary, Compare, Node, Result};
use tilewright_plan::{Kind, Register};

use super::Lowering;

impl<'a> Lowering<'a> {
    pub(super) fn pad(
        &mut self,
        node: &Node,
        low: &[usize],
        interior: &[usize],
        index: &[Register],
    ) -> Result<Register> {
        let (operand, padding) = (node.operands[0], node.operands[1]);
        let padding = self.element(padding, &[])?;
        let mut inside = self.builder.constant(Kind::Bool, true);
        let mut inner = Vec::new();
        for (axis, &extent) in self.shape(operand).iter().enumerate() {
            let low = self.constant(low[axis]);
            let shifted = self.integer(Binary::Sub, index[axis], low);
            let step = self.constant(interior[axis] + 1);
            let remainder = self.integer(Binary::Rem, shifted, step);
            let position = self.integer(Binary::Div, shifted, step);
            let (zero, extent) = (self.constant(0), self.constant(extent));
            let conditions = [
                self.index_compare(Compare::Eq, remainder, zero),
                self.index_compare(Compare::Ge, position, zero),
                self.index_compare(Compare::Lt, position, extent),
            ];
            for condition in conditions {
                inside = self.builder.binary(Binary::And, inside, condition);
            }
            inner.push(self.clamped(position, self.shape(operand)[axis]));
        }
        if self.is_false(inside) || self.region.ty(operand).elements() == 0 {
            return Ok(padding);
        }
        let element = self.element(operand, &inner)?;
        Ok(self.builder.select(inside, element, padding))
    }

    pub(super) fn concatenate(&mut self, node: &Node, axis: usize, index: &[Register]) -> Result<Register> {
        let mut start = 0;
        let mut picked = None;
        for &operand in &node.operands {
            let extent = self.shape(operand)[axis];
            if extent == 0 {
                continue;
            }
            let origin = self.constant(start);
            let shifted = self.integer(Binary::Sub, index[axis], origin);
            let here = self.index_compare(Compare::Ge, index[axis], origin);
            start += extent;
            if self.is_false(here) {
                break;
            }
            let mut inner = index.to_vec();
            inner[axis] = self.clamped(shifted, extent);
            let element = self.element(operand, &inner)?;
            picked = Some(match picked {
                Some(before) => self.builder.select(here, element, before),
                None => element,
            });
        }
        Ok(picked.expect("an operand that holds the element"))
    }
}
