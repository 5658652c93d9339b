//! What feeds a scan's programs: arrays in memory, of which part may not be there, and positions.

use tilewright_ir::{DType, Result, Scalar};
use tilewright_plan::loops::Source;

use super::edges::Run;
use crate::memory::{Aligned, Array, Memory, broken};
use crate::tile::{Argument, Feed, Variance};

/// Which positions of a source are there, for each axis a half-open range, and the bytes of the element
/// that stands elsewhere.
pub(super) type Extent = (Vec<(usize, usize)>, Vec<u8>);

/// A source, and where in memory it is.
pub(super) enum Bound {
    /// An array; and where part of it is not there, which is.
    Array(Array, Option<Extent>),
    /// The position along an axis.
    Index(usize),
}

/// Binds sources to memory. `extents` are those of the axes that they have strides for.
pub(super) fn bind(memory: &Memory, sources: &[Source], extents: &[usize]) -> Result<Vec<Bound>> {
    let one = |source: &Source| match source {
        Source::Load { view, dtype, valid: None } => {
            Ok(Bound::Array(memory.read(view, *dtype, extents)?, None))
        }
        Source::Load { view, dtype, valid: Some((ranges, fill)) } => {
            if ranges.len() != extents.len() {
                return Err(broken("a range for each axis is expected"));
            }
            // Only the part that is there lies inside the buffer.
            let shift: isize = ranges.iter().zip(&view.strides).map(|(range, &s)| range.0 as isize * s).sum();
            let there: Vec<usize> = ranges.iter().map(|range| range.1.saturating_sub(range.0)).collect();
            let mut inner = view.clone();
            inner.offset += shift;
            let mut array = memory.read(&inner, *dtype, &there)?;
            array.data = array.data.wrapping_offset(-shift * dtype.size() as isize);
            array.extents = extents.to_vec();
            Ok(Bound::Array(array, Some((ranges.clone(), fill.to_bytes(*dtype)))))
        }
        Source::Index(axis) => Ok(Bound::Index(*axis)),
        Source::RowScalar(_) | Source::RowValue(_) => Err(broken("a scan has no rows to carry")),
    };
    sources.iter().map(one).collect()
}

/// The element at a position, whatever its type.
pub(super) fn at(array: &Array, position: &[usize]) -> *mut u8 {
    let offset: isize = position.iter().zip(&array.strides).map(|(&i, &stride)| i as isize * stride).sum();
    array.data.wrapping_offset(offset * array.dtype.size() as isize)
}

impl Bound {
    /// What the tile machine is to expect, for runs along `axis`.
    pub fn feed(&self, axis: usize) -> Feed {
        match self {
            Bound::Array(array, valid) if valid.is_some() || array.strides[axis] != 0 => {
                Feed::Array(Variance::Full, array.dtype)
            }
            Bound::Array(array, _) => Feed::Array(Variance::Uniform, array.dtype),
            Bound::Index(counted) if *counted == axis => Feed::ColumnPosition,
            Bound::Index(_) => Feed::Uniform,
        }
    }

    /// Whether it is the position along `axis`.
    pub fn counts(&self, axis: usize) -> bool {
        matches!(self, Bound::Index(counted) if *counted == axis)
    }

    /// Whether its runs along `axis` are contiguous elements of type `dtype`.
    pub fn is_plain(&self, axis: usize, dtype: DType) -> bool {
        matches!(self, Bound::Array(array, _) if array.dtype == dtype && array.strides[axis] == 1)
    }

    /// Whether all of it is there.
    pub fn is_complete(&self) -> bool {
        !matches!(self, Bound::Array(_, Some(_)))
    }

    /// The positions along `axis` at which it begins and ceases to be there.
    pub fn ends(&self, axis: usize) -> Option<[usize; 2]> {
        match self {
            Bound::Array(_, Some((ranges, _))) => Some([ranges[axis].0, ranges[axis].1]),
            Bound::Array(_, None) | Bound::Index(_) => None,
        }
    }

    /// The element at the run's start, where all of the run is there.
    pub fn whole(&self, run: &Run) -> Option<*const u8> {
        match self {
            Bound::Array(array, valid) => {
                let inside = valid.as_ref().is_none_or(|(ranges, _)| {
                    ranges.iter().enumerate().all(|(axis, &(low, high))| {
                        let end = run.start[axis] + if axis == run.axis { run.count } else { 1 };
                        low <= run.start[axis] && end <= high
                    })
                });
                inside.then(|| at(array, run.start).cast_const())
            }
            Bound::Index(_) => None,
        }
    }
}

/// The tile machine's arguments for sources at a run. `padded` has a tile for each.
pub(super) fn feed(sources: &[Bound], run: &Run, padded: &mut [Aligned<u64>], arguments: &mut Vec<Argument>) {
    for (source, padded) in sources.iter().zip(padded) {
        arguments.push(match source {
            Bound::Index(axis) => Argument::Scalar(Scalar::Integer(run.start[*axis] as i64)),
            Bound::Array(array, valid) => match (source.whole(run), valid) {
                (Some(data), _) => {
                    Argument::Array { data, row_stride: 0, column_stride: array.strides[run.axis] }
                }
                (None, Some((ranges, fill))) => {
                    let data: *mut u8 = padded.as_mut_ptr().cast();
                    // SAFETY: the tile has room for the run, and what is there is inside the buffer.
                    unsafe { pad(array, ranges, fill, run, data) };
                    Argument::Array { data, row_stride: 0, column_stride: 1 }
                }
                (None, None) => unreachable!("a source without ranges is always there"),
            },
        });
    }
}

/// Copies the elements of a run that are there, and the fill where none is.
///
/// # Safety
/// `to` has room for the run; elements within `ranges` can be read.
unsafe fn pad(array: &Array, ranges: &[(usize, usize)], fill: &[u8], run: &Run, to: *mut u8) {
    let size = array.dtype.size();
    let there = ranges
        .iter()
        .enumerate()
        .all(|(axis, &(low, high))| axis == run.axis || (low..high).contains(&run.start[axis]));
    let first = run.start[run.axis];
    let (low, high) = ranges[run.axis];
    let (from, step) = (at(array, run.start), array.strides[run.axis] * size as isize);
    for i in 0..run.count {
        let inside = there && (low..high).contains(&(first + i));
        let from = if inside { from.wrapping_offset(i as isize * step).cast_const() } else { fill.as_ptr() };
        // SAFETY: the caller's promise; `fill` is one element.
        unsafe { std::ptr::copy_nonoverlapping(from, to.add(i * size), size) };
    }
}
