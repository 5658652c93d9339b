//! What is known of a program's registers before steps are made of them: variance, linearity, stage, and in
//! which form each is needed.

use tilewright_ir::{Binary, DType, Result, Scalar, Unary};
use tilewright_plan::{Instruction, Kind, Operation, Program, Register, Table};

use super::{Feed, Variance};
use crate::memory::broken;

/// What is known of each register.
pub(super) struct Facts {
    pub variance: Vec<Variance>,
    /// The difference between neighbouring columns, where it is a constant; for integers only.
    pub step: Vec<Option<i64>>,
    /// The same between neighbouring rows.
    row_step: Vec<Option<i64>>,
    /// Whether it depends on an input that only the second stage knows.
    pub late: Vec<bool>,
}

impl Facts {
    /// Whether a register is better kept as its value in the first column.
    pub fn linear(&self, register: usize) -> bool {
        self.variance[register].columns() && self.step[register].is_some()
    }
}

/// The program with each comparison of a row's position and a column's as one of their difference with 0, which
/// changes along diagonals only. Positions are not negative, so their differences do not wrap.
pub(super) fn compare_differences(program: &Program, feeds: &[Feed]) -> Program {
    let mut rewritten = Program::default();
    let mut names: Vec<Register> = Vec::with_capacity(program.instructions.len());
    let position = |register: &Register| match program.instructions.get(register.index())?.operation {
        Operation::Input(input) => feeds.get(input).filter(|feed| **feed != Feed::Uniform),
        _ => None,
    };
    for Instruction { operation, kind } in &program.instructions {
        let name = |register: Register| names.get(register.index()).copied().unwrap_or(register);
        let operation = match operation {
            Operation::Compare(comparison, x, y)
                if matches!(
                    (position(x), position(y)),
                    (Some(Feed::RowPosition), Some(Feed::ColumnPosition))
                        | (Some(Feed::ColumnPosition), Some(Feed::RowPosition))
                ) && program.kind(*x) == program.kind(*y) =>
            {
                let kind = program.kind(*x);
                let difference = rewritten.push(Operation::Binary(Binary::Sub, name(*x), name(*y)), kind);
                let zero = rewritten.push(Operation::Constant(Scalar::Integer(0)), kind);
                Operation::Compare(*comparison, difference, zero)
            }
            operation => operation.renamed(name),
        };
        names.push(rewritten.push(operation, *kind));
    }
    let name = |register: &Register| names.get(register.index()).copied().unwrap_or(*register);
    rewritten.results = program.results.iter().map(name).collect();
    rewritten
}

/// Finds the facts about each register, and checks that the program is well-formed.
pub(super) fn analyse(program: &Program, feeds: &[Feed], tables: &[Table], late: &[usize]) -> Result<Facts> {
    let count = program.instructions.len();
    let mut facts = Facts {
        variance: Vec::with_capacity(count),
        step: Vec::with_capacity(count),
        row_step: Vec::with_capacity(count),
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
        let step = |known: &[Option<i64>], changes: bool, position: Feed| {
            let counts = matches!(operation, Operation::Input(input) if feeds[*input] == position);
            constant_step(program, operation, *kind, known, changes, counts)
        };
        let along_columns = step(&facts.step, variance.columns(), Feed::ColumnPosition);
        let along_rows = step(&facts.row_step, variance.rows(), Feed::RowPosition);
        let wrap = |step: i64| if *kind == Kind::I32 { step as i32 as i64 } else { step };
        let opposite =
            matches!((along_columns, along_rows), (Some(x), Some(y)) if wrap(x.wrapping_add(y)) == 0);
        let diagonal = variance == Variance::Full && opposite;
        facts.variance.push(if diagonal { Variance::Diagonal } else { variance });
        facts.late.push(is_late);
        facts.step.push(along_columns);
        facts.row_step.push(along_rows);
    }
    if let Some(result) = program.results.iter().find(|result| result.index() >= count) {
        return Err(broken(format!("{result} is a result but is not defined")));
    }
    Ok(facts)
}

/// The constant difference between neighbours along one axis, modulo 2³² for `I32`: sums and products wrap
/// alike in both forms. (Widening to `I64` does not, so linearity ends there.) `known` are the differences of
/// earlier registers; `changes` says whether this one has any, `counts` whether it is the position.
fn constant_step(
    program: &Program,
    operation: &Operation,
    kind: Kind,
    known: &[Option<i64>],
    changes: bool,
    counts: bool,
) -> Option<i64> {
    if !matches!(kind, Kind::I32 | Kind::I64) {
        return None;
    }
    if !changes {
        return Some(0);
    }
    let step = |register: &Register| known[register.index()];
    let wrap = |step: i64| if kind == Kind::I32 { step as i32 as i64 } else { step };
    let constant = |register: &Register| {
        let operation = &program.instructions[register.index()].operation;
        if let Operation::Constant(value) = operation { Some(value.to_i64()) } else { None }
    };
    match operation {
        Operation::Input(_) => counts.then_some(1),
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
pub(super) struct Needs {
    pub whole: Vec<bool>,
    pub base: Vec<bool>,
}

/// Finds the needs of the program's results.
pub(super) fn demand(program: &Program, facts: &Facts) -> Needs {
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
pub(super) fn along_row(operation: &Operation, variance: Variance, facts: &Facts) -> bool {
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
