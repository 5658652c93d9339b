//! Programs as straight-line CUDA C++.
//!
//! A register becomes a variable of its kind's type, an instruction one statement. Integers wrap, division
//! rounds towards −∞, conversions saturate, a NaN stays one: what C++ leaves undefined or does otherwise is a
//! function of `arithmetic.cuh`.
//!
//! A load checks its indices. One that is out of range, for an element that is live, is noted in the variable
//! `fault` (see `Fault` in `arithmetic.cuh`) under a *site*: a number that stands for one axis of one load, and
//! that [`Site`] turns back into the user's array. The value is then 0.

use std::fmt::Write;

use tilewright_ir::{Binary, Compare, DType, Scalar, Unary};
use tilewright_plan::{Kind, Operation, Program, Register, Table};

use super::parameters::Parameters;
use super::ranges::{self, Fact, Reach};
use super::types::{loaded, register};

/// One axis of one load: where an index may be out of range.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// The array that is read.
    pub table: Table,
    /// Which axis the index is for.
    pub axis: usize,
}

/// What a program's text refers to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// An expression for each input.
    pub inputs: &'a [String],
    /// The arrays that loads read, given by [`Parameters::tables`].
    pub tables: &'a [Table],
    /// An expression that says whether the element is live: only then are indices out of range faults.
    pub live: &'a str,
    /// What stands before each statement.
    pub indent: &'a str,
    /// Put before the number of each register.
    pub prefix: &'a str,
    /// What is known of each register; nothing where there are none.
    pub facts: &'a [Fact],
    /// Expressions of registers that stand elsewhere already; nothing where there are none.
    pub given: &'a [Option<String>],
    /// Whether the machine's approximate functions serve: where what comes of them is rounded to a half type.
    pub approximate: bool,
}

/// A program's text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Text {
    /// One statement a line.
    pub statements: String,
    /// An expression for each register that was asked for.
    pub results: Vec<String>,
}

/// Writes what computes the registers `wanted` of a program.
pub fn write(
    program: &Program,
    wanted: &[Register],
    scope: Scope,
    parameters: &mut Parameters,
    sites: &mut Vec<Site>,
) -> Text {
    let mut needed = vec![false; program.instructions.len()];
    wanted.iter().for_each(|result| needed[result.index()] = true);
    let given = |number: usize| scope.given.get(number).and_then(Option::as_ref);
    for (number, instruction) in program.instructions.iter().enumerate().rev() {
        if needed[number] && given(number).is_none() {
            instruction.operation.operands().iter().for_each(|operand| needed[operand.index()] = true);
        }
    }
    let mut names: Vec<String> = Vec::with_capacity(needed.len());
    let mut statements = String::new();
    for (number, instruction) in program.instructions.iter().enumerate() {
        let name = format!("{}{number}", scope.prefix);
        if !needed[number] {
            names.push(name);
            continue;
        }
        if let Some(expression) = given(number) {
            names.push(expression.clone());
            continue;
        }
        let kind = instruction.kind;
        let value = |register: &Register| names[register.index()].as_str();
        let expression = match &instruction.operation {
            Operation::Input(input) => {
                names.push(scope.inputs[*input].clone());
                continue;
            }
            Operation::Constant(constant) => {
                names.push(literal(*constant, kind, parameters));
                continue;
            }
            Operation::Unary(function, x) => match approximate(scope, *function, kind) {
                Some(name) => format!("{name}({})", value(x)),
                None => unary(*function, kind, value(x)),
            },
            Operation::Binary(Binary::Div, x, y) if scope.approximate && kind == Kind::F32 => {
                match &program.instructions[y.index()].operation {
                    // A division by a constant is a product with its inverse, where that is a number.
                    Operation::Constant(divisor) if (1.0 / divisor.to_f64()).is_normal() => {
                        let inverse = Scalar::Float(1.0 / divisor.to_f64());
                        format!("{} * {}", value(x), literal(inverse, kind, parameters))
                    }
                    _ => format!("divide_approximate({}, {})", value(x), value(y)),
                }
            }
            Operation::Binary(function, x, y) => binary(*function, kind, value(x), value(y)),
            Operation::Compare(comparison, x, y) => {
                format!("{} {} {}", value(x), symbol(*comparison), value(y))
            }
            Operation::Select(condition, x, y) => {
                format!("{} ? {} : {}", value(condition), value(x), value(y))
            }
            Operation::Cast(x) => cast(program.kind(*x), kind, value(x)),
            Operation::Round(dtype, x) => round(*dtype, value(x)),
            Operation::Load(table, indices) => {
                let reaches: Vec<Reach> = indices
                    .iter()
                    .zip(&scope.tables[*table].shape)
                    .map(|(index, &extent)| {
                        let fact = scope.facts.get(index.index());
                        fact.map_or(Reach::Unknown, |fact| ranges::reach(fact.range, extent))
                    })
                    .collect();
                let indices: Vec<(&str, Reach)> = indices.iter().map(value).zip(reaches).collect();
                let read = load(&name, *table, &indices, scope, sites, &mut statements);
                loaded(scope.tables[*table].dtype, &read)
            }
            Operation::RandomBits(key, counter) => format!("random_bits({}, {})", value(key), value(counter)),
        };
        writeln!(statements, "{}{} {name} = {expression};", scope.indent, register(kind))
            .expect("a string takes any text");
        names.push(name);
    }
    let results = wanted.iter().map(|result| names[result.index()].clone()).collect();
    Text { statements, results }
}

