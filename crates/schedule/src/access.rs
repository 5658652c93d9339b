//! How one array is read as part of another: index maps of views.
//!
//! Broadcasts, transpositions, slices, reversals, paddings and most reshapes move no data: an element of
//! their result is an element of some *base* array at an affine function of its position, or a constant
//! outside a box. An [`Access`] is that function, kept twice: over the axes of the base, which lets a
//! consumer compute the base's element instead of reading it, and over its packed elements, which
//! survives reshapes that mix axes.

use tilewright_ir::{Op, Scalar, Value};

/// `offset + Σ strides[i] · position[i]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Affine {
    pub offset: isize,
    pub strides: Vec<isize>,
}

impl Affine {
    /// The same number everywhere in a space of `rank` axes.
    pub fn constant(offset: isize, rank: usize) -> Affine {
        Affine { offset, strides: vec![0; rank] }
    }

    /// The position along `axis` of a space of `rank` axes.
    pub fn axis(axis: usize, rank: usize) -> Affine {
        let mut affine = Affine::constant(0, rank);
        affine.strides[axis] = 1;
        affine
    }

    /// This function with `at[i]`, a function over a space of `rank` axes, for position i.
    pub fn compose(&self, at: &[Affine], rank: usize) -> Affine {
        let mut result = Affine::constant(self.offset, rank);
        for (&stride, inner) in self.strides.iter().zip(at) {
            if stride != 0 {
                result.offset += stride * inner.offset;
                for (sum, s) in result.strides.iter_mut().zip(&inner.strides) {
                    *sum += stride * s;
                }
            }
        }
        result
    }

    /// The one axis that this moves along, with its stride, if there is exactly one.
    pub fn single(&self) -> Option<(usize, isize)> {
        let mut moving = self.strides.iter().enumerate().filter(|(_, s)| **s != 0);
        let (axis, &stride) = moving.next()?;
        moving.next().is_none().then_some((axis, stride))
    }

    fn is_constant(&self) -> bool {
        self.strides.iter().all(|&s| s == 0)
    }
}

/// For each axis a half-open range of positions, and what stands outside.
pub(crate) type Valid = (Vec<(usize, usize)>, Scalar);

/// An array as a view of another.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Access {
    /// The array whose elements are seen; not itself a view.
    pub base: Value,
    /// Which of the base's elements in row-major order.
    pub flat: Affine,
    /// Which position along each axis of the base; absent where a reshape mixed axes.
    pub index: Option<Vec<Affine>>,
    /// The box outside which a constant stands.
    pub valid: Option<Valid>,
}

/// The strides of a packed row-major array.
pub(crate) fn packed(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1) as isize;
    }
    strides
}

impl Access {
    /// An array that is its own base.
    pub fn identity(base: Value, shape: &[usize]) -> Access {
        let rank = shape.len();
        Access {
            base,
            flat: Affine { offset: 0, strides: packed(shape) },
            index: Some((0..rank).map(|axis| Affine::axis(axis, rank)).collect()),
            valid: None,
        }
    }

    /// Whether every element of a base of `elements` is seen at its own place, whatever the shape.
    pub fn is_whole(&self, shape: &[usize], elements: usize) -> bool {
        let axes = |strides: Vec<isize>| -> Vec<isize> {
            strides.into_iter().zip(shape).filter(|(_, d)| **d > 1).map(|(s, _)| s).collect()
        };
        self.valid.is_none()
            && self.flat.offset == 0
            && shape.iter().product::<usize>() == elements
            && axes(self.flat.strides.clone()) == axes(packed(shape))
    }

