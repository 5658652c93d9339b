//! Interval evaluation: what a program's result can be over a rectangle of pairs.
//!
//! Each register gets a [`Range`] that holds every value it takes on the rectangle. An integer is kept as
//! `query·q + key·k + rest`, so that `q − k` or `q + k − n` is exact however large the rectangle, and
//! comparing two such forms compares their difference. Truth values are three-valued. On a single pair the
//! evaluation is exact, so it decides every mask in the end.
//!
//! See Moore, *Interval Analysis* (1966), and, for the affine part, Stolfi and de Figueiredo,
//! *Self-validated numerical methods and applications* (1997).

use tilewright_ir::{Binary, Compare, DType, Error, ErrorKind, Result, Scalar, Unary};
use tilewright_plan::{Instruction, Kind, Operation, Program, Register, Table, evaluate};

use super::bounds::Bounds;

/// The values that a register may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// `query·q + key·k + rest` with `low ≤ rest ≤ high`.
    Integer {
        /// Coefficient of the query index.
        query: i64,
        /// Coefficient of the key index.
        key: i64,
        /// Least rest.
        low: i64,
        /// Greatest rest.
        high: i64,
    },
    /// From `low` to `high`, or perhaps NaN.
    Float {
        /// Least.
        low: f64,
        /// Greatest.
        high: f64,
        /// Whether it may be NaN.
        nan: bool,
    },
    /// A truth value.
    Bool {
        /// Whether it may be false.
        no: bool,
        /// Whether it may be true.
        yes: bool,
    },
}

/// The queries and keys, both ends included, of one batch element and head.
#[derive(Clone, Copy, Debug)]
pub struct Rectangle {
    /// Batch element.
    pub b: usize,
    /// Head.
    pub h: usize,
    /// Queries.
    pub queries: (usize, usize),
    /// Keys.
    pub keys: (usize, usize),
}

impl Rectangle {
    fn is_pair(&self) -> bool {
        self.queries.0 == self.queries.1 && self.keys.0 == self.keys.1
    }

    /// The least and greatest value of an integer range.
    fn interval(&self, range: Range) -> (i128, i128) {
        match range {
            Range::Integer { query, key, low, high } => {
                let scaled = |factor: i64, (first, last): (usize, usize)| {
                    let (a, b) = (factor as i128 * first as i128, factor as i128 * last as i128);
                    (a.min(b), a.max(b))
                };
                let (q, k) = (scaled(query, self.queries), scaled(key, self.keys));
                (q.0 + k.0 + low as i128, q.1 + k.1 + high as i128)
            }
            Range::Bool { no, yes } => (if no { 0 } else { 1 }, yes as i128),
            Range::Float { .. } => (i64::MIN.into(), i64::MAX.into()),
        }
    }
}

const ANY_FLOAT: Range = Range::Float { low: f64::NEG_INFINITY, high: f64::INFINITY, nan: true };
const ANY_BOOL: Range = Range::Bool { no: true, yes: true };

impl Range {
    /// The one value.
    pub fn point(value: Scalar) -> Range {
        match value {
            Scalar::Float(x) if x.is_nan() => {
                Range::Float { low: f64::INFINITY, high: f64::NEG_INFINITY, nan: true }
            }
            Scalar::Float(x) => Range::Float { low: x, high: x, nan: false },
            Scalar::Integer(x) => Range::integer(x, x),
            Scalar::Bool(x) => Range::Bool { no: !x, yes: x },
        }
    }

    fn integer(low: i64, high: i64) -> Range {
        Range::Integer { query: 0, key: 0, low, high }
    }

    /// All values of a kind.
    fn any(kind: Kind) -> Range {
        match kind {
            Kind::F64 | Kind::F32 => ANY_FLOAT,
            Kind::I64 => Range::integer(i64::MIN, i64::MAX),
            Kind::I32 => Range::integer(i32::MIN.into(), i32::MAX.into()),
            Kind::Bool => ANY_BOOL,
        }
    }

