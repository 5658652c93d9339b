//! What of a tile is copied ahead to shared memory: sources whose steps are neighbours in memory.

use std::fmt::Write;

use tilewright_plan::Scan;
use tilewright_plan::loops::Source;

use super::shape::Shape;

/// Tiles that are in shared memory at once: one that is copied, one that is folded, one that is told of, and one that is
/// stored. One less, and the next is not copied before the last is stored.
const STAGES: usize = 4;

/// Where the sources of a tile lie in a stage.
pub(super) struct Staging {
    pub stages: usize,
    /// Bytes of a stage.
    pub bytes: usize,
    pieces: Vec<Piece>,
}

struct Piece {
    /// What the row calls the source.
    name: String,
    place: usize,
    /// Whether only some positions of it are there.
    bounded: bool,
    /// Whether another piece has the same elements.
    shared: bool,
}

/// The sources that are copied, with what the row calls them.
fn candidates(scan: &Scan) -> impl Iterator<Item = (String, &Source)> {
    let all = [("source", &scan.sources), ("result", &scan.result_sources)];
    let named = all.into_iter().flat_map(|(prefix, sources)| {
        sources.iter().enumerate().map(move |(i, source)| (format!("{prefix}_{i}"), source))
    });
    let axis = scan.parallel.len();
    named.filter(move |(_, source)| matches!(source, Source::Load { view, .. } if view.strides[axis] == 1))
}

/// The same, each array once.
fn distinct(scan: &Scan) -> Vec<&Source> {
    let mut distinct = Vec::new();
    for (_, source) in candidates(scan) {
        if !distinct.contains(&source) {
            distinct.push(source);
        }
    }
    distinct
}

fn size(source: &Source) -> usize {
    if let Source::Load { dtype, .. } = source { dtype.size() } else { 0 }
}

/// Bytes that are copied for a step.
pub(super) fn step_bytes(scan: &Scan) -> usize {
    distinct(scan).into_iter().map(size).sum()
}

impl Staging {
    /// How much of a scan's sources fits beside `kept` bytes of other things.
    pub fn of(scan: &Scan, shape: &Shape, shared_bytes: usize, kept: usize) -> Staging {
        let distinct = distinct(scan);
        let mut places = Vec::new();
        let mut bytes = 0;
        for source in &distinct {
            places.push(bytes);
            // Before and after a tile there may be part of a piece of as many bytes as a run has, or 16.
            let granule = (shape.run * size(source)).max(16);
            bytes = (bytes + shape.tile() * size(source) + 2 * granule).next_multiple_of(128);
        }
        let stages = shared_bytes.saturating_sub(kept).checked_div(bytes).unwrap_or(STAGES).min(STAGES);
        if stages + 1 < STAGES {
            return Staging { stages: STAGES, bytes: 0, pieces: Vec::new() };
        }
        let mut pieces: Vec<Piece> = Vec::new();
        for (name, source) in candidates(scan) {
            let place = distinct.iter().zip(&places).find(|(known, _)| **known == source);
            let place = *place.expect("one of them").1;
            let bounded = matches!(source, Source::Load { valid: Some(_), .. });
            let shared = pieces.iter().any(|piece| piece.place == place);
            pieces.push(Piece { name, place, bounded, shared });
        }
        Staging { stages, bytes, pieces }
    }

    /// `copy_sources` and `row_in_stage`.
    pub fn functions(&self) -> String {
        let mut copies = String::new();
        let mut moves = String::new();
        let own = || self.pieces.iter().filter(|piece| !piece.shared);
        let line =
            |text: &mut String, line: String| writeln!(text, "    {line}").expect("a string takes any text");
        for Piece { name, place, bounded, .. } in own() {
            let (low, high) = match bounded {
                true => (format!("row.{name}_low"), format!("row.{name}_high")),
                false => ("(Step)0".into(), "(Step)p.length".into()),
            };
            line(
                &mut copies,
                format!("Piece {name} = piece_of(row.{name}, begin, end, {low}, {high}, stage + {place});"),
            );
        }
        let bytes: Vec<String> = own().map(|piece| format!("{}.bytes", piece.name)).collect();
        let bytes = if bytes.is_empty() { "0".into() } else { bytes.join(" + ") };
        line(&mut copies, format!("begin_copies(barrier, {bytes});"));
        for Piece { name, .. } in own() {
            line(&mut copies, format!("copy_ahead({name}.to, {name}.from, {name}.bytes, barrier);"));
        }
        line(&mut copies, "end_copies(barrier);".into());
        for Piece { name, place, .. } in &self.pieces {
            line(&mut moves, format!("row.{name} = in_stage(row.{name}, begin, stage + {place});"));
            line(&mut moves, format!("row.{name}_shift = shift_of(row.{name}, 1, (Step)p.length);"));
        }
        format!(
            "// Copies what a tile needs of its sources ahead, to a stage.\n\
             DEVICE void copy_sources(const Parameters& p, const Row& row, Step begin, Step end, unsigned char* stage, \
             unsigned long long* barrier) {{\n{copies}}}\n\
             // A row, of which a tile's sources are in a stage.\n\
             DEVICE Row row_in_stage(const Parameters& p, Row row, Step begin, unsigned char* stage) {{\n{moves}    \
             return row;\n}}\n"
        )
    }
}
