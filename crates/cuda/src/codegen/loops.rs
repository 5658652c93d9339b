//! Fused loop nests.
//!
//! Where phases carry nothing along a row that is walked in parallel, a thread does a row (or one element, if
//! there is nothing to reduce); otherwise a block does a row, its threads taking every n-th element, and reduces
//! by a tree over its threads. Whole rows that later phases read again lie in scratch memory, one for each block.

use std::fmt::Write;

use tilewright_plan::loops::{Lanes, Phase, RowReduction, Sink, Source};
use tilewright_plan::{Kind, Loops};

use super::launch::{Launch, Lowering, Source as Text};
use super::parameters::Parameters;
use super::region::{self, Scope, Site};
use super::types::{loaded, register, stored};

const ENGINE: &str = include_str!("../engines/loops.cuh");

/// Threads of a block that does a row.
const ROW_THREADS: usize = 256;

/// Threads of a block whose threads do rows of their own.
const THREADS: usize = 128;

/// Blocks at most: more rows are taken in turn.
const BLOCKS: usize = 2112;

/// Lowers a loop nest.
pub(super) fn lower(loops: &Loops, lowering: &mut Lowering) {
    let flat = loops.phases.len() == 1 && loops.phases[0].sinks.iter().all(is_store) && !loops.phases[0].once;
    let (parallel, row) = if flat {
        ([&loops.parallel[..], &loops.row].concat(), Vec::new())
    } else {
        (loops.parallel.clone(), loops.row.clone())
    };
    let (rows, length): (usize, usize) = (parallel.iter().product(), row.iter().product());
    let alone = flat || loops.lanes == Lanes::Parallel || length <= 32;
    let (threads, blocks) =
        if alone { (THREADS, rows.div_ceil(THREADS).min(BLOCKS)) } else { (ROW_THREADS, rows.min(BLOCKS)) };
    let mut parameters = Parameters::default();
    parameters.integers("extents", parallel.iter().chain(&row).map(|&extent| extent as i64));
    parameters.integer("rows", rows as i64);
    parameters.integer("length", length as i64);
    // Each row that is in the making at once has a place of its own.
    let places = if alone { blocks * threads } else { blocks };
    for slot in 0..loops.row_values {
        let place = lowering.scratch(8 * places * length);
        let ty = register(value_kind(loops, slot));
        parameters.scratch(ty, &format!("row_{slot}"), place);
    }
    parameters.tables(&loops.tables);
    parameters.faults(lowering.program.sites.len());
    let mut writer = Writer {
        loops,
        parallel: parallel.len(),
        axes: parallel.len() + row.len(),
        alone,
        parameters: &mut parameters,
        sites: Vec::new(),
        text: String::new(),
    };
    writer.kernel();
    let (text, sites) = (writer.text, writer.sites);
    let what = if alone { "a thread" } else { "a block" };
    let comment = format!("a loop nest of {} phases, in which {what} does a row.", loops.phases.len());
    let source = Text::new("loops", &comment, &parameters, "", &[ENGINE, &text]);
    lowering.program.sites.extend(sites);
    lowering.launch(Launch {
        source,
        blocks,
        threads,
        shared_bytes: if alone { 0 } else { 16 * threads },
        arguments: parameters.arguments,
    });
}

fn is_store(sink: &Sink) -> bool {
    matches!(sink, Sink::Store { .. })
}

/// The kind of a row that phases carry.
fn value_kind(loops: &Loops, slot: usize) -> Kind {
    made(loops, |sink| matches!(sink, Sink::RowValue(value) if *value == slot))
}

/// The kind of a number of the row that phases carry.
fn scalar_kind(loops: &Loops, slot: usize) -> Kind {
    let argmax =
        |sink: &Sink| matches!(sink, Sink::Reduce { kind: RowReduction::ArgMax, scalar } if *scalar == slot);
    if loops.phases.iter().any(|phase| phase.sinks.iter().any(argmax)) {
        return Kind::I64;
    }
    made(loops, |sink| match sink {
        Sink::Reduce { scalar, .. } | Sink::RowScalar(scalar) => *scalar == slot,
        Sink::Store { .. } | Sink::RowValue(_) => false,
    })
}

/// The kind of the result that a sink takes; a verified plan has the sink.
fn made(loops: &Loops, is: impl Fn(&Sink) -> bool) -> Kind {
    let results = loops.phases.iter().flat_map(|phase| {
        phase.sinks.iter().zip(phase.program.results.iter().map(|&result| phase.program.kind(result)))
    });
    results.filter(|(sink, _)| is(sink)).map(|(_, kind)| kind).next().unwrap_or(Kind::F64)
}

