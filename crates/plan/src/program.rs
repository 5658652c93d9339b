//! Straight-line typed scalar code: what a user's function, or a group of fused operations, becomes.
//!
//! A program runs once for each element of a tile. Registers are in single assignment form: instruction i
//! defines register i. What the inputs and tables mean is said by the kernel that holds the program.

use std::fmt;

use tilewright_ir::{Binary, Compare, DType, Scalar, Unary};

/// How a register's values are held. Narrow floats are computed in `F32`, `u8` in `I32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 64-bit integer.
    I64,
    /// 32-bit integer.
    I32,
    /// Truth value.
    Bool,
}

impl Kind {
    /// The kind in which elements of `dtype` are computed.
    pub fn of(dtype: DType) -> Kind {
        match dtype {
            DType::F64 => Kind::F64,
            DType::F32 | DType::BF16 | DType::F16 => Kind::F32,
            DType::I64 => Kind::I64,
            DType::I32 | DType::U8 => Kind::I32,
            DType::Bool => Kind::Bool,
        }
    }
}

/// A value of a [`Program`]: the number of the instruction that defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Register(pub u32);

impl Register {
    /// Its position in [`Program::instructions`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One instruction: what it computes, and the kind of its result.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// What it computes.
    pub operation: Operation,
    /// The kind of the register that it defines.
    pub kind: Kind,
}

/// What an instruction computes. Meaning, also of corner cases, is that of the like-named `ir` operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// The kernel's input of this number.
    Input(usize),
    /// A constant, of the instruction's kind.
    Constant(Scalar),
    /// A function of one register of the same kind.
    Unary(Unary, Register),
    /// A function of two registers of the same kind.
    Binary(Binary, Register, Register),
    /// A comparison of two registers of one kind; defines a `Bool`.
    Compare(Compare, Register, Register),
    /// The second where the first (a `Bool`) holds, else the third.
    Select(Register, Register, Register),
    /// Conversion to the instruction's kind.
    Cast(Register),
    /// Rounding of an `F32` to the values of a narrower float, or wrapping of an `I32` to `u8`.
    Round(DType, Register),
    /// An element of the kernel's table of this number, one integer register per axis of the table.
    /// A negative index counts from the end; one out of range is reported if the element is live, and the
    /// value is then 0.
    Load(usize, Vec<Register>),
    /// `ir`'s random bits, for a key (`I64`) and a counter (`I64`); defines an `I32`.
    RandomBits(Register, Register),
}

impl Operation {
    /// The registers that it reads, in order.
    pub fn operands(&self) -> Vec<Register> {
        match self {
            Operation::Input(_) | Operation::Constant(_) => vec![],
            Operation::Unary(_, a) | Operation::Cast(a) | Operation::Round(_, a) => vec![*a],
            Operation::Binary(_, a, b) | Operation::Compare(_, a, b) | Operation::RandomBits(a, b) => {
                vec![*a, *b]
            }
            Operation::Select(a, b, c) => vec![*a, *b, *c],
            Operation::Load(_, indices) => indices.clone(),
        }
    }

    /// The same of other registers: `name` gives each one's new name.
    #[must_use]
    pub fn renamed(&self, name: impl Fn(Register) -> Register) -> Operation {
        match self {
            Operation::Input(number) => Operation::Input(*number),
            Operation::Constant(value) => Operation::Constant(*value),
            Operation::Unary(function, x) => Operation::Unary(*function, name(*x)),
            Operation::Binary(function, x, y) => Operation::Binary(*function, name(*x), name(*y)),
            Operation::Compare(comparison, x, y) => Operation::Compare(*comparison, name(*x), name(*y)),
            Operation::Select(c, x, y) => Operation::Select(name(*c), name(*x), name(*y)),
            Operation::Cast(x) => Operation::Cast(name(*x)),
            Operation::Round(dtype, x) => Operation::Round(*dtype, name(*x)),
            Operation::Load(table, indices) => {
                Operation::Load(*table, indices.iter().map(|&r| name(r)).collect())
            }
            Operation::RandomBits(key, counter) => Operation::RandomBits(name(*key), name(*counter)),
        }
    }
}

/// Straight-line code with some results.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// The instructions; each reads only registers before it.
    pub instructions: Vec<Instruction>,
    /// The registers that are the program's results.
    pub results: Vec<Register>,
}

impl Program {
    /// Appends an instruction, reusing an equal earlier one.
    pub fn push(&mut self, operation: Operation, kind: Kind) -> Register {
        let instruction = Instruction { operation, kind };
        if let Some(i) = self.instructions.iter().position(|earlier| *earlier == instruction) {
            return Register(i as u32);
        }
        self.instructions.push(instruction);
        Register(self.instructions.len() as u32 - 1)
    }

    /// The kind of a register.
    pub fn kind(&self, register: Register) -> Kind {
        self.instructions[register.index()].kind
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}
