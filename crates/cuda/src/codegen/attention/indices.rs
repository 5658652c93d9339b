//! Which pairs share an element of a captured array, where pairs of one (b, h) do not.

use tilewright_plan::attention::AttentionShape;
use tilewright_plan::{Operation, Program, Register};

/// How the elements of a reduction by pair are shared among batch elements and heads: by pairs of the same
/// query and key only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Apart {
    /// No two batch elements share an element.
    pub in_batch: bool,
    /// No two heads do.
    pub in_heads: bool,
    /// Those batch elements and heads that may share an element all do.
    pub shared_by_all: bool,
}

/// How the indices of a reduction by pair depend on batch element and head; none where pairs of different
/// queries or keys may share an element.
pub(super) fn apart(program: &Program, shape: &AttentionShape) -> Option<Apart> {
    let is_an_index =
        |input: usize| program.results.iter().any(|&result| source(program, result) == Some(input));
    let in_batch = shape.batch == 1 || is_an_index(0);
    let in_heads = shape.heads == 1 || is_an_index(1);
    let inputs = dependencies(program);
    let of_shared = |result: &&Register| {
        let [b, h, ..] = inputs[result.index()];
        (b && !in_batch) || (h && !in_heads)
    };
    let mixes = |result: &Register| inputs[result.index()][2] || inputs[result.index()][3];
    let mut changing = program.results.iter().filter(of_shared).peekable();
    let shared_by_all = changing.peek().is_none();
    (!changing.any(mixes)).then_some(Apart { in_batch, in_heads, shared_by_all })
}

/// Whether any index depends on the batch element, and on the head.
pub(super) fn depends_on_slice(program: &Program) -> [bool; 2] {
    let inputs = dependencies(program);
    [0, 1].map(|input| program.results.iter().any(|result| inputs[result.index()][input]))
}

/// Whether any of these registers depends on an input.
pub(super) fn read(program: &Program, wanted: &[Register], input: usize) -> bool {
    let mut depends = Vec::with_capacity(program.instructions.len());
    for instruction in &program.instructions {
        let itself = matches!(instruction.operation, Operation::Input(number) if number == input);
        let mut operands = instruction.operation.operands().into_iter();
        let through = operands.any(|operand| depends[operand.index()]);
        depends.push(itself || through);
    }
    wanted.iter().any(|register| depends[register.index()])
}

/// The input that a register is, conversions aside.
fn source(program: &Program, register: Register) -> Option<usize> {
    match &program.instructions[register.index()].operation {
        Operation::Input(input) => Some(*input),
        Operation::Cast(x) => source(program, *x),
        Operation::Constant(_)
        | Operation::Unary(..)
        | Operation::Binary(..)
        | Operation::Compare(..)
        | Operation::Select(..)
        | Operation::Round(..)
        | Operation::Load(..)
        | Operation::RandomBits(..) => None,
    }
}

/// Which of the inputs `b, h, q, k, score` each register depends on.
fn dependencies(program: &Program) -> Vec<[bool; 5]> {
    let mut sets: Vec<[bool; 5]> = Vec::with_capacity(program.instructions.len());
    for instruction in &program.instructions {
        let mut set = [false; 5];
        if let Operation::Input(input) = instruction.operation {
            set[input] = true;
        }
        for operand in instruction.operation.operands() {
            for (to, from) in set.iter_mut().zip(sets[operand.index()]) {
                *to |= from;
            }
        }
        sets.push(set);
    }
    sets
}
