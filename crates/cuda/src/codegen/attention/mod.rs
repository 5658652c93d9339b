//! Attention and its gradient on `mma.sync`: any GPU from compute capability 8.0 on.
//!
//! Forward: one kernel. Gradient: one that sums over rows of scores first, then a pass that owns keys, one that
//! owns queries and, for arrays whose elements are read by single pairs or at random, one that owns tiles of
//! pairs; then small kernels that bring the sums of captured arrays to their places. A pass is only made where
//! something asks for it.

mod backward;
mod captures;
mod indices;
mod wgmma;

use tilewright_ir::{DType, Error, ErrorKind, Result};
use tilewright_plan::attention::{Attention, AttentionShape};
use tilewright_plan::{AttentionForward, Operation, View};

use super::block_map;
use super::functions::{Functions, Pairs};
use super::launch::{Launch, Lowering, Source, Target, unsupported};
use super::parameters::{Argument, Parameters};
use super::tiles::{self, HopperTiles, Needs, Pass, Tiles};
use super::types::element;
use super::{FRAGMENTS, MACHINE_BARRIERS};

pub(super) use backward::lower as backward;

const TILES: &str = include_str!("../../engines/attention/tiles.cuh");
const SOFTMAX: &str = include_str!("../../engines/attention/softmax.cuh");
const MACHINE_HOPPER: &str = include_str!("../../engines/machine_hopper.cuh");
const FINITE: &str = include_str!("../../engines/attention/finite.cuh");
const FORWARD_BRING: &str = include_str!("../../engines/attention/forward_bring.cuh");
const SOFTMAX_HOPPER: &str = include_str!("../../engines/attention/softmax_hopper.cuh");
const FORWARD_TILES: &str = include_str!("../../engines/attention/forward_tiles.cuh");
const FORWARD_MASKED: &str = include_str!("../../engines/attention/forward_masked.cuh");
const FORWARD_HOPPER: &str = include_str!("../../engines/attention/forward_hopper.cuh");
const FORWARD: &str = include_str!("../../engines/attention/forward.cuh");

