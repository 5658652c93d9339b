//! Combine functions without vector code of their own, on the tile machine.
//!
//! A tile of a row is cut into segments, one to a lane, that are scanned side by side, a step at a time;
//! then the segments' totals are scanned by doubling (Hillis and Steele 1986), and what lies before each
//! segment is combined into all of its positions. That is two combines a position, each over many lanes,
//! so the cost of choosing an instruction's loop is shared.

use tilewright_ir::Result;
use tilewright_plan::{Kind, Scan};

use super::edges::{Run, dtype_of};
use super::engine::{Combine, Folded, Outputs};
use super::source::{Bound, bind, feed};
use crate::Isa;
use crate::memory::{Aligned, Array, Memory};
use crate::tile::{self, Argument, Feed, Stage, Target, Tile, TileProgram, Variance};

/// Positions in a tile of a row.
pub(super) const TILE: usize = 4096;
/// Positions of a lane's segment, in a whole tile.
const STEPS: usize = 16;

/// A combine program, compiled.
pub(super) struct Compiled {
    program: TileProgram,
    kinds: Vec<Kind>,
    captured: Vec<Bound>,
    tables: Vec<Array>,
    reverse: bool,
}

/// What one thread needs to run a program.
struct Machine {
    scratch: tile::Scratch,
    arguments: Vec<Argument>,
    targets: Vec<Target>,
    /// A tile for each captured array, for positions that are not there.
    padded: Vec<Aligned<u64>>,
}

/// What one thread needs to scan.
pub(super) struct Scratch {
    machine: Machine,
    /// For each element of the state: the tile, step by step, and twice a total for each lane.
    tile: Vec<Aligned<u64>>,
    totals: [Vec<Aligned<u64>>; 2],
}

/// Elements side by side: the first of each of the state's elements, and the distance between rows.
struct Panel {
    data: Vec<*mut u8>,
    row_stride: isize,
}

impl Compiled {
    /// Compiles a scan's combine program, for runs along `axis`.
    pub fn new(scan: &Scan, memory: &Memory, axis: usize, isa: Isa) -> Result<Compiled> {
        let kinds: Vec<Kind> = scan.combine.results.iter().map(|&r| scan.combine.kind(r)).collect();
        let extents = [&scan.parallel[..], &[scan.length]].concat();
        let captured = bind(memory, &scan.captured, &extents)?;
        let state = kinds.iter().map(|&kind| Feed::Array(Variance::Full, dtype_of(kind)));
        let feeds: Vec<Feed> =
            state.clone().chain(state).chain(captured.iter().map(|source| source.feed(axis))).collect();
        Ok(Compiled {
            program: TileProgram::compile(&scan.combine, &feeds, &scan.tables, isa)?,
            kinds,
            captured,
            tables: memory.tables(&scan.tables)?,
            reverse: scan.reverse,
        })
    }

    /// Puts combine(left, right) to `to`, for a tile of rows and columns.
    ///
    /// # Safety
    /// The panels are good for the tile, and do not overlap but by being the same.
    unsafe fn combine(
        &self,
        machine: &mut Machine,
        run: &Run,
        (rows, columns): (usize, usize),
        left: &Panel,
        right: &Panel,
        to: &Panel,
    ) -> Result<()> {
        machine.arguments.clear();
        for panel in [left, right] {
            machine.arguments.extend(panel.data.iter().map(|&data| Argument::Array {
                data,
                row_stride: panel.row_stride,
                column_stride: 1,
            }));
        }
        feed(&self.captured, run, &mut machine.padded, &mut machine.arguments);
        machine.targets.clear();
        machine.targets.extend(to.data.iter().zip(&self.kinds).map(|(&data, &kind)| Target::Array {
            data,
            dtype: dtype_of(kind),
            row_stride: to.row_stride,
            column_stride: 1,
        }));
        let tile = Tile {
            rows,
            columns,
            arguments: &machine.arguments,
            targets: &machine.targets,
            tables: &self.tables,
            live: None,
        };
        // SAFETY: the caller's promise; captured arrays were bound to checked memory.
        unsafe { self.program.run(Stage::Early, &tile, &mut machine.scratch) }
    }

