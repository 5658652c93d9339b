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

/// What the sums are by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum By {
    /// The query, or the key.
    Row,
    /// Nothing.
    Head,
    /// q − k, counted from −(keys − 1).
    Difference,
    /// q + k.
    Sum,
}

/// How the sums by a key lie. Of head `i` and tile `j`, the sum of key `x` is element `x + base − j · step` of a line of
/// `line` elements at `i · head_stride + j · tile_stride`, if the line has it; the tiles' sums are added up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    /// What the sums are by.
    pub by: By,
    /// How many keys there are.
    pub count: usize,
    /// How many tiles.
    pub tiles: usize,
    /// Elements of a line.
    pub line: usize,
    /// Elements from a head's first to the next head's.
    pub head_stride: usize,
    /// Elements from a tile's line to the next tile's.
    pub tile_stride: usize,
    /// Where the first tile's line has key 0.
    pub base: i64,
    /// By how many keys a tile's line is ahead of the tile's before.
    pub step: i64,
}

impl Order {
    /// One sum for each of so many queries, or keys.
    pub fn row(count: usize) -> Order {
        let (tiles, tile_stride, base, step) = (1, 0, 0, 0);
        Order { by: By::Row, count, tiles, line: count, head_stride: count, tile_stride, base, step }
    }

    /// The same, for each of so many tiles of all heads.
    pub fn rows_of_tiles(count: usize, heads: usize, tiles: usize) -> Order {
        Order { tiles, tile_stride: heads * count, ..Order::row(count) }
    }

    /// One for each tile.
    pub fn head(tiles: usize) -> Order {
        let (count, line, base, step) = (1, 1, 0, 0);
        Order { by: By::Head, count, tiles, line, head_stride: tiles, tile_stride: 1, base, step }
    }

    /// For each tile, one for each diagonal of a line.
    pub fn diagonals(
        by: By,
        shape: &AttentionShape,
        tiles: usize,
        line: usize,
        (base, step): (i64, i64),
    ) -> Order {
        let AttentionShape { queries, keys, .. } = *shape;
        let count = if queries * keys == 0 { 0 } else { queries + keys - 1 };
        Order { by, count, tiles, line, head_stride: tiles * line, tile_stride: line, base, step }
    }
}

/// Threads that share the sums of a key: as in `captures.cuh`.
const KEYS_AT_ONCE: usize = 32;

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
    // Heads whose elements are the same are added up first.
    let [per_batch, per_head] = indices::depends_on_slice(&reduction.indices);
    let slices = if per_batch { batch } else { batch.min(1) } * if per_head { heads } else { heads.min(1) };
    let groups = slices * order.count.div_ceil(KEYS_AT_ONCE);
    let all = groups * KEYS_AT_ONCE;
    let (values, places) = (lowering.scratch(4 * all), lowering.scratch(4 * all));
    let ranges = lowering.scratch(8 * groups);
    let mut parameters = Parameters::default();
    for (name, value) in [
        ("batch", batch as i64),
        ("heads", heads as i64),
        ("queries", queries as i64),
        ("keys", keys as i64),
        ("count", order.count as i64),
        ("tiles", order.tiles as i64),
        ("line", order.line as i64),
        ("head_stride", order.head_stride as i64),
        ("tile_stride", order.tile_stride as i64),
        ("base", order.base),
        ("step", order.step),
    ] {
        parameters.integer(name, value);
    }
    parameters.scratch("const float", "sums", sums);
    parameters.scratch("float", "values", values);
    parameters.scratch("int", "places", places);
    parameters.scratch("int", "ranges", ranges);
    let tables = &backward.attention.tables;
    parameters.tables(tables);
    let mut sites = Vec::new();
    let mut text = constant("bool", "PER_BATCH", per_batch) + &constant("bool", "PER_HEAD", per_head);
    for (name, by) in [("BY_ROW", By::Row), ("BY_DIFFERENCE", By::Difference), ("BY_SUM", By::Sum)] {
        text += &constant("bool", name, by == order.by);
    }
    let mut functions = Functions {
        text,
        parameters: &mut parameters,
        sites: &mut sites,
        tables,
        pairs: Pairs::of(&backward.attention),
    };
    functions.places(&[(&reduction.indices, &indexed(backward, reduction), 0)]);
    let text = functions.text;
    let comment = "sums by a key, and their places in a captured array.";
    let source = Source::new("capture_values", comment, &parameters, &text, &[VALUES]);
    lowering.launch(Launch {
        source,
        blocks: groups,
        threads: 256,
        shared_bytes: 4 * 256,
        arguments: parameters.arguments,
    });

    let total = &totals[reduction.capture];
    let mut parameters = Parameters::default();
    parameters.integer("groups", groups as i64);
    parameters.integer("elements", total.elements as i64);
    parameters.integer("first", total.fresh.replace(false).into());
    parameters.scratch("const float", "values", values);
    parameters.scratch("const int", "places", places);
    parameters.scratch("const int", "ranges", ranges);
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
