//! Scans: a thread folds a row, in its order. Right for every combine; fast where there are many rows and
//! neighbouring rows are neighbours in memory.

use std::fmt::Write;

use tilewright_plan::loops::{Sink, Source};
use tilewright_plan::{Kind, Program, Scan};

use super::launch::{Launch, Lowering, Source as Text};
use super::parameters::Parameters;
use super::region::{self, Scope, Site};
use super::types::{loaded, register, stored};

/// Threads of a block.
const THREADS: usize = 128;

pub(super) fn lower(scan: &Scan, lowering: &mut Lowering) {
    let rows: usize = scan.parallel.iter().product();
    let mut parameters = Parameters::default();
    parameters.integers("extents", scan.parallel.iter().map(|&extent| extent as i64));
    parameters.integer("rows", rows as i64);
    parameters.integer("length", scan.length as i64);
    parameters.tables(&scan.tables);
    parameters.faults(lowering.program.sites.len());
    let mut writer = Writer { scan, parameters: &mut parameters, sites: Vec::new(), text: String::new() };
    writer.kernel();
    let (text, sites) = (writer.text, writer.sites);
    let source = Text::new("scan", "a scan, in which a thread does a row.", &parameters, "", &[&text]);
    lowering.program.sites.extend(sites);
    lowering.launch(Launch {
        source,
        blocks: if scan.length == 0 { 0 } else { rows.div_ceil(THREADS) },
        threads: THREADS,
        shared_bytes: 0,
        arguments: parameters.arguments,
    });
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

    fn kernel(&mut self) {
        let scan = self.scan;
        let axes = scan.parallel.len();
        self.line(
            0,
            format!("KERNEL void __launch_bounds__({THREADS}) scan(const __grid_constant__ Parameters p) {{"),
        );
        self.line(1, "long long row = block_index() * thread_count() + thread_index();");
        self.line(1, "if (row >= p.rows) return;");
        self.line(1, "Fault fault;");
        for axis in (0..axes).rev() {
            self.line(
                1,
                format!("long long axis_{axis} = row % p.extents[{axis}]; row /= p.extents[{axis}];"),
            );
        }
        let kinds: Vec<Kind> = scan.elements.results.iter().map(|&r| scan.elements.kind(r)).collect();
        for (i, kind) in kinds.iter().enumerate() {
            self.line(1, format!("{} state_{i} = 0;", register(*kind)));
        }
        self.line(1, "for (long long step = 0; step < p.length; ++step) {");
        let position = if scan.reverse { "p.length - 1 - step" } else { "step" };
        self.line(2, format!("long long axis_{axes} = {position};"));
        let inputs = self.sources("source", &scan.sources);
        let elements = self.program(&scan.elements, inputs, "e", 2);
        let names = |prefix: &str| (0..scan.state).map(|i| format!("{prefix}_{i}")).collect::<Vec<_>>();
        for (i, (element, kind)) in elements.iter().zip(&kinds).enumerate() {
            self.line(2, format!("{} next_{i} = {element};", register(*kind)));
        }
        self.line(2, "if (step > 0) {");
        // What is captured does not move along the scan.
        self.line(3, format!("long long axis_{axes} = 0;"));
        let captured = self.sources("captured", &scan.captured);
        let inputs = [names("state"), names("next"), captured].concat();
        let combined = self.program(&scan.combine, inputs, "c", 3);
        for (i, (result, kind)) in combined.iter().zip(&kinds).enumerate() {
            self.line(3, format!("{} combined_{i} = {result};", register(*kind)));
        }
        for i in 0..scan.state {
            self.line(3, format!("next_{i} = combined_{i};"));
        }
        self.line(2, "}");
        for i in 0..scan.state {
            self.line(2, format!("state_{i} = next_{i};"));
        }
        let inputs = [names("state"), self.sources("result", &scan.result_sources)].concat();
        let results = self.program(&scan.results, inputs, "r", 2);
        for (i, (sink, value)) in scan.sinks.iter().zip(&results).enumerate() {
            // A verified scan only stores.
            let Sink::Store { view, dtype } = sink else { continue };
            let name = format!("sink_{i}");
            self.parameters.view(&name, view, *dtype, true);
            let at = offset(&name, view.strides.len());
            self.line(2, format!("p.{name}[{at}] = {};", stored(*dtype, value)));
        }
        self.line(1, "}");
        self.line(1, "report(fault, p.fault, p.first_site);");
        self.line(0, "}");
    }

    fn program(&mut self, program: &Program, inputs: Vec<String>, prefix: &str, depth: usize) -> Vec<String> {
        let indent = " ".repeat(4 * depth);
        let scope =
            Scope { inputs: &inputs, tables: &self.scan.tables, live: "true", indent: &indent, prefix };
        let body = region::write(program, &program.results, scope, self.parameters, &mut self.sites);
        self.text += &body.statements;
        body.results
    }

    /// An expression for each source, at the step's position.
    fn sources(&mut self, prefix: &str, sources: &[Source]) -> Vec<String> {
        let mut names = Vec::new();
        for (i, source) in sources.iter().enumerate() {
            let name = format!("{prefix}_{i}");
            match source {
                Source::Index(axis) => names.push(format!("axis_{axis}")),
                Source::Load { view, dtype, valid } => {
                    self.parameters.view(&name, view, *dtype, false);
                    let read = loaded(*dtype, &format!("p.{name}[{}]", offset(&name, view.strides.len())));
                    let value = match valid {
                        None => read,
                        Some((ranges, fill)) => {
                            let bounds = ranges.iter().flat_map(|&(low, high)| [low as i64, high as i64]);
                            self.parameters.integers(&format!("{name}_valid"), bounds);
                            let inside: String = (0..ranges.len())
                                .map(|axis| {
                                    let (low, high) = (2 * axis, 2 * axis + 1);
                                    format!(
                                        " && axis_{axis} >= p.{name}_valid[{low}] && axis_{axis} < p.{name}_valid[{high}]"
                                    )
                                })
                                .collect();
                            let fill = region::literal(*fill, Kind::of(*dtype), self.parameters);
                            format!("true{inside} ? {read} : {fill}")
                        }
                    };
                    self.line(2, format!("{} {name} = {value};", register(Kind::of(*dtype))));
                    names.push(name);
                }
                // A verified scan has no phases.
                Source::RowScalar(_) | Source::RowValue(_) => names.push("0".into()),
            }
        }
        names
    }
}

fn offset(name: &str, axes: usize) -> String {
    let terms: Vec<String> =
        (0..axes).map(|axis| format!("axis_{axis} * p.{name}_strides[{axis}]")).collect();
    if terms.is_empty() { "0".into() } else { terms.join(" + ") }
}