/// The machine's approximate function, where it serves.
fn approximate(scope: Scope, function: Unary, kind: Kind) -> Option<&'static str> {
    let name = match function {
        Unary::Tanh => "tanh_approximate",
        Unary::Exp => "exponential_approximate",
        Unary::Sigmoid => "sigmoid_approximate",
        Unary::Neg
        | Unary::Abs
        | Unary::Sign
        | Unary::Expm1
        | Unary::Log
        | Unary::Log1p
        | Unary::Sqrt
        | Unary::Rsqrt
        | Unary::Sin
        | Unary::Cos
        | Unary::Tan
        | Unary::Erf
        | Unary::Floor
        | Unary::Ceil
        | Unary::Round
        | Unary::Not => return None,
    };
    (scope.approximate && kind == Kind::F32).then_some(name)
}

/// Writes the place of an element, and gives the expression that reads it if it is there.
fn load(
    name: &str,
    table: usize,
    indices: &[(&str, Reach)],
    scope: Scope,
    sites: &mut Vec<Site>,
    statements: &mut String,
) -> String {
    let Scope { live, indent, tables, .. } = scope;
    let mut line = |text: String| writeln!(statements, "{indent}{text}").expect("a string takes any text");
    line(format!("bool {name}_inside = {live};"));
    let near = !scope.facts.is_empty() && ranges::near(&tables[table]);
    let ty = if near { "int" } else { "long long" };
    line(format!("{ty} {name}_at = 0;"));
    for (axis, (index, reach)) in indices.iter().enumerate() {
        let [extent, stride] =
            ["extents", "strides"].map(|what| format!("({ty})p.table_{table}_{what}[{axis}]"));
        match reach {
            Reach::Inside => line(format!("{name}_at += ({ty})({index}) * {stride};")),
            Reach::Wraps => {
                line(format!(
                    "{name}_at += (({index}) < 0 ? ({ty})({index}) + {extent} : ({ty})({index})) * {stride};"
                ));
            }
            Reach::Unknown => {
                let site = sites.len();
                line(format!(
                    "locate({index}, {extent}, {stride}, {site}, {name}_inside, {name}_at, fault);"
                ));
                sites.push(Site { table: tables[table].clone(), axis });
            }
        }
    }
    let zero = match tables[table].dtype {
        DType::BF16 | DType::F16 => format!("{}{{0}}", super::types::element(tables[table].dtype)),
        DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::U8 | DType::Bool => {
            format!("({})0", super::types::element(tables[table].dtype))
        }
    };
    format!("({name}_inside ? read_only(p.table_{table} + {name}_at) : {zero})")
}

