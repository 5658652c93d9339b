//! Element types and array types.

use std::fmt;

use crate::{Error, ErrorKind, Result};

/// The type of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 double precision.
    F64,
    /// IEEE 754 single precision.
    F32,
    /// The upper half of a single: 8 exponent bits, 7 fraction bits.
    BF16,
    /// IEEE 754 half precision.
    F16,
    /// Signed 64-bit integer, wrapping.
    I64,
    /// Signed 32-bit integer, wrapping.
    I32,
    /// Unsigned 8-bit integer, wrapping.
    U8,
    /// Truth value, stored as one byte, 0 or 1.
    Bool,
}

impl DType {
    /// Every element type.
    pub const ALL: [DType; 8] =
        [DType::F64, DType::F32, DType::BF16, DType::F16, DType::I64, DType::I32, DType::U8, DType::Bool];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::U8 | DType::Bool => 1,
        }
    }

    /// Whether values of this type carry gradients.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::BF16 | DType::F16)
    }

    /// Whether this is an integer type; `Bool` is not.
    pub fn is_integer(self) -> bool {
        matches!(self, DType::I64 | DType::I32 | DType::U8)
    }

    /// The type that sums of this type are kept in: `f32` for the narrower floats, else itself.
    pub fn accumulator(self) -> DType {
        match self {
            DType::BF16 | DType::F16 => DType::F32,
            DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::U8 | DType::Bool => self,
        }
    }

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::Bool => "bool",
        }
    }

    /// The inverse of [`DType::name`].
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The type of a value: element type and shape. Rank 0 is a scalar.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// The type of each element.
    pub dtype: DType,
    /// The extent of each axis, outermost first.
    pub shape: Vec<usize>,
}

impl Type {
    /// An array type.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Type {
        Type { dtype, shape: shape.into() }
    }

    /// A rank-0 type.
    pub fn scalar(dtype: DType) -> Type {
        Type { dtype, shape: Vec::new() }
    }

    /// How many axes it has.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// How many elements it has. Types inside a verified graph never overflow.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// How many bytes its elements take, packed.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// The same shape with another element type.
    pub fn with_dtype(&self, dtype: DType) -> Type {
        Type { dtype, shape: self.shape.clone() }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

/// The number of elements of `shape`, or [`ErrorKind::TooLarge`] where the bytes of an array of it
/// would not fit `isize` (eight bytes an element are assumed).
pub fn element_count(shape: &[usize]) -> Result<usize> {
    let nonzero: Option<usize> =
        shape.iter().filter(|&&d| d != 0).try_fold(8, |n: usize, &d| n.checked_mul(d));
    match nonzero {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(shape.iter().product()),
        _ => Err(Error::new(ErrorKind::TooLarge {
            what: format!("an array of shape {shape:?}"),
            limit: "2^63 bytes".into(),
        })),
    }
}