    /// The values of both, which are of one kind and, if integers, have equal coefficients.
    pub fn join(x: Option<Range>, y: Option<Range>) -> Option<Range> {
        Some(match (x, y) {
            (None, other) | (other, None) => return other,
            (
                Some(Range::Float { low: a, high: b, nan: c }),
                Some(Range::Float { low: x, high: y, nan: z }),
            ) => Range::Float { low: a.min(x), high: b.max(y), nan: c || z },
            (Some(Range::Bool { no: a, yes: b }), Some(Range::Bool { no: x, yes: y })) => {
                Range::Bool { no: a || x, yes: b || y }
            }
            (
                Some(Range::Integer { query, key, low: a, high: b }),
                Some(Range::Integer { low: x, high: y, .. }),
            ) => Range::Integer { query, key, low: a.min(x), high: b.max(y) },
            (Some(x), Some(_)) => x,
        })
    }

    /// The one value that it holds, if there is one and it does not depend on the pair.
    fn value(self) -> Option<Scalar> {
        match self {
            Range::Float { low, high, nan: false } if low == high => Some(Scalar::Float(low)),
            Range::Float { low, high, nan: true } if low > high => Some(Scalar::Float(f64::NAN)),
            Range::Integer { query: 0, key: 0, low, high } if low == high => Some(Scalar::Integer(low)),
            Range::Bool { no, yes } if no != yes => Some(Scalar::Bool(yes)),
            Range::Float { .. } | Range::Integer { .. } | Range::Bool { .. } => None,
        }
    }
}

/// A mask, ready to be evaluated.
pub struct Mask<'a> {
    program: &'a Program,
    tables: &'a [Table],
    bounds: Vec<Bounds<'a>>,
}

impl<'a> Mask<'a> {
    /// A mask program with what its loads read.
    pub fn new(program: &'a Program, tables: &'a [Table], bounds: Vec<Bounds<'a>>) -> Mask<'a> {
        Mask { program, tables, bounds }
    }

    /// Whether the mask admits all pairs of a rectangle, none, or neither is known. `ranges` is scratch.
    ///
    /// # Errors
    /// [`ErrorKind::Index`] where the rectangle is one pair, and an index is out of range there.
    pub fn decide(&self, rectangle: Rectangle, ranges: &mut Vec<Range>) -> Result<Option<bool>> {
        ranges.clear();
        let mut safe = true;
        for instruction in &self.program.instructions {
            let mut evaluation = Evaluation { mask: self, rectangle, ranges, safe: true };
            let mut range = evaluation.instruction(instruction)?;
            safe &= evaluation.safe;
            if let (true, Range::Integer { .. }) = (rectangle.is_pair(), range) {
                let (value, _) = rectangle.interval(range);
                range = Range::integer(value as i64, value as i64);
            }
            ranges.push(range);
        }
        match ranges[self.program.results[0].index()] {
            Range::Bool { no: false, .. } if safe => Ok(Some(true)),
            Range::Bool { yes: false, .. } if safe => Ok(Some(false)),
            Range::Bool { .. } | Range::Integer { .. } | Range::Float { .. } => Ok(None),
        }
    }
}

/// One evaluation: what is known of the registers so far.
struct Evaluation<'a> {
    mask: &'a Mask<'a>,
    rectangle: Rectangle,
    ranges: &'a [Range],
    /// Whether every index is known to be in range.
    safe: bool,
}