/// A constant: simple ones in the text, any other a parameter.
pub(super) fn literal(value: Scalar, kind: Kind, parameters: &mut Parameters) -> String {
    let ty = register(kind);
    match kind {
        Kind::Bool => value.to_bool().to_string(),
        Kind::I64 | Kind::I32 => match value.to_i64() {
            x @ -16..=16 if kind == Kind::I64 => format!("{x}ll"),
            x @ -16..=16 => x.to_string(),
            x => parameters.constant(Scalar::Integer(x), ty),
        },
        Kind::F64 | Kind::F32 => {
            let x = value.to_f64();
            let suffix = if kind == Kind::F32 { "f" } else { "" };
            if x.is_nan() {
                format!("not_a_number<{ty}>()")
            } else if x.is_infinite() {
                format!("{}infinity<{ty}>()", if x < 0.0 { "-" } else { "" })
            } else if x.abs() <= 16.0 && (x * 2.0).fract() == 0.0 {
                format!("{x:?}{suffix}")
            } else {
                parameters.constant(Scalar::Float(x), ty)
            }
        }
    }
}

pub(super) fn symbol(comparison: Compare) -> &'static str {
    match comparison {
        Compare::Eq => "==",
        Compare::Ne => "!=",
        Compare::Lt => "<",
        Compare::Le => "<=",
        Compare::Gt => ">",
        Compare::Ge => ">=",
    }
}

fn unary(function: Unary, kind: Kind, x: &str) -> String {
    match kind {
        Kind::F64 | Kind::F32 => float_unary(function, kind, x),
        Kind::I64 | Kind::I32 => integer_unary(function, x),
        Kind::Bool if function == Unary::Not => format!("!{x}"),
        Kind::Bool => x.into(),
    }
}

/// The library's function of doubles, and its like of floats.
fn library(name: &str, kind: Kind, arguments: &[&str]) -> String {
    let suffix = if kind == Kind::F32 { "f" } else { "" };
    format!("{name}{suffix}({})", arguments.join(", "))
}

fn float_unary(function: Unary, kind: Kind, x: &str) -> String {
    let call = |name| library(name, kind, &[x]);
    match function {
        Unary::Neg => format!("-{x}"),
        Unary::Abs => call("fabs"),
        Unary::Sign => format!("sign({x})"),
        Unary::Exp => call("exp"),
        Unary::Expm1 => call("expm1"),
        Unary::Log => call("log"),
        Unary::Log1p => call("log1p"),
        Unary::Sqrt => call("sqrt"),
        Unary::Rsqrt => format!("1 / {}", call("sqrt")),
        Unary::Sin => call("sin"),
        Unary::Cos => call("cos"),
        Unary::Tan => call("tan"),
        Unary::Tanh => call("tanh"),
        Unary::Sigmoid if kind == Kind::F32 => format!("sigmoid({x})"),
        Unary::Sigmoid => format!("1 / (1 + {})", library("exp", kind, &[&format!("-{x}")])),
        Unary::Erf => call("erf"),
        Unary::Floor => call("floor"),
        Unary::Ceil => call("ceil"),
        Unary::Round => call("rint"),
        Unary::Not => format!("not_a_number<{}>()", register(kind)),
    }
}

/// Functions of floats only give 0: no verified program asks for them.
fn integer_unary(function: Unary, x: &str) -> String {
    match function {
        Unary::Neg => format!("wrapping_negate({x})"),
        Unary::Abs => format!("({x} < 0 ? wrapping_negate({x}) : {x})"),
        Unary::Sign => format!("({x} > 0) - ({x} < 0)"),
        Unary::Not => format!("~{x}"),
        Unary::Exp
        | Unary::Expm1
        | Unary::Log
        | Unary::Log1p
        | Unary::Sqrt
        | Unary::Rsqrt
        | Unary::Sin
        | Unary::Cos
        | Unary::Tan
        | Unary::Tanh
        | Unary::Sigmoid
        | Unary::Erf
        | Unary::Floor
        | Unary::Ceil
        | Unary::Round => "0".into(),
    }
}

