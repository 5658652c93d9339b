//! Arguments that name axes and shapes.

use std::ops::RangeFull;

use tilewright_ir::{Error, Result, element_count};

/// In a shape: the extent that makes the sizes fit. In shapes of signed integers, `-1` means the same.
pub const REST: usize = usize::MAX;

/// An axis of `rank`, where a negative one counts from the end.
pub(crate) fn axis(axis: isize, rank: usize) -> Result<usize> {
    let resolved = if axis < 0 { axis.checked_add_unsigned(rank) } else { Some(axis) };
    match resolved.and_then(|axis| usize::try_from(axis).ok()).filter(|&axis| axis < rank) {
        Some(axis) => Ok(axis),
        None => Err(Error::shape("axis", format!("an axis of a rank-{rank} array"), axis)),
    }
}

/// One or several axes: `-1`, `[0, 2]`, a slice, or `..` for all of them.
pub trait Axes {
    /// The axes in the order given, each below `rank`, none twice.
    ///
    /// # Errors
    /// [`tilewright_ir::ErrorKind::Shape`] for an axis out of range or named twice.
    fn resolve(&self, rank: usize) -> Result<Vec<usize>>;
}

impl Axes for RangeFull {
    fn resolve(&self, rank: usize) -> Result<Vec<usize>> {
        Ok((0..rank).collect())
    }
}

fn resolve_axes(axes: impl Iterator<Item = isize>, rank: usize) -> Result<Vec<usize>> {
    let mut resolved = Vec::new();
    for number in axes {
        let axis = axis(number, rank)?;
        if resolved.contains(&axis) {
            return Err(Error::shape("axes", "distinct axes", format!("axis {axis} twice")));
        }
        resolved.push(axis);
    }
    Ok(resolved)
}

/// The extents of a shape; one may be left to be found ([`REST`], or `-1`).
pub trait Dims {
    /// The shape of an array of `elements` elements.
    ///
    /// # Errors
    /// [`tilewright_ir::ErrorKind::Shape`] where no extent fits, or more than one is left open.
    fn shape_for(&self, elements: usize) -> Result<Vec<usize>> {
        let dims = self.extents();
        let open = dims.iter().filter(|dim| dim.is_none()).count();
        if open == 0 {
            return Ok(dims.into_iter().flatten().collect());
        }
        let known: Vec<usize> = dims.iter().copied().flatten().collect();
        let count = element_count(&known)?;
        if open > 1 || count == 0 || !elements.is_multiple_of(count) {
            let found = format!("{known:?} and {open} open");
            return Err(Error::shape(
                "shape",
                format!("one extent left open that fits {elements} elements"),
                found,
            ));
        }
        Ok(dims.into_iter().map(|dim| dim.unwrap_or(elements / count)).collect())
    }

    /// Each extent, or nothing where it is left open.
    fn extents(&self) -> Vec<Option<usize>>;
}

impl<T: Dims + ?Sized> Dims for &T {
    fn extents(&self) -> Vec<Option<usize>> {
        (**self).extents()
    }
}

impl<T: Axes + ?Sized> Axes for &T {
    fn resolve(&self, rank: usize) -> Result<Vec<usize>> {
        (**self).resolve(rank)
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Axes for $type {
            fn resolve(&self, rank: usize) -> Result<Vec<usize>> {
                resolve_axes(std::iter::once(*self as isize), rank)
            }
        }

        impl Axes for [$type] {
            fn resolve(&self, rank: usize) -> Result<Vec<usize>> {
                resolve_axes(self.iter().map(|&axis| axis as isize), rank)
            }
        }

        impl<const N: usize> Axes for [$type; N] {
            fn resolve(&self, rank: usize) -> Result<Vec<usize>> {
                self[..].resolve(rank)
            }
        }

        impl Axes for Vec<$type> {
            fn resolve(&self, rank: usize) -> Result<Vec<usize>> {
                self[..].resolve(rank)
            }
        }

        impl Dims for [$type] {
            fn extents(&self) -> Vec<Option<usize>> {
                self.iter().map(|&dim| (dim as isize >= 0).then_some(dim as usize)).collect()
            }
        }

        impl<const N: usize> Dims for [$type; N] {
            fn extents(&self) -> Vec<Option<usize>> {
                self[..].extents()
            }
        }

        impl Dims for Vec<$type> {
            fn extents(&self) -> Vec<Option<usize>> {
                self[..].extents()
            }
        }
    )*};
}

integers!(i32, i64, isize, usize);

impl Dims for () {
    fn extents(&self) -> Vec<Option<usize>> {
        Vec::new()
    }
}
