//! Block maps: which blocks of pairs a mask leaves.
//!
//! The map of one batch element and head is kept as runs of neighbouring live blocks, along each block of
//! queries for the forward and along each block of keys for the backward. Memory is proportional to the
//! number of runs, so a causal map of a million positions is a few runs a row.
//!
//! [`build`] finds them by interval evaluation ([`range`]) of the mask over ever smaller rectangles.

mod bounds;
mod build;
mod range;
#[cfg(test)]
mod tests;

use std::fmt;

pub use build::block_map;
pub(crate) use build::build;

/// The blocks that a mask leaves. Block (i, j) covers queries `i·query_block ..` and keys `j·key_block ..`.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// Batch extent: 1 where the mask does not depend on the batch element.
    pub batch: usize,
    /// Head extent: 1 where the mask does not depend on the head.
    pub heads: usize,
    /// Queries per block.
    pub query_block: usize,
    /// Keys per block.
    pub key_block: usize,
    /// Blocks of queries.
    pub query_blocks: usize,
    /// Blocks of keys.
    pub key_blocks: usize,
    by_query: Lists,
    by_key: Lists,
}

/// A run of neighbouring live blocks, all full or all partial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first block.
    pub start: u32,
    /// The block after the last.
    pub end: u32,
    /// Whether the mask admits all pairs of all of them.
    pub full: bool,
}

impl Run {
    /// How many blocks it has.
    pub fn blocks(&self) -> usize {
        (self.end - self.start) as usize
    }
}

/// Lists of runs, one after the other: list i is `runs[starts[i]..starts[i + 1]]`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Lists {
    starts: Vec<usize>,
    runs: Vec<Run>,
}

impl Lists {
    fn list(&self, i: usize) -> &[Run] {
        &self.runs[self.starts[i]..self.starts[i + 1]]
    }
}

impl Blocks {
    fn slice(&self, b: usize, h: usize) -> usize {
        (if self.batch == 1 { 0 } else { b }) * self.heads + if self.heads == 1 { 0 } else { h }
    }

    /// The live blocks of keys for a block of queries, as ascending runs.
    pub fn key_runs(&self, b: usize, h: usize, query_block: usize) -> &[Run] {
        self.by_query.list(self.slice(b, h) * self.query_blocks + query_block)
    }

    /// The live blocks of queries for a block of keys, as ascending runs.
    pub fn query_runs(&self, b: usize, h: usize, key_block: usize) -> &[Run] {
        self.by_key.list(self.slice(b, h) * self.key_blocks + key_block)
    }

    /// How many blocks are full and how many partial, over all batch elements and heads of the map.
    pub fn counts(&self) -> (usize, usize) {
        let count = |full| self.by_query.runs.iter().filter(|run| run.full == full).map(Run::blocks).sum();
        (count(true), count(false))
    }
}

/// How many rows and columns a picture has at most.
const PICTURE: usize = 32;

/// The share of empty blocks, and a picture of the first batch element and head: `█` full, `▒` partial,
/// `·` empty. A cell of a large map stands for several blocks, and is partial unless they agree.
impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (full, partial) = self.counts();
        let all = self.batch * self.heads * self.query_blocks * self.key_blocks;
        let empty = 100.0 * (all - full - partial) as f64 / all.max(1) as f64;
        writeln!(
            f,
            "{} of {all} blocks live ({full} full, {partial} partial), {empty:.1} % empty",
            full + partial
        )?;
        if all == 0 {
            return Ok(());
        }
        let (tall, wide) = (self.query_blocks.div_ceil(PICTURE), self.key_blocks.div_ceil(PICTURE));
        for top in (0..self.query_blocks).step_by(tall) {
            let rows = top..(top + tall).min(self.query_blocks);
            let line: String = (0..self.key_blocks)
                .step_by(wide)
                .map(|left| {
                    let columns = left..(left + wide).min(self.key_blocks);
                    let (mut full, mut live) = (0, 0);
                    for run in rows.clone().flat_map(|row| self.key_runs(0, 0, row)) {
                        let shared = (run.end as usize).min(columns.end) as isize
                            - (run.start as usize).max(columns.start) as isize;
                        live += shared.max(0) as usize;
                        full += if run.full { shared.max(0) as usize } else { 0 };
                    }
                    match (full, live) {
                        (_, 0) => '·',
                        (full, _) if full == rows.len() * columns.len() => '█',
                        _ => '▒',
                    }
                })
                .collect();
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}
