//! Sums by a key that is simpler than the pair.

use tilewright_ir::{DType, Result};
use tilewright_plan::AttentionBackward;
use tilewright_plan::attention::{AttentionShape, CaptureReduction, ReductionKey};

use super::Terms;
use super::indices::{Axes, check, integer};
use super::lengths;
use crate::Context;
use crate::attention::operands::Shared;
use crate::attention::vector::{Scalar, Vector};
use crate::memory::{Aligned, Array};
use crate::tile::{Argument, Feed, Live, Scratch, Stage, Target, Tile, TileProgram, Variance};

/// Numbers after those of a slot, so that whole vectors can be added at its end.
const PADDING: usize = 16;

/// Keys whose indices are evaluated at a time.
const CHUNK: usize = 256;

/// One sum for each key of each head, in one slot for each split and head.
pub(super) struct Keyed<S: Scalar> {
    key: ReductionKey,
    shape: AttentionShape,
    splits: usize,
    sums: Shared<S>,
    /// Which keys some admitted pair has; all where there is no mask.
    touched: Option<Shared<u8>>,
    /// Of a slot, padding included.
    size: usize,
}

impl<S: Scalar> Keyed<S> {
    pub(super) fn new(
        key: ReductionKey,
        shape: &AttentionShape,
        splits: usize,
        masked: bool,
    ) -> Result<Keyed<S>> {
        let size = keys(key, shape) + PADDING;
        let all = splits * shape.batch * shape.heads * size;
        let touched = masked.then(|| Shared::new(all)).transpose()?;
        Ok(Keyed { key, shape: *shape, splits, sums: Shared::new(all)?, touched, size })
    }

    /// Where the key of the tile's first query and key stands in its slot, and by how much that changes from
    /// query to query and from key to key. Differences are counted from k − q = −(queries − 1) on, so that
    /// the keys of a row ascend.
    fn steps(&self, query: usize, key: usize) -> (usize, isize, usize) {
        match self.key {
            ReductionKey::Query => (query, 1, 0),
            ReductionKey::Key => (key, 0, 1),
            ReductionKey::Difference => (self.shape.queries - 1 - query + key, -1, 1),
            ReductionKey::Sum => (query + key, 1, 1),
            ReductionKey::Head | ReductionKey::Bucket { .. } | ReductionKey::Pair | ReductionKey::Any => {
                (0, 0, 0)
            }
        }
    }

    /// Takes in a tile.
    ///
    /// # Safety
    /// As [`super::Reductions::add`].
    #[inline(always)]
    pub(super) unsafe fn add<V: Vector<Scalar = S>>(&self, terms: &Terms<S>, panel: *const S) {
        let pairs = terms.pairs;
        let slot = (terms.split * self.shape.batch + pairs.batch) * self.shape.heads + pairs.head;
        let (first, row_step, column_step) = self.steps(pairs.query, pairs.key);
        // The unit's own slot; nobody else looks at it now.
        let sums = self.sums.at(slot * self.size + first);
        let vectors = pairs.columns.div_ceil(V::LANES);
        // SAFETY: the panel holds the tile; each key of the tile is in the slot, and whole vectors reach into
        // the slot's padding at most.
        unsafe {
            let at = |row: usize, vector: usize| V::load(panel.add(row * terms.stride + vector * V::LANES));
            let add = |sum: V, to: *mut S| V::load(to).add(sum).store(to);
            let zero = V::splat(S::default());
            match self.key {
                ReductionKey::Query => {
                    for row in 0..pairs.rows {
                        let mut sum = zero;
                        for vector in 0..vectors {
                            sum = sum.add(at(row, vector));
                        }
                        let to = sums.add(row);
                        *to = S::from_f64((*to).to_f64() + sum.sum());
                    }
                }
                ReductionKey::Key => {
                    for vector in 0..vectors {
                        let mut sum = zero;
                        for row in 0..pairs.rows {
                            sum = sum.add(at(row, vector));
                        }
                        add(sum, sums.add(vector * V::LANES));
                    }
                }
                // Rows whose distance is a multiple of the lanes have whole vectors on common diagonals: these
                // are added in registers, down each diagonal, before memory is touched.
                ReductionKey::Difference => {
                    for first in 0..pairs.rows.min(V::LANES) {
                        let steps = (pairs.rows - first).div_ceil(V::LANES);
                        for diagonal in 0..steps + vectors - 1 {
                            // The vector's column in row `first` would be `diagonal − (steps − 1)`.
                            let mut sum = zero;
                            for step in (steps - 1).saturating_sub(diagonal)
                                ..steps.min(steps - 1 + vectors - diagonal)
                            {
                                sum = sum.add(at(first + step * V::LANES, diagonal + step - (steps - 1)));
                            }
                            let offset = diagonal as isize - (steps as isize - 1);
                            add(sum, sums.offset(offset * V::LANES as isize - first as isize));
                        }
                    }
                }
                ReductionKey::Sum => {
                    for first in 0..pairs.rows.min(V::LANES) {
                        let steps = (pairs.rows - first).div_ceil(V::LANES);
                        for diagonal in 0..steps + vectors - 1 {
                            let mut sum = zero;
                            for step in (diagonal + 1).saturating_sub(vectors)..steps.min(diagonal + 1) {
                                sum = sum.add(at(first + step * V::LANES, diagonal - step));
                            }
                            add(sum, sums.add(diagonal * V::LANES + first));
                        }
                    }
                }
                ReductionKey::Head | ReductionKey::Bucket { .. } | ReductionKey::Pair | ReductionKey::Any => {
                    let mut sum = zero;
                    for row in 0..pairs.rows {
                        for vector in 0..vectors {
                            sum = sum.add(at(row, vector));
                        }
                    }
                    *sums = S::from_f64((*sums).to_f64() + sum.sum());
                }
            }
        }
        // SAFETY: the keys of the tile, in the unit's own slot.
        unsafe { self.touch(terms, slot * self.size + first, (row_step, column_step)) };
    }

