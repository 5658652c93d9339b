//! The shape of a loop nest: fewer, longer axes, cut into tiles.

use tilewright_plan::loops::{Lanes, Sink, Source};
use tilewright_plan::{Loops, View};

/// Elements that a tile has at most.
pub(super) const TILE: usize = 2048;

/// Elements of a row that are one task where rows are too few to go round.
const CHUNK: usize = 32 * TILE;

/// Columns and lines of a tile where some view steps over elements from column to column: neighbouring
/// lines then find in cache what they have of the same cache lines.
const BLOCK: (usize, usize) = (64, 32);

/// An axis of the nest: one or more axes of the kernel, merged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    pub extent: usize,
    /// The innermost of the kernel's axes that it is made of: views step along it by that one's stride.
    pub of: usize,
}

/// The axes of a nest and how they are cut.
///
/// A *group* is what is done at a time: some neighbouring rows (*lines*), along the innermost parallel
/// axis. A *piece* is a tile's share of a group's rows.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    /// How many axes the kernel has.
    pub rank: usize,
    /// Parallel axes but the innermost.
    pub outer: Vec<Axis>,
    /// The innermost parallel axis.
    pub line: Axis,
    /// Row axes but the innermost.
    pub row_outer: Vec<Axis>,
    /// The innermost row axis.
    pub row: Axis,
    pub lanes: Lanes,
    /// Lines of a group.
    pub lines: usize,
    /// Positions of the innermost row axis in a piece.
    pub piece: usize,
    /// Pieces of a chunk; a row is one chunk, unless rows are few.
    pub chunk: usize,
}

impl Geometry {
    pub fn new(kernel: &Loops) -> Geometry {
        let parallel_rank = kernel.parallel.len();
        let rank = parallel_rank + kernel.row.len();
        let extents: Vec<usize> = kernel.parallel.iter().chain(&kernel.row).copied().collect();
        let axes: Vec<Axis> = (0..rank).map(|of| Axis { extent: extents[of], of }).collect();
        let (mut parallel, mut row) = (axes[..parallel_rank].to_vec(), axes[parallel_rank..].to_vec());
        let mut lanes = kernel.lanes;
        if carries_nothing(kernel) {
            // Without rows that mean anything, any order of the axes will do: that of the first store.
            let mut all = axes.clone();
            if let Some(view) = stores(kernel).next() {
                all.sort_by_key(|axis| std::cmp::Reverse(view.strides[axis.of].unsigned_abs()));
            }
            let mut all = merge(&all, kernel);
            row = all.pop().into_iter().collect();
            // Short rows fill a tile only with many lines, so these run along the longest axis.
            if product(&row) * all.last().map_or(1, |axis| axis.extent) < TILE {
                all.sort_by_key(|axis| axis.extent);
            }
            parallel = all;
            lanes = Lanes::Row;
        } else {
            (parallel, row) = (merge(&parallel, kernel), merge(&row, kernel));
        }
        // An axis past the last has no strides.
        let none = Axis { extent: 1, of: rank };
        let (line, row_axis) = (parallel.pop().unwrap_or(none), row.pop().unwrap_or(none));
        let mut geometry = Geometry {
            rank,
            outer: parallel,
            line,
            row_outer: row,
            row: row_axis,
            lanes,
            lines: 1,
            piece: 1,
            chunk: usize::MAX,
        };
        geometry.cut(kernel);
        geometry
    }

    /// Chooses the sizes of groups, pieces and chunks, from sizes only: so sums have one order.
    fn cut(&mut self, kernel: &Loops) {
        let column = if self.lanes == Lanes::Row { self.row } else { self.line };
        let blocked = views(kernel).any(|view| stride(view, column).unsigned_abs() > 1);
        let (columns, lines) = if blocked { BLOCK } else { (TILE, TILE) };
        let columns = column.extent.clamp(1, columns);
        let across = (TILE / columns).clamp(1, lines);
        match self.lanes {
            Lanes::Row => (self.piece, self.lines) = (columns, across.min(self.line.extent.max(1))),
            Lanes::Parallel => (self.lines, self.piece) = (columns, across.min(self.row.extent.max(1))),
        }
        let row_elements = self.pieces() * self.piece;
        if self.groups() < 16 && row_elements * self.lines >= 2 * CHUNK {
            self.chunk = (CHUNK / (self.piece * self.lines)).max(1);
        }
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        product(&self.outer) * self.line.extent.div_ceil(self.lines)
    }

