//! From strided arrays of any float type to what the microkernel reads, and back.
//!
//! Every element of query, key and value is converted here once and never looked at in its own type again.

use std::ops::Range;

use half::{bf16, f16};
use tilewright_ir::DType;

use super::product::width;
use super::vector::{Scalar, Vector};
use crate::isa::prefetch;

/// Bytes of a cache line.
const LINE: usize = 64;

/// A float array in memory with up to four axes, the last of them the one that rows run along.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strided {
    /// The element at the origin.
    pub data: *mut u8,
    /// Element type: a float.
    pub dtype: DType,
    /// Elements between neighbours along each axis.
    pub strides: [isize; 4],
}

// SAFETY: a place in memory; whoever reads or writes through it sees to who else does.
unsafe impl Send for Strided {}
unsafe impl Sync for Strided {}

impl Strided {
    /// The address of the row at these leading indices.
    ///
    /// # Safety
    /// The indices are within the array.
    unsafe fn row(&self, index: [usize; 3]) -> *mut u8 {
        let elements: isize = index.iter().zip(self.strides).map(|(&i, stride)| i as isize * stride).sum();
        // SAFETY: an element of the array.
        unsafe { self.data.offset(elements * self.dtype.size() as isize) }
    }

    /// The first element of a row, and the elements between rows, where rows lie as the engine reads them.
    ///
    /// # Safety
    /// As [`Strided::read_row`].
    pub(super) unsafe fn rows_in_place<S: Scalar>(
        &self,
        (batch, head): (usize, usize),
        first: usize,
    ) -> Option<(*const S, usize)> {
        let [.., row, element] = self.strides;
        let fits = self.dtype == S::DTYPE && element == 1 && row >= 0;
        // SAFETY: as the caller vouches.
        fits.then(|| (unsafe { self.row([batch, head, first]) }.cast_const().cast(), row as usize))
    }

    /// The first element, and the elements between batches, heads and rows, where the engine can read rows of `size`
    /// elements as they lie and one follows the other. (Rows far apart might meet in one cache set.)
    pub(super) fn rows_together<S: Scalar>(&self, size: usize) -> Option<(*const S, [usize; 3])> {
        let [batch, head, row, element] = self.strides;
        let aligned = (self.data as usize).is_multiple_of(size_of::<S>());
        let fits = self.dtype == S::DTYPE
            && element == 1
            && row == size as isize
            && batch >= 0
            && head >= 0
            && aligned;
        fits.then(|| (self.data.cast_const().cast(), [batch, head, row].map(isize::unsigned_abs)))
    }

    /// Asks for rows of so many elements that are to be read soon, where their elements are neighbours.
    pub(super) fn fetch(&self, (batch, head): (usize, usize), rows: Range<usize>, size: usize) {
        let [batch_stride, head_stride, row_stride, element] = self.strides;
        if element != 1 {
            return;
        }
        let bytes = self.dtype.size();
        let first = batch as isize * batch_stride + head as isize * head_stride;
        for row in rows {
            let start = self.data.wrapping_offset((first + row as isize * row_stride) * bytes as isize);
            for line in (0..size * bytes).step_by(LINE) {
                prefetch(start.wrapping_add(line));
            }
        }
    }

    /// Copies a row of two-byte elements as they are.
    ///
    /// # Safety
    /// As [`Strided::read_row`].
    pub(super) unsafe fn copy_row(&self, index: [usize; 3], row: &mut [u16]) {
        debug_assert_eq!(self.dtype.size(), 2);
        if row.is_empty() {
            return;
        }
        // SAFETY: as the caller vouches.
        unsafe {
            let from = self.row(index);
            match self.strides[3] {
                1 => row.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(from, 2 * row.len()),
                stride => read::<u16, u16>(from, stride, row, |x| x),
            }
        }
    }

    /// Reads a row, times `factor`.
    ///
    /// # Safety
    /// The row is within the array, and nobody writes it.
    #[inline(always)]
    pub(super) unsafe fn read_row<S: Scalar>(&self, index: [usize; 3], factor: f64, row: &mut [S]) {
        // An empty array may lie anywhere, aligned or not.
        if row.is_empty() {
            return;
        }
        // SAFETY: each arm reads the row's elements in the array's element type.
        unsafe {
            let from = self.row(index);
            let stride = self.strides[3];
            match self.dtype {
                DType::F32 if stride == 1 && factor == 1.0 => {
                    let from = std::slice::from_raw_parts(from.cast::<f32>(), row.len());
                    for (to, &x) in row.iter_mut().zip(from) {
                        *to = S::from_f64(x as f64);
                    }
                }
                DType::F64 => read::<f64, S>(from, stride, row, |x| S::from_f64(x * factor)),
                DType::F32 => read::<f32, S>(from, stride, row, |x| S::from_f64((x * factor as f32) as f64)),
                DType::BF16 => {
                    read::<bf16, S>(from, stride, row, |x| S::from_f64((x.to_f32() * factor as f32) as f64))
                }
                DType::F16 => {
                    read::<f16, S>(from, stride, row, |x| S::from_f64((x.to_f32() * factor as f32) as f64))
                }
                DType::I64 | DType::I32 | DType::U8 | DType::Bool => unreachable!("attention is over floats"),
            }
        }
    }

