//! Runs fused loop nests: element-wise work, reductions, and chains of both over one row.
//!
//! Axes that every view steps through evenly are merged ([`geometry`]), the nest is cut into *groups* of
//! neighbouring rows, and all phases of a group run one after the other, tile by tile ([`phase`]), while its
//! rows are in cache. Where rows are few and long they are cut into chunks instead, and the phases run one
//! after the other over all of them, with the chunks' partial results joined in order. Which of the two
//! depends on sizes only, so the result does not depend on the number of threads.

mod geometry;
mod phase;
mod reduce;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};

use tilewright_ir::{Result, Scalar};
use tilewright_plan::Loops;
use tilewright_plan::loops::Lanes;

use crate::Context;
use crate::memory::{Aligned, Array, Memory};
use crate::tile::{Argument, Scratch, Stage, Target, Tile, size};
use geometry::Geometry;
use phase::{BoundSink, BoundSource, Carried, Compiled, TileAxes, Window};
use reduce::Partial;

/// Elements times phases below which threads cost more than they give.
const SERIAL: usize = 1 << 14;

/// A nest ready to run.
struct Nest {
    geometry: Geometry,
    phases: Vec<Compiled>,
    tables: Vec<Array>,
    row_scalars: usize,
    row_values: usize,
}

/// Working memory of one thread.
#[derive(Default)]
struct Workspace {
    scratch: Scratch,
    arguments: Vec<Argument>,
    targets: Vec<Target>,
    /// Results on their way into a reduction, and parts of windows that reach outside, a panel each.
    panels: Vec<Aligned<u64>>,
    at: Vec<usize>,
}

// SAFETY: what its pointers point to is only looked at by the tile that they were put there for.
unsafe impl Send for Workspace {}

/// What the lines of a group carry from phase to phase.
struct Rows {
    scalars: Vec<Aligned<u64>>,
    values: Vec<Aligned<u64>>,
}

/// Runs a loop nest.
pub(crate) fn run(kernel: &Loops, memory: &Memory, context: &Context) -> Result<()> {
    let geometry = Geometry::new(kernel);
    let mut carried =
        Carried { scalars: vec![None; kernel.row_scalars], values: vec![None; kernel.row_values] };
    let phases = kernel
        .phases
        .iter()
        .map(|phase| phase::compile(kernel, phase, &geometry, &mut carried, memory, context.isa))
        .collect::<Result<_>>()?;
    let nest = Nest {
        phases,
        tables: memory.tables(&kernel.tables)?,
        row_scalars: kernel.row_scalars,
        row_values: kernel.row_values,
        geometry,
    };
    if kernel.parallel.contains(&0) {
        return Ok(());
    }
    let workspaces = Workspaces::default();
    if nest.geometry.chunks() > 1 {
        nest.run_in_chunks(context, &workspaces)
    } else {
        nest.run_in_groups(context, &workspaces)
    }
}

/// Workspaces not in use.
#[derive(Default)]
struct Workspaces(Mutex<Vec<Workspace>>);

impl Workspaces {
    fn with<T>(&self, work: impl FnOnce(&mut Workspace) -> T) -> T {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut workspace = taken.unwrap_or_default();
        let result = work(&mut workspace);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        result
    }
}

impl Nest {
    /// All phases of a group at a time.
    fn run_in_groups(&self, context: &Context, workspaces: &Workspaces) -> Result<()> {
        let groups = self.geometry.groups();
        let work = self.geometry.elements().saturating_mul(self.phases.len());
        let tasks = if work < SERIAL { 1 } else { groups.min(work.div_ceil(SERIAL)) };
        context.parallel(tasks, |task| {
            workspaces.with(|workspace| {
                let mut rows = self.rows()?;
                let mut partials = self.partials()?;
                for group in task * groups / tasks..(task + 1) * groups / tasks {
                    for (phase, partials) in self.phases.iter().zip(&mut partials) {
                        if phase.once {
                            self.run_once(phase, group, &rows, workspace)?;
                            continue;
                        }
                        self.clear(phase, partials);
                        self.run_pieces(phase, group, 0..self.geometry.pieces(), &rows, partials, workspace)?;
                        self.finish(phase, partials, &mut rows);
                    }
                }
                Ok(())
            })
        })
    }

