//! Shapes: the same elements elsewhere, fewer of them, or more.

use std::ops::{Bound, RangeBounds};

use tilewright_ir::{Error, Op, Result, Type};

use crate::arguments::{self, Axes, Dims};
use crate::recording::record;
use crate::{Operand, Tensor};

/// The tensors one after the other along an axis; their other extents are equal.
#[track_caller]
pub fn concatenate(tensors: &[Tensor], axis: isize) -> Tensor {
    let guess = tensors.first().map_or(Type::scalar(tilewright_ir::DType::F32), |tensor| tensor.ty());
    let axis = check!("concatenate", guess, arguments::axis(axis, guess.rank()));
    record(Op::Concatenate { axis }, tensors)
}

/// Tensors of one shape as the slices of a new axis.
#[track_caller]
pub fn stack(tensors: &[Tensor], axis: isize) -> Tensor {
    let mut slices = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        slices.push(tensor.unsqueeze(axis));
    }
    concatenate(&slices, axis)
}

/// A range of positions of an axis, where negative ones count from the end.
fn resolve_range(range: impl RangeBounds<isize>, extent: usize) -> Result<(usize, usize)> {
    let resolve = |position: isize| {
        let resolved = if position < 0 { position + extent as isize } else { position };
        usize::try_from(resolved).ok().filter(|&position| position <= extent).ok_or_else(|| {
            Error::argument("range", format!("position {position} of an axis of extent {extent}"))
        })
    };
    let start = match range.start_bound() {
        Bound::Included(&start) => resolve(start)?,
        Bound::Excluded(&start) => resolve(start)? + 1,
        Bound::Unbounded => 0,
    };
    let limit = match range.end_bound() {
        Bound::Included(&-1) => extent,
        Bound::Included(&end) => resolve(end + 1)?,
        Bound::Excluded(&end) => resolve(end)?,
        Bound::Unbounded => extent,
    };
    if start > limit {
        return Err(Error::argument("range", format!("starts at {start} and ends before, at {limit}")));
    }
    Ok((start, limit))
}

impl Tensor {
    /// The axis of this tensor that `axis` names, negative ones counting from the end.
    pub(crate) fn axis(self, axis: isize) -> Result<usize> {
        arguments::axis(axis, self.rank())
    }

    /// This tensor repeated to `shape`: axes of extent 1 and missing leading axes are repeated.
    #[track_caller]
    pub fn broadcast_to(&self, shape: impl Dims) -> Tensor {
        let ty = self.ty();
        let shape = check!("broadcast_to", ty, shape.shape_for(0));
        if ty.shape == shape {
            return *self;
        }
        if shape.len() < ty.rank() {
            let error = Error::shape("shape", format!("at least {} axes", ty.rank()), format!("{shape:?}"));
            return crate::recording::poison(error.in_operation("broadcast_to"), ty);
        }
        let axes = (shape.len() - ty.rank()..shape.len()).collect();
        record(Op::Broadcast { shape, axes }, &[*self])
    }

    /// The same elements in row-major order under another shape; one extent may be left open as `-1` or
    /// [`crate::REST`].
    #[track_caller]
    pub fn reshape(&self, shape: impl Dims) -> Tensor {
        let ty = self.ty();
        let shape = check!("reshape", ty, shape.shape_for(ty.elements()));
        if ty.shape == shape { *self } else { record(Op::Reshape { shape }, &[*self]) }
    }

    /// All elements along one axis.
    #[track_caller]
    pub fn flatten(&self) -> Tensor {
        let elements = self.ty().elements();
        self.reshape([elements])
    }

    /// The axes in another order: result axis i is axis `axes[i]` of this one.
    #[track_caller]
    pub fn permute(&self, axes: impl Axes) -> Tensor {
        let permutation = check!("permute", self.ty(), axes.resolve(self.rank()));
        if permutation.iter().copied().eq(0..self.rank()) {
            return *self;
        }
        record(Op::Transpose { permutation }, &[*self])
    }

    /// The last two axes swapped.
    #[track_caller]
    pub fn transpose(&self) -> Tensor {
        self.swap_axes(-2, -1)
    }

    /// Two axes swapped.
    #[track_caller]
    pub fn swap_axes(&self, a: isize, b: isize) -> Tensor {
        let a = check!("swap_axes", self.ty(), self.axis(a));
        let b = check!("swap_axes", self.ty(), self.axis(b));
        let mut axes: Vec<usize> = (0..self.rank()).collect();
        axes.swap(a, b);
        self.permute(axes)
    }

    /// One axis moved to another place, the others keeping their order.
    #[track_caller]
    pub fn move_axis(&self, from: isize, to: isize) -> Tensor {
        let from = check!("move_axis", self.ty(), self.axis(from));
        let to = check!("move_axis", self.ty(), self.axis(to));
        let mut axes: Vec<usize> = (0..self.rank()).collect();
        let moved = axes.remove(from);
        axes.insert(to, moved);
        self.permute(axes)
    }

