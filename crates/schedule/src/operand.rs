//! What a lowered operation is given for each of its operands.

use tilewright_ir::{Origin, Type};
use tilewright_plan::View;

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