impl Evaluation<'_> {
    fn range(&self, register: Register) -> Range {
        self.ranges[register.index()]
    }

    /// The least and greatest value of an integer register.
    fn interval(&self, register: Register) -> (i128, i128) {
        self.rectangle.interval(self.range(register))
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<Range> {
        let kind = instruction.kind;
        if let Some(value) = self.value(&instruction.operation, kind) {
            return Ok(Range::point(value));
        }
        Ok(match &instruction.operation {
            Operation::Input(0) => Range::point(Scalar::Integer(self.rectangle.b as i64)),
            Operation::Input(1) => Range::point(Scalar::Integer(self.rectangle.h as i64)),
            Operation::Input(2) => Range::Integer { query: 1, key: 0, low: 0, high: 0 },
            Operation::Input(3) => Range::Integer { query: 0, key: 1, low: 0, high: 0 },
            Operation::Input(_) | Operation::RandomBits(_, _) => Range::any(kind),
            Operation::Constant(value) => Range::point(*value),
            Operation::Unary(function, x) => match kind {
                Kind::F64 | Kind::F32 => self.unary_float(*function, kind, *x),
                Kind::I64 | Kind::I32 => self.unary_integer(*function, kind, *x),
                Kind::Bool => match (function, self.range(*x)) {
                    (Unary::Not, Range::Bool { no, yes }) => Range::Bool { no: yes, yes: no },
                    (_, range) => range,
                },
            },
            Operation::Binary(function, x, y) => match kind {
                Kind::F64 | Kind::F32 => self.binary_float(*function, kind, *x, *y),
                Kind::I64 | Kind::I32 => self.binary_integer(*function, kind, *x, *y),
                Kind::Bool => binary_bool(*function, self.range(*x), self.range(*y)),
            },
            Operation::Compare(comparison, x, y) => self.compare(*comparison, *x, *y),
            Operation::Select(condition, x, y) => match self.range(*condition) {
                Range::Bool { no: false, .. } => self.range(*x),
                Range::Bool { yes: false, .. } => self.range(*y),
                Range::Bool { .. } | Range::Integer { .. } | Range::Float { .. } => self.either(kind, *x, *y),
            },
            Operation::Cast(x) => self.cast(kind, *x),
            Operation::Round(dtype, x) => match self.range(*x) {
                Range::Float { low, high, nan } => {
                    let round = |x| evaluate::round(*dtype, Scalar::Float(x)).to_f64();
                    Range::Float { low: round(low), high: round(high), nan }
                }
                range => {
                    let (low, high) = self.interval(*x);
                    let inside = *dtype != DType::U8 || (low >= 0 && high <= 255);
                    if inside { range } else { Range::integer(0, 255) }
                }
            },
            Operation::Load(table, indices) => self.load(*table, indices)?,
        })
    }

    /// The value of an instruction whose operands all have one value, by the definition.
    fn value(&self, operation: &Operation, kind: Kind) -> Option<Scalar> {
        let value = |register: &Register| self.range(*register).value();
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
            Operation::Input(_)
            | Operation::Constant(_)
            | Operation::Select(..)
            | Operation::Load(..)
            | Operation::RandomBits(..) => None,
        }
    }

    /// An integer range, unless it may wrap, which makes it any.
    fn unless_wrapped(&self, range: Option<Range>, kind: Kind) -> Range {
        let (least, greatest) = match kind {
            Kind::I32 => (i32::MIN.into(), i32::MAX.into()),
            Kind::I64 | Kind::F64 | Kind::F32 | Kind::Bool => (i64::MIN.into(), i64::MAX.into()),
        };
        match range.map(|range| (range, self.rectangle.interval(range))) {
            Some((range, (low, high))) if low >= least && high <= greatest => range,
            Some(_) | None => Range::any(kind),
        }
    }

    fn hull(&self, low: i128, high: i128, kind: Kind) -> Range {
        let range = i64::try_from(low).ok().zip(i64::try_from(high).ok());
        self.unless_wrapped(range.map(|(low, high)| Range::integer(low, high)), kind)
    }

    fn either(&self, kind: Kind, x: Register, y: Register) -> Range {
        match (self.range(x), self.range(y)) {
            (
                Range::Integer { query: a, key: b, low: c, high: d },
                Range::Integer { query: w, key: x, low: y, high: z },
            ) if (a, b) == (w, x) => Range::Integer { query: a, key: b, low: c.min(y), high: d.max(z) },
            (Range::Integer { .. }, _) => {
                let (x, y) = (self.interval(x), self.interval(y));
                self.hull(x.0.min(y.0), x.1.max(y.1), kind)
            }
            (x, y) => Range::join(Some(x), Some(y)).expect("two ranges"),
        }
    }

    fn load(&mut self, table: usize, indices: &[Register]) -> Result<Range> {
        let clamp = |x: i128| x.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        let indices = indices.iter().map(|&register| {
            let (low, high) = self.interval(register);
            (clamp(low), clamp(high))
        });
        let loaded = self.mask.bounds[table].load(indices);
        if let Some((axis, index)) = loaded.outside {
            if self.rectangle.is_pair() {
                let table = &self.mask.tables[table];
                return Err(Error::new(ErrorKind::Index {
                    buffer: table.name.clone(),
                    axis,
                    index,
                    size: table.shape[axis],
                })
                .in_operation("mask")
                .at(table.origin.clone()));
            }
            self.safe = false;
        }
        Ok(loaded.range)
    }

    fn unary_integer(&self, function: Unary, kind: Kind, x: Register) -> Range {
        let (low, high) = self.interval(x);
        let negated = |shift: i64| match self.range(x) {
            Range::Integer { query, key, low, high } => (|| {
                Some(Range::Integer {
                    query: query.checked_neg()?,
                    key: key.checked_neg()?,
                    low: high.checked_neg()?.checked_sub(shift)?,
                    high: low.checked_neg()?.checked_sub(shift)?,
                })
            })(),
            Range::Float { .. } | Range::Bool { .. } => None,
        };
        match function {
            Unary::Neg => self.unless_wrapped(negated(0), kind),
            Unary::Not => self.unless_wrapped(negated(1), kind),
            Unary::Abs if low >= 0 => self.range(x),
            Unary::Abs if high <= 0 => self.unless_wrapped(negated(0), kind),
            Unary::Abs => self.hull(0, high.max(-low), kind),
            Unary::Sign => self.hull(low.signum(), high.signum(), kind),
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
            | Unary::Round => Range::any(kind),
        }
    }

    fn binary_integer(&self, function: Binary, kind: Kind, x: Register, y: Register) -> Range {
        let (a, b) = (self.interval(x), self.interval(y));
        match function {
            Binary::Add => self.unless_wrapped(combined(self.range(x), self.range(y), 1), kind),
            Binary::Sub => self.unless_wrapped(combined(self.range(x), self.range(y), -1), kind),
            Binary::Mul => {
                let scaled = match (self.range(x), self.range(y)) {
                    (Range::Integer { .. }, Range::Integer { query: 0, key: 0, low, high })
                        if low == high =>
                    {
                        combined(Range::integer(0, 0), self.range(x), low)
                    }
                    (Range::Integer { query: 0, key: 0, low, high }, Range::Integer { .. })
                        if low == high =>
                    {
                        combined(Range::integer(0, 0), self.range(y), low)
                    }
                    _ => None,
                };
                match scaled {
                    Some(range) => self.unless_wrapped(Some(range), kind),
                    None => {
                        let products = corners(a, b).map(|(x, y)| x.saturating_mul(y));
                        self.hull(least(products), greatest(products), kind)
                    }
                }
            }
            Binary::Div if b.0 > 0 || b.1 < 0 => {
                let quotients = corners(a, b).map(|(x, y)| floor_div(x, y));
                self.hull(least(quotients), greatest(quotients), kind)
            }
            Binary::Div => {
                let most = a.0.abs().max(a.1.abs()) + 1;
                self.hull(-most, most, kind)
            }
            Binary::Rem => self.remainder(kind, x, a, b),
            Binary::Max | Binary::Min => {
                let difference = combined(self.range(x), self.range(y), -1);
                let (low, high) = difference.map_or((-1, 1), |range| self.rectangle.interval(range));
                match function {
                    Binary::Max if low >= 0 => self.range(x),
                    Binary::Max if high <= 0 => self.range(y),
                    Binary::Max => self.hull(a.0.max(b.0), a.1.max(b.1), kind),
                    _ if low >= 0 => self.range(y),
                    _ if high <= 0 => self.range(x),
                    _ => self.hull(a.0.min(b.0), a.1.min(b.1), kind),
                }
            }
            Binary::And if b.0 >= 0 && a.0 >= 0 => self.hull(0, a.1.min(b.1), kind),
            Binary::And if b.0 >= 0 => self.hull(0, b.1, kind),
            Binary::And if a.0 >= 0 => self.hull(0, a.1, kind),
            Binary::Or | Binary::Xor if a.0 >= 0 && b.0 >= 0 => {
                let bits = 128 - a.1.max(b.1).leading_zeros();
                self.hull(0, (1i128 << bits) - 1, kind)
            }
            Binary::And | Binary::Or | Binary::Xor | Binary::Pow | Binary::Atan2 => Range::any(kind),
        }
    }

    /// `x rem y`, exact where the divisor is one number and the quotient does not change.
    fn remainder(&self, kind: Kind, x: Register, a: (i128, i128), b: (i128, i128)) -> Range {
        if b.0 == b.1 && b.0 != 0 {
            let (divisor, quotient) = (b.0, floor_div(a.0, b.0));
            if quotient == floor_div(a.1, divisor)
                && let Ok(shift) = i64::try_from(quotient * divisor)
                && let Some(range) = combined(self.range(x), Range::integer(shift, shift), -1)
            {
                return self.unless_wrapped(Some(range), kind);
            }
        }
        self.hull((b.0 + 1).min(0), (b.1 - 1).max(0), kind)
    }

    fn compare(&self, comparison: Compare, x: Register, y: Register) -> Range {
        let (below, equal, above, unordered) = match (self.range(x), self.range(y)) {
            (Range::Float { low: a, high: b, nan: c }, Range::Float { low: x, high: y, nan: z }) => {
                (a < y, a <= y && b >= x, b > x, c || z)
            }
            (x_range @ Range::Integer { .. }, y_range @ Range::Integer { .. }) => {
                let difference = combined(x_range, y_range, -1).map(|range| self.rectangle.interval(range));
                let (low, high) = difference.unwrap_or_else(|| {
                    let (a, b) = (self.interval(x), self.interval(y));
                    (a.0 - b.1, a.1 - b.0)
                });
                (low < 0, low <= 0 && high >= 0, high > 0, false)
            }
            _ => {
                let (a, b) = (self.interval(x), self.interval(y));
                (a.0 < b.1, a.0 <= b.1 && a.1 >= b.0, a.1 > b.0, false)
            }
        };
        let possible = [
            (below, [false, true, true, true, false, false]),
            (equal, [true, false, false, true, false, true]),
            (above, [false, true, false, false, true, true]),
            (unordered, [false, true, false, false, false, false]),
        ];
        let column = Compare::ALL.iter().position(|&c| c == comparison).expect("one of all comparisons");
        let may = |truth: bool| possible.iter().any(|(can, holds)| *can && holds[column] == truth);
        Range::Bool { no: may(false), yes: may(true) }
    }

    fn cast(&self, kind: Kind, x: Register) -> Range {
        match (self.range(x), kind) {
            (Range::Float { low, high, nan }, Kind::F64 | Kind::F32) => {
                let hold = |x| evaluate::hold(Scalar::Float(x), kind).to_f64();
                Range::Float { low: hold(low), high: hold(high), nan }
            }
            (Range::Float { low, high, nan }, Kind::I64 | Kind::I32) => {
                let hold = |x| evaluate::hold(Scalar::Float(x), kind).to_i64();
                let range = Range::integer(hold(low), hold(high));
                if nan {
                    Range::join(Some(range), Some(Range::integer(0, 0))).expect("two ranges")
                } else {
                    range
                }
            }
            (Range::Float { low, high, nan }, Kind::Bool) => {
                Range::Bool { no: low <= 0.0 && high >= 0.0, yes: nan || low != 0.0 || high != 0.0 }
            }
            (range, Kind::I64 | Kind::I32) => match range {
                Range::Integer { .. } => self.unless_wrapped(Some(range), kind),
                Range::Float { .. } | Range::Bool { .. } => {
                    let (low, high) = self.interval(x);
                    self.hull(low, high, kind)
                }
            },
            (_, Kind::F64 | Kind::F32) => {
                let (low, high) = self.interval(x);
                let hold = |x: i128| {
                    let x = x.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
                    evaluate::hold(Scalar::Integer(x), kind).to_f64()
                };
                Range::Float { low: hold(low), high: hold(high), nan: false }
            }
            (_, Kind::Bool) => {
                let (low, high) = self.interval(x);
                Range::Bool { no: low <= 0 && high >= 0, yes: low != 0 || high != 0 }
            }
        }
    }

    fn floats(&self, x: Register) -> (f64, f64, bool) {
        match self.range(x) {
            Range::Float { low, high, nan } => (low, high, nan),
            Range::Integer { .. } | Range::Bool { .. } => (f64::NEG_INFINITY, f64::INFINITY, true),
        }
    }

    fn unary_float(&self, function: Unary, kind: Kind, x: Register) -> Range {
        let (low, high, nan) = self.floats(x);
        if low > high {
            return ANY_FLOAT;
        }
        let at = |x: f64| evaluate::unary(function, kind, Scalar::Float(x)).to_f64();
        let rising = |slack: f64| float_range([at(low), at(high)], nan, slack);
        let approximate = if kind == Kind::F32 { 1e-5 } else { 1e-13 };
        match function {
            Unary::Neg | Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Round => rising(0.0),
            Unary::Sqrt => rising(0.0),
            Unary::Abs if low >= 0.0 || high <= 0.0 => rising(0.0),
            Unary::Abs => float_range([0.0, high.max(-low)], nan, 0.0),
            Unary::Exp
            | Unary::Expm1
            | Unary::Log
            | Unary::Log1p
            | Unary::Tanh
            | Unary::Sigmoid
            | Unary::Erf => rising(approximate),
            Unary::Rsqrt if low > 0.0 => rising(approximate),
            Unary::Sin | Unary::Cos => {
                let nan = nan || low.is_infinite() || high.is_infinite();
                float_range([-1.0, 1.0], nan, approximate)
            }
            Unary::Rsqrt | Unary::Tan | Unary::Not => ANY_FLOAT,
        }
    }

    fn binary_float(&self, function: Binary, kind: Kind, x: Register, y: Register) -> Range {
        let ((a, b, c), (d, e, f)) = (self.floats(x), self.floats(y));
        if a > b || d > e {
            return ANY_FLOAT;
        }
        let nan = c || f;
        let at =
            |x: f64, y: f64| evaluate::binary(function, kind, Scalar::Float(x), Scalar::Float(y)).to_f64();
        match function {
            Binary::Add | Binary::Max | Binary::Min => float_range([at(a, d), at(b, e)], nan, 0.0),
            Binary::Sub => float_range([at(a, e), at(b, d)], nan, 0.0),
            Binary::Mul => float_range([at(a, d), at(a, e), at(b, d), at(b, e)], nan, 0.0),
            Binary::Div if d > 0.0 || e < 0.0 => {
                float_range([at(a, d), at(a, e), at(b, d), at(b, e)], nan, 0.0)
            }
            Binary::Div | Binary::Rem | Binary::Pow | Binary::Atan2 => ANY_FLOAT,
            Binary::And | Binary::Or | Binary::Xor => ANY_FLOAT,
        }
    }
}

