//! Builds programs: an equal instruction is made once, and the obvious is simplified on the way.
//!
//! Every simplification is exact: it gives the same bits as the instruction that it replaces, but for the
//! payload of a NaN. So nothing here re-associates floats, or drops an addition of +0.

use std::collections::HashMap;

use tilewright_ir::{Binary, Compare, DType, Scalar, Unary};
use tilewright_plan::{Instruction, Kind, Operation, Program, Register, evaluate};

/// What instructions can be appended to.
pub(crate) trait Push {
    /// Appends an instruction, or finds an equal one.
    fn push(&mut self, operation: Operation, kind: Kind) -> Register;
}

impl Push for Program {
    fn push(&mut self, operation: Operation, kind: Kind) -> Register {
        Program::push(self, operation, kind)
    }
}

impl Push for Builder {
    fn push(&mut self, operation: Operation, kind: Kind) -> Register {
        match self.simplify(operation, kind) {
            Simplified::Register(register) => register,
            Simplified::Constant(value) => {
                self.intern(Operation::Constant(evaluate::hold(value, kind)), kind)
            }
            Simplified::Operation(operation) => self.intern(operation, kind),
        }
    }
}

/// A program in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Builder {
    instructions: Vec<Instruction>,
    seen: HashMap<Vec<u64>, Register>,
}

impl Builder {
    /// A builder with nothing in it.
    pub(crate) fn new() -> Builder {
        Builder::default()
    }

    /// How many instructions have been made, dead ones included.
    pub(crate) fn instruction_count(&self) -> usize {
        self.instructions.len()
    }

    /// The kind of a register.
    pub(crate) fn kind(&self, register: Register) -> Kind {
        self.instructions[register.index()].kind
    }

    /// What defines a register.
    pub(crate) fn operation(&self, register: Register) -> &Operation {
        &self.instructions[register.index()].operation
    }

    /// The constant that a register is, if it is one.
    pub(crate) fn constant_value(&self, register: Register) -> Option<Scalar> {
        match self.operation(register) {
            Operation::Constant(value) => Some(*value),
            _ => None,
        }
    }

    /// An input of the program.
    pub(crate) fn input(&mut self, number: usize, kind: Kind) -> Register {
        self.push(Operation::Input(number), kind)
    }

    /// A constant.
    pub(crate) fn constant(&mut self, kind: Kind, value: impl Into<Scalar>) -> Register {
        self.push(Operation::Constant(evaluate::hold(value.into(), kind)), kind)
    }

    /// A function of one register.
    pub(crate) fn unary(&mut self, function: Unary, x: Register) -> Register {
        self.push(Operation::Unary(function, x), self.kind(x))
    }

    /// A function of two registers of one kind.
    pub(crate) fn binary(&mut self, function: Binary, x: Register, y: Register) -> Register {
        self.push(Operation::Binary(function, x, y), self.kind(x))
    }

    /// A comparison of two registers of one kind.
    pub(crate) fn compare(&mut self, comparison: Compare, x: Register, y: Register) -> Register {
        self.push(Operation::Compare(comparison, x, y), Kind::Bool)
    }

    /// `x` where `condition` holds, else `y`.
    pub(crate) fn select(&mut self, condition: Register, x: Register, y: Register) -> Register {
        self.push(Operation::Select(condition, x, y), self.kind(x))
    }

    /// A conversion.
    pub(crate) fn cast(&mut self, x: Register, kind: Kind) -> Register {
        self.push(Operation::Cast(x), kind)
    }

    fn intern(&mut self, operation: Operation, kind: Kind) -> Register {
        let next = Register(self.instructions.len() as u32);
        let register = *self.seen.entry(fingerprint(&operation, kind)).or_insert(next);
        if register == next {
            self.instructions.push(Instruction { operation, kind });
        }
        register
    }