    /// How many pieces a row has.
    pub fn pieces(&self) -> usize {
        product(&self.row_outer) * self.row.extent.div_ceil(self.piece)
    }

    /// How many chunks a row is cut into.
    pub fn chunks(&self) -> usize {
        self.pieces().div_ceil(self.chunk).max(1)
    }

    /// Elements of a row.
    pub fn row_elements(&self) -> usize {
        product(&self.row_outer) * self.row.extent
    }

    /// Elements of the whole nest.
    pub fn elements(&self) -> usize {
        product(&self.outer) * self.line.extent * self.row_elements()
    }

    /// Sets the position of a group's first line, and gives its number of lines.
    pub fn group(&self, group: usize, at: &mut [usize]) -> usize {
        let cuts = self.line.extent.div_ceil(self.lines);
        unravel(group / cuts, &self.outer, at);
        let start = group % cuts * self.lines;
        set(at, self.line, start);
        self.lines.min(self.line.extent - start)
    }

    /// Sets the position of a piece's first element, and gives the number of that element in the row and
    /// the number of elements along the innermost row axis.
    pub fn piece(&self, piece: usize, at: &mut [usize]) -> (usize, usize) {
        let cuts = self.row.extent.div_ceil(self.piece);
        unravel(piece / cuts, &self.row_outer, at);
        let start = piece % cuts * self.piece;
        set(at, self.row, start);
        (piece / cuts * self.row.extent + start, self.piece.min(self.row.extent - start))
    }
}

/// A view's stride along an axis.
pub(super) fn stride(view: &View, axis: Axis) -> isize {
    view.strides.get(axis.of).copied().unwrap_or(0)
}

/// Sets the position along an axis, if the kernel has it.
fn set(at: &mut [usize], axis: Axis, position: usize) {
    if let Some(slot) = at.get_mut(axis.of) {
        *slot = position;
    }
}

fn unravel(mut number: usize, axes: &[Axis], at: &mut [usize]) {
    for axis in axes.iter().rev() {
        at[axis.of] = number % axis.extent;
        number /= axis.extent;
    }
}

fn product(axes: &[Axis]) -> usize {
    axes.iter().map(|axis| axis.extent).product()
}

/// Whether the phases hand nothing on from element to element.
pub(super) fn carries_nothing(kernel: &Loops) -> bool {
    kernel.phases.iter().all(|phase| {
        let stores = phase.sinks.iter().all(|sink| matches!(sink, Sink::Store { .. }));
        let loads =
            phase.sources.iter().all(|source| matches!(source, Source::Load { .. } | Source::Index(_)));
        !phase.once && stores && loads
    })
}

fn stores(kernel: &Loops) -> impl Iterator<Item = &View> {
    kernel.phases.iter().flat_map(|phase| &phase.sinks).filter_map(|sink| match sink {
        Sink::Store { view, .. } => Some(view),
        Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => None,
    })
}

fn loads(kernel: &Loops) -> impl Iterator<Item = &Source> {
    kernel.phases.iter().flat_map(|phase| &phase.sources)
}

fn views(kernel: &Loops) -> impl Iterator<Item = &View> {
    let loaded = loads(kernel).filter_map(|source| match source {
        Source::Load { view, .. } => Some(view),
        Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => None,
    });
    stores(kernel).chain(loaded)
}

/// Drops axes of one position and joins neighbours that every view steps through evenly.
fn merge(axes: &[Axis], kernel: &Loops) -> Vec<Axis> {
    let distinguished = |axis: &Axis| {
        loads(kernel).any(|source| match source {
            Source::Index(of) => *of == axis.of,
            Source::Load { valid: Some((ranges, _)), .. } => {
                ranges.get(axis.of).is_some_and(|&range| range != (0, axis.extent))
            }
            Source::Load { valid: None, .. } | Source::RowScalar(_) | Source::RowValue(_) => false,
        })
    };
    let mut merged: Vec<Axis> = Vec::new();
    for &axis in axes {
        let plain = !distinguished(&axis);
        if axis.extent == 1 && plain {
            continue;
        }
        let joins = |outer: &Axis| {
            let even =
                |view: &View| stride(view, *outer) == stride(view, axis).wrapping_mul(axis.extent as isize);
            plain && !distinguished(outer) && views(kernel).all(even)
        };
        match merged.last_mut() {
            Some(outer) if joins(outer) => {
                *outer = Axis { extent: outer.extent.saturating_mul(axis.extent), of: axis.of };
            }
            _ => merged.push(axis),
        }
    }
    merged
}