    /// The named axes, each of extent 1, dropped.
    #[track_caller]
    pub fn squeeze(&self, axes: impl Axes) -> Tensor {
        let ty = self.ty();
        let axes = check!("squeeze", ty, axes.resolve(ty.rank()));
        if let Some(&axis) = axes.iter().find(|&&axis| ty.shape[axis] != 1) {
            let error = Error::axis("operand", axis, 1, ty.shape[axis]);
            return crate::recording::poison(error.in_operation("squeeze"), ty);
        }
        let kept = (0..ty.rank()).filter(|axis| !axes.contains(axis));
        self.reshape(kept.map(|axis| ty.shape[axis]).collect::<Vec<_>>())
    }

    /// A new axis of extent 1 at `axis` of the result.
    #[track_caller]
    pub fn unsqueeze(&self, axis: isize) -> Tensor {
        let mut shape = self.shape();
        let axis = check!("unsqueeze", self.ty(), arguments::axis(axis, shape.len() + 1));
        shape.insert(axis, 1);
        self.reshape(shape)
    }

    /// The positions `range` of an axis; negative ones count from the end: `x.slice(1, ..-1)`.
    #[track_caller]
    pub fn slice(&self, axis: isize, range: impl RangeBounds<isize>) -> Tensor {
        self.slice_by(axis, range, 1)
    }

    /// Every `step`-th of the positions `range` of an axis, starting with the first.
    #[track_caller]
    pub fn slice_by(&self, axis: isize, range: impl RangeBounds<isize>, step: usize) -> Tensor {
        let ty = self.ty();
        let axis = check!("slice", ty, self.axis(axis));
        let (first, last) = check!("slice", ty, resolve_range(range, ty.shape[axis]));
        if (first, last, step) == (0, ty.shape[axis], 1) {
            return *self;
        }
        let (mut start, mut limit, mut steps) = (vec![0; ty.rank()], ty.shape.clone(), vec![1; ty.rank()]);
        (start[axis], limit[axis], steps[axis]) = (first, last, step);
        record(Op::Slice { start, limit, step: steps }, &[*self])
    }

    /// `length` positions of an axis from `start` on.
    #[track_caller]
    pub fn narrow(&self, axis: isize, start: usize, length: usize) -> Tensor {
        self.slice(axis, start as isize..start.saturating_add(length) as isize)
    }

    /// One position of an axis, which is dropped; a negative one counts from the end.
    #[track_caller]
    pub fn index(&self, axis: isize, position: isize) -> Tensor {
        let axis = check!("index", self.ty(), self.axis(axis));
        let extent = self.shape()[axis] as isize;
        if position < -extent || position >= extent {
            let message = format!("position {position} of axis {axis}, which has extent {extent}");
            let error = Error::argument("position", message).in_operation("index");
            return crate::recording::poison(error, self.ty());
        }
        let position = position.rem_euclid(extent);
        self.slice(axis as isize, position..position + 1).squeeze(axis)
    }

    /// Cut along an axis into `parts` equal parts.
    #[track_caller]
    pub fn split(&self, parts: usize, axis: isize) -> Vec<Tensor> {
        let ty = self.ty();
        let resolved = self.axis(axis).and_then(|axis| {
            let extent = ty.shape[axis];
            if parts == 0 || !extent.is_multiple_of(parts) {
                return Err(Error::axis("operand", axis, format!("a multiple of {parts}"), extent));
            }
            Ok((axis, extent / parts))
        });
        let (axis, size) = match resolved {
            Ok(resolved) => resolved,
            Err(error) => {
                return vec![crate::recording::poison(error.in_operation("split"), ty); parts.min(64)];
            }
        };
        let mut pieces = Vec::with_capacity(parts);
        for part in 0..parts {
            pieces.push(self.narrow(axis as isize, part * size, size));
        }
        pieces
    }

    /// Elements `value` added before and after an axis.
    #[track_caller]
    pub fn pad(&self, axis: isize, before: usize, after: usize, value: impl Into<Operand>) -> Tensor {
        let ty = self.ty();
        let axis = check!("pad", ty, self.axis(axis));
        let value = match value.into() {
            Operand::Tensor(tensor) => tensor,
            Operand::Number(scalar) => check!("pad", ty, crate::elementwise::number(ty.dtype, scalar)),
        };
        let (mut low, mut high) = (vec![0; ty.rank()], vec![0; ty.rank()]);
        (low[axis], high[axis]) = (before, after);
        record(Op::Pad { low, high, interior: vec![0; ty.rank()] }, &[*self, value])
    }

    /// The named axes in reverse order.
    #[track_caller]
    pub fn flip(&self, axes: impl Axes) -> Tensor {
        let mut axes = check!("flip", self.ty(), axes.resolve(self.rank()));
        axes.sort_unstable();
        record(Op::Reverse { axes }, &[*self])
    }

    /// Each element moved `shift` positions up an axis, those at the end going to the beginning.
    #[track_caller]
    pub fn roll(&self, shift: isize, axis: isize) -> Tensor {
        let axis = check!("roll", self.ty(), self.axis(axis));
        let extent = self.shape()[axis] as isize;
        let shift = if extent == 0 { 0 } else { shift.rem_euclid(extent) };
        if shift == 0 {
            return *self;
        }
        let axis = axis as isize;
        concatenate(&[self.slice(axis, extent - shift..), self.slice(axis, ..extent - shift)], axis)
    }
}