/// Lowers an attention.
pub(super) fn forward(forward: &AttentionForward, lowering: &mut Lowering) -> Result<()> {
    let attention = &forward.attention;
    let AttentionShape { batch, heads, queries, .. } = attention.shape;
    // A score function that reads arrays holds addresses and elements beside the score.
    let reads = forward.score.iter().flat_map(|score| &score.instructions);
    let reads = reads.into_iter().any(|instruction| matches!(instruction.operation, Operation::Load(..)));
    let needs = needs(attention, 1 + usize::from(reads))?;
    let plain = forward.score.is_none() && attention.scale > 0.0;
    let hopper = hopper_tiles(attention, needs, plain, lowering.target);
    let mut parameters = common_parameters(attention, lowering);
    parameters.view("output", &forward.output, attention.dtype, true);
    optional(&mut parameters, "unrounded", forward.unrounded.as_ref(), 4, true);
    optional(&mut parameters, "log_sum_exp", forward.log_sum_exp.as_ref(), 3, true);
    optional(&mut parameters, "maximum", forward.maximum.as_ref(), 3, true);
    let tiles = match hopper {
        Some(tiles) => {
            let HopperTiles {
                groups, columns, head, value, shared_bytes, consumer_registers: registers, ..
            } = tiles;
            Tiles { warps: 4 * groups, columns, slices: 1, head, value, shared_bytes, registers }
        }
        None => choose(Pass::Forward, needs, lowering)?,
    };
    let mut constants = common_constants(attention, &tiles);
    let rows = 16 * tiles.warps;
    let items = batch * heads * queries.div_ceil(rows);
    if let Some(tiles) = hopper {
        let AttentionShape { value_size, .. } = attention.shape;
        parameters.integer("items", items as i64);
        constants += &constant("int", "GROUPS", tiles.groups);
        constants += &constant("int", "QUERY_TILES", tiles.query_tiles);
        constants += &constant("int", "STAGES", tiles.stages);
        constants += &constant("int", "BARRIER_BYTES", tiles::FORWARD_BARRIERS);
        constants += &constant("bool", "PLAIN", plain);
        // Under a mask groups may have different work, and turns would make them wait; a score function's arithmetic is
        // worth it.
        constants += &constant("bool", "TURNS", !plain);
        let map = attention.block_map.and_then(|slot| lowering.block_maps[slot]);
        let (rows, columns) = map.map_or((1, 1), |(map, _)| (map.query_block, map.key_block));
        constants += &constant("int", "MAP_ROWS", rows);
        constants += &constant("int", "MAP_COLUMNS", columns);
        let whole = vectors(&forward.output, value_size, attention.dtype);
        constants += &constant("bool", "OUTPUT_VECTOR", whole);
        let whole = forward.unrounded.as_ref().is_some_and(|view| vectors(view, value_size, DType::F32));
        constants += &constant("bool", "UNROUNDED_VECTOR", whole);
        constants += &constant("int", "PRODUCER_REGISTERS", tiles.producer_registers);
        constants += &constant("int", "CONSUMER_REGISTERS", tiles.consumer_registers);
    }
    constants += &constant("bool", "UNROUNDED", forward.unrounded.is_some());
    constants += &constant("bool", "LOG_SUM_EXP", forward.log_sum_exp.is_some());
    constants += &constant("bool", "MAXIMUM", forward.maximum.is_some());
    let mut sites = Vec::new();
    let mut functions = Functions {
        text: constants,
        parameters: &mut parameters,
        sites: &mut sites,
        tables: &attention.tables,
        pairs: Pairs::of(attention),
    };
    functions.mask(attention);
    functions.score(forward.score.as_ref());
    if hopper.is_some() {
        functions.staged_score(forward.score.as_ref());
    }
    let text = functions.text;
    let comment = format!(
        "attention of {} with head size {} and value size {}, in tiles of {rows} queries and {} keys.",
        attention.dtype, attention.shape.head_size, attention.shape.value_size, tiles.columns
    );
    let (source, threads) = if hopper.is_some() {
        let common = [FRAGMENTS, TILES, FINITE, FORWARD_TILES];
        let masked = attention.mask.is_some();
        let own: &[&str] = if masked {
            &[FORWARD_BRING, SOFTMAX_HOPPER, FORWARD_MASKED]
        } else {
            &[SOFTMAX_HOPPER, FORWARD_HOPPER]
        };
        let engine = [&common[..], own].concat();
        let source = Source::new("attention_forward_hopper", &comment, &parameters, &text, &engine);
        let instructions = wgmma::instructions(
            attention.dtype,
            tiles.columns,
            attention.shape.value_size.next_multiple_of(8),
        );
        let source =
            source.with_instructions(format!("{MACHINE_BARRIERS}\n{MACHINE_HOPPER}\n{instructions}"));
        // One more warpgroup brings the tiles.
        (if masked { source.all_at_once() } else { source }, 32 * tiles.warps + 128)
    } else {
        let engine = [FRAGMENTS, TILES, SOFTMAX, FORWARD];
        (Source::new("attention_forward", &comment, &parameters, &text, &engine), 32 * tiles.warps)
    };
    lowering.program.sites.extend(sites);
    lowering.launch(Launch {
        source,
        blocks: items,
        threads,
        shared_bytes: tiles.shared_bytes,
        arguments: parameters.arguments,
    });
    Ok(())
}

/// The tiles for Hopper's own instructions, where they serve: rows that can be copied 16 bytes at a time, and
/// more queries than one warpgroup's, which have keys.
fn hopper_tiles(attention: &Attention, needs: Needs, plain: bool, target: Target) -> Option<HopperTiles> {
    let AttentionShape { queries, keys, head_size, value_size, .. } = attention.shape;
    let views = [(&attention.query, head_size), (&attention.key, head_size), (&attention.value, value_size)];
    let whole = views.into_iter().all(|(view, size)| vectors(view, size, attention.dtype));
    if target.capability != 90 || queries <= 64 || keys == 0 || !whole {
        return None;
    }
    tiles::hopper_tiles(needs, plain, target.shared_bytes)
}

