//! Batches of matrix products.
//!
//! Floats go through the `gemm` library, which chooses its instruction set by itself. Rows and columns are
//! split over threads but never the contracted axis, so the result does not depend on their number; nor
//! does it depend on whether threads share one product or take one each, which is chosen by their number.
//! Threads that share a product take a stripe of its longer axis each, as long as stripes are not narrow: the
//! library's own division of products that are deeper than they are wide leaves threads waiting for each other.
//! Its parts for `f32` and `f64` are used without the crate that joins them, which would also build those
//! for complex numbers and take twice as long. Narrow floats are widened first; integers, which no model
//! multiplies at length, take plain loops.

use gemm_common::Parallelism;
use tilewright_ir::{DType, Result};
use tilewright_plan::MatMul;

use crate::Context;
use crate::memory::{Aligned, Array, Memory, broken};
use crate::tile::{Convert, Move};

/// Multiplications below which one thread does a product alone.
const SERIAL: usize = 1 << 18;

/// The least width of a stripe.
const STRIPE: usize = 128;

/// The sizes of the products, and where their matrices are.
struct Products {
    batch: Vec<usize>,
    rows: usize,
    columns: usize,
    depth: usize,
    left: Array,
    right: Array,
    output: Array,
}

/// A float that the library multiplies.
trait Float: Copy {
    const ZERO: Self;
    const ONE: Self;
    /// The product for this machine's instruction set.
    fn library() -> Product<Self>;
}

/// `output ← zero · output + one · left · right`, as the library takes it: rows, columns, depth; the output and
/// whether it is read; left; right; each as a pointer with the strides of columns and of rows.
type Product<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

impl Float for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    fn library() -> Product<f64> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
}

impl Float for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    fn library() -> Product<f32> {
        gemm_f32::gemm::f32::get_gemm_fn()
    }
}

/// A matrix: a pointer to its first element, and elements from row to row and from column to column.
#[derive(Clone, Copy)]
struct Matrix {
    data: *mut u8,
    row: isize,
    column: isize,
}

// SAFETY: a place in memory; whoever reads or writes through it sees to who else does.
unsafe impl Sync for Matrix {}

/// Runs a batch of matrix products.
pub(crate) fn run(kernel: &MatMul, memory: &Memory, context: &Context) -> Result<()> {
    let &MatMul { rows, columns, depth, dtype, .. } = kernel;
    let extents = |row: usize, column: usize| [kernel.batch.as_slice(), &[row, column]].concat();
    let mut products = Products {
        batch: kernel.batch.clone(),
        rows,
        columns,
        depth,
        left: memory.read(&kernel.left, dtype, &extents(rows, depth))?,
        right: memory.read(&kernel.right, dtype, &extents(depth, columns))?,
        output: memory.write(&kernel.output, dtype, &extents(rows, columns))?,
    };
    products.merge_batch_into_rows();
    let count: usize = products.batch.iter().product();
    if count == 0 || products.rows == 0 || columns == 0 {
        return Ok(());
    }
    let work = products.rows.saturating_mul(columns).saturating_mul(depth.max(1));
    let shared = context.threads > 1 && work >= SERIAL && count < 2 * context.threads;
    let threads = if shared { context.threads } else { 1 };
    let each = |number: usize| products.run(number, dtype, threads, context);
    if shared || work.saturating_mul(count) < SERIAL {
        (0..count).try_for_each(each)
    } else {
        context.parallel(count, each)
    }
}

impl Products {
    /// A batch axis along which `right` stays the same makes one taller product.
    fn merge_batch_into_rows(&mut self) {
        while let (Some(&extent), Some(axis)) = (self.batch.last(), self.batch.len().checked_sub(1)) {
            let follows = |array: &Array| array.strides[axis] == array.strides[axis + 1] * self.rows as isize;
            let same = self.right.strides[axis] == 0;
            if extent != 1 && !(same && follows(&self.left) && follows(&self.output)) {
                return;
            }
            self.batch.pop();
            self.rows *= extent;
            for array in [&mut self.left, &mut self.right, &mut self.output] {
                array.strides.remove(axis);
            }
        }
    }

    /// The matrix of one batch element.
    fn matrix(&self, array: &Array, mut number: usize) -> Matrix {
        let axes = self.batch.len();
        let mut offset = 0;
        for (&extent, &stride) in self.batch.iter().zip(&array.strides).rev() {
            offset += (number % extent) as isize * stride;
            number /= extent;
        }
        let data = array.data.wrapping_offset(offset * array.dtype.size() as isize);
        Matrix { data, row: array.strides[axes], column: array.strides[axes + 1] }
    }

    fn run(&self, number: usize, dtype: DType, threads: usize, context: &Context) -> Result<()> {
        let left = self.matrix(&self.left, number);
        let right = self.matrix(&self.right, number);
        let output = self.matrix(&self.output, number);
        match dtype {
            DType::F64 => self.product::<f64>(left, right, output, threads, context)?,
            DType::F32 => self.product::<f32>(left, right, output, threads, context)?,
            DType::BF16 | DType::F16 => {
                let (_left, left) = widen(left, (self.rows, self.depth), dtype, context)?;
                let (_right, right) = widen(right, (self.depth, self.columns), dtype, context)?;
                let wide = Aligned::<f32>::new(self.rows * self.columns)?;
                let result = Matrix { data: wide.start().cast(), row: self.columns as isize, column: 1 };
                self.product::<f32>(left, right, result, threads, context)?;
                let back = Convert::back(dtype, context.isa);
                // SAFETY: the output's elements are inside its buffer.
                unsafe { convert(&back, result, 4, output, (self.rows, self.columns)) };
            }
            DType::I64 => self.integers(left, right, output, i64::wrapping_add, i64::wrapping_mul),
            DType::I32 => self.integers(left, right, output, i32::wrapping_add, i32::wrapping_mul),
            DType::U8 => self.integers(left, right, output, u8::wrapping_add, u8::wrapping_mul),
            DType::Bool => return Err(broken("a matrix product of truth values")),
        }
        Ok(())
    }

