//! The traced value.

use tilewright_ir::{DType, Scalar, Type, Value};

use crate::recording::{self, FrameId};

/// A value of a function that is being traced: a name for it, not its elements.
///
/// Copyable, so that expressions read as they are thought: `at.query - at.key`. Operators and methods record
/// operations, broadcasting as NumPy does; a plain number takes the type of the tensor that it meets, and
/// two tensors must have one element type ([`Tensor::cast`] converts).
///
/// A traced function runs once for all inputs of its shapes, so a Rust `if` cannot ask for an element's
/// value: [`Tensor::select`] chooses element by element.
/// ```compile_fail
/// fn relu(x: tilewright_trace::Tensor) -> tilewright_trace::Tensor {
///     if x > 0.0 { x } else { x * 0.0 }
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    pub(crate) frame: FrameId,
    pub(crate) slot: Slot,
}

/// What a tensor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// A value of its frame's graph.
    Value(Value),
    /// The result of a failed operation: its type stands at this place of the recording.
    Poisoned(u32),
}

impl Tensor {
    /// A tensor made outside of any recording, which no recording accepts.
    pub(crate) fn husk() -> Tensor {
        Tensor { frame: FrameId::NONE, slot: Slot::Poisoned(u32::MAX) }
    }

    pub(crate) fn same(self, other: Tensor) -> bool {
        self.frame == other.frame && self.slot == other.slot
    }

    pub(crate) fn ty(self) -> Type {
        recording::ty(self)
    }

    /// The extent of each axis, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        self.ty().shape
    }

    /// How many axes it has.
    pub fn rank(&self) -> usize {
        self.ty().rank()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.ty().dtype
    }

    /// The extent of an axis; negative axes count from the end. 1 for an axis that it does not have, which
    /// is an error of the trace.
    #[track_caller]
    pub fn dim(&self, axis: isize) -> usize {
        let ty = self.ty();
        match crate::arguments::axis(axis, ty.rank()) {
            Ok(axis) => ty.shape[axis],
            Err(error) => {
                recording::poison(error.in_operation("dim"), ty);
                1
            }
        }
    }
}

/// An operand of an element-wise operation: a tensor or a plain number.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    /// A traced value.
    Tensor(Tensor),
    /// A number, which takes the element type of the tensor that it meets.
    Number(Scalar),
}

impl From<Tensor> for Operand {
    fn from(tensor: Tensor) -> Operand {
        Operand::Tensor(tensor)
    }
}

impl From<&Tensor> for Operand {
    fn from(tensor: &Tensor) -> Operand {
        Operand::Tensor(*tensor)
    }
}

macro_rules! numbers {
    ($($type:ty => $variant:ident as $wide:ty),*) => {$(
        impl From<$type> for Operand {
            fn from(number: $type) -> Operand {
                Operand::Number(Scalar::$variant(number as $wide))
            }
        }
    )*};
}

numbers!(f64 => Float as f64, f32 => Float as f64, i64 => Integer as i64, i32 => Integer as i64,
    usize => Integer as i64, bool => Bool as bool);