/// What tiles depend on, of a pass that holds so many numbers of a pair at once.
fn needs(attention: &Attention, numbers: usize) -> Result<Needs> {
    let AttentionShape { head_size, value_size, .. } = attention.shape;
    let element = match attention.dtype {
        DType::BF16 | DType::F16 | DType::F32 => attention.dtype.size(),
        DType::F64 | DType::I64 | DType::I32 | DType::U8 | DType::Bool => {
            return Err(
                unsupported(&format!("attention of {}", attention.dtype)).at(attention.origin.clone())
            );
        }
    };
    Ok(Needs {
        element,
        head_size,
        value_size,
        numbers,
        masked: attention.mask.is_some(),
        diagonals: false,
        table_elements: 0,
    })
}

fn choose(pass: Pass, needs: Needs, lowering: &Lowering) -> Result<Tiles> {
    tiles::tiles(pass, needs, lowering.target.shared_bytes).ok_or_else(|| {
        Error::new(ErrorKind::Limit { what: "the head size of attention on a GPU".into(), limit: 256 })
    })
}

/// Sizes, inputs, block map and tables.
fn common_parameters(attention: &Attention, lowering: &Lowering) -> Parameters {
    let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, .. } = attention.shape;
    let mut parameters = Parameters::default();
    for (name, value) in [
        ("batch", batch),
        ("heads", heads),
        ("key_batch", key_batch),
        ("key_heads", key_heads),
        ("queries", queries),
        ("keys", keys),
    ] {
        parameters.integer(name, value as i64);
    }
    parameters.field("double scale", Argument::Float(attention.scale));
    parameters.view("query", &attention.query, attention.dtype, false);
    parameters.view("key", &attention.key, attention.dtype, false);
    parameters.view("value", &attention.value, attention.dtype, false);
    match attention.block_map.and_then(|slot| lowering.block_maps[slot]) {
        Some((map, place)) => block_map::fields(map, place, &mut parameters),
        None => {
            parameters.field("const unsigned char* blocks", Argument::Null);
            parameters.field("int* tickets", Argument::Null);
            for name in ["map_batch", "map_heads", "query_block", "key_block", "query_blocks", "key_blocks"] {
                parameters.integer(name, 1);
            }
        }
    }
    parameters.tables(&attention.tables);
    parameters.faults(lowering.program.sites.len());
    parameters
}

/// A view of scores' type, or a null pointer.
fn optional(parameters: &mut Parameters, name: &str, view: Option<&View>, rank: usize, writable: bool) {
    match view {
        Some(view) => parameters.view(name, view, DType::F32, writable),
        None => {
            parameters.field(format!("float* {name}"), Argument::Null);
            parameters.integers(&format!("{name}_strides"), vec![0; rank]);
        }
    }
}

/// One constant of a kernel's text.
fn constant(ty: &str, name: &str, value: impl std::fmt::Display) -> String {
    format!("constexpr {ty} {name} = {value};\n")
}

fn common_constants(attention: &Attention, tiles: &Tiles) -> String {
    let AttentionShape { head_size, value_size, .. } = attention.shape;
    let mut text = format!("typedef {} Element;\n", element(attention.dtype));
    for (name, value) in [
        ("WARPS", tiles.warps),
        ("COLUMNS", tiles.columns),
        ("HEAD_SIZE", head_size),
        ("HEAD", tiles.head),
        ("VALUE_SIZE", value_size),
        ("VALUE", tiles.value),
    ] {
        text += &constant("int", name, value);
    }
    text += &constant("bool", "MASKED", attention.mask.is_some());
    for (name, view, size) in [
        ("QUERY_VECTOR", &attention.query, head_size),
        ("KEY_VECTOR", &attention.key, head_size),
        ("VALUE_VECTOR", &attention.value, value_size),
    ] {
        text += &constant("bool", name, vectors(view, size, attention.dtype));
    }
    text
}

/// Whether rows can be read 16 bytes at a time; buffers begin at multiples of 16 bytes.
fn vectors(view: &View, size: usize, dtype: DType) -> bool {
    let once = 16 / dtype.size() as isize;
    let (last, outer) = view.strides.split_last().expect("a view of four axes");
    let aligned = |elements: isize| elements % once == 0;
    *last == 1
        && aligned(size as isize)
        && aligned(view.offset)
        && outer.iter().all(|&stride| aligned(stride))
}