    /// The program that computes `results`, without what they do not need.
    pub(crate) fn program(&self, results: &[Register]) -> Program {
        let mut live = vec![false; self.instructions.len()];
        for result in results {
            live[result.index()] = true;
        }
        for i in (0..live.len()).rev() {
            if live[i] {
                for operand in self.instructions[i].operation.operands() {
                    live[operand.index()] = true;
                }
            }
        }
        let mut map = vec![Register(0); self.instructions.len()];
        let mut program = Program::default();
        for (i, instruction) in self.instructions.iter().enumerate().filter(|(i, _)| live[*i]) {
            map[i] = Register(program.instructions.len() as u32);
            let operation = instruction.operation.renamed(|r| map[r.index()]);
            program.instructions.push(Instruction { operation, kind: instruction.kind });
        }
        program.results = results.iter().map(|r| map[r.index()]).collect();
        program
    }

    fn simplify(&mut self, operation: Operation, kind: Kind) -> Simplified {
        if let Some(value) = self.fold(&operation, kind) {
            return Simplified::Constant(value);
        }
        match operation {
            Operation::Unary(function, x) => self.simplify_unary(function, x),
            Operation::Binary(function, x, y) => match kind {
                Kind::F64 | Kind::F32 => self.simplify_float(function, x, y),
                Kind::I64 | Kind::I32 => self.simplify_integer(function, kind, x, y),
                Kind::Bool => self.simplify_bool(function, x, y),
            },
            Operation::Compare(comparison, x, y) if self.kind(x) == Kind::Bool => {
                Simplified::Register(self.compare_bool(comparison, x, y))
            }
            Operation::Compare(comparison, x, y) => self.simplify_compare(comparison, x, y),
            Operation::Select(condition, x, y) => self.simplify_select(condition, x, y),
            Operation::Cast(x) => self.simplify_cast(x, kind),
            Operation::Round(dtype, x) if self.is_rounded(dtype, x, 4) => Simplified::Register(x),
            Operation::Round(dtype, x) => Simplified::Operation(Operation::Round(dtype, x)),
            Operation::Load(table, mut indices) => {
                for index in &mut indices {
                    if let Operation::Cast(narrow) = *self.operation(*index)
                        && self.kind(narrow) == Kind::I32
                        && self.kind(*index) == Kind::I64
                    {
                        *index = narrow;
                    }
                }
                Simplified::Operation(Operation::Load(table, indices))
            }
            Operation::Input(_) | Operation::Constant(_) | Operation::RandomBits(_, _) => {
                Simplified::Operation(operation)
            }
        }
    }

    /// The value of an operation whose operands are all constants.
    fn fold(&self, operation: &Operation, kind: Kind) -> Option<Scalar> {
        let value = |register: &Register| self.constant_value(*register);
        match operation {
            Operation::Unary(function, x) => Some(evaluate::unary(*function, kind, value(x)?)),
            Operation::Binary(function, x, y) => {
                Some(evaluate::binary(*function, kind, value(x)?, value(y)?))
            }
            Operation::Compare(comparison, x, y) => {
                Some(Scalar::Bool(evaluate::compare(*comparison, value(x)?, value(y)?)))
            }
            Operation::Cast(x) => Some(evaluate::hold(value(x)?, kind)),
            Operation::Round(dtype, x) => Some(evaluate::round(*dtype, value(x)?)),
            Operation::Select(..)
            | Operation::Input(_)
            | Operation::Constant(_)
            | Operation::Load(..)
            | Operation::RandomBits(..) => None,
        }
    }

    /// Whether a register is seen, within `depth` instructions, to hold a value of `dtype`.
    fn is_rounded(&self, dtype: DType, x: Register, depth: usize) -> bool {
        let rounded = |x: Register| depth > 0 && self.is_rounded(dtype, x, depth - 1);
        match *self.operation(x) {
            Operation::Round(inner, _) => inner == dtype,
            Operation::Constant(value) => evaluate::round(dtype, value) == value,
            Operation::Unary(Unary::Neg | Unary::Abs, x) => dtype.is_float() && rounded(x),
            Operation::Binary(Binary::Max | Binary::Min, x, y) | Operation::Select(_, x, y) => {
                rounded(x) && rounded(y)
            }
            _ => false,
        }
    }

