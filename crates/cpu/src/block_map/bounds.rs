//! The least and greatest element of any run of a table's rows, quickly.
//!
//! A tree of fan-out [`FAN_OUT`] over each row, made when a table is first asked about.

use std::sync::OnceLock;

use half::{bf16, f16};
use tilewright_ir::{DType, Scalar};
use tilewright_plan::evaluate;

use super::range::Range;
use crate::memory::Array;

const FAN_OUT: usize = 16;

/// Rows of a table that are looked at one by one; for more, the whole table answers.
const ROW_LIMIT: usize = 64;

/// A table with its trees.
pub struct Bounds<'a> {
    array: &'a Array,
    trees: OnceLock<Trees>,
}

/// The trees of all rows: `levels[i]` has `widths[i]` nodes a row, each for [`FAN_OUT`] of the level below.
struct Trees {
    levels: Vec<(usize, Vec<Range>)>,
    whole: Option<Range>,
}

/// What a load may give.
pub struct Loaded {
    /// The values.
    pub range: Range,
    /// The axis along which some index may be out of range, and such an index.
    pub outside: Option<(usize, i64)>,
}

impl<'a> Bounds<'a> {
    /// Nothing is read before [`Bounds::load`].
    pub fn new(array: &'a Array) -> Bounds<'a> {
        Bounds { array, trees: OnceLock::new() }
    }

    /// The range of what a load gives, its indices being anything from `low` to `high` along each axis.
    pub fn load(&self, indices: impl Iterator<Item = (i64, i64)>) -> Loaded {
        let extents = &self.array.extents;
        let mut outside = None;
        let mut on_stack = [(0, 0); 4];
        let mut on_heap = vec![(0, 0); if extents.len() > 4 { extents.len() } else { 0 }];
        let spans = if extents.len() > 4 { &mut on_heap[..] } else { &mut on_stack[..extents.len()] };
        for (axis, ((low, high), &extent)) in indices.zip(extents).enumerate() {
            let n = extent as i64;
            let span = if low >= 0 && high < n {
                (low as usize, high as usize + 1)
            } else if high < 0 && low >= -n {
                ((low + n) as usize, (high + n) as usize + 1)
            } else {
                if low < -n || high >= n {
                    outside.get_or_insert((axis, if low < -n { low } else { high }));
                }
                (0, extent)
            };
            spans[axis] = span;
        }
        let range = self.over(spans);
        let range = match outside {
            Some(_) => Range::join(range, Some(Range::point(default_element(self.array.dtype)))),
            None => range,
        };
        Loaded { range: range.expect("a load gives something"), outside }
    }

    /// The range of the elements in a box; none if there are none.
    fn over(&self, spans: &[(usize, usize)]) -> Option<Range> {
        if let [(start, end)] = *spans {
            if end - start == 1 {
                return Some(Range::point(read(self.array, &[start])));
            }
            let trees = self.trees.get_or_init(|| Trees::new(self.array));
            return trees.over_row(self.array, &mut [0], start, end);
        }
        let sizes: Vec<usize> = spans.iter().map(|(start, end)| end - start).collect();
        let elements = sizes.iter().try_fold(1usize, |all, &n| all.checked_mul(n)).unwrap_or(usize::MAX);
        if elements == 1 {
            let position: Vec<usize> = spans.iter().map(|&(start, _)| start).collect();
            return Some(Range::point(read(self.array, &position)));
        }
        let trees = self.trees.get_or_init(|| Trees::new(self.array));
        let (&(start, end), leading) = spans.split_last()?;
        let rows: usize = sizes[..leading.len()].iter().fold(1, |all: usize, &n| all.saturating_mul(n));
        if rows > ROW_LIMIT {
            return trees.whole;
        }
        let mut range = None;
        for number in 0..rows {
            let mut rest = number;
            let mut position = vec![0; spans.len()];
            for axis in (0..leading.len()).rev() {
                position[axis] = leading[axis].0 + rest % sizes[axis];
                rest /= sizes[axis];
            }
            range = Range::join(range, trees.over_row(self.array, &mut position, start, end));
        }
        range
    }
}

impl Trees {
    fn new(array: &Array) -> Trees {
        let (&width, leading) = array.extents.split_last().unwrap_or((&1, &[]));
        let rows: usize = leading.iter().product();
        let mut levels: Vec<(usize, Vec<Range>)> = Vec::new();
        let chunks = width.div_ceil(FAN_OUT);
        let mut nodes = Vec::with_capacity(rows * chunks);
        let mut position = vec![0; array.extents.len()];
        for row in 0..rows {
            let mut rest = row;
            for axis in (0..leading.len()).rev() {
                position[axis] = rest % leading[axis];
                rest /= leading[axis];
            }
            for chunk in 0..chunks {
                let end = ((chunk + 1) * FAN_OUT).min(width);
                nodes.extend(scan(array, &mut position, chunk * FAN_OUT, end));
            }
        }
        let mut nodes_a_row = chunks;
        while nodes_a_row > 1 {
            let above = nodes
                .chunks(nodes_a_row)
                .flat_map(|row| row.chunks(FAN_OUT))
                .filter_map(|children| children.iter().fold(None, |all, &one| Range::join(all, Some(one))))
                .collect();
            levels.push((nodes_a_row, std::mem::replace(&mut nodes, above)));
            nodes_a_row = nodes_a_row.div_ceil(FAN_OUT);
        }
        let whole = nodes.iter().fold(None, |all, &one| Range::join(all, Some(one)));
        levels.push((nodes_a_row, nodes));
        Trees { levels, whole }
    }

