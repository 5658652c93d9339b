//! The walk of a scan over memory, tile by tile, for any combine function.

use tilewright_ir::Result;

use super::chain::{Chunks, Task};
use super::edges::{self, Edges, Run};
use super::store;
use super::walk::{Direction, Walk};
use crate::memory::Aligned;

/// Bytes of a vector, at most.
pub(super) const VECTOR: usize = 32;

/// Where the scanned state goes.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a> {
    /// For each of the state's elements; null where it is not wanted.
    pub pointers: &'a [*mut u8],
    /// Whether it goes there past the caches: all are then equally far from a multiple of a vector.
    pub stream: bool,
    /// Where the first of them goes if it is streamed, and would go where nothing is stored; else null.
    pub aligned: *mut u8,
}

impl Outputs<'_> {
    /// No output at all: the pointers are null.
    fn none(pointers: &[*mut u8]) -> Outputs<'_> {
        Outputs { pointers, stream: false, aligned: std::ptr::null_mut() }
    }
}

/// The fold of some positions.
pub(super) struct Folded {
    /// A carry of count 1; of no use while nothing is folded.
    pub elements: Vec<u64>,
    pub empty: bool,
}

impl Folded {
    fn new(state: usize) -> Folded {
        Folded { elements: vec![0; state], empty: true }
    }
}

/// A combine function over arrays. Each of the state's elements is an array of its kind; a *carry* has
/// `count` elements of each, those of element i from the eight-byte slot `i · count` on.
pub(super) trait Combine: Sync {
    type Scratch;
    /// Whether outputs may lie outside of the tile, and be streamed; and whether a row's total may be asked for.
    const DIRECT: bool;
    /// How many positions [`Combine::lanes`] folds at once, if not one.
    const POSITIONS: usize;

    /// Scratch for one thread.
    fn scratch(&self) -> Self::Scratch;

    /// Scans `run.count` neighbouring positions, in memory order or the reverse. `carry` is the state before them,
    /// and becomes the state after; beside it stands which of its elements have to be kept, if only for themselves.
    /// The positions are folded into `total` as well.
    ///
    /// # Safety
    /// `inputs` and `outputs` are good for `run.count` elements and do not overlap.
    unsafe fn row(
        &self,
        scratch: &mut Self::Scratch,
        run: &Run,
        inputs: &[*const u8],
        outputs: Outputs,
        carry: (&mut Folded, &[bool]),
        total: Option<&mut Folded>,
    ) -> Result<()>;

    /// Folds one position, or as many as [`Combine::POSITIONS`], of `run.count` lanes into their state; where `fresh`,
    /// the first becomes the state. Beside the state stands which of its elements have to be kept, if only for
    /// themselves. `inputs` and `outputs` are the first position's, then the next one's. `run` is the first's.
    ///
    /// # Safety
    /// `inputs`, `state` and `outputs` are good for `run.count` elements and do not overlap.
    unsafe fn lanes(
        &self,
        scratch: &mut Self::Scratch,
        run: &Run,
        inputs: &[*const u8],
        state: (&[*mut u8], &[bool]),
        outputs: Outputs,
        fresh: bool,
    ) -> Result<()>;
}

/// A scan that is ready to run.
pub(super) struct Engine<'a, C> {
    pub walk: &'a Walk,
    pub edges: &'a Edges,
    pub combine: &'a C,
    /// For each of the state's elements, whether the results need it.
    pub live: &'a [bool],
}

/// What one thread works in.
pub(super) struct Scratch<S> {
    edges: edges::Scratch,
    combine: S,
    /// A tile of the state, laid out as a carry, and where in it the elements go that the results need.
    _tile: Aligned<u64>,
    places: Vec<*mut u8>,
    /// No place for any element.
    nowhere: Vec<*mut u8>,
    /// That every element is kept.
    all: Vec<bool>,
    inputs: Vec<*const u8>,
    outputs: Vec<*mut u8>,
    start: Vec<usize>,
}

/// What a walk over a chunk is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// The fold of all its positions.
    Aggregate,
    /// The scan.
    Apply,
}

/// Where the elements of a carry for `count` lanes are.
fn parts(carry: &mut [u64], count: usize) -> Vec<*mut u8> {
    carry.chunks_exact_mut(count).map(|part| part.as_mut_ptr().cast()).collect()
}

