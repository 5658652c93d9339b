//! Sums into a copy of the capture, at indices that are evaluated for each pair.

use tilewright_ir::{DType, Result};
use tilewright_plan::attention::{CaptureReduction, ReductionKey};
use tilewright_plan::{AttentionBackward, Kind, Operation};

use super::Terms;
use super::indices::{Axes, check, integer, steps};
use crate::Context;
use crate::attention::operands::Shared;
use crate::attention::regions::{Panel, compile_indices};
use crate::attention::vector::{Scalar, Vector};
use crate::memory::{Aligned, Array};
use crate::tile::{Scratch, Stage, Target, Tile, TileProgram};

/// Pairs whose flat indices are computed at a time.
const CHUNK: usize = 64;

/// Copies of a small table that neighbouring pairs add to in turn.
const TURNS: usize = 4;

/// Elements of a table that is small.
const SMALL: usize = 4096;

/// One copy of the capture for each lane of work, or one for all.
pub(super) struct Scattered<S: Scalar> {
    sums: Shared<S>,
    copies: usize,
    /// Of one copy.
    elements: usize,
    /// Elements from the copy that one neighbour adds to to that of the next; 0 if it is the same.
    turn: usize,
    axes: Axes,
    program: TileProgram,
    scored: bool,
    /// Bytes of each index.
    sizes: Vec<usize>,
    /// How the indices grow with query and key, where by constants.
    steps: Option<Vec<(i64, i64)>>,
    reduction: CaptureReduction,
}

impl<S: Scalar> Scattered<S> {
    pub(super) fn new(
        kernel: &AttentionBackward,
        reduction: &CaptureReduction,
        copies: usize,
        context: &Context,
    ) -> Result<Scattered<S>> {
        let capture = &kernel.captures[reduction.capture];
        let axes = Axes::new(capture, matches!(reduction.key, ReductionKey::Bucket { .. }));
        let indices = &reduction.indices;
        check(indices, &axes)?;
        let scored =
            indices.instructions.iter().any(|instruction| instruction.operation == Operation::Input(4));
        let attention = &kernel.attention;
        let program = compile_indices(indices, &attention.tables, attention.dtype, scored, context.isa)?;
        let sizes = (0..axes.extents.len())
            .map(|axis| if program.result(axis).1 == Kind::I64 { 8 } else { 4 })
            .collect();
        let elements = capture.shape.iter().product();
        let turns = if copies > 1 && elements <= SMALL { TURNS } else { 1 };
        Ok(Scattered {
            sums: Shared::new(copies * turns * elements)?,
            copies: copies * turns,
            elements,
            turn: if turns == 1 { 0 } else { elements },
            axes,
            program,
            scored,
            sizes,
            steps: steps(indices),
            reduction: reduction.clone(),
        })
    }

    /// Takes in a tile.
    ///
    /// # Errors
    /// `ErrorKind::Index` for an admitted pair's index out of range.
    ///
    /// # Safety
    /// As [`super::Reductions::add`].
    #[inline(always)]
    pub(super) unsafe fn add<V: Vector<Scalar = S>>(
        &self,
        terms: &Terms<S>,
        panel: *const S,
        tables: &[Array],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let copy = if self.copies == 1 { 0 } else { terms.lane * if self.turn == 0 { 1 } else { TURNS } };
        let sums = self.sums.at(copy * self.elements);
        // SAFETY: as the caller vouches, the copy is this unit's alone.
        unsafe {
            if let Some((flat, row_step, column_step)) = self.line(terms, tables, scratch)? {
                add_lines::<V>(terms, panel, sums, (flat, row_step, column_step));
                return Ok(());
            }
            self.scatter(terms, panel, sums, tables, scratch)
        }
    }

    /// Where all indices grow by constants and none leaves its axis anywhere in the tile: the flat index of
    /// the tile's first pair, and by how much it grows with the query and with the key.
    fn line(
        &self,
        terms: &Terms<S>,
        tables: &[Array],
        scratch: &mut Scratch,
    ) -> Result<Option<(usize, isize, isize)>> {
        let Some(steps) = &self.steps else { return Ok(None) };
        let mut first = vec![0i64; self.sizes.len()];
        self.evaluate(terms, (1, 1), first.as_mut_ptr().cast(), 1, tables, scratch)?;
        let (mut flat, mut row_step, mut column_step) = (0, 0, 0);
        for (axis, &(by_query, by_key)) in steps.iter().enumerate() {
            // SAFETY: the program wrote one integer of that size for each axis.
            let index = unsafe { integer(first.as_ptr().add(axis).cast(), self.sizes[axis], 0) };
            let reach = |step: i64, count: usize| step * (count as i64 - 1);
            let (down, across) = (reach(by_query, terms.pairs.rows), reach(by_key, terms.pairs.columns));
            let (low, high) = (index + down.min(0) + across.min(0), index + down.max(0) + across.max(0));
            let (Some(_), Some(_), Some(part)) =
                (self.axes.part(axis, low), self.axes.part(axis, high), self.axes.part(axis, index))
            else {
                return Ok(None);
            };
            if (low < 0) != (high < 0) {
                return Ok(None);
            }
            flat += part;
            row_step += by_query as isize * self.axes.strides[axis] as isize;
            column_step += by_key as isize * self.axes.strides[axis] as isize;
        }
        Ok(Some((flat, row_step, column_step)))
    }

