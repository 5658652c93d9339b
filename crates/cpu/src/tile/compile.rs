//! From a program to a list of steps: variance, linearity, what is needed where, and registers.

use tilewright_ir::{Binary, DType, Error, ErrorKind, Origin, Result, Scalar, Unary};
use tilewright_plan::{Instruction, Kind, Operation, Program, Register, Table};

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
    pub(super) strips: usize,
    pub(super) panels: usize,
}

/// The steps of one stage that run over one extent: the tile's one value, its rows, its columns, or its
/// strips.
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

/// What is known of each register.
struct Facts {
    variance: Vec<Variance>,
    /// The difference between neighbouring columns, where it is a constant; for integers only.
    step: Vec<Option<i64>>,
    late: Vec<bool>,
}

impl Facts {
    /// Whether a register is better kept as its value in the first column.
    fn linear(&self, register: usize) -> bool {
        self.variance[register].columns() && self.step[register].is_some()
    }
}

fn analyse(program: &Program, feeds: &[Feed], tables: &[Table], late: &[usize]) -> Result<Facts> {
    let count = program.instructions.len();
    let mut facts = Facts {
        variance: Vec::with_capacity(count),
        step: Vec::with_capacity(count),
        late: Vec::with_capacity(count),
    };
    for (i, Instruction { operation, kind }) in program.instructions.iter().enumerate() {
        let operands = operation.operands();
        if operands.iter().any(|operand| operand.index() >= i) {
            return Err(broken(format!("r{i} reads a register that is not defined yet")));
        }
        check_kinds(program, operation, *kind, tables).map_err(|error| error.note(format!("in r{i}")))?;
        let join = |a: Variance, b: &Register| a.join(facts.variance[b.index()]);
        let (variance, is_late) = match operation {
            Operation::Input(input) => {
                let feed = feeds.get(*input).ok_or_else(|| broken(format!("input {input} is not fed")))?;
                let variance = match feed {
                    Feed::Uniform => Variance::Uniform,
                    Feed::RowPosition => Variance::Row,
                    Feed::ColumnPosition => Variance::Column,
                    Feed::Array(variance, _) => *variance,
                };
                (variance, late.contains(input))
            }
            Operation::Constant(_)
            | Operation::Unary(..)
            | Operation::Binary(..)
            | Operation::Compare(..)
            | Operation::Select(..)
            | Operation::Cast(_)
            | Operation::Round(..)
            | Operation::Load(..)
            | Operation::RandomBits(..) => (
                operands.iter().fold(Variance::Uniform, join),
                operands.iter().any(|operand| facts.late[operand.index()]),
            ),
        };
        let step = column_step(program, feeds, &facts, operation, *kind, variance);
        facts.variance.push(variance);
        facts.late.push(is_late);
        facts.step.push(step);
    }
    if let Some(result) = program.results.iter().find(|result| result.index() >= count) {
        return Err(broken(format!("{result} is a result but is not defined")));
    }
    Ok(facts)
}

/// The constant difference between neighbouring columns, modulo 2³² for `I32`: sums and products wrap alike
/// in both forms. (Widening to `I64` does not, so linearity ends there.)
fn column_step(
    program: &Program,
    feeds: &[Feed],
    facts: &Facts,
    operation: &Operation,
    kind: Kind,
    variance: Variance,
) -> Option<i64> {
    if !matches!(kind, Kind::I32 | Kind::I64) {
        return None;
    }
    if !variance.columns() {
        return Some(0);
    }
    let step = |register: &Register| facts.step[register.index()];
    let wrap = |step: i64| if kind == Kind::I32 { step as i32 as i64 } else { step };
    let constant = |register: &Register| match program.instructions[register.index()].operation {
        Operation::Constant(value) => Some(value.to_i64()),
        _ => None,
    };
    match operation {
        Operation::Input(input) => (feeds[*input] == Feed::ColumnPosition).then_some(1),
        Operation::Unary(Unary::Neg, a) => Some(wrap(step(a)?.wrapping_neg())),
        Operation::Binary(Binary::Add, a, b) => Some(wrap(step(a)?.wrapping_add(step(b)?))),
        Operation::Binary(Binary::Sub, a, b) => Some(wrap(step(a)?.wrapping_sub(step(b)?))),
        Operation::Binary(Binary::Mul, a, b) => match (constant(a), constant(b)) {
            (Some(factor), _) => Some(wrap(step(b)?.wrapping_mul(factor))),
            (_, Some(factor)) => Some(wrap(step(a)?.wrapping_mul(factor))),
            (None, None) => None,
        },
        Operation::Cast(a) if kind == Kind::I32 || program.kind(*a) == kind => Some(wrap(step(a)?)),
        Operation::Constant(_)
        | Operation::Unary(..)
        | Operation::Binary(..)
        | Operation::Compare(..)
        | Operation::Select(..)
        | Operation::Cast(_)
        | Operation::Round(..)
        | Operation::Load(..)
        | Operation::RandomBits(..) => None,
    }
}

