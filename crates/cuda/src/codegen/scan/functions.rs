//! The functions of a scan that are generated: rows, how states are combined, how runs of elements are read and stored.

use std::fmt::Write;

use tilewright_plan::loops::{Sink, Source};
use tilewright_plan::{Kind, Operation, Program, Register, Scan, View};

use crate::codegen::parameters::Parameters;
use crate::codegen::region::{self, Scope, Site};
use crate::codegen::types::{element, loaded, register, stored};

use super::choices::Choices;
use super::reads::{self, Read};

/// What stands in a loop over a run's steps.
const EACH_STEP: Scope = Scope {
    inputs: &[],
    tables: &[],
    live: "true",
    indent: "        ",
    prefix: "",
    facts: &[],
    given: &[],
    approximate: false,
};

pub(super) struct Writer<'a> {
    pub scan: &'a Scan,
    /// Whether a lane takes a row.
    lanes: bool,
    reads: Vec<Read<'a>>,
    choices: Choices,
    pub parameters: &'a mut Parameters,
    pub sites: Vec<Site>,
    pub text: String,
}

impl<'a> Writer<'a> {
    pub fn new(scan: &'a Scan, lanes: bool, parameters: &'a mut Parameters) -> Writer<'a> {
        let choices = Choices::of(scan, parameters);
        let reads = reads::of(scan, lanes);
        Writer { scan, lanes, reads, choices, parameters, sites: Vec::new(), text: String::new() }
    }

    /// How many arrays are read along the scan.
    pub fn reads(&self) -> usize {
        self.reads.len()
    }

    fn line(&mut self, indent: usize, text: impl AsRef<str>) {
        writeln!(self.text, "{:1$}{2}", "", 4 * indent, text.as_ref()).expect("a string takes any text");
    }

    /// `Row` and `row_of`, `combine`, `load_elements`, `store_results`.
    pub fn functions(&mut self) {
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
            let stride = this.stride_along(name, view);
            starts += &format!("    row.{name}_shift = shift_of(row.{name}, {stride}, (Step)p.length);\n");
        };
        for (prefix, sources) in
            [("source", &scan.sources), ("result", &scan.result_sources), ("captured", &scan.captured)]
        {
            for (i, source) in sources.iter().enumerate() {
                let Source::Load { view, dtype, valid } = source else { continue };
                let name = format!("{prefix}_{i}");
                if self.read_of(&name).is_none_or(|(read, _)| read.name == name) {
                    start(self, &name, view, *dtype, false);
                }
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
        // A division of 64 bits takes as long as a trip to memory.
        let rows: usize = scan.parallel.iter().product();
        let ty = if rows < 1 << 31 { "unsigned" } else { "long long" };
        self.line(0, "DEVICE Row row_of(const Parameters& p, long long number) {");
        self.line(1, "Row row;");
        self.line(1, format!("{ty} rest = ({ty})number;"));
        for axis in (0..axes).rev() {
            let value = if axis == 0 { "rest".into() } else { format!("rest % ({ty})p.extents[{axis}]") };
            self.line(1, format!("long long axis_{axis} = {value};"));
            if axis > 0 {
                self.line(1, format!("rest /= ({ty})p.extents[{axis}];"));
            }
            self.line(1, format!("row.axis_{axis} = axis_{axis};"));
        }
        self.text += &starts;
        self.text += &bounds;
        self.line(1, "return row;");
        self.line(0, "}");
        let mut there: String = bounded
            .iter()
            .map(|name| format!(" && begin >= row.{name}_low && end <= row.{name}_high"))
            .collect();
        if let Some((low, high)) = self.choices.stretch {
            self.parameters.integers("stretch", [low as i64, high as i64]);
            there += " && begin >= (Step)p.stretch[0] && end <= (Step)p.stretch[1]";
        }
        self.line(
            0,
            "// Whether all sources have all positions of a tile, and choices by position are known there.",
        );
        self.line(0, "DEVICE bool all_there(const Parameters& p, const Row& row, Step begin, Step end) {");
        self.line(1, format!("return true{there};"));
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
        let captured = self.sources(1, "captured", &scan.captured, "0", |_, name| format!("row.{name}[0]"));
        let inputs = [parts("left"), parts("right"), captured].concat();
        let scope = Scope { inputs: &inputs, live: "live", indent: "    ", prefix: "c", ..Scope::default() };
        let results = self.program(&scan.combine, &scan.combine.results, scope);
        self.line(1, "State state;");
        for (i, result) in results.iter().enumerate() {
            self.line(1, format!("state.part_{i} = {result};"));
        }
        self.line(1, "return state;");
        self.line(0, "}");
    }

    fn elements(&mut self) {
        let scan = self.scan;
        self.read_runs("Loaded", "load_sources", false);
        self.line(0, "// The elements of a run of steps, of what was read for it. WHOLE: none is beyond the row's end, and all was read.");
        self.line(0, "template <bool WHOLE = false>");
        self.line(
            0,
            "DEVICE void elements_of(const Parameters& p, const Row& row, Step step, const Loaded& loaded, State \
             (&states)[RUN], Fault& fault) {",
        );
        self.line(0, "#pragma unroll");
        self.line(1, "for (int j = 0; j < RUN; ++j) {");
        self.line(2, "Step position = position_of<WHOLE>(step + j, (Step)p.length);");
        let inputs =
            self.sources(2, "source", &scan.sources, "position", |this, name| this.element(name, false));
        let known = self.choices.elements.clone();
        let scope = Scope { inputs: &inputs, given: &known, prefix: "e", ..EACH_STEP };
        let results = self.program(&scan.elements, &scan.elements.results, scope);
        for (i, result) in results.iter().enumerate() {
            self.line(2, format!("states[j].part_{i} = {result};"));
        }
        self.line(1, "}");
        self.line(0, "}");
    }

    fn results(&mut self) {
        let scan = self.scan;
        self.read_runs("LoadedResults", "load_result_sources", true);
        self.line(0, "// What becomes of the scanned states of a run of steps, and of what was read for it.");
        self.line(0, "template <bool WHOLE = false>");
        let early = if self.lanes { "const Loaded& early, " } else { "" };
        self.line(
            0,
            format!(
                "DEVICE void store_results(const Parameters& p, const Row& row, Step step, {early}const LoadedResults& \
                 loaded, const State (&states)[RUN], Fault& fault) {{"
            ),
        );
        let mut stores = String::new();
        for (i, sink) in scan.sinks.iter().enumerate() {
            let Sink::Store { view, dtype } = sink else { continue };
            self.line(1, format!("{} sink_{i}[RUN];", element(*dtype)));
            let stride = self.stride_along(&format!("sink_{i}"), view);
            stores += &format!(
                "    store_run<WHOLE>(sink_{i}, row.sink_{i}, {stride}, row.sink_{i}_shift, step, (Step)p.length);\n"
            );
        }
        self.line(0, "#pragma unroll");
        self.line(1, "for (int j = 0; j < RUN; ++j) {");
        self.line(2, "Step position = position_of<WHOLE>(step + j, (Step)p.length);");
        let states = (0..scan.state).map(|i| format!("states[j].part_{i}")).collect::<Vec<_>>();
        let loads = self
            .sources(2, "result", &scan.result_sources, "position", |this, name| this.element(name, true));
        // What is rounded as it is stored need not be rounded before.
        let unrounded = |(sink, &result): (&Sink, &Register)| match (
            sink,
            &scan.results.instructions[result.index()].operation,
        ) {
            (Sink::Store { dtype, .. }, Operation::Round(to, x)) if dtype == to && dtype.is_float() => *x,
            _ => result,
        };
        let wanted: Vec<Register> = scan.sinks.iter().zip(&scan.results.results).map(unrounded).collect();
        let known = self.choices.results.clone();
        let inputs = [states, loads].concat();
        let scope = Scope { inputs: &inputs, given: &known, prefix: "r", ..EACH_STEP };
        let results = self.program(&scan.results, &wanted, scope);
        for (i, (sink, value)) in scan.sinks.iter().zip(&results).enumerate() {
            let Sink::Store { dtype, .. } = sink else { continue };
            self.line(2, format!("sink_{i}[j] = {};", stored(*dtype, value)));
        }
        self.line(1, "}");
        self.text += &stores;
        self.line(0, "}");
    }

    /// A struct for the runs that are read, early or late, and a function that reads them.
    fn read_runs(&mut self, name: &str, function: &str, late: bool) {
        self.line(0, "// What is read for a run of steps.");
        self.line(0, format!("struct {name} {{"));
        let (mut fields, mut loads) = (String::new(), String::new());
        for read in self.reads.iter().filter(|read| read.late == late) {
            let more = if read.more > 0 { format!(" + {}", read.more) } else { String::new() };
            fields += &format!("    {} {}[RUN{more}];\n", element(read.dtype), read.name);
            loads += &self.load(read);
        }
        self.text += &fields;
        self.line(0, "};");
        self.line(0, "template <bool WHOLE = false>");
        self.line(
            0,
            format!(
                "DEVICE void {function}(const Parameters& p, const Row& row, Step step, {name}& loaded) {{"
            ),
        );
        self.text += &loads;
        self.line(0, "}");
    }

    /// Reads a run: at once where all of it is there, else for each source what is there of it, after what stands for steps
    /// that are not.
    fn load(&self, read: &Read) -> String {
        let Read { name, view, sources, ahead, .. } = read;
        let stride = self.stride_along(name, view);
        let limits = |source: &str| match self.is_bounded(source) {
            true => format!("row.{source}_low, row.{source}_high"),
            false => "0, (Step)p.length".into(),
        };
        let only = &sources[0].0;
        if sources.iter().all(|(source, begin)| *begin == 0 && limits(source) == limits(only)) {
            return format!(
                "    load_run<WHOLE>(loaded.{name}, row.{name}, {stride}, row.{name}_shift, step, (Step)p.length, {});\n",
                limits(only)
            );
        }
        let mut text = format!(
            "    if constexpr (WHOLE) {{\n        load_steps(loaded.{name}, row.{name}, {stride}, step - {ahead}, \
             (Step)p.length);\n    }} else {{\n"
        );
        for there in [false, true] {
            for (source, begin) in sources {
                let steps = *begin as isize - *ahead as isize;
                let steps = if self.scan.reverse { -steps } else { steps };
                text += &format!(
                    "        load_part<{there}, {begin}>(loaded.{name}, row.{name} + {steps} * {stride}, {stride}, step, \
                     (Step)p.length, {});\n",
                    limits(source)
                );
            }
        }
        text + "    }\n"
    }

    fn is_bounded(&self, name: &str) -> bool {
        let of = |prefix: &str, sources: &[Source]| {
            let number = name.strip_prefix(prefix).and_then(|number| number.parse::<usize>().ok());
            matches!(number.and_then(|number| sources.get(number)), Some(Source::Load { valid: Some(_), .. }))
        };
        of("source_", &self.scan.sources) || of("result_", &self.scan.result_sources)
    }

    /// The run that has a source's elements, and from which on.
    fn read_of(&self, name: &str) -> Option<(&Read<'a>, usize)> {
        let begin =
            |read: &Read| read.sources.iter().find(|(source, _)| source == name).map(|(_, begin)| *begin);
        self.reads.iter().find_map(|read| Some((read, begin(read)?)))
    }

    /// Element j of a source, in the program of the elements or, `late`, of the results.
    fn element(&self, name: &str, late: bool) -> String {
        let Some((read, begin)) = self.read_of(name) else { return "0".into() };
        let from = if late && !read.late { "early" } else { "loaded" };
        match begin {
            0 => format!("{from}.{}[j]", read.name),
            begin => format!("{from}.{}[j + {begin}]", read.name),
        }
    }

    /// The stride along the scan. Part of the text are that of neighbours and the width of lanes' rows: what an access has
    /// beside it then needs no address of its own.
    fn stride_along(&self, name: &str, view: &View) -> String {
        let axis = view.strides.len() - 1;
        let stride = view.strides[axis];
        let within =
            |(&extent, other): (&usize, &isize)| extent > 1 && *other != 0 && other.abs() < stride.abs();
        let axes_within = self.scan.parallel.iter().zip(&view.strides).filter(|&axis| within(axis)).count();
        if stride == 1 || self.lanes && axes_within == 1 {
            stride.to_string()
        } else {
            format!("p.{name}_strides[{axis}]")
        }
    }

    /// An expression for each source; `element` says how an element is called that was read.
    fn sources(
        &mut self,
        indent: usize,
        prefix: &str,
        sources: &[Source],
        position: &str,
        element: impl Fn(&Self, &str) -> String,
    ) -> Vec<String> {
        let axes = self.scan.parallel.len();
        let mut names = Vec::new();
        for (i, source) in sources.iter().enumerate() {
            let name = format!("{prefix}_{i}");
            names.push(match source {
                Source::Index(axis) if *axis == axes => format!("(long long){position}"),
                Source::Index(axis) => format!("row.axis_{axis}"),
                Source::Load { dtype, valid, .. } => {
                    let read = loaded(*dtype, &element(self, &name));
                    let ty = register(Kind::of(*dtype));
                    let value = match valid {
                        None => read,
                        Some((_, fill)) => {
                            let fill = region::literal(*fill, Kind::of(*dtype), self.parameters);
                            format!(
                                "(WHOLE || {position} >= row.{name}_low && {position} < row.{name}_high) ? {read} : {fill}"
                            )
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

    fn program(&mut self, program: &Program, wanted: &[Register], scope: Scope) -> Vec<String> {
        let scope = Scope { tables: &self.scan.tables, ..scope };
        let body = region::write(program, wanted, scope, self.parameters, &mut self.sites);
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
