//! Score functions and masks: each as programs, as the lowering would make them, and as plain Rust.

use tilewright_ir::{Binary, Compare, Scalar, Unary};
use tilewright_plan::attention::{AttentionShape, ReductionKey};
use tilewright_plan::{Kind, Operation, Program, Register};

/// A pair.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub b: usize,
    pub h: usize,
    pub q: usize,
    pub k: usize,
}

/// A function of a pair, its raw score and what it captures.
pub type OfPair = Box<dyn Fn(Pair, f64, &[f64]) -> f64>;

/// A score function `f(s, table)` of one captured array, with gradient.
pub struct Function {
    pub name: &'static str,
    /// Absent for the identity.
    pub programs: Option<Programs>,
    /// Shape of the captured array; it may be empty.
    pub table: Vec<usize>,
    pub score: OfPair,
    /// ∂f / ∂s.
    pub slope: OfPair,
    /// The (flat) elements of the array that are read.
    pub reads: Box<dyn Fn(Pair) -> Vec<usize>>,
    /// ∂f / ∂ what is read, the same for all reads.
    pub factor: Box<dyn Fn(Pair, f64) -> f64>,
}

/// A function's programs for the score kind `F32` or `F64`, and the reductions of its reads.
pub struct Programs {
    pub build: Box<dyn Fn(Kind) -> (Program, Program)>,
    /// Each reads the joint program's third result.
    pub reductions: Vec<(ReductionKey, Program)>,
}

/// A mask.
pub struct Mask {
    pub name: &'static str,
    pub program: Option<Program>,
    pub admits: Box<dyn Fn(Pair) -> bool>,
}

/// Writes programs.
#[derive(Default)]
pub struct Code(pub Program);

impl Code {
    pub fn input(&mut self, input: usize) -> Register {
        self.0.push(Operation::Input(input), Kind::I32)
    }
    pub fn int(&mut self, x: i64) -> Register {
        self.0.push(Operation::Constant(Scalar::Integer(x)), Kind::I32)
    }
    pub fn binary(&mut self, f: Binary, x: Register, y: Register) -> Register {
        let kind = self.0.kind(x);
        self.0.push(Operation::Binary(f, x, y), kind)
    }
    pub fn compare(&mut self, f: Compare, x: Register, y: Register) -> Register {
        self.0.push(Operation::Compare(f, x, y), Kind::Bool)
    }
    pub fn results(mut self, results: &[Register]) -> Program {
        self.0.results = results.to_vec();
        self.0
    }
}

/// Writes the index of each axis.
type Indices = fn(&mut Code, &AttentionShape) -> Vec<Register>;

/// `s + table[indices]`, or `s · table[indices]` where `gain`.
fn read(
    name: &'static str,
    gain: bool,
    shape: AttentionShape,
    table: Vec<usize>,
    key: ReductionKey,
    indices: Indices,
    flat: impl Fn(Pair) -> usize + Copy + 'static,
) -> Function {
    let write = move |code: &mut Code| indices(code, &shape);
    let flat_index = matches!(key, ReductionKey::Bucket { .. });
    let extents = table.clone();
    let build = move |kind: Kind| {
        let operation = if gain { Binary::Mul } else { Binary::Add };
        let mut score = Code::default();
        let axes = write(&mut score);
        let read = score.0.push(Operation::Load(0, axes), kind);
        let s = score.0.push(Operation::Input(4), kind);
        let result = score.binary(operation, s, read);
        let mut joint = Code(score.0.clone());
        let g = joint.0.push(Operation::Input(5), kind);
        let (ds, term) =
            if gain { (joint.binary(Binary::Mul, g, read), joint.binary(Binary::Mul, g, s)) } else { (g, g) };
        (score.results(&[result]), joint.results(&[result, ds, term]))
    };
    let mut code = Code::default();
    let mut axes = write(&mut code);
    if flat_index {
        let mut all = axes[0];
        for (axis, &index) in axes.iter().enumerate().skip(1) {
            let extent = code.int(extents[axis] as i64);
            let scaled = code.binary(Binary::Mul, all, extent);
            all = code.binary(Binary::Add, scaled, index);
        }
        axes = vec![all];
    }
    let reductions = vec![(key, code.results(&axes))];
    Function {
        name,
        programs: Some(Programs { build: Box::new(build), reductions }),
        table,
        score: Box::new(move |p, s, t| if gain { s * t[flat(p)] } else { s + t[flat(p)] }),
        slope: Box::new(move |p, _, t| if gain { t[flat(p)] } else { 1.0 }),
        reads: Box::new(move |p| vec![flat(p)]),
        factor: Box::new(move |_, s| if gain { s } else { 1.0 }),
    }
}

