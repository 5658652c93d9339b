//! Terms whose sums are zero.
//!
//! Let g be the cotangent of the final score, `g = p·(a − Σ p·a)` along a row where p sums to 1 (a being
//! output cotangent · value). Then g sums to zero along each row; so does it in a row without live keys,
//! where it is zero. A term whose value is `g · f` with f the same along the row, and whose indices are the
//! same along the row, therefore adds nothing. It does where the log-sum-exp has a cotangent, which adds a
//! multiple of p to g; the caller asks about that.
//!
//! What the term's value is follows from the program: sums and row-constant multiples of g, and choices
//! between them by a row-constant condition. A choice may also hang on the condition under which the score
//! is not −∞, for where it is, p and g are zero.

use std::collections::HashSet;

use tilewright_ir::{Binary, Scalar, Unary};
use tilewright_plan::{Kind, Operation, Register};

use super::index_map::Facts;
use super::{COTANGENT, SCORE};
use crate::builder::Builder;

/// For each register whether it is the cotangent times something that is the same along each row.
pub(super) fn row_multiples(builder: &Builder, facts: &[Facts], score: Register) -> Vec<bool> {
    let conditions = Conditions::of(builder, score);
    let mut multiple: Vec<bool> = Vec::with_capacity(facts.len());
    for i in 0..builder.instruction_count() {
        let register = Register(i as u32);
        let found = is_multiple(builder, facts, &multiple, &conditions, register);
        multiple.push(found);
    }
    multiple
}

fn is_multiple(
    builder: &Builder,
    facts: &[Facts],
    multiple: &[bool],
    conditions: &Conditions,
    register: Register,
) -> bool {
    let is = |x: &Register| multiple[x.index()];
    let constant = |x: &Register| {
        let facts = &facts[x.index()];
        facts.is_constant_along_rows() && !facts.depends[SCORE] && !facts.depends[COTANGENT]
    };
    match builder.operation(register) {
        Operation::Input(number) => *number == COTANGENT,
        Operation::Constant(Scalar::Float(x)) => *x == 0.0,
        Operation::Unary(Unary::Neg, x) | Operation::Round(_, x) => is(x),
        Operation::Cast(x) => is(x) && matches!(builder.kind(register), Kind::F64 | Kind::F32),
        Operation::Binary(Binary::Add | Binary::Sub, x, y) => is(x) && is(y),
        Operation::Binary(Binary::Mul, x, y) => (is(x) && constant(y)) || (constant(x) && is(y)),
        Operation::Binary(Binary::Div, x, y) => is(x) && constant(y),
        Operation::Select(condition, x, y) => {
            let decided = constant(condition)
                || conditions.where_finite.contains(condition)
                || conditions.where_infinite.contains(condition);
            is(x) && is(y) && decided
        }
        Operation::Constant(_)
        | Operation::Unary(..)
        | Operation::Binary(..)
        | Operation::Compare(..)
        | Operation::Load(..)
        | Operation::RandomBits(..) => false,
    }
}

/// What is known where the score is not −∞.
#[derive(Default)]
struct Conditions {
    /// These hold there.
    where_finite: HashSet<Register>,
    /// These do not.
    where_infinite: HashSet<Register>,
}

impl Conditions {
    fn of(builder: &Builder, score: Register) -> Conditions {
        let mut conditions = Conditions::default();
        let (mut pending, mut seen) = (vec![score], HashSet::new());
        while let Some(register) = pending.pop() {
            if !seen.insert(register) {
                continue;
            }
            let infinite = |x: Register| builder.constant_value(x) == Some(Scalar::Float(f64::NEG_INFINITY));
            match *builder.operation(register) {
                Operation::Select(condition, x, y) if infinite(y) => {
                    conditions.hold(builder, condition);
                    pending.push(x);
                }
                Operation::Select(condition, x, y) if infinite(x) => {
                    conditions.where_infinite.insert(condition);
                    pending.push(y);
                }
                // −∞ plus anything but +∞, which makes the row NaN, is −∞.
                Operation::Binary(Binary::Add, x, y) => pending.extend([x, y]),
                Operation::Binary(Binary::Sub, x, _) => pending.push(x),
                _ => {}
            }
        }
        conditions
    }

    fn hold(&mut self, builder: &Builder, condition: Register) {
        if let (true, Operation::Binary(Binary::And, x, y)) =
            (self.where_finite.insert(condition), builder.operation(condition))
        {
            self.hold(builder, *x);
            self.hold(builder, *y);
        }
    }
}
