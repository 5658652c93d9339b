//! In which order a scan walks over memory: along rows or across lanes, in which tiles, groups and chunks.
//! Everything here depends on sizes and strides only, never on the number of threads.

use std::ops::Range;

/// Which way neighbouring elements lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Along the scan axis.
    Row,
    /// Along a parallel axis.
    Column,
}

/// The walk of one scan.
pub(super) struct Walk {
    /// Extents of the parallel axes.
    pub parallel: Vec<usize>,
    /// Extent of the scan axis, at least 1.
    pub length: usize,
    pub reverse: bool,
    pub direction: Direction,
    /// The parallel axis that lanes run along, in a walk over columns.
    pub lane_axis: usize,
    /// Positions in a tile of a row, or lanes in a block of lanes.
    pub tile: usize,
    /// How many independent tasks there are.
    pub groups: usize,
    /// Rows in a group, in a walk along rows.
    rows_in_group: usize,
    /// How many chunks the scan axis is cut into.
    pub chunks: usize,
    /// Positions in a chunk; a multiple of the tile in a walk along rows.
    chunk: usize,
}

/// Lanes in a block.
const LANE_TILE: usize = 1024;
/// Elements that a chunk has about: what stays in the second-level cache with a few arrays.
const CHUNK: usize = 16 * 1024;
/// Elements that rows which are taken together have at most: memory is copied faster in long stretches.
const SPAN: usize = 64 * 1024;
/// Where there are so many rows, threads are kept busy without chunks.
const ENOUGH_ROWS: usize = 64;
/// Where there are so many blocks of lanes. A chunk of a block is walked twice and no longer in the cache the
/// second time, for its positions lie far apart: fewer threads are better than twice the traffic.
const ENOUGH_BLOCKS: usize = 2;

impl Walk {
    /// `strides` are those of each array that is loaded or stored: the parallel axes', then the scan's.
    /// `row_tile` is how many positions of a row are taken at once, a power of two.
    pub fn new(
        parallel: &[usize],
        length: usize,
        reverse: bool,
        strides: &[&[isize]],
        row_tile: usize,
    ) -> Walk {
        let scan = parallel.len();
        let contiguous = |axis: usize| strides.iter().filter(|strides| strides[axis].abs() == 1).count();
        let lane_axis =
            (0..scan).rev().filter(|&axis| parallel[axis] > 1).max_by_key(|&axis| contiguous(axis));
        let column = lane_axis.filter(|&axis| contiguous(axis) > contiguous(scan));
        let direction = if column.is_some() { Direction::Column } else { Direction::Row };
        let rows: usize = parallel.iter().product();
        let mut walk = Walk {
            parallel: parallel.to_vec(),
            length,
            reverse,
            direction,
            lane_axis: lane_axis.unwrap_or(0),
            tile: row_tile.min(length),
            groups: rows,
            rows_in_group: 1,
            chunks: 1,
            chunk: length,
        };
        match direction {
            Direction::Row => {
                if rows < ENOUGH_ROWS && length >= 2 * CHUNK {
                    walk.chunk = CHUNK;
                } else {
                    let span = (rows * length / ENOUGH_ROWS).clamp(CHUNK, SPAN);
                    walk.rows_in_group = (span / length.max(1)).clamp(1, rows.max(1));
                    walk.groups = rows.div_ceil(walk.rows_in_group);
                }
            }
            Direction::Column => {
                let extent = parallel[walk.lane_axis];
                walk.tile = LANE_TILE.min(extent);
                walk.groups = rows / extent.max(1) * extent.div_ceil(walk.tile.max(1));
                let chunk = (2 * CHUNK / walk.tile.max(1)).max(1);
                if walk.groups < ENOUGH_BLOCKS && length >= 2 * chunk {
                    walk.chunk = chunk;
                }
            }
        }
        walk.chunks = length.div_ceil(walk.chunk.max(1));
        walk
    }

    /// The rows of a group, in a walk along rows.
    pub fn rows(&self, group: usize) -> Range<usize> {
        let start = group * self.rows_in_group;
        start..(start + self.rows_in_group).min(self.row_count())
    }

    /// How many rows there are, in a walk along rows.
    pub fn row_count(&self) -> usize {
        self.parallel.iter().product()
    }

    /// Puts the position at which a row starts to `start`: one number for each parallel axis, and 0 for the
    /// scan axis.
    pub fn start_of_row(&self, row: usize, start: &mut Vec<usize>) {
        start.clear();
        start.resize(self.parallel.len() + 1, 0);
        let mut rest = row;
        for (axis, &extent) in self.parallel.iter().enumerate().rev() {
            start[axis] = rest % extent;
            rest /= extent;
        }
    }

    /// The lanes of a group, in a walk over columns: their axis and their number. Puts the position where they
    /// start to `start`.
    pub fn lanes(&self, group: usize, start: &mut Vec<usize>) -> (usize, usize) {
        let extent = self.parallel[self.lane_axis];
        let blocks = extent.div_ceil(self.tile);
        start.clear();
        start.resize(self.parallel.len() + 1, 0);
        start[self.lane_axis] = group % blocks * self.tile;
        let mut rest = group / blocks;
        for (axis, &extent) in self.parallel.iter().enumerate().rev() {
            if axis != self.lane_axis {
                start[axis] = rest % extent;
                rest /= extent;
            }
        }
        (self.lane_axis, (extent - start[self.lane_axis]).min(self.tile))
    }

    /// The scan positions of a chunk as a range, chunks counted in the order of the scan.
    fn range(&self, chunk: usize) -> Range<usize> {
        let (first, last) = (chunk * self.chunk, ((chunk + 1) * self.chunk).min(self.length));
        if self.reverse { self.length - last..self.length - first } else { first..last }
    }

    /// How many tiles a chunk has.
    pub fn tiles(&self, chunk: usize) -> usize {
        self.range(chunk).len().div_ceil(self.tile)
    }

    /// A tile of a chunk, counted in the order of the scan: first position in memory order, and count.
    pub fn tile(&self, chunk: usize, tile: usize) -> (usize, usize) {
        let Range { start, end } = self.range(chunk);
        if self.reverse {
            let end = end - tile * self.tile;
            let first = end.saturating_sub(self.tile).max(start);
            (first, end - first)
        } else {
            let first = start + tile * self.tile;
            (first, (end - first).min(self.tile))
        }
    }

    /// The scan positions of a chunk in the order of the scan.
    pub fn positions(&self, chunk: usize) -> impl Iterator<Item = usize> + use<> {
        let (Range { start, end }, reverse) = (self.range(chunk), self.reverse);
        (0..end - start).map(move |i| if reverse { end - 1 - i } else { start + i })
    }
}
