//! The text of a loop nest's kernel.

mod reductions;

use std::fmt::Write;
use std::ops::Range;

use tilewright_ir::DType;
use tilewright_plan::loops::{Phase, RowReduction, Sink, Source};
use tilewright_plan::{Buffer, Kind, Loops, Operation, Program, Register, View};

use reductions::combined;

use super::neighbours::{Neighbours, Run};
use super::{Cut, READ_AT_ONCE, Stage, Style, THREADS, UNROLLED, read_before, scalar_kind, value_kind};
use crate::codegen::parameters::Parameters;
use crate::codegen::region::{self, Scope, Site};
use crate::codegen::types::{element, loaded, register, stored};

pub(super) struct Writer<'a> {
    pub loops: &'a Loops,
    pub cut: &'a Cut,
    pub buffers: &'a [Buffer],
    pub stage: Stage,
    pub parameters: &'a mut Parameters,
    pub sites: Vec<Site>,
    pub text: String,
}

impl Writer<'_> {
    fn line(&mut self, indent: usize, text: impl AsRef<str>) {
        writeln!(self.text, "{:1$}{2}", "", 4 * indent, text.as_ref()).expect("a string takes any text");
    }

    /// The axis that runs lie along, if any.
    fn run_axis(&self) -> Option<usize> {
        let (parallel, row) = (self.loops.parallel.len(), self.loops.row.len());
        match self.cut.style {
            Style::Across { .. } => parallel.checked_sub(1),
            Style::Along { .. } => (row > 0).then(|| parallel + row - 1),
        }
    }

    fn is_across(&self) -> bool {
        matches!(self.cut.style, Style::Across { .. })
    }

    /// How many threads reduce together.
    fn team(&self) -> usize {
        match self.cut.style {
            Style::Along { team } => team,
            Style::Across { warps } => 32 * warps,
        }
    }

    pub fn kernel(&mut self) {
        let index = if self.cut.long { "long long" } else { "unsigned" };
        self.line(0, format!("typedef {index} Index;"));
        self.line(0, format!("constexpr int RUN = {};", self.cut.run));
        self.line(
            0,
            format!(
                "KERNEL void __launch_bounds__({THREADS}) loops(const __grid_constant__ Parameters p) {{"
            ),
        );
        self.line(1, "Fault fault;");
        let units = self.cut.units_of_block();
        // Which of the block's rows, or runs of rows, the thread is with, and which of the threads there it is.
        let (mine, rank, ranks) = match self.cut.style {
            Style::Along { team } => {
                (format!("thread_index() / {team}"), format!("thread_index() % {team}"), team)
            }
            Style::Across { warps: 1 } => ("thread_index()".into(), "0".into(), 1),
            Style::Across { warps } => ("lane_index()".into(), "warp_index()".into(), warps),
        };
        self.line(1, format!("const int mine = {mine}, rank = {rank};"));
        if self.stage == Stage::Parts {
            self.line(
                1,
                "const Index part = block_index() % p.parts, first_block = block_index() / p.parts;",
            );
            self.line(1, "const Index part_length = (p.length + p.parts - 1) / p.parts;");
            self.line(
                1,
                "const Index begin = part * part_length, end = min_of<Index>(begin + part_length, p.length);",
            );
            self.line(1, "const Index blocks = block_count() / p.parts;");
        } else {
            self.line(
                1,
                "const Index first_block = block_index(), blocks = block_count(), begin = 0, end = p.length;",
            );
        }
        for slot in 0..self.loops.row_values {
            match self.cut.held {
                None => self.row_place(slot, units),
                Some(runs) => {
                    let ty = register(value_kind(self.loops, slot));
                    self.line(1, format!("{ty} row_{slot}[{runs}][RUN];"));
                }
            }
        }
        // All threads of a block go round together: they reduce together.
        self.line(
            1,
            format!("for (Index base = first_block * {units}; base < p.units; base += blocks * {units}) {{"),
        );
        self.line(2, "const bool there = base + mine < p.units;");
        self.line(2, "const Index unit = there ? base + mine : p.units - 1;");
        let parallel = self.loops.parallel.len();
        if self.is_across() {
            self.run_of("unit", 0..parallel, 2);
        } else {
            self.axes_of("unit", 0..parallel, 2);
        }
        for slot in 0..self.loops.row_scalars {
            let ty = register(scalar_kind(self.loops, slot));
            let array = if self.is_across() { "[RUN]" } else { "" };
            self.line(2, format!("{ty} scalar_{slot}{array} = {{}};"));
        }
        if self.cut.held.is_some() {
            for (number, phase) in self.loops.phases.iter().enumerate().filter(|(_, phase)| !phase.once) {
                self.declare(number, phase, 2);
            }
        }
        for (number, phase) in self.loops.phases.iter().enumerate() {
            if self.stage == Stage::Parts && number > 0 {
                break;
            }
            let what = if phase.once { "once a row" } else { "each element" };
            self.line(2, format!("// Phase {number}: {what}."));
            self.line(2, "{");
            self.partials(phase);
            if self.stage == Stage::Rest && number == 0 {
                self.parts(phase, ranks);
            } else {
                self.passes(number, phase, ranks);
            }
            self.reduced(phase);
            self.line(2, "}");
        }
        self.line(1, "}");
        self.line(1, "report(fault, p.fault, p.first_site);");
        self.line(0, "}");
    }

    /// A pointer to the row that the thread's team carries.
    fn row_place(&mut self, slot: usize, units: usize) {
        let ty = register(value_kind(self.loops, slot));
        self.line(
            1,
            format!(
                "{ty}* const row_{slot} = p.rows_in_shared ? ({ty}*)(shared_memory() + {} + 8ll * {units} * p.pitch * \
                 {slot}) + mine * p.pitch : p.row_{slot} + (block_index() * {units} + mine) * p.pitch;",
                16 * THREADS
            ),
        );
    }

    /// Goes over the elements of the row, or over its beginning.
    fn passes(&mut self, number: usize, phase: &Phase, ranks: usize) {
        let (parallel, all) = (self.loops.parallel.len(), self.loops.parallel.len() + self.loops.row.len());
        if phase.once {
            for axis in parallel..all {
                self.line(3, format!("const long long axis_{axis} = 0;"));
            }
            self.line(3, "const long long element = 0;");
            if !self.is_across() {
                self.line(3, "constexpr int count = 1;");
            }
            self.line(3, "const bool kept = there && rank == 0;");
            self.phase(number, phase, 3);
            return;
        }
        let Some(runs) = self.cut.held else {
            // Several elements are read at once where nothing is written that they might be.
            let reads = |sink: &Sink| matches!(sink, Sink::Reduce { .. } | Sink::RowScalar(_));
            let unrolled = phase.program.instructions.len() * self.cut.run * READ_AT_ONCE <= UNROLLED;
            if phase.sinks.iter().all(reads) && unrolled {
                self.line(0, format!("#pragma unroll {READ_AT_ONCE}"));
            } else {
                self.line(0, "#pragma unroll 1");
            }
            self.line(3, format!("for (Index element = begin + rank; element < end; element += {ranks}) {{"));
            self.place(parallel..all);
            self.phase(number, phase, 4);
            self.line(3, "}");
            return;
        };
        // The thread's runs are all read before the first is worked on, so that they are under way together.
        let each = format!("for (int k = 0; k < {runs}; ++k) {{");
        let exact = self.cut.length == runs * ranks;
        for loads in [true, false] {
            self.line(0, "#pragma unroll");
            self.line(3, &each);
            // Beyond the row's end the last run is read again: without a branch, reads do not wait for each other.
            let element = match (exact, loads) {
                (false, true) => format!("min_of<Index>(rank + k * {ranks}, end - 1)"),
                _ => format!("rank + k * {ranks}"),
            };
            self.line(4, format!("const Index element = {element};"));
            if !exact && !loads {
                self.line(4, "if (element >= end) continue;");
            }
            self.place(parallel..all);
            self.there(number, phase, 4);
            if loads {
                self.loads(number, phase, 4);
            } else {
                self.compute(number, phase, 4);
            }
            self.line(3, "}");
        }
    }

    /// Where an element, or a run of them, lies along the row's axes.
    fn place(&mut self, row: Range<usize>) {
        if self.is_across() {
            self.axes_of("element", row, 4);
        } else {
            self.run_of("element", row, 4);
        }
        self.line(4, "const bool kept = there;");
    }

    /// Positions along some axes, of a row-major number.
    fn axes_of(&mut self, number: &str, axes: Range<usize>, indent: usize) {
        let first = axes.start;
        if axes.len() > 1 {
            self.line(indent, format!("Index rest_{first} = {number};"));
        }
        for axis in axes.clone().rev() {
            let text = match (axes.len(), axis == first) {
                (1, _) => format!("const long long axis_{axis} = {number};"),
                (_, true) => format!("const long long axis_{axis} = rest_{first};"),
                (_, false) => format!(
                    "const long long axis_{axis} = rest_{first} % (Index)p.extents[{axis}]; rest_{first} /= \
                     (Index)p.extents[{axis}];"
                ),
            };
            self.line(indent, text);
        }
    }

    /// The same of a number of runs, with how many elements the run has.
    fn run_of(&mut self, number: &str, axes: Range<usize>, indent: usize) {
        let Some(last) = axes.clone().next_back() else {
            self.line(indent, "constexpr int count = 1;");
            return;
        };
        if axes.len() == 1 {
            self.line(indent, format!("const long long axis_{last} = (long long){number} * RUN;"));
        } else {
            self.line(indent, format!("const Index runs = ((Index)p.extents[{last}] + RUN - 1) / RUN;"));
            self.line(indent, format!("const Index outer = {number} / runs;"));
            self.line(
                indent,
                format!("const long long axis_{last} = (long long)({number} - outer * runs) * RUN;"),
            );
            self.axes_of("outer", axes.start..last, indent);
        }
        let count = match self.cut.whole {
            true => "constexpr int count = RUN;".into(),
            false => format!("const int count = min_of<long long>(RUN, p.extents[{last}] - axis_{last});"),
        };
        self.line(indent, count);
    }

    /// Whether a phase has a run of values at a time, or one.
    fn items(&self, phase: &Phase) -> &'static str {
        if self.is_across() || !phase.once { "RUN" } else { "1" }
    }

    /// Reads a run, works on it and writes it.
    fn phase(&mut self, number: usize, phase: &Phase, depth: usize) {
        self.declare(number, phase, depth);
        self.there(number, phase, depth);
        self.loads(number, phase, depth);
        self.compute(number, phase, depth);
    }

    /// Which of the runs that a thread holds a phase works on.
    fn held(&self, phase: &Phase) -> &'static str {
        if self.cut.held.is_some() && !phase.once { "[k]" } else { "" }
    }

    /// The axis that a phase's runs lie along, if it has runs.
    fn axis(&self, phase: &Phase) -> Option<usize> {
        self.run_axis().filter(|_| self.items(phase) == "RUN")
    }

    fn extent(&self, axis: usize) -> usize {
        let parallel = self.loops.parallel.len();
        if axis < parallel { self.loops.parallel[axis] } else { self.loops.row[axis - parallel] }
    }

    /// Whether an array has every position along an axis.
    fn is_whole(&self, ranges: &[(usize, usize)], axis: usize) -> bool {
        ranges[axis] == (0, self.extent(axis))
    }

    /// Whether an array has all positions of a run along an axis, or none.
    fn has_whole_runs(&self, ranges: &[(usize, usize)], axis: usize) -> bool {
        let (low, high) = ranges[axis];
        let even = |position: usize| position.is_multiple_of(self.cut.run) || position == self.extent(axis);
        even(low) && even(high)
    }

    fn neighbours(&self, view: &View, axis: Option<usize>) -> Neighbours {
        let extents = [&self.loops.parallel[..], &self.loops.row].concat();
        Neighbours::of(view, axis, self.cut.run, &extents, self.buffers)
    }

    /// What a source is called: what it was read as first, where the thread still holds it.
    fn source(&self, number: usize, i: usize) -> String {
        let (number, i) = self.read_before(number, i).unwrap_or((number, i));
        format!("source_{number}_{i}")
    }

    fn read_before(&self, number: usize, i: usize) -> Option<(usize, usize)> {
        let held = self.cut.held.is_some() && !self.loops.phases[number].once;
        if held { read_before(self.loops, number, i) } else { None }
    }

    /// Names what is read.
    fn declare(&mut self, number: usize, phase: &Phase, depth: usize) {
        let items = self.items(phase);
        let runs = match self.cut.held {
            Some(runs) if !phase.once => format!("[{runs}]"),
            _ => String::new(),
        };
        for (i, source) in phase.sources.iter().enumerate() {
            if self.read_before(number, i).is_some() {
                continue;
            }
            let name = self.source(number, i);
            match source {
                Source::Load { view, dtype, valid } => {
                    self.parameters.view(&name, view, *dtype, false);
                    if let Some((ranges, _)) = valid {
                        let bounds = ranges.iter().flat_map(|&(low, high)| [low as i64, high as i64]);
                        self.parameters.integers(&format!("{name}_valid"), bounds);
                    }
                    self.line(depth, format!("{} {name}{runs}[{items}];", element(*dtype)));
                }
                Source::RowValue(slot) if runs.is_empty() => {
                    let ty = register(value_kind(self.loops, *slot));
                    self.line(depth, format!("{ty} {name}[{items}];"));
                }
                Source::RowValue(_) | Source::Index(_) | Source::RowScalar(_) => {}
            }
        }
    }

    /// Whether what is read lies within the bounds of the axes, but of that along which a run may lie in part.
    fn there(&mut self, number: usize, phase: &Phase, depth: usize) {
        let axis = self.axis(phase);
        for (i, source) in phase.sources.iter().enumerate() {
            let Source::Load { valid: Some((ranges, _)), .. } = source else { continue };
            let name = self.source(number, i);
            let others: Vec<String> = (0..ranges.len())
                .filter(|&of| !self.is_whole(ranges, of))
                .filter(|&of| Some(of) != axis || self.has_whole_runs(ranges, of))
                .map(|of| within(&name, of, &format!("axis_{of}")))
                .collect();
            let others = if others.is_empty() { "true".into() } else { others.join(" && ") };
            self.line(depth, format!("const bool {name}_there = {others};"));
        }
    }

    fn loads(&mut self, number: usize, phase: &Phase, depth: usize) {
        let (items, axis, held) = (self.items(phase), self.axis(phase), self.held(phase));
        for (i, source) in phase.sources.iter().enumerate() {
            if self.read_before(number, i).is_some() {
                continue;
            }
            let name = self.source(number, i);
            match source {
                Source::Load { view, valid, .. } => {
                    let run = Run { name: &name, held, at: self.offset(&name, view.strides.len()), axis };
                    // Not by way of the read-only path: a sink may replace what is read here.
                    let load = run.load(self.neighbours(view, axis));
                    let text = match (valid, axis) {
                        (None, _) => format!("{load};"),
                        (Some((ranges, _)), Some(of)) if !self.has_whole_runs(ranges, of) => {
                            let [low, high] = [0, 1].map(|which| bound(&name, of, which));
                            format!("if ({name}_there) {};", run.load_part(of, &low, &high))
                        }
                        (Some(_), _) => format!("if ({name}_there) {load};"),
                    };
                    self.line(depth, text);
                }
                Source::RowValue(slot) if held.is_empty() => {
                    self.line(
                        depth,
                        format!("load_packed({name}, row_{slot} + element * RUN, {items}, true);"),
                    );
                }
                Source::RowValue(_) | Source::Index(_) | Source::RowScalar(_) => {}
            }
        }
    }

    /// An expression for each input of item j.
    fn inputs(&mut self, number: usize, phase: &Phase) -> Vec<String> {
        let (axis, held) = (self.axis(phase), self.held(phase));
        let mut inputs = Vec::new();
        for (i, source) in phase.sources.iter().enumerate() {
            let name = self.source(number, i);
            inputs.push(match source {
                Source::Index(of) if Some(*of) == axis => format!("(axis_{of} + min_of(j, count - 1))"),
                Source::Index(of) => format!("axis_{of}"),
                Source::RowScalar(slot) if self.is_across() => format!("scalar_{slot}[j]"),
                Source::RowScalar(slot) => format!("scalar_{slot}"),
                Source::RowValue(slot) if !held.is_empty() => format!("row_{slot}{held}[j]"),
                Source::RowValue(_) => format!("{name}[j]"),
                Source::Load { dtype, valid, .. } => {
                    let value = loaded(*dtype, &format!("{name}{held}[j]"));
                    match valid {
                        None => value,
                        Some((ranges, fill)) => {
                            let fill = region::literal(*fill, Kind::of(*dtype), self.parameters);
                            let along = match axis {
                                Some(of) if !self.has_whole_runs(ranges, of) => {
                                    let position = format!("(axis_{of} + min_of(j, count - 1))");
                                    format!(" && {}", within(&name, of, &position))
                                }
                                _ => String::new(),
                            };
                            format!("({name}_there{along} ? {value} : {fill})")
                        }
                    }
                }
            });
        }
        inputs
    }

    fn compute(&mut self, number: usize, phase: &Phase, depth: usize) {
        let (items, axis, held) = (self.items(phase), self.axis(phase), self.held(phase));
        let inputs = self.inputs(number, phase);
        for (i, sink) in phase.sinks.iter().enumerate() {
            let ty = match sink {
                Sink::Store { dtype, .. } => element(*dtype),
                Sink::RowValue(slot) if held.is_empty() => register(value_kind(self.loops, *slot)),
                Sink::RowValue(_) | Sink::Reduce { .. } | Sink::RowScalar(_) => continue,
            };
            self.line(depth, format!("{ty} sink_{number}_{i}[{items}];"));
        }
        self.line(0, "#pragma unroll");
        self.line(depth, format!("for (int j = 0; j < {items}; ++j) {{"));
        // Inputs that are read become registers, so that each is converted once.
        let mut registers = Vec::new();
        for (i, (source, input)) in phase.sources.iter().zip(&inputs).enumerate() {
            let kind = match source {
                Source::Load { dtype, .. } => Kind::of(*dtype),
                Source::RowValue(slot) => value_kind(self.loops, *slot),
                Source::Index(_) | Source::RowScalar(_) => {
                    registers.push(input.clone());
                    continue;
                }
            };
            let name = format!("value_{number}_{i}");
            self.line(depth + 1, format!("const {} {name} = {input};", register(kind)));
            registers.push(name);
        }
        let indent = " ".repeat(4 * (depth + 1));
        let prefix = format!("r{number}_");
        let scope = Scope {
            inputs: &registers,
            tables: &self.loops.tables,
            live: "true",
            indent: &indent,
            prefix: &prefix,
            ..Scope::default()
        };
        let results: Vec<Register> = phase
            .sinks
            .iter()
            .zip(&phase.program.results)
            .map(|(sink, &result)| match sink {
                Sink::Store { dtype, .. } => before_rounding(&phase.program, result, *dtype),
                Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => result,
            })
            .collect();
        let body = region::write(&phase.program, &results, scope, self.parameters, &mut self.sites);
        self.text += &body.statements;
        for (i, ((sink, value), &result)) in
            phase.sinks.iter().zip(&body.results).zip(&phase.program.results).enumerate()
        {
            match sink {
                Sink::Store { dtype, .. } => {
                    self.line(depth + 1, format!("sink_{number}_{i}[j] = {};", stored(*dtype, value)));
                }
                Sink::Reduce { kind, .. } => {
                    let of = phase.program.kind(result);
                    let across = self.is_across();
                    let partial = if across { format!("partial_{i}[j]") } else { format!("partial_{i}") };
                    let next = match kind {
                        RowReduction::ArgMax => {
                            let position = self.position(axis);
                            format!("Greatest<{}>{{{value}, {position}}}", register(of))
                        }
                        _ => value.clone(),
                    };
                    // Rows are a thread's own; of a row's elements only those count that there are.
                    let guard = if across { "" } else { "if (j < count) " };
                    self.line(
                        depth + 1,
                        format!("{guard}{partial} = {};", combined(*kind, of, &partial, &next)),
                    );
                }
                Sink::RowScalar(slot) if self.is_across() => {
                    self.line(depth + 1, format!("scalar_{slot}[j] = {value};"));
                }
                Sink::RowScalar(slot) => self.line(depth + 1, format!("scalar_{slot} = {value};")),
                Sink::RowValue(slot) if !held.is_empty() => {
                    self.line(depth + 1, format!("row_{slot}{held}[j] = {value};"));
                }
                Sink::RowValue(_) => self.line(depth + 1, format!("sink_{number}_{i}[j] = {value};")),
            }
        }
        self.line(depth, "}");
        for (i, sink) in phase.sinks.iter().enumerate() {
            let name = format!("sink_{number}_{i}");
            match sink {
                Sink::Store { view, dtype } => {
                    self.parameters.view(&name, view, *dtype, true);
                    let run = Run { name: &name, held: "", at: self.offset(&name, view.strides.len()), axis };
                    let store = run.store(self.neighbours(view, axis));
                    self.line(depth, format!("if (kept) {store};"));
                }
                Sink::RowValue(slot) if held.is_empty() => {
                    self.line(
                        depth,
                        format!("store_packed({name}, row_{slot} + element * RUN, {items}, true);"),
                    );
                }
                Sink::RowValue(_) | Sink::Reduce { .. } | Sink::RowScalar(_) => {}
            }
        }
    }

    /// The row-major position within the row of an item.
    fn position(&self, axis: Option<usize>) -> String {
        let parallel = self.loops.parallel.len();
        let mut position = String::from("0ll");
        for row in parallel..parallel + self.loops.row.len() {
            let along = if Some(row) == axis { format!("(axis_{row} + j)") } else { format!("axis_{row}") };
            position = format!("({position} * p.extents[{row}] + {along})");
        }
        position
    }

    fn offset(&self, name: &str, axes: usize) -> String {
        let terms: Vec<String> =
            (0..axes).map(|axis| format!("axis_{axis} * p.{name}_strides[{axis}]")).collect();
        if terms.is_empty() { "0".into() } else { terms.join(" + ") }
    }
}

/// A bound of what is there of a source along an axis.
fn bound(name: &str, axis: usize, which: usize) -> String {
    format!("p.{name}_valid[{}]", 2 * axis + which)
}

/// Whether a position along an axis is one that a source has.
fn within(name: &str, axis: usize, position: &str) -> String {
    format!("{position} >= {} && {position} < {}", bound(name, axis, 0), bound(name, axis, 1))
}

/// What a result was before it was rounded to the type in which it is stored: storing rounds.
fn before_rounding(program: &Program, result: Register, dtype: DType) -> Register {
    match program.instructions[result.index()].operation {
        Operation::Round(to, exact) if to == dtype => exact,
        _ => result,
    }
}
