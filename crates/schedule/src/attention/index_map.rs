//! Index maps: what the indices of a captured read are a function of.
//!
//! Abstract interpretation of a program over the pairs (q, k) of one batch element and head. For each
//! register it finds which of q, k, q − k and q + k determine it. Two facts flow through the program:
//!
//! - a register that is computed from others is a function of whatever each of them is a function of; a
//!   load is a function of its indices;
//! - an exact affine form `query·q + key·k + rest` is a function of q − k where the coefficients are
//!   opposite, of q + k where they are equal, of q or k where the other is 0. A comparison of two integers
//!   is a function of their difference.
//!
//! So `clamp(q − k + 8, 0, 16)`, `bucket[abs(q − k)]` and `q ≥ k` are functions of q − k, and `off[q]` is one
//! of q. What the rest of a form is does not matter as long as q and k do not enter it.

use tilewright_ir::{Binary, Scalar, Unary};
use tilewright_plan::attention::ReductionKey;
use tilewright_plan::{Kind, Operation, Register};

use crate::builder::Builder;

/// Captures up to this many elements get a histogram where no simpler key is known.
pub(super) const BUCKET_LIMIT: usize = 65_536;

/// What a register may depend on, and what determines it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    /// Whether it depends on each of b, h, q, k, score and cotangent.
    pub depends: [bool; 6],
    /// Whether some table lies between it and the coordinates.
    pub through_table: bool,
    /// Whether each of q, k, q − k, q + k determines it, given b and h.
    determined: Determined,
    affine: Option<Affine>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Determined {
    query: bool,
    key: bool,
    difference: bool,
    sum: bool,
}

/// `query·q + key·k + rest`, exactly; the rest is the same for all pairs, and known where it is a constant.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Affine {
    query: i64,
    key: i64,
    rest: Option<i64>,
}

impl Determined {
    const NOTHING: Determined = Determined { query: false, key: false, difference: false, sum: false };
    const ANYTHING: Determined = Determined { query: true, key: true, difference: true, sum: true };

    fn and(self, other: Determined) -> Determined {
        Determined {
            query: self.query && other.query,
            key: self.key && other.key,
            difference: self.difference && other.difference,
            sum: self.sum && other.sum,
        }
    }

    fn or(self, other: Determined) -> Determined {
        Determined {
            query: self.query || other.query,
            key: self.key || other.key,
            difference: self.difference || other.difference,
            sum: self.sum || other.sum,
        }
    }
}

impl Affine {
    fn combined(self, other: Affine, factor: i64) -> Option<Affine> {
        let add = |x: i64, y: i64| y.checked_mul(factor)?.checked_add(x);
        let rest = match (self.rest, other.rest) {
            (Some(x), Some(y)) => Some(add(x, y)?),
            _ => None,
        };
        Some(Affine { query: add(self.query, other.query)?, key: add(self.key, other.key)?, rest })
    }

    fn determined(self) -> Determined {
        Determined {
            query: self.key == 0,
            key: self.query == 0,
            difference: self.query.checked_add(self.key) == Some(0),
            sum: self.query == self.key,
        }
    }

    /// The least and greatest value without the rest, for lengths that are not 0.
    fn interval(self, (queries, keys): (usize, usize)) -> (i128, i128) {
        let reach = |factor: i64, length: usize| factor as i128 * (length.max(1) as i128 - 1);
        let (q, k) = (reach(self.query, queries), reach(self.key, keys));
        (q.min(0) + k.min(0), q.max(0) + k.max(0))
    }

    /// Whether a float of `kind` holds every value of the form.
    fn is_exact(self, kind: Kind, lengths: (usize, usize)) -> bool {
        let limit = if kind == Kind::F32 { 1i128 << 24 } else { 1i128 << 53 };
        let (low, high) = self.interval(lengths);
        self.rest.is_some_and(|rest| low + rest as i128 >= -limit && high + rest as i128 <= limit)
    }
}

/// The facts about every register of a builder, for the given lengths of query and key.
pub(super) fn analyse(builder: &Builder, lengths: (usize, usize)) -> Vec<Facts> {
    let mut facts: Vec<Facts> = Vec::with_capacity(builder.instruction_count());
    for i in 0..builder.instruction_count() {
        let register = Register(i as u32);
        facts.push(facts_of(builder, register, &facts, lengths));
    }
    facts
}

