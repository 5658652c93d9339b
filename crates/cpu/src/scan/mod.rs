//! Scans.
//!
//! A scan is walked in tiles that stay in the first-level cache ([`walk`]): along rows, where neighbours
//! along the scan axis lie next to each other, or across lanes, where neighbours along a parallel axis do;
//! nothing is transposed or flipped in memory. [`edges`] brings the state's elements in and takes results
//! out, past the caches where they are large ([`store`]); [`engine`] folds, with vector code for the common combine functions ([`vector`], [`monoid`]) and
//! the tile machine for all others. Where there are too few rows to keep threads busy, rows are cut into
//! chunks ([`chain`]).

mod chain;
mod column;
mod edges;
mod engine;
mod form;
mod lanes;
mod monoid;
mod program;
mod row;
mod source;
mod store;
mod vector;
mod walk;

use tilewright_ir::Result;
use tilewright_plan::Scan;
use tilewright_plan::loops::{Sink, Source};

use self::edges::Edges;
use self::engine::{Combine, Engine};
use self::lanes::Element;
use self::vector::{Vector, Visitor};
use self::walk::{Direction, Walk};
use crate::Context;
use crate::memory::Memory;

/// Runs a scan.
pub(crate) fn run(scan: &Scan, memory: &Memory, context: &Context) -> Result<()> {
    if scan.length == 0 || scan.parallel.contains(&0) {
        return Ok(());
    }
    let loads = scan.sources.iter().chain(&scan.result_sources).filter_map(|source| match source {
        Source::Load { view, .. } => Some(&view.strides[..]),
        Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => None,
    });
    let stores = scan.sinks.iter().filter_map(|sink| match sink {
        Sink::Store { view, .. } => Some(&view.strides[..]),
        Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => None,
    });
    let strides: Vec<&[isize]> = loads.chain(stores).collect();
    let pattern = monoid::recognise(&scan.combine, scan.state);
    let row_tile = if pattern.is_some() { vector::TILE } else { program::TILE };
    let walk = Walk::new(&scan.parallel, scan.length, scan.reverse, &strides, row_tile);
    let axis = match walk.direction {
        Direction::Row => scan.parallel.len(),
        Direction::Column => walk.lane_axis,
    };
    let edges = Edges::new(scan, memory, axis, context.isa)?;
    let job = Job { context, walk: &walk, edges: &edges, live: &scan.live };
    match pattern {
        Some(pattern) => vector::choose(context.isa, pattern, scan.reverse, job),
        None => job.run(&program::Compiled::new(scan, memory, axis, context.isa)?),
    }
}

/// A scan that waits for its combine function.
struct Job<'a> {
    context: &'a Context,
    walk: &'a Walk,
    edges: &'a Edges,
    live: &'a [bool],
}

impl Job<'_> {
    fn run(self, combine: &impl Combine) -> Result<()> {
        let Job { context, walk, edges, live } = self;
        chain::run(context, walk.groups, walk.chunks, &Engine { walk, edges, combine, live })
    }
}

impl Visitor for Job<'_> {
    fn visit<E: Element, const S: usize>(self, vector: &Vector<E, S>) -> Result<()> {
        self.run(vector)
    }
}