impl<C: Combine> Engine<'_, C> {
    /// Walks over one chunk of one row.
    fn row(
        &self,
        scratch: &mut Scratch<C::Scratch>,
        (row, chunk): (usize, usize),
        carry: &mut Folded,
        mut total: Option<&mut Folded>,
        pass: Pass,
    ) -> Result<()> {
        self.walk.start_of_row(row, &mut scratch.start);
        for tile in 0..self.walk.tiles(chunk) {
            let (position, count) = self.walk.tile(chunk, tile);
            let mut done = 0;
            while done < count {
                let piece = self.edges.piece(position, count, done, self.walk.reverse);
                done += piece.1;
                self.piece(scratch, piece, carry, total.as_deref_mut(), pass)?;
            }
        }
        Ok(())
    }

    /// Walks over some neighbouring positions of a row.
    fn piece(
        &self,
        scratch: &mut Scratch<C::Scratch>,
        (position, count): (usize, usize),
        carry: &mut Folded,
        total: Option<&mut Folded>,
        pass: Pass,
    ) -> Result<()> {
        let Scratch { edges, combine, places, nowhere, inputs, outputs, start, all, .. } = scratch;
        let axis = start.len() - 1;
        start[axis] = position;
        let run = Run { start, axis, count };
        self.edges.elements(edges, &run, inputs)?;
        outputs.clear();
        let direct = C::DIRECT && self.edges.direct(&run, outputs);
        let stream = direct && self.edges.stream;
        let first = outputs.iter().copied().find(|output| stream && !output.is_null());
        let aligned = first.unwrap_or(std::ptr::null_mut());
        let (to, kept) = match pass {
            Pass::Aggregate => (Outputs { pointers: nowhere, stream: false, aligned }, &all[..]),
            Pass::Apply if direct => (Outputs { pointers: outputs, stream, aligned }, self.live),
            Pass::Apply => (Outputs { pointers: places, stream: false, aligned }, self.live),
        };
        // SAFETY: the edges give `count` elements; so do the sinks, and the tile has room for as many.
        unsafe { self.combine.row(combine, &run, inputs, to, (carry, kept), total)? };
        if pass == Pass::Apply && !direct {
            self.edges.results(edges, &run, places)?;
        }
        Ok(())
    }

    /// Walks over one chunk of one block of lanes: as many positions at once as the combine function takes, where
    /// all that they read and write lies in memory as it is wanted.
    fn lanes(
        &self,
        scratch: &mut Scratch<C::Scratch>,
        Task { group, chunk }: Task,
        (carry, mut fresh): (&mut [u64], bool),
        pass: Pass,
    ) -> Result<()> {
        let (axis, count) = self.walk.lanes(group, &mut scratch.start);
        let state = parts(carry, count);
        let mut positions = self.walk.positions(chunk);
        let mut some = Vec::with_capacity(C::POSITIONS);
        loop {
            some.clear();
            some.extend(positions.by_ref().take(C::POSITIONS));
            if some.is_empty() {
                return Ok(());
            }
            let whole = C::POSITIONS > 1 && some.len() == C::POSITIONS;
            let together = whole && self.in_place(scratch, &some, (axis, count), pass);
            for part in some.chunks(if together { C::POSITIONS } else { 1 }) {
                let direct = together || self.position(scratch, part[0], (axis, count), pass)?;
                let Scratch { edges, combine, inputs, outputs, start, all, .. } = scratch;
                *start.last_mut().expect("the scan axis is the last") = part[0];
                let run = Run { start, axis, count };
                let kept = if pass == Pass::Apply { self.live } else { all };
                let to = Outputs { stream: direct && self.edges.stream, ..Outputs::none(outputs) };
                // SAFETY: the edges give `count` elements for each position; the carry and the sinks have as many.
                unsafe { self.combine.lanes(combine, &run, inputs, (&state, kept), to, fresh)? };
                fresh = false;
                if pass == Pass::Apply && !direct {
                    self.edges.results(edges, &run, &state)?;
                }
            }
        }
    }

    /// Finds where lanes at some positions are read and, if they are to be stored, written; whether all of that is
    /// memory, for which then nothing else is to be done.
    fn in_place(
        &self,
        scratch: &mut Scratch<C::Scratch>,
        positions: &[usize],
        (axis, count): (usize, usize),
        pass: Pass,
    ) -> bool {
        let Scratch { nowhere, inputs, outputs, start, .. } = scratch;
        inputs.clear();
        outputs.clear();
        positions.iter().all(|&position| {
            *start.last_mut().expect("the scan axis is the last") = position;
            let run = Run { start, axis, count };
            let written = match pass {
                Pass::Aggregate => {
                    outputs.extend_from_slice(nowhere);
                    true
                }
                Pass::Apply => self.edges.direct(&run, outputs),
            };
            written && self.edges.in_place(&run, inputs)
        })
    }

    /// As [`Engine::in_place`] for one position, whose elements are made where they are not in memory.
    fn position(
        &self,
        scratch: &mut Scratch<C::Scratch>,
        position: usize,
        (axis, count): (usize, usize),
        pass: Pass,
    ) -> Result<bool> {
        let Scratch { edges, nowhere, inputs, outputs, start, .. } = scratch;
        *start.last_mut().expect("the scan axis is the last") = position;
        let run = Run { start, axis, count };
        self.edges.elements(edges, &run, inputs)?;
        outputs.clear();
        let direct = pass == Pass::Apply && C::DIRECT && self.edges.direct(&run, outputs);
        if !direct {
            outputs.clone_from(nowhere);
        }
        Ok(direct)
    }

    /// Where a group starts, the axis that its lanes run along, and their number.
    fn group(&self, group: usize) -> (Vec<usize>, usize, usize) {
        let mut start = Vec::new();
        let (axis, count) = match self.walk.direction {
            Direction::Row => {
                self.walk.start_of_row(self.walk.rows(group).start, &mut start);
                (self.walk.parallel.len(), 1)
            }
            Direction::Column => self.walk.lanes(group, &mut start),
        };
        (start, axis, count)
    }
}

