//! What is known of a program's integers before it runs: the range of each register, and which are sums of multiples of
//! the coordinates of a pair. So reads that cannot be out of range are not checked, and what changes evenly along a tile
//! is not computed anew at each pair.

use tilewright_ir::{Binary, DType, Unary};
use tilewright_plan::{Kind, Operation, Program, Register, Table};

/// `query · q + key · k + rest`, for the coordinates q and k of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affine {
    /// Steps for a query.
    pub query: i64,
    /// Steps for a key.
    pub key: i64,
    /// At query 0 and key 0.
    pub rest: i64,
}

/// What a register depends on, beside constants and the batch and head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Varies {
    /// The query.
    pub query: bool,
    /// The key.
    pub key: bool,
    /// The score or its cotangent.
    pub score: bool,
}

/// What is known of one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    /// The least and the greatest value of an integer.
    pub range: (i64, i64),
    /// Its form, where it has one and cannot overflow.
    pub affine: Option<Affine>,
    /// What it depends on.
    pub varies: Varies,
}

/// How an index along an axis stands to the axis's extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Always from 0 on and below the extent.
    Inside,
    /// That, or the negative of it, which counts from the end.
    Wraps,
    /// Anything.
    Unknown,
}

/// How an index stands to an extent.
pub fn reach((low, high): (i64, i64), extent: usize) -> Reach {
    let extent = extent as i64;
    match (low >= 0, low >= -extent, high < extent) {
        (true, _, true) => Reach::Inside,
        (false, true, true) => Reach::Wraps,
        _ => Reach::Unknown,
    }
}

/// Whether a table's elements are within 2³¹ of its first, so that 32 bits hold their places.
pub fn near(table: &Table) -> bool {
    let spans = table.shape.iter().zip(&table.view.strides);
    let most: i128 = spans.map(|(&extent, &stride)| extent as i128 * (stride as i128).abs()).sum();
    most < 1 << 31
}

fn limits(kind: Kind) -> (i64, i64) {
    match kind {
        Kind::I32 => (i32::MIN.into(), i32::MAX.into()),
        Kind::Bool => (0, 1),
        Kind::I64 | Kind::F64 | Kind::F32 => (i64::MIN, i64::MAX),
    }
}

/// Facts of the inputs b, h, q, k (from 0 to the extent), and the score and its cotangent.
pub fn of_pairs([batch, heads, queries, keys]: [usize; 4]) -> [Fact; 6] {
    let still = Varies::default();
    let coordinate =
        |extent: usize, affine, varies| Fact { range: (0, extent.max(1) as i64 - 1), affine, varies };
    let number = Fact { range: limits(Kind::F32), affine: None, varies: Varies { score: true, ..still } };
    [
        coordinate(batch, None, still),
        coordinate(heads, None, still),
        coordinate(queries, Some(Affine { query: 1, key: 0, rest: 0 }), Varies { query: true, ..still }),
        coordinate(keys, Some(Affine { query: 0, key: 1, rest: 0 }), Varies { key: true, ..still }),
        number,
        number,
    ]
}

