//! Sums into the capture's cotangent itself, or into copies of it, at indices that are evaluated for each pair.

use tilewright_ir::{DType, Result};
use tilewright_plan::attention::{CaptureCotangent, CaptureReduction, ReductionKey};
use tilewright_plan::{AttentionBackward, Kind, Operation};

use super::Terms;
use super::indices::{Axes, check, integer, steps};
use crate::Context;
use crate::attention::operands::Shared;
use crate::attention::regions::{Panel, compile_indices};
use crate::attention::vector::{Scalar, Vector};
use crate::isa;
use crate::memory::{Aligned, Array};
use crate::tile::{Scratch, Stage, Target, Tile, TileProgram};

/// Pairs whose flat indices are computed at a time.
const CHUNK: usize = 64;

/// Copies of a small table that neighbouring pairs add to in turn.
const TURNS: usize = 4;

/// Elements of a table that is small.
const SMALL: usize = 4096;

/// Where the sums are made.
pub(super) enum Place<S: Scalar> {
    /// In one copy of the capture for each lane of work, or one for all. Neighbouring pairs add to copies so many
    /// elements apart.
    Copies { sums: Shared<S>, copies: usize, turn: usize },
    /// Where they belong.
    Cotangent {
        /// The cotangent's first element.
        data: *mut S,
        /// Whether every element belongs to exactly one pair, which is admitted: then it is stored, not added.
        once: bool,
    },
}

// SAFETY: whoever adds sees to disjoint elements, or to one thread at a time for each copy.
unsafe impl<S: Scalar> Send for Place<S> {}
// SAFETY: as above.
unsafe impl<S: Scalar> Sync for Place<S> {}

impl<S: Scalar> Place<S> {
    /// Copies of a capture, for so many lanes.
    pub(super) fn copies(capture: &CaptureCotangent, lanes: usize) -> Result<Place<S>> {
        let elements = capture.shape.iter().product();
        let turns = if lanes > 1 && elements <= SMALL { TURNS } else { 1 };
        let copies = lanes * turns;
        let turn = if turns == 1 { 0 } else { elements };
        Ok(Place::Copies { sums: Shared::new(copies * elements)?, copies, turn })
    }
}

/// Sums of one reduction.
pub(super) struct Scattered<S: Scalar> {
    place: Place<S>,
    elements: usize,
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
        place: Place<S>,
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
        Ok(Scattered {
            place,
            elements: capture.shape.iter().product(),
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
        let (sums, turn, once) = match &self.place {
            Place::Copies { copies: 1, sums, turn } => (sums.at(0), *turn, false),
            Place::Copies { sums, turn: 0, .. } => (sums.at(terms.lane * self.elements), 0, false),
            Place::Copies { sums, turn, .. } => (sums.at(terms.lane * TURNS * self.elements), *turn, false),
            Place::Cotangent { data, once } => (*data, 0, *once),
        };
        // SAFETY: as the caller vouches, the copy or the elements are this unit's alone.
        unsafe {
            match self.line(terms, tables, scratch)? {
                Some(line) if once => add_lines::<V, false>(terms, panel, sums, line),
                Some(line) => add_lines::<V, true>(terms, panel, sums, line),
                None if once => self.scatter::<false>(terms, panel, sums, turn, tables, scratch)?,
                None => self.scatter::<true>(terms, panel, sums, turn, tables, scratch)?,
            }
        }
        Ok(())
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
    unsafe fn scatter<const ADD: bool>(
        &self,
        terms: &Terms<S>,
        panel: *const S,
        sums: *mut S,
        turn: usize,
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
                    let turn = (i % TURNS) * turn;
                    // SAFETY: an element of the copy, and of the panel.
                    unsafe {
                        let to = sums.add(flat + turn);
                        let x = *panel.add(row * terms.stride + first + i);
                        *to = if ADD { (*to).plus(x) } else { x };
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

    /// Adds the copies, in their order, to a cotangent, which is 0 where there is none yet. Gives whether there was
    /// anything to add.
    pub(super) fn add_to(self, total: &mut Option<Aligned<S>>) -> bool {
        let Place::Copies { sums, .. } = self.place else { return false };
        let mut copies = sums.into_inner();
        let (first, others) = copies.split_at_mut(self.elements);
        for copy in others.chunks_exact(self.elements.max(1)) {
            add_all(first, copy);
        }
        match total {
            Some(total) => add_all(total, first),
            None => *total = Some(copies),
        }
        true
    }
}

fn add_all<S: Scalar>(to: &mut [S], from: &[S]) {
    for (to, x) in to.iter_mut().zip(from) {
        *to = to.plus(*x);
    }
}

/// Adds a panel to elements at constant distances, or stores it there, along the axis on which they are nearer.
///
/// # Safety
/// All the elements are in `sums`.
#[inline(always)]
unsafe fn add_lines<V: Vector, const ADD: bool>(
    terms: &Terms<V::Scalar>,
    panel: *const V::Scalar,
    sums: *mut V::Scalar,
    (flat, row_step, column_step): (usize, isize, isize),
) {
    let (rows, columns) = (terms.pairs.rows, terms.pairs.columns);
    // SAFETY: as the caller vouches.
    unsafe {
        let sums = sums.add(flat);
        let add = |to: *mut V::Scalar, x: V::Scalar| *to = if ADD { (*to).plus(x) } else { x };
        if column_step == 1 {
            for row in 0..rows {
                let (from, to) = (panel.add(row * terms.stride), sums.offset(row as isize * row_step));
                let vectors = columns / V::LANES;
                for at in (0..vectors).map(|vector| vector * V::LANES) {
                    let x = V::load(from.add(at));
                    (if ADD { V::load(to.add(at)).add(x) } else { x }).store(to.add(at));
                }
                for at in vectors * V::LANES..columns {
                    add(to.add(at), *from.add(at));
                }
                if ADD {
                    // The rows of the next tile lie in other pages, which are slow to answer.
                    let next = to.wrapping_offset(terms.ahead as isize * row_step);
                    for at in (0..columns).step_by(64 / size_of::<V::Scalar>()) {
                        isa::prefetch(next.wrapping_add(at).cast());
                    }
                }
            }
            return;
        }
        for column in 0..columns {
            let (from, to) = (panel.add(column), sums.offset(column as isize * column_step));
            for row in 0..rows {
                add(to.offset(row as isize * row_step), *from.add(row * terms.stride));
            }
        }
    }
}
