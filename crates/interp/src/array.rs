//! Arrays of the interpreter.

use tilewright_ir::{Error, ErrorKind, Literal, Result, Scalar, Type};

/// An array: floats as `f64`, integers and truth values as `i64`, in row-major order.
///
/// Arrays from [`crate::run`] in [`crate::Precision::Exact`] hold floats that their type cannot; the
/// constructors round.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub(crate) ty: Type,
    pub(crate) data: Data,
}

/// The elements of an [`Array`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    /// Of the float types.
    Float(Vec<f64>),
    /// Of the integer types, within their range; of `bool`, 0 or 1.
    Integer(Vec<i64>),
}

impl Array {
    /// An array from its elements, each rounded or wrapped to the type.
    ///
    /// # Panics
    /// Where the number of elements is not what `ty` takes.
    pub fn from_f64s(ty: Type, elements: &[f64]) -> Array {
        Array::from_scalars(ty, elements.iter().map(|&x| Scalar::Float(x)))
    }

    /// An array from its elements, each rounded or wrapped to the type.
    ///
    /// # Panics
    /// Where the number of elements is not what `ty` takes.
    pub fn from_i64s(ty: Type, elements: &[i64]) -> Array {
        Array::from_scalars(ty, elements.iter().map(|&x| Scalar::Integer(x)))
    }

    /// An array from its packed little-endian bytes.
    ///
    /// # Panics
    /// Where the number of bytes is not what `ty` takes.
    pub fn from_bytes(ty: Type, bytes: &[u8]) -> Array {
        let dtype = ty.dtype;
        Array::from_scalars(ty, bytes.chunks(dtype.size()).map(|bytes| Scalar::from_bytes(dtype, bytes)))
    }

    /// The array that a literal is.
    pub fn from_literal(literal: &Literal) -> Array {
        Array::from_scalars(literal.ty().clone(), literal.elements())
    }

    fn from_scalars(ty: Type, elements: impl Iterator<Item = Scalar>) -> Array {
        let cast = elements.map(|x| x.cast(ty.dtype));
        let data = if ty.dtype.is_float() {
            Data::Float(cast.map(Scalar::to_f64).collect())
        } else {
            Data::Integer(cast.map(Scalar::to_i64).collect())
        };
        assert_eq!(data.len(), ty.elements(), "the elements of an array of type {ty}");
        Array { ty, data }
    }

    /// An array of zeros.
    pub fn zeros(ty: Type) -> Array {
        let elements = ty.elements();
        Array::from_scalars(ty, (0..elements).map(|_| Scalar::Integer(0)))
    }

    /// An array that is yet to be filled.
    pub(crate) fn unfilled(ty: Type) -> Array {
        let data = if ty.dtype.is_float() { Data::Float(Vec::new()) } else { Data::Integer(Vec::new()) };
        Array { ty, data }
    }

    /// Its type.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Its elements as floats; integers above 2^53 are rounded.
    pub fn to_f64s(&self) -> Vec<f64> {
        match &self.data {
            Data::Float(elements) => elements.clone(),
            Data::Integer(elements) => elements.iter().map(|&x| x as f64).collect(),
        }
    }

    /// Its elements as integers; floats are truncated.
    pub fn to_i64s(&self) -> Vec<i64> {
        match &self.data {
            Data::Float(elements) => elements.iter().map(|&x| x as i64).collect(),
            Data::Integer(elements) => elements.clone(),
        }
    }

    /// Its elements as packed little-endian bytes, rounded to the type. Each NaN is the usual one, since
    /// machines differ in the sign that they give it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let dtype = self.ty.dtype;
        match &self.data {
            Data::Float(elements) => {
                let usual = elements.iter().map(|&x| if x.is_nan() { f64::NAN } else { x });
                usual.flat_map(|x| Scalar::Float(x).to_bytes(dtype)).collect()
            }
            Data::Integer(elements) => {
                elements.iter().flat_map(|&x| Scalar::Integer(x).to_bytes(dtype)).collect()
            }
        }
    }

    /// The constant that the array is, its elements rounded to the type.
    pub fn to_literal(&self) -> Literal {
        Literal::array(self.ty.clone(), self.to_bytes())
    }

    pub(crate) fn floats(&self) -> &[f64] {
        self.data.floats()
    }

    pub(crate) fn integers(&self) -> &[i64] {
        self.data.integers()
    }

    /// Makes it hold these floats.
    pub(crate) fn fill(&mut self, floats: impl IntoIterator<Item = f64>) {
        match &mut self.data {
            Data::Float(elements) => refill(elements, floats),
            Data::Integer(_) => unreachable!("the typing rules ask for floats"),
        }
    }

    /// Makes it hold these integers.
    pub(crate) fn fill_integers(&mut self, integers: impl IntoIterator<Item = i64>) {
        match &mut self.data {
            Data::Integer(elements) => refill(elements, integers),
            Data::Float(_) => unreachable!("the typing rules ask for integers"),
        }
    }

    /// Makes room for its elements, so that a lack of memory is an error.
    pub(crate) fn reserve(&mut self) -> Result<()> {
        let count = self.ty.elements().saturating_sub(self.data.len());
        let reserved = match &mut self.data {
            Data::Float(elements) => elements.try_reserve_exact(count),
            Data::Integer(elements) => elements.try_reserve_exact(count),
        };
        reserved.map_err(|_| {
            Error::new(ErrorKind::OutOfMemory { bytes: count.saturating_mul(8), device: "cpu".into() })
        })
    }
}

impl Data {
    pub(crate) fn floats(&self) -> &[f64] {
        match self {
            Data::Float(elements) => elements,
            Data::Integer(_) => unreachable!("the typing rules ask for floats"),
        }
    }

    pub(crate) fn integers(&self) -> &[i64] {
        match self {
            Data::Integer(elements) => elements,
            Data::Float(_) => unreachable!("the typing rules ask for integers"),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Data::Float(elements) => elements.len(),
            Data::Integer(elements) => elements.len(),
        }
    }
}

fn refill<T>(elements: &mut Vec<T>, new: impl IntoIterator<Item = T>) {
    elements.clear();
    elements.extend(new);
}