    /// The range of elements `start..end` of the row at `position`, whose last place is overwritten.
    fn over_row(&self, array: &Array, position: &mut [usize], start: usize, end: usize) -> Option<Range> {
        let (mut start, mut end) = (start, end);
        let leading = position.len() - 1;
        let row = position[..leading].iter().zip(&array.extents).fold(0, |row, (&i, &n)| row * n + i);
        // The ends that fill no node of the level above are looked at on this level; the middle goes up.
        let inner = |start: usize, end: usize| (start.next_multiple_of(FAN_OUT), end / FAN_OUT * FAN_OUT);
        let (first, last) = inner(start, end);
        if first >= last {
            return scan(array, position, start, end);
        }
        let mut range = Range::join(scan(array, position, start, first), scan(array, position, last, end));
        (start, end) = (first / FAN_OUT, last / FAN_OUT);
        for (width, nodes) in &self.levels {
            let nodes = &nodes[row * width..][..*width];
            let join =
                |range, nodes: &[Range]| nodes.iter().fold(range, |all, &one| Range::join(all, Some(one)));
            let (first, last) = inner(start, end);
            if first >= last || nodes.len() <= FAN_OUT {
                return join(range, &nodes[start..end]);
            }
            range = join(join(range, &nodes[start..first]), &nodes[last..end]);
            (start, end) = (first / FAN_OUT, last / FAN_OUT);
        }
        range
    }
}

/// The range of elements `start..end` of the row at `position`, one by one.
fn scan(array: &Array, position: &mut [usize], start: usize, end: usize) -> Option<Range> {
    let mut range = None;
    for i in start..end {
        if let Some(last) = position.last_mut() {
            *last = i;
        }
        range = Range::join(range, Some(Range::point(read(array, position))));
    }
    range
}

/// What a load out of range gives.
fn default_element(dtype: DType) -> Scalar {
    evaluate::hold(Scalar::Integer(0), tilewright_plan::Kind::of(dtype))
}

/// The element at a position inside the array.
///
/// # Panics
/// Where the position is outside.
pub fn read(array: &Array, position: &[usize]) -> Scalar {
    assert!(position.len() == array.extents.len() && position.iter().zip(&array.extents).all(|(i, n)| i < n));
    // SAFETY: the position is inside, and an array's elements are all there, aligned, and not written while
    // a kernel reads them.
    unsafe {
        match array.dtype {
            DType::F64 => Scalar::Float(*array.at::<f64>(position)),
            DType::F32 => Scalar::Float(f64::from(*array.at::<f32>(position))),
            DType::BF16 => Scalar::Float((*array.at::<bf16>(position)).to_f64()),
            DType::F16 => Scalar::Float((*array.at::<f16>(position)).to_f64()),
            DType::I64 => Scalar::Integer(*array.at::<i64>(position)),
            DType::I32 => Scalar::Integer(i64::from(*array.at::<i32>(position))),
            DType::U8 => Scalar::Integer(i64::from(*array.at::<u8>(position))),
            DType::Bool => Scalar::Bool(*array.at::<u8>(position) != 0),
        }
    }
}
