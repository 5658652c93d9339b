//! The arrays of an attention call, found in memory and packed for the microkernel.

use std::ops::Range;

use tilewright_ir::Result;
use tilewright_plan::View;
use tilewright_plan::attention::{Attention, AttentionShape};

use super::pack::{Strided, pack_columns, pack_rows, read_rows};
use super::product::{Left, Panels, WIDTH, width};
use super::vector::{Dispatch, Scalar, Vector, Work};
use crate::memory::{Aligned, Array, Memory, Number};
use crate::{Context, Isa};

/// Rows that one task packs; a multiple of every panel's width.
const ROWS_PER_TASK: usize = 512;

/// Elements that a packed row is longer than it must be, so that rows do not all meet in one cache set.
const ROW_PADDING: usize = 16;

/// Query, key and value.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub shape: AttentionShape,
    pub scale: f64,
    pub query: Strided,
    pub key: Strided,
    pub value: Strided,
}

impl Operands {
    pub(super) fn new(attention: &Attention, memory: &Memory) -> Result<Operands> {
        let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, head_size, value_size } =
            attention.shape;
        let read = |view: &View, extents: [usize; 4]| {
            memory.read(view, attention.dtype, &extents).map(|array| matrix(&array))
        };
        Ok(Operands {
            shape: attention.shape,
            scale: attention.scale,
            query: read(&attention.query, [batch, heads, queries, head_size])?,
            key: read(&attention.key, [key_batch, key_heads, keys, head_size])?,
            value: read(&attention.value, [key_batch, key_heads, keys, value_size])?,
        })
    }
}

/// The batch and head of the keys that a query's batch and head see.
pub(super) fn key_place(shape: &AttentionShape, batch: usize, head: usize) -> (usize, usize) {
    let batch = if shape.key_batch == 1 { 0 } else { batch };
    (batch, head / (shape.heads / shape.key_heads))
}

/// A `[batch, heads, length, size]` array.
pub(super) fn matrix(array: &Array) -> Strided {
    let strides = [array.strides[0], array.strides[1], array.strides[2], array.strides[3]];
    Strided { data: array.data, dtype: array.dtype, strides }
}

/// A `[batch, heads, length]` array, whose rows run along the length from a given position on.
pub(super) fn column(array: &Array) -> Strided {
    let strides = [array.strides[0], array.strides[1], array.strides[2], array.strides[2]];
    Strided { data: array.data, dtype: array.dtype, strides }
}

/// How an array is packed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Panels whose width runs along the length: the right operand of a product over the vectors' elements.
    Transposed,
    /// Padded rows: a left operand, or the right operand of a product over the length.
    Rows,
}

/// A `[batch, heads, length, size]` array, packed once and read by all blocks; or where it lies, if it lies as it would be
/// packed.
pub(super) struct Packed<S: Scalar> {
    /// What was packed.
    _data: Aligned<S>,
    start: *const S,
    /// Elements between batches, heads and rows.
    strides: [usize; 3],
    layout: Layout,
    size: usize,
    width: usize,
}

// SAFETY: numbers that are only read.
unsafe impl<S: Scalar> Send for Packed<S> {}
// SAFETY: as above.
unsafe impl<S: Scalar> Sync for Packed<S> {}

impl<S: Dispatch> Packed<S> {
    /// Packs `array`, times `factor`.
    pub(super) fn new(
        context: &Context,
        array: Strided,
        [batch, heads, length, size]: [usize; 4],
        factor: f64,
        layout: Layout,
    ) -> Result<Packed<S>> {
        let width = panel_width::<S>(context.isa);
        let padded = size.next_multiple_of(width);
        if layout == Layout::Rows
            && factor == 1.0
            && size == padded
            && let Some((start, strides)) = array.rows_together(size)
        {
            return Ok(Packed { _data: Aligned::new(0)?, start, strides, layout, size, width });
        }
        let row = match layout {
            Layout::Transposed => size,
            Layout::Rows => padded + ROW_PADDING,
        };
        let per_head = length.next_multiple_of(width) * row;
        let data = Shared::scratch(batch * heads * per_head)?;
        let tasks = length.div_ceil(ROWS_PER_TASK);
        context.parallel(batch * heads * tasks, |i| {
            let (head, first) = (i / tasks, i % tasks * ROWS_PER_TASK);
            let work = Pack {
                array,
                place: (head / heads, head % heads, first),
                rows: ROWS_PER_TASK.min(length - first),
                size,
                factor,
                layout,
                row,
                to: data.at(head * per_head + first * row),
            };
            // SAFETY: the context's instruction set is the machine's; tasks write disjoint places.
            unsafe { S::dispatch(context.isa, work) };
            Ok(())
        })?;
        let data = data.into_inner();
        let strides = [heads * per_head, per_head, row];
        Ok(Packed { start: data.as_ptr(), _data: data, strides, layout, size, width })
    }

