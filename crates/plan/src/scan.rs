//! Scans, with element-wise producers and consumers fused in.
//!
//! Meaning: for each index of the parallel axes, in any order: the state, a tuple of scalars, is folded
//! along the scan axis. `elements` makes the tuple at a position from what is loaded there; `combine`
//! takes two tuples (left, right) to one; `results` makes what is stored at a position from the folded
//! tuple there and from what is loaded there.

use crate::loops::{Sink, Source};
use crate::{Program, Table};

/// A scan. *Axes* are the parallel axes followed by the scan axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Scan {
    /// Extents of the parallel axes, outermost first.
    pub parallel: Vec<usize>,
    /// Extent of the scan axis.
    pub length: usize,
    /// Whether it runs from the last position to the first.
    pub reverse: bool,
    /// How many scalars the state has.
    pub state: usize,
    /// Inputs `sources[i]`, results the state's elements.
    pub elements: Program,
    /// Feeds `elements`: loads and positions.
    pub sources: Vec<Source>,
    /// Inputs left state, right state, then `captured[i]`; results a state.
    pub combine: Program,
    /// Further inputs of `combine`: loads that do not move along the scan axis.
    pub captured: Vec<Source>,
    /// For each state element, whether the results need it (others matter only to combine chunks).
    pub live: Vec<bool>,
    /// Inputs the folded state, then `result_sources[i]`.
    pub results: Program,
    /// Feeds `results` after the state.
    pub result_sources: Vec<Source>,
    /// Where the results go: stores only.
    pub sinks: Vec<Sink>,
    /// The arrays that the programs read at computed indices.
    pub tables: Vec<Table>,
}