    fn size(&self, element: usize) -> usize {
        dtype_of(self.kinds[element]).size()
    }

    /// The panel that starts `offset` elements further on.
    fn shifted(&self, panel: &Panel, offset: usize) -> Panel {
        let data = panel.data.iter().enumerate();
        Panel {
            data: data.map(|(i, data)| data.wrapping_add(offset * self.size(i))).collect(),
            row_stride: panel.row_stride,
        }
    }
}

impl Combine for Compiled {
    type Scratch = Result<Scratch>;
    const DIRECT: bool = false;
    const POSITIONS: usize = 1;

    fn scratch(&self) -> Result<Scratch> {
        let buffers = |elements: usize| -> Result<Vec<Aligned<u64>>> {
            self.kinds.iter().map(|_| Aligned::new(elements)).collect()
        };
        Ok(Scratch {
            machine: Machine {
                scratch: tile::Scratch::new(),
                arguments: Vec::new(),
                targets: Vec::new(),
                padded: self.captured.iter().map(|_| Aligned::new(TILE)).collect::<Result<_>>()?,
            },
            tile: buffers(TILE)?,
            totals: [buffers(TILE / STEPS)?, buffers(TILE / STEPS)?],
        })
    }

    unsafe fn row(
        &self,
        scratch: &mut Result<Scratch>,
        run: &Run,
        inputs: &[*const u8],
        outputs: Outputs,
        (carry, _): (&mut Folded, &[bool]),
        _: Option<&mut Folded>,
    ) -> Result<()> {
        let fresh = std::mem::replace(&mut carry.empty, false);
        let Scratch { machine, tile, totals } = scratch.as_mut().map_err(|error| error.clone())?;
        let segments = Segments::of(run.count, self.reverse);
        let Segments { steps, lanes, .. } = segments;
        let panel = |buffers: &mut Vec<Aligned<u64>>, row_stride: usize| Panel {
            data: buffers.iter_mut().map(|buffer| buffer.as_mut_ptr().cast()).collect(),
            row_stride: row_stride as isize,
        };
        let local = panel(tile, lanes);
        let [first, second] = totals;
        let (mut total, mut other) = (panel(first, 0), panel(second, 0));
        let carried = Panel {
            data: carry.elements.iter_mut().map(|slot| (&raw mut *slot).cast()).collect(),
            row_stride: 0,
        };
        // SAFETY: the tile has room for `steps · lanes` elements of each, the totals for `lanes`; panels of
        // one call are disjoint or the same.
        unsafe {
            for (i, &input) in inputs.iter().enumerate() {
                segments.gather(self.size(i), input, local.data[i]);
            }
            for step in 1..steps {
                let right = self.shifted(&local, step * lanes);
                self.combine(
                    machine,
                    run,
                    (1, lanes),
                    &self.shifted(&local, (step - 1) * lanes),
                    &right,
                    &right,
                )?;
            }
            self.copy(&self.shifted(&local, (steps - 1) * lanes), &total, lanes);
            let mut distance = 1;
            while distance < lanes {
                self.copy(&total, &other, distance);
                let (right, to) = (self.shifted(&total, distance), self.shifted(&other, distance));
                self.combine(machine, run, (1, lanes - distance), &total, &right, &to)?;
                std::mem::swap(&mut total, &mut other);
                distance *= 2;
            }
            // What lies before each lane: the carry, then the carry and the totals up to the lane before.
            if fresh {
                self.copy(&total, &self.shifted(&other, 1), lanes - 1);
            } else {
                self.copy(&carried, &other, 1);
                for lane in 1..lanes {
                    self.copy(&carried, &self.shifted(&other, lane), 1);
                }
                let to = self.shifted(&other, 1);
                if lanes > 1 {
                    self.combine(machine, run, (1, lanes - 1), &to, &total, &to)?;
                }
            }
            let skipped = fresh as usize;
            if lanes > skipped {
                let (before, right) = (self.shifted(&other, skipped), self.shifted(&local, skipped));
                self.combine(machine, run, (steps, lanes - skipped), &before, &right, &right)?;
            }
            let last = (run.count - 1) % steps * lanes + (lanes - 1);
            self.copy(&self.shifted(&local, last), &carried, 1);
            for (i, &output) in outputs.pointers.iter().enumerate().filter(|(_, output)| !output.is_null()) {
                segments.scatter(self.size(i), local.data[i], output);
            }
        }
        Ok(())
    }

