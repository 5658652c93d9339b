//! A scan's programs, as nests become part of them.

use tilewright_plan::loops::Source;
use tilewright_plan::{Kind, Operation, Program, Register, Scan};

use crate::builder::{Builder, Push};

/// One of a scan's programs in the making.
pub(super) struct Code {
    pub builder: Builder,
    /// The inputs before the sources: the state.
    pub fixed: usize,
    pub sources: Vec<Source>,
}

impl Code {
    /// The program of a scan's results, and the register of each.
    pub fn results(scan: &Scan) -> (Code, Vec<Register>) {
        let mut code =
            Code { builder: Builder::new(), fixed: scan.state, sources: scan.result_sources.clone() };
        let results = code.append(&scan.results, 0, |code, input, kind| code.builder.input(input, kind));
        (code, results)
    }

    pub fn source(&mut self, source: Source) -> Register {
        let kind = match &source {
            Source::Load { dtype, .. } => Kind::of(*dtype),
            Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => Kind::I64,
        };
        let number = self.sources.iter().position(|earlier| *earlier == source).unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        });
        self.builder.input(self.fixed + number, kind)
    }

    /// Appends a program whose table 0 is the scan's table `tables`; `input` gives what its inputs are. Its
    /// results' registers.
    pub fn append(
        &mut self,
        program: &Program,
        tables: usize,
        mut input: impl FnMut(&mut Code, usize, Kind) -> Register,
    ) -> Vec<Register> {
        let mut map: Vec<Register> = Vec::with_capacity(program.instructions.len());
        for instruction in &program.instructions {
            let register = match instruction.operation.renamed(|register| map[register.index()]) {
                Operation::Input(number) => input(self, number, instruction.kind),
                Operation::Load(table, indices) => {
                    self.builder.push(Operation::Load(tables + table, indices), instruction.kind)
                }
                operation => self.builder.push(operation, instruction.kind),
            };
            map.push(register);
        }
        program.results.iter().map(|result| map[result.index()]).collect()
    }

    /// The program with these results, and its sources, without those that it does not need.
    pub fn finish(self, results: &[Register]) -> (Program, Vec<Source>) {
        let mut program = self.builder.program(results);
        let mut sources = Vec::new();
        for instruction in &mut program.instructions {
            if let Operation::Input(number) = &mut instruction.operation
                && let Some(source) = number.checked_sub(self.fixed)
            {
                sources.push(self.sources[source].clone());
                *number = self.fixed + sources.len() - 1;
            }
        }
        (program, sources)
    }
}

/// The scan with these results, which its sinks take.
pub(super) fn with_results(mut scan: Scan, code: Code, results: &[Register]) -> Scan {
    (scan.results, scan.result_sources) = code.finish(results);
    let read = |element: usize| {
        scan.results.instructions.iter().any(|instruction| instruction.operation == Operation::Input(element))
    };
    scan.live = (0..scan.state).map(read).collect();
    scan
}
