//! Which tiles fit: a search over registers and shared memory, instead of trial and error.
//!
//! Candidates are listed best first; the first one that fits is taken. A thread's registers are estimated as
//! what must live at once at the fullest point of the loop, plus a fixed number for addresses, operands and the
//! walk; the tests hold the estimate against what the compiler reports.

/// What a pass of an attention needs, as far as tiles depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Needs {
    /// Bytes of an element.
    pub element: usize,
    /// Size of a query or key vector.
    pub head_size: usize,
    /// Size of a value vector.
    pub value_size: usize,
    /// Numbers of a pair, beside its weight, that live at once: a raw score, a cotangent, terms.
    pub numbers: usize,
    /// Whether a mask stands in the way of whole products: the panel for weights that are not finite.
    pub masked: bool,
    /// Whether terms are added along diagonals, by way of shared memory.
    pub diagonals: bool,
    /// Elements of tables that each warp has a copy of.
    pub table_elements: usize,
}

/// The tiles of a pass on `mma.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// Warps of a block; each owns 16 rows.
    pub warps: usize,
    /// Columns of a tile.
    pub columns: usize,
    /// Parts that the columns of cotangents are cut into, each for a block of its own.
    pub slices: usize,
    /// Head size, padded.
    pub head: usize,
    /// Value size, padded.
    pub value: usize,
    /// Bytes of shared memory.
    pub shared_bytes: usize,
    /// Registers of a thread, estimated.
    pub registers: usize,
}

/// Which pass the tiles are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Output from queries, which own the rows.
    Forward,
    /// Cotangents of keys and values: keys own the rows.
    Keys,
    /// Cotangents of queries.
    Queries,
    /// Terms only.
    Pairs,
}

/// Registers of a thread that a kernel may use: above these the compiler spills.
const REGISTERS: usize = 240;

/// Registers for addresses, operands of the products and the walk; the assembler keeps more operands under way where
/// rows are long.
fn overhead(pass: Pass, head: usize, columns: usize) -> usize {
    let long = if head > 128 { columns } else { 0 };
    match pass {
        Pass::Keys => 104 + long,
        Pass::Forward | Pass::Queries | Pass::Pairs => 84 + long,
    }
}

/// Elements between the end of a tile's row and the next.
const PADDING: usize = 8;

/// The best tiles that fit into so much shared memory; where none leave enough registers, those that need the
/// fewest. None where no tiles fit into shared memory.
pub fn tiles(pass: Pass, needs: Needs, shared_bytes: usize) -> Option<Tiles> {
    // Warps, columns, slices. A slice more costs two products; narrow tiles cost operands that are loaded again.
    let whole = [(4, 64, 1), (4, 32, 1)];
    let sliced = [(4, 64, 2), (4, 32, 2)];
    let narrow =
        [(4, 16, 1), (4, 16, 2), (4, 16, 4), (2, 32, 1), (2, 16, 1), (2, 16, 2), (2, 16, 4), (1, 16, 1)];
    let shapes = whole.into_iter().chain(sliced).chain(narrow);
    let fitting = shapes
        .filter(|(.., slices)| pass == Pass::Keys || *slices == 1)
        .map(|(warps, columns, slices)| measured(pass, needs, warps, columns, slices))
        .filter(|tiles| tiles.shared_bytes <= shared_bytes);
    let all: Vec<Tiles> = fitting.collect();
    let best = all.iter().find(|tiles| tiles.registers <= REGISTERS);
    best.or_else(|| all.iter().min_by_key(|tiles| tiles.registers)).copied()
}

/// The tiles of the forward on Hopper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HopperTiles {
    /// Warpgroups that multiply, each for 64 queries.
    pub groups: usize,
    /// Keys of a tile.
    pub columns: usize,
    /// Tiles of queries that there is room for: two, so that the next one is there when one is done with, or one.
    pub query_tiles: usize,
    /// Tiles of keys, and of values, that there is room for.
    pub stages: usize,
    /// Head size, padded to whole panels.
    pub head: usize,
    /// Value size, padded.
    pub value: usize,
    /// Registers of a thread of the warpgroup that brings the tiles.
    pub producer_registers: usize,
    /// Registers of a thread of the two that multiply.
    pub consumer_registers: usize,
    /// Bytes of shared memory.
    pub shared_bytes: usize,
}

