//! The arrays of an attention call, found in memory and packed for the microkernel.

use tilewright_ir::Result;
use tilewright_plan::View;
use tilewright_plan::attention::{Attention, AttentionShape};

use super::pack::{Strided, pack_columns, pack_rows, read_rows};
use super::product::{Panels, width};
use super::vector::{Dispatch, Scalar, Vector, Work};
use crate::memory::{Aligned, Array, Memory};
use crate::{Context, Isa};

/// Keys that one task packs; a multiple of every panel's width.
const KEYS_PER_TASK: usize = 512;

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

    /// The batch and head of the keys that a query's batch and head see.
    pub(super) fn key_place(&self, batch: usize, head: usize) -> (usize, usize) {
        let batch = if self.shape.key_batch == 1 { 0 } else { batch };
        (batch, head / (self.shape.heads / self.shape.key_heads))
    }
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

/// Key or value of every head, packed once and read by all query blocks and all heads of a group.
pub(super) struct Packed<S: Scalar> {
    data: Aligned<S>,
    /// Whether a key's row holds finite numbers only.
    finite: Vec<bool>,
    layout: Layout,
    key_heads: usize,
    keys: usize,
    size: usize,
    width: usize,
}

/// Which of its axes runs along a panel's width.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// The keys: for products that sum over the vectors' elements, as scores do.
    Keys,
    /// The vectors' elements: for products that sum over keys, as outputs do.
    Elements,
}

impl<S: Dispatch> Packed<S> {
    /// Packs `array`: `[key_batch, key_heads, keys, size]`.
    pub(super) fn new(
        context: &Context,
        array: Strided,
        shape: &AttentionShape,
        size: usize,
        layout: Layout,
    ) -> Result<Packed<S>> {
        let AttentionShape { key_batch, key_heads, keys, .. } = *shape;
        let width = panel_width::<S>(context.isa);
        let per_head = match layout {
            Layout::Keys => keys.next_multiple_of(width) * size,
            Layout::Elements => keys * size.next_multiple_of(width),
        };
        let heads = key_batch * key_heads;
        let data = Aligned::new(heads * per_head)?;
        let mut packed =
            Packed { data, finite: vec![true; heads * keys], layout, key_heads, keys, size, width };
        let (to, finite) = (Pointer(packed.data.as_mut_ptr()), Pointer(packed.finite.as_mut_ptr()));
        let tasks = keys.div_ceil(KEYS_PER_TASK);
        context.parallel(heads * tasks, |i| {
            let (head, first) = (i / tasks, i % tasks * KEYS_PER_TASK);
            let work = Pack {
                array,
                place: (head / key_heads, head % key_heads, first),
                rows: KEYS_PER_TASK.min(keys - first),
                size,
                layout,
                stride: if layout == Layout::Keys { size * width } else { keys * width },
                to: to.add(head * per_head + packed.offset(first)),
                finite: finite.add(head * keys + first),
            };
            // SAFETY: the context's instruction set is the machine's; tasks write disjoint places.
            unsafe { S::dispatch(context.isa, work) };
            Ok(())
        })?;
        Ok(packed)
    }

    fn offset(&self, key: usize) -> usize {
        match self.layout {
            Layout::Keys => key * self.size,
            Layout::Elements => key * self.width,
        }
    }

    /// The panels of one head from a key on; in [`Layout::Keys`] the key must begin a panel.
    pub(super) fn panels(&self, (batch, head): (usize, usize), key: usize) -> Panels<S> {
        let per_head = match self.layout {
            Layout::Keys => self.keys.next_multiple_of(self.width) * self.size,
            Layout::Elements => self.keys * self.size.next_multiple_of(self.width),
        };
        let stride = match self.layout {
            Layout::Keys => self.size * self.width,
            Layout::Elements => self.keys * self.width,
        };
        let at = (batch * self.key_heads + head) * per_head + self.offset(key);
        Panels { data: self.data[at..].as_ptr(), stride }
    }

    /// Whether all rows of these keys hold finite numbers only.
    pub(super) fn finite(&self, (batch, head): (usize, usize), keys: std::ops::Range<usize>) -> bool {
        let first = (batch * self.key_heads + head) * self.keys;
        self.finite[first + keys.start..first + keys.end].iter().all(|&finite| finite)
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

/// A pointer that tasks share; each writes elsewhere.
pub(super) struct Pointer<T>(pub *mut T);

// SAFETY: whoever writes through it sees to disjoint places.
unsafe impl<T: Send> Send for Pointer<T> {}
unsafe impl<T: Send> Sync for Pointer<T> {}

impl<T> Pointer<T> {
    /// The place `count` elements further.
    pub(super) fn add(&self, count: usize) -> *mut T {
        self.0.wrapping_add(count)
    }
}

struct Pack<S> {
    array: Strided,
    place: (usize, usize, usize),
    rows: usize,
    size: usize,
    layout: Layout,
    stride: usize,
    to: *mut S,
    finite: *mut bool,
}

impl<S: Scalar> Work<S> for Pack<S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector<Scalar = S>>(self) {
        let Pack { array, place: (batch, head, first), rows, size, layout, stride, to, finite } = self;
        let width = width::<V>();
        let mut block = vec![S::default(); width * size];
        for start in (0..rows).step_by(width) {
            let count = width.min(rows - start);
            let block = &mut block[..count * size];
            // SAFETY: the rows are within the array, the places within the packed data and the task's own.
            unsafe {
                read_rows(&array, (batch, head, first + start), 1.0, size, block);
                for (i, row) in block.chunks_exact(size.max(1)).enumerate() {
                    *finite.add(start + i) = row.iter().all(|x| x.is_finite());
                }
                match layout {
                    Layout::Keys => pack_columns::<V>(block, size, to.add(start * size), stride),
                    Layout::Elements => pack_rows::<V>(block, size, to.add(start * width), stride),
                }
            }
        }
    }
}
