//! Rust's operators on tensors and numbers.

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Rem, Sub};

use tilewright_ir::{Binary, Unary};

use crate::Tensor;
use crate::elementwise::{binary, unary};

macro_rules! binary_operators {
    ($($trait:ident $method:ident $binary:ident),*) => {$(
        binary_operators!(@pair $trait $method $binary: Tensor, Tensor);
        binary_operators!(@pair $trait $method $binary: Tensor, &Tensor);
        binary_operators!(@pair $trait $method $binary: &Tensor, Tensor);
        binary_operators!(@pair $trait $method $binary: &Tensor, &Tensor);
        binary_operators!(@pair $trait $method $binary: Tensor, f64);
        binary_operators!(@pair $trait $method $binary: &Tensor, f64);
        binary_operators!(@pair $trait $method $binary: f64, Tensor);
        binary_operators!(@pair $trait $method $binary: f64, &Tensor);
        binary_operators!(@pair $trait $method $binary: Tensor, i64);
        binary_operators!(@pair $trait $method $binary: &Tensor, i64);
        binary_operators!(@pair $trait $method $binary: i64, Tensor);
        binary_operators!(@pair $trait $method $binary: i64, &Tensor);
    )*};
    (@pair $trait:ident $method:ident $binary:ident: $left:ty, $right:ty) => {
        impl $trait<$right> for $left {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, right: $right) -> Tensor {
                binary(Binary::$binary, self.into(), right.into())
            }
        }
    };
}

binary_operators!(Add add Add, Sub sub Sub, Mul mul Mul, Div div Div, Rem rem Rem,
    BitAnd bitand And, BitOr bitor Or, BitXor bitxor Xor);

macro_rules! unary_operators {
    ($($trait:ident $method:ident $unary:ident for $type:ty),*) => {$(
        impl $trait for $type {
            type Output = Tensor;
            #[track_caller]
            fn $method(self) -> Tensor {
                unary(Unary::$unary, self)
            }
        }
    )*};
}

unary_operators!(Neg neg Neg for Tensor, Neg neg Neg for &Tensor, Not not Not for Tensor, Not not Not for &Tensor);

/// The sum of one or more tensors, as `iter.sum()`; of none, an `f32` zero.
impl std::iter::Sum for Tensor {
    fn sum<I: Iterator<Item = Tensor>>(iter: I) -> Tensor {
        iter.reduce(|a, b| a + b).unwrap_or_else(|| crate::zeros((), tilewright_ir::DType::F32))
    }
}