/// The best tiles of the forward on Hopper, `plain` where there is no score function; none where they do not fit, or
/// elements have not two bytes.
pub fn hopper_tiles(needs: Needs, plain: bool, shared_bytes: usize) -> Option<HopperTiles> {
    let (head, value) = (needs.head_size.next_multiple_of(64), needs.value_size.next_multiple_of(64));
    let measured = |(groups, columns): (usize, usize), (query_tiles, stages): (usize, usize)| {
        // Of 504 for one thread of each of three warpgroups, or 512 for four.
        let (producer_registers, consumer_registers) = match groups {
            2 if columns > 128 || value > 192 && !needs.masked => (56, 224),
            2 => (72, 216),
            _ => (56, 152),
        };
        let elements = 64 * groups * head * query_tiles + stages * columns * (head + value);
        let panels = if needs.masked { 4 * groups * 16 * (columns + 8) * 2 } else { 0 };
        // A score, its weight rounded and the output; what the score function holds.
        let registers = columns / 2 + columns / 4 + value / 2 + 28 + 24 * (needs.numbers - 1);
        let shared_bytes = 2 * elements + panels + FORWARD_BARRIERS;
        let tiles = HopperTiles {
            groups,
            columns,
            query_tiles,
            stages,
            head,
            value,
            producer_registers,
            consumer_registers,
            shared_bytes,
        };
        (tiles, registers)
    };
    let fits = |(tiles, registers): &(HopperTiles, usize)| {
        tiles.shared_bytes <= shared_bytes && *registers <= tiles.consumer_registers
    };
    // A product has at most 256 columns.
    let possible = needs.element == 2 && head * value > 0 && head.max(value) <= 256;
    // As measured: a third group pays for small heads, where nothing but the softmax stands between the products.
    let third = (!needs.masked && plain && head.max(value) == 64).then_some((3, 112));
    // Tiles of queries, and stages: under a mask blocks go on to the next queries.
    let ahead = if needs.masked { [(2, 4), (2, 2), (1, 2)].as_slice() } else { &[(1, 2)] };
    let shapes = [(2, 128), (2, 96), (2, 80), (2, 64), (2, 32)];
    third
        .into_iter()
        .chain(shapes)
        .flat_map(|shape| ahead.iter().map(move |&ahead| measured(shape, ahead)))
        .find(|found| possible && fits(found))
        .map(|(tiles, _)| tiles)
}

/// Bytes of the forward's barriers and what goes by them, at most.
pub const FORWARD_BARRIERS: usize = 512;

/// What the one pass of the gradient on Hopper needs, as far as tiles depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OnePassNeeds {
    /// Size of a query or key vector.
    pub head_size: usize,
    /// Size of a value vector.
    pub value_size: usize,
    /// Terms that are summed by query.
    pub rows: usize,
    /// Terms that are summed by head.
    pub heads: usize,
    /// Terms that are summed along diagonals.
    pub diagonals: usize,
    /// Terms of captures that pairs own: 1 at most.
    pub pairs: usize,
    /// Whether each query has a gain.
    pub row_gains: bool,
}

/// The tiles of the one pass: 128 keys, two warpgroups of 64 each, two stages of queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OnePassTiles {
    /// Queries of a tile.
    pub columns: usize,
    /// Head size, padded to whole panels.
    pub head: usize,
    /// Value size, padded.
    pub value: usize,
    /// Registers of a thread of the warpgroup that brings the tiles.
    pub producer_registers: usize,
    /// Registers of a thread of the two that multiply.
    pub consumer_registers: usize,
    /// Tiles' parts of the queries' cotangents that there is room for: two, so that one may wait for its turn, or one.
    pub sum_tiles: usize,
    /// Floats of shared memory for sums of terms.
    pub term_floats: usize,
    /// Bytes of shared memory.
    pub shared_bytes: usize,
}

impl OnePassTiles {
    /// What the passes have in common.
    pub fn common(&self) -> Tiles {
        let OnePassTiles { columns, head, value, shared_bytes, consumer_registers: registers, .. } = *self;
        Tiles { warps: 8, columns, slices: 1, head, value, shared_bytes, registers }
    }
}

/// The tiles of the gradient's one pass on Hopper; none where they do not fit.
pub fn one_pass_tiles(needs: OnePassNeeds, shared_bytes: usize) -> Option<OnePassTiles> {
    let (head, value) = (needs.head_size.next_multiple_of(64), needs.value_size.next_multiple_of(64));
    // Sums of keys' and values' cotangents, scores and slopes take half a register a column each: 192 at most.
    let columns = match (head, value) {
        (64, 64) => [128, 64].as_slice(),
        (128, 64 | 128) => [64].as_slice(),
        _ => return None,
    };
    let mut found = columns.iter().flat_map(|&columns| {
        // As measured: beside wide tiles a second place for sums takes registers, and gains nothing.
        let most = if columns == 64 { 2 } else { 1 };
        (1..=most).rev().map(move |sum_tiles| one_pass_measured(needs, columns, sum_tiles, head, value))
    });
    found.find(|tiles| tiles.shared_bytes <= shared_bytes)
}

