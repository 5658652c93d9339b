//! The functions of a scan that are generated: rows, how states are combined, how runs of elements are read and stored.

use std::fmt::Write;

use tilewright_plan::loops::{Sink, Source};
use tilewright_plan::{Kind, Program, Scan, View};

use crate::codegen::parameters::Parameters;
use crate::codegen::region::{self, Scope, Site};
use crate::codegen::types::{element, loaded, register, stored};

pub(super) struct Writer<'a> {
    pub scan: &'a Scan,
    pub parameters: &'a mut Parameters,
    pub sites: Vec<Site>,
    pub text: String,
}

impl Writer<'_> {
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
            let stride = stride_along(name, view);
            starts += &format!("    row.{name}_shift = shift_of(row.{name}, {stride}, (Step)p.length);\n");
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
        let there =
            bounded.iter().map(|name| format!(" && begin >= row.{name}_low && end <= row.{name}_high"));
        self.line(0, "// Whether all sources have all positions of a tile.");
        self.line(0, "DEVICE bool all_there(const Row& row, Step begin, Step end) {");
        self.line(1, format!("return true{};", there.collect::<String>()));
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
        self.line(0, "// The elements of a run of steps, of what was read for it. WHOLE: none is beyond the row's end, and all was read.");
        self.line(0, "template <bool WHOLE = false>");
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
        self.line(0, "template <bool WHOLE = false>");
        self.line(
            0,
            "DEVICE void store_results(const Parameters& p, const Row& row, Step step, const LoadedResults& loaded, \
             const State (&states)[RUN], Fault& fault) {",
        );
        let mut stores = String::new();
        for (i, sink) in scan.sinks.iter().enumerate() {
            let Sink::Store { view, dtype } = sink else { continue };
            self.line(1, format!("{} sink_{i}[RUN];", element(*dtype)));
            let stride = stride_along(&format!("sink_{i}"), view);
            stores += &format!(
                "    store_run<WHOLE>(sink_{i}, row.sink_{i}, {stride}, row.sink_{i}_shift, step, (Step)p.length);\n"
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
        self.line(0, "template <bool WHOLE = false>");
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
            let name = format!("{prefix}_{i}");
            let stride = stride_along(&name, view);
            let (low, high) = match valid {
                None => ("0".into(), "(Step)p.length".into()),
                Some(_) => (format!("row.{name}_low"), format!("row.{name}_high")),
            };
            self.line(
                1,
                format!(
                    "load_run<WHOLE>(loaded.{name}, row.{name}, {stride}, row.{name}_shift, step, (Step)p.length, {low}, \
                     {high});"
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

/// The stride along the scan; that of neighbours is part of the text.
fn stride_along(name: &str, view: &View) -> String {
    let axis = view.strides.len() - 1;
    if view.strides[axis] == 1 { "1".into() } else { format!("p.{name}_strides[{axis}]") }
}

/// How far a row's beginning is from the origin.
fn offset(name: &str, axes: usize) -> String {
    let terms: Vec<String> =
        (0..axes).map(|axis| format!("axis_{axis} * p.{name}_strides[{axis}]")).collect();
    if terms.is_empty() { "0".into() } else { terms.join(" + ") }
}