    /// One phase at a time, over all chunks of all groups.
    fn run_in_chunks(&self, context: &Context, workspaces: &Workspaces) -> Result<()> {
        let (groups, chunks) = (self.geometry.groups(), self.geometry.chunks());
        let mut rows: Vec<Rows> = (0..groups).map(|_| self.rows()).collect::<Result<_>>()?;
        for (number, phase) in self.phases.iter().enumerate() {
            if phase.once {
                workspaces.with(|workspace| {
                    (0..groups).try_for_each(|group| self.run_once(phase, group, &rows[group], workspace))
                })?;
                continue;
            }
            let done: Vec<Mutex<Vec<Partial>>> = (0..groups * chunks).map(|_| Mutex::default()).collect();
            context.parallel(groups * chunks, |task| {
                let (group, chunk) = (task / chunks, task % chunks);
                let first = chunk * self.geometry.chunk;
                let pieces = first..self.geometry.pieces().min(first.saturating_add(self.geometry.chunk));
                let mut partials = self.partials()?.swap_remove(number);
                workspaces.with(|workspace| {
                    self.run_pieces(phase, group, pieces, &rows[group], &mut partials, workspace)
                })?;
                *done[task].lock().unwrap_or_else(PoisonError::into_inner) = partials;
                Ok(())
            })?;
            let mut done =
                done.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
            for rows in &mut rows {
                let mut partials = done.next().unwrap_or_default();
                for later in done.by_ref().take(chunks - 1) {
                    for ((reducer, _), (partial, later)) in
                        reducers(phase).zip(partials.iter_mut().zip(&later))
                    {
                        reducer.join(partial, later, self.geometry.lines);
                    }
                }
                self.finish(phase, &mut partials, rows);
            }
        }
        Ok(())
    }

    fn rows(&self) -> Result<Rows> {
        let lines = self.geometry.lines;
        let value = lines * self.geometry.row_elements();
        Ok(Rows {
            scalars: (0..self.row_scalars).map(|_| Aligned::new(lines)).collect::<Result<_>>()?,
            values: (0..self.row_values).map(|_| Aligned::new(value)).collect::<Result<_>>()?,
        })
    }

    /// For each phase, the partial results of its reductions.
    fn partials(&self) -> Result<Vec<Vec<Partial>>> {
        let of = |phase: &Compiled| {
            reducers(phase).map(|(reducer, _)| reducer.partial(self.geometry.lines)).collect()
        };
        self.phases.iter().map(of).collect()
    }

    fn clear(&self, phase: &Compiled, partials: &mut [Partial]) {
        for ((reducer, _), partial) in reducers(phase).zip(partials) {
            reducer.clear(partial);
        }
    }

    fn finish(&self, phase: &Compiled, partials: &mut [Partial], rows: &mut Rows) {
        for ((reducer, scalar), partial) in reducers(phase).zip(partials) {
            reducer.finish(partial, self.geometry.lines, &mut rows.scalars[scalar]);
        }
    }

    fn run_once(&self, phase: &Compiled, group: usize, rows: &Rows, workspace: &mut Workspace) -> Result<()> {
        let mut at = std::mem::take(&mut workspace.at);
        at.clear();
        at.resize(self.geometry.rank, 0);
        let lines = self.geometry.group(group, &mut at);
        let ran = self.run_tile(phase, &at, (1, lines), 0, rows, workspace);
        workspace.at = at;
        ran
    }