    fn simplify_unary(&self, function: Unary, x: Register) -> Simplified {
        match (function, self.operation(x)) {
            (Unary::Neg, Operation::Unary(Unary::Neg, y)) | (Unary::Not, Operation::Unary(Unary::Not, y)) => {
                Simplified::Register(*y)
            }
            (Unary::Abs, Operation::Unary(Unary::Neg | Unary::Abs, y)) => {
                Simplified::Operation(Operation::Unary(Unary::Abs, *y))
            }
            (Unary::Not, Operation::Compare(comparison, a, b)) if self.total_order(*a, *comparison) => {
                Simplified::Operation(Operation::Compare(opposite(*comparison), *a, *b))
            }
            _ => Simplified::Operation(Operation::Unary(function, x)),
        }
    }

    /// Whether the opposite comparison holds exactly where this one does not.
    fn total_order(&self, x: Register, comparison: Compare) -> bool {
        let float = matches!(self.kind(x), Kind::F64 | Kind::F32);
        !float || matches!(comparison, Compare::Eq | Compare::Ne)
    }

    fn simplify_float(&self, function: Binary, x: Register, y: Register) -> Simplified {
        let constant = |r| self.constant_value(r).map(Scalar::to_f64);
        let negated = |r| match self.operation(r) {
            Operation::Unary(Unary::Neg, x) => Some(*x),
            _ => None,
        };
        let keep = |function, x, y| Simplified::Operation(Operation::Binary(function, x, y));
        match function {
            Binary::Add | Binary::Mul if constant(x).is_some() => self.simplify_float(function, y, x),
            Binary::Add if constant(y).is_some_and(|c| c == 0.0 && c.is_sign_negative()) => {
                Simplified::Register(x)
            }
            Binary::Sub if constant(y).is_some_and(|c| c == 0.0 && c.is_sign_positive()) => {
                Simplified::Register(x)
            }
            Binary::Sub if constant(x).is_some_and(|c| c == 0.0 && c.is_sign_negative()) => {
                Simplified::Operation(Operation::Unary(Unary::Neg, y))
            }
            Binary::Mul | Binary::Div if constant(y) == Some(1.0) => Simplified::Register(x),
            Binary::Mul | Binary::Div if constant(y) == Some(-1.0) => {
                Simplified::Operation(Operation::Unary(Unary::Neg, x))
            }
            Binary::Pow if constant(y) == Some(1.0) => Simplified::Register(x),
            Binary::Pow if constant(y) == Some(2.0) => keep(Binary::Mul, x, x),
            Binary::Add => match (negated(x), negated(y)) {
                (_, Some(y)) => keep(Binary::Sub, x, y),
                (Some(x), None) => keep(Binary::Sub, y, x),
                (None, None) => keep(function, x.min(y), x.max(y)),
            },
            Binary::Sub => match negated(y) {
                Some(y) => self.simplify_float(Binary::Add, x, y),
                None => keep(function, x, y),
            },
            Binary::Mul => keep(function, x.min(y), x.max(y)),
            Binary::Max | Binary::Min if x == y => Simplified::Register(x),
            Binary::Div
            | Binary::Rem
            | Binary::Pow
            | Binary::Max
            | Binary::Min
            | Binary::Atan2
            | Binary::And
            | Binary::Or
            | Binary::Xor => keep(function, x, y),
        }
    }