    fn product<T: Float>(
        &self,
        left: Matrix,
        right: Matrix,
        output: Matrix,
        threads: usize,
        context: &Context,
    ) -> Result<()> {
        // The library wants the columns of its output side by side in memory: where rows are, it is given
        // the transposed product, and where the contracted axis runs backwards, both operands turned round.
        let by_columns = output.column.unsigned_abs() >= output.row.unsigned_abs();
        let (output, mut left, mut right, rows, columns) = match by_columns {
            true => (output, left, right, self.rows, self.columns),
            false => (output.transposed(), right.transposed(), left.transposed(), self.columns, self.rows),
        };
        if left.column < 0 && self.depth > 0 {
            let last = self.depth - 1;
            left = Matrix { data: left.at::<T>(0, last).cast(), column: -left.column, ..left };
            right = Matrix { data: right.at::<T>(last, 0).cast(), row: -right.row, ..right };
        }
        let longer = rows.max(columns);
        let stripes = threads.min(longer / STRIPE).max(1);
        let width = longer.div_ceil(stripes).next_multiple_of(STRIPE / 2);
        let within = threads / stripes;
        let parallelism = if within > 1 { Parallelism::Rayon(within) } else { Parallelism::None };
        let stripe = |i: usize| {
            let (first, width) = (i * width, width.min(longer.saturating_sub(i * width)));
            let (row, column, rows, columns) = match rows == longer {
                true => (first, 0, width, columns),
                false => (0, first, rows, width),
            };
            if width == 0 {
                return Ok(());
            }
            // SAFETY: the matrices lie inside their buffers, and the output, whose strides are positive,
            // overlaps neither operand; stripes of it do not overlap.
            unsafe {
                T::library()(
                    rows,
                    columns,
                    self.depth,
                    output.at::<T>(row, column),
                    output.column,
                    output.row,
                    false,
                    left.at::<T>(row, 0),
                    left.column,
                    left.row,
                    right.at::<T>(0, column),
                    right.column,
                    right.row,
                    T::ZERO,
                    T::ONE,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
            Ok(())
        };
        context.parallel(stripes, stripe)
    }

    fn integers<T: Copy + Default>(
        &self,
        left: Matrix,
        right: Matrix,
        output: Matrix,
        add: impl Fn(T, T) -> T,
        multiply: impl Fn(T, T) -> T,
    ) {
        for row in 0..self.rows {
            for column in 0..self.columns {
                // SAFETY: the matrices lie inside their buffers.
                unsafe {
                    let sum = (0..self.depth).fold(T::default(), |sum, k| {
                        add(sum, multiply(*left.at(row, k), *right.at(k, column)))
                    });
                    *output.at(row, column) = sum;
                }
            }
        }
    }
}

impl Matrix {
    fn transposed(self) -> Matrix {
        Matrix { row: self.column, column: self.row, ..self }
    }

    fn at<T>(&self, row: usize, column: usize) -> *mut T {
        self.data.cast::<T>().wrapping_offset(row as isize * self.row + column as isize * self.column)
    }
}

/// A packed copy of a matrix of narrow floats, in the order of its memory, and a look at it.
fn widen(
    matrix: Matrix,
    (rows, columns): (usize, usize),
    dtype: DType,
    context: &Context,
) -> Result<(Aligned<f32>, Matrix)> {
    let wide = Aligned::<f32>::new(rows * columns)?;
    let by_columns = matrix.column.unsigned_abs() > matrix.row.unsigned_abs();
    let (row, column) = if by_columns { (1, rows as isize) } else { (columns as isize, 1) };
    let result = Matrix { data: wide.start().cast(), row, column };
    let load = Convert::new(dtype, context.isa);
    let turned = |matrix: Matrix| match by_columns {
        true => matrix.transposed(),
        false => matrix,
    };
    let extents = if by_columns { (columns, rows) } else { (rows, columns) };
    // SAFETY: the matrix lies inside its buffer, and the copy is as large.
    unsafe { convert(&load, turned(matrix), dtype.size(), turned(result), extents) };
    Ok((wide, result))
}

/// # Safety
/// Both matrices have the extents, and do not overlap.
unsafe fn convert(
    convert: &Convert,
    from: Matrix,
    from_size: usize,
    to: Matrix,
    (rows, columns): (usize, usize),
) {
    let to_size = if from_size == 4 { convert.size } else { 4 };
    let arguments = Move {
        rows,
        lanes: columns,
        from: from.data,
        from_row: from.row * from_size as isize,
        from_lane: from.column,
        to: to.data,
        to_row: to.row * to_size,
        to_lane: to.column,
    };
    // SAFETY: as the caller vouches.
    unsafe { (convert.kernel)(&arguments) }
}