    /// What `op` (of a `shape` array seen through this access, giving a `result` array) sees; nothing
    /// where `op` is no view, or none that an access can express: then a copy of the operand has to
    /// be made, of which it can. `fill` is the value of a padding.
    pub fn through(
        &self,
        op: &Op,
        shape: &[usize],
        result: &[usize],
        fill: Option<Scalar>,
    ) -> Option<Access> {
        let rank = result.len();
        match op {
            Op::Broadcast { axes, .. } => {
                let at: Vec<Affine> = (0..shape.len())
                    .map(|i| match shape[i] {
                        1 => Affine::constant(0, rank),
                        _ => Affine::axis(axes[i], rank),
                    })
                    .collect();
                self.substitute(&at, shape, result)
            }
            Op::Transpose { permutation } => {
                let mut at = vec![Affine::constant(0, rank); rank];
                for (i, &axis) in permutation.iter().enumerate() {
                    at[axis] = Affine::axis(i, rank);
                }
                self.substitute(&at, shape, result)
            }
            Op::Slice { start, step, .. } => {
                let at: Vec<Affine> = (0..rank)
                    .map(|i| {
                        let mut position = Affine::axis(i, rank);
                        position.offset = start[i] as isize;
                        position.strides[i] = step[i] as isize;
                        position
                    })
                    .collect();
                self.substitute(&at, shape, result)
            }
            Op::Reverse { axes } => {
                let at: Vec<Affine> = (0..rank)
                    .map(|i| {
                        let mut position = Affine::axis(i, rank);
                        if axes.contains(&i) && shape[i] > 0 {
                            position.offset = shape[i] as isize - 1;
                            position.strides[i] = -1;
                        }
                        position
                    })
                    .collect();
                self.substitute(&at, shape, result)
            }
            Op::Pad { low, interior, .. } => {
                if self.valid.is_some() || interior.iter().any(|&gap| gap > 0) {
                    return None;
                }
                let fill = fill?;
                let at: Vec<Affine> = (0..rank)
                    .map(|i| {
                        let mut position = Affine::axis(i, rank);
                        position.offset = -(low[i] as isize);
                        position
                    })
                    .collect();
                let mut padded = self.substitute(&at, shape, result)?;
                let ranges = (0..rank).map(|i| (low[i], low[i] + shape[i])).collect();
                padded.valid = Some((ranges, fill));
                Some(padded)
            }
            Op::Reshape { .. } => self.reshape(shape, result),
            Op::Constant(_)
            | Op::Iota { .. }
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast(_)
            | Op::StopGradient
            | Op::Concatenate { .. }
            | Op::Reduce { .. }
            | Op::ArgMax { .. }
            | Op::Dot(_)
            | Op::Gather
            | Op::ScatterAdd { .. }
            | Op::RandomBits { .. }
            | Op::FlexAttention(_)
            | Op::FlexAttentionBackward(_)
            | Op::AssociativeScan(_) => None,
        }
    }

    fn substitute(&self, at: &[Affine], shape: &[usize], result: &[usize]) -> Option<Access> {
        let rank = result.len();
        let valid = match &self.valid {
            None => None,
            Some(valid) => match restrict(valid, shape, at, result) {
                Restriction::Box(ranges) => Some((ranges, valid.1)),
                Restriction::Nowhere | Restriction::Inexpressible => return None,
            },
        };
        Some(Access {
            base: self.base,
            flat: self.flat.compose(at, rank),
            index: self.index.as_ref().map(|index| index.iter().map(|i| i.compose(at, rank)).collect()),
            valid,
        })
    }

    fn reshape(&self, shape: &[usize], result: &[usize]) -> Option<Access> {
        let valid = match &self.valid {
            None => None,
            Some((ranges, fill)) => Some((reshape_ranges(shape, ranges, result)?, *fill)),
        };
        let reshape = |affine: &Affine| {
            let strides = reshape_strides(shape, &affine.strides, result)?;
            Some(Affine { offset: affine.offset, strides })
        };
        Some(Access {
            base: self.base,
            flat: reshape(&self.flat)?,
            index: self.index.as_ref().and_then(|index| index.iter().map(reshape).collect()),
            valid,
        })
    }
}

/// Where, in another space, a position lies in a box.
pub(crate) enum Restriction {
    /// In a box of that space.
    Box(Vec<(usize, usize)>),
    /// Nowhere.
    Nowhere,
    /// In no box.
    Inexpressible,
}