/// Facts of all registers of a program, of its inputs'.
pub fn facts(program: &Program, inputs: &[Fact], tables: &[Table]) -> Vec<Fact> {
    let mut facts: Vec<Fact> = Vec::with_capacity(program.instructions.len());
    for instruction in &program.instructions {
        let kind = instruction.kind;
        let known = |register: &Register| facts[register.index()];
        if let Operation::Input(input) = &instruction.operation {
            facts.push(inputs[*input]);
            continue;
        }
        let varies =
            instruction.operation.operands().iter().map(&known).fold(Varies::default(), |sum, fact| Varies {
                query: sum.query || fact.varies.query,
                key: sum.key || fact.varies.key,
                score: sum.score || fact.varies.score,
            });
        let integers = |registers: &[Register]| {
            registers
                .iter()
                .all(|register| matches!(program.kind(*register), Kind::I32 | Kind::I64 | Kind::Bool))
        };
        let whole = matches!(kind, Kind::I32 | Kind::I64);
        let (range, affine) = match &instruction.operation {
            Operation::Constant(value) if whole => {
                let value = value.to_i64();
                ((value.into(), value.into()), Some(Affine { query: 0, key: 0, rest: value }))
            }
            Operation::Unary(function, x) if whole => {
                let fact = known(x);
                let range = unary(*function, fact.range).unwrap_or(wide(kind));
                let affine = (*function == Unary::Neg).then_some(fact.affine).flatten();
                (range, affine.and_then(|form| combine(form, 0, form, -1)))
            }
            Operation::Binary(function, x, y) if whole => {
                let (x, y) = (known(x), known(y));
                let range = binary(*function, x.range, y.range).unwrap_or(wide(kind));
                (range, x.affine.zip(y.affine).and_then(|(x, y)| affine_of(*function, x, y)))
            }
            Operation::Select(_, x, y) if whole => {
                let ((a, b), (c, d)) = (known(x).range, known(y).range);
                ((a.min(c).into(), b.max(d).into()), None)
            }
            Operation::Cast(x) if whole && integers(&[*x]) => {
                let fact = known(x);
                ((fact.range.0.into(), fact.range.1.into()), fact.affine)
            }
            Operation::Load(table, _) if whole => match tables[*table].dtype {
                DType::U8 => ((0, 255), None),
                DType::Bool => ((0, 1), None),
                DType::F64 | DType::F32 | DType::BF16 | DType::F16 | DType::I64 | DType::I32 => {
                    (wide(kind), None)
                }
            },
            Operation::Input(_)
            | Operation::Constant(_)
            | Operation::Unary(..)
            | Operation::Binary(..)
            | Operation::Compare(..)
            | Operation::Select(..)
            | Operation::Cast(_)
            | Operation::Round(..)
            | Operation::Load(..)
            | Operation::RandomBits(..) => (wide(kind), None),
        };
        let (least, most) = wide(kind);
        // What may wrap may be anything.
        let fits = range.0 >= least && range.1 <= most;
        let (low, high) = if fits { range } else { (least, most) };
        facts.push(Fact { range: (low as i64, high as i64), affine: affine.filter(|_| fits), varies });
    }
    facts
}

fn wide(kind: Kind) -> (i128, i128) {
    let (low, high) = limits(kind);
    (low.into(), high.into())
}

fn unary(function: Unary, (low, high): (i64, i64)) -> Option<(i128, i128)> {
    let (low, high) = (i128::from(low), i128::from(high));
    match function {
        Unary::Neg => Some((-high, -low)),
        Unary::Abs => Some((
            if low > 0 {
                low
            } else if high < 0 {
                -high
            } else {
                0
            },
            low.abs().max(high.abs()),
        )),
        Unary::Sign => Some((-1, 1)),
        Unary::Not
        | Unary::Exp
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
        | Unary::Round => None,
    }
}

fn binary(function: Binary, x: (i64, i64), y: (i64, i64)) -> Option<(i128, i128)> {
    let ((a, b), (c, d)) = ((i128::from(x.0), i128::from(x.1)), (i128::from(y.0), i128::from(y.1)));
    let of = |corners: [i128; 4]| {
        let least = corners.iter().min().copied();
        least.zip(corners.iter().max().copied())
    };
    match function {
        Binary::Add => Some((a + c, b + d)),
        Binary::Sub => Some((a - d, b - c)),
        Binary::Mul => of([a * c, a * d, b * c, b * d]),
        Binary::Max => Some((a.max(c), b.max(d))),
        Binary::Min => Some((a.min(c), b.min(d))),
        Binary::Div if c > 0 => of([a.div_euclid(c), a.div_euclid(d), b.div_euclid(c), b.div_euclid(d)]),
        Binary::Rem if c > 0 => Some((0, d - 1)),
        Binary::And if a >= 0 && c >= 0 => Some((0, b.min(d))),
        Binary::Div | Binary::Rem | Binary::And | Binary::Or | Binary::Xor | Binary::Pow | Binary::Atan2 => {
            None
        }
    }
}

