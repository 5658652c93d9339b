//! Scans.
//!
//! Three engines: `scan_rows.cuh` and `scan_tiles.cuh`, where steps of the scan lie next to each other in memory, and
//! `scan_lanes.cuh`, where its rows do. Generated are the state, how it is combined, how runs of elements are made of what
//! is loaded, and how results are stored: producers and consumers are part of the scan. A block does whole rows where
//! there are enough of them; where rows are few and long, they are cut into tiles, and a tile looks back at what others
//! have told.
//!
//! In which order states are combined depends on sizes only: see `scan.cuh`.

mod choices;
mod functions;
mod reads;
mod shape;
mod staging;
mod state;

use tilewright_plan::{Kind, Scan};

use super::MACHINE_BARRIERS;
use super::launch::{Launch, Lowering, Source as Text};
use super::parameters::Parameters;
use functions::Writer;
use shape::Shape;
use staging::Staging;
use state::state_type;

const RUNS: &str = include_str!("../../engines/scan_runs.cuh");
const ENGINE: &str = include_str!("../../engines/scan.cuh");
const ROWS: &str = include_str!("../../engines/scan_rows.cuh");
const TILES: &str = include_str!("../../engines/scan_tiles.cuh");
const LANES: &str = include_str!("../../engines/scan_lanes.cuh");

/// Blocks at most: more rows are taken in turn.
const BLOCKS: usize = 1 << 16;

/// Bytes of a line of the cache: the ticket has one of its own.
const LINE: usize = 128;

pub(super) fn lower(scan: &Scan, lowering: &mut Lowering) {
    let rows: usize = scan.parallel.iter().product();
    if rows == 0 || scan.length == 0 {
        return;
    }
    let shape = Shape::of(scan);
    let engine = Engine::of(&shape);
    let mut parameters = Parameters::default();
    parameters.integers("extents", scan.parallel.iter().map(|&extent| extent as i64));
    parameters.integer("rows", rows as i64);
    parameters.integer("length", scan.length as i64);
    parameters.tables(&scan.tables);
    parameters.faults(lowering.program.sites.len());
    let lanes = shape.team;
    let teams = rows.div_ceil(lanes);
    let tiles = scan.length.div_ceil(shape.tile());
    // The flags that are zero where nothing was told yet, and what is told; without a chain, nothing.
    let (groups, stretches) = (tiles.div_ceil(32), tiles.div_ceil(1024));
    let slots = if shape.chained { teams * (tiles + groups + stretches) } else { 0 };
    for (name, value) in
        [("rows_told", teams), ("tiles", tiles), ("groups", groups), ("stretches", stretches)]
    {
        parameters.integer(name, value as i64);
    }
    let words = 8 * slots * scan.state * lanes;
    let flagged = !shape.lanes && kinds(scan).iter().all(|kind| !matches!(kind, Kind::F64 | Kind::I64));
    let cleared = LINE + if flagged { words } else { 4 * slots };
    let place = lowering.scratch(cleared);
    parameters.scratch("unsigned", "ticket", place);
    parameters.scratch("unsigned", "flags", place + LINE);
    let words = if flagged { place + LINE } else { lowering.scratch(words) };
    parameters.scratch("unsigned long long", "words", words);
    if shape.chained {
        lowering.zero(place, cleared);
    }
    let mut writer = Writer::new(scan, shape.lanes, &mut parameters);
    writer.functions();
    let reads = writer.reads();
    let (mut functions, sites) = (writer.text, writer.sites);
    let Shape { warps, rounds, run, chained, .. } = shape;
    let step = if scan.length < (1 << 31) - 2 * shape.tile() { "int" } else { "long long" };
    let mut constants = format!(
        "typedef {step} Step;\nconstexpr int STATE = {}, LANES = {lanes}, WARPS = {warps}, ROUNDS = {rounds}, RUN = {run};\n\
         constexpr bool REVERSE = {}, WIDE = {}, CHAINED = {chained}, FLAGGED = {flagged};\n",
        scan.state, scan.reverse, !shape.lanes,
    );
    let mut shared_bytes = engine.kept_bytes(&shape, 8 * scan.state);
    if let Engine::Tiles = engine {
        let staging = Staging::of(scan, &shape, lowering.target.shared_bytes, shared_bytes);
        constants +=
            &format!("constexpr int STAGES = {}, STAGE_BYTES = {};\n", staging.stages, staging.bytes);
        functions += &staging.functions();
        shared_bytes += staging.stages * staging.bytes;
    }
    let (text, comment) = match engine {
        Engine::Rows => (ROWS, "a scan, threads along each row; a block does whole rows."),
        Engine::Tiles => (TILES, "a scan, threads along each row; a tile looks back."),
        Engine::Lanes if chained => {
            (LANES, "a scan, a lane for each row; a block does a tile and looks back.")
        }
        Engine::Lanes => (LANES, "a scan, a lane for each row; a block does whole rows."),
    };
    if shape.lanes {
        constants += &format!("constexpr int READS = {reads};\n");
    }
    constants += &state_type(scan, flagged);
    let source = Text::new("scan", comment, &parameters, &constants, &[RUNS, &functions, ENGINE, text]);
    lowering.program.sites.extend(sites);
    let arguments = parameters.arguments;
    let launch = match engine {
        Engine::Tiles => {
            let source = source.with_instructions(MACHINE_BARRIERS.into()).all_at_once();
            // One warp more looks back, and one copies.
            Launch { source, blocks: teams * tiles, threads: 32 * (warps + 2), shared_bytes, arguments }
        }
        Engine::Rows | Engine::Lanes => {
            let blocks = if chained { teams * tiles } else { teams.min(BLOCKS) };
            Launch { source, blocks, threads: 32 * warps, shared_bytes, arguments }
        }
    };
    lowering.launch(launch);
}

/// Which engine does a scan.
#[derive(Clone, Copy)]
enum Engine {
    Rows,
    Tiles,
    Lanes,
}

impl Engine {
    fn of(shape: &Shape) -> Engine {
        match (shape.lanes, shape.chained) {
            (true, _) => Engine::Lanes,
            (false, true) => Engine::Tiles,
            (false, false) => Engine::Rows,
        }
    }

    /// Bytes of shared memory beside what is copied ahead, for states of so many bytes at most.
    fn kept_bytes(self, shape: &Shape, state: usize) -> usize {
        let entries = shape.rounds * shape.warps;
        match self {
            Engine::Rows => 2 * entries * state,
            Engine::Tiles => (5 * entries + 2) * state + 128,
            Engine::Lanes => (64 * shape.warps + 3 * shape.team) * state + 16,
        }
    }
}

/// The kinds of the state's parts.
fn kinds(scan: &Scan) -> Vec<Kind> {
    scan.elements.results.iter().map(|&result| scan.elements.kind(result)).collect()
}
