//! Scattered sums, with one order of additions.
//!
//! Indices are checked and turned into rows of the output first. Then each task owns a range of the output's
//! rows, or a range of columns where there are few rows, and walks the updates in order, adding those that
//! are its own. So each element's sum has the order of the updates, and no two tasks write one element.

use half::{bf16, f16};
use tilewright_ir::{DType, Error, ErrorKind, Result};
use tilewright_plan::{ScatterAdd, evaluate};

use crate::Context;
use crate::memory::{Aligned, Array, Memory, broken};

/// Additions below which one task does them all.
const SERIAL: usize = 1 << 14;

/// Tasks at most: each walks all indices, so more of them would only walk.
const TASKS: usize = 8;

/// Runs a scattered sum.
pub(crate) fn run(kernel: &ScatterAdd, memory: &Memory, context: &Context) -> Result<()> {
    let updates = memory.read(&kernel.updates, kernel.dtype, &[&*kernel.space, &*kernel.tail].concat())?;
    let output = memory.write(&kernel.output, kernel.dtype, &[&*kernel.indexed, &*kernel.tail].concat())?;
    if kernel.indices.len() != kernel.indexed.len() {
        return Err(broken("a scatter has not an index for each indexed axis"));
    }
    if !packed(&output) {
        return Err(broken("the output of a scatter is not packed"));
    }
    let indices: Vec<Array> = kernel
        .indices
        .iter()
        .map(|(view, dtype)| memory.read(view, *dtype, &kernel.space))
        .collect::<Result<_>>()?;
    let (rows, columns) = (kernel.indexed.iter().product(), kernel.tail.iter().product());
    let targets = targets(kernel, &indices)?;
    let scatter = Scatter { kernel, updates, output, targets, rows, columns };
    match kernel.dtype {
        DType::F64 => scatter.run(context, 0.0f64, |sum, x: f64| sum + x, |sum| sum),
        DType::F32 => scatter.run(context, 0.0f32, |sum, x: f32| sum + x, |sum| sum),
        DType::BF16 => scatter.run(context, 0.0f32, |sum, x: bf16| sum + x.to_f32(), bf16::from_f32),
        DType::F16 => scatter.run(context, 0.0f32, |sum, x: f16| sum + x.to_f32(), f16::from_f32),
        DType::I64 => scatter.run(context, 0i64, |sum, x: i64| sum.wrapping_add(x), |sum| sum),
        DType::I32 => scatter.run(context, 0i32, |sum, x: i32| sum.wrapping_add(x), |sum| sum),
        DType::U8 => scatter.run(context, 0u8, |sum, x: u8| sum.wrapping_add(x), |sum| sum),
        DType::Bool => Err(broken("a sum of truth values")),
    }
}

/// Whether an array's elements lie in row-major order without gaps.
fn packed(array: &Array) -> bool {
    let mut expected = 1;
    array.extents.iter().zip(&array.strides).rev().all(|(&extent, &stride)| {
        let fits = extent <= 1 || stride == expected;
        expected *= extent as isize;
        fits
    }) || array.extents.contains(&0)
}

/// The row of the output that each update goes to.
fn targets(kernel: &ScatterAdd, indices: &[Array]) -> Result<Aligned<u64>> {
    let count: usize = kernel.space.iter().product();
    let mut targets = Aligned::<u64>::new(count)?;
    let mut position = vec![0; kernel.space.len()];
    for target in targets.iter_mut() {
        for (axis, (array, &size)) in indices.iter().zip(&kernel.indexed).enumerate() {
            let index = integer(array, &position)?;
            let Some(place) = evaluate::position(index, size) else {
                let buffer = "the array that is read".to_string();
                return Err(
                    Error::new(ErrorKind::Index { buffer, axis, index, size }).at(kernel.origin.clone())
                );
            };
            *target = *target * size as u64 + place as u64;
        }
        advance(&mut position, &kernel.space);
    }
    Ok(targets)
}

/// The integer at a position.
fn integer(array: &Array, position: &[usize]) -> Result<i64> {
    // SAFETY: the position is inside the extents, which were checked against the buffer.
    unsafe {
        match array.dtype {
            DType::I64 => Ok(*array.at::<i64>(position)),
            DType::I32 => Ok(*array.at::<i32>(position) as i64),
            DType::U8 => Ok(*array.at::<u8>(position) as i64),
            DType::F64 | DType::F32 | DType::BF16 | DType::F16 | DType::Bool => {
                Err(broken(format!("an index of {}", array.dtype)))
            }
        }
    }
}

/// The next position in row-major order.
fn advance(position: &mut [usize], extents: &[usize]) {
    for (slot, &extent) in position.iter_mut().zip(extents).rev() {
        *slot += 1;
        if *slot < extent {
            return;
        }
        *slot = 0;
    }
}

struct Scatter<'a> {
    kernel: &'a ScatterAdd,
    updates: Array,
    output: Array,
    targets: Aligned<u64>,
    rows: usize,
    columns: usize,
}

impl Scatter<'_> {
    /// Sums in `S`, of elements of `T`.
    fn run<T: Copy + Send + Sync, S: crate::memory::Number>(
        &self,
        context: &Context,
        zero: S,
        add: impl Fn(S, T) -> S + Sync,
        round: impl Fn(S) -> T + Sync,
    ) -> Result<()> {
        let by_rows = self.rows >= 4 * TASKS;
        let extent = if by_rows { self.rows } else { self.columns };
        let work = self.targets.len().saturating_mul(self.columns);
        let tasks = if work < SERIAL { 1 } else { TASKS.min(extent) };
        context.parallel(tasks, |task| {
            let range = task * extent / tasks..(task + 1) * extent / tasks;
            let (rows, columns) = if by_rows { (range, 0..self.columns) } else { (0..self.rows, range) };
            let width = columns.len();
            let mut sums = Aligned::<S>::new(rows.len() * width)?;
            sums.fill(zero);
            let columns = self.column_offsets(columns);
            let space = self.kernel.space.len();
            let mut position = vec![0; space];
            for &target in self.targets.iter() {
                let row = target as usize;
                if rows.contains(&row) {
                    let start: isize = position
                        .iter()
                        .zip(&self.updates.strides)
                        .map(|(&i, &stride)| i as isize * stride)
                        .sum();
                    let sums = &mut sums[(row - rows.start) * width..][..width];
                    for (sum, &offset) in sums.iter_mut().zip(&columns) {
                        // SAFETY: the position is inside the updates.
                        let x = unsafe { *self.updates.data.cast::<T>().wrapping_offset(start + offset) };
                        *sum = add(*sum, x);
                    }
                }
                advance(&mut position, &self.kernel.space);
            }
            let first_column = if by_rows { 0 } else { task * extent / tasks };
            for (row, sums) in rows.zip(sums.chunks(width.max(1))) {
                for (column, &sum) in sums.iter().enumerate() {
                    let element = row * self.columns + first_column + column;
                    // SAFETY: the element is inside the packed output, and this task's own.
                    unsafe { *self.output.data.cast::<T>().add(element) = round(sum) };
                }
            }
            Ok(())
        })
    }

    /// Where the updates of some columns lie from the first on.
    fn column_offsets(&self, columns: std::ops::Range<usize>) -> Vec<isize> {
        let tail = &self.kernel.tail;
        let strides = &self.updates.strides[self.kernel.space.len()..];
        let offset = |mut column: usize| {
            let mut offset = 0;
            for (&extent, &stride) in tail.iter().zip(strides).rev() {
                offset += (column % extent) as isize * stride;
                column /= extent;
            }
            offset
        };
        columns.map(offset).collect()
    }
}