struct Writer<'a> {
    loops: &'a Loops,
    /// Parallel axes, and all.
    parallel: usize,
    axes: usize,
    /// Whether a thread does a row alone.
    alone: bool,
    parameters: &'a mut Parameters,
    sites: Vec<Site>,
    text: String,
}

impl Writer<'_> {
    fn line(&mut self, indent: usize, text: impl AsRef<str>) {
        writeln!(self.text, "{:1$}{2}", "", 4 * indent, text.as_ref()).expect("a string takes any text");
    }

    fn kernel(&mut self) {
        let threads = if self.alone { THREADS } else { ROW_THREADS };
        self.line(
            0,
            format!(
                "KERNEL void __launch_bounds__({threads}) loops(const __grid_constant__ Parameters p) {{"
            ),
        );
        self.line(1, "Fault fault;");
        if self.alone {
            self.line(1, "long long place = block_index() * thread_count() + thread_index();");
            self.line(1, "long long places = block_count() * thread_count();");
        } else {
            self.line(1, "long long place = block_index(), places = block_count();");
        }
        let (first, step) = if self.alone { ("0", "1") } else { ("thread_index()", "thread_count()") };
        self.line(1, "for (long long row = place; row < p.rows; row += places) {");
        self.axes_of("row", 0..self.parallel, 2);
        for slot in 0..self.loops.row_scalars {
            let kind = scalar_kind(self.loops, slot);
            self.line(2, format!("{} scalar_{slot} = 0;", register(kind)));
        }
        for (number, phase) in self.loops.phases.iter().enumerate() {
            self.line(
                2,
                format!("// Phase {number}: {}.", if phase.once { "once a row" } else { "each element" }),
            );
            self.line(2, "{");
            self.partials(phase);
            if phase.once {
                self.line(3, "long long element = 0;");
                self.axes_of("element", self.parallel..self.axes, 3);
                self.phase(number, phase);
            } else {
                self.line(
                    3,
                    format!("for (long long element = {first}; element < p.length; element += {step}) {{"),
                );
                self.axes_of("element", self.parallel..self.axes, 4);
                self.phase(number, phase);
                self.line(3, "}");
            }
            self.reduced(phase);
            self.line(2, "}");
        }
        self.line(1, "}");
        self.line(1, "report(fault, p.fault, p.first_site);");
        self.line(0, "}");
    }

    /// Positions along some axes, of a row-major number.
    fn axes_of(&mut self, number: &str, axes: std::ops::Range<usize>, indent: usize) {
        if axes.is_empty() {
            return;
        }
        self.line(indent, format!("long long rest_{number} = {number};"));
        for axis in axes.rev() {
            self.line(
                indent,
                format!("long long axis_{axis} = rest_{number} % p.extents[{axis}]; rest_{number} /= p.extents[{axis}];"),
            );
        }
    }

    /// What each reduction of a phase begins with.
    fn partials(&mut self, phase: &Phase) {
        for (number, (sink, &result)) in phase.sinks.iter().zip(&phase.program.results).enumerate() {
            let Sink::Reduce { kind, .. } = sink else { continue };
            let of = phase.program.kind(result);
            let ty = register(of);
            let start = match kind {
                RowReduction::Sum => "0",
                RowReduction::Prod => "1",
                RowReduction::Max => least(of),
                RowReduction::Min => greatest(of),
                RowReduction::ArgMax => {
                    self.line(3, format!("Greatest<{ty}> partial_{number} = {{0, -1}};"));
                    continue;
                }
            };
            self.line(3, format!("{ty} partial_{number} = {start};"));
        }
    }

    fn phase(&mut self, number: usize, phase: &Phase) {
        let indent = " ".repeat(if phase.once { 12 } else { 16 });
        let depth = indent.len() / 4;
        let mut inputs = Vec::new();
        for (i, source) in phase.sources.iter().enumerate() {
            inputs.push(match source {
                Source::Index(axis) => format!("axis_{axis}"),
                Source::RowScalar(slot) => format!("scalar_{slot}"),
                Source::RowValue(slot) => format!("p.row_{slot}[place * p.length + element]"),
                Source::Load { view, dtype, valid } => {
                    let name = format!("source_{number}_{i}");
                    self.parameters.view(&name, view, *dtype, false);
                    let at = self.offset(&name, view.strides.len());
                    // Not by way of the read-only path: a sink may replace what is read here.
                    let read = loaded(*dtype, &format!("p.{name}[{at}]"));
                    let ty = register(Kind::of(*dtype));
                    let value = match valid {
                        None => read,
                        Some((ranges, fill)) => {
                            let bounds = ranges.iter().flat_map(|&(low, high)| [low as i64, high as i64]);
                            self.parameters.integers(&format!("{name}_valid"), bounds);
                            let inside: Vec<String> = (0..ranges.len())
                                .map(|axis| {
                                    let (low, high) = (2 * axis, 2 * axis + 1);
                                    format!(
                                        "axis_{axis} >= p.{name}_valid[{low}] && axis_{axis} < p.{name}_valid[{high}]"
                                    )
                                })
                                .collect();
                            let inside = if inside.is_empty() { "true".into() } else { inside.join(" && ") };
                            let fill = region::literal(*fill, Kind::of(*dtype), self.parameters);
                            format!("{inside} ? {read} : {fill}")
                        }
                    };
                    self.line(depth, format!("{ty} {name} = {value};"));
                    name
                }
            });
        }
        let prefix = format!("r{number}_");
        let scope = Scope {
            inputs: &inputs,
            tables: &self.loops.tables,
            live: "true",
            indent: &indent,
            prefix: &prefix,
        };
        let body =
            region::write(&phase.program, &phase.program.results, scope, self.parameters, &mut self.sites);
        self.text += &body.statements;
        let once = phase.once && !self.alone;
        for (i, ((sink, value), &result)) in
            phase.sinks.iter().zip(&body.results).zip(&phase.program.results).enumerate()
        {
            match sink {
                Sink::Store { view, dtype } => {
                    let name = format!("sink_{number}_{i}");
                    self.parameters.view(&name, view, *dtype, true);
                    let at = self.offset(&name, view.strides.len());
                    let guard = if once { "if (thread_index() == 0) " } else { "" };
                    self.line(depth, format!("{guard}p.{name}[{at}] = {};", stored(*dtype, value)));
                }
                Sink::Reduce { kind, .. } => {
                    let partial = format!("partial_{i}");
                    let of = phase.program.kind(result);
                    let combined = match kind {
                        RowReduction::ArgMax => {
                            format!("greater({partial}, Greatest<{}>{{{value}, element}})", register(of))
                        }
                        kind => combine(*kind, of, &partial, value),
                    };
                    self.line(depth, format!("{partial} = {combined};"));
                }
                Sink::RowScalar(slot) => self.line(depth, format!("scalar_{slot} = {value};")),
                Sink::RowValue(slot) => {
                    self.line(depth, format!("p.row_{slot}[place * p.length + element] = {value};"));
                }
            }
        }
    }

    /// What the partial results of a phase's reductions come to.
    fn reduced(&mut self, phase: &Phase) {
        for (i, (sink, &result)) in phase.sinks.iter().zip(&phase.program.results).enumerate() {
            let Sink::Reduce { kind, scalar } = sink else { continue };
            let of = phase.program.kind(result);
            let ty = register(of);
            let (ty, combined) = match kind {
                RowReduction::ArgMax => (format!("Greatest<{ty}>"), "greater(x, y)".into()),
                kind => (ty.to_string(), combine(*kind, of, "x", "y")),
            };
            let total = if self.alone {
                format!("partial_{i}")
            } else {
                format!("reduce_block(partial_{i}, []({ty} x, {ty} y) -> {ty} {{ return {combined}; }})")
            };
            let position = if *kind == RowReduction::ArgMax { ".position" } else { "" };
            self.line(3, format!("scalar_{scalar} = {total}{position};"));
        }
        // Rows are read where other threads wrote them.
        if !self.alone && phase.sinks.iter().any(|sink| matches!(sink, Sink::RowValue(_))) {
            self.line(3, "sync_threads();");
        }
    }

    fn offset(&self, name: &str, axes: usize) -> String {
        let terms: Vec<String> =
            (0..axes.min(self.axes)).map(|axis| format!("axis_{axis} * p.{name}_strides[{axis}]")).collect();
        if terms.is_empty() { "0".into() } else { terms.join(" + ") }
    }
}

/// Two partial results as one.
fn combine(kind: RowReduction, of: Kind, x: &str, y: &str) -> String {
    use tilewright_ir::Binary;
    let function = match kind {
        RowReduction::Sum => Binary::Add,
        RowReduction::Prod => Binary::Mul,
        RowReduction::Max | RowReduction::ArgMax => Binary::Max,
        RowReduction::Min => Binary::Min,
    };
    region::binary(function, of, x, y)
}

fn least(kind: Kind) -> &'static str {
    match kind {
        Kind::F64 => "-infinity<double>()",
        Kind::F32 => "-infinity<float>()",
        Kind::I64 => "-9223372036854775807ll - 1",
        Kind::I32 => "-2147483647 - 1",
        Kind::Bool => "false",
    }
}

fn greatest(kind: Kind) -> &'static str {
    match kind {
        Kind::F64 => "infinity<double>()",
        Kind::F32 => "infinity<float>()",
        Kind::I64 => "9223372036854775807ll",
        Kind::I32 => "2147483647",
        Kind::Bool => "true",
    }
}
