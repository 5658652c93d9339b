//! Scans.
//!
//! Two engines: `scan_rows.cuh`, where steps of the scan lie next to each other in memory, and `scan_lanes.cuh`, where
//! its rows do. Generated are the state, how it is combined, how runs of elements are made of what is loaded, and how
//! results are stored: producers and consumers are part of the scan. A block does whole rows where there are enough of
//! them; where rows are few and long, a block does one tile of a row, and looks back at what others have told.
//!
//! In which order states are combined depends on sizes only: see `scan.cuh`.

use std::fmt::Write;

use tilewright_plan::loops::{Sink, Source};
use tilewright_plan::{Kind, Program, Scan, View};

use super::launch::{Launch, Lowering, Source as Text};
use super::parameters::Parameters;
use super::region::{self, Scope, Site};
use super::types::{element, loaded, register, stored};

const RUNS: &str = include_str!("../engines/scan_runs.cuh");
const ENGINE: &str = include_str!("../engines/scan.cuh");
const ROWS: &str = include_str!("../engines/scan_rows.cuh");
const LANES: &str = include_str!("../engines/scan_lanes.cuh");

/// So many rows keep a GPU busy, a block for each; fewer are cut into tiles. A number of the engine's, not of a GPU's,
/// so that results do not depend on which GPU it is.
const MANY_ROWS: usize = 512;

/// Blocks at most: more rows are taken in turn.
const BLOCKS: usize = 1 << 16;

/// Bytes of a line of the cache: the ticket has one of its own.
const LINE: usize = 128;

/// How a scan is cut.
struct Shape {
    /// Whether lanes run along rows' neighbours instead of along the scan.
    lanes: bool,
    warps: usize,
    rounds: usize,
    run: usize,
    /// Whether blocks do tiles, which look back at the tiles before.
    chained: bool,
}

impl Shape {
    fn of(scan: &Scan) -> Shape {
        let words: usize = kinds(scan)
            .into_iter()
            .map(|kind| if matches!(kind, Kind::F64 | Kind::I64) { 2 } else { 1 })
            .sum();
        let rows: usize = scan.parallel.iter().product();
        let lanes = lanes_along_rows(scan) || words > 32;
        let (run, rounds) = match words {
            0..=2 => (if lanes { 8 } else { 4 }, 8),
            3..=4 => (4, 4),
            5..=8 => (2, 2),
            _ => (1, 1),
        };
        // Short rows leave most of a large block idle; states that fill the registers leave no room for neighbours'.
        let warps = if words > 32 || (!lanes && scan.length <= 32 * run * rounds) {
            1
        } else if lanes {
            8
        } else {
            4
        };
        let rounds = if lanes { 1 } else { rounds };
        let tile = warps * run * if lanes { 1 } else { 32 * rounds };
        let teams = if lanes { rows.div_ceil(32) } else { rows };
        let enough = if lanes { MANY_ROWS / 4 } else { MANY_ROWS };
        let chained = warps > 1 && teams < enough && scan.length > 4 * tile;
        Shape { lanes, warps, rounds, run, chained }
    }

    fn tile(&self) -> usize {
        self.warps * self.run * if self.lanes { 1 } else { 32 * self.rounds }
    }
}

/// Whether most of the arrays have neighbouring rows, rather than steps, next to each other.
fn lanes_along_rows(scan: &Scan) -> bool {
    let axis = scan.parallel.len();
    let Some(inner) = (0..axis).rev().find(|&axis| scan.parallel[axis] > 1) else { return false };
    let loads = scan.sources.iter().chain(&scan.result_sources).filter_map(|source| match source {
        Source::Load { view, .. } => Some(view),
        Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => None,
    });
    let stores = scan.sinks.iter().filter_map(|sink| match sink {
        Sink::Store { view, .. } => Some(view),
        Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => None,
    });
    let vote = |view: &View| match (view.strides[inner], view.strides[axis]) {
        (1, -1..=1) => 0,
        (1, _) => 1,
        (_, 1 | -1) => -1,
        _ => 0,
    };
    loads.chain(stores).map(vote).sum::<i32>() > 0
}