pub(super) fn binary(function: Binary, kind: Kind, x: &str, y: &str) -> String {
    match kind {
        Kind::F64 | Kind::F32 => float_binary(function, kind, x, y),
        Kind::I64 | Kind::I32 => integer_binary(function, x, y),
        Kind::Bool => bool_binary(function, x, y),
    }
}

fn float_binary(function: Binary, kind: Kind, x: &str, y: &str) -> String {
    match function {
        Binary::Add => format!("{x} + {y}"),
        Binary::Sub => format!("{x} - {y}"),
        Binary::Mul => format!("{x} * {y}"),
        Binary::Div => format!("{x} / {y}"),
        Binary::Rem => format!("floored_remainder({x}, {y})"),
        Binary::Pow => library("pow", kind, &[x, y]),
        Binary::Max => format!("maximum({x}, {y})"),
        Binary::Min => format!("minimum({x}, {y})"),
        Binary::Atan2 => library("atan2", kind, &[x, y]),
        Binary::And | Binary::Or | Binary::Xor => format!("not_a_number<{}>()", register(kind)),
    }
}

fn integer_binary(function: Binary, x: &str, y: &str) -> String {
    match function {
        Binary::Add => format!("wrapping_add({x}, {y})"),
        Binary::Sub => format!("wrapping_subtract({x}, {y})"),
        Binary::Mul => format!("wrapping_multiply({x}, {y})"),
        Binary::Div => format!("floored_quotient({x}, {y})"),
        Binary::Rem => format!("floored_remainder({x}, {y})"),
        Binary::Max => format!("({x} > {y} ? {x} : {y})"),
        Binary::Min => format!("({x} < {y} ? {x} : {y})"),
        Binary::And => format!("{x} & {y}"),
        Binary::Or => format!("{x} | {y}"),
        Binary::Xor => format!("{x} ^ {y}"),
        Binary::Pow | Binary::Atan2 => "0".into(),
    }
}

fn bool_binary(function: Binary, x: &str, y: &str) -> String {
    match function {
        Binary::And | Binary::Min | Binary::Mul => format!("{x} && {y}"),
        Binary::Or | Binary::Max => format!("{x} || {y}"),
        Binary::Xor | Binary::Add | Binary::Sub => format!("{x} != {y}"),
        Binary::Div | Binary::Rem | Binary::Pow | Binary::Atan2 => "false".into(),
    }
}

fn cast(from: Kind, to: Kind, x: &str) -> String {
    match (from, to) {
        (Kind::F64 | Kind::F32, Kind::I64) => format!("saturating_long({x})"),
        (Kind::F64 | Kind::F32, Kind::I32) => format!("saturating_int({x})"),
        // By way of a double, as the definition does.
        (Kind::I64, Kind::F32) => format!("(float)(double){x}"),
        (Kind::F64 | Kind::F32 | Kind::I64 | Kind::I32 | Kind::Bool, Kind::Bool) => format!("{x} != 0"),
        (Kind::F64 | Kind::F32 | Kind::I64 | Kind::I32 | Kind::Bool, Kind::F64 | Kind::F32)
        | (Kind::I64 | Kind::I32 | Kind::Bool, Kind::I64 | Kind::I32) => {
            format!("({}){x}", register(to))
        }
    }
}

fn round(dtype: DType, x: &str) -> String {
    match dtype {
        DType::BF16 => format!("to_float(from_float<bfloat16>({x}))"),
        DType::F16 => format!("to_float(from_float<float16>({x}))"),
        DType::U8 => format!("{x} & 255"),
        DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::Bool => x.into(),
    }
}