    unsafe fn lanes(
        &self,
        scratch: &mut Result<Scratch>,
        run: &Run,
        inputs: &[*const u8],
        (state, _): (&[*mut u8], &[bool]),
        _: Outputs,
        fresh: bool,
    ) -> Result<()> {
        let Scratch { machine, .. } = scratch.as_mut().map_err(|error| error.clone())?;
        let left = Panel { data: state.to_vec(), row_stride: 0 };
        let right = Panel { data: inputs.iter().map(|input| input.cast_mut()).collect(), row_stride: 0 };
        // SAFETY: the caller's promise.
        unsafe {
            if fresh {
                self.copy(&right, &left, run.count);
                return Ok(());
            }
            self.combine(machine, run, (1, run.count), &left, &right, &left)
        }
    }
}

impl Compiled {
    /// Copies `count` elements of each of the state's elements.
    ///
    /// # Safety
    /// Both panels are good for them and do not overlap.
    unsafe fn copy(&self, from: &Panel, to: &Panel, count: usize) {
        for (i, (&from, &to)) in from.data.iter().zip(&to.data).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(from, to, count * self.size(i)) };
        }
    }
}

/// How a run is cut into one segment a lane, in the order of the scan.
#[derive(Clone, Copy)]
struct Segments {
    count: usize,
    steps: usize,
    lanes: usize,
    reverse: bool,
}

impl Segments {
    fn of(count: usize, reverse: bool) -> Segments {
        let steps = (count / STEPS).clamp(1, STEPS);
        Segments { count, steps, lanes: count.div_ceil(steps), reverse }
    }

    /// Calls `visit(position in memory, position in the tile)` for each position. The last lane's segment
    /// may be longer than what is left; it is filled up with the last position.
    fn each(self, mut visit: impl FnMut(usize, usize)) {
        for lane in 0..self.lanes {
            for step in 0..self.steps {
                let ordered = (lane * self.steps + step).min(self.count - 1);
                let position = if self.reverse { self.count - 1 - ordered } else { ordered };
                visit(position, step * self.lanes + lane);
            }
        }
    }

    /// # Safety
    /// `from` is good for `count` elements of `size` bytes, `to` for `steps · lanes`.
    unsafe fn gather(self, size: usize, from: *const u8, to: *mut u8) {
        // SAFETY: the caller's promise.
        self.each(|position, place| unsafe { move_element(size, from, position, to, place) });
    }

    /// # Safety
    /// `from` is good for `steps · lanes` elements of `size` bytes, `to` for `count`.
    unsafe fn scatter(self, size: usize, from: *const u8, to: *mut u8) {
        let filled = self.steps * self.lanes - self.count;
        self.each(|position, place| {
            let extra = filled > 0
                && place % self.lanes == self.lanes - 1
                && place / self.lanes >= self.steps - filled;
            if !extra {
                // SAFETY: the caller's promise.
                unsafe { move_element(size, from, place, to, position) };
            }
        });
    }
}

/// # Safety
/// Both are good for the element at that place, of 1, 4 or 8 bytes.
#[inline(always)]
unsafe fn move_element(size: usize, from: *const u8, i: usize, to: *mut u8, j: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            8 => *to.cast::<u64>().add(j) = *from.cast::<u64>().add(i),
            4 => *to.cast::<u32>().add(j) = *from.cast::<u32>().add(i),
            _ => *to.add(j) = *from.add(i),
        }
    }
}