    fn simplify_integer(&mut self, function: Binary, kind: Kind, x: Register, y: Register) -> Simplified {
        if let (Binary::Sub, Some(c)) = (function, self.constant_value(y)) {
            let negated = self.constant(kind, c.to_i64().wrapping_neg());
            return self.simplify_integer(Binary::Add, kind, x, negated);
        }
        if let (Binary::Add, Some(outer), Operation::Binary(Binary::Add, inner, constant)) =
            (function, self.constant_value(y), self.operation(x).clone())
            && let Some(c) = self.constant_value(constant)
        {
            let sum = self.constant(kind, c.to_i64().wrapping_add(outer.to_i64()));
            return self.simplify_integer(Binary::Add, kind, inner, sum);
        }
        let constant = |r| self.constant_value(r).map(Scalar::to_i64);
        let keep = |function, x, y| Simplified::Operation(Operation::Binary(function, x, y));
        let commutes = !matches!(function, Binary::Sub | Binary::Div | Binary::Rem);
        if commutes && constant(x).is_some() {
            return self.simplify_integer(function, kind, y, x);
        }
        match (function, constant(y)) {
            (Binary::Add | Binary::Sub | Binary::Or | Binary::Xor, Some(0))
            | (Binary::Mul | Binary::Div, Some(1))
            | (Binary::And, Some(-1)) => Simplified::Register(x),
            (Binary::Mul | Binary::And, Some(0)) | (Binary::Rem, Some(1)) => {
                Simplified::Constant(Scalar::Integer(0))
            }
            _ if x == y => match function {
                Binary::Sub | Binary::Xor | Binary::Rem => Simplified::Constant(Scalar::Integer(0)),
                Binary::Max | Binary::Min | Binary::And | Binary::Or => Simplified::Register(x),
                Binary::Add | Binary::Mul | Binary::Div | Binary::Pow | Binary::Atan2 => keep(function, x, y),
            },
            _ if commutes && constant(y).is_none() => keep(function, x.min(y), x.max(y)),
            _ => keep(function, x, y),
        }
    }

    fn simplify_bool(&self, function: Binary, x: Register, y: Register) -> Simplified {
        let function = match function {
            Binary::Max => Binary::Or,
            Binary::Min => Binary::And,
            _ => function,
        };
        let constant = |r| self.constant_value(r).map(Scalar::to_bool);
        if constant(x).is_some() {
            return self.simplify_bool(function, y, x);
        }
        match (function, constant(y)) {
            (Binary::And, Some(true)) | (Binary::Or | Binary::Xor, Some(false)) => Simplified::Register(x),
            (Binary::And, Some(false)) => Simplified::Constant(Scalar::Bool(false)),
            (Binary::Or, Some(true)) => Simplified::Constant(Scalar::Bool(true)),
            (Binary::Xor, Some(true)) => Simplified::Operation(Operation::Unary(Unary::Not, x)),
            (Binary::And | Binary::Or, None) if x == y => Simplified::Register(x),
            (Binary::Xor, None) if x == y => Simplified::Constant(Scalar::Bool(false)),
            _ => Simplified::Operation(Operation::Binary(function, x.min(y), x.max(y))),
        }
    }

    /// A comparison of truth values by logic; false comes before true.
    fn compare_bool(&mut self, comparison: Compare, x: Register, y: Register) -> Register {
        match comparison {
            Compare::Ne => self.binary(Binary::Xor, x, y),
            Compare::Lt => {
                let not = self.unary(Unary::Not, x);
                self.binary(Binary::And, not, y)
            }
            Compare::Gt => self.compare_bool(Compare::Lt, y, x),
            Compare::Eq | Compare::Le | Compare::Ge => {
                let opposite = self.compare_bool(opposite(comparison), x, y);
                self.unary(Unary::Not, opposite)
            }
        }
    }

    fn simplify_compare(&self, comparison: Compare, x: Register, y: Register) -> Simplified {
        if self.constant_value(x).is_some() {
            return Simplified::Operation(Operation::Compare(mirrored(comparison), y, x));
        }
        if x == y && !matches!(self.kind(x), Kind::F64 | Kind::F32) {
            return Simplified::Constant(Scalar::Bool(evaluate::compare(
                comparison,
                Scalar::Integer(0),
                Scalar::Integer(0),
            )));
        }
        Simplified::Operation(Operation::Compare(comparison, x, y))
    }

