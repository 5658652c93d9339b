//! Where a loop nest and a scan meet: a position of the scan as one of the nest.

use tilewright_ir::{Binary, Compare, Scalar};
use tilewright_plan::loops::{Sink, Source};
use tilewright_plan::{Kind, Loops, Register, Scan, View};

use super::code::Code;
use super::{dtype_of, extents, view_of};

/// For each axis the positions that there are, half-open, and what stands elsewhere.
pub(super) type Valid = (Vec<(usize, usize)>, Scalar);

/// A scan's positions as those of a nest.
#[derive(Clone, PartialEq)]
pub(super) struct Positions {
    /// For each of the nest's axes the scan's axis that it is, if it is longer than 1.
    axes: Vec<Option<usize>>,
    /// Extents of the scan's axes.
    extents: Vec<usize>,
    /// By how much the nest's position is further along the scan than the scan's.
    shift: isize,
}

impl Positions {
    /// The positions under which a nest and a scan see the same elements, if all that the scan sees are the nest's.
    pub fn of(
        nest: &Loops,
        in_nest: &View,
        scan: &Scan,
        in_scan: &View,
        valid: Option<&Valid>,
    ) -> Option<Positions> {
        let (from, to) = (extents(nest), [&scan.parallel[..], &[scan.length]].concat());
        if from.contains(&0) {
            return None;
        }
        let mut axes = vec![None; from.len()];
        for axis in (0..from.len()).filter(|&axis| from[axis] > 1) {
            let alike = |&other: &usize| {
                let stride = in_scan.strides[other];
                to[other] == from[axis] && stride == in_nest.strides[axis] && stride != 0
            };
            axes[axis] = Some((0..to.len()).find(alike).filter(|other| !axes.contains(&Some(*other)))?);
        }
        let along = scan.parallel.len();
        let shift = match (in_scan.offset - in_nest.offset, in_scan.strides[along]) {
            (0, _) => 0,
            (_, 0) => return None,
            (offset, stride) => (offset % stride == 0).then_some(offset / stride)?,
        };
        let (low, high) = valid.map_or((0, scan.length), |(ranges, _)| ranges[along]);
        let there = low as isize + shift >= 0 && high as isize + shift <= scan.length as isize;
        let covered = |axis: usize| to[axis] == 1 || axes.contains(&Some(axis));
        (there && (0..to.len()).all(covered)).then_some(Positions { axes, extents: to, shift })
    }

    /// For each axis of the scan what `given` says of the nest's axis that it is, else `other`.
    fn moved<T: Copy>(&self, given: &[T], other: impl Fn(usize) -> T) -> Vec<T> {
        let of = |axis: usize| self.axes.iter().position(|&found| found == Some(axis)).map(|i| given[i]);
        (0..self.extents.len()).map(|axis| of(axis).unwrap_or_else(|| other(axis))).collect()
    }

    fn view(&self, view: &View) -> View {
        let strides = self.moved(&view.strides, |_| 0);
        let offset = view.offset + self.shift * strides[strides.len() - 1];
        View { offset, strides, ..view.clone() }
    }

    pub fn sink(&self, sink: &Sink) -> Sink {
        Sink::Store { view: self.view(view_of(sink)), dtype: dtype_of(sink) }
    }

    /// What a source of the nest is in a program of the scan, of which only what is `within` is read.
    pub fn input(&self, code: &mut Code, source: &Source, within: Option<&Valid>) -> Register {
        match source {
            Source::Load { view, dtype, valid } => {
                let nothing = Scalar::Integer(0).cast(*dtype);
                let valid = match (valid, within) {
                    (None, None) => None,
                    (None, Some((within, _))) => Some((within.clone(), nothing)),
                    (Some((ranges, fill)), None) => Some((self.ranges(ranges), *fill)),
                    (Some((ranges, fill)), Some((within, _))) => {
                        let both = |(a, b): (&(usize, usize), &(usize, usize))| {
                            let low = a.0.max(b.0);
                            (low, a.1.min(b.1).max(low))
                        };
                        Some((self.ranges(ranges).iter().zip(within).map(both).collect(), *fill))
                    }
                };
                code.source(Source::Load { view: self.view(view), dtype: *dtype, valid })
            }
            Source::Index(axis) => match self.axes[*axis] {
                Some(axis) => {
                    let index = code.source(Source::Index(axis));
                    if axis + 1 < self.extents.len() {
                        return index;
                    }
                    let shift = code.builder.constant(Kind::I64, self.shift as i64);
                    code.builder.binary(Binary::Add, index, shift)
                }
                None => code.builder.constant(Kind::I64, 0),
            },
            Source::RowScalar(_) | Source::RowValue(_) => unreachable!("an element-wise nest has no rows"),
        }
    }

    /// Which of the scan's positions are within the ranges of a source of the nest.
    fn ranges(&self, ranges: &[(usize, usize)]) -> Vec<(usize, usize)> {
        // Of an axis of one position, that one is there or none is.
        let empty =
            |(i, range): (usize, &(usize, usize))| self.axes[i].is_none() && !(range.0..range.1).contains(&0);
        if ranges.iter().enumerate().any(empty) {
            return vec![(0, 0); self.extents.len()];
        }
        let mut moved = self.moved(ranges, |axis| (0, self.extents[axis]));
        if let (Some(range), Some(&length)) = (moved.last_mut(), self.extents.last()) {
            let place = |end: usize| (end as isize - self.shift).clamp(0, length as isize) as usize;
            *range = (place(range.0), place(range.1));
        }
        moved
    }

    /// What was computed at the positions that are there, and what stands elsewhere.
    pub fn bounded(&self, code: &mut Code, value: Register, (ranges, fill): &Valid) -> Register {
        let fill = code.builder.constant(code.builder.kind(value), *fill);
        let mut bounded = value;
        for (axis, &(low, high)) in ranges.iter().enumerate() {
            let mut choose = |comparison, end: usize| {
                let index = code.source(Source::Index(axis));
                let end = code.builder.constant(Kind::I64, end as i64);
                let there = code.builder.compare(comparison, index, end);
                bounded = code.builder.select(there, bounded, fill);
            };
            if low > 0 {
                choose(Compare::Ge, low);
            }
            if high < self.extents[axis] {
                choose(Compare::Lt, high);
            }
        }
        bounded
    }
}
