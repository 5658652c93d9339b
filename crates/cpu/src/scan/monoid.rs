//! The combine functions that scans have vector code for, and how a program is recognised as one.

use tilewright_ir::Binary;
use tilewright_plan::{Kind, Operation, Program, Register};

use super::lanes::Arithmetic;

/// A combine function on `S` state elements of one type.
pub(super) trait Monoid<const S: usize> {
    /// How many elements of the state, from the first on, no other one depends on as the left side has them: where
    /// their fold is not wanted, it need not be kept.
    const ASIDE: usize = 0;

    fn combine<L: Arithmetic>(left: [L; S], right: [L; S]) -> [L; S];
}

pub(super) struct Sum;
pub(super) struct Product;
pub(super) struct Greatest;
pub(super) struct Least;
/// State (a, b), the map h ↦ a·h + b: left first, then right.
pub(super) struct Affine;

impl Monoid<1> for Sum {
    #[inline(always)]
    fn combine<L: Arithmetic>([left]: [L; 1], [right]: [L; 1]) -> [L; 1] {
        [left.add(right)]
    }
}

impl Monoid<1> for Product {
    #[inline(always)]
    fn combine<L: Arithmetic>([left]: [L; 1], [right]: [L; 1]) -> [L; 1] {
        [left.mul(right)]
    }
}

impl Monoid<1> for Greatest {
    #[inline(always)]
    fn combine<L: Arithmetic>([left]: [L; 1], [right]: [L; 1]) -> [L; 1] {
        [left.max(right)]
    }
}

impl Monoid<1> for Least {
    #[inline(always)]
    fn combine<L: Arithmetic>([left]: [L; 1], [right]: [L; 1]) -> [L; 1] {
        [left.min(right)]
    }
}

impl Monoid<2> for Affine {
    const ASIDE: usize = 1;

    #[inline(always)]
    fn combine<L: Arithmetic>(left: [L; 2], right: [L; 2]) -> [L; 2] {
        [left[0].mul(right[0]), right[0].mul_add(left[1], right[1])]
    }
}

/// A recognised combine function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    Sum,
    Product,
    Greatest,
    Least,
    /// The state element that is the coefficient a, 0 or 1; the other is b.
    Affine(usize),
}

/// The pattern that a combine program on `state` elements is, and the kind of all of them.
pub(super) fn recognise(program: &Program, state: usize) -> Option<(Pattern, Kind)> {
    let kind = program.kind(*program.results.first()?);
    if kind == Kind::Bool || program.results.iter().any(|&result| program.kind(result) != kind) {
        return None;
    }
    let pattern = match state {
        1 => fold(program)?,
        2 => [0, 1].into_iter().find(|&a| is_affine(program, a)).map(Pattern::Affine)?,
        _ => return None,
    };
    Some((pattern, kind))
}

fn operation(program: &Program, register: Register) -> &Operation {
    &program.instructions[register.index()].operation
}

fn is_input(program: &Program, register: Register, input: usize) -> bool {
    *operation(program, register) == Operation::Input(input)
}

/// The operands of a register that is the given commutative function.
fn operands(program: &Program, register: Register, function: Binary) -> Option<(Register, Register)> {
    match operation(program, register) {
        Operation::Binary(found, left, right) if *found == function => Some((*left, *right)),
        _ => None,
    }
}

/// Whether two registers are the two inputs, in either order.
fn are_inputs(program: &Program, (x, y): (Register, Register), a: usize, b: usize) -> bool {
    (is_input(program, x, a) && is_input(program, y, b))
        || (is_input(program, x, b) && is_input(program, y, a))
}

fn fold(program: &Program) -> Option<Pattern> {
    let table = [
        (Binary::Add, Pattern::Sum),
        (Binary::Mul, Pattern::Product),
        (Binary::Max, Pattern::Greatest),
        (Binary::Min, Pattern::Least),
    ];
    table.into_iter().find_map(|(function, pattern)| {
        let found = operands(program, program.results[0], function)?;
        are_inputs(program, found, 0, 1).then_some(pattern)
    })
}

/// Whether state element `a` becomes aₗ·aᵣ and the other one, b, becomes aᵣ·bₗ + bᵣ.
fn is_affine(program: &Program, a: usize) -> bool {
    let b = 1 - a;
    let product = |register, x, y| {
        operands(program, register, Binary::Mul).is_some_and(|found| are_inputs(program, found, x, y))
    };
    let term = |moved, added| product(moved, 2 + a, b) && is_input(program, added, 2 + b);
    product(program.results[a], a, 2 + a)
        && operands(program, program.results[b], Binary::Add).is_some_and(|(x, y)| term(x, y) || term(y, x))
}