/// The range of a function that takes its extremes at `ends`, widened by a relative `slack`.
fn float_range<const N: usize>(ends: [f64; N], nan: bool, slack: f64) -> Range {
    if ends.iter().any(|x| x.is_nan()) {
        return ANY_FLOAT;
    }
    let widened = |x: f64, sign: f64| if x.is_finite() { x + sign * slack * (x.abs() + slack) } else { x };
    let low = ends.iter().fold(f64::INFINITY, |all, &x| all.min(widened(x, -1.0)));
    let high = ends.iter().fold(f64::NEG_INFINITY, |all, &x| all.max(widened(x, 1.0)));
    Range::Float { low, high, nan }
}

/// `x + factor · y`, for integer ranges.
fn combined(x: Range, y: Range, factor: i64) -> Option<Range> {
    let (
        Range::Integer { query: a, key: b, low: c, high: d },
        Range::Integer { query: w, key: x, low: y, high: z },
    ) = (x, y)
    else {
        return None;
    };
    let add = |x: i64, y: i64| y.checked_mul(factor)?.checked_add(x);
    let (y, z) = if factor < 0 { (z, y) } else { (y, z) };
    Some(Range::Integer { query: add(a, w)?, key: add(b, x)?, low: add(c, y)?, high: add(d, z)? })
}