    /// Writes a row, rounded to the element type.
    ///
    /// # Safety
    /// The row is within the array, and nobody else reads or writes it.
    #[inline(always)]
    pub(super) unsafe fn write_row<S: Scalar>(&self, index: [usize; 3], row: &[S]) {
        // SAFETY: each arm writes the row's elements in the array's element type.
        unsafe {
            let to = self.row(index);
            let stride = self.strides[3];
            match self.dtype {
                DType::F64 => write::<f64, S>(to, stride, row, |x| x.to_f64()),
                DType::F32 => write::<f32, S>(to, stride, row, |x| x.to_f64() as f32),
                DType::BF16 => write::<bf16, S>(to, stride, row, |x| bf16::from_f32(x.to_f64() as f32)),
                DType::F16 => write::<f16, S>(to, stride, row, |x| f16::from_f32(x.to_f64() as f32)),
                DType::I64 | DType::I32 | DType::U8 | DType::Bool => unreachable!("attention is over floats"),
            }
        }
    }
}

#[inline(always)]
unsafe fn read<T: Copy, S>(from: *const u8, stride: isize, row: &mut [S], convert: impl Fn(T) -> S) {
    for (i, to) in row.iter_mut().enumerate() {
        // SAFETY: element i of the row.
        *to = convert(unsafe { from.cast::<T>().offset(i as isize * stride).read_unaligned() });
    }
}

#[inline(always)]
unsafe fn write<T, S: Copy>(to: *mut u8, stride: isize, row: &[S], convert: impl Fn(S) -> T) {
    for (i, &x) in row.iter().enumerate() {
        // SAFETY: element i of the row.
        unsafe { to.cast::<T>().offset(i as isize * stride).write_unaligned(convert(x)) };
    }
}

/// Rows of a strided array, unpacked to a dense row-major block.
///
/// # Safety
/// As [`Strided::read_row`], for `rows` rows from `first` on; `block` holds `rows · size` scalars.
#[inline(always)]
pub(super) unsafe fn read_rows<S: Scalar>(
    array: &Strided,
    (batch, head, first): (usize, usize, usize),
    factor: f64,
    size: usize,
    block: &mut [S],
) {
    for (i, row) in block.chunks_exact_mut(size.max(1)).enumerate() {
        // SAFETY: as the caller vouches.
        unsafe { array.read_row([batch, head, first + i], factor, row) };
    }
}

/// The rows of `block`, `[rows × size]`, at a distance of `stride`; up to the next panel's width they end in 0.
///
/// # Safety
/// `to` is good for the rows.
#[inline(always)]
pub(super) unsafe fn pack_rows<V: Vector>(
    block: &[V::Scalar],
    size: usize,
    to: *mut V::Scalar,
    stride: usize,
) {
    let padded = size.next_multiple_of(width::<V>());
    for (i, row) in block.chunks_exact(size.max(1)).enumerate() {
        // SAFETY: row i.
        let to = unsafe { std::slice::from_raw_parts_mut(to.add(i * stride), padded) };
        to[..size].copy_from_slice(row);
        to[size..].fill(V::Scalar::default());
    }
}

/// The panel, `width` columns wide, of the transpose of at most as many rows: its columns are the rows of `block`,
/// then zeros.
///
/// # Safety
/// `to` is good for a panel of `size` rows, and the machine has the vectors.
#[inline(always)]
pub(super) unsafe fn pack_columns<V: Vector>(
    block: &[V::Scalar],
    size: usize,
    width: usize,
    to: *mut V::Scalar,
) {
    let rows = block.len() / size.max(1);
    // SAFETY: as the caller vouches; squares are within the block and the panel.
    unsafe {
        if rows < width {
            std::slice::from_raw_parts_mut(to, size * width).fill(V::Scalar::default());
        }
        let (wide, high) = (size - size % V::SQUARE, rows - rows % V::SQUARE);
        for column in (0..high).step_by(V::SQUARE) {
            for depth in (0..wide).step_by(V::SQUARE) {
                let from = block.as_ptr().add(column * size + depth);
                V::transpose((from, size), (to.add(depth * width + column), width));
            }
        }
        for (column, row) in block.chunks_exact(size.max(1)).enumerate() {
            for (depth, &x) in row.iter().enumerate().skip(if column < high { wide } else { 0 }) {
                *to.add(depth * width + column) = x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::attention::vector::{Dispatch, Work};

    struct Transpose<'a, S>(&'a [S], usize, usize, &'a mut [S]);

    impl<S: Scalar> Work<S> for Transpose<'_, S> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<V: Vector<Scalar = S>>(self) {
            assert!(self.3.len() >= self.1 * self.2);
            // SAFETY: as just checked.
            unsafe { pack_columns::<V>(self.0, self.1, self.2, self.3.as_mut_ptr()) }
        }
    }

    fn check<S: Dispatch>() {
        for isa in Isa::available() {
            for (rows, size, width) in
                [(32, 64, 32), (8, 8, 8), (19, 21, 32), (3, 16, 16), (16, 7, 16), (0, 5, 8)]
            {
                let block: Vec<S> = (0..rows * size).map(|i| S::from_f64(1.0 + i as f64)).collect();
                let mut panel = vec![S::from_f64(-1.0); size * width];
                // SAFETY: the machine has the set.
                unsafe { S::dispatch(isa, Transpose(&block, size, width, &mut panel)) };
                for (i, x) in panel.iter().enumerate() {
                    let (depth, column) = (i / width, i % width);
                    let expected = if column < rows { 1.0 + (column * size + depth) as f64 } else { 0.0 };
                    assert_eq!(x.to_f64(), expected, "{isa:?} {rows}×{size} at {depth}, {column}");
                }
            }
        }
    }

    #[test]
    fn a_panel_is_the_transpose_of_its_rows() {
        check::<f32>();
        check::<f64>();
    }
}