    fn simplify_select(&self, condition: Register, x: Register, y: Register) -> Simplified {
        if x == y {
            return Simplified::Register(x);
        }
        if let Some(value) = self.constant_value(condition) {
            return Simplified::Register(if value.to_bool() { x } else { y });
        }
        if let Operation::Unary(Unary::Not, inner) = *self.operation(condition) {
            return self.simplify_select(inner, y, x);
        }
        if self.kind(x) == Kind::Bool {
            let constant = |r| self.constant_value(r).map(Scalar::to_bool);
            let combine = |function, other| self.simplify_bool(function, condition, other);
            match (constant(x), constant(y)) {
                (Some(true), Some(false)) => return Simplified::Register(condition),
                (Some(true), None) => return combine(Binary::Or, y),
                (None, Some(false)) => return combine(Binary::And, x),
                _ => {}
            }
        }
        Simplified::Operation(Operation::Select(condition, x, y))
    }

    fn simplify_cast(&self, x: Register, kind: Kind) -> Simplified {
        if self.kind(x) == kind {
            return Simplified::Register(x);
        }
        if let Operation::Cast(inner) = *self.operation(x) {
            let widened = matches!(
                (self.kind(inner), self.kind(x)),
                (Kind::I32, Kind::I64) | (Kind::F32, Kind::F64) | (Kind::I32, Kind::F64) | (Kind::Bool, _)
            );
            if widened && self.kind(inner) == kind {
                return Simplified::Register(inner);
            }
            if widened && self.kind(x) == Kind::I64 {
                return Simplified::Operation(Operation::Cast(inner));
            }
        }
        Simplified::Operation(Operation::Cast(x))
    }
}

enum Simplified {
    Register(Register),
    Constant(Scalar),
    Operation(Operation),
}

/// The comparison that holds where this one does not, for totally ordered operands.
fn opposite(comparison: Compare) -> Compare {
    match comparison {
        Compare::Eq => Compare::Ne,
        Compare::Ne => Compare::Eq,
        Compare::Lt => Compare::Ge,
        Compare::Le => Compare::Gt,
        Compare::Gt => Compare::Le,
        Compare::Ge => Compare::Lt,
    }
}

/// The comparison that means the same with its operands exchanged.
fn mirrored(comparison: Compare) -> Compare {
    match comparison {
        Compare::Eq => Compare::Eq,
        Compare::Ne => Compare::Ne,
        Compare::Lt => Compare::Gt,
        Compare::Le => Compare::Ge,
        Compare::Gt => Compare::Lt,
        Compare::Ge => Compare::Le,
    }
}

/// A key that two instructions share exactly when they are equal (constants by their bits).
fn fingerprint(operation: &Operation, kind: Kind) -> Vec<u64> {
    let register = |r: &Register| u64::from(r.0);
    let (tag, rest) = match operation {
        Operation::Input(number) => (0, vec![*number as u64]),
        Operation::Constant(Scalar::Float(x)) => (1, vec![x.to_bits()]),
        Operation::Constant(Scalar::Integer(x)) => (2, vec![*x as u64]),
        Operation::Constant(Scalar::Bool(x)) => (3, vec![u64::from(*x)]),
        Operation::Unary(function, x) => (4, vec![*function as u64, register(x)]),
        Operation::Binary(function, x, y) => (5, vec![*function as u64, register(x), register(y)]),
        Operation::Compare(comparison, x, y) => (6, vec![*comparison as u64, register(x), register(y)]),
        Operation::Select(c, x, y) => (7, vec![register(c), register(x), register(y)]),
        Operation::Cast(x) => (8, vec![register(x)]),
        Operation::Round(dtype, x) => (9, vec![*dtype as u64, register(x)]),
        Operation::Load(table, indices) => {
            (10, std::iter::once(*table as u64).chain(indices.iter().map(register)).collect())
        }
        Operation::RandomBits(key, counter) => (11, vec![register(key), register(counter)]),
    };
    [vec![tag, kind as u64], rest].concat()
}