impl<C: Combine> Chunks for Engine<'_, C> {
    type State = Vec<u64>;
    type Scratch = Scratch<C::Scratch>;

    fn scratch(&self) -> Result<Self::Scratch> {
        let mut tile = Aligned::new(self.live.len() * self.walk.tile)?;
        let mut places = parts(&mut tile, self.walk.tile);
        for (place, _) in places.iter_mut().zip(self.live).filter(|(_, live)| !**live) {
            *place = std::ptr::null_mut();
        }
        Ok(Scratch {
            edges: self.edges.scratch(self.walk.tile)?,
            combine: self.combine.scratch(),
            places,
            _tile: tile,
            nowhere: vec![std::ptr::null_mut(); self.live.len()],
            all: vec![true; self.live.len()],
            inputs: Vec::with_capacity(self.live.len()),
            outputs: Vec::with_capacity(self.live.len()),
            start: Vec::new(),
        })
    }

    fn has_totals(&self) -> bool {
        C::DIRECT && self.walk.direction == Direction::Row
    }

    fn aggregate(&self, scratch: &mut Self::Scratch, task: Task) -> Result<Vec<u64>> {
        match self.walk.direction {
            Direction::Row => {
                let row = self.walk.rows(task.group).start;
                let mut carry = Folded::new(self.live.len());
                self.row(scratch, (row, task.chunk), &mut carry, None, Pass::Aggregate)?;
                Ok(carry.elements)
            }
            Direction::Column => {
                let (_, _, count) = self.group(task.group);
                let mut carry = vec![0; self.live.len() * count];
                self.lanes(scratch, task, (&mut carry, true), Pass::Aggregate)?;
                Ok(carry)
            }
        }
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
        let state = parts(&mut joined, count);
        let nowhere = Outputs::none(&scratch.nowhere);
        // SAFETY: both have `count` elements.
        unsafe {
            self.combine.lanes(&mut scratch.combine, &run, &inputs, (&state, &scratch.all), nowhere, false)?
        };
        Ok(joined)
    }

    fn apply(
        &self,
        scratch: &mut Self::Scratch,
        task: Task,
        before: Option<&Vec<u64>>,
        totals: bool,
    ) -> Result<Option<Vec<u64>>> {
        let mut total = totals.then(|| Folded::new(self.live.len()));
        match self.walk.direction {
            Direction::Row => {
                let mut carry = Folded::new(self.live.len());
                for row in self.walk.rows(task.group) {
                    carry.empty = before.is_none();
                    if let Some(before) = before {
                        carry.elements.clone_from(before);
                    }
                    self.row(scratch, (row, task.chunk), &mut carry, total.as_mut(), Pass::Apply)?;
                }
            }
            Direction::Column => {
                let (_, _, count) = self.group(task.group);
                let mut carry = before.cloned().unwrap_or_else(|| vec![0; self.live.len() * count]);
                self.lanes(scratch, task, (&mut carry, before.is_none()), Pass::Apply)?;
            }
        }
        store::fence();
        Ok(total.map(|total| total.elements))
    }
}