    /// Marks the keys that some admitted pair of a tile has; `first` is that of its first query and key.
    ///
    /// # Safety
    /// The slot holds the tile's keys, and nobody else looks at it now.
    unsafe fn touch(&self, terms: &Terms<S>, first: usize, (row_step, column_step): (isize, usize)) {
        let Some(touched) = &self.touched else { return };
        let (rows, columns) = (terms.pairs.rows, terms.pairs.columns);
        let touched = touched.at(first);
        // SAFETY: as the caller vouches; the keys of a tile, and those of a row, lie one behind the other.
        unsafe {
            let Some(admitted) = terms.admitted else {
                let across = (rows as isize - 1) * row_step;
                let count = across.unsigned_abs() + (columns - 1) * column_step + 1;
                return touched.offset(across.min(0)).write_bytes(1, count);
            };
            for row in 0..rows {
                let admitted = &admitted.row(row)[..columns];
                let touched = touched.offset(row as isize * row_step);
                if column_step == 0 {
                    *touched |= admitted.iter().fold(0, |any, &admitted| any | admitted);
                } else {
                    let touched = std::slice::from_raw_parts_mut(touched, columns);
                    touched.iter_mut().zip(admitted).for_each(|(touched, &admitted)| *touched |= admitted);
                }
            }
        }
    }

    /// Adds the sums to a cotangent, at the indices of their keys.
    pub(super) fn add_to(
        &mut self,
        total: &mut [S],
        kernel: &AttentionBackward,
        reduction: &CaptureReduction,
        tables: &[Array],
        context: &Context,
    ) -> Result<()> {
        let axes = Axes::new(&kernel.captures[reduction.capture], false);
        check(&reduction.indices, &axes)?;
        let position = Feed::Array(Variance::Column, DType::I32);
        let feeds = [Feed::Uniform, Feed::Uniform, position, position];
        let program =
            TileProgram::compile(&reduction.indices, &feeds, &kernel.attention.tables, context.isa)?;
        let sizes: Vec<usize> = (0..axes.extents.len())
            .map(|axis| if program.result(axis).1 == tilewright_plan::Kind::I64 { 8 } else { 4 })
            .collect();
        let mut found: Vec<Aligned<i64>> =
            axes.extents.iter().map(|_| Aligned::new(CHUNK)).collect::<Result<_>>()?;
        let mut scratch = Scratch::new();
        let count = keys(self.key, &self.shape);
        for head in 0..self.shape.batch * self.shape.heads {
            for first in (0..count).step_by(CHUNK) {
                let columns = CHUNK.min(count - first);
                let (queries, keys): (Vec<i32>, Vec<i32>) =
                    (first..first + columns).map(|key| representative(self.key, &self.shape, key)).unzip();
                let live: Vec<u8> =
                    (first..first + columns).map(|key| self.is_touched(head, key) as u8).collect();
                let line = |numbers: &[i32]| Argument::Array {
                    data: numbers.as_ptr().cast(),
                    row_stride: 0,
                    column_stride: 1,
                };
                let number = |x: usize| Argument::Scalar(tilewright_ir::Scalar::Integer(x as i64));
                let (batch, head_of) = (head / self.shape.heads, head % self.shape.heads);
                let targets: Vec<Target> = found
                    .iter_mut()
                    .zip(&sizes)
                    .map(|(found, &size)| Target::Array {
                        data: found.as_mut_ptr().cast(),
                        dtype: if size == 8 { DType::I64 } else { DType::I32 },
                        row_stride: 0,
                        column_stride: 1,
                    })
                    .collect();
                let tile = Tile {
                    rows: 1,
                    columns,
                    arguments: &[number(batch), number(head_of), line(&queries), line(&keys)],
                    targets: &targets,
                    tables,
                    live: Some(Live { data: live.as_ptr(), row_stride: 0 }),
                };
                // SAFETY: arguments and targets have so many columns; tables were checked by `Memory`.
                unsafe { program.run(Stage::Early, &tile, &mut scratch)? };
                for column in (0..columns).filter(|&column| live[column] != 0) {
                    let mut flat = 0;
                    for (axis, found) in found.iter().enumerate() {
                        // SAFETY: the program wrote so many integers of that size.
                        let index = unsafe { integer(found.as_ptr().cast(), sizes[axis], column) };
                        flat += axes.part(axis, index).ok_or_else(|| axes.outside(reduction, axis, index))?;
                    }
                    let sum = total[flat].to_f64() + self.sum(head, first + column);
                    total[flat] = S::from_f64(sum);
                }
            }
        }
        Ok(())
    }

