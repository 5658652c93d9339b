//! The forms of a program: as it is, and for the positions along the scan axis where comparisons of the position
//! with constants have come out.
//!
//! Starts, shifts and the ends of a gradient are written as choices by position: at the first take this, else
//! that. Nearly everywhere such a choice is made already, and what is left is often an array as it stands.

use tilewright_ir::{Binary, Scalar};
use tilewright_plan::{Instruction, Operation, Program, Register, evaluate};

/// The program at the positions `low..high` of the scan axis, the longest stretch along which no comparison
/// changes; nothing where there is none such. `is_position` says which inputs are that position.
pub(super) fn inner(
    program: &Program,
    is_position: impl Fn(usize) -> bool,
    length: usize,
) -> Option<(Program, (usize, usize))> {
    let mut cuts = vec![0, length];
    let mut known: Vec<Option<Comparison>> = Vec::new();
    for instruction in &program.instructions {
        let comparison = Comparison::of(program, instruction, &is_position);
        if let Some(Comparison { constant, .. }) = comparison {
            let around =
                [constant, constant.saturating_add(1)].map(|cut| cut.clamp(0, length as i64) as usize);
            cuts.extend(around);
        }
        known.push(comparison);
    }
    if known.iter().all(Option::is_none) {
        return None;
    }
    cuts.sort_unstable();
    let longest = cuts.windows(2).max_by_key(|ends| ends[1] - ends[0])?;
    let (low, high) = (longest[0], longest[1]);
    (low < high).then(|| (decided(program, &known, low as i64), (low, high)))
}

/// A comparison of the position with a constant.
struct Comparison {
    comparison: tilewright_ir::Compare,
    constant: i64,
    /// Whether the constant stands on the left.
    mirrored: bool,
}

impl Comparison {
    fn of(
        program: &Program,
        instruction: &Instruction,
        is_position: impl Fn(usize) -> bool,
    ) -> Option<Comparison> {
        let Operation::Compare(comparison, left, right) = instruction.operation else { return None };
        let constant = |register: Register| match program.instructions[register.index()].operation {
            Operation::Constant(Scalar::Integer(constant)) => Some(constant),
            _ => None,
        };
        let position = |register: Register| match program.instructions[register.index()].operation {
            Operation::Input(input) => is_position(input),
            _ => false,
        };
        match (constant(left), constant(right)) {
            (None, Some(constant)) if position(left) => {
                Some(Comparison { comparison, constant, mirrored: false })
            }
            (Some(constant), None) if position(right) => {
                Some(Comparison { comparison, constant, mirrored: true })
            }
            _ => None,
        }
    }

    fn holds(&self, position: i64) -> bool {
        let (position, constant) = (Scalar::Integer(position), Scalar::Integer(self.constant));
        let (left, right) = if self.mirrored { (constant, position) } else { (position, constant) };
        evaluate::compare(self.comparison, left, right)
    }
}

/// The program with the known comparisons decided as at `position`, without what nothing then needs.
fn decided(program: &Program, known: &[Option<Comparison>], position: i64) -> Program {
    let mut truth: Vec<Option<bool>> = Vec::with_capacity(known.len());
    // For each register the one that it comes to.
    let mut same: Vec<Register> = Vec::with_capacity(known.len());
    for (i, (instruction, comparison)) in program.instructions.iter().zip(known).enumerate() {
        let of = |register: Register| truth[register.index()];
        let (mut holds, mut alike) = (comparison.as_ref().map(|c| c.holds(position)), Register(i as u32));
        match instruction.operation {
            Operation::Select(condition, x, y) => {
                if let Some(condition) = of(condition) {
                    alike = same[if condition { x } else { y }.index()];
                    holds = of(alike);
                }
            }
            Operation::Binary(function @ (Binary::And | Binary::Or), x, y) => {
                let (decides, passes) = (function == Binary::Or, function == Binary::And);
                match (of(x), of(y)) {
                    (Some(x), _) if x == decides => holds = Some(decides),
                    (_, Some(y)) if y == decides => holds = Some(decides),
                    (Some(x), Some(_)) if x == passes => holds = Some(passes),
                    (Some(_), None) => alike = same[y.index()],
                    (None, Some(_)) => alike = same[x.index()],
                    (None, None) | (Some(_), Some(_)) => {}
                }
            }
            _ => {}
        }
        truth.push(holds);
        same.push(alike);
    }
    let mut live = vec![false; known.len()];
    for result in &program.results {
        live[same[result.index()].index()] = true;
    }
    for i in (0..known.len()).rev().filter(|&i| truth[i].is_none()) {
        if live[i] {
            for operand in program.instructions[i].operation.operands() {
                live[same[operand.index()].index()] = true;
            }
        }
    }
    let mut rebuilt = Program::default();
    let mut map = vec![Register(0); known.len()];
    for (i, instruction) in program.instructions.iter().enumerate().filter(|(i, _)| live[*i]) {
        let operation = match truth[i] {
            Some(holds) => Operation::Constant(Scalar::Bool(holds)),
            None => instruction.operation.renamed(|register| map[same[register.index()].index()]),
        };
        map[i] = rebuilt.push(operation, instruction.kind);
    }
    rebuilt.results = program.results.iter().map(|result| map[same[result.index()].index()]).collect();
    rebuilt
}