pub(super) fn lower(scan: &Scan, lowering: &mut Lowering) {
    let rows: usize = scan.parallel.iter().product();
    if rows == 0 || scan.length == 0 {
        return;
    }
    let shape = Shape::of(scan);
    let mut parameters = Parameters::default();
    parameters.integers("extents", scan.parallel.iter().map(|&extent| extent as i64));
    parameters.integer("rows", rows as i64);
    parameters.integer("length", scan.length as i64);
    parameters.tables(&scan.tables);
    parameters.faults(lowering.program.sites.len());
    let lanes = if shape.lanes { 32 } else { 1 };
    let teams = rows.div_ceil(lanes);
    let tiles = scan.length.div_ceil(shape.tile());
    let mut blocks = teams.min(BLOCKS);
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
        blocks = teams * tiles;
    }
    let mut writer = Writer { scan, parameters: &mut parameters, sites: Vec::new(), text: String::new() };
    writer.functions();
    let (functions, sites) = (writer.text, writer.sites);
    let Shape { warps, rounds, run, chained, .. } = shape;
    let step = if scan.length < (1 << 31) - 2 * shape.tile() { "int" } else { "long long" };
    let constants = format!(
        "typedef {step} Step;\nconstexpr int STATE = {}, LANES = {lanes}, WARPS = {warps}, ROUNDS = {rounds}, RUN = {run};\n\
         constexpr bool REVERSE = {}, WIDE = {}, CHAINED = {chained}, FLAGGED = {flagged};\n",
        scan.state, scan.reverse, !shape.lanes,
    );
    let comment = format!(
        "a scan, {}; {}.",
        if shape.lanes { "a lane for each row" } else { "threads along each row" },
        if chained { "a block does a tile and looks back" } else { "a block does whole rows" },
    );
    let parts = [RUNS, &functions, ENGINE, if shape.lanes { LANES } else { ROWS }];
    let state = state_type(scan, flagged);
    let source = Text::new("scan", &comment, &parameters, &(constants + &state), &parts);
    lowering.program.sites.extend(sites);
    let state_bytes = 8 * scan.state;
    let states = if shape.lanes { (2 * warps + 3) * 32 } else { 2 * rounds * warps + 3 };
    lowering.launch(Launch {
        source,
        blocks,
        threads: 32 * warps,
        shared_bytes: states * state_bytes + 16,
        arguments: parameters.arguments,
    });
}

/// The kinds of the state's parts.
fn kinds(scan: &Scan) -> Vec<Kind> {
    scan.elements.results.iter().map(|&result| scan.elements.kind(result)).collect()
}

/// The state's type, and how it is handed around: by lanes, and as words in memory.
fn state_type(scan: &Scan, flagged: bool) -> String {
    let mut text = String::from("struct State {\n");
    let kinds = kinds(scan);
    let line = |text: &mut String, line: String| writeln!(text, "{line}").expect("a string takes any text");
    for (i, kind) in kinds.iter().enumerate() {
        line(&mut text, format!("    {} part_{i};", register(*kind)));
    }
    let (mut shuffles, mut reads, mut writes) = (String::new(), String::new(), String::new());
    for (i, kind) in kinds.iter().enumerate() {
        let part = format!("state.part_{i}");
        line(&mut shuffles, format!("    other.part_{i} = shuffle({part}, lane);"));
        let word = format!("word_{i}");
        let (from, to) = match kind {
            Kind::F64 => (format!("double_of_bits({word})"), format!("bits_of_double({part})")),
            Kind::F32 => (format!("float_of_bits((unsigned){word})"), format!("bits_of_float({part})")),
            Kind::I64 => (format!("(long long){word}"), format!("(unsigned long long){part}")),
            Kind::I32 => (format!("(int)(unsigned){word}"), format!("(unsigned){part}")),
            Kind::Bool => (format!("(unsigned){word} != 0"), part.clone()),
        };
        line(&mut reads, format!("    {part} = {from};"));
        let flag = if flagged { "1ull << 32 | " } else { "" };
        line(&mut writes, format!("    store_word(words + {i} * LANES, {flag}{to});"));
    }
    text += "};\n";
    let words = |each: &dyn Fn(usize) -> String, between: &str| -> String {
        (0..kinds.len()).map(each).collect::<Vec<_>>().join(between)
    };
    let load = words(&|i| format!("        word_{i} = load_word(words + {i} * LANES);\n"), "");
    let told = match flagged {
        true => format!("is_told({})", words(&|i| format!("word_{i}"), " & ")),
        false => "true".into(),
    };
    let names = words(&|i| format!("word_{i}"), ", ");
    let reads = format!("    unsigned long long {names};\n    do {{\n{load}    }} while (!{told});\n{reads}");
    text += &format!(
        "DEVICE State shuffle_state(const State& state, int lane) {{\n    State other;\n{shuffles}    return other;\n}}\n\
         DEVICE void read_words(State& state, const unsigned long long* words) {{\n{reads}}}\n\
         DEVICE void write_words(const State& state, unsigned long long* words) {{\n{writes}}}\n"
    );
    text
}