    fn slots(&self, head: usize, key: usize) -> impl Iterator<Item = usize> + use<S> {
        let heads = self.shape.batch * self.shape.heads;
        let size = self.size;
        (0..self.splits).map(move |split| (split * heads + head) * size + key)
    }

    fn sum(&mut self, head: usize, key: usize) -> f64 {
        let slots = self.slots(head, key);
        let sums = self.sums.numbers();
        slots.map(|slot| sums[slot].to_f64()).sum()
    }

    fn is_touched(&mut self, head: usize, key: usize) -> bool {
        let mut slots = self.slots(head, key);
        match &mut self.touched {
            Some(touched) => {
                let touched = touched.numbers();
                slots.any(|slot| touched[slot] != 0)
            }
            None => true,
        }
    }
}

/// How many keys a head has.
fn keys(key: ReductionKey, shape: &AttentionShape) -> usize {
    let (queries, keys) = lengths(shape);
    match key {
        _ if queries == 0 || keys == 0 => 0,
        ReductionKey::Query => queries,
        ReductionKey::Key => keys,
        ReductionKey::Difference | ReductionKey::Sum => queries + keys - 1,
        ReductionKey::Head | ReductionKey::Bucket { .. } | ReductionKey::Pair | ReductionKey::Any => 1,
    }
}

/// A pair that has a key.
fn representative(key: ReductionKey, shape: &AttentionShape, number: usize) -> (i32, i32) {
    let (queries, keys) = lengths(shape);
    let (query, key) = match key {
        ReductionKey::Query => (number, 0),
        ReductionKey::Key => (0, number),
        ReductionKey::Difference => {
            ((queries - 1).saturating_sub(number), number.saturating_sub(queries - 1))
        }
        ReductionKey::Sum => (number.min(queries - 1), number.saturating_sub(queries - 1)),
        ReductionKey::Head | ReductionKey::Bucket { .. } | ReductionKey::Pair | ReductionKey::Any => (0, 0),
    };
    debug_assert!(query < queries && key < keys);
    (query as i32, key as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_representative() {
        for (queries, keys_of_shape) in [(1, 1), (5, 3), (3, 5), (1, 7), (7, 1)] {
            let shape = AttentionShape {
                batch: 1,
                heads: 1,
                key_batch: 1,
                key_heads: 1,
                queries,
                keys: keys_of_shape,
                head_size: 1,
                value_size: 1,
            };
            for key in [ReductionKey::Query, ReductionKey::Key, ReductionKey::Difference, ReductionKey::Sum] {
                for number in 0..keys(key, &shape) {
                    let (q, k) = representative(key, &shape, number);
                    let found = match key {
                        ReductionKey::Query => q,
                        ReductionKey::Key => k,
                        ReductionKey::Difference => k - q + queries as i32 - 1,
                        _ => q + k,
                    };
                    assert_eq!(found, number as i32, "{key:?} of {queries} × {keys_of_shape}");
                }
            }
        }
    }
}