fn facts_of(builder: &Builder, register: Register, facts: &[Facts], lengths: (usize, usize)) -> Facts {
    let operation = builder.operation(register);
    let mut found = Facts {
        depends: [false; 6],
        through_table: matches!(operation, Operation::Load(_, indices) if !indices.is_empty()),
        determined: Determined::ANYTHING,
        affine: None,
    };
    for operand in operation.operands() {
        let operand = &facts[operand.index()];
        (0..6).for_each(|i| found.depends[i] |= operand.depends[i]);
        found.through_table |= operand.through_table;
        found.determined = found.determined.and(operand.determined);
    }
    if let Operation::Input(number) = *operation {
        found.depends[number] = true;
        if number >= 4 {
            found.determined = Determined::NOTHING;
        }
    }
    found.affine = affine_of(builder, register, facts, lengths);
    if let Some(affine) = found.affine {
        let derived = affine.determined();
        let input = matches!(operation, Operation::Input(_));
        found.determined = if input { derived } else { found.determined.or(derived) };
    }
    if let Operation::Compare(_, x, y) = operation {
        let integers = matches!(builder.kind(*x), Kind::I64 | Kind::I32);
        if let (true, Some(x), Some(y)) = (integers, facts[x.index()].affine, facts[y.index()].affine)
            && let Some(difference) = x.combined(y, -1)
        {
            found.determined = found.determined.or(difference.determined());
        }
    }
    if found.affine.is_none() && found.determined == Determined::ANYTHING && is_integer(builder, register) {
        found.affine = Some(Affine { query: 0, key: 0, rest: None });
    }
    found
}

fn is_integer(builder: &Builder, register: Register) -> bool {
    matches!(builder.kind(register), Kind::I64 | Kind::I32)
}

/// The affine form of a register, if it has one.
fn affine_of(
    builder: &Builder,
    register: Register,
    facts: &[Facts],
    lengths: (usize, usize),
) -> Option<Affine> {
    let affine = |x: &Register| facts[x.index()].affine;
    let constant = |x: &Register| match builder.constant_value(*x)? {
        Scalar::Integer(x) => Some(x),
        Scalar::Float(x) if x.fract() == 0.0 && x.abs() < 9e15 => Some(x as i64),
        Scalar::Float(_) | Scalar::Bool(_) => None,
    };
    let zero = Affine { query: 0, key: 0, rest: Some(0) };
    let form = match builder.operation(register) {
        Operation::Input(0 | 1) => Some(Affine { query: 0, key: 0, rest: None }),
        Operation::Input(2) => Some(Affine { query: 1, key: 0, rest: Some(0) }),
        Operation::Input(3) => Some(Affine { query: 0, key: 1, rest: Some(0) }),
        Operation::Constant(_) => constant(&register).map(|rest| Affine { rest: Some(rest), ..zero }),
        Operation::Unary(Unary::Neg, x) => zero.combined(affine(x)?, -1),
        Operation::Binary(Binary::Add, x, y) => affine(x)?.combined(affine(y)?, 1),
        Operation::Binary(Binary::Sub, x, y) => affine(x)?.combined(affine(y)?, -1),
        Operation::Binary(Binary::Mul, x, y) => match (constant(x), constant(y)) {
            (_, Some(factor)) => zero.combined(affine(x)?, factor),
            (Some(factor), None) => zero.combined(affine(y)?, factor),
            (None, None) => None,
        },
        Operation::Cast(x) => affine(x),
        Operation::Input(_)
        | Operation::Unary(..)
        | Operation::Binary(..)
        | Operation::Compare(..)
        | Operation::Select(..)
        | Operation::Round(..)
        | Operation::Load(..)
        | Operation::RandomBits(..) => None,
    }?;
    let fits = match builder.kind(register) {
        kind @ (Kind::F64 | Kind::F32) => form.is_exact(kind, lengths),
        Kind::I64 | Kind::I32 => true,
        Kind::Bool => false,
    };
    fits.then_some(form)
}