/// A function of the score alone.
fn plain(
    name: &'static str,
    write: fn(&mut Code, Kind, Register) -> (Register, Register),
    score: fn(f64) -> f64,
    slope: fn(f64) -> f64,
) -> Function {
    let build = move |kind: Kind| {
        let mut code = Code::default();
        let s = code.0.push(Operation::Input(4), kind);
        let (result, slope) = write(&mut code, kind, s);
        let score = Code(code.0.clone()).results(&[result]);
        let g = code.0.push(Operation::Input(5), kind);
        let ds = code.binary(Binary::Mul, g, slope);
        (score, code.results(&[result, ds]))
    };
    Function {
        name,
        programs: Some(Programs { build: Box::new(build), reductions: vec![] }),
        table: vec![0],
        score: Box::new(move |_, s, _| score(s)),
        slope: Box::new(move |_, s, _| slope(s)),
        reads: Box::new(|_| vec![]),
        factor: Box::new(|_, _| 0.0),
    }
}

/// The identity.
pub fn identity() -> Function {
    Function {
        name: "identity",
        programs: None,
        table: vec![0],
        score: Box::new(|_, s, _| s),
        slope: Box::new(|_, _, _| 1.0),
        reads: Box::new(|_| vec![]),
        factor: Box::new(|_, _| 0.0),
    }
}

fn number(code: &mut Code, kind: Kind, x: f64) -> Register {
    code.0.push(Operation::Constant(Scalar::Float(x)), kind)
}

/// `s²`: its derivative needs the raw score in the second stage.
pub fn squared() -> Function {
    plain(
        "squared",
        |code, kind, s| {
            let two = number(code, kind, 2.0);
            (code.binary(Binary::Mul, s, s), code.binary(Binary::Mul, two, s))
        },
        |s| s * s,
        |s| 2.0 * s,
    )
}

/// `3 tanh(s / 3)`.
pub fn softcap() -> Function {
    plain(
        "softcap",
        |code, kind, s| {
            let (cap, one) = (number(code, kind, 3.0), number(code, kind, 1.0));
            let ratio = code.binary(Binary::Div, s, cap);
            let t = code.0.push(Operation::Unary(Unary::Tanh, ratio), kind);
            let square = code.binary(Binary::Mul, t, t);
            (code.binary(Binary::Mul, cap, t), code.binary(Binary::Sub, one, square))
        },
        |s| 3.0 * (s / 3.0).tanh(),
        |s| 1.0 - (s / 3.0).tanh().powi(2),
    )
}

