//! The cotangents of captured arrays: from the passes' sums to the arrays.

use std::cell::Cell;

use tilewright_ir::{Error, ErrorKind, Result};
use tilewright_plan::AttentionBackward;
use tilewright_plan::attention::{AttentionShape, CaptureReduction, ReductionKey};

use super::*;
use crate::codegen::types::stored;

const TURNS: &str = include_str!("../../engines/attention/turns.cuh");
const VALUES: &str = include_str!("../../engines/attention/captures.cuh");
const OWNER_SCAN: &str = include_str!("../../engines/attention/owner_scan.cuh");
const SUM_COPIES: &str = include_str!("../../engines/attention/copies.cuh");
const STORE: &str = include_str!("../../engines/attention/store_capture.cuh");

/// Elements of a warp's window of [`OWNER_SCAN`].
const WINDOW: usize = 256;

/// The cotangent of one captured array in the making, in the score type.
pub(super) struct Total {
    /// Where in scratch memory.
    pub place: usize,
    elements: usize,
    /// Whether nothing has been added yet, so that its memory holds anything.
    fresh: Cell<bool>,
}

impl Total {
    /// Sees to it that there are numbers to add to.
    pub fn clear(&self, lowering: &mut Lowering) {
        if self.fresh.replace(false) {
            lowering.zero(self.place, 4 * self.elements);
        }
    }
}

/// One for each captured array.
pub(super) fn totals(backward: &AttentionBackward, lowering: &mut Lowering) -> Result<Vec<Total>> {
    let total = |capture: &tilewright_plan::attention::CaptureCotangent| {
        let elements: usize = capture.shape.iter().product();
        if elements > i32::MAX as usize {
            let what = "the number of elements of a learned array".into();
            return Err(Error::new(ErrorKind::Limit { what, limit: i32::MAX as usize }));
        }
        Ok(Total { place: lowering.scratch(4 * elements), elements, fresh: Cell::new(true) })
    };
    backward.captures.iter().map(total).collect()
}

/// How many elements the array has that a reduction feeds.
pub(super) fn elements(backward: &AttentionBackward, reduction: &CaptureReduction) -> usize {
    backward.captures[reduction.capture].shape.iter().product()
}

/// The extents that a reduction's indices are for.
pub(super) fn indexed(backward: &AttentionBackward, reduction: &CaptureReduction) -> Vec<usize> {
    match reduction.key {
        ReductionKey::Bucket { .. } => vec![elements(backward, reduction)],
        ReductionKey::Head
        | ReductionKey::Query
        | ReductionKey::Key
        | ReductionKey::Difference
        | ReductionKey::Sum
        | ReductionKey::Pair
        | ReductionKey::Any => backward.captures[reduction.capture].shape.clone(),
    }
}

/// How the sums by a key lie.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// One for each of so many queries, or keys.
    Row { count: usize },
    /// One for each tile of queries.
    Head { tiles: usize },
    /// For each tile of so many queries, one for each q − k.
    Difference { tiles: usize, rows: usize },
    /// As differences, of q + k.
    Sum { tiles: usize, rows: usize },
}