fn one_pass_measured(
    needs: OnePassNeeds,
    columns: usize,
    sum_tiles: usize,
    head: usize,
    value: usize,
) -> OnePassTiles {
    const KEYS: usize = 128;
    let of_diagonals = 16 * (columns + 16) + 256;
    let term_floats = 16 * columns * needs.rows + of_diagonals * needs.diagonals + 8 * needs.heads;
    let term_floats = term_floats.next_multiple_of(4);
    let elements = KEYS * (head + value) + 2 * columns * (head + value) + 2 * KEYS * columns;
    let rows = if needs.row_gains { 6 } else { 4 };
    let floats = sum_tiles * columns * head + rows * columns + term_floats + needs.pairs * columns * KEYS;
    OnePassTiles {
        columns,
        head,
        value,
        producer_registers: 24,
        consumer_registers: 240,
        sum_tiles,
        term_floats,
        // Barriers, tiles that were walked to, and which keys the block owns.
        shared_bytes: 2 * elements + 4 * floats + 17 * 8 + 4 * 20 + 6 * 4,
    }
}

fn measured(pass: Pass, needs: Needs, warps: usize, columns: usize, slices: usize) -> Tiles {
    let head = needs.head_size.max(1).next_multiple_of(16 * slices);
    let value = needs.value_size.max(1).next_multiple_of(16 * slices);
    let rows = 16 * warps;
    let (head_row, value_row) = (head + PADDING, value + PADDING);
    let elements = match pass {
        Pass::Forward => rows * head_row + columns * (head_row + value_row),
        Pass::Keys | Pass::Queries | Pass::Pairs => (rows + columns) * (head_row + value_row),
    };
    let rows_of_scores = match pass {
        Pass::Forward => 0,
        Pass::Keys => 2 * columns,
        Pass::Queries | Pass::Pairs => 2 * rows,
    };
    let panel = if needs.masked { warps * (16 * (columns + 1) + 64) } else { 0 };
    let diagonals = if needs.diagonals { rows * (columns + 1) } else { 0 };
    // Sums of heads: few, and rounded up to one for each of the terms.
    let floats = rows_of_scores + panel.max(diagonals) + warps * (needs.table_elements + needs.numbers);
    let sums = match pass {
        Pass::Forward => value,
        Pass::Keys => (head + value) / slices,
        Pass::Queries => head,
        Pass::Pairs => columns,
    };
    Tiles {
        warps,
        columns,
        slices,
        head,
        value,
        shared_bytes: elements * needs.element + 4 * floats,
        // Half a number a thread for each column: 16 rows over 32 lanes.
        registers: sums / 2 + columns / 2 * (1 + needs.numbers) + overhead(pass, head, columns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(element: usize, size: usize, masked: bool) -> Needs {
        let (numbers, diagonals, table_elements) = (1, false, 0);
        Needs { element, head_size: size, value_size: size, numbers, masked, diagonals, table_elements }
    }

    #[test]
    fn every_head_size_up_to_256_has_tiles_on_every_gpu() {
        // 99 KB: what a block may use on the smaller GPUs of this generation.
        for shared_bytes in [99 << 10, 163 << 10, 227 << 10] {
            for element in [2, 4] {
                for size in 1..=256 {
                    for masked in [false, true] {
                        for pass in [Pass::Forward, Pass::Keys, Pass::Queries, Pass::Pairs] {
                            let tiles = tiles(pass, needs(element, size, masked), shared_bytes);
                            assert!(tiles.is_some(), "{pass:?}, {size}, {element} bytes, {shared_bytes}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn hopper_has_tiles_for_half_types_up_to_256() {
        for (masked, largest) in [(false, 80), (true, 64)] {
            let columns =
                |size| hopper_tiles(needs(2, size, masked), false, 227 << 10).map(|tiles| tiles.columns);
            assert_eq!([64, 96, 128].map(columns), [Some(128); 3]);
            assert_eq!([192, 256].map(columns), [Some(96), Some(largest)]);
        }
        let plain = hopper_tiles(needs(2, 64, false), true, 227 << 10).map(|tiles| tiles.columns);
        assert_eq!(plain, Some(112));
        assert_eq!(hopper_tiles(needs(4, 64, false), true, 227 << 10), None);
        assert_eq!(hopper_tiles(needs(2, 320, false), true, 227 << 10), None);
    }

    #[test]
    fn common_sizes_have_wide_tiles() {
        let shape = |pass, size| {
            let tiles = tiles(pass, needs(2, size, true), 163 << 10).unwrap();
            (tiles.warps, tiles.columns, tiles.slices)
        };
        assert_eq!(shape(Pass::Forward, 64), (4, 64, 1));
        assert_eq!(shape(Pass::Forward, 128), (4, 64, 1));
        assert_eq!(shape(Pass::Keys, 64), (4, 64, 1));
        assert_eq!(shape(Pass::Keys, 128), (4, 64, 2));
        assert_eq!(shape(Pass::Keys, 256), (4, 16, 4));
        assert_eq!(shape(Pass::Queries, 128), (4, 64, 1));
        assert_eq!(shape(Pass::Queries, 192), (4, 16, 1));
    }
}
