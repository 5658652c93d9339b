//! From a program to a list of steps, with a place for each value.

use tilewright_ir::{DType, Error, ErrorKind, Origin, Result, Scalar};
use tilewright_plan::{Instruction, Kind, Operation, Program, Register, Table};

use super::analysis::{Facts, Needs, along_row, analyse, compare_differences, demand};
use super::convert::{self, Convert};
use super::load::Load;
use super::map::Span;
use super::{Feed, Variance, operations};
use crate::isa::{Compiled, Isa};
use crate::memory::broken;

/// A program compiled for tiles.
pub struct TileProgram {
    /// Every value that a step defines or reads.
    pub(super) values: Vec<ValueInfo>,
    /// The steps of each stage.
    pub(super) stages: [Vec<Section>; 2],
    pub(super) isa: Isa,
    pub(super) inputs: Vec<Feed>,
    /// For each stage, which inputs it reads.
    pub(super) used: [Vec<bool>; 2],
    pub(super) results: Vec<ResultInfo>,
    pub(super) tables: Vec<TableInfo>,
    /// How many values of each place there are.
    pub(super) uniforms: Vec<u64>,
    pub(super) row_vectors: usize,
    pub(super) column_vectors: usize,
    pub(super) diagonal_vectors: usize,
    pub(super) strips: usize,
    pub(super) panels: usize,
}

/// The steps of one stage that run over one extent: the tile's one value, its rows, its columns, its
/// diagonals, or its strips.
pub(super) struct Section {
    pub variance: Variance,
    pub steps: Vec<Step>,
}

#[derive(Clone, Copy)]
pub(super) struct ValueInfo {
    pub kind: Kind,
    pub variance: Variance,
    pub place: ValuePlace,
}

/// Where a value is kept, the number counting the values of that place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ValuePlace {
    Uniform(usize),
    RowVector(usize),
    ColumnVector(usize),
    DiagonalVector(usize),
    /// A buffer for one strip, shared with values that live at other times.
    Strip(usize),
    /// A buffer for the whole tile: a value that both stages read.
    Panel(usize),
    /// Not given yet.
    Unplaced,
}

pub(super) struct ResultInfo {
    pub value: usize,
}

/// What an error says of a table.
pub(super) struct TableInfo {
    pub name: String,
    pub origin: Option<Origin>,
    pub dtype: DType,
    pub rank: usize,
}

pub(super) enum Step {
    /// A loop over lanes.
    Map { kernel: Compiled<Span>, out: usize, operands: Vec<usize> },
    /// Takes an input over: from memory, or as a number or position.
    Input { argument: usize, out: usize, convert: Option<Convert> },
    /// `base + step · column`, for each row.
    Ramp { kernel: Compiled<Span>, out: usize, base: usize, step: usize },
    /// An element of a table.
    Load(Load),
    /// Hands a result out. `direct`: its value may be computed where it goes.
    Store { result: usize, value: usize, direct: bool },
}

impl TileProgram {
    /// Compiles a program that runs in one stage.
    ///
    /// # Errors
    /// [`ErrorKind::Invariant`] where the program is not well-formed or does not fit the feeds or tables.
    pub fn compile(program: &Program, feeds: &[Feed], tables: &[Table], isa: Isa) -> Result<TileProgram> {
        TileProgram::compile_staged(program, feeds, tables, isa, &[], program.results.len())
    }

    /// Compiles a program that runs in two stages: the inputs listed in `late` are known in the second
    /// only, and the first gives the first `early_results` results, which do not depend on those inputs.
    ///
    /// # Errors
    /// As [`TileProgram::compile`].
    pub fn compile_staged(
        program: &Program,
        feeds: &[Feed],
        tables: &[Table],
        isa: Isa,
        late: &[usize],
        early_results: usize,
    ) -> Result<TileProgram> {
        let program = &compare_differences(program, feeds);
        let facts = analyse(program, feeds, tables, late)?;
        let needs = demand(program, &facts);
        let mut builder = Builder::new(program, feeds, tables, isa, &facts, &needs);
        for i in 0..program.instructions.len() {
            builder.instruction(i)?;
        }
        builder.results(early_results)?;
        Ok(builder.finish())
    }

