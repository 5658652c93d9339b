//! Arithmetic of positions in registers.

use tilewright_ir::{Binary, Compare, Scalar};
use tilewright_plan::{Kind, Register};

use super::Lowering;

impl<'a> Lowering<'a> {
    /// A constant index.
    pub fn constant(&mut self, index: usize) -> Register {
        let kind = if index <= i32::MAX as usize { Kind::I32 } else { Kind::I64 };
        self.builder.constant(kind, index as i64)
    }

    pub(super) fn constants(&mut self, position: &[usize]) -> Vec<Register> {
        position.iter().map(|&i| self.constant(i)).collect()
    }

    /// Two indices in one kind.
    pub(super) fn unified(&mut self, x: Register, y: Register) -> (Register, Register) {
        if self.builder.kind(x) == self.builder.kind(y) {
            return (x, y);
        }
        (self.builder.cast(x, Kind::I64), self.builder.cast(y, Kind::I64))
    }

    /// Arithmetic on two indices.
    pub fn integer(&mut self, function: Binary, x: Register, y: Register) -> Register {
        let (x, y) = self.unified(x, y);
        self.builder.binary(function, x, y)
    }

    pub(super) fn index_compare(&mut self, comparison: Compare, x: Register, y: Register) -> Register {
        let (x, y) = self.unified(x, y);
        self.builder.compare(comparison, x, y)
    }

    /// `scale · x + offset`, the result being an index of an array.
    pub fn affine(&mut self, x: Register, scale: usize, offset: usize) -> Register {
        let (scale, offset) = (self.constant(scale), self.constant(offset));
        let scaled = self.integer(Binary::Mul, x, scale);
        self.integer(Binary::Add, scaled, offset)
    }

    /// An index with negative ones counted from the end of an axis.
    pub fn counted(&mut self, x: Register, extent: usize) -> Register {
        let (zero, extent) = (self.constant(0), self.constant(extent));
        let (wide, extent) = self.unified(x, extent);
        let wrapped = self.builder.binary(Binary::Add, wide, extent);
        let negative = self.index_compare(Compare::Lt, x, zero);
        self.builder.select(negative, wrapped, wide)
    }

    pub(super) fn clamped(&mut self, x: Register, extent: usize) -> Register {
        let (zero, last) = (self.constant(0), self.constant(extent.saturating_sub(1)));
        let raised = self.integer(Binary::Max, x, zero);
        self.integer(Binary::Min, raised, last)
    }

    pub(super) fn is_false(&self, condition: Register) -> bool {
        self.builder.constant_value(condition) == Some(Scalar::Bool(false))
    }

    /// The row-major position of an index in an array of `shape`.
    pub fn row_major(&mut self, index: &[Register], shape: &[usize]) -> Register {
        let wide = shape.iter().product::<usize>() > i32::MAX as usize;
        let mut position = self.constant(0);
        for (&i, &extent) in index.iter().zip(shape) {
            let i = if wide { self.builder.cast(i, Kind::I64) } else { i };
            let extent = self.constant(extent);
            let above = self.integer(Binary::Mul, position, extent);
            position = self.integer(Binary::Add, above, i);
        }
        position
    }

    /// The index in an array of shape `to` of the element at `index` of an array of shape `from`.
    pub fn reshaped(&mut self, index: &[Register], from: &[usize], to: &[usize]) -> Vec<Register> {
        let long = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        let zero = self.constant(0);
        if long(from) == long(to) {
            let mut kept = index.iter().zip(from).filter(|&(_, &n)| n != 1).map(|(&register, _)| register);
            return to.iter().map(|&n| if n == 1 { zero } else { kept.next().expect("as many") }).collect();
        }
        let mut rest = self.row_major(index, from);
        let mut reshaped = vec![zero; to.len()];
        for axis in (0..to.len()).rev() {
            let extent = self.constant(to[axis]);
            reshaped[axis] = self.integer(Binary::Rem, rest, extent);
            rest = self.integer(Binary::Div, rest, extent);
        }
        reshaped
    }
}

/// The positions of an array of `shape`, in row-major order.
pub(crate) fn positions(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let shape = shape.to_vec();
    (0..shape.iter().product()).map(move |mut rest: usize| {
        let mut position = vec![0; shape.len()];
        for (place, &extent) in position.iter_mut().zip(&shape).rev() {
            *place = rest % extent;
            rest /= extent;
        }
        position
    })
}
