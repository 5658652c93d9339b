//! A score function in stages: what depends on the head only, on the query, on where a tile lies, and on the pair.
//!
//! A thread evaluates the function at many pairs of a tile, whose rows and columns are a fixed distance from its first.
//! What depends on the batch and head, or on the query beside these, is evaluated once and kept. An index that grows
//! evenly along the tile becomes an address at the tile's first pair, from which the pairs are constants away; and so
//! does the float that such a number is converted to. Equal expressions of neighbouring pairs, such as the element of a
//! relative bias that two pairs share, are left for the compiler to find: it does, as nothing stands between them.

use std::fmt::Write;

use tilewright_ir::Scalar;
use tilewright_plan::{Kind, Operation, Program};

use super::functions::Functions;
use super::ranges::{self, Affine, Reach, Varies};
use super::region::literal;
use super::types::{element, loaded, register};

const HEAD: Varies = Varies { query: false, key: false, score: false };
const ROW: Varies = Varies { query: true, key: false, score: false };
/// Floats hold integers up to here exactly.
const EXACT: i64 = 1 << 24;

/// The struct of a stage and the function that fills it.
struct Stage {
    name: &'static str,
    fields: String,
    fill: String,
}

impl Stage {
    fn field(&mut self, ty: &str, number: usize, value: &str) {
        writeln!(self.fields, "    {ty} r{number};").expect("a string takes any text");
        writeln!(self.fill, "    stage.r{number} = {value};").expect("a string takes any text");
    }

    /// The struct, and `{function}(p, <parameters>)`, which fills it with what `statements` compute.
    fn text(&self, function: &str, parameters: &str, statements: &str) -> String {
        let Stage { name, fields, fill } = self;
        format!(
            "struct {name} {{\n{fields}    bool outside;\n}};\n\
             DEVICE {name} {function}(const Parameters& p{parameters}) {{\n    Fault fault;\n{statements}    \
             {name} stage;\n{fill}    stage.outside = fault.site >= 0;\n    return stage;\n}}\n"
        )
    }
}