/// The cheapest key of a read at the given indices, and why, in words. Axes of extent 1 are left out.
pub(super) fn key(
    facts: &[Facts],
    indices: &[(Register, usize)],
    elements: usize,
    lengths: (usize, usize),
) -> (ReductionKey, String) {
    let facts: Vec<(&Facts, usize)> =
        indices.iter().map(|&(register, extent)| (&facts[register.index()], extent)).collect();
    let determined = facts.iter().fold(Determined::ANYTHING, |all, (one, _)| all.and(one.determined));
    let depends = |i: usize| facts.iter().any(|(one, _)| one.depends[i]);
    let uses_score = depends(4) || depends(5);
    let heads: Vec<&str> =
        [(0, "b"), (1, "h")].into_iter().filter(|&(i, _)| depends(i)).map(|(_, n)| n).collect();
    let table = if facts.iter().any(|(one, _)| one.through_table) { " through a table" } else { "" };
    let named = |own: &str| {
        let names = heads.iter().copied().chain([own]).filter(|name| !name.is_empty()).collect::<Vec<_>>();
        match (names.is_empty(), own.is_empty()) {
            (true, _) => "one element".to_string(),
            (_, true) => format!("depends on {} only{table}", names.join(", ")),
            (_, false) => format!("depends on {}{table}", names.join(", ")),
        }
    };
    let missing: Vec<&str> =
        [(0, "b"), (1, "h")].into_iter().filter(|&(i, _)| !depends(i)).map(|(_, n)| n).collect();
    let Determined { query, key, difference, sum } = determined;
    if query && key {
        (ReductionKey::Head, format!("{}: one partial a tile", named("")))
    } else if query {
        (ReductionKey::Query, format!("{}: row sums", named("q")))
    } else if key {
        (ReductionKey::Key, format!("{}: column sums", named("k")))
    } else if difference {
        (ReductionKey::Difference, format!("{}: diagonal sums", named("q − k")))
    } else if sum {
        (ReductionKey::Sum, format!("{}: counter-diagonal sums", named("q + k")))
    } else if !uses_score && one_owner(&facts, lengths) {
        let summed = if missing.is_empty() {
            String::new()
        } else {
            format!(", summed over {}", missing.join(" and "))
        };
        (ReductionKey::Pair, format!("one owner for each (q, k){summed}: plain stores"))
    } else if elements <= BUCKET_LIMIT {
        (
            ReductionKey::Bucket { size: elements },
            format!("any of {elements} elements at each pair: a histogram"),
        )
    } else {
        (ReductionKey::Any, "any element at each pair: sorted by element".to_string())
    }
}

/// Whether different pairs of one (b, h) have different indices, those counted from the end included.
///
/// Two linearly independent forms determine the pair; so does one whose one part steps over the whole reach
/// of the other. An index and the same plus the extent name one element, so each form must either stay
/// non-negative or reach less far than the extent.
fn one_owner(indices: &[(&Facts, usize)], lengths: (usize, usize)) -> bool {
    let distinct = |affine: &Affine, extent: usize| {
        let (low, high) = affine.interval(lengths);
        affine.rest.is_some_and(|rest| low + rest as i128 >= 0) || high - low < extent as i128
    };
    let forms: Vec<Affine> = indices
        .iter()
        .filter_map(|(facts, extent)| facts.affine.filter(|affine| distinct(affine, *extent)))
        .collect();
    let independent =
        |x: &Affine, y: &Affine| x.query as i128 * y.key as i128 != x.key as i128 * y.query as i128;
    let steps_over = |step: i64, other: i64, length: usize| {
        step.unsigned_abs() as u128 > other.unsigned_abs() as u128 * (length.max(1) as u128 - 1)
    };
    let alone = |form: &Affine| {
        let (queries, keys) = lengths;
        form.query != 0
            && form.key != 0
            && (steps_over(form.query, form.key, keys) || steps_over(form.key, form.query, queries))
    };
    forms.iter().any(alone)
        || forms.iter().enumerate().any(|(i, x)| forms[..i].iter().any(|y| independent(x, y)))
}

impl Facts {
    /// Whether b, h and q determine it.
    pub(super) fn is_constant_along_rows(&self) -> bool {
        self.determined.query
    }
}