/// Adds sums by a key to their array.
pub(super) fn scatter(
    backward: &AttentionBackward,
    reduction: &CaptureReduction,
    order: Order,
    sums: usize,
    totals: &[Total],
    lowering: &mut Lowering,
) {
    let AttentionShape { batch, heads, queries, keys, .. } = backward.attention.shape;
    let diagonals = if queries * keys == 0 { 0 } else { queries + keys - 1 };
    let (key, count, tiles, rows) = match order {
        Order::Row { count } => ("BY_ROW", count, 0, 0),
        Order::Head { tiles } => ("BY_HEAD", 1, tiles, 0),
        Order::Difference { tiles, rows } => ("BY_DIFFERENCE", diagonals, tiles, rows),
        Order::Sum { tiles, rows } => ("BY_SUM", diagonals, tiles, rows),
    };
    let all = batch * heads * count;
    let (values, places) = (lowering.scratch(4 * all), lowering.scratch(4 * all));
    let mut parameters = Parameters::default();
    for (name, value) in [
        ("batch", batch),
        ("heads", heads),
        ("queries", queries),
        ("keys", keys),
        ("count", count),
        ("tiles", tiles),
    ] {
        parameters.integer(name, value as i64);
    }
    parameters.scratch("const float", "sums", sums);
    parameters.scratch("float", "values", values);
    parameters.scratch("int", "places", places);
    let tables = &backward.attention.tables;
    parameters.tables(tables);
    let mut sites = Vec::new();
    let mut text = constant("int", "TILE_ROWS", rows);
    for name in ["BY_ROW", "BY_HEAD", "BY_DIFFERENCE", "BY_SUM"] {
        text += &constant("bool", name, name == key);
    }
    let mut functions = Functions { text, parameters: &mut parameters, sites: &mut sites, tables };
    functions.places(&[(&reduction.indices, &indexed(backward, reduction), 0)]);
    let text = functions.text;
    let comment = "sums by a key, and their places in a captured array.";
    let source = Source::new("capture_values", comment, &parameters, &text, &[VALUES]);
    lowering.launch(Launch {
        source,
        blocks: all.div_ceil(256),
        threads: 256,
        shared_bytes: 0,
        arguments: parameters.arguments,
    });

    let total = &totals[reduction.capture];
    let mut parameters = Parameters::default();
    parameters.integer("count", all as i64);
    parameters.integer("elements", total.elements as i64);
    parameters.integer("first", total.fresh.replace(false).into());
    parameters.scratch("const float", "values", values);
    parameters.scratch("const int", "places", places);
    parameters.scratch("float", "total", total.place);
    let comment = "adds values at their places.";
    let source = Source::new("owner_scan", comment, &parameters, "", &[TURNS, OWNER_SCAN]);
    lowering.launch(Launch {
        source,
        blocks: total.elements.div_ceil(4 * WINDOW),
        threads: 128,
        shared_bytes: 4 * 4 * WINDOW,
        arguments: parameters.arguments,
    });
}

/// Adds copies of an array, so many of them, so many elements apart.
pub(super) fn copies(
    backward: &AttentionBackward,
    reduction: &CaptureReduction,
    place: usize,
    (count, stride): (usize, usize),
    totals: &[Total],
    lowering: &mut Lowering,
) {
    let total = &totals[reduction.capture];
    let elements = elements(backward, reduction);
    let mut parameters = Parameters::default();
    for (name, value) in [("count", count), ("stride", stride), ("elements", elements)] {
        parameters.integer(name, value as i64);
    }
    parameters.integer("first", total.fresh.replace(false).into());
    parameters.scratch("const float", "copies", place);
    parameters.scratch("float", "total", total.place);
    let source = Source::new("sum_copies", "adds up copies of an array.", &parameters, "", &[SUM_COPIES]);
    lowering.launch(Launch {
        source,
        blocks: elements.div_ceil(4),
        threads: 128,
        shared_bytes: 0,
        arguments: parameters.arguments,
    });
}

/// Stores the cotangents in the arrays' types.
pub(super) fn store(backward: &AttentionBackward, totals: &[Total], lowering: &mut Lowering) {
    for (capture, total) in backward.captures.iter().zip(totals) {
        total.clear(lowering);
        let mut parameters = Parameters::default();
        parameters.integer("elements", total.elements as i64);
        parameters.scratch("const float", "total", total.place);
        parameters.view("cotangent", &capture.view, capture.dtype, true);
        let (ty, value) = (element(capture.dtype), stored(capture.dtype, "x"));
        let text = format!("DEVICE {ty} rounded(float x) {{ return {value}; }}\n");
        let comment = "rounds the cotangent of a captured array.";
        let source = Source::new("store_capture", comment, &parameters, &text, &[STORE]);
        lowering.launch(Launch {
            source,
            blocks: total.elements.div_ceil(256),
            threads: 256,
            shared_bytes: 0,
            arguments: parameters.arguments,
        });
    }
}
