//! Elements in memory to values in registers and back: conversion of type and stride in one pass.

use std::marker::PhantomData;

use tilewright_ir::{DType, Scalar};
use tilewright_plan::Kind;

use super::map::unknown;
use crate::isa::{Compiled, Isa, Kernel, Machine, select};

/// A copy of rows of lanes, with conversion.
pub(crate) struct Move {
    pub rows: usize,
    pub lanes: usize,
    pub from: *const u8,
    /// Bytes from row to row.
    pub from_row: isize,
    /// Elements from lane to lane.
    pub from_lane: isize,
    pub to: *mut u8,
    /// Bytes from row to row.
    pub to_row: isize,
    /// Elements from lane to lane.
    pub to_lane: isize,
}

/// How elements of a type become values of its kind.
#[derive(Clone, Copy)]
pub(crate) struct Convert {
    pub kernel: Compiled<Move>,
    /// Whether the elements are the values, so that none need be moved where they lie side by side.
    pub native: bool,
    /// Bytes of an element.
    pub size: isize,
}

impl Convert {
    /// From elements of `dtype` to values.
    pub fn new(dtype: DType, isa: Isa) -> Convert {
        Convert { kernel: load(dtype, isa), native: native(dtype), size: dtype.size() as isize }
    }

    /// From values to elements of `dtype`.
    pub fn back(dtype: DType, isa: Isa) -> Convert {
        Convert { kernel: store(dtype, isa), native: native(dtype), size: dtype.size() as isize }
    }
}

/// Whether registers hold elements of this type as they are.
pub(crate) fn native(dtype: DType) -> bool {
    match dtype {
        DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::Bool => true,
        DType::BF16 | DType::F16 | DType::U8 => false,
    }
}

/// Bytes of a value.
pub(crate) fn size(kind: Kind) -> usize {
    match kind {
        Kind::F64 | Kind::I64 => 8,
        Kind::F32 | Kind::I32 => 4,
        Kind::Bool => 1,
    }
}

/// The bits of a value, in the low bytes.
pub(crate) fn bits(kind: Kind, value: Scalar) -> u64 {
    match kind {
        Kind::F64 => value.to_f64().to_bits(),
        Kind::F32 => (value.to_f64() as f32).to_bits() as u64,
        Kind::I64 => value.to_i64() as u64,
        Kind::I32 => value.cast(DType::I32).to_i64() as u32 as u64,
        Kind::Bool => value.to_bool() as u64,
    }
}

/// A function from an element to a value or back. `apply` must be `#[inline(always)]`.
pub(super) trait Conversion {
    type From: Copy;
    type To: Copy;
    fn apply(x: Self::From) -> Self::To;
}

struct MoveRows<F>(PhantomData<F>);

impl<F: Conversion> Kernel for MoveRows<F> {
    type Arguments = Move;

    #[inline(always)]
    unsafe fn run<M: Machine>(arguments: &Move) {
        let &Move { rows, lanes, from, from_row, from_lane, to, to_row, to_lane } = arguments;
        let size = size_of::<F::From>() as isize;
        if rows > 1 && (from_lane * size).abs() > from_row.abs().max(size) {
            // Rows lie nearer to each other than lanes: what a line of the cache holds is read at once.
            for lane in 0..lanes as isize {
                let from = from.wrapping_offset(lane * from_lane * size);
                let to = to.wrapping_offset(lane * to_lane * size_of::<F::To>() as isize);
                for row in 0..rows as isize {
                    // SAFETY: the caller vouches for rows of so many lanes at these strides, not overlapping.
                    unsafe {
                        let x = F::apply(*from.wrapping_offset(row * from_row).cast());
                        *to.wrapping_offset(row * to_row).cast() = x;
                    }
                }
            }
            return;
        }
        for row in 0..rows as isize {
            let from = unknown(from.wrapping_offset(row * from_row).cast_mut()).cast::<F::From>();
            let to = unknown(to.wrapping_offset(row * to_row)).cast::<F::To>();
            // SAFETY: the caller vouches for rows of so many lanes at these strides, not overlapping.
            unsafe {
                match (from_lane, to_lane) {
                    (1, 1) => {
                        let from = std::slice::from_raw_parts(from, lanes);
                        let to = std::slice::from_raw_parts_mut(to, lanes);
                        for (to, &from) in to.iter_mut().zip(from) {
                            *to = F::apply(from);
                        }
                    }
                    (-1, 1) => {
                        let from = from.wrapping_sub(lanes.saturating_sub(1));
                        let from = std::slice::from_raw_parts(from, lanes);
                        let to = std::slice::from_raw_parts_mut(to, lanes);
                        for (to, &from) in to.iter_mut().zip(from.iter().rev()) {
                            *to = F::apply(from);
                        }
                    }
                    (0, 1) => std::slice::from_raw_parts_mut(to, lanes).fill(F::apply(*from)),
                    (_, _) => {
                        for lane in 0..lanes as isize {
                            let x = F::apply(*from.wrapping_offset(lane * from_lane));
                            *to.wrapping_offset(lane * to_lane) = x;
                        }
                    }
                }
            }
        }
    }
}

