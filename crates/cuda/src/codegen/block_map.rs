//! Block maps.

use tilewright_plan::BlockMap;

use super::functions::{Functions, Pairs};
use super::intervals;
use super::launch::{Launch, Lowering, Source};
use super::parameters::Parameters;

const INTERVALS: &str = include_str!("../engines/intervals.cuh");
const ENGINE: &str = include_str!("../engines/block_map.cuh");

/// Blocks of queries and of keys.
fn blocks(map: &BlockMap) -> (usize, usize) {
    (map.queries.div_ceil(map.query_block), map.keys.div_ceil(map.key_block))
}

/// How many blocks there are, of all slices: a byte each.
fn count(map: &BlockMap) -> usize {
    let (queries, keys) = blocks(map);
    map.batch * map.heads * queries * keys
}

/// Where the number of tickets lies, after a map's blocks, that whoever shares out work by the map has drawn.
fn tickets(map: &BlockMap) -> usize {
    count(map).next_multiple_of(4)
}

/// Bytes of a map.
pub(super) fn bytes(map: &BlockMap) -> usize {
    tickets(map) + 4
}

/// The fields by which kernels read a map.
pub(super) fn fields(map: &BlockMap, place: usize, parameters: &mut Parameters) {
    let (queries, keys) = blocks(map);
    parameters.scratch("unsigned char", "blocks", place);
    parameters.scratch("int", "tickets", place + tickets(map));
    for (name, value) in [
        ("map_batch", map.batch),
        ("map_heads", map.heads),
        ("query_block", map.query_block),
        ("key_block", map.key_block),
        ("query_blocks", queries),
        ("key_blocks", keys),
    ] {
        parameters.integer(name, value as i64);
    }
}

pub(super) fn lower(map: &BlockMap, lowering: &mut Lowering) {
    let (_, place) = lowering.block_maps[map.slot].expect("each map of the plan has a place");
    let mut parameters = Parameters::default();
    fields(map, place, &mut parameters);
    parameters.integer("queries", map.queries as i64);
    parameters.integer("keys", map.keys as i64);
    parameters.tables(&map.tables);
    parameters.faults(lowering.program.sites.len());
    let mut sites = Vec::new();
    let mut functions = Functions {
        text: String::new(),
        parameters: &mut parameters,
        sites: &mut sites,
        tables: &map.tables,
        pairs: Pairs { sizes: [map.batch, map.heads, map.queries, map.keys], approximate: false },
    };
    functions.mask_program(&map.mask);
    let mut text = functions.text;
    text += INTERVALS;
    text += &intervals::write(&map.mask, &map.tables, &mut parameters);
    text += &format!("constexpr bool FOLLOWED = {};\n", intervals::follows_loads(&map.mask, &map.tables));
    let source = Source::new("block_map", "finds which blocks a mask leaves.", &parameters, &text, &[ENGINE]);
    lowering.program.sites.extend(sites);
    lowering.launch(Launch {
        source,
        blocks: count(map).div_ceil(4),
        threads: 128,
        shared_bytes: 0,
        arguments: parameters.arguments,
    });
}
