//! Rust types that are elements of arrays.

use half::{bf16, f16};

use crate::DType;

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that an [`crate::Array`] can hold.
pub trait Element: Copy + sealed::Sealed + 'static {
    /// The element type that it is.
    const DTYPE: DType;

    /// The elements that `bytes` hold; `bytes` is aligned to elements and a whole number of them.
    fn read(bytes: &[u8]) -> Vec<Self>;

    /// Writes elements over `bytes`, of the same size and alignment.
    fn write(elements: &[Self], bytes: &mut [u8]);
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),* $(,)?) => {$(
        impl sealed::Sealed for $type {}

        impl Element for $type {
            const DTYPE: DType = DType::$dtype;

            fn read(bytes: &[u8]) -> Vec<$type> {
                bytemuck::cast_slice(bytes).to_vec()
            }

            fn write(elements: &[$type], bytes: &mut [u8]) {
                bytes.copy_from_slice(bytemuck::cast_slice(elements));
            }
        }
    )*};
}

elements!(f64 => F64, f32 => F32, bf16 => BF16, f16 => F16, i64 => I64, i32 => I32, u8 => U8);

impl sealed::Sealed for bool {}

impl Element for bool {
    const DTYPE: DType = DType::Bool;

    fn read(bytes: &[u8]) -> Vec<bool> {
        bytes.iter().map(|&byte| byte != 0).collect()
    }

    fn write(elements: &[bool], bytes: &mut [u8]) {
        bytes.iter_mut().zip(elements).for_each(|(byte, &element)| *byte = element as u8);
    }
}
