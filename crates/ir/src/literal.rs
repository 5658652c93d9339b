//! Constants: one element, or a small array of them.

use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};

use crate::{DType, Type};

/// One element's value, wide enough for every type of its kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// A float, to be rounded to the type it is used at.
    Float(f64),
    /// An integer, to be wrapped to the type it is used at.
    Integer(i64),
    /// A truth value.
    Bool(bool),
}

impl Scalar {
    /// The value as a float.
    pub fn to_f64(self) -> f64 {
        match self {
            Scalar::Float(x) => x,
            Scalar::Integer(x) => x as f64,
            Scalar::Bool(x) => x as u8 as f64,
        }
    }

    /// The value as an integer; floats are truncated towards zero and saturate, NaN is 0.
    pub fn to_i64(self) -> i64 {
        match self {
            Scalar::Float(x) => x as i64,
            Scalar::Integer(x) => x,
            Scalar::Bool(x) => x as i64,
        }
    }

    /// Whether the value is not zero.
    pub fn to_bool(self) -> bool {
        match self {
            Scalar::Float(x) => x != 0.0,
            Scalar::Integer(x) => x != 0,
            Scalar::Bool(x) => x,
        }
    }

    /// The value that an element of `dtype` holds after conversion: rounded, wrapped or tested.
    pub fn cast(self, dtype: DType) -> Scalar {
        match dtype {
            DType::F64 => Scalar::Float(self.to_f64()),
            DType::F32 => Scalar::Float(self.to_f64() as f32 as f64),
            DType::BF16 => Scalar::Float(bf16::from_f64(self.to_f64()).to_f64()),
            DType::F16 => Scalar::Float(f16::from_f64(self.to_f64()).to_f64()),
            DType::I64 => Scalar::Integer(self.to_i64()),
            DType::I32 => Scalar::Integer(match self {
                Scalar::Float(x) => x as i32 as i64,
                Scalar::Integer(_) | Scalar::Bool(_) => self.to_i64() as i32 as i64,
            }),
            DType::U8 => Scalar::Integer(match self {
                Scalar::Float(x) => x as u8 as i64,
                Scalar::Integer(_) | Scalar::Bool(_) => self.to_i64() as u8 as i64,
            }),
            DType::Bool => Scalar::Bool(self.to_bool()),
        }
    }

    /// The value's bytes as an element of `dtype`, little-endian.
    pub fn to_bytes(self, dtype: DType) -> Vec<u8> {
        match dtype {
            DType::F64 => self.to_f64().to_le_bytes().to_vec(),
            DType::F32 => (self.to_f64() as f32).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f64(self.to_f64()).to_le_bytes().to_vec(),
            DType::F16 => f16::from_f64(self.to_f64()).to_le_bytes().to_vec(),
            DType::I64 => self.cast(dtype).to_i64().to_le_bytes().to_vec(),
            DType::I32 => (self.cast(dtype).to_i64() as i32).to_le_bytes().to_vec(),
            DType::U8 => vec![self.cast(dtype).to_i64() as u8],
            DType::Bool => vec![self.to_bool() as u8],
        }
    }

    /// The element of `dtype` that `bytes` hold, little-endian.
    ///
    /// # Panics
    /// Where `bytes` is not exactly one element long.
    pub fn from_bytes(dtype: DType, bytes: &[u8]) -> Scalar {
        fn exactly<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().expect("one element's bytes")
        }
        match dtype {
            DType::F64 => Scalar::Float(f64::from_le_bytes(exactly(bytes))),
            DType::F32 => Scalar::Float(f32::from_le_bytes(exactly(bytes)) as f64),
            DType::BF16 => Scalar::Float(bf16::from_le_bytes(exactly(bytes)).to_f64()),
            DType::F16 => Scalar::Float(f16::from_le_bytes(exactly(bytes)).to_f64()),
            DType::I64 => Scalar::Integer(i64::from_le_bytes(exactly(bytes))),
            DType::I32 => Scalar::Integer(i32::from_le_bytes(exactly(bytes)) as i64),
            DType::U8 => Scalar::Integer(bytes[0] as i64),
            DType::Bool => Scalar::Bool(bytes[0] != 0),
        }
    }
}

impl From<f64> for Scalar {
    fn from(x: f64) -> Scalar {
        Scalar::Float(x)
    }
}

impl From<f32> for Scalar {
    fn from(x: f32) -> Scalar {
        Scalar::Float(x as f64)
    }
}

impl From<i64> for Scalar {
    fn from(x: i64) -> Scalar {
        Scalar::Integer(x)
    }
}

impl From<i32> for Scalar {
    fn from(x: i32) -> Scalar {
        Scalar::Integer(x as i64)
    }
}

impl From<bool> for Scalar {
    fn from(x: bool) -> Scalar {
        Scalar::Bool(x)
    }
}

/// A constant array, packed in row-major order, little-endian. Cheap to clone.
///
/// Two literals are equal when their bits are; so `-0.0` and `0.0` differ, and a NaN equals itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Literal {
    ty: Type,
    bytes: Arc<[u8]>,
}

impl Literal {
    /// A rank-0 constant.
    pub fn scalar(dtype: DType, value: impl Into<Scalar>) -> Literal {
        Literal { ty: Type::scalar(dtype), bytes: value.into().to_bytes(dtype).into() }
    }

    /// An array constant from its packed bytes.
    ///
    /// # Panics
    /// Where the number of bytes is not what `ty` takes.
    pub fn array(ty: Type, bytes: impl Into<Arc<[u8]>>) -> Literal {
        let bytes = bytes.into();
        assert_eq!(bytes.len(), ty.bytes(), "the bytes of a literal of type {ty}");
        Literal { ty, bytes }
    }

    /// An array constant from its elements in row-major order.
    ///
    /// # Panics
    /// Where the number of elements is not what `ty` takes.
    pub fn from_scalars(ty: Type, elements: impl IntoIterator<Item = Scalar>) -> Literal {
        let bytes: Vec<u8> = elements.into_iter().flat_map(|x| x.to_bytes(ty.dtype)).collect();
        Literal::array(ty, bytes)
    }

    /// Its type.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Its packed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The element at `index` of the row-major order.
    pub fn element(&self, index: usize) -> Scalar {
        let size = self.ty.dtype.size();
        Scalar::from_bytes(self.ty.dtype, &self.bytes[index * size..(index + 1) * size])
    }

    /// Its elements in row-major order.
    pub fn elements(&self) -> impl Iterator<Item = Scalar> + '_ {
        self.bytes.chunks_exact(self.ty.dtype.size()).map(|b| Scalar::from_bytes(self.ty.dtype, b))
    }

    /// The value that every element has, if there is exactly one such (by bits).
    pub fn splat(&self) -> Option<Scalar> {
        let size = self.ty.dtype.size();
        let first = self.bytes.get(..size)?;
        self.bytes.chunks_exact(size).all(|b| b == first).then(|| Scalar::from_bytes(self.ty.dtype, first))
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Float(x) if x.is_nan() => f.write_str("nan"),
            Scalar::Float(x) => write!(f, "{x:?}"),
            Scalar::Integer(x) => write!(f, "{x}"),
            Scalar::Bool(x) => write!(f, "{x}"),
        }
    }
}
