//! How scans are cut: by sizes only, so that two GPUs give the same bits.

use tilewright_plan::loops::{Sink, Source};
use tilewright_plan::{Kind, Scan, View};

use super::{kinds, staging};

/// So many rows keep a GPU busy, a block for each; fewer are cut into tiles. A number of the engine's, not of a GPU's,
/// so that results do not depend on which GPU it is.
const MANY_ROWS: usize = 512;

/// Where rows are cut into tiles: warps that fold and scan, bytes of a tile's sources, rounds of threads whose state is
/// one word (each keeps what it knows of three tiles), and how many tiles keep a GPU busy.
const TILE_WARPS: usize = 8;
const TILE_BYTES: usize = 48 << 10;
const MOST_ROUNDS: usize = 12;
const ENOUGH_TILES: usize = 256;

/// How a scan is cut.
pub(super) struct Shape {
    /// Whether lanes run along rows' neighbours instead of along the scan.
    pub lanes: bool,
    /// Rows of a block.
    pub team: usize,
    pub warps: usize,
    pub rounds: usize,
    pub run: usize,
    /// Whether rows are cut into tiles, which look back at the tiles before.
    pub chained: bool,
}

impl Shape {
    pub fn of(scan: &Scan) -> Shape {
        let words: usize = kinds(scan)
            .into_iter()
            .map(|kind| if matches!(kind, Kind::F64 | Kind::I64) { 2 } else { 1 })
            .sum();
        let rows: usize = scan.parallel.iter().product();
        let lanes = lanes_along_rows(scan) || words > 32;
        let (run, rounds) = match words {
            0..=2 => (if lanes { 8 } else { 4 }, 8),
            3..=4 => (4, 4),
            5..=8 => (2, 2),
            _ => (1, 1),
        };
        let teams = if lanes { rows.div_ceil(32) } else { rows };
        // Short rows leave most of a large block idle; states that fill the registers leave no room for neighbours'.
        let warps = if words > 32 || (!lanes && scan.length <= 32 * run * rounds) {
            1
        } else if lanes {
            8
        } else {
            4
        };
        let rounds = if lanes { 1 } else { rounds };
        let tile = warps * run * if lanes { 1 } else { 32 * rounds };
        let enough = if lanes { MANY_ROWS / 4 } else { MANY_ROWS };
        let chained = warps > 1 && teams < enough && scan.length > 4 * tile;
        let shape = Shape { lanes, team: if lanes { 32 } else { 1 }, warps, rounds, run, chained };
        match (lanes, chained) {
            (false, true) => shape.of_tiles(scan, words, rows),
            // A block or two for each multiprocessor are shared out badly.
            (true, false) if warps > 1 && teams < MANY_ROWS => Shape { team: 16, warps: warps / 2, ..shape },
            _ => shape,
        }
    }

    /// The rounds of a tile that is copied ahead: as many as its bytes and the registers of its threads allow, for the
    /// fewer tiles, the fewer look back; unless there would be too few tiles. A row's tiles are about equal.
    fn of_tiles(self, scan: &Scan, words: usize, rows: usize) -> Shape {
        let shape = |rounds| Shape { warps: TILE_WARPS, rounds, ..self };
        let round = shape(1).tile();
        let step_bytes = staging::step_bytes(scan).max(1);
        let most = (MOST_ROUNDS / words).min(TILE_BYTES / (round * step_bytes)).max(1);
        let tiles = scan.length.div_ceil(most * round).max(ENOUGH_TILES.div_ceil(rows));
        shape(scan.length.div_ceil(tiles * round))
    }

    pub fn tile(&self) -> usize {
        32 * self.warps * self.run * self.rounds / if self.lanes { self.team } else { 1 }
    }
}

/// Whether most of the arrays have neighbouring rows, rather than steps, next to each other.
fn lanes_along_rows(scan: &Scan) -> bool {
    let axis = scan.parallel.len();
    let Some(inner) = (0..axis).rev().find(|&axis| scan.parallel[axis] > 1) else { return false };
    let loads = scan.sources.iter().chain(&scan.result_sources).filter_map(|source| match source {
        Source::Load { view, .. } => Some(view),
        Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => None,
    });
    let stores = scan.sinks.iter().filter_map(|sink| match sink {
        Sink::Store { view, .. } => Some(view),
        Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => None,
    });
    let vote = |view: &View| match (view.strides[inner], view.strides[axis]) {
        (1, -1..=1) => 0,
        (1, _) => 1,
        (_, 1 | -1) => -1,
        _ => 0,
    };
    loads.chain(stores).map(vote).sum::<i32>() > 0
}
