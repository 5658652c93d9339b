//! What a lowered operation is given for each of its operands.

use tilewright_ir::{Graph, Node, Op, Origin, Type, Value};
use tilewright_plan::{Table, View};

/// An operand that lies in a buffer.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    /// Where its elements are, one stride per axis.
    pub view: View,
    /// Its type.
    pub ty: Type,
    /// What to call it in an error, as the user would.
    pub name: String,
    /// The user's line that made it.
    pub origin: Option<Origin>,
}

impl Operand {
    /// The operand as an array that is read at computed indices, at the line `origin`.
    pub fn table(&self, origin: Option<Origin>) -> Table {
        Table {
            view: self.view.clone(),
            dtype: self.ty.dtype,
            shape: self.ty.shape.clone(),
            name: self.name.clone(),
            origin,
        }
    }
}

/// The user's line of the first gather of a region that reads `array`.
pub(crate) fn line_of_read(region: &Graph, array: Value) -> Option<Origin> {
    let reads = |node: &&Node| matches!(node.op, Op::Gather) && node.operands[0] == array;
    region.nodes().iter().find(reads)?.origin.clone()
}