    fn run_pieces(
        &self,
        phase: &Compiled,
        group: usize,
        pieces: std::ops::Range<usize>,
        rows: &Rows,
        partials: &mut [Partial],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let mut at = std::mem::take(&mut workspace.at);
        at.clear();
        at.resize(self.geometry.rank, 0);
        let lines = self.geometry.group(group, &mut at);
        let ran = pieces.into_iter().try_for_each(|piece| {
            let (start, count) = self.geometry.piece(piece, &mut at);
            let extents = match self.geometry.lanes {
                Lanes::Row => (lines, count),
                Lanes::Parallel => (count, lines),
            };
            self.run_tile(phase, &at, extents, start, rows, workspace)?;
            for (number, ((reducer, _), partial)) in reducers(phase).zip(partials.iter_mut()).enumerate() {
                let panel = workspace.panels[number].start().cast();
                // SAFETY: the tile's results lie there, row after row; the partial results are of as many lines.
                unsafe { reducer.add(partial, panel, extents.1, lines, (start, count)) };
            }
            Ok(())
        });
        workspace.at = at;
        ran
    }

    /// Runs a phase's program over a tile that begins at `at`, the element `start` of its rows.
    fn run_tile(
        &self,
        phase: &Compiled,
        at: &[usize],
        (tile_rows, columns): (usize, usize),
        start: usize,
        rows: &Rows,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let axes = TileAxes::new(&self.geometry, phase.once);
        let Workspace { scratch, arguments, targets, panels, .. } = workspace;
        let mut panel = 0;
        let mut next_panel = || -> Result<*mut u8> {
            if panel == panels.len() {
                panels.push(Aligned::new(0)?);
            }
            if panels[panel].len() < tile_rows * columns {
                panels[panel] = Aligned::new(tile_rows * columns)?;
            }
            panel += 1;
            Ok(panels[panel - 1].start().cast())
        };
        targets.clear();
        // Reductions come first among the panels.
        for (result, sink) in phase.sinks.iter().enumerate() {
            let kind = phase.program.result(result).1;
            let dtype = phase::dtype_of(kind);
            targets.push(match sink {
                BoundSink::Store(window) => {
                    let (row_stride, column_stride) = axes.strides(window);
                    Target::Array { data: window.at(at), dtype: window.dtype, row_stride, column_stride }
                }
                BoundSink::Reduce { .. } => Target::Array {
                    data: next_panel()?,
                    dtype,
                    row_stride: columns as isize,
                    column_stride: 1,
                },
                BoundSink::RowScalar(scalar) => {
                    let data = rows.scalars[*scalar].start().cast();
                    Target::Array { data, dtype, row_stride: 0, column_stride: 1 }
                }
                BoundSink::RowValue(value) => {
                    let (data, row_stride) = self.row_value(&rows.values[*value], start, size(kind));
                    Target::Array { data, dtype, row_stride, column_stride: 1 }
                }
            });
        }
        arguments.clear();
        for (input, source) in phase.sources.iter().enumerate() {
            arguments.push(match source {
                BoundSource::Load(window) => {
                    let (row_stride, column_stride) = axes.strides(window);
                    let data = window.at(at);
                    match inside(window, at, &axes, tile_rows, columns) {
                        None => Argument::Array { data, row_stride, column_stride },
                        Some(part) => {
                            let to = next_panel()?;
                            // SAFETY: the panel holds the tile; the part was found to be valid.
                            unsafe {
                                fill(window, data, (row_stride, column_stride), to, tile_rows, columns, part)
                            };
                            Argument::Array { data: to, row_stride: columns as isize, column_stride: 1 }
                        }
                    }
                }
                BoundSource::Index(axis) => {
                    Argument::Scalar(Scalar::Integer(at.get(*axis).copied().unwrap_or(0) as i64))
                }
                BoundSource::RowScalar(scalar) => Argument::Array {
                    data: rows.scalars[*scalar].start().cast(),
                    row_stride: 1,
                    column_stride: 1,
                },
                BoundSource::RowValue(value) => {
                    let bytes = phase.program.input_size(input);
                    let (data, row_stride) = self.row_value(&rows.values[*value], start, bytes);
                    Argument::Array { data, row_stride, column_stride: 1 }
                }
            });
        }
        let tile = Tile { rows: tile_rows, columns, arguments, targets, tables: &self.tables, live: None };
        // SAFETY: windows were checked against their buffers when they were bound, panels and rows are large
        // enough, tasks have different groups or chunks, and the plan gives each element one writer.
        unsafe { phase.program.run(Stage::Early, &tile, scratch) }
    }