    /// Bytes of an element of an input that is an array.
    pub(crate) fn input_size(&self, input: usize) -> usize {
        match self.inputs[input] {
            Feed::Array(_, dtype) => dtype.size(),
            Feed::Uniform | Feed::RowPosition | Feed::ColumnPosition => 0,
        }
    }

    /// The variance and kind of a result.
    pub fn result(&self, result: usize) -> (Variance, Kind) {
        let value = self.values[self.results[result].value];
        (value.variance, value.kind)
    }
}

struct Builder<'a> {
    program: &'a Program,
    feeds: &'a [Feed],
    isa: Isa,
    facts: &'a Facts,
    needs: &'a Needs,
    whole: Vec<Option<usize>>,
    base: Vec<Option<usize>>,
    /// For each step: its stage (late or not) and the variance of the section it belongs to.
    steps: Vec<(bool, Variance, Step)>,
    output: TileProgram,
}

impl<'a> Builder<'a> {
    fn new(
        program: &'a Program,
        feeds: &'a [Feed],
        tables: &[Table],
        isa: Isa,
        facts: &'a Facts,
        needs: &'a Needs,
    ) -> Builder<'a> {
        let info = |table: &Table| TableInfo {
            name: table.name.clone(),
            origin: table.origin.clone(),
            dtype: table.dtype,
            rank: table.shape.len(),
        };
        Builder {
            program,
            feeds,
            isa,
            facts,
            needs,
            whole: vec![None; program.instructions.len()],
            base: vec![None; program.instructions.len()],
            steps: Vec::new(),
            output: TileProgram {
                values: Vec::new(),
                stages: [Vec::new(), Vec::new()],
                isa,
                inputs: feeds.to_vec(),
                used: [vec![false; feeds.len()], vec![false; feeds.len()]],
                results: Vec::new(),
                tables: tables.iter().map(info).collect(),
                uniforms: Vec::new(),
                row_vectors: 0,
                column_vectors: 0,
                diagonal_vectors: 0,
                strips: 0,
                panels: 0,
            },
        }
    }

    fn define(&mut self, kind: Kind, variance: Variance) -> usize {
        let place = match variance {
            Variance::Uniform => {
                self.output.uniforms.push(0);
                ValuePlace::Uniform(self.output.uniforms.len() - 1)
            }
            Variance::Row => {
                self.output.row_vectors += 1;
                ValuePlace::RowVector(self.output.row_vectors - 1)
            }
            Variance::Column => {
                self.output.column_vectors += 1;
                ValuePlace::ColumnVector(self.output.column_vectors - 1)
            }
            Variance::Diagonal => {
                self.output.diagonal_vectors += 1;
                ValuePlace::DiagonalVector(self.output.diagonal_vectors - 1)
            }
            Variance::Full => ValuePlace::Unplaced,
        };
        self.output.values.push(ValueInfo { kind, variance, place });
        self.output.values.len() - 1
    }

    fn constant(&mut self, kind: Kind, value: Scalar) -> usize {
        let id = self.define(kind, Variance::Uniform);
        *self.output.uniforms.last_mut().expect("just defined") = convert::bits(kind, value);
        id
    }

    /// The value of a register in the first column.
    fn base_of(&self, register: Register) -> usize {
        let i = register.index();
        if self.facts.linear(i) { self.base[i] } else { self.whole[i] }.expect("defined before it is read")
    }

    fn whole_of(&self, register: Register) -> usize {
        self.whole[register.index()].expect("defined before it is read")
    }

    fn instruction(&mut self, i: usize) -> Result<()> {
        let Instruction { operation, kind } = &self.program.instructions[i];
        let (variance, late) = (self.facts.variance[i], self.facts.late[i]);
        if self.needs.base[i] {
            let lowered = Variance::of(variance.rows(), false);
            let out = match operation {
                // The first column's position is the number that it counts from.
                Operation::Input(input) => self.input(*input, *kind, lowered, late, Feed::Uniform)?,
                Operation::Constant(_)
                | Operation::Unary(..)
                | Operation::Binary(..)
                | Operation::Compare(..)
                | Operation::Select(..)
                | Operation::Cast(_)
                | Operation::Round(..)
                | Operation::Load(..)
                | Operation::RandomBits(..) => {
                    let operands: Vec<usize> =
                        operation.operands().into_iter().map(|operand| self.base_of(operand)).collect();
                    self.map(operation, *kind, lowered, late, operands)?
                }
            };
            self.base[i] = Some(out);
        }
        if !self.needs.whole[i] {
            return Ok(());
        }
        if self.facts.linear(i) {
            let base = self.base_of(Register(i as u32));
            let step = self.constant(*kind, Scalar::Integer(self.facts.step[i].expect("linear")));
            let out = self.define(*kind, variance);
            let kernel = operations::ramp(*kind, self.isa)?;
            self.steps.push((late, variance, Step::Ramp { kernel, out, base, step }));
            self.whole[i] = Some(out);
            return Ok(());
        }
        let out = match operation {
            Operation::Input(input) => self.input(*input, *kind, variance, late, self.feeds[*input])?,
            Operation::Constant(value) => self.constant(*kind, *value),
            Operation::Load(table, indices) => {
                let out = self.define(*kind, variance);
                let load = if along_row(operation, variance, self.facts) {
                    let bases = indices.iter().map(|&index| self.base_of(index)).collect();
                    let steps =
                        indices.iter().map(|index| self.facts.step[index.index()].expect("linear")).collect();
                    Load::along_row(
                        *table,
                        self.output.tables[*table].dtype,
                        *kind,
                        bases,
                        steps,
                        out,
                        self.isa,
                    )
                } else {
                    let indices = indices.iter().map(|&index| self.whole_of(index)).collect();
                    Load::gather(*table, self.output.tables[*table].dtype, *kind, indices, out, self.isa)
                };
                self.steps.push((late, variance, Step::Load(load)));
                out
            }
            Operation::Unary(..)
            | Operation::Binary(..)
            | Operation::Compare(..)
            | Operation::Select(..)
            | Operation::Cast(_)
            | Operation::Round(..)
            | Operation::RandomBits(..) => {
                let operands =
                    operation.operands().into_iter().map(|operand| self.whole_of(operand)).collect();
                self.map(operation, *kind, variance, late, operands)?
            }
        };
        self.whole[i] = Some(out);
        Ok(())
    }

    fn map(
        &mut self,
        operation: &Operation,
        kind: Kind,
        variance: Variance,
        late: bool,
        operands: Vec<usize>,
    ) -> Result<usize> {
        let from = operands.iter().map(|&operand| self.output.values[operand].kind).next_back();
        let kernel = operations::kernel(operation, from.unwrap_or(kind), kind, self.isa)?;
        match kernel {
            Some(kernel) => {
                let out = self.define(kind, variance);
                self.steps.push((late, variance, Step::Map { kernel, out, operands }));
                Ok(out)
            }
            // The identity.
            None => Ok(operands[0]),
        }
    }

    fn input(
        &mut self,
        argument: usize,
        kind: Kind,
        variance: Variance,
        late: bool,
        feed: Feed,
    ) -> Result<usize> {
        let convert = match feed {
            Feed::Array(_, dtype) => {
                if Kind::of(dtype) != kind {
                    return Err(broken(format!("input {argument} of {dtype} is declared {kind:?}")));
                }
                Some(Convert::new(dtype, self.isa))
            }
            Feed::Uniform => None,
            Feed::RowPosition | Feed::ColumnPosition if matches!(kind, Kind::I32 | Kind::I64) => None,
            Feed::RowPosition | Feed::ColumnPosition => {
                return Err(broken(format!("input {argument} is a position but {kind:?}")));
            }
        };
        let out = self.define(kind, variance);
        self.steps.push((late, variance, Step::Input { argument, out, convert }));
        Ok(out)
    }

    /// Stores each result, as soon as no array is read any more that it might be stored over.
    fn results(&mut self, early_results: usize) -> Result<()> {
        for (number, &register) in self.program.results.iter().enumerate() {
            let late = number >= early_results;
            if !late && self.facts.late[register.index()] {
                return Err(broken(format!("result {number} of the early stage depends on a late input")));
            }
            let value = self.whole_of(register);
            self.output.results.push(ResultInfo { value });
            let defined_here = self.steps.iter().any(|(stage, _, step)| {
                *stage == late && step.output() == Some(value) && !matches!(step, Step::Input { .. })
            });
            let first = self.program.results[..number].iter().all(|&other| self.whole_of(other) != value);
            let direct = defined_here && first && self.output.values[value].variance == Variance::Full;
            self.steps.push((late, Variance::Full, Step::Store { result: number, value, direct }));
        }
        Ok(())
    }

    fn finish(mut self) -> TileProgram {
        self.place();
        const ORDER: [Variance; 5] =
            [Variance::Uniform, Variance::Row, Variance::Column, Variance::Diagonal, Variance::Full];
        for sections in &mut self.output.stages {
            *sections = ORDER.map(|variance| Section { variance, steps: Vec::new() }).into();
        }
        for (late, variance, step) in self.steps {
            if let Step::Input { argument, .. } = step {
                self.output.used[late as usize][argument] = true;
            }
            let section = ORDER.iter().position(|&v| v == variance).expect("one of the five");
            self.output.stages[late as usize][section].steps.push(step);
        }
        self.output
    }

    /// Gives each full value a panel, if both stages touch it, or a strip, by linear scan (Poletto and
    /// Sarkar 1999) over the steps that run strip by strip.
    fn place(&mut self) {
        let count = self.output.values.len();
        let mut stage_of = vec![None; count];
        let mut last_use = vec![0; count];
        for (position, (late, _, step)) in self.steps.iter().enumerate() {
            for value in step.operands().into_iter().chain(step.output()) {
                last_use[value] = position;
                if *stage_of[value].get_or_insert(*late) != *late
                    && self.output.values[value].place == ValuePlace::Unplaced
                {
                    self.output.values[value].place = ValuePlace::Panel(self.output.panels);
                    self.output.panels += 1;
                }
            }
        }
        let mut free: Vec<usize> = Vec::new();
        for stage in [false, true] {
            free.clear();
            free.extend((0..self.output.strips).rev());
            for (position, (late, _, step)) in self.steps.iter().enumerate() {
                if *late != stage {
                    continue;
                }
                if let Some(out) =
                    step.output().filter(|&out| self.output.values[out].place == ValuePlace::Unplaced)
                {
                    let strip = free.pop().unwrap_or_else(|| {
                        self.output.strips += 1;
                        self.output.strips - 1
                    });
                    self.output.values[out].place = ValuePlace::Strip(strip);
                    if last_use[out] == position {
                        free.push(strip);
                    }
                }
                let mut operands = step.operands();
                operands.sort_unstable();
                operands.dedup();
                for operand in operands {
                    if let ValuePlace::Strip(strip) = self.output.values[operand].place
                        && last_use[operand] == position
                    {
                        free.push(strip);
                    }
                }
            }
        }
    }
}

impl Step {
    /// The value that it defines.
    pub fn output(&self) -> Option<usize> {
        match self {
            Step::Map { out, .. } | Step::Input { out, .. } | Step::Ramp { out, .. } => Some(*out),
            Step::Load(load) => Some(load.out),
            Step::Store { .. } => None,
        }
    }

    /// The values that it reads.
    pub fn operands(&self) -> Vec<usize> {
        match self {
            Step::Map { operands, .. } => operands.clone(),
            Step::Input { .. } => vec![],
            Step::Ramp { base, step, .. } => vec![*base, *step],
            Step::Load(load) => load.indices.clone(),
            Step::Store { value, .. } => vec![*value],
        }
    }
}

/// An operation that a kind does not have.
pub(super) fn unsupported(operation: &Operation, kind: Kind) -> Error {
    Error::new(ErrorKind::Invariant { invariant: 0, message: format!("{operation:?} of {kind:?}") })
}