    /// Evaluates the indices of the tile's first rows and columns; those of axis i go to `to + i · 8 · room`.
    fn evaluate(
        &self,
        terms: &Terms<S>,
        (rows, columns): (usize, usize),
        to: *mut u8,
        room: usize,
        tables: &[Array],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let target = |axis: usize| -> Target {
            let dtype = if self.sizes[axis] == 8 { DType::I64 } else { DType::I32 };
            Panel { data: to.wrapping_add(axis * 8 * room), dtype, stride: columns }.target()
        };
        let targets: Vec<Target> = (0..self.sizes.len()).map(target).collect();
        let [b, h, q, k] = terms.pairs.positions();
        let arguments = [b, h, q, k, terms.scores.argument()];
        let arguments = if self.scored { &arguments[..] } else { &arguments[..4] };
        let whole = (rows, columns) == (terms.pairs.rows, terms.pairs.columns);
        let live = terms.admitted.filter(|_| whole).map(|admitted| admitted.live());
        let tile = Tile { rows, columns, arguments, targets: &targets, tables, live };
        // SAFETY: the targets have room for the tile; tables were checked by `Memory`.
        unsafe { self.program.run(Stage::Early, &tile, scratch) }
    }

    /// # Safety
    /// `sums` is the unit's own copy.
    #[inline(always)]
    unsafe fn scatter(
        &self,
        terms: &Terms<S>,
        panel: *const S,
        sums: *mut S,
        tables: &[Array],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (rows, columns) = (terms.pairs.rows, terms.pairs.columns);
        let room = rows * columns;
        let mut indices = vec![0i64; self.sizes.len() * room];
        self.evaluate(terms, (rows, columns), indices.as_mut_ptr().cast(), room, tables, scratch)?;
        let mut flat = [0usize; CHUNK];
        for row in 0..rows {
            for first in (0..columns).step_by(CHUNK) {
                let flat = &mut flat[..CHUNK.min(columns - first)];
                flat.fill(0);
                for (axis, &size) in self.sizes.iter().enumerate() {
                    // SAFETY: the program wrote `room` integers of that size.
                    unsafe {
                        let from = indices.as_ptr().add(axis * room);
                        let at = row * columns + first;
                        let outside = match size {
                            8 => self.axes.add(axis, flat, from.add(at)),
                            _ => self.axes.add(axis, flat, from.cast::<i32>().add(at)),
                        };
                        if outside {
                            self.check(terms, row, first, axis, |i| integer(from.cast(), size, at + i))?;
                        }
                    }
                }
                for (i, &flat) in flat.iter().enumerate() {
                    if terms.admitted.is_some_and(|admitted| admitted.row(row)[first + i] == 0) {
                        continue;
                    }
                    // Neighbours mostly share an element of a small table; in turn they add to two copies of it,
                    // so that they need not wait for each other.
                    let turn = (i % TURNS) * self.turn;
                    // SAFETY: an element of the copy, and of the panel.
                    unsafe {
                        let to = sums.add(flat + turn);
                        *to = (*to).plus(*panel.add(row * terms.stride + first + i));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the pair that has an index out of range is admitted.
    #[cold]
    fn check(
        &self,
        terms: &Terms<S>,
        row: usize,
        first: usize,
        axis: usize,
        index: impl Fn(usize) -> i64,
    ) -> Result<()> {
        for column in first..(first + CHUNK).min(terms.pairs.columns) {
            let admitted = terms.admitted.is_none_or(|admitted| admitted.row(row)[column] != 0);
            let index = index(column - first);
            if admitted && self.axes.part(axis, index).is_none() {
                return Err(self.axes.outside(&self.reduction, axis, index));
            }
        }
        Ok(())
    }

    /// Adds the copies, in their order, to a cotangent, which is 0 where there is none yet.
    pub(super) fn add_to(self, total: &mut Option<Aligned<S>>) {
        let mut copies = self.sums.into_inner();
        let (first, others) = copies.split_at_mut(self.elements);
        for copy in others.chunks_exact(self.elements.max(1)) {
            add_all(first, copy);
        }
        match total {
            Some(total) => add_all(total, first),
            None => *total = Some(copies),
        }
    }
}

fn add_all<S: Scalar>(to: &mut [S], from: &[S]) {
    for (to, x) in to.iter_mut().zip(from) {
        *to = to.plus(*x);
    }
}

/// Adds a panel to elements at constant distances, along the axis on which they are nearer.
///
/// # Safety
/// All the elements are in `sums`.
#[inline(always)]
unsafe fn add_lines<V: Vector>(
    terms: &Terms<V::Scalar>,
    panel: *const V::Scalar,
    sums: *mut V::Scalar,
    (flat, row_step, column_step): (usize, isize, isize),
) {
    let (rows, columns) = (terms.pairs.rows, terms.pairs.columns);
    // SAFETY: as the caller vouches.
    unsafe {
        let sums = sums.add(flat);
        if column_step == 1 {
            for row in 0..rows {
                let (from, to) = (panel.add(row * terms.stride), sums.offset(row as isize * row_step));
                let vectors = columns / V::LANES;
                for at in (0..vectors).map(|vector| vector * V::LANES) {
                    V::load(to.add(at)).add(V::load(from.add(at))).store(to.add(at));
                }
                for at in vectors * V::LANES..columns {
                    *to.add(at) = (*to.add(at)).plus(*from.add(at));
                }
            }
            return;
        }
        for column in 0..columns {
            let (from, to) = (panel.add(column), sums.offset(column as isize * column_step));
            for row in 0..rows {
                let to = to.offset(row as isize * row_step);
                *to = (*to).plus(*from.add(row * terms.stride));
            }
        }
    }
}
