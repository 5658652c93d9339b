//! Which pairs a unit of work has to look at: the live blocks along one axis, seen from a few neighbouring
//! positions of the other.

use std::ops::Range;

use crate::block_map::{Blocks, Run};

/// Neighbouring positions, and whether every pair of them with the unit's own positions is admitted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Segment {
    pub range: Range<usize>,
    pub full: bool,
}

/// The keys that some queries of a head see, in ascending order, all of them where there is no map.
pub(super) fn keys_of(
    blocks: Option<&Blocks>,
    (batch, head): (usize, usize),
    queries: &Range<usize>,
    keys: usize,
) -> Vec<Segment> {
    let Some(blocks) = blocks else { return vec![Segment { range: 0..keys, full: true }] };
    let lines = queries.start / blocks.query_block..queries.end.div_ceil(blocks.query_block);
    let runs: Vec<&[Run]> = lines.map(|line| blocks.key_runs(batch, head, line)).collect();
    merge(&runs, blocks.key_block, keys)
}

/// The queries of a head that see some keys.
pub(super) fn queries_of(
    blocks: Option<&Blocks>,
    (batch, head): (usize, usize),
    keys: &Range<usize>,
    queries: usize,
) -> Vec<Segment> {
    let Some(blocks) = blocks else { return vec![Segment { range: 0..queries, full: true }] };
    let lines = keys.start / blocks.key_block..keys.end.div_ceil(blocks.key_block);
    let runs: Vec<&[Run]> = lines.map(|line| blocks.query_runs(batch, head, line)).collect();
    merge(&runs, blocks.query_block, queries)
}

/// Where any line is live; full where all are.
fn merge(lines: &[&[Run]], block: usize, length: usize) -> Vec<Segment> {
    let mut ends: Vec<u32> =
        lines.iter().flat_map(|runs| runs.iter().flat_map(|run| [run.start, run.end])).collect();
    ends.sort_unstable();
    ends.dedup();
    let mut segments: Vec<Segment> = Vec::new();
    let mut next = vec![0; lines.len()];
    for pair in ends.windows(2) {
        let (mut live, mut full) = (false, true);
        for (runs, next) in lines.iter().zip(&mut next) {
            while runs.get(*next).is_some_and(|run| run.end <= pair[0]) {
                *next += 1;
            }
            match runs.get(*next) {
                Some(run) if run.start <= pair[0] => (live, full) = (true, full && run.full),
                _ => full = false,
            }
        }
        if !live {
            continue;
        }
        let range = pair[0] as usize * block..(pair[1] as usize * block).min(length);
        match segments.last_mut() {
            Some(last) if last.range.end == range.start && last.full == full => last.range.end = range.end,
            _ => segments.push(Segment { range, full }),
        }
    }
    segments
}

/// The segments cut to pieces of at most `size`, at multiples of `size`.
pub(super) fn pieces(segments: Vec<Segment>, size: usize) -> impl Iterator<Item = Segment> {
    segments.into_iter().flat_map(move |Segment { range, full }| {
        let cuts = (range.start / size..range.end.div_ceil(size)).map(move |i| i * size);
        cuts.map(move |cut| Segment { range: cut.max(range.start)..(cut + size).min(range.end), full })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_lines_are_live_where_any_is_and_full_where_all_are() {
        let run = |start, end, full| Run { start, end, full };
        let first = [run(0, 2, true), run(2, 3, false), run(5, 6, true)];
        let second = [run(0, 1, true), run(4, 6, true)];
        let segment = |range, full| Segment { range, full };
        assert_eq!(
            merge(&[&first, &second], 10, 57),
            [segment(0..10, true), segment(10..30, false), segment(40..50, false), segment(50..57, true)]
        );
        assert_eq!(merge(&[], 10, 57), []);
    }

    #[test]
    fn pieces_are_cut_at_multiples_of_their_size() {
        let segments = vec![Segment { range: 10..30, full: true }, Segment { range: 30..33, full: false }];
        let ranges: Vec<_> = pieces(segments, 16).map(|piece| piece.range).collect();
        assert_eq!(ranges, [10..16, 16..30, 30..32, 32..33]);
    }
}