fn binary_bool(function: Binary, x: Range, y: Range) -> Range {
    let (Range::Bool { no: a, yes: b }, Range::Bool { no: x, yes: y }) = (x, y) else {
        return ANY_BOOL;
    };
    match function {
        Binary::And | Binary::Min => Range::Bool { no: a || x, yes: b && y },
        Binary::Or | Binary::Max => Range::Bool { no: a && x, yes: b || y },
        Binary::Xor => Range::Bool { no: (a && x) || (b && y), yes: (a && y) || (b && x) },
        Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Rem | Binary::Pow | Binary::Atan2 => {
            ANY_BOOL
        }
    }
}

fn corners(a: (i128, i128), b: (i128, i128)) -> [(i128, i128); 4] {
    [(a.0, b.0), (a.0, b.1), (a.1, b.0), (a.1, b.1)]
}

fn least(values: [i128; 4]) -> i128 {
    values.into_iter().fold(i128::MAX, i128::min)
}

fn greatest(values: [i128; 4]) -> i128 {
    values.into_iter().fold(i128::MIN, i128::max)
}

/// The quotient rounded towards −∞, for a divisor that is not 0.
fn floor_div(x: i128, y: i128) -> i128 {
    let quotient = x.wrapping_div(y);
    if x.wrapping_rem(y) != 0 && (x < 0) != (y < 0) { quotient - 1 } else { quotient }
}