    /// Elements of a row, padded to panels.
    pub(super) fn padded(&self) -> usize {
        self.size.next_multiple_of(self.width)
    }

    fn at(&self, (batch, head): (usize, usize), position: usize) -> *const S {
        let [batches, heads, rows] = self.strides;
        self.start.wrapping_add(batch * batches + head * heads + position * rows)
    }

    /// As a right operand, from a position of one head on; one that begins a panel if transposed.
    pub(super) fn panels(&self, place: (usize, usize), position: usize) -> Panels<S> {
        let data = self.at(place, position);
        match self.layout {
            Layout::Transposed => Panels { data, stride: self.size * self.width, row: self.width },
            Layout::Rows => Panels { data, stride: self.width, row: self.strides[2] },
        }
    }

    /// Rows as a left operand, from a position of one head on.
    pub(super) fn left(&self, place: (usize, usize), position: usize) -> Left<S> {
        Left { data: self.at(place, position), row: self.strides[2], column: 1 }
    }

    /// Whether these rows hold finite numbers only.
    ///
    /// # Safety
    /// The machine has the vectors, the rows are within the array, and rows are how it is packed.
    #[inline(always)]
    pub(super) unsafe fn finite<V: Vector<Scalar = S>>(
        &self,
        place: (usize, usize),
        rows: Range<usize>,
    ) -> bool {
        debug_assert!(self.layout == Layout::Rows);
        // SAFETY: as the caller vouches. 0 times a number is 0 if it is finite, and NaN if not.
        unsafe {
            let zero = V::splat(S::default());
            let mut sums = [zero; WIDTH];
            for row in rows {
                let row = self.at(place, row);
                for column in (0..self.padded()).step_by(width::<V>()) {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum = V::load(row.add(column + i * V::LANES)).fma(zero, *sum);
                    }
                }
            }
            sums.into_iter().fold(zero, |all, sum| all.add(sum)).total() == S::default()
        }
    }
}

/// Columns of a panel for the vectors of `isa`.
pub(super) fn panel_width<S: Dispatch>(isa: Isa) -> usize {
    struct Width;
    impl<S: Scalar> Work<S> for Width {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<V: Vector<Scalar = S>>(self) -> usize {
            width::<V>()
        }
    }
    // SAFETY: no vector is touched.
    unsafe { S::dispatch(isa, Width) }
}

/// Numbers that tasks add to, each in a place of its own.
pub(super) struct Shared<T: Number> {
    numbers: Aligned<T>,
    start: *mut T,
}

// SAFETY: whoever writes through `at` sees to disjoint places.
unsafe impl<T: Number> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Number> Sync for Shared<T> {}

impl<T: Number> Shared<T> {
    /// So many zeros.
    pub(super) fn new(count: usize) -> Result<Shared<T>> {
        let mut numbers = Aligned::new(count)?;
        let start = numbers.as_mut_ptr();
        Ok(Shared { numbers, start })
    }

    /// As [`Aligned::scratch`].
    pub(super) fn scratch(count: usize) -> Result<Shared<T>> {
        let mut numbers = Aligned::scratch(count)?;
        let start = numbers.as_mut_ptr();
        Ok(Shared { numbers, start })
    }

    /// A place.
    pub(super) fn at(&self, index: usize) -> *mut T {
        debug_assert!(index <= self.numbers.len());
        self.start.wrapping_add(index)
    }

    /// The numbers, when the tasks are done.
    pub(super) fn numbers(&mut self) -> &mut [T] {
        &mut self.numbers
    }

    /// The numbers, when the tasks are done.
    pub(super) fn into_inner(self) -> Aligned<T> {
        self.numbers
    }
}

struct Pack<S> {
    array: Strided,
    place: (usize, usize, usize),
    rows: usize,
    size: usize,
    factor: f64,
    layout: Layout,
    row: usize,
    to: *mut S,
}

impl<S: Scalar> Work<S> for Pack<S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector<Scalar = S>>(self) {
        let Pack { array, place: (batch, head, first), rows, size, factor, layout, row, to } = self;
        let width = width::<V>();
        let mut block = vec![S::default(); width * size];
        for start in (0..rows).step_by(width) {
            let count = width.min(rows - start);
            let block = &mut block[..count * size];
            // SAFETY: the rows are within the array, the places within the packed data and the task's own.
            unsafe {
                read_rows(&array, (batch, head, first + start), factor, size, block);
                match layout {
                    Layout::Transposed => pack_columns::<V>(block, size, width, to.add(start * row)),
                    Layout::Rows => pack_rows::<V>(block, size, to.add(start * row), row),
                }
            }
        }
    }
}