/// Every class of captured read.
pub fn captured(shape: AttentionShape) -> Vec<Function> {
    let AttentionShape { batch, heads, queries, keys, .. } = shape;
    use ReductionKey::{Any, Bucket, Difference, Head, Key, Query, Sum};
    let (q, k) = (queries, keys);
    let difference: Indices = |code, shape| {
        let (h, q, k) = (code.input(1), code.input(2), code.input(3));
        let difference = code.binary(Binary::Sub, q, k);
        let last = code.int(shape.keys as i64 - 1);
        vec![h, code.binary(Binary::Add, difference, last)]
    };
    let window: Indices = |code, _| {
        let (h, q, k) = (code.input(1), code.input(2), code.input(3));
        let difference = code.binary(Binary::Sub, q, k);
        let (low, high, middle) = (code.int(0), code.int(16), code.int(8));
        let moved = code.binary(Binary::Add, difference, middle);
        let above = code.binary(Binary::Max, moved, low);
        vec![h, code.binary(Binary::Min, above, high)]
    };
    let window_index = move |p: Pair| p.h * 17 + (p.q as i64 - p.k as i64 + 8).clamp(0, 16) as usize;
    let mut symmetric =
        read("query and key", false, shape, vec![q.max(k)], Query, |c, _| vec![c.input(2)], |p| p.q);
    // s + t[q] + t[k], one array read twice.
    symmetric.programs = Some(Programs {
        build: Box::new(|kind| {
            let mut score = Code::default();
            let (q, k) = (score.input(2), score.input(3));
            let s = score.0.push(Operation::Input(4), kind);
            let first = score.0.push(Operation::Load(0, vec![q]), kind);
            let second = score.0.push(Operation::Load(0, vec![k]), kind);
            let sum = score.binary(Binary::Add, s, first);
            let sum = score.binary(Binary::Add, sum, second);
            let mut joint = Code(score.0.clone());
            let g = joint.0.push(Operation::Input(5), kind);
            (score.results(&[sum]), joint.results(&[sum, g, g]))
        }),
        reductions: [(Query, 2), (Key, 3)]
            .map(|(key, input)| {
                let mut code = Code::default();
                let index = code.input(input);
                (key, code.results(&[index]))
            })
            .into(),
    });
    symmetric.score = Box::new(|p, s, t| s + t[p.q] + t[p.k]);
    symmetric.reads = Box::new(|p| vec![p.q, p.k]);
    vec![
        read("head gain", true, shape, vec![heads], Head, |c, _| vec![c.input(1)], |p| p.h),
        read("query gain", true, shape, vec![q], Query, |c, _| vec![c.input(2)], |p| p.q),
        read("key bias", false, shape, vec![k], Key, |c, _| vec![c.input(3)], |p| p.k),
        read("relative", false, shape, vec![heads, q + k - 1], Difference, difference, move |p| {
            p.h * (q + k - 1) + p.q + k - 1 - p.k
        }),
        read(
            "sum gain",
            true,
            shape,
            vec![q + k],
            Sum,
            |c, _| {
                let (q, k) = (c.input(2), c.input(3));
                vec![c.binary(Binary::Add, q, k)]
            },
            |p| p.q + p.k,
        ),
        read(
            "pair of all heads",
            false,
            shape,
            vec![q, k],
            ReductionKey::Pair,
            |c, _| vec![c.input(2), c.input(3)],
            move |p| p.q * k + p.k,
        ),
        read(
            "pair of a head, flipped",
            true,
            shape,
            vec![heads, k, q],
            ReductionKey::Pair,
            |c, _| vec![c.input(1), c.input(3), c.input(2)],
            move |p| (p.h * k + p.k) * q + p.q,
        ),
        read(
            "pair of a batch element and head",
            false,
            shape,
            vec![batch, heads, q, k],
            ReductionKey::Pair,
            |c, _| vec![c.input(0), c.input(1), c.input(2), c.input(3)],
            move |p| ((p.b * heads + p.h) * q + p.q) * k + p.k,
        ),
        // Half of the keys' indices count from the end.
        read(
            "pair of a batch element and head, turned",
            false,
            shape,
            vec![batch, heads, q, k],
            ReductionKey::Pair,
            |c, shape| {
                let half = c.int(shape.keys as i64 / 2);
                let (b, h, q, k) = (c.input(0), c.input(1), c.input(2), c.input(3));
                vec![b, h, q, c.binary(Binary::Sub, k, half)]
            },
            move |p| ((p.b * heads + p.h) * q + p.q) * k + (p.k + k - k / 2) % k,
        ),
        // The index mixes head and key: no element has one owner.
        read(
            "pair, shifted by the head",
            false,
            shape,
            vec![q, k + heads],
            ReductionKey::Pair,
            |c, _| {
                let (h, q, k) = (c.input(1), c.input(2), c.input(3));
                vec![q, c.binary(Binary::Add, k, h)]
            },
            move |p| p.q * (k + heads) + p.k + p.h,
        ),
        read(
            "pair from the end",
            false,
            shape,
            vec![q, k],
            ReductionKey::Pair,
            |c, shape| {
                let (q, k, n) = (c.input(2), c.input(3), c.int(shape.keys as i64));
                vec![q, c.binary(Binary::Sub, k, n)]
            },
            move |p| p.q * k + p.k,
        ),
        read(
            "window bucket",
            false,
            shape,
            vec![heads, 17],
            Bucket { size: heads * 17 },
            window,
            window_index,
        ),
        read("window, anything", true, shape, vec![heads, 17], Any, window, window_index),
        symmetric,
    ]
}

/// Masks of every kind of block.
pub fn masks() -> Vec<Mask> {
    let mask = |name, write: fn(&mut Code) -> Register, admits: fn(Pair) -> bool| {
        let mut code = Code::default();
        let result = write(&mut code);
        Mask { name, program: Some(code.results(&[result])), admits: Box::new(admits) }
    };
    vec![
        Mask { name: "none", program: None, admits: Box::new(|_| true) },
        mask(
            "causal",
            |c| {
                let (q, k) = (c.input(2), c.input(3));
                c.compare(Compare::Ge, q, k)
            },
            |p| p.q >= p.k,
        ),
        mask(
            "window by head, from row 5 on",
            |c| {
                let (h, q, k) = (c.input(1), c.input(2), c.input(3));
                let (five, width) = (c.int(5), c.int(20));
                let reach = c.binary(Binary::Mul, h, width);
                let reach = c.binary(Binary::Add, reach, five);
                let distance = c.binary(Binary::Sub, q, k);
                let zero = c.int(0);
                let (late, behind, near) = (
                    c.compare(Compare::Ge, q, five),
                    c.compare(Compare::Ge, distance, zero),
                    c.compare(Compare::Le, distance, reach),
                );
                let both = c.binary(Binary::And, behind, near);
                c.binary(Binary::And, both, late)
            },
            |p| p.q >= 5 && p.q >= p.k && p.q - p.k <= 20 * p.h + 5,
        ),
        mask(
            "every third key",
            |c| {
                let (k, three, one) = (c.input(3), c.int(3), c.int(1));
                let rest = c.binary(Binary::Rem, k, three);
                c.compare(Compare::Eq, rest, one)
            },
            |p| p.k % 3 == 1,
        ),
    ]
}
