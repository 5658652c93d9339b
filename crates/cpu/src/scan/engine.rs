//! The walk of a scan over memory, tile by tile, for any combine function.

use tilewright_ir::Result;

use super::chain::Chunks;
use super::edges::{self, Edges, Run};
use super::store;
use super::walk::{Direction, Walk};
use crate::memory::Aligned;

/// A combine function over arrays. Each of the state's elements is an array of its kind; a *carry* has
/// `count` elements of each, those of element i from the eight-byte slot `i · count` on.
pub(super) trait Combine: Sync {
    type Scratch;

    /// Scratch for one thread.
    fn scratch(&self) -> Self::Scratch;

    /// Scans `run.count` neighbouring positions, in memory order or the reverse. `carry`, of count 1, is
    /// the state before them, unless `fresh`, and becomes the state after. No output is made where
    /// `store` is false.
    ///
    /// # Safety
    /// `inputs` and `outputs` are good for `run.count` elements and do not overlap.
    #[allow(clippy::too_many_arguments, reason = "arrays in, arrays out, and how")]
    unsafe fn row(
        &self,
        scratch: &mut Self::Scratch,
        run: &Run,
        inputs: &[*const u8],
        outputs: &[*mut u8],
        carry: &mut [u64],
        fresh: bool,
        store: bool,
    ) -> Result<()>;

    /// Folds one position of `run.count` lanes into their state; where `fresh`, it becomes the state.
    ///
    /// # Safety
    /// `inputs` and `state` are good for `run.count` elements and do not overlap.
    unsafe fn lanes(
        &self,
        scratch: &mut Self::Scratch,
        run: &Run,
        inputs: &[*const u8],
        state: &[*mut u8],
        fresh: bool,
    ) -> Result<()>;
}

/// A scan that is ready to run.
pub(super) struct Engine<'a, C> {
    pub walk: &'a Walk,
    pub edges: &'a Edges<'a>,
    pub combine: &'a C,
    /// Elements of the state.
    pub state: usize,
}

/// What one thread works in.
pub(super) struct Scratch<S> {
    edges: edges::Scratch,
    combine: S,
    /// A tile of the state, laid out as a carry.
    tile: Aligned<u64>,
    inputs: Vec<*const u8>,
}

/// Where the elements of a carry for `count` lanes are.
fn parts(carry: &mut [u64], count: usize) -> Vec<*mut u8> {
    carry.chunks_exact_mut(count).map(|part| part.as_mut_ptr().cast()).collect()
}

impl<C: Combine> Engine<'_, C> {
    /// Folds one chunk of one row.
    fn row(
        &self,
        scratch: &mut Scratch<C::Scratch>,
        row: usize,
        chunk: usize,
        carry: &mut [u64],
        mut fresh: bool,
        store: bool,
    ) -> Result<()> {
        let mut start = self.walk.start_of_row(row);
        let axis = start.len() - 1;
        let outputs = parts(&mut scratch.tile, self.walk.tile);
        let states: Vec<*const u8> = outputs.iter().map(|pointer| pointer.cast_const()).collect();
        for (position, count) in self.walk.tiles(chunk) {
            start[axis] = position;
            let run = Run { start: &start, axis, count };
            self.edges.elements(&mut scratch.edges, &run, &mut scratch.inputs)?;
            let combine = &mut scratch.combine;
            // SAFETY: the edges give `count` elements; the tile has room for as many.
            unsafe { self.combine.row(combine, &run, &scratch.inputs, &outputs, carry, fresh, store)? };
            fresh = false;
            if store {
                self.edges.results(&mut scratch.edges, &run, &states)?;
            }
        }
        Ok(())
    }

    /// Folds one chunk of one block of lanes.
    fn lanes(
        &self,
        scratch: &mut Scratch<C::Scratch>,
        group: usize,
        chunk: usize,
        carry: &mut [u64],
        mut fresh: bool,
        store: bool,
    ) -> Result<()> {
        let (mut start, axis, count) = self.walk.lanes(group);
        let scan = start.len() - 1;
        let state = parts(carry, count);
        let states: Vec<*const u8> = state.iter().map(|pointer| pointer.cast_const()).collect();
        for position in self.walk.positions(chunk) {
            start[scan] = position;
            let run = Run { start: &start, axis, count };
            self.edges.elements(&mut scratch.edges, &run, &mut scratch.inputs)?;
            // SAFETY: the edges give `count` elements; the carry has as many.
            unsafe { self.combine.lanes(&mut scratch.combine, &run, &scratch.inputs, &state, fresh)? };
            fresh = false;
            if store {
                self.edges.results(&mut scratch.edges, &run, &states)?;
            }
        }
        Ok(())
    }

    /// Where a group starts, the axis that its lanes run along, and their number.
    fn group(&self, group: usize) -> (Vec<usize>, usize, usize) {
        match self.walk.direction {
            Direction::Row => {
                (self.walk.start_of_row(self.walk.rows(group).start), self.walk.parallel.len(), 1)
            }
            Direction::Column => self.walk.lanes(group),
        }
    }
}

impl<C: Combine> Chunks for Engine<'_, C> {
    type State = Vec<u64>;
    type Scratch = Scratch<C::Scratch>;

    fn scratch(&self) -> Result<Self::Scratch> {
        Ok(Scratch {
            edges: self.edges.scratch(self.walk.tile)?,
            combine: self.combine.scratch(),
            tile: Aligned::new(self.state * self.walk.tile)?,
            inputs: Vec::with_capacity(self.state),
        })
    }

    fn aggregate(&self, scratch: &mut Self::Scratch, group: usize, chunk: usize) -> Result<Vec<u64>> {
        let (_, _, count) = self.group(group);
        let mut carry = vec![0; self.state * count];
        match self.walk.direction {
            Direction::Row => {
                self.row(scratch, self.walk.rows(group).start, chunk, &mut carry, true, false)?
            }
            Direction::Column => self.lanes(scratch, group, chunk, &mut carry, true, false)?,
        }
        Ok(carry)
    }

    fn join(
        &self,
        scratch: &mut Self::Scratch,
        group: usize,
        left: &Vec<u64>,
        right: &Vec<u64>,
    ) -> Result<Vec<u64>> {
        let (start, axis, count) = self.group(group);
        let (mut joined, run) = (left.clone(), Run { start: &start, axis, count });
        let inputs: Vec<*const u8> = right.chunks_exact(count).map(|part| part.as_ptr().cast()).collect();
        // SAFETY: both have `count` elements.
        unsafe {
            self.combine.lanes(&mut scratch.combine, &run, &inputs, &parts(&mut joined, count), false)?
        };
        Ok(joined)
    }

    fn apply(
        &self,
        scratch: &mut Self::Scratch,
        group: usize,
        chunk: usize,
        before: Option<&Vec<u64>>,
    ) -> Result<()> {
        let (_, _, count) = self.group(group);
        let fresh = before.is_none();
        let mut carry = before.cloned().unwrap_or_else(|| vec![0; self.state * count]);
        match self.walk.direction {
            Direction::Row => self
                .walk
                .rows(group)
                .try_for_each(|row| self.row(scratch, row, chunk, &mut carry, fresh, true))?,
            Direction::Column => self.lanes(scratch, group, chunk, &mut carry, fresh, true)?,
        }
        store::fence();
        Ok(())
    }
}