/// `by · x + more · y`.
fn combine(x: Affine, by: i64, y: Affine, more: i64) -> Option<Affine> {
    let sum = |a: i64, b: i64| a.checked_mul(by)?.checked_add(b.checked_mul(more)?);
    Some(Affine { query: sum(x.query, y.query)?, key: sum(x.key, y.key)?, rest: sum(x.rest, y.rest)? })
}

fn affine_of(function: Binary, x: Affine, y: Affine) -> Option<Affine> {
    let constant = |form: Affine| (form.query == 0 && form.key == 0).then_some(form.rest);
    match function {
        Binary::Add => combine(x, 1, y, 1),
        Binary::Sub => combine(x, 1, y, -1),
        Binary::Mul => match (constant(x), constant(y)) {
            (Some(by), _) => combine(y, 0, y, by),
            (_, Some(by)) => combine(x, 0, x, by),
            (None, None) => None,
        },
        Binary::Div
        | Binary::Rem
        | Binary::Pow
        | Binary::Max
        | Binary::Min
        | Binary::Atan2
        | Binary::And
        | Binary::Or
        | Binary::Xor => None,
    }
}

#[cfg(test)]
mod tests {
    use tilewright_ir::Scalar;

    use super::*;

    /// q − k + 9, clamped to 0 ..= 16.
    fn clamped() -> Program {
        let mut program = Program::default();
        let q = program.push(Operation::Input(2), Kind::I32);
        let k = program.push(Operation::Input(3), Kind::I32);
        let mut constant = |value| program.push(Operation::Constant(Scalar::Integer(value)), Kind::I32);
        let [nine, zero, top] = [9, 0, 16].map(&mut constant);
        let difference = program.push(Operation::Binary(Binary::Sub, q, k), Kind::I32);
        let moved = program.push(Operation::Binary(Binary::Add, difference, nine), Kind::I32);
        let above = program.push(Operation::Binary(Binary::Max, moved, zero), Kind::I32);
        let place = program.push(Operation::Binary(Binary::Min, above, top), Kind::I32);
        program.results = vec![moved, place];
        program
    }

    #[test]
    fn differences_are_affine_and_clamps_are_ranges() {
        let program = clamped();
        let facts = facts(&program, &of_pairs([1, 2, 100, 50]), &[]);
        let [moved, place] = [0, 1].map(|result| facts[program.results[result].index()]);
        assert_eq!(moved.range, (9 - 49, 99 + 9));
        assert_eq!(moved.affine, Some(Affine { query: 1, key: -1, rest: 9 }));
        assert_eq!((place.range, place.affine), ((0, 16), None));
        assert_eq!(place.varies, Varies { query: true, key: true, score: false });
    }

    #[test]
    fn what_may_wrap_is_not_affine() {
        let mut program = Program::default();
        let q = program.push(Operation::Input(2), Kind::I32);
        let large = program.push(Operation::Constant(Scalar::Integer(1 << 30)), Kind::I32);
        let product = program.push(Operation::Binary(Binary::Mul, q, large), Kind::I32);
        program.results = vec![product];
        let facts = facts(&program, &of_pairs([1, 1, 100, 100]), &[]);
        assert_eq!(facts[product.index()].affine, None);
        assert_eq!(facts[product.index()].range, (i32::MIN.into(), i32::MAX.into()));
    }

    #[test]
    fn negative_indices_wrap() {
        assert_eq!(reach((0, 9), 10), Reach::Inside);
        assert_eq!(reach((-10, 9), 10), Reach::Wraps);
        assert_eq!(reach((-11, 9), 10), Reach::Unknown);
        assert_eq!(reach((0, 10), 10), Reach::Unknown);
    }
}