macro_rules! conversions {
    ($($(#[$doc:meta])* $name:ident: $from:ty => $to:ty, |$x:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name;
        impl Conversion for $name {
            type From = $from;
            type To = $to;
            #[inline(always)]
            fn apply($x: $from) -> $to {
                $body
            }
        }
    )*};
}

conversions! {
    FromBf16: u16 => f32, |x| bf16_value(x);
    FromF16: u16 => f32, |x| f16_value(x);
    FromU8: u8 => i32, |x| x as i32;
    ToBf16: f32 => u16, |x| bf16_bits(x);
    ToF16: f32 => u16, |x| f16_bits(x);
    ToU8: i32 => u8, |x| x as u8;
}

/// No conversion.
pub(super) struct Same<T>(PhantomData<T>);

impl<T: Copy> Conversion for Same<T> {
    type From = T;
    type To = T;
    #[inline(always)]
    fn apply(x: T) -> T {
        x
    }
}

fn load(dtype: DType, isa: Isa) -> Compiled<Move> {
    match dtype {
        DType::F64 | DType::I64 => select::<MoveRows<Same<u64>>>(isa),
        DType::F32 | DType::I32 => select::<MoveRows<Same<u32>>>(isa),
        DType::BF16 => select::<MoveRows<FromBf16>>(isa),
        DType::F16 => select::<MoveRows<FromF16>>(isa),
        DType::U8 => select::<MoveRows<FromU8>>(isa),
        DType::Bool => select::<MoveRows<Same<u8>>>(isa),
    }
}

fn store(dtype: DType, isa: Isa) -> Compiled<Move> {
    match dtype {
        DType::F64 | DType::I64 => select::<MoveRows<Same<u64>>>(isa),
        DType::F32 | DType::I32 => select::<MoveRows<Same<u32>>>(isa),
        DType::BF16 => select::<MoveRows<ToBf16>>(isa),
        DType::F16 => select::<MoveRows<ToF16>>(isa),
        DType::U8 => select::<MoveRows<ToU8>>(isa),
        DType::Bool => select::<MoveRows<Same<u8>>>(isa),
    }
}

/// The value of a `bf16`.
#[inline(always)]
pub(crate) fn bf16_value(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// A float rounded to the nearest `bf16`, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

/// The value of an `f16`: shifted into place and scaled by 2¹¹², which makes denormals come out right.
#[inline(always)]
pub(crate) fn f16_value(bits: u16) -> f32 {
    let sign = ((bits & 0x8000) as u32) << 16;
    let magnitude = ((bits & 0x7fff) as u32) << 13;
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = magnitude | 0x7f80_0000;
    f32::from_bits(sign | if magnitude >= 0x0f80_0000 { special } else { scaled })
}

/// A float rounded to the nearest `f16`, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn f16_bits(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) & 0x8000;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    // Below 2⁻¹⁴ the adder rounds: added to 0.5, a float's last place is worth 2⁻²⁴.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_add(0xc800_0fff).wrapping_add(odd) >> 13;
    let finite = if magnitude < 0x3880_0000 { small } else { normal };
    let quiet = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    let large = if magnitude > 0x7f80_0000 { quiet } else { 0x7c00 };
    (sign | if magnitude >= 0x4780_0000 { large } else { finite }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn narrow_floats_convert_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_value(bits), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
            assert_eq!(bf16_value(bits).to_bits(), (bits as u32) << 16);
        }
        for bits in (0..=u32::MAX).step_by(1009).chain((0..=u16::MAX as u32).map(|high| high << 16 | 0x8000))
        {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                assert!(f16::from_bits(f16_bits(x)).is_nan() && bf16::from_bits(bf16_bits(x)).is_nan());
            } else {
                assert_eq!(f16_bits(x), f16::from_f32(x).to_bits(), "{x:e}");
                assert_eq!(bf16_bits(x), bf16::from_f32(x).to_bits(), "{x:e}");
            }
        }
        for half in 0..0x7c00u16 {
            let (x, next) = (f16_value(half), f16_value(half + 1));
            let middle = (x as f64 + next as f64) / 2.0;
            for x in [middle as f32, (middle as f32).next_up(), (middle as f32).next_down()] {
                assert_eq!(f16_bits(x), f16::from_f32(x).to_bits(), "{x:e}");
                assert_eq!(f16_bits(-x), f16::from_f32(-x).to_bits(), "{x:e}");
            }
        }
    }
}