fn check_kinds(program: &Program, operation: &Operation, kind: Kind, tables: &[Table]) -> Result<()> {
    let of = |register: &Register| program.kind(*register);
    let integer = |kind: Kind| matches!(kind, Kind::I32 | Kind::I64);
    let fits = match operation {
        Operation::Input(_) | Operation::Constant(_) | Operation::Cast(_) => true,
        Operation::Unary(_, a) => of(a) == kind,
        Operation::Binary(_, a, b) => of(a) == kind && of(b) == kind,
        Operation::Compare(_, a, b) => of(a) == of(b) && kind == Kind::Bool,
        Operation::Select(c, a, b) => of(c) == Kind::Bool && of(a) == kind && of(b) == kind,
        Operation::Round(dtype, a) => match dtype {
            DType::BF16 | DType::F16 => of(a) == Kind::F32 && kind == Kind::F32,
            DType::U8 => of(a) == Kind::I32 && kind == Kind::I32,
            DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::Bool => of(a) == kind,
        },
        Operation::Load(table, indices) => {
            let table = tables.get(*table).ok_or_else(|| broken(format!("there is no table {table}")))?;
            table.shape.len() == indices.len()
                && indices.iter().all(|index| integer(of(index)))
                && Kind::of(table.dtype) == kind
        }
        Operation::RandomBits(a, b) => of(a) == Kind::I64 && of(b) == Kind::I64 && kind == Kind::I32,
    };
    if fits { Ok(()) } else { Err(broken(format!("the kinds of {operation:?} do not fit"))) }
}

/// In which form each register is needed: whole, or as its value in the first column.
struct Needs {
    whole: Vec<bool>,
    base: Vec<bool>,
}

fn demand(program: &Program, facts: &Facts) -> Needs {
    let count = program.instructions.len();
    let mut needs = Needs { whole: vec![false; count], base: vec![false; count] };
    for result in &program.results {
        needs.whole[result.index()] = true;
    }
    let need_base = |needs: &mut Needs, operand: Register| {
        if facts.linear(operand.index()) {
            needs.base[operand.index()] = true;
        } else {
            needs.whole[operand.index()] = true;
        }
    };
    for (i, Instruction { operation, .. }) in program.instructions.iter().enumerate().rev() {
        if needs.whole[i] {
            if facts.linear(i) {
                needs.base[i] = true;
            } else if along_row(operation, facts.variance[i], facts) {
                operation.operands().into_iter().for_each(|operand| need_base(&mut needs, operand));
            } else {
                operation.operands().iter().for_each(|operand| needs.whole[operand.index()] = true);
            }
        }
        if needs.base[i] {
            operation.operands().into_iter().for_each(|operand| need_base(&mut needs, operand));
        }
    }
    needs
}

/// Whether an operation is a load that moves along its table by a constant stride from column to column.
fn along_row(operation: &Operation, variance: Variance, facts: &Facts) -> bool {
    match operation {
        Operation::Load(_, indices) => {
            variance.columns() && indices.iter().all(|index| facts.step[index.index()].is_some())
        }
        Operation::Input(_)
        | Operation::Constant(_)
        | Operation::Unary(..)
        | Operation::Binary(..)
        | Operation::Compare(..)
        | Operation::Select(..)
        | Operation::Cast(_)
        | Operation::Round(..)
        | Operation::RandomBits(..) => false,
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
                _ => {
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
        let out = match operation {
            _ if self.facts.linear(i) => {
                let base = self.base_of(Register(i as u32));
                let step = self.constant(*kind, Scalar::Integer(self.facts.step[i].expect("linear")));
                let out = self.define(*kind, variance);
                let kernel = operations::ramp(*kind, self.isa)?;
                self.steps.push((late, variance, Step::Ramp { kernel, out, base, step }));
                out
            }
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
        const ORDER: [Variance; 4] = [Variance::Uniform, Variance::Row, Variance::Column, Variance::Full];
        for sections in &mut self.output.stages {
            *sections = ORDER.map(|variance| Section { variance, steps: Vec::new() }).into();
        }
        for (late, variance, step) in self.steps {
            if let Step::Input { argument, .. } = step {
                self.output.used[late as usize][argument] = true;
            }
            let section = ORDER.iter().position(|&v| v == variance).expect("one of the four");
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