    /// Where the elements of a row value lie from an element of the row on, with the distance between the
    /// rows of a tile.
    fn row_value(&self, value: &Aligned<u64>, start: usize, size: usize) -> (*mut u8, isize) {
        let (first, stride) = match self.geometry.lanes {
            Lanes::Row => (start, self.geometry.row_elements()),
            Lanes::Parallel => (start * self.geometry.lines, self.geometry.lines),
        };
        (value.start().cast::<u8>().wrapping_add(first * size), stride as isize)
    }
}

fn reducers(phase: &Compiled) -> impl Iterator<Item = (&reduce::Reducer, usize)> {
    phase.sinks.iter().filter_map(|sink| match sink {
        BoundSink::Reduce { reducer, scalar } => Some((reducer, *scalar)),
        BoundSink::Store(_) | BoundSink::RowScalar(_) | BoundSink::RowValue(_) => None,
    })
}

/// Ranges of rows and columns.
type Part = [std::ops::Range<usize>; 2];

/// None where all of a tile can be read, else the part that can.
fn inside(window: &Window, at: &[usize], axes: &TileAxes, rows: usize, columns: usize) -> Option<Part> {
    let (ranges, _) = window.valid.as_ref()?;
    let of = |axis: usize, count: usize| {
        let Some(&(low, high)) = ranges.get(axis) else { return 0..count };
        low.saturating_sub(at[axis]).min(count)..high.saturating_sub(at[axis]).min(count)
    };
    let part = [axes.rows.map_or(0..rows, |(axis, _)| of(axis, rows)), of(axes.columns.0, columns)];
    let on_tile = |axis: usize| axes.rows.is_some_and(|(rows, _)| rows == axis) || axes.columns.0 == axis;
    let outside = ranges
        .iter()
        .enumerate()
        .any(|(axis, &(low, high))| !on_tile(axis) && !(low..high).contains(&at[axis]));
    if outside {
        return Some([0..0, 0..0]);
    }
    let whole = part == [0..rows, 0..columns];
    (!whole).then_some(part)
}

/// Makes a packed copy of a tile of a window: its valid part, and the fill value elsewhere.
///
/// # Safety
/// The part can be read from `data` on, and all of the tile written to `to`.
unsafe fn fill(
    window: &Window,
    data: *const u8,
    (row_stride, column_stride): (isize, isize),
    to: *mut u8,
    rows: usize,
    columns: usize,
    [valid_rows, valid_columns]: Part,
) {
    let value = window.valid.as_ref().map_or(Scalar::Integer(0), |&(_, value)| value);
    let bytes = value.to_bytes(window.dtype);
    let size = window.dtype.size();
    let all = rows * columns * size;
    // SAFETY: as the caller vouches.
    unsafe {
        if bytes.iter().all(|&byte| byte == bytes[0]) {
            std::ptr::write_bytes(to, bytes[0], all);
        } else {
            // The filled part doubles until it is all.
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, size.min(all));
            let mut filled = size;
            while filled < all {
                std::ptr::copy_nonoverlapping(to, to.add(filled), filled.min(all - filled));
                filled *= 2;
            }
        }
        for row in valid_rows {
            let first = data.wrapping_offset(row as isize * row_stride * size as isize);
            let target = to.add(row * columns * size);
            if column_stride == 1 {
                let from = first.wrapping_add(valid_columns.start * size);
                let count = valid_columns.len() * size;
                std::ptr::copy_nonoverlapping(from, target.add(valid_columns.start * size), count);
                continue;
            }
            for column in valid_columns.clone() {
                let from = first.wrapping_offset(column as isize * column_stride * size as isize);
                std::ptr::copy_nonoverlapping(from, target.add(column * size), size);
            }
        }
    }
}