struct Writer<'a> {
    scan: &'a Scan,
    parameters: &'a mut Parameters,
    sites: Vec<Site>,
    text: String,
}

impl Writer<'_> {
    fn line(&mut self, indent: usize, text: impl AsRef<str>) {
        writeln!(self.text, "{:1$}{2}", "", 4 * indent, text.as_ref()).expect("a string takes any text");
    }

    /// `Row` and `row_of`, `combine`, `load_elements`, `store_results`.
    fn functions(&mut self) {
        let scan = self.scan;
        let axes = scan.parallel.len();
        let (mut fields, mut starts) = (String::new(), String::new());
        let (mut bounded, mut bounds, mut limits) = (Vec::new(), String::new(), String::new());
        let field = |fields: &mut String, field: String| {
            writeln!(fields, "    {field};").expect("a string takes any text");
        };
        for axis in 0..axes {
            field(&mut fields, format!("long long axis_{axis}"));
        }
        let mut start = |this: &mut Self, name: &str, view: &View, dtype, writable: bool| {
            this.parameters.view(name, view, dtype, writable);
            let constant = if writable { "" } else { "const " };
            field(&mut fields, format!("{constant}{}* {name}", element(dtype)));
            field(&mut fields, format!("int {name}_shift"));
            starts += &format!("    row.{name} = p.{name} + ({});\n", offset(name, axes));
            starts += &format!(
                "    row.{name}_shift = shift_of(row.{name}, p.{name}_strides[{axes}], (Step)p.length);\n"
            );
        };
        for (prefix, sources) in
            [("source", &scan.sources), ("result", &scan.result_sources), ("captured", &scan.captured)]
        {
            for (i, source) in sources.iter().enumerate() {
                let Source::Load { view, dtype, valid } = source else { continue };
                let name = format!("{prefix}_{i}");
                start(self, &name, view, *dtype, false);
                if let Some((ranges, _)) = valid {
                    let bounds = ranges.iter().flat_map(|&(low, high)| [low as i64, high as i64]);
                    self.parameters.integers(&format!("{name}_valid"), bounds);
                    bounded.push(name);
                }
            }
        }
        // Of a row that an array has not, nothing is there.
        for name in &bounded {
            let within = (0..axes).map(|axis| {
                let (low, high) = (2 * axis, 2 * axis + 1);
                format!("axis_{axis} >= p.{name}_valid[{low}] && axis_{axis} < p.{name}_valid[{high}]")
            });
            let within: Vec<String> = within.collect();
            let there = if within.is_empty() { "true".into() } else { within.join(" && ") };
            bounds += &format!(
                "    row.{name}_low = p.{name}_valid[{}];\n    row.{name}_high = {there} ? (Step)p.{name}_valid[{}] : 0;\n",
                2 * axes,
                2 * axes + 1
            );
            limits += &format!("    Step {name}_low, {name}_high;\n");
        }
        for (i, sink) in scan.sinks.iter().enumerate() {
            // A verified scan only stores.
            if let Sink::Store { view, dtype } = sink {
                start(self, &format!("sink_{i}"), view, *dtype, true);
            }
        }
        self.text += &format!(
            "// A row: where it is along the parallel axes, and where its arrays begin.\nstruct Row {{\n{fields}{limits}}};\n"
        );
        self.line(0, "DEVICE Row row_of(const Parameters& p, long long number) {");
        self.line(1, "Row row;");
        for axis in (0..axes).rev() {
            self.line(
                1,
                format!("long long axis_{axis} = number % p.extents[{axis}]; number /= p.extents[{axis}];"),
            );
            self.line(1, format!("row.axis_{axis} = axis_{axis};"));
        }
        self.text += &starts;
        self.text += &bounds;
        self.line(1, "return row;");
        self.line(0, "}");
        self.combine();
        self.elements();
        self.results();
    }

    fn combine(&mut self) {
        let scan = self.scan;
        self.line(0, "// The combine function.");
        self.line(
            0,
            "DEVICE State combine(const Parameters& p, const Row& row, const State& left, const State& right, bool \
             live, Fault& fault) {",
        );
        let parts = |side: &str| (0..scan.state).map(|i| format!("{side}.part_{i}")).collect::<Vec<_>>();
        // What is captured does not move along the scan: it is read at its beginning.
        let captured = self.sources(1, "captured", &scan.captured, "0", |name| format!("row.{name}[0]"));
        let inputs = [parts("left"), parts("right"), captured].concat();
        let results = self.program(&scan.combine, inputs, "c", "live", 1);
        self.line(1, "State state;");
        for (i, result) in results.iter().enumerate() {
            self.line(1, format!("state.part_{i} = {result};"));
        }
        self.line(1, "return state;");
        self.line(0, "}");
    }

    fn elements(&mut self) {
        let scan = self.scan;
        self.reads("Loaded", "load_sources", "source", &scan.sources);
        self.line(0, "// The elements of a run of steps, of what was read for it.");
        self.line(
            0,
            "DEVICE void elements_of(const Parameters& p, const Row& row, Step step, const Loaded& loaded, State \
             (&states)[RUN], Fault& fault) {",
        );
        self.line(0, "#pragma unroll");
        self.line(1, "for (int j = 0; j < RUN; ++j) {");
        self.line(2, "Step position = position_of(step + j, (Step)p.length);");
        let inputs = self.sources(2, "source", &scan.sources, "position", |name| format!("loaded.{name}[j]"));
        let results = self.program(&scan.elements, inputs, "e", "true", 2);
        for (i, result) in results.iter().enumerate() {
            self.line(2, format!("states[j].part_{i} = {result};"));
        }
        self.line(1, "}");
        self.line(0, "}");
    }

    fn results(&mut self) {
        let scan = self.scan;
        self.reads("LoadedResults", "load_result_sources", "result", &scan.result_sources);
        self.line(0, "// What becomes of the scanned states of a run of steps, and of what was read for it.");
        self.line(
            0,
            "DEVICE void store_results(const Parameters& p, const Row& row, Step step, const LoadedResults& loaded, \
             const State (&states)[RUN], Fault& fault) {",
        );
        let mut stores = String::new();
        for (i, sink) in scan.sinks.iter().enumerate() {
            let Sink::Store { view, dtype } = sink else { continue };
            self.line(1, format!("{} sink_{i}[RUN];", element(*dtype)));
            let axis = view.strides.len() - 1;
            stores += &format!(
                "    store_run(sink_{i}, row.sink_{i}, p.sink_{i}_strides[{axis}], row.sink_{i}_shift, step, (Step)p.length);\n"
            );
        }
        self.line(0, "#pragma unroll");
        self.line(1, "for (int j = 0; j < RUN; ++j) {");
        self.line(2, "Step position = position_of(step + j, (Step)p.length);");
        let states = (0..scan.state).map(|i| format!("states[j].part_{i}")).collect::<Vec<_>>();
        let loads =
            self.sources(2, "result", &scan.result_sources, "position", |name| format!("loaded.{name}[j]"));
        let results = self.program(&scan.results, [states, loads].concat(), "r", "true", 2);
        for (i, (sink, value)) in scan.sinks.iter().zip(&results).enumerate() {
            let Sink::Store { dtype, .. } = sink else { continue };
            self.line(2, format!("sink_{i}[j] = {};", stored(*dtype, value)));
        }
        self.line(1, "}");
        self.text += &stores;
        self.line(0, "}");
    }

    /// A struct for a run of each source, and a function that reads it.
    fn reads(&mut self, name: &str, function: &str, prefix: &str, sources: &[Source]) {
        self.line(0, "// What is read for a run of steps.");
        self.line(0, format!("struct {name} {{"));
        for (i, source) in sources.iter().enumerate() {
            if let Source::Load { dtype, .. } = source {
                self.line(1, format!("{} {prefix}_{i}[RUN];", element(*dtype)));
            }
        }
        self.line(0, "};");
        self.line(
            0,
            format!(
                "DEVICE void {function}(const Parameters& p, const Row& row, Step step, {name}& loaded) {{"
            ),
        );
        self.runs(prefix, sources);
        self.line(0, "}");
    }

    /// Reads a run of each source.
    fn runs(&mut self, prefix: &str, sources: &[Source]) {
        for (i, source) in sources.iter().enumerate() {
            let Source::Load { view, valid, .. } = source else { continue };
            let (name, axis) = (format!("{prefix}_{i}"), view.strides.len() - 1);
            let (low, high) = match valid {
                None => ("0".into(), "(Step)p.length".into()),
                Some(_) => (format!("row.{name}_low"), format!("row.{name}_high")),
            };
            self.line(
                1,
                format!(
                    "load_run(loaded.{name}, row.{name}, p.{name}_strides[{axis}], row.{name}_shift, step, (Step)p.length, \
                     {low}, {high});"
                ),
            );
        }
    }

    /// An expression for each source; `element` says how an element is called that was read.
    fn sources(
        &mut self,
        indent: usize,
        prefix: &str,
        sources: &[Source],
        position: &str,
        element: impl Fn(&str) -> String,
    ) -> Vec<String> {
        let axes = self.scan.parallel.len();
        let mut names = Vec::new();
        for (i, source) in sources.iter().enumerate() {
            let name = format!("{prefix}_{i}");
            names.push(match source {
                Source::Index(axis) if *axis == axes => format!("(long long){position}"),
                Source::Index(axis) => format!("row.axis_{axis}"),
                Source::Load { dtype, valid, .. } => {
                    let read = loaded(*dtype, &element(&name));
                    let ty = register(Kind::of(*dtype));
                    let value = match valid {
                        None => read,
                        Some((_, fill)) => {
                            let fill = region::literal(*fill, Kind::of(*dtype), self.parameters);
                            format!("({position} >= row.{name}_low && {position} < row.{name}_high) ? {read} : {fill}")
                        }
                    };
                    self.line(indent, format!("{ty} {name}_value = {value};"));
                    format!("{name}_value")
                }
                // A verified scan has no phases.
                Source::RowScalar(_) | Source::RowValue(_) => "0".into(),
            });
        }
        names
    }

    fn program(
        &mut self,
        program: &Program,
        inputs: Vec<String>,
        prefix: &str,
        live: &str,
        depth: usize,
    ) -> Vec<String> {
        let indent = " ".repeat(4 * depth);
        let scope = Scope {
            inputs: &inputs,
            tables: &self.scan.tables,
            live,
            indent: &indent,
            prefix,
            ..Scope::default()
        };
        let body = region::write(program, &program.results, scope, self.parameters, &mut self.sites);
        self.text += &body.statements;
        body.results
    }
}

/// How far a row's beginning is from the origin.
fn offset(name: &str, axes: usize) -> String {
    let terms: Vec<String> =
        (0..axes).map(|axis| format!("axis_{axis} * p.{name}_strides[{axis}]")).collect();
    if terms.is_empty() { "0".into() } else { terms.join(" + ") }
}