impl Functions<'_> {
    /// `score_head`, `score_row`, `score_tile_start`, and `score_near` and `score_checked` that go on from what these
    /// gave: at pairs of a tile that lies within the lengths, and at any pair. Where a stage is `outside`, an index of
    /// it is out of range, and `score` says whether that is a fault.
    pub fn staged_score(&mut self, program: Option<&Program>) {
        let none = Program::default();
        let program_or_none = program.unwrap_or(&none);
        let facts = ranges::facts(program_or_none, &ranges::of_pairs(self.pairs.sizes), self.tables);
        let count = program_or_none.instructions.len();
        let needed = needed(program_or_none);
        // What later stages, or the result, read of an earlier one.
        let kept = |varies: Varies| -> Vec<usize> {
            let read = |number: usize| {
                let later = program_or_none.instructions.iter().enumerate().any(|(reader, instruction)| {
                    needed[reader]
                        && facts[reader].varies != varies
                        && instruction.operation.operands().iter().any(|operand| operand.index() == number)
                });
                later || program_or_none.results[0].index() == number
            };
            let worth = |number: usize| {
                let operation = &program_or_none.instructions[number].operation;
                !matches!(operation, Operation::Input(_) | Operation::Constant(_))
            };
            (0..count)
                .filter(|&number| {
                    needed[number] && facts[number].varies == varies && worth(number) && read(number)
                })
                .collect()
        };
        let mut given: Vec<Option<String>> = vec![None; count];

        let mut text = String::new();
        for (name, function, parameters, varies, place) in [
            ("ScoreHead", "score_head", ", int b, int h", HEAD, "head"),
            ("ScoreRow", "score_row", ", const ScoreHead& head, int b, int h, int q", ROW, "row"),
        ] {
            let mut stage = Stage { name, fields: String::new(), fill: String::new() };
            let kept = kept(varies);
            let registers: Vec<_> =
                kept.iter().map(|&number| tilewright_plan::Register(number as u32)).collect();
            let body = self.body_knowing(program_or_none, &registers, "true", &facts, &given);
            for (&number, value) in kept.iter().zip(&body.results) {
                stage.field(register(program_or_none.instructions[number].kind), number, value);
            }
            text += &stage.text(function, parameters, &body.statements);
            for number in kept {
                given[number] = Some(format!("{place}.r{number}"));
            }
        }
        let checked = given.clone();

        // What changes evenly along the tile.
        let mut start = Stage { name: "ScoreTile", fields: String::new(), fill: String::new() };
        let mut statements = String::new();
        for number in (0..count).filter(|&number| needed[number] && facts[number].varies.key) {
            let instruction = &program_or_none.instructions[number];
            match &instruction.operation {
                Operation::Cast(x) if instruction.kind == Kind::F32 => {
                    let fact = facts[x.index()];
                    let exact = fact.range.0 > -EXACT && fact.range.1 < EXACT;
                    let Some(form) = fact.affine.filter(|form| exact && gentle(*form)) else { continue };
                    let value = format!("(float)({})", self.at_start(form));
                    start.field("float", number, &value);
                    given[number] = Some(format!("(tile.r{number} + (float)({}))", from_start(form)));
                }
                Operation::Load(table, indices) => {
                    let wanted: Vec<_> = indices
                        .iter()
                        .copied()
                        .filter(|index| facts[index.index()].affine.is_none())
                        .collect();
                    let shape = &self.tables[*table].shape;
                    let even = indices.iter().zip(shape).all(|(index, &extent)| {
                        let fact = facts[index.index()];
                        let steady = fact.affine.is_some_and(gentle) || fact.varies == HEAD;
                        steady && ranges::reach(fact.range, extent) == Reach::Inside
                    });
                    if !even || !ranges::near(&self.tables[*table]) {
                        continue;
                    }
                    let body = self.body_knowing(program_or_none, &wanted, "true", &facts, &checked);
                    // Statements of two loads may be the same: each in a scope of its own.
                    let mut others = body.results.iter();
                    let mut place = String::from("0");
                    let mut moves = String::from("0");
                    for (axis, index) in indices.iter().enumerate() {
                        // A contiguous axis is known to be one, so that neighbours are constants apart.
                        let stride = match self.tables[*table].view.strides[axis] {
                            1 => "1".into(),
                            _ => format!("(int)p.table_{table}_strides[{axis}]"),
                        };
                        match facts[index.index()].affine {
                            Some(form) => {
                                let start = self.at_start(form);
                                write!(place, " + ({start}) * {stride}").expect("text");
                                if form.query != 0 || form.key != 0 {
                                    write!(moves, " + ({}) * {stride}", from_start(form)).expect("text");
                                }
                            }
                            None => {
                                let index = others.next().expect("each index without a form is wanted");
                                write!(place, " + (int)({index}) * {stride}").expect("text");
                            }
                        }
                    }
                    let dtype = self.tables[*table].dtype;
                    writeln!(start.fields, "    const {}* r{number};", element(dtype)).expect("text");
                    writeln!(
                        statements,
                        "    const {}* start_{number};\n    {{\n{}    start_{number} = p.table_{table} + ({place});\n    }}",
                        element(dtype),
                        body.statements
                    )
                    .expect("text");
                    writeln!(start.fill, "    stage.r{number} = start_{number};").expect("text");
                    given[number] = Some(loaded(dtype, &format!("read_only(tile.r{number} + ({moves}))")));
                }
                Operation::Input(_)
                | Operation::Constant(_)
                | Operation::Unary(..)
                | Operation::Binary(..)
                | Operation::Compare(..)
                | Operation::Select(..)
                | Operation::Cast(_)
                | Operation::Round(..)
                | Operation::RandomBits(..) => {}
            }
        }
        text += &start.text(
            "score_tile_start",
            ", const ScoreHead& head, int b, int h, int q, int k",
            &statements,
        );

        for (name, tile, coordinates, live, given) in [
            (
                "score_near",
                ", const ScoreTile& tile",
                ", int first_query, int first_key, int query_step, int key_step",
                "true",
                &given,
            ),
            ("score_checked", "", ", int q, int k, bool live", "live", &checked),
        ] {
            let signature = format!(
                "DEVICE float {name}(const Parameters& p, const ScoreHead& head, const ScoreRow& row{tile}, int b, \
                 int h{coordinates}, float s, Fault& fault)"
            );
            let steps = if tile.is_empty() {
                ""
            } else {
                "    int q = first_query + query_step, k = first_key + key_step;\n"
            };
            let (statements, result) = match program {
                None => (String::new(), "s".to_string()),
                Some(program) => {
                    let body = self.body_knowing(program, &program.results[..1], live, &facts, given);
                    (body.statements, body.results[0].clone())
                }
            };
            write!(text, "{signature} {{\n{steps}{statements}    return {result};\n}}\n").expect("text");
        }
        self.text.push_str("// The score function in stages.\n");
        self.text.push_str(&text);
    }

    /// A form at the first pair of a tile, as an expression.
    fn at_start(&mut self, Affine { query, key, rest }: Affine) -> String {
        let rest = literal(Scalar::Integer(rest), Kind::I32, self.parameters);
        format!("{query} * q + {key} * k + {rest}")
    }
}

/// Whether a form's steps are small, and so may stand in the text: a user's larger numbers are parameters.
fn gentle(form: Affine) -> bool {
    form.query.abs() <= 16 && form.key.abs() <= 16
}

/// What a form adds from there.
fn from_start(Affine { query, key, .. }: Affine) -> String {
    format!("{query} * query_step + {key} * key_step")
}

/// Which instructions the first result needs.
fn needed(program: &Program) -> Vec<bool> {
    let mut needed = vec![false; program.instructions.len()];
    if let Some(result) = program.results.first() {
        needed[result.index()] = true;
    }
    for (number, instruction) in program.instructions.iter().enumerate().rev() {
        if needed[number] {
            instruction.operation.operands().iter().for_each(|operand| needed[operand.index()] = true);
        }
    }
    needed
}
