//! A mask over a rectangle of pairs, as C++: each register an interval or a truth value that may be unknown, so that a
//! block of the map is seldom looked at pair by pair. The functions are those of `engines/intervals.cuh`.

use std::fmt::Write;

use tilewright_ir::{Binary, Compare, DType, Unary};
use tilewright_plan::{Kind, Operation, Program, Table};

use super::parameters::Parameters;
use super::region::literal;
use super::types::register;

/// `admits_block`: what a mask's result is over queries and keys from the first to the last.
pub(super) fn write(mask: &Program, tables: &[Table], parameters: &mut Parameters) -> String {
    let mut text = String::from(
        "// The mask over a rectangle of pairs.\n\
         DEVICE Truth admits_block(const Parameters& p, Interval b, Interval h, Interval q, Interval k, bool& safe) \
         {\n",
    );
    for (number, instruction) in mask.instructions.iter().enumerate() {
        let kind = instruction.kind;
        let ty = match kind {
            Kind::Bool => "Truth",
            Kind::I64 | Kind::I32 => "Interval",
            // Not followed: whatever reads a float is unknown.
            Kind::F64 | Kind::F32 => continue,
        };
        let value = expression(mask, number, tables, parameters, &mut text);
        let value =
            value.unwrap_or_else(|| if kind == Kind::Bool { "unknown()" } else { "anything()" }.into());
        writeln!(text, "    {ty} r{number} = {value};").expect("a string takes any text");
    }
    writeln!(text, "    return r{};\n}}", mask.results[0].index()).expect("a string takes any text");
    text
}

/// A register's interval or truth value; none where it is not followed.
fn expression(
    mask: &Program,
    number: usize,
    tables: &[Table],
    parameters: &mut Parameters,
    text: &mut String,
) -> Option<String> {
    let instruction = &mask.instructions[number];
    let kind = instruction.kind;
    let followed = |operand: &tilewright_plan::Register| match mask.kind(*operand) {
        Kind::Bool | Kind::I64 | Kind::I32 => true,
        Kind::F64 | Kind::F32 => false,
    };
    // An index that is not followed may be out of range.
    if !instruction.operation.operands().iter().all(followed) {
        return None;
    }
    let name = |operand: &tilewright_plan::Register| format!("r{}", operand.index());
    let ty = register(kind);
    Some(match &instruction.operation {
        Operation::Input(input) => ["b", "h", "q", "k"].get(*input)?.to_string(),
        Operation::Constant(constant) => {
            let value = literal(*constant, kind, parameters);
            match kind {
                Kind::Bool => format!("Truth{{{value}, {value}}}"),
                Kind::I64 | Kind::I32 | Kind::F64 | Kind::F32 => {
                    format!("kept<{ty}>(Interval{{{value}, {value}}})")
                }
            }
        }
        Operation::Unary(function, x) => match (function, kind) {
            (Unary::Not, Kind::Bool) => format!("opposite({})", name(x)),
            (Unary::Neg, Kind::I64 | Kind::I32) => format!("kept<{ty}>(negative({}))", name(x)),
            (Unary::Abs, Kind::I64 | Kind::I32) => format!("kept<{ty}>(absolute({}))", name(x)),
            _ => return None,
        },
        Operation::Binary(function, x, y) => {
            let (x, y) = (name(x), name(y));
            match (kind, function) {
                (Kind::Bool, Binary::And | Binary::Min | Binary::Mul) => format!("both({x}, {y})"),
                (Kind::Bool, Binary::Or | Binary::Max) => format!("either({x}, {y})"),
                (Kind::Bool, Binary::Xor | Binary::Add | Binary::Sub) => format!("differ({x}, {y})"),
                (Kind::I64 | Kind::I32, Binary::Add) => format!("add<{ty}>({x}, {y})"),
                (Kind::I64 | Kind::I32, Binary::Sub) => format!("subtract<{ty}>({x}, {y})"),
                (Kind::I64 | Kind::I32, Binary::Mul) => format!("multiply<{ty}>({x}, {y})"),
                (Kind::I64 | Kind::I32, Binary::Min) => format!("least({x}, {y})"),
                (Kind::I64 | Kind::I32, Binary::Max) => format!("most({x}, {y})"),
                (Kind::I64 | Kind::I32, Binary::Div) => format!("quotient({x}, {y})"),
                (Kind::I64 | Kind::I32, Binary::Rem) => format!("remainder({x}, {y})"),
                _ => return None,
            }
        }
        Operation::Compare(comparison, x, y) => {
            if mask.kind(*x) == Kind::Bool {
                return None;
            }
            let (x, y) = (name(x), name(y));
            match comparison {
                Compare::Eq => format!("equal({x}, {y})"),
                Compare::Ne => format!("opposite(equal({x}, {y}))"),
                Compare::Lt => format!("below({x}, {y})"),
                Compare::Gt => format!("below({y}, {x})"),
                Compare::Le => format!("opposite(below({y}, {x}))"),
                Compare::Ge => format!("opposite(below({x}, {y}))"),
            }
        }
        Operation::Select(condition, x, y) => {
            format!("choice({}, {}, {})", name(condition), name(x), name(y))
        }
        Operation::Cast(x) => match (mask.kind(*x), kind) {
            (Kind::Bool, Kind::Bool) => name(x),
            (Kind::Bool, _) => format!("number({})", name(x)),
            (_, Kind::Bool) => format!("opposite(equal({}, Interval{{0, 0}}))", name(x)),
            (_, _) => format!("kept<{ty}>({})", name(x)),
        },
        Operation::Load(table, indices) => {
            let read = match tables[*table].dtype {
                DType::I64 | DType::I32 | DType::U8 | DType::Bool => indices.len(),
                DType::F64 | DType::F32 | DType::BF16 | DType::F16 => return None,
            };
            if read == 0 {
                return None;
            }
            let names: Vec<String> = indices.iter().map(name).collect();
            writeln!(text, "    Interval at_{number}[{read}] = {{{}}};", names.join(", "))
                .expect("a string takes any text");
            let found = format!(
                "elements(p.table_{table}, p.table_{table}_extents, p.table_{table}_strides, at_{number}, safe)"
            );
            match kind {
                Kind::Bool => format!("opposite(equal({found}, Interval{{0, 0}}))"),
                Kind::I64 | Kind::I32 | Kind::F64 | Kind::F32 => found,
            }
        }
        Operation::Round(..) | Operation::RandomBits(..) => return None,
    })
}

/// Whether loads of a mask may be out of range without being followed: then every pair is to be looked at.
pub(super) fn follows_loads(mask: &Program, tables: &[Table]) -> bool {
    mask.instructions.iter().all(|instruction| match &instruction.operation {
        Operation::Load(table, indices) => {
            let whole =
                |operand: &tilewright_plan::Register| matches!(mask.kind(*operand), Kind::I64 | Kind::I32);
            !indices.is_empty()
                && indices.iter().all(whole)
                && matches!(tables[*table].dtype, DType::I64 | DType::I32 | DType::U8 | DType::Bool)
        }
        Operation::Input(_)
        | Operation::Constant(_)
        | Operation::Unary(..)
        | Operation::Binary(..)
        | Operation::Compare(..)
        | Operation::Select(..)
        | Operation::Cast(_)
        | Operation::Round(..)
        | Operation::RandomBits(..) => true,
    })
}