/// The positions of a space of extents `space` whose images under `at` lie in the box of `valid`, which is
/// in a space of extents `shape`.
pub(crate) fn restrict(valid: &Valid, shape: &[usize], at: &[Affine], space: &[usize]) -> Restriction {
    let mut ranges: Vec<(usize, usize)> = space.iter().map(|&d| (0, d)).collect();
    for ((&(low, high), &extent), position) in valid.0.iter().zip(shape).zip(at) {
        if (low, high) == (0, extent) {
            continue;
        }
        let (low, high) = (low as isize - position.offset, high as isize - position.offset);
        if position.is_constant() {
            if low > 0 || high <= 0 {
                return Restriction::Nowhere;
            }
            continue;
        }
        let Some((axis, stride)) = position.single() else { return Restriction::Inexpressible };
        // low ≤ stride · p < high
        let (first, end) = if stride > 0 {
            (ceiling(low, stride), ceiling(high, stride))
        } else {
            (ceiling(1 - high, -stride), ceiling(1 - low, -stride))
        };
        let clamp = |p: isize| p.clamp(0, space[axis] as isize) as usize;
        let range = &mut ranges[axis];
        *range = (range.0.max(clamp(first)), range.1.min(clamp(end)));
        if range.0 >= range.1 {
            return Restriction::Nowhere;
        }
    }
    Restriction::Box(ranges)
}

fn ceiling(x: isize, divisor: isize) -> isize {
    -(-x).div_euclid(divisor)
}

/// The strides by which the elements of an array, seen by `strides`, are seen in row-major order under
/// another shape; nothing where no strides do that.
///
/// Both shapes are cut into the shortest runs of axes that have equally many elements; within a run the
/// old axes have to be one (each stride the next one times its extent), which the new axes then split.
pub(crate) fn reshape_strides(shape: &[usize], strides: &[isize], result: &[usize]) -> Option<Vec<isize>> {
    if shape.contains(&0) {
        return Some(vec![0; result.len()]);
    }
    let old: Vec<(usize, isize)> =
        shape.iter().copied().zip(strides.iter().copied()).filter(|(d, _)| *d != 1).collect();
    let mut new_strides = vec![0; result.len()];
    let new: Vec<usize> = (0..result.len()).filter(|&axis| result[axis] != 1).collect();
    let (mut i, mut j) = (0, 0);
    while i < old.len() && j < new.len() {
        let (first_old, first_new) = (i, j);
        let (mut old_count, mut new_count) = (old[i].0, result[new[j]]);
        (i, j) = (i + 1, j + 1);
        while old_count != new_count {
            if old_count < new_count {
                old_count *= old[i].0;
                i += 1;
            } else {
                new_count *= result[new[j]];
                j += 1;
            }
        }
        let run = &old[first_old..i];
        if run.windows(2).any(|pair| pair[0].1 != pair[1].1 * pair[1].0 as isize) {
            return None;
        }
        let mut stride = run[run.len() - 1].1;
        for &axis in new[first_new..j].iter().rev() {
            new_strides[axis] = stride;
            stride *= result[axis] as isize;
        }
    }
    Some(new_strides)
}

/// A box under another shape, where that only adds or removes axes of extent 1.
fn reshape_ranges(
    shape: &[usize],
    ranges: &[(usize, usize)],
    result: &[usize],
) -> Option<Vec<(usize, usize)>> {
    let mut kept = shape.iter().zip(ranges).filter(|(d, _)| **d != 1);
    if shape.iter().zip(ranges).any(|(&d, &range)| d == 1 && range != (0, 1)) {
        return None;
    }
    let mut reshaped = Vec::with_capacity(result.len());
    for &extent in result {
        if extent == 1 {
            reshaped.push((0, 1));
            continue;
        }
        let (&old, &range) = kept.next()?;
        if old != extent {
            return None;
        }
        reshaped.push(range);
    }
    kept.next().is_none().then_some(reshaped)
}
